"""Detections (soir/detections.py), counted by verify_dataset.py beside the published figure."""

import pytest
import torch
from helpers import annotated, refused, save, verify, write_json


def detected(*boxes, scores=None, masks=True):
    record = {"bboxes": [list(box) for box in boxes], "scores": scores or [0.9] * len(boxes)}
    if masks:
        record["masks_rle"] = [{"counts": [3072], "size": [48, 64]}] * len(boxes)
    return record


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


@pytest.fixture
def file(pictures):
    return save(pictures, annotated())


def count(file, found, *args):
    """Verify a file beside detections: (process, report)."""
    return verify(file, file.parent, "--detections", save(file.parent, found, "captions.pt"), *args)


@pytest.mark.parametrize("form", ["lists", "tensors", "results", "coco"])
@pytest.mark.parametrize(
    "args, counted, covered", [([], 4, 2), (["--min-score", "0.1"], 5, 2), (["--min-score", "0.5"], 3, 1)]
)
def test_detections_are_counted_beside_the_published_figure(file, form, args, counted, covered):
    if form in ("lists", "tensors"):
        source = save(file.parent, FOUND if form == "lists" else as_tensors(FOUND), "captions.pt")
    else:
        source = write_json(file.parent, as_results(FOUND) if form == "results" else as_coco(FOUND), "results.json")
    done, report = verify(file, file.parent, "--detections", source, *args)
    assert done.returncode == 0, done.stderr
    figures = report["statistics"]["RoboTools"]
    assert figures["detected_per_image_mean"] == pytest.approx(counted / 2)
    assert figures["boxes_covered"] == covered
    assert figures["boxes_covered_share"] == pytest.approx(100 * covered / 3)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("detected objects per image")]
    assert line.split()[-2:] == [f"{counted / 2:.1f}", "14.7"]
    assert "1 x path that is no image of the annotation file: elsewhere.png" in done.stdout
    assert verify(file, file.parent, "--detections", source, "--strict")[0].returncode == 1


def test_what_cannot_be_used_of_the_detections_is_counted(file):
    found = {
        "g0.png": {"bboxes": [[0, 0, 10, 10], [5, 5, 5, 5], [1, 2], [1, 2, 3, 4]], "scores": [0.9, 0.9, 0.9, "x"]},
        "g1.png": {"bboxes": [[0, 0, 10, 10]], "scores": []},
    }
    done, report = count(file, found)
    assert done.returncode == 0, done.stderr
    assert report["statistics"]["RoboTools"]["detected_per_image_mean"] == 0.5
    for line in (
        "2 x detection whose box is no box of positive size: g0.png, g0.png",
        "1 x detection whose score is no number: g0.png",
        "1 x image whose bboxes, scores and masks_rle differ in length: g1.png",
        "1 x gallery image that is not in the detections, counted as one without any: g1.png",
    ):
        assert line in done.stdout


def test_detections_without_scores_all_count(file):
    found = {path: {"bboxes": record["bboxes"]} for path, record in FOUND.items()}
    found["g1.png"]["scores"] = [0.9, 0.1]
    done, report = count(file, found)
    assert report["statistics"]["RoboTools"]["detected_per_image_mean"] == (3 + 1) / 2
    assert "image whose detections have no scores, so that all of them count" in done.stdout
    assert report["detections"]["skipped"] == {"path that is no image of the annotation file": ["elsewhere.png"]}
    done, report = count(file, found, "--strict")
    assert (done.returncode, report["passed"]) == (1, False)
    assert done.stdout.splitlines()[-1].endswith("in 3 entries, odd detections")


def test_detections_that_cannot_be_used_are_said_to_be_why_there_are_none(file):
    done, _ = count(file, {"g0.png": {"bboxes": [[0, 0, 9, 9]], "scores": []}})
    refused(done, "found image whose bboxes, scores and masks_rle differ in length")


@pytest.mark.parametrize("number", [1, 2])
def test_detections_in_shares_of_the_image_are_refused(file, number):
    """Of three boxes, one may be of a speck in the corner; two are not."""
    boxes = [(0, 0.1, 0.4, 0.5)] * number + [(0, 0, 10, 10)] * (3 - number)
    done, _ = count(file, {"g0.png": detected(*boxes)})
    if number == 1:
        assert done.returncode == 0
    else:
        refused(done, "2 of the 3 boxes of", "shares of the image")


@pytest.mark.parametrize("content", [[], {}, {"other.png": detected((1, 1, 2, 2))}, {"g0.png": 5}, "text"])
def test_files_without_usable_detections_are_refused(file, content):
    sources = [save(file.parent, content, "captions.pt"), write_json(file.parent, content, "results.json")]
    for source in [*sources, file.parent / "gone.pt"]:
        refused(verify(file, file.parent, "--detections", source)[0])


@pytest.mark.parametrize(
    "change, is_noticed",
    [
        (lambda box: box, False),
        (lambda box: [v * 64 / 48 for v in box], True),  # in the square that a detector sees
        (lambda box: [v * 1000 / 64 for v in box], True),
        (lambda box: [*box[:2], 64.9, 48.9], False),  # rounding
        (lambda box: [*box[:2], 65.1, 40], True),
    ],
    ids=["pixels", "square", "thousand", "rounded", "a pixel"],
)
def test_detections_in_another_frame_are_noticed(file, change, is_noticed):
    found = {path: detected(*map(change, ((0, 0, 10, 10), (30, 30, 60, 47)))) for path in ("g0.png", "g1.png")}
    done, report = count(file, found)
    reasons = list(report["detections"]["noticed"])
    assert [reason for reason in reasons if "reaches out of its image" in reason and " of 4:" in reason] == (
        reasons if is_noticed else []
    )
    assert count(file, found, "--strict")[0].returncode == int(is_noticed)


@pytest.mark.parametrize("score, is_noticed", [(-3.2, True), (0.199, True), (0.2, False)])
def test_scores_of_which_none_reaches_the_limit_are_noticed(file, score, is_noticed):
    found = {path: detected((0, 0, 10, 10), (5, 5, 9, 9), scores=[score] * 2) for path in ("g0.png", "g1.png")}
    _, report = count(file, found)
    reason = "detections whose score is below 0.2, all 4: logits? see --min-score"
    assert (reason in report["detections"]["noticed"]) is is_noticed
