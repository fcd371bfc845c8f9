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
        "list": pickle.dumps([1, 2], 2),
        "number": pickle.dumps(5, 2),
    }
