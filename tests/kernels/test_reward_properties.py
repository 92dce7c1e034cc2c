"""What holds for the rewards of any motion: rows, frames of reference, the order of members, and any magnitude."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from mgrpo.geometry import axis_angle_to_quat, axis_angle_to_rotmat, quat_multiply, rotmat_to_quat
from mgrpo.kernels import (
    JOINT_REWARDS,
    RewardSkeleton,
    StateChannels,
    available_backends,
    explain_backend,
    group_rewards,
    motion_rewards,
)

BACKENDS = [x for x in available_backends("motion_rewards") if f"{x:<10}yes" in explain_backend("motion_rewards")]
FUSED = [backend for backend in BACKENDS if backend != "reference"]
F64 = torch.float64
REPRESENTATIONS = ("state", "matrix", "quaternion", "rot6d")
POINT_REWARDS = tuple(name for name in JOINT_REWARDS if name != "rotation")
OF_THE_FLOOR = ("foot_skate", "ground_penetration")
J, S = 4, 2


@dataclass(frozen=True)
class Motions:
    """Predictions near recordings; the tensors of one call."""

    motion: Tensor  # (B, G, T, ...)
    T_world_cpf: Tensor  # (B, T, 7)
    joints: Tensor  # (B, T, 1 + J, 3)
    rotmats: Tensor  # (B, T, J, 3, 3)
    mask: Tensor  # (B, G, T)
    skeleton: RewardSkeleton
    representation: str

    def rows(self, b: object, g: object) -> Motions:
        parts = {name: getattr(self, name)[b] for name in ("T_world_cpf", "joints", "rotmats")}
        return replace(self, motion=self.motion[b][:, g], mask=self.mask[b][:, g], **parts)

    def moved(self, quat: Tensor, shift: Tensor) -> Motions:
        """Everything in the world turned and shifted."""
        R = axis_angle_to_rotmat(quat)
        turned = quat_multiply(axis_angle_to_quat(quat), self.T_world_cpf[..., :4])
        place = torch.cat((turned, self.T_world_cpf[..., 4:] @ R.mT + shift), -1)
        return replace(self, T_world_cpf=place, joints=self.joints @ R.mT + shift)

    def scaled(self, scale: float) -> Motions:
        """Everything that is a length."""
        place = torch.cat((self.T_world_cpf[..., :4], self.T_world_cpf[..., 4:] * scale), -1)
        lengths = (None if x is None else x * scale for x in self.skeleton[:4])
        skeleton = self.skeleton._replace(**dict(zip(RewardSkeleton._fields, lengths)))
        return replace(self, T_world_cpf=place, joints=self.joints * scale, skeleton=skeleton)


def motions(representation: str = "state", dtype: torch.dtype = torch.float32, *, B=2, G=3, T=6) -> Motions:
    generator = torch.Generator().manual_seed(4)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64)

    angles = 0.4 * noise(B, 1, J, 3) + 0.1 * noise(B, T, J, 3)
    turned = axis_angle_to_rotmat(angles[:, None] + 0.2 * noise(B, G, T, J, 3))
    motion = {
        "state": torch.cat((noise(B, G, T, S), (turned + 0.05 * noise(*turned.shape)).flatten(3)), -1),
        "matrix": turned,
        "quaternion": 1.3 * rotmat_to_quat(turned),
        "rot6d": torch.cat((1.2 * turned[..., 0], turned[..., 1]), -1),
    }[representation]
    place = torch.cat((axis_angle_to_quat(noise(B, 1, 3) + 0.1 * noise(B, T, 3)), 0.2 * noise(B, T, 3)), -1)
    place[..., 6] += 0.3
    mask = torch.ones(B, G, T, dtype=torch.bool)
    mask[-1, -1, -2:] = False
    skeleton = [x.to(dtype) for x in (0.3 * noise(J, 3), 0.1 * noise(3), 0.02 * noise(J, 3, S), 0.02 * noise(3, S))]
    options = {"parents": (-1, 0, 1, -1), "head": 2, "feet": (3, 0), "foot_heights": (0.8, 0.4)}
    floats = (motion, place, 0.3 * noise(B, 1, 1 + J, 3) + 0.05 * noise(B, T, 1 + J, 3), axis_angle_to_rotmat(angles))
    return Motions(*(x.to(dtype) for x in floats), mask, RewardSkeleton(*skeleton, **options), representation)


def score(given: Motions, backend: str, **options: object):
    return motion_rewards(
        given.motion, given.T_world_cpf, given.joints, given.rotmats, given.skeleton, given.mask,
        representation=given.representation, channels=StateChannels(0, S), backend=backend,
        **{"rewards": JOINT_REWARDS, "fps": 2.0, "with_advantages": False, **options},
    )  # fmt: skip


def outcome(given: Motions, backend: str, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    """Errors, rewards, and the motion's gradient."""
    leaf = given.motion.clone().requires_grad_()
    found = score(replace(given, motion=leaf), backend, **options)
    grad = torch.autograd.grad(found.rewards.sum() + 0.3 * found.errors.sum(), leaf)[0]
    return found.errors.detach(), found.rewards.detach(), grad


