"""Where the scripts run: the CPUs they may use, the paths they are given, what is installed, and in what process."""

import io
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import warnings
import zlib

import pytest
import setuptools
import torch
from conftest import ROOT, SCRIPTS, load_plainly, run_here, run_script
from helpers import files_below
from PIL import Image

from soir.console import VERSION
from soir.images import image_size, read_image, whole_image_size

# ---------------------------------------------------------------------------------------------------------------- CPUs


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to a CPU")
@pytest.mark.parametrize("script", ["create_dataset.py", "create_instre_subsets.py"])
def test_workers_are_as_many_as_the_process_may_use(script):
    """One CPU, bound to it as a Slurm job is: the default of --workers is what a run without it would take."""
    code = f"""
import os, sys
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
os.cpu_count = lambda: 128
sys.path.insert(0, {str(ROOT)!r})
sys.argv = ["x"]
import {script[:-3]} as script
print(script.parse_args().workers)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    "files, cpus",
    [
        ({"/sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"/sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n"}, 16),
        ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 16),
        ({}, 16),
    ],
)
def test_the_quota_of_a_container_counts(monkeypatch, tmp_path, files, cpus):
    from soir import console

    def open_file(path):
        if path not in files:
            raise FileNotFoundError(path)
        copy = tmp_path / "copy"
        copy.write_text(files[path])
        return copy.open()

    monkeypatch.setattr(console, "open", open_file, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16), raising=False)
    assert console.usable_cpus() == cpus


# --------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    "root, prefix", [(".", "OWID/"), ("./", "OWID/"), ("..//tiny/", "../tiny/OWID/"), ("../tiny/./", "../tiny/OWID/")]
)
def test_keys_are_written_without_dots_and_double_slashes(tiny, monkeypatch, root, prefix):
    monkeypatch.chdir(str(tiny.root))
    done = run_here("create_dataset.py", "--voxdet-root", root, "--workers", 1, "--output-file", "anns.pt")
    assert done.returncode == 0, done.stderr
    keys = [key for key, entry in load_plainly("anns.pt").items() if entry["set"] == "OWID"]
    assert all(key.startswith(prefix) and "//" not in key and "/./" not in key for key in keys)
    assert all(os.path.isfile(key) for key in keys)


def test_absolute_keys_are_looked_up_as_they_stand(tiny, tmp_path):
    annotations = tmp_path / "anns.pt"
    run_here("create_dataset.py", "--voxdet-root", tiny.root, "--workers", 1, "--output-file", annotations)
    for base in (tiny.root, tmp_path, "/"):
        done = run_here("verify_dataset.py", "--ann-file", annotations, "--base-path", base, "--strict")
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("below", [True, False])
def test_a_base_path_one_level_off_gets_a_hint(tiny, below):
    tiny.create()
    wrong = tiny.root / "OWID" if below else tiny.root.parent
    done = run_here("verify_dataset.py", "--ann-file", tiny.root / "anns.pt", "--base-path", wrong)
    assert done.returncode == 1
    assert f"--base-path {tiny.root}" in done.stdout


def test_the_layout_of_voxdets_checkout_gets_the_hint_that_works(tiny):
    data = tiny.root / "data"
    (data / "BOP").mkdir(parents=True)
    (tiny.root / "OWID").rename(data / "OWID")
    (tiny.root / "RoboTools").rename(data / "BOP" / "RoboTools")
    done, _ = tiny.create()
    assert done.returncode == 2
    assert f"--voxdet-root {data}" in done.stderr
    assert tiny.create("--voxdet-root", data)[0].returncode == 0


@pytest.mark.parametrize("missing", [["OWID"], ["RoboTools"], ["OWID", "RoboTools"]])
def test_only_one_set_is_advised_to_be_left_out(tiny, missing):
    for name in missing:
        tiny.path(name).rename(tiny.path(f"{name} elsewhere"))
    for options in ([], ["--skip-owid"], ["--skip-robotools"]):
        done, _ = tiny.create(*options)
        skips = {option for option in ("--skip-owid", "--skip-robotools") if option in done.stderr}
        assert len(skips | set(options)) < 2


@pytest.mark.parametrize("folder", ["new", "new/and/newer"])
def test_the_folder_of_an_output_is_made(tiny, folder):
    done, annotations = tiny.create(output=f"{folder}/anns.pt")
    assert done.returncode == 0, done.stderr
    assert annotations
    report = tiny.root / folder / "reports" / "report.json"
    done = run_here(
        "verify_dataset.py", "--ann-file", tiny.root / folder / "anns.pt", "--skip-paths", "--report", report
    )
    assert done.returncode == 0
    assert report.is_file()


# ------------------------------------------------------------------------------------------- what is installed, or not


@pytest.mark.parametrize(
    "script, module, package",
    [("create_dataset.py", "pycocotools", "pycocotools"), ("verify_dataset.py", "pycocotools", "pycocotools")]
    + [(script, *names) for script in SCRIPTS for names in (("PIL", "pillow"), ("numpy", "numpy"))],
)
def test_a_requirement_that_is_missing_is_named_with_what_to_do(tmp_path, script, module, package):
    code = f"""
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
sys.modules[{module!r}] = None
sys.argv = [{script!r}]
runpy.run_path({str(ROOT / script)!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=str(tmp_path), stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: {package} is not installed: pip install -r requirements.txt\n",
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_interrupt_during_the_imports_ends_in_a_line(tmp_path, script):
    """A module named like one that the script imports, in its place, waits for the interrupt."""
    (tmp_path / "numpy.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "importing\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "interrupted\n")


def test_scripts_say_their_version():
    for script in SCRIPTS:
        done = run_script(script, "--version")
        assert done.returncode == 0
        assert done.stdout.startswith("VoxDet-SoIR tools 1.")


def test_annotations_load_from_any_folder(tiny, tmp_path):
    """What a user imports is in soir_common.py."""
    Image.new("RGB", (8, 8)).save(str(tmp_path / "a.png"))
    tiny.create()
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from soir_common import load_annotations, save_annotations\n"
    )
    code += f"save_annotations(load_annotations({str(tiny.root / 'anns.pt')!r}), 'copy.pt')"
    subprocess.run([sys.executable, "-c", code], cwd=str(tmp_path), check=True)
    copied, original = (
        torch.load(str(path), weights_only=True) for path in (tmp_path / "copy.pt", tiny.root / "anns.pt")
    )
    assert copied == original


# -------------------------------------------------------------------------------------------------------- installations


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of what a clone holds; to build leaves files in it."""
    folder = tmp_path_factory.mktemp("clone") / "voxdet-soir"
    made = (
        ".git*",
        ".venv",
        ".*_cache",
        ".hypothesis",
        "__pycache__",
        "sample",
        "bench",
        "build",
        "installed",
        "*.egg-info",
        "*.pt",
    )  # see .gitignore
    shutil.copytree(str(ROOT), str(folder), ignore=shutil.ignore_patterns(*made))
    return folder


def build(clone, kind, folder):
    """Build a "wheel", an "editable" wheel or an "sdist". Returns its path."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(folder)!r})"
    # Setuptools warns of what it will not take any more; and of [tool.setuptools] before 77, of "editable" in any case.
    is_strict = kind != "editable" and int(setuptools.__version__.split(".")[0]) >= 77
    options = ["-W", "error"] if is_strict else []
    done = subprocess.run([sys.executable, *options, "-c", code], cwd=str(clone), stdout=-1, stderr=-2, text=True)
    assert done.returncode == 0, done.stdout
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installation(request, clone, tmp_path_factory):
    """(how it is installed, site-packages, folder of the commands) of an environment that has the requirements too."""
    folder = tmp_path_factory.mktemp("installation")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (folder / "dist").mkdir()
    wheel = build(clone, request.param, folder / "dist")
    before = set(os.listdir(str(packages)))
    options = ["--no-deps", "--no-index", "--no-compile", "--quiet", "--disable-pip-version-check"]
    subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", *options, str(wheel)], check=True)
    added = set(os.listdir(str(packages))) - before
    requirements = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "requirements.pth").write_text("\n".join(requirements))
    return request.param, packages, added, folder / "bin"


