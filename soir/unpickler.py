"""Values from a pickle that may be hostile: plain values, those of NumPy, and tensors as arrays.

Python's own unpickler runs whatever a pickle says. Here is a second one, that only knows what is in files of torch.
"""

from __future__ import annotations

import io
import pickle
import re
from functools import partialmethod, reduce
from operator import mul
from typing import TYPE_CHECKING, Any, Callable, List, NamedTuple

import numpy as np

from soir.arrays import check_bytes, check_text, unpacked_limit

if TYPE_CHECKING:
    import zipfile

# The memory that loading a file may take, in bytes: MEMORY_FACTOR for each byte of the file, plus MEMORY_BASE.
MEMORY_FACTOR, MEMORY_BASE = 20, 2 * 10**9

# Integers beyond 64 bits. As keys they can all have the same hash, which takes the square of their number.
MAX_LONGS = 1000


def memory_limit(size: int) -> int:
    """How many bytes of memory a file of so many bytes may take."""
    return MEMORY_FACTOR * size + MEMORY_BASE


_SINGLE = frozenset((str, bytes, int, float, bool, type(None)))
_KEYS = _SINGLE | {tuple}
_VALUES = _KEYS | {list, dict, np.ndarray}  # nothing else gets into a container

# What is in the storages torch.DoubleStorage, ...: a type of NumPy, by its code.
_STORAGES = "Double Float Half Long Int Short Char Byte Bool ComplexFloat ComplexDouble"
_CODES = "   <f8    <f4   <f2  <i8  <i4 <i2   i1   u1   ?    <c8          <c16"
_BFLOAT16 = np.dtype("V2")  # two bytes without a meaning: NumPy does not have bfloat16
_NOT_IN_IT = "it holds a tensor whose numbers are not in it"


class _Arguments(List[Any]):
    """What was a tuple and holds more than values: the arguments of a call."""


