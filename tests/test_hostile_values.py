"""Values that are plain, so that they load, and are made to be trouble: too deep, too large, too many, too long."""

import json
import os
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
from conftest import load_plainly, needs_proc, run_here
from hostile_pickles import dict_opcodes, hostile_values, tensor_pickle, zip_pickle
from PIL import Image
from run_fork import Fork
from test_hostile_files import own_memory

QUERY = {"bbox": (20, 10, 50, 30), "mask": None, "is_query": True, "ins": 3, "set": "INSTRE-XS"}
PHOTOGRAPH = {"bbox": [(20, 10, 50, 30)], "mask": [], "is_query": False, "ins": [3], "set": "INSTRE-XS"}
RLE = {"size": [48, 64], "counts": "0P`0"}


@pytest.fixture
def base(tmp_path):
    """A folder with a query and a gallery image, both 64 x 48."""
    for name in ("query.jpg", "photograph.jpg"):
        Image.new("RGB", (64, 48), (200, 150, 90)).save(str(tmp_path / name))
    return tmp_path


def save(base, query=None, photograph=None):
    """An annotation file of these two, with other fields."""
    entries = {"query.jpg": {**QUERY, **(query or {})}, "photograph.jpg": {**PHOTOGRAPH, **(photograph or {})}}
    torch.save(entries, str(base / "anns.pt"))
    return base / "anns.pt"


def run_bounded(script, *args, memory=400 * 2**20):
    """Run a script that may take so much memory: (exit status, stdout, stderr); stderr must be empty, or one line."""
    limit = own_memory() + memory
    run = Fork(script, *args)
    status, stdout, stderr = run.wait()
    assert status in (0, 1, 2), stderr
    assert len(stderr.splitlines()) == (status == 2), stderr
    assert run.memory < limit
    return status, stdout, stderr


# --------------------------------------------------------------------------------------------------- too deep, too many


