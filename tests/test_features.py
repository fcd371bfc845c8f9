"""Files of features (soir/features.py): their forms, and what in them is refused or listed as a fault."""

import numpy as np
import pytest
import torch
from helpers import (
    average_precision,
    by_cosine,
    competes,
    gallery_of,
    iou,
    make_photograph,
    make_query,
    queries_of,
    random_annotations,
    random_vectors,
    refused,
    relevant_paths,
    save,
    score,
)

HUGE = 10**400

# ---------------------------------------------------------------------------------------------------------------- forms


def save_features(folder, form, vectors, boxes=None):
    """Save features, path -> vectors [objects, dimension], perhaps with boxes [objects, 4]. Returns the file.

    form  "dict", of a matrix per image; "arrays", the same in .npz; or "index", of one vector per row
    """
    if form == "arrays":
        np.savez(str(folder / "f.npz"), **vectors)
        return folder / "f.npz"
    if form == "index":
        arrays = {"paths": [path for path in vectors for _ in vectors[path]]}
        arrays["features"] = np.concatenate(list(vectors.values()))
        if boxes:
            arrays["boxes"] = np.concatenate([boxes[path] for path in vectors])
        np.savez(str(folder / "f.npz"), **arrays)
        return folder / "f.npz"
    if boxes:
        content = {p: {"vectors": torch.tensor(v), "boxes": torch.tensor(boxes[p])} for p, v in vectors.items()}
    else:
        content = {path: torch.tensor(matrix) for path, matrix in vectors.items()}
    return save(folder, content, "f.pt")


def one_each(vectors):
    return {path: vector[None] for path, vector in vectors.items()}


def as_tensors(vectors):
    return {path: torch.tensor(vector) for path, vector in vectors.items()}


@pytest.mark.parametrize("form", ["vectors.pt", "vectors.npz", "matrix.pt", "matrix.npz"])
def test_features_are_ranked_by_cosine_within_the_set(tmp_path, form):
    annotations = random_annotations(9)
    features, file = random_vectors(annotations), tmp_path / form
    content = features
    if form.startswith("matrix"):
        content = {"paths": list(features), "features": np.stack(list(features.values()))}
    if form.endswith("npz"):
        np.savez(str(file), **content)
    else:
        save(tmp_path, {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in content.items()}, form)
    done, _, rows = score(tmp_path, annotations, "--features", file)
    assert done.returncode == 0, done.stdout + done.stderr
    for query, row in rows.items():
        rivals = [path for path in gallery_of(annotations) if competes(annotations, query, path)]
        ranked = by_cosine(query, rivals, features)
        assert float(row["AP"]) == pytest.approx(average_precision(ranked, relevant_paths(annotations, query)))


def test_a_vector_per_image_and_a_matrix_of_one_row_are_the_same(tmp_path):
    annotations = random_annotations(41)
    vectors = as_tensors(random_vectors(annotations))
    groups = []
    for change in (
        lambda v: v,
        lambda v: v[None],
        lambda v: {"vectors": v, "boxes": None},
        lambda v: {"vectors": v[None]},
    ):
        features = {path: change(vector) for path, vector in vectors.items()}
        done, report, _ = score(tmp_path, annotations, "--features", features)
        assert done.returncode == 0, done.stdout + done.stderr
        groups.append(report["groups"])
    assert groups == [groups[0]] * 4


def test_an_index_may_have_more_arrays(tmp_path):
    annotations = random_annotations(0)
    vectors = random_vectors(annotations)
    index, figures = {"paths": list(vectors), "features": np.stack(list(vectors.values()))}, []
    for more in ({}, {"scores": np.ones(len(vectors))}):
        np.savez(str(tmp_path / "f.npz"), **index, **more)
        figures.append(score(tmp_path, annotations, "--features", tmp_path / "f.npz")[1]["groups"])
    assert figures[0] == figures[1]


def objects_of(annotations, seed=0, dimension=8):
    """(path -> vectors [objects, dimension], path -> boxes [objects, 4]): of queries one or two, of images 1 to 6."""
    rng = np.random.RandomState(seed)
    vectors, boxes = {}, {}
    for path, entry in annotations.items():
        count = rng.randint(1, 3 if entry["is_query"] else 7)
        at = rng.randint(0, 6, (count, 2))
        boxes[path] = np.concatenate([at, at + rng.randint(1, 5, (count, 2))], axis=1).astype(float)
        vectors[path] = rng.randn(count, dimension).astype(np.float32)
    return vectors, boxes


def by_best_pair(query, gallery, vectors, boxes):
    """(paths by the cosine of the best pair, path -> box of the best object), in a loop over all pairs."""
    scores, found = {}, {}
    for path in gallery:
        for vector, box in zip(vectors[path], boxes[path]):
            for asked in vectors[query]:
                cosine = float(np.dot(asked.astype(float), vector)) / np.linalg.norm(asked) / np.linalg.norm(vector)
                if path not in scores or cosine > scores[path]:
                    scores[path], found[path] = cosine, box
    return sorted(gallery, key=lambda path: -scores[path]), found


