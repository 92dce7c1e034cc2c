"""The state of a pickle that is being read: where in the bytes it is, its stack and its memo."""

from __future__ import annotations

import struct
from typing import Any

from .refusal import MAX_INSTRUCTIONS, Refused, short

MARK = object()
"""What a MARK instruction leaves on the stack."""


class Machine:
    """What the instructions work on. It can read bytes and hold values, nothing else."""

    def __init__(self, data: bytes, start: int = 0, instructions: int = MAX_INSTRUCTIONS, depth: int = 0) -> None:
        self.data, self.view, self.at, self.left, self.depth = data, memoryview(data), start, instructions, depth
        self.most = instructions
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    # -- bytes --

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            raise Refused(f"it ends too early: {count} bytes wanted at {self.at}, {len(self.data) - self.at} there")
        self.at += count
        return self.view[self.at - count : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self, longest: int) -> str:
        end = self.data.find(b"\n", self.at, self.at + longest + 1)
        if end < 0:
            raise Refused(f"it has a line at {self.at} that is too long or has no end")
        return str(self.take(end + 1 - self.at)[:-1], "latin-1")

    def text(self, count: int) -> str:
        try:
            return str(self.take(count), "utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise Refused(f"it has text at {self.at} that is not UTF-8") from error

    # -- stack --

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is MARK:
            raise Refused("it takes from an empty stack")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is MARK:
                found = self.stack[index + 1 :]
                del self.stack[index:]
                return found
        raise Refused("it has no mark to go back to")

    def top(self, *kinds: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kinds):
            raise Refused(f"it adds to a {short(self.stack[-1]) if self.stack else 'nothing'}")
        return self.stack[-1]

    def remember(self, index: int) -> None:
        if not self.stack or self.stack[-1] is MARK:
            raise Refused("it remembers nothing")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> Any:
        if index not in self.memo:
            raise Refused(f"it recalls entry {index}, which it never stored")
        return self.memo[index]
