"""This package's own files: clips, packs, and plain joints in an npz."""

from __future__ import annotations

from mgrpo.body import default_body
from mgrpo.data.clip import CLIP_KEYS, MotionClip, load_clip
from mgrpo.data.packs.fitting import fit_pack
from mgrpo.data.packs.pack import PACK_KEYS
from mgrpo.data.packs.reading import read_pack
from mgrpo.errors import InputError

from .container import Container
from .rotations import RotationMotion
from .tracks import (
    MotionTracks,
    ReadOptions,
    numbers,
    stamped_rate,
    stamped_times,
    tracks_from_joints,
    whole_numbers,
)


def matches_clip(file: Container) -> bool:
    """Whether it is a clip that ``save_clip`` wrote."""
    return set(CLIP_KEYS) <= set(file.keys)


def read_clip(file: Container, options: ReadOptions) -> list[RotationMotion]:
    """One motion, on the default body where none is given."""
    file.arrays(CLIP_KEYS, ("hand_quats",))  # for the check of sizes
    return [_from_clip(load_clip(file.path), options, "clip", "")]


def matches_pack(file: Container) -> bool:
    """Whether it is a pack."""
    return set(PACK_KEYS) <= set(file.keys)


def read_pack_tracks(file: Container, options: ReadOptions) -> list[RotationMotion]:
    """One entry per clip of the pack, fitted to the body (the default one where none is given), at 30 per second."""
    file.arrays(PACK_KEYS)
    body = (options.body or default_body()).body_only()
    return [_from_clip(clip, options, "pack", clip.name) for clip in fit_pack(read_pack(file.path), body)]


def _from_clip(clip: MotionClip, options: ReadOptions, format: str, name: str) -> RotationMotion:
    notes = []
    if options.body is None:
        notes.append("posed on the default body; --body names another")
        options = ReadOptions(default_body(), options.fps, options.up, options.unit, options.side)
    return RotationMotion(
        root_quats=clip.T_world_root[None, :, :4],
        positions=clip.T_world_root[None, :, 4:],
        body_quats=clip.body_quats[None],
        betas=clip.betas.expand(1, len(clip), -1),
        options=options,
        fps=options.fps or clip.fps,
        positions_are="pelvis",
        name=name,
        format=format,
        notes=notes,
        contacts=clip.contacts[None].numpy(),
        hand_quats=None if clip.hand_quats is None else clip.hand_quats[None],
    )


def matches_joints(file: Container) -> bool:
    """Whether it is an npz with ``joints``."""
    return "joints" in file.keys


def read_joints(file: Container, options: ReadOptions) -> list[MotionTracks]:
    """``joints (T, 22, 3)`` or ``(S, T, 22, 3)``; where there: ``fps``, ``up`` (text), ``frame_nums``,
    ``timestamps_ns``."""
    arrays = file.arrays(("joints",), ("fps", "up", "frame_nums", "timestamps_ns"))
    joints = arrays["joints"]
    if joints.ndim == 3:
        joints = joints[None]
    frames = joints.shape[1] if joints.ndim == 4 else 0
    notes: list[str] = []
    up = str(arrays["up"].reshape(-1)[0]) if "up" in arrays and arrays["up"].size else None
    if up not in (None, "z", "y", "-y"):
        raise InputError(f"up must be 'z', 'y' or '-y', got {up!r}")
    stamps = whole_numbers(arrays["timestamps_ns"], "timestamps_ns", frames) if "timestamps_ns" in arrays else None
    frame_nums = whole_numbers(arrays["frame_nums"], "frame_nums", frames) if "frame_nums" in arrays else None
    rate = None if stamps is None else stamped_rate(stamps, frame_nums)
    if "fps" in arrays:
        rate = float(numbers(arrays["fps"].reshape(-1), "fps", (1,))[0])
    return [
        tracks_from_joints(
            joints,
            options,
            fps=options.rate(rate, 30.0, notes),
            habit_up=up,
            format="joints npz",
            frame_nums=frame_nums,
            times=None if stamps is None else stamped_times(stamps, options),
            notes=notes,
        )
    ]
