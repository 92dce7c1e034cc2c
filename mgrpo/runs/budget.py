"""What a run has spent: optimiser steps and network calls, the same for every method of post-training, so that methods
can be compared at equal cost (docs/baselines.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .metric_log import read_metrics

CALLS = ("encode", "decode", "decode_with_graph")
"""Counts of :class:`mgrpo.train.prepared_policy.PreparedPolicy`."""


def network_units(calls: Mapping[str, float]) -> float:
    """The cost of counted calls (:class:`mgrpo.train.prepared_policy.PreparedPolicy`) in sequences through the network:
    1 for a prediction, 2 more for its gradient."""
    return calls["decode"] + 2 * calls["decode_with_graph"]


@dataclass(frozen=True)
class Budget:
    """What was spent in training, by all processes; evaluations don't count."""

    optimizer_steps: int
    network_units: float
    """See :func:`network_units`."""
    encode: float
    """Conditions encoded."""
    decode: float
    """Sequences predicted."""
    decode_with_graph: float
    """Those of them of which a gradient could be taken."""


def run_budget(folder: str | Path) -> Budget:
    """What the run in a folder has spent until now, from its log. Raises InputError when there is none."""
    rows = read_metrics(folder)

    def total(name: str) -> float:
        return float(sum(row.get(name) or 0 for row in rows))

    return Budget(int(total("optimizer_steps")), total("network_units"), *(total(name) for name in CALLS))
