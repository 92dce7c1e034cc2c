"""TensorBoard event files, written without a thread of their own.

`torch.utils.tensorboard` writes from a background thread, where a full disk becomes a traceback instead of an error,
and takes longer to import than to train the first steps. The format is small: framed records, each one an `Event`.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

from mgrpo.storage import write_fully

_MODULES = (
    "tensorboard.compat.proto.event_pb2",
    "tensorboard.compat.proto.summary_pb2",
    "tensorboard.summary.writer.record_writer",
)


class EventFile:
    """One event file for one start of a run. Raises `ImportError` when TensorBoard is not installed."""

    def __init__(self, folder: Path, *, forget_from: int | None = None) -> None:
        """Create a file in `folder`. `forget_from`: what earlier files hold from this step on is hidden by readers.

        Raises `OSError` when the disk refuses.
        """
        event, summary, records = (importlib.import_module(name) for name in _MODULES)
        self._event, self._summary, self._record_writer = event.Event, summary.Summary, records.RecordWriter
        folder.mkdir(parents=True, exist_ok=True)
        # readers take the files of a folder in the order of their names
        path = folder / f"events.out.tfevents.{time.time_ns():020d}.{os.getpid()}"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._append(self._event(wall_time=time.time(), file_version="brain.Event:2"))
        if forget_from is not None:
            start = event.SessionLog(status=event.SessionLog.START)
            self._append(self._event(wall_time=time.time(), step=forget_from, session_log=start))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Append the numbers of one step. Raises `OSError`; a record is whole or absent."""
        values = [self._summary.Value(tag=name, simple_value=float(value)) for name, value in numbers.items()]
        self._append(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))

    def _append(self, event: object) -> None:
        frame = _Collector()
        self._record_writer(frame).write(event.SerializeToString())  # type: ignore[attr-defined]
        before = os.fstat(self._descriptor).st_size
        try:
            write_fully(self._descriptor, frame.data)
        except OSError:
            os.ftruncate(self._descriptor, before)
            raise

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _Collector:
    """The file-like object that TensorBoard's framing writes to."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data
