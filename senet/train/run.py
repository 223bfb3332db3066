"""A training run from its first minute to its last: the one module that knows all the others."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from senet import provenance, track, world
from senet.config import Config, divide_batch, from_dict, to_dict
from senet.data import Source, train_loader, val_loader
from senet.data.loader import Batch
from senet.errors import RunError, UsageError
from senet.evaluate import evaluate
from senet.models import build, summary
from senet.train import checkpoint, preflight, statistics
from senet.train.health import Watchdog
from senet.train.loop import Trainer
from senet.train.meter import Meter
from senet.train.optimiser import sgd
from senet.train.saver import Saver, snapshot
from senet.train.stop import RESUMABLE, Stop

GO_ON, SAVE, STOP = 0, 1, 2  # what a rank can ask for between two steps; the greatest wins
REWINDS = 3  # before giving up
DUMPED = 20  # steps whose images are named


@dataclass(frozen=True)
class Flags:
    """The circumstances of a run: nothing in here changes its result."""

    out: Path
    name: str
    source: Source
    device: str = "auto"
    largest_batch: int | None = None
    save_minutes: float = 15.0
    keep: int = 2
    keep_every: int = 0
    max_skips: int = 10
    hang_minutes: float = 5.0
    log_every: int = 50
    track: str = "auto"
    deterministic: bool = False


def train(config: Config, flags: Flags, stop: Stop) -> int:
    """Train, or go on training, in `flags.out`. Returns the exit code: 0 done, 75 stopped early. Raises UsageError, RunError."""
    here = world.start(flags.device)
    try:
        return Run(config, flags, here, stop).train()
    finally:
        here.close()


class Run:
    """One process's part of a run."""

    def __init__(self, config: Config, flags: Flags, here: world.World, stop: Stop) -> None:
        self.config, self.flags, self.world, self.stop = config, flags, here, stop
        self.folder = flags.out / "checkpoints"
        self.epoch, self.step = 0, 0  # position: whole epochs, and steps of the current one, that are done
        self.best: dict[str, float] = {}
        self.rewinds = 0
        self.bad: dict[str, str] = {}  # undecodable images that the log names: path -> reason
        preflight.check_folder(config, flags.out)
        self.watchdog = Watchdog(flags.out, here.rank, 60 * flags.hang_minutes)
        if here.device.type == "cuda":
            torch.backends.cudnn.benchmark = not flags.deterministic
            torch.backends.cudnn.deterministic = flags.deterministic

        at_once, accumulate = divide_batch(config.batch, here.size, flags.largest_batch)
        source, data = flags.source, config.data
        self.val = val_loader(data, source, here.rank, here.size, here.device)
        self.loader = train_loader(data, source, config.batch, at_once, config.seed, here.rank, here.size, here.device)

        preflight.check_alike(here, (self.loader.fingerprint, self.val.fingerprint))

        torch.manual_seed(config.seed)
        self.net = build(config.net, data.classes).to(here.device).to(memory_format=torch.channels_last)
        self.trainer = Trainer(config, here, here.wrap(self.net), sgd(self.net, config.optim), self.watchdog.at)
        self.interval, self.total = Meter(here.device), Meter(here.device)
        self.at_once, self.accumulate = at_once, accumulate

    # ------------------------------------------------------------------------------------------------------------ the run

    def train(self) -> int:
        started = time.monotonic()
        self._rehearse(self.at_once)
        resumed = self._resume()
        if resumed and self.epoch >= self.config.epochs:
            if self.world.first:
                print(f"{self.flags.out}: {self._summary()}", file=sys.stderr)
            return 0
        self.tracker = self._tracker(resumed)
        self.saver = Saver(self.folder, self.flags.keep) if self.world.first else None
        self.clock = Clock(self.flags.save_minutes, started)
        finished = False
        try:
            self._announce(resumed)
            if not resumed:
                self._save({})
            while self.epoch < self.config.epochs:
                if not (self._train_epoch() and self._end_epoch()):
                    self._written()
                    self._say(
                        f"stopped after epoch {self.epoch}, step {self.step} of {self.loader.steps}; the same command goes on from here"
                    )
                    return RESUMABLE
            finished = True
            self._written()
            self._say(self._summary())
            return 0
        finally:
            self.watchdog.at("save", self._global_step)
            if self.saver:
                self.saver.close()
            self.tracker.close(finished)
            self.loader.close()
            self.val.close()
            self.watchdog.close()

    def _train_epoch(self) -> bool:
        """Train to the end of the current epoch; False when asked to stop before it."""
        while self.step < self.loader.steps:
            if not self._train_on():
                return False
        return True

    def _train_on(self) -> bool:
        """Train to the end of the epoch, or until the run goes back to an earlier position; False when asked to stop."""
        answer = self.world.ask(GO_ON)
        for step in self.trainer.steps(self.loader, self.epoch, self.step, self.interval):
            self.step = step
            if step % self.flags.log_every == 0 or step == self.loader.steps:
                self._log_interval()
                self._tell_bad()
                if self._rewound():
                    answer()
                    return True
            wish, answer = answer(), self.world.ask(STOP if self.stop.wanted else SAVE if self.clock.due() else GO_ON)
            if wish != GO_ON and step < self.loader.steps:
                self._save({})
                if wish == STOP:
                    answer()
                    return False
        answer()
        return True

    def _end_epoch(self) -> bool:
        """Validate, keep the epoch's checkpoint, and move on to the next; False when asked to stop before the end of it."""
        own = statistics.pack(self.net)
        statistics.average(self.net, self.world)
        began = time.monotonic()
        errors = evaluate(self.net, self.val, self.config, self.world, stop=self._validating)
        if self.world.ask(STOP if self.stop.wanted else GO_ON)() == STOP:
            statistics.unpack(self.net, own)
            self._save({})
            return False
        train = self.total.read(self.world.sum(self.total.sums.clone()))
        self.total.sums.zero_()
        self.epoch, self.step = self.epoch + 1, 0
        if errors["top1_error"] < self.best.get("top1_error", float("inf")):
            self.best = {"epoch": self.epoch, **errors}
        record = {f"train_{name}": value for name, value in train.items()} | errors
        self._tell_bad()
        self._log("val", record, validation_seconds=time.monotonic() - began, best_top1_error=self.best.get("top1_error"))
        self._save(errors)
        return True

    def _validating(self) -> bool:
        """Asked after each batch of a validation: is it to end early?"""
        self.watchdog.at("validate", self._global_step)
        return self.stop.wanted

    def _rewound(self) -> bool:
        """Tell of steps left out for gradients that are not finite; after too many in a row go back to before them and leave them out.

        Every rank sees the same, for gradients are those of the global batch.
        """
        bad = self.trainer.unfinite()
        if bad:
            self._dump(bad)
            self._log("event", {}, skipped=len(bad), first_skipped=bad[0] + 1, reason="gradients not finite", row=self.trainer.row)
            self._say(f"left out {len(bad)} steps from step {bad[0] + 1}: gradients not finite; images in {self.flags.out}/nonfinite-*")
        if self.trainer.row < self.flags.max_skips:
            return False
        stretch = (self._global_step - self.trainer.row, self._global_step - 1)
        self.rewinds += 1
        if self.rewinds > REWINDS:
            raise RunError(
                f"gradients not finite in {self.trainer.row} steps in a row, again after {REWINDS} rewinds; "
                f"lower optim.lr, use bf16 or fp32, or look at the images in {self.flags.out}/nonfinite-*.json"
            )
        if self.saver:
            self.saver.finish()
        skipped = [*self.trainer.skipped, stretch]
        self._resume(before=stretch[0] + 1)
        self.trainer.skipped, self.trainer.row = skipped, 0
        self.interval.sums.zero_()
        self._say(f"went back to epoch {self.epoch}, step {self.step}; leaves out steps {stretch[0] + 1} to {stretch[1] + 1}")
        return True

    def _dump(self, bad: list[int]) -> None:
        """The images of this rank in the first steps that were left out."""
        images = {step + 1: self.loader.names(step) for step in bad[:DUMPED]}
        self.flags.out.mkdir(parents=True, exist_ok=True)
        file = self.flags.out / f"nonfinite-{bad[0] + 1:08d}-rank{self.world.rank}.json"
        checkpoint.write_text(file, json.dumps({"epoch": self.epoch, "steps": bad, "images": images}, indent=1))

    def _tell_bad(self) -> None:
        """Name, once each, the images that any rank could not decode. Raises RunError, on all ranks, when they are too many."""
        for found in self.world.hear({**self.loader.bad, **self.val.bad}):
            for path, reason in found.items():
                if path not in self.bad:
                    self.bad[path] = reason
                    self._log("event", {}, undecodable=path, reason=reason)
        self.loader.bad.check(self.bad)

    def _rehearse(self, images: int) -> None:
        """Do once, on blank images, what the run will do for hours, so that what would fail then fails now; then undo it.

        It also settles the order in which DDP reduces gradients, which its first backward finds out: without it the first step after
        a resume would add them up in another order than an undisturbed run does.
        """
        before = {name: value.clone() for name, value in self.net.state_dict().items()}
        crop = self.config.data.crop
        blank = torch.zeros(images, 3, crop, crop, device=self.world.device).contiguous(memory_format=torch.channels_last)
        labels = torch.arange(images, device=self.world.device) % self.config.data.classes
        self.trainer.model.train()
        self.trainer.backward(Batch(blank, labels), Meter(self.world.device))
        self.trainer.optimiser.zero_grad(set_to_none=True)
        self.net.load_state_dict(before)
        evaluate(self.net, self.val, self.config, self.world, stop=lambda: True)

    # --------------------------------------------------------------------------------------------------------- checkpoints

    def _save(self, errors: dict[str, float]) -> None:
        """Write a checkpoint of the current position; every rank takes part, the first one writes."""
        self.watchdog.at("save", self._global_step)
        per_rank = self.world.gather(statistics.pack(self.net))
        sums = [self.world.sum(meter.sums.clone()) for meter in (self.interval, self.total)]
        if self.saver:
            names = [checkpoint.BEST] if errors and self.best.get("epoch") == self.epoch else []
            if errors and self.flags.keep_every and self.epoch % self.flags.keep_every == 0:
                names.append(f"epoch-{self.epoch:04d}.pt")
            facts = {"epoch": self.epoch, "epoch_step": self.step, **errors}
            self.saver.save(self._global_step, self._payload(per_rank, sums), facts, names)
        self.clock.saved()
        self._news()

    def _written(self) -> None:
        """Wait for the checkpoints; a stop has been honoured."""
        if self.saver:
            self.saver.finish()
            self.stop.honoured()
        self._news()

    def _news(self) -> None:
        for text in self.saver.news() if self.saver else ():
            self._say(f"warning: {text}")
            self._log("event", {}, warning=text)

    def _payload(self, per_rank: Tensor, sums: list[Tensor]) -> dict[str, Any]:
        # The net in the file is one to evaluate: statistics averaged. Each rank's own are kept beside it, for an exact resume.
        own = statistics.pack(self.net)
        statistics.unpack(self.net, per_rank.mean(0))
        net = snapshot(self.net.state_dict())
        statistics.unpack(self.net, own)
        return {
            "net": net,
            "statistics": per_rank,
            "optimiser": self.trainer.optimiser.state_dict(),
            "scaler": self.trainer.scaler.state_dict(),
            "progress": {"epoch": self.epoch, "step": self.step, "images": self._global_step * self.config.batch, "best": dict(self.best)},
            "bad": dict(self.bad),
            "skipped": [list(stretch) for stretch in self.trainer.skipped],
            "images": self.loader.fingerprint,
            "meters": sums,
            "config": to_dict(self.config),
            "pixels": self.val.description,
            "versions": provenance.versions(),
        }

    def _resume(self, before: int | None = None) -> bool:
        """Load the newest valid checkpoint of the run folder, of those `before` a step; False where there is none.

        All ranks read the one that the first rank found: a shared folder may show them different newest files.
        """
        found = checkpoint.newest(self.folder, print, before) if self.world.first else None
        path = self.world.tell(found and found[0])
        if path is None:
            return False
        payload = found[1] if found else checkpoint.read(path)
        preflight.check_same(from_dict(payload["config"]), self.config, path)
        for name, was in payload["pixels"].items() if self.world.first else ():
            if (now := self.val.description.get(name)) != was:
                print(f"warning: other pixels than before: {name} was {was!r}, is now {now!r}; results will differ", file=sys.stderr)
        if payload["images"] != self.loader.fingerprint:
            raise UsageError(f"--data {self.flags.source.root}: other images than those {path} was trained on; give them, or another --out")
        self.net.load_state_dict(payload["net"])
        per_rank = payload["statistics"]
        if len(per_rank) == self.world.size:
            statistics.unpack(self.net, per_rank[self.world.rank].to(self.world.device))
        self.trainer.optimiser.load_state_dict(payload["optimiser"])
        self.trainer.scaler.load_state_dict(payload["scaler"])
        progress, self.bad = payload["progress"], payload["bad"]
        self.trainer.skipped = [(first, last) for first, last in payload["skipped"]]
        self.epoch, self.step, self.best = progress["epoch"], progress["step"], progress["best"]
        if self.world.first:  # sums over all ranks: one of them carries on with them
            for meter, sums in zip((self.interval, self.total), payload["meters"], strict=True):
                meter.sums.copy_(sums)
        return True

    # ------------------------------------------------------------------------------------------------------------- telling

    def _tracker(self, resumed: bool) -> track.Tracker:
        if not self.world.first:
            return track.Silent()
        out = self.flags.out
        if not resumed:
            out.mkdir(parents=True, exist_ok=True)
            commit, diff = provenance.code()
            facts = {"flags": asdict(self.flags), "versions": provenance.versions(), "commit": commit, **provenance.machine()}
            checkpoint.write_text(out / "config.yaml", yaml.safe_dump(to_dict(self.config), sort_keys=False))
            checkpoint.write_text(out / "run.json", json.dumps(facts, indent=1, default=str))
            if diff:
                checkpoint.write_text(out / "uncommitted.diff", diff)
        return track.build(
            out,
            choice=self.flags.track,
            name=self.flags.name,
            config=to_dict(self.config),
            resume_step=self._global_step if resumed else None,
        )

    def _announce(self, resumed: bool) -> None:
        config, here = self.config, self.world
        size = summary(config.net, config.data.classes, config.data.crop)
        images = f"{self.loader.images} training and {self.val.images} validation images"
        ranks = f"{here.size} x {here.device.type}" + (f" {torch.cuda.get_device_name(here.device)}" if here.device.type == "cuda" else "")
        accumulate = f" x {self.accumulate} accumulated" if self.accumulate > 1 else ""
        self._say(f"{self.flags.name}: {size.parameters / 1e6:.2f} M parameters, {size.gmacs:.3g} GMACs; {images}")
        self._say(
            f"batch {config.batch} = {ranks} x {self.at_once}{accumulate}; {config.precision}; pixels: {self.val.description['backend']}"
        )
        if resumed:
            self._say(f"resumed {self.flags.out} after epoch {self.epoch}, step {self.step} of {self.loader.steps}")

    def _log_interval(self) -> None:
        sums = self.world.sum(self.interval.sums.clone())
        self.interval.sums.zero_()
        if self.world.first:
            self.total.sums += sums
        values = self.interval.read(sums)
        speed, wait = self.clock.lap(int(values["images"]), self.loader.waited)
        rate = self.trainer.optimiser.param_groups[0]["lr"]
        self._log("train", values, epoch=self.epoch + 1, learning_rate=rate, images_per_second=speed, data_wait=wait)
        self.tracker.progress(self.epoch + 1, self.config.epochs, self.step, self.loader.steps, speed, wait)

    def _log(self, kind: str, values: dict[str, float], **more: Any) -> None:
        record = {"kind": kind, "epoch": self.epoch, "step": self._global_step, "seconds": self.clock.seconds()}
        self.tracker.log(record | values | more)

    def _say(self, text: str) -> None:
        self.tracker.say(text)

    def _summary(self) -> str:
        if not self.best:
            return "done: no epoch was trained"
        best = self.best
        return (
            f"done: {self.config.epochs} epochs; best top-1 error {best['top1_error']:.2f} %, top-5 {best['top5_error']:.2f} % "
            f"on {best['images']} images after epoch {best['epoch']}: {self.folder / checkpoint.BEST}"
        )

    @property
    def _global_step(self) -> int:
        return self.epoch * self.loader.steps + self.step


class Clock:
    """Times of a run: since it began, since the last save, and of one logging interval."""

    def __init__(self, save_minutes: float, started: float) -> None:
        self.save_seconds, self.started = 60 * save_minutes, started
        self.last_save = self.last_lap = time.monotonic()
        self.waited = 0.0

    def seconds(self) -> float:
        return round(time.monotonic() - self.started, 3)

    def due(self) -> bool:
        return time.monotonic() - self.last_save > self.save_seconds

    def saved(self) -> None:
        self.last_save = time.monotonic()

    def lap(self, images: int, waited: float) -> tuple[float, float]:
        """Images/s and the share of time spent waiting for data since the last lap; `waited` is the loader's running total."""
        now = time.monotonic()
        passed, self.last_lap = max(now - self.last_lap, 1e-9), now
        share, self.waited = (waited - self.waited) / passed, waited
        return round(images / passed, 2), round(min(share, 1.0), 4)
