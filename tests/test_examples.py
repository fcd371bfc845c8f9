"""The examples that need more than requirements.txt; they are skipped where it is not installed."""

import csv
import importlib.util
import math
import subprocess
import sys

import numpy as np
import plot_sizes
import pytest
import torch
from conftest import ROOT, load_plainly, run_here, run_script
from helpers import gallery_of, make_files, make_photograph, make_query, refused, save
from PIL import Image

EXAMPLE = ROOT / "examples" / "backbone_features.py"
MODEL = ("--model", "test_vit.r160_in1k", "--batch-size", "5", "--workers", "0", "--device", "cpu")  # 0.4 M parameters


HAS_TIMM = importlib.util.find_spec("timm") is not None

needs_timm = pytest.mark.skipif(not HAS_TIMM, reason="timm is not installed")


@pytest.mark.skipif(HAS_TIMM, reason="timm is installed")
def test_without_timm_the_example_names_it(tmp_path):
    done = run_here(EXAMPLE, "anns.pt", tmp_path / "features.npz")
    assert refused(done) == "error: timm is not installed: pip install timm"


@needs_timm
def test_what_the_backbone_cannot_describe_is_named(voxdet, sample_file, tmp_path):
    features = tmp_path / "features.npz"
    refused(run_here(EXAMPLE, tmp_path / "none.pt", features, *MODEL), "none.pt", "is missing")
    refused(run_here(EXAMPLE, sample_file, features, *MODEL, "--base-path", tmp_path), "rgb/")
    refused(run_here(EXAMPLE, sample_file, features, *MODEL, "--boxes", tmp_path / "none.pt"), "none.pt", "is missing")
    refused(run_here(EXAMPLE, sample_file, features, *MODEL, "--weights", tmp_path / "w.pth"), "w.pth", "is missing")
    refused(run_here(EXAMPLE, sample_file, features, "--model", "none"), "timm cannot make none")
    done = run_script(EXAMPLE, sample_file, features, *MODEL[:-3], "1", "--device", "cpu", "--base-path", tmp_path)
    refused(done, "rgb/")  # from a process that reads images
    assert not features.exists()


@needs_timm
def test_a_query_that_is_the_whole_image_has_no_box(tmp_path):
    """As some of INSTRE's are: box None."""
    Image.new("RGB", (40, 30)).save(str(tmp_path / "a.png"))
    Image.new("RGB", (40, 30)).save(str(tmp_path / "b.png"))
    entries = {"a.png": make_query(bbox=None), "b.png": make_photograph([1, 2], bbox=[None, (0, 0, 10, 10)])}
    files = save(tmp_path, entries), tmp_path / "f.npz"
    done = run_here(EXAMPLE, *files, *MODEL, "--base-path", tmp_path, "--boxes", "annotated")
    assert done.returncode == 0, done.stderr
    with np.load(str(files[1])) as arrays:
        assert np.isnan(arrays["boxes"]).all(axis=1).tolist() == [True, True, False]
    scored = run_here("evaluate_retrieval.py", "--ann-file", files[0], "--features", files[1])
    assert scored.returncode == 0, scored.stdout + scored.stderr


@needs_timm
@pytest.mark.parametrize("boxes", [None, "annotated", "detections.pt"])
def test_features_of_a_backbone_are_scored(voxdet, sample_file, tmp_path, monkeypatch, boxes):
    """With random weights: what is tested is that crops, boxes and paths go together."""
    monkeypatch.chdir(tmp_path)
    annotations = load_plainly(sample_file)
    gallery = gallery_of(annotations)
    detected = {path: {"bboxes": [[0, 0, 50, 50], [9.5, 20.2, 9.7, 20.4]], "scores": [1, 0.5]} for path in gallery[:-1]}
    torch.save(detected, "detections.pt")
    options = ("--base-path", voxdet[0], *MODEL, *(("--boxes", boxes) if boxes else ()))
    done = run_script(EXAMPLE, sample_file, "features.npz", *options)
    assert done.returncode == 0, done.stderr
    with np.load("features.npz") as arrays:
        paths = arrays["paths"].tolist()
        assert len(arrays["features"]) == len(paths)
        assert np.isfinite(arrays["features"]).all()
        for path, entry in annotations.items():
            expected = 1 if entry["is_query"] or not boxes else len(entry["bbox"])
            if boxes == "detections.pt" and not entry["is_query"]:
                expected = len(detected.get(path, {}).get("bboxes", []))
            assert paths.count(path) == expected
        assert ("boxes" in arrays) == bool(boxes)
    done = run_script("evaluate_retrieval.py", "--ann-file", sample_file, "--features", "features.npz", "--set", "OWID")
    missing = boxes == "detections.pt" and annotations[gallery[-1]]["set"] == "OWID"
    assert done.returncode == int(missing), done.stdout
    assert ("IoU of the first hit" in done.stdout) == bool(boxes)
    if boxes == "annotated":
        assert "IoU of the first hit: 1.0000" in done.stdout or "IoU>=0.5" in done.stdout


