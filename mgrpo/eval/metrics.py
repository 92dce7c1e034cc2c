"""Errors and plausibility measures of recovered motion, in two clearly named families.

*Standard* measures are the usual definitions; *paper* measures are what the published numbers of EgoAllo and MotionGRPO
hold (where the two differ the name says so). :data:`METRICS` lists every measure with its unit, family and direction;
:func:`motion_metrics` computes all of them for samples of one condition each.

Shapes and conventions: joints are ``(…, T, 22, 3)`` world positions in metres, pelvis first, z up, floor at z = 0;
local rotations are ``(…, T, 21, 3, 3)``; leading axes of prediction, target and mask broadcast; the result keeps the
leading axes. ``mask (…, T)`` is True on real frames; frames outside take no part at all, even where they hold NaN. A
measure over no frames (a clip that is too short, or never on the ground) is NaN: it cannot be scored; so is every
measure of a motion with NaN or infinity inside the mask. A unit stands at
the end of each name; ``fps`` is in Hz.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from mgrpo import kernels
from mgrpo.body.skeleton import FOOT_CONTACT_HEIGHTS_M, FOOT_JOINTS, HEAD
from mgrpo.errors import InputError
from mgrpo.kernels.metrics import reference as formulas

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
        "m",
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


def _checked(mask: Tensor | None, frames: int) -> Tensor | None:
    """The mask, after a check that it is bool and covers ``frames`` frames."""
    if mask is None:
        return None
    if mask.dtype != torch.bool:
        raise InputError(f"A frame mask must be a bool tensor (…, T), got {mask.dtype}; pass `mask.bool()`.")
    if mask.shape[-1] != frames:
        raise InputError(f"A frame mask must cover the motion's {frames} frames, got shape {tuple(mask.shape)}.")
    return mask


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


def unless_broken(value: Tensor, mask: Tensor | None, *motions: Tensor | None, frames_axis: int = -3) -> Tensor:
    """``value (…)``, NaN where a motion holds NaN or infinity in a frame inside the mask ``(…, T)``.

    A comparison with NaN is false, so that a broken motion would count as one whose feet never slide. The time axis of
    each motion is ``frames_axis``, what comes before it broadcasts with ``value``; None stands for a motion that is not
    there.
    """
    for motion in motions:
        if motion is None:
            continue
        whole = motion.isfinite().flatten(frames_axis + 1).all(-1)
        if mask is not None:
            whole = whole | ~mask
        value = torch.where(whole.all(-1), value, torch.nan)
    return value


def mpjpe_mm(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean per-joint position error in mm (paper equation 17): world frame, no alignment. ``(…, T, J, 3)`` twice ->
    ``(…)``."""
    _check_joints(pred, "pred")
    _check_pair(pred, target, 3)
    return unless_broken(formulas.mpjpe_mm(pred, target, _checked(mask, pred.shape[-3])), mask, pred, target)


def pa_mpjpe_mm(pred: Tensor, target: Tensor, mask: Tensor | None = None, *, with_scale: bool = True) -> Tensor:
    """Procrustes-aligned MPJPE in mm: each frame of the prediction fitted to the target by a proper rotation, a shift
    and (unless ``with_scale`` is False) a scale, then compared with it. ``(…, T, J, 3)`` twice -> ``(…)``."""
    _check_joints(pred, "pred")
    _check_pair(pred, target, 3)
    return unless_broken(
        formulas.pa_mpjpe_mm(pred, target, _checked(mask, pred.shape[-3]), with_scale), mask, pred, target
    )


