"""What is post-trained on what: conditions, what the policy sees of them, and rewards. :mod:`mgrpo.train.post_training`
runs any of these; ours is :class:`mgrpo.train.motion_task.MotionTask`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from mgrpo.diffusion.transition import Transitions
from mgrpo.errors import InputError
from mgrpo.models.state import StateLayout

from .policy import Policy, map_tensors


class Batch(Protocol):
    """Some conditions and all that rewards need to know of them, on one device."""

    def __len__(self) -> int:
        """How many conditions."""
        ...

    def select(self, index: slice) -> Any:
        """Some of the conditions."""
        ...

    def to(self, device: torch.device) -> Any:
        """The same on another device."""
        ...


BatchT = TypeVar("BatchT", bound=Batch)


class Seen(NamedTuple):
    """What the policy is shown of a batch."""

    cond: Any
    """Conditions, a row for each, or for each member where the task says so."""
    mask: Tensor | None = None
    """Real frames ``(B, T)`` bool, where samples have different lengths."""


class Scored(NamedTuple):
    """Rewards of sampled groups."""

    rewards: Tensor
    """``(B, G, K)``, higher is better; NaN = cannot be scored."""
    outcome: Tensor | None = None
    """What :meth:`Task.measures` looks at, ``(B, G, ...)``."""
    errors: Mapping[str, Tensor] = MappingProxyType({})
    """Further numbers of every sample ``(B, G)`` whose means are logged, by their name in the log; NaN = not
    measured."""


class Task(Protocol, Generic[BatchT]):
    """Conditions and rewards of a post-training. Everything must be a function of the iteration alone, so that a
    resumed training sees what an unbroken one sees."""

    reward_weights: Mapping[str, float]
    """Weight of each reward's advantage, by name, in the order of their columns."""
    layout: StateLayout | None
    """Layout of the states, for projected rotations and channel weights; None for states of another kind."""
    project_rotations: bool
    """Whether the sampler projects the predicted body rotations."""
    per_member: bool
    """Whether every member of a group sees a condition of its own."""

    def transitions(self, noisy_steps: Collection[int] | None) -> Transitions:
        """The sampler, with noise at these steps only; None: wherever it has any."""
        ...

    def draw(self, iteration: int, first: int, size: int) -> BatchT:
        """Conditions ``first`` and after of an iteration, on the CPU. Called from another thread."""
        ...

    def state_shape(self, batch: BatchT) -> tuple[int, int]:
        """(T, D) of a sample."""
        ...

    def seen(self, batch: BatchT, *, iteration: int, first: int, members: range) -> Seen:
        """What the policy is shown; ``first`` is the number of the batch's first condition in the iteration."""
        ...

    def score(self, x0: Tensor, batch: BatchT) -> Scored:
        """Rewards of samples ``x0 (B, G, T, D)``."""
        ...

    def measures(self, outcome: Tensor, batch: BatchT) -> Mapping[str, Tensor]:
        """Further numbers to log about whole groups, one for each condition ``(B,)``; NaN = not measured."""
        ...

    def gold(self, policy: Policy) -> dict[str, float]:
        """Measures on held-out conditions that are no rewards, with the same noise every time."""
        ...


def look(task: Task[Any], batch: Batch, *, iteration: int, first: int, members: range) -> Seen:
    """:meth:`Task.seen`. Raises InputError for a mask of another shape or kind."""
    seen = task.seen(batch, iteration=iteration, first=first, members=members)
    wanted = (len(batch), task.state_shape(batch)[0])
    mask = seen.mask
    if mask is not None and (mask.shape != wanted or mask.dtype != torch.bool):
        raise InputError(
            f"task.seen() must give a bool mask of shape {wanted}, a row of frames for each condition, got "
            f"{str(mask.dtype).removeprefix('torch.')} {tuple(mask.shape)}"
        )
    return seen


class TensorBatch(dict[str, Any]):
    """A :class:`Batch` of named tensors, or dictionaries, lists and tuples of them, whose first axis is the
    condition's."""

    def _map(self, function: Callable[[Tensor], Tensor]) -> TensorBatch:
        return TensorBatch({name: map_tensors(part, function) for name, part in self.items()})

    def __len__(self) -> int:
        """How many conditions."""
        sizes: list[int] = []
        self._map(lambda tensor: sizes.append(len(tensor)) or tensor)
        return sizes[0] if sizes else 0

    def select(self, index: slice) -> TensorBatch:
        """Some of the conditions."""
        return self._map(lambda tensor: tensor[index])

    def to(self, device: torch.device) -> TensorBatch:
        """The same on another device."""
        return self._map(lambda tensor: tensor.to(device))
