"""All that a run has come to: what training changes, the position, the sums, and what was met on the way."""

from __future__ import annotations

from typing import Any

from senet.config import to_dict
from senet.errors import UsageError
from senet.run import provenance
from senet.run.checkpoint import Payload, Progress
from senet.train.meter import Meter
from senet.train.optimiser import in_parameters_layout
from senet.train.trainer import Trainer


class State:
    """One rank's part. `pack` and `restore` are called by all ranks together."""

    def __init__(self, trainer: Trainer, steps: int) -> None:
        """`steps` of an epoch."""
        self.trainer, self.steps = trainer, steps
        self.interval = Meter(trainer.world.device)  # since the last record
        self.total = Meter(trainer.world.device)  # since the epoch began
        self.epoch = 0  # whole epochs that are done ...
        self.step = 0  # ... and steps of the current one
        self.bad: dict[str, str] = {}  # undecodable images that the log names: path -> reason

    @property
    def global_step(self) -> int:
        """Steps since the run began."""
        return self.epoch * self.steps + self.step

    def pack(self, **facts: Any) -> Payload:
        """Return the payload of a checkpoint, which refers to living tensors: take a snapshot before going on. It is
        complete on the first rank, which writes it.

        `facts` are further fields of the payload, about the data.
        """
        trainer, world = self.trainer, self.trainer.world
        per_rank = world.gather(trainer.statistics.pack())
        images = self.global_step * trainer.config.batch
        return Payload(
            Progress(self.global_step, self.epoch, self.step, images),
            net=trainer.statistics.averaged(trainer.net.state_dict(), per_rank),
            optimiser=trainer.optimiser.state_dict(),
            statistics=per_rank,
            scaler=trainer.scaler.state_dict(),
            hooks=trainer.hooks.state_dict(),
            meters=[world.all_reduce_sum(meter.sums.clone()) for meter in (self.interval, self.total)],
            skipped=[list(stretch) for stretch in trainer.skipped],
            losses=list(trainer.losses),
            bad=dict(self.bad),
            config=to_dict(trainer.config),
            execution=trainer.execution.to_dict(),
            versions=provenance.versions(),
            **facts,
        )

    def restore(self, payload: Payload) -> None:
        """Go back to a payload; on another number of ranks to mean statistics. Raises UsageError: another net."""
        trainer, world, progress = self.trainer, self.trainer.world, payload.progress
        try:
            trainer.net.load_state_dict(payload.net)
            trainer.optimiser.load_state_dict(payload.optimiser)
            in_parameters_layout(trainer.optimiser)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"the checkpoint holds another net: {reason}; use another --out") from None
        if payload.statistics is not None and len(payload.statistics) == world.size:
            trainer.statistics.unpack(payload.statistics[world.rank].to(world.device))
        trainer.scaler.load_state_dict(payload.scaler)
        trainer.hooks.load_state_dict(payload.hooks)
        trainer.skipped, trainer.losses = [(first, last) for first, last in payload.skipped], list(payload.losses)
        self.epoch, self.step = progress.epoch, progress.step
        self.bad = dict(payload.bad)
        for meter, sums in zip((self.interval, self.total), payload.meters, strict=True):
            meter.restore(sums if world.is_main else None)  # sums over all ranks: one of them carries on with them
