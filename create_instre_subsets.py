"""Build INSTRE-XS and INSTRE-XXS, the small-object subsets of INSTRE, or INSTRE by lists, as files like anns.pt.

In   <instre-root>/INSTRE-S1, or INSTRE-S2 and INSTRE-M too: images, and beside each its boxes (see soir/instre.py)
Out  instre_xs.pt, instre_xxs.pt; with lists instre.pt, or what --name says

    python create_instre_subsets.py --instre-root /path/to/INSTRE
    python create_instre_subsets.py --instre-root /path/to/INSTRE --query-list queries.txt --gallery-list gallery.txt

The image lists of the published subsets, and the rule that separates query from gallery, were never published. This
is the protocol here:

1. The object size of an image is the share of its area that its largest box covers, boxes clipped to the image.
   Below 15 % an image can be in XS, below 5 % in XXS.
2. Within an instance, the images that can be in XS are ordered by a hash of the seed, their folder and their number;
   the first half of them, rounded up, become queries, the others gallery. Images of INSTRE-M are gallery only.
3. XXS takes from XS the images that are small enough, each in the role it has in XS.
4. An instance that lacks queries or gallery images in a subset is left out of that subset.

So XXS is a subset of XS, and other instances, present or not, change nothing for an instance.

With --query-list and --gallery-list, the lists decide alone, and there is one file: every listed image is in it, in its
role, whatever its size (a threshold applies where one is given). That builds the usual protocol of INSTRE (Iscen and
others, 2017: 1,250 queries, 27,293 images). A query needs a box. The box of a query of INSTRE-M spans both objects, and
an image that shows either of them is relevant. For a gallery image without a box, the whole image is the box.

Exit status: 0 fine, 1 something was skipped or noticed and --strict was given, 2 the run could not be done.
"""

from __future__ import annotations

import soir.startup  # noqa: F401

import argparse
import hashlib
import math
import os
import re
import sys
from collections import defaultdict
from typing import Any, Container, Dict, List, NamedTuple, Tuple

import numpy as np

from soir import geometry, published
from soir.console import add_creation_options, exit_status, make_parser
from soir.entry import SETS, Annotations, gallery_entry, query_entry, save_annotations
from soir.files import SoirError, check_outputs, open_regular
from soir.findings import Findings, counted, in_bytes, print_findings, print_table
from soir.geometry import Box
from soir.instre import KEY, PARTS, Photograph, key_of, read_listed, read_part
from soir.paths import tidy_path


class Member(NamedTuple):
    """A photograph in a subset."""

    photograph: Photograph
    is_query: bool
    objects: list[int]  # indices of the boxes that count


def assign_roles(photographs: list[Photograph], seed: int, query_fraction: float) -> set[str]:
    """Of the photographs that can be in XS, the keys of those that become queries; the others are gallery (step 2).

    query_fraction  share of queries among the images of an instance, between 0 and 1
    """
    keys_of = defaultdict(list)
    for photograph in photographs:
        if photograph.part != "M":
            keys_of[photograph.instances[0]].append(photograph.key)
    queries: set[str] = set()
    for keys in keys_of.values():
        keys.sort(key=lambda key: hashlib.sha256(f"{seed}/{key}".encode("utf-8", "surrogateescape")).digest())
        number = math.ceil(round(query_fraction * len(keys), 6))  # 0.07 * 100 is a bit more than 7 in floats
        queries.update(keys[:number])
    return queries


def select_subset(photographs: list[Photograph], queries: set[str]) -> list[Member]:
    """The members of a subset, of photographs that are small enough (step 4)."""
    asked = {photograph.instances[0] for photograph in photographs if photograph.key in queries}
    shown = {i for photograph in photographs if photograph.key not in queries for i in photograph.instances}
    kept = asked & shown
    subset = []
    for photograph in photographs:
        objects = [index for index, instance in enumerate(photograph.instances) if instance in kept]
        if objects:
            subset.append(Member(photograph, photograph.key in queries, objects))
    return subset


def is_below(photograph: Photograph, threshold: float) -> bool:
    return photograph.share < threshold or threshold == 100  # an object may fill its image


def read_lists(query_list: str, gallery_list: str, findings: Findings) -> tuple[dict[str, str], dict[str, str]]:
    """The queries and the gallery images that lists name: key -> path as it is spelled there.

    Raises SoirError if an image is in both, or a list cannot be read.
    """
    queries, gallery = read_list(query_list), read_list(gallery_list)
    both = sorted(queries.keys() & gallery.keys())
    if both:
        raise SoirError(f"{queries[both[0]]} is in both {query_list} and {gallery_list}: an image has one role")
    for names in (queries, gallery):
        for key in [key for key in names if not KEY.fullmatch(key)]:
            findings.skip("listed path that is not spelled like INSTRE-S1/01a_canada_book/013.jpg", names.pop(key))
    return queries, gallery


