"""Build the VoxDet-SoIR annotation file from a VoxDet download.

In   <voxdet-root>/OWID        synthetic: P1 has the queries, P2 the gallery of the train and val splits
     <voxdet-root>/RoboTools   real: test_video has the queries, test the gallery of the test split
Out  anns.pt                   one dict, image path -> entry (see `query_entry` and `gallery_entry` in soir_common.py)

    python create_dataset.py --voxdet-root /path/to/VoxDet

Exit status: 0 fine, 1 something was skipped and --strict was given, 2 the run could not be done.
"""

from __future__ import annotations

from soir_console import (
    Findings,
    add_creation_options,
    exit_status,
    make_parser,
    positive,
    print_findings,
    print_table,
)

import argparse
import os
import posixpath
import re
import sys
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple

from soir_common import (
    Annotations,
    Box,
    Entry,
    Rle,
    Size,
    gallery_entry,
    instances_of,
    is_id,
    query_entry,
    save_annotations,
    shorten,
    xyxy_of,
)
from soir_files import SoirError, check_outputs, find_root, read_json
from soir_images import IMAGE_ENDINGS, check_whole, image_names, image_size, natural_key
from soir_masks import compress_rle, read_mask, read_segmentation
from soir_workers import map_ordered

# The keys of a COCO file that we use. The rest, half of OWID's 500 MB, is dropped while the JSON is parsed.
COCO_KEYS = {"images", "annotations", "id", "file_name", "width", "height"}
COCO_KEYS |= {"image_id", "category_id", "bbox", "segmentation", "num_ins"}

Coco = Dict[str, List[Dict[str, Any]]]


class Instance(NamedTuple):
    """A folder of photographs of one object."""

    number: int  # its id
    folder: str
    prefix: str  # what stands for the folder in the paths of entries


class Query(NamedTuple):
    """A query to read."""

    instance: Instance
    image: str  # file name in rgb/
    mask: str  # file name in mask/

    @property
    def path(self) -> str:
        return f"{self.instance.prefix}/rgb/{self.image}"


class QueryReading(NamedTuple):
    """What reading a query gave: a fault, or its mask and the box of that."""

    fault: str | None
    mask: Rle | None = None
    box: Box | None = None


class GalleryImage(NamedTuple):
    """A gallery image, with what its COCO file says of it."""

    path: str  # in the annotation file
    name: str  # in the folder of the gallery
    split: str
    size: Size  # (height, width), which may be (None, None) until the image has been read
    annotations: list[dict[str, Any]]


# -------------------------------------------------------------------------------------------------------- the two sets


def parse_owid(
    folder: str, prefix: str, max_instances: int | None, workers: int, findings: Findings
) -> Iterator[tuple[str, Entry]]:
    """Yield (image path, entry) for OWID: its queries, then its gallery images, each in natural order.

    folder         the OWID folder, with P1 and P2 in it
    prefix         what stands for that folder in the image paths
    max_instances  only the first so many instances, their queries and annotations; None for all
    findings       what is left out is added to it
    Raises SoirError if a file of the layout is missing or cannot be read.
    """
    instances = find_instances(os.path.join(folder, "P1"), f"{prefix}/P1", max_instances, findings)
    queries = pair_queries(instances, findings)
    with map_ordered(read_query, queries, workers, "OWID queries") as readings:
        # The workers read masks while the JSON is parsed here.
        train = read_coco(os.path.join(folder, "P2", "train_annotations.json"))
        val = read_coco(os.path.join(folder, "P2", "val_annotations.json"))
        val_instances = {a["category_id"] for a in val["annotations"] if is_id(a.get("category_id"))}
        for query, mask, box in usable_queries(queries, readings, findings):
            split = "val" if query.instance.number in val_instances else "train"
            yield query.path, query_entry(box, mask, query.instance.number, "OWID", split)

    # Both files count ids from 0, so each is joined by itself; val comes last, since an image that shows a val instance
    # is a val image.
    images = join_images({"train": train, "val": val}, f"{prefix}/P2", findings)
    del train, val
    wanted = {instance.number for instance in instances} if max_instances else None
    for image in read_gallery(images, os.path.join(folder, "P2"), workers, "OWID gallery", findings):
        objects = []
        for annotation, box in usable_annotations(image, wanted, findings):
            try:
                mask = read_segmentation(annotation.get("segmentation"), image.size)
            except ValueError as error:
                findings.skip(f"annotation without a usable mask ({error})", image.path)
                continue
            num_ins = annotation["num_ins"] if is_id(annotation.get("num_ins")) else len(image.annotations)
            objects.append((box, mask, annotation["category_id"], num_ins))
        if objects:
            boxes, masks, ids, all_num_ins = map(list, zip(*objects))
            yield image.path, gallery_entry(boxes, masks, ids, "OWID", image.split, all_num_ins)


