"""evaluate_retrieval.py: runs in every form, the protocol, ties, objects, comparisons, and the faults of a run."""

import csv
import io
import json
import os
import random
import re
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT, load_plainly, refused, run_here
from PIL import Image
from scipy import stats

KS = (1, 5, 10, 50, 100)


def make_annotations(rng, queries=12, images=60, instances=6, sets=("OWID", "RoboTools")):
    """Random entries; instances from 0, of which the last of each set is shown nowhere. Ids of the sets collide."""
    mask = {"size": [10, 10], "counts": "0"}
    annotations = {}
    for name in sets:
        for number in range(queries):
            box = (0, 0, 5, 5)
            query_mask = mask if SETS_MASKED[name] else None
            entry = {"bbox": box, "mask": query_mask, "is_query": True, "ins": number % instances, "set": name}
            annotations[f"{name}/query {number}"] = entry
        for number in range(images):
            ins = [rng.randrange(instances - 1) for _ in range(rng.randrange(1, 4))]
            boxes = [(x, 1, x + 3, 4) for x in range(len(ins))]
            masks = [mask] * len(ins) if name == "OWID" else []
            entry = {"bbox": boxes, "mask": masks, "is_query": False, "ins": ins, "set": name}
            annotations[f"{name}/image {number}"] = entry
    return annotations


SETS_MASKED = {"OWID": True, "RoboTools": True, "INSTRE-XS": False}


def relevant_paths(annotations, query):
    asked = annotations[query]
    return [
        path
        for path, entry in annotations.items()
        if not entry["is_query"] and entry["set"] == asked["set"] and asked["ins"] in entry["ins"]
    ]


def competes(annotations, query, path):
    """Whether an image is one that a query is ranked against: of its set, and not unknown to a train query of OWID."""
    asked, shown = annotations[query], annotations[path]
    is_junk = asked["set"] == "OWID" and asked.get("split") == "train" and shown.get("split") == "val"
    return asked["set"] == shown["set"] and not is_junk


def queries_of(annotations):
    return [path for path, entry in annotations.items() if entry["is_query"]]


def gallery_of(annotations):
    return [path for path, entry in annotations.items() if not entry["is_query"]]


def average_precision(ranked, relevant):
    """By its definition, in a loop."""
    hits, total = 0, 0.0
    for rank, path in enumerate(ranked, start=1):
        if path in relevant:
            hits += 1
            total += hits / rank
    return total / len(relevant)


def evaluate(tmp_path, annotations, rankings, *args, suffix=".json"):
    """Score rankings: (process, groups, rows of the CSV by query path)."""
    torch.save(annotations, str(tmp_path / "anns.pt"))
    file, report, table = tmp_path / f"rankings{suffix}", tmp_path / "report.json", tmp_path / "queries.csv"
    if suffix == ".json":
        file.write_text(json.dumps(rankings))
    else:
        torch.save(rankings, str(file))
    options = ["--ann-file", tmp_path / "anns.pt", "--report", report, "--per-query", table, *args]
    done = run_here("evaluate_retrieval.py", "--rankings", file, *options)
    if done.returncode == 2:
        return done, None, None
    with open(str(table), newline="") as lines:
        rows = {row["path"]: row for row in csv.DictReader(lines)}
    return done, json.loads(report.read_text())["groups"], rows


def test_map_at_k_by_a_loop(tmp_path):
    rng = random.Random(1)
    annotations = make_annotations(rng)
    gallery = [path for path, entry in annotations.items() if not entry["is_query"]]
    rankings = {q: rng.sample(gallery, len(gallery)) for q, e in annotations.items() if e["is_query"]}
    _, _, rows = evaluate(tmp_path, annotations, rankings)
    for query, row in rows.items():
        relevant = set(relevant_paths(annotations, query))
        for k in KS:
            hits, total = 0, 0.0
            ranked = [path for path in rankings[query] if competes(annotations, query, path)]
            for rank, path in enumerate(ranked[:k], start=1):
                if path in relevant:
                    hits += 1
                    total += hits / rank
            assert float(row[f"AP@{k}"]) == pytest.approx(total / min(k, len(relevant)))


def test_a_perfect_and_an_empty_ranking(tmp_path):
    annotations = make_annotations(random.Random(2))
    queries = [path for path, entry in annotations.items() if entry["is_query"]]
    perfect = {query: relevant_paths(annotations, query) for query in queries}
    _, groups, _ = evaluate(tmp_path, annotations, perfect)
    for name in ("mAP", "MRR", "mAP@10", "nDCG@100", "hit@1", "recall@100"):
        assert groups["all"][name] == pytest.approx(1), name
    assert groups["all"]["mAP_interval"] == [1, 1]
    _, groups, _ = evaluate(tmp_path, annotations, {query: [] for query in queries})
    assert groups["all"]["mAP"] == groups["all"]["MRR"] == groups["all"]["hit@100"] == 0
    assert groups["all"]["median_first_rank"] is None


def score_file(tmp_path, annotations, option, file, *args):
    """Score a file: (process, report, rows of the CSV by query path)."""
    anns, report, table = tmp_path / "anns.pt", tmp_path / "report.json", tmp_path / "queries.csv"
    torch.save(annotations, str(anns))
    options = ["--ann-file", anns, option, file, "--report", report, "--per-query", table]
    done = run_here("evaluate_retrieval.py", *options, *args)
    if done.returncode == 2:
        return done, None, None
    with open(str(table), newline="") as lines:
        rows = {row["path"]: row for row in csv.DictReader(lines)}
    return done, json.loads(report.read_text()), rows


def trec_lines(run):
    """A run, query -> {path: score}, as TREC has it, in no order and with ranks that say nothing."""
    lines = [
        f"{q.replace(' ', '%20')} Q0 {p.replace(' ', '%20')} 1 {s} tag" for q, r in run.items() for p, s in r.items()
    ]
    return "\n".join(sorted(lines)) + "\n"


def save_form(form, folder, run, gallery):
    """Save a run, query -> [(path, score)], best first, in one of the forms that people have. Returns the file."""
    queries = list(run)
    file = folder / f"run.{form.rpartition('.')[2]}"
    number = {path: index for index, path in enumerate(gallery)}
    width = max(map(len, run.values()))
    indices, scores = np.full((len(run), width), -1), np.zeros((len(run), width))
    similarities = np.full((len(run), len(gallery)), -1e6)
    for row, items in enumerate(run.values()):
        indices[row, : len(items)] = [number[path] for path, _ in items]
        scores[row, : len(items)] = [score for _, score in items]
        similarities[row, indices[row, : len(items)]] = scores[row, : len(items)]
    kind = form.partition(".")[0]
    content = {
        "paths": {q: [path for path, _ in items] for q, items in run.items()},
        "scored": {q: [list(item) for item in items] for q, items in run.items()},
        "distances": {q: [[path, -score] for path, score in items] for q, items in run.items()},
        "knns": {"knns": {q: [path for path, _ in items] for q, items in run.items()}},
        "knns of each": {q: {"knns": [path for path, _ in items]} for q, items in run.items()},
        "run dict": {q: dict(sorted(items)) for q, items in run.items()},
        "TREC": {q: dict(items) for q, items in run.items()},
        "matrices": {"queries": queries, "gallery": gallery, "indices": indices},
        "matrices with scores": {"queries": queries, "gallery": gallery, "indices": indices, "scores": scores},
        "similarities": {"queries": queries, "gallery": gallery, "similarities": similarities},
    }[kind]
    if kind == "TREC":
        file.write_text(trec_lines(content))
    elif form.endswith("json"):
        file.write_text(json.dumps(content))
    elif form.endswith("npz"):
        np.savez(str(file), **content)
    else:
        torch.save({k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in content.items()}, str(file))
    return file


