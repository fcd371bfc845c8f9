"""Pictures: photographs with boxes and masks, in tiles, laid out in rows.

from soir_pictures import Tile, draw_tile, lay_out, write_png
"""

from __future__ import annotations

import io
from typing import NamedTuple, Tuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from soir_common import Box
from soir_files import write_whole
from soir_images import full_path, read_image

Colour = Tuple[int, int, int]

TILE_WIDTH, TILE_HEIGHT, MARGIN, TITLE_HEIGHT = 320, 240, 8, 24
ROW_HEIGHT = TITLE_HEIGHT + TILE_HEIGHT + 3 * MARGIN + 6
QUERY_COLOUR, MASK_COLOUR, GALLERY_COLOUR, WRONG_COLOUR = (0, 255, 255), (255, 0, 255), (64, 255, 64), (255, 64, 64)
BACKGROUND, TEXT_COLOUR = (32, 32, 32), (230, 230, 230)


class Tile(NamedTuple):
    """A picture of TILE_WIDTH x TILE_HEIGHT (None: nothing to show), its label, and the colour of its frame."""

    label: str
    image: Image.Image | None
    frame: Colour | None = None


def open_photograph(path: str, base_path: str | None) -> Image.Image | None:
    """The photograph of an entry, RGB; None if it cannot be read."""
    full = full_path(path, base_path)
    try:
        return read_image(full).convert("RGB") if full else None
    except OSError:
        return None


def draw_tile(photograph: Image.Image, boxes: list[Box], colour: Colour, mask: np.ndarray | None = None) -> Image.Image:
    """A tile with a photograph in it. Boxes and the outline of the mask are drawn on the tile, so that they stay sharp.

    boxes  (x1, y1, x2, y2) in pixels of the photograph
    mask   bool [height, width] of the photograph
    """
    scale = min(TILE_WIDTH / photograph.width, TILE_HEIGHT / photograph.height)
    size = max(1, round(photograph.width * scale)), max(1, round(photograph.height * scale))
    small = photograph.resize(size, Image.Resampling.LANCZOS)
    if mask is not None and mask.shape == (photograph.height, photograph.width):
        small = _draw_outline(small, mask)
    draw = ImageDraw.Draw(small)
    for box in boxes:
        # Pillow draws every pixel, also those far out of the image.
        x1, y1, x2, y2 = (min(max(round(value * scale), -4), limit + 4) for value, limit in zip(box, size * 2))
        draw.rectangle((x1 - 2, y1 - 2, x2 + 1, y2 + 1), outline=colour, width=2)
    tile = Image.new("RGB", (TILE_WIDTH, TILE_HEIGHT))
    tile.paste(small, ((TILE_WIDTH - size[0]) // 2, (TILE_HEIGHT - size[1]) // 2))
    return tile


def _draw_outline(small: Image.Image, mask: np.ndarray) -> Image.Image:
    grey = Image.fromarray(np.uint8(mask) * 255).resize(small.size, Image.Resampling.BILINEAR)
    inside = np.pad(np.asarray(grey) > 127, 1)
    core = inside[1:-1, :-2] & inside[1:-1, 2:] & inside[:-2, 1:-1] & inside[2:, 1:-1]
    pixels = np.array(small)
    pixels[inside[1:-1, 1:-1] & ~core] = MASK_COLOUR
    return Image.fromarray(pixels)


def zoom_on(photograph: Image.Image, box: Box) -> tuple[Image.Image, Box]:
    """The part of a photograph around a box, and the box in it."""
    x1, y1, x2, y2 = box
    half = max(x2 - x1, (y2 - y1) * TILE_WIDTH / TILE_HEIGHT, 2) * 0.8
    centre = (x1 + x2) / 2, (y1 + y2) / 2
    around = (centre[0] - half, centre[1] - half * 0.75, centre[0] + half, centre[1] + half * 0.75)
    # A crop that reaches far out of the photograph would be large, however small that is.
    left, top, right, bottom = (min(max(round(v), 0), limit) for v, limit in zip(around, photograph.size * 2))
    if left >= right or top >= bottom:  # the box lies outside
        left, top, right, bottom = (0, 0, *photograph.size)
    return photograph.crop((left, top, right, bottom)), (x1 - left, y1 - top, x2 - left, y2 - top)


def lay_out(rows: list[tuple[str, list[Tile]]]) -> Image.Image:
    """One picture of rows of tiles, each row with a title above it and each tile with its label below it."""
    columns = max(len(tiles) for _, tiles in rows)
    picture = Image.new("RGB", (columns * (TILE_WIDTH + MARGIN) + MARGIN, len(rows) * ROW_HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for number, (title, tiles) in enumerate(rows):
        top = number * ROW_HEIGHT
        _write_text(draw, (MARGIN, top + MARGIN), title, 16)
        for column, tile in enumerate(tiles):
            left = MARGIN + column * (TILE_WIDTH + MARGIN)
            corner = left, top + TITLE_HEIGHT + MARGIN
            picture.paste(tile.image or Image.new("RGB", (TILE_WIDTH, TILE_HEIGHT)), corner)
            if tile.frame:
                x, y = corner
                draw.rectangle((x - 3, y - 3, x + TILE_WIDTH + 2, y + TILE_HEIGHT + 2), outline=tile.frame, width=3)
            _write_text(draw, (left + 2, corner[1] + TILE_HEIGHT + 4), tile.label, 11)
    return picture


def _write_text(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, size: int) -> None:
    try:
        font = ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has one size only, and Latin letters
        font, text = ImageFont.load_default(), text.encode("latin-1", "replace").decode("latin-1")
    draw.text(corner, text, fill=TEXT_COLOUR, font=font)


def write_png(path: str, picture: Image.Image) -> None:
    """Write a picture so that it appears whole or not at all. Raises SoirError."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_whole(path, buffer.getbuffer())
