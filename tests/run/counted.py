"""launch.train, whose first rank writes at its end how often it called which collective, on how many bytes.

torchrun ... -m tests.run.counted FILE.json [arguments of launch.train]
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from launch import guard
from launch.train import main

SIZES = {"float": 4, "double": 8, "long int": 8, "int": 4, "unsigned char": 1, "signed char": 1, "bool": 1}


def counted() -> int:
    file = Path(sys.argv.pop(1))
    if os.environ["RANK"] != "0":
        return main()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as events:
        code = main()
    calls: Counter[str] = Counter()
    for event in events.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name().startswith("gloo:"):
            kind = event.dtypes()[0]
            size = sum(math.prod(shape) for shape in event.shapes()) * SIZES[kind]
            calls[f"{event.name().removeprefix('gloo:')} of {size} bytes ({kind})"] += 1
    file.write_text(json.dumps(calls))
    return code


if __name__ == "__main__":
    guard(counted)
