"""INSTRE as it lies on the disk: its parts, the folders of its instances, its photographs with their boxes.

    INSTRE-S1/<number and letter>_<name>/013.jpg    one object; the folders 01a and 01b are a pair
    INSTRE-S2/<name>/013.jpg                        one object
    INSTRE-M/<number>/013.jpg                       the two objects of S1 with that number

Beside each image lies 013.txt, one line `x y w h` per box, in pixels; in INSTRE-M line 1 is object a, line 2 object b.
The parts may lie in INSTRE_release/. Copies differ in upper and lower case, so names are compared without regard to it.
"""

from __future__ import annotations

import os
import posixpath
import re
import zlib
from typing import Container, Iterator, NamedTuple, Sequence

from soir import geometry
from soir.files import SoirError, read_bytes, reason_of
from soir.findings import Findings
from soir.geometry import Box, EntryBox
from soir.images import image_names, one_per_stem, whole_image_size
from soir.paths import find_root, natural_key, tidy_path
from soir.workers import map_ordered

PARTS = ("S1", "S2", "M")

# A box file has a line or two. One larger than this, in bytes, is something else.
MAX_BOX_FILE = 65536


class Part(NamedTuple):
    """A part of INSTRE in a download."""

    name: str  # one of PARTS
    root: str  # the folder of the download
    below: str  # where it is in the root: INSTRE-S1, say, or INSTRE_release/instre-s1

    @property
    def path(self) -> str:
        return os.path.join(self.root, self.below)


class Folder(NamedTuple):
    """A folder of photographs of the same one object, or in INSTRE-M of the same two."""

    part: Part
    name: str
    instances: tuple[int, ...]  # ids of the objects

    @property
    def path(self) -> str:
        return os.path.join(self.part.path, self.name)

    @property
    def place(self) -> str:
        """Where it is in the root, with slashes."""
        return f"{self.part.below}/{self.name}"


class ImageFiles(NamedTuple):
    """An image to read, and its box file: names in their folder."""

    folder: Folder
    image: str
    boxes: str | None  # None where there is none, which only a listed image may lack

    @property
    def place(self) -> str:
        """Where the image is in the root, with slashes."""
        return f"{self.folder.place}/{self.image}"

    @property
    def name(self) -> str:
        """The name of the image as INSTRE spells it: INSTRE-S1/01a_canada_book/013.jpg."""
        return f"INSTRE-{self.folder.part.name}/{self.folder.name}/{self.image}"


class PhotographReading(NamedTuple):
    """What reading an image and its box file gave."""

    errors: list[str]  # of the image, its box file and the lines of that
    boxes: list[Box] = []  # half-open, clipped to the image
    share: float = 0.0  # of the largest box, in % of the image
    detail: str = ""  # of the error: what the decoder said
    is_clipped: bool = False  # a box reached out of the image
    is_fractional: bool = False  # the numbers of a box all lie within 0..1
    is_readable: bool = True  # the image
    are_corners: bool = True  # the numbers of every box could be x1 y1 x2 y2, inside the image


class Photograph(NamedTuple):
    """An image of INSTRE that can be used."""

    path: str  # in the annotation file
    name: str  # as INSTRE spells it: INSTRE-S1/01a_canada_book/013.jpg
    key: str  # the same whatever the spelling: instre-s1/01a_canada_book/013
    part: str  # one of PARTS
    folder: str  # its name
    boxes: list[EntryBox]  # None where it has none: the whole image
    instances: list[int]  # of each box
    share: float  # of the largest box, in % of the image; 100 without boxes


def read_part(root: str, prefix: str, part_name: str, workers: int, findings: Findings) -> list[Photograph]:
    """Read the photographs of a part that have boxes, in natural order.

    root       the folder of the download
    prefix     what stands for the root in the image paths, may be empty
    part_name  one of PARTS
    findings   what is left out, or odd, is added to it
    Raises SoirError if the part is missing, two of its folders get the same id, or its boxes are no pixels.
    """
    part = find_part(root, part_name)
    return read_photographs(part, pair_files(part, None, findings), prefix, workers, findings)


