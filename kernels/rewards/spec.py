"""Cases of the rewards: bodies near the recorded motion, in each representation.

What is constant to the ops (recordings, poses of the head, the skeleton) is no input here: tests differentiate with
respect to every input. It is drawn again for each call, and rounded to float32 so that every dtype sees the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._spec import Case, OpSpec, Tolerance
from . import JOINT_REWARDS, RewardSkeleton, StateChannels, group_rewards, motion_rewards

BODY_PARENTS = RewardSkeleton._field_defaults["parents"]
SMALL_PARENTS = (-1, 0, 1, -1)
FPS = 3.0
"""Third differences of white noise times 30^3 would drown every other error."""


class _Draw:
    """Normal-looking float64 tensors from one seed by arithmetic alone, which torch.compile can trace."""

    def __init__(self, seed: int) -> None:
        self.drawn = 1000 * seed

    def uniform(self, *shape: int) -> Tensor:
        count = math.prod(shape)
        places = torch.arange(self.drawn, self.drawn + count, dtype=torch.float64).view(shape)
        self.drawn += count
        return (torch.sin(12.9898 * places + 1.0) * 43758.5453).frac().abs()

    def __call__(self, *shape: int) -> Tensor:
        return torch.erfinv((2 * self.uniform(*shape) - 1).clamp(-0.999, 0.999)) * math.sqrt(2)

    def mask(self, case: Case) -> Tensor:
        B, G, T = case.sizes["B"], case.sizes["G"], case.sizes["T"]
        shortest = min(4, T)
        lengths = shortest + (self.uniform(B, G) * (T + 1 - shortest)).long()
        mask = torch.arange(T) < lengths[:, :, None]
        return mask if case.sizes["mask"] == "member" else mask[:, 0]


def _unit(values: Tensor) -> Tensor:
    return values / values.norm(dim=-1, keepdim=True)


def _rotations(axis_angle: Tensor) -> Tensor:
    skew = torch.zeros(*axis_angle.shape[:-1], 3, 3, dtype=axis_angle.dtype)
    for row, column, axis, sign in ((2, 1, 0, 1), (0, 2, 1, 1), (1, 0, 2, 1)):
        skew[..., row, column] = sign * axis_angle[..., axis]
        skew[..., column, row] = -sign * axis_angle[..., axis]
    return torch.linalg.matrix_exp(skew)


def _recording(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Joints (B, T, N, 3), rotation vectors (B, T, J, 3) and the mask, the same in every call."""
    B, T, J = case.sizes["B"], case.sizes["T"], len(case.sizes["parents"])
    draw = _Draw(1)
    # A standing cloud whose lowest joints are at the floor.
    spread = torch.tensor([0.2, 0.3, 0.4], dtype=torch.float64)
    joints = draw(B, 1, 1 + J, 3) * spread + 0.02 * draw(B, T, 1 + J, 3).cumsum(1)
    joints = joints + torch.tensor([0.5, -0.3, 0.5], dtype=torch.float64)
    angles = 0.3 * draw(B, 1, J, 3) + 0.05 * draw(B, T, J, 3).cumsum(1)
    return joints, angles, draw.mask(case)


def _like(values: Tensor, given: Tensor) -> Tensor:
    return values.float().to(given.device, given.dtype).contiguous()


