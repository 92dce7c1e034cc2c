"""One motion clip: what a person did, on which body, with which joints touching something. Validated, immutable, saved
as npz."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mgrpo.body.model import NUM_BETAS
from mgrpo.body.skeleton import BODY_JOINT_NAMES, HAND_JOINT_NAMES
from mgrpo.data.rate import require_fps
from mgrpo.errors import InputError, in_file
from mgrpo.npz import read_npz, write_npz

MIN_FRAMES = 2
"""A clip needs two frames to have a velocity."""

QUATERNION_TOLERANCE = 1e-3
"""How far from 1 the length of a quaternion may be."""

_NUM_BODY, _NUM_HANDS = len(BODY_JOINT_NAMES), len(HAND_JOINT_NAMES)
_FORMAT, _VERSION = "mgrpo-clip", 1


@dataclass(frozen=True, eq=False, repr=False)
class MotionClip:
    """A motion of ``F`` frames, float32 tensors. World: z up, floor at z = 0, metres; quaternions wxyz.

    Building one checks everything and raises InputError with the clip's name, the field, the first bad frame and what
    to do.
    """

    name: str
    """Unique within a set of clips."""
    fps: float
    """Frames per second."""
    T_world_root: Tensor
    """Pose of the pelvis ``(F, 7)``; translation is the pelvis joint."""
    body_quats: Tensor
    """Rotations of the 21 body joints relative to their parents ``(F, 21, 4)``."""
    betas: Tensor
    """Shape of the person, ``(16,)``, constant in time."""
    contacts: Tensor
    """For each body joint whether it touches something, ``(F, 21)`` in [0, 1]."""
    hand_quats: Tensor | None = None
    """Rotations of the 30 finger joints ``(F, 30, 4)``, left hand first; None: unknown (taken as straight)."""
    loop: bool = False
    """Whether the pose after the last frame is the first pose again with the root moved on horizontally."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InputError(f"a clip needs a name (a non-empty text), got {self.name!r}")
        object.__setattr__(self, "fps", require_fps(float(self.fps), f"clip '{self.name}': fps"))
        object.__setattr__(self, "loop", bool(self.loop))
        frames = int(self.T_world_root.shape[0]) if getattr(self.T_world_root, "ndim", 0) else 0
        shapes: dict[str, tuple[int, ...]] = {
            "T_world_root": (frames, 7),
            "body_quats": (frames, _NUM_BODY, 4),
            "betas": (NUM_BETAS,),
            "contacts": (frames, _NUM_BODY),
            "hand_quats": (frames, _NUM_HANDS, 4),
        }
        for field, shape in shapes.items():
            value = getattr(self, field)
            if value is None and field == "hand_quats":
                continue
            if not isinstance(value, Tensor):
                raise InputError(f"clip '{self.name}': {field} must be a torch tensor, got {type(value).__name__}")
            if tuple(value.shape) != shape:
                raise InputError(
                    f"clip '{self.name}': {field} must have shape {_shape_text(shape, frames)} with F = {frames} "
                    "frames "
                    f"(the length of T_world_root), got {tuple(value.shape)}"
                )
            value = value.detach().to(torch.float32)
            if not bool(torch.isfinite(value).all()):
                index = [int(i) for i in torch.nonzero(~torch.isfinite(value))[0]]
                where = (
                    f"at frame {index[0]}, index {tuple(index[1:])}"
                    if shape[0] == frames and field != "betas"
                    else f"at index {index[0]}"
                )
                raise InputError(
                    f"clip '{self.name}': {field} has a value that is not finite ({float(value[tuple(index)])}) "
                    f"{where}; "
                    "cut the clip there or repair the source file"
                )
            object.__setattr__(self, field, value)
        if frames < MIN_FRAMES:
            raise InputError(f"clip '{self.name}': {frames} frame(s); a clip needs at least {MIN_FRAMES}")
        for field, quats in (
            ("T_world_root", self.T_world_root[:, :4]),
            ("body_quats", self.body_quats),
            ("hand_quats", self.hand_quats),
        ):
            if quats is None:
                continue
            off = (quats.norm(dim=-1) - 1).abs()
            if bool((off > QUATERNION_TOLERANCE).any()):
                index = [int(i) for i in torch.nonzero(off > QUATERNION_TOLERANCE)[0]]
                joint = f", joint {index[1]}" if len(index) > 1 else ""
                raise InputError(
                    f"clip '{self.name}': {field} must hold unit quaternions (w, x, y, z); at frame "
                    f"{index[0]}{joint} the length is "
                    f"{float(quats[tuple(index)].norm()):.4f}. Normalise them, and check the order (wxyz, not xyzw)"
                )
        low, high = float(self.contacts.min()), float(self.contacts.max())
        if low < 0 or high > 1:
            frame = int(torch.nonzero((self.contacts < 0) | (self.contacts > 1))[0, 0])
            raise InputError(
                f"clip '{self.name}': contacts must lie in [0, 1], got values from {low:.3g} to {high:.3g} (first "
                f"at frame {frame})"
            )

    def __repr__(self) -> str:
        kind = ", loop" if self.loop else ""
        return f"MotionClip('{self.name}', {len(self)} frames, {self.fps:g} fps{kind})"

    def __len__(self) -> int:
        return int(self.T_world_root.shape[0])

    @property
    def duration(self) -> float:
        """Length in seconds; a looping clip includes the step back to its first frame."""
        return (len(self) - (0 if self.loop else 1)) / self.fps