@pytest.mark.parametrize("name", hostile_values())
@pytest.mark.parametrize("field", ["bbox", "mask", "is_query", "ins", "set", "split", "obj_name", "num_ins", "entry"])
def test_a_field_that_is_too_large_to_look_at_is_an_error_like_any_other(tmp_path, name, field):
    entries = {}
    for path, entry in (("query.jpg", QUERY), ("photograph.jpg", PHOTOGRAPH)):
        entries[path] = dict_opcodes({**entry, field: hostile_values()[name]})
        if field == "entry":
            entries[path] = hostile_values()[name]
    zip_pickle(tmp_path / "anns.pt", b"\x80\x02" + dict_opcodes(entries) + b".")
    done = run_here("verify_dataset.py", "--ann-file", tmp_path / "anns.pt", "--skip-paths", "--verbose")
    assert (done.returncode, done.stderr) == (1, "")
    (tmp_path / "rankings.json").write_text("{}")
    done = run_here(
        "evaluate_retrieval.py", "--ann-file", tmp_path / "anns.pt", "--rankings", tmp_path / "rankings.json"
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", hostile_values())
def test_rankings_and_features_that_are_too_large_to_look_at_are_faults(base, name):
    value = hostile_values()[name]
    anns = save(base)
    for content in ({"query.jpg": value}, {"query.jpg": b"]" + value + b"a"}):
        zip_pickle(base / "rankings.pt", b"\x80\x02" + dict_opcodes(content) + b".")
        done = run_here("evaluate_retrieval.py", "--ann-file", anns, "--rankings", base / "rankings.pt")
        assert (done.returncode, done.stderr) == (1, "")
    for content in ({"query.jpg": value}, {"paths": b"]" + value + b"a", "features": [[1]]}):
        zip_pickle(base / "features.pt", b"\x80\x02" + dict_opcodes(content) + b".")
        done = run_here("evaluate_retrieval.py", "--ann-file", anns, "--features", base / "features.pt")
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1


@needs_proc
def test_more_issues_than_fit_into_memory_are_counted(tmp_path):
    entries = {f"{number}.jpg": {**PHOTOGRAPH, "bbox": [], "ins": [None] * 100_000} for number in range(30)}
    torch.save(entries, str(tmp_path / "anns.pt"))
    status, stdout, _ = run_bounded("verify_dataset.py", "--ann-file", tmp_path / "anns.pt", "--skip-paths")
    assert status == 1
    assert "error id-type: an instance id is no integer from 0 to 2^63 - 1: 3,000,000" in stdout


@needs_proc
def test_more_unknown_paths_than_fit_into_memory_are_counted(tmp_path):
    queries = [f"{number}.jpg" for number in range(40)]
    torch.save({**dict.fromkeys(queries, QUERY), "photograph.jpg": PHOTOGRAPH}, str(tmp_path / "anns.pt"))
    torch.save({query: [None] * 50_000 for query in queries}, str(tmp_path / "rankings.pt"))
    args = ("--ann-file", tmp_path / "anns.pt", "--rankings", tmp_path / "rankings.pt")
    status, stdout, _ = run_bounded("evaluate_retrieval.py", *args, memory=200 * 2**20)
    assert status == 1
    assert "40 x query that ranks a path that is no gallery image here" in stdout
    assert " and 49,999 more" in stdout


def test_a_file_whose_lists_stand_for_many_is_refused(base):
    boxes, masks, ids = [(0, 0, 64, 48)] * 5000, [RLE] * 5000, [3] * 5000
    photograph = {**PHOTOGRAPH, "set": "OWID", "bbox": boxes, "mask": masks, "ins": ids}
    text = {**QUERY, "set": "OWID", "mask": {"size": [48, 64], "counts": "1" * 100_000}}
    for entry in (photograph, text):
        torch.save(dict.fromkeys(map(str, range(200)), entry), str(base / "anns.pt"))
        done = run_here("verify_dataset.py", "--ann-file", base / "anns.pt")
        assert (done.returncode, done.stdout) == (2, "")
        assert "over ten times as large as it is" in done.stderr
    anns = save(base)
    queries = {f"{number}.jpg": ["photograph.jpg"] * 10_000 for number in range(1)}
    queries.update(dict.fromkeys(map(str, range(1000)), queries["0.jpg"]), **{"query.jpg": queries["0.jpg"]})
    torch.save(queries, str(base / "rankings.pt"))
    done = run_here("evaluate_retrieval.py", "--ann-file", anns, "--rankings", base / "rankings.pt")
    assert (done.returncode, done.stdout) == (2, "")
    assert "over ten times as large as it is" in done.stderr


@pytest.mark.parametrize("number", [2**63, 2**2000, -1])
def test_an_id_beyond_64_bits_is_an_error(base, number):
    done = run_here("verify_dataset.py", "--ann-file", save(base, {"ins": number}), "--skip-paths")
    assert done.returncode == 1
    assert "error id-type" in done.stdout


# --------------------------------------------------------------------------------------------------------------- masks


@needs_proc
def test_long_masks_are_checked_one_at_a_time(tmp_path):
    mask = {"size": [2000, 2000], "counts": "1" * 3_000_000}
    query = {**QUERY, "set": "RoboTools", "mask": mask}
    torch.save({f"{number}.jpg": query for number in range(8)}, str(tmp_path / "anns.pt"))
    status, stdout, _ = run_bounded("verify_dataset.py", "--ann-file", tmp_path / "anns.pt", "--skip-paths")
    assert status == 1
    assert "error mask-fill: the runs of a mask do not fill height x width: 8" in stdout


def test_a_mask_that_is_far_too_long_is_not_decoded(base):
    mask = {"size": [48, 64], "counts": "1" * 4_000_001}
    anns = save(base, {"set": "RoboTools", "mask": mask}, {"set": "RoboTools"})
    done = run_here("verify_dataset.py", "--ann-file", anns, "--base-path", base)
    assert done.returncode == 1
    assert "counts is far too long, 4,000,001 characters" in done.stdout


@needs_proc
def test_a_mask_of_noise_is_skipped_before_it_takes_gigabytes(tiny):
    checkerboard = np.indices((6000, 6000), dtype=np.uint8).sum(axis=0, dtype=np.uint8) & 1 == 1
    tiny.save_image("RoboTools/test_video/obj_000003/mask/000000.png", Image.fromarray(checkerboard))
    args = ("--voxdet-root", tiny.root, "--output-file", tiny.path("anns.pt"), "--workers", 1)
    status, stdout, _ = run_bounded("create_dataset.py", *args)
    assert status == 0
    assert "1 x query whose image or mask cannot be read" in stdout


@pytest.mark.parametrize("factor, usable", [(18, True), (22, False)])
@pytest.mark.parametrize("count", [1, 10])
def test_polygons_may_be_twenty_times_as_long_as_the_image_is_high_and_wide(tiny, factor, usable, count):
    far = factor * (48 + 64) / 2 / count
    polygon = [0, 10, far, 10, far, 11, 0, 11]  # about twice as long as it is far
    tiny.train["annotations"][0]["segmentation"] = [polygon] * count
    tiny.write_json()
    done, _ = tiny.create()
    assert done.returncode == 0
    assert ("a polygon is far larger than the image" in done.stdout) != usable


@pytest.mark.parametrize(
    "mask", [None, 5, "x", {}, {"size": "ab"}, {"size": [48]}, {"size": [-48, 64]}, {"size": [48, None]}]
)
def test_a_mask_without_a_size_is_an_error_for_an_evaluation_too(base, mask):
    anns = save(base, {"set": "OWID", "mask": RLE}, {"set": "OWID", "mask": [mask]})
    (base / "rankings.json").write_text(json.dumps({"query.jpg": ["photograph.jpg"]}))
    done = run_here("evaluate_retrieval.py", "--ann-file", anns, "--rankings", base / "rankings.json")
    assert done.returncode == 2
    assert "verify_dataset.py" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# --------------------------------------------------------------------------------------------------------------- boxes

FAR = 2**31
BOXES = {
    "as large as a box may be": (-1, -1, FAR, FAR),
    "far away": (FAR - 10, FAR - 10, FAR, FAR),
    "below a pixel": (5.1, 5.1, 5.3, 5.3),
    "without an area in floats": (1, 1, 1 + 2**-52, 1 + 2**-52),
    "a line": (0, 5, FAR, 5.5),
}


@needs_proc
@pytest.mark.parametrize("name", BOXES)
def test_a_preview_is_drawn_whatever_the_boxes(base, name):
    anns = save(base, {"bbox": BOXES[name]}, {"bbox": [BOXES[name]]})
    args = ("--ann-file", anns, "--skip-paths", "--base-path", base, "--preview", base / "preview.png")
    assert run_bounded("verify_dataset.py", *args)[0] == 0
    (base / "rankings.json").write_text(json.dumps({"query.jpg": [["photograph.jpg", 1, BOXES[name]]]}))
    args = ("--ann-file", anns, "--rankings", base / "rankings.json", "--base-path", base)
    assert run_bounded("evaluate_retrieval.py", *args, "--preview", base / "worst.png")[0] == 0
    for picture in ("preview.png", "worst.png"):
        with Image.open(str(base / picture)) as drawn:
            pixels = np.asarray(drawn.convert("RGB"), dtype=int)
        assert (np.abs(pixels - (200, 150, 90)).sum(axis=2) < 9).mean() > 0.1  # the photographs are there


def test_the_zoom_of_a_preview_shows_the_object(base):
    image = Image.new("RGB", (640, 480), (200, 150, 90))
    image.paste((10, 20, 250), (300, 200, 320, 215))
    image.save(str(base / "photograph.jpg"), quality=95)
    anns = save(base, None, {"bbox": [(300, 200, 320, 215)]})
    args = ("--ann-file", anns, "--base-path", base, "--preview", base / "preview.png")
    assert run_here("verify_dataset.py", *args).returncode == 0
    with Image.open(str(base / "preview.png")) as drawn:
        zoom = np.asarray(drawn.convert("RGB").crop((2 * 328 + 8, 32, 2 * 328 + 328, 272)), dtype=int)
    blue = (np.abs(zoom - (10, 20, 250)).sum(axis=2) < 60).mean()
    assert 0.3 < blue < 0.45  # of a zoom 1.6 times as wide and as high as the object


@pytest.mark.parametrize("box", [(0, 0, 1e-200, 1e-200), (0, 0, 1e-308, 1)])
def test_boxes_without_an_area_have_no_iou(base, box):
    anns = save(base, None, {"bbox": [box]})
    (base / "rankings.json").write_text(json.dumps({"query.jpg": [["photograph.jpg", 1, box]]}))
    args = ("--ann-file", anns, "--rankings", base / "rankings.json", "--report", base / "report.json")
    done = run_here("evaluate_retrieval.py", *args)
    assert (done.returncode, done.stderr) == (0, "")
    assert 0 <= json.loads((base / "report.json").read_text())["groups"]["all"]["IoU"] <= 1


@pytest.mark.parametrize(
    "mask", [5, {}, {"size": [48, 64]}, {"size": [48, 64], "counts": "~"}, {"size": [9, 9], "counts": [FAR]}]
)
def test_masks_that_a_sample_left_out_are_checked_before_they_are_drawn(base, mask):
    anns = save(base, {"set": "OWID", "mask": mask}, {"set": "OWID", "mask": [RLE], "bbox": [(0, 0, 64, 48)]})
    entries = load_plainly(anns)
    entries.update({f"sound {number}.jpg": {**entries["query.jpg"], "ins": 4, "mask": RLE} for number in range(99)})
    torch.save(entries, str(anns))
    args = ("--ann-file", anns, "--skip-paths", "--sample-masks", 1, "--base-path", base)
    done = run_here("verify_dataset.py", *args, "--preview", base / "preview.png")
    assert done.stderr == ""
    assert "wrote" in done.stdout


# --------------------------------------------------------------------------------------------- names, images, features


def test_names_in_a_list_may_be_of_any_digits(base):
    folder = base / "INSTRE-S1" / "01a"
    folder.mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (100, 100)).save(str(folder / f"{number}.jpg"))
        (folder / f"{number}.txt").write_text("1 1 10 10")
    (base / "queries.txt").write_text("INSTRE-S1/01a/0.jpg\n" + "9" * 5000 + ".jpg\n")
    (base / "gallery.txt").write_text("INSTRE-S1/01a/1.jpg\n")
    args = ("--query-list", base / "queries.txt", "--gallery-list", base / "gallery.txt", "--workers", 1)
    done = run_here("create_instre_subsets.py", "--instre-root", base, "--output-dir", base, *args)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 x listed image that is not there" in done.stdout


