"""create_instre_subsets.py: its subsets follow the protocol, recomputed here from what the generator drew; and what is
broken in copies of INSTRE is skipped and counted."""

import hashlib
import math
import os
import shutil

import numpy as np
import pytest
from conftest import load_plainly, run_here, run_script
from helpers import corners, refused
from PIL import Image

AREA = 500 * 375


def create(root, output_dir, *args):
    """Run the script: (process, XS or None, XXS or None), with paths relative to the root."""
    common = ("--instre-root", root, "--output-dir", output_dir, "--relative-paths", "--workers", "1")
    done = run_here("create_instre_subsets.py", *common, *args)
    files = [output_dir / name for name in ("instre_xs.pt", "instre_xxs.pt")]
    return (done, *(load_plainly(file) if file.exists() else None for file in files))


def key_of(path):
    return path.lower().rpartition(".")[0]


def size_of(boxes):
    return 100 * max(w * h for _, (_, _, w, h) in boxes) / AREA


def expected_subsets(truth, parts, thresholds=(15, 5), seed=0, fraction=0.5):
    """The protocol by brute force: for each threshold ({query path: name}, {gallery path: names of its objects})."""
    small = {
        path: boxes for path, boxes in truth.items() if path.split("/")[0] in parts and size_of(boxes) < thresholds[0]
    }
    queries = set()
    for folder in {path.rsplit("/", 1)[0] for path in small if "INSTRE-M" not in path}:
        paths = [path for path in small if path.rsplit("/", 1)[0] == folder]
        paths.sort(key=lambda path: hashlib.sha256(f"{seed}/{key_of(path)}".encode()).hexdigest())
        queries |= set(paths[: math.ceil(len(paths) * fraction)])
    subsets = []
    for threshold in thresholds:
        inside = {path: [name for name, _ in boxes] for path, boxes in small.items() if size_of(boxes) < threshold}
        asked = {inside[path][0] for path in inside if path in queries}
        shown = {name for path in inside if path not in queries for name in inside[path]}
        kept = asked & shown
        subsets.append(
            (
                {path: names[0] for path, names in inside.items() if path in queries and names[0] in kept},
                {
                    path: [name for name in names if name in kept]
                    for path, names in inside.items()
                    if path not in queries and kept & set(names)
                },
            )
        )
    return subsets


@pytest.mark.parametrize("parts", [["S1"], ["S2"], ["S1", "S2", "M"]])
@pytest.mark.parametrize("options", [{}, {"seed": 7}, {"fraction": 0.3}, {"thresholds": (10, 3)}])
def test_the_subsets_follow_the_protocol(instre, tmp_path, parts, options):
    root, truth = instre
    large, small = options.get("thresholds", (15, 5))
    args = ["--parts", *parts, "--seed", options.get("seed", 0), "--query-fraction", options.get("fraction", 0.5)]
    args += ["--xs-threshold", large, "--xxs-threshold", small]
    done, *subsets = create(root, tmp_path, *args)
    assert done.returncode == 0, done.stderr
    ids = {}
    expected = expected_subsets(truth, {f"INSTRE-{part}" for part in parts}, **options)
    for annotations, (queries, gallery), set_name in zip(subsets, expected, ("INSTRE-XS", "INSTRE-XXS")):
        assert {path for path, e in annotations.items() if e["is_query"]} == set(queries)
        assert {path for path, e in annotations.items() if not e["is_query"]} == set(gallery)
        assert queries
        for path, entry in annotations.items():
            assert entry["set"] == set_name
            assert entry["obj_name"] == path.split("/")[1]
            boxes = [(name, corners(box)) for name, box in truth[path]]
            if entry["is_query"]:
                assert entry["bbox"] == max((box for _, box in boxes), key=lambda b: (b[2] - b[0]) * (b[3] - b[1]))
                assert "mask" not in entry
                assert ids.setdefault(queries[path], entry["ins"]) == entry["ins"]
            else:
                assert entry["bbox"] == [box for name, box in boxes if name in gallery[path]]
                assert entry["mask"] == []
                assert [ids.setdefault(name, i) for name, i in zip(gallery[path], entry["ins"])] == entry["ins"]
                assert len(entry["ins"]) == len(entry["bbox"])
    assert len(set(ids.values())) == len(ids)
    xs, xxs = subsets
    assert all(xs[path]["is_query"] == entry["is_query"] for path, entry in xxs.items())


