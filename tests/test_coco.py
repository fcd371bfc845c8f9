"""The COCO files of VoxDet (soir/coco.py), read by create_dataset.py: what they mean; what contradicts itself in them,
and is refused, skipped or noticed. Whatever is written, verify_dataset.py passes."""

import copy
import json

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from conftest import load_plainly, run_here
from helpers import box_of, coco_list, corners, create, decode, reasons, rectangle, refused, runs_of, verify

TRAIN, VAL = "OWID/P2/images/000000.jpg", "OWID/P2/images/000001.jpg"
REAL = "RoboTools/test/1/rgb/000000.png"
HEIGHT, WIDTH = 48, 64


def row_major(mask):
    return {"counts": runs_of(mask.ravel()), "size": [HEIGHT, WIDTH]}


def as_corners(box):
    return list(corners(box))


def as_shares(box):
    return [side / whole for side, whole in zip(box, (WIDTH, HEIGHT) * 2)]


def polygon_of_shares(mask):
    x1, y1, x2, y2 = box_of(mask)
    return [[v / s for v, s in zip((x1, y1, x2, y1, x2, y2, x1, y2), (WIDTH, HEIGHT) * 4)]]


# Ten objects, [x, y, width, height], in different places.
BOXES = [[3 + 5 * i, 2 + 3 * i, 6 + i % 4, 5 + i % 3] for i in range(10)]


def annotate(tiny, masks=coco_list, box_form=list):
    """Put ten objects of instance 3 into the train image of OWID, and of both instances into that of RoboTools."""
    first = tiny.train["annotations"][0]
    tiny.train["annotations"] = [
        {**first, "id": i, "bbox": box_form(box), "segmentation": masks(rectangle(*corners(box)))}
        for i, box in enumerate(BOXES)
    ]
    tiny.test["annotations"] = [
        {"id": i, "image_id": 1 + i % 2, "category_id": (3, 20)[i % 2], "bbox": box_form(box)}
        for i, box in enumerate(BOXES)
    ]
    tiny.write_json()


# ------------------------------------------------------------------------------------------------------- what they mean


def test_images_of_robotools_are_merged_by_file(tiny):
    annotations = tiny.annotations()
    entry = annotations["RoboTools/test/1/rgb/000000.png"]
    assert entry["ins"] == [3, 20]
    assert entry["bbox"] == [(1, 2, 4, 6), (5, 6, 12, 14)]


def test_both_files_of_owid_count_ids_from_0(tiny):
    annotations = tiny.annotations()
    assert annotations[TRAIN]["ins"] == [3]
    assert annotations[VAL]["ins"] == [20]
    assert annotations[TRAIN]["split"] == "train"
    assert annotations[VAL]["split"] == "val"
    assert annotations["OWID/P1/20/rgb/000000.jpg"]["split"] == "val"
    assert annotations["OWID/P1/3/rgb/000000.jpg"]["split"] == "train"


def test_without_num_ins_the_annotations_of_the_image_are_counted(tiny):
    second = {**tiny.train["annotations"][0], "id": 1, "category_id": 21}
    tiny.train["annotations"].append(second)
    for annotation in tiny.train["annotations"]:
        del annotation["num_ins"]
    tiny.write_json()
    annotations = tiny.annotations()
    assert annotations[TRAIN]["num_ins"] == [2, 2]
    assert annotations[VAL]["num_ins"] == [4]


def test_keys_that_mean_something_elsewhere_or_nothing_may_hold_anything(tiny):
    """Those of images in annotations, those of annotations in images, those of both in the file and in masks."""
    expected = tiny.annotations()
    for coco in (tiny.train, tiny.val, tiny.test):
        names = {image["id"]: image["file_name"] for image in coco["images"]}
        for image in coco["images"]:
            image.update(image_id=image["id"], bbox=None, category_id=7, license=1, counts=7)
        for annotation in coco["annotations"]:
            annotation.update(file_name=names[annotation["image_id"]], width=1, height=1, area=5.0)
            annotation.update(neg_box=[[1, 2]], cam_w={"deep": [1]}, obj_w=None, counts=5)
            annotation.get("segmentation", {})["image_id"] = 0
        coco.update(counts=1, file_name=1, image_id=1, category_id=1, categories=[{"id": 3}])
    tiny.write_json()
    assert tiny.annotations() == expected


