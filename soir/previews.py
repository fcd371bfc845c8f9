"""Previews: the pictures of verify_dataset.py, of instances, and of evaluate_retrieval.py, of rankings."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from PIL import Image

from soir import drawing, geometry, rle
from soir.drawing import Tile, open_photograph, short_names
from soir.entry import Annotations, Entry, boxes_of_instance, instances_of, is_meant, masks_of, set_of
from soir.files import SoirError
from soir.geometry import Box, Size
from soir.protocol import Ranking, Task, boxes_in_pixels, name_of_instances, shown_of
from soir.statistics import MAX_SETS, by_set, label_of


class Choice(NamedTuple):
    """What the command line wants to see in the preview."""

    set_name: str | None  # in any case; None for all sets
    instances: list[int] | None  # None for some of each set
    most: int  # instances of each set, where none are named
    queries: int  # per instance
    gallery: int  # gallery images per instance
    order: str  # of instances and of gallery images: "random", "smallest" or "id"


def draw_instances(
    entries: Annotations, sizes: dict[str, Size], base_path: str | None, choice: Choice
) -> list[Image.Image]:
    """Pages with one row per instance: queries with mask and box, then gallery images that show the instance, each
    with a zoom. An empty list if no instance has both a query and a gallery image.

    sizes  (height, width) of the images, as far as they are known
    Raises SoirError if no image can be read.
    """
    rows = []
    for name, (queries, gallery) in list(by_set(entries).items())[:MAX_SETS]:
        if not is_meant(name, choice.set_name):
            continue
        queries_of, gallery_of = group_by_instance(queries), group_by_instance(gallery)
        both = sorted(queries_of.keys() & gallery_of.keys())
        shares = {}  # the smallest that a box of the instance covers, in %; infinite if nobody knows
        for instance in both:
            for path in gallery_of[instance]:
                boxes = boxes_of_instance(gallery[path], instance) if path in sizes else []
                shares[path, instance] = min((geometry.share(box, sizes[path]) for box in boxes), default=math.inf)
        for instance in instances_to_draw(both, gallery_of, shares, choice):
            rng = random.Random(instance)
            shown_queries = rng.sample(queries_of[instance], min(choice.queries, len(queries_of[instance])))
            paths = list(gallery_of[instance])
            if choice.order == "random":
                rng.shuffle(paths)
            elif choice.order == "smallest":
                paths.sort(key=lambda path: shares[path, instance])
            paths = paths[: choice.gallery]
            names = short_names([*shown_queries, *paths])
            tiles: list[Tile] = []
            for path, short in names.items():
                tiles += entry_tiles(path, short, entries[path], instance, base_path)
            rows.append((f"{label_of(name)}, instance {instance}", tiles))
    if rows and not any(tile.image for _, tiles in rows for tile in tiles):
        raise SoirError("no image of the preview can be read: name the folder that their paths start at, --base-path")
    return drawing.lay_out(rows)


def group_by_instance(entries: Annotations) -> dict[int, list[str]]:
    """Instance -> paths of the entries that show it."""
    paths = defaultdict(list)
    for path, entry in entries.items():
        for instance in dict.fromkeys(instances_of(entry)):
            paths[instance].append(path)
    return paths


def instances_to_draw(
    instances: list[int], gallery_of: dict[int, list[str]], shares: dict[tuple[str, int], float], choice: Choice
) -> list[int]:
    """The instances to draw, of those of a set that have queries and gallery images."""
    if choice.instances is not None:
        return [instance for instance in choice.instances if instance in set(instances)]
    if choice.order == "id":
        return instances[: choice.most]
    if choice.order == "smallest":
        smallest = {i: min(shares[path, i] for path in gallery_of[i]) for i in instances}
        return sorted(instances, key=lambda instance: (smallest[instance], instance))[: choice.most]
    return sorted(random.Random(0).sample(instances, min(choice.most, len(instances))))


def entry_tiles(path: str, name: str, entry: Entry, instance: int, base_path: str | None) -> list[Tile]:
    """An image with the boxes and the outlines of the masks of an instance, and a zoom on the first of them."""
    kind, colour = ("query", drawing.QUERY_COLOUR) if entry["is_query"] else ("gallery", drawing.GALLERY_COLOUR)
    photograph = open_photograph(path, base_path)
    if photograph is None:
        return [Tile(f"{kind} {name}: cannot be read", None)]
    size = photograph.height, photograph.width
    boxes = [geometry.in_pixels(box, size) for box in boxes_of_instance(entry, instance)]
    masks = []
    for mask, shown in zip(masks_of(entry), instances_of(entry)):
        if entry["is_query"] or shown == instance:
            with suppress(ValueError):  # verify_dataset.py tells the fault
                masks.append(rle.decode_mask(mask))
    masks = [mask for mask in masks if mask.shape == size]
    zoom = "zoom" if entry["is_query"] else f"zoom, {geometry.share(boxes[0], size):.1f} % of the image"
    return [
        Tile(f"{kind} {name}", drawing.draw_tile(photograph, boxes, colour, masks)),
        Tile(zoom, drawing.draw_zoom(photograph, boxes[0], boxes, colour, masks)),
    ]


def draw_rankings(
    queries: dict[int, float], rankings: dict[int, Ranking], task: Task, base_path: str | None
) -> list[Image.Image]:
    """Pages with one row for each of some queries: the query, its first five images, right in green, wrong in red, and
    the first relevant image that is not among them. What the run took for the object is drawn dashed.

    queries   number of a query -> its AP
    rankings  number of a query -> what the run retrieved for it, if anything
    Raises SoirError if no image can be read.
    """
    rows = []
    for number, score in queries.items():
        path = task.queries[number]
        entry = task.annotations[path]
        ranking = rankings.get(number)
        shown = choose_images(ranking, task.relevant[number])
        names = short_names([path, *(task.gallery[image.position] for image in shown if image.position >= 0)])
        title = f"{label_of(set_of(entry))}, instance {name_of_instances(entry)}, "
        title += f"AP {score:.3f}, relevant images {len(task.relevant[number])}: {path}"
        query = entry_tiles(path, names[path], entry, instances_of(entry)[0], base_path)[0]
        tiles = [query._replace(frame=drawing.QUERY_COLOUR)]
        for image in shown:
            name = names[task.gallery[image.position]] if image.position >= 0 else "unknown path"
            tiles.append(image_tile(image, name, ranking, number, task, base_path))
        rows.append((title, tiles))
    if not any(tile.image for _, tiles in rows for tile in tiles):
        path = task.queries[next(iter(queries))]
        raise SoirError(f"no image of the preview can be read, {path} for one: where are they? --base-path")
    return drawing.lay_out(rows)


class ShownImage(NamedTuple):
    """An image of a ranking to draw."""

    position: int  # in the gallery; -1 for a path that is not there
    place: int | None  # rank - 1; None for a relevant image that was not retrieved
    is_right: bool


def choose_images(ranking: Ranking | None, relevant: np.ndarray) -> list[ShownImage]:
    """The first five images of a ranking, and the first relevant one behind them."""
    positions = ranking.positions if ranking is not None else np.zeros(0, dtype=np.int64)
    is_right = np.isin(positions, relevant)
    places = list(range(min(5, len(positions))))
    places += [int(place) for place in np.flatnonzero(is_right) if place >= 5][:1]
    shown = [ShownImage(int(positions[place]), place, bool(is_right[place])) for place in places]
    missed = np.setdiff1d(relevant, positions)
    if len(missed) and len(shown) <= 5:
        shown.append(ShownImage(int(missed[0]), None, True))
    return shown


def image_tile(
    image: ShownImage, name: str, ranking: Ranking | None, number: int, task: Task, base_path: str | None
) -> Tile:
    """A ranked image, or one that was missed, with the true boxes and the one of the run."""
    colour = drawing.GALLERY_COLOUR if image.is_right else drawing.WRONG_COLOUR
    label = "missed, not retrieved"
    predicted: list[Box] = []
    boxes: list[Box] = []
    if image.is_right:
        shown = shown_of(task.annotations[task.queries[number]], task.shows)
        boxes = boxes_in_pixels(task, image.position, shown[image.position])
    if ranking is not None and image.place is not None:
        label = f"{image.place + 1}: {'right' if image.is_right else 'wrong'}"
        if image.place >= 5:
            label = f"next relevant: rank {image.place + 1}"
        if ranking.scores is not None and math.isfinite(ranking.scores[image.place]):
            label += f", score {ranking.scores[image.place]:.4g}"
        if ranking.boxes is not None and np.isfinite(ranking.boxes[image.place]).all():
            x1, y1, x2, y2 = ranking.boxes[image.place].tolist()
            predicted = [(x1, y1, x2, y2)]
            label += f", IoU {max(geometry.iou(predicted[0], box) for box in boxes):.2f}" if boxes else ""
    path = task.gallery[image.position] if image.position >= 0 else None
    photograph = open_photograph(path, base_path) if path else None
    if photograph is None:
        return Tile(f"{label}, {name}" + ", cannot be read" * bool(path), None, colour)
    return Tile(f"{label}, {name}", drawing.draw_tile(photograph, boxes, colour, predicted=predicted), colour)
