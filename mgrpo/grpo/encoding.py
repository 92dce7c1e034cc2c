"""Conditions encoded for several of the sampler's steps in one call: a few conditions alone keep no processor busy."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .policy import EncodesLevels, Policy, at_level

ROWS_AT_ONCE = 256
"""Rows that are encoded in one call, unless one step alone has more."""


class EncodedSteps:
    """What the policy's ``encode`` makes of the conditions at every step, made when it is first asked for.

    Steps are encoded together where the policy has ``encode_levels`` (:class:`mgrpo.grpo.policy.EncodesLevels`), which
    rounds differently than one by one. So the steps in ``alone`` are not: those that the update will encode again.
    """

    def __init__(
        self,
        policy: Policy,
        cond: Any,
        mask: Tensor | None,
        levels: Sequence[int],
        *,
        rows: int,
        device: torch.device | str,
        with_graph: Collection[int] = (),
        alone: Collection[int] = (),
    ) -> None:
        """``levels`` are those of all steps; ``with_graph`` the steps whose encoding keeps its graph; ``rows`` those of
        ``cond``."""
        self._policy, self._cond, self._rows, self._device = policy, cond, rows, device
        self._options = {} if mask is None else {"mask": mask}
        self._levels, self._with_graph = levels, frozenset(with_graph)
        self._made: dict[int, Any] = {}
        together = getattr(policy, "encode_levels", None) is not None
        at_once = max(1, ROWS_AT_ONCE // max(rows, 1)) if together else 1
        self._part: dict[int, tuple[int, ...]] = {k: (k,) for k in range(len(levels))}
        for kind in (True, False):
            steps = [k for k in range(len(levels)) if k not in alone and (k in self._with_graph) is kind]
            # Even parts: compiled networks are compiled anew for every other number of rows.
            parts = -(-len(steps) // at_once)
            for number in range(parts):
                part = tuple(steps[number * len(steps) // parts : (number + 1) * len(steps) // parts])
                self._part |= dict.fromkeys(part, part)

    def take(self, step: int) -> Any:
        """The memory for :meth:`Policy.decode` at a step. It is handed out once."""
        if step not in self._made:
            part = self._part[step]
            with torch.set_grad_enabled(torch.is_grad_enabled() or step in self._with_graph):
                if len(part) == 1:
                    t = at_level(self._levels[step], self._rows, self._device)
                    memories = [self._policy.encode(self._cond, t, **self._options)]
                else:
                    levels = [self._levels[k] for k in part]
                    memories = cast(EncodesLevels, self._policy).encode_levels(self._cond, levels, **self._options)
            self._made |= dict(zip(part, memories, strict=True))
        return self._made.pop(step)
