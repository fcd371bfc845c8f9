"""Build the VoxDet-SoIR annotation file from a VoxDet download.

In   <voxdet-root>/OWID        synthetic: P1 has the queries, P2 the gallery of the train and val splits
     <voxdet-root>/RoboTools   real: test_video has the queries, test the gallery of the test split
Out  anns.pt                   one dict, image path -> entry (see `query_entry` and `gallery_entry` in soir_common.py)

    python create_dataset.py --voxdet-root /path/to/VoxDet

Exit status: 0 fine, 1 something was skipped or noticed and --strict was given, 2 the run could not be done.
"""

from __future__ import annotations

import soir.startup  # noqa: F401

import argparse
import os
import re
import sys
import time
from typing import Any, Callable, Iterator, NamedTuple

from soir.coco import Coco, Doubts, GalleryImage, GalleryObject, join_images, read_coco, stop_if_misread, usable_objects
from soir.console import add_creation_options, exit_status, make_parser, positive
from soir.entry import Annotations, Entry, Rle, gallery_entry, is_id, query_entry, save_annotations
from soir.files import SoirError, check_outputs, reason_of
from soir.findings import Findings, in_bytes, print_findings
from soir.geometry import Box, Size
from soir.images import IMAGE_ENDINGS, image_names, one_per_stem, whole_image_size
from soir.mask_images import read_mask_image
from soir.paths import find_root, natural_key, tidy_path
from soir.statistics import print_summary
from soir.workers import map_ordered


class Options(NamedTuple):
    """What the command line says of the reading of a set."""

    max_instances: int | None = None  # only the first so many instances, their queries and annotations
    workers: int = 1
    keep_contradictions: bool = False


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
    detail: str = ""  # of the fault: what the decoder said
    mask: Rle | None = None
    box: Box | None = None
    is_soft: bool = False


# -------------------------------------------------------------------------------------------------------- the two sets


def parse_owid(folder: str, prefix: str, options: Options, findings: Findings) -> Iterator[tuple[str, Entry]]:
    """Yield (image path, entry) for OWID: its queries, then its gallery images, each in natural order.

    folder    the OWID folder, with P1 and P2 in it
    prefix    what stands for that folder in the image paths
    findings  what is left out, or odd, is added to it
    Raises SoirError if a file of the layout is missing or cannot be read, or if most annotations contradict themselves.
    """
    instances = find_instances(os.path.join(folder, "P1"), tidy_path(prefix, "P1"), options.max_instances, findings)
    queries = pair_queries(instances, findings)
    with map_ordered(read_query, queries, options.workers, "OWID queries") as readings:
        # The workers read masks while the JSON is parsed here.
        train = read_coco(os.path.join(folder, "P2", "train_annotations.json"))
        val = read_coco(os.path.join(folder, "P2", "val_annotations.json"))
        # Both files count ids from 0, so each is joined by itself; val comes last, since an image that shows a val
        # instance is a val image.
        images = join_images({"train": train, "val": val}, tidy_path(prefix, "P2"), findings)
        train_instances, val_instances = annotated_instances(train), annotated_instances(val)
        for instance in sorted(train_instances & val_instances):
            findings.notice("instance of both splits, its queries are of val", f"{prefix}: instance {instance}")
        del train, val
        for query, mask, box in usable_queries(queries, readings, folder, options, findings):
            split = "val" if query.instance.number in val_instances else "train"
            yield query.path, query_entry(box, mask, query.instance.number, "OWID", split)

    wanted = {instance.number for instance in instances} if options.max_instances else None
    doubts = Doubts(options.keep_contradictions)
    for image in read_gallery(images, os.path.join(folder, "P2"), options.workers, "OWID gallery", findings):
        objects = usable_objects(image, True, wanted, doubts, findings)
        if objects:
            boxes, masks, ids, num_ins = columns(objects)
            yield image.path, gallery_entry(boxes, masks, ids, "OWID", image.split, num_ins)
    stop_if_misread(doubts, f"{folder}/P2")


def parse_robotools(folder: str, prefix: str, options: Options, findings: Findings) -> Iterator[tuple[str, Entry]]:
    """Yield (image path, entry) for RoboTools, or for a test set in its layout; see `parse_owid`."""
    instances = find_instances(
        os.path.join(folder, "test_video"), tidy_path(prefix, "test_video"), options.max_instances, findings
    )
    queries = pair_queries(instances, findings)
    with map_ordered(read_query, queries, options.workers, "RoboTools queries") as readings:
        test = read_coco(os.path.join(folder, "test", "scene_gt_coco_all.json"))
        images = join_images({"test": test}, tidy_path(prefix, "test"), findings)
        for query, mask, box in usable_queries(queries, readings, folder, options, findings):
            yield query.path, query_entry(box, mask, query.instance.number, "RoboTools", "test")

    wanted = {instance.number for instance in instances} if options.max_instances else None
    doubts = Doubts(options.keep_contradictions)
    for image in read_gallery(images, os.path.join(folder, "test"), options.workers, "RoboTools gallery", findings):
        objects = usable_objects(image, False, wanted, doubts, findings)
        if objects:
            boxes, _, ids, _ = columns(objects)
            yield image.path, gallery_entry(boxes, [], ids, "RoboTools", "test")
    stop_if_misread(doubts, f"{folder}/test")


