"""The README, run: every command of it, and every Python block, on the sample. What it shows is what comes out."""

import importlib.util
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, SCRIPTS, load_plainly, run_script
from PIL import Image

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)

# What the README shows was made with the pinned versions; older ones decode and draw a little differently.
IS_PINNED = sys.version_info >= (3, 11)


@pytest.fixture(scope="module")
def folder(voxdet, instre, tmp_path_factory):
    """A folder with the sample in it, where the commands of the README have been run: (folder, (command, output)s)."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "sample").mkdir()
    (folder / "sample" / "INSTRE").symlink_to(instre[0])
    (folder / "sample" / "VoxDet").mkdir()
    for name in ("OWID", "RoboTools"):
        (folder / "sample" / "VoxDet" / name).symlink_to(voxdet[0] / name)
    (folder / "sample" / "VoxDet" / "BOP").mkdir()
    (folder / "sample" / "VoxDet" / "BOP" / "lmo").symlink_to(voxdet[0] / "RoboTools")
    runs = []
    for language, text in BLOCKS:
        if language == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, _, shown = part.partition("\n")
                runs.append((command, shown, run_command(command, folder)))
    return folder, runs


def run_command(command, folder):
    interpreter, script, *arguments = command.split()
    assert interpreter == "python"
    done = run_script(script, *arguments, cwd=str(folder))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_command_prints_what_the_readme_shows(folder):
    _, runs = folder
    assert {command.split()[1] for command, _, _ in runs} >= set(SCRIPTS)
    for command, shown, output in runs:
        shown, output = shown.splitlines(), output.splitlines()
        assert [steady(line) for line in output[: len(shown)]] == [steady(line) for line in shown], command


def steady(line):
    line = re.sub(r"\d+ kB in [\d.,]+ s", "# kB in # s", line)
    return line if IS_PINNED else re.sub(r"[\d.,]+", "#", line)


def test_each_python_block_runs(folder, monkeypatch, capsys):
    """One after the other, as a reader pastes them; but for the example, which is a script that a command runs."""
    monkeypatch.chdir(str(folder[0]))
    names, blocks = {}, [text for language, text in BLOCKS if language == "python"]
    example = [text for text in blocks if "parse_args" in text]
    assert len(blocks) >= 4
    assert len(example) == 1
    assert (ROOT / "examples" / "colour_features.py").read_text().endswith(example[0])
    for text in blocks:
        if text not in example:
            exec(compile(text, "README.md", "exec"), names)

    annotations = load_plainly("anns.pt")
    queries = [path for path, entry in annotations.items() if entry["is_query"]]
    assert list(names["queries"]) == queries
    assert names["path"] == queries[0]
    x1, y1, x2, y2 = annotations[queries[0]]["bbox"]
    ys, xs = np.nonzero(names["mask"])
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x1, y1, x2, y2)
    with Image.open("query.png") as drawn:
        assert drawn.size == (x2 - x1, y2 - y1)
    assert len(names["pairs"]) == 2 * sum(path.startswith("sample/VoxDet/OWID") for path in names["queries"]) - 2 * 8
    assert names["query_mask"].shape == names["query_crop"].size[::-1]
    assert names["box"] in [box for entry in annotations.values() if not entry["is_query"] for box in entry["bbox"]]
    counts = {}
    for entry in annotations.values():
        for instance in [] if entry["is_query"] else entry["ins"]:
            counts[entry["set"], instance] = counts.get((entry["set"], instance), 0) + 1
    assert dict(names["shown"]) == counts
    assert f"less: {sum(number < 5 for number in counts.values())}" in capsys.readouterr().out


def test_commands_within_sentences_run_too(folder):
    folder, _ = folder
    annotations = load_plainly(folder / "anns.pt")
    gallery = [path for path, entry in annotations.items() if not entry["is_query"]]
    rankings = {path: gallery for path, entry in annotations.items() if entry["is_query"]}
    (folder / "results.json").write_text(json.dumps(rankings))
    scores = "evaluate_retrieval.py --ann-file anns.pt --features features.pt objects.pt --per-query queries.csv"
    run_command(f"python {scores}", folder)
    (folder / "old.pt").write_bytes((folder / "anns.pt").read_bytes())
    for name, paths in (
        ("queries", "INSTRE-S1/01a_canada_book/001.jpg"),
        ("gallery", "INSTRE-S1/01a_canada_book/003.jpg"),
    ):
        (folder / f"{name}.txt").write_text(paths)
    commands = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        commands += re.findall(r"`(python [^`]+)`|^    (python .*)$", text, re.MULTILINE)
    assert len(commands) >= 6
    for command in map("".join, commands):
        if "plot_sizes" not in command or importlib.util.find_spec("matplotlib"):
            run_command(command.replace("/path/to", "sample"), folder)
    for target in set(re.findall(r"(?:`|^    )make (\w+)", README, re.MULTILINE)):
        done = subprocess.run(["make", "--dry-run", target], cwd=str(ROOT), stderr=subprocess.PIPE)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["preview.png", "worst.png"])
def test_the_pictures_are_what_their_commands_draw(folder, name):
    with Image.open(str(folder[0] / name)) as drawn, Image.open(str(ROOT / "pictures" / name)) as shown:
        assert drawn.size == shown.size
        difference = np.abs(np.asarray(drawn, dtype=int) - np.asarray(shown, dtype=int)).mean()
        assert difference < (1 if IS_PINNED else 10)


def test_the_table_of_fields_is_what_the_writer_writes(folder):
    """Every field of every entry, here and in INSTRE's files, stands in the table, and no other one."""
    annotations = load_plainly(folder[0] / "anns.pt")
    annotations.update(load_plainly(folder[0] / "instre_xs.pt"))
    written = {field for entry in annotations.values() for field in entry}
    table = README.partition("## The annotation file")[2].partition("```")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == written


def test_links_to_files_lead_somewhere():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"\]\((?!http)([^)]+)\)", text):
            path, _, anchor = name.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), name
            if anchor:
                titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], name
        for name in re.findall(r"`((?:docs|tests|examples)/[\w.]+)`", text):
            assert (ROOT / name).exists(), name


def test_options_that_the_pages_speak_of_exist():
    """Those of the scripts are in docs/reference.md, as test_reference.py sees to; the examples have their own."""
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    helps = [run_script(f"examples/{name}.py", "--help").stdout for name in ("colour_features", "plot_sizes")]
    helps.append((ROOT / "examples" / "backbone_features.py").read_text())
    for page in PAGES:
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text(encoding="utf-8")):
            assert any(re.search(rf"{option}\b", text) for text in (reference, *helps)), option
