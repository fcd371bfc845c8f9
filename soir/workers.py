"""Spread work over processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Callable, Iterator, Sequence, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

from soir.files import SoirError
from soir.findings import progress_bar
from soir.signals import signals_later

Item = TypeVar("Item")
Result = TypeVar("Result")

# Items that a worker gets at a time: enough to hide the cost of handing them over (a mask of OWID takes 0.3 ms), few
# enough that the last ones do not keep one worker busy alone (a mask of RoboTools takes 15 ms).
BATCH = 64

# Batches that are handed over and not yet taken back: enough to keep the workers busy for the ten seconds in which the
# main process parses the JSON of OWID, few enough to be cancelled one by one on Ctrl-C.
WINDOW = 1000


@contextmanager
def map_ordered(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, title: str
) -> Iterator[Iterator[Result]]:
    """Like map(), in `workers` processes that start at once, with a progress bar. With 1, no process is started.

    function  at the top level of a module; takes and returns what can be pickled
    items     what can be pickled too; results come in the order of the items
    Raises SoirError if a worker process cannot be started, or dies.
    """
    batches = [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
    workers = min(workers, len(batches))
    with progress_bar(title, total=len(items)) as progress:
        if workers <= 1:
            yield _one_by_one(([function(item)] for item in items), progress)
            return
        # Here, not above: --help and a run with one worker have no need of them, and they take 4 ms.
        from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor

        # Once this is 1, the workers drop the items that they still have. They are not killed: a worker that is killed
        # while it writes leaves the queue locked, and all others wait forever.
        stop = multiprocessing.RawValue("b", 0)
        pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(stop, os.getpid()))
        waiting: deque[Future[list[Result]]] = deque()
        try:
            _submit(pool, function, batches[:WINDOW], waiting)
            yield _one_by_one(_in_order(pool, function, batches[WINDOW:], waiting), progress)
        except BrokenProcessPool as error:
            reason = "a worker process died (killed, or out of memory)"
            raise SoirError(f"{reason}: run again, perhaps with fewer --workers") from error
        finally:
            stop.value = 1
            for future in waiting:
                future.cancel()
            pool.shutdown()


def _submit(
    pool: ProcessPoolExecutor,
    function: Callable[[Item], Result],
    batches: Sequence[Sequence[Item]],
    waiting: deque[Future[list[Result]]],
) -> None:
    """Start the workers, with the first batches."""
    try:
        with signals_later():
            waiting.extend(pool.submit(_work, function, batch) for batch in batches)
    except OSError as error:
        for process in multiprocessing.active_children():  # they have no work yet, and nobody to give them any
            process.kill()
        raise SoirError(f"cannot start worker processes ({error}): use fewer --workers") from error


def _in_order(
    pool: ProcessPoolExecutor,
    function: Callable[[Item], Result],
    batches: Sequence[Sequence[Item]],
    waiting: deque[Future[list[Result]]],
) -> Iterator[list[Result]]:
    later = iter(batches)
    while waiting:
        yield waiting.popleft().result()
        for batch in later:
            with signals_later():  # submit() takes locks
                waiting.append(pool.submit(_work, function, batch))
            break


def _one_by_one(batches: Iterator[list[Result]], progress: Any) -> Iterator[Result]:
    for results in batches:
        progress.update(len(results))
        yield from results


# ------------------------------------------------------------------------------------------------------- in the workers

_stop: Any = None


def _start_worker(stop: Any, starter: int) -> None:
    """Prepare a worker. Ctrl-C is for the parent to handle; when the parent is gone, the worker ends too.

    stop     shared with the parent
    starter  process id of the parent
    """
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")  # of Pillow, on what is odd in a file
    parent = os.getppid()
    if multiprocessing.get_start_method() == "fork" and parent != starter:
        os._exit(2)  # it was killed before we came this far

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(2)

    threading.Thread(target=watch, daemon=True).start()


def _work(function: Callable[[Item], Result], batch: Sequence[Item]) -> list[Result]:
    results = []
    for item in batch:
        if _stop.value:
            break
        results.append(function(item))
    return results
