"""Check an annotation file: is it whole, does it fit its images, and what is in it?

In   an annotation file (anns.pt), one's own or a stranger's: nothing in it is run; and the images that it names
Out  a report on the terminal; with --verbose or --report also as JSON; with --preview a picture

    python verify_dataset.py --ann-file anns.pt --base-path /path/to/VoxDet --preview preview.png

Exit status: 0 fine, 1 the file has errors (with --strict: or warnings), 2 it could not be checked.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import sys
from collections import Counter, defaultdict
from typing import Any, Iterator

import numpy as np
from PIL import Image, ImageDraw

from drawing import (
    GALLERY_COLOUR,
    MARGIN,
    QUERY_COLOUR,
    TILE_HEIGHT,
    TILE_WIDTH,
    fit,
    png_name,
    write_png,
    write_text,
)
from input_files import image_size, is_image_size, read_image
from safe_loading import load_annotations
from soir_common import (
    MAX_COORDINATE,
    MAX_COUNTS,
    PUBLISHED,
    SETS,
    SoirError,
    check_outputs,
    decode_counts,
    difficulty,
    exit_status,
    positive,
    printable,
    progress_bar,
    shorten,
    whole_file,
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
    "set-unknown": ("error", "the set is not a known one"),
    "split-unknown": ("error", "the split is none of train, val, test"),
    "id-type": ("error", "an instance id is no integer from 0 to 2^63 - 1"),
    "length-mismatch": ("error", "not one box, id and mask an object"),
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
    "gallery-box": ("error", "the mask of an object does not overlap its box"),
    "mask-list": ("warning", "a mask is a list of run lengths, which pycocotools cannot decode"),
    "mask-row-major": ("warning", "a mask is row-major, as the authors' script wrote it: pycocotools cannot decode it"),
    "mask-inverted": ("warning", "a row-major mask lacks its leading 0: read as it stands, it is inverted"),
    "query-box-inclusive": (
        "warning",
        "the box of a query with a row-major mask ends in its last pixel, not behind it",
    ),
    "query-unanswered": ("warning", "no gallery image of the set shows the query's instance"),
    "instance-unqueried": ("warning", "an instance of the gallery has no query"),
    "set-one-sided": ("warning", "the set has queries only, or gallery images only"),
}

# Masks that are decoded at a time: enough for NumPy to be fast, few enough to stay in the cache.
CHUNK = 256

# How far, in pixels, a box may reach out of its image: rounding.
TOLERANCE = 1


# Issues that are listed, some 600 MB of them; all are counted. A hostile file can have billions.
MAX_ISSUES = 1_000_000


class Findings:
    """What the checks found.

    issues  list of (check, path, detail), in the order found, up to MAX_ISSUES
    counts  check -> number of issues, all of them
    faulty  paths that have an error
    """

    def __init__(self):
        self.issues = []
        self.counts: Counter = Counter()
        self.faulty = set()

    def add(self, check: str, path: Any, detail: str = "") -> None:
        path = path if isinstance(path, str) else shorten(path)
        self.counts[check] += 1
        if CHECKS[check][0] == "error":
            self.faulty.add(path)
        if len(self.issues) < MAX_ISSUES:
            self.issues.append((check, path, detail))

    def count(self, severity: str) -> int:
        return sum(number for check, number in self.counts.items() if CHECKS[check][0] == severity)


# ----------------------------------------------------------------------------------------------- structure, consistency


def check_entries(annotations: dict, findings: Findings) -> dict:
    """Check the fields and boxes of every entry. Returns the entries whose fields can be relied on: path -> entry."""
    sound = {}
    for path, entry in progress_bar("entries", annotations.items()):
        if type(path) is not str or not path or not isinstance(entry, dict):
            findings.add("entry-type", path, f"found {type(entry).__name__}")
            continue
        check_entry(path, entry, findings)
        if path not in findings.faulty:
            sound[path] = entry
    return sound


def check_entry(path: str, entry: dict, findings: Findings) -> None:
    missing = [field for field in ("bbox", "mask", "is_query", "ins", "set") if field not in entry]
    for field in missing:
        findings.add("field-missing", path, field)
    if missing:
        return
    if type(entry["is_query"]) is not bool:
        findings.add("field-type", path, "is_query is not a bool")
        return
    if type(entry["set"]) is not str:
        findings.add("field-type", path, "set is not text")
        return
    if entry["set"] not in SETS:
        findings.add("set-unknown", path, entry["set"][:40])
        return
    split = entry.get("split")
    if split is not None and split not in ("train", "val", "test"):
        findings.add("split-unknown", path, found(split))
    if "obj_name" in entry and type(entry["obj_name"]) is not str:
        findings.add("field-type", path, "obj_name is not text")
    if entry["is_query"]:
        check_ids(path, [entry["ins"]], findings)
        check_box(path, entry["bbox"], findings)
        if SETS[entry["set"]][0] and entry["mask"] is None:
            findings.add("mask-missing", path)
        elif not SETS[entry["set"]][0] and entry["mask"] is not None:
            findings.add("mask-unexpected", path)
    else:
        check_objects(path, entry, findings)


def check_objects(path: str, entry: dict, findings: Findings) -> None:
    """The fields of a gallery image: lists with one item an object."""
    fields = ["bbox", "mask", "ins"] + ["num_ins"] * (entry.get("num_ins") is not None)
    wrong = [field for field in fields if not isinstance(entry[field], (list, tuple))]
    for field in wrong:
        findings.add("field-type", path, f"{field} is not a list")
    if wrong:
        return
    boxes, masks, ids = entry["bbox"], entry["mask"], entry["ins"]
    has_masks = SETS[entry["set"]][1]
    if masks and not has_masks:
        findings.add("mask-unexpected", path)
    elif has_masks and boxes and not masks:
        findings.add("mask-missing", path)
    elif len(ids) != len(boxes) or has_masks and len(masks) != len(boxes):
        findings.add("length-mismatch", path, f"{len(boxes)} boxes, {len(ids)} ids, {len(masks)} masks")
    elif "num_ins" in fields and len(entry["num_ins"]) != len(boxes):
        findings.add("length-mismatch", path, f"{len(boxes)} boxes, {len(entry['num_ins'])} num_ins")
    elif "num_ins" in fields and not all(type(number) is int and number > 0 for number in entry["num_ins"]):
        findings.add("field-type", path, "num_ins is not a list of positive integers")
    check_ids(path, ids, findings)
    for box in boxes:
        check_box(path, box, findings)


def check_ids(path: str, ids: list, findings: Findings) -> None:
    for number in ids:
        if type(number) is not int or not 0 <= number < 2**63:
            findings.add("id-type", path, found(number))


def check_box(path: str, box: Any, findings: Findings) -> None:
    if not isinstance(box, (tuple, list)) or len(box) != 4 or not all(type(v) in (int, float) for v in box):
        findings.add("box-malformed", path, found(box))
        return
    x1, y1, x2, y2 = box
    if not all(abs(value) <= MAX_COORDINATE for value in box):
        findings.add("box-not-finite", path)
    elif not (x2 > x1 and y2 > y1):
        findings.add("box-inside-out", path, f"{tuple(box)}")
    elif x1 < -TOLERANCE or y1 < -TOLERANCE:
        findings.add("box-outside", path, f"{tuple(box)}")


def found(value: Any) -> str:
    return f"found {shorten(repr(value[:80]) if isinstance(value, str) else value)}"


def check_extent(path: str, entry: dict, size: tuple, findings: Findings) -> None:
    """Check that the boxes end inside the image, of size (height, width)."""
    for box in [entry["bbox"]] if entry["is_query"] else entry["bbox"]:
        if box[2] > size[1] + TOLERANCE or box[3] > size[0] + TOLERANCE:
            findings.add("box-outside", path, f"{tuple(box)} in an image of {size[1]} x {size[0]}")


# --------------------------------------------------------------------------------------------------------------- masks


def check_masks(entries: dict, sample: int | None, findings: Findings) -> dict:
    """Check every mask, or a sample. Returns the sizes that the masks of each image agree on: path -> (h, w)."""
    masks = [
        (path, entry["is_query"], box, mask)
        for path, entry in entries.items()
        if SETS[entry["set"]][not entry["is_query"]]
        for box, mask in ([(entry["bbox"], entry["mask"])] if entry["is_query"] else zip(entry["bbox"], entry["mask"]))
    ]
    if sample is not None and sample < len(masks):
        masks = random.Random(0).sample(masks, sample)
    sizes: dict[str, tuple | None] = {}
    with progress_bar("masks", total=len(masks)) as progress:
        for start in range(0, len(masks), CHUNK):
            chunk: list[tuple] = []
            length = 0
            for mask in readable_masks(masks[start : start + CHUNK], sizes, findings):
                length += len(mask[3])
                if length > MAX_COUNTS:  # no more than one such mask at a time
                    check_compressed(chunk, findings)
                    chunk, length = [], len(mask[3])
                chunk.append(mask)
            check_compressed(chunk, findings)
            progress.update(min(CHUNK, len(masks) - start))
    return {path: size for path, size in sizes.items() if size is not None}


def readable_masks(masks: list, sizes: dict, findings: Findings) -> Iterator[tuple]:
    """Yield (path, is_query, box, counts as bytes, height, width) of compressed masks; the other kinds are checked."""
    for path, is_query, box, mask in masks:
        size = mask_size(mask)
        if size is None:
            findings.add("mask-malformed", path, "size is not [height, width] of an image")
            continue
        (height, width), counts = size, mask.get("counts")
        if sizes.setdefault(path, (height, width)) not in ((height, width), None):
            findings.add("mask-size", path, f"{width} x {height} and {sizes[path][1]} x {sizes[path][0]}")
            sizes[path] = None
        if type(counts) in (str, bytes) and len(counts) > MAX_COUNTS:
            findings.add("mask-malformed", path, f"counts is far too long, {len(counts):,} characters")
        elif type(counts) is str and counts.isascii():
            yield path, is_query, box, counts.encode("ascii"), height, width
        elif type(counts) is bytes:
            yield path, is_query, box, counts, height, width
        elif isinstance(counts, list):
            check_list_mask(path, is_query, box, mask, findings)
        else:
            findings.add("mask-malformed", path, "counts is no RLE")


def mask_size(mask: Any) -> tuple[int, int] | None:
    """(height, width) of an RLE, whose counts may be anything; None if it has no size that an image can have."""
    size = mask.get("size") if isinstance(mask, dict) else None
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        return None
    return tuple(size) if is_image_size(*size) else None


def check_compressed(masks: list, findings: Findings) -> None:
    """Check compressed masks (path, is_query, box, counts, height, width), all at once."""
    if not masks:
        return
    runs, ends = decode_counts([mask[3] for mask in masks])
    starts = np.concatenate(([0], ends[:-1]))
    heights, widths = np.array([mask[4:] for mask in masks]).T
    malformed = ends == starts
    for index in np.flatnonzero(malformed):
        findings.add("mask-malformed", masks[index][0], "counts is cut short or has a character that does not belong")
    sound = np.flatnonzero(~malformed)
    if not sound.size:
        return
    starts, ends, heights, widths = starts[sound], ends[sound], heights[sound], widths[sound]
    # Malformed masks have no runs, so those of the sound ones still lie side by side.
    negative = np.minimum.reduceat(runs, starts) < 0
    unfilled = np.add.reduceat(runs, starts) != heights * widths
    unfilled |= np.maximum.reduceat(runs, starts) > heights * widths  # so that the sum cannot have overflowed
    owner = np.repeat(np.arange(sound.size), ends - starts)
    foreground = (np.arange(runs.size) - starts[owner]) % 2 == 1
    empty = np.bincount(owner, weights=foreground * runs, minlength=sound.size) == 0
    for index in np.flatnonzero(negative | unfilled | empty):
        path = masks[sound[index]][0]
        if negative[index]:
            findings.add("mask-malformed", path, "counts holds a negative run")
        elif unfilled[index]:
            findings.add("mask-fill", path)
        else:
            findings.add("mask-empty", path)
    good = ~(negative | unfilled | empty)
    boxes = boxes_of_runs(runs, owner, foreground & good[owner], heights)
    for index in np.flatnonzero(good):
        path, is_query, box = masks[sound[index]][:3]
        check_mask_box(path, is_query, box, tuple(boxes[index].tolist()), findings)


def boxes_of_runs(runs: np.ndarray, owner: np.ndarray, foreground: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Half-open boxes [masks, 4] of column-major masks, from their runs; masks without any foreground get rubbish.

    runs, owner, foreground  [N], of every run its length, the index of its mask, and whether it is to count
    heights                  [masks], of their images
    """
    total = np.cumsum(runs)
    base = np.zeros(len(heights), dtype=np.int64)
    firsts = np.flatnonzero(np.concatenate(([True], owner[1:] != owner[:-1])))
    base[owner[firsts]] = total[firsts] - runs[firsts]
    chosen = foreground & (runs > 0)
    owner, runs, stops = owner[chosen], runs[chosen], total[chosen]
    stops = stops - base[owner]
    starts = stops - runs
    height = heights[owner]
    left, right = starts // height, (stops - 1) // height
    one_column = left == right
    top = np.where(one_column, starts % height, 0)
    bottom = np.where(one_column, (stops - 1) % height, height - 1)
    boxes = np.zeros((len(heights), 4), dtype=np.int64)
    if owner.size:
        firsts = np.flatnonzero(np.concatenate(([True], owner[1:] != owner[:-1])))
        for column, (values, reduce) in enumerate(
            ((left, np.minimum), (top, np.minimum), (right + 1, np.maximum), (bottom + 1, np.maximum))
        ):
            boxes[owner[firsts], column] = reduce.reduceat(values, firsts)
    return boxes


