"""From a config and what is rented to hours, cost and needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from senet.config import Config, Folder, Synthetic, crop_at
from senet.errors import UsageError
from senet.plan import rates, scale
from senet.plan.gpus import GPU, find
from senet.plan.rates import Rate
from senet.plan.scale import Cluster, Step
from senet.plan.traffic import Stack, Traffic, itemsize

IMAGENET = 1_281_167, 50_000  # images in training and validation
# Images of 500 x 375 a CPU-second, cropped and resized to 224, on a busy core; of decoded shards 256 pixels and bytes
DECODERS = {"torchvision": 242, "DALI": 507, "this loader": 890, "decoded shards": 5120}
# Of the steady pace (MLPerf v4.0, one node H200: 40.5k of 63.6k images/s): compilation, tuning, cold caches
FIRST_EPOCH = 0.64
# s before the first step (MLPerf v4.0: 42-59 s on 1 to 8 nodes, 90-187 s on 316 to 448), and more a node
START, START_NODE = 45.0, 0.3
FORWARD = 1 / 3  # of a training step's time, for validation
FAILURES = 419 / (54 * 24 * 16384)  # a GPU-hour: Llama 3's unexpected interruptions in 54 days on 16,384 H100
STALL, RESTART = 2.0, 120.0  # s that a checkpoint costs at most, and a restart from one; assumed
RESERVED = 2.5e9  # bytes a GPU: context, NCCL, cuDNN's workspaces; assumed
USABLE = 0.92  # of a GPU's memory
# How far off the pace of several GPUs may be, as a share, besides that of one. MLPerf's rows are met within 7 %,
# NVIDIA's PyTorch loop in TF32 within 6 %; in AMP it lost 16 to 18 % from one GPU to eight, probably the host's doing.
SCALING, LOST_BY_HOST = 0.07, 0.18


@dataclass(frozen=True)
class Request:
    """What is to be rented. None: the usual for the GPU, or not said."""

    gpus: int
    gpu: str = "h100"
    per_node: int = 8
    stack: Stack = "eager"
    price: float | None = None  # $ a GPU-hour
    storage: float | None = None  # GB/s to all nodes together
    network: float | None = None  # GB/s of a node
    cores: int | None = None  # of a node
    images: int | None = None  # in training; None: ImageNet's or CIFAR's
    image_kb: float = 110.0  # a file of ImageNet, in the mean

    def __post_init__(self) -> None:
        """Raises UsageError for a number that is not positive."""
        for name, value in vars(self).items():
            if isinstance(value, (int, float)) and value <= 0:
                flag = name.replace("_", "-").replace("per-node", "gpus-per-node")
                raise UsageError(f"--{flag} {value}: must be positive")


@dataclass(frozen=True)
class Data:
    images: int
    validated: float
    gigabytes: float
    storage: float  # GB/s that the first epoch reads, all nodes together
    cached_after: int  # epochs after which less than a tenth comes from storage, if a node's memory holds the set
    cores: dict[str, float]  # a node, by decoder; empty if nothing is decoded
    decode_on_gpu: bool | None  # whether its decoder keeps up; None: it has none, or none was measured
    limit: float  # images/s that decoding can give, by --cores and the GPU's decoder; infinite if not known


@dataclass(frozen=True)
class Memory:
    gigabytes: float
    given: float
    largest_batch: int  # a GPU


@dataclass(frozen=True)
class Failures:
    mtbf_hours: float
    expected: float
    interval_minutes: float  # Young's
    loss: float  # share of the time


@dataclass(frozen=True)
class Plan:
    """What a run takes. `low` and `high` bound the whole: the doubt of one GPU's rate, and of its scaling."""

    request: Request
    nodes: int
    epochs: int
    batch: int
    batch_per_gpu: float
    rate: Rate
    step: Step
    steps_per_epoch: int
    images_per_second: float
    low: float  # of `images_per_second`
    high: float
    bound: str  # net, decoding or storage: what sets the pace for most of the time
    efficiency: float  # of the GPU's pace with large batches
    hours: float
    hours_range: tuple[float, float]  # at `high` and at `low`
    training_hours: float
    validation_hours: float
    data: Data
    network_needed: float  # GB/s of a node, all-reduce spread over the whole step
    network: float  # GB/s of a node
    memory: Memory
    failures: Failures
    parameters: int
    gmacs: float
    megabytes: float  # moved through memory for an image in training

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.request.gpus

    @property
    def cost(self) -> float | None:
        return None if self.request.price is None else self.gpu_hours * self.request.price


