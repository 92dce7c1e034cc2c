"""One-dimensional gradient noise at frame times, in plain torch operations that are each rounded on their own.

Every other backend gives the same bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..rng import STREAM_PERLIN, philox_uniform

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
    time = torch.arange(frames, dtype=torch.float64, device=phase.device)
    # Divided by a tensor: on a GPU torch divides by a number through its reciprocal, which rounds differently.
    time = (time / torch.full_like(time, cell))[None, :, None] + phase[:, None, :]
    index = time.floor()
    f = time - index
    index = index.long()
    left = torch.gather(gradients, 1, index) * f
    right = torch.gather(gradients, 1, index + 1) * (f - 1.0)
    return (left + fade(f) * (right - left)) * (1.0 / PEAK)


def perlin_noise(
    condition: Tensor,
    member: Tensor,
    frames: int,
    channels: int,
    scale: float,
    lattice: float,
    octaves: int,
    seed: int,
    iteration: int,
) -> Tensor:
    """(N, frames, channels) float32; ``scale`` is alpha over the sum of amplitudes, a negative seed stands for seed +
    2^64. See :func:`mgrpo.kernels.perlin_noise`."""
    keys = {
        "seed": seed % (1 << 64),
        "iteration": iteration,
        "condition": condition,
        "member": member,
        "stream": STREAM_PERLIN,
        "backend": "reference",
    }
    total = torch.zeros((), dtype=torch.float64, device=condition.device)
    for octave in range(octaves):
        cell = lattice / 2.0**octave
        phase = philox_uniform((channels,), step=2 * octave + 1, **keys).double()
        count = lattice_points(frames, cell)
        gradients = philox_uniform((count, channels), step=2 * octave, **keys).double() * 2.0 - 1.0
        total = gradient_noise(gradients, phase, frames, cell) * GAIN**octave + total
    return (total * scale).to(torch.float32)


def lattice_points(frames: int, cell: float) -> int:
    """Lattice points that ``frames`` frames need: frame F - 1 lies before point (F - 1) / cell + 1 (phase < 1), and its
    cell ends one point later."""
    return math.floor((frames - 1) / cell) + 3
