"""Archives that are damaged, mistaken or hostile."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from senet.errors import UsageError
from senet.prepare import archive


def tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for info, content in members:
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b"content" if kind == tarfile.REGTYPE else b""


def extract(path: Path, tmp_path: Path, largest_member: int = 100, largest_total: int = 1000) -> Path:
    into = tmp_path / "into"
    into.mkdir()
    archive.extract(path, into, largest_member, largest_total)
    return into


def test_files_and_folders_come_out(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar.gz", member("set", tarfile.DIRTYPE), member("set/one"), member("./set/deep/two"))
    into = extract(path, tmp_path)
    assert sorted(str(p.relative_to(into)) for p in into.rglob("*")) == ["set", "set/deep", "set/deep/two", "set/one"]
    assert (into / "set" / "one").read_bytes() == b"content"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (member("/tmp/absolute"), "outside"),  # noqa: S108
        (member("../above"), "outside"),
        (member("set/../../above"), "outside"),
        (member("../above", tarfile.DIRTYPE), "outside"),
        (member("link", tarfile.SYMTYPE, "/etc/passwd"), "link"),
        (member("link", tarfile.LNKTYPE, "set/one"), "link"),
        (member("null", tarfile.CHRTYPE), "neither"),
        (member("disk", tarfile.BLKTYPE), "neither"),
        (member("pipe", tarfile.FIFOTYPE), "neither"),
        (member("set/one"), "twice"),
        (member("set/one/under"), "twice|cannot"),
    ],
)
def test_hostile_members_are_refused(tmp_path: Path, bad: tuple[tarfile.TarInfo, bytes], reason: str) -> None:
    path = tar(tmp_path / "a.tar.gz", member("set/one"), bad)
    with pytest.raises(UsageError, match=reason) as caught:
        extract(path, tmp_path)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.tar.gz", "into", "one", "set"]


def test_oversized_members_are_refused_unwritten(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar.gz", member("set/one"))
    with pytest.raises(UsageError, match="7 bytes, more than the 6"):
        extract(path, tmp_path, largest_member=6)
    assert not list((tmp_path / "into").iterdir())


def test_oversized_archives_are_refused(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar.gz", member("one"), member("two"))
    with pytest.raises(UsageError, match="more than the 10 bytes"):
        extract(path, tmp_path, largest_total=10)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_truncated_archives_are_refused(tmp_path: Path, kept: float) -> None:
    noise = hashlib.shake_128(b"").digest(50_000)  # does not compress
    whole = tar(tmp_path / "a.tar.gz", (tarfile.TarInfo("one"), noise)).read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(UsageError, match="damaged"):
        extract(tmp_path / "a.tar.gz", tmp_path, 10**6, 10**6)


def test_other_files_are_refused(tmp_path: Path) -> None:
    for name, content in (("a", b"<html>404</html>" * 100), ("b", gzip.compress(b"text" * 1000))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match="not a tar archive"):
            archive.extract(tmp_path / name, tmp_path, 10, 10)


def test_identify_goes_by_md5(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    known = {"other": "0" * 32, "abc.tar": "900150983cd24fb0d6963f7d28e17f72"}
    assert archive.identify(tmp_path / "a", known) == "abc.tar"
    (tmp_path / "a").write_bytes(b"abd")
    with pytest.raises(UsageError, match="is not that of other"):
        archive.identify(tmp_path / "a", known)
    with pytest.raises(UsageError, match="cannot be read"):
        archive.identify(tmp_path / "b", known)
