"""Files: open untrusted ones, read JSON, write outputs so that they appear whole or not at all."""

from __future__ import annotations

import gc
import json
import os
import re
import stat
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Iterable, Iterator

from soir.paths import full_path


class SoirError(Exception):
    """The run cannot be done. Its text is one sentence for the person: expected, found, where, what to do."""


def open_regular(path: str) -> BinaryIO:
    """Open a file for reading bytes, without a buffer.

    Raises OSError, also for a FIFO or a device, which would block or never end.
    """
    try:
        return open(path, "rb", buffering=0, opener=_open_at_once)
    except ValueError as error:  # a NUL in the path
        raise OSError(f"not a file: {path!r}") from error


def _open_at_once(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"not a regular file: {path}")
    return descriptor


def read_bytes(path: str, limit: int) -> bytes:
    """The bytes of a file. Raises OSError, also for a file of more than `limit` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(f"too large, {size:,} bytes: {path}")
        return file.read(size)


def reason_of(error: Exception) -> str:
    """What the system, or the decoder, said of a file."""
    return getattr(error, "strerror", None) or str(error.__cause__ or error)


KINDS = (  # how files begin: what they are
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"BM", "a BMP image"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"\x89HDF", "an HDF5 file"),
    (b"PK\x03\x04", "a zip archive, as .npz and files of torch are"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%PDF", "a PDF"),
    (b"\x80", "a pickle, or a file of a torch before 1.6"),
)


def kind_of_file(path: str) -> str:
    """What a file is, by its first bytes, for a sentence that begins with "it is"."""
    if os.path.isdir(path):
        return "a folder"
    try:
        with open_regular(path) as file:
            start = file.read(1024)
    except OSError as error:
        return f"not readable ({reason_of(error)})"
    kind = next((kind for magic, kind in KINDS if start.startswith(magic)), None)
    if kind or not start:
        return kind or "empty"
    if start[8:10] == b'{"' and int.from_bytes(start[:8], "little") < 2**30:
        return "a file of safetensors"
    try:
        text = start.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # not a character that is cut off
            return "a binary file of no known kind"
        text = start[: error.start].decode("utf-8")
    first, _, others = text.partition("\n")
    if text[:1] in ("{", "["):
        return "JSON Lines, one object per line" if first.strip()[-1:] == "}" and others.lstrip()[:1] == "{" else "JSON"
    return "CSV" if "," in first else "text"


def read_json(path: str, **hooks: Any) -> Any:
    """Read a JSON file, in UTF-8; with hooks as those of `json.loads`.

    Raises SoirError if the file cannot be read or is not valid JSON.
    """
    try:
        with open_regular(path) as file:
            return json.loads(file.read().decode("utf-8-sig"), **hooks)
    except OSError as error:
        raise SoirError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise SoirError(f"{path} is no JSON, or only the start of one ({error}): get the file again") from error


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Pause the collector of cycles: a script makes millions of containers, and hardly a cycle. It would look at all of
    them again and again, which takes a seventh of the time, and two thirds of that of parsing or loading alone."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def check_outputs(outputs: Iterable[str | None], inputs: Iterable[str | None] = ()) -> None:
    """Raise SoirError if an output cannot become a file, or is an input or another output too.

    Called before the work, which may take an hour. An output that is None is not wanted.
    """
    taken = {os.path.realpath(path): "an input" for path in inputs if path}
    for path in filter(None, outputs):
        _check_output(path)
        real = os.path.realpath(path)
        if real in taken:
            raise SoirError(f"the output {path} is {taken[real]} too: name another file")
        taken[real] = "another output"


def _check_output(path: str) -> None:
    if path.endswith(("/", os.sep)):
        raise SoirError(f"the output {path} is named like a folder: name a file")
    path = os.path.realpath(path)
    folder = os.path.dirname(path)
    while not os.path.lexists(folder):  # it will be made
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise SoirError(f"the folder of the output, {folder}, is no folder: name another output")
    if not os.access(folder, os.W_OK):
        raise SoirError(f"the folder of the output, {folder}, is not writable: name another output")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:  # a link that leads to itself, a name that is too long
        raise SoirError(f"the output {path} cannot be written: {error.strerror}; name another output") from error
    if not stat.S_ISREG(mode):
        raise SoirError(f"the output {path} exists and is no regular file: name another output")
    if not os.access(path, os.W_OK) or not mode & 0o222:  # root may write anything, yet read-only was meant
        raise SoirError(f"the output {path} is read-only: make it writable, or name another output")


def check_no_image(outputs: Iterable[str | None], paths: Iterable[Any], base_path: str | None) -> None:
    """Raise SoirError if an output is an image of the annotation file, which it would overwrite.

    paths, base_path  of its entries, as of `full_path`
    """
    existing = [output for output in outputs if output and os.path.isfile(output)]
    files = {_file_id(output): output for output in existing}
    names = {os.path.basename(name) for output in existing for name in (output, os.path.realpath(output))}
    # If one is an image, the path of an entry may also be a link of another name to it.
    are_images = any(kind_of_file(output).endswith(" image") for output in existing)
    for path in paths if existing else ():
        if isinstance(path, str) and "\0" not in path and (are_images or os.path.basename(path) in names):
            full = full_path(path, base_path)
            output = files.get(_file_id(full)) if full else None
            if output:
                raise SoirError(f"the output {output} is an image of the annotation file: name another file")


def _file_id(path: str) -> tuple[int, int] | None:
    """What all names and links of one file have in common; None if there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def write_whole(path: str, data: bytes | memoryview) -> None:
    """Write bytes to a file, as `whole_file` does. Raises SoirError."""
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def whole_file(path: str) -> Iterator[BinaryIO]:
    """Open a file to write bytes to. Whatever happens, `path` then holds either its old content or all of the new one.

    The data goes to a temporary file in the same folder, which then takes the place of `path`. A temporary file that a
    killed run left behind is removed by the next run with the same output.
    Raises SoirError if the file cannot be written; `path` is then unchanged.
    """
    import socket  # here, not above: --help has no need of it, and it takes 2 ms

    _check_output(path)
    path = os.path.realpath(path)  # a link stays a link, its target is replaced
    prefix = f"{path}.{socket.gethostname()}-"
    temporary = f"{prefix}{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _remove_stale(prefix)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise SoirError(f"cannot write {path}: {error.strerror or error}; what was there is untouched") from error
    finally:
        with suppress(OSError):  # it was never made, or has a name that is too long
            os.unlink(temporary)


def _remove_stale(prefix: str) -> None:
    """Remove temporary files <prefix><process id>.tmp whose process is gone; two runs at once leave each other's."""
    folder, start = os.path.split(prefix)
    for name in os.listdir(folder):
        match = re.fullmatch(re.escape(start) + r"([0-9]{1,9})\.tmp", name)
        if match and not _is_running(int(match.group(1))):
            with suppress(OSError):  # another run was first, or it is somebody else's
                os.unlink(os.path.join(folder, name))


def _is_running(process: int) -> bool:
    if process == os.getpid():
        return False  # this run has no temporary file yet: one with its number is left from an earlier process
    if os.name == "nt":
        return False  # a file that is open cannot be removed there, so it is safe to try
    try:
        os.kill(process, 0)
    except OSError as error:  # or else it is there, and somebody else's
        return not isinstance(error, ProcessLookupError)
    return True
