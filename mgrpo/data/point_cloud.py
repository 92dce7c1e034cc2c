"""Point clouds of Project Aria's machine perception, and the height of the floor in them (facts: section I).

The floor is where most of the lowest points lie. EgoAllo looks for that height with random draws; here every candidate
is counted, so the answer is the best one there is, and the same each time.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from mgrpo.data.csv_columns import read_columns

SURE = (1e-4, 5e-3)
"""Standard deviations below which a point counts for the floor: of the inverse distance (1/m), of the distance (m)."""

FAIRLY_SURE = (1e-3, 5e-2)
"""The same for display, and for the floor where too few points are sure."""

FEWEST = 50
"""Points below which nothing is said about the floor."""

FEWEST_SURE = 1000
"""Points that are sure below which the fairly sure ones are taken too: some dozen may all lie on a table."""

INLIER_M = 0.01
"""Points count for a height when they are nearer than this."""

_LONELY_M, _LONELY_COUNT = 0.075, 3


class PointCloud(NamedTuple):
    """Points of one recording."""

    points: np.ndarray
    """Positions ``(P, 3)``, metres, in the recording's world."""
    inv_dist_std: np.ndarray
    """Standard deviation of the inverse distance ``(P,)``, 1/m."""
    dist_std: np.ndarray
    """Standard deviation of the distance ``(P,)``, metres."""

    def within(self, limits: tuple[float, float]) -> np.ndarray:
        """The points ``(Q, 3)`` whose standard deviations are below ``limits``, such as :data:`SURE`."""
        return self.points[(self.inv_dist_std < limits[0]) & (self.dist_std < limits[1])]

    def floor(self, R_up_file: np.ndarray | None = None) -> float | None:
        """Height of the floor after turning by ``R_up_file (3, 3)`` (default: z is up already), metres.

        From the points that are :data:`SURE` if there are at least :data:`FEWEST_SURE`, or else from those that are
        :data:`FAIRLY_SURE`. None where even those are fewer than :data:`FEWEST`, or all on their own.
        """
        for limits, fewest in ((SURE, FEWEST_SURE), (FAIRLY_SURE, FEWEST)):
            points = self.within(limits)
            if len(points) >= fewest:
                found = floor_of_points(points if R_up_file is None else points @ R_up_file.T)
                if found is not None:
                    return found
        return None


def read_points(path: Path) -> PointCloud:
    """Read ``semidense_points.csv(.gz)`` or ``global_points.csv(.gz)``. Raises InputError."""
    names = [(f"p{axis}_world",) for axis in "xyz"] + [("inv_dist_std",), ("dist_std",)]
    rows = read_columns(path, "point cloud", names)
    return PointCloud(rows[:, :3], rows[:, 3], rows[:, 4])


def floor_of_points(points: np.ndarray) -> float | None:
    """Height of the floor in a cloud ``(P, 3)`` with z up, metres; None for fewer than :data:`FEWEST` points.

    Without the lowest and the highest 0.01 % of points, the lowest tenth of the range of heights is looked at (0.15 of
    it from 10,000 points on). Of its points, the one with most others nearer than :data:`INLIER_M` wins (the lowest of
    several); if next to nothing else is around it, it is taken out as stray and the next is looked for. The floor is
    the median of the winner's neighbours.
    """
    heights = np.sort(points[:, 2])
    if len(heights) < FEWEST:
        return None
    heights = heights[len(heights) // 10000 : len(heights) - -(-len(heights) // 10000)]
    share = 0.15 if len(heights) >= 10000 else 0.1
    while len(heights) >= FEWEST:
        low = heights[heights <= heights[0] + share * (heights[-1] - heights[0])]
        first = np.searchsorted(low, low - INLIER_M, side="right")
        last = np.searchsorted(low, low + INLIER_M, side="left")
        best = int(np.argmax(last - first))
        near = np.abs(heights - low[best])
        if (near < _LONELY_M).sum() > _LONELY_COUNT:
            return float(np.median(low[first[best] : last[best]]))
        heights = heights[near >= INLIER_M]
    return None
