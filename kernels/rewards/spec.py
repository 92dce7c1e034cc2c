"""Cases of the rewards: bodies of SMPL-H's tree, near the recorded motion, in each representation."""

from __future__ import annotations

import torch
from torch import Tensor

from .._spec import Case, OpSpec, Tolerance
from . import JOINT_REWARDS, RewardSkeleton, group_rewards, motion_rewards

S = 16
J = 21
FPS = 3.0
"""Third differences of white noise times 30^3 would drown every other error."""


def _unit(values: Tensor) -> Tensor:
    return values / values.norm(dim=-1, keepdim=True)


def _rotations(axis_angle: Tensor) -> Tensor:
    skew = torch.zeros(*axis_angle.shape[:-1], 3, 3, dtype=axis_angle.dtype)
    for row, column, axis, sign in ((2, 1, 0, 1), (0, 2, 1, 1), (1, 0, 2, 1)):
        skew[..., row, column] = sign * axis_angle[..., axis]
        skew[..., column, row] = -sign * axis_angle[..., axis]
    return torch.linalg.matrix_exp(skew)


def _group_inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    B, G, T = case.sizes["B"], case.sizes["G"], case.sizes["T"]
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # A standing cloud whose lowest joints touch the floor.
    spread = torch.tensor([0.2, 0.3, 0.4], dtype=torch.float64)
    target = noise(B, 1, 1 + J, 3) * spread + 0.02 * noise(B, T, 1 + J, 3).cumsum(1)
    target = target + torch.tensor([0.5, -0.3, 0.5], dtype=torch.float64)
    joints = target[:, None] + 0.05 * noise(B, G, T, 1 + J, 3)
    angles = 0.5 * noise(B, T, J, 3)
    turned = angles[:, None] + 0.2 * noise(B, G, T, J, 3)
    tensors = (joints, target, _rotations(turned), _rotations(angles))
    return *(tensor.to(device, dtype).contiguous() for tensor in tensors), _mask(case, generator).to(device)


def _mask(case: Case, generator: torch.Generator) -> Tensor:
    B, G, T = case.sizes["B"], case.sizes["G"], case.sizes["T"]
    lengths = torch.randint(min(4, T), T + 1, (B, G), generator=generator)
    mask = torch.arange(T) < lengths[:, :, None]
    return mask if case.sizes["mask"] == "member" else mask[:, 0]


def _group_call(case: Case, *inputs: Tensor, backend: str | None = None) -> tuple[Tensor, ...]:
    result = group_rewards(
        *inputs, rewards=JOINT_REWARDS, fps=FPS, foot_heights=(0.8, 0.8, 0.4, 0.4), backend=backend, **case.options
    )
    return *result.errors.unbind(-1), result.rewards


def _motion_inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    B, G, T = case.sizes["B"], case.sizes["G"], case.sizes["T"]
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    angles = 0.3 * noise(B, 1, J, 3) + 0.05 * noise(B, T, J, 3).cumsum(1)
    turned = _rotations(angles[:, None] + 0.1 * noise(B, G, T, J, 3))
    representation = case.options["representation"]
    if representation == "state":
        raw = (turned + 0.05 * noise(*turned.shape)).flatten(3)
        motion = torch.cat((0.5 * noise(B, G, T, S), raw, noise(B, G, T, J)), -1)
    elif representation == "matrix":
        motion = turned
    elif representation == "quaternion":
        motion = noise(B, G, T, J, 4)
    else:
        motion = noise(B, G, T, J, 6)
    pose = torch.cat((noise(B, T, 4), 0.3 * noise(B, T, 2), 0.3 + 0.05 * noise(B, T, 1)), -1)
    pose[..., :4] = _unit(pose[..., :1, :4] + 0.02 * pose[..., :4].cumsum(1)) * 1.5
    bones = torch.cat((_unit(noise(J, 3)), 0.05 * noise(1, 3)), 0)
    bones[:J] *= 0.25
    recorded = noise(B, 1, 1 + J, 3) * 0.4 + 0.02 * noise(B, T, 1 + J, 3).cumsum(1)
    tensors = (
        motion, pose, recorded, _rotations(angles), bones[:J], bones[J], 0.01 * noise(J, 3, S), 0.01 * noise(3, S),
    )  # fmt: skip
    return *(tensor.to(device, dtype).contiguous() for tensor in tensors), _mask(case, generator).to(device)


def _motion_call(
    case: Case,
    motion: Tensor,
    T_world_cpf: Tensor,
    target_joints: Tensor,
    target_rotmats: Tensor,
    bones: Tensor,
    eyes: Tensor,
    bone_directions: Tensor,
    eye_directions: Tensor,
    mask: Tensor,
    *,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    # Bodies of a random shape at the height of the floor, so that some joints are below it.
    skeleton = RewardSkeleton(bones, eyes, bone_directions, eye_directions, foot_heights=(0.8, 0.8, 0.4, 0.4))
    result = motion_rewards(
        motion, T_world_cpf, target_joints, target_rotmats, skeleton, mask, rewards=JOINT_REWARDS, fps=FPS,
        with_advantages=False, backend=backend, **case.options,
    )  # fmt: skip
    return *result.errors.unbind(-1), result.rewards


def _bytes(case: Case, dtype: torch.dtype, per_frame: int) -> int:
    B, G, T = case.sizes["B"], case.sizes["G"], case.sizes["T"]
    shared = B * T * (3 * (1 + J) + 9 * J + 7)
    return (B * G * T * per_frame + shared + 2 * B * G * len(JOINT_REWARDS)) * dtype.itemsize


def _motion_bytes(case: Case, dtype: torch.dtype) -> int:
    per_frame = {"state": S + 9 * J, "matrix": 9 * J, "quaternion": 4 * J, "rot6d": 6 * J}
    return _bytes(case, dtype, per_frame[case.options["representation"]])


def _case(name: str, B: int, G: int, T: int, mask: str = "condition", **options: object) -> Case:
    return Case(name, {"B": B, "G": G, "T": T, "mask": mask}, options)


TOLERANCES = {torch.float32: Tolerance(3e-5, 2e-3), torch.float64: Tolerance(1e-12, 1e-9)}

SPECS = (
    OpSpec(
        name="group_rewards",
        cases=(
            _case("groups", 2, 3, 19),
            _case("mask_per_member", 2, 2, 9, "member", rotation_error="axis_angle", alignment="egoallo"),
            _case("frobenius", 1, 2, 33, rotation_error="frobenius"),
            _case("empty", 0, 2, 5),
        ),
        make_inputs=_group_inputs,
        call=_group_call,
        tolerances=TOLERANCES,
        bytes_moved=lambda case, dtype: _bytes(case, dtype, 3 * (1 + J) + 9 * J),
    ),
    OpSpec(
        name="motion_rewards",
        cases=(
            _case("state", 2, 3, 19, representation="state"),
            _case("mask_per_member", 2, 2, 9, "member", representation="state", alignment="egoallo"),
            _case("matrices", 1, 2, 33, representation="matrix", project=False),
            _case("quaternions", 1, 2, 7, representation="quaternion", rotation_error="axis_angle"),
            _case("columns", 1, 2, 7, representation="rot6d", rotation_error="frobenius"),
            _case("empty", 0, 2, 5, representation="state"),
        ),
        make_inputs=_motion_inputs,
        call=_motion_call,
        tolerances=TOLERANCES,
        bytes_moved=_motion_bytes,
    ),
)
