"""Reading pickles of other projects without running them.

A pickle is a small program, and Python's own reader obeys it: it imports what the file names and calls it. This module
reads the same bytes with a machine of its own that knows no import and no call. It builds numbers, strings, bytes,
lists, tuples, dictionaries, sets and numeric numpy arrays, nothing else; every other name in the file is refused, with
the name. What numpy and joblib write as calls (`_reconstruct`, `scalar`, `_frombuffer`, `NumpyArrayWrapper`) is
answered by stand-ins of this module.

Also bounded: the size of the file and of what it unpacks to, the number of instructions, the depth of nesting; an
array's shape must fit the bytes that are there before anything is allocated, and memo numbers are keys, not sizes.

Read by it: pickles of protocol 0 to 5, `joblib.dump` (plain, or compressed by zlib or gzip), and npy files of dtype
object. Not read: bz2, xz, lz4, torch files, instances of classes, out-of-band buffers, structured arrays.
"""

from __future__ import annotations

import io
import math
import re
import struct
import tokenize
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mgrpo.errors import InputError

MAX_BYTES = 4 << 30
"""Size of a file, and of what it unpacks to, that is still read."""

MAX_INSTRUCTIONS = 2_000_000
"""Instructions of one pickle; a file of arrays has some hundred for each array."""

MAX_DEPTH = 64
"""Levels of lists in dictionaries in lists."""

HEADER_ERRORS = (ValueError, KeyError, EOFError, OSError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError)
"""What numpy raises for a damaged npy header, which it reads as a Python literal."""

_MAX_TEXT_NUMBER = 400
_MAX_DIMENSIONS = 32
_MARK = object()


class _Refused(Exception):
    """The pickle is damaged or asks for something that is not read; the text says what."""


class _Name:
    """A module and a name in it, as the file spells them. Stands for the thing and can't be used as it."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class _Dtype:
    """A numpy dtype in the making: the byte order comes later, by a state."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any) -> None:
        if isinstance(code, bytes):
            code = code.decode("latin-1")
        if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?([biufc]\d{1,2}|[SUa]\d{0,9}|O8?|\?)", code):
            raise _Refused(f"it has an array of dtype {_short(code)}; numbers, text and plain objects are read")
        try:
            self.dtype = np.dtype(code)
        except TypeError as error:
            raise _Refused(f"it has an array of unknown dtype {_short(code)}") from error

    def build(self, state: Any) -> None:
        # (version, byte order, subarray, names, fields, item size, alignment, flags[, metadata])
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise _Refused("it has a structured array; save its columns as arrays of their own")
        order = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "=", "|"):
            raise _Refused(f"it has a dtype of unknown byte order {_short(order)}")
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """A numpy array in the making: shape, dtype and contents come later, by a state."""

    __slots__ = ("contents",)

    def __init__(self) -> None:
        self.contents: Any = None
        """The finished array, or for dtype object ``(shape, list)``."""

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _Dtype):
            raise _Refused("it has an array whose state is not numpy's")
        _, shape, dtype, fortran, data = state
        if dtype.dtype.hasobject:
            count = math.prod(_shape(shape))
            if not isinstance(data, list) or len(data) != count:
                raise _Refused(f"it has an array of objects of shape {shape} without its {count} entries")
            self.contents = (_shape(shape), data, bool(fortran))
        else:
            self.contents = _numeric(data, dtype.dtype, shape, bool(fortran))


