"""Motion for the tests of the viewer: clips that ship with the package, and made-up predictions for their head
paths."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from mgrpo import geometry
from mgrpo.body import PlacedBody, cpf_of, default_body, place_on_cpf, place_on_root
from mgrpo.data import MotionClip, load_motion
from mgrpo.npz import write_npz
from mgrpo.viz.comparison import BODY_PARENTS
from mgrpo.viz.stage import Actor, Stage
from mgrpo.viz.surface import Surface

BODY = default_body().body_only()


@lru_cache(maxsize=1)
def clips() -> dict[str, MotionClip]:
    """The demo's clips by name."""
    return {clip.name: clip for clip in load_motion("demo", BODY)}


def placed(clip: MotionClip) -> PlacedBody:
    """A clip posed, joints ``(T, 22, 3)``."""
    return place_on_root(BODY, geometry.quat_to_rotmat(clip.body_quats), clip.betas, clip.T_world_root)


def write_prediction(
    path: Path, name: str = "walk", *, size: float = 0.1, samples: int = 1, seed: int = 0, first: int = 1
) -> Path:
    """An EgoAllo output for the head path of a clip from frame ``first`` on: its rotations, turned at random by about
    ``size`` radians, alike in all frames."""
    clip = clips()[name]
    frames = len(clip)
    head = cpf_of(BODY, placed(clip), clip.betas.expand(frames, -1))
    turns = size * torch.randn(samples, 1, 21, 3, generator=torch.Generator().manual_seed(seed)).expand(
        -1, frames, -1, -1
    )
    quats = geometry.quat_multiply(clip.body_quats[None], geometry.axis_angle_to_quat(turns))
    moved = place_on_cpf(BODY, geometry.quat_to_rotmat(quats), clip.betas, head[None])
    straight = torch.zeros(samples, frames, 15, 4)
    straight[..., 0] = 1.0
    numbers, part = np.arange(frames), slice(first, frames)
    arrays = {
        "Ts_world_cpf": head[part].numpy(),
        "Ts_world_root": moved.T_world_root[:, part].numpy(),
        "body_quats": quats[:, part].numpy(),
        "left_hand_quats": straight[:, part].numpy(),
        "right_hand_quats": straight[:, part].numpy(),
        "contacts": clip.contacts[None, part].expand(samples, -1, -1).numpy(),
        "betas": np.zeros((samples, frames - first, 16), np.float32),
        "frame_nums": numbers[part],
        "timestamps_ns": np.rint(numbers[part] / clip.fps * 1e9).astype(np.int64),
    }
    write_npz(path, arrays)
    return path


def still_stage(touching: int | None = None, *, surface: bool = True, frames: int = 3) -> Stage:
    """A body that stands still in a pose of the walk and looks along world x, alone on its stage; one joint of it may
    touch something."""
    clip = clips()["walk"]
    body = placed(clip)
    joints = np.tile(body.joints[10].numpy(), (1, frames, 1, 1)).astype(np.float32)
    quats = geometry.quat_normalize(geometry.rotmat_to_quat(body.R_world_joint[10])).numpy()
    contacts = np.zeros((1, frames, 21), np.float32)
    if touching is not None:
        contacts[:, :, touching - 1] = 1.0
    assert BODY.mesh is not None
    skin = Surface(
        BODY.mesh.v_template.numpy(),
        BODY.rest_joints(clip.betas).numpy(),
        BODY.mesh.weights.numpy(),
        BODY.mesh.faces.numpy().astype(np.int32),
    )
    actor = Actor(
        "still", joints, 2, np.tile(quats, (1, frames, 1, 1)) if surface else None, contacts, (skin,) if surface else ()
    )
    return Stage("still", 30.0, (actor,))


def far_apart(metres: float = 40.0) -> Stage:
    """Two motions that have nothing to do with each other, the second far away."""
    (body,) = still_stage().actors
    moved = body.joints + np.array((metres, -metres, 0.0), np.float32)
    return Stage(
        "far",
        30.0,
        (replace(body, color=1), Actor("far", moved, 2, body.quats, body.contacts, body.surfaces)),
    )


def pinhole(
    points: np.ndarray,
    target: np.ndarray,
    azimuth: float,
    elevation: float,
    distance: float,
    focal: float,
    width: float,
    height: float,
) -> np.ndarray:
    """Pixels (…, 2) of world points (…, 3) for a camera that looks at ``target`` from ``distance`` away, ``focal`` in
    pixels: written down here again, apart from the code that draws."""  # fmt: skip
    back = np.array(
        [math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)]
    )
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    up = np.cross(back, right)
    seen = np.asarray(points, dtype=np.float64) - (np.asarray(target) + distance * back)
    depth = -(seen @ back)
    return np.stack((width / 2 + focal * (seen @ right) / depth, height / 2 - focal * (seen @ up) / depth), axis=-1)


def hue_like(picture: np.ndarray, color: tuple[int, int, int], most: float = 0.12) -> np.ndarray:
    """Where a picture (H, W, 3) has the hue of a colour, whatever its light: (H, W) bool."""
    wanted = np.array(color, dtype=np.float64) - np.mean(color)
    there = picture.astype(np.float64) - picture.mean(axis=-1, keepdims=True)
    strength = np.linalg.norm(there, axis=-1)
    alike = (there @ wanted) / np.maximum(strength * np.linalg.norm(wanted), 1e-9)
    return (alike > 1 - most) & (strength > 25)


def center(where: np.ndarray) -> tuple[float, float]:
    """Middle (x, y) of the places that are true, in pixels."""
    ys, xs = np.nonzero(where)
    assert len(xs), "nothing of that colour in the picture"
    return float(xs.mean()) + 0.5, float(ys.mean()) + 0.5


BONES = [(parent, joint) for joint, parent in enumerate(BODY_PARENTS) if parent >= 0]
