"""Check an annotation file: is it whole, does it fit its images, and what is in it?

In   an annotation file (anns.pt), one's own or a stranger's: nothing in it is run; and the images that it names
Out  a report on the terminal; with --verbose or --report also as JSON; with --preview a picture

    python verify_dataset.py --ann-file anns.pt --base-path /path/to/VoxDet --preview preview.png
    python verify_dataset.py --ann-file anns.pt --detections captions.pt

The file may be in any form that soir_forms.py knows; what is not in the current one is a warning.

Exit status: 0 fine, 1 the file has errors (with --strict: or warnings), 2 it could not be checked.
"""

from __future__ import annotations

from soir_console import Findings as DetectionFindings
from soir_console import (
    add_input_options,
    exit_status,
    make_parser,
    png_name,
    positive,
    print_findings,
    print_table,
    printable,
    progress_bar,
)

import argparse
import json
import math
import os
import random
import sys
from collections import Counter, defaultdict
from contextlib import suppress
from typing import Any, Iterable, NamedTuple

import numpy as np
from PIL import Image

from soir_common import (
    PUBLISHED,
    SETS,
    Annotations,
    Entry,
    EntryBox,
    Size,
    box_share,
    boxes_of,
    boxes_of_instance,
    difficulty,
    entry_doubts,
    entry_faults,
    extent_faults,
    instances_of,
    is_meant,
    masks_of,
    pixel_box,
    set_doubts,
    shorten,
)
from soir_detections import Detections, detection_figures, read_detections
from soir_files import SoirError, check_outputs, find_root, whole_file
from soir_forms import FORM_CHECKS, load_any_form, size_finder
from soir_images import absolute_base, full_path, image_size
from soir_masks import decode_mask, examine_masks, mask_faults
from soir_pictures import (
    GALLERY_COLOUR,
    QUERY_COLOUR,
    Tile,
    draw_tile,
    draw_zoom,
    lay_out,
    open_photograph,
    short_names,
    write_pages,
)

# Every check: whether it finds errors or warnings, and what it finds. The names are stable, for whoever reads the JSON.
CHECKS = {
    "path-missing": ("error", "the image does not exist"),
    "path-outside": ("error", "the path leads out of --base-path"),
    "path-not-file": ("error", "the path is no file"),
    "path-not-image": ("error", "the file is no image that can be read"),
    "image-size": ("error", "the mask is of another size than the image"),
    "entry-type": ("error", "the entry is no dict, or its key is no path"),
    "field-missing": ("error", "a field is missing"),
    "field-type": ("error", "a field is of the wrong type"),
    "split-unknown": ("error", "the split is none of train, val, test"),
    "id-type": ("error", "an instance id is no integer from 0 to 2^63 - 1"),
    "length-mismatch": ("error", "there is not one box, one id and one mask per object"),
    "box-malformed": ("error", "a box is not four numbers (x1, y1, x2, y2)"),
    "box-not-finite": ("error", "a box is not finite"),
    "box-inside-out": ("error", "a box has no positive width and height"),
    "box-outside": ("error", "a box reaches out of its image"),
    "mask-missing": ("error", "an object has no mask, in a set that has masks"),
    "mask-unexpected": ("error", "there is a mask, in a set that has none"),
    "mask-malformed": ("error", "a mask is no valid RLE"),
    "mask-fill": ("error", "the runs of a mask do not fill height x width"),
    "mask-empty": ("error", "a mask is empty"),
    "mask-size": ("error", "the masks of an image differ in size"),
    "query-box": ("error", "the box of a query is not the box of its mask"),
    "gallery-box": ("error", "the mask of an object reaches out of its box"),
    **{check: ("warning", text) for check, text in FORM_CHECKS.items()},
    "mask-mixed": ("warning", "some queries, or some gallery images, of a set have masks and others have none"),
    "set-case": ("warning", "the name of a set differs from that of a known one in upper and lower case only"),
    "gallery-box-loose": ("warning", "the box of an object is far larger than its mask: a box of all of the object?"),
    "object-repeated": ("warning", "an image has the same instance with the same box twice"),
    "box-below-pixel": ("warning", "a box is less than a pixel wide or high: shares of the image, not pixels?"),
    "query-unanswered": ("warning", "no gallery image of the set shows the query's instance"),
    "instance-unqueried": ("warning", "an instance of the gallery has no query"),
    "set-one-sided": ("warning", "the set has queries only, or gallery images only"),
}

