"""verify_dataset.py: each kind of damage is found and named for what it is, and nothing else is reported."""

import collections
import json
import os
import time

import numpy as np
import pytest
from conftest import run_here
from helpers import compressed, make_photograph, make_query, rectangle, refused, save, verify
from PIL import Image

import verify_dataset

QUERY, OTHER_QUERY = "OWID/P1/3/rgb/000000.jpg", "OWID/P1/3/rgb/000001.jpg"
GALLERY = "OWID/P2/images/000000.jpg"
REAL_QUERY, REAL_GALLERY = "RoboTools/test_video/obj_000003/rgb/000000.png", "RoboTools/test/1/rgb/000000.png"


def check(tiny, annotations, *args):
    """Save annotations and verify them: (process, report)."""
    return verify(save(tiny.root, annotations, "check.pt"), tiny.root, *args)


def checks_of(report):
    return {issue["check"] for issue in report["issues"]}


def other_mask(height=48, width=64, box=(20, 10, 50, 30)):
    return compressed(rectangle(*box, height, width))


# --------------------------------------------------------------------------------------------------------------- passes


def test_what_create_dataset_writes_passes(tiny):
    annotations = tiny.annotations()
    done, report = check(tiny, annotations, "--strict")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "PASSED: 0 errors, 0 warnings in 9 entries"
    assert (report["passed"], report["issues"]) == (True, [])


def test_the_sample_passes_with_its_true_figures(voxdet, sample_file, tmp_path):
    root, truth = voxdet
    report = tmp_path / "report.json"
    done = run_here("verify_dataset.py", "--ann-file", sample_file, "--base-path", root, "--report", report)
    assert done.returncode == 0, done.stdout
    figures = json.loads(report.read_text())["statistics"]
    for name, area in (("OWID", 640 * 480), ("RoboTools", 1920 * 1080)):
        of_set = [t for path, t in truth.items() if path.startswith(name)]
        queries = [t["ins"] for t in of_set if "mask" in t]
        gallery = [t["objects"] for t in of_set if "objects" in t]
        shares = [100 * w * h / area for objects in gallery for _, (_, _, w, h), _, _ in objects]
        seen = collections.Counter(instance for objects in gallery for instance, _, _, _ in objects)
        relevant = [sum(any(i == query for i, *_ in objects) for objects in gallery) for query in queries]
        expected = {
            "queries": len(queries),
            "gallery_images": len(gallery),
            "instances": len(set(queries) | set(seen)),
            "objects": len(shares),
            "objects_per_image_mean": np.mean([len(objects) for objects in gallery]),
            "objects_per_image_max": max(len(objects) for objects in gallery),
            "object_size_mean": np.mean(shares),
            "object_size_median": np.median(shares),
            "object_size_below_2": 100 * np.mean([share < 2 for share in shares]),
            "instances_easy": sum(n > 10 for n in seen.values()),
            "instances_medium": sum(5 <= n <= 10 for n in seen.values()),
            "instances_hard": sum(n < 5 for n in seen.values()),
            "instances_once": sum(n == 1 for n in seen.values()),
            "relevant_per_query_mean": np.mean(relevant),
            "relevant_per_query_max": max(relevant),
            "queries_unanswered": relevant.count(0),
        }
        splits, classes = figures[name].pop("splits"), figures[name].pop("object_size_shares")
        assert figures[name] == pytest.approx(expected)
        limits = [0, 0.5, 1, 2, 5, 101]
        for low, high, found in zip(limits, limits[1:], classes.values()):
            assert found == pytest.approx(100 * np.mean([low <= share < high for share in shares]))
        assert splits == {
            split: {
                "queries": sum("mask" in t for t in of_set if t["split"] == split),
                "gallery_images": sum("objects" in t for t in of_set if t["split"] == split),
                "objects": sum(len(t.get("objects", ())) for t in of_set if t["split"] == split),
            }
            for split in {t["split"] for t in of_set}
        }
    assert "  published\n" in done.stdout
    assert done.stdout.count("5.8") == 1


def test_optional_fields_may_be_absent(tiny):
    annotations = tiny.annotations()
    for entry in annotations.values():
        entry.pop("split")
        entry.pop("num_ins", None)
    annotations[QUERY]["obj_name"] = "a name"
    assert check(tiny, annotations, "--strict")[0].returncode == 0


