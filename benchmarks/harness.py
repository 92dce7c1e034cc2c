"""Timing: all implementations of one operation in one process, in interleaved rounds, on rotated inputs.

On a CPU a sample counts only when other processes left the machine alone while it ran. On a GPU a sample is taken with
events, after the L2 cache was overwritten. Nothing here knows what is measured.
"""

from __future__ import annotations

import gc
import math
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Call = Callable[[], Any]

SAMPLE_SECONDS = 0.06
"""Least duration of a sample: its calls are repeated until they take this long."""
CLEAN_SHARE = 0.2
"""A sample is clean when other processes used less than this share of one core while it ran."""
LEAST_CLEAN = 3
"""Clean samples that a median needs; with fewer the measurement is marked busy."""


@dataclass(frozen=True)
class Sample:
    """One timed inner loop."""

    seconds: float
    """Time of one call."""
    others: float
    """Cores that other processes kept busy meanwhile; 0 where that cannot be told."""

    @property
    def clean(self) -> bool:
        """Whether the sample counts."""
        return self.others < CLEAN_SHARE


@dataclass(frozen=True)
class Timing:
    """What the samples of one implementation say: seconds per call."""

    median: float
    p20: float
    p80: float
    samples: int
    """Samples behind the percentiles: the clean ones, or all where there were too few of them."""
    busy: bool
    """Too few clean samples: the machine was not idle, and the numbers are no measurement."""


class Clock(Protocol):
    """Takes samples on one kind of device."""

    def sample(self, calls: Sequence[Call], repeats: int, start: int) -> Sample:
        """Time ``repeats`` calls, one after the other from ``calls[start]`` on, round and round."""
        ...

    def seconds(self, call: Call) -> float:
        """Time of a single call, to choose ``repeats`` by."""
        ...


class CpuClock:
    """Wall time, and how much of the machine's processor time was not ours."""

    def __init__(self) -> None:
        settle_allocator()

    def sample(self, calls: Sequence[Call], repeats: int, start: int) -> Sample:
        """See :class:`Clock`. One call goes before, untimed: what ran last left other things in the caches, and other
        pages in the allocator."""
        calls[(start - 1) % len(calls)]()
        busy, own, begin = machine_busy_seconds(), own_cpu_seconds(), time.perf_counter()
        for number in range(start, start + repeats):
            calls[number % len(calls)]()
        wall = time.perf_counter() - begin
        used = own_cpu_seconds() - own
        now = machine_busy_seconds()
        others = 0.0 if now is None or busy is None else max(0.0, (now - busy - used) / wall)
        return Sample(wall / repeats, others)

    def seconds(self, call: Call) -> float:
        """See :class:`Clock`."""
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin


def settle_allocator() -> None:
    """Bring the C library's allocator to where it is in a process that has run for a while.

    It learns from the largest block that was freed, up to 32 MB, from which size on memory goes back to the system at
    once. Before that, large results cost a page fault per 4 kB in each call, or none, as luck will have it.
    """
    bytearray((32 << 20) - (64 << 10))


class CudaClock:
    """Events around each call, with the L2 cache overwritten before it unless ``flush`` is False."""

    def __init__(self, device: Any, *, flush: bool = True) -> None:
        import torch

        self._torch = torch
        size = 2 * torch.cuda.get_device_properties(device).L2_cache_size if flush else 0
        self._cache = torch.empty(max(size, 1), dtype=torch.int8, device=device)
        self._flush = flush

    def sample(self, calls: Sequence[Call], repeats: int, start: int) -> Sample:
        """See :class:`Clock`. The sample is the median of its calls: a single late launch does not count."""
        torch = self._torch
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for number, (begin, end) in enumerate(marks, start):
            if self._flush:
                # Also keeps the GPU busy while the host enqueues the call, so that a short kernel is not timed
                # together with the wait for its launch.
                self._cache.zero_()
            begin.record()
            calls[number % len(calls)]()
            end.record()
        torch.cuda.synchronize()
        return Sample(statistics.median(begin.elapsed_time(end) for begin, end in marks) / 1e3, 0.0)

    def seconds(self, call: Call) -> float:
        """See :class:`Clock`."""
        self._torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        self._torch.cuda.synchronize()
        return time.perf_counter() - begin


