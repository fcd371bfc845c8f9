"""Detections: what an open vocabulary detector found in the images, beside what is annotated there.

Three kinds of files are read. A name that ends in .json is one of the last two:

    captions.pt   of the paper's code, whose detector is OWLv2: image path -> {"bboxes": [[x1, y1, x2, y2], ...],
                  "scores": [...], "masks_rle": [...]}, all of one length
    COCO results  a list of {"image_id": image path, "bbox": [x, y, width, height], "score"}
    COCO file     its file names are image paths, and its annotations have a score
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Dict, Iterator, Mapping, Tuple

import numpy as np

from soir import geometry
from soir.entry import Annotations, is_id
from soir.files import SoirError, read_json
from soir.findings import Findings, shorten
from soir.geometry import Size
from soir.paths import tidy_path
from soir.torch_files import check_repeats, load_values

# An annotated box is covered by a detection whose intersection over union with it is at least this.
COVER_IOU = 0.5

Detections = Dict[str, np.ndarray]  # image path -> float64 [N, 4], the boxes (x1, y1, x2, y2)
Records = Iterator[Tuple[Any, Any, Any]]  # (image path, box, score) of a file: each may be anything


def read_detections(
    path: str, annotations: Annotations, min_score: float, findings: Findings, sizes: Mapping[str, Size] = {}
) -> Detections:
    """Read the detections in the images of an annotation file.

    min_score  detections below it do not count
    sizes      (height, width) of the images, as far as they are known: boxes that reach out of them are noticed
    Returns the boxes of every image that the file names. What cannot be used is added to the findings.
    Raises SoirError if the file holds no detections, names none of these images, or has boxes that are mostly shares of
    the image.
    """
    known = {tidy_path(name): name for name in annotations if isinstance(name, str) and "\0" not in name}
    boxes: defaultdict[str, list[Any]] = defaultdict(list)
    other_paths: dict[str, None] = {}
    below = 0
    records = read_results(path) if path.lower().endswith(".json") else read_captions(path, findings)
    for spelled, box, score in records:
        name = known.get(tidy_path(spelled)) if isinstance(spelled, str) else None
        if name is None:
            other_paths[shorten(spelled)] = None
            continue
        found = boxes[name]
        if box is None:  # the image was looked at
            continue
        if type(score) not in (int, float) or not -1e9 < score < 1e9:
            findings.skip("detection whose score is no number", name)
        elif not geometry.is_box(box):
            findings.skip("detection whose box is no box of positive size", name)
        elif score >= min_score:
            found.append(box)
        else:
            below += 1
    if not boxes:
        there = f"paths like {next(iter(other_paths))}" if other_paths else next(iter(findings.skipped), "nothing")
        expected = shorten(next(iter(annotations)))
        raise SoirError(f"{path} has detections for none of the images: expected paths like {expected}, found {there}")
    in_shares = [geometry.is_in_shares(box) for found in boxes.values() for box in found]
    if sum(in_shares) > len(in_shares) / 2:
        raise geometry.shares_error(f"{sum(in_shares):,} of the {len(in_shares):,} boxes of {path}")
    if below and not any(boxes.values()):
        findings.notice(f"detections whose score is below {min_score:g}, all {below:,}: logits? see --min-score", path)
    outside = [
        name
        for name, found in boxes.items()
        for box in (found if name in sizes else ())
        if geometry.reach(box, (0, 0, sizes[name][1], sizes[name][0])) > geometry.TOLERANCE
    ]
    if outside:
        of_all = f"{len(outside):,} of {len(in_shares):,}"
        reason = f"detections whose box reaches out of its image, {of_all}: in another frame, as the padded square?"
        findings.notice(reason, outside[0])
    for other in other_paths:
        findings.skip("path that is no image of the annotation file", other)
    for name, entry in annotations.items():
        if isinstance(entry, dict) and entry.get("is_query") is False and name not in boxes:
            findings.notice("gallery image that is not in the detections, counted as one without any", shorten(name))
    return {name: np.array(found, dtype=np.float64).reshape(-1, 4) for name, found in boxes.items()}


def read_captions(path: str, findings: Findings) -> Records:
    """Yield the detections of a file like captions.pt; an image without any as one without a box."""
    content = load_values(path, arrays=True)
    if not isinstance(content, dict):
        raise SoirError(f"{path} holds no detections: expected a dict, image path -> bboxes, scores and masks_rle")
    check_repeats(path, (_count_items(record.get("bboxes")) for record in content.values() if isinstance(record, dict)))
    for name, record in content.items():
        if not isinstance(record, dict) or "bboxes" not in record:
            findings.skip("image without bboxes in the detections", shorten(name))
            continue
        boxes = _as_list(record["bboxes"])
        scores = _as_list(record["scores"]) if "scores" in record else [1.0] * len(boxes)
        if "scores" not in record:
            findings.notice("image whose detections have no scores, so that all of them count", shorten(name))
        lengths = {len(boxes), len(scores), *([_length_of(record["masks_rle"])] if "masks_rle" in record else [])}
        if len(lengths) > 1:
            findings.skip("image whose bboxes, scores and masks_rle differ in length", shorten(name))
            continue
        yield name, None, None
        for box, score in zip(boxes, scores):
            if isinstance(score, np.ndarray) and not score.ndim:  # a number in an array of its own
                score = score.tolist()
            yield name, tuple(_as_list(box)), score


def read_results(path: str) -> Records:
    """Yield the detections of a file of COCO results, or of a COCO file whose annotations have scores."""
    content = read_json(path)
    names: dict[int, Any] = {}
    records = content
    if isinstance(content, dict):
        images, records = content.get("images"), content.get("annotations")
        for image in images if isinstance(images, list) else []:
            if isinstance(image, dict) and is_id(image.get("id")):
                names[image["id"]] = image.get("file_name")
                yield image.get("file_name"), None, None
    if not isinstance(records, list):
        raise SoirError(f'{path} holds no detections: expected COCO results, a list of {{"image_id", "bbox", "score"}}')
    for record in records:
        record = record if isinstance(record, dict) else {}
        name = record.get("image_id")
        if is_id(name) and name in names:
            name = names[name]
        yield name, geometry.xyxy_of(record.get("bbox")) or (), record.get("score")


def _as_list(value: Any) -> list[Any]:
    """A list, a tuple, or an array as plain values; anything else as no values."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return list(value) if isinstance(value, (list, tuple)) else []


def _count_items(value: Any) -> int:
    """How many values there are: an array can claim to be far larger than its file."""
    return value.size if isinstance(value, np.ndarray) else _length_of(value)


def _length_of(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.shape[0] if value.ndim else 0
    return len(value) if isinstance(value, (list, tuple)) else 0


def detection_figures(gallery: Annotations, sizes: dict[str, Size], detections: Detections) -> dict[str, Any]:
    """How many objects were detected in the gallery images of a set, and how many annotated boxes that covers.

    sizes  (height, width) of the images, as far as they are known; a box that is the whole image counts only there
    """
    detected, boxes, covered = 0, 0, 0
    for path, entry in gallery.items():
        found = detections.get(path, np.zeros((0, 4))).tolist()
        detected += len(found)
        for box in entry["bbox"]:
            if box is not None or path in sizes:
                boxes += 1
                shown = geometry.in_pixels(box, sizes.get(path, (0, 0)))
                covered += any(geometry.iou(shown, other) >= COVER_IOU for other in found)
    return {
        "detected_per_image_mean": detected / len(gallery) if gallery else None,
        "boxes_covered": covered,
        "boxes_covered_share": 100 * covered / boxes if boxes else None,
    }
