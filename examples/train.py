"""Train a network on OWID train, look at OWID val after each epoch, and score the best one on RoboTools.

In   an annotation file and its images
Out  the best checkpoint; the features of RoboTools, for evaluate_retrieval.py

    python examples/train.py anns.pt --base-path /data/VoxDet --output model.pt --features robotools.pt
    python examples/train.py anns.pt --base-path /data/VoxDet --model resnet50 --pretrained

A query, cut out by its mask, must be closer to a crop of a gallery image that shows its instance (the positive) than to
crops of images that do not (the negatives). Nobody knows at test time where the objects of an image are, so it is then
described window by window, and its best window counts; and the crops of training have as much context as windows have.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import signal
import sys
from collections import defaultdict
from functools import partial
from typing import Any, Iterator, NamedTuple

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import soir.startup  # noqa: F401

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler

from soir.console import absolute_base, exit_status, positive
from soir.entry import Annotations, Entry
from soir.files import check_no_image, check_outputs, whole_file
from soir.findings import progress_bar
from soir.forms import load_sound, size_finder
from soir.images import read_image
from soir.paths import full_path
from soir.scoring import choose_entries
from soir_common import SoirError, decode_mask, evaluate, instances_of

SIDE = 64  # pixels of a crop
WINDOWS = (0.2, 0.35)  # of an image's shorter side: objects of RoboTools have 0.13 of it on average
MEAN, STD = 0.45, 0.225  # of pixels in 0..1: those of ImageNet, whose three channels hardly differ
NEGATIVES = 2  # per query; the crops that the other queries of the batch bring serve as well
PAIRS = 128  # an epoch has at least so many: the sample has 22 train queries, OWID some 390,000
TEMPERATURE = 0.07  # divides the cosines in the loss, as in MoCo
LEARNING_RATE, FINE_TUNING_RATE = 2e-3, 1e-4  # from random weights, and from those of --pretrained


# ------------------------------------------------------------------------------------------------- pairs and negatives


class Item(NamedTuple):
    """A query, its positive and its negatives: all that a worker gets, so that none has a copy of the annotations."""

    numbers: list[int]  # of the query, and of the images of the crops
    query: tuple[str, Entry]
    crops: list[tuple[str, Any]]  # (path, box, or None: any window), the positive first
    seed: float


class Items(Sampler[Item]):
    """The items of an epoch, drawn in the main process: so they do not depend on the workers.

    train  the entries of OWID's split train. No val image is a negative: it may show train instances, since nobody has
           annotated these there
    Raises SoirError if no query has both positives and negatives.
    """

    def __init__(self, train: Annotations, seed: int) -> None:
        self.rng = random.Random(seed)
        self.images = [(path, entry) for path, entry in train.items() if not entry["is_query"]]
        self.places = defaultdict(list)  # instance -> (number of an image, box), for each object
        for number, (_, entry) in enumerate(self.images):
            for instance, box in zip(entry["ins"], entry["bbox"]):
                self.places[instance].append((number, box))
        queries = [(path, entry) for path, entry in train.items() if entry["is_query"]]
        self.queries = [q for q in queries if 0 < len({n for n, _ in self.positives(q[1])}) < len(self.images)]
        left_out = len(queries) - len(self.queries)
        if left_out:
            print(f"left out: {left_out:,} train queries whose object is in no train image, or in all of them")
        if not self.queries:
            raise SoirError("no object of a train query is in some train images but not in all: nothing can be learnt")
        self.order = list(range(len(self.queries))) * -(-PAIRS // len(self.queries))

    def positives(self, query: Entry) -> list[tuple[int, Any]]:
        return [place for instance in instances_of(query) for place in self.places.get(instance, ())]

    def is_negative(self, query: int, image: int) -> bool:
        """Whether an image does not show the instance of a query, both by number."""
        return set(instances_of(self.queries[query][1])).isdisjoint(self.images[image][1]["ins"])

    def draw(self, query: int) -> Item:
        """Images are drawn until enough are negatives. Nearly all are, since an instance is in some 15 of OWID's 55,000
        images; and it ends, since `queries` has none whose instance is in all of them."""
        drawn = [self.rng.choice(self.positives(self.queries[query][1]))]
        while len(drawn) < 1 + NEGATIVES:
            image = self.rng.randrange(len(self.images))
            if self.is_negative(query, image):
                drawn.append((image, self.rng.choice([None, *self.images[image][1]["bbox"]])))
        crops = [(self.images[image][0], box) for image, box in drawn]
        return Item([query, *(image for image, _ in drawn)], self.queries[query], crops, self.rng.random())

    def __iter__(self) -> Iterator[Item]:
        self.rng.shuffle(self.order)
        return map(self.draw, self.order)

    def __len__(self) -> int:
        return len(self.order)


# ---------------------------------------------------------------------------------------------- crops, by the workers


class Reader(Dataset[Any]):
    """Reads what the sampler asks for."""

    def __init__(self, read: Any, base_path: str | None, side: int) -> None:
        self.read = partial(read, base_path=base_path, side=side)

    def __getitem__(self, item: Any) -> Any:
        return self.read(item)


def ignore_signals(worker: int) -> None:
    """Ctrl-C is meant for the main process, which then ends the workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def read_item(item: Item, base_path: str | None, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Its numbers, int64 [2 + NEGATIVES], and its crops, uint8 [2 + NEGATIVES, 3, side, side], the query's first."""
    rng = random.Random(item.seed)
    path, query = item.query
    crops = [cut(read_photograph(path, query, base_path), query["bbox"], side, rng, context=1.2)]
    for path, box in item.crops:
        image = read_photograph(path, None, base_path)
        crops.append(cut(image, box or rng.choice(windows(image)), side, rng, context=2))
    return np.array(item.numbers), np.stack(crops)


def read_views(item: tuple[str, Entry], base_path: str | None, side: int) -> tuple[str, np.ndarray, np.ndarray]:
    """A path, boxes [N, 4] in its image, and what is in them, uint8 [N, 3, side, side]: for evaluation."""
    path, entry = item
    image = read_photograph(path, entry, base_path)
    boxes = [entry["bbox"]] if entry["is_query"] else windows(image)  # its own boxes would tell where the objects are
    return path, np.array(boxes, dtype=np.float32), np.stack([cut(image, box, side) for box in boxes])


def read_photograph(path: str, entry: Entry | None, base_path: str | None) -> Image.Image:
    """An image, RGB; that of a query is black outside of its mask."""
    full = full_path(path, base_path)
    if full is None or not os.path.isfile(full):
        raise SoirError(f"{path} is missing: use --base-path to say where the images are")
    image: Image.Image = read_image(full).convert("RGB")
    if entry is None or not entry["is_query"]:
        return image
    mask = Image.fromarray(decode_mask(entry["mask"]))
    if mask.size != image.size:
        raise SoirError(f"{path} is {image.width} x {image.height}, but its mask is {mask.width} x {mask.height}")
    return Image.composite(image, Image.new("RGB", image.size), mask)


def windows(image: Image.Image) -> list[tuple[float, ...]]:
    """Squares (x1, y1, x2, y2) of two sizes all over an image; neighbours overlap by half."""
    boxes: list[tuple[float, ...]] = []
    for extent in (share * min(image.size) for share in WINDOWS):
        lefts, tops = (np.linspace(0, n - extent, round(2 * n / extent) - 1).tolist() for n in image.size)
        boxes += [(left, top, left + extent, top + extent) for top in tops for left in lefts]
    return boxes


def cut(image: Image.Image, box: Any, side: int, rng: random.Random | None = None, context: float = 1) -> np.ndarray:
    """The square around a box, uint8 [3, side, side], black outside of the image.

    rng  varies it: up to `context` times the square, off its centre, as windows are; quarter turns; light. The colours
         stay nearly as they are, since they tell instances apart
    """
    x1, y1, x2, y2 = box
    x, y, extent = (x1 + x2) / 2, (y1 + y2) / 2, max(x2 - x1, y2 - y1)
    if rng:
        reach = 0.2 * (context - 1) * extent
        extent *= rng.uniform(1, context)
        x, y = x + rng.uniform(-reach, reach), y + rng.uniform(-reach, reach)
    left, top, extent = round(x - extent / 2), round(y - extent / 2), max(round(extent), 1)
    crop = image.crop((left, top, left + extent, top + extent)).resize((side, side), Image.Resampling.BILINEAR)
    pixels = np.asarray(crop).transpose(2, 0, 1)
    if rng:
        light = rng.uniform(0.7, 1.3) * np.array([rng.uniform(0.95, 1.05) for _ in range(3)])
        pixels = np.rot90(pixels * light[:, None, None], rng.randrange(4), (1, 2)).clip(0, 255).astype(np.uint8)
    return pixels


# --------------------------------------------------------------------------------------------------- network and loss


def make_network(name: str | None, pretrained: bool) -> tuple[nn.Module, int]:
    """A network, float32 [N, 3, side, side] -> [N, dimension], and its side. Raises SoirError if timm has no such."""
    if name is None:
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 64), (64, 128)):  # 64 x 64 pixels become 4 x 4 cells
            norm = nn.BatchNorm2d(after, momentum=0.3)  # of the usual 0.1, a small set has too few batches
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), norm, nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 64)), SIDE
    try:
        timm: Any = importlib.import_module("timm")  # here, not above: the small network does without
        network = timm.create_model(name, pretrained, num_classes=0)
    except ModuleNotFoundError as error:
        raise SoirError(f"{error.name} is not installed: pip install timm") from error
    except Exception as error:  # of many kinds: no such model, no connection
        raise SoirError(f"timm cannot make {name}: {last_line(error)}") from error
    return network, timm.data.resolve_data_config({}, model=network)["input_size"][-1]


