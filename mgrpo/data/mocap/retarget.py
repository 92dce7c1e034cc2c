"""From a moving skeleton in its file's terms to our 22 joints: axes, unit, reference pose, frame rate, floor.

Nothing is fitted to a body here: the result keeps the source's own bones, so that forward kinematics gives the source's
joints again, and how far it misses them is measured. ``fit_pack`` brings it to a body when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from mgrpo.body.skeleton import PARENTS_BODY
from mgrpo.data.augment import slerp
from mgrpo.data.clip import MIN_FRAMES
from mgrpo.data.floor import PLANTED_SPEED_M_S, densest_height
from mgrpo.data.mocap.joint_map import JOINT_NAMES, JointMap
from mgrpo.data.mocap.source import SourceMotion
from mgrpo.data.packs.pack import SCALE, pack_quats
from mgrpo.data.rate import TARGET_FPS
from mgrpo.errors import InputError
from mgrpo.geometry import rotmat_to_quat

UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "inch": 0.0254}
"""Metres per unit that can be named; ``auto`` also knows :data:`ACCLAIM_UNIT`."""

ACCLAIM_UNIT = 0.0254 / 0.45
"""Metres per unit of CMU's files, also when they were turned into BVH without a change of unit."""

LEG_RANGE_M = (0.55, 1.1)
"""Length of thigh and shin of a person, metres: what tells units apart."""

TOE_CLEARANCE_M = 0.01
"""Height of a planted toe joint above the floor that is written to packs, metres; loading puts it at the body's own."""

PARENT_ROWS = (-1, *(parent + 1 for parent in PARENTS_BODY))
"""Parent of each of the 22 joints, root first."""

_ROW = {name: row for row, name in enumerate(JOINT_NAMES)}
_Z_FROM_Y = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
"""World with y up to world with z up: (x, y, z) -> (x, -z, y)."""


class MappedMotion(NamedTuple):
    """A motion on its own bones: what a pack holds of one clip. World: z up, metres."""

    trans: np.ndarray
    """Pelvis ``(F, 3)``."""
    quats: np.ndarray
    """Unit quaternions wxyz ``(F, 22, 4)``: root in the world, then local rotations."""
    rest_joints: np.ndarray
    """The skeleton with all rotations zero ``(22, 3)``, metres, y up, pelvis at the origin."""
    fps: float
    """Frames per second."""
    error_m: float
    """Largest distance of any joint in any frame of the source from the source's own, by forward kinematics from
    numbers as rounded in a pack, before the frame rate is changed."""
    metres: float
    """Metres per unit of the file that were used."""
    planted_m: np.ndarray
    """Heights ``(P,)`` of toes that move slowly, metres: where the floor is, once those of all clips of a skeleton are
    seen together."""
    notes: tuple[str, ...]
    """What a person should know."""


def retarget(source: SourceMotion, joint_map: JointMap, *, unit: str = "auto", up: str = "auto") -> MappedMotion:
    """Bring a motion to our joints at 30 fps; heights stay as they are in the file.

    Args:
        source: as read from a file.
        joint_map: which joint is which.
        unit: ``auto`` (what the file says, else by the length of the legs), a name of :data:`UNITS`, or metres per
            unit as a number.
        up: axis that points up in the file, ``y``, ``z``, or ``auto`` (the one along the body in the reference pose).
    Raises:
        InputError: no unit fits, the reference pose can't be made out, or fewer than two frames at 30 fps.
    """
    notes = list(source.notes)
    at, turning = _mapped(source, joint_map)
    R_source, positions = turning(source.R_world_joint), at(source.positions)
    zero = at(source.zero_positions[None])[0]
    rest, rest_name, drop_first = _reference(joint_map, zero, R_source, positions, up)
    if rest_name != "zero":
        notes.append(f"reference pose: {rest_name}")
    times = source.times
    still = np.abs(R_source[0, 1:] - np.eye(3)).max() < 1e-6
    if drop_first or (rest_name == "zero" and still and len(times) > 2 and not _is_still(R_source[1, 1:])):
        notes.append("first frame left out: it is the reference pose")
        R_source, positions, times = R_source[1:], positions[1:], times[1:] - times[min(1, len(times) - 1)]
    metres = _metres(source, unit, positions)
    up = rest.up
    world = _Z_FROM_Y if up == "y" else np.eye(3)
    positions = positions @ world.T * metres
    R = world @ R_source @ rest.to_canonical
    if joint_map.feet_follow_shins:
        _turn_feet(R, rest.joints)
    _check_upright(positions, up)
    local, bones = _relative(R, positions)
    quats = rotmat_to_quat(torch.from_numpy(local)).numpy()
    quats /= np.linalg.norm(quats, axis=-1, keepdims=True)
    error = _error(positions, quats, bones)
    quats, trans, joints = _at_target_rate(quats, positions[:, 0], times, bones)
    rest_joints = np.zeros((len(JOINT_NAMES), 3))
    for row, parent in enumerate(PARENT_ROWS[1:], 1):
        rest_joints[row] = rest_joints[parent] + bones[row]
    return MappedMotion(trans, quats, rest_joints, TARGET_FPS, error, metres, _planted_heights(joints), tuple(notes))


