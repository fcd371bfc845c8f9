"""`evaluate` of soir_common: the figures of evaluate_retrieval.py, for runs in memory."""

import contextlib
import copy
import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from conftest import ROOT, run_here

from soir_common import SoirError, evaluate, load_annotations


@pytest.fixture(scope="module")
def sample(sample_file, voxdet):
    """(annotations, their file, the folder of the images) of the sample, with paths relative to the folder."""
    return load_annotations(str(sample_file)), sample_file, str(voxdet[0])


@pytest.fixture(scope="module")
def described(sample):
    """Features by seed: path -> {"vectors": float32 [objects, 8], "boxes": [objects, 4]}, so that IoU is scored too."""
    annotations = sample[0]
    random = np.random.RandomState(0)
    described = {}
    for path, entry in annotations.items():
        boxes = np.array([entry["bbox"]] if entry["is_query"] else entry["bbox"], dtype=np.float64)
        boxes += random.randint(-4, 5, boxes.shape)
        described[path] = {"vectors": random.randn(len(boxes), 8).astype(np.float32), "boxes": boxes}
    return described


def script(sample, option, content, tmp_path, *args):
    """What evaluate_retrieval.py says of a run: (its report, the columns of --per-query)."""
    _, file, folder = sample
    run = tmp_path / ("run.pt" if option == "--features" else "run.json")
    if option == "--features":
        torch.save(content, str(run))
    else:
        run.write_text(json.dumps(content))
    report, table = tmp_path / "report.json", tmp_path / "queries.csv"
    args = ["--ann-file", file, "--base-path", folder, option, run, "--report", report, "--per-query", table, *args]
    done = run_here("evaluate_retrieval.py", *args)
    assert done.returncode in (0, 1), done.stderr
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    return json.loads(report.read_text()), {name: [row[name] for row in rows] for name in rows[0]}


def as_json(scores):
    """Scores as --report has them."""
    return json.loads(json.dumps(scores))


def assert_same(scores, report):
    assert as_json(scores["groups"]) == report["groups"]
    assert {name: scores[name] for name in ("mAP", "hit@1", "queries")} == {
        name: report["groups"]["all"][name] for name in ("mAP", "hit@1", "queries")
    }
    assert (scores["faults"], scores["noticed"], scores["left_out"]) == (
        report["faults"],
        report["noticed"],
        report["left_out"],
    )


def tensors(described, dtype=torch.float32, **more):
    return {
        path: {
            name: torch.tensor(value, dtype=dtype if name == "vectors" else None, **more) for name, value in d.items()
        }
        for path, d in described.items()
    }


@pytest.mark.parametrize("choice", [{}, {"set_name": "owid"}, {"set_name": "OWID", "split": "val"}], ids=str)
def test_features_give_the_figures_of_the_script_to_the_last_bit(sample, described, choice, tmp_path):
    args = [part for name, value in choice.items() for part in (f"--{name.replace('_name', '')}", value)]
    report, table = script(sample, "--features", tensors(described), tmp_path, *args)
    scores = evaluate(sample[0], features=described, base_path=sample[2], per_query=True, **choice)
    assert_same(scores, report)
    assert "IoU>=0.5@5" in scores
    assert list(scores["per_query"]) == list(table)
    for name, column in scores["per_query"].items():
        if column.dtype.kind == "f":
            numbers = [float(text) if text else math.nan for text in table[name]]
            np.testing.assert_array_equal(np.where(np.isfinite(column), column, math.nan), numbers)
        else:
            assert ["" if value is None else str(value) for value in column.tolist()] == table[name]


