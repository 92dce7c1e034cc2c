"""The sampler's step and its log-probability: streams of numbers, bound by memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from ..bodies import normal
from ..workload import (
    COMPILED,
    PLAIN,
    REFERENCE,
    Implementation,
    Inputs,
    Results,
    Workload,
    exact_call,
    first_rows,
    ours,
    timed_call,
)

FRAMES = 128
CHANNELS = 496
"""Numbers per frame of the state."""
SCALARS = {"A": 0.8, "B": 0.15, "s": 0.1}
ROTATIONS = {"first_channel": 16, "matrices": 51}
"""Where the state holds its rotations: 21 of the body and 30 of the hands."""
PHILOX_OPERATIONS = 60
"""Per normal number: a quarter of ten Philox rounds, half of a Box-Muller transform."""
PROJECTION_OPERATIONS = 934


def step(inputs: Inputs, backend: str) -> Results:
    """One step, with the noise given."""
    from mgrpo.kernels import sde_step

    return {"x_prev": sde_step(inputs["x_t"], inputs["x0_pred"], **SCALARS, noise=inputs["noise"], backend=backend)}


def noisy_step(inputs: Inputs, backend: str) -> Results:
    """One step that draws its noise from the counter."""
    from mgrpo.kernels import sde_step

    return {"x_prev": sde_step(inputs["x_t"], inputs["x0_pred"], **SCALARS, noise=_key(inputs), backend=backend)}


def step_log_prob(inputs: Inputs, backend: str) -> Results:
    """One step, with the noise given, and the log-probability of what it drew."""
    return _with_log_prob(inputs, inputs["noise"], backend)


def noisy_step_log_prob(inputs: Inputs, backend: str) -> Results:
    """One step that draws its noise from the counter, and the log-probability of what it drew."""
    return _with_log_prob(inputs, _key(inputs), backend)


def _with_log_prob(inputs: Inputs, noise: Any, backend: str) -> Results:
    from mgrpo.kernels import sde_step

    return sde_step(
        inputs["x_t"], inputs["x0_pred"], **SCALARS, noise=noise, return_log_prob=True, backend=backend
    )._asdict()


def with_randn(apply: Any) -> Any:
    """The step that is given its noise, with noise from torch's generator: what eager code does."""

    def draw(inputs: Inputs, backend: str) -> Results:
        import torch

        return apply({**inputs, "noise": torch.randn_like(inputs["x_t"])}, backend)

    return draw


EAGER = {noisy_step: with_randn(step), noisy_step_log_prob: with_randn(step_log_prob)}
"""How eager torch does what ours does with a key."""


def projected_step(inputs: Inputs, backend: str) -> Results:
    """Projection of the predicted rotations, then one step."""
    from mgrpo.kernels import projected_sde_step

    x_prev, x0_pred = projected_sde_step(
        inputs["x_t"], inputs["x0_pred"], **SCALARS, noise=inputs["noise"], **ROTATIONS, backend=backend
    )
    return {"x_prev": x_prev, "x0_pred": x0_pred}


def log_prob(inputs: Inputs, backend: str) -> Results:
    """Log-probability of a given transition."""
    from mgrpo.kernels import sde_log_prob

    return {"log_prob": sde_log_prob(inputs["x_prev"], inputs["x_t"], inputs["x0_pred"], **SCALARS, backend=backend)}


def log_ratio(inputs: Inputs, backend: str) -> Results:
    """The log-ratio of two policies in innovations form: what an update differentiates."""
    from mgrpo.kernels import sde_log_ratio

    scalars = {name: SCALARS[name] for name in ("B", "s")}
    return {
        "log_ratio": sde_log_ratio(inputs["x0_pred"], inputs["x0_old"], inputs["noise"], **scalars, backend=backend)
    }


def plain_log_prob(inputs: Inputs, backend: str = "reference") -> Results:
    """The density as policy-gradient trainers of diffusion models write it: a mean, a normal density of each number
    around it, their mean."""
    mean = SCALARS["A"] * inputs["x_t"] + SCALARS["B"] * inputs["x0_pred"]
    return {"log_prob": _plain_density(inputs["x_prev"], mean)}


def plain_step_log_prob(inputs: Inputs, backend: str = "reference") -> Results:
    """The step in the same form: the density is that of the number drawn, not of the noise that drew it."""
    mean = SCALARS["A"] * inputs["x_t"] + SCALARS["B"] * inputs["x0_pred"]
    x_prev = mean + SCALARS["s"] * inputs["noise"]
    return {"x_prev": x_prev, "log_prob": _plain_density(x_prev, mean)}


def _plain_density(x_prev: Any, mean: Any) -> Any:
    s = SCALARS["s"]
    density = -((x_prev - mean) ** 2) / (2 * s**2) - math.log(s) - math.log(math.sqrt(2 * math.pi))
    return density.mean(dim=tuple(range(1, density.ndim)))


PLAIN_FORMS = {
    log_prob: plain_log_prob,
    step_log_prob: plain_step_log_prob,
    noisy_step_log_prob: with_randn(plain_step_log_prob),
}
"""What is usually written instead: the reference backend takes the density of a step from its noise, in half as many
operations."""