def last_line(error: Exception) -> str:
    """The reason. What a worker raises is a traceback, which ends in the kind of error and the reason."""
    return (str(error) or type(error).__name__).strip().splitlines()[-1].rpartition("Error: ")[2]


def encode(network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [N, 3, side, side] -> features of length 1, float32 [N, dimension]."""
    device = next(network.parameters()).device
    return functional.normalize(network((pixels.to(device) / 255 - MEAN) / STD))


def contrast(features: torch.Tensor, is_negative: torch.Tensor) -> torch.Tensor:
    """InfoNCE: the cross-entropy of finding each query's positive among it and the negatives of the batch.

    features     float32 [B, 2 + NEGATIVES, dimension], of length 1: queries, positives, negatives
    is_negative  bool [B, B * (1 + NEGATIVES)]: whether a crop is a negative of a query
    """
    logits = features[:, 0] @ features[:, 1:].flatten(0, 1).T / TEMPERATURE
    own = torch.arange(0, logits.shape[1], features.shape[1] - 1, device=logits.device)
    is_left_out = ~is_negative.to(own.device)
    is_left_out[range(len(own)), own] = False
    return functional.cross_entropy(logits.masked_fill(is_left_out, -np.inf), own)


# --------------------------------------------------------------------------------------------------------- the recipe


def batches(title: str, loader: Any) -> Iterator[Any]:
    """What a loader gives, with a progress bar. Raises SoirError for an image that cannot be read."""
    try:
        yield from progress_bar(title, loader, len(loader))
    except (OSError, RuntimeError, SoirError) as error:
        raise SoirError(last_line(error)) from error


def train_epoch(network: nn.Module, optimizer: Any, items: Items, loader: Any, title: str) -> float:
    """Returns the mean loss."""
    network.train()
    losses = []
    for numbers, pixels in batches(title, loader):
        images = numbers[:, 1:].flatten().tolist()
        is_negative = [[items.is_negative(query, image) for image in images] for query in numbers[:, 0].tolist()]
        features = encode(network, pixels.flatten(0, 1)).view(*numbers.shape, -1)
        loss = contrast(features, torch.tensor(is_negative))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))


@torch.inference_mode()
def describe(network: nn.Module, loader: Any, title: str) -> dict[str, Any]:
    """Image path -> its vectors, and their boxes, as `evaluate` takes them."""
    network.eval()
    features = {}
    for path, boxes, pixels in batches(title, loader):
        features[path] = {"vectors": torch.cat([encode(network, p) for p in pixels.split(256)]).cpu(), "boxes": boxes}
    return features


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a network on OWID train, and score it on RoboTools.")
    add = parser.add_argument
    add("annotations", help="annotation file, anns.pt")
    add("--base-path", metavar="DIR", help="folder that relative image paths start at")
    add("--output", default="model.pt", metavar="FILE", help="checkpoint to write (default: model.pt)")
    add("--features", default="robotools.pt", metavar="FILE", help="features to write (default: robotools.pt)")
    add("--epochs", type=positive, default=10, metavar="N", help="how long to train (default: 10)")
    add("--batch-size", type=positive, default=32, metavar="N", help="queries at a time (default: 32)")
    add("--workers", type=int, default=2, metavar="N", help="processes that read images; 0: none (default: 2)")
    add("--seed", type=int, default=0, metavar="N", help="of weights, pairs and their variation (default: 0)")
    add("--model", metavar="NAME", help="a model of timm (default: a small network)")
    add("--pretrained", action="store_true", help="download the weights of --model")
    args = parser.parse_args()
    if args.workers < 0 or not 0 <= args.seed < 2**63:
        parser.error("--workers and --seed are numbers from 0 up")
    if args.features.lower().endswith(".npz"):
        parser.error(f"expected a name for --features that ends in .pt, found {args.features}")
    return args


@exit_status()
def main() -> None:
    args = parse_args()
    base_path = absolute_base(args.base_path)
    check_outputs([args.output, args.features], [args.annotations])
    annotations = load_sound(args.annotations, size_finder(base_path))
    check_no_image([args.output, args.features], annotations, base_path)
    train, val = (choose_entries(annotations, args.annotations, "OWID", split)[0] for split in ("train", "val"))
    items = Items(train, args.seed)

    torch.manual_seed(args.seed)
    network, side = make_network(args.model, args.pretrained)
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    optimizer = torch.optim.AdamW(network.parameters(), FINE_TUNING_RATE if args.pretrained else LEARNING_RATE)

    options: Any = {"num_workers": args.workers, "persistent_workers": args.workers > 0}
    options["worker_init_fn"] = ignore_signals
    train_loader = DataLoader(Reader(read_item, base_path, side), args.batch_size, sampler=items, **options)
    views = Reader(read_views, base_path, side)
    val_loader = DataLoader(views, None, sampler=list(val.items()), **options)

    best = 0.0
    for epoch in range(args.epochs + 1):
        loss = train_epoch(network, optimizer, items, train_loader, f"epoch {epoch}") if epoch else np.nan
        features = describe(network, val_loader, f"epoch {epoch}, val")
        score = evaluate(val, features=features, set_name="OWID", split="val")["mAP"]
        print(
            f"epoch {epoch}: val mAP {100 * score:.2f} %, " + (f"loss {loss:.3f}" if epoch else "untrained"), flush=True
        )
        if epoch and score >= best:  # of equal ones the last, which was trained longest
            best = score
            with whole_file(args.output) as file:
                torch.save({"model": args.model, "epoch": epoch, "mAP": score, "weights": network.state_dict()}, file)

    checkpoint = torch.load(args.output)
    network.load_state_dict(checkpoint["weights"])
    print(f"{args.output} has the weights of epoch {checkpoint['epoch']}")
    try:
        test, _ = choose_entries(annotations, args.annotations, "RoboTools", "test")
    except SoirError as error:
        print(f"no test: {error}")
        return
    features = describe(network, DataLoader(views, None, sampler=list(test.items()), **options), "RoboTools")
    with whole_file(args.features) as file:
        torch.save(features, file)
    scores = evaluate(test, features=features, set_name="RoboTools")
    print(f"RoboTools: mAP {100 * scores['mAP']:.2f} % of {scores['queries']:,} queries; its features: {args.features}")


if __name__ == "__main__":
    main()
