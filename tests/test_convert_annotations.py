"""convert_annotations.py: any form becomes what create_dataset.py writes; parts of a file, other paths, and COCO."""

import json
import os
import random

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from conftest import load_plainly, run_here
from helpers import (
    CORNER,
    EMPTY_QUERY,
    MIDDLE,
    annotated,
    any_set,
    authors_file,
    authors_mask,
    basic_file,
    box_of,
    coco_list,
    compressed,
    convert,
    counts_of,
    decode,
    gallery_of,
    make_photograph,
    make_query,
    pixels_of,
    queries_of,
    rectangle,
    save,
    score,
    verify,
)
from pycocotools.coco import COCO


def random_rankings(annotations):
    gallery = sorted(gallery_of(annotations))
    return {query: random.Random(query).sample(gallery, len(gallery)) for query in queries_of(annotations)}


# -------------------------------------------------------------------------------------------------------------- upgrade


def test_the_authors_file_becomes_what_create_dataset_writes(voxdet, sample_file, tmp_path):
    root, truth = voxdet
    before = save(tmp_path, authors_file(truth))
    assert verify(before, root)[0].returncode == 0
    done, after = convert(before, "--base-path", root)
    assert done.returncode == 0, done.stderr
    assert f"1 x query with an empty mask: {EMPTY_QUERY}" in done.stdout

    ours = load_plainly(sample_file)
    assert set(after) == set(ours)
    for path, entry in after.items():
        expected = {field: value for field, value in ours[path].items() if field != "split"}  # they have none
        assert entry == expected, path
        masks, sources = entry["mask"], [mask for *_, mask, _ in truth[path].get("objects", []) if mask is not None]
        if entry["is_query"]:
            masks, sources = [masks], [truth[path]["mask"]]
        assert len(masks) == len(sources)
        for mask, source in zip(masks, sources):
            assert np.array_equal(decode(mask), pixels_of(source))

    file = tmp_path / "converted.pt"
    done, report = verify(file, root, "--strict")
    assert (done.returncode, counts_of(report)) == (0, {})
    figures = []
    for scored in (file, sample_file):  # theirs names no splits, by which a train query of OWID leaves out val images
        _, report, _ = score(tmp_path, scored, "--rankings", random_rankings(ours), "--set", "RoboTools")
        figures.append(report["groups"]["all"]["mAP"])
    assert figures[0] == pytest.approx(figures[1], abs=1e-12)


def test_the_basic_form_becomes_lists_and_keeps_the_whole_image(pictures):
    before = save(pictures, basic_file())
    done, after = convert(before)
    assert done.returncode == 0, done.stderr
    assert after == {
        "q0.png": {"bbox": (20, 10, 50, 30), "ins": 7, "is_query": True, "obj_name": "mug", "set": ""},
        "q1.png": {"bbox": None, "ins": 8, "is_query": True, "set": ""},
        "q2.png": {"bbox": None, "ins": 8, "is_query": True, "set": ""},
        "g0.png": {"bbox": [(0, 0, 32, 24)], "ins": [7], "mask": [], "is_query": False, "set": ""},
        "g1.png": {"bbox": [None], "ins": [8], "mask": [], "is_query": False, "set": ""},
        "g2.png": {"bbox": [None], "ins": [7], "mask": [], "is_query": False, "set": ""},
        "g3.png": {"bbox": [(1, 2, 3, 4), (5, 6, 7, 8)], "ins": [8, 8], "mask": [], "is_query": False, "set": ""},
    }
    done, report = verify(pictures / "converted.pt", pictures, "--strict")
    assert (done.returncode, counts_of(report)) == (0, {})
    reports = [
        score(pictures, file, "--rankings", random_rankings(after))[1] for file in (before, pictures / "converted.pt")
    ]
    assert reports[0]["groups"] == reports[1]["groups"]


def test_masks_that_are_none_are_left_out(pictures):
    """The paper's code resizes a mask that is there, and trips over None."""
    entries = any_set("INSTRE-XS", (False, False), (False, False))
    for entry in entries.values():
        entry["mask"] = None
    _, after = convert(save(pictures, entries))
    assert [entry.get("mask", "none") for entry in after.values()] == ["none", [], "none", []]