@dataclass(frozen=True)
class Plan:
    """How long to go on."""

    rounds: int = 7
    """Clean samples wanted of each implementation."""
    sample_seconds: float = SAMPLE_SECONDS
    slow_seconds: float = 0.5
    """From this duration of one call on, ``least_clean`` samples do."""
    seconds: float = math.inf
    """Stop looking for clean samples after this time; each implementation is sampled once in any case."""
    most_samples: int = 60
    """Give up on an implementation after so many samples."""
    most_repeats: int = 100_000
    least_clean: int = LEAST_CLEAN
    """Clean samples without which a measurement is marked busy."""
    clock_now: Callable[[], float] = field(default=time.monotonic, repr=False)


def measure(
    implementations: Mapping[str, Sequence[Call]], clock: Clock, plan: Plan
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time implementations against each other: one sample of each per round, in an order that turns.

    Each implementation is a list of calls on different inputs. Returns the timings, and for each implementation that
    raised (in a warm-up or later) what it said.
    """
    end = plan.clock_now() + plan.seconds
    failures: dict[str, str] = {}
    repeats: dict[str, int] = {}
    slow: set[str] = set()
    for name, calls in implementations.items():
        try:
            # Warm-up: compilation, caches, handles. The first call may be slow for these alone.
            once = clock.seconds(calls[0])
            if once < plan.slow_seconds:
                for call in calls[1:]:
                    clock.seconds(call)
            once = min(clock.seconds(call) for call in (calls if once < plan.slow_seconds else calls[:1]))
        except Exception as error:
            failures[name] = said(error)
            continue
        repeats[name] = min(plan.most_repeats, max(1, math.ceil(plan.sample_seconds / max(once, 1e-9))))
        if once >= plan.slow_seconds:
            slow.add(name)

    samples: dict[str, list[Sample]] = {name: [] for name in repeats}

    def wanting(name: str) -> bool:
        taken = samples[name]
        clean = sum(sample.clean for sample in taken)
        wanted = min(plan.rounds, plan.least_clean) if name in slow else plan.rounds
        return clean < wanted and len(taken) < plan.most_samples

    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        turn = 0
        while True:
            waiting = [name for name in samples if name not in failures and wanting(name)]
            if not waiting or (turn and plan.clock_now() > end):
                break
            for name in waiting[turn % len(waiting) :] + waiting[: turn % len(waiting)]:
                calls = implementations[name]
                try:
                    samples[name].append(clock.sample(calls, repeats[name], len(samples[name])))
                except Exception as error:
                    failures[name] = said(error)
            turn += 1
    finally:
        if collecting:
            gc.enable()
    timings = {
        name: summarise(taken, plan.least_clean) for name, taken in samples.items() if taken and name not in failures
    }
    return timings, failures


def summarise(samples: Sequence[Sample], least_clean: int = LEAST_CLEAN) -> Timing:
    """Percentiles of the clean samples; of all of them, and marked busy, where fewer than ``least_clean`` are clean."""
    clean = [sample.seconds for sample in samples if sample.clean]
    busy = len(clean) < least_clean
    counted = sorted(sample.seconds for sample in samples) if busy else sorted(clean)
    return Timing(
        median=statistics.median(counted),
        p20=percentile(counted, 0.2),
        p80=percentile(counted, 0.8),
        samples=len(counted),
        busy=busy,
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the ascending values lie, linearly between neighbours."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def said(error: BaseException) -> str:
    """An exception in one line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:200].rstrip(": ")


def own_cpu_seconds() -> float:
    """Processor time of this process, all threads and ended children."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total


def machine_busy_seconds(path: Path = Path("/proc/stat")) -> float | None:
    """Processor time that all processes of the machine took so far, and that its host took away from it; None where
    the system does not say."""
    try:
        fields = path.read_text("ascii").splitlines()[0].split()
    except (OSError, IndexError):
        return None
    user, nice, system, _, _, interrupts, soft_interrupts, stolen = (int(value) for value in fields[1:9])
    ticks = user + nice + system + interrupts + soft_interrupts + stolen
    return ticks / os.sysconf("SC_CLK_TCK")
