"""Score a retrieval run on an annotation file: mAP, Recall@K, Precision@K, ranking quality, localization.

In   an annotation file, and either the rankings of a run or features of its images
Out  a table; with --report also as JSON, with --per-query as CSV, with --preview a picture of the worst queries

    python evaluate_retrieval.py --ann-file anns.pt --rankings results.json
    python evaluate_retrieval.py --ann-file anns.pt --features features.pt --set RoboTools

The protocol. A gallery image is relevant to a query when it shows the query's instance and is of the same set; it
counts once, however many boxes it has. A query without relevant images is left out, and counted. A relevant image that
a ranking does not list counts as not retrieved. Equal scores are ordered as the annotation file orders the gallery.

    AP           mean over the relevant images of the precision at their ranks, 0 for those not retrieved (as trec_eval)
    AP@K         the same over the first K ranks, divided by min(K, number of relevant images)
    hit@K        1 if a relevant image is among the first K: what the paper calls Recall@K
    recall@K     share of the relevant images that are among the first K
    precision@K  share of the first K ranks that are relevant images
    nDCG@K       discounted cumulative gain of binary relevance, 1 / log2(rank + 1), divided by the best possible
    RR           1 / rank of the first relevant image; its mean is MRR
    IoU          of the box of the first relevant image, where rankings carry boxes, with the instance's best box there

Exit status: 0 fine, 1 the run has faults (an unknown path, a query without a ranking, ...), 2 it could not be scored.
"""

from __future__ import annotations

from soir_console import Findings, exit_status, make_parser, png_name, positive, print_findings, print_table

import argparse
import csv
import io
import json
import math
import os
import sys
from collections import Counter, defaultdict
from typing import Any, Iterable, Iterator, NamedTuple

import numpy as np
from PIL import Image

from soir_common import (
    SPLITS,
    Annotations,
    Box,
    Entry,
    box_iou,
    box_share,
    boxes_of_instance,
    difficulty,
    entry_faults,
    instances_of,
    is_box,
    masks_of,
    pixel_box,
    shorten,
)
from soir_files import SoirError, check_outputs, open_regular, read_json, write_whole
from soir_forms import load_any_form, size_finder
from soir_images import absolute_base, full_path, image_size, is_image_size
from soir_loading import check_repeats, load_values
from soir_pictures import (
    GALLERY_COLOUR,
    QUERY_COLOUR,
    WRONG_COLOUR,
    Tile,
    draw_tile,
    lay_out,
    open_photograph,
    write_png,
)

RANKS = (1, 5, 10, 50, 100)
SIZES = (("below 0.5 %", 0.5), ("0.5 to 1 %", 1), ("1 to 2 %", 2), ("above 2 %", math.inf))
BOOTSTRAP = 1000  # resamples of the instances: the ends of the interval vary by some 2 % of its width

# Similarities that are held at a time: 64 MB.
BLOCK = 16_000_000

# No file of features is compressed by more; one of a megabyte could unpack to a gigabyte of zeros.
MAX_RATIO = 100


class RankedItem(NamedTuple):
    """An item of a ranking."""

    score: float | None
    position: int  # of the image in the gallery; -1 for a path that is not there
    box: Box | None


class Ranking(NamedTuple):
    """What a run retrieved for a query."""

    query: str
    positions: np.ndarray  # int64 [N], in the gallery, best first; -1 for a path that is not there
    boxes: list[Box | None] | None  # of each


# ------------------------------------------------------------------------------------------------------------- metrics


