"""CIFAR archives: from file to folder, and every way in which that goes wrong."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import urllib.error
from pathlib import Path
from typing import Any

import pytest

from launch.prepare import main
from senet.data.cifar import LAYOUTS, Layout
from senet.errors import UsageError
from senet.prepare import archive, cifar
from senet.prepare.cifar import prepare

EVERY_LAYOUT = [pytest.param(name, layout, id=layout.folder) for name, layouts in LAYOUTS.items() for layout in layouts]


def packed(path: Path, layout: Layout, without: str = "") -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name in (*layout.all_files, "readme.html"):
            if name != without:
                info = tarfile.TarInfo(f"{layout.folder}/{name}")
                info.size = len(name)
                file.addfile(info, io.BytesIO(name.encode()))
    return path


@pytest.mark.parametrize(("name", "layout"), EVERY_LAYOUT)
def test_round_trip(tmp_path: Path, name: str, layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    source, folder = packed(tmp_path / "a.tar.gz", layout), tmp_path / "data"
    command = [name, str(folder), "--archive", str(source), "--no-checksum"]
    assert main(command) == 0
    assert "NOT verified" in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == [layout.folder]
    for file in layout.all_files:
        assert (folder / layout.folder / file).read_text() == file
    source.unlink()
    assert main(command) == 0
    assert "there already" in capsys.readouterr().out


def test_the_right_archive_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = LAYOUTS["cifar10"][1]
    source = packed(tmp_path / "renamed.tar.gz", layout)
    monkeypatch.setattr(archive, "digest", lambda path, algorithm: layout.md5 if path == source else "")
    assert "renamed.tar.gz verified" in prepare("cifar10", tmp_path / "data", source)


def test_another_archive_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    source = packed(tmp_path / "a.tar.gz", LAYOUTS["cifar10"][0])
    command = [sys.executable, "-m", "launch.prepare", "cifar10", str(tmp_path / "data"), "--archive", str(source)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    found = hashlib.md5(source.read_bytes()).hexdigest()  # noqa: S324
    assert line.startswith(f"error: {source}: MD5 {found} is not that of cifar-10-python")
    assert "--no-checksum" in line
    assert not list((tmp_path / "data").iterdir())


def test_incomplete_and_mistaken_archives_are_refused(tmp_path: Path) -> None:
    layout = LAYOUTS["cifar10"][0]
    source = packed(tmp_path / "a.tar.gz", layout, without="data_batch_4")
    with pytest.raises(UsageError, match="lacks data_batch_4"):
        prepare("cifar10", tmp_path / "data", source, checksum=False)
    with pytest.raises(UsageError, match="not an archive of cifar100"):
        prepare("cifar100", tmp_path / "data", source, checksum=False)
    with pytest.raises(UsageError, match="no such file"):
        prepare("cifar10", tmp_path / "data", tmp_path / "b.tar.gz")
    assert not list((tmp_path / "data").iterdir())


def test_interruption_leaves_nothing_and_a_killed_run_is_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, folder = LAYOUTS["cifar100"][0], tmp_path / "data"
    source = packed(tmp_path / "a.tar.gz", layout)

    def interrupted(*_: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(archive, "extract", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare("cifar100", folder, source, checksum=False)
    assert not list(folder.iterdir())
    (folder / ".partial" / "unpacked" / layout.folder).mkdir(parents=True)
    prepare("cifar100", folder, source, checksum=False)
    assert [path.name for path in folder.iterdir()] == [layout.folder]


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(UsageError, match=r"lacks data_batch_1.*remove that folder"):
        prepare("cifar10", tmp_path)


def test_no_network_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any) -> None:
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", offline)
    with pytest.raises(UsageError, match=r"name resolution.*--archive FILE"):
        prepare("cifar10", tmp_path)
    assert not list(tmp_path.iterdir())


def test_download_is_unpacked_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = LAYOUTS["cifar10"][0]

    def download(url: str, root: str, filename: str, md5: str | None) -> None:
        assert (url, filename, md5) == (cifar.URL + layout.archive, layout.archive, layout.md5)
        packed(Path(root) / filename, layout)

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    monkeypatch.setattr(archive, "digest", lambda path, algorithm: layout.md5)
    prepare("cifar10", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [layout.folder]
