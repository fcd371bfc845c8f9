"""Previews (soir/previews.py, soir/drawing.py): what is drawn where, what is chosen, and what cannot be drawn."""

import csv

import numpy as np
import pytest
from conftest import load_plainly, needs_proc, run_here
from helpers import (
    compressed,
    gallery_of,
    make_photograph,
    make_query,
    queries_of,
    rectangle,
    refused,
    save,
    verify,
    write_json,
)
from PIL import Image
from run_fork import run_bounded

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


def count(picture, colour):
    with Image.open(str(picture)) as image:
        return (np.asarray(image.convert("RGB")) == colour).all(axis=2).sum()


class Picture:
    """A tree of images of 640 x 480, so that a tile shows them at half their size, and what is drawn of it."""

    def __init__(self, tiny):
        self.root, self.path, self.save_image = tiny.root, tiny.path, tiny.save_image
        self.file = tiny.path("p.png")
        self.annotations = tiny.annotations()
        mask = compressed(rectangle(200, 100, 400, 300, 480, 640))
        for path, entry in self.annotations.items():
            tiny.save_image(path, Image.new("RGB", (640, 480), (250, 250, 250)))
            if entry["is_query"]:
                entry.update(mask=mask, bbox=(200, 100, 400, 300))
            elif entry["set"] == "OWID":
                entry.update(mask=[mask], bbox=[(200, 100, 400, 300)])
            else:
                entry.update(bbox=[(20, 40, 220, 240), (400, 100, 500, 200)])

    def verify(self, *args, preview=True):
        options = ("--preview", self.file) if preview else ()
        return verify(save(self.root, self.annotations), self.root, *options, *args)[0]

    def evaluate(self, ranking, *args, preview=True):
        """Score one ranking, for each query of RoboTools."""
        queries = [path for path in queries_of(self.annotations) if self.annotations[path]["set"] == "RoboTools"]
        rankings = write_json(self.root, dict.fromkeys(queries, ranking), "r.json")
        options = ("--ann-file", save(self.root, self.annotations), "--base-path", self.root, "--rankings", rankings)
        options += ("--set", "RoboTools", *(("--preview", self.file) if preview else ()))
        return run_here("evaluate_retrieval.py", *options, *args)


@pytest.fixture
def picture(tiny):
    """Query masks and gallery objects of OWID at (200, 100, 400, 300); two objects in RoboTools."""
    return Picture(tiny)


REAL_GALLERY = "RoboTools/test/1/rgb/000000.png"

# -------------------------------------------------------------------------------------------------------- what is drawn


def test_outlines_and_boxes_are_at_their_places_and_seen_on_white(picture):
    assert picture.verify("--set", "OWID").returncode == 0
    for column, colour in ((0, CYAN), (2, GREEN)):
        pixels = tile(picture.file, column)
        box = where(pixels, colour)
        assert np.abs(np.subtract(box, (98, 48, 202, 152))).max() <= 1  # a line of 2 pixels around half of the box
        outline = where(pixels, MAGENTA)
        assert np.abs(np.subtract(outline, (100, 50, 200, 150))).max() <= 1
        x1, y1, x2, y2 = box
        middle = (y1 + y2) // 2
        assert (pixels[middle, x1 - 1] == 0).all()  # dark outside of the light line
    zoom = where(tile(picture.file, 1), MAGENTA)
    assert zoom[2] - zoom[0] >= 150  # the zoom on the mask of the query


def test_the_preview_shows_query_and_gallery_and_is_the_same_from_run_to_run(voxdet, sample_file, tmp_path):
    preview, contents = tmp_path / "preview.png", []
    args = ("--ann-file", sample_file, "--base-path", voxdet[0], "--preview", preview, "--preview-count", 2)
    for _ in range(2):
        assert run_here("verify_dataset.py", *args).returncode == 0
        contents.append(preview.read_bytes())
    assert contents[0] == contents[1]
    assert all(count(preview, colour) > 400 for colour in (MAGENTA, CYAN, GREEN))


