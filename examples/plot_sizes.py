"""Draw how large the objects of each set are, and with scores of evaluate_retrieval.py, AP against that size.

In   an annotation file, and its images where entries have no masks; perhaps files of evaluate_retrieval.py --per-query
Out  a PNG: shares of the objects by size, the published mean of a set as a line; below, one line of AP per run

    python examples/plot_sizes.py anns.pt sizes.png --base-path DIR --per-query a.csv b.csv

The size of an object is the share of the image, in %, that its box covers. Of a query, it is the mean over the objects
of the gallery that show its instance. A run is named by the column `run`, or by its file if there is none.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
from collections import Counter
from typing import Any

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import soir.startup  # noqa: F401

from soir import geometry, published
from soir.console import absolute_base, exit_status, png_name
from soir.entry import Annotations, set_of
from soir.files import SoirError, check_outputs, write_whole
from soir.findings import printable
from soir.forms import SizeFinder, load_sound, size_finder, size_of_image

EDGES = np.geomspace(0.01, 100, 17)  # of the bins of AP, in %: four for a factor of ten; histograms have twice as many


def object_sizes(annotations: Annotations, find_size: SizeFinder) -> dict[str, list[float]]:
    """Set -> sizes of the objects of its gallery. Images that have no masks and cannot be read are left out."""
    sizes: dict[str, list[float]] = {}
    for path, entry in annotations.items():
        if not entry["is_query"]:
            size = size_of_image(path, entry, find_size)
            shares = [geometry.share(box, size) for box in entry["bbox"]] if size else []
            sizes.setdefault(set_of(entry) or "(none)", []).extend(shares)
    return {name: shares for name, shares in sizes.items() if shares}


def read_scores(files: list[str]) -> dict[str, list[tuple[float, float]]]:
    """Name of a run -> (object size, AP) of its queries; of equal names, with the file before. Raises SoirError."""
    runs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for file in dict.fromkeys(files):
        stem = os.path.splitext(os.path.basename(file))[0]
        try:
            with open(file, newline="", encoding="utf-8-sig") as lines:
                for row in csv.DictReader(lines):
                    scores = runs.setdefault((file, row.get("run") or stem), [])
                    if row["object_size"]:  # it is empty if nobody knows the size
                        scores.append((float(row["object_size"]), float(row["AP"])))
                        if not np.isfinite(scores[-1]).all():
                            raise ValueError("a size or an AP is not finite")
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise SoirError(f"{file} is no file of evaluate_retrieval.py --per-query: {error!r}") from error
    count = Counter(name for _, name in runs)
    return {name if count[name] == 1 else f"{file}: {name}": scores for (file, name), scores in runs.items() if scores}


def binned_means(sizes: Any, values: Any) -> tuple[np.ndarray, np.ndarray]:
    """(middles of the bins of EDGES that hold a size, means of their values); the outer bins take what is beyond."""
    bins = np.clip(np.searchsorted(EDGES, sizes, side="right") - 1, 0, len(EDGES) - 2)
    counts, sums = (np.bincount(bins, weights, minlength=len(EDGES) - 1) for weights in (None, values))
    held = counts > 0
    return np.sqrt(EDGES[:-1] * EDGES[1:])[held], sums[held] / counts[held]


def draw(sizes: dict[str, list[float]], runs: dict[str, list[tuple[float, float]]]) -> Any:
    """The figure. Raises ModuleNotFoundError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here, as all else can be used without it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7 if runs else 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2 if runs else 1, sharex=True, squeeze=False)[:, 0]
    fine = np.geomspace(EDGES[0], EDGES[-1], 2 * len(EDGES) - 1)
    for number, (name, shares) in enumerate(sizes.items()):
        label, shown = f"{name}: {len(shares):,} objects, mean {np.mean(shares):.2g} %", np.clip(shares, 0.01, 100)
        weights, colour = np.full(len(shares), 100 / len(shares)), f"C{number % 10}"
        for kind, look in (("stepfilled", {"alpha": 0.2}), ("step", {"label": as_label(label), "linewidth": 1.5})):
            panels[0].hist(shown, fine, weights=weights, histtype=kind, color=colour, **look)
        mean = published.FIGURES.get(name, {}).get("object_size_mean")
        if mean:
            panels[0].axvline(mean, color=colour, linestyle="--", label=f"{name}: published mean {mean} %")
    for number, (name, scores) in enumerate(runs.items()):
        label, colour, marker = as_label(f"{name}: {len(scores):,} queries"), f"C{number % 10}", "os^Dv"[number % 5]
        panels[1].plot(*binned_means(*zip(*scores)), color=colour, marker=marker, label=label)
    drawn = [size for shares in sizes.values() for size in shares] + [s for scores in runs.values() for s, _ in scores]
    drawn += [published.FIGURES[name]["object_size_mean"] for name in sizes if name in published.FIGURES]
    ticks = [step * 10**power for power in (-2, -1, 0, 1) for step in (1, 2, 5)] + [100]
    panels[0].set(xscale="log", ylabel="share of the objects (%)", xticks=ticks)
    panels[0].set_xlim(0.5 * np.clip(min(drawn), 0.01, 100), 2 * np.clip(max(drawn), 0.01, 100))
    if runs:
        panels[1].set(ylim=(0, 1.05), ylabel="mean AP of the queries in a bin")
    panels[-1].set_xlabel("object size (% of the image that the box covers)")
    panels[-1].xaxis.set_major_formatter("{x:g}")
    for panel in panels:
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small", loc="best" if panel is panels[0] else "lower right")  # where AP is high
    return figure


def as_label(text: str) -> str:
    """Text for a legend of matplotlib, which reads formulas between dollars and leaves out what starts with _."""
    return " " * text.startswith("_") + printable(text).replace("$", r"\$")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw the object sizes of an annotation file, and AP against them.")
    add = parser.add_argument
    add("annotations", help="annotation file, anns.pt")
    add("picture", type=png_name, help="file to write, sizes.png")
    add("--base-path", metavar="DIR", help="folder that relative image paths start at (default: the current folder)")
    add("--per-query", nargs="+", default=[], metavar="FILE", help="files of evaluate_retrieval.py --per-query")
    return parser.parse_args()


@exit_status()
def main() -> None:
    args = parse_args()
    check_outputs([args.picture], [args.annotations, *args.per_query])
    find_size = size_finder(absolute_base(args.base_path))
    sizes = object_sizes(load_sound(args.annotations, find_size), find_size)
    if not sizes:
        raise SoirError(f"{args.annotations} has no object in an image of known size: name its folder by --base-path")
    picture = io.BytesIO()
    try:
        draw(sizes, read_scores(args.per_query)).savefig(picture, format="png", dpi=120)
    except ModuleNotFoundError as error:
        raise SoirError(f"{str(error.name).split('.')[0]} is not installed: pip install matplotlib") from error
    write_whole(args.picture, picture.getvalue())


if __name__ == "__main__":
    main()