def read_list(path: str) -> dict[str, str]:
    """Key -> path, of a text file with one path like INSTRE-S1/01a_canada_book/013.jpg per line.

    Raises SoirError if the file cannot be read, or is not UTF-8.
    """
    try:
        with open_regular(path) as file:
            lines = file.read().decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise SoirError(f"cannot read the list {path}: {error}") from error
    names = (line.strip().replace("\\", "/") for line in lines)
    return {key_of(tidy_path(name)): name for name in names if name}


def select_listed(
    photographs: list[Photograph], queries: Container[str], threshold: float | None, findings: Findings
) -> list[Member]:
    """The members of a file that lists decide on, whatever they show; a threshold applies only where one is given.

    queries  the keys of those that are queries
    """
    subset = []
    for photograph in photographs:
        is_query = photograph.key in queries
        if threshold is not None and not is_below(photograph, threshold):
            findings.skip(f"listed image whose object is not below the threshold of {threshold:g} %", photograph.name)
        elif is_query and None in photograph.boxes:
            findings.skip("listed query without a box", photograph.name)
        else:
            subset.append(Member(photograph, is_query, list(range(len(photograph.boxes)))))
    return subset


def make_annotations(subset: list[Member], set_name: str) -> Annotations:
    """The dict of an annotation file: first the queries, then the gallery images."""
    annotations = {}
    for photograph, is_query, objects in sorted(subset, key=lambda member: not member.is_query):
        name = photograph.folder
        if is_query:
            shown = list(dict.fromkeys(photograph.instances))
            ins = shown if len(shown) > 1 else shown[0]
            entry = query_entry(query_box(photograph), None, ins, set_name, obj_name=name)
        else:
            boxes = [photograph.boxes[index] for index in objects]
            instances = [photograph.instances[index] for index in objects]
            entry = gallery_entry(boxes, [], instances, set_name, obj_name=name)
        annotations[photograph.path] = entry
    return annotations


def query_box(photograph: Photograph) -> Box:
    """The box of a query: the largest one; of an image of INSTRE-M that around both objects, as the protocol has it."""
    boxes = [box for box in photograph.boxes if box is not None]
    if photograph.part != "M":
        return max(boxes, key=geometry.area)
    x1, y1, x2, y2 = zip(*boxes)
    return min(x1), min(y1), max(x2), max(y2)


Rows = List[Tuple[str, Dict[str, Any]]]  # of the table: name, figures

# Title, figure, format.
COLUMNS = [
    ("instances", "instances", ","),
    ("queries", "queries", ","),
    ("images", "gallery_images", ","),
    ("objects/image", "objects_per_image_mean", ".2f"),
    ("size (%)", "object_size_mean", ".2f"),
    ("median (%)", "object_size_median", ".2f"),
]


def figures_of(photographs: list[Photograph], queries: int | None = None) -> dict[str, Any]:
    """What a row of the table shows."""
    shares = [photograph.share for photograph in photographs]
    return {
        "instances": len({instance for photograph in photographs for instance in photograph.instances}),
        "queries": queries,
        "gallery_images": len(photographs) - (queries or 0),
        "objects_per_image_mean": np.mean([len(photograph.boxes) for photograph in photographs]),
        "object_size_mean": np.mean(shares),
        "object_size_median": np.median(shares),
    }


def print_figures(rows: Rows) -> None:
    """Print the table, and below each the published figures of that name."""
    table = [["", *(title for title, _, _ in COLUMNS)]]
    for name, figures in rows:
        lines = [(name, figures)]
        if name in published.FIGURES:
            lines.append(("  published", published.FIGURES[name]))
        for label, values in lines:
            cells = [(values.get(figure), style) for _, figure, style in COLUMNS]
            table.append([label, *("" if value is None else format(value, style) for value, style in cells)])
    print_table(table)


def parse_args() -> argparse.Namespace:
    parser = make_parser(
        "Build INSTRE-XS and INSTRE-XXS, the small-object subsets of INSTRE.",
        "0 fine, 1 something was skipped or noticed and --strict was given, 2 the run could not be done",
    )
    add = parser.add_argument_group("input").add_argument
    add("--instre-root", default=".", metavar="DIR", help="folder of the download (default: the current folder)")
    add("--parts", nargs="+", choices=PARTS, help="parts of INSTRE to take images from (default: S1, or as listed)")
    add = parser.add_argument_group("subsets").add_argument
    text = "object size below which an image can be in XS (default: 15; with lists none)"
    add("--xs-threshold", type=percentage, metavar="%", help=text)
    text = "object size below which an image can be in XXS (default: 5; with lists none)"
    add("--xxs-threshold", type=percentage, metavar="%", help=text)
    text = "share of queries among the images of an instance (default: 0.5)"
    add("--query-fraction", type=fraction, default=0.5, metavar="F", help=text)
    add("--seed", type=int, default=0, metavar="N", help="another seed chooses other queries (default: 0)")
    add = parser.add_argument_group("lists, in place of the subsets").add_argument
    add("--query-list", metavar="FILE", help="the queries, one path per line (INSTRE-S1/01a_canada_book/013.jpg)")
    add("--gallery-list", metavar="FILE", help="the gallery images in the same form; goes with --query-list")
    add("--name", type=listed_name, metavar="NAME", help="set and file of what the lists choose (default: INSTRE)")
    add = add_creation_options(parser)
    add("--output-dir", default=".", metavar="DIR", help="where to write the files (default: the current folder)")
    args = parser.parse_args()
    if (args.query_list is None) != (args.gallery_list is None):
        parser.error("--query-list and --gallery-list go together")
    if args.query_list:
        args.name = args.name or "INSTRE"
        args.parts = args.parts or list(PARTS)
        return args
    if args.name:
        parser.error("--name goes with --query-list and --gallery-list")
    args.parts = args.parts or ["S1"]
    args.xs_threshold = 15 if args.xs_threshold is None else args.xs_threshold
    args.xxs_threshold = 5 if args.xxs_threshold is None else args.xxs_threshold
    if args.xxs_threshold > args.xs_threshold:
        parser.error("--xxs-threshold is above --xs-threshold, but XXS is a subset of XS")
    return args


