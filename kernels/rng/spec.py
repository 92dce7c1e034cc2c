"""Cases of ``philox_normal`` and ``philox_uniform``: every backend gives the reference's bits, so none may differ."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._spec import Case, OpSpec, Tolerance
from . import philox_normal, philox_uniform

_LARGEST = {"seed": 2**64 - 1, "iteration": 2**32 - 1, "stream": 15}


def _make_inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    """condition, member and step of each row."""
    generator = torch.Generator().manual_seed(seed)
    rows = (case.sizes["rows"],)
    limits = (2**32, 2**16, 2**16)
    return tuple(torch.randint(0, limit, rows, generator=generator).to(device) for limit in limits)


def _call_normal(case: Case, *key: Tensor, backend: str | None = None) -> tuple[Tensor]:
    return (philox_normal(case.sizes["shape"], **_fields(case, *key), backend=backend),)


def _call_uniform(case: Case, *key: Tensor, backend: str | None = None) -> tuple[Tensor]:
    return (philox_uniform(case.sizes["shape"], **_fields(case, *key), backend=backend),)


def _fields(case: Case, condition: Tensor, member: Tensor, step: Tensor) -> dict[str, Any]:
    fields = {"condition": condition, "member": member, "step": step}
    return {"seed": 2**40 + 11, "iteration": 3, "stream": 2, **fields, **case.options}


SPECS = tuple(
    OpSpec(
        name=name,
        cases=(
            Case("frames", {"rows": 5, "shape": (7, 45)}),
            Case("beyond_a_block", {"rows": 3, "shape": (4099,)}, _LARGEST),
            Case("whole_vectors", {"rows": 2, "shape": (16, 496)}),
            Case("one_each", {"rows": 4, "shape": ()}),
            Case("no_numbers", {"rows": 4, "shape": (0, 3)}),
            Case("empty", {"rows": 0, "shape": (5,)}),
        ),
        make_inputs=_make_inputs,
        call=call,
        tolerances={torch.float32: Tolerance(0.0, 0.0)},
        bytes_moved=lambda case, dtype: 4 * case.sizes["rows"] * math.prod(case.sizes["shape"]),
        differentiable=False,
        row_axes=(0, 0, 0),
    )
    for name, call in (("philox_normal", _call_normal), ("philox_uniform", _call_uniform))
)
