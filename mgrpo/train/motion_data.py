"""Which motion a loop trains on, and which it is judged by: clips are split by name before any window is cut."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mgrpo.body import BodyModel, resolve_body
from mgrpo.data import (
    DEMO_HELD_OUT,
    DEMO_POST_TRAINING,
    DEMO_VALIDATION,
    AugmentConfig,
    ClipSplit,
    Hdf5Sampler,
    MotionClip,
    MotionWindows,
    WindowSampler,
    WindowSource,
    cut_windows,
    drop_short,
    load_motion,
    mirror,
    split_by_fraction,
    split_clips,
)
from mgrpo.data.hdf5.dataset import CACHE_MB, hdf5_files, strided_slices
from mgrpo.data.indexing import SHORT_SHARE, SliceStrategy, check_strategy
from mgrpo.data.split import recording_of
from mgrpo.errors import InputError
from mgrpo.options import option, require
from mgrpo.terminal.progress import Progress, notice

from .hdf5_parts import open_with_progress, split_hdf5


@dataclass(frozen=True)
class MotionDataConfig:
    """Motion, body and windows."""

    motion: str = "demo"
    """Motion to load (`--motion` for short): `demo` (15 clips that ship with the package), a pack or clip npz, a folder
    of them, or an HDF5 file in EgoAllo's layout (or a folder of such files), which may be larger than the memory."""
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
    """Clips shorter than a window (one frame more than the length): refuse them, or leave them out. Of HDF5 files they
    are always left out, as in EgoAllo."""
    evaluate_mirrored: bool = False
    """Evaluate on the mirror images of the validation and held-out clips too (as EgoAllo's test set does)."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    split: str = ""
    """HDF5: subsets to train on, joined by +: train, val, test, test_humor (EgoAllo's splits; it trains on train+val),
    all, or names of folders. Empty: train; of motion that isn't AMASS, what validation and held-out leave."""
    validation_split: str = ""
    """HDF5: subsets for validation, written likewise. Empty: val (also when trained on: its loss then says nothing
    about unknown motion), or a tenth of the training sequences where the file has none of it."""
    held_out_split: str = ""
    """HDF5: subsets for the final evaluation, written likewise. Empty: test, or a tenth of the training sequences where
    the file has none of it."""
    slices: SliceStrategy = "random_uniform_len"
    """HDF5: how training windows are taken from a sequence: at a random place; there and with the probability of
    short-share shorter (the rest is masked); or EgoAllo's fixed, overlapping slices."""
    short_share: float = SHORT_SHARE
    """HDF5: share of shorter windows with random_variable_len."""
    file_list: str = ""
    """HDF5: text file with the names of the sequences to use. Empty: NAME_files.txt beside NAME.hdf5 where there is
    one; `none`: every sequence of the file."""
    cache_mb: float = float(CACHE_MB)
    """HDF5: memory for motion that was read, MiB."""
    prefetch: Literal["auto", "on", "off"] = "auto"
    """HDF5: make the next batch while the network works. auto: with more than 4 processors; fewer are better left to
    the network."""
    fixed_windows: int = 512
    """HDF5: most validation and most held-out windows, spread evenly over all; 0: no limit."""
    check_body: bool = True
    """HDF5: refuse a body that the file was not made with."""

    def __post_init__(self) -> None:
        require(self, "fixed_windows", at_least=0)
        require(self, "cache_mb", at_least=0, unit="MiB")
        require(self, "length", at_least=4, unit="frames (jerk needs four)")
        require(self, "stride", at_least=0, unit="frames")
        require(self, "short_share", at_least=0, at_most=1)
        try:
            check_strategy(self.slices, self.length, self.short_share)
        except InputError as error:
            raise InputError(f"{option(self, 'slices')}, {option(self, 'length')}: {error}") from error

    def unused_options(self) -> Mapping[str, str]:
        """See :class:`mgrpo.options.HasUnusedOptions`."""
        if self.slices == "random_variable_len":
            return {}
        return {"short_share": f"with {option(self, 'slices')} {self.slices}, which takes no shorter windows"}


@dataclass(frozen=True)
class MotionData:
    """What a loop draws from: samplers over the training clips, and fixed windows of the validation and held-out
    clips."""

    body: BodyModel
    """Body with 21 joints, as the networks use it."""
    train: WindowSource
    """The prior's clips."""
    post_training: WindowSource
    """GRPO's clips: the prior's where none are kept for it."""
    both: WindowSource
    """All of these: the perceptual model's clips."""
    validation: MotionWindows
    held_out: MotionWindows
    clip_names: dict[str, tuple[str, ...]]
    """Names of the clips in each part of the split."""


def load_motion_data(config: MotionDataConfig, *, seed: int) -> MotionData:
    """Load, split by clip, and cut. Says so where mirrored copies and their originals are in different parts. Raises
    InputError for motion that can't be read, is too short, or can't be split."""
    body = resolve_body(config.body).body_only()
    if hdf5_files(config.motion):
        data = _load_hdf5(config, body, seed)
    else:
        _refuse_hdf5_options(config)
        with Progress("motion", unit="clip") as progress:  # a large pack takes many seconds
            clips = load_motion(config.motion, body)
            progress.update(len(clips))
            data = _cut_clips(clips, config, body, seed)
    for torn in torn_recordings(data.clip_names):
        notice(torn)
    return data


_USED_BEFORE = {"validation": ("train", "post_training"), "held_out": ("train", "post_training", "validation")}
"""Parts whose recordings are known by the time that a part is measured."""


def torn_recordings(names: Mapping[str, Sequence[str]]) -> list[str]:
    """What is wrong with a split by name that parts mirrored copies from their originals: measured motion then is the
    mirror image of motion that was learned, or chosen by. ``names`` are those of each part of the split."""
    found = []
    for part, others in _USED_BEFORE.items():
        for other in others:
            known = {recording_of(name): name for name in names[other] if name not in names[part]}
            pairs = [
                (name, known[recording_of(name)])
                for name in names[part]
                if recording_of(name) in known and name not in names[other]
            ]
            if pairs:
                where, there = (text.replace("_", "-") for text in (part, other))
                found.append(
                    f"the {where} part has mirror images of {there} clips ({len(pairs)}, such as {pairs[0][0]} of "
                    f"{pairs[0][1]}), so it is no unknown motion; name both for --data.{where}"
                )
    return found


def _cut_clips(clips: list[MotionClip], config: MotionDataConfig, body: BodyModel, seed: int) -> MotionData:
    """The parts of clips that were read."""
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


_HDF5_OPTIONS = (
    "split", "validation_split", "held_out_split", "slices", "short_share", "file_list", "cache_mb", "prefetch",
    "fixed_windows", "check_body",
)  # fmt: skip


def _refuse_hdf5_options(config: MotionDataConfig) -> None:
    """Options that would do nothing are mistakes."""
    default = MotionDataConfig()
    for name in _HDF5_OPTIONS:
        if getattr(config, name) != getattr(default, name):
            raise InputError(
                f"--data.{name.replace('_', '-')} is for HDF5 files; {config.motion} is other motion. Leave it out"
            )


def _load_hdf5(config: MotionDataConfig, body: BodyModel, seed: int) -> MotionData:
    """:func:`load_motion_data` for HDF5 files: only the fixed windows are put into memory."""
    augment = config.augment
    for name, set_to in (
        ("mirror-prob", augment.mirror_prob),
        ("betas-std", augment.betas_std),
        ("speed", augment.speed),
    ):
        if set_to:
            raise InputError(
                f"--data.augment.{name} {set_to:g}: motion from HDF5 files is not varied, because the stored pose of "
                "the head would no longer fit (mirrored copies are in the file); set it to 0"
            )
    if config.evaluate_mirrored:
        raise InputError(
            "--data.evaluate-mirrored: HDF5 files hold their mirrored copies (names ending in _reflect.npz), which are "
            "evaluated anyway; leave it out"
        )
    motion = open_with_progress(config.motion, config.file_list, config.cache_mb)
    parts = split_hdf5(
        motion,
        split=config.split,
        validation_split=config.validation_split,
        held_out_split=config.held_out_split,
        validation=config.validation,
        held_out=config.held_out,
        post_training=config.post_training,
    )
    if config.check_body:
        motion.check_body(body)
    stride = config.stride or max(1, config.length // 2)

    def windows(part: str) -> MotionWindows:
        chosen = parts.motion(motion, part)
        try:
            slices = strided_slices(chosen, config.length, stride)
        except InputError as error:
            raise InputError(f"{config.motion}, {part.replace('_', '-')} part: {error}") from error
        limit = config.fixed_windows
        if limit and len(slices) > limit:
            slices = [slices[number * len(slices) // limit] for number in range(limit)]
        return chosen.windows(slices, config.length, body)

    def sampler(*names: str) -> WindowSource:
        return Hdf5Sampler(
            parts.motion(motion, *names),
            body,
            config.length,
            seed,
            strategy=config.slices,
            weighting="frames" if augment.weighting == "frames" else "clips",
            short_share=config.short_share,
            yaw=augment.yaw,
            prefetch=config.prefetch == "on" or (config.prefetch == "auto" and (os.cpu_count() or 1) > 4),
        )

    post_training = "post_training" if parts.names["post_training"] else "train"
    return MotionData(
        body=body,
        train=sampler("train"),
        post_training=sampler(post_training),
        both=sampler("train", "post_training"),
        validation=windows("validation"),
        held_out=windows("held_out"),
        clip_names={part: tuple(name for name in motion.names if name in names) for part, names in parts.names.items()},
    )
