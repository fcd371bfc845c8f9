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
import re
import sys
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Sequence, Tuple

import numpy as np
from PIL import Image

from soir import published
from soir.console import (
    VERSION,
    absolute_base,
    add_input_options,
    exit_status,
    instance_id,
    make_parser,
    png_name,
    positive,
)
from soir.drawing import page_names, write_pages
from soir.entry import SPLITS, instances_of
from soir.features import read_features
from soir.files import SoirError, check_no_image, check_outputs, whole_file, write_whole
from soir.findings import Findings, print_findings, print_table
from soir.forms import load_sound, size_finder
from soir.metrics import Difference, compare_means
from soir.previews import draw_rankings
from soir.protocol import RANKS, Hits, Ranking, Task, find_in_rankings, make_task
from soir.rankings import read_run
from soir.runs import trec_qrels, trec_run
from soir.scoring import choose_entries, describe_queries, find_scored, join_columns, score_queries, summarize
from soir.similarity import find_by_features, rank_by_features

TABLES = (".tex", ".md", ".csv")

# Numbers of queries -> their (number, ranking).
Rank = Callable[[Sequence[int]], Iterator[Tuple[int, Ranking]]]


class Run(NamedTuple):
    """A run to score."""

    kind: str  # "rankings" or "features"
    file: str
    name: str


class Scores(NamedTuple):
    """The scores of a run."""

    run: Run
    metrics: dict[str, np.ndarray]  # name -> float64 [scored queries]
    groups: dict[str, dict[str, Any]]  # group -> means over its queries
    difference: Difference | None  # of mAP from the first run; None for that one
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


# -------------------------------------------------------------------------------------------------------------- output


def print_summary(groups: dict[str, dict[str, Any]]) -> None:
    rows = [["", "queries", "mAP", "95 % interval", "MRR", "median rank of the first hit"]]
    for name, values in groups.items():
        rank = values["median_first_rank"]
        cells = [f"{values['queries']:,}", f"{values['mAP']:.4f}", show_interval(values["mAP_interval"])]
        rows.append([name, *cells, f"{values['MRR']:.4f}", "none" if rank is None else f"{rank:,.1f}"])
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


def show_interval(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.4f} - {interval[1]:.4f}"


def comparison_rows(results: list[Scores]) -> list[list[str]]:
    """The table of runs side by side: one row per run."""
    rows = [["", "mAP", "95 % interval", "hit@1", "hit@5", "hit@10", "MRR", "difference", "95 % interval", "p"]]
    for scores in results:
        overall, difference = scores.groups["all"], scores.difference
        cells = [f"{overall['mAP']:.4f}", show_interval(overall["mAP_interval"])]
        cells += [f"{overall[name]:.4f}" for name in ("hit@1", "hit@5", "hit@10", "MRR")]
        if difference:
            interval, p_value = difference.interval, difference.p_value
            cells.append(f"{difference.mean:+.4f}")
            cells.append("-" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}")
            cells.append("-" if p_value is None else f"{p_value:.4f}")
        else:
            cells += ["-"] * 3
        rows.append([scores.run.name, *cells])
    return rows


def make_table(rows: list[list[str]], ending: str) -> str:
    """Rows of cells, the first row being the titles, as LaTeX, Markdown or CSV."""
    if ending == ".csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue()
    if ending == ".md":
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        return "\n".join([lines[0], "|---" + "|---:" * (len(rows[0]) - 1) + "|", *lines[1:]]) + "\n"
    lines = [" & ".join(map(escape_latex, row)) + r" \\" for row in rows]
    columns = "l" + "r" * (len(rows[0]) - 1)
    parts = [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\hline",
        lines[0],
        r"\hline",
        *lines[1:],
        r"\hline",
        r"\end{tabular}",
    ]
    return "\n".join(parts) + "\n"


def escape_latex(text: str) -> str:
    text = re.sub(r"[\\~^]", lambda match: rf"\char{ord(match.group())} ", text)
    text = re.sub(r"[&%$#_{}]", lambda match: "\\" + match.group(), text)
    return re.sub(r"^(\d\.\d{4}) - (\d\.\d{4})$", r"\1 -- \2", text)  # an interval


def print_published(sets: list[str]) -> None:
    """The published mAP of each set that has some."""
    for name in filter(published.MAP.get, sets):
        print()
        for kind, values in published.MAP[name].items():
            label = published.FIGURES.get(name, {}).get("name", name)
            figures = ", ".join(f"{model} {value:.2f}" for model, value in values.items())
            print(f"published mAP in %, {label}, {kind}: {figures}")


def make_report(
    args: argparse.Namespace, task: Task, scored: np.ndarray, results: list[Scores], notes: Findings
) -> bytes:
    """What was scored, and the scores of all groups, as JSON."""
    about = {
        "annotation_file": args.ann_file,
        "set": args.set,
        "split": args.split,
        "queries": len(scored),
        "queries_without_relevant_images": len(task.queries) - len(scored),
        "gallery_images": len(task.gallery),
        "runs": [scores.run._asdict() for scores in results],
        "version": VERSION,
    }
    report: dict[str, Any] = {"scored": about, "left_out": notes.noticed}
    if len(results) == 1:
        findings = results[0].findings
        report.update(groups=results[0].groups, faults=findings.skipped, noticed=findings.noticed)
    else:
        report["runs"] = [
            {
                "name": scores.run.name,
                "groups": scores.groups,
                "difference": scores.difference._asdict() if scores.difference else None,
                "faults": scores.findings.skipped,
                "noticed": scores.findings.noticed,
            }
            for scores in results
        ]
    return json.dumps(report, indent=1).encode()


