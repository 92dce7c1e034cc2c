"""Pickles are read as data: arrays come back, code never runs, damage is an error."""

from __future__ import annotations

import collections
import contextlib
import os
import pickle
import random
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mgrpo.data import safe_pickle
from mgrpo.data.safe_pickle import parse_pickle, read_pickle
from mgrpo.errors import InputError

SHARED = np.arange(3.0)
CONTENT: dict[str, Any] = {
    "floats": np.arange(12, dtype=np.float32).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(3, 2)),
    "big": np.arange(3, dtype=">i4"),
    "text": np.array(["ab", "c"]),
    "empty": np.zeros((0, 3)),
    "bool": np.array([True, False]),
    "scalar": np.float64(3.5),
    "list": [1, 2.5, "x", None, True, b"\xff\x00"],
    "tuple": (1, {"inner": np.ones(2)}),
    "twice": [SHARED, SHARED],
    7: "seven",
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def read(data: bytes) -> Any:
    return parse_pickle(data, "file.pkl", "numbers")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_data_comes_back(protocol: int) -> None:
    content = read(pickle.dumps(CONTENT, protocol))
    assert same(CONTENT, content)
    content["floats"][0, 0] = 5.0  # one's own memory, writable
    assert same({"a": np.ones(2)}, read(pickle.dumps(collections.OrderedDict(a=np.ones(2)), protocol)))


def test_arrays_of_python_2_come_back() -> None:
    """Text is bytes there, and modules have their old names."""
    data = (
        b"\x80\x02}q\x00U\x01aq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x08" + struct.pack("<ff", 1.5, -2.0) + b"tbs."
    )
    assert same({"a": np.array([1.5, -2.0], np.float32)}, read(data))


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3)])
def test_joblib_files(compress: Any, tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    joblib.dump(CONTENT, tmp_path / "a.pkl", compress=compress)
    assert same(CONTENT, read_pickle(tmp_path / "a.pkl", "numbers"))


class Attack:
    """Something whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class Plain:
    """A class of one's own."""


def refused(data: bytes) -> str:
    with pytest.raises(InputError, match=r"file\.pkl: ") as caught:
        read(data)
    return str(caught.value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_run(protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for function, arguments in (
        (os.system, (f"touch {mark}",)),
        (eval, (f"open({str(mark)!r}, 'w')",)),
        (np.fromfile, ("/etc/passwd",)),
        (getattr, ("x", "upper")),
        (Path.touch, (mark,)),
    ):
        for content in (Attack(function, *arguments), {"a": [Attack(function, *arguments)]}):
            assert "is not read because pickles can run code" in refused(pickle.dumps(content, protocol))
            assert not mark.exists()
    assert "not read" in refused(pickle.dumps(Plain(), protocol))
    assert "not read" in refused(pickle.dumps(np.array([Plain()], object), protocol))


def test_stand_ins_can_not_be_turned() -> None:
    """Programs that use our own stand-ins in ways that no writer does."""
    header = b"\x80\x04"
    reconstruct, array = b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\n"
    programs = {
        "state of a function": header + reconstruct + b"}U\x01ab.",
        "state of a class": header + array + b"}(U\x01aK\x01ub.",
        "attributes of a function": header + reconstruct + b"N}(U\x0c__defaults__K\x01u\x86b.",
        "array of a class": header + reconstruct + reconstruct + b"K\x00\x85U\x01b\x87R.",
        "call of a class": header + array + b")R.",
        "object of a class": header + array + b")\x81.",
        "array without content": header + reconstruct + array + b"K\x00\x85U\x01b\x87R.",
        "name alone": header + array + b".",
        "instance": b"(inumpy\nndarray\n.",
        "extension": b"\x82\x01.",
        "persistent": header + b"K\x01Q.",
        "a list in itself": b"]q\x00h\x00a.",
        "bytes by a function": header + b"c__builtin__\nbytes\nK\x05\x85R.",
        "keys": header + b"}(KAK\x01\x86)\x86K\x01s.",
    }
    for name, program in programs.items():
        assert "file.pkl" in refused(program), name
    assert safe_pickle._reconstruct.__defaults__ == (None,)
    assert not hasattr(safe_pickle._reconstruct, "a") and not hasattr(safe_pickle._NdarrayName, "a")


def test_sizes_are_checked_before_memory_is_taken() -> None:
    began = time.perf_counter()
    array = pickle.dumps(np.arange(4, dtype=np.uint8), 2)
    for change in (
        array.replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"),  # a shape of two billion
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",  # bytearray8 of a terabyte
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".",  # binbytes8
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.",  # a frame
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # a place in the memo
    ):
        with contextlib.suppress(InputError):
            assert read(change) is None
    assert time.perf_counter() - began < 2
    deep = b"]" * 100000 + b"a" * 99999 + b"."
    assert "nested" in refused(deep)


def test_lists_that_double_are_read_once() -> None:
    """Thirty lists, each holding the one before twice: a billion parts if each were visited."""
    program = b"\x80\x02]q\x00" + b"".join(b"]q" + bytes([k]) + b"h" + bytes([k - 1]) + b"ah" + bytes([k - 1]) + b"a"
                                          for k in range(1, 31)) + b"."  # fmt: skip
    began = time.perf_counter()
    content = read(program)
    assert time.perf_counter() - began < 1 and content[0] is content[1]


def test_compressed_files_have_a_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    joblib.dump(np.zeros(1 << 20), tmp_path / "a.pkl", compress=3)
    monkeypatch.setattr(safe_pickle, "MAX_BYTES", 1 << 18)
    with pytest.raises(InputError, match="in a compressed file"):
        read_pickle(tmp_path / "a.pkl", "numbers")
    (tmp_path / "b.pkl").write_bytes(b"\0" * ((1 << 18) + 1))
    with pytest.raises(InputError, match="larger than"):
        read_pickle(tmp_path / "b.pkl", "numbers")
    with pytest.raises(InputError, match="can't be read"):
        read_pickle(tmp_path / "none.pkl", "numbers")


def test_damage_is_an_error() -> None:
    generator = random.Random(0)
    whole = pickle.dumps(CONTENT, 4)
    for end in range(0, len(whole) - 1, 7):
        refused(whole[:end])
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        try:
            read(bytes(data))
        except InputError as error:
            assert "file.pkl" in str(error)