@pytest.mark.parametrize("make", [authors_mask, coco_list, compressed])
@pytest.mark.parametrize("seed", range(6))
def test_masks_are_the_same_pixel_for_pixel_in_whatever_form_they_come(pictures, make, seed):
    rng = np.random.RandomState(seed)
    entries, masks = {}, {}
    for number in range(30):
        height, width = rng.randint(1, 40, 2)
        mask = rng.rand(height, width) < rng.choice([0.02, 0.3, 0.9])
        mask[rng.randint(height), rng.randint(width)] = True
        if mask.all():  # of one run, as an empty one is
            continue
        box = box_of(mask, inclusive=make is authors_mask and bool(number % 2))
        path = f"{number}.png"
        entries[path] = {"bbox": box, "mask": make(mask), "is_query": True, "ins": number, "set": "mine"}
        masks[path] = (mask, box_of(mask))
    done, after = convert(save(pictures, entries))
    assert done.returncode == 0, done.stderr
    wrong = []
    for path, (mask, box) in masks.items():
        if (
            path not in after
            or not np.array_equal(coco_mask.decode(after[path]["mask"]), mask)
            or after[path]["bbox"] != box
        ):
            wrong.append(path)
    # A mask that begins in the foreground is inverted; where that has the very same box, nothing can tell.
    ambiguous = [p for p in wrong if make is authors_mask and masks[p][0][0, 0] and same_box_inverted(masks[p][0])]
    assert wrong == ambiguous


def same_box_inverted(mask):
    if mask.all():
        return True
    inverted, box = box_of(~mask), box_of(mask)
    return inverted in (box, (*box[:2], box[2] - 1, box[3] - 1)) or box_of(~mask, True) == box


def test_what_cannot_be_upgraded_is_skipped_and_counted(pictures):
    entries = any_set("OWID")
    broken = {"size": [48, 64], "counts": [1, 2]}
    entries["q1.png"]["mask"] = broken
    entries["g1.png"].update(
        mask=[compressed(rectangle(*MIDDLE)), broken], bbox=[MIDDLE, CORNER], ins=[1, 2], num_ins=[4, 5]
    )
    entries["gone.png"] = {**entries["g0.png"], "mask": [[[20, 10, 50, 10, 50, 30]]]}
    entries["text.png"] = {**entries["g0.png"], "ins": ["1"]}
    file = save(pictures, entries)
    done, after = convert(file, "--base-path", pictures)
    assert done.returncode == 0
    assert list(after) == ["q0.png", "g0.png", "g1.png"]
    assert (after["g1.png"]["ins"], after["g1.png"]["num_ins"], len(after["g1.png"]["mask"])) == ([1], [4], 1)
    for line in (
        "1 x entry with an error (id-type, see verify_dataset.py): text.png",
        "1 x query whose mask has an error (mask-fill, see verify_dataset.py): q1.png",
        "1 x object whose mask has an error (mask-fill, see verify_dataset.py): g1.png",
        "1 x object whose mask is polygons, of an image that is not there to say how large it is (--base-path?): gone",
    ):
        assert line in done.stdout
    assert convert(file, "--base-path", pictures, "--strict")[0].returncode == 1
    assert convert(pictures / "converted.pt", "--strict", output="again.pt")[0].returncode == 0


def test_a_box_that_reaches_out_of_the_size_of_its_mask_is_not_kept(pictures):
    entries = any_set("OWID")
    entries["g1.png"]["bbox"] = [(20, 10, 90, 30)]
    done, after = convert(save(pictures, entries))
    assert list(after) == ["q0.png", "g0.png", "q1.png"]
    assert "1 x entry with an error (box-outside, see verify_dataset.py): g1.png" in done.stdout


@pytest.mark.parametrize("is_query, what", [(True, "no query"), (False, "no gallery image")])
@pytest.mark.parametrize("damage", [{"bbox": "none"}, {"mask": {"size": [48, 64], "counts": "~"}}])
def test_a_file_that_would_lose_all_its_queries_or_images_is_not_converted(pictures, is_query, what, damage):
    """As one whose boxes are x y width height would."""
    entries = any_set("mine", (True, True), (True, True))
    for entry in entries.values():
        if entry["is_query"] is is_query:
            for field, value in damage.items():
                entry[field] = value if is_query or field == "bbox" else [value] * len(entry["ins"])
    file, output = save(pictures, entries), pictures / "converted.pt"
    output.write_bytes(b"old")
    done = run_here("convert_annotations.py", "--ann-file", file, "--base-path", pictures, "--output-file", output)
    assert done.returncode == 2
    assert f"error: {what} of {file} can be used, so nothing was written" in done.stderr
    assert "skipped" in done.stdout
    assert output.read_bytes() == b"old"


