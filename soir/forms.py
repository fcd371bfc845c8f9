"""The forms of annotation files that people have. Every entry is brought into one of them, the current form.

current        what these scripts write: see `query_entry` and `gallery_entry` in soir/entry.py
the authors'   of the script behind the paper: masks as lists of run lengths, row-major and marked "transpose": False;
               those that begin in the foreground lack their leading 0, and read inverted; boxes of queries that end in
               their last pixel; queries with an empty mask and the whole image as box; polygons of a COCO file;
               "num_ins": [] beside boxes; NumPy values, which soir/torch_files.py makes plain
basic          of the paper's retrieval code, its README and its example (PerMiR, one's own photographs): no `set`, no
               `mask`, `is_query` only where it is true, one id and one box of a gallery image too, `label` for `ins`, a
               box that is None or missing: the whole image

An entry may mix them. What is wrong in any form stays as it is, for soir/rules.py to find; the rules, and the scripts,
know the current form only.
"""

from __future__ import annotations

import os
from typing import Any, Callable, NamedTuple, Optional

import numpy as np

from soir import geometry, rle, rules
from soir.entry import NO_SET, SETS, Annotations, Entry, Rle, masks_of, read_annotations
from soir.files import SoirError
from soir.findings import progress_bar, shorten
from soir.geometry import Box, Size
from soir.images import image_size, is_image_size
from soir.paths import full_path
from soir.rle import MaskBox

SizeFinder = Callable[[str], Optional[Size]]  # path of an entry -> (height, width) of its image, if it can be read
Note = Callable[[str, Any, str], None]  # called with (check of soir/rules.py, image path, detail) for every change


def load_annotations(path: str, base_path: str | None = None) -> Annotations:
    """Load an annotation file of any form, in the current form; nothing in it is run.

    base_path  the folder that relative image paths start at; asked only for images with polygons, whose size it tells
    Returns a dict, image path -> entry. The entries have not been checked: see `entry_faults`.
    Raises SoirError if the file is missing, or is not an annotation file.
    """
    return load_any_form(path, size_finder(base_path and os.path.abspath(base_path)))


def load_any_form(path: str, find_size: SizeFinder, note: Note = lambda check, name, detail: None) -> Annotations:
    """Load an annotation file as `load_annotations` does.

    find_size  says how large an image is; only asked for images with polygons, which do not say it
    note       called with (check, image path, detail) for whatever had to be changed
    """
    annotations = read_annotations(path)
    read_forms(annotations, find_size, note)
    return annotations


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
    size = size_of_mask(masks[0])
    if size is None:
        raise SoirError(f"a mask of {path} has no size: see what verify_dataset.py says of the annotation file")
    return size


def size_of_mask(mask: Any) -> Size | None:
    """(height, width) of a mask, which may be anything; None if it does not say it."""
    size: Any = mask.get("size") if isinstance(mask, dict) else None
    return (size[0], size[1]) if is_image_size(size) else None


def read_forms(annotations: Annotations, find_size: SizeFinder, note: Note = lambda check, name, detail: None) -> None:
    """Bring all entries of a dict into the current form, in place. They may be anything; arguments as above."""
    queries = []  # of OWID with is_val, which knew it of gallery images only
    val_instances: set[int] = set()
    for path, entry in progress_bar("forms", annotations.items()):
        if isinstance(entry, dict) and type(path) is str:
            new = annotations[path] = read_form(path, entry, find_size, note)
            if "is_val" in entry and new.get("set") == "OWID":
                if new.get("is_query") is True:
                    queries.append(new)
                elif new.get("split") == "val" and isinstance(new.get("ins"), list):
                    val_instances.update(number for number in new["ins"] if type(number) is int)
    for query in queries:
        if type(query.get("ins")) is int and query["ins"] in val_instances:
            query["split"] = "val"


def read_form(path: str, entry: Entry, find_size: SizeFinder, note: Note) -> Entry:
    """An entry in the current form. The one given stays as it is: the files of strangers may have it at many paths."""
    entry = dict(entry)

    def changed(check: str, detail: str = "") -> None:
        note(check, path, detail)

    if "ins" not in entry and "label" in entry:
        entry["ins"] = entry.pop("label")
        changed("form-label")
    if type(entry.get("set")) is not str or entry["set"] not in SETS:  # those have all fields, or are broken
        if "set" not in entry:
            entry["set"] = NO_SET
            changed("form-set")
        if "is_query" not in entry:
            entry["is_query"] = False
            changed("form-role")
        if "bbox" not in entry:
            entry["bbox"] = None
            changed("form-box")
    if type(entry.get("is_val")) is bool and "split" not in entry:
        entry["split"] = "test" if entry["set"] == "RoboTools" else "val" if entry["is_val"] else "train"
        del entry["is_val"]
        changed("form-is-val")
    if entry.get("is_query") is True:
        _read_query(entry, path, find_size, changed)
    elif entry.get("is_query") is False:
        _read_gallery(entry, path, find_size, changed)
    return entry


