"""What soir/torch_files.py promises: which values load, and that no file runs, crashes or fills anything."""

import collections
import faulthandler
import io
import os
import pickle
import resource
import signal
import sys
import threading
import time
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
from hostile_pickles import hostile_pickles, hostile_values, tensor_pickle, zip_pickle
from run_fork import assert_gone

from soir import unpickler
from soir.files import SoirError
from soir.torch_files import load_values, save_values

OLD_TORCH = [int(part) for part in torch.__version__.split(".")[:2]] < [2, 6]


# ---------------------------------------------------------------------------------------------------------- processes


def fork(function, *args):
    """Call a function in a fork, which is a process group of its own and answers signals as scripts do: its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            faulthandler.disable()  # of pytest: here a crash may be what is to be seen
            signal.alarm(60)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            function(*args)
        except KeyboardInterrupt:
            os._exit(130)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(99)
        os._exit(0)
    return pid


def wait(pid, seconds=60):
    """Wait for the end of a fork: its exit status, or minus the signal that ended it."""
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            pytest.fail("it hangs")
        time.sleep(0.002)


def outcome(path, arrays=False):
    """What loading a file that may be hostile ends in: its value as text, or the message.

    It is loaded in a fork, so that a crash there is a failed test. It may take 100 MB beyond 20 times the file.
    """
    read, write = os.pipe()

    def load():
        sys.modules["torch"] = None  # which no load may need
        unpickler.MEMORY_BASE = 10**8
        with open("/proc/self/statm") as file:
            present = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (present + 10**9,) * 2)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            text = f"loaded {type(load_values(str(path), arrays)).__name__}"
        except SoirError as error:
            text = str(error)
        taken = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
        assert taken < 20 * os.path.getsize(path) + 1.5 * 10**8
        os.write(write, text.encode("utf-8", "backslashreplace"))

    pid = fork(load)
    os.close(write)
    with open(read, "rb") as stream:
        text = stream.read().decode("utf-8")
    assert wait(pid) == 0
    return text


def assert_refused(path, *parts, arrays=False):
    text = outcome(path, arrays)
    kind = "tensors" if arrays else "plain values"
    assert text.startswith(f"{path} was not loaded, for it is no torch file of {kind}: ")
    assert len(text.splitlines()) == 1
    assert len(text) < len(str(path)) + 400
    for part in parts:
        assert part in text


@pytest.fixture
def file(tmp_path):
    return tmp_path / "values.pt"


def save(values, file, **options):
    torch.save(values, str(file), **options)
    return str(file)


def same(a, b):
    """Whether two values are equal, and of the same types at each level. Arrays by what is in them."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tolist() == b.tolist()
    return a == b


# -------------------------------------------------------------------------------------------------------- plain values

PLAIN = {
    "query.jpg": {
        "bbox": (1, 2, 300, 70_000),
        "mask": {"size": [48, 64], "counts": "0P`0"},
        "is_query": True,
        "ins": 3,
    },
    "gallery.jpg": {"bbox": [(0.5, 1.25, 2, 2**31 - 1), (1, 2, 3, 4)], "ins": [3, 2**63 - 1], "is_query": False},
    "tuples": [(), (1,), (1, 2), (1.5, 2, -3), tuple(range(16))],
    "numbers": [0, -1, 255, 256, 65_536, -(2**31), 2**40, -(2**63), 2**64, 10**100, 0.1, float("inf")],
    "counts": list(range(0, 100_000, 7)),
    "texts": ["", "a" * 300, "\u65e5\u672c", "\U0001f600", "\ud800", "a\nb"],
    "others": [None, True, False, {}, [], [[]], {1: {2.5: {None: [(1, 2)]}}}],
}


@pytest.mark.parametrize("protocol", [2, 3, 4, pickle.HIGHEST_PROTOCOL])
def test_plain_values_load_as_they_were_saved(file, protocol):
    assert same(load_values(save(PLAIN, file, pickle_protocol=protocol)), PLAIN)
    assert same(load_values(save(PLAIN, file, pickle_protocol=protocol), arrays=True), PLAIN)


@pytest.mark.parametrize("protocol", [3, 4])
def test_bytes_load_from_the_protocols_that_have_them(file, protocol):
    values = {"short": b"0P`0", "long": bytes(range(256)) * 2, "empty": b""}
    assert same(load_values(save(values, file, pickle_protocol=protocol)), values)


