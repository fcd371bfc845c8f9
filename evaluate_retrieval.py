"""Score retrieval runs on an annotation file: mAP, Recall@K, Precision@K, ranking quality, localization.

In   an annotation file, and runs: rankings in any of the forms of soir/runs.py, or features (soir/features.py)
Out  a table; with --report also as JSON, with --per-query as CSV, with --preview a picture of the worst queries, with
     --qrels and --trec the files with which trec_eval or ranx come to the same figures. Of several runs one row each,
     with the paired difference from the first one; with --table also as .tex, .md or .csv

    python evaluate_retrieval.py --ann-file anns.pt --rankings results.json
    python evaluate_retrieval.py --ann-file anns.pt --features features.pt --set RoboTools --split test
    python evaluate_retrieval.py --ann-file anns.pt --rankings a.json b.json --features c.pt --table table.tex

The protocol is that of soir/protocol.py. A query without relevant images is left out, and counted. A relevant image
that a run does not list counts as not retrieved. A path that is no gallery image here keeps its rank, as wrong, ahead
of images with the same score: a fault. Equal scores are ordered as the annotation file orders the gallery. --split
restricts queries and gallery both.

The metrics are defined in soir/metrics.py. mAP has a 95 % interval, by bootstrap over instances; of fewer than five
instances there is none.

Exit status: 0 fine, 1 a run has faults (an unknown path, a query without a ranking, ...), 2 it could not be scored.
"""

from __future__ import annotations

import soir.startup  # noqa: F401

import argparse
import csv
import io
import json
import math
import os
import sys
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Sequence, Tuple

import numpy as np

from soir import console, published, scoring
from soir.drawing import page_names, write_pages
from soir.entry import SPLITS, instances_of
from soir.features import read_features
from soir.files import SoirError, check_no_image, check_outputs, whole_file, write_whole
from soir.findings import Findings, print_findings, print_table
from soir.forms import load_sound, size_finder
from soir.metrics import SMALLEST_P, Difference, compare_means
from soir.previews import draw_rankings
from soir.protocol import RANKS, Hits, Ranking, Task, find_in_rankings, make_task
from soir.rankings import read_run
from soir.runs import trec_qrels, trec_run
from soir.scoring import Part
from soir.similarity import find_by_features, rank_by_features
from soir.tables import TABLES, Block, make_table

# The metrics that have a K, and all that a column can show.
AT_K = ("mAP", "hit", "recall", "precision", "nDCG", "IoU>=0.5")
METRICS = ("mAP", "MRR", "IoU", *(f"{name}@{k}" for name in AT_K for k in RANKS))

# What the report says of its groups.
POOLED = "fractions, not %; `groups` pool all queries, of several sets and splits too: publish those of `parts`"

# Numbers of queries -> their (number, ranking).
Rank = Callable[[Sequence[int]], Iterator[Tuple[int, Ranking]]]


class Run(NamedTuple):
    """A run to score."""

    kind: str  # "rankings" or "features"
    file: str
    name: str


class PartScores(NamedTuple):
    """The scores of a run on a part."""

    groups: dict[str, dict[str, Any]]  # group -> means over its queries
    difference: Difference | None  # of mAP from the first run; None for that one


class Scores(NamedTuple):
    """The scores of a run."""

    run: Run
    metrics: dict[str, np.ndarray]  # name -> float64 [scored queries]
    overall: PartScores  # of all parts together
    parts: list[PartScores]
    findings: Findings


def find_hits(run: Run, task: Task, findings: Findings) -> tuple[Iterable[Hits], Rank]:
    """Where a run ranks the relevant images, and a function that yields its whole rankings.

    Faults of the run are added to the findings. Raises SoirError if the file cannot be read, or has nothing for any of
    the queries, or images.
    """
    if run.kind == "rankings":
        rankings = read_run(run.file, task, findings)
        return find_in_rankings(task, rankings), lambda numbers: ((n, rankings[n]) for n in numbers)
    features = read_features(run.file, task.annotations, findings)
    return find_by_features(features, task), lambda numbers: rank_by_features(features, task, list(numbers))


