"""The best and the worst member of every group, for the methods that learn from these alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mgrpo.kernels import group_advantages


class Ranking(NamedTuple):
    """The ends of B groups."""

    best: Tensor
    """Index of the best member ``(B,)`` int64; the first of equals."""
    worst: Tensor
    """Index of the worst member ``(B,)`` int64."""
    scored: Tensor
    """``(B,)`` bool: some member could be scored."""
    differ: Tensor
    """``(B,)`` bool: the best one is better than the worst one; never so in a group that is dead in every reward."""


def rank_groups(rewards: Tensor, *, weights: Tensor, **options: Any) -> Ranking:
    """Order members by their advantage: the weighted sum of their rewards, each normalised in its group as GRPO does
    it, never clamped.

    Args:
        rewards: ``(B, G, K)``; a member with a NaN or infinite reward takes no part.
        weights: of the rewards ``(K,)``.
        options: further keywords of :func:`mgrpo.kernels.group_advantages`; ``clamp`` has no meaning here.
    """
    scored = torch.isfinite(rewards).all(-1)
    result = group_advantages(rewards, weights=weights, **{**options, "clamp": None})
    high = result.advantages.masked_fill(~scored, -torch.inf)
    low = result.advantages.masked_fill(~scored, torch.inf)
    # -inf > inf is false: a group without any score has no ends.
    return Ranking(high.argmax(1), low.argmin(1), scored.any(1), high.amax(1) > low.amin(1))
