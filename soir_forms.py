"""The forms of annotation files that people have. Every entry is brought into one of them, the current form.

    from soir_forms import load_any_form, load_sound

current        what these scripts write: see `query_entry` and `gallery_entry` in soir_common.py
the authors'   of the script behind the paper: masks as lists of run lengths, row-major and marked "transpose": False;
               those that begin in the foreground lack their leading 0, and read inverted; boxes of queries that end in
               their last pixel; queries with an empty mask and the whole image as box; polygons of a COCO file;
               "num_ins": [] beside boxes; NumPy values, which soir_loading.py makes plain
basic          of the paper's retrieval code, its README and its example (PerMiR, one's own photographs): no `set`, no
               `mask`, `is_query` only where it is true, one id and one box of a gallery image too, `label` for `ins`, a
               box that is None or missing: the whole image

An entry may mix them. What is wrong in any form stays as it is, for the rules of soir_common.py to find; they, and the
scripts, know the current form only.
"""

from __future__ import annotations

from soir_console import progress_bar

from typing import Any, Callable, Iterator, NamedTuple, Optional

import numpy as np

from soir_common import (
    NO_SET,
    SETS,
    Annotations,
    Box,
    Entry,
    Rle,
    Size,
    doubt_of_mask,
    entry_faults,
    load_annotations,
    masks_of,
    shorten,
)
from soir_files import SoirError
from soir_images import full_path, image_size, is_image_size
from soir_masks import box_of_runs, compress_list, draw_polygons, is_polygons, runs_of_list

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

SizeFinder = Callable[[str], Optional[Size]]  # path of an entry -> (height, width) of its image, if it can be read


class FormReading(NamedTuple):
    """An entry in the current form, and what had to be changed for it."""

    entry: Any
    changes: list[tuple[str, str]]  # (check, detail); the checks are those of FORM_CHECKS


def load_any_form(
    path: str, find_size: SizeFinder, note: Callable[[str, Any, str], None] = lambda check, name, detail: None
) -> Annotations:
    """Load an annotation file of any form, in the current form; nothing in it is run.

    find_size  says how large an image is; only asked for images with polygons, which do not say it
    note       called with (check, image path, detail) for whatever had to be changed
    Returns a dict, image path -> entry; nothing of it has been checked by the rules yet.
    Raises SoirError if the file is missing, or is no torch file of one dict of plain values.
    """
    annotations = load_annotations(path)
    for name, entry in progress_bar("forms", annotations.items()):
        if not _is_current(entry):
            annotations[name], changes = read_form(name, entry, find_size)
            for check, detail in changes:
                note(check, name, detail)
    return annotations


def load_sound(path: str, find_size: SizeFinder) -> Annotations:
    """Load an annotation file as `load_any_form` does. Raises SoirError also if an entry breaks a rule."""
    annotations = load_any_form(path, find_size)
    for name, entry in annotations.items():
        for check, _ in entry_faults(name, entry):
            raise SoirError(f"{path} has errors ({check}: {shorten(name)}): see what verify_dataset.py says of it")
    return annotations


def size_finder(base_path: str | None) -> SizeFinder:
    """Make a function that gives the (height, width) of an image from its header; None if it cannot be read.

    base_path  the folder that relative paths start at, absolute; None for the current folder
    """

    def find_size(path: str) -> Size | None:
        full = full_path(path, base_path)
        try:
            return image_size(full) if full else None
        except OSError:
            return None

    return find_size


def size_of_image(path: str, entry: Entry, find_size: SizeFinder) -> Size | None:
    """(height, width) of an image, from its masks or its header; None if there is neither.

    Raises SoirError if its first mask has no valid size.
    """
    masks = masks_of(entry)
    if not masks or is_polygons(masks[0]):
        return find_size(path)
    size: Any = masks[0].get("size") if isinstance(masks[0], dict) else None
    if not is_image_size(size):
        raise SoirError(f"a mask of {path} has no size: see what verify_dataset.py says of the annotation file")
    return size[0], size[1]


def _is_current(entry: Any) -> bool:
    """Whether an entry is surely of the current form. Nearly all are, and this takes a fraction of `read_form`."""
    try:
        if type(entry["set"]) is not str or type(entry["is_query"]) is not bool:
            return False
        ins, boxes, masks = entry["ins"], entry["bbox"], entry["mask"]
        if entry["is_query"]:
            return type(ins) is int and type(boxes) is tuple and _is_usual_mask(masks)
        return (
            type(ins) is type(boxes) is type(masks) is list
            and bool(entry.get("num_ins", True))
            and all(type(box) is tuple for box in boxes)
            and all(map(_is_usual_mask, masks))
        )
    except (KeyError, TypeError):
        return False