def test_instre_entries_without_masks_pass(pictures):
    common = {"set_name": "INSTRE-XS", "obj_name": "01a"}
    entries = {"q0.png": make_query(mask=None, **common), "g0.png": make_photograph(**common)}
    done, _ = verify(save(pictures, entries), pictures, "--strict")
    assert done.returncode == 0, done.stdout


def test_numpy_values_and_defaultdicts_of_older_files_load(tiny):
    annotations = tiny.annotations()
    old = collections.defaultdict(dict)
    for path, entry in annotations.items():
        entry = old[path] = collections.OrderedDict(entry)
        if entry["is_query"]:
            entry["bbox"] = tuple(np.int64(v) for v in entry["bbox"])
            entry["ins"] = np.int32(entry["ins"])
            entry["mask"] = {"size": entry["mask"]["size"], "counts": entry["mask"]["counts"].encode()}
        else:
            entry["bbox"] = np.array(entry["bbox"], dtype=">f4")
            entry["ins"] = np.asfortranarray(entry["ins"])
    done, report = check(tiny, old, "--strict")
    assert done.returncode == 0, done.stdout
    assert report["issues"] == []


def test_the_counts_of_images_come_out_with_skip_paths(tiny):
    annotations = tiny.annotations()
    done, report = check(tiny, {f"gone/{path}": entry for path, entry in annotations.items()}, "--skip-paths")
    assert done.returncode == 0
    assert report["statistics"]["RoboTools"]["object_size_mean"] is None
    assert report["statistics"]["OWID"]["object_size_mean"] == pytest.approx(100 * 20 / (48 * 64))


# --------------------------------------------------------------------------------------------------------------- damage


def drop(path, field):
    return lambda tiny, a: a[path].pop(field)


def put(path, **changes):
    return lambda tiny, a: a[path].update(changes)


def put_counts(counts):
    return lambda tiny, a: a[QUERY].update(mask={"size": [48, 64], "counts": counts})


def rename_other(new):
    return lambda tiny, a: a.__setitem__(new, a.pop(OTHER_QUERY))


def only(kind):
    def damage(tiny, annotations):
        for path in [p for p, e in annotations.items() if e["set"] == "OWID" and e["is_query"] != (kind == "queries")]:
            del annotations[path]

    return damage


def replace_file(path, make):
    def damage(tiny, annotations):
        os.unlink(str(tiny.path(path)))
        make(tiny.path(path))

    return damage


INF, NAN = float("inf"), float("nan")

