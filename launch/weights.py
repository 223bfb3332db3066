"""Bring weights from one library to another: names, shapes, and proof that the logits stay the same.

    python -m launch.weights convert seresnet50.pth --to native
    python -m launch.weights convert runs/se50 --to timm --out se50.safetensors
    python -m launch.weights convert timm:seresnext50_32x4d --to native

WHAT is a file of weights (of timm, torchvision, Cadene, moskomule, NVIDIA or this project, told by its names), a
checkpoint, the --out folder of a run, or timm:NAME. FILE is one of torch.save if it ends in .pt, .pth or .bin, and of
safetensors otherwise. What takes a checkpoint (launch.evaluate, launch.predict, launch.train --init) takes WHAT too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from launch import guard
from launch.flags import Parser, add_net_flags, net

ENDINGS = re.compile(r"(\.(pt|pth|pkl|tar|bin|safetensors|native|timm|torchvision))*$")


def main(argv: list[str] | None = None) -> int:
    parser = Parser("launch.weights", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{convert}")
    convert_ = commands.add_parser("convert", description=__doc__)
    add_net_flags(convert_)
    convert_.add_argument("--to", choices=["native", "timm", "torchvision"], required=True, help="whose names to give")
    convert_.add_argument("--out", type=Path, metavar="FILE", help="default: NAME.TO.safetensors in this folder")
    args = parser.parse_args(argv)

    from senet.config import to_dict
    from senet.errors import UsageError
    from senet.models import summary
    from senet.run.load import native
    from senet.weights import convert, files

    trained = native(net(args))
    settings, state = trained.config, dict(trained.net.state_dict())
    side = min(settings.data.crop, max(64, getattr(settings.net, "smallest", 1)))
    size = summary(settings.net, settings.data.classes, settings.data.crop)
    print(f"{trained.origin}: {settings.net.family}, {size.parameters:,} parameters, {settings.data.classes} classes")
    library: Literal["timm", "torchvision"] = "timm" if args.to == "native" else args.to
    try:
        other = convert.counterpart(settings.net, state, library)
    except convert.NoCounterpart as error:
        if args.to != "native":
            raise UsageError(f"--to {library}: {error}") from None
        print(f"logits: not compared, for {error}")
    else:
        apart = convert.deviation(other.net, trained.net, side)
        print(f"logits: at most {apart:.1e} of the largest one from those of {library}'s {other.name}")
        if not apart <= convert.TOLERANCE:
            raise UsageError(f"{args.what}: the two nets compute different logits; nothing was written")
    name = ENDINGS.sub("", Path(args.what.removeprefix("timm:")).resolve().name)
    out = args.out or Path(f"{name}.{args.to}.safetensors")
    if args.to == "native":
        files.write(out, state, {"config": to_dict(settings), "classes": list(trained.classes)})
    else:
        files.write(out, other.state)
    print(out)
    return 0


if __name__ == "__main__":
    guard(main)