@pytest.mark.parametrize("base_path", ["..", ".", "../inner", "absolute"])
def test_a_path_that_climbs_out_of_the_base_path_is_not_read(base, monkeypatch, base_path):
    anns = save(base)
    entries = load_plainly(anns)
    inner = base / "outer" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    root = str(base / "outer") if base_path == "absolute" else base_path
    up = os.path.relpath(str(base / "query.jpg"), root)
    torch.save({up: entries["query.jpg"], "photograph.jpg": entries["photograph.jpg"]}, str(anns))
    done = run_here("verify_dataset.py", "--ann-file", anns, "--base-path", root)
    assert f"error path-outside: the path leads out of --base-path: 1\n  {up}" in done.stdout


@pytest.mark.parametrize("name", ["\ud800.jpg", "a\0.jpg", "x" * 5000, "/" * 5000, "\n", "../query.jpg"])
def test_a_path_of_any_characters_is_an_error_like_any_other(base, name):
    torch.save({name: QUERY, "photograph.jpg": PHOTOGRAPH}, str(base / "anns.pt"))
    done = run_here("verify_dataset.py", "--ann-file", base / "anns.pt", "--base-path", base)
    assert (done.returncode, done.stderr) == (1, "")
    assert "error path-" in done.stdout


def test_a_preview_has_names_of_any_letters(base):
    for old, new in (("query.jpg", "\u65e5\u672c.jpg"), ("photograph.jpg", "\U0001f600.jpg")):
        (base / old).rename(base / new)
    entries = {"\u65e5\u672c.jpg": QUERY, "\U0001f600.jpg": PHOTOGRAPH}
    torch.save(entries, str(base / "anns.pt"))
    args = ("--ann-file", base / "anns.pt", "--base-path", base, "--preview", base / "preview.png")
    assert run_here("verify_dataset.py", *args).returncode == 0
    assert (base / "preview.png").exists()


