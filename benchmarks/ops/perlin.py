"""Smooth displacement of the head over time: gradient noise, from keys and as code with torch's generator has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..workload import Inputs, Results, Workload, drawn_freely, first_rows, ours

FRAMES = 128
CHANNELS = 3
KEY = {"seed": 7, "iteration": 3}
ALPHA = 0.1
"""Metres."""
LATTICE = 12.0
"""Frames per cell."""
OPERATIONS = 25
"""Per number: its place in a cell, two products with gradients, the blend."""
OPERATIONS_GRADIENT = 25
"""Per gradient: a quarter of ten Philox rounds and the number from its word."""


def apply(inputs: Inputs, backend: str) -> Results:
    """Ours, one octave."""
    from mgrpo.kernels import perlin_noise

    rows = {name: inputs[name] for name in ("condition", "member")}
    return {"noise": perlin_noise(FRAMES, alpha=ALPHA, lattice=LATTICE, **KEY, **rows, backend=backend)}


def plain(inputs: Inputs) -> Results:
    """As usually written: float32, gradients and phases from torch's generator."""
    import torch

    condition = inputs["condition"]
    rows, device = len(condition), condition.device
    gradients = 2.0 * torch.rand(rows, points(), CHANNELS, device=device) - 1.0
    phase = torch.rand(rows, 1, CHANNELS, device=device)
    time = torch.arange(FRAMES, device=device)[None, :, None] / LATTICE + phase
    index = time.floor().long()
    f = time - index
    left = gradients.gather(1, index) * f
    right = gradients.gather(1, index + 1) * (f - 1.0)
    fade = f**3 * (f * (f * 6.0 - 15.0) + 10.0)
    return {"noise": 2.0 * ALPHA * torch.lerp(left, right, fade)}


def exact(inputs: Inputs) -> Results:
    """The reference's float64 sum from the same keys, without its rounding to float32."""
    from mgrpo.kernels.perlin.reference import gradient_noise
    from mgrpo.kernels.rng import STREAM_PERLIN, philox_uniform

    key: dict[str, Any] = {**KEY, **{name: inputs[name] for name in ("condition", "member")}}
    key |= {"stream": STREAM_PERLIN, "backend": "reference"}
    phase = philox_uniform((CHANNELS,), step=1, **key).double()
    gradients = 2.0 * philox_uniform((points(), CHANNELS), step=0, **key).double() - 1.0
    return {"noise": ALPHA * gradient_noise(gradients, phase, FRAMES, LATTICE)}


def points() -> int:
    """Lattice points of a row."""
    from mgrpo.kernels.perlin.reference import lattice_points

    return lattice_points(FRAMES, LATTICE)


def workloads(device: str, backends: Sequence[str] | None) -> list[Workload]:
    """All sizes: a sequence for each condition, and one for each sample of an iteration."""
    return [workload(device, backends, count) for count in ((64, 1024) if device == "cpu" else (1024, 16_384))]


def workload(device: str, backends: Sequence[str] | None, sequences: int) -> Workload:
    frames = sequences * FRAMES

    def make_inputs(seed: int) -> Inputs:
        import torch

        row = torch.arange(sequences, device=device)
        return {"condition": 10_000 * seed + row // 16, "member": row % 16}

    return Workload(
        op="perlin_noise",
        name=f"perlin_{sequences}",
        title="Perlin displacement of the head",
        items=frames,
        item="frame",
        size=f"{sequences:,} sequences of {FRAMES} frames",
        make_inputs=make_inputs,
        implementations=lambda: drawn_freely(ours(device, "perlin_noise", apply, backends=backends), plain),
        exact=exact,
        bytes_moved=4 * frames * CHANNELS + 16 * sequences,
        operations=sequences * CHANNELS * (FRAMES * OPERATIONS + (points() + 1) * OPERATIONS_GRADIENT),
        device=device,
        tests=("tests/kernels/test_perlin.py", "tests/kernels/test_ops.py"),
        rows=lambda inputs, count: first_rows(sequences)(inputs, max(1, count // FRAMES)),
    )
