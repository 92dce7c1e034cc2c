"""Deterministic slices: the windows of EgoAllo's evaluation, a fixed rule instead of every window of every clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mgrpo.body.model import BodyModel
from mgrpo.data.clip import MotionClip
from mgrpo.data.indexing import ItemIndex
from mgrpo.data.windows import MotionWindows, cut_windows
from mgrpo.errors import InputError


def slice_starts(frame_counts: Sequence[int], frames: int) -> list[tuple[int, int]]:
    """Sequence and first frame of every slice of ``frames`` frames (facts: egoallo.md E, checked against its reader).

    Sequences shorter than a slice are left out; N remain, of ``total`` frames together. There are ``total // frames``
    items; item i takes slice ``i // N`` of sequence ``i % N``, which starts at ``(slice * frames) % (T - frames)`` in a
    sequence of T frames (0 for T = frames). Every sequence is therefore met equally often whatever its length: slices
    overlap, and those of a short sequence may be nearly the same.

    Args:
        frame_counts: frames of each sequence, in the order that numbers the items.
        frames: frames of a slice; EgoAllo's evaluation takes one more than the motion's, as predecessor of its first.
    Returns:
        ``(index into frame_counts, first frame)`` of each item, in order.
    Raises:
        InputError: ``frames`` below 1, or no sequence long enough.
    """
    if frames < 1:
        raise InputError(f"slice_starts(): a slice must have at least 1 frame, got {frames}")
    if max(frame_counts, default=0) < frames:
        longest = max(frame_counts, default=0)
        raise InputError(
            f"none of the {len(frame_counts)} sequences has {frames} frames (the longest has {longest}); use shorter "
            "windows or longer motion"
        )
    index = ItemIndex(frame_counts, frames)
    return [(chosen.sequence, chosen.start) for chosen in map(index.deterministic, range(len(index)))]


def deterministic_windows(clips: Sequence[MotionClip], body: BodyModel, length: int) -> MotionWindows:
    """Windows of ``length`` frames from the deterministic slices of ``length + 1`` poses of the clips, in item order.

    The first pose of a slice is used as predecessor only. Loops are not repeated, and clips with fewer than
    ``length + 1`` poses are left out. A clip counts as one sequence with all its poses; EgoAllo's own file lacks the
    first pose of each processed recording.

    Raises:
        InputError: a length below 1, or no clip long enough.
    """
    poses = length + 1
    pieces = []
    for index, start in slice_starts([len(clip) for clip in clips], poses):
        clip, chosen = clips[index], slice(start, start + poses)
        pieces.append(
            replace(
                clip,
                T_world_root=clip.T_world_root[chosen],
                body_quats=clip.body_quats[chosen],
                contacts=clip.contacts[chosen],
                hand_quats=None if clip.hand_quats is None else clip.hand_quats[chosen],
                loop=False,
            )
        )
    return cut_windows(pieces, body, length)
