"""Every reward of the table keeps the house's promises; each joint reward also equals its formula on a case done by
hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from mgrpo.errors import InputError
from mgrpo.geometry import axis_angle_to_rotmat
from mgrpo.rewards import REWARDS, RewardBatch, RewardScales, compute_rewards

CONDITIONS, MEMBERS, FRAMES = 2, 3, 12
JOINT_REWARDS = tuple(name for name in REWARDS if name != "visual")


class MeanHeight(torch.nn.Module):
    """Stands for a perceptual model: the score is a bounded function of joints and rotations."""

    def forward(self, R_world_joint, joints, T_world_cpf, mask):
        assert R_world_joint.shape[0] == joints.shape[0] == T_world_cpf.shape[0] == mask.shape[0]
        return torch.sigmoid(
            joints[..., 2].mean((1, 2)) - T_world_cpf[..., 6].mean(1) + R_world_joint[..., 0, 0].mean((1, 2))
        )


def make_batch(noise: float, *, seed: int = 0, dtype=torch.float64, **options) -> RewardBatch:
    generator = torch.Generator().manual_seed(seed)
    joints = torch.rand(CONDITIONS, FRAMES, 22, 3, generator=generator, dtype=torch.float64).cumsum(1) * 0.05 + 0.2
    angles = torch.randn(CONDITIONS, FRAMES, 21, 3, generator=generator, dtype=torch.float64) * 0.4
    wobble = torch.randn(CONDITIONS, MEMBERS, FRAMES, 22, 3, generator=generator, dtype=torch.float64)
    turn = torch.randn(CONDITIONS, MEMBERS, FRAMES, 21, 3, generator=generator, dtype=torch.float64)
    world = axis_angle_to_rotmat(torch.cat((angles[..., :1, :], angles), -2))
    rotmats = axis_angle_to_rotmat(angles[:, None] + noise * turn)
    prediction = SimpleNamespace(
        joints22=(joints[:, None] + noise * wobble).to(dtype),
        body_rotmats=rotmats.to(dtype),
        R_world_joint22=world[:, None].expand(-1, MEMBERS, -1, -1, -1, -1).to(dtype),
    )
    target = SimpleNamespace(
        joints=joints.to(dtype),
        body_rotmats=axis_angle_to_rotmat(angles).to(dtype),
        mask=torch.ones(CONDITIONS, FRAMES, dtype=torch.bool),
        padded=True,
        T_world_cpf=torch.tensor([1.0, 0, 0, 0, 0, 0, 1.6], dtype=dtype).expand(CONDITIONS, FRAMES, 7),
    )
    return RewardBatch(prediction=prediction, target=target, perceptual=MeanHeight(), **options)


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_dtype_and_range(name, dtype):
    reward = REWARDS[name](make_batch(0.05, dtype=dtype))
    assert reward.shape == (CONDITIONS, MEMBERS) and reward.dtype == dtype
    assert torch.isfinite(reward).all() and (reward > 0).all()
    if name != "visual":
        assert (reward <= 1).all()


@pytest.mark.parametrize("name", JOINT_REWARDS)
def test_the_recording_itself_scores_best(name):
    perfect, near, far = (REWARDS[name](make_batch(noise)) for noise in (0.0, 0.01, 0.1))
    if name not in ("foot_skate", "ground_penetration"):
        torch.testing.assert_close(perfect, torch.ones_like(perfect), atol=1e-6, rtol=0)
    assert (perfect >= near).all() and (near > far).any() and (perfect >= far).all()


@pytest.mark.parametrize("name", REWARDS)
def test_order_of_members_does_not_matter(name):
    batch = make_batch(0.05)
    order = torch.tensor([2, 0, 1])
    shuffled = make_batch(0.05)
    for field in ("joints22", "body_rotmats", "R_world_joint22"):
        setattr(shuffled.prediction, field, getattr(shuffled.prediction, field)[:, order])
    torch.testing.assert_close(REWARDS[name](shuffled), REWARDS[name](batch)[:, order])


@pytest.mark.parametrize("content", [100.0, math.nan])
@pytest.mark.parametrize("name", JOINT_REWARDS)
def test_masking_the_end_equals_a_shorter_sequence(name, content):
    shorter, masked = make_batch(0.05), make_batch(0.05)
    for part, fields in (("prediction", ("joints22", "body_rotmats")), ("target", ("joints", "body_rotmats", "mask"))):
        owner = getattr(shorter, part)
        for field in fields:
            axis = 1 if part == "target" else 2
            setattr(owner, field, getattr(owner, field).narrow(axis, 0, 9))
    masked.target.mask[:, 9:] = False
    masked.prediction.joints22[:, :, 9:] = content
    masked.prediction.body_rotmats[:, :, 9:] = content
    torch.testing.assert_close(REWARDS[name](masked), REWARDS[name](shorter))


@pytest.mark.parametrize("name", JOINT_REWARDS)
def test_a_sequence_without_valid_frames_cannot_be_scored(name):
    batch = make_batch(0.05)
    batch.target.mask[1] = False
    reward = REWARDS[name](batch)
    assert reward[1].isnan().all() and reward[0].isfinite().all()


@pytest.mark.parametrize("name", JOINT_REWARDS)
def test_nan_in_one_sample_stays_there(name):
    batch = make_batch(0.05)
    clean = REWARDS[name](batch)
    batch.prediction.joints22[0, 1] = math.nan
    batch.prediction.body_rotmats[0, 1] = math.nan
    dirty = REWARDS[name](batch)
    assert dirty[0, 1].isnan()
    keep = torch.ones_like(clean, dtype=torch.bool)
    keep[0, 1] = False
    torch.testing.assert_close(dirty[keep], clean[keep])


def test_position_by_hand():
    batch = make_batch(0.0)
    batch.prediction.joints22[..., 0] += 0.3
    batch.prediction.joints22[..., 1] += 0.4
    expected = torch.full((CONDITIONS, MEMBERS), math.exp(-0.5), dtype=torch.float64)
    torch.testing.assert_close(REWARDS["position"](batch), expected)
    torch.testing.assert_close(REWARDS["velocity"](batch), torch.ones_like(expected))
    torch.testing.assert_close(REWARDS["aligned_position"](batch), torch.ones_like(expected), atol=1e-9, rtol=0)


def test_velocity_by_hand():
    batch = make_batch(0.0)
    drift = torch.arange(FRAMES, dtype=torch.float64) * 0.1 / 30
    batch.prediction.joints22[..., 2] += drift[:, None]
    expected = torch.full((CONDITIONS, MEMBERS), math.exp(-0.2 * 0.1), dtype=torch.float64)
    torch.testing.assert_close(REWARDS["velocity"](batch), expected)


def test_rotation_variants_by_hand():
    batch = make_batch(0.0)
    target = batch.target.body_rotmats
    target.copy_(torch.eye(3, dtype=torch.float64).expand_as(target))
    batch.prediction.body_rotmats = axis_angle_to_rotmat(torch.tensor([0.0, 0.6, 0.0], dtype=torch.float64)).expand(
        CONDITIONS, MEMBERS, FRAMES, 21, 3, 3
    )
    errors = {"geodesic": 0.6, "axis_angle": 0.2, "frobenius": 2 * math.sqrt(2) * math.sin(0.3)}
    for variant, error in errors.items():
        case = RewardBatch(prediction=batch.prediction, target=batch.target, rotation_error=variant)
        torch.testing.assert_close(
            REWARDS["rotation"](case), torch.full((CONDITIONS, MEMBERS), math.exp(-error), dtype=torch.float64)
        )


def test_egoallo_alignment_charges_a_turned_prediction_that_the_standard_one_forgives():
    batch = make_batch(0.0)
    turn = axis_angle_to_rotmat(torch.tensor([0.0, 0.0, 0.5], dtype=torch.float64))
    batch.prediction.joints22 = batch.prediction.joints22 @ turn.T
    standard = REWARDS["aligned_position"](batch)
    defect = REWARDS["aligned_position"](
        RewardBatch(prediction=batch.prediction, target=batch.target, alignment="egoallo")
    )
    torch.testing.assert_close(standard, torch.ones_like(standard), atol=1e-9, rtol=0)
    torch.testing.assert_close(defect, REWARDS["position"](batch))


def test_jitter_punishes_a_frozen_body_too():
    batch = make_batch(0.0)
    batch.prediction.joints22 = batch.prediction.joints22[:, :, :1].expand(-1, -1, FRAMES, -1, -1).clone()
    assert (REWARDS["jitter"](batch) < 1).all()


def test_unknown_names_and_missing_models_are_explained():
    with pytest.raises(ValueError, match="unknown reward beauty; the known ones are visual, position"):
        compute_rewards(make_batch(0.0), ("position", "beauty"))
    batch = make_batch(0.0)
    with pytest.raises(ValueError, match="no perceptual model"):
        REWARDS["visual"](RewardBatch(prediction=batch.prediction, target=batch.target))
    with pytest.raises(ValueError, match="--velocity must be positive, got -1"):
        RewardScales(velocity=-1)


def test_rewards_come_in_the_order_of_their_names():
    batch = make_batch(0.05)
    both = compute_rewards(batch, ("velocity", "position"))
    torch.testing.assert_close(both[..., 0], REWARDS["velocity"](batch))
    torch.testing.assert_close(both[..., 1], REWARDS["position"](batch))


def test_what_does_not_fit_is_explained():
    batch = make_batch(0.05)
    with pytest.raises(ValueError, match="no reward is named; the known ones are visual, position"):
        compute_rewards(batch, ())
    for cut in (lambda x: x[:-1], lambda x: x[:, :, :-1]):
        prediction = SimpleNamespace(**{name: cut(value) for name, value in vars(batch.prediction).items()})
        with pytest.raises(InputError, match=r"needs predicted joints22 of shape \(\d+, G, \d+, 22, 3\), got"):
            RewardBatch(prediction=prediction, target=batch.target)
