"""Metrics: reference values, and the properties that make a number mean what its name says."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mgrpo import geometry
from mgrpo.errors import InputError
from mgrpo.eval import metrics
from mgrpo.kernels import procrustes_align
from tests.golden import golden_files, listed_files

FRAMES = 9


def random_rotations(generator: torch.Generator, *shape: int, angle: float = 1.0) -> Tensor:
    """Rotations about random axes by about ``angle`` radians, float64."""
    return geometry.axis_angle_to_rotmat(angle * torch.randn(*shape, 3, generator=generator, dtype=torch.float64))


def random_motion(seed: int, *lead: int, frames: int = FRAMES) -> SimpleNamespace:
    """A made-up motion whose feet are near the floor, with the fields of a predicted motion."""
    generator = torch.Generator().manual_seed(seed)
    joints = torch.randn(*lead, frames, 22, 3, generator=generator, dtype=torch.float64) * 0.3
    joints[..., 2] += 1.0
    joints[..., list(metrics.FEET_22), 2] = 0.05 * torch.rand(
        *lead, frames, 4, generator=generator, dtype=torch.float64
    )
    return SimpleNamespace(
        joints22=joints,
        body_rotmats=random_rotations(generator, *lead, frames, 21),
        R_world_joint22=random_rotations(generator, *lead, frames, 22),
    )


def as_target(motion: SimpleNamespace, mask: Tensor | None = None) -> SimpleNamespace:
    """The same motion with the fields of evaluation windows."""
    lead = motion.joints22.shape[:-2]
    return SimpleNamespace(
        joints=motion.joints22,
        body_rotmats=motion.body_rotmats,
        R_world_joint=motion.R_world_joint22,
        mask=torch.ones(lead, dtype=torch.bool) if mask is None else mask,
    )


def with_samples(motion: SimpleNamespace) -> SimpleNamespace:
    """Give every field a sample axis of 1 after the first axis."""
    return SimpleNamespace(**{name: value[:, None] for name, value in vars(motion).items()})


PAIR_METRICS = {
    "mpjpe_mm": (metrics.mpjpe_mm, "joints22"),
    "pa_mpjpe_mm": (metrics.pa_mpjpe_mm, "joints22"),
    "pa_mpjpe_egoallo_mm": (metrics.pa_mpjpe_egoallo_mm, "joints22"),
    "mpjve_mm_s": (metrics.mpjve_mm_s, "joints22"),
    "mpjre_geodesic_deg": (metrics.mpjre_geodesic_deg, "body_rotmats"),
    "mpjre_paper_deg": (metrics.mpjre_paper_deg, "body_rotmats"),
    "head_position_mm": (metrics.head_position_mm, "joints22"),
    "head_angle_deg": (metrics.head_angle_deg, "R_world_joint22"),
    "head_rotation_frobenius": (metrics.head_rotation_frobenius, "R_world_joint22"),
}
SINGLE_METRICS = {
    "jitter_m_s3": metrics.jitter_m_s3,
    "gp_mean_mm": metrics.gp_mean_mm,
    "gp_sum_m": metrics.gp_sum_m,
    "fs_mm_per_contact_frame": metrics.fs_mm_per_contact_frame,
    "fs_egoallo_m": metrics.fs_egoallo_m,
    "gnd": metrics.gnd,
}


# Our measure behind each reference array, and the factor from our unit to the array's. Three arrays state what we do
# not offer and are compared with a formula of this file, so that it is known what they are: penetration summed over all
# joints (the published measure takes the deepest joint) and two sums of the distances between ankles that are near each
# other, which no table prints and which grow as the ankles part.
GOLDEN_ARRAYS: dict[str, tuple[str, float]] = {
    "egoallo_mpjpe_mm": ("mpjpe_mm", 1.0),
    "mpjpe_standard_mm": ("mpjpe_mm", 1.0),
    "author_mpjpe_m": ("mpjpe_mm", 1e-3),
    "egoallo_pampjpe_mm": ("pa_mpjpe_egoallo_mm", 1.0),
    "pa_mpjpe_egoallo_np64_mm": ("pa_mpjpe_egoallo_mm", 1.0),
    "author_pampjpe_m": ("pa_mpjpe_egoallo_mm", 1e-3),
    "pa_mpjpe_standard_mm": ("pa_mpjpe_mm", 1.0),
    "pa_mpjpe_standard_noscale_mm": ("pa_mpjpe_noscale_mm", 1.0),
    "mpjre_geodesic_deg": ("mpjre_geodesic_deg", 1.0),
    "author_mpjre_deg": ("mpjre_paper_deg", 1.0),
    "author_mpjre_deg_pred_via_from_matrix": ("mpjre_paper_long_way_deg", 1.0),
    "mpjve_standard_mm_s": ("mpjve_mm_s", 1.0),
    "author_mpjve_m_s": ("mpjve_mm_s", 1e-3),
    "jerk_pred_m_s3": ("jitter_m_s3", 1.0),
    "jerk_label_m_s3": ("label_jitter_m_s3", 1.0),
    "author_jitter_ratio": ("jitter_ratio", 1.0),
    "gp_sum_deepest_joint_m": ("gp_sum_m", 1.0),
    "author_groundpenetrate_m": ("gp_sum_m", 1.0),
    "egoallo_foot_skate": ("fs_egoallo_m", 1.0),
    "foot_skate_egoallo_np64": ("fs_egoallo_m", 1.0),
    "author_foot_skate_per_sample_floor": ("fs_egoallo_m", 1.0),
    "egoallo_foot_skate_label": ("label_fs_egoallo_m", 1.0),
    "egoallo_foot_contact": ("gnd", 1.0),
    "egoallo_head_trans_m": ("head_position_mm", 1e-3),
    "egoallo_head_ori": ("head_rotation_frobenius", 1.0),
    "egoallo_foot_skate_all_samples_together": ("fs_egoallo_group_m", 1.0),
    "foot_skate_no_floor_shift_np64": ("fs_egoallo_world_m", 1.0),
    "gp_mean_per_frame_m": ("gp_mean_mm", 1e-3),
    "author_mpjve_m_s_all_samples": ("mean mpjve_mm_s", 1e-3),
    "author_jitter_ratio_all_samples": ("mean jitter_ratio", 1.0),
    "author_mpjre_deg_all_samples": ("mean mpjre_paper_deg", 1.0),
    "gp_sum_all_joints_m": ("not offered: gp of all joints", 1.0),
    "author_footclipping_m": ("not offered: ankles nearer than 0.05", 1.0),
    "author_footclipping_thr0p15_m": ("not offered: ankles nearer than 0.15", 1.0),
    "diversity_positions22": ("diversity_positions", 1.0),
    "diversity_local_rotmats21": ("diversity_rotmats", 1.0),
    "diversity_local_quats21": ("diversity_quats", 1.0),
}


def golden_arrays(paths: list[Path]) -> dict[str, dict[str, np.ndarray]]:
    """Arrays of metrics files of the reference data, by file name without suffix."""
    files = {}
    for path in paths:
        with np.load(path, allow_pickle=False) as data:
            files[path.stem] = {name: data[name] for name in data.files}
    return files


def near_ankles(joints: Tensor, limit: float) -> Tensor:
    """Sum over frames of the distance between the ankles where it is below ``limit`` metres."""
    apart = (joints[..., 7, :] - joints[..., 8, :]).norm(dim=-1)
    return torch.where(apart < limit, apart, torch.zeros_like(apart)).sum(-1)


def golden_measures(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Our values for the reference motions: ``(labels, predictions)``, for labels ``(labels,)``."""
    tensors = {
        name: torch.from_numpy(value).double() for name, value in arrays.items() if name[:5] in ("label", "pred_")
    }

    def unpack(side: str) -> tuple[Tensor, Tensor, Tensor]:
        root, joints = tensors[f"{side}_T_world_root"], tensors[f"{side}_Ts_world_joint"]
        world = torch.cat((root[..., None, :], joints), dim=-2)
        return world[..., 4:], geometry.quat_to_rotmat(world[..., :4]), tensors[f"{side}_body_quats"]

    pred, pred_world, pred_quats = unpack("pred")
    label, label_world, label_quats = (value[:, None] for value in unpack("label"))
    rotmats, label_rotmats = geometry.quat_to_rotmat(pred_quats), geometry.quat_to_rotmat(label_quats)
    return {
        "mpjpe_mm": metrics.mpjpe_mm(pred, label),
        "pa_mpjpe_mm": metrics.pa_mpjpe_mm(pred, label),
        "pa_mpjpe_noscale_mm": metrics.pa_mpjpe_mm(pred, label, with_scale=False),
        "pa_mpjpe_egoallo_mm": metrics.pa_mpjpe_egoallo_mm(pred, label),
        "mpjre_geodesic_deg": metrics.mpjre_geodesic_deg(rotmats, label_rotmats),
        "mpjre_paper_deg": metrics.mpjre_paper_deg(rotmats, label_rotmats),
        "mpjre_paper_long_way_deg": metrics.mpjre_paper_deg(rotmats, label_rotmats, short_way=False),
        "mpjve_mm_s": metrics.mpjve_mm_s(pred, label),
        "jitter_m_s3": metrics.jitter_m_s3(pred),
        "label_jitter_m_s3": metrics.jitter_m_s3(label).expand(pred.shape[:2]),
        "jitter_ratio": metrics.jitter_ratio(pred, label),
        "gp_sum_m": metrics.gp_sum_m(pred),
        "fs_egoallo_m": metrics.fs_egoallo_m(pred),
        "label_fs_egoallo_m": metrics.fs_egoallo_m(label)[:, 0],
        "gnd": metrics.gnd(pred),
        "head_position_mm": metrics.head_position_mm(pred, label),
        "head_rotation_frobenius": metrics.head_rotation_frobenius(pred_world, label_world),
        "fs_egoallo_group_m": metrics.fs_egoallo_m(pred, floor="group"),
        "fs_egoallo_world_m": metrics.fs_egoallo_m(pred, floor="world"),
        "gp_mean_mm": metrics.gp_mean_mm(pred),
        "mean mpjve_mm_s": metrics.mpjve_mm_s(pred, label).mean(1),
        "mean jitter_ratio": metrics.jitter_ratio(pred, label).mean(1),
        "mean mpjre_paper_deg": metrics.mpjre_paper_deg(rotmats, label_rotmats).mean(1),
        "not offered: gp of all joints": (-pred[..., 2]).clamp_min(0).sum((-1, -2)),
        "not offered: ankles nearer than 0.05": near_ankles(pred, 0.05),
        "not offered: ankles nearer than 0.15": near_ankles(pred, 0.15),
        "diversity_positions": metrics.diversity_l2(pred.flatten(-2)),
        "diversity_rotmats": metrics.diversity_l2(rotmats.flatten(-3)),
        "diversity_quats": metrics.diversity_l2(pred_quats.flatten(-2)),
    }