class _JoblibArray:
    """joblib's note that the bytes of an array follow in the file."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def build(self, state: Any) -> None:
        if not isinstance(state, dict) or not isinstance(state.get("dtype"), _Dtype):
            raise _Refused("it has a joblib array without shape or dtype")
        self.state = state


def _short(value: Any) -> str:
    text = value.text if isinstance(value, _Name) else repr(value) if isinstance(value, (str, bytes, int)) else ""
    text = text or type(value).__name__.strip("_").lower()
    return text if len(text) <= 60 else text[:57] + "..."


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or len(shape) > _MAX_DIMENSIONS:
        raise _Refused(f"it has an array of shape {_short(shape)}")
    if any(not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= 2**62 for size in shape):
        raise _Refused("it has an array whose shape is not made of counts")
    return shape


def _numeric(data: Any, dtype: np.dtype, shape: Any, fortran: bool) -> np.ndarray:
    """An array over the bytes that are there; its shape must fit them exactly, so nothing absurd is allocated."""
    shape = _shape(shape)
    if isinstance(data, str):  # Python 2 wrote bytes as text
        try:
            data = data.encode("latin-1")
        except UnicodeEncodeError as error:
            raise _Refused("it has an array whose bytes are text") from error
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise _Refused(f"it has an array whose contents are a {_short(data)}, not bytes")
    wanted, there = math.prod(shape) * dtype.itemsize, len(data)
    if wanted != there:
        raise _Refused(f"it has an array of shape {shape} and dtype {dtype}, {wanted} bytes, with {there} bytes")
    if wanted == 0:
        # The other sizes may be absurd where one is zero.
        if math.prod(max(size, 1) for size in shape) > MAX_BYTES or dtype.itemsize == 0:
            raise _Refused(f"it has an empty array of shape {shape} and dtype {dtype}")
        return np.empty(shape, dtype)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


# ---- what stands for the calls that numpy, joblib and Python write ----


def _reconstruct(arguments: tuple) -> _Array:
    if len(arguments) != 3 or not isinstance(arguments[0], _Name) or arguments[0].text != "numpy.ndarray":
        raise _Refused("it has an array of a class other than numpy.ndarray")
    return _Array()


def _frombuffer(arguments: tuple) -> np.ndarray:
    if len(arguments) != 4 or not isinstance(arguments[1], _Dtype) or arguments[3] not in ("C", "F"):
        raise _Refused("it has an array that is not made as numpy makes it")
    data, dtype, shape, order = arguments
    return _numeric(data, dtype.dtype, shape, order == "F")


def _scalar(arguments: tuple) -> Any:
    if len(arguments) != 2 or not isinstance(arguments[0], _Dtype) or arguments[0].dtype.hasobject:
        raise _Refused("it has a number that is not made as numpy makes it")
    return _numeric(arguments[1], arguments[0].dtype, (), False).item()


def _dtype(arguments: tuple) -> _Dtype:
    if not 1 <= len(arguments) <= 3:
        raise _Refused("it has a dtype that is not made as numpy makes it")
    return _Dtype(arguments[0])


def _encode(arguments: tuple) -> bytes:
    """How protocols 0 to 2 write bytes."""
    if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] not in ("latin1", "latin-1"):
        raise _Refused("it has bytes that are not made as Python makes them")
    try:
        return arguments[0].encode("latin-1")
    except UnicodeEncodeError as error:
        raise _Refused("it has bytes that are not made as Python makes them") from error


def _empty_bytes(arguments: tuple) -> bytes:
    """How protocols 0 to 2 write empty bytes."""
    if arguments:
        raise _Refused("it has bytes that are not made as Python makes them")
    return b""


def _plain_dict(arguments: tuple) -> dict:
    """An ordered or default dictionary; its entries follow. The default's maker is dropped."""
    if len(arguments) > 1 or not all(argument is None or isinstance(argument, _Name) for argument in arguments):
        raise _Refused("it has a dictionary that is not made as Python makes it")
    return {}


def _set(arguments: tuple) -> set:
    if len(arguments) != 1 or not isinstance(arguments[0], list):
        raise _Refused("it has a set that is not made as Python makes it")
    return {_key(value) for value in arguments[0]}


def _joblib_array(arguments: tuple) -> _JoblibArray:
    if arguments:
        raise _Refused("it has an array that is not made as joblib makes it")
    return _JoblibArray()


_CALLS: dict[str, Callable[[tuple], Any]] = {
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _frombuffer,
    "numpy._core.numeric._frombuffer": _frombuffer,
    "numpy.dtype": _dtype,
    "_codecs.encode": _encode,
    "collections.OrderedDict": _plain_dict,
    "collections.defaultdict": _plain_dict,
    "builtins.bytes": _empty_bytes,
    "__builtin__.bytes": _empty_bytes,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "joblib.numpy_pickle.NumpyArrayWrapper": _joblib_array,
}
"""Every name that may be called, and what answers for it."""

_ARGUMENTS = frozenset(
    {"numpy.ndarray"}
    | {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("dict", "list", "int", "float", "str")}
)
"""Names that may be handed to those calls, and nothing else may be done with."""

_TORCH = ("torch.", "torch_")


def _name(module: Any, name: Any) -> _Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise _Refused("it names something by what is not a name")
    text = f"{module}.{name}"
    if text in _CALLS or text in _ARGUMENTS:
        return _Name(text)
    if text.startswith(_TORCH):
        raise _Refused(
            f"it holds torch objects ('{_short(_Name(text))}'); turn them into numpy arrays where it was written: "
            "tensor.cpu().numpy()"
        )
    raise _Refused(
        f"it asks for '{_short(_Name(text))}', which is not a number, text, list, dictionary or numpy array; "
        "a pickle can name any function to run, so it was not read. Save plain arrays instead (np.savez)"
    )


