"""Runs: read the rankings of a retrieval run from files of several forms.

    rankings    JSON or .pt: query path -> gallery paths, best first; an item may be [path, score], [path, score, box].
                Also under the key "knns", of the file or of each query, as the paper's code saves them
    run dict    JSON or .pt: query path -> {gallery path: score} (ranx, pytrec_eval, BEIR); by score, falling
    TREC        text: lines `query Q0 path rank score tag`; by score, as trec_eval does; white space percent-encoded
    matrices    .npz or .pt: `queries` and `gallery` (paths), `indices` int [Q, K] into the gallery, best first, -1
                where fewer were found (faiss); perhaps `scores` [Q, K], `boxes` [Q, K, 4]
    similarity  .npz or .pt: `queries`, `gallery`, `similarities` [Q, gallery], as the paper's code saves them

The scores of a list, or of `indices`, fall, or rise as distances do: its order counts, and equal scores are ties. The
others are sorted, the highest score first. Ties are put in the order of the gallery in the annotation file. An image
that is listed several times, once per object, keeps its first place.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from itertools import chain, repeat
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Sequence
from urllib.parse import quote, unquote

import numpy as np

from soir import geometry
from soir.arrays import as_matrix, as_texts, load_npz, unpacked_limit
from soir.files import SoirError, open_regular, read_json
from soir.findings import Findings, progress_bar, shorten
from soir.protocol import Ranking, Task
from soir.torch_files import check_repeats, load_values

FORMS = (
    "a run is query path -> gallery paths (best first, perhaps [path, score, box]) or {path: score}, in JSON or .pt; "
    "lines `query Q0 path rank score tag` of TREC, white space in paths as %20; or queries, gallery and indices (or "
    "similarities) in .npz or .pt"
)

# In place of a position in the gallery: UNKNOWN for a path that is no gallery image, OTHER for a path that --set or
# --split leaves out.
UNKNOWN, OTHER = -1, -2

# Reasons, as they are listed.
ODD_PATH = "query that ranks a path that is no gallery image here, counted as wrong"
ODD_SCORE = "query with a score that is no finite number, its image counted as not retrieved"
ODD_BOX = "query with a box that is not (x1, y1, x2, y2), ignored"
RISING = "run whose scores are 1, 2, 3, ...: if they are ranks, it is read upside down, for the highest score is best"
IN_SHARES = "run whose boxes lie within 0..1: if they are shares of the image, its IoU means nothing"
ODD_ORDER = "query whose scores neither fall nor rise, taken in the order of its list"


class Listed(NamedTuple):
    """What a file lists for a query: columns of one length, of which nothing has been checked."""

    paths: Sequence[str | None]  # None for what is no text: hashing an untrusted value can take forever
    scores: Any = None  # a list or an array; None: there are none
    boxes: Any = None
    is_ordered: bool = True  # best first; else by score, falling


class RunFile(NamedTuple):
    """A run as it is in its file."""

    queries: Iterable[Any]
    listed: Callable[[str], Listed | None]  # query -> what is listed for it; None: no ranking


def read_run(path: str, task: Task, findings: Findings) -> list[Ranking]:
    """The ranking of each query of a task, in their order, from a file.

    Raises SoirError if the file is in none of the forms, or has a ranking for none of the queries.
    """
    return rank_as_listed(open_run(path), path, task, findings)


def rank_as_listed(run: RunFile, place: str, task: Task, findings: Findings) -> list[Ranking]:
    """The ranking of each query of a task, in their order. Raises SoirError if a run has one for none of the queries.

    place  what messages call the run: the path of its file
    """
    asked = set(task.queries)
    names = list(run.queries)
    if not any(name in asked for name in names):
        found = f"paths like {shorten(names[0])}" if names else "nothing"
        raise SoirError(
            f"{place} has a ranking for none of the queries: expected paths like {task.queries[0]}, found {found}; "
            + FORMS
        )
    for name in names:
        if name not in asked and name not in task.others:
            findings.skip("ranking of a path that is no query here", shorten(name))
    numbers: dict[str | None, int] = dict.fromkeys(task.others, OTHER)
    numbers.update((name, position) for position, name in enumerate(task.gallery))
    allowed = [_allowed_positions(task, kind) for kind in range(len(task.candidates))]
    rankings, rising = [], 0
    for query, kind in progress_bar("reading", list(zip(task.queries, task.kinds))):
        listed = run.listed(query)
        if listed is None:
            findings.skip("query without a ranking, scored 0", query)
            listed = Listed([])
        rising += not listed.is_ordered and counts_up(listed.scores)
        rankings.append(read_ranking(query, listed, numbers, allowed[kind], findings))
    if rising > len(rankings) / 2:
        findings.notice(RISING, place)
    report_shares(place, (ranking.boxes for ranking in rankings if ranking.boxes is not None), findings)
    return rankings


def _allowed_positions(task: Task, kind: int) -> np.ndarray:
    """bool [gallery + 2]: by position, whether an image stays in a ranking; at the end those of OTHER and UNKNOWN."""
    allowed = np.zeros(len(task.gallery) + 2, dtype=bool)
    allowed[task.candidates[kind]] = True
    allowed[UNKNOWN] = True
    return allowed


# ------------------------------------------------------------------------------------------------------ a file's form


def open_run(path: str) -> RunFile:
    """Read a file of any form. Raises SoirError if the file cannot be read, or has none of the forms."""
    if path.lower().endswith(".npz"):
        content: Any = load_npz(path)
    elif path.lower().endswith((".pt", ".pth")):
        content = load_values(path, arrays=True)
    else:
        content = read_text(path)
    run = as_run(content, path, unpacked_limit(os.path.getsize(path)))
    if isinstance(content, dict) and not is_in_matrices(content):
        lists = map(_list_of, (content["knns"] if isinstance(content.get("knns"), dict) else content).values())
        check_repeats(path, (len(value) for value in lists if value is not None))
    return run


def as_run(content: Any, place: str, limit: int) -> RunFile:
    """A run in any form, as a file or a caller has it. Raises SoirError if it has none of the forms.

    place  what messages call the run: the path of its file
    limit  bytes that its matrices may take
    """
    if not isinstance(content, dict):
        raise SoirError(f"{place} holds no rankings, but a {type(content).__name__}: {FORMS}")
    if is_in_matrices(content):
        return open_matrices(place, content, limit)
    if isinstance(content.get("knns"), dict):
        content = content["knns"]
    if any(isinstance(value, dict) and "is_query" in value for value in content.values()):
        raise SoirError(f"{place} is an annotation file: name it by --ann-file, and here a run; {FORMS}")
    if content and all(_list_of(value) is None for value in content.values()):
        raise SoirError(f"{place} holds no rankings: {FORMS}")
    return RunFile(content, lambda query: listed_of(content.get(query)))


def is_in_matrices(content: dict[Any, Any]) -> bool:
    """Whether a run is in matrices; the paper's code saves rankings beside these."""
    return not isinstance(content.get("knns"), dict) and ("indices" in content or "similarities" in content)


