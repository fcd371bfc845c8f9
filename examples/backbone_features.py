"""Describe each image of an annotation file by a network of timm, as a whole or object by object.

In   an annotation file and its images; perhaps detections: path -> {"bboxes": [[x1, y1, x2, y2], ...], ...}
Out  features for evaluate_retrieval.py: paths, features, and with objects their boxes

    python examples/backbone_features.py anns.pt features.npz --model vit_base_patch14_dinov2.lvd142m --pretrained
    python examples/backbone_features.py anns.pt features.npz --model resnet50 --weights mine.pth --boxes detections.pt

A query is cropped to its box. Gallery images are described as they are, or with --boxes once per box: `annotated`
takes those of the annotation file, which is an upper bound and no result; a file of detections is the real thing.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Iterator, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

try:
    import timm
except ModuleNotFoundError:
    sys.exit("error: timm is not installed: pip install timm")


class Crop(NamedTuple):
    """A part of an image to describe; of the box None, all of it."""

    path: str
    box: Any  # (x1, y1, x2, y2) in pixels


def list_crops(annotations: dict[str, Any], detections: dict[str, Any] | None, annotated: bool) -> Iterator[Crop]:
    for path, entry in annotations.items():
        if entry["is_query"]:
            boxes = [entry["bbox"]]
        elif annotated:
            boxes = entry["bbox"]
        elif detections is not None:
            boxes = detections.get(path, {}).get("bboxes", [])
        else:
            boxes = [None]
        for box in boxes:
            yield Crop(path, box)


class Crops(torch.utils.data.Dataset[torch.Tensor]):
    """The crops, transformed as the network wants them."""

    def __init__(self, crops: list[Crop], base_path: str, transform: Any) -> None:
        self.crops, self.base_path, self.transform = crops, base_path, transform

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> torch.Tensor:
        crop = self.crops[index]
        with Image.open(os.path.join(self.base_path, crop.path)) as image:
            pixels = image.convert("RGB")
        if crop.box is not None:
            x1, y1, x2, y2 = map(round, crop.box)
            pixels = pixels.crop((x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)))
        transformed: torch.Tensor = self.transform(pixels)
        return transformed


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Describe the images of an annotation file by a network of timm.")
    add = parser.add_argument
    add("annotations", help="annotation file, anns.pt")
    add("features", help="file to write, features.npz")
    add("--model", default="resnet50", help="name of a model of timm (default: resnet50)")
    add("--pretrained", action="store_true", help="download the model's weights")
    add("--weights", metavar="FILE", help="load the model's weights from here")
    add("--boxes", metavar="annotated|FILE", help="describe gallery images object by object")
    add("--base-path", default="", metavar="DIR", help="folder that relative image paths start at")
    add("--batch-size", type=int, default=64, metavar="N", help="crops at a time (default: 64)")
    add("--workers", type=int, default=2, metavar="N", help="processes that read images (default: 2)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu (default: what there is)")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    args = parse_args()
    torch.manual_seed(0)  # of the random weights, if there are no others
    model = timm.create_model(args.model, pretrained=args.pretrained, checkpoint_path=args.weights or "", num_classes=0)
    model.eval().to(args.device)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))

    detections = torch.load(args.boxes) if args.boxes not in (None, "annotated") else None
    crops = list(list_crops(torch.load(args.annotations), detections, args.boxes == "annotated"))
    loader = torch.utils.data.DataLoader(
        Crops(crops, args.base_path, transform), args.batch_size, num_workers=args.workers
    )
    vectors = [model(batch.to(args.device)).float().cpu().numpy() for batch in tqdm(loader, desc="describing")]

    content: dict[str, Any] = {"paths": [crop.path for crop in crops], "features": np.concatenate(vectors)}
    if args.boxes:
        content["boxes"] = [crop.box for crop in crops]
    np.savez(args.features, **content)


if __name__ == "__main__":
    main()