def score_ranks(ranks: np.ndarray, relevant: int) -> dict[str, float]:
    """The metrics of a query.

    ranks     ranks of the relevant images that were retrieved, from 1, in ascending order
    relevant  number of relevant images, at least 1
    """
    ranks = np.asarray(ranks, dtype=np.int64)
    precisions = np.arange(1, ranks.size + 1) / ranks
    gains = 1 / np.log2(ranks + 1)
    result = {"AP": precisions.sum() / relevant, "RR": 1 / ranks[0] if ranks.size else 0.0}
    for k in RANKS:
        first = int(np.searchsorted(ranks, k, side="right"))
        best = min(k, relevant)
        result[f"AP@{k}"] = precisions[:first].sum() / best
        result[f"hit@{k}"] = float(first > 0)
        result[f"recall@{k}"] = first / relevant
        result[f"precision@{k}"] = first / k
        result[f"nDCG@{k}"] = gains[:first].sum() / (1 / np.log2(np.arange(2, best + 2))).sum()
    return {name: float(value) for name, value in result.items()}


def bootstrap_interval(values: list[float], groups: list[str]) -> tuple[float, float]:
    """95 % interval of the mean of values, resampling the groups: queries of one instance are not independent."""
    _, index = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    random = np.random.RandomState(0)
    means = []
    for _ in range(BOOTSTRAP):
        chosen = random.randint(0, sums.size, sums.size)
        means.append(sums[chosen].sum() / counts[chosen].sum())
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


# --------------------------------------------------------------------------------------------------------------- input


def split_roles(annotations: Annotations) -> tuple[list[str], list[str]]:
    """The paths of the queries, and those of the gallery images."""
    queries = [path for path, entry in annotations.items() if entry["is_query"]]
    return queries, [path for path, entry in annotations.items() if not entry["is_query"]]


def read_rankings(path: str, annotations: Annotations, others: set[str], findings: Findings) -> Iterator[Ranking]:
    """Yield the ranking of every query.

    others  paths of the sets that --set leaves out; they are taken out of the rankings
    Raises SoirError if the file holds no rankings, or none of these queries.
    """
    rankings = load_values(path) if path.endswith((".pt", ".pth")) else read_json(path)
    if isinstance(rankings, dict) and isinstance(rankings.get("knns"), dict):
        rankings = rankings["knns"]
    if not isinstance(rankings, dict):
        raise SoirError(f"{path} holds no rankings: expected a dict, query path -> list of gallery paths")
    queries, gallery = split_roles(annotations)
    if not any(query in rankings for query in queries):
        found = f"paths like {shorten(next(iter(rankings)))}" if rankings else "nothing"
        raise SoirError(
            f"{path} has a ranking for none of the queries: expected paths like {queries[0]}, found {found}"
        )
    check_repeats(path, (len(ranking) for ranking in rankings.values() if isinstance(ranking, (list, tuple))))
    asked = set(queries)
    for name in rankings:
        if name not in asked and name not in others:
            findings.skip("ranking of a path that is no query here", shorten(name))
    positions = {name: index for index, name in enumerate(gallery)}
    for query in queries:
        ranking = rankings.get(query)
        if isinstance(ranking, dict):
            ranking = ranking.get("knns")
        if not isinstance(ranking, (list, tuple)):
            findings.skip("query without a ranking, scored 0", query)
            ranking = []
        yield read_ranking(query, [item for item in ranking if ranked_path(item) not in others], positions, findings)


def read_ranking(query: str, ranking: list[Any], positions: dict[str, int], findings: Findings) -> Ranking:
    """Look up the items of a ranking, each path, [path, score] or [path, score, box]; equal scores in gallery order.

    positions  path -> position in the gallery
    """
    items, seen = [], set()
    odd = defaultdict(list)  # reason -> paths. One place per query: of a million paths, all may be unknown.
    for item in ranking:
        path = ranked_path(item)
        score, box = (*item[1:], None, None)[:2] if isinstance(item, (list, tuple)) else (None, None)
        position = -1 if path is None else positions.get(path, -1)
        if position < 0:
            odd["query that ranks a path that is no gallery image here, counted as wrong"].append(path)
        elif position in seen:
            odd["query that ranks a path twice, the second time ignored"].append(path)
            continue
        if score is not None and not (type(score) in (int, float) and -math.inf < score < math.inf):
            odd["query with a score that is no finite number, its image counted as not retrieved"].append(path)
            continue
        if box is not None and not is_box(box):
            odd["query with a box that is not (x1, y1, x2, y2), ignored"].append(path)
            box = None
        seen.add(position)
        items.append(RankedItem(score, position, box))
    for reason, paths in odd.items():
        more = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
        findings.skip(reason, f"{query}: {shorten(paths[0])}{more}")
    items = order_ties(items)
    boxes = [item.box for item in items]
    found = np.array([item.position for item in items], dtype=np.int64)
    return Ranking(query, found, boxes if any(box is not None for box in boxes) else None)