def read_text(path: str) -> Any:
    """What a text file holds: JSON, or a TREC run. Raises SoirError if it is neither."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """An object of JSON. Of a key that stands twice, json would take the last value."""
        content = dict(pairs)
        if len(content) < len(pairs):
            seen: set[str] = set()
            repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise SoirError(f"{path} holds {shorten(repeated)} twice in one object: which one is meant?")
        return content

    try:
        with open_regular(path) as file:
            start = file.read(2**16)
    except FileNotFoundError:
        raise SoirError(f"{path} is missing: {FORMS}") from None
    except OSError as error:
        raise SoirError(f"cannot read {path}: {error.strerror or error}") from error
    first_line = start[3 * start.startswith(b"\xef\xbb\xbf") :].lstrip().partition(b"\n")[0]
    if first_line[:1] in (b"{", b"["):
        return read_json(path, object_pairs_hook=once)
    if len(first_line.split()) == 6:
        return read_trec(path)
    raise SoirError(f"{path} holds no run: {FORMS}")


def _list_of(value: Any) -> Any:
    """The list, dict or array of a query, which may be below "knns"; None if there is none."""
    if isinstance(value, dict) and "knns" in value:
        value = value["knns"]
    if isinstance(value, np.ndarray):
        return value if value.ndim == 1 and value.dtype.kind == "U" else None
    return value if isinstance(value, (list, tuple, dict)) else None


def listed_of(value: Any) -> Listed | None:
    """What a file of rankings, or a run dict, holds for a query; None if that is no ranking."""
    value = _list_of(value)
    if value is None:
        return None
    if isinstance(value, dict):
        paths = [path if isinstance(path, str) else None for path in value]
        return Listed(paths, list(value.values()), is_ordered=False)
    items = value.tolist() if isinstance(value, np.ndarray) else value
    kinds = set(map(type, items))
    if not kinds or kinds == {str}:
        return Listed(items)
    is_regular = kinds <= {list, tuple} and set(map(len, items)) in ({2}, {3})
    columns: list[Any] = list(zip(*(items if is_regular else map(_row_of, items))))
    if set(map(type, columns[0])) != {str}:
        columns[0] = [path if isinstance(path, str) else None for path in columns[0]]
    return Listed(*columns)


def _row_of(item: Any) -> tuple[Any, Any, Any]:
    """(path, score, box) of an item that may be anything: path, [path, score] or [path, score, box]."""
    if isinstance(item, (list, tuple)):
        path, score, box = (*item[:3], None, None, None)[:3]
        return path, score, box
    return item, None, None


def open_matrices(place: str, content: dict[str, Any], limit: int) -> RunFile:
    """A run in matrices. Raises SoirError if their shapes or values do not fit, or a query is there twice."""
    name = "indices" if "indices" in content else "similarities"
    scores = boxes = None
    try:
        queries, gallery = as_texts(content.get("queries"), limit), as_texts(content.get("gallery"), limit)
        if queries is None or gallery is None:
            raise ValueError(f"expected `queries` and `gallery`, lists of paths, beside `{name}`")
        matrix = _matrix(content, name, 2, limit)
        shape = (len(queries), len(gallery) if name == "similarities" else matrix.shape[1])
        if name == "indices":
            if matrix.dtype.kind not in "iu" or matrix.size and not -1 <= matrix.min() <= matrix.max() < len(gallery):
                raise ValueError(f"expected whole numbers from -1 to {len(gallery) - 1} in `indices`")
            scores = None if content.get("scores") is None else _matrix(content, "scores", 2, limit)
            boxes = None if content.get("boxes") is None else _matrix(content, "boxes", 3, limit)
        for array, expected in ((matrix, shape), (scores, shape), (boxes, (*shape, 4))):
            if array is not None and array.shape != expected:
                raise ValueError(f"expected arrays of {expected}, found {array.shape}")
        if name == "similarities" and _is_sorted(matrix):
            raise ValueError(
                "its `similarities` are sorted, so they do not tell which images they are of: save its `knns` too"
            )
    except ValueError as error:
        raise SoirError(f"{place} holds no run: {error}") from error
    rows: dict[str, int] = {}
    for number, query in enumerate(queries):
        if query in rows:
            raise SoirError(f"{place} holds no run: the query {shorten(query)} is in `queries` twice")
        rows[query] = number

    def listed(query: str) -> Listed | None:
        row = rows.get(query)
        if row is None:
            return None
        if name == "similarities":
            return Listed(gallery, matrix[row], is_ordered=False)
        kept = np.flatnonzero(matrix[row] >= 0)
        paths = [gallery[index] for index in matrix[row][kept].tolist()]
        columns: list[Any] = [None if array is None else array[row][kept] for array in (scores, boxes)]
        return Listed(paths, *columns)

    return RunFile(queries, listed)


def _matrix(content: dict[str, Any], name: str, dimensions: int, limit: int) -> np.ndarray:
    array = as_matrix(content[name], dimensions, limit)
    if array is None:
        raise ValueError(f"expected numbers in {dimensions} dimensions in `{name}`")
    return array


def _is_sorted(similarities: np.ndarray) -> bool:
    """Whether all rows fall, as in the result of a search. False for tiny matrices, whose rows may fall by chance."""
    is_large = similarities.shape[0] > 1 and similarities.shape[1] > 3
    return is_large and bool((similarities[:, 1:] <= similarities[:, :-1]).all())


# ----------------------------------------------------------------------------------------------------------------- TREC


def read_trec(path: str) -> dict[str, dict[str, float]]:
    """Read a TREC run: query -> {path: score}; a path that is listed several times keeps its best score.

    Raises SoirError if the file cannot be read, or a line is not `query Q0 path rank score tag`.
    """
    run: dict[str, dict[str, float]] = {}
    try:
        with open_regular(path) as file:
            lines = file.read().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise SoirError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise SoirError(f"{path} holds no run, for it is no text in UTF-8: {FORMS}") from error
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            query, _, name, _, text, _ = fields
            score = float(text)
        except ValueError:
            raise SoirError(f"{path}, line {number}: expected `query Q0 path rank score tag`; {FORMS}") from None
        listed = run.setdefault(decode_path(query), {})
        name = decode_path(name)
        listed[name] = max(score, listed.get(name, score))
    return run


def decode_path(text: str) -> str:
    return unquote(text, errors="surrogateescape") if "%" in text else text


def encode_path(path: str) -> str:
    """A path as one word: white space, what cannot be printed, and % itself become %20 and so on."""
    if path.isascii() and path.isprintable() and " " not in path and "%" not in path:
        return path
    return "".join(c if c.isprintable() and not c.isspace() and c != "%" else _quote(c) for c in path)


def _quote(character: str) -> str:
    return quote(character, safe="", errors="surrogateescape" if "\udc80" <= character <= "\udcff" else "replace")


def trec_run(task: Task, rankings: Iterable[tuple[int, Ranking]]) -> Iterator[bytes]:
    """Yield a run in TREC's form, a query at a time. The scores fall strictly, so that everybody has the same order.

    rankings  (number of the query, its ranking)
    """
    names = [encode_path(path) for path in task.gallery]
    for number, ranking in rankings:
        query, count = encode_path(task.queries[number]), len(ranking.positions)
        lines = []
        for rank, position in enumerate(ranking.positions.tolist(), start=1):
            name = names[position] if position >= 0 else f"not-in-the-gallery-{rank}"
            lines.append(f"{query} Q0 {name} {rank} {count - rank + 1} soir\n")
        yield "".join(lines).encode()


def trec_qrels(task: Task) -> Iterator[bytes]:
    """Yield what is relevant in TREC's form, `query 0 path 1`, a query at a time."""
    names = [encode_path(path) for path in task.gallery]
    for query, relevant in zip(task.queries, task.relevant):
        word = encode_path(query)
        yield "".join(f"{word} 0 {names[position]} 1\n" for position in relevant.tolist()).encode()


