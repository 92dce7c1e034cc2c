"""The learning rate over a run, shared by the loops."""

from __future__ import annotations

import math
from typing import Literal

import torch

from mgrpo.errors import InputError

Schedule = Literal["constant", "cosine"]


def learning_rate_at(
    iteration: int, iterations: int, *, peak: float, warmup: int, schedule: Schedule, from_zero: bool = False
) -> float:
    """Learning rate of optimiser step ``iteration`` (from 0): a linear rise over ``warmup`` steps, then constant, or a
    cosine that reaches zero at ``iterations``.

    The rise begins at ``peak / warmup`` and reaches ``peak`` at step ``warmup - 1``; ``from_zero``: it begins at 0 and
    reaches ``peak`` at step ``warmup``, as the base model's.
    """
    risen = iteration if from_zero else iteration + 1
    warm = min(1.0, risen / warmup) if warmup else 1.0
    if schedule == "constant":
        return peak * warm
    return peak * warm * 0.5 * (1 + math.cos(math.pi * iteration / iterations))


def require_learning_rate(value: float) -> None:
    """Raise InputError for a learning rate with which nothing is learnt; 1 is far above any that works."""
    if not 0 < value <= 1:
        raise InputError(f"--learning-rate must be positive and at most 1, got {value}")


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Use this learning rate for every parameter from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = value
