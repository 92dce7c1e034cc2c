"""A made-up head, and files of it, for the tests of head trajectories."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch

from mgrpo import geometry as g
from mgrpo.infer.devices import MIRROR, Y_UP

TIMES = np.arange(120) / 60.0


def head(times: np.ndarray = TIMES) -> np.ndarray:
    """Central pupil frames ``(N, 7)`` of somebody who walks along +y, 1.6 m above the floor, and looks about."""
    position = np.stack((0.2 * np.sin(times), times, 1.6 + 0.05 * np.sin(3 * times)), axis=1)
    # CPF axes x left, y up, z forward; looking along +y: left is -x
    level = torch.tensor([[-1.0, 0, 0], [0, 0, 1], [0, 1, 0]], dtype=torch.float64)
    yaw = g.yaw_rotation(torch.from_numpy(0.5 * np.sin(2 * times)))
    pitch = torch.from_numpy(0.3 * np.cos(times))
    about_x = torch.stack((torch.cos(pitch / 2), torch.sin(pitch / 2), 0 * pitch, 0 * pitch), dim=-1)
    quat = g.quat_multiply(g.quat_multiply(yaw, g.rotmat_to_quat(level)), about_x)
    return np.concatenate((g.quat_normalize(quat).numpy(), position), axis=1)


def as_matrices(poses: np.ndarray) -> np.ndarray:
    matrices = np.tile(np.eye(4), (len(poses), 1, 1))
    matrices[:, :3, :3] = g.quat_to_rotmat(torch.from_numpy(poses[:, :4])).numpy()
    matrices[:, :3, 3] = poses[:, 4:]
    return matrices


def y_up_viewer(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same head as OpenXR tells it, by hand: world y up, axes x right, y up, -z forward."""
    matrices = as_matrices(poses)
    viewer = matrices[:, :3, :3] @ np.diag([-1.0, 1.0, -1.0])  # columns: right, up, back
    R, t = Y_UP.T @ viewer, poses[:, 4:] @ Y_UP
    return g.quat_normalize(g.rotmat_to_quat(torch.from_numpy(R))).numpy(), t


def in_unity(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same as Unity tells it: left-handed, x right, y up, z forward."""
    quats, t = y_up_viewer(poses)
    R = g.quat_to_rotmat(torch.from_numpy(quats)).numpy()
    return g.quat_normalize(g.rotmat_to_quat(torch.from_numpy(MIRROR @ R @ MIRROR))).numpy(), t @ MIRROR


def same_poses(got: np.ndarray, wanted: np.ndarray, atol: float = 1e-6) -> None:
    assert np.abs(as_matrices(got) - as_matrices(wanted)).max() < atol


def write_csv(path: Path, header: str, *columns: np.ndarray, number: str = "%.12g") -> Path:
    rows = np.concatenate([column.reshape(len(column), -1) for column in columns], axis=1)
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as stream:
        np.savetxt(stream, rows, number, ",", header=header, comments="")
    return path