@pytest.mark.parametrize(
    "convert",
    [
        lambda d: tensors(d),
        lambda d: tensors(d, torch.float64),
        lambda d: {path: {**f, "vectors": f["vectors"].requires_grad_()} for path, f in tensors(d).items()},
        lambda d: {
            path: {"vectors": f["vectors"].astype(np.float64), "boxes": f["boxes"].tolist()} for path, f in d.items()
        },
    ],
    ids=["tensors", "float64", "with gradients", "arrays of float64"],
)
def test_features_of_any_kind_give_the_same_figures(sample, described, convert):
    expected = evaluate(sample[0], features=described, base_path=sample[2])
    assert as_json(evaluate(sample[0], features=convert(described), base_path=sample[2])) == as_json(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_of_half_the_precision_give_the_figures_of_their_file(sample, described, dtype, tmp_path):
    halves = {path: vectors["vectors"].max(dim=0).values for path, vectors in tensors(described, dtype).items()}
    report, _ = script(sample, "--features", halves, tmp_path)
    assert_same(evaluate(sample[0], features=halves, base_path=sample[2]), report)


def rankings_of(annotations, kind):
    random = np.random.RandomState(1)
    gallery = [path for path, entry in annotations.items() if not entry["is_query"]]
    rankings = {}
    for path in (path for path, entry in annotations.items() if entry["is_query"]):
        shown = [gallery[index] for index in random.permutation(len(gallery))[:12]]
        scores = sorted(random.rand(12).tolist(), reverse=True)
        boxes = [[1, 2, random.randint(3, 300), random.randint(4, 200)] for _ in shown]
        triples = [list(item) for item in zip(shown, scores, boxes)]
        rankings[path] = {"paths": shown, "pairs": [t[:2] for t in triples], "triples": triples}.get(kind)
        if kind == "scores":
            rankings[path] = dict(zip(shown, random.rand(12).tolist()))
    return rankings


@pytest.mark.parametrize("kind", ["paths", "pairs", "triples", "scores"])
def test_rankings_give_the_figures_of_the_script(sample, kind, tmp_path):
    rankings = rankings_of(sample[0], kind)
    first = next(iter(rankings))
    del rankings[first]  # a fault, which both list
    report, _ = script(sample, "--rankings", rankings, tmp_path)
    scores = evaluate(sample[0], rankings=rankings, base_path=sample[2])
    assert_same(scores, report)
    assert list(scores["faults"].values()) == [[first]]


@pytest.mark.parametrize("convert", [np.array, torch.tensor], ids=["array", "tensor"])
def test_similarities_rank_the_gallery(sample, convert):
    annotations = sample[0]
    queries = [path for path, entry in annotations.items() if entry["is_query"]]
    gallery = [path for path, entry in annotations.items() if not entry["is_query"]]
    matrix = np.random.RandomState(2).rand(len(queries), len(gallery))
    scores = evaluate(annotations, similarities=convert(matrix), queries=queries, gallery=gallery)
    as_scores = {query: dict(zip(gallery, row.tolist())) for query, row in zip(queries, matrix)}
    assert as_json(scores) == as_json(evaluate(annotations, rankings=as_scores))


def test_entries_of_another_form_are_read_as_the_script_reads_them(tmp_path):
    mine = {
        "mug.jpg": {"bbox": [120, 80, 340, 310], "ins": 1, "is_query": True},
        "kitchen.jpg": {"bbox": [15, 220, 60, 275], "ins": 1},
        "garden.jpg": {"ins": 2},
    }
    before = copy.deepcopy(mine)
    scores = evaluate(mine, rankings={"mug.jpg": ["garden.jpg", "kitchen.jpg"]}, base_path=str(tmp_path))
    assert (scores["mAP"], scores["hit@1"], scores["queries"]) == (0.5, 0, 1)
    assert mine == before


@pytest.mark.parametrize(
    "entries, options, words",
    [
        ({}, {"set_name": "Nowhere"}, ["no queries of the set Nowhere", "OWID"]),
        ({"x.jpg": {"is_query": True}}, {}, ["the annotations has errors"]),
        ({}, {"rankings": {"nobody.jpg": []}}, ["the run has a ranking for none of the queries"]),
        ({}, {"features": {"nobody.jpg": [1.0, 2.0]}}, ["the run has a feature for none of the images"]),
        ({}, {"similarities": [[1.0]], "queries": ["a"], "gallery": []}, ["the run holds no run"]),
    ],
    ids=["set", "entry", "rankings", "features", "similarities"],
)
def test_what_the_script_refuses_raises_soir_error(sample, entries, options, words):
    run = {} if {"features", "similarities"} & set(options) else {"rankings": rankings_of(sample[0], "paths")}
    with pytest.raises(SoirError) as caught:
        evaluate({**sample[0], **entries}, **{**run, **options})
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("runs", [{}, {"features": {}, "rankings": {}}], ids=["none", "two"])
def test_one_kind_of_run_is_expected(sample, runs):
    with pytest.raises(TypeError, match="one of"):
        evaluate(sample[0], **runs)


def test_it_prints_nothing_and_leaves_nothing_behind_also_in_a_thread(sample, described):
    def state():
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        return handlers, sys.excepthook, threading.active_count()

    before, results = state(), []
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        thread = threading.Thread(target=lambda: results.append(evaluate(sample[0], features=described)["mAP"]))
        thread.start()
        thread.join()
    assert (out.getvalue(), err.getvalue()) == ("", "")
    assert state() == before
    assert results == [evaluate(sample[0], features=described)["mAP"]]


@pytest.mark.parametrize("progress", [False, True])
def test_a_progress_bar_is_shown_on_a_terminal_if_it_is_asked_for(progress):
    pty = pytest.importorskip("pty")
    entries = {"a.jpg": {"ins": 1, "is_query": True}, "b.jpg": {"ins": 1}}
    code = (
        f"from soir_common import evaluate; evaluate({entries}, rankings={{'a.jpg': ['b.jpg']}}, progress={progress})"
    )
    ours, theirs = pty.openpty()
    os.write(theirs, b".")  # so that there is something to read in any case
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], stderr=theirs, env=env, check=True)
    assert (os.read(ours, 10_000) != b".") is progress
