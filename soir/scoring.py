"""A run, scored whole: what is asked of it, its metrics, and their means over sets, splits, difficulties and sizes.

`evaluate` is the door for a program; evaluate_retrieval.py is that for the command line, and scores by the same code.
"""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

import numpy as np

from soir import geometry
from soir.entry import SPLITS, Annotations, difficulty, is_meant, set_of
from soir.features import as_features
from soir.files import SoirError
from soir.findings import Findings, shorten, show_progress
from soir.forms import check_sound, read_forms, size_finder, size_of_image
from soir.metrics import mean_interval, score_hits, tie_spread
from soir.protocol import RANKS, Hits, Task, find_in_rankings, make_task, name_of_instances, shown_of
from soir.rankings import rank_as_listed
from soir.runs import as_run
from soir.similarity import find_by_features
from soir.statistics import SIZE_CLASSES, label_of

# The columns of `describe_queries` whose values make groups.
GROUPED_BY = ("set", "split", "difficulty", "size")

# A difference in mAP, between the best and the worst order of equal scores, that is worth a word: 0.1 points.
TIES_MATTER = 0.001

BACKWARDS = "run that ranks relevant images behind the others, as distances do: the highest score is best; negate them"
ELSEWHERE = "run whose boxes all miss the object (IoU < 0.1): expected (x1, y1, x2, y2) in pixels of the whole image"

# Bytes that a run may take: what is in memory already needs no limit.
NO_LIMIT = 2**62

SIZES = (*SIZE_CLASSES[:3], ("above 2 %", math.inf))  # the instances are few: one class above 2 %


def choose_entries(
    annotations: Annotations, place: str, set_name: str | None, split: str | None
) -> tuple[Annotations, set[str]]:
    """The entries of a set and a split, and the paths of all other entries.

    place     what messages call the annotations: the path of their file
    set_name  in upper or lower case; None for all sets
    split     one of SPLITS; None for all
    Raises SoirError if there are no queries or no gallery images.
    """
    chosen = {
        name: entry
        for name, entry in annotations.items()
        if is_meant(set_of(entry), set_name) and split in (None, entry.get("split"))
    }
    for what, is_query in (("queries", True), ("gallery images", False)):
        if not any(entry["is_query"] is is_query for entry in chosen.values()):
            names = sorted({set_of(entry) or "(none)" for entry in annotations.values()})
            sets = ", ".join(map(shorten, names[:12])) or "none"
            splits = ", ".join(sorted({entry.get("split") or "none" for entry in annotations.values()})) or "none"
            wanted = "any set" if set_name is None else f"the set {set_name or '(none)'}"
            wanted += f" and the split {split}" if split else ""
            raise SoirError(f"{place} has no {what} of {wanted}; its sets: {sets}; its splits: {splits}")
    return chosen, annotations.keys() - chosen.keys()


def find_scored(task: Task, findings: Findings) -> np.ndarray:
    """int64 [scored]: numbers of the queries that have relevant images. Raises SoirError if there are none."""
    for path, relevant in zip(task.queries, task.relevant):
        if not len(relevant):
            findings.notice("query without relevant gallery images, left out", path)
    scored = np.flatnonzero([len(relevant) > 0 for relevant in task.relevant])
    if not len(scored):
        raise SoirError("no query has relevant gallery images, so there is nothing to score")
    return scored


def describe_queries(task: Task, scored: np.ndarray) -> dict[str, list[Any]]:
    """Columns with one item per scored query. The size of an object is its share of the image, in %; NaN if unknown."""
    sizes = [size_of_image(path, task.annotations[path], task.find_size) for path in task.gallery]
    of_instance: dict[int, tuple[str, str, str, float]] = {}  # name, difficulty, class of size, size
    for number in scored.tolist():
        instance = int(task.instances[number])
        if instance not in of_instance:
            entry = task.annotations[task.queries[number]]
            shown = [(position, box) for position, boxes in shown_of(entry, task.shows).items() for box in boxes]
            shares = [
                geometry.share(box, sizes[position] or (1, 1)) for position, box in shown if sizes[position] or not box
            ]
            share = float(np.mean(shares)) if shares else math.nan
            of_instance[instance] = name_of_instances(entry), difficulty(len(shown)), class_of_size(share), share
    paths = [task.queries[number] for number in scored]
    about = [of_instance[instance] for instance in task.instances[scored].tolist()]
    return {
        "path": paths,
        "set": [set_of(task.annotations[path]) for path in paths],
        "split": [task.annotations[path].get("split") for path in paths],
        "instance": [name for name, _, _, _ in about],
        "relevant": [len(task.relevant[number]) for number in scored],
        "difficulty": [level for _, level, _, _ in about],
        "size": [name for _, _, name, _ in about],
        "object_size": [share for _, _, _, share in about],
    }


def class_of_size(share: float) -> str:
    return next((name for name, limit in SIZES if share < limit), "unknown")