@pytest.mark.golden
def test_reference_values() -> None:
    """Every array that one of our measures stands behind; ``author_<name>.npz`` belongs to the inputs of
    ``<name>.npz``."""
    motions = golden_arrays(golden_files("metrics/metrics*.npz"))
    ours = {file: golden_measures(arrays) for file, arrays in motions.items()}
    for file, arrays in {**motions, **golden_arrays(listed_files("metrics/author_metrics*.npz"))}.items():
        measures = ours[file.removeprefix("author_")]
        states = {name for name in arrays if not name.startswith(("label_", "pred_")) and name != "names"}
        assert states <= GOLDEN_ARRAYS.keys(), f"{file}: which measure is {sorted(states - GOLDEN_ARRAYS.keys())}?"
        for name in states:
            reference = arrays[name]
            metric, scale = GOLDEN_ARRAYS[name]
            # Arrays computed in float32 (the references' own precision) agree to about 1e-5; jerk loses a digit more.
            relative, absolute = (1e-6, 1e-9) if reference.dtype == np.float64 else (2e-5, 1e-6)
            if metric.endswith("jitter_ratio"):
                relative = 1e-4
            elif name.startswith("author_mpjre"):  # float64 results of float32 arithmetic
                relative = 2e-6
            np.testing.assert_allclose(
                scale * measures[metric].numpy(), reference, rtol=relative, atol=absolute, err_msg=f"{file}: {name}"
            )