def test_annotations_of_instances_without_queries_are_kept(tiny):
    tiny.train["annotations"][0]["category_id"] = 999
    tiny.write_json()
    annotations = tiny.annotations()
    assert annotations[TRAIN]["ins"] == [999]


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
    (rle,) = annotations[TRAIN]["mask"]
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
    one, two = annotations[TRAIN]["mask"]
    assert np.array_equal(coco_mask.decode(one), mask)
    assert np.array_equal(decode(two), decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 48, 64))))


# ------------------------------------------------------------------------------- one annotation that contradicts itself


@pytest.mark.parametrize("shift", [0, 1, 2, -2])
@pytest.mark.parametrize("axis", [0, 1])
def test_annotations_that_agree_with_themselves_are_kept_without_a_word(tiny, axis, shift):
    """Two pixels are rounding."""
    annotate(tiny)
    tiny.train["annotations"][4]["bbox"][axis] += shift
    tiny.write_json()
    done, annotations = create(tiny, strict=0)
    assert len(annotations[TRAIN]["bbox"]) == 10
    assert "skipped" not in done.stdout
    assert "noticed" not in done.stdout


def shift_box(axis, reach):
    def change(train, test):
        train["bbox"][axis] += reach

    return change


def enlarge(*box):
    return lambda train, test: train.update(bbox=list(box), segmentation=coco_list(rectangle(15, 10, 20, 16)))


def put(**fields):
    return lambda train, test: train.update(fields)


def put_real(**fields):
    return lambda train, test: test.update(fields)


# Title of a list of the report, reason there -> what brings an annotation of OWID, or one of RoboTools, into it.
ODD = {
    ("skipped", "annotation whose mask reaches out of its box"): [shift_box(a, r) for a in (0, 1) for r in (3, -3)],
    ("skipped", "annotation whose box is less than a pixel wide or high"): [
        put_real(bbox=box) for box in ([18, 11, 0.5, 4], [18, 11, 4, 0.9])
    ],
    ("skipped", "annotation whose box lies outside of its image"): [
        put_real(bbox=box) for box in ([70, 5, 10, 10], [5, -20, 10, 10])
    ],
    ("skipped", "annotation of a region, not of an instance (iscrowd)"): [put(iscrowd=1), put(iscrowd=True)],
    ("noticed", "annotation that says ignore, kept"): [put_real(ignore=1), put_real(ignore=True)],
    ("noticed", "annotation whose box is far larger than its mask"): [enlarge(10, 8, 20, 20), enlarge(14, 2, 12, 15)],
    ("noticed", "annotation whose box reaches out of its image, clipped"): [
        put_real(bbox=box) for box in ([-4, 5, 10, 10], [50, 40, 20, 20], [10, -3, 12, 9])
    ],
    ("noticed", "annotation whose num_ins is no positive integer, counted anew"): [
        put(num_ins=value) for value in ("4", 4.0, -1, [4])
    ],
}


@pytest.mark.parametrize("title, reason, change", [(*key, change) for key in ODD for change in ODD[key]])
def test_an_odd_annotation_is_skipped_or_noticed(tiny, title, reason, change):
    annotate(tiny)
    train, test = tiny.train["annotations"][4], tiny.test["annotations"][3]
    change(train, test)
    tiny.write_json()
    done, annotations = create(tiny)
    assert reasons(done, title) == {reason: 1}
    kept = len(annotations[TRAIN]["bbox"]) + len(annotations[REAL]["bbox"])
    assert kept == 20 - (title == "skipped")
    if "clipped" in reason:
        x, y, width, height = test["bbox"]
        clipped = (max(x, 0), max(y, 0), min(x + width, WIDTH), min(y + height, HEIGHT))
        assert clipped in annotations[REAL]["bbox"]
    if "num_ins" in reason:
        assert annotations[TRAIN]["num_ins"][4] == 10


def test_a_mask_that_reaches_out_of_its_box_can_be_kept(tiny):
    annotate(tiny)
    tiny.train["annotations"][4]["bbox"][0] += 3
    tiny.write_json()
    done, annotations = tiny.create("--keep-contradictions")
    assert len(annotations[TRAIN]["bbox"]) == 10
    assert reasons(done, "noticed") == {"annotation whose mask reaches out of its box, kept": 1}


# ------------------------------------------------------------------------------------- a file that means something else


