"""Score a retrieval run on an annotation file: mAP, Recall@K, Precision@K, ranking quality, localization.

In   an annotation file, and either the rankings of a run or features of its images
Out  a table; with --report also as JSON, with --per-query as CSV, with --worst and --preview a picture

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

import argparse
import csv
import io
import json
import math
import os
import sys
from collections import Counter, defaultdict
from typing import Any, Iterable, Iterator

import numpy as np
from PIL import Image, ImageDraw

from drawing import (
    GALLERY_COLOUR,
    MARGIN,
    QUERY_COLOUR,
    TILE_HEIGHT,
    TILE_WIDTH,
    fit,
    png_name,
    write_png,
    write_text,
)
from input_files import image_size, open_regular, read_image
from safe_loading import check_repeats, load_annotations, load_plain, load_tensors
from soir_common import (
    SETS,
    SoirError,
    check_outputs,
    difficulty,
    exit_status,
    is_coordinate,
    positive,
    print_skipped,
    read_json,
    shorten,
    write_whole,
)
from verify_dataset import Findings, absolute_base, check_entries, full_path, mask_size

RANKS = (1, 5, 10, 50, 100)
SIZES = (("below 0.5 %", 0.5), ("0.5 to 1 %", 1), ("1 to 2 %", 2), ("above 2 %", math.inf))
WRONG_COLOUR = (255, 64, 64)
BOOTSTRAP = 1000  # resamples of the instances: the ends of the interval vary by some 2 % of its width

# Similarities that are held at a time: 64 MB.
BLOCK = 16_000_000

# No file of features is compressed by more; one of a megabyte could unpack to a gigabyte of zeros.
MAX_RATIO = 100


# ------------------------------------------------------------------------------------------------------------- metrics


def score_ranks(ranks: np.ndarray, relevant: int) -> dict:
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


def box_iou(a: tuple, b: tuple) -> float:
    """Intersection over union of two (x1, y1, x2, y2) boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union > 0 else 0.0  # 0 where sides of 1e-200 pixels have no area in floats


def bootstrap_interval(values: list, groups: list) -> tuple:
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


def read_rankings(path: str, queries: list, gallery: list, others: set, faults: dict) -> Iterator[tuple]:
    """Yield (query path, positions in `gallery`, best first, boxes or None) for every query.

    queries, gallery  lists of paths
    others            paths of the sets that --set leaves out; they are taken out of the rankings
    faults            dict, reason -> list of places
    """
    rankings = load_plain(path) if path.endswith((".pt", ".pth")) else read_json(path)
    if isinstance(rankings, dict) and isinstance(rankings.get("knns"), dict):
        rankings = rankings["knns"]
    if not isinstance(rankings, dict):
        raise SoirError(f"{path} holds no rankings: expected a dict, query path -> list of gallery paths")
    if not any(query in rankings for query in queries):
        found = f"paths like {shorten(next(iter(rankings)))}" if rankings else "nothing"
        raise SoirError(
            f"{path} has a ranking for none of the queries: expected paths like {queries[0]}, found {found}"
        )
    check_repeats(path, (len(ranking) for ranking in rankings.values() if isinstance(ranking, (list, tuple))))
    position = {name: index for index, name in enumerate(gallery)}
    asked = set(queries)
    for name in rankings:
        if name not in asked and name not in others:
            faults["ranking of a path that is no query here"].append(shorten(name))
    for query in queries:
        ranking = rankings.get(query)
        if isinstance(ranking, dict):
            ranking = ranking.get("knns")
        if not isinstance(ranking, (list, tuple)):
            faults["query without a ranking, scored 0"].append(query)
            ranking = []
        ranking = [item for item in ranking if not others or ranked_path(item) not in others]
        yield (query, *read_ranking(query, ranking, position, faults))