_Pick = Callable[[np.ndarray], np.ndarray]


def _mapped(source: SourceMotion, joint_map: JointMap) -> tuple[_Pick, _Pick]:
    """Functions that pick from arrays over the source's joints ``(T, J, …)`` those of our 22: positions (points between
    two joints included) and orientations."""
    index = {name: number for number, name in enumerate(source.names)}
    entries = [joint_map.joints[name] for name in JOINT_NAMES]
    first = [index[entry.at] for entry in entries]
    second = [index[entry.towards or entry.at] for entry in entries]
    part = np.array([entry.part if entry.towards else 0.0 for entry in entries])[:, None]
    turning = [index[entry.turns_with] for entry in entries]
    return (lambda p: p[:, first] + part * (p[:, second] - p[:, first])), (lambda r: r[:, turning])


class _Reference(NamedTuple):
    """The pose that counts as standing straight."""

    to_canonical: np.ndarray
    """``R_rest^T C^T`` for each joint ``(22, 3, 3)``: what stands right of an orientation in the file's world to give
    one relative to the reference in axes x left, y up, z forward."""
    joints: np.ndarray
    """Joints ``(22, 3)`` of the reference in those axes, file unit; NaN where only orientations are known."""
    up: str


def _is_still(rotmats: np.ndarray) -> bool:
    return bool(np.abs(rotmats - np.eye(3)).max() < 1e-6)


def _reference(
    joint_map: JointMap, zero: np.ndarray, R_source: np.ndarray, positions: np.ndarray, up: str
) -> tuple[_Reference, str, bool]:
    """The reference pose, its name, and whether the first frame is to be left out."""
    if not isinstance(joint_map.rest, str):
        names = [joint_map.joints[name].turns_with for name in JOINT_NAMES]
        missing = sorted({name for name in names if name not in joint_map.rest})
        if missing:
            raise InputError(f"the joint map's rest has no orientation for {', '.join(missing)}")
        # given in canonical axes already: R_rest = C^T given, so that R_rest^T C^T = given^T
        to_canonical = np.stack([joint_map.rest[name].T for name in names])
        seen = _nearest_up(positions) if up == "auto" else up
        return _Reference(to_canonical, np.full_like(zero, np.nan), seen), "given orientations", False
    tried = ("zero", "first") if joint_map.rest == "auto" else (joint_map.rest,)
    reasons = []
    for name in tried:
        joints = zero if name == "zero" else positions[0]
        R_rest = np.broadcast_to(np.eye(3), R_source[0].shape) if name == "zero" else R_source[0]
        seen = _nearest_up(joints[None]) if up == "auto" else up
        C = _canonical_axes(joints, seen)
        standing = joints @ C.T
        reason = _not_standing(standing)
        if reason is None or joint_map.rest == name:
            return _Reference(R_rest.transpose(0, 2, 1) @ C.T, standing, seen), name, name == "first"
        reasons.append(f"{'with all rotations zero' if name == 'zero' else 'in the first frame'}, {reason}")
    raise InputError(
        f"no pose to start from was found: {'; '.join(reasons)}. A T-pose is needed; give a joint map with "
        "rest zero, first, or the joints' orientations in a T-pose (--map)"
    )


def _nearest_up(joints: np.ndarray) -> str:
    """The axis, y or z, along which heads are above ankles."""
    ankles = joints[:, [_ROW["left_ankle"], _ROW["right_ankle"]]].mean(1)
    way = np.median(joints[:, _ROW["head"]] - ankles, axis=0)
    return "z" if way[2] > way[1] else "y"


