"""BVH: the skeleton with its offsets, and Euler angles of every joint in every frame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from mgrpo.export.frames import FileFrame
from mgrpo.export.motion import PosedMotion
from mgrpo.geometry import quat_to_rotmat
from mgrpo.storage import atomic_write_parts

ORDER = "ZXY"
"""Order of the rotation channels: R = Rz Rx Ry, the usual one of BVH files with y up."""

_LOCKED = 1e-7  # cosine of the middle angle below which only the sum of the outer ones is known
_END = 0.5  # length of an end site, in lengths of the bone before it


def write_bvh(path: str | Path, motion: PosedMotion, frame: FileFrame | None = None) -> None:
    """Write a motion as a BVH file.

    Joints have SMPL-H's names and order of children. The root's OFFSET is zero and its position channels hold the
    pelvis; the other joints have the rotation channels Zrotation Xrotation Yrotation, in degrees. With all channels
    zero the skeleton stands upright, arms to the sides. Angles go on beyond 180 degrees rather than jump. An end site
    goes on from the last joint in the direction of its bone.

    Args:
        path: file to write.
        motion: of one shape (:meth:`PosedMotion.with_one_shape`) and with frames at equal distances.
        frame: up axis and unit; default y up, centimetres.
    Raises:
        StorageError: the disk refuses.
    """
    atomic_write_parts(Path(path), _content(motion, frame or FileFrame("y", "cm")))


def _content(motion: PosedMotion, frame: FileFrame) -> Iterator[str]:
    """The text of the file, piece by piece."""
    body = motion.skeleton
    offsets = frame.rest(body.t_parent_joint(motion.betas[0])).numpy()
    children: list[list[int]] = [[] for _ in range(motion.num_joints + 1)]
    for joint, parent in enumerate(body.parents, 1):
        children[parent + 1].append(joint)
    lines: list[str] = ["HIERARCHY"]
    order: list[int] = []

    def add(joint: int, depth: int) -> None:
        indent = "\t" * depth
        order.append(joint)
        offset = np.zeros(3) if joint == 0 else offsets[joint - 1]
        rotations = " ".join(f"{axis}rotation" for axis in ORDER)
        channels = f"6 Xposition Yposition Zposition {rotations}" if joint == 0 else f"3 {rotations}"
        lines.append(f"{indent}{'JOINT' if joint else 'ROOT'} {motion.joint_names[joint]}")
        lines.append(f"{indent}{{")
        lines.append(f"{indent}\tOFFSET {_row(offset)}")
        lines.append(f"{indent}\tCHANNELS {channels}")
        for child in children[joint]:
            add(child, depth + 1)
        if not children[joint]:
            end = f"{indent}\t\tOFFSET {_row(_END * offset)}"
            lines.extend((f"{indent}\tEnd Site", f"{indent}\t{{", end, f"{indent}\t}}"))
        lines.append(f"{indent}}}")

    add(0, 0)
    lines += ["MOTION", f"Frames: {len(motion)}", f"Frame Time: {1 / motion.fps:.10f}"]
    yield "\n".join(lines) + "\n"
    form = " ".join(["%.6f"] * (3 + 3 * len(order))) + "\n"
    before: np.ndarray | None = None
    for rows in motion.chunks():
        positions = frame.points(motion.T_world_root[rows, 4:]).numpy()
        angles = _euler(motion, frame, rows, before)
        before = angles[-1]
        degrees = np.degrees(angles)[:, order].reshape(len(angles), -1)
        block = np.round(np.concatenate((positions, degrees), axis=1), 6) + 0.0  # no "-0.000000"
        yield "".join(form % tuple(row) for row in block.tolist())


def _row(values: np.ndarray) -> str:
    return " ".join(f"{value + 0.0:.6f}" for value in np.round(values, 6))


def _euler(motion: PosedMotion, frame: FileFrame, rows: slice, before: np.ndarray | None) -> np.ndarray:
    """Angles ``(n, J + 1, 3)`` of some frames in radians about z, x and y, the root first; ``before`` are those of the
    frame before."""
    root = frame.root_quats(motion.T_world_root[rows, None, :4])
    quats = torch.cat((root, frame.local_quats(motion.rotations(rows))), dim=1)
    return euler_zxy(quat_to_rotmat(quats).numpy(), before)


def euler_zxy(rotmats: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
    """Angles ``(T, n, 3)`` in radians with ``R = Rz(a) Rx(b) Ry(c)`` for rotations ``(T, n, 3, 3)``.

    Of all angles of a rotation those nearest to the frame before are taken (``before (n, 3)`` for the first), so they
    go on through the middle angle's limit of a quarter turn and beyond half turns.
    """
    cosine = np.hypot(rotmats[..., 2, 0], rotmats[..., 2, 2])
    found = np.stack(
        (
            np.arctan2(-rotmats[..., 0, 1], rotmats[..., 1, 1]),
            np.arctan2(rotmats[..., 2, 1], cosine),
            np.arctan2(-rotmats[..., 2, 0], rotmats[..., 2, 2]),
        ),
        axis=-1,
    )
    outer = np.arctan2(rotmats[..., 1, 0], rotmats[..., 0, 0])  # a + c, or a - c, where the middle angle is a limit
    locked = cosine < _LOCKED
    last = np.zeros(found.shape[1:]) if before is None else before
    for frame in range(len(found)):
        one = found[frame]
        if locked[frame].any():
            side = np.sign(one[:, 1])
            held = np.stack((last[:, 0], one[:, 1], side * (outer[frame] - last[:, 0])), axis=-1)
            one = np.where(locked[frame][:, None], held, one)
        other = np.stack((one[:, 0] + np.pi, np.pi - one[:, 1], one[:, 2] + np.pi), axis=-1)
        one, other = (angles - 2 * np.pi * np.round((angles - last) / (2 * np.pi)) for angles in (one, other))
        nearer = np.abs(other - last).sum(-1) < np.abs(one - last).sum(-1) - 1e-9
        last = found[frame] = np.where(nearer[:, None], other, one)
    return found
