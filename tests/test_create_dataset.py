"""create_dataset.py: what it writes is what the tree shows; what it cannot use costs a line of its report, no more."""

import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from conftest import ROOT, files_below, load_plainly, refused, run_here, run_script
from PIL import Image
from run_fork import Fork

from soir_common import load_annotations, save_annotations

QUERY, MASK = "OWID/P1/3/rgb/000000.jpg", "OWID/P1/3/mask/000000.jpg"
REAL_QUERY, REAL_MASK = (f"RoboTools/test_video/obj_000003/{kind}/000000.png" for kind in ("rgb", "mask"))
PHOTOGRAPH, OTHER_PHOTOGRAPH = "OWID/P2/images/000001.jpg", "OWID/P2/images/000000.jpg"
PLAIN = (dict, list, tuple, str, int, float, bool)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def decode(rle):
    return coco_mask.decode(rle).astype(bool)


def box_of(mask):
    ys, xs = np.nonzero(mask)
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


# ------------------------------------------------------------------------------------------------------- what it writes


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
                assert entry["mask"] == []


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
    tiny.create()
    expected, listdir, asked = tiny.path("anns.pt").read_bytes(), os.listdir, []
    monkeypatch.setattr(os, "listdir", lambda folder: asked.append(folder) or sorted(listdir(folder), reverse=True))
    tiny.create(output="b.pt")
    assert asked
    assert tiny.path("b.pt").read_bytes() == expected


def test_keys_start_with_the_root_as_given(tiny, monkeypatch):
    monkeypatch.chdir(tiny.root)
    for root in (".", str(tiny.root), f"{tiny.root}/"):
        done = run_here("create_dataset.py", "--voxdet-root", root, "--workers", "1")
        assert done.returncode == 0
        prefix = "" if root == "." else f"{root.rstrip('/')}/"
        assert f"{prefix}OWID/P2/images/000000.jpg" in load_plainly(tiny.path("anns.pt"))


def test_the_layout_of_voxdets_own_readme_is_found(tiny):
    tiny.path("BOP").mkdir()
    tiny.path("RoboTools").rename(tiny.path("BOP/RoboTools"))
    annotations = tiny.annotations()
    assert "BOP/RoboTools/test/1/rgb/000000.png" in annotations


def test_other_test_sets_of_the_layout_can_be_named(tiny):
    tiny.path("BOP").mkdir()
    tiny.path("RoboTools").rename(tiny.path("BOP/lmo"))
    annotations = tiny.annotations("--robotools-path", "BOP/lmo", "--skip-owid")
    assert {path.split("/")[1] for path in annotations} == {"lmo"}


def test_images_of_robotools_are_merged_by_file(tiny):
    annotations = tiny.annotations()
    entry = annotations["RoboTools/test/1/rgb/000000.png"]
    assert entry["ins"] == [3, 20]
    assert entry["bbox"] == [(1, 2, 4, 6), (5, 6, 12, 14)]


def test_both_files_of_owid_count_ids_from_0(tiny):
    annotations = tiny.annotations()
    assert annotations[OTHER_PHOTOGRAPH]["ins"] == [3]
    assert annotations[PHOTOGRAPH]["ins"] == [20]
    assert annotations[OTHER_PHOTOGRAPH]["split"] == "train"
    assert annotations[PHOTOGRAPH]["split"] == "val"
    assert annotations["OWID/P1/20/rgb/000000.jpg"]["split"] == "val"
    assert annotations["OWID/P1/3/rgb/000000.jpg"]["split"] == "train"


def test_without_num_ins_the_annotations_of_the_image_are_counted(tiny):
    second = {**tiny.train["annotations"][0], "id": 1, "category_id": 21}
    tiny.train["annotations"].append(second)
    for annotation in tiny.train["annotations"]:
        del annotation["num_ins"]
    tiny.write_json()
    annotations = tiny.annotations()
    assert annotations[OTHER_PHOTOGRAPH]["num_ins"] == [2, 2]
    assert annotations[PHOTOGRAPH]["num_ins"] == [4]