# Sets that the table and the preview show; a hostile file can have as many as entries.
MAX_SETS = 12

# Issues that are listed, some 600 MB of them; all are counted. A hostile file can have billions.
MAX_ISSUES = 1_000_000


class Issue(NamedTuple):
    check: str
    path: str
    detail: str


class Findings:
    """What the checks found.

    issues  in the order found, up to MAX_ISSUES
    counts  check -> number of issues, all of them
    faulty  paths that have an error
    """

    def __init__(self) -> None:
        self.issues: list[Issue] = []
        self.counts: Counter[str] = Counter()
        self.faulty: set[str] = set()

    def add(self, check: str, path: Any, detail: str = "") -> None:
        path = path if isinstance(path, str) else shorten(path)
        self.counts[check] += 1
        if CHECKS[check][0] == "error":
            self.faulty.add(path)
        if len(self.issues) < MAX_ISSUES:
            self.issues.append(Issue(check, path, detail))

    def count(self, severity: str) -> int:
        return sum(number for check, number in self.counts.items() if CHECKS[check][0] == severity)


# -------------------------------------------------------------------------------------------------------------- checks


def check_all(
    annotations: Annotations, base_path: str | None, skip_paths: bool, sample_masks: int | None, findings: Findings
) -> tuple[Annotations, dict[str, Size]]:
    """Run all checks. Returns the entries whose fields can be relied on, and (height, width) of the known images."""
    entries = check_entries(annotations, findings)
    sizes = check_masks(entries, sample_masks, findings)
    if not skip_paths:
        sizes.update(check_paths(annotations, base_path, sizes, findings))
    for path, size in sizes.items():
        for check, detail in extent_faults(entries[path], size) if path in entries else ():
            findings.add(check, path, detail)
    check_sets(entries, findings)
    if len(entries) == len(annotations):  # what is broken would make queries look unanswered
        check_retrieval(entries, findings)
    return entries, sizes


def check_entries(annotations: Annotations, findings: Findings) -> Annotations:
    """Check the fields and boxes of every entry. Returns the entries whose fields can be relied on."""
    sound = {}
    for path, entry in progress_bar("entries", annotations.items()):
        faults = list(entry_faults(path, entry))
        if not faults:
            sound[path] = entry
            faults = list(entry_doubts(entry))
        for check, detail in faults:
            findings.add(check, path, detail)
    return sound


class Object(NamedTuple):
    """An object that has a mask."""

    path: str
    is_query: bool
    box: EntryBox
    mask: Any


def check_masks(entries: Annotations, sample: int | None, findings: Findings) -> dict[str, Size]:
    """Check every mask, or a sample. Returns the (height, width) that the masks of each image agree on."""
    objects = [
        Object(path, entry["is_query"], box, mask)
        for path, entry in entries.items()
        for box, mask in zip(boxes_of(entry), masks_of(entry))
    ]
    if sample is not None and sample < len(objects):
        objects = random.Random(0).sample(objects, sample)
    sizes: dict[str, Size | None] = {}
    readings = examine_masks(item.mask for item in objects)
    for item, reading in zip(progress_bar("masks", objects), readings):
        size = sizes.setdefault(item.path, reading.size)
        if reading.size is not None and size not in (reading.size, None):
            h, w = reading.size
            findings.add("mask-size", item.path, f"{w} x {h} and {size[1]} x {size[0]}")
            sizes[item.path] = None
        if reading.box is None or reading.box != item.box:  # nothing is wrong with most masks, and this is fast
            for check, detail in mask_faults(reading, item.box, item.is_query):
                findings.add(check, item.path, detail)
    return {path: size for path, size in sizes.items() if size is not None}


def check_paths(
    paths: Iterable[Any], base_path: str | None, mask_sizes: dict[str, Size], findings: Findings
) -> dict[str, Size]:
    """Check that every path is an image, by its header, of the size of its masks. Returns (height, width) of each."""
    sizes = {}
    for path in progress_bar("images", paths):
        if type(path) is not str or not path:
            continue
        full = full_path(path, base_path)
        if full is None:
            findings.add("path-outside", path)
            continue
        try:
            size = sizes[path] = image_size(full)
        except OSError as error:
            if not path_exists(full):
                findings.add("path-missing", path)
            elif not os.path.isfile(full):
                findings.add("path-not-file", path)
            else:
                findings.add("path-not-image", path, str(error)[-80:])
            continue
        if mask_sizes.get(path, size) != size:
            h, w = mask_sizes[path]
            findings.add("image-size", path, f"image {size[1]} x {size[0]}, mask {w} x {h}")
    return sizes


