"""Joint positions as HumanML3D and MDM keep them: npy ``(N, 22, 3)`` and ``results.npy``. y up, 20 per second."""

from __future__ import annotations

import numpy as np

from mgrpo.errors import InputError

from .container import Container
from .tracks import MotionTracks, ReadOptions, tracks_from_joints

FPS = 20.0
"""HumanML3D's frame rate, which the files don't hold."""


def matches_joints(file: Container) -> bool:
    """Whether the file is one array of numbers."""
    return file.kind == "npy" and isinstance(file.content, np.ndarray) and file.content.dtype != object


def read_joints(file: Container, options: ReadOptions) -> list[MotionTracks]:
    """One motion of ``(N, 22, 3)``, or S samples of ``(S, N, 22, 3)``. The up axis is looked up in the motion."""
    joints = file.content
    if joints.ndim == 2 and joints.shape[1] in (251, 263):
        raise InputError(
            f"features of shape {joints.shape}, not joints; recover the joints first (HumanML3D's recover_from_ric) "
            "and save them as (N, 22, 3)"
        )
    if joints.ndim == 3:
        joints = joints[None]
    notes: list[str] = []
    rate = options.rate(None, FPS, notes)
    return [tracks_from_joints(joints, options, fps=rate, habit_up=None, format="joints npy", notes=notes)]


def matches_results(file: Container) -> bool:
    """Whether the file is a dictionary with a motion."""
    return file.kind == "npy" and isinstance(file.content, dict) and "motion" in file.content


def read_results(file: Container, options: ReadOptions) -> list[MotionTracks]:
    """One entry per prompt, its repetitions as samples. ``motion (B, 22, 3, T)``, repetition by repetition; ``lengths``
    cuts."""
    content = file.content
    motion = content["motion"]
    if not isinstance(motion, np.ndarray) or motion.ndim != 4 or motion.shape[1:3] != (22, 3) or 0 in motion.shape:
        shape = motion.shape if isinstance(motion, np.ndarray) else type(motion).__name__
        raise InputError(f"motion must have shape (B, 22, 3, T), got {shape}; KIT's 21 joints are not SMPL's 22")
    count, frames = motion.shape[0], motion.shape[3]
    lengths = np.asarray(content.get("lengths", np.full(count, frames))).reshape(-1)
    if lengths.dtype.kind not in "iu" or len(lengths) != count or lengths.min() < 1 or lengths.max() > frames:
        raise InputError(f"lengths must be {count} whole numbers from 1 to {frames}, got {lengths[:8]}")
    repetitions = content.get("num_repetitions", 1)
    if not isinstance(repetitions, int) or repetitions < 1 or count % repetitions:
        raise InputError(f"num_repetitions must divide the {count} motions, got {repetitions!r}")
    prompts = count // repetitions
    notes: list[str] = []
    rate = options.rate(None, FPS, notes)
    found = []
    for prompt in range(prompts):
        rows = range(prompt, count, prompts)
        joints = motion[list(rows)].transpose(0, 3, 1, 2)[:, : int(lengths[list(rows)].min())]
        found.append(
            tracks_from_joints(
                joints, options, fps=rate, habit_up="y", name=f"{prompt:04d}", format="MDM results", notes=notes
            )
        )
    return found
