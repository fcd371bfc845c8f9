"""Runs of a script as forks of the test runner, which has torch already: a run is in its work at once, so that kills
and interrupts meet it there, and a hundred of them take seconds.

    run = Fork("create_dataset.py", "--voxdet-root", root)
    run.send(signal.SIGTERM)
    done = run.wait()
"""

import gc
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest
from conftest import ROOT, code_of, run_as_main
from tqdm import tqdm

PYTHONS_OWN = 131  # not a status of the scripts: the interrupt came when the script was not, or no more, in its work


class Fork:
    """A script that runs as a process, and a process group, of its own; `prepare` is called in it before."""

    def __init__(self, script, *args, prepare=None):
        code_of(str(ROOT / script))  # once, here, and not in each fork
        pipes = [os.pipe(), os.pipe(), os.pipe()]
        self.pid = os.fork()
        if self.pid == 0:
            status = PYTHONS_OWN  # an interrupt may come here too, when the script has ended
            try:
                try:
                    status = self._run(script, args, pipes, prepare)
                except BaseException:
                    traceback.print_exc()
                    status = 99
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)
        for _, write in pipes:
            os.close(write)
        *self.streams, ready = [read for read, _ in pipes]
        os.read(ready, 1)  # before that, an interrupt would meet the test runner in it
        os.close(ready)

    @staticmethod
    def _run(script, args, pipes, prepare):
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, (_, write) in enumerate(pipes[:2], start=1):
            os.dup2(write, number)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        tqdm.set_lock(threading.RLock())  # the usual one is shared with forks, and who is killed may hold it
        if prepare:
            prepare()
        try:
            os.write(pipes[2][1], b"1")
            for end in sum(pipes, ()):
                os.close(end)
            run_as_main(script, *args)
        except SystemExit as end:
            return end.code or 0
        except KeyboardInterrupt as error:
            if "main" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]:
                raise
            return PYTHONS_OWN
        return 0

    def send(self, number):
        os.kill(self.pid, number)

    def wait(self):
        """Wait for the end, as subprocess.run() does. Sets `self.memory`, the peak of its memory, in bytes."""
        deadline = time.monotonic() + 120
        pid = 0
        while not pid:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if not pid and time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
                pytest.fail("the run hangs")
            time.sleep(0.002)
        self.memory = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        texts = [read_all(stream).decode("utf-8") for stream in self.streams]
        status = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        return subprocess.CompletedProcess([], status, *texts)


def run_bounded(script, *args, memory):
    """Run a script that may take so many MiB of memory more than the test runner; a refusal is one line of stderr."""
    gc.collect()
    own = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    run = Fork(script, *args)
    done = run.wait()
    assert done.returncode in (0, 1, 2), done.stderr
    assert len(done.stderr.splitlines()) == (done.returncode == 2), done.stderr
    assert run.memory < own + memory * 2**20
    return done


def read_all(stream):
    """What is in a pipe. Its end comes when nobody holds the other side any more, which takes workers a moment."""
    data, chunk = b"", None
    while chunk != b"":
        assert select.select([stream], [], [], 20)[0], "a worker goes on and holds the output open"
        chunk = os.read(stream, 65536)
        data += chunk
    os.close(stream)
    return data


def living(groups):
    """The processes of these process groups that live; none if the system cannot tell."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):  # it has just ended
            continue
        if int(group) in groups and state not in "ZX":
            found.append(path.parent.name)
    return found


def assert_gone(groups):
    deadline = time.monotonic() + 10
    while living(groups) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = living(groups)
    for pid in left:  # it would hold our output open, and so whoever reads that
        os.kill(int(pid), signal.SIGKILL)
    assert not left, "a worker is left"
