"""Boxes, half-open in pixels: (x1, y1, x2, y2) with x2 = x1 + width. A size is the (height, width) of an image."""

from __future__ import annotations

from typing import Any, Sequence, Tuple, Union

from soir.files import SoirError

Number = Union[int, float]
Box = Tuple[Number, Number, Number, Number]
EntryBox = Union[Box, None]  # None is the whole image
Size = Tuple[int, int]

# No coordinate, in pixels, may be larger. This also turns down NaN, infinities and integers beyond any float.
MAX_COORDINATE = 2**31

# How far, in pixels, a box may reach out of its image: rounding.
TOLERANCE = 1

# How far, in pixels, a mask may reach out of the box of its object; and the IoU of the mask's own box with that box,
# below which the box counts as far larger than the mask.
MASK_REACH = 2
LOOSE_IOU = 0.5

# If the boxes of a source can all be read as corners, and more than this share of them do not fit their images as
# x y width height, then corners is what they are.
MISFITS = 0.1


def is_coordinate(value: Any) -> bool:
    """Whether a value of a file is a number of pixels: no bool, no text, not NaN, not beyond MAX_COORDINATE."""
    return type(value) in (int, float) and abs(value) <= MAX_COORDINATE


_NUMBERS = frozenset((int, float))


def is_four_numbers(value: Any) -> bool:
    """Whether a value of a file was written as one box, of whatever numbers."""
    return isinstance(value, (tuple, list)) and len(value) == 4 and _NUMBERS.issuperset(map(type, value))


def is_box(value: Any) -> bool:
    """Whether a value of a file is a box (x1, y1, x2, y2) of positive width and height."""
    if not is_four_numbers(value):
        return False
    x1, y1, x2, y2 = value
    return bool(-MAX_COORDINATE <= x1 < x2 <= MAX_COORDINATE and -MAX_COORDINATE <= y1 < y2 <= MAX_COORDINATE)


def xyxy_of(box_xywh: Any) -> Box | None:
    """[x, y, width, height], from a file -> (x1, y1, x2, y2); None if that is not a box of positive size."""
    if not isinstance(box_xywh, list) or len(box_xywh) != 4 or not all(map(is_coordinate, box_xywh)):
        return None
    x, y, width, height = box_xywh
    box = (x, y, x + width, y + height)
    return box if box[2] > x and box[3] > y else None


def is_below_pixel(box: Box) -> bool:
    """Whether a box is less than a pixel wide or high; 1 - 1e-6 counts as one, since x2 - x1 is rounded."""
    return min(box[2] - box[0], box[3] - box[1]) < 1 - 1e-6


def is_in_shares(box: Sequence[Number]) -> bool:
    """Whether the numbers of a box all lie within 0..1, as those of a box in shares of its image do."""
    return all(0 <= number <= 1 for number in box)


def shares_error(boxes: str) -> SoirError:
    """The error that boxes are shares of the image; the text counts them and says where they are."""
    return SoirError(
        f"{boxes} lie within 0..1: these are shares of the image, pixels are expected; "
        "multiply them by its width and height"
    )


def in_pixels(box: EntryBox, size: Size) -> Box:
    """The box of an entry in pixels of its image, also where it is None, the whole image."""
    return (0, 0, size[1], size[0]) if box is None else box


def area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def share(box: EntryBox, size: Size) -> float:
    """The size of an object as the benchmark has it: the share of its image that its box covers, in %."""
    return 100 * area(in_pixels(box, size)) / (size[0] * size[1])


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    union = area(a) + area(b) - width * height
    return width * height / union if union > 0 else 0.0  # 0 where sides of 1e-200 pixels have no area in floats


def clip(box: Box, size: Size) -> Box | None:
    """The part of a box that lies in its image; None if nothing does."""
    inside = max(box[0], 0), max(box[1], 0), min(box[2], size[1]), min(box[3], size[0])
    return inside if inside[2] > inside[0] and inside[3] > inside[1] else None


def reach(box: Box, outer: Box) -> float:
    """How far, in pixels, a box reaches out of another; at most 0 if it does not."""
    return max(outer[0] - box[0], outer[1] - box[1], box[2] - outer[2], box[3] - outer[3])


def contradiction(mask_box: Box, box: Box) -> str:
    """Whether the mask and the box of an object of a gallery image contradict each other.

    mask_box  the box of the object's mask
    box       the annotated box. It may be amodal, of the whole object with its hidden parts (BOP's `bbox_obj`)
    Returns "reaching" if the mask reaches out of the box by more than MASK_REACH: no box of either kind allows that.
    Returns "loose" if their IoU is below LOOSE_IOU, as it may be of an amodal box. Returns "" otherwise.
    """
    if reach(mask_box, box) > MASK_REACH:
        return "reaching"
    return "loose" if iou(mask_box, box) < LOOSE_IOU else ""