# ------------------------------------------------------------------------------------------------------------ a ranking


def read_ranking(
    query: str, listed: Listed, numbers: dict[str | None, int], allowed: np.ndarray, findings: Findings
) -> Ranking:
    """Check what is listed for a query, take out images that the query does not compete over, and order ties.

    numbers  path -> position in the gallery, or OTHER
    allowed  bool [gallery + 2], by position: whether an image stays in the ranking, see `_allowed_positions`
    """
    count = len(listed.paths)
    positions = np.fromiter(map(numbers.get, listed.paths, repeat(UNKNOWN)), dtype=np.int64, count=count)
    kept = allowed[positions]

    def report(reason: str, at: np.ndarray) -> None:
        """List one place per query: of a million paths, all may be unknown."""
        if at.any():
            first, number = int(at.argmax()), np.count_nonzero(at)
            more = f" and {number - 1:,} more" if number > 1 else ""
            findings.skip(reason, f"{query}: {shorten(listed.paths[first])}{more}")

    report(ODD_PATH, positions == UNKNOWN)
    scores = boxes = None
    if listed.scores is not None:
        scores, is_odd = as_scores(listed.scores)
        if not listed.is_ordered:
            is_odd |= np.isnan(scores)  # without an order, an image without a score has no place
        report(ODD_SCORE, is_odd & kept)
        kept &= ~is_odd
    if listed.boxes is not None:
        boxes, is_odd = as_boxes(listed.boxes)
        report(ODD_BOX, is_odd & kept)
    order = np.flatnonzero(kept)
    if scores is not None and not listed.is_ordered:
        order = order[np.lexsort((positions[order], -scores[order]))]
    order = order[is_first(positions[order])]
    if scores is not None and listed.is_ordered:
        if not is_monotone(scores[order]):
            findings.skip(ODD_ORDER, query)
        order = order[order_ties(scores[order], positions[order])]
    if boxes is not None:
        boxes = None if np.isnan(boxes[order]).all() else boxes[order]
    return Ranking(positions[order], None if scores is None else scores[order], boxes)