@pytest.mark.parametrize("values", [{}, PLAIN, {f"{number}.jpg": PLAIN["query.jpg"] for number in range(2500)}])
def test_what_is_saved_is_loaded_by_us_and_by_torch(tmp_path, values):
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    assert save_values(values, str(one)) == one.stat().st_size
    assert same(load_values(str(one)), values)
    assert OLD_TORCH or same(torch.load(str(one), weights_only=True), values)
    save_values(values, str(two))
    assert one.read_bytes() == two.read_bytes()


def test_a_list_that_all_queries_share_stays_one_list(file):
    knns = [f"{number}.jpg" for number in range(1000)]
    save({"knns": {f"query {number}": knns for number in range(1000)}}, file)
    lists = list(load_values(str(file))["knns"].values())
    assert lists == [knns] * 1000
    assert all(item is lists[0] for item in lists)


def test_lists_of_any_depth_load(file):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    pickled = b"\x80\x02}X\x01\x00\x00\x00a" + b"]" * 100_001 + b"a" * 100_000 + b"s."
    zip_pickle(file, pickled)
    depth, inner = 0, load_values(str(file))["a"]
    while inner:
        (inner,) = inner
        depth += 1
    assert depth == 100_000


# ------------------------------------------------------------------------------------------------------- older files


def rename_numpy(file, core):
    """Give NumPy's functions in a file the names that they have in NumPy 1 (core) or 2 (_core)."""
    with zipfile.ZipFile(str(file)) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        data = archive.read(name)
    assert b"numpy.core." in data or b"numpy._core." in data
    data = data.replace(b"numpy._core.", b"numpy.core.")
    zip_pickle(file, data.replace(b"numpy.core.", f"numpy.{core}.".encode()))


@pytest.mark.parametrize("core", ["core", "_core"])
def test_a_file_of_the_authors_script_loads_as_plain_values(file, core):
    mask = {"counts": [5, 10, 3], "size": (2, 9), "transpose": False}
    box = [int(number) for number in (20, 10, 50, 30)]
    old, new = collections.defaultdict(dict), {}
    old["query.jpg"] = {"bbox": tuple(map(np.int64, box)), "mask": mask, "is_query": True, "ins": np.int32(3)}
    new["query.jpg"] = {"bbox": tuple(box), "mask": mask, "is_query": True, "ins": 3}
    old["a.jpg"] = collections.OrderedDict(bbox=np.array([box], dtype=">f4"), ins=np.asfortranarray([3]), mask=[mask])
    new["a.jpg"] = {"bbox": [[20.0, 10.0, 50.0, 30.0]], "ins": [3], "mask": [mask]}
    old["b.jpg"] = collections.defaultdict(list, mask=[{"counts": b"0P`0", "size": [48, 64]}], num_ins=[])
    new["b.jpg"] = {"mask": [{"counts": b"0P`0", "size": [48, 64]}], "num_ins": []}
    old["counts"], new["counts"] = collections.defaultdict(int, {np.str_("mug"): 2}), {"mug": 2}
    save(old, file)
    rename_numpy(file, core)
    assert same(load_values(str(file)), new)


NUMPY_VALUES = {
    "numbers": [np.float32(0.5), np.float16(-2), np.int8(-3), np.uint64(2**64 - 1), np.bool_(True)],
    "texts": [np.str_("text"), np.str_(""), np.str_("\u65e5")],
    "arrays": [np.zeros((0, 4)), np.arange(12).reshape(3, 4), np.array(["a", "bc"])],
    "orders": [np.asfortranarray([[1, 2, 3], [4, 5, 6]]), np.arange(8).reshape(2, 2, 2).transpose(1, 0, 2)],
    "one number": np.array(5),
    "big-endian": np.array([1, 256], dtype=">i2"),
}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_numpy_values_become_plain_values_or_stay_arrays(file, protocol):
    save(NUMPY_VALUES, file, pickle_protocol=protocol)
    plain = {
        "numbers": [0.5, -2.0, -3, 2**64 - 1, True],
        "texts": ["text", "", "\u65e5"],
        "arrays": [[], [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]], ["a", "bc"]],
        "orders": [[[1, 2, 3], [4, 5, 6]], [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]],
        "one number": 5,
        "big-endian": [1, 256],
    }
    assert same(load_values(str(file)), plain)
    arrays = {name: NUMPY_VALUES[name] for name in ("arrays", "orders", "one number", "big-endian")}
    assert same(load_values(str(file), arrays=True), {**plain, **arrays})