@pytest.mark.parametrize(
    "form, has_boxes",
    [*((form, boxes) for form in ("dict", "index", "shuffled index") for boxes in (True, False)), ("arrays", False)],
)
def test_objects_are_ranked_by_the_best_pair_and_localized_by_its_box(tmp_path, form, has_boxes):
    annotations = random_annotations(40, images=40)
    (vectors, boxes), gallery = objects_of(annotations), gallery_of(annotations)
    file = save_features(tmp_path, form.split()[-1], vectors, boxes if has_boxes else None)
    if form == "shuffled index":
        with np.load(str(file)) as arrays:
            order = np.random.RandomState(0).permutation(len(arrays["paths"]))
            shuffled = {name: array[order] for name, array in arrays.items()}
        np.savez(str(file), **shuffled)
    done, report, rows = score(tmp_path, annotations, "--features", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("IoU" in report["groups"]["all"]) == has_boxes
    for query, row in rows.items():
        rivals = [path for path in gallery if competes(annotations, query, path)]
        ranked, found = by_best_pair(query, rivals, vectors, boxes)
        relevant = relevant_paths(annotations, query)
        assert float(row["AP"]) == pytest.approx(average_precision(ranked, relevant))
        if has_boxes:
            first = next(path for path in ranked if path in relevant)
            ious = {}
            for path in relevant:
                shown = zip(annotations[path]["bbox"], annotations[path]["ins"])
                ious[path] = max(iou(found[path], box) for box, ins in shown if ins == annotations[query]["ins"])
            assert float(row["IoU"]) == pytest.approx(ious[first])
            good = any(path in relevant and ious[path] >= 0.5 for path in ranked[:10])
            assert float(row["IoU>=0.5@10"]) == good


# ---------------------------------------------------------------------------------------------------------------- boxes


def test_boxes_of_queries_only_are_no_boxes_of_a_run(tmp_path):
    annotations = random_annotations(0)
    vectors = one_each(random_vectors(annotations))
    boxes = {path: np.full((1, 4), np.nan) for path in annotations}
    boxes.update(dict.fromkeys(queries_of(annotations), np.array([[1.0, 1, 4, 4]])))
    done, report, _ = score(tmp_path, annotations, "--features", save_features(tmp_path, "index", vectors, boxes))
    assert done.returncode == 0, done.stdout
    assert "IoU" not in report["groups"]["all"]


@pytest.mark.parametrize("share, is_noticed", [(0.4, False), (0.6, True)])
def test_features_whose_boxes_are_shares_of_the_image_are_noticed(tmp_path, share, is_noticed):
    annotations = random_annotations(0)
    vectors = one_each(random_vectors(annotations))
    shares, pixels = np.array([[0, 0.25, 1, 0.5]]), np.array([[1.0, 1, 9, 9]])
    boxes = {path: shares if number < share * len(vectors) else pixels for number, path in enumerate(vectors)}
    done, _, _ = score(tmp_path, annotations, "--features", save_features(tmp_path, "index", vectors, boxes))
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("1 x run whose boxes lie within 0..1" in done.stdout) == is_noticed


@pytest.mark.parametrize("box", [[4, 4, 1, 1], [4, float("inf"), 9, 9], [1, 1, float("nan"), 9]])
@pytest.mark.parametrize("form", ["dict", "index"])
def test_a_box_of_features_that_is_none_is_a_fault(tmp_path, form, box):
    annotations = random_annotations(0)
    vectors, odd = one_each(random_vectors(annotations)), gallery_of(annotations)[0]
    boxes = {path: np.array([box if path == odd else [1, 1, 9, 9]], dtype=np.float64) for path in vectors}
    done, report, _ = score(tmp_path, annotations, "--features", save_features(tmp_path, form, vectors, boxes))
    assert done.returncode == 1
    assert report["faults"] == {"feature with a box that is not (x1, y1, x2, y2), ignored": [odd]}


# --------------------------------------------------------------------------------------------------------------- faults


NAN = float("nan")
NO_VECTORS = {
    "complex": torch.ones(8, dtype=torch.complex64),
    "empty": torch.ones(0),
    "text": "12345678",
    "None": None,
    "dict": {"a": 1},
    "list of text": ["1"] * 8,
    "list of lists": [[1] * 8],
    "list of a number beyond any float": [HUGE] * 8,
}
FAULTS = {
    "missing": (..., "without a feature"),
    "of two numbers": (torch.ones(2), "not of length 8"),
    "NaN": (torch.full((8,), NAN), "not finite, or zero"),
    "zero": (torch.zeros(8), "not finite, or zero"),
    **{name: (value, "feature that is no vector of numbers") for name, value in NO_VECTORS.items()},
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("path", ["OWID/query 0", "OWID/image 0"])
def test_features_that_cannot_be_compared_are_named(tmp_path, name, path):
    annotations = random_annotations(10, sets=("OWID",))
    vectors = as_tensors(random_vectors(annotations))
    value, words = FAULTS[name]
    vectors[path] = value
    if value is ...:
        del vectors[path]
    done, report, _ = score(tmp_path, annotations, "--features", vectors)
    assert (done.returncode, done.stderr) == (1, "")
    (reason,) = [reason for reason in report["faults"] if words in reason]
    assert report["faults"][reason] == [path]


@pytest.mark.parametrize("of_what", ["queries", "gallery images"])
@pytest.mark.parametrize("name", FAULTS)
def test_features_none_of_which_can_be_compared_are_refused(tmp_path, name, of_what):
    annotations = random_annotations(10, sets=("OWID",))
    vectors = as_tensors(random_vectors(annotations))
    value, words = FAULTS[name]
    for path in vectors.copy():
        if ("query" in path) is (of_what == "queries"):
            vectors[path] = value
            if value is ...:
                del vectors[path]
    done, _, _ = score(tmp_path, annotations, "--features", vectors)
    kind = "queries" if name == "of two numbers" else of_what  # most images are of the gallery, and most are right
    refused(done, f"has no feature of {kind} that can be used", "" if name in NO_VECTORS else words[:9])


def test_queries_of_a_gallery_without_features_are_scored_0(tmp_path):
    annotations = random_annotations(10, sets=("OWID", "RoboTools"))
    vectors = as_tensors({path: vector for path, vector in random_vectors(annotations).items() if "OWID/i" not in path})
    done, report, rows = score(tmp_path, annotations, "--features", vectors)
    assert (done.returncode, done.stderr) == (1, "")
    assert [len(paths) for paths in report["faults"].values()] == [60]
    assert {float(row["AP"]) for path, row in rows.items() if path.startswith("OWID")} == {0}


def test_an_image_without_objects_is_not_retrieved_and_is_no_fault(tmp_path):
    annotations = random_annotations(42, sets=("OWID",))
    vectors = {**one_each(random_vectors(annotations)), "OWID/image 0": np.zeros((0, 8), dtype=np.float32)}
    done, _, _ = score(tmp_path, annotations, "--features", save_features(tmp_path, "dict", vectors))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 x gallery image without objects in the features, counted as not retrieved: OWID/image 0" in done.stdout


def test_an_object_that_cannot_be_compared_is_left_out_of_its_image(tmp_path):
    annotations = random_annotations(42, sets=("OWID",))
    vectors = one_each(random_vectors(annotations))
    _, expected, _ = score(tmp_path, annotations, "--features", save_features(tmp_path, "dict", vectors))
    bad = np.array([[0.0] * 8, [NAN] * 8], dtype=np.float32)
    vectors["OWID/image 0"] = np.concatenate([bad, vectors["OWID/image 0"]])
    done, report, _ = score(tmp_path, annotations, "--features", save_features(tmp_path, "dict", vectors))
    assert done.returncode == 1
    assert "1 x gallery image with a vector that is not finite, or zero, left out: OWID/image 0" in done.stdout
    assert report["groups"] == expected["groups"]


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "form, shape, words",
    [
        ("dict", (1, 1), "one number each"),
        ("index", (1, 1), "one number each"),
        ("dict", (2, 4, 8), "OWID/query 0 is an array of 3 dimensions, (2, 4, 8)"),
        ("arrays", (2, 4, 8), "OWID/query 0 is an array of 3 dimensions, (2, 4, 8)"),
    ],
)
def test_features_of_other_dimensions_are_refused(tmp_path, form, shape, words):
    annotations = random_annotations(42)
    file = save_features(tmp_path, form, dict.fromkeys(annotations, np.ones(shape, dtype=np.float32)))
    refused(score(tmp_path, annotations, "--features", file)[0], file, words)


@pytest.mark.parametrize("value", ["a list of lists", {"features": 1}, {"vectors": [[1, 2]], "boxes": [None]}, 7])
def test_features_that_are_none_are_not_blamed_on_their_paths(tmp_path, value):
    annotations = random_annotations(0)
    done, _, _ = score(tmp_path, annotations, "--features", dict.fromkeys(annotations, value))
    assert "paths like" not in refused(done, "expected for each image a vector of numbers")


ENTRIES = {"q0.png": make_query(), "g0.png": make_photograph()}


@pytest.mark.parametrize(
    "paths, features",
    [
        (["a"], torch.tensor(5)),
        (["a"], 5),
        (["a"], torch.ones(2, 8)),
        (5, torch.ones(2, 8)),
        (None, None),
        (torch.zeros(1).expand(10**9), torch.ones(1, 1).expand(10**9, 1)),
    ],
)
def test_a_matrix_that_does_not_go_with_its_paths_cannot_be_scored(tmp_path, paths, features):
    refused(score(tmp_path, ENTRIES, "--features", {"paths": paths, "features": features})[0], "features")


def test_paths_of_features_are_text(tmp_path):
    np.savez(str(tmp_path / "features.npz"), paths=np.array([["a" * 500] * 50] * 2), features=np.ones((2, 3)))
    assert len(refused(score(tmp_path, ENTRIES, "--features", tmp_path / "features.npz")[0])) < 400
