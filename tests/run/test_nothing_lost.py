"""A run that is killed between any two of its file operations leaves a folder that goes on, and can be evaluated."""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, cast

import pytest
import torch

from launch import early
from senet import distributed
from senet.config import from_dict
from senet.data.source import Source
from senet.errors import DiskError, UsageError
from senet.execution.execution import Execution
from senet.run import checkpoint, status
from senet.run.flags import Flags
from senet.run.keeper import Keeper
from senet.run.load import load
from senet.run.state import State
from senet.system import lock, seal
from senet.system.run_folder import RunFolder, facts_of
from senet.track.jsonl import JsonLines
from senet.train.trainer import Trainer
from tests.helpers import TINY

CONFIG = from_dict(TINY | {"net": {"block": "basic", "blocks": [1], "widths": [4], "expansion": 1}, "epochs": 5})
STEPS = 10  # of an epoch
ERRORS = {1: 50.0, 2: 40.0, 3: 45.0, 4: 30.0}  # in percent, of each epoch


@pytest.fixture(scope="module")
def state() -> State:
    return State(Trainer.build(CONFIG, distributed.start("cpu"), Execution()), STEPS)


class Run:
    """What a run does with its folder, without the training: the weights of an epoch are its number."""

    def __init__(self, out: Path, state: State, val: str = "images", **how: Any) -> None:
        self.folder, self.state = RunFolder(out), state
        out.mkdir(exist_ok=True)
        usual = {"keep": 1, "keep_every": 2, "keep_hours": 1e-9}
        flags = Flags(out, "test", (), Source(), "cpu", **usual | how)
        self.keeper = Keeper(self.folder, flags, state, ("images", val), {"classes": ["a", "b", "c"]})
        state.epoch = state.step = 0
        self.resumed = self.keeper.resume()
        self.log = JsonLines(self.folder.log, state.global_step if self.resumed else None)
        self.keeper.start()

    @property
    def weights(self) -> float:
        return float(next(self.state.trainer.net.parameters()).detach().flatten()[0])

    def epoch(self) -> None:
        state = self.state
        state.epoch += 1
        for parameter in state.trainer.net.parameters():
            parameter.data.fill_(state.epoch)
        errors = {"images": 9, "top1_error": ERRORS[state.epoch], "top5_error": 0.0, "loss": 1.0}
        self.log.log({"kind": "val", "epoch": state.epoch, "step": state.global_step, "seconds": 1.0, **errors})
        self.keeper.save(errors)
        assert self.keeper.finish()
        status.write(self.folder.path, status.Status("running", state.global_step, state.epoch, 5))

    def close(self) -> None:
        self.keeper.close()


def lived(out: Path, state: State, epochs: int, **how: Any) -> Run:
    """Begin a run in a folder, or go on in it, for so many epochs."""
    life = Run(out, state, **how)
    for _ in range(epochs):
        life.epoch()
    life.close()
    return life


def logged(out: Path) -> dict[int, float]:
    """Return the errors of epochs in the whole lines of a log."""
    file = out / "log.jsonl"
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    records = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return {record["epoch"]: record["top1_error"] for record in records}


def evaluated(out: Path) -> tuple[float, float]:
    """Return the weights that an evaluation of a run folder loads, and the error that the checkpoint has of itself."""
    path = checkpoint.locate(out)
    net = load(str(out)).net
    return float(next(net.parameters()).detach().flatten()[0]), facts_of(path)["top1_error"]


