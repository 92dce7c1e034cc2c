"""What the algorithm asks of a policy, so that any x0-predicting diffusion model can be post-trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mgrpo.errors import InputError


class Policy(Protocol):
    """A network that predicts the clean state. The condition is encoded once for a group and shared by its members."""

    def encode(self, cond: Any, t: Tensor) -> Any:
        """Encode conditions ``(B, …)`` at noise levels ``t (B,)``; the result is handed to :meth:`decode` as it is."""
        ...

    def decode(self, x_t: Tensor, t: Tensor, memory: Any) -> Tensor:
        """Predict ``x0 (B, G, T, D)`` from ``x_t (B, G, T, D)`` at ``t (B,)``."""
        ...


class EncodesLevels(Policy, Protocol):
    """A policy that encodes the same conditions at several noise levels in one call; the algorithm then makes fewer and
    larger ones. Not required of a policy."""

    def encode_levels(self, cond: Any, levels: Sequence[int], **options: Any) -> list[Any]:
        """What :meth:`encode` makes of ``cond (B, …)`` at each of the levels, up to rounding."""
        ...


def call(policy: Policy, x_t: Tensor, t: Tensor, cond: Any, mask: Tensor | None) -> Tensor:
    """Predict ``x0 (B, G, T, D)``; ``mask (B, T)`` reaches the policy's ``encode`` where there is one."""
    options = {} if mask is None else {"mask": mask}
    return policy.decode(x_t, t, policy.encode(cond, t, **options))


class PlainPolicy(nn.Module):
    """A :class:`Policy` made of any network ``x0_pred = network(x_t, t, cond)``, which sees one sample per row.

    Args:
        network: from states ``(N, T, D)``, noise levels ``t (N,)`` int64 in 1 … max_t and conditions of N rows to
            predicted clean states ``(N, T, D)``. Conditions are a tensor, or a dictionary, list or tuple of tensors,
            whose first axis is the row's.
        config: dataclass saved beside the weights in checkpoints, if the network has one.
    """

    def __init__(self, network: nn.Module, config: Any = None) -> None:
        super().__init__()
        self.network = network
        self.config = config

    def encode(self, cond: Any, t: Tensor, *, mask: Tensor | None = None) -> Any:
        """The conditions as they are: nothing is known about the network that could be shared. With a mask, the network
        gets ``(cond, mask)``. Raises InputError unless every tensor of ``cond`` has a row for each level of ``t``."""

        def require_rows(part: Tensor) -> Tensor:
            if part.ndim == 0 or len(part) != len(t):
                raise InputError(
                    f"PlainPolicy: every tensor of the conditions needs {len(t)} rows (one for each condition, or for "
                    f"each member where the task's per_member says so), got shape {tuple(part.shape)}"
                )
            return part

        map_tensors(cond, require_rows)
        return cond if mask is None else (cond, mask)

    def decode(self, x_t: Tensor, t: Tensor, memory: Any) -> Tensor:
        """Predict ``(B, G, T, D)``, each condition repeated for its members. Raises InputError when the network's
        output has another shape than its input."""
        members = x_t.shape[1]
        cond = memory if members == 1 else map_tensors(memory, lambda part: part.repeat_interleave(members, dim=0))
        level = t if members == 1 else t.repeat_interleave(members)
        x0_pred = self.network(x_t.flatten(0, 1), level, cond)
        if x0_pred.shape != (x_t.shape[0] * members, *x_t.shape[2:]):
            raise InputError(
                f"PlainPolicy: the network must return clean states of shape {tuple(x_t.flatten(0, 1).shape)}, got "
                f"{tuple(x0_pred.shape)}"
            )
        return x0_pred.view(x_t.shape)


def map_tensors(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``function`` to every tensor of a tensor, dictionary, list, tuple or named tuple; None stays None.

    Raises InputError for anything else.
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {name: map_tensors(part, function) for name, part in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(part, function) for part in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_tensors(part, function) for part in tree)
    raise InputError(f"conditions must be tensors, or dictionaries, lists or tuples of them, got {type(tree).__name__}")


def at_level(level: int, rows: int, device: torch.device | str) -> Tensor:
    """The noise level of each of ``rows`` conditions, ``(rows,)`` int64."""
    return torch.full((rows,), level, dtype=torch.int64, device=device)
