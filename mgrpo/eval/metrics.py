"""Errors and plausibility measures of recovered motion, in two clearly named families.

*Standard* measures are the usual definitions; *paper* measures are what the published numbers of EgoAllo and MotionGRPO
hold (where the two differ the name says so). :data:`METRICS` lists every measure with its unit, family and direction;
:func:`motion_metrics` computes all of them for samples of one condition each.

Shapes and conventions: joints are ``(…, T, 22, 3)`` world positions in metres, pelvis first, z up, floor at z = 0;
local rotations are ``(…, T, 21, 3, 3)``; leading axes of prediction, target and mask broadcast; the result keeps the
leading axes. ``mask (…, T)`` is True on real frames; frames outside take no part at all, even where they hold NaN. A
measure over no frames (a clip that is too short, or never on the ground) is NaN: it cannot be scored. A unit stands at
the end of each name; ``fps`` is in Hz.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mgrpo import geometry
from mgrpo.body.skeleton import FOOT_CONTACT_HEIGHTS_M, FOOT_JOINTS, HEAD
from mgrpo.errors import InputError
from mgrpo.kernels import procrustes_align

HEAD_22 = HEAD + 1
"""Row of the head among the 22 joints with the pelvis first."""
FEET_22 = tuple(joint + 1 for joint in FOOT_JOINTS)
"""Rows of left ankle, right ankle, left toe, right toe among the 22 joints."""

Family = Literal["both", "standard", "paper"]


@dataclass(frozen=True)
class MetricInfo:
    """What one measure is called, measured in and how to read it."""

    name: str
    """Key in the results."""
    label: str
    """Column heading."""
    unit: str
    """Unit as printed; empty for a plain number."""
    family: Family
    """Family of definitions that it belongs to: ``both`` where published and standard agree."""
    better: Literal["lower", "higher", "none"] = "lower"
    """Direction that counts as an improvement."""
    decimals: int = 2
    """Digits after the point in printed tables."""
    scale: float = 1.0
    """Factor from the stored value to the printed one."""
    doc: str = ""
    """One line of meaning."""

    @property
    def heading(self) -> str:
        """Label with the unit in brackets."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


_INFOS = (
    MetricInfo(
        "mpjpe_mm", "MPJPE", "mm", "both", doc="mean joint position error, world frame, 22 joints, no alignment"
    ),
    MetricInfo(
        "pa_mpjpe_mm",
        "PA-MPJPE",
        "mm",
        "standard",
        doc="position error after a similarity fit of each predicted frame to the truth",
    ),
    MetricInfo(
        "pa_mpjpe_egoallo_mm",
        "PA-MPJPE*",
        "mm",
        "paper",
        doc="EgoAllo's function: the truth fitted to the prediction, against the truth",
    ),
    MetricInfo("mpjve_mm_s", "MPJVE", "mm/s", "both", decimals=1, doc="mean joint velocity error"),
    MetricInfo("mpjre_geodesic_deg", "MPJRE", "deg", "standard", doc="mean geodesic angle of 21 local rotations"),
    MetricInfo(
        "mpjre_paper_deg",
        "MPJRE*",
        "deg",
        "paper",
        doc="mean absolute wrapped axis-angle component difference, 21 local rotations",
    ),
    MetricInfo(
        "jitter_m_s3",
        "Jitter",
        "m/s³",
        "standard",
        decimals=1,
        doc="mean norm of the third derivative of the joints' positions",
    ),
    MetricInfo(
        "jitter_ratio",
        "Jitter*",
        "ratio",
        "paper",
        decimals=3,
        doc="mean jerk of the prediction over mean jerk of the truth",
    ),
    MetricInfo(
        "gp_mean_mm", "GP", "mm", "standard", doc="depth of the deepest joint below the floor, mean over frames"
    ),
    MetricInfo(
        "gp_sum_m",
        "GP*",
        "m",
        "paper",
        decimals=3,
        doc="depth of the deepest joint below the floor, summed over frames",
    ),
    MetricInfo(
        "fs_mm_per_contact_frame",
        "FS",
        "mm",
        "standard",
        doc="horizontal slide of a touching foot joint per frame of contact",
    ),
    MetricInfo(
        "fs_egoallo_m", "FS*", "m", "paper", decimals=3, doc="EgoAllo's foot skating, summed over frames and feet"
    ),
    MetricInfo("head_position_mm", "Head", "mm", "both", doc="mean position error of the head joint"),
    MetricInfo(
        "head_angle_deg", "Head angle", "deg", "standard", doc="mean geodesic angle of the head's world rotation"
    ),
    MetricInfo(
        "head_rotation_frobenius",
        "Head rot.*",
        "",
        "paper",
        decimals=4,
        doc="mean Frobenius norm of R_pred R_truthᵀ - I at the head",
    ),
    MetricInfo(
        "gnd",
        "GND",
        "",
        "both",
        better="higher",
        decimals=3,
        doc="share of clips in which a foot ever touches the floor",
    ),
    MetricInfo(
        "diversity_joint_std_mm",
        "Spread",
        "mm",
        "standard",
        better="none",
        doc="standard deviation of a joint over the samples of one condition",
    ),
    MetricInfo(
        "diversity_l2",
        "Diversity*",
        "",
        "paper",
        better="none",
        decimals=3,
        doc="mean pairwise L2 of flattened joint positions in a group",
    ),
    MetricInfo("score", "Score", "", "both", better="higher", decimals=3, doc="perceptual model's score"),
    MetricInfo(
        "score_gap",
        "Score gap",
        "",
        "both",
        better="lower",
        decimals=3,
        doc="score of the truth minus score of the sample",
    ),
    MetricInfo(
        "accuracy",
        "Accuracy",
        "%",
        "both",
        better="none",
        decimals=1,
        scale=100.0,
        doc="share of samples that score below their ground truth",
    ),
    MetricInfo(
        "wrong_count",
        "Wrong",
        "",
        "both",
        better="none",
        decimals=1,
        doc="windows whose sample scores at least as high as the truth",
    ),
)

