"""Poses and points at times of their own: between them, and in another world."""

from __future__ import annotations

import numpy as np
import torch

from mgrpo.data.augment import slerp
from mgrpo.geometry import quat_multiply, rotmat_to_quat


def between(times: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of ``wanted (M,)``, the index of the time before it and how far it is to the next one, 0 to 1.

    Args:
        times: rising ``(N,)``.
    """
    low = np.clip(np.searchsorted(times, wanted, side="right") - 1, 0, max(len(times) - 2, 0))
    high = np.minimum(low + 1, len(times) - 1)
    span = np.where(high > low, times[high] - times[low], 1)
    return low, np.clip((wanted - times[low]) / span, 0.0, 1.0)


def sample_points(times: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Values ``(M, …)`` at the times ``wanted (M,)`` from ``values (N, …)`` at ``times (N,)``, N at least 2, in a
    straight line between neighbours."""
    low, part = between(times, wanted)
    part = part.reshape(-1, *(1,) * (values.ndim - 1))
    return values[low] + part * (values[low + 1] - values[low])


def sample_poses(times: np.ndarray, poses: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Poses ``(M, 7)`` from ``poses (N, 7)``, wxyz and xyz: positions as :func:`sample_points`, orientations along the
    shorter way."""
    low, part = between(times, wanted)
    quats = torch.from_numpy(poses[:, :4])
    turned = slerp(quats[low], quats[low + 1], torch.from_numpy(part)).numpy()
    return np.concatenate((turned, sample_points(times, poses[:, 4:], wanted)), axis=1)


def turned_poses(poses: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Poses ``(N, 7)`` in a world turned by the rotation ``turn (3, 3)``."""
    quat = rotmat_to_quat(torch.from_numpy(turn))
    turned = quat_multiply(quat, torch.from_numpy(poses[:, :4])).numpy()
    return np.concatenate((turned, poses[:, 4:] @ turn.T), axis=1)