def test_other_containers_become_plain_ones(file):
    counts, entries = collections.Counter("aab"), collections.OrderedDict(a=[1])
    entries.version = 1  # as that of a module's state_dict() has
    save([counts, entries, torch.Size([2, 3]), {"shape": torch.Size([])}], file)
    assert same(load_values(str(file)), [{"a": 2, "b": 1}, {"a": [1]}, (2, 3), {"shape": ()}])


def test_tuples_of_more_than_single_values_become_lists(file):
    values = [("a.jpg", 0.5), ("a.jpg", 0.5, (1, 2, 3, 4)), ((1, 2),), (None, [True]), (1, 2, 3, 4, "five")]
    expected = [("a.jpg", 0.5), ["a.jpg", 0.5, (1, 2, 3, 4)], [(1, 2)], [None, [True]], (1, 2, 3, 4, "five")]
    assert same(load_values(save(values, file)), expected)


def test_what_is_shared_stays_shared_and_what_holds_itself_still_does(file):
    array, ring = np.arange(3), []
    pair = (array, ring)
    ring.append(collections.OrderedDict(ring=ring))
    values = load_values(save([array, pair, pair, ring], file))
    assert values[0] == [0, 1, 2]
    assert values[1] is values[2]
    assert values[1][0] is values[0]
    assert values[1][1] is values[3] is values[3][0]["ring"]


# ------------------------------------------------------------------------------------------------------------- tensors

VIEWS = {
    "all": lambda t: t,
    "transposed": lambda t: t.T,
    "a part": lambda t: t[1:, ::2],
    "expanded": lambda t: t[1, 2].expand(3, 3),
    "one number": lambda t: t[1, 2],
    "none": lambda t: t[:0],
    "a parameter": lambda t: torch.nn.Parameter(t, requires_grad=t.is_floating_point()),
}
DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_of_every_type_and_view_load_as_torch_has_them(file, dtype):
    whole = (torch.arange(-12, 12).reshape(4, 6) * 2).to(getattr(torch, dtype))
    tensors = {name: view(whole) for name, view in VIEWS.items()}
    read = load_values(save({**tensors, "list": [whole, whole]}, file), arrays=True)
    for name, tensor in tensors.items():
        assert read[name].dtype == np.dtype(dtype if dtype != "bfloat16" else "float32")
        assert read[name].shape == tuple(tensor.shape)
        assert read[name].tolist() == tensor.tolist()
    assert read["list"][0] is read["list"][1]


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64", "complex128"])
def test_tensors_of_rare_types_load(file, dtype):
    if not hasattr(torch, dtype):
        pytest.skip("this torch does not have them")
    tensor = torch.tensor([[1, 2, 3], [4, 5, 6]]).to(getattr(torch, dtype))[:, 1:]
    read = load_values(save([tensor], file), arrays=True)[0]
    assert (read.dtype, read.tolist()) == (dtype, [[2, 3], [5, 6]])


def test_tensors_may_have_gradients_and_attributes(file):
    weight = torch.nn.Parameter(torch.ones(2))
    named = torch.ones(2)
    weight.path = named.path = "a.jpg"
    read = load_values(save([weight, weight * 2, named], file), arrays=True)
    assert [array.tolist() for array in read] == [[1, 1], [2, 2], [1, 1]]


def test_a_results_file_of_the_paper_loads(file):
    knns = {"query.jpg": ["a.jpg", "b.jpg", "a.jpg"]}
    similarities = torch.tensor([[0.5, 0.25, 0.125]])
    results = {
        "knns": knns,
        "similarities": similarities,
        "labels_knn": [np.array([3, 4, 3])],
        "queries": ["query.jpg"],
    }
    scores = {"recall": {1: np.float64(1.0)}, "hits": {"query.jpg": np.bool_(True)}, "mAP": np.float32(0.5)}
    read = load_values(save({**results, **scores}, file), arrays=True)
    arrays = {"similarities": similarities.numpy(), "labels_knn": results["labels_knn"]}
    assert same(read, {**results, **arrays, "recall": {1: 1.0}, "hits": {"query.jpg": True}, "mAP": 0.5})


