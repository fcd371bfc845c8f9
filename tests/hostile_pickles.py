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


def shared(first, pair):
    """Opcodes of 60 pairs, each one of which holds the one before twice."""
    steps = (b"h" + bytes([i]) + pair + b"q" + bytes([i + 1]) for i in range(60))
    return first + b"q\x00" + b"".join(steps)


def hostile_values():
    """What it is -> opcodes of a value that is plain, but too large to look at."""
    pairs = b"".join(b"(h" + bytes([i]) + b"h" + bytes([i]) + b"lq" + bytes([i + 1]) for i in range(60))
    return {
        "lists, 2^60 in all": b"(]q\x00" + pairs + b"l",
        "tuples, 2^60 in all": b"()q\x00" + pairs.replace(b"l", b"t") + b"t",
        "lists, 10^5 deep": b"(" * 10**5 + b"l" * 10**5,
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
        "array of 10^8 rows without values": pickle.dumps(np.zeros((3, 0)), 2).replace(
            b"K\x03K\x00", b"J\x00\xe1\xf5\x05K\x00"
        ),
        "list": pickle.dumps([1, 2], 2),
        "number": pickle.dumps(5, 2),
    }
