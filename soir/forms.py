"""The forms of annotation files that people have. Every entry is brought into one of them, the current form.

current        what these scripts write: see `query_entry` and `gallery_entry` in soir/common.py
the authors'   of the script behind the paper: masks as lists of run lengths, row-major and marked "transpose": False;
               those that begin in the foreground lack their leading 0, and read inverted; boxes of queries that end in
               their last pixel; queries with an empty mask and the whole image as box; polygons of a COCO file;
               "num_ins": [] beside boxes; NumPy values, which soir/loading.py makes plain
basic          of the paper's retrieval code, its README and its example (PerMiR, one's own photographs): no `set`, no
               `mask`, `is_query` only where it is true, one id and one box of a gallery image too, `label` for `ins`, a
               box that is None or missing: the whole image

An entry may mix them. What is wrong in any form stays as it is, for the rules of soir/common.py to find; they, and the
scripts, know the current form only.
"""

from __future__ import annotations

import os
from typing import Any, Callable, Iterator, NamedTuple, Optional

import numpy as np

from soir import geometry, rle, rules
from soir.entry import NO_SET, SETS, Annotations, Entry, Rle, masks_of, read_annotations
from soir.files import SoirError
from soir.findings import progress_bar, shorten
from soir.geometry import Box, Size
from soir.images import image_size, is_image_size
from soir.paths import full_path
from soir.rle import MaskBox

# ---------------------------------------------------------------------------- lists of run lengths, as files have them


def runs_of_list(mask: Any) -> np.ndarray | None:
    """The run lengths, int64 [N], of a mask whose counts are a list; None if they are no valid ones.

    mask  what stands for a mask in an annotation file, which may be anything. With "transpose": False, as the authors'
          script wrote it, its runs are row-major; otherwise column-major, as COCO's.
    """
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), list) or not is_image_size(mask.get("size")):
        return None
    counts = mask["counts"]
    if not counts or not all(type(run) is int and run >= 0 for run in counts):
        return None
    return np.array(counts, dtype=np.int64) if sum(counts) == mask["size"][0] * mask["size"][1] else None


def box_of_runs(runs: np.ndarray, size: tuple[int, int], is_row_major: bool) -> MaskBox | None:
    """Half-open box of a mask of (height, width) from its valid run lengths; None if it is empty."""
    foreground = np.arange(runs.size) % 2 == 1
    if not runs[foreground].any():
        return None
    lines = np.array([size[1] if is_row_major else size[0]])  # row-major ones are column-major ones of the turned image
    left, top, right, bottom = rle._boxes_of_runs(runs, np.zeros(runs.size, dtype=np.int64), foreground, lines)[
        0
    ].tolist()
    return (top, left, bottom, right) if is_row_major else (left, top, right, bottom)


def compress_list(runs: np.ndarray, size: tuple[int, int], is_row_major: bool) -> Rle:
    """Valid run lengths of a mask of (height, width) -> compressed RLE. Raises ValueError for noise."""
    box = box_of_runs(runs, size, is_row_major)
    if box is None or not is_row_major:
        return rle.compress_runs(runs.astype(np.uint32), size)
    # Only the rectangle that is not empty is decoded, a tenth of a photograph or less.
    left, top, right, bottom = box
    edges = np.clip(np.cumsum(runs), top * size[1], bottom * size[1]) - top * size[1]
    flat = np.repeat(np.arange(runs.size) % 2 == 1, np.diff(edges, prepend=0))
    encoded = rle.encode_mask(flat.reshape(bottom - top, size[1])[:, left:right], (top, left), size)
    return encoded[0] if encoded else rle.compress_runs(runs.astype(np.uint32), size)


SizeFinder = Callable[[str], Optional[Size]]  # path of an entry -> (height, width) of its image, if it can be read


class FormReading(NamedTuple):
    """An entry in the current form, and what had to be changed for it."""

    entry: Any
    changes: list[tuple[str, str]]  # (check, detail); the checks are those of FORM_CHECKS


def load_annotations(path: str, base_path: str | None = None) -> Annotations:
    """Load an annotation file of any form, in the current form; nothing in it is run.

    base_path  the folder that relative image paths start at; asked only for images with polygons, whose size it tells
    Returns a dict, image path -> entry. The entries have not been checked: see `entry_faults`.
    Raises SoirError if the file is missing, or is not an annotation file.
    """
    return load_any_form(path, size_finder(base_path and os.path.abspath(base_path)))


def load_any_form(
    path: str, find_size: SizeFinder, note: Callable[[str, Any, str], None] = lambda check, name, detail: None
) -> Annotations:
    """Load an annotation file as `load_annotations` does.

    find_size  says how large an image is; only asked for images with polygons, which do not say it
    note       called with (check, image path, detail) for whatever had to be changed
    """
    return in_current_form(read_annotations(path), find_size, note)


def in_current_form(
    annotations: Annotations,
    find_size: SizeFinder,
    note: Callable[[str, Any, str], None] = lambda check, name, detail: None,
) -> Annotations:
    """Entries of any form, in the current form; those given stay as they are. See `load_any_form`."""
    current = {}
    for name, entry in progress_bar("forms", annotations.items()):
        current[name] = entry
        if not _is_current(entry):
            current[name], changes = read_form(name, entry, find_size)
            for check, detail in changes:
                note(check, name, detail)
    return current


def load_sound(path: str, find_size: SizeFinder) -> Annotations:
    """Load an annotation file as `load_any_form` does. Raises SoirError also if an entry breaks a rule."""
    return check_sound(load_any_form(path, find_size), path)


def check_sound(annotations: Annotations, place: str) -> Annotations:
    """The same entries, in the current form. Raises SoirError if one breaks a rule.

    place  what messages call them: the path of their file
    """
    for name, entry in annotations.items():
        for check, _ in rules.entry_faults(name, entry):
            raise SoirError(f"{place} has errors ({check}: {shorten(name)}): see what verify_dataset.py says of it")
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
    if not masks or rle.is_polygons(masks[0]):
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
        size = find_size(path) if rle.is_polygons(mask) else None
        entry["mask"], box, changes = read_entry_mask(mask, box, True, size)
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
    if isinstance(masks, dict) or (number == 1 and rle.is_polygons(masks)):
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
    if any(map(rle.is_polygons, entry["mask"])):
        size = next((_size_of(mask) for mask in entry["mask"] if _size_of(mask)), None) or find_size(path)
    readings = [read_entry_mask(mask, box, False, size) for mask, box in zip(entry["mask"], entry["bbox"])]
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


def read_entry_mask(mask: Any, box: Any, is_query: bool, size: Size | None) -> MaskForm:
    """Bring a mask, which may be anything, into the current form: {"size": [height, width], "counts": str}.

    box   of its object: it tells whether a list of run lengths lacks its leading 0
    size  (height, width) of the image, which polygons need; where it is None they stay polygons
    """
    if rle.is_polygons(mask):
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
        return rle.draw_polygons([list(polygon) for polygon in polygons], size)
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
    return _is_at(box, mask_box) if is_query else not geometry.doubt_of_mask(mask_box, box)


def _is_at(box: Box, expected: Box) -> bool:
    """Whether a box is the expected one, or that up to its last pixel, not behind it."""
    x1, y1, x2, y2 = box
    return expected in ((x1, y1, x2, y2), (x1, y1, x2 + 1, y2 + 1))
