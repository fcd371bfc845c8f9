"""Load what torch saved, somebody else's too, without running anything that is in it.

from safe_loading import load_annotations
"""

from __future__ import annotations

import gc
import io
import pickle
import re
import zipfile
from typing import Any, Callable

import numpy as np

from input_files import open_regular
from soir_common import SoirError


def load_annotations(path: str) -> dict:
    """Load an annotation file: a dict, image path -> entry. Raises SoirError if it is none; see `load_plain`."""
    annotations = load_plain(path)
    if type(annotations) is not dict:
        raise SoirError(f"{path} holds a {type(annotations).__name__}: expected a dict, image path -> entry")
    return annotations


def load_plain(path: str) -> Any:
    """Load plain Python values from a file that torch saved. Nothing that is in the file is run.

    Unlike `torch.load`, it also takes what older files hold, NumPy numbers and arrays and defaultdicts, and turns it
    into plain values; and it is several times faster. Raises SoirError for whatever else is in the file.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            data = _read_pickle(archive)
        _check_opcodes(data)
        gc.disable()  # millions of new containers would set it off again and again, three times the time
        try:
            return _PlainUnpickler(io.BytesIO(data)).load()
        finally:
            gc.enable()
    except FileNotFoundError:
        raise SoirError(f"{path} is missing; create_dataset.py makes annotation files") from None
    except OSError as error:
        raise SoirError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a broken archive or pickle can raise anything
        reason = str(error) or type(error).__name__
        raise SoirError(f"{path} was not loaded, for it is no torch file of plain values: {reason}") from error


def _read_pickle(archive: zipfile.ZipFile) -> bytes:
    """The one pickle of an archive that torch saved. Sizes are checked before they are believed."""
    names = archive.namelist()
    if any(name.startswith("/") or ".." in name.split("/") for name in names):
        raise ValueError("a name in the archive points out of it")
    pickles = [info for info in archive.infolist() if info.filename.endswith(".pkl")]
    if len(pickles) != 1 or pickles[0].filename.count("/") != 1 or not pickles[0].filename.endswith("/data.pkl"):
        raise ValueError(f"expected one data.pkl in the archive, found {len(pickles)} pickles")
    if pickles[0].compress_type != zipfile.ZIP_STORED or pickles[0].file_size != pickles[0].compress_size:
        raise ValueError("data.pkl is compressed, which torch never does")
    return archive.read(pickles[0])


# The opcodes of plain values, by how many bytes of argument follow. Whatever else the language of pickles has has no
# place in an annotation file: calls by OBJ, INST and NEWOBJ, extension codes, persistent ids, the forms of protocol 0.
_FIXED = rb"[(.N\x88\x89\])}aetlduRsb\x85-\x87\x93\x94]|[Kqh\x80].|M..|[Jj]....|[G\x95]........"
_COUNTED = {b"X": 4, b"T": 4, b"B": 4, b"U": 1, b"C": 1, b"\x8c": 1, b"\x8a": 1, b"\x8d": 8, b"\x8e": 8}


def _check_opcodes(data: bytes) -> None:
    """Raise ValueError if a pickle holds anything but plain values and names. Runs and builds nothing.

    A memo index is checked too: C's unpickler makes its memo as long as the largest index, 34 GB for 2^31. Picklers
    count them up from 0, so in a pickle of n bytes none can be larger than n / 4, or 2^24.
    """
    highest_byte = min(len(data) // 4 >> 24, 255)  # of an index of four bytes
    put = b"r...[\\x00-\\x%02x]" % highest_byte
    fixed = re.compile(b"(?:" + _FIXED + b"|" + put + b"){1,1000}", re.DOTALL)
    name = re.compile(rb"c[\w.]{1,80}\n\w{1,80}\n")
    position, end = 0, len(data)
    while position < end:
        match = fixed.match(data, position) or name.match(data, position)
        if match:
            position = match.end()
            continue
        opcode = data[position : position + 1]
        if opcode == b"Q":
            raise ValueError("it holds tensors, as a file of features does")
        if opcode not in _COUNTED:
            raise ValueError(f"it holds more than plain values (pickle opcode {opcode!r} at byte {position:,})")
        start = position + 1 + _COUNTED[opcode]
        position = start + int.from_bytes(data[position + 1 : start], "little")
    if position != end:
        raise ValueError("it is cut short")


class _PlainUnpickler(pickle.Unpickler):
    """C's unpickler. The only names it knows are those of NumPy values and dicts, and it puts ours in their place."""

    def find_class(self, module, name: str):
        module = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        try:
            return _KNOWN_NAMES[module, name]
        except KeyError:
            raise ValueError(f"it asks for {module}.{name}"[:120]) from None

    def persistent_load(self, pid):
        raise ValueError("it holds a tensor, or another persistent id")


class _Dtype:
    """Stands for numpy.dtype: a number of 1 to 8 bytes."""

    __slots__ = ("code", "order")

    def __init__(self, code, *_):
        if not re.fullmatch("[iuf][1248]|b1", code):
            raise ValueError(f"it holds a NumPy value of type {code}"[:120])
        self.code, self.order = code, "="

    def __setstate__(self, state):
        self.order = state[1] if state[1] in ("<", ">") else "="

    def values(self, data: bytes | memoryview):
        return np.frombuffer(data, dtype=np.dtype(self.code).newbyteorder(self.order))


class _Array(list):
    """Stands for numpy.ndarray: its values as (nested) lists."""

    def __setstate__(self, state):
        _, shape, dtype, is_fortran, data = state
        self[:] = dtype.values(data).reshape(shape or (1,), order="F" if is_fortran else "C").tolist()


def _scalar(dtype, data):
    (value,) = dtype.values(data).tolist()
    return value


_KNOWN_NAMES: dict[tuple[str, str], Callable | None] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): None,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("_codecs", "encode"): lambda text, _: text.encode("latin-1"),  # bytes, as Python 3 writes them in protocol 2
    ("builtins", "bytes"): lambda: b"",
    ("collections", "defaultdict"): lambda *_: {},
    ("collections", "OrderedDict"): lambda *_: {},
    ("builtins", "list"): None,  # what a defaultdict would make
    ("builtins", "dict"): None,
    ("builtins", "int"): None,
}
