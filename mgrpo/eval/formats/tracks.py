"""The one form into which every format is read: joints in a z-up world in metres, with rotations where the file has
them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mgrpo.body import BodyModel
from mgrpo.data.rate import require_fps
from mgrpo.errors import InputError
from mgrpo.geometry import axis_angle_to_quat

Up = Literal["auto", "z", "y", "-y"]
Unit = Literal["auto", "m", "cm", "mm"]

METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001}

TO_Z_UP = {
    "z": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "y": ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)),
    "-y": ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0)),
}
"""Rotations that map points of a world with that axis up to our world; -y is the camera's habit, y down."""

MOST_NUMBERS = 1 << 28
"""Largest array of a file that is turned into numbers; a day of joints at 30 per second has 2e8."""

_NECK, _ANKLES = 12, (7, 8)
_SURE = 0.8


@dataclass(frozen=True, eq=False)
class MotionTracks:
    """S motions of one person over the same T frames, as read from a file. World: z up, metres; float64, on the CPU."""

    name: str
    """Name for matching: within a file of several motions, that of the motion; otherwise empty."""
    joints: Tensor
    """Joint positions ``(S, T, 22, 3)``, pelvis first, SMPL's order."""
    fps: float
    """Frames per second."""
    body_rotmats: Tensor | None = None
    """Rotations of the 21 body joints relative to their parents ``(S, T, 21, 3, 3)``; None: the file has none."""
    R_world_joint: Tensor | None = None
    """Rotations of the 22 joints in the world ``(S, T, 22, 3, 3)``; None: the file has none."""
    frame_nums: np.ndarray | None = None
    """Number of each frame in its recording ``(T,)`` int64, rising; None: the file has none."""
    times: np.ndarray | None = None
    """Time of each frame in seconds ``(T,)`` float64, rising, on the recording's clock; None: the file has none."""
    format: str = ""
    """What the file was taken for."""
    notes: tuple[str, ...] = ()
    """What was assumed or noticed on the way: an axis, a unit, a frame rate."""

    def __post_init__(self) -> None:
        who = f"motion '{self.name}'" if self.name else "the motion"
        if self.joints.ndim != 4 or self.joints.shape[2:] != (22, 3) or 0 in self.joints.shape:
            raise InputError(
                f"{who} needs joints (S, T, 22, 3) with at least one frame, got {tuple(self.joints.shape)}"
            )
        for label, value in (("joints", self.joints), ("rotations", self.body_rotmats)):
            if value is not None and not bool(torch.isfinite(value).all()):
                sample, frame = (int(index) for index in torch.nonzero(~torch.isfinite(value))[0, :2])
                raise InputError(
                    f"{who} has {label} that are not finite (NaN or infinity), first in frame {frame} of sample "
                    f"{sample}; cut the motion there or repair the source"
                )
        require_fps(self.fps, f"the frame rate of {who}")
        for label, numbers in (("frame numbers", self.frame_nums), ("times", self.times)):
            if numbers is None:
                continue
            if numbers.shape != (len(self),):
                raise InputError(f"{who} has {len(self)} frames but {label} of shape {numbers.shape}")
            if len(self) > 1 and not bool((np.diff(numbers) > 0).all()):
                raise InputError(f"{who} has {label} that don't rise; sort its frames and drop repeated ones")

    def __len__(self) -> int:
        return int(self.joints.shape[1])

    @property
    def samples(self) -> int:
        """Number S of motions."""
        return int(self.joints.shape[0])


