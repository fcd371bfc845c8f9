"""Images: find and read them, of few formats and of a bounded size; and where the path of an entry lies on the disk."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, BinaryIO

from PIL import Image

from soir.files import open_regular, read_bytes
from soir.paths import natural_key

# The file endings that count as images (case-insensitive). Few formats, since every decoder can have bugs that a
# malicious file exploits.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp")

# No image or mask may claim more pixels: as many as Pillow opens without a warning.
MAX_PIXELS = 89_478_485

# No file of an image may be larger, in bytes: an image of full HD takes 12 MB at most, without any compression.
MAX_IMAGE_FILE = 2**28

# How a whole JPEG, and a whole PNG, ends.
END_MARKERS = (b"\xff\xd9", b"IEND\xaeB`\x82")
LONGEST_MARKER = 8

# How much of a file is read for the header of a JPEG: the size of the image stands in it, unless there is much of EXIF.
HEADER = 1024


def image_names(folder: str) -> list[str]:
    """Names of the images in a folder, in natural order. Hidden ones (`._013.jpg` of macOS) are not images.

    Raises OSError if the folder cannot be read.
    """
    names = map(sys.intern, os.listdir(folder))  # all folders of OWID have the same ones, which would take 50 MB
    return sorted((n for n in names if n.lower().endswith(IMAGE_ENDINGS) and n[0] != "."), key=natural_key)


def one_per_stem(names: list[str]) -> tuple[dict[str, str], list[str]]:
    """(stem -> name, other names): of images that differ in their ending only, the one that is first in IMAGE_ENDINGS.

    names  in natural order, in which the stems come back
    """
    chosen: dict[str, str] = {}
    others = []
    for name in names:
        stem = name.rpartition(".")[0]
        first = chosen.setdefault(stem, name)
        if first != name:
            chosen[stem], other = sorted((first, name), key=_rank_of_ending)
            others.append(other)
    return chosen, others


def _rank_of_ending(name: str) -> tuple[int, str]:
    return IMAGE_ENDINGS.index(os.path.splitext(name)[1].lower()), name


def is_image_size(size: Any) -> bool:
    """Whether a value of a file is [height, width] of an image that can be held in memory."""
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        return False
    height, width = size
    return type(height) is type(width) is int and height > 0 and width > 0 and height * width <= MAX_PIXELS


def image_size(path: str) -> tuple[int, int]:
    """(height, width) of an image, from its header. Raises OSError, as `read_image` does."""
    return look_at_header(path)[0]


def look_at_header(path: str) -> tuple[tuple[int, int], bool]:
    """(height, width) of an image, and whether it is stored turned, with an EXIF orientation by which viewers, and
    labelling tools, show it upright. Here, and in Pillow, pixels are those that are stored. Raises OSError."""
    with open_regular(path) as file:
        start = file.read(HEADER)
        has_exif = b"Exif\0\0" in start or b"eXIf" in start
        size = _jpeg_size(start)
        if size and not has_exif:
            return size, False
        image = _open(file, path)
        return image.size[::-1], has_exif and image.getexif().get(0x0112, 1) != 1


def whole_image_size(path: str) -> tuple[int, int]:
    """(height, width) of an image, as `image_size`. Raises OSError also if the image data is cut off.

    A whole JPEG or PNG ends with its end marker. An image without the marker at its end is decoded to find out, since
    some whole files have other bytes after the marker. A BMP has no marker, so it is always decoded.
    """
    with open_regular(path) as file:
        start = file.read(HEADER)
        file.seek(-LONGEST_MARKER, os.SEEK_END)
        end = file.read(LONGEST_MARKER)
    size = _jpeg_size(start) or _size_by_pillow(path)
    if not end.endswith(END_MARKERS):
        read_image(path)
    return size


def _size_by_pillow(path: str) -> tuple[int, int]:
    with open_regular(path) as file:
        return _open(file, path).size[::-1]


def read_image(path: str, luminance: bool = False) -> Image.Image:
    """Read and decode an image, as a PIL image.

    luminance  let the JPEG decoder leave out the colours of an RGB image, which takes half the time
    Raises OSError for a file that is missing, broken, of another format, or too large.
    """
    data = read_bytes(path, MAX_IMAGE_FILE)
    image = _open(io.BytesIO(data), path)  # from memory, since Pillow reads in many small steps: 8 % faster
    try:
        if luminance and image.mode == "RGB":
            image.draft("L", image.size)
        image.load()
    except Exception as error:  # Pillow meets a broken file with OSError, ValueError, SyntaxError, struct.error, ...
        raise OSError(f"cannot read {path}: {error}") from error
    return image


def _open(file: BinaryIO, path: str) -> Image.Image:
    """Let Pillow read the header of an image.

    Not by Image.open, whose guard against decompression bombs prints a warning, and has a limit that is the user's.
    """
    # Here, not above: they take 20 ms, and most runs open no image.
    from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin

    try:
        file.seek(0)
        start = file.read(8)
        file.seek(0)
        if start.startswith(b"\xff\xd8\xff"):
            image: Image.Image = JpegImagePlugin.JpegImageFile(file)
        elif start == b"\x89PNG\r\n\x1a\n":
            image = PngImagePlugin.PngImageFile(file)
        elif start.startswith(b"BM"):
            image = BmpImagePlugin.BmpImageFile(file)
        else:
            raise SyntaxError
    except SyntaxError:  # Pillow's word for a header that is not of the format
        kind = OSError("no JPEG, PNG or BMP")
        raise OSError(f"cannot read {path}: {kind}") from kind
    except Exception as error:
        raise OSError(f"cannot read {path}: {error}") from error
    if image.width * image.height > MAX_PIXELS:
        raise OSError(f"cannot read {path}: too large, {image.width} x {image.height}")
    return image


def _jpeg_size(start: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG, from its first bytes; None if they do not tell, and Pillow is to be asked.

    Pillow takes 25 us for it, and there are 450,000 photographs. Segments: ITU-T T.81, annex B.
    """
    position = 2
    while start[:2] == b"\xff\xd8" and start[position : position + 1] == b"\xff" and position + 10 <= len(start):
        marker, length = start[position + 1], int.from_bytes(start[position + 2 : position + 4], "big")
        if marker in (0xC0, 0xC1, 0xC2):  # frames that Pillow decodes: 8 bits, of 1, 3 or 4 colours
            height = int.from_bytes(start[position + 5 : position + 7], "big")
            width = int.from_bytes(start[position + 7 : position + 9], "big")
            is_usual = start[position + 4] == 8 and start[position + 9] in (1, 3, 4)
            return (height, width) if is_usual and is_image_size((height, width)) else None
        if not (0xE0 <= marker <= 0xEF or marker in (0xC4, 0xDB, 0xDD, 0xFE)):
            return None
        position += 2 + length
    return None
