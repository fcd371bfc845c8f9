"""create_dataset.py: what it writes is what the tree shows, and bad input costs a line of report, no more."""

import os
import pickle
import shutil
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from conftest import ROOT, files_below, load_plainly, run_here, run_script
from PIL import Image

from safe_loading import load_annotations
from soir_common import save_annotations

PLAIN = (dict, list, tuple, str, int, float, bool)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def decode(rle):
    return coco_mask.decode(rle).astype(bool)


def box_of(mask):
    ys, xs = np.nonzero(mask)
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


# ------------------------------------------------------------------------------------------------------ what it writes


def test_the_file_holds_what_the_tree_shows(voxdet, sample_file):
    _, truth = voxdet
    annotations = load_plainly(sample_file)
    assert set(annotations) == set(truth)
    for path, entry in annotations.items():
        expected = truth[path]
        assert entry["set"] == path.split("/")[0]
        assert entry["split"] == expected["split"]
        if "mask" in expected:
            assert entry["is_query"] is True
            assert entry["ins"] == expected["ins"]
            assert "num_ins" not in entry
        else:
            assert entry["is_query"] is False
            corners = [(x, y, x + w, y + h) for _, (x, y, w, h), _, _ in expected["objects"]]
            assert entry["bbox"] == corners
            assert entry["ins"] == [instance for instance, _, _, _ in expected["objects"]]
            if entry["set"] == "OWID":
                assert entry["num_ins"] == [num_ins for _, _, _, num_ins in expected["objects"]]
            else:
                assert "num_ins" not in entry


def test_query_masks_are_those_of_the_source(voxdet, sample_file):
    _, truth = voxdet
    for path, entry in load_plainly(sample_file).items():
        if not entry["is_query"]:
            continue
        mask = decode(entry["mask"])
        if entry["set"] == "RoboTools":
            assert np.array_equal(mask, truth[path]["mask"])
        else:
            assert iou(mask, truth[path]["mask"]) >= 0.99
            assert np.abs(np.subtract(entry["bbox"], box_of(truth[path]["mask"]))).max() <= 1
        x, y, width, height = coco_mask.toBbox(entry["mask"])
        assert entry["bbox"] == (x, y, x + width, y + height)


def test_gallery_masks_are_those_of_the_source_pixel_for_pixel(voxdet, sample_file):
    _, truth = voxdet
    polygons = 0
    for path, entry in load_plainly(sample_file).items():
        if entry["is_query"] or entry["set"] != "OWID":
            continue
        assert len(entry["mask"]) == len(entry["bbox"])
        for rle, (_, _, mask, _) in zip(entry["mask"], truth[path]["objects"]):
            if isinstance(mask, list):
                polygons += 1
                mask = decode(coco_mask.merge(coco_mask.frPyObjects(mask, 480, 640)))
            assert np.array_equal(decode(rle), mask)
    assert polygons == 1


def test_robotools_gallery_has_no_masks(sample_file):
    gallery = [e for e in load_plainly(sample_file).values() if e["set"] == "RoboTools" and not e["is_query"]]
    assert len(gallery) == 6
    assert all(entry["mask"] == [] for entry in gallery)


def test_every_value_is_a_plain_python_value(sample_file):
    def check(value):
        assert type(value) in PLAIN
        for item in value.items() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
            check(item)

    check(load_plainly(sample_file))


def test_the_rle_is_the_one_pycocotools_writes(sample_file):
    for entry in load_plainly(sample_file).values():
        for rle in [entry["mask"]] if entry["is_query"] else entry["mask"]:
            again = coco_mask.encode(np.asfortranarray(coco_mask.decode(rle)))
            assert rle == {"size": again["size"], "counts": again["counts"].decode()}


def test_queries_then_gallery_in_natural_order(sample_file):
    paths = list(load_plainly(sample_file))
    folders = [path.split("/")[2] for path in paths if path.startswith("OWID/P1")]
    assert list(dict.fromkeys(folders)) == ["2", "3", "5", "7", "10", "21", "33", "104"]
    kinds = ["/".join(path.split("/")[:2]) for path in paths]
    assert list(dict.fromkeys(kinds)) == ["OWID/P1", "OWID/P2", "RoboTools/test_video", "RoboTools/test"]


