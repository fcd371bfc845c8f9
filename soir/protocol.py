"""The protocol: which images a query competes over, which of them are relevant, and where a run ranks these.

A gallery image is relevant to a query when it shows the query's instance (of a query that shows several: any of them)
and is of the same set; it counts once, however many boxes it has. A query competes over the gallery of its own set:
what a run ranks of other sets is taken out, neither right nor wrong.

OWID splits its instances. An image that shows any val instance is a val image, and keeps the annotations of its val
instances only, so nobody knows which train instances it shows. To a train query it is therefore what revisitop calls
junk: taken out of the ranking, neither right nor wrong. A val query competes over all images of OWID.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from typing import Dict, Iterable, Iterator, List, NamedTuple

import numpy as np

from soir import geometry
from soir.entry import Annotations, Entry, instances_of, set_of
from soir.forms import SizeFinder
from soir.geometry import Box, EntryBox

# The K of the metrics at K.
RANKS = (1, 5, 10, 50, 100)

# The sets whose val images keep the annotations of val instances only.
SETS_WITH_JUNK = ("OWID",)

# Position of an image in the gallery -> the boxes of an instance there.
Shown = Dict[int, List[EntryBox]]


class Task(NamedTuple):
    """What is asked of a run. Positions are those in `gallery`, which has the order of the annotation file."""

    annotations: Annotations
    queries: list[str]
    gallery: list[str]
    candidates: list[np.ndarray]  # int64 [images], ascending: the positions that queries of one kind compete over
    kinds: list[int]  # of each query, which of `candidates`: one for each set, and one for OWID's train queries
    relevant: list[np.ndarray]  # of each query, int64 [images], ascending: the positions of its relevant images
    instances: np.ndarray  # int64 [queries]: the same number for the queries of one instance of one set
    shows: dict[tuple[str, int], Shown]  # (set, instance) -> where it is shown, junk too
    others: frozenset[str]  # the other paths of the annotation file, which --set and --split leave out
    find_size: SizeFinder  # says how large an image is; asked only for boxes that are the whole image


class Ranking(NamedTuple):
    """What a run retrieved for a query, best first."""

    positions: np.ndarray  # int64 [N], in the gallery, each once; -1 for a path that is not there
    scores: np.ndarray | None  # float64 [N]; NaN where there is none
    boxes: np.ndarray | None  # float64 [N, 4], (x1, y1, x2, y2) in pixels; NaN where there is none


class Hits(NamedTuple):
    """The relevant images that a run retrieved for a query, by rank."""

    number: int  # of the query
    ranks: np.ndarray  # int64 [H], from 1, ascending
    ious: np.ndarray | None  # float64 [H], NaN where no metric looks at it; None if the run has no boxes for the query
    tied: tuple[np.ndarray, np.ndarray] | None = None  # ranks at the best and at the worst order of ties; None: no ties


def make_task(annotations: Annotations, others: Iterable[str] = (), find_size: SizeFinder = lambda path: None) -> Task:
    """The task of an annotation file without faults.

    others     the other paths of the file, which --set and --split leave out
    find_size  image path -> (height, width), or None
    """
    queries = [path for path, entry in annotations.items() if entry["is_query"]]
    gallery = [path for path, entry in annotations.items() if not entry["is_query"]]
    shows: defaultdict[tuple[str, int], Shown] = defaultdict(dict)
    members: defaultdict[str, list[int]] = defaultdict(list)  # set -> positions
    is_val = np.zeros(len(gallery), dtype=bool)
    for position, path in enumerate(gallery):
        entry = annotations[path]
        set_name = set_of(entry)
        members[set_name].append(position)
        is_val[position] = entry.get("split") == "val"
        for instance, box in zip(entry["ins"], entry["bbox"]):
            shows[set_name, instance].setdefault(position, []).append(box)

    def without_junk(positions: Iterable[int], has_junk: bool) -> np.ndarray:
        array = np.array(sorted(positions), dtype=np.int64)
        return array[~is_val[array]] if has_junk else array

    instances = number_instances([annotations[path] for path in queries])
    kind_of: dict[tuple[str, bool], int] = {}
    candidates: list[np.ndarray] = []
    kinds: list[int] = []
    relevant: list[np.ndarray] = []
    known: dict[tuple[int, int], np.ndarray] = {}  # one array serves all queries of an instance and kind
    for path, number in zip(queries, instances.tolist()):
        entry = annotations[path]
        set_name = set_of(entry)
        has_junk = set_name in SETS_WITH_JUNK and entry.get("split") == "train"
        kind = kind_of.setdefault((set_name, has_junk), len(kind_of))
        if kind == len(candidates):
            candidates.append(without_junk(members.get(set_name, []), has_junk))
        if (number, kind) not in known:
            known[number, kind] = without_junk(shown_of(entry, shows), has_junk)
        kinds.append(kind)
        relevant.append(known[number, kind])
    find_once = lru_cache(maxsize=None)(find_size)
    return Task(
        *(annotations, queries, gallery, candidates, kinds, relevant),
        *(instances, dict(shows), frozenset(others), find_once),
    )


def shown_of(query: Entry, shows: dict[tuple[str, int], Shown]) -> Shown:
    """Where the gallery shows any instance of a query; `shows` is that of the task."""
    parts = [shows.get((set_of(query), instance), {}) for instance in dict.fromkeys(instances_of(query))]
    if len(parts) == 1:
        return parts[0]
    joined: defaultdict[int, list[EntryBox]] = defaultdict(list)
    for part in parts:
        for position, boxes in part.items():
            joined[position] += boxes
    return dict(sorted(joined.items()))


def number_instances(entries: list[Entry]) -> np.ndarray:
    """int64 [queries]: the same number for the queries of one instance of one set, whatever comes first in the file."""
    names = [(set_of(entry), name_of_instances(entry)) for entry in entries]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def name_of_instances(entry: Entry) -> str:
    """What a table calls the instance of a query: its id; of a query that shows several, all of them."""
    return " ".join(map(str, instances_of(entry)))


def boxes_in_pixels(task: Task, position: int, boxes: list[EntryBox]) -> list[Box]:
    """The boxes of a gallery image; without those that are the whole of an image that cannot be read."""
    sizes = [task.find_size(task.gallery[position]) if box is None else (0, 0) for box in boxes]
    return [geometry.in_pixels(box, size) for box, size in zip(boxes, sizes) if size is not None]


def count_looked_at(ranks: np.ndarray) -> int:
    """Of how many hits, by rank, some metric looks at the box: those up to the largest K, and the first one."""
    return max(int(np.count_nonzero(ranks <= RANKS[-1])), min(1, len(ranks)))


def make_hits(task: Task, number: int, ranks: np.ndarray, positions: np.ndarray, boxes: np.ndarray | None) -> Hits:
    """The hits of a query, with the IoU of those boxes that some metric looks at.

    ranks, positions  int64 [H]: of the relevant images, by rank
    boxes             float64 [N, 4]: what the run takes for the object, (x1, y1, x2, y2) or NaN, in at least the first
                      `count_looked_at` of them; None: it has no boxes
    """
    if boxes is None:
        return Hits(number, ranks, None)
    shown = shown_of(task.annotations[task.queries[number]], task.shows)
    ious = np.full(len(ranks), np.nan)
    for index in range(count_looked_at(ranks)):
        ious[index] = 0
        if not np.isnan(boxes[index, 0]):
            box, position = tuple(boxes[index].tolist()), int(positions[index])
            true = boxes_in_pixels(task, position, shown[position])
            ious[index] = max((geometry.iou(box, other) for other in true), default=0)
    return Hits(number, ranks, ious)


def find_in_rankings(task: Task, rankings: Iterable[Ranking]) -> Iterator[Hits]:
    """Yield where the relevant images of each query stand in its ranking; one ranking per query, in their order."""
    is_relevant = np.zeros(len(task.gallery) + 1, dtype=bool)  # the last one for position -1
    for number, (ranking, relevant) in enumerate(zip(rankings, task.relevant)):
        is_relevant[relevant] = True
        at = np.flatnonzero(is_relevant[ranking.positions])
        is_relevant[relevant] = False
        boxes = None if ranking.boxes is None else ranking.boxes[at]
        hits = make_hits(task, number, at + 1, ranking.positions[at], boxes)
        if ranking.scores is not None:
            is_new = np.append(True, ranking.scores[1:] != ranking.scores[:-1])
            if not is_new.all():
                starts = np.flatnonzero(is_new)
                group = np.cumsum(is_new)[at] - 1
                hits = hits._replace(tied=tie_bounds(starts[group], np.diff(starts, append=len(is_new))[group]))
        yield hits


def tie_bounds(ahead: np.ndarray, tied: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ranks of hits if ties were broken in their favour, and against them: int64 [H] each.

    ahead  int64 [H], ascending: how many images have a higher score
    tied   int64 [H]: how many have the same score, with itself
    """
    _, first, counts = np.unique(ahead, return_index=True, return_counts=True)
    best = ahead + np.arange(len(ahead)) - np.repeat(first, counts) + 1
    return best, best + tied - np.repeat(counts, counts)