@pytest.mark.parametrize(
    "kept, change, words",
    [
        ("owid", {"masks": row_major}, "row-major"),
        ("owid", {"masks": lambda mask: coco_list(~mask)}, "inverted"),
        ("owid", {"masks": lambda mask: row_major(~mask)}, "row-major and inverted"),
        ("owid", {"masks": polygon_of_shares}, "shares"),
        ("owid", {"box_form": as_corners}, "corners"),
        ("robotools", {"box_form": as_corners}, "corners"),
        ("owid", {"box_form": as_shares}, "shares of the image, pixels are expected"),
        ("robotools", {"box_form": as_shares}, "shares of the image, pixels are expected"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_means_something_else_is_refused_with_what_it_seems_to_mean(tiny, kept, change, words):
    annotate(tiny, **change)
    skip = "--skip-robotools" if kept == "owid" else "--skip-owid"
    done, annotations = create(tiny, skip)
    assert (done.returncode, annotations) == (2, None)
    assert words in done.stderr
    if "pixels" not in words:
        assert "--keep-contradictions" in done.stderr
        done, annotations = tiny.create(skip, "--keep-contradictions")
        assert done.returncode == 0
        assert annotations


def test_train_as_a_copy_of_val_is_refused(tiny):
    for content in (tiny.val, {**tiny.train, "images": tiny.val["images"]}):
        tiny.path("OWID/P2/train_annotations.json").write_text(json.dumps(content))
        done, annotations = create(tiny)
        assert (done.returncode, annotations) == (2, None)
        assert "copy" in done.stderr


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
    ids=lambda content: content[:20].decode("latin1"),
)
def test_a_broken_json_ends_the_run_with_a_sentence_and_leaves_the_old_output(tiny, content):
    tiny.path("anns.pt").write_bytes(b"old")
    tiny.path("OWID/P2/train_annotations.json").write_bytes(content)
    args = ("--voxdet-root", tiny.root, "--output-file", tiny.path("anns.pt"), "--workers", 1)
    refused(run_here("create_dataset.py", *args), "train_annotations.json")
    assert tiny.path("anns.pt").read_bytes() == b"old"


# ----------------------------------------------------------------------------------- records that contradict each other


def test_an_annotation_that_occurs_twice_is_one_object(tiny):
    annotate(tiny)
    tiny.train["annotations"] += copy.deepcopy(tiny.train["annotations"][:2])
    tiny.test["annotations"].append({**tiny.test["annotations"][0], "id": 77})
    tiny.write_json()
    done, annotations = create(tiny)
    assert reasons(done, "skipped") == {"annotation that occurs twice": 3}
    assert len(annotations[TRAIN]["bbox"]) == len(annotations[REAL]["bbox"]) == 10


def test_an_image_of_both_splits_is_a_val_image(tiny):
    annotate(tiny)
    tiny.val["images"].append({"id": 1, "file_name": "images/000000.jpg", "width": 64, "height": 48})
    tiny.val["annotations"].append({**tiny.train["annotations"][0], "image_id": 1, "category_id": 20})
    tiny.write_json()
    done, annotations = create(tiny)
    assert reasons(done, "noticed") == {"image of several splits, taken as a val image": 1}
    assert annotations[TRAIN]["split"] == "val"


@pytest.mark.parametrize("split, instance", [("train", 20), ("val", 3)])
def test_an_instance_of_both_splits_is_noticed(tiny, split, instance):
    coco = getattr(tiny, split)
    coco["annotations"].append({**coco["annotations"][0], "id": 9, "category_id": instance, "bbox": [19, 9, 3, 22]})
    tiny.write_json()
    done, annotations = create(tiny)
    assert f"1 x instance of both splits, its queries are of val: OWID: instance {instance}" in done.stdout
    assert annotations[f"OWID/P1/{instance}/rgb/000000.jpg"]["split"] == "val"


@pytest.mark.parametrize("size", [{"width": 32, "height": 24}, {"width": 64, "height": 47}])
@pytest.mark.parametrize("which", [0, -1])
def test_records_of_an_image_that_differ_in_size_are_not_believed(tiny, which, size):
    tiny.test["images"][which].update(size)
    tiny.test["images"].append({"id": 3, "file_name": "2/rgb/000000.png", "width": 64, "height": 48})
    tiny.test["annotations"].append({"id": 3, "image_id": 3, "category_id": 3, "bbox": [1, 2, 3, 4]})
    tiny.save_image("RoboTools/test/2/rgb/000000.png")
    tiny.write_json()
    done, annotations = create(tiny)
    assert f"1 x image whose records differ in size: {REAL}" in done.stdout
    assert REAL not in annotations


# -------------------------------------------------------------------------------------------------- whatever is in them


def with_ids(tiny, count, shared):
    """Train with so many images more, of which the first `shared` pairs have one id each, and an object each."""
    names = [f"images/{number + 10:06d}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        tiny.save_image(f"OWID/P2/{name}")
        image_id = 100 + (number // 2 if number < 2 * shared else number)
        tiny.train["images"].append({"id": image_id, "file_name": name, "width": WIDTH, "height": HEIGHT})
        annotation = {**copy.deepcopy(tiny.train["annotations"][0]), "id": 100 + number, "image_id": image_id}
        tiny.train["annotations"].append(annotation)
    tiny.write_json()
    return [f"OWID/P2/{name}" for name in names]


@pytest.mark.parametrize("shared", [1, 2, 3])
def test_an_image_id_of_two_images_is_nobodys(tiny, shared):
    names = with_ids(tiny, 10, shared)
    done, annotations = tiny.create("--strict")
    assert reasons(done, "skipped") == {
        "image whose id another image has too": 2 * shared,
        "annotation whose image id is that of several images": 2 * shared,
    }
    assert [name for name in names if name in annotations] == names[2 * shared :]
    assert all(len(annotations[name]["ins"]) == 1 for name in names[2 * shared :])


def test_many_image_ids_of_two_images_end_the_run(tiny):
    with_ids(tiny, 10, 4)
    done, annotations = tiny.create()
    refused(done, "4 image ids of train are each that of several images, as 100 of images/000010.jpg and")
    assert annotations is None


@pytest.mark.parametrize("form", ["runs", "pixels", "text"])
def test_masks_that_cannot_be_read_are_no_contradictions(tiny, form):
    """Run lengths as if they were a polygon, rows of pixels, and text."""
    masks = {"runs": lambda m: [coco_list(m)["counts"]], "pixels": lambda m: m.tolist(), "text": lambda m: "RLE"}
    annotate(tiny, masks=masks[form])
    done, _ = tiny.create()
    assert reasons(done, "skipped").popitem()[0].startswith("annotation without a usable mask (")
    assert "contradict" not in done.stdout + done.stderr


def damages():
    """Name -> change of an annotation, of every kind that the tests know."""
    rng = np.random.RandomState(0)
    values = [None, True, -1, 0, 0.5, 1e9, float(2**31), "5", [], {}, [1, 2], [1, 2, 3, 4, 5]]
    for field in ("bbox", "category_id", "image_id", "segmentation", "num_ins", "iscrowd", "ignore", "id"):
        for value in values:
            yield f"{field} = {value!r}", {field: value}
    for number in range(30):
        yield f"box {number}", {"bbox": (rng.uniform(-1, 1.5, 4) * (WIDTH, HEIGHT, WIDTH, HEIGHT)).tolist()}
        mask = rng.rand(HEIGHT, WIDTH) < rng.choice([0.001, 0.5, 0.999])
        yield f"mask {number}", {"segmentation": coco_list(mask)}
        yield f"polygon {number}", {"segmentation": [(rng.uniform(-1, 2, 8) * WIDTH).tolist()]}
        mask = rectangle(*corners(BOXES[number % 10]))
        yield f"mixed {number}", {"bbox": [5, 5, 0.2, 30], "segmentation": row_major(mask)}


def test_whatever_create_writes_verify_passes(tiny):
    """Each damage for itself, with and without --keep-contradictions; and all of them at once."""
    annotate(tiny)
    whole = copy.deepcopy((tiny.train["annotations"], tiny.test["annotations"]))
    changes = dict(damages())
    for index, (name, change) in enumerate([*changes.items(), ("all", None)]):
        tiny.train["annotations"], tiny.test["annotations"] = copy.deepcopy(whole)
        if change is None:
            more = [{**annotation, **change} for annotation, change in zip(whole[0] * 99, changes.values())]
            tiny.train["annotations"] += more
            tiny.test["annotations"] += more
        else:
            tiny.train["annotations"][index % 10].update(change)
            tiny.test["annotations"][(index + 3) % 10].update(change)
        tiny.write_json()
        options = ["--keep-contradictions"] if index % 2 and change else []
        done, annotations = tiny.create(*options)
        assert done.returncode == 0, (name, done.stderr)
        verified, _ = verify(tiny.root / "anns.pt", tiny.root)
        if not options:
            assert verified.returncode == 0, (name, verified.stdout)
    assert load_plainly(tiny.root / "anns.pt")
