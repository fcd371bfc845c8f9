"""evaluate_retrieval.py: its report, its tables, several runs side by side, and what it refuses to score."""

import csv
import io
import json
import random
import re

import numpy as np
import pytest
import torch
from conftest import ROOT, run_here
from helpers import (
    any_set,
    average_precision,
    by_cosine,
    gallery_of,
    queries_of,
    random_annotations,
    random_vectors,
    refused,
    relevant_paths,
    save,
    score,
    with_splits,
    write_json,
)

# -------------------------------------------------------------------------------------------------------------- one run


def test_the_report_says_what_was_scored(tmp_path):
    annotations = with_splits(random_annotations(35))
    run = write_json(tmp_path, {query: [] for query in queries_of(annotations)}, "run.json")
    args = ("--set", "RoboTools", "--split", "test")
    done, report, rows = score(tmp_path, annotations, "--rankings", run, *args)
    assert (
        report["scored"].items()
        >= {
            "annotation_file": str(tmp_path / "anns.pt"),
            "set": "RoboTools",
            "split": "test",
            "queries": 10,
            "queries_without_relevant_images": 2,
            "gallery_images": 60,
            "version": run_here("evaluate_retrieval.py", "--version").stdout.split()[-1],
        }.items()
    )
    assert report["scored"]["runs"] == [{"kind": "rankings", "file": str(run), "name": "run"}]
    assert len(rows) == 10


def test_the_report_keeps_faults_apart_from_what_is_noticed_and_left_out(tmp_path):
    annotations = random_annotations(0)
    vectors = {path: torch.tensor(vector) for path, vector in random_vectors(annotations).items()}
    empty, missing = gallery_of(annotations)[:2]
    vectors[empty] = torch.zeros(0, 8)
    done, report, _ = score(tmp_path, annotations, "--features", vectors)
    assert (done.returncode, report["faults"]) == (0, {})
    assert list(report["noticed"].values()) == [[empty]]
    ((reason, places),) = report["left_out"].items()
    assert "without relevant gallery images" in reason
    assert len(places) == 4  # two queries of the instance of each set that is shown nowhere
    del vectors[missing]
    done, report, _ = score(tmp_path, annotations, "--features", vectors)
    assert (done.returncode, list(report["faults"].values())) == (1, [[missing]])


@pytest.mark.parametrize(
    "change",
    [
        {"ins": None},
        {"mask": None},
        *({"mask": [mask]} for mask in (None, 5, {}, {"size": "ab"}, {"size": [48]}, {"size": [-48, 64]})),
    ],
    ids=str,
)
def test_an_annotation_file_with_errors_is_not_scored(tmp_path, change):
    entries = any_set("OWID")
    entries["g0.png"].update(change)
    refused(score(tmp_path, entries, "--rankings", {"q0.png": ["g0.png"]})[0], "verify_dataset.py")


def test_the_example_of_the_readme_finds_most_of_the_sample(voxdet, sample_file, tmp_path, monkeypatch):
    """Colours nearly suffice for the sample. The README shows the example as it is."""
    example = ROOT / "examples" / "colour_features.py"
    assert example.read_text().split('"""')[2].strip() in (ROOT / "README.md").read_text()
    monkeypatch.chdir(voxdet[0])
    features = tmp_path / "features.pt"
    assert run_here(example, sample_file, features).returncode == 0
    done, report, _ = score(tmp_path, sample_file, "--features", features)
    assert done.returncode == 0
    assert report["groups"]["all"]["mAP"] > 0.7  # by chance: about 0.5


# ---------------------------------------------------------------------------------------------------- runs side by side


def three_runs(folder, seed=50, instances=11):
    """Three runs of one file, the third one features: (annotations, options, query -> AP of each)."""
    annotations = random_annotations(seed, queries=60, instances=instances, sets=("RoboTools",))
    gallery, vectors = gallery_of(annotations), random_vectors(annotations, seed)
    relevant = {query: relevant_paths(annotations, query) for query in queries_of(annotations)}
    ranked = []
    for number in range(2):
        rng = random.Random(number)
        gain = 0.1 + 0.2 * number
        ranked.append({q: sorted(gallery, key=lambda p: rng.random() - gain * (p in relevant[q])) for q in relevant})  # noqa: B023
    ranked.append({query: by_cosine(query, gallery, vectors) for query in relevant})
    np.savez(str(folder / "c.npz"), **vectors)
    options = ["--ann-file", save(folder, annotations), "--rankings", write_json(folder, ranked[0], "a.json")]
    options += [write_json(folder, ranked[1], "b_2.json"), "--features", folder / "c.npz"]
    precisions = [{q: average_precision(run[q], relevant[q]) for q in run if relevant[q]} for run in ranked]
    return annotations, options, precisions


