"""INSTRE as people have it (soir/instre.py): spellings, ids of instances, box files, and lists of images."""

import random
import re
import shutil
import zlib

import pytest
from conftest import load_plainly, run_here
from helpers import average_precision, refused, score
from PIL import Image

# --------------------------------------------------------------------------------------------------------------- copies


SIDES = (60, 50, 40, 30, 20, 10, 34, 26)
BOOK = "INSTRE-S1/01a_book"


def make_copy(root, part="INSTRE-S1", folder="01a_book", ending=".jpg", sides=SIDES):
    """A folder of INSTRE with images of 200 x 200 and one box each."""
    for number, side in enumerate(sides, start=1):
        path = root / part / folder / f"{number:03d}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (200, 200), (number, 90, 60)).save(str(path), format="JPEG")
        path.with_suffix(".txt").write_text(f"10 20 {side} {side}\n")
    return root


def create(root, *args, name="instre_xs.pt"):
    """Run the script: (process, what it wrote of this name or None)."""
    options = ("--instre-root", root, "--output-dir", root, "--relative-paths", "--workers", 1)
    done = run_here("create_instre_subsets.py", *options, *args)
    return done, load_plainly(root / name) if (root / name).is_file() else None


def roles(annotations):
    """(folder, number) -> whether it is a query."""
    return {
        tuple(re.sub(r"\.\w+$", "", path.lower()).split("/")[-2:]): entry["is_query"]
        for path, entry in annotations.items()
    }


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
def test_the_subset_does_not_depend_on_the_spelling(tmp_path, spelling):
    _, usual = create(make_copy(tmp_path / "usual"))
    done, other = create(make_copy(tmp_path / "other", **spelling))
    assert done.returncode == 0, done.stderr
    assert roles(other) == roles(usual)
    assert len(roles(usual)) == len(SIDES)
    for path, entry in zip(usual, other.values()):
        assert entry == {**usual[path], "obj_name": spelling.get("folder", "01a_book")}
    assert {entry["ins"] for entry in other.values() if entry["is_query"]} == {11}


def test_ids_of_folders_without_a_number_are_a_hash_of_their_name(tmp_path):
    """100,000 + crc32 % (2^31 - 100,000) of "s2/fedex"; so the files of all machines and versions agree."""
    ids = {"Tsinghua_old_gate": 589_279_370, "FedEX": 503_240_590, "Adidas_Originals": 1_358_665_897}
    ids["02_logo"] = 10_020  # by its number, as in S1
    for name in ids:
        make_copy(tmp_path, "INSTRE-S2", name)
    make_copy(tmp_path / "alone", "instre-s2", "FEDEX")
    _, annotations = create(tmp_path, "--parts", "S2")
    assert {entry["obj_name"]: entry["ins"] for entry in annotations.values() if entry["is_query"]} == ids
    _, alone = create(tmp_path / "alone", "--parts", "S2")
    assert {entry["ins"] for entry in alone.values() if entry["is_query"]} == {ids["FedEX"]}


def test_two_folders_with_the_same_id_are_named(tmp_path, monkeypatch):
    for name in ("Ali", "FedEX"):
        make_copy(tmp_path, "INSTRE-S2", name)
    monkeypatch.setattr(zlib, "crc32", lambda data: 5)
    done, annotations = create(tmp_path, "--parts", "S2")
    refused(done, "INSTRE-S2/Ali", "INSTRE-S2/FedEX")
    assert annotations is None


# ------------------------------------------------------------------------------------------------------------ box files


@pytest.mark.parametrize(
    "text, words, box",
    [
        ("10 20 40 40\n10 20 40 40\n", "line that stands twice", (10, 20, 50, 60)),
        ("10 20 40 40\n10,20,40,40\n", "line that stands twice", (10, 20, 50, 60)),
        ("-5 20 40 40", "box that reaches out of its image, clipped", (0, 20, 35, 60)),
        ("180 150 40 60", "box that reaches out of its image, clipped", (180, 150, 200, 200)),
        ("10 20 0.5 30", "box that is less than a pixel wide or high", None),
    ],
)
def test_what_is_odd_in_a_box_file_is_counted(tmp_path, text, words, box):
    root = make_copy(tmp_path)
    (root / BOOK / "003.txt").write_text(text)
    done, annotations = create(root)
    assert f"1 x {words}: {BOOK}/003.jpg" in done.stdout
    entry = annotations.pop(f"{BOOK}/003.jpg", {"bbox": None})
    assert entry["bbox"] in (box, [box])
    assert len(annotations) == len(SIDES) - 1
    done = run_here("verify_dataset.py", root / "instre_xs.pt", "--base-path", root)
    assert done.returncode == 0, done.stdout  # what is written passes