RECORDER: Callable[[str, tuple[Any, ...]], None] | None = None
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Tell the recorder of what is about to be done to files; a hook stays for as long as the process."""
    global RECORDER
    recorder = RECORDER
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
    if recorder is not None and (writes or event in ("os.rename", "os.remove", "os.link", "os.mkdir", "os.truncate")):
        RECORDER = None
        try:
            recorder(event, arguments)
        finally:
            RECORDER = recorder


@contextmanager
def recorded(recorder: Callable[[str, tuple[Any, ...]], None]) -> Iterator[None]:
    global RECORDER
    if hook not in HOOKS:
        HOOKS.append(hook)
        sys.addaudithook(hook)
    RECORDER = recorder
    try:
        yield
    finally:
        RECORDER = None


HOOKS: list[object] = []


def test_killed_before_or_after_any_file_operation(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SIGKILL leaves the files as they are at that moment: they are copied before each operation of a life with
    saving, marking the best, keeping, pruning, logging, status, a return to an earlier step, and a resume.
    """
    out, moments, synced = tmp_path / "out", [], set()
    fsync = os.fsync

    def note(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def copy(event: str, arguments: tuple[Any, ...]) -> None:
        path = Path(os.fsdecode(arguments[0]))
        if not path.is_relative_to(out):
            return
        if event == "os.rename" and path.suffix == ".tmp":  # after a loss of power it must not be empty
            assert path.stat().st_ino in synced, path
        if event == "open":
            synced.discard(path.stat().st_ino if path.exists() else 0)
        moment = tmp_path / f"{len(moments):03} {event} {path.name}"
        if out.exists():
            shutil.copytree(out, moment)
            if path == out / "log.jsonl" and event == "open":
                with (moment / "log.jsonl").open("a") as torn:
                    torn.write('{"kind": "va')
        else:
            moment.mkdir()
        moments.append(moment)

    monkeypatch.setattr(os, "fsync", note)
    with recorded(copy):
        life = Run(out, state)
        for _ in range(3):
            life.epoch()
        assert life.keeper.resume(before=3 * STEPS)
        life.log.rewind(state.global_step)
        assert (state.epoch, life.weights) == (2, 2.0)
        life.epoch()
        life.close()
        life = Run(out, state)
        life.epoch()
        life.close()
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # which a killed process needs not
    assert len(moments) > 60
    for moment in [*moments, out]:
        check(moment, state)
    assert evaluated(out) == (4.0, 30.0)


def check(moment: Path, state: State) -> None:
    """Evaluate a folder, go on in it, and compare what comes out with its log."""
    saved = bool(RunFolder(moment).checkpoints.newest_first())
    if saved:
        weights, error = evaluated(moment)
        assert logged(moment)[int(weights)] == error, moment
    life = Run(moment, state)
    assert life.resumed == saved, moment
    if saved:
        assert life.weights == state.epoch
        assert list(logged(moment)) == list(range(1, state.epoch + 1)), moment
        assert evaluated(moment)[1] == min(logged(moment).values()) == status.best(moment), moment
    while state.epoch < 4:
        life.epoch()
    life.close()
    assert evaluated(moment) == (4.0, 30.0)
    assert logged(moment) == ERRORS
    names = {path.name for path in RunFolder(moment).checkpoints.others()}
    assert {"best.pt", "epoch-0002.pt", "epoch-0004.pt", "step-00000040.pt"} <= names, moment
    assert not list((moment / "checkpoints").glob("*.tmp")), moment


def test_what_is_kept(tmp_path: Path, state: State) -> None:
    """The newest, the best, those of every n-th epoch, and one an hour."""
    lived(tmp_path, state, 3, keep_hours=1.0)
    folder = RunFolder(tmp_path).checkpoints
    names = {"step-00000030.pt", "best.pt", "epoch-0002.pt", "timed-00000010.pt"}
    assert {path.name for path in folder.others()} == names
    assert [checkpoint.read(folder.path / name).progress.epoch for name in sorted(names)] == [2, 2, 3, 1]
    age(folder.timed(10))
    lived(tmp_path, state, 1, keep_hours=1.0)
    assert len(list(folder.path.glob("timed-*"))) == 2


def age(path: Path) -> None:
    """Make a checkpoint one of long ago."""
    payload, facts = checkpoint.read(path), seal.facts(path)
    with path.open("wb") as file:
        sealing = seal.Sealing(file)
        torch.save(payload.to_dict(), cast(BinaryIO, sealing))
        sealing.seal(facts | {"time": 0.0})


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_no_feature_of_the_file_system_is_needed_but_to_create_write_sync_and_rename(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    out, fsync = tmp_path / "out", os.fsync

    def refuse(*arguments: object, **more: object) -> None:
        raise OSError(number, os.strerror(number))

    def sync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            refuse()
        fsync(descriptor)

    def no_change(event: str, arguments: tuple[Any, ...]) -> None:
        """Of a file that is there, unless it is written anew."""
        changes = event == "open" and not arguments[2] & os.O_TRUNC
        if changes and out in Path(arguments[0]).parents and Path(arguments[0]).exists():
            refuse()

    for module, name in (
        (os, "unlink"),
        (os, "link"), (os, "symlink"), (os, "chmod"), (os, "truncate"), (os, "statvfs"), (os, "utime"),
        (fcntl, "flock"), (mmap, "mmap"), (shutil, "disk_usage"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(lock, "BEAT", 0.05)
    with recorded(no_change):
        out.mkdir()
        held = lock.acquire(RunFolder(out).lock, 0)
        lived(out, state, 3)
        with pytest.raises(lock.InUse):
            lock.acquire(RunFolder(out).lock, 0)
        held.release()
        assert lived(out, state, 1).resumed
    assert logged(out) == ERRORS
    assert evaluated(out) == (4.0, 30.0)
    assert not caplog.records or "new lines wait" not in caplog.text


def test_what_could_be_a_checkpoint_is_never_overwritten(tmp_path: Path, state: State) -> None:
    for name, content in (("step-00000010.pt", b"half"), ("model.pth", b"foreign"), ("best.pt", b"older")):
        out = tmp_path / name
        (out / "checkpoints").mkdir(parents=True)
        (out / "checkpoints" / name).write_bytes(content)
        (out / "log.jsonl").write_text("{}\n")
        with pytest.raises(UsageError, match=f"{name} .*begin anew: mv {out}/checkpoints {out}/checkpoints.1"):
            lived(out, state, 1)
        assert (out / "checkpoints" / name).read_bytes() == content
        (out / "checkpoints").rename(out / "checkpoints.1")
        lived(out, state, 1)
        assert (out / "log.jsonl.1").read_text() == "{}\n"


def test_only_best_left(tmp_path: Path, state: State) -> None:
    lived(tmp_path, state, 3)
    for path in (tmp_path / "checkpoints").iterdir():
        if path.name != "best.pt":
            path.unlink()
    life = Run(tmp_path, state)
    assert (life.resumed, state.epoch, life.weights) == (True, 2, 2.0)
    life.epoch()
    life.close()
    assert logged(tmp_path) == {epoch: ERRORS[epoch] for epoch in (1, 2, 3)}
    assert evaluated(tmp_path) == (2.0, 40.0)


def test_strangers_survive_the_pruning(tmp_path: Path, state: State) -> None:
    lived(tmp_path, state, 1)
    strangers = [tmp_path / "checkpoints" / name for name in ("step-00000003.pt", "a.tmp", "step-00000999.pt.bak")]
    for path in strangers:
        path.write_bytes(b"not ours")
    life = Run(tmp_path, state)
    (tmp_path / "checkpoints/epoch-0004.pt").write_bytes(b"not ours, either")
    (late := tmp_path / "checkpoints/step-99999999.pt").write_bytes(b"comes while it runs")
    for _ in range(3):
        life.epoch()
    life.close()
    assert all(path.exists() for path in [*strangers, late])
    assert (tmp_path / "checkpoints/epoch-0004.pt.refused").read_bytes() == b"not ours, either"
    assert [path.name for path in RunFolder(tmp_path).checkpoints.of_steps()] == [
        late.name, "step-00000040.pt", "step-00000003.pt",
    ]  # fmt: skip
    again = Run(tmp_path, state)
    again.close()
    assert (again.resumed, state.epoch) == (True, 4)
    assert (tmp_path / "checkpoints/step-99999999.pt.refused").read_bytes() == b"comes while it runs"


def test_a_best_that_is_none_of_this_run_stays_under_another_name(
    tmp_path: Path, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    lived(tmp_path, state, 2)
    with pytest.raises(UsageError, match="other validation images than those"):
        Run(tmp_path, state, val="others")
    data = replace(CONFIG.data, resize=48)  # type: ignore[call-arg]
    other = State(Trainer.build(replace(CONFIG, data=data), distributed.start("cpu"), Execution()), STEPS)
    lived(tmp_path, other, 1, val="others", accept_changes=True)
    assert "the best on other validation images; it stays as best.pt.refused" in caplog.text
    assert evaluated(tmp_path) == (3.0, 45.0)  # the best on these
    assert checkpoint.read(tmp_path / "checkpoints/best.pt.refused").progress.epoch == 2
    (tmp_path / "checkpoints/best.pt").write_bytes(b"damaged")
    lived(tmp_path, other, 1, val="others", accept_changes=True)
    assert (tmp_path / "checkpoints/best.pt.refused.1").read_bytes() == b"damaged"


def test_best_is_what_best_pt_holds_and_nothing_is_done_that_is_not_on_disk(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = Run(tmp_path, state)
    life.epoch()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=1, free=0))
    life.keeper.save({"images": 9, "top1_error": 1.0, "top5_error": 0.0})
    life.keeper.save({})
    state.epoch += 1
    life.keeper.save({"images": 9, "top1_error": 1.0, "top5_error": 0.0})
    assert not life.keeper.finish()
    first, second = life.keeper.news()  # each once
    assert "step-00000010.pt NOT written: 0 MiB free" in first
    assert "step-00000020.pt NOT written" in second
    assert status.best(tmp_path) == 50.0
    assert "best top-1 error 50.00 %" in status.done(tmp_path, 1)
    life.close()


def test_a_checkpoint_alone_is_evaluated_when_told(
    tmp_path: Path, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    lived(tmp_path, state, 1)
    alone = tmp_path / "alone.pt"
    content = torch.load(tmp_path / "checkpoints/best.pt", weights_only=True)
    content["progress"]["best"] = {}  # as an older version wrote it
    torch.save(content, alone)
    with pytest.raises(UsageError, match=r"it has no checksum .* --unverified takes it"):
        load(str(alone))
    net = load(str(alone), verify=False).net
    assert float(next(net.parameters()).detach().flatten()[0]) == 1.0
    assert "is unknown" in caplog.text


def test_a_best_of_a_time_that_was_undone_is_the_best_no_more(tmp_path: Path, state: State) -> None:
    life = Run(tmp_path, state)
    for _ in range(2):
        life.epoch()
    assert evaluated(tmp_path) == (2.0, 40.0)
    assert life.keeper.resume(before=2 * STEPS)
    assert evaluated(tmp_path) == (1.0, 50.0)
    life.epoch()
    assert evaluated(tmp_path) == (2.0, 40.0)
    life.close()


def test_what_cannot_be_read_ends_the_run_and_is_not_taken_for_damaged(tmp_path: Path, state: State) -> None:
    lived(tmp_path, state, 1)
    (tmp_path / "checkpoints/step-00000011.pt").mkdir()
    with pytest.raises(DiskError, match=r"step-00000011.pt: cannot be read: Is a directory"):
        Run(tmp_path, state)


def test_a_finished_run_says_so_at_once(tmp_path: Path, state: State, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(CONFIG, epochs=2)
    assert not early.is_finished(tmp_path, config, False)
    lived(tmp_path, state, 2)
    assert not early.is_finished(tmp_path, config, False)  # it may be running
    status.write(tmp_path, status.Status("done", 2 * STEPS, 2, 2, 0))
    assert early.is_finished(tmp_path, config, False)
    assert "done: 2 epochs; best top-1 error 40.00 %" in capsys.readouterr().err
    assert not early.is_finished(tmp_path, replace(CONFIG, epochs=3), True)
    for path in (tmp_path / "checkpoints").glob("*0020.pt"):
        path.write_bytes(path.read_bytes()[:-1])
    assert not early.is_finished(tmp_path, config, False)
