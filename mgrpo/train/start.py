"""How every training loop begins: options that must hold, the run folder opened or taken up, the state restored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from mgrpo.errors import InputError

from .run_dir import RunDir


class LoopConfig(Protocol):
    """What the configuration of every loop has."""

    output: Any
    resume: bool
    resume_from: str
    schedule: str


def require_at_least_one(config: object, *fields: str) -> None:
    """Raise InputError for the first of the integer ``fields`` that is below 1, in the words of the command line."""
    for name in fields:
        if getattr(config, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(config, name)}")


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
    return RunDir.create(
        config.output,
        config,
        command=command,
        resume=config.resume and (config.resume_from == "last" or config.resume_from),
        may_change=may_change,
        keep_every=keep_every,
    )


def restore_last(run: RunDir, config: LoopConfig, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put the run's last checkpoint into model and optimiser; the iteration to go on with, 0 where there is none."""
    if not config.resume or (checkpoint := run.load("last")) is None:
        return 0
    checkpoint.restore(model, optimizer)
    return checkpoint.step
