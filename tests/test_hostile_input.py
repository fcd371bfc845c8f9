"""Files made to be trouble, at every input of the scripts: no code in them is run, they take little memory, and each is
refused in a line that names it, or skipped and counted, or listed as an error of the data."""

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
from conftest import load_plainly, make_annotations, make_instre, needs_proc, refused, run_here
from hostile_pickles import Call, dict_opcodes, hostile_values, zip_pickle
from PIL import Image
from run_fork import run_bounded

HUGE, FAR, NAN, INF = 10**400, 2**31, float("nan"), float("inf")
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
    """Save an annotation file of these two, with other fields. Returns the options that name it and the folder."""
    entries = {"query.jpg": {**QUERY, **(query or {})}, "photograph.jpg": {**PHOTOGRAPH, **(photograph or {})}}
    torch.save(entries, str(base / "anns.pt"))
    return "--ann-file", base / "anns.pt", "--base-path", base


def verify(*args):
    return run_here("verify_dataset.py", *args)


def score(base, annotations, rankings=None, features=None, *args):
    """Score rankings or features, given as a value or as the bytes of a pickle: (process, report or None)."""
    option, content = ("--features", features) if rankings is None else ("--rankings", rankings)
    if isinstance(content, bytes):
        zip_pickle(base / "scored.pt", content)
    else:
        torch.save(content, str(base / "scored.pt"))
    report = base / "report.json"
    done = run_here("evaluate_retrieval.py", *annotations, option, base / "scored.pt", "--report", report, *args)
    return done, json.loads(report.read_text()) if report.exists() else None


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
    _, anns, _, _, _, rankings = make_annotations(tmp_path, tiny.root)
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
    args = save(base)
    hostile = pickle.dumps(Call(os.system, f"touch {base / 'marker'}"), 2)
    np.savez(str(base / "objects.npz"), a=np.array([Call(print, "run")], dtype=object))
    objects = (base / "objects.npz").read_bytes()
    with zipfile.ZipFile(str(base / "bomb.pt"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"]" * 10_000_000 + b".")
    with zipfile.ZipFile(str(base / "outside.pt"), "w") as archive:
        archive.writestr("../data.pkl", hostile)
    torch.save({"a": {}}, str(base / "legacy.pt"), _use_new_zipfile_serialization=False)
    for name, content in {"list.pt": [1, 2], "number.pt": 5, "tensor.pt": {"a": torch.zeros(3)}}.items():
        torch.save(content, str(base / name))
    contents = {"bare.pt": hostile, "text.pt": b"text", "empty.pt": b"", "bare.npz": hostile, "empty.npz": b""}
    for name, content in {**contents, "objects.npz": objects, "half.npz": objects[:100]}.items():
        (base / name).write_bytes(content)
    (base / "folder.pt").mkdir()
    os.mkfifo(str(base / "fifo.pt"))
    names = [*contents, "bomb.pt", "outside.pt", "legacy.pt", "list.pt", "number.pt", "tensor.pt"]
    names += ["objects.npz", "half.npz", "folder.pt", "fifo.pt"]
    for name in [*names, "missing.pt", "missing.npz"]:
        if option == "--ann-file":
            refused(verify(option, base / name), name)
        elif option == "--features" or name.endswith(".pt"):
            refused(run_here("evaluate_retrieval.py", *args, option, base / name), name)
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
    done = verify("--ann-file", anns, "--skip-paths", "--verbose", "--report", report)
    assert (done.returncode, done.stderr) == (1, "")
    assert {issue["path"] for issue in json.loads(report.read_text())["issues"]} == set(entries)
    for path, entry in entries.items():
        zip_pickle(anns, dict_pickle({path: entry}))
        refused(score(tmp_path, ("--ann-file", anns), rankings={})[0], "verify_dataset.py")


@pytest.mark.parametrize("name", TOO_LARGE)
def test_rankings_and_features_that_are_too_large_to_look_at_are_faults(base, name):
    value, args = TOO_LARGE[name], save(base)
    for content in ({"query.jpg": value}, {"query.jpg": b"]" + value + b"a"}):
        done, _ = score(base, args, rankings=dict_pickle(content))
        assert (done.returncode, done.stderr) == (1, "")
    for content in ({"query.jpg": value}, {"paths": b"]" + value + b"a", "features": [[1]]}):
        refused(score(base, args, features=dict_pickle(content))[0])


def test_text_of_a_file_cannot_forge_a_line_of_an_error(base):
    forged = "a\nPASSED\x1b[31m"
    torch.save({forged: {"bbox": None}}, str(base / "anns.pt"))
    lines = [refused(score(base, ("--ann-file", base / "anns.pt"), rankings={})[0])]
    module = forged.encode()
    zip_pickle(base / "forged.pt", b"\x80\x04\x8c" + bytes([len(module)]) + module + b"\x8c\x01b\x93.")
    lines.append(refused(verify("--ann-file", base / "forged.pt")))
    lines.append(refused(run_here("evaluate_retrieval.py", *save(base), "--features", base / "forged.pt")))
    assert not [line for line in lines if "\x1b" in line]


# ------------------------------------------------------------------------------------------------------------- too many


@needs_proc
def test_more_issues_than_fit_into_memory_are_counted(tmp_path):
    entries = {f"{number}.jpg": {**PHOTOGRAPH, "bbox": [], "ins": [None] * 100_000} for number in range(30)}
    torch.save(entries, str(tmp_path / "anns.pt"))
    done = run_bounded("verify_dataset.py", "--ann-file", tmp_path / "anns.pt", "--skip-paths", memory=400)
    assert done.returncode == 1
    assert "error id-type: an instance id is no integer from 0 to 2^63 - 1: 3,000,000" in done.stdout


@needs_proc
def test_more_unknown_paths_than_fit_into_memory_are_counted(tmp_path):
    queries = [f"{number}.jpg" for number in range(40)]
    torch.save({**dict.fromkeys(queries, QUERY), "photograph.jpg": PHOTOGRAPH}, str(tmp_path / "anns.pt"))
    torch.save({query: [None] * 50_000 for query in queries}, str(tmp_path / "rankings.pt"))
    args = ("--ann-file", tmp_path / "anns.pt", "--rankings", tmp_path / "rankings.pt")
    done = run_bounded("evaluate_retrieval.py", *args, memory=200)
    assert done.returncode == 1
    assert "40 x query that ranks a path that is no gallery image here" in done.stdout
    assert " and 49,999 more" in done.stdout


def test_a_file_whose_lists_stand_for_many_is_refused(base):
    boxes, masks, ids = [(0, 0, 64, 48)] * 5000, [RLE] * 5000, [3] * 5000
    photograph = {**PHOTOGRAPH, "set": "OWID", "bbox": boxes, "mask": masks, "ins": ids}
    text = {**QUERY, "set": "OWID", "mask": {"size": [48, 64], "counts": "1" * 100_000}}
    for entry in (photograph, text):
        torch.save(dict.fromkeys(map(str, range(200)), entry), str(base / "anns.pt"))
        refused(verify("--ann-file", base / "anns.pt"), "over ten times as large as it is")
    ranking = ["photograph.jpg"] * 10_000
    rankings = {**dict.fromkeys(map(str, range(1000)), ranking), "query.jpg": ranking}
    refused(score(base, save(base), rankings=rankings)[0], "over ten times as large as it is")


@needs_proc
def test_features_that_claim_to_be_huge_are_refused_before_they_take_memory(base):
    """A tensor may have any shape, and share its storage with all others; a list may be in the file once."""
    names, numbers = ["query.jpg", "photograph.jpg"], [1] * 50_000
    args = save(base)
    for content in (
        {path: torch.ones(1).expand(10**8) for path in names},
        {"paths": names, "features": torch.ones(1, 1).expand(2, 10**8)},
        {f"{number}": numbers for number in range(1000)},
    ):
        torch.save(content, str(base / "features.pt"))
        done = run_bounded("evaluate_retrieval.py", *args, "--features", base / "features.pt", memory=300)
        refused(done, "over 100 times as large")
    np.savez_compressed(str(base / "bomb.npz"), zeros=np.zeros((4000, 4000), dtype=np.float32))
    done = run_here("evaluate_retrieval.py", *args, "--features", base / "bomb.npz")
    refused(done, "over 100 times as large")


@needs_proc
def test_queries_without_a_feature_take_no_memory(tmp_path):
    queries = [f"{number}.jpg" for number in range(3000)]
    torch.save({**dict.fromkeys(queries, QUERY), "photograph.jpg": PHOTOGRAPH}, str(tmp_path / "anns.pt"))
    torch.save({"photograph.jpg": torch.ones(250_000)}, str(tmp_path / "features.pt"))
    args = ("--ann-file", tmp_path / "anns.pt", "--features", tmp_path / "features.pt")
    done = run_bounded("evaluate_retrieval.py", *args, memory=200)
    assert done.returncode == 1
    assert "3,000 x query without a feature, scored 0" in done.stdout


# ----------------------------------------------------------------------------------------------------------- ids, masks


@pytest.mark.parametrize("number", [2**63, 2**2000, -1])
def test_an_id_beyond_64_bits_is_an_error(base, number):
    done = verify(*save(base, {"ins": number}), "--skip-paths")
    assert done.returncode == 1
    assert "error id-type" in done.stdout


@needs_proc
def test_long_masks_are_checked_one_at_a_time(tmp_path):
    mask = {"size": [2000, 2000], "counts": "1" * 3_000_000}
    query = {**QUERY, "set": "RoboTools", "mask": mask}
    torch.save({f"{number}.jpg": query for number in range(8)}, str(tmp_path / "anns.pt"))
    done = run_bounded("verify_dataset.py", "--ann-file", tmp_path / "anns.pt", "--skip-paths", memory=400)
    assert done.returncode == 1
    assert "error mask-fill: the runs of a mask do not fill height x width: 8" in done.stdout


def test_a_mask_that_is_far_too_long_is_not_decoded(base):
    mask = {"size": [48, 64], "counts": "1" * 4_000_001}
    done = verify(*save(base, {"set": "RoboTools", "mask": mask}, {"set": "RoboTools"}))
    assert done.returncode == 1
    assert "counts is far too long, 4,000,001 characters" in done.stdout


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


@pytest.mark.parametrize(
    "mask", [None, 5, "x", {}, {"size": "ab"}, {"size": [48]}, {"size": [-48, 64]}, {"size": [48, None]}]
)
def test_a_mask_without_a_size_is_an_error_for_an_evaluation_too(base, mask):
    args = save(base, {"set": "OWID", "mask": RLE}, {"set": "OWID", "mask": [mask]})
    refused(score(base, args, rankings={"query.jpg": ["photograph.jpg"]})[0], "verify_dataset.py")


@pytest.mark.parametrize(
    "mask", [5, {}, {"size": [48, 64]}, {"size": [48, 64], "counts": "~"}, {"size": [9, 9], "counts": [FAR]}]
)
def test_masks_that_a_sample_left_out_are_checked_before_they_are_drawn(base, mask):
    args = save(base, {"set": "OWID", "mask": mask}, {"set": "OWID", "mask": [RLE], "bbox": [(0, 0, 64, 48)]})
    entries = load_plainly(base / "anns.pt")
    entries.update({f"sound {number}.jpg": {**entries["query.jpg"], "ins": 4, "mask": RLE} for number in range(99)})
    torch.save(entries, str(base / "anns.pt"))
    done = verify(*args, "--skip-paths", "--sample-masks", 1, "--preview", base / "preview.png")
    assert done.stderr == ""
    assert "wrote" in done.stdout


# ---------------------------------------------------------------------------------------------------------------- boxes


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
    args = save(base, {"bbox": BOXES[name]}, {"bbox": [BOXES[name]]})
    (base / "rankings.json").write_text(json.dumps({"query.jpg": [["photograph.jpg", 1, BOXES[name]]]}))
    for script, *options in (
        ("verify_dataset.py", "--skip-paths"),
        ("evaluate_retrieval.py", "--rankings", base / "rankings.json"),
    ):
        done = run_bounded(script, *args, *options, "--preview", base / "preview.png", memory=400)
        assert done.returncode == 0
        with Image.open(str(base / "preview.png")) as drawn:
            pixels = np.asarray(drawn.convert("RGB"), dtype=int)
        assert (np.abs(pixels - (200, 150, 90)).sum(axis=2) < 9).mean() > 0.1  # the photographs are there
        (base / "preview.png").unlink()


@pytest.mark.parametrize("box", [(0, 0, 1e-200, 1e-200), (0, 0, 1e-308, 1)])
def test_boxes_without_an_area_have_no_iou(base, box):
    args = save(base, None, {"bbox": [box]})
    done, report = score(base, args, rankings={"query.jpg": [["photograph.jpg", 1, box]]})
    assert (done.returncode, done.stderr) == (0, "")
    assert 0 <= report["groups"]["all"]["IoU"] <= 1


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
    torch.save({up: QUERY, "photograph.jpg": PHOTOGRAPH}, str(base / "anns.pt"))
    done = verify("--ann-file", base / "anns.pt", "--base-path", root)
    assert f"error path-outside: the path leads out of --base-path: 1\n  {up}" in done.stdout


@pytest.mark.parametrize("name", ["\ud800.jpg", "a\0.jpg", "x" * 5000, "/" * 5000, "\n", "../query.jpg"])
def test_a_path_of_any_characters_is_an_error_like_any_other(base, name):
    torch.save({name: QUERY, "photograph.jpg": PHOTOGRAPH}, str(base / "anns.pt"))
    done = verify("--ann-file", base / "anns.pt", "--base-path", base)
    assert (done.returncode, done.stderr) == (1, "")
    assert "error path-" in done.stdout


def test_a_preview_has_names_of_any_letters(base):
    for old, new in (("query.jpg", "\u65e5\u672c.jpg"), ("photograph.jpg", "\U0001f600.jpg")):
        (base / old).rename(base / new)
    torch.save({"\u65e5\u672c.jpg": QUERY, "\U0001f600.jpg": PHOTOGRAPH}, str(base / "anns.pt"))
    args = ("--ann-file", base / "anns.pt", "--base-path", base, "--preview", base / "preview.png")
    assert verify(*args).returncode == 0
    assert (base / "preview.png").exists()


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
    done = verify(*save(base), "--preview", base / "preview.png")
    assert (done.returncode, done.stderr) == (0, "")


def test_images_that_claim_to_be_large_are_refused_without_a_warning(base, no_warnings):
    args = save(base)
    for side in (9_460, 13_000, 60_000):
        (base / "query.jpg").write_bytes(png_claiming(side, side))
        done = verify(*args)
        assert (done.returncode, done.stderr) == (1, "")
        assert "error path-not-image" in done.stdout


# ------------------------------------------------------------------------------------------------------------- features


def test_a_feature_whose_conversion_warns_is_not_heard(base, no_warnings):
    signalling = np.array([0x7FF0000000000001] * 4, dtype=np.uint64).view(np.float64)
    np.savez(str(base / "features.npz"), **{"query.jpg": signalling, "photograph.jpg": np.ones(4)})
    done = run_here("evaluate_retrieval.py", *save(base), "--features", base / "features.npz")
    assert (done.returncode, done.stderr) == (1, "")
    assert "1 x query whose feature is not finite, or zero" in done.stdout


NO_VECTORS = {
    "complex": torch.ones(8, dtype=torch.complex64),
    "empty": torch.ones(0),
    "text": "12345678",
    "None": None,
    "dict": {"a": 1},
    "list of text": ["1"] * 8,
    "list of lists": [[1] * 8],
    "list of a number beyond any float": [HUGE] * 8,
}


@pytest.mark.parametrize("name", NO_VECTORS)
def test_a_feature_that_is_no_vector_is_a_fault_that_is_listed(base, name):
    done, report = score(base, save(base), None, {"query.jpg": torch.ones(8), "photograph.jpg": NO_VECTORS[name]})
    assert (done.returncode, done.stderr) == (1, "")
    assert report["faults"]["feature that is no vector of numbers"] == ["photograph.jpg"]


@pytest.mark.parametrize(
    "paths, features",
    [
        (["a"], torch.tensor(5)),
        (["a"], 5),
        (["a"], torch.ones(2, 8)),
        (5, torch.ones(2, 8)),
        (None, None),
        (torch.zeros(1).expand(100), torch.ones(1, 1).expand(100, 1)),
    ],
)
def test_a_matrix_that_does_not_go_with_its_paths_cannot_be_scored(base, paths, features):
    refused(score(base, save(base), None, {"paths": paths, "features": features})[0], "holds no features")


def test_paths_of_features_are_text(base):
    np.savez(str(base / "features.npz"), paths=np.array([["a" * 500] * 50] * 2), features=np.ones((2, 3)))
    line = refused(run_here("evaluate_retrieval.py", *save(base), "--features", base / "features.npz"))
    assert len(line) < 400


# ------------------------------------------------------------------------------------------------------------- rankings


NO_JSON = {
    "cut off": b'{"query.jpg": ["photogr',
    "empty": b"",
    "blank": b" \n",
    "not UTF-8": b'{"caf\xe9": []}',
    "UTF-16": '{"a": []}'.encode("utf-16"),
    "a list": b"[]",
    "text": b'"text"',
    "null": b"null",
    "NaN at the top": b"NaN",
    "a number": b"5",
    "a list of queries": b'{"knns": []}',
    "lists in lists": b"[" * 100_000,
    "dicts in dicts": b'{"a":' * 100_000,
    "a ranking of lists in lists": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "two values": b"{} {}",
    "NUL": b'{"a": []}\0',
}


@pytest.mark.parametrize("name", NO_JSON)
def test_a_file_that_is_no_json_of_rankings_cannot_be_scored(base, name):
    file = base / "rankings.json"
    file.write_bytes(NO_JSON[name])
    refused(run_here("evaluate_retrieval.py", *save(base), "--rankings", file), file)


NO_RANKINGS = {
    "None": None,
    "number": 5,
    "text": "photograph.jpg",
    "True": True,
    "dict of text": {"photograph.jpg": "1"},
    "dict of knns": {"knns": 5},
    "items of None": [None],
    "items of numbers": [1, 1.5, True, NAN, HUGE],
    "items of lists": [[], [[]], [None], [["a"]]],
    "items of dicts": [{}, {"path": "a"}],
    "text that is no path": ["", "\0", "\ud800", "a\nb", "x" * 100_000],
}


def test_a_key_that_is_no_path_is_an_error_beside_detections_too(base):
    (base / "found.json").write_text('[{"image_id": "query.jpg", "bbox": [0, 0, 5, 5], "score": 0.9}]')
    entries = torch.load(str(save(base)[1]), weights_only=False)
    entries[1] = entries["photograph.jpg"]
    torch.save(entries, str(base / "anns.pt"))
    options = ("--skip-paths", "--detections", base / "found.json")
    done = run_here("verify_dataset.py", "--ann-file", base / "anns.pt", *options)
    assert (done.returncode, done.stderr) == (1, "")
    assert "entry-type" in done.stdout


def test_a_value_that_is_too_deep_to_be_written_again_is_an_error(base):
    deep = b"]" * 600 + b"a" * 599  # lists, each in the next one; Python's own pickler would not come so far
    data = pickle.dumps({"query.jpg": QUERY, "photograph.jpg": {**PHOTOGRAPH, "more": "DEEP"}}, protocol=2)
    zip_pickle(base / "anns.pt", data.replace(b"X\x04\x00\x00\x00DEEP", deep))
    (base / "out.pt").write_bytes(b"old")
    done = run_here("convert_annotations.py", "--ann-file", base / "anns.pt", "--output-file", base / "out.pt")
    refused(done, "out.pt", "nested too deeply")
    assert (base / "out.pt").read_bytes() == b"old"


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


BAD_SCORES = [NAN, INF, "0.5", True, [0.5], {}]
BAD_BOXES = ["0 0 1 1", [0, 0, 1], [0, 0, NAN, 1], [0, 0, INF, 1], [0, 0, "1", 1], [1, 1, 0, 0], {"x": 0}]


def score_json(base, ranking, **others):
    """Score a ranking of the query, from JSON, perhaps beside those of others: (process, report)."""
    file, report = base / "rankings.json", base / "report.json"
    file.write_text(json.dumps({"query.jpg": ranking, **others}))
    args = ("--rankings", file, "--report", report, "--per-query", base / "queries.csv")
    done = run_here("evaluate_retrieval.py", *save(base), *args)
    assert done.stderr == ""
    return done, json.loads(report.read_text())


@pytest.mark.parametrize("name", NO_RANKINGS)
def test_a_ranking_of_the_wrong_types_is_a_fault_that_is_listed(base, name):
    done, report = score_json(base, NO_RANKINGS[name], other=["photograph.jpg"])  # so that the file is one of rankings
    assert done.returncode == 1
    del report["faults"]["ranking of a path that is no query here"]
    ((_, (place,)),) = report["faults"].items()
    items = NO_RANKINGS[name] if isinstance(NO_RANKINGS[name], list) else []
    assert place.startswith("query.jpg")
    assert (f" and {len(items) - 1} more" in place) == (len(items) > 1)
    assert "\nfaults:\n" in done.stdout
    assert report["groups"]["all"]["queries"] == 1


@pytest.mark.parametrize("value", BAD_SCORES)
def test_a_score_that_is_none_is_a_fault_that_is_listed(base, value):
    done, report = score_json(base, [["photograph.jpg", value]])
    assert done.returncode == 1
    assert list(report["faults"])[-1:] == [
        "query with a score that is no finite number, its image counted as not retrieved"
    ]


@pytest.mark.parametrize("box", BAD_BOXES)
def test_a_box_that_is_none_is_a_fault_that_is_listed(base, box):
    done, report = score_json(base, [["photograph.jpg", 1, box]])
    assert done.returncode == 1
    assert list(report["faults"])[-1:] == ["query with a box that is not (x1, y1, x2, y2), ignored"]


def test_an_item_may_have_a_box_and_no_score(base):
    assert score_json(base, [["photograph.jpg", None, [0, 0, 1, 1]]])[0].returncode == 0


@pytest.mark.parametrize("item", [[HUGE], [-HUGE], [1, [0, 0, HUGE, HUGE]], [1, [0.5, 0, 10**300, 10**300]]])
def test_numbers_beyond_any_float_do_not_end_the_run(base, item):
    done, report = score_json(base, [["photograph.jpg", *item]])
    assert done.returncode == bool(report["faults"])
