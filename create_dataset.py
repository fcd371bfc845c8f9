"""Build the VoxDet-SoIR annotation file from a VoxDet download.

In   <voxdet-root>/OWID        synthetic: P1 has the queries, P2 the gallery of the train and val splits
     <voxdet-root>/RoboTools   real: test_video has the queries, test the gallery of the test split
Out  anns.pt                   one dict, image path -> entry (see `query_entry` and `gallery_entry` in soir_common.py)

    python create_dataset.py --voxdet-root /path/to/VoxDet

Exit status: 0 fine, 1 something was skipped and --strict was given, 2 the run could not be done.
"""

from __future__ import annotations

import argparse
import array
import functools
import os
import posixpath
import re
import sys
import time
from collections import defaultdict
from contextlib import closing
from itertools import chain, cycle, islice
from typing import Any, Callable, Generator, Iterator

import numpy as np
import pycocotools.mask as coco_mask
from PIL import Image, ImageChops

from input_files import IMAGE_ENDINGS, image_names, image_size, is_image_size, natural_key, read_image
from soir_common import (
    MAX_COUNTS,
    SoirError,
    add_common_options,
    check_output,
    corners,
    decode_counts,
    exit_status,
    find_root,
    gallery_entry,
    is_coordinate,
    positive,
    print_skipped,
    query_entry,
    read_json,
    save_annotations,
    shorten,
)
from worker_processes import BATCH, map_ordered

# The keys of a COCO file that we use. The rest, half of OWID's 500 MB, is dropped while the JSON is parsed.
COCO_KEYS = {"images", "annotations", "id", "file_name", "width", "height"}
COCO_KEYS |= {"image_id", "category_id", "bbox", "segmentation", "num_ins"}

# How long the outlines of an object's polygons may be, in height + width of the image: pycocotools walks them in steps
# of a fifth of a pixel, and would allocate gigabytes.
MAX_OUTLINE = 20


# -------------------------------------------------------------------------------------------------------- the two sets


def parse_owid(folder: str, key: str, max_instances: int | None, workers: int, skipped: dict) -> Iterator[tuple]:
    """Yield (image path, entry) for OWID: its queries, then its gallery images, each in natural order.

    folder         the OWID folder, with P1 and P2 in it
    key            what stands for that folder in the image paths
    max_instances  only the first so many instances, their queries and annotations; None for all
    skipped        dict, reason -> list of places; what is left out is added to it
    Raises SoirError if a file of the layout is missing or cannot be read.
    """
    images: dict[str, dict] = {}
    instances = find_instances(os.path.join(folder, "P1"), f"{key}/P1", max_instances, skipped)
    with closing(read_queries(instances, "OWID queries", workers, skipped)) as queries:
        # The JSON is read at the start of the run, so that a broken download shows there. The workers are not to wait
        # for it: a query comes in with every fourth annotation, an eighth of all queries.
        early: list[tuple] = []
        val = read_coco(os.path.join(folder, "P2", "val_annotations.json"))
        train = read_coco(
            os.path.join(folder, "P2", "train_annotations.json"),
            meanwhile=lambda: early.extend(islice(queries, BATCH)),
        )
        # Both count ids from 0, so each is joined by itself; val comes last, since an image that shows a val instance
        # is a val image.
        add_gallery(images, train, "train", f"{key}/P2", skipped)
        add_gallery(images, val, "val", f"{key}/P2", skipped)
        val_instances = {a["category_id"] for a in val["annotations"] if is_id(a, "category_id")}
        del train, val
        for path, instance, rle, box in chain(early, queries):
            yield path, query_entry(box, rle, instance, "OWID", "val" if instance in val_instances else "train")

    wanted = {instance for instance, _, _ in instances} if max_instances else None
    gallery = read_gallery(images, os.path.join(folder, "P2"), f"{key}/P2", "OWID gallery", workers, skipped)
    for path, image in gallery:
        objects = []
        for annotation, box in usable_annotations(path, image, wanted, skipped):
            try:
                rle = read_segmentation(annotation.get("segmentation"), *image["size"])
            except ValueError as error:
                skipped[f"annotation without a usable mask ({error})"].append(path)
                continue
            num_ins = annotation["num_ins"] if is_id(annotation, "num_ins") else len(image["annotations"])
            objects.append((box, rle, annotation["category_id"], num_ins))
        if objects:
            boxes, rles, ids, num_ins = map(list, zip(*objects))
            yield path, gallery_entry(boxes, rles, ids, "OWID", image["split"], num_ins)