def resampled_differences(annotations, first, second, resamples=4000):
    """Mean differences over instances drawn with replacement, in a loop."""
    by_instance = {}
    for query in first:
        by_instance.setdefault(annotations[query]["ins"], []).append(second[query] - first[query])
    rng, groups, means = random.Random(1), list(by_instance.values()), []
    for _ in range(resamples):
        drawn = [value for group in rng.choices(groups, k=len(groups)) for value in group]
        means.append(sum(drawn) / len(drawn))
    return np.array(means)


def test_runs_are_compared_over_instances(tmp_path):
    annotations, options, precisions = three_runs(tmp_path)
    done = run_here("evaluate_retrieval.py", *options, "--report", tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert [run["name"] for run in report["runs"]] == ["a", "b_2", "c"]
    assert report["runs"][0]["difference"] is None
    for run, precision in zip(report["runs"], precisions):
        assert run["groups"]["all"]["mAP"] == pytest.approx(np.mean(list(precision.values())))
    for run, precision in zip(report["runs"][1:], precisions[1:]):
        difference = run["difference"]
        means = resampled_differences(annotations, precisions[0], precision)
        assert difference["mean"] == pytest.approx(np.mean([precision[q] - precisions[0][q] for q in precision]))
        assert difference["interval"] == pytest.approx(np.percentile(means, (2.5, 97.5)), abs=0.004)
        p_value = min(1, 2 * min((means <= 0).mean(), (means >= 0).mean()))
        assert difference["p_value"] == pytest.approx(p_value, abs=0.04)
    lines = done.stdout.splitlines()
    assert lines[0] == "RoboTools"
    assert re.split(r"  +", lines[1].strip()) == ["mAP", "95 % interval", "hit@1", "hit@5", "hit@10", "MRR"]
    for line, run in zip(lines[2:5], report["runs"]):
        overall = run["groups"]["all"]
        low, high = overall["mAP_interval"]
        figures = [f"{100 * overall[name]:.2f}" for name in ("mAP", "hit@1", "hit@5", "hit@10", "MRR")]
        assert line.split() == [run["name"], figures[0], f"{100 * low:.2f}-{100 * high:.2f}", *figures[1:]]
        assert overall == run["parts"]["RoboTools"]["all"]
    rest = lines[lines.index(next(line for line in lines if line.startswith("mAP less that of a"))) :]
    assert re.split(r"  +", rest[0])[1:] == ["interval of the difference", "p"]
    for line, run in zip(rest[1:3], report["runs"][1:]):
        (low, high), p_value = run["difference"]["interval"], run["difference"]["p_value"]
        p_cell = "< 0.0002" if p_value < 0.0002 else f"{p_value:.4f}"
        interval = f"{100 * low:+.2f} to {100 * high:+.2f}"
        assert re.split(r"  +", line) == [run["name"], f"{100 * run['difference']['mean']:+.2f}", interval, p_cell]
        assert run["difference"] == run["differences"]["RoboTools"]


def test_a_run_does_not_differ_from_itself(tmp_path):
    _, (*options, file, _, _, _), _ = three_runs(tmp_path)
    done = run_here("evaluate_retrieval.py", *options, file, file, "--report", tmp_path / "report.json")
    assert done.returncode == 0
    run = json.loads((tmp_path / "report.json").read_text())["runs"][1]
    assert run["difference"] == {"mean": 0, "interval": None, "p_value": 1}
    assert run["name"] == str(file)  # both stems are equal


def test_too_few_instances_have_a_difference_without_an_interval(tmp_path):
    _, options, _ = three_runs(tmp_path, instances=4)
    lines = run_here("evaluate_retrieval.py", *options).stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("mAP less that of a"))
    assert all(re.split(r"  +", line)[-2:] == ["-", "-"] for line in lines[at + 1 : at + 3])