def read_ranking(query: Any, ranking: Any, position: dict, faults: dict) -> tuple:
    """Positions of the ranked gallery images, and their boxes or None. An unknown path keeps its rank, as -1."""
    found, seen = [], set()
    odd = defaultdict(list)  # a place a query, not an item: of a million paths, all may be unknown
    for item in ranking:
        path = ranked_path(item)
        score, box = (*item[1:], None, None)[:2] if isinstance(item, (list, tuple)) else (None, None)
        index = position.get(path, -1)
        if index < 0:
            odd["query that ranks a path that is no gallery image here, counted as wrong"].append(path)
        elif index in seen:
            odd["query that ranks a path twice, the second time ignored"].append(path)
            continue
        if score is not None and not (type(score) in (int, float) and -math.inf < score < math.inf):
            odd["query with a score that is no finite number, its image counted as not retrieved"].append(path)
            continue
        if box is not None and not is_box(box):
            odd["query with a box that is not (x1, y1, x2, y2), ignored"].append(path)
            box = None
        seen.add(index)
        found.append((score, index, box))
    for reason, paths in odd.items():
        more = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
        faults[reason].append(f"{query}: {shorten(paths[0])}{more}")
    start = 0
    for stop in range(1, len(found) + 1):  # a stretch of equal scores is put in gallery order
        if stop == len(found) or found[stop][0] is None or found[stop][0] != found[start][0]:
            found[start:stop] = sorted(found[start:stop], key=lambda item: item[1])
            start = stop
    boxes = [box for _, _, box in found]
    indices = np.array([index for _, index, _ in found], dtype=np.int64)
    return indices, boxes if any(box is not None for box in boxes) else None


def ranked_path(item: Any) -> Any:
    """The path of an item of a ranking: path, [path, score] or [path, score, box]; None if it has none."""
    path = item[0] if isinstance(item, (list, tuple)) and item else item
    return path if isinstance(path, str) else None


def is_box(box: Any) -> bool:
    return (
        isinstance(box, (list, tuple))
        and len(box) == 4
        and all(map(is_coordinate, box))
        and box[2] > box[0]
        and box[3] > box[1]
    )


def read_features(path: str) -> Iterator[tuple]:
    """Yield (path, vector) of every image: float32 [dimension], or None for what is no vector. Raises SoirError.

    The file is .pt (as torch.save wrote it) or .npz, and holds path -> vector, or {"paths": [...], "features": matrix}.
    """
    content = load_archive(path) if path.endswith(".npz") else load_tensors(path)
    try:
        limit = MAX_RATIO * os.path.getsize(path)
        if not isinstance(content, dict) or not content:
            raise ValueError("expected a dict, path -> vector, or paths and features")
        paths, vectors = list(content), list(content.values())
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


def load_archive(path: str) -> dict:
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


def rank_features(path: str, annotations: dict, queries: list, gallery: list, faults: dict) -> Iterator[tuple]:
    """As `read_rankings`, by cosine similarity, against the gallery of the query's own set."""
    vectors = {}
    for name, vector in read_features(path):
        if name in vectors:
            faults["image with two features, the second one ignored"].append(name)
        elif vector is not None:
            vectors[name] = vector
        else:
            faults["feature that is no vector of numbers"].append(name)
    lengths = Counter(vectors[name].size for name in queries + gallery if name in vectors)
    if not lengths:
        found = f"paths like {next(iter(vectors))}" if vectors else "nothing that is a vector of numbers"
        raise SoirError(
            f"{path} has a feature for none of the images: expected paths like {(queries + gallery)[0]}, found {found}"
        )
    length = lengths.most_common(1)[0][0]
    usable = set()
    for name in queries + gallery:
        vector = vectors.get(name)
        kind = "query" if annotations[name]["is_query"] else "gallery image"
        outcome = "scored 0" if annotations[name]["is_query"] else "counted as not retrieved"
        if vector is None:
            faults[f"{kind} without a feature, {outcome}"].append(name)
        elif vector.size != length:
            faults[f"{kind} whose feature is not of length {length}, like most, {outcome}"].append(name)
        elif not np.isfinite(vector).all() or not vector.any():
            faults[f"{kind} whose feature is not finite, or zero, {outcome}"].append(name)
        else:
            usable.add(name)
    for set_name in SETS:
        chosen = [i for i, p in enumerate(gallery) if annotations[p]["set"] == set_name and p in usable]
        asking = [name for name in queries if annotations[name]["set"] == set_name and name in usable]
        matrix = unit_rows([vectors[gallery[i]] for i in chosen], length)
        candidates = np.array(chosen, dtype=np.int64)
        step = max(1, BLOCK // max(1, len(candidates), length))
        for start in range(0, len(asking), step):
            block = asking[start : start + step]
            similarity = unit_rows([vectors[name] for name in block], length) @ matrix.T
            for name, row in zip(block, similarity):
                yield name, candidates[np.argsort(-row, kind="stable")], None
    for name in queries:
        if name not in usable:
            yield name, np.zeros(0, dtype=np.int64), None


def unit_rows(vectors: list, length: int) -> np.ndarray:
    """Vectors -> float32 [vectors, length], each of length 1, or 0 as before."""
    matrix = np.array(vectors, dtype=np.float32).reshape(-1, length)
    squares = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)  # those of float32 may be beyond it
    return np.divide(matrix, np.sqrt(np.where(squares > 0, squares, 1))[:, None], out=matrix, casting="same_kind")


