"""Rewards from joints and from network outputs: against the rewards of mgrpo on decoded motions, every backend against
the float64 reference, masks, gradients, recorded values."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mgrpo.body.default import default_body
from mgrpo.body.smplh import load_smplh
from mgrpo.eval import metrics
from mgrpo.geometry import axis_angle_to_quat, axis_angle_to_rotmat, quat_multiply, quat_to_rotmat, rotmat_to_quat
from mgrpo.kernels import (
    JOINT_REWARDS,
    RewardSkeleton,
    available_backends,
    explain_backend,
    forward_kinematics,
    group_advantages,
    group_rewards,
    motion_rewards,
    project_so3,
)
from mgrpo.models.motion import decode_motion
from mgrpo.models.state import StateLayout, pack_state
from mgrpo.rewards import RewardBatch, compute_rewards, reward_skeleton
from tests.golden import golden_file


def serves_the_cpu(backend: str) -> bool:
    """Whether it takes the tensors of these tests: where there is a GPU, its backends take only tensors on it."""
    return f"{backend:<10}yes" in explain_backend("motion_rewards", torch.empty(0))


FUSED = [name for name in available_backends("motion_rewards") if name != "reference" and serves_the_cpu(name)]
BACKENDS = ["reference", *FUSED]
LAYOUT = StateLayout(include_hands=False)
ERROR_TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}
GRADIENT_TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-8}
UNITS = {"jitter": 30.0**3 / 100, "velocity": 3.0, "foot_skate": 3.0}  # how much rounding of metres is magnified


def skeleton_of(body, dtype=torch.float64) -> RewardSkeleton:
    return reward_skeleton(body.to(dtype=dtype))


@dataclass
class Case:
    state: Tensor
    T_world_cpf: Tensor
    target_joints: Tensor
    target_rotmats: Tensor
    mask: Tensor
    betas: Tensor
    rotmats: Tensor

    def to(self, dtype) -> Case:
        parts = {name: value if name == "mask" else value.to(dtype) for name, value in vars(self).items()}
        return Case(**parts)

    def arguments(self, dtype=None) -> tuple:
        dtype = dtype or self.state.dtype
        return self.T_world_cpf, self.target_joints, self.target_rotmats, skeleton_of(default_body(), dtype), self.mask


def make_case(B=2, G=3, T=21, *, dtype=torch.float64, seed=0, raw=0.05) -> Case:
    """Predicted motions near a recorded one; ``raw`` is the noise that makes the matrices no rotations."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    body = default_body().to(dtype=torch.float64)
    angles = 0.3 * noise(B, 1, 21, 3) + 0.04 * noise(B, T, 21, 3).cumsum(1)
    betas = 0.5 * noise(B, 1, 16).expand(B, T, 16)
    heading = torch.cat((0.1 * noise(B, T, 3).cumsum(1), noise(B, 1, 3).expand(B, T, 3)), -1)
    upright = axis_angle_to_quat(torch.tensor([math.pi / 2, 0, 0], dtype=torch.float64))
    place = torch.cat((quat_multiply(axis_angle_to_quat(heading[..., :3]), upright), heading[..., 3:]), -1)
    # Low enough that feet reach the floor and some joints lie below it.
    place[..., 6] = 1.5 + 0.03 * noise(B, T).cumsum(1)
    target_rotmats = axis_angle_to_rotmat(angles)
    clean = pack_state(LAYOUT, betas, target_rotmats, torch.zeros(B, T, 21, dtype=torch.float64))
    target = decode_motion(LAYOUT, clean, place, body, project=False)
    rotmats = axis_angle_to_rotmat(angles[:, None] + 0.1 * noise(B, G, T, 21, 3))
    pred_betas = betas[:, None] + 0.2 * noise(B, G, T, 16)
    state = pack_state(LAYOUT, pred_betas, rotmats + raw * noise(*rotmats.shape), noise(B, G, T, 21))
    mask = torch.ones(B, T, dtype=torch.bool)
    return Case(state, place, target.joints22, target_rotmats, mask, pred_betas, rotmats).to(dtype)


def by_mgrpo(case: Case, names, body=None, **options) -> Tensor:
    """The rewards of mgrpo.rewards on the decoded motion."""
    body = (body or default_body()).to(dtype=case.state.dtype)
    prediction = decode_motion(LAYOUT, case.state, case.T_world_cpf[:, None], body)

    @dataclass
    class Target:
        joints: Tensor
        body_rotmats: Tensor
        mask: Tensor

    target = Target(case.target_joints, case.target_rotmats, case.mask)
    return compute_rewards(RewardBatch(prediction=prediction, target=target, **options), tuple(names))


def close(got, expected, tolerance, **options):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, **options)


def error_scale(names, like: Tensor) -> Tensor:
    return torch.tensor([UNITS.get(name, 1.0) for name in names], dtype=like.dtype, device=like.device)


