"""Numbers out of pickle files without running what is in them.

A pickle is a program. This reader runs it with every name it asks for replaced by our own stand-ins, which can only
make numpy arrays of numbers or text from bytes that are there; any other name is refused before anything is done.
Plain pickles of protocols 0 to 5 are read, also those of Python 2, and joblib's files (compressed ones too).
"""

from __future__ import annotations

import bz2
import io
import lzma
import math
import pickle
import re
import struct
import zlib
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np

from mgrpo.errors import InputError

MAX_BYTES = 1 << 30
"""Largest file, and largest content of a compressed one."""

MAX_DEPTH = 64
"""How deep lists and dictionaries may be nested."""

_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_DTYPE = re.compile(r"[?bBhHiIlLqQefdgFDGSU]|[biufcSUV?]\d{1,9}|bool|(u?int|float|complex)\d{1,3}")


class _Refused(Exception):
    """Something in the pickle is not read; the text says what."""


class _Dtype:
    """Stand-in for ``numpy.dtype``: numbers and text only."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        if isinstance(code, _NdarrayName) or not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise _Refused(f"an array of type {str(code)[:30]!r}; only numbers and text are read")
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "biufcSU":
            raise _Refused(f"an array of type {code!r}; only numbers and text are read")

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise _Refused("an array of a structured type")
        order = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise _Refused(f"an array with byte order {order!r}")
        self.dtype = self.dtype.newbyteorder(order)


class _NdarrayName:
    """Stand-in for the name ``numpy.ndarray``, which is only passed on."""


class _Array:
    """Stand-in for an array: empty until it gets its state."""

    def __init__(self) -> None:
        self.array: np.ndarray | None = None

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise _Refused("an array whose state is damaged")
        shape, dtype, fortran, data = state[-4:]
        self.array = _from_bytes(data, dtype, shape, "F" if fortran else "C")


class _JoblibArray:
    """Stand-in for joblib's note that an array's bytes follow in the file."""

    def __init__(self, *_: Any) -> None:
        self.array: np.ndarray | None = None


def _from_bytes(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """An array of bytes that must fit its shape exactly, so that nothing is allocated that the file doesn't hold."""
    if isinstance(data, str):
        data = data.encode("latin-1", "strict")
    if not isinstance(data, (bytes, bytearray)) or not isinstance(dtype, _Dtype):
        raise _Refused("an array of Python objects")
    if not isinstance(shape, tuple) or len(shape) > 32:
        raise _Refused("an array with a damaged shape")
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 0 for size in shape) or order not in (
        "C",
        "F",
    ):
        raise _Refused("an array with a damaged shape")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise _Refused(f"an array of shape {shape} and type {dtype.dtype} in {len(data)} bytes")
    return np.frombuffer(bytes(data), dtype.dtype).reshape(shape, order=order).copy()


def _reconstruct(kind: Any = None, *_: Any) -> _Array:
    if kind is not _NdarrayName:
        raise _Refused("an array of a class of its own")
    return _Array()


def _frombuffer(data: Any = None, dtype: Any = None, shape: Any = None, order: Any = None) -> np.ndarray:
    return _from_bytes(data, dtype, shape, order)


def _scalar(dtype: Any = None, data: Any = b"") -> Any:
    return _from_bytes(data, dtype, (), "C").reshape(())[()]


