"""Files of strangers for evaluate_retrieval.py: annotations, rankings and features made to be trouble."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Tiny, load_plainly, make_annotations, needs_proc, run_here
from hostile_pickles import Call, hostile_pickles, zip_pickle
from run_fork import Fork

HUGE = 10**400


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A tiny tree's annotation file, and what is in it."""
    folder = tmp_path_factory.mktemp("few")
    make_annotations(folder / "anns.pt", Tiny(folder / "VoxDet").root, folder / "rankings.json")
    annotations = load_plainly(folder / "anns.pt")
    queries = [path for path, entry in annotations.items() if entry["is_query"]]
    return folder, queries, [path for path in annotations if path not in queries]


def evaluate(few, *args):
    folder, _, _ = few
    return run_here("evaluate_retrieval.py", "--ann-file", folder / "anns.pt", "--base-path", folder / "VoxDet", *args)


def own_memory():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@needs_proc
@pytest.mark.parametrize("option", ["--ann-file", "--rankings", "--features"])
def test_nothing_in_a_file_to_score_is_run_or_takes_much_memory(few, tmp_path, option):
    folder, _, _ = few
    marker, file = tmp_path / "marker", tmp_path / "hostile.pt"
    limit = own_memory() + 300 * 2**20
    args = {"--ann-file": folder / "anns.pt", "--rankings": folder / "rankings.json"}
    if option == "--features":
        del args["--rankings"]
    args[option] = file
    for name, data in hostile_pickles(marker).items():
        if data is not None:
            zip_pickle(file, data)
        elif option != "--features":  # which may be tensors
            torch.save({"a": torch.zeros(3)}, str(file))
        run = Fork("evaluate_retrieval.py", *sum(args.items(), ()))
        status, stdout, stderr = run.wait()
        assert (status, stdout) == (2, ""), (name, stderr)
        assert stderr.startswith("error: "), name
        assert str(file) in stderr, name
        assert len(stderr.splitlines()) == 1, name
        assert run.memory < limit, name
        assert not marker.exists(), name


@pytest.mark.parametrize("option", ["--rankings", "--features"])
def test_other_files_for_rankings_and_features_cannot_be_scored(few, tmp_path, option):
    hostile = b"\x80\x02" + b"cos\nsystem\nX\x05\x00\x00\x00touch\x85R."
    np.savez(str(tmp_path / "objects.npz"), a=np.array([Call(print, "run")], dtype=object))
    for file, content in {
        "bare.pt": hostile,
        "bare.npz": hostile,
        "text.pt": b"text",
        "empty.pt": b"",
        "empty.npz": b"",
        "objects.npz": (tmp_path / "objects.npz").read_bytes(),
        "half.npz": (tmp_path / "objects.npz").read_bytes()[:100],
        "folder.pt": None,
        "missing.npz": None,
    }.items():
        if option == "--rankings" and file.endswith(".npz"):
            continue
        path = tmp_path / file
        if content is not None:
            path.write_bytes(content)
        elif file.startswith("folder"):
            path.mkdir()
        done = evaluate(few, option, path)
        assert (done.returncode, done.stdout) == (2, ""), file
        assert done.stderr.startswith("error: "), file
        assert len(done.stderr.splitlines()) == 1, file


def score_features(few, tmp_path, content):
    """Score a file of features: (process, report or None)."""
    file, report = tmp_path / "features.pt", tmp_path / "report.json"
    torch.save(content, str(file))
    done = evaluate(few, "--features", file, "--report", report)
    assert done.returncode < 2 or len(done.stderr.splitlines()) == 1
    return done, json.loads(report.read_text()) if report.exists() else None


def random_features(few):
    torch.manual_seed(0)
    return {path: torch.randn(8) for path in few[1] + few[2]}


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


@pytest.mark.parametrize("name", NO_VECTORS)
def test_a_feature_that_is_no_vector_is_a_fault_that_is_listed(few, tmp_path, name):
    features = random_features(few)
    features[few[2][0]] = NO_VECTORS[name]
    done, report = score_features(few, tmp_path, features)
    assert (done.returncode, done.stderr) == (1, "")
    assert report["faults"]["feature that is no vector of numbers"] == [few[2][0]]


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
def test_every_kind_of_vector_gives_the_same_ranking(few, tmp_path, change):
    features = random_features(few)
    for path in features:  # so few bits that bfloat16 has them all
        features[path] = (features[path] * 8).round()
    _, expected = score_features(few, tmp_path, features)
    done, report = score_features(few, tmp_path, {path: change(vector) for path, vector in features.items()})
    assert (done.returncode, done.stderr) == (0, "")
    assert report["groups"] == expected["groups"]


