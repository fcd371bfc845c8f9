"""Inputs that contradict themselves: create_dataset.py notices each kind, and whatever it writes, verify_dataset.py
passes. What others wrote all the same, verify_dataset.py finds.
"""

import copy
import io
import json
import shutil

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from conftest import load_plainly, run_here
from PIL import Image

HEIGHT, WIDTH = 48, 64


def rectangle(x, y, width, height):
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def runs_of(pixels, leading_zero=True):
    """Run lengths of a flat mask, background first."""
    edges = np.flatnonzero(np.diff(pixels)) + 1
    runs = np.diff([0, *edges, pixels.size]).tolist()
    return [0, *runs] if pixels[0] and leading_zero else runs


def column_major(mask):
    return {"counts": runs_of(mask.ravel(order="F")), "size": [HEIGHT, WIDTH]}


def row_major(mask):
    return {"counts": runs_of(mask.ravel()), "size": [HEIGHT, WIDTH]}


def inverted(mask):
    return {"counts": runs_of(1 - mask.ravel(order="F")), "size": [HEIGHT, WIDTH]}


def as_corners(x, y, width, height):
    return [x, y, x + width, y + height]


# Ten objects, [x, y, width, height], in different places.
BOXES = [[3 + 5 * i, 2 + 3 * i, 6 + i % 4, 5 + i % 3] for i in range(10)]


def annotate(tiny, boxes=BOXES, masks=column_major, box_form=lambda *box: list(box), **fields):
    """Put objects of instance 3 into the train image of OWID, and of both instances into that of RoboTools."""
    first = tiny.train["annotations"][0]
    tiny.train["annotations"] = [
        {**first, "id": i, "bbox": box_form(*box), "segmentation": masks(rectangle(*box)), **fields}
        for i, box in enumerate(boxes)
    ]
    tiny.test["annotations"] = [
        {"id": i, "image_id": 1 + i % 2, "category_id": (3, 20)[i % 2], "bbox": box_form(*box), **fields}
        for i, box in enumerate(boxes)
    ]
    tiny.write_json()


def create(tiny, *args, strict=1):
    """Run create_dataset.py: (process, annotations). What it writes passes; `strict` is the exit status of --strict."""
    for file in tiny.root.glob("*.pt"):
        file.unlink()
    done, annotations = tiny.create(*args)
    if annotations is not None:
        assert done.returncode == 0, done.stderr
        verified = verify(tiny, tiny.root / "anns.pt")
        assert verified.returncode == 0, verified.stdout
        assert tiny.create("--strict", *args)[0].returncode == strict
    return done, annotations


def verify(tiny, file, *args):
    return run_here("verify_dataset.py", "--ann-file", file, "--base-path", tiny.root, *args)


def reasons(done, title):
    """Reason -> number, of a list of the report."""
    _, _, report = done.stdout.partition(f"\n{title}:\n")
    found = {}
    for line in report.split("\n\n")[0].splitlines():
        number, rest = line.split(" x ", 1)
        found[rest.split(": ")[0]] = int(number.replace(",", ""))
    return found


# ------------------------------------------------------------------------------------------------ masks against boxes


def test_annotations_that_agree_with_themselves_are_kept_without_a_word(tiny):
    annotate(tiny)
    done, annotations = create(tiny, strict=0)
    assert len(annotations["OWID/P2/images/000000.jpg"]["bbox"]) == 10
    assert "skipped" not in done.stdout
    assert "noticed" not in done.stdout


@pytest.mark.parametrize("reach", [3, -3])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_mask_that_reaches_out_of_its_box_is_skipped(tiny, reach, axis):
    annotate(tiny)
    tiny.train["annotations"][4]["bbox"][axis] += reach
    tiny.write_json()
    done, annotations = create(tiny)
    assert len(annotations["OWID/P2/images/000000.jpg"]["bbox"]) == 9
    assert reasons(done, "skipped") == {"annotation whose mask reaches out of its box": 1}
    done, annotations = tiny.create("--keep-contradictions")
    assert len(annotations["OWID/P2/images/000000.jpg"]["bbox"]) == 10
    assert reasons(done, "noticed") == {"annotation whose mask reaches out of its box, kept": 1}