class Model:
    """The law of a step for one config and request, on any number of GPUs."""

    def __init__(self, config: Config, request: Request, measured: Path = rates.FILE) -> None:
        """Raises UsageError for what is not known."""
        self.config, self.request, self.gpu = config, request, find(request.gpu)
        self.rate = rates.rate(config, request.gpu, request.stack, measured)
        self.each = config.batch / request.gpus  # images a GPU

    @cached_property
    def seen(self) -> Traffic:
        return rates.traffic(self.config)

    @property
    def gradients(self) -> float:
        """Bytes that are summed over GPUs in a step: DDP's are fp32, those of MLPerf's entry fp16."""
        return self.seen.parameters * (2 if self.request.stack == "epilogue" else 4)

    def cluster(self, gpus: int | None = None) -> Cluster:
        per_node, network = self.request.per_node, self.request.network
        network = self.gpu.network * per_node if network is None else network
        return Cluster(gpus or self.request.gpus, per_node, self.gpu.link, network)

    def step(self, each: float, gpus: int | None = None, area: float = 1.0) -> Step:
        """Return the step with `each` images a GPU, of a share `area` of their pixels."""
        return scale.step(self.rate.compute(each * area), self.gradients, self.cluster(gpus), self.rate.fixed)

    @property
    def doubt(self) -> tuple[float, float]:
        """The least and the greatest share of the modelled pace to expect."""
        least, most = 1 - self.rate.doubt, 1 + self.rate.doubt
        if self.request.gpus == 1:
            return least, most
        by_host = self.request.stack == "eager" and itemsize(self.config.precision) == 2
        return least * (1 - (LOST_BY_HOST if by_host else SCALING)), most * (1 + SCALING)


