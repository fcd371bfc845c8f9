"""Check an annotation file: is it whole, does it fit its images, and what is in it?

In   an annotation file (anns.pt), one's own or a stranger's: nothing in it is run; and the images that it names
Out  a report on the terminal; with --verbose or --report also as JSON; with --preview a picture

    python verify_dataset.py --ann-file anns.pt --base-path /path/to/VoxDet --preview preview.png
    python verify_dataset.py --ann-file anns.pt --detections captions.pt

The file may be in any form that soir/forms.py knows; what is not in the current one is a warning.

Exit status: 0 fine, 1 the file has errors (with --strict: or anything else to notice), 2 it could not be checked.
"""

from __future__ import annotations

import soir.startup  # noqa: F401

import argparse
import json
import math
import os
import posixpath
import random
import re
import sys
from collections import Counter, defaultdict
from typing import Any, Iterable, NamedTuple

from soir import geometry, published, rle, rules
from soir.console import absolute_base, add_input_options, exit_status, instance_id, make_parser, png_name, positive
from soir.detections import read_detections
from soir.drawing import page_names, write_pages
from soir.entry import Annotations, boxes_of, instances_of, is_meant, masks_of
from soir.files import SoirError, check_no_image, check_outputs, whole_file
from soir.findings import Findings, counted, print_findings, printable, progress_bar, shorten
from soir.forms import load_any_form, size_finder
from soir.geometry import Size
from soir.images import look_at_header
from soir.paths import find_root, full_path
from soir.previews import Choice, draw_instances
from soir.protocol import make_task
from soir.rules import CHECKS, ERRORS
from soir.statistics import by_set, label_of, print_statistics, statistics

# How many problems are kept to be listed; they take about 600 MB. All are counted. A hostile file can have billions.
MAX_PROBLEMS = 1_000_000


class Problem(NamedTuple):
    """An error or a warning."""

    check: str  # one of CHECKS
    path: str
    detail: str


class Report:
    """What the checks found.

    kept    in the order found, up to MAX_PROBLEMS
    counts  check -> number of problems, all of them
    faulty  paths that have an error
    """

    def __init__(self) -> None:
        self.kept: list[Problem] = []
        self.counts: Counter[str] = Counter()
        self.faulty: set[str] = set()

    def add(self, check: str, path: Any, detail: str = "") -> None:
        path = path if isinstance(path, str) else shorten(path)
        self.counts[check] += 1
        if check in ERRORS:
            self.faulty.add(path)
        if len(self.kept) < MAX_PROBLEMS:
            self.kept.append(Problem(check, path, detail))

    def count(self, severity: str) -> int:
        return sum(number for check, number in self.counts.items() if CHECKS[check][0] == severity)


def check_all(
    annotations: Annotations, base_path: str | None, skip_paths: bool, sample_masks: int | None, report: Report
) -> tuple[Annotations, dict[str, int], dict[str, Size]]:
    """Run all checks.

    Returns (the entries whose fields can be relied on, the number of images that are relevant to each query, (height,
    width) of the known images).
    """
    entries = check_entries(annotations, report)
    sizes = check_masks(entries, sample_masks, report)
    if not skip_paths:
        sizes.update(check_paths(annotations, base_path, sizes, report))
    for path, size in sizes.items():
        for check, detail in rules.extent_errors(entries[path], size) if path in entries else ():
            report.add(check, path, detail)
    check_spellings(entries, report)
    for check, name, detail in rules.set_warnings(entries):
        report.add(check, label_of(name), detail)
    task = make_task(entries)
    relevant = dict(zip(task.queries, map(len, task.relevant)))
    if len(entries) == len(annotations):  # what is broken would make queries look unanswered
        check_retrieval(entries, relevant, report)
    return entries, relevant, sizes


def check_entries(annotations: Annotations, report: Report) -> Annotations:
    """Check the fields and boxes of every entry. Returns the entries whose fields can be relied on."""
    sound = {}
    for path, entry in progress_bar("entries", annotations.items()):
        broken = list(rules.entry_faults(path, entry))
        if not broken:
            sound[path] = entry
            broken = list(rules.entry_warnings(entry))
        for check, detail in broken:
            report.add(check, path, detail)
    return sound


def check_masks(entries: Annotations, sample: int | None, report: Report) -> dict[str, Size]:
    """Check every mask, or a sample. Returns the (height, width) that the masks of each image agree on."""
    objects = [
        (path, entry["is_query"], box, mask)
        for path, entry in entries.items()
        for box, mask in zip(boxes_of(entry), masks_of(entry))
    ]
    if sample is not None and sample < len(objects):
        objects = random.Random(0).sample(objects, sample)
    sizes: dict[str, Size | None] = {}
    readings = rle.examine_masks(mask for _, _, _, mask in objects)
    for (path, is_query, box, _), reading in zip(progress_bar("masks", objects), readings):
        size = sizes.setdefault(path, reading.size)
        if reading.size is not None and size not in (reading.size, None):
            h, w = reading.size
            report.add("mask-size", path, f"{w} x {h} and {size[1]} x {size[0]}")
            sizes[path] = None
        if reading.box is None or reading.box != box:  # equal boxes need no further check, and most are equal
            for check, detail in rules.mask_errors(reading, box, is_query):
                report.add(check, path, detail)
    return {path: size for path, size in sizes.items() if size is not None}


