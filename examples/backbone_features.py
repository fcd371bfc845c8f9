"""Describe each image of an annotation file by a network of timm, as a whole or object by object.

In   an annotation file and its images; perhaps a file of detections (soir/detections.py)
Out  features for evaluate_retrieval.py: paths, features, and with objects their boxes

    python examples/backbone_features.py anns.pt features.npz --model vit_base_patch14_dinov2.lvd142m --pretrained
    python examples/backbone_features.py anns.pt features.npz --model resnet50 --weights mine.pth --boxes detections.pt

A query is cropped to its box. Gallery images are described as they are, or with --boxes once per box: `annotated`
takes those of the annotation file, which is an upper bound and no result; a file of detections is the real thing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import Any, Iterator, NamedTuple

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import soir.startup  # noqa: F401

from soir.console import absolute_base, exit_status
from soir.detections import Detections, read_detections
from soir.entry import Annotations, boxes_of
from soir.files import SoirError, check_outputs, whole_file
from soir.findings import Findings, print_findings, progress_bar
from soir.forms import load_sound, size_finder
from soir.images import read_image
from soir.paths import full_path


class Crop(NamedTuple):
    """A part of an image to describe; of the box None, all of it."""

    path: str
    box: Any  # (x1, y1, x2, y2) in pixels


def list_crops(annotations: Annotations, detections: Detections | None, annotated: bool) -> Iterator[Crop]:
    for path, entry in annotations.items():
        boxes: Any = [None]
        if entry["is_query"] or annotated:
            boxes = boxes_of(entry)
        elif detections is not None:
            boxes = detections.get(path, ())
        for box in boxes:
            yield Crop(path, box)


class Crops(torch.utils.data.Dataset[torch.Tensor]):
    """The crops, transformed as the network wants them."""

    def __init__(self, crops: list[Crop], base_path: str | None, transform: Any) -> None:
        self.crops, self.base_path, self.transform = crops, base_path, transform

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> torch.Tensor:
        crop = self.crops[index]
        full = full_path(crop.path, self.base_path)
        if full is None:
            raise SoirError(f"{crop.path} leads out of --base-path")
        pixels: Image.Image = read_image(full).convert("RGB")
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
    add("--weights", metavar="FILE", help="load the model's weights, without a classifier, from here")
    add("--boxes", metavar="annotated|FILE", help="describe gallery images object by object")
    add("--min-score", type=float, default=0.2, metavar="S", help="lowest score of a detection (default: 0.2)")
    add("--base-path", metavar="DIR", help="folder that relative image paths start at")
    add("--batch-size", type=int, default=64, metavar="N", help="crops at a time (default: 64)")
    add("--workers", type=int, default=2, metavar="N", help="processes that read images (default: 2)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu (default: what there is)")
    args = parser.parse_args()
    if not args.features.lower().endswith(".npz"):
        parser.error(f"expected a file to write that ends in .npz, found {args.features}")
    return args


def make_model(timm: Any, args: argparse.Namespace) -> Any:
    """The network, without its classifier. Raises SoirError if timm cannot make it."""
    if args.weights and not os.path.isfile(args.weights):
        raise SoirError(f"{args.weights} is missing: name a file of weights")
    torch.manual_seed(0)  # of random weights
    try:
        return timm.create_model(args.model, args.pretrained, checkpoint_path=args.weights or "", num_classes=0)
    except Exception as error:  # of many kinds: no such model, no network, weights of another one
        reason = (str(error) or type(error).__name__).strip().splitlines()[-1].strip()
        raise SoirError(f"timm cannot make {args.model}: {reason}") from error


@exit_status()
@torch.inference_mode()
def main() -> None:
    args = parse_args()
    try:
        timm: Any = importlib.import_module("timm")  # here, not above, for the error
    except ModuleNotFoundError as error:
        raise SoirError(f"{error.name} is not installed: pip install timm") from error
    check_outputs([args.features], [args.annotations, args.weights, args.boxes if args.boxes != "annotated" else None])
    base_path = absolute_base(args.base_path)
    annotations, findings = load_sound(args.annotations, size_finder(base_path)), Findings()
    detections = None
    if args.boxes not in (None, "annotated"):
        detections = read_detections(args.boxes, annotations, args.min_score, findings)

    model = make_model(timm, args)
    model.eval().to(args.device)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    crops = list(list_crops(annotations, detections, args.boxes == "annotated"))
    loader = torch.utils.data.DataLoader(Crops(crops, base_path, transform), args.batch_size, num_workers=args.workers)
    batches = progress_bar("describing", loader, len(loader))
    try:
        vectors = [model(batch.to(args.device)).float().cpu().numpy() for batch in batches]
    except (OSError, SoirError) as error:  # that of a worker brings its traceback, and the reason in the last line
        raise SoirError(str(error).strip().splitlines()[-1]) from error

    content: dict[str, Any] = {"paths": [crop.path for crop in crops], "features": np.concatenate(vectors)}
    if args.boxes:
        content["boxes"] = [(np.nan,) * 4 if crop.box is None else crop.box for crop in crops]
    with whole_file(args.features) as file:
        np.savez(file, **content)
    if not args.weights and not args.pretrained:
        print("the weights were random: --pretrained or --weights FILE names others")
    print_findings(findings, skipped="skipped of the detections", noticed="noticed of the detections")


if __name__ == "__main__":
    main()