def _read_query(entry: Entry, path: str, find_size: SizeFinder, changed: Callable[..., None]) -> None:
    ins, mask = entry.get("ins"), entry.get("mask")
    if isinstance(ins, (list, tuple)) and len(ins) == 1:
        entry["ins"] = ins[0]
        changed("form-single", "a list of one id")
    if isinstance(mask, (list, tuple)) and len(mask) == 1 and (isinstance(mask[0], dict) or _is_dense(mask[0])):
        mask = mask[0]
        changed("form-single", "a list of one mask")
    if "bbox" in entry:
        entry["bbox"] = _as_tuple(entry["bbox"])
    if mask is None:
        entry.pop("mask", None)
    else:
        size = find_size(path) if rle.is_polygons(mask) and not _is_dense(mask) else None
        reading = read_entry_mask(mask, entry.get("bbox"), True, size)
        entry["mask"] = reading.mask
        for check in reading.changes:
            changed(check)
        if "bbox" in entry:
            entry["bbox"] = reading.box


def _read_gallery(entry: Entry, path: str, find_size: SizeFinder, changed: Callable[..., None]) -> None:
    boxes, masks, ins = entry.get("bbox"), entry.get("mask"), entry.get("ins")
    single = []
    if boxes is None and "bbox" in entry:
        boxes = [None] * (len(ins) if isinstance(ins, (list, tuple)) else 1)
    elif geometry.is_four_numbers(boxes):
        boxes = [boxes]
        single.append("box")
    number = len(boxes) if isinstance(boxes, (list, tuple)) else 0
    if type(ins) is int:
        entry["ins"] = [ins] * max(number, 1)
        single.append("id")
    if isinstance(masks, dict) or (number == 1 and (rle.is_polygons(masks) or _is_dense(masks))):
        masks = [masks]
        single.append("mask")
    if single:
        changed("form-single", f"one {', one '.join(single)}")
    if number and isinstance(entry.get("num_ins"), (list, tuple)) and not entry["num_ins"]:
        del entry["num_ins"]
        changed("form-num-ins")
    if "bbox" in entry:
        entry["bbox"] = list(map(_as_tuple, boxes)) if isinstance(boxes, (list, tuple)) else boxes
    entry["mask"] = [] if masks is None else masks
    if isinstance(masks, (list, tuple)) and number == len(masks) and not all(map(_is_usual_mask, masks)):
        _read_gallery_masks(entry, path, find_size, changed)


def _read_gallery_masks(entry: Entry, path: str, find_size: SizeFinder, changed: Callable[..., None]) -> None:
    size = None
    if any(map(rle.is_polygons, entry["mask"])):
        size = next(filter(None, map(size_of_mask, entry["mask"])), None) or find_size(path)
    readings = [read_entry_mask(mask, box, False, size) for mask, box in zip(entry["mask"], entry["bbox"])]
    entry["mask"] = [reading.mask for reading in readings]
    for check in dict.fromkeys(check for reading in readings for check in reading.changes):
        number = sum(check in reading.changes for reading in readings)
        changed(check, f"{number} of its {len(readings)} masks" if len(readings) > 1 else "")


def _as_tuple(box: Any) -> Any:
    return tuple(box) if type(box) is list and len(box) == 4 else box


def _is_usual_mask(mask: Any) -> bool:
    """Whether a mask is of the current form, valid or not. Nearly all are."""
    return type(mask) is dict and len(mask) == 2 and type(mask.get("counts")) is str and type(mask.get("size")) is list


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
    if _is_usual_mask(mask):
        return MaskForm(mask, box)
    if _is_dense(mask):
        pixels = np.array(mask, dtype=bool)
        encoded = rle.encode_mask(pixels, (0, 0), pixels.shape)
        return MaskForm(encoded[0] if encoded else mask, box, ("form-dense",))
    if rle.is_polygons(mask):
        return MaskForm(_draw(mask, size) if size else mask, box, ("mask-polygons",))
    if not isinstance(mask, dict):
        return MaskForm(mask, box)
    if isinstance(mask.get("counts"), list):
        return _read_list(mask, box, is_query)
    return MaskForm(_tidy(mask), box)