# What makes the verifier report a check, and no other one.
DAMAGE = {
    "path-missing": [
        lambda tiny, a: tiny.path(QUERY).unlink(),
        *map(rename_other, ("OWID/\0.jpg", "\n", "\ud800.jpg", "x" * 5000, "/" * 5000)),
    ],
    "path-outside": [*map(rename_other, ("../secret.jpg", "OWID/../../secret.jpg"))],
    "path-not-file": [
        replace_file(QUERY, lambda path: path.mkdir()),
        replace_file(QUERY, lambda path: os.mkfifo(str(path))),
    ],
    "path-not-image": [
        replace_file(QUERY, lambda path: path.write_text("text")),
        replace_file(QUERY, lambda path: path.write_bytes(b"")),
    ],
    "image-size": [
        lambda tiny, a: tiny.save_image(QUERY, Image.new("RGB", (65, 48))),
        # Transposed; of another height; of another width.
        *(put(GALLERY, mask=[other_mask(*size, (20, 10, 21, 30))]) for size in ((64, 48), (49, 64), (48, 65))),
        put(QUERY, mask=other_mask(64, 48, (20, 10, 40, 30)), bbox=(20, 10, 40, 30)),
    ],
    "entry-type": [
        lambda tiny, a: a.__setitem__(7, a.pop(OTHER_QUERY)),
        lambda tiny, a: a.__setitem__(OTHER_QUERY, []),
    ],
    "field-missing": [
        *(drop(QUERY, field) for field in ("bbox", "is_query")),
        *(drop(GALLERY, field) for field in ("bbox", "ins")),
    ],
    "field-type": [
        put(QUERY, is_query=1),
        put(QUERY, set=None),
        put(QUERY, obj_name=5),
        put(GALLERY, ins="3"),
        put(GALLERY, bbox="box"),
        put(GALLERY, mask="mask"),
        put(GALLERY, num_ins=["4"]),
        put(GALLERY, num_ins=[0]),
    ],
    "split-unknown": [put(QUERY, split="testing"), put(QUERY, split=[])],
    "id-type": [*(put(QUERY, ins=value) for value in ("3", 3.0, True, -3, 2**63, 2**2000)), put(GALLERY, ins=[None])],
    "length-mismatch": [
        put(REAL_GALLERY, ins=[3]),
        put(REAL_GALLERY, bbox=[(1, 2, 4, 6)]),
        put(GALLERY, num_ins=[4, 4]),
    ],
    "box-malformed": [
        *(put(GALLERY, bbox=[box]) for box in ((1, 2, 3), ("1", "2", "3", "4"))),
        *(put(QUERY, bbox=box) for box in (None, [(20, 10, 50, 30)])),
    ],
    "box-not-finite": [put(GALLERY, bbox=[(20, 10, value, 30)]) for value in (NAN, INF, 10**400)],
    "box-inside-out": [put(GALLERY, bbox=[box]) for box in ((21, 30, 20, 10), (20, 10, 20, 30))],
    "box-outside": [
        *(put(REAL_GALLERY, bbox=[(1, 2, 4, 6), box]) for box in ((20, 10, 90, 30), (5, 6, 12, 140))),
        put(GALLERY, bbox=[(-20, 10, 21, 30)]),
    ],
    "mask-missing": [put(QUERY, mask=None), put(GALLERY, mask=[]), drop(QUERY, "mask"), drop(GALLERY, "mask")],
    "mask-unexpected": [put(REAL_GALLERY, mask=[other_mask(), other_mask()])],
    "mask-malformed": [
        *(put(QUERY, mask=mask) for mask in ("mask", {"counts": "0"})),
        *(put(QUERY, mask={"size": size, "counts": "0"}) for size in (["48", "64"], [-48, -64], [2**31, 2**31])),
        # Empty, none, too large a number, a foreign character, not ASCII, a negative run, a text; cut short.
        *(put_counts(counts) for counts in ("", None, "oooooooooooo0", "0 0", "\u00e90", "oO0", [1, "2"])),
        put_counts("1" * 4_000_001),  # far too long to be decoded
        lambda tiny, a: put_counts(a[QUERY]["mask"]["counts"][:1])(tiny, a),
    ],
    # Too short, too long, a list that is too short, 2^34.
    "mask-fill": [put_counts(counts) for counts in ("51", other_mask(48, 65)["counts"], [1, 2], "PPPPPP40")],
    "mask-empty": [
        put(QUERY, mask=compressed(np.zeros((48, 64)))),
        put(GALLERY, mask=[compressed(np.zeros((48, 64)))]),
    ],
    "query-box": [put(QUERY, bbox=(20, 10, 49, 30)), put(QUERY, bbox=(1, 1, 5, 5))],
    "gallery-box": [put(GALLERY, mask=[other_mask(box=(1, 1, 5, 5))])],
    "gallery-box-loose": [put(GALLERY, bbox=[(15, 8, 30, 34)])],
    "object-repeated": [
        put(REAL_GALLERY, ins=[3, 20, 3], bbox=[(1, 2, 4, 6), (5, 6, 12, 14), (1, 2, 4, 6)]),
        lambda tiny, a: a[GALLERY].update(
            {field: 2 * a[GALLERY][field] for field in ("bbox", "mask", "ins", "num_ins")}
        ),
    ],
    "box-below-pixel": [put(REAL_GALLERY, bbox=[box, (5, 6, 12, 14)]) for box in ((1, 2, 1.5, 6), (1, 2, 4, 2.5))],
    "mask-list": [put(GALLERY, mask=[{"size": [48, 64], "counts": [970, 20, 2082]}])],
    "query-unanswered": [put(QUERY, ins=77)],
    "instance-unqueried": [put(REAL_GALLERY, ins=[3, 20, 77], bbox=[(1, 2, 4, 6)] * 3)],
    "set-one-sided": [only("queries"), only("gallery")],
}


