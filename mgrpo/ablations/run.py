"""`mgrpo ablate`: plan, estimate, carry out, summarise."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mgrpo.data.hdf5.dataset import hdf5_files
from mgrpo.errors import InputError
from mgrpo.eval.cells import counted
from mgrpo.eval.published import Dataset
from mgrpo.execution.device import resolve_device
from mgrpo.runs.provenance import provenance
from mgrpo.storage import FileLock, atomic_write_json, make_folder
from mgrpo.terminal.interrupt import TrainingInterrupted, graceful_interrupt
from mgrpo.terminal.progress import format_seconds, notice

from .estimate import estimate_seconds
from .figure import write_figure
from .options import (
    PRESETS_SCALES,
    SAMPLER_SCALES,
    STEPWEIGHTS_SCALES,
    TABLE2_SCALES,
    TABLE3_SCALES,
    TABLE4_SCALES,
    TABLE5_SCALES,
    AblateConfig,
    PresetsConfig,
    SamplerAblationConfig,
    StepWeightsConfig,
    Table2Config,
    Table3Config,
    Table4Config,
    Table5Config,
)
from .plan import Plan, keep_plan, make_plan
from .results import gather
from .schedule import Continuation, Outcome, as_ablation, carry_out_plan
from .stages import evaluation_windows, read_record
from .table import print_results, write_results


def run_ablation(name: str, config: AblateConfig, *, command: Sequence[str] | None = None) -> int:
    """Run ablation ``name`` (of :data:`mgrpo.ablations.rows.ABLATIONS`), or what is left of it, and write its tables.

    Returns 0, or 2 where a stage failed (1 if by a defect); the others are done all the same. Raises InputError for
    options, motion or a folder that can't be used, :class:`mgrpo.terminal.interrupt.TrainingInterrupted` after a
    signal.
    """
    output = config.output.expanduser()
    _refuse_known_motion(config)
    plan = make_plan(name, config)
    if config.dry_run:
        keep_plan(plan, output / "plan.yaml", write=False)
        print_plan(plan, output)
        return 0
    if config.summarise:
        if not output.is_dir():
            raise InputError(f"--output {config.output}: there is no such folder, so there is nothing to summarise")
        keep_plan(plan, output / "plan.yaml", write=False)
        summarise(plan, output)
        return 0
    for device in config.devices:
        resolve_device(device, option="--devices")
    # Motion that can't be used should be known now, not after the first training.
    evaluation_windows(plan_data(plan), config.data_test, config.test_windows)
    make_folder(output)
    with FileLock(output / ".lock", f"ablation folder {output}", "Wait for it to end, or choose another --output."):
        keep_plan(plan, output / "plan.yaml")
        make_folder(output / name)
        record, _ = provenance(None if command is None else list(command), resumed_from_step=None)
        atomic_write_json(output / name / "environment.json", record)
        again = _again(command)
        if config.estimate:
            tell_estimate(plan, output, config, again)
        outcome = carry_out_plan(plan, output, jobs=config.jobs, devices=config.devices, again=again)
        tell_failures(outcome)
        if any(outcome.finished(plan.evaluation(row, seed)) for row in plan.rows for seed in plan.seeds):
            summarise(plan, output)
    if not outcome.failed:
        return 0
    return 1 if any(outcome.records[stage].get("defect") for stage in outcome.failed) else 2


def _refuse_known_motion(config: AblateConfig) -> None:
    """Raise InputError where what is tested on is what is trained on: of HDF5 files alone the held-out part is."""
    test, train = config.data_test, config.data_train
    if test and not hdf5_files(test) and _place(test) == _place(train):
        raise InputError(
            f"--data-test {test} is --data-train: all of it would be tested on, also the clips that are trained on. "
            "Leave --data-test out, and the held-out clips are"
        )


def _place(motion: str) -> Path:
    return Path(motion).expanduser().resolve()


def plan_data(plan: Plan) -> Any:
    """The motion that the stages of a plan share."""
    return plan.stages[0].config.data


def summarise(plan: Plan, output: Path) -> None:
    """Make tables and figure from what is finished, write and print them. Raises InputError when nothing is."""
    results = gather(plan, output)
    folder = output / plan.ablation
    data: tuple[Dataset, ...] = ("amass", "rich")
    written = write_results(results, folder, data)
    figure = write_figure(results, folder / "figure.png")
    if figure is None:  # one of an earlier start would be taken for this table's
        (folder / "figure.png").unlink(missing_ok=True)
    print_results(results)
    names = [path.name for path in (*written, *([figure] if figure else []))]
    print(f"written: {folder}/{{{','.join(names)}}}")


def print_plan(plan: Plan, output: Path, console: Console | None = None) -> None:
    """The stages as a table: what each is, and how far it is."""
    shown = Table(
        title=f"ablate {plan.ablation}: {counted(len(plan.rows), 'row')}, {counted(len(plan.seeds), 'seed')}, "
        f"{counted(len(plan.stages), 'stage')}",
    )
    for heading in ("stage", "work", "iterations", "state"):
        shown.add_column(heading, overflow="fold")
    for stage in plan.stages:
        iterations = str(getattr(stage.config, "iterations", ""))
        if stage.equal_calls is not None:
            iterations = "for equal network calls"
        shown.add_row(stage.name, stage.kind, iterations, read_record(output, stage.name)["state"])
    console = console or Console()
    if not console.is_terminal:  # a file has no width: names stay on one line, to be searched and copied
        console.width = max(console.width, console.measure(shown, options=console.options.update(width=1000)).maximum)
    console.print(shown)


def tell_estimate(plan: Plan, output: Path, config: AblateConfig, again: str) -> None:
    """Say how long the trainings that are left will take; ``again`` is the command that goes on, for messages. Raises
    :class:`mgrpo.terminal.interrupt.TrainingInterrupted` after a signal."""
    with graceful_interrupt(Continuation(again)) as stop:
        try:
            seconds = estimate_seconds(plan, output, config.devices[0], stop)
        except TrainingInterrupted as error:  # the training's own handler took the signal
            raise as_ablation(error, again) from None
    if not seconds:
        return
    by_kind: dict[str, float] = {}
    for stage in plan.stages:
        if stage.name in seconds:
            by_kind[stage.kind] = by_kind.get(stage.kind, 0.0) + seconds[stage.name]
    listed = ", ".join(f"{kind} {format_seconds(value)}" for kind, value in by_kind.items())
    total = sum(by_kind.values())
    jobs = f", about {format_seconds(total / config.jobs)} with {config.jobs} at a time" if config.jobs > 1 else ""
    matched = (
        " Rows at equal network calls are counted with their first iterations and will take another number."
        if any(stage.equal_calls for stage in plan.stages)
        else ""
    )
    notice(
        f"estimate: {format_seconds(total)} of training{jobs} ({listed}); validations and evaluations come on top."
        f"{matched}"
    )


def tell_failures(outcome: Outcome) -> None:
    """Say what failed, and what could not start for it."""
    for name, why in outcome.failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    for name, broken in outcome.skipped.items():
        print(f"left out: {name} needs {broken}", file=sys.stderr)


def _again(command: Sequence[str] | None) -> str:
    if command is None:
        return "the same call"
    words = list(command)
    words[0] = Path(words[0]).name
    if words[0] == "__main__.py":
        words[:1] = ["python", "-m", "mgrpo"]
    return shlex.join(words)


def ablate_table2(config: Table2Config, *, command: list[str] | None = None) -> int:
    """See :func:`run_ablation`."""
    return run_ablation("table2", config, command=command)


def ablate_table3(config: Table3Config, *, command: list[str] | None = None) -> int:
    """See :func:`run_ablation`."""
    return run_ablation("table3", config, command=command)


def ablate_table4(config: Table4Config, *, command: list[str] | None = None) -> int:
    """See :func:`run_ablation`."""
    return run_ablation("table4", config, command=command)


def ablate_table5(config: Table5Config, *, command: list[str] | None = None) -> int:
    """See :func:`run_ablation`."""
    return run_ablation("table5", config, command=command)


def ablate_sampler(config: SamplerAblationConfig, *, command: list[str] | None = None) -> int:
    """See :func:`run_ablation`."""
    return run_ablation("sampler", config, command=command)


def ablate_presets(config: PresetsConfig, *, command: list[str] | None = None) -> int:
    """See :func:`run_ablation`."""
    return run_ablation("presets", config, command=command)


def ablate_stepweights(config: StepWeightsConfig, *, command: list[str] | None = None) -> int:
    """See :func:`run_ablation`."""
    return run_ablation("stepweights", config, command=command)


__all__ = [
    "PRESETS_SCALES",
    "SAMPLER_SCALES",
    "STEPWEIGHTS_SCALES",
    "TABLE2_SCALES",
    "TABLE3_SCALES",
    "TABLE4_SCALES",
    "TABLE5_SCALES",
    "PresetsConfig",
    "SamplerAblationConfig",
    "StepWeightsConfig",
    "Table2Config",
    "Table3Config",
    "Table4Config",
    "Table5Config",
    "ablate_presets",
    "ablate_sampler",
    "ablate_stepweights",
    "ablate_table2",
    "ablate_table3",
    "ablate_table4",
    "ablate_table5",
    "run_ablation",
]
