"""AMASS's npz for SMPL+H (the "SMPL+H G" downloads)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mgrpo.export.motion import PosedMotion
from mgrpo.export.smpl_parameters import smpl_parameters
from mgrpo.npz import write_npz

DMPLS = 8
"""Soft-tissue numbers of a frame, which are zero here."""


def amass_arrays(motion: PosedMotion) -> dict[str, np.ndarray]:
    """The arrays of an AMASS file, float64: ``trans (T, 3)`` metres, z up; ``gender``; ``mocap_framerate``; ``betas
    (16,)``; ``dmpls (T, 8)`` zeros; ``poses (T, 156)`` axis angles in radians.

    Args:
        motion: of one shape (:meth:`PosedMotion.with_one_shape`) and with frames at equal distances.
    """
    poses, trans, betas = smpl_parameters(motion, "z")
    return {
        "trans": trans,
        "gender": np.array(motion.gender),
        "mocap_framerate": np.array(motion.fps),
        "betas": betas,
        "dmpls": np.zeros((len(motion), DMPLS)),
        "poses": poses.reshape(len(motion), -1),
    }


def write_amass(path: str | Path, motion: PosedMotion) -> None:
    """Write a motion as AMASS's npz. Raises InputError where the place can't be written to."""
    write_npz(path, amass_arrays(motion))
