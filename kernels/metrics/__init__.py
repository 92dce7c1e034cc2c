"""Errors and plausibility of recovered motion: the standard measures and those of the published tables, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import broadcast_batch, check_device, check_integer, check_like, check_number, check_tensor
from .._dispatch import resolve
from .._library import call_op
from . import op as _op  # noqa: F401  (registers the operator)
from . import reference

__all__ = ["MotionMetrics", "motion_metrics"]

_MOST_FEET = 8


class MotionMetrics(NamedTuple):
    """Result of :func:`motion_metrics`: one value per sequence, each (*batch). The unit ends the name."""

    mpjpe_mm: Tensor
    """Mean joint position error, world frame, no alignment (MotionGRPO equation 17)."""
    pa_mpjpe_mm: Tensor
    """The same after a similarity fit of each predicted frame to the target."""
    pa_mpjpe_egoallo_mm: Tensor
    """EgoAllo's function: the target fitted to the prediction, compared with the target itself."""
    mpjve_mm_s: Tensor
    """Mean joint velocity error, forward differences (equation 18)."""
    mpjre_geodesic_deg: Tensor
    """Mean geodesic angle between local rotations (equation 19)."""
    mpjre_paper_deg: Tensor
    """Mean absolute difference of axis-angle components, each wrapped into +-180 degrees."""
    jitter_m_s3: Tensor
    """Mean norm of the prediction's jerk, third forward difference."""
    jitter_ratio: Tensor
    """Mean jerk of the prediction over that of the target."""
    gp_mean_mm: Tensor
    """Depth of the deepest joint below z = 0, mean over frames."""
    gp_sum_m: Tensor
    """The same summed over frames."""
    fs_mm_per_contact_frame: Tensor
    """Mean horizontal slide of a foot joint in a frame in which it touches the floor; NaN without contact."""
    fs_egoallo_m: Tensor
    """EgoAllo's foot skating, summed over frames and feet."""
    head_position_mm: Tensor
    """Mean position error of the head joint."""
    head_angle_deg: Tensor
    """Mean geodesic angle between world rotations of the head; NaN where they were not given."""
    head_rotation_frobenius: Tensor
    """Mean Frobenius norm of R_pred R_target^T - 1 of the head; NaN where they were not given."""
    gnd: Tensor
    """1.0 if any foot joint is ever below its contact height over z = 0, else 0.0."""