def test_a_file_of_gallery_images_only_loses_no_query(pictures):
    file = save(pictures, {"g0.png": make_photograph([1], "", bbox=[(5, 5, 1, 1)])})
    done = run_here("convert_annotations.py", "--ann-file", file, "--output-file", pictures / "converted.pt")
    assert (done.returncode, "error: no gallery image of" in done.stderr) == (2, True)


def test_a_current_file_comes_out_as_it_is(sample_file, tmp_path):
    target = tmp_path / "same.pt"
    done = run_here("convert_annotations.py", "--ann-file", sample_file, "--output-file", target, "--strict")
    assert done.returncode == 0, done.stderr
    assert list(load_plainly(target).items()) == list(load_plainly(sample_file).items())
    assert "upgraded" not in done.stdout


# -------------------------------------------------------------------------------------------------------------- filters


@pytest.fixture
def sample_copy(sample_file, tmp_path):
    """The sample's file, where an output may stand beside it."""
    file = tmp_path / "anns.pt"
    file.write_bytes(sample_file.read_bytes())
    return file


def test_a_set_a_split_and_instances_can_be_chosen(voxdet, sample_copy):
    root, truth = voxdet
    done, after = convert(sample_copy, "--set", "OWID", "--split", "val", "--instances", "7", "12345")
    assert done.returncode == 0
    assert "1 x instance that is asked for, and nowhere shown: 12345" in done.stdout
    expected = {}
    for path, shown in truth.items():
        if path.startswith("OWID") and shown["split"] == "val":
            if "mask" in shown and shown["ins"] == 7:
                expected[path] = 7
            elif "objects" in shown and 7 in [o[0] for o in shown["objects"]]:
                expected[path] = [o[0] for o in shown["objects"] if o[0] == 7]
    assert {path: entry["ins"] for path, entry in after.items()} == expected
    for path in gallery_of(after):
        assert {len(after[path][field]) for field in ("bbox", "mask", "num_ins")} == {len(expected[path])}
    assert verify(sample_copy.with_name("converted.pt"), root, "--strict")[0].returncode == 0


@pytest.mark.parametrize(
    "number, expected", [(1, [0]), (2, [0, 5]), (3, [0, 3, 6]), (10, list(range(10))), (99, list(range(10)))]
)
def test_queries_are_thinned_over_the_frames_of_each_instance(pictures, number, expected):
    frames = list(range(10))
    random.Random(0).shuffle(frames)
    groups = [(name, ins) for name in ("a", "b") for ins in (1, 2)]
    entries = {f"{name}/{ins}/{frame}.png": make_query(ins, name) for frame in frames for name, ins in groups}
    entries["g0.png"] = make_photograph([1], "a")
    _, after = convert(save(pictures, entries), "--max-queries", number)
    assert list(after) == [path for path in entries if path in after]
    for name, ins in groups:
        kept = [path.split("/")[2] for path in after if path.startswith(f"{name}/{ins}/")]
        assert sorted(kept) == [f"{frame}.png" for frame in expected]
    assert "g0.png" in after


def test_instances_of_a_query_that_shows_two_are_chosen_too(pictures):
    entries = {"q0.png": make_query([1, 2]), "g0.png": make_photograph([1, 2], bbox=[MIDDLE, CORNER])}
    assert convert(save(pictures, entries))[1] == entries
    _, after = convert(pictures / "anns.pt", "--instances", "2")
    assert (after["q0.png"]["ins"], after["g0.png"]["ins"], after["g0.png"]["bbox"]) == (2, [2], [CORNER])
    entries["q1.png"] = make_query([1])  # a list of one is as good as the one
    assert convert(save(pictures, entries))[1]["q1.png"]["ins"] == 1


def test_a_set_is_named_in_any_case(pictures):
    file = save(pictures, annotated())
    assert convert(file, "--set", "robotools")[1] == convert(file, "--set", "RoboTools")[1] == convert(file)[1]


@pytest.mark.parametrize(
    "args, word",
    [(["--set", "owid"], "RoboTools"), (["--split", "train"], "train"), (["--instances", "99"], "instances")],
)
def test_filters_that_leave_nothing_are_an_error(pictures, args, word):
    done, after = convert(save(pictures, annotated()), *args)
    assert (done.returncode, after) == (2, None)
    assert word in done.stderr