def annotated_instances(coco: Coco) -> set[int]:
    return {annotation.category_id for annotation in coco.annotations if is_id(annotation.category_id)}


def columns(objects: list[GalleryObject]) -> tuple[list[Any], ...]:
    """The boxes, masks, instances and num_ins of objects."""
    return tuple(map(list, zip(*((o.box, o.mask, o.instance, o.num_ins) for o in objects))))


# ------------------------------------------------------------------------------------------------------------- queries


def find_instances(folder: str, prefix: str, max_instances: int | None, findings: Findings) -> list[Instance]:
    """List the instance folders in natural order.

    The id is the number after the last `_` of the name: `5` in OWID, `obj_000005` in RoboTools. Files that lie
    beside the folders (ZID-10k_mapper_new.json, scene_gt_all.json) are no instances. Raises SoirError if the folder
    cannot be read.
    """
    try:
        names = sorted(os.listdir(folder), key=natural_key)
    except OSError as error:
        raise SoirError(f"cannot read the folder {folder}: {error.strerror}") from error
    instances: dict[int, Instance] = {}
    for name in names:
        if not os.path.isdir(os.path.join(folder, name)):
            continue
        number = name.rpartition("_")[2]
        if not re.fullmatch("[0-9]{1,18}", number):
            findings.skip("folder whose name holds no instance id", f"{prefix}/{name}")
        elif int(number) in instances:
            first = os.path.basename(instances[int(number)].folder)
            findings.skip("folder with the instance id of another", f"{prefix}/{name}", f"{first} has it")
        else:
            instances[int(number)] = Instance(int(number), os.path.join(folder, name), f"{prefix}/{name}")
    return list(instances.values())[:max_instances]


def pair_queries(instances: list[Instance], findings: Findings) -> list[Query]:
    """List the queries of instances: the images in rgb/, each with its mask, the file of the same name in mask/."""
    queries = []
    for instance in instances:
        images, other_images = one_per_stem(list_images(f"{instance.folder}/rgb"))
        masks, other_masks = one_per_stem(list_images(f"{instance.folder}/mask"))
        for name in other_images:
            findings.skip("second photograph of the same name", f"{instance.prefix}/rgb/{name}")
        for name in other_masks:
            findings.skip("second mask of the same query", f"{instance.prefix}/mask/{name}")
        if not images:
            findings.skip("instance folder without images in rgb/", instance.prefix)
        for stem, name in images.items():
            if stem in masks:
                queries.append(Query(instance, name, masks[stem]))
            else:
                findings.skip("query without a mask", f"{instance.prefix}/rgb/{name}")
        for stem in masks:
            if stem not in images:
                findings.skip("mask without an image", f"{instance.prefix}/mask/{masks[stem]}")
    return queries


def list_images(folder: str) -> list[str]:
    """Names of the images in a folder, in natural order; none if there is no such folder."""
    try:
        return image_names(folder)
    except OSError:
        return []


def read_query(query: Query) -> QueryReading:
    """Read a query, in a worker: its mask, and whether its image is whole and of the same size."""
    image = f"{query.instance.folder}/rgb/{query.image}"
    try:
        size = whole_image_size(image)
    except OSError as error:
        return QueryReading("query whose image cannot be read", reason_of(error))
    try:
        mask = read_mask_image(f"{query.instance.folder}/mask/{query.mask}")
    except OSError as error:
        return QueryReading("query whose mask cannot be read", reason_of(error))
    except ValueError as error:
        return QueryReading(str(error))
    if mask.rle is None:
        return QueryReading("query with an empty mask")
    if mask.rle["size"] != list(size):
        return QueryReading("query whose image and mask differ in size")
    return QueryReading(None, "", mask.rle, mask.box, mask.is_soft)