def parse_robotools(folder: str, key: str, max_instances: int | None, workers: int, skipped: dict) -> Iterator[tuple]:
    """Yield (image path, entry) for RoboTools, or for a test set in its layout; see `parse_owid`."""
    images: dict[str, dict] = {}
    test = read_coco(os.path.join(folder, "test", "scene_gt_coco_all.json"))
    add_gallery(images, test, "test", f"{key}/test", skipped)

    instances = find_instances(os.path.join(folder, "test_video"), f"{key}/test_video", max_instances, skipped)
    for path, instance, rle, box in read_queries(instances, "RoboTools queries", workers, skipped):
        yield path, query_entry(box, rle, instance, "RoboTools", "test")

    wanted = {instance for instance, _, _ in instances} if max_instances else None
    gallery = read_gallery(images, os.path.join(folder, "test"), f"{key}/test", "RoboTools gallery", workers, skipped)
    for path, image in gallery:
        objects = [(box, a["category_id"]) for a, box in usable_annotations(path, image, wanted, skipped)]
        if objects:
            boxes, ids = map(list, zip(*objects))
            yield path, gallery_entry(boxes, [], ids, "RoboTools", "test")


# ------------------------------------------------------------------------------------------------------------- queries


def find_instances(folder: str, key: str, max_instances: int | None, skipped: dict) -> list[tuple]:
    """List (instance id, folder, key) of the instance folders in natural order.

    The id is the number after the last `_` of the name: `5` in OWID, `obj_000005` in RoboTools. Files that lie
    beside the folders (ZID-10k_mapper_new.json, scene_gt_all.json) are no instances.
    """
    try:
        names = sorted(os.listdir(folder), key=natural_key)
    except OSError as error:
        raise SoirError(f"cannot read the folder {folder}: {error.strerror}") from error
    instances = []
    for name in names:
        if not os.path.isdir(os.path.join(folder, name)):
            continue
        number = name.rpartition("_")[2]
        if re.fullmatch("[0-9]{1,18}", number):
            instances.append((int(number), os.path.join(folder, name), f"{key}/{name}"))
        else:
            skipped["folder whose name holds no instance id"].append(f"{key}/{name}")
    return instances[:max_instances]


def read_queries(instances: list, title: str, workers: int, skipped: dict) -> Generator[tuple, None, None]:
    """Yield (image path, instance id, rle, box) of every query that can be used; to be closed if not run to its end."""
    queries = []
    for instance, folder, key in instances:
        images = [(stem(name), name) for name in list_images(os.path.join(folder, "rgb"))]
        masks: dict[str, str] = {}
        for name in list_images(os.path.join(folder, "mask")):
            if masks.setdefault(stem(name), name) != name:
                skipped["second mask of the same query"].append(f"{key}/mask/{name}")
        if not images:
            skipped["instance folder without images in rgb/"].append(key)
        for frame, name in images:
            if frame in masks:
                queries.append((folder, name, masks[frame], key, instance))
            else:
                skipped["query without a mask"].append(f"{key}/rgb/{name}")
        for unused in sorted(masks.keys() - {frame for frame, _ in images}):
            skipped["mask without an image"].append(f"{key}/mask/{masks[unused]}")

    shared: dict[int, int] = {}  # one object a number, of 30 bytes: half a million boxes hold the same few
    results = map_ordered(read_query, queries, workers, title)
    for (fault, size, counts, box), (_, name, _, key, instance) in zip(results, queries):
        path = f"{key}/rgb/{name}"
        if fault:
            skipped[fault].append(path)
        else:
            size, box = (tuple(shared.setdefault(value, value) for value in values) for values in (size, box))
            yield path, instance, {"size": list(size), "counts": counts}, box


def read_query(query: tuple) -> tuple:
    """Read a query, in a worker: (fault or None, (height, width), counts of the RLE, box)."""
    folder, image_name, mask_name, _, _ = query
    try:
        width, height = image_size(f"{folder}/rgb/{image_name}", is_whole=True)
        rle, box = read_mask(f"{folder}/mask/{mask_name}")
    except OSError:
        return "query whose image or mask cannot be read", None, None, None
    if rle is None:
        return "query with an empty mask", None, None, None
    if rle["size"] != [height, width]:
        return "query whose image and mask differ in size", None, None, None
    return None, (height, width), rle["counts"], box