def ranked_path(item: Any) -> str | None:
    """The path of an item of a ranking: path, [path, score] or [path, score, box]; None if it has none."""
    path = item[0] if isinstance(item, (list, tuple)) and item else item
    return path if isinstance(path, str) else None


def order_ties(items: list[RankedItem]) -> list[RankedItem]:
    """Put each stretch of equal scores in gallery order."""
    ordered: list[RankedItem] = []
    start = 0
    for stop in range(1, len(items) + 1):
        if stop == len(items) or items[stop].score is None or items[stop].score != items[start].score:
            ordered += sorted(items[start:stop], key=lambda item: item.position)
            start = stop
    return ordered


def read_features(path: str) -> Iterator[tuple[str, np.ndarray | None]]:
    """Yield (path, vector) of every image: float32 [dimension], or None for what is no vector. Raises SoirError.

    The file is .pt (as torch.save wrote it) or .npz, and holds path -> vector, or {"paths": [...], "features": matrix}.
    """
    content = load_npz(path) if path.endswith(".npz") else load_values(path, arrays=True)
    try:
        limit = MAX_RATIO * os.path.getsize(path)
        if not isinstance(content, dict) or not content:
            raise ValueError("expected a dict, path -> vector, or paths and features")
        paths: Any = list(content)
        vectors: Any = list(content.values())
        if set(content) == {"paths", "features"}:
            paths, vectors = content["paths"], content["features"]
            if not isinstance(paths, (list, tuple, np.ndarray)) or len(paths) != len(vectors):
                raise ValueError("expected a list of paths, and a feature for each")
        for name, value in zip(paths, vectors):
            if not isinstance(name, str):
                raise ValueError("expected a list of paths, and found one that is no text")
            vector = as_vector(value, limit)
            limit -= 0 if vector is None else vector.nbytes
            yield str(name), vector
    except (OSError, TypeError, ValueError) as error:  # TypeError: of len(), since there may be anything
        raise SoirError(f"{path} holds no features: {error}") from error


