"""Motion: clips, files, contact labels, augmentation, windows, splits."""

from __future__ import annotations

from mgrpo.data.augment import loop, mirror, place_clip, resample, reshape_body, turn
from mgrpo.data.clip import MotionClip, load_clip, save_clip
from mgrpo.data.contacts import contact_labels
from mgrpo.data.hdf5.dataset import Hdf5Motion, open_hdf5
from mgrpo.data.hdf5.sampler import Hdf5Sampler
from mgrpo.data.motion_files import load_motion
from mgrpo.data.slices import deterministic_windows, slice_starts
from mgrpo.data.source import WindowSource
from mgrpo.data.split import (
    DEMO_HELD_OUT,
    DEMO_POST_TRAINING,
    DEMO_VALIDATION,
    ClipSplit,
    recording_of,
    split_by_fraction,
    split_clips,
)
from mgrpo.data.windows import AugmentConfig, MotionWindows, WindowSampler, cut_windows, drop_short, windows_from_poses

__all__ = [
    "DEMO_HELD_OUT",
    "DEMO_POST_TRAINING",
    "DEMO_VALIDATION",
    "AugmentConfig",
    "ClipSplit",
    "Hdf5Motion",
    "Hdf5Sampler",
    "MotionClip",
    "MotionWindows",
    "WindowSampler",
    "WindowSource",
    "contact_labels",
    "cut_windows",
    "deterministic_windows",
    "drop_short",
    "load_clip",
    "load_motion",
    "loop",
    "mirror",
    "open_hdf5",
    "place_clip",
    "recording_of",
    "resample",
    "reshape_body",
    "save_clip",
    "slice_starts",
    "split_by_fraction",
    "split_clips",
    "turn",
    "windows_from_poses",
]