def check_mask_box(path: str, is_query: bool, box: tuple, mask_box: tuple, findings: Findings) -> None:
    if is_query:
        if tuple(box) != mask_box:
            findings.add("query-box", path, f"{tuple(box)}, its mask's is {mask_box}")
    elif not overlap(box, mask_box):
        findings.add("gallery-box", path, f"{tuple(box)}, its mask's is {mask_box}")


def overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def check_list_mask(path: str, is_query: bool, box: tuple, mask: dict, findings: Findings) -> None:
    """Check a mask that is a list of run lengths: column-major, or row-major as the authors' script wrote it."""
    counts, (height, width) = mask["counts"], mask["size"]
    if not counts or not all(type(run) is int and run >= 0 for run in counts):
        findings.add("mask-malformed", path, "counts are no run lengths")
        return
    if sum(counts) != height * width:
        findings.add("mask-fill", path)
        return
    row_major = mask.get("transpose") is False
    findings.add("mask-row-major" if row_major else "mask-list", path)
    mask_box = list_mask_box(counts, height, width, row_major)
    if row_major and mask_box != tuple(box):
        inclusive = (box[0], box[1], box[2] + 1, box[3] + 1)
        inverted = list_mask_box([0, *counts], height, width, row_major)
        if inverted in (tuple(box), inclusive):
            findings.add("mask-inverted", path)
            mask_box = inverted
        if is_query and mask_box == inclusive:
            findings.add("query-box-inclusive", path)
            return
    if mask_box is None:
        findings.add("mask-empty", path)
    else:
        check_mask_box(path, is_query, box, mask_box, findings)


