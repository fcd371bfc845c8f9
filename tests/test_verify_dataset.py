"""verify_dataset.py: each kind of damage is found and named for what it is, and nothing else is reported."""

import collections
import json
import os
import pickle
import zipfile

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from conftest import load_plainly, run_here, run_script
from hostile_pickles import Call, hostile_pickles, zip_pickle
from PIL import Image

QUERY, OTHER_QUERY = "OWID/P1/3/rgb/000000.jpg", "OWID/P1/3/rgb/000001.jpg"
GALLERY = "OWID/P2/images/000000.jpg"
REAL_QUERY, REAL_GALLERY = "RoboTools/test_video/obj_000003/rgb/000000.png", "RoboTools/test/1/rgb/000000.png"


def verify(tiny, annotations, *args):
    """Save annotations and verify them: (process, report)."""
    file, report = tiny.path("check.pt"), tiny.path("report.json")
    torch.save(annotations, str(file))
    done = run_here("verify_dataset.py", "--ann-file", file, "--base-path", tiny.root, "--report", report, *args)
    return done, json.loads(report.read_text()) if report.exists() else None


def encode(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode()}


def other_mask(height=48, width=64, box=(20, 10, 50, 30)):
    mask = np.zeros((height, width))
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return encode(mask)


# --------------------------------------------------------------------------------------------------------------- passes


def test_what_create_dataset_writes_passes(tiny):
    _, annotations = tiny.create()
    done, report = verify(tiny, annotations, "--strict")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "PASSED: 0 errors, 0 warnings in 9 entries"
    assert report["passed"] is True
    assert report["issues"] == []


def test_the_sample_passes_with_its_true_figures(voxdet, sample_file, tmp_path):
    root, truth = voxdet
    report = tmp_path / "report.json"
    done = run_script("verify_dataset.py", "--ann-file", sample_file, "--base-path", root, "--report", report)
    assert done.returncode == 0, done.stdout
    figures = json.loads(report.read_text())["statistics"]
    for name, area in (("OWID", 640 * 480), ("RoboTools", 1920 * 1080)):
        queries = [t["ins"] for path, t in truth.items() if path.startswith(name) and "mask" in t]
        gallery = [t["objects"] for path, t in truth.items() if path.startswith(name) and "objects" in t]
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
        splits = figures[name].pop("splits")
        assert figures[name] == pytest.approx(expected)
        assert splits == dict(collections.Counter(t["split"] for p, t in truth.items() if p.startswith(name)))
    assert "VoxDet-SoIR (published)" in done.stdout
    assert done.stdout.count("5.8") == 1


def test_optional_fields_may_be_absent(tiny):
    _, annotations = tiny.create()
    for entry in annotations.values():
        entry.pop("split")
        entry.pop("num_ins", None)
    annotations[QUERY]["obj_name"] = "a name"
    assert verify(tiny, annotations, "--strict")[0].returncode == 0


def test_instre_entries_without_masks_pass(tiny):
    for name in ("1.jpg", "2.jpg"):
        tiny.save_image(name)
    common = {"set": "INSTRE-XS", "obj_name": "01a"}
    annotations = {
        "1.jpg": {"bbox": (1, 2, 3, 4), "mask": None, "is_query": True, "ins": 1, **common},
        "2.jpg": {"bbox": [(1, 2, 3, 4)], "mask": [], "is_query": False, "ins": [1], **common},
    }
    done, report = verify(tiny, annotations, "--strict")
    assert done.returncode == 0, done.stdout
    assert report["published"]["INSTRE-XS"]["object_size_mean"] == 6.6


def test_numpy_values_and_defaultdicts_of_older_files_load(tiny):
    _, annotations = tiny.create()
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
    done, report = verify(tiny, old, "--strict")
    assert done.returncode == 0, done.stdout
    assert report["issues"] == []


def row_major(mask):
    """RLE as the authors' script wrote it: row-major, no leading 0 where the mask starts in the foreground."""
    flat = np.asarray(mask, dtype=bool).ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    return {"counts": counts, "size": mask.shape, "transpose": False}


