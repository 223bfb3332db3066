"""Lists of images: from folders, from shards, from a saved index; all alike."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from senet.config import Folder
from senet.data.source import Source, train_loader, val_loader
from senet.data.storage.find import find, listing, saved_listing, scan
from senet.data.storage.index import Index, index_file
from senet.errors import UsageError
from senet.prepare.folders import read
from tests.helpers import ROOT

CPU = torch.device("cpu")
DATA = Folder(classes=3, crop=32, resize=40)


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def pack(root: Path, into: Path, shards: int, ending: str = "jpg") -> Path:
    """WebDataset shards of a folder, as other people's tools write them: in any order, with folders in their keys or
    without.
    """
    for split in ("train", "val"):
        (into / split).mkdir(parents=True)
        files = sorted((root / split).glob("*/*"))
        order = np.random.default_rng(0).permutation(len(files))
        for shard in range(shards):
            with tarfile.open(into / split / f"{shard}.tar", "w") as archive:
                for place in order[shard::shards]:
                    file = files[place]
                    key = f"{file.parent.name}/{file.stem}" if split == "train" else file.stem
                    label = str(sorted(os.listdir(root / split)).index(file.parent.name))
                    add(archive, f"{key}.{ending}", file.read_bytes())
                    add(archive, f"{key}.cls", label.encode())
    return into


@pytest.fixture(scope="module")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(images, tmp_path_factory.mktemp("shards"), 4)


@pytest.mark.parametrize("backend", ["dali", "pillow"])
def test_shards_give_the_batches_of_the_folder(images: Path, shards: Path, backend: str) -> None:
    got = []
    for root in (images, shards):
        train = train_loader(DATA, Source(root, backend, workers=2), 12, 6, 3, 1, 2, CPU)
        val = val_loader(DATA, Source(root, backend, workers=2), 0, 2, CPU)
        got.append([*train.batches(1, 2), *val.batches()])
        train.close()
        val.close()
    assert len(got[0]) == len(got[1])
    for one, other in zip(*got, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_a_saved_index_is_used_until_images_change(few_images: Path) -> None:
    fresh = listing(few_images, "train")
    fresh.save(index_file(few_images, "train"))
    saved = listing(few_images, "train")
    assert [saved.storage.path(i) for i in range(27)] == [fresh.storage.path(i) for i in range(27)]
    assert saved.fingerprint == fresh.fingerprint
    # It is the saved list that was read, not the folder.
    fresh.subset(np.arange(20)).save(index_file(few_images, "train"))
    assert len(listing(few_images, "train")) == 20
    (few_images / "train/class1/001.JPEG").unlink()
    assert len(listing(few_images, "train")) == 26
    index_file(few_images, "train").write_bytes(b"PK damaged")
    assert len(listing(few_images, "train")) == 26


def test_shards_copied_with_new_times_keep_their_index(shards: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(shards, root, copy_function=shutil.copyfile)
    listing(root, "train").subset(np.arange(7)).save(index_file(root, "train"))
    for path in (root / "train").iterdir():
        os.utime(path, ns=(0, 0))
    assert len(listing(root, "train")) == 7
    content = (root / "train/0.tar").read_bytes()
    (root / "train/0.tar").write_bytes(content[:1000] + b"X" + content[1001:])  # as long as before
    assert len(listing(root, "train")) == 62
    assert saved_listing(root, "train") is not None  # it was kept, so that others need not list the images again


def test_names_that_begin_anew_in_each_shard(images: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for shard in range(2):
            with tarfile.open(tmp_path / split / f"part-{shard}.tar", "w") as archive:
                for number, path in enumerate(sorted((images / split).glob(f"class{shard}/*"))[:5]):
                    add(archive, f"{number:04}.jpg", path.read_bytes())
                    add(archive, f"{number:04}.cls", b"%d" % shard)
    index = listing(tmp_path, "train")
    assert len(set(index.storage.names)) == 10
    assert index.storage.path(7) == f"{tmp_path}/train/part-1.tar:0002.jpg"
    assert index.storage.read(7) == sorted((images / "train/class1").iterdir())[2].read_bytes()
    state = (tmp_path / "train/part-1.tar").stat()
    entry = {"reason": "bad", "file": "train/part-1.tar", "bytes": state.st_size, "modified_ns": state.st_mtime_ns}
    audit = {"format": 2, "splits": {"train": {"undecodable": {"train/part-1.tar:0002.jpg": entry}}}}
    (tmp_path / "audit.json").write_text(json.dumps(audit))
    kept = find(tmp_path, "train", 2)
    assert [kept.storage.path(i)[-8:-4] for i in range(9)] == [f"{n:04}" for n in (0, 1, 2, 3, 4, 0, 1, 3, 4)]


def test_more_shards_than_files_that_may_be_open(images: Path, tmp_path: Path) -> None:
    root = pack(images, tmp_path / "shards", 60)
    code = """