def plan(config: Config, request: Request, measured: Path = rates.FILE) -> Plan:
    """Plan a training of `config` on what `request` says, by the rates in `measured`. Raises UsageError for what is not
    known.
    """
    model = Model(config, request, measured)
    step, seen, here = model.step(model.each), model.seen, model.cluster()
    pace = config.batch / step.total
    data = _data(config, request, model.gpu, pace)
    start = START + START_NODE * here.nodes

    def times(share: float) -> tuple[float, float, bool]:
        """Seconds of training and of validation if the net's pace is a share of the modelled one."""
        training, slow = _epochs(model, data, share)
        return training, config.epochs * data.validated * FORWARD / (share * pace), slow

    training, validation, slow = times(1.0)
    lost = failures(request.gpus, (training + validation + start) / 3600)
    fast, late = (sum(times(share)[:2]) + start for share in reversed(model.doubt))
    given = min(pace, data.limit)
    return Plan(
        request=request,
        nodes=here.nodes,
        epochs=config.epochs,
        batch=config.batch,
        batch_per_gpu=model.each,
        rate=model.rate,
        step=step,
        steps_per_epoch=max(1, data.images // config.batch),
        images_per_second=given,
        low=min(model.doubt[0] * pace, data.limit),
        high=min(model.doubt[1] * pace, data.limit),
        bound="storage" if slow else "decoding" if given < pace else "net",
        efficiency=model.rate.each * model.each / step.total,
        hours=(training + validation + start) * (1 + lost.loss) / 3600,
        hours_range=(fast * (1 + lost.loss) / 3600, late * (1 + lost.loss) / 3600),
        training_hours=training / 3600,
        validation_hours=validation / 3600,
        data=data,
        network_needed=2 * (here.nodes - 1) / here.nodes * model.gradients / step.total / 1e9,
        network=here.network,
        memory=_memory(config, seen, model.gpu, model.each),
        failures=lost,
        parameters=seen.parameters,
        gmacs=seen.macs / 1e9,
        megabytes=seen.bytes(request.stack, itemsize(config.precision)) / 1e6,
    )


def curve(config: Config, request: Request, most: int = 2048) -> dict[str, list[tuple[int, float, float]]]:
    """Return (GPUs, images/s, efficiency) for powers of two up to `most`: `global` with the config's batch, `each` with
    this plan's batch on each GPU. Raises UsageError.
    """
    model = Model(config, request)
    found: dict[str, list[tuple[int, float, float]]] = {"global": [], "each": []}
    for gpus in (2**power for power in range(int(math.log2(most)) + 1)):
        for name, each in (("global", config.batch / gpus), ("each", model.each)):
            if each >= 1:
                total = model.step(each, gpus).total
                found[name].append((gpus, gpus * each / total, model.rate.each * each / total))
    return found


# ------------------------------------------------------------------------------------------------------------ the parts


def _images(config: Config, request: Request) -> tuple[int, float]:
    """Return how many images are trained on, and how many are validated."""
    data, images = config.data, request.images
    if isinstance(data, Synthetic):
        return images or data.train_images, data.val_images
    if not isinstance(data, Folder):
        return images or 50_000, 10_000
    if images is None and data.classes != 1000:
        what = f"a folder with {data.classes} classes is not ImageNet"
        raise UsageError(f"--images N is needed: {what}; say how many training images it has")
    images = images or IMAGENET[0]
    return images, images * IMAGENET[1] / IMAGENET[0]


def _data(config: Config, request: Request, gpu: GPU, pace: float) -> Data:
    images, validated = _images(config, request)
    if not isinstance(config.data, Folder):
        return Data(images, validated, 0.0, 0.0, 0, {}, None, math.inf)
    nodes = math.ceil(request.gpus / request.per_node)
    cached = 1 if nodes == 1 else math.ceil(math.log(0.1) / math.log(1 - 1 / nodes))
    cores = {name: pace / nodes / speed for name, speed in DECODERS.items()}
    limit = math.inf
    if request.cores is not None:
        limit = nodes * request.cores * DECODERS["this loader"] + request.gpus * (gpu.decode or 0)
    keeps_up = None if gpu.decode is None else pace / request.gpus <= gpu.decode
    gigabytes, storage = images * request.image_kb / 1e6, pace * request.image_kb / 1e6
    return Data(images, validated, gigabytes, storage, cached, cores, keeps_up, limit)


def missing(epoch: int, nodes: int) -> float:
    """Return the share of its images that a node has not read before `epoch`, from 0: it sees another Kth in each."""
    return (1 - 1 / nodes) ** epoch


def _epochs(model: Model, data: Data, share: float) -> tuple[float, bool]:
    """Return the seconds of all training epochs at a `share` of the net's pace, and whether storage sets the pace for
    most of them.
    """
    config, request, seconds, slow = model.config, model.request, 0.0, 0.0
    for epoch in range(config.epochs):
        area = (crop_at(config.data, epoch) / config.data.crop) ** 2
        net = share * config.batch / model.step(model.each, area=area).total
        pace = min(net * (FIRST_EPOCH if epoch == 0 else 1), data.limit)
        if request.storage is not None and data.storage:
            supply = request.storage * 1e6 / (request.image_kb * max(missing(epoch, model.cluster().nodes), 1e-9))
            slow += data.images / supply if supply < pace else 0.0
            pace = min(pace, supply)
        seconds += data.images / pace
    return seconds, 2 * slow > seconds


def failures(gpus: int, hours: float) -> Failures:
    """Return Young's interval sqrt(2 C MTBF) between checkpoints of cost C, and what is lost: C/interval +
    interval/2 MTBF + restart/MTBF.
    """
    mtbf = 1 / (FAILURES * gpus)
    interval = math.sqrt(2 * STALL * mtbf * 3600)
    loss = STALL / interval + (interval / 2 + RESTART) / (mtbf * 3600)
    return Failures(mtbf, hours / mtbf, interval / 60, loss)


def _memory(config: Config, seen: Traffic, gpu: GPU, each: float) -> Memory:
    """Count weights, gradients and momentum in fp32, a half copy of the weights, and what is kept for backward."""
    size = itemsize(config.precision)
    fixed = RESERVED + seen.parameters * (12 + (2 if size == 2 else 0))
    image = seen.kept(size) + 4 * 3 * config.data.crop**2
    largest = max(0, int((USABLE * gpu.memory * 1e9 - fixed) / image))
    return Memory((fixed + each * image) / 1e9, gpu.memory, largest)
