"""Every check of verify_dataset.py: its name, severity and text; and the rules of entries, sets and masks.

The rules yield (check, detail). What needs the disk (path-..., image-size) or all entries at once (mask-size,
path-twice, query-unanswered, ...) is found by verify_dataset.py itself; what brings an entry into the current form
(form-..., mask-list and the next) by soir/forms.py.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Iterable, Iterator, Tuple

from soir import geometry
from soir.entry import SETS, SPLITS, Annotations, Entry, SetRules, boxes_of, instances_of, is_id, masks_of
from soir.findings import shorten
from soir.geometry import EntryBox, Size
from soir.rle import MaskReading

# Name -> text. The names are stable, for whoever reads the JSON.
ERRORS = {
    "path-missing": "the image does not exist",
    "path-outside": "the path leads out of --base-path",
    "path-not-file": "the path is no file",
    "path-not-image": "the file is no image that can be read",
    "image-size": "the mask is of another size than the image",
    "entry-type": "the entry is no dict, or its key is no path",
    "field-missing": "a field is missing",
    "field-type": "a field is of the wrong type",
    "split-unknown": "the split is none of train, val, test",
    "id-type": "an instance id is no integer from 0 to 2^63 - 1",
    "length-mismatch": "there is not one box, one id and one mask per object",
    "box-malformed": "a box is not four numbers (x1, y1, x2, y2)",
    "box-not-finite": "a box is not finite",
    "box-inside-out": "a box has no positive width and height: is it x y width height, and not x1 y1 x2 y2?",
    "box-outside": "a box reaches out of its image",
    "mask-missing": "an object has no mask, in a set that has masks",
    "mask-unexpected": "there is a mask, in a set that has none",
    "mask-malformed": "a mask is no valid RLE",
    "mask-fill": "the runs of a mask do not fill height x width",
    "mask-empty": "a mask is empty",
    "mask-size": "the masks of an image differ in size",
    "query-box": "the box of a query is not the box of its mask",
    "gallery-box": "the mask of an object reaches out of its box",
    "box-in-shares": "all boxes of a set are below a pixel: shares of the image, where pixels are expected",
}
WARNINGS = {
    "form-set": "no set is named: read as one set without a name",
    "form-role": "is_query is missing: read as a gallery image",
    "form-label": "the instance is called label, not ins",
    "form-box": "bbox is missing: read as the whole image",
    "form-single": "a gallery image has one id, box or mask where lists are due, or a query a list of one id",
    "form-is-val": "is_val in place of a split, as the authors' first script wrote it",
    "form-dense": "a mask is an array of pixels, not RLE",
    "form-num-ins": "num_ins is an empty list beside boxes, as the authors' script wrote it",
    "mask-list": "a mask is a list of run lengths, which pycocotools cannot decode",
    "mask-row-major": "a mask is row-major, as the authors' script wrote it: pycocotools cannot decode it",
    "mask-inverted": "a list of run lengths lacks its leading 0: read as it stands, the mask is inverted",
    "mask-polygons": "a mask is polygons, as a COCO file has them, not RLE",
    "query-box-inclusive": "the box of a query whose mask is a list of runs ends in its last pixel, not behind it",
    "query-mask-empty": "the mask of a query is empty and its box the whole image, as the authors' script wrote it",
    "mask-mixed": "some queries, or some gallery images, of a set have masks and others have none",
    "set-case": "the name of a set differs from that of a known one in upper and lower case only",
    "gallery-box-loose": "the box of an object is far larger than its mask: does it include hidden parts?",
    "object-repeated": "an image has the same instance with the same box twice",
    "image-rotated": "a photograph has an EXIF orientation: its boxes are to fit its pixels as stored",
    "box-below-pixel": "a box is less than a pixel wide or high: shares of the image, not pixels?",
    "query-unanswered": "no gallery image is relevant to the query",
    "instance-unqueried": "an instance of the gallery has no query",
    "path-twice": "the same path stands there in another spelling too: ./a//b.jpg beside a/b.jpg",
    "set-one-sided": "the set has queries only, or gallery images only",
}
CHECKS = {  # name -> (severity, text)
    **{name: ("error", text) for name, text in ERRORS.items()},
    **{name: ("warning", text) for name, text in WARNINGS.items()},
}

Broken = Iterator[Tuple[str, str]]  # (check, detail)


def entry_faults(path: Any, entry: Any) -> Broken:
    """Yield (check, detail) for every rule that an entry breaks: the errors of verify_dataset.py, but for its masks.

    entry  in the form of `query_entry` and `gallery_entry`; soir/forms.py brings others into it
    An entry without errors can be relied on: its fields are there, of their types, and of one length; its boxes are
    None or finite, of positive size, and not left of or above the image. Its masks may still be anything: see
    `examine_masks` in soir/rle.py.
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
        yield from _query_errors(entry, rules) if entry["is_query"] else _gallery_errors(entry, rules)


