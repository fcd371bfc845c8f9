"""The protocol: which images a query competes over, which of them are relevant, and where a run ranks these.

    from soir_protocol import make_task, find_in_rankings, gather_hits

A gallery image is relevant to a query when it shows the query's instance (of a query that shows several: any of them)
and is of the same set; it counts once, however many boxes it has. A query competes over the gallery of its own set:
what a run ranks of other sets is taken out, neither right nor wrong.

OWID splits its instances. An image that shows any val instance is a val image, and keeps the annotations of its val
instances only, so nobody knows which train instances it shows. To a train query it is therefore what revisitop calls
junk: taken out of the ranking, neither right nor wrong. A val query competes over all images of OWID.
"""

from __future__ import annotations

import math
from typing import Any, Iterable, Iterator, NamedTuple

import numpy as np

from soir_common import Annotations, Box, Entry, boxes_of_instance, instances_of, pixel_box, set_of
from soir_forms import SizeFinder

# The K of the metrics at K.
RANKS = (1, 5, 10, 50, 100)

# The sets whose val images keep the annotations of val instances only.
SETS_WITH_JUNK = ("OWID",)


class Task(NamedTuple):
    """What is asked of a run. Positions are those in `gallery`, which has the order of the annotation file."""

    annotations: Annotations
    queries: list[str]
    gallery: list[str]
    candidates: list[np.ndarray]  # int64 [images], ascending: the positions that queries of one kind compete over
    kinds: np.ndarray  # int64 [queries]: which of `candidates`
    relevant: list[np.ndarray]  # of each query, int64 [images], ascending: the positions of its relevant images
    instances: np.ndarray  # int64 [queries]: a number for the (set, instance) of each
    others: frozenset[str]  # the other paths of the annotation file, which --set and --split leave out
    find_size: SizeFinder  # says how large an image is; asked only for boxes that are the whole image


class Ranking(NamedTuple):
    """What a run retrieved for a query, best first."""

    positions: np.ndarray  # int64 [N], in the gallery, each once; -1 for a path that is not there
    scores: np.ndarray | None  # float64 [N]; NaN where there is none
    boxes: np.ndarray | None  # float64 [N, 4], (x1, y1, x2, y2) in pixels; NaN where there is none


class Found(NamedTuple):
    """The relevant images that a run retrieved for some queries: query by query, and of each by rank."""

    queries: np.ndarray  # int64 [Q]: numbers of the queries
    counts: np.ndarray  # int64 [Q]: how many images were found for each; H in all
    ranks: np.ndarray  # int64 [H], from 1
    positions: np.ndarray  # int64 [H], in the gallery
    boxes: np.ndarray | None  # float64 [B, 4], where `box_matters`, NaN for none; None if these queries have no boxes


class Hits(NamedTuple):
    """The relevant images that a run retrieved, of all queries, by query and then by rank."""

    queries: np.ndarray  # int64 [H], ascending: numbers of queries
    ranks: np.ndarray  # int64 [H], from 1
    ious: np.ndarray  # float64 [H]: best IoU of the run's box with a true one; NaN without boxes or where unused
    boxed: np.ndarray  # bool [queries]: whether the run gave boxes for it


class Truth(NamedTuple):
    """The boxes of all instances in their relevant images."""

    keys: np.ndarray  # int64 [N], ascending: of an instance in an image, see `truth_keys`
    starts: np.ndarray  # int64 [N + 1]: its boxes are starts[i] to starts[i + 1]
    boxes: np.ndarray  # float64 [boxes, 4]


def make_task(annotations: Annotations, others: Iterable[str] = (), find_size: SizeFinder = lambda path: None) -> Task:
    """The task of an annotation file without faults.

    others     the other paths of the file, which --set and --split leave out
    find_size  image path -> (height, width), or None
    """
    queries = [path for path, entry in annotations.items() if entry["is_query"]]
    gallery = [path for path, entry in annotations.items() if not entry["is_query"]]
    shows: dict[tuple[str, int], list[int]] = {}
    members: dict[str, list[int]] = {}
    is_val = np.zeros(len(gallery), dtype=bool)
    for position, path in enumerate(gallery):
        entry = annotations[path]
        set_name = set_of(entry)
        is_val[position] = entry.get("split") == "val"
        members.setdefault(set_name, []).append(position)
        for instance in set(instances_of(entry)):
            shows.setdefault((set_name, instance), []).append(position)

    kinds: dict[tuple[str, bool], int] = {}
    candidates: list[np.ndarray] = []
    kind_of_query = np.zeros(len(queries), dtype=np.int64)
    relevant: list[np.ndarray] = []
    known: dict[tuple[str, tuple[int, ...], int], np.ndarray] = {}  # one array serves all queries of an instance
    for number, path in enumerate(queries):
        entry = annotations[path]
        set_name = set_of(entry)
        has_junk = set_name in SETS_WITH_JUNK and entry.get("split") == "train"
        kind = kinds.setdefault((set_name, has_junk), len(kinds))
        if kind == len(candidates):
            positions = np.array(members.get(set_name, []), dtype=np.int64)
            candidates.append(positions[~is_val[positions]] if has_junk else positions)
        key = set_name, tuple(instances_of(entry)), kind
        if key not in known:
            shown = {position for instance in key[1] for position in shows.get((set_name, instance), ())}
            positions = np.array(sorted(shown), dtype=np.int64)
            known[key] = positions[~is_val[positions]] if has_junk else positions
        kind_of_query[number] = kind
        relevant.append(known[key])
    return Task(
        annotations,
        queries,
        gallery,
        candidates,
        kind_of_query,
        relevant,
        number_instances([annotations[path] for path in queries]),
        frozenset(others),
        find_size,
    )


