"""Experiment trackers, where they are wanted: the metrics of a run, sent to wandb or trackio besides its own log.

A tracker is a convenience. What goes wrong in one is told once and never ends a training; everything is in
metrics.jsonl anyway.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from mgrpo.errors import InputError
from mgrpo.storage import atomic_write_json, read_json
from mgrpo.terminal.progress import notice

Track = Literal["none", "wandb", "trackio"]
"""Where metrics are sent besides the run folder."""

FILE = "tracker.json"
"""File of the run folder with the tracker's name of the run, so that a resumed run goes on there."""


def require_tracker(kind: Track) -> None:
    """Raise InputError where a tracker is asked for whose package is not installed."""
    if kind == "none":
        return
    found = importlib.util.find_spec(kind)
    # A folder of that name, such as the one that wandb leaves beside its runs, counts as a package without an origin.
    if found is None or found.origin is None:
        raise InputError(
            f"--track {kind}: the package {kind!r} is not installed; install it (pip install 'mgrpo[{kind}]'), or "
            "leave --track out: the metrics are in metrics.jsonl and TensorBoard's files anyway"
        )


class Tracker:
    """Sends metrics to one run of a tracker until something fails there."""

    def __init__(self, kind: Track, folder: Path, *, project: str, config: Any) -> None:
        """Begin a run, or go on with the one that ``folder`` names. ``config``: plain settings to show beside it."""
        self.kind = kind
        self._log: Callable[[int, dict[str, float]], Any] | None = None
        self._finish: Callable[[], Any] = lambda: None
        if kind != "none":
            # It may ask for a login, or try for a minute or two to reach a server.
            notice(f"--track {kind}: beginning the run there")
            self._attempt("begin", lambda: self._begin(folder, project, config))

    def _begin(self, folder: Path, project: str, config: Any) -> None:
        module = importlib.import_module(self.kind)
        known = self._known(folder, project)
        name = known or f"{folder.resolve().name}-{uuid.uuid4().hex[:8]}"
        if self.kind == "wandb":
            run = module.init(
                project=project, id=name, name=name, resume="allow", dir=str(folder.resolve().parent), config=config
            )
            # Not wandb's own steps: those of iterations that a resumed run repeats would be refused.
            run.define_metric("iteration")
            run.define_metric("*", step_metric="iteration")
            self._log, self._finish = (lambda step, numbers: run.log({"iteration": step, **numbers})), run.finish
        else:
            run = module.init(project=project, name=name, resume="allow", config=config)
            # The module's finish: after the run's own, the module would finish it once more when Python ends.
            self._log, self._finish = (lambda step, numbers: run.log(numbers, step=step)), module.finish
        if known is None:
            atomic_write_json(folder / FILE, {"tracker": self.kind, "project": project, "run": name})

    def _known(self, folder: Path, project: str) -> str | None:
        """The run that was begun before, at this tracker and in this project."""
        if not (folder / FILE).exists():
            return None
        record = read_json(folder / FILE, f"run folder {folder}: {FILE}")
        same = record.get("tracker") == self.kind and record.get("project") == project
        return str(record["run"]) if same and record.get("run") else None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the finite ones among the metrics of an iteration."""
        send = self._log
        if send is not None:
            numbers = {name: value for name, value in metrics.items() if math.isfinite(value)}
            self._attempt("log to", lambda: send(step, numbers))

    def close(self) -> None:
        """End the run at the tracker. Safe to call twice."""
        if self._log is not None:
            self._attempt("finish", self._finish)
            self._log = None

    def _attempt(self, action: str, work: Callable[[], Any]) -> None:
        try:
            work()
        except Exception as error:
            self._log = None
            reason = str(error).strip().splitlines() or [type(error).__name__]
            notice(
                f"--track {self.kind}: could not {action} the run there ({reason[0]}). Training goes on; the metrics "
                "are in metrics.jsonl"
            )
