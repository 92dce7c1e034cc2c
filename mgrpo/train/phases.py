"""Where the time of an iteration goes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

ItemT = TypeVar("ItemT")


class Phases:
    """Seconds spent in named phases of an iteration, by a clock that never jumps.

    On a GPU the end of a phase is waited for only if ``wait``; else its times would be those of launching, so none are
    kept.
    """

    def __init__(self, device: torch.device, *, wait: bool) -> None:
        self._wait = device if wait and device.type == "cuda" else None
        self.measured = device.type != "cuda" or wait
        self._seconds: dict[str, float] = {}
        self._begin = time.perf_counter()

    def each(self, drawn: Iterable[ItemT]) -> Iterator[ItemT]:
        """What iterations are made of. Each begins here, with the phase ``data``: waiting for the next one."""
        items = iter(drawn)
        while True:
            self._seconds = {}
            self._begin = time.perf_counter()
            try:
                with self.phase("data"):
                    item = next(items)
            except StopIteration:
                return
            yield item

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the block's time to a phase."""
        begin = time.perf_counter()
        yield
        if self._wait is not None:
            torch.cuda.synchronize(self._wait)
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - begin

    def metrics(self) -> dict[str, float]:
        """``step_time`` since the iteration began, and ``time/<phase>`` where they are measured; seconds."""
        whole = {"step_time": time.perf_counter() - self._begin}
        return whole | ({f"time/{name}": value for name, value in self._seconds.items()} if self.measured else {})
