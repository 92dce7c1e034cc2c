"""What the algorithm asks of a policy, so that any x0-predicting diffusion model can be post-trained."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Policy(Protocol):
    """A network that predicts the clean state. The condition is encoded once for a group and shared by its members."""

    def encode(self, cond: Tensor, t: Tensor) -> Any:
        """Encode conditions ``(B, …)`` at noise levels ``t (B,)``; the result is handed to :meth:`decode` as it is."""
        ...

    def decode(self, x_t: Tensor, t: Tensor, memory: Any) -> Tensor:
        """Predict ``x0 (B, G, T, D)`` from ``x_t (B, G, T, D)`` at ``t (B,)``."""
        ...