def test_an_array_may_claim_to_be_larger_than_its_file_but_not_far(file):
    save([torch.ones(1, dtype=dtype).expand(100, 100) for dtype in (torch.float32, torch.bfloat16)], file)
    assert [array.sum() for array in load_values(str(file), arrays=True)] == [10_000, 10_000]
    save([torch.ones(1).expand(2**30, 2**20)], file)
    assert_refused(file, "over 100 times as large", arrays=True)


def test_rows_of_one_large_tensor_take_the_memory_of_one(file):
    rows = list(torch.ones(3000, 3000, dtype=torch.bfloat16))  # 18 MB, which each of the 3,000 could take
    save(rows, file)
    assert outcome(file, arrays=True) == "loaded list"


def test_tensors_are_refused_where_plain_values_are_expected(file):
    save({"a": torch.ones(3)}, file)
    assert_refused(file, "it holds tensors, as a file of features does")


OTHER_TENSORS = {
    "sparse": lambda: torch.eye(4).to_sparse(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8),
    "a storage": lambda: torch.ones(4).storage(),
    "without numbers": lambda: torch.ones(4, device="meta"),
    "a module": lambda: torch.nn.Linear(2, 2),
    "a dtype": lambda: torch.float32,
    "a set": lambda: {1, 2},
    "dates": lambda: np.array(["2020-01-01"], dtype="M8[D]"),
    "a record": lambda: np.zeros(1, dtype=[("a", "f4")]),
}


if not OLD_TORCH:  # which forgets that a tensor is to be conjugated
    OTHER_TENSORS["conjugated"] = lambda: torch.ones(4, dtype=torch.complex64).conj()