class Part(NamedTuple):
    """The scored queries of a set, and of a split if they have one. Each part is a benchmark of its own."""

    set_name: str
    split: str  # which queries and images: "val queries, whole gallery"; "" without splits
    members: np.ndarray  # int64 [N]: which of the scored queries
    queries: int  # of the set, with those that have no relevant images
    images: int  # of the gallery of the set

    @property
    def set_label(self) -> str:
        return label_of(self.set_name)

    @property
    def title(self) -> str:
        return f"{self.set_label}: {self.split}" if self.split else self.set_label


def find_parts(task: Task, scored: np.ndarray, queries: dict[str, list[Any]]) -> list[Part]:
    """The parts of a task: sets in the order of the file, of each its splits.

    queries  columns, as of `describe_queries`
    """
    members: dict[tuple[str, str | None], list[int]] = {}
    for index, key in enumerate(zip(queries["set"], queries["split"])):
        members.setdefault(key, []).append(index)
    asked = Counter(set_of(task.annotations[path]) for path in task.queries)
    parts = []
    for set_name in dict.fromkeys(queries["set"]):
        images = [entry for entry in map(task.annotations.get, task.gallery) if entry and set_of(entry) == set_name]
        splits = {entry.get("split") for entry in images}
        for split in (None, *SPLITS):
            if (set_name, split) in members:
                is_whole = split != "train" and splits != {split}  # a train query competes over train images
                gallery = "whole gallery" if is_whole else f"{split} images"
                phrase = f"{split} queries, {gallery}" if split else ""
                of_part = np.array(members[set_name, split], dtype=np.int64)
                parts.append(Part(set_name, phrase, of_part, asked[set_name], len(images)))
    return parts


def score_queries(
    hits: Iterable[Hits], task: Task, scored: np.ndarray, place: str, findings: Findings
) -> dict[str, np.ndarray]:
    """The metrics of the scored queries.

    place  what messages call the run: the path of its file
    """
    hits = list(hits)
    counts = np.array([len(images) for images in task.relevant])
    if any(part.tied for part in hits):
        best, worst = tie_spread(hits, counts)
        if best - worst > TIES_MATTER:
            between = f"its mAP is between {100 * worst:.2f} and {100 * best:.2f} %, as equal scores are ordered"
            findings.notice(f"run in which ties decide: {between}", place)
    if is_backwards(hits, task):
        findings.notice(BACKWARDS, place)
    counts = np.maximum(counts, 1)  # of those that are not scored
    metrics = {name: values[scored] for name, values in score_hits(hits, counts).items()}
    if "IoU" in metrics and not (metrics["IoU"] >= 0.1).any():
        findings.notice(ELSEWHERE, place)
    return metrics


def is_backwards(hits: Iterable[Hits], task: Task) -> bool:
    """Whether relevant images stand further behind than by chance, in the queries of which the run has all of them."""
    shares: defaultdict[int, list[float]] = defaultdict(list)  # of an instance: 0 before all others, 1 behind them
    for part in hits:
        relevant, images = len(part.ranks), len(task.candidates[task.kinds[part.number]])
        if 0 < relevant == len(task.relevant[part.number]) < images and part.ranks[-1] <= images:
            share = (int(part.ranks.sum()) / relevant - (relevant + 1) / 2) / (images - relevant)
            shares[int(task.instances[part.number])].append(share)
    # The mean of N shares that are uniform in 0..1 is 0.5, with a standard deviation of 0.29 / sqrt(N).
    return bool(shares) and np.mean([np.mean(own) for own in shares.values()]) > 0.5 + 0.72 / math.sqrt(len(shares))


def summarize(
    metrics: dict[str, np.ndarray],
    queries: dict[str, list[Any]],
    instances: np.ndarray,
    fields: Sequence[str] = GROUPED_BY,
    members: Any = slice(None),
) -> dict[str, dict[str, Any]]:
    """Means over all queries and over each group: group -> {"queries", "mAP", "mAP_interval", ...}.

    queries    columns, as of `describe_queries`
    instances  int64 [queries]: the same number for the queries of one instance
    fields     the columns whose values make groups
    members    int64 [N]: of which of the queries; all by default
    """
    values_of = {
        "set": list(dict.fromkeys(queries["set"])),
        "split": SPLITS,
        "difficulty": ["easy", "medium", "hard"],
        "size": [name for name, _ in SIZES] + ["unknown"],
    }
    everything = np.arange(len(instances))[members]
    groups = {"all": everything}
    for field in fields:
        column = np.array(queries[field], dtype=object)[everything]
        for value in values_of[field]:
            groups[f"{field}: {value or '(none)'}"] = everything[column == value]
    return {
        name: summarize_group({column: values[chosen] for column, values in metrics.items()}, instances[chosen])
        for name, chosen in groups.items()
        if len(chosen)
    }


