"""Archives of torch: what is in them, and values that only torch knows: tensors, NumPy values, defaultdicts.

torch's safe mode (`weights_only=True`) runs nothing of a file. Some files still crash it or fill the memory, so the
load is tried in a child process first, under limits.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import warnings
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    import subprocess

from soir.files import no_garbage_collection, open_regular
from soir.signals import signals_later

# The memory that loading a file may take, in bytes: MEMORY_FACTOR for each byte of the file, plus MEMORY_BASE.
MEMORY_FACTOR, MEMORY_BASE = 20, 2 * 10**9

# The processor time that the child may take once it has imported torch, in seconds: for each byte, and in any case.
# torch takes about 1 us per byte. A file that takes far longer is stuck: the hash of nested tuples can take forever.
SECONDS_FACTOR, SECONDS_BASE = 1e-5, 5


def read_archive(file: BinaryIO) -> tuple[bytes, set[tuple[int, int]]]:
    """The pickle in an archive of torch's, and the (size, CRC) of every file in it."""
    import zipfile  # here, not above: --help has no need of it, and it takes 6 ms

    start = file.read(4)
    if start != b"PK\x03\x04":  # where torch looks: it loads files that begin otherwise as older formats
        raise ValueError("it is JSON" if start[:1] in (b"{", b"[") else "it is no archive, or of a torch before 1.6")
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise ValueError(f"{info.filename} is compressed, which torch never does"[:120])
            if info.filename.startswith("/") or ".." in info.filename.split("/"):
                raise ValueError("a name in the archive points out of it")
        pickles = [info for info in infos if info.filename.endswith(".pkl")]
        if len(pickles) != 1 or not re.fullmatch("[^/]+/data.pkl", pickles[0].filename):
            raise ValueError(f"expected one data.pkl in the archive, found {len(pickles)} pickles")
        return archive.read(pickles[0]), {(info.file_size, info.CRC) for info in infos}


def reason_of_fault(error: BaseException) -> str:
    """What is wrong with a file, as the end of a sentence. torch's messages are a page long."""
    if isinstance(error, MemoryError):
        return "it takes far more memory than its size"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = str(error).split("WeightsUnpickler error: ")[-1].strip()
    name = re.search(r"(?:GLOBAL|Unsupported class) (\S+)", text)
    if name:
        return f"it asks for {name.group(1)}"[:120]
    return (text or type(error).__name__).splitlines()[0][:200]


def load_with_torch(path: str, arrays: bool) -> Any:
    """Load a file with torch, after a child process has done the same under limits of memory and time.

    arrays  see `load_values` in soir_loading.py
    Raises ValueError, or whatever torch raises, for a file that does not load.
    """
    _try_in_child(path, arrays)
    return _load(path, arrays)


# ------------------------------------------------------------------------------------- values that only torch knows


class _Dtype:
    """Stands for numpy.dtype in torch.load. NumPy's own trusts what a file says of its fields, and may then read
    outside of the array."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch("[iuf][1248]|c8|c16|b1|U[0-9]{1,5}", code):
            raise ValueError(f"it holds NumPy values of type {code}"[:120])
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for numpy.ndarray, and for the function that makes an empty one for the state to be set."""

    array: np.ndarray[Any, Any]

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        self.array = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if is_fortran else "C")


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    return np.frombuffer(data, dtype.dtype).tolist()[0] if data else ""  # NumPy's empty text has no bytes


def _new_dict(*_: Any) -> dict[Any, Any]:
    return {}