def _given(tensors: tuple[Tensor, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    return tuple(tensor.to(device, dtype).contiguous() for tensor in tensors)


def _group_inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    G, draw = case.sizes["G"], _Draw(seed)
    joints, angles, _ = _recording(case)
    moved = joints[:, None] + 0.05 * draw(joints.shape[0], G, *joints.shape[1:])
    turned = angles[:, None] + 0.2 * draw(angles.shape[0], G, *angles.shape[1:])
    return _given((moved, _rotations(turned)), dtype, device)


def _group_call(case: Case, joints: Tensor, rotmats: Tensor, *, backend: str | None = None) -> tuple[Tensor, ...]:
    target, angles, mask = _recording(case)
    rows = len(case.sizes["parents"])
    result = group_rewards(
        joints, _like(target, joints), rotmats, _like(_rotations(angles), joints), mask.to(joints.device),
        rewards=JOINT_REWARDS, fps=FPS, head=rows - 1, feet=(rows, 1), foot_heights=(0.8, 0.4), backend=backend,
        **case.options,
    )  # fmt: skip
    return *(error.contiguous() for error in result.errors.unbind(-1)), result.rewards


def _motion_inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    B, G, T, J = case.sizes["B"], case.sizes["G"], case.sizes["T"], len(case.sizes["parents"])
    S, draw = case.sizes["S"], _Draw(seed)
    _, angles, _ = _recording(case)
    turned = _rotations(angles[:, None] + 0.1 * draw(B, G, T, J, 3))
    representation = case.options["representation"]
    if representation == "state":
        raw = (turned + 0.05 * draw(*turned.shape)).flatten(3)
        motion = torch.cat((0.5 * draw(B, G, T, S), raw, draw(B, G, T, J)), -1)
    elif representation == "matrix":
        motion = turned
    else:
        motion = draw(B, G, T, J, 4 if representation == "quaternion" else 6)
    return _given((motion,), dtype, device)


def _motion_call(case: Case, motion: Tensor, *, backend: str | None = None) -> tuple[Tensor, ...]:
    B, T, J, S = case.sizes["B"], case.sizes["T"], len(case.sizes["parents"]), case.sizes["S"]
    target, angles, mask = _recording(case)
    draw = _Draw(2)
    pose = torch.cat((draw(B, T, 4), 0.3 * draw(B, T, 2), 0.3 + 0.05 * draw(B, T, 1)), -1)
    # Of any length; the height is that of the floor, so that some joints are below it.
    pose[..., :4] = 1.5 * _unit(pose[:, :1, :4] + 0.02 * pose[..., :4].cumsum(1))
    skeleton = RewardSkeleton(
        _like(0.25 * _unit(draw(J, 3)), motion), _like(0.05 * draw(3), motion), _like(0.01 * draw(J, 3, S), motion),
        _like(0.01 * draw(3, S), motion), parents=case.sizes["parents"], head=case.sizes["head"],
        feet=(J - 1, 0), foot_heights=(0.8, 0.4),
    )  # fmt: skip
    result = motion_rewards(
        motion, _like(pose, motion), _like(target, motion), _like(_rotations(angles), motion), skeleton,
        mask.to(motion.device), channels=StateChannels(0, S), rewards=JOINT_REWARDS, fps=FPS, with_advantages=False,
        backend=backend, **case.options,
    )  # fmt: skip
    return *(error.contiguous() for error in result.errors.unbind(-1)), result.rewards


def _bytes(case: Case, dtype: torch.dtype, per_frame: int) -> int:
    B, G, T, J = case.sizes["B"], case.sizes["G"], case.sizes["T"], len(case.sizes["parents"])
    shared = B * T * (3 * (1 + J) + 9 * J + 7)
    return (B * G * T * per_frame + shared + 2 * B * G * len(JOINT_REWARDS)) * dtype.itemsize


def _group_bytes(case: Case, dtype: torch.dtype) -> int:
    J = len(case.sizes["parents"])
    return _bytes(case, dtype, 3 * (1 + J) + 9 * J)


def _motion_bytes(case: Case, dtype: torch.dtype) -> int:
    J, S = len(case.sizes["parents"]), case.sizes["S"]
    per_frame = {"state": S + 9 * J, "matrix": 9 * J, "quaternion": 4 * J, "rot6d": 6 * J}
    return _bytes(case, dtype, per_frame[case.options["representation"]])


def _case(
    name: str, B: int, G: int, T: int, mask: str = "condition", *, small: bool = False, **options: object
) -> Case:
    sizes = {"B": B, "G": G, "T": T, "mask": mask}
    body = {"parents": SMALL_PARENTS, "head": 2, "S": 2} if small else {"parents": BODY_PARENTS, "head": 14, "S": 16}
    return Case(name, {**sizes, **body}, options)


TOLERANCES = {torch.float32: Tolerance(3e-5, 2e-3), torch.float64: Tolerance(1e-11, 1e-8)}

SPECS = (
    OpSpec(
        name="group_rewards",
        cases=(
            _case("groups", 2, 3, 19),
            _case("mask_per_member", 2, 2, 9, "member", rotation_error="axis_angle", alignment="egoallo"),
            _case("frobenius", 1, 2, 33, rotation_error="frobenius"),
            _case("small", 1, 2, 5, small=True),
            _case("empty", 0, 2, 5),
        ),
        make_inputs=_group_inputs,
        call=_group_call,
        tolerances=TOLERANCES,
        bytes_moved=_group_bytes,
    ),
    OpSpec(
        name="motion_rewards",
        cases=(
            _case("state", 2, 3, 19, representation="state"),
            _case("mask_per_member", 2, 2, 9, "member", representation="state", alignment="egoallo"),
            _case("matrices", 1, 2, 33, representation="matrix", project=False),
            _case("quaternions", 1, 2, 7, representation="quaternion", rotation_error="axis_angle"),
            _case("columns", 1, 2, 7, representation="rot6d", rotation_error="frobenius"),
            _case("small", 1, 2, 5, small=True, representation="state"),
            _case("empty", 0, 2, 5, representation="state"),
        ),
        make_inputs=_motion_inputs,
        call=_motion_call,
        tolerances=TOLERANCES,
        bytes_moved=_motion_bytes,
    ),
)