needs_matplotlib = pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="matplotlib is not installed")
PLOT = "examples/plot_sizes.py"


@pytest.fixture
def scored(voxdet, tmp_path, monkeypatch):
    """In an empty folder: anns.pt of the sample; a.csv of one run, and both.csv of two runs."""
    monkeypatch.chdir(tmp_path)
    options = make_files(tmp_path, voxdet[0])
    assert run_here("evaluate_retrieval.py", *options, "--per-query", "a.csv").returncode == 0
    names = ("--names", "_first", "b$c", "--per-query", "both.csv")
    assert run_here("evaluate_retrieval.py", *options, tmp_path / "rankings.json", *names).returncode == 0
    return voxdet[0]


def draw(sizes, runs):
    """The panels of the figure, and in each the label of the legend -> its line or area."""
    panels = plot_sizes.draw(sizes, runs).axes
    return [(panel, dict(zip(*reversed(panel.get_legend_handles_labels())))) for panel in panels]


def test_means_of_bins_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    sizes = [*np.exp(rng.uniform(math.log(0.02), math.log(60), 300)), 0.001, 0, 0.01, 1, 10, 100, 130]
    values = rng.random(len(sizes))
    bins = {}
    for size, value in zip(sizes, values):
        place = max(place for place in range(16) if place == 0 or size >= plot_sizes.EDGES[place])
        bins.setdefault(place, []).append(value)
    middles, means = plot_sizes.binned_means(sizes, values)
    assert np.allclose(middles, [10 ** (-2 + (place + 0.5) / 4) for place in sorted(bins)])
    assert np.allclose(means, [sum(bins[place]) / len(bins[place]) for place in sorted(bins)])
    assert [array.tolist() for array in plot_sizes.binned_means([1.5], [0.25])] == [[pytest.approx(10**0.125)], [0.25]]


def test_sizes_are_what_the_boxes_cover(scored, tmp_path):
    """Of both sets: images of OWID have masks, those of RoboTools only a header."""
    annotations = load_plainly("anns.pt")
    expected = {}
    for path, entry in annotations.items():
        if not entry["is_query"]:
            width, height = Image.open(str(scored / path)).size
            for x1, y1, x2, y2 in entry["bbox"]:
                expected.setdefault(entry["set"], []).append(100 * (x2 - x1) * (y2 - y1) / (width * height))
    sizes = plot_sizes.object_sizes(annotations, plot_sizes.size_finder(str(scored)))
    assert set(sizes) == set(expected) == {"OWID", "RoboTools"}
    for name in sizes:
        assert np.allclose(sizes[name], expected[name])
    assert set(plot_sizes.object_sizes(annotations, plot_sizes.size_finder(str(tmp_path)))) == {"OWID"}