def list_mask_box(counts: list, height: int, width: int, row_major: bool) -> tuple | None:
    """Half-open box of a mask given as run lengths; None if it is empty."""
    runs = np.array(counts, dtype=np.int64)
    foreground = np.arange(runs.size) % 2 == 1
    if not runs[foreground].any():
        return None
    lines = np.array([width if row_major else height])  # a row-major mask is a column-major one of the turned image
    left, top, right, bottom = boxes_of_runs(runs, np.zeros(runs.size, dtype=np.int64), foreground, lines)[0].tolist()
    return (top, left, bottom, right) if row_major else (left, top, right, bottom)


# --------------------------------------------------------------------------------------------------------------- paths


def check_paths(annotations: dict, base_path: str | None, mask_sizes: dict, findings: Findings) -> dict:
    """Check that every path is an image, by its header, of the size of its masks. Returns the sizes: path -> (h, w)."""
    sizes = {}
    for path in progress_bar("images", annotations):
        if type(path) is not str or not path:
            continue
        full = full_path(path, base_path)
        if full is None:
            findings.add("path-outside", path)
            continue
        try:
            width, height = image_size(full)
        except OSError as error:
            if not path_exists(full):
                findings.add("path-missing", path)
            elif not os.path.isfile(full):
                findings.add("path-not-file", path)
            else:
                findings.add("path-not-image", path, str(error)[-80:])
            continue
        sizes[path] = height, width
        if path in mask_sizes and mask_sizes[path] != (height, width):
            h, w = mask_sizes[path]
            findings.add("image-size", path, f"image {width} x {height}, mask {w} x {h}")
    return sizes


