"""Clips packed for the page's player: positions as 16-bit steps in base64, about 6 bytes a joint and frame."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from mgrpo.viz.camera import frame_clip
from mgrpo.viz.comparison import ROLE_LABELS, MotionComparison, SkeletonTrack
from mgrpo.viz.mannequin import Mannequin, mannequin_for

MISSING = -32768
"""The 16-bit number that stands for a position that isn't known."""


def pack_clips(comparisons: Sequence[MotionComparison]) -> dict[str, Any]:
    """The player's JSON: the figures (limb tables) in use and each clip's tracks, camera path and head path."""
    figures: list[Mannequin] = []
    clips = []
    for comparison in comparisons:
        figure = mannequin_for(comparison.parents)
        if figure not in figures:
            figures.append(figure)
        clips.append(_pack_clip(comparison, figures.index(figure)))
    return {
        "figures": [
            {
                "extensions": [[e.start, e.end, e.length] for e in figure.extensions],
                "limbs": [
                    [limb.start, limb.end, limb.start_radius, limb.end_radius, limb.side, int(limb.torso)]
                    for limb in figure.limbs
                ],
            }
            for figure in figures
        ],
        "clips": clips,
    }


def _pack_clip(comparison: MotionComparison, figure: int) -> dict[str, Any]:
    framing = frame_clip(comparison)
    tracks = comparison.tracks()
    head, gaze = comparison.head_positions(), comparison.gaze()
    everything = [track.joints.reshape(-1, 3) for track in tracks.values()] + ([] if head is None else [head])
    points = np.concatenate(everything)
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) == 0:
        points = np.zeros((1, 3), np.float32)
    origin = (0.5 * (points.min(axis=0) + points.max(axis=0))).astype(np.float64)
    origin[2] = 0.0
    centers = framing.centers.astype(np.float64)
    extent = max(float(np.abs(points - origin).max()), float(np.abs(centers - origin[:2]).max()), 0.1)
    unit = extent / 32000

    truth = comparison.ground_truth.joints[0]
    middle = origin[:2]
    spans = np.linalg.norm(truth[..., :2] - middle, axis=-1)
    across_all = float(np.nanmax(spans)) + 0.06 if np.isfinite(spans).any() else framing.reach_across
    return {
        "name": comparison.name,
        "caption": comparison.caption,
        "fps": comparison.fps,
        "frames": comparison.frames,
        "joints": len(comparison.parents),
        "figure": figure,
        "unit": unit,
        "origin": [round(float(value), 6) for value in origin],
        "middle": [round(float(value), 4) for value in middle],
        "azimuth": round(framing.azimuth, 4),
        "height": round(framing.height, 4),
        "across": round(framing.reach_across, 4),
        "across_all": round(across_all, 4),
        "up": round(framing.reach_up, 4),
        "centers": _steps(centers, unit, origin[:2]),
        "head": None if head is None else _steps(head, unit, origin),
        "gaze": None if gaze is None else _base64(np.round(127 * np.nan_to_num(gaze)).astype(np.int8)),
        "tracks": [_pack_track(role, track, unit, origin) for role, track in tracks.items()],
    }


def _pack_track(role: str, track: SkeletonTrack, unit: float, origin: np.ndarray) -> dict[str, Any]:
    contacts = track.contacts
    return {
        "role": role,
        "label": ROLE_LABELS[role],
        "samples": [_steps(sample, unit, origin) for sample in track.joints],
        "contacts": None
        if contacts is None
        else _base64(np.round(255 * np.clip(np.nan_to_num(contacts), 0, 1)).astype(np.uint8)),
        "error": None
        if track.error_mm is None
        else [round(float(value), 1) if np.isfinite(value) else None for value in track.error_mm],
    }


def _steps(positions: np.ndarray, unit: float, origin: np.ndarray) -> str:
    """Positions (…, C) as little-endian 16-bit steps of ``unit`` metres from ``origin`` (C,), in base64."""
    steps = np.round((positions.astype(np.float64) - origin) / unit)
    steps = np.where(np.isfinite(steps), np.clip(steps, -32767, 32767), MISSING)
    return _base64(steps.astype("<i2"))


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
