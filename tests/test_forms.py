"""Annotation files in the forms that people have, built here by hand: all scripts read them, and verify names them."""

import collections
import json
import pickle
import random

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from conftest import load_plainly, refused, run_here
from PIL import Image

EMPTY_QUERY = "OWID/P1/10/rgb/000001.jpg"  # the sample has it: a render that shows nothing


# ----------------------------------------------------------------------------------------------------- by hand, by form


def runs(flat):
    """Run lengths, the first one background, as COCO has them."""
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    return [0, *lengths] if flat[0] else lengths


def authors_mask(mask):
    """Row-major, without the leading 0 of a mask that begins in the foreground: reads inverted then."""
    counts = runs(np.asarray(mask, dtype=bool).ravel())
    return {"counts": counts[1:] if counts[0] == 0 else counts, "size": mask.shape, "transpose": False}


def coco_list(mask):
    return {"counts": runs(np.asarray(mask, dtype=bool).ravel(order="F")), "size": list(mask.shape)}


def box_of(mask, inclusive=False):
    ys, xs = np.nonzero(mask)
    behind = 0 if inclusive else 1
    return int(xs.min()), int(ys.min()), int(xs.max()) + behind, int(ys.max()) + behind


def corners(box_xywh, number=int):
    x, y, w, h = box_xywh
    return tuple(map(number, (x, y, x + w, y + h)))


def authors_file(truth, with_empty_query=True):
    """What the authors' script wrote of the sample: gallery first, NumPy values, in a defaultdict."""
    entries = collections.defaultdict(dict)
    for path in sorted(truth, reverse=True):
        name, shown = path.split("/")[0], truth[path]
        if "objects" in shown:
            objects = shown["objects"]
            masks = [
                mask if isinstance(mask, list) else coco_list(mask) for _, _, mask, _ in objects if mask is not None
            ]
            entries[path] = {
                "bbox": [corners(box, np.int64) for _, box, _, _ in objects],
                "mask": masks,
                "is_query": False,
                "ins": [np.int64(instance) for instance, *_ in objects],
                "set": name,
                "num_ins": [number for *_, number in objects] if name == "OWID" else [],
            }
    for path, shown in truth.items():
        if "mask" in shown:
            box = tuple(map(np.int64, box_of(shown["mask"], inclusive=True)))
            common = {"is_query": True, "ins": shown["ins"], "set": path.split("/")[0]}
            entries[path] = {"bbox": box, "mask": authors_mask(shown["mask"]), **common}
    if with_empty_query:
        empty = {"counts": [640 * 480], "size": (480, 640), "transpose": False}
        common = {"is_query": True, "ins": 10, "set": "OWID"}
        entries[EMPTY_QUERY] = {"bbox": (0, 0, 639, 479), "mask": empty, **common}
    return entries


def verify(file, base, *args):
    """Verify a file: (process, report)."""
    report = file.parent / f"{file.name}.json"
    done = run_here("verify_dataset.py", "--ann-file", file, "--base-path", base, "--report", report, *args)
    return done, json.loads(report.read_text()) if report.exists() else None


def counts_of(report):
    return {check: record["count"] for check, record in report["checks"].items() if record["count"]}


def score(file, base, rankings, *args):
    """Score rankings on a file: (process, its report)."""
    source, report = file.parent / "rankings.json", file.parent / "scores.json"
    source.write_text(json.dumps(rankings))
    common = ("--ann-file", file, "--base-path", base, "--rankings", source, "--report", report)
    done = run_here("evaluate_retrieval.py", *common, *args)
    return done, json.loads(report.read_text()) if report.exists() else None


def shuffled_rankings(queries, gallery):
    """A random order of the gallery for each query, the same whatever the order of the file."""
    rankings = {}
    for query in queries:
        order = sorted(gallery)
        random.Random(query).shuffle(order)
        rankings[query] = order
    return rankings


def average_precision(ranking, relevant):
    found, precisions = 0, []
    for rank, path in enumerate(ranking, start=1):
        if path in relevant:
            found += 1
            precisions.append(found / rank)
    return sum(precisions) / len(relevant)


