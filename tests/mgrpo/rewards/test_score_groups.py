"""Rewards and advantages in one pass are those of the single reward functions and of the operator of advantages."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mgrpo import rewards
from mgrpo.body import default_body
from mgrpo.data import MotionWindows, cut_windows, load_motion
from mgrpo.kernels import group_advantages
from mgrpo.models.motion import decode_motion
from mgrpo.models.state import StateLayout, pack_windows
from mgrpo.rewards import FUSED, REWARDS, RewardBatch, RewardScales, compute_rewards, score_groups

BODY = default_body()
LAYOUT = StateLayout(include_hands=False)
WEIGHTS = {name: 1.0 + 0.3 * number for number, name in enumerate(REWARDS)}
MEMBERS = 4


class MeanHeight(torch.nn.Module):
    """Stands for a perceptual model."""

    def forward(self, R_world_joint, joints, T_world_cpf, mask):
        return torch.sigmoid(joints[..., 2].mean((1, 2)) + R_world_joint[..., 0, 0].mean((1, 2)))


@pytest.fixture(scope="module")
def windows() -> MotionWindows:
    """Recorded motion, sunk a little into the floor so that every reward finds something to punish."""
    cut = cut_windows(load_motion("demo", BODY), BODY, length=16).select([0, 3, 5])
    mask = cut.mask.clone()
    mask[1, 11:] = False
    down = torch.tensor([0.0, 0.0, -0.05])
    path = torch.cat((cut.T_world_cpf[..., :4], cut.T_world_cpf[..., 4:] + down), -1)
    return replace(cut, T_world_cpf=path, joints=cut.joints + down, mask=mask)


def make_batch(windows: MotionWindows, *, dtype=torch.float32, **options) -> RewardBatch:
    """Groups near the recorded motion."""
    windows = windows.to(dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    clean = pack_windows(LAYOUT, windows)
    noise = torch.randn(len(windows), MEMBERS, *clean.shape[1:], generator=generator, dtype=torch.float64)
    size = 0.005 * torch.arange(1, MEMBERS + 1, dtype=dtype)[:, None, None]
    x0 = clean[:, None] + size * noise.to(dtype)
    motion = decode_motion(LAYOUT, x0, windows.T_world_cpf[:, None], BODY.to(dtype=dtype))
    return RewardBatch(motion, windows, perceptual=MeanHeight(), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rotation_error", "alignment"), [("geodesic", "standard"), ("axis_angle", "egoallo")])
def test_one_pass_gives_what_the_single_functions_give(windows, dtype, rotation_error, alignment):
    scales = RewardScales(**{name: 1.5 * value for name, value in vars(RewardScales()).items()})
    batch = make_batch(windows, dtype=dtype, scales=scales, rotation_error=rotation_error, alignment=alignment)
    single = compute_rewards(batch, tuple(REWARDS))
    expected = group_advantages(single, weights=list(WEIGHTS.values()), std_floor_ratio=0.05, clamp=5.0)
    got = score_groups(batch, BODY.to(dtype=dtype), WEIGHTS, std_floor_ratio=0.05, clamp=5.0)
    assert (single.std(1).amax(0) > 1e-5).all(), "every reward has to tell some members apart"
    rounding = 64 * torch.finfo(dtype).eps
    torch.testing.assert_close(got.rewards, single, rtol=rounding, atol=rounding)
    # Advantages divide by the spread inside a group, a thousandth of the rewards and less.
    for field in ("advantages", "per_reward", "std"):
        torch.testing.assert_close(getattr(got, field), getattr(expected, field), rtol=0, atol=1e3 * rounding)
    assert torch.equal(got.dead, expected.dead) and torch.equal(got.alive, expected.alive)
    assert got.errors.shape == (len(windows), MEMBERS, len(FUSED))


def test_every_joint_reward_is_in_one_pass():
    assert {name for name, function in REWARDS.items() if function not in FUSED} == {"visual"}


@pytest.mark.parametrize("names", [("visual",), ("position",), ("jitter", "visual", "position"), ("mine", "position")])
def test_any_set_of_rewards_in_any_order(windows, names, monkeypatch):
    def mine(batch):
        return batch.prediction.joints22.mean((2, 3, 4))

    monkeypatch.setattr(rewards, "REWARDS", {**REWARDS, "mine": mine})
    batch = make_batch(windows, dtype=torch.float64)
    single = compute_rewards(batch, names)
    weights = {name: 1.0 + number for number, name in enumerate(names)}
    expected = group_advantages(single, weights=list(weights.values()))
    got = score_groups(batch, BODY.to(dtype=torch.float64), weights)
    torch.testing.assert_close(got.rewards, single)
    for field in ("advantages", "per_reward", "std"):
        torch.testing.assert_close(getattr(got, field), getattr(expected, field), rtol=1e-8, atol=1e-8)
    assert got.dead.shape == (len(windows), len(names))


def test_a_function_of_ones_own_takes_the_place_of_a_fused_one(windows, monkeypatch):
    batch = make_batch(windows)
    own = torch.rand(len(windows), MEMBERS)
    monkeypatch.setattr(rewards, "REWARDS", {**REWARDS, "position": lambda batch: own})
    got = score_groups(batch, BODY, {"position": 1.0, "velocity": 1.0})
    assert torch.equal(got.rewards[..., 0], own)


def test_a_broken_sample_and_an_empty_window_cannot_be_scored(windows):
    mask = windows.mask.clone()
    mask[2] = False
    batch = make_batch(replace(windows, mask=mask))
    batch.prediction.body_rotmats[0, 1, 4, 7] = math.nan
    batch.prediction.joints22[0, 1, 4, 8] = math.nan
    names = tuple(name for name in REWARDS if name != "visual")
    single = compute_rewards(batch, names)
    got = score_groups(batch, BODY, dict.fromkeys(names, 1.0))
    broken = torch.zeros(len(windows), MEMBERS, dtype=torch.bool)
    broken[0, 1] = broken[2] = True
    assert torch.equal(got.rewards.isnan().any(-1), broken) and torch.equal(single.isnan().any(-1), broken)
    assert (got.advantages[broken] == 0).all() and (got.advantages[~broken] != 0).all()


def test_unknown_names_are_explained(windows):
    with pytest.raises(ValueError, match="unknown reward beauty; the known ones are visual, position"):
        score_groups(make_batch(windows), BODY, {"beauty": 1.0})
