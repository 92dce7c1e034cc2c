"""Cases of ``motion_metrics``: noisy copies of a moving body near the floor, with and without masks and options."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._spec import Case, OpSpec, Tolerance
from . import motion_metrics


def _rotations(shape: tuple[int, ...], angle: float, generator: torch.Generator) -> Tensor:
    """Turns about random axes by about ``angle`` radians."""
    v = angle * torch.randn(*shape, 3, generator=generator, dtype=torch.float64)
    skew = torch.zeros(*shape, 3, 3, dtype=torch.float64)
    skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0] = v.unbind(-1)
    return torch.matrix_exp(skew - skew.transpose(-1, -2))


def _joints(batch: tuple[int, ...], frames: int, generator: torch.Generator) -> Tensor:
    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    body = noise(22, 3) * torch.tensor([0.2, 0.1, 0.4])
    joints = body + 0.02 * noise(*batch, frames, 22, 3).cumsum(-3)
    joints[..., 2] += 1.0
    feet = [7, 8, 10, 11]
    joints[..., feet, 2] = 0.03 + 0.03 * noise(*batch, frames, 4)
    return joints


def _make_inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    batch, frames = tuple(case.sizes["batch"]), case.sizes["frames"]
    target_batch = tuple(case.sizes.get("target_batch", batch))
    inputs = []
    for rotations in (None, 21, 1):
        for of, angle in ((batch, 0.9), (target_batch, 0.5)):
            if rotations is None:
                inputs.append(_joints(of, frames, generator))
            else:
                inputs.append(_rotations((*of, frames, rotations), angle, generator))
    inputs[4], inputs[5] = inputs[4][..., 0, :, :], inputs[5][..., 0, :, :]
    if not case.sizes.get("head", True):
        inputs = inputs[:4]
    return tuple(x.to(device, dtype).contiguous() for x in inputs)


def _call(
    case: Case,
    pred_joints: Tensor,
    target_joints: Tensor,
    pred_rotmats: Tensor,
    target_rotmats: Tensor,
    pred_head: Tensor | None = None,
    target_head: Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    mask = None
    if case.sizes.get("masked"):
        frame = torch.arange(case.sizes["frames"], device=pred_joints.device)
        mask = (frame % 7 != 4) & (frame < case.sizes["frames"] - 3)
    return tuple(
        motion_metrics(
            pred_joints, target_joints, pred_rotmats, target_rotmats, mask, pred_R_world_head=pred_head,
            target_R_world_head=target_head, backend=backend, **case.options,
        )
    )  # fmt: skip


def _bytes_moved(case: Case, dtype: torch.dtype) -> int:
    sequences = math.prod(case.sizes["batch"]) + math.prod(case.sizes.get("target_batch", case.sizes["batch"]))
    numbers = 3 * 22 + 9 * 21 + (9 if case.sizes.get("head", True) else 0)
    return dtype.itemsize * sequences * case.sizes["frames"] * numbers


SPECS = (
    OpSpec(
        name="motion_metrics",
        cases=(
            Case("samples_of_windows", {"batch": (3, 4), "target_batch": (3, 1), "frames": 37, "masked": True}),
            Case("all_frames", {"batch": (5,), "frames": 16}),
            Case("published", {"batch": (4,), "frames": 20, "head": False}, {"with_scale": False, "short_way": False}),
            Case("two_feet", {"batch": (2,), "frames": 9}, {"feet": (7, 8), "foot_heights": (0.05, 0.1), "fps": 60.0}),
            Case("one_masked", {"batch": (1,), "frames": 11, "masked": True}),
            Case("one_frame", {"batch": (), "frames": 1}),
            Case("empty", {"batch": (0, 2), "frames": 5}),
        ),
        make_inputs=_make_inputs,
        call=_call,
        tolerances={torch.float32: Tolerance(3e-6, 0.0), torch.float64: Tolerance(3e-13, 0.0)},
        bytes_moved=_bytes_moved,
        differentiable=False,
        row_axes=(3, 3, 4, 4, 3, 3),
    ),
)
