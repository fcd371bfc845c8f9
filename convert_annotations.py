"""Convert an annotation file: from any form to the current one, to a part of it, to other paths, or to COCO.

In   an annotation file (anns.pt) of any form that soir/forms.py knows, one's own or a stranger's: nothing in it is run
Out  with --output-file an annotation file in the current form, which verify_dataset.py passes; with --coco a COCO file

    python convert_annotations.py --ann-file old.pt --output-file anns.pt
    python convert_annotations.py --ann-file anns.pt --output-file val.pt --set OWID --split val --instances 5 17
    python convert_annotations.py --ann-file anns.pt --output-file here.pt --replace-prefix /data/VoxDet sample/VoxDet
    python convert_annotations.py --ann-file anns.pt --coco gallery.json --base-path sample/VoxDet

Errors that verify_dataset.py would report are skipped and counted: of a gallery image with a wrong mask, only that
object is skipped, otherwise the whole entry. Queries with an empty mask are skipped too, as in create_dataset.py.

Exit status: 0 fine, 1 something was skipped or noticed and --strict was given, 2 the run could not be done.
"""

from __future__ import annotations

import soir.startup  # noqa: F401

import argparse
import json
import os
import sys
from collections import defaultdict
from itertools import compress
from typing import Any, Iterator

import pycocotools.mask as coco_mask

from soir import geometry, rle, rules
from soir.console import absolute_base, add_input_options, exit_status, instance_id, make_parser, positive
from soir.entry import SPLITS, Annotations, Entry, Rle, boxes_of, instances_of, is_meant, masks_of, save_annotations
from soir.files import SoirError, check_no_image, check_outputs, whole_file
from soir.findings import Findings, counted, in_bytes, print_findings, progress_bar, shorten
from soir.forms import SizeFinder, load_any_form, size_finder, size_of_image
from soir.geometry import EntryBox, Size
from soir.paths import natural_key, tidy_path
from soir.rle import MaskReading
from soir.statistics import print_summary

# Characters that the names of categories may take from those of sets, each of which all of its instances repeat.
MAX_NAMES = 50_000_000


def refuse_loss(path: str, before: Annotations, after: Annotations, findings: Findings) -> None:
    """Print the findings and raise SoirError if no query, no gallery image or no entry is left of those before."""
    lost = roles_of(before) - roles_of(after)
    if lost or not after:
        what = "query" if True in lost else "gallery image" if lost else "entry"
        print_findings(findings)
        raise SoirError(f"no {what} of {path} can be used, so nothing was written: see verify_dataset.py")


def roles_of(annotations: Annotations) -> set[bool]:
    """The values of is_query that entries, which may be anything, have."""
    values = (entry.get("is_query") for entry in annotations.values() if isinstance(entry, dict))
    return {value for value in values if type(value) is bool}


def keep_sound(annotations: Annotations, empty_queries: set[str], findings: Findings) -> Annotations:
    """The entries that break no rule; `keep_sound_masks` checks masks. Entries left out are added to the findings.

    empty_queries  paths of the queries whose mask is empty in the file
    """
    sound = {}
    for path, entry in annotations.items():
        check = next((check for check, _ in rules.entry_faults(path, entry)), None)
        if check:
            findings.skip(f"entry with an error ({check}, see verify_dataset.py)", shorten(path))
        elif path in empty_queries:
            findings.skip("query with an empty mask", path)
        else:
            sound[path] = entry
    return sound


def keep_sound_masks(annotations: Annotations, findings: Findings) -> Annotations:
    """The entries without the objects whose masks break a rule, and without the entries that have no other object."""
    sound = {}
    readings = rle.examine_masks(mask for entry in annotations.values() for mask in masks_of(entry))
    for path, entry in progress_bar("masks", annotations.items()):
        own = [next(readings) for _ in masks_of(entry)]
        errors = [error_of_mask(reading, box, entry["is_query"]) for reading, box in zip(own, boxes_of(entry))]
        for error in filter(None, errors):
            findings.skip(f"{'query' if entry['is_query'] else 'object'} {error}", path)
        sizes = {reading.size for reading in own if reading.size}
        if len(sizes) > 1:
            findings.skip("gallery image whose masks differ in size", path)
        elif sizes and any(rules.extent_errors(entry, sizes.pop())):
            findings.skip("entry with an error (box-outside, see verify_dataset.py)", path)
        elif not any(errors):
            sound[path] = entry
        elif not all(errors):
            sound[path] = keep_objects(entry, [not error for error in errors])
    return sound


