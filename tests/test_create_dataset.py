"""create_dataset.py: what it writes is what the tree shows; what it cannot use costs a line of its report, no more."""

import os
import pickle
import shlex
import shutil
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from conftest import ROOT, load_plainly, run_here, run_script
from helpers import box_of, compressed, corners, decode, files_below, pixels_of, reasons, refused, verify
from PIL import Image
from run_fork import Fork

from soir_common import load_annotations, save_annotations

QUERY, MASK = "OWID/P1/3/rgb/000000.jpg", "OWID/P1/3/mask/000000.jpg"
REAL_QUERY, REAL_MASK = (f"RoboTools/test_video/obj_000003/{kind}/000000.png" for kind in ("rgb", "mask"))
PHOTOGRAPH, OTHER_PHOTOGRAPH = "OWID/P2/images/000001.jpg", "OWID/P2/images/000000.jpg"

# ------------------------------------------------------------------------------------------------------- what it writes


def test_the_file_holds_what_the_tree_shows(voxdet, sample_file):
    _, truth = voxdet
    annotations = load_plainly(sample_file)
    assert set(annotations) == set(truth)
    for path, entry in annotations.items():
        expected = truth[path]
        assert (entry["set"], entry["split"]) == (path.split("/")[0], expected["split"])
        assert entry["is_query"] is ("mask" in expected)
        if entry["is_query"]:
            assert entry["ins"] == expected["ins"]
            assert "num_ins" not in entry
        else:
            assert entry["bbox"] == [corners(box) for _, box, _, _ in expected["objects"]]
            assert entry["ins"] == [instance for instance, _, _, _ in expected["objects"]]
            numbers = [num_ins for _, _, _, num_ins in expected["objects"]]
            assert entry.get("num_ins", []) == (numbers if entry["set"] == "OWID" else [])


def test_masks_are_those_of_the_source_and_as_pycocotools_writes_them(voxdet, sample_file):
    """Pixel for pixel, but for those of OWID's queries, which are JPEG."""
    _, truth = voxdet
    polygons = 0
    for path, entry in load_plainly(sample_file).items():
        masks = [entry["mask"]] if entry["is_query"] else entry["mask"]
        sources = [truth[path]["mask"]] if entry["is_query"] else [mask for _, _, mask, _ in truth[path]["objects"]]
        assert len(masks) == (0 if path.startswith("RoboTools/test/") else len(sources))
        for rle, source in zip(masks, sources):
            polygons += isinstance(source, list)
            mask, source = decode(rle), pixels_of(source)
            assert rle == compressed(mask)
            if entry["is_query"] and entry["set"] == "OWID":
                assert (mask & source).sum() / (mask | source).sum() >= 0.99
                assert np.abs(np.subtract(entry["bbox"], box_of(source))).max() <= 1
            else:
                assert np.array_equal(mask, source)
            if entry["is_query"]:
                assert entry["bbox"] == corners(coco_mask.toBbox(rle))
    assert polygons == 1


def test_every_value_is_a_plain_python_value(sample_file):
    def check(value):
        assert type(value) in (dict, list, tuple, str, int, float, bool)
        for item in value.items() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
            check(item)

    check(load_plainly(sample_file))


def test_queries_then_gallery_in_natural_order(sample_file):
    paths = list(load_plainly(sample_file))
    folders = [path.split("/")[2] for path in paths if path.startswith("OWID/P1")]
    assert list(dict.fromkeys(folders)) == ["2", "3", "5", "7", "10", "21", "33", "104"]
    kinds = ["/".join(path.split("/")[:2]) for path in paths]
    assert list(dict.fromkeys(kinds)) == ["OWID/P1", "OWID/P2", "RoboTools/test_video", "RoboTools/test"]


def test_the_same_bytes_from_one_worker_and_from_two_and_from_run_to_run(voxdet, tmp_path):
    files = []
    for run, workers in ((run_here, 1), (run_script, 2)):
        path = tmp_path / str(workers) / f"name{workers}.pt"
        path.parent.mkdir()
        args = ("--voxdet-root", voxdet[0], "--output-file", path, "--workers", workers)
        assert run("create_dataset.py", *args).returncode == 0
        files.append(path.read_bytes())
    assert files[0] == files[1]


