"""The data contract, for every backend: same pixels on any number of ranks and after a resume; nothing bad goes
unnamed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image

from senet.config import Cifar10, Data, Folder, Synthetic
from senet.data.loader import BadImages
from senet.data.sampler import TrainSampler, ValSampler
from senet.data.samples import Samples
from senet.data.source import Source, train_loader, val_loader
from senet.data.storage.find import find
from senet.errors import RunError, UsageError

CPU = torch.device("cpu")
FOLDER = Folder(classes=3, crop=32, resize=40)
CIFAR = Cifar10(pad=4)
SYNTHETIC = Synthetic(classes=10, crop=16, train_images=62, val_images=203)
SETS = {
    "dali": (FOLDER, "images", "dali"),
    "pillow": (FOLDER, "images", "pillow"),
    "decoded": (FOLDER, "decoded", "auto"),
    "cifar": (CIFAR, "cifar", "auto"),
    "synthetic": (SYNTHETIC, "images", "auto"),
}


@pytest.fixture(params=SETS)
def case(request: pytest.FixtureRequest) -> tuple[Data, Source]:
    data, root, backend = SETS[request.param]
    return data, Source(request.getfixturevalue(root), backend, workers=1, val_batch=50)


def epoch(
    case: tuple[Data, Source], number: int, step: int = 0, world: int = 1, micro_batch: int = 12
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and labels of the global batches of an epoch, put together from all ranks."""
    data, source = case
    loaders = [train_loader(data, source, 12, micro_batch, 3, rank, world, CPU) for rank in range(world)]
    steps, micro = loaders[0].steps, loaders[0].accumulation_steps
    parts = [list(loader.batches(number, step)) for loader in loaders]
    assert all(len(part) == (steps - step) * micro for part in parts)
    batches = [part[s * micro + m] for s in range(steps - step) for part in parts for m in range(micro)]
    for loader in loaders:
        loader.close()
    return torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])


def test_same_pixels_on_any_ranks_and_after_a_resume(case: tuple[Data, Source]) -> None:
    pixels, labels = epoch(case, 1)
    assert pixels.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    for world, micro_batch, step in ((2, 6, 0), (2, 3, 2), (3, 4, 1), (1, 12, 3)):
        again, again_labels = epoch(case, 1, step, world, micro_batch)
        assert torch.equal(again, pixels[12 * step :])
        assert torch.equal(again_labels, labels[12 * step :])
    other, _ = epoch(case, 2)
    assert not torch.equal(other, pixels)


def test_epochs_follow_each_other_in_one_loader(case: tuple[Data, Source]) -> None:
    data, source = case
    loader = train_loader(data, source, 12, 12, 3, 0, 1, CPU)
    got = [torch.cat([b.images for b in loader.batches(e, 0)]) for e in (0, 1)]
    next(loader.batches(0, 0))  # begun and given up
    loader.close()
    assert torch.equal(got[0], epoch(case, 0)[0])
    assert torch.equal(got[1], epoch(case, 1)[0])


