"""How much of a rollout passes through the network at once, and whether its graphs can be kept: from free memory."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mgrpo.errors import InputError

SHARE = 0.5
"""Share of the free memory that activations may take; the rest is for states, rewards and the optimiser."""

_CGROUP = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True)
class MemoryPlan:
    """What is done at once."""

    micro_conditions: int
    """Conditions that pass through the network together."""
    keep_graphs: bool
    """Whether the rollout's graphs are kept for the gradient."""
    reason: str
    """For a person: the figures behind it."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: a resumed training computes in the same pieces, so its rounding is the
        same."""
        return {"micro_conditions": self.micro_conditions, "keep_graphs": self.keep_graphs}


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device: of a GPU as its driver says, of the machine what it can give without swapping,
    no more than the limit of the process's group leaves."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = 1 << 62
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) << 10
    except OSError:
        return 8 << 30  # not Linux: a machine that a small training fits into
    for limit, used in _CGROUP:
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or "max": no limit
            continue
    return max(free, 0)


def peak_memory(device: torch.device) -> int:
    """Largest memory so far, or since :func:`restart_peak_memory`: allocated on a GPU, resident in the process on a
    CPU; bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    resident = _resident("VmHWM")
    if resident is not None:
        return resident
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def restart_peak_memory(device: torch.device) -> int:
    """Let :func:`peak_memory` begin anew, where the system can (Linux), and return the memory now, bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError):  # the peak is that of the whole process then
        Path("/proc/self/clear_refs").write_text("5")
    resident = _resident("VmRSS")
    return peak_memory(device) if resident is None else resident


def _resident(name: str) -> int | None:
    """A figure of this process as Linux keeps it, bytes; None elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:")), None)


def checkpoint_blocks(network: nn.Module, wanted: bool, name: str = "--execution.checkpoint-blocks") -> None:
    """Let ``network`` compute its blocks again for the gradient where ``wanted``. Raises InputError, which calls the
    option ``name``, for a network that can't."""
    if not wanted:
        return
    if not hasattr(network, "checkpoint_blocks"):
        raise InputError(f"{name}: this policy has no attribute checkpoint_blocks that turns it on")
    network.checkpoint_blocks = True


def saved_bytes(call: Callable[[], Tensor], parameters: set[int]) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass of ``call``, each counted once; those that start
    at one of the addresses ``parameters`` are there anyway."""
    seen: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        result = call()
        kept = sum(seen.values())
    del result
    return kept


def plan_memory(
    per_condition: int,
    *,
    free: int,
    conditions: int,
    steps: int,
    may_keep: bool,
    micro_conditions: int,
    reuse_graphs: str,
) -> MemoryPlan:
    """Decide for ``conditions`` of an optimiser step and its ``steps`` trained steps.

    Args:
        per_condition: bytes that autograd keeps for one condition's group at one step.
        free: bytes.
        may_keep: whether one optimiser step follows a rollout.
        micro_conditions: as asked for; 0 to choose.
        reuse_graphs: auto, yes or no.
    """
    budget = SHARE * free
    whole = per_condition * conditions * steps
    keep = may_keep and (reuse_graphs == "yes" or (reuse_graphs == "auto" and whole <= budget))
    fitting = max(1, min(conditions, int(budget // max(per_condition, 1))))
    at_once = micro_conditions or (conditions if keep else fitting)
    reason = (
        f"{_size(per_condition)} of activations for a condition and step, {_size(free)} free: {at_once} of "
        f"{conditions} conditions at once, graphs {'kept' if keep else 'made again'}"
    )
    return MemoryPlan(at_once, keep, reason)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.3g} {unit}"
        count /= 1024
    raise AssertionError
