"""Make a small VoxDet tree and a small INSTRE tree, in the layout and with the quirks of the real downloads.

    python examples/make_sample.py sample        # writes sample/VoxDet and sample/INSTRE, in some seconds

The pictures show shapes on a table, so that one can see by eye whether a mask or a box sits right. An instance always
has the same shape and colours. Whatever is drawn is also returned (`make_voxdet`, `make_instre`), as what the tests
compare with. The same arguments give the same files.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw

OWID_SIZE = 640, 480
ROBOTOOLS_SIZE = 1920, 1080


# ------------------------------------------------------------------------------------------------------------ pictures


def draw_object(instance: Any, size: int, angle: float, light: float = 1.0) -> Image.Image:
    """Draw an instance, RGBA, about `size` pixels across, turned by `angle` degrees; alpha is 0 or 255."""
    look = random.Random(f"look {instance}")
    body, stripe = ([look.randrange(40, 256) for _ in range(3)] for _ in range(2))
    body[look.randrange(3)] = 20  # a colour, not a grey
    corners, depth, stretch = look.randrange(3, 8), look.uniform(0.45, 1.0), look.uniform(0.6, 1.0)

    big = 4 * size if size < 100 else 2 * size
    image = Image.new("RGBA", (big, big))
    draw = ImageDraw.Draw(image)
    outline = []
    for i in range(2 * corners):
        turn, radius = math.pi * i / corners, big * 0.46 * (depth if i % 2 else 1)
        outline.append((big / 2 + radius * math.cos(turn), big / 2 + radius * stretch * math.sin(turn)))
    draw.polygon(outline, fill=(*[int(light * c) for c in body], 255))
    stripes = Image.new("RGBA", (big, big))
    stripe_draw = ImageDraw.Draw(stripes)
    for i in range(1, 6, 2):
        stripe_draw.rectangle(
            (0, big * i / 6 - big / 14, big, big * i / 6), fill=(*[int(light * c) for c in stripe], 255)
        )
    stripes.putalpha(Image.fromarray(np.minimum(np.asarray(stripes)[..., 3], np.asarray(image)[..., 3])))
    image.alpha_composite(stripes)
    image = image.rotate(angle, Image.Resampling.BICUBIC).resize((size, size), Image.Resampling.LANCZOS)
    image.putalpha(image.getchannel("A").point(lambda value: 255 * (value > 127)))
    return image


def draw_table(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """A wooden table in soft light, RGB."""
    width, height = size
    pixels = np.random.RandomState(rng.randrange(2**31))
    grain = Image.fromarray(pixels.randint(0, 255, (max(height // 6, 2), 4), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    light = Image.fromarray(pixels.randint(0, 255, (3, 4), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    tone = Image.blend(grain, light, 0.6).point(lambda value: 150 + value * 0.4)
    colour = rng.randrange(150, 230), rng.randrange(120, 180), rng.randrange(90, 140)
    return ImageChops.multiply(Image.merge("RGB", [tone] * 3), Image.new("RGB", size, colour))


def draw_scene(
    size: tuple[int, int], rng: random.Random, placed: list[tuple[Any, int, int, int]]
) -> tuple[Image.Image, list[Any]]:
    """Draw objects on a table: (RGB image, bool masks [h, w] of what is seen of each).

    placed  list of (instance, size in pixels, x, y of the upper left corner); later ones lie on top
    """
    image = draw_table(size, rng)
    masks: list[Any] = []
    for instance, across, x, y in placed:
        item = draw_object(instance, across, rng.uniform(0, 360), rng.uniform(0.75, 1.0))
        image.paste(item, (x, y), item)
        alpha = Image.new("L", size)
        alpha.paste(item.getchannel("A"), (x, y))
        mask = np.asarray(alpha) > 0
        masks = [below & ~mask for below in masks] + [mask]
    return image, masks


def scatter(
    instances: list[Any], size: tuple[int, int], across: float, rng: random.Random
) -> list[tuple[Any, int, int, int]]:
    """Places for objects, on a grid, so that they overlap a little at most."""
    columns = math.ceil(math.sqrt(len(instances) * size[0] / size[1]))
    rows = math.ceil(len(instances) / columns)
    cells = rng.sample([(c, r) for c in range(columns) for r in range(rows)], len(instances))
    placed = []
    for instance, (column, row) in zip(instances, cells):
        extent = int(across * rng.uniform(0.8, 1.25))
        x = int((column + rng.uniform(0.2, 0.8)) * size[0] / columns - extent / 2)
        y = int((row + rng.uniform(0.2, 0.8)) * size[1] / rows - extent / 2)
        placed.append((instance, extent, min(max(x, 0), size[0] - extent), min(max(y, 0), size[1] - extent)))
    return placed


def box_of(mask: Any) -> list[int]:
    """[x, y, width, height] of a mask, as plain ints."""
    ys, xs = np.nonzero(mask)
    return [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]


def uncompressed_rle(mask: Any) -> dict[str, list[int]]:
    """COCO RLE as the OWID renderer writes it: a list of run lengths, column-major, the first one background."""
    runs = [(bool(value), len(list(group))) for value, group in itertools.groupby(mask.ravel(order="F"))]
    counts = [length for _, length in runs]
    return {"counts": [0, *counts] if runs[0][0] else counts, "size": list(mask.shape)}


def save(image: Image.Image, *parts: str, **options: Any) -> None:
    path = os.path.join(*parts)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    image.save(path, **options)


def write(text: str, *parts: str) -> None:
    path = os.path.join(*parts)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(text)


def truncate(*parts: str) -> None:
    """Cut a photograph off behind its header, as a download that broke off leaves it."""
    with open(os.path.join(*parts), "r+b") as file:
        file.truncate(4000)


# -------------------------------------------------------------------------------------------------------------- VoxDet


def make_voxdet(
    root: str, frames: int = 4, train_images: int = 14, val_images: int = 3, scenes: int = 2, scene_images: int = 3
) -> dict[str, dict[str, Any]]:
    """Write <root>/OWID and <root>/RoboTools. Returns what they show: path below the root -> dict, with

    queries   ins, split, mask (bool [h, w])
    gallery   split, objects: list of (instance, [x, y, width, height], mask or None, num_ins), in the files' order
    """
    truth = make_owid(os.path.join(root, "OWID"), frames, train_images, val_images)
    truth.update(make_robotools(os.path.join(root, "RoboTools"), frames, scenes, scene_images))
    return truth


def make_owid(folder: str, frames: int, train_images: int, val_images: int) -> dict[str, dict[str, Any]]:
    rng = random.Random("owid")
    train_instances, val_instances = [2, 3, 5, 10, 21, 104], [7, 33]
    truth = {}
    for instance in train_instances + val_instances:
        for frame in range(frames):
            across = rng.randrange(150, 300)
            place = (instance, across, rng.randrange(640 - across), rng.randrange(480 - across))
            image, (mask,) = draw_scene(OWID_SIZE, rng, [place])
            name = f"{frame:06d}.jpg"
            save(image, folder, "P1", str(instance), "rgb", name, quality=92)
            if (instance, frame) == (10, 1):
                mask = np.zeros_like(mask)  # a render that shows nothing of the object
            # Masks are JPEGs of three equal channels: ringing around every contour.
            save(
                Image.fromarray(mask[..., None].repeat(3, 2) * np.uint8(255)),
                folder,
                "P1",
                str(instance),
                "mask",
                name,
                quality=95,
            )
            save(Image.new("L", (64, 48), 90), folder, "P1", str(instance), "depth", f"{frame:06d}.png")
            if (instance, frame) == (104, 3):
                truncate(folder, "P1", str(instance), "rgb", name)
            elif mask.any():
                truth[f"OWID/P1/{instance}/rgb/{name}"] = {
                    "ins": instance,
                    "split": "val" if instance in val_instances else "train",
                    "mask": mask,
                }
        write("{}", folder, "P1", str(instance), "scene_camera.json")
        write("{}", folder, "P1", str(instance), "scene_gt.json")
        np.savez(os.path.join(folder, "P1", str(instance), "info.npz"), size=np.array(OWID_SIZE))
    write("{}", folder, "P1", "ZID-10k_mapper_new.json")
    write("{}", folder, "P1", "scene_gt_all.json")

    number = 0
    for split, count in (("train", train_images), ("val", val_images)):
        coco: dict[str, Any] = {"info": {}, "images": [], "annotations": [], "categories": []}
        for image_id in range(count):  # both files number images and annotations from 0
            others = rng.sample(train_instances, rng.randrange(3, 6))
            instances = others if split == "train" else [val_instances[image_id % 2], *others[1:]]
            placed = scatter(instances, OWID_SIZE, 78, rng)
            image, masks = draw_scene(OWID_SIZE, rng, placed)
            name = f"images/{number:06d}.jpg"
            save(image, folder, "P2", name, quality=92)
            number += 1
            coco["images"].append({"id": image_id, "file_name": name, "width": 640, "height": 480})
            objects = []
            for instance, mask in zip(instances, masks):
                if split == "val" and instance not in val_instances:
                    continue  # a val image keeps its val annotations only
                objects.append((instance, box_of(mask), mask, len(instances)))
                annotation = {
                    "id": len(coco["annotations"]),
                    "image_id": image_id,
                    "category_id": instance,
                    "bbox": objects[-1][1],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": uncompressed_rle(mask),
                    "num_ins": len(instances),
                    "neg_box": [[rng.uniform(0, 600) for _ in range(4)] for _ in range(3)],
                    "cam_w": [[rng.uniform(-1, 1) for _ in range(4)] for _ in range(4)],
                    "obj_w": [[rng.uniform(-1, 1) for _ in range(4)] for _ in range(4)],
                }
                coco["annotations"].append(annotation)
            truth[f"OWID/P2/{name}"] = {"split": split, "objects": objects}
        if split == "train":
            # The renderer can also write polygons; and one image shows no labelled object.
            x, y, w, h = coco["annotations"][0]["bbox"]
            polygon = [x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h / 2]
            coco["annotations"][0]["segmentation"] = [polygon]
            path = f"OWID/P2/{coco['images'][0]['file_name']}"
            instance, box, _, num_ins = truth[path]["objects"][0]
            truth[path]["objects"][0] = (instance, box, [polygon], num_ins)
            name = f"images/{number:06d}.jpg"
            save(draw_table(OWID_SIZE, rng), folder, "P2", name, quality=92)
            number += 1
            coco["images"].append({"id": train_images, "file_name": name, "width": 640, "height": 480})
        write(json.dumps(coco), folder, "P2", f"{split}_annotations.json")
    return truth


def make_robotools(folder: str, frames: int, scenes: int, scene_images: int) -> dict[str, dict[str, Any]]:
    rng = random.Random("robotools")
    instances = [1, 2, 5, 12]  # 2 and 5 are ids of OWID too, and other objects there
    truth = {}
    for instance in instances:
        for frame in range(frames - 1):
            across = rng.randrange(400, 700)
            place = (f"tool {instance}", across, rng.randrange(1920 - across), rng.randrange(1080 - across))
            image, (mask,) = draw_scene(ROBOTOOLS_SIZE, rng, [place])
            name = f"{frame:06d}.png"
            folder_name = f"obj_{instance:06d}"
            save(image, folder, "test_video", folder_name, "rgb", name, compress_level=1)
            rgb = Image.fromarray(mask[..., None].repeat(3, 2) * np.uint8(255))
            save(rgb, folder, "test_video", folder_name, "mask", name, compress_level=1)
            truth[f"RoboTools/test_video/{folder_name}/rgb/{name}"] = {"ins": instance, "split": "test", "mask": mask}
    write("{}", folder, "test_video", "scene_gt_all.json")

    coco: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": f"obj_{i:06d}"} for i in instances],
    }
    for scene in range(1, scenes + 1):
        for frame in range(scene_images):
            shown = [rng.choice(instances) for _ in range(2)] + instances
            placed = scatter([f"tool {i}" for i in shown], ROBOTOOLS_SIZE, 215, rng)
            image, masks = draw_scene(ROBOTOOLS_SIZE, rng, placed)
            name = f"{scene:06d}/rgb/{frame:06d}.png"
            save(image, folder, "test", name, compress_level=1)
            objects = [(instance, box_of(mask), None, None) for instance, mask in zip(shown, masks)]
            truth[f"RoboTools/test/{name}"] = {"split": "test", "objects": objects}
            for instance, box, _, _ in objects:  # one image record an annotation; ids count from 1
                number = len(coco["annotations"]) + 1
                coco["images"].append({"id": number, "file_name": name, "width": 1920, "height": 1080})
                annotation = {"id": number, "image_id": number, "category_id": instance, "bbox": box, "iscrowd": 0}
                coco["annotations"].append({**annotation, "area": box[2] * box[3], "ignore": False})
    write(json.dumps(coco), folder, "test", "scene_gt_coco_all.json")
    return truth


# -------------------------------------------------------------------------------------------------------------- INSTRE


def make_instre(root: str, images: int = 8) -> dict[str, list[tuple[str, list[int]]]]:
    """Write <root>/INSTRE-S1, -S2 and -M, with all that goes wrong in copies of INSTRE. Returns what they show:
    path below the root -> list of (name of the object, clipped box [x, y, width, height]), for images that can be used.
    """
    rng = random.Random("instre")
    size = 500, 375
    truth = {}

    def add(
        part: str,
        folder: str,
        number: int,
        objects: list[tuple[str, int]],
        ending: str = ".jpg",
        separator: str = " ",
        newline: str = "\n",
    ) -> None:
        """An image of some (object, size in pixels), and its box file."""
        placed = scatter([name for name, _ in objects], size, 10, rng)
        placed = [
            (name, across, min(x, size[0] - across), min(y, size[1] - across))
            for (name, across), (_, _, x, y) in zip(objects, placed)
        ]
        image, masks = draw_scene(size, rng, placed)
        save(image, root, f"INSTRE-{part}", folder, f"{number:03d}{ending}", quality=90, format="JPEG")
        boxes = [box_of(mask) for mask in masks]
        text = newline.join(separator.join(map(str, box)) for box in boxes) + newline
        write(text, root, f"INSTRE-{part}", folder, f"{number:03d}.txt")
        truth[f"INSTRE-{part}/{folder}/{number:03d}{ending}"] = [(name, box) for (name, _), box in zip(objects, boxes)]

    names = {
        "S1": ["01a_canada_book", "01b_tea_box", "02a_red_car", "02b_mug"],
        "S2": ["Tsinghua_old_gate", "02_logo"],
    }
    for part, folders in names.items():
        for folder in folders:
            for number in range(1, images + 1):
                across = (70, 90, 130, 150, 170, 210, 260, 340)[number % 8]  # from 2 % of the image to 60 %
                add(part, folder, number, [(f"{part} {folder}", across)])
    for number in (1, 2):
        for image in (1, 2, 3):
            pair = [(f"S1 {folder}", 80 + 20 * image) for folder in names["S1"] if folder.startswith(f"{number:02d}")]
            add("M", f"{number:02d}", image, pair)

    # What happens in copies: other endings, separators and line ends, an object seen twice, ...
    folder = "01a_canada_book"
    name = f"S1 {folder}"
    add("S1", folder, 20, [(name, 90)], ending=".JPG")
    add("S1", folder, 21, [(name, 80)], separator=",")
    add("S1", folder, 22, [(name, 85)], separator="\t", newline="\r\n")
    add("S1", folder, 23, [(name, 60), (name, 90)])
    # ... a box that reaches out of its image, a photograph that broke off behind its header, ...
    add("S1", folder, 24, [(name, 95)])
    write("-30 10 90 80\n", root, "INSTRE-S1", folder, "024.txt")
    truth[f"INSTRE-S1/{folder}/024.jpg"] = [(name, [0, 10, 60, 80])]
    add("S1", folder, 25, [(name, 75)])
    truncate(root, "INSTRE-S1", folder, "025.jpg")
    del truth[f"INSTRE-S1/{folder}/025.jpg"]
    # ... and what cannot be used.
    for number, text in ((30, ""), (31, "1 2 3\n"), (32, "10 10 0 20\n"), (33, "900 10 20 20\n"), (34, "a b c d\n")):
        save(draw_table(size, rng), root, "INSTRE-S1", folder, f"{number:03d}.jpg")
        write(text, root, "INSTRE-S1", folder, f"{number:03d}.txt")
    save(draw_table(size, rng), root, "INSTRE-S1", folder, "035.jpg")  # no .txt
    write("1 2 3 4\n", root, "INSTRE-S1", folder, "036.txt")  # no image
    write("no image at all", root, "INSTRE-S1", folder, "037.jpg")
    write("1 2 3 4\n", root, "INSTRE-S1", folder, "037.txt")
    write("resource fork", root, "INSTRE-S1", folder, "._001.jpg")  # macOS leaves these
    return truth


# -------------------------------------------------------------------------------------------------------------- script


def main() -> None:
    parser = argparse.ArgumentParser(description="Make small VoxDet and INSTRE trees, as downloads have them.")
    parser.add_argument("folder", help="where to write; VoxDet/ and INSTRE/ appear in it")
    folder = parser.parse_args().folder
    for name, make in (("VoxDet", make_voxdet), ("INSTRE", make_instre)):
        truth = make(os.path.join(folder, name))
        print(f"wrote {os.path.join(folder, name)}: {len(truth):,} images that can be used")


if __name__ == "__main__":
    main()
