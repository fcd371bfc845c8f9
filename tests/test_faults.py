"""What goes wrong around a run: kills, interrupts, workers that die, two runs at once, outputs that cannot be written.

The environment variable SOIR_KILLS sets the number of kills, and of interrupts, of each script; they are spread over
the time that it takes.
"""

import fcntl
import json
import os
import pty
import random
import resource
import signal
import stat
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SCRIPTS, Tiny, load_plainly, needs_proc, run_here
from helpers import files_below, make_files, make_instre, refused, save
from PIL import Image
from run_fork import PYTHONS_OWN, Fork, assert_gone, living
from tqdm import tqdm

from soir.files import SoirError
from soir.workers import map_ordered

KILLS = int(os.environ.get("SOIR_KILLS", "6"))


# ----------------------------------------------------------------------------------------------------------------- jobs


def make_voxdet(root, copies):
    """The tiny tree, with one instance folder many times."""
    tiny = Tiny(root)
    for number in range(1000, 1000 + copies):
        tiny.path(f"OWID/P1/{number}").symlink_to("3")
    return tiny


def make_source(folder, copies):
    """A folder with an input for each script; not to be changed."""
    make_voxdet(folder / "VoxDet", copies)
    make_instre(folder / "INSTRE", copies)
    make_files(folder, folder / "VoxDet")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Some tenths of a second of work for each script."""
    return make_source(tmp_path_factory.mktemp("source"), 100)


@pytest.fixture(scope="module")
def small_source(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp("small"), 0)


@pytest.fixture(scope="module")
def long_source(tmp_path_factory):
    """Seconds of work for each script."""
    source = tmp_path_factory.mktemp("long")
    make_voxdet(source / "VoxDet", 4000)
    make_instre(source / "INSTRE", 5000)
    make_files(source, Tiny(source / "few").root)
    query = next(iter(load_plainly(source / "anns.pt").values()))
    # The same entry again and again is written once, so that this file is soon made.
    save(source, {f"{number:06d}.jpg": query for number in range(300_000)})
    return source


def job(script, source, out, workers=2):
    """(arguments of a run on the input, its output files)."""
    annotations = ["--ann-file", source / "anns.pt", "--base-path", source / "VoxDet"]
    if script == "create_dataset.py":
        args = ["--voxdet-root", source / "VoxDet", "--output-file", out / "anns.pt", "--workers", workers]
        return args, [out / "anns.pt"]
    if script == "create_instre_subsets.py":
        args = ["--instre-root", source / "INSTRE", "--output-dir", out, "--workers", workers]
        return args, [out / "instre_xs.pt", out / "instre_xxs.pt"]
    if script == "convert_annotations.py":
        outputs = [out / "converted.pt", out / "coco.json"]
        return [*annotations, "--output-file", outputs[0], "--coco", outputs[1]], outputs
    rankings = ["--rankings", source / "rankings.json"] if script == "evaluate_retrieval.py" else []
    return [*annotations, *rankings, "--report", out / "report.json"], [out / "report.json"]


def contents(folder):
    return {name: (folder / name).read_bytes() for name in files_below(str(folder))}


def put_old(outputs):
    for output in outputs:
        output.write_bytes(b"old")


def assert_old_or_new(found, new):
    """Each output is what it was, or all of what it was to become."""
    assert all(found.get(name) in (b"old", new[name]) for name in new), "an output is lost or broken"


def undisturbed(script, args, out):
    """Run a job: (its outputs, its time in seconds). The second run counts, the first one warms the caches."""
    for _ in range(2):
        start = time.monotonic()
        done = Fork(script, *args).wait()
        seconds = time.monotonic() - start
        assert (done.returncode, done.stderr) == (0, "")
    return contents(out), seconds


# ---------------------------------------------------------------------------------------------------- kills, interrupts


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
        left = set(found) - set(new)
        assert all(name.endswith(".tmp") for name in left)
        if left or number == KILLS - 1:  # the next run makes it good
            assert run_here(script, *job(script, source, tmp_path, workers=1)[0]).returncode == 0
            assert contents(tmp_path) == new
    assert_gone(groups)


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_interrupt_at_any_moment_ends_with_130_and_leaves_nothing(source, tmp_path, script):
    args, outputs = job(script, source, tmp_path)
    new, seconds = undisturbed(script, args, tmp_path)
    seconds = min(seconds, *(undisturbed(script, args, tmp_path)[1] for _ in range(2)))  # one run may have been slow
    moments, groups, statuses = random.Random(1), [], []
    for number in range(5 * KILLS):
        if number >= KILLS and 130 in statuses:  # else none of them met the run in its work yet
            break
        put_old(outputs)
        run = Fork(script, *args)
        groups.append(run.pid)
        time.sleep(seconds * (number % KILLS + moments.random()) / KILLS)
        run.send((signal.SIGINT, signal.SIGTERM)[number % 2])
        done = run.wait()
        statuses.append(done.returncode)
        assert done.returncode in (130, 0, PYTHONS_OWN, -signal.SIGTERM), done.stderr
        assert done.returncode != 130 or "interrupted\n" in done.stderr
        # What is raised in a destructor, tqdm's say, Python prints and forgets; nothing else may show a traceback.
        assert "Traceback" not in done.stderr or "Exception ignored in" in done.stderr, done.stderr
        found = contents(tmp_path)
        assert sorted(found) == sorted(new)
        assert_old_or_new(found, new)
    assert 130 in statuses
    assert_gone(groups)


def test_an_interrupt_while_a_progress_bar_is_made_is_told_in_one_line(small_source, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    def prepare():
        sys.stderr.isatty = lambda: True  # else there are no bars
        tqdm.__init__ = interrupted

    run = Fork("create_dataset.py", *job("create_dataset.py", small_source, tmp_path)[0], prepare=prepare)
    done = run.wait()
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("script", SCRIPTS[:2])
def test_an_interrupt_while_the_workers_are_started_leaves_none_waiting(source, tmp_path, script, number):
    """Another thread takes the signal, as those of NumPy's libraries do: a mask of the main thread does not hold it."""
    patch = f"""
import os, threading, time
from multiprocessing.process import BaseProcess

threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
start, started = BaseProcess.start, []

def start_and_interrupt(process):
    start(process)
    started.append(process)
    if len(started) == 2:
        os.kill(os.getpid(), {int(number)})
        time.sleep(0.05)

BaseProcess.start = start_and_interrupt
"""
    run = start_patched(patch, script, job(script, source, tmp_path)[0])
    done = end_of(run)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
    assert_gone([run.pid])


