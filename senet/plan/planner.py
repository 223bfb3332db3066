"""From a config and what is rented to hours, cost and needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from senet.config import Config, Folder, Synthetic, crop_at, divide_batch
from senet.errors import UsageError
from senet.plan import rates, scale
from senet.plan.gpus import GPU, find
from senet.plan.rates import Rate
from senet.plan.scale import Cluster, Step
from senet.plan.traffic import Stack, Traffic, itemsize

DECODERS = {
    "torchvision": 356,
    "DALI": 540,
    "this loader": 580,
}  # JPEGs of 500 x 375 a CPU-second, cropped and resized to 224
FIRST_EPOCH = (
    0.64  # of the steady rate (MLPerf v4.0, one node H200: 40.5k of 63.6k images/s): compilation, tuning, cold caches
)
START, START_NODE = (
    45.0,
    0.3,
)  # s before the first step (MLPerf v4.0: 42-59 s on 1 to 8 nodes, 90-187 s on 316 to 448), and more a node
FORWARD = 1 / 3  # of a training step's time, for validation
FAILURES = 419 / (54 * 24 * 16384)  # a GPU-hour: Llama 3's unexpected interruptions in 54 days on 16,384 H100
STALL, RESTART = 2.0, 120.0  # s that a checkpoint costs at most, and a restart from one; assumed
RESERVED = 2.5e9  # bytes a GPU: context, NCCL, cuDNN's workspaces; assumed
USABLE = 0.92  # of a GPU's memory


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


@dataclass(frozen=True)
class Data:
    images: int
    gigabytes: float
    storage: float  # GB/s that the first epoch reads, all nodes together
    cached_after: int  # epochs after which less than a tenth comes from storage, if a node's memory holds the set
    cores: dict[str, float]  # a node, by decoder; empty where nothing is decoded
    decode_on_gpu: bool | None  # whether its decoder keeps up; None: it has none, or nobody told
    limit: float  # images/s that decoding can give, by --cores and the GPU's decoder; infinite where not known


@dataclass(frozen=True)
class Network:
    needed: float  # GB/s of a node, all-reduce spread over the whole step
    given: float


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
    wish: Request
    epochs: int
    batch: int
    batch_per_gpu: float
    rate: Rate
    step: Step
    steps_per_epoch: int
    images_per_second: float
    bound: str  # net, decoding or storage: what sets the pace for most of the time
    efficiency: float  # of the GPU's pace with large batches
    hours: float
    training_hours: float
    validation_hours: float
    data: Data
    network: Network
    memory: Memory
    failures: Failures
    parameters: int
    gmacs: float
    megabytes: float  # memory traffic of an image in training

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.wish.gpus

    @property
    def cost(self) -> float | None:
        return None if self.wish.price is None else self.gpu_hours * self.wish.price


def plan(config: Config, wish: Request) -> Plan:
    """Raises UsageError for what is not known or out of range."""
    for name in ("gpus", "per_node", "price", "storage", "network", "cores", "images", "image_kb"):
        value = getattr(wish, name)
        if value is not None and value <= 0:
            raise UsageError(
                f"--{name.replace('_', '-').replace('per-node', 'gpus-per-node')} {value}: must be positive"
            )
    device, seen = find(wish.gpu), rates.traffic(config)
    rate = rates.rate(config, wish.gpu, wish.stack)
    here = cluster(wish, device)
    per_gpu = config.batch / wish.gpus
    step = _step(rate, seen, wish.stack, here, per_gpu)
    pace = config.batch / step.total
    data = _data(config, wish, device, pace)
    images = data.images
    training, slow = _epochs(config, rate, seen, wish, here, data)
    validation = config.epochs * _validation(config, images) * FORWARD / pace
    start = START + START_NODE * here.nodes
    productive = training + validation + start
    lost = failures(wish.gpus, productive / 3600)
    given = min(pace, data.limit)
    between = 2 * (here.nodes - 1) / here.nodes * gradients(seen, wish.stack) / step.total / 1e9
    return Plan(
        wish=wish,
        epochs=config.epochs,
        batch=config.batch,
        batch_per_gpu=per_gpu,
        rate=rate,
        step=step,
        steps_per_epoch=max(1, images // config.batch),
        images_per_second=given,
        bound="storage" if slow else "decoding" if given < pace else "net",
        efficiency=rate.each * per_gpu / step.total,
        hours=productive * (1 + lost.loss) / 3600,
        training_hours=training / 3600,
        validation_hours=validation / 3600,
        data=data,
        network=Network(between, here.network),
        memory=_memory(config, seen, device, per_gpu),
        failures=lost,
        parameters=seen.parameters,
        gmacs=seen.macs / 1e9,
        megabytes=seen.bytes(wish.stack, itemsize(config.precision)) / 1e6,
    )


def cluster(wish: Request, device: GPU, gpus: int | None = None) -> Cluster:
    network = device.network * wish.per_node if wish.network is None else wish.network
    return Cluster(gpus or wish.gpus, wish.per_node, device.link, network)


def gradients(seen: Traffic, stack: Stack) -> float:
    """Bytes that are summed over GPUs in a step: DDP's are fp32, those of MLPerf's entry fp16."""
    return seen.parameters * (2 if stack == "epilogue" else 4)


def _step(rate: Rate, seen: Traffic, stack: Stack, here: Cluster, per_gpu: float, area: float = 1.0) -> Step:
    return scale.step(rate.compute(per_gpu * area), gradients(seen, stack), here, rate.fixed)


def curve(config: Config, wish: Request, most: int = 2048) -> dict[str, list[tuple[int, float, float]]]:
    """(GPUs, images/s, efficiency) for powers of two up to `most`: with the config's batch, and with this plan's batch
    on each GPU.
    """
    device, seen = find(wish.gpu), rates.traffic(config)
    rate = rates.rate(config, wish.gpu, wish.stack)
    found: dict[str, list[tuple[int, float, float]]] = {"global": [], "each": []}
    for gpus in (2**power for power in range(int(math.log2(most)) + 1)):
        here = cluster(wish, device, gpus)
        for name, per_gpu in (("global", config.batch / gpus), ("each", config.batch / wish.gpus)):
            if per_gpu >= 1:
                total = _step(rate, seen, wish.stack, here, per_gpu).total
                found[name].append((gpus, gpus * per_gpu / total, rate.each * per_gpu / total))
    return found


# ------------------------------------------------------------------------------------------------------------ the parts


def _images(config: Config, wish: Request) -> int:
    data = config.data
    if wish.images is not None:
        return wish.images
    if isinstance(data, Folder) and data.classes != 1000:
        raise UsageError(
            f"--images N is needed: a folder with {data.classes} classes is not ImageNet; say how many "
            "training images it has"
        )
    if isinstance(data, Synthetic):
        return data.train_images
    return 1_281_167 if isinstance(data, Folder) else 50_000


def _validation(config: Config, images: int) -> float:
    if isinstance(config.data, Synthetic):
        return config.data.val_images
    return images * 50_000 / 1_281_167 if isinstance(config.data, Folder) else 10_000


def _data(config: Config, wish: Request, device: GPU, pace: float) -> Data:
    images = _images(config, wish)
    if config.data.set != "folder":
        return Data(images, 0.0, 0.0, 0, {}, None, math.inf)
    nodes = math.ceil(wish.gpus / wish.per_node)
    cached = 1 if nodes == 1 else math.ceil(math.log(0.1) / math.log(1 - 1 / nodes))
    cores = {name: pace / nodes / speed for name, speed in DECODERS.items()}
    each = pace / wish.gpus
    limit = math.inf
    if wish.cores is not None:
        limit = nodes * wish.cores * DECODERS["this loader"] + wish.gpus * (device.decode or 0)
    keeps_up = None if device.decode is None else each <= device.decode
    return Data(images, images * wish.image_kb / 1e6, pace * wish.image_kb / 1e6, cached, cores, keeps_up, limit)


def missing(epoch: int, nodes: int) -> float:
    """The share of its images that a node has not read before `epoch` (from 0): each node sees another Kth of the set
    in each epoch.
    """
    return (1 - 1 / nodes) ** epoch


def _epochs(config: Config, rate: Rate, seen: Traffic, wish: Request, here: Cluster, data: Data) -> tuple[float, bool]:
    """Seconds of all training epochs, and whether storage sets the pace for most of them."""
    seconds = slow = 0.0
    for epoch in range(config.epochs):
        area = (crop_at(config.data, epoch) / config.data.crop) ** 2
        total = _step(rate, seen, wish.stack, here, config.batch / wish.gpus, area).total
        pace = min(config.batch / total * (FIRST_EPOCH if epoch == 0 else 1), data.limit)
        if wish.storage is not None and data.storage:
            supply = wish.storage * 1e6 / (wish.image_kb * max(missing(epoch, here.nodes), 1e-9))
            slow += data.images / supply if supply < pace else 0.0
            pace = min(pace, supply)
        seconds += data.images / pace
    return seconds, 2 * slow > seconds


def failures(gpus: int, hours: float) -> Failures:
    """Young's interval sqrt(2 C MTBF) between checkpoints of cost C, and what is lost: C/interval + interval/2 MTBF +
    restart/MTBF.
    """
    mtbf = 1 / (FAILURES * gpus)
    interval = math.sqrt(2 * STALL * mtbf * 3600)
    loss = STALL / interval + (interval / 2 + RESTART) / (mtbf * 3600)
    return Failures(mtbf, hours / mtbf, interval / 60, loss)


def _memory(config: Config, seen: Traffic, device: GPU, per_gpu: float) -> Memory:
    """Weights, gradients and momentum in fp32, a half copy of the weights, and what is kept for backward."""
    each = itemsize(config.precision)
    fixed = RESERVED + seen.parameters * (12 + (2 if each == 2 else 0))
    image = seen.kept(each) + 4 * 3 * config.data.crop**2
    return Memory(
        (fixed + per_gpu * image) / 1e9, device.memory, max(0, int((USABLE * device.memory * 1e9 - fixed) / image))
    )


def dividing(config: Config, gpus: int) -> str | None:
    """Why the trainer would refuse the batch; None when it would not."""
    try:
        divide_batch(config.batch, gpus)
    except UsageError as refusal:
        return str(refusal)
    return None