def load_npz(path: str) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, by name. Raises SoirError."""
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as archive:
            size = os.fstat(file.fileno()).st_size
            check_unpacked(sum(info.file_size for info in archive.zip.infolist()), MAX_RATIO * size)
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise SoirError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a broken archive can raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise SoirError(f"{path} was not loaded, for it is no .npz of numbers and text: {reason}") from error


def check_unpacked(size: int, limit: int) -> None:
    if size > limit:
        raise ValueError(f"unpacked, it is over {MAX_RATIO} times as large, which features never are")


def as_vector(value: Any, limit: int) -> np.ndarray | None:
    """An array or a list of numbers as float32 [dimension]; None if it is neither, or empty.

    Raises ValueError if it takes more than `limit` bytes: an array can claim any size, and a list can be in the file
    once and stand for thousands.
    """
    if isinstance(value, (list, tuple)):
        if not all(type(number) in (int, float) for number in value):
            return None
        size = len(value)
    elif isinstance(value, np.ndarray):
        size = value.size
    else:
        return None
    check_unpacked(4 * size, limit)
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" or not array.size:
        return None
    with np.errstate(over="ignore", invalid="ignore"):  # what is beyond float32 becomes infinite, which is reported
        return array.astype(np.float32, copy=False).ravel()


def rank_features(path: str, annotations: Annotations, findings: Findings) -> Iterator[Ranking]:
    """As `read_rankings`, by cosine similarity, against the gallery of the query's own set."""
    vectors = usable_features(path, annotations, findings)
    queries, gallery = split_roles(annotations)
    length = len(next(iter(vectors.values()), ()))
    for set_name in dict.fromkeys(entry["set"] for entry in annotations.values()):
        chosen = [i for i, p in enumerate(gallery) if annotations[p]["set"] == set_name and p in vectors]
        asking = [name for name in queries if annotations[name]["set"] == set_name and name in vectors]
        matrix = unit_rows([vectors[gallery[i]] for i in chosen], length)
        candidates = np.array(chosen, dtype=np.int64)
        step = max(1, BLOCK // max(1, len(candidates), length))
        for start in range(0, len(asking), step):
            block = asking[start : start + step]
            similarity = unit_rows([vectors[name] for name in block], length) @ matrix.T
            for name, row in zip(block, similarity):
                yield Ranking(name, candidates[np.argsort(-row, kind="stable")], None)
    for name in queries:
        if name not in vectors:
            yield Ranking(name, np.zeros(0, dtype=np.int64), None)


def usable_features(path: str, annotations: Annotations, findings: Findings) -> dict[str, np.ndarray]:
    """Path -> vector, float32 [dimension], of the images that have one that can be used. Raises SoirError."""
    vectors: dict[str, np.ndarray] = {}
    for name, vector in read_features(path):
        if name in vectors:
            findings.skip("image with two features, the second one ignored", name)
        elif vector is not None:
            vectors[name] = vector
        else:
            findings.skip("feature that is no vector of numbers", name)
    lengths = Counter(vectors[name].size for name in annotations if name in vectors)
    if not lengths:
        found = f"paths like {next(iter(vectors))}" if vectors else "nothing that is a vector of numbers"
        expected = next(iter(annotations))
        raise SoirError(f"{path} has a feature for none of the images: expected paths like {expected}, found {found}")
    length = lengths.most_common(1)[0][0]
    usable = {}
    for name, entry in annotations.items():
        kind, outcome = ("query", "scored 0") if entry["is_query"] else ("gallery image", "counted as not retrieved")
        vector = vectors.get(name)
        if vector is None:
            findings.skip(f"{kind} without a feature, {outcome}", name)
        elif vector.size != length:
            findings.skip(f"{kind} whose feature is not of length {length}, like most, {outcome}", name)
        elif not np.isfinite(vector).all() or not vector.any():
            findings.skip(f"{kind} whose feature is not finite, or zero, {outcome}", name)
        else:
            usable[name] = vector
    return usable


def unit_rows(vectors: list[np.ndarray], length: int) -> np.ndarray:
    """Vectors -> float32 [vectors, length], each of length 1, or 0 as before."""
    matrix = np.array(vectors, dtype=np.float32).reshape(-1, length)
    squares = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)  # those of float32 may be beyond it
    return np.divide(matrix, np.sqrt(np.where(squares > 0, squares, 1))[:, None], out=matrix, casting="same_kind")


# ----------------------------------------------------------------------------------------------------------- evaluation


