"""Masks as images: which of their pixels show the object.

A mask is an image of two levels: background, which is black, and object. Other kinds of masks are read if they are
unambiguous; otherwise they are refused.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from soir import rle
from soir.entry import Rle
from soir.images import read_image
from soir.rle import MaskBox

# In a JPEG mask, values up to this are background and values from 255 - this up are object; they differ from 0 and 255
# by the ringing around the contour. At JPEG qualities down to 90 there are no values in between.
RINGING = 24

# An image of more levels than this, beyond black, is no label map.
MAX_LABELS = 16

# More pixels than this that are neither background nor object, and not on the contour, are no accident.
MANY = 16

# In a colour JPEG, a bright pixel that differs by more from the usual one, in one of its channels, has another colour.
OTHER_COLOUR = 96

# A contour is a fringe of pixels of which each is near the background and near the object: at most this far, in pixels.
FRINGE = 2


class ImageMask(NamedTuple):
    """What a mask image shows."""

    rle: Rle  # compressed
    box: MaskBox  # half-open (x1, y1, x2, y2)
    is_soft: bool  # it has more than two levels, and was cut at half of its largest value


def read_mask_image(path: str) -> ImageMask | None:
    """Read a mask image; None if no pixel is set.

    A JPEG mask holds 0 and 255, with ringing around every contour: a pixel above 127 is the object. A mask in a
    lossless format may hold 0/1, 0/255 or 0/65535: a pixel above half of the largest value is the object. So it is in a
    soft JPEG mask too.
    Raises OSError if the file is no image that can be read. Raises ValueError, with the reason as its text, for a mask
    with several labels, or of far too many runs.
    """
    image = read_image(path, luminance=True)
    # Only the rectangle that is not black is looked at; that is most of the speed.
    rectangle = image.getbbox() if image.mode in ("1", "L", "RGB") else (0, 0, image.width, image.height)
    if rectangle is None:
        return None
    is_jpeg = image.format in ("JPEG", "MPO")  # a JPEG with a second image in it, of which nobody looks at the second
    part = image.crop(rectangle)
    values, is_soft = _read_lossy(part, path, rectangle) if is_jpeg else _read_lossless(part)
    threshold = 127 if is_jpeg and not is_soft else values.max() / 2
    encoded = rle.encode_mask(values > threshold, (rectangle[1], rectangle[0]), (image.height, image.width))
    return ImageMask(*encoded, is_soft) if encoded else None


def _read_lossy(part: Image.Image, path: str, rectangle: tuple[int, int, int, int]) -> tuple[np.ndarray, bool]:
    """The brightness of a part of a JPEG that was read by its luminance, and whether it is soft."""
    values = np.asarray(_brightness(_opaque(part)))
    quarter = values[::4]  # will do to tell
    if not ((quarter > RINGING) & (quarter < 255 - RINGING)).any():
        return values, False
    # Luminance makes a red object dark grey, and a blue one almost black: the file is read again, in colour.
    part = _opaque(read_image(path).crop(rectangle))
    values = np.asarray(_brightness(part))
    if part.mode == "RGB":
        pixels = np.asarray(part, dtype=np.int16)
        dark, bright = values <= 64, values >= 192
        usual = np.median(pixels[bright], axis=0) if bright.any() else np.zeros(3)
        same = bright & (np.abs(pixels - usual).max(axis=2) <= OTHER_COLOUR)
        other_coloured = _count_far(dark, same) - _count_far(dark, bright)  # without those that are not bright at all
        if other_coloured > max(MANY, int(np.count_nonzero(~dark)) // 20):
            raise ValueError("mask with several labels")
    return values, _is_soft(values, 255)


def _read_lossless(part: Image.Image) -> tuple[np.ndarray, bool]:
    """The brightness of a part of a lossless mask, and whether it is soft. Raises ValueError for a label map."""
    part = _opaque(part)
    values = np.asarray(_brightness(part))
    top = int(values.max())
    if np.count_nonzero(values) == np.count_nonzero(values == top) and not _is_coloured(part):
        return values, False
    levels = part.getcolors(MAX_LABELS + 1) if part.mode in ("1", "L", "RGB") else np.unique(values)[: MAX_LABELS + 2]
    if levels is None or len(levels) > MAX_LABELS + 1:
        return values, _is_soft(values, top)
    pixels = np.asarray(part)
    same = pixels == pixels.reshape(values.size, -1)[values.argmax()]
    if _count_far(values == 0, same.reshape(*values.shape, -1).all(axis=2)) > MANY:
        raise ValueError("mask with several labels")
    return values, False


def _opaque(image: Image.Image) -> Image.Image:
    """A mask in any mode -> one channel, or RGB: its alpha if that is not constant, else its colours."""
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    if image.mode not in ("LA", "RGBA"):
        return image
    alpha = image.getchannel("A")
    lowest, highest = map(int, alpha.getextrema())  # type: ignore[arg-type]
    return image.convert(image.mode[:-1]) if lowest == highest > 0 else alpha  # of alpha 0, nothing can be seen


def _brightness(image: Image.Image) -> Image.Image:
    return reduce(ImageChops.lighter, image.split()) if image.mode == "RGB" else image


def _is_coloured(image: Image.Image) -> bool:
    bands = image.split() if image.mode == "RGB" else ()
    return any(ImageChops.difference(bands[0], other).getbbox() for other in bands[1:])


def _is_soft(values: np.ndarray, top: int) -> bool:
    """Whether what is neither dark nor bright is more than a fringe along the contour, so a matte, say."""
    dark = values <= top / 4
    return _count_far(dark, values >= top * 3 / 4) > max(MANY, int(np.count_nonzero(~dark)) // 100)


def _count_far(dark: np.ndarray, bright: np.ndarray) -> int:
    """How many of the pixels that are neither dark nor bright (both bool [h, w]) are not near both."""
    levels = np.pad(np.where(dark, 0, np.where(bright, 255, 128)).astype(np.uint8), FRINGE)
    image, reach = Image.fromarray(levels), 2 * FRINGE + 1
    is_near_dark = np.asarray(image.filter(ImageFilter.MinFilter(reach))) == 0
    is_near_bright = np.asarray(image.filter(ImageFilter.MaxFilter(reach))) == 255
    return int(np.count_nonzero((levels == 128) & ~(is_near_dark & is_near_bright)))