def parse_robotools(
    folder: str, prefix: str, max_instances: int | None, workers: int, findings: Findings
) -> Iterator[tuple[str, Entry]]:
    """Yield (image path, entry) for RoboTools, or for a test set in its layout; see `parse_owid`."""
    instances = find_instances(os.path.join(folder, "test_video"), f"{prefix}/test_video", max_instances, findings)
    queries = pair_queries(instances, findings)
    with map_ordered(read_query, queries, workers, "RoboTools queries") as readings:
        test = read_coco(os.path.join(folder, "test", "scene_gt_coco_all.json"))
        for query, mask, box in usable_queries(queries, readings, findings):
            yield query.path, query_entry(box, mask, query.instance.number, "RoboTools", "test")

    images = join_images({"test": test}, f"{prefix}/test", findings)
    wanted = {instance.number for instance in instances} if max_instances else None
    for image in read_gallery(images, os.path.join(folder, "test"), workers, "RoboTools gallery", findings):
        objects = [(box, a["category_id"]) for a, box in usable_annotations(image, wanted, findings)]
        if objects:
            boxes, ids = map(list, zip(*objects))
            yield image.path, gallery_entry(boxes, [], ids, "RoboTools", "test")


# ------------------------------------------------------------------------------------------------------------- queries


def find_instances(folder: str, prefix: str, max_instances: int | None, findings: Findings) -> list[Instance]:
    """List the instance folders in natural order.

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
            instances.append(Instance(int(number), os.path.join(folder, name), f"{prefix}/{name}"))
        else:
            findings.skip("folder whose name holds no instance id", f"{prefix}/{name}")
    return instances[:max_instances]


def pair_queries(instances: list[Instance], findings: Findings) -> list[Query]:
    """List the queries of instances: the images in rgb/, each with its mask, the file of the same name in mask/."""
    queries = []
    for instance in instances:
        images = list_images(f"{instance.folder}/rgb")
        masks: dict[str, str] = {}
        for name in list_images(f"{instance.folder}/mask"):
            if masks.setdefault(stem(name), name) != name:
                findings.skip("second mask of the same query", f"{instance.prefix}/mask/{name}")
        if not images:
            findings.skip("instance folder without images in rgb/", instance.prefix)
        for name in images:
            if stem(name) in masks:
                queries.append(Query(instance, name, masks[stem(name)]))
            else:
                findings.skip("query without a mask", f"{instance.prefix}/rgb/{name}")
        for unused in sorted(masks.keys() - set(map(stem, images))):
            findings.skip("mask without an image", f"{instance.prefix}/mask/{masks[unused]}")
    return queries


def list_images(folder: str) -> list[str]:
    """Names of the images in a folder, in natural order; none if there is no such folder."""
    try:
        return image_names(folder)
    except OSError:
        return []


def stem(name: str) -> str:
    return name.rpartition(".")[0]


def read_query(query: Query) -> QueryReading:
    """Read a query, in a worker."""
    image = f"{query.instance.folder}/rgb/{query.image}"
    try:
        size = image_size(image)
        check_whole(image)
        reading = read_mask(f"{query.instance.folder}/mask/{query.mask}")
    except (OSError, ValueError):
        return QueryReading("query whose image or mask cannot be read")
    if reading is None:
        return QueryReading("query with an empty mask")
    mask, box = reading
    if mask["size"] != list(size):
        return QueryReading("query whose image and mask differ in size")
    return QueryReading(None, mask, box)


def usable_queries(
    queries: list[Query], readings: Iterator[QueryReading], findings: Findings
) -> Iterator[tuple[Query, Rle, Box]]:
    for query, reading in zip(queries, readings):
        if reading.mask is None or reading.box is None:
            findings.skip(str(reading.fault), query.path)
        else:
            yield query, reading.mask, reading.box


# ------------------------------------------------------------------------------------------------------------- gallery


def read_coco(path: str) -> Coco:
    """Read a COCO file: its lists "images" and "annotations" of dicts, with the keys of COCO_KEYS.

    An RLE is compressed as soon as it is parsed, since its list of run lengths takes fifty times the memory; in place
    of one that is not valid stands the ValueError of `compress_rle`. Raises SoirError if it is no COCO file.
    """

    def shrink(record: dict[str, Any]) -> Any:
        if "counts" in record and "image_id" not in record:
            try:
                return compress_rle(record)
            except ValueError as error:
                return error
        return {name: value for name, value in record.items() if name in COCO_KEYS}

    coco = read_json(path, object_hook=shrink)
    if not isinstance(coco, dict) or not all(isinstance(coco.get(name), list) for name in ("images", "annotations")):
        raise SoirError(f'{path} is no COCO file: expected an object with the lists "images" and "annotations"')
    return {name: [r if isinstance(r, dict) else {} for r in coco[name]] for name in ("images", "annotations")}


def join_images(files: dict[str, Coco], prefix: str, findings: Findings) -> list[GalleryImage]:
    """Join the annotations of COCO files to their images, in natural order.

    files  split -> its COCO file; an image that stands in several is of the last one's split
    Images are merged by file name: RoboTools has one image record per annotation, each with an id of its own.
    """
    images: dict[str, GalleryImage] = {}
    for split, coco in files.items():
        names: dict[int, str] = {}  # by image id
        for record in coco["images"]:
            name = record.get("file_name")
            if not is_id(record.get("id")) or record["id"] in names:
                findings.skip("image record without an id of its own", f"{prefix}: {shorten(name)}")
            elif not is_safe(name):
                reason = "image whose file name is no path inside its folder"
                findings.skip(reason, f"{prefix}: {shorten(name)}")
            else:
                name = names[record["id"]] = posixpath.normpath(str(name))
                annotations = images[name].annotations if name in images else []
                size: Any = record.get("height"), record.get("width")
                images[name] = GalleryImage(f"{prefix}/{name}", name, split, size, annotations)
        for annotation in coco["annotations"]:
            number = annotation.get("image_id")
            if is_id(number) and number in names:
                images[names[number]].annotations.append(annotation)
            else:
                place = f"{prefix}: {split} annotation {shorten(annotation.get('id'))}"
                findings.skip("annotation that points to no image", place)
    return [images[name] for name in sorted(images, key=natural_key)]


def is_safe(name: Any) -> bool:
    """Whether the file name of a COCO file stays inside its folder. It is somebody else's text: nothing is believed."""
    return (
        isinstance(name, str)
        and 0 < len(name) < 1024
        and not name.startswith("/")
        and not re.search(r"[\\:\0]", name)  # a Windows path, a drive, the end of a C string
        and ".." not in name.split("/")
    )