def read_mask(path: str) -> tuple[dict | None, tuple | None]:
    """Read a mask image: (rle, box), the box being half-open (x1, y1, x2, y2); (None, None) if no pixel is set.

    JPEG masks are 255 times the mask, with ringing around every contour, so there half of 255 separates object and
    background. Masks in lossless formats may be 0/1, 0/255 or 0/65535: there it is half of the largest value.
    Only the rectangle that is not black is looked at; that is most of the speed. Raises OSError.
    """
    image = read_image(path, luminance=True)
    rectangle = image.getbbox() if image.mode in ("1", "L", "RGB") else (0, 0, *image.size)
    if rectangle is None:
        return None, None
    values = np.asarray(brightness(image.crop(rectangle)))
    lossless = image.format in ("PNG", "BMP")
    return encode_mask(values > (values.max() / 2 if lossless else 127), rectangle[:2], image.size)


def brightness(image: Image.Image) -> Image.Image:
    """A mask in any mode -> one channel: the brightest of its colours, or its alpha if nothing else is set."""
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    if image.mode not in ("RGB", "LA", "RGBA"):
        return image
    if image.mode == "RGB":
        return functools.reduce(ImageChops.lighter, image.split())
    *colours, alpha = image.split()
    visible = ImageChops.multiply(functools.reduce(ImageChops.lighter, colours), alpha)
    is_constant = len(set(alpha.getextrema())) == 1
    return alpha if visible.getbbox() is None and not is_constant else visible  # a constant alpha shows nothing


def encode_mask(foreground: np.ndarray, corner: tuple, size: tuple) -> tuple[dict | None, tuple | None]:
    """Encode a mask of which only a rectangle is not empty: (rle, box) as in `read_mask`.

    foreground  bool [h, w], the rectangle
    corner      (x, y) of its upper left pixel in the image
    size        (width, height) of the image
    Raises OSError for noise, which would take gigabytes.
    """
    (h, w), (left, top), (width, height) = foreground.shape, corner, size
    differs = np.empty((h + 1, w), dtype=bool)  # from the pixel above; above and below the rectangle is background
    differs[0], differs[-1] = foreground[0], foreground[-1]
    np.not_equal(foreground[1:], foreground[:-1], out=differs[1:-1])
    most = MAX_COUNTS // 7  # runs; each takes up to 7 characters
    if differs.size > most and np.count_nonzero(differs) > most:
        raise OSError("far too many runs for a mask")
    flat = np.flatnonzero(differs)
    if not flat.size:
        return None, None
    ys = flat // w
    edges = (left + flat - ys * w) * height + (top + ys)  # where runs start and end, in turn
    edges.sort()
    first, last = int(edges[0]), int(edges[-1])
    runs = np.empty(edges.size + 1, dtype=np.uint32)
    runs[0], runs[-1] = first, height * width - last
    runs[1:-1] = edges[1:] - edges[:-1]
    box = first // height, top + int(ys[0]), (last - 1) // height + 1, top + int(ys[-1])
    return compress_runs(runs, height, width), box


def compress_runs(runs: np.ndarray, height: int, width: int) -> dict:
    """Run lengths -> COCO RLE {"size": [height, width], "counts": str}.

    runs  uint32 [N], that sum to height * width, in column-major order, the first one background
    The format: https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.h
    """
    if not runs[1:].all():  # a run of length 0 inside joins its neighbours: only one spelling of each mask
        edges, times = np.unique(np.cumsum(runs, dtype=np.int64)[:-1], return_counts=True)
        edges = edges[(times % 2 == 1) & (edges < height * width)]
        runs = np.diff(np.concatenate(([0], edges, [height * width]))).astype(np.uint32)
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


# ------------------------------------------------------------------------------------------------------------- gallery