def read_listed(
    root: str, prefix: str, part_names: Sequence[str], listed: dict[str, str], workers: int, findings: Findings
) -> list[Photograph]:
    """Read the images that lists name, in natural order; one without boxes is read as well. See `read_part`.

    part_names  the parts to read; those that no list names need not be there
    listed      key of an image, as of `key_of`, -> its path as it is spelled there
    """
    photographs, left = [], dict(listed)
    named = set(map(part_of_key, listed))
    for name in PARTS:
        if name in named and name in part_names:
            part = find_part(root, name)
            pairs = pair_files(part, listed, findings)
            photographs += read_photographs(part, pairs, prefix, workers, findings, are_listed=True)
            for pair in pairs:
                left.pop(key_of(pair.name), None)
    for key, path in sorted(left.items()):
        if part_of_key(key) in part_names:
            findings.skip("listed image that is not there", path)
        else:
            findings.skip("listed image of a part that --parts leaves out", path)
    return photographs


# What `key_of` gives for an image of INSTRE, and the part in it.
KEY = re.compile("instre-(s1|s2|m)/[^/]+/[^/]+")


def key_of(name: str) -> str:
    """A name of an image of INSTRE that is the same in every copy: lower case, without ending and folders above.

    So neither the choice of queries nor a list depends on how a copy writes INSTRE_release/ or .JPG.
    """
    stem = os.path.splitext(name.lower())[0]
    last_three = "/".join(stem.split("/")[-3:])
    return last_three if KEY.fullmatch(last_three) else stem


def part_of_key(key: str) -> str:
    """S1 for instre-s1/01a_canada_book/013."""
    return key[len("instre-") :].partition("/")[0].upper()


def find_part(root: str, name: str) -> Part:
    """Find a part in the root or in INSTRE_release/, in any case. Raises SoirError if it is in neither."""
    for base in ("", *names_in_any_case(root, "instre_release")):
        for folder in names_in_any_case(os.path.join(root, base), f"instre-{name.lower()}"):
            if os.path.isdir(os.path.join(root, base, folder)):
                return Part(name, root, posixpath.join(base, folder))
    found = find_root(root, [f"INSTRE-{name}"])
    if found:
        hint = f"Found at {found}: try --instre-root {found}"
    else:
        hint = "Name the folder that holds it with --instre-root, or other parts with --parts"
    expected = os.path.join(root, f"INSTRE-{name}")
    raise SoirError(f"INSTRE-{name} is missing: expected {expected} or the same under INSTRE_release/. {hint}")


def names_in_any_case(folder: str, lower_name: str) -> list[str]:
    """What is in a folder under this name, in any case. Raises SoirError."""
    try:
        return [name for name in sorted(os.listdir(folder)) if name.lower() == lower_name]
    except OSError as error:
        hint = "name the folder of the download with --instre-root"
        raise SoirError(f"cannot read the folder {folder} ({error.strerror}): {hint}") from error


def pair_files(part: Part, listed: Container[str] | None, findings: Findings) -> list[ImageFiles]:
    """List the images of a part, each with its box file, which is the .txt of the same name.

    listed  the keys of the images to list, also of those without a box file; None for all that have one
    """
    pairs = []
    for folder in find_folders(part, findings):
        images, other_images = one_per_stem(image_names(folder.path))
        boxes, other_boxes = box_files(folder.path)
        for name in other_images:
            if listed is None or key_of(ImageFiles(folder, name, None).name) in listed:
                findings.skip("second photograph of the same name", f"{folder.place}/{name}")
        found = [ImageFiles(folder, name, boxes.get(stem)) for stem, name in images.items()]
        if listed is not None:
            pairs += [pair for pair in found if key_of(pair.name) in listed]
            continue
        pairs += [pair for pair in found if pair.boxes]
        for pair in found:
            if not pair.boxes:
                findings.skip("image without its .txt", pair.place)
        for name in other_boxes:
            findings.skip("second .txt of the same image", f"{folder.place}/{name}")
        for stem in sorted(boxes.keys() - images.keys()):
            findings.skip(".txt without its image", f"{folder.place}/{boxes[stem]}")
    return pairs


