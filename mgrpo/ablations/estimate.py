"""How long an ablation will take: a few iterations of each kind of training, timed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mgrpo.runs.metric_log import read_metrics
from mgrpo.terminal.interrupt import GracefulStop
from mgrpo.terminal.progress import notice

from .plan import Plan, Stage
from .stages import carry_out, read_record


def estimate_seconds(plan: Plan, output: Path, device: str, stop: GracefulStop | None = None) -> dict[str, float]:
    """Seconds that each unfinished training of the plan will take on its own, evaluations left out; what is known so
    far once ``stop`` is requested.

    Kinds that have finished before are taken from their records; the others are timed on their first stage, with
    networks trained as shortly. Validations are left out. A kind that fails is left to fail in its turn.
    """
    rates: dict[str, float] = {}
    for stage in plan.stages:
        record = read_record(output, stage.name)
        if record["state"] == "finished" and "iterations" in record["result"]:
            rates.setdefault(stage.kind, record["seconds"] / record["result"]["iterations"])
    waiting = [stage for stage in plan.stages if read_record(output, stage.name)["state"] != "finished"]
    kinds = {stage.kind for stage in waiting if hasattr(stage.config, "iterations")}
    if missing := kinds - set(rates):
        with tempfile.TemporaryDirectory(prefix="mgrpo-estimate-") as folder, _quietly():
            rates |= _timed(plan, missing, Path(folder), device, stop)
    return {stage.name: rates[stage.kind] * stage.config.iterations for stage in waiting if stage.kind in rates}


def _timed(plan: Plan, kinds: set[str], folder: Path, device: str, stop: GracefulStop | None) -> dict[str, float]:
    """Seconds of an iteration of each kind."""
    found: dict[str, float] = {}
    for kind in ("prior", "perceptual", *sorted(kinds - {"prior", "perceptual"})):
        stage = next((stage for stage in plan.stages if stage.kind == kind), None)
        if stage is None:
            continue
        if stop is not None and stop.requested:  # between two trainings, each of which takes signals itself
            return found
        short = _short(stage, folder)
        record = carry_out(short, folder, device)
        if record["state"] != "finished":
            notice(f"estimate: {kind} could not be timed: {record['error']}")
            return found
        rows = read_metrics(folder / kind / "metrics.jsonl")
        # From the end of the first iteration, which also warms up, to that of the last: one whole period.
        found[kind] = max(0.0, rows[-1]["time"] - rows[0]["time"]) / (short.config.iterations - 1)
    return found


def _short(stage: Stage, folder: Path) -> Stage:
    """The same training, for one period of what it repeats and one iteration more, in a folder of its own, from
    networks trained as shortly."""
    places: dict[str, Any] = {"output": folder / stage.kind}
    names = {field.name for field in fields(stage.config)}
    iterations = 1 + getattr(stage.config, "optimizer_steps_per_generation", 1)
    places |= {name: 0 for name in ("patience", "keep_every") if name in names}
    if "prior" in names:
        places["prior"] = folder / "prior"
    if "perceptual" in names:
        places["perceptual"] = folder / "perceptual"
    config = replace(stage.config, iterations=iterations, validate_every=0, checkpoint_every=iterations, **places)
    return Stage(stage.kind, stage.kind, config)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    before = os.environ.get("MGRPO_PROGRESS")
    os.environ["MGRPO_PROGRESS"] = "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ["MGRPO_PROGRESS"]
        else:
            os.environ["MGRPO_PROGRESS"] = before