@pytest.mark.parametrize("text", ["0.1 0.2 0.3 0.3\n", "0 0 1 0.5\n"])
def test_boxes_that_are_shares_of_the_image_are_refused(tmp_path, text):
    root = make_copy(tmp_path)
    for path in (root / BOOK).glob("*.txt"):
        path.write_text(text)
    done, annotations = create(root)
    refused(done, "shares of the image, pixels are expected")
    assert annotations is None


@pytest.mark.parametrize("boxes", [("140 140 180 180", "20 20 40 40"), ("100 120 198 198", "120 100 160 190")])
def test_boxes_that_are_all_corners_are_not_believed(tmp_path, boxes):
    root = make_copy(tmp_path)
    for number, path in enumerate((root / BOOK).glob("*.txt")):
        path.write_text(boxes[number % 2])
    done, annotations = create(root)
    refused(done, "could be corners", "x y width height are expected")
    assert annotations is None


@pytest.mark.parametrize("cut", [0.5, 0.9])
def test_a_photograph_that_breaks_off_is_skipped(tmp_path, cut):
    root = make_copy(tmp_path)
    path = root / BOOK / "003.jpg"
    path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    done, annotations = create(root)
    assert f"1 x image that cannot be read: {BOOK}/003.jpg (" in done.stdout
    assert f"{BOOK}/003.jpg" not in annotations
    assert create(root, "--strict")[0].returncode == 1


@pytest.mark.parametrize(
    "twin, words",
    [
        ("003.png", "second photograph of the same name"),
        ("003.JPG", "second photograph of the same name"),
        ("003.TXT", "second .txt of the same image: INSTRE-S1/01a_book/003.txt"),
    ],
)
def test_of_two_files_of_one_name_one_is_used(tmp_path, twin, words):
    folder = make_copy(tmp_path) / BOOK
    before = len(list(folder.iterdir()))
    if twin == "003.TXT":
        (folder / twin).write_text("0 0 1 1")
    else:
        Image.new("RGB", (200, 200)).save(str(folder / twin))
    if len(list(folder.iterdir())) == before:
        pytest.skip("one file, where upper and lower case are the same")
    done, annotations = create(tmp_path)
    assert done.returncode == 0
    assert f"1 x {words}" in done.stdout
    assert len(annotations) == len(SIDES)


# --------------------------------------------------------- lists: they decide alone, as in the usual protocol of INSTRE


SIZE = 200, 160  # of the images


@pytest.fixture
def made(tmp_path):
    """(root, truth): a tree of two pairs of S1, two of S2, two of M; truth is name -> (objects, boxes x y w h)."""
    rng = random.Random(0)
    root, truth = tmp_path / "INSTRE", {}
    for pair in ("01", "02"):
        for letter in "ab":
            for number in range(1, 5):
                truth[f"INSTRE-S1/{pair}{letter}_thing/{number:03d}.jpg"] = [f"{pair}{letter}"]
        for number in range(1, 5):
            truth[f"INSTRE-M/{pair}/{number:03d}.jpg"] = [f"{pair}a", f"{pair}b"]
    for name in ("FedEX", "Tsinghua_old_gate"):
        for number in range(1, 5):
            truth[f"INSTRE-S2/{name}/{number:03d}.jpg"] = [name]
    for name, objects in truth.items():
        boxes = [[rng.randrange(100), rng.randrange(80), rng.randrange(5, 100), rng.randrange(5, 80)] for _ in objects]
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE, (9, 99, 199)).save(str(root / name))
        (root / name).with_suffix(".txt").write_text("".join("{} {} {} {}\n".format(*box) for box in boxes))
        truth[name] = objects, boxes
    return root, truth


def choose(truth):
    """One query of each folder, all others in the gallery, as the usual protocol has it: (queries, gallery)."""
    queries = [name for name in truth if name.endswith("002.jpg")]
    return queries, [name for name in truth if name not in queries]


def create_listed(root, queries, gallery, *args, name="instre.pt"):
    """Run the script on lists: (process, what it wrote of this name or None)."""
    lists = []
    for role, names in (("query", queries), ("gallery", gallery)):
        lists += [f"--{role}-list", root / f"{role}.txt"]
        lists[-1].write_text("\n".join(names) + "\n")
    return create(root, *lists, *args, name=name)


