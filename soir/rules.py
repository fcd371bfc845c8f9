"""TODO rules."""

from __future__ import annotations

from collections import Counter
from typing import Any, Iterable, Iterator

from soir import geometry
from soir.entry import SETS, SPLITS, Annotations, Entry, SetRules, boxes_of, is_id, masks_of
from soir.findings import shorten
from soir.geometry import EntryBox, Size
from soir.rle import MaskReading

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
        if geometry.is_box(box):  # first, since nearly all are
            if box[0] < -geometry.TOLERANCE or box[1] < -geometry.TOLERANCE:
                yield "box-outside", f"{tuple(box)}"
        elif box is None and not (rules and rules.boxes):
            continue
        elif not isinstance(box, (tuple, list)) or len(box) != 4 or not all(type(v) in (int, float) for v in box):
            yield "box-malformed", _found(box)
        elif not all(map(geometry.is_coordinate, box)):
            yield "box-not-finite", ""
        else:
            yield "box-inside-out", f"{tuple(box)}"


def entry_doubts(entry: Entry) -> Iterator[tuple[str, str]]:
    """Yield (check, detail) for what is odd in an entry without faults."""
    boxes = boxes_of(entry)
    for box in boxes:
        if box is not None and geometry.is_below_pixel(box):
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
        if box is not None and (box[2] > width + geometry.TOLERANCE or box[3] > height + geometry.TOLERANCE):
            yield "box-outside", f"{tuple(box)} in an image of {width} x {height}"


def _found(value: Any) -> str:
    return f"found {shorten(repr(value[:80]) if isinstance(value, str) else value)}"


def mask_faults(reading: MaskReading, box: EntryBox, is_query: bool) -> Iterator[tuple[str, str]]:
    """Yield (check, detail) for what is wrong with the mask of an object, or with its box beside the mask.

    All of them are errors, except "gallery-box-loose": the amodal box of an occluded object may well be large.
    """
    if reading.fault:
        yield reading.fault, reading.detail
    elif reading.box is None or box is None:
        return
    elif is_query:
        if tuple(box) != reading.box:
            yield "query-box", f"{tuple(box)}, its mask's is {reading.box}"
    else:
        doubt = geometry.doubt_of_mask(reading.box, box)
        if doubt:
            check = "gallery-box" if doubt == "reaching" else "gallery-box-loose"
            yield check, f"{tuple(box)}, its mask's is {reading.box}"


# What had to be changed to bring an entry into the current form: the name of verify_dataset.py's warning -> its text.
FORM_CHECKS = {
    "form-set": "no set is named: read as one set without a name",
    "form-role": "is_query is missing: read as a gallery image",
    "form-label": "the instance is called label, not ins",
    "form-box": "bbox is missing: read as the whole image",
    "form-single": "a gallery image has one id, box or mask where lists are due, or a query a list of one id",
    "form-num-ins": "num_ins is an empty list beside boxes, as the authors' script wrote it",
    "mask-list": "a mask is a list of run lengths, which pycocotools cannot decode",
    "mask-row-major": "a mask is row-major, as the authors' script wrote it: pycocotools cannot decode it",
    "mask-inverted": "a list of run lengths lacks its leading 0: read as it stands, the mask is inverted",
    "mask-polygons": "a mask is polygons, as a COCO file has them, not RLE",
    "query-box-inclusive": "the box of a query whose mask is a list of runs ends in its last pixel, not behind it",
    "query-mask-empty": "the mask of a query is empty and its box the whole image, as the authors' script wrote it",
}

# Every check: whether it finds errors or warnings, and what it finds. The names are stable, for whoever reads the JSON.
CHECKS = {
    "path-missing": ("error", "the image does not exist"),
    "path-outside": ("error", "the path leads out of --base-path"),
    "path-not-file": ("error", "the path is no file"),
    "path-not-image": ("error", "the file is no image that can be read"),
    "image-size": ("error", "the mask is of another size than the image"),
    "entry-type": ("error", "the entry is no dict, or its key is no path"),
    "field-missing": ("error", "a field is missing"),
    "field-type": ("error", "a field is of the wrong type"),
    "split-unknown": ("error", "the split is none of train, val, test"),
    "id-type": ("error", "an instance id is no integer from 0 to 2^63 - 1"),
    "length-mismatch": ("error", "there is not one box, one id and one mask per object"),
    "box-malformed": ("error", "a box is not four numbers (x1, y1, x2, y2)"),
    "box-not-finite": ("error", "a box is not finite"),
    "box-inside-out": ("error", "a box has no positive width and height: is it x y width height, and not x1 y1 x2 y2?"),
    "box-outside": ("error", "a box reaches out of its image"),
    "mask-missing": ("error", "an object has no mask, in a set that has masks"),
    "mask-unexpected": ("error", "there is a mask, in a set that has none"),
    "mask-malformed": ("error", "a mask is no valid RLE"),
    "mask-fill": ("error", "the runs of a mask do not fill height x width"),
    "mask-empty": ("error", "a mask is empty"),
    "mask-size": ("error", "the masks of an image differ in size"),
    "query-box": ("error", "the box of a query is not the box of its mask"),
    "gallery-box": ("error", "the mask of an object reaches out of its box"),
    **{check: ("warning", text) for check, text in FORM_CHECKS.items()},
    "mask-mixed": ("warning", "some queries, or some gallery images, of a set have masks and others have none"),
    "set-case": ("warning", "the name of a set differs from that of a known one in upper and lower case only"),
    "gallery-box-loose": ("warning", "the box of an object is far larger than its mask: does it include hidden parts?"),
    "object-repeated": ("warning", "an image has the same instance with the same box twice"),
    "box-below-pixel": ("warning", "a box is less than a pixel wide or high: shares of the image, not pixels?"),
    "query-unanswered": ("warning", "no gallery image is relevant to the query"),
    "instance-unqueried": ("warning", "an instance of the gallery has no query"),
    "path-twice": ("warning", "the same path stands there in another spelling too: ./a//b.jpg beside a/b.jpg"),
    "set-one-sided": ("warning", "the set has queries only, or gallery images only"),
}