def error_of_mask(reading: MaskReading, box: EntryBox, is_query: bool) -> str:
    """Why the mask of an object cannot be kept; "" if it can."""
    if not reading.error and not reading.size:
        return "whose mask is polygons, of an image that is not there to say how large it is (--base-path?)"
    for check, _ in rules.mask_errors(reading, box, is_query):
        if check != "gallery-box-loose":
            return f"whose mask has an error ({check}, see verify_dataset.py)"
    return ""


def keep_objects(entry: Entry, are_kept: list[bool]) -> Entry:
    """A gallery image with some of its objects only."""
    lists = {field: entry[field] for field in ("bbox", "mask", "ins", "num_ins") if entry.get(field)}
    return {**entry, **{field: list(compress(values, are_kept)) for field, values in lists.items()}}


def choose(annotations: Annotations, args: argparse.Namespace, findings: Findings) -> Annotations:
    """The entries that --set, --split, --instances and --max-queries ask for. Raises SoirError if there are none."""
    chosen = annotations
    if args.set is not None:
        chosen = {path: entry for path, entry in chosen.items() if is_meant(entry["set"], args.set)}
        if not chosen:
            there = ", ".join(sorted({shorten(entry["set"]) or "(no name)" for entry in annotations.values()})[:20])
            raise SoirError(f"{args.ann_file} has no set {args.set}; its sets: {there}")
    if args.split is not None:
        chosen = {path: entry for path, entry in chosen.items() if entry.get("split") == args.split}
        if not chosen:
            raise SoirError(f"{args.ann_file} has no entry of the split {args.split} that is asked for")
    if args.instances is not None:
        chosen = keep_instances(chosen, set(args.instances), findings)
        if not chosen:
            raise SoirError(f"{args.ann_file} shows none of the instances that are asked for")
    if args.max_queries is not None:
        chosen = thin_queries(chosen, args.max_queries)
    return chosen


def keep_instances(annotations: Annotations, wanted: set[int], findings: Findings) -> Annotations:
    """The queries and objects of some instances, as --max-categories of create_dataset.py leaves them."""
    chosen, seen = {}, set()
    for path, entry in annotations.items():
        shown = instances_of(entry)
        left = [instance for instance in shown if instance in wanted]
        seen.update(left)
        if left == shown and shown:
            chosen[path] = entry
        elif left and entry["is_query"]:
            chosen[path] = {**entry, "ins": left if len(left) > 1 else left[0]}
        elif left:
            chosen[path] = keep_objects(entry, [instance in wanted for instance in shown])
    for instance in sorted(wanted - seen):
        findings.notice("instance that is asked for, and nowhere shown", str(instance))
    return chosen


