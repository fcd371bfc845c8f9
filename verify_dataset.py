"""Check an annotation file: is it whole, does it fit its images, and what is in it?

In   an annotation file (anns.pt), one's own or a stranger's: nothing in it is run; and the images that it names
Out  a report on the terminal; with --verbose or --report also as JSON; with --preview a picture

    python verify_dataset.py --ann-file anns.pt --base-path /path/to/VoxDet --preview preview.png
    python verify_dataset.py --ann-file anns.pt --detections captions.pt

The file may be in any form that soir_forms.py knows; what is not in the current one is a warning.

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

from PIL import Image

from soir import published, rle, rules
from soir.console import absolute_base, add_input_options, exit_status, instance_id, make_parser, png_name, positive
from soir.detections import read_detections
from soir.drawing import page_names, write_pages
from soir.entry import Annotations, boxes_of, instances_of, masks_of
from soir.files import SoirError, check_no_image, check_outputs, whole_file
from soir.findings import Findings, print_findings, printable, progress_bar, shorten
from soir.forms import load_any_form, size_finder
from soir.geometry import EntryBox, Size
from soir.images import image_size
from soir.paths import find_root, full_path
from soir.previews import Choice, draw_instances
from soir.protocol import make_task
from soir.statistics import by_set, label_of, print_statistics, statistics

# The most issues that are kept to be listed; they take about 600 MB. All are counted. A hostile file can have billions.
MAX_ISSUES = 1_000_000


class Issue(NamedTuple):
    check: str
    path: str
    detail: str


class Issues:
    """What the checks found.

    kept    in the order found, up to MAX_ISSUES
    counts  check -> number of issues, all of them
    faulty  paths that have an error
    """

    def __init__(self) -> None:
        self.kept: list[Issue] = []
        self.counts: Counter[str] = Counter()
        self.faulty: set[str] = set()

    def add(self, check: str, path: Any, detail: str = "") -> None:
        path = path if isinstance(path, str) else shorten(path)
        self.counts[check] += 1
        if rules.CHECKS[check][0] == "error":
            self.faulty.add(path)
        if len(self.kept) < MAX_ISSUES:
            self.kept.append(Issue(check, path, detail))

    def count(self, severity: str) -> int:
        return sum(number for check, number in self.counts.items() if rules.CHECKS[check][0] == severity)


# -------------------------------------------------------------------------------------------------------------- checks


def check_all(
    annotations: Annotations, base_path: str | None, skip_paths: bool, sample_masks: int | None, issues: Issues
) -> tuple[Annotations, dict[str, int], dict[str, Size]]:
    """Run all checks.

    Returns (the entries whose fields can be relied on, the number of images that are relevant to each query, (height,
    width) of the known images).
    """
    entries = check_entries(annotations, issues)
    sizes = check_masks(entries, sample_masks, issues)
    if not skip_paths:
        sizes.update(check_paths(annotations, base_path, sizes, issues))
    for path, size in sizes.items():
        for check, detail in rules.extent_errors(entries[path], size) if path in entries else ():
            issues.add(check, path, detail)
    check_spellings(entries, issues)
    check_sets(entries, issues)
    relevant = count_relevant(entries)
    if len(entries) == len(annotations):  # what is broken would make queries look unanswered
        check_retrieval(entries, relevant, issues)
    return entries, relevant, sizes


def check_entries(annotations: Annotations, issues: Issues) -> Annotations:
    """Check the fields and boxes of every entry. Returns the entries whose fields can be relied on."""
    sound = {}
    for path, entry in progress_bar("entries", annotations.items()):
        faults = list(rules.entry_faults(path, entry))
        if not faults:
            sound[path] = entry
            faults = list(rules.entry_warnings(entry))
        for check, detail in faults:
            issues.add(check, path, detail)
    return sound


class Object(NamedTuple):
    """An object that has a mask."""

    path: str
    is_query: bool
    box: EntryBox
    mask: Any


def check_masks(entries: Annotations, sample: int | None, issues: Issues) -> dict[str, Size]:
    """Check every mask, or a sample. Returns the (height, width) that the masks of each image agree on."""
    objects = [
        Object(path, entry["is_query"], box, mask)
        for path, entry in entries.items()
        for box, mask in zip(boxes_of(entry), masks_of(entry))
    ]
    if sample is not None and sample < len(objects):
        objects = random.Random(0).sample(objects, sample)
    sizes: dict[str, Size | None] = {}
    readings = rle.examine_masks(item.mask for item in objects)
    for item, reading in zip(progress_bar("masks", objects), readings):
        size = sizes.setdefault(item.path, reading.size)
        if reading.size is not None and size not in (reading.size, None):
            h, w = reading.size
            issues.add("mask-size", item.path, f"{w} x {h} and {size[1]} x {size[0]}")
            sizes[item.path] = None
        if reading.box is None or reading.box != item.box:  # equal boxes need no further check, and most are equal
            for check, detail in rules.mask_errors(reading, item.box, item.is_query):
                issues.add(check, item.path, detail)
    return {path: size for path, size in sizes.items() if size is not None}


def check_paths(
    paths: Iterable[Any], base_path: str | None, mask_sizes: dict[str, Size], issues: Issues
) -> dict[str, Size]:
    """Check that every path is an image, by its header, of the size of its masks. Returns (height, width) of each."""
    sizes = {}
    for path in progress_bar("images", paths):
        if type(path) is not str or not path:
            continue
        full = full_path(path, base_path)
        if full is None:
            issues.add("path-outside", path)
            continue
        try:
            size = sizes[path] = image_size(full)
        except OSError as error:
            if not path_exists(full):
                issues.add("path-missing", path)
            elif not os.path.isfile(full):
                issues.add("path-not-file", path)
            else:
                issues.add("path-not-image", path, str(error)[-80:])
            continue
        if mask_sizes.get(path, size) != size:
            h, w = mask_sizes[path]
            issues.add("image-size", path, f"image {size[1]} x {size[0]}, mask {w} x {h}")
    return sizes


def path_exists(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a NUL or a lone surrogate in the path, up to Python 3.7
        return False


def count_relevant(entries: Annotations) -> dict[str, int]:
    """Path of a query -> how many gallery images are relevant to it, of entries whose fields can be relied on."""
    task = make_task(entries)
    return dict(zip(task.queries, map(len, task.relevant)))


def check_retrieval(entries: Annotations, relevant: dict[str, int], issues: Issues) -> None:
    """Check that queries have relevant images and instances have queries, within each set."""
    for name, (queries, gallery) in by_set(entries).items():
        if queries and gallery:
            shown = {instance for entry in gallery.values() for instance in entry["ins"]}
            queried = {instance for entry in queries.values() for instance in instances_of(entry)}
            for path, entry in queries.items():
                if not relevant[path]:
                    issues.add(
                        "query-unanswered", path, f"instance {shorten(', '.join(map(str, instances_of(entry))))}"
                    )
            for instance in sorted(shown - queried):
                issues.add("instance-unqueried", f"{label_of(name)} instance {instance}")
        else:
            issues.add("set-one-sided", label_of(name), "queries only" if queries else "gallery images only")


def check_spellings(entries: Annotations, issues: Issues) -> None:
    """Check that no path stands there in two spellings."""
    odd = {
        path: posixpath.normpath(path)
        for path in entries
        if path.startswith(("./", "../")) or re.search(r"//|/\.\.?/", path)
    }
    spellings = Counter(odd.values())
    for path, name in odd.items():
        if spellings[name] + (name in entries and name not in odd) > 1:
            issues.add("path-twice", path, name)


def check_sets(entries: Annotations, issues: Issues) -> None:
    """Check that the queries of a set all have masks or none has, and so its gallery images; and the names of sets."""
    for check, name, detail in rules.set_warnings(entries):
        issues.add(check, label_of(name), detail)


# -------------------------------------------------------------------------------------------------------------- report


def print_issues(issues: Issues, verbose: bool) -> None:
    """Print one line per kind of issue, with a count and the first few paths; all of them if verbose."""
    groups = defaultdict(list)
    for issue in issues.kept:
        groups[issue.check].append(issue)
    for severity in ("error", "warning"):
        for check, (kind, text) in rules.CHECKS.items():
            if kind != severity or not issues.counts[check]:
                continue
            print(f"\n{severity} {check}: {text}: {issues.counts[check]:,}")
            shown = groups[check] if verbose else groups[check][:3]
            for _, path, detail in shown:
                print(f"  {printable(f'{path} ({detail})' if detail else path)}")
            if issues.counts[check] > len(shown):
                print("  ...")


def make_report(
    ann_file: str, passed: bool, issues: Issues, of_detections: Findings, figures: dict[str, Any]
) -> dict[str, Any]:
    """The JSON: the verdict, what the checks found, up to MAX_ISSUES issues in full, and the statistics."""
    return {
        "file": ann_file,
        "passed": passed,
        "errors": issues.count("error"),
        "warnings": issues.count("warning"),
        "checks": {
            check: {"severity": severity, "description": text, "count": issues.counts[check]}
            for check, (severity, text) in rules.CHECKS.items()
        },
        "issues": [
            {"check": check, "severity": rules.CHECKS[check][0], "path": path, "detail": detail}
            for check, path, detail in issues.kept
        ],
        "detections": {"skipped": of_detections.skipped, "noticed": of_detections.noticed},
        "statistics": figures,
        "published": {name: published.FIGURES[name] for name in figures if name in published.FIGURES},
    }


def write_report(path: str, report: dict[str, Any]) -> None:
    with whole_file(path) as file:
        for text in json.JSONEncoder(indent=1).iterencode(report):
            file.write(text.encode("utf-8", "backslashreplace"))


# -------------------------------------------------------------------------------------------------------------- script


def hint_at_base(paths: list[str], base_path: str | None) -> str:
    """What to do where none of the images is there."""
    relative = [path for path in paths if not os.path.isabs(path)]
    if not relative:
        return "their paths are absolute, so convert_annotations.py --replace-prefix OLD NEW says where they are now"
    found = find_root(base_path or ".", random.Random(0).sample(relative, min(len(relative), 3))) if relative else None
    if found:
        return f"they are one level from here, try --base-path {found}"
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
    issues = Issues()
    find_size = (lambda path: None) if args.skip_paths else size_finder(base_path)
    of_detections, detections = Findings(), None
    annotations = load_any_form(args.ann_file, find_size, issues.add)
    if not annotations:
        raise SoirError(f"{args.ann_file} holds no entries, so there is nothing to check")
    check_no_image([args.report, args.preview], annotations, base_path)
    entries, relevant, sizes = check_all(annotations, base_path, args.skip_paths, args.sample_masks, issues)
    if args.detections:
        detections = read_detections(args.detections, annotations, args.min_score, of_detections)
    figures = statistics(entries, relevant, sizes, detections)

    errors, warnings = issues.count("error"), issues.count("warning")
    passed = not errors and not (args.strict and (warnings or of_detections))
    pages: list[Image.Image] = []
    if args.preview:
        drawable = {path: entry for path, entry in entries.items() if path not in issues.faulty}
        choice = Choice(
            args.set,
            args.instances,
            args.preview_count or 3,
            args.queries or 1,
            args.gallery or 2,
            args.order or "random",
        )
        pages = draw_instances(drawable, sizes, base_path, choice)
        names = page_names(args.preview, len(pages))
        check_outputs([args.report, *names], [args.ann_file, args.detections])
        check_no_image(names, annotations, base_path)
    written = []
    if args.report:
        write_report(args.report, make_report(args.ann_file, passed, issues, of_detections, figures))
        written.append(args.report)
    if pages:
        written += write_pages(args.preview, pages)

    if figures:
        print_statistics(figures)
    print_issues(issues, args.verbose)
    print_findings(of_detections, skipped="skipped of the detections", noticed="noticed of the detections")
    if issues.counts["path-missing"] == len(annotations):
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
    left_out += ", odd detections" if of_detections else ""
    print(f"\n{verdict}: {errors:,} errors, {warnings:,} warnings in {len(annotations):,} entries{left_out}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
