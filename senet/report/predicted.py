"""Pictures with what a net sees in them."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from senet.plots import COLOURS, FAINT, GRID, INK

SIDE, LINE, GAP, COLUMNS = 224, 19, 16, 5  # pixels of a picture and of a line of text


def sheet(
    pictures: Sequence[Image.Image], names: Sequence[str], tops: Sequence[Sequence[tuple[str, float]]]
) -> Image.Image:
    """Draw each picture above its name and the classes that it is held for, with bars for their probabilities."""
    columns = min(COLUMNS, len(pictures))
    width, height = SIDE + GAP, SIDE + LINE * (1 + max(map(len, tops))) + GAP
    page = Image.new("RGB", (columns * width + GAP, -(-len(pictures) // columns) * height + GAP), "white")
    pen, font, small = ImageDraw.Draw(page), ImageFont.load_default(13), ImageFont.load_default(11)
    for number, (picture, name, top) in enumerate(zip(pictures, names, tops, strict=True)):
        x, y = GAP + number % columns * width, GAP + number // columns * height
        how = Image.Resampling.NEAREST if picture.width < SIDE else Image.Resampling.LANCZOS
        page.paste(picture.resize((SIDE, SIDE), how), (x, y))
        pen.text((x, y + SIDE + 3), _short(name, pen, small, SIDE), FAINT, small)
        for line, (text, share) in enumerate(top, start=1):
            at = y + SIDE + line * LINE
            pen.rectangle((x, at + 1, x + SIDE, at + LINE - 2), GRID)
            pen.rectangle((x, at + 1, x + round(share * SIDE), at + LINE - 2), COLOURS[5])
            pen.text((x + 4, at + 1), _short(text, pen, font, SIDE - 54), INK, font)
            pen.text((x + SIDE - 4, at + 1), f"{100 * share:.1f} %", INK, font, anchor="ra")
    return page


def _short(text: str, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    while len(text) > 4 and pen.textlength(text, font) > width:
        text = text[:-2] + "…"
    return text