@pytest.mark.parametrize("threshold, name", [(15, "xs"), (5, "xxs")])
def test_an_image_at_the_threshold_is_not_below_it(tmp_path, threshold, name):
    """Of 100 x 100 pixels: a box of 100 x 15 is 15 % of it, one of 100 x 14.99 less."""
    folder = tmp_path / "INSTRE-S1" / "01a_book"
    folder.mkdir(parents=True)
    for number, height in enumerate((threshold, threshold, threshold - 0.01, threshold - 0.01)):
        Image.new("RGB", (100, 100)).save(str(folder / f"{number}.png"))
        (folder / f"{number}.txt").write_text(f"0 0 100 {height}\n")
    for number in (4, 5):
        Image.new("RGB", (100, 100)).save(str(folder / f"{number}.png"))
        (folder / f"{number}.txt").write_text("0 0 10 10\n")
    create(tmp_path, tmp_path)
    found = {os.path.basename(path) for path in load_plainly(tmp_path / f"instre_{name}.pt")}
    assert found == {"2.png", "3.png", "4.png", "5.png"}


@pytest.mark.parametrize("threshold, is_there", [(100, True), (99, False)])
def test_an_object_that_fills_its_image_is_in_a_subset_of_all(copy, tmp_path, threshold, is_there):
    (copy / "INSTRE-S1" / "02b_mug" / "001.txt").write_text("0 0 500 375\n")
    _, xs, _ = create(copy, tmp_path, "--xs-threshold", threshold)
    assert ("INSTRE-S1/02b_mug/001.jpg" in xs) == is_there


def test_a_threshold_that_looks_like_a_share_gets_a_hint(instre, tmp_path):
    done, *_ = create(instre[0], tmp_path, "--xs-threshold", 0.9, "--xxs-threshold", 0.3)
    assert "unit is percent" in done.stdout
    assert "--xs-threshold 0.9" in done.stdout
    assert "unit is percent" not in create(instre[0], tmp_path)[0].stdout


def test_the_figures_printed_are_those_of_the_tree_beside_the_published_ones(instre, tmp_path):
    root, truth = instre
    done, xs, _ = create(root, tmp_path)
    lines = done.stdout.splitlines()[1:7]
    rows = {line.split()[0]: line.split()[1:] for line in lines[::2]}
    published = {line.split()[0]: below.split()[1:] for line, below in zip(lines[::2], lines[1::2])}
    images = [boxes for path, boxes in truth.items() if path.startswith("INSTRE-S1")]
    sizes = [size_of(boxes) for boxes in images]
    objects = np.mean([len(boxes) for boxes in images])
    whole = ["4", str(len(images)), f"{objects:.2f}", f"{np.mean(sizes):.2f}", f"{np.median(sizes):.2f}"]
    assert rows["INSTRE-S1"] == whole
    sizes = [size_of(truth[path]) for path in xs]
    queries = sum(entry["is_query"] for entry in xs.values())
    assert rows["INSTRE-XS"][1:3] == [str(queries), str(len(xs) - queries)]
    assert rows["INSTRE-XS"][4:] == [f"{np.mean(sizes):.2f}", f"{np.median(sizes):.2f}"]
    assert published["INSTRE-S1"] == ["1.00", "21.00"]
    assert published["INSTRE-XS"] == ["2,428", "2,065", "1.00", "6.60"]
    assert published["INSTRE-XXS"] == ["106", "120", "1.00", "2.20"]


def test_what_cannot_be_used_is_counted_by_reason(instre, tmp_path):
    root, _ = instre
    done, _, _ = create(root, tmp_path, "--strict")
    assert done.returncode == 1
    lines = [line.strip() for line in done.stdout[done.stdout.index("skipped:") :].splitlines()]
    for reason, number in {
        ".txt that is empty": "030",
        "box of no positive size": "032",
        "box outside of its image": "033",
        "image without its .txt": "035",
        ".txt without its image": "036",
        "box that reaches out of its image, clipped": "024",
    }.items():
        (line,) = [line for line in lines if reason in line]
        assert line.startswith("1 x")
        assert f"/{number}." in line
    for reason in ("not four numbers", "image that cannot be read"):
        (line,) = [line for line in lines if reason in line]
        assert line.startswith("2 x")
    assert "._001" not in done.stdout
    assert len(lines) == 8 + 6  # and nothing else: two headings with a blank line between, another, the two files