def _shape_text(shape: tuple[int, ...], frames: int) -> str:
    return (
        "("
        + ", ".join("F" if i == 0 and size == frames and len(shape) > 1 else str(size) for i, size in enumerate(shape))
        + ")"
    )


def save_clip(path: str | Path, clip: MotionClip) -> None:
    """Write a clip to an npz file, atomically. Raises InputError where the place can't be written to."""
    arrays: dict[str, np.ndarray] = {
        "format": np.array(_FORMAT),
        "version": np.array(_VERSION),
        "name": np.array(clip.name),
        "fps": np.array(clip.fps),
        "loop": np.array(clip.loop),
        "T_world_root": clip.T_world_root.cpu().numpy(),
        "body_quats": clip.body_quats.cpu().numpy(),
        "betas": clip.betas.cpu().numpy(),
        "contacts": clip.contacts.cpu().numpy(),
    }
    if clip.hand_quats is not None:
        arrays["hand_quats"] = clip.hand_quats.cpu().numpy()
    write_npz(path, arrays)


CLIP_KEYS = ("name", "fps", "T_world_root", "body_quats", "betas", "contacts")
"""Arrays that a clip file must have; ``hand_quats``, ``loop``, ``format`` and ``version`` may be there too."""


def load_clip(path: str | Path) -> MotionClip:
    """Read a clip that :func:`save_clip` wrote. Raises InputError for missing arrays, a newer version, or bad
    values."""
    arrays = read_npz(path, "motion clip", CLIP_KEYS, ("hand_quats", "loop", "format", "version"))
    if str(arrays.get("format", _FORMAT)) != _FORMAT:
        raise InputError(f"{path}: format is '{arrays['format']}', expected '{_FORMAT}'")
    version = _number(path, "version", arrays.get("version", np.array(_VERSION)))
    if version != _VERSION:
        raise InputError(
            f"{path}: clip format version {version:g}; this mgrpo reads version {_VERSION}, so update mgrpo"
        )
    with in_file(path):
        return MotionClip(
            name=str(arrays["name"]),
            fps=_number(path, "fps", arrays["fps"]),
            T_world_root=as_float_tensor(path, "T_world_root", arrays["T_world_root"]),
            body_quats=as_float_tensor(path, "body_quats", arrays["body_quats"]),
            betas=as_float_tensor(path, "betas", arrays["betas"]),
            contacts=as_float_tensor(path, "contacts", arrays["contacts"]),
            hand_quats=as_float_tensor(path, "hand_quats", arrays["hand_quats"]) if "hand_quats" in arrays else None,
            loop=bool(_number(path, "loop", arrays.get("loop", np.array(False)))),
        )


def _number(path: str | Path, key: str, array: np.ndarray) -> float:
    if array.size != 1 or array.dtype.kind not in "fiub":
        raise InputError(f"{path}: {key} must be one number, got dtype {array.dtype} and shape {array.shape}")
    return float(array.reshape(()))


def as_float_tensor(path: str | Path, key: str, array: np.ndarray) -> Tensor:
    """A float32 tensor of a numeric array that was read from ``path``; InputError for text and other kinds."""
    if array.dtype.kind not in "fiub":
        raise InputError(f"{path}: {key} must be numeric, got dtype {array.dtype}")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def check_unique_names(clips: Sequence[MotionClip]) -> None:
    """Raise InputError where two clips share a name: splits go by name, so they would be mixed up."""
    seen: set[str] = set()
    for clip in clips:
        if clip.name in seen:
            raise InputError(
                f"two clips are called '{clip.name}'; names must differ, since clips are split and reported by name"
            )
        seen.add(clip.name)
