"""Stopping a training run politely: the first Ctrl-C saves and stops, the second one ends at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Protocol

from .progress import notice_from_signal

SAME_REQUEST_S = 0.5
"""Signals that come within this time after the first one are the same request: a launcher, a batch system and the
terminal may each pass it on."""


class Resumable(Protocol):
    """Work that can be continued later, such as a :class:`~mgrpo.runs.run_dir.RunDir`."""

    def resume_command(self) -> str:
        """The command that continues it, for messages."""
        ...


class TrainingInterrupted(KeyboardInterrupt):
    """A run stopped because a signal asked for it, after saving. Its text says how to continue."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number
        """The signal's number; the command line exits with 128 + this."""


class GracefulStop:
    """What `graceful_interrupt` hands to a loop."""

    def __init__(self, run: Resumable | None) -> None:
        self._run = run
        self.number: int | None = None
        """Number of the signal that came; None while none has."""

    @property
    def requested(self) -> bool:
        """True once a signal has come: finish this iteration, save, leave the loop.

        Read it once per iteration; it can turn true at any moment.
        """
        return self.number is not None


class graceful_interrupt:
    """Context manager around a training loop; yields a `GracefulStop`.

    The first SIGINT or SIGTERM only sets `stop.requested` and says what will happen. The second, unless it comes within
    `SAME_REQUEST_S`, ends at once: SIGINT as `KeyboardInterrupt`, SIGTERM as the system does it. When a signal had
    come, here or to another process whose loop has told this one's, leaving the block raises
    `TrainingInterrupted`, so that whatever would follow the loop doesn't start. Outside the main thread, where Python
    allows no signal handlers, it changes nothing.
    """

    def __init__(self, run: Resumable | None = None) -> None:
        """`run`: names the command that continues the run in the messages."""
        self._run = run
        self._stop = GracefulStop(run)
        self._since: float | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self._stop

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        if kind is None and self._stop.number is not None:
            raise TrainingInterrupted(f"stopped by {self._name()}{self._how_to_continue()}", self._stop.number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._since is None:
            self._since = time.monotonic()
            if self._stop.number is None:  # else another process of the training was told first
                self._stop.number = number
                again = "Ctrl-C again" if number == signal.SIGINT else "a second signal"
                notice_from_signal(
                    f"{self._name()}: stopping after this iteration and saving ({again} ends at once)"
                    f"{self._how_to_continue()}"
                )
            return
        if time.monotonic() - self._since < SAME_REQUEST_S:
            return
        self._restore()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _restore(self) -> None:
        previous, self._previous = self._previous, {}
        for number, handler in previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # type: ignore[arg-type]

    def _name(self) -> str:
        return signal.Signals(self._stop.number).name if self._stop.number is not None else "no signal"

    def _how_to_continue(self) -> str:
        return "" if self._run is None else f"; continue with: {self._run.resume_command()}"