class _Machine:
    """Runs one pickle's instructions over bytes. Holds no way to import or call anything outside this module."""

    def __init__(self, data: bytes, start: int = 0, instructions: int = MAX_INSTRUCTIONS, depth: int = 0) -> None:
        self.data, self.view, self.at, self.left, self.depth = data, memoryview(data), start, instructions, depth
        self.most = instructions
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    # -- bytes --

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            raise _Refused(f"it ends too early: {count} bytes wanted at {self.at}, {len(self.data) - self.at} there")
        self.at += count
        return self.view[self.at - count : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self, longest: int) -> str:
        end = self.data.find(b"\n", self.at, self.at + longest + 1)
        if end < 0:
            raise _Refused(f"it has a line at {self.at} that is too long or has no end")
        return str(self.take(end + 1 - self.at)[:-1], "latin-1")

    def text(self, count: int) -> str:
        try:
            return str(self.take(count), "utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise _Refused(f"it has text at {self.at} that is not UTF-8") from error

    # -- stack --

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise _Refused("it takes from an empty stack")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                found = self.stack[index + 1 :]
                del self.stack[index:]
                return found
        raise _Refused("it has no mark to go back to")

    def top(self, *kinds: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kinds):
            raise _Refused(f"it adds to a {_short(self.stack[-1]) if self.stack else 'nothing'}")
        return self.stack[-1]

    def remember(self, index: int) -> None:
        if not self.stack or self.stack[-1] is _MARK:
            raise _Refused("it remembers nothing")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> Any:
        if index not in self.memo:
            raise _Refused(f"it recalls entry {index}, which it never stored")
        return self.memo[index]

    # -- running --

    def run(self) -> Any:
        """The object that the pickle describes; arrays in it may still be stand-ins, see :class:`_Finisher`."""
        while True:
            self.left -= 1
            if self.left < 0:
                raise _Refused(f"it has more than {self.most} instructions; save its contents as arrays")
            if self.at >= len(self.data):
                raise _Refused("it ends too early: it has no last instruction")
            code = self.data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                value = self.pop()
                if self.stack:
                    raise _Refused("it ends with a full stack")
                return value
            action = _INSTRUCTIONS.get(code)
            if action is None:
                raise _Refused(_UNREAD.get(code, f"it has an unknown instruction, byte {code:#04x} at {self.at - 1}"))
            action(self)

    def call(self, name: Any, arguments: Any) -> Any:
        if not isinstance(name, _Name) or not isinstance(arguments, tuple) or name.text not in _CALLS:
            raise _Refused(f"it calls a {_short(name)}")
        return _CALLS[name.text](arguments)

    def build(self) -> None:
        state, target = self.pop(), self.top(_Dtype, _Array, _JoblibArray)
        target.build(state)
        if isinstance(target, _JoblibArray):
            self.stack[-1] = self.joblib_array(target.state)

    def joblib_array(self, state: dict[str, Any]) -> Any:
        """The array whose bytes follow here in the file, after joblib's padding."""
        dtype, shape = state["dtype"].dtype, _shape(state.get("shape"))
        subclass = state.get("subclass")
        if isinstance(subclass, _Name) and subclass.text != "numpy.ndarray":
            raise _Refused(f"it has an array of the class {subclass.text}")
        if dtype.hasobject:
            if self.depth >= MAX_DEPTH:
                raise _Refused(f"it is nested more than {MAX_DEPTH} levels deep")
            inner = _Machine(self.data, self.at, self.left, self.depth + 1)
            value = inner.run()
            self.at, self.left = inner.at, inner.left
            return value
        if state.get("numpy_array_alignment_bytes") is not None:
            self.take(self.number("<B"))
        return _numeric(self.take(math.prod(shape) * dtype.itemsize), dtype, shape, state.get("order") == "F")


def _key(value: Any) -> Any:
    """A key of a dictionary or member of a set: scalars and short tuples of them, which are hashed without depth, and
    no huge numbers, of which any amount can be made with one hash."""
    flat = value if isinstance(value, tuple) else (value,)
    plain = (part is None or isinstance(part, (str, bytes)) or _small(part) for part in flat)
    if len(flat) <= _MAX_DIMENSIONS and all(plain):
        return value
    raise _Refused(f"it has a dictionary or set with a {_short(value)} as key")


def _small(value: Any) -> bool:
    return isinstance(value, (int, float)) and not abs(value) >= 2**60


def _set_items(machine: _Machine, pairs: list[Any]) -> None:
    if len(pairs) % 2:
        raise _Refused("it has a dictionary key without a value")
    target = machine.top(dict)
    for index in range(0, len(pairs), 2):
        target[_key(pairs[index])] = pairs[index + 1]


def _dict(machine: _Machine) -> None:
    pairs = machine.pop_to_mark()
    machine.stack.append({})
    _set_items(machine, pairs)


def _set_item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    _set_items(machine, [key, value])


def _append(machine: _Machine) -> None:
    value = machine.pop()
    machine.top(list).append(value)


def _append_all(machine: _Machine) -> None:
    values = machine.pop_to_mark()
    machine.top(list).extend(values)


def _add_all(machine: _Machine) -> None:
    values = machine.pop_to_mark()
    machine.top(set).update(_key(value) for value in values)


def _tuple_of(count: int) -> Callable[[_Machine], None]:
    def action(machine: _Machine) -> None:
        found = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(found)))

    return action