@pytest.fixture
def pictures(tmp_path):
    """A folder of photographs, 64 x 48: q0.png .. q3.png, g0.png .. g3.png."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in (f"{kind}{number}.png" for kind in "qg" for number in range(4)):
        Image.new("RGB", (64, 48), (200, 150, 90)).save(str(folder / name))
    return folder


def save(folder, entries, name="anns.pt"):
    file = folder / name
    torch.save(entries, str(file))
    return file


def rectangle(x1, y1, x2, y2, height=48, width=64):
    mask = np.zeros((height, width), dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


def compressed(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


# ------------------------------------------------------------------------------------------------ the authors' own form


@pytest.mark.parametrize("with_empty_query", [True, False])
def test_the_authors_file_passes_with_warnings_that_count_what_is_odd(voxdet, tmp_path, with_empty_query):
    root, truth = voxdet
    file = save(tmp_path, authors_file(truth, with_empty_query))
    done, report = verify(file, root)
    assert done.returncode == 0, done.stdout
    queries = [shown for shown in truth.values() if "mask" in shown]
    expected = {
        "mask-row-major": len(queries) + with_empty_query,
        "query-box-inclusive": len(queries) + with_empty_query,
        "mask-list": sum(path.startswith("OWID/P2") for path in truth),
        "mask-polygons": 1,
        "form-num-ins": sum(path.startswith("RoboTools/test/") for path in truth),
    }
    if with_empty_query:
        expected["query-mask-empty"] = 1
    assert counts_of(report) == expected
    assert report["statistics"]["OWID"]["queries"] == 30 + with_empty_query
    assert verify(file, root, "--strict")[0].returncode == 1


def test_the_authors_file_scores_as_ours_on_the_same_images(voxdet, sample_file, tmp_path):
    """Theirs names no splits, by which a train query of OWID leaves out val images: so ours is to name none here."""
    root, truth = voxdet
    gallery = [path for path, shown in truth.items() if "objects" in shown]
    rankings = shuffled_rankings([path for path, shown in truth.items() if "mask" in shown], gallery)
    theirs, theirs_scores = score(save(tmp_path, authors_file(truth, False)), root, rankings)
    without_splits = load_plainly(sample_file)
    for entry in without_splits.values():
        del entry["split"]
    ours, ours_scores = score(save(tmp_path, without_splits, "ours.pt"), root, rankings)
    assert (theirs.returncode, ours.returncode) == (0, 0), theirs.stderr
    precisions = []
    for path, ranking in rankings.items():
        name = path.split("/")[0]
        relevant = {
            p for p in gallery if p.startswith(name) and truth[path]["ins"] in [o[0] for o in truth[p]["objects"]]
        }
        if relevant:
            precisions.append(average_precision([p for p in ranking if p.startswith(name)], relevant))
    assert theirs_scores["groups"]["all"]["mAP"] == pytest.approx(np.mean(precisions))
    assert ours_scores["groups"]["all"]["mAP"] == pytest.approx(np.mean(precisions))


CORNER, MIDDLE = (0, 0, 30, 20), (20, 10, 50, 30)


@pytest.mark.parametrize("make", [authors_mask, coco_list])
@pytest.mark.parametrize("box", [CORNER, MIDDLE, (0, 0, 64, 48)])
@pytest.mark.parametrize("inclusive", [0, 1])
def test_listed_masks_of_queries_are_read_in_whatever_way_their_box_confirms(pictures, make, box, inclusive):
    mask = rectangle(*box)
    entry = {"bbox": (box[0], box[1], box[2] - inclusive, box[3] - inclusive), "mask": make(mask)}
    query = {**entry, "is_query": True, "ins": 1, "set": "OWID"}
    gallery = {"bbox": [box], "mask": [compressed(mask)], "is_query": False, "ins": [1], "set": "OWID"}
    done, report = verify(save(pictures, {"q0.png": query, "g0.png": gallery}), pictures)
    assert done.returncode == 0, done.stdout
    expected = {"mask-row-major" if make is authors_mask else "mask-list"}
    expected |= {"query-box-inclusive"} if inclusive else set()
    if make is authors_mask and box == CORNER:
        expected |= {"mask-inverted"}
    if make is authors_mask and box == (0, 0, 64, 48):
        expected |= {
            "query-mask-empty"
        }  # one run: an empty mask and a full one are the same there, and empty ones occur
    assert set(counts_of(report)) == expected


def test_a_listed_mask_that_no_reading_brings_to_its_box_stays_an_error(pictures):
    query = {"bbox": (1, 1, 9, 9), "mask": authors_mask(rectangle(*CORNER)), "is_query": True, "ins": 1, "set": "OWID"}
    gallery = {"bbox": [CORNER], "mask": [{"size": [48, 64], "counts": [48 * 64]}], "is_query": False, "ins": [1]}
    done, report = verify(save(pictures, {"q0.png": query, "g0.png": {**gallery, "set": "OWID"}}), pictures)
    assert done.returncode == 1
    assert counts_of(report) == {"mask-row-major": 1, "mask-list": 1, "query-box": 1, "mask-empty": 1}


@pytest.mark.parametrize(
    "make", [authors_mask, lambda mask: {**coco_list(mask), "counts": coco_list(mask)["counts"][1:]}]
)
def test_an_inverted_mask_of_a_gallery_image_is_read_as_its_box_says(pictures, make):
    mask = rectangle(*CORNER)
    query = {"bbox": CORNER, "mask": compressed(mask), "is_query": True, "ins": 1, "set": "OWID"}
    gallery = {"bbox": [(0, 0, 31, 21)], "mask": [make(mask)], "is_query": False, "ins": [1], "set": "OWID"}
    done, report = verify(save(pictures, {"q0.png": query, "g0.png": gallery}), pictures)
    assert done.returncode == 0, done.stdout
    assert set(counts_of(report)) - {"mask-list", "mask-row-major"} == {"mask-inverted"}


@pytest.mark.parametrize("args", [[], ["--skip-paths"]])
def test_polygons_are_masks_also_where_nothing_says_how_large_their_image_is(pictures, args):
    polygon = [20, 10, 50, 10, 50, 30, 20, 30]
    query = {"bbox": MIDDLE, "mask": compressed(rectangle(*MIDDLE)), "is_query": True, "ins": 1, "set": "OWID"}
    gallery = {"bbox": [MIDDLE], "mask": [[polygon]], "is_query": False, "ins": [1], "set": "OWID"}
    entries = {"q0.png": query, "g0.png": gallery}
    done, report = verify(save(pictures, entries), pictures, *args)
    assert (done.returncode, counts_of(report)) == (0, {"mask-polygons": 1})
    for wrong, check in (
        ([[1, 1, 9, 1, 9, 9]], "gallery-box"),
        ([[20, 10, 50]], "mask-malformed"),
        ([[20, 10, "50", 10, 50, 30]], "mask-malformed"),
        ([[1e300, 10, 50, 10, 50, 30]], "mask-malformed"),
    ):
        gallery["mask"] = [wrong]
        done, report = verify(save(pictures, entries), pictures, *args)
        assert (done.returncode, counts_of(report)) == (1, {"mask-polygons": 1, check: 1})


# ------------------------------------------------------------------------------------------------------- the basic form


def basic_file():
    """As the paper's code documents it: no set, no mask, one id and one box each, no is_query but for queries."""
    return {
        "q0.png": {"bbox": [20, 10, 50, 30], "ins": 7, "is_query": True, "obj_name": "mug"},
        "q1.png": {"bbox": None, "ins": 8, "is_query": True},
        "q2.png": {"label": 8, "is_query": True},
        "g0.png": {"bbox": [0, 0, 32, 24], "ins": 7},
        "g1.png": {"bbox": None, "ins": 8, "is_query": False},
        "g2.png": {"label": 7},
        "g3.png": {"bbox": ((1, 2, 3, 4), (5, 6, 7, 8)), "ins": 8},
    }


