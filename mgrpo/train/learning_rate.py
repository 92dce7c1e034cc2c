"""The learning rate over a run, shared by the loops."""

from __future__ import annotations

import math
from typing import Literal

import torch

Schedule = Literal["constant", "cosine"]


def learning_rate_at(iteration: int, iterations: int, *, peak: float, warmup: int, schedule: Schedule) -> float:
    """Learning rate of optimiser step ``iteration`` (from 0): a linear rise over ``warmup`` steps, then constant, or a
    cosine that reaches zero at ``iterations``."""
    warm = min(1.0, (iteration + 1) / max(1, warmup))
    if schedule == "constant":
        return peak * warm
    return peak * warm * 0.5 * (1 + math.cos(math.pi * iteration / iterations))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Use this learning rate for every parameter from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = value
