"""Build INSTRE-XS and INSTRE-XXS, the small-object subsets of INSTRE, or INSTRE by lists, as files like anns.pt.

In   <instre-root>/INSTRE-S1/<number and letter>_<name>/013.jpg, and beside each image 013.txt, one line `x y w h` per
     box (INSTRE-S2 in the same form; INSTRE-M/<number>: line 1 is object a, line 2 object b of S1 with that number)
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
others, 2017: 1,250 queries, 27,293 images). A query needs a box; that of an image of INSTRE-M spans both its objects,
and it shows both instances: relevant is what shows either. A gallery image without a box is in it as a whole.

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
from typing import Any, Container, Dict, Iterator, List, NamedTuple, Tuple

import numpy as np

from soir_common import (
    PUBLISHED,
    SETS,
    Annotations,
    Box,
    EntryBox,
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
    boxes: str | None  # None where there is none, which only a listed image may lack
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
    is_readable: bool = True  # the image


class Photograph(NamedTuple):
    """An image of INSTRE that can be used."""

    path: str  # in the annotation file
    name: str  # as INSTRE spells it: INSTRE-S1/01a_canada_book/013.jpg
    key: str  # the same whatever the spelling: instre-s1/01a_canada_book/013
    part: str
    folder: str
    boxes: list[EntryBox]  # None where it has none: the whole image
    instances: list[int]  # of each box
    share: float  # of the largest box, in % of the image; 100 without boxes


class Member(NamedTuple):
    """A photograph in a subset."""

    photograph: Photograph
    is_query: bool
    objects: list[int]  # indices of the boxes that count


class OutputFile(NamedTuple):
    """A file to write."""

    path: str
    set_name: str
    subset: list[Member]


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
    return read_photographs(root, below, prefix, part, pair_files(root, below, part, findings), workers, findings)


def read_photographs(
    root: str,
    below: str,
    prefix: str,
    part: str,
    files: list[ImageFiles],
    workers: int,
    findings: Findings,
    are_listed: bool = False,
) -> list[Photograph]:
    """Read the images of a part, and their box files.

    below       the path of the part in the root
    are_listed  a list names them: they are kept without a box as well, unless the image cannot be read
    """
    photographs, fractions = [], 0
    with map_ordered(read_photograph, files, workers, f"INSTRE-{part}") as readings:
        for reading, pair in zip(readings, files):
            name = os.path.basename(pair.image)
            place = os.path.join(below, pair.folder, name).replace(os.sep, "/")
            is_kept = are_listed and reading.is_readable
            boxes: list[EntryBox] = list(reading.boxes)
            for fault in reading.faults:
                if is_kept:
                    findings.notice(f"listed image with a {fault}", place)
                else:
                    findings.skip(fault, place, reading.detail)
            if part == "M" and boxes and (reading.faults or len(boxes) != 2):
                boxes = []  # which line is whose would be a guess
                if is_kept:
                    findings.notice("listed image of INSTRE-M without two boxes, as a whole", place)
                else:
                    findings.skip("image of INSTRE-M without two boxes", place)
            if reading.is_clipped:
                findings.notice("box that reaches out of its image, clipped", place)
            fractions += bool(reading.fractions)
            if boxes or is_kept:
                instances = list(pair.instances) if part == "M" else list(pair.instances) * max(len(boxes), 1)
                path, standard = tidy_path(prefix, place), name_of(part, pair)
                shown = boxes or [None] * len(instances), instances, reading.share if boxes else 100.0
                photographs.append(Photograph(path, standard, key_of(standard), part, pair.folder, *shown))
    if fractions > len(files) / 2:
        raise SoirError(
            f"the boxes of {fractions:,} of the {len(files):,} images of {os.path.join(root, below)} lie within 0..1: "
            "these are shares of the image, pixels are expected"
        )
    return photographs


def name_of(part: str, files: ImageFiles) -> str:
    """The name of an image as INSTRE spells it: INSTRE-S1/01a_canada_book/013.jpg."""
    return f"INSTRE-{part}/{files.folder}/{os.path.basename(files.image)}"


# What `key_of` gives for an image of INSTRE, and the part in it.
KEY = re.compile("instre-(s1|s2|m)/[^/]+/[^/]+")


def key_of(name: str) -> str:
    """What names an image of INSTRE whatever its spelling: lower case, without its ending and the folders above.

    So that neither the split nor a list depends on how a copy writes INSTRE_release/ or .JPG.
    """
    stem = os.path.splitext(name.lower())[0]
    last_three = "/".join(stem.split("/")[-3:])
    return last_three if KEY.fullmatch(last_three) else stem


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


def pair_listed_files(root: str, below: str, part: str, listed: Container[str], findings: Findings) -> list[ImageFiles]:
    """List the images of a part that a list names, by their keys, each with its box file if there is one."""
    files = []
    for folder, instances in find_instances(root, below, part, findings):
        path = os.path.join(root, below, folder)
        names = sorted(os.listdir(path))
        boxes = {name[:-4]: os.path.join(path, name) for name in reversed(names) if name.lower().endswith(".txt")}
        images, others = one_per_stem(image_names(path))
        for stem, name in images.items():
            found = ImageFiles(os.path.join(path, name), boxes.get(stem), folder, instances)
            if key_of(name_of(part, found)) in listed:
                files.append(found)
                for other in others:
                    if os.path.splitext(other)[0] == stem:
                        findings.skip("second photograph of the same name", f"{below}/{folder}/{other}")
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
        return PhotographReading(["image that cannot be read"], detail=reason_of(error), is_readable=False)
    if files.boxes is None:
        return PhotographReading([])
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


class Lists(NamedTuple):
    """The lists of a protocol: key -> path as it is spelled there."""

    queries: dict[str, str]
    gallery: dict[str, str]


def read_lists(query_list: str, gallery_list: str, findings: Findings) -> Lists:
    """Read both lists. Raises SoirError if an image is in both, or one cannot be read."""
    queries, gallery = read_list(query_list), read_list(gallery_list)
    both = sorted(queries.keys() & gallery.keys())
    if both:
        raise SoirError(f"{queries[both[0]]} is in both {query_list} and {gallery_list}: an image has one role")
    for names in (queries, gallery):
        for key in [key for key in names if not KEY.fullmatch(key)]:
            findings.skip("listed path that is not spelled like INSTRE-S1/01a_canada_book/013.jpg", names.pop(key))
    return Lists(queries, gallery)


def read_listed(
    root: str, prefix: str, parts: list[str] | None, lists: Lists, workers: int, findings: Findings
) -> list[Photograph]:
    """Read the listed images.

    parts  those that --parts names; None for all that the lists name
    """
    left = {**lists.queries, **lists.gallery}
    named = {key[len("instre-") :].partition("/")[0].upper() for key in left}
    photographs = []
    for part in PARTS:
        if part in named and (parts is None or part in parts):
            below = find_part(root, part)
            files = pair_listed_files(root, below, part, left.keys(), findings)
            photographs += read_photographs(root, below, prefix, part, files, workers, findings, are_listed=True)
            for pair in files:
                left.pop(key_of(name_of(part, pair)), None)
    for key, name in sorted(left.items()):
        is_left_out = parts is not None and not key.startswith(tuple(f"instre-{part.lower()}/" for part in parts))
        findings.skip(
            "listed image of a part that --parts leaves out" if is_left_out else "listed image that is not there", name
        )
    return photographs


def select_listed(
    photographs: list[Photograph], lists: Lists, threshold: float | None, findings: Findings
) -> list[Member]:
    """The members of a file that lists decide on, whatever they show; a threshold applies only where one is given."""
    subset = []
    for photograph in photographs:
        is_query = photograph.key in lists.queries
        if threshold is not None and not is_below(photograph, threshold):
            findings.skip(f"listed image whose object is not below the threshold of {threshold:g} %", photograph.name)
        elif is_query and None in photograph.boxes:
            findings.skip("listed query without a box", photograph.name)
        else:
            subset.append(Member(photograph, is_query, list(range(len(photograph.boxes)))))
    return subset


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
            box, ins = query_box(photograph), list(dict.fromkeys(photograph.instances))
            shown = ins if len(ins) > 1 else ins[0]
            annotations[photograph.path] = query_entry(box, None, shown, set_name, obj_name=photograph.folder)
    for photograph, is_query, objects in subset:
        if not is_query:
            boxes = [photograph.boxes[index] for index in objects]
            instances = [photograph.instances[index] for index in objects]
            entry = gallery_entry(boxes, [], instances, set_name, obj_name=photograph.folder)
            annotations[photograph.path] = entry
    return annotations


def query_box(photograph: Photograph) -> Box:
    """The box of a query: the largest one; of an image of INSTRE-M that around both objects, as the protocol has it."""
    boxes = [box for box in photograph.boxes if box is not None]
    if photograph.part != "M":
        return max(boxes, key=box_area)
    x1, y1, x2, y2 = zip(*boxes)
    return min(x1), min(y1), max(x2), max(y2)


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
    add("--parts", nargs="+", choices=PARTS, help="parts of INSTRE to take images from (default: S1, or as listed)")
    add(
        "--xs-threshold", type=percent, metavar="%", help="object size below which XS is (default: 15; with lists none)"
    )
    add(
        "--xxs-threshold",
        type=percent,
        metavar="%",
        help="object size below which XXS is (default: 5; with lists none)",
    )
    add("--query-fraction", type=fraction, default=0.5, metavar="F", help="share of queries (default: 0.5)")
    add("--seed", type=int, default=0, metavar="N", help="another seed, another choice of queries (default: 0)")
    add("--query-list", metavar="FILE", help="the queries, one path per line (INSTRE-S1/01a_canada_book/013.jpg)")
    add("--gallery-list", metavar="FILE", help="the gallery images in the same form; goes with --query-list")
    add("--name", type=listed_name, metavar="NAME", help="set and file of what the lists choose (default: INSTRE)")
    add_creation_options(parser)
    args = parser.parse_args()
    if (args.query_list is None) != (args.gallery_list is None):
        parser.error("--query-list and --gallery-list go together")
    if args.query_list:
        args.name = args.name or "INSTRE"
        return args
    if args.name:
        parser.error("--name goes with --query-list and --gallery-list")
    args.parts = args.parts or ["S1"]
    args.xs_threshold = 15 if args.xs_threshold is None else args.xs_threshold
    args.xxs_threshold = 5 if args.xxs_threshold is None else args.xxs_threshold
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


Rows = List[Tuple[str, Dict[str, Any]]]  # of the table: name, figures


def build_subsets(args: argparse.Namespace, rows: Rows, findings: Findings) -> list[OutputFile]:
    """INSTRE-XS and INSTRE-XXS, by the protocol of this script."""
    photographs: list[Photograph] = []
    prefix = "" if args.relative_paths else args.instre_root
    for part in [part for part in PARTS if part in args.parts]:
        found = parse_instre(args.instre_root, prefix, part, args.workers, findings)
        photographs += found
        if found:
            rows.append((f"INSTRE-{part}", figures_of(found)))
    chosen = [photograph for photograph in photographs if is_below(photograph, args.xs_threshold)]
    queries = assign_roles(chosen, args.seed, args.query_fraction)
    files = []
    for name, threshold in (("INSTRE-XS", args.xs_threshold), ("INSTRE-XXS", args.xxs_threshold)):
        subset = select_subset([photograph for photograph in chosen if is_below(photograph, threshold)], queries)
        if subset:
            files.append(OutputFile(file_of(args, name), name, subset))
        else:
            reason = "subset without an instance that has both queries and gallery images"
            findings.skip(reason, file_of(args, name))
    return files


def build_listed(args: argparse.Namespace, findings: Findings) -> list[OutputFile]:
    """The one file that lists decide on."""
    lists = read_lists(args.query_list, args.gallery_list, findings)
    prefix = "" if args.relative_paths else args.instre_root
    photographs = read_listed(args.instre_root, prefix, args.parts, lists, args.workers, findings)
    given = [threshold for threshold in (args.xs_threshold, args.xxs_threshold) if threshold is not None]
    subset = select_listed(photographs, lists, min(given, default=None), findings)
    return [OutputFile(file_of(args, args.name), args.name, subset)] if subset else []


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
    files = build_listed(args, findings) if args.query_list else build_subsets(args, rows, findings)
    if not files:
        print_findings(findings)
        raise SoirError(f"nothing was found under {args.instre_root} that can be used, so nothing was written")

    lines = []
    for path, name, subset in files:
        rows.append((name, figures_of([m.photograph for m in subset], sum(m.is_query for m in subset))))
        annotations = make_annotations(subset, name)
        size = save_annotations(annotations, path)
        lines.append(f"wrote {path}: {len(annotations):,} entries, {size / 1e3:,.0f} kB")
    print_figures(rows)
    print_findings(findings)
    print()
    for line in lines:
        print(line)
    return 1 if args.strict and findings else 0


if __name__ == "__main__":
    sys.exit(main())