def test_tables_are_written_as_latex_markdown_and_csv(tmp_path):
    _, options, _ = three_runs(tmp_path)
    tables = {}
    for ending in ("tex", "md", "csv"):
        names = ("--names", "base_line", "ours & 50 % at 1 - 2", "c|d")
        done = run_here("evaluate_retrieval.py", *options, *names, "--table", tmp_path / f"table.{ending}")
        assert done.returncode == 0, done.stderr
        tables[ending] = (tmp_path / f"table.{ending}").read_text()
    rows = list(csv.reader(io.StringIO(tables["csv"])))
    assert [row[0] for row in rows] == ["", "base_line", "ours & 50 % at 1 - 2", "c|d"]
    assert all(len(row) == len(rows[0]) for row in rows)
    assert rows[0].count("95 % interval of mAP") == rows[0].count("95 % interval of the difference") == 1
    assert [line.split()[0] for line in done.stdout.splitlines()[2:5]] == ["base_line", "ours", "c|d"]
    lines = tables["md"].splitlines()
    assert lines[1] == "| --- |" + " ---: |" * 9
    assert [len(re.split(r"(?<!\\)\|", line)) for line in lines] == [12] * 5
    assert "c\\|d" in lines[4]
    assert rows[2][1] in lines[3]
    tex = tables["tex"].splitlines()
    assert tex[:2] == ["\\begin{tabular}{lrrrrrrrrr}", "\\toprule"]
    assert [tex[3], *tex[-2:]] == ["\\midrule", "\\bottomrule", "\\end{tabular}"]
    body = [re.split(r" (?<!\\)& ", line[: -len(" \\\\")]) for line in tex if line.endswith("\\\\")]
    assert [cells[0] for cells in body] == ["", "base\\_line", "ours \\& 50 \\% at 1 - 2", "c|d"]
    for column in range(1, 10):
        figures = [row[column].replace(" - ", "-") for row in rows[1:]]
        cells = [cells[column] for cells in body[1:]]
        is_metric = column in (1, 3, 4, 5, 6)
        best = max(figures, key=float) if is_metric else None
        for figure, cell in zip(figures, cells):
            assert (cell == f"\\textbf{{{figure}}}") == (figure == best), (figure, cell)
            plain = cell.replace("\\textbf{", "").replace("}", "").replace("$", "").replace("--", "-")
            assert plain == figure


def test_a_minus_sign_is_one_in_latex(tmp_path):
    _, (*anns, _, a, b, _, _), _ = three_runs(tmp_path)
    done = run_here("evaluate_retrieval.py", *anns, "--rankings", b, a, "--table", tmp_path / "t.tex")
    assert re.search(r"\n *a +-\d", done.stdout)
    assert re.search(r"& \$-\$\d+\.\d\d & \$-\$\d+\.\d\d to ", (tmp_path / "t.tex").read_text())


@pytest.mark.parametrize(
    "option, value, words",
    [
        ("--names", "one", "as many --names as runs, 3"),
        ("--trec", "out.run", "--trec is of one run"),
        ("--preview", "out.png", "--preview is of one run"),
        ("--table", "out.pdf", "ends in .tex, .md, .csv"),
    ],
)
def test_options_that_do_not_go_with_several_runs(tmp_path, option, value, words):
    done = run_here("evaluate_retrieval.py", *three_runs(tmp_path)[1], option, tmp_path / value)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_the_table_of_queries_has_the_runs_in_the_order_of_the_options(tmp_path):
    _, (*anns, _, a, b, _, c), precisions = three_runs(tmp_path)
    table = tmp_path / "queries.csv"
    run_here("evaluate_retrieval.py", *anns, "--features", c, "--rankings", a, b, "--per-query", table)
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    for name, precision in zip(("a", "b_2", "c"), precisions):
        assert {r["path"]: float(r["AP"]) for r in rows if r["run"] == name} == pytest.approx(precision)
    assert list(dict.fromkeys(row["run"] for row in rows)) == ["c", "a", "b_2"]


def test_faults_are_listed_with_their_run(tmp_path):
    _, options, _ = three_runs(tmp_path)
    run = json.loads((tmp_path / "b_2.json").read_text())
    run.popitem()
    write_json(tmp_path, run, "b_2.json")
    done = run_here("evaluate_retrieval.py", *options)
    assert done.returncode == 1
    assert "\nfaults of b_2:\n  1 x query without a ranking" in done.stdout
    assert "faults of a:" not in done.stdout
