"""A pinhole camera that orbits a point, and the choice of a good view for a clip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mgrpo.viz.comparison import BODY_PARENTS, MotionComparison

FOCAL = 2.4
"""Focal length in panel heights: a calm 24 degree field of view, so that limbs near the camera don't swell."""


@dataclass(frozen=True)
class Framing:
    """How to look at a clip: the camera follows ``centers`` and stands at ``azimuth``, far enough for the body's
    reach."""

    centers: np.ndarray
    """Point above which the camera keeps the body in each frame, metres (T, 2)."""
    height: float
    """Height of the point looked at, metres."""
    azimuth: float
    """Direction from the body to the camera, radians from world x."""
    reach_across: float
    """Farthest that a joint gets from the centre line, metres."""
    reach_up: float
    """Farthest that a joint gets above or below the point looked at, metres."""

    def distance(self, aspect: float) -> float:
        """Distance in metres at which the body fits a panel of this width / height."""
        across = self.reach_across / (0.5 * aspect)
        up = self.reach_up / 0.5
        return FOCAL * max(across, up) * 1.06 + 0.35 * self.reach_across


def _fill_missing(values: np.ndarray) -> np.ndarray:
    """Columns of (T, C) with NaN replaced by linear interpolation over time (zero where a column has no number at
    all)."""
    filled = values.astype(np.float64).copy()
    times = np.arange(len(filled))
    for column in range(filled.shape[1]):
        good = np.isfinite(filled[:, column])
        filled[:, column] = np.interp(times, times[good], filled[good, column]) if good.any() else 0.0
    return filled


def _smooth(values: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian smoothing over the first axis of (T, C), edges repeated, so that the camera glides."""
    radius = int(3 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    padded = np.concatenate((np.repeat(values[:1], radius, 0), values, np.repeat(values[-1:], radius, 0)))
    return np.stack([np.convolve(padded[:, c], kernel, mode="valid") for c in range(values.shape[1])], axis=1)


def frame_clip(comparison: MotionComparison) -> Framing:
    """A view for a clip, by its recorded body."""
    return frame_joints(comparison.ground_truth.joints[0], comparison.parents)


def frame_joints(joints: np.ndarray, parents: tuple[int, ...] = BODY_PARENTS) -> Framing:
    """A view for joints (T, J, 3) in metres: from the front and a little to the side of where the body mostly faces,
    gliding with its pelvis. Frames with NaN are passed over."""
    joints = joints.astype(np.float64)
    frames = len(joints)
    pelvis = _fill_missing(joints[:, 0, :2])
    centers = _smooth(pelvis, sigma=max(2.0, min(12.0, frames / 8)))
    finite = joints[np.isfinite(joints).all(axis=(1, 2))]
    if len(finite) == 0:
        return Framing(centers, 0.9, 0.0, 0.8, 0.95)

    azimuth = 0.0
    if parents == BODY_PARENTS:
        left = finite[:, 1, :2] - finite[:, 2, :2]
        # forward = left x up; its mean decides unless the body turns so much that the mean says nothing
        forward = np.stack((left[:, 1], -left[:, 0]), axis=1)
        forward /= np.maximum(np.linalg.norm(forward, axis=1, keepdims=True), 1e-6)
        mean = forward.mean(axis=0)
        facing = mean if np.linalg.norm(mean) > 0.35 else forward[0]
        azimuth = float(np.arctan2(facing[1], facing[0])) + np.deg2rad(48)

    good = np.isfinite(joints).all(axis=(1, 2))
    across = np.linalg.norm(joints[good][:, :, :2] - centers[good][:, None], axis=-1).max()
    top = max(float(finite[:, :, 2].max()) + 0.16, 0.6)
    height = 0.5 * top
    return Framing(
        centers=centers.astype(np.float32),
        height=height,
        azimuth=float(np.arctan2(np.sin(azimuth), np.cos(azimuth))),
        reach_across=float(across) + 0.06,
        reach_up=max(top - height, height) + 0.06,
    )


@dataclass(frozen=True)
class Camera:
    """A camera at ``distance`` from ``target``, looking at it; projects to pixels of a panel of the given size."""

    target: np.ndarray
    """Point looked at, metres (3,)."""
    azimuth: float
    """Radians from world x to the camera, seen from the target."""
    elevation: float
    """Radians above the horizon."""
    distance: float
    """Metres."""
    width: int
    """Panel width, pixels."""
    height: int
    """Panel height, pixels."""

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return FOCAL * self.height

    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Unit vectors (3,) in the world: back (from the target to the camera), right and up on the picture."""
        ce, se, ca, sa = np.cos(self.elevation), np.sin(self.elevation), np.cos(self.azimuth), np.sin(self.azimuth)
        return np.array((ce * ca, ce * sa, se)), np.array((-sa, ca, 0.0)), np.array((-se * ca, -se * sa, ce))

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """World points (…, 3) to pixels: (x, y, pixels per metre), each (…). Depth in metres is focal / scale; it never
        goes below 5 cm."""
        back, right, up = self.axes()
        relative = np.asarray(points, dtype=np.float64) - self.target
        depth = np.maximum(self.distance - relative @ back, 0.05)
        scale = self.focal / depth
        return self.width / 2 + relative @ right * scale, self.height / 2 - relative @ up * scale, scale
