"""Write a trained net in a form that others read, with what it takes to use it, and compare it with its source.

    python -m launch.export runs/se50 --to onnx --out se50-onnx     # model.onnx, preprocessing.json, README.md

Forms: safetensors (the weights under our names, with the config; every program here takes the file), onnx and pt2 (a
graph for batches of any size), timm (for timm.create_model("local-dir:DIR", pretrained=True)). WHAT is whatever
launch.predict takes. Files of weights can be of half the size: --dtype rounds kernels and matrices, which costs one of
our nets with precision bf16 nothing if it is bfloat16.
"""

from __future__ import annotations

import json
from pathlib import Path

from launch import guard
from launch.flags import Parser, add_net_flags, net
from senet.errors import RunError, UsageError


def main(argv: list[str] | None = None) -> int:
    parser = Parser("launch.export", __doc__)
    add_net_flags(parser)
    parser.add_argument("--to", required=True, choices=["safetensors", "onnx", "pt2", "timm"])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder, which is made")
    types = ["float32", "float16", "bfloat16"]
    parser.add_argument("--dtype", choices=types, default=types[0], help="of kernels and matrices in the file")
    args = parser.parse_args(argv)

    import torch

    from senet.export.card import card
    from senet.export.forms import FORMS, TOLERANCE, deviation, facts
    from senet.report.facts import read
    from senet.system.files import write_text
    from senet.system.run_folder import RunFolder
    from senet.weights.files import EXPORTED

    trained = net(args)
    if trained.average is not None and args.ema is None:
        raise UsageError(f"{trained.origin}: holds trained weights and their average; say which: --ema or --raw")
    described, form, dtype = facts(trained), FORMS[args.to], getattr(torch, args.dtype)
    if dtype != torch.float32 and form.file != EXPORTED:
        parser.error(f"--dtype {args.dtype}: goes with --to safetensors and timm; a graph computes in float32")
    args.out.mkdir(parents=True, exist_ok=True)
    run = form.write(trained, args.out, described, dtype)
    if run is None:
        compared = "It was not compared with its source: onnxruntime is not installed."
    else:
        apart = deviation(trained, run)
        if not apart <= TOLERANCE[dtype]:
            raise RunError(f"{args.out / form.file}: its logits are {apart:.1e} apart from the source's; do not use it")
        rounded = f"Its kernels and matrices are rounded to {args.dtype}. " if dtype != torch.float32 else ""
        compared = f"{rounded}Read again, its logits are those of the source within {apart:.1e} of the largest."
    folders = (Path(args.what), *Path(args.what).parents)
    folder = next((path for path in folders if RunFolder(path).config.exists()), None)
    write_text(args.out / "preprocessing.json", json.dumps(described, indent=1))
    write_text(args.out / "README.md", card(trained, args.to, described, read(folder) if folder else None, compared))
    print(f"{args.out / form.file}: {(args.out / form.file).stat().st_size:,} bytes. {compared}")
    return 0


if __name__ == "__main__":
    guard(main)
