"""Annotation files in the forms that people have (soir/forms.py), built here by hand: all scripts read them, and verify
names them."""

import json
import random

import numpy as np
import pytest
import torch
from conftest import load_plainly, run_here
from helpers import (
    CORNER,
    MIDDLE,
    any_set,
    authors_file,
    authors_mask,
    average_precision,
    basic_file,
    coco_list,
    compressed,
    convert,
    counts_of,
    decode,
    make_photograph,
    make_query,
    rectangle,
    save,
    score,
    verify,
)


def without_leading_zero(mask):
    """A column-major mask that begins in the foreground, and reads inverted."""
    return {**coco_list(mask), "counts": coco_list(mask)["counts"][1:]}


def of_owid(query=None, photograph=None):
    """A query and a gallery image of OWID, with a mask and a box that agree, and these fields in their place."""
    mask = compressed(rectangle(*MIDDLE))
    entries = {"q0.png": make_query(1, "OWID", mask=mask), "g0.png": make_photograph([1], "OWID", mask=[mask])}
    entries["q0.png"].update(query or {})
    entries["g0.png"].update(photograph or {})
    return entries


# ------------------------------------------------------------------------------------------------ the authors' own form


@pytest.mark.parametrize("with_empty_query", [True, False])
def test_the_authors_file_passes_with_warnings_that_count_what_is_odd(voxdet, tmp_path, with_empty_query):
    root, truth = voxdet
    file = save(tmp_path, authors_file(truth, with_empty_query))
    done, report = verify(file, root)
    assert done.returncode == 0, done.stdout
    queries = [shown for shown in truth.values() if "mask" in shown]
    expected = {
        "mask-row-major": len(queries) + with_empty_query,
        "query-box-inclusive": len(queries) + with_empty_query,
        "mask-list": sum(path.startswith("OWID/P2") for path in truth),
        "mask-polygons": 1,
        "form-num-ins": sum(path.startswith("RoboTools/test/") for path in truth),
    }
    if with_empty_query:
        expected["query-mask-empty"] = 1
    assert counts_of(report) == expected
    assert report["statistics"]["OWID"]["queries"] == 30 + with_empty_query
    assert verify(file, root, "--strict")[0].returncode == 1


def test_the_authors_file_scores_as_ours_on_the_same_images(voxdet, sample_file, tmp_path):
    """Theirs names no splits, by which a train query of OWID leaves out val images: so ours is to name none here."""
    _, truth = voxdet
    gallery = [path for path, shown in truth.items() if "objects" in shown]
    rankings = {path: random.Random(path).sample(gallery, len(gallery)) for path in truth if "mask" in truth[path]}
    without_splits = load_plainly(sample_file)
    for entry in without_splits.values():
        del entry["split"]
    expected = []
    for path, ranking in rankings.items():
        rivals = [rival for rival in ranking if rival.split("/")[0] == path.split("/")[0]]
        relevant = {rival for rival in rivals if truth[path]["ins"] in [o[0] for o in truth[rival]["objects"]]}
        if relevant:
            expected.append(average_precision(rivals, relevant))
    for annotations in (authors_file(truth, False), without_splits):
        done, report, _ = score(tmp_path, annotations, "--rankings", rankings)
        assert done.returncode == 0, done.stdout
        assert report["groups"]["all"]["mAP"] == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("make", [authors_mask, coco_list])
@pytest.mark.parametrize("box", [CORNER, MIDDLE, (0, 0, 64, 48)])
@pytest.mark.parametrize("inclusive", [0, 1])
def test_listed_masks_of_queries_are_read_in_whatever_way_their_box_confirms(pictures, make, box, inclusive):
    mask = rectangle(*box)
    query = {"bbox": (box[0], box[1], box[2] - inclusive, box[3] - inclusive), "mask": make(mask)}
    done, report = verify(save(pictures, of_owid(query)), pictures)
    assert done.returncode == 0, done.stdout
    expected = {"mask-row-major" if make is authors_mask else "mask-list"}
    expected |= {"query-box-inclusive"} if inclusive else set()
    if make is authors_mask and box == CORNER:
        expected |= {"mask-inverted"}
    if make is authors_mask and box == (0, 0, 64, 48):
        expected |= {"query-mask-empty"}  # one run: a full mask looks like an empty one, and empty ones occur
    assert set(counts_of(report)) == expected
    _, after = convert(pictures / "anns.pt")
    if "query-mask-empty" not in expected:
        assert np.array_equal(decode(after["q0.png"]["mask"]), mask)
        assert after["q0.png"]["bbox"] == box