def percent(value: float) -> str:
    """A fraction in %, with two decimals, as the papers of the field print it."""
    return f"{100 * value:.2f}"


def metric_titles(metrics: list[str]) -> list[str]:
    return [title for name in metrics for title in ([name, "95 % interval"] if name == "mAP" else [name])]


def metric_cells(values: dict[str, Any], metrics: list[str]) -> list[str]:
    """The cells of a group, as of `scoring.summarize`, under `metric_titles`. mAP comes with its interval."""
    cells = []
    for name in metrics:
        cells.append(percent(values[name]) if name in values else "-")
        if name == "mAP":
            cells.append("-".join(map(percent, values["mAP_interval"] or ())) or "-")
    return cells


def print_scores(scores: Scores, parts: list[Part], metrics: list[str] | None) -> None:
    """Print the scores of one run: a row for each part and its groups, and the metrics at K of each part."""
    shown = metrics or ["mAP", "MRR"]
    rows = [["", "queries", *metric_titles(shown), *([] if metrics else ["first hit"])]]
    for part, (groups, _) in zip(parts, scores.parts):
        if part.split and [part.set_label] not in rows:
            rows.append([part.set_label])
        for name, values in groups.items():
            label = "    " + name
            if name == "all":
                label = f"  {part.split}" if part.split else part.set_label
            rank = values["median_first_rank"]
            first = [] if metrics else ["none" if rank is None else f"{rank:,.4g}"]
            rows.append([label, f"{values['queries']:,}", *metric_cells(values, shown), *first])
            if name == "all":
                rows += [["    " + line] for line in published_lines(part)]
    print_table(rows)
    print("\nin %; 95 % interval: by bootstrap over instances")
    if any("-" in row for row in rows):
        print("-: none, as of fewer than five instances or of equal ones")
    if metrics:
        return
    print("first hit: median rank of the first relevant image")
    for part, (groups, _) in zip(parts, scores.parts):
        overall = groups["all"]
        rows = [["at K =", *map(str, RANKS)]]
        rows += [[name, *(percent(overall[f"{name}@{k}"]) for k in RANKS)] for name in AT_K if f"{name}@1" in overall]
        print(f"\n{part.title}")
        print_table(rows)
        if "IoU" in overall:
            print(f"IoU of the first hit: {percent(overall['IoU'])}")


def print_comparison(results: list[Scores], parts: list[Part], metrics: list[str]) -> None:
    """Print runs side by side, part by part, and their differences from the first one."""
    first = results[0].run.name
    for index, part in enumerate(parts):
        print(part.title)
        rows = [["", *metric_titles(metrics)]]
        rows += [[scores.run.name, *metric_cells(scores.parts[index].groups["all"], metrics)] for scores in results]
        print_table(rows + [["  " + line] for line in published_lines(part)])
        rows = [[f"mAP less that of {first}", "", "interval of the difference", "p"]]
        rows += [[scores.run.name, *difference_cells(scores.parts[index].difference)] for scores in results[1:]]
        print_table(rows)
        print()
    print("in %; intervals and p by bootstrap over instances")
    print("-: none, as of fewer than five instances or of equal ones")


def difference_cells(difference: Difference | None) -> list[str]:
    if difference is None:
        return ["-"] * 3
    interval, p = difference.interval, difference.p_value
    return [
        f"{100 * difference.mean:+.2f}",
        "-" if interval is None else f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}",
        "-" if p is None else f"< {SMALLEST_P:.4f}" if p <= SMALLEST_P else f"{p:.4f}",
    ]