@dataclass(frozen=True, eq=False)
class ReadOptions:
    """What the reader is told beside the file."""

    body: BodyModel | None = None
    """Body for formats that hold rotations; None: not given."""
    fps: float | None = None
    """Frame rate instead of the file's, and of its time stamps; None: the file's, or its format's habit."""
    up: Up = "auto"
    """Axis that points up in the file."""
    unit: Unit = "auto"
    """Unit of positions in the file."""
    side: str = ""
    """Prefix of this input's options in messages: ``pred`` or ``gt``."""

    def flag(self, name: str) -> str:
        """How an option of this input is spelt on the command line."""
        return f"--{self.side}-{name}" if self.side else f"--{name}"

    def rate(self, found: float | None, habit: float, notes: list[str]) -> float:
        """The frame rate: told, else found in the file, else the format's habit with a note."""
        if self.fps is not None:
            return self.fps
        if found is not None:
            return found
        notes.append(f"no frame rate in the file: {habit:g} per second assumed; {self.flag('fps')} says otherwise")
        return habit


def detect_up(joints: Tensor) -> str | None:
    """The axis along which people stand in ``joints (…, T, 22, 3)``: the mean direction from ankles to neck. "x", "-z"
    and so on; None where no axis is clear (somebody lies or crawls)."""
    direction = joints[..., _NECK, :] - joints[..., list(_ANKLES), :].mean(-2)
    mean = (direction / direction.norm(dim=-1, keepdim=True).clamp_min(1e-9)).flatten(0, -2).mean(0)
    axis = int(mean.abs().argmax())
    if float(mean[axis].abs()) < _SURE:
        return None
    return ("-" if mean[axis] < 0 else "") + "xyz"[axis]


def detect_unit(joints: Tensor) -> str | None:
    """The unit in which the legs of ``joints (…, T, 22, 3)`` are as long as a person's (0.4 to 1.4 m); None: none."""
    leg = (joints[..., [4, 5], :] - joints[..., [1, 2], :]).norm(dim=-1).median()
    leg = float(leg + (joints[..., [7, 8], :] - joints[..., [4, 5], :]).norm(dim=-1).median())
    return next((unit for unit, metres in METRES.items() if 0.4 <= leg * metres <= 1.4), None)


def chosen_up(options: ReadOptions, joints: Tensor, habit: str | None, notes: list[str]) -> str:
    """The axis to take as up: told, else the format's habit, else what the motion shows."""
    if options.up != "auto":
        return options.up
    seen = detect_up(joints)
    if habit is not None:
        if seen is not None and seen != habit:
            notes.append(
                f"people stand along {seen} here, but this format's up is {habit}, which was kept; "
                f"{options.flag('up')} {seen if seen in TO_Z_UP else 'z'} says otherwise"
            )
        return habit
    if seen in TO_Z_UP:
        if seen != "z":
            notes.append(f"{seen}-up detected and turned to z-up; {options.flag('up')} says otherwise")
        return seen
    notes.append(f"which axis is up was not clear: y assumed, HumanML3D's; {options.flag('up')} says otherwise")
    return "y"


def _scale(options: ReadOptions, joints: Tensor, notes: list[str]) -> float:
    if options.unit != "auto":
        return METRES[options.unit]
    seen = detect_unit(joints)
    if seen is None:
        notes.append(f"the legs have no person's length in m, cm or mm: metres assumed; {options.flag('unit')}")
    elif seen != "m":
        notes.append(f"positions in {seen} detected and turned to metres; {options.flag('unit')} says otherwise")
    return METRES[seen or "m"]


