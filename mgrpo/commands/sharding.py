"""One evaluation on several processes: which part of the work is whose, by option or as torchrun says."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from mgrpo.errors import InputError
from mgrpo.execution.process_group import process_group

Item = TypeVar("Item")

_LONGEST_WAIT = datetime.timedelta(days=7)
"""How long the first process waits for the others; torch's own limit of half an hour is shorter than an evaluation."""


@dataclass(frozen=True)
class Shard:
    """One of ``count`` processes that share the work."""

    number: int = 1
    """Which one, from 1."""
    count: int = 1
    """How many."""
    local_rank: int | None = None
    """Number of the process on its machine, under torchrun; None: not started by torchrun."""

    def part(self, items: Sequence[Item]) -> list[Item]:
        """This process's share: every ``count``-th item."""
        return list(items[self.number - 1 :: self.count])

    @property
    def speaks(self) -> bool:
        """Whether this process shows progress and prints results: all but the later ones of torchrun."""
        return self.local_rank is None or self.number == 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_shard(text: str) -> Shard:
    """``"2/3"`` as the second of three. Raises InputError for anything else."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--shard must be i/n with 1 <= i <= n, such as 2/3, got {text!r}")
    return Shard(int(match[1]), int(match[2]))


def chosen_shard(option: str | None) -> Shard:
    """The shard that ``--shard`` or torchrun names; all the work where neither does.

    Raises InputError for a malformed option, for both at once, and where torchrun's variables are incomplete.
    """
    ranks = {name: os.environ.get(name) for name in ("WORLD_SIZE", "RANK")}
    world = _whole(ranks["WORLD_SIZE"], "WORLD_SIZE") if ranks["WORLD_SIZE"] else 1
    if world <= 1:
        return parse_shard(option) if option is not None else Shard()
    if option is not None:
        raise InputError(
            f"--shard {option}: torchrun already shares the work among {world} processes (WORLD_SIZE); leave out "
            "--shard"
        )
    if ranks["RANK"] is None:
        raise InputError(
            f"WORLD_SIZE is {world}, but RANK is not set; start the processes with torchrun, or use --shard"
        )
    rank = _whole(ranks["RANK"], "RANK")
    if rank >= world:
        raise InputError(f"RANK must be below WORLD_SIZE {world}, got {rank}")
    local = os.environ.get("LOCAL_RANK")
    return Shard(rank + 1, world, _whole(local, "LOCAL_RANK") if local else rank)


def _whole(text: str, name: str) -> int:
    if not text.isdigit():
        raise InputError(f"{name} must be a whole number, got {text!r}; it is set by torchrun")
    return int(text)


def shard_device(name: str, shard: Shard) -> str:
    """The device option of this process: under torchrun ``auto`` and ``cuda`` mean the GPU of its local rank (several
    processes share one where there are fewer GPUs)."""
    if shard.local_rank is None or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{shard.local_rank % torch.cuda.device_count()}"


def wait_for_all(shard: Shard) -> None:
    """Under torchrun: return when every process has come here. Elsewhere do nothing."""
    if shard.local_rank is None:
        return
    with process_group("gloo", timeout=_LONGEST_WAIT):
        dist.barrier()