# ---------------------------------------------------------------- the same numbers as mgrpo


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rotation_error", ["geodesic", "axis_angle", "frobenius"])
@pytest.mark.parametrize("alignment", ["standard", "egoallo"])
def test_equals_the_rewards_of_mgrpo(backend, rotation_error, alignment):
    case = make_case()
    case.mask[0, 15:] = False
    case.mask[1, 4] = False
    options = {"rotation_error": rotation_error, "alignment": alignment}
    expected = by_mgrpo(case, JOINT_REWARDS, **options)
    result = motion_rewards(case.state, *case.arguments(), rewards=JOINT_REWARDS, backend=backend, **options)
    close(result.rewards, expected, 1e-10)
    close(result.advantages, group_advantages(expected).advantages, 1e-6)
    prediction = decode_motion(LAYOUT, case.state, case.T_world_cpf[:, None], default_body().to(dtype=torch.float64))
    separate = group_rewards(
        prediction.joints22, case.target_joints, prediction.body_rotmats, case.target_rotmats, case.mask,
        rewards=JOINT_REWARDS, backend=backend, **options,
    )  # fmt: skip
    close(separate.rewards, expected, 1e-10)
    close(separate.errors, result.errors, 1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("names", [("rotation",), ("velocity", "position"), ("jitter",), ("aligned_position",)])
def test_a_set_holds_what_the_whole_holds(backend, names):
    case = make_case(T=9)
    whole = motion_rewards(case.state, *case.arguments(), rewards=JOINT_REWARDS, backend=backend)
    part = motion_rewards(case.state, *case.arguments(), rewards=names, backend=backend)
    columns = [JOINT_REWARDS.index(name) for name in names]
    assert torch.equal(part.errors, whole.errors[..., columns])
    assert torch.equal(part.rewards, whole.rewards[..., columns])


@pytest.mark.parametrize("backend", BACKENDS)
def test_arguments_that_no_reward_needs_may_be_missing(backend):
    case = make_case()
    T_world_cpf, joints, rotmats, skeleton, mask = case.arguments()
    whole = motion_rewards(case.state, T_world_cpf, joints, rotmats, skeleton, mask, backend=backend)
    turned = motion_rewards(
        case.state, T_world_cpf, None, rotmats, skeleton, mask, rewards=("rotation",), backend=backend
    )
    placed = motion_rewards(
        case.state, T_world_cpf, joints, None, skeleton, mask, rewards=("position",), backend=backend
    )
    close(turned.errors[..., 0], whole.errors[..., 2], 1e-12)
    close(placed.errors[..., 0], whole.errors[..., 0], 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_representations_agree(backend):
    case = make_case(raw=0.0)
    quaternions = rotmat_to_quat(case.rotmats)
    columns = torch.cat((case.rotmats[..., 0], case.rotmats[..., 1]), -1)
    options = {"rewards": JOINT_REWARDS, "backend": backend}
    state = motion_rewards(case.state, *case.arguments(), **options)
    for representation, motion in (
        ("matrix", case.rotmats),
        ("quaternion", 1.7 * quaternions),
        ("rot6d", columns * 0.6),
    ):
        got = motion_rewards(motion, *case.arguments(), representation=representation, betas=case.betas, **options)
        close(got.errors, state.errors, 1e-8)
    taken = motion_rewards(
        case.rotmats, *case.arguments(), representation="matrix", betas=case.betas, project=False, **options
    )
    close(taken.errors, state.errors, 1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_shape_for_all_frames_is_not_different_from_the_same_shape_in_each(backend):
    case = make_case()
    shape = case.betas[:, :1, :1]
    options = {"representation": "matrix", "rewards": JOINT_REWARDS, "backend": backend}
    shared = motion_rewards(case.rotmats, *case.arguments(), betas=shape, **options)
    copied = motion_rewards(case.rotmats, *case.arguments(), betas=shape.expand(2, 3, 21, 16).contiguous(), **options)
    assert torch.equal(shared.errors, copied.errors)
    mean = motion_rewards(case.rotmats, *case.arguments(), betas=None, **options)
    zero = motion_rewards(case.rotmats, *case.arguments(), betas=torch.zeros_like(shape), **options)
    close(mean.errors, zero.errors, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unprojected_matrices_are_taken_as_they_are(backend):
    case = make_case(raw=0.2)
    raw = motion_rewards(case.state, *case.arguments(), project=False, backend=backend)
    projected = motion_rewards(case.state, *case.arguments(), backend=backend)
    rotmats = case.state[..., 16:205].unflatten(-1, (21, 3, 3))
    options = {"representation": "matrix", "betas": case.state[..., :16], "project": False, "backend": backend}
    same = motion_rewards(rotmats, *case.arguments(), **options)
    by_hand = motion_rewards(project_so3(rotmats), *case.arguments(), **options)
    assert torch.equal(raw.errors, same.errors)
    close(by_hand.errors, projected.errors, 1e-9)
    assert (raw.errors - projected.errors).abs().max() > 1e-3


# ---------------------------------------------------------------- masks and what is not scorable


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per_member", [False, True])
def test_frames_that_do_not_count_may_hold_nan(backend, per_member):
    case, broken = make_case(), make_case()
    mask = torch.rand(2, 3, 21, generator=torch.Generator().manual_seed(1)) < 0.8
    mask = mask if per_member else mask[:, 0]
    case.mask = broken.mask = mask
    ignored = ~(mask if per_member else mask[:, None].expand(2, 3, 21))
    broken.state[ignored] = math.nan
    nowhere = ~mask.any(1) if per_member else ~mask
    for tensor in (broken.T_world_cpf, broken.target_joints, broken.target_rotmats):
        tensor[nowhere] = math.nan
    results, grads = [], []
    for variant in (case, broken):
        state = variant.state.clone().requires_grad_()
        result = motion_rewards(state, *variant.arguments(), rewards=JOINT_REWARDS, backend=backend)
        results.append(result.errors.detach())
        grads.append(torch.autograd.grad(result.errors.sum(), state)[0])
    assert torch.isfinite(results[0]).all() and torch.equal(*results)
    assert torch.equal(*grads) and (grads[0][ignored] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_after_the_mask_do_not_change_a_sequence(backend):
    # A sequence in a longer batch is the sequence alone.
    long = make_case(T=40)
    grouped = ("state", "betas", "rotmats")
    parts = {name: value[:, :, :13] if name in grouped else value[:, :13] for name, value in vars(long).items()}
    short = Case(**parts)
    long.mask[:, 13:] = False
    got, expected = (
        motion_rewards(case.state, *case.arguments(), rewards=JOINT_REWARDS, backend=backend).errors
        for case in (long, short)
    )
    close(got, expected, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("frames", "counted"), [(1, 1), (2, 2), (3, 3), (4, 4), (6, 0)])
def test_what_cannot_be_scored_is_nan(backend, frames, counted):
    case = make_case(T=frames)
    case.mask[0, counted:] = False
    result = motion_rewards(case.state, *case.arguments(), rewards=JOINT_REWARDS, backend=backend)
    needed = {"velocity": 2, "foot_skate": 2, "jitter": 4}
    for column, name in enumerate(JOINT_REWARDS):
        assert result.errors[0, :, column].isnan().all() == (counted < needed.get(name, 1)), name
        assert result.rewards[0, :, column].isnan().all() == (counted < needed.get(name, 1)), name
    assert torch.isfinite(result.advantages).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_in_one_member_stays_there(backend, bad):
    case = make_case()
    clean = motion_rewards(case.state, *case.arguments(), rewards=JOINT_REWARDS, backend=backend)
    case.state[0, 1, 3, 35] = bad  # in the first joint of the spine, on which every other joint hangs
    dirty = motion_rewards(case.state, *case.arguments(), rewards=JOINT_REWARDS, backend=backend)
    assert dirty.errors[0, 1].isnan().all() and dirty.advantages[0, 1] == 0
    others = torch.ones(2, 3, dtype=torch.bool)
    others[0, 1] = False
    assert torch.equal(dirty.errors[others], clean.errors[others])


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend):
    case = make_case(B=0)
    result = motion_rewards(case.state, *case.arguments(), rewards=JOINT_REWARDS, backend=backend)
    assert result.errors.shape == (0, 3, 8) and result.advantages.shape == (0, 3)


# ---------------------------------------------------------------- backends against the reference


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("frames", [5, 16, 50])
def test_backend_equals_the_float64_reference(backend, dtype, frames):
    case = make_case(T=frames).to(dtype)
    case.mask[1, 3] = False
    for rotation_error in ("geodesic", "axis_angle", "frobenius"):
        for alignment in ("standard", "egoallo"):
            options = {"rewards": JOINT_REWARDS, "rotation_error": rotation_error, "alignment": alignment}
            got = motion_rewards(case.state, *case.arguments(), backend=backend, **options)
            wide = case.to(torch.float64)
            expected = motion_rewards(wide.state, *wide.arguments(), backend="reference", **options)
            scale = error_scale(JOINT_REWARDS, expected.errors)
            # The body is float32 in one and its float64 copy in the other: equal numbers.
            assert got.errors.dtype == dtype and got.rewards.dtype == dtype
            close(got.errors.double() / scale, expected.errors / scale, ERROR_TOLERANCE[dtype], equal_nan=True)
            tolerance = 1e-4 if dtype == torch.float32 else 1e-9
            close(got.rewards.double(), expected.rewards, tolerance, equal_nan=True)


@pytest.mark.parametrize("backend", FUSED)
def test_a_row_alone_is_the_row_in_the_batch(backend):
    case = make_case(B=3, G=4, T=37, dtype=torch.float32)
    case.mask[1, 20:] = False
    options = {"rewards": JOINT_REWARDS, "backend": backend, "with_advantages": False}
    whole = motion_rewards(case.state, *case.arguments(), **options)
    again = motion_rewards(case.state, *case.arguments(), **options)
    assert torch.equal(whole.errors, again.errors)
    for b in range(3):
        for g in range(4):
            alone = motion_rewards(
                case.state[b : b + 1, g : g + 1], case.T_world_cpf[b : b + 1], case.target_joints[b : b + 1],
                case.target_rotmats[b : b + 1], case.arguments()[3], case.mask[b : b + 1], **options,
            )  # fmt: skip
            assert torch.equal(alone.errors[0, 0], whole.errors[b, g])


@pytest.mark.skipif("cpp" not in BACKENDS, reason="the native extension is not built")
def test_thread_count_changes_nothing():
    case = make_case(B=3, G=4, T=37, dtype=torch.float32)
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            state = case.state.clone().requires_grad_()
            result = motion_rewards(state, *case.arguments(), rewards=JOINT_REWARDS, backend="cpp")
            results.append((result.errors, torch.autograd.grad(result.errors.sum(), state)[0]))
    finally:
        torch.set_num_threads(threads)
    for errors, grad in results[1:]:
        assert torch.equal(errors, results[0][0]) and torch.equal(grad, results[0][1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_are_read_in_place_and_left_alone(backend):
    case = make_case(dtype=torch.float32)
    options = {"rewards": JOINT_REWARDS, "backend": backend}
    expected = motion_rewards(case.state, *case.arguments(), **options)
    strided = Case(
        state=case.state.transpose(0, 2).contiguous().transpose(0, 2),
        T_world_cpf=torch.cat((case.T_world_cpf, case.T_world_cpf), -1)[..., :7],
        target_joints=case.target_joints.movedim(-1, 0).contiguous().movedim(0, -1),
        target_rotmats=case.target_rotmats.mT.contiguous().mT,
        mask=case.mask.t().contiguous().t(),
        betas=case.betas,
        rotmats=case.rotmats,
    )
    before = [value.clone() for value in vars(strided).values()]
    got = motion_rewards(strided.state, *strided.arguments(), **options)
    if backend == "reference":  # a matrix product may sum strided operands in another order
        close(got.errors, expected.errors, 1e-4)
    else:
        assert torch.equal(got.errors, expected.errors)
    assert all(torch.equal(now, then) for now, then in zip(vars(strided).values(), before))


@pytest.mark.parametrize("backend", FUSED)
def test_another_tree(backend):
    generator = torch.Generator().manual_seed(3)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    skeleton = RewardSkeleton(
        0.3 * noise(6, 3), 0.1 * noise(3), 0.01 * noise(6, 3, 2), 0.01 * noise(3, 2),
        parents=(-1, 0, 1, 1, 3, -1), head=4, feet=(5, 2), foot_heights=(0.3, 0.5),
    )  # fmt: skip
    motion, pose, joints = noise(2, 2, 9, 6, 3, 3), noise(2, 9, 7), noise(2, 9, 7, 3)
    rotmats, betas = axis_angle_to_rotmat(noise(2, 9, 6, 3)), noise(2, 1, 1, 2)
    results, grads, grads_of_betas_alone = [], [], []
    for name in (backend, "reference"):
        leaves = motion.clone().requires_grad_(), betas.clone().requires_grad_()
        for given, found in ((leaves[0], grads), (motion, grads_of_betas_alone)):
            errors = motion_rewards(
                given, pose, joints, rotmats, skeleton, representation="matrix", betas=leaves[1],
                rewards=JOINT_REWARDS, backend=name,
            ).errors  # fmt: skip
            wanted = [leaf for leaf in (given, leaves[1]) if leaf.requires_grad]
            found.append(torch.autograd.grad((errors / error_scale(JOINT_REWARDS, errors)).sum(), wanted))
        results.append(errors.detach())
    close(*results, 1e-9)
    for got, expected in zip(*grads):
        close(got, expected, 1e-7)
    close(*(grad[0] for grad in grads_of_betas_alone), 1e-7)


# ---------------------------------------------------------------- gradients


def gradients(case: Case, backend: str, name: str, seed: int = 5, **options) -> Tensor:
    state = case.state.clone().requires_grad_()
    result = motion_rewards(
        state, *case.arguments(), rewards=(name,), backend=backend, with_advantages=False, **options
    )
    weights = torch.randn(2, *result.errors.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = weights.to(state.dtype)
    # Both results at once: their gradients add up.
    return torch.autograd.grad((weights[0] * result.errors + weights[1] * result.rewards).sum(), state)[0]


@pytest.mark.parametrize("name", JOINT_REWARDS)
def test_gradient_of_the_reference(name):
    case = make_case(B=1, G=2, T=6, raw=0.02)

    def call(part: Tensor) -> Tensor:
        state = case.state.clone()
        state[..., 2:120:13] = part
        return motion_rewards(state, *case.arguments(), rewards=(name,), backend="reference", with_advantages=False)[0]

    part = case.state[..., 2:120:13].clone().requires_grad_()
    torch.autograd.gradcheck(call, (part,), eps=1e-7, atol=1e-4)


@pytest.mark.skipif("cpp" not in BACKENDS, reason="the native extension is not built")
@pytest.mark.parametrize("name", JOINT_REWARDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_equals_that_of_the_reference(name, dtype):
    variants = [{}]
    if name == "rotation":
        variants = [{"rotation_error": kind} for kind in ("geodesic", "axis_angle", "frobenius")]
    elif name == "aligned_position":
        variants = [{"alignment": kind} for kind in ("standard", "egoallo")]
    for options in variants:
        for frames in (5, 23):
            case = make_case(T=frames, raw=0.03).to(dtype)
            case.mask[0, 2] = False
            got = gradients(case, "cpp", name, **options).double()
            expected = gradients(case.to(torch.float64), "reference", name, **options)
            size = expected.abs().max()
            assert size > 0
            close(got / size, expected / size, GRADIENT_TOLERANCE[dtype])
            assert (got - expected).norm() < 0.3 * GRADIENT_TOLERANCE[dtype] * expected.norm()


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize(
    ("representation", "project"), [("matrix", True), ("matrix", False), ("quaternion", True), ("rot6d", True)]
)
def test_gradient_of_other_representations(backend, representation, project):
    case = make_case(T=7, raw=0.0)
    case.mask[0, 2] = False
    motion = {
        "matrix": case.state[..., 16:205].unflatten(-1, (21, 3, 3)) * 1.1,
        "quaternion": 1.3 * rotmat_to_quat(case.rotmats),
        "rot6d": torch.cat((1.2 * case.rotmats[..., 0], case.rotmats[..., 1] + 0.1 * case.rotmats[..., 0]), -1),
    }[representation]
    grads = []
    for name in (backend, "reference"):
        leaf, betas = motion.clone().requires_grad_(), case.betas[:, :, :1].clone().requires_grad_()
        result = motion_rewards(
            leaf, *case.arguments(), representation=representation, betas=betas, project=project,
            rewards=JOINT_REWARDS, backend=name,
        )  # fmt: skip
        grads.append(torch.autograd.grad(result.rewards.square().sum(), (leaf, betas)))
    for got, expected in zip(*grads):
        assert expected.abs().max() > 0
        close(got, expected, 1e-8)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("alignment", ["standard", "egoallo"])
def test_gradient_with_respect_to_given_joints(backend, alignment):
    case = make_case(T=9)
    prediction = decode_motion(LAYOUT, case.state, case.T_world_cpf[:, None], default_body().to(dtype=torch.float64))
    case.mask[0, 6:] = False
    grads = []
    for name in (backend, "reference"):
        joints = prediction.joints22.detach().clone().requires_grad_()
        rotmats = prediction.body_rotmats.detach().clone().requires_grad_()
        result = group_rewards(
            joints, case.target_joints, rotmats, case.target_rotmats, case.mask, rewards=JOINT_REWARDS,
            alignment=alignment, backend=name,
        )  # fmt: skip
        grads.append(torch.autograd.grad(result.rewards.sum() + result.errors.square().sum(), (joints, rotmats)))
    for got, expected in zip(*grads):
        close(got, expected, 1e-7)


def given_bodies(N: int, T: int = 9) -> tuple[Tensor, ...]:
    """Predicted and recorded joints near the floor, predicted and recorded rotations, a mask."""
    generator = torch.Generator().manual_seed(9)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    target = noise(2, 1, N, 3) + 0.05 * noise(2, T, N, 3)
    turned = 0.3 * noise(2, T, 4, 3)
    joints, angles = target[:, None] + 0.1 * noise(2, 2, T, N, 3), turned[:, None] + 0.4 * noise(2, 2, T, 4, 3)
    joints[0, 0, T // 2 :, :, 2] += 5  # above the floor
    joints[:, 1] = target.mean(1, keepdim=True) + 0.01 * noise(2, T, N, 3)  # smoother than the recording
    mask = torch.ones(2, T, dtype=torch.bool)
    mask[0, 2] = mask[1, T - 1] = False
    return joints, target, axis_angle_to_rotmat(angles), axis_angle_to_rotmat(turned), mask


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("name", JOINT_REWARDS)
def test_gradient_of_each_reward_by_itself(backend, name):
    options = [{}]
    if name == "rotation":
        options = [{"rotation_error": kind} for kind in ("geodesic", "axis_angle", "frobenius")]
    elif name == "aligned_position":
        options = [{"alignment": kind} for kind in ("standard", "egoallo")]
    joints, target, rotmats, turned, mask = given_bodies(7)
    points = {"head": 5, "feet": (6, 1, 1), "foot_heights": (0.7, 0.3, 2.0)}  # a foot may stand there twice
    for variant in options:
        pairs = []
        for chosen in (backend, "reference"):
            leaf = (rotmats if name == "rotation" else joints).clone().requires_grad_()
            given = (None, None, leaf, turned) if name == "rotation" else (leaf, target, None, None)
            result = group_rewards(*given, mask, rewards=(name,), backend=chosen, **points, **variant)
            loss = (result.errors * torch.tensor([1.0, -2.0]).double()[:, None]).sum() + result.rewards.sum()
            pairs.append((result.errors.detach(), torch.autograd.grad(loss, leaf)[0]))
        (errors, grad), (expected, expected_grad) = pairs
        close(errors / UNITS.get(name, 1.0), expected / UNITS.get(name, 1.0), 1e-11)
        size = expected_grad.abs().max()
        assert size > 0
        close(grad / size, expected_grad / size, 1e-9)


@pytest.mark.parametrize("backend", FUSED)
def test_gradients_of_a_row_are_its_own(backend):
    joints, target, rotmats, turned, mask = given_bodies(7, T=6)

    def gradients_of(joints: Tensor, rotmats: Tensor, conditions: slice) -> tuple[Tensor, ...]:
        leaves = joints.float().requires_grad_(), rotmats.float().requires_grad_()
        result = group_rewards(
            leaves[0], target[conditions].float(), leaves[1], turned[conditions].float(), mask[conditions],
            rewards=JOINT_REWARDS, head=5, feet=(6, 1), foot_heights=(0.7, 0.3), backend=backend,
        )  # fmt: skip
        return torch.autograd.grad(result.rewards.sum(), leaves)

    whole = gradients_of(joints, rotmats, slice(0, 2))
    for b, g in ((0, 1), (1, 0)):
        row = slice(b, b + 1), slice(g, g + 1)
        alone = gradients_of(joints[row], rotmats[row], row[0])
        assert all(torch.equal(one[0, 0], every[b, g]) for one, every in zip(alone, whole, strict=True))
    joints[1, 0, 3, 2, 1], rotmats[1, 0, 3, 0, 0, 1] = math.nan, math.inf
    spoilt = gradients_of(joints, rotmats, slice(0, 2))
    for got, expected in zip(spoilt, whole, strict=True):
        assert not torch.isfinite(got[1, 0]).all()
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1, 1], expected[1, 1])


@pytest.mark.parametrize("backend", [name for name in FUSED if name != "cuda"])
def test_more_points_than_a_block_has(backend):
    joints, target, rotmats, turned, mask = given_bodies(150, T=5)
    joints[:, :, 0, 140, 2] = joints[:, :, 1, 140, 2] = -9.0  # the deepest, in the second block,
    joints[:, :, 1, 20, 2] = -9.0  # and one that is as deep in the first
    found = []
    for chosen in (backend, "reference"):
        leaf = joints.clone().requires_grad_()
        result = group_rewards(
            leaf, target, rotmats, turned, mask, rewards=JOINT_REWARDS, head=140, feet=(3, 149),
            foot_heights=(0.5, 0.9), fps=2.0, backend=chosen,
        )  # fmt: skip
        found.append((result.errors, torch.autograd.grad(result.errors.nansum(), leaf)[0]))
    (errors, grad), (expected, expected_grad) = found
    close(errors, expected, 1e-10, equal_nan=True)
    close(grad, expected_grad, 1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_distances_vanish_the_gradient_is_zero(backend):
    case = make_case(raw=0.0)
    joints = case.target_joints[:, None]
    leaf = joints.clone().requires_grad_()
    turns = case.target_rotmats[:, None].clone().requires_grad_()
    result = group_rewards(
        leaf,
        joints[:, 0],
        turns,
        case.target_rotmats,
        backend=backend,
        rewards=("position", "velocity", "head_position"),
    )
    assert (result.errors == 0).all()
    assert (torch.autograd.grad(result.errors.sum(), leaf)[0] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_where_the_sequence_cannot_be_scored(backend):
    case = make_case(T=3)
    state = case.state.clone().requires_grad_()
    result = motion_rewards(state, *case.arguments(), rewards=("jitter", "position"), backend=backend)
    grad = torch.autograd.grad(result.errors[..., 1].sum(), state)[0]
    assert torch.isfinite(grad).all() and grad.abs().max() > 0


# ---------------------------------------------------------------- advantages and the rest of the interface


@pytest.mark.parametrize("backend", BACKENDS)
def test_extra_rewards_and_advantage_options_are_passed_on(backend):
    case = make_case(G=4)
    score = torch.rand(2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    options = {"scheme": "sum_then_normalize", "weights": (1.0, 2.0, 0.5), "clamp": 0.7}
    names = ("position", "velocity")
    result = motion_rewards(
        case.state, *case.arguments(), rewards=names, slopes={"velocity": 3.0}, extra_rewards=score,
        advantage_options=options, backend=backend,
    )  # fmt: skip
    assert result.errors.shape == (2, 4, 2) and result.rewards.shape == (2, 4, 3)
    torch.testing.assert_close(result.rewards[..., 1], torch.exp(-3 * result.errors[..., 1]))
    torch.testing.assert_close(result.rewards[..., 0], torch.exp(-result.errors[..., 0]))
    assert torch.equal(result.rewards[..., 2], score)
    # The reference takes its own advantages too, which differ in the last bits.
    expected = group_advantages(result.rewards, **options, backend="reference" if backend == "reference" else None)
    for name in ("advantages", "per_reward", "std", "dead", "alive"):
        assert torch.equal(getattr(result, name), getattr(expected, name))
    alone = motion_rewards(case.state[:, :1], *case.arguments(), with_advantages=False, backend=backend)
    assert alone.advantages is None and alone.errors.shape == (2, 1, 4)


@pytest.mark.parametrize("backend", FUSED)
def test_operator_registration(backend):
    case = make_case(T=5, dtype=torch.float32)
    T_world_cpf, joints, rotmats, skeleton, mask = case.arguments()
    state = case.state.clone().requires_grad_()
    valid = mask[:, None].expand(2, 3, 5)
    numbers = ((0, 1, 2, 6), (1.0, 1.0, 1.0, 0.1), 30.0, 0, 0, backend)
    torch.library.opcheck(
        torch.ops.mgrpo.motion_rewards,
        (state[..., 16:205], state[..., :16], T_world_cpf, joints, rotmats, valid, skeleton.t_parent_joint,
         skeleton.t_head_cpf, skeleton.t_parent_joint_shapedirs, skeleton.t_head_cpf_shapedirs,
         skeleton.parents, 14, (), (), 0, True, *numbers),
    )  # fmt: skip
    torch.library.opcheck(
        torch.ops.mgrpo.group_rewards,
        (joints[:, None].clone().requires_grad_(), joints, None, None, mask[:, None], 15, (), (), (0, 1, 3),
         (1.0,) * 3, 30.0, 0, 0, backend),
    )  # fmt: skip


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name in ("reference", "cpp")])
def test_compiles_without_graph_breaks(backend):
    case = make_case(T=5, dtype=torch.float32)
    arguments = case.arguments()

    def loss(state):
        result = motion_rewards(state, *arguments, rewards=("position", "jitter"), backend=backend)
        return result.errors.sum() + result.advantages.sum(), result.advantages

    state = case.state.clone().requires_grad_()
    expected, advantages = loss(state)
    got, compiled_advantages = torch.compile(loss, fullgraph=True, backend="aot_eager")(state)
    close(got, expected, 1e-5)
    close(compiled_advantages, advantages, 1e-4)
    close(*(torch.autograd.grad(value, state)[0] for value in (got, expected)), 1e-4)


def test_the_reference_asks_no_other_backend_for_the_advantages():
    # A fused one refuses torch.func.grad, and may not be built.
    case = make_case(T=4)

    def total(state: Tensor) -> Tensor:
        return motion_rewards(state, *case.arguments(), backend="reference").rewards.sum()

    wanted = case.state.clone().requires_grad_()
    total(wanted).backward()
    torch.testing.assert_close(torch.func.grad(total)(case.state), wanted.grad)
    chosen = motion_rewards(
        case.state, *case.arguments(), backend="reference", advantage_options={"backend": "reference"}
    )
    assert chosen.advantages is not None, "the group's own backend may be named beside the rewards'"


# ---------------------------------------------------------------- recorded values


PUBLISHED_ADVANTAGES = {"eps": 1e-8, "dead_abs": 0.0, "dead_ratio": 0.0}
COMPONENTS = {
    "position": ("mpjpe", "pose_weight"),
    "aligned_position": ("pampjpe", "pose_weight"),
    "velocity": ("mpjve", "velocity_weight"),
    "rotation": ("mpjre", "rotation_weight"),
}
"""Our rewards, the prototype's name for each of them, and its slope."""


def recorded_case(path: Path) -> tuple[dict[str, Tensor], dict[str, dict[str, float]], float]:
    """Arrays of a rewards file, in float64 where they are numbers; the sets of slopes; the factor of ``gp_reward``."""
    with np.load(path, allow_pickle=False) as arrays:
        case = {name: torch.from_numpy(arrays[name]).double() for name in arrays.files}
    described = json.loads(path.with_name("weights.json").read_text())
    return case, described["weight_sets"], described["gp_metric_coefficient"]


def grouped(case: dict[str, Tensor], rows: Tensor) -> Tensor:
    """Rows ``(B G, ...)`` as ``(B, G, ...)``."""
    return rows.unflatten(0, (-1, int(case["group_size"])))


def recorded_arguments(case: dict[str, Tensor]) -> tuple:
    """All that motion_rewards takes beside the motion of the recorded cases."""
    body = load_smplh(golden_file("body/*.npz"), with_mesh=False, dtype=torch.float64)
    target = quat_to_rotmat(case["label_body_quats"])
    return case["label_T_world_cpf"], case["label_joint_positions22"], target, skeleton_of(body)


# float32's rounding of the recorded numbers; of the errors, that of the inputs too; in advantages, what a spread of
# about a hundredth makes of it
RECORDED_REWARDS, RECORDED_ERRORS, RECORDED_ADVANTAGES = 4e-7, 2e-6, 1e-4


def recorded_slopes(weights: dict[str, float]) -> dict[str, float]:
    return {name: weights[key] for name, (_, key) in COMPONENTS.items()}


@pytest.mark.golden("rewards/rewards*.npz")
@pytest.mark.parametrize("backend", BACKENDS)
def test_recorded_rewards(golden_path: Path, backend: str):
    """From matrices to errors, rewards and advantages in one call. The recorded rewards are float32: theirs is all the
    difference, and the advantages, which divide it by the spread inside a group, magnify it."""
    case, weight_sets, _ = recorded_case(golden_path)
    arguments = (grouped(case, case["pred_body_rotmats"]), *recorded_arguments(case))
    common = {
        "rewards": tuple(COMPONENTS), "representation": "matrix", "betas": grouped(case, case["pred_betas"]),
        "backend": backend,
    }  # fmt: skip
    standard = motion_rewards(*arguments, rotation_error="frobenius", **common).errors.flatten(0, 1)
    for column, name in enumerate(("mpjpe_m", "pa_mpjpe_standard_m", "mpjve_m_s", "rot_frobenius_mean")):
        close(standard[:, column], case[f"np64_{name}"], RECORDED_ERRORS)
    published = {"alignment": "egoallo", "rotation_error": "axis_angle"}
    errors = motion_rewards(*arguments, **published, **common).errors.flatten(0, 1)
    close(errors[:, 1], case["np64_pa_mpjpe_as_coded_m"], RECORDED_ERRORS)
    for label_set, weights in weight_sets.items():
        got = motion_rewards(
            *arguments, slopes=recorded_slopes(weights), advantage_options=PUBLISHED_ADVANTAGES, **published, **common
        )
        for column, (name, _) in enumerate(COMPONENTS.values()):
            recorded = case[f"proper_{label_set}_{name}_reward"]
            close(got.rewards[..., column].flatten(), recorded, RECORDED_REWARDS)
        recorded = case[f"proper_{label_set}_advantages_sum_of_4_components"]
        close(got.advantages.flatten(), recorded, RECORDED_ADVANTAGES)


def prototype_bodies(case: dict[str, Tensor], kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Places of the root ``(B G, T, 3)``, joints ``(B G, T, 22, 3)`` and local rotations of a recorded kind of motion.

    The prototype makes quaternions of what its sampler outputs (``raw``: matrices that are no rotations) and chains
    them without normalising, so that a joint scales what hangs from it. So do the matrices here, which are as much too
    long: placed by the head's transposed matrix, as theirs is by the conjugate quaternion.
    """
    rotmats = case["pred_body_rotmats"].float()
    if kind == "raw":
        rotmats = rotmats + case["pred_body_rotmats_noise_int8"].float() / case["noise_denominator"].float()
    quats = rotmat_to_quat(rotmats.double())
    scaled = quat_to_rotmat(quats) * quats.square().sum(-1)[..., None, None]
    pose, _, _, skeleton = recorded_arguments(case)
    pose = pose.repeat_interleave(int(case["group_size"]), 0)
    betas = case["pred_betas"]
    offsets = skeleton.t_parent_joint + torch.einsum("jks,...s->...jk", skeleton.t_parent_joint_shapedirs, betas)
    eyes = skeleton.t_head_cpf + torch.einsum("ks,...s->...k", skeleton.t_head_cpf_shapedirs, betas)
    origin = pose.new_tensor([1.0, 0, 0, 0, 0, 0, 0]).expand(*betas.shape[:-1], 7)
    hung = forward_kinematics(scaled, offsets, skeleton.parents, origin)
    head = hung.R_world_joint[..., skeleton.head, :, :]
    R_world_cpf = quat_to_rotmat(pose[..., :4])
    R_world_root = R_world_cpf @ head.mT
    at_head = (head.mT @ hung.joints[..., skeleton.head, :, None])[..., 0]
    t_world_root = pose[..., 4:] - (R_world_cpf @ (eyes + at_head)[..., None])[..., 0]
    joints = (R_world_root[..., None, :, :] @ hung.joints[..., None])[..., 0] + t_world_root[..., None, :]
    return t_world_root, torch.cat((t_world_root[..., None, :], joints), dim=-2), quat_to_rotmat(quats)


@pytest.mark.golden("rewards/rewards*.npz")
@pytest.mark.parametrize("kind", ["proper", "raw"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_recorded_rewards_of_posed_bodies(golden_path: Path, backend: str, kind: str):
    """Every component that the prototype reports, from joints, and its totals. The score of its stand-in for a critic
    is given: what that looked at is not recorded."""
    case, weight_sets, penetration_factor = recorded_case(golden_path)
    group = int(case["group_size"])
    root, joints, rotmats = prototype_bodies(case, kind)
    close(root, case[f"{kind}_pred_T_world_root"][..., 4:], 2e-6)
    frames = joints.shape[1] // case[f"{kind}_pred_joint_positions22"].shape[1]  # every so many frames are recorded
    close(joints[:, ::frames], case[f"{kind}_pred_joint_positions22"], 3e-6)
    _, target_joints, target_rotmats, _ = recorded_arguments(case)
    recorded = {name.removeprefix(f"{kind}_"): value for name, value in case.items() if name.startswith(f"{kind}_")}

    close(metrics.gnd(joints), recorded["foot_contact_reward"], 0)
    # the mean jerk of the whole batch, to that of each recording; third differences of float32 positions
    jerk = metrics.jitter_m_s3(joints).mean() / metrics.jitter_m_s3(target_joints)
    close(jerk.repeat_interleave(group), recorded["jitter_reward"], 2e-5)
    for label_set, weights in weight_sets.items():
        scores = group_rewards(
            grouped(case, joints), target_joints, grouped(case, rotmats), target_rotmats, rewards=tuple(COMPONENTS),
            alignment="egoallo", rotation_error="axis_angle", slopes=recorded_slopes(weights), backend=backend,
        ).rewards.flatten(0, 1)  # fmt: skip
        parts = dict(zip((name for name, _ in COMPONENTS.values()), scores.unbind(-1), strict=True))
        parts["foot_skate"] = torch.exp(-weights["fs_weight"] * metrics.fs_egoallo_m(joints))
        parts["gp"] = penetration_factor * metrics.gp_sum_m(joints)
        for name, value in parts.items():
            tolerance = 2e-5 if name in ("foot_skate", "gp") else RECORDED_REWARDS  # sums of float32
            if (kind, name) == ("raw", "mpjre"):  # the prototype's logarithm depends on the quaternion's length
                tolerance = 1e-3
            close(value, recorded[f"{label_set}_{name}_reward"], tolerance, msg=lambda text, n=name: f"{n}: {text}")
        critic = torch.exp(weights["critic_weight"] * recorded[f"{label_set}_stub_critic_raw"])
        close(critic, recorded[f"{label_set}_critic_score"], RECORDED_REWARDS)
        close(parts["mpjpe"], recorded[f"{label_set}_total_no_critic"], RECORDED_REWARDS)
        total = critic + sum(value for name, value in parts.items() if name != "gp")
        tolerance = 1e-3 if kind == "raw" else 2e-5
        close(total, recorded[f"{label_set}_total_with_stub_critic"], tolerance)
        if kind == "raw":  # a rotation reward that is off by so much says nothing of advantages, see test_policy.py
            continue
        for rewards, name in ((total[:, None], "of_total_with_stub_critic"), (scores, "sum_of_4_components")):
            found = group_advantages(grouped(case, rewards), **PUBLISHED_ADVANTAGES).advantages
            close(found.flatten(), recorded[f"{label_set}_advantages_{name}"], RECORDED_ADVANTAGES)
