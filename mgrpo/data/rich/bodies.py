"""RICH's SMPL-X bodies as clips: our body's joints and shape, z up, floor at 0.

The release's world is the first camera's of a capture: y points down, tilted by the camera. All sequences of a capture
share it, so gravity and floor are found once per capture, from planted toes or from the scanned scene. There is no
device: the central pupil frame is the body's own (facts: M, row RICH).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mgrpo.body.model import NUM_BETAS, BodyModel
from mgrpo.body.placement import place_on_root
from mgrpo.body.skeleton import BODY_JOINT_NAMES, PARENTS_BODY, TOE_JOINTS
from mgrpo.data.augment import slerp
from mgrpo.data.clip import MIN_FRAMES, MotionClip
from mgrpo.data.contacts import contact_labels
from mgrpo.data.floor import densest_height
from mgrpo.data.rate import TARGET_FPS
from mgrpo.data.rich.files import FPS, SmplxJoints, SmplxMotion
from mgrpo.data.upright import turn_to_z_up
from mgrpo.errors import InputError
from mgrpo.geometry import axis_angle_to_quat, quat_multiply, quat_normalize, quat_to_rotmat, rotmat_to_quat

CAMERA_UP = np.array([0.0, -1.0, 0.0])
"""About up in the release's world: y points down in cameras, which stand upright."""

MAX_TILT = np.radians(40.0)
"""Largest angle between that and true up."""

MAX_GAP = 5
"""Most missing frames that are bridged by interpolation; at longer gaps a person's motion is cut into clips."""

PELVIS_GUESS = np.array([0.0, -0.35, 0.01])
"""About where SMPL-X's pelvis is in its zero pose, metres; used where there is no model."""

MIN_SPREAD_M = 0.15
"""Standard deviation that planted toes must have along both directions of a floor that is fitted to them, metres."""

_JOINTS = len(BODY_JOINT_NAMES) + 1


class BodyFit(NamedTuple):
    """Our body's shape for a SMPL-X shape."""

    betas: np.ndarray
    """``(16,)``."""
    pelvis: np.ndarray
    """SMPL-X's pelvis in its zero pose ``(3,)``."""
    rms_m: float | None
    """Root mean square difference of the bones, metres; None where nothing was fitted."""


class Gravity(NamedTuple):
    """Where up and the floor are in a capture's world."""

    up: np.ndarray
    """``(3,)``, length 1."""
    floor_m: float
    """Height of the floor along it."""
    source: str
    """How it was found."""


def fit_betas(smplx: SmplxJoints | None, betas: np.ndarray, body: BodyModel, *, ridge: float = 1e-6) -> BodyFit:
    """Shape numbers of ``body`` whose 21 bones have nearly the lengths of those of a SMPL-X shape, by regularised least
    squares (Gauss-Newton); zeros where there is no model.

    Args:
        smplx: the model; None: no fit.
        betas: SMPL-X shape ``(n,)``.
        body: our body.
        ridge: weight in m² of each shape number squared; keeps directions that bones don't show at zero.
    """
    if smplx is None:
        return BodyFit(np.zeros(NUM_BETAS), PELVIS_GUESS, None)
    joints = smplx.J_template + smplx.J_shapedirs[..., : len(betas)] @ betas
    parents = [parent + 1 for parent in PARENTS_BODY]
    wanted = joints[1:] - joints[parents]
    body = body.body_only()
    template = body.offset_template.double().numpy()[: len(parents)]
    basis = body.offset_shapedirs.double().numpy()[: len(parents)]
    # lengths are what a shape can match: the two rest poses differ a little in their bones' directions
    lengths, fitted = np.linalg.norm(wanted, axis=1), np.zeros(NUM_BETAS)
    for _ in range(5):
        bones = template + basis @ fitted
        size = np.linalg.norm(bones, axis=1)
        slope = np.einsum("jx,jxb->jb", bones / size[:, None], basis)
        goal = lengths - size + slope @ fitted
        fitted = np.linalg.solve(slope.T @ slope + ridge * np.eye(NUM_BETAS), slope.T @ goal)
    off = np.linalg.norm(template + basis @ fitted, axis=1) - lengths
    return BodyFit(fitted, joints[0], float(np.sqrt((off**2).mean())))


