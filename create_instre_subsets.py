"""Build INSTRE-XS and INSTRE-XXS, the small-object subsets of INSTRE, as annotation files like anns.pt.

In   <instre-root>/INSTRE-S1/<number and letter>_<name>/013.jpg, and beside each image 013.txt, one line `x y w h` per
     box (INSTRE-S2 in the same form; INSTRE-M/<number>: line 1 is object a, line 2 object b of S1 with that number)
Out  instre_xs.pt, instre_xxs.pt

    python create_instre_subsets.py --instre-root /path/to/INSTRE

The image lists of the published subsets, and the rule that separates query from gallery, were never published. This
is the protocol here:

1. The object size of an image is the share of its area that its largest box covers, boxes clipped to the image.
   Below 15 % an image can be in XS, below 5 % in XXS.
2. Within an instance, the images that can be in XS are ordered by a hash of the seed, their folder and their number;
   the first half of them, rounded up, become queries, the others gallery. Images of INSTRE-M are gallery only.
3. XXS takes from XS the images that are small enough, each in the role it has in XS.
4. An instance that lacks queries or gallery images in a subset is left out of that subset.

So XXS is a subset of XS, and other instances, present or not, change nothing for an instance.

Exit status: 0 fine, 1 something was skipped or noticed and --strict was given, 2 the run could not be done.
"""

from __future__ import annotations

from soir_console import (
    Findings,
    add_creation_options,
    exit_status,
    make_parser,
    print_findings,
    print_table,
)

import argparse
import hashlib
import math
import os
import re
import sys
import zlib
from collections import defaultdict
from typing import Any, Iterator, NamedTuple

import numpy as np

from soir_common import (
    PUBLISHED,
    Annotations,
    Box,
    box_area,
    box_share,
    clip_box,
    gallery_entry,
    is_below_pixel,
    query_entry,
    save_annotations,
    xyxy_of,
)
from soir_files import SoirError, check_outputs, find_root, open_regular, read_bytes, reason_of
from soir_images import image_names, natural_key, one_per_stem, tidy_path, whole_image_size
from soir_workers import map_ordered

PARTS = ("S1", "S2", "M")

# A box file has a line or two. One larger than this, in bytes, is something else.
MAX_BOX_FILE = 65536


class ImageFiles(NamedTuple):
    """An image to read, and its box file."""

    image: str
    boxes: str
    folder: str  # its name
    instances: tuple[int, ...]  # the one that the folder shows, or the two of INSTRE-M


class PhotographReading(NamedTuple):
    """What reading an image and its box file gave."""

    faults: list[str]
    boxes: list[Box] = []  # half-open, clipped to the image
    share: float = 0.0  # of the largest box, in % of the image
    detail: str = ""  # of the fault: what the decoder said
    is_clipped: bool = False  # a box reached out of the image
    fractions: int = 0  # boxes whose numbers all lie within 0..1


class Photograph(NamedTuple):
    """An image of INSTRE that can be used."""

    path: str  # in the annotation file
    name: str  # as INSTRE spells it: INSTRE-S1/01a_canada_book/013.jpg
    key: str  # the same whatever the spelling: instre-s1/01a_canada_book/013
    part: str
    folder: str
    boxes: list[Box]
    instances: list[int]  # of each box
    share: float


class Member(NamedTuple):
    """A photograph in a subset."""

    photograph: Photograph
    is_query: bool
    objects: list[int]  # indices of the boxes that count


# ------------------------------------------------------------------------------------------------------------- reading


def find_part(root: str, part: str) -> str:
    """Path below the root of INSTRE-S1, say: in the root or in INSTRE_release/, in any case. Raises SoirError."""
    for base in ("", *match_names(root, "instre_release")):
        for name in match_names(os.path.join(root, base), f"instre-{part.lower()}"):
            if os.path.isdir(os.path.join(root, base, name)):
                return os.path.join(base, name)
    found = find_root(root, [f"INSTRE-{part}"])
    if found:
        hint = f"It is there one level from here: try --instre-root {found}"
    else:
        hint = "Name the folder that holds it with --instre-root, or other parts with --parts"
    expected = os.path.join(root, f"INSTRE-{part}")
    raise SoirError(f"INSTRE-{part} is missing: expected {expected} or the same under INSTRE_release/. {hint}")


def match_names(folder: str, lower_name: str) -> list[str]:
    try:
        return [name for name in sorted(os.listdir(folder)) if name.lower() == lower_name]
    except OSError as error:
        hint = "name the folder of the download with --instre-root"
        raise SoirError(f"cannot read the folder {folder} ({error.strerror}): {hint}") from error


