"""Load what torch saved, somebody else's too, without running anything that is in it.

from safe_loading import load_annotations
"""

from __future__ import annotations

import gc
import io
import os
import pickle
import re
import zipfile
from itertools import islice
from typing import Any, Callable, Iterable

import numpy as np

from soir_files import SoirError, open_regular, whole_file


def check_repeats(path: str, sizes: Iterable[int]) -> None:
    """Raise SoirError if the sizes of the lists and texts that a file holds add up to ten times its own.

    In a pickle, one list of a million boxes can stand for the boxes of each of a million images.
    """
    left = 10 * os.path.getsize(path) + 1000
    for size in sizes:
        left -= size
        if left < 0:
            raise SoirError(f"{path} repeats its contents until they are over ten times as large as it is")


def load_values(path: str) -> Any:
    """Load plain Python values from a file that torch saved. Nothing that is in the file is run.

    Unlike `torch.load`, it also takes what older files hold, NumPy numbers and arrays and defaultdicts, and turns it
    into plain values; and it is several times faster. A tuple of more than whole numbers comes as a list (see
    `_check_opcodes`). Raises SoirError for whatever else is in the file.
    """
    return _load(path, has_tensors=False)


def load_tensors(path: str) -> Any:
    """As `load_plain`, also with tensors, as read-only NumPy arrays; those of bfloat16 as float32.

    A tensor may claim to be far larger than its file, as those of `expand` do.
    """
    return _load(path, has_tensors=True)


def _load(path, has_tensors):
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            data, folder = _read_pickle(archive)
            data = _check_opcodes(data, has_tensors)
            size = os.fstat(file.fileno()).st_size
            unpickler = (_TensorUnpickler if has_tensors else _PlainUnpickler)(
                data, archive, folder, 3 * size
            )  # an array is counted twice
            gc.disable()  # millions of new containers would set it off again and again, three times the time
            try:
                return unpickler.load()
            finally:
                gc.enable()
                unpickler.names.clear()  # its methods, which would keep it and its memo
    except FileNotFoundError:
        maker = "examples/colour_features.py shows how to make one" if has_tensors else "create_dataset.py makes one"
        raise SoirError(f"{path} is missing: {maker}") from None
    except OSError as error:
        raise SoirError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a broken archive or pickle can raise anything
        reason = str(error) or type(error).__name__
        kind = "tensors" if has_tensors else "plain values"
        raise SoirError(f"{path} was not loaded, for it is no torch file of {kind}: {reason}") from error


def _read_pickle(archive: zipfile.ZipFile) -> tuple[bytes, str]:
    """The one pickle of an archive that torch saved, and the folder it is in. Sizes are checked before believed."""
    names = archive.namelist()
    if any(name.startswith("/") or ".." in name.split("/") for name in names):
        raise ValueError("a name in the archive points out of it")
    pickles = [info for info in archive.infolist() if info.filename.endswith(".pkl")]
    if len(pickles) != 1 or pickles[0].filename.count("/") != 1 or not pickles[0].filename.endswith("/data.pkl"):
        raise ValueError(f"expected one data.pkl in the archive, found {len(pickles)} pickles")
    return _read_stored(archive, pickles[0]), pickles[0].filename[: -len("data.pkl")]


