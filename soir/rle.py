"""COCO RLE: make it from pixels, run lengths or polygons; read pixels and boxes from it; check that it is valid.

A mask is {"size": [height, width], "counts": ...}. Its counts are run lengths in column-major order, the first one
background; as a list, or compressed to text. The format: https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.h
"""

from __future__ import annotations

import array
import math
from typing import Any, Iterable, Iterator, NamedTuple, Sequence, Tuple

import numpy as np
import pycocotools.mask as coco_mask

from soir import geometry
from soir.entry import Rle
from soir.images import is_image_size

MaskBox = Tuple[int, int, int, int]  # (x1, y1, x2, y2), half-open

# The longest compressed mask that is read, in characters. A checkerboard of full HD has 2 million, a real mask of that
# size a few thousand. Decoding takes about 100 bytes of memory per character.
MAX_COUNTS = 4_000_000

# How long the outlines of an object's polygons may be, in height + width of the image: pycocotools walks them in steps
# of a fifth of a pixel, and would allocate gigabytes.
MAX_OUTLINE = 20

# Masks that are decoded at a time: enough for NumPy to be fast, few enough to stay in the cache.
CHUNK = 256


def encode_mask(foreground: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> tuple[Rle, MaskBox] | None:
    """Encode a mask of which only a rectangle is not empty: its compressed RLE and its box; None if no pixel is set.

    pycocotools takes ten times as long.

    foreground  bool [h, w], the rectangle
    corner      (y, x) of its upper left pixel in the image
    size        (height, width) of the image
    Raises ValueError for noise.
    """
    (h, w), (top, left), (height, width) = foreground.shape, corner, size
    differs = np.empty((h + 1, w), dtype=bool)  # from the pixel above; above and below the rectangle is background
    differs[0], differs[-1] = foreground[0], foreground[-1]
    np.not_equal(foreground[1:], foreground[:-1], out=differs[1:-1])
    most = MAX_COUNTS // 7  # runs; each takes up to 7 characters
    if differs.size > most and np.count_nonzero(differs) > most:
        raise ValueError("mask of far too many runs")
    flat = np.flatnonzero(differs)
    if not flat.size:
        return None
    ys = flat // w
    edges = (left + flat - ys * w) * height + (top + ys)  # where runs start and end, in turn
    edges.sort()
    first, last = int(edges[0]), int(edges[-1])
    runs = np.empty(edges.size + 1, dtype=np.uint32)
    runs[0], runs[-1] = first, height * width - last
    runs[1:-1] = edges[1:] - edges[:-1]
    box = first // height, top + int(ys[0]), (last - 1) // height + 1, top + int(ys[-1])
    return compress_runs(runs, size), box


def compress_runs(runs: np.ndarray, size: tuple[int, int]) -> Rle:
    """Run lengths -> compressed RLE.

    runs  uint32 [N], that sum to height * width
    size  (height, width)
    """
    height, width = size
    if not runs[1:].all():  # merge runs of length 0 with their neighbours, so that each mask has one encoding
        edges, times = np.unique(np.cumsum(runs, dtype=np.int64)[:-1], return_counts=True)
        edges = edges[(times % 2 == 1) & (edges < height * width)]
        runs = np.diff(np.concatenate(([0], edges, [height * width]))).astype(np.uint32)
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def as_runs(counts: Any) -> np.ndarray | None:
    """A list of run lengths, from a file -> uint32 [N]; None if it is not a list of integers from 0 to 2^32 - 1."""
    try:
        # The strictest and fastest conversion: no floats, no text.
        return None if bool in map(type, counts) else np.asarray(array.array("I", counts))
    except (TypeError, OverflowError):
        return None


def fills(runs: np.ndarray, size: Sequence[int]) -> bool:
    """Whether run lengths, uint32 [N], sum up to height * width."""
    return bool(runs.sum(dtype=np.uint64) == size[0] * size[1])


def compress_rle(record: Rle) -> Rle:
    """RLE of a COCO file, its counts a list or compressed -> compressed RLE. Raises ValueError if it is not valid."""
    size, counts = record.get("size"), record["counts"]
    if not isinstance(size, list) or len(size) != 2:
        raise ValueError("size is not [height, width]")
    if isinstance(counts, str):
        if len(counts) > MAX_COUNTS:
            raise ValueError("counts are far too long")
        counts = decode_counts([counts.encode("utf-8", "surrogatepass")])[0].tolist()
    runs = as_runs(counts)
    if runs is None:
        raise ValueError("counts are not run lengths")
    if not is_image_size(size):
        raise ValueError("size is not [height, width] of an image")
    if not fills(runs, size):
        raise ValueError("run lengths do not fill the image")
    return compress_runs(runs, (size[0], size[1]))


def read_segmentation(segmentation: Any, size: tuple[int, int]) -> tuple[Rle, MaskBox]:
    """A COCO segmentation of an image of (height, width) -> compressed RLE, and its half-open box.

    segmentation  compressed RLE, polygons [[x1, y1, x2, ...], ...], or the ValueError that `compress_rle` raised
    Raises ValueError if it is not valid, of another size, or empty.
    """
    if isinstance(segmentation, ValueError):
        raise segmentation
    if isinstance(segmentation, list):
        rle = draw_polygons(segmentation, size)
    elif isinstance(segmentation, dict) and "counts" in segmentation:
        rle = segmentation
    else:
        raise ValueError("no segmentation")
    if rle["size"] != list(size):
        raise ValueError("its size is not the image's")
    (box,) = boxes_of_masks([rle])
    if box is None:
        raise ValueError("no pixel is set")
    return rle, box


def boxes_of_masks(masks: list[Rle]) -> list[MaskBox | None]:
    """Half-open boxes of valid compressed masks that have no run of length 0 but the first; None of an empty one."""
    boxes = np.array(coco_mask.toBbox(masks), dtype=int).tolist()
    return [(x, y, x + width, y + height) if width else None for x, y, width, height in boxes]


def draw_polygons(polygons: list[Any], size: tuple[int, int]) -> Rle:
    """COCO polygons -> compressed RLE of their union, as pycocotools draws them.

    polygons  [[x1, y1, x2, y2, x3, y3, ...], ...] in pixels
    size      (height, width) of the image
    Raises ValueError if there are none, or one is not a list of numbers like that, or is far larger than the image.
    """
    height, width = size
    if not polygons:
        raise ValueError("no segmentation")
    left = float(MAX_OUTLINE * (height + width))
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon is not [x1, y1, x2, y2, x3, y3, ...]")
        if not all(map(geometry.is_coordinate, polygon)):
            raise ValueError("a polygon is not made of numbers")
        points = np.array(polygon, dtype=float).reshape(-1, 2)
        left -= np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
        if left < 0 or np.abs(points).max() > MAX_OUTLINE * (height + width):
            raise ValueError("a polygon is far larger than the image")
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def is_polygons(mask: Any) -> bool:
    """Whether a mask of an annotation file is polygons, [[x1, y1, x2, ...], ...], valid or not."""
    if not isinstance(mask, (list, tuple)) or not mask:
        return False
    return all(isinstance(row, (list, tuple)) and bool(row) and type(row[0]) in (int, float) for row in mask)


def polygons_size(polygons: Any) -> tuple[int, int]:
    """The smallest (height, width) of an image in which no polygon is cut off. Raises ValueError."""
    if not all(geometry.is_coordinate(value) for polygon in polygons for value in polygon):
        raise ValueError("a polygon is not made of numbers")
    sides = [max((v for polygon in polygons for v in polygon[start::2]), default=0) for start in (1, 0)]
    height, width = (max(1, math.ceil(side)) for side in sides)
    if not is_image_size((height, width)):
        raise ValueError("a polygon is larger than any image")
    return height, width


class MaskReading(NamedTuple):
    """What a mask of an annotation file, which may be anything, turns out to be."""

    error: str | None  # the check of verify_dataset.py that it fails
    detail: str = ""
    size: tuple[int, int] | None = None  # (height, width), where an image can have it
    box: MaskBox | None = None  # of its foreground; None if it has none, or an error


def examine_masks(masks: Iterable[Any]) -> Iterator[MaskReading]:
    """Yield a MaskReading for each mask. Any value at all is safe, and many masks are looked at in one go."""
    chunk: list[Any] = []
    length = 0
    for mask in masks:
        counts = mask.get("counts") if isinstance(mask, dict) else None
        more = min(len(counts), MAX_COUNTS) if isinstance(counts, (str, bytes)) else 0
        if len(chunk) == CHUNK or length + more > MAX_COUNTS:  # of masks as long as they may be, one at a time
            yield from _examine_chunk(chunk)
            chunk, length = [], 0
        chunk.append(mask)
        length += more
    yield from _examine_chunk(chunk)


def _examine_chunk(masks: list[Any]) -> list[MaskReading]:
    readings = [_examine_form(mask) for mask in masks]
    chosen = [index for index, reading in enumerate(readings) if not reading.error and not reading.box]
    runs, ends = decode_counts([_as_bytes(masks[index]["counts"]) for index in chosen])
    starts = np.concatenate(([0], ends[:-1]))
    sound: dict[int, Rle] = {}  # index -> the mask, without runs of length 0 but the first
    for index, start, end in zip(chosen, starts.tolist(), ends.tolist()):
        (height, width), own = masks[index]["size"], runs[start:end]
        error, detail = None, ""
        if not own.size:
            error, detail = "mask-malformed", "counts is cut short or has a character that does not belong"
        elif own.min() < 0:
            error, detail = "mask-malformed", "counts holds a negative run"
        elif own.max() > height * width or own.sum() != height * width:  # the first, since the sum could overflow
            error = "mask-fill"
        elif own[1:].all():
            sound[index] = masks[index]
        else:
            sound[index] = compress_runs(own.astype(np.uint32), (height, width))
        readings[index] = MaskReading(error, detail, (height, width))
    for index, box in zip(sound, boxes_of_masks(list(sound.values()))):
        readings[index] = readings[index]._replace(error=None if box else "mask-empty", box=box)
    return readings


def _examine_form(mask: Any) -> MaskReading:
    """All that is cheap to find out about a mask. If it has a box already, nothing is left to find out."""
    if not isinstance(mask, dict) or not is_image_size(mask.get("size")):
        if is_polygons(mask):
            return _examine_polygons(mask)
        return MaskReading("mask-malformed", "size is not [height, width] of an image")
    (height, width), counts = mask["size"], mask.get("counts")
    size = height, width
    if isinstance(counts, list):  # soir/forms.py compresses the valid ones
        runs = as_runs(counts)
        if runs is None or not runs.size:
            return MaskReading("mask-malformed", "counts are no run lengths", size)
        if not fills(runs, size):
            return MaskReading("mask-fill", "", size)
        return MaskReading("mask-malformed", "counts is a list, not compressed", size)
    if not isinstance(counts, bytes) and not (isinstance(counts, str) and counts.isascii()):
        return MaskReading("mask-malformed", "counts is no RLE", size)
    if len(counts) > MAX_COUNTS:
        return MaskReading("mask-malformed", f"counts is far too long, {len(counts):,} characters", size)
    return MaskReading(None, "", size)


def _examine_polygons(polygons: Any) -> MaskReading:
    """Polygons that are left are of an image whose size is not known: they are looked at without one."""
    try:
        rle = draw_polygons([list(polygon) for polygon in polygons], polygons_size(polygons))
    except ValueError as error:
        return MaskReading("mask-malformed", str(error))
    (box,) = boxes_of_masks([rle])
    return MaskReading(None if box else "mask-empty", box=box)


def _as_bytes(counts: str | bytes) -> bytes:
    return counts if isinstance(counts, bytes) else counts.encode("ascii")


def decode_mask(mask: Any) -> np.ndarray:
    """A compressed mask of an annotation file -> bool [height, width]. Raises ValueError if it is not valid."""
    (reading,) = examine_masks([mask])
    if reading.error and reading.error != "mask-empty" or not isinstance(mask, dict):
        raise ValueError(f"{reading.error} {reading.detail}".strip())
    height, width = mask["size"]
    runs = decode_counts([_as_bytes(mask["counts"])])[0]
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T.copy()


def decode_counts(strings: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """COCO's compressed run lengths of many masks -> (runs, ends).

    strings  one per mask; any bytes at all are safe, unlike in pycocotools' C code, which trusts them
    runs     int64 [N], the run lengths of all masks, one after the other; whether they are >= 0 and fill the image
             is for the caller to check
    ends     int64 [len(strings)], where the runs of each mask end; a malformed string has no runs
    The code: a number is 5 bits per character (48 + bits), lowest first, bit 6 set if more follow, bit 5 of the last
    one the sign; from the fourth run on it is the difference to the run before the last (rleToString in maskApi.c).
    """
    code = np.frombuffer(b"".join(strings), dtype=np.uint8) - np.uint8(48)
    stops = np.cumsum(np.fromiter(map(len, strings), dtype=np.int64, count=len(strings)))
    if not code.size:
        return np.zeros(0, dtype=np.int64), np.zeros(len(strings), dtype=np.int64)
    is_last = code < 32
    is_last[stops[stops > 0] - 1] = True  # whatever it says, a number ends with its string
    last = np.flatnonzero(is_last)
    first = np.concatenate(([0], last[:-1] + 1))
    digits = last - first + 1
    shifts = np.arange(code.size) - np.repeat(first, digits)
    values = np.add.reduceat((code & 31).astype(np.int64) << (5 * np.minimum(shifts, 7)), first)
    values -= (code[last] >> 4 & 1).astype(np.int64) << (5 * np.minimum(digits, 7))

    ends = np.searchsorted(last, stops)  # how many numbers end before the end of each string
    bad = np.concatenate((np.flatnonzero(code > 63), last[(digits > 7) | (code[last] > 31)]))  # over 35 bits, cut short
    if bad.size:
        lengths = np.diff(ends, prepend=0)
        malformed = np.zeros(len(strings), dtype=bool)
        malformed[np.searchsorted(stops, bad, side="right")] = True
        values = values[np.repeat(~malformed, lengths)]
        ends = np.cumsum(np.where(malformed, 0, lengths))
    start = 0
    for end in ends.tolist():  # the runs of odd places, and those of even places but the first, are sums of differences
        for offset in (1, 2):
            np.cumsum(values[start + offset : end : 2], out=values[start + offset : end : 2])
        start = end
    return values, ends