def check_paths(
    paths: Iterable[Any], base_path: str | None, mask_sizes: dict[str, Size], report: Report
) -> dict[str, Size]:
    """Check that every path is an image, by its header, of the size of its masks. Returns (height, width) of each."""
    sizes = {}
    for path in progress_bar("images", paths):
        if type(path) is not str or not path:
            continue
        full = full_path(path, base_path)
        if full is None:
            report.add("path-outside", path)
            continue
        try:
            size, is_rotated = look_at_header(full)
            sizes[path] = size
            if is_rotated:
                report.add("image-rotated", path)
        except OSError as error:
            if not path_exists(full):
                report.add("path-missing", path)
            elif not os.path.isfile(full):
                report.add("path-not-file", path)
            else:
                report.add("path-not-image", path, str(error)[-80:])
            continue
        if mask_sizes.get(path, size) != size:
            h, w = mask_sizes[path]
            report.add("image-size", path, f"image {size[1]} x {size[0]}, mask {w} x {h}")
    return sizes


def path_exists(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a NUL or a lone surrogate in the path, up to Python 3.7
        return False


def check_spellings(entries: Annotations, report: Report) -> None:
    """Check that no path is there in two spellings."""
    odd = {path: posixpath.normpath(path) for path in entries if re.search(r"^\.\.?/|//|/\.\.?/", path)}
    spellings = Counter(odd.values())
    for path, name in odd.items():
        if spellings[name] > 1 or (name in entries and name not in odd):
            report.add("path-twice", path, name)


def check_retrieval(entries: Annotations, relevant: dict[str, int], report: Report) -> None:
    """Check that queries have relevant images and instances have queries, within each set."""
    for name, (queries, gallery) in by_set(entries).items():
        boxes = [box for part in (queries, gallery) for entry in part.values() for box in boxes_of(entry) if box]
        if boxes and all(map(geometry.is_below_pixel, boxes)):
            report.add("box-in-shares", label_of(name), f"{len(boxes):,} boxes")
        if not queries or not gallery:
            report.add("set-one-sided", label_of(name), "queries only" if queries else "gallery images only")
            continue
        for path, entry in queries.items():
            if not relevant[path]:
                report.add("query-unanswered", path, f"instance {shorten(', '.join(map(str, instances_of(entry))))}")
        shown = {instance for entry in gallery.values() for instance in entry["ins"]}
        queried = {instance for entry in queries.values() for instance in instances_of(entry)}
        for instance in sorted(shown - queried):
            report.add("instance-unqueried", f"{label_of(name)} instance {instance}")


def print_report(report: Report, verbose: bool) -> None:
    """Print each check that found something, with a count and the first few paths; all of them if verbose."""
    shown: defaultdict[str, list[Problem]] = defaultdict(list)
    for problem in report.kept:
        if verbose or len(shown[problem.check]) < 3:
            shown[problem.check].append(problem)
    for check, (severity, text) in CHECKS.items():
        if report.counts[check]:
            print(f"\n{severity} {check}: {text}: {report.counts[check]:,}")
            for _, path, detail in shown[check]:
                print(f"  {printable(f'{path} ({detail})' if detail else path)}")
            if report.counts[check] > len(shown[check]):
                print("  ...")


def write_json(
    path: str, ann_file: str, passed: bool, report: Report, of_detections: Findings, figures: dict[str, Any]
) -> None:
    """Write the JSON: the verdict, what the checks found, up to MAX_PROBLEMS problems in full, and the statistics."""
    content = {
        "file": ann_file,
        "passed": passed,
        "errors": report.count("error"),
        "warnings": report.count("warning"),
        "checks": {
            check: {"severity": severity, "description": text, "count": report.counts[check]}
            for check, (severity, text) in CHECKS.items()
        },
        "issues": [
            {"check": check, "severity": CHECKS[check][0], "path": path, "detail": detail}
            for check, path, detail in report.kept
        ],
        "detections": {"skipped": of_detections.skipped, "noticed": of_detections.noticed},
        "statistics": figures,
        "published": {name: published.FIGURES[name] for name in figures if name in published.FIGURES},
    }
    with whole_file(path) as file:
        for text in json.JSONEncoder(indent=1).iterencode(content):
            file.write(text.encode("utf-8", "backslashreplace"))


def hint_at_base(paths: list[str], base_path: str | None) -> str:
    """What to do where none of the images is there."""
    relative = [path for path in paths if not os.path.isabs(path)]
    if not relative:
        return "their paths are absolute, so convert_annotations.py --replace-prefix OLD NEW says where they are now"
    found = find_root(base_path or ".", random.Random(0).sample(relative, min(len(relative), 3)))
    if found:
        return f"they are found at {found}: try --base-path {found}"
    return "name the folder that their paths start at with --base-path"


def parse_args() -> argparse.Namespace:
    parser = make_parser(
        "Check an annotation file and say what is in it.",
        "0 fine, 1 the file has errors (with --strict: or anything else to notice), 2 it could not be checked",
    )
    add = add_input_options(parser)
    text = "objects that a detector found: captions.pt of the paper's code, or COCO results (.json) by image path"
    add("--detections", metavar="FILE", help=text)
    add("--min-score", type=score, default=0.2, metavar="S", help="lowest score of a detection to count (default: 0.2)")
    add = parser.add_argument_group("checks").add_argument
    add("--skip-paths", action="store_true", help="do not look for the images")
    add("--sample-masks", type=positive, metavar="N", help="check N masks only, for a quick look")
    add("--strict", action="store_true", help="exit with 1 on warnings too, and on odd detections")
    add = parser.add_argument_group("output").add_argument
    text = "print every issue, and write a JSON report beside the annotation file: anns_verification.json of anns.pt"
    add("--verbose", action="store_true", help=text)
    add("--report", metavar="FILE", help="write the JSON report to FILE")
    add = parser.add_argument_group("preview").add_argument
    text = "draw queries and gallery images with masks and boxes; over 40 lines as FILE-1.png, FILE-2.png, ..."
    add("--preview", type=png_name, metavar="FILE.png", help=text)
    add("--preview-count", type=positive, metavar="N", help="instances of each set (default: 3)")
    add("--set", metavar="NAME", help="this set only, in upper or lower case")
    add("--instances", type=instance_id, nargs="+", metavar="ID", help="these instances")
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
    report = Report()
    find_size = (lambda path: None) if args.skip_paths else size_finder(base_path)
    annotations = load_any_form(args.ann_file, find_size, report.add)
    if not annotations:
        raise SoirError(f"{args.ann_file} holds no entries, so there is nothing to check")
    check_no_image([args.report, args.preview], annotations, base_path)
    entries, relevant, sizes = check_all(annotations, base_path, args.skip_paths, args.sample_masks, report)
    if args.set is not None and not any(is_meant(name, args.set) for name in by_set(entries)):
        there = ", ".join(map(label_of, by_set(entries))) or "none"
        raise SoirError(f"{args.ann_file} has no set {args.set}; its sets: {there[:1000]}")
    of_detections, detections = Findings(), None
    if args.detections:
        detections = read_detections(args.detections, annotations, args.min_score, of_detections, sizes)
    figures = statistics(entries, relevant, sizes, detections)
    errors, warnings = report.count("error"), report.count("warning")
    passed = not errors and not (args.strict and (warnings or of_detections))

    pages = []
    if args.preview:
        drawable = {path: entry for path, entry in entries.items() if path not in report.faulty}
        counts = args.preview_count or 3, args.queries or 1, args.gallery or 2
        choice = Choice(args.set, args.instances, *counts, args.order or "random")
        pages = draw_instances(drawable, sizes, base_path, choice)
        names = page_names(args.preview, len(pages))
        check_outputs([args.report, *names], [args.ann_file, args.detections])
        check_no_image(names, annotations, base_path)
    written = []
    if args.report:
        write_json(args.report, args.ann_file, passed, report, of_detections, figures)
        written.append(args.report)
    if pages:
        written += write_pages(args.preview, pages)

    if figures:
        print_statistics(figures)
    print_report(report, args.verbose)
    print_findings(of_detections, skipped="skipped of the detections", noticed="noticed of the detections")
    if report.counts["path-missing"] == len(annotations):
        print(f"\nNone of the images is there: {hint_at_base(list(annotations), base_path)}.")
    if args.preview and not pages:
        wanted = f"instance{' of these' if args.set or args.instances else ''}"
        print(f"\nThere is nothing to preview: no {wanted} has both a query and a gallery image without errors.")
    if written:
        print(f"\nwrote {', '.join(written)}")
    limits = ", images not looked for" if args.skip_paths else ""
    if args.sample_masks:
        masks = sum(len(masks_of(entry)) for entry in entries.values())
        limits += f", {'all' if args.sample_masks >= masks else f'{args.sample_masks:,} of'} {masks:,} masks checked"
    limits += ", odd detections" if of_detections else ""
    verdict = f"{'PASSED' if passed else 'FAILED'}: {counted(errors, 'error')}, {counted(warnings, 'warning')}"
    print(f"\n{verdict} in {counted(len(annotations), 'entry')}{limits}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