def test_validation_sees_each_image_once(case: tuple[Data, Source]) -> None:
    data, source = case
    alone = None
    for world in (1, 2, 3, 7):
        loaders = [val_loader(data, source, rank, world, CPU) for rank in range(world)]
        parts = [[batch.images for batch in loader.batches()] for loader in loaders]
        batches = [parts[k % world][k // world] for k in range(sum(map(len, parts)))]
        for loader in loaders:
            loader.close()
        together = torch.cat(batches)
        assert len(together) == loaders[0].images
        alone = together if alone is None else alone
        assert torch.equal(together, alone)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_backends_agree_on_validation_pixels(images: Path, interpolation: Literal["bilinear", "bicubic"]) -> None:
    shown = []
    for backend in ("dali", "pillow"):
        loader = val_loader(replace(FOLDER, interpolation=interpolation), Source(images, backend, workers=1), 0, 1, CPU)
        shown.append(torch.cat([batch.images for batch in loader.batches()]))
        loader.close()
    assert torch.equal(*shown)  # on the CPU; both decode with libjpeg-turbo, and torch resizes


def damage(root: Path) -> dict[str, bytes]:
    """Four bad images in the training and one in the validation set; their paths and old contents."""
    files = [
        root / "train/class0/000.JPEG",
        root / "train/class1/004.JPEG",
        root / "train/class2/008.JPEG",
        root / "train/class2/011.JPEG",
    ]
    files.append(root / "val/class1/004.JPEG")
    old = {str(path): path.read_bytes() for path in files}
    for path, content in zip(
        files, (old[str(files[0])][:700], b"", b"a text, not an image", b"\xff\xd8\xff", b""), strict=True
    ):
        path.write_bytes(content)
    return old


@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_bad_images_are_named_and_replaced(few_images: Path, backend: str) -> None:
    bad = set(damage(few_images))
    case = FOLDER, Source(few_images, backend, workers=1)
    loader = train_loader(FOLDER, case[1], 9, 9, 0, 0, 1, CPU)
    for number in range(2):
        assert [len(b.labels) for b in loader.batches(number, 0)] == [9, 9, 9]
    assert set(loader.bad) == {path for path in bad if "/train/" in path}
    assert all(loader.bad.values())
    loader.close()
    pixels, labels = epoch(case, 1)  # by loaders that know nothing of epoch 0
    again, again_labels = epoch(case, 1, 1, 2, 3)
    assert torch.equal(again, pixels[12:])
    assert torch.equal(again_labels, labels[12:])


@pytest.mark.parametrize("backend", ["dali", "pillow"])
@pytest.mark.parametrize("size", [1, 3, 9])
def test_bad_images_are_left_out_of_the_validation(few_images: Path, backend: str, size: int) -> None:
    bad = {path for path in damage(few_images) if "/val/" in path}
    val = val_loader(FOLDER, Source(few_images, backend, workers=1, val_batch=size), 0, 1, CPU)
    for _ in range(2):
        batches = list(val.batches())
        assert sum(len(b.labels) for b in batches) == 8
        assert all(len(b.labels) for b in batches)
    assert set(val.bad) == bad
    val.close()


def test_dali_survives_images_that_kill_its_pipeline(few_images: Path) -> None:
    """Their heads are good. A loader that starts later must agree on what takes their places."""
    for path in sorted((few_images / "train").glob("*/*.JPEG"))[::5]:
        Image.open(path).save(path, format="PNG")
        path.write_bytes(path.read_bytes()[:4000])
    case = FOLDER, Source(few_images, "dali", workers=1)
    loader = train_loader(FOLDER, case[1], 12, 12, 3, 0, 1, CPU)
    for number in range(3):
        got = torch.cat([b.images for b in loader.batches(number, 0)])
        assert torch.equal(got, epoch(case, number)[0])
    assert len(loader.bad) == 6
    assert all("DALI cannot decode it" in reason for reason in loader.bad.values())
    loader.close()


def test_one_image_that_kills_a_pipeline_is_found_by_halves(few_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sorted((few_images / "train").glob("*/*.JPEG"))[7]
    Image.open(path).save(path, format="PNG")
    path.write_bytes(path.read_bytes()[:4000])
    from senet.data.dali import Dali

    tries, tried = 0, Dali._try

    def counted(self: Dali, number: int, read: Any) -> str:
        nonlocal tries
        tries += 1
        return tried(self, number, read)

    monkeypatch.setattr(Dali, "_try", counted)
    loader = train_loader(FOLDER, Source(few_images, "dali", workers=1), 27, 27, 3, 0, 1, CPU)
    assert [len(batch.labels) for batch in loader.batches(0, 0)] == [27]
    assert list(loader.bad) == [str(path)]
    assert "DALI cannot decode it" in loader.bad[str(path)]
    assert tries <= 16 * 3  # of up to three batches in the pipeline: far fewer than one for each of their 81 images
    loader.close()


def test_a_gpu_decodes_to_the_pixels_of_the_cpu(few_images: Path) -> None:
    """Its own way to spread the colours of a JPEG would make other ones."""
    from senet.data.dali import Dali

    index = find(few_images, "train", 3)
    for sampler in (TrainSampler(27, 9, 9, 0, 0, 1), ValSampler(27, 9, 0, 1)):
        samples = Samples(index, FOLDER, sampler)
        for decode, where in (("auto", "mixed"), ("cpu", "cpu")):
            dali = Dali(samples, torch.device("cuda", 0), 1, BadImages(0), decode, 0.5)
            pipe = dali._pipeline(lambda: None, batch_size=9, num_threads=1, prefetch_queue_depth=1)
            pipe._build_graph()  # no GPU is needed up to here
            (decoder,) = (op._op for op in pipe._ops if type(op._op).__name__ in ("Image", "ImageSlice"))
            assert decoder.device == where
            assert decoder._init_args.get("jpeg_fancy_upsampling", False) == (where == "mixed")
            dali.close()


def test_a_step_names_its_images(few_images: Path) -> None:
    """As a run lists those of steps whose gradients were not finite."""
    loader = train_loader(FOLDER, Source(few_images, "pillow", workers=1), 8, 4, 0, 0, 1, CPU)
    batches = list(loader.batches(0, 0))
    loader.close()
    for step in range(loader.steps):
        names = [Path(name) for name in loader.names(step)]
        labels = torch.cat([batch.labels for batch in batches[2 * step : 2 * step + 2]])
        assert [f"class{label}" for label in labels] == [name.parent.name for name in names]
        assert all(name.is_file() and name.is_relative_to(few_images / "train") for name in names)
    assert len({name for step in range(loader.steps) for name in loader.names(step)}) == 8 * loader.steps


@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_too_many_bad_images_stop_with_a_list(few_images: Path, backend: str) -> None:
    damage(few_images)
    loader = train_loader(FOLDER, Source(few_images, backend, workers=1, max_bad=2), 9, 9, 0, 0, 1, CPU)
    with pytest.raises(RunError, match=r"(?s)--max-bad 2.*JPEG: "):
        list(loader.batches(0, 0))
    loader.close()


@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_a_file_that_cannot_be_read_stops_the_run_and_is_no_bad_image(few_images: Path, backend: str) -> None:
    loaders = [
        train_loader(FOLDER, Source(few_images, backend, workers=1), 9, 9, 0, 0, 1, CPU),
        val_loader(FOLDER, Source(few_images, backend, workers=1), 0, 1, CPU),
    ]
    for path, loader in zip(("train/class1/004.JPEG", "val/class1/004.JPEG"), loaders, strict=True):
        (few_images / path).unlink()
        (few_images / path).symlink_to(few_images / path)  # whoever runs the tests may read all files, but not this one
        with pytest.raises(RunError, match=rf"{path}: cannot be read: Too many levels of symbolic links; mend that"):
            list(loader.batches(*[0, 0][: 2 * (loader is loaders[0])]))
        assert not loader.bad
        loader.close()


@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_a_set_of_bad_images_stops_with_the_reason(few_images: Path, backend: str) -> None:
    for path in (few_images / "train").glob("*/*.JPEG"):
        path.write_bytes(path.read_bytes()[:300])
    loader = train_loader(FOLDER, Source(few_images, backend, workers=1), 9, 9, 0, 0, 1, CPU)
    with pytest.raises(
        RunError, match=r"50 images in a row cannot be decoded, the last one .*JPEG: a JPEG .*truncated"
    ):
        list(loader.batches(0, 0))
    loader.close()


def test_folder_errors(few_images: Path) -> None:
    def refused(root: Path | None, message: str, data: Data = FOLDER) -> None:
        with pytest.raises(UsageError, match=message):
            train_loader(data, Source(root), 9, 9, 0, 0, 1, CPU)

    refused(None, "--data DIR is needed")
    refused(few_images / "nowhere", "no such folder; expected DIR/train/CLASS")
    refused(few_images / "train", "has neither a folder train/ nor shards")
    refused(few_images, "3 classes in train, but data.classes is 1000", Folder(crop=32))
    with pytest.raises(UsageError, match="larger than the training set"):
        train_loader(FOLDER, Source(few_images), 90, 90, 0, 0, 1, CPU)
    (few_images / "train/.hidden").mkdir()  # no class
    (few_images / "train/class3").mkdir()
    refused(few_images, "class3: an empty class folder", Folder(classes=4, crop=32))
    (few_images / "train/class3/a.JPEG").write_bytes(b"")
    refused(few_images, "train/ and val/ have other classes: class3", Folder(classes=4, crop=32))


def test_flags_without_effect_are_refused(cifar: Path) -> None:
    with pytest.raises(UsageError, match="--backend dali would have no effect"):
        val_loader(CIFAR, Source(cifar, "dali"), 0, 1, CPU)