class PosedTrack(NamedTuple):
    """A person on our body, still in the release's world, at 30 Hz, in unbroken stretches."""

    name: str
    starts: tuple[int, ...]
    """First row of each stretch."""
    T_world_root: np.ndarray
    """``(F, 7)``."""
    body_quats: np.ndarray
    """``(F, 21, 4)``."""
    hand_quats: np.ndarray | None
    """``(F, 30, 4)``."""
    betas: np.ndarray
    """``(16,)``."""
    joints: np.ndarray
    """``(F, 22, 3)``."""


def pose_track(name: str, motion: SmplxMotion, fit: BodyFit, smplx: SmplxJoints | None, body: BodyModel) -> PosedTrack:
    """The motion on our body: the 21 body joints are SMPL-H's own, so their rotations stay. Short gaps are bridged.

    Raises:
        InputError: no two frames in a row.
    """
    frames = motion.frames
    stretches = np.split(np.arange(len(frames)), np.flatnonzero(np.diff(frames) > MAX_GAP + 1) + 1)
    stretches = [rows for rows in stretches if frames[rows[-1]] - frames[rows[0]] + 1 >= MIN_FRAMES]
    if not stretches:
        raise InputError(f"{name}: no two frames in a row; is the download complete?")
    turns = [motion.global_orient[:, None], motion.body_pose]
    hands = hand_pose(motion, smplx)
    if hands is not None:
        turns.append(hands)
    quats = axis_angle_to_quat(torch.from_numpy(np.concatenate(turns, axis=1)))
    pelvis = motion.transl + fit.pelvis
    parts, places, starts, total = [], [], [], 0
    for rows in stretches:
        wanted = np.arange(frames[rows[0]], frames[rows[-1]] + 1)
        low = np.clip(np.searchsorted(frames[rows], wanted, side="right") - 1, 0, len(rows) - 2)
        first, second = frames[rows[low]], frames[rows[low + 1]]
        part = (wanted - first) / (second - first)
        parts.append(slerp(quats[rows[low]], quats[rows[low + 1]], torch.from_numpy(part)[:, None]))
        places.append(pelvis[rows[low]] + part[:, None] * (pelvis[rows[low + 1]] - pelvis[rows[low]]))
        starts.append(total)
        total += len(wanted)
    assert FPS == TARGET_FPS
    turned = torch.cat(parts)
    T_world_root = torch.cat((turned[:, 0], torch.from_numpy(np.concatenate(places))), dim=1)
    body = body.to(dtype=torch.float64).body_only()
    placed = place_on_root(body, quat_to_rotmat(turned[:, 1:22]), torch.from_numpy(fit.betas), T_world_root)
    return PosedTrack(
        name,
        tuple(starts),
        T_world_root.numpy(),
        turned[:, 1:22].numpy(),
        turned[:, 22:].numpy() if hands is not None else None,
        fit.betas,
        placed.joints.numpy(),
    )


def hand_pose(motion: SmplxMotion, smplx: SmplxJoints | None) -> np.ndarray | None:
    """Finger rotations ``(F, 30, 3)``, left hand first; None where they can't be known: PCA numbers without a model."""
    if motion.hands is None:
        return None
    count = motion.hands.shape[-1]
    if count == 45:
        full = motion.hands
    elif smplx is None or count > 45:
        return None
    else:
        full = np.einsum("fhc,hcx->fhx", motion.hands, smplx.hand_components[:, :count])
    if smplx is not None:
        full = full + smplx.hand_mean
    return full.reshape(len(full), 30, 3)