def path_exists(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a NUL, or half of a character, up to Python 3.7
        return False


def check_retrieval(entries: Annotations, findings: Findings) -> None:
    """Check that queries have answers and instances have queries, within each set."""
    for name, (queries, gallery) in by_set(entries).items():
        if queries and gallery:
            shown = {instance for entry in gallery.values() for instance in entry["ins"]}
            queried = {instance for entry in queries.values() for instance in instances_of(entry)}
            for path, entry in queries.items():
                if shown.isdisjoint(instances_of(entry)):
                    findings.add("query-unanswered", path, f"instance {', '.join(map(str, instances_of(entry)))}")
            for instance in sorted(shown - queried):
                findings.add("instance-unqueried", f"{label_of(name)} instance {instance}")
        else:
            findings.add("set-one-sided", label_of(name), "queries only" if queries else "gallery images only")


def check_sets(entries: Annotations, findings: Findings) -> None:
    """Check that the sets are alike in themselves, and named as they should be."""
    for check, name, detail in set_doubts(entries):
        findings.add(check, label_of(name), detail)


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


# ---------------------------------------------------------------------------------------------------------- statistics

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
    ("annotated boxes that a detection covers", "boxes_covered", ","),
    ("  % of them", "boxes_covered_share", ".1f"),
    ("object size, mean (% of image)", "object_size_mean", ".1f"),
    ("  median", "object_size_median", ".1f"),
    ("  below 2 % of the image (% of objects)", "object_size_below_2", ".1f"),
    *((f"    {name}", name, ".1f") for name, _ in SIZE_CLASSES),
    ("instances seen > 10 times (easy)", "instances_easy", ","),
    ("  5 to 10 times (medium)", "instances_medium", ","),
    ("  < 5 times (hard)", "instances_hard", ","),
    ("  once", "instances_once", ","),
    ("relevant images per query, mean", "relevant_per_query_mean", ".1f"),
    ("  most", "relevant_per_query_max", ","),
    ("queries without any", "queries_unanswered", ","),
]


def statistics(
    entries: Annotations, sizes: dict[str, Size], detections: Detections | None
) -> dict[str, dict[str, Any]]:
    """What is in each set: set -> figure -> value, None for what cannot be known.

    sizes       (height, width) of the images, as far as they are known from masks or image headers
    detections  image path -> the boxes that a detector found; None if no file of them was given
    """
    figures = {}
    for name, (queries, gallery) in by_set(entries).items():
        figures[name] = {
            "queries": len(queries),
            "gallery_images": len(gallery),
            **object_figures(gallery, sizes),
            **({} if detections is None else detection_figures(gallery, sizes, detections)),
            **instance_figures(queries, gallery),
            "splits": split_figures(queries, gallery),
        }
    return figures


def object_figures(gallery: Annotations, sizes: dict[str, Size]) -> dict[str, Any]:
    """How many objects the gallery images show, and of what size."""
    objects = [len(entry["bbox"]) for entry in gallery.values()]
    shares = [
        100.0 if box is None else box_share(box, sizes[path])
        for path, entry in gallery.items()
        for box in entry["bbox"]
        if box is None or path in sizes
    ]
    return {
        "objects": sum(objects),
        "objects_per_image_mean": mean(objects),
        "objects_per_image_max": max(objects, default=None),
        "object_size_mean": mean(shares),
        "object_size_median": float(np.median(shares)) if shares else None,
        "object_size_below_2": 100 * float(np.mean(np.array(shares) < 2)) if shares else None,
        "object_size_shares": size_shares(shares),
    }


