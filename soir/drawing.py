"""Pictures: photographs with boxes and masks, in tiles, laid out in rows on pages."""

from __future__ import annotations

import io
import os
from typing import Iterable, NamedTuple, Tuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from soir.files import write_whole
from soir.geometry import Box
from soir.images import read_image
from soir.paths import full_path

Colour = Tuple[int, int, int]
Boxes = Iterable[Box]
Masks = Iterable[np.ndarray]

TILE_WIDTH, TILE_HEIGHT, MARGIN, TITLE_HEIGHT, LABEL_HEIGHT = 320, 240, 8, 24, 18
LINE_HEIGHT = TITLE_HEIGHT + TILE_HEIGHT + LABEL_HEIGHT + 2 * MARGIN
COLUMNS = 8  # tiles beside each other; a row of more goes on in the next line

# Viewers take pictures of 16,384 pixels, and of 65,535 at the most: 40 lines are 12,000.
LINES_OF_PAGE = 40

QUERY_COLOUR, MASK_COLOUR, GALLERY_COLOUR, WRONG_COLOUR = (0, 255, 255), (255, 0, 255), (64, 255, 64), (255, 64, 64)
PREDICTED_COLOUR = (255, 200, 0)
BACKGROUND, TEXT_COLOUR, DARK = (32, 32, 32), (230, 230, 230), (0, 0, 0)


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


def draw_tile(
    photograph: Image.Image, boxes: Boxes, colour: Colour, masks: Masks = (), predicted: Boxes = ()
) -> Image.Image:
    """A tile with a photograph in it. Boxes and outlines are drawn on the tile, so that they stay sharp.

    boxes      (x1, y1, x2, y2) in pixels of the photograph, drawn in the colour
    masks      bool [height, width] of the photograph, drawn as outlines
    predicted  boxes of a run, drawn dashed
    """
    scale = min(TILE_WIDTH / photograph.width, TILE_HEIGHT / photograph.height)
    size = max(1, round(photograph.width * scale)), max(1, round(photograph.height * scale))
    small = photograph.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    for mask in masks:
        _draw_outline(small, mask)
    draw = ImageDraw.Draw(small)
    for box in boxes:
        _draw_box(draw, _scaled(box, scale, size), colour)
    for box in predicted:
        _draw_dashes(draw, _scaled(box, scale, size))
    tile = Image.new("RGB", (TILE_WIDTH, TILE_HEIGHT))
    tile.paste(small, ((TILE_WIDTH - size[0]) // 2, (TILE_HEIGHT - size[1]) // 2))
    return tile


def _scaled(box: Box, scale: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    # Pillow draws every pixel, also those far out of the image, so they are kept near it.
    x1, y1, x2, y2 = (min(max(round(value * scale), -6), limit + 6) for value, limit in zip(box, size * 2))
    return x1, y1, x2, y2


def _draw_box(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], colour: Colour) -> None:
    """A line of two pixels around a box, with a dark one of one around it, so that it can be seen on any colour."""
    x1, y1, x2, y2 = box
    draw.rectangle((x1 - 3, y1 - 3, x2 + 2, y2 + 2), outline=DARK, width=1)
    draw.rectangle((x1 - 2, y1 - 2, x2 + 1, y2 + 1), outline=colour, width=2)


def _draw_dashes(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int]) -> None:
    """The same in dashes, of PREDICTED_COLOUR; between them, a box at the same place shows."""
    x1, y1, x2, y2 = box
    dashes = []
    for start in range(x1 - 2, x2 + 2, 12):
        stop = min(start + 5, x2 + 1)
        dashes += [(start, y1 - 2, stop, y1 - 1), (start, y2, stop, y2 + 1)]
    for start in range(y1 - 2, y2 + 2, 12):
        stop = min(start + 5, y2 + 1)
        dashes += [(x1 - 2, start, x1 - 1, stop), (x2, start, x2 + 1, stop)]
    for left, top, right, bottom in dashes:
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=DARK)
    for dash in dashes:
        draw.rectangle(dash, fill=PREDICTED_COLOUR)


