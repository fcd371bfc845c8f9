"""The protocol (soir/protocol.py): what is relevant to a query, what it competes over, localization, difficulty."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from helpers import (
    CORNER,
    MIDDLE,
    any_set,
    average_precision,
    by_cosine,
    competes,
    counts_of,
    gallery_of,
    make_photograph,
    make_query,
    queries_of,
    random_annotations,
    random_vectors,
    refused,
    relevant_paths,
    save,
    score,
    verify,
    with_splits,
    write_json,
)

# ----------------------------------------------------------------------------------------------------- what is relevant


@pytest.mark.parametrize("option", ["--rankings", "--features"])
@pytest.mark.parametrize("split", [None, "train", "val"])
def test_rankings_and_features_of_a_model_agree_and_leave_out_what_is_unknown(tmp_path, option, split):
    annotations = with_splits(random_annotations(35, images=90))
    vectors, gallery = random_vectors(annotations), gallery_of(annotations)
    file = tmp_path / "features.npz"
    if option == "--rankings":
        run = {query: by_cosine(query, gallery, vectors) for query in queries_of(annotations)}
        file = write_json(tmp_path, run)
    else:
        np.savez(str(file), **vectors)
    args = ["--split", split] if split else []
    done, report, rows = score(tmp_path, annotations, option, file, *args)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = {}
    for query in queries_of(annotations):
        if split in (None, annotations[query]["split"]):
            rivals = [path for path in gallery if competes(annotations, query, path)]
            rivals = [path for path in rivals if split in (None, annotations[path]["split"])]
            relevant = set(relevant_paths(annotations, query)) & set(rivals)
            if relevant:
                expected[query] = average_precision(by_cosine(query, rivals, vectors), relevant)
    assert {query: float(row["AP"]) for query, row in rows.items()} == pytest.approx(expected)
    if split:
        assert report["scored"]["split"] == split
        assert set(report["groups"]) >= {"all", "set: OWID", f"split: {split}"}


def test_val_images_are_not_relevant_to_train_queries_in_verify_either(tiny):
    """Nobody annotated train instances in them; that one is there all the same does not make it an answer."""
    annotations = tiny.annotations()
    asked, shown = "OWID/P1/3/rgb/000000.jpg", "OWID/P2/images/000000.jpg"
    annotations[asked]["ins"], annotations[shown]["ins"] = 777, [777]
    annotations[shown]["split"] = "val"
    for split in ("train", "val"):
        annotations[asked]["split"] = split
        _, report = verify(save(tiny.root, annotations), tiny.root, "--skip-paths")
        unanswered = [issue["path"] for issue in report["issues"] if issue["check"] == "query-unanswered"]
        assert (asked in unanswered) == (split == "train")
        assert report["statistics"]["OWID"]["queries_unanswered"] == len(unanswered)


def test_instances_are_matched_within_a_set_only(tmp_path):
    """Ids of OWID and RoboTools collide: 77 of the one does not answer 77 of the other."""
    entries = {"q0.png": make_query(77, "a"), "q1.png": make_query(3, "b"), "q2.png": make_query(4, "a")}
    entries.update({"g0.png": make_photograph([77, 3], "b"), "g1.png": make_photograph([4], "a")})
    _, report = verify(save(tmp_path, entries), tmp_path, "--skip-paths")
    assert counts_of(report) == {"query-unanswered": 1, "instance-unqueried": 1}
    _, _, rows = score(tmp_path, entries, "--rankings", dict.fromkeys(queries_of(entries), gallery_of(entries)))
    assert {query: row["AP"] for query, row in rows.items()} == {"q1.png": "1.0", "q2.png": "1.0"}


def test_what_shows_any_instance_of_a_query_is_relevant(tmp_path):
    entries = {
        "q0.png": make_query([1, 2]),
        "q1.png": make_query([3]),
        "g0.png": make_photograph([1]),
        "g1.png": make_photograph([2], bbox=[None]),
        "g2.png": make_photograph([1, 2], bbox=[MIDDLE, CORNER]),
        "g3.png": make_photograph([3]),
    }
    file = save(tmp_path, entries)
    done, report = verify(file, tmp_path, "--skip-paths")
    assert (done.returncode, counts_of(report)) == (0, {"form-single": 1})  # a list of one id
    assert report["statistics"]["mine"]["relevant_per_query_mean"] == 2  # 3 and 1
    assert report["statistics"]["mine"]["instances"] == 3
    rankings = {"q0.png": ["g3.png", "g1.png", "g0.png", "g2.png"], "q1.png": ["g3.png"]}
    done, report, _ = score(tmp_path, file, "--rankings", rankings)
    assert done.returncode == 0, done.stdout
    assert report["groups"]["all"]["mAP"] == pytest.approx(((1 / 2 + 2 / 3 + 3 / 4) / 3 + 1) / 2)
    del entries["g0.png"], entries["g1.png"], entries["g2.png"]
    assert counts_of(verify(save(tmp_path, entries), tmp_path, "--skip-paths")[1])["query-unanswered"] == 1


@pytest.mark.parametrize("name, is_there", [("mine", True), ("Mine", True), ("theirs", False)])
def test_a_set_of_any_name_can_be_chosen(tmp_path, name, is_there):
    rankings = dict.fromkeys(("q0.png", "q1.png"), ["g0.png", "g1.png"])
    done, _, _ = score(tmp_path, any_set("mine"), "--rankings", rankings, "--set", name)
    if is_there:
        assert done.returncode == 0
    else:
        refused(done, "its sets: mine")


def test_a_split_that_is_not_in_the_file_is_named(tmp_path):
    annotations = with_splits(random_annotations(35, sets=("RoboTools",)))
    refused(score(tmp_path, annotations, "--rankings", {}, "--split", "val")[0], "its splits: test")


def test_instances_are_numbered_alike_in_every_run(tmp_path):
    """The resamples of an interval depend on it, and Python's order of a set of texts changes from run to run."""
    entries = {f"q{n}.png": make_query([n, n + 1] if n % 2 else n, "ab"[n % 3 == 0]) for n in range(12)}
    entries.update({f"g{n}.png": make_photograph([n], "ab"[n % 2]) for n in range(14)})
    rankings = {query: random.Random(query).sample(gallery_of(entries), 14) for query in queries_of(entries)}
    anns, run, report = save(tmp_path, entries), write_json(tmp_path, rankings), tmp_path / "report.json"
    command = [sys.executable, ROOT / "evaluate_retrieval.py", anns, "--rankings", run, "--report", report]
    intervals = []
    for seed in range(3):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        subprocess.run(list(map(str, command)), env=environment, stdout=subprocess.PIPE, check=True)
        intervals.append(json.loads(report.read_text())["groups"]["all"]["mAP_interval"])
    assert intervals[0][0] < intervals[0][1]
    assert intervals == [intervals[0]] * 3


