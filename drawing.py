"""Draw photographs with boxes and masks, in tiles, for the previews of verify_dataset.py and evaluate_retrieval.py.

from drawing import fit, write_png
"""

from __future__ import annotations

import argparse
import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from soir_common import write_whole

TILE_WIDTH, TILE_HEIGHT, MARGIN = 320, 240, 8
QUERY_COLOUR, MASK_COLOUR, GALLERY_COLOUR = (0, 255, 255), (255, 0, 255), (64, 255, 64)


def fit(image: Image.Image, boxes: list, colour: tuple, mask: np.ndarray | None = None) -> Image.Image:
    """A tile with the image in it; boxes and the outline of the mask are drawn on the tile, so that they stay sharp."""
    scale = min(TILE_WIDTH / image.width, TILE_HEIGHT / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    small = image.resize(size, Image.Resampling.LANCZOS)
    if mask is not None and mask.shape == (image.height, image.width):
        grey = Image.fromarray(np.uint8(mask) * 255).resize(size, Image.Resampling.BILINEAR)
        inside = np.pad(np.asarray(grey) > 127, 1)
        core = inside[1:-1, :-2] & inside[1:-1, 2:] & inside[:-2, 1:-1] & inside[2:, 1:-1]
        pixels = np.array(small)
        pixels[inside[1:-1, 1:-1] & ~core] = MASK_COLOUR
        small = Image.fromarray(pixels)
    draw = ImageDraw.Draw(small)
    for box in boxes:
        # Pillow draws every pixel, also those far out of the image.
        x1, y1, x2, y2 = (min(max(round(value * scale), -4), limit + 4) for value, limit in zip(box, size * 2))
        draw.rectangle((x1 - 2, y1 - 2, x2 + 1, y2 + 1), outline=colour, width=2)
    tile = Image.new("RGB", (TILE_WIDTH, TILE_HEIGHT))
    tile.paste(small, ((TILE_WIDTH - size[0]) // 2, (TILE_HEIGHT - size[1]) // 2))
    return tile


def png_name(text: str) -> str:
    """A type for argparse: the name of a picture to write."""
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"expected a name that ends in .png, found {text}")
    return text


def write_png(path: str, picture: Image.Image) -> None:
    """Write a picture so that it appears whole or not at all. Raises SoirError."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_whole(path, buffer.getbuffer())


def write_text(draw: ImageDraw.ImageDraw, corner: tuple, text: str, size: int) -> None:
    try:
        font = ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has one size only, and Latin letters
        font, text = ImageFont.load_default(), text.encode("latin-1", "replace").decode("latin-1")
    draw.text(corner, text, fill=(230, 230, 230), font=font)
