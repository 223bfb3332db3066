"""A training run from its first minute to its last: the one module that knows all the others."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from senet import distributed
from senet.config import Config, from_dict
from senet.data.loader import Batch
from senet.data.source import Source, train_loader, val_loader
from senet.errors import RunError, UsageError, explain
from senet.run import changes, checkpoint, choice, preflight, report, status
from senet.run.lock import Lock
from senet.run.report import Report
from senet.run.saver import Saver
from senet.run.state import State
from senet.run.stop import RESUMABLE, Stop
from senet.run.watchdog import Watchdog
from senet.system import faults
from senet.system.files import write_text
from senet.train.evaluate import evaluate
from senet.train.hooks import Faults, HookList, Hooks
from senet.train.ledger import Ledger
from senet.train.meter import Meter
from senet.train.stragglers import StepTimer, StragglerDetector, Times
from senet.train.trainer import DTYPES, Trainer

GO_ON, SAVE, STOP, ALONE = (
    0,
    1,
    2,
    3,
)  # what a rank can ask for between two steps; the greatest wins. ALONE: its torchrun is gone
REWINDS = 3  # before giving up
DUMPED = 20  # steps whose images are named


@dataclass(frozen=True)
class Flags:
    """The circumstances of a run: nothing in world changes its result."""

    out: Path
    name: str
    source: Source
    device: str = "auto"
    largest_batch: int | Literal["auto"] | None = None
    save_minutes: float = 15.0
    keep: int = 2
    keep_every: int = 0
    keep_hours: float = 0.0
    accept_changes: bool = False
    max_skips: int = 10
    hang_minutes: float = 5.0
    log_every: int = 50
    track: str = "auto"
    deterministic: bool = False
    execution: Mapping[str, Any] = field(default_factory=dict)  # settings of Execution that were asked for
    tune: bool = False


def train(config: Config, flags: Flags, stop: Stop) -> int:
    """Train, or go on training, in `flags.out`. Returns the exit code: 0 done, 75 stopped early. Raises UsageError,
    RunError.
    """
    with distributed.start(flags.device, flags.deterministic) as world:
        return Run(config, flags, world, stop).train()


class Run:
    """One process's part of a run."""

    def __init__(self, config: Config, flags: Flags, world: distributed.World, stop: Stop) -> None:
        self.config, self.flags, self.world, self.stop = config, flags, world, stop
        self.folder = flags.out / "checkpoints"
        self.rewinds = 0
        self.saver: Saver | None = None
        self.changed: list[str] = []  # settings, since the last start
        self.lock: Lock | None = None
        self.alone = False
        self.report = Report(world, flags.out, time.monotonic())
        changes.check_folder(config, flags.out, flags.accept_changes)
        self.watchdog = Watchdog(flags.out, world.rank, world.size, 60 * flags.hang_minutes, stop)

        source, data, dtype = flags.source, config.data, DTYPES[config.precision]
        self.val = val_loader(
            data, source, world.rank, world.size, world.device, dtype
        )  # first: what is wrong with --data shows at once
        self.choice = choice.choose(config, world, flags.out, flags.execution, flags.largest_batch, flags.tune)
        micro_batch = self.choice.micro_batch
        self.loader = train_loader(
            data, source, config.batch, micro_batch, config.seed, world.rank, world.size, world.device, dtype
        )
        self.loader.memory_format = self.val.memory_format = self.choice.execution.memory_format
        self.hosts = preflight.check_alike(world, (self.loader.fingerprint, self.val.fingerprint))

        self.timer = StepTimer() if world.size > 1 else None
        self.stragglers = StragglerDetector(world.size)
        hooks: list[Hooks] = [self.watchdog, Faults(), Ledger(world.rank, world.size * self.loader.accumulation_steps)]
        hooks += [self.timer] if self.timer else []
        self.trainer = Trainer.build(config, world, self.choice.execution, HookList(*hooks))
        self.net = self.trainer.net
        self.state = State(self.net, self.trainer, Meter(world.device), Meter(world.device))

    # ---------------------------------------------------------------------------------------------------------- the run

    def train(self) -> int:
        try:
            self._rehearse()
            self.lock = preflight.claim(self.world, self.flags.out)
            resumed = self._resume()
            if resumed and self.state.epoch >= self.config.epochs:
                if self.world.is_main:
                    print(
                        f"{self.flags.out}: {report.done(self.config, self.state.best, self.folder)}", file=sys.stderr
                    )
                return 0
            self._begin(resumed)
            while self.state.epoch < self.config.epochs:
                if not (self._train_epoch() and self._end_epoch()):
                    self._written()
                    where = f"epoch {self.state.epoch}, step {self.state.step} of {self.loader.steps}"
                    self.report.say(f"stopped after {where}; the same command goes on from here")
                    if self.alone:
                        self._status("failed", RESUMABLE, "Orphaned: torchrun is gone on a node")
                    else:
                        self._status("stopped", RESUMABLE)
                    return RESUMABLE
            self._written()
            self.report.say(report.done(self.config, self.state.best, self.folder))
            self._status("done", 0)
            return 0
        except Exception as error:
            explain(error)
            self.watchdog.at("failed", self._global_step)
            self._status("failed", 2 if isinstance(error, UsageError) else 1, f"{type(error).__name__}: {error}")
            raise
        finally:
            self._close()

    def _begin(self, resumed: bool) -> None:
        """Open everything that outlives an epoch, and say what is about to happen."""
        flags, state, says = self.flags, self.state, self.report
        if self.world.is_main:
            self.saver = Saver(self.folder, flags.keep)
        if not resumed:
            says.keep(self.config, asdict(flags))
        if self.world.is_main:
            choice.keep(self.choice, flags.out)
        says.open(self.config, flags.name, flags.track, self._global_step if resumed else None)
        images, chosen = (self.loader.images, self.val.images), self.choice
        says.announce(self.config, flags.name, images, chosen, self.val.description["backend"])
        for text in preflight.warnings(
            self.world, self.config, flags.source, flags.out, flags.keep, chosen.micro_batch, self.net
        ):
            says.say(f"warning: {text}")
        self.last_save = time.monotonic()
        if resumed:
            says.say(f"resumed {flags.out} after epoch {state.epoch}, step {state.step} of {self.loader.steps}")
            if self.changed:
                says.log("event", state.epoch, self._global_step, changed="; ".join(self.changed))
                says.keep(self.config, asdict(flags))
            self._status("running")
        else:
            self._save({})

    def _close(self) -> None:
        """In any case, in this order: what is written last must not be lost. The watchdog watches over the rest."""
        if self.saver:
            self.saver.close()
        self.report.tracker.close(self.state.epoch >= self.config.epochs)
        self.loader.close()
        self.val.close()
        self.watchdog.close()
        if self.lock:
            self.lock.release()

    def _train_epoch(self) -> bool:
        """Train to the end of the current epoch; False when asked to stop before it."""
        while self.state.step < self.loader.steps:
            if not self._train_on():
                return False
        return True

    def _train_on(self) -> bool:
        """Train to the end of the epoch, or until the run goes back to an earlier position; False when asked
        to stop.
        """
        answer = self.world.all_reduce_max(GO_ON)
        for step in self.trainer.steps(self.loader, self.state.epoch, self.state.step, self.state.interval):
            self.state.step = step
            if step % self.flags.log_every == 0 or step == self.loader.steps:
                self._log_interval()
                self._tell_slow()
                self._tell_bad()
                if self._rewound():
                    answer()
                    return True
            wish, answer = answer(), self.world.all_reduce_max(self._wish() or (SAVE if self._save_is_due() else GO_ON))
            if wish != GO_ON and step < self.loader.steps:
                self._save({})
                if wish >= STOP:
                    self.alone = wish == ALONE
                    answer()
                    return False
        answer()
        return True

    def _end_epoch(self) -> bool:
        """Validate, keep the epoch's checkpoint, and move on to the next; False when asked to stop before the end of
        it.
        """
        state = self.state
        own = self.trainer.statistics.pack()
        self.trainer.statistics.average(self.world)
        began = time.monotonic()
        faults.meet("validate", self._global_step)
        errors = evaluate(self.net, self.val, self.config, self.world, stop=self._validating)
        if wish := self.world.all_reduce_max(self._wish())():
            self.alone = wish == ALONE
            self.trainer.statistics.unpack(own)
            self._save({})
            return False
        train = state.total.read(self.world.all_reduce_sum(state.total.sums.clone()))
        state.total.sums.zero_()
        state.epoch, state.step = state.epoch + 1, 0
        if errors["top1_error"] < state.best.get("top1_error", float("inf")):
            state.best = {"epoch": state.epoch, **errors}
        values = {f"train_{name}": value for name, value in train.items()} | errors
        self._tell_bad()
        self._log(
            "val", **values, validation_seconds=time.monotonic() - began, best_top1_error=state.best.get("top1_error")
        )
        self._save(errors)
        return True

    def _wish(self) -> int:
        return ALONE if self.stop.alone else STOP if self.stop.wanted else GO_ON

    def _validating(self) -> bool:
        """Asked after each batch of a validation: is it to end early?"""
        self.watchdog.at("validate", self._global_step)
        return self.stop.wanted

    def _rewound(self) -> bool:
        """Tell of steps left out for gradients that are not finite; after too many in a row go back to before them and
        leave them out.

        Every rank sees the same, for gradients are those of the global batch.
        """
        bad, out = self.trainer.guard.nonfinite_steps(), self.flags.out
        if bad:
            self._dump(bad)
            self._log(
                "event",
                skipped=len(bad),
                first_skipped=bad[0] + 1,
                reason="gradients not finite",
                row=self.trainer.guard.consecutive_skips,
            )
            self.report.say(
                f"left out {len(bad)} steps from step {bad[0] + 1}: gradients not finite; images in {out}/nonfinite-*"
            )
        if self.trainer.guard.consecutive_skips < self.flags.max_skips:
            return False
        stretch = (self._global_step - self.trainer.guard.consecutive_skips, self._global_step - 1)
        self.rewinds += 1
        if self.rewinds > REWINDS:
            raise RunError(
                f"gradients not finite in {self.trainer.guard.consecutive_skips} steps in a row, again "
                f"after {REWINDS} rewinds; "
                f"lower optim.lr, use bf16 or fp32, or look at the images in {out}/nonfinite-*.json"
            )
        if self.saver:
            self.saver.finish()
        skipped = [*self.trainer.skipped, stretch]
        self._resume(before=stretch[0] + 1)
        self.trainer.skipped, self.trainer.guard.consecutive_skips = skipped, 0
        where = f"epoch {self.state.epoch}, step {self.state.step}"
        self.report.tracker.rewind(self._global_step)
        self.report.say(f"went back to {where}; leaves out steps {stretch[0] + 1} to {stretch[1] + 1}")
        return True

    def _dump(self, bad: list[int]) -> None:
        """The images of this rank in the first steps that were left out."""
        images = {step + 1: self.loader.names(step) for step in bad[:DUMPED]}
        self.flags.out.mkdir(parents=True, exist_ok=True)
        file = self.flags.out / f"nonfinite-{bad[0] + 1:08d}-rank{self.world.rank}.json"
        write_text(file, json.dumps({"epoch": self.state.epoch, "steps": bad, "images": images}, indent=1))

    def _tell_bad(self) -> None:
        """Name, once each, the images that any rank could not decode. Raises RunError, on all ranks, when they are too
        many.
        """
        bad = self.state.bad
        for found in self.world.all_gather_object({**self.loader.bad, **self.val.bad}):
            for path, reason in found.items():
                if path not in bad:
                    bad[path] = reason
                    self._log("event", undecodable=path, reason=reason)
        self.loader.bad.check(bad)

    def _tell_slow(self) -> None:
        """Name the ranks that hold up the others, and those that no longer do."""
        if self.timer is None:
            return
        readings = self.world.all_gather_floats(list(astuple(self.timer.read())))
        for change in self.stragglers.compare([Times(int(steps), *seconds) for steps, *seconds in readings]):
            self._log("event", **change.record(self.hosts[change.rank]))

    def _rehearse(self) -> None:
        """Do once, on blank images, what the run will do for hours, so that what would fail then fails now; then undo
        it.

        It also settles the order in which DDP reduces gradients, which its first backward finds out: without it the
        first step after a resume would add them up in another order than an undisturbed run does.
        """
        before = {name: value.clone() for name, value in self.net.state_dict().items()}
        crop, images = self.config.data.crop, self.choice.micro_batch
        blank = torch.zeros(images, 3, crop, crop, device=self.world.device, dtype=DTYPES[self.config.precision])
        labels = torch.arange(images, device=self.world.device) % self.config.data.classes
        self.trainer.model.train()
        blank = blank.contiguous(memory_format=self.choice.execution.memory_format)
        self.trainer.backward(Batch(blank, labels), Meter(self.world.device))
        self.trainer.optimiser.zero_grad(set_to_none=True)
        self.net.load_state_dict(before)
        evaluate(self.net, self.val, self.config, self.world, stop=lambda: True)

    # ------------------------------------------------------------------------------------------------------ checkpoints

    def _save_is_due(self) -> bool:
        return time.monotonic() - self.last_save > 60 * self.flags.save_minutes

    def _save(self, errors: dict[str, float]) -> None:
        """Write a checkpoint of the current position; every rank takes part, the first one writes."""
        state, every = self.state, self.flags.keep_every
        self.watchdog.at("save", self._global_step)
        self.trainer.hooks.pause()
        facts = {
            "images": self.loader.fingerprint,
            "pixels": self.val.description,
            "execution": self.choice.execution.to_dict(),
        }
        payload = state.pack(self.config, self.world, self._global_step * self.config.batch, facts)
        if self.saver:
            names = [checkpoint.BEST] if errors and state.best.get("epoch") == state.epoch else []
            if errors and every and state.epoch % every == 0:
                names.append(f"epoch-{state.epoch:04d}.pt")
            if self.flags.keep_hours and checkpoint.hours_since(self.folder, checkpoint.TIMED) >= self.flags.keep_hours:
                names.append(f"{checkpoint.TIMED}-{self._global_step:08d}.pt")
            self.saver.save(
                self._global_step, payload, {"epoch": state.epoch, "epoch_step": state.step, **errors}, names
            )
        self.last_save = time.monotonic()
        self._status("running")
        self._news()

    def _written(self) -> None:
        """Wait for the checkpoints; a stop has been honoured."""
        self.watchdog.at("save", self._global_step)
        if self.saver:
            self.saver.finish()
            self.stop.honoured()
        self._news()

    def _news(self) -> None:
        for text in self.saver.news() if self.saver else ():
            self.report.say(f"warning: {text}")
            self._log("event", warning=text)

    def _resume(self, before: int | None = None) -> bool:
        """Load the newest valid checkpoint of the run folder, of those `before` a step; False where there is none.

        All ranks read the one that the first rank found: a shared folder may show them different newest files.
        """
        found = checkpoint.newest(self.folder, print, before) if self.world.is_main else None
        path = self.world.broadcast_object(found and found[0])
        if path is None:
            return False
        payload = found[1] if found else checkpoint.read(path)
        self.changed = changes.check_same(from_dict(payload["config"]), self.config, path, self.flags.accept_changes)
        for name, was in payload["pixels"].items() if self.world.is_main else ():
            if (now := self.val.description.get(name)) != was:
                print(
                    f"warning: other pixels than before: {name} was {was!r}, is now {now!r}; results will differ",
                    file=sys.stderr,
                )
        if payload["images"] != self.loader.fingerprint and not any(
            change.startswith("data.") for change in self.changed
        ):
            raise UsageError(
                f"--data {self.flags.source.root}: other images than those {path} was trained on; give "
                "them, or another --out"
            )
        self.state.restore(payload, self.world)
        if self.state.step and self.changed:
            changes.check_within_epoch(self.changed, path)
        return True

    # ---------------------------------------------------------------------------------------------------------- telling

    def _log_interval(self) -> None:
        state, clock = self.state, self.report.clock
        sums = self.world.all_reduce_sum(state.interval.sums.clone())
        state.interval.sums.zero_()
        if self.world.is_main:
            state.total.sums += sums
        values: dict[str, Any] = state.interval.read(sums)
        speed, wait = clock.lap(int(values["images"]), self.loader.waited)
        rate = self.trainer.optimiser.param_groups[0]["lr"]
        self.report.log(
            "train",
            state.epoch + 1,
            self._global_step,
            **values,
            learning_rate=rate,
            images_per_second=speed,
            data_wait=wait,
        )
        self.report.tracker.progress(state.epoch + 1, self.config.epochs, state.step, self.loader.steps, speed, wait)

    def _log(self, kind: str, **values: Any) -> None:
        self.report.log(kind, self.state.epoch, self._global_step, **values)

    def _status(self, state: status.State, code: int | None = None, reason: str = "") -> None:
        if self.world.is_main and self.lock:
            now = status.Status(state, self._global_step, self.state.epoch, self.config.epochs, code, reason=reason)
            with contextlib.suppress(OSError):  # a full disk must not end a run
                status.write(self.flags.out, now)

    @property
    def _global_step(self) -> int:
        return self.state.epoch * self.loader.steps + self.state.step
