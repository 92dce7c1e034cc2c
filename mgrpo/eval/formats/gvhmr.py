"""GVHMR's ``hmr4d_results.pt``: SMPL-X parameters in a gravity-aligned world, y up."""

from __future__ import annotations

from mgrpo.errors import InputError

from .container import Container
from .rotations import RotationMotion
from .tracks import ReadOptions, axis_angles, numbers
from .wham import NO_FLOOR, shape_numbers

FPS = 30.0
"""Assumed: GVHMR takes every video as one of 30 frames per second, and the file does not say."""


def matches(file: Container) -> bool:
    """Whether it is a torch file with parameters in the world."""
    return file.kind == "torch" and isinstance(file.content, dict) and "smpl_params_global" in file.content


def read(file: Container, options: ReadOptions) -> list[RotationMotion]:
    """One motion."""
    content = file.content["smpl_params_global"]
    names = ("body_pose", "global_orient", "transl", "betas")
    if not isinstance(content, dict) or any(name not in content for name in names):
        raise InputError(f"smpl_params_global needs {', '.join(names)}")
    pose = numbers(content["body_pose"], "body_pose", (None, 63))
    frames = len(pose)
    notes = [NO_FLOOR]
    return [
        RotationMotion(
            root_quats=axis_angles(numbers(content["global_orient"], "global_orient", (frames, 3)))[None, :, 0],
            positions=numbers(content["transl"], "transl", (frames, 3))[None],
            body_quats=axis_angles(pose)[None],
            betas=shape_numbers(content["betas"], frames)[None],
            options=options,
            fps=options.rate(None, FPS, notes),
            up="y",
            positions_are="smpl trans",
            foreign_shape="SMPL-X",
            format="GVHMR results",
            notes=notes,
        )
    ]