def _push(make: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(make(machine))


def _text_number(machine: _Machine, kind: type) -> Any:
    text = machine.line(_MAX_TEXT_NUMBER)
    if kind is int and text in ("00", "01"):
        return text == "01"
    try:
        return kind(text.removesuffix("L") if kind is int else text)
    except ValueError as error:
        raise _Refused(f"it has {_short(text)} where a number should be") from error


def _long(machine: _Machine, count: int) -> int:
    if not 0 <= count <= _MAX_TEXT_NUMBER:
        raise _Refused(f"it has a whole number of {count} bytes")
    return int.from_bytes(machine.take(count), "little", signed=True)


def _quoted(machine: _Machine) -> str:
    """A text of Python 2, as its repr; escapes other than of bytes don't occur in what numpy writes."""
    text = machine.line(1 << 20)
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"":
        raise _Refused("it has text without quotes")
    try:
        return text[1:-1].encode("latin-1").decode("unicode_escape")
    except UnicodeError as error:
        raise _Refused("it has text that is not text") from error


def _raw_unicode(machine: _Machine) -> str:
    try:
        return machine.line(1 << 24).encode("latin-1").decode("raw_unicode_escape")
    except UnicodeError as error:
        raise _Refused("it has text that is not text") from error


def _protocol(machine: _Machine) -> None:
    found = machine.number("<B")
    if found > 5:
        raise _Refused(f"it is of protocol {found}; protocols up to 5 are read")


def _reduce(machine: _Machine) -> Any:
    arguments, name = machine.pop(), machine.pop()
    return machine.call(name, arguments)


def _stack_name(machine: _Machine) -> _Name:
    name, module = machine.pop(), machine.pop()
    return _name(module, name)


_INSTRUCTIONS: dict[int, Callable[[_Machine], None]] = {
    ord("("): _push(lambda m: _MARK),
    ord("0"): lambda m: m.stack.pop() if m.stack else m.pop(),
    ord("1"): lambda m: m.pop_to_mark() and None,
    ord("2"): _push(lambda m: m.top(object)),
    ord("N"): _push(lambda m: None),
    0x88: _push(lambda m: True),
    0x89: _push(lambda m: False),
    ord("I"): _push(lambda m: _text_number(m, int)),
    ord("L"): _push(lambda m: _text_number(m, int)),
    ord("F"): _push(lambda m: _text_number(m, float)),
    ord("J"): _push(lambda m: m.number("<i")),
    ord("K"): _push(lambda m: m.number("<B")),
    ord("M"): _push(lambda m: m.number("<H")),
    ord("G"): _push(lambda m: m.number(">d")),
    0x8A: _push(lambda m: _long(m, m.number("<B"))),
    0x8B: _push(lambda m: _long(m, m.number("<i"))),
    ord("S"): _push(_quoted),
    ord("V"): _push(_raw_unicode),
    ord("T"): _push(lambda m: str(m.take(m.number("<I")), "latin-1")),
    ord("U"): _push(lambda m: str(m.take(m.number("<B")), "latin-1")),
    ord("X"): _push(lambda m: m.text(m.number("<I"))),
    0x8C: _push(lambda m: m.text(m.number("<B"))),
    0x8D: _push(lambda m: m.text(m.number("<Q"))),
    ord("B"): _push(lambda m: bytes(m.take(m.number("<I")))),
    ord("C"): _push(lambda m: bytes(m.take(m.number("<B")))),
    0x8E: _push(lambda m: bytes(m.take(m.number("<Q")))),
    0x96: _push(lambda m: bytes(m.take(m.number("<Q")))),
    ord("]"): _push(lambda m: []),
    ord("l"): _push(lambda m: m.pop_to_mark()),
    ord("a"): _append,
    ord("e"): _append_all,
    ord(")"): _push(lambda m: ()),
    ord("t"): _push(lambda m: tuple(m.pop_to_mark())),
    0x85: _tuple_of(1),
    0x86: _tuple_of(2),
    0x87: _tuple_of(3),
    ord("}"): _push(lambda m: {}),
    ord("d"): _dict,
    ord("s"): _set_item,
    ord("u"): lambda m: _set_items(m, m.pop_to_mark()),
    0x8F: _push(lambda m: set()),
    0x90: _add_all,
    0x91: _push(lambda m: frozenset(_key(value) for value in m.pop_to_mark())),
    ord("p"): lambda m: m.remember(_text_number(m, int)),
    ord("q"): lambda m: m.remember(m.number("<B")),
    ord("r"): lambda m: m.remember(m.number("<I")),
    0x94: lambda m: m.remember(len(m.memo)),
    ord("g"): _push(lambda m: m.recall(_text_number(m, int))),
    ord("h"): _push(lambda m: m.recall(m.number("<B"))),
    ord("j"): _push(lambda m: m.recall(m.number("<I"))),
    ord("c"): _push(lambda m: _name(m.line(200), m.line(200))),
    0x93: _push(_stack_name),
    ord("R"): _push(_reduce),
    0x81: _push(_reduce),
    ord("b"): lambda m: m.build(),
    0x80: _protocol,
    0x95: lambda m: m.number("<Q") and None,  # frames are for reading ahead
}
"""What each instruction does; the codes are pickle's."""

_UNREAD = {
    ord("P"): "it refers to objects outside the file (a persistent id)",
    ord("Q"): "it refers to objects outside the file (a persistent id)",
    ord("i"): "it holds an instance of a class",
    ord("o"): "it holds an instance of a class",
    0x92: "it holds an instance of a class",
    0x82: "it uses an extension of pickle's registry",
    0x83: "it uses an extension of pickle's registry",
    0x84: "it uses an extension of pickle's registry",
    0x97: "its arrays are outside the file (out-of-band buffers)",
    0x98: "its arrays are outside the file (out-of-band buffers)",
}


class _Finisher:
    """Replaces stand-ins by what they stand for; what occurs twice stays one object."""

    def __init__(self, objects: int) -> None:
        self.done: dict[int, Any] = {}
        self.left = self.most = objects

    def finish(self, value: Any, depth: int = 0) -> Any:
        if value is None or isinstance(value, (bool, int, float, str, bytes, np.ndarray, set, frozenset)):
            return value
        if id(value) in self.done:
            return self.done[id(value)]
        if depth >= MAX_DEPTH:
            raise _Refused(f"it is nested more than {MAX_DEPTH} levels deep, or contains itself")
        result: Any
        if isinstance(value, list):
            result = self.all(value, depth)
        elif isinstance(value, tuple):
            result = tuple(self.all(value, depth))
        elif isinstance(value, dict):
            result = dict(zip(value, self.all(list(value.values()), depth)))
        elif isinstance(value, _Array):
            result = self.array(value, depth)
        else:
            raise _Refused(f"it holds a {_short(value)} where data should be")
        self.done[id(value)] = result
        return result

    def all(self, values: list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
        self.left -= len(values)
        if self.left < 0:
            raise _Refused(f"it holds more than {self.most} objects; save its contents as arrays")
        return [self.finish(value, depth + 1) for value in values]

    def array(self, value: _Array, depth: int) -> np.ndarray:
        if value.contents is None:
            raise _Refused("it has an array without contents")
        if isinstance(value.contents, np.ndarray):
            return value.contents
        shape, parts, fortran = value.contents
        result = np.empty(len(parts), dtype=object)
        for index, part in enumerate(self.all(parts, depth)):
            result[index] = part
        return result.reshape(shape, order="F" if fortran else "C")


def _object(data: bytes, start: int = 0, instructions: int | None = None) -> Any:
    instructions = MAX_INSTRUCTIONS if instructions is None else instructions
    return _Finisher(instructions).finish(_Machine(data, start, instructions).run())


# ---- files ----


def loads_safely(data: bytes | memoryview, what: str = "pickle", *, most_instructions: int | None = None) -> Any:
    """The object that a pickle or joblib stream describes, built without running anything.

    Args:
        data: the bytes, uncompressed.
        what: what they should be, for messages.
        most_instructions: bound on the pickle's instructions and objects; None: :data:`MAX_INSTRUCTIONS`.

    Returns:
        Numbers, strings, bytes, lists, tuples, dictionaries, sets and numpy arrays; numpy's scalars become Python's,
        default and ordered dictionaries plain ones. Numeric arrays may be read-only views of the bytes.

    Raises:
        InputError: the stream is damaged, asks for anything else, or is out of bounds (see the module).
    """
    try:
        return _object(bytes(data), instructions=most_instructions)
    except _Refused as refusal:
        raise InputError(f"{what}: not read: {refusal}.") from None


def load_pickle(path: str | Path, what: str = "pickle", *, most_instructions: int | None = None) -> Any:
    """The object in a pickle or joblib file, plain or compressed by zlib or gzip, without running it.

    Returns what :func:`loads_safely` does. Raises InputError for a missing or damaged file and for what isn't read.
    """
    data = _read(Path(path), what)
    if data[:2] == b"\x1f\x8b" or (data[:1] == b"\x78" and len(data) > 1 and int.from_bytes(data[:2], "big") % 31 == 0):
        data = _unpacked(data, path)
    for head, kind in ((b"BZ", "bz2"), (b"\xfd7zXZ", "xz"), (b"]\x00\x00", "lzma"), (b"\x04\x22M\x18", "lz4")):
        if data[: len(head)] == head:
            raise InputError(
                f"{path}: compressed by {kind}, which is not read. Write it again uncompressed or with zlib: "
                "joblib.dump(joblib.load(FILE), NEW_FILE, compress=('zlib', 3)), where you trust the file."
            )
    if data[:4] == b"PK\x03\x04":
        raise InputError(f"{path}: a zip archive (npz or a torch file), not the {what} expected here.")
    if not data:
        raise InputError(f"{path}: the file is empty; expected a {what}.")
    return loads_safely(data, str(path), most_instructions=most_instructions)


def load_object_npy(path: str | Path, what: str = "npy file") -> Any:
    """The contents of an npy file of dtype object, as ``np.save`` writes a dictionary or a list, without running it.

    Returns the object itself for an array of shape () or (1,), otherwise the array of objects. A numeric npy gives its
    array. Raises InputError as :func:`load_pickle` does.
    """
    data = _read(Path(path), what)
    stream = io.BytesIO(data[: 1 << 16])
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read_header(stream)
    except HEADER_ERRORS as error:
        raise InputError(f"{path}: not an npy file, or a damaged one ({error}); expected a {what}.") from error
    try:
        if not dtype.hasobject:
            return _numeric(memoryview(data)[stream.tell() :], dtype, shape, fortran)
        if dtype != np.dtype(object):
            raise _Refused("it has a structured array; save its columns as arrays of their own")
        value = _object(data, stream.tell())
    except _Refused as refusal:
        raise InputError(f"{path}: not read: {refusal}.") from None
    single = isinstance(value, np.ndarray) and value.dtype == object and value.size == 1 and value.ndim <= 1
    return value.reshape(())[()] if single else value


def _read(path: Path, what: str) -> bytes:
    if path.is_dir():
        raise InputError(f"{path}: expected a {what}, got a folder")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{path}: {size / 1e9:.1f} GB; a {what} of at most {MAX_BYTES / 1e9:.1f} GB is read")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected a {what}") from error
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror or error})") from error


def _unpacked(data: bytes, path: str | Path) -> bytes:
    """Zlib or gzip undone, stopped where it grows beyond bounds."""
    machine = zlib.decompressobj(wbits=47)
    parts, total, rest = [], 0, data
    try:
        while rest and not machine.eof:
            part = machine.decompress(rest, 1 << 24)
            rest = machine.unconsumed_tail
            total += len(part)
            if total > min(MAX_BYTES, 100 * len(data) + (1 << 28)):
                raise InputError(f"{path}: unpacks to more than {total / 1e9:.2f} GB; damaged, or made to fill memory")
            parts.append(part)
            if not part and not rest:
                break
    except zlib.error as error:
        raise InputError(f"{path}: its compression is damaged ({error}); get or write it again") from error
    if not machine.eof:
        raise InputError(f"{path}: its compression ends too early; get or write it again")
    return b"".join(parts)