def start_patched(patch, script, args):
    """Start a script after some other code. In a process of its own, since Python waits for workers only when it really
    ends."""
    code = f"""
import runpy, sys
{patch}
sys.path.insert(0, {str(ROOT)!r})
sys.argv[0] = {str(ROOT / script)!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    command = [sys.executable, "-c", code, *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, universal_newlines=True, start_new_session=True)


def signal_while_writing(number, wanted, folder):
    """A `prepare` of Fork: once there is a new file in the folder, the script sends itself a signal, at the wanted-th
    line of our code from then on; a line of a loop counts once."""

    def prepare():
        lines, before = set(), os.listdir(folder)

        def trace(frame, event, _):
            if Path(frame.f_code.co_filename).parent not in (ROOT, ROOT / "soir"):
                return None
            line = frame.f_code.co_filename, frame.f_lineno
            if event == "line" and line not in lines and (lines or os.listdir(folder) != before):
                lines.add(line)
                if len(lines) == wanted:
                    os.kill(os.getpid(), number)
            return trace

        sys.settrace(trace)

    return prepare


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("script", ["create_dataset.py", "verify_dataset.py"])
def test_a_signal_at_any_line_of_the_writing_leaves_the_old_output_or_the_new_one(
    small_source, tmp_path, script, number
):
    args, outputs = job(script, small_source, tmp_path, workers=1)
    new, _ = undisturbed(script, args, tmp_path)
    lines, seen = 0, []
    while seen[-2:] != ["new", "new"]:
        lines += 1
        put_old(outputs)
        done = Fork(script, *args, prepare=signal_while_writing(number, lines, str(tmp_path))).wait()
        assert (done.returncode, done.stderr) == ((-number, "") if number == signal.SIGKILL else (130, "interrupted\n"))
        found = contents(tmp_path)
        assert_old_or_new(found, new)
        left = set(found) - set(new)
        assert number == signal.SIGKILL or not left
        seen.append("old" if found[outputs[0].name] == b"old" else "new")
        for name in left:
            (tmp_path / name).unlink()
    assert seen.count("old") > 3


def catches(pid, number):
    """Whether a process has a handler of its own for a signal."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    raise AssertionError("no SigCgt")


def start_long_run(script, args):
    """Start a script from the command line, and let it get to work."""
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    run = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
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


