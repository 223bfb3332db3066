"""All that a run has come to, as a checkpoint holds it: weights, statistics, momentum, position, sums, what was met on
the way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from senet.config import Config, to_dict
from senet.distributed import World
from senet.errors import UsageError
from senet.run import provenance
from senet.train.meter import Meter
from senet.train.optimiser import in_parameters_layout
from senet.train.trainer import Trainer


@dataclass
class State:
    """One rank's part. `pack` and `restore` are called by all ranks together."""

    net: nn.Module
    trainer: Trainer
    interval: Meter  # since the last record
    total: Meter  # since the epoch began
    epoch: int = 0  # whole epochs that are done ...
    step: int = 0  # ... and steps of the current one
    best: dict[str, float] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)  # undecodable images that the log names: path -> reason

    def pack(self, config: Config, world: World, images: int, facts: dict[str, Any]) -> dict[str, Any]:
        """The payload of a checkpoint, of references: take a snapshot. `images` seen; `facts` about the data go in as
        they are.
        """
        per_rank = world.all_gather(self.trainer.statistics.pack())
        sums = [world.all_reduce_sum(meter.sums.clone()) for meter in (self.interval, self.total)]
        return {
            "net": self._averaged(per_rank),
            "statistics": per_rank,
            "optimiser": self.trainer.optimiser.state_dict(),
            "scaler": self.trainer.scaler.state_dict(),
            "progress": {"epoch": self.epoch, "step": self.step, "images": images, "best": dict(self.best)},
            "bad": dict(self.bad),
            "skipped": [list(stretch) for stretch in self.trainer.skipped],
            "meters": sums,
            "config": to_dict(config),
            "versions": provenance.versions(),
            **facts,
        }

    def _averaged(self, per_rank: Tensor) -> dict[str, Tensor]:
        """The net to evaluate: statistics averaged. Each rank's own are kept beside it, for an exact resume. Copies
        nothing.
        """
        net: dict[str, Tensor] = dict(self.net.state_dict())
        names = {value.data_ptr(): name for name, value in net.items()}
        buffers = self.trainer.statistics.buffers
        for buffer, mean in zip(buffers, per_rank.mean(0).split([b.numel() for b in buffers]), strict=True):
            net[names[buffer.data_ptr()]] = mean
        return net

    def restore(self, payload: dict[str, Any], world: World) -> None:
        """The inverse of `pack`; on another number of ranks all start from the averaged statistics. Raises UsageError
        for another net's.
        """
        try:
            self.net.load_state_dict(payload["net"])
            self.trainer.optimiser.load_state_dict(payload["optimiser"])
            in_parameters_layout(self.trainer.optimiser)
        except (RuntimeError, ValueError) as error:
            raise UsageError(
                f"the checkpoint holds another net: {' '.join(str(error).split())[:200]}; use another --out"
            ) from None
        per_rank = payload["statistics"]
        if len(per_rank) == world.size:
            self.trainer.statistics.unpack(per_rank[world.rank].to(world.device))
        self.trainer.scaler.load_state_dict(payload["scaler"])
        self.trainer.skipped = [(first, last) for first, last in payload["skipped"]]
        progress, self.bad = payload["progress"], payload["bad"]
        self.epoch, self.step, self.best = progress["epoch"], progress["step"], progress["best"]
        for meter, sums in zip((self.interval, self.total), payload["meters"], strict=True):
            meter.sums.zero_()
            if world.is_main:  # sums over all ranks: one of them carries on with them
                meter.sums.copy_(sums)