def test_records_of_both_kinds_may_have_the_keys_of_the_other(tiny):
    expected = tiny.annotations()
    for coco in (tiny.train, tiny.val, tiny.test):
        names = {image["id"]: image["file_name"] for image in coco["images"]}
        for image in coco["images"]:
            image.update(image_id=image["id"], bbox=None, category_id=7, license=1)
        for annotation in coco["annotations"]:
            annotation.update(file_name=names[annotation["image_id"]], width=1, height=1, area=5.0)
    tiny.write_json()
    assert tiny.annotations() == expected


def test_annotations_of_instances_without_queries_are_kept(tiny):
    tiny.train["annotations"][0]["category_id"] = 999
    tiny.write_json()
    annotations = tiny.annotations()
    assert annotations[OTHER_PHOTOGRAPH]["ins"] == [999]


def test_max_categories_keeps_the_first_instances_and_only_their_annotations(tiny):
    annotations = tiny.annotations("--max-categories", "1")
    assert {e["ins"] for e in annotations.values() if e["is_query"]} == {3}
    gallery = {path: e["ins"] for path, e in annotations.items() if not e["is_query"]}
    assert gallery == {OTHER_PHOTOGRAPH: [3], "RoboTools/test/1/rgb/000000.png": [3]}


@pytest.mark.parametrize("skip, kept", [("--skip-owid", "RoboTools"), ("--skip-robotools", "OWID")])
def test_a_set_can_be_left_out(tiny, skip, kept):
    shutil.rmtree(str(tiny.path({"RoboTools": "OWID", "OWID": "RoboTools"}[kept])))
    assert {entry["set"] for entry in tiny.annotations(skip).values()} == {kept}


def test_the_summary_counts_what_the_file_holds(tiny):
    done, _ = tiny.create()
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line[:1].isupper()}
    assert rows == {"OWID": ["4", "2", "2", "2"], "RoboTools": ["2", "1", "2", "2"]}
    assert str(tiny.path("anns.pt")) in done.stdout
    assert done.stderr == ""


# ---------------------------------------------------------------------------------------------------------------- masks


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
MASKS = {
    "inside, with a hole": [(np.s_[7:30, 9:40], 255), (np.s_[10:20, 12:15], 0)],
    "corner": [(np.s_[:9, :5], 255)],
    "everywhere": [(np.s_[:, :], 255)],
    "one pixel": [(np.s_[11, 13], 255)],
    "last pixel": [(np.s_[-1, -1], 255)],
}


def save_in_every_mode(tiny, mask, modes):
    """A query for each mode, of the same mask; they take the place of one of RoboTools'."""
    for number, mode in enumerate(modes):
        for path, image in ((REAL_QUERY, None), (REAL_MASK, mask_in(mode, mask))):
            tiny.save_image(path.replace("000000", f"{number:06d}"), image)
    return [REAL_QUERY.replace("000000", f"{number:06d}") for number in range(len(modes))]


