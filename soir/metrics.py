"""Metrics of a retrieval run, for all queries at once, and the statistics of a difference between two runs.

Let r_1 < r_2 < ... be the ranks, from 1, of the relevant images that were retrieved, of R relevant images (R > 0):

    AP           sum of i / r_i over all i, divided by R: those not retrieved count 0 (as trec_eval)
    AP@K         the same over r_i <= K, divided by min(K, R)
    hit@K        1 if r_1 <= K: what the paper calls Recall@K
    recall@K     share of the relevant images with r_i <= K
    precision@K  share of the first K ranks that are relevant images
    nDCG@K       sum of 1 / log2(r_i + 1) over r_i <= K, divided by the same with r_i = i
    RR           1 / r_1, or 0; its mean is MRR
    IoU          of the box of the first relevant image, where the run has boxes
    IoU>=0.5@K   1 if a relevant image with r_i <= K has a box of such an IoU
"""

from __future__ import annotations

from typing import Iterable, NamedTuple

import numpy as np

from soir.protocol import RANKS, Hits

# Resamples of the instances. With 1,000 the ends of an interval vary by some 2 % of its width. A p-value needs more:
# the smallest that can come out is 2 / (resamples + 1).
INTERVAL_RESAMPLES = 1000
COMPARISON_RESAMPLES = 10_000
SMALLEST_P = 2 / (COMPARISON_RESAMPLES + 1)

# Instances that are drawn at a time, over several resamples: 0.8 MB.
DRAWN_AT_A_TIME = 100_000

# Of fewer instances an interval means nothing: of one its width is 0, of two it covers the true mean in 51 % of cases.
FEWEST_INSTANCES = 5


class Difference(NamedTuple):
    """The mean difference of two runs over the same queries. Of too few instances, only the mean is known."""

    mean: float
    interval: tuple[float, float] | None  # 95 %
    p_value: float | None


def score_hits(hits: Iterable[Hits], relevant: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of all queries: name -> float64 [queries]. There are IoUs only if the run has boxes; they are NaN for
    a query with hits and no boxes, and 0 for one without hits.

    The rank of the first hit is among them; it is infinite where none was retrieved.
    hits      of queries in any order, at most once each; a query that is missing has none
    relevant  int64 [queries]: how many relevant images each has; at least 1
    """
    count = len(relevant)
    parts = sorted(hits, key=lambda part: part.number)
    queries = np.repeat([part.number for part in parts], [len(part.ranks) for part in parts]).astype(np.int64)
    ranks = np.concatenate([np.zeros(0, np.int64), *(part.ranks for part in parts)])
    firsts = np.searchsorted(queries, np.arange(count))  # where the hits of each query begin
    found = np.bincount(queries, minlength=count)
    precisions = (np.arange(len(ranks)) - firsts[queries] + 1) / ranks
    gains = 1 / np.log2(ranks + 1)
    first_ranks = first_of_each(ranks, firsts, found)
    scores = {
        "first_rank": first_ranks,
        "AP": np.bincount(queries, precisions, count) / relevant,
        "RR": 1 / first_ranks,
    }
    for k in RANKS:
        early = ranks <= k
        inside, best = queries[early], np.minimum(k, relevant)
        number = np.bincount(inside, minlength=count)
        scores[f"AP@{k}"] = np.bincount(inside, precisions[early], count) / best
        scores[f"hit@{k}"] = (number > 0).astype(np.float64)
        scores[f"recall@{k}"] = number / relevant
        scores[f"precision@{k}"] = number / k
        ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))
        scores[f"nDCG@{k}"] = np.bincount(inside, gains[early], count) / ideal[best - 1]
    if any(part.ious is not None for part in parts):
        ious = np.concatenate([np.full(len(part.ranks), np.nan) if part.ious is None else part.ious for part in parts])
        has_iou = found == 0
        has_iou[[part.number for part in parts if part.ious is not None]] = True
        first_ious = np.where(found > 0, first_of_each(ious, firsts, found), 0)
        scores["IoU"] = np.where(has_iou, first_ious, np.nan)
        for k in RANKS:
            good = queries[(ranks <= k) & (ious >= 0.5)]
            scores[f"IoU>=0.5@{k}"] = np.where(has_iou, np.bincount(good, minlength=count) > 0, np.nan)
    return scores


def tie_spread(hits: Iterable[Hits], relevant: np.ndarray) -> tuple[float, float]:
    """mAP over the queries that have relevant images, at the best and at the worst order of equal scores.

    hits, relevant  as in `score_hits`; relevant may be 0
    """
    best = worst = 0.0
    for part in hits:
        for_it, against = part.tied or (part.ranks, part.ranks)
        places = np.arange(1, len(part.ranks) + 1)
        best += float((places / for_it).sum()) / max(1, relevant[part.number])
        worst += float((places / against).sum()) / max(1, relevant[part.number])
    count = max(1, int(np.count_nonzero(relevant)))
    return best / count, worst / count


def first_of_each(values: np.ndarray, firsts: np.ndarray, found: np.ndarray) -> np.ndarray:
    """float64 [queries]: the value of the first hit of each query; infinite where there is none."""
    result = np.full(len(found), np.inf)
    result[found > 0] = values[firsts[found > 0]]
    return result


def mean_interval(values: np.ndarray, instances: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of the mean of values, by bootstrap over instances; None if there are too few, or all are equal.

    Queries of one instance are not independent, so it is instances that are drawn, each with all of its queries.

    values     float64 [queries]
    instances  int64 [queries]: the same number for the queries of one instance
    """
    means = resampled_means(values, instances, INTERVAL_RESAMPLES)
    return None if means is None else interval_of(means)


def compare_means(first: np.ndarray, second: np.ndarray, instances: np.ndarray) -> Difference:
    """The mean of second - first, by a paired bootstrap over instances.

    The p-value is two-sided: twice the share of resamples on the other side of 0, those at 0 counting for both sides.
    A t-test over queries calls two equal runs different far too often, and two separate intervals overlap where this
    one sees a difference: the runs agree on which queries are hard.

    first, second  float64 [queries]: AP of the same queries
    instances      int64 [queries]: as in `mean_interval`
    """
    differences = second - first
    mean = float(differences.mean())
    means = resampled_means(differences, instances, COMPARISON_RESAMPLES)
    if means is None:
        return Difference(mean, None, None)
    tail = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    return Difference(mean, interval_of(means), min(1.0, 2 * (int(tail) + 1) / (len(means) + 1)))


def resampled_means(values: np.ndarray, instances: np.ndarray, resamples: int) -> np.ndarray | None:
    """float64 [resamples]: means of values over instances drawn with replacement; None of fewer than five instances."""
    _, index = np.unique(instances, return_inverse=True)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    if len(sums) < FEWEST_INSTANCES:
        return None
    random = np.random.RandomState(0)
    step = max(1, DRAWN_AT_A_TIME // sums.size)
    means = []
    for start in range(0, resamples, step):
        chosen = random.randint(0, sums.size, (min(step, resamples - start), sums.size))
        means.append(sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1))
    return np.concatenate(means)


def interval_of(means: np.ndarray) -> tuple[float, float] | None:
    low, high = np.percentile(means, (2.5, 97.5))
    return (float(low), float(high)) if np.ptp(means) else None
