"""Runs in every form that people bring (soir/runs.py): what they mean, and what is refused or listed as a fault."""

import json
import math
import random

import numpy as np
import pytest
import torch
from helpers import (
    average_precision,
    competes,
    gallery_of,
    queries_of,
    random_annotations,
    refused,
    relevant_paths,
    save,
    score,
    write_json,
)

HUGE, NAN, INF = 10**400, math.nan, math.inf

# ---------------------------------------------------------------------------------------------------------------- forms


def trec_lines(run):
    """A run, query -> {path: score}, as TREC has it, with ranks that say nothing."""
    run = {q.replace(" ", "%20"): {p.replace(" ", "%20"): s for p, s in items.items()} for q, items in run.items()}
    return "".join(f"{q} Q0 {p} 7 {s} tag\n" for q, items in run.items() for p, s in items.items())


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
        "TREC": {q: dict(sorted(items)) for q, items in sorted(run.items())},
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


LISTS = "paths", "scored", "distances", "knns", "knns of each", "run dict"
ARRAYS = "matrices", "matrices with scores", "similarities"
FORMS = [f"{kind}.{ending}" for kind in LISTS for ending in ("json", "pt")]
FORMS += [f"{kind}.{ending}" for kind in ARRAYS for ending in ("npz", "pt")] + ["TREC.run", "TREC.txt"]


