"""Runs: what a retrieval run lists, read from files of several forms or taken from memory, and written in TREC's.

    rankings    JSON or .pt: query path -> gallery paths, best first; an item may be [path, score], [path, score, box].
                Also under the key "knns", of the file or of each query, as the paper's code saves them
    run dict    JSON or .pt: query path -> {gallery path: score} (ranx, pytrec_eval, BEIR); by score, falling
    TREC        text: lines `query Q0 path rank score tag`; by score, as trec_eval does; white space percent-encoded
    CSV         text: query,path,score or query,path,rank under a header of these names
    matrices    .npz or .pt: `queries` and `gallery` (paths), `indices` int [Q, K] into the gallery, best first, -1
                where fewer were found (faiss); perhaps `scores` [Q, K], `boxes` [Q, K, 4]
    similarity  .npz or .pt: `queries`, `gallery`, `similarities` [Q, gallery], as the paper's code saves them

The scores of a list, or of `indices`, fall, or rise as distances do: its order counts, and equal scores are ties. The
others are sorted, the highest score first. Ties are put in the order of the gallery in the annotation file; but where
all scores of a list, of `indices` or of a query in TREC's form are equal, they say nothing, and the order of the list,
or of the ranks, stays. An image that is listed several times, once per object, keeps its first place.
"""

from __future__ import annotations

import csv
import math
import os
from collections import defaultdict
from contextlib import suppress
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Sequence
from urllib.parse import quote, unquote

import numpy as np

from soir.arrays import as_matrix, as_texts, load_npz, unpacked_limit
from soir.files import SoirError, kind_of_file, open_regular, read_json
from soir.findings import shorten
from soir.protocol import Ranking, Task
from soir.torch_files import check_repeats, load_values

FORMS = (
    "a run is query path -> gallery paths (best first, perhaps [path, score, box]) or {path: score}, in JSON or .pt; "
    "lines `query Q0 path rank score tag` of TREC, white space in paths as %20; CSV with the header query,path,score "
    "or query,path,rank; or queries, gallery and indices (or similarities) in .npz or .pt"
)


class Listed(NamedTuple):
    """What a run lists for a query: columns of one length, of which nothing has been checked."""

    paths: Sequence[str | None]  # None for what is no text: hashing an untrusted value can take forever
    scores: Any = None  # a list or an array; None: there are none
    boxes: Any = None
    is_ordered: bool = True  # best first; else by score, falling
    ranks: np.ndarray | None = None  # float64 [N], all different: what stands beside the scores in TREC's form
    is_padded: bool = False  # it may end in places where nothing was found
    odd: str | None = None  # the first item without a path, in words


class RunFile(NamedTuple):
    """A run as it is in its file."""

    queries: Iterable[Any]
    listed: Callable[[Any], Listed | None]  # one of these -> what is listed for it; None: no ranking


def open_run(path: str) -> RunFile:
    """Read a file of any form. Raises SoirError if the file cannot be read, or has none of the forms."""
    if path.lower().endswith(".npz"):
        content: Any = load_npz(path)
    elif path.lower().endswith((".pt", ".pth")):
        content = load_values(path, arrays=True)
    else:
        content = read_text(path)
    if isinstance(content, RunFile):
        return content
    run = as_run(content, path, unpacked_limit(os.path.getsize(path)))
    if run.queries is not content.get("queries"):  # it is lists, not matrices
        lists = map(_list_of, (content.get("knns") if isinstance(content.get("knns"), dict) else content).values())
        check_repeats(path, (len(value) for value in lists if value is not None))
    return run


def as_run(content: Any, place: str, limit: int) -> RunFile:
    """A run in any form, as a file or a caller has it. Raises SoirError if it has none of the forms.

    place  what messages call the run: the path of its file
    limit  bytes that its matrices may take
    """
    if not isinstance(content, dict):
        raise SoirError(f"{place} holds no rankings, but a {type(content).__name__}: {FORMS}")
    if isinstance(content.get("knns"), dict):
        content = content["knns"]
    elif "indices" in content or "similarities" in content:
        return open_matrices(place, content, limit)
    if any(isinstance(value, dict) and "is_query" in value for value in content.values()):
        raise SoirError(f"{place} is an annotation file: name it by --ann-file, and here a run; {FORMS}")
    if content and all(_list_of(value) is None for value in content.values()):
        raise SoirError(f"{place} holds no rankings: {FORMS}")
    return RunFile(content, lambda query: listed_of(content.get(query)))


def read_text(path: str) -> Any:
    """What a text file holds: JSON, a TREC run or a CSV run. Raises SoirError if it is none of these."""

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
    if len(first_line.split()) == 6 and b'"' not in first_line:
        return read_trec(path)
    kind = kind_of_file(path)
    if kind == "JSON":
        return read_json(path, object_pairs_hook=once)
    columns = {name.strip(' "\r').lower() for name in first_line.decode("utf-8", "replace").split(",")}
    if {"query", "path"} <= columns and columns & {"score", "rank"}:
        return read_csv(path)
    raise SoirError(f"{path} holds no run, it is {kind}: {FORMS}")


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
        odd = in_words(list(value)[paths.index(None)]) if None in paths else None
        return Listed(paths, list(value.values()), is_ordered=False, odd=odd)
    items = value.tolist() if isinstance(value, np.ndarray) else value
    kinds = set(map(type, items))
    if not kinds or kinds == {str}:
        return Listed(items)
    is_regular = kinds <= {list, tuple} and set(map(len, items)) in ({2}, {3})
    columns: list[Any] = list(zip(*(items if is_regular else map(_row_of, items))))
    if set(map(type, columns[0])) == {str}:
        return Listed(*columns)
    columns[0] = [path if isinstance(path, str) else None for path in columns[0]]
    return Listed(*columns)._replace(odd=in_words(items[columns[0].index(None)]))