# What else torch may find in a file: its stand-in, and its name. NumPy 1 and 2 have other names for two functions.
_STAND_INS: list[Any] = [
    (_Dtype, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    *((_Array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    (bytes, "builtins.bytes"),
    (_new_dict, "collections.defaultdict"),
    *((_new_dict, f"builtins.{name}") for name in ("dict", "int", "list")),  # what a defaultdict would make
]
_SINGLE = {str, bytes, int, float, bool, type(None)}


def _load(path: str, arrays: bool) -> Any:
    """Load a file with torch. The child process calls this first; the parent calls it once the child has succeeded."""
    import torch

    with open_regular(path) as file, warnings.catch_warnings(), no_garbage_collection():
        size_and_crc = read_archive(file)[1]  # without its pickle, which torch reads again
        file.seek(0)
        warnings.simplefilter("ignore")
        if [int(part) for part in torch.__version__.split(".")[:2]] >= [2, 6]:
            known = torch.serialization.get_safe_globals()  # of the program that imports us
            torch.serialization.clear_safe_globals()
            try:
                with torch.serialization.safe_globals(_STAND_INS):
                    values = torch.load(file, map_location="cpu", weights_only=True)
            finally:
                torch.serialization.add_safe_globals(known)
        else:
            # torch before 2.6 would run an archive of TorchScript. Its reader may see other files in an archive than
            # zipfile does, so torch's own reader is asked.
            if "constants.pkl" in torch._C.PyTorchFileReader(file).get_all_records():
                raise ValueError("it holds a program")
            file.seek(0)
            try:
                values = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:
                hint = f"torch before 2.6 loads few other values, and this is {torch.__version__}: make the file anew"
                raise ValueError(f"{reason_of_fault(error)}; {hint}, or install a newer torch") from error
        return _Converter(arrays, size_and_crc).convert(values)


class _Converter:
    """Turns what torch loaded into what `load_values` returns. Containers that are shared stay shared.

    size_and_crc  of all files of the archive
    """

    def __init__(self, arrays: bool, size_and_crc: set[tuple[int, int]]) -> None:
        self.arrays, self.size_and_crc = arrays, size_and_crc
        self.done: dict[int, tuple[Any, Any]] = {}  # id -> (before, so that the id stays taken; after)
        self.wide: dict[int, np.ndarray[Any, Any]] = {}  # address of a storage of bfloat16 -> its numbers as float32
        self.checked: set[tuple[int, int]] = set()  # address and size of storages

    def convert(self, value: Any) -> Any:
        if type(value) in _SINGLE:
            return value
        if id(value) in self.done:
            return self.done[id(value)][1]
        new: Any
        if isinstance(value, (list, dict)):
            new = value if type(value) in (list, dict) else dict(value)
            self.done[id(value)] = value, new  # before its items, since it may be one of them
            self.convert_items(new)
        elif isinstance(value, tuple):
            new = tuple(value) if _SINGLE.issuperset(map(type, value)) else [self.convert(item) for item in value]
        elif isinstance(value, _Array):
            new = value.array if self.arrays else value.array.tolist()
        elif type(value).__name__ in ("Tensor", "Parameter"):  # torch has no other classes of these names
            new = self.convert_tensor(value)
        else:
            raise ValueError(f"it holds a {type(value).__name__}")
        self.done[id(value)] = value, new
        return new

    def convert_items(self, container: Any) -> None:
        """Convert the items of a list or a dict, in place."""
        is_dict = isinstance(container, dict)
        if is_dict and not _SINGLE.issuperset(map(type, container)):
            for key in container:
                if type(self.convert(key)) not in (*_SINGLE, tuple):
                    raise ValueError("it holds a dict with a key that is no single value")
        if not _SINGLE.issuperset(map(type, container.values() if is_dict else container)):
            for key, item in container.items() if is_dict else enumerate(container):
                container[key] = self.convert(item)

    def convert_tensor(self, tensor: Any) -> np.ndarray[Any, Any]:
        if not self.arrays:
            raise ValueError("it holds tensors, as a file of features does")
        storage = getattr(tensor, "untyped_storage", tensor.storage)()
        address, size = storage.data_ptr(), storage.nbytes()
        buffer = (ctypes.c_char * size).from_address(address)
        # torch before 2.6 believes the size that the pickle claims, and shows whatever lies behind in memory.
        if (address, size) not in self.checked and (size, zlib.crc32(buffer)) not in self.size_and_crc:
            raise ValueError("it holds a tensor whose numbers are not in it")
        self.checked.add((address, size))
        if str(tensor.dtype) != "torch.bfloat16":
            array: np.ndarray[Any, Any] = tensor.detach().numpy()
            return array
        if address not in self.wide:  # the upper half of a float32
            self.wide[address] = (np.frombuffer(buffer, "<u2").astype("<u4") << 16).view("<f4")
        numbers = self.wide[address][tensor.storage_offset() :]
        return np.lib.stride_tricks.as_strided(numbers, tensor.shape, [4 * stride for stride in tensor.stride()])


# ----------------------------------------------------------------------------------------------------------- the child


def _try_in_child(path: str, arrays: bool) -> None:
    """Raise ValueError if a child process, with a limit of memory and time, cannot load the file with torch.

    The child ends when the other end of its stdin closes, which the system does for a parent that was killed.
    """
    with _start_child(path, arrays) as child:
        try:
            with signals_later():  # an exception inside torch's C++ code would end the process with a stack of C++
                import torch  # noqa: F401  # here, since it takes a second in which the child does the same

            assert child.stdout is not None
            reason = child.stdout.read().decode("utf-8")
            status = child.wait()
        except ImportError:
            raise ValueError("to load it takes torch, which is not installed") from None
        finally:
            child.kill()
    if status == -getattr(signal, "SIGXCPU", 0):
        raise ValueError("it takes far longer to load than its size")
    if status:
        raise ValueError(reason or f"it crashes the process that loads it (status {status})")


def _start_child(path: str, arrays: bool) -> subprocess.Popen[bytes]:
    import subprocess  # here, not above: --help has no need of it

    command = [sys.executable, os.path.abspath(__file__), path, *(["arrays"] if arrays else [])]
    pipe, env = subprocess.PIPE, {**os.environ, "OMP_NUM_THREADS": "1"}  # more threads would take address space
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=env)


def _child(path: str, arrays: bool) -> None:
    """Load a file, as a process of its own: status 0, or 1 and what is wrong on stdout."""
    if os.name == "posix":
        _end_with_parent()
    try:
        import torch  # noqa: F401  # before the limits, which are for what the file takes

        if os.name == "posix":
            _set_limits(os.path.getsize(path))
        _load(path, arrays)
    except BaseException as error:
        os.write(1, reason_of_fault(error).encode("utf-8", "backslashreplace"))
        os._exit(1)
    os._exit(0)  # at once: what was loaded need not be taken apart


def _end_with_parent() -> None:
    """Let the system send us SIGIO, which ends us, when stdin is closed at its other end.

    A thread that watches stdin would not do: while the main thread hashes a nested tuple, no other thread runs.
    """
    import fcntl
    import select

    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, os.O_ASYNC)
    if select.select([0], [], [], 0)[0]:  # it was closed before
        os._exit(1)


def _set_limits(size: int) -> None:
    """Limit what this process may take, from now on, to load a file of so many bytes."""
    import resource
    import time

    def limit(kind: int, most: float) -> None:
        soft, hard = resource.getrlimit(kind)
        lower = [present for present in (soft, hard) if present != resource.RLIM_INFINITY]
        resource.setrlimit(kind, (min(int(most), *lower, sys.maxsize), hard))

    limit(resource.RLIMIT_CPU, time.process_time() + SECONDS_BASE + SECONDS_FACTOR * size)
    # Half of the usual stack: so what does not overrun it here does not in the parent, which has used some of its own.
    limit(resource.RLIMIT_STACK, 2**22)
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:
            present = int(file.read().split()[0]) * resource.getpagesize()
        limit(resource.RLIMIT_AS, present + MEMORY_FACTOR * size + MEMORY_BASE)


if __name__ == "__main__":
    _child(sys.argv[1], "arrays" in sys.argv[2:])
