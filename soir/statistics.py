"""What is in an annotation file: the figures of each set, and their table beside the published ones."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np

from soir import geometry, published
from soir.detections import Detections, detection_figures
from soir.entry import SETS, Annotations, difficulty, instances_of
from soir.findings import print_table, printable, shorten
from soir.geometry import Size

# Sets that the table and the preview show; a hostile file can have as many as entries.
MAX_SETS = 12

# Classes of object sizes, and below which share of the image, in %, an object is in each.
SIZE_CLASSES = (("below 0.5 %", 0.5), ("0.5 to 1 %", 1), ("1 to 2 %", 2), ("2 to 5 %", 5), ("above 5 %", math.inf))

# Label, figure, format.
ROWS = [
    ("queries", "queries", ","),
    ("gallery images", "gallery_images", ","),
    ("instances", "instances", ","),
    ("annotated objects", "objects", ","),
    ("  per image, mean", "objects_per_image_mean", ".1f"),
    ("  per image, most", "objects_per_image_max", ","),
    ("detected objects per image, mean", "detected_per_image_mean", ".1f"),
    ("boxes that a detection covers", "boxes_covered", ","),
    ("  % of them", "boxes_covered_share", ".1f"),
    ("object size, mean (% of image)", "object_size_mean", ".1f"),
    ("  median", "object_size_median", ".1f"),
    ("  below 2 % (% of the objects)", "object_size_below_2", ".1f"),
    *((f"  {name}", name, ".1f") for name, _ in SIZE_CLASSES),
    ("instances seen > 10 times (easy)", "instances_easy", ","),
    ("  5 to 10 times (medium)", "instances_medium", ","),
    ("  < 5 times (hard)", "instances_hard", ","),
    ("    of these, once", "instances_once", ","),
    ("relevant images per query, mean", "relevant_per_query_mean", ".1f"),
    ("  most", "relevant_per_query_max", ","),
    ("queries without any", "queries_unanswered", ","),
]


def statistics(
    entries: Annotations, relevant: dict[str, int], sizes: dict[str, Size], detections: Detections | None
) -> dict[str, dict[str, Any]]:
    """What is in each set: set -> figure -> value, None for what cannot be known.

    relevant    path of a query -> how many gallery images are relevant to it
    sizes       (height, width) of the images, as far as they are known from masks or image headers
    detections  image path -> the boxes that a detector found; None if no file of them was given
    """
    return {
        name: {
            "queries": len(queries),
            "gallery_images": len(gallery),
            **object_figures(gallery, sizes),
            **({} if detections is None else detection_figures(gallery, sizes, detections)),
            **instance_figures(queries, gallery, [relevant[path] for path in queries]),
            "splits": split_figures(queries, gallery),
        }
        for name, (queries, gallery) in by_set(entries).items()
    }


def object_figures(gallery: Annotations, sizes: dict[str, Size]) -> dict[str, Any]:
    """How many objects the gallery images show, and of what size."""
    objects = [len(entry["bbox"]) for entry in gallery.values()]
    shares = [
        100.0 if box is None else geometry.share(box, sizes[path])
        for path, entry in gallery.items()
        for box in entry["bbox"]
        if box is None or path in sizes
    ]
    limits = [limit for _, limit in SIZE_CLASSES]
    counts = np.bincount(np.searchsorted(limits, shares, side="right"), minlength=len(limits)).tolist()
    return {
        "objects": sum(objects),
        "objects_per_image_mean": mean(objects),
        "objects_per_image_max": max(objects, default=None),
        "object_size_mean": mean(shares),
        "object_size_median": float(np.median(shares)) if shares else None,
        "object_size_below_2": 100 * float(np.mean(np.array(shares) < 2)) if shares else None,
        "object_size_shares": {
            name: 100 * count / len(shares) if shares else None for (name, _), count in zip(SIZE_CLASSES, counts)
        },
    }


def split_figures(queries: Annotations, gallery: Annotations) -> dict[str, dict[str, int]]:
    """Split -> its numbers of queries, gallery images and annotated objects."""
    counts: defaultdict[str, Counter[str]] = defaultdict(lambda: Counter(queries=0, gallery_images=0, objects=0))
    for entry in queries.values():
        if entry.get("split"):
            counts[entry["split"]]["queries"] += 1
    for entry in gallery.values():
        if entry.get("split"):
            counts[entry["split"]]["gallery_images"] += 1
            counts[entry["split"]]["objects"] += len(entry["bbox"])
    return {split: dict(number) for split, number in sorted(counts.items())}


def instance_figures(queries: Annotations, gallery: Annotations, relevant: list[int]) -> dict[str, Any]:
    """How often the instances are shown, and how many images are relevant to each query."""
    occurrences = Counter(instance for entry in gallery.values() for instance in entry["ins"])
    classes = Counter(map(difficulty, occurrences.values()))
    return {
        "instances": len(occurrences.keys() | {i for entry in queries.values() for i in instances_of(entry)}),
        "instances_easy": classes["easy"],
        "instances_medium": classes["medium"],
        "instances_hard": classes["hard"],
        "instances_once": sum(number == 1 for number in occurrences.values()),
        "relevant_per_query_mean": mean(relevant),
        "relevant_per_query_max": max(relevant, default=None),
        "queries_unanswered": sum(number == 0 for number in relevant),
    }


def mean(values: list[Any]) -> float | None:
    return float(np.mean(values)) if values else None


def by_set(entries: Annotations) -> dict[str, tuple[Annotations, Annotations]]:
    """Set -> (queries, gallery images): those of SETS in their order, then the others as they come."""
    sets: dict[str, tuple[Annotations, Annotations]] = {name: ({}, {}) for name in SETS}
    for path, entry in entries.items():
        queries, gallery = sets.setdefault(entry["set"], ({}, {}))
        (queries if entry["is_query"] else gallery)[path] = entry
    return {name: parts for name, parts in sets.items() if any(parts)}


def label_of(set_name: str) -> str:
    """A set as the report names it."""
    return printable(shorten(set_name)) or "(no set)"


def print_summary(annotations: Annotations) -> None:
    """Print a table with one row per set."""
    sets = by_set(annotations)
    names = list(dict.fromkeys(entry["set"] for entry in annotations.values()))
    rows = [["set", "queries", "gallery images", "boxes", "instances"]]
    for name in names[:MAX_SETS]:
        queries, gallery = sets[name]
        boxes = sum(len(entry["bbox"]) for entry in gallery.values())
        instances = {i for entry in [*queries.values(), *gallery.values()] for i in instances_of(entry)}
        rows.append([label_of(name), *(f"{n:,}" for n in (len(queries), len(gallery), boxes, len(instances)))])
    print_table(rows)
    if len(names) > MAX_SETS:
        print(f"and {len(names) - MAX_SETS:,} more sets")


def print_statistics(figures: dict[str, dict[str, Any]]) -> None:
    """Print one column per set and, beside a set that was published, the published figures."""
    columns = []
    shown = {name: {**values, **values["object_size_shares"]} for name, values in list(figures.items())[:MAX_SETS]}
    for name, values in shown.items():
        columns.append((label_of(name), values))
        if name in published.FIGURES:
            columns.append(("published", published.FIGURES[name]))
    table = [["", *(title for title, _ in columns)]]
    for label, figure, style in ROWS:
        if not any(figure in values for values in shown.values()):
            continue  # of detections, where none are given
        cells = [values.get(figure, "") for _, values in columns]
        table.append([label, *("-" if c is None else c if c == "" else format(c, style) for c in cells)])
    print_table(table)
    if len(figures) > MAX_SETS:
        print(f"and {len(figures) - MAX_SETS:,} more sets, which --report has")
    for name, values in shown.items():
        for split, counts in values["splits"].items():
            parts = (f"{counts[key]:,} {key.replace('_', ' ')}" for key in ("queries", "gallery_images", "objects"))
            print(f"{label_of(name)}, split {split}: {', '.join(parts)}")
