"""Describe each image of an annotation file by the colours and the texture of its objects.

python examples/colour_features.py anns.pt features.pt
python examples/colour_features.py anns.pt objects.pt --objects
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from PIL import Image


def describe(image: Image.Image, box: Any) -> torch.Tensor:
    x1, y1, x2, y2 = map(round, box)
    pixels = np.asarray(image.crop((x1, y1, x2, y2)).resize((32, 32)), dtype=np.int64)
    colours = np.bincount(((pixels // 32) @ (64, 8, 1)).ravel(), minlength=512)
    texture = np.histogram(np.abs(np.diff(pixels.mean(axis=2))), bins=16, range=(0, 255))[0]
    return torch.tensor(np.sqrt(np.concatenate([colours, texture])))


parser = argparse.ArgumentParser(description="Describe the images of an annotation file, for evaluate_retrieval.py.")
parser.add_argument("annotations", help="annotation file, anns.pt; its image paths must be found from here")
parser.add_argument("features", help="file to write, features.pt")
parser.add_argument("--objects", action="store_true", help="keep a vector and a box for each object")
args = parser.parse_args()

features: dict[str, Any] = {}
for path, entry in torch.load(args.annotations).items():
    image = Image.open(path).convert("RGB")
    boxes = [entry["bbox"]] if entry["is_query"] else entry["bbox"]
    boxes = [box or (0, 0, image.width, image.height) for box in boxes]  # None is the whole image
    vectors = torch.stack([describe(image, box) for box in boxes])
    features[path] = {"vectors": vectors, "boxes": torch.tensor(boxes)} if args.objects else vectors.amax(dim=0)
torch.save(features, args.features)