def read_coco(path: str, meanwhile: Callable[[], None] = lambda: None) -> dict:
    """Read a COCO file: its lists of dict "images" and "annotations", with the keys of COCO_KEYS. SoirError.

    meanwhile  called time and again while the file is parsed, at every 128th annotation
    """
    turns = cycle(range(128))

    def shrink(record: dict):
        if "image_id" in record:
            if next(turns) == 0:
                meanwhile()
        elif "counts" in record:  # an RLE: its list of run lengths takes fifty times the memory of the string
            try:
                return compress_rle(record)
            except ValueError as error:
                return error
        return {name: value for name, value in record.items() if name in COCO_KEYS}

    coco = read_json(path, object_hook=shrink)
    if not isinstance(coco, dict) or not all(isinstance(coco.get(name), list) for name in ("images", "annotations")):
        raise SoirError(f'{path} is no COCO file: expected an object with the lists "images" and "annotations"')
    return {name: [r if isinstance(r, dict) else {} for r in coco[name]] for name in ("images", "annotations")}


def compress_rle(record: dict) -> dict:
    """RLE of a COCO file, column-major, as list of run lengths or compressed -> compressed RLE. ValueError."""
    size, counts = record.get("size"), record["counts"]
    if not isinstance(size, list) or len(size) != 2:
        raise ValueError("size is not [height, width]")
    if isinstance(counts, str):
        if len(counts) > MAX_COUNTS:
            raise ValueError("counts are far too long")
        counts = decode_counts([counts.encode("utf-8", "surrogatepass")])[0].tolist()
    try:
        if bool in map(type, counts):
            raise TypeError("true is no run length")
        runs = np.asarray(array.array("I", counts))  # the strictest and fastest conversion: no floats, no text
    except (TypeError, OverflowError):
        raise ValueError("counts are not run lengths") from None
    if not is_image_size(*size):
        raise ValueError("size is not [height, width] of an image")
    if not runs.size or runs.sum(dtype=np.uint64) != size[0] * size[1]:
        raise ValueError("run lengths do not fill the image")
    return compress_runs(runs, *size)


def add_gallery(images: dict, coco: dict, split: str, key: str, skipped: dict) -> None:
    """Join the annotations of a COCO file to their images, in `images`: file name -> {split, size, annotations}.

    Images are merged by file: RoboTools has one image record an annotation, each with an id of its own.
    """
    names = {}  # image id -> file name
    for record in coco["images"]:
        name = record.get("file_name")
        if not is_id(record, "id") or record["id"] in names:
            skipped["image record without an id of its own"].append(f"{key}: {shorten(name)}")
        elif not is_safe(name):
            skipped["image whose file name is no path inside its folder"].append(f"{key}: {shorten(name)}")
        else:
            name = names[record["id"]] = posixpath.normpath(name)
            image = images.setdefault(name, {"annotations": []})
            image["split"] = split
            image["size"] = record.get("height"), record.get("width")
    for annotation in coco["annotations"]:
        name = names.get(annotation["image_id"]) if is_id(annotation, "image_id") else None
        if name is None:
            number = shorten(annotation.get("id"))
            skipped["annotation that points to no image"].append(f"{key}: {split} annotation {number}")
        else:
            images[name]["annotations"].append(annotation)


def read_gallery(images: dict, folder: str, key: str, title: str, workers: int, skipped: dict) -> Iterator[tuple]:
    """Yield (image path, image of `add_gallery`) of every image that has annotations and can be read."""
    names = []
    for name in sorted(images, key=natural_key):
        if images[name]["annotations"]:
            names.append(name)
        else:
            skipped["image without annotations"].append(f"{key}/{name}")
    sizes = map_ordered(read_size, [os.path.join(folder, name) for name in names], workers, title)
    for size, name in zip(sizes, names):  # the iterator of the workers first: it is to end, not to be dropped
        image = images.pop(name)  # its memory is for the entry to be made
        if size is None:
            skipped["gallery image that is missing or cannot be read"].append(f"{key}/{name}")
        elif image["size"] not in (size, (None, None)):
            skipped["gallery image whose size is not what its annotations say"].append(f"{key}/{name}")
        else:
            image["size"] = size
            yield f"{key}/{name}", image


def read_size(path: str) -> tuple[int, int] | None:
    """(height, width) of an image, in a worker; None if it cannot be read."""
    try:
        width, height = image_size(path, is_whole=True)
    except OSError:
        return None
    return height, width


