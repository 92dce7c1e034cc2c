"""Windows of motion with everything that training and evaluation need: conditions, targets, joints.

A window of ``T`` frames takes ``T + 1`` poses: the first frame needs a predecessor for the head's relative motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from mgrpo.body.model import NUM_BETAS, BodyModel
from mgrpo.body.placement import cpf_of, place_on_root
from mgrpo.body.skeleton import BODY_JOINT_NAMES, HAND_JOINT_NAMES, MIRROR_BODY, MIRROR_HANDS
from mgrpo.data.augment import loop as repeat_loop
from mgrpo.data.augment import loop_step, mirror_quats, mirror_transforms, place_clip, turned_root
from mgrpo.data.clip import MotionClip, check_unique_names
from mgrpo.data.floor import FloorAnchor, anchor_weights, body_offsets, floor_anchor
from mgrpo.errors import InputError
from mgrpo.geometry import quat_to_rotmat, se3_inverse, se3_multiply
from mgrpo.kernels import STREAM_DATA, philox_normal, philox_uniform
from mgrpo.options import option, require

_NUM_BODY, _NUM_HANDS = len(BODY_JOINT_NAMES), len(HAND_JOINT_NAMES)


@dataclass(frozen=True, eq=False, repr=False)
class MotionWindows:
    """``B`` windows of ``T`` frames. World: z up, floor at z = 0, metres; poses are 7-vectors (wxyz, xyz)."""

    T_world_cpf: Tensor
    """Central pupil frame ``(B, T, 7)``: the condition."""
    T_cpf_tm1_cpf_t: Tensor
    """Pose of each central pupil frame in that of the frame before, ``(B, T, 7)``; the first looks at the frame before
    the window."""
    T_world_root: Tensor
    """Pelvis ``(B, T, 7)``."""
    body_rotmats: Tensor
    """Local rotations of the 21 body joints ``(B, T, 21, 3, 3)``."""
    betas: Tensor
    """Shape ``(B, 16)``, constant in time."""
    contacts: Tensor
    """Contact labels ``(B, T, 21)`` in [0, 1]."""
    joints: Tensor
    """Joint positions ``(B, T, 22, 3)``, root first."""
    R_world_joint: Tensor
    """Joint orientations ``(B, T, 22, 3, 3)``, root first."""
    mask: Tensor
    """Frames that are real, ``(B, T)`` bool."""
    names: tuple[str, ...]
    """The clip of each window."""
    hand_rotmats: Tensor | None = None
    """Local rotations of the 30 finger joints ``(B, T, 30, 3, 3)``; None: not known for any of the clips."""
    padded: bool = True
    """Whether some frames may not be real; False only where all of them are. The mask knows, but asking it would wait
    for the device."""

    def __repr__(self) -> str:
        return f"MotionWindows({len(self)} windows of {self.length} frames, {len(set(self.names))} clips)"

    def __len__(self) -> int:
        return int(self.T_world_cpf.shape[0])

    @property
    def length(self) -> int:
        """Frames per window, ``T``."""
        return int(self.T_world_cpf.shape[1])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> MotionWindows:
        """The same windows on another device or in another floating dtype (the mask stays bool)."""
        moved = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                value = value.to(device=device, dtype=dtype if value.is_floating_point() else None)
            moved[field.name] = value
        return MotionWindows(**moved)

    def select(self, index: Sequence[int] | Tensor | slice) -> MotionWindows:
        """Some of the windows, in the order of ``index`` (positions; a tensor or list of them, or a slice)."""
        if isinstance(index, slice):
            positions = list(range(len(self)))[index]
        elif isinstance(index, Tensor):
            positions = torch.nonzero(index).flatten().tolist() if index.dtype == torch.bool else index.tolist()
        else:
            positions = [int(position) for position in index]
        rows = index
        if not isinstance(index, slice):
            rows = torch.as_tensor(positions, dtype=torch.long, device=self.T_world_cpf.device)
        chosen = {}
        for field in fields(self):
            value = getattr(self, field.name)
            chosen[field.name] = value[rows] if isinstance(value, Tensor) else value
        chosen["names"] = tuple(self.names[position] for position in positions)
        return MotionWindows(**chosen)

    @staticmethod
    def concat(parts: Sequence[MotionWindows]) -> MotionWindows:
        """All windows of ``parts`` in order. Raises InputError for no parts or different lengths; missing fingers
        become straight."""
        if not parts:
            raise InputError("MotionWindows.concat(): nothing to join")
        lengths = sorted({part.length for part in parts})
        if len(lengths) > 1:
            raise InputError(f"MotionWindows.concat(): windows must be of one length, got {lengths} frames")
        joined: dict[str, object] = {}
        for field in fields(MotionWindows):
            values = [getattr(part, field.name) for part in parts]
            if field.name == "names":
                joined["names"] = tuple(name for names in values for name in names)
            elif field.name == "padded":
                joined["padded"] = any(values)
            elif all(value is None for value in values):
                joined[field.name] = None
            else:
                if field.name == "hand_rotmats":
                    values = [_straight_hands(part) if value is None else value for part, value in zip(parts, values)]
                joined[field.name] = torch.cat(values)
        return MotionWindows(**joined)  # type: ignore[arg-type]


def _straight_hands(windows: MotionWindows) -> Tensor:
    eye = torch.eye(3, dtype=windows.body_rotmats.dtype, device=windows.body_rotmats.device)
    return eye.expand(len(windows), windows.length, _NUM_HANDS, 3, 3)


def windows_from_poses(
    body: BodyModel,
    *,
    T_world_root: Tensor,
    body_quats: Tensor,
    betas: Tensor,
    contacts: Tensor,
    names: tuple[str, ...],
    hand_quats: Tensor | None = None,
) -> MotionWindows:
    """Windows of ``T`` frames from ``T + 1`` poses each; the first pose is used as predecessor only.

    Args:
        body: the body of the poses.
        T_world_root: ``(B, T + 1, 7)``.
        body_quats: ``(B, T + 1, 21, 4)``.
        betas: ``(B, 16)``.
        contacts: ``(B, T + 1, 21)``.
        names: one per window.
        hand_quats: ``(B, T + 1, 30, 4)`` or None.
    """
    small = body.body_only()
    rotmats = quat_to_rotmat(body_quats)
    placed = place_on_root(small, rotmats, betas[:, None], T_world_root)
    T_world_cpf = cpf_of(small, placed, betas[:, None])
    relative = se3_multiply(se3_inverse(T_world_cpf[:, :-1]), T_world_cpf[:, 1:])
    return MotionWindows(
        T_world_cpf=T_world_cpf[:, 1:],
        T_cpf_tm1_cpf_t=relative,
        T_world_root=placed.T_world_root[:, 1:],
        body_rotmats=rotmats[:, 1:],
        betas=betas,
        contacts=contacts[:, 1:],
        joints=placed.joints[:, 1:],
        R_world_joint=placed.R_world_joint[:, 1:],
        mask=torch.ones(T_world_root.shape[0], T_world_root.shape[1] - 1, dtype=torch.bool, device=T_world_root.device),
        padded=False,
        names=names,
        hand_rotmats=None if hand_quats is None else quat_to_rotmat(hand_quats[:, 1:]),
    )


def cut_windows(clips: Sequence[MotionClip], body: BodyModel, length: int, stride: int | None = None) -> MotionWindows:
    """All windows of the clips, for evaluation: no randomness, clip after clip, from each clip's start.

    Window k of a clip holds frames ``k * stride + 1`` to ``k * stride + length``; frames at the end that fill no
    window are left out. A looping clip that is too short is repeated to exactly one window.

    Args:
        clips: at least one.
        body: the body that the clips are on.
        length: frames per window, ``T``.
        stride: frames between the starts of windows; None: ``length`` (no frame in two windows).
    Raises:
        InputError: no clips, a clip shorter than ``length + 1`` that is not a loop, bad numbers.
    """
    stride = length if stride is None else stride
    if not isinstance(length, int) or not isinstance(stride, int):
        raise InputError(f"cut_windows(): length and stride must be whole numbers, got {length!r} and {stride!r}")
    if length < 1 or stride < 1:
        raise InputError(f"cut_windows(): length and stride must be at least 1 frame, got {length} and {stride}")
    if not clips:
        raise InputError("cut_windows(): no clips to cut windows from")
    hands = any(clip.hand_quats is not None for clip in clips)
    parts: dict[str, list[Tensor]] = {
        "T_world_root": [],
        "body_quats": [],
        "betas": [],
        "contacts": [],
        "hand_quats": [],
    }
    names: list[str] = []
    for clip in clips:
        if len(clip) < length + 1:
            if not clip.loop:
                raise InputError(_too_short(clip, length))
            clip = repeat_loop(clip, length + 1)
        starts = torch.arange(0, len(clip) - length, stride)
        index = starts[:, None] + torch.arange(length + 1)
        parts["T_world_root"].append(clip.T_world_root[index])
        parts["body_quats"].append(clip.body_quats[index])
        parts["contacts"].append(clip.contacts[index])
        parts["betas"].append(clip.betas.expand(len(starts), NUM_BETAS))
        if hands:
            parts["hand_quats"].append(_hand_quats(clip)[index])
        names += [clip.name] * len(starts)
    return windows_from_poses(
        body,
        T_world_root=torch.cat(parts["T_world_root"]),
        body_quats=torch.cat(parts["body_quats"]),
        betas=torch.cat(parts["betas"]),
        contacts=torch.cat(parts["contacts"]),
        hand_quats=torch.cat(parts["hand_quats"]) if hands else None,
        names=tuple(names),
    )


def drop_short(clips: Sequence[MotionClip], length: int) -> tuple[list[MotionClip], list[MotionClip]]:
    """Clips that give a window of ``length`` frames (loops always do), and the others."""
    long_enough = [clip for clip in clips if clip.loop or len(clip) >= length + 1]
    return long_enough, [clip for clip in clips if not (clip.loop or len(clip) >= length + 1)]


def _too_short(clip: MotionClip, length: int) -> str:
    return (
        f"clip '{clip.name}' has {len(clip)} frames ({clip.duration:.2f} s); windows of {length} frames need "
        f"{length + 1} (one before the "
        f"first). Use windows of at most {len(clip) - 1} frames, or leave this clip out"
    )


def _hand_quats(clip: MotionClip) -> Tensor:
    if clip.hand_quats is not None:
        return clip.hand_quats
    straight = torch.zeros(len(clip), _NUM_HANDS, 4)
    straight[..., 0] = 1.0
    return straight


@dataclass(frozen=True)
class AugmentConfig:
    """How training windows are varied."""

    mirror_prob: float = 0.0
    """Probability that a window is mirrored (left and right exchanged)."""
    betas_std: float = 0.0
    """Standard deviation of the normal number added to each shape coefficient (one draw per window); the root path is
    scaled by leg length and the floor kept."""
    yaw: bool = True
    """Turn each window about the vertical by a random angle. The model's condition and rewards don't depend on the
    heading, but absolute conditions do."""
    loop: bool = True
    """Let windows run over the end of looping clips into the next round."""
    speed: float = 0.0
    """Largest relative change of speed, below 1: each window plays 1 - speed to 1 + speed times as fast, with poses
    interpolated. Contact labels come from the nearest frame."""
    weighting: Literal["auto", "frames", "clips"] = "auto"
    """Draw every window start equally often (frames), or every clip equally often whatever its length (clips, as the
    base model). auto: clips for HDF5 files, frames for other motion."""

    def __post_init__(self) -> None:
        require(self, "mirror_prob", at_least=0, at_most=1)
        require(self, "betas_std", at_least=0)
        require(self, "speed", at_least=0, below=1)
        if self.weighting not in ("auto", "frames", "clips"):
            raise InputError(f"{option(self, 'weighting')} must be auto, frames or clips, got '{self.weighting}'")


class WindowSampler:
    """Random training windows; ``batch(iteration, size)`` is a pure function of (seed, iteration, size) and the clips.

    ``batch(iteration, size, first=k)`` gives the part of a larger batch that begins at its position k.

    Window i of a batch depends on (seed, iteration, i) only, not on what was drawn before or (up to rounding) on the
    batch's size, so a resumed run sees the same data. All poses are kept in memory, as quaternions: 1.1 kB per frame.
    """

    def __init__(
        self, clips: Sequence[MotionClip], body: BodyModel, length: int, seed: int, augment: AugmentConfig | None = None
    ) -> None:
        """Prepare clips for drawing.

        Args:
            clips: at least one, with different names, all on ``body``.
            body: the body.
            length: frames per window, ``T``.
            seed: 0 <= seed < 2^64.
            augment: variations; None: the defaults.
        Raises:
            InputError: no clips, or a clip shorter than ``length + 1`` frames that can't be repeated.
        """
        if not clips:
            raise InputError("WindowSampler: no clips to draw windows from")
        if length < 1:
            raise InputError(f"WindowSampler: length must be at least 1 frame, got {length}")
        check_unique_names(clips)
        self.augment = augment if augment is not None else AugmentConfig()
        self.length, self.seed = length, seed
        self.names = tuple(clip.name for clip in clips)
        self.body = body.to(device="cpu", dtype=torch.float32).body_only()
        wraps = [clip.loop and self.augment.loop for clip in clips]
        for clip, wrap in zip(clips, wraps):
            if len(clip) < length + 1 and not wrap:
                hint = " (or allow loops: this clip is one)" if clip.loop else ""
                raise InputError(_too_short(clip, length) + hint)
        frames = torch.tensor([len(clip) for clip in clips])
        self._frames, self._wraps = frames, torch.tensor(wraps)
        self._first = torch.cumsum(frames, 0) - frames
        # A looping clip can start a window anywhere, another one where a whole window fits.
        self._starts = torch.where(self._wraps, frames, frames - length)
        self._last_start = torch.cumsum(self._starts, 0)
        self._T_world_root = torch.cat([clip.T_world_root for clip in clips])
        self._body_quats = torch.cat([clip.body_quats for clip in clips])
        self._contacts = torch.cat([clip.contacts for clip in clips])
        hands = any(clip.hand_quats is not None for clip in clips)
        self._hand_quats = torch.cat([_hand_quats(clip) for clip in clips]) if hands else None
        self._betas = torch.stack([clip.betas for clip in clips])
        self._loop_step = torch.stack([loop_step(clip) if wrap else torch.zeros(3) for clip, wrap in zip(clips, wraps)])
        anchors = []
        for clip in clips:
            placed = place_clip(clip, self.body)
            weights = anchor_weights(clip.contacts, placed.joints)
            anchors.append(floor_anchor(weights, placed.joints[:, 0, 2], placed.R_world_joint))
        self._anchors = FloorAnchor(
            torch.stack([anchor.root_height for anchor in anchors]), torch.stack([anchor.rows for anchor in anchors])
        )
        self._anchor_height = self._anchors.height(body_offsets(self.body, self._betas))
        self._leg_length = self.body.leg_length(self._betas)

    def __len__(self) -> int:
        """Number of different window starts."""
        return int(self._last_start[-1])

    def batch(self, iteration: int, size: int, *, first: int = 0, whole: int | None = None) -> MotionWindows:
        """``size`` windows for this iteration (0 <= iteration < 2^32), those at positions ``first`` and after of the
        iteration's batch, float32 on the CPU. A window depends on its position alone, so ``whole``, the size of that
        batch, changes nothing here.

        Raises:
            InputError: fewer than one window asked for, or a negative position.
        """
        if size < 1 or first < 0:
            raise InputError(
                f"WindowSampler.batch(): size must be at least 1 and first at least 0, got {size} and {first}"
            )
        config = self.augment
        keys = {
            "seed": self.seed,
            "iteration": iteration,
            "condition": torch.arange(first, first + size),
            "member": torch.zeros(size, dtype=torch.long),
        }
        uniform = philox_uniform((7,), **keys, step=0, stream=STREAM_DATA).to(torch.float64)
        clip, start = self._draw_starts(uniform[:, :4])
        frames = torch.arange(self.length + 1)
        position = start[:, None] + frames  # (B, T + 1)
        part: Tensor | None = None
        if config.speed > 0:
            room = torch.where(self._wraps[clip], torch.inf, (self._frames[clip] - 1 - start) / self.length)
            rate = (1 + config.speed * (2 * uniform[:, 4] - 1)).minimum(room)
            moved = start[:, None] + rate[:, None] * frames
            position = moved.floor().long()
            part = (moved - position).to(torch.float32)
        T_world_root, body_quats, contacts, hand_quats = self._gather(clip, position, part)
        betas = self._betas[clip]
        scale = torch.ones(size)
        if config.betas_std > 0:
            normal = philox_normal((NUM_BETAS,), **keys, step=1, stream=STREAM_DATA)
            betas = betas + config.betas_std * normal
            scale = self.body.leg_length(betas) / self._leg_length[clip]
        if config.mirror_prob > 0:
            mirrored = uniform[:, 5] < config.mirror_prob
            one, two = mirrored[:, None, None], mirrored[:, None, None, None]
            T_world_root = torch.where(one, mirror_transforms(T_world_root), T_world_root)
            body_quats = torch.where(two, mirror_quats(body_quats, MIRROR_BODY), body_quats)
            contacts = torch.where(one, contacts[..., list(MIRROR_BODY)], contacts)
            if hand_quats is not None:
                hand_quats = torch.where(two, mirror_quats(hand_quats, MIRROR_HANDS), hand_quats)
        else:
            mirrored = torch.zeros(size, dtype=torch.bool)
        if config.betas_std > 0 or config.mirror_prob > 0:
            # As reshape_body and mirror do for a whole clip: planted joints of the clip keep their mean height.
            rows = self._anchors.rows[clip]
            flipped = rows[:, list(MIRROR_BODY)] * rows.new_tensor((-1.0, 1.0, 1.0))
            anchor = FloorAnchor(self._anchors.root_height[clip], torch.where(mirrored[:, None, None], flipped, rows))
            shift = self._anchor_height[clip] - anchor.height(body_offsets(self.body, betas), scale)
            position_xyz = T_world_root[..., 4:] * scale[:, None, None]
            position_xyz[..., 2] += shift[:, None]
            T_world_root = torch.cat((T_world_root[..., :4], position_xyz), dim=-1)
        if config.yaw:
            T_world_root = turned_root(T_world_root, (2 * torch.pi * uniform[:, 6]).to(torch.float32))
        return windows_from_poses(
            self.body,
            T_world_root=T_world_root,
            body_quats=body_quats,
            betas=betas,
            contacts=contacts,
            hand_quats=hand_quats,
            names=tuple(self.names[index] for index in clip.tolist()),
        )

    def _draw_starts(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Clip and first frame ``(B)`` of each window from uniform numbers ``(B, 4)``; two 24-bit numbers make one
        with enough digits."""
        first = uniform[:, 0] + uniform[:, 1] * 2.0**-24
        second = uniform[:, 2] + uniform[:, 3] * 2.0**-24
        if self.augment.weighting == "clips":
            clip = (first * len(self.names)).long()
            return clip, (second * self._starts[clip]).long()
        flat = (first * len(self)).long()
        clip = torch.searchsorted(self._last_start, flat, right=True)
        return clip, flat - (self._last_start[clip] - self._starts[clip])

    def _gather(
        self, clip: Tensor, position: Tensor, part: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Poses at frame ``position (B, T + 1)`` of each clip, or ``part`` of the way to the next frame; loops go
        round."""
        low = self._poses(clip, position)
        if part is None:
            return low
        inside = torch.where(
            self._wraps[clip][:, None], position + 1, (position + 1).minimum(self._frames[clip][:, None] - 1)
        )
        high = self._poses(clip, inside)
        weight = part[..., None]
        root_position = low[0][..., 4:] + weight * (high[0][..., 4:] - low[0][..., 4:])
        T_world_root = torch.cat((_between(low[0][..., :4], high[0][..., :4], weight), root_position), dim=-1)
        body_quats = _between(low[1], high[1], weight[..., None])
        contacts = torch.where(weight < 0.5, low[2], high[2])
        hand_quats = None if low[3] is None or high[3] is None else _between(low[3], high[3], weight[..., None])
        return T_world_root, body_quats, contacts, hand_quats

    def _poses(self, clip: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        frames = self._frames[clip][:, None]
        rounds = torch.div(position, frames, rounding_mode="floor")
        index = self._first[clip][:, None] + position - rounds * frames
        T_world_root = self._T_world_root[index]
        T_world_root[..., 4:] += rounds[..., None] * self._loop_step[clip][:, None]
        hand_quats = None if self._hand_quats is None else self._hand_quats[index]
        return T_world_root, self._body_quats[index], self._contacts[index], hand_quats


def _between(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Unit quaternions ``weight`` of the way from ``a`` to ``b`` (normalised linear: neighbours in time are close)."""
    sign = torch.where((a * b).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    mixed = a + weight * (sign * b - a)
    return mixed / mixed.norm(dim=-1, keepdim=True)
