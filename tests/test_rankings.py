"""Runs that are not what they seem (soir/rankings.py): of no known form, upside down, tied, padded, of other paths."""

import random
import unicodedata

import numpy as np
import pytest
import torch
from conftest import run_here
from helpers import (
    average_precision,
    gallery_of,
    queries_of,
    random_annotations,
    refused,
    relevant_paths,
    save,
    score,
    write_json,
)

QUERY, GALLERY = "q/mug.jpg", [f"g/{number}.jpg" for number in range(1, 9)]
RELEVANT = GALLERY[5:]
RIGHT = RELEVANT[::-1] + GALLERY[:5]  # a perfect ranking; in the order of the gallery, the relevant come last
SCORES = [0.9 - 0.1 * number for number in range(8)]
ANNOTATIONS = {
    QUERY: {"bbox": (10, 10, 50, 50), "ins": 1, "is_query": True},
    **{path: {"bbox": (20, 20, 60, 60), "ins": 1 if path in RELEVANT else 2} for path in GALLERY},
}
LAST = average_precision(GALLERY, RELEVANT)  # of the gallery's own order


def score_file(folder, content, name="run.json", annotations=ANNOTATIONS):
    """Score a run of the tiny file: (process, mAP, reasons of faults, reasons of what is noticed)."""
    file = folder / name
    if isinstance(content, str):
        file.write_text(content, encoding="utf-8")
    elif name.endswith(".npz"):
        np.savez(str(file), **content)
    elif name.endswith(".pt"):
        torch.save(content, str(file))
    else:
        write_json(folder, content, name)
    done, report, _ = score(folder, annotations, "--rankings", file)
    return done, report["groups"]["all"]["mAP"], report["faults"], report["noticed"]


def trec(scores, ranks=None):
    ranks = ranks or range(1, len(RIGHT) + 1)
    return "".join(f"{QUERY} Q0 {path} {rank} {score} tag\n" for path, rank, score in zip(RIGHT, ranks, scores))


# --------------------------------------------------------------------------------------------------- in no known form


