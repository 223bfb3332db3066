"""What a checkpoint costs the training: how long a save holds it up, beside a bare copy of the same tensors."""

import argparse
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from senet import config, distributed
from senet.bench.contestants import short
from senet.bench.rows import Fact, Row
from senet.models import build
from senet.run.checkpoint import Payload, Progress
from senet.run.preflight import checkpoint_bytes
from senet.run.saver import Saver, snapshot
from senet.system.run_folder import CheckpointFolder
from senet.system.timing import Spread, timed
from senet.train import optimiser


def add_flags(parser: argparse.ArgumentParser) -> None:
    whose = "whose net is saved (default: SE-ResNet-50)"
    parser.add_argument("--config", default="configs/imagenet/se_resnet50.yaml", help=whose)
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="pairs of a copy and a save (default 15)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to write (default: a temporary folder)")


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Measure one net's checkpoint. Raises UsageError."""
    settings, device = config.load(args.config), distributed.start().device
    net = build(settings.net, settings.data.classes).to(device)
    payload = Payload(Progress(), dict(net.state_dict()), optimiser.build(net, settings.optim).state_dict())
    copies, stalls, writes = [], [], []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        saver = Saver(CheckpointFolder(Path(folder)), keep=2)
        for _ in range(args.rounds + 1):
            copies.append(1e3 * timed(partial(snapshot, payload))[0])
            stalls.append(1e3 * timed(partial(saver.save, payload, {}, []))[0])
            writes.append(stalls[-1] + 1e3 * timed(saver.finish)[0])
        saver.close()
    ratio = Spread.of([stall / copy for stall, copy in zip(stalls[1:], copies[1:], strict=True)])  # the first allocate
    facts: dict[str, Fact] = {"MB": checkpoint_bytes(net) / 1e6, "device": str(device)}
    row = partial(Row, short(args.config), unit="ms", facts=facts)
    yield row("a bare copy", Spread.of(copies[1:]))
    yield row("a save holds training up", Spread.of(stalls[1:]), facts=facts | {"x a copy": ratio})
    yield row("until it is on disk", Spread.of(writes[1:]))
