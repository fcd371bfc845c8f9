"""What goes wrong around a run: kills, interrupts, two runs at once, outputs that cannot be written.

The environment variable SOIR_KILLS sets the number of kills, and of interrupts, of each script; they are spread over
the time that it takes.
"""

import fcntl
import json
import multiprocessing
import os
import pty
import random
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Tiny, files_below, load_plainly, make_annotations, needs_proc, run_here
from PIL import Image
from run_fork import PYTHONS_OWN, Fork, assert_gone, living

import soir_common
import worker_processes

KILLS = int(os.environ.get("SOIR_KILLS", "8"))


# ----------------------------------------------------------------------------------------------------------- four jobs


def make_voxdet(root, folders):
    """The tiny tree, with one instance folder many times."""
    tiny = Tiny(root)
    for number in range(1000, 1000 + folders):
        tiny.path(f"OWID/P1/{number}").symlink_to("3")
    return root


def make_instre(root, folders):
    """One instance folder many times: two images that can be in XS, two that can be in XXS too."""
    first = root / "INSTRE-S1" / "first"
    first.mkdir(parents=True)
    for number, side in enumerate((30, 30, 10, 10)):
        Image.new("RGB", (100, 100)).save(str(first / f"{number}.jpg"))
        (first / f"{number}.txt").write_text(f"1 1 {side} {side}\n")
    for number in range(folders):
        (root / "INSTRE-S1" / f"again {number}").symlink_to("first")
    return root


def voxdet_args(root, output):
    return "--voxdet-root", root, "--output-file", output


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with an input for each script, some tenths of a second of work; not to be changed."""
    source = tmp_path_factory.mktemp("source")
    make_voxdet(source / "VoxDet", 100)
    make_instre(source / "INSTRE", 100)
    make_annotations(source / "anns.pt", source / "VoxDet", source / "rankings.json")
    return source


SCRIPTS = ["create_dataset.py", "create_instre_subsets.py", "verify_dataset.py", "evaluate_retrieval.py"]


def job(script, source, out):
    """(arguments of a run on the input, its output files)."""
    annotations = ("--ann-file", source / "anns.pt", "--base-path", source / "VoxDet")
    if script == "create_dataset.py":
        return [*voxdet_args(source / "VoxDet", out / "anns.pt"), "--workers", 2], [out / "anns.pt"]
    if script == "create_instre_subsets.py":
        outputs = [out / "instre_xs.pt", out / "instre_xxs.pt"]
        return ["--instre-root", source / "INSTRE", "--output-dir", out, "--workers", 2], outputs
    if script == "verify_dataset.py":
        return [*annotations, "--report", out / "report.json"], [out / "report.json"]
    rankings = ("--rankings", source / "rankings.json")
    return [*annotations, *rankings, "--report", out / "report.json"], [out / "report.json"]


def contents(folder):
    return {name: (folder / name).read_bytes() for name in files_below(str(folder))}


def put_old(outputs):
    for output in outputs:
        output.write_bytes(b"old")


def assert_old_or_new(found, new):
    """Each output is what it was or all of what it was to become; the first of two is written first."""
    assert all(found[name] in (b"old", new[name]) for name in new), "an output is broken"
    assert set(found) >= set(new)


# ------------------------------------------------------------------------------------------------- kills, interrupts


def undisturbed(script, args, out):
    """Run a job: (its outputs, its time in seconds). The second run counts, the first one warms the caches."""
    for _ in range(2):
        start = time.monotonic()
        status, _, stderr = Fork(script, *args).wait()
        seconds = time.monotonic() - start
        assert (status, stderr) == (0, "")
    return contents(out), seconds


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_kill_at_any_moment_leaves_the_old_output_or_the_new_one(source, tmp_path, script):
    args, outputs = job(script, source, tmp_path)
    new, seconds = undisturbed(script, args, tmp_path)
    assert sorted(new) == sorted(output.name for output in outputs)
    moments, groups = random.Random(0), []
    for number in range(KILLS):
        put_old(outputs)
        run = Fork(script, *args)
        groups.append(run.pid)
        time.sleep(seconds * (number + moments.random()) / KILLS)
        run.send(signal.SIGKILL)
        run.wait()
        found = contents(tmp_path)
        assert_old_or_new(found, new)
        assert all(name.startswith(".soir-") and name.endswith(".tmp") for name in set(found) - set(new))
        assert run_here(script, *args, *["--workers", 1] * ("--workers" in args)).returncode == 0
        assert contents(tmp_path) == new
    assert_gone(groups)


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_interrupt_at_any_moment_ends_with_130_and_leaves_nothing(source, tmp_path, script):
    args, outputs = job(script, source, tmp_path)
    new, seconds = undisturbed(script, args, tmp_path)
    moments, groups, statuses = random.Random(1), [], []
    for number in range(KILLS):
        put_old(outputs)
        run = Fork(script, *args)
        groups.append(run.pid)
        time.sleep(seconds * (number + moments.random()) / KILLS)
        run.send((signal.SIGINT, signal.SIGTERM)[number % 2])
        status, _, stderr = run.wait()
        statuses.append(status)
        assert status in (130, 0, PYTHONS_OWN, -signal.SIGTERM), stderr
        assert status != 130 or "interrupted\n" in stderr
        # What is raised in a destructor, tqdm's say, Python prints and forgets; nothing else may show a traceback.
        assert "Traceback" not in stderr or "Exception ignored in" in stderr, stderr
        found = contents(tmp_path)
        assert sorted(found) == sorted(new)
        assert_old_or_new(found, new)
    assert 130 in statuses
    assert_gone(groups)


def test_a_worker_whose_parent_is_killed_before_it_gets_to_work_goes_too():
    """The parent dies right after it started the worker, and the worker is slow to begin."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            parent, work = os.getpid(), worker_processes._work

            def slow(*args):
                while os.getppid() == parent:
                    time.sleep(0.01)
                work(*args)

            worker_processes._work = slow
            worker_processes._start_worker(len, 1)
            os.kill(parent, signal.SIGKILL)
        finally:
            os._exit(1)  # whatever happens, this is not to go on as a second test runner
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert_gone([pid])


