"""create_instre_subsets.py with lists: they decide alone, as in the usual protocol of INSTRE; on a made tree."""

import json
import random
import shutil

import pytest
from conftest import load_plainly, refused, run_here
from PIL import Image

SIZE = 200, 160


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


def create(root, folder, queries, gallery, *args, name="instre.pt"):
    """Run the script on lists: (process, what it wrote or None)."""
    for file, names in (("q.txt", queries), ("g.txt", gallery)):
        (folder / file).write_text("\n".join(names) + "\n")
    done = run_here(
        "create_instre_subsets.py",
        *("--instre-root", root, "--output-dir", folder, "--relative-paths", "--workers", "1"),
        *("--query-list", folder / "q.txt", "--gallery-list", folder / "g.txt", *args),
    )
    return done, load_plainly(folder / name) if (folder / name).exists() else None


def instances_of(entry):
    return entry["ins"] if isinstance(entry["ins"], list) else [entry["ins"]]


def test_queries_gallery_and_positives_are_as_the_lists_say(made, tmp_path):
    root, truth = made
    queries, gallery = choose(truth)
    done, entries = create(root, tmp_path, queries, gallery, "--strict")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path for path, entry in entries.items() if entry["is_query"]} == set(queries)
    assert {path for path, entry in entries.items() if not entry["is_query"]} == set(gallery)
    assert {entry["set"] for entry in entries.values()} == {"INSTRE"}
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["instre.pt"]
    for query in queries:
        objects, boxes = truth[query]
        relevant = {name for name in gallery if set(objects) & set(truth[name][0])}
        assert len(relevant) == (9 if "INSTRE-M" in query else 6 if "INSTRE-S1" in query else 3)
        shown = set(instances_of(entries[query]))
        assert {name for name in gallery if shown & set(entries[name]["ins"])} == relevant
        assert entries[query]["bbox"] == (
            min(x for x, _, _, _ in boxes),
            min(y for _, y, _, _ in boxes),
            max(x + w for x, _, w, _ in boxes),
            max(y + h for _, y, _, h in boxes),
        )
        assert "mask" not in entries[query]
        assert isinstance(entries[query]["ins"], list) == ("INSTRE-M" in query)
    for name in gallery:
        assert entries[name]["bbox"] == [(x, y, x + w, y + h) for x, y, w, h in truth[name][1]]
        assert len(entries[name]["ins"]) == len(truth[name][0])


def test_what_it_writes_is_verified_scored_and_converted(made, tmp_path):
    root, truth = made
    queries, gallery = choose(truth)
    file = tmp_path / "instre.pt"
    create(root, tmp_path, queries, gallery)
    done = run_here("verify_dataset.py", "--ann-file", file, "--base-path", root, "--strict")
    assert done.returncode == 0, done.stdout
    rankings = {query: random.Random(query).sample(gallery, len(gallery)) for query in queries}
    (tmp_path / "r.json").write_text(json.dumps(rankings))
    precisions = []
    for query, ranking in rankings.items():
        hits = [rank for rank, name in enumerate(ranking, 1) if set(truth[query][0]) & set(truth[name][0])]
        precisions.append(sum(found / rank for found, rank in enumerate(hits, 1)) / len(hits))
    converted = tmp_path / "again.pt"
    assert run_here("convert_annotations.py", "--ann-file", file, "--output-file", converted).returncode == 0
    assert load_plainly(converted) == load_plainly(file)
    for scored in (file, converted):
        args = ("--ann-file", scored, "--rankings", tmp_path / "r.json", "--report", tmp_path / "s.json")
        assert run_here("evaluate_retrieval.py", *args).returncode == 0
        scores = json.loads((tmp_path / "s.json").read_text())
        assert scores["groups"]["all"]["mAP"] == pytest.approx(sum(precisions) / len(precisions))


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
)
def test_lists_in_these_spellings_name_the_same_images(made, tmp_path, respell):
    root, truth = made
    queries, gallery = choose(truth)
    _, expected = create(root, tmp_path, queries, gallery)
    (tmp_path / "instre.pt").unlink()
    done, entries = create(root, tmp_path, map(respell, queries), map(respell, gallery), "--strict")
    assert done.returncode == 0, done.stdout
    assert entries == expected


@pytest.mark.parametrize(
    "name, file", [("INSTRE-XS", "instre_xs.pt"), ("INSTRE-XXS", "instre_xxs.pt"), ("My-1", "my_1.pt")]
)
def test_the_name_names_file_and_set(made, tmp_path, name, file):
    root, truth = made
    done, entries = create(root, tmp_path, *choose(truth), "--name", name, name=file)
    assert done.returncode == 0, done.stderr
    assert {entry["set"] for entry in entries.values()} == {name}
    done = run_here("verify_dataset.py", "--ann-file", tmp_path / file, "--base-path", root, "--strict")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("args, threshold", [([], None), (["--xs-threshold", "15"], 15), (["--xxs-threshold", "5"], 5)])
def test_thresholds_apply_only_where_they_are_given(made, tmp_path, args, threshold):
    root, truth = made
    queries, gallery = choose(truth)
    done, entries = create(root, tmp_path, queries, gallery, *args)
    shares = {
        name: max(100 * w * h / (SIZE[0] * SIZE[1]) for _, _, w, h in boxes) for name, (_, boxes) in truth.items()
    }
    above = [name for name, share in shares.items() if threshold is not None and share >= threshold]
    assert set(entries) == set(truth) - set(above)
    reason = f"{len(above)} x listed image whose object is not below the threshold"
    assert (reason in done.stdout) == bool(above)


