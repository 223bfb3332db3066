"""Validation: every image counted once, whatever the batches."""

from __future__ import annotations

import pytest
import torch

from senet.config import from_dict
from senet.data.source import Source, val_loader
from senet.distributed import World
from senet.models import build
from senet.train.evaluate import evaluate
from tests.helpers import TINY

CPU = torch.device("cpu")


def test_a_smaller_last_batch_is_computed_in_the_shape_of_the_others() -> None:
    """Otherwise each start would compile, or try algorithms, for that shape too."""
    data = {"set": "synthetic", "classes": 3, "crop": 32, "train_images": 12, "val_images": 50}
    config = from_dict(TINY | {"data": data})
    net = build(config.net, 3)
    seen: list[int] = []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    errors = evaluate(net, val_loader(config.data, Source(val_batch=16), 0, 1, CPU), config, World(0, 1, CPU))
    assert seen == [16, 16, 16, 16]
    assert errors["images"] == 50
    whole = evaluate(net, val_loader(config.data, Source(val_batch=50), 0, 1, CPU), config, World(0, 1, CPU))
    assert errors == pytest.approx(whole, abs=1e-5)
    assert not net.training
