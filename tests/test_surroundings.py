"""Where the scripts run: the CPUs they may use, the paths they are given, what is installed, signals at the start."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, SCRIPTS, load_plainly, run_here, run_script
from PIL import Image

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


def test_an_installation_has_all_modules_and_a_command_for_each_script():
    text = (ROOT / "pyproject.toml").read_text()
    modules = {path.stem for path in ROOT.glob("soir_*.py")} | {script[: -len(".py")] for script in SCRIPTS}
    listed = re.search(r"py-modules = \[(.*?)\]", text, re.DOTALL).group(1)
    assert re.findall(r'"(\w+)"', listed) == sorted(modules, key=lambda name: (name.startswith("soir_"), name))
    commands = dict(re.findall(r'^soir-([\w-]+) = "(\w+):main"$', text, re.MULTILINE))
    assert set(commands.values()) == {name for name in modules if not name.startswith("soir_")}
    assert all(command.replace("-", "_") == script for command, script in commands.items())


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