def test_the_basic_form_is_verified(pictures):
    done, report = verify(save(pictures, basic_file()), pictures)
    assert done.returncode == 0, done.stdout
    assert counts_of(report) == {"form-set": 7, "form-role": 3, "form-label": 2, "form-box": 2, "form-single": 4}
    figures = report["statistics"][""]
    assert (figures["queries"], figures["gallery_images"], figures["objects"], figures["instances"]) == (3, 4, 5, 2)
    sizes = [25, 100, 100, 100 * 4 / (64 * 48), 100 * 4 / (64 * 48)]  # no box is the whole image
    assert figures["object_size_mean"] == pytest.approx(np.mean(sizes))
    assert "(no set)" in done.stdout


def test_the_whole_image_is_100_percent_also_where_images_are_not_looked_for(pictures):
    entries = {"q1.png": {"ins": 8, "is_query": True}, "g1.png": {"ins": 8}}
    done, report = verify(save(pictures, entries), pictures, "--skip-paths")
    assert (done.returncode, report["statistics"][""]["object_size_mean"]) == (0, 100)


def test_the_basic_form_is_scored(pictures):
    file = save(pictures, basic_file())
    rankings = shuffled_rankings(["q0.png", "q1.png", "q2.png"], [f"g{n}.png" for n in range(4)])
    done, scores = score(file, pictures, rankings)
    assert done.returncode == 0, done.stdout
    relevant = {"q0.png": {"g0.png", "g2.png"}, "q1.png": {"g1.png", "g3.png"}, "q2.png": {"g1.png", "g3.png"}}
    expected = np.mean([average_precision(rankings[query], relevant[query]) for query in relevant])
    assert scores["groups"]["all"]["mAP"] == pytest.approx(expected)
    features = pictures / "features.pt"
    torch.save({name: torch.tensor([1.0, n]) for n, name in enumerate(basic_file())}, str(features))
    done = run_here("evaluate_retrieval.py", "--ann-file", file, "--features", features)
    assert done.returncode == 0, done.stderr


