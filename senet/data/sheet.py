"""A contact sheet of the first training batch, as the net sees it: to look at what an augmentation does."""

from __future__ import annotations

from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from senet.config import Config, Data
from senet.data.imagenet import readable
from senet.data.loader import Batch
from senet.data.source import Source, train_loader
from senet.errors import UsageError

COLUMNS, ROWS = 8, 4
CAPTION = 16  # pixels
SMALLEST = 112  # a picture on the sheet, at least


def draw(config: Config, source: Source, file: Path) -> str:
    """Write the sheet to `file` (PNG, JPEG: by its ending); returns what is on it, in a sentence. Raises UsageError."""
    shown, step = min(config.batch, COLUMNS * ROWS), 2 * config.data.augment.repeats  # pairs, which mixing needs
    loader = train_loader(config.data, source, step, step, config.seed, 0, 1, torch.device("cpu"))
    try:
        with closing(loader.batches(0, 0)) as batches:
            columns = zip(*(batch[:4] for batch in islice(batches, -(-shown // step))), strict=True)
            parts: list[Any] = [None if part[0] is None else torch.cat(part)[:shown] for part in columns]
    finally:
        loader.close()
    try:
        sheet(Batch(*parts), config.data, loader.classes).save(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be written: {error}; name a .png file in a folder that exists") from None
    return f"{file}: the first {len(parts[1])} images of the first epoch, {loader.description['backend']}"


def sheet(batch: Batch, data: Data, classes: tuple[str, ...]) -> Image.Image:
    """Draw the images of a batch in rows, each above the name of its class and of what it is mixed with."""
    shown = pictures(batch.images, data)
    side = shown[0].width
    rows = -(-len(shown) // COLUMNS)
    page = Image.new("RGB", (min(COLUMNS, len(shown)) * (side + 4) - 4, rows * (side + CAPTION + 4) - 4), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for number, picture in enumerate(shown):
        x, y = number % COLUMNS * (side + 4), number // COLUMNS * (side + CAPTION + 4)
        page.paste(picture, (x, y))
        caption = _caption(batch, number, classes)
        while len(caption) > 4 and pen.textlength(caption, font) > side:
            caption = caption[:-2] + "…"
        pen.text((x, y + side + 1), caption, "black", font)
    return page


def pictures(images: Tensor, data: Data) -> list[Image.Image]:
    """Return normalised images [b, 3, H, W] as one can look at them; small ones are enlarged."""
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (data.mean, data.std))
    pixels = ((images.float().cpu() * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    side = max(pixels.shape[1], SMALLEST)
    return [Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST) for picture in pixels]


def _caption(batch: Batch, number: int, classes: tuple[str, ...]) -> str:
    def name(label: int) -> str:
        return readable(classes[label]) if classes else str(label)

    own = name(int(batch.labels[number]))
    if batch.others is None or batch.weights is None:
        return own
    return f"{float(batch.weights[number]):.2f} {own} + {name(int(batch.others[number]))}"