def end_of(run):
    try:
        stdout, stderr = run.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(run.args, run.returncode, stdout, stderr)


def a_worker_of(run):
    """The id of a worker process that is at work."""
    while True:
        assert run.poll() is None, "the run was over before it had a worker"
        for pid in map(int, living([run.pid])):
            if pid != run.pid and not catches(pid, signal.SIGTERM):
                return pid


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_an_interrupt_of_the_command_line_ends_it_and_leaves_nothing(long_source, tmp_path, script, number):
    args, outputs = job(script, long_source, tmp_path)
    put_old(outputs)
    before = contents(tmp_path)
    run = start_long_run(script, args)
    if number == signal.SIGINT:  # Ctrl-C goes to the workers too
        os.killpg(run.pid, number)
    else:
        run.send_signal(number)
    done = end_of(run)
    # While Python's unpickler reads a large file, which takes most of these runs, the system ends the process.
    endings = [(130, "", "interrupted\n"), (-number, "", "")]
    assert (done.returncode, done.stdout, done.stderr) in endings[: 1 if script in SCRIPTS[:2] else 2]
    assert contents(tmp_path) == before
    assert_gone([run.pid])


# -------------------------------------------------------------------------------------------------------------- workers


@needs_proc
@pytest.mark.parametrize("script", SCRIPTS[:2])
def test_no_worker_outlives_a_run_that_is_killed(long_source, tmp_path, script):
    run = start_long_run(script, job(script, long_source, tmp_path)[0])
    a_worker_of(run)
    run.kill()
    assert run.wait(timeout=60) == -signal.SIGKILL
    assert_gone([run.pid])
    run.communicate()


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("script", SCRIPTS[:2])
def test_a_worker_that_is_killed_ends_the_run_with_a_sentence(long_source, tmp_path, script, number):
    args, outputs = job(script, long_source, tmp_path)
    put_old(outputs)
    before = contents(tmp_path)
    run = start_long_run(script, args)
    os.kill(a_worker_of(run), number)
    refused(end_of(run), "a worker process died")
    assert contents(tmp_path) == before
    assert_gone([run.pid])


@pytest.mark.parametrize("script", SCRIPTS[:2])
def test_workers_that_cannot_be_started_end_the_run_with_a_sentence(source, tmp_path, script):
    """A limit on processes: the first worker starts, the second does not."""
    patch = """
import os

fork, calls = os.fork, []

def limited():
    calls.append(None)
    if len(calls) == 2:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()

os.fork = limited
"""
    run = start_patched(patch, script, job(script, source, tmp_path, workers=4)[0])
    refused(end_of(run), "--workers")
    assert_gone([run.pid])


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_there_is_a_result_for_each_item_in_the_order_of_the_items(workers):
    for count in (0, 1, 15, 16, 17, 32, 33, 1000, 70_001):
        with map_ordered(str, range(count), workers, "numbers") as results:
            assert list(results) == [str(number) for number in range(count)]


@pytest.mark.parametrize("workers", [1, 2])
def test_results_that_are_missing_are_an_error(workers):
    class Items(list):
        def __len__(self):
            return 101

    with map_ordered(str, Items(range(100)), workers, "numbers") as results, pytest.raises(SoirError, match="missing"):
        list(results)


