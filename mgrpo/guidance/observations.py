"""Hands as devices and detectors saw them, in the form that guidance takes.

One observation belongs to one head trajectory; leading axes ``*b`` broadcast to those of the motions. Left hand first.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mgrpo.errors import InputError
from mgrpo.geometry import quat_multiply, quat_normalize, rotmat_to_quat, se3, se3_apply, se3_multiply
from mgrpo.kernels import project_so3

HANDS = 2
FINGER_JOINTS = 15
OPENPOSE_POINTS = 21
OPENPOSE_OF_MANO = (0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3)
"""OpenPose's number of the wrist and the 15 finger joints in MANO's order, which is that of SMPL-H."""
NEAREST_WRIST = 0.05
"""Metres in front of the camera; what is nearer, or behind it, was not seen."""


@dataclass(frozen=True, eq=False)
class WristTracks:
    """Poses of the wrists in the world, from Aria's hand tracking, controllers or anything else.

    Raises InputError for shapes that don't fit each other.
    """

    T_world_wrist: Tensor
    """``(*b, T, 2, 7)``, wxyz and xyz, metres, z up: the wrist *joints* of SMPL-H (left, right), whose axes at rest are
    the body's: x left, y up, z forward, arms stretched out sideways. Where a wrist wasn't seen, anything (NaN too)."""
    confidence: Tensor
    """``(*b, T, 2)``: factor of the residuals, 0 where the wrist wasn't seen; a bool mask too."""

    def __post_init__(self) -> None:
        _check("WristTracks", self, {"T_world_wrist": ("T", HANDS, 7), "confidence": ("T", HANDS)})

    @classmethod
    def from_palms(
        cls, p_world_wrist: Tensor, p_world_palm: Tensor, n_world_palm: Tensor, confidence: Tensor
    ) -> WristTracks:
        """From what Project Aria gives: points of wrist and palm and the palm's normal.

        The orientation is that of EgoAllo: x from wrist to palm (for the right hand from palm to wrist), y against the
        normal.

        Args:
            p_world_wrist, p_world_palm: ``(*b, T, 2, 3)`` metres.
            n_world_palm: ``(*b, T, 2, 3)``, any length.
            confidence: ``(*b, T, 2)``.
        """
        side = torch.tensor([1.0, -1.0], dtype=p_world_wrist.dtype, device=p_world_wrist.device)[:, None]
        normal = torch.nn.functional.normalize(n_world_palm, dim=-1)
        along = side * torch.nn.functional.normalize(p_world_palm - p_world_wrist, dim=-1)
        along = along - (along * normal).sum(-1, keepdim=True) * normal
        columns = torch.stack((along, -normal, torch.linalg.cross(normal, along, dim=-1)), dim=-1)
        # Not a rotation where wrist, palm and normal are not at right angles: the nearest one is.
        return cls(se3(rotmat_to_quat(project_so3(columns)), p_world_wrist), confidence)


