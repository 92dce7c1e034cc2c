"""Errors that speak to a user: what was expected, what came, how to mend it. The command line prints them without a
traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


class MgrpoError(Exception):
    """Base of every error that is the user's to mend. The command line prints its text and exits with code 2."""


class InputError(MgrpoError, ValueError):
    """A file, option or array that can't be used: the text says what was expected, what came and how to mend it."""


@contextlib.contextmanager
def in_file(path: str | Path) -> Iterator[None]:
    """Put the file before the text of an InputError that the block raises, unless it begins with it: what checks values
    doesn't know where they were read from."""
    try:
        yield
    except InputError as error:
        message = str(error)
        if message.startswith(str(path)):
            raise
        raise InputError(f"{path}: {message}") from error
