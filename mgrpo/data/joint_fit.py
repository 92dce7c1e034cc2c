"""Rotations from joint positions alone: for recordings that publish where 22 joints are but not how they are turned.

The person's own bones are kept, so that forward kinematics gives the positions again. What positions can't tell, the
turn of a bone about itself, is taken from the plane in which knees and elbows bend, else from the bone before it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mgrpo.body.skeleton import BODY_JOINT_NAMES, PARENTS_BODY, ROOT_NAME
from mgrpo.errors import InputError

_NAMES = (ROOT_NAME, *BODY_JOINT_NAMES)
_PARENTS = (-1, *(parent + 1 for parent in PARENTS_BODY))
_CHILDREN = {row: [child for child, parent in enumerate(_PARENTS) if parent == row] for row in range(len(_NAMES))}
_ROW = {name: row for row, name in enumerate(_NAMES)}

# Axis about which the joint after this one bends, in rest axes (x left, y up, z forward): knees take shins back,
# elbows take forearms forward.
_HINGES = {
    "left_hip": (1.0, 0, 0),
    "right_hip": (1.0, 0, 0),
    "left_shoulder": (0, -1.0, 0),
    "right_shoulder": (0, 1.0, 0),
}
_BEND_NONE, _BEND_SURE = np.radians(10.0), np.radians(30.0)


class FittedJoints(NamedTuple):
    """Rotations and bones for positions of 22 joints."""

    R_world_joint: np.ndarray
    """Orientations ``(F, 22, 3, 3)``."""
    rest_joints: np.ndarray
    """The person with all rotations zero ``(22, 3)``: x left, y up, z forward, pelvis at the origin."""
    error_m: float
    """Largest distance of a joint by forward kinematics from where it was given, metres."""


def fit_joints(joints: np.ndarray, body_rest: np.ndarray, known: dict[str, np.ndarray] | None = None) -> FittedJoints:
    """Orientations for ``joints``, and the rest pose that goes with them.

    Args:
        joints: positions ``(F, 22, 3)``, root first, any world, metres.
        body_rest: joints ``(22, 3)`` of a body in the zero pose, whose bone directions are taken.
        known: orientations ``(F, 3, 3)`` of joints at the ends (head, wrists) by name, where they are known.
    Raises:
        InputError: wrong shapes, values that are not finite, or two joints in one place.
    """
    if joints.ndim != 3 or joints.shape[1:] != (len(_NAMES), 3) or len(joints) < 1:
        raise InputError(f"fit_joints(): joints must have shape (F, {len(_NAMES)}, 3), got {joints.shape}")
    if not np.isfinite(joints).all():
        raise InputError("fit_joints(): joints must be finite")
    joints = joints.astype(np.float64)
    known = known or {}
    ways = np.zeros_like(joints)
    for row, parent in enumerate(_PARENTS[1:], 1):
        ways[:, row] = joints[:, row] - joints[:, parent]
    lengths = np.linalg.norm(ways, axis=-1)
    short = np.argwhere(lengths[:, 1:] < 1e-4)
    if len(short):
        frame, row = (int(number) for number in short[0])
        raise InputError(
            f"frame {frame}: joint '{_NAMES[row + 1]}' is where its parent '{_NAMES[_PARENTS[row + 1]]}' is; "
            "the recording is damaged there"
        )
    offsets = np.zeros_like(body_rest, dtype=np.float64)
    for row, parent in enumerate(_PARENTS[1:], 1):
        way = body_rest[row] - body_rest[parent]
        offsets[row] = way / np.linalg.norm(way) * np.median(lengths[:, row])
    R = np.empty((len(joints), len(_NAMES), 3, 3))
    for row, parent in enumerate(_PARENTS):
        R_parent = R[:, parent] if parent >= 0 else None
        children, name = _CHILDREN[row], _NAMES[row]
        if len(children) > 1:
            shape = _rigid_shape(ways[:, children], offsets[children])
            offsets[children] = shape
            R[:, row] = _rotations(np.broadcast_to(shape, ways[:, children].shape), ways[:, children])
        elif name in known:
            R[:, row] = known[name]
        elif not children or R_parent is None:
            R[:, row] = R_parent
        else:
            R[:, row] = _swing(R_parent, offsets[children[0]], ways[:, children[0]])
            if name in _HINGES:
                after = _CHILDREN[children[0]][0]
                R[:, row] = _hinged(
                    R[:, row], offsets[children[0]], ways[:, children[0]], ways[:, after], _HINGES[name]
                )
    rest = np.zeros_like(offsets)
    again = joints.copy()
    for row, parent in enumerate(_PARENTS[1:], 1):
        rest[row] = rest[parent] + offsets[row]
        again[:, row] = again[:, parent] + R[:, parent] @ offsets[row]
    return FittedJoints(R, rest, float(np.linalg.norm(again - joints, axis=-1).max()))


def _rotations(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Rotations ``(F, 3, 3)`` that take vectors ``start (F, N, 3)`` nearest to ``end``."""
    U, _, Vt = np.linalg.svd(np.einsum("fni,fnj->fij", end, start))
    sign = np.sign(np.linalg.det(U) * np.linalg.det(Vt))
    U[:, :, 2] *= sign[:, None]
    return U @ Vt