def test_the_zoom_shows_the_object(tiny):
    image = Image.new("RGB", (640, 480), (200, 150, 90))
    image.paste((10, 20, 250), (300, 200, 320, 215))
    tiny.save_image("g.png", image)
    tiny.save_image("q.png")
    entries = {"q.png": make_query(), "g.png": make_photograph(bbox=[(300, 200, 320, 215)])}
    preview = tiny.path("preview.png")
    assert verify(save(tiny.root, entries), tiny.root, "--preview", preview)[0].returncode == 0
    blue = (np.abs(tile(preview, 3) - (10, 20, 250)).sum(axis=2) < 60).mean()
    assert 0.3 < blue < 0.45  # of a zoom 1.6 times as wide and as high as the object


def test_what_is_chosen_is_drawn(picture):
    for args, rows in (
        ([], 4),
        (["--instances", 3], 2),
        (["--instances", 3, 20, "--set", "owid"], 2),
        (["--preview-count", 1, "--set", "RoboTools", "--order", "id"], 1),
    ):
        assert picture.verify(*args).returncode == 0
        with Image.open(str(picture.file)) as image:
            assert image.height == rows * LINE
    picture.verify("--instances", 3, "--set", "OWID", "--queries", 2, "--gallery", 5)
    with Image.open(str(picture.file)) as image:
        assert image.width == 6 * STEP + LEFT  # two queries and one gallery image, each with its zoom


def test_the_smallest_objects_come_first(picture):
    picture.annotations[REAL_GALLERY]["bbox"] = [(20, 40, 420, 440), (400, 100, 405, 105)]
    args = ("--set", "RoboTools", "--preview-count", 1, "--order")
    picture.verify(*args, "smallest")
    assert where(tile(picture.file, 2), GREEN)[0] > 190  # instance 20, at x 400
    picture.verify(*args, "id")
    assert where(tile(picture.file, 2), GREEN)[0] < 50  # instance 3, at x 20


def test_a_label_stays_below_its_tile(picture):
    for path in [path for path in picture.annotations if path.startswith("OWID/P2")]:
        new = f"OWID/P2/images/{'x' * 150} {path[-5]}.jpg"
        picture.path(path).rename(picture.path(new))
        picture.annotations[new] = picture.annotations.pop(path)
    picture.verify("--set", "OWID")
    with Image.open(str(picture.file)) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=int)
    for gap in (3 * STEP + 1, 3 * STEP + 4):  # between the tiles of a gallery image and of its zoom
        assert (pixels[TOP + 242 : LINE, gap] == (32, 32, 32)).all()


# ------------------------------------------------------------------------------------------------------------- of a run


def test_the_preview_of_a_run_marks_right_and_wrong(voxdet, sample_file, tmp_path):
    annotations = load_plainly(sample_file)
    rankings = write_json(tmp_path, dict.fromkeys(queries_of(annotations), gallery_of(annotations)))
    options = ["--rankings", rankings, "--ann-file", sample_file, "--base-path", voxdet[0]]
    options += ["--preview", tmp_path / "worst.png", "--worst", 12, "--set", "OWID"]
    done = run_here("evaluate_retrieval.py", *options)
    assert done.returncode == 0, done.stderr
    assert all(count(tmp_path / "worst.png", colour) > 500 for colour in (GREEN, RED, CYAN))
    assert "size: 1 to 2 %" in done.stdout


def test_a_predicted_box_is_dashed_at_its_place_beside_the_true_one(picture):
    done = picture.evaluate([[REAL_GALLERY, 0.5, [240, 40, 440, 240]]], "--instances", 3)
    assert done.returncode == 0, done.stderr
    pixels = tile(picture.file, 1)
    assert np.abs(np.subtract(where(pixels, YELLOW), (118, 18, 222, 122))).max() <= 1
    assert np.abs(np.subtract(where(pixels, GREEN)[:2], (8, 18))).max() <= 1
    dashes = (pixels[18:122, 119] == YELLOW).all(axis=1)
    assert 0.2 < dashes.mean() < 0.7


def test_a_relevant_image_that_was_missed_is_shown(picture):
    done = picture.evaluate([])
    assert done.returncode == 1, done.stderr
    assert where(tile(picture.file, 1), GREEN) is not None
    with Image.open(str(picture.file)) as image:
        assert image.convert("RGB").getpixel((LEFT + STEP + 100, TOP - 2)) == GREEN  # its frame