@pytest.mark.parametrize(
    "box, checks",
    [((20, 10, 50, 30), {"mask-row-major"}), ((0, 0, 50, 30), {"mask-row-major", "mask-inverted"})],
)
def test_row_major_masks_of_the_authors_are_read_and_pointed_out(tiny, box, checks):
    _, annotations = tiny.create()
    mask = np.zeros((48, 64))
    mask[box[1] : box[3], box[0] : box[2]] = 1
    for inclusive in (0, 1):
        bbox = (box[0], box[1], box[2] - inclusive, box[3] - inclusive)
        annotations[QUERY].update(mask=row_major(mask), bbox=bbox)
        done, report = verify(tiny, annotations)
        assert done.returncode == 0
        expected = checks | ({"query-box-inclusive"} if inclusive else set())
        assert {issue["check"] for issue in report["issues"]} == expected


def test_the_counts_of_images_come_out_with_skip_paths(tiny):
    _, annotations = tiny.create()
    done, report = verify(tiny, {f"gone/{path}": entry for path, entry in annotations.items()}, "--skip-paths")
    assert done.returncode == 0
    assert report["statistics"]["RoboTools"]["object_size_mean"] is None
    assert report["statistics"]["OWID"]["object_size_mean"] == pytest.approx(100 * 20 / (48 * 64))


# --------------------------------------------------------------------------------------------------------------- damage


def drop(path, field):
    return lambda tiny, a: a[path].pop(field)


def put(path, **changes):
    return lambda tiny, a: a[path].update(changes)


def put_box(*box):
    return put(GALLERY, bbox=[box])


def put_counts(counts):
    return lambda tiny, a: a[QUERY].update(mask={"size": [48, 64], "counts": counts})


def rename(old, new):
    return lambda tiny, a: a.__setitem__(new, a.pop(old))


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


def resize_image(tiny, annotations):
    tiny.save_image(QUERY, Image.new("RGB", (65, 48)))


INF, NAN = float("inf"), float("nan")

