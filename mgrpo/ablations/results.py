"""What the finished stages of an ablation found, and the statistics of its rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgrpo.data.split import recording_of
from mgrpo.errors import InputError
from mgrpo.eval.bootstrap import FEW_CLUSTERS, Interval, two_way_intervals
from mgrpo.eval.cells import Cell

from .plan import Plan
from .rows import ABLATIONS, Row
from .stages import read_record

BUDGET = ("optimizer_steps", "network_units", "encode", "decode", "decode_with_graph")
"""What is counted, see :class:`mgrpo.runs.budget.Budget`."""


@dataclass(frozen=True, eq=False)
class RowResult:
    """One row over its finished seeds."""

    row: Row
    seeds: tuple[int, ...]
    """K training seeds whose evaluation is finished."""
    values: dict[str, Tensor]
    """Measure to ``(K, N)``: means over noise seeds and samples of every window."""
    budget: dict[str, float]
    """Mean over seeds of what the row's own training spent, by the names of :data:`BUDGET`; empty where nothing is
    counted (the prior, perceptual models)."""
    seconds: float
    """Mean over seeds of the time of the row's own training, 0 for the prior alone."""


@dataclass(frozen=True, eq=False)
class AblationResults:
    """All that tables and figures are made of."""

    ablation: str
    windows: tuple[str, ...]
    """Clip of each of the N windows."""
    settings: dict[str, Any]
    """How the evaluations sampled, of the first row."""
    rows: dict[str, RowResult]
    """By name, in the table's order; a row without a finished seed is absent."""
    missing: dict[str, tuple[int, ...]]
    """Row to the seeds that are not finished."""

    @property
    def recordings(self) -> list[str]:
        """Recording of each window; windows of one are drawn together."""
        return [recording_of(name) for name in self.windows]

    def label(self, name: str) -> str:
        """Name of a row in tables, with its block where there are several."""
        row = self.rows[name].row
        several = len({other.row.block for other in self.rows.values()}) > 1
        return f"{row.label}, {row.block}" if several and not row.label.startswith(row.block) else row.label

    def mean(self, name: str, measures: tuple[str, ...]) -> dict[str, Cell]:
        """Mean over seeds and windows of a row with its interval over recordings and seeds."""
        return self._cells({key: self.rows[name].values[key] for key in measures if key in self.rows[name].values})

    def difference(self, name: str, measures: tuple[str, ...]) -> dict[str, Cell]:
        """A row minus its reference, window by window and seed by seed, over the seeds that both have; empty where they
        have none."""
        row = self.rows[name]
        reference = self.rows.get(row.row.reference or "")
        if reference is None:
            return {}
        both = [seed for seed in row.seeds if seed in reference.seeds]
        if not both:
            return {}
        mine = [row.seeds.index(seed) for seed in both]
        theirs = [reference.seeds.index(seed) for seed in both]
        return self._cells(
            {
                key: row.values[key][mine] - reference.values[key][theirs]
                for key in measures
                if key in row.values and key in reference.values
            }
        )

    def _cells(self, values: dict[str, Tensor]) -> dict[str, Cell]:
        if not values:
            return {}
        intervals: list[Interval] = two_way_intervals(torch.stack(list(values.values()), dim=-1), self.recordings)
        return {
            name: Cell(float(value.nanmean()), math.nan, interval.low, interval.high)
            for (name, value), interval in zip(values.items(), intervals)
        }

    def notes(self) -> list[str]:
        """Sentences under the tables: how was sampled, what the intervals are, what is missing."""
        seeds = sorted({seed for row in self.rows.values() for seed in row.seeds})
        recordings = len(set(self.recordings))
        settings = self.settings
        notes = [
            f"Measured by this mgrpo: {len(self.windows)} windows of {settings['frames']} frames from {recordings} "
            f"recordings, training seeds {' '.join(map(str, seeds))}; {settings['seeds']} noise seeds and "
            f"{settings['samples']} samples for each window, the same for every row; {settings['steps']} steps.",
            "[ , ]: 95 % interval over recordings and training seeds (pigeonhole bootstrap). Differences are paired: "
            "same prior, windows and noise.",
        ]
        if len(seeds) < 5 or recordings < FEW_CLUSTERS:
            notes.append(
                f"{len(seeds)} training seeds and {recordings} recordings are few: such intervals are too narrow."
            )
        if self.missing:
            listed = "; ".join(f"{name} (seed {', '.join(map(str, seeds))})" for name, seeds in self.missing.items())
            notes.append(f"Not finished, and left out: {listed}.")
        return notes


def gather(plan: Plan, output: Path) -> AblationResults:
    """Read what is finished. Raises InputError when nothing is, or when rows were evaluated on different windows."""
    found: dict[str, RowResult] = {}
    missing: dict[str, tuple[int, ...]] = {}
    windows: tuple[str, ...] | None = None
    settings: dict[str, Any] = {}
    for row in plan.rows:
        seeds, values, budgets, seconds = [], [], [], []
        for seed in plan.seeds:
            names = [plan.evaluation(row, seed)]
            if ABLATIONS[plan.ablation].diversity:
                names.append(plan.diversity(row, seed))
            records = [read_record(output, name) for name in names]
            if any(record["state"] != "finished" for record in records):
                missing[row.name] = (*missing.get(row.name, ()), seed)
                continue
            for record in records:
                windows = windows or tuple(record["result"]["windows"])
                if tuple(record["result"]["windows"]) != windows:
                    raise InputError(f"{record['stage']} was evaluated on other windows; start with a new --output")
            settings = settings or records[0]["result"]["settings"]
            seeds.append(seed)
            values.append({k: v for record in records for k, v in record["result"]["values"].items()})
            training = read_record(output, plan.training(row, seed))
            budgets.append(training["result"]["budget"] or {})
            seconds.append(0.0 if row.method == "prior" else training["seconds"])
        if seeds:
            found[row.name] = RowResult(
                row,
                tuple(seeds),
                {name: torch.stack([_tensor(value[name]) for value in values]) for name in values[0]},
                # records of older versions lack some
                {
                    name: sum(spent[name] for spent in budgets) / len(seeds)
                    for name in BUDGET
                    if all(name in spent for spent in budgets)
                },
                sum(seconds) / len(seeds),
            )
    if windows is None:
        raise InputError(
            f"{output}: no row of {plan.ablation} is finished, so there is no table; start it without --summarise"
        )
    return AblationResults(plan.ablation, windows, settings, found, missing)


def _tensor(values: list[float | None]) -> Tensor:
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)