def test_the_same_bytes_from_one_worker_and_from_two_and_from_run_to_run(voxdet, tmp_path):
    files = []
    for run, workers in ((run_here, 1), (run_script, 2)):
        path = tmp_path / str(workers) / f"name{workers}.pt"
        path.parent.mkdir()
        args = ("--voxdet-root", voxdet[0], "--output-file", path, "--workers", workers)
        assert run("create_dataset.py", *args).returncode == 0
        files.append(path.read_bytes())
    assert files[0] == files[1]


def test_the_same_bytes_whatever_the_order_of_the_file_system(tiny, monkeypatch):
    import create_dataset

    _, _ = tiny.create()
    expected = tiny.path("anns.pt").read_bytes()
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: sorted(listdir(folder), reverse=True))
    monkeypatch.setattr(
        sys,
        "argv",
        ["x", "--voxdet-root", str(tiny.root), "--output-file", str(tiny.path("b.pt"))] + ["--relative-paths"],
    )
    assert create_dataset.main() == 0
    assert tiny.path("b.pt").read_bytes() == expected


def test_keys_start_with_the_root_as_given(tiny, monkeypatch):
    monkeypatch.chdir(tiny.root)
    for root in (".", str(tiny.root), f"{tiny.root}/"):
        done = run_here("create_dataset.py", "--voxdet-root", root, "--workers", "1")
        assert done.returncode == 0
        assert f"{root.rstrip('/')}/OWID/P2/images/000000.jpg" in load_plainly(tiny.path("anns.pt"))


def test_the_layout_of_voxdets_own_readme_is_found(tiny):
    tiny.path("BOP").mkdir()
    tiny.path("RoboTools").rename(tiny.path("BOP/RoboTools"))
    done, annotations = tiny.create()
    assert done.returncode == 0
    assert "BOP/RoboTools/test/1/rgb/000000.png" in annotations


def test_other_test_sets_of_the_layout_can_be_named(tiny):
    tiny.path("BOP").mkdir()
    tiny.path("RoboTools").rename(tiny.path("BOP/lmo"))
    done, annotations = tiny.create("--robotools-path", "BOP/lmo", "--skip-owid")
    assert done.returncode == 0
    assert {path.split("/")[1] for path in annotations} == {"lmo"}


def test_images_of_robotools_are_merged_by_file(tiny):
    _, annotations = tiny.create()
    entry = annotations["RoboTools/test/1/rgb/000000.png"]
    assert entry["ins"] == [3, 20]
    assert entry["bbox"] == [(1, 2, 4, 6), (5, 6, 12, 14)]


def test_both_files_of_owid_count_ids_from_0(tiny):
    _, annotations = tiny.create()
    assert annotations["OWID/P2/images/000000.jpg"]["ins"] == [3]
    assert annotations["OWID/P2/images/000001.jpg"]["ins"] == [20]
    assert annotations["OWID/P2/images/000000.jpg"]["split"] == "train"
    assert annotations["OWID/P2/images/000001.jpg"]["split"] == "val"
    assert annotations["OWID/P1/20/rgb/000000.jpg"]["split"] == "val"
    assert annotations["OWID/P1/3/rgb/000000.jpg"]["split"] == "train"


def test_without_num_ins_the_annotations_of_the_image_are_counted(tiny):
    second = {**tiny.train["annotations"][0], "id": 1, "category_id": 20}
    tiny.train["annotations"].append(second)
    for annotation in tiny.train["annotations"]:
        del annotation["num_ins"]
    tiny.write_json()
    _, annotations = tiny.create()
    assert annotations["OWID/P2/images/000000.jpg"]["num_ins"] == [2, 2]
    assert annotations["OWID/P2/images/000001.jpg"]["num_ins"] == [4]


def test_annotations_of_instances_without_queries_are_kept(tiny):
    tiny.train["annotations"][0]["category_id"] = 999
    tiny.write_json()
    _, annotations = tiny.create()
    assert annotations["OWID/P2/images/000000.jpg"]["ins"] == [999]


