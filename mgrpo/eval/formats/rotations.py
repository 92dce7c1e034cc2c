"""A motion as rotations, the way most files hold it: posed on a body all at once for measuring, or piece by piece."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mgrpo.body import BodyModel
from mgrpo.body.model import NUM_BETAS
from mgrpo.body.placement import PlacedBody, place_on_root
from mgrpo.data.rate import require_fps
from mgrpo.errors import InputError
from mgrpo.geometry import quat_multiply, quat_normalize, quat_to_rotmat, rotmat_to_quat, se3

from .tracks import METRES, TO_Z_UP, MotionTracks, ReadOptions, chosen_up


@dataclass(frozen=True, eq=False)
class RotationMotion:
    """S motions of one person over T frames as a file holds them, not yet posed on a body.

    Raises InputError for rotations of length zero, a frame rate that is none, and where there is no frame or sample.
    """

    root_quats: Tensor
    """Rotation of the pelvis in the file's world ``(S, T, 4)``, wxyz."""
    positions: Tensor
    """``(S, T, 3)``: the pelvis joint, or SMPL's ``trans``, to which the rest pelvis of the shape is added."""
    body_quats: Tensor
    """Local rotations ``(S, T, 21, 4)``, wxyz."""
    betas: Tensor
    """Shape numbers, broadcasting to ``(S, T, n)``; beyond 16 they are cut."""
    options: ReadOptions
    """What the reader was told: body, up axis, unit."""
    fps: float
    """Frames per second."""
    positions_are: Literal["pelvis", "smpl trans"]
    """What ``positions`` are."""
    up: str = "z"
    """The format's up axis."""
    foreign_shape: str = ""
    """Name of the body model that the shape numbers were made for, if it is not SMPL-H."""
    name: str = ""
    """That of the motion within a file of several; otherwise empty."""
    format: str = ""
    """What the file was taken for."""
    frame_nums: np.ndarray | None = None
    """Number of each frame in its recording ``(T,)`` int64, rising; None: the file has none."""
    times: np.ndarray | None = None
    """Time of each frame in seconds ``(T,)`` float64, rising; None: the file has none."""
    notes: list[str] = field(default_factory=list)
    """What was assumed on the way."""
    contacts: np.ndarray | None = None
    """Whether each body joint touches something ``(S, T, 21)``; None: the file has none."""
    T_world_cpf: np.ndarray | None = None
    """Poses of the central pupil frame ``(T, 7)``, wxyz + xyz, z up; None: the file has none."""
    hand_quats: Tensor | None = None
    """Local rotations of the fingers ``(S, T, 30, 4)``, wxyz, left hand first, as the file has them (not checked, see
    :attr:`finger_quats`); None: it has none."""
    gender: str = "neutral"
    """Gender of the body that the shape numbers were made for, as the file says it."""

    def __post_init__(self) -> None:
        if 0 in self.body_quats.shape[:2]:
            raise InputError(f"it holds {self.samples} samples of {len(self)} frames; at least one of each is needed")
        for label, quats in (("root", self.root_quats), ("body", self.body_quats)):
            if bool((quats.norm(dim=-1) < 1e-6).any()):
                raise InputError(f"its {label} rotations have a quaternion of length zero")
        require_fps(self.fps, f"the frame rate of motion '{self.name}'" if self.name else "its frame rate")

    def __len__(self) -> int:
        return int(self.body_quats.shape[1])

    @property
    def samples(self) -> int:
        """Number S of motions."""
        return int(self.body_quats.shape[0])

    @cached_property
    def body(self) -> BodyModel:
        """The body it is posed on, with 21 joints, float64; InputError where none was given."""
        if self.options.body is None:
            raise InputError(
                f"it holds rotations ({self.format}), so joints need a body: --body smplh (searched for), "
                "--body PATH of an SMPL-H model.npz, or --body default for motion made with this package's own body"
            )
        return self.options.body.body_only().to(dtype=torch.float64)

    @cached_property
    def full_body(self) -> BodyModel:
        """The same body with all its joints, float64; InputError where none was given."""
        return self.options.body.to(dtype=torch.float64) if self.options.body is not None else self.body

    @cached_property
    def finger_quats(self) -> Tensor | None:
        """Local rotations of the fingers ``(S, T, 30, 4)``, wxyz, where the file has some that can be posed on the
        body; None: fingers are straight."""
        hands = self.hand_quats
        if hands is None or self.finger_notes or self.full_body.num_joints == self.body.num_joints:
            return None
        return None if bool((hands[..., 1:].abs() < 1e-6).all()) else hands

    @cached_property
    def finger_notes(self) -> list[str]:
        """Why rotations of fingers that the file has can't be posed."""
        if self.hand_quats is None:
            return []
        bad = ~(self.hand_quats.norm(dim=-1) > 1e-6)  # NaN too
        if not bool(bad.any()):
            return []
        sample, frame = (int(index) for index in torch.nonzero(bad)[0, :2])
        return [
            f"its finger rotations have quaternions of length zero or NaN, first in frame {frame} of sample {sample}: "
            "fingers are shown straight"
        ]

    @property
    def foreign_betas(self) -> bool:
        """Whether the shape numbers mean nothing on the body, whose mean shape is then taken."""
        return self.body.name == "default" and self.positions_are == "smpl trans"

    @property
    def shape_notes(self) -> list[str]:
        """What is done to the shape numbers."""
        notes = []
        if self.betas.shape[-1] > NUM_BETAS:
            notes.append(f"{self.betas.shape[-1]} shape numbers: the first {NUM_BETAS} are used")
        if self.foreign_betas:
            notes.append("its shape numbers belong to another body: the default body's mean shape is used")
        elif self.foreign_shape:
            notes.append(
                f"its shape numbers are those of {self.foreign_shape}; on body '{self.body.name}' joints are off by "
                "some mm"
            )
        return notes

    @property
    def _turn(self) -> Tensor:
        """Rotation from the file's world to ours, ``(3, 3)`` float64."""
        axis = self.up if self.options.up == "auto" else self.options.up
        return torch.tensor(TO_Z_UP[axis], dtype=torch.float64)

    def shape(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """Shape numbers on the body of some frames ``(S, n, up to 16)``, float64."""
        betas = self.betas.double()[..., :NUM_BETAS]
        betas = betas.expand(self.samples, len(self), betas.shape[-1])[:, rows]
        return torch.zeros_like(betas) if self.foreign_betas else betas

    def T_world_root(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """Poses of the pelvis of some frames ``(S, n, 7)`` float64, wxyz + xyz, z up, metres."""
        turn = self._turn
        metres = METRES[self.options.unit] if self.options.unit != "auto" else 1.0
        pelvis = metres * self.positions[:, rows].double()
        if self.positions_are == "smpl trans":
            pelvis = pelvis + self.body.rest_joints(self.shape(rows))[..., 0, :]
        quats = quat_normalize(self.root_quats[:, rows].double())
        root = quat_normalize(quat_multiply(rotmat_to_quat(turn).expand_as(quats), quats))
        return se3(root, pelvis @ turn.T)

    def head_poses(self) -> Tensor | None:
        """Poses of the central pupil frame ``(T, 7)`` float64 in our world, turned and scaled as the pelvis is; None:
        the file has none."""
        if self.T_world_cpf is None:
            return None
        turn, poses = self._turn, torch.from_numpy(self.T_world_cpf).double()
        metres = METRES[self.options.unit] if self.options.unit != "auto" else 1.0
        quats = quat_normalize(poses[:, :4])
        quats = quat_normalize(quat_multiply(rotmat_to_quat(turn).expand_as(quats), quats))
        return se3(quats, metres * poses[:, 4:] @ turn.T)

    def local_rotmats(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """Local rotations of some frames ``(S, n, 21, 3, 3)``, float64."""
        return quat_to_rotmat(quat_normalize(self.body_quats[:, rows].double()))

    def placed(self, rows: slice | Tensor = slice(None), *, fingers: bool = False) -> PlacedBody:
        """Some frames posed on the body, joints ``(S, n, 22, 3)``: what takes memory, so long motions are best taken in
        pieces. With ``fingers`` they are 52 where there are :attr:`finger_quats`."""
        body, local = self.body, self.local_rotmats(rows)
        if fingers and self.finger_quats is not None:
            hands = quat_to_rotmat(quat_normalize(self.finger_quats[:, rows].double()))
            body, local = self.full_body, torch.cat((local, hands), dim=-3)
        return place_on_root(body, local, self.shape(rows), self.T_world_root(rows))

    def tracks(self) -> MotionTracks:
        """All frames posed, for measuring. Raises InputError where no body was given or values are not finite."""
        placed = self.placed()
        notes = [*self.notes, *self.shape_notes]
        if self.options.up == "auto":
            chosen_up(self.options, placed.joints @ self._turn, self.up, notes)  # the file's axes, for the note
        return MotionTracks(
            self.name,
            placed.joints,
            self.fps,
            body_rotmats=self.local_rotmats(),
            R_world_joint=placed.R_world_joint,
            frame_nums=self.frame_nums,
            times=self.times,
            format=self.format,
            notes=tuple(notes),
        )