def test_a_preview_of_whole_images_can_be_drawn(pictures):
    preview = pictures / "preview.png"
    done, _ = verify(save(pictures, basic_file()), pictures, "--preview", preview)
    assert done.returncode == 0, done.stderr
    assert preview.exists()


def test_older_pickles_of_the_basic_form_are_read_as_well(pictures):
    """Written by pickle alone, in protocol 2 with NumPy values, in the archive that torch.load takes."""
    import zipfile

    entries = {p: {**e, "ins": np.int64(e.get("ins", e.get("label")))} for p, e in basic_file().items()}
    for entry in entries.values():
        entry.pop("label", None)
    file = pictures / "anns.pt"
    with zipfile.ZipFile(str(file), "w") as archive:
        archive.writestr("anns/data.pkl", pickle.dumps(entries, protocol=2))
        archive.writestr("anns/byteorder", "little")
        archive.writestr("anns/version", "3\n")
    done, report = verify(file, pictures)
    assert done.returncode == 0, done.stderr
    assert report["statistics"][""]["instances"] == 2


@pytest.mark.parametrize(
    "change, check",
    [
        ({"bbox": None}, "box-malformed"),
        ({"bbox": ...}, "field-missing"),
        ({"is_query": ...}, "field-missing"),
        ({"mask": ...}, "mask-missing"),
        ({"mask": None}, "mask-missing"),
        ({"ins": []}, "id-type"),
        ({"set": 5}, "field-type"),
    ],
)
def test_the_sets_that_are_known_keep_their_rules(pictures, change, check):
    entry = {"bbox": MIDDLE, "mask": compressed(rectangle(*MIDDLE)), "is_query": True, "ins": 1, "set": "OWID"}
    for field, value in change.items():
        if value is ...:
            del entry[field]
        else:
            entry[field] = value
    gallery = {"bbox": [MIDDLE], "mask": [compressed(rectangle(*MIDDLE))], "is_query": False, "ins": [1], "set": "OWID"}
    done, report = verify(save(pictures, {"q0.png": entry, "g0.png": gallery}), pictures)
    assert (done.returncode, counts_of(report)) == (1, {check: 1})


# ---------------------------------------------------------------------------------------------------- sets of any name


def any_set(name, query_masks=(True, True), gallery_masks=(True, True)):
    """Two queries and two gallery images of a set, with masks or without."""
    entries = {}
    for number, (query, gallery) in enumerate(zip(query_masks, gallery_masks)):
        mask = compressed(rectangle(*MIDDLE))
        entries[f"q{number}.png"] = {"bbox": MIDDLE, "is_query": True, "ins": 1, "set": name}
        entries[f"g{number}.png"] = {"bbox": [MIDDLE], "is_query": False, "ins": [1], "set": name, "mask": []}
        if query:
            entries[f"q{number}.png"]["mask"] = mask
        if gallery:
            entries[f"g{number}.png"]["mask"] = [mask]
    return entries