@pytest.mark.golden
def test_alignment_behind_the_aligned_metrics() -> None:
    """Both aligned metrics follow from the reference alignments of one point set onto another, and their scale,
    rotation and shift are ours, in both precisions."""
    for path in golden_files("metrics/procrustes*.npz"):
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: torch.from_numpy(data[name]) for name in data.files}
        x, y = (arrays.pop(f"points_{side}").double() for side in "xy")
        aligned = {kind: arrays[f"{kind}_aligned_x_f64"] for kind in ("sim", "fixscale")}
        for kind, with_scale in (("sim", True), ("fixscale", False)):
            for precision, dtype, tolerance in (("f64", torch.float64, 1e-9), ("f32", torch.float32, 2e-5)):
                fit = procrustes_align(x.to(dtype), y.to(dtype), with_scale=with_scale)
                found = {"s": fit.scale[:, None], "R": fit.R, "t": fit.t, "aligned_x": fit.aligned}
                for name, value in found.items():
                    expected = arrays.pop(f"{kind}_{name}_{precision}").to(dtype)
                    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance, msg=f"{kind} {name}")
            expected = 1000 * (aligned[kind] - y).norm(dim=-1).mean(-1)
            ours = metrics.pa_mpjpe_mm(x[:, None], y[:, None], with_scale=with_scale)
            torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
        assert not arrays, f"not compared: {', '.join(arrays)}"
        expected = 1000 * (aligned["sim"] - x).norm(dim=-1).mean(-1)
        torch.testing.assert_close(metrics.pa_mpjpe_egoallo_mm(y[:, None], x[:, None]), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PAIR_METRICS)
