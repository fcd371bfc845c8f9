"""RLE (soir/rle.py): what is written and read, and what the verifier accepts, is what pycocotools makes of it.

The environment variable SOIR_EXAMPLES sets how many examples each property gets; 10,000 are the long run.
"""

import itertools
import os
import tempfile
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from helpers import box_of, compressed, save, verify
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from soir.rle import compress_rle, decode_counts, encode_mask

EXAMPLES = int(os.environ.get("SOIR_EXAMPLES", "200"))
settings.register_profile(
    "soir",
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("soir")


@st.composite
def masks(draw):
    """Bool [h, w]: noise, rectangles that may touch any border, full, empty, thin."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.RandomState(draw(st.integers(0, 2**32 - 1)))
    mask = rng.rand(height, width) < draw(st.sampled_from((0, 0.05, 0.5, 0.95, 1)))
    for _ in range(draw(st.integers(0, 3))):
        y, x = rng.randint(height), rng.randint(width)
        mask[y : y + rng.randint(1, 30), x : x + rng.randint(1, 30)] ^= True
    return mask


def runs_of(mask):
    """Run lengths in column-major order, background first, by a plain loop."""
    runs = [(bool(value), len(list(group))) for value, group in itertools.groupby(mask.T.ravel())]
    return [0] * runs[0][0] + [length for _, length in runs]


def mask_of(runs, height, width):
    values = [index % 2 == 1 for index, run in enumerate(runs) for _ in range(run)]
    return np.array(values, dtype=bool).reshape(width, height).T


@given(masks(), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_the_encoder_writes_what_pycocotools_writes(mask, left, top, right, bottom):
    """Of a rectangle in an image, with any margin around it, or none."""
    whole = np.pad(mask, ((top, bottom), (left, right)))
    encoded = encode_mask(mask, (top, left), whole.shape)
    if not mask.any():
        assert encoded is None
        return
    rle, box = encoded
    assert rle == compressed(whole)
    assert box == box_of(whole)


@given(st.lists(masks(), min_size=1, max_size=20))
def test_the_decoder_reads_many_masks_of_pycocotools_at_once(many):
    runs, ends = decode_counts([compressed(mask)["counts"].encode() for mask in many])
    assert [part.tolist() for part in np.split(runs, ends[:-1])] == [runs_of(mask) for mask in many]


@given(st.data())
def test_run_lengths_of_json_become_what_pycocotools_decodes_to_the_same_mask(data):
    """Runs of length 0 may stand anywhere: the RLE is the one that pycocotools writes for the mask."""
    height, width = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    edges = data.draw(st.lists(st.integers(0, height * width), max_size=30))
    runs = np.diff([0, *sorted(edges), height * width]).tolist()
    expected = mask_of(runs, height, width)
    rle = compress_rle({"size": [height, width], "counts": runs})
    assert rle == compressed(expected)
    again = compress_rle({"size": [height, width], "counts": rle["counts"]})
    assert again == rle
    assert (coco_mask.decode(rle) == expected).all()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.integers(-3, 30) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(JSON | st.lists(st.integers(0, 8), min_size=2, max_size=2), JSON | st.lists(st.integers(-2, 70), max_size=5))
def test_any_json_is_an_rle_or_a_value_error(size, counts):
    try:
        rle = compress_rle({"size": size, "counts": counts})
    except ValueError:
        return
    assert coco_mask.decode(rle).shape == tuple(size)
    if isinstance(counts, list):
        assert (coco_mask.decode(rle) == mask_of(counts, *size)).all()


@pytest.mark.parametrize(
    "counts", [[2**31 + 5, 2**31 + 7], [2**32 - 1, 13], [5, 6, True], [5, 7.0], [5, "7"], [-5, 17]]
)
def test_numbers_that_are_no_run_lengths_or_have_a_sum_beyond_32_bits_are_refused(counts):
    with pytest.raises(ValueError, match="run lengths"):
        compress_rle({"size": [3, 4], "counts": counts})


def string_of(runs):
    """COCO's compressed RLE of any integers, by maskApi.c (rleToString)."""
    text = []
    for index, run in enumerate(runs):
        number, more = run - (runs[index - 2] if index > 2 else 0), True
        while more:
            bits, number = number & 31, number >> 5
            more = number != (-1 if bits & 16 else 0)
            text.append(48 + bits + 32 * more)
    return bytes(text)


@st.composite
def strings(draw):
    """Bytes: any, or of the alphabet of RLE, or a true RLE that was tampered with; and a size that may fit."""
    mask = draw(masks())
    if draw(st.booleans()):  # runs that have the right sum, yet some of them may be negative or too long
        runs = draw(st.lists(st.integers(-3, 300), max_size=8))
        return string_of([*runs, mask.size - sum(runs)]), mask.shape
    counts = bytearray(compressed(mask)["counts"].encode())
    kind = draw(st.sampled_from(("true", "changed", "cut", "alphabet", "any")))
    if kind == "changed":
        for _ in range(draw(st.integers(1, 3))):
            counts[draw(st.integers(0, len(counts) - 1))] = draw(st.integers(40, 120))
    elif kind == "cut":
        del counts[draw(st.integers(0, len(counts) - 1)) :]
    elif kind == "alphabet":  # and the two bytes beside it
        counts = bytes(draw(st.lists(st.integers(47, 112), max_size=30)))
    elif kind == "any":
        counts = draw(st.binary(max_size=30))
    return bytes(counts), mask.shape


def runs_of_string(string):
    """The run lengths that a compressed string spells, number by number; none if it is malformed."""
    runs, position = [], 0
    while position < len(string):
        number = shift = 0
        while True:
            if position == len(string) or not 48 <= string[position] < 48 + 64 or shift == 35:
                return []
            code = string[position] - 48
            position += 1
            number |= (code & 31) << shift
            shift += 5
            if not code & 32:
                break
        if code & 16:
            number -= 1 << shift
        runs.append(number + runs[-2] if len(runs) > 2 else number)
    return runs


@given(st.lists(strings(), min_size=1, max_size=8))
@example([(b"_" * digits + b"1", (1, 1)) for digits in range(12)])  # numbers of up to 12 characters
@example([(bytes([byte]) + more, (1, 1)) for byte in range(256) for more in (b"", b"1")])
def test_any_bytes_decode_to_what_they_spell_or_to_nothing(many):
    runs, ends = decode_counts([string for string, _ in many])
    assert [part.tolist() for part in np.split(runs, ends[:-1])] == [runs_of_string(string) for string, _ in many]


def checked(entries):
    """Verify entries of OWID: path -> the checks that failed."""
    with tempfile.TemporaryDirectory() as folder:
        for number, entry in enumerate(entries.values()):
            entry.update(set="OWID", ins=[number] if isinstance(entry["bbox"], list) else number)
        done, report = verify(save(Path(folder), entries), folder, "--skip-paths")
        assert done.stderr == ""
    found = {path: set() for path in entries}
    for issue in report["issues"]:
        if issue["check"].startswith(("mask-", "query-box", "gallery-box")) and issue["severity"] == "error":
            found[issue["path"]].add(issue["check"])
    return found


@settings(max_examples=EXAMPLES // 4)
@given(st.lists(strings(), min_size=1, max_size=30))
def test_what_the_verifier_accepts_pycocotools_decodes_to_h_x_w(many):
    """The verifier takes whatever bytes; only what it accepts may reach pycocotools' C code."""
    entries = {}
    for index, (counts, (height, width)) in enumerate(many):
        mask = {"size": [height, width], "counts": counts}
        # A box that any mask lies in.
        entries[str(index)] = {"bbox": [(0, 0, width, height)], "mask": [mask], "is_query": False}
    found = checked(entries)
    for index, (counts, shape) in enumerate(many):
        runs = runs_of_string(counts)
        is_valid = sum(runs) == shape[0] * shape[1] and min(runs) >= 0 and sum(runs[1::2]) > 0
        assert is_valid == (not found[str(index)])
        if is_valid:
            decoded = coco_mask.decode({"size": list(shape), "counts": counts})
            assert decoded.shape == shape
            assert decoded.any()
            assert (decoded == mask_of(runs, *shape)).all()


@settings(max_examples=EXAMPLES // 4)
@given(st.lists(masks(), min_size=1, max_size=30), st.integers(0, 2))
def test_the_verifier_accepts_every_mask_but_an_empty_one_with_the_box_of_pycocotools_only(many, offset):
    """The box of every third mask is one pixel off."""
    entries, expected = {}, {}
    for index, mask in enumerate(many):
        rle = compressed(mask)
        x, y, w, h = map(int, coco_mask.toBbox(rle))
        is_wrong = index % 3 == offset
        entries[str(index)] = {"bbox": (x, y, x + w + is_wrong, y + h), "mask": rle, "is_query": True}
        expected[str(index)] = {"query-box"} if is_wrong else set()
        if not mask.any():
            expected[str(index)] = {"mask-empty"}
            entries[str(index)]["bbox"] = (0, 0, 1, 1)
    assert checked(entries) == expected


@pytest.mark.parametrize("counts", [b"", b"\xff", b"0" * 40, b"o" * 40, b"_" * 13, b"~", b"`````"])
def test_strings_that_would_overrun_a_decoder_are_refused(counts):
    runs, ends = decode_counts([counts, b"91"])
    assert ends[0] in (0, 40)
    assert runs[ends[0] :].tolist() == [9, 1]
