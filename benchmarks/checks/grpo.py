"""What sharing saves in an iteration of GRPO: nothing but sharing tells the presets from the plain loop that uses our
operators, and nothing is faster than what is measured beside it."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.ops.iteration import PLAIN_LOOP, PLAIN_LOOP_FUSED
from benchmarks.requirement import Requirement, Verdict
from benchmarks.results import Row
from benchmarks.run import duration

WORKLOAD = "grpo_narrow"


def ratio(name: str, ours: str, base: str, wanted: float) -> Requirement:
    """The implementation ``ours`` takes at most 1 / ``wanted`` of the time of ``base``."""

    def judge(rows: Sequence[Row]) -> Verdict:
        found = {row.implementation: row for row in rows}
        missing = [one for one in (ours, base) if one not in found or not found[one].measured]
        if missing:
            return Verdict("unmeasured", f"not measured: {', '.join(missing)}")
        times = [found[one].median_us or 0.0 for one in (ours, base)]
        measured = times[1] / times[0]
        text = f"{duration(1e3 * times[0])} against {duration(1e3 * times[1])}"
        return Verdict("met" if measured >= wanted else "missed", f"{measured:.1f}x ({text})")

    return Requirement(name, WORKLOAD, f"{wanted:g}x {base}", judge)


REQUIREMENTS: tuple[Requirement, ...] = (
    ratio("grpo_fast_sharing", "mgrpo fast", PLAIN_LOOP_FUSED, 2.0),
    ratio("grpo_default_sharing", "mgrpo default", PLAIN_LOOP_FUSED, 2.0),
    ratio("grpo_fast", "mgrpo fast", PLAIN_LOOP, 4.0),
    ratio("grpo_paper", "mgrpo paper", PLAIN_LOOP, 1.2),
)
