"""Cases of ``project_so3``: matrices with given singular values, so that their projections are well defined."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._spec import Case, OpSpec, Tolerance
from . import project_so3


def _make_inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batch = tuple(case.sizes["batch"])
    U, V = (torch.linalg.qr(torch.randn(*batch, 3, 3, generator=generator, dtype=torch.float64))[0] for _ in range(2))
    spread = torch.rand(*batch, 3, generator=generator, dtype=torch.float64)
    # Near rotations all singular values are about 1; otherwise they keep a distance that both signs of the
    # determinant need. The random signs of U and V make half of the matrices improper.
    s = 0.9 + 0.2 * spread if case.sizes["near"] else torch.tensor([1.5, 0.8, 0.2]) + 0.4 * spread - 0.2
    if case.sizes["near"]:
        U = U * torch.linalg.det(U @ V).sign()[..., None, None]
    return (((U * s[..., None, :]) @ V).to(device, dtype).contiguous(),)


def _call(case: Case, matrices: Tensor, *, backend: str | None = None) -> tuple[Tensor]:
    return (project_so3(matrices, backend=backend, **case.options),)


SPECS = (
    OpSpec(
        name="project_so3",
        cases=(
            Case("near_rotations", {"batch": (257,), "near": True}),
            Case("any_determinant", {"batch": (31, 5), "near": False}),
            Case("no_det_fix", {"batch": (64,), "near": False}, {"fix_det": False}),
            Case("one", {"batch": (), "near": True}),
            Case("empty", {"batch": (0, 4), "near": True}),
        ),
        make_inputs=_make_inputs,
        call=_call,
        tolerances={torch.float32: Tolerance(3e-6, 3e-5), torch.float64: Tolerance(1e-13, 1e-11)},
        row_axes=(2,),
        bytes_moved=lambda case, dtype: 2 * 9 * math.prod(case.sizes["batch"]) * dtype.itemsize,
    ),
)