def _is_usual_mask(mask: Any) -> bool:
    try:
        return type(mask["counts"]) is str and type(mask["size"]) is list and len(mask) == 2
    except (KeyError, TypeError):
        return False


def read_form(path: Any, entry: Any, find_size: SizeFinder) -> FormReading:
    """Bring an entry, which may be anything, into the current form. The one given stays as it is."""
    if not isinstance(entry, dict) or type(path) is not str:
        return FormReading(entry, [])
    entry = dict(entry)  # files of strangers may have one entry under many paths
    changes = list(_fill_fields(entry))
    if entry.get("is_query") is True:
        changes += _read_query(entry, path, find_size)
    elif entry.get("is_query") is False:
        changes += _read_gallery(entry, path, find_size)
    return FormReading(entry, changes)


# -------------------------------------------------------------------------------------------------------------- fields


def _fill_fields(entry: Entry) -> Iterator[tuple[str, str]]:
    """Add what the basic form leaves out. Entries of the sets that we know have all of it, or are broken."""
    if "ins" not in entry and "label" in entry:
        entry["ins"] = entry.pop("label")
        yield "form-label", ""
    if type(entry.get("set")) is str and entry["set"] in SETS:
        return
    if "set" not in entry:
        entry["set"] = NO_SET
        yield "form-set", ""
    if "is_query" not in entry:
        entry["is_query"] = False
        yield "form-role", ""
    if "bbox" not in entry:
        entry["bbox"] = None
        yield "form-box", ""


def _read_query(entry: Entry, path: str, find_size: SizeFinder) -> Iterator[tuple[str, str]]:
    ins = entry.get("ins")
    if isinstance(ins, (list, tuple)) and len(ins) == 1:
        entry["ins"] = ins[0]
        yield "form-single", "a list of one id"
    box, mask = _as_tuple(entry.get("bbox")), entry.get("mask")
    if mask is None:
        entry.pop("mask", None)
    else:
        size = find_size(path) if is_polygons(mask) else None
        entry["mask"], box, changes = read_mask(mask, box, True, size)
        for check in changes:
            yield check, ""
    if "bbox" in entry:
        entry["bbox"] = box


def _read_gallery(entry: Entry, path: str, find_size: SizeFinder) -> Iterator[tuple[str, str]]:
    boxes, masks, ins = entry.get("bbox"), entry.get("mask"), entry.get("ins")
    single = []
    if boxes is None and "bbox" in entry:
        boxes = [None] * (len(ins) if isinstance(ins, (list, tuple)) else 1)
    elif _is_flat_box(boxes):
        boxes = [boxes]
        single.append("box")
    number = len(boxes) if isinstance(boxes, (list, tuple)) else 0
    if type(ins) is int:
        entry["ins"] = [ins] * max(number, 1)
        single.append("id")
    if isinstance(masks, dict) or (number == 1 and is_polygons(masks)):
        masks = [masks]
        single.append("mask")
    if single:
        yield "form-single", f"one {', one '.join(single)}"
    if number and isinstance(entry.get("num_ins"), (list, tuple)) and not entry["num_ins"]:
        del entry["num_ins"]
        yield "form-num-ins", ""
    if isinstance(boxes, (list, tuple)):
        boxes = list(map(_as_tuple, boxes))
    if "bbox" in entry:
        entry["bbox"] = boxes
    entry["mask"] = [] if masks is None else masks
    if masks and isinstance(masks, (list, tuple)) and number == len(masks):
        yield from _read_gallery_masks(entry, path, find_size)


def _read_gallery_masks(entry: Entry, path: str, find_size: SizeFinder) -> Iterator[tuple[str, str]]:
    if all(map(_is_usual_mask, entry["mask"])):
        return
    size = None
    if any(map(is_polygons, entry["mask"])):
        size = next((_size_of(mask) for mask in entry["mask"] if _size_of(mask)), None) or find_size(path)
    readings = [read_mask(mask, box, False, size) for mask, box in zip(entry["mask"], entry["bbox"])]
    entry["mask"] = [reading.mask for reading in readings]
    for check in dict.fromkeys(check for reading in readings for check in reading.changes):
        number = sum(check in reading.changes for reading in readings)
        yield check, f"{number} of its {len(readings)} masks" if len(readings) > 1 else ""


