"""The figures of the paper (soir/published.py): what the scripts show of them is what stands on the pages."""

import re

import pytest
from conftest import ROOT
from helpers import MIDDLE, compressed, make_photograph, make_query, rectangle, save, score, verify

README, SCORING = (ROOT / name for name in ("README.md", "docs/scoring.md"))


def table(page, column):
    """Of the Markdown table with this column: the first cell of each row -> its cells by column."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|") and f"| {column} |" in line)
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("*") for cell in line.strip("|").split("|")])
    return {row[0]: dict(zip(rows[0][1:], row[1:])) for row in rows[2:]}


def of_set(name):
    """A query and a gallery image."""
    mask = {"mask": compressed(rectangle(*MIDDLE))} if name == "RoboTools" else {}
    return {f"{name}/q.png": make_query(1, name, **mask), f"{name}/g.png": make_photograph([1], name)}


@pytest.mark.parametrize(
    "name, row",
    [
        ("RoboTools", "**VoxDet-SoIR** (RoboTools)"),
        ("INSTRE-S1", "INSTRE (S1)"),
        ("INSTRE-XS", "INSTRE-XS"),
        ("INSTRE-XXS", "INSTRE-XXS"),
    ],
)
def test_published_figures_of_a_set_are_those_of_the_readme(tmp_path, name, row):
    cells = table(README, "detected objects per image")[row.strip("*")]
    expected = {
        "objects_per_image_mean": float(cells["annotated objects per image"]),
        "detected_per_image_mean": float(cells["detected objects per image"]),
        "object_size_mean": float(cells["object size, % of image"]),
    }
    counts = re.search(rf"^ +{name}, published +([\d,]+) +([\d,]+) ", README.read_text(encoding="utf-8"), re.MULTILINE)
    if counts:
        queries, gallery = (int(text.replace(",", "")) for text in counts.groups())
        expected.update(queries=queries, gallery_images=gallery)
    _, report = verify(save(tmp_path, of_set(name)), tmp_path, "--skip-paths")
    (figures,) = report["published"].values()
    assert figures.pop("name") == row.replace("*", "").replace(" (RoboTools)", "")
    assert figures == expected
    assert bool(counts) == (name in ("INSTRE-XS", "INSTRE-XXS"))


@pytest.mark.parametrize("name", ["RoboTools", "INSTRE-XS", "INSTRE-XXS", "PerMiR"])
def test_published_scores_of_a_set_are_those_of_the_page_on_scoring(tmp_path, name):
    cells = table(SCORING, "zero-shot")[name.replace("RoboTools", "VoxDet")]
    done, _, _ = score(tmp_path, of_set(name), "--rankings", {f"{name}/q.png": []})
    label = name.replace("RoboTools", "VoxDet-SoIR")
    printed = [line for line in done.stdout.splitlines() if line.startswith("published")]
    assert printed == [f"published mAP in %, {label}, {kind}: {cells[kind]}" for kind in ("zero-shot", "fine-tuned")]