def test_zero_for_the_same_motion(name: str) -> None:
    function, field = PAIR_METRICS[name]
    value = getattr(random_motion(1, 3), field)
    torch.testing.assert_close(function(value, value), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in PAIR_METRICS if not name.startswith("pa_")])
def test_symmetric(name: str) -> None:
    function, field = PAIR_METRICS[name]
    first, second = getattr(random_motion(1, 3), field), getattr(random_motion(2, 3), field)
    torch.testing.assert_close(function(first, second), function(second, first))


@pytest.mark.parametrize("name", PAIR_METRICS)
def test_grows_with_noise(name: str) -> None:
    function, field = PAIR_METRICS[name]
    generator = torch.Generator().manual_seed(5)
    truth = getattr(random_motion(1, 2), field)
    values = []
    for size in (0.01, 0.03, 0.1, 0.3):
        noise = torch.randn(
            truth.shape[:-1] if field != "joints22" else truth.shape, generator=generator, dtype=torch.float64
        )
        noisy = truth + size * noise if field == "joints22" else truth @ geometry.axis_angle_to_rotmat(size * noise)
        values.append(function(noisy, truth))
    for smaller, larger in itertools.pairwise(values):
        assert (larger > smaller).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 5.0))
def test_aligned_error_ignores_a_similarity(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    pred, truth = random_motion(seed, 2).joints22, random_motion(seed + 1, 2).joints22
    # Every frame may be moved by its own similarity.
    R = random_rotations(generator, 2, FRAMES)
    t = torch.randn(2, FRAMES, 1, 3, generator=generator, dtype=torch.float64)
    moved = scale * pred @ R.transpose(-1, -2) + t
    torch.testing.assert_close(
        metrics.pa_mpjpe_mm(moved, truth), metrics.pa_mpjpe_mm(pred, truth), rtol=1e-7, atol=1e-6
    )
    exact = metrics.pa_mpjpe_mm(scale * truth @ R.transpose(-1, -2) + t, truth)
    assert (exact < 1e-5).all()


def test_published_aligned_error_is_another_quantity() -> None:
    """A prediction that is the truth turned rigidly: the standard error is zero, EgoAllo's is the whole offset."""
    truth = random_motion(3, 2).joints22
    R = random_rotations(torch.Generator().manual_seed(1), 2, 1)
    moved = truth @ R.transpose(-1, -2)
    torch.testing.assert_close(metrics.pa_mpjpe_egoallo_mm(moved, truth), metrics.mpjpe_mm(moved, truth))
    assert (metrics.pa_mpjpe_mm(moved, truth) < 1e-6).all()


@pytest.mark.parametrize("name", ["mpjpe_mm", "pa_mpjpe_mm", "mpjve_mm_s", "head_position_mm"])
def test_common_rigid_motion_changes_nothing(name: str) -> None:
    function, _ = PAIR_METRICS[name]
    generator = torch.Generator().manual_seed(7)
    pred, truth = random_motion(1, 2).joints22, random_motion(2, 2).joints22
    R = random_rotations(generator, 2, 1)
    t = torch.randn(2, 1, 1, 3, generator=generator, dtype=torch.float64)
    moved = [joints @ R.transpose(-1, -2) + t for joints in (pred, truth)]
    torch.testing.assert_close(function(*moved), function(pred, truth))


def test_aligned_error_is_never_above_the_unaligned() -> None:
    """The fit minimises squares, the metric is a mean of norms; on a noisy truth it still has to help."""
    truth = random_motion(1, 4).joints22
    noisy = (
        truth + 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.2
    )
    assert (metrics.pa_mpjpe_mm(noisy, truth) < metrics.mpjpe_mm(noisy, truth)).all()


def test_known_values() -> None:
    truth = random_motion(1, 2).joints22
    offset = torch.tensor([0.03, 0.04, 0.0], dtype=torch.float64)
    torch.testing.assert_close(metrics.mpjpe_mm(truth + offset, truth), torch.full((2,), 50.0, dtype=torch.float64))
    torch.testing.assert_close(
        metrics.head_position_mm(truth + offset, truth), torch.full((2,), 50.0, dtype=torch.float64)
    )
    drift = torch.arange(FRAMES, dtype=torch.float64)[:, None, None] * offset
    torch.testing.assert_close(metrics.mpjve_mm_s(truth + drift, truth), torch.full((2,), 1500.0, dtype=torch.float64))
    rotmats = random_motion(1, 2).body_rotmats
    turn = geometry.axis_angle_to_rotmat(torch.tensor([0.0, 0.3, 0.4], dtype=torch.float64))
    expected = torch.full((2,), float(np.degrees(0.5)), dtype=torch.float64)
    torch.testing.assert_close(metrics.mpjre_geodesic_deg(rotmats @ turn, rotmats), expected)
    identity = torch.eye(3, dtype=torch.float64).expand(1, FRAMES, 21, 3, 3)
    expected = torch.full((1,), float(np.degrees(0.7 / 3)), dtype=torch.float64)
    torch.testing.assert_close(metrics.mpjre_paper_deg(identity @ turn, identity), expected)
    time = torch.arange(FRAMES, dtype=torch.float64)[:, None, None] / 30
    cubic = (time**3).expand(FRAMES, 22, 3)
    torch.testing.assert_close(metrics.jitter_m_s3(cubic), torch.tensor(6 * 3**0.5, dtype=torch.float64))
    torch.testing.assert_close(
        metrics.jitter_m_s3(time.expand(FRAMES, 22, 3) * 4), torch.tensor(0.0, dtype=torch.float64)
    )


def test_paper_rotation_error_takes_the_short_way() -> None:
    """Equal rotations beyond 120 degrees score zero, although the matrix conversion may give their quaternion a
    negative sign."""
    generator = torch.Generator().manual_seed(0)
    rotmats = random_rotations(generator, 50, FRAMES, 21, angle=2.0)
    assert (geometry.rotmat_to_quat(rotmats)[..., 0] < 0).any()
    assert (metrics.mpjre_paper_deg(rotmats, rotmats) < 1e-6).all()
    assert metrics.mpjre_paper_deg(rotmats, rotmats, short_way=False).max() > 1


def standing(frames: int = FRAMES) -> Tensor:
    """A motion that does not move: pelvis and body at 1 m, ankles at 6 cm, toes on the floor."""
    joints = torch.zeros(frames, 22, 3, dtype=torch.float64)
    joints[..., 2] = 1.0
    joints[:, [7, 8], 2], joints[:, [10, 11], 2] = 0.06, 0.0
    return joints


def test_ground_penetration() -> None:
    joints = standing()
    assert metrics.gp_sum_m(joints) == 0 and metrics.gp_mean_mm(joints) == 0
    joints[2, 10, 2], joints[2, 11, 2], joints[5, 0, 2] = -0.02, -0.05, -0.01
    torch.testing.assert_close(
        metrics.gp_sum_m(joints), torch.tensor(0.06, dtype=torch.float64)
    )  # the deepest joint alone
    torch.testing.assert_close(metrics.gp_mean_mm(joints), torch.tensor(60.0 / FRAMES, dtype=torch.float64))


def test_foot_skate() -> None:
    joints = standing()
    assert metrics.fs_egoallo_m(joints) == 0 and metrics.fs_mm_per_contact_frame(joints) == 0
    sliding = joints.clone()
    sliding[:, :, 0] += 0.003 * torch.arange(FRAMES, dtype=torch.float64)[:, None]
    sliding[:, :, 1] += 0.004 * torch.arange(FRAMES, dtype=torch.float64)[:, None]
    torch.testing.assert_close(metrics.fs_mm_per_contact_frame(sliding), torch.tensor(5.0, dtype=torch.float64))
    # Toes on the floor count with weight 1, ankles 6 cm above it with 2 - 2^(6/8); displacement is |dx| + |dy|.
    expected = (FRAMES - 1) * 0.007 * 2 * (1 + 2 - 2**0.75)
    torch.testing.assert_close(metrics.fs_egoallo_m(sliding), torch.tensor(expected, dtype=torch.float64))
    # A step counts as contact where both of its frames touch: after a jump in frame 4, two of the eight steps don't.
    jumping = sliding.clone()
    jumping[4, [7, 8, 10, 11], 2] += 0.5
    jumping[4, :, 0] += 1.0
    torch.testing.assert_close(metrics.fs_mm_per_contact_frame(jumping), torch.tensor(5.0, dtype=torch.float64))
    # Both put the clip down on its lowest joint; a foot in the air slides freely.
    torch.testing.assert_close(metrics.fs_egoallo_m(sliding + 3.0), metrics.fs_egoallo_m(sliding))
    lifted = sliding.clone()
    lifted[:, [7, 8, 10, 11], 2] += 0.5
    lifted[:, 20, 2] = 0.0
    assert metrics.fs_egoallo_m(lifted) == 0
    assert metrics.fs_mm_per_contact_frame(lifted).isnan()


def test_floor_of_foot_skate() -> None:
    sliding = standing()
    sliding[:, :, 0] += 0.003 * torch.arange(FRAMES, dtype=torch.float64)[:, None]
    group = torch.stack((sliding, sliding + torch.tensor([0.0, 0.0, 0.02])))
    own = metrics.fs_egoallo_m(sliding)
    torch.testing.assert_close(metrics.fs_egoallo_m(group), own.expand(2))
    shared = metrics.fs_egoallo_m(group, floor="group")
    torch.testing.assert_close(shared[0], own)
    assert shared[1] < own
    torch.testing.assert_close(metrics.fs_egoallo_m(group, floor="world"), shared)
    mask = torch.ones(2, FRAMES, dtype=torch.bool)
    mask[0, 0] = False
    group[0, 0, 10, 2] = -1.0  # outside the mask: not the floor
    assert (metrics.fs_egoallo_m(group, mask, floor="group") > 0).all()
    for wrong in ({"floor": "room"}, {"floor": "group", "joints": sliding}):
        with pytest.raises(InputError, match="floor"):
            metrics.fs_egoallo_m(**({"joints": group} | wrong))  # type: ignore[arg-type]


def test_gnd() -> None:
    joints = standing().expand(2, -1, -1, -1).clone()
    joints[1, ..., 2] += 0.2
    assert metrics.gnd(joints).tolist() == [1.0, 0.0]
    joints[1, 4, 10, 2] = 0.03
    assert metrics.gnd(joints).tolist() == [1.0, 1.0]


def test_diversity() -> None:
    one = random_motion(1, 2).joints22
    same = one[:, None].expand(-1, 4, -1, -1, -1)
    mask = torch.ones(2, FRAMES, dtype=torch.bool)
    found = metrics.group_diversity(same, mask)
    assert all((value.abs() < 1e-9).all() and value.shape == (2,) for value in found.values())
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(same.shape, generator=generator, dtype=torch.float64)
    small, large = (metrics.group_diversity(same + size * noise, mask) for size in (0.01, 0.02))
    for name in small:
        torch.testing.assert_close(large[name], 2 * small[name])
    # Spread of a joint: root of three axes' unbiased variances, in mm; two samples 50 mm apart have 50 / sqrt(2).
    pair = torch.stack((one, one + torch.tensor([0.03, 0.0, 0.04], dtype=torch.float64)), dim=1)
    expected = torch.full((2,), 50 / 2**0.5, dtype=torch.float64)
    torch.testing.assert_close(metrics.diversity_joint_std_mm(pair, mask), expected)
    many = 0.01 * torch.randn(1, 400, FRAMES, 22, 3, generator=generator, dtype=torch.float64)
    expected = torch.tensor([10 * 3**0.5], dtype=torch.float64)
    torch.testing.assert_close(metrics.diversity_joint_std_mm(many), expected, rtol=0.01, atol=0)
    flat = (same + noise).flatten(-2)
    pairs = [(flat[:, i] - flat[:, j]).flatten(1).norm(dim=-1) for i in range(4) for j in range(i)]
    torch.testing.assert_close(metrics.diversity_l2(flat), torch.stack(pairs).mean(0))
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(metrics.diversity_l2(flat[:, order]), metrics.diversity_l2(flat))
    assert all(value.isnan().all() for value in metrics.group_diversity(one[:, None], mask).values())


@pytest.mark.parametrize(
    "name", [*PAIR_METRICS, *SINGLE_METRICS, "jitter_ratio", "diversity_joint_std_mm", "diversity_l2"]
)
@pytest.mark.parametrize("padding", [0.0, float("nan"), -1e3])
def test_masked_frames_do_not_count(name: str, padding: float) -> None:
    """A padded clip measures as the clip without its padding, whatever the padding holds."""
    pred, truth = random_motion(1, 3), random_motion(2, 3)
    mask = torch.zeros(3, FRAMES + 4, dtype=torch.bool)
    mask[:, :FRAMES] = True

    def padded(value: Tensor) -> Tensor:
        tail = torch.full((*value.shape[:1], 4, *value.shape[2:]), padding, dtype=value.dtype)
        return torch.cat((value, tail), dim=1)

    if name in PAIR_METRICS:
        function, field = PAIR_METRICS[name]
        a, b = getattr(pred, field), getattr(truth, field)
        expected, found = function(a, b), function(padded(a), padded(b), mask)
    elif name == "jitter_ratio":
        a, b = pred.joints22, truth.joints22
        expected, found = metrics.jitter_ratio(a, b), metrics.jitter_ratio(padded(a), padded(b), mask)
    elif name.startswith("diversity"):
        group = torch.stack((pred.joints22, truth.joints22), dim=1)
        group_padded = torch.stack((padded(pred.joints22), padded(truth.joints22)), dim=1)
        if name == "diversity_l2":
            group, group_padded = group.flatten(-2), group_padded.flatten(-2)
        function = getattr(metrics, name)
        expected, found = function(group), function(group_padded, mask)
    else:
        function = SINGLE_METRICS[name]
        expected, found = function(pred.joints22), function(padded(pred.joints22), mask)
    assert not expected.isnan().any()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [*PAIR_METRICS, *SINGLE_METRICS, "jitter_ratio"])