def test_a_listed_mask_that_no_reading_brings_to_its_box_stays_an_error(pictures):
    query = {"bbox": (1, 1, 9, 9), "mask": authors_mask(rectangle(*CORNER))}
    photograph = {"bbox": [CORNER], "mask": [{"size": [48, 64], "counts": [48 * 64]}]}
    done, report = verify(save(pictures, of_owid(query, photograph)), pictures)
    assert done.returncode == 1
    assert counts_of(report) == {"mask-row-major": 1, "mask-list": 1, "query-box": 1, "mask-empty": 1}


@pytest.mark.parametrize("make", [authors_mask, without_leading_zero])
def test_an_inverted_mask_of_a_gallery_image_is_read_as_its_box_says(pictures, make):
    masks = [rectangle(*CORNER), rectangle(*MIDDLE)]
    boxes = [(0, 0, 31, 21), MIDDLE]
    photograph = {"bbox": boxes, "ins": [1, 1], "mask": [make(masks[0]), compressed(masks[1])]}
    done, report = verify(save(pictures, of_owid(photograph=photograph)), pictures)
    assert done.returncode == 0, done.stdout
    assert set(counts_of(report)) - {"mask-list", "mask-row-major"} == {"mask-inverted"}
    _, after = convert(pictures / "anns.pt")
    assert np.array_equal([decode(mask) for mask in after["g0.png"]["mask"]], masks)
    assert after["g0.png"]["bbox"] == boxes


@pytest.mark.parametrize("args", [[], ["--skip-paths"]])
@pytest.mark.parametrize(
    "polygon, check",
    [
        ([20, 10, 50, 10, 50, 30, 20, 30], None),
        ([1, 1, 9, 1, 9, 9], "gallery-box"),
        ([20, 10, 50], "mask-malformed"),
        ([20, 10, "50", 10, 50, 30], "mask-malformed"),
        ([1e300, 10, 50, 10, 50, 30], "mask-malformed"),
    ],
)
def test_polygons_are_masks_also_where_nothing_says_how_large_their_image_is(pictures, args, polygon, check):
    done, report = verify(save(pictures, of_owid(photograph={"mask": [[polygon]]})), pictures, *args)
    assert counts_of(report) == {"mask-polygons": 1, **({check: 1} if check else {})}
    assert done.returncode == bool(check)


# ------------------------------------------------------------------------------------------------------- the basic form


def test_the_basic_form_is_verified(pictures):
    done, report = verify(save(pictures, basic_file()), pictures, "--preview", pictures / "preview.png")
    assert done.returncode == 0, done.stdout
    assert counts_of(report) == {"form-set": 7, "form-role": 3, "form-label": 2, "form-box": 2, "form-single": 4}
    figures = report["statistics"][""]
    assert (figures["queries"], figures["gallery_images"], figures["objects"], figures["instances"]) == (3, 4, 5, 2)
    sizes = [25, 100, 100, 100 * 4 / (64 * 48), 100 * 4 / (64 * 48)]  # no box is the whole image
    assert figures["object_size_mean"] == pytest.approx(np.mean(sizes))
    assert "(no set)" in done.stdout
    assert (pictures / "preview.png").exists()


def test_the_whole_image_is_100_percent_also_where_images_are_not_looked_for(pictures):
    entries = {"q1.png": {"ins": 8, "is_query": True}, "g1.png": {"ins": 8}}
    done, report = verify(save(pictures, entries), pictures, "--skip-paths")
    assert (done.returncode, report["statistics"][""]["object_size_mean"]) == (0, 100)