# ----------------------------------------------------------------------------------------------------------- evaluation


def evaluate(annotations: dict, queries: list, gallery: list, results: Iterable, faults: dict) -> list[dict]:
    """Score every query. Returns a list of dict, a query each: path, set, instance, split, relevant, metrics, top.

    results  (query path, positions in gallery, boxes or None) of every query
    """
    shows = defaultdict(list)  # (set, instance) -> positions of the gallery images that show it
    for index, path in enumerate(gallery):
        for instance in set(annotations[path]["ins"]):
            shows[annotations[path]["set"], instance].append(index)
    scores = []
    for path, ranking, boxes in results:
        entry = annotations[path]
        instance = entry["set"], entry["ins"]
        relevant = shows.get(instance)
        if not relevant:
            faults["query without relevant gallery images, left out"].append(path)
            continue
        hits = np.flatnonzero(np.isin(ranking, relevant))
        row = {"path": path, "set": entry["set"], "split": entry.get("split"), "instance": entry["ins"]}
        row.update(relevant=len(relevant), first_rank=int(hits[0]) + 1 if hits.size else None)
        row.update(score_ranks(hits + 1, len(relevant)))
        if boxes is not None:
            ious = [best_iou(annotations[gallery[ranking[hit]]], entry["ins"], boxes[hit]) for hit in hits]
            row["IoU"] = ious[0] if ious else 0.0
            for k in RANKS:
                row[f"IoU>=0.5@{k}"] = float(any(i >= 0.5 for i, hit in zip(ious, hits) if hit < k))
        row["top"] = [int(index) for index in ranking[:5]]
        scores.append(row)
    return scores


def best_iou(entry: dict, instance: int, box: tuple | None) -> float:
    if box is None:
        return 0.0
    return max(box_iou(box, other) for other, number in zip(entry["bbox"], entry["ins"]) if number == instance)


def object_sizes(annotations: dict, gallery: list, base_path: str | None) -> dict:
    """Mean share, in % of the image, that an instance's boxes cover in the gallery: (set, instance) -> share."""
    shares = defaultdict(list)
    for path in gallery:
        entry = annotations[path]
        size = mask_size(entry["mask"][0]) if entry["mask"] else None
        if size is not None:
            height, width = size
        elif entry["mask"]:
            raise SoirError(f"a mask of {path} has no size: see what verify_dataset.py says of the annotation file")
        else:
            full = full_path(path, base_path)
            try:
                width, height = image_size(full) if full else (0, 0)
            except OSError:
                continue
        for (x1, y1, x2, y2), instance in zip(entry["bbox"], entry["ins"]):
            if width and height:
                shares[entry["set"], instance].append(100 * (x2 - x1) * (y2 - y1) / (width * height))
    return {instance: float(np.mean(values)) for instance, values in shares.items()}


def add_groups(scores: list, annotations: dict, gallery: list, base_path: str | None) -> None:
    """Add to each score its difficulty and the size of its object, as classes."""
    occurrences = Counter((annotations[path]["set"], i) for path in gallery for i in annotations[path]["ins"])
    sizes = object_sizes(annotations, gallery, base_path)
    for row in scores:
        instance = row["set"], row["instance"]
        row["difficulty"] = difficulty(occurrences[instance])
        size = sizes.get(instance)
        row["size"] = "unknown" if size is None else next(name for name, limit in SIZES if size < limit)