FORMS = [
    *(
        f"{kind}.{e}"
        for kind in ("paths", "scored", "distances", "knns", "knns of each", "run dict")
        for e in ("json", "pt")
    ),
    *(f"{kind}.{e}" for kind in ("matrices", "matrices with scores", "similarities") for e in ("npz", "pt")),
    *("TREC.run", "TREC.txt"),
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_run_gives_the_same_figures(tmp_path, form):
    rng = random.Random(3)
    annotations = make_annotations(rng)
    gallery = gallery_of(annotations)
    run = {
        q: [(path, 60.0 - rank) for rank, path in enumerate(rng.sample(gallery, 60))] for q in queries_of(annotations)
    }
    if form.startswith(("similarities", "matrices with")):  # these list all
        run = {q: [(path, 200.0 - r) for r, path in enumerate(rng.sample(gallery, len(gallery)))] for q in run}
    done, report, rows = score_file(tmp_path, annotations, "--rankings", save_form(form, tmp_path, run, gallery[::-1]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(rows) > 15
    for query, row in rows.items():
        ranked = [path for path, _ in run[query] if competes(annotations, query, path)]
        assert float(row["AP"]) == pytest.approx(average_precision(ranked, relevant_paths(annotations, query)))
    assert report["groups"]["all"]["mAP"] == pytest.approx(np.mean([float(row["AP"]) for row in rows.values()]))


@pytest.mark.parametrize(
    "form", ["run dict.json", "TREC.run", "similarities.npz", "scored.json", "matrices with scores.npz"]
)
def test_ties_of_every_form_are_in_gallery_order(tmp_path, form):
    rng = random.Random(31)
    annotations = make_annotations(rng)
    gallery = gallery_of(annotations)
    run = {}
    for query in queries_of(annotations):
        scores = {path: float(rng.randrange(4)) for path in rng.sample(gallery, len(gallery))}
        run[query] = sorted(scores.items(), key=lambda item: -item[1])
    _, _, rows = score_file(tmp_path, annotations, "--rankings", save_form(form, tmp_path, run, gallery[::-1]))
    for query, row in rows.items():
        scores = dict(run[query])
        ranked = sorted((p for p in gallery if competes(annotations, query, p)), key=lambda path: -scores[path])
        assert float(row["AP"]) == pytest.approx(average_precision(ranked, relevant_paths(annotations, query)))


def test_the_results_file_of_the_papers_code_is_read(tmp_path):
    """As its search saves it: a dict of lists, arrays of NumPy beside, an image once per object of it."""
    rng = random.Random(32)
    annotations = make_annotations(rng)
    gallery, queries = gallery_of(annotations), queries_of(annotations)
    knns = {query: [path for path in rng.sample(gallery, 60) for _ in range(rng.randrange(1, 4))] for query in queries}
    content = {
        "knns": knns,
        "similarities": np.zeros((len(queries), 150), dtype=np.float32),
        "queries": queries,
        "gallery": gallery,
        "query_labels": [annotations[query]["ins"] for query in queries],
        "mAP": 0.5,
    }
    torch.save(content, str(tmp_path / "results.pt"))
    done, _, rows = score_file(tmp_path, annotations, "--rankings", tmp_path / "results.pt")
    assert done.returncode == 0, done.stdout + done.stderr
    for query, row in rows.items():
        ranked = [path for path in dict.fromkeys(knns[query]) if competes(annotations, query, path)]
        assert float(row["AP"]) == pytest.approx(average_precision(ranked, relevant_paths(annotations, query)))


def test_paths_with_white_space_are_percent_encoded_in_trec_files(tmp_path):
    annotations = make_annotations(random.Random(33))
    odd = {path: path.replace("image", "an image\t100%25 \u00e9") for path in annotations}
    annotations = {odd[path]: entry for path, entry in annotations.items()}
    rankings = {q: random.Random(q).sample(gallery_of(annotations), 100) for q in queries_of(annotations)}
    _, groups, _ = evaluate(tmp_path, annotations, rankings, "--trec", tmp_path / "out.run")
    done, report, _ = score_file(tmp_path, annotations, "--rankings", tmp_path / "out.run")
    assert done.returncode == 0, done.stdout
    assert report["groups"] == groups


NO_FORM = {
    "a list": ("r.json", "[1, 2]"),
    "a text": ("r.json", '"text"'),
    "numbers by query": ("r.json", '{"OWID/query 0": 5}'),
    "prose": ("r.txt", "This is no run at all.\n"),
    "five columns": ("r.run", "q Q0 a 1 0.5 tag\nq Q0 b 1 0.5\n"),
    "a score that is none": ("r.run", "q Q0 a 1 high tag\n"),
    "nothing": ("r.run", ""),
}


@pytest.mark.parametrize("name", NO_FORM)
def test_a_file_in_none_of_the_forms_is_told_which_there_are(tmp_path, name):
    file, content = NO_FORM[name]
    (tmp_path / file).write_text(content)
    done, _, _ = score_file(tmp_path, make_annotations(random.Random(8)), "--rankings", tmp_path / file)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert file in done.stderr
    assert "query path -> gallery paths" in done.stderr
    assert "indices" in done.stderr


MATRICES = {
    "an index beyond the gallery": ({"indices": [[0, 120]]}, "whole numbers from -1 to 119"),
    "an index below -1": ({"indices": [[0, -2]]}, "whole numbers"),
    "indices of fractions": ({"indices": [[0.5, 1.0]]}, "whole numbers"),
    "indices in one dimension": ({"indices": [0, 1]}, "2 dimensions"),
    "more rows than queries": ({"indices": [[0], [1]]}, "expected arrays of"),
    "scores of another shape": ({"indices": [[0, 1]], "scores": [[1.0]]}, "expected arrays of (1, 2)"),
    "boxes of another shape": ({"indices": [[0]], "boxes": [[[1.0, 2, 3]]]}, "expected arrays of (1, 1, 4)"),
    "no gallery": ({"indices": [[0]], "gallery": 5.0}, "lists of paths"),
    "text for indices": ({"indices": [["0"]]}, "2 dimensions"),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("ending", ["npz", "json"])
def test_matrices_that_do_not_go_together_are_refused(tmp_path, name, ending):
    annotations = make_annotations(random.Random(8))
    change, reason = MATRICES[name]
    content = {"queries": ["OWID/query 0"], "gallery": gallery_of(annotations), **change}
    file = tmp_path / f"run.{ending}"
    if ending == "npz":
        np.savez(str(file), **content)
    else:
        file.write_text(json.dumps(content))
    done, _, _ = score_file(tmp_path, annotations, "--rankings", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert reason in done.stderr


def test_similarities_in_sorted_rows_are_refused_since_they_tell_no_image(tmp_path):
    annotations = make_annotations(random.Random(8))
    queries, gallery = queries_of(annotations), gallery_of(annotations)
    sorted_rows = np.sort(np.random.RandomState(0).rand(len(queries), len(gallery)))[:, ::-1]
    np.savez(str(tmp_path / "r.npz"), queries=queries, gallery=gallery, similarities=sorted_rows)
    done, _, _ = score_file(tmp_path, annotations, "--rankings", tmp_path / "r.npz")
    assert done.returncode == 2
    assert "save its `knns` too" in done.stderr


@pytest.mark.parametrize("form", ["dict", "trec"])
def test_ranks_in_place_of_scores_are_noticed(tmp_path, form):
    """They are scored as they stand, the highest first, as trec_eval and ranx do."""
    annotations = make_annotations(random.Random(34))
    lists = {query: gallery_of(annotations) for query in queries_of(annotations)}
    for is_rank in (True, False):
        run = {q: {p: rank if is_rank else 1 / rank for rank, p in enumerate(r, 1)} for q, r in lists.items()}
        file = tmp_path / "run.txt"
        lines = (f"{q.replace(' ', '%20')} Q0 {p.replace(' ', '%20')} 7 {s} t" for q in run for p, s in run[q].items())
        file.write_text(json.dumps(run) if form == "dict" else "\n".join(lines))
        done, report, _ = score_file(tmp_path, annotations, "--rankings", file)
        assert done.returncode == 0, done.stdout
        assert ("1 x run whose scores are 1, 2, 3, ...: if they are ranks" in done.stdout) == is_rank
    run = {q: {p: rank for rank, p in enumerate(r)} for q, r in lists.items()}
    (tmp_path / "zero.json").write_text(json.dumps(run))
    assert "if they are ranks" in score_file(tmp_path, annotations, "--rankings", tmp_path / "zero.json")[0].stdout
    exported = tmp_path / "own.run"
    score_file(tmp_path, annotations, "--rankings", file, "--trec", exported)
    assert "1, 2, 3" not in score_file(tmp_path, annotations, "--rankings", exported)[0].stdout


def test_what_is_no_run_is_named_for_what_it_may_be(tmp_path):
    annotations = make_annotations(random.Random(34))
    done, _, _ = score_file(tmp_path, annotations, "--rankings", tmp_path / "anns.pt")
    refused(done, "anns.pt is an annotation file")
    (tmp_path / "r.run").write_text("a query Q0 an image 1 0.5 tag\n")
    refused(score_file(tmp_path, annotations, "--rankings", tmp_path / "r.run")[0], "white space in paths as %20")
    (tmp_path / "r.run").write_text("query Q0 image 1 0.5 tag\na query Q0 an image 1 0.5 tag\n")
    refused(score_file(tmp_path, annotations, "--rankings", tmp_path / "r.run")[0], "line 2", "%20")


def test_boxes_of_matrices_are_scored(tmp_path):
    annotations = make_annotations(random.Random(34), sets=("OWID",))
    queries, gallery = queries_of(annotations), gallery_of(annotations)
    boxes = np.full((len(queries), len(gallery), 4), np.nan)
    for row, query in enumerate(queries):
        for column, path in enumerate(gallery):
            if annotations[query]["ins"] in annotations[path]["ins"]:
                at = annotations[path]["ins"].index(annotations[query]["ins"])
                boxes[row, column] = annotations[path]["bbox"][at]
    indices = np.tile(np.arange(len(gallery)), (len(queries), 1))
    np.savez(str(tmp_path / "r.npz"), queries=queries, gallery=gallery, indices=indices, boxes=boxes)
    done, report, _ = score_file(tmp_path, annotations, "--rankings", tmp_path / "r.npz")
    assert done.returncode == 0, done.stdout
    assert report["groups"]["all"]["IoU"] == 1
    np.savez(str(tmp_path / "r.npz"), queries=queries, gallery=gallery, indices=indices, boxes=boxes / 64)
    done, _, _ = score_file(tmp_path, annotations, "--rankings", tmp_path / "r.npz")
    assert done.returncode == 0
    assert "1 x run whose boxes lie within 0..1: if they are shares of the image, its IoU means nothing" in done.stdout


# -------------------------------------------------------------------------------------------------------- the protocol


def with_splits(annotations):
    """OWID's instances from 3 up are val; an image that shows one keeps its val instances only. RoboTools is test."""
    for entry in annotations.values():
        ids = [entry["ins"]] if entry["is_query"] else entry["ins"]
        entry["split"] = "test" if entry["set"] == "RoboTools" else ("val" if max(ids) >= 3 else "train")
        if entry["split"] == "val" and not entry["is_query"]:
            kept = [index for index, number in enumerate(ids) if number >= 3]
            for field in ("ins", "bbox", "mask"):
                entry[field] = [entry[field][index] for index in kept]
    return annotations


def random_vectors(annotations, seed=0, dimension=8):
    rng = np.random.RandomState(seed)
    return {path: rng.randn(dimension).astype(np.float32) for path in annotations}


def by_cosine(query, paths, vectors):
    """Paths by cosine with the query, in float64 of 12 digits; in the order of `paths` where it is equal."""
    matrix, asked = np.array([vectors[path] for path in paths], dtype=float), vectors[query].astype(float)
    cosines = np.round(matrix @ asked / np.linalg.norm(matrix, axis=1) / np.linalg.norm(asked), 12).tolist()
    scores = dict(zip(paths, cosines))
    return sorted(paths, key=lambda path: -scores[path])


@pytest.mark.parametrize("option", ["--rankings", "--features"])
@pytest.mark.parametrize("split", [None, "train", "val"])
def test_rankings_and_features_of_a_model_agree_and_leave_out_what_is_unknown(tmp_path, option, split):
    annotations = with_splits(make_annotations(random.Random(35), images=90))
    vectors, gallery = random_vectors(annotations), gallery_of(annotations)
    file = tmp_path / ("run.json" if option == "--rankings" else "features.npz")
    if option == "--rankings":
        file.write_text(json.dumps({query: by_cosine(query, gallery, vectors) for query in queries_of(annotations)}))
    else:
        save_features(file, {path.replace("/", "_"): vector for path, vector in vectors.items()})
        annotations = {path.replace("/", "_"): entry for path, entry in annotations.items()}
        vectors = {path.replace("/", "_"): vector for path, vector in vectors.items()}
        gallery = gallery_of(annotations)
    args = ["--split", split] if split else []
    done, report, rows = score_file(tmp_path, annotations, option, file, *args)
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


def test_the_report_says_what_was_scored(tmp_path):
    annotations = with_splits(make_annotations(random.Random(35)))
    (tmp_path / "run.json").write_text(json.dumps({query: [] for query in queries_of(annotations)}))
    args = ("--set", "RoboTools", "--split", "test")
    done, report, rows = score_file(tmp_path, annotations, "--rankings", tmp_path / "run.json", *args)
    scored = report["scored"]
    assert scored["annotation_file"] == str(tmp_path / "anns.pt")
    assert (scored["set"], scored["split"]) == ("RoboTools", "test")
    assert scored["queries"] == len(rows) == 10
    assert scored["queries_without_relevant_images"] == 2
    assert scored["gallery_images"] == 60
    assert scored["runs"] == [{"kind": "rankings", "file": str(tmp_path / "run.json"), "name": "run"}]
    version = run_here("evaluate_retrieval.py", "--version").stdout.split()[-1]
    assert scored["version"] == version
    assert "published mAP in %, VoxDet-SoIR, zero-shot: MaO-DINOv2 70.20" in done.stdout
    assert "fine-tuned: MaO-DINOv2 83.70" in done.stdout


def test_a_split_that_is_not_in_the_file_is_named(tmp_path):
    annotations = with_splits(make_annotations(random.Random(35), sets=("RoboTools",)))
    (tmp_path / "run.json").write_text("{}")
    done, _, _ = score_file(tmp_path, annotations, "--rankings", tmp_path / "run.json", "--split", "val")
    assert done.returncode == 2
    assert "its splits: test" in done.stderr


def test_groups_of_fewer_than_five_instances_have_no_interval(tmp_path):
    annotations = make_annotations(random.Random(36), instances=5, sets=("OWID",))  # four are shown
    rankings = {query: gallery_of(annotations) for query in queries_of(annotations)}
    done, groups, _ = evaluate(tmp_path, annotations, rankings)
    assert groups["all"]["mAP_interval"] is None
    assert re.search(r"^all +\d+ +0\.\d{4} +- +0\.\d{4}", done.stdout, re.MULTILINE)
    annotations = make_annotations(random.Random(36), instances=6, sets=("OWID",))
    rankings = {query: gallery_of(annotations) for query in queries_of(annotations)}
    low, high = evaluate(tmp_path, annotations, rankings)[1]["all"]["mAP_interval"]
    assert low < high


def test_equal_scores_are_ordered_as_the_gallery_is(tmp_path):
    rng = random.Random(4)
    annotations = make_annotations(rng)
    gallery = [path for path, entry in annotations.items() if not entry["is_query"]]
    tied, ordered = {}, {}
    for query in [path for path, entry in annotations.items() if entry["is_query"]]:
        scores = {path: rng.randrange(4) for path in gallery}
        tied[query] = [
            [path, scores[path]] for path in sorted(rng.sample(gallery, len(gallery)), key=lambda p: -scores[p])
        ]
        ordered[query] = sorted(gallery, key=lambda path: -scores[path])
    assert evaluate(tmp_path, annotations, tied)[1:] == evaluate(tmp_path, annotations, ordered)[1:]


def test_groups_count_their_queries(tmp_path):
    annotations = make_annotations(random.Random(5), queries=12, instances=6)
    for path, entry in annotations.items():
        entry["split"] = "test" if path.startswith("Robo") else "train"
    queries = [path for path, entry in annotations.items() if entry["is_query"]]
    done, groups, rows = evaluate(tmp_path, annotations, {query: [] for query in queries})
    assert groups["all"]["queries"] == 20  # of 24; an instance of each set, two queries, is shown nowhere
    assert groups["set: OWID"]["queries"] == groups["split: train"]["queries"] == 10
    assert sum(v["queries"] for name, v in groups.items() if name.startswith("difficulty")) == 20
    assert groups["size: unknown"]["queries"] == 10  # RoboTools has no masks, and there are no images here
    assert groups["size: above 2 %"]["queries"] == 10  # boxes of 9 % of the image
    assert "4 x query without relevant gallery images" in done.stdout
    only = evaluate(tmp_path, annotations, {q: [] for q in queries if q.startswith("OWID")}, "--set", "OWID")
    assert only[0].returncode == 0
    assert only[1]["all"]["queries"] == 10


def test_boxes_are_scored_by_iou_of_the_first_hit(tmp_path):
    annotations = make_annotations(random.Random(6), queries=1, images=0, sets=("OWID",))
    for number, ins in enumerate(([1], [0, 0], [0])):
        boxes = [(10, 10, 20, 20), (50, 50, 70, 70)][: len(ins)]
        mask = {"size": [100, 100], "counts": "0"}
        entry = {"bbox": boxes, "mask": [mask] * len(ins), "is_query": False, "ins": ins, "set": "OWID"}
        annotations[f"OWID/image {number}"] = entry
    ranking = [
        ["OWID/image 0", 3.0, [10, 10, 20, 20]],
        ["OWID/image 1", 2.0, [50, 50, 70, 60]],  # half of the second box
        ["OWID/image 2", 1.0, [10, 10, 20, 20]],
    ]
    _, groups, _ = evaluate(tmp_path, annotations, {"OWID/query 0": ranking})
    assert groups["all"]["IoU"] == pytest.approx(0.5)
    assert groups["all"]["IoU>=0.5@1"] == 0
    assert groups["all"]["IoU>=0.5@5"] == 1
    ranking[1][2] = [50, 50, 70, 59]
    ranking.pop()
    _, groups, _ = evaluate(tmp_path, annotations, {"OWID/query 0": ranking})
    assert groups["all"]["IoU"] == pytest.approx(0.45)
    assert groups["all"]["IoU>=0.5@100"] == 0


def test_the_interval_resamples_instances():
    """Where all instances have as many queries, it is scipy's bootstrap of the means of the instances."""
    from soir.metrics import mean_interval

    means = np.random.RandomState(0).rand(200)
    instances = np.repeat(np.arange(200), 10)  # ten queries of an instance, all alike
    low, high = mean_interval(np.repeat(means, 10), instances)
    theirs = stats.bootstrap((means,), np.mean, n_resamples=10_000, method="percentile").confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.005)


FAULTS = {
    "unknown path": (lambda r, q: r[q].insert(0, "nowhere"), "no gallery image here"),
    "a query as result": (lambda r, q: r[q].insert(0, q), "no gallery image here"),
    "a number as path": (lambda r, q: r[q].insert(0, 7), "no gallery image here"),
    "unknown query": (lambda r, q: r.__setitem__("nowhere", []), "no query here"),
    "no ranking": (lambda r, q: r.pop(q), "without a ranking"),
    "ranking no list": (lambda r, q: r.__setitem__(q, "text"), "without a ranking"),
    "scores up and down": (
        lambda r, q: r.__setitem__(q, [[p, s] for p, s in zip(r[q], (3, 1, 2, *[0] * 99))]),
        "scores neither fall nor rise",
    ),
    "score NaN": (lambda r, q: r[q].__setitem__(0, [r[q][0], float("nan")]), "no finite number"),
    "score text": (lambda r, q: r[q].__setitem__(0, [r[q][0], "1"]), "no finite number"),
    "box of three": (lambda r, q: r[q].__setitem__(0, [r[q][0], 1, [1, 2, 3]]), "box that is not"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_a_run_are_named_and_counted(tmp_path, name):
    annotations = make_annotations(random.Random(7), sets=("OWID",))
    perfect = {q: relevant_paths(annotations, q) for q, e in annotations.items() if e["is_query"]}
    damage, reason = FAULTS[name]
    damage(perfect, "OWID/query 0")
    done, groups, rows = evaluate(tmp_path, annotations, perfect)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if " x " in line and "left out" not in line]
    assert line.strip().startswith("1 x")
    assert reason in line
    wrong = float(rows["OWID/query 0"]["AP"]) < 1
    assert wrong == (name not in ("unknown query", "scores up and down", "box of three"))


def test_an_image_that_is_listed_per_object_counts_at_its_first_place(tmp_path):
    annotations = make_annotations(random.Random(7))
    rng = random.Random(71)
    twice = {
        q: [path for path in rng.sample(gallery_of(annotations), 60) for _ in "12"] for q in queries_of(annotations)
    }
    for ranking in twice.values():
        rng.shuffle(ranking)
    done, groups, _ = evaluate(tmp_path, annotations, twice)
    assert done.returncode == 0
    once = {query: list(dict.fromkeys(ranking)) for query, ranking in twice.items()}
    assert evaluate(tmp_path, annotations, once)[1] == groups


@pytest.mark.parametrize("content", ["[]", '{"a"', "7", '{"knns": []}', ""])
def test_a_file_without_rankings_cannot_be_scored(tmp_path, content):
    torch.save(make_annotations(random.Random(8)), str(tmp_path / "anns.pt"))
    (tmp_path / "r.json").write_text(content)
    done = run_here("evaluate_retrieval.py", "--ann-file", tmp_path / "anns.pt", "--rankings", tmp_path / "r.json")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_set_that_is_not_in_the_file_cannot_be_scored(tmp_path):
    annotations = make_annotations(random.Random(8), sets=("OWID",))
    torch.save(annotations, str(tmp_path / "anns.pt"))
    torch.save({path: torch.ones(8) for path in annotations}, str(tmp_path / "f.pt"))
    options = ["--ann-file", tmp_path / "anns.pt", "--features", tmp_path / "f.pt", "--set", "RoboTools"]
    done = run_here("evaluate_retrieval.py", *options)
    assert done.returncode == 2
    assert "its sets: OWID" in done.stderr


@pytest.mark.parametrize("outputs", [("--report", "anns.pt"), ("--per-query", "r.json")])
def test_an_output_that_is_an_input_is_refused(tmp_path, outputs):
    torch.save(make_annotations(random.Random(8)), str(tmp_path / "anns.pt"))
    (tmp_path / "r.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    options = ["--ann-file", tmp_path / "anns.pt", "--rankings", tmp_path / "r.json"]
    done = run_here("evaluate_retrieval.py", *options, outputs[0], tmp_path / outputs[1])
    assert done.returncode == 2
    assert "is an input too" in done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# ------------------------------------------------------------------------------------------------------------- features


def save_features(path, features):
    if path.suffix == ".npz":
        np.savez(str(path), **features)
    else:
        torch.save({name: torch.tensor(vector) for name, vector in features.items()}, str(path))


@pytest.mark.parametrize("form", ["vectors.pt", "vectors.npz", "matrix.pt", "matrix.npz"])
def test_features_are_ranked_by_cosine_within_the_set(tmp_path, form, monkeypatch):
    annotations = make_annotations(random.Random(9))
    rng = np.random.RandomState(0)
    features = {path.replace("/", "_"): rng.randn(8).astype(np.float32) for path in annotations}
    annotations = {path.replace("/", "_"): entry for path, entry in annotations.items()}
    gallery = [path for path, entry in annotations.items() if not entry["is_query"]]
    rankings = {}
    for query in [path for path, entry in annotations.items() if entry["is_query"]]:
        a = features[query] / np.linalg.norm(features[query])
        near = {p: float(a @ features[p]) / np.linalg.norm(features[p]) for p in gallery}
        inside = [p for p in gallery if annotations[p]["set"] == annotations[query]["set"]]
        rankings[query] = sorted(inside, key=lambda p: -near[p])
    _, expected, _ = evaluate(tmp_path, annotations, rankings)
    file = tmp_path / form
    if form.startswith("vectors"):
        save_features(file, features)
    elif form.endswith("npz"):
        np.savez(str(file), paths=np.array(list(features)), features=np.stack(list(features.values())))
    else:
        matrix = torch.tensor(np.stack(list(features.values())))
        torch.save({"paths": list(features), "features": matrix}, str(file))
    report = tmp_path / "report.json"
    done = run_here("evaluate_retrieval.py", "--ann-file", tmp_path / "anns.pt", "--features", file, "--report", report)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(report.read_text())["groups"] == expected


def test_features_that_unpack_to_a_thousand_times_their_file_are_refused(tmp_path):
    torch.save(make_annotations(random.Random(10), sets=("OWID",)), str(tmp_path / "anns.pt"))
    np.savez_compressed(str(tmp_path / "bomb.npz"), zeros=np.zeros((4000, 4000), dtype=np.float32))
    options = ["--ann-file", tmp_path / "anns.pt", "--features", tmp_path / "bomb.npz"]
    done = run_here("evaluate_retrieval.py", *options)
    assert done.returncode == 2
    assert "over 100 times as large" in done.stderr


@pytest.mark.parametrize(
    "vector, reason",
    [
        (None, "without a feature"),
        ([1.0, 2.0], "not of length 8"),
        ([float("nan")] * 8, "not finite, or zero"),
        ([0.0] * 8, "not finite, or zero"),
    ],
)
@pytest.mark.parametrize("path", ["OWID/query 0", "OWID/image 0"])
def test_features_that_cannot_be_compared_are_named(tmp_path, vector, reason, path):
    annotations = make_annotations(random.Random(10), sets=("OWID",))
    features = {name: np.random.RandomState(0).randn(8).tolist() for name in annotations}
    features[path] = vector
    save_features(tmp_path / "f.pt", {name: v for name, v in features.items() if v is not None})
    torch.save(annotations, str(tmp_path / "anns.pt"))
    options = ["--ann-file", tmp_path / "anns.pt", "--features", tmp_path / "f.pt"]
    done = run_here("evaluate_retrieval.py", *options)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if path in line]
    assert line.strip().startswith("1 x")
    assert reason in line


def test_equal_vectors_tie_whatever_the_shape(tmp_path):
    """400 shapes, in which libraries round equal columns differently; the order is that of a Python sort."""
    rng = np.random.RandomState(0)
    for shape in range(400):
        queries, images, dimension = rng.randint(1, 65), rng.randint(1, 61), rng.choice((3, 8, 64, 100))
        distinct = rng.randn(max(1, images // rng.choice((1, 2, 40))), dimension).astype(np.float32)
        vectors = {f"image {n}": distinct[rng.randint(len(distinct))] * rng.choice((1, 2, 4)) for n in range(images)}
        annotations = {}
        for number in range(queries):
            vectors[f"query {number}"] = rng.randn(dimension).astype(np.float32)
            entry = {"bbox": (0, 0, 5, 5), "mask": None, "is_query": True, "ins": number % 3, "set": "INSTRE-XS"}
            annotations[f"query {number}"] = entry
        for number in range(images):
            ins = [0] if number == 0 else [int(i) for i in range(3) if rng.rand() < 0.5]
            boxes = [(x, 1, x + 3, 4) for x in range(len(ins))]
            entry = {"bbox": boxes, "mask": [], "is_query": False, "ins": ins, "set": "INSTRE-XS"}
            annotations[f"image {number}"] = entry
        matrix = {"paths": list(vectors), "features": np.stack(list(vectors.values()))}
        np.savez(str(tmp_path / "f.npz"), **(matrix if shape % 4 else vectors))
        args = ("--trec", tmp_path / "out.run") if shape % 4 == 0 else ()
        done, _, rows = score_file(tmp_path, annotations, "--features", tmp_path / "f.npz", *args)
        assert done.returncode == 0, done.stdout + done.stderr
        ranked = {query: by_cosine(query, gallery_of(annotations), vectors) for query in queries_of(annotations)}
        for query, row in rows.items():
            expected = average_precision(ranked[query], relevant_paths(annotations, query))
            assert float(row["AP"]) == pytest.approx(expected, abs=1e-12), (shape, query)
        if args:
            lines = [line.split() for line in (tmp_path / "out.run").read_text().splitlines()]
            for query in queries_of(annotations):
                written = [fields[2] for fields in lines if fields[0] == query.replace(" ", "%20")]
                assert written == [path.replace(" ", "%20") for path in ranked[query]]


def test_an_object_that_is_the_whole_image_is_100_percent_of_it_whether_the_image_is_there_or_not(tmp_path):
    annotations, ranking = {}, {}
    for number, box in enumerate([None, (0, 0, 5, 5)]):
        query = {"bbox": None, "is_query": True, "ins": number, "set": "INSTRE-XS"}
        annotations[f"query {number}"] = query
        annotations[f"image {number}"] = {**query, "bbox": [box], "ins": [number], "is_query": False, "mask": []}
        ranking[f"query {number}"] = ["image 0", "image 1"]
    (tmp_path / "r.json").write_text(json.dumps(ranking))
    done, report, rows = score_file(tmp_path, annotations, "--rankings", tmp_path / "r.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [rows[f"query {number}"]["object_size"] for number in range(2)] == ["100.0", ""]
    assert report["groups"]["size: above 2 %"]["queries"] == report["groups"]["size: unknown"]["queries"] == 1


@pytest.mark.parametrize("count", [1, 5, 33, 150, 200])
@pytest.mark.parametrize("values", [1, 3, 10_000])
def test_ranks_are_those_of_a_sort_however_many_there_are_and_however_many_tie(count, values):
    from soir.similarity import rank_images

    rng = np.random.RandomState(count)
    similarities = rng.randint(0, values, 200).astype(np.float32)
    at = np.sort(rng.choice(200, count, replace=False))
    order = sorted(range(200), key=lambda image: -similarities[image])
    ranks, images = rank_images(similarities, at)
    assert list(zip(ranks.tolist(), images.tolist())) == [
        (rank, image) for rank, image in enumerate(order, 1) if image in set(at.tolist())
    ]


def test_many_images_with_one_vector_are_in_gallery_order(tmp_path):
    """The case that showed it: 37 equal vectors, the relevant image last, and AP was 1 instead of 1 / 37."""
    entry = {"bbox": (0, 0, 5, 5), "mask": None, "is_query": True, "ins": 1, "set": "INSTRE-XS"}
    annotations = {f"query {number}": dict(entry) for number in range(3)}
    for number in range(37):
        ins = [1] if number == 36 else []
        shown = {"bbox": [(0, 0, 5, 5)] * len(ins), "mask": [], "is_query": False, "ins": ins, "set": "INSTRE-XS"}
        annotations[f"image {number}"] = shown
    rng = np.random.RandomState(0)
    same, other = rng.randn(2, 100).astype(np.float32)
    np.savez(str(tmp_path / "f.npz"), **{p: other if e["is_query"] else same for p, e in annotations.items()})
    _, report, _ = score_file(tmp_path, annotations, "--features", tmp_path / "f.npz")
    assert report["groups"]["all"]["mAP"] == pytest.approx(1 / 37)


# -------------------------------------------------------------------------------------------------------------- objects


def objects_of(annotations, seed=0, dimension=8):
    """Path -> (vectors [objects, dimension], boxes [objects, 4]): of queries one or two, of images one to six."""
    rng = np.random.RandomState(seed)
    objects = {}
    for path, entry in annotations.items():
        count = rng.randint(1, 3 if entry["is_query"] else 7)
        corners = rng.randint(0, 6, (count, 2))
        boxes = np.concatenate([corners, corners + rng.randint(1, 5, (count, 2))], axis=1).astype(float)
        objects[path] = rng.randn(count, dimension).astype(np.float32), boxes
    return objects


def by_best_pair(query, gallery, objects):
    """(paths by the cosine of the best pair, path -> box of the best object), in a loop over all pairs."""
    scores, boxes = {}, {}
    for path in gallery:
        for vector, box in zip(*objects[path]):
            for asked in objects[query][0]:
                cosine = float(np.dot(asked.astype(float), vector)) / np.linalg.norm(asked) / np.linalg.norm(vector)
                if path not in scores or cosine > scores[path]:
                    scores[path], boxes[path] = cosine, box
    return sorted(gallery, key=lambda path: -scores[path]), boxes


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@pytest.mark.parametrize("form", ["dicts.pt", "matrices.pt", "matrices.npz", "index.npz", "index without boxes.npz"])
def test_objects_are_ranked_by_the_best_pair_and_localized_by_its_box(tmp_path, form):
    annotations = make_annotations(random.Random(40), images=40)
    annotations = {path.replace("/", "_"): entry for path, entry in annotations.items()}
    objects, gallery = objects_of(annotations), gallery_of(annotations)
    file = tmp_path / form
    if form == "dicts.pt":
        content = {p: {"vectors": torch.tensor(v), "boxes": torch.tensor(b)} for p, (v, b) in objects.items()}
        torch.save(content, str(file))
    elif form == "matrices.pt":
        torch.save({path: torch.tensor(vectors) for path, (vectors, _) in objects.items()}, str(file))
    elif form == "matrices.npz":
        np.savez(str(file), **{path: vectors for path, (vectors, _) in objects.items()})
    else:
        index = [(path, *one) for path, both in objects.items() for one in zip(*both)]
        random.Random(0).shuffle(index)
        # In a shuffled index the first of equal objects is another one; but here no two are equal.
        arrays = {"paths": np.array([path for path, _, _ in index]), "features": np.stack([v for _, v, _ in index])}
        if "without" not in form:
            arrays["boxes"] = np.stack([box for _, _, box in index])
        np.savez(str(file), **arrays)
    done, report, rows = score_file(tmp_path, annotations, "--features", file)
    assert done.returncode == 0, done.stdout + done.stderr
    has_boxes = form in ("dicts.pt", "index.npz")
    assert ("IoU" in report["groups"]["all"]) == has_boxes
    for query, row in rows.items():
        rivals = [path for path in gallery if competes(annotations, query, path)]
        ranked, boxes = by_best_pair(query, rivals, objects)
        relevant = relevant_paths(annotations, query)
        assert float(row["AP"]) == pytest.approx(average_precision(ranked, relevant))
        if has_boxes:
            first = next(path for path in ranked if path in relevant)
            ious = {}
            for path in relevant:
                shown = zip(annotations[path]["bbox"], annotations[path]["ins"])
                ious[path] = max(iou(boxes[path], box) for box, ins in shown if ins == annotations[query]["ins"])
            assert float(row["IoU"]) == pytest.approx(ious[first])
            good = any(path in relevant and ious[path] >= 0.5 for path in ranked[:10])
            assert float(row["IoU>=0.5@10"]) == good


def test_a_vector_per_image_and_a_matrix_of_one_row_are_the_same(tmp_path):
    annotations = make_annotations(random.Random(41))
    vectors = {path: torch.tensor(vector) for path, vector in random_vectors(annotations).items()}
    reports = []
    for change in (
        lambda v: v,
        lambda v: v[None],
        lambda v: {"vectors": v, "boxes": None},
        lambda v: {"vectors": v[None]},
    ):
        torch.save({path: change(vector) for path, vector in vectors.items()}, str(tmp_path / "f.pt"))
        done, report, _ = score_file(tmp_path, annotations, "--features", tmp_path / "f.pt")
        assert done.returncode == 0, done.stdout + done.stderr
        reports.append(report["groups"])
    assert all(report == reports[0] for report in reports)


def test_an_image_without_objects_is_not_retrieved_and_is_no_fault(tmp_path):
    annotations = make_annotations(random.Random(42), sets=("OWID",))
    arrays = {path.replace("/", "_"): vector[None] for path, vector in random_vectors(annotations).items()}
    annotations = {path.replace("/", "_"): entry for path, entry in annotations.items()}
    arrays["OWID_image 0"] = np.zeros((0, 8), dtype=np.float32)
    np.savez(str(tmp_path / "f.npz"), **arrays)
    done, _, _ = score_file(tmp_path, annotations, "--features", tmp_path / "f.npz")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 x gallery image without objects in the features, counted as not retrieved: OWID_image 0" in done.stdout


def test_an_object_that_cannot_be_compared_is_left_out_of_its_image(tmp_path):
    annotations = make_annotations(random.Random(42), sets=("OWID",))
    arrays = {path: torch.tensor(vector)[None] for path, vector in random_vectors(annotations).items()}
    torch.save(arrays, str(tmp_path / "f.pt"))
    _, expected, _ = score_file(tmp_path, annotations, "--features", tmp_path / "f.pt")
    bad = torch.tensor([[0.0] * 8, [float("nan")] * 8])
    arrays["OWID/image 0"] = torch.cat([bad, arrays["OWID/image 0"]])
    torch.save(arrays, str(tmp_path / "f.pt"))
    done, report, _ = score_file(tmp_path, annotations, "--features", tmp_path / "f.pt")
    assert done.returncode == 1
    assert "1 x gallery image with a vector that is not finite, or zero, left out: OWID/image 0" in done.stdout
    assert report["groups"] == expected["groups"]


@pytest.mark.parametrize("ending", ["pt", "npz"])
def test_features_of_three_dimensions_are_refused_by_name(tmp_path, ending):
    annotations = make_annotations(random.Random(42), sets=("OWID",))
    vectors = {path.replace("/", "_"): np.ones((2, 4, 8), dtype=np.float32) for path in annotations}
    annotations = {path.replace("/", "_"): entry for path, entry in annotations.items()}
    save_features(tmp_path / f"f.{ending}", vectors)
    done, _, _ = score_file(tmp_path, annotations, "--features", tmp_path / f"f.{ending}")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "OWID_query 0 is an array of 3 dimensions, (2, 4, 8)" in done.stderr


def npz_claiming(path, dtype, shape, data=b""):
    """A .npz file of one array with this header."""
    header = io.BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    with zipfile.ZipFile(str(path), "w") as archive:
        archive.writestr("paths.npy", header.getvalue() + data)


HOSTILE_ARRAYS = {
    "items of no bytes": ("|V0", (10**12,)),
    "text of no characters": ("<U0", (10**12,)),
    "rows of no numbers": ("<f4", (10**12, 0)),
    "bytes of no characters": ("|S0", (10**12,)),
    "numbers that are not there": ("<f4", (10**12,)),
    "dates": ("<M8[s]", (1,), b"\0" * 8),
    "a character beyond Unicode": ("<U1", (1,), b"\x00\x00\x11\x00"),
    "a character beyond Unicode, the other way round": (">U1", (1,), b"\x00\x11\x00\x00"),
}


@pytest.mark.parametrize("name", HOSTILE_ARRAYS)
@pytest.mark.parametrize("option", ["--features", "--rankings"])
def test_arrays_that_are_not_what_they_claim_end_in_a_line(tmp_path, name, option):
    npz_claiming(tmp_path / "f.npz", *HOSTILE_ARRAYS[name])
    done, _, _ = score_file(tmp_path, make_annotations(random.Random(42)), option, tmp_path / "f.npz")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "no .npz of numbers and text" in done.stderr


# --------------------------------------------------------------------------------------------------- runs side by side


def three_runs(tmp_path, seed=50, instances=11):
    """Three runs of one file, the third one features: (annotations, query -> AP of each)."""
    annotations = make_annotations(random.Random(seed), queries=60, instances=instances, sets=("RoboTools",))
    torch.save(annotations, str(tmp_path / "anns.pt"))
    gallery, files = gallery_of(annotations), [tmp_path / "a.json", tmp_path / "b_2.json", tmp_path / "c.npz"]
    vectors = random_vectors(annotations, seed)
    np.savez(str(files[2]), paths=np.array(list(vectors)), features=np.stack(list(vectors.values())))
    ranked = []
    for number in range(2):
        rng = random.Random(number)
        run = {}
        for query in queries_of(annotations):
            relevant = relevant_paths(annotations, query)
            run[query] = sorted(gallery, key=lambda path: rng.random() - (0.1 + 0.2 * number) * (path in relevant))
        files[number].write_text(json.dumps(run))
        ranked.append(run)
    ranked.append({query: by_cosine(query, gallery, vectors) for query in queries_of(annotations)})
    precisions = []
    for run in ranked:
        relevant = {query: relevant_paths(annotations, query) for query in run}
        precisions.append({q: average_precision(run[q], relevant[q]) for q in run if relevant[q]})
    return annotations, files, precisions


def resampled_differences(annotations, first, second, resamples=4000):
    """Mean differences over instances drawn with replacement, in a loop."""
    by_instance = {}
    for query in first:
        by_instance.setdefault(annotations[query]["ins"], []).append(second[query] - first[query])
    rng, groups, means = random.Random(1), list(by_instance.values()), []
    for _ in range(resamples):
        drawn = [value for group in rng.choices(groups, k=len(groups)) for value in group]
        means.append(sum(drawn) / len(drawn))
    return np.array(means)


def test_runs_are_compared_over_instances(tmp_path):
    annotations, files, precisions = three_runs(tmp_path)
    options = ["--rankings", *files[:2], "--features", files[2], "--report", tmp_path / "report.json"]
    done = run_here("evaluate_retrieval.py", "--ann-file", tmp_path / "anns.pt", *options)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert [run["name"] for run in report["runs"]] == ["a", "b_2", "c"]
    assert report["runs"][0]["difference"] is None
    for run, precision in zip(report["runs"], precisions):
        assert run["groups"]["all"]["mAP"] == pytest.approx(np.mean(list(precision.values())))
    for run, precision in zip(report["runs"][1:], precisions[1:]):
        difference = run["difference"]
        means = resampled_differences(annotations, precisions[0], precision)
        assert difference["mean"] == pytest.approx(np.mean([precision[q] - precisions[0][q] for q in precision]))
        assert difference["interval"] == pytest.approx(np.percentile(means, (2.5, 97.5)), abs=0.004)
        p_value = min(1, 2 * min((means <= 0).mean(), (means >= 0).mean()))
        assert difference["p_value"] == pytest.approx(p_value, abs=0.04)
    lines = done.stdout.splitlines()
    assert re.split(r"  +", lines[0].strip())[-3:] == ["difference", "95 % interval", "p"]
    for line, run in zip(lines[1:4], report["runs"]):
        overall = run["groups"]["all"]
        assert line.startswith(run["name"])
        for name in ("mAP", "hit@1", "hit@5", "hit@10", "MRR"):
            assert f" {overall[name]:.4f}" in line


def test_the_difference_is_that_of_scipy_where_instances_are_of_one_size(tmp_path):
    from soir.metrics import compare_means

    rng = np.random.RandomState(3)
    instances = np.repeat(np.arange(40), 5)
    first = rng.rand(200)
    second = first + np.repeat(rng.randn(40) * 0.1, 5) + 0.03
    difference = compare_means(first, second, instances)
    means = (second - first).reshape(40, 5).mean(axis=1)
    theirs = stats.bootstrap((means,), np.mean, n_resamples=20_000, method="percentile").confidence_interval
    assert difference.mean == pytest.approx(means.mean())
    assert difference.interval == pytest.approx((theirs.low, theirs.high), abs=0.003)


def test_equal_runs_are_not_called_different():
    """Of pairs of runs that are equally good on new instances, about 5 % are called different; by a t-test, most."""
    from soir.metrics import compare_means

    rng = np.random.RandomState(0)
    ours = theirs = 0
    for _ in range(30):
        instances = np.repeat(np.arange(20), 100)
        first, second = (rng.rand(20).repeat(100) + 0.02 * rng.rand(2000) for _ in range(2))
        ours += compare_means(first, second, instances).p_value < 0.05
        theirs += stats.ttest_rel(first, second).pvalue < 0.05
    assert ours <= 6
    assert theirs >= 15


def test_a_run_does_not_differ_from_itself(tmp_path):
    _, files, _ = three_runs(tmp_path)
    options = ["--rankings", files[0], files[0], "--report", tmp_path / "report.json"]
    done = run_here("evaluate_retrieval.py", "--ann-file", tmp_path / "anns.pt", *options)
    run = json.loads((tmp_path / "report.json").read_text())["runs"][1]
    assert run["difference"] == {"mean": 0, "interval": [0, 0], "p_value": 1}
    assert run["name"] == str(files[0])  # both stems are equal
    assert done.returncode == 0


def test_too_few_instances_have_a_difference_without_an_interval(tmp_path):
    _, files, _ = three_runs(tmp_path, instances=4)
    done = run_here("evaluate_retrieval.py", "--ann-file", tmp_path / "anns.pt", "--rankings", *files[:2])
    assert re.split(r"  +", done.stdout.splitlines()[2].strip())[-2:] == ["-", "-"]


def test_tables_are_written_as_latex_markdown_and_csv(tmp_path):
    _, files, _ = three_runs(tmp_path)
    tables = {}
    for ending in ("tex", "md", "csv"):
        names = ("--names", "base_line", "ours & 50 % at 1 - 2", "c|d")
        options = ["--rankings", *files[:2], "--features", files[2], *names, "--table", tmp_path / f"table.{ending}"]
        done = run_here("evaluate_retrieval.py", "--ann-file", tmp_path / "anns.pt", *options)
        assert done.returncode == 0, done.stderr
        tables[ending] = (tmp_path / f"table.{ending}").read_text()
    rows = list(csv.reader(io.StringIO(tables["csv"])))
    assert [row[0] for row in rows] == ["", "base_line", "ours & 50 % at 1 - 2", "c|d"]
    assert all(len(row) == len(rows[0]) for row in rows)
    assert [line.split()[0] for line in done.stdout.splitlines()[1:4]] == ["base_line", "ours", "c|d"]
    lines = tables["md"].splitlines()
    assert lines[1] == "|---" + "|---:" * 9 + "|"
    assert [len(re.split(r"(?<!\\)\|", line)) for line in lines] == [12] * 5
    assert "c\\|d" in lines[4]
    assert rows[2][1] in lines[3]
    assert tables["tex"].startswith("\\begin{tabular}{lrrrrrrrrr}")
    assert "base\\_line & " in tables["tex"]
    assert "ours \\& 50 \\% at 1 - 2 & " in tables["tex"]
    assert re.search(r"& 0\.\d{4} -- 0\.\d{4} &", tables["tex"])
    body = [line for line in tables["tex"].splitlines() if line.endswith("\\\\")]
    assert [len(re.split(r"(?<!\\)&", line)) for line in body] == [10] * 4


def test_options_of_several_runs(tmp_path):
    _, files, precisions = three_runs(tmp_path)
    anns = ["--ann-file", tmp_path / "anns.pt"]
    for extra, reason in (
        (["--names", "one"], "as many --names as runs, 2"),
        (["--trec", tmp_path / "out.run"], "--trec is of one run"),
        (["--preview", tmp_path / "out.png"], "--preview is of one run"),
        (["--table", tmp_path / "out.pdf"], "ends in .tex, .md, .csv"),
    ):
        done = run_here("evaluate_retrieval.py", *anns, "--rankings", *files[:2], *extra)
        assert (done.returncode, done.stdout) == (2, "")
        assert reason in done.stderr
    table = tmp_path / "queries.csv"
    run_here("evaluate_retrieval.py", *anns, "--features", files[2], "--rankings", *files[:2], "--per-query", table)
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    for name, precision in zip(("a", "b_2", "c"), precisions):
        assert {r["path"]: float(r["AP"]) for r in rows if r["run"] == name} == pytest.approx(precision)
    assert list(dict.fromkeys(row["run"] for row in rows)) == ["c", "a", "b_2"]


def test_faults_are_listed_with_their_run(tmp_path):
    _, files, _ = three_runs(tmp_path)
    run = json.loads(files[1].read_text())
    run.popitem()
    files[1].write_text(json.dumps(run))
    done = run_here("evaluate_retrieval.py", "--ann-file", tmp_path / "anns.pt", "--rankings", *files[:2])
    assert done.returncode == 1
    assert "\nfaults of b_2:\n  1 x query without a ranking" in done.stdout
    assert "faults of a:" not in done.stdout


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no terminals here")
def test_a_bar_moves_on_the_terminal_while_it_scores(tmp_path):
    import fcntl
    import termios

    _, files, _ = three_runs(tmp_path)
    reader, writer = os.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, str(ROOT / "evaluate_retrieval.py"), "--ann-file", str(tmp_path / "anns.pt")]
    done = subprocess.run([*command, "--features", str(files[2])], stderr=writer, stdout=subprocess.PIPE)
    os.close(writer)
    shown = os.read(reader, 2**16).decode()
    os.close(reader)
    assert done.returncode == 0
    assert "scoring: 100%" in shown


# --------------------------------------------------------------------------------------------------------------- sample


def test_the_preview_marks_right_and_wrong(voxdet, sample_file, tmp_path):
    annotations = load_plainly(sample_file)
    gallery = [path for path, entry in annotations.items() if not entry["is_query"]]
    rankings = {path: gallery for path, entry in annotations.items() if entry["is_query"]}
    (tmp_path / "r.json").write_text(json.dumps(rankings))
    options = ["--rankings", tmp_path / "r.json", "--ann-file", sample_file, "--base-path", voxdet[0]]
    options += ["--preview", tmp_path / "worst.png", "--worst", 12, "--set", "OWID"]
    done = run_here("evaluate_retrieval.py", *options)
    assert done.returncode == 0, done.stderr
    pixels = np.asarray(Image.open(str(tmp_path / "worst.png")))
    for colour in ((64, 255, 64), (255, 64, 64), (0, 255, 255)):
        assert (pixels == colour).all(axis=2).sum() > 500
    assert "size: 1 to 2 %" in done.stdout


def test_the_example_of_the_readme_finds_most_of_the_sample(voxdet, sample_file, tmp_path, monkeypatch):
    """Colours nearly suffice for the sample. The README shows the example as it is."""
    example = ROOT / "examples" / "colour_features.py"
    assert example.read_text().split('"""')[2].strip() in (ROOT / "README.md").read_text()
    monkeypatch.chdir(voxdet[0])
    files = sample_file, tmp_path / "features.pt", tmp_path / "report.json"
    assert run_here(example, *files[:2]).returncode == 0
    options = ["--ann-file", files[0], "--features", files[1], "--report", files[2]]
    assert run_here("evaluate_retrieval.py", *options).returncode == 0
    assert json.loads(files[2].read_text())["groups"]["all"]["mAP"] > 0.7  # by chance: about 0.5


def test_an_annotation_file_with_errors_is_not_scored(tmp_path):
    annotations = make_annotations(random.Random(11))
    annotations["OWID/query 0"].pop("ins")
    done, _, _ = evaluate(tmp_path, annotations, {})
    assert done.returncode == 2
    assert "verify_dataset.py" in done.stderr


# ------------------------------------------------------------------------------------- files that contradict themselves


def save(folder, annotations):
    torch.save(annotations, str(folder / "anns.pt"))
    return folder / "anns.pt"


def object_index(annotations, without=()):
    """Features of an index, with a box per vector."""
    vectors = {path: vector for path, vector in random_vectors(annotations).items() if path not in without}
    boxes = np.tile([1.0, 1, 4, 4], (len(vectors), 1))
    return {"paths": list(vectors), "features": np.stack(list(vectors.values())), "boxes": boxes}


def test_a_query_that_finds_nothing_localizes_nothing(tmp_path):
    """It counts 0 for IoU as for hit@K, so the first is never above the second."""
    annotations = make_annotations(random.Random(0))
    np.savez(str(tmp_path / "f.npz"), **object_index(annotations, without=queries_of(annotations)[::2]))
    done, report, rows = score_file(tmp_path, annotations, "--features", tmp_path / "f.npz")
    assert done.returncode == 1
    ious = [float(row["IoU"]) for row in rows.values()]
    assert ious.count(0) >= len(rows) / 2
    overall = report["groups"]["all"]
    assert overall["IoU"] == pytest.approx(np.mean(ious))
    assert overall["queries_with_boxes"] == overall["queries"]
    for k in (1, 5, 10):
        assert overall[f"IoU>=0.5@{k}"] <= overall[f"hit@{k}"]


def test_boxes_of_queries_only_are_no_boxes_of_a_run(tmp_path):
    annotations = make_annotations(random.Random(0))
    index = object_index(annotations)
    index["boxes"][[path not in queries_of(annotations) for path in index["paths"]]] = np.nan
    np.savez(str(tmp_path / "f.npz"), **index)
    done, report, _ = score_file(tmp_path, annotations, "--features", tmp_path / "f.npz")
    assert done.returncode == 0, done.stdout
    assert "IoU" not in report["groups"]["all"]


def test_an_index_may_have_more_arrays(tmp_path):
    annotations = make_annotations(random.Random(0))
    index = object_index(annotations)
    figures = []
    for more in ({}, {"scores": np.ones(len(index["paths"]))}):
        np.savez(str(tmp_path / "f.npz"), **index, **more)
        figures.append(score_file(tmp_path, annotations, "--features", tmp_path / "f.npz")[1]["groups"])
    assert figures[0] == figures[1]


def test_the_report_keeps_faults_apart_from_what_is_noticed_and_left_out(tmp_path):
    annotations = make_annotations(random.Random(0))
    vectors = {path: torch.tensor(vector) for path, vector in random_vectors(annotations).items()}
    empty, missing = gallery_of(annotations)[:2]
    vectors[empty] = torch.zeros(0, 8)
    torch.save(vectors, str(tmp_path / "f.pt"))
    done, report, _ = score_file(tmp_path, annotations, "--features", tmp_path / "f.pt")
    assert (done.returncode, report["faults"]) == (0, {})
    assert list(report["noticed"].values()) == [[empty]]
    ((reason, places),) = report["left_out"].items()
    assert "without relevant gallery images" in reason
    assert len(places) == 4  # two queries of the instance of each set that is shown nowhere
    del vectors[missing]
    torch.save(vectors, str(tmp_path / "f.pt"))
    done, report, _ = score_file(tmp_path, annotations, "--features", tmp_path / "f.pt")
    assert (done.returncode, list(report["faults"].values())) == (1, [[missing]])


def test_instances_are_numbered_alike_in_every_run():
    """The resamples of an interval depend on it, and Python's order of a set of texts changes from run to run."""
    code = "from soir.protocol import number_instances; print(number_instances({!r}))"
    entries = [{"set": s, "ins": i, "is_query": True} for s, i in (("a", [1, 2]), ("a 1", [2]), ("a", 1), ("b", 3))]
    shown = {
        subprocess.run(
            [sys.executable, "-c", code.format(entries)],
            cwd=str(ROOT),
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        for seed in range(4)
    }
    assert len(shown) == 1


@pytest.mark.parametrize("share, is_noticed", [(0.4, False), (0.6, True)])
def test_features_whose_boxes_are_shares_of_the_image_are_noticed(tmp_path, share, is_noticed):
    annotations = make_annotations(random.Random(0))
    vectors = random_vectors(annotations)
    boxes = np.where(np.arange(len(vectors))[:, None] < share * len(vectors), [[0, 0.25, 1, 0.5]], [[1, 1, 9, 9]])
    np.savez(str(tmp_path / "f.npz"), paths=list(vectors), features=np.stack(list(vectors.values())), boxes=boxes)
    done, _, _ = score_file(tmp_path, annotations, "--features", tmp_path / "f.npz")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("1 x run whose boxes lie within 0..1" in done.stdout) == is_noticed


@pytest.mark.parametrize("box", [[4, 4, 1, 1], [4, float("inf"), 9, 9], [1, 1, float("nan"), 9]])
@pytest.mark.parametrize("form", ["dict", "index"])
def test_a_box_of_features_that_is_none_is_a_fault(tmp_path, form, box):
    annotations = make_annotations(random.Random(0))
    vectors = random_vectors(annotations)
    odd = gallery_of(annotations)[0]
    boxes = {path: np.array([box if path == odd else [1, 1, 9, 9]], dtype=np.float64) for path in vectors}
    if form == "dict":
        file = tmp_path / "f.pt"
        content = {p: {"vectors": torch.tensor(v)[None], "boxes": torch.tensor(boxes[p])} for p, v in vectors.items()}
        torch.save(content, str(file))
    else:
        file = tmp_path / "f.npz"
        stacked = np.concatenate([boxes[path] for path in vectors])
        np.savez(str(file), paths=list(vectors), features=np.stack(list(vectors.values())), boxes=stacked)
    done = run_here("evaluate_retrieval.py", save(tmp_path, annotations), "--features", file)
    assert done.returncode == 1
    assert f"1 x feature with a box that is not (x1, y1, x2, y2), ignored: {odd}" in done.stdout


@pytest.mark.parametrize("form", ["dict", "index"])
def test_vectors_of_one_number_are_refused(tmp_path, form):
    annotations = make_annotations(random.Random(0))
    vectors = random_vectors(annotations)
    if form == "dict":
        file = tmp_path / "f.pt"
        torch.save({path: torch.tensor(vector)[:, None] for path, vector in vectors.items()}, str(file))
    else:
        file = tmp_path / "f.npz"
        np.savez(str(file), paths=list(vectors), features=np.ones((len(vectors), 1)))
    done = run_here("evaluate_retrieval.py", save(tmp_path, annotations), "--features", file)
    refused(done, file, "one number each")


@pytest.mark.parametrize("value", ["a list of lists", {"features": 1}, {"vectors": [[1, 2]], "boxes": [None]}, 7])
def test_features_that_are_none_are_not_blamed_on_their_paths(tmp_path, value):
    annotations = make_annotations(random.Random(0))
    torch.save(dict.fromkeys(annotations, value), str(tmp_path / "f.pt"))
    done = run_here("evaluate_retrieval.py", save(tmp_path, annotations), "--features", tmp_path / "f.pt")
    line = refused(done, "expected for each image a vector of numbers")
    assert "paths like" not in line


def test_a_query_or_a_path_that_stands_twice_in_json_is_refused(tmp_path):
    annotations = make_annotations(random.Random(0))
    query, path = queries_of(annotations)[0], gallery_of(annotations)[0]
    for number, text in enumerate(
        (f'{{"{query}": [], "{query}": ["{path}"]}}', f'{{"{query}": {{"{path}": 1, "{path}": 2}}}}')
    ):
        (tmp_path / "run.json").write_text(text)
        done = run_here("evaluate_retrieval.py", save(tmp_path, annotations), "--rankings", tmp_path / "run.json")
        refused(done, tmp_path / "run.json", (query, path)[number], "twice")


def test_matrices_may_say_none_for_scores_and_boxes(tmp_path):
    annotations = make_annotations(random.Random(0))
    queries, gallery = queries_of(annotations), gallery_of(annotations)
    indices = torch.arange(len(gallery)).repeat(len(queries), 1)
    run = {"queries": queries, "gallery": gallery, "indices": indices}
    for more in ({}, {"scores": None}, {"boxes": None}):
        torch.save({**run, **more}, str(tmp_path / "run.pt"))
        done = run_here("evaluate_retrieval.py", save(tmp_path, annotations), "--rankings", tmp_path / "run.pt")
        assert done.returncode == 0, done.stderr
