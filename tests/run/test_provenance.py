"""What is noted of each start of a run."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from senet import distributed
from senet.config import from_dict
from senet.data.source import Source
from senet.run import provenance
from senet.run.flags import Flags
from senet.system.run_folder import RunFolder
from tests.helpers import TINY


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository with one commit, in place of the one that this code is in."""
    root = tmp_path / "checkout"
    person = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for words in (("init", "-q", root), ("-C", root, *person, "commit", "-q", "--allow-empty", "-m", "one")):
        subprocess.run(["git", *map(str, words)], check=True)
    monkeypatch.setattr(provenance, "ROOT", root)
    provenance.code.cache_clear()
    yield root
    provenance.code.cache_clear()


def test_each_start_is_noted(tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, world = RunFolder(tmp_path), distributed.start("cpu")
    flags = Flags(tmp_path, "tiny", (), Source(), "cpu")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    (checkout / "file").write_bytes(b"to be committed, though in Latin-1: \xe9")
    subprocess.run(["git", "-C", checkout, "add", "file"], check=True)
    for step in (0, 5):
        provenance.keep(out, from_dict(TINY), ("cat", "dog"), provenance.start(world, flags, step))
    first, second = json.loads(out.starts.read_text())
    assert (first["step"], second["step"]) == (0, 5)
    assert first.keys() >= {"time", "command", "flags", "ranks", "host", "cores", "gpu", "driver", "versions"}
    assert "+to be committed" in (tmp_path / second["diff"]).read_text()
    assert (second["slurm_job"], len(second["commit"])) == ("17", 40)


def test_a_checkout_of_another_user(checkout: Path, caplog: pytest.LogCaptureFixture) -> None:
    if os.geteuid():
        pytest.skip("only root can give files away")
    for path in (checkout, *checkout.rglob("*")):
        os.chown(path, 12345, 12345)
    refused = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert "dubious ownership" in refused.stderr
    assert len(provenance.code()[0]) == 40
    assert not caplog.records


def test_a_git_that_fails_is_told_of(checkout: Path, caplog: pytest.LogCaptureFixture) -> None:
    (checkout / ".git/HEAD").unlink()
    assert provenance.code() == ("", "")
    assert "git does not tell the commit" in caplog.text
