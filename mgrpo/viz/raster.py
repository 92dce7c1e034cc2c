"""Drawing a mannequin on a floor with Pillow: no GPU, no 3-D library, about 10 ms a body.

Limbs are painted back to front, each as an outline and three bands from shade to light: a capsule lit from the upper
left. Transparency is avoided (colours are mixed with the background instead), which keeps Pillow on its fast path.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from mgrpo.viz.camera import Camera
from mgrpo.viz.mannequin import Mannequin
from mgrpo.viz.palette import Rgb, mix

LIGHT_SLANT = (0.35, -0.2)
"""Shift of a shadow in metres per metre of height."""

_ARC_STEPS = 11


def capsule_outlines(
    x: np.ndarray, y: np.ndarray, r: np.ndarray, x2: np.ndarray, y2: np.ndarray, r2: np.ndarray
) -> np.ndarray:
    """Outline of the hull of two discs, for arrays (N,) of centres and radii in pixels: (N, 2 * steps, 2).

    The discs touch the common tangents at the angle acos((r - r2) / d) from the line of centres; with one disc inside
    the other the outline is the larger disc.
    """
    dx, dy = x2 - x, y2 - y
    distance = np.maximum(np.hypot(dx, dy), 1e-6)
    along = np.arctan2(dy, dx)
    tangent = np.arccos(np.clip((r - r2) / distance, -1, 1))
    steps = np.linspace(0, 1, _ARC_STEPS)
    back = along[:, None] + tangent[:, None] + steps * (2 * np.pi - 2 * tangent[:, None])
    front = along[:, None] - tangent[:, None] + steps * (2 * tangent[:, None])
    xs = np.concatenate((x[:, None] + r[:, None] * np.cos(back), x2[:, None] + r2[:, None] * np.cos(front)), axis=1)
    ys = np.concatenate((y[:, None] + r[:, None] * np.sin(back), y2[:, None] + r2[:, None] * np.sin(front)), axis=1)
    return np.stack((xs, ys), axis=-1)


def _flat(outlines: np.ndarray) -> list[list[float]]:
    """Outlines (N, P, 2) as N flat lists x, y, x, y, …, which Pillow takes fastest."""
    return outlines.reshape(len(outlines), -1).tolist()


class Panel:
    """One picture of a scene: make it, draw the floor, then shadows, marks and bodies in that order, then take
    ``image``."""

    def __init__(self, camera: Camera, background: Rgb, line: Rgb) -> None:
        self.camera = camera
        self.background = background
        self.line = line
        self.image = Image.new("RGB", (camera.width, camera.height), background)
        self.draw = ImageDraw.Draw(self.image)

    def floor(self, *, radius: float = 2.4, cell: float = 0.5) -> None:
        """A grid with ``cell`` metres spacing on z = 0 that fades out at ``radius`` metres around the camera's
        target."""
        center = self.camera.target[:2]
        width = max(1, round(self.camera.height / 420))
        for fade in (0.3, 0.6, 1.0):
            reach = radius * (1.45 - 0.45 * fade) * (1.0 if fade < 1 else 0.8)
            color = mix(self.background, self.line, fade)
            segments = []
            for axis in (0, 1):
                first = np.ceil((center[axis] - reach) / cell) * cell
                for value in np.arange(first, center[axis] + reach, cell):
                    half = np.sqrt(max(reach**2 - (value - center[axis]) ** 2, 0.0))
                    ends = np.zeros((2, 3))
                    ends[:, axis] = value
                    ends[:, 1 - axis] = center[1 - axis] - half, center[1 - axis] + half
                    segments.append(ends)
            if not segments:
                continue
            xs, ys, _ = self.camera.project(np.array(segments))
            for (x1, x2), (y1, y2) in zip(xs, ys):
                self.draw.line((x1, y1, x2, y2), fill=color, width=width)

    def disc(self, point: np.ndarray, radius: float, color: Rgb) -> None:
        """A disc lying on the floor under ``point`` (metres)."""
        angles = np.linspace(0, 2 * np.pi, 22, endpoint=False)
        ring = np.stack(
            (point[0] + radius * np.cos(angles), point[1] + radius * np.sin(angles), np.zeros_like(angles)), axis=1
        )
        xs, ys, _ = self.camera.project(ring)
        self.draw.polygon(list(zip(xs.tolist(), ys.tolist())), fill=color)

    def path(self, points: np.ndarray, color: Rgb, width: float) -> None:
        """A line through world points (N, 3); stretches with NaN are left out."""
        xs, ys, _ = self.camera.project(points)
        good = np.isfinite(xs) & np.isfinite(ys)
        for index in range(len(points) - 1):
            if good[index] and good[index + 1]:
                self.draw.line(
                    (xs[index], ys[index], xs[index + 1], ys[index + 1]), fill=color, width=max(1, round(width))
                )

    def shadow(self, mannequin: Mannequin, joints: np.ndarray, color: Rgb) -> None:
        """The body's shadow on the floor, lit from above and a little from the side."""
        if not np.isfinite(joints).all():
            return
        points = mannequin.points(joints.astype(np.float64))
        ground = points[:, :2] + points[:, 2:3] * np.array(LIGHT_SLANT)
        starts, ends, start_radii, end_radii = _limb_arrays(mannequin)
        hull = capsule_outlines(
            ground[starts, 0], ground[starts, 1], start_radii, ground[ends, 0], ground[ends, 1], end_radii
        )
        xs, ys, _ = self.camera.project(np.concatenate((hull, np.zeros((*hull.shape[:2], 1))), axis=-1))
        for polygon in _flat(np.stack((xs, ys), axis=-1)):
            self.draw.polygon(polygon, fill=color)

    def ghost(self, mannequin: Mannequin, joints: np.ndarray, color: Rgb) -> None:
        """A flat silhouette of a body."""
        if not np.isfinite(joints).all():
            return
        points = mannequin.points(joints.astype(np.float64))
        xs, ys, scale = self.camera.project(points)
        starts, ends, start_radii, end_radii = _limb_arrays(mannequin)
        hull = capsule_outlines(
            xs[starts], ys[starts], start_radii * scale[starts], xs[ends], ys[ends], end_radii * scale[ends]
        )
        for polygon in _flat(hull):
            self.draw.polygon(polygon, fill=color)

    def body(self, mannequin: Mannequin, joints: np.ndarray, color: Rgb) -> None:
        """A shaded body, limbs from far to near. Joints (J, 3) with NaN draw nothing."""
        if not np.isfinite(joints).all():
            return
        points = mannequin.points(joints.astype(np.float64))
        xs, ys, scale = self.camera.project(points)
        starts, ends, start_radii, end_radii = _limb_arrays(mannequin)
        radii, radii2 = start_radii * scale[starts], end_radii * scale[ends]
        edge = max(1.0, self.camera.height / 520)

        def layer(shift_x: float, shift_y: float, grow: float, extra: float) -> list[list[float]]:
            return _flat(
                capsule_outlines(
                    xs[starts] + shift_x * radii,
                    ys[starts] + shift_y * radii,
                    radii * grow + extra,
                    xs[ends] + shift_x * radii2,
                    ys[ends] + shift_y * radii2,
                    radii2 * grow + extra,
                )
            )

        layers = (layer(0, 0, 1, edge), layer(0, 0, 1, 0), layer(-0.13, -0.16, 0.78, 0), layer(-0.3, -0.36, 0.4, 0))
        depth = self.camera.focal / scale
        middle = 0.5 * (depth[starts] + depth[ends])
        near, far = float(middle.min()), float(middle.max())
        trunk = [index for index, limb in enumerate(mannequin.limbs) if limb.torso]
        parts = [[index] for index, limb in enumerate(mannequin.limbs) if not limb.torso] + ([trunk] if trunk else [])
        for part in sorted(parts, key=lambda members: -float(middle[members].mean())):
            base = mix(color, (0, 0, 0), 0.2 if mannequin.limbs[part[0]].side < 0 else 0.0)
            base = mix(base, self.background, 0.16 * (float(middle[part].mean()) - near) / max(far - near, 1e-6))
            tones = (mix(base, (0, 0, 0), 0.42), mix(base, (0, 0, 0), 0.2), base, mix(base, (255, 255, 255), 0.28))
            for outlines, tone in zip(layers, tones):
                for limb in part:
                    self.draw.polygon(outlines[limb], fill=tone)


def _limb_arrays(mannequin: Mannequin) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Limb table as arrays: start and end indices, start and end radii in metres."""
    starts = np.array([limb.start for limb in mannequin.limbs], dtype=np.int64)
    ends = np.array([limb.end for limb in mannequin.limbs], dtype=np.int64)
    start_radii = np.array([limb.start_radius for limb in mannequin.limbs])
    end_radii = np.array([limb.end_radius for limb in mannequin.limbs])
    return starts, ends, start_radii, end_radii