def _planted(tracks: Sequence[PosedTrack]) -> np.ndarray:
    """Places ``(P, 3)`` of toes that hardly move."""
    rows = [joint + 1 for joint in TOE_JOINTS]
    found = [np.zeros((0, 3))]
    for track in tracks:
        toes = track.joints[:, rows]
        speed = np.linalg.norm(np.diff(toes, axis=0), axis=-1) * TARGET_FPS
        # a cut between stretches looks like speed, so nothing is planted there
        found.append(toes[:-1][speed < 0.3])
    return np.concatenate(found)


def fit_gravity(tracks: Sequence[PosedTrack], clearance: float) -> Gravity:
    """Up and floor of a capture from the planted toes of everyone in it: the plane that most of them stand on.

    Args:
        tracks: all tracks of one capture.
        clearance: height of a planted toe joint above the floor, metres.
    Raises:
        InputError: too few planted toes, or all along one line, which leaves the tilt open.
    """
    points = _planted(tracks)
    problem = "give a table of gravity, or take it from the scanned scene (--gravity)"
    if len(points) < 30:
        raise InputError(
            f"{tracks[0].name} and the capture's others: toes are planted in {len(points)} frames; {problem}"
        )
    standing = np.concatenate([track.joints[:, 15] - track.joints[:, [7, 8]].mean(1) for track in tracks])
    standing /= np.linalg.norm(standing, axis=1, keepdims=True)
    upright = standing[standing @ CAMERA_UP > np.cos(MAX_TILT)]
    start = upright.mean(0) if len(upright) >= 30 else CAMERA_UP
    up, inside = _plane(points, start / np.linalg.norm(start))
    spread = np.sqrt(np.linalg.svd(np.cov((inside - inside.mean(0)).T))[1])[1]
    if spread < MIN_SPREAD_M:
        raise InputError(
            f"{tracks[0].name} and the capture's others: planted toes lie within {spread:.2f} m of a line, so the "
            f"floor's tilt is not known; {problem}"
        )
    return Gravity(up, float(np.median(inside @ up)) - clearance, f"{len(inside)} planted toes")


def scene_gravity(points: np.ndarray, tracks: Sequence[PosedTrack], clearance: float) -> Gravity:
    """Up and floor from the scanned scene ``(P, 3)``: the plane under the people's planted toes. Raises InputError."""
    toes = _planted(tracks)
    if len(toes) < 3:
        raise InputError(f"{tracks[0].name} and the capture's others: no planted toes to find the floor under")
    up = CAMERA_UP
    middle = np.median(toes, axis=0)
    level = densest_height(toes @ up, 0.1)
    assert level is not None
    across = points - middle
    across = across - (across @ up)[:, None] * up
    # cameras tilt by up to half a right angle: what may be floor is a cone around the toes
    near = points[(np.linalg.norm(across, axis=1) < 3) & (np.abs(points @ up - level) < 0.3 + 3 * np.tan(MAX_TILT))]
    if len(near) < 100:
        raise InputError(
            f"{tracks[0].name}: the scanned scene has {len(near)} points near the people; is it this capture's?"
        )
    plane = _best_plane(near, toes, clearance)
    under = densest_height(toes @ plane, 0.05)
    assert under is not None
    # tables and steps may hold more points than the floor; only what is under the feet counts
    up, inside = _plane(near[np.abs(near @ plane - under + clearance) < 0.15], plane)
    return Gravity(up, float(np.median(inside @ up)), "scanned scene")


def _best_plane(points: np.ndarray, toes: np.ndarray, clearance: float) -> np.ndarray:
    """Of many planes through three points each, the normal of the one that holds most points and lies under the toes.
    The draws are fixed."""
    generator = np.random.default_rng(0)
    sample = points[generator.integers(0, len(points), 4000)]
    best, normal = -1, CAMERA_UP
    for corners in sample[generator.integers(0, len(sample), (400, 3))]:
        way = np.cross(corners[1] - corners[0], corners[2] - corners[0])
        if np.linalg.norm(way) < 1e-6:
            continue
        way = way / np.linalg.norm(way) * np.sign(way @ CAMERA_UP or 1.0)
        if way @ CAMERA_UP < np.cos(MAX_TILT):
            continue
        height = corners[0] @ way
        under = (np.abs(toes @ way - height - clearance) < 0.1).mean()
        score = int((np.abs(sample @ way - height) < 0.02).sum() * under)
        if score > best:
            best, normal = score, way
    if best <= 0:
        raise InputError("the scanned scene has no plane under the people's feet")
    return normal


