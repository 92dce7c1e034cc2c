"""What a report tells of one or several post-trainings, as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mgrpo.report.data import Panel
from mgrpo.report.json_form import encode
from mgrpo.report.numbers import seconds, short
from mgrpo.report.training_panels import (
    NETWORK_CALLS,
    Log,
    best_evaluation,
    error_charts,
    gold_charts,
    group_charts,
    phases,
    reward_charts,
    time_charts,
    update_charts,
)

FORMAT = "mgrpo-training-report-1"

PICTURES = ("rewards", "rewards_calls", "gold", "groups", "update", "errors", "time")
"""Names of the groups of charts, and of the PNGs."""

_UNTOLD = ("output", "resume", "resume_from", "class")
"""Settings that say where a run is kept, not what it does."""


@dataclass(frozen=True)
class TrainingRun:
    """One run as its folder tells it."""

    log: Log
    """Its rows, with network calls counted."""
    folder: str
    iterations: int
    """How many there are to be."""
    alarms: Sequence[Mapping[str, Any]] = ()
    """Rows of alarms.jsonl: step, name, text."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Dotted name to value."""
    commands: Sequence[str] = ()
    """Command lines, one for each start."""
    state: Mapping[str, str] = field(default_factory=dict)
    """Where and with what it was run: name to text."""

    @property
    def name(self) -> str:
        """What the charts call it."""
        return self.log.name

    @property
    def done(self) -> int:
        """Iterations finished."""
        return int(self.log.rows[-1]["step"]) if self.log.rows else 0

    def mean(self, key: str, *, of_last: float = 1.0) -> float:
        """Mean of a metric over the last part of its values; NaN without any."""
        values = [row[key] for row in self.log.rows if row.get(key) is not None]
        values = values[-max(1, round(of_last * len(values))) :]
        return sum(values) / len(values) if values else math.nan

    def summary(self) -> dict[str, str]:
        """The run in a few numbers: name to text."""
        last = self.log.rows[-1] if self.log.rows else {}
        best = best_evaluation(self.log)
        calls = last.get(NETWORK_CALLS)
        return {
            "iterations": f"{self.done} of {self.iterations}",
            "network calls": "–" if calls is None else f"{calls:,.0f}".replace(",", "\u202f"),
            "reward, last tenth": short(self.mean("reward", of_last=0.1)),
            f"best {self.log.gold}": "–" if best is None else f"{short(best[1])} at {best[0]:.0f}",
            "time of an iteration": seconds(self.mean("step_time")),
            "samples per second": short(self.mean("system/samples_per_s")),
            "alarms": str(len(self.alarms)),
        }


@dataclass(frozen=True)
class TrainingReport:
    """One or several runs to be shown beside each other."""

    runs: Sequence[TrainingRun]
    date: str
    """When it was made, ISO 8601."""

    @cached_property
    def _panels(self) -> dict[str, list[Panel]]:
        logs = [run.log for run in self.runs]
        return {
            "rewards": reward_charts(logs),
            "rewards_calls": reward_charts(logs, x=NETWORK_CALLS),
            "gold": gold_charts(logs),
            "groups": group_charts(logs),
            "update": update_charts(logs),
            "errors": error_charts(logs),
            "time": time_charts(logs),
        }

    def panels(self) -> dict[str, list[Panel]]:
        """The charts, by the names of PICTURES; a group without numbers is empty."""
        return self._panels

    def differences(self) -> dict[str, list[str]]:
        """Settings in which the runs differ: dotted name to the value of each."""
        names: dict[str, None] = {}
        for run in self.runs:
            names |= dict.fromkeys(run.settings)
        found = {name: [run.settings.get(name, "–") for run in self.runs] for name in names}
        return {
            name: values
            for name, values in found.items()
            if len(set(values)) > 1 and name.split(".")[-1] not in _UNTOLD
        }

    def time_split(self) -> dict[str, list[float]]:
        """Mean seconds of an iteration by phase, for each run; the last is what no phase holds. Empty where no run has
        measured phases."""
        names = phases([run.log for run in self.runs])
        if not names:
            return {}
        split = {name: [run.mean(f"time/{name}") for run in self.runs] for name in names}
        known = [
            math.fsum(v for v in (split[name][i] for name in names) if math.isfinite(v)) for i in range(len(self.runs))
        ]
        return split | {"the rest": [max(0.0, run.mean("step_time") - k) for run, k in zip(self.runs, known)]}

    def to_json(self) -> dict[str, Any]:
        """A tree that ``json`` writes: what the page shows, with all points of its charts."""
        return {
            "format": FORMAT,
            "date": self.date,
            "runs": [
                encode({
                    "name": run.name, "folder": run.folder, "done": run.done, "summary": run.summary(),
                    "alarms": [dict(alarm) for alarm in run.alarms], "settings": run.settings,
                    "commands": run.commands, "state": run.state,
                })
                for run in self.runs
            ],
            "differences": self.differences(),
            "time_split": encode(self.time_split()),
            "charts": encode(self.panels()),
        }  # fmt: skip
