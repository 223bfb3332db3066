"""A whole training step as one CUDA graph: for nets so small that launching their kernels takes longer than running
them.

A graph is recorded once for a shape of input and then replays the same kernels on the same memory. So what changes from
step to step has a fixed place on the device: the batch, the learning rate, the meter's sums. What a net draws (dropout)
follows the device's generator, whose seed is handed to each replay, as without a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from senet.data.loader import Batch
from senet.errors import UsageError
from senet.train.meter import Meter
from senet.train.optimiser import set_learning_rate

WARM_UP = 3  # steps before recording, in which libraries choose their algorithms and allocate what they keep


def obstacle(device: torch.device, ranks: int, accumulation_steps: int) -> str | None:
    """Why a step cannot be a graph under these circumstances, as the end of a sentence; None where it can."""
    if device.type != "cuda":
        return f"CUDA graphs need a GPU, and this runs on the {device.type}"
    if ranks > 1:
        return f"it is for one process, and here are {ranks}: DDP's reductions are not recorded"
    if accumulation_steps > 1:
        return f"a step must be one batch, and here are {accumulation_steps} accumulated: raise --largest-batch"
    return None


class GraphedStep:
    """Called like `step` on a batch and a meter, it does the same; returns what `step` returns, a tensor on the device.

    On a device without graphs `step` is called on the fixed places instead of being replayed.
    """

    def __init__(
        self, step: Callable[[Batch, Meter], Tensor], net: nn.Module, optimiser: Optimizer, scaler: GradScaler
    ) -> None:
        self.step, self.net, self.optimiser, self.scaler = step, net, optimiser, scaler
        self.device = next(net.parameters()).device
        self.rate = torch.zeros((), device=self.device)
        self.batch: Batch | None = None
        self.meter: Meter | None = None
        self.momenta: object = (
            None  # the optimiser's state that was recorded: loading a checkpoint puts another in its place
        )
        self.run: Callable[[], Tensor] = self._plain
        self.records = 0

    def __call__(self, batch: Batch, meter: Meter) -> Tensor:
        """Raises UsageError where the step cannot be recorded."""
        if not self._fits(batch, meter):
            self._prepare(batch, meter)
        assert self.batch is not None
        for place, given in zip(self.batch, batch, strict=True):
            if isinstance(place, Tensor) and isinstance(given, Tensor):
                place.copy_(given, non_blocking=True)
        self.rate.fill_(self.optimiser.param_groups[0]["lr"])
        return self.run().clone()  # the next replay overwrites its own

    def _fits(self, batch: Batch, meter: Meter) -> bool:
        if self.batch is None or meter is not self.meter or self.optimiser.state is not self.momenta:
            return False
        return all(_kind(place) == _kind(given) for place, given in zip(self.batch, batch, strict=True))

    def _prepare(self, batch: Batch, meter: Meter) -> None:
        self.run = self._plain  # lets go of an earlier graph's memory first
        self.batch = Batch(batch.images.clone(), batch.labels.clone(), _copy(batch.others), _copy(batch.weights))
        self.meter, self.momenta = meter, self.optimiser.state
        self.records += 1
        if self.device.type == "cuda":
            self.run = self._record()

    def _plain(self) -> Tensor:
        assert self.batch is not None
        assert self.meter is not None
        with self._rate_on_device():
            return self.step(self.batch, self.meter)

    def _record(self) -> Callable[[], Tensor]:
        """Record the step, on a stream of its own as recording demands; the training's state is afterwards
        what it was.
        """
        side, here = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)
        graph = torch.cuda.CUDAGraph()
        side.wait_stream(here)
        with self._undone(), torch.random.fork_rng([self.device]):
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self._plain()
            try:
                # thread_local: the loader's thread may allocate and copy meanwhile, on another stream.
                with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                    result = self._plain()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:200]
                raise UsageError(
                    f"--graph: a step of this net cannot be recorded as a CUDA graph ({reason}); leave --graph out"
                ) from error
            here.wait_stream(side)

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    @contextmanager
    def _rate_on_device(self) -> Iterator[None]:
        """While the step runs, the optimiser reads the learning rate from the device; else it is the number that others
        read.
        """
        rate = self.optimiser.param_groups[0]["lr"]
        set_learning_rate(self.optimiser, self.rate)
        try:
            yield
        finally:
            set_learning_rate(self.optimiser, rate)

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Undo what steps do to weights, statistics, momenta, meter and scale. In place: the graph keeps to these
        places.
        """
        assert self.meter is not None
        momenta = [
            value for state in self.optimiser.state.values() for value in state.values() if isinstance(value, Tensor)
        ]
        places = [*self.net.parameters(), *self.net.buffers(), *momenta, self.meter.sums]
        kept = [place.detach().clone() for place in places]
        scale = self.scaler.state_dict()
        yield
        with torch.no_grad():
            for place, old in zip(places, kept, strict=True):
                place.copy_(old)
        self.scaler.load_state_dict(scale)


def _copy(part: Tensor | None) -> Tensor | None:
    return None if part is None else part.clone()


def _kind(part: object) -> object:
    return (part.shape, part.dtype) if isinstance(part, Tensor) else None
