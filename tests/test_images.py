"""Images and their names: which are read right, and which are skipped and counted."""

import json
import os

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from conftest import run_here
from PIL import Image
from run_fork import Fork

QUERY, MASK = "OWID/P1/3/rgb/000000.jpg", "OWID/P1/3/mask/000000.jpg"
REAL_QUERY, REAL_MASK = (f"RoboTools/test_video/obj_000003/{kind}/000000.png" for kind in ("rgb", "mask"))
PHOTOGRAPH = "OWID/P2/images/000001.jpg"
UNREADABLE = "query whose image or mask cannot be read"
NO_GALLERY = "gallery image that is missing or cannot be read"


def decode(rle):
    return coco_mask.decode(rle).astype(bool)


def animation(tiny, file_format, path, **options):
    """Two frames: the mask, and its opposite."""
    frames = [Image.fromarray(tiny.mask), Image.fromarray(255 - tiny.mask)]
    frames[0].save(str(path), format=file_format, save_all=True, append_images=frames[1:], **options)


@pytest.mark.parametrize(
    "path, reason", [(QUERY, UNREADABLE), (MASK, UNREADABLE), (REAL_MASK, UNREADABLE), (PHOTOGRAPH, NO_GALLERY)]
)
@pytest.mark.parametrize("kind", ["animated GIF", "TIFF", "WebP", "folder", "link to a folder", "link to nowhere"])
def test_what_is_named_like_an_image_but_is_none_of_the_formats_is_skipped(tiny, path, reason, kind):
    file = tiny.path(path)
    file.unlink()
    if kind == "animated GIF":
        animation(tiny, "GIF", file)
    elif kind in ("TIFF", "WebP"):
        Image.fromarray(tiny.mask).save(str(file), format=kind)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(".." if kind == "link to a folder" else "nowhere.jpg")
    done, annotations = tiny.create("--strict")
    assert done.returncode == 1
    assert f"1 x {reason}: " in done.stdout
    assert len(annotations) == 8


def test_a_photograph_in_cmyk_or_grey_or_progressive_is_used(tiny):
    for mode, options in (("CMYK", {}), ("L", {}), ("RGB", {"progressive": True}), ("RGB", {"optimize": True})):
        for path in (QUERY, PHOTOGRAPH):
            Image.new(mode, (64, 48)).save(str(tiny.path(path)), **options)
        done, annotations = tiny.create("--strict")
        assert done.returncode == 0, done.stdout
        assert len(annotations) == 9


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_and_boxes_count_pixels_as_they_are_stored_whatever_exif_says_of_turning(tiny, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for path in (QUERY, PHOTOGRAPH):
        Image.new("RGB", (64, 48)).save(str(tiny.path(path)), exif=exif.tobytes())
        assert Image.open(str(tiny.path(path))).getexif()[0x0112] == orientation
    done, annotations = tiny.create("--strict")
    assert done.returncode == 0, done.stdout
    assert np.array_equal(decode(annotations[QUERY]["mask"]), tiny.mask > 0)
    assert annotations[QUERY]["bbox"] == (20, 10, 50, 30)


def test_a_mask_of_16_bits_has_the_right_pixels(tiny):
    mask = np.zeros((48, 64), dtype=np.uint16)
    mask[5:40, 7:33] = 65535
    mask[10:20, 10:20] = 300  # above any 8-bit value, yet dark
    tiny.save_image(REAL_MASK, mask)
    done, annotations = tiny.create("--strict")
    assert done.returncode == 0, done.stdout
    assert np.array_equal(decode(annotations[REAL_QUERY]["mask"]), mask > 32767)


def test_of_an_animated_mask_the_first_frame_counts(tiny):
    animation(tiny, "PNG", tiny.path(REAL_MASK))
    assert Image.open(str(tiny.path(REAL_MASK))).n_frames == 2
    done, annotations = tiny.create("--strict")
    assert done.returncode == 0, done.stdout
    assert np.array_equal(decode(annotations[REAL_QUERY]["mask"]), tiny.mask > 0)


NAMES = [b"a name.jpg", b'it\'s "quoted".jpg', "caf\u00e9 \u96ea.jpg".encode(), b"-rf.jpg", b"$(x) `y` *?[1].jpg"]
NAMES += [b"caf\xe9.jpg", b"two\nlines.jpg", b"a.b.c.jpg", b"\x1b[31m.jpg", b"000000.JPG", b"000000.jPeG"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_bytes_are_used_and_the_file_still_loads_and_passes(tiny, name):
    for path in (QUERY, MASK):
        folder = os.fsencode(str(tiny.path(path).parent))
        try:
            os.rename(os.path.join(folder, b"000000.jpg"), os.path.join(folder, name))
        except OSError:
            pytest.skip("the file system does not take this name")
    done, annotations = tiny.create("--strict")
    assert done.returncode == 0, done.stdout
    assert f"OWID/P1/3/rgb/{os.fsdecode(name)}" in annotations
    assert len(annotations) == 9
    report = tiny.path("report.json")
    args = ("--ann-file", tiny.path("anns.pt"), "--base-path", tiny.root, "--report", report)
    done = run_here("verify_dataset.py", *args)
    assert done.returncode == 0, done.stdout
    assert json.loads(report.read_text())["issues"] == []


def test_names_of_any_bytes_come_through_the_workers_and_the_report(tiny):
    folder = os.fsencode(str(tiny.path("OWID/P1/3/rgb")))
    try:
        os.rename(os.path.join(folder, b"000000.jpg"), os.path.join(folder, b"caf\xe9\n.jpg"))
    except OSError:
        pytest.skip("the file system does not take this name")
    status, stdout, stderr = Fork(
        "create_dataset.py", "--voxdet-root", tiny.root, "--output-file", tiny.path("anns.pt")
    ).wait()
    assert (status, stderr) == (0, "")
    (line,) = [line for line in stdout.splitlines() if "query without a mask" in line]
    assert line.endswith("/OWID/P1/3/rgb/caf\\udce9\\n.jpg")


def test_endings_in_upper_case_are_paired_with_masks_of_any_ending(tiny):
    for path, new in ((QUERY, "000000.JPG"), (REAL_QUERY, "000000.PNG"), (REAL_MASK, "000000.Png")):
        tiny.path(path).rename(tiny.path(path).with_name(new))
    tiny.path(MASK).unlink()
    tiny.save_image("OWID/P1/3/mask/000000.BMP", tiny.mask)
    done, annotations = tiny.create("--strict")
    assert done.returncode == 0, done.stdout
    assert len(annotations) == 9
    assert np.array_equal(decode(annotations["OWID/P1/3/rgb/000000.JPG"]["mask"]), tiny.mask > 0)
