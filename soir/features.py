"""Features: one vector per image or several, read from a file or taken from memory.

The file is .pt (as torch.save wrote it) or .npz, and holds one of

    path -> vector [dimension], or matrix [objects, dimension], or {"vectors": matrix, "boxes": [objects, 4] or None}
    `paths` (a path once per vector), `features` [vectors, dimension] and perhaps `boxes` [vectors, 4]
"""

from __future__ import annotations

import os
from collections import Counter
from itertools import chain
from typing import Any, Iterable, NamedTuple

import numpy as np

from soir.arrays import as_matrix, as_texts, load_npz, unpacked_limit
from soir.entry import Annotations
from soir.files import SoirError, kind_of_file
from soir.findings import Findings, shorten
from soir.paths import spelling_finder, why_unknown
from soir.rankings import SPELLED, as_boxes, report_shares
from soir.torch_files import load_values

# What else vectors are kept in -> the lines of Python that convert it.
CONVERSIONS = {
    "a NumPy array": 'np.savez("features.npz", paths=[of each row], features=np.load(FILE))',
    "a file of safetensors": 'np.savez("features.npz", **safetensors.numpy.load_file(FILE))',
    "an HDF5": 'np.savez("features.npz", **{path: v[()] for path, v in h5py.File(FILE).items()})',
    "a pickle": 'torch.save(pickle.load(open(FILE, "rb")), "features.pt"), of your own file only, since it runs code',
    "CSV": 'rows = list(csv.reader(open(FILE)))[1:]; np.savez("features.npz", paths=[r[0] for r in rows], '
    "features=[list(map(float, r[1:])) for r in rows])",
    "JSON Lines": "rows = list(map(json.loads, open(FILE))); "
    'np.savez("features.npz", paths=[r["path"] for r in rows], features=[r["vector"] for r in rows])',
    "JSON": 'torch.save({path: torch.tensor(v) for path, v in json.load(open(FILE)).items()}, "features.pt")',
}

# Vectors whose mean cosine with each other is at least this are all but equal: what ranks them is noise.
ALIKE = 0.999

ODD_BOX = "feature with a box that is not (x1, y1, x2, y2), ignored"

# How many numbers (vectors x dimension) are processed at a time: 2 MB as float32, which a processor's cache holds.
CHUNK = 500_000


class Features(NamedTuple):
    """The vectors of images, one or several per image."""

    vectors: np.ndarray  # any real type [V, dimension]
    norms: np.ndarray  # float64 [V]: Euclidean length of each; 0 for one that cannot be used
    rows: dict[str, list[int]]  # path -> its vectors; of what `as_features` returns, those that can be used
    boxes: np.ndarray | None  # float64 [V, 4], NaN where there is none; None if no image has boxes


class ImageVectors(NamedTuple):
    """The vectors of an image as they are in a file."""

    vectors: np.ndarray  # any real type [objects, dimension]
    boxes: np.ndarray | None  # float64 [objects, 4]
    has_odd_box: bool  # one that is not (x1, y1, x2, y2)


def read_features(path: str, annotations: Annotations, findings: Findings) -> Features:
    """Read the features of the images of an annotation file; unusable ones are added to the findings.

    Raises SoirError if the file cannot be read, is in none of the forms, or has no feature that can be used for any
    query, or for any gallery image.
    """
    kind = kind_of_file(path) if os.path.exists(path) else ""
    for start, lines in CONVERSIONS.items():
        if kind.startswith(start):
            raise SoirError(
                f"{path} is {kind}, and features are expected in .npz or .pt; two lines convert it: {lines}"
            )
    content = load_npz(path) if path.lower().endswith(".npz") else load_values(path, arrays=True)
    return as_features(content, path, annotations, unpacked_limit(os.path.getsize(path)), findings)


def as_features(content: Any, place: str, annotations: Annotations, limit: int, findings: Findings) -> Features:
    """Features in any form, as a file or a caller has them; see `read_features`.

    place  what messages call them: the path of their file
    limit  bytes that their arrays may take
    """
    try:
        if not isinstance(content, dict) or not content:
            raise ValueError("expected a dict, path -> vector, or paths and features")
        if {"paths", "features"} <= set(content):
            features = read_index(place, content, annotations, limit, findings)
        else:
            features = read_images(place, content, annotations, limit, findings)
    except ValueError as error:
        raise SoirError(f"{place} holds no features: {error}") from error
    if features.boxes is not None:
        of_gallery = [rows for name, rows in features.rows.items() if not annotations[name]["is_query"]]
        boxes = features.boxes[np.array(list(chain.from_iterable(of_gallery)), dtype=np.int64)]
        report_shares(place, [boxes], findings)
        if np.isnan(boxes).all():  # there are boxes of queries only, which nothing is compared with
            features = features._replace(boxes=None)
    features = without_unusable(features, annotations, findings)
    for kind, is_query in (("queries", True), ("gallery images", False)):
        own = [rows for name, rows in features.rows.items() if annotations[name]["is_query"] is is_query]
        if not own:
            reasons = [reason for reason in (*findings.skipped, *findings.noticed) if reason.startswith(kind[:4])]
            raise SoirError(f"{place} has no feature of {kind} that can be used: {'; '.join(reasons)}")
        cosine = mean_cosine(features, list(chain.from_iterable(own)))
        if len(own) > 1 and cosine >= ALIKE:
            reason = f"features of the {kind} that are all but equal: noise, or the order of the file, ranks them"
            findings.notice(reason, f"{place}, mean cosine {cosine:.6f}")
    return features


