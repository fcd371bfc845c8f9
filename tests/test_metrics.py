"""The metrics of evaluate_retrieval.py are those of trec_eval (by ir_measures) and of scikit-learn."""

import random

import ir_measures
import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from test_evaluate_retrieval import KS, evaluate, make_annotations, relevant_paths


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
