"""Where the central pupil frame is on a headset: the nominal place on Project Aria's glasses, and one from a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from mgrpo.errors import InputError
from mgrpo.geometry import quat_normalize, rotmat_to_quat

NOMINAL_DEVICE_CPF = np.array(
    [[-0.03186, -0.99863, -0.04152, 0.00495],
     [0.79335, 0.0, -0.60876, -0.04915],
     [0.60793, -0.05234, 0.79227, -0.04919]]
)  # fmt: skip
"""Pose of the central pupil frame in the device's of an Aria of size S, metres: from its construction, rounded. A
recording's own calibration (in its vrs file) differs by up to a centimetre."""


def read_device_cpf(path: Path) -> np.ndarray:
    """``T_device_cpf (7,)`` from a JSON file: 7 numbers (wxyz and metres) or a 3x4 or 4x4 matrix. Raises InputError."""
    try:
        if path.stat().st_size > 1 << 16:
            raise InputError(f"{path}: too large for a pose")
        values = np.array(json.loads(path.read_text("utf-8")), float)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: can't be read as a pose ({error})") from error
    if not np.isfinite(values).all():
        raise InputError(f"{path}: a pose must be finite")
    if values.shape == (7,) and abs(np.linalg.norm(values[:4]) - 1) < 1e-2:
        return np.concatenate((values[:4] / np.linalg.norm(values[:4]), values[4:]))
    if values.shape in ((3, 4), (4, 4)):
        R = values[:3, :3]
        upright = np.allclose(values[3:], [0.0, 0.0, 0.0, 1.0], atol=1e-2)  # one written column by column is not
        if upright and np.allclose(R @ R.T, np.eye(3), atol=1e-2) and np.linalg.det(R) > 0:
            return pose_from_matrix(values[:3])
    raise InputError(
        f"{path}: expected 7 numbers (unit quaternion wxyz, then metres) or a rigid 3x4 or 4x4 matrix, row by row"
    )


def pose_from_matrix(matrix: np.ndarray) -> np.ndarray:
    """Pose ``(7,)``, wxyz and metres, of a ``(3, 4)`` matrix, whose rotation may be rounded: the nearest one counts."""
    U, _, Vt = np.linalg.svd(matrix[:, :3])
    quat = quat_normalize(rotmat_to_quat(torch.from_numpy(U @ Vt))).numpy()
    return np.concatenate((quat, matrix[:, 3]))
