"""From a config and what is rented to hours, cost and needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from senet.config import Config, Folder, Synthetic, crop_at
from senet.errors import UsageError
from senet.plan import rates, scale
from senet.plan.gpus import find
from senet.plan.scale import Cluster, Step
from senet.plan.traffic import Stack, itemsize

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
class Failures:
    mtbf_hours: float
    expected: float
    interval_minutes: float  # Young's
    loss: float  # share of the time


class Plan:
    """What a training of `config` takes on what `request` says: attributes that follow one from another."""

    def __init__(self, config: Config, request: Request, measured: Path = rates.FILE) -> None:
        """Compute everything, by the rates in `measured`. Raises UsageError for what is not known."""
        self.config, self.request, self.gpu = config, request, find(request.gpu)
        self.rate, self.traffic = rates.rate(config, request.gpu, request.stack, measured), rates.traffic(config)
        self.megabytes = self.traffic.bytes(request.stack, itemsize(config.precision)) / 1e6  # moved for an image
        self.nodes = math.ceil(request.gpus / request.per_node)
        self.network = request.network or self.gpu.network * request.per_node  # GB/s of a node

        self.batch_per_gpu = config.batch / request.gpus
        self.step = self.step_of(self.batch_per_gpu)
        self.efficiency = self.rate.each * self.batch_per_gpu / self.step.total  # of the pace with large batches
        pace = config.batch / self.step.total
        self.network_needed = 2 * (self.nodes - 1) / self.nodes * self.gradients / self.step.total / 1e9  # GB/s a node

        self.images, self.validated = _images(config, request)
        self.steps_per_epoch = max(1, self.images // config.batch)
        files = isinstance(config.data, Folder)
        self.gigabytes = self.images * request.image_kb / 1e6 * files
        self.storage_needed = pace * request.image_kb / 1e6 * files  # GB/s of the first epoch, all nodes together
        # Epochs after which less than a tenth comes from storage, if a node's memory holds the set.
        self.cached_after = 1 if self.nodes == 1 else math.ceil(math.log(0.1) / math.log(1 - 1 / self.nodes))
        self.cores = {name: pace / self.nodes / speed for name, speed in DECODERS.items() if files}  # a node
        # Whether the GPU's own decoder keeps up; None: it has none, or none was measured.
        self.decode_on_gpu = None if self.gpu.decode is None or not files else pace / request.gpus <= self.gpu.decode
        self.decoding = math.inf  # images/s that cores and the GPUs' decoders can give; infinite if not known
        if files and request.cores is not None:
            self.decoding = self.nodes * request.cores * DECODERS["this loader"] + request.gpus * (self.gpu.decode or 0)

        least, most = self._doubt()
        self.images_per_second, self.low, self.high = (min(x * pace, self.decoding) for x in (1.0, least, most))
        training, validation, slow = self._seconds(1.0)
        self.training_hours, self.validation_hours = training / 3600, validation / 3600
        # What sets the pace for most of the time.
        self.bound = "storage" if slow else "decoding" if self.images_per_second < pace else "net"
        start = START + START_NODE * self.nodes
        self.failures = failures(request.gpus, (training + validation + start) / 3600)
        self.hours, fast, late = (
            (sum(self._seconds(share)[:2]) + start) * (1 + self.failures.loss) / 3600 for share in (1.0, most, least)
        )
        self.hours_range = fast, late
        self.gpu_hours = self.hours * request.gpus
        self.cost = None if request.price is None else self.gpu_hours * request.price

        # Weights, gradients and momentum in fp32, a half copy of the weights, and what is kept for backward.
        size = itemsize(config.precision)
        fixed = RESERVED + self.traffic.parameters * (12 + (2 if size == 2 else 0))
        image = self.traffic.kept(size) + 4 * 3 * config.data.crop**2
        self.memory_gb = (fixed + self.batch_per_gpu * image) / 1e9  # a GPU
        self.largest_batch = max(0, int((USABLE * self.gpu.memory * 1e9 - fixed) / image))  # of a GPU

    @property
    def gradients(self) -> float:
        """Bytes that are summed over GPUs in a step: DDP's are fp32, those of MLPerf's entry fp16."""
        return self.traffic.parameters * (2 if self.request.stack == "epilogue" else 4)

    def step_of(self, each: float, gpus: int | None = None, area: float = 1.0) -> Step:
        """Return the step with `each` images a GPU, of a share `area` of their pixels, on so many GPUs."""
        cluster = Cluster(gpus or self.request.gpus, self.request.per_node, self.gpu.link, self.network)
        return scale.step(self.rate.compute(each * area), self.gradients, cluster)

    def _doubt(self) -> tuple[float, float]:
        """Return the least and the greatest share of the modelled pace to expect."""
        least, most = 1 - self.rate.doubt, 1 + self.rate.doubt
        if self.request.gpus == 1:
            return least, most
        by_host = self.request.stack == "eager" and itemsize(self.config.precision) == 2
        return least * (1 - (LOST_BY_HOST if by_host else SCALING)), most * (1 + SCALING)

    def _seconds(self, share: float) -> tuple[float, float, bool]:
        """Return seconds of training and validation at a `share` of the pace, and whether storage mostly sets it."""
        config, request, seconds, slow = self.config, self.request, 0.0, 0.0
        for epoch in range(config.epochs):
            area = (crop_at(config.data, epoch) / config.data.crop) ** 2
            net = share * config.batch / self.step_of(self.batch_per_gpu, area=area).total
            pace = min(net * (FIRST_EPOCH if epoch == 0 else 1), self.decoding)
            if request.storage is not None and self.storage_needed:
                supply = request.storage * 1e6 / (request.image_kb * max(missing(epoch, self.nodes), 1e-9))
                slow += self.images / supply if supply < pace else 0.0
                pace = min(pace, supply)
            seconds += self.images / pace
        validation = config.epochs * self.validated * FORWARD * self.step.total / (share * config.batch)
        return seconds, validation, 2 * slow > seconds

    def curve(self) -> dict[str, list[tuple[int, float, float]]]:
        """Return (GPUs, images/s, efficiency) for 1 to 2,048 GPUs, with the batch `global` or that of `each`."""
        found: dict[str, list[tuple[int, float, float]]] = {"global": [], "each": []}
        for gpus in (2**power for power in range(12)):
            for name, each in (("global", self.config.batch / gpus), ("each", self.batch_per_gpu)):
                if each >= 1:
                    total = self.step_of(each, gpus).total
                    found[name].append((gpus, gpus * each / total, self.rate.each * each / total))
        return found


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


def missing(epoch: int, nodes: int) -> float:
    """Return the share of its images that a node has not read before `epoch`, from 0: it sees another Kth in each."""
    return (1 - 1 / nodes) ** epoch


def failures(gpus: int, hours: float) -> Failures:
    """Return Young's interval sqrt(2 C MTBF) between checkpoints of cost C, and what is lost: C/interval +
    interval/2 MTBF + restart/MTBF.
    """
    mtbf = 1 / (FAILURES * gpus)
    interval = math.sqrt(2 * STALL * mtbf * 3600)
    loss = STALL / interval + (interval / 2 + RESTART) / (mtbf * 3600)
    return Failures(mtbf, hours / mtbf, interval / 60, loss)
