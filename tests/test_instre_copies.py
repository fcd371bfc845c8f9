"""Copies of INSTRE as people have them: other spellings, broken files, repeated lines; the split is always the same."""

import json
import re
import zlib

import pytest
from conftest import load_plainly, refused, run_here
from PIL import Image

SIDES = (60, 50, 40, 30, 20, 10, 34, 26)


def make_copy(root, part="INSTRE-S1", folder="01a_book", ending=".jpg", sides=SIDES):
    """A folder of INSTRE with images of 200 x 200 and one box each."""
    for number, side in enumerate(sides, start=1):
        path = root / part / folder / f"{number:03d}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (200, 200), (number, 90, 60)).save(str(path), format="JPEG")
        path.with_suffix(".txt").write_text(f"10 20 {side} {side}\n")
    return root


def create(root, *args):
    """Run the script: (process, annotations of XS or None)."""
    done = run_here(
        "create_instre_subsets.py",
        *("--instre-root", root, "--output-dir", root, "--relative-paths", "--workers", 1),
        *args,
    )
    file = root / "instre_xs.pt"
    return done, load_plainly(file) if file.is_file() else None


def roles(annotations):
    """(folder, number) -> whether it is a query."""
    return {
        tuple(re.sub(r"\.\w+$", "", path.lower()).split("/")[-2:]): entry["is_query"]
        for path, entry in annotations.items()
    }


@pytest.mark.parametrize("cut", [0.5, 0.9])
def test_a_photograph_that_breaks_off_is_skipped(tmp_path, cut):
    root = make_copy(tmp_path)
    path = root / "INSTRE-S1" / "01a_book" / "003.jpg"
    path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    done, annotations = create(root)
    assert "1 x image that cannot be read: INSTRE-S1/01a_book/003.jpg (" in done.stdout
    assert "INSTRE-S1/01a_book/003.jpg" not in annotations
    assert create(root, "--strict")[0].returncode == 1


@pytest.mark.parametrize(
    "spelling",
    [
        {"ending": ".JPG"},
        {"ending": ".jpeg"},
        {"part": "instre-s1"},
        {"part": "INSTRE_release/INSTRE-S1"},
        {"part": "instre_release/instre-s1", "ending": ".JPG", "folder": "01A_BOOK"},
    ],
    ids=str,
)
def test_the_split_does_not_depend_on_the_spelling(tmp_path, spelling):
    _, usual = create(make_copy(tmp_path / "usual"))
    _, other = create(make_copy(tmp_path / "other", **spelling))
    assert roles(other) == roles(usual)
    assert len(roles(usual)) == len(SIDES)
    assert {entry["ins"] for entry in other.values() if entry["is_query"]} == {11}


@pytest.mark.parametrize("front", ["INSTRE-S1/", "instre-s1/", "INSTRE_release/INSTRE-S1/", "./INSTRE-S1/"])
@pytest.mark.parametrize("ending", [".jpg", ".JPG"])
def test_lists_match_in_any_spelling(tmp_path, front, ending):
    root = make_copy(tmp_path)
    for name, numbers in (("queries", (1, 2)), ("gallery", (3, 4, 5))):
        (tmp_path / name).write_text("".join(f"{front}01a_book/{number:03d}{ending}\n" for number in numbers))
    create(root, "--query-list", tmp_path / "queries", "--gallery-list", tmp_path / "gallery")
    annotations = load_plainly(root / "instre.pt")
    expected = {("01a_book", f"{number:03d}"): number < 3 for number in (1, 2, 3, 4, 5)}
    assert roles(annotations) == expected


def test_folders_without_a_number_have_ids_of_31_bits_that_depend_on_their_name_only(tmp_path):
    names = ["Adidas_Originals", "FedEX", "Tsinghua_old_gate", "BarcelonaFC"]
    root = tmp_path / "all"
    for name in names:
        make_copy(root, "INSTRE-S2", name)
    _, annotations = create(root, "--parts", "S2")
    ids = {entry["obj_name"]: entry["ins"] for entry in annotations.values() if entry["is_query"]}
    assert sorted(ids) == sorted(names)
    assert len(set(ids.values())) == len(names)
    assert all(10_000 < number < 2**31 for number in ids.values())
    for name in names[1:3]:
        _, alone = create(make_copy(tmp_path / name, "instre-s2", name.upper()), "--parts", "S2")
        assert {entry["ins"] for entry in alone.values() if entry["is_query"]} == {ids[name]}


def test_two_folders_with_the_same_id_are_named(tmp_path, monkeypatch):
    for name in ("Ali", "FedEX"):
        make_copy(tmp_path, "INSTRE-S2", name)
    monkeypatch.setattr(zlib, "crc32", lambda data: 5)
    done, annotations = create(tmp_path, "--parts", "S2")
    refused(done, "INSTRE-S2/Ali", "INSTRE-S2/FedEX")
    assert annotations is None


