"""Load and save files of torch: annotations, rankings, features. Files of strangers too, and without torch.

The promise: nothing in a file is executed; no file crashes the script, or takes more memory than about 20 times its
size plus 2 GB. How long a file may take is not promised, but Ctrl-C and SIGTERM always work.

A file of torch is an archive of a pickle and of the numbers of tensors. It is loaded in one of two ways. A scan of the
pickle tells which:
- A pickle of plain values only, such as our scripts write, is loaded by Python's unpickler.
- Any other (tensors, NumPy values, defaultdicts, nested tuples) is loaded by soir/unpickler.py, which takes longer.
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import struct
import threading
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO, Iterable, Iterator

from soir.files import SoirError, no_garbage_collection, open_regular, whole_file
from soir.unpickler import MAX_LONGS, Unpickler, memory_limit

if TYPE_CHECKING:
    import zipfile

# What other files begin with.
_OTHER_FILES = [(b"{", "JSON"), (b"[", "JSON"), (b"\x89PNG", "a PNG image"), (b"\xff\xd8", "a JPEG image")]


def load_values(path: str, arrays: bool = False) -> Any:
    """Load what torch saved: dicts, lists, tuples, str, bytes, int, float, bool and None.

    NumPy numbers and texts become Python's, dicts of other kinds become dict. A tuple that holds containers becomes a
    list, since the hash of nested tuples can take forever.
    arrays  False: NumPy arrays become lists, and tensors are refused
            True: NumPy arrays stay arrays, and tensors become arrays, those of bfloat16 as float32. They are read-only.
            An array may claim to be larger than its file, if it is a view that repeats its numbers, but not beyond
            `unpacked_limit`
    Raises SoirError, also for a file that is missing.
    """
    try:
        with open_regular(path) as file, no_garbage_collection():
            archive, folder, data = _open_archive(file)
            if not _is_plain(data):
                return Unpickler(data, archive, folder, os.fstat(file.fileno()).st_size, arrays).load()
            with _signals_at_once() if len(data) > 2**20 else nullcontext():
                return pickle.loads(data)
    except FileNotFoundError:
        maker = "examples/colour_features.py shows how to make one" if arrays else "create_dataset.py makes one"
        raise SoirError(f"{path} is missing: {maker}") from None
    except OSError as error:
        raise SoirError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a broken archive or pickle can raise anything
        kind = "tensors" if arrays else "plain values"
        raise SoirError(
            f"{path} was not loaded, for it is no torch file of {kind}: {_reason_of_fault(error)}"
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


def _open_archive(file: BinaryIO) -> tuple[zipfile.ZipFile, str, bytes]:
    """An archive of torch's, the folder in it that everything is in, and its pickle. Raises ValueError."""
    import zipfile

    start = file.read(4)
    if start != b"PK\x03\x04":
        kinds = [kind for first, kind in _OTHER_FILES if start.startswith(first)]
        kinds += ["no archive, or of a torch before 1.6" if start else "empty"]
        raise ValueError(f"it is {kinds[0]}")
    archive = zipfile.ZipFile(file)
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ValueError(f"{info.filename} is compressed, which torch never does"[:120])
        if info.filename.startswith("/") or ".." in info.filename.split("/"):
            raise ValueError("a name in the archive points out of it")
        if info.filename.endswith("/byteorder") and archive.read(info) != b"little":
            raise ValueError("it was written by a big-endian machine")
    pickles = [name for name in archive.namelist() if name.endswith(".pkl")]
    if len(pickles) != 1 or not re.fullmatch("[^/]+/data.pkl", pickles[0]):
        raise ValueError(f"expected one data.pkl in the archive, found {len(pickles)} pickles")
    return archive, pickles[0][: -len("data.pkl")], archive.read(pickles[0])


def _reason_of_fault(error: Exception) -> str:
    """What is wrong with a file, as the end of a sentence."""
    if isinstance(error, MemoryError):
        return "it takes far more memory than its size"
    text = str(error.args[0] if isinstance(error, KeyError) else error).strip() or type(error).__name__
    if isinstance(error, (AttributeError, EOFError, LookupError, OverflowError, TypeError, UnicodeError, struct.error)):
        text = f"it is damaged ({text})"  # it has other things than expected, or in another place
    return text.splitlines()[0][:200]


# A number, and a text of up to 100 bytes, with an alternative for each length. Longer texts are counted below, which
# takes longer.
_NUMBER = rb"(?:K.|M..|J....|G.{8})"
_TEXT = rb"X(?:%s)" % b"|".join(rb"\x%02x\x00\x00\x00.{%d}" % (length, length) for length in range(1, 101))

# The opcodes of plain values, the most frequent first. There are none that call, build or name anything, and none of
# protocols 0 and 1. A tuple may hold numbers only, and few, as boxes do: nested tuples as keys can overrun the stack
# when they are hashed.
_PLAIN = (
    rb"[hq\x80].",  # BINGET, BINPUT, PROTO
    rb"r...[\x00\x01]",  # LONG_BINPUT: the unpickler makes its memo as long as the largest index, 34 GB for 2^31
    rb"[.N\x88\x89\])}aesu\x94]",  # STOP, NONE, the two bools, empty containers, APPEND(S), SETITEM(S), MEMOIZE
    _TEXT,
    rb"j....",  # LONG_BINGET
    rb"\x95.{8}",  # FRAME: with all of the pickle in memory, the unpickler does not look at where a frame ends
    rb"\((?:" + _NUMBER + rb"{0,16}t)?",  # MARK, perhaps with numbers and TUPLE
    _NUMBER + rb"{3,1000}[\x85-\x87]?",  # numbers, perhaps with TUPLE1, TUPLE2 or TUPLE3
    _NUMBER + rb"{2}[\x85\x86]?",
    _NUMBER + rb"\x85?",
)
# Texts, bytes and large integers: how many bytes of length follow the opcode. As a list, which is quicker.
_COUNTED = {b"X": 4, b"\x8c": 1, b"\x8d": 8, b"B": 4, b"C": 1, b"\x8e": 8, pickle.LONG1: 1}
_WIDTHS = [_COUNTED.get(bytes([opcode]), 0) for opcode in range(256)]


def _is_plain(data: bytes) -> bool:
    """Whether a pickle is safe for Python's unpickler and holds plain values only. Reads it, and builds nothing."""
    # One byte of a pickle can make an empty container. A dict takes at most 240 bytes of memory, a list or a tuple 120,
    # each with one item in it. Small files cannot exceed the limit, and are not counted.
    limit = memory_limit(len(data))
    if 240 * len(data) > limit and 240 * data.count(b"}") + 120 * (data.count(b"]") + data.count(b"(")) > limit:
        return False
    match: Any = re.compile(b"(?:" + b"|".join(_PLAIN) + b"){0,1000}", re.DOTALL).match
    position, longs, size = 0, 0, len(data)
    while position < size:
        start, position = position, match(data, position).end()  # it always matches
        if position == size:
            break
        width = _WIDTHS[data[position]]
        if width:
            argument = position + 1 + width
            length = int.from_bytes(data[position + 1 : argument], "little")
            longs += length > 8 and data[position] == pickle.LONG1[0]
            position = argument + length
        elif position == start or longs > MAX_LONGS:
            return False
    return position == size and longs <= MAX_LONGS


@contextmanager
def _signals_at_once() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the process at once, without a word: a handler in Python would run when the call in C,
    which may take hours for a hostile file, has returned.

    Only the main thread can set handlers; in any other, this does nothing. A signal that is ignored stays ignored.
    """
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if is_main}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in handlers:
            signal.signal(number, signal.SIG_DFL)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
