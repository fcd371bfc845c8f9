"""COCO files: read them, join them by image, and choose the annotations that can be used."""

from __future__ import annotations

import posixpath
import random
import re
from collections import Counter, defaultdict
from contextlib import suppress
from typing import Any, Iterator, NamedTuple

import numpy as np
import pycocotools.mask as coco_mask

from soir import geometry, rle
from soir.entry import Rle, is_id
from soir.files import SoirError, read_json
from soir.findings import Findings, shorten
from soir.geometry import Box, Size
from soir.paths import natural_key


class Annotation(NamedTuple):
    """An annotation of a COCO file: what it has under the keys that we use, which may be anything; None is missing.

    The rest, half of OWID's 500 MB, is dropped while the JSON is parsed; and a tuple takes a third of a dict's memory.
    """

    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    segmentation: Any = None
    num_ins: Any = None
    iscrowd: Any = None
    ignore: Any = None


# The keys of an image record that we use, and those of an annotation: some exporters give it a "file_name" too.
KEYS = {"id", "file_name", "width", "height", *Annotation._fields}


# So many image ids that several images have are an accident; more, up to 1 %, are too.
A_FEW = 3


class Coco(NamedTuple):
    """A COCO file."""

    images: list[dict[str, Any]]  # their values, too, may be anything
    annotations: list[Annotation]

    def instances(self) -> set[int]:
        return {annotation.category_id for annotation in self.annotations if is_id(annotation.category_id)}


class GalleryImage(NamedTuple):
    """A gallery image, with what its COCO file says of it."""

    path: str  # in the annotation file
    name: str  # in the folder of the gallery
    split: str
    size: Size  # (height, width), which may be (None, None) until the image has been read
    annotations: list[Annotation]


def read_coco(path: str) -> Coco:
    """Read a COCO file.

    An RLE is compressed as soon as it is parsed, since its list of run lengths takes fifty times the memory. An invalid
    RLE is replaced by the ValueError of `compress_rle`, for `read_segmentation` to raise.
    Raises SoirError if the file cannot be read, or is no COCO file.
    """

    def shrink(record: dict[str, Any]) -> Any:  # called for every object of the JSON, inner ones first
        if "annotations" in record:  # the file as a whole
            return record
        if "file_name" in record:  # an image; perhaps an annotation, see KEYS
            return {name: value for name, value in record.items() if name in KEYS}
        if "counts" in record and "category_id" not in record:
            try:
                return rle.compress_rle(record)
            except ValueError as error:
                return ValueError(str(error))  # as it was raised, it would hold what the frames of its traceback hold
        return as_annotation(record) if "image_id" in record else record

    coco = read_json(path, object_hook=shrink)
    if not isinstance(coco, dict) or not all(isinstance(coco.get(name), list) for name in Coco._fields):
        raise SoirError(f'{path} is no COCO file: expected an object with the lists "images" and "annotations"')
    images = [record if isinstance(record, dict) else {} for record in coco["images"]]
    return Coco(images, [r if isinstance(r, Annotation) else as_annotation(r) for r in coco["annotations"]])


def as_annotation(record: Any) -> Annotation:
    return Annotation(*map(record.get, Annotation._fields)) if isinstance(record, dict) else Annotation()


