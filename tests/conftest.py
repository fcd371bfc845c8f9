"""What the tests share: the command line, the sample, and tiny trees to damage."""

import contextlib
import copy
import functools
import gc
import io
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples"), str(ROOT / "tests")]

import make_sample  # noqa: E402

SCRIPTS = [
    "create_dataset.py",
    "create_instre_subsets.py",
    "verify_dataset.py",
    "evaluate_retrieval.py",
    "convert_annotations.py",
]


def pytest_collection_finish():
    """Let the collector of cycles leave alone what is there by now, most of it torch's: each look takes 0.1 s."""
    gc.collect()
    gc.freeze()


def run_script(script, *args, cwd=None, timeout=300):
    """Run a script of the project as a user would, in a process of its own. Returns it, with text output."""
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    done = subprocess.run(command, cwd=cwd, timeout=timeout, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@functools.lru_cache(maxsize=None)
def code_of(path):
    """The code of a script; to compile it takes longer than many a run."""
    return compile(Path(path).read_bytes(), path, "exec")


def run_as_main(script, *args):
    """What `python SCRIPT ARGS` does, in this process, as runpy.run_path() has it, but for compiling again and again.

    Like that, it leaves sys.argv and sys.modules as they were.
    """
    path, argv, main = str(ROOT / script), sys.argv, sys.modules["__main__"]
    code, module = code_of(path), types.ModuleType("__main__")
    module.__file__ = path
    try:
        sys.argv, sys.modules["__main__"] = [path, *map(str, args)], module
        exec(code, vars(module))
    finally:
        sys.argv, sys.modules["__main__"] = argv, main
        gc.unfreeze()  # what a script froze before its end, which is not the end of this process


def run_here(script, *args):
    """Like `run_script`, in this process, which has torch already: a hundred times faster. No workers, though."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    terminate, status = signal.getsignal(signal.SIGTERM), 0
    try:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            run_as_main(script, *args)
    except SystemExit as end:
        status = end.code or 0
        if isinstance(status, str):  # a message, as Python has it
            print(status, file=streams[1])
            status = 1
    finally:
        signal.signal(signal.SIGTERM, terminate)
    texts = [stream.buffer.getvalue().decode("utf-8") for stream in streams]
    return subprocess.CompletedProcess([script, *args], status, *texts)


def load_plainly(path):
    """Load an annotation file as any researcher would; torch's safe mode is spelled out for torch before 2.6.

    That of torch 1 knows no floats, which boxes may be.
    """
    return torch.load(str(path), weights_only=not torch.__version__.startswith("1."))


@pytest.fixture(scope="session")
def voxdet(tmp_path_factory):
    """(root, truth) of the sample's VoxDet tree; not to be changed."""
    root = tmp_path_factory.mktemp("sample") / "VoxDet"
    return root, make_sample.make_voxdet(str(root))


@pytest.fixture(scope="session")
def instre(tmp_path_factory):
    """(root, truth) of the sample's INSTRE tree; not to be changed."""
    root = tmp_path_factory.mktemp("sample") / "INSTRE"
    return root, make_sample.make_instre(str(root))


@pytest.fixture(scope="session")
def sample_file(voxdet, tmp_path_factory):
    """The annotation file made from the sample, with paths relative to its root."""
    path = tmp_path_factory.mktemp("annotations") / "anns.pt"
    args = ("--voxdet-root", voxdet[0], "--output-file", path, "--relative-paths", "--workers", 1)
    done = run_here("create_dataset.py", *args)
    assert done.returncode == 0, done.stderr
    return path


torch.set_num_threads(1)  # a fork would wait for the threads of OpenMP, which it does not have


@functools.lru_cache(maxsize=None)
def plain_photograph(ending):
    """The bytes of an image of one colour, 64 x 48 pixels."""
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 150, 90)).save(stream, format={".jpg": "JPEG", ".png": "PNG"}[ending], quality=95)
    return stream.getvalue()


class Tiny:
    """A VoxDet tree of two instances, 64 x 48 pixels, small enough to be made anew and damaged in each test."""

    def __init__(self, root):
        self.root = root
        self.mask = np.zeros((48, 64), dtype=np.uint8)
        self.mask[10:30, 20:50] = 255
        for instance in (3, 20):
            for frame in range(2):
                self.save_image(f"OWID/P1/{instance}/rgb/{frame:06d}.jpg")
                self.save_image(f"OWID/P1/{instance}/mask/{frame:06d}.jpg", self.mask)
            self.save_image(f"RoboTools/test_video/obj_{instance:06d}/rgb/000000.png")
            self.save_image(f"RoboTools/test_video/obj_{instance:06d}/mask/000000.png", self.mask)
        for name in ("000000", "000001"):
            self.save_image(f"OWID/P2/images/{name}.jpg")
        self.save_image("RoboTools/test/1/rgb/000000.png")
        rle = {"counts": [48 * 20 + 10, 20, 48 * 44 - 30], "size": [48, 64]}
        annotation = {"id": 0, "image_id": 0, "bbox": [20, 10, 1, 20], "segmentation": rle, "num_ins": 4}
        self.train = {
            "images": [{"id": 0, "file_name": "images/000000.jpg", "width": 64, "height": 48}],
            "annotations": [{**annotation, "category_id": 3}],
        }
        self.val = {
            "images": [{"id": 0, "file_name": "images/000001.jpg", "width": 64, "height": 48}],
            "annotations": [{**copy.deepcopy(annotation), "category_id": 20}],
        }
        self.test = {
            "images": [{"id": number, "file_name": "1/rgb/000000.png", "width": 64, "height": 48} for number in (1, 2)],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]},
                {"id": 2, "image_id": 2, "category_id": 20, "bbox": [5, 6, 7, 8]},
            ],
        }
        self.write_json()

    def path(self, name):
        return self.root / name

    def save_image(self, name, pixels=None, mode=None):
        path = self.path(name)
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
        if pixels is None and mode is None and path.suffix in (".jpg", ".png"):
            path.write_bytes(plain_photograph(path.suffix))
            return
        if pixels is None:
            image = Image.new("RGB", (64, 48), (200, 150, 90))
        else:
            image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        (image.convert(mode) if mode else image).save(str(path), quality=95)

    def write_json(self):
        for name, coco in (
            ("OWID/P2/train_annotations.json", self.train),
            ("OWID/P2/val_annotations.json", self.val),
            ("RoboTools/test/scene_gt_coco_all.json", self.test),
        ):
            self.path(name).write_text(json.dumps(coco))

    def create(self, *args, output="anns.pt"):
        """Run create_dataset.py on the tree: (process, annotations or None), with paths relative to the root."""
        path = self.root / output
        done = run_here(
            "create_dataset.py",
            *("--voxdet-root", self.root, "--output-file", path, "--relative-paths", "--workers", "1"),
            *args,
        )
        return done, load_plainly(path) if path.is_file() else None

    def annotations(self, *args):
        """Run create_dataset.py on the tree, of which it may skip nothing. Returns the annotations."""
        done, annotations = self.create("--strict", *args)
        assert done.returncode == 0, done.stdout + done.stderr
        return annotations


@pytest.fixture
def tiny(tmp_path):
    return Tiny(tmp_path / "tiny")


@pytest.fixture
def pictures(tmp_path):
    """A folder of photographs, 64 x 48: q0.png .. q3.png, g0.png .. g3.png."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in (f"{kind}{number}.png" for kind in "qg" for number in range(4)):
        (folder / name).write_bytes(plain_photograph(".png"))
    return folder


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="there is no /proc here")
