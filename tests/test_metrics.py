"""The metrics of evaluate_retrieval.py are those of trec_eval (by ir_measures) and of scikit-learn."""

import json
import random

import ir_measures
import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from test_evaluate_retrieval import (
    KS,
    average_precision,
    by_cosine,
    competes,
    evaluate,
    gallery_of,
    make_annotations,
    queries_of,
    random_vectors,
    relevant_paths,
    score_file,
    with_splits,
)


def test_the_metrics_are_those_of_trec_eval_and_scikit_learn_on_a_thousand_queries(tmp_path):
    names = {"AP": ir_measures.AP, "RR": ir_measures.RR}
    for k in KS:
        names[f"precision@{k}"], names[f"recall@{k}"] = ir_measures.P @ k, ir_measures.R @ k
        names[f"nDCG@{k}"], names[f"hit@{k}"] = ir_measures.nDCG @ k, ir_measures.Success @ k
    compared = 0
    for seed in range(20):
        rng = random.Random(seed)
        annotations = make_annotations(rng, queries=36, images=rng.randrange(5, 130), instances=rng.choice((2, 6, 30)))
        gallery = [path for path, entry in annotations.items() if not entry["is_query"]]
        rankings, qrels, run = {}, {}, {}
        for query in [path for path, entry in annotations.items() if entry["is_query"]]:
            # Sometimes nothing, sometimes only a part, sometimes all of the gallery, of both sets.
            listed = rng.sample(gallery, rng.choice((0, 1, len(gallery) // 2, len(gallery))))
            rankings[query] = listed
            ranked = [path for path in listed if competes(annotations, query, path)]
            run[query] = {path: float(-rank) for rank, path in enumerate(ranked)}
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
                truth = [path in qrels[query] for path in rankings[query] if competes(annotations, query, path)]
                assert float(row["AP"]) == pytest.approx(average_precision_score(truth, -np.arange(len(truth))))
            compared += 1
        assert groups["all"]["mAP"] == pytest.approx(np.mean([float(row["AP"]) for row in rows.values()]))
        ranks = [float(row["first_rank"] or "inf") for row in rows.values()]
        median = groups["all"]["median_first_rank"]
        assert (np.inf if median is None else median) == np.median(ranks)
    assert compared > 1000


def test_the_files_for_trec_eval_give_it_the_same_figures(tmp_path):
    """Of rankings with ties, junk, images of other sets and unknown paths, and of features."""
    rng = random.Random(60)
    annotations = with_splits(make_annotations(rng, images=90))
    gallery, vectors = gallery_of(annotations), random_vectors(annotations)
    ranked = {query: by_cosine(query, gallery, vectors) for query in queries_of(annotations)}
    (tmp_path / "run.json").write_text(json.dumps({query: ["nowhere.jpg", *paths] for query, paths in ranked.items()}))
    tied = {query: [[path, -(rank // 7)] for rank, path in enumerate(paths)] for query, paths in ranked.items()}
    (tmp_path / "tied.json").write_text(json.dumps(tied))
    np.savez(str(tmp_path / "f.npz"), paths=np.array(list(vectors)), features=np.stack(list(vectors.values())))
    measures = {"mAP": ir_measures.AP, "MRR": ir_measures.RR, "hit@5": ir_measures.Success @ 5}
    measures.update({"nDCG@10": ir_measures.nDCG @ 10, "precision@10": ir_measures.P @ 10})
    for option, file in (("--rankings", "run.json"), ("--rankings", "tied.json"), ("--features", "f.npz")):
        written = ("--qrels", tmp_path / "out.qrels", "--trec", tmp_path / "out.run")
        _, report, _ = score_file(tmp_path, annotations, option, tmp_path / file, *written)
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
    ours = report["groups"]["all"]["mAP"]
    rivals = {query: [path for path in ranked[query] if competes(annotations, query, path)] for query in relevant}
    assert ours == pytest.approx(np.mean([average_precision(rivals[query], relevant[query]) for query in relevant]))


@pytest.mark.parametrize("form", ["run dict.json", "features"])
def test_ranx_comes_to_the_same_figures(tmp_path, form):
    """Of our files, and of its own form of runs. It is no requirement: its compiler is not there for every Python."""
    ranx = pytest.importorskip("ranx")
    annotations = make_annotations(random.Random(61))
    gallery, vectors = gallery_of(annotations), random_vectors(annotations)
    ranked = {query: by_cosine(query, gallery, vectors) for query in queries_of(annotations)}
    if form == "features":
        np.savez(str(tmp_path / "f.npz"), paths=np.array(list(vectors)), features=np.stack(list(vectors.values())))
        scored = ("--features", tmp_path / "f.npz")
    else:
        run = {query: {path: -float(rank) for rank, path in enumerate(paths)} for query, paths in ranked.items()}
        ranx.Run(run).save(str(tmp_path / "run.json"))
        scored = ("--rankings", tmp_path / "run.json")
    written = ("--qrels", tmp_path / "out.qrels", "--trec", tmp_path / "out.trec")
    _, report, _ = score_file(tmp_path, annotations, *scored, *written)
    qrels = ranx.Qrels.from_file(str(tmp_path / "out.qrels"), kind="trec")
    theirs = ranx.Run.from_file(str(tmp_path / "out.trec"), kind="trec")
    names = {
        "map": "mAP",
        "mrr": "MRR",
        "hit_rate@5": "hit@5",
        "recall@10": "recall@10",
        "precision@10": "precision@10",
    }
    figures = ranx.evaluate(qrels, theirs, list(names), make_comparable=True)
    for name, ours in names.items():
        assert report["groups"]["all"][ours] == pytest.approx(figures[name]), name