@pytest.mark.parametrize("name, damage", [(name, damage) for name in DAMAGE for damage in DAMAGE[name]])
def test_damage_is_named_for_what_it_is_and_nothing_else_is_reported(tiny, name, damage):
    annotations = tiny.annotations()
    damage(tiny, annotations)
    done, report = check(tiny, annotations)
    assert checks_of(report) == {name}, report["issues"]
    severity = report["checks"][name]["severity"]
    assert done.returncode == (severity == "error")
    assert done.stdout.splitlines()[-1].startswith("FAILED" if severity == "error" else "PASSED")
    assert f"{severity} {name}: " in done.stdout
    assert report["errors" if severity == "error" else "warnings"] == len(report["issues"])
    assert check(tiny, annotations, "--strict")[0].returncode == 1


def test_counts_of_any_bytes_are_checked(tiny):
    annotations = tiny.annotations()
    put_counts(b"\xff\x00\x80")(tiny, annotations)
    assert checks_of(check(tiny, annotations)[1]) == {"mask-malformed"}


@pytest.mark.parametrize("out, found", [(1, set()), (1.1, {"box-outside"})])
@pytest.mark.parametrize("side", range(4))
def test_a_box_may_reach_a_pixel_out_of_its_image(tiny, side, out, found):
    annotations, box = tiny.annotations(), [5, 6, 12, 14]
    box[side] = (-out, -out, 64 + out, 48 + out)[side]
    annotations[REAL_GALLERY]["bbox"][1] = tuple(box)
    assert checks_of(check(tiny, annotations)[1]) == found


@pytest.mark.parametrize("shift, found", [(2, set()), (-2, set()), (3, {"gallery-box"}), (-3, {"gallery-box"})])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_mask_may_reach_two_pixels_out_of_its_box(tiny, axis, shift, found):
    annotations, box = tiny.annotations(), [20, 10, 50, 30]
    box[axis] += shift
    box[axis + 2] += shift
    annotations[GALLERY].update(bbox=[tuple(box)], mask=[other_mask()])
    assert checks_of(check(tiny, annotations)[1]) == found


@pytest.mark.parametrize("size", [(49, 64), (48, 65)])
def test_masks_of_an_image_that_differ_in_size(tiny, size):
    annotations = tiny.annotations()
    entry = annotations[GALLERY]
    for field in ("bbox", "ins", "num_ins"):
        entry[field] *= 2
    entry["bbox"][1] = (5, 5, 9, 9)
    entry["mask"].append(other_mask(*size, (5, 5, 9, 9)))
    assert checks_of(check(tiny, annotations)[1]) == {"mask-size"}


@pytest.mark.parametrize("spelling", ["./{}", "OWID/../{}", "OWID//{}"])
def test_a_path_in_two_spellings_is_noticed(tiny, spelling):
    annotations = tiny.annotations()
    path = GALLERY[len("OWID/") :] if spelling.startswith("OWID//") else GALLERY
    annotations[spelling.format(path)] = annotations[GALLERY]
    done, report = check(tiny, annotations)
    assert done.returncode == 0
    assert checks_of(report) == {"path-twice"}
    annotations.pop(GALLERY)
    assert check(tiny, annotations)[1]["issues"] == []


def test_absolute_paths_of_another_machine_are_not_looked_for_below_a_base_path(tiny):
    done, _ = check(tiny, {f"/elsewhere/{path}": entry for path, entry in tiny.annotations().items()})
    assert done.returncode == 1
    assert "convert_annotations.py --replace-prefix OLD NEW says where they are now." in done.stdout


def test_paths_that_begin_above_are_checked_in_linear_time():
    """As --voxdet-root ../VoxDet makes them. Ten times the paths take ten times as long, not a hundred times."""
    seconds = []
    for count in (2_000, 20_000):
        entries = {f"../VoxDet/{number}.jpg": {} for number in range(count)}
        issues = verify_dataset.Report()
        start = time.process_time()
        verify_dataset.check_spellings({**entries, "../VoxDet//7.jpg": {}}, issues)
        seconds.append(time.process_time() - start)
        assert [issue.path for issue in issues.kept] == ["../VoxDet/7.jpg", "../VoxDet//7.jpg"]
    assert seconds[1] < 40 * seconds[0]


@pytest.mark.parametrize("width, is_error", [(1, True), (0.5, True), (100, False)])
def test_boxes_that_are_all_shares_of_the_image_are_an_error(tmp_path, width, is_error):
    """One box of pixels is enough for the others to be odd ones."""
    share = (0.1, 0.2, 0.9, 0.7)
    entries = {"q.png": make_query(bbox=share), "g.png": make_photograph([1, 2], bbox=[share, (0, 0, width - 0.1, 1)])}
    done, report = verify(save(tmp_path, entries), tmp_path, "--skip-paths")
    assert (done.returncode, report["checks"]["box-in-shares"]["count"]) == (int(is_error), int(is_error))