def box_files(folder: str) -> tuple[dict[str, str], list[str]]:
    """(stem -> name, other names) of the box files in a folder. If 013.TXT and 013.txt are there, 013.TXT is taken."""
    chosen: dict[str, str] = {}
    others = []
    for name in sorted(os.listdir(folder)):
        if name.lower().endswith(".txt") and name[0] != "." and chosen.setdefault(name[: -len(".txt")], name) != name:
            others.append(name)
    return chosen, others


def find_folders(part: Part, findings: Findings) -> Iterator[Folder]:
    """Yield the folders of a part, in natural order.

    The ids come from the folder's own number and letter, so that they do not depend on what else is there: 10 x number
    + 1 for a, + 2 for b, + 0 without a letter; 10,000 more in S2. A folder of INSTRE-M shows the two objects of S1 with
    its number. A folder without a number, as all real ones of S2 are, gets its id from a hash of its name, which fits
    31 bits. Raises SoirError if two such folders have the same.
    """
    seen: dict[tuple[int, ...], str] = {}
    ids: tuple[int, ...]
    for name in sorted(os.listdir(part.path), key=natural_key):
        if not os.path.isdir(os.path.join(part.path, name)) or name.startswith("."):
            continue
        place = f"{part.below}/{name}"
        match = re.match(r"([0-9]{1,3})([ab]?)(?![0-9a-zA-Z])", name.lower())
        if part.name == "M":
            if not match or match.group(2):
                findings.skip("folder of INSTRE-M without a number", place)
                continue
            ids = (10 * int(match.group(1)) + 1, 10 * int(match.group(1)) + 2)
        elif match:
            letter = ("", "a", "b").index(match.group(2))
            ids = (10 * int(match.group(1)) + letter + (10_000 if part.name == "S2" else 0),)
        else:
            ids = (hash_of_name(part.name, name),)
            if ids in seen:
                raise SoirError(
                    f"{part.below}/{seen[ids]} and {place} get the same instance id {ids[0]} from a hash of their "
                    "names: rename one of them"
                )
        if ids in seen:
            findings.skip("folder with the number and letter of another", place)
        else:
            seen[ids] = name
            yield Folder(part, name, ids)


def hash_of_name(part_name: str, folder_name: str) -> int:
    """An instance id from 100,000 to 2^31 - 1."""
    name = f"{part_name}/{folder_name}".lower().encode("utf-8", "surrogateescape")
    return 100_000 + zlib.crc32(name) % (2**31 - 100_000)


def read_photographs(
    part: Part, pairs: list[ImageFiles], prefix: str, workers: int, findings: Findings, are_listed: bool = False
) -> list[Photograph]:
    """Read images of a part, and their box files.

    are_listed  a list names them: see `usable_boxes`
    Raises SoirError if the boxes of most of them are shares of the image, or all look like corners.
    """
    photographs: list[Photograph] = []
    boxed: list[PhotographReading] = []  # those that have boxes
    fractional = clipped = 0
    with map_ordered(read_photograph, pairs, workers, f"INSTRE-{part.name}") as readings:
        for reading, pair in zip(readings, pairs):
            fractional += reading.is_fractional
            clipped += reading.is_clipped
            if reading.boxes:
                boxed.append(reading)
            boxes = usable_boxes(pair, reading, are_listed, findings)
            if boxes:
                path, ids = tidy_path(prefix, pair.place), list(pair.folder.instances)
                instances = ids if part.name == "M" else ids * len(boxes)
                share = 100.0 if None in boxes else reading.share
                where = path, pair.name, key_of(pair.name), part.name, pair.folder.name
                photographs.append(Photograph(*where, boxes, instances, share))
    if fractional > len(pairs) / 2:
        raise geometry.shares_error(f"the boxes of {fractional:,} of the {len(pairs):,} images of {part.path}")
    if clipped > geometry.MISFITS * len(boxed) and all(reading.are_corners for reading in boxed):
        raise SoirError(
            f"the boxes of {clipped:,} of the {len(boxed):,} images of {part.path} reach out of their image, and all "
            "could be corners x1 y1 x2 y2: x y width height are expected"
        )
    return photographs