def test_features_of_other_images_are_told_by_the_paths(few, tmp_path):
    done, _ = score_features(few, tmp_path, {"elsewhere/a.jpg": torch.ones(8)})
    assert done.returncode == 2
    assert few[1][0] in done.stderr
    assert "elsewhere/a.jpg" in done.stderr


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
def test_a_matrix_that_does_not_go_with_its_paths_cannot_be_scored(few, tmp_path, paths, features):
    done, _ = score_features(few, tmp_path, {"paths": paths, "features": features})
    assert done.returncode == 2
    assert "holds no features" in done.stderr


@needs_proc
def test_features_that_claim_to_be_huge_are_refused_before_they_take_memory(few, tmp_path):
    """A tensor may have any shape, and share its storage with all others; a list may be in the file once."""
    names, numbers = few[1] + few[2], [1] * 50_000
    for content in (
        {path: torch.ones(1).expand(10**8) for path in names},
        {"paths": names, "features": torch.ones(1, 1).expand(len(names), 10**8)},
        {f"{number}": numbers for number in range(1000)},
    ):
        torch.save(content, str(tmp_path / "features.pt"))
        run = Fork("evaluate_retrieval.py", "--ann-file", few[0] / "anns.pt", "--features", tmp_path / "features.pt")
        limit = own_memory() + 300 * 2**20
        status, _, stderr = run.wait()
        assert status == 2
        assert "over 100 times as large" in stderr
        assert run.memory < limit


FORGED = "a\nPASSED\x1b[31m"


def test_text_of_a_file_cannot_forge_a_line_of_an_error(few, tmp_path):
    file = tmp_path / "forged.pt"
    torch.save({FORGED: {"bbox": None}}, str(file))
    dones = [run_here("evaluate_retrieval.py", "--ann-file", file, "--rankings", few[0] / "rankings.json")]
    module = FORGED.encode()
    zip_pickle(file, b"\x80\x04\x8c" + bytes([len(module)]) + module + b"\x8c\x01b\x93.")
    dones.append(run_here("verify_dataset.py", "--ann-file", file))
    dones.append(evaluate(few, "--features", file))
    for done in dones:
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "\x1b" not in done.stderr


NO_JSON = {
    "cut off": b'{"OWID/P1/3/rgb/000000.jpg": ["OWID/P2/ima',
    "empty": b"",
    "blank": b" \n",
    "not UTF-8": b'{"caf\xe9": []}',
    "UTF-16": '{"a": []}'.encode("utf-16"),
    "a list": b"[]",
    "text": b'"text"',
    "null": b"null",
    "NaN at the top": b"NaN",
    "a number": b"5",
    "lists in lists": b"[" * 100_000,
    "dicts in dicts": b'{"a":' * 100_000,
    "a ranking of lists in lists": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "two values": b"{} {}",
    "NUL": b'{"a": []}\0',
}