def test_the_same_bytes_whatever_the_order_of_the_file_system(tiny, monkeypatch):
    tiny.create()
    expected, listdir, asked = tiny.path("anns.pt").read_bytes(), os.listdir, []
    monkeypatch.setattr(os, "listdir", lambda folder: asked.append(folder) or sorted(listdir(folder), reverse=True))
    tiny.create(output="b.pt")
    assert asked
    assert tiny.path("b.pt").read_bytes() == expected


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_the_start_methods_of_other_systems_give_the_same_file(tiny, method):
    tiny.create()
    code = f"""if __name__ == "__main__":
    import multiprocessing, sys
    sys.path.insert(0, {str(ROOT)!r})
    multiprocessing.set_start_method({method!r})
    import create_dataset
    sys.exit(create_dataset.main())
"""
    tiny.path("start.py").write_text(code)
    options = ["--voxdet-root", tiny.root, "--output-file", tiny.path("b.pt"), "--relative-paths", "--workers", "2"]
    assert run_script(tiny.path("start.py"), *options).returncode == 0
    assert tiny.path("b.pt").read_bytes() == tiny.path("anns.pt").read_bytes()


def test_max_categories_keeps_the_first_instances_and_only_their_annotations(tiny):
    annotations = tiny.annotations("--max-categories", "1")
    assert {e["ins"] for e in annotations.values() if e["is_query"]} == {3}
    gallery = {path: e["ins"] for path, e in annotations.items() if not e["is_query"]}
    assert gallery == {OTHER_PHOTOGRAPH: [3], "RoboTools/test/1/rgb/000000.png": [3]}


@pytest.mark.parametrize("skip, kept", [("--skip-owid", "RoboTools"), ("--skip-robotools", "OWID")])
def test_a_set_can_be_left_out(tiny, skip, kept):
    shutil.rmtree(str(tiny.path({"RoboTools": "OWID", "OWID": "RoboTools"}[kept])))
    assert {entry["set"] for entry in tiny.annotations(skip).values()} == {kept}


def test_the_summary_counts_what_the_file_holds(tiny):
    done, _ = tiny.create()
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line[:1].isupper()}
    assert rows == {"OWID": ["4", "2", "2", "2"], "RoboTools": ["2", "1", "2", "2"]}
    assert str(tiny.path("anns.pt")) in done.stdout
    assert done.stderr == ""


# --------------------------------------------------------------------------------------------------- where the sets are


@pytest.mark.parametrize("name, args", [("RoboTools", []), ("lmo", ["--robotools-path", "BOP/lmo", "--skip-owid"])])
def test_the_layout_of_voxdets_own_readme_is_found_and_its_other_sets_can_be_named(tiny, name, args):
    tiny.path("BOP").mkdir()
    tiny.path("RoboTools").rename(tiny.path(f"BOP/{name}"))
    annotations = tiny.annotations(*args)
    assert f"BOP/{name}/test/1/rgb/000000.png" in annotations
    assert len(annotations) == (3 if args else 9)


@pytest.mark.parametrize("option, part, skip", [("owid", "OWID", "robotools"), ("robotools", "RoboTools", "owid")])
@pytest.mark.parametrize("path", [".", "./"])
def test_a_set_that_is_the_root_itself_has_paths_of_the_root(tiny, option, part, skip, path):
    root = tiny.path(part)
    args = (f"--{option}-path", path, f"--skip-{skip}", "--output-file", tiny.path("anns.pt"), "--workers", 1)
    assert run_here("create_dataset.py", "--voxdet-root", root, "--relative-paths", *args).returncode == 0
    assert run_here("verify_dataset.py", tiny.path("anns.pt"), "--base-path", root).returncode == 0
    assert all(not path.startswith(("/", ".")) for path in load_plainly(tiny.path("anns.pt")))


# --------------------------------------------------------------------------------------------------- photographs, names