def test_a_broken_motion_is_not_scored(name: str, value: float) -> None:
    """NaN or infinity anywhere in a motion makes its own measure NaN and no other: never a foot that doesn't slide."""
    if name in PAIR_METRICS:
        function, field = PAIR_METRICS[name]
    else:
        function, field = getattr(metrics, name), "joints22"
    others = () if name in SINGLE_METRICS else (getattr(random_motion(2, 3), field),)
    whole = getattr(random_motion(1, 3), field)
    expected = function(whole, *others)
    assert expected.isfinite().all()
    heads_only = name.startswith("head_")
    for row in (metrics.HEAD_22,) if heads_only else (0, metrics.HEAD_22, metrics.FEET_22[2]):
        for axis in range(3):
            pred = whole.clone()
            pred[1, 4, row, axis] = value
            found = function(pred, *others)
            assert found[1].isnan(), (row, axis)
            torch.testing.assert_close(found[[0, 2]], expected[[0, 2]])
            if others:
                assert function(others[0], pred)[1].isnan()
            mask = torch.ones(3, FRAMES, dtype=torch.bool)
            mask[1, 4] = False
            assert function(pred, *others, mask).isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_sample_has_no_measure_at_all(value: float) -> None:
    truth, motion = random_motion(2, 2), random_motion(1, 2, 3)
    motion.joints22[1, 2, 4, metrics.FEET_22[0], 0] = value
    motion.R_world_joint22[0, 1, 3, 7, 1, 1] = value
    for found in metrics.motion_metrics(motion, as_target(truth)).values():
        assert found.isnan().tolist() == [[False, True, False], [False, False, True]]
    groups = metrics.group_diversity(motion.joints22, as_target(truth).mask)
    assert all(spread.isnan().tolist() == [False, True] for spread in groups.values())


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_clips_too_short_are_not_scored(frames: int) -> None:
    joints = random_motion(1, 2, frames=frames).joints22
    for mask in (None, torch.ones(2, frames, dtype=torch.bool)):
        assert metrics.jitter_m_s3(joints, mask).isnan().all()
        assert metrics.mpjve_mm_s(joints, joints, mask).isnan().all() == (frames < 2)


