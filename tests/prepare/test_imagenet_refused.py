"""ImageNet from archives, labels and words that are hostile, damaged or mistaken: each is named, nothing is lost."""

from __future__ import annotations

import io
import logging
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from launch.prepare import main
from senet.data.storage.index import Names
from senet.errors import UsageError
from senet.prepare import published, wnids
from senet.prepare.encoding import Encoding
from senet.prepare.imagenet import Sources, prepare
from senet.prepare.plan import require_space
from tests.prepare.conftest import PLAIN, WNIDS, Archives, contents, pack


def test_another_plan_is_refused(archives: Archives, tmp_path: Path) -> None:
    train = Sources(train=archives.folder / "train.tar")
    prepare(tmp_path / "set", train, PLAIN, partial=True, processes=1)
    before = contents(tmp_path / "set")
    with pytest.raises(UsageError, match="short_side None instead of 64"):
        prepare(tmp_path / "set", train, Encoding(short_side=64), partial=True, processes=1)
    assert contents(tmp_path / "set") == before
    (tmp_path / "mine" / "train" / "cats").mkdir(parents=True)
    with pytest.raises(UsageError, match="not empty"):
        prepare(tmp_path / "mine", train, PLAIN, partial=True, processes=1)


def test_a_class_that_was_damaged_is_named_and_then_mended(
    archives: Archives, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = Sources(train=archives.folder / "train.tar")
    prepare(tmp_path, train, PLAIN, partial=True, processes=1)
    before = contents(tmp_path)
    (tmp_path / "train" / WNIDS[1] / f"{WNIDS[1]}_7.JPEG").unlink()
    with pytest.raises(UsageError, match=f"{WNIDS[1]}: holds other files than its 3 images; remove this folder"):
        prepare(tmp_path, train, PLAIN, partial=True, processes=1)
    for path in (tmp_path / "train" / WNIDS[1]).iterdir():
        path.unlink()
    (tmp_path / "train" / WNIDS[1]).rmdir()
    prepare(tmp_path, train, PLAIN, partial=True, processes=1)
    assert contents(tmp_path) == before


def test_counts_are_checked(archives: Archives, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UsageError, match=r"13 images of 4 classes, not the 1,281,167 of 1,000.*--partial"):
        prepare(tmp_path, archives.both, PLAIN, processes=1)
    assert not (tmp_path / "train").exists()
    with caplog.at_level(logging.WARNING):
        prepare(tmp_path, archives.both, PLAIN, partial=True, processes=1)
    assert "8 images of 4 classes, not the 50,000" in caplog.text


def odd(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"content") -> bytes:
    """A tar of a good image and a bad member."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for info, data in ((tarfile.TarInfo(f"{WNIDS[0]}_1.JPEG"), b"good"), (tarfile.TarInfo(name), content)):
            info.type, info.linkname = (kind, "/etc/passwd") if data is content else (tarfile.REGTYPE, "")
            info.size = len(data) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        (odd(f"/tmp/{WNIDS[0]}_2.JPEG"), "outside"),  # noqa: S108
        (odd(f"../{WNIDS[0]}_2.JPEG"), "outside"),
        (odd(f"{WNIDS[0]}_2.JPEG", tarfile.SYMTYPE), "link"),
        (odd(f"{WNIDS[0]}_2.JPEG", tarfile.LNKTYPE), "link"),
        (odd(f"{WNIDS[0]}_2.JPEG", tarfile.CHRTYPE), "neither"),
        (odd(f"{WNIDS[0]}_2.JPEG", tarfile.FIFOTYPE), "neither"),
        (odd(f"{WNIDS[0]}_2.JPEG", content=bytes(5000)), "5000 bytes"),
        (odd(f"{WNIDS[0]}_2.JPEG", content=b""), "has 0 bytes"),
        (odd(f"{WNIDS[0]}_1.JPEG"), "twice"),
        (odd(f"{WNIDS[1]}_2.JPEG"), "does not belong"),
        (odd(".bashrc"), "does not belong"),
        (odd(f"{WNIDS[0]}_2.JPEG")[:1200], "damaged"),
        (odd(f"{WNIDS[0]}_2.JPEG")[:1024] + b"\x55" * 1024, "damaged"),
        (b"", "has 0 bytes"),
        (b"<html>" * 1000, "not a tar"),
    ],
)
def test_hostile_and_damaged_archives_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: bytes, reason: str
) -> None:
    monkeypatch.setattr(published, "LARGEST_IMAGE", 4999)
    tar = pack(tmp_path / "train.tar", {f"{WNIDS[0]}.tar": inner})
    with pytest.raises(UsageError, match=reason) as caught:
        prepare(tmp_path / "set", Sources(train=tar), PLAIN, partial=True, processes=1)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "set").iterdir())


def test_the_wrong_archive_is_refused(archives: Archives, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not belong there"):
        prepare(tmp_path, Sources(train=archives.folder / "val.tar"), PLAIN, partial=True, processes=1)
    with pytest.raises(UsageError, match=r"twice|does not belong there"):
        prepare(
            tmp_path,
            Sources(val=archives.folder / "train.tar", devkit=archives.folder),
            PLAIN,
            partial=True,
            processes=1,
        )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "--train-tar, --val-tar or both"),
        (["--val-tar", "val.tar"], "either --devkit or --val-labels"),
        (["--val-tar", "val.tar", "--devkit", ".", "--val-labels", "names.txt"], "either --devkit or --val-labels"),
        (["--train-tar", "train.tar", "--devkit", "."], "of no use"),
        (["--train-tar", "absent.tar"], "no such file"),
        (["--train-tar", "train.tar", "--short-side", "0"], "at least 1"),
        (["--train-tar", "train.tar", "--quality", "101"], "1 to 100"),
        (["--train-tar", "train.tar", "--partial", "--processes", "0"], "--processes 0"),
        (["--train-tar", "train.tar", "--shards", "--shard-mb", "0"], "--shard-mb 0"),
        (["--val-tar", "val.tar", "--val-labels", "val.tar"], "cannot be read|neither a wnid"),
        (["--val-tar", "val.tar", "--devkit", "val.tar"], "no ILSVRC2012_validation_ground_truth.txt"),
    ],
)
def test_mistaken_flags_are_named(
    archives: Archives, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], reason: str
) -> None:
    monkeypatch.chdir(archives.folder)
    with pytest.raises(UsageError, match=reason):
        main(["imagenet", str(tmp_path), *words])


def test_a_zip_that_unpacks_to_more_than_it_says_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("image", bytes(10**6))
        packed = file.getinfo("image").compress_size
    spans = np.array([[0, packed, 100, zipfile.ZIP_DEFLATED]])
    images = published.Zip(tmp_path, Names.of(["image"]), {"zip": "a.zip"}, {"spans": spans})
    with pytest.raises(ValueError, match="the zip has 101 of its 100 bytes"):
        images.read(0)


def test_labels_of_another_numbering_are_refused(archives: Archives, tmp_path: Path) -> None:
    file = tmp_path / "devkit.txt"
    file.write_text("ILSVRC2012_val_00000001.JPEG 490\nILSVRC2012_val_00000002.JPEG 1000\n")
    with pytest.raises(UsageError, match=r"numbers go to 1000, as the devkit's.*--devkit"):
        wnids.listed_labels(file)
    file.write_text("ILSVRC2012_val_00000001.JPEG 490\nILSVRC2012_val_00000002.JPEG 1001\n")
    with pytest.raises(UsageError, match=r"line 2: .* is neither a wnid, nor"):
        wnids.listed_labels(file)


def test_missing_labels_are_named(archives: Archives, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("n01440764\n" * 3)
    with pytest.raises(UsageError, match="'ILSVRC2012_val_00000004' has no label"):
        prepare(tmp_path, Sources(val=archives.folder / "val.tar", labels=tmp_path / "short.txt"), PLAIN, True, 1)


def test_a_full_disk_is_noticed_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    require_space(tmp_path / "deep" / "set", 1000, shrinking=False)
    with pytest.raises(UsageError, match=r"1152921504\.6 GB to write"):
        require_space(tmp_path / "deep" / "set", 1 << 60, shrinking=False)
    require_space(tmp_path, 1 << 60, shrinking=True)
    assert "before shrinking images" in caplog.text