def test_workers_can_be_had_in_any_thread():
    def work():
        with map_ordered(str, range(1000), 2, "numbers") as results:
            found.extend(results)

    found, handlers = [], [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert found == [str(number) for number in range(1000)]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def sleep_and_make(folder):
    time.sleep(0.002)
    os.mkdir(folder)


def test_what_the_workers_have_not_begun_is_left_when_the_run_ends(tmp_path):
    folders = [str(tmp_path / str(number)) for number in range(5000)]
    with pytest.raises(KeyboardInterrupt), map_ordered(sleep_and_make, folders, 2, "folders"):
        raise KeyboardInterrupt
    assert len(os.listdir(str(tmp_path))) < 500


def test_entries_come_in_the_same_order_whichever_worker_is_the_slowest(tmp_path):
    tiny = make_voxdet(tmp_path / "VoxDet", 200)
    for frame in range(2):  # of the first instance; its masks take as long as hundreds of the others
        tiny.save_image(f"OWID/P1/3/rgb/{frame:06d}.jpg", Image.new("RGB", (3000, 2000)))
        tiny.save_image(f"OWID/P1/3/mask/{frame:06d}.jpg", np.full((2000, 3000), 255, np.uint8))
    for number in range(1000, 1200):
        tiny.path(f"OWID/P1/{number}").unlink()
        tiny.path(f"OWID/P1/{number}").symlink_to("20")
    _, expected = tiny.create()
    done = Fork("create_dataset.py", *job("create_dataset.py", tmp_path, tmp_path, workers=3)[0]).wait()
    assert (done.returncode, done.stderr) == (0, "")
    found = load_plainly(tmp_path / "anns.pt")
    assert [os.path.relpath(path, str(tiny.root)) for path in found] == list(expected)
    assert list(found.values()) == list(expected.values())


@needs_proc
def test_annotations_that_break_off_while_the_workers_are_at_it_end_the_run_and_them(tmp_path):
    make_voxdet(tmp_path / "VoxDet", 2000)
    path = tmp_path / "VoxDet" / "OWID" / "P2" / "train_annotations.json"
    whole = json.loads(path.read_text())
    whole["annotations"] *= 1000
    path.write_text(json.dumps(whole)[:-10])
    args, outputs = job("create_dataset.py", tmp_path, tmp_path)
    put_old(outputs)
    run = Fork("create_dataset.py", *args)
    refused(run.wait(), f"{path} is no JSON")
    assert_gone([run.pid])
    assert outputs[0].read_bytes() == b"old"


@needs_proc
@pytest.mark.parametrize("script", SCRIPTS[:2])
def test_an_input_that_vanishes_in_mid_run_is_counted_or_named(tmp_path, script):
    if script == "create_dataset.py":
        root = make_voxdet(tmp_path / "VoxDet", 4000).root
    else:
        root = make_instre(tmp_path / "INSTRE", 5000)
    out = tmp_path / "out"
    out.mkdir()
    args, outputs = job(script, tmp_path, out)
    put_old(outputs)
    run = start_long_run(script, args)
    root.rename(tmp_path / "it is gone")
    done = end_of(run)
    if done.returncode == 2:
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert contents(out) == {output.name: b"old" for output in outputs}
    else:
        assert done.stderr == ""
        assert "cannot be read" in done.stdout or "missing" in done.stdout
        assert b"old" not in contents(out).values()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_reader_that_goes_away_costs_no_output_and_no_traceback(small_source, tmp_path, script):
    """As `| head` does: what is written to files is there before the first line is printed."""
    args, outputs = job(script, small_source, tmp_path)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, args)], stdout=writer, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
    assert all(output.stat().st_size > 200 for output in outputs)


@pytest.mark.parametrize(
    "script, shown", [("create_dataset.py", b"OWID queries: 100%"), ("evaluate_retrieval.py", b"scoring: 100%")]
)
def test_a_terminal_shows_the_progress(small_source, tmp_path, script, shown):
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 40, 100, 0, 0))  # else tqdm finds no room for a bar
    args, _ = job(script, small_source, tmp_path)
    if script == "evaluate_retrieval.py":
        features = {path: np.ones(8) for path in load_plainly(small_source / "anns.pt")}
        np.savez(str(tmp_path / "features.npz"), **features)
        args = ["--ann-file", small_source / "anns.pt", "--features", tmp_path / "features.npz"]
    command = [sys.executable, str(ROOT / script), *args]
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, stderr=terminal, timeout=60)
    os.close(terminal)
    assert done.returncode == 0
    assert shown in os.read(ours, 10**6)
    os.close(ours)


# ----------------------------------------------------------------------------------------------------- two runs at once


def test_two_runs_at_once_on_one_output_both_end_well_and_leave_one_whole_file(source, tmp_path):
    args, (output,) = job("create_dataset.py", source, tmp_path)
    new, _ = undisturbed("create_dataset.py", args, tmp_path)
    for _ in range(3):
        output.unlink()
        runs = [Fork("create_dataset.py", *args) for _ in range(3)]
        for run in runs:
            done = run.wait()
            assert (done.returncode, done.stderr) == (0, "")
        assert contents(tmp_path) == new


# --------------------------------------------------------------------------------------- outputs that cannot be written


