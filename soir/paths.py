"""Paths: how entries spell them, where they lie on the disk, in which order they come."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from contextlib import suppress
from typing import Any, Callable, Iterable


def natural_key(name: str) -> tuple[list[Any], str]:
    """Sort key by which 2 comes before 10."""
    # At most 18 digits at a time: Python refuses to make numbers of thousands of digits.
    parts: list[Any] = re.split("([0-9]{1,18})", name)
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def tidy_path(*parts: str) -> str:
    """Join parts of a path as entries have it: with slashes, without `.` or `//`. A `..` stays: links may matter."""
    path = os.path.join(*parts).replace(os.sep, "/")
    return "/" * path.startswith("/") + "/".join(part for part in path.split("/") if part not in ("", "."))


def full_path(path: str, base_path: str | None) -> str | None:
    """Where an image lies on the disk.

    base_path  the folder that relative paths start at, absolute; None for the current folder
    Returns None for a relative path that leads out of the base path.
    """
    if base_path is None or os.path.isabs(path):
        return path
    base = os.path.join(base_path, "")
    full = os.path.normpath(os.path.join(base, path))
    return full if full.startswith(base) else None


def find_root(root: str, paths: list[str]) -> str | None:
    """A folder up to three levels below `root`, or the one above it, that holds all of the paths, or None.

    For hints: of each level, the first thousand folders are looked at.
    """
    level, folders = [root], []
    for _ in range(3):
        below: list[str] = []
        for folder in level:
            with suppress(OSError):
                below += sorted(entry.path for entry in os.scandir(folder) if entry.is_dir())
        level = below[:1000]
        folders += level
    folders.append(os.path.dirname(os.path.abspath(root)))
    found = (folder for folder in folders if all(os.path.exists(os.path.join(folder, path)) for path in paths))
    return next((os.path.normpath(folder) for folder in found), None)


def spelling_finder(names: Iterable[str]) -> Callable[[Any], str | None]:
    """Make a function that finds a path among these: as it is, or else in another spelling, if just one fits.

    Spellings of one path are `./a//b.jpg` and `a/b.jpg`, and the Unicode forms NFC and NFD (macOS).
    """
    known = dict.fromkeys(names)
    spelled: dict[str, str | None] = {}

    def find(name: Any) -> str | None:
        if not isinstance(name, str):
            return None
        if name in known:
            return name
        if not spelled:
            for other in known:
                key = _spelling(other)
                spelled[key] = None if key in spelled else other
        return spelled.get(_spelling(name))

    return find


def _spelling(path: str) -> str:
    if path.isascii() and "./" not in path and "//" not in path:  # nearly all, and this takes a tenth of the time
        return path
    return unicodedata.normalize("NFC", posixpath.normpath(path))


def why_unknown(path: str, names: Iterable[str]) -> str:
    """What may be wrong with a path that is none of these, as the end of a sentence; "" if nothing tells.

    names  paths of an annotation file
    """
    tidy = path.strip().replace("\\", "/")
    alike = [name for name in names if posixpath.basename(name).lower() == posixpath.basename(tidy).lower()]
    if not alike:
        return ""
    name = max(alike, key=lambda name: len(_common_end(name, tidy)))
    end = _common_end(name, tidy)
    if name.lower() == tidy.lower():
        return f" (it differs from {name} in upper and lower case, slashes or white space)"
    if end == tidy and "/" not in tidy:
        return f" (it is the name of a file only: write the whole path, {name})"
    old, new = (text[: len(text) - len(end)].rstrip("/") or '""' for text in (name, tidy))
    return f" (both end in {end}: convert_annotations.py --replace-prefix {old} {new} makes them equal)" if end else ""


def _common_end(path: str, other: str) -> str:
    """The longest end, in whole folders, that two paths have in common."""
    ends = path.split("/"), other.split("/")
    count = 0
    while count < min(map(len, ends)) and ends[0][-1 - count] == ends[1][-1 - count]:
        count += 1
    return "/".join(ends[0][len(ends[0]) - count :])
