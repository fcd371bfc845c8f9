"""What a newcomer gets wrong in the first minute, and the next step that the scripts name."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SCRIPTS, run_here
from helpers import make_files, make_instre, refused, write_json


@pytest.fixture
def scored(tiny, tmp_path):
    """Options of an evaluation of the tiny tree: two for its annotations, two for its folder, two for rankings."""
    return make_files(tmp_path, tiny.root)


# ----------------------------------------------------------------------------------------------------------- the inputs

NEXT_STEPS = [
    "--voxdet-root",
    "--instre-root",
    "create_dataset.py makes one",
    "--rankings --features",
    "--output-file, or --coco",
]


@pytest.mark.parametrize("script, step", list(zip(SCRIPTS, NEXT_STEPS)))
def test_a_script_without_arguments_in_a_folder_without_data_names_the_next_step(tmp_path, monkeypatch, script, step):
    monkeypatch.chdir(tmp_path)
    done = run_here(script)
    assert (done.returncode, done.stdout) == (2, "")
    assert step in done.stderr
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("root", ["nowhere", "file", "C:\\data\\VoxDet"])
def test_a_root_that_is_no_folder_is_named_with_its_option(tmp_path, root):
    (tmp_path / "file").write_text("")
    for script, option in (("create_dataset.py", "--voxdet-root"), ("create_instre_subsets.py", "--instre-root")):
        line = refused(run_here(script, option, tmp_path / root), option)
        assert str(tmp_path / root).encode("unicode_escape").decode() in line or str(tmp_path / root) in line


@pytest.mark.parametrize(
    "root, args", [("a", []), (".", []), ("..", []), ("a/b/OWID", []), ("a/b/RoboTools", ["--skip-owid"])]
)
def test_a_root_one_level_too_high_or_too_deep_is_put_right(tiny, tmp_path, root, args):
    """Too high, up to three levels, as under `VoxDet/data`, where VoxDet's own README unpacks it."""
    tmp_path = tmp_path / "c"
    (tmp_path / "a").mkdir(parents=True)
    tiny.root.rename(tmp_path / "a/b")
    args = (*args, "--output-file", tmp_path / "anns.pt", "--workers", 1)
    line = refused(run_here("create_dataset.py", "--voxdet-root", tmp_path / root, *args))
    found = os.path.normpath(line.partition("Found at ")[2].partition(": try --voxdet-root ")[0])
    assert os.path.samefile(found, str(tmp_path / "a/b"))
    assert line.endswith(f": try --voxdet-root {found}")
    assert run_here("create_dataset.py", "--voxdet-root", tmp_path / "a/b", *args).returncode == 0


def test_one_set_that_lies_one_level_deeper_is_pointed_to(tiny):
    tiny.path("data").mkdir()
    tiny.path("OWID").rename(tiny.path("data/OWID"))
    line = refused(tiny.create()[0])
    assert line.endswith("Found at data/OWID: try --owid-path data/OWID")
    assert tiny.create("--owid-path", "data/OWID")[0].returncode == 0


@pytest.mark.parametrize("root", ["a", "a/b/INSTRE-S1", "a/b/INSTRE-S2"])
def test_an_instre_root_one_level_too_high_or_too_deep_is_put_right(tmp_path, root):
    make_instre(tmp_path / "a/b", parts=("INSTRE-S1", "INSTRE-S2"))
    output = ("--output-dir", tmp_path, "--workers", 1)
    line = refused(run_here("create_instre_subsets.py", "--instre-root", tmp_path / root, *output))
    assert line.endswith(f"Found at {tmp_path / 'a/b'}: try --instre-root {tmp_path / 'a/b'}")
    assert run_here("create_instre_subsets.py", "--instre-root", tmp_path / "a/b", *output).returncode == 0


def test_a_base_path_that_is_no_folder_is_named(scored):
    for script, args in (("verify_dataset.py", scored[:2]), ("evaluate_retrieval.py", scored)):
        refused(run_here(script, *args, "--base-path", "/nowhere"), "--base-path /nowhere is no folder")


@pytest.mark.parametrize("content", [{}, {"elsewhere/1.jpg": []}, {"paths": []}, {"knns": {"elsewhere/1.jpg": []}}])
def test_rankings_of_other_paths_are_refused_with_an_example_of_both(scored, tmp_path, content):
    write_json(tmp_path, content)
    found = next(iter(content.get("knns", content)), "nothing")
    refused(run_here("evaluate_retrieval.py", *scored), "expected paths like OWID/P1/3/rgb/000000.jpg", found)


def test_features_of_other_images_are_refused_with_an_example_of_both(scored, tmp_path):
    torch.save({"elsewhere/a.jpg": torch.ones(8)}, str(tmp_path / "features.pt"))
    done = run_here("evaluate_retrieval.py", *scored[:4], "--features", tmp_path / "features.pt")
    refused(done, "OWID/P1/3/rgb/000000.jpg", "elsewhere/a.jpg")