def counts_up(scores: Any) -> bool:
    """Whether scores, as a file lists them, are 1, 2, 3, ..., or 0, 1, 2, ..., as ranks are."""
    return (
        isinstance(scores, list)
        and len(scores) > 1
        and any(scores == list(range(first, first + len(scores))) for first in (0, 1))
    )


def as_scores(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [N], NaN where there is no usable score; bool [N], whether what is there is no finite number).

    values  an array, or a list of numbers and None
    """
    if set(map(type, values)) <= {int, float}:  # nearly always; this takes a fifth of the time
        with suppress(OverflowError):  # an integer beyond any float
            values = np.array(values, dtype=np.float64)
    if not isinstance(values, np.ndarray):
        is_number = [type(value) in (int, float) and -MAX_FLOAT <= value <= MAX_FLOAT for value in values]
        is_odd = np.array([not is_sound and v is not None for is_sound, v in zip(is_number, values)], dtype=bool)
        sound = (value if is_sound else math.nan for is_sound, value in zip(is_number, values))
        return np.fromiter(sound, np.float64, len(values)), is_odd
    scores = values.astype(np.float64)
    is_odd = ~np.asarray(np.isfinite(scores), dtype=bool)
    scores[is_odd] = np.nan
    return scores, is_odd


MAX_FLOAT = float(np.finfo(np.float64).max)


def as_boxes(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [N, 4], NaN where there is no usable box; bool [N], whether what is there is not (x1, y1, x2, y2)).

    values  an array, in which NaN is no box, or a list of boxes and None
    """
    if not isinstance(values, np.ndarray):
        is_sound = np.fromiter(map(geometry.is_box, values), bool, len(values))
        is_odd = ~is_sound & np.array([value is not None for value in values], dtype=bool)
        no_box = (math.nan,) * 4
        sound = chain.from_iterable(value if ok else no_box for value, ok in zip(values, is_sound.tolist()))
        return np.fromiter(sound, np.float64, 4 * len(values)).reshape(-1, 4), is_odd
    boxes = values.astype(np.float64)
    with np.errstate(invalid="ignore"):
        is_sound = np.asarray((np.abs(boxes) <= geometry.MAX_COORDINATE).all(axis=1))
        is_sound &= (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    is_odd = np.asarray(~is_sound & ~np.isnan(boxes).all(axis=1))
    boxes[~is_sound] = np.nan
    return boxes, is_odd


def report_shares(place: str, parts: Iterable[np.ndarray], findings: Findings) -> None:
    """Add a run to the findings if most of its boxes are shares of the image.

    parts  its boxes, float64 [N, 4] each; those that are NaN do not count
    """
    shares = known = 0
    for boxes in parts:
        known += int(np.count_nonzero(~np.isnan(boxes[:, 0])))
        shares += int(np.count_nonzero(((boxes >= 0) & (boxes <= 1)).all(axis=1)))
    if shares > known / 2:
        findings.notice(
            "run whose boxes lie within 0..1: if they are shares of the image, its IoU means nothing", place
        )


def is_first(positions: np.ndarray) -> np.ndarray:
    """bool [N]: whether a position stands here for the first time. UNKNOWN always does: it may be any path."""
    first = np.zeros(len(positions), dtype=bool)
    first[np.unique(positions, return_index=True)[1]] = True
    return np.asarray(first | (positions == UNKNOWN))


def is_monotone(scores: np.ndarray) -> bool:
    """Whether the scores that are given fall, or rise, all the way."""
    steps = np.diff(scores[~np.isnan(scores)])
    return not ((steps > 0).any() and (steps < 0).any())


def order_ties(scores: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """int64 [N]: the order in which each stretch of equal scores is in gallery order. NaN is equal to nothing."""
    is_new = np.ones(len(scores), dtype=bool)
    is_new[1:] = scores[1:] != scores[:-1]
    if is_new.all():
        return np.arange(len(scores))
    return np.asarray(np.lexsort((positions, np.cumsum(is_new))))