def _encode(text: Any = "", encoding: Any = "") -> bytes:
    """Bytes that protocols 0 to 2 write as text."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused("bytes in an unknown encoding")
    return text.encode("latin-1")


def _ordered(items: Any = ()) -> dict[Any, Any]:
    return dict(items)


def _bytes(*parts: Any) -> bytes:
    if parts:
        raise _Refused("bytes made by a function")
    return b""


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NdarrayName,
    ("numpy", "dtype"): _Dtype,
    **{(module, "_reconstruct"): _reconstruct for module in _NUMPY},
    **{(module, "scalar"): _scalar for module in _NUMPY},
    **{(module, "_frombuffer"): _frombuffer for module in _NUMERIC},
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): _ordered,
    ("__builtin__", "bytes"): _bytes,
    ("builtins", "bytes"): _bytes,
    ("joblib.numpy_pickle", "NumpyArrayWrapper"): _JoblibArray,
}
_CALLED = (_Dtype, _reconstruct, _frombuffer, _scalar, _encode, _ordered, _bytes, _JoblibArray)


class _Reader(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """The interpreter in Python, whose steps can be replaced; the one in C also reserves memory as a file asks for."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, fix_imports=False, encoding="latin1", errors="strict")
        self._stream = stream
        self._size = len(stream.getbuffer())

    def find_class(self, module: str, name: str) -> Any:
        found = _STAND_INS.get((module, name))
        if found is None:
            raise _Refused(f"'{module}.{name}'"[:120])
        return found

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _Refused("a reference to something outside of the file")

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not any(function is allowed for allowed in _CALLED) or not isinstance(arguments, tuple):
            raise _Refused("a call of something else than numpy's constructors")
        self.stack[-1] = function(*arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _JoblibArray):
            target.array = self._joblib_array(state)
        elif isinstance(target, (_Array, _Dtype)):
            target.build(state)
        else:
            raise _Refused("the state of an object that is not an array")

    dispatch[pickle.BUILD[0]] = load_build

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        kind = self.stack.pop()
        if kind is not _JoblibArray or arguments != ():
            raise _Refused("an object of a class of its own")
        self.append(_JoblibArray())

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def _refuse(self) -> NoReturn:
        raise _Refused("an object of a class of its own")

    for _code in (pickle.NEWOBJ_EX, pickle.OBJ, pickle.INST, pickle.EXT1, pickle.EXT2, pickle.EXT4):
        dispatch[_code[0]] = _refuse
    for _code in (pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
        dispatch[_code[0]] = _refuse
    del _code

    def load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        if size > self._size:
            raise EOFError("cut off")
        self.append(bytearray(self.read(size)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def _joblib_array(self, state: Any) -> np.ndarray:
        if not isinstance(state, dict) or state.get("subclass") is not _NdarrayName:
            raise _Refused("an array of a class of its own")
        dtype, shape = state.get("dtype"), state.get("shape")
        if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple):
            raise _Refused("an array of Python objects")
        if not all(isinstance(size, int) and 0 <= size <= self._size for size in shape):
            raise _Refused("an array with a damaged shape")
        if state.get("numpy_array_alignment_bytes") is not None:
            padding = self._stream.read(1)
            self._stream.read(padding[0] if padding else 0)
        wanted = math.prod(shape) * dtype.dtype.itemsize
        if wanted > self._size:
            raise EOFError("cut off")
        return _from_bytes(self._stream.read(wanted), dtype, shape, state.get("order"))


def read_pickle(path: str | Path, what: str) -> Any:
    """What a pickle (or joblib) file holds: dictionaries, lists, tuples, numbers, text, bytes and numpy arrays.

    Args:
        path: the file.
        what: what it should be, for messages: "body parameters".
    Raises:
        InputError: unreadable, too large, damaged, or it asks for anything but numpy's constructors; nothing of it has
            then been run.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: larger than {MAX_BYTES >> 20} MiB; expected {what}")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror or error}); expected {what}") from error
    return parse_pickle(data, str(path), what)


def parse_pickle(data: bytes, name: str, what: str) -> Any:
    """Like :func:`read_pickle` for bytes in memory; ``name`` stands for the file in messages."""
    try:
        content = _Reader(io.BytesIO(_unpacked(data))).load()
        return _resolved(content, {}, 0)
    except _Refused as error:
        raise InputError(
            f"{name}: this pickle holds {error}, which is not read because pickles can run code. Only numpy arrays, "
            f"numbers, text, lists and dictionaries are; expected {what}. Convert it with the tool that wrote it, to "
            "npz"
        ) from error
    except MemoryError as error:
        raise InputError(f"{name}: asks for more memory than there is; expected {what}") from error
    except (pickle.UnpicklingError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise InputError(
            f"{name}: not a whole pickle file ({error or 'cut off'}); expected {what}. Get it again"
        ) from error
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, RecursionError, OverflowError, UnicodeError,
            ArithmeticError, NameError, struct.error) as error:  # fmt: skip
        # whatever steps a damaged program trips over
        raise InputError(
            f"{name}: a damaged pickle file ({type(error).__name__}); expected {what}. Get it again"
        ) from error


def _unpacked(data: bytes) -> bytes:
    """The content of what joblib compressed, up to :data:`MAX_BYTES`."""
    tools: list[Any] = []
    if data[:2] in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"):
        tools = [zlib.decompressobj()]
    elif data[:2] == b"\x1f\x8b":
        tools = [zlib.decompressobj(wbits=31)]
    elif data[:3] == b"BZh":
        tools = [bz2.BZ2Decompressor()]
    elif data[:6] in (b"\xfd7zXZ\x00",) or data[:3] == b"\x5d\x00\x00":
        tools = [lzma.LZMADecompressor()]
    if not tools:
        return data
    content = tools[0].decompress(data, MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise _Refused(f"more than {MAX_BYTES >> 20} MiB in a compressed file")
    if not tools[0].eof:
        raise EOFError("cut off")
    return content


def _resolved(value: Any, seen: dict[int, Any], depth: int) -> Any:
    """``value`` with arrays in the places of their stand-ins. Parts that occur several times are made once."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, bytearray, np.ndarray, np.generic)):
        return value
    if id(value) in seen:
        result = seen[id(value)]
        if result is _OPEN:
            raise _Refused("a list that holds itself")
        return result
    if depth > MAX_DEPTH:
        raise _Refused(f"lists nested more than {MAX_DEPTH} deep")
    seen[id(value)] = _OPEN
    result: Any
    if isinstance(value, (_Array, _JoblibArray)):
        if value.array is None:
            raise _Refused("an array without content")
        result = value.array
    elif isinstance(value, dict):
        result = {_key(key): _resolved(part, seen, depth + 1) for key, part in value.items()}
    elif isinstance(value, (list, tuple)):
        result = type(value)(_resolved(part, seen, depth + 1) for part in value)
    elif isinstance(value, (set, frozenset)):
        result = type(value)(_key(part) for part in value)
    else:
        raise _Refused("something else than data")
    seen[id(value)] = result
    return result


_OPEN = object()


def _key(key: Any) -> Any:
    if isinstance(key, (str, int, float, bytes, bool, np.generic)) or key is None:
        return key
    if isinstance(key, tuple) and all(isinstance(part, (str, int, float, bytes)) for part in key):
        return key
    raise _Refused("a dictionary with keys that are not text or numbers")