def assert_scored_as(rows, annotations, ranked):
    """Assert the AP of each query; ranked is what a run ranks for it, of all sets."""
    assert len(rows) > 15
    for query, row in rows.items():
        rivals = [path for path in ranked[query] if competes(annotations, query, path)]
        assert float(row["AP"]) == pytest.approx(average_precision(rivals, relevant_paths(annotations, query)))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_run_gives_the_same_figures(tmp_path, form):
    rng = random.Random(3)
    annotations = random_annotations(rng)
    gallery, run = gallery_of(annotations), {}
    for query in queries_of(annotations):
        listed = len(gallery) if form.startswith(("similarities", "matrices with")) else 60  # these list all
        run[query] = [(path, 200.0 - rank) for rank, path in enumerate(rng.sample(gallery, listed))]
    file = save_form(form, tmp_path, run, gallery[::-1])
    done, report, rows = score(tmp_path, annotations, "--rankings", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_scored_as(rows, annotations, {query: [path for path, _ in items] for query, items in run.items()})
    assert report["groups"]["all"]["mAP"] == pytest.approx(np.mean([float(row["AP"]) for row in rows.values()]))


@pytest.mark.parametrize(
    "form", ["run dict.json", "TREC.run", "similarities.npz", "scored.json", "matrices with scores.npz"]
)
def test_ties_of_every_form_are_in_gallery_order(tmp_path, form):
    rng = random.Random(31)
    annotations = random_annotations(rng)
    gallery, run, ranked = gallery_of(annotations), {}, {}
    for query in queries_of(annotations):
        scores = {path: float(rng.randrange(4)) for path in rng.sample(gallery, len(gallery))}
        run[query] = sorted(scores.items(), key=lambda item: -item[1])
        ranked[query] = sorted(gallery, key=lambda path: -scores[path])  # noqa: B023
    _, _, rows = score(tmp_path, annotations, "--rankings", save_form(form, tmp_path, run, gallery[::-1]))
    assert_scored_as(rows, annotations, ranked)


def test_the_results_file_of_the_papers_code_is_read(tmp_path):
    """As its search saves it: a dict of lists, arrays of NumPy beside, an image once per object of it."""
    rng = random.Random(32)
    annotations = random_annotations(rng)
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
    done, _, rows = score(tmp_path, annotations, "--rankings", save(tmp_path, content, "results.pt"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert_scored_as(rows, annotations, {query: list(dict.fromkeys(knns[query])) for query in queries})


def test_an_image_that_is_listed_per_object_counts_at_its_first_place(tmp_path):
    rng = random.Random(71)
    annotations = random_annotations(7)
    gallery, twice = gallery_of(annotations), {}
    for query in queries_of(annotations):
        images = rng.sample(gallery, 60)
        twice[query] = rng.sample(2 * images, 120)
    done, _, rows = score(tmp_path, annotations, "--rankings", twice)
    assert done.returncode == 0
    assert_scored_as(rows, annotations, {query: list(dict.fromkeys(ranking)) for query, ranking in twice.items()})


def test_paths_with_white_space_are_percent_encoded_in_trec_files(tmp_path):
    annotations = random_annotations(33)
    annotations = {path.replace("image", "an image\t100%25 \u00e9"): entry for path, entry in annotations.items()}
    rankings = {q: random.Random(q).sample(gallery_of(annotations), 100) for q in queries_of(annotations)}
    _, before, _ = score(tmp_path, annotations, "--rankings", rankings, "--trec", tmp_path / "out.run")
    done, report, _ = score(tmp_path, annotations, "--rankings", tmp_path / "out.run")
    assert done.returncode == 0, done.stdout
    assert report["groups"] == before["groups"]


def test_matrices_may_say_none_for_scores_and_boxes(tmp_path):
    annotations = random_annotations(0)
    queries, gallery = queries_of(annotations), gallery_of(annotations)
    run = {"queries": queries, "gallery": gallery, "indices": torch.arange(len(gallery)).repeat(len(queries), 1)}
    for more in ({}, {"scores": None}, {"boxes": None}):
        done, _, _ = score(tmp_path, annotations, "--rankings", save(tmp_path, {**run, **more}, "run.pt"))
        assert done.returncode == 0, done.stderr


def test_an_item_may_have_a_box_and_no_score(tmp_path):
    annotations = random_annotations(8)
    run = dict.fromkeys(queries_of(annotations), [["OWID/image 0", None, [0, 0, 1, 1]]])
    assert score(tmp_path, annotations, "--rankings", run)[0].returncode == 0


# ------------------------------------------------------------------------------------------------------ what is refused


NO_JSON = {
    "cut off": b'{"query.jpg": ["photogr',
    "empty": b"",
    "blank": b" \n",
    "not UTF-8": b'{"caf\xe9": []}',
    "UTF-16": '{"a": []}'.encode("utf-16"),
    "null": b"null",
    "NaN at the top": b"NaN",
    "a number": b"5",
    "a list of queries": b'{"knns": []}',
    "lists in lists": b"[" * 100_000,
    "dicts in dicts": b'{"a":' * 100_000,
    "a ranking of lists in lists": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "two values": b"{} {}",
    "NUL": b'{"a": []}\0',
}


@pytest.mark.parametrize("name", NO_JSON)
def test_a_file_that_is_no_json_of_rankings_is_refused(tmp_path, name):
    (tmp_path / "r.json").write_bytes(NO_JSON[name])
    refused(score(tmp_path, random_annotations(8), "--rankings", tmp_path / "r.json")[0], "r.json")


@pytest.mark.parametrize(
    "name, content",
    [
        ("list.json", "[1, 2]"),
        ("text.json", '"text"'),
        ("numbers_by_query.json", '{"OWID/query 0": 5}'),
        ("prose.txt", "This is no run at all.\n"),
        ("five_columns.run", "q Q0 a 1 0.5 tag\nq Q0 b 1 0.5\n"),
        ("score_of_text.run", "q Q0 a 1 high tag\n"),
        ("nothing.run", ""),
    ],
)
def test_a_file_in_none_of_the_forms_is_told_which_there_are(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    done, _, _ = score(tmp_path, random_annotations(8), "--rankings", tmp_path / name)
    refused(done, name, "query path -> gallery paths", "indices")


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
    annotations = random_annotations(8)
    change, reason = MATRICES[name]
    content = {"queries": ["OWID/query 0"], "gallery": gallery_of(annotations), **change}
    file = tmp_path / f"run.{ending}"
    if ending == "npz":
        np.savez(str(file), **content)
    else:
        write_json(tmp_path, content, file.name)
    refused(score(tmp_path, annotations, "--rankings", file)[0], reason)


def test_similarities_in_sorted_rows_are_refused_since_they_tell_no_image(tmp_path):
    annotations = random_annotations(8)
    queries, gallery = queries_of(annotations), gallery_of(annotations)
    sorted_rows = np.sort(np.random.RandomState(0).rand(len(queries), len(gallery)))[:, ::-1]
    np.savez(str(tmp_path / "r.npz"), queries=queries, gallery=gallery, similarities=sorted_rows)
    refused(score(tmp_path, annotations, "--rankings", tmp_path / "r.npz")[0], "save its `knns` too")


def test_what_is_no_run_is_named_for_what_it_may_be(tmp_path):
    annotations = random_annotations(34)
    refused(score(tmp_path, annotations, "--rankings", tmp_path / "anns.pt")[0], "anns.pt is an annotation file")
    for text, words in (
        ("a query Q0 an image 1 0.5 tag\n", ["white space in paths as %20"]),
        ("query Q0 image 1 0.5 tag\na query Q0 an image 1 0.5 tag\n", ["line 2", "%20"]),
    ):
        (tmp_path / "r.run").write_text(text)
        refused(score(tmp_path, annotations, "--rankings", tmp_path / "r.run")[0], *words)


@pytest.mark.parametrize(
    "text, twice",
    [
        ('{"OWID/query 0": [], "OWID/query 0": ["OWID/image 0"]}', "OWID/query 0"),
        ('{"OWID/query 0": {"OWID/image 0": 1, "OWID/image 0": 2}}', "OWID/image 0"),
    ],
    ids=["query", "path"],
)
def test_a_query_or_a_path_that_stands_twice_in_json_is_refused(tmp_path, text, twice):
    (tmp_path / "run.json").write_text(text)
    done, _, _ = score(tmp_path, random_annotations(0), "--rankings", tmp_path / "run.json")
    refused(done, tmp_path / "run.json", twice, "twice")


# ---------------------------------------------------------------------------------------------------- what is its fault

QUERY = "OWID/query 0"


def score_but_for_one(folder, make):
    """Score a run that is perfect but for a query: (its faults, the AP of that query, its perfect ranking).

    make  its perfect ranking -> what stands in its place
    """
    annotations = random_annotations(7, sets=("OWID",))
    run = {query: relevant_paths(annotations, query) for query in queries_of(annotations)}
    perfect = run[QUERY]
    done, report, rows = score(folder, annotations, "--rankings", {**run, QUERY: make(perfect)})
    assert (done.returncode, done.stderr) == (bool(report["faults"]), "")
    assert ("\nfaults:\n" in done.stdout) == bool(report["faults"])
    assert report["groups"]["all"]["queries"] == len([query for query in run if run[query]])
    return report["faults"], float(rows[QUERY]["AP"]), perfect


@pytest.mark.parametrize(
    "items",
    [
        ["nowhere"],
        [QUERY],
        [None],
        [1, 1.5, True, NAN, HUGE],
        [[], [[]], [None], [["a"]]],
        [{}, {"path": "a"}],
        ["", "\0", "\ud800", "a\nb", "x" * 100_000],
    ],
    ids=["unknown", "a query", "None", "numbers", "lists", "dicts", "text"],
)
def test_what_is_no_gallery_image_keeps_its_rank_as_wrong(tmp_path, items):
    faults, precision, perfect = score_but_for_one(tmp_path, lambda ranking: items + ranking)
    ((reason, (place,)),) = faults.items()
    assert reason == "query that ranks a path that is no gallery image here, counted as wrong"
    assert place.startswith(QUERY)
    assert (f" and {len(items) - 1} more" in place) == (len(items) > 1)
    assert precision == pytest.approx(average_precision([None] * len(items) + perfect, perfect))


@pytest.mark.parametrize("value", [None, 5, "text", True, {"knns": 5}])
def test_a_query_without_a_ranking_is_scored_0(tmp_path, value):
    faults, precision, _ = score_but_for_one(tmp_path, lambda ranking: value)
    assert (faults, precision) == ({"query without a ranking, scored 0": [QUERY]}, 0)


@pytest.mark.parametrize("value", [NAN, INF, "0.5", True, [0.5], {}])
@pytest.mark.parametrize("form", ["list", "dict"])
def test_an_image_whose_score_is_no_number_is_not_retrieved(tmp_path, form, value):
    def make(ranking):
        scores = {**dict.fromkeys(ranking, 0.5), ranking[0]: value}
        return scores if form == "dict" else [[ranking[0], value], *ranking[1:]]

    faults, precision, perfect = score_but_for_one(tmp_path, make)
    reason = "query with a score that is no finite number, its image counted as not retrieved"
    assert faults == {reason: [f"{QUERY}: {perfect[0]}"]}
    assert precision == pytest.approx(average_precision(perfect[1:], perfect))


@pytest.mark.parametrize(
    "box", ["0 0 1 1", [0, 0, 1], [0, 0, NAN, 1], [0, 0, INF, 1], [0, 0, "1", 1], [1, 1, 0, 0], {"x": 0}], ids=str
)
def test_a_box_that_is_none_is_ignored(tmp_path, box):
    faults, precision, perfect = score_but_for_one(tmp_path, lambda ranking: [[ranking[0], 1, box], *ranking[1:]])
    assert faults == {"query with a box that is not (x1, y1, x2, y2), ignored": [f"{QUERY}: {perfect[0]}"]}
    assert precision == 1


def test_scores_that_neither_fall_nor_rise_do_not_change_the_order_of_a_list(tmp_path):
    faults, precision, _ = score_but_for_one(
        tmp_path, lambda ranking: [[path, score] for path, score in zip(ranking, (3, 1, 2, *[0] * 99))]
    )
    assert faults == {"query whose scores neither fall nor rise, taken in the order of its list": [QUERY]}
    assert precision == 1


@pytest.mark.parametrize("item", [[HUGE], [-HUGE], [1, [0, 0, HUGE, HUGE]], [1, [0.5, 0, 10**300, 10**300]]])
def test_numbers_beyond_any_float_do_not_end_the_run(tmp_path, item):
    score_but_for_one(tmp_path, lambda ranking: [[ranking[0], *item]])


@pytest.mark.parametrize(
    "change, fault",
    [
        (lambda run: run.pop(QUERY), "query without a ranking, scored 0"),
        (lambda run: run.update(nowhere=[]), "ranking of a path that is no query here"),
    ],
)
def test_queries_that_are_missing_or_unknown_are_faults(tmp_path, change, fault):
    annotations = random_annotations(7, sets=("OWID",))
    run = {query: relevant_paths(annotations, query) for query in queries_of(annotations)}
    change(run)
    done, report, _ = score(tmp_path, annotations, "--rankings", run)
    assert (done.returncode, list(report["faults"])) == (1, [fault])
    assert f"\nfaults:\n  1 x {fault}" in done.stdout