def test_runs_are_read_from_what_evaluation_writes(scored):
    with open("a.csv", newline="") as file:
        rows = [(float(row["object_size"]), float(row["AP"])) for row in csv.DictReader(file)]
    assert plot_sizes.read_scores(["a.csv"]) == {"a": rows}
    assert plot_sizes.read_scores(["a.csv", "both.csv", "a.csv"]) == {"a": rows, "_first": rows, "b$c": rows}
    with open("a.csv") as file, open("b.csv", "w") as copy, open("unknown.csv", "w") as unknown:
        text = file.read()
        copy.write(text.replace("path,", "run,path,", 1).replace("\n", "\na,").rsplit("\n", 1)[0])
        unknown.write("AP,object_size\n1.0,\n0.5,2\n")
    assert plot_sizes.read_scores(["a.csv", "b.csv"]) == {"a.csv: a": rows, "b.csv: a": rows}
    assert plot_sizes.read_scores(["unknown.csv"]) == {"unknown": [(2, 0.5)]}


@needs_matplotlib
def test_the_figure_shows_shares_published_means_and_runs():
    sizes = {"RoboTools": [0.5, 1.2, 1.2, 30], "mine": [0.001, 130]}
    runs = {"_first": [(0.5, 0.2), (0.51, 0.4), (20, 1.0)], "b$c": [(3, 0.7)]}
    (upper, shares), (lower, lines) = draw(sizes, runs)
    assert list(shares) == [
        "RoboTools: 4 objects, mean 8.2 %",
        "RoboTools: published mean 1.1 %",
        "mine: 2 objects, mean 65 %",
    ]
    assert shares["RoboTools: published mean 1.1 %"].get_xdata() == [1.1, 1.1]
    for (label, heights), values in zip((("RoboTools: 4", [25, 50]), ("mine: 2", [50])), sizes.values()):
        (outline,) = [shape for name, shape in shares.items() if name.startswith(label)]
        corners = outline.get_xy()
        assert sorted(set(corners[:, 1].round(9))) == [0, *heights]
        for value in np.clip(values, 0.01, 100):  # it is within a bar
            assert corners[corners[:, 0] <= value * 1.001][-1, 1] > 0 or corners[corners[:, 0] >= value][0, 1] > 0
    assert list(lines) == [" _first: 3 queries", r"b\$c: 1 queries"]
    assert np.allclose(lines[" _first: 3 queries"].get_ydata(), [0.3, 1.0])
    assert np.allclose(lines[r"b\$c: 1 queries"].get_xdata(), [10**0.375])
    assert upper.get_xscale() == lower.get_xscale() == "log"
    assert upper.get_xlim() == lower.get_xlim() == (0.005, 200)
    ((alone, _),) = draw({"mine": [0.5, 2]}, {})
    assert alone.get_xlim() == (0.25, 4)
    ((tiny, _),) = draw({"mine": [0.0001]}, {})
    assert tiny.get_xlim() == (0.005, 0.02)


@needs_matplotlib
def test_the_picture_is_written(scored):
    for run, name, options in (
        (run_here, "sizes.png", []),
        (run_script, "runs.png", ["--per-query", "a.csv", "both.csv"]),
    ):
        done = run(PLOT, "anns.pt", name, "--base-path", scored, *options)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        with Image.open(name) as picture:
            assert (picture.format, picture.size) == ("PNG", (960, 840 if options else 480))


def test_what_cannot_be_drawn_is_named(scored, tmp_path):
    (tmp_path / "bad.csv").write_text("AP,object_size\n0.5,nan\n")
    (tmp_path / "other.csv").write_text("AP,size\n0.5,1\n")
    for file, word in (("bad.csv", "finite"), ("other.csv", "object_size"), ("none.csv", "No such file")):
        refused(run_here(PLOT, "anns.pt", "sizes.png", "--base-path", scored, "--per-query", file), file, word)
    refused(run_here(PLOT, "anns.pt", "a.csv.png", "--base-path", "nowhere"), "nowhere")
    refused(run_here(PLOT, "anns.pt", "bad.png", "--base-path", scored, "--per-query", "bad.png"), "input")
    assert not list(tmp_path.glob("*.png"))


def test_without_matplotlib_the_example_names_it(scored):
    code = "import runpy, sys; sys.modules['matplotlib'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    command = [sys.executable, "-c", code, ROOT / PLOT, "anns.pt", "sizes.png", "--base-path", scored]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert refused(done) == "error: matplotlib is not installed: pip install matplotlib"
