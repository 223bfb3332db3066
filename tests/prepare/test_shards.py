"""Shards: the same from everything that holds the same images, and readable by all who read shards."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from launch.prepare import main
from senet.data.storage.find import find, listing, saved_listing
from senet.data.storage.index import key
from senet.data.storage.tars import Tars
from senet.errors import UsageError
from senet.prepare import imagenet
from senet.prepare.convert import convert
from senet.prepare.encoding import Encoding
from senet.prepare.findings import examine
from senet.prepare.shards import Packing
from tests.data.test_index import pack
from tests.helpers import ROOT, draw
from tests.prepare.conftest import Archives, contents

CLASSES = ("bird", "cat", "dog")
SMALL = Packing(shard_mb=1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3.3 MB in 60 + 9 images, with names and formats that need care."""
    root, generator = tmp_path_factory.mktemp("folders"), np.random.default_rng(0)
    for split, count in (("train", 60), ("val", 9)):
        for number in range(count):
            folder = root / split / CLASSES[number % 3]
            folder.mkdir(parents=True, exist_ok=True)
            if split == "train":
                pixels = generator.integers(0, 256, (200, 200, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:03}.JPEG", quality=95)
            else:
                draw(folder / f"{number:03}.JPEG", generator, 0)
    picture = Image.fromarray(generator.integers(0, 256, (20, 20, 3), np.uint8))
    picture.save(root / "train" / "cat" / "with.dots and blanks.jpg")
    picture.save(root / "train" / "cat" / "a.png")
    picture.save(root / "train" / "dog" / "a.webp")
    picture.save(root / "train" / "dog" / "mistaken.JPEG", "PNG")
    (root / "train" / "bird" / "damaged.JPEG").write_bytes(b"no image")
    return root


@pytest.fixture(scope="session")
def shards(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("made") / "shards"
    assert main(["shards", str(folders), str(to), "--shard-mb", "1", "--processes", "1"]) == 0
    return to


def samples(root: Path, split: str) -> dict[str, tuple[bytes, int]]:
    index = listing(root, split)
    return {key(name): (index.storage.read(i), int(index.labels[i])) for i, name in enumerate(index.storage.names)}


def test_images_and_labels_are_those_of_the_folders(folders: Path, shards: Path) -> None:
    for split in ("train", "val"):
        assert samples(shards, split) == samples(folders, split)
        theirs, ours = listing(folders, split), listing(shards, split)
        assert ours.fingerprint == theirs.fingerprint
        assert [key(name) for name in ours.storage.names] == [key(name) for name in theirs.storage.names]
        assert ours.classes == CLASSES
        assert len(find(shards, split, 3)) == len(theirs)
    assert sorted(name for name in listing(shards, "train").storage.names if not name[-8:-4].strip("/").isdigit()) == [
        "bird/damaged.jpg", "cat/a.png", "cat/with_dots_and_blanks.jpg", "dog/a.webp", "dog/mistaken.png"
    ]  # fmt: skip


def test_shards_are_alike_mixed_and_anonymous(shards: Path) -> None:
    paths = Tars.find(shards, "train")
    sizes = [path.stat().st_size for path in paths]
    assert [path.name for path in paths] == [f"train-{number:06}.tar" for number in range(len(paths))]
    assert len(sizes) >= 3
    assert max(sizes) < 1.2 * 2**20
    for path in paths:
        with tarfile.open(path) as archive:
            members = archive.getmembers()
            assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in members} == {(0, 0, 0, 0o644, "")}
            drawn = [m.name.partition("/")[0] for m in members[::2]]
            assert set(drawn) == set(CLASSES)
            assert drawn != sorted(drawn)


def test_the_saved_list_is_what_the_shards_hold(shards: Path) -> None:
    for split in ("train", "val"):
        saved, found = saved_listing(shards, split), Tars.scan(shards, split)
        assert saved is not None
        assert list(saved.storage.names) == list(found.storage.names)
        assert (saved.storage.stamp, saved.classes) == (found.storage.stamp, found.classes)
        np.testing.assert_array_equal(saved.labels, found.labels)
        np.testing.assert_array_equal(saved.storage.columns["spans"], found.storage.columns["spans"])


def test_the_index_is_that_of_wds2idx(shards: Path, tmp_path: Path) -> None:
    for path in Tars.find(shards, "train"):
        subprocess.run(
            [Path(sys.executable).with_name("wds2idx"), path, tmp_path / "idx"], check=True, capture_output=True
        )
        assert path.with_suffix(".idx").read_bytes() == (tmp_path / "idx").read_bytes()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it does not close its files
def test_the_webdataset_package_reads_them(folders: Path, shards: Path) -> None:
    for split in ("train", "val"):
        paths = [str(path) for path in Tars.find(shards, split)]
        found = {}
        for sample in webdataset.WebDataset(paths, shardshuffle=False):
            (content,) = [
                part for ending, part in sample.items() if ending not in ("cls", "__key__", "__url__", "__local_path__")
            ]
            found[sample["__key__"]] = content, int(sample["cls"])
        assert found == samples(folders, split)
    gc.collect()


def test_dali_reads_them(folders: Path, shards: Path) -> None:
    from nvidia.dali import fn, pipeline_def

    paths = Tars.find(shards, "train")

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline(indexed: bool):
        indices = [str(path.with_suffix(".idx")) for path in paths] if indexed else []
        return tuple(
            fn.readers.webdataset(
                paths=[str(p) for p in paths], index_paths=indices, ext=["jpg;png;webp", "cls"], name="reader"
            )
        )

    wanted = sorted(samples(folders, "train").values())
    for indexed in (True, False):
        pipe = pipeline(indexed)
        pipe.build()
        assert pipe.epoch_size("reader") == len(wanted)
        found = []
        for _ in wanted:
            content, label = (np.asarray(part[0]).tobytes() for part in pipe.run())
            found.append((content, int(label)))
        assert sorted(found) == wanted


def test_archives_folders_and_shards_give_the_same_bytes(archives: Archives, tmp_path: Path) -> None:
    imagenet.prepare(tmp_path / "folders", archives.both, SMALL.encoding, partial=True, processes=1)
    imagenet.prepare(tmp_path / "direct", archives.both, SMALL, partial=True, processes=1)
    convert(tmp_path / "folders", tmp_path / "shards", SMALL, processes=1)
    convert(tmp_path / "direct", tmp_path / "again", SMALL, processes=2)
    plain = [
        {name: content for name, content in contents(tmp_path / kind).items() if name != "plan.json"}
        for kind in ("direct", "shards", "again")
    ]
    assert len(plain[0]) > 6
    assert plain[0] == plain[1] == plain[2]


def test_shards_go_back_to_folders(folders: Path, shards: Path, tmp_path: Path) -> None:
    assert main(["folders", str(shards), str(tmp_path / "made"), "--processes", "2"]) == 0
    for split in ("train", "val"):
        made, whole = listing(tmp_path / "made", split), listing(folders, split)
        assert samples(tmp_path / "made", split) == samples(folders, split)
        assert (made.fingerprint, made.classes) == (whole.fingerprint, whole.classes)
        assert saved_listing(tmp_path / "made", split) is not None
    assert (tmp_path / "made/train/cat/with_dots_and_blanks.jpg").exists()


def test_shards_of_others_without_names_make_numbered_folders(few_images: Path, tmp_path: Path) -> None:
    pack(few_images, tmp_path / "shards", 2)
    convert(tmp_path / "shards", tmp_path / "made", Encoding(), processes=1)
    assert sorted(path.name for path in (tmp_path / "made/train").iterdir()) == ["00000", "00001", "00002"]
    made, theirs = listing(tmp_path / "made", "val"), listing(tmp_path / "shards", "val")
    assert [made.storage.read(i) for i in range(9)] == [theirs.storage.read(i) for i in range(9)]
    assert made.labels.tolist() == theirs.labels.tolist()


def test_interrupted_work_is_gone_on_with(folders: Path, shards: Path, tmp_path: Path) -> None:
    convert(folders, tmp_path / "set", SMALL, processes=1)
    # As if it had been killed in the third training shard: the first two are finished and kept.
    aside = tmp_path / "set" / ".train.unfinished"
    (tmp_path / "set" / "train").rename(aside)
    for path in sorted(aside.glob("*.tar"))[2:]:
        path.unlink()
    (aside / "train-000002.tar.0123abcd.tmp").write_bytes(b"half")
    first = (aside / "train-000000.tar").stat().st_mtime_ns
    convert(folders, tmp_path / "set", SMALL, processes=1)
    assert contents(tmp_path / "set") == contents(shards)
    assert (tmp_path / "set" / "train" / "train-000000.tar").stat().st_mtime_ns == first


def test_second_run_changes_nothing(folders: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = {path: path.stat().st_mtime_ns for path in shards.rglob("*")}
    assert main(["shards", str(folders), str(shards), "--shard-mb", "1"]) == 0
    assert capsys.readouterr().out.count("there already") == 2
    assert times == {path: path.stat().st_mtime_ns for path in shards.rglob("*")}


def test_another_plan_is_refused(folders: Path, shards: Path, few_images: Path) -> None:
    before = contents(shards)
    with pytest.raises(UsageError, match="shard_mb 1 instead of 2"):
        convert(folders, shards, Packing(shard_mb=2), processes=1)
    with pytest.raises(UsageError, match="fingerprint"):
        convert(few_images, shards, SMALL, processes=1)
    assert contents(shards) == before


def test_shards_that_vanish_are_noticed(folders: Path, tmp_path: Path) -> None:
    convert(folders, tmp_path / "set", SMALL, processes=1)
    (tmp_path / "set" / "train" / "train-000001.tar").unlink()
    with pytest.raises(UsageError, match="remove this folder"):
        convert(folders, tmp_path / "set", SMALL, processes=1)


def test_what_cannot_be_packed_is_named(few_images: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        convert(tmp_path / "absent", tmp_path / "to", SMALL)
    with pytest.raises(UsageError, match="is what it is to be made of"):
        convert(few_images, few_images, SMALL)
    folder = few_images / "train" / "class0"
    (folder / "000.png").write_bytes((folder / "000.JPEG").read_bytes())
    with pytest.raises(UsageError, match=r"000\.\w+: another image would be class0/000"):
        convert(few_images, tmp_path / "to", SMALL, processes=1)


def test_only_known_formats_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL would start ghostscript for what calls itself PostScript, whatever its name."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n%%EOF\n"
    assert Encoding(short_side=8)(content) == content
    assert examine(content, "a.JPEG")[1].startswith("not one of JPEG")
    assert not (tmp_path / "started").exists()
    opening = [path for path in (ROOT / "senet").rglob("*.py") if "Image.open(" in path.read_text()]
    assert opening == [ROOT / "senet/data/pixels.py"]


def test_names_of_any_kind(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "train" / os.fsdecode("größer als 1.5".encode("latin-1"))
    folder.mkdir(parents=True)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    for name in ("ä.jpg", "x" * 150 + ".jpg", os.fsdecode(b"\xff.jpg")):
        (folder / name).write_bytes(file.getvalue())
    convert(tmp_path / "set", tmp_path / "shards", SMALL, processes=1)
    saved, found = listing(tmp_path / "shards", "train"), Tars.scan(tmp_path / "shards", "train")
    assert samples(tmp_path / "shards", "train") == samples(tmp_path / "set", "train")
    assert list(saved.storage.names) == list(found.storage.names)
    assert saved.classes == (folder.name,)
    assert listing(tmp_path / "shards", "train").fingerprint == listing(tmp_path / "set", "train").fingerprint
