"""Files made to be trouble, at every input of the scripts: no code in them is run, they take little memory, and each is
refused in a line that names it, or skipped and counted, or listed as an error of the data."""

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
from conftest import needs_proc, run_here
from helpers import MIDDLE, make_files, make_instre, random_annotations, refused, save, score, write_json
from hostile_pickles import Call, dict_opcodes, hostile_values, zip_pickle
from PIL import Image
from run_fork import run_bounded

FAR = 2**31
QUERY = {"bbox": MIDDLE, "mask": None, "is_query": True, "ins": 3, "set": "INSTRE-XS"}
PHOTOGRAPH = {"bbox": [MIDDLE], "mask": [], "is_query": False, "ins": [3], "set": "INSTRE-XS"}
RLE = {"size": [48, 64], "counts": "0P`0"}


@pytest.fixture
def base(tmp_path):
    """A folder with a query and a gallery image, both 64 x 48."""
    for name in ("query.jpg", "photograph.jpg"):
        Image.new("RGB", (64, 48), (200, 150, 90)).save(str(tmp_path / name))
    return tmp_path


def save_two(base, query=None, photograph=None):
    """Save an annotation file of these two, with other fields. Returns its path."""
    entries = {"query.jpg": {**QUERY, **(query or {})}, "photograph.jpg": {**PHOTOGRAPH, **(photograph or {})}}
    return save(base, entries)


def verify(base, *args):
    return run_here("verify_dataset.py", "--ann-file", base / "anns.pt", "--base-path", base, *args)


def score_values(folder, annotations, option, values):
    """Score rankings or features, given as the bytes of a pickle or as values of a torch file."""
    file = folder / "scored.pt"
    if isinstance(values, bytes):
        zip_pickle(file, values)
    else:
        save(folder, values, file.name)
    return score(folder, annotations, option, file)[0]


# -------------------------------------------------------------------------------------------------------------- pickles


def dict_pickle(items):
    return b"\x80\x02" + dict_opcodes(items) + b"."


# Opcodes of values that are plain, but too large to look at.
TOO_LARGE = hostile_values()


@needs_proc
@pytest.mark.parametrize("kind", ["call", "memory"])
@pytest.mark.parametrize("option", ["verify", "--ann-file", "--rankings", "--features"])
def test_nothing_in_a_file_is_run_or_takes_much_memory(tiny, tmp_path, option, kind):
    """Every script that loads a file has the same loader; tests/test_loading.py has more pickles for it."""
    marker, file = tmp_path / "marker", tmp_path / "hostile.pt"
    _, anns, _, _, _, rankings = make_files(tmp_path, tiny.root)
    if kind == "call":
        zip_pickle(file, pickle.dumps({"a": {"bbox": [(Call(os.system, f"touch {marker}"),)]}}, 2))
    else:
        zip_pickle(file, b"\x80\x02}r\x00\x00\x00\x80.")  # it writes to the memo at 2^31
    files = {"--ann-file": anns, "--rankings": rankings}
    if option == "--features":
        del files["--rankings"]
    script = "evaluate_retrieval.py"
    if option == "verify":
        script, option, files = "verify_dataset.py", "--ann-file", {}
    refused(run_bounded(script, *sum({**files, option: file}.items(), ()), memory=300), file)
    assert not marker.exists()