@pytest.mark.parametrize("name", MASKS)
def test_masks_in_every_mode_give_the_same_object(tiny, name):
    mask = np.zeros((48, 64), dtype=np.uint8)
    for where, value in MASKS[name]:
        mask[where] = value
    # Black and opaque everywhere is how an empty RGBA mask looks.
    modes = [mode for mode in MODES if (mode, name) != ("alpha", "everywhere")]
    paths = save_in_every_mode(tiny, mask, modes)
    _, annotations = tiny.create("--keep-contradictions")  # masks of the whole image look inverted
    expected = coco_mask.encode(np.asfortranarray(mask // 255))
    x, y, width, height = coco_mask.toBbox(expected)
    for mode, path in zip(modes, paths):
        assert annotations[path]["mask"] == {"size": [48, 64], "counts": expected["counts"].decode()}, mode
        assert annotations[path]["bbox"] == (x, y, x + width, y + height), mode


def test_an_empty_mask_in_any_mode_is_empty(tiny):
    save_in_every_mode(tiny, np.zeros((48, 64), dtype=np.uint8), MODES)
    done, annotations = tiny.create()
    assert f"{len(MODES)} x query with an empty mask" in done.stdout
    assert len(annotations) == 8


def test_the_ringing_of_jpeg_neither_leaks_into_the_object_nor_eats_its_edge(tiny):
    yy, xx = np.mgrid[:48, :64]
    for x, y, radius in ((30, 20, 15), (10, 10, 5), (50, 30, 12), (3, 3, 9)):
        mask = np.uint8((xx - x) ** 2 + (yy - y) ** 2 < radius**2) * 255
        for mode in ("L", "RGB", "CMYK"):
            tiny.save_image(MASK, mask, mode)
            with Image.open(str(tiny.path(MASK))) as image:
                assert len(np.unique(np.asarray(image.convert("L")))) > 2  # the file does ring
            entry = tiny.create()[1][QUERY]
            assert iou(decode(entry["mask"]), mask > 0) >= 0.99
            assert np.abs(np.subtract(entry["bbox"], box_of(mask))).max() <= 1


def test_a_mask_of_16_bits_has_the_right_pixels(tiny):
    mask = np.zeros((48, 64), dtype=np.uint16)
    mask[5:40, 7:33] = 65535
    mask[5:40, 7] = 300  # above any 8-bit value, yet dark
    tiny.save_image(REAL_MASK, mask)
    annotations = tiny.annotations()
    assert np.array_equal(decode(annotations[REAL_QUERY]["mask"]), mask > 32767)


def animation(tiny, file_format, path):
    """Two frames: the mask, and its opposite."""
    frames = [Image.fromarray(tiny.mask), Image.fromarray(255 - tiny.mask)]
    frames[0].save(str(path), format=file_format, save_all=True, append_images=frames[1:])


def test_of_an_animated_mask_the_first_frame_counts(tiny):
    animation(tiny, "PNG", tiny.path(REAL_MASK))
    assert Image.open(str(tiny.path(REAL_MASK))).n_frames == 2
    annotations = tiny.annotations()
    assert np.array_equal(decode(annotations[REAL_QUERY]["mask"]), tiny.mask > 0)


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
    flat = np.zeros(48 * 64, dtype=np.uint8)
    for start, stop in expected:
        flat[start:stop] = 1
    mask = flat.reshape(64, 48).T
    x1, y1, x2, y2 = map(int, box_of(mask))
    tiny.train["annotations"][0].update(segmentation=segmentation, bbox=[x1, y1, x2 - x1, y2 - y1])
    tiny.write_json()
    annotations = tiny.annotations()
    (rle,) = annotations[OTHER_PHOTOGRAPH]["mask"]
    assert np.array_equal(coco_mask.decode(rle), mask)
    assert rle["counts"] == coco_mask.encode(np.asfortranarray(mask))["counts"].decode()


def test_compressed_rle_and_polygons_of_the_source_are_kept_pixel_for_pixel(tiny):
    rng = np.random.RandomState(0)
    mask = np.asfortranarray(rng.rand(48, 64) > 0.5, dtype=np.uint8)
    rle = coco_mask.encode(mask)
    polygons = [[1.5, 2, 30, 4.25, 20, 40], [40, 10, 60, 10, 60, 30, 40, 30]]
    first = tiny.train["annotations"][0]
    first.update(segmentation={"counts": rle["counts"].decode(), "size": [48, 64]}, bbox=[0, 0, 64, 48])
    tiny.train["annotations"].append({**first, "id": 1, "segmentation": polygons, "bbox": [1, 2, 60, 38]})
    tiny.write_json()
    annotations = tiny.annotations()
    one, two = annotations[OTHER_PHOTOGRAPH]["mask"]
    assert np.array_equal(coco_mask.decode(one), mask)
    assert np.array_equal(decode(two), decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 48, 64))))


