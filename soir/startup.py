"""What a script imports before all else: Ctrl-C and a missing requirement end in one line even while it imports.

It is for scripts only, since it sets `sys.excepthook`. No other module of this package changes anything in the process.
"""

from __future__ import annotations

import atexit
import gc
import sys
from contextlib import suppress
from typing import Any

REQUIREMENTS = {"numpy": "numpy", "PIL": "pillow", "pycocotools": "pycocotools", "torch": "torch", "tqdm": "tqdm"}


def _end_in_one_line(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
    """Python calls this for an exception that nobody caught: here, one that was raised while a script imports."""
    name = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if isinstance(error, KeyboardInterrupt):
        message, status = "interrupted", 130
    elif name in REQUIREMENTS:
        message, status = f"error: {REQUIREMENTS[name]} is not installed: pip install -r requirements.txt", 2
    else:
        sys.__excepthook__(kind, error, traceback)
        return
    with suppress(OSError):  # standard error may be closed, or on a full disk
        print(message, file=sys.stderr, flush=True)
    sys.exit(status)


sys.excepthook = _end_in_one_line
atexit.register(gc.freeze)  # else Python would look for cycles among all objects before it ends, which takes 16 ms