def test_the_basic_form_is_scored(pictures):
    relevant = {"q0.png": {"g0.png", "g2.png"}, "q1.png": {"g1.png", "g3.png"}, "q2.png": {"g1.png", "g3.png"}}
    rankings = {query: random.Random(query).sample([f"g{n}.png" for n in range(4)], 4) for query in relevant}
    done, report, _ = score(pictures, basic_file(), "--rankings", rankings)
    assert done.returncode == 0, done.stdout
    expected = [average_precision(rankings[query], relevant[query]) for query in relevant]
    assert report["groups"]["all"]["mAP"] == pytest.approx(np.mean(expected))
    features = {name: torch.tensor([1.0, n]) for n, name in enumerate(basic_file())}
    done, _, _ = score(pictures, basic_file(), "--features", features)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "change, check",
    [
        ({"bbox": None}, "box-malformed"),
        ({"bbox": ...}, "field-missing"),
        ({"is_query": ...}, "field-missing"),
        ({"mask": ...}, "mask-missing"),
        ({"mask": None}, "mask-missing"),
        ({"ins": []}, "id-type"),
        ({"set": 5}, "field-type"),
    ],
)
def test_the_sets_that_are_known_keep_their_rules(pictures, change, check):
    entries = of_owid(change)
    entries["q0.png"] = {field: value for field, value in entries["q0.png"].items() if value is not ...}
    done, report = verify(save(pictures, entries), pictures)
    assert (done.returncode, counts_of(report)) == (1, {check: 1})


# ----------------------------------------------------------------------------------------------------- sets of any name


@pytest.mark.parametrize("query_masks", [(True, True), (False, False), (True, False)])
@pytest.mark.parametrize("gallery_masks", [(True, True), (False, False), (False, True)])
def test_any_name_is_a_set_and_has_masks_if_its_entries_show_them(pictures, query_masks, gallery_masks):
    file = save(pictures, any_set("my photographs", query_masks, gallery_masks))
    done, report = verify(file, pictures)
    assert done.returncode == 0, done.stdout
    mixed = len({*query_masks}) - 1 + len({*gallery_masks}) - 1
    assert counts_of(report) == ({"mask-mixed": mixed} if mixed else {})
    assert report["statistics"]["my photographs"]["queries"] == 2
    done, _, _ = score(pictures, file, "--rankings", {"q0.png": ["g0.png"], "q1.png": ["g1.png"]})
    assert done.returncode == 0


def test_masks_of_a_set_of_any_name_are_one_per_object(pictures):
    entries = any_set("mine")
    entries["g0.png"].update(bbox=[MIDDLE, CORNER], ins=[1, 1])
    done, report = verify(save(pictures, entries), pictures)
    assert (done.returncode, counts_of(report)) == (1, {"length-mismatch": 1})


@pytest.mark.parametrize("name, warned", [("owid", True), ("instre-xs", True), ("OWID2", False), ("", False)])
def test_a_name_that_differs_from_a_known_one_in_case_only_is_a_warning(pictures, name, warned):
    done, report = verify(save(pictures, any_set(name)), pictures)
    assert (done.returncode, counts_of(report)) == (0, {"set-case": 1} if warned else {})


def test_names_of_sets_are_strangers_text_and_there_may_be_thousands(pictures):
    entries = {f"{n}.png": make_query(1, f"\x1b[31m{n}") for n in range(3000)}
    entries["long.png"] = make_query(1, "x" * 100_000)
    done, report = verify(save(pictures, entries), pictures, "--skip-paths")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 1000
    assert len(report["statistics"]) == 3001
    assert "more sets" in done.stdout


# ------------------------------------------------------------------------------------------------------- whatever comes