def pa_mpjpe_egoallo_mm(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """What EgoAllo's evaluation calls PA-MPJPE, in mm: the *target* fitted to the prediction, compared with the target
    itself.

    The prediction enters through the fit alone: one that is a similarity of the target scores its full offset, and
    noise on the joints scores far below its real error. Kept only to stand beside published numbers.
    """
    _check_joints(pred, "pred")
    _check_pair(pred, target, 3)
    return unless_broken(formulas.pa_mpjpe_egoallo_mm(pred, target, _checked(mask, pred.shape[-3])), mask, pred, target)


def mpjve_mm_s(pred: Tensor, target: Tensor, mask: Tensor | None = None, *, fps: float = 30.0) -> Tensor:
    """Mean per-joint velocity error in mm/s (paper equation 18), velocities by forward difference. ``(…, T, J, 3)``
    twice -> ``(…)``."""
    _check_joints(pred, "pred")
    _check_pair(pred, target, 3)
    return unless_broken(formulas.mpjve_mm_s(pred, target, _checked(mask, pred.shape[-3]), fps), mask, pred, target)


def mpjre_geodesic_deg(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean geodesic angle in degrees (paper equation 19) of local rotations ``(…, T, 21, 3, 3)`` twice -> ``(…)``."""
    _check_pair(pred, target, 4)
    return unless_broken(
        formulas.mpjre_geodesic_deg(pred, target, _checked(mask, pred.shape[-4])), mask, pred, target, frames_axis=-4
    )


def mpjre_paper_deg(pred: Tensor, target: Tensor, mask: Tensor | None = None, *, short_way: bool = True) -> Tensor:
    """Mean absolute difference of axis-angle *components*, each wrapped into ±180 degrees, in degrees: about half the
    geodesic angle. Local rotations ``(…, T, 21, 3, 3)`` twice -> ``(…)``.

    With ``short_way`` False the prediction's rotation vector has the length that the sign of its quaternion gives (up
    to 360 degrees), as the quaternion leaves the matrix conversion: the published evaluation to the last digit. The
    default takes the short way for both, so that equal rotations always score zero; the two differ only for predictions
    beyond 120 degrees.
    """
    _check_pair(pred, target, 4)
    return unless_broken(
        formulas.mpjre_paper_deg(pred, target, _checked(mask, pred.shape[-4]), short_way),
        mask,
        pred,
        target,
        frames_axis=-4,
    )


def head_position_mm(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean position error of the head joint in mm (EgoAllo's T_head, there in metres). ``(…, T, 22, 3)`` twice ->
    ``(…)``."""
    _check_feet(pred)
    _check_pair(pred, target, 3)
    return unless_broken(
        formulas.head_position_mm(pred, target, _checked(mask, pred.shape[-3]), HEAD_22), mask, pred, target
    )


def head_angle_deg(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean geodesic angle in degrees of the head's world rotation. World rotations ``(…, T, 22, 3, 3)`` twice ->
    ``(…)``."""
    _check_pair(pred, target, 4)
    pred, target = pred[..., HEAD_22, :, :], target[..., HEAD_22, :, :]
    return unless_broken(formulas.head_angle_deg(pred, target, _checked(mask, pred.shape[-3])), mask, pred, target)


def head_rotation_frobenius(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """EgoAllo's head orientation error: mean Frobenius norm of ``R_pred R_targetᵀ - I``. ``(…, T, 22, 3, 3)`` twice ->
    ``(…)``."""
    _check_pair(pred, target, 4)
    pred, target = pred[..., HEAD_22, :, :], target[..., HEAD_22, :, :]
    return unless_broken(
        formulas.head_rotation_frobenius(pred, target, _checked(mask, pred.shape[-3])), mask, pred, target
    )


def jitter_m_s3(joints: Tensor, mask: Tensor | None = None, *, fps: float = 30.0) -> Tensor:
    """Mean norm of the jerk in m/s³: third forward difference times fps³. ``(…, T, J, 3)`` -> ``(…)``; needs four
    frames."""
    _check_joints(joints, "joints")
    return unless_broken(formulas.jitter_m_s3(joints, _checked(mask, joints.shape[-3]), fps), mask, joints)


def jitter_ratio(pred: Tensor, target: Tensor, mask: Tensor | None = None, *, fps: float = 30.0) -> Tensor:
    """Mean jerk of the prediction over mean jerk of the target, the published Jitter. ``(…, T, J, 3)`` twice ->
    ``(…)``."""
    _check_pair(pred, target, 3)
    return jitter_m_s3(pred, mask, fps=fps) / jitter_m_s3(target, mask, fps=fps)


def gp_sum_m(joints: Tensor, mask: Tensor | None = None) -> Tensor:
    """Ground penetration as published, in metres: depth of the deepest joint below z = 0, summed over frames. ``(…, T,
    J, 3)`` -> ``(…)``."""
    _check_joints(joints, "joints")
    return unless_broken(formulas.gp_sum_m(joints, _checked(mask, joints.shape[-3])), mask, joints)


def gp_mean_mm(joints: Tensor, mask: Tensor | None = None) -> Tensor:
    """Ground penetration in mm: depth of the deepest joint below z = 0, mean over frames. ``(…, T, J, 3)`` ->
    ``(…)``."""
    _check_joints(joints, "joints")
    return unless_broken(formulas.gp_mean_mm(joints, _checked(mask, joints.shape[-3])), mask, joints)


def fs_egoallo_m(
    joints: Tensor, mask: Tensor | None = None, *, floor: Literal["clip", "group", "world"] = "clip"
) -> Tensor:
    """Foot skating as EgoAllo and MotionGRPO publish it, in metres, **summed** over frames and the four foot joints.

    The clip is put down on its lowest joint; each step of a foot joint counts ``(|Δx| + |Δy|)(2 - 2^(z/H))`` where its
    later frame is lower than ``H``. It grows with the clip's length. ``(…, T, 22, 3)`` -> ``(…)``; every leading index
    is a clip with a floor of its own. With ``floor="group"`` the samples of ``(…, S, T, 22, 3)`` share the lowest joint
    of them all, as EgoAllo's function does when it gets several at once; with ``"world"`` the floor is z = 0.
    """
    _check_feet(joints)
    if floor not in ("clip", "group", "world") or (floor == "group" and joints.ndim < 4):
        raise InputError(
            f"fs_egoallo_m() takes floor 'clip', 'world', or 'group' with joints (…, S, T, 22, 3), got {floor!r} and "
            f"{tuple(joints.shape)}"
        )
    mask = _checked(mask, joints.shape[-3])
    lowest = None
    if floor == "group":
        lowest = formulas.lowest_m(joints, mask).amin(-1, keepdim=True)
    elif floor == "world":
        lowest = joints.new_zeros(())
    return unless_broken(formulas.fs_egoallo_m(joints, mask, FEET_22, FOOT_CONTACT_HEIGHTS_M, lowest), mask, joints)


def fs_mm_per_contact_frame(joints: Tensor, mask: Tensor | None = None) -> Tensor:
    """Foot skating in mm: mean horizontal distance that a foot joint moves in a frame in which it touches the floor.

    Contact means below the joint's height (8 cm ankles, 4 cm toes) in both frames of the step, with the clip put down
    on its lowest joint as in :func:`fs_egoallo_m`. Independent of the clip's length; NaN for a clip without contact.
    ``(…, T, 22, 3)`` -> ``(…)``.
    """
    _check_feet(joints)
    return unless_broken(
        formulas.fs_mm_per_contact_frame(joints, _checked(mask, joints.shape[-3]), FEET_22, FOOT_CONTACT_HEIGHTS_M),
        mask,
        joints,
    )


def gnd(joints: Tensor, mask: Tensor | None = None) -> Tensor:
    """EgoAllo's GND: 1.0 for a clip in which any foot joint is ever below its contact height over z = 0, else 0.0. ->
    ``(…)``."""
    _check_feet(joints)
    return unless_broken(
        formulas.gnd(joints, _checked(mask, joints.shape[-3]), FEET_22, FOOT_CONTACT_HEIGHTS_M), mask, joints
    )


def diversity_l2(motions: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean pairwise Euclidean distance of the S flattened motions of a group (paper equation 22): ``(…, S, T, D)`` ->
    ``(…)``.

    D features per frame, in whatever unit they have (joints flattened to ``(…, S, T, 66)``: metres); ``mask (…, T)``
    has no S axis. It grows with the root of T and D. NaN for a group of one.
    """
    if motions.ndim < 3:
        raise InputError(f"diversity_l2() needs motions (…, S, T, D), got shape {tuple(motions.shape)}.")
    if mask is not None:
        mask = _checked(mask, motions.shape[-2])
        motions = torch.where(mask[..., None, :, None], motions, torch.zeros_like(motions))
    flat = motions.flatten(-2)
    samples = flat.shape[-2]
    if samples < 2:
        return flat.new_full(flat.shape[:-2], torch.nan)
    # A loop over members keeps the memory at S motions per group instead of S² of them.
    total = flat.new_zeros(flat.shape[:-2])
    for i in range(samples - 1):
        total = total + (flat[..., i + 1 :, :] - flat[..., i : i + 1, :]).norm(dim=-1).sum(-1)
    return torch.where(total.isfinite(), total / (samples * (samples - 1) / 2), torch.nan)


def diversity_joint_std_mm(joints: Tensor, mask: Tensor | None = None) -> Tensor:
    """Spread of a joint over the samples of a group in mm: root of the unbiased variance of its position (three axes
    together), mean over joints and frames. ``(…, S, T, J, 3)``, ``mask (…, T)`` -> ``(…)``; NaN for a group of one."""
    _check_joints(joints, "joints")
    if joints.shape[-4] < 2:
        return joints.new_full(joints.shape[:-4], torch.nan)
    spread = joints.var(dim=-4, correction=1).sum(-1).sqrt()
    found = 1000.0 * formulas.mean_over_frames(spread.mean(-1), _checked(mask, joints.shape[-3]))
    return torch.where(found.isfinite(), found, torch.nan)


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
    found = kernels.motion_metrics(
        joints,
        target.joints[:, None],
        rotmats,
        target.body_rotmats[:, None],
        target.mask[:, None],
        pred_R_world_head=world[..., HEAD_22, :, :],
        target_R_world_head=target.R_world_joint[:, None, :, HEAD_22],
        fps=fps,
        head=HEAD_22,
        feet=FEET_22,
        foot_heights=FOOT_CONTACT_HEIGHTS_M,
    )
    # One rule for all of them: a sample that isn't a motion has no score, by whatever part of it a measure looks at.
    motions = (joints, target.joints[:, None])
    turns = (rotmats, target.body_rotmats[:, None], world, target.R_world_joint[:, None])
    return {
        name: unless_broken(
            unless_broken(value, target.mask[:, None], *motions), target.mask[:, None], *turns, frames_axis=-4
        )
        for name, value in found._asdict().items()
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