def percentage(text: str) -> float:
    value = float(text)
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"expected more than 0 and at most 100 %, found {text}")
    return value


def fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, found {text}")
    return value


def listed_name(text: str) -> str:
    """A type for argparse: the name of a set without masks, which is that of its file too."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text):
        raise argparse.ArgumentTypeError(f"expected letters, digits, dots and hyphens, found {text}")
    if text in SETS and SETS[text].query_masks:
        raise argparse.ArgumentTypeError(f"{text} is another set, which has masks")
    return text


def file_of(args: argparse.Namespace, name: str) -> str:
    """The file of a set: instre_xs.pt for INSTRE-XS."""
    return os.path.join(args.output_dir, f"{name.lower().replace('-', '_')}.pt")


def build_subsets(args: argparse.Namespace, rows: Rows, findings: Findings) -> dict[str, list[Member]]:
    """INSTRE-XS and INSTRE-XXS, by the protocol of this script: name -> members."""
    photographs: list[Photograph] = []
    prefix = "" if args.relative_paths else args.instre_root
    for part in [part for part in PARTS if part in args.parts]:
        found = read_part(args.instre_root, prefix, part, args.workers, findings)
        photographs += found
        if found:
            rows.append((f"INSTRE-{part}", figures_of(found)))
    chosen = [photograph for photograph in photographs if is_below(photograph, args.xs_threshold)]
    queries = assign_roles(chosen, args.seed, args.query_fraction)
    smallest = [photograph for photograph in chosen if is_below(photograph, args.xxs_threshold)]
    subsets = {"INSTRE-XS": select_subset(chosen, queries), "INSTRE-XXS": select_subset(smallest, queries)}
    for name in [name for name, subset in subsets.items() if not subset]:
        findings.skip("subset without an instance that has both queries and gallery images", file_of(args, name))
        del subsets[name]
    return subsets


def build_listed(args: argparse.Namespace, findings: Findings) -> dict[str, list[Member]]:
    """The one set that lists decide on: name -> members."""
    queries, gallery = read_lists(args.query_list, args.gallery_list, findings)
    prefix = "" if args.relative_paths else args.instre_root
    listed = {**queries, **gallery}
    photographs = read_listed(args.instre_root, prefix, args.parts, listed, args.workers, findings)
    given = [threshold for threshold in (args.xs_threshold, args.xxs_threshold) if threshold is not None]
    subset = select_listed(photographs, queries, min(given, default=None), findings)
    missing = {True, False} - {member.is_query for member in subset}
    if missing:
        print_findings(findings)
        what, path = ("query", args.query_list) if True in missing else ("gallery image", args.gallery_list)
        raise SoirError(f"no {what} of the list {path} can be used, so nothing was written")
    return {args.name: subset}


@exit_status()
def main() -> int:
    args = parse_args()
    names = [args.name] if args.query_list else ["INSTRE-XS", "INSTRE-XXS"]
    check_outputs([file_of(args, name) for name in names], [args.query_list, args.gallery_list])
    findings = Findings()
    for option, threshold in (("--xs-threshold", args.xs_threshold), ("--xxs-threshold", args.xxs_threshold)):
        if threshold is not None and threshold < 1:
            findings.notice("threshold below 1 %: its unit is percent, 15 is 15 %", f"{option} {threshold:g}")
    rows: Rows = []
    subsets = build_listed(args, findings) if args.query_list else build_subsets(args, rows, findings)
    if not subsets:
        print_findings(findings)
        raise SoirError(f"nothing was found under {args.instre_root} that can be used, so nothing was written")

    written = []
    for name, subset in subsets.items():
        rows.append((name, figures_of([m.photograph for m in subset], sum(m.is_query for m in subset))))
        annotations = make_annotations(subset, name)
        size = save_annotations(annotations, file_of(args, name))
        written.append(f"wrote {file_of(args, name)}: {counted(len(annotations), 'entry')}, {in_bytes(size)}")
    print_figures(rows)
    print_findings(findings)
    print()
    print("\n".join(written))
    return 1 if args.strict and findings else 0


if __name__ == "__main__":
    sys.exit(main())