def read_gallery(
    images: list[GalleryImage], folder: str, workers: int, title: str, findings: Findings
) -> Iterator[GalleryImage]:
    """Yield those of the images in a folder that have annotations and can be read, with their real sizes."""
    annotated = []
    for image in images:
        if image.annotations:
            annotated.append(image)
        else:
            findings.skip("image without annotations", image.path)
    files = [os.path.join(folder, image.name) for image in annotated]
    with map_ordered(read_size, files, workers, title) as sizes:
        for size, image in zip(sizes, annotated):
            if size is None:
                findings.skip("gallery image that is missing or cannot be read", image.path)
            elif image.size not in (size, (None, None)):
                findings.skip("gallery image whose size is not what its annotations say", image.path)
            else:
                yield image._replace(size=size)


def read_size(path: str) -> Size | None:
    """(height, width) of an image, in a worker; None if it cannot be read."""
    try:
        size = image_size(path)
        check_whole(path)
    except OSError:
        return None
    return size


def usable_annotations(
    image: GalleryImage, wanted: set[int] | None, findings: Findings
) -> Iterator[tuple[dict[str, Any], Box]]:
    """Yield the annotations of an image with their boxes; `wanted` are the instances, None for all."""
    for annotation in image.annotations:
        box = xyxy_of(annotation.get("bbox"))
        if not is_id(annotation.get("category_id")):
            findings.skip("annotation without an instance id", image.path)
        elif wanted is not None and annotation["category_id"] not in wanted:
            continue
        elif box is None:
            findings.skip("annotation without a box of positive size", image.path)
        else:
            yield annotation, box


# -------------------------------------------------------------------------------------------------------------- script


class Source(NamedTuple):
    """One of the two sets, in the download."""

    name: str
    parse: Callable[..., Iterator[tuple[str, Entry]]]
    path: str  # in the root
    parts: tuple[str, ...]  # what must be there, in its path

    @property
    def needed(self) -> list[str]:
        return [os.path.join(self.path, part) for part in self.parts]