# --------------------------------------------------------------------------------------------------------- localization


def test_boxes_are_scored_by_iou_of_the_first_hit(tmp_path):
    entries = {"q0.png": make_query(0)}
    for number, ins in enumerate(([1], [0, 0], [0])):
        boxes = [(10, 10, 20, 20), (50, 50, 70, 70)][: len(ins)]
        entries[f"g{number}.png"] = make_photograph(ins, bbox=boxes)
    ranking = [
        ["g0.png", 3.0, [10, 10, 20, 20]],
        ["g1.png", 2.0, [50, 50, 70, 60]],  # half of the second box
        ["g2.png", 1.0, [10, 10, 20, 20]],
    ]
    _, report, _ = score(tmp_path, entries, "--rankings", {"q0.png": ranking})
    overall = report["groups"]["all"]
    assert (overall["IoU"], overall["IoU>=0.5@1"], overall["IoU>=0.5@5"]) == (pytest.approx(0.5), 0, 1)
    ranking[1][2] = [50, 50, 70, 59]
    ranking.pop()
    _, report, _ = score(tmp_path, entries, "--rankings", {"q0.png": ranking})
    overall = report["groups"]["all"]
    assert (overall["IoU"], overall["IoU>=0.5@100"]) == (pytest.approx(0.45), 0)


def test_boxes_of_matrices_are_scored(tmp_path):
    annotations = random_annotations(34, sets=("OWID",))
    queries, gallery = queries_of(annotations), gallery_of(annotations)
    boxes = np.full((len(queries), len(gallery), 4), np.nan)
    for row, query in enumerate(queries):
        for column, path in enumerate(gallery):
            if annotations[query]["ins"] in annotations[path]["ins"]:
                at = annotations[path]["ins"].index(annotations[query]["ins"])
                boxes[row, column] = annotations[path]["bbox"][at]
    indices = np.tile(np.arange(len(gallery)), (len(queries), 1))
    for scale, notice in ((1, False), (1 / 64, True)):
        arrays = {"queries": queries, "gallery": gallery, "indices": indices, "boxes": boxes * scale}
        np.savez(str(tmp_path / "r.npz"), **arrays)
        done, report, _ = score(tmp_path, annotations, "--rankings", tmp_path / "r.npz")
        assert done.returncode == 0, done.stdout
        assert (report["groups"]["all"]["IoU"] == 1) != notice
        line = "1 x run whose boxes lie within 0..1: if they are shares of the image, its IoU means nothing"
        assert (line in done.stdout) == notice


