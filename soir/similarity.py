"""Features: read one vector per image or several, and rank the gallery by cosine similarity.

The file is .pt (as torch.save wrote it) or .npz, and holds one of

    path -> vector [dimension], or matrix [objects, dimension], or {"vectors": matrix, "boxes": [objects, 4] or None}
    `paths` (a path once per vector), `features` [vectors, dimension] and perhaps `boxes` [vectors, 4]

The score of an image is that of its best object (max-sim); of a query with several vectors, that of the best pair. The
box of that object is the localization. Each distinct vector is multiplied only once, so equal vectors get equal scores
with any library that multiplies matrices. Equal scores are in the order of the gallery in the annotation file.
"""

from __future__ import annotations

from itertools import chain
from typing import Iterator, NamedTuple

import numpy as np

from soir.features import CHUNK, Features, as_float32
from soir.findings import progress_bar
from soir.protocol import Found, Ranking, Task, box_matters

# Similarities that are held at a time, 128 MB: of 580 queries to 55,000 images. In blocks of half the size, the product
# would take 10 % longer; of three times the size, 15 % less.
BLOCK = 32_000_000

# Up to this many relevant images are each compared with all images; if there are more, the similarities are sorted
# once. The number at which both take the same time depends on the processor: 20 (sorting with AVX-512) to 500.
FEW = 32


class Columns(NamedTuple):
    """The gallery that queries of one kind compete over, as columns of a matrix of similarities."""

    positions: np.ndarray  # int64 [images], in the gallery: of the images that have vectors
    column_of: np.ndarray  # int64 [gallery]: which image of these a position is; -1 for none
    rows: np.ndarray  # int64 [objects]: the vectors, image by image
    starts: np.ndarray  # int64 [images]: where in `rows` the objects of each image begin
    vectors: np.ndarray  # float32 [distinct, dimension], of length 1
    copies: np.ndarray | None  # int64 [objects]: which of `vectors` each is; None: each is its own


class Similarities(NamedTuple):
    """The similarities of some queries. They are valid only until the next block, which reuses the memory."""

    numbers: list[int]  # of the queries
    columns: Columns
    images: np.ndarray  # float32 [queries, images]
    objects: np.ndarray  # float32 [queries, objects]


# ------------------------------------------------------------------------------------------------------------- ranking


def find_by_features(features: Features, task: Task) -> Iterator[Found]:
    """Yield where the relevant images of each query stand, without sorting the others.

    Queries come kind by kind; those without a feature, or without relevant images, do not come at all.
    """
    numbers = [number for number, relevant in enumerate(task.relevant) if len(relevant)]
    for scored in score_images(features, task, numbers):
        columns = scored.columns
        ranks_of_all, images_of_all = [], []
        for number, similarities in zip(scored.numbers, scored.images):
            images = columns.column_of[task.relevant[number]]
            ranks, images = rank_images(similarities, images[images >= 0])
            ranks_of_all.append(ranks)
            images_of_all.append(images)
        counts = np.array(list(map(len, ranks_of_all)))
        ranks, images, boxes = np.concatenate(ranks_of_all), np.concatenate(images_of_all), None
        if features.boxes is not None:
            matters = box_matters(ranks, counts)
            rows = np.repeat(np.arange(len(counts)), counts)[matters]
            boxes = features.boxes[best_objects(scored, rows, images[matters])]
        yield Found(np.array(scored.numbers), counts, ranks, columns.positions[images], boxes)


def rank_by_features(features: Features, task: Task, numbers: list[int]) -> Iterator[tuple[int, Ranking]]:
    """Yield (number, whole ranking) of some queries, kind by kind; none for those without a feature."""
    for scored in score_images(features, task, numbers):
        for row, (number, similarities) in enumerate(zip(scored.numbers, scored.images)):
            order, boxes = np.argsort(-similarities, kind="stable"), None
            if features.boxes is not None:
                boxes = features.boxes[best_objects(scored, np.full(len(order), row), order)]
            positions = scored.columns.positions[order]
            yield number, Ranking(positions, similarities[order].astype(np.float64), boxes)


