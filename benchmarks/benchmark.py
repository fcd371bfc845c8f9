"""Measure the scripts against floors: the time that the image decoder, json, torch or the disk alone would take.

    python benchmarks/benchmark.py --scale 0.05 --folder bench      # scale 1: the size of the real data sets

Makes a VoxDet and an INSTRE tree in the folder, once for each scale, and prints one table. A figure and its floor are
measured in turn, in the same run, and of each the best of several counts. Images are hard links to some hundred
originals, so that a tree of scale 1 takes 3 GB, and a run on it half an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections import defaultdict
from typing import Any, Callable, Iterator, NamedTuple

import numpy as np
from PIL import Image

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "examples")]

import make_sample  # noqa: E402

import create_dataset  # noqa: E402
import verify_dataset  # noqa: E402
from soir.entry import Annotations, save_annotations  # noqa: E402
from soir.findings import Findings  # noqa: E402
from soir.forms import load_annotations  # noqa: E402
from soir.instre import read_part  # noqa: E402
from soir.workers import map_ordered  # noqa: E402

# The real sizes.
OWID_INSTANCES, OWID_FRAMES, OWID_IMAGES, OWID_ANNOTATIONS = 9691, 40, 55_000, 180_000
ROBOTOOLS_INSTANCES, ROBOTOOLS_FRAMES, ROBOTOOLS_IMAGES, ROBOTOOLS_ANNOTATIONS = 20, 100, 1570, 9109
INSTRE_FOLDERS, INSTRE_IMAGES = 100, 11_011

SCRIPTS = (
    "create_dataset.py",
    "verify_dataset.py",
    "convert_annotations.py",
    "create_instre_subsets.py",
    "evaluate_retrieval.py",
)

# What is run in a process of its own, for its figures not to depend on what was measured before. The last line that it
# prints is a `Usage`; the memory is what the kernel says, so on Linux only.
PROBE = """
import sys, time
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))
{setup}
before, cpu, wall = peak(), time.process_time(), time.perf_counter()
{code}
print(time.perf_counter() - wall, time.process_time() - cpu, peak(), peak() - before)
"""

# A script, run in there as from the command line.
SCRIPT = """
import runpy
sys.argv = {argv!r}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
"""

# What comes before the ranking of images by their objects.
RANK_OBJECTS = """
import gc
from soir_common import load_annotations
from soir.findings import Findings
from soir.similarity import find_by_features
from soir.features import read_features
from soir.protocol import make_task
task = make_task(load_annotations({!r}))
features = read_features({!r}, task.annotations, Findings())
gc.disable()  # as the scripts have it
"""


class Row(NamedTuple):
    """A row of the table: the figure is to be at most target x floor, or the target itself where there is no floor."""

    what: str
    figure: float
    unit: str  # of the figure and of the floor
    floor: float | None
    target: float


class Usage(NamedTuple):
    """What a process of its own took."""

    seconds: float
    cpu: float  # seconds, without the processes that it started
    peak: float  # MiB
    growth: float  # MiB that its peak grew by in what was measured


# --------------------------------------------------------------------------------------------------------------- trees


def make_trees(folder: str, scale: float) -> None:
    """Make VoxDet, VoxDet_no_queries (OWID without its queries) and INSTRE in a folder."""
    rng = random.Random(0)
    originals = os.path.join(folder, "originals")
    make_owid(os.path.join(folder, "VoxDet", "OWID"), originals, scale, rng)
    make_robotools(os.path.join(folder, "VoxDet", "RoboTools"), originals, scale, rng)
    no_queries = os.path.join(folder, "VoxDet_no_queries", "OWID")
    os.makedirs(os.path.join(no_queries, "P1"))
    os.symlink(os.path.join("..", "..", "VoxDet", "OWID", "P2"), os.path.join(no_queries, "P2"))

    photograph = os.path.join(originals, "instre.jpg")
    make_sample.save(make_sample.draw_table((1000, 750), rng), photograph, quality=90)
    for i in range(count(INSTRE_IMAGES, scale)):
        name = f"{i % INSTRE_FOLDERS // 2 + 1:02d}{'ab'[i % 2]}_object"
        path = os.path.join(folder, "INSTRE", "INSTRE-S1", name, f"{i // INSTRE_FOLDERS:03d}")
        link(photograph, f"{path}.jpg")
        make_sample.write(f"{i % 500} 100 {60 + i % 300} 200\n", f"{path}.txt")


def make_owid(folder: str, originals: str, scale: float, rng: random.Random) -> None:
    pairs = [draw_query(originals, f"owid{i}", (640, 480), rng.randrange(150, 300), ".jpg", rng) for i in range(100)]
    queries = itertools.cycle(pairs)
    for instance in range(count(OWID_INSTANCES, scale)):
        for frame in range(OWID_FRAMES):
            for kind, path in zip(("rgb", "mask"), next(queries)):
                link(path, os.path.join(folder, "P1", str(instance), kind, f"{frame:06d}.jpg"))

    images, objects = count(OWID_IMAGES, scale), [draw_annotation(rng) for _ in range(300)]
    for i in range(images):
        link(pairs[i % 100][0], os.path.join(folder, "P2", "images", f"{i:06d}.jpg"))
    for split, numbers in (("val", range(images // 50)), ("train", range(images // 50, images))):
        annotations = []
        for i in range(len(numbers) * OWID_ANNOTATIONS // OWID_IMAGES):
            ids = {"id": i, "image_id": i % len(numbers), "category_id": i % count(OWID_INSTANCES, scale)}
            annotations.append(json.dumps(ids)[:-1] + ", " + objects[i % len(objects)][1:])
        records = [
            json.dumps({"id": i, "file_name": f"images/{number:06d}.jpg", "width": 640, "height": 480})
            for i, number in enumerate(numbers)
        ]
        text = '{{"info": {{}}, "images": [{}], "annotations": [{}]}}'.format(
            ", ".join(records), ", ".join(annotations)
        )
        make_sample.write(text, folder, "P2", f"{split}_annotations.json")


def draw_annotation(rng: random.Random) -> str:
    """JSON of an annotation of OWID without its ids: full-size RLE, and all that nobody needs."""
    placed = make_sample.scatter([rng.random()], (640, 480), 78, rng)
    _, (mask,) = make_sample.draw_scene((640, 480), rng, placed)
    record: dict[str, Any] = {"bbox": make_sample.box_of(mask), "area": int(mask.sum()), "iscrowd": 0, "num_ins": 5}
    record["segmentation"] = make_sample.uncompressed_rle(mask)
    for name, rows in (("neg_box", 10), ("cam_w", 4), ("obj_w", 4)):
        record[name] = [[rng.uniform(-100, 600) for _ in range(4)] for _ in range(rows)]
    return json.dumps(record)


def make_robotools(folder: str, originals: str, scale: float, rng: random.Random) -> None:
    pairs = [draw_query(originals, f"tool{i}", (1920, 1080), rng.randrange(300, 600), ".png", rng) for i in range(8)]
    queries = itertools.cycle(pairs)
    for instance in range(ROBOTOOLS_INSTANCES):
        for frame in range(count(ROBOTOOLS_FRAMES, scale)):
            for kind, path in zip(("rgb", "mask"), next(queries)):
                link(path, os.path.join(folder, "test_video", f"obj_{instance:06d}", kind, f"{frame:06d}.png"))
    names = [f"{i % 24}/rgb/{i // 24:06d}.png" for i in range(count(ROBOTOOLS_IMAGES, scale))]
    for i, name in enumerate(names):
        link(pairs[i % 8][0], os.path.join(folder, "test", name))
    coco: dict[str, Any] = {"images": [], "annotations": []}
    for i in range(count(ROBOTOOLS_ANNOTATIONS, scale)):
        coco["images"].append({"id": i, "file_name": names[i % len(names)], "width": 1920, "height": 1080})
        annotation = {"id": i, "image_id": i, "category_id": i % ROBOTOOLS_INSTANCES}
        coco["annotations"].append({**annotation, "bbox": [5 * (i % 300), 300, 150, 150]})
    make_sample.write(json.dumps(coco), folder, "test", "scene_gt_coco_all.json")


def draw_query(
    folder: str, name: str, size: tuple[int, int], across: int, ending: str, rng: random.Random
) -> list[str]:
    """Draw a query: paths of its photograph and of its mask, of three equal channels, saved with Pillow's defaults."""
    place = (name, across, rng.randrange(size[0] - across), rng.randrange(size[1] - across))
    image, (mask,) = make_sample.draw_scene(size, rng, [place])
    paths = [os.path.join(folder, f"{name}_{kind}{ending}") for kind in ("rgb", "mask")]
    make_sample.save(image, paths[0], quality=92)
    make_sample.save(Image.fromarray(mask.astype(np.uint8)[..., None].repeat(3, 2) * 255), paths[1], quality=95)
    return paths