def parse_instre(root: str, prefix: str, part: str, workers: int, findings: Findings) -> list[Photograph]:
    """List the photographs of a part, in natural order.

    prefix  what stands for the root in the image paths, may be empty
    """
    below = find_part(root, part)
    files = pair_files(root, below, part, findings)
    photographs, fractions = [], 0
    with map_ordered(read_photograph, files, workers, f"INSTRE-{part}") as readings:
        for reading, pair in zip(readings, files):
            name = os.path.basename(pair.image)
            place = os.path.join(below, pair.folder, name).replace(os.sep, "/")
            for fault in reading.faults:
                findings.skip(fault, place, reading.detail)
            if reading.is_clipped:
                findings.notice("box that reaches out of its image, clipped", place)
            fractions += bool(reading.fractions)
            if part == "M" and reading.boxes and (reading.faults or len(reading.boxes) != 2):
                findings.skip("image of INSTRE-M without two boxes", place)  # which line is whose would be a guess
            elif reading.boxes:
                instances = list(pair.instances) if part == "M" else list(pair.instances) * len(reading.boxes)
                path, standard = tidy_path(prefix, place), f"INSTRE-{part}/{pair.folder}/{name}"
                shown = part, pair.folder, reading.boxes, instances, reading.share
                photographs.append(Photograph(path, standard, key_of(standard), *shown))
    if fractions > len(files) / 2:
        raise SoirError(
            f"the boxes of {fractions:,} of the {len(files):,} images of {os.path.join(root, below)} lie within 0..1: "
            "these are shares of the image, pixels are expected"
        )
    return photographs


def key_of(name: str) -> str:
    """What names an image of INSTRE whatever its spelling: lower case, without its ending and without a folder above.

    So that neither the split nor a list depends on how a copy writes INSTRE_release/ or .JPG.
    """
    stem = os.path.splitext(name.lower())[0]
    return stem[len("instre_release/") :] if stem.startswith("instre_release/") else stem


def pair_files(root: str, below: str, part: str, findings: Findings) -> list[ImageFiles]:
    """List the images of a part that have a box file, which is the .txt of the same name."""
    files = []
    for folder, instances in find_instances(root, below, part, findings):
        path = os.path.join(root, below, folder)
        boxes: dict[str, str] = {}
        for name in sorted(os.listdir(path)):
            if name.lower().endswith(".txt") and name[0] != "." and boxes.setdefault(name[:-4], name) != name:
                findings.skip("second .txt of the same image", f"{below}/{folder}/{name}")
        images, others = one_per_stem(image_names(path))
        for name in others:
            findings.skip("second photograph of the same name", f"{below}/{folder}/{name}")
        for stem, name in images.items():
            if stem in boxes:
                box_file = os.path.join(path, boxes[stem])
                files.append(ImageFiles(os.path.join(path, name), box_file, folder, instances))
            else:
                findings.skip("image without its .txt", f"{below}/{folder}/{name}")
        for unused in sorted(boxes.keys() - images.keys()):
            findings.skip(".txt without its image", f"{below}/{folder}/{boxes[unused]}")
    return files


