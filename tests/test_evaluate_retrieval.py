"""evaluate_retrieval.py: its metrics are those of trec_eval and scikit-learn; rankings and features in every form,
groups, localization, and the faults of a run."""

import csv
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, load_plainly, refused, run_here
from PIL import Image

KS = (1, 5, 10, 50, 100)


def random_annotations(rng, queries=12, images=60, instances=6, sets=("OWID", "RoboTools")):
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


@pytest.mark.skipif(sys.version_info < (3, 8), reason="ir_measures cannot be had for Python 3.7")
def test_the_metrics_are_those_of_trec_eval_and_scikit_learn_on_a_thousand_queries(tmp_path):
    import ir_measures
    from sklearn.metrics import average_precision_score

    names = {"AP": ir_measures.AP, "RR": ir_measures.RR}
    for k in KS:
        names[f"precision@{k}"], names[f"recall@{k}"] = ir_measures.P @ k, ir_measures.R @ k
        names[f"nDCG@{k}"], names[f"hit@{k}"] = ir_measures.nDCG @ k, ir_measures.Success @ k
    compared = 0
    for seed in range(20):
        rng = random.Random(seed)
        annotations = random_annotations(
            rng, queries=36, images=rng.randrange(5, 130), instances=rng.choice((2, 6, 30))
        )
        gallery = [path for path, entry in annotations.items() if not entry["is_query"]]
        rankings, qrels, run = {}, {}, {}
        for query in [path for path, entry in annotations.items() if entry["is_query"]]:
            # Sometimes nothing, sometimes only a part, sometimes all of the gallery, of both sets.
            listed = rng.sample(gallery, rng.choice((0, 1, len(gallery) // 2, len(gallery))))
            rankings[query] = listed
            run[query] = {path: float(-rank) for rank, path in enumerate(listed)}
            relevant = set(relevant_paths(annotations, query))
            if relevant:
                qrels[query] = dict.fromkeys(relevant, 1)
        done, groups, rows = evaluate(tmp_path, annotations, rankings)
        assert done.returncode == 0, done.stdout
        assert set(rows) == set(qrels)
        assert groups["all"]["queries"] == len(qrels)
        expected = {}
        for value in ir_measures.iter_calc(names.values(), qrels, {q: r for q, r in run.items() if q in qrels}):
            expected[value.query_id, str(value.measure)] = value.value
        for query, row in rows.items():
            for name, measure in names.items():
                assert float(row[name]) == pytest.approx(expected.get((query, str(measure)), 0), abs=1e-9), name
            if len(rankings[query]) == len(gallery):
                truth = [path in qrels[query] for path in rankings[query]]
                assert float(row["AP"]) == pytest.approx(average_precision_score(truth, -np.arange(len(truth))))
            compared += 1
        assert groups["all"]["mAP"] == pytest.approx(np.mean([float(row["AP"]) for row in rows.values()]))
        ranks = [float(row["first_rank"] or "inf") for row in rows.values()]
        median = groups["all"]["median_first_rank"]
        assert (np.inf if median is None else median) == np.median(ranks)
    assert compared > 1000


def test_map_at_k_by_a_loop(tmp_path):
    rng = random.Random(1)
    annotations = random_annotations(rng)
    gallery = [path for path, entry in annotations.items() if not entry["is_query"]]
    rankings = {q: rng.sample(gallery, len(gallery)) for q, e in annotations.items() if e["is_query"]}
    _, _, rows = evaluate(tmp_path, annotations, rankings)
    for query, row in rows.items():
        relevant = set(relevant_paths(annotations, query))
        for k in KS:
            hits, total = 0, 0.0
            for rank, path in enumerate(rankings[query][:k], start=1):
                if path in relevant:
                    hits += 1
                    total += hits / rank
            assert float(row[f"AP@{k}"]) == pytest.approx(total / min(k, len(relevant)))


def test_a_perfect_and_an_empty_ranking(tmp_path):
    annotations = random_annotations(random.Random(2))
    queries = [path for path, entry in annotations.items() if entry["is_query"]]
    perfect = {query: relevant_paths(annotations, query) for query in queries}
    _, groups, _ = evaluate(tmp_path, annotations, perfect)
    for name in ("mAP", "MRR", "mAP@10", "nDCG@100", "hit@1", "recall@100"):
        assert groups["all"][name] == pytest.approx(1), name
    assert groups["all"]["mAP_interval"] == [1, 1]
    _, groups, _ = evaluate(tmp_path, annotations, {query: [] for query in queries})
    assert groups["all"]["mAP"] == groups["all"]["MRR"] == groups["all"]["hit@100"] == 0
    assert groups["all"]["median_first_rank"] is None


def test_every_form_of_rankings_gives_the_same_figures(tmp_path):
    rng = random.Random(3)
    annotations = random_annotations(rng)
    gallery = [path for path, entry in annotations.items() if not entry["is_query"]]
    plain = {q: rng.sample(gallery, 50) for q, e in annotations.items() if e["is_query"]}
    scored = {q: [[path, -float(rank)] for rank, path in enumerate(paths)] for q, paths in plain.items()}
    forms = [plain, scored, {"knns": plain}, {q: {"knns": paths} for q, paths in scored.items()}]
    figures = [evaluate(tmp_path, annotations, form, suffix=s)[1:] for form in forms for s in (".json", ".pt")]
    assert all(figure == figures[0] for figure in figures)


def test_equal_scores_are_ordered_as_the_gallery_is(tmp_path):
    rng = random.Random(4)
    annotations = random_annotations(rng)
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
    annotations = random_annotations(random.Random(5), queries=12, instances=6)
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
    annotations = random_annotations(random.Random(6), queries=1, images=0, sets=("OWID",))
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


def test_the_interval_resamples_instances(tmp_path):
    """Ten queries of an instance are all alike here, so that they tell no more than one."""
    instances, rng = 200, random.Random(0)
    entry = {"mask": None, "set": "INSTRE-XS"}
    annotations, rankings, precisions = {}, {}, []
    for instance in range(instances):
        photograph = {"bbox": [(0, 0, 5, 5)], "is_query": False, "ins": [instance], **entry, "mask": []}
        annotations[f"{instance}.jpg"] = photograph
        rank = rng.randrange(1, 11)  # of the only relevant image
        others = [f"{(instance + number) % instances}.jpg" for number in range(1, rank)]
        precisions.append(1 / rank)
        for number in range(10):
            query = {"bbox": (0, 0, 5, 5), "is_query": True, "ins": instance, **entry}
            annotations[f"query {instance} {number}"] = query
            rankings[f"query {instance} {number}"] = [*others, f"{instance}.jpg"]
    _, groups, _ = evaluate(tmp_path, annotations, rankings)
    assert groups["all"]["mAP"] == pytest.approx(np.mean(precisions))
    low, high = groups["all"]["mAP_interval"]
    error = np.std(precisions) / np.sqrt(instances)  # of the mean of so many independent instances
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.1)


FAULTS = {
    "unknown path": (lambda r, q: r[q].insert(0, "nowhere"), "no gallery image here"),
    "a query as result": (lambda r, q: r[q].insert(0, q), "no gallery image here"),
    "a number as path": (lambda r, q: r[q].insert(0, 7), "no gallery image here"),
    "unknown query": (lambda r, q: r.__setitem__("nowhere", []), "no query here"),
    "no ranking": (lambda r, q: r.pop(q), "without a ranking"),
    "ranking no list": (lambda r, q: r.__setitem__(q, "text"), "without a ranking"),
    "ranked twice": (lambda r, q: r[q].append(r[q][0]), "ranks a path twice"),
    "score NaN": (lambda r, q: r[q].__setitem__(0, [r[q][0], float("nan")]), "no finite number"),
    "score text": (lambda r, q: r[q].__setitem__(0, [r[q][0], "1"]), "no finite number"),
    "box of three": (lambda r, q: r[q].__setitem__(0, [r[q][0], 1, [1, 2, 3]]), "box that is not"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_a_run_are_named_and_counted(tmp_path, name):
    annotations = random_annotations(random.Random(7), sets=("OWID",))
    perfect = {q: relevant_paths(annotations, q) for q, e in annotations.items() if e["is_query"]}
    damage, reason = FAULTS[name]
    damage(perfect, "OWID/query 0")
    done, groups, rows = evaluate(tmp_path, annotations, perfect)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if " x " in line and "left out" not in line]
    assert line.strip().startswith("1 x")
    assert reason in line
    wrong = float(rows["OWID/query 0"]["AP"]) < 1
    assert wrong == (name not in ("unknown query", "ranked twice", "box of three"))


def test_a_set_that_is_not_in_the_file_cannot_be_scored(tmp_path):
    annotations = random_annotations(random.Random(8), sets=("OWID",))
    torch.save(annotations, str(tmp_path / "anns.pt"))
    torch.save({path: torch.ones(8) for path in annotations}, str(tmp_path / "f.pt"))
    options = ["--ann-file", tmp_path / "anns.pt", "--features", tmp_path / "f.pt", "--set", "RoboTools"]
    refused(run_here("evaluate_retrieval.py", *options), "its sets: OWID")


# ------------------------------------------------------------------------------------------------------------- features


def save_features(path, features):
    if path.suffix == ".npz":
        np.savez(str(path), **features)
    else:
        torch.save({name: torch.tensor(vector) for name, vector in features.items()}, str(path))


@pytest.mark.parametrize("form", ["vectors.pt", "vectors.npz", "matrix.pt", "matrix.npz"])
def test_features_are_ranked_by_cosine_within_the_set(tmp_path, form):
    annotations = random_annotations(random.Random(9))
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


@pytest.mark.parametrize(
    "change",
    [
        lambda vector: vector.requires_grad_(),
        lambda vector: torch.nn.Parameter(vector),
        lambda vector: vector.int().tolist(),
        lambda vector: vector[None],
        lambda vector: vector.double(),
        lambda vector: vector * 1e30,  # whose squares no float32 holds
        lambda vector: vector * 1e-30,
        lambda vector: vector.bfloat16(),
    ],
)
def test_every_kind_of_vector_gives_the_same_ranking(tmp_path, change):
    annotations, reports = random_annotations(random.Random(12)), []
    torch.manual_seed(0)
    features = {path: (torch.randn(8) * 8).round() for path in annotations}  # so few bits that bfloat16 has them all
    torch.save(annotations, str(tmp_path / "anns.pt"))
    for vectors in (features, {path: change(vector) for path, vector in features.items()}):
        torch.save(vectors, str(tmp_path / "f.pt"))
        options = ["--ann-file", tmp_path / "anns.pt", "--features", tmp_path / "f.pt"]
        done = run_here("evaluate_retrieval.py", *options, "--report", tmp_path / "report.json")
        assert (done.returncode, done.stderr) == (0, "")
        reports.append(json.loads((tmp_path / "report.json").read_text())["groups"])
    assert reports[0] == reports[1]


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
    annotations = random_annotations(random.Random(10), sets=("OWID",))
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


def test_an_annotation_file_with_errors_is_not_scored(tmp_path):
    annotations = random_annotations(random.Random(11))
    annotations["OWID/query 0"].pop("ins")
    refused(evaluate(tmp_path, annotations, {})[0], "verify_dataset.py")


def test_the_report_of_a_run_with_faults_is_the_same_from_run_to_run(tmp_path):
    """Texts have another hash in each process."""
    annotations = random_annotations(random.Random(13))
    torch.save(annotations, str(tmp_path / "anns.pt"))
    rankings = {path: [] for path, entry in annotations.items() if entry["is_query"]}
    rankings.update({f"unknown {number}": [] for number in range(9)})
    (tmp_path / "r.json").write_text(json.dumps(rankings))
    args = ["--ann-file", tmp_path / "anns.pt", "--rankings", tmp_path / "r.json", "--report", tmp_path / "report.json"]
    command = [sys.executable, str(ROOT / "evaluate_retrieval.py"), *map(str, args)]
    texts = set()
    for seed in "12":
        done = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE)
        assert done.returncode == 1
        texts.add((done.stdout, (tmp_path / "report.json").read_bytes()))
    assert len(texts) == 1
