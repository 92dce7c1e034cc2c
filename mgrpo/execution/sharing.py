"""Which samples of a rollout are whose, when several processes train one policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mgrpo.errors import InputError

from .distributed import Processes


@dataclass(frozen=True)
class Sharing:
    """One process's part of every rollout."""

    shares: tuple[tuple[int, int], ...]
    """(first condition, number of conditions) of each optimiser step, over all processes."""
    own: tuple[tuple[int, int], ...]
    """The same of this process."""
    members: range
    """Which members of the groups this process samples."""
    by: Literal["conditions", "members"]
    """What is shared out."""

    def gather(self, processes: Processes, parts: Sequence[Tensor]) -> Tensor:
        """Join what every process has of each optimiser step, ``(b, g, ...)`` each, into ``(B, G, ...)``."""
        axis = 0 if self.by == "conditions" else 1
        return torch.cat([torch.cat(processes.gather(part), dim=axis) for part in parts], dim=0)

    def of(self, whole: Tensor, step: int) -> Tensor:
        """This process's part ``(b, g, ...)`` of an optimiser step in a tensor ``(B, G, ...)``."""
        first, size = self.own[step]
        return whole[first : first + size, self.members.start : self.members.stop]


def share_out(
    processes: Processes,
    *,
    conditions: int,
    group_size: int,
    optimizer_steps: int,
    split: Literal["auto", "conditions", "members"],
) -> Sharing:
    """Divide a rollout. One process takes all of it, in uneven optimiser steps where it must; several need even parts.

    Raises InputError when there are none.
    """
    shares, first = [], 0
    for number in range(optimizer_steps):
        size = conditions // optimizer_steps + (number < conditions % optimizer_steps)
        shares.append((first, size))
        first += size
    count, rank = processes.count, processes.rank
    even = conditions % (optimizer_steps * count) == 0
    if count == 1:
        return Sharing(tuple(shares), tuple(shares), range(group_size), "conditions")
    if split == "conditions" or (split == "auto" and even):
        if not even:
            raise InputError(
                f"--execution.split conditions: --conditions ({conditions}) must be a multiple of {count} processes x "
                f"--optimizer-steps ({optimizer_steps}); choose another number, or --execution.split members"
            )
        own = tuple((first + rank * (size // count), size // count) for first, size in shares)
        return Sharing(tuple(shares), own, range(group_size), "conditions")
    if group_size % count:
        raise InputError(
            f"{count} processes can't share a rollout: neither --conditions ({conditions}, for --optimizer-steps "
            f"{optimizer_steps}) nor --group-size ({group_size}) is a multiple of their number"
        )
    size = group_size // count
    return Sharing(tuple(shares), tuple(shares), range(rank * size, (rank + 1) * size), "members")