def summarize_group(metrics: dict[str, np.ndarray], instances: np.ndarray) -> dict[str, Any]:
    """Means over the queries of a group.

    metrics    name -> float64 [queries], as of `score_queries`; names AP@K become mAP@K
    instances  int64 [queries]: the same number for the queries of one instance
    """
    median = float(np.median(metrics["first_rank"]))
    result = {
        "queries": len(instances),
        "mAP": float(metrics["AP"].mean()),
        "mAP_interval": mean_interval(metrics["AP"], instances),  # None: too few instances
        "MRR": float(metrics["RR"].mean()),
        "median_first_rank": median if math.isfinite(median) else None,  # None: half of the queries found nothing
    }
    for name in [f"{name}@{k}" for name in ("AP", "hit", "recall", "precision", "nDCG") for k in RANKS]:
        result["m" * name.startswith("AP") + name] = float(metrics[name].mean())
    if "IoU" in metrics and not np.isnan(metrics["IoU"]).all():
        result["queries_with_boxes"] = int(np.count_nonzero(~np.isnan(metrics["IoU"])))
        for name in ["IoU", *(f"IoU>=0.5@{k}" for k in RANKS)]:
            result[name] = float(np.nanmean(metrics[name]))
    return result


def join_columns(queries: dict[str, list[Any]], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a table of queries: what is asked, its metrics, what is known of its instance."""
    known = {name: queries[name] for name in ("path", "set", "split", "instance", "relevant")}
    return {**known, **metrics, **queries}  # a key keeps its first place


def evaluate(
    annotations: Annotations,
    *,
    features: Mapping[str, Any] | None = None,
    rankings: Mapping[str, Any] | None = None,
    similarities: Any = None,
    queries: Sequence[str] = (),
    gallery: Sequence[str] = (),
    set_name: str | None = None,
    split: str | None = None,
    base_path: str | None = None,
    per_query: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Score a run that is in memory, as evaluate_retrieval.py scores one that is in a file: the same figures.

    annotations   image path -> entry, as `load_annotations` gives it; not changed
    features      image path -> vector [dimension], matrix [objects, dimension], or {"vectors": matrix, "boxes":
                  [objects, 4]}: torch tensors of any device and float type, or NumPy arrays
    rankings      query path -> gallery paths, best first, or pairs (path, score), or triples (path, score, box); or
                  query path -> {gallery path: score}
    similarities  [queries, gallery], the highest best, tensor or array; with the paths of its rows and columns:
    queries, gallery
    set_name, split  the queries and the gallery of this set, of this split only; None for all
    base_path     the folder that relative image paths start at; asked only for boxes that are the whole image, and for
                  the size of images without masks
    per_query     add "per_query": column -> array with one item per scored query
    progress      show progress bars on standard error, if that is a terminal
    Returns the means over all scored queries (docs/scoring.md), fractions in 0..1: "queries", "mAP", "mAP_interval",
    "MRR", "median_first_rank", "hit@1", ... "nDCG@100", and with boxes "IoU", "IoU>=0.5@1", ...; the same for each set,
    split, difficulty and size under "groups"; and reason -> places under "faults" (of the run, what makes the script
    exit with 1), "noticed", and "left_out" (queries without relevant images).
    Raises SoirError for what the script refuses, and TypeError unless one of the three kinds of runs is given.
    """
    given = [run is not None for run in (features, rankings, similarities)]
    if sum(given) != 1:
        raise TypeError("evaluate() takes one of features, rankings and similarities")
    place = "the run"
    find_size = size_finder(base_path and os.path.abspath(base_path))
    findings, left_out = Findings(), Findings()
    with show_progress(progress):
        current = dict(annotations)
        read_forms(current, find_size)
        sound = check_sound(current, "the annotations")
        task = make_task(*choose_entries(sound, "the annotations", set_name, split), find_size)
        scored = find_scored(task, left_out)
        if features is not None:
            content = {name: in_numpy(value) for name, value in features.items()}
            hits = find_by_features(as_features(content, place, task.annotations, NO_LIMIT, findings), task)
        else:
            matrices = {"queries": list(queries), "gallery": list(gallery), "similarities": in_numpy(similarities)}
            run = as_run(matrices if rankings is None else dict(rankings), place, NO_LIMIT)
            hits = find_in_rankings(task, rank_as_listed(run, place, task, findings))
        metrics = score_queries(hits, task, scored, place, findings)
    columns = describe_queries(task, scored)
    groups = summarize(metrics, columns, task.instances[scored])
    scores: dict[str, Any] = dict(
        groups["all"], groups=groups, faults=findings.skipped, noticed=findings.noticed, left_out=left_out.noticed
    )
    if per_query:
        scores["per_query"] = {name: np.array(values) for name, values in join_columns(columns, metrics).items()}
    return scores


def in_numpy(value: Any) -> Any:
    """A torch tensor as an array, also within a dict; anything else as it is. torch itself is not needed."""
    if isinstance(value, dict):
        return {name: in_numpy(item) for name, item in value.items()}
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach().cpu()
    try:
        return tensor.numpy()
    except TypeError:  # bfloat16, which NumPy lacks
        return tensor.float().numpy()