def join_images(files: dict[str, Coco], prefix: str, findings: Findings) -> list[GalleryImage]:
    """Join the annotations of COCO files to their images, in natural order.

    files  split -> its COCO file; an image that stands in several is of the last one's split
    Images are merged by file name: RoboTools has one image record per annotation, each with an id of its own.
    An image id that several images have is nobody's: which of them an annotation shows cannot be known.
    Raises SoirError if all images of a split stand in another one too, or more than a few image ids are nobody's.
    """
    images: dict[str, GalleryImage] = {}
    contradicted: set[str] = set()
    for split, coco in files.items():
        names: dict[int, str] = {}  # by image id
        earlier = set(images)
        owners: defaultdict[int, set[str]] = defaultdict(set)
        for record in coco.images:
            if is_id(record.get("id")) and isinstance(record.get("file_name"), str):
                owners[record["id"]].add(posixpath.normpath(record["file_name"]))
        shared = {number for number, own in owners.items() if len(own) > 1}
        if len(shared) > max(A_FEW, len(owners) // 100):
            first = min(shared)
            examples = " and ".join(map(shorten, sorted(owners[first])[:2]))
            are_shared = f"{len(shared):,} image ids of {split} are each that of several images"
            raise SoirError(f"{prefix}: {are_shared}, as {first} of {examples}: give every image an id of its own")
        for record in coco.images:
            name = record.get("file_name")
            if is_id(record.get("id")) and record["id"] in shared:
                findings.skip("image whose id another image has too", f"{prefix}: {shorten(name)}")
            elif not is_id(record.get("id")) or record["id"] in names:
                findings.skip("image record without an id of its own", f"{prefix}: {shorten(name)}")
            elif not is_safe(name):
                reason = "image whose file name is no path inside its folder"
                findings.skip(reason, f"{prefix}: {shorten(name)}")
            else:
                name = names[record["id"]] = posixpath.normpath(str(name))
                annotations = images[name].annotations if name in images else []
                size: Any = (record.get("height"), record.get("width"))
                if name in images and images[name].size != size:
                    contradicted.add(name)
                images[name] = GalleryImage(f"{prefix}/{name}", name, split, size, annotations)
        for annotation in coco.annotations:
            number = annotation.image_id
            if is_id(number) and number in shared:
                place = f"{prefix}: {split} annotation {shorten(annotation.id)}"
                findings.skip("annotation whose image id is that of several images", place)
            elif is_id(number) and number in names:
                images[names[number]].annotations.append(annotation)
            else:
                place = f"{prefix}: {split} annotation {shorten(annotation.id)}"
                findings.skip("annotation that points to no image", place)
        again = earlier.intersection(names.values())
        if again and again == set(names.values()):
            raise SoirError(
                f"{prefix}: all {len(again):,} images of {split} stand in the annotations of another split too: "
                "is one file a copy of the other? Get both again"
            )
        for name in sorted(again, key=natural_key):
            findings.notice(f"image of several splits, taken as a {split} image", images[name].path)
    for name in sorted(contradicted, key=natural_key):
        findings.skip("image whose records differ in size", images.pop(name).path)
    return [images[name] for name in sorted(images, key=natural_key)]


def is_safe(name: Any) -> bool:
    """Whether the file name of a COCO file stays inside its folder. It is somebody else's text: nothing is believed."""
    if not isinstance(name, str) or not 0 < len(name) < 1024 or name.startswith("/") or ".." in name.split("/"):
        return False
    return not re.search(r"[\\:\0]", name)  # a Windows path, a drive, the end of a C string


class GalleryObject(NamedTuple):
    """An annotation that can be used."""

    instance: int
    box: Box  # inside the image
    mask: Rle | None  # None in a set without masks
    num_ins: int


# A reading explains the annotations that contradict themselves if more than this share of them makes sense in it; it is
# named in the message if more than this share does.
EXPLAINED = 0.9
LIKELY = 0.5


class Contradictions:
    """The annotations of a set that contradict themselves. If they are many, the whole set may be meant otherwise."""

    def __init__(self, are_kept: bool) -> None:
        self.are_kept = are_kept  # --keep-contradictions
        self.annotations = 0  # of the set, all
        self.are_corners = True  # whether each bbox so far could be [x1, y1, x2, y2]
        self.tiny: list[Annotation] = []  # those under one pixel wide or high
        # With the (height, width) of the image: whose mask reaches out of its box; whose box is far too large, or
        # reaches out of the image.
        self.reaching: list[tuple[Annotation, Size]] = []
        self.loose: list[tuple[Annotation, Size]] = []

    def stop_if_misread(self, place: str) -> None:
        """Raise SoirError if so many annotations contradict themselves that their format must be another one.

        place  the folder of the set
        """
        half = self.annotations / 2
        if len(self.tiny) > half and all(geometry.is_in_shares(annotation.bbox) for annotation in self.tiny):
            raise geometry.shares_error(f"{len(self.tiny):,} of the {self.annotations:,} boxes of {place}")
        if self.are_kept:
            return
        suspects = self.reaching + self.loose
        meaning, share = likely_meaning(suspects)
        most_are_impossible = len(self.reaching) > half
        most_are_explained = len(suspects) > half and share > EXPLAINED
        all_are_corners = (
            self.are_corners and "corners" in meaning and len(self.loose) > geometry.MISFITS * self.annotations
        )
        if most_are_impossible or most_are_explained or all_are_corners:
            looks = f"it looks as if {meaning}" if share > LIKELY else "none of the usual mistakes explains it"
            raise SoirError(
                f"{len(suspects):,} of the {self.annotations:,} annotations of {place} contradict themselves, mask "
                f"against box or box against image: {looks}. Mend the file, or keep them with --keep-contradictions"
            )


def usable_objects(
    image: GalleryImage, has_masks: bool, wanted: set[int] | None, contradictions: Contradictions, findings: Findings
) -> list[GalleryObject]:
    """The annotations of an image that can be used; `wanted` are the instances to keep, None for all."""
    objects: dict[tuple[int, Box], GalleryObject] = {}
    for annotation in image.annotations:
        instance: Any = annotation.category_id
        if annotation.iscrowd:
            findings.skip("annotation of a region, not of an instance (iscrowd)", image.path)
            continue
        if not is_id(instance):
            findings.skip("annotation without an instance id", image.path)
            continue
        if wanted is not None and instance not in wanted:
            continue
        box = usable_box(annotation, image, contradictions, findings)
        if box is None:
            continue
        mask = None
        if has_masks:
            try:
                mask, mask_box = rle.read_segmentation(annotation.segmentation, image.size)
            except ValueError as error:
                if is_in_shares(annotation.segmentation):  # such polygons show no pixel
                    contradictions.reaching.append((annotation, image.size))
                findings.skip(f"annotation without a usable mask ({error})", image.path)
                continue
        if (instance, box) in objects:
            findings.skip("annotation that occurs twice", image.path)
            continue
        contradiction = geometry.contradiction(mask_box, box) if mask else ""
        if contradiction == "reaching":
            contradictions.reaching.append((annotation, image.size))
            if not contradictions.are_kept:
                findings.skip("annotation whose mask reaches out of its box", image.path)
                continue
            findings.notice("annotation whose mask reaches out of its box, kept", image.path)
        elif contradiction == "loose":
            contradictions.loose.append((annotation, image.size))
            findings.notice("annotation whose box is far larger than its mask", image.path)
        if annotation.ignore:
            findings.notice("annotation that says ignore, kept", image.path)
        num_ins = annotation.num_ins
        if not is_id(num_ins) or num_ins == 0:
            if num_ins is not None:
                findings.notice("annotation whose num_ins is no positive integer, counted anew", image.path)
            num_ins = len(image.annotations)
        objects[instance, box] = GalleryObject(instance, box, mask, num_ins)
    return list(objects.values())


def is_in_shares(segmentation: Any) -> bool:
    """Whether a segmentation is polygons whose numbers all lie within 0..1, and are no pixels of 0 and 1."""
    if not isinstance(segmentation, list) or not all(isinstance(p, list) and len(p) > 5 for p in segmentation):
        return False
    numbers = [number for polygon in segmentation for number in polygon]
    return all(type(number) in (int, float) for number in numbers) and (
        float in map(type, numbers) and geometry.is_in_shares(numbers)
    )


def usable_box(
    annotation: Annotation, image: GalleryImage, contradictions: Contradictions, findings: Findings
) -> Box | None:
    """The box of an annotation, half-open and inside its image."""
    bbox = annotation.bbox
    box = geometry.xyxy_of(bbox)
    contradictions.annotations += 1
    contradictions.are_corners = contradictions.are_corners and geometry.is_box(bbox) and is_inside(bbox, image.size)
    if box is None:
        findings.skip("annotation without a box of positive size", image.path)
        return None
    inside = geometry.clip(box, image.size)
    if inside is None:
        contradictions.loose.append((annotation, image.size))
        findings.skip("annotation whose box lies outside of its image", image.path)
        return None
    if geometry.is_below_pixel(inside):
        contradictions.tiny.append(annotation)
        findings.skip("annotation whose box is less than a pixel wide or high", image.path)
        return None
    if inside != box:
        contradictions.loose.append((annotation, image.size))
        findings.notice("annotation whose box reaches out of its image, clipped", image.path)
    return inside


def likely_meaning(suspects: list[tuple[Annotation, Size]]) -> tuple[str, float]:
    """(what the annotations may mean instead, the share of them that then makes sense); a sample of them will do."""
    sample = random.Random(0).sample(suspects, min(len(suspects), 200))
    fits = Counter(meaning for annotation, size in sample for meaning in possible_meanings(annotation, size))
    return max(((meaning, count / len(sample)) for meaning, count in fits.items()), default=("", 0), key=lambda m: m[1])


def possible_meanings(annotation: Annotation, size: Size) -> Iterator[str]:
    """Yield the readings in which an annotation of an image of (height, width) does not contradict itself."""
    bbox, box = annotation.bbox, geometry.xyxy_of(annotation.bbox)
    segmentation = annotation.segmentation
    mask = None
    with suppress(ValueError):
        mask = coco_mask.decode(rle.read_segmentation(segmentation, size)[0])
    if geometry.is_box(bbox) and agree(bbox, mask, size):
        yield "boxes are corners [x1, y1, x2, y2], where [x, y, width, height] is due"
    if box is not None and isinstance(segmentation, list):
        height, width = size
        with suppress(ValueError, TypeError):
            scaled = [[v * (height if i % 2 else width) for i, v in enumerate(polygon)] for polygon in segmentation]
            if agree(box, coco_mask.decode(rle.draw_polygons(scaled, size)), size):
                yield "polygons are shares of the image, where pixels are due"
    elif box is not None and mask is not None:
        turned = mask.ravel(order="F").reshape(size)
        for meaning, other in (
            ("masks are row-major, where column-major is due", turned),
            ("masks are inverted: run lengths without their leading 0", 1 - mask),
            ("masks are row-major and inverted, where column-major is due, background first", 1 - turned),
        ):
            if agree(box, other, size):
                yield meaning


def agree(box: Any, mask: np.ndarray | None, size: Size) -> bool:
    """Whether a box lies in its image and does not contradict the box of its mask, if there is a mask.

    box   (x1, y1, x2, y2), half-open
    mask  uint8 [height, width], or None
    """
    if not is_inside(box, size):
        return False
    if mask is None:
        return True
    (mask_box,) = rle.boxes_of_masks([coco_mask.encode(np.asfortranarray(mask))])
    return mask_box is not None and not geometry.contradiction(mask_box, box)


def is_inside(box: Any, size: Size) -> bool:
    return geometry.reach(box, (0, 0, size[1], size[0])) <= geometry.TOLERANCE