def size_shares(shares: list[float]) -> dict[str, float | None]:
    """Class of size -> the share of the objects in it, in %; None where no size is known."""
    limits = [limit for _, limit in SIZE_CLASSES]
    counts = np.bincount(np.searchsorted(limits, shares, side="right"), minlength=len(limits))
    return {
        name: 100 * float(count) / len(shares) if shares else None for (name, _), count in zip(SIZE_CLASSES, counts)
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


def instance_figures(queries: Annotations, gallery: Annotations) -> dict[str, Any]:
    """How often the instances are shown, and how many images answer a query."""
    occurrences = Counter(instance for entry in gallery.values() for instance in entry["ins"])
    classes = Counter(map(difficulty, occurrences.values()))
    relevant = relevant_images(queries, gallery)
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


def relevant_images(queries: Annotations, gallery: Annotations) -> list[int]:
    """How many gallery images answer each query: those that show any of its instances."""
    images = Counter(instance for entry in gallery.values() for instance in set(entry["ins"]))
    if not any(isinstance(entry["ins"], (list, tuple)) for entry in queries.values()):
        return [images[entry["ins"]] for entry in queries.values()]
    paths: defaultdict[int, set[str]] = defaultdict(set)
    for path, entry in gallery.items():
        for instance in entry["ins"]:
            paths[instance].add(path)
    return [len(set().union(*(paths.get(i, ()) for i in instances_of(entry)))) for entry in queries.values()]


def mean(values: list[Any]) -> float | None:
    return float(np.mean(values)) if values else None


# -------------------------------------------------------------------------------------------------------------- report


def print_statistics(figures: dict[str, dict[str, Any]]) -> None:
    """Print one column per set and, beside a set that was published, the published figures."""
    columns = []
    shown = {name: {**values, **values["object_size_shares"]} for name, values in list(figures.items())[:MAX_SETS]}
    for name, values in shown.items():
        columns.append((label_of(name), values))
        if name in PUBLISHED:
            columns.append((f"{PUBLISHED[name]['name']} (published)", PUBLISHED[name]))
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


def print_issues(findings: Findings, verbose: bool) -> None:
    """Print one line per kind of issue, with a count and the first few paths; all of them if verbose."""
    groups = defaultdict(list)
    for issue in findings.issues:
        groups[issue.check].append(issue)
    for severity in ("error", "warning"):
        for check, (kind, text) in CHECKS.items():
            if kind != severity or not findings.counts[check]:
                continue
            print(f"\n{severity} {check}: {text}: {findings.counts[check]:,}")
            shown = groups[check] if verbose else groups[check][:3]
            for _, path, detail in shown:
                print(f"  {printable(f'{path} ({detail})' if detail else path)}")
            if findings.counts[check] > len(shown):
                print("  ...")


def make_report(ann_file: str, passed: bool, findings: Findings, figures: dict[str, Any]) -> dict[str, Any]:
    """The JSON: all that the terminal shows, and every issue in full."""
    return {
        "file": ann_file,
        "passed": passed,
        "errors": findings.count("error"),
        "warnings": findings.count("warning"),
        "checks": {
            check: {"severity": severity, "description": text, "count": findings.counts[check]}
            for check, (severity, text) in CHECKS.items()
        },
        "issues": [
            {"check": check, "severity": CHECKS[check][0], "path": path, "detail": detail}
            for check, path, detail in findings.issues
        ],
        "statistics": figures,
        "published": {name: PUBLISHED[name] for name in figures if name in PUBLISHED},
    }


def write_report(path: str, report: dict[str, Any]) -> None:
    with whole_file(path) as file:
        for text in json.JSONEncoder(indent=1).iterencode(report):
            file.write(text.encode("utf-8", "backslashreplace"))


# ------------------------------------------------------------------------------------------------------------- preview


class Choice(NamedTuple):
    """What the command line wants to see in the preview."""

    set_name: str | None  # in any case; None for all sets
    instances: list[int] | None  # None for some of each set
    most: int  # instances of each set, where none are named
    queries: int  # per instance
    gallery: int  # gallery images per instance
    order: str  # of instances and of gallery images: "random", "smallest" or "id"


def draw_preview(
    entries: Annotations, sizes: dict[str, Size], base_path: str | None, choice: Choice
) -> list[Image.Image]:
    """Pages with one row per instance: queries with mask and box, then gallery images that show the instance, each
    with a zoom. None if no instance has both.

    sizes  (height, width) of the images, as far as they are known
    Raises SoirError if no image can be read.
    """
    rows = []
    for name, (queries, gallery) in list(by_set(entries).items())[:MAX_SETS]:
        if not is_meant(name, choice.set_name):
            continue
        queries_of, gallery_of = group_by_instance(queries), group_by_instance(gallery)
        both = sorted(queries_of.keys() & gallery_of.keys())
        shares = {
            (path, instance): share_of_instance(gallery[path], instance, sizes.get(path))
            for instance in both
            for path in gallery_of[instance]
        }
        for instance in choose_instances(both, gallery_of, shares, choice):
            rng = random.Random(instance)
            shown_queries = rng.sample(queries_of[instance], min(choice.queries, len(queries_of[instance])))
            paths = list(gallery_of[instance])
            if choice.order == "random":
                rng.shuffle(paths)
            elif choice.order == "smallest":
                paths.sort(key=lambda path: shares[path, instance])
            paths = paths[: choice.gallery]
            names = short_names([*shown_queries, *paths])
            tiles = [
                tile for path in shown_queries for tile in query_tiles(path, names[path], queries[path], base_path)
            ]
            for path in paths:
                tiles += gallery_tiles(path, names[path], gallery[path], instance, base_path)
            rows.append((f"{label_of(name)}, instance {instance}", tiles))
    if rows and not any(tile.image for _, tiles in rows for tile in tiles):
        raise SoirError("no image of the preview can be read: name the folder that their paths start at, --base-path")
    return lay_out(rows)


def group_by_instance(entries: Annotations) -> dict[int, list[str]]:
    """Instance -> paths of the entries that show it."""
    paths = defaultdict(list)
    for path, entry in entries.items():
        for instance in dict.fromkeys(instances_of(entry)):
            paths[instance].append(path)
    return paths


def share_of_instance(entry: Entry, instance: int, size: Size | None) -> float:
    """The smallest share, in % of the image, that a box of an instance covers; infinite if nobody knows."""
    return (
        min((box_share(box, size) for box in boxes_of_instance(entry, instance)), default=math.inf)
        if size
        else math.inf
    )


def choose_instances(
    instances: list[int], gallery_of: dict[int, list[str]], shares: dict[tuple[str, int], float], choice: Choice
) -> list[int]:
    """The instances to draw, of those of a set that have queries and gallery images."""
    if choice.instances is not None:
        return [instance for instance in choice.instances if instance in set(instances)]
    if choice.order == "id":
        return instances[: choice.most]
    if choice.order == "smallest":
        smallest = {i: min(shares[path, i] for path in gallery_of[i]) for i in instances}
        return sorted(instances, key=lambda instance: (smallest[instance], instance))[: choice.most]
    return sorted(random.Random(0).sample(instances, min(choice.most, len(instances))))


def query_tiles(path: str, name: str, entry: Entry, base_path: str | None) -> list[Tile]:
    """A query with its box and the outline of its mask, and a zoom on them."""
    photograph = open_photograph(path, base_path)
    if photograph is None:
        return [Tile(f"query {name}: cannot be read", None)]
    try:
        masks = [decode_mask(mask) for mask in masks_of(entry)]
    except ValueError:  # --sample-masks may have left it out
        return [Tile(f"query {name}: its mask is faulty", None)]
    box = pixel_box(entry["bbox"], (photograph.height, photograph.width))
    return [
        Tile(f"query {name}", draw_tile(photograph, [box], QUERY_COLOUR, masks)),
        Tile("zoom", draw_zoom(photograph, box, [box], QUERY_COLOUR, masks)),
    ]


def gallery_tiles(path: str, name: str, entry: Entry, instance: int, base_path: str | None) -> list[Tile]:
    """A gallery image with the boxes and masks of an instance, and a zoom on the first of them."""
    photograph = open_photograph(path, base_path)
    if photograph is None:
        return [Tile(f"gallery {name}: cannot be read", None)]
    size = photograph.height, photograph.width
    boxes = [pixel_box(box, size) for box in boxes_of_instance(entry, instance)]
    masks = []
    for mask, number in zip(masks_of(entry), entry["ins"]):
        with suppress(ValueError):
            if number == instance:
                masks.append(decode_mask(mask))
    share = box_share(boxes[0], size)
    return [
        Tile(f"gallery {name}", draw_tile(photograph, boxes, GALLERY_COLOUR, masks)),
        Tile(f"zoom, {share:.1f} % of the image", draw_zoom(photograph, boxes[0], boxes, GALLERY_COLOUR, masks)),
    ]


# -------------------------------------------------------------------------------------------------------------- script


def hint_at_base(paths: list[str], base_path: str | None) -> str:
    """What to do where none of the images is there."""
    relative = [path for path in paths if not os.path.isabs(path)]
    found = find_root(base_path or ".", random.Random(0).sample(relative, min(len(relative), 3))) if relative else None
    if found:
        return f"they are one level from here, try --base-path {found}"
    return "name the folder that their paths start at with --base-path"


def parse_args() -> argparse.Namespace:
    parser = make_parser(
        "Check an annotation file and say what is in it.",
        "0 fine, 1 the file has errors (with --strict: or warnings), 2 it could not be checked",
    )
    add = add_input_options(parser)
    text = "objects that a detector found: captions.pt of the paper's code, or COCO results, a .json of image paths"
    add("--detections", metavar="FILE", help=text)
    add("--min-score", type=score, default=0.2, metavar="S", help="score from which a detection counts (default: 0.2)")
    add = parser.add_argument_group("checks").add_argument
    add("--skip-paths", action="store_true", help="do not look for the images")
    add("--sample-masks", type=positive, metavar="N", help="check N masks only, for a quick look")
    add("--strict", action="store_true", help="exit with 1 on warnings too")
    add = parser.add_argument_group("output").add_argument
    text = "print every issue, and write a JSON report beside the annotation file: anns_verification.json of anns.pt"
    add("--verbose", action="store_true", help=text)
    add("--report", metavar="FILE", help="write the JSON report there")
    add = parser.add_argument_group("preview").add_argument
    text = "draw queries and gallery images with masks and boxes; of more than 40 lines FILE-1.png, FILE-2.png, ..."
    add("--preview", type=png_name, metavar="FILE.png", help=text)
    add("--preview-count", type=positive, metavar="N", help="instances of each set (default: 3)")
    add("--set", metavar="NAME", help="this set only, in upper or lower case")
    add("--instances", type=int, nargs="+", metavar="ID", help="these instances")
    add("--queries", type=positive, metavar="N", help="queries of each instance (default: 1)")
    add("--gallery", type=positive, metavar="N", help="gallery images of each instance (default: 2)")
    text = "which instances and gallery images come first (default: random)"
    add("--order", choices=("smallest", "random", "id"), help=text)
    args = parser.parse_args()
    if args.report is None and args.verbose:
        args.report = f"{os.path.splitext(args.ann_file)[0]}_verification.json"
    for option in ("preview_count", "instances", "set", "queries", "gallery", "order"):
        if getattr(args, option) is not None and not args.preview:
            parser.error(f"--{option.replace('_', '-')} says what is in the picture: it goes with --preview FILE.png")
    return args


def score(text: str) -> float:
    """A type for argparse: a finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, found {text}")
    return value


@exit_status()
def main() -> int:
    args = parse_args()
    check_outputs([args.report, args.preview], [args.ann_file, args.detections])
    base_path = absolute_base(args.base_path)
    findings = Findings()
    find_size = (lambda path: None) if args.skip_paths else size_finder(base_path)
    doubts, detections = DetectionFindings(), None
    annotations = load_any_form(args.ann_file, find_size, findings.add)
    if not annotations:
        raise SoirError(f"{args.ann_file} holds no entries, so there is nothing to check")
    entries, sizes = check_all(annotations, base_path, args.skip_paths, args.sample_masks, findings)
    if args.detections:
        detections = read_detections(args.detections, annotations, args.min_score, doubts)
    figures = statistics(entries, sizes, detections)

    errors, warnings = findings.count("error"), findings.count("warning")
    passed = not errors and not (args.strict and (warnings or doubts))
    written = []
    if args.report:
        write_report(args.report, make_report(args.ann_file, passed, findings, figures))
        written.append(args.report)
    pages: list[Image.Image] = []
    if args.preview:
        drawable = {path: entry for path, entry in entries.items() if path not in findings.faulty}
        choice = Choice(
            args.set,
            args.instances,
            args.preview_count or 3,
            args.queries or 1,
            args.gallery or 2,
            args.order or "random",
        )
        pages = draw_preview(drawable, sizes, base_path, choice)
        written += write_pages(args.preview, pages)

    if figures:
        print_statistics(figures)
    print_issues(findings, args.verbose)
    print_findings(doubts, skipped="skipped of the detections", noticed="noticed of the detections")
    if findings.counts["path-missing"] == len(annotations):
        print(f"\nNone of the images is there: {hint_at_base(list(annotations), base_path)}.")
    if args.preview and not pages:
        wanted = " of these" if args.set or args.instances else ""
        print(
            f"\nThere is nothing to preview: no instance{wanted} has both a query and a gallery image without errors."
        )
    if written:
        print(f"\nwrote {', '.join(written)}")
    verdict = "PASSED" if passed else "FAILED"
    left_out = ", images not looked for" if args.skip_paths else ""
    masks = sum(len(masks_of(entry)) for entry in entries.values())
    checked = "all" if args.sample_masks and args.sample_masks >= masks else f"{args.sample_masks or 0:,} of"
    left_out += f", {checked} {masks:,} masks checked" if args.sample_masks else ""
    print(f"\n{verdict}: {errors:,} errors, {warnings:,} warnings in {len(annotations):,} entries{left_out}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
