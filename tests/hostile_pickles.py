"""Pickles that want to run code or to take memory, or that are none."""

import os
import pickle
import zipfile

import numpy as np


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def zip_pickle(path, *pickles):
    """Write pickles as torch does, in an archive."""
    with zipfile.ZipFile(str(path), "w") as archive:
        for number, data in enumerate(pickles):
            archive.writestr(f"archive{number or ''}/data.pkl", data)
        archive.writestr("archive/version", "3")


def global_call(module, name, argument):
    return (
        b"\x80\x02c"
        + f"{module}\n{name}\n".encode()
        + b"X"
        + len(argument).to_bytes(4, "little")
        + argument
        + b"\x85R."
    )


def memo_as_key(value):
    """A dict of a value, and of what the opcodes of the value put into the memo at 1, as a key."""
    return b"\x80\x02}X\x01\x00\x00\x00a" + value + b"sh\x01K\x01s."


def frame_in_argument(hidden):
    """What C's unpickler would find behind a frame, while it is within a text."""
    text = b"X" + (3 + len(hidden)).to_bytes(4, "little")[:3]
    return b"\x80\x04\x95" + len(text).to_bytes(8, "little") + text + b"\x00" * 4 + hidden + b"."


def repeated_text(times):
    """A text of a megabyte, turned into bytes again and again."""
    text = b"X\x40\x42\x0f\x00" + b"a" * 1_000_000
    once = b"c_codecs\nencode\nq\x00" + text + b"q\x01X\x06\x00\x00\x00latin1q\x02\x86R"
    return b"N" + once + b"".join(b"K%bh\x00h\x01h\x02\x86R" % bytes([i % 256]) for i in range(times))


def repeated_array(times):
    data = b"B\x40\x42\x0f\x00" + b"a" * 1_000_000
    dtype = b"cnumpy\ndtype\nX\x02\x00\x00\x00u1K\x00K\x01\x87Rq\x00"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    state = b"(K\x01J\x40\x42\x0f\x00\x85h\x00\x89h\x01tb"
    return (
        b"N"
        + dtype
        + b"K\x00"
        + data
        + b"q\x01"
        + b"".join(b"M%b" % i.to_bytes(2, "little") + array + state for i in range(times))
    )


def tensor_pickle(path, shape, strides, offset=0, code=b"ctorch\nFloatStorage\n", data=b"\x00" * 40):
    """A file of a tensor, as a dict "a" -> tensor, whose arguments may be anything."""
    numbers = [pickle.dumps(list(values), 2)[2:-1].replace(b"q\x00", b"") for values in (shape, strides)]
    storage = b"(X\x07\x00\x00\x00storage" + code + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x0atQ"
    start = pickle.dumps(offset, 2)[2:-1]
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + start + b"".join(numbers) + b"\x89}tR"
    zip_pickle(path, b"\x80\x02}X\x01\x00\x00\x00a" + tensor + b"s.")
    with zipfile.ZipFile(str(path), "a") as archive:
        archive.writestr("archive/data/0", data)


def shared(first, pair):
    """Opcodes of 60 pairs, each one of which holds the one before twice."""
    steps = (b"h" + bytes([i]) + pair + b"q" + bytes([i + 1]) for i in range(60))
    return first + b"q\x00" + b"".join(steps)


def hostile_values():
    """What it is -> opcodes of a value that is plain, but too large to look at."""
    pairs = b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(60))
    return {
        "lists, 2^60 in all": b"](]q\x00" + pairs + b"e",
        "tuples, 2^60 in all": b"()q\x00" + pairs.replace(b"](", b"(").replace(b"eq", b"tq") + b"t",
        "lists, 10^5 deep": b"](" * 10**5 + b"e" * 10**5,
        "tuples, 10^5 deep": b"(" * 10**5 + b"t" * 10**5,
    }


def dict_opcodes(items):
    """Opcodes of a dict, text -> opcodes or a value."""
    text = b"}("
    for key, value in items.items():
        for part in (key, value):
            text += part if isinstance(part, bytes) else pickle.dumps(part, 2)[2:-1]
    return text + b"u"


