"""The metrics (soir/metrics.py) are those of trec_eval (by ir_measures), scikit-learn and scipy, and of a loop."""

import random

import numpy as np
import pytest
from helpers import (
    average_precision,
    by_cosine,
    competes,
    gallery_of,
    queries_of,
    random_annotations,
    random_vectors,
    relevant_paths,
    score,
    with_splits,
    write_json,
)
from scipy import stats
from sklearn.metrics import average_precision_score

from soir.metrics import compare_means, mean_interval

KS = (1, 5, 10, 50, 100)


def test_the_metrics_are_those_of_trec_eval_and_scikit_learn_on_a_thousand_queries(tmp_path):
    ir_measures = pytest.importorskip("ir_measures")  # which cannot be had for Python 3.7
    names = {"AP": ir_measures.AP, "RR": ir_measures.RR}
    for k in KS:
        names[f"precision@{k}"], names[f"recall@{k}"] = ir_measures.P @ k, ir_measures.R @ k
        names[f"nDCG@{k}"], names[f"hit@{k}"] = ir_measures.nDCG @ k, ir_measures.Success @ k
    compared = 0
    for seed in range(20):
        rng = random.Random(seed)
        images, instances = rng.randrange(5, 130), rng.choice((2, 6, 30))
        annotations = random_annotations(rng, queries=36, images=images, instances=instances)
        gallery = gallery_of(annotations)
        rankings, qrels, run = {}, {}, {}
        for query in queries_of(annotations):
            # Sometimes nothing, sometimes only a part, sometimes all of the gallery, of both sets.
            listed = rng.sample(gallery, rng.choice((0, 1, len(gallery) // 2, len(gallery))))
            rankings[query] = listed
            ranked = [path for path in listed if competes(annotations, query, path)]
            run[query] = {path: float(-rank) for rank, path in enumerate(ranked)}
            relevant = set(relevant_paths(annotations, query))
            if relevant:
                qrels[query] = dict.fromkeys(relevant, 1)
        done, report, rows = score(tmp_path, annotations, "--rankings", rankings)
        overall = report["groups"]["all"]
        assert done.returncode == 0, done.stdout
        assert set(rows) == set(qrels)
        assert overall["queries"] == len(qrels)
        expected = {}
        for value in ir_measures.iter_calc(names.values(), qrels, {q: r for q, r in run.items() if q in qrels}):
            expected[value.query_id, str(value.measure)] = value.value
        for query, row in rows.items():
            for name, measure in names.items():
                assert float(row[name]) == pytest.approx(expected.get((query, str(measure)), 0), abs=1e-9), name
            if len(rankings[query]) == len(gallery):
                truth = [path in qrels[query] for path in rankings[query] if competes(annotations, query, path)]
                assert float(row["AP"]) == pytest.approx(average_precision_score(truth, -np.arange(len(truth))))
            compared += 1
        assert overall["mAP"] == pytest.approx(np.mean([float(row["AP"]) for row in rows.values()]))
        ranks = [float(row["first_rank"] or "inf") for row in rows.values()]
        median = overall["median_first_rank"]
        assert (np.inf if median is None else median) == np.median(ranks)
    assert compared > 1000


def test_the_files_for_trec_eval_give_it_the_same_figures(tmp_path):
    """Of rankings with ties, junk, images of other sets and unknown paths, and of features."""
    ir_measures = pytest.importorskip("ir_measures")
    annotations = with_splits(random_annotations(60, images=90))
    gallery, vectors = gallery_of(annotations), random_vectors(annotations)
    ranked = {query: by_cosine(query, gallery, vectors) for query in queries_of(annotations)}
    tied = {query: [[path, -(rank // 7)] for rank, path in enumerate(paths)] for query, paths in ranked.items()}
    files = [write_json(tmp_path, {query: ["nowhere.jpg", *paths] for query, paths in ranked.items()}, "run.json")]
    files += [write_json(tmp_path, tied, "tied.json"), tmp_path / "f.npz"]
    np.savez(str(files[-1]), **vectors)
    measures = {"mAP": ir_measures.AP, "MRR": ir_measures.RR, "hit@5": ir_measures.Success @ 5}
    measures.update({"nDCG@10": ir_measures.nDCG @ 10, "precision@10": ir_measures.P @ 10})
    for option, file in zip(("--rankings", "--rankings", "--features"), files):
        written = ("--qrels", tmp_path / "out.qrels", "--trec", tmp_path / "out.run")
        _, report, _ = score(tmp_path, annotations, option, file, *written)
        qrels = list(ir_measures.read_trec_qrels(str(tmp_path / "out.qrels")))
        run = list(ir_measures.read_trec_run(str(tmp_path / "out.run")))
        theirs = ir_measures.calc_aggregate(measures.values(), qrels, run)
        for name, measure in measures.items():
            assert report["groups"]["all"][name] == pytest.approx(theirs[measure]), (file, name)
        by_query = {}
        for item in run:
            by_query.setdefault(item.query_id, []).append(item.score)
        assert all(list(scores) == sorted(set(scores), reverse=True) for scores in by_query.values())
        relevant = {}
        for item in qrels:
            relevant.setdefault(item.query_id.replace("%20", " "), set()).add(item.doc_id.replace("%20", " "))
        for query in relevant:
            assert relevant[query] == {p for p in relevant_paths(annotations, query) if competes(annotations, query, p)}


@pytest.mark.parametrize("form", ["run dict.json", "features"])
def test_ranx_comes_to_the_same_figures(tmp_path, form):
    """Of our files, and of its own form of runs. It is no requirement: its compiler is not there for every Python."""
    ranx = pytest.importorskip("ranx")
    annotations = random_annotations(61)
    gallery, vectors = gallery_of(annotations), random_vectors(annotations)
    ranked = {query: by_cosine(query, gallery, vectors) for query in queries_of(annotations)}
    if form == "features":
        np.savez(str(tmp_path / "f.npz"), **vectors)
        scored = ("--features", tmp_path / "f.npz")
    else:
        run = {query: {path: -float(rank) for rank, path in enumerate(paths)} for query, paths in ranked.items()}
        ranx.Run(run).save(str(tmp_path / "run.json"))
        scored = ("--rankings", tmp_path / "run.json")
    written = ("--qrels", tmp_path / "out.qrels", "--trec", tmp_path / "out.trec")
    _, report, _ = score(tmp_path, annotations, *scored, *written)
    qrels = ranx.Qrels.from_file(str(tmp_path / "out.qrels"), kind="trec")
    theirs = ranx.Run.from_file(str(tmp_path / "out.trec"), kind="trec")
    names = {"map": "mAP", "mrr": "MRR"}
    names.update({"hit_rate@5": "hit@5", "recall@10": "recall@10", "precision@10": "precision@10"})
    figures = ranx.evaluate(qrels, theirs, list(names), make_comparable=True)
    for name, ours in names.items():
        assert report["groups"]["all"][ours] == pytest.approx(figures[name]), name


def test_map_at_k_by_a_loop(tmp_path):
    rng = random.Random(1)
    annotations = random_annotations(rng)
    gallery = gallery_of(annotations)
    rankings = {query: rng.sample(gallery, len(gallery)) for query in queries_of(annotations)}
    _, _, rows = score(tmp_path, annotations, "--rankings", rankings)
    for query, row in rows.items():
        ranked = [path for path in rankings[query] if competes(annotations, query, path)]
        for k in KS:
            expected = average_precision(ranked, relevant_paths(annotations, query), k)
            assert float(row[f"AP@{k}"]) == pytest.approx(expected)


def test_a_perfect_and_an_empty_ranking(tmp_path):
    annotations = random_annotations(2)
    perfect = {query: relevant_paths(annotations, query) for query in queries_of(annotations)}
    overall = score(tmp_path, annotations, "--rankings", perfect)[1]["groups"]["all"]
    for name in ("mAP", "MRR", "mAP@10", "nDCG@100", "hit@1", "recall@100"):
        assert overall[name] == pytest.approx(1), name
    assert overall["mAP_interval"] is None  # all instances are equal
    overall = score(tmp_path, annotations, "--rankings", dict.fromkeys(perfect, []))[1]["groups"]["all"]
    assert overall["mAP"] == overall["MRR"] == overall["hit@100"] == 0
    assert overall["median_first_rank"] is None


# ----------------------------------------------------------------------------------------------- intervals, differences


def test_the_interval_resamples_instances():
    """Where all instances have as many queries, it is scipy's bootstrap of the means of the instances."""
    means = np.random.RandomState(0).rand(200)
    instances = np.repeat(np.arange(200), 10)  # ten queries of an instance, all alike
    low, high = mean_interval(np.repeat(means, 10), instances)
    theirs = stats.bootstrap((means,), np.mean, n_resamples=10_000, method="percentile").confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.005)


@pytest.mark.parametrize("instances", [4, 5])
def test_groups_of_fewer_than_five_instances_have_no_interval(tmp_path, instances):
    annotations = random_annotations(36, instances=instances + 1, sets=("OWID",))  # one of them is not shown
    rankings = dict.fromkeys(queries_of(annotations), gallery_of(annotations))
    done, report, _ = score(tmp_path, annotations, "--rankings", rankings)
    interval = report["groups"]["all"]["mAP_interval"]
    if instances == 4:
        assert interval is None
        assert done.stdout.splitlines()[1].split()[3] == "-"
    else:
        assert interval[0] < interval[1]


def test_the_difference_is_that_of_scipy_where_instances_are_of_one_size():
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
    rng = np.random.RandomState(0)
    ours = theirs = 0
    for _ in range(30):
        instances = np.repeat(np.arange(20), 100)
        first, second = (rng.rand(20).repeat(100) + 0.02 * rng.rand(2000) for _ in range(2))
        ours += compare_means(first, second, instances).p_value < 0.05
        theirs += stats.ttest_rel(first, second).pvalue < 0.05
    assert ours <= 6
    assert theirs >= 15
