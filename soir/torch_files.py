"""Load and save files of torch: annotations, rankings, features. Files of strangers too.

The promise: nothing in a file is executed; no file crashes the script, or takes more memory than about 20 times its
size plus 2 GB. How long a file may take is not promised, but Ctrl-C and SIGTERM always work, and leave no process.

A file is loaded in one of two ways. A scan of its pickle tells which:
- A pickle of plain values only, such as our scripts write, is loaded by Python's unpickler.
- Any other (tensors, NumPy values, defaultdicts, nested tuples) is loaded by torch, see soir/torch_archives.py.
"""

from __future__ import annotations

import os
import pickle
import re
from contextlib import nullcontext
from itertools import islice
from typing import Any, Iterable

from soir.files import SoirError, no_garbage_collection, open_regular, whole_file
from soir.signals import signals_at_once
from soir.torch_archives import MEMORY_BASE, MEMORY_FACTOR, load_with_torch, read_archive, reason_of_fault

# ------------------------------------------------------------------------------------------------------- load and save


def load_values(path: str, arrays: bool = False) -> Any:
    """Load what torch saved: dicts, lists, tuples, str, bytes, int, float, bool and None.

    NumPy numbers and texts become Python's, dicts of other kinds become dict. A tuple that holds containers becomes a
    list, since the hash of nested tuples can take forever.
    arrays  False: NumPy arrays become lists, and tensors are refused
            True: NumPy arrays stay arrays, and tensors become arrays, those of bfloat16 as float32. An array may claim
            to be far larger than its file, if it is a view that repeats its numbers
    Raises SoirError, also for a file that is missing.
    """
    try:
        with open_regular(path) as file:
            data, _ = read_archive(file)
        if _is_plain(data):
            with no_garbage_collection(), signals_at_once() if len(data) > 2**20 else nullcontext():
                return pickle.loads(data)
        del data
        return load_with_torch(path, arrays)
    except FileNotFoundError:
        maker = "examples/colour_features.py shows how to make one" if arrays else "create_dataset.py makes one"
        raise SoirError(f"{path} is missing: {maker}") from None
    except OSError as error:
        raise SoirError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a broken archive or pickle can raise anything
        kind = "tensors" if arrays else "plain values"
        raise SoirError(
            f"{path} was not loaded, for it is no torch file of {kind}: {reason_of_fault(error)}"
        ) from error


def save_values(values: dict[str, Any], path: str) -> int:
    """Save a dict of plain values for `torch.load(path)`. Returns the size in bytes. Raises SoirError.

    The file is one of torch's (torch/serialization.py): an archive, not compressed, with a pickle of protocol 2, here
    1000 items at a time. `torch.save` takes ten times as long, twice the memory of the file on top, and the import of
    torch. The same dict gives the same bytes.
    """
    import zipfile  # here, not above: --help has no need of it, and it takes 6 ms

    with whole_file(path) as file:
        try:
            with zipfile.ZipFile(file, "w") as archive:
                with archive.open(zipfile.ZipInfo("archive/data.pkl"), "w", force_zip64=True) as output:
                    output.write(b"\x80\x02}")  # protocol 2, a dict
                    items = iter(values.items())
                    for _ in range(0, len(values), 1000):
                        part = pickle.dumps(dict(islice(items, 1000)), protocol=2)
                        output.write(part[5:-1])  # without its protocol, its dict and its end: so it adds to ours
                    output.write(b".")
                archive.writestr(zipfile.ZipInfo("archive/byteorder"), "little")
                archive.writestr(zipfile.ZipInfo("archive/version"), "3\n")
        except RecursionError as error:
            raise SoirError(f"cannot write {path}: a value is nested too deeply; nothing was changed") from error
        except ValueError as error:  # zipfile turns an interrupt within archive.open into this
            raise error.__context__ or error from None
        return file.tell()


def check_repeats(path: str, sizes: Iterable[int]) -> None:
    """Raise SoirError if the sizes of the lists and texts that a file holds add up to ten times its own.

    In a pickle, one list of a million boxes can stand for the boxes of each of a million images.
    """
    left = 10 * os.path.getsize(path) + 1000
    for size in sizes:
        left -= size
        if left < 0:
            raise SoirError(f"{path} repeats its contents until they are over ten times as large as it is")


# -------------------------------------------------------------------------------------------------------- plain values

# The opcodes of plain values. There are none that call, build or name anything, and none of protocols 0 and 1.
# A tuple may hold numbers only, and few, as boxes do: nested tuples as keys can overrun the stack when they are hashed.
# FRAME (\x95) is harmless: with all of the pickle in memory, the unpickler does not look at where a frame ends.
_NUMBER = rb"(?:K.|M..|J....|G.{8})"
# The texts of up to 100 bytes, an alternative for each length. Longer ones are counted below, which takes longer.
_TEXT = rb"X(?:%s)" % b"|".join(rb"\x%02x\x00\x00\x00.{%d}" % (length, length) for length in range(1, 101))
_PLAIN = (
    rb"(?:[hq\x80].|r...%(highest)s|[.N\x88\x89\])}aesu\x94]|%(text)s|j....|\x95.{8}"  # the most frequent first
    rb"|\((?:%(number)s{0,16}t)?|%(number)s{3,1000}[\x85-\x87]?|%(number)s{2}[\x85\x86]?|%(number)s\x85?){0,1000}"
)
# Texts, bytes and large integers: the opcodes, and how many bytes of length follow. As a list, which is quicker.
_COUNTED = {ord("X"): 4, 0x8C: 1, 0x8D: 8, ord("B"): 4, ord("C"): 1, 0x8E: 8, 0x8A: 1}
_WIDTHS = [_COUNTED.get(opcode, 0) for opcode in range(256)]

# Integers beyond 64 bits. As keys they can all have the same hash, which takes the square of their number.
_MAX_LONG = 1000


def _is_plain(data: bytes) -> bool:
    """Whether a pickle is safe for Python's unpickler and holds plain values only. Reads it, and builds nothing."""
    # One byte of a pickle can make an empty container. A dict takes at most 240 bytes of memory, a list or a tuple 120,
    # each with one item in it. Small files cannot exceed the limit, and are not counted.
    limit = MEMORY_FACTOR * len(data) + MEMORY_BASE
    if 240 * len(data) > limit and 240 * data.count(b"}") + 120 * (data.count(b"]") + data.count(b"(")) > limit:
        return False
    # The unpickler makes its memo as long as the largest index: 34 GB for 2^31. Picklers count the index up from 0, so
    # in a pickle of n bytes none can be larger than n / 4. Here its highest byte is checked.
    highest = b"[\\x00-\\x%02x]" % min(len(data) // 4 >> 24, 255)
    match: Any = re.compile(_PLAIN % {b"number": _NUMBER, b"text": _TEXT, b"highest": highest}, re.DOTALL).match
    position, longs, size = 0, 0, len(data)
    while position < size:
        start, position = position, match(data, position).end()  # it always matches
        if position == size:
            break
        width = _WIDTHS[data[position]]
        if width:
            argument = position + 1 + width
            length = int.from_bytes(data[position + 1 : argument], "little")
            longs += length > 8 and data[position] == 0x8A
            position = argument + length
        elif position == start or longs > _MAX_LONG:
            return False
    return position == size and longs <= _MAX_LONG
