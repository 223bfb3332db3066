"""The layout of an execution is that of every convolution's output, wherever a net is computed: cuDNN and oneDNN take
channels_last as soon as the input or the weight has it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import final, run_text

WATCH = """
import importlib, json, sys
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

layouts = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}

def look(module, inputs, output):
    if isinstance(module, nn.Conv2d) and not output.is_meta and output[0, 0].numel() > 1:
        seen[next(name for name, layout in layouts.items() if output.is_contiguous(memory_format=layout))] += 1

register_module_forward_hook(look)
torch.set_num_threads(1)
for module, *words in json.loads(sys.argv[1]):
    seen = {name: 0 for name in layouts}
    assert importlib.import_module(module).main(words) == 0
    print(json.dumps(seen))
"""


def layouts(folder: Path, *commands: list[object]) -> list[dict[str, int]]:
    """Run programs in one process; return how many outputs of convolutions were in either layout in each."""
    words = json.dumps([[*map(str, command)] for command in commands])
    done = run_text(WATCH, folder, words)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"channels_last"')]


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_every_convolution_computes_in_the_layout_that_was_asked_for(
    layout: str, tiny: Path, images: Path, tmp_path: Path
) -> None:
    """In training and validation, in the rehearsal before them, with augmentation on the way; then as the doctor and an
    evaluation find it in the run folder.
    """
    out, data = tmp_path / "out", ["--data", images, "--workers", 1]
    train = [tiny, "epochs=1", "data.augment.erase=1", "data.augment.lighting=0.1", *data]
    found = layouts(
        tmp_path,
        ["launch.train", *train, "--out", out, "--layout", layout],
        ["launch.doctor", "--speed", "--seconds", 0.1, *train, "--out", out],
        ["launch.evaluate", out, *data],
    )
    for seen, least in zip(found, (50, 20, 6), strict=True):
        assert seen[layout] >= least
        assert sum(seen.values()) == seen[layout]


RESUME = """
import shutil, sys
from launch.train import main
own, other = (sys.argv[1] + name for name in ("/own", "/other"))
words = [*sys.argv[2:], "--layout"]
assert main([*words, "contiguous", "epochs=1", "--out", own]) == 0
shutil.copytree(own, other)
assert main([*words, "contiguous", "epochs=2", "--out", own, "--accept-changes"]) == 0
assert main([*words, "channels_last", "epochs=2", "--out", other, "--accept-changes"]) == 0
"""


def test_resuming_in_another_layout_keeps_each_weights_own_momentum(tiny: Path, images: Path, tmp_path: Path) -> None:
    """The momentum has the strides of the checkpoint: a fused optimiser would mix it up among the weights."""
    done = run_text(RESUME, tmp_path, tmp_path, tiny, "--workers", 1, "--data", images)
    assert done.returncode == 0, done.stderr
    own, other = (final(tmp_path / name) for name in ("own", "other"))
    pairs = [(weight, other["net"][name]) for name, weight in own["net"].items()]
    for parameter, state in own["optimiser"]["state"].items():
        pairs += [(value, other["optimiser"]["state"][parameter][name]) for name, value in state.items()]
    for one, another in pairs:  # rounding differs, and grows; what is mixed up differs by its own size
        assert (one - another).float().norm() <= 0.05 * one.float().norm()
