"""Read files that came from elsewhere, images above all: regular files only, of few formats, of a bounded size.

from input_files import image_names, read_image
"""

from __future__ import annotations

import functools
import io
import os
import re
import stat
import sys
from typing import Any, BinaryIO

from PIL import Image

# The file endings that count as images (in any case), and the formats Pillow may take them for. Few formats, since
# every decoder is a way in for a file made to be trouble.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp")
IMAGE_FORMATS = ("JPEG", "PNG", "BMP")

# No image or mask may claim more pixels: as many as Pillow opens without a warning. Its own guard against decompression
# bombs is off, since it prints that warning.
MAX_PIXELS = 89_478_485
Image.MAX_IMAGE_PIXELS = None

# No file of an image may be larger, in bytes: an image of full HD takes 12 MB at most, without any compression.
MAX_IMAGE_FILE = 2**28


def open_regular(path: str) -> BinaryIO:
    """Open a file for reading bytes. A FIFO or a device would block or never end: OSError, as for any other fault."""
    return open(path, "rb", opener=_open_regular)


def read_file(path: str, limit: int) -> bytes:
    """The bytes of a file. Raises OSError, also for more than `limit` bytes. Half the time of open() and read()."""
    descriptor = _open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise OSError(f"too large, {size:,} bytes: {path}")
        return os.read(descriptor, size)
    finally:
        os.close(descriptor)


def _open_regular(name, flags=os.O_RDONLY):
    try:
        descriptor = os.open(name, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a NUL in the path
        raise OSError(f"not a file: {name!r}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"not a regular file: {name}")
    return descriptor


def read_image(path: str, luminance: bool = False) -> Image.Image:
    """Read and decode an image, as a PIL image.

    luminance  let the JPEG decoder leave out the colours of an RGB image, twice as fast
    Raises OSError for a file that is missing, broken, of another format, or too large.
    """
    data = read_file(path, MAX_IMAGE_FILE)
    image = open_image(io.BytesIO(data), path)  # from memory, since Pillow reads in many small steps: 8 % faster
    try:
        if luminance and image.mode == "RGB":
            image.draft("L", image.size)
        image.load()
    except Exception as error:  # Pillow meets a broken file with OSError, ValueError, SyntaxError, struct.error, ...
        raise OSError(f"cannot read {path}: {error}") from error
    return image


def open_image(file: BinaryIO, path: str) -> Image.Image:
    """Let Pillow read the header of an image. Raises OSError, which names the path."""
    try:
        image = Image.open(file, formats=IMAGE_FORMATS)
    except Exception as error:
        raise OSError(f"cannot read {path}: {error}") from error
    if image.width * image.height > MAX_PIXELS:
        raise OSError(f"cannot read {path}: too large, {image.width} x {image.height}")
    return image


def image_size(path: str, is_whole: bool = False) -> tuple[int, int]:
    """(width, height) of an image, from its header. Raises OSError, as `read_image` does.

    is_whole  raise OSError also for a file that breaks off. A whole JPEG or PNG ends with its end marker; only where
              that is missing is the image decoded to see whether it is whole.
    """
    descriptor = _open_regular(path)
    try:
        start, end = os.read(descriptor, 1024), b""
        if is_whole:
            os.lseek(descriptor, -12, os.SEEK_END)
            end = os.read(descriptor, 12)
    finally:
        os.close(descriptor)
    size = jpeg_size(start)
    if size is None:
        with open_regular(path) as file:
            size = open_image(file, path).size
    if is_whole and not end.endswith((b"\xff\xd9", b"IEND\xaeB`\x82")):
        read_image(path)
    return size


def jpeg_size(start: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG, from its first bytes; None if they do not tell, and Pillow is to be asked.

    Pillow takes 25 us for it, and there are 450,000 photographs. Segments: ITU-T T.81, annex B.
    """
    position = 2
    while start[:2] == b"\xff\xd8" and start[position : position + 1] == b"\xff" and position + 10 <= len(start):
        marker, length = start[position + 1], int.from_bytes(start[position + 2 : position + 4], "big")
        if marker in (0xC0, 0xC1, 0xC2):  # frames that Pillow decodes: 8 bits, of 1, 3 or 4 colours
            height = int.from_bytes(start[position + 5 : position + 7], "big")
            width = int.from_bytes(start[position + 7 : position + 9], "big")
            is_usual = start[position + 4] == 8 and start[position + 9] in (1, 3, 4)
            return (width, height) if is_usual and 0 < width * height <= MAX_PIXELS else None
        if not (0xE0 <= marker <= 0xEF or marker in (0xC4, 0xDB, 0xDD, 0xFE)):
            return None
        position += 2 + length
    return None


def is_image_size(height: Any, width: Any) -> bool:
    """Whether both are integers, and an image of that size may be held in memory."""
    return type(height) is type(width) is int and height > 0 and width > 0 and height * width <= MAX_PIXELS


def image_names(folder: str) -> list[str]:
    """Names of the images in a folder, in natural order. Hidden ones (`._013.jpg` of macOS) are not images.

    Interned, since every folder has the same names: a hundred bytes for each of 400,000 queries.
    """
    names = map(sys.intern, os.listdir(folder))
    images = (name for name in names if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith("."))
    return sorted(images, key=natural_key)


@functools.lru_cache(maxsize=10_000)  # every folder of OWID has the same names: 20 us less for each of its masks
def natural_key(name: str) -> tuple[list, str]:
    """Sort key by which 2 comes before 10."""
    parts = re.split("([0-9]+)", name)
    parts[1::2] = map(int, parts[1::2])
    return parts, name
