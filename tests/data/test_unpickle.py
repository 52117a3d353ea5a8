import os
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from amc_lightning.data.unpickle import load_arrays
from amc_lightning.errors import UserError


class Runs:
    """A pickle of this runs a command when it is loaded by an ordinary unpickler."""

    def __init__(self, function, *args):
        self.reduced = (function, args)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_plain_containers_come_back(protocol):
    content = {
        b"data": np.arange(12, dtype=np.uint8).reshape(3, 4),
        "f": np.linspace(0, 1, 5).astype(">f4"),
        "order": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "list": [1, 2.5, None, True, "text", b"bytes", (1, 2)],
        "scalar": np.int64(7),
    }
    read = load_arrays(pickle.dumps(content, protocol=protocol), "x")
    assert read.keys() == content.keys()
    for key in (b"data", "f", "order"):
        assert np.array_equal(read[key], content[key])
        assert read[key].dtype.name == content[key].dtype.name  # numpy may turn the byte order
    assert read["list"] == content["list"]
    assert read["scalar"] == 7


def test_python_2_byte_strings_stay_bytes():
    assert load_arrays(b"\x80\x02}q\x00U\x04dataq\x01K\x05s.", "x") == {b"data": 5}


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_both_names_of_numpy_are_known(module):
    content = pickle.dumps(np.arange(3), protocol=2)
    for name in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        content = content.replace(b"c" + name + b"\n", b"c" + module.encode() + b"\n")
    assert module in {arg.split()[0] for op, arg, _ in pickletools.genops(content) if op.name == "GLOBAL"}
    assert load_arrays(content, "x").tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda mark: Runs(os.system, f"touch {mark}"), "posix.system"),
        (lambda mark: Runs(eval, f"open({str(mark)!r}, 'w')"), "builtins.eval"),
        (lambda mark: Runs(getattr, "x", "upper"), "builtins.getattr"),
        (lambda mark: Runs(open, str(mark), "w"), r"_?io\.open"),
        (lambda mark: Runs(pickle.loads, b"N."), r"_?c?[pP]ickle\.loads"),
        (lambda mark: Runs(np.fromfile, str(mark)), r"numpy.*fromfile"),
        (lambda mark: Path("x"), r"pathlib.*"),
        (lambda mark: OrderedDict(a=1), r"collections\.OrderedDict"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_anything_else_is_refused_and_not_run(build, name, protocol, tmp_path):
    mark = tmp_path / "ran"
    content = pickle.dumps({b"data": [build(mark)]}, protocol=protocol)
    with pytest.raises(
        UserError,
        match=rf"^batch_1: '({name}|__builtin__\.\w+)' is named in this pickle and was not loaded, because it could "
        r"run any program; only numpy arrays and plain containers are read\. Do not use this file; get the "
        r"official one\.$",
    ):
        load_arrays(content, "batch_1")
    assert not mark.exists()


def test_an_array_of_objects_is_refused_too(tmp_path):
    array = np.array([Runs(os.system, f"touch {tmp_path / 'ran'}")], dtype=object)
    with pytest.raises(UserError, match=r"posix\.system' is named in this pickle"):
        load_arrays(pickle.dumps(array), "x")
    assert not (tmp_path / "ran").exists()


def test_dotted_names_do_not_reach_into_what_is_admitted():
    # STACK_GLOBAL of protocol 4 resolves dots: numpy, "ndarray.tofile" must not pass for numpy.ndarray
    content = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    with pytest.raises(UserError, match=r"'numpy\.ndarray\.tofile' is named in this pickle"):
        load_arrays(content, "x")


def test_codecs_other_than_latin1_are_damage():
    with pytest.raises(UserError, match=r"the codec 'zip' is not one that arrays are pickled with"):
        load_arrays(b"c_codecs\nencode\n(S'x'\nS'zip'\ntR.".replace(b"S'", b"V").replace(b"'\n", b"\n"), "x")


def test_state_cannot_be_set_on_what_is_admitted():
    # BUILD with slot state would be setattr(encode, "x", 1)
    content = b"c_codecs\nencode\n(N}Vx\nI1\nst" + b"b."
    with pytest.raises(UserError, match=r"are not a whole pickle of arrays \(AttributeError"):
        load_arrays(content, "x")


@pytest.mark.parametrize("cut", [0, 1, 10, 60, 150])
def test_truncated(cut):
    content = pickle.dumps({b"data": np.zeros((4, 30), np.uint8)}, protocol=2)
    assert cut < len(content)
    with pytest.raises(
        UserError,
        match=rf"^f: '{cut} bytes' are not a whole pickle of arrays \(.*; the file is cut short or damaged\. Del",
    ):
        load_arrays(content[:cut], "f")
