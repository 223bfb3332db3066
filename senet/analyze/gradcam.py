"""Where in an image a net sees a class: Grad-CAM (Selvaraju et al. 2017)."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from senet.plots import page


def gradcam(net: nn.Module, images: Tensor, label: int | None) -> tuple[Tensor, Tensor]:
    """Return maps [b, H, W] in 0..1 of what speaks for a class in images [b, 3, H, W], and the probabilities [b,
    classes]. Without a `label` it is the class that each image is held for.

    The maps are those of the last layer that keeps height and width.
    """
    last: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] > 1:
            last[:] = [output]

    handles = [module.register_forward_hook(keep) for module in net.modules()]
    try:
        with torch.enable_grad():
            logits = net.eval()(images.requires_grad_()).float()
            labels = logits.argmax(1) if label is None else torch.full_like(logits[:, 0], label, dtype=torch.int64)
            (slopes,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), last)
    finally:
        for handle in handles:
            handle.remove()
    maps = (last[0] * slopes.mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu().detach().float()
    maps = F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12), logits.softmax(1).detach()


def draw(pictures: Sequence[Image.Image], maps: Sequence[Tensor], titles: Sequence[str], file: Path) -> None:
    """Draw each picture, and beside it the same with its map on it."""
    with page(file, "Grad-CAM", 2 * len(pictures), width=2.6, height=2.8, columns=4) as panels:
        for number, (picture, heat, title) in enumerate(zip(pictures, maps, titles, strict=True)):
            plain, warm = panels[2 * number : 2 * number + 2]
            for axes in (plain, warm):
                axes.imshow(picture)
                axes.set_axis_off()
            warm.imshow(heat.cpu().numpy(), cmap="jet", alpha=0.45, extent=(0, picture.width, picture.height, 0))
            plain.set_title(title, fontsize=8)
