"""Where the floor is under a person, and keeping feet on it when a motion moves to another body.

The floor must stay where it is although legs get longer or feet thicker, and a jump must keep its height. So a clip is
only ever shifted as a whole, by a number taken from the frames in which a joint is planted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mgrpo.body.model import BodyModel
from mgrpo.body.skeleton import PARENTS_BODY, TOE_JOINTS

HEAD_HEIGHTS_M = (1.0, 2.2)
"""Usual heights of the eyes above the floor, metres; outside, a warning is given."""

PLANTED_SPEED_M_S = 0.3
"""Toes slower than this show where the floor is, metres per second."""

_NUM_BODY = len(PARENTS_BODY)


class FloorAnchor(NamedTuple):
    """Mean height of a clip's planted joints as a linear function of the body: cheap to evaluate for any shape.

    With bone offsets ``o (21, 3)`` and the root path scaled by ``r``, the mean height is ``r * root_height + sum(rows
    * o)``.
    """

    root_height: Tensor
    """Mean height of the pelvis over the planted samples, ``(*b)`` metres."""
    rows: Tensor
    """Mean up-direction along each bone of the chains to the planted joints, ``(*b, 21, 3)``."""

    def height(self, offsets: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """Mean height ``(*b)`` of the planted joints for bone ``offsets (*b, 21, 3)`` and a root path scaled by
        ``scale (*b)``."""
        return scale * self.root_height + (self.rows * offsets).sum((-1, -2))


def anchor_weights(contacts: Tensor, joints22: Tensor) -> Tensor:
    """Weights ``(F, 21)`` of the joints that show where the floor is.

    Toes in contact, if there are any in the clip; else whatever is in contact; else the lowest joint of the lowest
    tenth of the frames.

    Args:
        contacts: labels ``(F, 21)``.
        joints22: joints ``(F, 22, 3)``, root first.
    """
    toes = torch.zeros_like(contacts)
    toes[:, list(TOE_JOINTS)] = contacts[:, list(TOE_JOINTS)]
    for weights in (toes, contacts):
        if float(weights.sum()) > 0:
            return weights
    lowest, joint = joints22[:, 1:, 2].min(dim=1)
    chosen = torch.argsort(lowest, stable=True)[: max(1, len(lowest) // 10)]
    weights = torch.zeros_like(contacts)
    weights[chosen, joint[chosen]] = 1.0
    return weights


def floor_anchor(weights: Tensor, root_heights: Tensor, R_world_joint: Tensor) -> FloorAnchor:
    """Collect the planted samples of one clip.

    Args:
        weights: ``(F, 21)`` from :func:`anchor_weights`, not all zero.
        root_heights: height of the pelvis ``(F,)``, metres.
        R_world_joint: orientations ``(F, 22, 3, 3)``, root first.
    """
    weights = weights.to(torch.float64)
    total = weights.sum()
    # A bone carries every planted joint beyond it.
    carried = weights.clone()
    for joint in range(_NUM_BODY - 1, -1, -1):
        if PARENTS_BODY[joint] >= 0:
            carried[:, PARENTS_BODY[joint]] += carried[:, joint]
    up = R_world_joint[:, [parent + 1 for parent in PARENTS_BODY], 2, :].to(torch.float64)
    rows = torch.einsum("fj,fjx->jx", carried, up) / total
    root = (weights.sum(1) * root_heights.to(torch.float64)).sum() / total
    return FloorAnchor(root.to(R_world_joint.dtype), rows.to(R_world_joint.dtype))


def body_offsets(body: BodyModel, betas: Tensor) -> Tensor:
    """Bone offsets of the 21 body joints, ``(*b, 21, 3)`` metres."""
    return body.t_parent_joint(betas)[..., :_NUM_BODY, :]


def densest_height(heights: np.ndarray, width: float = 0.02) -> float | None:
    """Middle of the ``width`` metres in which most of ``heights (N,)`` lie (the lowest such interval); None for no
    heights.

    Used on the heights of slow toes: planted feet are by far the commonest, whatever else a recording holds.
    """
    ordered = np.sort(np.asarray(heights, np.float64).reshape(-1))
    if len(ordered) == 0:
        return None
    ends = np.searchsorted(ordered, ordered + width, side="right")
    best = int(np.argmax(ends - np.arange(len(ordered))))
    return float(np.median(ordered[best : ends[best]]))
