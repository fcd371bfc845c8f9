"""What an entry of an annotation file is: its fields, the sets, what it shows; and reading and writing such files.

An annotation file is one dict, image path -> entry, in a file of torch's. Entries are made by `query_entry` and
`gallery_entry`; soir/rules.py has the rules that they keep. Files of other people have entries of other forms:
soir/forms.py brings those into this one.
"""

from __future__ import annotations

from typing import Any, Dict, NamedTuple

from soir.files import SoirError
from soir.geometry import EntryBox
from soir.torch_files import check_repeats, load_values, save_values

Rle = Dict[str, Any]  # COCO RLE {"size": [height, width], "counts": str}
Entry = Dict[str, Any]
Annotations = Dict[str, Entry]


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

# The set of entries that name none, as those of the basic form (see soir/forms.py).
NO_SET = ""

SPLITS = ("train", "val", "test")


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
    entry = {"bbox": bbox} if mask is None else {"bbox": bbox, "mask": mask}
    return _with_optional({**entry, "is_query": True, "ins": ins, "set": set_name}, split=split, obj_name=obj_name)


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
    return {**entry, **{name: value for name, value in fields.items() if value is not None}}


def is_id(value: Any) -> bool:
    """Whether a value of a file is an instance id: an integer from 0 to 2^63 - 1 (no bool, nor the text "5")."""
    return type(value) is int and 0 <= value < 2**63


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
    """Whether the argument of --set, which is case-insensitive, names a set; None names all."""
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


def difficulty(occurrences: int) -> str:
    """The class of an instance, by how many annotated objects of the gallery show it."""
    if occurrences > 10:
        return "easy"
    return "medium" if occurrences >= 5 else "hard"


def read_annotations(path: str) -> Annotations:
    """Load an annotation file, which need not be trusted: nothing in it is executed (see soir/torch_files.py).

    Returns a dict, image path -> entry. The entries have not been checked: see `entry_faults`.
    Raises SoirError if the file is missing, or is no torch file of one dict of plain values.
    """
    annotations = load_values(path)
    if type(annotations) is not dict:
        raise SoirError(f"{path} holds a {type(annotations).__name__}: expected a dict, image path -> entry")
    check_repeats(path, map(_count_values, annotations.values()))
    return annotations


def _count_values(entry: Any) -> int:
    """How many values are in the lists of an entry, which may be anything, and in its masks."""
    if type(entry) is not dict:
        return 0
    masks, number = entry.get("mask"), 0
    for value in (masks, entry.get("bbox"), entry.get("ins"), entry.get("num_ins")):
        if isinstance(value, (list, tuple)):
            number += len(value)
    for mask in masks if isinstance(masks, (list, tuple)) else (masks,):
        counts = mask.get("counts") if isinstance(mask, dict) else None
        if isinstance(counts, (str, bytes, list)):
            number += len(counts)
        elif isinstance(mask, (list, tuple)):  # one polygon of a query, or the polygons of an object
            number += len(mask)
            if mask and isinstance(mask[0], (list, tuple)):
                number += sum(len(polygon) for polygon in mask if isinstance(polygon, (list, tuple)))
    return number


def save_annotations(annotations: Annotations, path: str) -> int:
    """Save a dict, image path -> entry, for `torch.load(path)`. Returns the size of the file in bytes.

    The same dict gives the same bytes. Raises SoirError if the file cannot be written.
    """
    return save_values(annotations, path)
