"""Build the VoxDet-SoIR annotation file from a VoxDet download.

In   <voxdet-root>/OWID        synthetic: P1 has the queries, P2 the gallery of the train and val splits
     <voxdet-root>/RoboTools   real: test_video has the queries, test the gallery of the test split
Out  anns.pt                   one dict, image path -> entry (see `query_entry` and `gallery_entry` in soir/entry.py)

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
from typing import Callable, Iterator, NamedTuple

from soir.coco import Contradictions, GalleryImage, GalleryObject, join_images, read_coco, usable_objects
from soir.console import add_creation_options, exit_status, make_parser, positive
from soir.entry import SETS, Annotations, Entry, Rle, gallery_entry, query_entry, save_annotations
from soir.files import SoirError, check_outputs, reason_of
from soir.findings import Findings, in_bytes, print_findings
from soir.geometry import Box, Size
from soir.images import IMAGE_ENDINGS, image_names, one_per_stem, whole_image_size
from soir.mask_images import ImageMask, read_mask_image
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


class Unusable(NamedTuple):
    """Why an image is left out."""

    reason: str
    detail: str = ""  # what the decoder said


def parse_owid(folder: str, prefix: str, options: Options, findings: Findings) -> Iterator[tuple[str, Entry]]:
    """Yield (image path, entry) for OWID: its queries, then its gallery images, each in natural order.

    folder    the OWID folder, with P1 and P2 in it
    prefix    what stands for that folder in the image paths
    findings  what is left out, or odd, is added to it
    Raises SoirError if a file of the layout is missing or cannot be read, or if most annotations contradict themselves.
    """
    p1, p2 = os.path.join(folder, "P1"), os.path.join(folder, "P2")
    instances = find_instances(p1, tidy_path(prefix, "P1"), options.max_instances, findings)
    queries = pair_queries(instances, findings)
    with map_ordered(read_query, queries, options.workers, "OWID queries") as readings:
        # The workers read masks while the JSON is parsed here.
        train = read_coco(os.path.join(p2, "train_annotations.json"))
        val = read_coco(os.path.join(p2, "val_annotations.json"))
        # Both files count ids from 0, so each is joined by itself; val comes last, since an image that shows a val
        # instance is a val image.
        images = join_images({"train": train, "val": val}, tidy_path(prefix, "P2"), findings)
        val_instances = val.instances()
        for instance in sorted(val_instances & train.instances()):
            findings.notice("instance of both splits, its queries are of val", f"{prefix}: instance {instance}")
        del train, val
        for query, mask, box in usable_queries(queries, readings, folder, options, findings):
            split = "val" if query.instance.number in val_instances else "train"
            yield query.path, query_entry(box, mask, query.instance.number, "OWID", split)
    for image, objects in read_gallery(images, p2, "OWID", instances, options, findings):
        ids, boxes, masks, num_ins = map(list, zip(*objects))  # the fields of GalleryObject
        yield image.path, gallery_entry(boxes, masks, ids, "OWID", image.split, num_ins)


def parse_robotools(folder: str, prefix: str, options: Options, findings: Findings) -> Iterator[tuple[str, Entry]]:
    """Yield (image path, entry) for RoboTools, or for a test set in its layout; see `parse_owid`."""
    video, test = os.path.join(folder, "test_video"), os.path.join(folder, "test")
    instances = find_instances(video, tidy_path(prefix, "test_video"), options.max_instances, findings)
    queries = pair_queries(instances, findings)
    with map_ordered(read_query, queries, options.workers, "RoboTools queries") as readings:
        coco = read_coco(os.path.join(test, "scene_gt_coco_all.json"))
        images = join_images({"test": coco}, tidy_path(prefix, "test"), findings)
        for query, mask, box in usable_queries(queries, readings, folder, options, findings):
            yield query.path, query_entry(box, mask, query.instance.number, "RoboTools", "test")
    for image, objects in read_gallery(images, test, "RoboTools", instances, options, findings):
        ids, boxes, _, _ = map(list, zip(*objects))
        yield image.path, gallery_entry(boxes, [], ids, "RoboTools", "test")


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


def read_query(query: Query) -> ImageMask | Unusable:
    """Read the mask of a query, in a worker, and look whether its image is whole and of the same size."""
    try:
        size = whole_image_size(f"{query.instance.folder}/rgb/{query.image}")
    except OSError as error:
        return Unusable("query whose image cannot be read", reason_of(error))
    try:
        mask = read_mask_image(f"{query.instance.folder}/mask/{query.mask}")
    except OSError as error:
        return Unusable("query whose mask cannot be read", reason_of(error))
    except ValueError as error:
        return Unusable(str(error))
    if mask is None:
        return Unusable("query with an empty mask")
    if mask.rle["size"] != list(size):
        return Unusable("query whose image and mask differ in size")
    return mask


def usable_queries(
    queries: list[Query], masks: Iterator[ImageMask | Unusable], folder: str, options: Options, findings: Findings
) -> Iterator[tuple[Query, Rle, Box]]:
    """Yield the queries that can be used, each with its mask and the box of that.

    Raises SoirError if most masks reach all four sides of their image: these are inverted.
    """
    usable = filling = 0
    for query, mask in zip(queries, masks):
        if isinstance(mask, Unusable):
            findings.skip(mask.reason, query.path, mask.detail)
            continue
        if mask.is_soft:
            findings.notice("query whose mask is soft, cut at half of its largest value", query.path)
        usable += 1
        height, width = mask.rle["size"]
        if mask.box == (0, 0, width, height):
            filling += 1
            findings.notice("query whose mask reaches all four sides of its image", query.path)
        # A new dict with the key objects of this process. Keys from a worker are other objects, which pickle would
        # write out again, so the bytes of the file would depend on --workers.
        yield query, {"size": mask.rle["size"], "counts": mask.rle["counts"]}, mask.box
    if filling > usable / 2 and not options.keep_contradictions:
        raise SoirError(
            f"{filling:,} of the {usable:,} masks of the queries of {folder} reach all four sides of their image: "
            "it looks as if they are inverted, the object black on white. Mend them, or keep them with "
            "--keep-contradictions"
        )


def read_gallery(
    images: list[GalleryImage], folder: str, name: str, instances: list[Instance], options: Options, findings: Findings
) -> Iterator[tuple[GalleryImage, list[GalleryObject]]]:
    """Yield the images that can be read and have annotations that can be used, with these.

    folder     where the images are
    name       of the set
    instances  those to keep, if the command line limits them
    The annotations of an image are emptied after it has been yielded.
    Raises SoirError if so many annotations contradict themselves that they must be meant otherwise.
    """
    annotated = []
    for image in images:
        if image.annotations:
            annotated.append(image)
        else:
            findings.skip("image without annotations", image.path)
    files = [os.path.join(folder, image.name) for image in annotated]
    wanted = {instance.number for instance in instances} if options.max_instances else None
    contradictions = Contradictions(options.keep_contradictions)
    with map_ordered(read_size, files, options.workers, f"{name} gallery") as sizes:
        for size, image in zip(sizes, annotated):
            if isinstance(size, str):
                findings.skip("gallery image that is missing or cannot be read", image.path, size)
            elif image.size not in (size, (None, None)):
                findings.skip("gallery image whose size is not what its annotations say", image.path)
            else:
                image = image._replace(size=size)
                objects = usable_objects(image, SETS[name].gallery_masks, wanted, contradictions, findings)
                if objects:
                    yield image, objects
                image.annotations.clear()  # those of OWID take 100 MB, which are free for its entries then
    contradictions.stop_if_misread(folder)


def read_size(path: str) -> Size | str:
    """(height, width) of an image, in a worker; if it cannot be read, the reason."""
    try:
        return whole_image_size(path)
    except OSError as error:
        return reason_of(error)


class Layout(NamedTuple):
    """Where one of the two sets lies in the download."""

    name: str
    path: str  # in the root
    parts: tuple[str, ...]  # what must be there, in its path
    parse: Callable[..., Iterator[tuple[str, Entry]]]

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


def find_layouts(args: argparse.Namespace) -> list[Layout]:
    """List the sets to read. Raises SoirError if a part of one is missing."""
    root, robotools = args.voxdet_root, args.robotools_path
    is_there, as_unpacked = (os.path.isdir(os.path.join(root, path)) for path in ("RoboTools", "BOP/RoboTools"))
    if robotools == "RoboTools" and as_unpacked and not is_there:
        robotools = "BOP/RoboTools"  # where VoxDet's own README unpacks it
    layouts = []
    if not args.skip_owid:
        parts: tuple[str, ...] = ("P1", "P2/train_annotations.json", "P2/val_annotations.json")
        layouts.append(Layout("OWID", args.owid_path, parts, parse_owid))
    if not args.skip_robotools:
        parts = ("test_video", "test/scene_gt_coco_all.json")
        layouts.append(Layout("RoboTools", robotools, parts, parse_robotools))
    if not layouts:
        raise SoirError("nothing to do: --skip-owid and --skip-robotools are both given; leave one out")
    if not os.path.isdir(root):
        raise SoirError(f"--voxdet-root {root} is no folder: name the folder of the download")
    for layout in layouts:
        path = layout.path
        if args.relative_paths and (os.path.isabs(path) or ".." in re.split(r"[/\\]", path)):
            raise SoirError(f"--relative-paths needs --{layout.name.lower()}-path inside --voxdet-root, found {path}")
        missing = [part for part in layout.needed if not os.path.exists(os.path.join(root, part))]
        if missing:
            expected, hint = os.path.join(root, missing[0]), hint_at(root, layout, layouts)
            raise SoirError(f"{layout.name} is not complete: expected {expected}, which is not there. {hint}")
    return layouts


def hint_at(root: str, layout: Layout, layouts: list[Layout]) -> str:
    """What to do about a set that is not complete."""
    option = layout.name.lower()
    needed = [part for each in layouts for part in each.needed]
    found = find_root(root, needed) or find_root(root, [p.replace("RoboTools", "BOP/RoboTools") for p in needed])
    if found:
        return f"Found at {found}: try --voxdet-root {found}"
    alone = find_root(root, layout.needed)
    if alone:
        path = os.path.relpath(os.path.join(alone, layout.path), root)
        return f"Found at {path}: try --{option}-path {path}"
    hint = f"Name its folders with --voxdet-root and --{option}-path"
    others = [part for part in needed if part not in layout.needed]
    can_do_without = others and all(os.path.exists(os.path.join(root, part)) for part in others)
    return f"{hint}, or leave it out with --skip-{option}" if can_do_without else hint


def read_set(layout: Layout, args: argparse.Namespace, findings: Findings) -> Annotations:
    """The entries of a set. Raises SoirError if it has no queries, or no gallery images."""
    folder = os.path.join(args.voxdet_root, layout.path)
    prefix = tidy_path(layout.path) if args.relative_paths else tidy_path(folder)
    options = Options(args.max_categories, args.workers, args.keep_contradictions)
    entries = dict(layout.parse(folder, prefix, options, findings))
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
    for layout in find_layouts(args):
        annotations.update(read_set(layout, args, findings))
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
