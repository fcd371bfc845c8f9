"""What an entry of an annotation file is: its fields, the sets, and every rule that an entry keeps.

An annotation file is one dict, image path -> entry, in a file of torch's. Entries are made by `query_entry` and
`gallery_entry`, and judged by `entry_faults`. Files of other people have entries of other forms: soir_forms.py brings
those into this one.

    from soir_common import load_annotations, query_entry, save_annotations
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Dict, Iterable, Iterator, NamedTuple, Sequence, Tuple, Union

from soir_files import SoirError
from soir_loading import check_repeats, load_values, save_values

Number = Union[int, float]
Box = Tuple[Number, Number, Number, Number]  # (x1, y1, x2, y2) in pixels, half-open: x2 = x1 + width
EntryBox = Union[Box, None]  # None is the whole image
Rle = Dict[str, Any]  # COCO RLE {"size": [height, width], "counts": str}
Entry = Dict[str, Any]
Annotations = Dict[str, Entry]
Size = Tuple[int, int]  # (height, width) of an image


class SetRules(NamedTuple):
    """What every entry of a set has."""

    query_masks: bool
    gallery_masks: bool
    boxes: bool  # no box is None


# The sets that we know, and their rules. INSTRE has no masks, and some of its images no box. A set of any other name is
# valid too, and has no such rules.
SETS = {
    "OWID": SetRules(query_masks=True, gallery_masks=True, boxes=True),
    "RoboTools": SetRules(query_masks=True, gallery_masks=False, boxes=True),
    "INSTRE-XS": SetRules(query_masks=False, gallery_masks=False, boxes=False),
    "INSTRE-XXS": SetRules(query_masks=False, gallery_masks=False, boxes=False),
}

# The set of entries that name none, as those of the basic form (see soir_forms.py).
NO_SET = ""

SPLITS = ("train", "val", "test")

# The published figures (table 1 of the paper, and its text): objects annotated in an image, objects that a detector
# finds in it ("#Obj OVD"), and object size in % of the image, all mean. Those of VoxDet-SoIR are RoboTools': 9,109
# annotations on 1,580 images.
PUBLISHED: dict[str, dict[str, Any]] = {
    "RoboTools": {
        "name": "VoxDet-SoIR",
        "objects_per_image_mean": 5.8,
        "detected_per_image_mean": 14.7,
        "object_size_mean": 1.1,
    },
    "INSTRE-S1": {
        "name": "INSTRE (S1)",
        "objects_per_image_mean": 1,
        "detected_per_image_mean": 1.8,
        "object_size_mean": 21.0,
    },
    "INSTRE-XS": {
        "name": "INSTRE-XS",
        "objects_per_image_mean": 1,
        "detected_per_image_mean": 1.8,
        "object_size_mean": 6.6,
        "queries": 2428,
        "gallery_images": 2065,
    },
    "INSTRE-XXS": {
        "name": "INSTRE-XXS",
        "objects_per_image_mean": 1,
        "detected_per_image_mean": 1.9,
        "object_size_mean": 2.2,
        "queries": 106,
        "gallery_images": 120,
    },
}

# The published mAP in %, of single descriptors of images (the README of the paper's code), by set, and by whether the
# model was fine-tuned. The paper calls the test set of RoboTools VoxDet.
PUBLISHED_MAP = {
    "RoboTools": {
        "zero-shot": {
            "MaO-DINOv2": 70.20,
            "MaO-CLIP": 65.22,
            "GSS": 52.01,
            "DINOv2": 51.23,
            "GeM": 51.08,
            "CLIP": 44.52,
        },
        "fine-tuned": {
            "MaO-DINOv2": 83.70,
            "MaO-CLIP": 79.86,
            "GeM": 61.45,
            "alpha-CLIP": 59.74,
            "DINOv2": 54.33,
            "CLIP": 52.80,
        },
    },
    "INSTRE-XS": {
        "zero-shot": {"MaO-CLIP": 89.39, "GSS": 82.34, "AMES": 78.61, "GeM": 74.74, "MaO-DINOv2": 71.28},
        "fine-tuned": {"MaO-CLIP": 91.29, "MaO-DINOv2": 90.01, "GeM": 82.61, "CLIP": 72.90},
    },
    "INSTRE-XXS": {
        "zero-shot": {"MaO-CLIP": 71.23, "AMES": 68.08, "GSS": 67.98, "GeM": 53.27, "MaO-DINOv2": 53.13},
        "fine-tuned": {"MaO-CLIP": 77.46, "MaO-DINOv2": 75.91, "GeM": 65.58, "CLIP": 62.04},
    },
    "PerMiR": {
        "zero-shot": {"MaO-DINOv2": 89.86, "MaO-CLIP": 89.51, "alpha-CLIP": 88.21, "DINOv2": 40.57},
        "fine-tuned": {"MaO-CLIP": 90.86, "alpha-CLIP": 90.13, "MaO-DINOv2": 90.07, "GeM": 41.20},
    },
}

# No coordinate, in pixels, may be larger. This also turns down NaN, infinities and integers beyond any float.
MAX_COORDINATE = 2**31

# How far, in pixels, a box may reach out of its image: rounding.
TOLERANCE = 1

# How far, in pixels, a mask may reach out of the box of its object; and the IoU of the mask's own box with that box,
# below which the box counts as far larger than the mask.
MASK_REACH = 2
LOOSE_IOU = 0.5


# -------------------------------------------------------------------------------------------------------------- makers


def query_entry(
    bbox: EntryBox,
    mask: Rle | None,
    ins: int | list[int],
    set_name: str,
    split: str | None = None,
    obj_name: str | None = None,
) -> Entry:
    """The entry of a query: one photograph of one object.

    bbox      (x1, y1, x2, y2) in pixels, half-open: x2 = x1 + width; None is the whole image
    mask      COCO RLE {"size": [height, width], "counts": str}. None where the source has no masks: the field is then
              left out, since the paper's code accepts a missing field and fails on None
    ins       the instance, from 0 to 2^63 - 1; it counts within its set only, since ids of OWID and RoboTools collide.
              A list where the query shows several, as in INSTRE-M: an image that shows any of them is relevant
    set_name  one of SETS, or any other
    split     one of SPLITS; left out if None
    obj_name  the object's name in the source; left out if None
    """
    entry: Entry = {"bbox": bbox}
    if mask is not None:
        entry["mask"] = mask
    entry.update({"is_query": True, "ins": ins, "set": set_name})
    return _with_optional(entry, split=split, obj_name=obj_name)


def gallery_entry(
    bboxes: list[EntryBox],
    masks: list[Rle],
    instances: list[int],
    set_name: str,
    split: str | None = None,
    num_ins: list[int] | None = None,
    obj_name: str | None = None,
) -> Entry:
    """The entry of a gallery image: lists with one item per object, fields as in `query_entry`.

    masks     one RLE per object, or [] where the source has no masks
    num_ins   for each object, the number of labelled objects in its scene, as the source has it; left out if None
    """
    entry = {"bbox": bboxes, "mask": masks, "is_query": False, "ins": instances, "set": set_name}
    return _with_optional(entry, num_ins=num_ins, split=split, obj_name=obj_name)


def _with_optional(entry: Entry, **fields: Any) -> Entry:
    entry.update((name, value) for name, value in fields.items() if value is not None)
    return entry


# --------------------------------------------------------------------------------------------------------------- rules


def entry_faults(path: Any, entry: Any) -> Iterator[tuple[str, str]]:
    """Yield (check, detail) for every rule that an entry breaks; the checks are those of verify_dataset.py.

    entry  in the form of `query_entry` and `gallery_entry`; soir_forms.py brings others into it
    An entry without faults can be relied on: its fields are there, of their types, and of one length; its boxes are
    None or finite, of positive size, and not left of or above the image. Its masks may still be anything: see
    soir_masks.py.
    """
    if type(path) is not str or not path or not isinstance(entry, dict):
        yield "entry-type", f"found {type(entry).__name__}"
        return
    missing = [field for field in ("bbox", "is_query", "ins", "set") if field not in entry]
    for field in missing:
        yield "field-missing", field
    if missing:
        return
    if type(entry["is_query"]) is not bool:
        yield "field-type", "is_query is not a bool"
    elif type(entry["set"]) is not str:
        yield "field-type", "set is not text"
    else:
        if entry.get("split") is not None and entry["split"] not in SPLITS:
            yield "split-unknown", _found(entry["split"])
        if "obj_name" in entry and type(entry["obj_name"]) is not str:
            yield "field-type", "obj_name is not text"
        rules = SETS.get(entry["set"])
        yield from _query_faults(entry, rules) if entry["is_query"] else _gallery_faults(entry, rules)


def _query_faults(entry: Entry, rules: SetRules | None) -> Iterator[tuple[str, str]]:
    ins = entry["ins"]
    ids = ins if isinstance(ins, (list, tuple)) else (ins,)
    if not ids:
        yield "id-type", "found none"
    yield from _object_faults(ids, [entry["bbox"]], rules)
    mask = entry.get("mask")
    if rules and rules.query_masks and mask is None:
        yield "mask-missing", ""
    elif rules and not rules.query_masks and mask is not None:
        yield "mask-unexpected", ""


def _gallery_faults(entry: Entry, rules: SetRules | None) -> Iterator[tuple[str, str]]:
    boxes, masks, ids, num_ins = entry["bbox"], entry.get("mask", []), entry["ins"], entry.get("num_ins")
    lists = {"bbox": boxes, "mask": masks, "ins": ids, "num_ins": () if num_ins is None else num_ins}
    wrong = [field for field, value in lists.items() if not isinstance(value, (list, tuple))]
    for field in wrong:
        yield "field-type", f"{field} is not a list"
    if wrong:
        return
    if masks and rules and not rules.gallery_masks:
        yield "mask-unexpected", ""
    elif rules and rules.gallery_masks and boxes and not masks:
        yield "mask-missing", ""
    elif len(ids) != len(boxes) or masks and len(masks) != len(boxes):
        yield "length-mismatch", f"{len(boxes)} boxes, {len(ids)} ids, {len(masks)} masks"
    elif num_ins is not None and len(num_ins) != len(boxes):
        yield "length-mismatch", f"{len(boxes)} boxes, {len(num_ins)} num_ins"
    elif num_ins is not None and not all(type(number) is int and number > 0 for number in num_ins):
        yield "field-type", "num_ins is not a list of positive integers"
    yield from _object_faults(ids, boxes, rules)


def _object_faults(ids: Iterable[Any], boxes: Iterable[Any], rules: SetRules | None) -> Iterator[tuple[str, str]]:
    for number in ids:
        if not is_id(number):
            yield "id-type", _found(number)
    for box in boxes:
        if is_box(box):  # first, since nearly all are
            if box[0] < -TOLERANCE or box[1] < -TOLERANCE:
                yield "box-outside", f"{tuple(box)}"
        elif box is None and not (rules and rules.boxes):
            continue
        elif not isinstance(box, (tuple, list)) or len(box) != 4 or not all(type(v) in (int, float) for v in box):
            yield "box-malformed", _found(box)
        elif not all(map(is_coordinate, box)):
            yield "box-not-finite", ""
        else:
            yield "box-inside-out", f"{tuple(box)}"


def entry_doubts(entry: Entry) -> Iterator[tuple[str, str]]:
    """Yield (check, detail) for what is odd in an entry without faults."""
    boxes = boxes_of(entry)
    for box in boxes:
        if box is not None and is_below_pixel(box):
            yield "box-below-pixel", f"{tuple(box)}"
    if len(boxes) > 1:
        seen = set()
        for instance, box in zip(entry["ins"], boxes):
            item = instance, box and tuple(box)
            if item in seen:
                yield "object-repeated", f"instance {instance}, {item[1] or 'the whole image'}"
            seen.add(item)


def set_doubts(annotations: Annotations) -> Iterator[tuple[str, str, str]]:
    """Yield (check, set, detail) for what is odd in the sets of entries without faults."""
    with_masks: Counter[tuple[str, bool]] = Counter()  # (set, is_query) -> entries that have masks
    entries: Counter[tuple[str, bool]] = Counter()
    for entry in annotations.values():
        if entry["set"] in SETS:  # whose masks have rules
            continue
        part = entry["set"], entry["is_query"]
        if entry["is_query"] or entry["bbox"]:  # a gallery image without objects shows neither
            entries[part] += 1
            with_masks[part] += bool(masks_of(entry))
    for (name, is_query), number in entries.items():
        if 0 < with_masks[name, is_query] < number:
            what = "queries" if is_query else "gallery images"
            yield "mask-mixed", name, f"{with_masks[name, is_query]:,} of its {number:,} {what} have masks"
    for name in dict.fromkeys(entry["set"] for entry in annotations.values()):
        known = next((known for known in SETS if known.lower() == name.lower()), name)
        if known != name:
            yield "set-case", name, f"not {known}, whose rules and published figures it does not get"


def extent_faults(entry: Entry, size: Size) -> Iterator[tuple[str, str]]:
    """Yield (check, detail) for the boxes of an entry that reach out of their image, whose (height, width) is known."""
    height, width = size
    for box in boxes_of(entry):
        if box is not None and (box[2] > width + TOLERANCE or box[3] > height + TOLERANCE):
            yield "box-outside", f"{tuple(box)} in an image of {width} x {height}"


def is_id(value: Any) -> bool:
    """Whether a value of a file is an instance id: an integer from 0 to 2^63 - 1 (no bool, nor the text "5")."""
    return type(value) is int and 0 <= value < 2**63


_NUMBERS = (int, float)


def is_coordinate(value: Any) -> bool:
    """Whether a value of a file is a number of pixels: no bool, no text, not NaN, not beyond MAX_COORDINATE."""
    return type(value) in _NUMBERS and abs(value) <= MAX_COORDINATE


def is_box(value: Any) -> bool:
    """Whether a value of a file is a box (x1, y1, x2, y2) of positive width and height."""
    if not isinstance(value, (tuple, list)) or len(value) != 4:
        return False
    x1, y1, x2, y2 = value
    if not (type(x1) in _NUMBERS and type(y1) in _NUMBERS and type(x2) in _NUMBERS and type(y2) in _NUMBERS):
        return False
    return bool(-MAX_COORDINATE <= x1 < x2 <= MAX_COORDINATE and -MAX_COORDINATE <= y1 < y2 <= MAX_COORDINATE)


def _found(value: Any) -> str:
    return f"found {shorten(repr(value[:80]) if isinstance(value, str) else value)}"


def shorten(value: Any) -> str:
    """A value of a file as text for a message, at most 80 characters; of a container, only its type.

    repr() of nested lists can take forever, and all memory.
    """
    if not isinstance(value, (str, int, float)):
        return f"({type(value).__name__})"
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


# ------------------------------------------------------------------------------------------------- what an entry shows


def boxes_of(entry: Entry) -> list[EntryBox]:
    """The boxes of an entry: one per object of a gallery image, the one of a query. None is the whole image."""
    return [entry["bbox"]] if entry["is_query"] else entry["bbox"]


def instances_of(entry: Entry) -> list[int]:
    """The instances of an entry: one per object of a gallery image; those that a query shows, nearly always one.

    Relevant to a query are the gallery images of its set that show any of its instances.
    """
    ins = entry["ins"]
    return list(ins) if isinstance(ins, (list, tuple)) else [ins]


def set_of(entry: Entry) -> str:
    """The set that an entry is of; "" if it has none."""
    return entry.get("set") or ""


def is_meant(set_name: str, wanted: str | None) -> bool:
    """Whether the argument of --set, in upper or lower case, names a set; None names all."""
    return wanted is None or set_name.lower() == wanted.lower()


def masks_of(entry: Entry) -> list[Any]:
    """The masks of an entry: one per object, or none."""
    mask = entry.get("mask")
    if entry["is_query"]:
        return [] if mask is None else [mask]
    return mask or []


def boxes_of_instance(entry: Entry, instance: int) -> list[EntryBox]:
    """Those boxes of an entry that show an instance; that of a query shows all of its instances."""
    if entry["is_query"]:
        return boxes_of(entry) if instance in instances_of(entry) else []
    return [box for box, number in zip(entry["bbox"], entry["ins"]) if number == instance]


def pixel_box(box: EntryBox, size: Size) -> Box:
    """The box of an entry, in pixels of its image of (height, width), also where it is None: the whole image."""
    return (0, 0, size[1], size[0]) if box is None else box


def xyxy_of(box_xywh: Any) -> Box | None:
    """[x, y, width, height], from a file -> half-open (x1, y1, x2, y2); None if that is no box of positive size."""
    if not isinstance(box_xywh, list) or len(box_xywh) != 4 or not all(map(is_coordinate, box_xywh)):
        return None
    x, y, width, height = box_xywh
    box = (x, y, x + width, y + height)
    return box if box[2] > x and box[3] > y else None


def box_area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def is_below_pixel(box: Box) -> bool:
    """Whether a box is less than a pixel wide or high; 1 - 1e-6 counts as one, since x2 - x1 is rounded."""
    return min(box[2] - box[0], box[3] - box[1]) < 1 - 1e-6


def is_share(box: Sequence[Number]) -> bool:
    """Whether the numbers of a box all lie within 0..1, as those of a box in shares of its image do."""
    return all(0 <= number <= 1 for number in box)


def shares_error(boxes: str) -> SoirError:
    """That boxes, which the text counts and places, are shares of the image."""
    return SoirError(
        f"{boxes} lie within 0..1: these are shares of the image, pixels are expected; "
        "multiply them by its width and height"
    )


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    union = box_area(a) + box_area(b) - width * height
    return width * height / union if union > 0 else 0.0  # 0 where sides of 1e-200 pixels have no area in floats


def clip_box(box: Box, size: Size) -> Box | None:
    """The part of a box that lies in an image of (height, width); None if nothing does."""
    inside = max(box[0], 0), max(box[1], 0), min(box[2], size[1]), min(box[3], size[0])
    return inside if inside[2] > inside[0] and inside[3] > inside[1] else None


def reach_of_box(box: Box, outer: Box) -> float:
    """How far, in pixels, a box reaches out of another; at most 0 if it does not."""
    return max(outer[0] - box[0], outer[1] - box[1], box[2] - outer[2], box[3] - outer[3])


def doubt_of_mask(mask_box: Box, box: Box) -> str:
    """Whether the mask and the box of an object of a gallery image contradict each other.

    mask_box  the box of the object's mask, half-open, in pixels
    box       the annotated box. It may be amodal, of the whole object with its hidden parts (BOP's `bbox_obj`)
    Returns "reaching" if the mask reaches out of the box by more than MASK_REACH: no box of either kind allows that.
    Returns "loose" if their IoU is below LOOSE_IOU, as it may be of an amodal box. Returns "" otherwise.
    """
    if reach_of_box(mask_box, box) > MASK_REACH:
        return "reaching"
    return "loose" if box_iou(mask_box, box) < LOOSE_IOU else ""


def box_share(box: EntryBox, size: Size) -> float:
    """The size of an object: the share of its image, of (height, width), that its box covers, in %."""
    return 100 * box_area(pixel_box(box, size)) / (size[0] * size[1])


def difficulty(occurrences: int) -> str:
    """The class of an instance, by how many annotated objects of the gallery show it."""
    if occurrences > 10:
        return "easy"
    return "medium" if occurrences >= 5 else "hard"


# ----------------------------------------------------------------------------------------------------- annotation files


def load_annotations(path: str) -> Annotations:
    """Load an annotation file, which need not be trusted: nothing in it is executed (see soir_loading.py).

    Returns a dict, image path -> entry. The entries have not been checked: see `entry_faults`.
    Raises SoirError if the file is missing, or is no torch file of one dict of plain values.
    """
    annotations = load_values(path)
    if type(annotations) is not dict:
        raise SoirError(f"{path} holds a {type(annotations).__name__}: expected a dict, image path -> entry")
    check_repeats(path, map(_entry_size, annotations.values()))
    return annotations


def _entry_size(entry: Any) -> int:
    """How much is in the lists of an entry, which may be anything, and in its masks."""
    if type(entry) is not dict:
        return 0
    masks, size = entry.get("mask"), 0
    for value in (masks, entry.get("bbox"), entry.get("ins"), entry.get("num_ins")):
        if isinstance(value, (list, tuple)):
            size += len(value)
    for mask in masks if isinstance(masks, (list, tuple)) else (masks,):
        counts = mask.get("counts") if isinstance(mask, dict) else None
        if isinstance(counts, (str, bytes, list)):
            size += len(counts)
        elif isinstance(mask, (list, tuple)):  # one polygon of a query, or the polygons of an object
            size += len(mask)
            if mask and isinstance(mask[0], (list, tuple)):
                size += sum(len(polygon) for polygon in mask if isinstance(polygon, (list, tuple)))
    return size


def save_annotations(annotations: Annotations, path: str) -> int:
    """Save a dict, image path -> entry, for `torch.load(path)`. Returns the size of the file in bytes.

    The same dict gives the same bytes. Raises SoirError if the file cannot be written.
    """
    return save_values(annotations, path)
