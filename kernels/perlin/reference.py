"""One-dimensional gradient noise evaluated at frame times, in plain torch operations."""

from __future__ import annotations

import torch
from torch import Tensor

PEAK = 0.5
"""Largest value of one-dimensional gradient noise with gradients in [-1, 1]: half way between gradients +1 and -1."""

GAIN = 0.5
"""Amplitude of an octave over that of the octave below it, whose cells are twice as long."""


def fade(f: Tensor) -> Tensor:
    """6 f^5 - 15 f^4 + 10 f^3: from 0 to 1 with zero first and second derivative at both ends."""
    return f * f * f * (f * (f * 6.0 - 15.0) + 10.0)


def gradient_noise(gradients: Tensor, phase: Tensor, frames: int, cell: float) -> Tensor:
    """Noise of one octave with values in [-1, 1].

    Args:
        gradients: (N, points, C) float64 in [-1, 1], points > (frames - 1) / cell + 2.
        phase: (N, C) float64 in [0, 1), position of frame 0 in its cell.
        frames: number of frames.
        cell: frames per lattice cell.

    Returns:
        (N, frames, C) float64.
    """
    time = torch.arange(frames, dtype=torch.float64, device=phase.device)[None, :, None] / cell + phase[:, None, :]
    index = time.floor()
    f = time - index
    index = index.long()
    left = torch.gather(gradients, 1, index) * f
    right = torch.gather(gradients, 1, index + 1) * (f - 1.0)
    return (left + fade(f) * (right - left)) * (1.0 / PEAK)