def _is_flat_box(value: Any) -> bool:
    """Whether a value is one box, four numbers, and not a list of boxes."""
    return isinstance(value, (list, tuple)) and len(value) == 4 and all(type(v) in (int, float) for v in value)


def _as_tuple(box: Any) -> Any:
    return tuple(box) if type(box) is list and len(box) == 4 else box


def _size_of(mask: Any) -> Size | None:
    size: Any = mask.get("size") if isinstance(mask, dict) else None
    return (size[0], size[1]) if is_image_size(size) else None


# --------------------------------------------------------------------------------------------------------------- masks


class MaskForm(NamedTuple):
    """A mask in the current form, the box of its object, and the checks that say what had to be changed."""

    mask: Any
    box: Any
    changes: tuple[str, ...] = ()


def read_mask(mask: Any, box: Any, is_query: bool, size: Size | None) -> MaskForm:
    """Bring a mask, which may be anything, into the current form: {"size": [height, width], "counts": str}.

    box   of its object: it tells whether a list of run lengths lacks its leading 0
    size  (height, width) of the image, which polygons need; where it is None they stay polygons
    """
    if is_polygons(mask):
        return MaskForm(_draw(mask, size) if size else mask, box, ("mask-polygons",))
    if not isinstance(mask, dict):
        return MaskForm(mask, box)
    if isinstance(mask.get("counts"), list):
        return _read_list(mask, box, is_query)
    return MaskForm(_tidy(mask), box)


def _tidy(mask: Rle) -> Rle:
    """A compressed mask, with counts as text and size as a list. pycocotools decodes bytes and tuples just as well, so
    this change is not reported."""
    size, counts = mask.get("size"), mask.get("counts")
    if _is_usual_mask(mask) or not isinstance(size, (list, tuple)) or not isinstance(counts, (str, bytes)):
        return mask
    if len(size) != 2:  # it is wrong, and may be in the file once and stand in thousands of masks
        return mask
    if isinstance(counts, bytes):
        if not counts.isascii():
            return mask
        counts = counts.decode("ascii")
    return {"size": list(size), "counts": counts}


def _draw(polygons: Any, size: Size) -> Any:
    try:
        return draw_polygons([list(polygon) for polygon in polygons], size)
    except ValueError:
        return polygons


def _read_list(mask: Rle, box: Any, is_query: bool) -> MaskForm:
    """A mask whose counts are a list of run lengths."""
    runs, size = runs_of_list(mask), _size_of(mask)
    if runs is None or size is None:
        return MaskForm(mask, box)
    whole = 0, 0, size[1], size[0]
    is_row_major = mask.get("transpose") is False
    changes = ["mask-row-major" if is_row_major else "mask-list"]
    if _is_flat_box(box):  # otherwise nothing says how the mask is meant
        mask_box: Box | None = box_of_runs(runs, size, is_row_major)
        if is_query and mask_box is None and _is_at(box, whole):
            # The render shows nothing of the object. The authors gave it the whole image as box, so its mask is that.
            runs, mask_box = np.array([0, size[0] * size[1]]), whole
            changes.append("query-mask-empty")
        elif not _agree(mask_box, box, is_query):
            inverted = np.concatenate(([0], runs))
            inverted_box = box_of_runs(inverted, size, is_row_major)
            if _agree(inverted_box, box, is_query):
                runs, mask_box = inverted, inverted_box
                changes.append("mask-inverted")
        if is_query and mask_box is not None and mask_box != box and _is_at(box, mask_box):
            box = mask_box
            changes.append("query-box-inclusive")
    try:
        return MaskForm(compress_list(runs, size, is_row_major), box, tuple(changes))
    except ValueError:  # noise, which the rules find
        return MaskForm(mask, box)


def _agree(mask_box: Box | None, box: Box, is_query: bool) -> bool:
    """Whether the box of a mask is what the box of its object says."""
    if mask_box is None:
        return False
    return _is_at(box, mask_box) if is_query else not doubt_of_mask(mask_box, box)


def _is_at(box: Box, expected: Box) -> bool:
    """Whether a box is the expected one, or that up to its last pixel, not behind it."""
    x1, y1, x2, y2 = box
    return expected in ((x1, y1, x2, y2), (x1, y1, x2 + 1, y2 + 1))
