"""One panel of a comparison: floor, head path, contacts, the recorded body as a pale outline, and the body itself."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFont

from mgrpo.viz.camera import Camera, Framing
from mgrpo.viz.comparison import MotionComparison, SkeletonTrack
from mgrpo.viz.mannequin import Mannequin
from mgrpo.viz.palette import LIGHT, Palette, mix, rgb
from mgrpo.viz.raster import Panel

ELEVATION = 0.24
"""Camera height above the horizon in radians: low enough to see steps, high enough to read the floor."""

SUPERSAMPLING = 2
"""Pictures are drawn this much larger and averaged down, which is Pillow's antialiasing."""


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The typeface that comes inside Pillow, so that pictures look the same on every machine."""
    return ImageFont.load_default(size=size)


@lru_cache(maxsize=4096)
def _has_glyph(letter: str) -> bool:
    typeface = font(20)
    try:
        drawn, none = typeface.getmask(letter), typeface.getmask("\u0378")  # where Unicode has nothing
    except UnicodeEncodeError:  # Pillow without FreeType has a bitmap of Latin letters
        return False
    return (drawn.size, bytes(drawn)) != (none.size, bytes(none))


def drawable(text: str) -> str:
    """A text in letters that the typeface has, which are few: ä becomes a, what has no such letter becomes ?."""
    letters = []
    for letter in unicodedata.normalize("NFC", text):
        if not _has_glyph(letter):
            parts = unicodedata.normalize("NFKD", letter)
            marks = all(unicodedata.combining(part) for part in parts)
            letter = "".join(part for part in parts if part.isascii()) or ("" if marks else "?")
        letters.append(letter)
    return "".join(letters)


def contact_points(track: SkeletonTrack, frame: int, threshold: float = 0.5) -> np.ndarray:
    """Positions (N, 3) of the joints that touch something in a frame, near the floor (below 20 cm)."""
    if track.contacts is None:
        return np.zeros((0, 3), np.float32)
    joints = track.joints[0, frame]
    touching = (track.contacts[frame] >= threshold) & (joints[1:, 2] < 0.2) & np.isfinite(joints[1:]).all(axis=1)
    return joints[1:][touching]


def draw_panel(
    comparison: MotionComparison,
    role: str,
    frame: int,
    *,
    framing: Framing,
    mannequin: Mannequin,
    width: int,
    height: int,
    ghosts: bool = True,
    head_path: bool = True,
    palette: Palette = LIGHT,
) -> Image.Image:
    """A picture (width x height pixels) of one track of a comparison in one frame, antialiased."""
    track = comparison.tracks()[role]
    camera = Camera(
        target=np.array((*framing.centers[frame], framing.height), dtype=np.float64),
        azimuth=framing.azimuth,
        elevation=ELEVATION,
        distance=framing.distance(width / height),
        width=width * SUPERSAMPLING,
        height=height * SUPERSAMPLING,
    )
    background, line, color = rgb(palette.surface), rgb(palette.line), rgb(palette.of(role))
    panel = Panel(camera, background, mix(background, line, 0.9))
    joints = track.joints[0, frame]
    panel.shadow(mannequin, joints, mix(background, rgb(palette.line), 0.85))
    panel.floor()
    for point in contact_points(track, frame):
        panel.disc(point, 0.095, mix(background, color, 0.45))
    head = comparison.head_positions()
    if head is not None and head_path:
        thickness = camera.height / 190
        panel.path(head[frame:], mix(background, rgb(palette.muted), 0.25), thickness)
        panel.path(head[: frame + 1], mix(background, color, 0.6), thickness)
    if ghosts and role != "ground_truth":
        truth = comparison.ground_truth.joints[0, frame]
        panel.ghost(mannequin, truth, mix(background, rgb(palette.ground_truth), 0.27))
    panel.body(mannequin, joints, color)
    return panel.image.reduce(SUPERSAMPLING)
