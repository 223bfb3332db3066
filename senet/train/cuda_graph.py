"""A whole training step as one CUDA graph: for nets so small that launching their kernels takes longer than running
them.

A graph is recorded once for a shape of input and then replays the same kernels on the same memory. So what changes from
step to step has a fixed address on the device: the batch, the learning rate, the meter's sums. What a net draws
(dropout) follows the device's generator, whose seed is handed to each replay, as without a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from senet.config import SGD, Adam, OptimSetting
from senet.data.loader import Batch
from senet.errors import UsageError
from senet.train.meter import Meter
from senet.train.optimiser import learning_rate, set_learning_rate

WARM_UP = 3  # steps before recording, in which libraries choose their algorithms and allocate what they keep


def obstacle(device: torch.device, ranks: int, accumulation_steps: int, optim: OptimSetting) -> str | None:
    """Return why a step cannot be recorded under these circumstances, as the end of a sentence; None if it can."""
    if device.type != "cuda":
        return f"CUDA graphs need a GPU, and this runs on the {device.type}"
    if ranks > 1:
        return f"it is for one process, and there are {ranks}: DDP's reductions are not recorded"
    if accumulation_steps > 1:
        return f"a step must be one batch, and {accumulation_steps} are accumulated: raise --largest-batch"
    if not isinstance(optim, SGD | Adam):
        return f"{optim.name} waits for the device in each step; use sgd, adam or adamw"
    return None


class GraphedStep:
    """Does what `step` does, on one batch, as a replayed graph. On a CPU it calls `step` on the fixed tensors instead.

    Another shape of batch, meter, optimiser state (after loading a checkpoint) or training mode of any module is
    recorded anew.
    """

    def __init__(
        self,
        step: Callable[[Iterable[Batch], Meter], Tensor],
        net: nn.Module,
        optimiser: Optimizer,
        scaler: GradScaler,
        changed: Callable[[Meter], list[Tensor]],
    ) -> None:
        """`changed` returns every tensor that a step changes, so that the steps of a recording can be undone."""
        self.step, self.optimiser, self.scaler, self.changed = step, optimiser, scaler, changed
        self.modules = list(net.modules())
        self.device = next(net.parameters()).device
        self.rate = torch.zeros((), device=self.device)
        self.batch: Batch | None = None  # the fixed tensors
        self.meter: Meter | None = None
        self.state: object = None  # of the optimiser when the step was recorded
        self.modes: list[bool] = []
        self.run: Callable[[], Tensor] = self._plain
        self.records = 0

    def __call__(self, micro_batches: Iterable[Batch], meter: Meter, accumulation_steps: int = 1) -> Tensor:
        """Return what `step` returns. Raises UsageError if the step cannot be recorded."""
        assert accumulation_steps == 1, "see `obstacle`"
        for batch in micro_batches:
            if not self._fits(batch, meter):
                self._prepare(batch, meter)
            assert self.batch is not None
            for fixed, given in zip(self.batch, batch, strict=True):
                if isinstance(fixed, Tensor) and isinstance(given, Tensor):
                    fixed.copy_(given, non_blocking=True)
            self.rate.fill_(learning_rate(self.optimiser))
            result = self.run().clone()  # the next replay overwrites its own
        return result

    def _fits(self, batch: Batch, meter: Meter) -> bool:
        if self.batch is None or meter is not self.meter or self.optimiser.state is not self.state:
            return False
        return self.modes == self._modes() and [*map(_kind, self.batch)] == [*map(_kind, batch)]

    def _modes(self) -> list[bool]:
        return [module.training for module in self.modules]

    def _prepare(self, batch: Batch, meter: Meter) -> None:
        self.run = self._plain  # lets go of an earlier graph's memory first
        self.batch = Batch._make(part.clone() if isinstance(part, Tensor) else None for part in batch)
        self.meter, self.state, self.modes = meter, self.optimiser.state, self._modes()
        self.records += 1
        if self.device.type == "cuda":
            self.run = self._record()

    def _plain(self) -> Tensor:
        assert self.batch is not None
        assert self.meter is not None
        with self._rate_on_device():
            return self.step([self.batch], self.meter)

    def _record(self) -> Callable[[], Tensor]:
        """Record the step on a stream of its own, as CUDA demands; afterwards the training's state is what it was."""
        side, current = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)
        graph = torch.cuda.CUDAGraph()
        side.wait_stream(current)
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
                failed = f"a step of this net cannot be recorded as a CUDA graph ({' '.join(str(error).split())[:200]})"
                raise UsageError(f"--graph: {failed}; leave --graph out") from error
            current.wait_stream(side)

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    @contextmanager
    def _rate_on_device(self) -> Iterator[None]:
        """While the step runs, let the optimiser read its learning rate from the device, otherwise a number."""
        rate = learning_rate(self.optimiser)
        set_learning_rate(self.optimiser, self.rate)
        try:
            yield
        finally:
            set_learning_rate(self.optimiser, rate)

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Undo, in place, all that the steps inside change: the graph keeps to the same addresses."""
        assert self.meter is not None
        tensors, scale = self.changed(self.meter), self.scaler.state_dict()
        before = [tensor.detach().clone() for tensor in tensors]
        yield
        with torch.no_grad():
            torch._foreach_copy_(tensors, before)
        self.scaler.load_state_dict(scale)


def _kind(part: object) -> object:
    return (part.shape, part.dtype) if isinstance(part, Tensor) else None
