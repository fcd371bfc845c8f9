"""The pictures of verify_dataset.py and evaluate_retrieval.py: what is drawn where, what is chosen, what cannot be."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import refused, run_here
from PIL import Image

CYAN, MAGENTA, GREEN, RED, YELLOW = (0, 255, 255), (255, 0, 255), (64, 255, 64), (255, 64, 64), (255, 200, 0)
STEP, LINE, LEFT, TOP = 328, 298, 8, 32  # from tile to tile, from line to line, and where the first tile is


def tile(picture, column, row=0):
    """A tile of a picture, int [240, 320, 3]."""
    x, y = LEFT + column * STEP, TOP + row * LINE
    with Image.open(str(picture)) as image:
        return np.asarray(image.convert("RGB").crop((x, y, x + 320, y + 240)), dtype=int)


def where(pixels, colour):
    """The box (x1, y1, x2, y2) of the pixels of a colour; None if there are none."""
    ys, xs = np.nonzero((pixels == colour).all(axis=2))
    return (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else None


def verify(tiny, *args):
    return run_here("verify_dataset.py", "--ann-file", tiny.path("anns.pt"), "--base-path", tiny.root, *args)


@pytest.fixture
def picture(tiny):
    """Images of 640 x 480, so that a tile shows them at half their size; a query mask and a gallery object in OWID."""
    from pycocotools import mask as coco_mask

    annotations = tiny.annotations()
    mask = np.zeros((480, 640), dtype=np.uint8, order="F")
    mask[100:300, 200:400] = 1
    rle = coco_mask.encode(mask)
    rle = {"size": [480, 640], "counts": rle["counts"].decode()}
    for path, entry in annotations.items():
        tiny.save_image(path, Image.new("RGB", (640, 480), (250, 250, 250)))
        if entry["is_query"]:
            entry.update(mask=rle, bbox=(200, 100, 400, 300))
        elif entry["set"] == "OWID":
            entry.update(mask=[rle], bbox=[(200, 100, 400, 300)])
        else:
            entry.update(bbox=[(20, 40, 220, 240), (400, 100, 500, 200)])
    torch.save(annotations, str(tiny.path("anns.pt")))
    return tiny


def test_outlines_and_boxes_are_at_their_places_and_seen_on_white(picture):
    file = picture.path("p.png")
    assert verify(picture, "--preview", file, "--set", "OWID").returncode == 0
    for column, colour in ((0, CYAN), (2, GREEN)):
        pixels = tile(file, column)
        box = where(pixels, colour)
        assert np.abs(np.subtract(box, (98, 48, 202, 152))).max() <= 1  # a line of 2 pixels around half of the box
        outline = where(pixels, MAGENTA)
        assert np.abs(np.subtract(outline, (100, 50, 200, 150))).max() <= 1
        x1, y1, x2, y2 = box
        middle = (y1 + y2) // 2
        assert (pixels[middle, x1 - 1] == 0).all()  # dark outside of the light line
    zoom = where(tile(file, 1), MAGENTA)
    assert zoom[2] - zoom[0] >= 150  # the zoom on the mask of the query


def test_what_is_chosen_is_drawn(picture):
    file = picture.path("p.png")
    for args, rows in (
        ([], 4),
        (["--instances", 3], 2),
        (["--instances", 3, 20, "--set", "owid"], 2),
        (["--preview-count", 1, "--set", "RoboTools", "--order", "id"], 1),
    ):
        assert verify(picture, "--preview", file, *args).returncode == 0
        with Image.open(str(file)) as image:
            assert image.height == rows * LINE
    verify(picture, "--preview", file, "--instances", 3, "--set", "OWID", "--queries", 2, "--gallery", 5)
    with Image.open(str(file)) as image:
        assert image.width == 6 * STEP + LEFT  # two queries and one gallery image, each with its zoom


def test_the_smallest_objects_come_first(picture):
    file = picture.path("p.png")
    annotations = torch.load(str(picture.path("anns.pt")))
    annotations["OWID/P2/images/000001.jpg"].update(
        bbox=[(290, 190, 320, 220)], mask=annotations["OWID/P2/images/000001.jpg"]["mask"]
    )
    annotations["RoboTools/test/1/rgb/000000.png"]["bbox"] = [(20, 40, 420, 440), (400, 100, 405, 105)]
    torch.save(annotations, str(picture.path("anns.pt")))
    args = ("--preview", file, "--set", "RoboTools", "--preview-count", 1, "--order")
    verify(picture, *args, "smallest")
    smallest = where(tile(file, 2), GREEN)
    assert smallest[0] > 190  # instance 20, at x 400
    verify(picture, *args, "id")
    assert where(tile(file, 2), GREEN)[0] < 50  # instance 3, at x 20


@pytest.mark.parametrize("option", ["--preview-count", "--instances", "--queries", "--gallery"])
def test_options_of_the_picture_need_a_picture(picture, option):
    done = verify(picture, option, 2)
    assert done.returncode == 2
    assert "--preview" in done.stderr


@pytest.mark.parametrize("args", [["--worst", "2"], ["--instances", "3"]])
def test_options_of_the_picture_of_a_run_need_a_picture(picture, args):
    done = run_here("evaluate_retrieval.py", "--ann-file", picture.path("anns.pt"), "--rankings", "r.json", *args)
    assert done.returncode == 2
    assert "--preview" in done.stderr


def test_images_that_are_not_there_are_said_not_drawn_black(picture, tmp_path):
    done = run_here(
        "verify_dataset.py",
        *("--ann-file", picture.path("anns.pt"), "--base-path", tmp_path, "--skip-paths"),
        *("--preview", picture.path("p.png")),
    )
    refused(done, "--base-path", "preview")
    assert not picture.path("p.png").exists()


def with_many_rows(picture):
    """Fifty instances of RoboTools, which make two pages."""
    annotations = torch.load(str(picture.path("anns.pt")))
    query = annotations["RoboTools/test_video/obj_000003/rgb/000000.png"]
    gallery = annotations["RoboTools/test/1/rgb/000000.png"]
    many = {f"./{'./' * i}RoboTools/test_video/obj_000003/rgb/000000.png": {**query, "ins": i} for i in range(50)}
    many["RoboTools/test/1/rgb/000000.png"] = {**gallery, "ins": list(range(50)), "bbox": [(20, 40, 220, 240)] * 50}
    return many


def test_a_picture_of_many_rows_is_pages(picture):
    torch.save(with_many_rows(picture), str(picture.path("anns.pt")))
    done = verify(picture, "--preview", picture.path("p.png"), "--preview-count", 50)
    assert done.returncode == 0
    heights = []
    for number in (1, 2):
        with Image.open(str(picture.path(f"p-{number}.png"))) as image:
            heights.append(image.height // LINE)
    assert heights == [40, 10]
    assert "p-1.png" in done.stdout
    assert not picture.path("p.png").exists()


def test_a_page_takes_no_place_of_an_image(picture):
    annotations = with_many_rows(picture)
    annotations["p-2.png"] = {**annotations["RoboTools/test/1/rgb/000000.png"], "ins": [0] * 50}
    torch.save(annotations, str(picture.path("anns.pt")))
    picture.save_image("p-2.png", Image.new("RGB", (640, 480)))
    before = picture.path("p-2.png").read_bytes()
    outputs = ("--preview", picture.path("p.png"), "--report", picture.path("r.json"))
    refused(verify(picture, *outputs, "--preview-count", 50), "p-2.png", "is an image of the annotation file")
    picture.path("r.json").write_text(json.dumps(dict.fromkeys(annotations, ["p-2.png"])))
    options = ("--ann-file", picture.path("anns.pt"), "--base-path", picture.root, "--worst", 50)
    done = run_here("evaluate_retrieval.py", *options, "--rankings", picture.path("r.json"), *outputs[:2])
    refused(done, "p-2.png", "is an image of the annotation file")
    assert picture.path("p-2.png").read_bytes() == before
    assert not picture.path("p-1.png").exists()


def test_an_image_that_is_a_link_is_not_overwritten_under_either_name(picture):
    """As git-annex and DVC keep images."""
    link, real = "RoboTools/test/1/rgb/000000.png", "store.png"
    picture.path(link).rename(picture.path(real))
    picture.path(link).symlink_to(picture.path(real))
    before = picture.path(real).read_bytes()
    for name in (link, real):
        refused(verify(picture, "--preview", picture.path(name)), "is an image of the annotation file")
        options = ("--ann-file", picture.path("anns.pt"), "--base-path", picture.root)
        done = run_here("convert_annotations.py", *options, "--output-file", picture.path(name))
        refused(done, "is an image of the annotation file")
    assert picture.path(real).read_bytes() == before


@pytest.mark.parametrize("taken", ["folder", "input", "other output"])
def test_pages_are_outputs_like_others(picture, taken):
    torch.save(with_many_rows(picture), str(picture.path("anns.pt")))
    anns, report = picture.path("anns.pt"), picture.path("r.json")
    if taken == "folder":
        picture.path("p-2.png").mkdir()
    elif taken == "input":
        anns.rename(picture.path("p-2.png"))
        anns = picture.path("p-2.png")
    else:
        report = picture.path("p-2.png")
    options = ("--base-path", picture.root, "--preview", picture.path("p.png"), "--preview-count", 50)
    done = run_here("verify_dataset.py", "--ann-file", anns, *options, "--report", report)
    refused(done, "p-2.png", {"folder": "no regular file", "input": "input", "other output": "another output"}[taken])
    assert not picture.path("p-1.png").exists()
    assert not picture.path("r.json").exists()


def test_a_label_stays_below_its_tile(picture):
    annotations = torch.load(str(picture.path("anns.pt")))
    long = "x" * 150
    for path in [path for path in annotations if path.startswith("OWID/P2")]:
        new = f"OWID/P2/images/{long} {path[-5]}.jpg"
        picture.path(path).rename(picture.path(new))
        annotations[new] = annotations.pop(path)
    torch.save(annotations, str(picture.path("anns.pt")))
    verify(picture, "--preview", picture.path("p.png"), "--set", "OWID")
    with Image.open(str(picture.path("p.png"))) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=int)
    for gap in (3 * STEP + 1, 3 * STEP + 4):  # between the tiles of a gallery image and of its zoom
        assert (pixels[TOP + 242 : LINE, gap] == (32, 32, 32)).all()


def evaluate(picture, ranking, *args):
    """Score rankings of the RoboTools queries, drawn into p.png."""
    annotations = torch.load(str(picture.path("anns.pt")))
    queries = [path for path, entry in annotations.items() if entry["is_query"] and entry["set"] == "RoboTools"]
    picture.path("r.json").write_text(json.dumps(dict.fromkeys(queries, ranking)))
    options = ("--ann-file", picture.path("anns.pt"), "--base-path", picture.root, "--set", "RoboTools")
    options += ("--rankings", picture.path("r.json"), "--preview", picture.path("p.png"))
    return run_here("evaluate_retrieval.py", *options, *args)


def test_a_predicted_box_is_dashed_at_its_place_beside_the_true_one(picture):
    box = [240, 40, 440, 240]
    done = evaluate(picture, [["RoboTools/test/1/rgb/000000.png", 0.5, box]], "--instances", 3)
    assert done.returncode == 0, done.stderr
    pixels = tile(picture.path("p.png"), 1)
    assert np.abs(np.subtract(where(pixels, YELLOW), (118, 18, 222, 122))).max() <= 1
    assert np.abs(np.subtract(where(pixels, GREEN)[:2], (8, 18))).max() <= 1
    dashes = (pixels[18:122, 119] == YELLOW).all(axis=1)
    assert 0.2 < dashes.mean() < 0.7


def test_a_relevant_image_that_was_missed_is_shown(picture):
    done = evaluate(picture, [])
    assert done.returncode == 0, done.stderr
    pixels = tile(picture.path("p.png"), 1)
    assert where(pixels, GREEN) is not None
    with Image.open(str(picture.path("p.png"))) as image:
        frame = np.asarray(image.convert("RGB"), dtype=int)[TOP - 2, LEFT + STEP + 100]
    assert tuple(frame) == GREEN


def test_instances_that_were_not_scored_are_said(picture):
    refused(evaluate(picture, [], "--instances", 77), "77")


def test_the_shares_of_object_sizes_add_up_and_splits_are_apart(picture):
    report = picture.path("report.json")
    verify(picture, "--report", report)
    figures = json.loads(report.read_text())["statistics"]["RoboTools"]
    # 200 x 200 and 100 x 100 of 640 x 480: 13 % and 3.3 %.
    assert figures["object_size_shares"] == {
        "below 0.5 %": 0,
        "0.5 to 1 %": 0,
        "1 to 2 %": 0,
        "2 to 5 %": 50,
        "above 5 %": 50,
    }
    assert figures["splits"] == {"test": {"queries": 2, "gallery_images": 1, "objects": 2}}


def test_the_size_of_the_object_is_in_the_table_of_queries(picture):
    evaluate(picture, ["RoboTools/test/1/rgb/000000.png"], "--per-query", picture.path("q.csv"))
    with picture.path("q.csv").open(newline="") as lines:
        rows = {row["instance"]: float(row["object_size"]) for row in csv.DictReader(lines)}
    assert rows == {
        "3": pytest.approx(100 * 200 * 200 / (640 * 480)),
        "20": pytest.approx(100 * 100 * 100 / (640 * 480)),
    }
