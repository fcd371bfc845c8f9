"""The public face of these tools: what an entry is, reading and writing annotation files."""

from __future__ import annotations

from soir.entry import boxes_of, gallery_entry, instances_of, load_annotations, masks_of, query_entry, save_annotations
from soir.files import SoirError
from soir.rle import decode_mask
from soir.rules import entry_faults

__all__ = [
    "SoirError",
    "boxes_of",
    "decode_mask",
    "entry_faults",
    "gallery_entry",
    "instances_of",
    "load_annotations",
    "masks_of",
    "query_entry",
    "save_annotations",
]
