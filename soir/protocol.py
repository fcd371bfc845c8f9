"""The protocol: which images a query competes over, which of them are relevant, and where a run ranks these.

A gallery image is relevant to a query when it shows the query's instance (of a query that shows several: any of them)
and is of the same set; it counts once, however many boxes it has. A query competes over the gallery of its own set:
what a run ranks of other sets is taken out, neither right nor wrong.

OWID splits its instances. An image that shows any val instance is a val image, and keeps the annotations of its val
instances only, so nobody knows which train instances it shows. To a train query it is therefore what revisitop calls
junk: taken out of the ranking, neither right nor wrong. A val query competes over all images of OWID.
"""

from __future__ import annotations

import math
from typing import Any, Iterable, Iterator, NamedTuple, Sequence

import numpy as np

from soir import geometry
from soir.entry import Annotations, Entry, instances_of, set_of
from soir.forms import SizeFinder
from soir.geometry import Size

# The K of the metrics at K.
RANKS = (1, 5, 10, 50, 100)

# The sets whose val images keep the annotations of val instances only.
SETS_WITH_JUNK = ("OWID",)


class Objects(NamedTuple):
    """The annotated objects of the gallery, image by image."""

    images: np.ndarray  # int64 [N], ascending: positions in the gallery
    boxes: np.ndarray  # float64 [N, 4], (x1, y1, x2, y2) in pixels; NaN where the box is the whole image
    by_instance: dict[tuple[str, int], np.ndarray]  # (set, instance) of a query -> int64, ascending: which show it


class Task(NamedTuple):
    """What is asked of a run. Positions are those in `gallery`, which has the order of the annotation file."""

    annotations: Annotations
    queries: list[str]
    gallery: list[str]
    candidates: list[np.ndarray]  # int64 [images], ascending: the positions that queries of one kind compete over
    kinds: np.ndarray  # int64 [queries]: which of `candidates`: one for each set, and one for OWID's train queries
    relevant: list[np.ndarray]  # of each query, int64 [images], ascending: the positions of its relevant images
    instances: np.ndarray  # int64 [queries]: a number for the (set, instance) of each
    objects: Objects
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
    """The boxes of the instances of all queries in their relevant images."""

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
    entries = [annotations[path] for path in gallery]
    members: dict[str, list[int]] = {}
    for position, entry in enumerate(entries):
        members.setdefault(set_of(entry), []).append(position)
    is_val = np.array([entry.get("split") == "val" for entry in entries], dtype=bool)
    instances = number_instances([annotations[path] for path in queries])
    asked = {(set_of(annotations[path]), i) for path in queries for i in instances_of(annotations[path])}
    objects = gather_objects(entries, members, asked)

    def without_junk(positions: np.ndarray, has_junk: bool) -> np.ndarray:
        return positions[~is_val[positions]] if has_junk else positions

    kinds: dict[tuple[str, bool], int] = {}
    candidates: list[np.ndarray] = []
    kind_of_query = np.zeros(len(queries), dtype=np.int64)
    relevant: list[np.ndarray] = []
    known: dict[tuple[int, int], np.ndarray] = {}  # one array serves all queries of an instance and kind
    for number, path in enumerate(queries):
        entry = annotations[path]
        set_name = set_of(entry)
        has_junk = set_name in SETS_WITH_JUNK and entry.get("split") == "train"
        kind = kinds.setdefault((set_name, has_junk), len(kinds))
        if kind == len(candidates):
            positions = np.array(members.get(set_name, []), dtype=np.int64)
            candidates.append(without_junk(positions, has_junk))
        key = int(instances[number]), kind
        if key not in known:
            positions = np.unique(objects.images[objects_of(objects, entry)])
            known[key] = without_junk(positions, has_junk)
        kind_of_query[number] = kind
        relevant.append(known[key])
    return Task(
        annotations,
        queries,
        gallery,
        candidates,
        kind_of_query,
        relevant,
        instances,
        objects,
        frozenset(others),
        find_size,
    )