def path_exists(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a NUL, or half of a character, up to Python 3.7
        return False


def absolute_base(base_path: str | None) -> str | None:
    """The argument of --base-path as `full_path` takes it, absolute. Raises SoirError if it is no folder."""
    if base_path is not None and not os.path.isdir(base_path):
        raise SoirError(f"--base-path {base_path} is no folder: name the folder that the image paths start at")
    return base_path and os.path.abspath(base_path)


def full_path(path: str, base_path: str | None) -> str | None:
    """Where an image lies on the disk; None if that is outside of the base path, if one was given, as absolute path."""
    if base_path is None:
        return path
    base = os.path.join(base_path, "")
    full = os.path.normpath(os.path.join(base, path))
    return full if full.startswith(base) else None


# --------------------------------------------------------------------------------------------- retrieval and statistics


def check_retrieval(entries: dict, findings: Findings) -> None:
    """Check that queries have answers and instances have queries, within each set."""
    for name in SETS:
        queries = {path: entry["ins"] for path, entry in entries.items() if entry["set"] == name and entry["is_query"]}
        gallery = {
            path: entry["ins"] for path, entry in entries.items() if entry["set"] == name and not entry["is_query"]
        }
        if queries and gallery:
            shown, queried = set().union(*gallery.values()), set(queries.values())
            for path, instance in queries.items():
                if instance not in shown:
                    findings.add("query-unanswered", path, f"instance {instance}")
            for instance in sorted(shown - queried):
                findings.add("instance-unqueried", f"{name} instance {instance}")
        elif queries or gallery:
            findings.add("set-one-sided", name, "queries only" if queries else "gallery images only")


def statistics(entries: dict, sizes: dict) -> dict:
    """What is in each set: {set: {figure: value}}, None for what cannot be known.

    sizes  path -> (height, width) of the images, as far as they are known from masks or image headers
    The size of an object is the share of the image that its box covers, in %.
    """
    result = {}
    for name in SETS:
        queries = [entry for entry in entries.values() if entry["set"] == name and entry["is_query"]]
        gallery = {path: entry for path, entry in entries.items() if entry["set"] == name and not entry["is_query"]}
        if not queries and not gallery:
            continue
        objects = [len(entry["bbox"]) for entry in gallery.values()]
        shares = [
            100 * (x2 - x1) * (y2 - y1) / (sizes[path][0] * sizes[path][1])
            for path, entry in gallery.items()
            if path in sizes
            for x1, y1, x2, y2 in entry["bbox"]
        ]
        occurrences = Counter(instance for entry in gallery.values() for instance in entry["ins"])
        images = Counter(instance for entry in gallery.values() for instance in set(entry["ins"]))
        classes = Counter(map(difficulty, occurrences.values()))
        relevant = [images[entry["ins"]] for entry in queries]
        splits = Counter(e["split"] for e in [*queries, *gallery.values()] if e.get("split"))
        result[name] = {
            "queries": len(queries),
            "gallery_images": len(gallery),
            "instances": len(occurrences.keys() | {entry["ins"] for entry in queries}),
            "objects": sum(objects),
            "objects_per_image_mean": mean(objects),
            "objects_per_image_max": max(objects, default=None),
            "object_size_mean": mean(shares),
            "object_size_median": float(np.median(shares)) if shares else None,
            "object_size_below_2": 100 * float(np.mean(np.array(shares) < 2)) if shares else None,
            "instances_easy": classes["easy"],
            "instances_medium": classes["medium"],
            "instances_hard": classes["hard"],
            "instances_once": sum(number == 1 for number in occurrences.values()),
            "relevant_per_query_mean": mean(relevant),
            "relevant_per_query_max": max(relevant, default=None),
            "queries_unanswered": sum(number == 0 for number in relevant),
            "splits": dict(sorted(splits.items())),
        }
    return result


def mean(values: list) -> float | None:
    return float(np.mean(values)) if values else None


# -------------------------------------------------------------------------------------------------------------- report

# Label, figure, format.
ROWS = [
    ("queries", "queries", ","),
    ("gallery images", "gallery_images", ","),
    ("instances", "instances", ","),
    ("annotated objects", "objects", ","),
    ("  an image, mean", "objects_per_image_mean", ".1f"),
    ("  an image, most", "objects_per_image_max", ","),
    ("object size, mean (% of image)", "object_size_mean", ".1f"),
    ("  median", "object_size_median", ".1f"),
    ("  below 2 % of the image (% of objects)", "object_size_below_2", ".1f"),
    ("instances seen > 10 times (easy)", "instances_easy", ","),
    ("  5 to 10 times (medium)", "instances_medium", ","),
    ("  < 5 times (hard)", "instances_hard", ","),
    ("  once", "instances_once", ","),
    ("relevant images a query, mean", "relevant_per_query_mean", ".1f"),
    ("  most", "relevant_per_query_max", ","),
    ("queries without any", "queries_unanswered", ","),
]


def print_statistics(figures: dict) -> None:
    """Print a column a set and, beside a set that was published, the published figures."""
    columns = []
    for name, values in figures.items():
        columns.append((name, {figure: values[figure] for _, figure, _ in ROWS}))
        if name in PUBLISHED:
            columns.append((f"{PUBLISHED[name]['name']} (published)", PUBLISHED[name]))
    widths = [max(len(title), 12) + 2 for title, _ in columns]
    print(f"{'':<40}" + "".join(f"{title:>{width}}" for (title, _), width in zip(columns, widths)))
    for label, figure, style in ROWS:
        cells = [values.get(figure, "") for _, values in columns]
        cells = ["-" if cell is None else cell if cell == "" else format(cell, style) for cell in cells]
        print((f"{label:<40}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths))).rstrip())
    for name, values in figures.items():
        if values["splits"]:
            print(f"splits of {name}: " + ", ".join(f"{split} {count:,}" for split, count in values["splits"].items()))


def print_findings(findings: Findings, verbose: bool) -> None:
    """Print one line per kind of issue, with a count and the first few paths; all of them if verbose."""
    groups = defaultdict(list)
    for issue in findings.issues:
        groups[issue[0]].append(issue)
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


def make_report(ann_file: str, passed: bool, findings: Findings, figures: dict) -> dict:
    """The JSON: all that the terminal shows, and every issue in full."""
    return {
        "file": os.fspath(ann_file),
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


# ------------------------------------------------------------------------------------------------------------- preview


def draw_preview(entries: dict, base_path: str | None, count: int) -> Image.Image | None:
    """One picture, a row an instance: a query with mask and box, then gallery images that show it, each with a zoom.

    None if no instance has both.
    """
    rows = []
    for name in SETS:
        queries, gallery = defaultdict(list), defaultdict(list)
        for path, entry in entries.items():
            if entry["set"] == name and entry["is_query"]:
                queries[entry["ins"]].append(path)
            elif entry["set"] == name:
                for instance in set(entry["ins"]):
                    gallery[instance].append(path)
        both = sorted(queries.keys() & gallery.keys())
        rng = random.Random(0)
        for instance in sorted(rng.sample(both, min(count, len(both)))):
            query = rng.choice(queries[instance])
            row = [query_tile(query, entries[query], base_path)]
            for path in rng.sample(gallery[instance], min(2, len(gallery[instance]))):
                row += gallery_tiles(path, entries[path], instance, base_path)
            rows.append((f"{name}, instance {instance}", row))
    if not rows:
        return None
    width = 5 * (TILE_WIDTH + MARGIN) + MARGIN
    line = TILE_HEIGHT + 3 * MARGIN + 30
    picture = Image.new("RGB", (width, len(rows) * line), (32, 32, 32))
    draw = ImageDraw.Draw(picture)
    for number, (title, tiles) in enumerate(rows):
        write_text(draw, (MARGIN, number * line + MARGIN), title, 16)
        for column, (label, tile) in enumerate(tiles):
            x = MARGIN + column * (TILE_WIDTH + MARGIN)
            picture.paste(tile, (x, number * line + 32))
            write_text(draw, (x + 2, number * line + 34 + TILE_HEIGHT), label, 11)
    return picture


def query_tile(path: str, entry: dict, base_path: str | None) -> tuple[str, Image.Image]:
    image = open_photograph(path, base_path)
    if image is None:
        return f"query {path[-40:]}: cannot be read", Image.new("RGB", (TILE_WIDTH, TILE_HEIGHT))
    mask = None
    if entry["mask"] is not None:
        findings = Findings()  # --sample-masks may have left this one out
        check_masks({path: entry}, None, findings)
        if findings.faulty:
            return f"query ...{path[-25:]}: the mask is faulty", Image.new("RGB", (TILE_WIDTH, TILE_HEIGHT))
        mask = decode_mask(entry["mask"])
    return f"query ...{path[-38:]}", fit(image, [entry["bbox"]], QUERY_COLOUR, mask)


def gallery_tiles(path: str, entry: dict, instance: int, base_path: str | None) -> list[tuple[str, Image.Image]]:
    """The whole image with the instance's boxes, and a zoom on the first of them."""
    image = open_photograph(path, base_path)
    if image is None:
        return [(f"gallery ...{path[-30:]}: cannot be read", Image.new("RGB", (TILE_WIDTH, TILE_HEIGHT)))]
    boxes = [box for box, number in zip(entry["bbox"], entry["ins"]) if number == instance]
    x1, y1, x2, y2 = boxes[0]
    half = max(x2 - x1, (y2 - y1) * TILE_WIDTH / TILE_HEIGHT, 2) * 0.8
    centre = (x1 + x2) / 2, (y1 + y2) / 2
    area = (centre[0] - half, centre[1] - half * 0.75, centre[0] + half, centre[1] + half * 0.75)
    limits = image.size * 2  # a crop that reaches far out of the image would be large, however small that is
    area = tuple(min(max(round(value), 0), limit) for value, limit in zip(area, limits))
    if area[0] >= area[2] or area[1] >= area[3]:  # the box lies outside
        area = (0, 0, *image.size)
    zoom_box = (x1 - area[0], y1 - area[1], x2 - area[0], y2 - area[1])
    share = 100 * (x2 - x1) * (y2 - y1) / (image.width * image.height)
    return [
        (f"gallery ...{path[-36:]}", fit(image, boxes, GALLERY_COLOUR)),
        (f"zoom, {share:.1f} % of the image", fit(image.crop(area), [zoom_box], GALLERY_COLOUR)),
    ]


def decode_mask(rle: dict) -> np.ndarray:
    """Any RLE that passed `check_masks` -> bool [h, w]."""
    height, width = rle["size"]
    counts = rle["counts"]
    if not isinstance(counts, list):
        counts, _ = decode_counts([counts if isinstance(counts, bytes) else counts.encode("ascii")])
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    if rle.get("transpose") is False:
        return flat.reshape(height, width)
    return flat.reshape(width, height).T.copy()


def open_photograph(path: str, base_path: str | None) -> Image.Image | None:
    full = full_path(path, base_path)
    try:
        return read_image(full).convert("RGB") if full else None
    except OSError:
        return None


# -------------------------------------------------------------------------------------------------------------- script


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Check an annotation file and say what is in it.",
        epilog="Exit status: 0 fine, 1 the file has errors (with --strict: or warnings), 2 it could not be checked.",
    )
    add = parser.add_argument
    add("--ann-file", default="anns.pt", metavar="FILE", help="annotation file (default: anns.pt)")
    add("--base-path", metavar="DIR", help="folder that relative image paths start at (default: the current folder)")
    add("--verbose", action="store_true", help="print every issue, and write a JSON report beside the annotation file")
    add("--report", metavar="FILE", help="write the JSON report there")
    add("--skip-paths", action="store_true", help="do not look for the images")
    add("--sample-masks", type=positive, metavar="N", help="check N masks only, for a quick look")
    add("--strict", action="store_true", help="exit with 1 on warnings too")
    add(
        "--preview",
        type=png_name,
        metavar="FILE.png",
        help="draw some queries and gallery images with their masks and boxes",
    )
    add(
        "--preview-count",
        type=positive,
        default=3,
        metavar="N",
        help="instances of each set in the preview (default: 3)",
    )
    args = parser.parse_args()
    if args.report is None and args.verbose:
        args.report = f"{os.path.splitext(args.ann_file)[0]}_verification.json"
    return args


def main() -> int:
    args = parse_args()
    check_outputs([args.report, args.preview], [args.ann_file])
    args.base_path = absolute_base(args.base_path)
    annotations = load_annotations(args.ann_file)
    if not annotations:
        raise SoirError(f"{args.ann_file} holds no entries, so there is nothing to check")

    gc.freeze()  # the entries are here to stay: without this, the collector looks at all of them time and again
    findings = Findings()
    entries = check_entries(annotations, findings)
    sizes = check_masks(entries, args.sample_masks, findings)
    if not args.skip_paths:
        sizes = {**sizes, **check_paths(annotations, args.base_path, sizes, findings)}
    for path, size in sizes.items():
        if path in entries:
            check_extent(path, entries[path], size, findings)
    if len(entries) == len(annotations):  # what is broken would make queries look unanswered
        check_retrieval(entries, findings)
    figures = statistics(entries, sizes)

    errors, warnings = findings.count("error"), findings.count("warning")
    passed = not errors and not (args.strict and warnings)
    written = []
    if args.report:
        with whole_file(args.report) as file:
            for text in json.JSONEncoder(indent=1).iterencode(make_report(args.ann_file, passed, findings, figures)):
                file.write(text.encode("utf-8", "backslashreplace"))
        written.append(args.report)
    if args.preview:
        drawable = {path: entry for path, entry in entries.items() if path not in findings.faulty}
        picture = draw_preview(drawable, args.base_path, args.preview_count)
        if picture is not None:
            write_png(args.preview, picture)
            written.append(args.preview)

    if figures:
        print_statistics(figures)
    print_findings(findings, args.verbose)
    if findings.counts["path-missing"] == len(annotations):
        print("\nNone of the images is there: name the folder that their paths start at with --base-path.")
    if args.preview and args.preview not in written:
        print("\nThere is nothing to preview: no instance has both a query and a gallery image without errors.")
    if written:
        print(f"\nwrote {', '.join(written)}")
    verdict = "PASSED" if passed else "FAILED"
    left_out = ", images not looked for" if args.skip_paths else ""
    left_out += f", {args.sample_masks:,} masks checked at most" if args.sample_masks else ""
    print(f"\n{verdict}: {errors:,} errors, {warnings:,} warnings in {len(annotations):,} entries{left_out}")
    return 0 if passed else 1


if __name__ == "__main__":
    with exit_status():
        sys.exit(main())