def _read_stored(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise ValueError(f"{info.filename} is compressed, which torch never does"[:120])
    return archive.read(info)


# The opcodes of plain values, by how many bytes of argument follow. Whatever else the language of pickles has has no
# place in an annotation file: calls by OBJ, INST and NEWOBJ, extension codes, persistent ids, the forms of protocol 0.
_WHOLE = rb"(?:K.|M..|J....)"
_FIXED = (
    rb"[hq\x80].|r...%(highest)s|j....|[.N\x88\x89\])}aelduRsb\x93\x94]"
    rb"|\((?:%(whole)s{0,16}t|(?:%(whole)s|G........){0,2000}e)?"  # tuples of whole numbers, on these lines; and lists
    rb"|%(whole)s(?:%(whole)s(?:%(whole)s{1,1000}[\x85-\x87]?|[\x85\x86]?)|\x85?)|G........"
    rb"|[t\x85-\x87](?=(?:q.|r....|\x94)?%(calls)s)|%(calls)s"
)
_TUPLE = (b"t", b"\x85", b"\x86", b"\x87")
_COUNTED = {b"X": 4, b"T": 4, b"B": 4, b"U": 1, b"C": 1, b"\x8c": 1, b"\x8a": 1, b"\x8d": 8, b"\x8e": 8}

# Integers beyond 64 bits, in a file. As keys they can all have the same hash, which takes the square of their number.
MAX_LONG = 1000


def _check_opcodes(data: bytes, has_tensors: bool) -> bytes:
    """Return a pickle that is safe to load. Raises ValueError if it holds more than plain values and names.

    Runs and builds nothing. A memo index is checked too: C's unpickler makes its memo as long as the largest index,
    34 GB for 2^31. Picklers count them up from 0, so in a pickle of n bytes none can be larger than n / 4, or 2^24.
    The lengths of frames are made 0: where a frame ends within an argument, C's unpickler reads on elsewhere.

    Tuples as keys can kill: one in another, a million times, overruns the stack when it is hashed, and one twice in
    another, sixty times, takes for ever. So a tuple stays one if it holds whole numbers only, as boxes do, or is the
    argument of a call, which its function checks. Behind others we put an opcode that calls `persistent_load`, which
    makes lists of them; those have no hash.
    """
    highest = b"[\\x00-\\x%02x]" % min(len(data) // 4 >> 24, 255)  # the last of the four bytes of an index
    names = {b"whole": _WHOLE, b"highest": highest, b"calls": b"[RbQ]" if has_tensors else b"[Rb]"}
    fixed = re.compile(b"(?:" + _FIXED % names + b"){1,1000}", re.DOTALL)
    name = re.compile(rb"c[\w.]{1,80}\n\w{1,80}\n")
    parts: list[bytes] = []  # the pickle up to start, changed
    start = longs = 0
    position, end = 0, len(data)
    while position < end:
        match = fixed.match(data, position) or name.match(data, position)
        if match:
            position = match.end()
            continue
        opcode = data[position : position + 1]
        if opcode in _TUPLE:
            position += 1
            parts += data[start:position], b"Q"
            start = position
        elif opcode == b"\x95":
            parts += data[start : position + 1], bytes(8)
            position = start = position + 9
        elif opcode in _COUNTED:
            argument = position + 1 + _COUNTED[opcode]
            length = int.from_bytes(data[position + 1 : argument], "little")
            position = argument + length
            longs += opcode == b"\x8a" and length > 9
            if longs > MAX_LONG:
                raise ValueError("it holds too many integers of more than 64 bits")
        elif opcode == b"Q":
            raise ValueError("it holds tensors, as a file of features does")
        else:
            raise ValueError(f"it holds more than plain values (pickle opcode {opcode!r} at byte {position:,})")
    if position != end:
        raise ValueError("it is cut short")
    return b"".join([*parts, data[start:]]) if parts else data


class _PlainUnpickler(pickle.Unpickler):
    """C's unpickler. The only names it knows are those of NumPy values and dicts, and it puts its methods in their
    place. These check the types of their arguments, since what a tuple of them holds could be such a tuple again.

    left  bytes that arrays, texts and storages may still take: each is in a file once, but the memo can repeat it
    """

    def __init__(self, data, archive, folder, left):
        super().__init__(io.BytesIO(data))
        self.archive, self.folder, self.left = archive, folder, left
        self.names: dict[tuple[str, str], Callable | str | None] = {
            ("numpy", "dtype"): _Dtype,
            ("numpy", "ndarray"): None,
            ("numpy.core.multiarray", "scalar"): self.scalar,
            ("numpy.core.multiarray", "_reconstruct"): self.array,
            ("_codecs", "encode"): self.encode,
            ("builtins", "bytes"): self.no_bytes,
            ("collections", "defaultdict"): self.make_dict,
            ("collections", "OrderedDict"): self.make_dict,
            ("builtins", "list"): None,  # what a defaultdict would make
            ("builtins", "dict"): None,
            ("builtins", "int"): None,
        }

    def find_class(self, module, name: str):
        module = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        try:
            return self.names[module, name]
        except KeyError:
            raise ValueError(f"it asks for {module}.{name}"[:120]) from None

    def persistent_load(self, pid):
        return list(pid)  # see `_check_opcodes`; no other persistent ids come through it

    def spend(self, size):
        self.left -= size
        if self.left < 0:
            raise ValueError("what it holds is larger than the file")

    def scalar(self, dtype, data):
        _check_types((dtype, data), _Dtype, bytes)
        (value,) = dtype.values(data).tolist()
        return value

    def array(self, kind, shape, code):
        _check_types((kind, code), type(None), bytes, str)
        _check_types(shape, int)
        return _Array(self)

    def encode(self, text, encoding):  # bytes, as Python 3 writes them in protocol 2
        _check_types((text, encoding), str)
        self.spend(len(text))
        return text.encode("latin-1")

    def no_bytes(self):
        return b""

    def make_dict(self, *factory):
        _check_types(factory, type(None))
        return {}


def _check_types(values, *types):
    if len(values) > 16 or not all(type(value) in types for value in values):
        raise ValueError("a call in it has other arguments than it should")


class _Dtype:
    """Stands for numpy.dtype: a number of 1 to 8 bytes, or text."""

    __slots__ = ("code", "order")

    def __init__(self, code, *rest):
        _check_types(rest, int, bool)
        if not re.fullmatch("[iuf][1248]|b1|U[0-9]{1,5}", code):
            raise ValueError(f"it holds a NumPy value of type {code}"[:120])
        self.code, self.order = code, "="

    def __setstate__(self, state):
        _check_types(state, int, str, type(None))
        self.order = state[1] if state[1] in ("<", ">") else "="

    def values(self, data: bytes | memoryview):
        return np.frombuffer(data, dtype=np.dtype(self.code).newbyteorder(self.order))


class _Array(list):
    """Stands for numpy.ndarray: its values as (nested) lists."""

    __slots__ = ("unpickler",)

    def __init__(self, unpickler):
        self.unpickler = unpickler

    def __setstate__(self, state):
        _, shape, dtype, is_fortran, data = state
        _check_types((is_fortran, dtype, data), int, bool, _Dtype, bytes)
        _check_types(shape, int)
        self.unpickler.spend(len(data))
        del self.unpickler  # with all of its memo
        rows = lists = 1
        for length in shape[:-1]:
            rows *= length
            lists += rows
        if lists > len(data) / 2 + 16:  # one of 10^8 x 0 has no byte, yet would be as many lists
            raise ValueError("it holds an array of too many rows for its values")
        self[:] = dtype.values(data).reshape(shape or (1,), order="F" if is_fortran else "C").tolist()


# ------------------------------------------------------------------------------------------------------------- tensors


class _TensorUnpickler(_PlainUnpickler):
    """Knows tensors too. Their storages are files of the archive, data/0 and so on, as numbers without a shape."""

    def __init__(self, data, archive, folder, left):
        super().__init__(data, archive, folder, left)
        self.names["torch._utils", "_rebuild_tensor_v2"] = self.tensor
        self.names["torch._utils", "_rebuild_parameter"] = self.parameter
        self.names.update((("torch", name), code) for name, code in _STORAGES.items())
        self.storages: dict[str, _Storage] = {}
        order = f"{folder}byteorder"
        if order in archive.namelist() and _read_stored(archive, archive.getinfo(order)) != b"little":
            raise ValueError("it was written by a machine with another order of bytes")

    def persistent_load(self, pid):
        """The storage of ("storage", type of its numbers, name of its file, device, length); other tuples as lists."""
        if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage":
            return super().persistent_load(pid)
        _check_types(pid, str, int)
        _, code, name, _, _ = pid
        if code not in _STORAGES.values():
            raise ValueError("it holds a storage of an unknown type")
        if name not in self.storages:
            info = self.archive.getinfo(f"{self.folder}data/{name}")
            self.spend(info.file_size)
            self.storages[name] = _Storage(_read_stored(self.archive, info), code)
        return self.storages[name]

    def tensor(self, storage, offset, shape, strides, requires_grad, hooks, metadata=None):
        """Tensor, as torch saves it, -> array. The offset and the strides are in numbers, not in bytes."""
        _check_types((storage, offset, requires_grad, hooks, metadata), _Storage, int, bool, dict, type(None))
        _check_types(shape, int)
        _check_types(strides, int)
        if metadata:
            raise ValueError("it holds a tensor that is negated or conjugated without being so stored")
        if len(shape) != len(strides) or min((offset, *shape, *strides)) < 0:
            raise ValueError("it holds a tensor of no possible shape")
        if 0 in shape:
            return np.zeros(0, storage.dtype)
        # NumPy takes some shapes that reach out of their memory.
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides))
        width = storage.dtype.itemsize
        if last >= len(storage.data) // width:
            raise ValueError("it holds a tensor that is larger than its storage")
        return np.ndarray(shape, storage.dtype, storage.data, offset * width, [stride * width for stride in strides])

    def parameter(self, tensor, requires_grad, hooks):
        _check_types((tensor, requires_grad, hooks), np.ndarray, bool, dict)
        return tensor


class _Storage:
    """Stands for a storage of torch: numbers that tensors are views of."""

    __slots__ = ("data", "dtype")

    def __init__(self, data, code):
        if code == "bfloat16":  # the upper half of a float32
            data, code = (np.frombuffer(data, dtype="<u2").astype("<u4") << 16).tobytes(), "f4"
        self.data, self.dtype = data, np.dtype(code).newbyteorder("<")


_STORAGES = {
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "b1",
    "ComplexFloatStorage": "c8",
    "ComplexDoubleStorage": "c16",
}


def save_values(annotations: dict, path: str) -> int:
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


_load_plain = load_values


def load_values(path, arrays=False):
    return load_tensors(path) if arrays else _load_plain(path)