def hostile_pickles(marker):
    """What it is -> pickle; None stands for a tensor. Those that run make the file `marker`."""
    touch = f"touch {marker}"
    python = f"open({str(marker)!r}, 'w')".encode()
    return {
        "os.system": pickle.dumps(Call(os.system, touch), 2),
        "os.system deep inside": pickle.dumps({"a": {"bbox": [(Call(os.system, touch),)]}}, 2),
        "eval": pickle.dumps(Call(eval, python.decode()), 2),
        "exec, protocol 4": pickle.dumps(Call(exec, python.decode()), 4),
        "protocol 0": pickle.dumps(Call(os.system, touch), 0),
        "getattr": global_call("builtins", "getattr", b"x"),
        "attribute of an allowed module": global_call("numpy", "f2py.os.system", touch.encode()),
        "name with a dot": b"\x80\x04\x8c\x0bcollections\x8c\x12_sys.modules.clear\x93)R.",
        "copyreg": global_call("copyreg", "_reconstructor", b"x"),
        "__setstate__ of a module": b"\x80\x02cnumpy\ntesting\n}X\x01\x00\x00\x00aX\x01\x00\x00\x00bsb.",
        "import of a module with effects": global_call("antigravity", "fly", b"x"),
        "old INST": b"(S'" + touch.encode() + b"'\nios\nsystem\n.",
        "OBJ": b"\x80\x02(cos\nsystem\nX\x01\x00\x00\x00ao.",
        "NEWOBJ": b"\x80\x02cos\nsystem\n)\x81.",
        "extension code": b"\x80\x02\x82\x01.",
        "persistent id": b"\x80\x02X\x01\x00\x00\x00aQ.",
        "text persistent id": b"\x80\x02Pabc\n.",
        "tensor": None,
        "memo index of 2^31": b"\x80\x02}r\x00\x00\x00\x80.",
        "memo index of 2^28": b"\x80\x02}r\x00\x00\x00\x10.",
        "memo read before it was written": b"\x80\x02h\x05.",
        "empty": b"",
        "cut short": pickle.dumps({"a": {"bbox": [1, 2, 3]}}, 2)[:-4],
        "length beyond the end": b"\x80\x02X\xff\xff\xff\x7fa.",
        "long integer beyond the end": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "stack underflow": b"\x80\x02R.",
        "array of huge shape": pickle.dumps(np.zeros(3), 2).replace(b"K\x03\x85", b"J\xff\xff\xff\x7f\x85"),
        "array of objects": pickle.dumps(np.array([Call(os.system, touch)], dtype=object), 2),
        "object scalar": pickle.dumps({"a": np.array([None, 1], dtype=object)}, 2),
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(touch)]) + touch.encode() + b"\x85R.",
        "name through the memo": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93)R.",
        "key that is a tuple a million deep": b"\x80\x02})" + b"\x85" * 10**6 + b"K\x01s.",
        "key that is a tuple of 2^60": b"\x80\x02}" + shared(b")", b"\x86") + b"K\x01s.",
        "key that was an argument of defaultdict": memo_as_key(b"ccollections\ndefaultdict\n)\x85q\x01R"),
        "key that was an argument of dtype": memo_as_key(b"cnumpy\ndtype\nX\x02\x00\x00\x00f8)\x86q\x01R"),
        "key that was a state of dtype": memo_as_key(
            b"cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85RK\x03X\x01\x00\x00\x00<)\x87q\x01b"
        ),
        "frame that ends within an argument": frame_in_argument(b"})" + b"\x85" * 10**6 + b"K\x01s."),
        "memo index behind a frame": frame_in_argument(b"}r\x00\x00\x00\x10."),
        "one text a thousand times": b"\x80\x02}(" + repeated_text(2000) + b"u.",
        "one array a thousand times": b"\x80\x02}(" + repeated_array(1000) + b"u.",
        "many integers of 80 bits": b"\x80\x02}("
        + b"".join(b"\x8a\x0a%b\x01N" % bytes([i & 255, i >> 8] + [0] * 7) for i in range(2000))
        + b"u.",
        "array of 10^8 rows without values": pickle.dumps(np.zeros((3, 0)), 2).replace(
            b"K\x03K\x00", b"J\x00\xe1\xf5\x05K\x00"
        ),
        "array of 2^31 - 1 empty texts": pickle.dumps(np.zeros(0, "U1"), 2)
        .replace(b"U1", b"U0")
        .replace(b"K\x00\x85", b"J\xff\xff\xff\x7f\x85"),
        "array of a character beyond Unicode": pickle.dumps(np.array(["abcd"]), 4).replace(b"a\0\0\0", b"\xff" * 4),
        "list": pickle.dumps([1, 2], 2),
        "number": pickle.dumps(5, 2),
    }
