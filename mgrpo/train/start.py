"""How every training loop begins: options that must hold, the run folder opened or taken up, the state restored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from mgrpo.execution.seeding import require_seed
from mgrpo.options import MOST_COUNT, option, require
from mgrpo.runs.run_dir import RunDir
from mgrpo.terminal.progress import notice

from .learning_rate import require_learning_rate


class LoopConfig(Protocol):
    """What the configuration of every loop has."""

    output: Any
    iterations: int
    learning_rate: float
    seed: int
    device: str
    resume: bool
    resume_from: str
    schedule: str


def require_sound(config: LoopConfig) -> None:
    """Raise InputError for what no loop can use, among the options that all loops have."""
    require(config, "iterations", at_least=1, at_most=MOST_COUNT)
    require(config, "checkpoint_every", at_least=1)
    require(config, "warmup", "weight_decay", "validate_every", at_least=0)
    require(config, "gradient_clip", above=0, infinite=True)
    require_learning_rate(config.learning_rate)
    require_seed(config.seed)


def unused_without_resume(config: LoopConfig) -> dict[str, str]:
    """The options of every loop that say something about resuming alone, see
    :class:`mgrpo.options.HasUnusedOptions`."""
    return {} if config.resume else {"resume_from": f"without {option(config, 'resume')}"}


def open_run(
    config: LoopConfig,
    command: list[str] | None,
    *,
    may_change: Sequence[str] = (),
    keep_every: int | None = None,
) -> RunDir:
    """The run folder of a loop, new or resumed as its configuration says.

    A resumed run may be longer than it was planned, unless the learning rate depends on its length, and may differ in
    the loop's own ``may_change``. ``keep_every`` and what is raised: :meth:`RunDir.create`.
    """
    may_change = (*may_change, "validate_every", *(("iterations",) if config.schedule == "constant" else ()))
    run = RunDir.create(
        config.output,
        config,
        command=command,
        resume=config.resume and (config.resume_from == "last" or config.resume_from),
        may_change=may_change,
        keep_every=keep_every,
        iterations=config.iterations,
    )
    if run.start_step == config.iterations:
        longer = f"; a larger {option(config, 'iterations')} would go on" if config.schedule == "constant" else ""
        notice(f"{run.path}: all {config.iterations} iterations are done, nothing is left to do{longer}")
    return run


def restore_last(run: RunDir, config: LoopConfig, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put the run's last checkpoint into model and optimiser; the iteration to go on with, 0 where there is none."""
    if not config.resume or (checkpoint := run.load("last")) is None:
        return 0
    checkpoint.restore(model, optimizer)
    return checkpoint.step