@pytest.mark.parametrize("shift", [2, -2, 1])
def test_two_pixels_are_rounding(tiny, shift):
    annotate(tiny)
    tiny.train["annotations"][4]["bbox"][0] += shift
    tiny.write_json()
    done, annotations = create(tiny, strict=0)
    assert len(annotations["OWID/P2/images/000000.jpg"]["bbox"]) == 10


@pytest.mark.parametrize("box", [[10, 8, 20, 20], [14, 2, 12, 15]])
def test_a_box_that_is_far_larger_than_its_mask_is_noticed(tiny, box):
    annotate(tiny)
    annotation = tiny.train["annotations"][4]
    annotation.update(bbox=box, segmentation=column_major(rectangle(15, 10, 5, 6)))
    tiny.write_json()
    done, annotations = create(tiny)
    assert len(annotations["OWID/P2/images/000000.jpg"]["bbox"]) == 10
    assert reasons(done, "noticed") == {"annotation whose box is far larger than its mask": 1}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"masks": row_major}, "row-major"),
        ({"masks": inverted}, "inverted"),
        ({"masks": lambda mask: row_major(1 - mask)}, "row-major and inverted"),
        ({"box_form": as_corners}, "corners"),
        ({"masks": lambda mask: [[v / s for v, s in zip(outline(mask), (WIDTH, HEIGHT) * 4)]]}, "shares"),
    ],
    ids=["row-major", "inverted", "row-major and inverted", "corners", "shares"],
)
def test_a_file_that_means_something_else_is_refused_with_what_it_seems_to_mean(tiny, change, words):
    annotate(tiny, **change)
    done, annotations = create(tiny, "--skip-robotools")
    assert done.returncode == 2, done.stdout
    assert annotations is None
    assert words in done.stderr
    assert "--keep-contradictions" in done.stderr
    done, annotations = tiny.create("--skip-robotools", "--keep-contradictions")
    assert done.returncode == 0
    assert annotations


def outline(mask):
    x, y, width, height = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask)))
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def test_boxes_as_corners_are_told_without_masks_too(tiny):
    annotate(tiny, box_form=as_corners)
    done, annotations = create(tiny, "--skip-owid")
    assert done.returncode == 2, done.stdout
    assert "corners" in done.stderr


def found_by_verify(tiny, change, *args):
    """The checks that find something in the annotation file after a change of the train image's entry."""
    annotate(tiny)
    _, annotations = tiny.create()
    change(annotations["OWID/P2/images/000000.jpg"])
    file, report = tiny.root / "changed.pt", tiny.root / "report.json"
    torch.save(annotations, str(file))
    done = verify(tiny, file, "--report", report, *args)
    checks = json.loads(report.read_text())["checks"]
    return done, {name for name, check in checks.items() if check["count"]}


def test_verify_finds_masks_that_reach_out_of_their_boxes_and_boxes_that_are_far_larger(tiny):
    def other_mask(entry):
        entry["mask"][0] = entry["mask"][5]

    def shifted_box(entry):
        x1, y1, x2, y2 = entry["bbox"][2]
        entry["bbox"][2] = (x1 + 3, y1, x2 + 3, y2)

    def large_box(entry):
        x1, y1, x2, y2 = entry["bbox"][2]
        entry["bbox"][2] = (x1 - 4, y1 - 4, x2 + 8, y2 + 8)

    for change, check, status in (
        (other_mask, "gallery-box", 1),
        (shifted_box, "gallery-box", 1),
        (large_box, "gallery-box-loose", 0),
    ):
        done, checks = found_by_verify(tiny, change)
        assert (done.returncode, checks) == (status, {check})
    assert found_by_verify(tiny, large_box, "--strict")[0].returncode == 1


# ----------------------------------------------------------------------------------------------------- shares, repeats


def as_shares(x, y, width, height):
    return [x / WIDTH, y / HEIGHT, width / WIDTH, height / HEIGHT]


@pytest.mark.parametrize("skip", ["--skip-robotools", "--skip-owid"])
def test_boxes_that_are_shares_of_the_image_are_refused(tiny, skip):
    annotate(tiny, box_form=as_shares)
    done, annotations = create(tiny, skip)
    assert (done.returncode, annotations) == (2, None)
    assert "shares of the image, pixels are expected" in done.stderr