def mean_cosine(features: Features, rows: list[int]) -> float:
    """The mean cosine similarity of some vectors with each other, and themselves."""
    total = np.zeros(features.vectors.shape[1])
    step = max(1, CHUNK // max(1, len(total)))
    for start in range(0, len(rows), step):
        chosen = rows[start : start + step]
        total += (1 / features.norms[chosen]) @ as_float32(features.vectors[chosen])
    return float(total @ total) / max(1, len(rows)) ** 2


def match_names(names: Iterable[Any], annotations: Annotations, place: str, findings: Findings) -> dict[Any, str]:
    """Name of a file -> the path of the image that it is of; without those of no image."""
    find = spelling_finder(annotations)
    matched = {}
    for name in (name for name in names if isinstance(name, str)):
        path = find(name)
        if path is not None:
            matched[name] = path
    exact = set(matched)
    respelled = [name for name, path in matched.items() if name != path]
    for name in respelled:
        if matched[name] in exact:  # the image has a feature under its own name
            del matched[name]
    if respelled:
        findings.notice(SPELLED, f"{place}: {shorten(respelled[0])}")
    return matched


def read_index(
    place: str, content: dict[str, Any], annotations: Annotations, limit: int, findings: Findings
) -> Features:
    """The features of `paths`, `features`, and perhaps `boxes`. Raises ValueError if they do not go together, and
    SoirError if they are of none of the images."""
    paths = as_texts(content["paths"], limit)
    vectors = as_matrix(content["features"], 2, limit)
    if paths is None or vectors is None or len(paths) != len(vectors):
        raise ValueError("expected a list of paths, and a vector for each: a matrix [vectors, dimension]")
    if vectors.shape[1] == 1:
        raise ValueError("its vectors have one number each: expected a matrix [vectors, dimension]")
    rows: dict[str, list[int]] = {}
    matched = match_names(dict.fromkeys(paths), annotations, place, findings)
    for row, name in enumerate(paths):
        if name in matched:
            rows.setdefault(matched[name], []).append(row)
    if not rows:
        raise _of_no_image(place, paths[:1], annotations)
    boxes = content.get("boxes")
    if boxes is not None:
        boxes = as_matrix(boxes, 2, limit)
        if boxes is None or boxes.shape != (len(paths), 4):
            raise ValueError("expected a box (x1, y1, x2, y2) for each vector in `boxes`")
        boxes, is_odd = as_boxes(boxes)
        for name, own in rows.items():
            if is_odd[own].any() and not annotations[name]["is_query"]:  # boxes of queries are not looked at
                findings.skip(ODD_BOX, name)
    return Features(vectors, norms_of(vectors), rows, boxes)


def read_images(
    place: str, content: dict[Any, Any], annotations: Annotations, limit: int, findings: Findings
) -> Features:
    """The features of path -> vector, matrix or dict. Raises SoirError, or ValueError."""
    images: dict[str, ImageVectors | None] = {}  # None: what there is cannot be used, and has been listed
    example = next(iter(content))
    matched = match_names(content, annotations, place, findings)
    for name in list(content):
        objects = as_objects(name, content.pop(name), limit)
        limit -= 8 * objects.vectors.size if objects else 0
        path = matched.get(name) if isinstance(name, str) else None
        if objects is None:
            findings.skip("feature that is no vector of numbers", shorten(name))
        elif objects.has_odd_box and path is not None and not annotations[path]["is_query"]:
            findings.skip(ODD_BOX, path)  # boxes of queries are not looked at
        if path is not None:
            images[path] = objects
    dimensions = Counter(objects.vectors.shape[1] for objects in images.values() if objects and len(objects.vectors))
    if not dimensions and images:
        raise ValueError("expected for each image a vector of numbers, a matrix of them, or `vectors` and `boxes`")
    if not dimensions:
        raise _of_no_image(place, [example], annotations)
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
    boxes, is_odd = None, np.zeros(0, dtype=bool)
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
        boxes, is_odd = as_boxes(boxes)
    return ImageVectors(matrix, boxes, bool(is_odd.any()))


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


def _of_no_image(place: str, found: list[Any], annotations: Annotations) -> SoirError:
    what = f"paths like {shorten(found[0])}" if found else "nothing that is a vector of numbers"
    hint = why_unknown(found[0], annotations) if found and isinstance(found[0], str) else ""
    expected = next(iter(annotations))
    return SoirError(
        f"{place} has a feature for none of the images: expected paths like {expected}, found {what}{hint}"
    )