@pytest.mark.parametrize("option", ["--ann-file", "--rankings", "--features"])
def test_other_files_are_refused(base, option):
    args = "--ann-file", save_two(base)
    hostile = pickle.dumps(Call(os.system, f"touch {base / 'marker'}"), 2)
    np.savez(str(base / "objects.npz"), a=np.array([Call(print, "run")], dtype=object))
    objects = (base / "objects.npz").read_bytes()
    with zipfile.ZipFile(str(base / "bomb.pt"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"]" * 10_000_000 + b".")
    with zipfile.ZipFile(str(base / "outside.pt"), "w") as archive:
        archive.writestr("../data.pkl", hostile)
    torch.save({"a": {}}, str(base / "legacy.pt"), _use_new_zipfile_serialization=False)
    for name, content in {"list.pt": [1, 2], "number.pt": 5, "tensor.pt": {"a": torch.zeros(3)}}.items():
        save(base, content, name)
    contents = {"bare.pt": hostile, "text.pt": b"text", "empty.pt": b"", "bare.npz": hostile, "empty.npz": b""}
    for name, content in {**contents, "objects.npz": objects, "half.npz": objects[:100]}.items():
        (base / name).write_bytes(content)
    (base / "folder.pt").mkdir()
    os.mkfifo(str(base / "fifo.pt"))
    names = [*contents, "bomb.pt", "outside.pt", "legacy.pt", "list.pt", "number.pt", "tensor.pt"]
    names += ["objects.npz", "half.npz", "folder.pt", "fifo.pt"]
    for name in [*names, "missing.pt", "missing.npz"]:
        if option == "--ann-file":
            refused(run_here("verify_dataset.py", option, base / name), name)
        elif option == "--features" or name.endswith(".pt"):
            line = refused(run_here("evaluate_retrieval.py", *args, option, base / name), name)
            assert "weights_only" not in line  # torch's advice: to load it unsafely
    assert not (base / "marker").exists()


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_field_that_is_too_large_to_look_at_is_an_error_like_any_other(tmp_path, name):
    fields = ["bbox", "mask", "is_query", "ins", "set", "split", "obj_name"]
    entries = {}
    for kind, entry, own in (("query", QUERY, []), ("photograph", PHOTOGRAPH, ["num_ins"])):
        entries[f"{kind} entry"] = TOO_LARGE[name]
        for field in fields + own:
            entries[f"{kind} {field}"] = dict_opcodes({**entry, field: TOO_LARGE[name]})
    anns, report = tmp_path / "anns.pt", tmp_path / "report.json"
    zip_pickle(anns, dict_pickle(entries))
    done = verify(tmp_path, "--skip-paths", "--verbose", "--report", report)
    assert (done.returncode, done.stderr) == (1, "")
    assert {issue["path"] for issue in json.loads(report.read_text())["issues"]} == set(entries)
    for path, entry in entries.items():
        zip_pickle(anns, dict_pickle({path: entry}))
        refused(score_values(tmp_path, anns, "--rankings", {}), "verify_dataset.py")


@pytest.mark.parametrize("name", TOO_LARGE)
def test_rankings_and_features_that_are_too_large_to_look_at_are_refused(base, name):
    value, anns = TOO_LARGE[name], save_two(base)
    for content in ({"query.jpg": value}, {"query.jpg": b"]" + value + b"a"}):
        done = score_values(base, anns, "--rankings", dict_pickle(content))
        refused(done)
    for content in ({"query.jpg": value}, {"paths": b"]" + value + b"a", "features": [[1]]}):
        refused(score_values(base, anns, "--features", dict_pickle(content)))


def test_text_of_a_file_cannot_forge_a_line_of_an_error(base):
    forged = "a\nPASSED\x1b[31m"
    lines = [refused(score_values(base, save(base, {forged: {"bbox": None}}), "--rankings", {}))]
    module = forged.encode()
    zip_pickle(base / "forged.pt", b"\x80\x04\x8c" + bytes([len(module)]) + module + b"\x8c\x01b\x93.")
    lines.append(refused(run_here("verify_dataset.py", base / "forged.pt")))
    lines.append(refused(score(base, save_two(base), "--features", base / "forged.pt")[0]))
    assert not [line for line in lines if "\x1b" in line]


def test_a_value_that_is_too_deep_to_be_written_again_is_an_error(base):
    deep = b"]" * 600 + b"a" * 599  # lists, each in the next one; Python's own pickler would not come so far
    data = pickle.dumps({"query.jpg": QUERY, "photograph.jpg": {**PHOTOGRAPH, "more": "DEEP"}}, protocol=2)
    zip_pickle(base / "anns.pt", data.replace(b"X\x04\x00\x00\x00DEEP", deep))
    (base / "out.pt").write_bytes(b"old")
    done = run_here("convert_annotations.py", "--ann-file", base / "anns.pt", "--output-file", base / "out.pt")
    refused(done, "out.pt", "nested too deeply")
    assert (base / "out.pt").read_bytes() == b"old"


def test_a_key_that_is_no_path_is_an_error_beside_detections_too(base):
    found = write_json(base, [{"image_id": "query.jpg", "bbox": [0, 0, 5, 5], "score": 0.9}], "found.json")
    save(base, {"query.jpg": QUERY, "photograph.jpg": PHOTOGRAPH, 1: PHOTOGRAPH})
    done = verify(base, "--skip-paths", "--detections", found)
    assert (done.returncode, done.stderr) == (1, "")
    assert "entry-type" in done.stdout


# ------------------------------------------------------------------------------------------------------------- too many


@needs_proc
def test_more_issues_than_fit_into_memory_are_counted(tmp_path):
    entries = {f"{number}.jpg": {**PHOTOGRAPH, "bbox": [], "ins": [None] * 100_000} for number in range(30)}
    done = run_bounded("verify_dataset.py", "--ann-file", save(tmp_path, entries), "--skip-paths", memory=400)
    assert done.returncode == 1
    assert "error id-type: an instance id is no integer from 0 to 2^63 - 1: 3,000,000" in done.stdout


@needs_proc
def test_more_unknown_paths_than_fit_into_memory_are_counted(tmp_path):
    queries = [f"{number}.jpg" for number in range(40)]
    anns = save(tmp_path, {**dict.fromkeys(queries, QUERY), "photograph.jpg": PHOTOGRAPH})
    rankings = save(tmp_path, {query: [None] * 50_000 + ["photograph.jpg"] for query in queries}, "rankings.pt")
    done = run_bounded("evaluate_retrieval.py", anns, "--rankings", rankings, memory=200)
    assert done.returncode == 1
    assert "40 x query that ranks a path that is no gallery image here" in done.stdout
    assert " and 49,999 more" in done.stdout


def test_a_file_whose_lists_stand_for_many_is_refused(base):
    boxes, masks, ids = [(0, 0, 64, 48)] * 5000, [RLE] * 5000, [3] * 5000
    photograph = {**PHOTOGRAPH, "set": "OWID", "bbox": boxes, "mask": masks, "ins": ids}
    text = {**QUERY, "set": "OWID", "mask": {"size": [48, 64], "counts": "1" * 100_000}}
    for entry in (photograph, text):
        save(base, dict.fromkeys(map(str, range(200)), entry))
        refused(verify(base), "over ten times as large as it is")
    ranking = ["photograph.jpg"] * 10_000
    rankings = {**dict.fromkeys(map(str, range(1000)), ranking), "query.jpg": ranking}
    refused(score_values(base, save_two(base), "--rankings", rankings), "over ten times as large as it is")


@needs_proc
def test_features_that_claim_to_be_huge_are_refused_before_they_take_memory(base):
    """A tensor may have any shape, and share its storage with all others; a list may be in the file once."""
    names, numbers = ["query.jpg", "photograph.jpg"], [1] * 50_000
    anns = save_two(base)
    for content in (
        {path: torch.ones(1).expand(10**8) for path in names},
        {"paths": names, "features": torch.ones(1, 1).expand(2, 10**8)},
        {f"{number}": numbers for number in range(1000)},
    ):
        features = save(base, content, "features.pt")
        done = run_bounded("evaluate_retrieval.py", anns, "--features", features, memory=300)
        refused(done, "over 100 times as large")
    np.savez_compressed(str(base / "bomb.npz"), zeros=np.zeros((4000, 4000), dtype=np.float32))
    refused(score(base, anns, "--features", base / "bomb.npz")[0], "over 100 times as large")


@needs_proc
def test_queries_without_a_feature_take_no_memory(tmp_path):
    queries = [f"{number}.jpg" for number in range(3000)]
    anns = save(tmp_path, {**dict.fromkeys(queries, QUERY), "photograph.jpg": PHOTOGRAPH})
    vectors = {"photograph.jpg": torch.ones(250_000), "0.jpg": torch.ones(250_000)}
    features = save(tmp_path, vectors, "features.pt")
    done = run_bounded("evaluate_retrieval.py", anns, "--features", features, memory=200)
    assert done.returncode == 1
    assert "2,999 x query without a feature, scored 0" in done.stdout


def shared(**fields):
    """An entry of a query, with values that a pickle holds once, however often they stand there."""
    return {"bbox": (0, 0, 5, 5), "is_query": True, "ins": 1, "set": "mine", **fields}


@needs_proc
@pytest.mark.parametrize("kind", ["sizes", "polygons", "names"])
def test_what_stands_once_in_a_file_takes_no_memory_each_time_it_is_used(base, kind):
    number = 9000
    options = ("verify_dataset.py", "--skip-paths")
    if kind == "sizes":
        mask = {"size": [1] * number, "counts": b"1"}
        objects = {"bbox": [(0, 0, 5, 5)] * number, "ins": [1] * number, "mask": [mask] * number, "is_query": False}
        entries = {"g": shared(**objects)}
    elif kind == "polygons":
        entries = {"q": shared(mask=[[1] * number] * number)}
    else:
        name = "x" * 100_000
        entries = {"q": shared(set=name), "g": shared(set=name, is_query=False, bbox=[None] * number, mask=[])}
        entries["g"]["ins"] = list(range(number))
        options = ("convert_annotations.py", "--coco", base / "c.json")
    torch.save(entries, str(base / "anns.pt"))
    done = run_bounded(*options, "--ann-file", base / "anns.pt", memory=200)
    assert done.returncode in (1, 2)
    assert "memory" not in done.stderr


# --------------------------------------------------------------------------------------------------------------- arrays


def npz_claiming(path, dtype, shape, data=b""):
    """A .npz file of one array with this header."""
    header = io.BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    with zipfile.ZipFile(str(path), "w") as archive:
        archive.writestr("paths.npy", header.getvalue() + data)


HOSTILE_ARRAYS = {
    "items of no bytes": ("|V0", (10**12,)),
    "text of no characters": ("<U0", (10**12,)),
    "rows of no numbers": ("<f4", (10**12, 0)),
    "bytes of no characters": ("|S0", (10**12,)),
    "numbers that are not there": ("<f4", (10**12,)),
    "dates": ("<M8[s]", (1,), b"\0" * 8),
    "a character beyond Unicode": ("<U1", (1,), b"\x00\x00\x11\x00"),
    "a character beyond Unicode, the other way round": (">U1", (1,), b"\x00\x11\x00\x00"),
}


@pytest.mark.parametrize("name", HOSTILE_ARRAYS)
@pytest.mark.parametrize("option", ["--features", "--rankings"])
def test_arrays_that_are_not_what_they_claim_end_in_a_line(tmp_path, name, option):
    npz_claiming(tmp_path / "f.npz", *HOSTILE_ARRAYS[name])
    done, _, _ = score(tmp_path, random_annotations(42), option, tmp_path / "f.npz")
    refused(done, "no .npz of numbers and text")


# -------------------------------------------------------------------------------------------------------- ids and masks


@needs_proc
def test_long_masks_are_checked_one_at_a_time(tmp_path):
    query = {**QUERY, "set": "RoboTools", "mask": {"size": [2000, 2000], "counts": "1" * 3_000_000}}
    anns = save(tmp_path, {f"{number}.jpg": query for number in range(8)})
    done = run_bounded("verify_dataset.py", "--ann-file", anns, "--skip-paths", memory=400)
    assert done.returncode == 1
    assert "error mask-fill: the runs of a mask do not fill height x width: 8" in done.stdout


@needs_proc
def test_a_mask_of_noise_is_skipped_before_it_takes_gigabytes(tiny):
    checkerboard = np.indices((6000, 6000), dtype=np.uint8).sum(axis=0, dtype=np.uint8) & 1 == 1
    tiny.save_image("RoboTools/test_video/obj_000003/mask/000000.png", Image.fromarray(checkerboard))
    args = ("--voxdet-root", tiny.root, "--output-file", tiny.path("anns.pt"), "--workers", 1)
    done = run_bounded("create_dataset.py", *args, memory=400)
    assert done.returncode == 0
    assert "1 x mask of far too many runs" in done.stdout


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


# -------------------------------------------------------------------------------------------------------- names, images


def test_names_in_a_list_may_be_of_any_digits(base):
    make_instre(base)
    (base / "queries.txt").write_text("INSTRE-S1/01a_book/0.jpg\n" + "9" * 5000 + ".jpg\n")
    (base / "gallery.txt").write_text("INSTRE-S1/01a_book/1.jpg\n")
    args = ("--query-list", base / "queries.txt", "--gallery-list", base / "gallery.txt", "--workers", 1)
    done = run_here("create_instre_subsets.py", "--instre-root", base, "--output-dir", base, *args)
    assert (done.returncode, done.stderr) == (0, "")
    assert "9" * 80 in done.stdout


@pytest.mark.parametrize("base_path", ["..", ".", "../inner", "absolute"])
def test_a_path_that_climbs_out_of_the_base_path_is_not_read(base, monkeypatch, base_path):
    inner = base / "outer" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    root = str(base / "outer") if base_path == "absolute" else base_path
    up = os.path.relpath(str(base / "query.jpg"), root)
    anns = save(base, {up: QUERY, "photograph.jpg": PHOTOGRAPH})
    done = run_here("verify_dataset.py", "--ann-file", anns, "--base-path", root)
    assert f"error path-outside: the path leads out of --base-path: 1\n  {up}" in done.stdout


def png_claiming(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture
def no_warnings():
    """No warning may be heard, of Pillow or NumPy on what is odd in a file."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        yield
    assert not heard


def test_what_pillow_warns_of_is_not_heard(base, no_warnings):
    palette = Image.new("P", (64, 48))
    palette.putpalette([number % 256 for number in range(768)])
    palette.save(str(base / "query.jpg"), format="PNG", transparency=b"\x00\x80\xff\x10")
    save_two(base)
    done = verify(base, "--preview", base / "preview.png")
    assert (done.returncode, done.stderr) == (0, "")


def test_images_that_claim_to_be_large_are_refused_without_a_warning(base, no_warnings):
    save_two(base)
    for side in (9_460, 13_000, 60_000):
        (base / "query.jpg").write_bytes(png_claiming(side, side))
        done = verify(base)
        assert (done.returncode, done.stderr) == (1, "")
        assert "error path-not-image" in done.stdout


def test_a_feature_whose_conversion_warns_is_not_heard(base, no_warnings):
    signalling = np.array([0x7FF0000000000001] * 4, dtype=np.uint64).view(np.float64)
    np.savez(str(base / "features.npz"), **{"query.jpg": signalling, "photograph.jpg": np.ones(4)})
    done, _, _ = score(base, save_two(base), "--features", base / "features.npz")
    refused(done, "query whose feature is not finite, or zero")
