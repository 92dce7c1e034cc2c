"""Decoding a state into a body in the world."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mgrpo.body.default import default_body
from mgrpo.body.model import BodyModel
from mgrpo.body.placement import PlacedBody, cpf_of
from mgrpo.errors import InputError
from mgrpo.geometry import axis_angle_to_rotmat, geodesic_angle, quat_to_rotmat
from mgrpo.models.motion import PredictedMotion, decode_motion
from mgrpo.models.state import StateLayout, pack_state


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return default_body()


def states(
    lead: tuple[int, ...], hands: bool, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States of proper rotations ``(*b, T, D)``, their rotations, head poses ``(*b, T, 7)``."""
    rotmats = axis_angle_to_rotmat(0.4 * torch.randn(*lead, 21, 3, generator=generator))
    x = pack_state(
        StateLayout(hands),
        torch.randn(*lead[:-1], 16, generator=generator),
        rotmats,
        torch.rand(*lead, 21, generator=generator),
        axis_angle_to_rotmat(torch.randn(*lead, 30, 3, generator=generator)) if hands else None,
    )
    poses = torch.randn(*lead, 7, generator=generator)
    return x, rotmats, torch.cat((F.normalize(poses[..., :4], dim=-1), poses[..., 4:]), dim=-1)


def placed(motion: PredictedMotion) -> PlacedBody:
    return PlacedBody(motion.T_world_root, motion.joints22, motion.R_world_joint22)


@pytest.mark.parametrize("hands", [False, True])
def test_the_head_is_where_the_condition_says(hands: bool, body: BodyModel, tiny: torch.Generator) -> None:
    x, rotmats, T_world_cpf = states((2, 3, 5), hands, tiny)
    motion = decode_motion(StateLayout(hands), x, T_world_cpf, body)
    assert motion.joints22.shape == (2, 3, 5, 22, 3) and motion.R_world_joint22.shape == (2, 3, 5, 22, 3, 3)
    assert (motion.hand_rotmats is None) == (not hands)
    got = cpf_of(body.body_only(), placed(motion), motion.betas)
    torch.testing.assert_close(got[..., 4:], T_world_cpf[..., 4:], atol=1e-4, rtol=0)
    angle = geodesic_angle(quat_to_rotmat(got[..., :4]), quat_to_rotmat(T_world_cpf[..., :4]))
    assert angle.max() < 1e-3
    torch.testing.assert_close(motion.body_rotmats, rotmats, atol=1e-5, rtol=0)
    torch.testing.assert_close(motion.T_world_root[..., 4:], motion.joints22[..., 0, :], atol=1e-5, rtol=0)


def test_head_poses_are_shared_by_a_group(body: BodyModel, tiny: torch.Generator) -> None:
    x, _, T_world_cpf = states((2, 3, 5), False, tiny)
    layout, shared = StateLayout(False), T_world_cpf[:, :1]
    motion = decode_motion(layout, x, shared, body)
    for g in range(3):
        alone = decode_motion(layout, x[:, g], shared[:, 0], body)
        torch.testing.assert_close(motion.joints22[:, g], alone.joints22, atol=1e-5, rtol=0)


def test_projection_mends_raw_predictions(body: BodyModel, tiny: torch.Generator) -> None:
    x, _, T_world_cpf = states((2, 5), False, tiny)
    layout = StateLayout(False)
    noisy = x + 0.05 * torch.randn(x.shape, generator=tiny)
    before = noisy.clone()
    motion = decode_motion(layout, noisy, T_world_cpf, body)
    assert torch.equal(noisy, before)
    torch.testing.assert_close(torch.linalg.det(motion.body_rotmats), torch.ones(2, 5, 21), atol=1e-4, rtol=0)
    raw = decode_motion(layout, noisy, T_world_cpf, body, project=False)
    assert torch.equal(raw.body_rotmats.flatten(-3), noisy[..., 16:205])


def test_gradients_reach_rotations_and_shape(body: BodyModel, tiny: torch.Generator) -> None:
    x, _, T_world_cpf = states((2, 5), False, tiny)
    x.requires_grad_()
    decode_motion(StateLayout(False), x, T_world_cpf, body).joints22.square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert x.grad[..., :205].abs().sum() > 0 and x.grad[..., 205:].eq(0).all()


def test_errors(body: BodyModel, tiny: torch.Generator) -> None:
    x, _, T_world_cpf = states((2, 5), False, tiny)
    for wrong in (T_world_cpf[..., :6], T_world_cpf[:, :3], T_world_cpf[None]):
        with pytest.raises(InputError, match="T_world_cpf must broadcast"):
            decode_motion(StateLayout(False), x, wrong, body)
    with pytest.raises(InputError, match="496 channels"):
        decode_motion(StateLayout(True), x, T_world_cpf, body)


def test_another_dtype_of_the_head_is_explained(body: BodyModel) -> None:
    x, _, T_world_cpf = states((2, 3), False, torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=r"x is torch.float64 and T_world_cpf torch.float32; convert one"):
        decode_motion(StateLayout(False), x.double(), T_world_cpf, body)
