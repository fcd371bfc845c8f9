"""TODO paths."""

from __future__ import annotations

import os
import re
from typing import Any


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
    """A folder one level below or above `root` that holds all of the paths; None if there is none. For hints."""
    try:
        folders = [os.path.join(root, name) for name in sorted(os.listdir(root))]
    except OSError:
        return None
    folders.append(os.path.dirname(os.path.abspath(root)))
    return next((f for f in folders if all(os.path.exists(os.path.join(f, path)) for path in paths)), None)
