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
    page = README.read_text(encoding="utf-8")
    counts = re.search(rf"^{name} .*\n  published +([\d,]+) +([\d,]+) ", page, re.MULTILINE)
    if counts:
        queries, gallery = (int(text.replace(",", "")) for text in counts.groups())
        expected.update(queries=queries, gallery_images=gallery)
    _, report = verify(save(tmp_path, of_set(name)), tmp_path, "--skip-paths")
    (figures,) = report["published"].values()
    assert figures.pop("name") == row.replace("*", "").replace(" (RoboTools)", "")
    assert figures == expected
    assert bool(counts) == (name in ("INSTRE-XS", "INSTRE-XXS"))


COUNTS = {"RoboTools": (2000, 1580), "INSTRE-XS": (2428, 2065), "INSTRE-XXS": (106, 120), "PerMiR": (150, 450)}


def of_size(name, queries, images):
    """A set of so many queries and images, of one instance."""
    query, photograph = of_set(name).values()
    entries = {f"{name}/q{number}.png": query for number in range(queries)}
    return {**entries, **{f"{name}/g{number}.png": photograph for number in range(images)}}


@pytest.mark.parametrize("name", COUNTS)
def test_published_scores_stand_below_the_row_of_a_set_of_the_published_size(tmp_path, name):
    """The best one of each kind, and those of DINOv2 and CLIP, as the page on scoring has them."""
    cells = table(SCORING, "zero-shot")[name.replace("RoboTools", "VoxDet")]
    done, _, _ = score(tmp_path, of_size(name, *COUNTS[name]), "--rankings", {f"{name}/q0.png": []})
    lines = [line.strip() for line in done.stdout.splitlines()]
    at = next(number for number, line in enumerate(lines) if line.startswith("published"))
    assert lines[at - 1].startswith(name)
    for kind, line in zip(("zero-shot", "fine-tuned"), lines[at:]):
        best, *others = cells[kind].split(", ")
        chosen = [best, *(other for other in others if other.split()[0] in ("DINOv2", "CLIP"))]
        assert line == f"published, {kind}: {', '.join(chosen)}"
    assert not lines[at + 2].startswith("published")


@pytest.mark.parametrize(
    "queries, images, is_same",
    [(106, 120, True), (101, 114, True), (111, 126, True), (100, 120, False), (106, 113, False), (112, 120, False)],
)
def test_a_set_of_another_size_is_not_the_published_one(tmp_path, queries, images, is_same):
    annotations = of_size("INSTRE-XXS", queries, images)
    done, _, _ = score(tmp_path, annotations, "--rankings", {"INSTRE-XXS/q0.png": []})
    assert ("published, zero-shot: MaO-CLIP 71.23" in done.stdout) is is_same
    assert ("published figures are of 106 queries, 120 images, so of other data" in done.stdout) is not is_same