def test_a_photograph_in_cmyk_or_grey_or_progressive_is_used(tiny):
    for mode, options in (("CMYK", {}), ("L", {}), ("RGB", {"progressive": True}), ("RGB", {"optimize": True})):
        for path in (QUERY, PHOTOGRAPH):
            Image.new(mode, (64, 48)).save(str(tiny.path(path)), **options)
        assert len(tiny.annotations()) == 9


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_and_boxes_count_pixels_as_they_are_stored_whatever_exif_says_of_turning(tiny, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for path in (QUERY, PHOTOGRAPH):
        Image.new("RGB", (64, 48)).save(str(tiny.path(path)), exif=exif.tobytes())
        assert Image.open(str(tiny.path(path))).getexif()[0x0112] == orientation
    annotations = tiny.annotations()
    assert np.array_equal(decode(annotations[QUERY]["mask"]), tiny.mask > 0)
    assert annotations[QUERY]["bbox"] == (20, 10, 50, 30)


NAMES = [b"a name.jpg", b'it\'s "quoted".jpg', "caf\u00e9 \u96ea.jpg".encode(), b"-rf.jpg", b"$(x) `y` *?[1].jpg"]
NAMES += [b"caf\xe9.jpg", b"two\nlines.jpg", b"a.b.c.jpg", b"\x1b[31m.jpg", b"000000.JPG", b"000000.jPeG"]


def rename_query(tiny, name, kinds=("rgb", "mask")):
    for kind in kinds:
        folder = os.fsencode(str(tiny.path(f"OWID/P1/3/{kind}")))
        try:
            os.rename(os.path.join(folder, b"000000.jpg"), os.path.join(folder, name))
        except OSError:
            pytest.skip("the file system does not take this name")


@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_bytes_are_used_and_the_file_still_loads_and_passes(tiny, name):
    rename_query(tiny, name)
    annotations = tiny.annotations()
    assert f"OWID/P1/3/rgb/{os.fsdecode(name)}" in annotations
    assert len(annotations) == 9
    done, report = verify(tiny.path("anns.pt"), tiny.root)
    assert (done.returncode, report["issues"]) == (0, [])


def test_names_of_any_bytes_come_through_the_workers_and_the_report(tiny):
    rename_query(tiny, b"caf\xe9\n.jpg", ["rgb"])
    done = Fork("create_dataset.py", "--voxdet-root", tiny.root, "--output-file", tiny.path("anns.pt")).wait()
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = [line for line in done.stdout.splitlines() if "query without a mask" in line]
    assert line.endswith("/OWID/P1/3/rgb/caf\\udce9\\n.jpg")


def test_endings_in_upper_case_are_paired_with_masks_of_any_ending(tiny):
    for path, new in ((QUERY, "000000.JPG"), (REAL_QUERY, "000000.PNG"), (REAL_MASK, "000000.Png")):
        tiny.path(path).rename(tiny.path(path).with_name(new))
    tiny.path(MASK).unlink()
    tiny.save_image("OWID/P1/3/mask/000000.BMP", tiny.mask)
    annotations = tiny.annotations()
    assert len(annotations) == 9
    assert np.array_equal(decode(annotations["OWID/P1/3/rgb/000000.JPG"]["mask"]), tiny.mask > 0)


def test_stray_files_are_passed_over(tiny):
    for name in ("OWID/P1/._3", "OWID/P1/3/rgb/._000000.jpg", "OWID/P1/3/rgb/Thumbs.db", "OWID/P1/3/notes.txt"):
        tiny.path(name).write_bytes(b"stray")
    assert len(tiny.annotations()) == 9


# --------------------------------------------------------------------------------------------------- what it cannot use


def overwrite(name, content):
    return lambda tiny: tiny.path(name).write_bytes(content)


def remove(name):
    return lambda tiny: tiny.path(name).unlink()


def save(name, *args):
    return lambda tiny: tiny.save_image(name, *args)


def truncate(name):
    return lambda tiny: os.truncate(str(tiny.path(name)), tiny.path(name).stat().st_size * 2 // 3)


def put(name, kind):
    """Something else where an image was."""

    def damage(tiny):
        path = tiny.path(name)
        path.unlink()
        if kind == "animated GIF":
            first, second = (Image.fromarray(mask) for mask in (tiny.mask, 255 - tiny.mask))
            first.save(str(path), format="GIF", save_all=True, append_images=[second])
        elif kind in ("TIFF", "WebP"):
            Image.fromarray(tiny.mask).save(str(path), format=kind)
        elif kind == "folder":
            path.mkdir()
        elif kind == "FIFO":
            os.mkfifo(str(path))
        else:
            path.symlink_to({"link to a folder": "..", "link to nowhere": "nowhere.jpg"}.get(kind, path.name))

    return damage


def add_record(kind, record):
    def damage(tiny):
        tiny.train[kind].append(record)
        tiny.write_json()

    return damage


def add_annotation(**changes):
    return lambda tiny: add_record("annotations", {**tiny.train["annotations"][0], "id": 1, **changes})(tiny)


def add_image(**changes):
    return lambda tiny: add_record("images", {**tiny.train["images"][0], "id": 1, **changes})(tiny)


NO_IMAGE, NO_MASK = (f"query whose {part} cannot be read" for part in ("image", "mask"))
NO_PHOTOGRAPH = "gallery image that is missing or cannot be read"
OTHER_SIZE = "query whose image and mask differ in size"
NO_SUCH_SIZE = "gallery image whose size is not what its annotations say"
HUGE, NAN, INF = 10**400, float("nan"), float("inf")
KINDS = ["animated GIF", "TIFF", "WebP", "folder", "FIFO", "link to a folder", "link to nowhere", "link to itself"]
NO_BOXES = [None, [1, 2, 3], [1, 2, 0, 4], [1, 2, 3, -4], [1, 2, NAN, 4], [1, 2, INF, 4], [1, 2, HUGE, 4]]
NO_BOXES += [["1", "2", "3", "4"], {"x": 1}]
NO_POLYGONS = [[], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], [[1, 2, 3, 4, 5, None]], [[1, 2, 3, 4, 5, 1e9]]]
NO_POLYGONS += [[[1, 2, 3, 4, 5, NAN]], [1, 2, 3, 4, 5, 6]]
NO_COUNTS = [[10, 20], [10, -5, 3067], [3072], [], [10.0, 3062.0], [10, [3062]], [HUGE], "o" * 40, "\ud800é", None]
NO_SIZES = [[64, 48], [48], ["48", "64"], None]
NO_MASKS = [None, "text", *NO_POLYGONS, {"counts": [10, 3062]}, {"counts": [0, 10**12], "size": [10**6, 10**6]}]
NO_MASKS += [{"counts": [10, 3062], "size": size} for size in NO_SIZES]
NO_MASKS += [{"counts": [10, 49 * 64 - 10], "size": [49, 64]}, {"counts": [10, 48 * 65 - 10], "size": [48, 65]}]
NO_NAMES = ["../P2/images/000000.jpg", "images/../../../secret.jpg", "/etc/passwd", "images\\000000.jpg"]
NO_NAMES += ["C:images/000000.jpg", "images/000000.jpg\0.jpg", "a" * 5000, "9" * 5000, "", None, [OTHER_PHOTOGRAPH]]

DAMAGE = [
    (remove(MASK), "query without a mask"),
    (remove(QUERY), "mask without an image"),
    (save(MASK, np.zeros((48, 64), np.uint8)), "query with an empty mask"),
    *[(save(MASK, np.full(size, 255, np.uint8)), OTHER_SIZE) for size in ((24, 64), (64, 48))],  # a part; transposed
    *[(truncate(path), NO_MASK) for path in (MASK, REAL_MASK)],
    *[(truncate(path), NO_IMAGE) for path in (QUERY, REAL_QUERY)],
    *[(overwrite(MASK, content), NO_MASK) for content in (b"", b"no image at all", b"GIF89a" + bytes(20))],
    (overwrite(QUERY, b""), NO_IMAGE),
    *[(put(path, kind), NO_MASK) for kind in KINDS for path in (MASK, REAL_MASK)],
    *[(put(QUERY, kind), NO_IMAGE) for kind in KINDS],
    *[(put(PHOTOGRAPH, kind), NO_PHOTOGRAPH) for kind in KINDS],
    (remove(PHOTOGRAPH), NO_PHOTOGRAPH),
    (truncate(PHOTOGRAPH), NO_PHOTOGRAPH),
    (overwrite(PHOTOGRAPH, b""), NO_PHOTOGRAPH),
    *[(save(PHOTOGRAPH, np.zeros(size, np.uint8)), NO_SUCH_SIZE) for size in ((24, 64), (64, 48))],
    (lambda tiny: tiny.path("OWID/P1/no number").mkdir(), "folder whose name holds no instance id"),
    (lambda tiny: tiny.path("OWID/P1/77").mkdir(), "instance folder without images in rgb/"),
    *[(add_annotation(image_id=value), "annotation that points to no image") for value in (77, None, [0], "0")],
    (add_record("annotations", 7), "annotation that points to no image"),
    *[
        (add_annotation(category_id=value), "annotation without an instance id")
        for value in ("3", None, True, -1, HUGE)
    ],
    *[(add_annotation(bbox=box), "annotation without a box of positive size") for box in NO_BOXES],
    *[(add_annotation(segmentation=mask), "annotation without a usable mask") for mask in NO_MASKS],
    (add_image(file_name="images/7.jpg"), "image without annotations"),
    *[(add_image(id=value), "image record without an id of its own") for value in (0, "1")],
    (add_record("images", None), "image record without an id of its own"),
    *[(add_image(file_name=name), "image whose file name is no path inside its folder") for name in NO_NAMES],
]


@pytest.mark.parametrize("damage, reason", DAMAGE)
def test_what_cannot_be_used_is_skipped_and_counted_and_the_rest_goes_on(tiny, damage, reason):
    _, whole = tiny.create()
    damage(tiny)
    done, annotations = tiny.create("--strict")
    assert done.returncode == 1
    verified, _ = verify(tiny.path("anns.pt"), tiny.root)
    assert verified.returncode == 0, verified.stdout  # whatever is written passes
    ((found, number),) = reasons(done, "skipped").items()
    assert (found.startswith(reason), number) == (True, 1)
    lost = set(whole) - set(annotations)
    assert len(lost) == ("query" in reason or "mask without" in reason or reason.startswith("gallery"))
    assert all(annotations[path] == whole[path] for path in annotations)
    assert tiny.create()[0].returncode == 0  # without --strict


def test_twins_are_used_once(tiny):
    """A photograph in two formats, and folders of one instance id."""
    for twin in ("OWID/P1/3/rgb/000000.png", "OWID/P1/20/rgb/000000.jpeg"):
        tiny.save_image(twin)
    for first, second in (("RoboTools/test_video/obj_000003", "obj_3"), ("OWID/P1/3", "backup_3")):
        shutil.copytree(str(tiny.path(first)), str(tiny.path(first).with_name(second)))
    done, annotations = tiny.create()
    twins = {"second photograph of the same name": 2, "folder with the instance id of another": 2}
    assert reasons(done, "skipped") == twins
    assert len(annotations) == 9
    assert set(annotations) >= {QUERY, "OWID/P1/20/rgb/000000.jpg"}


@pytest.mark.parametrize("part", ["mask", "rgb"])
def test_what_a_skipped_file_suffers_from_is_said(tiny, part):
    path = tiny.path(f"RoboTools/test_video/obj_000003/{part}/000000.png")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    done, _ = tiny.create()
    (line,) = [line for line in done.stdout.splitlines() if "cannot be read" in line]
    what = "mask" if part == "mask" else "image"
    try:
        Image.open(str(path)).load()
        raise AssertionError("the file is whole")
    except (OSError, SyntaxError) as error:
        reason = str(error)
    assert f"query whose {what} cannot be read: RoboTools/test_video/obj_000003/rgb/000000.png ({reason})" in line


def test_text_of_a_file_cannot_forge_a_line_of_the_report(tiny):
    for number in range(5):
        tiny.train["annotations"].append({**tiny.train["annotations"][0], "segmentation": f"{number}\nwrote\x1b[31m"})
    tiny.train["images"].append({"id": 1, "file_name": "a\nwrote b.jpg", "width": 64, "height": 48})
    tiny.write_json()
    done, _ = tiny.create()
    assert done.stdout.count("\nwrote") == 1
    assert "5 x annotation without a usable mask (no segmentation)" in done.stdout
    assert "\x1b" not in done.stdout


def test_the_report_names_three_places_and_counts_all(tiny):
    for number in range(5):
        tiny.path(f"OWID/P1/name {number}").mkdir()
    done, _ = tiny.create()
    (line,) = [line for line in done.stdout.splitlines() if "no instance id" in line]
    assert line.split(" x ")[0].strip() == "5"
    assert line.endswith("OWID/P1/name 0, OWID/P1/name 1, OWID/P1/name 2, ...")


def test_a_png_that_claims_to_be_huge_is_skipped(tiny):
    data = bytearray(tiny.path(REAL_MASK).read_bytes())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    tiny.path(REAL_MASK).write_bytes(bytes(data))
    done, annotations = tiny.create()
    assert f"1 x {NO_MASK}" in done.stdout
    assert len(annotations) == 8


# ------------------------------------------------------------------------------------------ what it cannot start or end


@pytest.mark.parametrize(
    "missing, option",
    [
        ("OWID", "--skip-owid"),
        ("OWID/P1", "--owid-path"),
        ("OWID/P2/val_annotations.json", "--owid-path"),
        ("RoboTools", "--skip-robotools"),
        ("RoboTools/test_video", "--robotools-path"),
        ("RoboTools/test/scene_gt_coco_all.json", "--robotools-path"),
    ],
)
def test_what_is_missing_is_named_with_the_option_that_helps(tiny, missing, option):
    path = tiny.path(missing)
    shutil.rmtree(str(path)) if path.is_dir() else path.unlink()
    done, annotations = tiny.create()
    refused(done, missing, option)
    assert annotations is None


def test_nothing_to_do_and_nothing_found_are_errors(tiny):
    done, annotations = tiny.create("--skip-owid", "--skip-robotools")
    refused(done)
    assert annotations is None
    shutil.rmtree(str(tiny.path("OWID/P1")))
    tiny.path("OWID/P1").mkdir()
    tiny.train = tiny.val = {"images": [], "annotations": []}
    tiny.write_json()
    done, annotations = tiny.create("--skip-robotools")
    refused(done)
    assert annotations is None


@pytest.mark.parametrize("missing, what", [("query", "queries"), ("gallery", "gallery images")])
def test_a_set_without_queries_or_without_gallery_is_no_data_set(tiny, missing, what):
    if missing == "query":
        for folder in tiny.path("RoboTools/test_video").iterdir():
            shutil.rmtree(str(folder / "rgb"))
    else:
        tiny.path("RoboTools/test/1/rgb/000000.png").unlink()
    done, annotations = tiny.create()
    assert (done.returncode, annotations) == (2, None)
    assert f"RoboTools has no {what} that can be used, so nothing was written" in done.stderr


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--max-categories", "x"], ["--unknown"]])
def test_bad_arguments_exit_with_2(tiny, arguments):
    assert tiny.create(*arguments)[0].returncode == 2


def test_help_comes_without_torch(tmp_path):
    code = "import sys, runpy; sys.argv = ['x', '--help']\n"
    code += f"try: runpy.run_path({str(ROOT / 'create_dataset.py')!r}, run_name='__main__')\n"
    code += "except SystemExit: pass\nassert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, cwd=str(ROOT)).returncode == 0


# ----------------------------------------------------------------------------------------------------------- the output


def test_the_output_is_replaced_whole_so_that_who_reads_the_old_one_keeps_it(tiny):
    tiny.path("anns.pt").write_bytes(b"old" * 100)
    with open(str(tiny.path("anns.pt")), "rb") as reader:
        annotations = tiny.annotations()
        assert reader.read() == b"old" * 100
    assert len(annotations) == 9


def test_a_link_as_output_stays_a_link(tiny):
    tiny.path("target").mkdir()
    tiny.path("anns.pt").symlink_to("target/anns.pt")
    annotations = tiny.annotations()
    assert tiny.path("anns.pt").is_symlink()
    assert load_plainly(tiny.path("target/anns.pt")) == annotations


def test_no_file_but_the_output_appears_which_is_an_ordinary_torch_file(tiny):
    before = files_below(str(tiny.root))
    tiny.create()
    assert files_below(str(tiny.root)) == sorted([*before, "anns.pt"])
    with zipfile.ZipFile(str(tiny.path("anns.pt"))) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        assert len(pickle.loads(archive.read(name))) == 9


@pytest.mark.parametrize("count", [0, 1, 2, 999, 1000, 1001, 2001])
def test_any_number_of_entries_comes_back(tmp_path, count):
    """They are written a thousand at a time."""
    box = (1, 2, 3, 4)
    mask = {"size": [48, 64], "counts": "caf\u00e9"}
    entry = {"bbox": [box, box], "mask": [mask, mask], "is_query": False, "set": "mine"}
    entries = {f"{number}.jpg": {**entry, "ins": [number, 0]} for number in range(count)}
    assert save_annotations(entries, str(tmp_path / "anns.pt")) == (tmp_path / "anns.pt").stat().st_size
    assert load_plainly(tmp_path / "anns.pt") == load_annotations(str(tmp_path / "anns.pt")) == entries


def test_closed_streams_and_broken_pipes_lose_nothing(tiny):
    words = [sys.executable, ROOT / "create_dataset.py", "--voxdet-root", tiny.root]
    words += ["--output-file", tiny.path("anns.pt")]
    script = " ".join(shlex.quote(str(word)) for word in words)
    for ending in (">&-", "2>&-", "| true"):
        command = f"unset PYTHONUNBUFFERED; {script} --workers 1 {ending}"
        done = subprocess.run(command, shell=True, stderr=subprocess.PIPE)
        assert done.stderr == b""
        assert len(load_plainly(tiny.path("anns.pt"))) == 9
        tiny.path("anns.pt").unlink()
