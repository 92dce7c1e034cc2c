"""The measures' formulas in plain torch, one function each, and all of them together: the oracle of ``motion_metrics``.

Joints are (..., T, J, 3) world positions in metres, pelvis first, z up; local rotations (..., T, K, 3, 3); leading axes
broadcast. ``mask`` (..., T) is True on real frames, None means all; what lies outside takes no part, even where it is
NaN. A mean over no frames is NaN. Definitions and sources: README.md of this folder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._autocast import without_autocast
from .._rotations import geodesic_angle, rotation_vector, unit_quaternion
from ..procrustes import procrustes_align

# ---- frames ----


def windows(mask: Tensor, span: int) -> Tensor:
    """(..., T - span + 1): True where ``span`` consecutive frames are all real."""
    count = max(0, mask.shape[-1] - span + 1)
    return torch.stack([mask[..., shift : shift + count] for shift in range(span)]).all(0)


def sum_over_frames(values: Tensor, mask: Tensor | None, span: int = 1) -> Tensor:
    """Sum over the last axis of values that each look at ``span`` frames."""
    if mask is None:
        return values.sum(-1)
    return torch.where(windows(mask, span), values, torch.zeros_like(values)).sum(-1)


def mean_over_frames(values: Tensor, mask: Tensor | None, span: int = 1) -> Tensor:
    """Mean over the last axis of values that each look at ``span`` frames; NaN where there is none."""
    if mask is None:
        return values.mean(-1)
    counted = windows(mask, span)
    kept = torch.where(counted, values, torch.zeros_like(values))
    return kept.sum(-1) / counted.expand_as(kept).sum(-1)


# ---- errors of positions ----


def mpjpe_mm(pred: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Mean distance of the joints, millimetres (...)."""
    return 1000.0 * mean_over_frames((pred - target).norm(dim=-1).mean(-1), mask)


def aligned_error_mm(
    source: Tensor, goal: Tensor, against: Tensor, mask: Tensor | None, with_scale: bool, backend: str | None
) -> Tensor:
    """``source`` fitted to ``goal`` frame by frame, then its mean distance to ``against``."""
    source, goal, against = torch.broadcast_tensors(source, goal, against)
    if mask is not None:
        # Frames outside the mask may hold NaN, which an iterative alignment must not meet.
        inside = mask[..., None, None]
        source, goal = (torch.where(inside, joints, torch.zeros_like(joints)) for joints in (source, goal))
    aligned = procrustes_align(source.contiguous(), goal.contiguous(), with_scale=with_scale, backend=backend).aligned
    return 1000.0 * mean_over_frames((aligned - against).norm(dim=-1).mean(-1), mask)


def pa_mpjpe_mm(
    pred: Tensor, target: Tensor, mask: Tensor | None, with_scale: bool = True, backend: str | None = None
) -> Tensor:
    """Mean distance after the prediction is fitted to the target frame by frame, millimetres (...)."""
    return aligned_error_mm(pred, target, target, mask, with_scale, backend)


def pa_mpjpe_egoallo_mm(pred: Tensor, target: Tensor, mask: Tensor | None, backend: str | None = None) -> Tensor:
    """EgoAllo's published variant: the target is fitted to the prediction, then compared with itself, mm (...)."""
    return aligned_error_mm(target, pred, target, mask, True, backend)


def mpjve_mm_s(pred: Tensor, target: Tensor, mask: Tensor | None, fps: float) -> Tensor:
    """Mean difference of the joints' velocities, of two frames each, millimetres per second (...); ``fps`` in Hz."""
    difference = (pred.diff(dim=-3) - target.diff(dim=-3)) * (1000.0 * fps)
    return mean_over_frames(difference.norm(dim=-1).mean(-1), mask, span=2)


def head_position_mm(pred: Tensor, target: Tensor, mask: Tensor | None, head: int) -> Tensor:
    """Mean distance of joint ``head``, millimetres (...)."""
    return 1000.0 * mean_over_frames((pred[..., head, :] - target[..., head, :]).norm(dim=-1), mask)