def test_max_categories_keeps_the_first_instances_and_only_their_annotations(tiny):
    done, annotations = tiny.create("--max-categories", "1", "--strict")
    assert done.returncode == 0, done.stdout
    assert {e["ins"] for e in annotations.values() if e["is_query"]} == {3}
    gallery = {path: e["ins"] for path, e in annotations.items() if not e["is_query"]}
    assert gallery == {"OWID/P2/images/000000.jpg": [3], "RoboTools/test/1/rgb/000000.png": [3]}


@pytest.mark.parametrize("skip, kept", [("--skip-owid", "RoboTools"), ("--skip-robotools", "OWID")])
def test_a_set_can_be_left_out(tiny, skip, kept):
    shutil.rmtree(str(tiny.path({"RoboTools": "OWID", "OWID": "RoboTools"}[kept])))
    done, annotations = tiny.create(skip)
    assert done.returncode == 0
    assert {entry["set"] for entry in annotations.values()} == {kept}


def test_the_summary_counts_what_the_file_holds(tiny):
    done, _ = tiny.create()
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line[:1].isupper()}
    assert rows == {"OWID": ["4", "2", "2", "2"], "RoboTools": ["2", "1", "2", "2"]}
    assert str(tiny.path("anns.pt")) in done.stdout
    assert done.stderr == ""


# --------------------------------------------------------------------------------------------------------------- masks


