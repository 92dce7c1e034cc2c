"""Drawing a skinned surface with Pillow: faces from far to near, each in one tone, lit from above beside the camera."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import ImageDraw

from mgrpo.viz.camera import Camera
from mgrpo.viz.palette import Rgb
from mgrpo.viz.surface import vertex_normals

_LIGHT = np.array((-0.42, 0.62, 0.66)) / np.linalg.norm((-0.42, 0.62, 0.66))
"""Towards the light in the camera's axes: right, up, back."""

_COARSE = 40.0
"""Faces that are larger than this in the middle, in square pixels, are painted in four parts, whose tones differ."""


class Skin(NamedTuple):
    """One posed surface, ready to be painted."""

    vertices: np.ndarray
    """World positions (V, 3), metres."""
    faces: np.ndarray
    """Triangles (F, 3)."""
    color: Rgb
    marks: np.ndarray | None = None
    """How far each vertex is turned to ``mark_color``, 0 to 1 (V,)."""
    mark_color: Rgb = (0, 0, 0)


class _Visible(NamedTuple):
    """Faces of a skin that look at the camera."""

    which: np.ndarray
    """Their indices among the skin's faces (N,)."""
    corners: np.ndarray
    """Pixels of their corners and the distance from the camera's plane in metres (N, 3, 3)."""
    coarse: bool
    """Whether they are large on the picture."""


def _visible(camera: Camera, skin: Skin) -> _Visible:
    xs, ys, scale = camera.project(skin.vertices)
    corners = np.stack((xs, ys, camera.focal / scale), axis=-1)[skin.faces]
    u, v = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    # on the screen y points down, so faces that look at us run clockwise
    area = u[:, 0] * v[:, 1] - v[:, 0] * u[:, 1]
    which = np.flatnonzero((area < 0) & (corners[:, :, 2].min(axis=1) > 0.1))
    coarse = len(which) > 0 and float(np.median(-area[which])) / 2 > _COARSE
    return _Visible(which, corners[which], coarse)


def _quartered(corners: np.ndarray) -> np.ndarray:
    """Each triangle (N, 3, C) as four, cut at the middles of its edges: (4 N, 3, C)."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    ab, bc, ca = (a + b) / 2, (b + c) / 2, (c + a) / 2
    parts = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    return np.concatenate([np.stack(part, axis=1) for part in parts])


def paint_skins(draw: ImageDraw.ImageDraw, camera: Camera, skins: Sequence[Skin]) -> None:
    """Paint surfaces together, so that they hide one another."""
    depths, outlines, colors = [], [], []
    for skin in skins:
        seen = _visible(camera, skin)
        faces = skin.faces[seen.which]
        marks = np.zeros(len(skin.vertices)) if skin.marks is None else skin.marks
        normals = vertex_normals(skin.vertices, skin.faces)
        corners = np.concatenate((seen.corners, normals[faces], marks[faces][..., None]), axis=-1)
        if seen.coarse:
            corners = _quartered(corners)
        middle = corners.mean(axis=1)
        base = np.array(skin.color, dtype=np.float64)
        base = base + middle[:, 6:] * (np.array(skin.mark_color) - base)
        depths.append(middle[:, 2])
        outlines.append(corners[:, :, :2].reshape(-1, 6))
        colors.append(_lit(camera, middle[:, 3:6], base))
    if not depths:
        return
    depth = np.concatenate(depths)
    order = np.argsort(-depth, kind="stable")
    shapes = np.concatenate(outlines)[order].tolist()
    tones = np.concatenate(colors)[order].round().astype(int).tolist()
    for shape, tone in zip(shapes, tones):
        draw.polygon(shape, fill=tuple(tone))


def paint_silhouette(draw: ImageDraw.ImageDraw, camera: Camera, skin: Skin) -> None:
    """Paint a surface flat in its colour."""
    for shape in _visible(camera, skin).corners[:, :, :2].reshape(-1, 6).tolist():
        draw.polygon(shape, fill=skin.color)


def _lit(camera: Camera, normals: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Colours (N, 3) of faces with these normals (N, 3) in the world: shade, the colour itself, light."""
    back, right, up = camera.axes()
    normals = np.stack((normals @ right, normals @ up, normals @ back), axis=1)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    wrapped = 0.5 + 0.5 * (normals @ _LIGHT)
    shade = np.clip(0.5 + 0.64 * wrapped, 0, 1)[:, None]
    shine = (np.clip(wrapped - 0.72, 0, 1) / 0.28)[:, None] ** 2 * 0.34
    rim = np.clip(1 - normals[:, 2], 0, 1)[:, None] ** 3 * 0.22
    color = base * shade * (1 - rim)
    return np.clip(color + shine * (255 - color), 0, 255)