def make_csv(queries: dict[str, list[Any]], results: list[Scores]) -> bytes:
    """The scores, one line per query; of several runs one after the other, with the name of the run first."""
    most = max((scores.metrics for scores in results), key=len)  # only runs with boxes have IoUs
    unknown: dict[str, Any] = dict.fromkeys(most, [math.nan] * len(queries["path"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run"] * (len(results) > 1) + list(join_columns(queries, most)))
    for scores in results:
        metrics: dict[str, Any] = {name: values.tolist() for name, values in scores.metrics.items()}
        metrics["first_rank"] = [rank if math.isinf(rank) else int(rank) for rank in metrics["first_rank"]]
        for row in zip(*join_columns(queries, {**unknown, **metrics}).values()):
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


# -------------------------------------------------------------------------------------------------------------- script


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
    parser = make_parser(
        "Score retrieval runs on an annotation file.",
        "0 fine, 1 a run has faults, which are listed, 2 it could not be scored",
    )
    add = add_input_options(parser)
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
    add("--qrels", metavar="FILE", help="write what is relevant as TREC qrels")
    add("--trec", metavar="FILE", help="write the run as a TREC run (of one run)")
    add = parser.add_argument_group("preview (of one run)").add_argument
    text = "draw queries with what was retrieved: right in green, wrong in red, boxes of the run dashed in yellow"
    add("--preview", type=png_name, metavar="FILE.png", help=text)
    add("--worst", type=positive, metavar="K", help="the K queries of lowest AP (default: 5; with --instances, all)")
    add(
        "--instances", type=instance_id, nargs="+", metavar="ID", help="the queries of these instances, the worst first"
    )
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


@exit_status()
def main() -> int:
    args = parse_args()
    outputs = [args.report, args.per_query, args.table, args.qrels, args.trec, args.preview]
    inputs = [args.ann_file, *(file for _, file in args.runs)]
    check_outputs(outputs, inputs)
    base_path = absolute_base(args.base_path)
    find_size = size_finder(base_path)
    annotations = load_sound(args.ann_file, find_size)
    task = make_task(*choose_entries(annotations, args.ann_file, args.set, args.split), find_size)
    check_no_image(outputs, [*task.annotations, *task.others], base_path)
    notes = Findings()
    scored = find_scored(task, notes)
    queries = describe_queries(task, scored)
    instances = task.instances[scored]

    results: list[Scores] = []
    for run in name_runs(args.runs, args.names):
        findings = Findings()
        hits, rank = find_hits(run, task, findings)
        metrics = score_queries(hits, task, scored, run.file, findings)
        difference = compare_means(results[0].metrics["AP"], metrics["AP"], instances) if results else None
        results.append(Scores(run, metrics, summarize(metrics, queries, instances), difference, findings))
        if len(args.runs) > 1:
            del (
                hits,
                rank,
            )  # and the features, before those of the next run are read: only a single run is drawn

    pages: list[Image.Image] = []
    if args.preview:
        chosen = choose_queries(args, task, scored, results[0].metrics["AP"])
        pages = draw_rankings(chosen, dict(rank(list(chosen))), task, base_path)
        names = page_names(args.preview, len(pages))
        check_outputs([*outputs[:-1], *names], inputs)
        check_no_image(names, [*task.annotations, *task.others], base_path)
    if args.report:
        write_whole(args.report, make_report(args, task, scored, results, notes))
    if args.per_query:
        write_whole(args.per_query, make_csv(queries, results))
    if args.table:
        text = make_table(comparison_rows(results), os.path.splitext(args.table)[1].lower())
        write_whole(args.table, text.encode("utf-8", "backslashreplace"))
    if args.qrels:
        with whole_file(args.qrels) as file:
            file.writelines(trec_qrels(task))
    if args.trec:
        with whole_file(args.trec) as file:
            file.writelines(trec_run(task, rank(range(len(task.queries)))))
    drawn = write_pages(args.preview, pages) if pages else []

    if len(results) == 1:
        print_summary(results[0].groups)
    else:
        print_table(comparison_rows(results))
    print_published(list(dict.fromkeys(queries["set"])))
    print_findings(notes, noticed="left out")
    for scores in results:
        of_run = f" of {scores.run.name}" * (len(results) > 1)
        print_findings(scores.findings, skipped=f"faults{of_run}", noticed=f"worth knowing{of_run}")
    written = [path for path in outputs[:-1] if path] + drawn
    if written:
        print(f"\nwrote {', '.join(written)}")
    return 1 if any(scores.findings.skipped for scores in results) else 0


if __name__ == "__main__":
    sys.exit(main())
