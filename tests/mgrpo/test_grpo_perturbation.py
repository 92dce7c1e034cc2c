"""Perlin noise on the head: translation only, continuous, keyed, and consistent between absolute and relative poses."""

from __future__ import annotations

import pytest
import torch

from mgrpo.body import default_body
from mgrpo.data import AugmentConfig, WindowSampler, load_motion
from mgrpo.geometry import se3_multiply
from mgrpo.grpo.perturbation import PerlinConfig, perturbed_head


@pytest.fixture(scope="module")
def windows():
    body = default_body().body_only()
    clips = [clip for clip in load_motion("demo", body) if clip.name in ("walk", "cartwheel", "getup_faceup")]
    return WindowSampler(clips, body, 16, 0, AugmentConfig()).batch(0, 5)


def perturb(windows, *, members=range(3), iteration=2, condition=None, **options):
    condition = torch.arange(len(windows)) if condition is None else condition
    return perturbed_head(
        windows, PerlinConfig(**options), seed=1, iteration=iteration, condition=condition, members=members
    )


def test_no_noise_changes_nothing(windows):
    poses, relative = perturb(windows, alpha=0.0)
    assert torch.equal(poses[:, 0], windows.T_world_cpf) and torch.equal(relative[:, 0], windows.T_cpf_tm1_cpf_t)


@pytest.mark.parametrize("per_member", [False, True])
def test_translation_moves_within_alpha_and_rotation_stays(windows, per_member):
    poses, relative = perturb(windows, alpha=0.2, per_member=per_member)
    assert poses.shape == relative.shape == (5, 3 if per_member else 1, 16, 7)
    clean = windows.T_world_cpf[:, None].expand_as(poses)
    assert torch.equal(poses[..., :4], clean[..., :4])
    shift = poses[..., 4:] - clean[..., 4:]
    assert 0.02 < float(shift.abs().max()) <= 0.2
    assert float(shift.diff(dim=2).abs().max()) < 0.1
    torch.testing.assert_close(
        relative[..., :4].abs(),
        windows.T_cpf_tm1_cpf_t[:, None, :, :4].abs().expand_as(relative[..., :4]),
        atol=1e-5,
        rtol=0,
    )


def test_relative_poses_belong_to_the_moved_ones(windows):
    poses, relative = perturb(windows, alpha=0.2)
    chained = se3_multiply(poses[:, :, :-1], relative[:, :, 1:])
    torch.testing.assert_close(chained[..., 4:], poses[:, :, 1:, 4:], atol=1e-5, rtol=0)


def test_members_share_the_noise_or_have_their_own(windows):
    poses, _ = perturb(windows, alpha=0.2, per_member=True)
    assert not torch.allclose(poses[:, 0], poses[:, 1])
    shared, _ = perturb(windows, alpha=0.2)
    torch.testing.assert_close(poses[:, 0], shared[:, 0])


def test_noise_is_keyed_by_iteration_and_condition(windows):
    first, _ = perturb(windows, alpha=0.2)
    again, _ = perturb(windows, alpha=0.2)
    later, _ = perturb(windows, alpha=0.2, iteration=3)
    assert torch.equal(first, again) and not torch.allclose(first, later)
    part, _ = perturb(windows.select(slice(3, 5)), alpha=0.2, condition=torch.tensor([3, 4]))
    torch.testing.assert_close(part, first[3:5])


@pytest.mark.parametrize("options", [{"alpha": -0.1}, {"lattice": 0.5}, {"octaves": 0}])
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        PerlinConfig(**options)