METRICS: dict[str, MetricInfo] = {info.name: info for info in _INFOS}
"""Every measure, in the order of the tables."""


class Motion(Protocol):
    """The part of a predicted motion that the measures read: world joints, local and world rotations, S samples of B
    conditions."""

    @property
    def joints22(self) -> Tensor:
        """``(B, S, T, 22, 3)`` metres."""
        ...

    @property
    def body_rotmats(self) -> Tensor:
        """``(B, S, T, 21, 3, 3)`` local rotations."""
        ...

    @property
    def R_world_joint22(self) -> Tensor:
        """``(B, S, T, 22, 3, 3)`` world rotations."""
        ...


class TargetMotion(Protocol):
    """The part of evaluation windows that the measures read (:class:`mgrpo.data.windows.MotionWindows` has it)."""

    @property
    def joints(self) -> Tensor:
        """``(B, T, 22, 3)`` metres."""
        ...

    @property
    def body_rotmats(self) -> Tensor:
        """``(B, T, 21, 3, 3)`` local rotations."""
        ...

    @property
    def R_world_joint(self) -> Tensor:
        """``(B, T, 22, 3, 3)`` world rotations."""
        ...

    @property
    def mask(self) -> Tensor:
        """``(B, T)`` bool."""
        ...


def _frame_mask(mask: Tensor | None, per_frame: Tensor, span: int = 1) -> Tensor | None:
    """Mask of windows of ``span`` consecutive frames ``(…, T-span+1)`` that lie wholly on real frames, or None."""
    if mask is None:
        return None
    if mask.dtype != torch.bool:
        raise InputError(f"A frame mask must be a bool tensor (…, T), got {mask.dtype}; pass `mask.bool()`.")
    positions = max(0, mask.shape[-1] - span + 1)
    if positions != per_frame.shape[-1]:
        raise InputError(
            f"A frame mask must cover the motion's {per_frame.shape[-1] + span - 1} frames, "
            f"got shape {tuple(mask.shape)}."
        )
    return torch.stack([mask[..., shift : shift + positions] for shift in range(span)]).all(0)


def _mean_over_frames(per_frame: Tensor, mask: Tensor | None, span: int = 1) -> Tensor:
    """Mean over the last axis, frames, of ``(…, T')`` values that each look at ``span`` frames; NaN where there is no
    frame."""
    whole = _frame_mask(mask, per_frame, span)
    if whole is None:
        return per_frame.mean(-1)
    kept = torch.where(whole, per_frame, torch.zeros_like(per_frame))
    return kept.sum(-1) / whole.expand_as(kept).sum(-1)


