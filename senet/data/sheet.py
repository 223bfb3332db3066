"""A contact sheet of the first training batch, as the net sees it: to look at what an augmentation does."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from senet.config import Config, Data
from senet.data.loader import Batch
from senet.data.source import Source, train_loader
from senet.errors import UsageError

COLUMNS, ROWS = 8, 4
CAPTION = 16  # pixels
SMALLEST = 112  # a picture on the sheet, at least


def draw(config: Config, source: Source, file: Path) -> str:
    """Write the sheet to `file` (PNG, JPEG: by its ending) and say what is on it. Raises UsageError."""
    shown = min(config.batch, COLUMNS * ROWS) // 2 * 2 or 1
    loader = train_loader(config.data, source, max(config.batch, shown), shown, config.seed, 0, 1, torch.device("cpu"))
    try:
        with closing(loader.batches(0, 0)) as batches:
            batch = next(batches)
    finally:
        loader.close()
    try:
        sheet(batch, config.data, loader.classes).save(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be written: {error}; name a .png file in a folder that exists") from None
    return f"{file}: the first {len(batch.labels)} images of the first epoch, {loader.description['backend']}"


def sheet(batch: Batch, data: Data, classes: tuple[str, ...]) -> Image.Image:
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (data.mean, data.std))
    pixels = ((batch.images * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    side = max(pixels.shape[1], SMALLEST)
    rows = -(-len(pixels) // COLUMNS)
    page = Image.new("RGB", (min(COLUMNS, len(pixels)) * (side + 4) - 4, rows * (side + CAPTION + 4) - 4), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for place, picture in enumerate(pixels):
        x, y = place % COLUMNS * (side + 4), place // COLUMNS * (side + CAPTION + 4)
        page.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST), (x, y))
        caption = _caption(batch, place, classes)
        while len(caption) > 4 and pen.textlength(caption, font) > side:
            caption = caption[:-2] + "…"
        pen.text((x, y + side + 1), caption, "black", font)
    return page


def _caption(batch: Batch, place: int, classes: tuple[str, ...]) -> str:
    def name(label: int) -> str:
        return classes[label] if classes else str(label)

    own = name(int(batch.labels[place]))
    if batch.others is None or batch.weights is None:
        return own
    return f"{float(batch.weights[place]):.2f} {own} + {name(int(batch.others[place]))}"