def link(source: str, path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.link(source, path)


def count(full: int, scale: float) -> int:
    return max(1, round(full * scale))


# ------------------------------------------------------------------------------------------------------------ measuring


def best_of(
    repeats: int, *functions: Callable[[], object], clock: Callable[[], float] = time.process_time
) -> list[float]:
    """Run functions in turn, several times. Returns the best time of each: seconds of CPU, or of another clock."""
    best = [float("inf")] * len(functions)
    for _ in range(repeats):
        for index, function in enumerate(functions):
            start = clock()
            with contextlib.redirect_stderr(io.StringIO()):  # no progress bars
                function()
            best[index] = min(best[index], clock() - start)
    return best


def probe(code: str, setup: str = "") -> Usage:
    """Run code in a process of its own, behind a setup that is not measured."""
    text = PROBE.format(setup=f"sys.path.insert(0, {ROOT!r})\n{setup}", code=code)
    # The other threads of OpenBLAS wait busily for the next product, which would count as CPU.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", text], stdout=subprocess.PIPE, check=True, text=True, env=environment)
    return Usage(*map(float, done.stdout.splitlines()[-1].split()))


def run(script: str, *arguments: str) -> Usage:
    """Run a script of the project, as `probe`."""
    return probe(SCRIPT.format(argv=[os.path.join(ROOT, script), *arguments]))


def start_and_end(*command: str) -> None:
    subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, check=True)