@pytest.mark.parametrize("script", SCRIPTS[:2])
def test_an_interrupt_in_the_start_of_a_worker_is_not_lost(source, tmp_path, script):
    """Python runs hooks around a fork, and whatever is raised in them it prints and forgets."""
    args, _ = job(script, source, tmp_path)

    def prepare():
        parent = os.getpid()
        os.register_at_fork(after_in_parent=lambda: os.kill(parent, signal.SIGTERM))

    run = Fork(script, *args, prepare=prepare)
    status, _, stderr = run.wait()
    assert (status, stderr) == (130, "interrupted\n")
    assert os.listdir(str(tmp_path)) == []
    assert_gone([run.pid])


def signal_at_line(number, wanted):
    """A `prepare` of Fork: send itself a signal when it comes to the wanted-th line of what writes a file."""

    def prepare():
        count = 0

        def trace(frame, event, _):
            nonlocal count
            if frame.f_code.co_filename != soir_common.__file__ or frame.f_code.co_name not in WRITERS:
                return None
            count += event == "line"
            if event == "line" and count == wanted:
                os.kill(os.getpid(), number)
            return trace

        sys.settrace(trace)

    return prepare


WRITERS = {"check_output", "write_whole", "whole_file", "save_annotations", "_write_archive"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("script", ["create_dataset.py", "verify_dataset.py"])
def test_a_signal_at_any_line_of_the_writing_leaves_the_old_output_or_the_new_one(tiny, tmp_path, script, number):
    make_annotations(tmp_path / "anns.pt", tiny.root, tmp_path / "rankings.json")
    (tmp_path / "VoxDet").symlink_to(tiny.root)
    out = tmp_path / "out"
    out.mkdir()
    args, outputs = job(script, tmp_path, out)
    args = [1 if argument == 2 else argument for argument in args]  # no workers
    new, _ = undisturbed(script, args, out)
    seen, line, status = set(), 0, None
    while status != 0:
        line += 1
        put_old(outputs)
        status, _, stderr = Fork(script, *args, prepare=signal_at_line(number, line)).wait()
        found = contents(out)
        assert_old_or_new(found, new)
        if number == signal.SIGKILL:
            assert (status, stderr) in [(-number, ""), (0, "")]
        else:
            assert (status, stderr) in [(130, "interrupted\n"), (0, "")]
            assert set(found) == set(new)
        seen.add((found[outputs[0].name] == b"old", len(found) > len(new)))
        assert run_here(script, *args).returncode == 0
        assert contents(out) == new
    assert line > 20
    # Before the writing, in the midst of it (which only a kill leaves to see), after it.
    assert seen >= {(True, False), (False, False)} | ({(True, True)} if number == signal.SIGKILL else set())


def catches(pid, number):
    """Whether a process has a handler of its own for a signal."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    raise AssertionError("no SigCgt")


@pytest.fixture(scope="module")
def long_source(tmp_path_factory):
    """As `source`, but seconds of work for each script."""
    source = tmp_path_factory.mktemp("long")
    make_voxdet(source / "VoxDet", 4000)
    make_instre(source / "INSTRE", 10_000)
    make_annotations(source / "few.pt", Tiny(source / "few").root, source / "rankings.json")
    query = next(iter(load_plainly(source / "few.pt").values()))
    # The same entry again and again is written once, so that this file is soon made.
    torch.save({f"{number:06d}.jpg": query for number in range(300_000)}, str(source / "anns.pt"))
    return source


def start_long_run(script, args):
    """Start a script from the command line, and let it get to work."""
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    run = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background would ignore it
    )
    deadline = time.monotonic() + 60
    while not catches(run.pid, signal.SIGTERM):  # it is still Python that starts, and imports
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.2)
    assert run.poll() is None, "the run was over before it could be disturbed"
    return run


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_an_interrupt_of_the_command_line_ends_it_at_once_and_leaves_nothing(long_source, tmp_path, script, number):
    args, outputs = job(script, long_source, tmp_path)
    put_old(outputs)
    before = contents(tmp_path)
    run = start_long_run(script, args)
    start = time.monotonic()
    if number == signal.SIGINT:  # Ctrl-C goes to the workers too
        os.killpg(run.pid, number)
    else:
        run.send_signal(number)
    stdout, stderr = run.communicate(timeout=60)
    assert time.monotonic() - start < 10  # 0.1 s; some of the runs would go on for less than that
    assert (run.returncode, stdout, stderr) == (130, b"", b"interrupted\n")
    assert contents(tmp_path) == before
    assert_gone([run.pid])


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("script", SCRIPTS[:2])
def test_a_worker_that_is_killed_ends_the_run_with_a_sentence(long_source, tmp_path, script, number):
    args, outputs = job(script, long_source, tmp_path)
    put_old(outputs)
    before = contents(tmp_path)
    run = start_long_run(script, args)
    workers = []
    while not workers:
        assert run.poll() is None, "the run was over before a worker could be killed"
        workers = [pid for pid in living([run.pid]) if int(pid) != run.pid and not catches(pid, signal.SIGTERM)]
    os.kill(int(workers[0]), number)
    stdout, stderr = run.communicate(timeout=60)
    assert (run.returncode, stdout) == (2, b"")
    assert stderr.startswith(b"error: a worker process died")
    assert stderr.count(b"\n") == 1
    assert contents(tmp_path) == before
    assert_gone([run.pid])


@needs_proc
@pytest.mark.parametrize("script", SCRIPTS[:2])
def test_an_input_that_vanishes_in_mid_run_is_counted_or_named(tmp_path, script):
    make_voxdet(tmp_path / "VoxDet", 4000)
    make_instre(tmp_path / "INSTRE", 10_000)
    out = tmp_path / "out"
    out.mkdir()
    args, outputs = job(script, tmp_path, out)
    put_old(outputs)
    run = start_long_run(script, args)
    for name in ("VoxDet", "INSTRE"):
        (tmp_path / name).rename(tmp_path / f"{name} is gone")
    stdout, stderr = run.communicate(timeout=60)
    assert b"Traceback" not in stderr
    if run.returncode == 2:
        assert stderr.startswith(b"error: ")
        assert stderr.count(b"\n") == 1
        assert contents(out) == {output.name: b"old" for output in outputs}
    else:
        assert stderr == b""
        assert b"cannot be read" in stdout or b"missing" in stdout
        assert b"old" not in contents(out).values()


def test_workers_that_cannot_be_started_end_the_run_with_a_sentence(monkeypatch):
    """A limit on processes: the first worker starts, the second does not."""
    fork, calls = os.fork, []

    def limited():
        calls.append(None)
        if len(calls) > 1:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", limited)
    with pytest.raises(soir_common.SoirError, match="--workers"):
        list(worker_processes.map_ordered(len, [[]] * 100, 4, "title"))
    assert not multiprocessing.active_children()


def test_results_come_in_the_order_of_the_items_whatever_batch_is_done_first():
    items = list(range(1000))
    assert list(worker_processes.map_ordered(square_at_leisure, items, 3, "title")) == [i * i for i in items]
    assert not multiprocessing.active_children()


def square_at_leisure(number):
    if number in (0, 500, 999):
        time.sleep(0.3)
    return number * number


@needs_proc
def test_annotations_that_break_off_while_the_workers_are_at_it_end_the_run_and_them(tmp_path):
    """The queries are begun before the annotations have been read to their end."""
    make_voxdet(tmp_path / "VoxDet", 200)
    path = tmp_path / "VoxDet" / "OWID" / "P2" / "train_annotations.json"
    whole = json.loads(path.read_text())
    whole["annotations"] *= 1000
    path.write_text(json.dumps(whole)[:-10])
    output = tmp_path / "anns.pt"
    output.write_bytes(b"old")
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 40, 100, 0, 0))  # else tqdm finds no room for a bar
    command = [sys.executable, str(ROOT / "create_dataset.py"), *map(str, voxdet_args(tmp_path / "VoxDet", output))]
    run = subprocess.Popen([*command, "--workers", "2"], stdout=terminal, stderr=terminal, start_new_session=True)
    assert run.wait(timeout=60) == 2
    assert_gone([run.pid])
    os.close(terminal)
    *bars, error, rest = os.read(ours, 10**6).decode().split("\r\n")
    os.close(ours)
    assert bars[-1].rpartition("\r")[2].startswith("OWID queries:")
    assert error.startswith(f"error: {path} is no JSON")
    assert rest == ""
    assert output.read_bytes() == b"old"


# --------------------------------------------------------------------------------------------------- two runs at once


def test_two_runs_at_once_on_one_output_both_end_well_and_leave_one_whole_file(source, tmp_path):
    args, (output,) = job("create_dataset.py", source, tmp_path)
    new, _ = undisturbed("create_dataset.py", args, tmp_path)
    output.unlink()
    command = [sys.executable, str(ROOT / "create_dataset.py"), *map(str, args)]
    runs = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    assert [(run.communicate(timeout=120)[1], run.returncode) for run in runs] == [(b"", 0)] * 2
    assert contents(tmp_path) == new
    for _ in range(3):
        output.unlink()
        leave_stale_file(tmp_path)
        runs = [Fork("create_dataset.py", *args) for _ in range(3)]
        assert [run.wait()[::2] for run in runs] == [(0, "")] * 3
        assert contents(tmp_path) == new
    assert len(load_plainly(output)) == len(load_plainly(source / "anns.pt"))


def leave_stale_file(folder):
    """The temporary file of a run that was killed."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    stale = folder / f".soir-{socket.gethostname()}-{pid}.tmp"
    stale.write_bytes(b"half")
    return stale


def test_temporary_files_of_runs_that_were_killed_are_removed(tiny):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    stale = tiny.path(f".soir-{socket.gethostname()}-{gone.pid}.tmp")
    live = tiny.path(f".soir-{socket.gethostname()}-{os.getppid()}.tmp")
    stale.write_bytes(b"half")
    live.write_bytes(b"of a run that goes on")
    tiny.create()
    assert not stale.exists()
    assert live.exists()


def test_a_stale_file_that_another_run_removes_first_does_no_harm(tiny, monkeypatch):
    stale, unlink = leave_stale_file(tiny.root), os.unlink

    def too_late(path, **options):
        unlink(path, **options)
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "unlink", too_late)
    done, annotations = tiny.create()
    assert (done.returncode, done.stderr) == (0, "")
    assert len(annotations) == 9
    assert not stale.exists()


