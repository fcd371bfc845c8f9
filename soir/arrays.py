"""Arrays from untrusted files: .npz files, and values of any type. A claimed size is checked before it is used."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import zipfile

from soir.files import SoirError, open_regular

# How much larger than their file arrays may be, which can be compressed, or views that repeat their numbers. Scoring
# makes about one copy of them. So it stays below 20 times the size of the file and 2 GB; real ones stay far below.
MAX_RATIO, LARGE_RATIO, LARGE_BASE = 100, 8, 800_000_000


def load_npz(path: str) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, by name: of numbers or of text.

    Raises SoirError if the file cannot be read, is no .npz, holds objects, or unpacks beyond `unpacked_limit`.
    """
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as archive:
            limit = unpacked_limit(os.fstat(file.fileno()).st_size)
            check_bytes(sum(info.file_size for info in archive.zip.infolist()), limit)
            for info in archive.zip.infolist():
                _check_header(archive.zip, info, limit)
            arrays = {name: archive[name] for name in archive.files}
            for name, array in arrays.items():
                check_text(name, array)
            return arrays
    except OSError as error:
        raise SoirError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a broken archive can raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise SoirError(f"{path} was not loaded, for it is no .npz of numbers and text: {reason}") from error


def _check_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> None:
    """Raise ValueError unless the shape and type that an array claims fit its bytes. Items of 0 bytes always would."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"an array of version {version[0]}.{version[1]}")
        read_header = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        header = file.tell()
    if dtype.hasobject:
        raise ValueError("it holds objects, which could run code")
    if dtype.kind not in "fiubcU" or dtype.itemsize == 0 or max(shape, default=0) > limit:
        raise ValueError(f"an array of shape {shape} and type {dtype.str}"[:100])
    size = dtype.itemsize
    for length in shape:
        size *= int(length)
    if header + size != info.file_size:
        raise ValueError(f"an array of shape {shape} in {info.file_size:,} bytes"[:100])


def check_text(name: str, array: np.ndarray) -> None:
    """Raise ValueError if an array of text has a code point that no text has: to read such an item is an error."""
    if array.dtype.kind == "U" and array.size:
        points = np.ascontiguousarray(array).view(np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
        if points.max() > 0x10FFFF:
            raise ValueError(f"the text of {name[:40]} has a character beyond U+10FFFF")


def unpacked_limit(file_size: int) -> int:
    """How many bytes the arrays of a file may take, each number counted as 8."""
    return min(MAX_RATIO * file_size, LARGE_RATIO * file_size + LARGE_BASE)


def check_bytes(size: int, limit: int) -> None:
    """Raise ValueError if values take more bytes than the limit."""
    if size > limit:
        large = f"over {LARGE_RATIO} times and {LARGE_BASE // 10**6} MB"
        raise ValueError(f"unpacked, it is over {MAX_RATIO} times as large, or {large}, which features never are")


def as_matrix(value: Any, dimensions: int, limit: int) -> np.ndarray | None:
    """An array of real numbers with `dimensions` dimensions, from an array or nested lists; None if it is neither.

    limit  bytes that it may take, with 8 for each number. It can be far larger than its file: an array can claim any
           size, and one list in a file can be used thousands of times.
    Raises ValueError if it takes more than `limit` bytes.
    """
    if isinstance(value, np.ndarray):
        check_bytes(8 * value.size, limit)
        return value if value.dtype.kind in "fiub" and value.ndim == dimensions else None
    if not isinstance(value, (list, tuple)):
        return None
    if dimensions == 1:
        check_bytes(8 * len(value), limit)
        if not all(type(number) in (int, float) for number in value):
            return None
        try:
            array = np.array(value)
        except OverflowError:  # an integer beyond any float
            return None
        return array if array.dtype.kind in "fiu" else None
    rows: list[np.ndarray] = []
    for item in value:
        row = as_matrix(item, dimensions - 1, limit)
        if row is None or rows and row.shape != rows[0].shape:
            return None
        rows.append(row)
        limit -= 8 * row.size + 100  # an array takes that much besides
        check_bytes(0, limit)
    return np.stack(rows) if rows else None


def as_texts(value: Any, limit: int) -> list[str] | None:
    """A list of texts, from a list or an array of text; None if it is neither. Raises ValueError as `as_matrix`."""
    if isinstance(value, np.ndarray):
        if value.ndim != 1 or value.dtype.kind != "U":
            return None
        check_bytes(value.size * value.dtype.itemsize, limit)
        texts: list[str] = value.tolist()
        return texts
    if isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value):
        return list(value)
    return None
