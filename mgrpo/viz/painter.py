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

    depth: np.ndarray
    """Distance of each from the camera's plane, metres (N,)."""
    outlines: np.ndarray
    """Corners in pixels (N, 6): x, y, x, y, x, y."""
    which: np.ndarray
    """Their indices among the skin's faces (N,)."""


def _visible(camera: Camera, skin: Skin) -> _Visible:
    xs, ys, scale = camera.project(skin.vertices)
    x, y, depth = xs[skin.faces], ys[skin.faces], (camera.focal / scale)[skin.faces]
    # on the screen y points down, so faces that look at us run clockwise
    area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])
    which = np.flatnonzero((area < 0) & (depth.min(axis=1) > 0.1))
    outlines = np.stack((x[which], y[which]), axis=-1).reshape(len(which), 6)
    return _Visible(depth[which].mean(axis=1), outlines, which)


def paint_skins(draw: ImageDraw.ImageDraw, camera: Camera, skins: Sequence[Skin]) -> None:
    """Paint surfaces together, so that they hide one another."""
    depths, outlines, colors = [], [], []
    for skin in skins:
        seen = _visible(camera, skin)
        normals = vertex_normals(skin.vertices, skin.faces)[skin.faces[seen.which]].mean(axis=1)
        base = np.tile(np.array(skin.color, dtype=np.float64), (len(seen.which), 1))
        if skin.marks is not None:
            share = skin.marks[skin.faces[seen.which]].mean(axis=1)[:, None]
            base += share * (np.array(skin.mark_color) - base)
        depths.append(seen.depth)
        outlines.append(seen.outlines)
        colors.append(_lit(camera, normals, base))
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
    for shape in _visible(camera, skin).outlines.tolist():
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