def published_lines(part: Part) -> list[str]:
    """What was published of a set, or that it was of another data set, by its numbers of queries and images."""
    if part.set_name not in published.MAP:
        return []
    expected = published.COUNTS[part.set_name]
    if any(abs(found - count) > 0.05 * count for found, count in zip((part.queries, part.images), expected)):
        return [f"published figures are of {expected[0]:,} queries, {expected[1]:,} images, so of other data"]
    lines = []
    for kind, figures in published.MAP[part.set_name].items():
        best = max(figures, key=lambda model: figures[model])
        models = dict.fromkeys([best, *(model for model in ("DINOv2", "CLIP") if model in figures)])
        lines.append(f"published, {kind}: " + ", ".join(f"{model} {figures[model]:.2f}" for model in models))
    return lines


def table_blocks(results: list[Scores], parts: list[Part], metrics: list[str]) -> tuple[list[str], list[Block]]:
    """(titles, blocks) of the table of runs side by side: one row per run."""
    titles = ["95 % interval of mAP" if title == "95 % interval" else title for title in metric_titles(metrics)]
    titles = ["", *titles, "difference", "95 % interval of the difference", "p"]
    blocks = []
    for index, part in enumerate(parts):
        groups = [scores.parts[index].groups["all"] for scores in results]
        rows = [
            [scores.run.name, *metric_cells(values, metrics), *difference_cells(scores.parts[index].difference)]
            for scores, values in zip(results, groups)
        ]
        best = set()
        for name in metrics if len(results) > 1 else []:
            highest = max((values[name] for values in groups if name in values), default=None)
            best |= {(row, titles.index(name)) for row, values in enumerate(groups) if values.get(name) == highest}
        blocks.append(Block(part.title, rows, best))
    return titles, blocks


def make_report(
    args: argparse.Namespace, task: Task, parts: list[Part], results: list[Scores], notes: Findings
) -> bytes:
    """What was scored, and the scores of all groups, as JSON."""
    about = {
        "annotation_file": args.ann_file,
        "set": args.set,
        "split": args.split,
        "queries": sum(len(part.members) for part in parts),
        "queries_without_relevant_images": sum(len(places) for places in notes.noticed.values()),
        "gallery_images": len(task.gallery),
        "runs": [scores.run._asdict() for scores in results],
        "version": console.VERSION,
    }
    report: dict[str, Any] = {"scored": about, "note": POOLED, "left_out": notes.noticed}
    runs = [
        {
            "name": scores.run.name,
            "groups": scores.overall.groups,
            "parts": {part.title: groups for part, (groups, _) in zip(parts, scores.parts)},
            "difference": scores.overall.difference and scores.overall.difference._asdict(),
            "differences": {part.title: d and d._asdict() for part, (_, d) in zip(parts, scores.parts)},
            "faults": scores.findings.skipped,
            "noticed": scores.findings.noticed,
        }
        for scores in results
    ]
    if len(runs) == 1:
        report.update((name, runs[0][name]) for name in ("groups", "parts", "faults", "noticed"))
    else:
        report["runs"] = runs
    return json.dumps(report, indent=1).encode()