def motion_metrics(
    pred_joints: Tensor,
    target_joints: Tensor,
    pred_rotmats: Tensor,
    target_rotmats: Tensor,
    mask: Tensor | None = None,
    *,
    pred_R_world_head: Tensor | None = None,
    target_R_world_head: Tensor | None = None,
    fps: float = 30.0,
    head: int = 15,
    feet: Sequence[int] = (7, 8, 10, 11),
    foot_heights: Sequence[float] = (0.08, 0.08, 0.04, 0.04),
    with_scale: bool = True,
    short_way: bool = True,
    backend: str | None = None,
) -> MotionMetrics:
    """Every measure of both families for each sequence; formulas in README.md of this op.

    Leading axes broadcast, without a copy: targets (B, 1, T, ...) serve S samples (B, S, T, ...).

    Args:
        pred_joints: (*#batch, T, J, 3) world positions in metres, z up, floor at z = 0, pelvis first; T >= 1, J >= 2.
        target_joints: the same.
        pred_rotmats: (*#batch, T, K, 3, 3) local rotations; K = 21 in the published numbers.
        target_rotmats: the same.
        mask: (*#batch, T) bool, False on frames that take no part, whatever they hold (also NaN); None: all True.
            A measure over no frames is NaN (mean, ratio) or 0 (sums, ``gnd``).
        pred_R_world_head, target_R_world_head: (*#batch, T, 3, 3) world rotations of the head; both or neither.
        fps: frames per second.
        head, feet: rows of the joints. The default is SMPL's 22 joints: ankles, then toes.
        foot_heights: contact height of each foot joint in metres, > 0.
        with_scale: False fits ``pa_mpjpe_mm`` rigidly.
        short_way: False gives the prediction's rotation vectors in ``mpjre_paper_deg`` the length that the sign of the
            quaternion gives (up to 360 degrees): the published evaluation to the last digit.
        backend: see :mod:`mgrpo.kernels`; None chooses.

    Returns:
        :class:`MotionMetrics` in the inputs' dtype. No gradient passes, except on the ``reference`` backend, which is
        plain torch.

    A NaN or infinite number in a real frame spoils what it enters, of its own sequence alone: distances become NaN or
    infinite, angles NaN. In ``fs_egoallo_m``, ``fs_mm_per_contact_frame`` and ``gnd`` a NaN height means no contact.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or value. BackendError: ``backend`` cannot serve the
        call.
    """
    name = "motion_metrics"
    sizes: dict[str, int] = {}
    joints, rotmats = ("*#batch", "T", "J", 3), ("*#batch", "T", "K", 3, 3)
    tensors: dict[str, Tensor | None] = {"pred_joints": pred_joints}
    check_tensor(name, "pred_joints", pred_joints, joints, sizes=sizes)
    for argument, value, shape in (
        ("target_joints", target_joints, joints),
        ("pred_rotmats", pred_rotmats, rotmats),
        ("target_rotmats", target_rotmats, rotmats),
        ("pred_R_world_head", pred_R_world_head, ("*#batch", "T", 3, 3)),
        ("target_R_world_head", target_R_world_head, ("*#batch", "T", 3, 3)),
        ("mask", mask, ("*#batch", "T")),
    ):
        tensors[argument] = value
        if value is None and (argument == "mask" or argument.endswith("head")):
            continue
        if argument == "mask":
            check_tensor(name, argument, value, shape, dtypes=(torch.bool,), sizes=sizes)
            check_device(name, argument, value, "pred_joints", pred_joints.device)
            continue
        check_tensor(name, argument, value, shape, sizes=sizes)
        check_like(name, argument, value, "pred_joints", pred_joints)
    if (pred_R_world_head is None) != (target_R_world_head is None):
        given = "pred_R_world_head" if target_R_world_head is None else "target_R_world_head"
        raise ValueError(
            f"{name}(): pred_R_world_head and target_R_world_head must be given together, got {given} alone"
        )
    for letter, least in (("T", 1), ("J", 2), ("K", 1)):
        if sizes[letter] < least:
            what = "target_rotmats" if letter == "K" else "pred_joints"
            raise ValueError(
                f"{name}(): {what} must have {letter} >= {least}, got {tuple(tensors[what].shape)} with "
                f"{letter} = {sizes[letter]}"
            )
    check_number(name, "fps", fps, minimum=0.0, exclusive_minimum=True)
    head = _joint(name, "head", head, sizes["J"])
    feet = tuple(_joint(name, f"feet[{index}]", foot, sizes["J"]) for index, foot in enumerate(feet))
    foot_heights = tuple(foot_heights)
    if not 1 <= len(feet) <= _MOST_FEET:
        raise ValueError(f"{name}(): feet must hold 1 to {_MOST_FEET} joints, got {len(feet)}")
    if len(foot_heights) != len(feet):
        raise ValueError(f"{name}(): foot_heights must hold a number per foot, {len(feet)}, got {len(foot_heights)}")
    for index, height in enumerate(foot_heights):
        check_number(name, f"foot_heights[{index}]", height, minimum=0.0, exclusive_minimum=True)

    trailing = {"joints": 3, "rotmats": 4, "head": 3, "mask": 1}
    axes = {argument: trailing[argument.rsplit("_", 1)[-1]] for argument in tensors}
    given = {argument: value for argument, value in tensors.items() if value is not None}
    batch = broadcast_batch(name, **{argument: value.shape[: -axes[argument]] for argument, value in given.items()})
    wide = {argument: value.expand(*batch, *value.shape[-axes[argument] :]) for argument, value in given.items()}
    order = (
        "pred_joints", "target_joints", "pred_rotmats", "target_rotmats", "pred_R_world_head", "target_R_world_head",
        "mask",
    )  # fmt: skip
    options = (float(fps), head, feet, tuple(float(h) for h in foot_heights), bool(with_scale), bool(short_way))
    chosen = resolve(name, backend, pred_joints)
    if chosen == "reference":
        return MotionMetrics(*reference.motion_metrics(*(wide.get(argument) for argument in order), *options))
    found = call_op(
        "motion_metrics",
        *(wide[argument].detach() if argument in wide else None for argument in order),
        *options,
        chosen,
    )
    return MotionMetrics(*found.unbind(0))


def _joint(function: str, name: str, value: object, joints: int) -> int:
    row = check_integer(function, name, value, minimum=0)
    if row >= joints:
        raise ValueError(f"{function}(): {name} must be below {joints}, the number of joints, got {row}")
    return row