def _is_dense(mask: Any) -> bool:
    """Whether a mask is the pixels of an image, [h, w], that are bool, 0 and 1, or 0 and 255: rows of one length."""
    if not isinstance(mask, (list, tuple)) or len(mask) < 2 or not isinstance(mask[0], (list, tuple)):
        return False
    width = len(mask[0])
    is_regular = all(isinstance(row, (list, tuple)) and len(row) == width for row in mask)
    if not is_regular or not is_image_size((len(mask), width)):
        return False
    if not all(type(value) in (int, bool) for row in mask for value in row):
        return False
    return any(all(set(row) <= levels for row in mask) for levels in ({0, 1}, {0, 255}))


def _draw(polygons: Any, size: Size) -> Any:
    try:
        return rle.draw_polygons([list(polygon) for polygon in polygons], size)
    except ValueError:
        return polygons


def _tidy(mask: Rle) -> Rle:
    """A compressed mask, with counts as text and size as a list. pycocotools decodes bytes and tuples just as well, so
    this change is not reported."""
    size, counts = mask.get("size"), mask.get("counts")
    # A size of other length is wrong, and may be in the file once and in thousands of masks.
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not isinstance(counts, (str, bytes)):
        return mask
    if isinstance(counts, bytes):
        if not counts.isascii():
            return mask
        counts = counts.decode("ascii")
    return {"size": list(size), "counts": counts}


def _read_list(mask: Rle, box: Any, is_query: bool) -> MaskForm:
    """A mask whose counts are a list of run lengths: with "transpose": False, as the authors' script wrote it, they are
    row-major; otherwise column-major, as COCO's."""
    size, runs = size_of_mask(mask), rle.as_runs(mask["counts"])
    if size is None or runs is None or not rle.fills(runs, size):
        return MaskForm(mask, box)
    whole = 0, 0, size[1], size[0]
    is_row_major = mask.get("transpose") is False
    changes = ["mask-row-major" if is_row_major else "mask-list"]
    if geometry.is_four_numbers(box):  # otherwise nothing says how the mask is meant
        mask_box: Box | None = _box_of_runs(runs, size, is_row_major)
        if is_query and mask_box is None and _is_at(box, whole):
            # The render shows nothing of the object. The authors gave it the whole image as box, so its mask is that.
            runs, mask_box = np.array([0, size[0] * size[1]], dtype=np.uint32), whole
            changes.append("query-mask-empty")
        elif not _agree(mask_box, box, is_query):
            inverted = np.insert(runs, 0, 0)
            inverted_box = _box_of_runs(inverted, size, is_row_major)
            if _agree(inverted_box, box, is_query):
                runs, mask_box = inverted, inverted_box
                changes.append("mask-inverted")
        if is_query and mask_box is not None and mask_box != box and _is_at(box, mask_box):
            box = mask_box
            changes.append("query-box-inclusive")
    try:
        return MaskForm(_compress(runs, size, is_row_major), box, tuple(changes))
    except ValueError:  # noise, which the rules find
        return MaskForm(mask, box)


def _box_of_runs(runs: np.ndarray, size: Size, is_row_major: bool) -> MaskBox | None:
    """Half-open box of a mask of (height, width) from its run lengths; None if it is empty."""
    if not is_row_major:
        return rle.boxes_of_masks([rle.compress_runs(runs, size)])[0]
    turned = _box_of_runs(runs, size[::-1], False)  # read as column-major, the image is transposed
    return turned and (turned[1], turned[0], turned[3], turned[2])


def _compress(runs: np.ndarray, size: Size, is_row_major: bool) -> Rle:
    """Run lengths of a mask of (height, width) -> compressed RLE. Raises ValueError for noise."""
    box = _box_of_runs(runs, size, is_row_major)
    if is_row_major and box:
        # Only the rectangle that is not empty is decoded, a tenth of a photograph or less.
        left, top, right, bottom = box
        edges = np.clip(np.cumsum(runs, dtype=np.int64), top * size[1], bottom * size[1]) - top * size[1]
        flat = np.repeat(np.arange(runs.size) % 2 == 1, np.diff(edges, prepend=0))
        encoded = rle.encode_mask(flat.reshape(bottom - top, size[1])[:, left:right], (top, left), size)
        if encoded:
            return encoded[0]
    return rle.compress_runs(runs, size)


def _agree(mask_box: Box | None, box: Box, is_query: bool) -> bool:
    """Whether the box of a mask is what the box of its object says."""
    if mask_box is None:
        return False
    return _is_at(box, mask_box) if is_query else not geometry.contradiction(mask_box, box)


def _is_at(box: Box, expected: Box) -> bool:
    """Whether a box is the expected one, or that up to its last pixel, not behind it."""
    x1, y1, x2, y2 = box
    return expected in ((x1, y1, x2, y2), (x1, y1, x2 + 1, y2 + 1))
