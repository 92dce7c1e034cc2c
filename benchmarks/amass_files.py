"""Made-up files in the formats of AMASS (SMPL+H G) and SMPL-H, on the body that ships with mgrpo: for tests and
measurements, licensed by nobody."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mgrpo.body import PARENTS_FULL, BodyModel, default_body
from mgrpo.body.skeleton import HEAD, TOE_JOINTS
from mgrpo.body.smplh import LEFT_EYE_VERTICES, RIGHT_EYE_VERTICES

_UPRIGHT = (np.pi / 2, 0.0, 0.0)
_VERTICES = 6890


def recording(
    frames: int,
    fps: float,
    *,
    floor: float = 0.0,
    step_up: float = 0.0,
    stand: float = 1 / 3,
    gender: str = "neutral",
    seed: int = 0,
    rate_key: str = "mocap_framerate",
) -> dict[str, np.ndarray]:
    """Somebody who stands, walks at about 1.5 m/s without lifting a foot, and stands again, moving arms, spine and
    fingers all the time; the arrays of a file of AMASS.

    Args:
        frames: number of frames.
        fps: their rate, Hz.
        floor: height of the floor, metres: the toes of standing feet are 0.01 m above it.
        step_up: how much higher the second standing place is, metres.
        stand: share of the frames of each of the two standing parts.
        gender: what the file says.
        seed: of the movements and the shape numbers.
        rate_key: name of the frame rate.
    """
    random = np.random.default_rng(seed)
    time = np.arange(frames) / fps
    poses = np.zeros((frames, 52, 3))
    poses[:, 0] = _UPRIGHT
    # everything but the legs: their joints are 1, 2, 4, 5, 7, 8, 10, 11 with the root first
    moving = [3, 6, 9, *range(12, 52)]
    swing = 0.3 * random.normal(size=(len(moving), 3))
    phase = random.uniform(0, 2 * np.pi, (len(moving), 3))
    poses[:, moving] = swing * np.sin(2 * np.pi * 0.5 * time[:, None, None] + phase)
    betas = random.normal(size=16)
    rest = default_body().rest_joints(torch.from_numpy(betas.astype(np.float32))).numpy().astype(np.float64)
    toes = [joint + 1 for joint in TOE_JOINTS]
    trans = np.zeros((frames, 3))
    # the root joint stays at its place when the body is turned upright; what was y is then z
    trans[:, 2] = floor + 0.01 - rest[0, 2] - (rest[toes, 1] - rest[0, 1]).mean()
    first, last = int(stand * frames), int((1 - stand) * frames)
    walked = np.clip(np.arange(frames) - first, 0, max(last - first, 0)) / fps
    trans[:, 0] += 0.7 + 1.5 * walked
    trans[:, 2] += step_up * np.clip((np.arange(frames) - first) / max(last - first, 1), 0, 1)
    return {
        "poses": poses.reshape(frames, -1).astype(np.float64),
        "trans": trans,
        "betas": betas,
        "gender": np.array(gender),
        rate_key: np.array(float(fps)),
        "dmpls": np.zeros((frames, 8)),
    }


def write_recording(path: Path, **options: object) -> Path:
    """Write a file of AMASS; `options` as for :func:`recording`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **recording(**options))  # type: ignore[arg-type]
    return path


def write_smplh(path: Path, body: BodyModel | None = None, *, size: float = 1.0) -> Path:
    """Write a file in the format of SMPL-H whose joints and eyes are those of a body (default: the one that ships),
    times ``size``. Its vertices are the joints and eyes; there is no surface."""
    body = default_body() if body is None else body
    joints, directions = body.J_template.numpy() * size, body.J_shapedirs.numpy() * size
    template = np.zeros((_VERTICES, 3), np.float32)
    shapedirs = np.zeros((_VERTICES, 3, 16), np.float32)
    template[: len(joints)], shapedirs[: len(joints)] = joints, directions
    eyes = list(LEFT_EYE_VERTICES + RIGHT_EYE_VERTICES)
    template[eyes] = joints[HEAD + 1] + body.cpf_template.numpy() * size
    shapedirs[eyes] = directions[HEAD + 1] + body.cpf_shapedirs.numpy() * size
    kintree = np.array([[2**32 - 1, *(parent + 1 for parent in PARENTS_FULL)], range(52)], np.uint32)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        v_template=template,
        shapedirs=shapedirs,
        J_regressor=np.eye(52, _VERTICES, dtype=np.float32),
        kintree_table=kintree,
    )
    return path
