"""From what the instructions left to data: stand-ins are replaced by what they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import Array
from .refusal import MAX_DEPTH, Refused, short


class Finisher:
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
            raise Refused(f"it is nested more than {MAX_DEPTH} levels deep, or contains itself")
        result: Any
        if isinstance(value, list):
            result = self.all(value, depth)
        elif isinstance(value, tuple):
            result = tuple(self.all(value, depth))
        elif isinstance(value, dict):
            result = dict(zip(value, self.all(list(value.values()), depth)))
        elif isinstance(value, Array):
            result = self.array(value, depth)
        else:
            raise Refused(f"it holds a {short(value)} where data should be")
        self.done[id(value)] = result
        return result

    def all(self, values: list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
        self.left -= len(values)
        if self.left < 0:
            raise Refused(f"it holds more than {self.most} objects; save its contents as arrays")
        return [self.finish(value, depth + 1) for value in values]

    def array(self, value: Array, depth: int) -> np.ndarray:
        if value.contents is None:
            raise Refused("it has an array without contents")
        if isinstance(value.contents, np.ndarray):
            return value.contents
        shape, parts, fortran = value.contents
        result = np.empty(len(parts), dtype=object)
        for index, part in enumerate(self.all(parts, depth)):
            result[index] = part
        return result.reshape(shape, order="F" if fortran else "C")