@pytest.mark.parametrize("query_masks", [(True, True), (False, False), (True, False)])
@pytest.mark.parametrize("gallery_masks", [(True, True), (False, False), (False, True)])
def test_any_name_is_a_set_and_has_masks_if_its_entries_show_them(pictures, query_masks, gallery_masks):
    done, report = verify(save(pictures, any_set("my photographs", query_masks, gallery_masks)), pictures)
    assert done.returncode == 0, done.stdout
    mixed = len({*query_masks}) - 1 + len({*gallery_masks}) - 1
    assert counts_of(report) == ({"mask-mixed": mixed} if mixed else {})
    assert report["statistics"]["my photographs"]["queries"] == 2
    assert score(pictures / "anns.pt", pictures, {"q0.png": ["g0.png"], "q1.png": ["g1.png"]})[0].returncode == 0


def test_masks_of_a_set_of_any_name_are_one_per_object(pictures):
    entries = any_set("mine")
    entries["g0.png"].update(bbox=[MIDDLE, CORNER], ins=[1, 1])
    done, report = verify(save(pictures, entries), pictures)
    assert (done.returncode, counts_of(report)) == (1, {"length-mismatch": 1})


@pytest.mark.parametrize("name, warned", [("owid", True), ("instre-xs", True), ("OWID2", False), ("", False)])
def test_a_name_that_differs_from_a_known_one_in_case_only_is_a_warning(pictures, name, warned):
    done, report = verify(save(pictures, any_set(name)), pictures)
    assert (done.returncode, counts_of(report)) == (0, {"set-case": 1} if warned else {})


def test_a_set_of_any_name_can_be_chosen(pictures):
    file = save(pictures, any_set("mine"))
    rankings = {"q0.png": ["g0.png", "g1.png"], "q1.png": ["g0.png", "g1.png"]}
    assert score(file, pictures, rankings, "--set", "mine")[0].returncode == 0
    assert score(file, pictures, rankings, "--set", "Mine")[0].returncode == 0
    done, _ = score(file, pictures, rankings, "--set", "theirs")
    assert done.returncode == 2
    assert "mine" in done.stderr


def test_names_of_sets_are_strangers_text_and_there_may_be_thousands(pictures):
    entries = {
        f"{n}.png": {"bbox": (1, 2, 3, 4), "is_query": True, "ins": 1, "set": f"\x1b[31m{n}"} for n in range(3000)
    }
    entries["long.png"] = {"bbox": (1, 2, 3, 4), "is_query": True, "ins": 1, "set": "x" * 100_000}
    done, report = verify(save(pictures, entries), pictures, "--skip-paths")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 1000
    assert len(report["statistics"]) == 3001
    assert "more sets" in done.stdout


# ------------------------------------------------------------------------------------- queries that show two instances


def test_what_shows_any_instance_of_a_query_is_relevant(pictures):
    common = {"set": "INSTRE"}
    entries = {
        "q0.png": {"bbox": MIDDLE, "is_query": True, "ins": [1, 2], **common},
        "q1.png": {"bbox": MIDDLE, "is_query": True, "ins": [3], **common},
        "g0.png": {"bbox": [MIDDLE], "is_query": False, "ins": [1], "mask": [], **common},
        "g1.png": {"bbox": [None], "is_query": False, "ins": [2], "mask": [], **common},
        "g2.png": {"bbox": [MIDDLE, CORNER], "is_query": False, "ins": [1, 2], "mask": [], **common},
        "g3.png": {"bbox": [MIDDLE], "is_query": False, "ins": [3], "mask": [], **common},
    }
    file = save(pictures, entries)
    done, report = verify(file, pictures)
    assert (done.returncode, counts_of(report)) == (0, {"form-single": 1})  # a list of one id
    assert report["statistics"]["INSTRE"]["relevant_per_query_mean"] == 2  # 3 and 1
    assert report["statistics"]["INSTRE"]["instances"] == 3
    rankings = {"q0.png": ["g3.png", "g1.png", "g0.png", "g2.png"], "q1.png": ["g3.png"]}
    done, scores = score(file, pictures, rankings)
    assert done.returncode == 0, done.stdout
    assert scores["groups"]["all"]["mAP"] == pytest.approx(((1 / 2 + 2 / 3 + 3 / 4) / 3 + 1) / 2)
    del entries["g0.png"], entries["g1.png"], entries["g2.png"]
    assert counts_of(verify(save(pictures, entries), pictures)[1])["query-unanswered"] == 1


# ------------------------------------------------------------------------------------------------------ whatever comes

