"""Mask images (soir/mask_images.py), read by create_dataset.py: which pixels are the object, in every kind of image."""

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from helpers import box_of, create, decode, reasons, rectangle
from PIL import Image

QUERY, MASK = "OWID/P1/3/rgb/000000.jpg", "OWID/P1/3/mask/000000.jpg"
REAL_QUERY, REAL_MASK = (f"RoboTools/test_video/obj_000003/{kind}/000000.png" for kind in ("rgb", "mask"))
HEIGHT, WIDTH = 48, 64


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def disc(x, y, radius, scale=1):
    yy, xx = np.mgrid[: HEIGHT * scale, : WIDTH * scale]
    return (xx - x * scale) ** 2 + (yy - y * scale) ** 2 < (radius * scale) ** 2


# -------------------------------------------------------------------------------------------------------- of two values


def mask_in(mode, mask):
    """The same mask as an image of some mode that people have."""
    grey = Image.fromarray(mask)
    if mode == "0/1":
        return Image.fromarray(mask // 255)
    if mode == "RGB 0/1":
        return Image.fromarray(mask // 255).convert("RGB")
    if mode == "16-bit":
        return Image.fromarray(mask.astype(np.uint16) * 257)
    if mode == "16-bit 0/1":
        return Image.fromarray(mask.astype(np.uint16) // 255)
    if mode == "palette":  # as DAVIS has them: index 0 black, index 1 dark red
        image = Image.fromarray(mask // 255, mode="L").convert("P")
        image.putdata(list((mask // 255).ravel()))
        image.putpalette([0, 0, 0, 128, 0, 0] + [0] * 762)
        return image
    if mode == "blue":
        return Image.merge("RGB", [Image.new("L", grey.size), Image.new("L", grey.size), grey])
    if mode == "alpha":  # black everywhere, the object is what is opaque
        return Image.merge("RGBA", [Image.new("L", grey.size)] * 3 + [grey])
    if mode == "white on transparent":
        return Image.merge("RGBA", [Image.new("L", grey.size, 255)] * 3 + [grey])
    return grey.convert(mode)


MODES = ["L", "RGB", "RGBA", "LA", "P", "1", "0/1", "RGB 0/1", "16-bit", "16-bit 0/1", "palette", "blue"]
MODES += ["alpha", "white on transparent"]
MASKS = {
    "inside, with a hole": [(np.s_[7:30, 9:40], 255), (np.s_[10:20, 12:15], 0)],
    "corner": [(np.s_[:9, :5], 255)],
    "everywhere": [(np.s_[:, :], 255)],
    "one pixel": [(np.s_[11, 13], 255)],
    "last pixel": [(np.s_[-1, -1], 255)],
}


def save_in_every_mode(tiny, mask, modes):
    """A query for each mode, of the same mask; they take the place of one of RoboTools'."""
    for number, mode in enumerate(modes):
        for path, image in ((REAL_QUERY, None), (REAL_MASK, mask_in(mode, mask))):
            tiny.save_image(path.replace("000000", f"{number:06d}"), image)
    return [REAL_QUERY.replace("000000", f"{number:06d}") for number in range(len(modes))]


@pytest.mark.parametrize("name", MASKS)
def test_masks_in_every_mode_give_the_same_object(tiny, name):
    mask = np.zeros((48, 64), dtype=np.uint8)
    for where, value in MASKS[name]:
        mask[where] = value
    # Black and opaque everywhere is how an empty RGBA mask looks.
    modes = [mode for mode in MODES if (mode, name) != ("alpha", "everywhere")]
    paths = save_in_every_mode(tiny, mask, modes)
    _, annotations = tiny.create("--keep-contradictions")  # masks of the whole image look inverted
    expected = coco_mask.encode(np.asfortranarray(mask // 255))
    x, y, width, height = coco_mask.toBbox(expected)
    for mode, path in zip(modes, paths):
        assert annotations[path]["mask"] == {"size": [48, 64], "counts": expected["counts"].decode()}, mode
        assert annotations[path]["bbox"] == (x, y, x + width, y + height), mode


def test_an_empty_mask_in_any_mode_is_empty(tiny):
    save_in_every_mode(tiny, np.zeros((48, 64), dtype=np.uint8), MODES)
    done, annotations = tiny.create()
    assert f"{len(MODES)} x query with an empty mask" in done.stdout
    assert len(annotations) == 8


def test_a_mask_of_16_bits_has_the_right_pixels(tiny):
    mask = np.zeros((48, 64), dtype=np.uint16)
    mask[5:40, 7:33] = 65535
    mask[5:40, 7] = 300  # above any 8-bit value, yet dark
    tiny.save_image(REAL_MASK, mask)
    annotations = tiny.annotations()
    assert np.array_equal(decode(annotations[REAL_QUERY]["mask"]), mask > 32767)


def test_of_an_animated_mask_the_first_frame_counts(tiny):
    frames = [Image.fromarray(tiny.mask), Image.fromarray(255 - tiny.mask)]
    frames[0].save(str(tiny.path(REAL_MASK)), save_all=True, append_images=frames[1:])
    assert Image.open(str(tiny.path(REAL_MASK))).n_frames == 2
    annotations = tiny.annotations()
    assert np.array_equal(decode(annotations[REAL_QUERY]["mask"]), tiny.mask > 0)


# ------------------------------------------------------------------------------------------------------- of more values


def test_the_ringing_of_jpeg_neither_leaks_into_the_object_nor_eats_its_edge(tiny):
    for x, y, radius in ((30, 20, 15), (10, 10, 5), (50, 30, 12), (3, 3, 9)):
        mask = disc(x, y, radius)
        for mode in ("L", "RGB", "CMYK"):
            tiny.save_image(MASK, np.uint8(mask) * 255, mode)
            with Image.open(str(tiny.path(MASK))) as image:
                assert len(np.unique(np.asarray(image.convert("L")))) > 2  # the file does ring
            entry = tiny.create()[1][QUERY]
            assert iou(decode(entry["mask"]), mask) >= 0.99
            assert np.abs(np.subtract(entry["bbox"], box_of(mask))).max() <= 1


OBJECT = np.uint8(rectangle(20, 10, 44, 32))
DISC = np.uint8(disc(30, 24, 15))
PHOTOGRAPH = np.random.RandomState(0).randint(5, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def label_map(first, second):
    return np.where(rectangle(20, 10, 32, 32), first, np.where(OBJECT, second, 0)).astype(np.uint8)


def palette(first, second):
    image = Image.fromarray(label_map(1, 2))
    image.putpalette([0, 0, 0, *first, *second] + [0] * 759)
    return image


def two_colours(background, second):
    """Of a JPEG of 640 x 480, in which a second object has another colour than the first, red one."""
    pixels = np.full((480, 640, 3), background, dtype=np.uint8)
    pixels[100:220, 50:200], pixels[100:220, 400:600] = (255, 0, 0), second
    return pixels


LABELS = {
    "void border": np.where(OBJECT, 1, np.where(rectangle(14, 4, 50, 38), 255, 0)).astype(np.uint8),
    "labels 1 and 2": label_map(1, 2),
    "labels 100 and 200": label_map(100, 200),
    "labels 254 and 255": label_map(254, 255),
    "a palette of two colours alike in brightness": palette((128, 0, 0), (0, 128, 0)),
    "two colours": np.stack([label_map(255, 0), label_map(0, 255), label_map(0, 0)], axis=2),
    "16 bit": label_map(1, 2).astype(np.uint16) * 1000,
}
JPEG_LABELS = {
    "two colours on black": two_colours((0, 0, 0), (0, 255, 0)),
    "another colour on red": two_colours((255, 0, 0), (0, 0, 255)),
}


@pytest.mark.parametrize(
    "mask, image",
    [*((REAL_MASK, image) for image in LABELS.values()), *((MASK, image) for image in JPEG_LABELS.values())],
    ids=[*LABELS, *JPEG_LABELS],
)
def test_a_mask_with_several_labels_is_skipped(tiny, mask, image):
    tiny.save_image(REAL_QUERY.replace("000000.png", "000001.png"))  # or the instance had no query at all
    tiny.save_image(REAL_MASK.replace("000000.png", "000001.png"), tiny.mask)
    tiny.save_image(mask, image)
    done, annotations = create(tiny)
    assert reasons(done, "skipped") == {"mask with several labels": 1}
    assert mask.replace("mask", "rgb") not in annotations
    assert len(annotations) == 9


def coloured(*colour):
    return Image.fromarray(OBJECT[..., None] * np.array(colour, dtype=np.uint8))


def anti_aliased(scale):
    large = Image.fromarray(np.uint8(disc(30, 24, 15, scale)) * 255)
    return large.resize((WIDTH, HEIGHT), Image.BOX)


def cut_out(colours, alpha):
    return Image.fromarray(np.dstack([colours, alpha * 255]))


CLEAR = {
    "cut-out": ("png", cut_out(PHOTOGRAPH, OBJECT), OBJECT),
    "cut-out disc": ("png", cut_out(PHOTOGRAPH, DISC), DISC),
    "cut-out grey": ("png", cut_out(PHOTOGRAPH[..., 0], OBJECT), OBJECT),
    "red": ("jpg", coloured(255, 0, 0), OBJECT),
    "blue": ("jpg", coloured(0, 0, 255), OBJECT),
    "green": ("jpg", coloured(0, 255, 0), OBJECT),
    "contour of 3": ("png", anti_aliased(2), np.asarray(anti_aliased(2)) > 127),
    "contour of 63": ("png", anti_aliased(8), np.asarray(anti_aliased(8)) > 127),
    "jpeg contour": ("jpg", anti_aliased(8), np.asarray(anti_aliased(8)) > 127),
}


def replace_mask(tiny, ending, image):
    tiny.path(MASK).unlink()
    tiny.save_image(MASK.replace("jpg", ending), image)


@pytest.mark.parametrize("name", CLEAR)
def test_a_mask_that_says_what_it_means_is_read(tiny, name):
    ending, image, expected = CLEAR[name]
    replace_mask(tiny, ending, image)
    annotations = tiny.annotations()
    wrong = np.count_nonzero(decode(annotations[QUERY]["mask"]) != (expected > 0))
    assert wrong <= 0.03 * np.count_nonzero(expected)


@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize("radius", [12, 20])
def test_a_soft_mask_is_cut_at_half_and_noticed(tiny, ending, radius):
    yy, xx = np.mgrid[:HEIGHT, :WIDTH]
    matte = np.uint8(np.clip(255 * (radius - np.hypot(xx - 30, yy - 24)) / radius, 0, 255))
    replace_mask(tiny, ending, matte)
    done, annotations = create(tiny)
    assert reasons(done, "noticed") == {"query whose mask is soft, cut at half of its largest value": 1}
    expected = matte > matte.max() / 2
    assert np.count_nonzero(decode(annotations[QUERY]["mask"]) != expected) <= 0.1 * np.count_nonzero(expected)


# ------------------------------------------------------------------------------------------------------------- inverted


@pytest.mark.parametrize("name, ending", [("OWID/P1", "jpg"), ("RoboTools/test_video", "png")])
@pytest.mark.parametrize("make", [lambda mask: 255 - mask, lambda mask: np.full_like(mask, 255)], ids=["not", "white"])
def test_inverted_masks_of_queries_are_not_believed(tiny, name, ending, make):
    for path in tiny.path(name).glob(f"*/mask/*.{ending}"):
        tiny.save_image(path.relative_to(tiny.root), make(tiny.mask))
    done, annotations = tiny.create()
    assert (done.returncode, annotations) == (2, None)
    assert "it looks as if they are inverted" in done.stderr
    done, annotations = create(tiny, "--keep-contradictions")
    assert "query whose mask reaches all four sides of its image" in done.stdout
    assert len(annotations) == 9


def test_one_mask_that_reaches_all_sides_is_noticed(tiny):
    tiny.save_image(MASK, 255 - tiny.mask)
    done, annotations = create(tiny)
    assert f"1 x query whose mask reaches all four sides of its image: {QUERY}" in done.stdout
    assert annotations[QUERY]["bbox"] == (0, 0, 64, 48)
