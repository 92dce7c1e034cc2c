"""What an iteration of a training costs: time by phase, network calls, arithmetic, memory; for profile.json."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from mgrpo.execution.memory import peak_memory
from mgrpo.runs.budget import CALLS
from mgrpo.runs.run_dir import RunDir
from mgrpo.storage import atomic_write_json
from mgrpo.terminal.interrupt import TrainingInterrupted
from mgrpo.terminal.progress import notice

FILE = "profile.json"


class Profile:
    """Collects the iterations of one start of a training, and writes them into its run folder when it ends or is
    stopped. A context manager; one that nobody asked for does nothing.

    Iterations of unequal cost are taken ``period`` at a time. The first period warms up, the second one has its
    arithmetic counted, those after it are timed.
    """

    def __init__(
        self, run: RunDir | None, device: torch.device, dtype: torch.dtype, *, samples: int, period: int = 1
    ) -> None:
        """
        Args:
            run: where to write; None to do nothing.
            device: what is trained on.
            dtype: what the network computes in.
            samples: sequences of an iteration that are drawn, or learned from, over all processes.
            period: iterations after which their cost repeats itself.
        """
        self._run, self._device, self._dtype, self._samples, self._period = run, device, dtype, samples, period
        self._rows: list[Mapping[str, float]] = []
        self._calls: Mapping[str, float] = {}
        self._flops: int | None = None
        self._seen = 0

    @property
    def _counting(self) -> bool:
        return self._run is not None and self._period <= self._seen < 2 * self._period

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Around what an iteration computes, up to its gradients."""
        if not self._counting:
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self._flops = (self._flops or 0) + counter.get_total_flops()

    def take(self, metrics: Mapping[str, float]) -> None:
        """Take in what a finished iteration measured: ``step_time``, ``time/…`` and, where they are counted, network
        calls."""
        if self._run is None:
            return
        if self._seen >= 2 * self._period:
            self._rows.append({name: metrics[name] for name in metrics if _is_time(name)})
        self._calls = {name: metrics[name] for name in CALLS if name in metrics}
        self._seen += 1

    def _times(self) -> dict[str, float]:
        """Seconds of an iteration: the median over whole periods of their means."""
        size = self._period
        periods = [self._rows[i : i + size] for i in range(0, len(self._rows) - size + 1, size)]
        names = dict.fromkeys(name for rows in periods for row in rows for name in row)
        return {name: median(sum(row.get(name, 0.0) for row in rows) / size for rows in periods) for name in names}

    def result(self) -> dict[str, Any]:
        """Medians over the timed iterations; None where nothing was measured."""
        times = self._times()
        step = times.get("step_time")
        flops = self._flops / self._period if self._flops is not None and self._seen >= 2 * self._period else None
        rate = flops / step if flops is not None and step else None
        most = matrix_product_rate(self._device, self._dtype)
        return {
            "iterations_timed": len(self._rows) // self._period * self._period,
            "seconds": times,
            "samples_per_second": self._samples / step if step else None,
            "network_calls": dict(self._calls),
            "flops": flops,
            "flops_per_second": rate,
            "matrix_product_flops_per_second": most,
            "flop_utilisation": rate / most if rate is not None else None,
            "peak_memory_bytes": peak_memory(self._device),
            "device": torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
        }

    def __enter__(self) -> Profile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._run is None or not (error is None or isinstance(error, TrainingInterrupted)):
            return
        result, file = self.result(), self._run.path / FILE
        atomic_write_json(file, result)
        if result["seconds"]:
            Console(stderr=True).print(table(result))
        else:
            notice(f"{file}: no iteration was timed, a start needs at least {3 * self._period}")


def _is_time(name: str) -> bool:
    return name == "step_time" or name.startswith("time/")


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
    shown.caption = f"{result['samples_per_second']:.3g} samples/s"
    if calls := result["network_calls"]:
        shown.caption += (
            f"; sequences encoded {calls['encode']:.0f}, decoded {calls['decode']:.0f}, of these "
            f"{calls['decode_with_graph']:.0f} with a gradient"
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