def make_csv(queries: dict[str, list[Any]], results: list[Scores]) -> bytes:
    """The scores, one line per query; of several runs one after the other, with the name of the run first."""
    most = max((scores.metrics for scores in results), key=len)  # only runs with boxes have IoUs
    unknown: dict[str, Any] = dict.fromkeys(most, [math.nan] * len(queries["path"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run"] * (len(results) > 1) + list(scoring.join_columns(queries, most)))
    for scores in results:
        metrics: dict[str, Any] = {name: values.tolist() for name, values in scores.metrics.items()}
        metrics["first_rank"] = [rank if math.isinf(rank) else int(rank) for rank in metrics["first_rank"]]
        for row in zip(*scoring.join_columns(queries, {**unknown, **metrics}).values()):
            cells = ["" if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in row]
            writer.writerow([scores.run.name] * (len(results) > 1) + cells)
    return text.getvalue().encode("utf-8", "backslashreplace")


def choose_queries(args: argparse.Namespace, task: Task, scored: np.ndarray, scores: np.ndarray) -> dict[int, float]:
    """Number -> AP of the queries to draw, the worst first: those of some instances, or of all. Raises SoirError."""
    worst = sorted(zip(scored.tolist(), scores.tolist()), key=lambda item: (item[1], task.queries[item[0]]))
    if not args.instances:
        return dict(worst[: args.worst or 5])
    shows = [instances_of(task.annotations[task.queries[number]]) for number, _ in worst]
    chosen = [item for item, shown in zip(worst, shows) if not set(args.instances).isdisjoint(shown)]
    if not chosen:
        raise SoirError(f"no query of the instances {' '.join(map(str, args.instances))} was scored: name others")
    return dict(chosen[: args.worst])


class AddRuns(argparse.Action):
    """Collects the files of --rankings and --features in one list, in the order of the command line."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        runs = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, runs + [(self.const, file) for file in values])


def table_name(text: str) -> str:
    """A type for argparse: the name of a table to write."""
    if not text.lower().endswith(TABLES):
        raise argparse.ArgumentTypeError(f"expected a name that ends in {', '.join(TABLES)}, found {text}")
    return text


def parse_args() -> argparse.Namespace:
    parser = console.make_parser(
        "Score retrieval runs on an annotation file.",
        "0 fine, 1 a run has faults, which are listed, 2 it could not be scored",
    )
    add = console.add_input_options(parser)
    runs: dict[str, Any] = {"dest": "runs", "action": AddRuns, "nargs": "+", "metavar": "FILE"}
    text = "runs: rankings in JSON or .pt, TREC runs, or matrices in .npz or .pt"
    add("--rankings", const="rankings", help=text, **runs)
    add("--features", const="features", help="runs: features in .pt or .npz, compared by cosine", **runs)
    add("--names", nargs="+", metavar="NAME", help="names of the runs (default: those of their files)")
    add = parser.add_argument_group("what is scored").add_argument
    add("--set", metavar="NAME", help="the queries and the gallery of this set only, in upper or lower case")
    add("--split", choices=SPLITS, help="the queries and the gallery of this split only")
    add = parser.add_argument_group("output").add_argument
    add("--report", metavar="FILE", help="write what was scored, and the scores of all groups, as JSON")
    add("--per-query", metavar="FILE", help="write the scores of each query as CSV")
    add("--table", type=table_name, metavar="FILE", help="write the table of runs side by side, as .tex, .md or .csv")
    text = "columns of the tables: mAP, MRR, IoU, hit@1, mAP@10, recall@5, precision@1, nDCG@10, IoU>=0.5@1, ..."
    add("--metrics", choices=METRICS, nargs="+", metavar="METRIC", help=text)
    add("--qrels", metavar="FILE", help="write what is relevant as TREC qrels")
    add("--trec", metavar="FILE", help="write the run as a TREC run (of one run)")
    add = parser.add_argument_group("preview (of one run)").add_argument
    text = "draw queries with what was retrieved: right in green, wrong in red, boxes of the run dashed in yellow"
    add("--preview", type=console.png_name, metavar="FILE.png", help=text)
    text = "the K queries of lowest AP (default: 5; with --instances, all)"
    add("--worst", type=console.positive, metavar="K", help=text)
    text = "the queries of these instances, the worst first"
    add("--instances", type=console.instance_id, nargs="+", metavar="ID", help=text)
    args = parser.parse_args()
    if not args.runs:
        parser.error("one of the arguments --rankings --features is required")
    if args.names and len(args.names) != len(args.runs):
        parser.error(f"expected as many --names as runs, {len(args.runs)}, found {len(args.names)}")
    for option in ("worst", "instances"):
        if getattr(args, option) is not None and not args.preview:
            parser.error(f"--{option} says what is in the picture: it goes with --preview FILE.png")
    for option in ("trec", "preview"):
        if getattr(args, option) and len(args.runs) > 1:
            parser.error(f"--{option} is of one run: name one file of --rankings or --features")
    return args


def name_runs(files: list[tuple[str, str]], names: list[str] | None) -> list[Run]:
    """The runs with their names: given ones, or the stems of their files; their whole paths if stems are equal."""
    if not names:
        names = [os.path.splitext(os.path.basename(file))[0] for _, file in files]
        if len(set(names)) < len(names):
            names = [file for _, file in files]
    return [Run(kind, file, name) for (kind, file), name in zip(files, names)]


@console.exit_status()
def main() -> int:
    args = parse_args()
    outputs = [args.report, args.per_query, args.table, args.qrels, args.trec, args.preview]
    inputs = [args.ann_file, *(file for _, file in args.runs)]
    check_outputs(outputs, inputs)
    base_path = console.absolute_base(args.base_path)
    find_size = size_finder(base_path)
    annotations = load_sound(args.ann_file, find_size)
    task = make_task(*scoring.choose_entries(annotations, args.ann_file, args.set, args.split), find_size)
    check_no_image(outputs, [*task.annotations, *task.others], base_path)
    notes = Findings()
    scored = scoring.find_scored(task, notes)
    queries = scoring.describe_queries(task, scored)
    instances = task.instances[scored]

    parts = scoring.find_parts(task, scored, queries)
    results: list[Scores] = []
    for run in name_runs(args.runs, args.names):
        findings = Findings()
        hits, rank = find_hits(run, task, findings)
        metrics = scoring.score_queries(hits, task, scored, run.file, findings)
        of_parts = []
        choices: list[tuple[np.ndarray, Sequence[str]]] = [(np.arange(len(scored)), scoring.GROUPED_BY)]
        choices += [(part.members, scoring.GROUPED_BY[2:]) for part in parts if len(parts) > 1]
        for members, fields in choices:
            groups = scoring.summarize(metrics, queries, instances, fields, members)
            first = results[0].metrics["AP"][members] if results else None
            difference = None if first is None else compare_means(first, metrics["AP"][members], instances[members])
            of_parts.append(PartScores(groups, difference))
        if len(parts) == 1:  # the same as all, which takes a tenth of the time to score again
            groups = {name: values for name, values in of_parts[0].groups.items() if name[:4] not in ("set:", "spli")}
            of_parts.append(PartScores(groups, of_parts[0].difference))
        results.append(Scores(run, metrics, of_parts[0], of_parts[1:], findings))
        if len(args.runs) > 1:
            del hits, rank  # and the features, before those of the next run are read: only a single run is drawn

    chosen_queries = choose_queries(args, task, scored, results[0].metrics["AP"]) if args.preview else {}
    if args.report:
        write_whole(args.report, make_report(args, task, parts, results, notes))
    if args.per_query:
        write_whole(args.per_query, make_csv(queries, results))
    columns = args.metrics or ["mAP", "hit@1", "hit@5", "hit@10", "MRR"]
    if args.table:
        text = make_table(*table_blocks(results, parts, columns), os.path.splitext(args.table)[1].lower())
        write_whole(args.table, text.encode("utf-8", "backslashreplace"))
    if args.qrels:
        with whole_file(args.qrels) as file:
            file.writelines(trec_qrels(task))
    if args.trec:
        with whole_file(args.trec) as file:
            file.writelines(trec_run(task, rank(range(len(task.queries)))))

    if len(results) == 1:
        print_scores(results[0], parts, args.metrics)
    else:
        print_comparison(results, parts, columns)
    print_findings(notes, noticed="left out")
    for scores in results:
        of_run = f" of {scores.run.name}" * (len(results) > 1)
        print_findings(scores.findings, skipped=f"faults{of_run}", noticed=f"worth knowing{of_run}")
    written = [path for path in outputs[:-1] if path]
    if written:
        print(f"\nwrote {', '.join(written)}")
    if args.preview:  # last, since its images may not be there
        pages = draw_rankings(chosen_queries, dict(rank(list(chosen_queries))), task, base_path)
        names = page_names(args.preview, len(pages))
        check_outputs([*outputs[:-1], *names], inputs)
        check_no_image(names, [*task.annotations, *task.others], base_path)
        print(f"\nwrote {', '.join(write_pages(args.preview, pages))}")
    return 1 if any(scores.findings.skipped for scores in results) else 0


if __name__ == "__main__":
    sys.exit(main())
