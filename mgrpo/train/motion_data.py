"""Which motion a loop trains on, and which it is judged by: clips are split by name before any window is cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mgrpo.body import BodyModel, resolve_body
from mgrpo.data import (
    DEMO_HELD_OUT,
    DEMO_POST_TRAINING,
    DEMO_VALIDATION,
    AugmentConfig,
    ClipSplit,
    MotionClip,
    MotionWindows,
    WindowSampler,
    cut_windows,
    drop_short,
    load_motion,
    mirror,
    split_by_fraction,
    split_clips,
)
from mgrpo.errors import InputError


@dataclass(frozen=True)
class MotionDataConfig:
    """Motion, body and windows."""

    motion: str = "demo"
    """Motion to load (`--motion` for short): `demo` (15 clips that ship with the package), a pack or clip npz, or a
    folder of them."""
    body: str = "default"
    """Body model: `default` (ships with the package), `smplh` (searched for), or the path of an SMPL-H npz."""
    length: int = 32
    """Frames in a window, at 30 per second."""
    stride: int = 0
    """Frames between the starts of evaluation windows; 0 means half a window."""
    validation: tuple[str, ...] = ()
    """Clip names (or patterns such as walk_*) for validation; with neither this nor held-out given, the demo motion has
    its own split and other motion gives a tenth of its clips to each, chosen by a hash of their names."""
    held_out: tuple[str, ...] = ()
    """Clip names (or patterns) kept for the final evaluation, never trained on."""
    post_training: tuple[str, ...] = ()
    """Clip names (or patterns) that the prior never sees and GRPO trains on; none: GRPO trains on the prior's clips.
    The perceptual model sees both."""
    short_clips: Literal["error", "drop"] = "error"
    """Clips shorter than a window (one frame more than the length): refuse them, or leave them out."""
    evaluate_mirrored: bool = False
    """Evaluate on the mirror images of the validation and held-out clips too (as EgoAllo's test set does)."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        if self.length < 4:
            raise InputError(f"--data.length must be at least 4 frames (jerk needs four), got {self.length}")
        if self.stride < 0:
            raise InputError(f"--data.stride must be 0 or more frames, got {self.stride}")


@dataclass(frozen=True)
class MotionData:
    """What a loop draws from: samplers over the training clips, and fixed windows of the validation and held-out
    clips."""

    body: BodyModel
    """Body with 21 joints, as the networks use it."""
    train: WindowSampler
    """The prior's clips."""
    post_training: WindowSampler
    """GRPO's clips: the prior's where none are kept for it."""
    both: WindowSampler
    """All of these: the perceptual model's clips."""
    validation: MotionWindows
    held_out: MotionWindows
    clip_names: dict[str, tuple[str, ...]]
    """Names of the clips in each part of the split."""


def load_motion_data(config: MotionDataConfig, *, seed: int) -> MotionData:
    """Load, split by clip, and cut. Raises InputError for motion that can't be read, is too short, or can't be
    split."""
    body = resolve_body(config.body).body_only()
    clips = load_motion(config.motion, body)
    if config.short_clips == "drop":
        clips, _ = drop_short(clips, config.length)
        if not clips:
            raise InputError(
                f"--data.motion {config.motion}: no clip is long enough for windows of {config.length} frames; lower "
                "--data.length"
            )
    split = split_motion(clips, config)
    stride = config.stride or max(1, config.length // 2)

    def windows(part: list[MotionClip]) -> MotionWindows:
        mirrored = [mirror(clip, body) for clip in part] if config.evaluate_mirrored else []
        return cut_windows([*part, *mirrored], body, config.length, stride)

    def sampler(part: list[MotionClip]) -> WindowSampler:
        return WindowSampler(part, body, config.length, seed, config.augment)

    return MotionData(
        body=body,
        train=sampler(split.train),
        post_training=sampler(split.post_training or split.train),
        both=sampler([*split.train, *split.post_training]),
        validation=windows(split.validation),
        held_out=windows(split.held_out),
        clip_names={part: tuple(clip.name for clip in getattr(split, part)) for part in split._fields},
    )


def split_motion(clips: list[MotionClip], config: MotionDataConfig) -> ClipSplit:
    """The split that the configuration asks for. Raises InputError when a part that it needs would be empty."""
    if config.validation or config.held_out or config.post_training:
        split = split_clips(
            clips, post_training=config.post_training, validation=config.validation, held_out=config.held_out
        )
        for part in ("validation", "held_out"):
            if not getattr(split, part):
                raise InputError(
                    f"--data.{part.replace('_', '-')} is empty while another part is named: name clips for validation "
                    "and held-out"
                )
        return split
    if config.motion == "demo":
        return split_clips(clips, post_training=DEMO_POST_TRAINING, validation=DEMO_VALIDATION, held_out=DEMO_HELD_OUT)
    return split_by_fraction(clips)
