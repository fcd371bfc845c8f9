"""Features: read one vector per image or several, and rank the gallery by cosine similarity.

    from soir_features import read_features, find_by_features, rank_by_features

The file is .pt (as torch.save wrote it) or .npz, and holds one of

    path -> vector [dimension], or matrix [objects, dimension], or {"vectors": matrix, "boxes": [objects, 4] or None}
    `paths` (a path once per vector), `features` [vectors, dimension] and perhaps `boxes` [vectors, 4]

The score of an image is that of its best object (max-sim); of a query with several vectors, that of the best pair. The
box of that object is the localization. Each distinct vector is multiplied only once, so equal vectors get equal scores
with any library that multiplies matrices. Equal scores are in the order of the gallery in the annotation file.
"""

from __future__ import annotations

from soir_console import Findings, progress_bar

import os
from collections import Counter
from itertools import chain
from typing import Any, Iterator, NamedTuple

import numpy as np

from soir_arrays import as_matrix, as_texts, load_npz, unpacked_limit
from soir_common import Annotations, shorten
from soir_files import SoirError
from soir_loading import load_values
from soir_protocol import Found, Ranking, Task, box_matters
from soir_runs import as_boxes, report_shares

# Similarities that are held at a time, 128 MB: of 580 queries to 55,000 images. In blocks of half the size, the product
# would take 10 % longer; of three times the size, 15 % less.
BLOCK = 32_000_000

# How many numbers (vectors x dimension) are processed at a time: 2 MB as float32, which a processor's cache holds.
CHUNK = 500_000

# Up to this many relevant images are each compared with all images; if there are more, the similarities are sorted
# once. The number at which both take the same time depends on the processor: 20 (sorting with AVX-512) to 500.
FEW = 32


class Features(NamedTuple):
    """The vectors of images, one or several per image."""

    vectors: np.ndarray  # any real type [V, dimension]
    norms: np.ndarray  # float64 [V]: Euclidean length of each; 0 for one that cannot be used
    rows: dict[str, list[int]]  # path -> its vectors; of what `read_features` returns, those that can be used
    boxes: np.ndarray | None  # float64 [V, 4], NaN where there is none; None if no image has boxes


class ImageVectors(NamedTuple):
    """The vectors of an image as they are in a file."""

    vectors: np.ndarray  # any real type [objects, dimension]
    boxes: np.ndarray | None  # float64 [objects, 4]


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


# ------------------------------------------------------------------------------------------------------------- reading


def read_features(path: str, annotations: Annotations, findings: Findings) -> Features:
    """Read the features of the images of an annotation file; unusable ones are added to the findings.

    Raises SoirError if the file cannot be read, is in none of the forms, or has a feature for none of the images.
    """
    content = load_npz(path) if path.lower().endswith(".npz") else load_values(path, arrays=True)
    try:
        if not isinstance(content, dict) or not content:
            raise ValueError("expected a dict, path -> vector, or paths and features")
        limit = unpacked_limit(os.path.getsize(path))
        if {"paths", "features"} <= set(content):
            features = read_index(path, content, annotations, limit)
        else:
            features = read_images(path, content, annotations, limit, findings)
    except (OSError, ValueError) as error:
        raise SoirError(f"{path} holds no features: {error}") from error
    features = without_odd_boxes(features, findings)
    if features.boxes is not None:
        of_gallery = [rows for name, rows in features.rows.items() if not annotations[name]["is_query"]]
        boxes = features.boxes[np.array(list(chain.from_iterable(of_gallery)), dtype=np.int64)]
        report_shares(path, [boxes], findings)
        if np.isnan(boxes).all():  # there are boxes of queries only, which nothing is compared with
            features = features._replace(boxes=None)
    return without_unusable(features, annotations, findings)


def read_index(path: str, content: dict[str, Any], annotations: Annotations, limit: int) -> Features:
    """The features of `paths`, `features`, and perhaps `boxes`. Raises ValueError if they do not go together, and
    SoirError if they are of none of the images."""
    paths = as_texts(content["paths"], limit)
    vectors = as_matrix(content["features"], 2, limit)
    if paths is None or vectors is None or len(paths) != len(vectors):
        raise ValueError("expected a list of paths, and a vector for each: a matrix [vectors, dimension]")
    boxes = content.get("boxes")
    if boxes is not None:
        boxes = as_matrix(boxes, 2, limit)
        if boxes is None or boxes.shape != (len(paths), 4):
            raise ValueError("expected a box (x1, y1, x2, y2) for each vector in `boxes`")
        boxes = as_boxes(boxes)
    if vectors.shape[1] == 1:
        raise ValueError("its vectors have one number each: expected a matrix [vectors, dimension]")
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(paths):
        if name in annotations:
            rows.setdefault(name, []).append(row)
    if not rows:
        raise _of_no_image(path, paths[:1], annotations)
    return Features(vectors, norms_of(vectors), rows, boxes)