import sys
from pathlib import Path
from senet.data.storage.find import listing
for split in ("train", "val"):
    storage = listing(Path(sys.argv[1]), split).storage
    print(sum(storage.read(image)[:2] == b"\\xff\\xd8" for image in range(len(storage.names))))
"""
    limited = f"ulimit -n 40; exec {sys.executable} -c '{code}' {root}"
    done = subprocess.run(["bash", "-c", limited], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["62", "203"], "")


def test_images_in_sub_folders_of_a_class_are_read(few_images: Path) -> None:
    deep = few_images / "train/class1/a/b"
    deep.mkdir(parents=True)
    (few_images / "train/class1/001.JPEG").rename(deep / "001.JPEG")
    (few_images / "train/class1/.hidden").mkdir()
    (few_images / "train/class1/.hidden/no.JPEG").write_bytes(b"")
    index = listing(few_images, "train")
    assert len(index) == 27
    assert index.storage.names[17] == "class1/a/b/001.JPEG"
    index.save(index_file(few_images, "train"))
    (deep / "more.JPEG").write_bytes((deep / "001.JPEG").read_bytes())
    assert len(listing(few_images, "train")) == 28


def test_what_stands_beside_the_images_does_no_harm(few_images: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = listing(few_images, "train").fingerprint
    for name in (
        "train.tar", "train/images.tar", "val/ILSVRC2012_img_val.tar", "train/notes.txt", "val/class0/a.tar",
        "train.tfrecord", "train-00000-of-00001", "data.parquet", "train/.DS_Store", "train/class0/._000.JPEG",
        "train/__MACOSX/._class0.jpg", "train/class1/@eaDir/001.JPEG/SYNOPHOTO_THUMB_M.jpg", "val/lost+found/a.jpg",
    ):  # fmt: skip
        (few_images / name).parent.mkdir(parents=True, exist_ok=True)
        (few_images / name).write_bytes(b"no matter what")
    (few_images / "train/class0/parent").symlink_to("..")
    (few_images / "train/class0/self").symlink_to("self")
    (few_images / "train/class3").symlink_to("class3")
    assert listing(few_images, "train").fingerprint == before
    assert len(listing(few_images, "val")) == 9
    assert "are no classes and are ignored: __MACOSX" in caplog.text
    assert "class0/parent: leads back to a folder that it is in" in caplog.text
    (few_images / "train/class1").rename(few_images / "elsewhere")
    (few_images / "train/class1").symlink_to(few_images / "elsewhere")
    assert listing(few_images, "train").fingerprint == before


def test_where_a_data_set_may_be_meant_to_be(few_images: Path) -> None:
    for wrong in (few_images / "train", few_images.parent):
        with pytest.raises(UsageError, match=f"has neither a folder train/ .* did you mean --data {few_images}\\?"):
            listing(wrong, "train")
    with pytest.raises(UsageError, match="a file, no folder"):
        listing(few_images / "train/class0/000.JPEG", "train")
    (few_images / "test").mkdir()
    shutil.move(few_images / "val", few_images / "valid")
    (few_images / "val").mkdir()
    assert len(listing(few_images, "val")) == 9, "an empty folder is no validation set"
    shutil.rmtree(few_images / "valid")
    with pytest.raises(UsageError, match="val: an empty folder"):
        listing(few_images, "val")


@pytest.fixture
def denied(few_images: Path) -> Iterator[Path]:
    """A data set whose user may not read a class, nor an image of another; root may read all, and becomes another."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "set")
        shutil.copytree(few_images, root)
        for path in (root.parent, root, *root.rglob("*")):
            path.chmod(0o755)
        (root / "train/class1").chmod(0)
        (root / "val/class1/001.JPEG").chmod(0)
        if os.geteuid() == 0:
            os.seteuid(65534)
            yield root
            os.seteuid(0)
        else:
            yield root
        (root / "train/class1").chmod(0o755)


def test_what_may_not_be_read_is_named_with_a_remedy(denied: Path, tmp_path: Path) -> None:
    reason = "cannot be read: Permission denied; give this user access"
    for call in (listing, scan):
        with pytest.raises(UsageError, match=f"train/class1: {reason}"):
            call(denied, "train")
    index = listing(denied, "val")
    with pytest.raises(PermissionError):
        index.storage.read(3)
    with pytest.raises(
        UsageError, match=r"val/class1/001\.JPEG: cannot be read \(Permission denied\); mend the source"
    ):
        read(index, 3)
    if os.getuid() == 0:  # nor the folder above it
        with pytest.raises(UsageError, match=reason):
            listing(tmp_path, "train")