def tracks_from_joints(
    joints: np.ndarray,
    options: ReadOptions,
    *,
    fps: float,
    habit_up: str | None,
    name: str = "",
    format: str = "",
    frame_nums: np.ndarray | None = None,
    times: np.ndarray | None = None,
    notes: list[str] | None = None,
) -> MotionTracks:
    """Tracks of joint positions ``(S, T, J, 3)`` whose first 22 joints are SMPL's.

    ``habit_up`` is the axis that the format always has up; None: it says nothing, and the motion is looked at.
    """
    notes = list(notes or [])
    if joints.ndim != 4 or joints.shape[-1] != 3 or joints.shape[2] not in (22, 24, 52, 55) or 0 in joints.shape:
        raise InputError(
            f"joints must have shape (T, 22, 3) or (S, T, 22, 3), pelvis first in SMPL's order (24, 52 and 55 joints "
            f"are cut to the first 22), got {joints.shape}"
        )
    if joints.dtype.kind not in "fiu":
        raise InputError(f"joints must be numbers, got dtype {joints.dtype}")
    positions = torch.from_numpy(np.array(joints[:, :, :22], dtype=np.float64, order="C"))
    turn = torch.tensor(TO_Z_UP[chosen_up(options, positions, habit_up, notes)], dtype=torch.float64)
    positions = _scale(options, positions, notes) * positions @ turn.T
    return MotionTracks(
        name, positions, fps, frame_nums=frame_nums, times=times, format=format, notes=tuple(notes)
    )  # fmt: skip


def numbers(value: object, label: str, shape: tuple[int | None, ...], *, short: bool = False) -> Tensor:
    """A float64 tensor of an array of that shape (None: any size); InputError otherwise. ``short`` leaves float32 as it
    is, which is half as long."""
    if isinstance(value, Tensor):
        # A view of one number may claim any shape: look before it is made real.
        if value.layout != torch.strided or value.is_complex() or value.numel() > MOST_NUMBERS:
            raise InputError(f"{label} must be a plain tensor of numbers, got shape {tuple(value.shape)}")
        value = value.detach().double().numpy()
    array = value
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise InputError(f"{label} must be an array of numbers, got {_kind(array)}")
    wanted = "(" + ", ".join("*" if size is None else str(size) for size in shape) + ")"
    fits = array.ndim == len(shape) and all(size in (None, found) for size, found in zip(shape, array.shape))
    if not fits:
        raise InputError(f"{label} must have shape {wanted}, got {array.shape}")
    if short and array.dtype == np.float32:
        return torch.from_numpy(np.require(array, requirements=("C", "W")))
    return torch.from_numpy(np.array(array, dtype=np.float64, order="C"))


def _kind(value: object) -> str:
    return f"dtype {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__


def axis_angles(value: Tensor) -> Tensor:
    """Quaternions ``(…, n, 4)`` of flat axis angles ``(…, 3 n)`` in radians."""
    return axis_angle_to_quat(value.unflatten(-1, (-1, 3)))


def whole_numbers(value: object, label: str, count: int) -> np.ndarray:
    """An int64 array ``(count,)``; InputError otherwise."""
    array = np.asarray(value)
    if array.dtype.kind not in "iu" or array.shape != (count,):
        raise InputError(f"{label} must be {count} whole numbers, got dtype {array.dtype} and shape {array.shape}")
    return array.astype(np.int64)


def stamped_times(stamps: np.ndarray, options: ReadOptions) -> np.ndarray | None:
    """Time stamps ``(T,)`` in nanoseconds as seconds; None where the reader was told a rate, which overrules them."""
    return stamps.astype(np.float64) / 1e9 if options.fps is None else None


def stamped_rate(stamps: np.ndarray, frame_nums: np.ndarray | None) -> float | None:
    """Frames per second by time stamps ``(T,)`` in nanoseconds: those between the first and the last one, rounded where
    that changes it by less than a stamp's jitter. Without frame numbers, a step of more than two usual ones is a gap
    and counts as many. None where stamps or frame numbers don't rise, which is told when they are used."""
    steps = np.diff(stamps)
    if not len(steps) or not (steps > 0).all():
        return None
    usual = steps / np.median(steps)
    counted = np.where(usual > 2.5, np.rint(usual), 1.0)
    count = counted.sum() if frame_nums is None else frame_nums[-1] - frame_nums[0]
    if count <= 0:
        return None
    rate = float(count) * 1e9 / float(stamps[-1] - stamps[0])
    return float(round(rate)) if abs(rate - round(rate)) < 1e-4 * rate else rate
