"""Look into a trained net as the paper does.

    python -m launch.analyze excitations WHAT --data DIR --classes goldfish,pug,airliner,cliff --out DIR
    python -m launch.analyze prune WHAT --data DIR [--stages 4,5]
    python -m launch.analyze gradcam WHAT IMAGE ... [--class goldfish] --out FILE.png

excitations: what the gates of each SE block are for which class (figures 6 and 7), and a table beside the paper's.
prune: the errors without the SE blocks of a stage (section 4). gradcam: where in an image the net sees a class.
WHAT is whatever launch.predict takes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from launch import guard
from launch.flags import Parser, add_data_flags, add_net_flags, net, output, source, world_of
from senet.run.flags import limited

if TYPE_CHECKING:
    from senet.distributed import World
    from senet.run.load import Trained


def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)

    with world_of(args) as (world, _):
        trained = net(args)
        print({"excitations": _excitations, "prune": _prune, "gradcam": _gradcam}[args.analysis](args, trained, world))
    return 0


def _excitations(args: argparse.Namespace, trained: Trained, world: World) -> str:
    from senet.analyze import excitations
    from senet.system import table
    from senet.system.files import write_text

    args.out.mkdir(parents=True, exist_ok=True)
    found = excitations.record(trained, source(args), world, args.classes, args.images)
    shown = excitations.shown(found)
    excitations.draw(shown, args.out / "excitations.png")
    excitations.draw(shown, args.out / "within_class.png", within=True)
    header, rows = excitations.table(found)
    write_text(args.out / "excitations.md", table.markdown(header, rows) + "\n")
    return f"{table.text(header, rows)}\n{args.out}: excitations.png, within_class.png, excitations.md"


def _prune(args: argparse.Namespace, trained: Trained, world: World) -> str:
    from senet.analyze.prune import prune
    from senet.system import table

    parameters = sum(p.numel() for p in trained.net.parameters())
    rows = [
        (stage, how, saved, f"{100 * saved / parameters:.1f}", f"{top1:.2f}", f"{top5:.2f}")
        for stage, how, saved, top1, top5 in prune(trained, source(args), world, args.stages)
    ]
    return table.text(["stage without SE", "gates", "fewer parameters", "%", "top-1 error %", "top-5 error %"], rows)


def _gradcam(args: argparse.Namespace, trained: Trained, world: World) -> str:
    import numpy as np

    from senet.analyze.excitations import find
    from senet.analyze.gradcam import draw, gradcam
    from senet.data.imagenet import named
    from senet.data.sheet import pictures
    from senet.data.source import files_loader

    data = trained.config.data
    label = None if args.label is None else find(args.label, trained.classes)
    names = named(trained.classes, data.classes)
    loader = files_loader(data, source(args), args.images, np.full(len(args.images), -1), world.device)
    shown, maps, titles = [], [], []
    for batch in loader.batches():
        found, probabilities = gradcam(trained.net.to(world.device), batch.images, label)
        shown += pictures(batch.images.detach(), data)
        maps += list(found)
        for row in probabilities:
            at = int(row.argmax()) if label is None else label
            titles.append(f"{names[at]} {100 * float(row[at]):.1f} %")
    loader.close()
    left_out = "".join(f"left out: {path}: {reason}\n" for path, reason in loader.bad.items())
    draw(shown, maps, titles, args.out)
    return f"{left_out}{args.out}: written"


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("launch.analyze", __doc__)
    kinds = parser.add_subparsers(dest="analysis", required=True, metavar="excitations|prune|gradcam")
    for name in ("excitations", "prune", "gradcam"):
        kind = kinds.add_parser(name, description=__doc__)
        add_net_flags(kind)
        add = kind.add_argument
        if name == "excitations":
            add("--classes", type=lambda text: text.split(","), metavar="NAME,...", help="names, wnids or numbers")
            add("--images", type=limited(int, "positive"), default=50, metavar="N", help="of each class")
            add("--out", type=Path, default=Path("analysis"), metavar="DIR", help="default: analysis")
        elif name == "prune":
            order = "one after the other, in the paper's numbers (default: the last)"
            add("--stages", type=lambda text: [*map(int, text.split(","))], metavar="N,...", help=order)
        else:
            add("images", metavar="IMAGE", type=Path, nargs="+")
            add("--class", dest="label", metavar="NAME", help="default: what each image is held for")
            add("--out", type=output(".png"), required=True, metavar="FILE.png")
        add_data_flags(kind)
    args = parser.parse_args(argv)
    if args.analysis == "gradcam" and args.data:
        parser.error("--data has no effect: name the pictures")
    return args


if __name__ == "__main__":
    guard(main)