# ---- errors of rotations ----


def mpjre_geodesic_deg(pred: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Mean angle between local rotations, degrees (...)."""
    return torch.rad2deg(mean_over_frames(geodesic_angle(pred, target).mean(-1), mask))


def mpjre_paper_deg(pred: Tensor, target: Tensor, mask: Tensor | None, short_way: bool = True) -> Tensor:
    """The paper's measure: mean absolute difference of the entries of the rotation vectors, wrapped at half a turn,
    degrees (...). ``short_way``: as in ``motion_metrics``."""
    pred_vector = rotation_vector(unit_quaternion(pred), short_way=short_way)
    target_vector = rotation_vector(unit_quaternion(target))
    difference = (pred_vector - target_vector).abs()  # less than three half turns
    # Not by a remainder of difference + pi, which would cost small differences their digits.
    wrapped = torch.where(difference > torch.pi, 2.0 * torch.pi - difference, difference).abs()
    return torch.rad2deg(mean_over_frames(wrapped.mean((-1, -2)), mask))


def head_angle_deg(pred: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """World rotations of the head, (..., T, 3, 3)."""
    return torch.rad2deg(mean_over_frames(geodesic_angle(pred, target), mask))


@without_autocast
def head_rotation_frobenius(pred: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """World rotations of the head, (..., T, 3, 3)."""
    product = pred @ target.transpose(-1, -2)
    identity = torch.eye(3, dtype=product.dtype, device=product.device)
    return mean_over_frames((product - identity).flatten(-2).norm(dim=-1), mask)


# ---- plausibility ----


def jitter_m_s3(joints: Tensor, mask: Tensor | None, fps: float) -> Tensor:
    """Mean jerk of the joints, the third difference over four frames, metres per second cubed (...); ``fps`` in Hz."""
    jerk = joints.diff(n=3, dim=-3) * fps**3
    return mean_over_frames(jerk.norm(dim=-1).mean(-1), mask, span=4)


def deepest_m(joints: Tensor) -> Tensor:
    """Depth of the deepest joint below z = 0 in every frame (..., T), zero where none is below."""
    return (-joints[..., 2]).amax(-1).clamp_min(0.0)


def gp_sum_m(joints: Tensor, mask: Tensor | None) -> Tensor:
    """Ground penetration: depth of the deepest joint, summed over the frames, metres (...)."""
    return sum_over_frames(deepest_m(joints), mask)


def gp_mean_mm(joints: Tensor, mask: Tensor | None) -> Tensor:
    """Ground penetration: depth of the deepest joint, mean over the frames, millimetres (...)."""
    return 1000.0 * mean_over_frames(deepest_m(joints), mask)


def lowest_m(joints: Tensor, mask: Tensor | None) -> Tensor:
    """Height (...) of the lowest joint below the pelvis row over all frames."""
    heights = joints[..., 1:, 2]
    if mask is not None:
        heights = torch.where(mask[..., None], heights, torch.full_like(heights, torch.inf))
    return heights.amin((-1, -2))


def feet_over_lowest(joints: Tensor, mask: Tensor | None, feet: Sequence[int], lowest: Tensor | None = None) -> Tensor:
    """Foot joints (..., T, feet, 3) after the clip is put down on ``lowest`` (...), by default its lowest joint."""
    lowest = lowest_m(joints, mask) if lowest is None else lowest
    found = torch.stack([joints[..., foot, :] for foot in feet], dim=-2)
    return torch.stack((*found[..., :2].unbind(-1), found[..., 2] - lowest[..., None, None]), dim=-1)


def limits(joints: Tensor, foot_heights: Sequence[float]) -> Tensor:
    """``foot_heights`` (feet,) like ``joints``, filled on its device: a copy from the host would wait for it."""
    return torch.stack([torch.full((), h, dtype=joints.dtype, device=joints.device) for h in foot_heights])


def fs_egoallo_m(
    joints: Tensor,
    mask: Tensor | None,
    feet: Sequence[int],
    foot_heights: Sequence[float],
    lowest: Tensor | None = None,
) -> Tensor:
    """Foot skating as EgoAllo measures it: horizontal way (sum of both axes) of the feet below their ``foot_heights``
    (metres above the lowest joint), weighed by how low they are, summed over frames and feet, metres (...)."""
    found, heights = feet_over_lowest(joints, mask, feet, lowest), limits(joints, foot_heights)
    slide = found.diff(dim=-3)[..., :2].abs().sum(-1)
    z = found[..., 1:, :, 2]
    weight = torch.where(z < heights, 2.0 - torch.exp2(z / heights), torch.zeros_like(z))
    return sum_over_frames((slide * weight).sum(-1), mask, span=2)


def fs_mm_per_contact_frame(
    joints: Tensor, mask: Tensor | None, feet: Sequence[int], foot_heights: Sequence[float]
) -> Tensor:
    """Foot skating: horizontal way of feet that stay below their ``foot_heights`` (metres above the lowest joint) from
    one frame to the next, per such step, millimetres (...); NaN where no foot touches the ground."""
    found = feet_over_lowest(joints, mask, feet)
    low = found[..., 2] < limits(joints, foot_heights)
    touching = low[..., 1:, :] & low[..., :-1, :]
    slide = torch.where(touching, found.diff(dim=-3)[..., :2].norm(dim=-1), torch.zeros_like(found[..., 1:, :, 2]))
    total = sum_over_frames(slide.sum(-1), mask, span=2)
    return 1000.0 * total / sum_over_frames(touching.to(slide.dtype).sum(-1), mask, span=2)


def gnd(joints: Tensor, mask: Tensor | None, feet: Sequence[int], foot_heights: Sequence[float]) -> Tensor:
    """Whether any foot is below its height of ``foot_heights`` (metres above z = 0) in any frame: 1 or 0 (...)."""
    heights = torch.stack([joints[..., foot, 2] for foot in feet], dim=-1)
    low = (heights < limits(joints, foot_heights)).any(-1).to(joints.dtype)
    return (sum_over_frames(low, mask) > 0).to(joints.dtype)


# ---- all of them ----


def motion_metrics(
    pred_joints: Tensor,
    target_joints: Tensor,
    pred_rotmats: Tensor,
    target_rotmats: Tensor,
    pred_head: Tensor | None,
    target_head: Tensor | None,
    mask: Tensor | None,
    fps: float,
    head: int,
    feet: Sequence[int],
    foot_heights: Sequence[float],
    with_scale: bool,
    short_way: bool,
) -> tuple[Tensor, ...]:
    """The fields of ``MotionMetrics``; arguments as the operator's, every tensor with its full batch."""
    jitter = jitter_m_s3(pred_joints, mask, fps)
    ground = (pred_joints, mask, feet, foot_heights)
    if pred_head is None or target_head is None:
        head_errors = [torch.full_like(jitter, torch.nan) for _ in range(2)]
    else:
        head_errors = [error(pred_head, target_head, mask) for error in (head_angle_deg, head_rotation_frobenius)]
    return (
        mpjpe_mm(pred_joints, target_joints, mask),
        pa_mpjpe_mm(pred_joints, target_joints, mask, with_scale, "reference"),
        pa_mpjpe_egoallo_mm(pred_joints, target_joints, mask, "reference"),
        mpjve_mm_s(pred_joints, target_joints, mask, fps),
        mpjre_geodesic_deg(pred_rotmats, target_rotmats, mask),
        mpjre_paper_deg(pred_rotmats, target_rotmats, mask, short_way),
        jitter,
        jitter / jitter_m_s3(target_joints, mask, fps),
        gp_mean_mm(pred_joints, mask),
        gp_sum_m(pred_joints, mask),
        fs_mm_per_contact_frame(*ground),
        fs_egoallo_m(*ground),
        head_position_mm(pred_joints, target_joints, mask, head),
        *head_errors,
        gnd(*ground),
    )