def usable_boxes(pair: ImageFiles, reading: PhotographReading, is_listed: bool, findings: Findings) -> list[EntryBox]:
    """The boxes that a photograph has; none if it cannot be used.

    is_listed  whether a list names it. A listed image that can be read is used even without a box: it then gets None,
               the whole image, for each of its instances
    """
    is_kept = is_listed and reading.is_readable
    boxes: list[EntryBox] = list(reading.boxes)
    for error in reading.errors:
        if is_kept:
            findings.notice(f"listed image with a {error}", pair.place)
        else:
            findings.skip(error, pair.place, reading.detail)
    if reading.is_clipped:
        findings.notice("box that reaches out of its image, clipped", pair.place)
    if pair.folder.part.name == "M" and boxes and (reading.errors or len(boxes) != 2):
        boxes = []  # it would be a guess which line belongs to which object
        if is_kept:
            findings.notice("listed image of INSTRE-M without two boxes, as a whole", pair.place)
        else:
            findings.skip("image of INSTRE-M without two boxes", pair.place)
    return [None] * len(pair.folder.instances) if is_kept and not boxes else boxes


def read_photograph(pair: ImageFiles) -> PhotographReading:
    """Read an image and its box file, in a worker."""
    folder = pair.folder.path
    try:
        size = whole_image_size(f"{folder}/{pair.image}")
    except OSError as error:
        return PhotographReading(["image that cannot be read"], detail=reason_of(error), is_readable=False)
    if pair.boxes is None:
        return PhotographReading([])
    try:
        data = read_bytes(f"{folder}/{pair.boxes}", MAX_BOX_FILE)
    except OSError as error:
        return PhotographReading([".txt that cannot be read"], detail=reason_of(error))
    lines = [line for line in data.decode("utf-8-sig", "replace").splitlines() if line.strip()]
    if not lines:
        return PhotographReading([".txt that is empty"])
    errors: list[str] = []
    boxes: list[Box] = []
    seen: set[Box] = set()
    is_clipped = is_fractional = False
    are_corners = True
    for line in lines:
        numbers = parse_line(line)
        box = geometry.xyxy_of(numbers)
        if numbers is None:
            errors.append("line that is not four numbers x y w h")
        elif box is None:
            errors.append("box of no positive size")
        elif box in seen:
            errors.append("line that stands twice")
        else:
            seen.add(box)
            x1, y1, x2, y2 = numbers
            are_corners &= 0 <= x1 < x2 <= size[1] + 1 and 0 <= y1 < y2 <= size[0] + 1
            is_fractional |= geometry.is_in_shares(numbers)
            inside = geometry.clip(box, size)
            if inside is None:
                errors.append("box outside of its image")
            elif geometry.is_below_pixel(inside):
                errors.append("box that is less than a pixel wide or high")
            else:
                is_clipped |= inside != box
                boxes.append(inside)
    share = max((geometry.share(box, size) for box in boxes), default=0)
    return PhotographReading(errors, boxes, share, "", is_clipped, is_fractional, True, are_corners)


NUMBER = re.compile(r"[-+]?[0-9]{1,12}(\.[0-9]{0,12})?")


def parse_line(line: str) -> list[float] | None:
    """`x y w h`, separated by white space or commas -> list of four numbers; None if it is not that."""
    words = re.split(r"[\s,]+", line.strip().strip(","))
    if len(words) != 4 or not all(map(NUMBER.fullmatch, words)):
        return None
    numbers = [float(word) for word in words]
    return [int(number) if number.is_integer() else number for number in numbers]
