"""A policy as training calls it: in its precision, compiled or not, with every call counted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mgrpo.execution.compiled import compile_function
from mgrpo.execution.precision import NetworkPrecision


class PreparedPolicy:
    """Calls a policy's :meth:`encode` and :meth:`decode` in a precision; the policy itself holds the weights.

    ``calls`` counts sequences: how many rows the network has encoded and decoded, and for how many of them a gradient
    could be taken.
    """

    def __init__(self, policy: nn.Module, precision: NetworkPrecision, *, compile: bool) -> None:
        wrap: Callable[[Any], Any] = compile_function if compile else lambda function: function
        self.policy = policy
        self._encode = precision.applied_to(wrap(policy.encode))
        self._decode = precision.applied_to(wrap(policy.decode))
        self.calls = {"encode": 0, "decode": 0, "decode_with_graph": 0}

    def encode(self, cond: Any, t: Tensor, **options: Any) -> Any:
        """See :class:`mgrpo.grpo.policy.Policy`."""
        self.calls["encode"] += len(t)
        return self._encode(cond, t, **options)

    @property
    def encode_levels(self) -> Callable[..., list[Any]] | None:
        """See :class:`mgrpo.grpo.policy.EncodesLevels`; None where the policy has no such method."""
        of_policy = getattr(self.policy, "encode_levels", None)
        return None if of_policy is None else partial(of_policy, encode=self.encode)

    def decode(self, x_t: Tensor, t: Tensor, memory: Any) -> Tensor:
        """See :class:`mgrpo.grpo.policy.Policy`."""
        samples = x_t.shape[0] * x_t.shape[1]
        self.calls["decode"] += samples
        if torch.is_grad_enabled():
            self.calls["decode_with_graph"] += samples
        return self._decode(x_t, t, memory)

    def take_calls(self) -> dict[str, int]:
        """The counts since they were last taken."""
        taken = dict(self.calls)
        self.calls = dict.fromkeys(self.calls, 0)
        return taken