@pytest.mark.parametrize("width, height", [(0.5, 4), (4, 0.9)])
def test_a_box_below_a_pixel_is_skipped(tiny, width, height):
    annotate(tiny)
    tiny.test["annotations"][3]["bbox"][2:] = [width, height]
    tiny.write_json()
    done, annotations = create(tiny)
    assert len(annotations["RoboTools/test/1/rgb/000000.png"]["bbox"]) == 9
    assert reasons(done, "skipped") == {"annotation whose box is less than a pixel wide or high": 1}


def test_an_annotation_that_occurs_twice_is_one_object(tiny):
    annotate(tiny)
    tiny.train["annotations"] += copy.deepcopy(tiny.train["annotations"][:2])
    tiny.test["annotations"].append({**tiny.test["annotations"][0], "id": 77})
    tiny.write_json()
    done, annotations = create(tiny)
    assert reasons(done, "skipped") == {"annotation that occurs twice": 3}
    assert len(annotations["OWID/P2/images/000000.jpg"]["bbox"]) == 10
    assert len(annotations["RoboTools/test/1/rgb/000000.png"]["bbox"]) == 10


def test_an_image_of_both_splits_is_a_val_image(tiny):
    annotate(tiny)
    tiny.save_image("OWID/P2/images/000002.jpg")
    tiny.val["images"].append({"id": 1, "file_name": "images/000000.jpg", "width": 64, "height": 48})
    tiny.val["annotations"].append({**tiny.train["annotations"][0], "image_id": 1, "category_id": 20})
    tiny.write_json()
    done, annotations = create(tiny)
    assert reasons(done, "noticed") == {"image of several splits, taken as a val image": 1}
    assert annotations["OWID/P2/images/000000.jpg"]["split"] == "val"


def test_train_as_a_copy_of_val_is_refused(tiny):
    for content in (tiny.val, {**tiny.train, "images": tiny.val["images"] + tiny.train["images"][:0]}):
        tiny.path("OWID/P2/train_annotations.json").write_text(json.dumps(content))
        done, annotations = create(tiny)
        assert (done.returncode, annotations) == (2, None)
        assert "copy" in done.stderr


def test_verify_finds_an_object_that_is_there_twice(tiny):
    def repeat(entry):
        for field in ("bbox", "mask", "ins", "num_ins"):
            entry[field].append(entry[field][0])

    done, checks = found_by_verify(tiny, repeat)
    assert (done.returncode, checks) == (0, {"object-repeated"})


# -------------------------------------------------------------------------------------------------------- flags, twins


@pytest.mark.parametrize("value", [1, True])
def test_a_region_is_no_instance(tiny, value):
    annotate(tiny)
    tiny.train["annotations"][2]["iscrowd"] = value
    tiny.write_json()
    done, annotations = create(tiny)
    assert reasons(done, "skipped") == {"annotation of a region, not of an instance (iscrowd)": 1}
    assert len(annotations["OWID/P2/images/000000.jpg"]["bbox"]) == 9


@pytest.mark.parametrize("value", [1, True])
def test_annotations_that_say_ignore_are_kept_and_noticed(tiny, value):
    annotate(tiny)
    tiny.test["annotations"][2]["ignore"] = value
    tiny.write_json()
    done, annotations = create(tiny)
    assert reasons(done, "noticed") == {"annotation that says ignore, kept": 1}
    assert len(annotations["RoboTools/test/1/rgb/000000.png"]["bbox"]) == 10


@pytest.mark.parametrize("kept, other", [("000000.jpg", "000000.png"), ("000000.jpg", "000000.jpeg")])
def test_of_two_photographs_of_one_name_one_is_used(tiny, kept, other):
    tiny.save_image(f"OWID/P1/3/rgb/{other}")
    done, annotations = create(tiny)
    assert reasons(done, "skipped") == {"second photograph of the same name": 1}
    assert f"OWID/P1/3/rgb/{kept}" in annotations
    assert f"OWID/P1/3/rgb/{other}" not in annotations


@pytest.mark.parametrize(
    "below, first, second",
    [("RoboTools/test_video", "obj_000003", "obj_3"), ("OWID/P1", "3", "backup_3")],
)
def test_of_two_folders_of_one_id_the_second_is_skipped(tiny, below, first, second):
    shutil.copytree(str(tiny.path(f"{below}/{first}")), str(tiny.path(f"{below}/{second}")))
    done, annotations = create(tiny)
    assert reasons(done, "skipped") == {"folder with the instance id of another": 1}
    folders = {path.split("/")[2] for path in annotations if path.startswith(below)}
    assert len(folders & {first, second}) == 1