def best(measurements: list[Usage]) -> Usage:
    """The least of each figure."""
    return Usage(*map(min, zip(*measurements)))


# ----------------------------------------------------------------------------------------------------------------- rows


def annotation_file(folder: str) -> str:
    """Path of the annotation file of the VoxDet tree, which is made if no row has made it yet."""
    path = os.path.join(folder, "anns.pt")
    if not os.path.isfile(path):
        run("create_dataset.py", "--voxdet-root", os.path.join(folder, "VoxDet"), "--output-file", path)
    return path


def bench_queries(folder: str, repeats: int) -> Iterator[Row]:
    for name, below, target in (("OWID", "OWID/P1", 1.5), ("RoboTools", "RoboTools/test_video", 1.2)):
        path = os.path.join(folder, "VoxDet", below)
        number = 100 if name == "OWID" else 10  # enough for a figure
        instances = create_dataset.find_instances(path, name, number, Findings())  # of 9,691: once, not for these
        masks = [entry.path for instance in instances for entry in os.scandir(os.path.join(instance.folder, "mask"))]
        ours, floor = functools.partial(read_queries, instances, len(masks)), functools.partial(decode_masks, masks)
        seconds, least = best_of(repeats, ours, floor)
        ours_ms, floor_ms = (1e3 * total / len(masks) for total in (seconds, least))
        yield Row(f"create, {name} queries, CPU per mask", ours_ms, "ms", floor_ms, target)


def read_queries(instances: list[create_dataset.Instance], expected: int) -> None:
    """Read the queries of instances as `create_dataset.py` does, in this process."""
    findings = Findings()
    queries = create_dataset.pair_queries(instances, findings)
    with map_ordered(create_dataset.read_query, queries, 1, "queries") as readings:
        usable = sum(
            1 for _ in create_dataset.usable_queries(queries, readings, "", create_dataset.Options(), findings)
        )
    assert usable == expected, dict(findings.skipped)


def decode_masks(paths: list[str]) -> None:
    for path in paths:
        with Image.open(path) as image:
            image.draft("L", image.size)
            image.load()


def bench_workers(folder: str, repeats: int) -> Iterator[Row]:
    arguments = "--voxdet-root", os.path.join(folder, "VoxDet"), "--output-file", os.path.join(folder, "anns.pt")
    runs = defaultdict(list)
    for _ in range(repeats):
        for workers in "12":
            runs[workers].append(run("create_dataset.py", *arguments, "--workers", workers))
    one, two = best(runs["1"]), best(runs["2"])
    yield Row("create, 2 workers, seconds against 1 worker", two.seconds, "s", one.seconds, 1 / 1.8)
    yield Row("create, peak memory, 1 worker", one.peak, "MiB", None, 1536)


