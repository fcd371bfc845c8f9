"""What many test files share: masks, entries and files by hand, what a script says, and scores by a plain loop."""

import collections
import csv
import json
import os
import random
import re
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import torch
from conftest import load_plainly, run_here
from PIL import Image

# ------------------------------------------------------------------------------------------------------ masks and boxes


CORNER, MIDDLE = (0, 0, 30, 20), (20, 10, 50, 30)  # boxes in an image of 64 x 48


def rectangle(x1, y1, x2, y2, height=48, width=64):
    """A mask, bool [height, width]."""
    mask = np.zeros((height, width), dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


def runs_of(flat):
    """The run lengths of a flat mask; the first one is background, as COCO has them."""
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    return [0, *lengths] if flat[0] else lengths


def coco_list(mask):
    """RLE with a list of run lengths: column-major, as COCO has it."""
    return {"counts": runs_of(np.asarray(mask, dtype=bool).ravel(order="F")), "size": list(mask.shape)}


def authors_mask(mask):
    """RLE of the authors' script: row-major, without the leading 0 of a mask that begins in the foreground."""
    counts = runs_of(np.asarray(mask, dtype=bool).ravel())
    return {"counts": counts[1:] if counts[0] == 0 else counts, "size": mask.shape, "transpose": False}


def compressed(mask):
    """RLE as pycocotools writes it, the counts as text."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


def decode(rle):
    return coco_mask.decode(rle).astype(bool)


def pixels_of(mask, size=(480, 640)):
    """Of a mask of the sample: an array, or polygons as pycocotools draws them."""
    return decode(coco_mask.merge(coco_mask.frPyObjects(mask, *size))) if isinstance(mask, list) else mask


def box_of(mask, inclusive=False):
    ys, xs = np.nonzero(mask)
    behind = 0 if inclusive else 1
    return int(xs.min()), int(ys.min()), int(xs.max()) + behind, int(ys.max()) + behind


def corners(box_xywh, number=int):
    x, y, w, h = box_xywh
    return tuple(map(number, (x, y, x + w, y + h)))


def iou(a, b):
    """Of two boxes (x1, y1, x2, y2)."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


# --------------------------------------------------------------------------------------------- what is in an annotation


def queries_of(annotations):
    return [path for path, entry in annotations.items() if entry["is_query"]]


def gallery_of(annotations):
    return [path for path, entry in annotations.items() if not entry["is_query"]]


def relevant_paths(annotations, query):
    asked = annotations[query]
    shown = [path for path in gallery_of(annotations) if annotations[path]["set"] == asked["set"]]
    return [path for path in shown if asked["ins"] in annotations[path]["ins"]]


def competes(annotations, query, path):
    """Whether an image is one that a query is ranked against: of its set, and not unknown to a train query of OWID."""
    asked, shown = annotations[query], annotations[path]
    is_junk = asked["set"] == "OWID" and asked.get("split") == "train" and shown.get("split") == "val"
    return asked["set"] == shown["set"] and not is_junk


def average_precision(ranked, relevant, k=None):
    """By its definition, in a loop; AP@K with a K."""
    hits, total = 0, 0.0
    for rank, path in enumerate(ranked[:k], start=1):
        if path in relevant:
            hits += 1
            total += hits / rank
    return total / min(k or len(relevant), len(relevant))


def by_cosine(query, paths, vectors):
    """Paths by cosine with the query, in float64 of 12 digits; in the order of `paths` where it is equal."""
    matrix, asked = np.array([vectors[path] for path in paths], dtype=float), vectors[query].astype(float)
    cosines = np.round(matrix @ asked / np.linalg.norm(matrix, axis=1) / np.linalg.norm(asked), 12).tolist()
    scores = dict(zip(paths, cosines))
    return sorted(paths, key=lambda path: -scores[path])


# ------------------------------------------------------------------------------------------------- entries made by hand


def random_annotations(seed, queries=12, images=60, instances=6, sets=("OWID", "RoboTools")):
    """Random entries; instances from 0, of which the last of each set is shown nowhere. Ids of the sets collide."""
    rng = seed if isinstance(seed, random.Random) else random.Random(seed)
    mask = {"size": [10, 10], "counts": "0"}
    annotations = {}
    for name in sets:
        for number in range(queries):
            entry = {"bbox": (0, 0, 5, 5), "mask": mask, "is_query": True, "ins": number % instances, "set": name}
            annotations[f"{name}/query {number}"] = entry
        for number in range(images):
            ins = [rng.randrange(instances - 1) for _ in range(rng.randrange(1, 4))]
            boxes = [(x, 1, x + 3, 4) for x in range(len(ins))]
            masks = [mask] * len(ins) if name == "OWID" else []
            entry = {"bbox": boxes, "mask": masks, "is_query": False, "ins": ins, "set": name}
            annotations[f"{name}/image {number}"] = entry
    return annotations


def with_splits(annotations):
    """OWID's instances from 3 up are val; an image that shows one keeps its val instances only. RoboTools is test."""
    for entry in annotations.values():
        ids = [entry["ins"]] if entry["is_query"] else entry["ins"]
        entry["split"] = "test" if entry["set"] == "RoboTools" else ("val" if max(ids) >= 3 else "train")
        if entry["split"] == "val" and not entry["is_query"]:
            kept = [index for index, number in enumerate(ids) if number >= 3]
            for field in ("ins", "bbox", "mask"):
                entry[field] = [entry[field][index] for index in kept]
    return annotations


def random_vectors(annotations, seed=0, dimension=8):
    rng = np.random.RandomState(seed)
    return {path: rng.randn(dimension).astype(np.float32) for path in annotations}


def make_query(ins=1, set_name="mine", **fields):
    return {"bbox": MIDDLE, "is_query": True, "ins": ins, "set": set_name, **fields}


def make_photograph(ins=(1,), set_name="mine", **fields):
    """A gallery image without masks; its boxes differ."""
    boxes = [(20 - number, 10, 50, 30) for number in range(len(ins))]
    return {"bbox": boxes, "mask": [], "is_query": False, "ins": list(ins), "set": set_name, **fields}


def any_set(name, query_masks=(True, True), gallery_masks=(True, True)):
    """Two queries and two gallery images of a set, with masks or without."""
    mask, entries = compressed(rectangle(*MIDDLE)), {}
    for number, (of_query, of_image) in enumerate(zip(query_masks, gallery_masks)):
        entries[f"q{number}.png"] = make_query(1, name, **({"mask": mask} if of_query else {}))
        entries[f"g{number}.png"] = make_photograph([1], name, mask=[mask] if of_image else [])
    return entries


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


def annotated():
    """A query and two gallery images of RoboTools, with three objects."""
    return {
        "q0.png": make_query(1, "RoboTools", mask=compressed(rectangle(*MIDDLE))),
        "g0.png": make_photograph([1, 1], "RoboTools", bbox=[(0, 0, 10, 10), (20, 20, 40, 40)]),
        "g1.png": make_photograph([1], "RoboTools", bbox=[(0, 0, 10, 10)]),
    }


EMPTY_QUERY = "OWID/P1/10/rgb/000001.jpg"  # the sample has it: a render that shows nothing


def authors_file(truth, with_empty_query=True):
    """What the authors' script wrote of the sample: gallery first, NumPy values, in a defaultdict."""
    entries = collections.defaultdict(dict)
    for path in sorted(truth, reverse=True):
        name, objects = path.split("/")[0], truth[path].get("objects")
        if objects is not None:
            masks = [mask for *_, mask, _ in objects if mask is not None]
            entries[path] = {
                "bbox": [corners(box, np.int64) for _, box, _, _ in objects],
                "mask": [mask if isinstance(mask, list) else coco_list(mask) for mask in masks],
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


# ---------------------------------------------------------------------------------------------------------------- files


def save(folder, values, name="anns.pt"):
    """Save a torch file. Returns its path."""
    torch.save(values, str(folder / name))
    return folder / name


def write_json(folder, values, name="rankings.json"):
    (folder / name).write_text(json.dumps(values))
    return folder / name


def files_below(folder):
    return sorted(os.path.relpath(os.path.join(at, name), folder) for at, _, names in os.walk(folder) for name in names)


def make_files(folder, root):
    """Write anns.pt of a VoxDet tree, and rankings.json of it in gallery order. Returns the options that score them."""
    anns = folder / "anns.pt"
    args = ("--voxdet-root", root, "--output-file", anns, "--relative-paths", "--workers", 1)
    done = run_here("create_dataset.py", *args)
    assert done.returncode == 0, done.stderr
    annotations = load_plainly(anns)
    rankings = write_json(folder, dict.fromkeys(queries_of(annotations), gallery_of(annotations)))
    return ["--ann-file", anns, "--base-path", root, "--rankings", rankings]


def make_instre(root, copies=0, parts=("INSTRE-S1",)):
    """Write a tiny INSTRE: a folder of four images, two for XS and two for XXS too; `copies` are links to it."""
    for part in parts:
        folder = root / part / "01a_book"
        folder.mkdir(parents=True)
        for number, side in enumerate((30, 30, 10, 10)):
            Image.new("RGB", (100, 100)).save(str(folder / f"{number}.jpg"))
            (folder / f"{number}.txt").write_text(f"1 1 {side} {side}\n")
        for number in range(copies):
            (root / part / f"again {number}").symlink_to(folder.name)
    return root


# --------------------------------------------------------------------------------------------------- what a script says


def refused(done, *words, printed=False):
    """Assert that a script could not do its work and said so in one line that holds all of these words: the line.

    printed  whether it printed something before
    """
    assert (done.returncode, bool(done.stdout)) == (2, printed), done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert str(word) in line
    return line


def reasons(done, title):
    """Reason -> number, of a list of a report: "skipped", "noticed", "faults"."""
    _, _, report = f"\n{done.stdout}".partition(f"\n{title}:\n")
    lines = [re.fullmatch(r" *([\d,]+) x (.*?)(: .*)?", line) for line in report.split("\n\n")[0].splitlines()]
    return {line.group(2): int(line.group(1).replace(",", "")) for line in lines if line}


def verify(file, base, *args):
    """Verify a file: (process, report)."""
    report = Path(file).parent / "verification.json"
    done = run_here("verify_dataset.py", "--ann-file", file, "--base-path", base, "--report", report, *args)
    return done, json.loads(report.read_text()) if report.exists() else None


def create(tiny, *args, strict=1):
    """Run create_dataset.py: (process, annotations). What it writes passes; `strict` is the exit status of --strict."""
    done, annotations = tiny.create(*args)
    if annotations is not None:
        assert done.returncode == 0, done.stderr
        verified, _ = verify(tiny.root / "anns.pt", tiny.root)
        assert verified.returncode == 0, verified.stdout
        assert tiny.create("--strict", *args)[0].returncode == strict
    return done, annotations


def convert(file, *args, output="converted.pt"):
    """Convert a file: (process, what was written or None)."""
    target = file.parent / output
    done = run_here("convert_annotations.py", "--ann-file", file, "--output-file", target, *args)
    return done, load_plainly(target) if target.exists() else None


def counts_of(report):
    """Check -> how often it found something."""
    return {check: record["count"] for check, record in report["checks"].items() if record["count"]}


def score(folder, annotations, option, source, *args):
    """Score a run: (process, report, rows of the table by query path), None for the latter two if it is refused.

    annotations   the file, or what is in it
    option        --rankings or --features
    source        the file, or what is in it
    """
    if not isinstance(annotations, Path):
        annotations = save(folder, annotations)
    if not isinstance(source, Path):
        source = save(folder, source, "features.pt") if option == "--features" else write_json(folder, source)
    report, table = folder / "report.json", folder / "queries.csv"
    outputs = ("--report", report, "--per-query", table)
    done = run_here("evaluate_retrieval.py", "--ann-file", annotations, option, source, *outputs, *args)
    if done.returncode == 2:
        return done, None, None
    with table.open(newline="", encoding="utf-8") as lines:
        rows = {row["path"]: row for row in csv.DictReader(lines)}
    return done, json.loads(report.read_text()), rows
