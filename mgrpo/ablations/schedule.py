"""Carrying out a plan: what is finished is skipped, what fails stops nothing but what needs it, several stages side by
side, and Ctrl-C leaves everything to be continued."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from mgrpo.storage import make_folder
from mgrpo.terminal.interrupt import GracefulStop, TrainingInterrupted, graceful_interrupt
from mgrpo.terminal.progress import Progress, notice

from .plan import Plan, Stage
from .stages import carry_out, read_record


@dataclass
class Outcome:
    """How the stages of a plan stand."""

    records: dict[str, dict[str, Any]]
    """Record of every stage by name, see :func:`mgrpo.ablations.stages.read_record`."""
    done_now: list[str] = field(default_factory=list)
    """Stages that this start finished."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Stages that could not start, and the failed one that they need."""

    @property
    def failed(self) -> dict[str, str]:
        """Stages that failed, and why."""
        return {name: record["error"] for name, record in self.records.items() if record["state"] == "failed"}

    def finished(self, name: str) -> bool:
        """Whether a stage is finished."""
        return self.records[name]["state"] == "finished"


@dataclass(frozen=True)
class Continuation:
    """The command that goes on, for messages; see :class:`mgrpo.terminal.interrupt.Resumable`."""

    text: str

    def resume_command(self) -> str:
        return self.text


def carry_out_plan(
    plan: Plan, output: Path, *, jobs: int = 1, devices: tuple[str, ...] = ("auto",), again: str = "the same command"
) -> Outcome:
    """Do all stages that are not finished; ``again`` is the command that goes on, for messages.

    With one job everything runs in this process, with more each stage has a process of its own, whose messages go to
    ``logs/STAGE.txt``; the devices are taken in turn. Raises :class:`mgrpo.terminal.interrupt.TrainingInterrupted`
    after a signal: what was trained until then is saved.
    """
    outcome = Outcome({stage.name: read_record(output, stage.name) for stage in plan.stages})
    for record in outcome.records.values():
        if record["state"] == "failed":
            record["state"] = "open"  # tried once more
    done = sum(outcome.finished(stage.name) for stage in plan.stages)
    with (
        graceful_interrupt(Continuation(again)) as stop,
        Progress(f"ablate {plan.ablation}", len(plan.stages), "stages", start=done) as progress,
    ):
        if jobs == 1:
            _one_by_one(plan, output, devices, outcome, stop, progress, again)
        else:
            _side_by_side(plan, output, jobs, devices, outcome, stop, progress)
    return outcome


def as_ablation(error: TrainingInterrupted, again: str) -> TrainingInterrupted:
    """The interruption of a training as that of its ablation, which the command ``again`` continues."""
    text = f"stopped by {signal.Signals(error.number).name}; continue with: {again}"
    return TrainingInterrupted(text, error.number)


def _startable(plan: Plan, outcome: Outcome, running: Mapping[str, Any]) -> list[Stage]:
    """Stages whose turn it is; those that need a failed one are noted as skipped."""
    found = []
    for stage in plan.stages:
        if (
            stage.name in running
            or stage.name in outcome.skipped
            or outcome.records[stage.name]["state"]
            in (
                "finished",
                "failed",
            )
        ):
            continue
        broken = [name for name in stage.after if outcome.records[name]["state"] == "failed" or name in outcome.skipped]
        if broken:
            outcome.skipped[stage.name] = outcome.skipped.get(broken[0], broken[0])
        elif all(outcome.finished(name) for name in stage.after):
            found.append(stage)
    return found


def _note_end(stage: Stage, record: dict[str, Any], outcome: Outcome, progress: Progress) -> None:
    outcome.records[stage.name] = record
    if record["state"] == "finished":
        outcome.done_now.append(stage.name)
        progress.update(stage=stage.name)
    elif record["state"] == "failed":
        notice(f"{stage.name} failed: {record['error']}")


def _one_by_one(
    plan: Plan,
    output: Path,
    devices: tuple[str, ...],
    outcome: Outcome,
    stop: GracefulStop,
    progress: Progress,
    again: str,
) -> None:
    while not stop.requested and (ready := _startable(plan, outcome, {})):
        stage = ready[0]
        try:
            record = carry_out(stage, output, devices[0])
        except TrainingInterrupted as error:  # the training's own handler took the signal
            raise as_ablation(error, again) from None
        _note_end(stage, record, outcome, progress)


def _side_by_side(
    plan: Plan,
    output: Path,
    jobs: int,
    devices: tuple[str, ...],
    outcome: Outcome,
    stop: GracefulStop,
    progress: Progress,
) -> None:
    devices = _every_gpu() if devices == ("auto",) else devices
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    make_folder(output / "logs")
    running: dict[str, tuple[Stage, Any, int]] = {}
    told = False
    try:
        while True:
            if not stop.requested:
                for stage in _startable(plan, outcome, running)[: jobs - len(running)]:
                    taken = {slot for _, _, slot in running.values()}
                    slot = next(number for number in range(jobs) if number not in taken)
                    arguments = (stage, output, devices[slot % len(devices)], threads)
                    process = context.Process(target=_work, args=arguments, name=stage.name)
                    process.start()
                    running[stage.name] = (stage, process, slot)
            elif not told:
                told = True
                for _, process, _ in running.values():
                    process.terminate()  # saves and ends
            if not running:
                return
            wait([process.sentinel for _, process, _ in running.values()], timeout=0.2)
            for name, (stage, process, _) in list(running.items()):
                if process.is_alive():
                    continue
                process.join()
                del running[name]
                record = read_record(output, name)
                if record["state"] not in ("finished", "failed"):
                    if stop.requested:  # also where nothing was there to take the signal
                        record = record | {"state": "interrupted"}
                    else:
                        record = record | {"state": "failed", "defect": False, "error": _ended(process.exitcode)}
                _note_end(stage, record, outcome, progress)
    finally:
        for _, process, _ in running.values():
            process.kill()
            process.join()


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        why = " (often: not enough memory)" if -code == signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-code).name}{why}"
    return f"its process ended with code {code}; see its file in logs/"


def _every_gpu() -> tuple[str, ...]:
    import torch

    return tuple(f"cuda:{number}" for number in range(torch.cuda.device_count())) or ("cpu",)


def _work(stage: Stage, output: Path, device: str, threads: int) -> None:
    """A process: one stage. It has a session of its own, so that Ctrl-C reaches it through the parent alone, and ends
    with the parent."""
    os.setsid()
    with open(output / "logs" / f"{stage.name.replace('/', '.')}.txt", "a", buffering=1, encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ["MGRPO_PROGRESS"] = "plain:30"
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        carry_out(stage, output, device)
    except KeyboardInterrupt as error:
        sys.exit(128 + getattr(error, "number", signal.SIGINT))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)
