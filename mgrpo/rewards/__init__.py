"""Rewards: one function per file, ``(RewardBatch) -> (B, G)``, higher is better, NaN = cannot be scored.

To add one, write the file and add a line to :data:`REWARDS`; its name is its log key and the name of its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .aligned_position import aligned_position
from .batch import RewardBatch, RewardScales
from .foot_skate import foot_skate
from .ground_penetration import ground_penetration
from .head_position import head_position
from .jitter import jitter
from .joint_position import joint_position
from .joint_rotation import joint_rotation
from .joint_velocity import joint_velocity
from .visual import visual

REWARDS: Mapping[str, Callable[[RewardBatch], Tensor]] = {
    "visual": visual,
    "position": joint_position,
    "aligned_position": aligned_position,
    "rotation": joint_rotation,
    "velocity": joint_velocity,
    "foot_skate": foot_skate,
    "ground_penetration": ground_penetration,
    "jitter": jitter,
    "head_position": head_position,
}


def compute_rewards(batch: RewardBatch, names: tuple[str, ...]) -> Tensor:
    """The named rewards of a batch, ``(B, G, K)`` in the order of ``names``. Raises ValueError for a name that is not
    in REWARDS."""
    unknown = [name for name in names if name not in REWARDS]
    if unknown:
        raise ValueError(f"unknown reward {', '.join(unknown)}; the known ones are {', '.join(REWARDS)}")
    return torch.stack([REWARDS[name](batch) for name in names], dim=-1)


__all__ = ["REWARDS", "RewardBatch", "RewardScales", "compute_rewards"]