def test_the_outputs_pass_the_verifier_and_are_the_same_from_run_to_run(instre, tmp_path):
    root, _ = instre
    contents = []
    for run, workers in ((run_here, "1"), (run_script, "2")):
        folder = tmp_path / workers
        folder.mkdir()
        args = ["--instre-root", root, "--output-dir", folder, "--workers", workers, "--parts", "M", "S2", "S1"]
        assert run("create_instre_subsets.py", *args).returncode == 0
        contents.append([(folder / name).read_bytes() for name in ("instre_xs.pt", "instre_xxs.pt")])
        for name in ("instre_xs.pt", "instre_xxs.pt"):
            done = run_here("verify_dataset.py", "--ann-file", folder / name, "--strict")
            assert done.returncode == 0, done.stdout
    assert contents[0] == contents[1]


def test_the_mask_of_queries_is_left_out(instre, tmp_path):
    """The paper's code trips over a mask that is None, not over one that is missing."""
    _, xs, _ = create(instre[0], tmp_path)
    assert {entry["is_query"] for entry in xs.values()} == {True, False}
    assert all(entry.get("mask", "none") == ("none" if entry["is_query"] else []) for entry in xs.values())


@pytest.fixture
def copy(instre, tmp_path):
    """A copy of the tree, to be changed."""
    root = tmp_path / "copy"
    shutil.copytree(str(instre[0]), str(root))
    return root


def test_other_instances_change_nothing(copy, instre, tmp_path):
    _, whole, _ = create(instre[0], tmp_path)
    shutil.rmtree(str(copy / "INSTRE-S1" / "01a_canada_book"))
    _, less, _ = create(copy, tmp_path)
    assert less == {path: entry for path, entry in whole.items() if "01a_canada_book" not in path}


def test_an_instance_without_both_roles_is_left_out(copy, tmp_path):
    for path in (copy / "INSTRE-S1" / "02a_red_car").glob("*"):
        if path.name not in ("001.jpg", "001.txt"):
            path.unlink()
    done, xs, _ = create(copy, tmp_path)
    assert done.returncode == 0
    assert not [path for path in xs if "02a_red_car" in path]
    assert [path for path in xs if "02b_mug" in path]


def test_ids_come_from_number_and_letter(copy, tmp_path):
    before = {p.split("/")[1]: e["ins"] for p, e in create(copy, tmp_path)[1].items() if e["is_query"]}
    (copy / "INSTRE-S1" / "02b_mug").rename(copy / "INSTRE-S1" / "02B-another_name")
    (copy / "INSTRE-S1" / "02a_red_car").rename(copy / "INSTRE-S1" / "a name")
    done, xs, _ = create(copy, tmp_path)
    after = {p.split("/")[1]: e["ins"] for p, e in xs.items() if e["is_query"]}
    assert after["02B-another_name"] == before["02b_mug"]
    assert after["01a_canada_book"] == before["01a_canada_book"]
    assert len(set(after.values())) == 4
    shutil.copytree(str(copy / "INSTRE-S1" / "01b_tea_box"), str(copy / "INSTRE-S1" / "01b_tea_box_2"))
    done, xs, _ = create(copy, tmp_path)
    assert "number and letter of another: INSTRE-S1/01b_tea_box_2" in done.stdout


@pytest.mark.parametrize("missing", ["S1", "S2", "M"])
def test_a_missing_part_is_named(copy, tmp_path, missing):
    shutil.rmtree(str(copy / f"INSTRE-{missing}"))
    done, xs, _ = create(copy, tmp_path, "--parts", "S1", "S2", "M")
    refused(done, f"INSTRE-{missing} is missing", "--instre-root")
    assert xs is None


def test_a_root_without_usable_images_is_an_error(tmp_path):
    (tmp_path / "INSTRE-S1").mkdir()
    done, _, _ = create(tmp_path, tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: nothing was found under {tmp_path}")
    assert os.listdir(str(tmp_path)) == ["INSTRE-S1"]


@pytest.mark.parametrize(
    "args",
    [
        *(["--xs-threshold", value] for value in ("0", "nan")),
        *(["--query-fraction", value] for value in ("1", "x")),
        ["--xxs-threshold", "20"],
        ["--parts", "S3"],
    ],
)
def test_bad_arguments_exit_with_2(instre, tmp_path, args):
    assert create(instre[0], tmp_path, *args)[0].returncode == 2
