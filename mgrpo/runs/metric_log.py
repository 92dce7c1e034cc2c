"""Metrics of a run: one JSON object a line in metrics.jsonl, and TensorBoard where it is installed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgrpo.storage import StorageError, storage_error
from mgrpo.terminal.progress import notice

from .event_file import EventFile
from .json_lines import CONTINUE, JsonLines, read_rows


class MetricLog:
    """Appends rows to `<folder>/metrics.jsonl` and mirrors them to `<folder>/tensorboard`.

    A row is `{"step": int, "time": Unix seconds, name: number or null, ...}`; NaN and infinity become null, so that
    every reader can parse the file. A row is written by one system call and is in the file when `write` returns.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = True, start_step: int = 0) -> None:
        """Open for appending. `start_step`: TensorBoard hides what it recorded after this step (a resumed run)."""
        self._tensorboard_folder = folder / "tensorboard" if tensorboard else None
        self._start_step = start_step
        self._events: EventFile | None = None
        self._lines = JsonLines(folder / "metrics.jsonl")

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one row. Values: numbers or one-element tensors. Raises `StorageError`; a row is whole or absent."""
        row: dict[str, float | int | None] = {"step": step, "time": round(time.time(), 3)}
        numbers = {name: _number(name, value) for name, value in metrics.items()}
        row |= {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._lines.write(row)
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
            raise storage_error("write the TensorBoard log in", self._tensorboard_folder, error, CONTINUE) from error

    def sync(self) -> int:
        """Push all rows to the disk; returns the length of the file in bytes, to be noted in a checkpoint."""
        return self._lines.sync()

    def close(self) -> None:
        """Flush and close. Safe to call twice."""
        self._lines.close()
        if self._events is not None:
            self._events.close()


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

    Raises `InputError` when the file is missing or a line before the last is not a row of numbers.
    """
    file = path / "metrics.jsonl" if path.is_dir() else path
    return read_rows(file, "metrics", "Give a run folder that training has written.", numbers=True)


__all__ = ["MetricLog", "StorageError", "read_metrics"]
