"""A word on the terminal while torch loads."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading_shown(after: float = 1.5) -> Iterator[None]:
    """Tell on a terminal that the program is loading, where the block takes longer than ``after`` seconds; the line is
    wiped at its end. Nothing with ``MGRPO_PROGRESS=off`` or where standard error is no terminal."""
    if not sys.stderr.isatty() or os.environ.get("MGRPO_PROGRESS", "").strip().lower() == "off":
        yield
        return
    shown = threading.Event()

    def show() -> None:
        shown.set()
        sys.stderr.write("loading ...")
        sys.stderr.flush()

    timer = threading.Timer(after, show)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if shown.is_set():
            sys.stderr.write("\r           \r")
            sys.stderr.flush()
