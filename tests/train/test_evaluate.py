"""Validation: every image once, shown to the net in the view that was asked for."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from senet.data.source import Source, val_loader
from senet.distributed import World
from senet.train.evaluate import View, evaluate
from tests.train.test_step import CONFIG, CPU, trainer_of


def flipped(net: nn.Module, images: Tensor) -> Tensor:
    return (net(images) + net(images.flip(3))) / 2


def test_another_view_shows_other_pixels_of_the_same_images() -> None:
    view = View(flipped, lambda data: replace(data, crop=24))
    net = trainer_of(CONFIG).net.eval()
    loader = val_loader(view.data(CONFIG.data), Source(val_batch=4), 0, 1, CPU)
    batches = [(images, labels) for images, labels, *_ in loader.batches()]
    with torch.inference_mode():
        logits = torch.cat([flipped(net, images) for images, _ in batches])
    assert batches[0][0].shape == (4, 3, 24, 24)
    labels = torch.cat([labels for _, labels in batches])
    errors = evaluate(net, loader, CONFIG, World(0, 1, CPU), view=view)
    loader.close()
    assert errors["images"] == 10
    assert round(errors["top1_error"]) == 10 * int((logits.argmax(1) != labels).sum())
    torch.testing.assert_close(errors["loss"], F.cross_entropy(logits, labels).item(), rtol=1e-5, atol=1e-6)
