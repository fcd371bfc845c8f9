"""The published figures: of the data sets, and mAP of retrieval methods. docs/scoring.md says where they stand."""

from __future__ import annotations

from typing import Any


def _row(name: str, objects: float, detected: float, share: float, **numbers: int) -> dict[str, Any]:
    figures = {"objects_per_image_mean": objects, "detected_per_image_mean": detected, "object_size_mean": share}
    return {"name": name, **figures, **numbers}


# Table 1 of the paper, and its text: objects annotated in an image, objects that a detector finds in it ("#Obj OVD"),
# and object size in % of the image, all mean. Those of VoxDet-SoIR are RoboTools': 9,109 annotations on 1,580 images.
FIGURES = {
    "RoboTools": _row("VoxDet-SoIR", 5.8, 14.7, 1.1),
    "INSTRE-S1": _row("INSTRE (S1)", 1, 1.8, 21.0),
    "INSTRE-XS": _row("INSTRE-XS", 1, 1.8, 6.6, queries=2428, gallery_images=2065),
    "INSTRE-XXS": _row("INSTRE-XXS", 1, 1.9, 2.2, queries=106, gallery_images=120),
}

# Of how many queries and gallery images the published mAP is.
COUNTS = {"RoboTools": (2000, 1580), "INSTRE-XS": (2428, 2065), "INSTRE-XXS": (106, 120), "PerMiR": (150, 450)}

# mAP in %, of single descriptors of images (the README of the paper's code), by set, and by whether the model was
# fine-tuned. The paper calls the test set of RoboTools VoxDet.
MAP = {
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