def read_images(
    path: str, content: dict[Any, Any], annotations: Annotations, limit: int, findings: Findings
) -> Features:
    """The features of path -> vector, matrix or dict. Raises SoirError, or ValueError."""
    images: dict[str, ImageVectors | None] = {}  # None: what there is cannot be used, and has been listed
    example = next(iter(content))
    for name in list(content):
        objects = as_objects(name, content.pop(name), limit)
        limit -= 8 * objects.vectors.size if objects else 0
        if objects is None:
            findings.skip("feature that is no vector of numbers", shorten(name))
        if name in annotations:
            images[name] = objects
    dimensions = Counter(objects.vectors.shape[1] for objects in images.values() if objects and len(objects.vectors))
    if not dimensions and images:
        raise ValueError("expected for each image a vector of numbers, a matrix of them, or `vectors` and `boxes`")
    if not dimensions:
        raise _of_no_image(path, [example], annotations)
    dimension = dimensions.most_common(1)[0][0]
    if dimension == 1:
        raise ValueError("its vectors have one number each: expected a vector, or a matrix [objects, dimension]")
    for name, objects in images.items():
        kind, outcome = _kind_of(name, annotations)
        if objects and not len(objects.vectors):  # nothing was detected there, which is no fault of the file
            findings.notice(f"{kind} without objects in the features, {outcome}", name)
            images[name] = None
        elif objects and objects.vectors.shape[1] != dimension:
            findings.skip(f"{kind} whose feature is not of length {dimension}, like most, {outcome}", name)
            images[name] = None
    return stack(images, dimension)


def stack(images: dict[str, ImageVectors | None], dimension: int) -> Features:
    """Put the vectors of images into one matrix. An image that is None has none of them."""
    count = sum(len(objects.vectors) for objects in images.values() if objects)
    vectors = np.empty((count, dimension), dtype=np.float32)
    has_boxes = any(objects and objects.boxes is not None for objects in images.values())
    boxes = np.full((count, 4), np.nan) if has_boxes else None
    rows, start = {}, 0
    for name in list(images):
        objects = images[name]
        stop = start + (len(objects.vectors) if objects else 0)
        rows[name] = list(range(start, stop))
        if objects:
            vectors[start:stop] = as_float32(objects.vectors)
            if boxes is not None and objects.boxes is not None:
                boxes[start:stop] = objects.boxes
        images[name], start = None, stop  # what is copied can go
    return Features(vectors, norms_of(vectors), rows, boxes)


def as_objects(name: Any, value: Any, limit: int) -> ImageVectors | None:
    """The vectors of an image, from a value that may be anything; None if it is no vector, nor several.

    Raises ValueError if it takes more than `limit` bytes, or is an array of three dimensions.
    """
    boxes = None
    if isinstance(value, dict):
        boxes, value = value.get("boxes"), value.get("vectors")
    if isinstance(value, np.ndarray):
        if value.ndim > 2:
            raise ValueError(
                f"the feature of {shorten(name)} is an array of {value.ndim} dimensions, {value.shape}: "
                "expected a vector, or a matrix [objects, dimension]"
            )
        matrix = as_matrix(value, value.ndim, limit) if value.ndim else None
    else:
        matrix = as_matrix(value, 1, limit)
    if matrix is None or not matrix.shape[-1]:
        return None
    matrix = matrix.reshape(-1, matrix.shape[-1])
    if boxes is not None:
        boxes = as_matrix(boxes, 2, limit) if len(matrix) else np.zeros((0, 4))
        if boxes is None or boxes.shape != (len(matrix), 4):
            return None
        boxes = as_boxes(boxes)
    return ImageVectors(matrix, boxes)


def norms_of(vectors: np.ndarray) -> np.ndarray:
    """float64 [V]: the length of each vector; 0 for one that is not finite."""
    lengths = np.zeros(len(vectors))
    step = max(1, CHUNK // max(1, vectors.shape[1]))
    for start in range(0, len(vectors), step):
        block = as_float32(vectors[start : start + step])
        squares = np.einsum("ij,ij->i", block, block, dtype=np.float64)  # those of float32 may be beyond it
        lengths[start : start + step] = np.sqrt(np.where(np.isfinite(squares), squares, 0))
    return lengths


def as_float32(vectors: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # what is beyond float32 becomes infinite, which is reported
        return vectors.astype(np.float32, copy=False)


def without_odd_boxes(features: Features, findings: Findings) -> Features:
    """The features without boxes that are none, which are listed by image."""
    if features.boxes is None:
        return features
    is_odd = np.isinf(features.boxes[:, 0])
    if is_odd.any():
        for name, rows in features.rows.items():
            if is_odd[rows].any():
                findings.skip("feature with a box that is not (x1, y1, x2, y2), ignored", name)
        features.boxes[is_odd] = np.nan
    return features


def without_unusable(features: Features, annotations: Annotations, findings: Findings) -> Features:
    """The features without vectors that are not finite, or zero; images without a usable one are listed."""
    usable: dict[str, list[int]] = {}
    is_usable = (features.norms > 0).tolist()
    for name in annotations:
        rows = features.rows.get(name)
        sound = [row for row in rows or () if is_usable[row]]
        if sound:
            usable[name] = sound
        if rows is not None and len(sound) == len(rows):
            continue
        kind, outcome = _kind_of(name, annotations)
        if rows is None:
            findings.skip(f"{kind} without a feature, {outcome}", name)
        elif not sound:
            findings.skip(f"{kind} whose feature is not finite, or zero, {outcome}", name)
        else:
            findings.skip(f"{kind} with a vector that is not finite, or zero, left out", name)
    return features._replace(rows=usable)


def _kind_of(name: str, annotations: Annotations) -> tuple[str, str]:
    """What an image is, and what comes of it if it has no feature that can be used."""
    if annotations[name]["is_query"]:
        return "query", "scored 0"
    return "gallery image", "counted as not retrieved"


def _of_no_image(path: str, found: list[Any], annotations: Annotations) -> SoirError:
    what = f"paths like {shorten(found[0])}" if found else "nothing that is a vector of numbers"
    expected = next(iter(annotations))
    return SoirError(f"{path} has a feature for none of the images: expected paths like {expected}, found {what}")


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