def summarize(scores: list) -> list[tuple]:
    """Means over all queries and over each group: list of (group, {"queries", "mAP", "mAP_interval", ...})."""
    groups = [("all", scores)]
    for field, values in (
        ("set", SETS),
        ("split", ("train", "val", "test")),
        ("difficulty", ("easy", "medium", "hard")),
        ("size", [name for name, _ in SIZES] + ["unknown"]),
    ):
        for value in values:
            members = [row for row in scores if row[field] == value]
            if members:
                groups.append((f"{field}: {value}", members))
    return [(name, summarize_group(members)) for name, members in groups]


def summarize_group(members: list) -> dict:
    instances = [f"{row['set']} {row['instance']}" for row in members]
    average = [row["AP"] for row in members]
    first_ranks = [math.inf if row["first_rank"] is None else row["first_rank"] for row in members]
    median = float(np.median(first_ranks))
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


def print_summary(groups: list) -> None:
    print(f"{'':<22}{'queries':>9}{'mAP':>8}{'95 % interval':>17}{'MRR':>8}{'first rank':>12}")
    for name, values in groups:
        low, high = values["mAP_interval"]
        rank = values["median_first_rank"]
        rank = "none" if rank is None else f"{rank:,.1f}"
        print(
            f"{name:<22}{values['queries']:>9,}{values['mAP']:>8.4f}"
            f"{f'{low:.4f} - {high:.4f}':>17}{values['MRR']:>8.4f}{rank:>12}"
        )
    _, overall = groups[0]
    print(f"\n{'all queries, at K =':<22}" + "".join(f"{k:>9}" for k in RANKS))
    for name in ("mAP", "hit", "recall", "precision", "nDCG", "IoU>=0.5"):
        if f"{name}@1" in overall:
            print(f"{name:<22}" + "".join(f"{overall[f'{name}@{k}']:>9.4f}" for k in RANKS))
    if "IoU" in overall:
        print(f"IoU of the first hit: {overall['IoU']:.4f}")


