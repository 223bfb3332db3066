"""Augmentation: each does what its paper says, alike in both backends, and follows from (seed, epoch, image) alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from senet.config import Augment, AutoAugment, Cifar10, Folder, FolderAugment, Grow, RandAugment, crop_at
from senet.data.augment import Augmentation, neighbours
from senet.data.policy import FILL, OPERATIONS, POLICIES, SIGNED, Choice, Operations, apply, choose, levels
from senet.data.source import Source, train_loader
from senet.errors import UsageError
from tests.data.test_loaders import CPU, epoch

KEYS = np.arange(4000)
ALL = {
    "rotate": {"rotate": 10.0},
    "colour": {"pixel_jitter": 20.0, "lighting": 0.1, "color_jitter": (0.4, 0.4, 0.4, 0.1)},
    "erase": {"erase": 0.5, "cutout": 8},
    "mix": {"mixup": 0.2, "cutmix": 1.0},
    "order": {"repeats": 3, "balance": True},
}
HOST = {
    "autoaugment": {"policy": AutoAugment()},
    "randaugment": {"policy": RandAugment(ops=2)},
    "trivialaugment": {"policy": AutoAugment("trivialaugment")},
    "resizing": {"grow": {"start": 16, "epochs": 3}},
}
CASES = [(backend, name, settings) for name, settings in (ALL | HOST).items() for backend in ("dali", "pillow")]
CASES += [("auto", name, settings) for name, settings in ALL.items()]


@pytest.mark.parametrize(
    ("backend", "name", "settings"), CASES, ids=[f"{backend}-{name}" for backend, name, _ in CASES]
)
def test_same_pixels_on_any_ranks_and_after_a_resume(
    backend: str, name: str, settings: dict[str, object], images: Path, cifar: Path
) -> None:
    if backend == "auto":
        case = Cifar10(pad=4, augment=Augment(**settings)), Source(cifar)
    else:
        case = (
            Folder(classes=3, crop=32, resize=40, augment=FolderAugment(**settings)),
            Source(images, backend, workers=1),
        )
    pixels, labels = epoch(case, 1)
    for world, micro_batch, step in ((2, 6, 0), (3, 2, 2)):
        again, again_labels = epoch(case, 1, step, world, micro_batch)
        assert torch.equal(again, pixels[12 * step :])
        assert torch.equal(again_labels, labels[12 * step :])
    assert pixels.isfinite().all()
    plain, _ = epoch((replace(case[0], augment=type(case[0].augment)()), case[1]), 1)
    assert plain.shape != pixels.shape or not torch.equal(plain, pixels)


def augmented(images: torch.Tensor, **settings: object) -> torch.Tensor:
    """Images [b, H, H, 3] after what is done to colours and geometry."""
    augmentation = Augmentation(Folder(augment=FolderAugment(**settings)), 0)  # type: ignore[arg-type]
    return augmentation.change(images, augmentation.draw(0, np.arange(len(images)), images.shape[1]))


def test_colours_stay_in_their_limits() -> None:
    grey = torch.full((2000, 4, 4, 3), 100.0)
    shifts = augmented(grey, pixel_jitter=20.0)[:, 0, 0] - 100
    assert shifts.abs().max() <= 20.001
    assert (shifts.std(0) - 20 / 3**0.5).abs().max() < 0.5
    assert (shifts.unsqueeze(2) - shifts.unsqueeze(1)).abs().mean() > 5  # channels are shifted each its own way
    assert torch.equal(augmented(grey, pixel_jitter=20.0)[:, 0, 0], augmented(grey, pixel_jitter=20.0)[:, 3, 3])
    bright = augmented(grey, color_jitter=(0.4, 0.0, 0.0, 0.0)) / 100
    assert 0.6 <= bright.min() < 0.61
    assert 1.39 < bright.max() <= 1.4001
    assert torch.allclose(augmented(grey, color_jitter=(0.0, 0.5, 0.5, 0.5)), grey, atol=0.2)  # of grey nothing changes
    noise = augmented(grey, lighting=0.1)[:, 0, 0] - 100
    vectors = torch.tensor([-0.5675, -0.5808, -0.5836])
    assert abs(float((noise @ vectors).std()) - 255 * 0.1 * 0.2175) < 0.3
    assert augmented(grey * 2.5, color_jitter=(1.0, 0.0, 0.0, 0.0)).max() == 255


@pytest.mark.parametrize("part", [0, 1, 2])
def test_colour_jitter_is_torchvisions_but_for_the_rounding(part: int) -> None:
    """Brightness, contrast and saturation one at a time. Hue is a turn of YIQ's colour plane, which torchvision does
    not have.
    """
    image = torch.from_numpy(np.random.default_rng(0).integers(60, 180, (1, 8, 8, 3)).astype(np.float32))
    limits = [0.0, 0.0, 0.0, 0.0]
    limits[part] = 0.4
    augmentation = Augmentation(Folder(augment=FolderAugment(color_jitter=tuple(limits))), 0)  # type: ignore[arg-type]
    drawn = augmentation.draw(0, np.array([5]), 8)
    assert drawn.factors is not None
    adjust = [
        transforms.functional.adjust_brightness,
        transforms.functional.adjust_contrast,
        transforms.functional.adjust_saturation,
    ][part]
    expected = adjust(image.permute(0, 3, 1, 2) / 255, float(drawn.factors[0, part])) * 255
    assert torch.allclose(augmentation.change(image, drawn).permute(0, 3, 1, 2), expected, atol=0.6)


def test_hue_turns_colours_and_keeps_grey() -> None:
    red = torch.tensor([200.0, 60.0, 60.0]).expand(500, 2, 2, 3)
    turned = augmented(red, color_jitter=(0.0, 0.0, 0.0, 0.5))[:, 0, 0]
    assert {int(i) for i in turned.argmax(1)} == {0, 1, 2}
    grey = (turned @ torch.tensor([0.299, 0.587, 0.114]))[(turned.min(1).values > 0) & (turned.max(1).values < 255)]
    assert (grey - grey.mean()).abs().max() < 1.5


def test_rotation() -> None:
    picture = torch.zeros(300, 33, 33, 3)
    picture[:, 16, 24:] = 255  # a hand that points right
    turned = augmented(picture, rotate=10.0)[..., 0]
    y, x = torch.meshgrid(torch.arange(33.0) - 16, torch.arange(33.0) - 16, indexing="ij")
    weight = turned.flatten(1).sum(1)
    angles = torch.rad2deg(
        torch.atan2((turned * y).flatten(1).sum(1) / weight, (turned * x).flatten(1).sum(1) / weight)
    )
    assert 9 < angles.max() < 11
    assert -11 < angles.min() < -9
    assert angles.mean().abs() < 1


def test_erasing_and_cutout() -> None:
    def erased(**settings: object) -> torch.Tensor:
        augmentation = Augmentation(Folder(augment=FolderAugment(**settings)), 0)  # type: ignore[arg-type]
        return augmentation.mix(torch.ones(4000, 3, 32, 32), augmentation.draw(0, KEYS, 32))[:, 0] == 0

    holes = erased(erase=0.25).flatten(1).float().mean(1)
    assert 0.22 < (holes > 0).float().mean() < 0.28
    assert holes[holes > 0].min() > 0.01
    assert holes.max() < 0.36
    square = erased(cutout=8).flatten(1).sum(1)
    assert square.max() == 64
    assert square.min() >= 16  # the centre is inside
    assert (square == 64).float().mean() > 0.5


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (1.0, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixing_takes_from_the_neighbour_what_the_weights_say(mixup: float, cutmix: float) -> None:
    augmentation = Augmentation(Folder(augment=FolderAugment(mixup=mixup, cutmix=cutmix)), 0)
    drawn = augmentation.draw(0, KEYS, 32)
    own = torch.arange(4000) % 2  # neighbours are black and white
    images = augmentation.mix(own.float().view(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous(), drawn)
    assert torch.equal(neighbours(own), 1 - own)
    share = (images.mean((1, 2, 3)) - (1 - own)).abs()
    assert drawn.weights is not None
    assert torch.allclose(share, drawn.weights, atol=1e-5)
    assert drawn.weights.min() >= 0.5 - 1e-6
    cut = ((images == 0) | (images == 1)).flatten(1).all(1) & (drawn.weights < 1)
    if not mixup:
        assert cut.float().mean() > 0.9
    elif not cutmix:
        alpha = mixup  # E[max(b, 1 - b)] of Beta(alpha, alpha), by its own sampler
        b = np.random.default_rng(0).beta(alpha, alpha, 100_000)
        assert abs(float(drawn.weights.mean()) - np.maximum(b, 1 - b).mean()) < 0.01
    else:
        assert 0.4 < cut.float().mean() < 0.55


def test_what_is_done_to_images_keeps_their_layout() -> None:
    augment = FolderAugment(erase=1.0, cutout=8, mixup=0.5, cutmix=1.0)
    augmentation = Augmentation(Folder(augment=augment), 0)
    images = torch.ones(8, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    mixed = augmentation.mix(images, augmentation.draw(0, KEYS[:8], 32))
    assert mixed.is_contiguous(memory_format=torch.channels_last)


def test_mixing_needs_pairs(images: Path) -> None:
    with pytest.raises(UsageError, match="need pairs, but a rank takes 3 images"):
        train_loader(Folder(classes=3, crop=32, augment=FolderAugment(mixup=0.2)), Source(images), 12, 3, 0, 0, 1, CPU)


def test_progressive_resizing(images: Path) -> None:
    data = Folder(classes=3, crop=64, augment=FolderAugment(grow=Grow(32, 4)))
    assert [crop_at(data, number) for number in range(7)] == [32, 32, 48, 48, 64, 64, 64]
    for backend in ("dali", "pillow"):
        loader = train_loader(data, Source(images, backend, workers=1), 12, 12, 0, 0, 1, CPU)
        assert [next(loader.batches(number, 0)).images.shape[-1] for number in (0, 2, 4)] == [32, 48, 64]
        loader.close()


# ------------------------------------------------------------------------------------------------------------- policies


def test_policies_are_torchvisions() -> None:
    names = {"autocontrast": "auto_contrast", "shearx": "shear_x"}
    theirs = transforms.AutoAugment()._get_policies(transforms.AutoAugmentPolicy.IMAGENET)
    ours = [[(operation[0], float(operation[1]), int(operation[2])) for operation in pair] for pair in POLICIES]
    assert ours == [[(names.get(n.lower(), n.lower()), p, m or 0) for n, p, m in pair] for pair in theirs]
    spaces = {
        "autoaugment": transforms.AutoAugment()._augmentation_space(10, (331, 331)),
        "randaugment": transforms.RandAugment()._augmentation_space(31, (331, 331)),
        "trivialaugment": transforms.TrivialAugmentWide()._augmentation_space(31),
    }
    for policy, space in spaces.items():
        side = 224 if policy == "trivialaugment" else 331
        for name, theirs_levels in levels(policy).items():
            magnitudes = space[name.title().replace("_", "")][0].numpy()
            scale = side if name.startswith("translate") else 1
            assert np.allclose(theirs_levels * scale, magnitudes, atol=1e-4), (policy, name)


def test_every_operation_is_chosen_as_often_as_the_papers_say() -> None:
    trivial = choose(AutoAugment("trivialaugment"), 0, 0, KEYS)
    assert trivial.operations.shape == (4000, 1)
    counts = np.bincount(trivial.operations[:, 0], minlength=14)
    assert counts.min() > 4000 / 14 * 0.8
    assert len(counts) == 14  # without invert
    assert set(trivial.bins[:, 0]) == set(range(31))
    assert 0.45 < trivial.signs.mean() < 0.55
    random = choose(RandAugment(magnitude=7), 0, 0, KEYS)
    assert random.operations.shape == (4000, 2)
    assert set(random.bins.flat) == {7}
    auto = choose(AutoAugment(), 0, 0, KEYS)
    assert np.array_equal(auto.operations[:3], choose(AutoAugment(), 0, 0, KEYS[:3]).operations)
    share = (auto.operations == OPERATIONS.index("equalize")).any(1).mean()
    expected = np.mean([1 - np.prod([1 - float(p) * (name == "equalize") for name, p, _ in pair]) for pair in POLICIES])
    assert abs(share - expected) < 0.03


def photo() -> Image.Image:
    """Smooth colours, so that half a pixel makes no great difference."""
    noise = np.random.default_rng(0).integers(20, 236, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((96, 96), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("policy", ["autoaugment", "trivialaugment"])
def test_operations_of_both_backends_agree(policy: str) -> None:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.auto_aug.core import signed_bin
    from nvidia.dali.auto_aug.core._select import select

    from senet.data.dali import _operations

    bins = {"autoaugment": 10, "trivialaugment": 31}[policy]
    cases = [(name, bin_, sign) for name in OPERATIONS for bin_ in (0, 3, bins - 1) for sign in (0, 1)]
    image, choice = photo(), np.array([[OPERATIONS.index(name), bin_, sign] for name, bin_, sign in cases], np.int32)

    @pipeline_def(
        enable_conditionals=True, batch_size=len(cases), num_threads=2, device_id=None, prefetch_queue_depth=1
    )
    def pipeline() -> object:
        pixels, operation, bin_, sign = fn.external_source(
            source=lambda: ([np.asarray(image)] * len(cases), *(list(column) for column in choice.T)),
            num_outputs=4,
            batch=True,
        )
        settings = {"magnitude_bin": signed_bin(bin_, random_sign=sign), "num_magnitude_bins": bins}
        pixels = fn.reshape(pixels, layout="HWC")
        shape = types.Constant(np.array([96, 96], np.float32))
        return select(
            _operations(policy),
            operation,
            pixels,
            fill_value=FILL,
            interp_type=types.INTERP_LINEAR,
            shape=shape,
            **settings,
        )

    built = pipeline()
    built.build()
    (got,) = built.run()
    table = levels(policy)
    for place, (name, bin_, sign) in enumerate(cases):
        level = float(table[name][bin_]) if name in table else 0.0
        expected = np.asarray(apply(image, name, -level if sign and name in SIGNED else level), np.int64)
        off = np.abs(np.asarray(got.at(place), np.int64) - expected)
        assert off.mean() < 3, (name, bin_, sign, off.mean())


def test_operations_in_a_row() -> None:
    place = {name: number for number, name in enumerate(OPERATIONS)}
    choice = Choice(*(np.array([pair], np.int32) for pair in ([place["invert"], place["posterize"]], [0, 0], [0, 0])))
    got = np.asarray(Operations(AutoAugment())(photo(), choice, 0))
    assert np.array_equal(got, (255 - np.asarray(photo())) & 0xFF)
