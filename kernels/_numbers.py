"""Python numbers on their way into an operator: lists for a device, and numbers that change under torch.compile."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def listed_on(values: Sequence[float], device: torch.device) -> Tensor:
    """(len(values),) float64 tensor on ``device`` that is filled there.

    A copy from the host would wait for the device, and cannot be part of a CUDA graph. Equal neighbours are one fill:
    lists of weights have few values.
    """
    if device.type == "cpu":
        return torch.tensor(values, dtype=torch.float64)
    runs: list[tuple[float, int]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1] = value, runs[-1][1] + 1
        else:
            runs.append((value, 1))
    if not runs:
        return torch.empty((0,), dtype=torch.float64, device=device)
    return torch.cat([torch.full((count,), value, dtype=torch.float64, device=device) for value, count in runs])


def varies(value: float) -> bool:
    """Whether torch.compile traces ``value`` as a number that changes from call to call.

    To an operator such a number must go as a tensor (:func:`as_tensor`): as a number of its schema it becomes a
    constant of the graph, which then serves this one value.
    """
    return torch.compiler.is_compiling() and not torch.fx.experimental.symbolic_shapes.has_static_value(value)


def as_tensor(value: float, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """``value`` as a float64 tensor on the device of ``like``. By an addition, which the compiler keeps symbolic; a
    fill it would not."""
    return like.new_zeros(shape, dtype=torch.float64) + value
