"""A motion that is to be written to a file: rotations on a body at known times, brought to one shape, an even rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mgrpo.body import BODY_JOINT_NAMES, HAND_JOINT_NAMES, BodyModel
from mgrpo.body.model import NUM_BETAS
from mgrpo.body.placement import PlacedBody, cpf_of, place_on_root
from mgrpo.body.skeleton import ROOT_NAME
from mgrpo.data.augment import slerp
from mgrpo.data.rate import require_fps
from mgrpo.errors import InputError
from mgrpo.geometry import quat_normalize, quat_to_rotmat

JOINT_NAMES = (ROOT_NAME, *BODY_JOINT_NAMES, *HAND_JOINT_NAMES)
"""Names of 22 or all 52 joints, root first, as files have them."""

MOST_FRAMES = 1_000_000
"""Most frames that are written to a file: nine hours at 30 per second."""

_BODY, _FULL = len(BODY_JOINT_NAMES), len(JOINT_NAMES) - 1
_UNEVEN = 0.05  # of a frame: stamps of a device tremble, and that is not a missing frame
_SAME_SHAPE_M = 1e-6
_CHUNK = 1024


@dataclass(frozen=True, eq=False, repr=False)
class PosedMotion:
    """One motion of ``T`` frames on the CPU, float64 but for ``local_quats``. World: z up, floor at z = 0, metres;
    quaternions wxyz.

    Building one checks everything and raises InputError with the field, the first bad frame and what to do;
    quaternions are normalised.
    """

    name: str
    """Name of the motion, for what files show."""
    fps: float
    """Frames per second."""
    body: BodyModel
    """The body; its first ``J`` joints are posed."""
    T_world_root: Tensor
    """Pose of the pelvis joint ``(T, 7)``."""
    local_quats: Tensor
    """Rotations of the joints relative to their parents ``(T, J, 4)``: the 21 body joints, or these and 30 fingers.
    float32 stays float32, being most of what an hour takes (88 MB); :meth:`rotations` gives some of them in float64."""
    betas: Tensor
    """Shape numbers ``(T, 16)``."""
    times: Tensor
    """Time of each frame in seconds ``(T,)``, rising."""
    frame_nums: Tensor
    """Number of each frame in its recording ``(T,)`` int64."""
    contacts: Tensor | None = None
    """Contact of each of the 21 body joints ``(T, 21)``; None: not known."""
    T_world_cpf: Tensor | None = None
    """Head trajectory that the motion belongs to ``(T, 7)``; None: that of the body."""
    gender: str = "neutral"
    """Gender that ``betas`` were made for."""

    def __post_init__(self) -> None:
        frames = len(self.T_world_root)
        joints = self.local_quats.shape[1] if self.local_quats.ndim == 3 else -1
        if joints not in (_BODY, _FULL) or joints > self.body.num_joints:
            raise InputError(
                f"motion '{self.name}': local_quats must have shape (T, J, 4) with J = {_BODY} or {_FULL} joints of "
                f"body '{self.body.name}', got {tuple(self.local_quats.shape)}"
            )
        shapes: dict[str, tuple[int, ...]] = {
            "T_world_root": (frames, 7),
            "local_quats": (frames, joints, 4),
            "betas": (frames, NUM_BETAS),
            "times": (frames,),
            "frame_nums": (frames,),
            "contacts": (frames, _BODY),
            "T_world_cpf": (frames, 7),
        }
        for field, shape in shapes.items():
            value = getattr(self, field)
            if value is None:
                continue
            if tuple(value.shape) != shape or not frames:
                raise InputError(
                    f"motion '{self.name}': {field} must have shape {shape} with at least one frame, got "
                    f"{tuple(value.shape)}"
                )
            short = field == "local_quats" and value.dtype == torch.float32
            dtype = torch.int64 if field == "frame_nums" else torch.float32 if short else torch.float64
            value = value.detach().to("cpu", dtype)
            least, most = value.reshape(frames, -1).aminmax(dim=1)  # isfinite() would make copies of an hour's numbers
            finite = torch.isfinite(least) & torch.isfinite(most)
            if not bool(finite.all()):
                frame = int(torch.nonzero(~finite)[0])
                raise InputError(
                    f"motion '{self.name}': {field} is not finite (NaN or infinity), first in frame {frame}; cut the "
                    "motion there or repair the source"
                )
            object.__setattr__(self, field, value)
        for field in ("T_world_root", "local_quats", "T_world_cpf"):
            value = getattr(self, field)
            if value is not None:
                object.__setattr__(self, field, self._normalised(field, value))
        if frames > 1 and not bool((self.times.diff() > 0).all()):
            raise InputError(f"motion '{self.name}': times must rise; sort its frames and drop repeated ones")
        if frames > 1 and not bool((self.frame_nums.diff() > 0).all()):
            raise InputError(f"motion '{self.name}': frame_nums must rise as times do; number its frames anew")
        object.__setattr__(self, "fps", require_fps(self.fps, f"motion '{self.name}': the frame rate"))
        if frames > MOST_FRAMES:
            raise InputError(f"motion '{self.name}': {frames} frames; at most {MOST_FRAMES} are written, cut it")

    def _normalised(self, field: str, value: Tensor) -> Tensor:
        length = value[..., :4].norm(dim=-1)
        if bool((length < 1e-6).any()):
            frame = int(torch.nonzero(length < 1e-6)[0, 0])
            raise InputError(
                f"motion '{self.name}': {field} has a quaternion of length zero, first in frame {frame}; no rotation "
                "is (1, 0, 0, 0)"
            )
        if float((length - 1).abs().max()) < 4 * torch.finfo(value.dtype).eps:
            return value
        value = value.clone()
        value[..., :4] /= length[..., None]
        return value

    def __repr__(self) -> str:
        return f"PosedMotion('{self.name}', {len(self)} frames, {self.fps:g} fps, {self.num_joints} joints)"

    def __len__(self) -> int:
        return int(self.T_world_root.shape[0])

    @property
    def num_joints(self) -> int:
        """Joints below the root, 21 or 51."""
        return int(self.local_quats.shape[1])

    @property
    def skeleton(self) -> BodyModel:
        """The body with as many joints as are posed, float64."""
        body = self.body.to(dtype=torch.float64)
        return body.body_only() if self.num_joints == _BODY else body

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Names of the joints, root first."""
        return JOINT_NAMES[: self.num_joints + 1]

    def rotations(self, rows: slice = slice(None)) -> Tensor:
        """``local_quats`` of some frames ``(n, J, 4)``, float64 and of unit length."""
        quats = self.local_quats[rows]
        return quats if quats.dtype == torch.float64 else quat_normalize(quats.double())

    def placed(self, rows: slice = slice(None)) -> PlacedBody:
        """Joints and orientations of some frames in our world, from the shape of every frame."""
        rotmats = quat_to_rotmat(self.rotations(rows))
        return place_on_root(self.skeleton, rotmats, self.betas[rows], self.T_world_root[rows])

    def chunks(self) -> Iterator[slice]:
        """All frames in parts of a thousand: joints of an hour at once would take a gigabyte."""
        return _parts(len(self))

    def head_trajectory(self) -> Tensor:
        """``T_world_cpf (T, 7)``: the given one, or that of the posed body."""
        if self.T_world_cpf is not None:
            return self.T_world_cpf
        body = self.skeleton
        return torch.cat([cpf_of(body, self.placed(rows), self.betas[rows]) for rows in self.chunks()])

    def with_one_shape(self) -> tuple[PosedMotion, float]:
        """The motion on the mean of its shapes, for files that hold one, and the largest distance in metres by which a
        joint moves through that. The root is shifted so that the eyes stay where they are: the head is what a headset
        recorded."""
        if bool((self.betas == self.betas[:1]).all()):
            return self, 0.0
        one = replace(self, betas=self.betas.mean(0, keepdim=True).expand_as(self.betas))
        root, moved = self.T_world_root.clone(), 0.0
        for rows in self.chunks():
            before, after = self.placed(rows), one.placed(rows)
            shift = self._eyes(before, rows) - one._eyes(after, rows)
            root[rows, 4:] += shift
            moved = max(moved, float((after.joints + shift[:, None] - before.joints).norm(dim=-1).max()))
        return replace(one, T_world_root=root), moved if moved > _SAME_SHAPE_M else 0.0

    def _eyes(self, placed: PlacedBody, rows: slice) -> Tensor:
        return cpf_of(self.skeleton, placed, self.betas[rows])[:, 4:]

    def at_even_rate(self, fps: float | None = None) -> tuple[PosedMotion, str]:
        """The motion with frames at equal distances, from its first on, and what was done to it in words ("" nothing).

        Rotations are interpolated by the shorter way, everything else linearly. Without ``fps`` the rate stays, and so
        do the frames where their times are even to a twentieth of a frame.
        """
        rate = require_fps(self.fps if fps is None else fps, "--fps")
        span = float(self.times[-1] - self.times[0])
        count = int(span * rate + 1e-6 + _UNEVEN) + 1
        if count > MOST_FRAMES:
            raise InputError(
                f"motion '{self.name}': {span:.1f} s at {rate:g} frames per second are {count} frames; at most "
                f"{MOST_FRAMES} are written"
            )
        grid = self.times[0] + torch.arange(count, dtype=torch.float64) / rate
        if count == len(self) and float((grid - self.times).abs().max()) * rate <= _UNEVEN:
            return replace(self, fps=rate, times=grid), ""
        steps = self.times.diff()
        gaps = int((steps * self.fps > 1.5).sum())
        text = f"{len(self)} frames at {self.fps:g} per second brought to {count} at {rate:g}"
        if gaps:
            text += f"; {gaps} gap(s) of up to {float(steps.max()):.2f} s filled by interpolation"
        return self._at(grid, rate), text

    def _at(self, times: Tensor, fps: float) -> PosedMotion:
        high = torch.searchsorted(self.times, times).clamp(1, len(self) - 1)
        low = high - 1
        part = ((times - self.times[low]) / (self.times[high] - self.times[low])).clamp(0.0, 1.0)

        def mixed(value: Tensor) -> Tensor:
            weight = part.reshape(-1, *[1] * (value.ndim - 1))
            return value[low] + weight * (value[high] - value[low])

        def turned(quats: Tensor) -> Tensor:
            found = quats.new_empty(len(times), *quats.shape[1:])
            for rows in _parts(len(times)):
                weight = part[rows].reshape(-1, *[1] * (quats.ndim - 2))
                found[rows] = slerp(quats[low[rows]].double(), quats[high[rows]].double(), weight)
            return found

        def pose(value: Tensor) -> Tensor:
            return torch.cat((turned(value[:, :4]), mixed(value[:, 4:])), dim=1)

        return replace(
            self,
            fps=fps,
            T_world_root=pose(self.T_world_root),
            local_quats=turned(self.local_quats),
            betas=mixed(self.betas),
            times=times,
            # numbers count frames of the new rate, from the same start of the recording
            frame_nums=round(float(self.frame_nums[0]) * fps / self.fps) + torch.arange(len(times)),
            contacts=None if self.contacts is None else mixed(self.contacts),
            T_world_cpf=None if self.T_world_cpf is None else pose(self.T_world_cpf),
        )


def _parts(count: int) -> Iterator[slice]:
    for first in range(0, count, _CHUNK):
        yield slice(first, min(first + _CHUNK, count))


def continuous_signs(quats: Tensor) -> Tensor:
    """Quaternions ``(T, …, 4)`` with signs such that neighbours in time are less than a half turn apart on the sphere
    of quaternions, so that interpolating them goes the short way; the first has a real part of at least zero."""
    start = torch.where(quats[:1, ..., 0] < 0, -1.0, 1.0).to(quats.dtype)
    steps = torch.where((quats[1:] * quats[:-1]).sum(-1) < 0, -1.0, 1.0).to(quats.dtype)
    return quats * torch.cat((start, steps)).cumprod(0)[..., None]
