"""The public face of these tools, for your own code: annotation files, entries and their masks, and scores.

from soir_common import evaluate, load_annotations

annotations = load_annotations("anns.pt")
scores = evaluate(annotations, features=features, set_name="OWID", split="val")  # image path -> tensor or array
scores["mAP"], scores["hit@1"], scores["queries"]
"""

from __future__ import annotations

from soir.entry import boxes_of, gallery_entry, instances_of, masks_of, query_entry, save_annotations
from soir.files import SoirError
from soir.forms import load_annotations
from soir.rle import decode_mask
from soir.rules import entry_faults
from soir.scoring import evaluate

__all__ = [
    "SoirError",
    "boxes_of",
    "decode_mask",
    "entry_faults",
    "evaluate",
    "gallery_entry",
    "instances_of",
    "load_annotations",
    "masks_of",
    "query_entry",
    "save_annotations",
]