def test_features_that_are_not_there_are_told_how_to_make_them(scored, tmp_path):
    done = run_here("evaluate_retrieval.py", *scored[:2], "--features", tmp_path / "no.pt")
    refused(done, "colour_features.py shows how")


# ---------------------------------------------------------------------------------------------------------- the outputs


@pytest.mark.parametrize("name", ["000000.jpg", "anns.JSON", "anns.png"])
def test_an_output_named_like_a_file_of_the_download_is_refused(tiny, name):
    tiny.path(name).write_bytes(b"photograph")
    done = run_here("create_dataset.py", "--voxdet-root", tiny.root, "--output-file", tiny.path(name))
    refused(done, "is named like a file of the download")
    assert tiny.path(name).read_bytes() == b"photograph"


@pytest.mark.parametrize("name", ["OWID/P1/3/rgb/000000.jpg", "RoboTools/test/1/rgb/000000.png"])
def test_an_output_that_is_an_image_of_the_annotation_file_is_refused(scored, tiny, name):
    image = tiny.path(name)
    before = image.read_bytes()
    base = ("--base-path", tiny.root)
    refused(run_here("verify_dataset.py", scored[1], *base, "--report", image), "is an image of the annotation file")
    refused(run_here("evaluate_retrieval.py", *scored, "--per-query", image), "is an image of the annotation file")
    for name in ("OWID", "RoboTools"):  # whether it is scored or not
        done = run_here("evaluate_retrieval.py", *scored, "--set", name, "--per-query", image)
        refused(done, "is an image of the annotation file")
    done = run_here("convert_annotations.py", scored[1], *base, "--output-file", image)
    refused(done, "is an image of the annotation file")
    assert image.read_bytes() == before


@pytest.mark.parametrize("length", [250, 254, 400])
def test_an_output_whose_name_is_too_long_is_told_so(scored, tmp_path, length):
    done = run_here("verify_dataset.py", *scored[:4], "--report", tmp_path / ("r" * length))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "cannot" in done.stderr
    assert "name too long" in done.stderr
    assert str(tmp_path) in done.stderr


def test_a_message_that_cannot_be_printed_does_not_change_the_status(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    for script, args in (("verify_dataset.py", ["--ann-file", "nowhere.pt"]), ("create_dataset.py", [])):
        command = [sys.executable, str(ROOT / script), *args]
        with open("/dev/full", "w") as full:
            assert subprocess.run(command, cwd=str(tmp_path), stderr=full).returncode == 2


# -------------------------------------------------------------------------------------------------------- the arguments


def test_the_annotation_file_may_be_the_first_argument(scored):
    option, file, *rest = scored
    assert option == "--ann-file"
    for script, args in (("verify_dataset.py", rest[:2]), ("evaluate_retrieval.py", rest)):
        first, named = run_here(script, file, *args), run_here(script, option, file, *args)
        assert first.returncode == named.returncode == 0
        assert first.stdout == named.stdout


def test_two_annotation_files_are_one_too_many(scored, tmp_path):
    other = tmp_path / "other.pt"
    for args in ((scored[1], "--ann-file", other), ("--ann-file", other, "--ann-file", scored[1])):
        done = run_here("verify_dataset.py", *args)
        assert (done.returncode, done.stdout) == (2, "")
        assert "two annotation files are given" in done.stderr


@pytest.mark.parametrize(
    "script, typed, meant",
    [
        ("create_dataset.py", "--voxdet-rot", "--voxdet-root"),
        ("verify_dataset.py", "--bose-path", "--base-path"),
        ("evaluate_retrieval.py", "--feature", "--features"),
        ("create_instre_subsets.py", "--xs-treshold", "--xs-threshold"),
        ("convert_annotations.py", "--replace-prefx", "--replace-prefix"),
    ],
)
def test_a_mistyped_option_is_told_which_one_may_be_meant(script, typed, meant):
    done = run_here(script, f"{typed}x", "a")
    assert done.returncode == 2
    assert f"did you mean {meant}?" in done.stderr


@pytest.mark.parametrize(
    "script, option",
    [
        ("create_dataset.py", "--output-file"),
        ("create_dataset.py", "--owid-path"),
        ("verify_dataset.py", "--report"),
        ("verify_dataset.py", "--detections"),
        ("evaluate_retrieval.py", "--table"),
        ("convert_annotations.py", "--coco"),
        ("create_instre_subsets.py", "--query-list"),
    ],
)
def test_an_empty_name_is_a_variable_that_nobody_has_set(scored, tmp_path, monkeypatch, script, option):
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir("."))
    args = scored if script == "evaluate_retrieval.py" else scored[:2] if script[0] in "v" else []
    done = run_here(script, *args, option, "")
    assert (done.returncode, done.stdout) == (2, "")
    assert option in done.stderr
    assert sorted(os.listdir(".")) == before
