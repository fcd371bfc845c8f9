"""What the VoxDet-SoIR scripts share: entries, files, masks, boxes, and how a script ends.

An annotation file is one dict, image path -> entry, in a file of torch's. `query_entry` and `gallery_entry` are the
only makers of entries, so they are where the schema is written down.

    from soir_common import query_entry, save_annotations
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import signal
import socket
import stat
import sys
import warnings
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, BinaryIO, Callable, Iterable, Iterator

import numpy as np

from input_files import open_regular

# The sets, and which of them have masks: for queries, for gallery images. INSTRE has boxes only.
SETS = {
    "OWID": (True, True),
    "RoboTools": (True, False),
    "INSTRE-XS": (False, False),
    "INSTRE-XXS": (False, False),
}

# The published figures (table 1 of the paper, and its text): objects annotated in an image, and object size in % of the
# image, both mean. Those of VoxDet-SoIR are RoboTools': 9,109 annotations on 1,570 images.
PUBLISHED = {
    "RoboTools": {"name": "VoxDet-SoIR", "objects_per_image_mean": 5.8, "object_size_mean": 1.1},
    "INSTRE-S1": {"name": "INSTRE (S1)", "objects_per_image_mean": 1, "object_size_mean": 21.0},
    "INSTRE-XS": {
        "name": "INSTRE-XS",
        "objects_per_image_mean": 1,
        "object_size_mean": 6.6,
        "queries": 2428,
        "gallery_images": 2065,
    },
    "INSTRE-XXS": {
        "name": "INSTRE-XXS",
        "objects_per_image_mean": 1,
        "object_size_mean": 2.2,
        "queries": 106,
        "gallery_images": 120,
    },
}

# No coordinate, in pixels, may be larger. This also turns down NaN, infinities and integers beyond any float.
MAX_COORDINATE = 2**31

# No compressed mask may be longer, in characters. A checkerboard of full HD takes 2 million, a real mask of that size a
# few thousand; to decode one takes a hundred times its length.
MAX_COUNTS = 4_000_000


class SoirError(Exception):
    """The run cannot be done. Its text is one sentence for the person: expected, found, where, what to do."""


# ------------------------------------------------------------------------------------------------- entries (the schema)


def query_entry(
    bbox: tuple, mask: dict | None, ins: int, set_name: str, split: str | None = None, obj_name: str | None = None
) -> dict:
    """The entry of a query: one photograph of one object.

    bbox      (x1, y1, x2, y2) in pixels, half-open: x2 = x1 + width
    mask      COCO RLE {"size": [height, width], "counts": str}; None where the source has no masks
    ins       int, the instance; it counts within its set only, since the ids of OWID and RoboTools collide
    set_name  one of SETS
    split     "train", "val" or "test"; left out if None
    obj_name  the object's name in the source; left out if None
    """
    entry = {"bbox": bbox, "mask": mask, "is_query": True, "ins": ins, "set": set_name}
    return _with_optional(entry, split=split, obj_name=obj_name)


def gallery_entry(
    bboxes: list,
    masks: list,
    instances: list,
    set_name: str,
    split: str | None = None,
    num_ins: list | None = None,
    obj_name: str | None = None,
) -> dict:
    """The entry of a gallery image: lists with one item an object, fields as in `query_entry`.

    masks     one RLE an object, or [] where the source has no masks
    num_ins   list of int, the number of labelled objects in the scene as the source has it; left out if None
    """
    entry = {"bbox": bboxes, "mask": masks, "is_query": False, "ins": instances, "set": set_name}
    return _with_optional(entry, num_ins=num_ins, split=split, obj_name=obj_name)


def _with_optional(entry, **fields):
    entry.update((name, value) for name, value in fields.items() if value is not None)
    return entry


# ----------------------------------------------------------------------------------------------------- annotation files


def check_outputs(outputs: list, inputs: list) -> None:
    """`check_output` for all outputs of a script, which may be None; none may be an input or another output too."""
    taken = {os.path.realpath(path): "an input" for path in inputs if path}
    for path in filter(None, outputs):
        check_output(path)
        real = os.path.realpath(path)
        if real in taken:
            raise SoirError(f"the output {path} is {taken[real]} too: name another file")
        taken[real] = "another output"


def check_output(path: str) -> None:
    """Raise SoirError if `path` cannot become an output file. Called before the work, which may take an hour."""
    if path.endswith(("/", os.sep)):
        raise SoirError(f"the output {path} is named like a folder: name a file")
    path = os.path.realpath(path)
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise SoirError(f"the folder of the output, {folder}, does not exist: create it, or name another output")
    if not os.access(folder, os.W_OK):
        raise SoirError(f"the folder of the output, {folder}, is not writable: name another output")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:  # a link that leads to itself, a name that is too long
        raise SoirError(f"the output {path} cannot be written: {error.strerror}; name another output") from error
    else:
        if not stat.S_ISREG(mode):
            raise SoirError(f"the output {path} exists and is no regular file: name another output")
        if not os.access(path, os.W_OK) or not mode & 0o222:  # root may write anything, yet read-only was meant
            raise SoirError(f"the output {path} is read-only: make it writable, or name another output")


def write_whole(path: str, data: bytes | memoryview) -> None:
    """Write bytes to a file, as `whole_file` does. Raises SoirError."""
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def whole_file(path: str) -> Iterator[BinaryIO]:
    """Open a file to write bytes to, so that `path` holds either what it held before or all of it, whatever happens.

    The data goes to a temporary file in the same folder, which then takes the place of `path`. Temporary files of
    runs that were killed are removed first. Raises SoirError.
    """
    check_output(path)
    path = os.path.realpath(path)  # a link stays a link, its target is replaced
    folder = os.path.dirname(path)
    prefix = f".soir-{socket.gethostname()}-"
    temporary = os.path.join(folder, f"{prefix}{os.getpid()}.tmp")
    try:
        for name in os.listdir(folder):
            owner = re.fullmatch(re.escape(prefix) + r"([0-9]+)\.tmp", name)
            if owner and not _is_running(int(owner.group(1))):
                with suppress(OSError):  # another run was first, or it is somebody else's
                    os.unlink(os.path.join(folder, name))
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise SoirError(f"cannot write {path}: {error.strerror or error}; what was there is untouched") from error
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)


def _is_running(pid):
    if pid == os.getpid():
        return False  # this run has no temporary file yet: one with its number is left from an earlier process
    if os.name == "nt":
        return False  # there a file that is open cannot be removed, so trying to is safe
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def save_annotations(annotations: dict, path: str) -> int:
    """Save a dict, image path -> entry, for `torch.load(path)`. Returns the size in bytes. Raises SoirError.

    The file is one of torch's (torch/serialization.py): an archive, not compressed, with a pickle of protocol 2, here
    some entries at a time. `torch.save` takes a dozen times as long, twice the memory of the file on top, and the
    import of torch. The same dict gives the same bytes.
    """
    with whole_file(path) as file:
        try:
            _write_archive(annotations, file)
        except ValueError as error:  # an interrupt at the wrong moment comes out of zipfile as this
            raise error.__context__ or error from None
        return file.tell()


def _write_archive(annotations, file):
    import zipfile  # here, not above: --help has no need of it, and it takes 10 ms

    with zipfile.ZipFile(file, "w") as archive:
        with archive.open(zipfile.ZipInfo("archive/data.pkl"), "w", force_zip64=True) as output:
            output.write(b"\x80\x02}")  # protocol 2, a dict
            entries = iter(annotations.items())
            for _ in range(0, len(annotations), 1000):
                part = pickle.dumps(dict(islice(entries, 1000)), protocol=2)
                output.write(part[5:-1])  # without its protocol, its dict and its end: so it adds to ours
            output.write(b".")
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), "little")
        archive.writestr(zipfile.ZipInfo("archive/version"), "3\n")


def read_json(path: str, object_hook: Callable | None = None) -> Any:
    """Read a JSON file, in UTF-8. Raises SoirError if it is none."""
    try:
        with open_regular(path) as file:
            return json.loads(file.read().decode("utf-8-sig"), object_hook=object_hook)
    except OSError as error:
        raise SoirError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise SoirError(f"{path} is no JSON, or only the start of one ({error}): get the file again") from error


def difficulty(occurrences: int) -> str:
    """The class of an instance, by how many annotated objects of the gallery show it."""
    if occurrences > 10:
        return "easy"
    return "medium" if occurrences >= 5 else "hard"


# -------------------------------------------------------------------------------------------------------- boxes, masks


def is_coordinate(value: Any) -> bool:
    """Whether a value of a file is a number of pixels: no bool, no text, not NaN, not beyond MAX_COORDINATE."""
    return type(value) in (int, float) and abs(value) <= MAX_COORDINATE


def corners(box_xywh: Any) -> tuple | None:
    """[x, y, width, height] -> half-open (x1, y1, x2, y2); None if that is no box of positive size."""
    if not isinstance(box_xywh, list) or len(box_xywh) != 4:
        return None
    if not all(map(is_coordinate, box_xywh)):
        return None
    x, y, width, height = box_xywh
    box = (x, y, x + width, y + height)
    return box if box[2] > x and box[3] > y else None


def decode_counts(strings: list) -> tuple[np.ndarray, np.ndarray]:
    """COCO's compressed run lengths of many masks -> (runs, ends).

    strings  list of bytes, one a mask; any bytes at all are safe, unlike in pycocotools' C code, which trusts them
    runs     int64 [N], the run lengths of all masks, one after the other; whether they are >= 0 and fill the image
             is for the caller to check
    ends     int64 [len(strings)], where the runs of each mask end; a malformed string has no runs
    The code: a number is 5 bits a character (48 + bits), lowest first, bit 6 set if more follow, bit 5 of the last
    one the sign; from the fourth run on it is the difference to the run before the last (rleToString in maskApi.c).
    """
    code = np.frombuffer(b"".join(strings), dtype=np.uint8) - np.uint8(48)
    stops = np.cumsum(np.fromiter(map(len, strings), dtype=np.int64, count=len(strings)))
    if not code.size:
        return np.zeros(0, dtype=np.int64), np.zeros(len(strings), dtype=np.int64)
    is_last = code < 32
    is_last[stops[stops > 0] - 1] = True  # whatever it says, a number ends with its string
    last = np.flatnonzero(is_last)
    first = np.concatenate(([0], last[:-1] + 1))
    digits = last - first + 1
    shifts = np.arange(code.size) - np.repeat(first, digits)
    values = np.add.reduceat((code & 31).astype(np.int64) << (5 * np.minimum(shifts, 7)), first)
    values -= (code[last] >> 4 & 1).astype(np.int64) << (5 * np.minimum(digits, 7))

    before = np.cumsum(is_last)[stops - 1] * (stops > 0)  # numbers up to the end of each string
    owner = np.repeat(np.arange(len(strings)), np.diff(before, prepend=0))  # the mask that each number belongs to
    malformed = np.zeros(len(strings), dtype=bool)
    malformed[owner[(digits > 7) | (code[last] > 31)]] = True  # over 35 bits, or cut short
    malformed[np.searchsorted(stops, np.flatnonzero(code > 63), side="right")] = True
    if malformed.any():
        keep = ~malformed[owner]
        values, owner = values[keep], owner[keep]

    lengths = np.bincount(owner, minlength=len(strings))
    ends = np.cumsum(lengths)
    starts = ends - lengths
    odd = (np.arange(values.size) - np.repeat(starts, lengths)) % 2 == 1
    runs = np.empty_like(values)
    for chain, step in ((odd, 0), (~odd, 1)):  # the differences run along every other number, but for the first
        total = np.concatenate(([0], np.cumsum(values * chain)))
        base = total[np.minimum(starts + step, values.size)]
        np.copyto(runs, total[1:] - np.repeat(base, lengths), where=chain)
    firsts = starts[lengths > 0]
    runs[firsts] = values[firsts]
    return runs, ends


# ------------------------------------------------------------------------------------------------------------- scripts


@contextmanager
def exit_status() -> Iterator[None]:
    """Run a script's main() in this: bad input, Ctrl-C and SIGTERM end in one line and an exit status."""

    def terminate(number, frame):
        raise KeyboardInterrupt

    def end(message, status):
        with suppress(OSError):  # a full disk may be where the message would go
            print(message, file=sys.stderr, flush=True)
        sys.exit(status)

    signal.signal(signal.SIGTERM, terminate)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # a shell closed it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        # A file name may hold bytes that the terminal's code lacks.
        getattr(sys, name).reconfigure(errors="backslashreplace")
    try:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Pillow and NumPy, on what is odd in a file
                yield
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        end("interrupted", 130)
    except MemoryError:
        end("error: out of memory", 2)
    except BrokenPipeError:  # the reader of our output, `head` perhaps, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
    except (SoirError, OSError) as error:  # OSError: an input that vanished in mid-run, say
        end(f"error: {printable(str(error))}", 2)