@pytest.mark.parametrize(
    "content, words",
    [
        ([{"path": path, "score": score} for path, score in zip(RIGHT, SCORES)], "found a dict with path, score"),
        ([{"image": path} for path in RIGHT], "found a dict with image"),
        (list(range(8)), "found 0 (int)"),
        ([0.5] * 8, "found 0.5 (float)"),
        ([[score, path] for path, score in zip(RIGHT, SCORES)], "found a list that begins with 0.9 (float)"),
        ([[score, path, [1, 2, 3, 4]] for path, score in zip(RIGHT, SCORES)], "a list that begins with 0.9 (float)"),
        ({"paths": RIGHT, "scores": SCORES}, "found paths"),
        ([RIGHT, SCORES], "no score that is a finite number, found g/7.jpg (str)"),
        (
            [[path, str(score)] for path, score in zip(RIGHT, SCORES)],
            "no score that is a finite number, found 0.9 (str)",
        ),
        ({path: str(score) for path, score in zip(RIGHT, SCORES)}, "no score that is a finite number, found 0.9 (str)"),
        ({path: [score] for path, score in zip(RIGHT, SCORES)}, "a finite number, found a list that begins with 0.9"),
        ([path.rpartition("/")[2] for path in RIGHT], "it is the name of a file only: write the whole path, g/8.jpg"),
        (["/data/" + path for path in RIGHT], '(both end in g/8.jpg: convert_annotations.py --replace-prefix "" /data'),
        ([path.upper() for path in RIGHT], "it differs from g/8.jpg in upper and lower case"),
        ([path.replace("/", "\\") for path in RIGHT], "it differs from g/8.jpg in upper and lower case, slashes"),
        ([path + " " for path in RIGHT], "or white space"),
        (["elsewhere/" + path[2:] for path in RIGHT], "--replace-prefix g elsewhere"),
        (["nowhere.png"], "found nowhere.png"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value)[:30],
)
def test_a_run_in_no_known_form_is_refused_and_the_forms_are_named(tmp_path, content, words):
    anns, good = save(tmp_path, ANNOTATIONS), write_json(tmp_path, {QUERY: RIGHT}, "good.json")
    file = write_json(tmp_path, {QUERY: content}, "run.json")
    for files in ([file], [good, file]):  # also beside a good one
        done = run_here("evaluate_retrieval.py", "--ann-file", anns, "--rankings", *files)
        line = refused(done, "run.json", "a run is query path -> gallery paths", words)
        assert "expected gallery paths like g/1.jpg" in line or "no score" in line


def test_some_odd_items_among_good_ones_are_faults_only(tmp_path):
    done, precision, faults, _ = score_file(tmp_path, {QUERY: [5, {"path": 1}, *RIGHT]})
    assert done.returncode == 1
    assert list(faults) == ["query that ranks a path that is no gallery image here, counted as wrong"]
    assert precision == pytest.approx(average_precision([None, None, *RIGHT], RELEVANT))


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("run.jsonl", '{"query": "q", "results": []}\n' * 2, ["JSON Lines, one object per line"]),
        ("run.txt", "some words\n", ["it is text"]),
        ("run.csv", "path,0,1\n", ["it is CSV"]),
        ("run", "", ["it is empty"]),
        ("run.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, ["it is a PNG image"]),
        ("run.npy", b"\x93NUMPY\x01\0" + b"\0" * 50, ["it is a NumPy array (.npy)"]),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    done = run_here("evaluate_retrieval.py", "--ann-file", save(tmp_path, ANNOTATIONS), "--rankings", tmp_path / name)
    refused(done, name, *words)


@pytest.mark.parametrize(
    "run, words",
    [
        ({QUERY.encode(): RIGHT}, "has a ranking for none of the queries"),
        ({0: RIGHT}, "has a ranking for none of the queries"),
        ({QUERY: {path.encode(): 1 for path in RIGHT}}, "found a bytes"),
        ({QUERY: {0: 0.5, 1: 0.25}}, "found 0 (int)"),
    ],
    ids=["bytes", "int", "bytes of images", "int of images"],
)
def test_names_that_are_no_text_are_refused(tmp_path, run, words):
    refused(score(tmp_path, ANNOTATIONS, "--rankings", save(tmp_path, run, "run.pt"))[0], words)


def table(scores, header="query,path,score"):
    rows = "".join(f"{QUERY},{path},{score}\n" for path, score in zip(RIGHT, scores))
    return f"{header}\n{rows}"


def test_csv_may_be_quoted_and_from_windows(tmp_path):
    quoted = "\ufeff" + table(SCORES).replace(",", '","').replace("\n", '"\r\n"')
    (tmp_path / "run.csv").write_bytes(quoted.replace("\ufeff", '\ufeff"')[:-1].encode())
    done, report, _ = score(tmp_path, ANNOTATIONS, "--rankings", tmp_path / "run.csv")
    assert (done.returncode, report["groups"]["all"]["mAP"], report["noticed"]) == (0, 1, {})


@pytest.mark.parametrize(
    "content, words",
    [
        (table([1, 2, 3, 4, 5, -1, -1, -1], "query,path,rank"), "line 7: expected"),
        (table(["nan"] * 8, "query,path,rank"), "line 2: expected"),
        (table(SCORES, "query,path,distance"), "it is CSV: a run is"),
    ],
)
def test_csv_without_usable_ranks_or_scores_is_refused(tmp_path, content, words):
    (tmp_path / "run.csv").write_text(content)
    refused(score(tmp_path, ANNOTATIONS, "--rankings", tmp_path / "run.csv")[0], words)


def test_indices_that_were_sorted_along_the_wrong_axis_are_refused(tmp_path):
    annotations = random_annotations(8, sets=("OWID",))
    queries, gallery = queries_of(annotations), gallery_of(annotations)
    distances = np.random.RandomState(0).rand(len(queries), len(gallery))
    run = {"queries": queries, "gallery": gallery, "indices": np.argsort(distances, axis=0)}
    np.savez(str(tmp_path / "run.npz"), **run)
    refused(score(tmp_path, annotations, "--rankings", tmp_path / "run.npz")[0], "sorted over the queries")
    run["indices"] = np.argsort(distances, axis=1)
    assert score_file(tmp_path, run, "run.npz", annotations)[0].returncode == 0


NOTHING = "run whose lists are empty, or of images only that the queries do not compete over"


def test_a_run_that_ranks_nothing_has_a_fault(tmp_path):
    annotations = random_annotations(8)
    queries, gallery = queries_of(annotations), gallery_of(annotations)
    others = {query: [path for path in gallery if path[:4] != query[:4]] for query in queries}
    empty = {"queries": queries, "gallery": gallery, "indices": -np.ones((len(queries), 3), dtype=int)}
    for content, name in ((dict.fromkeys(queries, []), "run.json"), (others, "run.json"), (empty, "run.npz")):
        done, precision, faults, noticed = score_file(tmp_path, content, name, annotations)
        assert (done.returncode, precision, list(faults), noticed) == (1, 0, [NOTHING], {})


# ----------------------------------------------------------------------------------------------- scores and their order


BACKWARDS = "run that ranks relevant images behind the others, as distances do: the highest score is best; negate them"


@pytest.mark.parametrize("sign", [1, 0, -1])
@pytest.mark.parametrize("form", ["similarities", "run dict", "list", "TREC with score and rank swapped"])
def test_a_run_that_is_upside_down_is_noticed(tmp_path, form, sign):
    annotations, rng = random_annotations(8), np.random.RandomState(0)
    queries, gallery = queries_of(annotations), gallery_of(annotations)
    is_relevant = [[path in relevant_paths(annotations, query) for path in gallery] for query in queries]
    matrix = sign * np.array(is_relevant) + rng.randn(len(queries), len(gallery))
    content = {q: dict(zip(gallery, row)) for q, row in zip(queries, matrix.tolist())}
    if form == "similarities":
        content = {"queries": queries, "gallery": gallery, "similarities": torch.tensor(matrix)}
    elif form == "list":
        content = {query: sorted(row, key=row.get, reverse=True) for query, row in content.items()}
    elif form != "run dict":
        ranked = [(query, row, sorted(row, key=row.get)) for query, row in content.items()]
        lines = [f"{q} Q0 {p} {-row[p]} {n} tag\n" for q, row, paths in ranked for n, p in enumerate(paths, 1)]
        content = "".join(lines).replace("query ", "query%20").replace("image ", "image%20")
    name = "run.pt" if form == "similarities" else "run.json"
    done, _, faults, noticed = score_file(tmp_path, content, name, annotations)
    assert (done.returncode, faults, list(noticed)) == (0, {}, [BACKWARDS] if sign < 0 else [])


@pytest.mark.parametrize("kind", ["csv of ranks", "similarities"])
def test_scores_or_ranks_that_are_all_equal_are_in_gallery_order_and_noticed(tmp_path, kind):
    two = {**ANNOTATIONS, "q/cup.jpg": {**ANNOTATIONS[QUERY], "ins": 2}}
    matrix = {"queries": [QUERY, "q/cup.jpg"], "gallery": GALLERY, "similarities": torch.ones(2, 8)}
    content, name, entries = matrix, "run.pt", two
    if kind != "similarities":
        content, name, entries = table([1] * 8, "query,path,rank"), "run.csv", ANNOTATIONS
    done, precision, faults, noticed = score_file(tmp_path, content, name, entries)
    expected = [LAST, average_precision(GALLERY, GALLERY[:5])][: len(entries) - 8]
    assert (done.returncode, faults, precision) == (0, {}, pytest.approx(np.mean(expected)))
    assert any(reason.startswith("run in which ties decide") for reason in noticed)


@pytest.mark.parametrize("box, is_noticed", [((20, 20, 60, 60), False), ((40, 40, 120, 120), True)])
def test_boxes_that_all_miss_the_object_are_noticed(tmp_path, box, is_noticed):
    reason = "run whose boxes all miss the object (IoU < 0.1): expected (x1, y1, x2, y2) in pixels of the whole image"
    noticed = score_file(tmp_path, {QUERY: [[path, 1, box] for path in RIGHT]})[3]
    assert list(noticed) == [reason] * is_noticed


@pytest.mark.parametrize(
    "name, content",
    [
        ("list.json", {QUERY: [[path, 1] for path in RIGHT]}),
        ("boxes.json", {QUERY: [[path, 1, [20, 20, 60, 60]] for path in RIGHT]}),
        ("same.trec", trec([1.0] * 8)),
        ("shuffled.trec", "".join(sorted(trec([0.25] * 8).splitlines(keepends=True)))),
        (
            "zeros.npz",
            {
                "queries": [QUERY],
                "gallery": GALLERY,
                "indices": [[GALLERY.index(path) for path in RIGHT]],
                "scores": np.zeros((1, 8)),
            },
        ),
        ("ranks.csv", "query,path,rank\n" + "".join(f"{QUERY},{path},{n}\n" for n, path in enumerate(RIGHT, 1))),
        ("scores.csv", "path, score ,query\n" + "".join(f"{p},{s},{QUERY}\n" for p, s in zip(RIGHT, SCORES))),
    ],
)
def test_the_order_of_a_list_stays_where_its_scores_say_nothing(tmp_path, name, content):
    done, precision, faults, noticed = score_file(tmp_path, content, name)
    assert (done.returncode, precision, faults, noticed) == (0, 1, {}, {})


@pytest.mark.parametrize("last", [None, 0.5])
def test_scores_of_a_list_that_are_not_all_equal_are_ties(tmp_path, last):
    """0.5 is below the others, so these are in the order of the gallery; without a score, an image is not tied."""
    content = {QUERY: [*([path, 1.0] for path in RIGHT[:-1]), [RIGHT[-1], last]]}
    _, precision, _, noticed = score_file(tmp_path, content)
    ordered = RIGHT if last is None else [path for path in GALLERY if path != RIGHT[-1]] + [RIGHT[-1]]
    assert precision == pytest.approx(average_precision(ordered, RELEVANT))
    assert bool(noticed) is (last is not None)


@pytest.mark.parametrize("kind", ["dict", "trec without ranks", "similarities"])
@pytest.mark.parametrize("seed", range(4))
def test_ties_that_decide_are_noticed_with_both_figures(tmp_path, kind, seed):
    """The best and the worst order, by sorting the ties for and against the relevant images."""
    rng = random.Random(seed)
    annotations = random_annotations(seed, sets=("RoboTools",))
    gallery = gallery_of(annotations)
    scores = {
        query: {path: rng.randrange(4 + 30 * (seed == 3)) for path in gallery} for query in queries_of(annotations)
    }
    best, worst = [], []
    for query, own in scores.items():
        relevant = relevant_paths(annotations, query)
        for sign, values in ((1, best), (-1, worst)):
            if relevant:
                ordered = sorted(gallery, key=lambda path: (-own[path], -sign * (path in relevant)))  # noqa: B023
                values.append(average_precision(ordered, relevant))
    if kind == "dict":
        name, content = "run.json", scores
    elif kind == "similarities":
        matrix = np.array([list(own.values()) for own in scores.values()])
        name, content = "run.npz", {"queries": list(scores), "gallery": gallery, "similarities": matrix}
    else:
        name = "run.trec"
        lines = [(query, path, score) for query, own in scores.items() for path, score in own.items()]
        content = "".join(
            f"{q} Q0 {p} 0 {s} tag\n".replace("y ", "y%20", 1).replace("e ", "e%20", 1) for q, p, s in lines
        )
    _, _, _, noticed = score_file(tmp_path, content, name, annotations)
    figures = f"between {100 * np.mean(worst):.2f} and {100 * np.mean(best):.2f} %"
    assert [reason for reason in noticed if "ties decide" in reason and figures in reason], noticed


def test_ties_of_equal_vectors_are_noticed_too(tmp_path):
    annotations = random_annotations(1, sets=("RoboTools",))
    rng = np.random.RandomState(0)
    kinds = rng.randn(3, 8).astype(np.float32)
    own = {path: int(rng.randint(3)) for path in annotations}
    np.savez(str(tmp_path / "f.npz"), **{path: kinds[kind] for path, kind in own.items()})
    _, report, _ = score(tmp_path, annotations, "--features", tmp_path / "f.npz")
    units = kinds / np.linalg.norm(kinds, axis=1, keepdims=True)
    similar = np.round(units @ units.T, 6)
    ends = []
    for sign in (-1, 1):
        values = []
        for query in queries_of(annotations):
            relevant = relevant_paths(annotations, query)
            key = lambda p: (-similar[own[query], own[p]], -sign * (p in relevant))  # noqa: B023, E731
            values += [average_precision(sorted(gallery_of(annotations), key=key), relevant)] if relevant else []
        ends.append(f"{100 * np.mean(values):.2f}")
    assert [reason for reason in report["noticed"] if f"between {ends[0]} and {ends[1]} %" in reason], report["noticed"]


def test_ties_that_hardly_matter_are_not_noticed(tmp_path):
    scores = {path: 8 - number for number, path in enumerate(RIGHT)}
    scores[RIGHT[-1]] = scores[RIGHT[-2]]  # two images that are not relevant
    assert score_file(tmp_path, {QUERY: scores})[3] == {}


RISE = "run whose scores rise in the order of the file, as distances and ranks do: the highest is best; negate them"
UPSIDE_DOWN = "run whose scores rise from rank 1 on, where the highest score is best: negate them"


@pytest.mark.parametrize(
    "scores, is_noticed",
    [
        ([0.1 + 0.07 * n for n in range(8)], True),
        (range(1, 9), True),
        (range(8), True),
        (range(5, 13), True),
        ([1, 1, 2, 2, 3, 3, 4, 4], True),
        ([-1 / (n + 1) for n in range(8)], True),
        (SCORES, False),
        ([8, 1, 2, 3, 4, 5, 6, 7], False),
        ([1, 2], False),  # too few to tell
    ],
    ids=str,
)
def test_scores_of_a_run_dict_that_rise_are_noticed(tmp_path, scores, is_noticed):
    done, _, faults, noticed = score_file(tmp_path, {QUERY: dict(zip(RIGHT, scores))})
    assert (done.returncode, faults, RISE in noticed) == (0, {}, is_noticed)


def test_one_query_whose_scores_fall_tells_that_a_run_dict_is_no_ranks(tmp_path):
    annotations = random_annotations(3)
    gallery = gallery_of(annotations)
    run = {query: dict(zip(gallery, range(60))) for query in queries_of(annotations)}
    assert RISE in score_file(tmp_path, run, annotations=annotations)[3]
    run[queries_of(annotations)[-1]] = dict(zip(gallery, range(60, 0, -1)))
    assert RISE not in score_file(tmp_path, run, annotations=annotations)[3]


@pytest.mark.parametrize(
    "scores", [[0.1 + 0.07 * n for n in range(8)], [10 * n for n in range(1, 9)], range(8)], ids=str
)
def test_scores_that_rise_with_the_ranks_of_trec_are_a_fault(tmp_path, scores):
    done, precision, faults, _ = score_file(tmp_path, trec(scores), "run.trec")
    assert (done.returncode, list(faults)) == (1, [UPSIDE_DOWN])
    assert precision == pytest.approx(average_precision(RIGHT[::-1], RELEVANT))


def test_scores_that_contradict_some_ranks_of_trec_are_noticed(tmp_path):
    scores = SCORES.copy()
    scores[2], scores[3] = scores[3], scores[2]
    done, _, faults, noticed = score_file(tmp_path, trec(scores), "run.trec")
    assert (done.returncode, faults) == (0, {})
    assert noticed == {"query whose scores contradict its ranks; the scores count, as in trec_eval": [QUERY]}


def test_what_is_exported_as_trec_is_read_back_without_a_word(tmp_path):
    annotations = random_annotations(34)
    run = {query: random.Random(query).sample(gallery_of(annotations), 50) for query in queries_of(annotations)}
    exported = tmp_path / "own.run"
    _, before, _ = score(tmp_path, annotations, "--rankings", run, "--trec", exported)
    done, after, _ = score(tmp_path, annotations, "--rankings", exported)
    assert (done.returncode, after["noticed"], after["groups"]) == (0, {}, before["groups"])


@pytest.mark.parametrize("ending", ["list", "dict", "knns", "boxes", "numpy boxes", "numpy scores"])
def test_tensors_and_arrays_as_scores_and_boxes_are_taken(tmp_path, ending):
    scores = torch.linspace(0.9, 0.1, 8)
    boxes = [torch.tensor([20.0, 20, 60, 60]) for _ in RIGHT]
    content = {
        "list": list(zip(RIGHT, scores)),
        "dict": dict(zip(RIGHT, scores)),
        "knns": list(zip(RIGHT, scores)),
        "boxes": [(path, float(s), box) for path, s, box in zip(RIGHT, scores, boxes)],
        "numpy boxes": [(path, float(s), box.numpy()) for path, s, box in zip(RIGHT, scores, boxes)],
        "numpy scores": list(zip(RIGHT, scores.numpy())),
    }[ending]
    content = {"knns": {QUERY: content}} if ending == "knns" else {QUERY: content}
    done, precision, faults, noticed = score_file(tmp_path, content, "run.pt")
    assert (done.returncode, precision, faults, noticed) == (0, 1, {}, {})
    assert ("IoU of the first hit: 100.00" in done.stdout) is ("boxes" in ending)


# -------------------------------------------------------------------------------------------------- what repeats, paths


@pytest.mark.parametrize(
    "row, is_noticed, expected",
    [
        ([6, 0, -1, -1, -1, -1], False, ["g/7.jpg", "g/1.jpg"]),
        ([6, 0, 7, 7, 7, 7], True, ["g/7.jpg", "g/1.jpg", "g/8.jpg"]),
        ([6, 0, 0, 0, 0, 0], True, ["g/7.jpg", "g/1.jpg"]),
        ([6, 1, 2, 5, 7, 7], True, ["g/7.jpg", "g/2.jpg", "g/3.jpg", "g/6.jpg", "g/8.jpg"]),
        ([6, 1, 2, 3, 3, 3], True, ["g/7.jpg", "g/2.jpg", "g/3.jpg", "g/4.jpg"]),
        ([6, 6, 1, 6, 2, 2], False, ["g/7.jpg", "g/2.jpg", "g/3.jpg"]),  # an image once per object
        ([6, 0, 7, 5, 1, 2], False, ["g/7.jpg", "g/1.jpg", "g/8.jpg", "g/6.jpg", "g/2.jpg", "g/3.jpg"]),
    ],
    ids=str,
)
def test_a_row_that_ends_in_one_index_is_noticed(tmp_path, row, is_noticed, expected):
    content = {"queries": [QUERY], "gallery": GALLERY, "indices": [row]}
    done, precision, faults, noticed = score_file(tmp_path, content, "run.npz")
    reason = "query whose row of indices ends in one index again and again: -1 stands for what was not found"
    assert (done.returncode, faults, noticed) == (0, {}, {reason: [QUERY]} if is_noticed else {})
    assert precision == pytest.approx(average_precision(expected, RELEVANT))


@pytest.mark.parametrize(
    "spread, is_noticed", [(0, True), (1e-6, True), (0.02, True), (0.06, False), (1, False)], ids=str
)
def test_vectors_that_are_all_but_equal_are_noticed(tmp_path, spread, is_noticed):
    rng = np.random.RandomState(0)
    vectors = {path: np.ones(64) + spread * rng.randn(64) for path in ANNOTATIONS}
    np.savez(str(tmp_path / "f.npz"), **vectors)
    _, report, _ = score(tmp_path, ANNOTATIONS, "--features", tmp_path / "f.npz")
    units = np.array([vectors[path] / np.linalg.norm(vectors[path]) for path in GALLERY])
    cosine = float((units @ units.T).mean())
    assert (cosine >= 0.999) is is_noticed
    reason = "features of the gallery images that are all but equal: noise, or the order of the file, ranks them"
    assert (reason in report["noticed"]) is is_noticed
    if is_noticed:
        assert report["noticed"][reason][0].endswith(f"mean cosine {cosine:.6f}")


def test_one_ranking_for_all_queries_is_noticed(tmp_path):
    annotations = random_annotations(2)
    run = dict.fromkeys(queries_of(annotations), gallery_of(annotations))
    alike = "run that ranks the same images in the same order for every query"
    assert alike in score_file(tmp_path, run, annotations=random_annotations(2, sets=("OWID",)))[3]
    run[queries_of(annotations)[0]] = gallery_of(annotations)[::-1]
    assert alike not in score_file(tmp_path, run, annotations=annotations)[3]


def test_boxes_in_rows_of_queries_are_not_looked_at(tmp_path):
    boxes = np.array([[0, 0, 0, 0], *[[20, 20, 60, 60]] * 8], dtype=float)
    index = {"paths": list(ANNOTATIONS), "features": np.random.RandomState(0).rand(9, 4), "boxes": boxes}
    np.savez(str(tmp_path / "f.npz"), **index)
    done, report, _ = score(tmp_path, ANNOTATIONS, "--features", tmp_path / "f.npz")
    assert (done.returncode, report["faults"]) == (0, {})
    boxes[3] = 0
    np.savez(str(tmp_path / "f.npz"), **index)
    done, report, _ = score(tmp_path, ANNOTATIONS, "--features", tmp_path / "f.npz")
    assert report["faults"] == {"feature with a box that is not (x1, y1, x2, y2), ignored": [GALLERY[2]]}


SPELLED = "path in another spelling (./x for x, or another Unicode form), taken for the one path that it fits"


def nfd(text):
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize(
    "spell",
    [lambda p: "./" + p, lambda p: p.replace("/", "//"), lambda p: p.replace("/", "/./"), lambda p: "x/../" + p, nfd],
)
@pytest.mark.parametrize("kind", ["rankings", "features"])
def test_another_spelling_of_a_path_matches_and_is_noticed_once(tmp_path, spell, kind):
    annotations = {path.replace("g/", "grün/").replace("q/", "küche/"): entry for path, entry in ANNOTATIONS.items()}
    query, *gallery = annotations
    right = gallery[:4:-1] + gallery[:5]
    if kind == "rankings":
        file = write_json(tmp_path, {spell(query): list(map(spell, right))})
    else:
        vectors = {query: np.array([1.0, 0]), **{p: np.array([1.0, n]) for n, p in enumerate(right, 1)}}
        file = tmp_path / "f.npz"
        np.savez(str(file), paths=np.array(list(map(spell, vectors))), features=np.array(list(vectors.values())))
    done, report, _ = score(tmp_path, annotations, f"--{kind}", file)
    assert (done.returncode, report["groups"]["all"]["mAP"], report["faults"]) == (0, 1, {})
    assert list(map(len, report["noticed"].values())) == [1]
    assert list(report["noticed"]) == [SPELLED]


def test_a_spelling_of_two_paths_is_that_of_none(tmp_path):
    annotations = {**ANNOTATIONS, "./g/8.jpg": ANNOTATIONS["g/8.jpg"]}
    _, _, faults, _ = score_file(tmp_path, {QUERY: ["g//8.jpg", *RIGHT]}, annotations=annotations)
    assert list(faults) == ["query that ranks a path that is no gallery image here, counted as wrong"]


# ----------------------------------------------------------------------------------------------------------- properties


def in_form(form, run, gallery, rng):
    """A run, query -> [(path, score)] without ties, in a form; what carries no meaning is shuffled."""
    queries = rng.sample(list(run), len(run))
    if form == "lists":
        return "run.json", {query: [path for path, _ in run[query]] for query in queries}
    if form == "pairs":
        return "run.json", {query: run[query] for query in queries}
    if form == "dict":
        return "run.json", {query: dict(rng.sample(run[query], len(run[query]))) for query in queries}
    if form in ("trec", "csv"):
        lines = [
            (q.replace(" ", "%20") if form == "trec" else q, p.replace(" ", "%20") if form == "trec" else p, n, s)
            for q in run
            for n, (p, s) in enumerate(run[q], 1)
        ]
        rng.shuffle(lines)
        if form == "csv":
            return "run.csv", "query,path,rank\n" + "".join(f"{q},{p},{n}\n" for q, p, n, _ in lines)
        return "run.trec", "".join(f"{q} Q0 {p} {n} {s} tag\n" for q, p, n, s in lines)
    order = rng.sample(gallery, len(gallery))
    if form == "indices":
        return "run.npz", {
            "queries": queries,
            "gallery": order,
            "indices": [[order.index(p) for p, _ in run[q]] for q in queries],
        }
    scores = [[dict(run[query])[path] for path in order] for query in queries]
    return "run.npz", {"queries": queries, "gallery": order, "similarities": scores}


@pytest.mark.parametrize("form", ["lists", "pairs", "dict", "trec", "csv", "indices", "similarities"])
def test_what_carries_no_meaning_changes_nothing_and_a_reversal_does(tmp_path, form):
    annotations = random_annotations(5)
    rng = random.Random(1)
    gallery = gallery_of(annotations)
    run = {}
    for query in queries_of(annotations):
        scores = sorted((rng.random() for _ in gallery), reverse=True)
        run[query] = list(zip(rng.sample(gallery, len(gallery)), scores))
    backwards = {query: [(p, s) for (p, _), (_, s) in zip(items[::-1], items)] for query, items in run.items()}
    figures = []
    for seed in range(3):
        name, content = in_form(form, run, gallery, random.Random(seed))
        done, precision, faults, noticed = score_file(tmp_path, content, name, annotations)
        assert (done.returncode, faults, noticed) == (0, {}, {})
        figures.append(precision)
    assert len(set(figures)) == 1
    name, content = in_form(form, backwards, gallery, random.Random(0))
    assert score_file(tmp_path, content, name, annotations)[1] != figures[0]