def evaluate(annotations: Annotations, rankings: Iterable[Ranking], findings: Findings) -> list[dict[str, Any]]:
    """Score every query. Returns one dict per query: path, set, split, instance, relevant, first_rank, metrics, top."""
    _, gallery = split_roles(annotations)
    shows = defaultdict(list)  # (set, instance) -> positions of the gallery images that show it
    for position, path in enumerate(gallery):
        for instance in set(annotations[path]["ins"]):
            shows[annotations[path]["set"], instance].append(position)
    scores = []
    for ranking in rankings:
        entry = annotations[ranking.query]
        relevant = sorted({p for instance in instances_of(entry) for p in shows.get((entry["set"], instance), ())})
        if not relevant:
            findings.notice("query without relevant gallery images, left out", ranking.query)
            continue
        hits = np.flatnonzero(np.isin(ranking.positions, relevant))
        row = {"path": ranking.query, "set": entry["set"], "split": entry.get("split"), "instance": entry["ins"]}
        row.update(relevant=len(relevant), first_rank=int(hits[0]) + 1 if hits.size else None)
        row.update(score_ranks(hits + 1, len(relevant)))
        if ranking.boxes is not None:
            shown = [annotations[gallery[ranking.positions[hit]]] for hit in hits]
            ious = [best_iou(other, instances_of(entry), ranking.boxes[hit]) for other, hit in zip(shown, hits)]
            row["IoU"] = ious[0] if ious else 0.0
            for k in RANKS:
                row[f"IoU>=0.5@{k}"] = float(any(i >= 0.5 for i, hit in zip(ious, hits) if hit < k))
        row["top"] = ranking.positions[:5].tolist()
        scores.append(row)
    return scores


def best_iou(entry: Entry, instances: list[int], box: Box | None) -> float:
    if box is None:
        return 0.0
    boxes = [other for instance in instances for other in boxes_of_instance(entry, instance)]
    return max((box_iou(box, other) for other in boxes if other is not None), default=0.0)


def add_groups(scores: list[dict[str, Any]], annotations: Annotations, base_path: str | None) -> None:
    """Add to each score its difficulty and the size of its object, as classes."""
    gallery = {path: entry for path, entry in annotations.items() if not entry["is_query"]}
    occurrences = Counter((entry["set"], instance) for entry in gallery.values() for instance in entry["ins"])
    sizes = object_sizes(gallery, base_path)
    for row in scores:
        shown = [(row["set"], instance) for instance in instances_of(annotations[row["path"]])]
        row["difficulty"] = difficulty(sum(occurrences[instance] for instance in shown))
        size = next((sizes[instance] for instance in shown if instance in sizes), None)
        row["size"] = "unknown" if size is None else next(name for name, limit in SIZES if size < limit)


def object_sizes(gallery: Annotations, base_path: str | None) -> dict[tuple[str, int], float]:
    """(set, instance) -> mean share, in % of the image, that its boxes cover in the gallery."""
    shares = defaultdict(list)
    for path, entry in gallery.items():
        size = size_of_image(path, entry, base_path)
        if size:
            for box, instance in zip(entry["bbox"], entry["ins"]):
                shares[entry["set"], instance].append(box_share(box, size))
    return {instance: float(np.mean(values)) for instance, values in shares.items()}


def size_of_image(path: str, entry: Entry, base_path: str | None) -> tuple[int, int] | None:
    """(height, width) of an image, from its masks or its header; None if there is neither. Raises SoirError."""
    masks = masks_of(entry)
    if masks and isinstance(masks[0], dict):
        size: Any = masks[0].get("size")
        if not is_image_size(size):
            raise SoirError(f"a mask of {path} has no size: see what verify_dataset.py says of the annotation file")
        return size[0], size[1]
    full = full_path(path, base_path)
    try:
        return image_size(full) if full else None
    except OSError:
        return None