def bench_json(folder: str, repeats: int) -> Iterator[Row]:
    owid = os.path.join(folder, "VoxDet_no_queries", "OWID")
    load = "\n".join(
        f"with open({os.path.join(owid, 'P2', f'{split}_annotations.json')!r}) as file: {split} = json.load(file)"
        for split in ("train", "val")
    )
    setup = """
import gc
from create_dataset import Options, parse_owid
from soir.findings import Findings
findings = Findings()
gc.disable()  # as the scripts have it
"""
    parse = f"""
entries = dict(parse_owid({owid!r}, 'OWID', Options(), findings))
assert entries and not findings.skipped
"""
    runs, floors = [], []
    for _ in range(repeats):
        runs.append(probe(parse, setup))
        floors.append(probe(load, "import json"))
    ours, floor = best(runs), best(floors)
    yield Row("create, OWID annotations, no masks to read, CPU", ours.cpu, "s", floor.cpu, 1.5)
    yield Row("create, the same, memory that it takes", ours.growth, "MiB", floor.growth, 1)


def bench_verify(folder: str, repeats: int) -> Iterator[Row]:
    whole, tenth = annotation_file(folder), os.path.join(folder, "anns_tenth.pt")
    save_annotations(dict(list(load_annotations(whole).items())[::10]), tenth)
    runs = defaultdict(list)
    for _ in range(repeats):
        for file in (whole, tenth):
            runs[file].append(run("verify_dataset.py", "--ann-file", file, "--skip-paths"))
        runs["floor"].append(probe(f"torch.load({whole!r}, weights_only=True)", "import torch"))
    ours, part, floor = (best(runs[name]) for name in (whole, tenth, "floor"))
    yield Row("verify --skip-paths, CPU of the whole run", ours.cpu, "s", floor.cpu, 1.0)
    yield Row("verify, the same, seconds", ours.seconds, "s", floor.seconds, 1.0)
    yield Row("verify, peak memory", ours.peak, "MiB", None, 2048)
    yield Row("verify, ten times the entries", ours.cpu, "s", part.cpu, 11)


def bench_convert(folder: str, repeats: int) -> Iterator[Row]:
    """Reading a whole file, checking it and writing it again, against the checks alone."""
    file, output = annotation_file(folder), os.path.join(folder, "converted.pt")
    runs, floors = [], []
    for _ in range(repeats):
        runs.append(run("convert_annotations.py", "--ann-file", file, "--output-file", output, "--strict"))
        floors.append(run("verify_dataset.py", "--ann-file", file, "--skip-paths"))
    yield Row("convert to the current form, CPU of the whole run", best(runs).cpu, "s", best(floors).cpu, 1.5)


def bench_paths(folder: str, repeats: int) -> Iterator[Row]:
    paths = list(load_annotations(annotation_file(folder)))
    paths = random.Random(0).sample(paths, min(len(paths), 20_000))

    def floor() -> None:
        for path in paths:
            os.stat(path)
            Image.open(path).close()

    def ours() -> None:
        issues = verify_dataset.Report()
        verify_dataset.check_paths(paths, None, {}, issues)
        assert not issues.counts, issues.kept[:3]

    seconds, least = best_of(repeats, ours, floor)
    ours_ms, floor_ms = (1e3 * total / len(paths) for total in (seconds, least))
    yield Row("verify, paths and image headers, CPU per path", ours_ms, "ms", floor_ms, 1.3)


def bench_instre(folder: str, repeats: int) -> Iterator[Row]:
    root = os.path.join(folder, "INSTRE")

    def floor() -> None:
        for at, _, names in os.walk(root):
            for name in names:
                path = os.path.join(at, name)
                if name.endswith(".txt"):
                    with open(path) as file:
                        file.read()
                else:
                    Image.open(path).close()

    def ours() -> None:
        findings = Findings()
        photographs = read_part(root, "", "S1", 1, findings)
        assert photographs
        assert not findings, dict(findings.skipped)

    seconds, least = best_of(repeats, ours, floor)
    yield Row("instre, images and boxes, CPU", seconds, "s", least, 1.2)