def parse_args() -> argparse.Namespace:
    parser = make_parser(
        "Build the VoxDet-SoIR annotation file from a VoxDet download.",
        "0 fine, 1 something was skipped and --strict was given, 2 the run could not be done",
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
    add_creation_options(parser)
    return parser.parse_args()


def find_sources(args: argparse.Namespace) -> list[Source]:
    """List the sets to read. Raises SoirError if a part of one is missing."""
    robotools = args.robotools_path
    as_unpacked = os.path.join(args.voxdet_root, "BOP", "RoboTools")  # by VoxDet's own README
    if robotools == "RoboTools" and not os.path.isdir(os.path.join(args.voxdet_root, robotools)):
        robotools = "BOP/RoboTools" if os.path.isdir(as_unpacked) else robotools
    sources = []
    if not args.skip_owid:
        parts = "P1", "P2/train_annotations.json", "P2/val_annotations.json"
        sources.append(Source("OWID", parse_owid, args.owid_path, parts))
    if not args.skip_robotools:
        sources.append(Source("RoboTools", parse_robotools, robotools, ("test_video", "test/scene_gt_coco_all.json")))
    if not sources:
        raise SoirError("nothing to do: --skip-owid and --skip-robotools are both given; leave one out")
    if not os.path.isdir(args.voxdet_root):
        raise SoirError(f"--voxdet-root {args.voxdet_root} is no folder: name the folder of the download")
    for source in sources:
        path = source.path
        if args.relative_paths and (os.path.isabs(path) or ".." in re.split(r"[/\\]", path)):
            raise SoirError(f"--relative-paths needs --{source.name.lower()}-path inside --voxdet-root, found {path}")
        for part in source.needed:
            expected = os.path.join(args.voxdet_root, part)
            if not os.path.exists(expected):
                hint = hint_at(args.voxdet_root, source, sources)
                raise SoirError(f"{source.name} is not complete: expected {expected}, which is not there. {hint}")
    return sources


def hint_at(root: str, source: Source, sources: list[Source]) -> str:
    """What to do about a set that is not complete."""
    option = source.name.lower()
    found = find_root(root, [part for each in sources for part in each.needed])
    if found:
        return f"It is there one level from here: try --voxdet-root {found}"
    alone = find_root(root, source.needed)
    if alone:
        path = os.path.relpath(os.path.join(alone, source.path), root)
        return f"It is there one level from here: try --{option}-path {path}"
    return f"Name its folders with --voxdet-root and --{option}-path, or leave it out with --skip-{option}"


def read_source(source: Source, args: argparse.Namespace, findings: Findings) -> Annotations:
    """The entries of a set. Raises SoirError if it has no queries, or no gallery images."""
    folder = os.path.join(args.voxdet_root, source.path)
    prefix = os.path.normpath(source.path) if args.relative_paths else folder.rstrip("/")
    prefix = prefix.replace(os.sep, "/")
    entries = dict(source.parse(folder, prefix, args.max_categories, args.workers, findings))
    missing = {True, False} - {entry["is_query"] for entry in entries.values()}
    if missing and not args.max_categories:  # a few instances may well be without gallery images
        print_findings(findings)
        what = "queries" if True in missing else "gallery images"
        raise SoirError(f"{folder} has no {what} that can be used, so nothing was written")
    return entries


def print_summary(annotations: Annotations) -> None:
    """Print a table with one row per set."""
    rows = [["set", "queries", "gallery images", "boxes", "instances"]]
    for name in ("OWID", "RoboTools"):
        entries = [entry for entry in annotations.values() if entry["set"] == name]
        gallery = [entry for entry in entries if not entry["is_query"]]
        boxes = sum(len(entry["bbox"]) for entry in gallery)
        instances = {instance for entry in entries for instance in instances_of(entry)}
        figures = len(entries) - len(gallery), len(gallery), boxes, len(instances)
        if entries:
            rows.append([name, *(f"{figure:,}" for figure in figures)])
    print_table(rows)


@exit_status()
def main() -> int:
    args = parse_args()
    start = time.monotonic()
    check_outputs([args.output_file])
    if args.output_file.lower().endswith((*IMAGE_ENDINGS, ".json")):
        raise SoirError(f"the output {args.output_file} is named like a file of the download: name it anns.pt, say")
    findings = Findings()
    annotations: Annotations = {}
    for source in find_sources(args):
        annotations.update(read_source(source, args, findings))
    if not annotations:
        print_findings(findings)
        raise SoirError(f"nothing was found under {args.voxdet_root} that can be used, so nothing was written")

    size = save_annotations(annotations, args.output_file)  # before anything is printed, since `| head` ends the run
    print_summary(annotations)
    print_findings(findings)
    print(f"\nwrote {args.output_file}: {size / 1e3:,.0f} kB in {time.monotonic() - start:,.1f} s")
    return 1 if args.strict and findings.skipped else 0


if __name__ == "__main__":
    sys.exit(main())
