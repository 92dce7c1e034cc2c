"""Cases of ``procrustes_align`` and ``procrustes_residual``: clouds that are noisy similar copies of each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._spec import Case, OpSpec, Tolerance
from . import procrustes_align, procrustes_residual


def _make_inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    N = case.sizes["N"]

    def cloud(batch: tuple[int, ...]) -> Tensor:
        # A body-like cloud: longer than wide, wider than deep, a metre from the origin.
        shape = torch.tensor([0.3, 0.2, 0.6], dtype=torch.float64)
        points = torch.randn(*batch, N, 3, generator=generator, dtype=torch.float64) * shape
        return points + torch.tensor([0.5, -0.4, 1.0], dtype=torch.float64)

    source = cloud(case.sizes["source_batch"])
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    turn = turn * torch.linalg.det(turn)
    if case.sizes["mirrored"]:
        turn = -turn
    # The source's first batch elements, moved, give a target that its own clouds resemble.
    target = 1.3 * cloud(case.sizes["target_batch"]) @ turn.T
    if source.numel() and case.sizes["source_batch"] == case.sizes["target_batch"]:
        target = 1.3 * source @ turn.T + 0.1 * (target - target.mean(-2, keepdim=True))
    inputs = [source, target]
    if case.sizes["weights_batch"] is not None:
        inputs.append(torch.rand(*case.sizes["weights_batch"], N, generator=generator, dtype=torch.float64) + 0.1)
    return tuple(tensor.to(device, dtype).contiguous() for tensor in inputs)


def _call_align(
    case: Case, source: Tensor, target: Tensor, *weights: Tensor, backend: str | None = None
) -> tuple[Tensor, ...]:
    return tuple(procrustes_align(source, target, *weights, backend=backend, **case.options))


def _call_residual(
    case: Case, source: Tensor, target: Tensor, *weights: Tensor, backend: str | None = None
) -> tuple[Tensor, ...]:
    return (procrustes_residual(source, target, *weights, backend=backend, **case.options),)


def _case(
    name: str, N: int, source: tuple, target: tuple, weights: tuple | None, mirrored: bool = False, **options: bool
) -> Case:
    sizes = {"N": N, "source_batch": source, "target_batch": target, "weights_batch": weights, "mirrored": mirrored}
    return Case(name, sizes, options)


def _bytes_read(case: Case) -> int:
    N = case.sizes["N"]
    points = math.prod(case.sizes["source_batch"]) + math.prod(case.sizes["target_batch"])
    return N * (3 * points + math.prod(case.sizes["weights_batch"] or (0,)))


def _clouds(case: Case) -> int:
    return math.prod(torch.broadcast_shapes(case.sizes["source_batch"], case.sizes["target_batch"]))


_CASES = (
    _case("frames", 22, (6, 11), (6, 11), None),
    _case("weighted_rigid", 22, (40,), (40,), (40,), with_scale=False),
    _case("mirrored_without_fix", 22, (19,), (19,), (19,), mirrored=True, fix_det=False),
    _case("one_target_for_a_group", 22, (2, 4, 3), (2, 1, 3), (3,)),
    _case("three_points", 3, (20,), (20,), None),
    _case("one_pair", 22, (), (), ()),
    _case("empty", 22, (0, 5), (5,), (5,)),
)
_TOLERANCES = {torch.float32: Tolerance(1e-5, 1e-4), torch.float64: Tolerance(1e-13, 1e-11)}

SPECS = (
    OpSpec(
        name="procrustes_align",
        cases=_CASES,
        make_inputs=_make_inputs,
        call=_call_align,
        tolerances=_TOLERANCES,
        row_axes=(2, 2, 1),
        bytes_moved=lambda case, dtype: (
            (_bytes_read(case) + _clouds(case) * (3 * case.sizes["N"] + 9 + 3 + 1)) * dtype.itemsize
        ),
    ),
    OpSpec(
        name="procrustes_residual",
        cases=_CASES,
        make_inputs=_make_inputs,
        call=_call_residual,
        tolerances=_TOLERANCES,
        row_axes=(2, 2, 1),
        bytes_moved=lambda case, dtype: (_bytes_read(case) + _clouds(case)) * dtype.itemsize,
    ),
)