def mask_in(mode, mask):
    """The same mask as an image of some mode that people have."""
    grey = Image.fromarray(mask)
    if mode == "0/1":
        return Image.fromarray(mask // 255)
    if mode == "RGB 0/1":
        return Image.fromarray(mask // 255).convert("RGB")
    if mode == "16-bit":
        return Image.fromarray(mask.astype(np.uint16) * 257)
    if mode == "16-bit 0/1":
        return Image.fromarray(mask.astype(np.uint16) // 255)
    if mode == "palette":  # as DAVIS has them: index 0 black, index 1 dark red
        image = Image.fromarray(mask // 255, mode="L").convert("P")
        image.putdata(list((mask // 255).ravel()))
        image.putpalette([0, 0, 0, 128, 0, 0] + [0] * 762)
        return image
    if mode == "blue":
        return Image.merge("RGB", [Image.new("L", grey.size), Image.new("L", grey.size), grey])
    if mode == "alpha":  # black everywhere, the object is what is opaque
        return Image.merge("RGBA", [Image.new("L", grey.size)] * 3 + [grey])
    if mode == "white on transparent":
        return Image.merge("RGBA", [Image.new("L", grey.size, 255)] * 3 + [grey])
    return grey.convert(mode)


MODES = ["L", "RGB", "RGBA", "LA", "P", "1", "0/1", "RGB 0/1", "16-bit", "16-bit 0/1", "palette", "blue"]
MODES += ["alpha", "white on transparent"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("where", ["inside", "corner", "everywhere", "one pixel", "last pixel"])
def test_masks_in_every_mode_give_the_same_object(tiny, mode, where):
    from create_dataset import read_mask

    if (mode, where) == ("alpha", "everywhere"):
        where = "inside"  # black and opaque everywhere is how an empty RGBA mask looks
    mask = np.zeros((48, 64), dtype=np.uint8)
    mask[{"inside": np.s_[7:30, 9:40], "corner": np.s_[:9, :5], "everywhere": np.s_[:, :]}.get(where, np.s_[:0])] = 255
    if where == "inside":
        mask[10:20, 12:15] = 0  # a hole
    elif where == "one pixel":
        mask[11, 13] = 255
    elif where == "last pixel":
        mask[-1, -1] = 255
    tiny.save_image("mask.png", mask_in(mode, mask))
    rle, box = read_mask(str(tiny.path("mask.png")))
    expected = coco_mask.encode(np.asfortranarray(mask // 255))
    assert rle == {"size": expected["size"], "counts": expected["counts"].decode()}
    x, y, width, height = coco_mask.toBbox(expected)
    assert box == (x, y, x + width, y + height)


def test_the_ringing_of_jpeg_neither_leaks_into_the_object_nor_eats_its_edge(tiny):
    from create_dataset import read_mask

    yy, xx = np.mgrid[:48, :64]
    for x, y, radius in ((30, 20, 15), (10, 10, 5), (50, 30, 12), (3, 3, 9)):
        mask = np.uint8((xx - x) ** 2 + (yy - y) ** 2 < radius**2) * 255
        for mode in ("L", "RGB", "CMYK"):
            tiny.save_image("mask.jpg", mask, mode)
            source = np.asarray(Image.open(str(tiny.path("mask.jpg"))).convert("L"))
            assert len(np.unique(source)) > 2  # the file does ring
            rle, box = read_mask(str(tiny.path("mask.jpg")))
            assert iou(decode(rle), mask > 0) >= 0.99
            assert np.abs(np.subtract(box, box_of(mask))).max() <= 1


@pytest.mark.parametrize(
    "segmentation, expected",
    [
        ({"counts": [490, 3, 2, 5, 2572], "size": [48, 64]}, [(490, 493), (495, 500)]),
        ({"counts": [0, 3, 3069], "size": [48, 64]}, [(0, 3)]),
        ({"counts": [3069, 3], "size": [48, 64]}, [(3069, 3072)]),
        ({"counts": [0, 3072], "size": [48, 64]}, [(0, 3072)]),
        ({"counts": [10, 5, 0, 5, 3052], "size": [48, 64]}, [(10, 20)]),
        ({"counts": [10, 0, 5, 3057, 0], "size": [48, 64]}, [(15, 3072)]),
    ],
)
def test_rle_of_the_source_is_kept_pixel_for_pixel(tiny, segmentation, expected):
    tiny.train["annotations"][0]["segmentation"] = segmentation
    tiny.write_json()
    _, annotations = tiny.create()
    flat = np.zeros(48 * 64, dtype=np.uint8)
    for start, stop in expected:
        flat[start:stop] = 1
    mask = flat.reshape(64, 48).T
    (rle,) = annotations["OWID/P2/images/000000.jpg"]["mask"]
    assert np.array_equal(coco_mask.decode(rle), mask)
    assert rle["counts"] == coco_mask.encode(np.asfortranarray(mask))["counts"].decode()


def test_compressed_rle_and_polygons_of_the_source_are_kept_pixel_for_pixel(tiny):
    rng = np.random.RandomState(0)
    mask = np.asfortranarray(rng.rand(48, 64) > 0.5, dtype=np.uint8)
    rle = coco_mask.encode(mask)
    polygons = [[1.5, 2, 30, 4.25, 20, 40], [40, 10, 60, 10, 60, 30, 40, 30]]
    first = tiny.train["annotations"][0]
    first["segmentation"] = {"counts": rle["counts"].decode(), "size": [48, 64]}
    tiny.train["annotations"].append({**first, "id": 1, "segmentation": polygons})
    tiny.write_json()
    _, annotations = tiny.create()
    one, two = annotations["OWID/P2/images/000000.jpg"]["mask"]
    assert np.array_equal(coco_mask.decode(one), mask)
    assert np.array_equal(decode(two), decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 48, 64))))


# -------------------------------------------------------------------------------------------------- what it cannot use


def damage_mask(name, content):
    def damage(tiny):
        tiny.path(name).write_bytes(content)

    return damage


def damage_train(**changes):
    def damage(tiny):
        tiny.train["annotations"].append({**tiny.train["annotations"][0], "id": 1, **changes})
        tiny.write_json()

    return damage


def damage_image(**changes):
    def damage(tiny):
        tiny.train["images"].append({**tiny.train["images"][0], "id": 1, **changes})
        tiny.write_json()

    return damage


def truncate(name):
    def damage(tiny):
        data = tiny.path(name).read_bytes()
        tiny.path(name).write_bytes(data[: len(data) * 2 // 3])

    return damage


def remove(name):
    return lambda tiny: tiny.path(name).unlink()


def link_to_itself(name):
    def damage(tiny):
        tiny.path(name).unlink()
        tiny.path(name).symlink_to(tiny.path(name).name)

    return damage


def fifo(name):
    def damage(tiny):
        tiny.path(name).unlink()
        os.mkfifo(str(tiny.path(name)))

    return damage


def save(name, *args):
    return lambda tiny: tiny.save_image(name, *args)


QUERY, MASK = "OWID/P1/3/rgb/000000.jpg", "OWID/P1/3/mask/000000.jpg"
GALLERY = "OWID/P2/images/000001.jpg"
UNREADABLE = "query whose image or mask cannot be read"
NO_GALLERY = "gallery image that is missing or cannot be read"
NO_BOX = "annotation without a box of positive size"
NO_MASK = "annotation without a usable mask"
OUTSIDE = "image whose file name is no path inside its folder"
HUGE = 10**400


@pytest.mark.parametrize(
    "damage, reason",
    [
        (remove(MASK), "query without a mask"),
        (remove(QUERY), "mask without an image"),
        (save(MASK, np.zeros((48, 64), np.uint8)), "query with an empty mask"),
        (save(MASK, np.full((24, 64), 255, np.uint8)), "query whose image and mask differ in size"),
        (truncate(MASK), UNREADABLE),
        (truncate(QUERY), UNREADABLE),
        (truncate("RoboTools/test_video/obj_000003/mask/000000.png"), UNREADABLE),
        (truncate("RoboTools/test_video/obj_000003/rgb/000000.png"), UNREADABLE),
        (damage_mask(MASK, b""), UNREADABLE),
        (damage_mask(QUERY, b""), UNREADABLE),
        (damage_mask(MASK, b"no image at all"), UNREADABLE),
        (damage_mask(MASK, b"GIF89a" + bytes(20)), UNREADABLE),
        (fifo(MASK), UNREADABLE),
        (fifo(QUERY), UNREADABLE),
        (link_to_itself(MASK), UNREADABLE),
        (remove(GALLERY), NO_GALLERY),
        (truncate(GALLERY), NO_GALLERY),
        (fifo(GALLERY), NO_GALLERY),
        (damage_mask(GALLERY, b""), NO_GALLERY),
        (save(GALLERY, np.zeros((24, 64), np.uint8)), "gallery image whose size is not what its annotations say"),
        (lambda tiny: tiny.path("OWID/P1/no number").mkdir(), "folder whose name holds no instance id"),
        (lambda tiny: tiny.path("OWID/P1/77").mkdir(), "instance folder without images in rgb/"),
        (damage_train(image_id=77), "annotation that points to no image"),
        (damage_train(image_id=None), "annotation that points to no image"),
        (damage_train(image_id=[0]), "annotation that points to no image"),
        (damage_train(image_id="0"), "annotation that points to no image"),
        (damage_train(category_id="3"), "annotation without an instance id"),
        (damage_train(category_id=None), "annotation without an instance id"),
        (damage_train(category_id=True), "annotation without an instance id"),
        (damage_train(category_id=-1), "annotation without an instance id"),
        (damage_train(category_id=HUGE), "annotation without an instance id"),
        (damage_train(bbox=None), NO_BOX),
        (damage_train(bbox=[1, 2, 3]), NO_BOX),
        (damage_train(bbox=[1, 2, 0, 4]), NO_BOX),
        (damage_train(bbox=[1, 2, 3, -4]), NO_BOX),
        (damage_train(bbox=[1, 2, float("nan"), 4]), NO_BOX),
        (damage_train(bbox=[1, 2, float("inf"), 4]), NO_BOX),
        (damage_train(bbox=[1, 2, HUGE, 4]), NO_BOX),
        (damage_train(bbox=["1", "2", "3", "4"]), NO_BOX),
        (damage_train(bbox={"x": 1}), NO_BOX),
        (damage_train(segmentation=None), NO_MASK),
        (damage_train(segmentation=[]), NO_MASK),
        (damage_train(segmentation="text"), NO_MASK),
        (damage_train(segmentation=[[1, 2, 3, 4]]), NO_MASK),
        (damage_train(segmentation=[[1, 2, 3, 4, 5]]), NO_MASK),
        (damage_train(segmentation=[[1, 2, 3, 4, 5, None]]), NO_MASK),
        (damage_train(segmentation=[[1, 2, 3, 4, 5, 1e9]]), NO_MASK),
        (damage_train(segmentation=[[1, 2, 3, 4, 5, float("nan")]]), NO_MASK),
        (damage_train(segmentation=[1, 2, 3, 4, 5, 6]), NO_MASK),
        (damage_train(segmentation={"counts": [10, 20], "size": [48, 64]}), NO_MASK),
        (damage_train(segmentation={"counts": [10, -5, 3067], "size": [48, 64]}), NO_MASK),
        (damage_train(segmentation={"counts": [3072], "size": [48, 64]}), NO_MASK),
        (damage_train(segmentation={"counts": [], "size": [48, 64]}), NO_MASK),
        (damage_train(segmentation={"counts": [10.0, 3062.0], "size": [48, 64]}), NO_MASK),
        (damage_train(segmentation={"counts": [10, [3062]], "size": [48, 64]}), NO_MASK),
        (damage_train(segmentation={"counts": [HUGE], "size": [48, 64]}), NO_MASK),
        (damage_train(segmentation={"counts": [10, 3062], "size": [64, 48]}), NO_MASK),
        (damage_train(segmentation={"counts": [10, 3062], "size": [48]}), NO_MASK),
        (damage_train(segmentation={"counts": [10, 3062], "size": ["48", "64"]}), NO_MASK),
        (damage_train(segmentation={"counts": [10, 3062]}), NO_MASK),
        (damage_train(segmentation={"counts": [0, 10**12], "size": [10**6, 10**6]}), NO_MASK),
        (damage_train(segmentation={"counts": "o" * 40, "size": [48, 64]}), NO_MASK),
        (damage_train(segmentation={"counts": "\ud800é", "size": [48, 64]}), NO_MASK),
        (damage_train(segmentation={"counts": None, "size": [48, 64]}), NO_MASK),
        (damage_image(file_name="images/7.jpg"), "image without annotations"),
        (damage_image(id=0), "image record without an id of its own"),
        (damage_image(id="1"), "image record without an id of its own"),
        (damage_image(file_name="../P2/images/000000.jpg"), OUTSIDE),
        (damage_image(file_name="images/../../../secret.jpg"), OUTSIDE),
        (damage_image(file_name="/etc/passwd"), OUTSIDE),
        (damage_image(file_name="images\\000000.jpg"), OUTSIDE),
        (damage_image(file_name="C:images/000000.jpg"), OUTSIDE),
        (damage_image(file_name="images/000000.jpg\0.jpg"), OUTSIDE),
        (damage_image(file_name="a" * 5000), OUTSIDE),
        (damage_image(file_name="9" * 5000), OUTSIDE),
        (damage_image(file_name=""), OUTSIDE),
        (damage_image(file_name=None), OUTSIDE),
        (damage_image(file_name=["images/000000.jpg"]), OUTSIDE),
        (lambda tiny: (tiny.train["annotations"].append(7), tiny.write_json()), "annotation that points to no image"),
        (lambda tiny: (tiny.train["images"].append(None), tiny.write_json()), "image record without an id of its own"),
    ],
)
def test_what_cannot_be_used_is_skipped_and_counted_and_the_rest_goes_on(tiny, damage, reason):
    _, whole = tiny.create()
    damage(tiny)
    done, annotations = tiny.create("--strict")
    assert done.returncode == 1
    report = done.stdout[done.stdout.index("skipped:") :].split("\n\n")[0].splitlines()[1:]
    assert [line for line in report if line.strip().startswith(f"1 x {reason}")] == report
    lost = set(whole) - set(annotations)
    assert len(lost) == ("query" in reason or "mask without" in reason or reason.startswith("gallery"))
    assert all(annotations[path] == whole[path] for path in annotations)
    assert tiny.create()[0].returncode == 0  # without --strict


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_mask_in_any_mode_is_empty(tiny, mode):
    empty = np.zeros((48, 64), dtype=np.uint8)
    image = mask_in(mode, empty)
    tiny.save_image("RoboTools/test_video/obj_000003/mask/000000.png", image)
    done, annotations = tiny.create()
    assert "1 x query with an empty mask" in done.stdout
    assert len(annotations) == 8


def test_text_of_a_file_cannot_forge_a_line_of_the_report(tiny):
    for number in range(5):
        tiny.train["annotations"].append({**tiny.train["annotations"][0], "segmentation": f"{number}\nwrote\x1b[31m"})
    tiny.train["images"].append({"id": 1, "file_name": "a\nwrote b.jpg", "width": 64, "height": 48})
    tiny.write_json()
    done, _ = tiny.create()
    assert done.stdout.count("\nwrote") == 1
    assert "5 x annotation without a usable mask (no segmentation)" in done.stdout
    assert "\x1b" not in done.stdout


def test_an_annotation_that_holds_counts_is_still_an_annotation(tiny):
    tiny.train["annotations"][0]["counts"] = 5
    tiny.write_json()
    done, annotations = tiny.create("--strict")
    assert done.returncode == 0
    assert len(annotations) == 9


def test_closed_streams_and_broken_pipes_lose_nothing(tiny):
    script = (
        f"{sys.executable} {ROOT / 'create_dataset.py'} --voxdet-root {tiny.root} --output-file {tiny.path('anns.pt')}"
    )
    for ending in (">&-", "2>&-", "| true"):
        command = f"unset PYTHONUNBUFFERED; {script} --workers 1 {ending}"
        done = subprocess.run(command, shell=True, stderr=subprocess.PIPE)
        assert done.stderr == b""
        assert len(load_plainly(tiny.path("anns.pt"))) == 9
        tiny.path("anns.pt").unlink()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_the_start_methods_of_other_systems_give_the_same_file(tiny, method):
    tiny.create()
    code = f"""if __name__ == "__main__":
    import multiprocessing, sys
    sys.path.insert(0, {str(ROOT)!r})
    multiprocessing.set_start_method({method!r})
    import create_dataset
    sys.exit(create_dataset.main())
"""
    tiny.path("start.py").write_text(code)
    options = ["--voxdet-root", tiny.root, "--output-file", tiny.path("b.pt"), "--relative-paths", "--workers", "2"]
    assert run_script(tiny.path("start.py"), *options).returncode == 0
    assert tiny.path("b.pt").read_bytes() == tiny.path("anns.pt").read_bytes()


def test_a_png_that_claims_to_be_huge_is_skipped(tiny):
    data = bytearray(tiny.path("RoboTools/test_video/obj_000003/mask/000000.png").read_bytes())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    tiny.path("RoboTools/test_video/obj_000003/mask/000000.png").write_bytes(bytes(data))
    done, annotations = tiny.create()
    assert f"1 x {UNREADABLE}" in done.stdout
    assert len(annotations) == 8


def test_stray_files_and_upper_case_endings(tiny):
    for name in ("OWID/P1/._3", "OWID/P1/3/rgb/._000000.jpg", "OWID/P1/3/rgb/Thumbs.db", "OWID/P1/3/notes.txt"):
        tiny.path(name).write_bytes(b"stray")
    tiny.path(QUERY).rename(tiny.path("OWID/P1/3/rgb/000000.JPG"))
    done, annotations = tiny.create("--strict")
    assert done.returncode == 0, done.stdout
    assert "OWID/P1/3/rgb/000000.JPG" in annotations
    assert len(annotations) == 9


def test_the_report_names_three_places_and_counts_all(tiny):
    for number in range(5):
        tiny.path(f"OWID/P1/name {number}").mkdir()
    done, _ = tiny.create()
    (line,) = [line for line in done.stdout.splitlines() if "no instance id" in line]
    assert line.split(" x ")[0].strip() == "5"
    assert line.endswith("OWID/P1/name 0, OWID/P1/name 1, OWID/P1/name 2, ...")


@pytest.mark.parametrize(
    "content",
    [
        b'{"images": [], "annot',
        b"",
        b"\xff\xfe\x00",
        b"[]",
        b"{}",
        b'{"images": {}, "annotations": []}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"images": [' + b"9" * 5000 + b'], "annotations": 3}',
    ],
)
def test_a_broken_json_ends_the_run_with_a_sentence_and_leaves_the_old_output(tiny, content):
    tiny.path("anns.pt").write_bytes(b"old")
    tiny.path("OWID/P2/train_annotations.json").write_bytes(content)
    done = run_here(
        "create_dataset.py", "--voxdet-root", tiny.root, "--output-file", tiny.path("anns.pt"), "--workers", "1"
    )
    assert done.returncode == 2
    assert "train_annotations.json" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert tiny.path("anns.pt").read_bytes() == b"old"


@pytest.mark.parametrize(
    "missing, option",
    [
        ("OWID", "--skip-owid"),
        ("OWID/P1", "--owid-path"),
        ("OWID/P2/val_annotations.json", "--owid-path"),
        ("RoboTools", "--skip-robotools"),
        ("RoboTools/test_video", "--robotools-path"),
        ("RoboTools/test/scene_gt_coco_all.json", "--robotools-path"),
    ],
)
def test_what_is_missing_is_named_with_the_option_that_helps(tiny, missing, option):
    path = tiny.path(missing)
    shutil.rmtree(str(path)) if path.is_dir() else path.unlink()
    done, annotations = tiny.create()
    assert (done.returncode, annotations) == (2, None)
    assert missing in done.stderr
    assert option in done.stderr


def test_a_download_that_lies_one_level_deeper_is_pointed_to(tiny, tmp_path):
    """As under `data/`, where VoxDet's own README unpacks it."""
    tiny.root.rename(tmp_path / "data")
    done = run_here("create_dataset.py", "--voxdet-root", tmp_path, "--output-file", tmp_path / "anns.pt")
    assert done.returncode == 2
    assert f"try --voxdet-root {tmp_path / 'data'}\n" in done.stderr
    again = ("--voxdet-root", tmp_path / "data", "--output-file", tmp_path / "anns.pt", "--workers", "1")
    assert run_here("create_dataset.py", *again).returncode == 0


def test_nothing_to_do_and_nothing_found_are_errors(tiny):
    done, annotations = tiny.create("--skip-owid", "--skip-robotools")
    assert (done.returncode, annotations) == (2, None)
    shutil.rmtree(str(tiny.path("OWID/P1")))
    tiny.path("OWID/P1").mkdir()
    tiny.train = tiny.val = {"images": [], "annotations": []}
    tiny.write_json()
    done, annotations = tiny.create("--skip-robotools")
    assert (done.returncode, annotations) == (2, None)


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--max-categories", "x"], ["--unknown"]])
def test_bad_arguments_exit_with_2(tiny, arguments):
    assert tiny.create(*arguments)[0].returncode == 2


# ---------------------------------------------------------------------------------------------------------- the output


def test_the_output_is_replaced_whole_so_that_who_reads_the_old_one_keeps_it(tiny):
    tiny.path("anns.pt").write_bytes(b"old" * 100)
    with open(str(tiny.path("anns.pt")), "rb") as reader:
        _, annotations = tiny.create()
        assert reader.read() == b"old" * 100
    assert len(annotations) == 9


def test_a_link_as_output_stays_a_link(tiny):
    tiny.path("target").mkdir()
    tiny.path("anns.pt").symlink_to("target/anns.pt")
    _, annotations = tiny.create()
    assert tiny.path("anns.pt").is_symlink()
    assert load_plainly(tiny.path("target/anns.pt")) == annotations


def test_no_file_but_the_output_appears(tiny):
    before = files_below(str(tiny.root))
    tiny.create()
    assert files_below(str(tiny.root)) == sorted([*before, "anns.pt"])


def test_the_file_is_an_ordinary_torch_file(tiny):
    tiny.create()
    with zipfile.ZipFile(str(tiny.path("anns.pt"))) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        assert len(pickle.loads(archive.read(name))) == 9


@pytest.mark.parametrize("count", [0, 1, 2, 999, 1000, 1001, 2001])
def test_any_number_of_entries_comes_back(tmp_path, count):
    """They are written a thousand at a time."""
    box = (1, 2, 3, 4)
    mask = {"size": [48, 64], "counts": "caf\u00e9"}
    entries = {f"{number}.jpg": {"bbox": [box, box], "mask": [mask, mask], "ins": number} for number in range(count)}
    assert save_annotations(entries, str(tmp_path / "anns.pt")) == (tmp_path / "anns.pt").stat().st_size
    assert load_plainly(tmp_path / "anns.pt") == load_annotations(str(tmp_path / "anns.pt")) == entries


def test_keys_that_nobody_needs_may_hold_anything(tiny):
    tiny.train["annotations"][0].update(neg_box=[[1, 2]], cam_w={"deep": [1]}, obj_w=None)
    tiny.train["categories"] = [{"id": 3}]
    tiny.write_json()
    done, annotations = tiny.create("--strict")
    assert done.returncode == 0
    assert len(annotations) == 9


def test_help_comes_without_torch(tmp_path):
    code = "import sys, runpy; sys.argv = ['x', '--help']\n"
    code += f"try: runpy.run_path({str(ROOT / 'create_dataset.py')!r}, run_name='__main__')\n"
    code += "except SystemExit: pass\nassert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, cwd=str(ROOT)).returncode == 0