def test_motion_metrics_broadcasts_samples() -> None:
    truth = random_motion(1, 3)
    samples = [random_motion(seed, 3) for seed in (2, 3)]
    pred = SimpleNamespace(**{name: torch.stack([getattr(s, name) for s in samples], dim=1) for name in vars(truth)})
    found = metrics.motion_metrics(pred, as_target(truth))
    assert set(found) <= set(metrics.METRICS)
    for name, value in found.items():
        assert value.shape == (3, 2), name
    for column, one in enumerate(samples):
        alone = metrics.motion_metrics(with_samples(one), as_target(truth))
        for name, value in alone.items():
            torch.testing.assert_close(found[name][:, column], value[:, 0], msg=name)


def test_motion_metrics_leaves_inputs_alone() -> None:
    truth, pred = random_motion(1, 2), with_samples(random_motion(2, 2))
    target = as_target(truth)
    before = (
        {name: value.clone() for name, value in vars(target).items()},
        {n: v.clone() for n, v in vars(pred).items()},
    )
    metrics.motion_metrics(pred, target)
    for old, new in zip(before, (target, pred), strict=True):
        assert all(torch.equal(old[name], value) for name, value in vars(new).items())


def test_families() -> None:
    assert {info.family for info in metrics.METRICS.values()} == {"both", "standard", "paper"}
    standard, paper = metrics.metric_names("standard"), metrics.metric_names("paper")
    assert {"mpjpe_mm", "pa_mpjpe_mm"} <= set(standard) and "pa_mpjpe_egoallo_mm" not in standard
    assert {"mpjpe_mm", "pa_mpjpe_egoallo_mm"} <= set(paper) and "pa_mpjpe_mm" not in paper
    assert set(standard) | set(paper) == set(metrics.metric_names("all")) == set(metrics.METRICS)
    assert metrics.metric_names("all", ["gnd", "mpjpe_mm"]) == ["mpjpe_mm", "gnd"]


def test_errors_say_what_is_wrong() -> None:
    joints = random_motion(1, 2).joints22
    with pytest.raises(InputError, match="agree on their last 3 axes"):
        metrics.mpjpe_mm(joints, joints[:, :-1])
    with pytest.raises(InputError, match="bool tensor"):
        metrics.mpjpe_mm(joints, joints, torch.ones(2, FRAMES))
    with pytest.raises(InputError, match="must cover the motion's 9 frames"):
        metrics.mpjpe_mm(joints, joints, torch.ones(2, FRAMES - 1, dtype=torch.bool))
    with pytest.raises(InputError, match="22 joints"):
        metrics.fs_egoallo_m(joints[:, :, :21])
    with pytest.raises(InputError, match="S axis of 1"):
        metrics.motion_metrics(random_motion(1, 2), as_target(random_motion(1, 2)))
    with pytest.raises(InputError, match="family"):
        metrics.metric_names("published")  # type: ignore[arg-type]