@pytest.mark.parametrize("name", NO_JSON)
def test_a_file_that_is_no_json_of_rankings_cannot_be_scored(few, tmp_path, name):
    file = tmp_path / "rankings.json"
    file.write_bytes(NO_JSON[name])
    done = evaluate(few, "--rankings", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert str(file) in done.stderr
    assert len(done.stderr.splitlines()) == 1


NO_RANKINGS = {
    "None": None,
    "number": 5,
    "text": "OWID/P2/images/000000.jpg",
    "True": True,
    "dict of text": {"OWID/P2/images/000000.jpg": "1"},
    "dict of knns": {"knns": 5},
    "items of None": [None],
    "items of numbers": [1, 1.5, True, float("nan"), HUGE],
    "items of lists": [[], [[]], [None], [["a"]]],
    "items of dicts": [{}, {"path": "a"}],
    "text that is no path": ["", "\0", "\ud800", "a\nb", "x" * 100_000],
}
BAD_SCORES = {
    "NaN": float("nan"),
    "infinite": float("inf"),
    "text": "0.5",
    "True": True,
    "list": [0.5],
    "dict": {},
}
BAD_BOXES = {
    "text": "0 0 1 1",
    "three": [0, 0, 1],
    "NaN": [0, 0, float("nan"), 1],
    "infinite": [0, 0, float("inf"), 1],
    "text inside": [0, 0, "1", 1],
    "inside out": [1, 1, 0, 0],
    "dict": {"x": 0},
}


def score_changed(few, tmp_path, change):
    """Score right rankings of which one is changed: (process, report)."""
    folder, queries, _ = few
    rankings = json.loads((folder / "rankings.json").read_text())
    change(rankings, queries[0])
    file, report = tmp_path / "rankings.json", tmp_path / "report.json"
    file.write_text(json.dumps(rankings))
    done = evaluate(few, "--rankings", file, "--report", report, "--per-query", tmp_path / "queries.csv")
    assert done.stderr == ""
    return done, json.loads(report.read_text())


@pytest.mark.parametrize("name", NO_RANKINGS)
def test_a_ranking_of_the_wrong_types_is_a_fault_that_is_listed(few, tmp_path, name):
    done, report = score_changed(few, tmp_path, lambda rankings, query: rankings.update({query: NO_RANKINGS[name]}))
    assert done.returncode == 1
    ((_, (place,)),) = report["faults"].items()
    items = NO_RANKINGS[name] if isinstance(NO_RANKINGS[name], list) else []
    assert place.startswith(few[1][0])
    assert (f" and {len(items) - 1} more" in place) == (len(items) > 1)
    assert "\nfaults:\n" in done.stdout
    assert report["groups"]["all"]["queries"] == len(few[1])


@pytest.mark.parametrize("name", BAD_SCORES)
def test_a_score_that_is_none_is_a_fault_that_is_listed(few, tmp_path, name):
    ranking = [[few[2][0], BAD_SCORES[name]]]
    done, report = score_changed(few, tmp_path, lambda rankings, query: rankings.update({query: ranking}))
    assert done.returncode == 1
    assert list(report["faults"]) == ["query with a score that is no finite number, its image counted as not retrieved"]


def test_an_item_may_have_a_box_and_no_score(few, tmp_path):
    ranking = [[path, None, [0, 0, 1, 1]] for path in few[2]]
    done, _ = score_changed(few, tmp_path, lambda rankings, query: rankings.update({query: ranking}))
    assert done.returncode == 0


@pytest.mark.parametrize("name", BAD_BOXES)
def test_a_box_that_is_none_is_a_fault_that_is_listed(few, tmp_path, name):
    done, report = score_changed(
        few, tmp_path, lambda rankings, query: rankings.update({query: [[few[2][0], 1, BAD_BOXES[name]]]})
    )
    assert done.returncode == 1
    assert list(report["faults"]) == ["query with a box that is not (x1, y1, x2, y2), ignored"]


@pytest.mark.parametrize("item", [[HUGE], [-HUGE], [1, [0, 0, HUGE, HUGE]], [1, [0.5, 0, 10**300, 10**300]]])
def test_numbers_beyond_any_float_do_not_end_the_run(few, tmp_path, item):
    change = {few[1][0]: [[path, *item] for path in few[2]]}
    done, _ = score_changed(few, tmp_path, lambda rankings, _: rankings.update(change))
    assert done.returncode in (0, 1)


def test_the_report_of_a_run_with_faults_is_the_same_from_run_to_run(few, tmp_path):
    """Texts have another hash in each process."""
    folder, _, _ = few
    file, texts = tmp_path / "rankings.json", set()
    rankings = json.loads((folder / "rankings.json").read_text())
    rankings.update({f"unknown {number}": [] for number in range(9)})
    file.write_text(json.dumps(rankings))
    args = ["--ann-file", folder / "anns.pt", "--base-path", folder / "VoxDet", "--rankings", file]
    args += ["--report", tmp_path / "report.json"]
    command = [sys.executable, str(ROOT / "evaluate_retrieval.py"), *map(str, args)]
    for seed in "12":
        done = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE)
        assert done.returncode == 1
        texts.add((done.stdout, (tmp_path / "report.json").read_bytes()))
    assert len(texts) == 1
