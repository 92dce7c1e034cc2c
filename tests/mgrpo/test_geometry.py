"""Rotations and rigid transforms: reference values, algebra, gradients, edge cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mgrpo import geometry as g
from mgrpo.kernels.guidance.lie import se3_log
from tests.golden import golden_files


def random_quats(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    quats = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return g.quat_normalize(quats).to(dtype)


def random_poses(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1000)
    return g.se3(random_quats(count, seed), torch.randn(count, 3, generator=generator, dtype=torch.float64))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def lie() -> list[dict[str, Tensor]]:
    cases = []
    for path in golden_files("fk/lie*.npz"):
        with np.load(path, allow_pickle=False) as archive:
            cases.append({key: torch.from_numpy(archive[key]) for key in archive.files})
    return cases


@pytest.mark.golden
def test_so3_reference_values(lie: list[dict[str, Tensor]]) -> None:
    for case in lie:
        close(g.axis_angle_to_quat(case["tangent"]), case["exp_wxyz"])
        close(g.axis_angle_to_quat(case["tangent"].float()), case["exp_wxyz_f32"], 1e-6)
        # The reference's logarithm is itself only good to 1e-7 at an exact half turn.
        close(g.quat_to_axis_angle(case["exp_wxyz"]), case["log_of_exp"], 2e-7)
        close(g.quat_to_axis_angle(-case["exp_wxyz"]), case["log_of_minus_exp"], 2e-7)
        short = case["tangent"].norm(dim=-1) < 3.1
        close(g.quat_to_axis_angle(case["exp_wxyz"])[short], case["log_of_exp"][short])
        close(g.quat_to_axis_angle(case["exp_wxyz_f32"]), case["log_f32"], 2e-6)
        close(g.quat_to_rotmat(case["exp_wxyz"]), case["as_matrix"])
        close(g.rotmat_to_quat(case["as_matrix"]), case["from_matrix_of_as_matrix"])
        close(g.quat_to_rotmat(case["nonunit"]), case["nonunit_as_matrix"])
        close(g.quat_conjugate(case["nonunit"]), case["nonunit_inverse"])
        length = case["nonunit"].norm(dim=-1, keepdim=True)  # the reference scales points by its square
        close(length.square() * g.quat_apply(case["nonunit"] / length, case["points"]), case["nonunit_apply"])
        close(g.quat_apply(case["exp_wxyz"], case["points"]), case["unit_apply"])
        # Half turns, noisy and even improper matrices take the same branches.
        close(g.rotmat_to_quat(case["matrices"]), case["matrices_from_matrix_wxyz"])


@pytest.mark.golden
def test_se3_reference_values(lie: list[dict[str, Tensor]]) -> None:
    for case in lie:
        poses = case["se3_exp"]
        close(g.se3_multiply(poses, case["se3_other"]), case["se3_compose"])
        close(g.se3_inverse(poses), case["se3_inverse"])
        close(g.se3_apply(poses, case["points"]), case["se3_apply"])
        close(g.quat_to_rotmat(g.se3_rotation(poses)), case["se3_matrix"][:, :3, :3])
        close(g.se3_translation(poses), case["se3_matrix"][:, :3, 3])
        close(se3_log(poses[:, :4], poses[:, 4:]), case["se3_log"], 2e-7)  # exact to 1e-7 at a half turn, as above
        rebuilt = g.se3_from_rotmat(case["se3_matrix"][:, :3, :3], case["se3_matrix"][:, :3, 3])
        close(g.quat_to_rotmat(rebuilt[:, :4]), case["se3_matrix"][:, :3, :3])


@given(st.lists(st.floats(-6.0, 6.0), min_size=3, max_size=3))
@settings(max_examples=60, deadline=None)
def test_log_is_the_inverse_of_exp_up_to_full_turns(tangent: list[float]) -> None:
    vector = torch.tensor(tangent, dtype=torch.float64)
    log = g.quat_to_axis_angle(g.axis_angle_to_quat(vector))
    assert float(log.norm()) <= math.pi + 1e-9
    close(g.axis_angle_to_rotmat(log), g.axis_angle_to_rotmat(vector), 1e-8)


def test_rotation_forms_agree() -> None:
    quats = random_quats(50)
    rotmats = g.quat_to_rotmat(quats)
    eye = torch.eye(3, dtype=torch.float64)
    close(rotmats @ rotmats.mT, eye.expand_as(rotmats))
    close(torch.linalg.det(rotmats), torch.ones(50))
    for back in (
        g.quat_to_rotmat(g.rotmat_to_quat(rotmats)),
        g.axis_angle_to_rotmat(g.rotmat_to_axis_angle(rotmats)),
        g.rot6d_to_rotmat(g.rotmat_to_rot6d(rotmats)),
        g.rot6d_to_rotmat(3.0 * g.rotmat_to_rot6d(rotmats)),
    ):
        close(back, rotmats)
    points = torch.randn(50, 3, dtype=torch.float64)
    close(g.quat_apply(quats, points), (rotmats @ points[..., None])[..., 0])
    close(g.quat_to_rotmat(g.quat_multiply(quats, quats.flip(0))), rotmats @ rotmats.flip(0))


def test_rigid_transforms_form_a_group() -> None:
    a, b, c = random_poses(20, 1), random_poses(20, 2), random_poses(20, 3)
    close(g.se3_multiply(g.se3_multiply(a, b), c), g.se3_multiply(a, g.se3_multiply(b, c)))
    identity = g.se3_multiply(a, g.se3_inverse(a))
    close(identity, torch.tensor([1.0, 0, 0, 0, 0, 0, 0]).expand_as(identity))
    points = torch.randn(20, 3, dtype=torch.float64)
    close(g.se3_apply(g.se3_multiply(a, b), points), g.se3_apply(a, g.se3_apply(b, points)))
    close(g.se3_apply(g.se3_inverse(a), g.se3_apply(a, points)), points)


def test_leading_axes_broadcast() -> None:
    poses, points = random_poses(4)[:, None], torch.randn(5, 3, dtype=torch.float64)
    assert g.se3_apply(poses, points).shape == (4, 5, 3)
    assert g.se3_multiply(poses, random_poses(5)).shape == (4, 5, 7)
    assert g.geodesic_angle(g.quat_to_rotmat(random_quats(4))[:, None], g.quat_to_rotmat(random_quats(5))).shape == (
        4,
        5,
    )


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-5, 0.3, 1.5, 3.0, math.pi - 1e-7, math.pi])
def test_geodesic_angle_is_accurate_everywhere(angle: float) -> None:
    axis = torch.tensor([0.6, -0.48, 0.64], dtype=torch.float64)
    base = g.quat_to_rotmat(random_quats(1)[0])
    turned = base @ g.axis_angle_to_rotmat(axis * angle)
    assert abs(float(g.geodesic_angle(base, turned)) - angle) < 1e-12 + 1e-15 / max(angle, 1e-3)
    assert abs(float(g.geodesic_angle(turned, base)) - angle) < 1e-11


def test_geodesic_angle_does_not_see_the_sign_of_quaternions() -> None:
    quats = random_quats(10)
    close(g.geodesic_angle(g.quat_to_rotmat(quats), g.quat_to_rotmat(-quats)), torch.zeros(10), 1e-12)


def test_yaw_turns_about_up() -> None:
    quarter = g.yaw_rotation(torch.tensor(math.pi / 2, dtype=torch.float64))
    turned = g.quat_apply(quarter, torch.tensor([[1.0, 0, 0], [0, 0, 1]], dtype=torch.float64))
    close(turned, torch.tensor([[0.0, 1, 0], [0, 0, 1]]), 1e-12)


def test_degenerate_input_stays_finite() -> None:
    close(g.quat_normalize(torch.zeros(2, 4)), torch.tensor([[1.0, 0, 0, 0]]).expand(2, 4))
    assert torch.isfinite(g.rot6d_to_rotmat(torch.zeros(1, 6))).all()
    assert torch.isfinite(g.quat_to_axis_angle(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]))).all()


@pytest.mark.parametrize("tangent", [[0.0, 0, 0], [1e-7, 0, 0], [0.3, -0.5, 0.2], [0, 3.0, 0]])
def test_gradients(tangent: list[float]) -> None:
    vector = torch.tensor(tangent, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(g.axis_angle_to_rotmat, (vector,))
    quat = g.axis_angle_to_quat(vector).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda q: g.quat_to_axis_angle(g.quat_normalize(q)), (quat,))
    rotmat = g.axis_angle_to_rotmat(vector).detach()
    six = g.rotmat_to_rot6d(rotmat).requires_grad_()
    assert torch.autograd.gradcheck(g.rot6d_to_rotmat, (six,))
    assert torch.autograd.gradcheck(g.rotmat_to_quat, (rotmat.requires_grad_(),))


def test_float32_stays_float32() -> None:
    quats = random_quats(3, dtype=torch.float32)
    for value in (
        g.quat_to_rotmat(quats),
        g.rotmat_to_quat(g.quat_to_rotmat(quats)),
        g.quat_to_axis_angle(quats),
        g.axis_angle_to_quat(quats[:, :3]),
        g.yaw_rotation(quats[:, 0]),
        g.geodesic_angle(g.quat_to_rotmat(quats), g.quat_to_rotmat(quats)),
    ):
        assert value.dtype == torch.float32


def test_normalising_keeps_a_broken_quaternion_visible() -> None:
    """A NaN must not come back as the identity: whoever checks results would never see it."""
    quats = torch.tensor([[float("nan"), 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 3.0, 4.0]])
    result = g.quat_normalize(quats)
    assert result[0].isnan().any()
    assert result[1:].tolist() == [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, pytest.approx(0.6), pytest.approx(0.8)]]
