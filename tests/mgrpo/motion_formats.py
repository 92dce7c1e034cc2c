"""Made-up motion, and writers of other projects' formats for it, as those projects write them."""

from __future__ import annotations

import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mgrpo import geometry
from mgrpo.body import BodyModel, PlacedBody, default_body
from mgrpo.body.placement import place_on_root
from mgrpo.data import MotionClip

FRAMES = 12
TO_Y_UP = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]], dtype=torch.float64)
"""From z up to y up: (x, y, z) becomes (x, z, -y)."""


class Made:
    """A motion of an upright body and all that the formats write of it, float64."""

    def __init__(
        self, seed: int = 0, frames: int = FRAMES, body: BodyModel | None = None, rotation: float = 0.3
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def smooth(*shape: int, size: float) -> Tensor:
            start = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
            steps = torch.randn(frames, *shape, generator=generator, dtype=torch.float64).cumsum(0)
            return size * (start + 0.1 * steps)

        self.frames = frames
        self.body = (body or default_body()).body_only().to(dtype=torch.float64)
        upright = torch.tensor([0.5, 0.5, 0.5, 0.5], dtype=torch.float64)
        lean = geometry.axis_angle_to_quat(smooth(3, size=0.2))
        self.root_quat = geometry.quat_multiply(lean, upright)
        self.pelvis = smooth(3, size=0.3) + torch.tensor([0.0, 0.0, 0.95], dtype=torch.float64)
        self.body_quats = geometry.axis_angle_to_quat(smooth(21, 3, size=rotation))
        self.betas = torch.zeros(16, dtype=torch.float64)
        self.placed: PlacedBody = place_on_root(
            self.body, geometry.quat_to_rotmat(self.body_quats), self.betas, geometry.se3(self.root_quat, self.pelvis)
        )
        self.joints = self.placed.joints
        """``(T, 22, 3)``, z up."""
        self.trans = self.pelvis - self.body.rest_joints(self.betas)[0]
        """SMPL's translation."""

    def axis_angle(self, y_up: bool = False) -> tuple[Tensor, Tensor]:
        """Root ``(T, 3)`` and body ``(T, 63)``."""
        R = geometry.quat_to_rotmat(self.root_quat)
        if y_up:
            R = TO_Y_UP @ R
        return geometry.rotmat_to_axis_angle(R), geometry.quat_to_axis_angle(self.body_quats).flatten(1)

    def trans_y_up(self) -> Tensor:
        """SMPL's translation for a pelvis in a y-up world."""
        return self.pelvis @ TO_Y_UP.T - self.body.rest_joints(self.betas)[0]

    def clip(self, name: str = "walk", fps: float = 30.0) -> MotionClip:
        return MotionClip(
            name,
            fps,
            geometry.se3(self.root_quat, self.pelvis).float(),
            self.body_quats.float(),
            self.betas.float(),
            torch.zeros(self.frames, 21),
        )


def write_joints(path: Path, made: Made, **extra: object) -> Path:
    np.savez(path, joints=made.joints.numpy(), fps=30.0, up="z", **extra)
    return path


def write_amass(path: Path, made: Made, *, rate_key: str = "mocap_framerate", fps: float = 30.0) -> Path:
    root, pose = made.axis_angle()
    poses = torch.cat((root, pose, torch.zeros(made.frames, 90)), dim=1).numpy()
    arrays = {"trans": made.trans.numpy(), "poses": poses, "betas": made.betas.numpy(), "gender": "neutral"}
    np.savez(path, **arrays, **{rate_key: fps}, dmpls=np.zeros((made.frames, 8)))
    return path


def write_amass_smplx(path: Path, made: Made, *, fps: float = 30.0) -> Path:
    root, pose = made.axis_angle()
    np.savez(
        path, trans=made.trans.numpy(), root_orient=root.numpy(), pose_body=pose.numpy(), betas=made.betas.numpy(),
        gender="neutral", surface_model_type="smplx", mocap_frame_rate=fps, poses=np.zeros((made.frames, 165)),
    )  # fmt: skip
    return path


def write_egoallo(path: Path, mades: list[Made], *, first: int = 0, fps: float = 30.0, clock_s: float = 0.0) -> Path:
    frames = mades[0].frames
    numbers = np.arange(first, first + frames)
    root = torch.stack([geometry.se3(made.root_quat, made.pelvis) for made in mades])
    np.savez(
        path,
        Ts_world_cpf=np.zeros((frames, 7)),
        Ts_world_root=root.numpy(),
        body_quats=torch.stack([made.body_quats for made in mades]).numpy(),
        left_hand_quats=np.zeros((len(mades), frames, 15, 4)),
        right_hand_quats=np.zeros((len(mades), frames, 15, 4)),
        contacts=np.zeros((len(mades), frames, 21)),
        betas=np.stack([np.tile(made.betas.numpy(), (frames, 1)) for made in mades]),
        frame_nums=numbers,
        timestamps_ns=np.rint((clock_s + numbers / fps) * 1e9).astype(np.int64),
    )
    return path


def write_humanml3d(path: Path, made: Made, *, unit: float = 1.0) -> Path:
    np.save(path, (made.joints @ TO_Y_UP.T / unit).numpy())
    return path


def write_mdm(path: Path, prompts: list[list[Made]], lengths: list[int] | None = None) -> Path:
    """``prompts[i][r]`` is repetition r of prompt i; MDM stores repetition by repetition."""
    order = [prompt[repetition] for repetition in range(len(prompts[0])) for prompt in prompts]
    motion = np.stack([(made.joints @ TO_Y_UP.T).numpy().transpose(1, 2, 0) for made in order]).astype(np.float32)
    content = {
        "motion": motion,
        "text": [f"prompt {index % len(prompts)}" for index in range(len(order))],
        "lengths": np.array(lengths or [motion.shape[-1]] * len(order)),
        "num_samples": len(prompts),
        "num_repetitions": len(prompts[0]),
    }
    np.save(path, content, allow_pickle=True)
    return path


def wham_persons(mades: dict[int, Made], frame_ids: np.ndarray | None = None) -> dict:
    persons: dict = defaultdict(dict)
    for key, made in mades.items():
        root, pose = made.axis_angle(y_up=True)
        hands = torch.zeros(made.frames, 6)
        persons[np.int64(key)]["pose_world"] = torch.cat((root, pose, hands), 1).numpy().astype(np.float32)
        persons[key]["pose"] = np.zeros((made.frames, 72), np.float32)
        persons[key]["trans_world"] = made.trans_y_up().numpy().astype(np.float32)
        persons[key]["trans"] = np.zeros((made.frames, 3), np.float32)
        persons[key]["betas"] = np.zeros((made.frames, 10), np.float32)
        persons[key]["verts"] = np.zeros((made.frames, 6, 3), np.float32)
        persons[key]["frame_ids"] = np.arange(made.frames) if frame_ids is None else frame_ids
    return persons


def write_wham(path: Path, mades: dict[int, Made], compress: object = 0, frame_ids: np.ndarray | None = None) -> Path:
    joblib = __import__("pytest").importorskip("joblib")
    joblib.dump(wham_persons(mades, frame_ids), path, compress=compress)
    return path


def write_plain_pickle(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def write_gvhmr(path: Path, made: Made) -> Path:
    root, pose = made.axis_angle(y_up=True)
    torch.save(
        {
            "smpl_params_global": {
                "body_pose": pose.float(),
                "global_orient": root.float(),
                "transl": made.trans_y_up().float(),
                "betas": torch.zeros(made.frames, 10),
            },
            "smpl_params_incam": {},
            "K_fullimg": torch.eye(3),
        },
        path,
    )
    return path