def usable_annotations(path: str, image: dict, wanted: set | None, skipped: dict) -> Iterator[tuple[dict, tuple]]:
    """Yield (annotation, half-open box) of an image's annotations; `wanted` is a set of instance ids, None for all."""
    for annotation in image["annotations"]:
        box = corners(annotation.get("bbox"))
        if not is_id(annotation, "category_id"):
            skipped["annotation without an instance id"].append(path)
        elif wanted is not None and annotation["category_id"] not in wanted:
            continue
        elif box is None:
            skipped["annotation without a box of positive size"].append(path)
        else:
            yield annotation, box


def read_segmentation(segmentation: Any, height: int, width: int) -> dict:
    """A COCO segmentation of an image of that size -> compressed RLE. Raises ValueError if it is none, or empty.

    segmentation  RLE as `read_coco` left it, a ValueError if it was none, or polygons [[x1, y1, x2, ...], ...]
    """
    if isinstance(segmentation, ValueError):
        raise segmentation
    if isinstance(segmentation, list):
        rle = draw_polygons(segmentation, height, width)
    elif isinstance(segmentation, dict) and "counts" in segmentation:
        rle = segmentation
    else:
        raise ValueError("no segmentation")
    if rle["size"] != [height, width]:
        raise ValueError("its size is not the image's")
    if not coco_mask.area(rle):
        raise ValueError("no pixel is set")
    return rle


def draw_polygons(polygons: list, height: int, width: int) -> dict:
    """COCO polygons -> compressed RLE of their union, as pycocotools draws them. ValueError."""
    if not polygons:
        raise ValueError("no segmentation")
    left = MAX_OUTLINE * (height + width)
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon is not [x1, y1, x2, y2, x3, y3, ...]")
        if not all(map(is_coordinate, polygon)):
            raise ValueError("a polygon is not made of numbers")
        points = np.array(polygon, dtype=float).reshape(-1, 2)
        left -= np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
        if left < 0 or np.abs(points).max() > MAX_OUTLINE * (height + width):
            raise ValueError("a polygon is far larger than the image")
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


# ------------------------------------------------------------------------------------------------------- small helpers


def list_images(folder: str) -> list[str]:
    """Names of the images in a folder, in natural order; none if there is no such folder."""
    try:
        return image_names(folder)
    except OSError:
        return []


def stem(name: str) -> str:
    return name.rpartition(".")[0]


def is_id(record: dict, name: str) -> bool:
    """Whether record[name] is an integer from 0 to 2^63 - 1 (a bool is no id, nor is the text "5")."""
    value = record.get(name)
    return type(value) is int and 0 <= value < 2**63


def is_safe(name: Any) -> bool:
    """Whether the file name of a COCO file stays inside its folder. It is somebody else's text: nothing is believed."""
    return (
        isinstance(name, str)
        and 0 < len(name) < 1024
        and not name.startswith("/")
        and not re.search(r"[\\:\0]", name)  # a Windows path, a drive, the end of a C string
        and ".." not in name.split("/")
    )


# -------------------------------------------------------------------------------------------------------------- script


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Build the VoxDet-SoIR annotation file from a VoxDet download.",
        epilog="Exit status: 0 fine, 1 something was skipped and --strict was given, 2 the run could not be done.",
    )
    add = parser.add_argument
    add("--voxdet-root", default=".", metavar="DIR", help="folder of the download (default: the current folder)")
    add("--output-file", default="anns.pt", metavar="FILE", help="annotation file to write (default: anns.pt)")
    add("--skip-owid", action="store_true", help="leave the synthetic set out")
    add("--skip-robotools", action="store_true", help="leave the real set out")
    add("--owid-path", default="OWID", metavar="DIR", help="folder of OWID in the root (default: OWID)")
    add(
        "--robotools-path",
        default="RoboTools",
        metavar="DIR",
        help="folder of RoboTools in the root (default: RoboTools, or BOP/RoboTools if that is there instead)",
    )
    add("--max-categories", type=positive, metavar="N", help="only the first N instances of each set, for a quick try")
    add_common_options(parser)
    return parser.parse_args()