def test_a_query_that_finds_nothing_localizes_nothing(tmp_path):
    """It counts 0 for IoU as for hit@K, so the first is never above the second."""
    annotations = random_annotations(0)
    queries, gallery = queries_of(annotations), gallery_of(annotations)
    run = {query: [[path, None, [1, 1, 4, 4]] for path in gallery] for query in queries[1::2]}
    done, report, rows = score(tmp_path, annotations, "--rankings", run)
    assert done.returncode == 1
    ious = [float(row["IoU"]) for row in rows.values()]
    assert len(rows) / 2 <= ious.count(0) < len(rows)
    overall = report["groups"]["all"]
    assert overall["IoU"] == pytest.approx(np.mean(ious))
    assert overall["queries_with_boxes"] == overall["queries"]
    for k in (1, 5, 10):
        assert overall[f"IoU>=0.5@{k}"] <= overall[f"hit@{k}"]


@pytest.mark.parametrize("box", [(0, 0, 1e-200, 1e-200), (0, 0, 1e-308, 1)])
def test_boxes_without_an_area_have_no_iou(tmp_path, box):
    entries = {"q0.png": make_query(), "g0.png": make_photograph(bbox=[box])}
    done, report, _ = score(tmp_path, entries, "--rankings", {"q0.png": [["g0.png", 1, box]]})
    assert (done.returncode, done.stderr) == (0, "")
    assert 0 <= report["groups"]["all"]["IoU"] <= 1


# -------------------------------------------------------------------------------------------------- difficulty and size


def test_difficulty_counts_objects_not_images(tmp_path):
    """Images show up to three objects of an instance: fewer than 5 images of each, so all were hard by images."""
    occurrences = {1: 4, 2: 5, 3: 10, 4: 11}
    entries = {f"q{instance}.png": make_query(instance) for instance in occurrences}
    for instance, number in occurrences.items():
        for first in range(0, number, 3):
            entries[f"g{instance}-{first}.png"] = make_photograph([instance] * min(3, number - first))
    _, report = verify(save(tmp_path, entries), tmp_path, "--skip-paths")
    figures = report["statistics"]["mine"]
    assert [figures[f"instances_{name}"] for name in ("hard", "medium", "easy")] == [1, 2, 1]
    _, report, rows = score(tmp_path, entries, "--rankings", dict.fromkeys(queries_of(entries), []))
    assert {row["instance"]: row["difficulty"] for row in rows.values()} == {
        "1": "hard",
        "2": "medium",
        "3": "medium",
        "4": "easy",
    }
    groups = {name: values["queries"] for name, values in report["groups"].items() if "difficulty" in name}
    assert groups == {"difficulty: easy": 1, "difficulty: medium": 2, "difficulty: hard": 1}


def test_groups_count_their_queries(tmp_path):
    annotations = random_annotations(5)
    for entry in annotations.values():
        entry["split"] = "test" if entry["set"] == "RoboTools" else "train"
    queries = queries_of(annotations)
    done, report, _ = score(tmp_path, annotations, "--rankings", {query: [] for query in queries})
    groups = report["groups"]
    assert groups["all"]["queries"] == 20  # of 24; an instance of each set, two queries, is shown nowhere
    assert groups["set: OWID"]["queries"] == groups["split: train"]["queries"] == 10
    assert sum(v["queries"] for name, v in groups.items() if name.startswith("difficulty")) == 20
    assert groups["size: unknown"]["queries"] == 10  # RoboTools has no masks, and there are no images here
    assert groups["size: above 2 %"]["queries"] == 10  # boxes of 9 % of the image
    assert "4 x query without relevant gallery images" in done.stdout
    run = {query: [] for query in queries if query.startswith("OWID")}
    done, report, _ = score(tmp_path, annotations, "--rankings", run, "--set", "OWID")
    assert (done.returncode, report["groups"]["all"]["queries"]) == (1, 10)


def test_an_object_that_is_the_whole_image_is_100_percent_of_it_whether_the_image_is_there_or_not(tmp_path):
    entries, rankings = {}, {}
    for number, box in enumerate([None, (0, 0, 5, 5)]):
        entries[f"q{number}.png"] = make_query(number, bbox=None)
        entries[f"g{number}.png"] = make_photograph([number], bbox=[box])
        rankings[f"q{number}.png"] = ["g0.png", "g1.png"]
    done, report, rows = score(tmp_path, entries, "--rankings", rankings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [rows[f"q{number}.png"]["object_size"] for number in range(2)] == ["100.0", ""]
    assert report["groups"]["size: above 2 %"]["queries"] == report["groups"]["size: unknown"]["queries"] == 1
