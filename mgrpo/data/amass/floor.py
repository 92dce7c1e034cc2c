"""Where the floor of a recording is, and which joints touch something, as the base model's preprocessing finds both.

Source: facts, section F, steps 7 and 8. Both work at the rate of the recording, before it is brought to 30 fps. With
``parity`` they keep the original's habits; without, three of them are mended:

* *static* is a displacement below 0.005 m **per frame**, which is 0.3 m/s at 60 fps and 1.2 m/s at 240 fps, so that
  labels depend on the camera. Mended: a speed, :data:`mgrpo.data.contacts.CONTACT_SPEED_M_S`, at every rate.
* heights that belong to no cluster (noise) count as a cluster, and an outlier below the floor becomes the floor.
  Mended: noise is left out; a recording with noise alone is treated like one without a static frame.
* contacts of such a recording are still compared with the height 0. This is kept, and the report counts these clips.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mgrpo.body.skeleton import BODY_JOINT_NAMES, CONTACT_JOINTS, TOE_JOINTS
from mgrpo.data.contacts import CONTACT_SPEED_M_S, OTHER_HEIGHT_M, TOE_HEIGHT_M, joint_speeds

STATIC_STEP_M = 0.005
"""With parity: a joint that moves less than this from one source frame to the next is static, metres."""

CLUSTER_EPS_M = 0.005
"""Static toe heights this near to each other are neighbours, metres."""

CLUSTER_MIN_SAMPLES = 3
"""A height with at least this many neighbours (itself included) is the core of a cluster."""

TOE_CLEARANCE_M = 0.01
"""The toe joint of SMPL-H lies this far above the sole; the floor is put so far below the toes, metres."""

TERRAIN_HEIGHT_M = 0.04
"""Toes and root that stand this far above the floor stand on something else, metres."""

TERRAIN_SECONDS = 0.25
"""... if they do so for longer than this."""

NOISE = -1
"""Label of points that belong to no cluster."""


class Floor(NamedTuple):
    """What a recording says about its floor."""

    height: float
    """Height of the floor in the world of the recording, metres: subtract it. 0 where it was not found."""
    toe_height: float
    """Height of a planted toe joint there, from which contact heights are measured, metres."""
    contacts: Tensor
    """Which joints touch something, ``(F, 22)`` bool, root first."""
    found: bool
    """Whether there was anything to find the floor from."""
    terrain: bool
    """Whether the body also stands on something higher than the floor for longer than :data:`TERRAIN_SECONDS`."""


def cluster_heights(heights: np.ndarray, eps: float, min_samples: int) -> np.ndarray:
    """Density-based clusters (DBSCAN) of numbers on a line, by sorting once.

    Points with at least ``min_samples`` neighbours within ``eps`` (themselves included) are cores; cores within ``eps``
    of each other are one cluster; other points within ``eps`` of a core join its cluster, and of two clusters that of
    the core which comes first in ``heights``.

    Args:
        heights: ``(N,)``, finite.
    Returns:
        Labels ``(N,)``: 0, 1, ... in the order in which the clusters' first cores come in ``heights``, or -1 (noise).
    """
    order = np.argsort(heights, kind="stable")
    line = heights[order].astype(np.float64)
    first = np.searchsorted(line, line - eps, side="left")
    last = np.searchsorted(line, line + eps, side="right")
    core = last - first >= min_samples
    cores = np.flatnonzero(core)
    labels = np.full(len(line), NOISE, dtype=np.int64)
    if not len(cores):
        return labels
    # cores on a line are one cluster as long as the next one is within reach
    cluster = np.concatenate(([0], np.cumsum(np.diff(line[cores]) > eps)))
    first_seen = np.full(cluster[-1] + 1, len(line), dtype=np.int64)
    np.minimum.at(first_seen, cluster, order[cores])
    rank = np.empty_like(first_seen)
    rank[np.argsort(first_seen)] = np.arange(len(first_seen))
    labels[order[cores]] = rank[cluster]
    edges = np.flatnonzero(~core)
    # the nearest cores on both sides decide: one farther away in the same cluster says the same
    after = np.searchsorted(cores, edges)
    below, above = np.maximum(after - 1, 0), np.minimum(after, len(cores) - 1)
    unreachable = len(first_seen)
    candidates = [
        np.where(np.abs(line[cores[side]] - line[edges]) <= eps, rank[cluster[side]], unreachable)
        for side in (below, above)
    ]
    joined = np.minimum(*candidates)
    labels[order[edges]] = np.where(joined == unreachable, NOISE, joined)
    return labels


def find_floor(joints22: Tensor, fps: float, *, parity: bool = False) -> Floor:
    """Floor and contacts of a recording.

    The heights of both toe joints in their static frames are clustered; the lowest median of a cluster is the height of
    a planted toe, and the floor lies 0.01 m below. A joint is in contact where it is static and less than 0.08 m
    (ankles, knees, wrists) or 0.04 m (toes) above a planted toe.

    Args:
        joints22: joints in the world, ``(F, 22, 3)`` metres, root first, F >= 2.
        fps: rate of the recording, Hz.
        parity: as the original, see above.
    """
    # the last frame has the displacement of the one before it
    static = joint_speeds(joints22, 1.0 if parity else fps) < (STATIC_STEP_M if parity else CONTACT_SPEED_M_S)
    toes = [joint + 1 for joint in TOE_JOINTS]
    where = torch.cat([torch.nonzero(static[:, toe]).flatten() for toe in toes])
    heights = torch.cat([joints22[static[:, toe], toe, 2] for toe in toes]).numpy()
    labels = cluster_heights(heights, CLUSTER_EPS_M, CLUSTER_MIN_SAMPLES)
    medians = {
        int(label): float(np.median(heights[labels == label]))
        for label in np.unique(labels)
        if parity or label != NOISE
    }
    found = bool(medians)
    toe_height = min(medians.values()) if found else 0.0
    root_heights = joints22[where, 0, 2].numpy()
    roots = {label: float(np.median(root_heights[labels == label])) for label in medians}
    terrain = any(
        medians[label] > toe_height + TERRAIN_HEIGHT_M
        and roots[label] > min(roots.values()) + TERRAIN_HEIGHT_M
        and int((labels == label).sum()) > TERRAIN_SECONDS * fps
        for label in medians
    )
    limit = torch.full((len(BODY_JOINT_NAMES) + 1,), -torch.inf, dtype=joints22.dtype)
    limit[[joint + 1 for joint in CONTACT_JOINTS]] = OTHER_HEIGHT_M
    limit[toes] = TOE_HEIGHT_M
    contacts = static & (joints22[..., 2] - toe_height < limit)
    return Floor(toe_height - TOE_CLEARANCE_M if found else 0.0, toe_height, contacts, found, terrain)