@pytest.mark.parametrize("twin", ["003.png", "003.JPG"])
def test_of_two_photographs_beside_one_txt_one_is_used(tmp_path, twin):
    root = make_copy(tmp_path)
    Image.new("RGB", (200, 200)).save(str(root / "INSTRE-S1" / "01a_book" / twin))
    done, annotations = create(root)
    assert "1 x second photograph of the same name" in done.stdout
    assert len(annotations) == len(SIDES)


@pytest.mark.parametrize("text", ["10 20 40 40\n10 20 40 40\n", "10 20 40 40\n10,20,40,40\n"])
def test_a_line_that_stands_twice_is_one_box(tmp_path, text):
    root = make_copy(tmp_path)
    (root / "INSTRE-S1" / "01a_book" / "003.txt").write_text(text)
    done, annotations = create(root)
    assert "1 x line that stands twice: INSTRE-S1/01a_book/003.jpg" in done.stdout
    entry = annotations["INSTRE-S1/01a_book/003.jpg"]
    boxes = [entry["bbox"]] if entry["is_query"] else entry["bbox"]
    assert boxes == [(10, 20, 50, 60)]


@pytest.mark.parametrize("text", ["0.1 0.2 0.3 0.3\n", "0 0 1 0.5\n"])
def test_boxes_that_are_shares_of_the_image_are_refused(tmp_path, text):
    root = make_copy(tmp_path)
    for path in (root / "INSTRE-S1" / "01a_book").glob("*.txt"):
        path.write_text(text)
    done, annotations = create(root)
    refused(done, "shares of the image, pixels are expected")
    assert annotations is None


def test_a_box_below_a_pixel_is_skipped(tmp_path):
    root = make_copy(tmp_path)
    (root / "INSTRE-S1" / "01a_book" / "003.txt").write_text("10 20 0.5 30\n")
    done, annotations = create(root)
    assert "1 x box that is less than a pixel wide or high: INSTRE-S1/01a_book/003.jpg" in done.stdout
    assert "INSTRE-S1/01a_book/003.jpg" not in annotations


@pytest.mark.parametrize("box, clipped", [("-5 20 40 40", (0, 20, 35, 60)), ("180 150 40 60", (180, 150, 200, 200))])
def test_a_clipped_box_is_noticed(tmp_path, box, clipped):
    root = make_copy(tmp_path)
    (root / "INSTRE-S1" / "01a_book" / "003.txt").write_text(f"{box}\n")
    done, annotations = create(root)
    assert "noticed:\n  1 x box that reaches out of its image, clipped: INSTRE-S1/01a_book/003.jpg" in done.stdout
    entry = annotations["INSTRE-S1/01a_book/003.jpg"]
    assert clipped in (entry["bbox"], *entry["bbox"][:1])


def test_an_object_that_fills_its_image_is_in_a_subset_of_all(tmp_path):
    root = make_copy(tmp_path)
    (root / "INSTRE-S1" / "01a_book" / "003.txt").write_text("0 0 200 200\n")
    _, annotations = create(root, "--xs-threshold", 100)
    assert "INSTRE-S1/01a_book/003.jpg" in annotations
    _, annotations = create(root, "--xs-threshold", 99)
    assert "INSTRE-S1/01a_book/003.jpg" not in annotations


def test_a_threshold_that_looks_like_a_share_gets_a_hint(tmp_path):
    root = make_copy(tmp_path)
    done, _ = create(root, "--xs-threshold", 0.9, "--xxs-threshold", 0.3)
    assert "unit is percent" in done.stdout
    assert "--xs-threshold 0.9" in done.stdout
    done, _ = create(root)
    assert "unit is percent" not in done.stdout


def test_what_is_written_passes(tmp_path):
    """All of the damage above at once."""
    root = make_copy(tmp_path, sides=SIDES * 4)
    texts = [
        "-5 20 40 40",
        "10 20 40 40\n10 20 40 40",
        "10 20 0.5 30",
        "300 20 40 40",
        "0 0 200 200",
        "1e5 1 1 1",
        "5 5",
    ]
    for number, text in enumerate(texts, start=1):
        (root / "INSTRE-S1" / "01a_book" / f"{number:03d}.txt").write_text(f"{text}\n")
    done, annotations = create(root, "--xs-threshold", 100)
    assert done.returncode == 0
    assert annotations
    report = tmp_path / "report.json"
    for name in ("instre_xs.pt", "instre_xxs.pt"):
        done = run_here("verify_dataset.py", "--ann-file", root / name, "--base-path", root, "--report", report)
        assert done.returncode == 0, done.stdout
        assert json.loads(report.read_text())["errors"] == 0