def _plane(points: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normal of the plane that most of ``points`` lie on, near ``start``, and the points on it."""
    up = start
    inside = points
    for width in (0.3, 0.15, 0.08, 0.05, 0.05, 0.05):
        heights = points @ up
        level = densest_height(heights, width)
        inside = points[np.abs(heights - level) <= width]
        if len(inside) < 3:
            break
        normal = np.linalg.svd(np.cov((inside - inside.mean(0)).T))[0][:, 2]
        normal = normal * np.sign(normal @ start or 1.0)
        if normal @ CAMERA_UP < np.cos(MAX_TILT):
            break  # too few places: a plane through a line may stand upright
        up = normal
    return up, inside


def read_gravity(path: Path) -> dict[str, np.ndarray]:
    """A table of rigid transforms to worlds with z up and the floor at 0, ``{capture or capture_scan: 4x4 matrix}``.
    Raises InputError."""
    try:
        if path.stat().st_size > 1 << 20:
            raise InputError(f"{path}: too large for a table of transforms")
        content = json.loads(path.read_text("utf-8"))
        table = {str(key): np.array(value, float) for key, value in dict(content).items()}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: can't be read as a table of transforms ({error})") from error
    for key, matrix in table.items():
        R = matrix[:3, :3] if matrix.shape == (4, 4) else np.zeros((3, 3))
        rigid = np.isfinite(matrix).all() and np.allclose(R @ R.T, np.eye(3), atol=5e-3) and np.linalg.det(R) > 0
        if not rigid or not np.allclose(matrix[3], [0.0, 0.0, 0.0, 1.0], atol=5e-3):
            raise InputError(f"{path}: '{key}' must be a rigid 4x4 matrix, row by row")
    return table


def gravity_of_table(table: dict[str, np.ndarray], capture: str) -> Gravity:
    """A capture's entry: its own name, or the first that begins with it (its scans share the camera's world). Raises
    InputError."""
    keys = [key for key in sorted(table) if key == capture or key.startswith(f"{capture}_")]
    if not keys:
        raise InputError(f"the table of gravity has no '{capture}'; it has: {', '.join(sorted(table))}")
    matrix = table[keys[0]]
    up = matrix[2, :3] / np.linalg.norm(matrix[2, :3])
    return Gravity(up, -float(matrix[2, 3]), f"table, {keys[0]}")


def to_clips(track: PosedTrack, gravity: Gravity, body: BodyModel) -> list[MotionClip]:
    """Clips of a track with z up, the floor at 0, and contact labels."""
    turn = turn_to_z_up(gravity.up)
    down = np.array([0.0, 0.0, gravity.floor_m])
    quats = quat_multiply(rotmat_to_quat(torch.from_numpy(turn)), torch.from_numpy(track.T_world_root[:, :4]))
    places = torch.from_numpy(track.T_world_root[:, 4:] @ turn.T - down)
    joints = torch.from_numpy(track.joints @ turn.T - down)
    clips = []
    ends = (*track.starts[1:], len(track.T_world_root))
    for index, (start, end) in enumerate(zip(track.starts, ends)):
        rows = slice(start, end)
        clips.append(
            MotionClip(
                name=track.name if len(track.starts) == 1 else f"{track.name}_{index:02d}",
                fps=TARGET_FPS,
                T_world_root=torch.cat((quat_normalize(quats[rows]), places[rows]), dim=1),
                body_quats=torch.from_numpy(track.body_quats[rows]),
                betas=torch.from_numpy(track.betas),
                contacts=contact_labels(joints[rows].float(), TARGET_FPS, toe_clearance=body.toe_clearance),
                hand_quats=None if track.hand_quats is None else torch.from_numpy(track.hand_quats[rows]),
            )
        )
    return clips