def png_claiming(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_what_pillow_warns_of_is_not_heard(base):
    palette = Image.new("P", (64, 48))
    palette.putpalette([number % 256 for number in range(768)])
    palette.save(str(base / "query.jpg"), format="PNG", transparency=b"\x00\x80\xff\x10")
    args = ("--ann-file", save(base), "--base-path", base, "--preview", base / "preview.png")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        done = run_here("verify_dataset.py", *args)
    assert not heard
    assert (done.returncode, done.stderr) == (0, "")


def test_images_that_claim_to_be_large_are_refused_without_a_warning(base):
    anns = save(base)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for side in (9_460, 13_000, 60_000):
            (base / "query.jpg").write_bytes(png_claiming(side, side))
            done = run_here("verify_dataset.py", "--ann-file", anns, "--base-path", base)
            assert (done.returncode, done.stderr) == (1, "")
            assert "error path-not-image" in done.stdout
    assert not heard


def test_a_feature_whose_conversion_warns_is_not_heard(base):
    anns = save(base)
    signalling = np.array([0x7FF0000000000001] * 4, dtype=np.uint64).view(np.float64)
    np.savez(str(base / "features.npz"), **{"query.jpg": signalling, "photograph.jpg": np.ones(4)})
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        done = run_here("evaluate_retrieval.py", "--ann-file", anns, "--features", base / "features.npz")
    assert not heard
    assert (done.returncode, done.stderr) == (1, "")
    assert "1 x query whose feature is not finite, or zero" in done.stdout


TENSORS = {
    "sparse": lambda: torch.eye(4).to_sparse(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8),
    "a tensor subclass": lambda: torch.nn.Parameter(torch.ones(4)).as_subclass(
        torch.nn.parameter.UninitializedParameter
    ),
    "a module": lambda: torch.nn.Linear(2, 2),
    "a dtype": lambda: torch.float32,
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_of_other_kinds_cannot_be_scored(base, name):
    anns = save(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"query.jpg": TENSORS[name](), "photograph.jpg": torch.ones(4)}, str(base / "features.pt"))
    done = run_here("evaluate_retrieval.py", "--ann-file", anns, "--features", base / "features.pt")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8],
)
@pytest.mark.parametrize("view", [lambda t: t, lambda t: t.T, lambda t: t[1:, ::2], lambda t: t[1, 2].expand(3, 3)])
def test_tensors_of_every_type_and_view_are_read_as_torch_reads_them(tmp_path, dtype, view):
    from safe_loading import load_tensors

    tensor = view((torch.arange(-12, 12).reshape(4, 6) * 2).to(dtype))
    torch.save({"a": tensor, "b": [tensor]}, str(tmp_path / "tensors.pt"))
    read = load_tensors(str(tmp_path / "tensors.pt"))
    for array in (read["a"], read["b"][0]):
        assert array.shape == tuple(tensor.shape)
        assert array.tolist() == tensor.tolist()


