"""Metrics of a run: one JSON object a line in metrics.jsonl, and TensorBoard where it is installed."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgrpo.errors import InputError
from mgrpo.storage import StorageError, atomic_write, storage_error, write_fully

from .event_file import EventFile
from .progress import notice


class MetricLog:
    """Appends rows to `<folder>/metrics.jsonl` and mirrors them to `<folder>/tensorboard`.

    A row is `{"step": int, "time": Unix seconds, name: number or null, ...}`; NaN and infinity become null, so that
    every reader can parse the file. A row is written by one system call and is in the file when `write` returns.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = True, start_step: int = 0) -> None:
        """Open for appending. `start_step`: TensorBoard hides what it recorded after this step (a resumed run)."""
        self.path = folder / "metrics.jsonl"
        self._tensorboard_folder = folder / "tensorboard" if tensorboard else None
        self._start_step = start_step
        self._events: EventFile | None = None
        try:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise storage_error("open", self.path, error) from error

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one row. Values: numbers or one-element tensors. Raises `StorageError`; a row is whole or absent."""
        row: dict[str, float | int | None] = {"step": step, "time": round(time.time(), 3)}
        numbers = {name: _number(name, value) for name, value in metrics.items()}
        row |= {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        before = os.fstat(self._descriptor).st_size
        try:
            write_fully(self._descriptor, line)
        except OSError as error:
            os.ftruncate(self._descriptor, before)
            raise storage_error("write", self.path, error, _CONTINUE) from error
        self._to_tensorboard(step, numbers)

    def _to_tensorboard(self, step: int, numbers: Mapping[str, float | int]) -> None:
        if self._tensorboard_folder is None:
            return
        try:
            if self._events is None:
                resumed = self._start_step + 1 if self._start_step else None
                try:
                    self._events = EventFile(self._tensorboard_folder, forget_from=resumed)
                except ImportError:
                    self._tensorboard_folder = None
                    notice(
                        "tensorboard is not installed: metrics go to metrics.jsonl only "
                        "(pip install tensorboard adds it)"
                    )
                    return
            self._events.write(step, numbers)
        except OSError as error:
            raise storage_error("write the TensorBoard log in", self._tensorboard_folder, error, _CONTINUE) from error

    def sync(self) -> int:
        """Push all rows to the disk; returns the length of the file in bytes, to be noted in a checkpoint."""
        try:
            os.fsync(self._descriptor)
            return os.fstat(self._descriptor).st_size
        except OSError as error:
            raise storage_error("write", self.path, error, _CONTINUE) from error

    def close(self) -> None:
        """Flush and close. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._events is not None:
            self._events.close()


_CONTINUE = "Free some space there, then continue from the last checkpoint with --resume."


def _number(name: str, value: Any) -> float | int:
    """A Python number from a number, a NumPy scalar or a one-element tensor."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, (int, float)):
        return value
    if hasattr(value, "item"):
        item = value.item()
        if isinstance(item, (bool, int, float)):
            return int(item) if isinstance(item, bool) else item
    raise TypeError(
        f"MetricLog.write(): metric {name!r} must be a number or a one-element tensor, got {type(value).__name__}"
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl (or the run folder that holds it). A last line cut by a kill is left out.

    Raises `InputError` when the file is missing or a line before the last is not JSON.
    """
    file = path / "metrics.jsonl" if path.is_dir() else path
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(
            f"metrics not found: {file}: {error.strerror}. Give a run folder that training has written."
        ) from None
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # after the last newline: nothing, or a cut line
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise InputError(f"metrics damaged: {file}, line {number} is not JSON. Delete that line.") from None
    return rows


def cut_metrics(path: Path, *, length: int, step: int) -> None:
    """Shorten metrics.jsonl to what it held when the checkpoint of `step` was saved.

    `length` is the size in bytes noted then. If the file was edited since, rows up to `step` are kept instead.
    Raises `StorageError`.
    """
    if not path.exists():
        return
    try:
        data = path.read_bytes()
    except OSError as error:
        raise storage_error("read", path, error) from error
    kept = data[:length]
    if len(data) < length or (kept and not kept.endswith(b"\n")):
        kept = b"".join(line + b"\n" for line in data.split(b"\n")[:-1] if _step_of(line) <= step)
    if kept != data:
        atomic_write(path, kept)


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


__all__ = ["MetricLog", "StorageError", "cut_metrics", "read_metrics"]