def _canonical_axes(joints: np.ndarray, up: str) -> np.ndarray:
    """Rotation ``(3, 3)`` from the file's axes to x left, y up, z forward, by the hips of a standing pose; exact
    quarter turns where it is nearly one."""
    vertical = np.eye(3)["xyz".index(up)]
    left = joints[_ROW["left_hip"]] - joints[_ROW["right_hip"]]
    left = left - vertical * (left @ vertical)
    if np.linalg.norm(left) < 1e-9:
        raise InputError("the reference pose has both hips in one place; is the joint map right?")
    left = left / np.linalg.norm(left)
    main = int(np.argmax(np.abs(left)))
    if abs(left[main]) > np.cos(np.radians(15)):
        left = np.sign(left[main]) * np.eye(3)[main]
    return np.stack((left, vertical, np.cross(left, vertical)))


def _not_standing(joints: np.ndarray) -> str | None:
    """Why joints ``(22, 3)``, x left and y up, are not a T- or A-pose; None where they are."""

    def direction(start: str, end: str) -> np.ndarray:
        way = joints[_ROW[end]] - joints[_ROW[start]]
        return way / max(float(np.linalg.norm(way)), 1e-12)

    for side, sign in (("left", 1.0), ("right", -1.0)):
        for start, end in (("hip", "knee"), ("knee", "ankle")):
            if direction(f"{side}_{start}", f"{side}_{end}")[1] > -0.8:
                return f"the {side} leg does not point down"
        for start, end in (("shoulder", "elbow"), ("elbow", "wrist")):
            if sign * direction(f"{side}_{start}", f"{side}_{end}")[0] < 0.5:
                return f"the {side} arm does not point to the side"
    if direction("pelvis", "neck")[1] < 0.8:
        return "the trunk does not point up"
    return None


def _check_upright(positions: np.ndarray, up: str) -> None:
    way = positions[:, _ROW["head"]] - positions[:, [_ROW["left_ankle"], _ROW["right_ankle"]]].mean(1)
    mean = way.mean(0) / np.linalg.norm(way, axis=1).mean()
    if abs(mean[2]) < 0.3 and np.abs(mean[:2]).max() > 0.8:
        raise InputError(
            f"with {up} up, the body lies on its side all the time; give the axis that points up in the file (--up)"
        )


def _metres(source: SourceMotion, unit: str, positions: np.ndarray) -> float:
    legs = [
        (f"{side}_{a}", f"{side}_{b}") for side in ("left", "right") for a, b in (("hip", "knee"), ("knee", "ankle"))
    ]
    bones = [np.linalg.norm(positions[:, _ROW[a]] - positions[:, _ROW[b]], axis=-1).mean() for a, b in legs]
    leg = float(sum(bones)) / 2
    low, high = LEG_RANGE_M
    if unit == "auto":
        known = {**UNITS, "CMU's": ACCLAIM_UNIT}
        fits = [metres for metres in known.values() if low <= leg * metres <= high]
        if source.metres is not None:
            fits = [source.metres] if low <= leg * source.metres <= high else []
        if len(fits) != 1:
            said = "" if source.metres is None else f" (the file says {source.metres:.6g} m per unit)"
            raise InputError(
                f"legs are {leg:.4g} units long{said}, which is a person's {low} to {high} m in no known unit; give it "
                f"with --unit: {', '.join(UNITS)}, or metres per unit"
            )
        return fits[0]
    return parse_unit(unit)


def parse_unit(unit: str) -> float:
    """Metres per unit from a name or a number. Raises InputError."""
    if unit in UNITS:
        return UNITS[unit]
    try:
        metres = float(unit)
    except ValueError:
        metres = float("nan")
    if not 1e-6 <= metres <= 1e3:
        raise InputError(f"--unit must be auto, {', '.join(UNITS)}, or metres per unit as a number, got {unit!r}")
    return metres


def _turn_feet(R: np.ndarray, joints: np.ndarray) -> None:
    """Take the spread of the reference's legs out of the feet: flat feet belong to straight legs."""
    for side in ("left", "right"):
        way = joints[_ROW[f"{side}_ankle"]] - joints[_ROW[f"{side}_knee"]]
        angle = np.arctan2(way[0], -way[1])
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])
        for part in ("ankle", "foot"):
            R[:, _ROW[f"{side}_{part}"]] = R[:, _ROW[f"{side}_{part}"]] @ turn