def bench_help(_: str, repeats: int) -> Iterator[Row]:
    for script in SCRIPTS:
        ours = functools.partial(start_and_end, os.path.join(ROOT, script), "--help")
        floor = functools.partial(start_and_end, "-c", "pass")
        seconds, least = best_of(3 * repeats, ours, floor, clock=time.perf_counter)
        yield Row(f"{script} --help, more than python -c pass", 1e3 * (seconds - least), "ms", None, 150)


class Scoring(NamedTuple):
    """A run of `evaluate_retrieval.py` to measure, and what is measured as its floor."""

    what: str
    ann_file: str
    option: str  # that names the file of the run
    file: str
    floor: str  # code; {!r} stands for the path of the file, here and in the setup
    setup: str
    target: float
    memory_target: float | None = None  # None measures no memory


LOAD_VECTORS = "import numpy; vectors = numpy.load({!r})['features']"

SCORINGS_BY_FEATURES = [
    Scoring(
        f"{queries:,} queries by features",
        f"{queries}.pt",
        "--features",
        f"{queries}.npz",
        f"vectors[:{queries}] @ vectors[{queries}:].T",
        LOAD_VECTORS,
        target,
    )
    for queries, target in ((2000, 3.0), (8000, 1.7))
]

SCORINGS_OF_RANKINGS = [
    *(
        Scoring(
            f"rankings, {name}",
            "robotools.pt",
            "--rankings",
            f"{name}.json",
            "json.load(open({!r}))",
            "import json",
            target,
        )
        for name, target in (("paths", 3.0), ("scored", 5.0))
    ),
    Scoring(
        "results of the paper's code",
        "robotools.pt",
        "--rankings",
        "results.pt",
        "torch.load({!r}, weights_only=True)",
        "import torch",
        2.5,
        memory_target=1.5,
    ),
]


def bench_evaluate(folder: str, repeats: int) -> Iterator[Row]:
    """The whole command against the product of the same matrices, or the reading of the same file. Of any scale."""
    folder = os.path.join(folder, "scoring")
    if not os.path.isdir(folder):
        os.makedirs(f"{folder}.unfinished")
        make_scoring_files(f"{folder}.unfinished")
        os.rename(f"{folder}.unfinished", folder)

    for scoring in SCORINGS_BY_FEATURES:
        yield from score(folder, scoring, repeats)
    files = [os.path.join(folder, name) for name in ("robotools.pt", "objects.npz")]
    runs, floors = [], []
    for _ in range(repeats):
        floors.append(probe("vectors[:2000] @ vectors[2000:].T", LOAD_VECTORS.format(files[1])))
        runs.append(probe("list(find_by_features(features, task))", RANK_OBJECTS.format(*files)))
    yield Row("evaluate, ranking by objects, CPU", best(runs).cpu, "s", best(floors).cpu, 1.5)
    for scoring in SCORINGS_OF_RANKINGS:
        yield from score(folder, scoring, repeats)


def score(folder: str, scoring: Scoring, repeats: int) -> Iterator[Row]:
    ann_file, file = (os.path.join(folder, name) for name in (scoring.ann_file, scoring.file))
    runs, floors = [], []
    for _ in range(repeats):
        floors.append(probe(scoring.floor.format(file), scoring.setup.format(file)))
        runs.append(run("evaluate_retrieval.py", "--ann-file", ann_file, scoring.option, file))
    ours, floor = best(runs), best(floors)
    yield Row(f"evaluate, {scoring.what}, CPU", ours.cpu, "s", floor.cpu, scoring.target)
    if scoring.memory_target is not None:
        yield Row("evaluate, the same, memory that it takes", ours.growth, "MiB", floor.growth, scoring.memory_target)


