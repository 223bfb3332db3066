"""The parts of the GPU bench, each a function of its circumstances that returns plain data. Each runs in a process of
its own.

With `tiny` a part does the same with sizes that any machine can hold, to see that it works.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from senet import config
from senet.bench import net as nets
from senet.bench import step
from senet.bench.contestants import Setting, execution, label, ours
from senet.bench.loader import draw_photos
from senet.bench.net import short
from senet.bench.probe import probe
from senet.config import Config, Folder, Net, ResNet
from senet.data.source import Source, has_dali, train_loader
from senet.distributed import World
from senet.execution.execution import choices
from senet.models import build
from senet.plan.traffic import Device
from senet.run import provenance
from senet.system.timing import Effort, Spread, Step, measure, ratios, reason, synchronise, until
from senet.train.meter import Meter
from senet.train.trainer import DTYPES, Trainer


@dataclass(frozen=True)
class Place:
    """The circumstances of a part."""

    device: torch.device
    out: Path
    deadline: float  # of time.monotonic(): what is not begun by then is left out
    tiny: bool
    data: Path | None = None  # CIFAR-10

    @property
    def precision(self) -> str:
        return "bf16" if self.device.type == "cuda" else "fp32"

    @property
    def effort(self) -> Effort:
        return (
            Effort(2, 0.02, warmup=1, deadline=self.deadline)
            if self.tiny
            else Effort(5, 0.6, warmup=5, deadline=self.deadline)
        )

    def setting(self, loaded: Config, batch: int = 256) -> Setting:
        crop = 32 if self.tiny else loaded.data.crop
        return Setting(self.device, 4 if self.tiny else batch, crop, loaded.data.classes, self.precision)

    def best(self) -> Device:
        return probe(self.device, DTYPES[self.precision], 0.05 if self.tiny else 0.5)


Part = Callable[[Place], dict[str, Any]]


def machine(place: Place) -> dict[str, Any]:
    """What it is measured on."""
    found: dict[str, Any] = {"best": asdict(place.best()), "versions": provenance.versions(), **provenance.machine()}
    if place.device.type == "cuda":
        facts = torch.cuda.get_device_properties(place.device)
        found |= {
            "gpu": facts.name,
            "memory": facts.total_memory,
            "cudnn": torch.backends.cudnn.version(),
            "cuda": torch.version.cuda,
        }
    return found | {"commit": provenance.code()[0]}


def shallow(net: Net) -> Net:
    """One block a stage: for a rehearsal."""
    return replace(net, blocks=(1,) * len(net.blocks)) if isinstance(net, ResNet) else net


def whole(name: str, hows: Sequence[str], peers: Sequence[str], batch: int = 256) -> Part:
    """A net, the same without SE, and the peers, in turns."""

    def work(place: Place) -> dict[str, Any]:
        loaded = config.load(name)
        setting = place.setting(loaded, batch)
        net, asked, others = loaded.net, [execution(how) for how in hows], peers
        possible = [how for how in asked if place.device.type == "cuda" or how.tail != "triton"]
        if place.tiny:  # compiling takes minutes where there are few cores, and is tried in a part of its own
            net = shallow(net)
            possible = list(dict.fromkeys(replace(how, compile=False) for how in possible))[:2]
            others = [peer for peer in peers if peer == "nvidia" or (peer == "timm" and "se_resnet50" in name)]
        return {"rows": nets.measure(name, net, setting, possible, others, place.effort, place.best())}

    return work


def compiles(place: Place) -> dict[str, Any]:
    """Seconds until the first step of a shallow net, for all that can be compiled, and whether it works at all."""
    loaded = config.load("configs/cifar10/se_resnet20.yaml")
    net = shallow(loaded.net)
    if place.tiny and isinstance(net, ResNet):
        net = replace(net, blocks=(1,), widths=(16,))
    setting = replace(place.setting(loaded, 128), crop=32)
    hows = [
        how
        for how in choices(build(net, 10).to(place.device), place.device)
        if how.compile and how.layout == "channels_last"
    ]
    rows = []
    for how in hows[-1:] if place.tiny else hows:
        began = time.perf_counter()
        failure = None
        try:
            with until(place.deadline):
                ours(net, setting, how)()
                synchronise()
        except Exception as error:
            failure = reason(error)
        rows.append({"how": label(how), "first_seconds": time.perf_counter() - began, "failure": failure})
    return {"rows": rows}


def graph(place: Place) -> dict[str, Any]:
    """Small nets, whose kernels end before the next is launched: eager, compiled, and as one CUDA graph."""
    name = "configs/cifar10/se_resnet20.yaml"
    loaded = config.load(name)
    setting = replace(place.setting(loaded, 128), crop=32)
    hows = (
        ["channels_last"]
        if place.device.type == "cpu"
        else [
            "channels_last",
            "channels_last+graph",
            "channels_last+analytic+compile",
            "channels_last+analytic+compile+graph",
        ]
    )
    makers: dict[str, Callable[[], Step]] = {how: partial(ours, loaded.net, setting, execution(how)) for how in hows}
    found = measure(makers, place.effort)
    rows = []
    for how, timing in found.items():
        ratio = ratios(timing, found[hows[0]])
        rows.append(
            {
                "how": how,
                "failure": timing.failure,
                "images_per_second": asdict(Spread.of([setting.batch / each for each in timing.seconds]))
                if timing.seconds
                else None,
                "x_eager": asdict(ratio) if ratio else None,
                "batch": setting.batch,
            }
        )
    return {"net": short(name), "rows": rows}


def loop(place: Place) -> dict[str, Any]:
    """Our loop over a bare one on a small net, each fed by a loader of its own."""
    loaded = config.load("configs/cifar10/se_resnet20.yaml")
    settings = step.synthetic(loaded, 8 if place.tiny else 128, place.precision)
    rows = []
    for how in ["channels_last", *(["channels_last+analytic+compile"] if place.device.type == "cuda" else [])]:
        try:
            with until(place.deadline):
                found = step.compare(
                    settings, place.device, execution(how), 3 if place.tiny else 60, 1 if place.tiny else 50
                )
                rows.append({"how": how, "failure": None, **found})
        except Exception as error:
            rows.append({"how": how, "failure": reason(error)})
    return {"batch": settings.batch, "precision": settings.precision, "rows": rows}


def loaders(place: Place) -> dict[str, Any]:
    """From JPEGs to a trained step: the loader alone, the net alone, both together."""
    name = "configs/imagenet/se_resnet50.yaml:v1.5"
    loaded = config.load(name)
    data = Folder(classes=10, crop=32 if place.tiny else 224, resize=36 if place.tiny else 256)
    batch, images = (4, 12) if place.tiny else (128, 1024)
    net = shallow(loaded.net) if place.tiny else loaded.net
    settings = config.from_dict(
        config.to_dict(Config(net=net, data=data, batch=batch, optim=loaded.optim)) | {"precision": place.precision}
    )
    rows: list[dict[str, Any]] = [] if has_dali() else [{"backend": "dali", "failure": "DALI is not installed"}]
    with tempfile.TemporaryDirectory() as folder:
        photos = draw_photos(Path(folder) / "photos", images)
        for backend in (["dali"] if has_dali() else []) + ["pillow"]:
            try:
                with until(place.deadline):
                    rows.append({"backend": backend, "failure": None, **_fed(settings, Source(photos, backend), place)})
            except Exception as error:
                rows.append({"backend": backend, "failure": reason(error)})
    return {"net": short(name), "batch": batch, "crop": data.crop, "images": images, "rows": rows}


def _fed(settings: Config, source: Source, place: Place) -> dict[str, Any]:
    """Images/s of a loader by itself, of the net on a batch that stays, and of the net fed by the loader."""
    world, batch = World(0, 1, place.device), settings.batch
    loader = train_loader(settings.data, source, batch, batch, 0, 0, 1, place.device, DTYPES[settings.precision])
    try:

        def speed(steps: Iterator[object]) -> float:
            began = time.perf_counter()
            count = sum(1 for _ in steps)
            synchronise()
            return count * batch / (time.perf_counter() - began)

        trainer = Trainer.build(settings, world, execution("channels_last"))
        meter = Meter(place.device)
        alone, together = [], []
        for number in range(2 if place.tiny else 4):
            alone.append(speed(loader.batches(2 * number, 0)))
            together.append(speed(trainer.steps(loader, 2 * number + 1, 0, meter)))
    finally:
        loader.close()
    setting = Setting(place.device, batch, settings.data.crop, settings.data.classes, settings.precision)
    timing = measure({"net": lambda: ours(settings.net, setting, execution("channels_last"))}, place.effort)["net"]
    return {
        "pixels": loader.description["backend"],
        "loader": asdict(Spread.of(alone[1:])),  # the first pass is a warm-up
        "together": asdict(Spread.of(together[1:])),
        "net": asdict(Spread.of([batch / each for each in timing.seconds])) if timing.seconds else None,
    }
