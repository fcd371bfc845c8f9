"""Spread work over processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Callable, Iterator, Sequence, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

from soir.files import SoirError
from soir.findings import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Items that a worker gets at a time, at least: enough to hide the cost of handing them over (a mask of OWID takes
# 0.3 ms), few enough that Ctrl-C, which waits for the two or three batches of each worker, takes less than a second (a
# mask of RoboTools takes 15 ms).
BATCH = 16

# Batches at most. All are submitted at once, and for each one Python writes four bytes to a pipe: if the pipe is full,
# at 16,384 of them, Python 3.9 to 3.11 may wait forever.
MAX_BATCHES = 4096


@contextmanager
def map_ordered(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, title: str
) -> Iterator[Iterator[Result]]:
    """Like map(), in `workers` processes that start at once, with a progress bar. With 1, no process is started.

    function  at the top level of a module; takes and returns what can be pickled
    items     what can be pickled too; results come in the order of the items
    Raises SoirError if a worker process cannot be started, or dies.
    """
    size = max(BATCH, -(-len(items) // MAX_BATCHES))
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    workers = min(workers, len(batches))
    with progress_bar(title, total=len(items)) as progress:
        if workers <= 1:
            yield _one_by_one(([function(item)] for item in items), len(items), progress)
            return
        # Here, not above: --help and a run with one worker have no need of them, and they take 4 ms.
        from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor

        pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(os.getpid(),))
        futures: list[Future[list[Result]]] = []
        try:
            with _starting():
                futures.extend(pool.submit(_work, function, batch) for batch in batches)
            # Those that are done with are forgotten, since they hold their results.
            yield _one_by_one((futures.pop(0).result() for _ in batches), len(items), progress)
        except BrokenProcessPool as error:
            reason = "a worker process died (killed, or out of memory)"
            raise SoirError(f"{reason}: run again, perhaps with fewer --workers") from error
        finally:
            for future in futures:
                future.cancel()
            pool.shutdown()


@contextmanager
def _starting() -> Iterator[None]:
    """While workers start, delay Ctrl-C and SIGTERM: a start that is broken off could leave one that waits forever.

    The handlers are replaced, since a mask of signals holds for one thread, and NumPy has others that would take them.
    """
    came: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()  # an interrupt meets only this one
    delayed = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    old = {n: signal.signal(n, lambda number, _: came.append(number)) for n in delayed}
    try:
        yield
    except OSError as error:
        for process in multiprocessing.active_children():  # they have no work yet, and nobody to give them any
            process.kill()
        raise SoirError(f"cannot start worker processes ({error}): use fewer --workers") from error
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    if came:
        os.kill(os.getpid(), came[0])


def _one_by_one(batches: Iterator[list[Result]], expected: int, progress: Any) -> Iterator[Result]:
    """The results in batches. Raises SoirError at the end if they are not as many as expected: whoever pairs them with
    the items would have given some to the wrong ones."""
    for results in batches:
        progress.update(len(results))
        expected -= len(results)
        yield from results
    if expected:
        raise SoirError(f"{abs(expected):,} results of the workers are missing or too many: run again with --workers 1")


def _start_worker(starter: int) -> None:
    """Prepare a worker of a parent process. Ctrl-C is for that to handle; when it is gone, the worker ends too."""
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
    return [function(item) for item in batch]
