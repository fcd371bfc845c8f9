"""Spread work over processes, so that no fault of one of them, and no signal, leaves the others behind."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from contextlib import contextmanager
from functools import partial
from multiprocessing import Pipe, Process, active_children, get_start_method
from multiprocessing.connection import wait
from multiprocessing.reduction import ForkingPickler
from typing import Callable, Iterator

from soir_common import SoirError, progress_bar

# Items that a worker gets at a time: enough to hide the cost of handing them over (0.2 ms; a mask of OWID takes
# 0.4 ms), few enough that the last ones do not keep one worker busy alone (a mask of RoboTools takes 15 ms).
BATCH = 32


def map_ordered(function: Callable, items: list, workers: int, title: str) -> Iterator:
    """Like map(), in `workers` processes and with a progress bar; 1 works without any process.

    function  takes and returns what can be pickled; it must be at the top level of a module
    items     list, of what can be pickled too; results come in the order of the items
    Raises SoirError if a worker process dies.
    """
    batches = -(-len(items) // BATCH)
    with progress_bar(title, total=len(items)) as progress:
        for results in _map_batches(partial(_map_batch, function, items), batches, workers):
            yield from results
            progress.update(len(results))


def _map_batch(function, items, number):
    return [function(item) for item in items[number * BATCH : (number + 1) * BATCH]]


def _map_batches(function, batches, workers):
    """Yield function(number) for the numbers of the batches, in order. A worker has the items from its start on.

    Each worker has a pipe of its own: unlike the queues of ProcessPoolExecutor, which a worker that is killed while
    it writes leaves locked for good, it ends with its worker.
    """
    if workers == 1:
        yield from map(function, range(batches))
        return
    done: dict[int, list] = {}
    handed = given = 0
    try:
        pipes = [_start_worker(function, workers) for _ in range(min(workers, batches))]
        free = pipes * 4  # a worker has a batch that it works on and three that wait, so that it never does
        while given < batches:
            while free and handed < batches:
                free.pop().send(handed)
                handed += 1
            ready: list = wait(pipes, timeout=0 if given in done else None)
            for pipe in ready:
                # As recv() does, which an interrupt can leave with a buffer that Python complains of at the end.
                number, results = ForkingPickler.loads(pipe.recv_bytes())
                done[number] = results
                free.append(pipe)
            if given in done:
                yield done.pop(given)
                given += 1
        return
    except (EOFError, OSError):
        pass  # not raised from here, since Python would keep, and complain of, what is in the pipe
    finally:
        for process in active_children():  # they are idle, or there was a fault or Ctrl-C, which must not wait for them
            process.kill()
            process.join()
    raise SoirError("a worker process died (killed, or out of memory): run again, perhaps with fewer --workers")


def _start_worker(function, workers):
    """Start a worker process and return our end of its pipe."""
    ours, theirs = Pipe()
    try:
        with _interrupts_later():
            Process(target=_work, args=(function, theirs, os.getpid()), daemon=True).start()
    except OSError as error:
        raise SoirError(f"cannot start {workers} worker processes ({error}): use fewer --workers") from error
    theirs.close()
    return ours


@contextmanager
def _interrupts_later():
    """Let Ctrl-C and SIGTERM wait for the end of this: Python forgets what is raised while it forks."""
    came: list = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if callable(handler)}  # others raise nothing
    for number in before:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _work(function, pipe, starter):
    """A worker: take the number of a batch from the pipe, give its results back.

    Ctrl-C is the parent's to handle; and when the parent is gone, killed perhaps, its workers go too.
    """
    parent = os.getppid()
    if get_start_method() == "fork" and parent != starter:
        os._exit(2)  # it was killed before we came this far
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")  # of Pillow, on what is odd in a file

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(2)

    threading.Thread(target=watch, daemon=True).start()
    try:
        while True:
            number = pipe.recv()
            pipe.send((number, function(number)))
    except (EOFError, OSError):  # the parent is gone, and nobody else holds its end of the pipe
        os._exit(2)
