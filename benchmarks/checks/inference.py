"""Speed of sampling one sequence on the CPU, in the fastest precision that it computes in and in float32.

In float32 both have the same matrix products to do, most of the plain loop's time: where MKL runs them at full speed
1.6 times as fast is all that there is to win, on AMD's processors, where it does not, more (docs/infer.md has the
profile). Twice wants products in half precision: float16 with AVX512-FP16, bfloat16 with AMX or AVX512-BF16; a CPU that
has none of these misses that figure.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.requirement import Requirement, Verdict
from benchmarks.results import Row
from benchmarks.run import duration
from benchmarks.workload import PLAIN

WORKLOAD = "inference_1"
MOST_ERROR = {"mgrpo fp32": 1e-3, "mgrpo auto": 0.1}
"""Largest difference of the samples from those of float64, as a share of their norm: faster and wrong is no figure."""


def faster(name: str, ours: str, wanted: float) -> Requirement:
    """The implementation ``ours`` takes at most 1 / ``wanted`` of the plain loop's time, for the same samples."""

    def judge(rows: Sequence[Row]) -> Verdict:
        found = {row.implementation: row for row in rows}
        for one in (PLAIN, ours):
            if one not in found or not found[one].measured:
                row = found.get(one)
                why = f"{row.status}, {row.note}" if row is not None else "not there"
                return Verdict("unmeasured", f"{one}: {why}{times(found, ours)}")
        error = found[ours].relative_error
        if error is None or not error <= MOST_ERROR[ours]:
            return Verdict("missed", f"other samples than the plain loop's: relative error {error}")
        measured = ratio(found, ours)
        text = f"{measured:.2f}x ({ours}{precision(ours)}: {said(found, ours)}; relative error {error:.1e})"
        return Verdict("met" if measured >= wanted else "missed", text)

    return Requirement(name, WORKLOAD, f"{wanted:g}x plain eager", judge)


def ratio(found: dict[str, Row], ours: str) -> float:
    """How many times longer the plain loop took."""
    return (found[PLAIN].median_us or 0.0) / (found[ours].median_us or 1.0)


def said(found: dict[str, Row], ours: str) -> str:
    """Both times."""
    return " against ".join(duration(found[one].ns_per_item or 0.0) for one in (ours, PLAIN)) + " per sequence"


def times(found: dict[str, Row], ours: str) -> str:
    """What a busy machine gave nevertheless, for a person."""
    if any(one not in found or found[one].median_us is None for one in (PLAIN, ours)):
        return ""
    return f" ({ratio(found, ours):.2f}x on it, {said(found, ours)})"


def precision(ours: str) -> str:
    """What auto is here."""
    if not ours.endswith("auto"):
        return ""
    import torch

    from mgrpo.models.inference import choose_precision

    return f" = {choose_precision('auto', torch.device('cpu'))[0]}"


REQUIREMENTS: tuple[Requirement, ...] = (
    faster("inference_1", "mgrpo auto", 2.0),
    faster("inference_1_fp32", "mgrpo fp32", 1.1),
)