def _relative(R: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Local rotations ``(T, 22, 3, 3)`` and the bones ``(22, 3)`` that suit all frames best."""
    local, bones = R.copy(), np.zeros((len(JOINT_NAMES), 3))
    for row, parent in enumerate(PARENT_ROWS[1:], 1):
        back = R[:, parent].transpose(0, 2, 1)
        local[:, row] = back @ R[:, row]
        bones[row] = (back @ (positions[:, row] - positions[:, parent])[..., None])[..., 0].mean(0)
    return local, bones


def _joints(quats: np.ndarray, trans: np.ndarray, bones: np.ndarray) -> np.ndarray:
    """Forward kinematics in float64: ``(T, 22, 4)``, ``(T, 3)`` and bones ``(22, 3)`` to joints ``(T, 22, 3)``."""
    joints, turned = np.empty((len(quats), len(JOINT_NAMES), 3)), np.empty_like(quats)
    joints[:, 0], turned[:, 0] = trans, quats[:, 0]
    for row, parent in enumerate(PARENT_ROWS[1:], 1):
        joints[:, row] = joints[:, parent] + _rotate(turned[:, parent], bones[row])
        turned[:, row] = _multiply(turned[:, parent], quats[:, row])
    return joints


def _rotate(quats: np.ndarray, vector: np.ndarray) -> np.ndarray:
    xyz = quats[:, 1:]
    twice = 2 * np.cross(xyz, vector)
    return vector + quats[:, :1] * twice + np.cross(xyz, twice)


def _multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    w = a[:, :1] * b[:, :1] - (a[:, 1:] * b[:, 1:]).sum(1, keepdims=True)
    return np.concatenate((w, a[:, :1] * b[:, 1:] + b[:, :1] * a[:, 1:] + np.cross(a[:, 1:], b[:, 1:])), axis=1)


def _error(positions: np.ndarray, quats: np.ndarray, bones: np.ndarray) -> float:
    stored = pack_quats(quats) / SCALE
    stored /= np.linalg.norm(stored, axis=-1, keepdims=True)
    trans = positions[:, 0].astype(np.float32).astype(np.float64)
    return float(np.linalg.norm(_joints(stored, trans, bones) - positions, axis=-1).max())


def _at_target_rate(
    quats: np.ndarray, trans: np.ndarray, times: np.ndarray, bones: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quaternions, root path and joints at 30 fps; frames left out by the file are bridged on the way."""
    count = int((times[-1] - times[0]) * TARGET_FPS + 1e-6) + 1
    if count < MIN_FRAMES:
        raise InputError(
            f"{len(times)} frame(s), {times[-1] - times[0]:.3f} s, leave fewer than {MIN_FRAMES} at {TARGET_FPS:g} fps"
        )
    wanted = np.minimum(np.arange(count) / TARGET_FPS, times[-1])
    low = np.clip(np.searchsorted(times, wanted + 1e-9, side="right") - 1, 0, len(times) - 2)
    part = (wanted - times[low]) / (times[low + 1] - times[low])
    part[np.abs(part) < 1e-6] = 0.0  # a frame of the source stays as it is
    between = slerp(
        torch.from_numpy(quats[low]), torch.from_numpy(quats[low + 1]), torch.from_numpy(part)[:, None]
    ).numpy()
    root = trans[low] + part[:, None] * (trans[low + 1] - trans[low])
    return between, root, _joints(between, root, bones)


def _planted_heights(joints: np.ndarray) -> np.ndarray:
    """Heights of slow toes of ``joints (F, 22, 3)``; of a clip without any, the lowest tenth of toe heights."""
    toes = joints[:, [_ROW["left_foot"], _ROW["right_foot"]]]
    steps = np.linalg.norm(np.diff(toes, axis=0), axis=-1) * TARGET_FPS
    slow = np.concatenate((steps, steps[-1:])) < PLANTED_SPEED_M_S
    if int(slow.sum()) >= 3:
        return toes[..., 2][slow]
    lowest = np.sort(toes[..., 2].min(1))
    return lowest[: max(1, len(lowest) // 10)]


def floor_height(planted_m: np.ndarray) -> float:
    """Height of the floor under toes that stand at ``planted_m (P,)``: the joint is 0.01 m above it."""
    height = densest_height(planted_m)
    if height is None:
        raise InputError("there are no toe heights to find the floor from")
    return height - TOE_CLEARANCE_M


def parse_floor(floor: str) -> float:
    """The floor's height from an option: 0 for ``keep`` and ``auto``. Raises InputError."""
    if floor in ("keep", "auto"):
        return 0.0
    try:
        height = float(floor)
    except ValueError:
        height = float("nan")
    if not abs(height) <= 1e4:
        raise InputError(f"--floor must be auto, keep, or the floor's height in the file in metres, got {floor!r}")
    return height
