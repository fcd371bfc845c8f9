"""Signals: let Ctrl-C and SIGTERM wait for a moment.

Only the main thread can set handlers of signals; in any other, this does nothing. A signal that is ignored stays
ignored.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import Any, Iterator


@contextmanager
def signals_later() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the end of the block: code that starts processes, or C++ code that calls Python,
    may not be interrupted by an exception.

    The handlers are replaced, since a mask of signals holds for one thread, and NumPy has others that would take them.
    """
    came: list[tuple[int, Any]] = []
    handlers = _handlers()
    for number in handlers:
        signal.signal(number, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number, frame in came[:1]:
        handlers[number](number, frame)


def _handlers() -> dict[int, Any]:
    """Signal -> its handler in Python."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    return {number: handler for number, handler in handlers.items() if callable(handler)}
