"""Times operators against everything else that computes the same, and writes csv files with their provenance."""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .results import Row
    from .workload import Workload


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    options.add_argument(
        "--op", action="append", metavar="NAME", help="operation or workload, with * and ?; repeatable"
    )
    options.add_argument(
        "--backend", action="append", choices=("cpp", "triton", "cuda"), help="time only these of ours; repeatable"
    )
    options.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    options.add_argument("--threads", type=int, default=2, help="of torch, of ours and of the peers (2)")
    options.add_argument("--quick", action="store_true", help="one short sample each: whether it works, not how fast")
    options.add_argument(
        "--budget", type=float, metavar="SECONDS", help="bound on the whole; later workloads may miss out"
    )
    options.add_argument(
        "--gate", action="store_true", help="run the operations' tests first, time nothing if they fail"
    )
    options.add_argument(
        "--only", action="append", choices=("ours", "reference", "compile", "peer"), help="kinds to time; repeatable"
    )
    options.add_argument(
        "--into", type=Path, metavar="FOLDER", help="of the csv files (benchmarks/results; --quick: none)"
    )
    options.add_argument("--list", action="store_true", help="print the workloads and end")
    return options


def use_threads(count: int) -> None:
    """Tell every library how many threads to take; before any of them is imported."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = str(count)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = parser().parse_args(arguments)
    use_threads(options.threads)

    from . import peers
    from .gate import run_tests, test_files
    from .harness import Plan
    from .results import RESULTS, write_by_op
    from .suite import Options, Suite, run_all, threads
    from .workload import all_workloads

    workloads = select(all_workloads(options.device, options.backend), options.op)
    if not workloads:
        print(f"no workload is named {' or '.join(options.op or [])}; --list prints them", file=sys.stderr)
        return 2
    if options.list:
        for workload in workloads:
            print(f"{workload.name:<34} {workload.title}, {workload.size}")
        return 0
    if options.gate:
        files = test_files(workloads)
        say(f"tests first: {' '.join(files)}")
        problem = run_tests(files)
        if problem is not None:
            print(f"nothing is timed: {problem}", file=sys.stderr)
            return 1
    missing = [f"{name} ({why})" for name in peers.PEERS if (why := peers.problem(name))]
    if missing:
        say(f"peers that are absent: {'; '.join(missing)}")
    plan = Plan(rounds=1, sample_seconds=0.0, most_samples=1) if options.quick else Plan()
    kinds = frozenset(options.only) if options.only else frozenset({"ours", "reference", "compile", "peer"})
    into = options.into or (None if options.quick else RESULTS)
    failed = 0
    with threads(options.threads):
        suite = Suite(
            Options(
                device=options.device,
                threads=options.threads,
                plan=plan,
                kinds=kinds,
                input_sets=1 if options.quick else 3,
            )
        )
        for workload, rows in run_all(suite, workloads, say, options.budget):
            print(table(workload, rows), flush=True)
            failed += sum(row.status == "failed" and row.kind == "ours" for row in rows)
            if into is not None:
                write_by_op(into, rows, partial=bool(options.only or options.backend))
    return 1 if failed else 0


def say(text: str) -> None:
    """A line of progress on standard error."""
    print(text, file=sys.stderr, flush=True)


def select(workloads: Sequence[Workload], patterns: Sequence[str] | None) -> list[Workload]:
    """Workloads whose operation or name matches one of the patterns; all without patterns."""
    if not patterns:
        return list(workloads)
    return [
        workload
        for workload in workloads
        if any(fnmatch.fnmatch(name, pattern) for name in (workload.op, workload.name) for pattern in patterns)
    ]


def table(workload: Workload, rows: Sequence[Row]) -> str:
    """The rows as text, the fastest of each mode first."""
    base = {row.mode: row.median_us for row in rows if row.implementation == "eager torch" and row.median_us}
    lines = [
        f"{workload.title}, {workload.size}",
        f"  {'implementation':<36}{'mode':<7}{'per ' + workload.item:>13}{'20 % to 80 %':>24}{'speed-up':>10}"
        f"{'GB/s':>9}{'of bound':>18}{'rel. error':>12}",
    ]
    order = sorted(rows, key=lambda row: (row.mode, row.median_us is None, row.median_us or 0.0))
    for row in order:
        name = f"  {row.implementation:<36}{row.mode:<7}"
        if row.median_us is None:
            lines.append(f"{name}  {row.status}: {row.note}")
            continue
        scale = (row.ns_per_item or 0.0) / row.median_us
        spread = f"{duration((row.p20_us or 0.0) * scale)} to {duration((row.p80_us or 0.0) * scale)}"
        speed = f"{base[row.mode] / row.median_us:,.1f}x" if base.get(row.mode) else ""
        share = f"{row.bound_share:.0%} {row.bound}" if row.bound_share else ""
        error = "" if row.relative_error is None else f"{row.relative_error:.1e}"
        rate = f"{row.gb_per_s:,.1f}" if row.gb_per_s else ""
        note = "  BUSY: no measurement" if row.status == "busy" else ""
        time = duration(row.ns_per_item or 0.0)
        lines.append(f"{name}{time:>13}{spread:>24}{speed:>10}{rate:>9}{share:>18}{error:>12}{note}")
    return "\n".join(lines) + "\n"


def duration(nanoseconds: float) -> str:
    """Nanoseconds with a fitting unit, three digits: ``63.1 ns``, ``1.54 µs``."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= 0.9995 * size:
            return f"{nanoseconds / size:.3g} {unit}"
    return f"{nanoseconds:.3g} ns"


if __name__ == "__main__":
    raise SystemExit(main())
