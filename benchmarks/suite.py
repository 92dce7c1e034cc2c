"""Measures workloads: prepares inputs, compares with float64, times everything together, makes rows."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from . import peers
from .harness import Call, CpuClock, CudaClock, Plan, Timing, measure, said
from .machine import matmul_rate, provenance
from .results import Row
from .workload import Implementation, Results, Workload

COMPARED_ITEMS = 8192
"""Items of a workload that are compared with float64, which is slow."""
COPY = "copy of as many bytes"
MOST_SETS = 16
LONG_SECONDS = 0.02
"""From this duration on the host's part of a call is nothing: it is not captured as a graph."""


@dataclass(frozen=True)
class Options:
    """How to measure."""

    device: str = "cpu"
    threads: int = 2
    plan: Plan = field(default_factory=Plan)
    only: frozenset[str] | None = None
    """Names of implementations to measure; None: all."""
    kinds: frozenset[str] = frozenset({"ours", "reference", "compile", "peer"})
    input_sets: int = 3
    """Inputs that calls rotate through on the CPU; on a GPU as many as overflow the L2 cache, if that is more."""


class Suite:
    """Measures on one device, and remembers the device's rates."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.cuda = options.device != "cpu"
        self.provenance = provenance(options.device, options.threads)
        self.operations_per_second = matmul_rate(options.device)
        self.clock: Any = CudaClock(options.device) if self.cuda else CpuClock()

    def run(self, workload: Workload, plan: Plan | None = None) -> list[Row]:
        """Measure one workload: a row for each implementation and mode, the absent and failed ones included."""
        import torch

        plan = plan or self.options.plan
        plan = replace(plan, seconds=min(plan.seconds, workload.seconds))
        if self.cuda:
            # A sample is a median of calls there, on a device that nobody shares.
            plan = replace(plan, most_repeats=100, least_clean=1)
        torch.compiler.reset()  # every size is compiled for itself, as a user's one size would be
        implementations = [one for one in workload.implementations() if one.kind in self.options.kinds]
        if self.options.only is not None:
            implementations = [one for one in implementations if one.name in self.options.only]
        rows, usable = [], []
        for one in implementations:
            status, note = self._obstacle(one)
            if status:
                rows.append(self._row(workload, one, "call", status, note))
            else:
                usable.append(one)

        inputs = [workload.make_inputs(seed) for seed in range(self._sets(workload))]
        exact = self._exact(workload, inputs[0])
        calls: dict[str, list[Call]] = {}
        errors: dict[str, tuple[float | None, float | None]] = {}
        extra: dict[str, dict[str, float]] = {}
        failures: dict[str, str] = {}
        for one in usable:
            try:
                calls[one.name] = [one.prepare(given) for given in inputs]
                if exact is not None:
                    errors[one.name] = compare(one.results(calls[one.name][0]()), exact)
                if self.cuda:
                    extra[one.name] = self._on_gpu(calls[one.name])
            except Exception as error:
                calls.pop(one.name, None)
                failures[one.name] = said(error)
        calls[COPY] = self._copies(workload, len(inputs))
        timings, failed = measure(calls, self.clock, plan)
        failures |= failed
        copy = timings.pop(COPY, None)
        replayed: dict[str, Timing] = {}
        uncaptured: dict[str, str] = {}
        graph_copy = None
        if self.cuda:
            replayed, graph_copy, uncaptured = self._graphs(usable, calls, timings, plan)

        for one in usable:
            common = errors.get(one.name, (None, None)), extra.get(one.name, {})
            if one.name in failures:
                rows.append(self._row(workload, one, "call", "failed", failures[one.name]))
                continue
            rows.append(self._timed_row(workload, one, "call", timings[one.name], copy, *common))
            if one.name in replayed:
                rows.append(self._timed_row(workload, one, "graph", replayed[one.name], graph_copy, *common))
            elif one.name in uncaptured:
                rows.append(self._row(workload, one, "graph", "failed", uncaptured[one.name]))
        order = [one.name for one in implementations]
        return sorted(rows, key=lambda row: (row.mode, order.index(row.implementation)))

    def _obstacle(self, one: Implementation) -> tuple[str, str]:
        if one.left_out is not None:
            return "left out", one.left_out
        if one.package is not None:
            problem = peers.problem(one.package)
            if problem is not None:
                return "absent", problem
            if self.cuda and not peers.PEERS[one.package].gpu:
                return "left out", "computes on the CPU only"
        return "", ""

    def _sets(self, workload: Workload) -> int:
        if not self.cuda:
            return self.options.input_sets
        import torch

        cache = torch.cuda.get_device_properties(self.options.device).L2_cache_size
        return max(2, min(MOST_SETS, -(-2 * cache // max(1, workload.bytes_moved))))

    def _exact(self, workload: Workload, inputs: Mapping[str, Any]) -> Results | None:
        if workload.exact is None:
            return None
        if workload.rows is not None:
            inputs = workload.rows(inputs, min(workload.items, COMPARED_ITEMS))
        return workload.exact({name: as_float64(value) for name, value in inputs.items()})

    def _copies(self, workload: Workload, sets: int) -> list[Call]:
        """Calls that read half of the workload's bytes and write the other half."""
        import torch

        size = max(1, workload.bytes_moved // 2)
        sources = [torch.ones(size, dtype=torch.int8, device=self.options.device) for _ in range(sets)]
        targets = [torch.empty_like(source) for source in sources]
        return [lambda target=target, source=source: target.copy_(source) for source, target in zip(sources, targets)]

    def _on_gpu(self, calls: Sequence[Call]) -> dict[str, float]:
        """Host time and memory of a call."""
        import torch

        calls[0]()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        calls[0]()
        torch.cuda.synchronize()
        peak = (torch.cuda.max_memory_allocated() - before) / 1e6
        host = []
        end = time.perf_counter() + 0.2
        while not host or (len(host) < 9 and time.perf_counter() < end):
            begin = time.perf_counter()
            calls[len(host) % len(calls)]()
            host.append(time.perf_counter() - begin)
            torch.cuda.synchronize()
        return {"host_us": statistics.median(host) * 1e6, "peak_mb": peak}

    def _graphs(
        self,
        implementations: Sequence[Implementation],
        calls: Mapping[str, Sequence[Call]],
        timings: Mapping[str, Timing],
        plan: Plan,
    ) -> tuple[dict[str, Timing], Timing | None, dict[str, str]]:
        """Times of CUDA graphs that hold one call on each set of inputs; per call. Ours first, as a capture that fails
        may disturb later ones; none of what takes long anyway, or is not torch."""
        order = [one.name for kind in ("ours", "reference", "compile") for one in implementations if one.kind == kind]
        order = [name for name in order if name in timings and timings[name].median < LONG_SECONDS]
        captured: dict[str, list[Call]] = {}
        problems: dict[str, str] = {}
        for name in [COPY, *order]:
            try:
                captured[name] = [capture(calls[name])]
            except Exception as error:
                problems[name] = said(error)
        # The inputs of one replay overflow the cache, so it need not be overwritten in between.
        clock = CudaClock(self.options.device, flush=False)
        replayed, failed = measure(captured, clock, replace(plan, rounds=5))
        share = {name: scaled(timing, 1 / len(calls[name])) for name, timing in replayed.items()}
        return share, share.pop(COPY, None), problems | failed

    def _row(self, workload: Workload, one: Implementation, mode: str, status: str, note: str, **numbers: Any) -> Row:
        return Row(
            op=workload.op,
            workload=workload.name,
            title=workload.title,
            size=workload.size,
            items=workload.items,
            item=workload.item,
            gradient="yes" if workload.gradient else "no",
            implementation=one.name,
            kind=one.kind,
            version=peers.version(one.package) if one.package else "",
            mode=mode,
            status=status,
            note=note,
            **numbers,
            **self.provenance,
        )

    def _timed_row(
        self,
        workload: Workload,
        one: Implementation,
        mode: str,
        timing: Timing,
        copy: Timing | None,
        errors: tuple[float | None, float | None],
        extra: Mapping[str, float],
    ) -> Row:
        by_bytes = copy.median if copy is not None and workload.bytes_moved else 0.0
        by_operations = workload.operations / self.operations_per_second if self.operations_per_second else 0.0
        bound = max(by_bytes, by_operations)
        return self._row(
            workload,
            one,
            mode,
            "busy" if timing.busy else "ok",
            "other processes took the processor while it ran, or its time was over" if timing.busy else "",
            samples=timing.samples,
            p20_us=timing.p20 * 1e6,
            median_us=timing.median * 1e6,
            p80_us=timing.p80 * 1e6,
            ns_per_item=timing.median * 1e9 / workload.items,
            gb_per_s=workload.bytes_moved / timing.median / 1e9 if workload.bytes_moved else None,
            copy_gb_per_s=workload.bytes_moved / by_bytes / 1e9 if by_bytes else None,
            bound="" if not bound else "bytes" if by_bytes >= by_operations else "operations",
            bound_share=bound / timing.median if bound else None,
            max_abs_error=errors[0],
            relative_error=errors[1],
            **extra,
        )


def capture(calls: Sequence[Call]) -> Call:
    """A CUDA graph of the calls, one after the other; calling it replays them. Raises where they cannot be captured."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]

    def replay(kept: Any = kept) -> None:  # holds on to the outputs' memory
        graph.replay()

    return replay


def scaled(timing: Timing, factor: float) -> Timing:
    """The timing with all durations multiplied."""
    return replace(timing, median=timing.median * factor, p20=timing.p20 * factor, p80=timing.p80 * factor)


def as_float64(value: Any) -> Any:
    """Floating-point tensors in float64; anything else as it is."""
    return value.double() if getattr(value, "is_floating_point", lambda: False)() else value


def compare(results: Any, exact: Results | None) -> tuple[float | None, float | None]:
    """Largest difference and largest ||difference|| / ||exact|| over the tensors that both have; (None, None) where
    there is nothing to compare. What is not finite where the exact result is counts as infinitely wrong."""
    import torch

    shared = [] if exact is None else [name for name in results if name in exact]
    if not shared or exact is None:
        return None, None
    largest, relative = 0.0, 0.0
    for name in shared:
        wanted = exact[name].detach().double()
        if not wanted.numel():
            continue
        got = torch.as_tensor(results[name]).detach()[: wanted.shape[0]] if wanted.ndim else results[name].detach()
        difference = got.to(wanted.device).double() - wanted
        if not bool(torch.isfinite(difference[torch.isfinite(wanted)]).all()):
            return float("inf"), float("inf")
        difference, wanted = difference[torch.isfinite(wanted)], wanted[torch.isfinite(wanted)]
        largest = max(largest, float(difference.abs().max()))
        relative = max(relative, float(difference.norm() / wanted.norm().clamp_min(1e-300)))
    return largest, relative


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Run torch and the peers with ``count`` threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    peers.set_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


Progress = Callable[[str], None]


def run_all(
    suite: Suite, workloads: Sequence[Workload], say: Progress, budget: float | None = None
) -> Iterator[tuple[Workload, list[Row]]]:
    """Measure workloads in the given order, one after the other; those that no time is left for are said and skipped.

    ``budget`` in seconds bounds the whole: each workload gets an equal share of what is left.
    """
    begin = time.monotonic()
    for number, workload in enumerate(workloads):
        left = None if budget is None else budget - (time.monotonic() - begin)
        if left is not None and left <= 0:
            say(f"{workload.name}: no time left")
            continue
        plan = suite.options.plan
        if left is not None:
            plan = replace(plan, seconds=min(plan.seconds, left / (len(workloads) - number)))
        say(f"{workload.name}: {workload.title}, {workload.size}")
        yield workload, suite.run(workload, plan)
