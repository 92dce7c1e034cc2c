"""What is refused, and the bounds on what is read."""

from __future__ import annotations

from typing import Any

MAX_BYTES = 4 << 30
"""Size of a file, and of what it unpacks to, that is still read."""

MAX_INSTRUCTIONS = 2_000_000
"""Instructions of one pickle; a file of arrays has some hundred for each array."""

MAX_DEPTH = 64
"""Levels of lists in dictionaries in lists."""

MAX_DIMENSIONS = 32
"""Axes of an array, and parts of a tuple that is a key."""


class Refused(Exception):
    """The pickle is damaged or asks for something that is not read; the text says what."""


class Name:
    """A module and a name in it, as the file spells them. Stands for the thing and can't be used as it."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def short(value: Any) -> str:
    """A value as a message shows it."""
    text = value.text if isinstance(value, Name) else repr(value) if isinstance(value, (str, bytes, int)) else ""
    text = text or type(value).__name__.strip("_").lower()
    return text if len(text) <= 60 else text[:57] + "..."


def checked_key(value: Any) -> Any:
    """A key of a dictionary or member of a set: scalars and short tuples of them, which are hashed without depth, and
    no huge numbers, of which any amount can be made with one hash."""
    flat = value if isinstance(value, tuple) else (value,)
    plain = (part is None or isinstance(part, (str, bytes)) or _small(part) for part in flat)
    if len(flat) <= MAX_DIMENSIONS and all(plain):
        return value
    raise Refused(f"it has a dictionary or set with a {short(value)} as key")


def _small(value: Any) -> bool:
    return isinstance(value, (int, float)) and not abs(value) >= 2**60
