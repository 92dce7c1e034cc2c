"""Where the time of an iteration goes."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Phases:
    """Seconds spent in named phases of an iteration, by a clock that never jumps.

    On a GPU the end of a phase is waited for only if ``wait``; else its times would be those of launching, so none are
    kept.
    """

    def __init__(self, device: torch.device, *, wait: bool) -> None:
        self._device = device
        self._wait = device if wait and device.type == "cuda" else None
        self.measured = device.type != "cuda" or wait
        self._seconds: dict[str, float] = {}
        self._begin = time.perf_counter()

    def start(self) -> None:
        """Begin an iteration."""
        self._seconds = {}
        self._begin = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the block's time to a phase."""
        begin = time.perf_counter()
        yield
        if self._wait is not None:
            torch.cuda.synchronize(self._wait)
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - begin

    def metrics(self, *, samples: int, network_calls: int) -> dict[str, float]:
        """``step_time`` since :meth:`start`, and ``time/<phase>`` where they are measured, seconds; how many samples
        and network calls that is in a second; and the most memory that the process has used on the device, MiB."""
        whole = max(time.perf_counter() - self._begin, 1e-9)
        found = {
            "step_time": whole,
            "system/samples_per_s": samples / whole,
            "system/network_calls_per_s": network_calls / whole,
            "system/peak_memory_mib": _peak_memory(self._device) / 2**20,
        }
        return found | ({f"time/{name}": value for name, value in self._seconds.items()} if self.measured else {})


def _peak_memory(device: torch.device) -> float:
    """Most bytes in use so far: of the GPU's memory by tensors, or of the process. Not waited for."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