OUT_OF_STORAGE = {
    "an empty storage": ((50_000_000,), (1,), 0, b""),
    "one number too many": ((11,), (1,), 0, b"0" * 40),
    "an offset behind the end": ((1,), (1,), 10, b"0" * 40),
    "a stride of 2^60": ((5,), (2**60,), 0, b"0" * 40),
    "a negative shape": ((-1,), (1,), 2, b"0" * 40),
    "a negative stride": ((2,), (-1,), 0, b"0" * 40),
    "a negative offset": ((1,), (1,), -1, b"0" * 40),
    "other dimensions than strides": ((1, 1), (1,), 0, b"0" * 40),
    "half a number": ((1,), (1,), 0, b"0" * 3),
}


@pytest.mark.parametrize("name", OUT_OF_STORAGE)
def test_a_tensor_that_reaches_out_of_its_storage_is_refused(base, name):
    anns = save(base)
    shape, strides, offset, data = OUT_OF_STORAGE[name]
    tensor_pickle(base / "features.pt", (10,), (1,), 0)
    done = run_here("evaluate_retrieval.py", "--ann-file", anns, "--features", base / "features.pt")
    assert "has a feature for none of the images" in done.stderr  # it was read
    tensor_pickle(base / "features.pt", shape, strides, offset, data=data)
    done = run_here("evaluate_retrieval.py", "--ann-file", anns, "--features", base / "features.pt")
    assert done.returncode == 2
    assert "was not loaded" in done.stderr