# --------------------------------------------------------------------------------------------------- photographs, names


def test_a_photograph_in_cmyk_or_grey_or_progressive_is_used(tiny):
    for mode, options in (("CMYK", {}), ("L", {}), ("RGB", {"progressive": True}), ("RGB", {"optimize": True})):
        for path in (QUERY, PHOTOGRAPH):
            Image.new(mode, (64, 48)).save(str(tiny.path(path)), **options)
        assert len(tiny.annotations()) == 9


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_and_boxes_count_pixels_as_they_are_stored_whatever_exif_says_of_turning(tiny, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for path in (QUERY, PHOTOGRAPH):
        Image.new("RGB", (64, 48)).save(str(tiny.path(path)), exif=exif.tobytes())
        assert Image.open(str(tiny.path(path))).getexif()[0x0112] == orientation
    annotations = tiny.annotations()
    assert np.array_equal(decode(annotations[QUERY]["mask"]), tiny.mask > 0)
    assert annotations[QUERY]["bbox"] == (20, 10, 50, 30)


NAMES = [b"a name.jpg", b'it\'s "quoted".jpg', "caf\u00e9 \u96ea.jpg".encode(), b"-rf.jpg", b"$(x) `y` *?[1].jpg"]
NAMES += [b"caf\xe9.jpg", b"two\nlines.jpg", b"a.b.c.jpg", b"\x1b[31m.jpg", b"000000.JPG", b"000000.jPeG"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_bytes_are_used_and_the_file_still_loads_and_passes(tiny, name):
    for path in (QUERY, MASK):
        folder = os.fsencode(str(tiny.path(path).parent))
        try:
            os.rename(os.path.join(folder, b"000000.jpg"), os.path.join(folder, name))
        except OSError:
            pytest.skip("the file system does not take this name")
    annotations = tiny.annotations()
    assert f"OWID/P1/3/rgb/{os.fsdecode(name)}" in annotations
    assert len(annotations) == 9
    report = tiny.path("report.json")
    args = ("--ann-file", tiny.path("anns.pt"), "--base-path", tiny.root, "--report", report)
    done = run_here("verify_dataset.py", *args)
    assert done.returncode == 0, done.stdout
    assert json.loads(report.read_text())["issues"] == []


def test_names_of_any_bytes_come_through_the_workers_and_the_report(tiny):
    folder = os.fsencode(str(tiny.path("OWID/P1/3/rgb")))
    try:
        os.rename(os.path.join(folder, b"000000.jpg"), os.path.join(folder, b"caf\xe9\n.jpg"))
    except OSError:
        pytest.skip("the file system does not take this name")
    done = Fork("create_dataset.py", "--voxdet-root", tiny.root, "--output-file", tiny.path("anns.pt")).wait()
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = [line for line in done.stdout.splitlines() if "query without a mask" in line]
    assert line.endswith("/OWID/P1/3/rgb/caf\\udce9\\n.jpg")


def test_endings_in_upper_case_are_paired_with_masks_of_any_ending(tiny):
    for path, new in ((QUERY, "000000.JPG"), (REAL_QUERY, "000000.PNG"), (REAL_MASK, "000000.Png")):
        tiny.path(path).rename(tiny.path(path).with_name(new))
    tiny.path(MASK).unlink()
    tiny.save_image("OWID/P1/3/mask/000000.BMP", tiny.mask)
    annotations = tiny.annotations()
    assert len(annotations) == 9
    assert np.array_equal(decode(annotations["OWID/P1/3/rgb/000000.JPG"]["mask"]), tiny.mask > 0)


def test_stray_files_are_passed_over(tiny):
    for name in ("OWID/P1/._3", "OWID/P1/3/rgb/._000000.jpg", "OWID/P1/3/rgb/Thumbs.db", "OWID/P1/3/notes.txt"):
        tiny.path(name).write_bytes(b"stray")
    assert len(tiny.annotations()) == 9


# --------------------------------------------------------------------------------------------------- what it cannot use


def overwrite(name, content):
    return lambda tiny: tiny.path(name).write_bytes(content)


def remove(name):
    return lambda tiny: tiny.path(name).unlink()


def save(name, *args):
    return lambda tiny: tiny.save_image(name, *args)


def truncate(name):
    return lambda tiny: os.truncate(str(tiny.path(name)), tiny.path(name).stat().st_size * 2 // 3)


def put(name, kind):
    """Something else where an image was."""

    def damage(tiny):
        path = tiny.path(name)
        path.unlink()
        if kind == "animated GIF":
            animation(tiny, "GIF", path)
        elif kind in ("TIFF", "WebP"):
            Image.fromarray(tiny.mask).save(str(path), format=kind)
        elif kind == "folder":
            path.mkdir()
        elif kind == "FIFO":
            os.mkfifo(str(path))
        else:
            path.symlink_to({"link to a folder": "..", "link to nowhere": "nowhere.jpg"}.get(kind, path.name))

    return damage


def add_record(kind, record):
    def damage(tiny):
        tiny.train[kind].append(record)
        tiny.write_json()

    return damage


def add_annotation(**changes):
    return lambda tiny: add_record("annotations", {**tiny.train["annotations"][0], "id": 1, **changes})(tiny)


def add_image(**changes):
    return lambda tiny: add_record("images", {**tiny.train["images"][0], "id": 1, **changes})(tiny)


NO_IMAGE, NO_MASK = (f"query whose {part} cannot be read" for part in ("image", "mask"))
NO_PHOTOGRAPH = "gallery image that is missing or cannot be read"
HUGE, NAN, INF = 10**400, float("nan"), float("inf")
KINDS = ["animated GIF", "TIFF", "WebP", "folder", "FIFO", "link to a folder", "link to nowhere", "link to itself"]
NO_BOXES = [None, [1, 2, 3], [1, 2, 0, 4], [1, 2, 3, -4], [1, 2, NAN, 4], [1, 2, INF, 4], [1, 2, HUGE, 4]]
NO_BOXES += [["1", "2", "3", "4"], {"x": 1}]
NO_POLYGONS = [[], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], [[1, 2, 3, 4, 5, None]], [[1, 2, 3, 4, 5, 1e9]]]
NO_POLYGONS += [[[1, 2, 3, 4, 5, NAN]], [1, 2, 3, 4, 5, 6]]
NO_COUNTS = [[10, 20], [10, -5, 3067], [3072], [], [10.0, 3062.0], [10, [3062]], [HUGE], "o" * 40, "\ud800é", None]
NO_SIZES = [[64, 48], [48], ["48", "64"], None]
NO_MASKS = [None, "text", *NO_POLYGONS, {"counts": [10, 3062]}, {"counts": [0, 10**12], "size": [10**6, 10**6]}]
NO_MASKS += [{"counts": counts, "size": [48, 64]} for counts in NO_COUNTS]
NO_MASKS += [{"counts": [10, 3062], "size": size} for size in NO_SIZES]
NO_NAMES = ["../P2/images/000000.jpg", "images/../../../secret.jpg", "/etc/passwd", "images\\000000.jpg"]
NO_NAMES += ["C:images/000000.jpg", "images/000000.jpg\0.jpg", "a" * 5000, "9" * 5000, "", None, [OTHER_PHOTOGRAPH]]

DAMAGE = [
    (remove(MASK), "query without a mask"),
    (remove(QUERY), "mask without an image"),
    (save(MASK, np.zeros((48, 64), np.uint8)), "query with an empty mask"),
    (save(MASK, np.full((24, 64), 255, np.uint8)), "query whose image and mask differ in size"),
    *[(truncate(path), NO_MASK) for path in (MASK, REAL_MASK)],
    *[(truncate(path), NO_IMAGE) for path in (QUERY, REAL_QUERY)],
    *[(overwrite(MASK, content), NO_MASK) for content in (b"", b"no image at all", b"GIF89a" + bytes(20))],
    (overwrite(QUERY, b""), NO_IMAGE),
    *[(put(path, kind), NO_MASK) for kind in KINDS for path in (MASK, REAL_MASK)],
    *[(put(QUERY, kind), NO_IMAGE) for kind in KINDS],
    *[(put(PHOTOGRAPH, kind), NO_PHOTOGRAPH) for kind in KINDS],
    (remove(PHOTOGRAPH), NO_PHOTOGRAPH),
    (truncate(PHOTOGRAPH), NO_PHOTOGRAPH),
    (overwrite(PHOTOGRAPH, b""), NO_PHOTOGRAPH),
    (save(PHOTOGRAPH, np.zeros((24, 64), np.uint8)), "gallery image whose size is not what its annotations say"),
    (lambda tiny: tiny.path("OWID/P1/no number").mkdir(), "folder whose name holds no instance id"),
    (lambda tiny: tiny.path("OWID/P1/77").mkdir(), "instance folder without images in rgb/"),
    *[(add_annotation(image_id=value), "annotation that points to no image") for value in (77, None, [0], "0")],
    (add_record("annotations", 7), "annotation that points to no image"),
    *[
        (add_annotation(category_id=value), "annotation without an instance id")
        for value in ("3", None, True, -1, HUGE)
    ],
    *[(add_annotation(bbox=box), "annotation without a box of positive size") for box in NO_BOXES],
    *[(add_annotation(segmentation=mask), "annotation without a usable mask") for mask in NO_MASKS],
    (add_image(file_name="images/7.jpg"), "image without annotations"),
    *[(add_image(id=value), "image record without an id of its own") for value in (0, "1")],
    (add_record("images", None), "image record without an id of its own"),
    *[(add_image(file_name=name), "image whose file name is no path inside its folder") for name in NO_NAMES],
]


@pytest.mark.parametrize("damage, reason", DAMAGE)
def test_what_cannot_be_used_is_skipped_and_counted_and_the_rest_goes_on(tiny, damage, reason):
    _, whole = tiny.create()
    damage(tiny)
    done, annotations = tiny.create("--strict")
    assert done.returncode == 1
    verified = run_here("verify_dataset.py", "--ann-file", tiny.path("anns.pt"), "--base-path", tiny.root)
    assert verified.returncode == 0, verified.stdout  # whatever is written passes
    report = done.stdout[done.stdout.index("skipped:") :].split("\n\n")[0].splitlines()[1:]
    assert [line for line in report if line.strip().startswith(f"1 x {reason}")] == report
    lost = set(whole) - set(annotations)
    assert len(lost) == ("query" in reason or "mask without" in reason or reason.startswith("gallery"))
    assert all(annotations[path] == whole[path] for path in annotations)
    assert tiny.create()[0].returncode == 0  # without --strict


def test_text_of_a_file_cannot_forge_a_line_of_the_report(tiny):
    for number in range(5):
        tiny.train["annotations"].append({**tiny.train["annotations"][0], "segmentation": f"{number}\nwrote\x1b[31m"})
    tiny.train["images"].append({"id": 1, "file_name": "a\nwrote b.jpg", "width": 64, "height": 48})
    tiny.write_json()
    done, _ = tiny.create()
    assert done.stdout.count("\nwrote") == 1
    assert "5 x annotation without a usable mask (no segmentation)" in done.stdout
    assert "\x1b" not in done.stdout


def test_the_report_names_three_places_and_counts_all(tiny):
    for number in range(5):
        tiny.path(f"OWID/P1/name {number}").mkdir()
    done, _ = tiny.create()
    (line,) = [line for line in done.stdout.splitlines() if "no instance id" in line]
    assert line.split(" x ")[0].strip() == "5"
    assert line.endswith("OWID/P1/name 0, OWID/P1/name 1, OWID/P1/name 2, ...")


def test_a_png_that_claims_to_be_huge_is_skipped(tiny):
    data = bytearray(tiny.path(REAL_MASK).read_bytes())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    tiny.path(REAL_MASK).write_bytes(bytes(data))
    done, annotations = tiny.create()
    assert f"1 x {NO_MASK}" in done.stdout
    assert len(annotations) == 8


def test_keys_that_nobody_needs_may_hold_anything(tiny):
    tiny.train["annotations"][0].update(neg_box=[[1, 2]], cam_w={"deep": [1]}, obj_w=None, counts=5)
    tiny.train["categories"] = [{"id": 3}]
    tiny.write_json()
    done, annotations = tiny.create("--strict")
    assert done.returncode == 0
    assert len(annotations) == 9


# ------------------------------------------------------------------------------------------ what it cannot start or end


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
    args = ("--voxdet-root", tiny.root, "--output-file", tiny.path("anns.pt"), "--workers", "1")
    refused(run_here("create_dataset.py", *args), "train_annotations.json")
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
    refused(done, missing, option)
    assert annotations is None


def test_nothing_to_do_and_nothing_found_are_errors(tiny):
    done, annotations = tiny.create("--skip-owid", "--skip-robotools")
    refused(done)
    assert annotations is None
    shutil.rmtree(str(tiny.path("OWID/P1")))
    tiny.path("OWID/P1").mkdir()
    tiny.train = tiny.val = {"images": [], "annotations": []}
    tiny.write_json()
    done, annotations = tiny.create("--skip-robotools")
    refused(done)
    assert annotations is None


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--max-categories", "x"], ["--unknown"]])
def test_bad_arguments_exit_with_2(tiny, arguments):
    assert tiny.create(*arguments)[0].returncode == 2


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


def test_help_comes_without_torch(tmp_path):
    code = "import sys, runpy; sys.argv = ['x', '--help']\n"
    code += f"try: runpy.run_path({str(ROOT / 'create_dataset.py')!r}, run_name='__main__')\n"
    code += "except SystemExit: pass\nassert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, cwd=str(ROOT)).returncode == 0


# ----------------------------------------------------------------------------------------------------------- the output


def test_the_output_is_replaced_whole_so_that_who_reads_the_old_one_keeps_it(tiny):
    tiny.path("anns.pt").write_bytes(b"old" * 100)
    with open(str(tiny.path("anns.pt")), "rb") as reader:
        annotations = tiny.annotations()
        assert reader.read() == b"old" * 100
    assert len(annotations) == 9


def test_a_link_as_output_stays_a_link(tiny):
    tiny.path("target").mkdir()
    tiny.path("anns.pt").symlink_to("target/anns.pt")
    annotations = tiny.annotations()
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
    entry = {"bbox": [box, box], "mask": [mask, mask], "is_query": False, "set": "mine"}
    entries = {f"{number}.jpg": {**entry, "ins": [number, 0]} for number in range(count)}
    assert save_annotations(entries, str(tmp_path / "anns.pt")) == (tmp_path / "anns.pt").stat().st_size
    assert load_plainly(tmp_path / "anns.pt") == load_annotations(str(tmp_path / "anns.pt")) == entries


def test_closed_streams_and_broken_pipes_lose_nothing(tiny):
    words = (
        sys.executable,
        ROOT / "create_dataset.py",
        "--voxdet-root",
        tiny.root,
        "--output-file",
        tiny.path("anns.pt"),
    )
    script = " ".join(shlex.quote(str(word)) for word in words)
    for ending in (">&-", "2>&-", "| true"):
        command = f"unset PYTHONUNBUFFERED; {script} --workers 1 {ending}"
        done = subprocess.run(command, shell=True, stderr=subprocess.PIPE)
        assert done.stderr == b""
        assert len(load_plainly(tiny.path("anns.pt"))) == 9
        tiny.path("anns.pt").unlink()
