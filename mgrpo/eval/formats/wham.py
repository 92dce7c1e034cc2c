"""WHAM's ``wham_output.pkl``: a joblib pickle of persons, each with SMPL parameters in the world."""

from __future__ import annotations

from torch import Tensor

from mgrpo.errors import InputError

from .container import Container
from .rotations import RotationMotion
from .tracks import ReadOptions, axis_angles, numbers, whole_numbers

NO_FLOOR = "its world starts at the camera and has no floor at z = 0: GP and GND say nothing"
"""Note for methods that recover people from a camera."""

FPS = 30.0
"""Assumed: the file does not hold its video's frame rate."""


def _persons(file: Container) -> dict:
    content = file.content
    if not isinstance(content, dict):
        return {}
    if "pose_world" in content:
        return {"": content}
    return {key: value for key, value in content.items() if isinstance(value, dict) and "pose_world" in value}


def matches(file: Container) -> bool:
    """Whether the pickle holds persons with a pose in the world."""
    return file.kind == "pickle" and bool(_persons(file))


def read(file: Container, options: ReadOptions) -> list[RotationMotion]:
    """One entry per person, in the world coordinates (``pose_world``, ``trans_world``): y up, metres, SMPL."""
    found = []
    for key, person in _persons(file).items():
        missing = [name for name in ("trans_world", "betas") if name not in person]
        if missing:
            raise InputError(f"person {key!r} lacks {', '.join(missing)}")
        pose = numbers(person["pose_world"], "pose_world", (None, 72))
        frames = len(pose)
        quats = axis_angles(pose)
        notes = [NO_FLOOR]
        found.append(
            RotationMotion(
                root_quats=quats[None, :, 0],
                positions=numbers(person["trans_world"], "trans_world", (frames, 3))[None],
                body_quats=quats[None, :, 1:22],
                betas=shape_numbers(person["betas"], frames)[None],
                options=options,
                fps=options.rate(None, FPS, notes),
                up="y",
                positions_are="smpl trans",
                foreign_shape="SMPL",
                name=str(key),
                format="WHAM output",
                frame_nums=whole_numbers(person["frame_ids"], "frame_ids", frames) if "frame_ids" in person else None,
                notes=notes,
            )
        )
    return found


def shape_numbers(value: object, frames: int) -> Tensor:
    """Shape numbers ``(frames, n)`` of an array for the whole motion or for each frame."""
    betas = numbers(value, "betas", (None,) * getattr(value, "ndim", 2))
    if betas.ndim == 1:
        betas = betas.expand(frames, -1)
    if betas.ndim != 2 or len(betas) not in (1, frames):
        raise InputError(f"betas must have shape (10,), (1, 10) or ({frames}, 10), got {tuple(betas.shape)}")
    return betas.expand(frames, -1)