def make_csv(scores: list) -> bytes:
    """The scores, a query a line."""
    columns = [name for name in max(scores, key=len) if name != "top"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(scores)
    return text.getvalue().encode("utf-8", "backslashreplace")


def draw_worst(scores: list, count: int, annotations: dict, gallery: list, base_path: str | None) -> Image.Image:
    """A row for each of the queries of lowest AP: the query, then its first five, right in green, wrong in red."""
    worst = sorted(scores, key=lambda row: (row["AP"], row["path"]))[:count]
    line = TILE_HEIGHT + 3 * MARGIN + 30
    picture = Image.new("RGB", (6 * (TILE_WIDTH + MARGIN) + MARGIN, len(worst) * line), (32, 32, 32))
    draw = ImageDraw.Draw(picture)
    shown = 0
    for number, row in enumerate(worst):
        title = f"{row['set']}, instance {row['instance']}, AP {row['AP']:.3f}: {row['path'][-60:]}"
        write_text(draw, (MARGIN, number * line + MARGIN), title, 16)
        paths = [row["path"]] + [gallery[index] if index >= 0 else None for index in row["top"]]
        for column, path in enumerate(paths):
            entry = annotations.get(path)
            right = (
                bool(column) and entry is not None and entry["set"] == row["set"] and row["instance"] in entry["ins"]
            )
            colour = (GALLERY_COLOUR if right else WRONG_COLOUR) if column else QUERY_COLOUR
            boxes = []
            if entry is not None:
                pairs = zip(entry["bbox"], entry["ins"]) if column else [(entry["bbox"], entry["ins"])]
                boxes = [box for box, instance in pairs if instance == row["instance"] and (right or not column)]
            x = MARGIN + column * (TILE_WIDTH + MARGIN)
            image = tile(path, base_path, boxes, colour)
            if image:
                picture.paste(image, (x, number * line + 32))
                shown += 1
            corner = (x - 3, number * line + 29, x + TILE_WIDTH + 2, number * line + 34 + TILE_HEIGHT)
            draw.rectangle(corner, outline=colour, width=3)
            label = f"{column}: {'right' if right else 'wrong'}" if column else "query"
            label += "" if image or not path else ", cannot be read"
            write_text(draw, (x + 2, number * line + 36 + TILE_HEIGHT), label, 11)
    if not shown:
        raise SoirError(f"no image of the preview can be read, {worst[0]['path']} for one: where are they? --base-path")
    return picture


def tile(path: str | None, base_path: str | None, boxes: list, colour: tuple) -> Image.Image | None:
    full = full_path(path, base_path) if path else None
    try:
        if full:
            return fit(read_image(full).convert("RGB"), boxes, colour)
    except OSError:
        pass
    return None


# -------------------------------------------------------------------------------------------------------------- script


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Score a retrieval run on an annotation file.",
        epilog="Exit status: 0 fine, 1 the run has faults, which are listed, 2 it could not be scored.",
    )
    add = parser.add_argument
    add("--ann-file", default="anns.pt", metavar="FILE", help="annotation file (default: anns.pt)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--rankings", metavar="FILE", help="JSON or .pt: query path -> gallery paths, best first")
    source.add_argument("--features", metavar="FILE", help=".pt or .npz: path -> vector, compared by cosine")
    add("--set", choices=SETS, help="score the queries and the gallery of this set only")
    add("--base-path", metavar="DIR", help="folder that relative image paths start at (default: the current folder)")
    add("--report", metavar="FILE", help="write the scores of all groups as JSON")
    add("--per-query", metavar="FILE", help="write the scores of each query as CSV")
    add("--worst", type=positive, default=5, metavar="K", help="queries in the preview (default: 5)")
    add("--preview", type=png_name, metavar="FILE.png", help="draw the worst queries with what was retrieved")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    inputs = [args.ann_file, args.rankings or args.features]
    check_outputs([args.report, args.per_query, args.preview], inputs)
    args.base_path = absolute_base(args.base_path)
    annotations = load_annotations(args.ann_file)
    findings = Findings()
    check_entries(annotations, findings)
    if findings.issues:
        check, path, _ = findings.issues[0]
        raise SoirError(f"{args.ann_file} has errors ({check}: {path}): see what verify_dataset.py says of it")
    chosen = {path: entry for path, entry in annotations.items() if args.set in (None, entry["set"])}
    queries = [path for path, entry in chosen.items() if entry["is_query"]]
    gallery = [path for path, entry in chosen.items() if not entry["is_query"]]
    if not queries or not gallery:
        there = ", ".join(sorted({entry["set"] for entry in annotations.values()})) or "none"
        what = "gallery images" if queries else "queries"
        raise SoirError(f"{args.ann_file} has no {what} of the set {args.set or 'of any name'}; its sets: {there}")

    faults: dict[str, list[str]] = defaultdict(list)
    if args.rankings:
        results = read_rankings(args.rankings, queries, gallery, annotations.keys() - chosen.keys(), faults)
    else:
        results = rank_features(args.features, chosen, queries, gallery, faults)
    scores = evaluate(chosen, queries, gallery, results, faults)
    if not scores:
        raise SoirError(f"no query of {args.ann_file} has relevant gallery images, so there is nothing to score")
    add_groups(scores, chosen, gallery, args.base_path)
    groups = summarize(scores)
    picture = draw_worst(scores, args.worst, chosen, gallery, args.base_path) if args.preview else None
    written = [path for path in (args.report, args.per_query, args.preview) if path]
    if args.report:
        write_whole(args.report, json.dumps({"groups": dict(groups), "faults": faults}, indent=1).encode())
    if args.per_query:
        write_whole(args.per_query, make_csv(scores))
    if picture:
        write_png(args.preview, picture)
    print_summary(groups)
    print_skipped(faults, "faults and omissions")
    if written:
        print(f"\nwrote {', '.join(written)}")
    return 1 if set(faults) - {"query without relevant gallery images, left out"} else 0


if __name__ == "__main__":
    with exit_status():
        sys.exit(main())