def make_scoring_files(folder: str) -> None:
    """Annotation files of 2,000 and 8,000 queries and one like RoboTools, features and rankings for them."""
    import torch

    random_numbers = np.random.RandomState(0)
    for number, images in ((2000, 20_000), (8000, 40_000)):
        entries = make_entries(number, images, images // 6, 3)  # 18 relevant images per query, as OWID has
        save_annotations(entries, os.path.join(folder, f"{number}.pt"))
        vectors = random_numbers.randn(len(entries), 512).astype(np.float32)
        np.savez(os.path.join(folder, f"{number}.npz"), paths=np.array(list(entries)), features=vectors)
    entries = make_entries(ROBOTOOLS_INSTANCES * ROBOTOOLS_FRAMES, ROBOTOOLS_IMAGES, ROBOTOOLS_INSTANCES, 6)
    save_annotations(entries, os.path.join(folder, "robotools.pt"))
    queries = [path for path, entry in entries.items() if entry["is_query"]]
    gallery = [path for path, entry in entries.items() if not entry["is_query"]]

    names = [path for path in entries for _ in range(1 if entries[path]["is_query"] else 15)]
    vectors = random_numbers.randn(len(names), 512).astype(np.float32)
    boxes = np.tile([0.0, 0, 9, 9], (len(names), 1))
    np.savez(os.path.join(folder, "objects.npz"), paths=np.array(names), features=vectors, boxes=boxes)

    rankings = {query: [gallery[i] for i in random_numbers.permutation(len(gallery))] for query in queries}
    scores = -np.sort(-random_numbers.rand(len(queries), len(gallery)))
    scored = {query: list(zip(rankings[query], row)) for query, row in zip(queries, scores.tolist())}
    contents: dict[str, Any] = {"paths": rankings, "scored": scored}
    for name, content in contents.items():
        with open(os.path.join(folder, f"{name}.json"), "w") as file:
            json.dump(content, file)
    results = {"queries": queries, "gallery": gallery, "similarities": torch.tensor(scores, dtype=torch.float32)}
    copies = {query: ["".join(path) for path in ranking] for query, ranking in rankings.items()}
    torch.save({"knns": copies, **results}, os.path.join(folder, "results.pt"))


def make_entries(queries: int, images: int, instances: int, objects: int) -> Annotations:
    """Entries like OWID's, of which each image shows so many objects."""
    rng = random.Random(0)
    entries: Annotations = {}
    for i in range(queries):
        mask = {"size": [480, 640], "counts": "0" * 40 + str(i)}
        query = {"bbox": (10, 10, 200, 200), "mask": mask, "is_query": True, "ins": i % instances, "set": "OWID"}
        entries[f"data/OWID/P1/{i % instances}/rgb/{i // instances:06d}.jpg"] = query
    for i in range(images):
        masks = [{"size": [480, 640], "counts": "0" * 40 + str(i)} for _ in range(objects)]
        boxes = [(10 + number, 10, 40 + number, 40) for number in range(objects)]
        ids = [rng.randrange(instances) for _ in range(objects)]
        entry = {"bbox": boxes, "mask": masks, "is_query": False, "ins": ids, "set": "OWID"}
        entries[f"data/OWID/P2/images/{i:06d}.jpg"] = entry
    return entries


# --------------------------------------------------------------------------------------------------------------- script


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the scripts against floors.")
    parser.add_argument("--scale", type=float, default=0.05, help="share of the real size (default: 0.05)")
    parser.add_argument("--folder", default="bench", help="where the trees are made (default: bench)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements, of which the best counts (default: 5)")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="what to measure (default: all)")
    args = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # the scripts start as a user's second run does: compiled
    folder = os.path.join(args.folder, f"scale_{args.scale:g}")
    if not os.path.isdir(folder):
        print(f"making the trees in {folder} ...", file=sys.stderr)
        make_trees(f"{folder}.unfinished", args.scale)
        os.rename(f"{folder}.unfinished", folder)
    print(f"scale {args.scale:g}, best of {args.repeats}, Python {platform.python_version()}, {os.cpu_count()} cores")
    print(f"{'':<58}{'figure':>12}{'floor':>12}{'ratio':>8}{'to reach':>10}")
    for name in args.rows:
        for row in ROWS[name](folder, args.repeats):
            print(f"{row.what:<58}{format_cells(row)}", flush=True)


def format_cells(row: Row) -> str:
    """What stands behind the first column of the table."""
    _, figure, unit, floor, target = row
    if floor is None:
        return f"{figure:>9,.0f} {unit:<2}{'':>20}{target:>7,.0f} {unit}"
    return f"{figure:>9,.3f} {unit:<2}{floor:>9,.3f} {unit:<2}{figure / floor:>8.2f}{target:>10.2f}"


# What --rows names, in the order of the table.
ROWS: dict[str, Callable[[str, int], Iterator[Row]]] = {
    "queries": bench_queries,
    "workers": bench_workers,
    "json": bench_json,
    "verify": bench_verify,
    "convert": bench_convert,
    "paths": bench_paths,
    "instre": bench_instre,
    "evaluate": bench_evaluate,
    "help": bench_help,
}

if __name__ == "__main__":
    main()
