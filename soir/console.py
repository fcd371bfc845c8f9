"""How a script talks and ends: its common options and its exit status."""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import sys
import threading
import warnings
from contextlib import contextmanager, suppress
from typing import Any, Callable, Iterator, NoReturn

from soir.files import SoirError, no_garbage_collection
from soir.findings import printable, show_progress

VERSION = "1.0.0"


@contextmanager
def exit_status() -> Iterator[None]:
    """Around main(), as a decorator: bad input, Ctrl-C and SIGTERM end in one line and an exit status.

    Exit status: 2 the run could not be done, 130 it was interrupted, 141 the reader of its output has gone.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # a shell closed it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # the name of a file may hold bytes that the terminal's code lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        with _interrupt_on_sigterm(), warnings.catch_warnings(), no_garbage_collection(), show_progress():
            warnings.simplefilter("ignore")  # of Pillow and NumPy, on what is odd in a file
            try:
                yield
            finally:
                sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output, `head` perhaps, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
    except (KeyboardInterrupt, MemoryError, SoirError, OSError) as error:  # OSError: an input that vanished, say
        _end_in_one_line(error)


@contextmanager
def _interrupt_on_sigterm() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does."""

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # no other can have a handler
        yield
        return
    handler = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _end_in_one_line(error: BaseException) -> NoReturn:
    if isinstance(error, KeyboardInterrupt):
        message, status = "interrupted", 130
    elif isinstance(error, MemoryError):
        message, status = "error: out of memory", 2
    else:
        message, status = f"error: {printable(str(error))}", 2
    with suppress(OSError):  # a full disk may be where the message would go
        print(message, file=sys.stderr, flush=True)
    sys.exit(status)


class _Parser(argparse.ArgumentParser):
    """Tells for a mistyped option which one may have been meant."""

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """As argparse's, but the name of a file or folder may not be empty: it is a variable that nobody has set."""
        parsed = super().parse_args(*args, **kwargs)
        for action in self._actions:
            if str(action.metavar).startswith(("FILE", "DIR", "ANN_FILE")) and getattr(parsed, action.dest, None) == "":
                self.error(f"{'/'.join(action.option_strings) or action.metavar} is empty: name a file or folder")
        return parsed

    def error(self, message: str) -> NoReturn:
        import difflib  # here, not above: --help has no need of it

        match = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        options = [option for action in self._actions for option in action.option_strings]
        close = difflib.get_close_matches(match.group(1), options, n=1) if match else []
        super().error(f"{message} (did you mean {close[0]}?)" if close else message)


def make_parser(description: str, statuses: str) -> argparse.ArgumentParser:
    """A parser of the command line with what every script has.

    statuses  what its exit statuses mean
    """
    parser = _Parser(description=description, epilog=f"Exit status: {statuses}.")
    parser.add_argument("--version", action="version", version=f"VoxDet-SoIR tools {VERSION}")
    return parser


class _Once(argparse.Action):
    """Stores a value that two arguments may give, but not two different ones."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if getattr(namespace, f"{self.dest}_given", values) != values:
            parser.error(f"two annotation files are given, {getattr(namespace, self.dest)} and {values}")
        setattr(namespace, self.dest, values)
        setattr(namespace, f"{self.dest}_given", values)


def instance_id(text: str) -> int:
    """A type for argparse: an instance id."""
    if not re.fullmatch("[0-9]{1,19}", text):
        raise argparse.ArgumentTypeError(f"expected an instance id, a number from 0 up, found {text}")
    return int(text)


def add_input_options(parser: argparse.ArgumentParser) -> Callable[..., Any]:
    """The group "input" of the scripts that read an annotation file. Returns what adds an option to it."""
    add = parser.add_argument_group("input").add_argument
    text = "annotation file, of any form (default: anns.pt)"
    once: dict[str, Any] = {"action": _Once, "dest": "ann_file"}
    add(nargs="?", default=argparse.SUPPRESS, metavar="ANN_FILE", help=text, **once)
    add("--ann-file", default="anns.pt", metavar="FILE", help="the same as ANN_FILE", **once)
    add("--base-path", metavar="DIR", help="folder that relative image paths start at (default: the current folder)")
    return add


def add_creation_options(parser: argparse.ArgumentParser) -> Callable[..., Any]:
    """The groups "output" and "run" of the scripts that read images. Returns what adds an option to "output"."""
    add_output = parser.add_argument_group("output").add_argument
    text = "write image paths relative to the root, so that the data can move: open os.path.join(root, path)"
    add_output("--relative-paths", action="store_true", help=text)
    add = parser.add_argument_group("run").add_argument
    text = "number of processes (default: the number of CPUs that this process may use)"
    add("--workers", type=positive, default=usable_cpus(), metavar="N", help=text)
    add("--strict", action="store_true", help="exit with 1 if anything was skipped or noticed")
    return add_output


def absolute_base(base_path: str | None) -> str | None:
    """The argument of --base-path as `full_path` takes it, absolute. Raises SoirError if it is no folder."""
    if base_path is not None and not os.path.isdir(base_path):
        raise SoirError(f"--base-path {base_path} is no folder: name the folder that the image paths start at")
    return base_path and os.path.abspath(base_path)


def usable_cpus() -> int:
    """How many CPUs this process may use. In a Slurm job or a container, that is its share, not the whole machine."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota_file, period_file in (
        ("/sys/fs/cgroup/cpu.max", None),  # "<quota> <period>"
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    ):
        with suppress(OSError, ValueError):
            text = open(quota_file).read() + (f" {open(period_file).read()}" if period_file else "")  # noqa: SIM115
            quota, period = map(int, text.split())  # no quota is "max", or -1
            if quota > 0 and period > 0:
                cpus = min(cpus, max(1, quota // period))
    return cpus


def positive(text: str) -> int:
    """A type for argparse: a count from 1 to 999,999."""
    if not re.fullmatch("[0-9]{1,6}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 999,999, found {text}")
    return int(text)


def png_name(text: str) -> str:
    """A type for argparse: the name of a picture to write."""
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"expected a name that ends in .png, found {text}")
    return text