@dataclass(frozen=True, eq=False)
class HamerHands:
    """Hands as HaMeR (or another estimator of MANO hands) saw them in a camera that moves with the head.

    Raises InputError for shapes that don't fit each other.
    """

    finger_rotmats: Tensor
    """Local finger rotations ``(*b, T, 2, 15, 3, 3)`` in MANO's order; the left hand's own, not mirrored."""
    R_cam_wrist: Tensor
    """Orientation of the wrist ``(*b, T, 2, 3, 3)`` (MANO's global orientation)."""
    keypoints_cam: Tensor
    """Points of the hand ``(*b, T, 2, 21, 3)`` in OpenPose's order, metres, z along the optical axis."""
    seen: Tensor
    """``(*b, T, 2)`` bool, or a factor of the residuals. Where it is 0 the rest may be anything (NaN too)."""
    T_cpf_cam: Tensor
    """Pose of the camera in the central pupil frame ``(*b, 7)``."""

    def __post_init__(self) -> None:
        _check(
            "HamerHands",
            self,
            {
                "finger_rotmats": ("T", HANDS, FINGER_JOINTS, 3, 3),
                "R_cam_wrist": ("T", HANDS, 3, 3),
                "keypoints_cam": ("T", HANDS, OPENPOSE_POINTS, 3),
                "seen": ("T", HANDS),
                "T_cpf_cam": (7,),
            },
        )

    def usable(self) -> Tensor:
        """``seen`` as numbers ``(*b, T, 2)``, 0 also where the wrist isn't in front of the camera."""
        in_front = self.keypoints_cam[..., 0, 2] > NEAREST_WRIST
        return torch.where(in_front, self.seen.to(self.keypoints_cam.dtype), 0.0)

    def T_world_cam(self, T_world_cpf: Tensor) -> Tensor:
        """Poses of the camera ``(*b, T, 7)``."""
        T_cpf_cam = torch.cat((quat_normalize(self.T_cpf_cam[..., :4]), self.T_cpf_cam[..., 4:]), -1)
        return se3_multiply(T_world_cpf, T_cpf_cam.unsqueeze(-2))

    def wrists(self, T_world_cpf: Tensor) -> WristTracks:
        """The wrists in the world."""
        T_world_cam = self.T_world_cam(T_world_cpf).unsqueeze(-2)
        q_cam_wrist = quat_normalize(rotmat_to_quat(project_so3(self.R_cam_wrist)))
        p_world_wrist = se3_apply(T_world_cam, self.keypoints_cam[..., 0, :])
        return WristTracks(se3(quat_multiply(T_world_cam[..., :4], q_cam_wrist), p_world_wrist), self.usable())

    def image_points(self) -> Tensor:
        """x / z and y / z ``(*b, T, 2, 16, 2)`` of the wrist and the finger joints."""
        points = self.keypoints_cam[..., list(OPENPOSE_OF_MANO), :]
        return points[..., :2] / points[..., 2:]


@dataclass(frozen=True, eq=False)
class HandObservations:
    """All that was seen of the hands during one recording."""

    wrists: WristTracks | None = None
    """Tracked wrists, for the modes ``aria_wrist_only`` and ``aria_hamer``."""
    hamer: HamerHands | None = None
    """HaMeR's hands, for the modes with ``hamer`` in their name."""

    def select(self, frames: slice) -> HandObservations:
        """The observations of some frames."""
        wrists, hamer = self.wrists, self.hamer
        if wrists is not None:
            wrists = WristTracks(wrists.T_world_wrist[..., frames, :, :], wrists.confidence[..., frames, :])
        if hamer is not None:
            hamer = HamerHands(
                finger_rotmats=hamer.finger_rotmats[..., frames, :, :, :, :],
                R_cam_wrist=hamer.R_cam_wrist[..., frames, :, :, :],
                keypoints_cam=hamer.keypoints_cam[..., frames, :, :, :],
                seen=hamer.seen[..., frames, :],
                T_cpf_cam=hamer.T_cpf_cam,
            )
        return HandObservations(wrists, hamer)

    def to(self, like: Tensor) -> HandObservations:
        """The same in the dtype and on the device of ``like``."""

        def moved(part: Any) -> Any:
            return None if part is None else type(part)(*(getattr(part, field.name).to(like) for field in fields(part)))

        return HandObservations(moved(self.wrists), moved(self.hamer))


def _check(name: str, owner: Any, shapes: dict[str, tuple[str | int, ...]]) -> None:
    """Trailing axes of the tensors; T is the same for all."""
    frames: dict[str, int] = {}
    for field, wanted in shapes.items():
        value = getattr(owner, field)
        got = tuple(value.shape[max(value.ndim - len(wanted), 0) :])
        fits = len(got) == len(wanted) and all(
            size == (frames.setdefault("T", size) if axis == "T" else axis)
            for size, axis in zip(got, wanted, strict=True)
        )
        if not fits:
            known = f" with T = {frames['T']}" if "T" in frames else ""
            shape = ", ".join(map(str, ("*b", *wanted)))
            raise InputError(f"{name}: {field} must have shape ({shape}){known}, got {tuple(value.shape)}")