@pytest.mark.parametrize(
    "code", [b"X\x01\x00\x00\x00O", b"X\x03\x00\x00\x001f4", b"X\x02\x00\x00\x00V8", b"N", b"cnumpy\nndarray\n"]
)
def test_a_storage_of_objects_is_refused(base, code):
    anns = save(base)
    tensor_pickle(base / "features.pt", (1,), (1,), code=code)
    done = run_here("evaluate_retrieval.py", "--ann-file", anns, "--features", base / "features.pt")
    assert done.returncode == 2
    assert "was not loaded" in done.stderr


@needs_proc
def test_a_record_of_the_archive_that_unpacks_to_gigabytes_is_refused(base):
    anns = save(base)
    tensor_pickle(base / "features.pt", (1,), (1,))
    with zipfile.ZipFile(str(base / "features.pt"), "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/byteorder", b"0" * 500_000_000)
    status, _, stderr = run_bounded("evaluate_retrieval.py", "--ann-file", anns, "--features", base / "features.pt")
    assert status == 2
    assert "is compressed, which torch never does" in stderr


@needs_proc
def test_queries_without_a_feature_take_no_memory(tmp_path):
    queries = [f"{number}.jpg" for number in range(3000)]
    torch.save({**dict.fromkeys(queries, QUERY), "photograph.jpg": PHOTOGRAPH}, str(tmp_path / "anns.pt"))
    torch.save({"photograph.jpg": torch.ones(250_000)}, str(tmp_path / "features.pt"))
    args = ("--ann-file", tmp_path / "anns.pt", "--features", tmp_path / "features.pt")
    status, stdout, _ = run_bounded("evaluate_retrieval.py", *args, memory=200 * 2**20)
    assert status == 1
    assert "3,000 x query without a feature, scored 0" in stdout


@pytest.mark.parametrize(
    "value",
    [
        [("photograph.jpg", 0.5)],
        (("photograph.jpg", 0.5, (1, 2, 3, 4)),),
        [("photograph.jpg", np.float64(0.5), (1.5, 2, np.int64(3), 4))],
        (np.str_("photograph.jpg"),),
    ],
)
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_tuples_and_numpy_values_of_rankings_load(base, value, protocol):
    anns = save(base)
    torch.save({np.str_("query.jpg"): value}, str(base / "rankings.pt"), pickle_protocol=protocol)
    done = run_here("evaluate_retrieval.py", "--ann-file", anns, "--rankings", base / "rankings.pt")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_values_of_numpy_and_tuples_load_as_lists(tmp_path, protocol):
    from safe_loading import load_plain

    content = {
        "whole": ((1, 2, 3, 4), (1,), (), (70_000, 2**31 - 1)),
        "mixed": [(1.5, 2), ("a", (None, True)), ((1, 2),), (1, 2, 3, 4, "five")],
        "arrays": [np.zeros((0, 4)), np.arange(12).reshape(3, 4), np.asfortranarray(np.eye(2)), np.array(["a", "bc"])],
        "numbers": [np.float32(0.5), np.int8(-3), np.bool_(True), np.str_("text"), 10**400],
    }
    torch.save(content, str(tmp_path / "values.pt"), pickle_protocol=protocol)
    assert load_plain(str(tmp_path / "values.pt")) == {
        "whole": [(1, 2, 3, 4), (1,), (), (70_000, 2**31 - 1)],
        "mixed": [[1.5, 2], ["a", [None, True]], [(1, 2)], [1, 2, 3, 4, "five"]],
        "arrays": [[], [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]], [[1, 0], [0, 1]], ["a", "bc"]],
        "numbers": [0.5, -3, True, "text", 10**400],
    }


def test_paths_of_features_are_text(base):
    anns = save(base)
    np.savez(str(base / "features.npz"), paths=np.array([["a" * 500] * 50] * 2), features=np.ones((2, 3)))
    done = run_here("evaluate_retrieval.py", "--ann-file", anns, "--features", base / "features.npz")
    assert done.returncode == 2
    assert len(done.stderr) < 400