def _sum_over_frames(per_frame: Tensor, mask: Tensor | None, span: int = 1) -> Tensor:
    """Sum over the last axis, frames; frames outside the mask count nothing."""
    whole = _frame_mask(mask, per_frame, span)
    if whole is None:
        return per_frame.sum(-1)
    return torch.where(whole, per_frame, torch.zeros_like(per_frame)).sum(-1)


def _check_joints(joints: Tensor, name: str) -> None:
    if joints.ndim < 3 or joints.shape[-1] != 3:
        raise InputError(f"{name} must hold joint positions (…, T, J, 3) in metres, got shape {tuple(joints.shape)}.")


def _check_pair(pred: Tensor, target: Tensor, trailing: int) -> None:
    if pred.shape[-trailing:] != target.shape[-trailing:]:
        raise InputError(
            f"Prediction and target must agree on their last {trailing} axes, got {tuple(pred.shape)} and "
            f"{tuple(target.shape)}; compare the same frames and joints."
        )


def _check_feet(joints: Tensor) -> None:
    _check_joints(joints, "joints")
    if joints.shape[-2] != 22:
        raise InputError(f"Foot measures need the 22 joints with the pelvis first, got {joints.shape[-2]} joints.")


def mpjpe_mm(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean per-joint position error in mm (paper equation 17): world frame, no alignment. ``(…, T, J, 3)`` twice ->
    ``(…)``."""
    _check_joints(pred, "pred")
    _check_pair(pred, target, 3)
    return 1000.0 * _mean_over_frames((pred - target).norm(dim=-1).mean(-1), mask)


def _aligned_error_mm(source: Tensor, goal: Tensor, against: Tensor, mask: Tensor | None, with_scale: bool) -> Tensor:
    """Fit ``source`` to ``goal`` frame by frame, then the mean distance to ``against`` in mm."""
    source, goal, against = torch.broadcast_tensors(source, goal, against)
    if mask is not None:
        # Frames outside the mask may hold NaN, which an iterative alignment must not meet.
        inside = mask[..., None, None]
        source, goal = (torch.where(inside, joints, torch.zeros_like(joints)) for joints in (source, goal))
    aligned = procrustes_align(source.contiguous(), goal.contiguous(), with_scale=with_scale).aligned
    return 1000.0 * _mean_over_frames((aligned - against).norm(dim=-1).mean(-1), mask)


def pa_mpjpe_mm(pred: Tensor, target: Tensor, mask: Tensor | None = None, *, with_scale: bool = True) -> Tensor:
    """Procrustes-aligned MPJPE in mm: each frame of the prediction fitted to the target by a proper rotation, a shift
    and (unless ``with_scale`` is False) a scale, then compared with it. ``(…, T, J, 3)`` twice -> ``(…)``."""
    _check_joints(pred, "pred")
    _check_pair(pred, target, 3)
    return _aligned_error_mm(pred, target, target, mask, with_scale)


def pa_mpjpe_egoallo_mm(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """What EgoAllo's evaluation calls PA-MPJPE, in mm: the *target* fitted to the prediction, compared with the target
    itself.

    The prediction enters through the fit alone: one that is a similarity of the target scores its full offset, and
    noise on the joints scores far below its real error. Kept only to stand beside published numbers.
    """
    _check_joints(pred, "pred")
    _check_pair(pred, target, 3)
    return _aligned_error_mm(target, pred, target, mask, True)


def mpjve_mm_s(pred: Tensor, target: Tensor, mask: Tensor | None = None, *, fps: float = 30.0) -> Tensor:
    """Mean per-joint velocity error in mm/s (paper equation 18), velocities by forward difference. ``(…, T, J, 3)``
    twice -> ``(…)``."""
    _check_joints(pred, "pred")
    _check_pair(pred, target, 3)
    difference = (pred.diff(dim=-3) - target.diff(dim=-3)) * (1000.0 * fps)
    return _mean_over_frames(difference.norm(dim=-1).mean(-1), mask, span=2)


def mpjre_geodesic_deg(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean geodesic angle in degrees (paper equation 19) of local rotations ``(…, T, 21, 3, 3)`` twice -> ``(…)``."""
    _check_pair(pred, target, 4)
    return torch.rad2deg(_mean_over_frames(geometry.geodesic_angle(pred, target).mean(-1), mask))


def mpjre_paper_deg(pred: Tensor, target: Tensor, mask: Tensor | None = None, *, short_way: bool = True) -> Tensor:
    """Mean absolute difference of axis-angle *components*, each wrapped into ±180 degrees, in degrees: about half the
    geodesic angle. Local rotations ``(…, T, 21, 3, 3)`` twice -> ``(…)``.

    With ``short_way`` False the prediction's rotation vector has the length that the sign of its quaternion gives (up
    to 360 degrees), as the quaternion leaves the matrix conversion: the published evaluation to the last digit. The
    default takes the short way for both, so that equal rotations always score zero; the two differ only for predictions
    beyond 120 degrees.
    """
    _check_pair(pred, target, 4)
    # Normalised so that NaN stays NaN.
    pred_quat, target_quat = (F.normalize(geometry.rotmat_to_quat(rotmats), dim=-1) for rotmats in (pred, target))
    target_vector = geometry.quat_to_axis_angle(target_quat)
    pred_vector = geometry.quat_to_axis_angle(pred_quat)
    if not short_way:
        angle = pred_vector.norm(dim=-1, keepdim=True)
        full_turn = 2.0 * torch.pi / angle.clamp_min(torch.finfo(angle.dtype).eps)
        pred_vector = torch.where(pred_quat[..., :1] < 0, pred_vector * (1.0 - full_turn), pred_vector)
    difference = torch.remainder(pred_vector - target_vector + torch.pi, 2.0 * torch.pi) - torch.pi
    return torch.rad2deg(_mean_over_frames(difference.abs().mean((-1, -2)), mask))


def head_position_mm(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean position error of the head joint in mm (EgoAllo's T_head, there in metres). ``(…, T, 22, 3)`` twice ->
    ``(…)``."""
    _check_feet(pred)
    _check_pair(pred, target, 3)
    return 1000.0 * _mean_over_frames((pred[..., HEAD_22, :] - target[..., HEAD_22, :]).norm(dim=-1), mask)


def head_angle_deg(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean geodesic angle in degrees of the head's world rotation. World rotations ``(…, T, 22, 3, 3)`` twice ->
    ``(…)``."""
    _check_pair(pred, target, 4)
    angle = geometry.geodesic_angle(pred[..., HEAD_22, :, :], target[..., HEAD_22, :, :])
    return torch.rad2deg(_mean_over_frames(angle, mask))


def head_rotation_frobenius(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """EgoAllo's head orientation error: mean Frobenius norm of ``R_pred R_targetᵀ - I``. ``(…, T, 22, 3, 3)`` twice ->
    ``(…)``."""
    _check_pair(pred, target, 4)
    product = pred[..., HEAD_22, :, :] @ target[..., HEAD_22, :, :].transpose(-1, -2)
    identity = torch.eye(3, dtype=product.dtype, device=product.device)
    return _mean_over_frames((product - identity).flatten(-2).norm(dim=-1), mask)


def jitter_m_s3(joints: Tensor, mask: Tensor | None = None, *, fps: float = 30.0) -> Tensor:
    """Mean norm of the jerk in m/s³: third forward difference times fps³. ``(…, T, J, 3)`` -> ``(…)``; needs four
    frames."""
    _check_joints(joints, "joints")
    jerk = joints.diff(n=3, dim=-3) * fps**3
    return _mean_over_frames(jerk.norm(dim=-1).mean(-1), mask, span=4)


def jitter_ratio(pred: Tensor, target: Tensor, mask: Tensor | None = None, *, fps: float = 30.0) -> Tensor:
    """Mean jerk of the prediction over mean jerk of the target, the published Jitter. ``(…, T, J, 3)`` twice ->
    ``(…)``."""
    _check_pair(pred, target, 3)
    return jitter_m_s3(pred, mask, fps=fps) / jitter_m_s3(target, mask, fps=fps)


def _deepest_m(joints: Tensor) -> Tensor:
    """Depth in metres of the deepest joint below z = 0 in every frame ``(…, T)``, zero where none is below."""
    _check_joints(joints, "joints")
    return (-joints[..., 2]).amax(-1).clamp_min(0.0)


def gp_sum_m(joints: Tensor, mask: Tensor | None = None) -> Tensor:
    """Ground penetration as published, in metres: depth of the deepest joint below z = 0, summed over frames. ``(…, T,
    J, 3)`` -> ``(…)``."""
    return _sum_over_frames(_deepest_m(joints), mask)


def gp_mean_mm(joints: Tensor, mask: Tensor | None = None) -> Tensor:
    """Ground penetration in mm: depth of the deepest joint below z = 0, mean over frames. ``(…, T, J, 3)`` ->
    ``(…)``."""
    return 1000.0 * _mean_over_frames(_deepest_m(joints), mask)


def _feet_over_lowest(joints: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Foot joints ``(…, T, 4, 3)`` after the clip is put down on its lowest joint, and the contact heights ``(4,)`` in
    metres.

    The lowest joint is sought among the 21 joints below the pelvis row, over all real frames of the clip.
    """
    _check_feet(joints)
    heights = joints[..., 1:, 2]
    if mask is not None:
        _frame_mask(mask, heights[..., 0])
        heights = torch.where(mask[..., None], heights, torch.full_like(heights, torch.inf))
    lowest = heights.amin((-1, -2))
    feet = joints[..., list(FEET_22), :]
    shift = torch.zeros_like(feet[..., 0, 0, :])
    shift[..., 2] = lowest
    return feet - shift[..., None, None, :], joints.new_tensor(FOOT_CONTACT_HEIGHTS_M)


def fs_egoallo_m(joints: Tensor, mask: Tensor | None = None) -> Tensor:
    """Foot skating as EgoAllo and MotionGRPO publish it, in metres, **summed** over frames and the four foot joints.

    The clip is put down on its lowest joint; each step of a foot joint counts ``(|Δx| + |Δy|)(2 - 2^(z/H))`` where its
    later frame is lower than ``H``. It grows with the clip's length. ``(…, T, 22, 3)`` -> ``(…)``; every leading index
    is a clip with a floor of its own.
    """
    feet, heights = _feet_over_lowest(joints, mask)
    slide = feet.diff(dim=-3)[..., :2].abs().sum(-1)
    z = feet[..., 1:, :, 2]
    weight = torch.where(z < heights, 2.0 - torch.exp2(z / heights), torch.zeros_like(z))
    return _sum_over_frames((slide * weight).sum(-1), mask, span=2)


def fs_mm_per_contact_frame(joints: Tensor, mask: Tensor | None = None) -> Tensor:
    """Foot skating in mm: mean horizontal distance that a foot joint moves in a frame in which it touches the floor.

    Contact means below the joint's height (8 cm ankles, 4 cm toes) in both frames of the step, with the clip put down
    on its lowest joint as in :func:`fs_egoallo_m`. Independent of the clip's length; NaN for a clip without contact.
    ``(…, T, 22, 3)`` -> ``(…)``.
    """
    feet, heights = _feet_over_lowest(joints, mask)
    low = feet[..., 2] < heights
    touching = low[..., 1:, :] & low[..., :-1, :]
    slide = torch.where(touching, feet.diff(dim=-3)[..., :2].norm(dim=-1), torch.zeros_like(feet[..., 1:, :, 2]))
    total = _sum_over_frames(slide.sum(-1), mask, span=2)
    return 1000.0 * total / _sum_over_frames(touching.to(slide.dtype).sum(-1), mask, span=2)


def gnd(joints: Tensor, mask: Tensor | None = None) -> Tensor:
    """EgoAllo's GND: 1.0 for a clip in which any foot joint is ever below its contact height over z = 0, else 0.0. ->
    ``(…)``."""
    _check_feet(joints)
    low = (joints[..., list(FEET_22), 2] < joints.new_tensor(FOOT_CONTACT_HEIGHTS_M)).any(-1).to(joints.dtype)
    return (_sum_over_frames(low, mask) > 0).to(joints.dtype)


def diversity_l2(motions: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean pairwise Euclidean distance of the S flattened motions of a group (paper equation 22): ``(…, S, T, D)`` ->
    ``(…)``.

    D features per frame, in whatever unit they have (joints flattened to ``(…, S, T, 66)``: metres); ``mask (…, T)``
    has no S axis. It grows with the root of T and D. NaN for a group of one.
    """
    if motions.ndim < 3:
        raise InputError(f"diversity_l2() needs motions (…, S, T, D), got shape {tuple(motions.shape)}.")
    if mask is not None:
        _frame_mask(mask, motions[..., 0, :, 0])
        motions = torch.where(mask[..., None, :, None], motions, torch.zeros_like(motions))
    flat = motions.flatten(-2)
    samples = flat.shape[-2]
    if samples < 2:
        return flat.new_full(flat.shape[:-2], torch.nan)
    # A loop over members keeps the memory at S motions per group instead of S² of them.
    total = flat.new_zeros(flat.shape[:-2])
    for i in range(samples - 1):
        total = total + (flat[..., i + 1 :, :] - flat[..., i : i + 1, :]).norm(dim=-1).sum(-1)
    return total / (samples * (samples - 1) / 2)


def diversity_joint_std_mm(joints: Tensor, mask: Tensor | None = None) -> Tensor:
    """Spread of a joint over the samples of a group in mm: root of the unbiased variance of its position (three axes
    together), mean over joints and frames. ``(…, S, T, J, 3)``, ``mask (…, T)`` -> ``(…)``; NaN for a group of one."""
    _check_joints(joints, "joints")
    if joints.shape[-4] < 2:
        return joints.new_full(joints.shape[:-4], torch.nan)
    spread = joints.var(dim=-4, correction=1).sum(-1).sqrt()
    return 1000.0 * _mean_over_frames(spread.mean(-1), mask)


def motion_metrics(pred: Motion, target: TargetMotion, *, fps: float = 30.0) -> dict[str, Tensor]:
    """Every per-sample measure of both families, each ``(B, S)``: S predictions for each of B conditions.

    ``pred`` has ``joints22 (B, S, T, 22, 3)``, ``body_rotmats`` and ``R_world_joint22`` alike (as
    :func:`mgrpo.models.motion.decode_motion` returns); ``target`` is a :class:`~mgrpo.data.windows.MotionWindows` of B
    windows, its mask applied. Diversity, which needs a whole group, comes from :func:`group_diversity`.
    """
    joints, rotmats, world = pred.joints22, pred.body_rotmats, pred.R_world_joint22
    if joints.ndim != 5 or joints.shape[0] != target.joints.shape[0] or joints.shape[2:] != target.joints.shape[1:]:
        raise InputError(
            "motion_metrics() needs predictions (B, S, T, 22, 3) for targets (B, T, 22, 3), got "
            f"{tuple(joints.shape)} and {tuple(target.joints.shape)}; give a single prediction an S axis of 1."
        )
    mask = target.mask[:, None]
    true_joints, true_rotmats, true_world = (
        target.joints[:, None],
        target.body_rotmats[:, None],
        target.R_world_joint[:, None],
    )
    return {
        "mpjpe_mm": mpjpe_mm(joints, true_joints, mask),
        "pa_mpjpe_mm": pa_mpjpe_mm(joints, true_joints, mask),
        "pa_mpjpe_egoallo_mm": pa_mpjpe_egoallo_mm(joints, true_joints, mask),
        "mpjve_mm_s": mpjve_mm_s(joints, true_joints, mask, fps=fps),
        "mpjre_geodesic_deg": mpjre_geodesic_deg(rotmats, true_rotmats, mask),
        "mpjre_paper_deg": mpjre_paper_deg(rotmats, true_rotmats, mask),
        "jitter_m_s3": jitter_m_s3(joints, mask, fps=fps),
        "jitter_ratio": jitter_ratio(joints, true_joints, mask, fps=fps),
        "gp_mean_mm": gp_mean_mm(joints, mask),
        "gp_sum_m": gp_sum_m(joints, mask),
        "fs_mm_per_contact_frame": fs_mm_per_contact_frame(joints, mask),
        "fs_egoallo_m": fs_egoallo_m(joints, mask),
        "head_position_mm": head_position_mm(joints, true_joints, mask),
        "head_angle_deg": head_angle_deg(world, true_world, mask),
        "head_rotation_frobenius": head_rotation_frobenius(world, true_world, mask),
        "gnd": gnd(joints, mask),
    }


def group_diversity(joints: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Both diversity measures of groups of joints ``(B, S, T, 22, 3)`` with ``mask (B, T)``: each ``(B,)``, NaN for S =
    1."""
    return {
        "diversity_joint_std_mm": diversity_joint_std_mm(joints, mask),
        "diversity_l2": diversity_l2(joints.flatten(-2), mask),
    }


def metric_names(
    family: Literal["standard", "paper", "all"] = "standard", among: Sequence[str] | None = None
) -> list[str]:
    """Names of a family's measures in table order, those that both families share included; only those in ``among``
    where given."""
    if family not in ("standard", "paper", "all"):
        raise InputError(f"A family of measures is 'standard', 'paper' or 'all', got {family!r}.")
    kept = (info.name for info in _INFOS if family == "all" or info.family in ("both", family))
    return [name for name in kept if among is None or name in among]
