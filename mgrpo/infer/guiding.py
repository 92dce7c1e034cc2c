"""What sampling asks of guidance: the one place where it enters inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Guide(Protocol):
    """Corrects the states of one chunk, within the steps and after them."""

    def hook(self) -> Callable[[Tensor, int], Tensor] | None:
        """Corrects states ``(1, S, T, D)`` within the steps, given the steps done; None where nothing is corrected."""
        ...

    def finish(self, states: Tensor) -> Tensor:
        """Corrects sampled states ``(1, S, T, D)``."""
        ...
