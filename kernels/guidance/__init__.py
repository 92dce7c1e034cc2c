"""Guidance: motions corrected by minimising costs of foot skating, smoothness and observed hands."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import (
    broadcast_batch,
    check_broadcastable,
    check_choice,
    check_device,
    check_integer,
    check_like,
    check_number,
    check_tensor,
)
from .._dispatch import resolve
from .._library import call_op
from . import op as _op  # noqa: F401  (registers the operator)
from .problem import (
    BODY_JOINTS,
    DAMPING_RULES,
    FEET,
    HAND_JOINTS,
    KEYPOINT_JOINTS,
    WRISTS,
    GuidanceWeights,
    HandTargets,
    KeypointTargets,
    WristForm,
    WristTargets,
)

__all__ = [
    "DAMPING_RULES",
    "FEET",
    "KEYPOINT_JOINTS",
    "WRISTS",
    "GuidanceWeights",
    "GuidedRotations",
    "HandTargets",
    "KeypointTargets",
    "WristForm",
    "WristTargets",
    "motion_guidance",
]

_NAME = "motion_guidance"


class GuidedRotations(NamedTuple):
    """What guidance found."""

    rotmats: Tensor
    """Local rotations (*batch, T, N, 3, 3). Frames after a sequence's end, joints without costs, and sequences that no
    step made better are those that were given."""
    costs: Tensor
    """(*batch, iterations + 1): cost at the start and after every iteration; never rises. After the search's end the
    last one is repeated."""
    iterations: Tensor
    """Iterations made (*batch,) int64, steps that were tried and not taken included."""


def motion_guidance(
    rotmats: Tensor,
    t_parent_joint: Tensor,
    T_world_head: Tensor,
    contacts: Tensor,
    *,
    parents: Sequence[int],
    lengths: Tensor | None = None,
    held: Tensor | None = None,
    weights: GuidanceWeights | None = None,
    wrists: WristTargets | None = None,
    hands: HandTargets | None = None,
    keypoints: KeypointTargets | None = None,
    iterations: int = 20,
    damping: str = "adaptive",
    backend: str | None = None,
) -> GuidedRotations:
    """Correct motions by Levenberg-Marquardt, each for itself, with the head held at its place (EgoAllo's guidance).

    The cost is the sum of the squared residuals of :class:`GuidanceWeights`, which start, smoothness, foot contacts
    and, where given, observed wrists, finger rotations and image points enter. The cost never rises from iteration to
    iteration. Not differentiable.

    Args:
        rotmats: local rotations to start from and to stay near, (*batch, T, N, 3, 3), T >= 1, N = 21 (body) or 51 (with
            fingers); rotations, see :func:`project_so3`. A sequence that holds NaN or infinity is returned as it is,
            and does not touch the others.
        t_parent_joint: bone offsets in metres, (*#batch, N, 3), the same for all frames of a sequence.
        T_world_head: poses of the head joint, (*#batch, T, 7), wxyz + xyz; its quaternion must have unit length.
        contacts: contact of ankles and toes (left and right ankle, left and right toe), (*#batch, T, 4). Usually in
            [0, 1], but any number is taken as it is; the sign does not matter.
        parents: parent of each of the N joints, -1 for children of the root; SMPL-H's tree.
        lengths: real frames of each sequence, (*#batch,) int64 in [0, T]; None: all.
        held: first frames of each sequence that stay exactly as they are while the others go on from them,
            (*#batch,) int64 in [0, T]; None: none. They enter the costs as all others do.
        weights: factors of the residuals; None: EgoAllo's.
        wrists, hands, keypoints: what was observed, see their classes; batch axes broadcast. ``hands`` and
            ``keypoints`` need N = 51.
        iterations: most steps that are tried, >= 0. The search ends earlier with a step that lowers the cost by less
            than 1e-5 of it.
        damping: a key of :data:`DAMPING_RULES`.
        backend: see :mod:`mgrpo.kernels`; None chooses.

    Returns:
        See :class:`GuidedRotations`.

    Raises:
        ValueError, TypeError: an argument has a wrong shape, dtype or value.
        BackendError: ``backend`` cannot serve the call.
    """
    sizes: dict[str, int] = {}
    check_tensor(_NAME, "rotmats", rotmats, ("*batch", "T", "N", 3, 3), sizes=sizes)
    if sizes["T"] == 0:
        raise ValueError(f"{_NAME}(): rotmats must have T >= 1, got {tuple(rotmats.shape)} with T = 0")
    parents = _checked_parents(parents, sizes["N"])
    weights = _checked_weights(GuidanceWeights() if weights is None else weights)
    iterations = check_integer(_NAME, "iterations", iterations, minimum=0)
    check_choice(_NAME, "damping", damping, tuple(DAMPING_RULES))
    given = {
        "t_parent_joint": (t_parent_joint, ("*#batch", "N", 3)),
        "T_world_head": (T_world_head, ("*#batch", "T", 7)),
        "contacts": (contacts, ("*#batch", "T", len(FEET))),
        **_target_arguments(wrists, hands, keypoints, sizes["N"]),
    }
    batch = tuple(rotmats.shape[:-4])
    for name, (value, shape) in given.items():
        check_tensor(_NAME, name, value, shape, sizes=sizes)
        check_like(_NAME, name, value, "rotmats", rotmats)
    batch = broadcast_batch(
        _NAME,
        rotmats=batch,
        **{name: value.shape[: value.dim() - len(shape) + 1] for name, (value, shape) in given.items()},
    )
    rows = math.prod(batch)
    lengths = _counts("lengths", lengths, sizes["T"], batch, rotmats)
    held = _counts("held", held, 0, batch, rotmats)
    rotmats = rotmats.expand(*batch, *rotmats.shape[-4:])
    chosen = resolve(_NAME, backend, rotmats)
    flat = {
        name: value.expand(*batch, *value.shape[value.dim() - len(shape) + 1 :]).reshape(
            rows, *value.shape[value.dim() - len(shape) + 1 :]
        )
        for name, (value, shape) in given.items()
    }
    # Only differences of positions enter the costs: near the origin they keep their digits.
    origin = flat["T_world_head"][:, :1, 4:].clone()
    for name in ("T_world_head", "wrists.T_world_wrist", "keypoints.T_world_cam"):
        if name in flat:
            pose = flat[name]
            here = origin if pose.dim() == 3 else origin[:, :, None]
            flat[name] = torch.cat((pose[..., :4], pose[..., 4:] - here), dim=-1)
    moved, costs, done = call_op(
        _NAME,
        rotmats.reshape(rows, *rotmats.shape[-4:]).detach(),
        flat["t_parent_joint"].detach(),
        flat["T_world_head"].detach(),
        flat["contacts"].detach(),
        lengths,
        held,
        flat.get("wrists.T_world_wrist"),
        flat.get("wrists.confidence"),
        flat.get("hands.rotmats"),
        flat.get("hands.confidence"),
        flat.get("keypoints.uv"),
        flat.get("keypoints.confidence"),
        flat.get("keypoints.T_world_cam"),
        parents,
        list(dataclasses.astuple(weights)),
        wrists is not None and wrists.form == "se3",
        iterations,
        list(DAMPING_RULES[damping]),
        chosen,
    )
    return GuidedRotations(moved.view(rotmats.shape), costs.view(*batch, iterations + 1), done.view(batch))


def _counts(name: str, value: Tensor | None, default: int, batch: tuple[int, ...], rotmats: Tensor) -> Tensor:
    """Numbers of frames, one per row (rows,)."""
    rows = math.prod(batch)
    if value is None:
        return torch.full((rows,), default, dtype=torch.int64, device=rotmats.device)
    check_tensor(_NAME, name, value, ("*#batch",), dtypes=(torch.int64,))
    check_device(_NAME, name, value, "rotmats", rotmats.device)
    check_broadcastable(_NAME, name, value.shape, batch, "rotmats and the others")
    return value.expand(batch).reshape(rows)


def _checked_parents(parents: Sequence[int], joints: int) -> list[int]:
    parents = [check_integer(_NAME, "parents", parent, minimum=-1) for parent in parents]
    wanted = (BODY_JOINTS, BODY_JOINTS + 2 * HAND_JOINTS)
    if joints not in wanted:
        raise ValueError(f"{_NAME}(): rotmats must have 21 joints (body) or 51 (with fingers), got {joints}")
    if len(parents) != joints or any(parent >= joint for joint, parent in enumerate(parents)):
        raise ValueError(
            f"{_NAME}(): parents must name a parent for each of the {joints} joints of rotmats, parents first, "
            f"got {parents}"
        )
    return parents


def _checked_weights(weights: GuidanceWeights) -> GuidanceWeights:
    for name, value in dataclasses.asdict(weights).items():
        check_number(_NAME, f"weights.{name}", value, minimum=0.0)
    return weights


def _target_arguments(
    wrists: WristTargets | None, hands: HandTargets | None, keypoints: KeypointTargets | None, joints: int
) -> dict[str, tuple[Tensor, tuple[str | int, ...]]]:
    """Tensors of the targets with their shapes, by the name that errors have for them."""
    for name, value in (("hands", hands), ("keypoints", keypoints)):
        if value is not None and joints == BODY_JOINTS:
            raise ValueError(f"{_NAME}(): {name} must be None where rotmats have no fingers, got targets")
    given: dict[str, tuple[Tensor, tuple[str | int, ...]]] = {}
    if wrists is not None:
        check_choice(_NAME, "wrists.form", wrists.form, ("split", "se3"))
        given["wrists.T_world_wrist"] = (wrists.T_world_wrist, ("*#batch", "T", 2, 7))
        given["wrists.confidence"] = (wrists.confidence, ("*#batch", "T", 2))
    if hands is not None:
        given["hands.rotmats"] = (hands.rotmats, ("*#batch", "T", 2 * HAND_JOINTS, 3, 3))
        given["hands.confidence"] = (hands.confidence, ("*#batch", "T", 2))
    if keypoints is not None:
        given["keypoints.uv"] = (keypoints.uv, ("*#batch", "T", 2, HAND_JOINTS + 1, 2))
        given["keypoints.confidence"] = (keypoints.confidence, ("*#batch", "T", 2))
        given["keypoints.T_world_cam"] = (keypoints.T_world_cam, ("*#batch", "T", 7))
    return given