def test_a_stale_file_that_cannot_be_removed_does_no_harm(tiny):
    """Another user's, say, in a folder where only owners may remove; here it is a folder."""
    stale = leave_stale_file(tiny.root)
    stale.unlink()
    stale.mkdir()
    done, annotations = tiny.create()
    assert (done.returncode, done.stderr) == (0, "")
    assert len(annotations) == 9


# ------------------------------------------------------------------------------------- outputs that cannot be written


OUTPUTS = {
    "create": ("create_dataset.py", "anns.pt", "--output-file"),
    "instre XS": ("create_instre_subsets.py", "instre_xs.pt", "--output-dir"),
    "instre XXS": ("create_instre_subsets.py", "instre_xxs.pt", "--output-dir"),
    "verify --report": ("verify_dataset.py", "report.json", "--report"),
    "verify --preview": ("verify_dataset.py", "preview.png", "--preview"),
    "evaluate --report": ("evaluate_retrieval.py", "report.json", "--report"),
    "evaluate --per-query": ("evaluate_retrieval.py", "queries.csv", "--per-query"),
    "evaluate --preview": ("evaluate_retrieval.py", "preview.png", "--preview"),
}


def one_output(name, source, folder):
    """(script, arguments that make it write one output, or two of INSTRE, into a folder; the output)."""
    script, file, option = OUTPUTS[name]
    args, _ = job(script, source, folder)
    if option in ("--preview", "--per-query"):
        args = [*args[: args.index("--report")], option, folder / file]
    return script, args, folder / file


