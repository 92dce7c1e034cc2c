"""What an iteration of post-training costs: time by phase, network calls, arithmetic, memory; for profile.json."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from mgrpo.storage import atomic_write_json

from .memory import peak_memory
from .progress import notice

FILE = "profile.json"
COUNTED = 1
"""Which iteration of a start has its arithmetic counted, instead of being timed; the first one warms up."""


class Profile:
    """Collects the iterations of one start of a training."""

    def __init__(self, device: torch.device, samples: int, dtype: torch.dtype) -> None:
        """``samples`` are those of an iteration, over all processes; ``dtype`` is what the network computes in."""
        self._device, self._samples, self._dtype = device, samples, dtype
        self._rows: list[Mapping[str, float]] = []
        self._calls: Mapping[str, float] = {}
        self._flops: int | None = None
        self._seen = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Around what an iteration computes, up to its gradients."""
        if self._seen != COUNTED:
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self._flops = counter.get_total_flops()

    def take(self, metrics: Mapping[str, float]) -> None:
        """Take in a finished iteration's metrics."""
        if self._seen > COUNTED:
            kept = (name for name in metrics if name.startswith("time/") or name == "step_time")
            self._rows.append({name: metrics[name] for name in kept})
        self._calls = {name: metrics[name] for name in ("encode", "decode", "decode_with_graph")}
        self._seen += 1

    def result(self) -> dict[str, Any]:
        """Medians over the timed iterations; None where nothing was measured."""
        times = {name: median(row[name] for row in self._rows) for name in self._rows[0]} if self._rows else {}
        step = times.get("step_time")
        rate = self._flops / step if self._flops is not None and step else None
        most = matrix_product_rate(self._device, self._dtype)
        return {
            "iterations_timed": len(self._rows),
            "seconds": times,
            "samples_per_second": self._samples / step if step else None,
            "network_calls": dict(self._calls),
            "flops": self._flops,
            "flops_per_second": rate,
            "matrix_product_flops_per_second": most,
            "flop_utilisation": rate / most if rate is not None else None,
            "peak_memory_bytes": peak_memory(self._device),
            "device": torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
        }

    def write(self, folder: Path) -> None:
        """Write profile.json into a run folder and print a table of it; without a timed iteration only say so."""
        result = self.result()
        atomic_write_json(folder / FILE, result)
        if self._rows:
            Console(stderr=True).print(table(result))
        else:
            notice(f"{folder / FILE}: no iteration was timed, a start needs more than {COUNTED + 1}")


def table(result: Mapping[str, Any]) -> Table:
    """For the terminal."""
    shown = Table(title=f"An iteration, median of {result['iterations_timed']}", title_justify="left")
    shown.add_column("phase")
    shown.add_column("ms", justify="right")
    shown.add_column("share", justify="right")
    whole = result["seconds"]["step_time"]
    for name, seconds in result["seconds"].items():
        if name != "step_time":
            shown.add_row(name.removeprefix("time/"), f"{1e3 * seconds:.1f}", f"{seconds / whole:.0%}")
    rest = whole - sum(value for name, value in result["seconds"].items() if name != "step_time")
    shown.add_row("rest", f"{1e3 * rest:.1f}", f"{rest / whole:.0%}")
    calls = result["network_calls"]
    shown.caption = (
        f"{result['samples_per_second']:.3g} samples/s; sequences encoded {calls['encode']:.0f}, decoded "
        f"{calls['decode']:.0f}, of these {calls['decode_with_graph']:.0f} with a gradient"
    )
    if result["flop_utilisation"] is not None:
        shown.caption += (
            f"; {result['flops'] / 1e9:.3g} GFLOP, {result['flop_utilisation']:.1%} of a large matrix product's rate"
        )
    shown.caption += f"; peak memory {result['peak_memory_bytes'] / 2**20:.0f} MiB"
    return shown


def matrix_product_rate(device: torch.device, dtype: torch.dtype, size: int = 1024, repeats: int = 3) -> float:
    """Floating-point operations per second of a product of square matrices: what utilisation is a share of."""
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(repeats + 1):  # the first one warms up
        begin = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best