@pytest.mark.parametrize("name", OTHER_TENSORS)
def test_other_values_of_torch_and_numpy_are_refused(file, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save({"a": OTHER_TENSORS[name](), "b": torch.ones(4)}, file)
    assert_refused(file, arrays=True)


# The storage of the tensor holds ten float32, and says so in the file.
OUT_OF_STORAGE = {
    "an empty storage": ((10,), (1,), 0, b""),
    "half a number": ((1,), (1,), 0, b"0" * 3),
    "half a storage": ((1,), (1,), 0, b"0" * 20),
    "far more numbers": ((50_000_000,), (1,), 0, b"0" * 40),
    "one number too many": ((11,), (1,), 0, b"0" * 40),
    "an offset behind the end": ((1,), (1,), 10, b"0" * 40),
    "a stride of 2^60": ((5,), (2**60,), 0, b"0" * 40),
    "a negative shape": ((-1,), (1,), 2, b"0" * 40),
    "a negative stride": ((2,), (-1,), 0, b"0" * 40),
    "a negative offset": ((1,), (1,), -1, b"0" * 40),
    "other dimensions than strides": ((1, 1), (1,), 0, b"0" * 40),
}


@pytest.mark.parametrize("name", OUT_OF_STORAGE)
def test_a_tensor_that_reaches_out_of_its_storage_is_refused(file, name):
    shape, strides, offset, data = OUT_OF_STORAGE[name]
    tensor_pickle(file, shape, strides, offset, data=data)
    assert_refused(file, arrays=True)


def test_a_tensor_that_reaches_to_the_end_of_its_storage_loads(file):
    tensor_pickle(file, (2, 5), (5, 1), data=np.arange(10, dtype="<f4").tobytes())
    assert load_values(str(file), arrays=True)["a"].tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


@pytest.mark.parametrize(
    "code", [b"X\x01\x00\x00\x00O", b"X\x03\x00\x00\x001f4", b"X\x02\x00\x00\x00V8", b"N", b"cnumpy\nndarray\n"]
)
def test_a_storage_of_objects_is_refused(file, code):
    tensor_pickle(file, (1,), (1,), code=code)
    assert_refused(file, arrays=True)


# ------------------------------------------------------------------------------------------------------- hostile files

# Those of hostile_pickles() that hold nothing forbidden, but are oddly written.
LOADS = {"list", "number", "memo index behind a frame", "memo index of 2^28", "memo index of 2^31"}

HOSTILE = [(name, False) for name, data in hostile_pickles("x").items() if data is not None]


@pytest.mark.parametrize("name, arrays", [*HOSTILE, *((name, True) for name, _ in HOSTILE if "array" in name)])
def test_nothing_in_a_file_is_run_or_crashes_or_fills_the_memory(tmp_path, file, name, arrays):
    marker = tmp_path / "marker"
    zip_pickle(file, hostile_pickles(marker)[name])
    if name in LOADS:
        assert outcome(file, arrays).startswith("loaded ")
    else:
        assert_refused(file, arrays=arrays)
    assert not marker.exists()


NUMPY = (  # at 0 the type of bytes, at 1 the function that makes an array, at 2 its arguments, at 3 that of scalars
    b"cnumpy\ndtype\nX\x02\x00\x00\x00u1K\x00K\x01\x87Rq\x00cnumpy.core.multiarray\n_reconstruct\nq\x01"
    b"cnumpy\nndarray\nK\x00\x85U\x01b\x87q\x02cnumpy.core.multiarray\nscalar\nq\x03"
)


def encoded(size):
    """Opcodes of so many bytes, at 4, as protocol 2 has them."""
    text = b"X" + size.to_bytes(4, "little") + b"\x01\x00\x00\x00" * (size // 4)
    return b"c_codecs\nencode\n" + text + b"X\x06\x00\x00\x00latin1\x86Rq\x04"


def pairs_made_twice(times):
    """Opcodes of tuples of pairs, one in the other, none of which is there twice. The last is at 2 x times."""
    pairs = b"".join(b"h%bh%b\x86q%b" % (bytes([i & ~1]), bytes([i | 1]), bytes([i + 2])) for i in range(2 * times))
    return b")q\x00)q\x01" + pairs


def lists_of_lists(times):
    """Opcodes of lists, each of which holds the one before twice. The last is at times."""
    return b"]q\x00" + b"".join(b"](h%bh%beq%b" % (bytes([i]), bytes([i]), bytes([i + 1])) for i in range(times))


STATE = b"(%bK\x04\x85h\x00\x89h\x04tq\x05b"
ARRAY = NUMPY + encoded(4) + b"h\x01h\x02R"  # without its state
NO_VALUES = {
    "a class": b"ccollections\nOrderedDict\n",
    "a function": b"h\x01",
    "a type": b"cnumpy\ndtype\nX\x02\x00\x00\x00f8K\x00K\x01\x87R",
    "a type of torch": b"ctorch\nFloatStorage\n",
    "an array without its state": b"h\x01h\x02R",
    "arguments": b"h\x02",
}


@pytest.mark.parametrize("arrays", [False, True])
@pytest.mark.parametrize("name", NO_VALUES)
def test_what_only_stands_for_something_is_refused_wherever_it_is(file, name, arrays):
    for place in (b"%b", b"]%ba", b"](%be", b"}K\x01%bs", b"}%bK\x01s", b"}(%bK\x01u", b"]%b\x85a", b"}%b\x85K\x01s"):
        zip_pickle(file, b"\x80\x02" + NUMPY + encoded(4) + place % NO_VALUES[name] + b".")
        assert_refused(file, arrays=arrays)


@pytest.mark.parametrize("codec", [b"idna", b"utf-8", b"latin-1", b"zlib"])
def test_bytes_are_encoded_as_latin1_and_nothing_else(file, codec):
    text = b"X\x01\x00\x00\x00aX" + len(codec).to_bytes(4, "little") + codec
    zip_pickle(file, b"\x80\x02c_codecs\nencode\n" + text + b"\x86R.")
    assert_refused(file, "in another encoding than latin1")


BROKE_AN_EARLIER_LOADER = {
    "the state of an array in that of the next, 100,000 times, as a key": NUMPY
    + encoded(4)
    + (b"h\x01h\x02R" + STATE % b"K\x01" + (b"h\x01h\x02R" + STATE % b"h\x05") * 100_000)
    + b"}h\x05K\x01s.",
    "tuples of pairs, sixty deep, each made twice, as a key": pairs_made_twice(60) + b"}h\x78K\x01s.",
    "a persistent id that is a text of a megabyte, 2,000 times": b"X\x40\x42\x0f\x00"
    + b"a" * 10**6
    + (b"q\x00Q" + b"h\x00Q" * 2000 + b"."),
    "a NumPy text of 50,000 characters, 100,000 times": NUMPY
    + encoded(200_000)
    + (b"cnumpy\ndtype\nX\x06\x00\x00\x00U50000K\x00K\x01\x87Rq\x05" + b"h\x03h\x05h\x04\x86R" * 100_000 + b"."),
    "an item of an empty tensor, at lists sixty deep": lists_of_lists(60) + b"ctorch\nTensor\n)Rh\x3cK\x01s.",
    "a dict with a key and no value": b"ccollections\nOrderedDict\n)R(K\x01u.",
    "a state for a function": NUMPY + b"h\x03}X\x01\x00\x00\x00aK\x01sb.",
}


@pytest.mark.parametrize("name", BROKE_AN_EARLIER_LOADER)
def test_what_broke_an_earlier_loader_is_refused(file, name):
    zip_pickle(file, b"\x80\x02" + BROKE_AN_EARLIER_LOADER[name])
    assert_refused(file)


TOO_LARGE = {
    "an empty list in each byte": b"]" * 5_000_000 + b".",
    "an array of 10^8 empty rows": NUMPY + encoded(0) + b"h\x01h\x02R(K\x01J\x00\xe1\xf5\x05K\x00\x86h\x00\x89h\x04tb.",
    "lists of all numbers of an array, 1,000 times": NUMPY
    + encoded(10**6)
    + b"]("
    + b"h\x01h\x02R(K\x01J\x40\x42\x0f\x00\x85h\x00\x89h\x04tb" * 1000
    + b"e.",
    "an array of 2^31 - 1 empty rows": ARRAY + b"(K\x01J\xff\xff\xff\x7fK\x00\x86h\x00\x89cbuiltins\nbytes\n)Rtb.",
    "an empty dict in each byte": b"]" + b"}a" * 2_500_000 + b".",
    "a mark in each byte": b"(" * 5_000_000 + b".",
    "a number in the memo in each byte": b"N" + b"\x94" * 5_000_000 + b")\x85\x85.",
    "a tensor of 10^10 numbers": b"ctorch\nTensor\n\x8a\x05\x00\xe4\x0b\x54\x02\x85R.",
}


def test_numbers_that_are_in_many_files_of_an_archive_take_the_memory_of_all_of_them(file):
    """Each file of the archive holds all that follow, with their headers: 300 MB in all."""
    tail, headers, count = b"\x00" * 10**6, [], 300
    for number in reversed(range(count)):
        info = zipfile.ZipInfo(f"archive/data/{number}")
        info.file_size = info.compress_size = len(tail)
        info.CRC = zlib.crc32(tail)
        tail = info.FileHeader() + tail
        headers.append(info)
    stream = io.BytesIO(tail)
    stream.seek(0, io.SEEK_END)
    one = b"(X\x07\x00\x00\x00storagectorch\nByteStorage\nX%b%bNJ%btQ"
    storages = [
        one % (len(name).to_bytes(4, "little"), name.encode(), info.file_size.to_bytes(4, "little"))
        for info in headers
        for name in [info.filename.rpartition("/")[2]]
    ]
    with zipfile.ZipFile(stream, "a") as archive:
        for info in headers:
            info.header_offset = len(tail) - info.file_size - len(info.FileHeader())
            archive.filelist.append(info)
            archive.NameToInfo[info.filename] = info
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"".join(storages) + b".")
    file.write_bytes(stream.getvalue())
    assert_refused(file, arrays=True)


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_takes_far_more_memory_than_its_file_is_refused(file, name):
    zip_pickle(file, b"\x80\x02" + TOO_LARGE[name])
    assert_refused(file, *([] if "tensor" in name else ["it takes far more memory than its size"]))


@pytest.mark.parametrize("key", [b"]\x85", b"ctorch\nTensor\n)R", ARRAY + STATE % b"K\x01"])
def test_a_key_that_is_no_single_value_is_refused(file, key):
    zip_pickle(file, b"\x80\x02" + key + b"q\x09}h\x09K\x01s.")
    assert_refused(file, arrays=True)


@pytest.mark.parametrize("name", hostile_values())
def test_what_is_too_large_to_look_at_holds_no_tuples_that_it_could_be_hashed_by(file, name):
    zip_pickle(file, b"\x80\x02" + hostile_values()[name] + b".")
    assert type(load_values(str(file))[-1]) is list


# ----------------------------------------------------------------------------------------------- archives, other files


def test_a_file_that_is_missing_names_what_makes_one(file):
    for arrays, maker in ((False, "create_dataset.py makes one"), (True, "examples/colour_features.py shows how to")):
        with pytest.raises(SoirError, match=f"^{file} is missing: {maker}"):
            load_values(str(file), arrays)


def test_what_is_no_regular_file_cannot_be_read(tmp_path, file):
    os.mkfifo(str(file))
    for path in (file, tmp_path, "/dev/zero", f"{tmp_path}/{'x' * 5000}"):
        with pytest.raises(SoirError, match="^cannot read "):
            load_values(str(path))


def archive_bytes(files, compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


GOOD = pickle.dumps({"a": {}}, 2)
OTHER_FILES = {
    "it is empty": b"",
    "it is JSON": b"{}",
    "it is a PNG image": b"\x89PNG\r\n",
    "it is a JPEG image": b"\xff\xd8\xff\xe0",
    "text": b"text",
    "a bare pickle": GOOD,
    "an archive behind something else": b"#!/bin/sh\n" + archive_bytes({"archive/data.pkl": GOOD}),
    "it was written by a big-endian machine": archive_bytes({"archive/data.pkl": GOOD, "archive/byteorder": b"big"}),
    "an archive that breaks off": archive_bytes({"archive/data.pkl": GOOD})[:-30],
    "a pickle that is damaged": archive_bytes({"archive/data.pkl": GOOD}).replace(GOOD, GOOD[:-1] + b"N"),
    "an archive without a pickle": archive_bytes({"archive/data": GOOD}),
    "two pickles": archive_bytes({"archive/data.pkl": GOOD, "archive/more.pkl": GOOD}),
    "a program": archive_bytes({"archive/data.pkl": GOOD, "archive/constants.pkl": GOOD, "archive/code/a.py": ""}),
    "a name that leads out": archive_bytes({"../data.pkl": GOOD}),
    "a name that leads out elsewhere": archive_bytes({"archive/data.pkl": GOOD, "archive/../../a": ""}),
    "a pickle that unpacks to ten megabytes": archive_bytes(
        {"archive/data.pkl": b"\x80\x02" + b"]" * 10_000_000 + b"."}, zipfile.ZIP_DEFLATED
    ),
    "a record that unpacks to ten megabytes": archive_bytes(
        {"archive/data.pkl": GOOD, "archive/version": b"0" * 10_000_000}, zipfile.ZIP_DEFLATED
    ),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_files_and_odd_archives_are_refused(file, name):
    file.write_bytes(OTHER_FILES[name])
    assert_refused(file, *([name] if name.startswith("it ") else []))


def test_a_file_of_an_older_format_is_refused(file):
    save({"a": torch.ones(3)}, file, _use_new_zipfile_serialization=False)
    assert_refused(file, "of a torch before 1.6", arrays=True)


# -------------------------------------------------------------------------------------------------- interrupts, threads


def slow_dict(bits=20):
    """Opcodes of a plain dict that takes about the square of its size: its keys all walk along the same full places."""
    place, keys = 1, []
    for _ in range(6 * 2**bits // 10):
        keys.append(place)
        place = (5 * place + 1) % 2**bits  # where Python looks next in a table of 2^bits places
    keys += [key + 2**bits for key in keys[: 2**bits // 20]]
    return b"}(" + b"".join(b"J" + key.to_bytes(4, "little") + b"N" for key in keys) + b"u"


@pytest.mark.parametrize("kind", ["plain values", "other values"])
def test_a_signal_ends_a_load(file, kind):
    """Seven seconds: of plain values in one call of Python's unpickler, which no handler can interrupt."""
    is_plain = kind == "plain values"
    zip_pickle(file, b"\x80\x02" + (b"" if is_plain else b"ccollections\nOrderedDict\n)R\x85") + slow_dict() + b".")
    forks = {number: fork(load_values, str(file)) for number in (signal.SIGINT, signal.SIGTERM)}
    time.sleep(1)
    for number, pid in forks.items():
        os.kill(pid, number)
        assert wait(pid, 1) == (-number if is_plain else 130)
    assert_gone(forks.values())


def test_signals_are_handled_as_before_when_plain_values_are_loaded(file):
    save({"a": list(range(10**6))}, file)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    load_values(str(file))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("values", [{"a": list(range(10**6))}, [collections.OrderedDict(a=1)]])
def test_a_thread_can_load_too(file, values):
    save(values, file)
    results = []
    thread = threading.Thread(target=lambda: results.append(load_values(str(file))))
    thread.start()
    thread.join()
    assert results == [values]