def _rigid_shape(ways: np.ndarray, template: np.ndarray) -> np.ndarray:
    """Mean of vectors ``(F, N, 3)`` that turn together, turned to lie as ``template (N, 3)``."""
    shape = template
    for _ in range(3):
        R = _rotations(np.broadcast_to(shape, ways.shape), ways)
        shape = np.einsum("fij,fni->nj", R, ways) / len(ways)
    turn = _rotations(shape[None], template[None])[0]
    return shape @ turn.T


def _swing(R_parent: np.ndarray, rest: np.ndarray, way: np.ndarray) -> np.ndarray:
    """The parent's orientations turned by the smallest rotation that takes the bone ``rest (3,)`` along ``way``."""
    start = R_parent @ (rest / np.linalg.norm(rest))
    end = way / np.linalg.norm(way, axis=-1, keepdims=True)
    axis, cosine = np.cross(start, end), (start * end).sum(-1)
    opposite = cosine < -1 + 1e-9
    scale = 1 / np.where(opposite, 1.0, 1 + cosine)
    K = np.zeros((len(way), 3, 3))
    K[:, 0, 1], K[:, 0, 2], K[:, 1, 2] = -axis[:, 2], axis[:, 1], -axis[:, 0]
    K = K - K.transpose(0, 2, 1)
    turn = np.eye(3) + K + K @ K * scale[:, None, None]
    if opposite.any():
        # half a turn about any axis across; the parent's own is as good as another
        across = np.cross(start[opposite], R_parent[opposite][:, :, int(np.argmin(np.abs(rest)))])
        across /= np.linalg.norm(across, axis=-1, keepdims=True)
        turn[opposite] = 2 * across[:, :, None] * across[:, None, :] - np.eye(3)
    return turn @ R_parent


def _hinged(
    R: np.ndarray, rest: np.ndarray, way: np.ndarray, after: np.ndarray, hinge: tuple[float, float, float]
) -> np.ndarray:
    """Orientations ``R (F, 3, 3)`` turned about their bone so that the next bone bends about ``hinge``; as much as the
    bend is clear."""
    bone = way / np.linalg.norm(way, axis=-1, keepdims=True)
    normal = np.cross(bone, after)
    sine = np.linalg.norm(normal, axis=-1) / np.linalg.norm(after, axis=-1)
    bend = np.arctan2(sine, (bone * after).sum(-1) / np.linalg.norm(after, axis=-1))
    unit = rest / np.linalg.norm(rest)
    now = R @ (np.array(hinge) - unit * (unit @ hinge))
    angle = np.arctan2((np.cross(now, normal) * bone).sum(-1), (now * normal).sum(-1))
    part = np.clip((bend - _BEND_NONE) / (_BEND_SURE - _BEND_NONE), 0, 1)
    angle = angle * part * part * (3 - 2 * part)
    K = np.zeros((len(bone), 3, 3))
    K[:, 0, 1], K[:, 0, 2], K[:, 1, 2] = -bone[:, 2], bone[:, 1], -bone[:, 0]
    K = K - K.transpose(0, 2, 1)
    turn = np.eye(3) + np.sin(angle)[:, None, None] * K + (1 - np.cos(angle))[:, None, None] * (K @ K)
    return turn @ R
