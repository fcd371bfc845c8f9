"""What a run found wrong with its input, and how texts and tables get to the terminal."""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Iterable, Iterator


def shorten(value: Any) -> str:
    """A value of a file as text for a message, at most 80 characters; of a container, only its type.

    repr() of nested lists can take forever, and all memory.
    """
    if not isinstance(value, (str, int, float)):
        return f"({type(value).__name__})"
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


class Findings:
    """What a run found wrong with its input: for each reason, the places where it was found.

    skipped  what was left out; of a run: its faults, which decide the exit status
    noticed  what is worth knowing, and no fault
    """

    def __init__(self) -> None:
        self.skipped: defaultdict[str, list[str]] = defaultdict(list)
        self.noticed: defaultdict[str, list[str]] = defaultdict(list)

    def skip(self, reason: str, place: str, detail: str = "") -> None:
        """Add a place. A detail is kept only for the first place of each reason."""
        places = self.skipped[reason]
        places.append(f"{place} ({detail})" if detail and not places else place)

    def notice(self, reason: str, place: str) -> None:
        self.noticed[reason].append(place)

    def __bool__(self) -> bool:
        return bool(self.skipped or self.noticed)


def print_findings(findings: Findings, skipped: str = "skipped", noticed: str = "noticed") -> None:
    """Print two lists with these titles: one line per reason, with the count and the first three places."""
    for title, reasons in ((skipped, findings.skipped), (noticed, findings.noticed)):
        if reasons:
            print(f"\n{title}:")
            width = max(len(f"{len(places):,}") for places in reasons.values())
            for reason, places in sorted(reasons.items()):
                more = ", ..." if len(places) > 3 else ""
                print(f"  {len(places):>{width},} x {reason}: {', '.join(map(printable, places[:3]))}{more}")


def counted(number: int, noun: str) -> str:
    """A number of things: 1 error, 2 errors, 3 entries."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun[:-1]}ies" if noun.endswith("ry") else f"{number:,} {noun}s"


def in_bytes(number: int) -> str:
    """A number of bytes with a unit: 47 kB, 13.1 MB."""
    return f"{number / 1e3:,.0f} kB" if number < 1e6 else f"{number / 1e6:,.1f} MB"


def print_table(rows: list[list[str]]) -> None:
    """Print rows of cells, the first row being the titles; the first column to the left, the others to the right.

    A row of one cell goes over all columns.
    """
    widths = [max(map(len, column)) for column in zip(*(row for row in rows if len(row) > 1))]
    for row in rows:
        if len(row) == 1:
            print(row[0])
            continue
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        print("  ".join(cells).rstrip())


_is_shown: ContextVar[bool] = ContextVar("progress bars are shown", default=False)


@contextmanager
def show_progress(is_wanted: bool = True) -> Iterator[None]:
    """Show progress bars in the block if standard error is a terminal. Scripts do; functions alone are silent."""
    token = _is_shown.set(is_wanted)
    try:
        yield
    finally:
        _is_shown.reset(token)


def progress_bar(title: str, items: Iterable[Any] | None = None, total: int | None = None) -> Any:
    """A progress bar of tqdm where `show_progress` is on: iterable like `items`, or to be moved on with update()."""
    from tqdm import tqdm  # here, not above: it takes 30 ms, and --help has no need of it

    class Bar(tqdm):  # type: ignore[misc]  # it has no types
        monitor_interval = 0  # no thread, which would stay behind; with miniters=1 none is needed
        disable = True  # for the destructor of older ones, if an interrupt came before __init__ could set it

    return Bar(items, desc=title, total=total, disable=None if _is_shown.get() else True, miniters=1)


def printable(text: str) -> str:
    """Text of a file as a terminal can take it: a name with a line break or an escape code must not forge a line."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
