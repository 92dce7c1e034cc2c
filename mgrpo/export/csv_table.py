"""A table as CSV: one row a frame, one header line whose names end in the unit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from mgrpo.body.skeleton import BODY_JOINT_NAMES
from mgrpo.export.frames import FileFrame
from mgrpo.export.motion import PosedMotion
from mgrpo.geometry import quat_multiply
from mgrpo.storage import atomic_write_parts


def write_csv(path: str | Path, motion: PosedMotion, frame: FileFrame | None = None) -> None:
    """Write a motion as a CSV table.

    Columns, in this order (J is 22, or 52 where fingers are posed; the pelvis first):

    * ``frame``, ``time_s``: number in the recording, seconds;
    * ``<joint>_x_m``, ``_y_m``, ``_z_m`` (or ``_cm``): where each joint is in the world;
    * ``pelvis_qw``, ``_qx``, ``_qy``, ``_qz``: orientation of the pelvis in the world, a unit quaternion that turns
      SMPL's rest axes (x left, y up, z forward);
    * ``<joint>_qw`` to ``_qz`` for every other joint: its rotation relative to its parent, about the same axes;
    * ``cpf_x_m`` …, ``cpf_qw`` …: the head's pose that the motion belongs to (central pupil frame);
    * ``<joint>_contact`` for 21 joints, 0 to 1, where contacts are known.

    Args:
        path: file to write.
        motion: any.
        frame: up axis and unit of the world's columns; default z up, metres.
    Raises:
        StorageError: the disk refuses.
    """
    atomic_write_parts(Path(path), _lines(motion, frame or FileFrame("z", "m")))


def columns(motion: PosedMotion, frame: FileFrame) -> list[str]:
    """The header's names."""
    places = [f"{axis}_{frame.unit}" for axis in "xyz"]
    turns = ["qw", "qx", "qy", "qz"]
    names = ["frame", "time_s"]
    names += [f"{joint}_{place}" for joint in motion.joint_names for place in places]
    names += [f"{joint}_{turn}" for joint in motion.joint_names for turn in turns]
    names += [f"cpf_{name}" for name in (*places, *turns)]
    if motion.contacts is not None:
        names += [f"{joint}_contact" for joint in BODY_JOINT_NAMES]
    return names


def _lines(motion: PosedMotion, frame: FileFrame) -> Iterator[str]:
    names = columns(motion, frame)
    yield ",".join(names) + "\n"
    head = motion.head_trajectory()
    form = "%d,%.9f" + ",%.7f" * (len(names) - 2) + "\n"

    def in_world(quats: torch.Tensor) -> torch.Tensor:
        return quat_multiply(frame.q_file_world, quats)

    for rows in motion.chunks():
        size = len(motion.T_world_root[rows])
        parts = [
            motion.frame_nums[rows, None].double(),
            motion.times[rows, None],
            frame.points(motion.placed(rows).joints).reshape(size, -1),
            in_world(motion.T_world_root[rows, :4]),
            motion.rotations(rows).reshape(size, -1),
            frame.points(head[rows, 4:]),
            in_world(head[rows, :4]),
        ]
        if motion.contacts is not None:
            parts.append(motion.contacts[rows])
        block = torch.cat(parts, dim=1).numpy()
        block = np.concatenate((block[:, :2], np.round(block[:, 2:], 7) + 0.0), axis=1)
        yield from (form % tuple(row) for row in block.tolist())
