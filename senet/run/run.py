"""A training run from its first minute to its last: the one module that knows all the others."""

from __future__ import annotations

import contextlib
import logging
import time
from functools import partial
from typing import Any

from torch import nn

from senet import distributed
from senet.config import Config
from senet.data.source import list_images, train_loader, val_loader
from senet.errors import DiskError, UsageError, explain
from senet.run import changes, initial, preflight, provenance, status, step_plan
from senet.run.flags import Flags, execution
from senet.run.keeper import Keeper
from senet.run.report import Report
from senet.run.requests import Exchange, Request
from senet.run.sample import Sample
from senet.run.state import State
from senet.run.stop import RESUMABLE, Stop
from senet.run.trouble import Trouble
from senet.run.watchdog import Watchdog
from senet.system import faults
from senet.system.lock import Lock
from senet.system.run_folder import RunFolder
from senet.track.terminal import duration
from senet.track.tracker import Stage
from senet.train.ema import EMA
from senet.train.evaluate import evaluate
from senet.train.finetune import Frozen
from senet.train.hooks import Faults, HookList, Hooks
from senet.train.ledger import Ledger
from senet.train.optimiser import learning_rate
from senet.train.stragglers import StepTimer
from senet.train.trainer import DTYPES, Trainer

TIMED = 10  # steps, before the run says how long it will take

log = logging.getLogger(__name__)


def train(config: Config, flags: Flags, stop: Stop) -> int:
    """Train, or go on training, in `flags.out`. Return the exit code: 0 done, 75 stopped early.

    Raises UsageError for what a person can mend and RunError for a run that cannot go on.
    """
    with distributed.start(flags.device, flags.deterministic) as world:
        return Run(config, flags, world, stop).train()


