"""Normal numbers as a function of their key, against torch's generator, whose numbers depend on what ran before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..workload import Inputs, Results, Workload, drawn_freely, first_rows, ours

FRAMES = 128
CHANNELS = 496
"""Numbers per frame of the state."""
KEY = {"seed": 7, "iteration": 3, "step": 5}
OPERATIONS = 60
"""Per normal number: a quarter of ten Philox rounds, half of a Box-Muller transform."""


def apply(inputs: Inputs, backend: str) -> Results:
    """Ours: the noise of one diffusion step for every sequence."""
    from mgrpo.kernels import philox_normal

    rows = {name: inputs[name] for name in ("condition", "member")}
    return {"noise": philox_normal((FRAMES, CHANNELS), **KEY, **rows, backend=backend)}


def plain(inputs: Inputs) -> Results:
    """What eager code draws with."""
    import torch

    condition = inputs["condition"]
    return {"noise": torch.randn(len(condition), FRAMES, CHANNELS, device=condition.device)}


def exact(inputs: Inputs) -> Results:
    """The same words through a Box-Muller transform in float64, without the operator's polynomials."""
    import torch

    from mgrpo.kernels._noise_key import STREAM_STEP, key_words
    from mgrpo.kernels.rng.reference import row_words

    step_member, condition, *numbers = key_words(
        KEY["seed"], KEY["iteration"], inputs["condition"], inputs["member"], KEY["step"], STREAM_STEP
    )
    words = row_words(step_member, condition, FRAMES * CHANNELS, *numbers)
    pairs: list[Any] = []
    for first, second in (words[:2], words[2:]):
        radius = (-2.0 * (((first >> 8) + 1).double() * 2.0**-24).log()).sqrt()
        angle = (second >> 8).double() * (2.0 * math.pi * 2.0**-24)
        pairs += [radius * angle.cos(), radius * angle.sin()]
    return {"noise": torch.stack(pairs, dim=-1).view(-1, FRAMES, CHANNELS)}


def workloads(device: str, backends: Sequence[str] | None) -> list[Workload]:
    """All sizes: those of the sampler's steps."""
    return [workload(device, backends, count) for count in ((16, 128) if device == "cpu" else (128, 1024))]


def workload(device: str, backends: Sequence[str] | None, sequences: int) -> Workload:
    numbers = sequences * FRAMES * CHANNELS

    def make_inputs(seed: int) -> Inputs:
        import torch

        row = torch.arange(sequences, device=device)
        return {"condition": 1000 * seed + row // 16, "member": row % 16}

    return Workload(
        op="philox_normal",
        name=f"noise_{sequences}",
        title="Normal noise from keys",
        items=numbers,
        item="number",
        size=f"{sequences:,} sequences of {FRAMES} x {CHANNELS}",
        make_inputs=make_inputs,
        implementations=lambda: drawn_freely(ours(device, "philox_normal", apply, backends=backends), plain),
        exact=exact,
        bytes_moved=4 * numbers + 16 * sequences,
        operations=numbers * OPERATIONS,
        device=device,
        tests=("tests/kernels/test_rng.py", "tests/kernels/test_ops.py"),
        rows=lambda inputs, count: first_rows(sequences)(inputs, max(1, count // (FRAMES * CHANNELS))),
    )