def rank_images(similarities: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank some images among all, which are sorted by similarity, equal ones as they stand.

    similarities  float32 [all]
    images        int64 [N]: which of these
    Returns (int64 [N]: the ranks, from 1, ascending; int64 [N]: the image at each).

    Ahead of an image are those before it with a similarity as high, and those behind it with a higher one.
    """
    scores = similarities[images]
    if len(images) <= FEW:
        ahead = [
            np.count_nonzero(similarities[:image] >= score) + np.count_nonzero(similarities[image + 1 :] > score)
            for image, score in zip(images.tolist(), scores)
        ]
        ranks = np.array(ahead, dtype=np.int64) + 1
    else:
        order = scores.argsort()[::-1]  # a search for sorted values is several times faster
        scores, images = scores[order], images[order]
        ascending = np.sort(similarities)
        last = ascending.searchsorted(scores, side="right")
        ranks = len(similarities) + 1 - last
        tied = np.flatnonzero(ascending[last - 2] == scores)  # with another image, or it is the only one
        if not len(tied):
            return ranks, images
        for number in tied:
            ranks[number] += np.count_nonzero(similarities[: images[number]] == scores[number])
    order = ranks.argsort(kind="stable")
    return ranks[order], images[order]


def best_objects(scored: Similarities, rows: np.ndarray, images: np.ndarray) -> np.ndarray:
    """int64 [N]: the row of `Features` of the best object in each image, the first one of equals.

    rows, images  int64 [N], of `scored.images`
    """
    columns = scored.columns
    if len(columns.rows) == len(columns.starts):
        return np.asarray(columns.rows[images])
    ends = np.append(columns.starts[1:], len(columns.rows))
    counts = ends[images] - columns.starts[images]
    stops = np.cumsum(counts)
    objects = np.arange(stops[-1] if len(stops) else 0) + np.repeat(columns.starts[images] - (stops - counts), counts)
    is_best = scored.objects[np.repeat(rows, counts), objects] == np.repeat(scored.images[rows, images], counts)
    is_best = np.flatnonzero(is_best)
    first = is_best[np.searchsorted(is_best, stops - counts)]
    return np.asarray(columns.rows[objects[first]])


def score_images(features: Features, task: Task, numbers: list[int]) -> Iterator[Similarities]:
    """Yield the similarities of those of some queries that have features, kind by kind."""
    with progress_bar("scoring", total=len(numbers)) as bar:
        for kind, candidates in enumerate(task.candidates):
            asking = [n for n in numbers if task.kinds[n] == kind and task.queries[n] in features.rows]
            if not asking:
                continue
            columns = make_columns(features, task, candidates)
            if not len(columns.rows):
                continue
            step = max(1, BLOCK // max(len(columns.rows), features.vectors.shape[1]))
            buffer = np.empty((min(step, len(features.norms)), len(columns.vectors)), dtype=np.float32)
            for block in split_by_rows([features.rows[task.queries[n]] for n in asking], step):
                yield score_block(features, task, asking[block], columns, buffer)
                bar.update(block.stop - block.start)


def make_columns(features: Features, task: Task, candidates: np.ndarray) -> Columns:
    """The gallery images of one kind that have vectors, and the distinct ones of these."""
    positions = [position for position in candidates.tolist() if task.gallery[position] in features.rows]
    rows_of_images = [features.rows[task.gallery[position]] for position in positions]
    column_of = np.full(len(task.gallery), -1, dtype=np.int64)
    column_of[positions] = np.arange(len(positions))
    starts = np.cumsum([0, *map(len, rows_of_images)], dtype=np.int64)[:-1]
    rows = np.array(list(chain.from_iterable(rows_of_images)), dtype=np.int64)
    vectors, copies = distinct_rows(unit_rows(features, rows))
    return Columns(np.array(positions, dtype=np.int64), column_of, rows, starts, vectors, copies)


def unit_rows(features: Features, rows: np.ndarray) -> np.ndarray:
    """float32 [rows, dimension]: some vectors, made of length 1; divided in float64, so that v and 2 v are equal."""
    units = np.empty((len(rows), features.vectors.shape[1]), dtype=np.float32)
    step = max(1, CHUNK // max(1, units.shape[1]))
    for start in range(0, len(rows), step):
        chosen = rows[start : start + step]
        block = units[start : start + step]
        np.divide(as_float32(features.vectors[chosen]), features.norms[chosen, None], out=block, casting="same_kind")
        block += 0.0  # -0.0 becomes 0.0, so that equal vectors are equal bytes
    return units


def distinct_rows(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """(the distinct rows, which of them each row is); (the matrix itself, None) if all are distinct.

    A product of matrices may round equal columns differently, depending on where they stand.
    """
    if not matrix.size:
        return matrix, None
    if len(np.unique(as_bytes(matrix[:, :2]))) == len(matrix):  # most often, two numbers of each tell it already
        return matrix, None
    _, first, copies = np.unique(as_bytes(matrix), return_index=True, return_inverse=True)
    return (matrix, None) if len(first) == len(matrix) else (matrix[first], copies.reshape(-1))


def as_bytes(matrix: np.ndarray) -> np.ndarray:
    """The rows of a float32 matrix as one item each: whole numbers where they have the size of one, else bytes."""
    size = matrix.itemsize * matrix.shape[1]
    kind = np.dtype(np.uint64) if size == 8 else np.dtype((np.void, size))
    return np.ascontiguousarray(matrix).view(kind).reshape(-1)


def split_by_rows(rows: list[list[int]], step: int) -> Iterator[slice]:
    """Yield slices of queries that have at most `step` vectors together, or are one."""
    start = held = 0
    for stop, own in enumerate(rows):
        if held and held + len(own) > step:
            yield slice(start, stop)
            start, held = stop, 0
        held += len(own)
    if held:
        yield slice(start, len(rows))


def score_block(
    features: Features, task: Task, numbers: list[int], columns: Columns, buffer: np.ndarray
) -> Similarities:
    """The similarities of some queries.

    buffer  float32 [rows, distinct], to be used again and again: the system would clear new memory each time
    """
    rows = [features.rows[task.queries[number]] for number in numbers]
    vectors, copies = distinct_rows(unit_rows(features, np.array(list(chain.from_iterable(rows)))))
    out = buffer[: len(vectors)] if len(vectors) <= len(buffer) else None
    objects = np.matmul(vectors, columns.vectors.T, out=out)
    if copies is not None:
        objects = objects[copies]
    if columns.copies is not None:
        objects = np.take(objects, columns.copies, axis=1)
    if len(objects) > len(rows):
        objects = np.maximum.reduceat(objects, np.cumsum([0, *map(len, rows[:-1])]), axis=0)
    images = objects
    if len(columns.starts) < len(columns.rows):
        images = np.maximum.reduceat(objects, columns.starts, axis=1)
    return Similarities(numbers, columns, images, objects)
