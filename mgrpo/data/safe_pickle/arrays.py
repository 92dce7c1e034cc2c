"""numpy's types and arrays in the making, and the check that an array's bytes are there."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from .refusal import MAX_BYTES, MAX_DIMENSIONS, Refused, short


class Dtype:
    """A numpy dtype in the making: the byte order comes later, by a state."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any) -> None:
        if isinstance(code, bytes):
            code = code.decode("latin-1")
        if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?([biufc]\d{1,2}|[SUa]\d{0,9}|O8?|\?)", code):
            raise Refused(f"it has an array of dtype {short(code)}; numbers, text and plain objects are read")
        try:
            self.dtype = np.dtype(code)
        except TypeError as error:
            raise Refused(f"it has an array of unknown dtype {short(code)}") from error

    def build(self, state: Any) -> None:
        # (version, byte order, subarray, names, fields, item size, alignment, flags[, metadata])
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise Refused("it has a structured array; save its columns as arrays of their own")
        order = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "=", "|"):
            raise Refused(f"it has a dtype of unknown byte order {short(order)}")
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


class Array:
    """A numpy array in the making: shape, dtype and contents come later, by a state."""

    __slots__ = ("contents",)

    def __init__(self) -> None:
        self.contents: Any = None
        """The finished array, or for dtype object ``(shape, list)``."""

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], Dtype):
            raise Refused("it has an array whose state is not numpy's")
        _, shape, dtype, fortran, data = state
        if dtype.dtype.hasobject:
            count = math.prod(checked_shape(shape))
            if not isinstance(data, list) or len(data) != count:
                raise Refused(f"it has an array of objects of shape {shape} without its {count} entries")
            self.contents = (checked_shape(shape), data, bool(fortran))
        else:
            self.contents = numeric_array(data, dtype.dtype, shape, bool(fortran))


class JoblibArray:
    """joblib's note that the bytes of an array follow in the file."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def build(self, state: Any) -> None:
        if not isinstance(state, dict) or not isinstance(state.get("dtype"), Dtype):
            raise Refused("it has a joblib array without shape or dtype")
        self.state = state


def checked_shape(shape: Any) -> tuple[int, ...]:
    """The shape, a tuple of counts; refused if it is anything else. Nothing is allocated by it."""
    if not isinstance(shape, tuple) or len(shape) > MAX_DIMENSIONS:
        raise Refused(f"it has an array of shape {short(shape)}")
    if any(not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= 2**62 for size in shape):
        raise Refused("it has an array whose shape is not made of counts")
    return shape


def numeric_array(data: Any, dtype: np.dtype, shape: Any, fortran: bool) -> np.ndarray:
    """An array over the bytes that are there; its shape must fit them exactly, so nothing absurd is allocated."""
    shape = checked_shape(shape)
    if isinstance(data, str):  # Python 2 wrote bytes as text
        try:
            data = data.encode("latin-1")
        except UnicodeEncodeError as error:
            raise Refused("it has an array whose bytes are text") from error
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise Refused(f"it has an array whose contents are a {short(data)}, not bytes")
    wanted, there = math.prod(shape) * dtype.itemsize, len(data)
    if wanted != there:
        raise Refused(f"it has an array of shape {shape} and dtype {dtype}, {wanted} bytes, with {there} bytes")
    if wanted == 0:
        # The other sizes may be absurd where one is zero.
        if math.prod(max(size, 1) for size in shape) > MAX_BYTES or dtype.itemsize == 0:
            raise Refused(f"it has an empty array of shape {shape} and dtype {dtype}")
        return np.empty(shape, dtype)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