def find_sets(args: argparse.Namespace) -> list[tuple]:
    """List (parser, path in the root) of the sets to read. Raises SoirError if a part of one is missing."""
    candidates = [args.robotools_path]
    if args.robotools_path == "RoboTools":
        candidates.append("BOP/RoboTools")  # as VoxDet's own README unpacks it
    there = [path for path in candidates if os.path.isdir(os.path.join(args.voxdet_root, path))]
    robotools = (there or candidates)[0]
    owid_parts = "P1", "P2/train_annotations.json", "P2/val_annotations.json"
    robotools_parts = "test_video", "test/scene_gt_coco_all.json"
    sets: list[tuple] = []
    if not args.skip_owid:
        sets.append(("OWID", parse_owid, args.owid_path, owid_parts))
    if not args.skip_robotools:
        sets.append(("RoboTools", parse_robotools, robotools, robotools_parts))
    if not sets:
        raise SoirError("nothing to do: --skip-owid and --skip-robotools are both given; leave one out")
    if not os.path.isdir(args.voxdet_root):
        raise SoirError(f"--voxdet-root {args.voxdet_root} is no folder: name the folder of the download")
    every_part = [os.path.join(path, part) for _, _, path, parts in sets for part in parts]
    for name, _, path, parts in sets:
        option = name.lower()
        if args.relative_paths and (os.path.isabs(path) or ".." in re.split(r"[/\\]", path)):
            raise SoirError(f"--relative-paths needs --{option}-path inside --voxdet-root, found {path}")
        for part in parts:
            expected = os.path.join(args.voxdet_root, path, part)
            if not os.path.exists(expected):
                found = find_root(args.voxdet_root, every_part)
                alone = find_root(args.voxdet_root, [os.path.join(path, part) for part in parts])
                if found:
                    hint = f"It is there one level from here: try --voxdet-root {found}"
                elif alone:
                    folder = os.path.relpath(os.path.join(alone, path), args.voxdet_root)
                    hint = f"It is there one level from here: try --{option}-path {folder}"
                else:
                    hint = f"Name its folders with --voxdet-root and --{option}-path, "
                    hint += f"or leave it out with --skip-{option}"
                raise SoirError(f"{name} is not complete: expected {expected}, which is not there. {hint}")
    return [(parse, path) for _, parse, path, _ in sets]


def print_summary(annotations: dict) -> None:
    """Print a table with a row a set."""
    print(f"{'set':<12}{'queries':>10}{'gallery images':>16}{'boxes':>10}{'instances':>11}")
    for name in ("OWID", "RoboTools"):
        entries = [entry for entry in annotations.values() if entry["set"] == name]
        if entries:
            gallery = [entry for entry in entries if not entry["is_query"]]
            boxes = sum(len(entry["bbox"]) for entry in gallery)
            instances = {entry["ins"] for entry in entries if entry["is_query"]}.union(*(e["ins"] for e in gallery))
            queries = len(entries) - len(gallery)
            print(f"{name:<12}{queries:>10,}{len(gallery):>16,}{boxes:>10,}{len(instances):>11,}")


def main() -> int:
    args = parse_args()
    start = time.monotonic()
    check_output(args.output_file)
    if args.output_file.lower().endswith((*IMAGE_ENDINGS, ".json")):
        raise SoirError(f"the output {args.output_file} is named like a file of the download: name it anns.pt, say")
    skipped: dict[str, list[str]] = defaultdict(list)
    annotations: dict[str, dict] = {}
    for parse, path in find_sets(args):
        folder = os.path.join(args.voxdet_root, path)
        key = os.path.normpath(path) if args.relative_paths else folder.rstrip("/")
        key = key.replace(os.sep, "/")
        before = len(annotations)
        annotations.update(parse(folder, key, args.max_categories, args.workers, skipped))
        missing = {True, False} - {entry["is_query"] for entry in islice(annotations.values(), before, None)}
        if missing and not args.max_categories:  # a few instances may well be without gallery images
            print_skipped(skipped)
            what = "queries" if True in missing else "gallery images"
            raise SoirError(f"{folder} has no {what} that can be used, so nothing was written")
    if not annotations:
        print_skipped(skipped)
        raise SoirError(f"nothing was found under {args.voxdet_root} that can be used, so nothing was written")

    size = save_annotations(annotations, args.output_file)  # before anything is printed, since `| head` ends the run
    print_summary(annotations)
    print_skipped(skipped)
    print(f"\nwrote {args.output_file}: {size / 1e3:,.0f} kB in {time.monotonic() - start:,.1f} s")
    return 1 if args.strict and skipped else 0


if __name__ == "__main__":
    with exit_status():
        sys.exit(main())