RUBBISH = [
    None,
    ...,
    0,
    1,
    -1,
    2.5,
    True,
    "",
    "x",
    [],
    [[]],
    [1],
    [1, 2],
    [None],
    {},
    (1, 2, 3, 4),
    [(1, 2, 3, 4)],
    b"x",
]
RUBBISH += [b"x", float("nan"), 2**70, [[1, 2, 3, 4, 5, 6]], {"counts": [1], "size": [1]}]
RUBBISH += [{"size": (48, 64), "counts": [3072]}, [{"size": [48, 64], "counts": b"\xff"}]]
RUBBISH += [{"size": [48, 64], "counts": [0, 10, 3062], "transpose": False}]
FIELDS = ["bbox", "mask", "is_query", "ins", "set", "num_ins", "label", "split", "obj_name"]


@pytest.mark.parametrize("seed", range(40))
def test_any_value_in_any_field_is_read_or_refused_and_what_is_converted_passes(pictures, seed):
    rng = random.Random(seed)
    entries = {**any_set(rng.choice(["OWID", "RoboTools", "mine"])), "q2.png": basic_file()["q2.png"]}
    entries.update({"g2.png": basic_file()["g2.png"], "g3.png": basic_file()["g3.png"]})
    for entry in entries.values():
        for field in rng.sample(FIELDS, rng.randrange(3)):
            value = rng.choice(RUBBISH)
            if value is ...:
                entry.pop(field, None)
            else:
                entry[field] = value
    file, output = save(pictures, entries), pictures / "converted.pt"
    done, report = verify(file, pictures)
    assert done.returncode == bool(report["errors"])
    common = ("--ann-file", file, "--output-file", output, "--base-path", pictures)
    done = run_here("convert_annotations.py", *common, "--coco", pictures / "coco.json")
    assert done.returncode in (0, 2)
    if done.returncode == 0:
        done, report = verify(output, pictures)
        assert done.returncode == 0, done.stdout
        assert not [
            check for check in counts_of(report) if check.startswith(("form-", "mask-list", "mask-row", "mask-p"))
        ]
        json.loads((pictures / "coco.json").read_text())


# ------------------------------------------------------------------------------------------ is_val, and masks as pixels


@pytest.mark.parametrize("is_val_of_queries", [False, True])
def test_is_val_is_a_split_and_a_query_of_a_val_instance_is_val(sample_file, voxdet, tmp_path, is_val_of_queries):
    """As the authors' first script wrote it: of a query it may be False whatever its instance."""
    annotations = load_plainly(sample_file)
    old = {}
    for path, entry in annotations.items():
        is_val = entry["split"] == "val" and (is_val_of_queries or not entry["is_query"])
        old[path] = {**{name: value for name, value in entry.items() if name != "split"}, "is_val": is_val}
    done, report = verify(save(tmp_path, old, "old.pt"), voxdet[0])
    assert (done.returncode, report["checks"]["form-is-val"]["count"]) == (0, len(old))
    new = tmp_path / "new.pt"
    assert run_here("convert_annotations.py", tmp_path / "old.pt", "--output-file", new).returncode == 0
    assert load_plainly(new) == annotations


@pytest.mark.parametrize("kind", [bool, np.uint8, "255", list, "in a list"], ids=str)
@pytest.mark.parametrize("is_query", [True, False])
def test_masks_as_arrays_of_pixels_are_read(tmp_path, kind, is_query):
    mask = rectangle(*MIDDLE)
    dense = {"255": mask * np.uint8(255), list: mask.tolist(), "in a list": [mask]}.get(kind)
    if dense is None:
        dense = mask.astype(kind)
    query, photograph = make_query(), make_photograph()
    if is_query:
        query.update(bbox=MIDDLE, mask=dense)
    else:
        photograph.update(bbox=[MIDDLE], mask=dense if kind == "in a list" else [dense])
    done, report = verify(save(tmp_path, {"q.png": query, "g.png": photograph}), tmp_path, "--skip-paths")
    assert (done.returncode, report["errors"], report["checks"]["form-dense"]["count"]) == (0, 0, 1)
    new = tmp_path / "new.pt"
    assert run_here("convert_annotations.py", tmp_path / "anns.pt", "--output-file", new).returncode == 0
    found = load_plainly(new)["q.png" if is_query else "g.png"]["mask"]
    assert (decode(found if is_query else found[0]) == mask).all()