def thin_queries(annotations: Annotations, number: int) -> Annotations:
    """At most so many queries of each instance: evenly spread over its frames, which are in natural order."""
    frames: defaultdict[tuple[Any, ...], list[str]] = defaultdict(list)
    for path, entry in annotations.items():
        if entry["is_query"]:
            frames[(entry["set"], *instances_of(entry))].append(path)
    kept: set[str] = set()
    for paths in frames.values():
        paths.sort(key=natural_key)
        count = min(number, len(paths))
        kept.update(paths[index * len(paths) // count] for index in range(count))
    return {path: entry for path, entry in annotations.items() if not entry["is_query"] or path in kept}


def move(path: str, old: str, new: str) -> str | None:
    """A path with its prefix, a folder, replaced; None if it lacks the prefix. /data/Vox is no prefix of /data/VoxDet.

    old, new  the prefix and what to put in its place; either may be empty
    """
    stem = old.rstrip("/") + "/" if old else ""
    if not path.startswith(stem) or (not stem and os.path.isabs(path)):
        return None
    return tidy_path(new, path[len(stem) :].lstrip("/"))


def replace_prefix(annotations: Annotations, findings: Findings, old: str, new: str) -> Annotations:
    """The entries under their new paths. Raises SoirError if no path starts with the prefix."""
    rebased: Annotations = {}
    others = []
    for path, entry in annotations.items():
        moved = move(path, old, new)
        if moved is None:
            others.append(path)
            moved = path
        if moved in rebased:
            findings.skip("image whose new path is that of another", path)
        else:
            rebased[moved] = entry
    if len(others) == len(annotations):
        raise SoirError(f"no path starts with the folder {old}: one is {shorten(others[0])}")
    for path in others:
        findings.notice("path without the prefix, kept as it is", path)
    return rebased


def write_coco(path: str, annotations: Annotations, find_size: SizeFinder, findings: Findings) -> tuple[int, int]:
    """Write a COCO file, one record per line. Returns the numbers of images and annotations in it.

    Format: https://cocodataset.org/#format-data, with `is_query`, `split`, `set` and `obj_name` as further keys of
    images and annotations. FiftyOne's importer, for one, reads such keys as attributes. An object without a mask has an
    empty `segmentation`, as in box-only COCO files.
    Raises SoirError if the file cannot be written.
    """
    shown = {(entry["set"], i) for entry in annotations.values() for i in instances_of(entry)}
    if sum(len(name) for name, _ in shown) > MAX_NAMES:
        raise SoirError(f"the names of sets are too long for --coco: the {len(shown):,} categories repeat them")
    names = {category_of(*key): key for key in shown}
    categories = {name: number for number, name in enumerate(sorted(names, key=natural_key), start=1)}
    records = coco_records(annotations, categories, find_size, findings)
    images = 0
    objects: list[str] = []
    with whole_file(path) as file:
        head = {"info": {"description": "converted by convert_annotations.py of the VoxDet-SoIR tools"}, "licenses": []}
        kinds = [{"id": n, "name": name, "supercategory": names[name][0]} for name, n in categories.items()]
        file.write(f'{json.dumps(head)[:-1]}, "categories": {json.dumps(kinds)},\n"images": ['.encode())
        for image, own in records:
            file.write(f"{',' if images else ''}\n{json.dumps(image)}".encode())
            images += 1
            objects += map(json.dumps, own)
        file.write(b'\n],\n"annotations": [')
        for number, text in enumerate(objects):
            file.write(f"{',' if number else ''}\n{text}".encode())
        file.write(b"\n]}\n")
    return images, len(objects)


def coco_records(
    annotations: Annotations, categories: dict[str, int], find_size: SizeFinder, findings: Findings
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yield (image, annotations) of every image whose size is known, from a mask or from its header."""
    image_number = number = 0
    for path, entry in annotations.items():
        size = size_of_image(path, entry, find_size)
        if size is None:
            findings.skip("image that is not there to say how large it is, left out of COCO (--base-path?)", path)
            continue
        image_number += 1
        extra = {key: entry[key] for key in ("is_query", "split", "set", "obj_name") if entry.get(key) is not None}
        height, width = size
        image = {"id": image_number, "file_name": path, "width": width, "height": height, **extra}
        own = []
        for instance, box, mask in shown_objects(entry):
            number += 1
            x1, y1, x2, y2 = geometry.in_pixels(box, size)
            record = {
                "id": number,
                "image_id": image_number,
                "category_id": categories[category_of(entry["set"], instance)],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": int(coco_mask.area(mask)) if mask else geometry.area((x1, y1, x2, y2)),
                "segmentation": mask or [],
                "iscrowd": 0,
            }
            own.append({**record, **extra})
        yield image, own


def shown_objects(entry: Entry) -> Iterator[tuple[int, EntryBox, Rle | None]]:
    """Yield (instance, box, mask) of every object; a query of several instances shows all of them in its one box."""
    instances, boxes, masks = instances_of(entry), boxes_of(entry), masks_of(entry)
    if entry["is_query"]:
        boxes, masks = boxes * len(instances), masks * len(instances)
    yield from zip(instances, boxes, masks or [None] * len(instances))


def category_of(set_name: str, instance: int) -> str:
    """The name of an instance, OWID/5; without a set, 5."""
    return f"{set_name}/{instance}" if set_name else str(instance)


def json_name(text: str) -> str:
    """A type for argparse: the name of a COCO file."""
    if not text.lower().endswith(".json"):
        raise argparse.ArgumentTypeError(f"expected a name that ends in .json, found {text}")
    return text


def parse_args() -> argparse.Namespace:
    parser = make_parser(
        "Convert an annotation file of any form to the current one, to a part of it, to other paths, or to COCO.",
        "0 fine, 1 something was skipped or noticed and --strict was given, 2 the run could not be done",
    )
    add_input_options(parser)
    add = parser.add_argument_group("what is kept").add_argument
    add("--set", metavar="NAME", help="only the entries of this set, in upper or lower case")
    add("--split", choices=SPLITS, help="only the entries of this split")
    text = "only queries and objects of these instances, and images that show one of them"
    add("--instances", nargs="+", type=instance_id, metavar="ID", help=text)
    add("--max-queries", type=positive, metavar="N", help="at most N queries of each instance, spread over its frames")
    add = parser.add_argument_group("output").add_argument
    add("--output-file", metavar="FILE", help="annotation file to write")
    text = "COCO file to write: every image, its boxes and masks, and one category per instance (OWID/5)"
    add("--coco", type=json_name, metavar="FILE.json", help=text)
    text = "replace the folder that image paths start with; an empty OLD stands for every relative path"
    add("--replace-prefix", nargs=2, metavar=("OLD", "NEW"), help=text)
    add = parser.add_argument_group("run").add_argument
    add("--strict", action="store_true", help="exit with 1 if anything was skipped or noticed")
    args = parser.parse_args()
    if args.output_file is None and args.coco is None:
        parser.error("nothing to do: name what to write with --output-file, or --coco, or both")
    return args


@exit_status()
def main() -> int:
    args = parse_args()
    check_outputs([args.output_file, args.coco], [args.ann_file])
    base_path = absolute_base(args.base_path)
    find_size = size_finder(base_path)
    findings = Findings()

    def find_here_or_there(path: str) -> Size | None:  # under its old path, or under that of --replace-prefix
        moved = move(path, *args.replace_prefix) if args.replace_prefix else None
        return find_size(path) or (find_size(moved) if moved else None)

    upgraded, empty_queries = Findings(), set()

    def note(check: str, path: Any, detail: str) -> None:
        upgraded.notice(f"{check}: {rules.CHECKS[check][1]}", shorten(path))
        if check == "query-mask-empty":
            empty_queries.add(path)

    entries = load_any_form(args.ann_file, find_here_or_there, note)
    if not entries:
        raise SoirError(f"{args.ann_file} holds no entries, so there is nothing to convert")
    check_no_image([args.output_file, args.coco], entries, base_path)
    sound = keep_sound(entries, empty_queries, findings)
    refuse_loss(args.ann_file, entries, sound, findings)
    chosen = choose(sound, args, findings)
    annotations = keep_sound_masks(chosen, findings)
    refuse_loss(args.ann_file, chosen, annotations, findings)
    if args.replace_prefix:
        annotations = replace_prefix(annotations, findings, *args.replace_prefix)

    written = []
    if args.output_file:
        size = save_annotations(annotations, args.output_file)
        written.append(f"{args.output_file}: {counted(len(annotations), 'entry')}, {in_bytes(size)}")
    if args.coco:
        images, objects = write_coco(args.coco, annotations, find_size, findings)
        written.append(f"{args.coco}: {counted(images, 'image')}, {counted(objects, 'annotation')}")
    print_summary(annotations)
    print_findings(upgraded, noticed="upgraded")
    print_findings(findings)
    print()
    for line in written:
        print(f"wrote {line}")
    return 1 if args.strict and findings else 0


if __name__ == "__main__":
    sys.exit(main())