# --------------------------------------------------------------------------------------------------------------- rebase


@pytest.mark.parametrize(
    "path, old, new, expected",
    [
        ("/data/VoxDet/OWID/1.jpg", "/data/VoxDet", "sample/VoxDet", "sample/VoxDet/OWID/1.jpg"),
        ("/data/VoxDet/OWID/1.jpg", "/data/VoxDet/", "sample/VoxDet/", "sample/VoxDet/OWID/1.jpg"),
        ("/data/VoxDet//OWID/1.jpg", "/data/VoxDet", "", "OWID/1.jpg"),
        ("OWID/1.jpg", "", "/data", "/data/OWID/1.jpg"),
        ("OWID/1.jpg", "OWID", "data/owid", "data/owid/1.jpg"),
        ("/OWID/1.jpg", "/", "data", "data/OWID/1.jpg"),
    ],
)
def test_the_prefix_of_the_paths_is_replaced(pictures, path, old, new, expected):
    entries = {path: annotated()["g0.png"]}
    assert list(convert(save(pictures, entries), "--replace-prefix", old, new)[1]) == [expected]


@pytest.mark.parametrize("old", ["/data/Vox", "data", "/nowhere", "VoxDet"])
def test_a_prefix_that_no_path_has_is_an_error_that_shows_one(pictures, old):
    done, after = convert(save(pictures, {"/data/VoxDet/1.jpg": annotated()["g0.png"]}), "--replace-prefix", old, "x")
    assert (done.returncode, after) == (2, None)
    assert "/data/VoxDet/1.jpg" in done.stderr


def test_other_paths_are_kept_and_counted_and_none_is_lost_in_silence(pictures):
    entry = annotated()["g0.png"]
    entries = {"old/1.png": entry, "other/2.png": entry, "new/1.png": entry}
    done, after = convert(save(pictures, entries), "--replace-prefix", "old", "new")
    assert list(after) == ["new/1.png", "other/2.png"]
    assert "1 x image whose new path is that of another: new/1.png" in done.stdout
    assert "2 x path without the prefix, kept as it is" in done.stdout


def test_polygons_get_their_size_from_the_image_at_its_new_place(pictures):
    entries = any_set("OWID")
    entries["g0.png"]["mask"] = [[[20, 10, 50, 10, 50, 30, 20, 30]]]
    file = save(pictures, {f"/old/{path}": entry for path, entry in entries.items()})
    done, after = convert(file, "--replace-prefix", "/old", pictures)
    assert "skipped" not in done.stdout
    assert np.array_equal(coco_mask.decode(after[f"{pictures}/g0.png"]["mask"][0]), rectangle(*MIDDLE))


# ----------------------------------------------------------------------------------------------------------------- COCO


def test_the_sample_as_coco_is_loaded_by_pycocotools(voxdet, sample_file, tmp_path, capsys):
    root, truth = voxdet
    target = tmp_path / "coco.json"
    args = ("--ann-file", sample_file, "--coco", target, "--base-path", root, "--strict")
    done = run_here("convert_annotations.py", *args)
    assert done.returncode == 0, done.stderr
    assert os.listdir(str(tmp_path)) == ["coco.json"]
    coco = COCO(str(target))
    assert {image["file_name"] for image in coco.imgs.values()} == set(truth)
    names = {number: category["name"] for number, category in coco.cats.items()}
    for number, image in coco.imgs.items():
        path, shown = image["file_name"], truth[image["file_name"]]
        assert (image["width"], image["height"]) == ((640, 480) if path.startswith("OWID") else (1920, 1080))
        assert (image["is_query"], image["split"]) == ("mask" in shown, shown["split"])
        name = path.split("/")[0]
        if "mask" in shown:
            x1, y1, x2, y2 = box_of(shown["mask"])
            expected = [(f"{name}/{shown['ins']}", [x1, y1, x2 - x1, y2 - y1], shown["mask"])]
        else:
            expected = [(f"{name}/{instance}", box, mask) for instance, box, mask, _ in shown["objects"]]
        records = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
        assert [(names[r["category_id"]], r["bbox"]) for r in records] == [e[:2] for e in expected]
        for record, (_, (_, _, w, h), mask) in zip(records, expected):
            assert (record["is_query"], record["split"], record["iscrowd"]) == ("mask" in shown, shown["split"], 0)
            if mask is None:
                assert (record["area"], record["segmentation"]) == (w * h, [])
            else:
                pixels = pixels_of(mask)
                assert record["area"] == pixels.sum()
                assert np.array_equal(coco.annToMask(record), pixels)
    instances = set()
    for path, shown in truth.items():
        ids = [shown["ins"]] if "mask" in shown else [instance for instance, *_ in shown["objects"]]
        instances |= {f"{path.split('/')[0]}/{instance}" for instance in ids}
    assert sorted(names.values()) == sorted(instances)