def test_three_reasons_for_what_is_listed_and_left_out(made, tmp_path):
    root, truth = made
    queries, gallery = choose(truth)
    big = next(name for name, (_, boxes) in truth.items() if name in gallery and boxes[0][2] * boxes[0][3] > 3000)
    done, entries = create(
        root,
        tmp_path,
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


def test_a_part_that_is_left_out_is_a_reason_of_its_own(made, tmp_path):
    root, truth = made
    done, entries = create(root, tmp_path, *choose(truth), "--parts", "S1", "M")
    assert set(entries) == {name for name in truth if "INSTRE-S2" not in name}
    assert "8 x listed image of a part that --parts leaves out" in done.stdout


def test_only_the_parts_that_are_listed_need_to_be_there(made, tmp_path):
    root, truth = made
    shutil.rmtree(str(root / "INSTRE-S2"))
    lists = [[name for name in names if "INSTRE-S2" not in name] for names in choose(truth)]
    assert create(root, tmp_path, *lists, "--strict")[0].returncode == 0
    assert create(root, tmp_path, *choose(truth))[0].returncode == 2


def test_a_listed_gallery_image_needs_no_box_but_a_query_does(made, tmp_path):
    root, truth = made
    queries, gallery = choose(truth)
    for name in ("INSTRE-S1/01a_thing/001", "INSTRE-M/01/001", "INSTRE-S1/01b_thing/002"):
        (root / f"{name}.txt").unlink()
    (root / "INSTRE-S1/01a_thing/003.txt").write_text("")
    (root / "INSTRE-M/01/003.txt").write_text("1 2 3 4\n")
    (root / "INSTRE-S1/02a_thing/003.jpg").write_text("no image")
    done, entries = create(root, tmp_path, queries, gallery)
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
    done = run_here("verify_dataset.py", "--ann-file", tmp_path / "instre.pt", "--base-path", root)
    assert done.returncode == 0, done.stdout


def test_lists_keep_instances_of_one_role_only(made, tmp_path):
    root, _ = made
    queries, gallery = ["INSTRE-S1/01a_thing/002.jpg"], ["INSTRE-S1/02a_thing/001.jpg"]
    done, entries = create(root, tmp_path, queries, gallery, "--strict")
    assert (done.returncode, list(entries)) == (0, queries + gallery)


def test_what_is_not_listed_is_not_talked_about(made, tmp_path):
    root, truth = made
    queries, gallery = choose(truth)
    (root / "INSTRE-S1/01a_thing/077.jpg").write_text("no image")
    (root / "INSTRE-S1/01a_thing/078.txt").write_text("1 2 3 4\n")
    assert create(root, tmp_path, queries, gallery, "--strict")[0].returncode == 0


@pytest.mark.parametrize(
    "args",
    [["--name", "../x"], ["--name", "OWID"], ["--name", ""], ["--gallery-list", "no/such/list"], ["--parts", "S3"]],
)
def test_bad_arguments_exit_with_2(made, tmp_path, args):
    root, truth = made
    done, entries = create(root, tmp_path, *choose(truth), *args)
    assert (done.returncode, entries) == (2, None)


def test_a_name_needs_lists_and_an_image_has_one_role(made, tmp_path):
    root, truth = made
    assert run_here("create_instre_subsets.py", "--instre-root", root, "--name", "x").returncode == 2
    queries, gallery = choose(truth)
    done, entries = create(root, tmp_path, queries, [*gallery, queries[0].lower()])
    assert (done.returncode, entries) == (2, None)
    assert "one role" in done.stderr


def test_subsets_without_lists_leave_the_mask_of_queries_out(made, tmp_path):
    """The paper's code trips over a mask that is None, not over one that is missing."""
    root, _ = made
    args = ("--instre-root", root, "--output-dir", tmp_path, "--relative-paths", "--xs-threshold", "100")
    done = run_here("create_instre_subsets.py", *args, "--workers", "1")
    assert done.returncode == 0, done.stderr
    entries = load_plainly(tmp_path / "instre_xs.pt")
    assert {entry["is_query"] for entry in entries.values()} == {True, False}
    assert all(entry.get("mask", "none") == ("none" if entry["is_query"] else []) for entry in entries.values())


@pytest.mark.parametrize("boxes", [("70 70 90 90", "10 10 20 20"), ("50 60 99 99", "60 50 80 95")])
def test_boxes_that_are_all_corners_are_not_believed(tmp_path, boxes):
    for number in range(4):
        path = tmp_path / "INSTRE-S1" / "01a_book" / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 100)).save(str(path))
        path.with_suffix(".txt").write_text(boxes[number % 2])
    args = ("--instre-root", tmp_path, "--output-dir", tmp_path, "--workers", 1)
    refused(run_here("create_instre_subsets.py", *args), "could be corners", "x y width height are expected")
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.parametrize("which", [0, 1])
def test_a_list_of_which_nothing_can_be_used_is_refused(made, tmp_path, which):
    root, truth = made
    lists = list(choose(truth))
    lists[which] = []
    done, annotations = create(root, tmp_path, *lists)
    assert (done.returncode, annotations) == (2, None)
    assert f"no {('query', 'gallery image')[which]} of the list" in done.stderr