def _draw_outline(small: Image.Image, mask: np.ndarray) -> None:
    """The outline of a mask, a line of one pixel just inside it, with a dark one just outside."""
    grey = Image.fromarray(np.uint8(mask) * 255).resize(small.size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    inside = grey.point(lambda value: 255 * (value > 127))
    bordered = Image.new("L", (small.width + 2, small.height + 2))  # so that a mask at the edge is closed there
    bordered.paste(inside, (1, 1))
    window = (1, 1, small.width + 1, small.height + 1)
    core = bordered.filter(ImageFilter.MinFilter(3)).crop(window)
    grown = bordered.filter(ImageFilter.MaxFilter(3)).crop(window)
    pixels, inner = np.array(small), np.asarray(inside) > 0
    pixels[(np.asarray(grown) > 0) & ~inner] = DARK
    pixels[inner & (np.asarray(core) == 0)] = MASK_COLOUR
    small.paste(Image.fromarray(pixels))


def draw_zoom(photograph: Image.Image, box: Box, boxes: Boxes, colour: Colour, masks: Masks) -> Image.Image:
    """As `draw_tile`, of the surroundings of a box only."""
    left, top, right, bottom = _surroundings(box, photograph.size)
    return draw_tile(
        photograph.crop((left, top, right, bottom)),
        [(x1 - left, y1 - top, x2 - left, y2 - top) for x1, y1, x2, y2 in boxes],
        colour,
        [mask[top:bottom, left:right] for mask in masks],
    )


def _surroundings(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a part of an image of (width, height) around a box."""
    x1, y1, x2, y2 = box
    half = max(x2 - x1, (y2 - y1) * TILE_WIDTH / TILE_HEIGHT, 2) * 0.8
    centre = (x1 + x2) / 2, (y1 + y2) / 2
    around = (centre[0] - half, centre[1] - half * 0.75, centre[0] + half, centre[1] + half * 0.75)
    # Clipped to the photograph: around a box that reaches far out of it, the part would be huge.
    left, top, right, bottom = (min(max(round(v), 0), limit) for v, limit in zip(around, size * 2))
    if left >= right or top >= bottom:  # the box lies outside
        return 0, 0, size[0], size[1]
    return left, top, right, bottom


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Path -> the shortest end of it, in whole folders, that no other of the paths has."""
    paths = list(dict.fromkeys(paths))
    names = {}
    for path in paths:
        parts = path.split("/")
        ends = ("/".join(parts[-count:]) for count in range(1, len(parts)))
        names[path] = next((end for end in ends if sum(f"/{other}".endswith(f"/{end}") for other in paths) == 1), path)
    return names


def lay_out(rows: list[tuple[str, list[Tile]]]) -> list[Image.Image]:
    """Pages of rows of tiles, each row with a title above it and each tile with its label below it."""
    lines = []
    for title, tiles in rows:
        for start in range(0, max(len(tiles), 1), COLUMNS):
            lines.append((title if not start else "", tiles[start : start + COLUMNS]))
    return [_draw_page(lines[start : start + LINES_OF_PAGE]) for start in range(0, len(lines), LINES_OF_PAGE)]


def _draw_page(lines: list[tuple[str, list[Tile]]]) -> Image.Image:
    columns = max(len(tiles) for _, tiles in lines)
    width = columns * (TILE_WIDTH + MARGIN) + MARGIN
    page = Image.new("RGB", (width, len(lines) * LINE_HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(page)
    for number, (title, tiles) in enumerate(lines):
        top = number * LINE_HEIGHT
        _write_text(draw, (MARGIN, top + MARGIN), title, 16, width - 2 * MARGIN)
        for column, tile in enumerate(tiles):
            x, y = MARGIN + column * (TILE_WIDTH + MARGIN), top + TITLE_HEIGHT + MARGIN
            page.paste(tile.image or Image.new("RGB", (TILE_WIDTH, TILE_HEIGHT)), (x, y))
            if tile.frame:
                draw.rectangle((x - 3, y - 3, x + TILE_WIDTH + 2, y + TILE_HEIGHT + 2), outline=tile.frame, width=3)
            _write_text(draw, (x + 2, y + TILE_HEIGHT + 4), tile.label, 11, TILE_WIDTH - 4)
    return page


def _write_text(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, size: int, width: int) -> None:
    """Write a line of text, cut in its middle so that it takes at most so many pixels."""
    try:
        font = ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has one size only, and Latin letters
        font, text = ImageFont.load_default(), text.encode("latin-1", "replace").decode("latin-1")
    left = len(text)
    line = text
    while left > 4 and font.getlength(line) > width:
        left -= 1
        line = f"{text[: left // 2]}...{text[-(left - left // 2) :]}"
    draw.text(corner, line, fill=TEXT_COLOUR, font=font)


def page_names(path: str, count: int) -> list[str]:
    """The names of the files that `write_pages` writes: the path itself, or for several pages preview-1.png, ..."""
    start, ending = os.path.splitext(path)
    return [path] if count == 1 else [f"{start}-{number}{ending}" for number in range(1, count + 1)]


def write_pages(path: str, pages: list[Image.Image]) -> list[str]:
    """Write pages as PNG, each file whole or not at all. Returns their names. Raises SoirError."""
    names = page_names(path, len(pages))
    for name, page in zip(names, pages):
        buffer = io.BytesIO()
        page.save(buffer, format="PNG", compress_level=1)  # level 6 takes longer than all of the drawing
        write_whole(name, buffer.getbuffer())
    return names
