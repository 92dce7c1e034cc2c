"""What each instruction of a pickle does to the machine, and running them one after the other. Nothing here imports or
calls what a file names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .arrays import Array, Dtype, JoblibArray, checked_shape, numeric_array
from .machine import MARK, Machine
from .names import CALLS, named
from .refusal import MAX_DEPTH, Name, Refused, checked_key, short

_MAX_TEXT_NUMBER = 400
"""Digits or bytes of a whole number."""


def run(machine: Machine) -> Any:
    """The object that the pickle describes; stand-ins in it are for `finishing` to replace."""
    while True:
        machine.left -= 1
        if machine.left < 0:
            raise Refused(f"it has more than {machine.most} instructions; save its contents as arrays")
        if machine.at >= len(machine.data):
            raise Refused("it ends too early: it has no last instruction")
        code = machine.data[machine.at]
        machine.at += 1
        if code == 0x2E:  # STOP
            value = machine.pop()
            if machine.stack:
                raise Refused("it ends with a full stack")
            return value
        action = _INSTRUCTIONS.get(code)
        if action is None:
            raise Refused(_UNREAD.get(code, f"it has an unknown instruction, byte {code:#04x} at {machine.at - 1}"))
        action(machine)


def _build(machine: Machine) -> None:
    state, target = machine.pop(), machine.top(Dtype, Array, JoblibArray)
    target.build(state)
    if isinstance(target, JoblibArray):
        machine.stack[-1] = _joblib_array(machine, target.state)


def _joblib_array(machine: Machine, state: dict[str, Any]) -> Any:
    """The array whose bytes follow here in the file, after joblib's padding."""
    dtype, shape = state["dtype"].dtype, checked_shape(state.get("shape"))
    subclass = state.get("subclass")
    if isinstance(subclass, Name) and subclass.text != "numpy.ndarray":
        raise Refused(f"it has an array of the class {subclass.text}")
    if dtype.hasobject:
        if machine.depth >= MAX_DEPTH:
            raise Refused(f"it is nested more than {MAX_DEPTH} levels deep")
        inner = Machine(machine.data, machine.at, machine.left, machine.depth + 1)
        value = run(inner)
        machine.at, machine.left = inner.at, inner.left
        return value
    if state.get("numpy_array_alignment_bytes") is not None:
        machine.take(machine.number("<B"))
    return numeric_array(machine.take(math.prod(shape) * dtype.itemsize), dtype, shape, state.get("order") == "F")


def _set_items(machine: Machine, pairs: list[Any]) -> None:
    if len(pairs) % 2:
        raise Refused("it has a dictionary key without a value")
    target = machine.top(dict)
    for index in range(0, len(pairs), 2):
        target[checked_key(pairs[index])] = pairs[index + 1]


def _dict(machine: Machine) -> None:
    pairs = machine.pop_to_mark()
    machine.stack.append({})
    _set_items(machine, pairs)


def _set_item(machine: Machine) -> None:
    value, key = machine.pop(), machine.pop()
    _set_items(machine, [key, value])


def _append(machine: Machine) -> None:
    value = machine.pop()
    machine.top(list).append(value)


def _append_all(machine: Machine) -> None:
    values = machine.pop_to_mark()
    machine.top(list).extend(values)


def _add_all(machine: Machine) -> None:
    values = machine.pop_to_mark()
    machine.top(set).update(checked_key(value) for value in values)


def _tuple_of(count: int) -> Callable[[Machine], None]:
    def action(machine: Machine) -> None:
        found = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(found)))

    return action


def _push(make: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    return lambda machine: machine.stack.append(make(machine))


def _text_number(machine: Machine, kind: type) -> Any:
    text = machine.line(_MAX_TEXT_NUMBER)
    if kind is int and text in ("00", "01"):
        return text == "01"
    try:
        return kind(text.removesuffix("L") if kind is int else text)
    except ValueError as error:
        raise Refused(f"it has {short(text)} where a number should be") from error


def _long(machine: Machine, count: int) -> int:
    if not 0 <= count <= _MAX_TEXT_NUMBER:
        raise Refused(f"it has a whole number of {count} bytes")
    return int.from_bytes(machine.take(count), "little", signed=True)


def _quoted(machine: Machine) -> str:
    """A text of Python 2, as its repr; escapes other than of bytes don't occur in what numpy writes."""
    text = machine.line(1 << 20)
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"":
        raise Refused("it has text without quotes")
    try:
        return text[1:-1].encode("latin-1").decode("unicode_escape")
    except UnicodeError as error:
        raise Refused("it has text that is not text") from error


def _raw_unicode(machine: Machine) -> str:
    try:
        return machine.line(1 << 24).encode("latin-1").decode("raw_unicode_escape")
    except UnicodeError as error:
        raise Refused("it has text that is not text") from error


def _protocol(machine: Machine) -> None:
    found = machine.number("<B")
    if found > 5:
        raise Refused(f"it is of protocol {found}; protocols up to 5 are read")


def _reduce(machine: Machine) -> Any:
    arguments, name = machine.pop(), machine.pop()
    if not isinstance(name, Name) or not isinstance(arguments, tuple) or name.text not in CALLS:
        raise Refused(f"it calls a {short(name)}")
    return CALLS[name.text](arguments)


def _stack_name(machine: Machine) -> Name:
    name, module = machine.pop(), machine.pop()
    return named(module, name)


_INSTRUCTIONS: dict[int, Callable[[Machine], None]] = {
    ord("("): _push(lambda m: MARK),
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
    0x91: _push(lambda m: frozenset(checked_key(value) for value in m.pop_to_mark())),
    ord("p"): lambda m: m.remember(_text_number(m, int)),
    ord("q"): lambda m: m.remember(m.number("<B")),
    ord("r"): lambda m: m.remember(m.number("<I")),
    0x94: lambda m: m.remember(len(m.memo)),
    ord("g"): _push(lambda m: m.recall(_text_number(m, int))),
    ord("h"): _push(lambda m: m.recall(m.number("<B"))),
    ord("j"): _push(lambda m: m.recall(m.number("<I"))),
    ord("c"): _push(lambda m: named(m.line(200), m.line(200))),
    0x93: _push(_stack_name),
    ord("R"): _push(_reduce),
    0x81: _push(_reduce),
    ord("b"): _build,
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
