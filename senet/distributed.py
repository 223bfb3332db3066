"""The processes of a run: rank, size, device and the few collectives needed. The only importer of torch.distributed."""

from __future__ import annotations

import gc
import inspect
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from senet.errors import RunError, UsageError
from senet.system.processes import keep_freed_memory

TIMEOUT = timedelta(minutes=10)  # of a collective: gloo's own 30 minutes hide a dead rank for too long


@dataclass(frozen=True)
class World:
    """One process among `size`. Collectives are called by all ranks at the same point, or by none."""

    rank: int
    size: int
    device: torch.device
    host_group: Any = None  # gloo, for what must not touch the device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its sum over ranks, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor | None:
        """Return [size, *shape] of a tensor that has one shape on all ranks, on rank 0; None on the others."""
        if self.size == 1:
            return tensor[None].clone()
        out = tensor.new_empty((self.size, *tensor.shape)) if self.is_main else None
        dist.gather(tensor.contiguous(), None if out is None else list(out.unbind()))
        return out

    def broadcast_object(self, value: Any) -> Any:
        """Return rank 0's `value`, a plain object, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.host_group)
        return box[0]

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return every rank's `value`, a plain object, on every rank."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value, group=self.host_group)
        return box

    def all_gather_named(self, value: Any) -> dict[str, Any]:
        """Return every rank's `value`, a plain object, on every rank, by names of ranks: `rank 3 on HOST`."""
        return dict(self.all_gather_object((f"rank {self.rank} on {socket.gethostname()}", value)))

    def all_reduce_max(self, *numbers: int) -> Callable[[], list[int]]:
        """Begin to find the greatest of all ranks' numbers, each for itself, and return what waits for them."""
        if self.size == 1:
            return lambda: list(numbers)
        box = torch.tensor(numbers)
        work = dist.all_reduce(box, op=dist.ReduceOp.MAX, group=self.host_group, async_op=True)

        def greatest() -> list[int]:
            work.wait()
            return box.tolist()

        return greatest

    def distribute(self, net: nn.Module, compress: str = "none") -> nn.Module:
        """Return `net` wrapped in DDP; on one rank, the net itself. BN statistics stay each rank's own until
        `senet.train.batchnorm` averages them.

        With `compress` bf16, gradients are rounded to bfloat16 while they travel between ranks, in half the bytes.
        """
        if self.size == 1:
            return net
        # torch 2.13 renames broadcast_buffers and deprecates the old name.
        renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
        settings: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        devices = [self.device.index] if self.device.type == "cuda" else None
        model = DistributedDataParallel(net, device_ids=devices, gradient_as_bucket_view=True, **settings)
        if compress == "bf16":
            model.register_comm_hook(None, bf16_compress_hook)
        return model

    @staticmethod
    def accumulate(model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Return the context of one micro-batch: gradients are reduced over ranks in the last one only."""
        return nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()

    def __enter__(self) -> World:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Close the world, unless something failed: NCCL closes only if all ranks do, and the others do not know."""
        if error is None:
            self.close()

    def close(self) -> None:
        """Leave the group of processes. All ranks do."""
        if self.size > 1:
            gc.collect()  # a group that something still holds when Python ends sometimes aborts it
            dist.destroy_process_group()


def start(device: str = "auto", deterministic: bool = False) -> World:
    """Join the world that torchrun's environment describes, or be alone in it. `device`: auto, cpu or cuda.

    cuDNN tries its algorithms for each shape and takes the fastest or, if `deterministic`, one that gives equal bits.
    """
    rank, local = (int(os.environ.get(name, 0)) for name in ("RANK", "LOCAL_RANK"))
    size = int(os.environ.get("WORLD_SIZE", 1))
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no GPU is visible; see nvidia-smi, CUDA_VISIBLE_DEVICES, or use --device cpu")
    if device == "cpu" or not torch.cuda.is_available():
        own = torch.device("cpu")
        keep_freed_memory()
    elif local >= torch.cuda.device_count():
        gpus = torch.cuda.device_count()
        raise UsageError(f"{local + 1} processes on a node with {gpus} GPUs: set --nproc-per-node to at most that")
    else:
        own = torch.device("cuda", local)
        torch.cuda.set_device(own)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = not deterministic, deterministic
    if size == 1:
        return World(rank, size, own)
    if "GLOO_SOCKET_IFNAME" not in os.environ and (network := gloo_interface(os.environ.get("NCCL_SOCKET_IFNAME", ""))):
        os.environ["GLOO_SOCKET_IFNAME"] = network
    settings: dict[str, Any] = {"store": _store(rank, size), "rank": rank, "world_size": size, "timeout": TIMEOUT}
    backend, device_id = ("nccl", own) if own.type == "cuda" else ("gloo", None)
    dist.init_process_group(backend, device_id=device_id, **settings)
    # A group of its own: a question asked while DDP reduces gradients must not be taken for one of its buckets.
    return World(rank, size, own, dist.new_group(backend="gloo", timeout=TIMEOUT))


def gloo_interface(nccl: str, interfaces: Sequence[str] | None = None) -> str:
    """Return the interface of this host that NCCL_SOCKET_IFNAME=`nccl` names first, for gloo to use the same network;
    empty if it names none of `interfaces` (by default all there are).

    NCCL takes beginnings of names ("eth,ib"), whole names ("=eth0"), and names to leave out ("^docker"); gloo takes a
    whole name, and by default the network of the host's name, which is often the slow one.
    """
    there = [name for _, name in socket.if_nameindex()] if interfaces is None else interfaces
    if nccl.startswith("^"):
        return ""
    exact, wanted = nccl.startswith("="), nccl.removeprefix("=").split(",")
    fits = (name for part in wanted if part for name in there if name == part or (not exact and name.startswith(part)))
    return next(fits, "")


def _store(rank: int, size: int) -> Any:
    """Return the store by which processes find each other.

    torchrun keeps its store over restarts, with the addresses of the dead in it, and nothing in the environment tells
    restarts apart on all nodes. So every start is under a name of its own, which rank 0 chooses.
    """
    store, _, _ = next(rendezvous("env://", rank, size, timeout=TIMEOUT))
    return dist.PrefixStore(_agree(store, rank, size), store)  # type: ignore[attr-defined]


def _agree(store: Any, rank: int, size: int) -> str:
    """Return a name for this start, the same on all its ranks: rank 0 answers each rank's question, and waits until all
    have its answer.

    Questions of the dead are answered too, but they do not confirm.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"question/{rank}", own)
        name: str = store.get(f"answer/{own}").decode()
        store.set(f"confirmed/{name}/{rank}", "")
        return name
    waiting = set(range(1, size))
    answered: dict[int, str] = {}
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    while waiting:
        for other in sorted(waiting):
            if store.check([f"question/{other}"]):
                question = store.get(f"question/{other}").decode()
                if answered.get(other) != question:
                    store.set(f"answer/{question}", own)
                    answered[other] = question
            if store.check([f"confirmed/{own}/{other}"]):
                waiting.remove(other)
        if time.monotonic() > deadline:
            raise RunError(f"ranks {sorted(waiting)[:10]} of {size} did not come within {TIMEOUT}; look at their logs")
        time.sleep(0.01)
    return own