RUBBISH = [
    None,
    ...,
    0,
    1,
    -1,
    2.5,
    True,
    "",
    "x",
    [],
    [[]],
    [1],
    [1, 2],
    [None],
    {},
    (1, 2, 3, 4),
    [(1, 2, 3, 4)],
    b"x",
]
RUBBISH += [
    float("nan"),
    2**70,
    [[1, 2, 3, 4, 5, 6]],
    {"size": (48, 64), "counts": [3072]},
    {"counts": [1], "size": [1]},
]
RUBBISH += [{"size": [48, 64], "counts": [0, 10, 3062], "transpose": False}, [{"size": [48, 64], "counts": b"\xff"}]]
FIELDS = ["bbox", "mask", "is_query", "ins", "set", "num_ins", "label", "split", "obj_name"]


@pytest.mark.parametrize("seed", range(40))
def test_any_value_in_any_field_is_read_or_refused_and_what_is_converted_passes(pictures, seed):
    rng = random.Random(seed)
    entries = {**any_set(rng.choice(["OWID", "RoboTools", "mine"])), "q2.png": basic_file()["q2.png"]}
    entries.update({"g2.png": basic_file()["g2.png"], "g3.png": basic_file()["g3.png"]})
    for entry in entries.values():
        for field in rng.sample(FIELDS, rng.randrange(3)):
            value = rng.choice(RUBBISH)
            if value is ...:
                entry.pop(field, None)
            else:
                entry[field] = value
    file, output = save(pictures, entries), pictures / "converted.pt"
    done, report = verify(file, pictures)
    assert done.returncode == bool(report["errors"])
    common = ("--ann-file", file, "--output-file", output, "--base-path", pictures)
    done = run_here("convert_annotations.py", *common, "--coco", pictures / "coco.json")
    assert done.returncode in (0, 2)
    if done.returncode == 0:
        done, report = verify(output, pictures)
        assert done.returncode == 0, done.stdout
        assert not [
            check for check in counts_of(report) if check.startswith(("form-", "mask-list", "mask-row", "mask-p"))
        ]
        json.loads((pictures / "coco.json").read_text())


# ---------------------------------------------------------------------------------------------------------- detections


def detected(*boxes, scores=None, masks=True):
    record = {"bboxes": [list(box) for box in boxes], "scores": scores or [0.9] * len(boxes)}
    if masks:
        record["masks_rle"] = [{"counts": [3072], "size": [48, 64]}] * len(boxes)
    return record


def annotated():
    common = {"set": "RoboTools"}
    mask = compressed(rectangle(*MIDDLE))
    return {
        "q0.png": {"bbox": MIDDLE, "mask": mask, "is_query": True, "ins": 1, **common},
        "g0.png": {"bbox": [(0, 0, 10, 10), (20, 20, 40, 40)], "mask": [], "is_query": False, "ins": [1, 1], **common},
        "g1.png": {"bbox": [(0, 0, 10, 10)], "mask": [], "is_query": False, "ins": [1], **common},
    }


FOUND = {
    # IoU 1; 0.5 exactly, which is enough; 0.2 of a score below the limit.
    "g0.png": detected((0, 0, 10, 10), (20, 20, 40, 30), (20, 20, 40, 40), scores=[0.9, 0.2, 0.1]),
    # IoU 49 / 100.
    "g1.png": detected((0, 0, 7, 7), (30, 30, 40, 40), masks=False),
    "q0.png": detected((1, 1, 2, 2)),
    "elsewhere.png": detected((1, 1, 2, 2)),
}


def as_tensors(found):
    return {
        path: {**r, "bboxes": torch.tensor(r["bboxes"]), "scores": torch.tensor(r["scores"])}
        for path, r in found.items()
    }