def test_queries_gallery_and_positives_are_as_the_lists_say(made):
    root, truth = made
    queries, gallery = choose(truth)
    done, entries = create_listed(root, queries, gallery, "--strict")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path for path, entry in entries.items() if entry["is_query"]} == set(queries)
    assert {path for path, entry in entries.items() if not entry["is_query"]} == set(gallery)
    assert {entry["set"] for entry in entries.values()} == {"INSTRE"}
    assert sorted(path.name for path in root.glob("*.pt")) == ["instre.pt"]
    for query in queries:
        objects, boxes = truth[query]
        entry = entries[query]
        relevant = {name for name in gallery if set(objects) & set(truth[name][0])}
        assert len(relevant) == (9 if "INSTRE-M" in query else 6 if "INSTRE-S1" in query else 3)
        shown = set(entry["ins"] if isinstance(entry["ins"], list) else [entry["ins"]])
        assert {name for name in gallery if shown & set(entries[name]["ins"])} == relevant
        assert entry["bbox"] == (
            min(x for x, _, _, _ in boxes),
            min(y for _, y, _, _ in boxes),
            max(x + w for x, _, w, _ in boxes),
            max(y + h for _, y, _, h in boxes),
        )
        assert "mask" not in entry
        assert isinstance(entry["ins"], list) == ("INSTRE-M" in query)
    for name in gallery:
        assert entries[name]["bbox"] == [(x, y, x + w, y + h) for x, y, w, h in truth[name][1]]
        assert len(entries[name]["ins"]) == len(truth[name][0])


def test_what_it_writes_is_verified_scored_and_converted(made):
    root, truth = made
    queries, gallery = choose(truth)
    create_listed(root, queries, gallery)
    file, converted = root / "instre.pt", root / "again.pt"
    done = run_here("verify_dataset.py", file, "--base-path", root, "--strict")
    assert done.returncode == 0, done.stdout
    rankings = {query: random.Random(query).sample(gallery, len(gallery)) for query in queries}
    expected = []
    for query, ranking in rankings.items():
        relevant = [name for name in gallery if set(truth[query][0]) & set(truth[name][0])]
        expected.append(average_precision(ranking, relevant))
    assert run_here("convert_annotations.py", "--ann-file", file, "--output-file", converted).returncode == 0
    assert load_plainly(converted) == load_plainly(file)
    done, report, _ = score(root, file, "--rankings", rankings)
    assert done.returncode == 0
    assert report["groups"]["all"]["mAP"] == pytest.approx(sum(expected) / len(expected))


@pytest.mark.parametrize(
    "respell",
    [
        lambda name: name.lower(),
        lambda name: f"INSTRE_release/{name}",
        lambda name: f"/data/somewhere/{name}",
        lambda name: f"./{name}",
        lambda name: name.replace("/", "\\"),
        lambda name: name.replace(".jpg", ".JPG"),
        lambda name: name.replace(".jpg", ""),
    ],
    ids=["lower case", "release", "absolute", "dot", "backslashes", "JPG", "without ending"],
)
def test_lists_in_these_spellings_name_the_same_images(made, respell):
    root, truth = made
    queries, gallery = choose(truth)
    _, expected = create_listed(root, queries, gallery)
    (root / "instre.pt").unlink()
    done, entries = create_listed(root, map(respell, queries), map(respell, gallery), "--strict")
    assert done.returncode == 0, done.stdout
    assert entries == expected


@pytest.mark.parametrize(
    "name, file", [("INSTRE-XS", "instre_xs.pt"), ("INSTRE-XXS", "instre_xxs.pt"), ("My-1", "my_1.pt")]
)
def test_the_name_names_file_and_set(made, name, file):
    root, truth = made
    done, entries = create_listed(root, *choose(truth), "--name", name, name=file)
    assert done.returncode == 0, done.stderr
    assert {entry["set"] for entry in entries.values()} == {name}
    done = run_here("verify_dataset.py", root / file, "--base-path", root, "--strict")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("args, threshold", [([], None), (["--xs-threshold", "15"], 15), (["--xxs-threshold", "5"], 5)])
def test_thresholds_apply_to_lists_only_where_they_are_given(made, args, threshold):
    root, truth = made
    done, entries = create_listed(root, *choose(truth), *args)
    area = SIZE[0] * SIZE[1]
    shares = {name: max(100 * w * h / area for _, _, w, h in boxes) for name, (_, boxes) in truth.items()}
    above = [name for name, share in shares.items() if threshold is not None and share >= threshold]
    assert set(entries) == set(truth) - set(above)
    reason = f"{len(above)} x listed image whose object is not below the threshold"
    assert (reason in done.stdout) == bool(above)


def test_three_reasons_for_what_is_listed_and_left_out(made):
    root, truth = made
    queries, gallery = choose(truth)
    big = next(name for name, (_, boxes) in truth.items() if name in gallery and boxes[0][2] * boxes[0][3] > 3000)
    done, entries = create_listed(
        root,
        queries + ["INSTRE-S1/01a_thing/099.jpg", "01a_thing/001.jpg"],
        gallery + ["INSTRE-S2/Nowhere/001.jpg", "a list of images"],
        *("--xs-threshold", "9"),
    )
    lines = [line.strip() for line in done.stdout.splitlines()]
    (line,) = [line for line in lines if "listed image that is not there" in line]
    assert line.endswith(": INSTRE-S1/01a_thing/099.jpg, INSTRE-S2/Nowhere/001.jpg")
    (line,) = [line for line in lines if "not spelled like" in line]
    assert line.endswith(": 01a_thing/001.jpg, a list of images")
    (line,) = [line for line in lines if "not below the threshold of 9 %" in line]
    assert big not in entries