def number_instances(entries: list[Entry]) -> np.ndarray:
    """int64 [queries]: the same number for the queries of one instance of one set."""
    keys = [(set_of(entry), name_of_instances(entry)) for entry in entries]
    numbers = {key: number for number, key in enumerate(sorted(set(keys), key=lambda key: f"{key[0]} {key[1]}"))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)


def name_of_instances(entry: Entry) -> str:
    """What a table calls the instance of a query: its id; of a query that shows several, all of them."""
    return " ".join(map(str, instances_of(entry)))


def find_in_rankings(task: Task, rankings: Iterable[Ranking]) -> Iterator[Found]:
    """Yield where the relevant images of each query stand in its ranking; one ranking per query, in their order."""
    is_relevant = np.zeros(len(task.gallery) + 1, dtype=bool)  # the last one for position -1
    for number, (ranking, relevant) in enumerate(zip(rankings, task.relevant)):
        is_relevant[relevant] = True
        at = np.flatnonzero(is_relevant[ranking.positions])
        is_relevant[relevant] = False
        counts = np.array([len(at)])
        boxes = None if ranking.boxes is None else ranking.boxes[at[box_matters(at + 1, counts)]]
        yield Found(np.array([number]), counts, at + 1, ranking.positions[at], boxes)


def box_matters(ranks: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """bool [H]: whether a metric looks at the boxes of hits: at those up to the largest K, and at the first one.

    ranks, counts  as in `Found`
    """
    matters = ranks <= RANKS[-1]
    firsts = np.cumsum(counts) - counts
    matters[firsts[counts > 0]] = True
    return matters


def gather_hits(task: Task, found: Iterable[Found]) -> Hits:
    """Join the relevant images found for each query, and compute the IoU of the run's boxes with the true ones."""
    queries, ranks, ious = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    boxed = np.zeros(len(task.queries), dtype=bool)
    truth = None
    for part in found:
        queries.append(np.repeat(part.queries, part.counts))
        ranks.append(part.ranks)
        ious.append(np.full(len(part.ranks), np.nan))
        if part.boxes is not None:
            boxed[part.queries] = True
            truth = truth or true_boxes(task)
            matters = box_matters(part.ranks, part.counts)
            keys = truth_keys(task, queries[-1][matters], part.positions[matters])
            ious[-1][matters] = best_ious(part.boxes, np.searchsorted(truth.keys, keys), truth)
    numbers = np.concatenate(queries)
    order = np.argsort(numbers, kind="stable")
    return Hits(numbers[order], np.concatenate(ranks)[order], np.concatenate(ious)[order], boxed)


def true_boxes(task: Task) -> Truth:
    """The boxes of the instances of all queries in their relevant images."""
    keys = [np.zeros(0, np.int64)]
    counts, boxes = [0], []
    _, examples = np.unique(truth_keys(task, np.arange(len(task.queries)), 0), return_index=True)
    for number in examples.tolist():
        keys.append(truth_keys(task, number, task.relevant[number]))
        instances = instances_of(task.annotations[task.queries[number]])
        for position in task.relevant[number].tolist():
            shown = boxes_in_pixels(task, position, instances)
            counts.append(len(shown))
            boxes += shown
    return Truth(np.concatenate(keys), np.cumsum(counts), np.array(boxes, dtype=np.float64).reshape(-1, 4))


def truth_keys(task: Task, queries: Any, positions: Any) -> Any:
    """int64 [N]: a number for the instance of each query, as its kind of query sees it, in each gallery image."""
    return (task.instances[queries] * len(task.candidates) + task.kinds[queries]) * len(task.gallery) + positions


def boxes_in_pixels(task: Task, position: int, instances: list[int]) -> list[Box]:
    """The boxes of some instances in a gallery image; NaN for a whole image of which nobody knows how large it is."""
    path = task.gallery[position]
    entry = task.annotations[path]
    boxes = [box for instance in instances for box in boxes_of_instance(entry, instance)]
    if None not in boxes:
        return [box for box in boxes if box is not None]
    size = task.find_size(path)
    unknown = (math.nan, math.nan, math.nan, math.nan)
    return [pixel_box(box, size) if size else box or unknown for box in boxes]


def best_ious(boxes: np.ndarray, images: np.ndarray, truth: Truth) -> np.ndarray:
    """float64 [N]: the best IoU of each box with a true one of its image; 0 for a box that is NaN.

    boxes   float64 [N, 4], (x1, y1, x2, y2)
    images  int64 [N]: which of `truth.keys` each is of
    """
    if not len(boxes):
        return np.zeros(0)
    counts = truth.starts[images + 1] - truth.starts[images]
    ends = np.cumsum(counts)
    which = np.arange(ends[-1]) + np.repeat(truth.starts[images] - (ends - counts), counts)
    x1, y1, x2, y2 = np.repeat(boxes, counts, axis=0).T
    tx1, ty1, tx2, ty2 = truth.boxes[which].T
    width, height = np.minimum(x2, tx2) - np.maximum(x1, tx1), np.minimum(y2, ty2) - np.maximum(y1, ty1)
    shared = np.where((width > 0) & (height > 0), width * height, 0)
    union = (x2 - x1) * (y2 - y1) + (tx2 - tx1) * (ty2 - ty1) - shared
    # The union of boxes with sides of 1e-200 pixels is 0 in floats; that of NaN is not above 0 either.
    ious = np.divide(shared, union, out=np.zeros(len(shared)), where=union > 0)
    return np.asarray(np.maximum.reduceat(ious, ends - counts))