class Run:
    """One process's part of a run."""

    def __init__(self, config: Config, flags: Flags, world: distributed.World, stop: Stop) -> None:
        self.config, self.flags, self.world, self.stop = config, flags, world, stop
        self.folder = RunFolder(flags.out)
        self.report = Report(world, self.folder, flags.track)
        self.lock: Lock | None = None  # of the folder, on the first rank: it may be written to
        self.made = 0  # steps of this start
        self.validated = 0  # images of this validation
        self.validation_seconds: float | None = None
        self.orphaned = False  # on any rank
        changes.check_folder(config, flags.out, flags.accept_changes)
        self.watchdog = Watchdog(self.folder, world.rank, world.size, 60 * flags.hang_minutes, stop)

        list_images(config.data, flags.source, world.all_gather_object)
        on_rank = (world.rank, world.size, world.device, DTYPES[config.precision])
        self.val = val_loader(config.data, flags.source, *on_rank)  # first: what is wrong with --data shows at once
        self.plan = step_plan.decide(
            config, world, self.folder.execution, execution(flags), flags.largest_batch, flags.tune
        )
        self.loader = train_loader(
            config.data, flags.source, config.batch, self.plan.micro_batch, config.seed, *on_rank
        )
        self.loader.memory_format = self.val.memory_format = self.plan.execution.memory_format
        hosts = preflight.check_alike(world, (self.loader.fingerprint, self.val.fingerprint))

        timer = StepTimer() if world.size > 1 else None
        self.ema = EMA(config.ema) if config.ema else None
        hooks: list[Hooks] = [self.watchdog, Faults(), Ledger(world.rank, world.size * self.loader.accumulation_steps)]
        hooks += [hook for hook in (Frozen(), timer, self.ema) if hook]
        self.began = ""  # what it begins with, if it is new
        self.trainer = Trainer.build(config, world, self.plan.execution, HookList(*hooks), self._start)
        self.state = State(self.trainer, self.loader.steps)
        fingerprints = self.loader.fingerprint, self.val.fingerprint
        self.keeper = Keeper(self.folder, flags, self.state, fingerprints, self.val.description)
        self.trouble = Trouble(flags, self.state, (self.loader, self.val), hosts, timer, partial(self._record, "event"))

    # ---------------------------------------------------------------------------------------------------------- the run

    def train(self) -> int:
        """Train to the end, or until it is asked to stop. Return the exit code."""
        state, epochs = self.state, self.config.epochs
        try:
            self._rehearse()
            self.lock = preflight.claim(self.world, self.folder)
            resumed = self.keeper.resume()
            if resumed and state.epoch >= epochs:
                log.info(f"{self.folder}: {status.done(self.folder.path, epochs)}")
                return 0
            self._begin(resumed)
            while state.epoch < epochs and self._train_epoch() and self._end_epoch():
                pass
            if not self._finish_saving():
                raise DiskError(
                    f"{self.folder.checkpoints.path}: what was trained up to {self._position} is not on disk; make "
                    "room, and the same command goes on from the newest checkpoint that is"
                )
            if state.epoch < epochs:
                log.info(f"stopped after {self._position}; the same command goes on from here")
                reason = "Orphaned: torchrun is gone on a node" if self.orphaned else ""
                self._write_status("failed" if reason else "stopped", RESUMABLE, reason)
                return RESUMABLE
            log.info(status.done(self.folder.path, epochs))
            self._write_status("done", 0)
            return 0
        except Exception as error:
            explain(error)
            self.watchdog.at("failed", state.global_step)
            code = 2 if isinstance(error, UsageError) else 1
            self._write_status("failed", code, f"{type(error).__name__}: {error}")
            raise
        finally:
            self._close()

    def _rehearse(self) -> None:
        """Compute a step and a batch of the validation, so that what would fail later fails now."""
        # A GPU may be too small for whole batches, and a compiler makes code for one size. Elsewhere few show as much.
        whole = self.world.device.type == "cuda" or self.plan.execution.compile
        self.trainer.rehearse(self.plan.micro_batch if whole else min(2, self.plan.micro_batch))
        val = self.val if whole else self.val.first(2)
        evaluate(self.trainer.net, val, self.config, self.world, stop=lambda: True)
        if not whole:
            val.close()

    def _start(self, net: nn.Module) -> None:
        """Fill a fresh net with the weights of --init, unless checkpoints will."""
        if self.flags.init and not self.world.broadcast_object(bool(self.folder.checkpoints.newest_first())):
            self.began = initial.begin(net, self.config, self.loader.classes, self.flags.init)

    def _begin(self, resumed: bool) -> None:
        """Open everything that outlives an epoch, and say what is about to happen."""
        flags, state = self.flags, self.state
        self.keeper.start()
        facts = provenance.start(self.world, flags, state.global_step) if self.world.is_main else {}
        if self.world.is_main:
            try:
                self.plan.save(self.folder.execution)
                provenance.keep(self.folder, self.config, self.loader.classes, facts)
            except OSError as error:  # a full disk
                if not resumed:
                    raise
                log.warning("%s: this start is not noted: %s", self.folder, error.strerror or error)
        self.report.open(self.config, flags, facts, state.global_step if resumed else None)
        net = self.trainer.net
        self.report.announce(
            self.config,
            flags.name,
            (self.loader.images, self.val.images),
            self.plan,
            self.val.description["backend"],
            preflight.kept_bytes(net, self.config, flags.keep),
        )
        for text in preflight.warnings(
            self.world, self.config, flags.source, self.folder, flags.keep, self.plan.micro_batch, net
        ):
            log.warning(text)
        if resumed:
            log.info(f"resumed {self.folder} after {self._position}")
            if self.keeper.changed:
                self._record("event", changed="; ".join(self.keeper.changed))
            self._write_status("running")
        else:
            if self.began:
                log.info(self.began)
                self._record("event", init=self.began)
            self._save({})
        self.report.voice.gather()

    def _close(self) -> None:
        """End everything, in this order: what is written last must not be lost. The watchdog watches over the rest."""
        self.keeper.close()
        self.report.close(self.state.epoch >= self.config.epochs)
        self.loader.close()
        self.val.close()
        self.watchdog.close()
        if self.lock:
            self.lock.release()

    # ------------------------------------------------------------------------------------------------------- an epoch

    def _train_epoch(self) -> bool:
        """Train to the end of the current epoch; return False if asked to stop before it."""
        while self.state.step < self.loader.steps:
            if not self._train_on():
                return False
        return True

    def _train_on(self) -> bool:
        """Train to the end of the epoch, or until the run goes back to an earlier position; return False if asked to
        stop.
        """
        state, trainer, exchange = self.state, self.trainer, Exchange(self.world)
        clock, tracker = self.report.clock, self.report.tracker
        tracker.begin(Stage("epoch", state.epoch + 1, self.config.epochs, state.step, self.loader.steps))
        clock.begin_interval(state.global_step, self.loader.waited)
        for step in trainer.steps(self.loader, state.epoch, state.step, state.interval):
            state.step = step
            self.made += 1
            if self.made == 1:  # what it takes longer is start-up
                clock.begin_interval(state.global_step, self.loader.waited)
            elif self.made == 1 + TIMED:
                self._say_how_long()
            tracker.advance(step)
            regular = step % self.flags.log_every == 0 or step == self.loader.steps
            if regular or state.global_step == 1:
                self._record_interval()
            if regular:
                self.trouble.look_at_ranks()
                if self._goes_back():
                    break
            request = exchange.after_step(self._request(), self.keeper.due)
            if request != Request.GO_ON and step < self.loader.steps:
                self._save({})
                if request >= Request.STOP:
                    self.orphaned = request == Request.STOP_ORPHANED
                    exchange.finish()
                    return False
        exchange.finish()
        return True

    def _end_epoch(self) -> bool:
        """Validate, keep the epoch's checkpoint, and move on to the next one; return False if asked to stop before."""
        state, statistics = self.state, self.trainer.statistics
        own = statistics.pack()
        began = self.report.clock.seconds()
        faults.meet("validate", state.global_step)
        seen = self._sample()
        # The errors of an average count, if there is one: it is what is evaluated later.
        errors = counting = self._validate(None if self.ema else seen)
        if self.ema:
            with self.ema.in_net():
                counting = self._validate(seen)
                if self._recalibrates:
                    self.ema.statistics.copy_(statistics.pack())
            errors = errors | {f"ema_{name}": value for name, value in counting.items() if name != "images"}
        (request,) = self.world.all_reduce_max(self._request())()
        if request >= Request.STOP:
            self.orphaned = request == Request.STOP_ORPHANED
            statistics.unpack(own)
            self._save({})
            return False
        train = state.total.read(self.world.all_reduce_sum(state.total.sums.clone()))
        state.total.restore(None)
        state.epoch, state.step = state.epoch + 1, 0
        self.trainer.losses.append(errors["loss"])
        self.trouble.look_at_images()
        values: dict[str, Any] = {f"train_{name}": value for name, value in train.items()} | errors
        self.validation_seconds = values["validation_seconds"] = round(self.report.clock.seconds() - began, 3)
        self._record("val", **values)
        self._save(counting)
        if seen:
            seen.gather(self.world)
            position = {"epoch": state.epoch, "step": state.global_step, "seconds": self.report.clock.seconds()}
            self.report.finish(lambda: seen.results(position, self.val, self.folder))
        self.report.voice.gather()
        return True

    def _sample(self) -> Sample | None:
        """Return what collects predictions in the validation that is about to begin: the last one, if a tracker wants
        them. All ranks call it.
        """
        last = self.state.epoch + 1 == self.config.epochs
        wanted = last and self.world.broadcast_object(self.report.wants_results)
        return Sample(self.config.data, self.val.images) if wanted else None

    @property
    def _recalibrates(self) -> bool:
        """Whether training ends with this epoch, and BN statistics are computed anew then."""
        return self.config.bn.recalibrate > 0 and self.state.epoch + 1 == self.config.epochs

    def _validate(self, seen: Sample | None) -> dict[str, float]:
        """Return the validation errors of what the net holds, which `seen` collects; its BN statistics become the mean
        over ranks.
        """
        epoch, net, stop = self.state.epoch, self.trainer.net, self._stops_validation
        self.report.tracker.begin(Stage("validation", epoch + 1, self.config.epochs, 0, self.val.images))
        if self._recalibrates:
            self.trainer.recalibrate(self.loader, epoch, stop)
        self.trainer.statistics.average(self.world)
        self.validated = 0
        keep = seen.keep if seen else lambda batch, logits: None
        return evaluate(net, self.val, self.config, self.world, stop=stop, keep=keep)

    def _request(self) -> Request:
        if self.stop.wanted:
            return Request.STOP_ORPHANED if self.stop.orphaned else Request.STOP
        return Request.SAVE if self.keeper.due < 0 else Request.GO_ON

    def _stops_validation(self) -> bool:
        """Say, after each batch of a validation, whether it is to end early."""
        self.watchdog.at("validate", self.state.global_step)
        self.validated += self.flags.source.val_batch * self.world.size  # the other ranks are about as far
        self.report.tracker.advance(self.validated)
        return self.stop.wanted

    def _goes_back(self) -> bool:
        """Go back to before steps that were left out, if they are too many in a row. Return whether they were."""
        state, trainer = self.state, self.trainer
        stretch = self.trouble.look_at_gradients()
        if stretch is None:
            return False
        skipped = [*trainer.skipped, stretch]
        self.keeper.resume(before=stretch[0] + 1)
        trainer.skipped, trainer.guard.consecutive_skips = skipped, 0
        self.report.tracker.rewind(state.global_step)
        log.info(f"went back to {self._position}; leaves out steps {stretch[0] + 1} to {stretch[1] + 1}")
        return True

    # ------------------------------------------------------------------------------------------ saving and recording

    def _save(self, errors: dict[str, float]) -> None:
        """Save the current position; `errors` of the epoch that it ends."""
        began = time.monotonic()
        self.watchdog.at("save", self.state.global_step)
        self.trainer.hooks.pause()
        self.keeper.save(errors)
        self.report.clock.leave_out(time.monotonic() - began)
        self._write_status("running")
        self._record_unwritten()

    def _finish_saving(self) -> bool:
        """Wait for the checkpoints: a stop has been honoured then. Return whether the last one is on disk."""
        self.watchdog.at("save", self.state.global_step)
        saved = self.keeper.finish()
        if self.world.is_main:
            self.stop.honoured()
        self._record_unwritten()
        return saved

    def _record_unwritten(self) -> None:
        for text in self.keeper.news():
            self._record("event", warning=text)

    def _record_interval(self) -> None:
        state, clock = self.state, self.report.clock
        sums = self.world.all_reduce_sum(state.interval.sums.clone())
        state.interval.restore(None)
        if self.world.is_main:
            state.total.sums += sums
        values: dict[str, Any] = state.interval.read(sums)
        values |= clock.end_interval(state.global_step, self.config.batch, self.loader.waited)
        values["learning_rate"] = learning_rate(self.trainer.optimiser)
        self.report.tracker.expect(self._left())
        self.report.record("train", state.epoch + 1, state.global_step, **values)

    def _say_how_long(self) -> None:
        """Say what the run will take, as soon as some steps are timed."""
        if self._left() is None:
            self.state.interval.sums.cpu()  # waits for the device, which the host runs ahead of
            self.report.clock.pace(self.state.global_step)
        left = self._left()
        self.report.tracker.expect(left)
        if self.world.is_main and left is not None:
            known = "" if self.validation_seconds else ", without validations"
            log.info(f"the run takes {duration(left)} more{known}")

    def _left(self) -> float | None:
        """Return the seconds that the rest of the run will take; None as long as nobody knows."""
        state, epochs = self.state, self.config.epochs
        steps = epochs * self.loader.steps - state.global_step
        return self.report.clock.left(steps, epochs - state.epoch, self.validation_seconds)

    def _record(self, kind: str, **values: Any) -> None:
        self.report.record(kind, self.state.epoch, self.state.global_step, **values)

    def _write_status(self, condition: status.Condition, code: int | None = None, reason: str = "") -> None:
        if self.lock:
            state = self.state
            now = status.Status(condition, state.global_step, state.epoch, self.config.epochs, code, reason=reason)
            with contextlib.suppress(OSError):  # a full disk must not end a run
                status.write(self.folder.path, now)

    @property
    def _position(self) -> str:
        return f"epoch {self.state.epoch}, step {self.state.step} of {self.loader.steps}"