def test_a_part_that_is_left_out_is_a_reason_of_its_own(made):
    root, truth = made
    done, entries = create_listed(root, *choose(truth), "--parts", "S1", "M")
    assert set(entries) == {name for name in truth if "INSTRE-S2" not in name}
    assert "8 x listed image of a part that --parts leaves out" in done.stdout


def test_only_the_parts_that_are_listed_need_to_be_there(made):
    root, truth = made
    shutil.rmtree(str(root / "INSTRE-S2"))
    lists = [[name for name in names if "INSTRE-S2" not in name] for names in choose(truth)]
    assert create_listed(root, *lists, "--strict")[0].returncode == 0
    assert create_listed(root, *choose(truth))[0].returncode == 2


def test_a_listed_gallery_image_needs_no_box_but_a_query_does(made):
    root, truth = made
    for name in ("INSTRE-S1/01a_thing/001", "INSTRE-M/01/001", "INSTRE-S1/01b_thing/002"):
        (root / f"{name}.txt").unlink()
    (root / "INSTRE-S1/01a_thing/003.txt").write_text("")
    (root / "INSTRE-M/01/003.txt").write_text("1 2 3 4\n")
    (root / "INSTRE-S1/02a_thing/003.jpg").write_text("no image")
    done, entries = create_listed(root, *choose(truth))
    assert done.returncode == 0, done.stderr
    assert "INSTRE-S1/02a_thing/003.jpg" not in entries
    assert "INSTRE-S1/01b_thing/002.jpg" not in entries
    for name in ("INSTRE-S1/01a_thing/001.jpg", "INSTRE-S1/01a_thing/003.jpg"):
        assert entries[name]["bbox"] == [None]
        assert entries[name]["ins"] == [entries["INSTRE-S1/01a_thing/002.jpg"]["ins"]]
    for name in ("INSTRE-M/01/001.jpg", "INSTRE-M/01/003.jpg"):
        assert entries[name]["bbox"] == [None, None]
        assert entries[name]["ins"] == entries["INSTRE-M/01/002.jpg"]["ins"]
    for line in (
        "1 x listed query without a box: INSTRE-S1/01b_thing/002.jpg",
        "1 x image that cannot be read: INSTRE-S1/02a_thing/003.jpg",
        "1 x listed image with a .txt that is empty: INSTRE-S1/01a_thing/003.jpg",
        "1 x listed image of INSTRE-M without two boxes, as a whole: INSTRE-M/01/003.jpg",
    ):
        assert line in done.stdout
    assert "not there" not in done.stdout
    done = run_here("verify_dataset.py", root / "instre.pt", "--base-path", root)
    assert done.returncode == 0, done.stdout


def test_lists_keep_instances_of_one_role_only(made):
    queries, gallery = ["INSTRE-S1/01a_thing/002.jpg"], ["INSTRE-S1/02a_thing/001.jpg"]
    done, entries = create_listed(made[0], queries, gallery, "--strict")
    assert (done.returncode, list(entries)) == (0, queries + gallery)


def test_what_is_not_listed_is_not_talked_about(made):
    root, truth = made
    (root / "INSTRE-S1/01a_thing/077.jpg").write_text("no image")
    (root / "INSTRE-S1/01a_thing/078.txt").write_text("1 2 3 4\n")
    assert create_listed(root, *choose(truth), "--strict")[0].returncode == 0


@pytest.mark.parametrize(
    "args",
    [["--name", "../x"], ["--name", "OWID"], ["--name", ""], ["--gallery-list", "no/such/list"], ["--parts", "S3"]],
)
def test_bad_arguments_beside_lists_exit_with_2(made, args):
    root, truth = made
    done, entries = create_listed(root, *choose(truth), *args)
    assert (done.returncode, entries) == (2, None)


def test_a_name_needs_lists_and_an_image_has_one_role(made):
    root, truth = made
    assert create(root, "--name", "x")[0].returncode == 2
    queries, gallery = choose(truth)
    done, entries = create_listed(root, queries, [*gallery, queries[0].lower()])
    assert (done.returncode, entries) == (2, None)
    assert "one role" in done.stderr


@pytest.mark.parametrize("which, what", [(0, "query"), (1, "gallery image")])
def test_a_list_of_which_nothing_can_be_used_is_refused(made, which, what):
    root, truth = made
    lists = list(choose(truth))
    lists[which] = []
    done, annotations = create_listed(root, *lists)
    assert (done.returncode, annotations) == (2, None)
    assert f"no {what} of the list" in done.stderr