def find_instances(root: str, below: str, part: str, findings: Findings) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (folder name, instance ids of its boxes) of a part, in natural order.

    The ids come from the folder's own number and letter, so that they do not depend on what else is there: 10 x number
    + 1 for a, + 2 for b, + 0 without a letter; from 10,001 in S2. A folder of INSTRE-M shows the two objects of S1 with
    its number. A folder without a number, as all real ones of S2 are, gets its id from a hash of its name, which fits
    31 bits. Raises SoirError if two such folders have the same.
    """
    seen: dict[tuple[int, ...], str] = {}
    ids: tuple[int, ...]
    for folder in sorted(os.listdir(os.path.join(root, below)), key=natural_key):
        if not os.path.isdir(os.path.join(root, below, folder)) or folder.startswith("."):
            continue
        match = re.match(r"([0-9]{1,3})([ab]?)(?![0-9a-zA-Z])", folder.lower())
        if part == "M":
            if not match or match.group(2):
                findings.skip("folder of INSTRE-M without a number", f"{below}/{folder}")
                continue
            ids = (10 * int(match.group(1)) + 1, 10 * int(match.group(1)) + 2)
        elif match:
            letter = ("", "a", "b").index(match.group(2))
            ids = (10 * int(match.group(1)) + letter + (10_000 if part == "S2" else 0),)
        else:
            ids = (hash_of_name(part, folder),)
            if ids in seen:
                raise SoirError(
                    f"{below}/{seen[ids]} and {below}/{folder} get the same instance id {ids[0]} from a hash of their "
                    "names: rename one of them"
                )
        if seen.setdefault(ids, folder) != folder:
            findings.skip("folder with the number and letter of another", f"{below}/{folder}")
            continue
        yield folder, ids


def hash_of_name(part: str, folder: str) -> int:
    """An instance id from 100,000 to 2^31 - 1."""
    name = f"{part}/{folder}".lower().encode("utf-8", "surrogateescape")
    return 100_000 + zlib.crc32(name) % (2**31 - 100_000)


def read_photograph(files: ImageFiles) -> PhotographReading:
    """Read an image and its box file, in a worker."""
    try:
        size = whole_image_size(files.image)
    except OSError as error:
        return PhotographReading(["image that cannot be read"], detail=reason_of(error))
    try:
        data = read_bytes(files.boxes, MAX_BOX_FILE)
    except OSError as error:
        return PhotographReading([".txt that cannot be read"], detail=reason_of(error))
    lines = [line for line in data.decode("utf-8-sig", "replace").splitlines() if line.strip()]
    if not lines:
        return PhotographReading([".txt that is empty"])
    faults: list[str] = []
    boxes: list[Box] = []
    seen: set[Box] = set()
    is_clipped, fractions = False, 0
    for line in lines:
        numbers = parse_line(line)
        box = xyxy_of(numbers) if numbers else None
        if numbers is None:
            faults.append("line that is not four numbers x y w h")
        elif box is None:
            faults.append("box of no positive size")
        elif box in seen:
            faults.append("line that stands twice")
        else:
            seen.add(box)
            fractions += all(0 <= number <= 1 for number in numbers)
            inside = clip_box(box, size)
            if inside is None:
                faults.append("box outside of its image")
            elif is_below_pixel(box) or is_below_pixel(inside):
                faults.append("box that is less than a pixel wide or high")
            else:
                is_clipped |= inside != box
                boxes.append(inside)
    share = max((box_share(box, size) for box in boxes), default=0)
    return PhotographReading(faults, boxes, share, is_clipped=is_clipped, fractions=fractions)


def parse_line(line: str) -> list[float] | None:
    """`x y w h`, separated by white space or commas -> list of four numbers; None if it is not that."""
    words = re.split(r"[\s,]+", line.strip().strip(","))
    if len(words) != 4 or not all(re.fullmatch(r"[-+]?[0-9]{1,12}(\.[0-9]{0,12})?", word) for word in words):
        return None
    numbers = [float(word) for word in words]
    return [int(number) if number.is_integer() else number for number in numbers]


# ------------------------------------------------------------------------------------------------------------- subsets


def assign_roles(photographs: list[Photograph], seed: int, query_fraction: float) -> set[str]:
    """Keys of the photographs that become queries, of those that can be in XS; the others are gallery (step 2)."""
    keys_of = defaultdict(list)
    for photograph in photographs:
        if photograph.part != "M":
            keys_of[photograph.instances[0]].append(photograph.key)
    queries: set[str] = set()
    for keys in keys_of.values():
        keys.sort(key=lambda key: hashlib.sha256(f"{seed}/{key}".encode("utf-8", "surrogateescape")).digest())
        queries.update(keys[: math.ceil(round(query_fraction * len(keys), 6))])
    return queries


def roles_from_lists(
    photographs: list[Photograph], query_list: str, gallery_list: str, findings: Findings
) -> tuple[list[Photograph], set[str]]:
    """Roles from the lists of a paper: (photographs that are in either, keys of the queries). Raises SoirError."""
    queries, gallery = read_list(query_list), read_list(gallery_list)
    both = sorted(queries.keys() & gallery.keys())
    if both:
        raise SoirError(f"{queries[both[0]]} is in both {query_list} and {gallery_list}: an image has one role")
    listed, chosen = {**queries, **gallery}, []
    for photograph in photographs:
        if photograph.key not in listed:
            continue
        del listed[photograph.key]
        if photograph.part == "M" and photograph.key in queries:
            findings.skip("listed query of INSTRE-M, which shows two objects", photograph.name)
        else:
            chosen.append(photograph)
    for name in sorted(listed.values()):
        findings.skip("listed image that is not there, or above the threshold", name)
    return chosen, set(queries)


def read_list(path: str) -> dict[str, str]:
    """Key -> path, of a text file with one path like INSTRE-S1/01a_canada_book/013.jpg per line. Raises SoirError."""
    try:
        with open_regular(path) as file:
            lines = file.read().decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise SoirError(f"cannot read the list {path}: {error}") from error
    names = (line.strip().replace("\\", "/") for line in lines)
    return {key_of(tidy_path(name)): name for name in names if name}


def is_below(photograph: Photograph, threshold: float) -> bool:
    return photograph.share < threshold or threshold == 100  # an object may fill its image


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


def make_annotations(subset: list[Member], set_name: str) -> Annotations:
    """The dict of an annotation file: first the queries, then the gallery images."""
    annotations = {}
    for photograph, is_query, _ in subset:
        if is_query:
            box = max(photograph.boxes, key=box_area)
            entry = query_entry(box, None, photograph.instances[0], set_name, obj_name=photograph.folder)
            annotations[photograph.path] = entry
    for photograph, is_query, objects in subset:
        if not is_query:
            boxes = [photograph.boxes[index] for index in objects]
            instances = [photograph.instances[index] for index in objects]
            entry = gallery_entry(boxes, [], instances, set_name, obj_name=photograph.folder)
            annotations[photograph.path] = entry
    return annotations


# -------------------------------------------------------------------------------------------------------------- report


# Title, figure, format.
COLUMNS = [
    ("instances", "instances", ","),
    ("queries", "queries", ","),
    ("gallery images", "gallery_images", ","),
    ("objects/image", "objects_per_image_mean", ".2f"),
    ("mean size (%)", "object_size_mean", ".2f"),
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


def print_figures(rows: list[tuple[str, dict[str, Any]]]) -> None:
    """Print a table of (name, figures), and below each the published figures of that name."""
    table = [["", *(title for title, _, _ in COLUMNS)]]
    for name, figures in rows:
        lines = [(name, figures)]
        if name in PUBLISHED:
            lines.append((f"  {PUBLISHED[name]['name']}, published", PUBLISHED[name]))
        for label, values in lines:
            cells = [(values.get(figure), style) for _, figure, style in COLUMNS]
            table.append([label, *("" if value is None else format(value, style) for value, style in cells)])
    print_table(table)


# -------------------------------------------------------------------------------------------------------------- script


def parse_args() -> argparse.Namespace:
    parser = make_parser(
        "Build INSTRE-XS and INSTRE-XXS, the small-object subsets of INSTRE.",
        "0 fine, 1 something was skipped or noticed and --strict was given, 2 the run could not be done",
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
    add_creation_options(parser)
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


@exit_status()
def main() -> int:
    args = parse_args()
    outputs = [os.path.join(args.output_dir, name) for name in ("instre_xs.pt", "instre_xxs.pt")]
    check_outputs(outputs, [args.query_list, args.gallery_list])
    findings = Findings()
    photographs: list[Photograph] = []
    rows = []
    prefix = "" if args.relative_paths else args.instre_root
    for part in [part for part in PARTS if part in args.parts]:
        found = parse_instre(args.instre_root, prefix, part, args.workers, findings)
        photographs += found
        if found:
            rows.append((f"INSTRE-{part}", figures_of(found)))

    for option, threshold in (("--xs-threshold", args.xs_threshold), ("--xxs-threshold", args.xxs_threshold)):
        if threshold < 1:
            findings.notice("threshold below 1 %: its unit is percent, 15 is 15 %", f"{option} {threshold:g}")
    chosen = [photograph for photograph in photographs if is_below(photograph, args.xs_threshold)]
    if args.query_list:
        chosen, queries = roles_from_lists(chosen, args.query_list, args.gallery_list, findings)
    else:
        queries = assign_roles(chosen, args.seed, args.query_fraction)
    files = []
    for output, name, threshold in zip(outputs, ("INSTRE-XS", "INSTRE-XXS"), (args.xs_threshold, args.xxs_threshold)):
        subset = select_subset([photograph for photograph in chosen if is_below(photograph, threshold)], queries)
        if subset:
            members = [member.photograph for member in subset]
            rows.append((name, figures_of(members, sum(member.is_query for member in subset))))
            files.append((output, make_annotations(subset, name)))
        else:
            findings.skip("subset without an instance that has both queries and gallery images", output)
    if not files:
        print_findings(findings)
        raise SoirError(f"nothing was found under {args.instre_root} that can be used, so nothing was written")

    sizes = [save_annotations(annotations, output) for output, annotations in files]
    print_figures(rows)
    print_findings(findings)
    print()
    for (output, entries), size in zip(files, sizes):
        print(f"wrote {output}: {len(entries):,} entries, {size / 1e3:,.0f} kB")
    return 1 if args.strict and findings else 0


if __name__ == "__main__":
    sys.exit(main())
