"""Cases of ``perlin_noise``; its inputs are keys, its results the same bits on every backend."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._spec import Case, OpSpec, Tolerance
from . import perlin_noise


def _make_inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = case.sizes["rows"]
    condition = torch.randint(0, 1 << 32, (rows,), generator=generator)
    return condition.to(device), torch.randint(0, 1 << 16, (rows,), generator=generator).to(device)


def _call(case: Case, condition: Tensor, member: Tensor, *, backend: str | None = None) -> tuple[Tensor]:
    options = {"alpha": 0.1, "seed": (1 << 64) - 3, "iteration": 5, **case.options}
    return (perlin_noise(case.sizes["frames"], condition=condition, member=member, backend=backend, **options),)


SPECS = (
    OpSpec(
        name="perlin_noise",
        cases=(
            Case("iteration", {"rows": 64, "frames": 128}),
            Case("octaves", {"rows": 5, "frames": 77}, {"octaves": 4, "lattice": 7.3, "channels": 5}),
            Case("one_frame", {"rows": 3, "frames": 1}, {"lattice": 1.0, "channels": 1}),
            Case("empty", {"rows": 0, "frames": 9}),
        ),
        make_inputs=_make_inputs,
        call=_call,
        tolerances={torch.float32: Tolerance(0.0, 0.0)},
        bytes_moved=lambda case, dtype: 4 * case.options.get("channels", 3) * math.prod(case.sizes.values()),
        differentiable=False,
        row_axes=(0, 0),
    ),
)
