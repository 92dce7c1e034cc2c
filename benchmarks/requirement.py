"""A figure that is wanted, and how the rows of a measurement answer it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from .results import Row
from .run import duration
from .workload import PLAIN

State = Literal["met", "missed", "unmeasured"]


@dataclass(frozen=True)
class Verdict:
    """What was found."""

    state: State
    measured: str
    """For a person: the figure and what it is made of, or why there is none."""


@dataclass(frozen=True)
class Requirement:
    """One line of ``python -m benchmarks.check``."""

    name: str
    workload: str
    """Name of the workload that must be measured for it."""
    wanted: str
    """For a person: ``15x eager torch``."""
    judge: Callable[[Sequence[Row]], Verdict]
    """From the workload's rows."""
    same_inputs: bool = False
    """Whether every call gets the same inputs, which a large cache may hold, instead of several in turn."""


def speed_up(name: str, workload: str, ratio: float, *, same_inputs: bool = False) -> Requirement:
    """Our fastest backend takes at most 1 / ``ratio`` of the time of straightforward eager torch: of the form that is
    usually written where the workload has it, else of the fastest reference."""

    def judge(rows: Sequence[Row]) -> Verdict:
        our, reason = fastest(rows, "ours")
        best, best_reason = fastest(rows, "reference")
        plain, plain_reason = fastest([row for row in rows if row.implementation == PLAIN], "reference")
        if any(row.implementation == PLAIN for row in rows):
            base, base_reason = plain, plain_reason
        else:
            base, base_reason = best, best_reason
        if our is None or base is None or best is None:
            return Verdict("unmeasured", reason or base_reason or best_reason)
        measured, least = (row.median_us / our.median_us for row in (base, best))  # type: ignore[operator]
        text = f"{duration(our.ns_per_item or 0.0)} against {duration(base.ns_per_item or 0.0)} per {our.item}"
        if best is not base:
            text += f"; {least:.1f}x our reference"
        text += _of_its_bound(our)
        return Verdict("met" if measured >= ratio else "missed", f"{measured:.1f}x ({our.implementation}: {text})")

    return Requirement(name, workload, f"{ratio:g}x eager torch", judge, same_inputs)


def no_peer_faster(name: str, workload: str) -> Requirement:
    """None of the packages that are installed, nor torch.compile, is faster than our fastest backend. Where there are
    packages for the operation, at least one must be installed."""

    def judge(rows: Sequence[Row]) -> Verdict:
        our, reason = fastest(rows, "ours")
        if our is None:
            return Verdict("unmeasured", reason)
        others = [row for row in rows if row.kind in ("peer", "compile") and row.mode == "call"]
        busy = [row.implementation for row in others if row.status == "busy"]
        if busy:
            return Verdict("unmeasured", f"the machine was busy: {', '.join(busy)}")
        measured = sorted((row for row in others if row.measured), key=lambda row: row.median_us or 0.0)
        packages = [row for row in others if row.kind == "peer"]
        if not measured or (packages and not any(row.measured for row in packages)):
            return Verdict("unmeasured", "no package could be measured: pip install .[bench]")
        best = measured[0]
        ratio = best.median_us / our.median_us  # type: ignore[operator]
        absent = sum(row.status == "absent" for row in others)
        note = f", {absent} absent" if absent else ""
        text = f"{ratio:.1f}x the best of {len(measured)}, {best.implementation}{note}"
        return Verdict("met" if ratio >= 1 else "missed", text)

    return Requirement(name, workload, "no peer faster", judge)


def _of_its_bound(row: Row) -> str:
    """How near a row is to what the machine could do while it was measured. A machine that shares its memory with
    others moves half as many bytes at one time as at another, and eager torch suffers less from that: a figure that is
    missed at the rate of a copy was missed by the machine."""
    if row.bound_share is None:
        return ""
    rate = "a copy of as many bytes" if row.bound == "bytes" else "a matrix product"
    return f"; {row.bound_share:.0%} of the rate of {rate}"


def fastest(rows: Sequence[Row], kind: str) -> tuple[Row | None, str]:
    """The fastest row of a kind as a user calls it, or None and the reason."""
    candidates = [row for row in rows if row.kind == kind and row.mode == "call"]
    measured = [row for row in candidates if row.measured]
    if measured:
        return min(measured, key=lambda row: row.median_us or 0.0), ""
    if not candidates:
        return None, f"nothing of kind {kind!r} can run here"
    return None, "; ".join(f"{row.implementation}: {row.status}, {row.note}" for row in candidates)