def usable_queries(
    queries: list[Query], readings: Iterator[QueryReading], folder: str, options: Options, findings: Findings
) -> Iterator[tuple[Query, Rle, Box]]:
    """Yield the queries that can be used, each with its mask and the box of that.

    Raises SoirError if most masks reach all four sides of their image: these are inverted.
    """
    usable = filling = 0
    for query, reading in zip(queries, readings):
        if reading.mask is None or reading.box is None:
            findings.skip(str(reading.fault), query.path, reading.detail)
            continue
        if reading.is_soft:
            findings.notice("query whose mask is soft, cut at half of its largest value", query.path)
        usable += 1
        height, width = reading.mask["size"]
        if reading.box == (0, 0, width, height):
            filling += 1
            findings.notice("query whose mask reaches all four sides of its image", query.path)
        # A new dict with the key objects of this process. Keys from a worker are other objects, which pickle would
        # write out again, so the bytes of the file would depend on --workers.
        yield query, {"size": reading.mask["size"], "counts": reading.mask["counts"]}, reading.box
    if filling > usable / 2 and not options.keep_contradictions:
        raise SoirError(
            f"{filling:,} of the {usable:,} masks of the queries of {folder} reach all four sides of their image: "
            "it looks as if they are inverted, the object black on white. Mend them, or keep them with "
            "--keep-contradictions"
        )


# ------------------------------------------------------------------------------------------------------------- gallery


def read_gallery(
    images: list[GalleryImage], folder: str, workers: int, title: str, findings: Findings
) -> Iterator[GalleryImage]:
    """Yield the images that have annotations and can be read, with their real (height, width).

    folder  where the images are; title is that of the progress bar
    The annotations of an image are emptied after it has been yielded.
    """
    annotated = []
    for image in images:
        if image.annotations:
            annotated.append(image)
        else:
            findings.skip("image without annotations", image.path)
    files = [os.path.join(folder, image.name) for image in annotated]
    with map_ordered(read_size, files, workers, title) as sizes:
        for size, image in zip(sizes, annotated):
            if isinstance(size, str):
                findings.skip("gallery image that is missing or cannot be read", image.path, size)
            elif image.size not in (size, (None, None)):
                findings.skip("gallery image whose size is not what its annotations say", image.path)
            else:
                yield image._replace(size=size)
                image.annotations.clear()  # those of OWID take 100 MB, which are free for its entries then


def read_size(path: str) -> Size | str:
    """(height, width) of an image, in a worker; if it cannot be read, the reason."""
    try:
        return whole_image_size(path)
    except OSError as error:
        return reason_of(error)


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
        "0 fine, 1 something was skipped or noticed and --strict was given, 2 the run could not be done",
    )
    add = parser.add_argument_group("input").add_argument
    text = "folder of the download, with OWID and RoboTools in it (default: the current folder)"
    add("--voxdet-root", default=".", metavar="DIR", help=text)
    add("--owid-path", default="OWID", metavar="DIR", help="folder of OWID in the root (default: OWID)")
    text = "folder of RoboTools in the root (default: RoboTools, or BOP/RoboTools if that is there instead)"
    add("--robotools-path", default="RoboTools", metavar="DIR", help=text)
    add("--skip-owid", action="store_true", help="leave the synthetic set out")
    add("--skip-robotools", action="store_true", help="leave the real set out")
    add("--max-categories", type=positive, metavar="N", help="only the first N instances of each set, for a quick try")
    text = "keep annotations whose mask reaches out of their box, and masks that look inverted; count them as noticed"
    add("--keep-contradictions", action="store_true", help=text)
    add = add_creation_options(parser)
    add("--output-file", default="anns.pt", metavar="FILE", help="annotation file to write (default: anns.pt)")
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
    as_unpacked = [part.replace("RoboTools", "BOP/RoboTools") for each in sources for part in each.needed]
    found = found or find_root(root, as_unpacked)
    if found:
        return f"It is there one level from here: try --voxdet-root {found}"
    alone = find_root(root, source.needed)
    if alone:
        path = os.path.relpath(os.path.join(alone, source.path), root)
        return f"It is there one level from here: try --{option}-path {path}"
    hint = f"Name its folders with --voxdet-root and --{option}-path"
    others_are_there = all(os.path.exists(os.path.join(root, p)) for s in sources if s != source for p in s.needed)
    return f"{hint}, or leave it out with --skip-{option}" if len(sources) > 1 and others_are_there else hint


def read_source(source: Source, args: argparse.Namespace, findings: Findings) -> Annotations:
    """The entries of a set. Raises SoirError if it has no queries, or no gallery images."""
    folder = os.path.join(args.voxdet_root, source.path)
    prefix = tidy_path(source.path) if args.relative_paths else tidy_path(folder)
    options = Options(args.max_categories, args.workers, args.keep_contradictions)
    entries = dict(source.parse(folder, prefix, options, findings))
    missing = {True, False} - {entry["is_query"] for entry in entries.values()}
    if missing and not args.max_categories:  # a few instances may well be without gallery images
        print_findings(findings)
        what = "queries" if True in missing else "gallery images"
        raise SoirError(f"{folder} has no {what} that can be used, so nothing was written")
    return entries


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
    print(f"\nwrote {args.output_file}: {in_bytes(size)} in {time.monotonic() - start:,.1f} s")
    return 1 if args.strict and findings else 0


if __name__ == "__main__":
    sys.exit(main())
