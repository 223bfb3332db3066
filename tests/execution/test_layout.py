"""The layout of an execution is that of every convolution's output, wherever a net is computed: cuDNN and oneDNN take
channels_last as soon as the input or the weight has it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import ROOT, environment, final

WATCH = """
import importlib, json, sys
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

layouts = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
seen = {name: 0 for name in layouts}

def look(module, inputs, output):
    if isinstance(module, nn.Conv2d) and not output.is_meta and output[0, 0].numel() > 1:
        seen[next(name for name, layout in layouts.items() if output.is_contiguous(memory_format=layout))] += 1

register_module_forward_hook(look)
torch.set_num_threads(1)
code = importlib.import_module(sys.argv[1]).main(sys.argv[2:])
print(json.dumps({"code": code, **seen}))
"""


def layouts(module: str, *words: object) -> dict[str, int]:
    """How many outputs of convolutions were in either layout while `module` ran."""
    command = [sys.executable, "-c", WATCH, module, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("code") == 0
    return found


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_every_convolution_computes_in_the_layout_that_was_asked_for(
    layout: str, tiny: Path, images: Path, tmp_path: Path
) -> None:
    """In training and validation, and in the rehearsal before them, with augmentation on the way."""
    words = [tiny, "epochs=1", "data.augment.erase=1", "data.augment.lighting=0.1", "--workers", 1]
    found = layouts("launch.train", *words, "--data", images, "--out", tmp_path / "out", "--layout", layout)
    assert found[layout] > 50
    assert sum(found.values()) == found[layout]


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
    words = [tmp_path, tiny, "--workers", "1", "--data", images]
    command = [sys.executable, "-c", RESUME, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    own, other = (final(tmp_path / name) for name in ("own", "other"))
    for name, weight in own["net"].items():
        torch.testing.assert_close(other["net"][name], weight, rtol=1e-4, atol=1e-4)
    for parameter, state in own["optimiser"]["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(other["optimiser"]["state"][parameter][name], value, rtol=1e-3, atol=1e-4)
