"""Ranking by features: the cosine similarity of queries and gallery images.

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
from soir.protocol import Hits, Ranking, Task, count_looked_at, make_hits, tie_bounds

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
    starts: np.ndarray  # int64 [images + 1]: where in `rows` the objects of each image begin
    vectors: np.ndarray  # float32 [distinct, dimension], of length 1
    copies: np.ndarray | None  # int64 [objects]: which of `vectors` each is; None: each is its own


class Scored(NamedTuple):
    """The similarities of a query. They are valid only until the next query, which may reuse the memory."""

    number: int  # of the query
    columns: Columns
    images: np.ndarray  # float32 [images]
    objects: np.ndarray  # float32 [objects]


def find_by_features(features: Features, task: Task) -> Iterator[Hits]:
    """Yield where the relevant images of each query stand, without sorting the others.

    Queries come kind by kind; those without a feature, or without relevant images, do not come at all.
    """
    for scored in score_images(features, task, [n for n, images in enumerate(task.relevant) if len(images)]):
        columns = scored.columns
        images = columns.column_of[task.relevant[scored.number]]
        ranks, images = rank_images(scored.images, images[images >= 0])
        boxes = None
        if features.boxes is not None:
            looked_at = images[: count_looked_at(ranks)].tolist()
            boxes = features.boxes[[best_object(scored, image) for image in looked_at]]
        hits = make_hits(task, scored.number, ranks, columns.positions[images], boxes)
        if columns.copies is not None:  # else no two images have the same vector, and hardly the same similarity
            scores = scored.images[images]
            ahead = np.array([np.count_nonzero(scored.images > score) for score in scores], dtype=np.int64)
            tied = np.array([np.count_nonzero(scored.images == score) for score in scores], dtype=np.int64)
            hits = hits._replace(tied=tie_bounds(ahead, tied))
        yield hits


def rank_by_features(features: Features, task: Task, numbers: list[int]) -> Iterator[tuple[int, Ranking]]:
    """Yield (number, whole ranking) of some queries, kind by kind; none for those without a feature."""
    for scored in score_images(features, task, numbers):
        order, boxes = np.argsort(-scored.images, kind="stable"), None
        if features.boxes is not None:
            boxes = features.boxes[[best_object(scored, image) for image in order.tolist()]]
        yield scored.number, Ranking(scored.columns.positions[order], scored.images[order].astype(np.float64), boxes)


def rank_images(similarities: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank some images among all, which are sorted by similarity, equal ones as they stand.

    similarities  float32 [all]
    images        int64 [N]: which of these
    Returns (int64 [N]: the ranks, from 1, ascending; int64 [N]: the image at each).
    """
    scores = similarities[images]
    if len(images) <= FEW:
        ahead = [
            np.count_nonzero(similarities[:image] >= score) + np.count_nonzero(similarities[image + 1 :] > score)
            for image, score in zip(images.tolist(), scores)
        ]
        ranks = np.array(ahead, dtype=np.int64) + 1
    else:
        ascending = np.sort(similarities)
        not_higher = ascending.searchsorted(scores, side="right")
        ranks = len(similarities) - not_higher + 1
        for index in np.flatnonzero(not_higher - ascending.searchsorted(scores) > 1):  # equal to another image
            ranks[index] += np.count_nonzero(similarities[: images[index]] == scores[index])
    order = ranks.argsort(kind="stable")
    return ranks[order], images[order]


def best_object(scored: Scored, image: int) -> int:
    """The row of `Features` of the best object in an image, the first one of equals."""
    start, stop = scored.columns.starts[image : image + 2]
    return int(scored.columns.rows[start + scored.objects[start:stop].argmax()])


def score_images(features: Features, task: Task, numbers: list[int]) -> Iterator[Scored]:
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
                rows_of_queries = [features.rows[task.queries[n]] for n in asking[block]]
                images, objects = score_block(features, rows_of_queries, columns, buffer)
                for number, of_images, of_objects in zip(asking[block], images, objects):
                    yield Scored(number, columns, of_images, of_objects)
                bar.update(block.stop - block.start)


def make_columns(features: Features, task: Task, candidates: np.ndarray) -> Columns:
    """The gallery images of one kind that have vectors, and the distinct ones of these."""
    positions = [position for position in candidates.tolist() if task.gallery[position] in features.rows]
    rows_of_images = [features.rows[task.gallery[position]] for position in positions]
    column_of = np.full(len(task.gallery), -1, dtype=np.int64)
    column_of[positions] = np.arange(len(positions))
    starts = np.cumsum([0, *map(len, rows_of_images)], dtype=np.int64)
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
    features: Features, rows_of_queries: list[list[int]], columns: Columns, buffer: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The similarities of some queries: float32 [queries, images], and float32 [queries, objects].

    rows_of_queries  the rows of `Features` of each
    buffer           float32 [rows, distinct], to be used again and again: the system would clear new memory each time
    """
    vectors, copies = distinct_rows(unit_rows(features, np.array(list(chain.from_iterable(rows_of_queries)))))
    out = buffer[: len(vectors)] if len(vectors) <= len(buffer) else None
    objects = np.matmul(vectors, columns.vectors.T, out=out)
    if copies is not None:
        objects = objects[copies]
    if columns.copies is not None:
        objects = np.take(objects, columns.copies, axis=1)
    if len(objects) > len(rows_of_queries):
        objects = np.maximum.reduceat(objects, np.cumsum([0, *map(len, rows_of_queries[:-1])]), axis=0)
    images = objects
    if len(columns.positions) < len(columns.rows):
        images = np.maximum.reduceat(objects, columns.starts[:-1], axis=1)
    return images, objects