def _timed(apply: Any, leaves: Sequence[str], inputs: Inputs) -> Any:
    return timed_call(apply, inputs, leaves)


def _key(inputs: Inputs) -> Any:
    from mgrpo.kernels import NoiseKey

    return NoiseKey(seed=7, iteration=3, condition=inputs["condition"], member=inputs["member"], step=5)


def workloads(device: str, backends: Sequence[str] | None) -> list[Workload]:
    """All sizes."""
    small, large = (16, 128) if device == "cpu" else (128, 1024)
    make = partial(workload, device, backends)
    given, drawn = ("x_t", "x0_pred", "noise"), ("x_t", "x0_pred")
    return [
        make("sde_step", "SDE step and log-prob, noise given", step_log_prob, small, given, moved=4),
        make("sde_step", "SDE step and log-prob, noise given", step_log_prob, large, given, moved=4),
        make("sde_step", "SDE step and log-prob, with its noise", noisy_step_log_prob, small, drawn, moved=3),
        make("sde_step", "SDE step and log-prob, with its noise", noisy_step_log_prob, large, drawn, moved=3),
        make("sde_step", "SDE step, noise given", step, large, given, moved=4),
        make("sde_step", "SDE step, with its noise", noisy_step, large, drawn, moved=3),
        make(
            "projected_sde_step", "Projection and SDE step", projected_step, large, given,
            moved=5, operations=PROJECTION_OPERATIONS * ROTATIONS["matrices"] / CHANNELS,
        ),
        make("sde_log_prob", "Log-prob", log_prob, large, ("x_prev", "x_t", "x0_pred"), moved=3),
        make(
            "sde_log_prob", "Log-prob, forward + backward", log_prob, large, ("x_prev", "x_t", "x0_pred"),
            moved=6, gradient="log_prob",
        ),
        make(
            "sde_log_ratio", "Log-ratio, forward + backward", log_ratio, large, ("x0_pred", "x0_old", "noise"),
            moved=7, gradient="log_ratio",
        ),
    ]  # fmt: skip


def workload(
    device: str,
    backends: Sequence[str] | None,
    op: str,
    title: str,
    apply: Any,
    sequences: int,
    states: tuple[str, ...],
    *,
    moved: int,
    operations: float = 5.0,
    gradient: str = "",
) -> Workload:
    """``moved`` counts arrays of states that must be read or written at least."""
    leaves = ("x0_pred",) if gradient else ()
    noisy = apply in EAGER
    frames = sequences * FRAMES

    def make_inputs(seed: int) -> Inputs:
        import torch

        inputs: dict[str, Any] = {
            name: normal((sequences, FRAMES, CHANNELS), 100 * number + seed, device)
            for number, name in enumerate(states)
        }
        if gradient == "log_ratio":
            # Of the size that one update changes a prediction by.
            inputs["x0_old"] = inputs["x0_pred"] + 1e-3 * inputs["x0_old"]
        if gradient:
            inputs[f"grad_{gradient}"] = normal((sequences,), 77 + seed, device)
        if noisy:
            row = torch.arange(sequences, device=device)
            inputs |= {"condition": row // 16, "member": row % 16}
        return inputs

    def implementations() -> list[Implementation]:
        found = ours(device, op, apply, leaves=leaves, backends=backends)
        if plain := PLAIN_FORMS.get(apply):
            prepare = partial(_timed, partial(plain, backend="reference"), leaves)
            found.append(Implementation(PLAIN, "reference", prepare, (lambda raw: {}) if noisy else (lambda raw: raw)))
        if not noisy:
            return found

        def eager(inputs: Inputs) -> Any:
            return timed_call(partial(EAGER[apply], backend="reference"), inputs)

        def compiled(inputs: Inputs) -> Any:
            import torch

            return timed_call(torch.compile(partial(EAGER[apply], backend="reference"), dynamic=False), inputs)

        # Eager code draws with torch.randn, whose numbers are others: nothing to compare.
        instead = {REFERENCE: eager, COMPILED: compiled}
        return [
            Implementation(one.name, one.kind, instead[one.name], lambda raw: {}) if one.name in instead else one
            for one in found
        ]

    name = apply.__name__
    return Workload(
        op=op,
        name=f"{name if name.startswith('sde') else 'sde_' + name}_{sequences}{'_backward' if gradient else ''}",
        title=title,
        items=frames,
        item="frame",
        size=f"{sequences:,} sequences of {FRAMES} x {CHANNELS}",
        make_inputs=make_inputs,
        implementations=implementations,
        exact=exact_call(apply, leaves),
        bytes_moved=4 * frames * CHANNELS * moved,
        operations=int(frames * CHANNELS * (operations + PHILOX_OPERATIONS * noisy)),
        gradient=bool(gradient),
        device=device,
        tests=("tests/kernels/test_transition.py", "tests/kernels/test_rng.py", "tests/kernels/test_ops.py"),
        rows=first_rows(sequences),
    )