def as_results(found):
    return [
        {"image_id": path, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for path, record in found.items()
        for (x1, y1, x2, y2), score in zip(record["bboxes"], record["scores"])
    ]


def as_coco(found):
    numbers = {path: number for number, path in enumerate(found)}
    images = [{"id": number, "file_name": path} for path, number in numbers.items()]
    return {"images": images, "annotations": [{**r, "image_id": numbers[r["image_id"]]} for r in as_results(found)]}


@pytest.mark.parametrize("form", ["lists", "tensors", "results", "coco"])
@pytest.mark.parametrize(
    "args, counted, covered", [([], 4, 2), (["--min-score", "0.1"], 5, 2), (["--min-score", "0.5"], 3, 1)]
)
def test_detections_are_counted_beside_the_published_figure(pictures, form, args, counted, covered):
    file = save(pictures, annotated())
    if form in ("lists", "tensors"):
        source = save(pictures, FOUND if form == "lists" else as_tensors(FOUND), "captions.pt")
    else:
        source = pictures / "results.json"
        source.write_text(json.dumps(as_results(FOUND) if form == "results" else as_coco(FOUND)))
    done, report = verify(file, pictures, "--detections", source, *args)
    assert done.returncode == 0, done.stderr
    figures = report["statistics"]["RoboTools"]
    assert figures["detected_per_image_mean"] == pytest.approx(counted / 2)
    assert figures["boxes_covered"] == covered
    assert figures["boxes_covered_share"] == pytest.approx(100 * covered / 3)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("detected objects per image")]
    assert line.split()[-2:] == [f"{counted / 2:.1f}", "14.7"]
    assert "1 x path that is no image of the annotation file: elsewhere.png" in done.stdout
    assert verify(file, pictures, "--detections", source, "--strict")[0].returncode == 1


def test_what_cannot_be_used_of_the_detections_is_counted(pictures):
    found = {
        "g0.png": {"bboxes": [[0, 0, 10, 10], [5, 5, 5, 5], [1, 2], [1, 2, 3, 4]], "scores": [0.9, 0.9, 0.9, "x"]},
        "g1.png": {"bboxes": [[0, 0, 10, 10]], "scores": []},
    }
    done, report = verify(save(pictures, annotated()), pictures, "--detections", save(pictures, found, "captions.pt"))
    assert done.returncode == 0, done.stderr
    assert report["statistics"]["RoboTools"]["detected_per_image_mean"] == 0.5
    for line in (
        "2 x detection whose box is no box of positive size: g0.png, g0.png",
        "1 x detection whose score is no number: g0.png",
        "1 x image whose bboxes, scores and masks_rle differ in length: g1.png",
        "1 x gallery image that is not in the detections, counted as one without any: g1.png",
    ):
        assert line in done.stdout


def test_detections_without_scores_all_count(pictures):
    found = {path: {"bboxes": record["bboxes"]} for path, record in FOUND.items()}
    found["g1.png"]["scores"] = [0.9, 0.1]
    source = save(pictures, found, "captions.pt")
    done, report = verify(save(pictures, annotated()), pictures, "--detections", source)
    assert report["statistics"]["RoboTools"]["detected_per_image_mean"] == (3 + 1) / 2
    assert "image whose detections have no scores, so that all of them count" in done.stdout
    assert report["detections"]["skipped"] == {"path that is no image of the annotation file": ["elsewhere.png"]}
    done, report = verify(save(pictures, annotated()), pictures, "--detections", source, "--strict")
    assert (done.returncode, report["passed"]) == (1, False)
    assert done.stdout.splitlines()[-1].endswith("in 3 entries, odd detections")


def test_detections_that_cannot_be_used_are_said_to_be_why_there_are_none(pictures):
    source = save(pictures, {"g0.png": {"bboxes": [[0, 0, 9, 9]], "scores": []}}, "captions.pt")
    done, _ = verify(save(pictures, annotated()), pictures, "--detections", source)
    refused(done, "found image whose bboxes, scores and masks_rle differ in length")


@pytest.mark.parametrize("number", [1, 2])
def test_detections_in_shares_of_the_image_are_refused(pictures, number):
    """Of three boxes, one may be of a speck in the corner; two are not."""
    boxes = [(0, 0.1, 0.4, 0.5)] * number + [(0, 0, 10, 10)] * (3 - number)
    found = save(pictures, {"g0.png": detected(*boxes)}, "captions.pt")
    done, _ = verify(save(pictures, annotated()), pictures, "--detections", found)
    assert done.returncode == (0 if number == 1 else 2)
    assert ("2 of the 3 boxes of" in done.stderr and "shares of the image" in done.stderr) == (number == 2)


@pytest.mark.parametrize("content", [[], {}, {"other.png": detected((1, 1, 2, 2))}, {"g0.png": 5}, "text"])
def test_files_without_usable_detections_are_refused(pictures, content):
    file = save(pictures, annotated())
    sources = [save(pictures, content, "captions.pt"), pictures / "results.json", pictures / "gone.pt"]
    sources[1].write_text(json.dumps(content))
    for source in sources:
        done, _ = verify(file, pictures, "--detections", source)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