def test_names_that_macos_takes_apart(few_images: Path) -> None:
    one, other = "caf\u00e9", "cafe\u0301"
    for split, name in (("train", one), ("val", other)):
        (few_images / split / "class1").rename(few_images / split / name)
    with pytest.raises(UsageError, match="names that look alike are composed otherwise"):
        listing(few_images, "train")
    (few_images / "train" / one).rename(few_images / "train" / other)
    (few_images / "classes.txt").write_bytes(b"\xef\xbb\xbfclass2\r\n" + f"{one}\r\nclass0\r\n".encode())
    assert listing(few_images, "train").classes == ("class2", other, "class0")


@pytest.mark.parametrize("name", ["validation", "valid", "test"])
def test_other_names_of_the_validation_set(few_images: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    before = listing(few_images, "val").fingerprint
    (few_images / "val").rename(few_images / name)
    assert listing(few_images, "val").fingerprint == before
    assert f"has no val/; {name}/ is used for it" in caplog.text


def test_numbers_as_names_are_warned_of_and_classes_txt_gives_their_order(
    few_images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "val"):
        for old, new in (("class0", "1"), ("class1", "2"), ("class2", "10")):
            (few_images / split / old).rename(few_images / split / new)
    assert listing(few_images, "train").classes == ("1", "10", "2")
    assert "class folders are numbers" in caplog.text
    command = caplog.text.partition("timm uses: ")[2].splitlines()[0]
    subprocess.run(command, shell=True, check=True)  # noqa: S602
    assert listing(few_images, "train").classes == ("1", "2", "10")
    for ending in ("", "\r\n\r\n"):
        (few_images / "classes.txt").write_text("1\n2\n10" + ending)
        index = listing(few_images, "val")
        assert index.classes == ("1", "2", "10")
        assert Path(index.storage.names[8]).parent.name == "10"
    index.save(index_file(few_images, "val"))
    (few_images / "classes.txt").unlink()
    assert listing(few_images, "val").classes == ("1", "10", "2")


def test_a_fingerprint_tells_sets_apart(images: Path, few_images: Path) -> None:
    index = listing(images, "train")
    others = [listing(few_images, "train"), index.subset(np.arange(61)), index.subset(np.arange(62)[::-1])]
    labels = index.labels.copy()
    labels[0] += 1
    others.append(Index(index.storage, labels, index.classes))
    assert len({part.fingerprint for part in [index, *others]}) == 5


def test_what_an_audit_found_undecodable_is_left_out_until_it_is_mended(few_images: Path) -> None:
    bad = few_images / "train/class0/000.JPEG"
    entry = {
        "reason": "truncated",
        "file": "train/class0/000.JPEG",
        "bytes": bad.stat().st_size,
        "modified_ns": bad.stat().st_mtime_ns,
    }
    audit = few_images / "audit.json"
    audit.write_text(json.dumps({"format": 2, "splits": {"train": {"undecodable": {"train/class0/000.JPEG": entry}}}}))
    assert str(bad) not in [find(few_images, "train", 3).storage.path(i) for i in range(26)]
    assert len(find(few_images, "val", 3)) == 9
    bad.write_bytes(b"mended")
    assert len(find(few_images, "train", 3)) == 27
    audit.write_text("[]")
    with pytest.raises(UsageError, match=r"audit\.json: damaged"):
        find(few_images, "train", 3)


def test_shard_errors(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"labels up to 2, but data.classes is 2"):
        find(shards, "train", 2)
    (tmp_path / "train").mkdir()
    (tmp_path / "train/0.tar").write_bytes(b"no tar at all")
    with pytest.raises(UsageError, match=r"0\.tar: not a readable shard"):
        find(tmp_path, "train", 3)
    with tarfile.open(tmp_path / "train/0.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
        archive.addfile(tarfile.TarInfo("b.jpg"))
        add(archive, "b.cls", b"1")
    with pytest.raises(UsageError, match=r"a\b.*without a label"):
        find(tmp_path, "train", 3)
    with tarfile.open(tmp_path / "train/0.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(UsageError, match="no labelled images in 1 files; expected tars of KEY"):
        find(tmp_path, "train", 3)


def test_a_shard_cut_short_gives_named_bad_images(images: Path, tmp_path: Path) -> None:
    """The index was made when the shard was whole."""
    root = pack(images, tmp_path / "shards", 2)
    index = listing(root, "val")
    shard = root / "val/0.tar"
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    reasons = []
    for image in range(len(index)):
        try:
            index.storage.read(image)
        except ValueError as error:
            reasons.append(f"{index.storage.path(image)}: {error}")
    assert len(reasons) > 40
    assert all("val/0.tar:" in reason and "ends before" in reason for reason in reasons)