def gather_objects(entries: list[Entry], members: dict[str, list[int]], asked: set[tuple[str, int]]) -> Objects:
    """The objects of gallery images.

    entries  in the order of the gallery
    members  set -> the positions of its images
    asked    the (set, instance) of all queries
    """
    counts = np.array([len(entry["ins"]) for entry in entries], dtype=np.int64)
    images = np.repeat(np.arange(len(entries)), counts)
    ids = np.fromiter((instance for entry in entries for instance in entry["ins"]), np.int64, len(images))
    whole = (math.nan,) * 4
    numbers = (number for entry in entries for box in entry["bbox"] for number in box or whole)
    boxes = np.fromiter(numbers, np.float64, 4 * len(images)).reshape(-1, 4)
    set_of_image = np.empty(len(entries), dtype=np.int64)
    for number, positions in enumerate(members.values()):
        set_of_image[positions] = number
    sets = set_of_image[images]

    order = np.lexsort((ids, sets))  # stable, so the objects of an instance stay image by image
    ids, sets = ids[order], sets[order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (ids[1:] != ids[:-1]) | (sets[1:] != sets[:-1])
    starts = np.flatnonzero(is_first)
    stops = np.append(starts[1:], len(order))
    chosen = np.flatnonzero(np.isin(ids[starts], [instance for _, instance in asked]))
    names = list(members)
    by_instance = {}
    for start, stop in zip(starts[chosen].tolist(), stops[chosen].tolist()):
        key = names[sets[start]], int(ids[start])
        if key in asked:
            by_instance[key] = order[start:stop]
    return Objects(images, boxes, by_instance)


def objects_of(objects: Objects, query: Entry) -> np.ndarray:
    """int64 [N], ascending: the objects that show any instance of a query."""
    keys = [(set_of(query), instance) for instance in set(instances_of(query))]
    parts = [objects.by_instance[key] for key in keys if key in objects.by_instance]
    return parts[0] if len(parts) == 1 else np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *parts]))


def number_instances(entries: list[Entry]) -> np.ndarray:
    """int64 [queries]: the same number for the queries of one instance of one set."""
    found: dict[tuple[str, str], int] = {}
    numbers = np.array(
        [found.setdefault((set_of(entry), name_of_instances(entry)), len(found)) for entry in entries], dtype=np.int64
    )
    rank = np.empty(len(found), dtype=np.int64)  # by set and name, whatever comes first in the file
    rank[[found[key] for key in sorted(found)]] = np.arange(len(found))
    return np.asarray(rank[numbers])


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
    shown = [np.zeros(0, np.int64)]
    # One query of each instance and kind.
    _, examples = np.unique(truth_keys(task, np.arange(len(task.queries)), 0), return_index=True)
    for number in examples.tolist():
        objects = objects_of(task.objects, task.annotations[task.queries[number]])
        images = task.objects.images[objects]
        is_relevant = np.isin(images, task.relevant[number])  # and not junk
        keys.append(truth_keys(task, number, images[is_relevant]))
        shown.append(objects[is_relevant])
    unique, starts = np.unique(np.concatenate(keys), return_index=True)  # they ascend already
    objects = np.concatenate(shown)
    return Truth(unique, np.append(starts, len(objects)), boxes_in_pixels(task, objects))


def truth_keys(task: Task, queries: Any, positions: Any) -> Any:
    """int64 [N]: one number for each (instance, kind of query, gallery image)."""
    return (task.instances[queries] * len(task.candidates) + task.kinds[queries]) * len(task.gallery) + positions


def boxes_in_pixels(task: Task, objects: np.ndarray) -> np.ndarray:
    """float64 [N, 4]: the boxes of some objects; NaN for a whole image of which nobody knows how large it is.

    objects  int64 [N]: which of `task.objects`
    """
    boxes: np.ndarray = task.objects.boxes[objects]
    for number in np.flatnonzero(np.isnan(boxes[:, 0])).tolist():
        size = task.find_size(task.gallery[task.objects.images[objects[number]]])
        if size:
            boxes[number] = geometry.in_pixels(None, size)
    return boxes


def object_shares(objects: Objects, sizes: Sequence[Size | None]) -> np.ndarray:
    """float64 [objects]: the share of its image, in %, that the box of each covers; NaN where nobody knows.

    sizes  (height, width) of each gallery image, or None
    """
    pixels = np.array([size[0] * size[1] if size else math.nan for size in sizes], dtype=np.float64)
    x1, y1, x2, y2 = objects.boxes.T
    shares: np.ndarray = 100 * ((x2 - x1) * (y2 - y1)) / pixels[objects.images]
    shares[np.isnan(x1)] = 100  # the whole image, however large it is
    return shares


def best_ious(boxes: np.ndarray, images: np.ndarray, truth: Truth) -> np.ndarray:
    """float64 [N]: the best IoU of each box with a true one of its image; 0 where it, or all true ones, are NaN.

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