def test_the_size_of_the_object_is_in_the_table_of_queries(picture):
    picture.evaluate([REAL_GALLERY], "--per-query", picture.path("q.csv"))
    with picture.path("q.csv").open(newline="") as lines:
        rows = {row["instance"]: float(row["object_size"]) for row in csv.DictReader(lines)}
    shares = {"3": 100 * 200 * 200 / (640 * 480), "20": 100 * 100 * 100 / (640 * 480)}
    assert rows == pytest.approx(shares)


# ---------------------------------------------------------------------------------------------------------------- pages


@pytest.fixture
def pages(picture):
    """Fifty instances of RoboTools, which make two pages: p-1.png and p-2.png."""
    path = "RoboTools/test_video/obj_000003/rgb/000000.png"
    query, gallery = picture.annotations[path], picture.annotations[REAL_GALLERY]
    picture.annotations = {f"./{'./' * number}{path}": {**query, "ins": number} for number in range(50)}
    picture.annotations[REAL_GALLERY] = {**gallery, "ins": list(range(50)), "bbox": [(20, 40, 220, 240)] * 50}
    return picture


def test_a_picture_of_many_rows_is_pages(pages):
    done = pages.verify("--preview-count", 50)
    assert done.returncode == 0
    heights = []
    for number in (1, 2):
        with Image.open(str(pages.path(f"p-{number}.png"))) as image:
            heights.append(image.height // LINE)
    assert heights == [40, 10]
    assert "p-1.png" in done.stdout
    assert not pages.file.exists()


def test_a_page_takes_no_place_of_an_image(pages):
    pages.annotations["p-2.png"] = {**pages.annotations[REAL_GALLERY], "ins": [0] * 50}
    pages.save_image("p-2.png", Image.new("RGB", (640, 480)))
    before = pages.path("p-2.png").read_bytes()
    refused(pages.verify("--preview-count", 50), "p-2.png", "is an image of the annotation file")
    done = pages.evaluate(["p-2.png"], "--worst", 50)
    refused(done, "p-2.png", "is an image of the annotation file", printed=True)
    assert pages.path("p-2.png").read_bytes() == before
    assert not pages.path("p-1.png").exists()


@pytest.mark.parametrize(
    "taken, words", [("folder", "no regular file"), ("input", "input"), ("other output", "another output")]
)
def test_pages_are_outputs_like_others(pages, taken, words):
    second, report = pages.path("p-2.png"), pages.path("p-2.png" if taken == "other output" else "r.json")
    anns = save(pages.root, pages.annotations, "p-2.png" if taken == "input" else "anns.pt")
    if taken == "folder":
        second.mkdir()
    options = ("--base-path", pages.root, "--preview", pages.file, "--preview-count", 50, "--report", report)
    refused(run_here("verify_dataset.py", "--ann-file", anns, *options), "p-2.png", words)
    assert not pages.path("p-1.png").exists()
    assert not pages.path("r.json").exists()


# ------------------------------------------------------------------------------------------------- what cannot be drawn


@pytest.mark.parametrize(
    "script, option",
    [
        *(("verify", option) for option in ("--preview-count", "--instances", "--queries", "--gallery")),
        *(("evaluate", option) for option in ("--worst", "--instances")),
    ],
)
def test_options_of_the_picture_need_a_picture(picture, script, option):
    run = picture.verify if script == "verify" else lambda *args, preview: picture.evaluate([], *args, preview=preview)
    done = run(option, 2, preview=False)
    assert done.returncode == 2
    assert "--preview" in done.stderr


@pytest.mark.parametrize("name", ["preview", "preview.jpg", "preview.png.pt"])
def test_a_picture_is_named_png(picture, name):
    picture.file = picture.path(name)
    for done in (picture.verify(), picture.evaluate([])):
        assert done.returncode == 2
        assert "expected a name that ends in .png" in done.stderr
    assert not picture.file.exists()


def test_a_preview_whose_images_are_not_found_is_not_drawn_black(picture, tmp_path):
    args = ("--base-path", tmp_path)
    done = picture.evaluate([REAL_GALLERY], *args, "--report", tmp_path / "report.json")
    refused(done, "where are they? --base-path", printed=True)  # after the scores
    assert "test queries, test images" in done.stdout
    assert (tmp_path / "report.json").exists()
    refused(picture.verify("--skip-paths", *args), "--base-path", "preview")
    assert "nothing to preview" in picture.verify(*args).stdout
    assert not picture.file.exists()


def test_what_is_damaged_is_left_out_of_the_preview(picture):
    broken = {"size": [480, 640], "counts": "oO0"}
    queries = queries_of(picture.annotations)
    for path in queries[:-1]:
        picture.annotations[path]["mask"] = broken
    assert picture.verify().returncode == 1
    assert picture.file.exists()
    picture.file.unlink()
    picture.annotations[queries[-1]]["mask"] = None
    done = picture.verify()
    assert done.returncode == 1
    assert "nothing to preview" in done.stdout
    assert not picture.file.exists()


@pytest.mark.parametrize(
    "mask", [5, {}, {"size": [48, 64]}, {"size": [48, 64], "counts": "~"}, {"size": [9, 9], "counts": [2**31]}]
)
def test_masks_that_a_sample_left_out_are_checked_before_they_are_drawn(picture, mask):
    asked = queries_of(picture.annotations)[0]
    sound = picture.annotations[asked]
    picture.annotations.update({f"sound {number}.jpg": {**sound, "ins": 4} for number in range(99)})
    picture.annotations[asked] = {**sound, "mask": mask}
    done = picture.verify("--skip-paths", "--sample-masks", 1)
    assert done.stderr == ""
    assert "wrote" in done.stdout


def test_instances_that_were_not_scored_are_said(picture):
    refused(picture.evaluate([], "--instances", 77), "77")


def test_an_image_that_is_a_link_is_not_overwritten_under_either_name(picture):
    """As git-annex and DVC keep images."""
    real = picture.path("store.png")
    picture.path(REAL_GALLERY).rename(real)
    picture.path(REAL_GALLERY).symlink_to(real)
    before = real.read_bytes()
    for file in (picture.path(REAL_GALLERY), real):
        picture.file = file
        refused(picture.verify(), "is an image of the annotation file")
        options = ("--ann-file", picture.path("anns.pt"), "--base-path", picture.root)
        done = run_here("convert_annotations.py", *options, "--output-file", file)
        refused(done, "is an image of the annotation file")
    assert real.read_bytes() == before


FAR = 2**31
BOXES = {
    "as large as a box may be": (-1, -1, FAR, FAR),
    "far away": (FAR - 10, FAR - 10, FAR, FAR),
    "below a pixel": (5.1, 5.1, 5.3, 5.3),
    "without an area in floats": (1, 1, 1 + 2**-52, 1 + 2**-52),
    "a line": (0, 5, FAR, 5.5),
}


@needs_proc
@pytest.mark.parametrize("name", BOXES)
def test_a_preview_is_drawn_whatever_the_boxes(pictures, name):
    box, preview = BOXES[name], pictures / "preview.png"
    photograph = make_photograph([1, 2], bbox=[box, (30, 30, 40, 40)])
    anns = save(pictures, {"q0.png": make_query(bbox=box), "g0.png": photograph})
    rankings = write_json(pictures, {"q0.png": [["g0.png", 1, box]]})
    for script, *options in (
        ("verify_dataset.py", "--skip-paths"),
        ("evaluate_retrieval.py", "--rankings", rankings),
    ):
        args = ("--ann-file", anns, "--base-path", pictures, *options, "--preview", preview)
        assert run_bounded(script, *args, memory=400).returncode == 0
        with Image.open(str(preview)) as drawn:
            pixels = np.asarray(drawn.convert("RGB"), dtype=int)
        assert (np.abs(pixels - (200, 150, 90)).sum(axis=2) < 9).mean() > 0.1  # the photographs are there
        preview.unlink()


def test_a_preview_has_names_of_any_letters(pictures):
    names = "\u65e5\u672c.png", "\U0001f600.png"
    for old, new in zip(("q0.png", "g0.png"), names):
        (pictures / old).rename(pictures / new)
    preview = pictures / "preview.png"
    anns = save(pictures, dict(zip(names, (make_query(), make_photograph()))))
    assert verify(anns, pictures, "--preview", preview)[0].returncode == 0
    assert preview.exists()
