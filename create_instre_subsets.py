"""Build INSTRE-XS and INSTRE-XXS, the small-object subsets of INSTRE, as annotation files like anns.pt.

In   <instre-root>/INSTRE-S1/<number and letter>_<name>/013.jpg, and beside each image 013.txt, a line `x y w h` a box
     (INSTRE-S2 in the same form; INSTRE-M/<number>: line 1 is object a, line 2 object b of S1 with that number)
Out  instre_xs.pt, instre_xxs.pt

    python create_instre_subsets.py --instre-root /path/to/INSTRE

The image lists of the published subsets, and the rule that separates query from gallery, were never published. This
is the protocol here:

1. The object size of an image is the share of its area that its largest box covers, boxes clipped to the image.
   Below 15 % an image can be in XS, below 5 % in XXS.
2. Within an instance, the images that can be in XS are ordered by a hash of the seed and their path in INSTRE; the
   first half of them, rounded up, become queries, the others gallery. Images of INSTRE-M are gallery only.
3. XXS takes from XS the images that are small enough, each in the role it has in XS.
4. An instance that lacks queries or gallery images in a subset is left out of that subset.

So XXS is a subset of XS, and other instances, present or not, change nothing for an instance.

Exit status: 0 fine, 1 something was skipped and --strict was given, 2 the run could not be done.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import re
import sys
import zlib
from collections import defaultdict, namedtuple
from typing import Iterator

import numpy as np

from input_files import image_names, image_size, natural_key, open_regular, read_file
from soir_common import (
    PUBLISHED,
    SoirError,
    add_common_options,
    check_outputs,
    corners,
    exit_status,
    find_root,
    gallery_entry,
    print_skipped,
    query_entry,
    save_annotations,
)
from worker_processes import map_ordered

PARTS = ("S1", "S2", "M")

# A box file has a line or two. One larger than this, in bytes, is something else.
MAX_BOX_FILE = 65536

# An image of INSTRE. path: its key; name: its path as INSTRE spells it, INSTRE-S1/01a_canada_book/013.jpg; boxes:
# half-open (x1, y1, x2, y2), clipped; ins: the instance of each box; size: the share, in %, that its largest box covers
Photograph = namedtuple("Photograph", "path name part folder boxes ins size")


# ------------------------------------------------------------------------------------------------------------- reading


def find_part(root: str, part: str) -> str:
    """Path below the root of INSTRE-S1, say: in the root or in INSTRE_release/, in any case. Raises SoirError."""
    for base in ("", *match_names(root, "instre_release")):
        for name in match_names(os.path.join(root, base), f"instre-{part.lower()}"):
            if os.path.isdir(os.path.join(root, base, name)):
                return os.path.join(base, name)
    found = find_root(root, [f"INSTRE-{part}"])
    raise SoirError(
        f"INSTRE-{part} is missing: expected {os.path.join(root, f'INSTRE-{part}')} or the same under INSTRE_release/. "
        + (
            f"It is there one level from here: try --instre-root {found}"
            if found
            else "Name the folder that holds it with --instre-root, or other parts with --parts"
        )
    )


def match_names(folder: str, lower_name: str) -> list[str]:
    try:
        return [name for name in sorted(os.listdir(folder)) if name.lower() == lower_name]
    except OSError as error:
        hint = "name the folder of the download with --instre-root"
        raise SoirError(f"cannot read the folder {folder} ({error.strerror}): {hint}") from error


def parse_instre(root: str, key_root: str, part: str, workers: int, skipped: dict) -> list[Photograph]:
    """List the Photographs of a part, in natural order. What is left out is added to skipped: reason -> places."""
    below = find_part(root, part)
    tasks = []
    for folder, instances in find_instances(root, below, part, skipped):
        path = os.path.join(root, below, folder)
        boxes: dict[str, str] = {}
        for name in sorted(os.listdir(path)):
            if name.lower().endswith(".txt") and not name.startswith(".") and boxes.setdefault(name[:-4], name) != name:
                skipped["second .txt of the same image"].append(f"{below}/{folder}/{name}")
        images = image_names(path)
        for name in images:
            if os.path.splitext(name)[0] in boxes:
                box_file = os.path.join(path, boxes[os.path.splitext(name)[0]])
                tasks.append((os.path.join(path, name), box_file, folder, name, instances))
            else:
                skipped["image without its .txt"].append(f"{below}/{folder}/{name}")
        for unused in sorted(boxes.keys() - {os.path.splitext(name)[0] for name in images}):
            skipped[".txt without its image"].append(f"{below}/{folder}/{boxes[unused]}")

    photographs = []
    for (faults, boxes, size), task in zip(map_ordered(read_photograph, tasks, workers, f"INSTRE-{part}"), tasks):
        folder, name, instances = task[2:]
        place = os.path.join(below, folder, name).replace(os.sep, "/")
        for fault in faults:
            skipped[fault].append(place)
        if part == "M" and boxes and (faults or len(boxes) != 2):  # which line is whose would be a guess
            skipped["image of INSTRE-M without two boxes"].append(place)
        elif boxes:
            ins = list(instances) if part == "M" else list(instances) * len(boxes)
            path = os.path.join(key_root, place).replace(os.sep, "/")
            photographs.append(Photograph(path, f"INSTRE-{part}/{folder}/{name}", part, folder, boxes, ins, size))
    return photographs


def find_instances(root: str, below: str, part: str, skipped: dict) -> Iterator[tuple]:
    """Yield (folder name, tuple of the instance ids of its boxes) of a part, in natural order.

    The ids come from the folder's own number and letter, so that they do not depend on what else is there: 10 x number
    + 1 for a, + 2 for b, + 0 without a letter; from 10,001 in S2. A folder of INSTRE-M shows the two objects of S1 with
    its number. A folder without a number gets its id from a hash of its name.
    """
    seen: dict[tuple, str] = {}
    ids: tuple[int, ...]
    for folder in sorted(os.listdir(os.path.join(root, below)), key=natural_key):
        if not os.path.isdir(os.path.join(root, below, folder)) or folder.startswith("."):
            continue
        match = re.match(r"([0-9]{1,3})([ab]?)(?![0-9a-zA-Z])", folder.lower())
        if part == "M":
            if not match or match.group(2):
                skipped["folder of INSTRE-M without a number"].append(f"{below}/{folder}")
                continue
            ids = (10 * int(match.group(1)) + 1, 10 * int(match.group(1)) + 2)
        elif match:
            letter = ("", "a", "b").index(match.group(2))
            ids = (10 * int(match.group(1)) + letter + (10_000 if part == "S2" else 0),)
        else:
            ids = (100_000 + zlib.crc32(f"{part}/{folder}".encode("utf-8", "surrogateescape")),)
        if seen.setdefault(ids, folder) != folder:
            skipped["folder with the number and letter of another"].append(f"{below}/{folder}")
            continue
        yield folder, ids


def read_photograph(task: tuple) -> tuple[list, list, float | None]:
    """Read (image file, box file, ...), in a worker: (faults, half-open boxes inside the image, object size in %)."""
    image_file, box_file = task[:2]
    try:
        width, height = image_size(image_file)  # the header is enough: INSTRE is large, its boxes few
    except OSError:
        return ["image that cannot be read"], [], None
    try:
        data = read_file(box_file, MAX_BOX_FILE)
    except OSError:
        return [".txt that cannot be read"], [], None
    lines = [line for line in data.decode("utf-8-sig", "replace").splitlines() if line.strip()]
    if not lines:
        return [".txt that is empty"], [], None
    faults, boxes = [], []
    for line in lines:
        numbers = parse_line(line)
        box = corners(numbers) if numbers else None
        if numbers is None:
            faults.append("line that is not four numbers x y w h")
        elif box is None:
            faults.append("box of no positive size")
        else:
            box = (max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height))
            if box[2] > box[0] and box[3] > box[1]:
                boxes.append(box)
            else:
                faults.append("box outside of its image")
    size = max((100 * area(box) / (width * height) for box in boxes), default=None)
    return faults, boxes, size


def parse_line(line: str) -> list | None:
    """`x y w h`, separated by white space or commas -> list of four numbers; None if it is not that."""
    words = re.split(r"[\s,]+", line.strip().strip(","))
    if len(words) != 4 or not all(re.fullmatch(r"[-+]?[0-9]{1,12}(\.[0-9]{0,12})?", word) for word in words):
        return None
    numbers = [float(word) for word in words]
    return [int(number) if number.is_integer() else number for number in numbers]


def area(box: tuple) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


# ------------------------------------------------------------------------------------------------------------- subsets


def assign_roles(photographs: list, seed: int, query_fraction: float) -> set:
    """Names of the photographs that become queries, of those that can be in XS; the others are gallery (step 2)."""
    instances = defaultdict(list)
    for photograph in photographs:
        if photograph.part != "M":
            instances[photograph.ins[0]].append(photograph.name)
    queries = set()
    for names in instances.values():
        names.sort(key=lambda name: hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest())
        queries.update(names[: math.ceil(round(query_fraction * len(names), 6))])
    return queries


def roles_from_lists(photographs: list, query_list: str, gallery_list: str, skipped: dict) -> tuple[list, set]:
    """Roles from the lists of a paper: (photographs that are in either, names of the queries). SoirError."""
    queries, gallery = read_list(query_list), read_list(gallery_list)
    both = sorted(queries & gallery)
    if both:
        raise SoirError(f"{both[0]} is in both {query_list} and {gallery_list}: an image has one role")
    listed, chosen = queries | gallery, []
    for photograph in photographs:
        if photograph.name not in listed:
            continue
        listed.discard(photograph.name)
        if photograph.part == "M" and photograph.name in queries:
            skipped["listed query of INSTRE-M, which shows two objects"].append(photograph.name)
        else:
            chosen.append(photograph)
    for name in sorted(listed):
        skipped["listed image that is not there, or above the threshold"].append(name)
    return chosen, queries


def read_list(path: str) -> set[str]:
    """The lines of a text file: a set of paths like INSTRE-S1/01a_canada_book/013.jpg. SoirError."""
    try:
        with open_regular(path) as file:
            lines = file.read().decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise SoirError(f"cannot read the list {path}: {error}") from error
    names = (line.strip().replace("\\", "/") for line in lines)
    return {name[2:] if name.startswith("./") else name for name in names if name}


def select_subset(photographs: list, queries: set) -> list[tuple]:
    """The photographs of a subset: list of (photograph, is query, indices of the objects that count) (step 4)."""
    asked = {photograph.ins[0] for photograph in photographs if photograph.name in queries}
    shown = {i for photograph in photographs if photograph.name not in queries for i in photograph.ins}
    kept = asked & shown
    subset = []
    for photograph in photographs:
        objects = [index for index, instance in enumerate(photograph.ins) if instance in kept]
        if objects:
            subset.append((photograph, photograph.name in queries, objects))
    return subset


def make_annotations(subset: list, set_name: str) -> dict:
    """The dict of an annotation file: first the queries, then the gallery images."""
    annotations = {}
    for photograph, is_query, _ in subset:
        if is_query:
            box = max(photograph.boxes, key=area)
            annotations[photograph.path] = query_entry(
                box, None, photograph.ins[0], set_name, obj_name=photograph.folder
            )
    for photograph, is_query, objects in subset:
        if not is_query:
            boxes = [photograph.boxes[index] for index in objects]
            ins = [photograph.ins[index] for index in objects]
            annotations[photograph.path] = gallery_entry(boxes, [], ins, set_name, obj_name=photograph.folder)
    return annotations


# -------------------------------------------------------------------------------------------------------------- report


def figures(photographs: list, queries: int | None = None) -> dict:
    """What a row of the table shows."""
    return {
        "instances": len({instance for photograph in photographs for instance in photograph.ins}),
        "queries": queries,
        "gallery_images": len(photographs) - (queries or 0),
        "objects_per_image_mean": np.mean([len(photograph.boxes) for photograph in photographs]),
        "object_size_mean": np.mean([photograph.size for photograph in photographs]),
        "object_size_median": np.median([photograph.size for photograph in photographs]),
    }


COLUMNS = [
    ("instances", "instances", ","),
    ("queries", "queries", ","),
    ("gallery images", "gallery_images", ","),
    ("objects/image", "objects_per_image_mean", ".2f"),
    ("mean size (%)", "object_size_mean", ".2f"),
    ("median (%)", "object_size_median", ".2f"),
]


def print_table(rows: list) -> None:
    """Print (name, figures) rows, and below each the published figures of that name."""
    widths = [len(title) + 2 for title, _, _ in COLUMNS]
    print(f"{'':<26}" + "".join(f"{title:>{width}}" for (title, _, _), width in zip(COLUMNS, widths)))
    for name, values in rows:
        lines = [(name, values)]
        if name in PUBLISHED:
            lines.append((f"  {PUBLISHED[name]['name']}, published", PUBLISHED[name]))
        for label, cells in lines:
            cells = [(cells.get(figure), style) for _, figure, style in COLUMNS]
            texts = ["" if value is None else format(value, style) for value, style in cells]
            print((f"{label:<26}" + "".join(f"{text:>{width}}" for text, width in zip(texts, widths))).rstrip())


# -------------------------------------------------------------------------------------------------------------- script


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Build INSTRE-XS and INSTRE-XXS, the small-object subsets of INSTRE.",
        epilog="Exit status: 0 fine, 1 something was skipped and --strict was given, 2 the run could not be done.",
    )
    add = parser.add_argument
    add("--instre-root", default=".", metavar="DIR", help="folder of the download (default: the current folder)")
    add("--output-dir", default=".", metavar="DIR", help="where to write the two files (default: the current folder)")
    add("--parts", nargs="+", choices=PARTS, default=["S1"], help="parts of INSTRE to take images from (default: S1)")
    add("--xs-threshold", type=percent, default=15, metavar="%", help="object size below which XS is (default: 15)")
    add("--xxs-threshold", type=percent, default=5, metavar="%", help="object size below which XXS is (default: 5)")
    add("--query-fraction", type=fraction, default=0.5, metavar="F", help="share of queries (default: 0.5)")
    add("--seed", type=int, default=0, metavar="N", help="another seed, another choice of queries (default: 0)")
    add("--query-list", metavar="FILE", help="the queries, one path per line (INSTRE-S1/01a_canada_book/013.jpg)")
    add("--gallery-list", metavar="FILE", help="the gallery images in the same form; goes with --query-list")
    add_common_options(parser)
    args = parser.parse_args()
    if (args.query_list is None) != (args.gallery_list is None):
        parser.error("--query-list and --gallery-list go together")
    if args.xxs_threshold > args.xs_threshold:
        parser.error("--xxs-threshold is above --xs-threshold, but XXS is a subset of XS")
    return args


def percent(text: str) -> float:
    value = float(text)
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"expected more than 0 and at most 100 %, found {text}")
    return value


def fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, found {text}")
    return value


def main() -> int:
    args = parse_args()
    outputs = [os.path.join(args.output_dir, name) for name in ("instre_xs.pt", "instre_xxs.pt")]
    check_outputs(outputs, [args.query_list, args.gallery_list])
    skipped: dict[str, list[str]] = defaultdict(list)
    photographs, rows = [], []
    key_root = "" if args.relative_paths else args.instre_root
    for part in [part for part in PARTS if part in args.parts]:
        found = parse_instre(args.instre_root, key_root, part, args.workers, skipped)
        photographs += found
        if found:
            rows.append((f"INSTRE-{part}", figures(found)))

    chosen = [photograph for photograph in photographs if photograph.size < args.xs_threshold]
    if args.query_list:
        chosen, queries = roles_from_lists(chosen, args.query_list, args.gallery_list, skipped)
    else:
        queries = assign_roles(chosen, args.seed, args.query_fraction)
    files = []
    for output, name, threshold in zip(outputs, ("INSTRE-XS", "INSTRE-XXS"), (args.xs_threshold, args.xxs_threshold)):
        subset = select_subset([photograph for photograph in chosen if photograph.size < threshold], queries)
        if subset:
            rows.append((name, figures([p for p, _, _ in subset], sum(is_query for _, is_query, _ in subset))))
            files.append((output, make_annotations(subset, name)))
        else:
            skipped["subset without an instance that has both queries and gallery images"].append(output)
    if not files:
        print_skipped(skipped)
        raise SoirError(f"nothing was found under {args.instre_root} that can be used, so nothing was written")

    sizes = [save_annotations(annotations, output) for output, annotations in files]
    print_table(rows)
    print_skipped(skipped)
    print()
    for (output, entries), size in zip(files, sizes):
        print(f"wrote {output}: {len(entries):,} entries, {size / 1e3:,.0f} kB")
    return 1 if args.strict and skipped else 0


if __name__ == "__main__":
    with exit_status():
        sys.exit(main())
