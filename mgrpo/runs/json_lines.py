"""Files of one JSON object a line that a run appends to, and goes back in when it is resumed."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mgrpo.errors import InputError
from mgrpo.storage import atomic_write, storage_error, write_fully

CONTINUE = "Free some space there, then continue from the last checkpoint with --resume."
"""What to do when the disk refuses a line."""


class JsonLines:
    """Appends rows to a file. A row is written by one system call and is in the file when `write` returns."""

    def __init__(self, path: Path) -> None:
        """Open for appending. Raises `StorageError`."""
        self.path = path
        """The file."""
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise storage_error("open", path, error) from error

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row, which holds no NaN. Raises `StorageError`; a row is whole or absent."""
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        before = os.fstat(self._descriptor).st_size
        try:
            write_fully(self._descriptor, line)
        except OSError as error:
            os.ftruncate(self._descriptor, before)
            raise storage_error("write", self.path, error, CONTINUE) from error

    def sync(self) -> int:
        """Push all rows to the disk; returns the length of the file in bytes. Raises `StorageError`."""
        try:
            os.fsync(self._descriptor)
            return os.fstat(self._descriptor).st_size
        except OSError as error:
            raise storage_error("write", self.path, error, CONTINUE) from error

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read_rows(
    file: Path, what: str, advice: str, *, numbers: bool = False, texts: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The rows of a file. A last line cut by a kill is left out.

    Raises `InputError`, which begins with `what`, when the file is missing (`advice` then says what to give instead) or
    a line before the last is no row: a JSON object with a step and `texts`, and with `numbers` nothing but numbers and
    null.
    """
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{what} not found: {file}: {error.strerror}. {advice}") from None
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # after the last newline: nothing, or a cut line
        row: Any = None
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
        if not _is_row(row, numbers, texts):
            raise InputError(f"{what} damaged: {file}, line {number} is no row of it. Delete that line.")
        rows.append(row)
    return rows


def _is_row(row: Any, numbers: bool, texts: Sequence[str]) -> bool:
    if not isinstance(row, dict) or not _is_number(row.get("step")):
        return False
    if not all(isinstance(row.get(name), str) for name in texts):
        return False
    return not numbers or all(value is None or _is_number(value) for value in row.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def cut_rows(path: Path, *, step: int, length: int | None = None) -> None:
    """Shorten a file of rows to what it held when the checkpoint of `step` was saved.

    `length` is the size in bytes noted then. Without it, or if the file was edited since, rows up to `step` are kept.
    Raises `StorageError`.
    """
    if not path.exists():
        return
    try:
        data = path.read_bytes()
    except OSError as error:
        raise storage_error("read", path, error) from error
    kept = data[:length]
    if length is None or len(data) < length or (kept and not kept.endswith(b"\n")):
        kept = b"".join(line + b"\n" for line in data.split(b"\n")[:-1] if _step_of(line) <= step)
    if kept != data:
        atomic_write(path, kept)


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