def representations_of(backend: str) -> tuple[str, ...]:
    """All of them on ``cpp``; of the slow interpreter and emulation the one that uses most."""
    return REPRESENTATIONS if backend == "cpp" else REPRESENTATIONS[:1]


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("backend", FUSED)
def test_a_member_alone_equals_the_member_in_a_batch(backend: str) -> None:
    for representation in representations_of(backend):
        given = motions(representation)
        whole = outcome(given, backend)
        assert all(torch.isfinite(x).all() for x in whole) and whole[2].any()
        for b, g in ((0, 1), (1, 2)):
            alone = outcome(given.rows(slice(b, b + 1), slice(g, g + 1)), backend)
            for one, every in zip(alone, whole, strict=True):
                assert torch.equal(one[0, 0], every[b, g])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_member_touches_no_other_and_a_bad_recording_only_its_group(backend: str, bad: float) -> None:
    for representation in representations_of(backend):
        given = motions(representation)
        clean = outcome(given, backend)
        for name in ("motion", "T_world_cpf", "joints", "rotmats"):
            spoilt = getattr(given, name).clone()
            touched = torch.zeros(2, 3, dtype=torch.bool)
            if name == "motion":
                spoilt[0, 1, 2].view(-1)[-9 * J if representation == "state" else 0] = bad
                touched[0, 1] = True
            else:
                spoilt[0, 2].view(-1)[0] = bad
                touched[0] = True
            dirty = outcome(replace(given, **{name: spoilt}), backend)
            assert not torch.isfinite(dirty[0][touched]).all(-1).any()
            for now, before in zip(dirty, clean, strict=True):
                assert torch.equal(now[~touched], before[~touched])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_order_of_members_and_conditions(backend: str) -> None:
    given = motions()
    members, conditions = torch.tensor([2, 0, 1]), torch.tensor([1, 0])
    whole, moved = outcome(given, backend), outcome(given.rows(conditions, members), backend)
    for every, other in zip(whole, moved, strict=True):
        if backend == "reference":  # sums of another order
            torch.testing.assert_close(other, every[conditions][:, members], rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(other, every[conditions][:, members])
    for name in ("advantages", "per_reward"):
        every = getattr(score(given, backend, with_advantages=True), name)
        other = getattr(score(given.rows(conditions, members), backend, with_advantages=True), name)
        torch.testing.assert_close(other, every[conditions][:, members], rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- rotations and frames of reference


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_quaternion_and_its_negative_are_the_same_rotation(backend: str) -> None:
    given = motions("quaternion")
    signs = torch.tensor([1.0, -1.0])[torch.arange(6) % 2]
    place = torch.cat((given.T_world_cpf[..., :4] * signs[:, None], given.T_world_cpf[..., 4:]), -1)
    flipped = replace(given, motion=given.motion * signs[:, None, None], T_world_cpf=place)
    (errors, rewards, grad), other = outcome(given, backend), outcome(flipped, backend)
    assert torch.equal(other[0], errors) and torch.equal(other[1], rewards)
    assert torch.equal(other[2], grad * signs[:, None, None])


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_of_reference(backend: str) -> None:
    """The world may turn about the vertical and shift along the floor; for what knows no floor it may move anyhow."""
    given = motions(dtype=F64)
    before = outcome(given, backend)
    about_the_vertical = given.moved(torch.tensor([0, 0, 1.3], dtype=F64), torch.tensor([3.0, -2.0, 0], dtype=F64))
    for got, expected in zip(outcome(about_the_vertical, backend), before, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    anyhow = given.moved(torch.tensor([1.1, -0.7, 0.4], dtype=F64), torch.tensor([3.0, -2.0, 1.5], dtype=F64))
    free = [name for name in JOINT_REWARDS if name not in OF_THE_FLOOR]
    before_free = outcome(given, backend, rewards=free)
    for got, expected in zip(outcome(anyhow, backend, rewards=free), before_free, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    floor = [JOINT_REWARDS.index(name) for name in OF_THE_FLOOR]
    lifted = given.moved(torch.zeros(3, dtype=F64), torch.tensor([0, 0, 0.1], dtype=F64))
    for off_the_floor in (anyhow, lifted):
        assert ((score(off_the_floor, backend).errors - before[0])[..., floor].abs().amax((0, 1)) > 1e-2).all()


# ---------------------------------------------------------------- magnitudes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_lengths_of_any_magnitude(backend: str, scale: float) -> None:
    """Squares of float32 overflow beyond 1e19 m: there a distance is infinite, its reward 0 and without a gradient. The
    aligned distance is measured in units of the bodies."""
    generator = torch.Generator().manual_seed(6)
    target = torch.randn(2, 6, 5, 3, generator=generator)
    pred = target[:, None] + 0.2 * torch.randn(2, 2, 6, 5, 3, generator=generator)
    # One foot jumps near the floor, the other slides high above it.
    target[..., 1, 2], pred[..., 1, 2] = 3.0, 3.0
    points = {"fps": 2.0, "head": 4, "foot_heights": (0.1,)}
    aligned = POINT_REWARDS.index("aligned_position")
    for alignment in ("standard", "egoallo"):
        exact = group_rewards(
            pred.double(), target.double(), rewards=("aligned_position",), alignment=alignment, backend="reference"
        ).errors[..., 0]
        leaf = (pred * scale).requires_grad_()
        found = group_rewards(
            leaf, target * scale, rewards=POINT_REWARDS, feet=(1,), alignment=alignment, backend=backend, **points
        )
        torch.testing.assert_close(found.errors[..., aligned].double() / scale, exact, rtol=1e-4, atol=0)
        expected = torch.ones(len(POINT_REWARDS)) if scale < 1 else torch.zeros(len(POINT_REWARDS))
        if scale > 1:
            expected[POINT_REWARDS.index("foot_skate")] = 1.0  # high above the floor
        torch.testing.assert_close(found.rewards, expected.expand_as(found.rewards), rtol=0, atol=1e-6)
        assert not found.errors.isnan().any()
        grad = torch.autograd.grad(found.rewards.sum(), leaf, retain_graph=True)[0]
        assert torch.isfinite(grad).all() and (scale < 1 or not grad.any())
        assert torch.isfinite(torch.autograd.grad(found.errors.sum(), leaf)[0]).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_bodies_of_any_magnitude(backend: str, scale: float) -> None:
    given = motions()
    usual, found = outcome(given, backend), outcome(given.scaled(scale), backend)
    assert not found[0].isnan().any() and torch.isfinite(found[2]).all()
    assert torch.equal(found[0][..., 2], usual[0][..., 2])  # rotation
    points = [k for k, name in enumerate(JOINT_REWARDS) if name not in ("rotation", *OF_THE_FLOOR)]
    assert ((found[1][..., points] - (1.0 if scale < 1 else 0.0)).abs() < 1e-6).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("magnitude", [1e-36, 1e-20, 1e20, 1e37])
@pytest.mark.parametrize("representation", ["quaternion", "rot6d"])
def test_numbers_of_any_length_mean_the_same_rotation(backend: str, representation: str, magnitude: float) -> None:
    """Some of the body's rotations and some poses of the head beside ordinary ones, in lanes of the same register."""
    given = motions(representation, F64)
    exact = outcome(given, "reference")
    factor = torch.ones(*given.motion.shape, dtype=F64)
    factor[:, :, ::2, ::2] = magnitude
    if representation == "rot6d":  # one column or the other
        factor[:, 1, :, :, :3], factor[:, 2, :, :, 3:] = 1.0, 1.0
    place = given.T_world_cpf.clone()
    place[:, ::3, :4] *= magnitude
    narrow = {name: getattr(given, name).float() for name in ("joints", "rotmats")}
    skeleton = given.skeleton._replace(
        **{name: x.float() for name, x in zip(RewardSkeleton._fields, given.skeleton[:4])}
    )
    scaled = replace(
        given, motion=(given.motion * factor).float(), T_world_cpf=place.float(), skeleton=skeleton, **narrow
    )
    errors, rewards, grad = outcome(scaled, backend)
    torch.testing.assert_close(errors.double(), exact[0], rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(rewards.double(), exact[1], rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(grad.double() * factor, exact[2], rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("representation", ["quaternion", "rot6d"])
def test_numbers_that_give_no_rotation_are_the_identity(backend: str, representation: str) -> None:
    """Zero, parallel columns; also the pose of the head. Nothing pulls at them."""
    given = motions(representation)
    motion, place = given.motion.clone(), given.T_world_cpf.clone()
    motion[:, :, 1, 0] = torch.tensor([1.0, 0, 0, 0, 1, 0])[: motion.shape[-1]]
    motion[:, :, 4, 2], place[:, 3, :4] = motion[:, :, 1, 0], torch.tensor([1.0, 0, 0, 0])
    errors, rewards, grad = outcome(replace(given, motion=motion, T_world_cpf=place), backend)
    other, place = motion.clone(), place.clone()
    other[:, :, 1, 0], other[:, :, 4, 2], place[:, 3, :4] = 0.0, 0.0, 0.0
    if representation == "rot6d":
        other[:, :, 4, 2] = torch.tensor([0.3, -1.0, 2.0, -0.6, 2.0, -4.0])
    found = outcome(replace(given, motion=other, T_world_cpf=place), backend)
    assert torch.equal(found[0], errors) and torch.equal(found[1], rewards)
    grad[:, :, 1, 0], grad[:, :, 4, 2] = 0.0, 0.0
    assert torch.equal(found[2], grad)


def test_a_foot_far_above_the_floor_slides_nothing() -> None:
    """Also in the reference, whose 2^(z / H) would overflow."""
    pred = torch.tensor([[0.0, 0, 50.0], [1.0, 0, 1e15]]).view(1, 1, 2, 1, 3).requires_grad_()
    found = group_rewards(
        pred, pred.detach()[:, 0], rewards=("foot_skate",), head=0, feet=(0,), foot_heights=(0.1,), backend="reference"
    )
    assert found.errors.item() == 0
    assert not torch.autograd.grad(found.errors.sum(), pred)[0].any()