@pytest.mark.parametrize("orientation, is_noticed", [(None, False), (1, False), (3, True), (6, True), (8, True)])
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_photograph_that_is_stored_turned_is_a_warning(tmp_path, orientation, is_noticed, ending):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    for name in ("q", "g"):
        Image.new("RGB", (64, 48)).save(str(tmp_path / f"{name}.{ending}"), exif=exif)
    entries = {f"q.{ending}": make_query(), f"g.{ending}": make_photograph()}
    done, report = verify(save(tmp_path, entries), tmp_path)
    assert (done.returncode, report["checks"]["image-rotated"]["count"]) == (0, 2 * is_noticed)


def test_a_set_that_is_not_there_is_named_with_those_that_are(tiny):
    file = save(tiny.root, tiny.annotations())
    done = run_here("verify_dataset.py", file, "--base-path", tiny.root, "--set", "robotool", "--preview", "out.png")
    refused(done, "has no set robotool; its sets: OWID, RoboTools")


def test_every_check_can_be_made_to_find_something(tiny):
    _, report = check(tiny, tiny.annotations())
    # test_forms.py has those of other forms, and of sets of any name.
    forms = {"mask-list", "mask-row-major", "mask-inverted", "mask-polygons", "query-box-inclusive", "query-mask-empty"}
    forms |= {f"form-{what}" for what in ("set", "role", "label", "box", "single", "num-ins", "is-val", "dense")}
    elsewhere = {"path-twice", "mask-size", "mask-mixed", "set-case", "box-in-shares", "image-rotated", *forms} - set(
        DAMAGE
    )
    assert set(DAMAGE) | elsewhere == set(report["checks"])


# ----------------------------------------------------------------------------------------------------------- the report


def test_issues_are_grouped_and_verbose_shows_all(tiny):
    annotations = tiny.annotations()
    for path in list(annotations)[:5]:
        if path != QUERY:
            tiny.path(path).unlink()
    done, _ = check(tiny, annotations)
    assert done.stdout.count("error path-missing") == 1
    assert done.stdout.count("  OWID/") == 3
    done = run_here("verify_dataset.py", "--ann-file", tiny.path("check.pt"), "--base-path", tiny.root, "--verbose")
    assert done.stdout.count("  OWID/") == 4
    assert len(json.loads(tiny.path("check_verification.json").read_text())["issues"]) == 4


def test_paths_are_looked_for_in_the_current_folder_without_a_base_path(tiny, monkeypatch):
    tiny.create()
    monkeypatch.chdir(tiny.root)
    done = run_here("verify_dataset.py")
    assert done.returncode == 0, done.stdout
    monkeypatch.chdir("/")
    done = run_here("verify_dataset.py", "--ann-file", tiny.path("anns.pt"))
    assert done.returncode == 1
    assert "name the folder that their paths start at with --base-path" in done.stdout


@pytest.mark.parametrize(
    "args, left_out",
    [
        ([], ""),
        (["--skip-paths"], ", images not looked for"),
        (["--sample-masks", "3"], ", 3 of 8 masks checked"),
        (["--skip-paths", "--sample-masks", "3"], ", images not looked for, 3 of 8 masks checked"),
    ],
)
def test_the_verdict_says_what_was_not_checked(tiny, args, left_out):
    done, _ = check(tiny, tiny.annotations(), *args)
    assert done.stdout.splitlines()[-1] == f"PASSED: 0 errors, 0 warnings in 9 entries{left_out}"


def test_a_sample_of_masks_that_holds_all_finds_all(tiny):
    annotations = tiny.annotations()
    annotations[QUERY]["mask"] = other_mask(box=(1, 1, 5, 5))
    done, report = check(tiny, annotations, "--sample-masks", 1000)
    assert len(report["issues"]) == 1
    assert "all 8 masks checked" in done.stdout


@pytest.mark.parametrize("args", [["--sample-masks", "-1"], ["--preview-count", "x"], ["--unknown"]])
def test_bad_arguments_exit_with_2(tiny, args):
    done, _ = check(tiny, {}, *args)
    assert (done.returncode, done.stdout) == (2, "")