def summarize(scores: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means over all queries and over each group: group -> {"queries", "mAP", "mAP_interval", ...}."""
    groups = {"all": scores}
    for field, values in (
        ("set", list(dict.fromkeys(row["set"] for row in scores))),
        ("split", list(SPLITS)),
        ("difficulty", ["easy", "medium", "hard"]),
        ("size", [name for name, _ in SIZES] + ["unknown"]),
    ):
        for value in values:
            groups[f"{field}: {value}"] = [row for row in scores if row[field] == value]
    return {name: summarize_group(members) for name, members in groups.items() if members}


def summarize_group(members: list[dict[str, Any]]) -> dict[str, Any]:
    instances = [f"{row['set']} {row['instance']}" for row in members]
    average = [row["AP"] for row in members]
    median = float(np.median([math.inf if row["first_rank"] is None else row["first_rank"] for row in members]))
    result = {
        "queries": len(members),
        "mAP": float(np.mean(average)),
        "mAP_interval": bootstrap_interval(average, instances),
        "MRR": float(np.mean([row["RR"] for row in members])),
        "median_first_rank": median if math.isfinite(median) else None,  # None: half of the queries found nothing
    }
    names = [f"{name}@{k}" for name in ("AP", "hit", "recall", "precision", "nDCG") for k in RANKS]
    for name in names:
        result["m" * name.startswith("AP") + name] = float(np.mean([row[name] for row in members]))
    localized = [row for row in members if "IoU" in row]
    if localized:
        result["queries_with_boxes"] = len(localized)
        for name in ["IoU", *(f"IoU>=0.5@{k}" for k in RANKS)]:
            result[name] = float(np.mean([row[name] for row in localized]))
    return result


# -------------------------------------------------------------------------------------------------------------- output


def print_summary(groups: dict[str, dict[str, Any]]) -> None:
    rows = [["", "queries", "mAP", "95 % interval", "MRR", "median rank of the first hit"]]
    for name, values in groups.items():
        low, high = values["mAP_interval"]
        rank = values["median_first_rank"]
        cells = [f"{values['queries']:,}", f"{values['mAP']:.4f}", f"{low:.4f} - {high:.4f}", f"{values['MRR']:.4f}"]
        rows.append([name, *cells, "none" if rank is None else f"{rank:,.1f}"])
    print_table(rows)
    print()
    overall = groups["all"]
    rows = [["all queries, at K =", *map(str, RANKS)]]
    for name in ("mAP", "hit", "recall", "precision", "nDCG", "IoU>=0.5"):
        if f"{name}@1" in overall:
            rows.append([name, *(f"{overall[f'{name}@{k}']:.4f}" for k in RANKS)])
    print_table(rows)
    if "IoU" in overall:
        print(f"IoU of the first hit: {overall['IoU']:.4f}")


def make_csv(scores: list[dict[str, Any]]) -> bytes:
    """The scores, one line per query."""
    columns = [name for name in max(scores, key=len) if name != "top"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(scores)
    return text.getvalue().encode("utf-8", "backslashreplace")


def draw_worst(
    scores: list[dict[str, Any]], count: int, annotations: Annotations, base_path: str | None
) -> Image.Image:
    """One row for each of the queries of lowest AP: the query, then its first five, right in green, wrong in red.

    Raises SoirError if no image can be read.
    """
    _, gallery = split_roles(annotations)
    worst = sorted(scores, key=lambda row: (row["AP"], row["path"]))[:count]
    rows = []
    for score in worst:
        title = f"{score['set']}, instance {score['instance']}, AP {score['AP']:.3f}: {score['path'][-60:]}"
        entry = annotations[score["path"]]
        tiles = [make_tile("query", score["path"], [entry["bbox"]], QUERY_COLOUR, base_path)]
        for rank, position in enumerate(score["top"], start=1):
            path = gallery[position] if position >= 0 else None
            other = annotations[path] if path else None
            same_set = other if other and other["set"] == entry["set"] else None
            shown = instances_of(entry) if same_set else []
            boxes = [box for instance in shown for box in boxes_of_instance(same_set or {}, instance)]
            label, colour = ("right", GALLERY_COLOUR) if boxes else ("wrong", WRONG_COLOUR)
            tiles.append(make_tile(f"{rank}: {label}", path, boxes, colour, base_path))
        rows.append((title, tiles))
    if not any(tile.image for _, tiles in rows for tile in tiles):
        raise SoirError(f"no image of the preview can be read, {worst[0]['path']} for one: where are they? --base-path")
    return lay_out(rows)


def make_tile(label: str, path: str | None, boxes: list[Any], colour: tuple[int, int, int], base: str | None) -> Tile:
    photograph = open_photograph(path, base) if path else None
    if photograph:
        size = photograph.height, photograph.width
        return Tile(label, draw_tile(photograph, [pixel_box(box, size) for box in boxes], colour), colour)
    return Tile(f"{label}, cannot be read" if path else label, None, colour)


# -------------------------------------------------------------------------------------------------------------- script


def parse_args() -> argparse.Namespace:
    parser = make_parser(
        "Score a retrieval run on an annotation file.",
        "0 fine, 1 the run has faults, which are listed, 2 it could not be scored",
    )
    add = parser.add_argument
    add("--ann-file", default="anns.pt", metavar="FILE", help="annotation file (default: anns.pt)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--rankings", metavar="FILE", help="JSON or .pt: query path -> gallery paths, best first")
    source.add_argument("--features", metavar="FILE", help=".pt or .npz: path -> vector, compared by cosine")
    add("--set", metavar="NAME", help="score the queries and the gallery of this set only")
    add("--base-path", metavar="DIR", help="folder that relative image paths start at (default: the current folder)")
    add("--report", metavar="FILE", help="write the scores of all groups as JSON")
    add("--per-query", metavar="FILE", help="write the scores of each query as CSV")
    add("--worst", type=positive, default=5, metavar="K", help="queries in the preview (default: 5)")
    add("--preview", type=png_name, metavar="FILE.png", help="draw the worst queries with what was retrieved")
    return parser.parse_args()


def load_sound_annotations(path: str, set_name: str | None, base_path: str | None) -> tuple[Annotations, set[str]]:
    """Load an annotation file: (the entries of a set, or all; the paths of the others).

    Raises SoirError if an entry breaks a rule, or there are no queries or no gallery images.
    """
    annotations = load_any_form(path, size_finder(base_path))
    for name, entry in annotations.items():
        for check, _ in entry_faults(name, entry):
            place = shorten(name)
            raise SoirError(f"{path} has errors ({check}: {place}): see what verify_dataset.py says of it")
    chosen = {name: entry for name, entry in annotations.items() if set_name in (None, entry["set"])}
    queries, gallery = split_roles(chosen)
    if not queries or not gallery:
        there = ", ".join(sorted({shorten(entry["set"]) for entry in annotations.values()})[:20]) or "none"
        what = "gallery images" if queries else "queries"
        raise SoirError(f"{path} has no {what} of the set {set_name or 'of any name'}; its sets: {there}")
    return chosen, annotations.keys() - chosen.keys()


@exit_status()
def main() -> int:
    args = parse_args()
    check_outputs([args.report, args.per_query, args.preview], [args.ann_file, args.rankings or args.features])
    base_path = absolute_base(args.base_path)
    annotations, others = load_sound_annotations(args.ann_file, args.set, base_path)

    findings = Findings()
    if args.rankings:
        rankings = read_rankings(args.rankings, annotations, others, findings)
    else:
        rankings = rank_features(args.features, annotations, findings)
    scores = evaluate(annotations, rankings, findings)
    if not scores:
        raise SoirError(f"no query of {args.ann_file} has relevant gallery images, so there is nothing to score")
    add_groups(scores, annotations, base_path)
    groups = summarize(scores)
    picture = draw_worst(scores, args.worst, annotations, base_path) if args.preview else None

    written = [path for path in (args.report, args.per_query, args.preview) if path]
    if args.report:
        faults = {**findings.skipped, **findings.noticed}
        write_whole(args.report, json.dumps({"groups": groups, "faults": faults}, indent=1).encode())
    if args.per_query:
        write_whole(args.per_query, make_csv(scores))
    if picture:
        write_png(args.preview, picture)
    print_summary(groups)
    print_findings(findings, skipped="faults and omissions", noticed="left out")
    if written:
        print(f"\nwrote {', '.join(written)}")
    return 1 if findings.skipped else 0


if __name__ == "__main__":
    sys.exit(main())