def make_fault(fault, path):
    if fault == "unwritable folder":
        path.parent.rmdir()
        path.parent.symlink_to("/proc/self", target_is_directory=True)  # which not even root can write to
    elif fault == "no folder":
        path.parent.rmdir()
    elif fault == "a file for a folder":
        path.parent.rmdir()
        path.parent.write_bytes(b"old")
    elif fault == "folder":
        path.mkdir()
    elif fault == "FIFO":
        os.mkfifo(str(path))
    elif fault == "device":
        path.symlink_to(os.devnull)
    elif fault == "link to itself":
        path.symlink_to(path.name)
    elif fault == "link to nowhere":
        path.symlink_to("missing/folder/file")
    elif fault == "read-only":
        path.write_bytes(b"old")
        path.chmod(0o444)


def snapshot(folder):
    """What is there: path -> kind, permissions, content."""
    found = {}
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        target = os.readlink(str(path)) if path.is_symlink() else None
        found[str(path)] = mode, path.read_bytes() if stat.S_ISREG(mode) else target
    return found


FAULTS = ["no folder", "a file for a folder", "unwritable folder", "folder", "FIFO", "device", "read-only"]
FAULTS += ["link to itself", "link to nowhere"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_that_cannot_be_one_is_refused_in_a_line_and_stays_as_it_is(source, tmp_path, name, fault):
    folder = tmp_path / "out"
    folder.mkdir()
    script, args, path = one_output(name, source, folder)
    make_fault(fault, path)
    before = snapshot(tmp_path)
    done = run_here(script, *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(("error: the ", "error: cannot write "))
    assert len(done.stderr.splitlines()) == 1
    assert snapshot(tmp_path) == before
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize("name", [name for name in OUTPUTS if name != "instre XXS"])
def test_a_disk_that_is_full_costs_a_line_and_leaves_the_old_output(source, tmp_path, name):
    """A limit on the size of files stands for it: at once, and in the middle of the output."""
    script, args, path = one_output(name, source, tmp_path)
    assert Fork(script, *args).wait()[0] == 0
    size = path.stat().st_size
    assert size > 200
    put_old([tmp_path / file for file in os.listdir(str(tmp_path))])
    before = snapshot(tmp_path)
    for limit in (0, 100, size // 2, size - 1):
        run = Fork(script, *args, prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))  # noqa: B023
        status, stdout, stderr = run.wait()
        assert (status, stdout) == (2, "")
        assert stderr.startswith(f"error: cannot write {path}")
        assert len(stderr.splitlines()) == 1
        assert snapshot(tmp_path) == before