DAMAGE = {
    "file gone": ("path-missing", lambda tiny, a: tiny.path(QUERY).unlink()),
    "NUL in the path": ("path-missing", rename(OTHER_QUERY, "OWID/\0.jpg")),
    "path climbs out": ("path-outside", rename(OTHER_QUERY, "../secret.jpg")),
    "absolute path": ("path-outside", rename(OTHER_QUERY, "/etc/passwd")),
    "folder for a file": ("path-not-file", replace_file(QUERY, lambda path: path.mkdir())),
    "FIFO for a file": ("path-not-file", replace_file(QUERY, lambda path: os.mkfifo(str(path)))),
    "text for an image": ("path-not-image", replace_file(QUERY, lambda path: path.write_text("text"))),
    "empty image": ("path-not-image", replace_file(QUERY, lambda path: path.write_bytes(b""))),
    "image of another size": ("image-size", resize_image),
    "number as key": ("entry-type", lambda tiny, a: a.__setitem__(7, a.pop(OTHER_QUERY))),
    "list as entry": ("entry-type", lambda tiny, a: a.__setitem__(OTHER_QUERY, [])),
    "no bbox": ("field-missing", drop(QUERY, "bbox")),
    "no mask": ("field-missing", drop(GALLERY, "mask")),
    "no is_query": ("field-missing", drop(QUERY, "is_query")),
    "no ins": ("field-missing", drop(GALLERY, "ins")),
    "no set": ("field-missing", drop(QUERY, "set")),
    "is_query 1": ("field-type", put(QUERY, is_query=1)),
    "set None": ("field-type", put(QUERY, set=None)),
    "ins no list": ("field-type", put(GALLERY, ins=3)),
    "bbox no list": ("field-type", put(GALLERY, bbox="box")),
    "mask no list": ("field-type", put(GALLERY, mask={"size": [48, 64], "counts": "0"})),
    "num_ins text": ("field-type", put(GALLERY, num_ins=["4"])),
    "num_ins 0": ("field-type", put(GALLERY, num_ins=[0])),
    "obj_name number": ("field-type", put(QUERY, obj_name=5)),
    "unknown set": ("set-unknown", put(QUERY, set="COCO")),
    "unknown split": ("split-unknown", put(QUERY, split="testing")),
    "split no text": ("split-unknown", put(QUERY, split=[])),
    "id text": ("id-type", put(QUERY, ins="3")),
    "id float": ("id-type", put(QUERY, ins=3.0)),
    "id bool": ("id-type", put(QUERY, ins=True)),
    "id negative": ("id-type", put(QUERY, ins=-3)),
    "id list for a query": ("id-type", put(QUERY, ins=[3])),
    "id None in a list": ("id-type", put(GALLERY, ins=[None])),
    "id list one short": ("length-mismatch", put(REAL_GALLERY, ins=[3])),
    "box list one short": ("length-mismatch", put(REAL_GALLERY, bbox=[(1, 2, 4, 6)])),
    "num_ins one long": ("length-mismatch", put(GALLERY, num_ins=[4, 4])),
    "box of three": ("box-malformed", put_box(1, 2, 3)),
    "box of text": ("box-malformed", put_box("1", "2", "3", "4")),
    "box None": ("box-malformed", put(QUERY, bbox=None)),
    "query box in a list": ("box-malformed", put(QUERY, bbox=[(20, 10, 50, 30)])),
    "box NaN": ("box-not-finite", put_box(20, 10, NAN, 30)),
    "box infinite": ("box-not-finite", put_box(20, 10, INF, 30)),
    "box of huge integers": ("box-not-finite", put_box(20, 10, 10**400, 30)),
    "box inside out": ("box-inside-out", put_box(21, 30, 20, 10)),
    "box without width": ("box-inside-out", put_box(20, 10, 20, 30)),
    "box too far right": ("box-outside", put_box(20, 10, 90, 30)),
    "box too far down": ("box-outside", put_box(20, 10, 21, 70)),
    "box left of the image": ("box-outside", put_box(-20, 10, 21, 30)),
    "box outside, no mask": ("box-outside", put(REAL_GALLERY, bbox=[(1, 2, 4, 6), (5, 6, 12, 140)])),
    "query mask None": ("mask-missing", put(QUERY, mask=None)),
    "gallery masks gone": ("mask-missing", put(GALLERY, mask=[])),
    "masks in RoboTools": ("mask-unexpected", put(REAL_GALLERY, mask=[other_mask(), other_mask()])),
    "mask text": ("mask-malformed", put(QUERY, mask="mask")),
    "mask without size": ("mask-malformed", put(QUERY, mask={"counts": "0"})),
    "mask of text sizes": ("mask-malformed", put(QUERY, mask={"size": ["48", "64"], "counts": "0"})),
    "mask of negative size": ("mask-malformed", put(QUERY, mask={"size": [-48, -64], "counts": "0"})),
    "mask of huge size": ("mask-malformed", put(QUERY, mask={"size": [2**31, 2**31], "counts": "0"})),
    "counts empty": ("mask-malformed", put_counts("")),
    "counts None": ("mask-malformed", put_counts(None)),
    "counts cut short": ("mask-malformed", lambda tiny, a: put_counts(a[QUERY]["mask"]["counts"][:1])(tiny, a)),
    "counts that overflow": ("mask-malformed", put_counts("oooooooooooo0")),
    "counts with a foreign character": ("mask-malformed", put_counts("0 0")),
    "counts not ASCII": ("mask-malformed", put_counts("é0")),
    "counts bytes of rubbish": ("mask-malformed", put_counts(b"\xff\x00\x80")),
    "counts with a negative run": ("mask-malformed", put_counts("oO0")),
    "counts with text in the list": ("mask-malformed", put_counts([1, "2"])),
    "counts too short": ("mask-fill", put_counts("51")),
    "counts too long": ("mask-fill", put_counts(other_mask(48, 65)["counts"])),
    "counts list too short": ("mask-fill", put_counts([1, 2])),
    "counts of 2^34": ("mask-fill", put_counts("PPPPPP40")),
    "mask empty": ("mask-empty", put(QUERY, mask=encode(np.zeros((48, 64))))),
    "gallery mask empty": ("mask-empty", put(GALLERY, mask=[encode(np.zeros((48, 64)))])),
    "mask transposed": ("image-size", put(GALLERY, mask=[other_mask(64, 48)])),
    "query box one off": ("query-box", put(QUERY, bbox=(20, 10, 49, 30))),
    "query box elsewhere": ("query-box", put(QUERY, bbox=(1, 1, 5, 5))),
    "gallery mask elsewhere": ("gallery-box", put(GALLERY, mask=[other_mask(box=(1, 1, 5, 5))])),
    "counts a plain list": ("mask-list", put(GALLERY, mask=[{"size": [48, 64], "counts": [970, 20, 2082]}])),
    "query nobody answers": ("query-unanswered", put(QUERY, ins=77)),
    "instance nobody queries": ("instance-unqueried", put(REAL_GALLERY, ins=[3, 20, 77], bbox=[(1, 2, 4, 6)] * 3)),
    "no gallery": ("set-one-sided", only("queries")),
    "no queries": ("set-one-sided", only("gallery")),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_for_what_it_is_and_nothing_else_is_reported(tiny, name):
    check, damage = DAMAGE[name]
    _, annotations = tiny.create()
    damage(tiny, annotations)
    done, report = verify(tiny, annotations)
    assert {issue["check"] for issue in report["issues"]} == {check}, report["issues"]
    severity = report["checks"][check]["severity"]
    assert done.returncode == (severity == "error")
    assert done.stdout.splitlines()[-1].startswith("FAILED" if severity == "error" else "PASSED")
    assert f"{severity} {check}: " in done.stdout
    assert report["errors" if severity == "error" else "warnings"] == len(report["issues"])
    assert verify(tiny, annotations, "--strict")[0].returncode == 1


def test_masks_of_an_image_that_differ_in_size(tiny):
    _, annotations = tiny.create()
    entry = annotations[GALLERY]
    for field in ("bbox", "ins", "num_ins"):
        entry[field] *= 2
    entry["mask"].append(other_mask(49, 64))
    assert {issue["check"] for issue in verify(tiny, annotations)[1]["issues"]} == {"mask-size"}


def test_instances_are_matched_within_a_set_only(tiny):
    """Ids of OWID and RoboTools collide: 77 of the one does not answer 77 of the other."""
    _, annotations = tiny.create()
    annotations[REAL_QUERY]["ins"] = 77
    annotations[GALLERY]["ins"] = [77]
    checks = collections.Counter(issue["check"] for issue in verify(tiny, annotations)[1]["issues"])
    assert checks == {"query-unanswered": 3, "instance-unqueried": 2}


def test_every_check_can_be_made_to_find_something():
    from verify_dataset import CHECKS

    elsewhere = {"mask-size", "mask-row-major", "mask-inverted", "query-box-inclusive"}
    assert {check for check, _ in DAMAGE.values()} | elsewhere == set(CHECKS)


def test_boxes_and_validity_agree_with_pycocotools_on_random_masks(tiny):
    from verify_dataset import Findings, check_compressed

    rng = np.random.RandomState(0)
    masks, expected = [], []
    for number in range(600):
        height, width = rng.randint(1, 12, 2)
        mask = rng.rand(height, width) < rng.rand()
        rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        x, y, w, h = coco_mask.toBbox(rle).tolist()
        right = bool(rng.rand() < 0.5)
        box = (x, y, x + w, y + h) if right else (x, y, x + w + 1, y + h)
        masks.append((str(number), True, box, rle["counts"], int(height), int(width)))
        if not mask.any():
            expected.append(("mask-empty", str(number)))
        elif not right:
            expected.append(("query-box", str(number)))
    findings = Findings()
    check_compressed(masks, findings)
    assert sorted(issue[:2] for issue in findings.issues) == sorted(expected)


def test_issues_are_grouped_and_verbose_shows_all(tiny):
    _, annotations = tiny.create()
    for path in list(annotations)[:5]:
        if path != QUERY:
            tiny.path(path).unlink()
    done, _ = verify(tiny, annotations)
    assert done.stdout.count("error path-missing") == 1
    assert done.stdout.count("  OWID/") == 3
    tiny.create()
    done = run_here("verify_dataset.py", "--ann-file", tiny.path("check.pt"), "--base-path", tiny.root, "--verbose")
    assert done.stdout.count("  OWID/") == 4
    assert len(json.loads(tiny.path("check_verification.json").read_text())["issues"]) == 4


def test_paths_are_looked_for_in_the_current_folder_without_a_base_path(tiny):
    tiny.create()
    done = run_script("verify_dataset.py", cwd=str(tiny.root))
    assert done.returncode == 0, done.stdout
    done = run_script("verify_dataset.py", "--ann-file", tiny.path("anns.pt"), cwd="/")
    assert done.returncode == 1
    assert "--base-path" in done.stdout


def test_the_preview_shows_query_gallery_and_zoom(voxdet, sample_file, tmp_path):
    root, _ = voxdet
    preview = tmp_path / "preview.png"
    args = ["--ann-file", sample_file, "--base-path", root, "--preview", preview, "--preview-count", "2"]
    assert run_here("verify_dataset.py", *args).returncode == 0
    first = preview.read_bytes()
    pixels = np.asarray(Image.open(str(preview)))
    for colour in ((255, 0, 255), (0, 255, 255), (64, 255, 64)):  # boxes and masks of queries, boxes of gallery images
        assert (pixels == colour).all(axis=2).sum() > 400
    assert run_here("verify_dataset.py", *args).returncode == 0
    assert preview.read_bytes() == first


def test_what_is_damaged_is_left_out_of_the_preview(tiny):
    _, annotations = tiny.create()
    for path, entry in annotations.items():
        if entry["is_query"] and path != REAL_QUERY:
            entry["mask"] = {"size": [48, 64], "counts": "oO0"}
    preview = tiny.path("preview.png")
    assert verify(tiny, annotations, "--preview", preview)[0].returncode == 1
    assert preview.exists()
    preview.unlink()
    annotations[REAL_QUERY]["mask"] = None
    done, _ = verify(tiny, annotations, "--preview", preview)
    assert done.returncode == 1
    assert "nothing to preview" in done.stdout
    assert not preview.exists()


# --------------------------------------------------------------------------------------------------- files of strangers


@pytest.mark.parametrize("name", hostile_pickles("x"))
def test_nothing_in_a_file_is_run(tmp_path, name):
    marker, file = tmp_path / "marker", tmp_path / "anns.pt"
    data = hostile_pickles(marker)[name]
    if data is None:
        torch.save({"a": torch.zeros(3)}, str(file))
    else:
        zip_pickle(file, data)
    done = run_here("verify_dataset.py", "--ann-file", file)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert str(file) in done.stderr
    assert done.stdout == ""
    assert not marker.exists()


def test_other_files_are_no_annotation_files(tmp_path):
    file = tmp_path / "anns.pt"
    good = pickle.dumps({"a": {}}, 2)

    def check():
        done = run_here("verify_dataset.py", "--ann-file", file)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1

    check()  # there is none
    for content in (b"", b"text", good, pickle.dumps(Call(os.system, f"touch {tmp_path}/marker"), 2)):
        file.write_bytes(content)
        check()
    torch.save({"a": {}}, str(file), _use_new_zipfile_serialization=False)
    check()
    zip_pickle(file, good, good)  # several pickles
    check()
    with zipfile.ZipFile(str(file), "w") as archive:  # a path that climbs out
        archive.writestr("../data.pkl", good)
    check()
    with zipfile.ZipFile(str(file), "w", zipfile.ZIP_DEFLATED) as archive:  # a bomb
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"]" * 10_000_000 + b".")
    check()
    file.unlink()
    os.mkfifo(str(file))
    check()
    assert not (tmp_path / "marker").exists()


def test_a_file_of_create_dataset_loads_as_torch_loads_it(sample_file):
    from safe_loading import load_annotations

    assert load_annotations(sample_file) == load_plainly(sample_file)


def test_bad_arguments_and_outputs_exit_with_2(tiny):
    tiny.create()
    for args in (["--report", tiny.root], ["--preview", "/nowhere/x.png"], ["--base-path", "/nowhere"]):
        assert run_here("verify_dataset.py", "--ann-file", tiny.path("anns.pt"), *args).returncode == 2
    assert run_here("verify_dataset.py", "--sample-masks", "-1").returncode == 2


def test_a_sample_of_masks_can_be_checked(tiny):
    _, annotations = tiny.create()
    annotations[QUERY]["mask"] = other_mask(box=(1, 1, 5, 5))
    done, report = verify(tiny, annotations, "--sample-masks", 1000)
    assert len(report["issues"]) == 1
    assert "1,000 masks checked at most" in done.stdout