def test_an_installation_has_the_package_the_public_face_and_a_command_for_each_script(installation):
    kind, packages, added, commands = installation
    (info,) = (name for name in added if name.endswith(".dist-info"))
    if kind == "wheel":
        assert added == {"soir", "soir_common.py", info}
        expected = {name[len("soir/") :] for name in files_below(str(ROOT)) if re.match("soir/[^/]+[.]py$", name)}
        expected |= {f"scripts/{script}" for script in SCRIPTS}
        assert {name for name in files_below(str(packages / "soir")) if name.endswith(".py")} == expected
    metadata = (packages / info / "METADATA").read_text().splitlines()
    assert {f"Version: {VERSION}", "License: MIT", "License-File: LICENSE", "Requires-Python: >=3.7"} <= set(metadata)
    required = [line.split()[-1] for line in (ROOT / "requirements.txt").read_text().splitlines() if line[0] != "#"]
    found = [line.partition(": ")[2].replace(" ", "") for line in metadata if line.startswith("Requires-Dist")]
    assert found == required
    assert {path.name for path in commands.glob("soir-*")} == {
        f"soir-{script[:-3].replace('_', '-')}" for script in SCRIPTS
    }


@pytest.mark.parametrize("python_path", ["", ".", str(ROOT)], ids=["none", "here", "clone"])
def test_commands_run_in_a_folder_that_has_modules_of_their_names(
    installation, voxdet, instre, sample_file, tmp_path, python_path
):
    commands = installation[-1]
    for name in (*SCRIPTS, "files.py", "console.py", "scripts.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong one')")

    def run(command, *args):
        environment = {**os.environ, "PYTHONPATH": python_path}
        done = subprocess.run(
            [str(commands / f"soir-{command}"), *map(str, args)],
            cwd=str(tmp_path),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    run("create-dataset", "--voxdet-root", voxdet[0], "--relative-paths", "--output-file", "anns.pt", "--workers", 2)
    assert (tmp_path / "anns.pt").read_bytes() == sample_file.read_bytes()
    assert "PASSED" in run("verify-dataset", "anns.pt", "--base-path", voxdet[0])
    run("create-instre-subsets", "--instre-root", instre[0], "--workers", 2)
    run("convert-annotations", "anns.pt", "--coco", "anns.json")
    assert (tmp_path / "instre_xs.pt").is_file()
    assert (tmp_path / "anns.json").is_file()
    assert run("evaluate-retrieval", "--version") == f"VoxDet-SoIR tools {VERSION}\n"


def test_a_source_distribution_holds_what_a_clone_holds(clone, tmp_path):
    expected = set(files_below(str(clone)))
    with tarfile.open(str(build(clone, "sdist", tmp_path))) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert {"docs/scoring.md", "examples/make_sample.py", "pictures/preview.png", "LICENSE"} <= expected
    assert {name for name in expected - names if not re.match(r"build/|[^/]*\.egg-info/", name)} == set()


# -------------------------------------------------------------------------------------- the process that they run in

# What a process is like: name -> value.
STATE = """
import gc, io, json, locale, os, signal, sys, threading, warnings
import numpy, torch, tqdm  # what these change is theirs
import PIL, PIL.Image, PIL.ImageDraw, PIL.ImageFont
from PIL import BmpImagePlugin, ImageFile, JpegImagePlugin, PngImagePlugin

def state():
    numbers = sorted(signal.Signals)
    found = {"excepthook": sys.excepthook, "streams": (sys.stdout, sys.stderr, sys.stdin), "path": list(sys.path)}
    found["hooks"] = sys.displayhook, sys.unraisablehook if sys.version_info >= (3, 8) else None, sys.gettrace()
    found["signals"] = [signal.getsignal(number) for number in numbers]
    found["warnings"] = list(warnings.filters), warnings.showwarning
    found["gc"] = gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), list(gc.callbacks), gc.get_debug()
    found["threads"], found["environment"] = threading.enumerate(), dict(os.environ)
    found["locale"] = [locale.setlocale(number) for number in (locale.LC_ALL, locale.LC_CTYPE, locale.LC_NUMERIC)]
    found["limits"] = sys.getrecursionlimit(), sys.getswitchinterval(), os.getcwd(), os.umask(0o22)
    os.umask(found["limits"][-1])
    found["numpy"] = numpy.geterr(), numpy.get_printoptions()
    for module in (PIL.Image, ImageFile, BmpImagePlugin, JpegImagePlugin, PngImagePlugin):
        for name, value in vars(module).items():
            if not name.startswith("__"):
                found[f"{module.__name__}.{name}"] = dict(value) if isinstance(value, dict) else value
    return found

def changed(before):
    after = state()
    return sorted(name for name in {**before, **after} if before.get(name) != after.get(name))
"""

MODULES = ["soir_common", "soir", *(f"soir.{path.stem}" for path in sorted((ROOT / "soir").glob("[!_]*.py")))]


def run_with_state(code, tmp_path):
    """What a new process prints that runs some code after STATE."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", STATE + code]
    done = subprocess.run(
        command, cwd=str(tmp_path), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_importing_a_module_changes_nothing_in_the_process(tmp_path):
    code = f"""
import importlib
for name in {[name for name in MODULES if name != "soir.startup"]}:
    before = state()
    importlib.import_module(name)
    print(name, changed(before))
before = state()
import soir.startup
print("soir.startup", changed(before))
"""
    expected = [f"{name} []" for name in MODULES if name != "soir.startup"]
    assert run_with_state(code, tmp_path).splitlines() == [*expected, "soir.startup ['excepthook']"]


@pytest.mark.parametrize("ending", ["0", "1", "2"])
def test_a_script_that_is_called_as_a_function_leaves_the_process_as_it_was(sample_file, tmp_path, ending):
    """It ends well, with findings, or with a refusal; and all the same in another thread."""
    arguments = {"0": ["--skip-paths"], "1": ["--base-path", str(tmp_path)], "2": ["--base-path", "none"]}[ending]
    code = f"""
import verify_dataset
sys.argv = ["verify_dataset.py", {str(sample_file)!r}, *{arguments}]
sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
statuses = []

def call():
    try:
        statuses.append(verify_dataset.main())
    except SystemExit as end:
        statuses.append(end.code)

before = state()
call()
thread = threading.Thread(target=call)
thread.start()
thread.join()
found = changed(before)
sys.stdout = sys.__stdout__
print(statuses, found)
"""
    assert run_with_state(code, tmp_path) == f"[{ending}, {ending}] []\n"


def claims(format, width, height):
    """The bytes of an image whose header claims this size; of the rest, there is not much."""
    if format == "BMP":
        return b"BM" + struct.pack("<3L LllHHLLllLL", 58, 0, 54, 40, width, height, 1, 24, 0, 4, 0, 0, 0, 0) + bytes(4)
    if format == "PNG":
        chunks = b"IHDR" + struct.pack(">LLBBBBB", width, height, 8, 0, 0, 0, 0), b"IDAT"
        data = [struct.pack(">L", len(c) - 4) + c + struct.pack(">L", zlib.crc32(c)) for c in chunks]
        return b"\x89PNG\r\n\x1a\n" + b"".join(data)
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, format="JPEG")
    start, size, rest = stream.getvalue().partition(b"\xff\xc0\x00\x0b\x08\x00\x08\x00\x08")
    assert size
    return start + size[:5] + struct.pack(">HH", height, width) + rest


@pytest.mark.parametrize("limit", [1, Image.MAX_IMAGE_PIXELS, None], ids=["low", "usual", "none"])
@pytest.mark.parametrize("format", ["BMP", "PNG", "JPEG"])
def test_the_limit_on_pixels_is_our_own_whatever_pillows_is(tmp_path, monkeypatch, format, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    path = tmp_path / "image"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Image.new("L", (60, 40)).save(str(path), format=format)
        assert image_size(str(path)) == whole_image_size(str(path)) == (40, 60)
        assert read_image(str(path)).size == (60, 40)
        path.write_bytes(claims(format, 9459, 9459))
        assert image_size(str(path)) == (9459, 9459)
        for side in (9460, 20_000):
            path.write_bytes(claims(format, side, side))
            for read in (image_size, whole_image_size, read_image):
                with pytest.raises(OSError, match=f"too large, {side} x {side}"):
                    read(str(path))
