"""EgoAllo's cosine noise schedule and its sampling levels (fact sheet D.1, D.2), in float64 throughout.

Level t runs from 0 (clean) to ``max_t`` (noise): ``x_t = sqrt(ᾱ_t) x0 + sqrt(1 - ᾱ_t) eps``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mgrpo.errors import InputError

_OFFSET = 0.008
_MAX_BETA = 0.999


@dataclass(frozen=True, eq=False)
class CosineSchedule:
    """Schedule constants, float64 on the CPU; index = level t. Build with :meth:`make`."""

    max_t: int
    """Highest level."""
    alpha: Tensor
    """Single-step signal share ``(max_t + 1)``: ``1 - β_t``; entry 0 is 1."""
    alpha_bar: Tensor
    """Cumulative product of ``alpha`` ``(max_t + 1)``; exactly 1 at t = 0."""

    @classmethod
    def make(cls, max_t: int = 1000) -> CosineSchedule:
        """The cosine schedule over ``max_t`` levels; only the last β is clipped, at 0.999.

        Raises:
            InputError: ``max_t`` below 1.
        """
        if max_t < 1:
            raise InputError(f"CosineSchedule.make(): max_t must be at least 1, got {max_t}")
        x = torch.arange(max_t + 1, dtype=torch.float64) / max_t
        f = torch.cos((x + _OFFSET) / (1.0 + _OFFSET) * (math.pi / 2.0)) ** 2
        f = f / f[0]
        beta = (1.0 - f[1:] / f[:-1]).clamp(0.0, _MAX_BETA)
        alpha = torch.cat((torch.ones(1, dtype=torch.float64), 1.0 - beta))
        return cls(max_t=max_t, alpha=alpha, alpha_bar=torch.cumprod(alpha, dim=0))

    @cached_property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio ``ᾱ / (1 - ᾱ)`` ``(max_t + 1)``; infinite at t = 0."""
        return self.alpha_bar / (1.0 - self.alpha_bar)

    @cached_property
    def training_weight_f32(self) -> Tensor:
        """Loss weight of each level ``(max_t + 1)`` float32: ``0.99 SNR_t / SNR_1 + 0.01`` (fact sheet E). Entry 0 is
        NaN, never used.

        Computed from a float32 ᾱ as EgoAllo does: 1 - ᾱ_1 = 4e-5 then holds three digits, so the weights differ from
        the float64 formula by up to 6e-4 (relative).
        """
        abar = self.alpha_bar.to(torch.float32)
        snr = abar / (1.0 - abar)
        return snr / snr[1] * 0.99 + 0.01

    @cached_property
    def posterior_std(self) -> Tensor:
        """Standard deviation ``(max_t + 1)`` of the single-step posterior q(x_{t-1} | x_t, x0); 0 at t = 0 and t =
        1."""
        previous = self.alpha_bar[:-1]
        variance = (1.0 - previous) / (1.0 - self.alpha_bar[1:]) * (1.0 - self.alpha[1:])
        return torch.cat((torch.zeros(1, dtype=torch.float64), variance.sqrt()))


def quadratic_timesteps(steps: int = 30, max_t: int = 1000) -> list[int]:
    """Sampling levels, descending: ``steps + 1`` values from ``max_t`` to 0, spaced as squares.

    For 30 steps and 1000 levels these are EgoAllo's: the squares of 0 … 30 with the largest replaced by 1000. Other
    counts stretch the same parabola, ``round((i r / steps)²)`` with ``r = floor(sqrt(max_t)) - 1`` (30 for 1000
    levels), moved apart by at least one level.

    Raises:
        InputError: steps outside 1 … max_t.
    """
    if not 1 <= steps <= max_t:
        raise InputError(f"quadratic_timesteps(): steps must lie in 1 … max_t, got steps {steps} and max_t {max_t}")
    reach = max(math.isqrt(max_t) - 1, 1)
    levels = [0]
    for i in range(1, steps):
        # At least one above the level before, and low enough that all that follow still fit below max_t.
        levels.append(min(max(round((i * reach / steps) ** 2), levels[-1] + 1), max_t - (steps - i)))
    levels.append(max_t)
    return levels[::-1]