# --------------------------------------------------------------------------------------------- masks of several levels

OBJECT = rectangle(20, 10, 24, 22)
PHOTOGRAPH = np.random.RandomState(0).randint(5, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def void_border():
    return np.where(OBJECT, 1, np.where(rectangle(14, 4, 36, 34), 255, 0)).astype(np.uint8)


def label_map(first, second):
    return np.where(rectangle(20, 10, 12, 22), first, np.where(OBJECT, second, 0)).astype(np.uint8)


def palette(first, second):
    image = Image.fromarray(label_map(1, 2))
    image.putpalette([0, 0, 0, *first, *second] + [0] * 759)
    return image


LABELS = {
    "void border": void_border(),
    "labels 1 and 2": label_map(1, 2),
    "labels 100 and 200": label_map(100, 200),
    "labels 254 and 255": label_map(254, 255),
    "a palette of two colours alike in brightness": palette((128, 0, 0), (0, 128, 0)),
    "two colours": np.stack([label_map(255, 0), label_map(0, 255), label_map(0, 0)], axis=2),
    "16 bit": label_map(1, 2).astype(np.uint16) * 1000,
}


@pytest.mark.parametrize("name", LABELS)
def test_a_mask_with_several_labels_is_skipped(tiny, name):
    tiny.save_image("RoboTools/test_video/obj_000003/mask/000000.png", LABELS[name])
    tiny.save_image("RoboTools/test_video/obj_000003/rgb/000001.png")
    tiny.save_image("RoboTools/test_video/obj_000003/mask/000001.png", tiny.mask)
    done, annotations = create(tiny)
    assert reasons(done, "skipped") == {"mask with several labels": 1}


def coloured_jpeg(colour):
    return Image.fromarray(OBJECT[..., None] * np.array(colour, dtype=np.uint8))


def anti_aliased(scale):
    large = Image.fromarray(np.uint8(disc(scale)) * 255)
    return large.resize((WIDTH, HEIGHT), Image.BOX)


def disc(scale=1):
    yy, xx = np.mgrid[: HEIGHT * scale, : WIDTH * scale]
    return (xx - 30 * scale) ** 2 + (yy - 24 * scale) ** 2 < (15 * scale) ** 2


def cut_out(alpha):
    return Image.fromarray(np.dstack([PHOTOGRAPH, alpha]))


@pytest.mark.parametrize(
    "ending, image, expected",
    [
        ("png", cut_out(OBJECT * 255), OBJECT),
        ("png", cut_out(np.uint8(disc()) * 255), disc()),
        ("png", Image.fromarray(np.dstack([PHOTOGRAPH[..., 0], OBJECT * 255]), "LA"), OBJECT),
        ("jpg", coloured_jpeg((255, 0, 0)), OBJECT),
        ("jpg", coloured_jpeg((0, 0, 255)), OBJECT),
        ("jpg", coloured_jpeg((0, 255, 0)), OBJECT),
        ("png", anti_aliased(2), np.asarray(anti_aliased(2)) > 127),
        ("png", anti_aliased(8), np.asarray(anti_aliased(8)) > 127),
        ("jpg", anti_aliased(8), np.asarray(anti_aliased(8)) > 127),
    ],
    ids=[
        "cut-out",
        "cut-out disc",
        "cut-out grey",
        "red",
        "blue",
        "green",
        "contour of 3",
        "contour of 63",
        "jpeg contour",
    ],
)
def test_a_mask_that_says_what_it_means_is_read(tiny, ending, image, expected):
    folder = "OWID/P1/3"
    for file in tiny.path(f"{folder}/mask").iterdir():
        file.unlink()
    for frame in range(2):
        tiny.save_image(f"{folder}/mask/{frame:06d}.{ending}", image)
    done, annotations = create(tiny, strict=0)
    mask = coco_mask.decode(annotations[f"{folder}/rgb/000000.jpg"]["mask"])
    wrong = np.count_nonzero(mask != expected)
    assert wrong <= 0.03 * np.count_nonzero(expected)


def matte(values):
    yy, xx = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.hypot(xx - 30, yy - 24)
    return np.uint8(np.clip(255 * (values - distance) / values, 0, 255))


@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize("radius", [12, 20])
def test_a_soft_mask_is_cut_at_half_and_noticed(tiny, ending, radius):
    folder = "OWID/P1/3"
    tiny.path(f"{folder}/mask/000000.jpg").unlink()
    tiny.save_image(f"{folder}/mask/000000.{ending}", matte(radius))
    done, annotations = create(tiny)
    assert reasons(done, "noticed") == {"query whose mask is soft, cut at half of its largest value": 1}
    mask = coco_mask.decode(annotations[f"{folder}/rgb/000000.jpg"]["mask"])
    expected = matte(radius) > matte(radius).max() / 2
    assert np.count_nonzero(mask != expected) <= 0.1 * np.count_nonzero(expected)


# ------------------------------------------------------------------------------------- boxes out of the image, reasons


@pytest.mark.parametrize("box", [[-4, 5, 10, 10], [50, 40, 20, 20], [10, -3, 12, 9]])
def test_a_box_that_reaches_out_of_its_image_is_clipped_and_noticed(tiny, box):
    annotate(tiny)
    tiny.test["annotations"][1]["bbox"] = box
    tiny.write_json()
    done, annotations = create(tiny)
    assert reasons(done, "noticed") == {"annotation whose box reaches out of its image, clipped": 1}
    x, y, width, height = box
    clipped = (max(x, 0), max(y, 0), min(x + width, WIDTH), min(y + height, HEIGHT))
    assert clipped in annotations["RoboTools/test/1/rgb/000000.png"]["bbox"]


@pytest.mark.parametrize("box", [[70, 5, 10, 10], [5, -20, 10, 10]])
def test_a_box_outside_of_its_image_is_skipped(tiny, box):
    annotate(tiny)
    tiny.test["annotations"][1]["bbox"] = box
    tiny.write_json()
    done, annotations = create(tiny)
    assert reasons(done, "skipped") == {"annotation whose box lies outside of its image": 1}


@pytest.mark.parametrize("part", ["mask", "rgb"])
def test_what_a_skipped_file_suffers_from_is_said(tiny, part):
    path = tiny.path(f"RoboTools/test_video/obj_000003/{part}/000000.png")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    tiny.save_image("RoboTools/test_video/obj_000003/rgb/000001.png")
    tiny.save_image("RoboTools/test_video/obj_000003/mask/000001.png", tiny.mask)
    done, annotations = create(tiny)
    (line,) = [line for line in done.stdout.splitlines() if "cannot be read" in line]
    what = "mask" if part == "mask" else "image"
    try:
        Image.open(io.BytesIO(path.read_bytes())).load()
        raise AssertionError("the file is whole")
    except (OSError, SyntaxError) as error:
        reason = str(error)
    assert f"query whose {what} cannot be read: RoboTools/test_video/obj_000003/rgb/000000.png ({reason})" in line


# ----------------------------------------------------------------------------------------------------- the property


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
        yield f"mask {number}", {"segmentation": column_major(mask.astype(np.uint8))}
        yield f"polygon {number}", {"segmentation": [(rng.uniform(-1, 2, 8) * WIDTH).tolist()]}
        yield f"mixed {number}", {"bbox": [5, 5, 0.2, 30], "segmentation": row_major(rectangle(*BOXES[number % 10]))}


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
        verified = verify(tiny, tiny.root / "anns.pt")
        if not options:
            assert verified.returncode == 0, (name, verified.stdout)
    assert load_plainly(tiny.root / "anns.pt")


# ------------------------------------------------------------------------------------- queries, records, roots, splits


@pytest.mark.parametrize("name, ending", [("OWID/P1", "jpg"), ("RoboTools/test_video", "png")])
@pytest.mark.parametrize("make", [lambda mask: 255 - mask, lambda mask: np.full_like(mask, 255)], ids=["not", "white"])
def test_inverted_masks_of_queries_are_not_believed(tiny, name, ending, make):
    for path in tiny.path(name).glob(f"*/mask/*.{ending}"):
        tiny.save_image(path.relative_to(tiny.root), make(tiny.mask))
    done, annotations = tiny.create()
    assert (done.returncode, annotations) == (2, None)
    assert "it looks as if they are inverted" in done.stderr
    done, annotations = create(tiny, "--keep-contradictions")
    assert "query whose mask reaches all four sides of its image" in done.stdout
    assert len(annotations) == 9


def test_one_mask_that_reaches_all_sides_is_noticed(tiny):
    tiny.save_image("OWID/P1/3/mask/000001.jpg", 255 - tiny.mask)
    done, annotations = create(tiny)
    assert "1 x query whose mask reaches all four sides of its image: OWID/P1/3/rgb/000001.jpg" in done.stdout
    assert annotations["OWID/P1/3/rgb/000001.jpg"]["bbox"] == (0, 0, 64, 48)


@pytest.mark.parametrize("background, second", [((0, 0, 0), (0, 255, 0)), ((255, 0, 0), (0, 0, 255))])
def test_a_jpeg_of_several_colours_has_several_labels(tiny, background, second):
    pixels = np.zeros((480, 640, 3), dtype=np.uint8)
    pixels[:] = background
    pixels[100:220, 50:200], pixels[100:220, 400:600] = (255, 0, 0), second
    tiny.save_image("OWID/P1/3/mask/000001.jpg", pixels)
    done, annotations = create(tiny)
    assert "1 x mask with several labels: OWID/P1/3/rgb/000001.jpg" in done.stdout
    assert len(annotations) == 8


@pytest.mark.parametrize("size", [{"width": 32, "height": 24}, {"width": 64, "height": 47}])
@pytest.mark.parametrize("which", [0, -1])
def test_records_of_an_image_that_differ_in_size_are_not_believed(tiny, which, size):
    tiny.test["images"][which].update(size)
    tiny.test["images"].append({"id": 3, "file_name": "2/rgb/000000.png", "width": 64, "height": 48})
    tiny.test["annotations"].append({"id": 3, "image_id": 3, "category_id": 3, "bbox": [1, 2, 3, 4]})
    tiny.save_image("RoboTools/test/2/rgb/000000.png")
    tiny.write_json()
    done, annotations = create(tiny)
    assert "1 x image whose records differ in size: RoboTools/test/1/rgb/000000.png" in done.stdout
    assert "RoboTools/test/1/rgb/000000.png" not in annotations


@pytest.mark.parametrize("num_ins", ["4", 4.0, -1, [4]])
def test_a_num_ins_that_is_no_count_is_noticed(tiny, num_ins):
    tiny.train["annotations"][0]["num_ins"] = num_ins
    tiny.write_json()
    done, annotations = create(tiny)
    assert "1 x annotation whose num_ins is no positive integer" in done.stdout
    assert annotations["OWID/P2/images/000000.jpg"]["num_ins"] == [1]


@pytest.mark.parametrize("split, instance", [("train", 20), ("val", 3)])
def test_an_instance_of_both_splits_is_noticed(tiny, split, instance):
    coco = getattr(tiny, split)
    coco["annotations"].append({**coco["annotations"][0], "id": 9, "category_id": instance, "bbox": [19, 9, 3, 22]})
    tiny.write_json()
    done, _ = create(tiny)
    assert f"1 x instance of both splits, its queries are of val: OWID: instance {instance}" in done.stdout


@pytest.mark.parametrize("key", ["counts", "file_name", "image_id", "category_id"])
def test_a_key_of_the_file_may_be_called_like_one_of_its_records(tiny, key):
    expected = tiny.annotations()
    for coco in (tiny.train, tiny.val, tiny.test):
        coco[key] = 1
    for annotation in tiny.train["annotations"] + tiny.val["annotations"]:
        annotation["segmentation"]["image_id"] = 0
    tiny.train["images"][0]["counts"] = 7
    tiny.write_json()
    assert tiny.annotations() == expected


@pytest.mark.parametrize("option, part, skip", [("owid", "OWID", "robotools"), ("robotools", "RoboTools", "owid")])
@pytest.mark.parametrize("path", [".", "./"])
def test_a_set_that_is_the_root_itself_has_paths_of_the_root(tiny, option, part, skip, path):
    root = tiny.path(part)
    args = (f"--{option}-path", path, f"--skip-{skip}", "--output-file", tiny.path("anns.pt"), "--workers", 1)
    assert run_here("create_dataset.py", "--voxdet-root", root, "--relative-paths", *args).returncode == 0
    assert run_here("verify_dataset.py", tiny.path("anns.pt"), "--base-path", root).returncode == 0
    assert all(not path.startswith(("/", ".")) for path in load_plainly(tiny.path("anns.pt")))