OUTPUTS = {
    "create": ("create_dataset.py", "anns.pt", "--output-file"),
    "instre XS": ("create_instre_subsets.py", "instre_xs.pt", "--output-dir"),
    "instre XXS": ("create_instre_subsets.py", "instre_xxs.pt", "--output-dir"),
    "verify --report": ("verify_dataset.py", "report.json", "--report"),
    "verify --preview": ("verify_dataset.py", "preview.png", "--preview"),
    "evaluate --report": ("evaluate_retrieval.py", "report.json", "--report"),
    "evaluate --per-query": ("evaluate_retrieval.py", "queries.csv", "--per-query"),
    "evaluate --table": ("evaluate_retrieval.py", "table.tex", "--table"),
    "evaluate --qrels": ("evaluate_retrieval.py", "qrels.txt", "--qrels"),
    "evaluate --trec": ("evaluate_retrieval.py", "run.txt", "--trec"),
    "evaluate --preview": ("evaluate_retrieval.py", "preview.png", "--preview"),
    "convert": ("convert_annotations.py", "converted.pt", "--output-file"),
    "convert --coco": ("convert_annotations.py", "coco.json", "--coco"),
}


def one_output(name, source, folder):
    """(script, arguments that make it write one output, or two of INSTRE, into a folder; the output)."""
    script, file, option = OUTPUTS[name]
    args, _ = job(script, source, folder, workers=1)
    if script not in SCRIPTS[:2]:  # only what they read, and this output
        start = args.index("--output-file" if script == "convert_annotations.py" else "--report")
        args = [*args[:start], option, folder / file]
    return script, args, folder / file


def snapshot(folder):
    """What is there: path -> kind, permissions, content."""
    found = {}
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        target = os.readlink(str(path)) if path.is_symlink() else None
        found[str(path)] = mode, path.read_bytes() if stat.S_ISREG(mode) else target
    return found


def make_read_only(path):
    path.write_bytes(b"old")
    path.chmod(0o444)


# What it is -> (what makes it of a path whose folder is empty, words of the refusal).
FAULTS = {
    "a file for a folder": (lambda path: (path.parent.rmdir(), path.parent.write_bytes(b"old")), "is no folder"),
    # Not even root can write to /proc.
    "unwritable folder": (lambda path: (path.parent.rmdir(), path.parent.symlink_to("/proc/self")), "not writable"),
    "folder": (lambda path: path.mkdir(), "no regular file"),
    "FIFO": (lambda path: os.mkfifo(str(path)), "no regular file"),
    "device": (lambda path: path.symlink_to(os.devnull), "no regular file"),
    "read-only": (make_read_only, "read-only"),
    "link to itself": (lambda path: path.symlink_to(path.name), "cannot be written"),
}


@pytest.mark.parametrize(
    "name, fault", [*(("create", fault) for fault in FAULTS), *((name, "folder") for name in [*OUTPUTS][1:])]
)
def test_an_output_that_cannot_be_one_is_refused_before_the_work_and_stays_as_it_is(
    small_source, tmp_path, name, fault
):
    (tmp_path / "out").mkdir()
    script, args, path = one_output(name, small_source, tmp_path / "out")
    make, words = FAULTS[fault]
    make(path)
    before = snapshot(tmp_path)
    refused(run_here(script, *args), "the ", words)
    assert snapshot(tmp_path) == before
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_an_output_that_is_an_input_or_another_output_is_refused(small_source, tmp_path):
    for name in ("anns.pt", "rankings.json"):
        (tmp_path / name).write_bytes((small_source / name).read_bytes())
    anns, rankings, new = tmp_path / "anns.pt", tmp_path / "rankings.json", tmp_path / "new.json"
    score = ("evaluate_retrieval.py", "--ann-file", anns, "--rankings", rankings)
    before = snapshot(tmp_path)
    refused(run_here("verify_dataset.py", "--ann-file", anns, "--report", anns), anns, "is an input too")
    refused(run_here(*score, "--report", anns), anns, "is an input too")
    refused(run_here(*score, "--per-query", rankings), rankings, "is an input too")
    refused(run_here(*score, "--report", new, "--per-query", new), new, "is another output too")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", [name for name in OUTPUTS if name != "instre XXS"])
def test_a_disk_that_is_full_costs_a_line_and_leaves_the_old_output(small_source, tmp_path, name):
    """A limit on the size of files stands for it: at once, in the middle of the output, and at its end."""
    script, args, path = one_output(name, small_source, tmp_path)
    assert run_here(script, *args).returncode == 0
    size = path.stat().st_size
    assert size > 200
    put_old([tmp_path / file for file in os.listdir(str(tmp_path))])
    before = snapshot(tmp_path)
    for limit in (0, size // 2, size - 1):
        run = Fork(script, *args, prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))  # noqa: B023
        refused(run.wait(), f"error: cannot write {path}", printed=name == "evaluate --preview")
        assert snapshot(tmp_path) == before