def test_coco_of_whole_images_of_no_set_and_of_images_that_are_not_there(pictures):
    entries = {**basic_file(), "gone.png": {"ins": 7}}
    target = pictures / "coco.json"
    args = ["--ann-file", save(pictures, entries), "--coco", target, "--base-path", pictures]
    done = run_here("convert_annotations.py", *args)
    assert done.returncode == 0
    assert (
        "1 x image that is not there to say how large it is, left out of COCO (--base-path?): gone.png" in done.stdout
    )
    coco = json.loads(target.read_text())
    assert [category["name"] for category in coco["categories"]] == ["7", "8"]
    boxes = {image["file_name"]: [] for image in coco["images"]}
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    for record in coco["annotations"]:
        boxes[names[record["image_id"]]].append(record["bbox"])
    whole = [[0, 0, 64, 48]]
    assert boxes == {
        "q0.png": [[20, 10, 30, 20]],
        "q1.png": whole,
        "q2.png": whole,
        "g0.png": [[0, 0, 32, 24]],
        "g1.png": whole,
        "g2.png": whole,
        "g3.png": [[1, 2, 2, 2], [5, 6, 2, 2]],
    }
    assert run_here("convert_annotations.py", *args, "--strict").returncode == 1


# --------------------------------------------------------------------------------------------------- inputs and outputs


def test_the_input_is_never_overwritten(pictures):
    file = save(pictures, annotated())
    before = file.read_bytes()
    link = pictures / "link.pt"
    link.symlink_to(file)
    for args in (["--output-file", file], ["--output-file", link], ["--coco", file]):
        assert run_here("convert_annotations.py", "--ann-file", file, *args).returncode == 2
    same = pictures / "same"
    assert run_here("convert_annotations.py", "--ann-file", file, "--output-file", same, "--coco", same).returncode == 2
    assert file.read_bytes() == before


@pytest.mark.parametrize("content", [{}, {"q0.png": 5}, [1], {"q0.png": {"ins": "x"}}, None], ids=str)
def test_what_cannot_be_converted_leaves_the_old_output(pictures, content):
    target = pictures / "converted.pt"
    target.write_text("old")
    file = pictures / "no.pt" if content is None else save(pictures, content)
    done = run_here("convert_annotations.py", "--ann-file", file, "--output-file", target)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert target.read_text() == "old"


@pytest.mark.parametrize(
    "args",
    [
        "--instances -1",
        "--instances x",
        "--max-queries 0",
        "--replace-prefix a",
        "--split dev",
        "--base-path no/folder",
        "",
    ],
)
def test_bad_arguments_exit_with_2(pictures, monkeypatch, args):
    monkeypatch.chdir(str(pictures))
    output = ["--output-file", "x.pt"] if args else []  # there must be one
    done = run_here("convert_annotations.py", "--ann-file", save(pictures, annotated()), *output, *args.split())
    assert done.returncode == 2
    assert not (pictures / "x.pt").exists()


@pytest.mark.parametrize("name", ["coco", "coco.pt"])
def test_a_coco_file_is_named_json(pictures, name):
    done = run_here("convert_annotations.py", save(pictures, annotated()), "--coco", pictures / name)
    assert done.returncode == 2
    assert "expected a name that ends in .json" in done.stderr


def test_names_of_thousands_of_digits_are_names(pictures):
    entry = {"bbox": MIDDLE, "is_query": True, "ins": 2**63 - 1, "set": "7" * 5000}
    file, coco = save(pictures, {"8" * 5000: entry, "q0.png": entry}), pictures / "coco.json"
    done, after = convert(file, "--max-queries", "1", "--coco", coco, "--base-path", pictures)
    assert done.returncode == 0, done.stderr
    assert len(after) == 1


def test_what_is_written_loads_with_torch_alone(pictures):
    convert(save(pictures, any_set("mine")))
    assert torch.load(str(pictures / "converted.pt"), weights_only=True)["q0.png"]["mask"]["size"] == [48, 64]
