"""Smooth random displacement over time: batched one-dimensional Perlin noise, seeded by counters."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_integer, check_number
from .._dispatch import resolve
from .._library import call_op
from .._noise_key import STREAM_PERLIN, check_key, key_words
from . import op as _op  # noqa: F401  (registers the operator)
from .reference import GAIN, lattice_points

MAX_OCTAVES = 8
"""Most octaves of the noise."""
_MAX_NUMBERS = 1 << 30


def perlin_noise(
    frames: int,
    *,
    alpha: float,
    lattice: float = 12.0,
    octaves: int = 1,
    seed: int,
    iteration: int,
    condition: Tensor,
    member: Tensor | None = None,
    channels: int = 3,
    backend: str | None = None,
) -> Tensor:
    """Displacement alpha * n(frame) in metres, for the head position of each row (MotionGRPO eq. 16).

    n is gradient noise along time, an independent one per row and axis: gradients are uniform in [-1, 1] at lattice
    points ``lattice`` frames apart, blended by 6 f^5 - 15 f^4 + 10 f^3. Each axis has its own random phase, because the
    noise is 0 at lattice points, which must not fall on the same frames everywhere. n lies in [-1, 1], so ``alpha``
    bounds the displacement of an axis; its root mean square is 0.281 alpha with one octave.

    A row is a function of (seed, iteration, condition, member) alone, whatever the other rows are, and the noise for F
    frames is the beginning of the noise for more frames.

    Args:
        frames: number of frames F >= 1.
        alpha: largest displacement of an axis in metres, >= 0; 0 gives exact zeros.
        lattice: frames per lattice cell, >= 1.
        octaves: 1 to 8; each further octave has cells half as long and half the amplitude. The sum is scaled so that
            ``alpha`` stays the bound.
        seed: 0 <= seed < 2^64.
        iteration: 0 <= iteration < 2^32.
        condition: (N,) int64 in [0, 2^32).
        member: (N,) int64 in [0, 2^16), for noise that differs inside a group; None (the same as zeros): one noise per
            condition, shared by its group.
        channels: number of axes C >= 1. The noise of an axis depends on it.
        backend: see :mod:`mgrpo.kernels`; None chooses. All give the same bits.

    Returns:
        (N, F, C) float32 on the device of ``condition``.

    Raises:
        ValueError, TypeError: an argument has a wrong shape, dtype or value (keys in tensors on a GPU are only read
            under ``MGRPO_DEBUG=1``).
        BackendError: ``backend`` cannot serve the call.
    """
    frames = check_integer("perlin_noise", "frames", frames, minimum=1)
    channels = check_integer("perlin_noise", "channels", channels, minimum=1)
    octaves = check_integer("perlin_noise", "octaves", octaves, minimum=1)
    if octaves > MAX_OCTAVES:
        raise ValueError(f"perlin_noise(): octaves must be <= {MAX_OCTAVES}, got {octaves}")
    check_number("perlin_noise", "alpha", alpha, minimum=0.0)
    check_number("perlin_noise", "lattice", lattice, minimum=1.0)
    finest = lattice_points(frames, float(lattice) / 2.0 ** (octaves - 1)) * channels
    if finest > _MAX_NUMBERS:
        raise ValueError(
            f"perlin_noise(): frames must need at most 2^30 gradients per row, got {frames} frames with {finest}"
        )
    if member is None and isinstance(condition, Tensor):
        member = torch.zeros_like(condition)
    check_key("perlin_noise", seed, iteration, condition, member, 0, STREAM_PERLIN)
    signed_seed = key_words(seed, iteration, condition, member, 0, STREAM_PERLIN)[2]
    chosen = resolve("perlin_noise", backend, condition)
    if alpha == 0:
        return torch.zeros((condition.shape[0], frames, channels), dtype=torch.float32, device=condition.device)
    scale = alpha / sum(GAIN**octave for octave in range(octaves))
    return call_op(
        "perlin_noise",
        condition,
        member,
        frames,
        channels,
        scale,
        float(lattice),
        octaves,
        signed_seed,
        iteration,
        chosen,
    )