def find_root(root: str, paths: list) -> str | None:
    """A folder beside the root given, one level deeper or higher, that holds all of the paths; None if none does."""
    try:
        folders = [os.path.join(root, name) for name in sorted(os.listdir(root))]
    except OSError:
        return None
    folders.append(os.path.dirname(os.path.abspath(root)))
    return next((f for f in folders if all(os.path.exists(os.path.join(f, path)) for path in paths)), None)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """The options of every script that makes an annotation file."""
    add = parser.add_argument
    add("--workers", type=positive, default=os.cpu_count() or 1, metavar="N", help="processes (default: all cores)")
    add("--relative-paths", action="store_true", help="image paths start at the root, so that the file can move")
    add("--strict", action="store_true", help="exit with 1 if anything was skipped")


def positive(text: str) -> int:
    """A type for argparse: a count from 1 up."""
    if not re.fullmatch("[0-9]{1,6}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a number from 1 up, found {text}")
    return int(text)


def progress_bar(title: str, items: Iterable | None = None, total: int | None = None) -> Any:
    """A progress bar of tqdm, on a terminal only."""
    from tqdm import tqdm  # here, not above: --help has no need of it, and it takes 30 ms

    return tqdm(items, desc=title, total=total, disable=None)


def print_skipped(skipped: dict, title: str = "skipped") -> None:
    """Print what was skipped: one line per reason, with the count and the first three places.

    skipped  dict, reason -> list of places
    """
    if not skipped:
        return
    print(f"\n{title}:")
    width = max(len(f"{len(places):,}") for places in skipped.values())
    for reason, places in sorted(skipped.items()):
        more = ", ..." if len(places) > 3 else ""
        print(f"  {len(places):>{width},} x {reason}: {', '.join(map(printable, places[:3]))}{more}")


def shorten(value: Any) -> str:
    """What a report shows of a value that may be anything: repr() of nested lists can take forever, and all memory."""
    if not isinstance(value, (str, int, float)):
        return f"({type(value).__name__})"
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def printable(text: str) -> str:
    """Text of a file as a terminal can take it: a name with a line break or an escape code must not forge a line."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