def _query_errors(entry: Entry, rules: SetRules | None) -> Broken:
    ids, has_mask = instances_of(entry), entry.get("mask") is not None
    if not ids:
        yield "id-type", "found none"
    yield from _object_errors(ids, [entry["bbox"]], rules)
    if rules and rules.query_masks != has_mask:
        yield "mask-unexpected" if has_mask else "mask-missing", ""


def _gallery_errors(entry: Entry, rules: SetRules | None) -> Broken:
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
    yield from _object_errors(ids, boxes, rules)


def _object_errors(ids: Iterable[Any], boxes: Iterable[Any], rules: SetRules | None) -> Broken:
    for number in ids:
        if not is_id(number):
            yield "id-type", _found(number)
    for box in boxes:
        if geometry.is_box(box):  # first, since nearly all are
            if box[0] < -geometry.TOLERANCE or box[1] < -geometry.TOLERANCE:
                yield "box-outside", f"{tuple(box)}"
        elif box is None and not (rules and rules.boxes):
            continue
        elif not geometry.is_four_numbers(box):
            yield "box-malformed", _found(box)
        elif not all(map(geometry.is_coordinate, box)):
            yield "box-not-finite", ""
        else:
            yield "box-inside-out", f"{tuple(box)}"


def _found(value: Any) -> str:
    return f"found {shorten(repr(value[:80]) if isinstance(value, str) else value)}"


def entry_warnings(entry: Entry) -> Broken:
    """Yield (check, detail) for what is odd in an entry without errors."""
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


def extent_errors(entry: Entry, size: Size) -> Broken:
    """Yield (check, detail) for the boxes of an entry that reach out of their image, whose (height, width) is known."""
    height, width = size
    for box in boxes_of(entry):
        if box is not None and (box[2] > width + geometry.TOLERANCE or box[3] > height + geometry.TOLERANCE):
            yield "box-outside", f"{tuple(box)} in an image of {width} x {height}"


def set_warnings(annotations: Annotations) -> Iterator[tuple[str, str, str]]:
    """Yield (check, set, detail) for what is odd in the sets of entries without errors."""
    have_masks: defaultdict[tuple[str, bool], list[bool]] = defaultdict(list)  # (set, is_query) -> of each entry
    for entry in annotations.values():
        # Masks of the sets that we know have rules. A gallery image without objects has no masks in any set.
        if entry["set"] not in SETS and (entry["is_query"] or entry["bbox"]):
            have_masks[entry["set"], entry["is_query"]].append(bool(masks_of(entry)))
    for (name, is_query), have in have_masks.items():
        if any(have) and not all(have):
            what = "queries" if is_query else "gallery images"
            yield "mask-mixed", name, f"{sum(have):,} of its {len(have):,} {what} have masks"
    known = {name.lower(): name for name in SETS}
    for name in dict.fromkeys(entry["set"] for entry in annotations.values()):
        expected = known.get(name.lower(), name)
        if expected != name:
            yield "set-case", name, f"not {expected}, whose rules and published figures it does not get"


def mask_errors(reading: MaskReading, box: EntryBox, is_query: bool) -> Broken:
    """Yield (check, detail) for what is wrong with the mask of an object, or with its box beside the mask.

    All of them are errors, except "gallery-box-loose": the amodal box of an occluded object may well be large.
    """
    if reading.error:
        yield reading.error, reading.detail
    elif reading.box is None or box is None or tuple(box) == reading.box:
        return
    elif is_query:
        yield "query-box", f"{tuple(box)}, its mask's is {reading.box}"
    else:
        contradiction = geometry.contradiction(reading.box, box)
        if contradiction:
            check = "gallery-box" if contradiction == "reaching" else "gallery-box-loose"
            yield check, f"{tuple(box)}, its mask's is {reading.box}"