def in_words(item: Any) -> str:
    """What an item of a ranking is, where a path or a score is expected."""
    if isinstance(item, dict):
        return f"a dict with {', '.join(map(shorten, list(item)[:4])) or 'no keys'}"
    if isinstance(item, (list, tuple)):
        first = item[0] if item else None
        kind = f"a {type(first).__name__}" if isinstance(first, (list, tuple, dict)) else in_words(first)
        return f"a list that begins with {kind}" if item else "an empty list"
    kind = type(item).__name__
    return f"{shorten(item)} ({kind})" if isinstance(item, (str, int, float)) else f"a {kind}"


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
            if matrix.shape == shape and _is_over_queries(matrix):
                raise ValueError("its `indices` were sorted over the queries: sort over the gallery, along each row")
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
        indices = matrix[row][kept].tolist()
        own_scores, own_boxes = (None if array is None else array[row][kept] for array in (scores, boxes))
        is_padded = _is_padded(indices, len(gallery))
        return Listed([gallery[index] for index in indices], own_scores, own_boxes, is_padded=is_padded)

    return RunFile(queries, listed)


def _matrix(content: dict[str, Any], name: str, dimensions: int, limit: int) -> np.ndarray:
    array = as_matrix(content[name], dimensions, limit)
    if array is None:
        raise ValueError(f"expected numbers in {dimensions} dimensions in `{name}`")
    return array


def _is_sorted(similarities: np.ndarray) -> bool:
    """Whether all rows fall, as in the result of a search. False for tiny matrices, whose rows may fall by chance, and
    where all numbers of each row are equal."""
    is_large = similarities.shape[0] > 1 and similarities.shape[1] > 3
    falls = is_large and (similarities[:, 1:] <= similarities[:, :-1]).all()
    return bool(falls and (similarities[:, -1] < similarities[:, 0]).any())


def _is_over_queries(indices: np.ndarray) -> bool:
    """Whether each column has every number from 0 to the number of rows, as an argsort along the wrong axis. False for
    tiny matrices, which may look so by chance."""
    rows, columns = indices.shape
    if rows < 4 or columns <= rows or indices.max() != rows - 1:
        return False
    return bool((np.sort(indices, axis=0) == np.arange(rows)[:, None]).all())


def _is_padded(indices: list[int], count: int) -> bool:
    """Whether a row of indices ends as if -1 had become the last of `count` images, or the first: twice the same one of
    these, or three times any."""
    return len(set(indices[-3:])) == 1 < len(indices) - 1 or (
        len(set(indices[-2:])) == 1 < len(indices) and indices[-1] in (0, count - 1)
    )


class Line(NamedTuple):
    """A line of a run in text."""

    query: str
    path: str
    score: float | None
    rank: float  # NaN for none


def read_trec(path: str) -> RunFile:
    """Read a TREC run. Raises SoirError if it cannot be read, or a line is not `query Q0 path rank score tag`."""
    lines = []
    for number, line in enumerate(_read_lines(path), start=1):
        fields = line.split()
        if fields:
            try:
                query, _, name, rank, score, _ = fields
                lines.append(Line(decode_path(query), decode_path(name), float(score), _as_number(rank)))
            except ValueError:
                raise SoirError(f"{path}, line {number}: expected `query Q0 path rank score tag`; {FORMS}") from None
    return join_lines(lines)


def read_csv(path: str) -> RunFile:
    """Read a run in CSV. Raises SoirError if it cannot be read, or a line lacks a query, a path, or a score or rank."""
    rows = csv.DictReader(_read_lines(path), skipinitialspace=True)
    rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
    lines = []
    try:
        for row in rows:
            score = row.get("score")
            rank = float(row["rank"]) if score is None else _as_number(row.get("rank"))
            if score is None and not rank >= 0:
                raise ValueError
            lines.append(Line(row["query"] + "", row["path"] + "", None if score is None else float(score), rank))
    except (csv.Error, KeyError, TypeError, ValueError):
        line = "query,path,score (a number, the highest best) or query,path,rank (from 1)"
        raise SoirError(f"{path}, line {rows.line_num}: expected {line}; {FORMS}") from None
    return join_lines(lines)


def join_lines(lines: list[Line]) -> RunFile:
    """The run of lines in any order. An image that a query lists several times keeps its best score, or rank."""
    best: defaultdict[str, dict[str, Line]] = defaultdict(dict)
    for line in lines:
        other = best[line.query].get(line.path)
        if other is None or (line.score or 0, -line.rank) > (other.score or 0, -other.rank):
            best[line.query][line.path] = line

    def listed(query: str) -> Listed:
        own = list(best[query].values())
        ranks = np.array([line.rank for line in own], dtype=np.float64)
        scores = None if any(line.score is None for line in own) else [line.score for line in own]
        has_ranks = len(set(ranks.tolist())) == len(own) and not np.isnan(ranks).any()
        if scores is None or len(set(scores)) == 1 and has_ranks:  # nothing but ranks
            return Listed([line.path for line in own], -ranks, is_ordered=False)
        return Listed([line.path for line in own], scores, is_ordered=False, ranks=ranks if has_ranks else None)

    return RunFile(list(best), listed)


def _read_lines(path: str) -> list[str]:
    try:
        with open_regular(path) as file:
            return file.read().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise SoirError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise SoirError(f"{path} holds no run, for it is no text in UTF-8: {FORMS}") from error


def _as_number(text: str | None) -> float:
    with suppress(TypeError, ValueError):
        return float(text)  # type: ignore[arg-type]
    return math.nan


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
