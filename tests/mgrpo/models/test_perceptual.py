"""Perceptual model: what its score may not depend on, what it must depend on, and the loss that trains it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mgrpo import geometry
from mgrpo.errors import InputError
from mgrpo.models.perceptual import (
    PERCEPTUAL_PRESETS,
    PerceptualConfig,
    PerceptualModel,
    continuous_quaternions,
    info_nce,
    perceptual_features,
    perceptual_preset,
)

SMALL = PerceptualConfig(d_latent=16, blocks=2, heads=2, mlp_ratio=2.0)
CONFIGS = {
    "paper features": SMALL,
    "two frames a token": dataclasses.replace(SMALL, frames_per_token=2),
    "tiny features": dataclasses.replace(SMALL, frames_per_token=3, velocity_features=True, head_relative=True),
}

Inputs = tuple[Tensor, Tensor, Tensor]


def motions(rows: int, frames: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Inputs:
    """Smooth made-up motions: world rotations, joint positions, head poses."""
    generator = torch.Generator().manual_seed(seed)

    def smooth(*shape: int) -> Tensor:
        steps = torch.randn(rows, frames, *shape, generator=generator, dtype=torch.float64)
        return torch.randn(rows, 1, *shape, generator=generator, dtype=torch.float64) + 0.1 * steps.cumsum(1)

    R = geometry.axis_angle_to_rotmat(smooth(22, 3))
    head = geometry.se3(geometry.axis_angle_to_quat(smooth(3)), smooth(3))
    return R.to(dtype), smooth(22, 3).to(dtype), head.to(dtype)


def model(config: PerceptualConfig = SMALL, dtype: torch.dtype = torch.float64) -> PerceptualModel:
    torch.manual_seed(3)
    built = PerceptualModel(config).to(dtype)
    # A larger last layer than the initial one, so that differences of score are not lost in rounding.
    with torch.no_grad():
        built.score_head[-1].weight.mul_(10)
    return built


def moved(inputs: Inputs, yaw: Tensor, shift: Tensor) -> Inputs:
    """The same motions turned by ``yaw (N,)`` about the vertical and shifted by ``shift (N, 2)`` on the floor."""
    R, joints, head = inputs
    quat = geometry.yaw_rotation(yaw)[:, None]
    offset = torch.cat((shift, torch.zeros_like(shift[:, :1])), dim=-1)[:, None]
    T = geometry.se3(quat, offset)
    turn = geometry.quat_to_rotmat(quat)
    return turn[:, :, None] @ R, geometry.se3_apply(T[:, :, None], joints), geometry.se3_multiply(T, head)


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000), yaw=st.floats(-7.0, 7.0), x=st.floats(-20.0, 20.0), y=st.floats(-20.0, 20.0))
def test_score_ignores_place_and_heading(name: str, seed: int, yaw: float, x: float, y: float) -> None:
    network, inputs = model(CONFIGS[name]), motions(2, 7, seed)
    turned = moved(inputs, torch.tensor([yaw, -yaw]).double(), torch.tensor([[x, y], [y, x]]).double())
    torch.testing.assert_close(network(*turned), network(*inputs), rtol=1e-7, atol=1e-9)


def test_score_sees_height_and_tilt() -> None:
    network, (R, joints, head) = model(), motions(2, 7)
    score = network(R, joints, head)
    raised = head.clone()
    raised[..., 6] += 0.3
    lifted = joints + torch.tensor([0.0, 0.0, 0.3], dtype=torch.float64)
    tilt = geometry.axis_angle_to_rotmat(torch.tensor([0.3, 0.0, 0.0], dtype=torch.float64))
    for changed in ((R, joints, raised), (R, lifted, head), (tilt @ R, joints, head), (R, joints.flip(1), head)):
        assert ((network(*changed) - score).abs() > 1e-5).all()


def test_score_ignores_the_sign_of_the_head_quaternion() -> None:
    network, (R, joints, head) = model(), motions(3, 7)
    flipped = head.clone()
    flipped[:, ::2, :4] *= -1
    torch.testing.assert_close(network(R, joints, flipped), network(R, joints, head))


def test_quaternions_do_not_jump() -> None:
    """A full turn about the vertical: the matrix conversion changes branch and sign on the way, the features must
    not."""
    angle = torch.linspace(0, 4 * math.pi, 200, dtype=torch.float64)
    upright = torch.tensor([0.5, 0.5, 0.5, 0.5], dtype=torch.float64)
    quats = geometry.quat_multiply(geometry.yaw_rotation(angle), upright)
    rotmats = geometry.quat_to_rotmat(quats)[None, :, None]
    mask = torch.ones(1, 200, dtype=torch.bool)
    assert geometry.rotmat_to_quat(rotmats).diff(dim=1).norm(dim=-1).max() > 1
    found = continuous_quaternions(rotmats, mask)
    torch.testing.assert_close(found[0, :, 0], quats)
    # Hidden frames in the middle and at the start neither break nor shift the signs of the others.
    hidden = mask.clone()
    hidden[:, 50:53] = hidden[:, :2] = False
    broken = rotmats.clone()
    broken[~hidden] = float("nan")
    found = continuous_quaternions(broken, hidden)[0, hidden[0], 0]
    torch.testing.assert_close(found, quats[hidden[0]])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_broken_row_stays_alone(name: str) -> None:
    network, inputs = model(CONFIGS[name]), motions(4, 7)
    score = network(*inputs)
    for position in range(3):
        broken = [value.clone() for value in inputs]
        broken[position][2, 3] = float("nan")
        found = network(*broken)
        assert found[2].isnan()
        others = torch.tensor([0, 1, 3])
        assert torch.equal(found[others], score[others])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("garbage", [0.0, float("nan"), 1e3])
def test_masked_frames_are_ignored(name: str, garbage: float) -> None:
    network, inputs = model(CONFIGS[name]), motions(3, 12)
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[1, 8:] = mask[2, 6:] = False
    reference = network(*inputs, mask)
    filled = [value.masked_fill(~mask.view(3, 12, *[1] * (value.ndim - 2)), garbage) for value in inputs]
    torch.testing.assert_close(network(*filled, mask), reference)
    # A padded row scores as the same motion without its padding (6 frames make whole tokens for every configuration).
    alone = network(*(value[2:, :6] for value in inputs))
    torch.testing.assert_close(reference[2:], alone)
    torch.testing.assert_close(reference[:1], network(*(value[:1] for value in inputs)))


def test_a_row_without_frames_cannot_be_scored() -> None:
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1] = False
    score = model()(*motions(2, 7), mask)
    assert score[0].isfinite() and score[1].isnan()


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_are_independent(name: str) -> None:
    network, inputs = model(CONFIGS[name]), motions(5, 8)
    together = network(*inputs)
    for row in range(5):
        alone = network(*(value[row : row + 1] for value in inputs))
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-9, atol=1e-9)
    assert together.std() > 1e-4


def test_head_matters() -> None:
    """The same body with another head trajectory scores differently: the model is conditioned, not a judge of bodies
    alone."""
    network, (R, joints, head) = model(), motions(3, 8)
    shaken = head.clone()
    shaken[:, 1:, 4:] += 0.2 * torch.randn(3, 7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert ((network(R, joints, shaken) - network(R, joints, head)).abs() > 1e-6).all()


@pytest.mark.parametrize("preset", PERCEPTUAL_PRESETS)
def test_presets_score_in_range_and_learn(preset: str) -> None:
    torch.manual_seed(0)
    network = PerceptualModel(perceptual_preset(preset))
    inputs = motions(2, 8, dtype=torch.float32)
    score = network(*inputs)
    assert score.shape == (2,) and score.dtype == torch.float32
    assert ((score > 0) & (score < 1)).all()
    score.sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_gradient_reaches_the_motion() -> None:
    R, joints, head = motions(2, 6)
    joints.requires_grad_()
    model()(R, joints, head).sum().backward()
    assert joints.grad is not None and joints.grad.isfinite().all() and joints.grad.abs().sum() > 0


def test_features() -> None:
    """First frame: gaze along +x, head over the origin at its height; velocities in m/s, zero in the first frame."""
    R, joints, head = motions(3, 6)
    config = dataclasses.replace(SMALL, velocity_features=True)
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, :2] = False
    features = perceptual_features(R, joints, head, mask, config)
    for row, first in ((0, 0), (1, 2), (2, 0)):
        gaze = features.head[row, first, :9].view(3, 3)[:, 2]
        assert gaze[0] > 0
        torch.testing.assert_close(gaze[1], torch.tensor(0.0, dtype=torch.float64))
        expected = torch.stack((torch.zeros(()), torch.zeros(()), head[row, first, 6]))
        torch.testing.assert_close(features.head[row, first, 9:12], expected.double())
        assert (features.joints[row, first, :, 7:] == 0).all()
        step = features.joints[row, first + 1, :, 4:7] - features.joints[row, first, :, 4:7]
        torch.testing.assert_close(features.joints[row, first + 1, :, 7:], 30 * step)
    assert (features.joints[1, :2] == 0).all() and (features.head[1, :2] == 0).all()
    torch.testing.assert_close(features.joints[0, :, :, :4].norm(dim=-1), torch.ones(6, 22, dtype=torch.float64))


def test_inputs_stay_as_they_are() -> None:
    inputs = motions(2, 6)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    before = [value.clone() for value in inputs]
    model(CONFIGS["tiny features"])(*inputs, mask)
    assert all(torch.equal(old, new) for old, new in zip(before, inputs, strict=True))


def test_input_errors() -> None:
    network, (R, joints, head) = model(), motions(2, 6)
    with pytest.raises(InputError, match=r"joints must have shape \(N, T, 22, 3\)"):
        network(R[:, :, 1:], joints[:, :, 1:], head)
    with pytest.raises(InputError, match="R_world_joint must have shape"):
        network(R[:, 1:], joints, head)
    with pytest.raises(InputError, match="T_world_cpf must have shape"):
        network(R, joints, head[..., :6])
    with pytest.raises(InputError, match="mask must be bool"):
        network(R, joints, head, torch.ones(2, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": 0}, "blocks must be at least 1"),
        ({"d_latent": 20, "heads": 8}, "multiple of twice the heads, 16, got 20; choose for example 32"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_configuration_errors(change: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(PerceptualConfig(), **change)


def test_unknown_preset() -> None:
    with pytest.raises(InputError, match="tiny, paper"):
        perceptual_preset("huge")


def test_info_nce_values() -> None:
    equal = torch.full((3, 16), 0.4)
    torch.testing.assert_close(info_nce(equal, 0.07), torch.tensor(math.log(16)))
    won = torch.zeros(2, 4, dtype=torch.float64)
    won[:, 0] = 1.0
    torch.testing.assert_close(info_nce(won, 0.5), torch.tensor(math.log(1 + 3 * math.exp(-2)), dtype=torch.float64))
    assert info_nce(100 * won, 0.07) == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.02, 2.0))
def test_info_nce_properties(seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(4, 6, generator=generator, dtype=torch.float64)
    loss = info_nce(scores, temperature)
    assert loss > 0
    torch.testing.assert_close(info_nce(scores + 0.3, temperature), loss)
    order = torch.cat((torch.zeros(1, dtype=torch.long), 1 + torch.randperm(5, generator=generator)))
    torch.testing.assert_close(info_nce(scores[:, order], temperature), loss)
    torch.testing.assert_close(
        info_nce(scores, temperature), torch.stack([info_nce(row[None], temperature) for row in scores]).mean()
    )
    better = scores.clone()
    better[:, 0] += 0.1
    assert info_nce(better, temperature) < loss
    assert info_nce(scores[:, :5], temperature) < loss


def test_info_nce_gradient() -> None:
    scores = torch.rand(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: info_nce(value, 0.3), (scores,))
    info_nce(scores, 0.3).backward()
    assert scores.grad is not None and (scores.grad[:, 0] < 0).all() and (scores.grad[:, 1:] > 0).all()


def test_info_nce_errors() -> None:
    with pytest.raises(InputError, match="positive first"):
        info_nce(torch.rand(4), 0.1)
    with pytest.raises(InputError, match="K >= 2"):
        info_nce(torch.rand(4, 1), 0.1)
    with pytest.raises(InputError, match="positive temperature"):
        info_nce(torch.rand(4, 3), 0.0)