class _Dtype:
    """Stands for a numpy.dtype. NumPy's own trusts what a file says of its fields, and may read outside of an array."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype


class _Array:
    """Stands for a NumPy array, which a pickle makes before it tells what is in it."""

    value: Any  # what it becomes: the array, or lists


class _Storage(NamedTuple):
    """The numbers that tensors are views of."""

    data: bytes
    dtype: np.dtype[Any]


class Unpickler(pickle._Unpickler):
    """Python's unpickler, as it is written in Python, but with the opcodes in _MEMORY and the names in _NAMES only.

    The methods load_... are those of opcodes. What a file may call follows after them; there the arguments may be
    anything that a file can hold.
    """

    # Python's unpickler has these, too:
    stack: list[Any]  # what came since the last mark; append() adds to it, and pop_mark() returns it
    metastack: list[list[Any]]  # what came before each of the open marks
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, data: bytes, archive: zipfile.ZipFile, folder: str, size: int, arrays: bool) -> None:
        """size  of the file, in bytes"""
        stream = io.BytesIO(data)
        super().__init__(stream)
        self.read, self.readline = stream.read, stream.readline
        self.archive, self.folder, self.size, self.arrays = archive, folder, size, arrays
        self.memory_left = memory_limit(size)
        self.longs_left = MAX_LONGS
        self.storages: dict[tuple[str, np.dtype[Any]], _Storage] = {}

    def load(self) -> Any:
        self.metastack, self.stack = [], []
        self.append = self.stack.append
        while True:
            opcode = self.read(1)
            if opcode == pickle.STOP:
                return _checked(self.pop(1))[0]
            if opcode not in _METHODS:
                raise ValueError(f"its pickle has the opcode {opcode!r}" if opcode else "its pickle breaks off")
            method, memory = _METHODS[opcode]
            self.take(memory)
            method(self)

    def take(self, memory: int) -> None:
        """Count bytes of memory. Raises MemoryError if there are no more left."""
        self.memory_left -= memory
        if self.memory_left < 0:
            raise MemoryError

    def pop(self, count: int | None) -> list[Any]:
        """Take so many items off the stack, or all since the last mark."""
        items = self.pop_mark() if count is None else [self.stack.pop() for _ in range(count)][::-1]
        if _Array in map(type, items):
            items = [item.value if type(item) is _Array else item for item in items]
        return items

    def load_tuple(self, count: int | None = None) -> None:
        items = self.pop(count)
        kinds = set(map(type, items))
        self.append(tuple(items) if kinds <= _SINGLE else items if kinds <= _VALUES else _Arguments(items))

    load_tuple1 = partialmethod(load_tuple, 1)
    load_tuple2 = partialmethod(load_tuple, 2)
    load_tuple3 = partialmethod(load_tuple, 3)

    def load_appends(self, count: int | None = None) -> None:
        items = _checked(self.pop(count))
        if type(self.stack[-1]) is not list:
            raise TypeError("items for what is not a list")
        self.stack[-1].extend(items)

    load_append = partialmethod(load_appends, 1)

    def load_setitems(self, count: int | None = None) -> None:
        items = _checked(self.pop(count))
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise TypeError("keys for what is not a dict")
        if not _KEYS.issuperset(map(type, items[::2])):
            raise ValueError("it holds a dict with a key that is no single value")
        self.take(30 * len(items))
        for key, value in zip(items[::2], items[1::2]):  # one by one, since Ctrl-C has to wait for a call in C
            target[key] = value

    load_setitem = partialmethod(load_setitems, 2)

    def load_frame(self) -> None:
        self.read(8)  # its length, which nobody needs who has the pickle in memory

    def load_long1(self) -> None:
        length = self.read(1)[0]
        self.longs_left -= length > 8
        if self.longs_left < 0:
            raise ValueError(f"it holds over {MAX_LONGS:,} integers beyond 64 bits")
        self.append(int.from_bytes(self.read(length), "little", signed=True))

    def load_bytearray8(self) -> None:
        self.append(self.read(int.from_bytes(self.read(8), "little")))  # as bytes

    def find_class(self, module: str, name: str) -> Any:
        name = f"{module}.{name}".replace("__builtin__.", "builtins.").replace("numpy._core.", "numpy.core.")
        if name not in _NAMES:
            raise ValueError(f"it asks for {name}"[:120])
        return _NAMES[name]

    def load_reduce(self) -> None:
        function, arguments = self.pop(2)
        if not callable(function) or not isinstance(arguments, (tuple, list)):
            raise TypeError("a call of what is not a function")
        self.append(function(self, *arguments))

    def load_build(self) -> None:
        (state,), target = self.pop(1), self.stack[-1]
        if type(target) is _Array:
            _, shape, dtype, is_fortran, data = state
            target.value = self.array(data, dtype, shape, "F" if is_fortran else "C")
        elif type(target) is _Dtype:
            if type(state[1]) is str and state[1] in ("<", ">"):
                target.dtype = target.dtype.newbyteorder(state[1])
        elif type(target) is not dict:  # an OrderedDict can have attributes, which nobody needs
            raise TypeError("a state of what has none")

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage of ("storage", type, key, device, count)."""
        if not self.arrays:
            raise ValueError("it holds tensors, as a file of features does")
        _, dtype, key, _, count = pid
        if not isinstance(dtype, np.dtype) or type(key) is not str or type(count) is not int:
            raise TypeError("a storage of an unknown type")
        if (key, dtype) not in self.storages:
            info = self.archive.getinfo(f"{self.folder}data/{key}")
            self.take(6 * info.file_size)  # as bfloat16 does for a moment
            storage = _Storage(self.archive.read(info), dtype)
            if len(storage.data) != count * dtype.itemsize:
                raise ValueError(_NOT_IN_IT)
            if dtype == _BFLOAT16:  # the upper half of a float32
                wide = np.frombuffer(storage.data, "<u2").astype("<u4") << 16
                storage = _Storage(wide.tobytes(), np.dtype("<f4"))
            self.storages[key, dtype] = storage
        return self.storages[key, dtype]

    def encode(self, text: Any, codec: Any) -> bytes:
        """The bytes of protocol 2."""
        if (type(codec), codec) != (str, "latin1"):  # other codecs may take very long
            raise ValueError("it holds bytes in another encoding than latin1")
        self.take(len(text))
        data: bytes = text.encode("latin1")
        return data

    def new_dict(self, argument: Any = None) -> dict[Any, Any]:
        """An OrderedDict, a defaultdict (whose argument is a function), or a Counter (a dict)."""
        self.take(250)
        return argument if type(argument) is dict else {}

    def dtype(self, code: Any, *_: Any) -> _Dtype:
        if not re.fullmatch("[iu][1248]|f[248]|b1|U[0-9]{1,5}", code):
            raise ValueError(f"it holds NumPy values of type {code}"[:120])
        return _Dtype(np.dtype(code))

    def scalar(self, dtype: Any, data: Any) -> Any:
        if type(dtype) is not _Dtype or type(data) is not bytes or len(data) != dtype.dtype.itemsize:
            raise ValueError("it holds a NumPy value of an impossible type")
        self.take(len(data))
        return np.frombuffer(data, dtype.dtype).tolist()[0] if data else ""  # NumPy's empty text has no bytes

    def array(self, data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> Any:
        """A NumPy array. Order "K" is "C", with the axes in another order."""
        if type(dtype) is not _Dtype or type(data) is not bytes or not _is_shape(shape):
            raise ValueError("it holds an array of an impossible type or shape")
        if len(data) != reduce(mul, shape, dtype.dtype.itemsize):
            raise ValueError("it holds an array whose numbers are not in it")
        array = np.ndarray(shape, dtype.dtype, data, order="F" if order == "F" else "C")
        check_text("an array", array)
        return self.value(array if axes is None else array.transpose(axes))

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> Any:
        """An array of a view of a storage. More can be its type, and things without meaning here, all of them empty."""
        dtype = next((item for item in more if isinstance(item, np.dtype)), storage.dtype)
        if type(storage) is not _Storage or any(type(item) is dict and item for item in more):
            raise ValueError("it holds a tensor of an unknown kind")
        if not all(map(_is_shape, ([offset], shape, strides))) or len(shape) != len(strides):
            raise ValueError("it holds a tensor of an impossible shape")
        if 0 in shape:
            offset = 0
        elif offset + sum((n - 1) * step for n, step in zip(shape, strides)) >= len(storage.data) // dtype.itemsize:
            raise ValueError(_NOT_IN_IT)
        steps = [step * dtype.itemsize for step in strides]
        return self.value(np.ndarray(shape, dtype, storage.data, offset * dtype.itemsize, steps))

    def value(self, array: np.ndarray[Any, Any]) -> Any:
        """What becomes of an array: itself, or lists."""
        lists, size = 0, 1
        for length in array.shape:
            lists, size = lists + size, size * length
        check_bytes(8 * size, unpacked_limit(self.size))  # a tensor may repeat its numbers
        self.take(200)
        if not self.arrays or not size:  # without numbers, there may still be two thousand million rows
            each = 8 if array.dtype.str in ("|b1", "|u1") else 40 if array.dtype.kind != "U" else 90 + array.itemsize
            self.take(72 * lists + each * size)
        return array if self.arrays else array.tolist()


def _checked(items: list[Any]) -> list[Any]:
    """The same items. Raises ValueError if one is not a value, but stands for something else."""
    if not _VALUES.issuperset(map(type, items)):
        kind = next(type(item) for item in items if type(item) not in _VALUES)
        raise ValueError(f"it holds a value of type {kind.__name__.lstrip('_')}")
    return items


def _is_shape(numbers: Any) -> bool:
    """Whether these are a few whole numbers, none of them negative."""
    is_short = isinstance(numbers, (tuple, list)) and len(numbers) <= 32
    return is_short and all(type(number) is int and number >= 0 for number in numbers)


# The names that a file may use: of what it may call, and of the types of numbers in storages.
_NAMES: dict[str, Any] = {
    "_codecs.encode": Unpickler.encode,
    "builtins.bytes": lambda unpickler: b"",
    **{f"collections.{name}": Unpickler.new_dict for name in ("Counter", "OrderedDict", "defaultdict")},
    **{f"builtins.{name}": Unpickler.new_dict for name in ("dict", "int", "list", "long")},  # which a defaultdict makes
    "numpy.dtype": Unpickler.dtype,
    "numpy.core.multiarray.scalar": Unpickler.scalar,
    "numpy.core.numeric._frombuffer": Unpickler.array,
    **dict.fromkeys(("numpy.core.multiarray._reconstruct", "numpy.ndarray", "torch.Tensor"), lambda *_: _Array()),
    "torch._utils._rebuild_tensor_v2": Unpickler.tensor,
    "torch._utils._rebuild_tensor_v3": Unpickler.tensor,
    "torch._utils._rebuild_parameter": lambda unpickler, tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda unpickler, tensor, *_: tensor,
    "torch._tensor._rebuild_from_type_v2": lambda unpickler, _, __, arguments, *___: unpickler.tensor(*arguments[:8]),
    "torch.Size": lambda unpickler, numbers: numbers,
    "torch.storage.UntypedStorage": np.dtype("u1"),
    "torch.BFloat16Storage": _BFLOAT16,
    **{f"torch.{name}Storage": np.dtype(code) for name, code in zip(_STORAGES.split(), _CODES.split())},
    **{f"torch.uint{bits}": np.dtype(f"<u{bits // 8}") for bits in (16, 32, 64)},  # these have no storages of their own
}

# The opcodes that a file may have, and how many bytes of memory one takes at most, beside its own.
_MEMORY = {
    0: "PROTO FRAME APPEND APPENDS SETITEM SETITEMS BUILD",
    8: "NONE NEWTRUE NEWFALSE BININT1 BINGET LONG_BINGET EMPTY_TUPLE GLOBAL STACK_GLOBAL",
    40: "BININT BININT2 LONG1 BINFLOAT REDUCE BINPERSID",
    80: "BINUNICODE SHORT_BINUNICODE BINUNICODE8 SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8",
    100: "MARK TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST BINPUT LONG_BINPUT MEMOIZE",
    250: "EMPTY_DICT",
}
_METHODS: dict[bytes, tuple[Any, int]] = {
    getattr(pickle, name): (getattr(Unpickler, pickle._Unpickler.dispatch[getattr(pickle, name)[0]].__name__), memory)
    for memory, names in _MEMORY.items()
    for name in names.split()
    if hasattr(pickle, name)  # Python 3.7 does not have all of them
}
