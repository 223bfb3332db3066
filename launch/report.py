"""Make a page of what runs came to: curves, errors, most wrong images, and the facts to do it again.

    python -m launch.report runs/imagenet/se_resnet50               # writes runs/imagenet/se_resnet50/report/index.html
    python -m launch.report runs/seed0 runs/seed1 runs/seed2 --out report
    python -m launch.report runs/* --table                          # prints a Markdown row a recipe, writes nothing
    python -m launch.report runs/* --pack logs                      # logs/*.jsonl, small: as good as the folders here

The page needs nothing beside it. It may be made of a run that goes on, or broke off. The best net of each run looks at
its validation images once more; of a run that goes on only if --data says where they are.
"""

from __future__ import annotations

from pathlib import Path

from launch import guard
from launch.flags import Parser, add_data_flags, source, world_of


def main(argv: list[str] | None = None) -> int:
    parser = Parser("launch.report", __doc__)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="the --out folder of a run, or a packed file")
    out = "folder for the page (default: RUN/report of the first)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=out)
    parser.add_argument("--table", action="store_true", help="print a Markdown table of the results instead")
    parser.add_argument("--attach", action="store_true", help="show the page in the W&B run of the first RUN, too")
    parser.add_argument("--no-images", action="store_true", help="from the logs alone: no net looks at images")
    packed = "instead pack each run's log, thinned, into a file there"
    parser.add_argument("--pack", type=Path, metavar="DIR", help=packed)
    add_data_flags(parser)
    args = parser.parse_args(argv)

    from senet.report.facts import pack, read_all

    runs = read_all(args.runs)
    if args.pack:
        args.pack.mkdir(parents=True, exist_ok=True)
        for run in runs:
            file = args.pack / f"{run.label.replace('/', '-')}.jsonl"
            pack(run, file)
            print(file)
        return 0
    if args.table:
        from senet.report.summary import difference, summary
        from senet.system import table

        print(table.markdown(*summary(runs)))
        if line := difference(runs):
            print(f"\n{line}")
        return 0
    from senet.report.make import make

    with world_of(args) as (world, _):
        page = make(runs, args.out or runs[0].folder.report, None if args.no_images else source(args), world)
    print(f"{page}: open it in a browser")
    if args.attach and world.is_main:
        from senet.track.wandb import attach

        print(f"W&B: {attach(runs[0].folder, page)}")
    return 0


if __name__ == "__main__":
    guard(main)
