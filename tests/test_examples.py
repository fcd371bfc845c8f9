"""The examples that need more than requirements.txt; they are skipped where it is not installed."""

import importlib.util

import numpy as np
import pytest
import torch
from conftest import ROOT, load_plainly, run_script

EXAMPLE = ROOT / "examples" / "backbone_features.py"
MODEL = ("--model", "test_vit.r160_in1k", "--batch-size", "5", "--workers", "0", "--device", "cpu")  # 0.4 M parameters


HAS_TIMM = importlib.util.find_spec("timm") is not None

needs_timm = pytest.mark.skipif(not HAS_TIMM, reason="timm is not installed")


@pytest.mark.skipif(HAS_TIMM, reason="timm is installed")
def test_without_timm_the_example_names_it(tmp_path):
    done = run_script(EXAMPLE, "anns.pt", tmp_path / "features.npz")
    assert done.returncode == 1
    assert done.stderr == "error: timm is not installed: pip install timm\n"


@needs_timm
@pytest.mark.parametrize("boxes", [None, "annotated", "detections.pt"])
def test_features_of_a_backbone_are_scored(voxdet, sample_file, tmp_path, monkeypatch, boxes):
    """With random weights: what is tested is that crops, boxes and paths go together."""
    monkeypatch.chdir(tmp_path)
    annotations = load_plainly(sample_file)
    gallery = [path for path, entry in annotations.items() if not entry["is_query"]]
    detected = {path: {"bboxes": [[0, 0, 50, 50], [9.5, 20.2, 9.7, 20.4]], "scores": [1, 0.5]} for path in gallery[:-1]}
    torch.save(detected, "detections.pt")
    options = ("--base-path", voxdet[0], *MODEL, *(("--boxes", boxes) if boxes else ()))
    done = run_script(EXAMPLE, sample_file, "features.npz", *options)
    assert done.returncode == 0, done.stderr
    assert "describing: 100%" in done.stderr
    with np.load("features.npz") as arrays:
        paths = arrays["paths"].tolist()
        assert len(arrays["features"]) == len(paths)
        assert np.isfinite(arrays["features"]).all()
        for path, entry in annotations.items():
            expected = 1 if entry["is_query"] or not boxes else len(entry["bbox"])
            if boxes == "detections.pt" and not entry["is_query"]:
                expected = len(detected.get(path, {}).get("bboxes", []))
            assert paths.count(path) == expected
        assert ("boxes" in arrays) == bool(boxes)
    done = run_script("evaluate_retrieval.py", "--ann-file", sample_file, "--features", "features.npz", "--set", "OWID")
    missing = boxes == "detections.pt" and annotations[gallery[-1]]["set"] == "OWID"
    assert done.returncode == int(missing), done.stdout
    assert ("IoU of the first hit" in done.stdout) == bool(boxes)
    if boxes == "annotated":
        assert "IoU of the first hit: 1.0000" in done.stdout or "IoU>=0.5" in done.stdout
