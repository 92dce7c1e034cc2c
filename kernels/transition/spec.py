"""Cases of the transitions: given, drawn and no noise; numbers and a value per row; masks, weights, other layouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .._noise_key import NoiseKey
from .._spec import Case, OpSpec, Tolerance
from . import projected_sde_step, sde_kl, sde_log_prob, sde_log_ratio, sde_step

_NUMBERS = {"A": 0.8, "B": 0.35, "s": 0.3}

# Not all 0, and zeros among them: such a channel is not looked at.
_WEIGHTS = (1.0, 0.0, 0.5, 2.0, 0.25, 0.0)

_TOLERANCES = {
    torch.float32: Tolerance(2e-6, 5e-6),
    torch.float64: Tolerance(1e-13, 1e-12),
    # The result is computed in float32 from the rounded states; a gradient has its state's dtype.
    torch.bfloat16: Tolerance(2e-6, 8e-3),
    torch.float16: Tolerance(2e-6, 1e-3),
}


def _make_inputs(
    states: int, constants: int = 0
) -> Callable[[Case, torch.dtype, torch.device, int], tuple[Tensor, ...]]:
    """``states`` states of the case's shape, and ``constants`` without a gradient; the last one is each row's condition
    where the noise is drawn; then the mask."""

    def make(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        shape = case.sizes["shape"]
        made = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(states)]
        if "matrices" in case.options:
            # Plus an identity: of a random matrix the nearest rotation may be ill-conditioned.
            first, matrices = case.options["first_channel"], case.options["matrices"]
            made[1][..., first : first + 9 * matrices] += 8.0 * torch.eye(3).flatten().repeat(matrices)
        made = [x.to(dtype) for x in made]
        # As integers, which nobody differentiates; see _constant.
        made += [torch.randint(-96, 97, shape, generator=generator) for _ in range(constants)]
        if case.sizes.get("drawn"):
            made[-1] = torch.randint(0, 2**32, shape[:1], generator=generator)
        if case.sizes.get("masked"):
            lengths = torch.randint(1, shape[1] + 1, shape[:1], generator=generator)
            made.append(torch.arange(shape[1]) < lengths[:, None])
        return tuple(x.to(device) for x in made)

    return make


def _scalars(case: Case, like: Tensor, names: str) -> list[float | Tensor]:
    """Numbers, or one of each per row, which follow from the row's number alone."""
    if not case.sizes.get("per_row"):
        return [_NUMBERS[name] for name in names]
    row = torch.arange(like.shape[0], device=like.device, dtype=torch.float64)
    # The same in every row, so that a row can be taken out of the batch.
    return [_NUMBERS[name] + 0 * row for name in names]


def _options(case: Case, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    options = dict(case.options)
    if case.sizes.get("masked"):
        options["mask"] = inputs[-1]
    if case.sizes.get("weighted"):
        channels = case.sizes["shape"][-1]
        repeated = _WEIGHTS * math.ceil(channels / len(_WEIGHTS))
        options["channel_weights"] = torch.tensor(repeated[:channels], device=inputs[0].device)
    return options


def _row_axes(inputs: int) -> Callable[[Case], tuple[int | None, ...]]:
    """Of that many inputs, the last one keys where the noise is drawn, and a mask."""

    def axes(case: Case) -> tuple[int, ...]:
        own = len(case.sizes["shape"]) - 1
        drawn = bool(case.sizes.get("drawn"))
        return (*[own] * (inputs - drawn), *[0] * drawn, *[1] * bool(case.sizes.get("masked")))

    return axes


def _constant(numbers: Tensor, like: Tensor) -> Tensor:
    """Numbers of at most seven digits: exact in every dtype."""
    return (numbers / 32.0).to(like.dtype)


def _noise(case: Case, given: Tensor) -> Tensor | NoiseKey:
    if not case.sizes.get("drawn"):
        return given
    return NoiseKey(seed=2**63 + 5, iteration=7, condition=given, member=given & 0xFFFF, step=3)


def _call_step(case: Case, *inputs: Tensor, backend: str | None = None) -> tuple[Tensor, ...]:
    x_t, x0_pred, noise = inputs[:3]
    result = sde_step(
        x_t, x0_pred, *_scalars(case, x_t, "ABs"), _noise(case, noise), backend=backend, **_options(case, inputs)
    )
    return tuple(result) if case.options.get("return_log_prob") else (result,)


def _call_projected(case: Case, *inputs: Tensor, backend: str | None = None) -> tuple[Tensor, ...]:
    x_t, x0_pred, noise = inputs
    step = projected_sde_step(
        x_t, x0_pred, *_scalars(case, x_t, "ABs"), _noise(case, noise), backend=backend,
        **case.options,
    )  # fmt: skip
    return tuple(step)


def _call_log_prob(case: Case, *inputs: Tensor, backend: str | None = None) -> tuple[Tensor]:
    x_prev, x_t, x0_pred = inputs[:3]
    scalars = _scalars(case, x_t, "ABs")
    return (sde_log_prob(x_prev, x_t, x0_pred, *scalars, backend=backend, **_options(case, inputs)),)


def _call_log_ratio(case: Case, *inputs: Tensor, backend: str | None = None) -> tuple[Tensor]:
    x0_pred, old, noise = inputs[:3]
    old = _constant(old, x0_pred)
    noise = _noise(case, noise if case.sizes.get("drawn") else _constant(noise, x0_pred))
    scalars, options = _scalars(case, x0_pred, "Bs"), _options(case, inputs)
    return (sde_log_ratio(x0_pred, old, noise, *scalars, backend=backend, **options),)


def _call_kl(case: Case, *inputs: Tensor, backend: str | None = None) -> tuple[Tensor]:
    x0_pred, other = inputs[0], _constant(inputs[1], inputs[0])
    return (sde_kl(x0_pred, other, *_scalars(case, x0_pred, "Bs"), backend=backend, **_options(case, inputs)),)


def _bytes_moved(reads: int, writes: int) -> Callable[[Case, torch.dtype], int]:
    def moved(case: Case, dtype: torch.dtype) -> int:
        read = reads - bool(case.sizes.get("drawn"))
        return math.prod(case.sizes["shape"]) * (read * dtype.itemsize + writes * max(dtype.itemsize, 4))

    return moved


def _shape(*shape: int, **sizes: Any) -> Mapping[str, Any]:
    return {"shape": shape, **sizes}


_SUM = {"reduction": "sum"}
_WITH_LOG_PROB = {"return_log_prob": True}
_MATRICES = {"first_channel": 2, "matrices": 3}

_REDUCED = (
    Case("frames", _shape(5, 7, 6)),
    Case("per_row_sum", _shape(4, 3, 5, per_row=True), _SUM),
    Case("masked", _shape(6, 9, 5, masked=True)),
    Case("weighted", _shape(4, 3, 13, weighted=True)),
    Case("masked_weighted_sum", _shape(3, 8, 7, masked=True, weighted=True), _SUM),
    Case("more_axes", _shape(3, 4, 2, 5)),
    Case("flat", _shape(3, 517)),
    Case("long", _shape(2, 50, 226, masked=True)),
    Case("empty", _shape(0, 4, 5)),
)
_DRAWN = (
    Case("drawn", _shape(4, 5, 9, drawn=True)),
    Case("drawn_masked_weighted", _shape(3, 6, 7, drawn=True, masked=True, weighted=True)),
)


SPECS = (
    OpSpec(
        name="sde_step",
        cases=(
            Case("frames", _shape(5, 7, 6)),
            Case("per_row", _shape(4, 3, 5, per_row=True)),
            Case("flat", _shape(3, 517), _WITH_LOG_PROB),
            Case("drawn", _shape(4, 5, 9, drawn=True)),
            Case("with_log_prob", _shape(4, 5, 7), _WITH_LOG_PROB),
            Case("drawn_with_log_prob", _shape(3, 50, 45, drawn=True, per_row=True), _WITH_LOG_PROB | _SUM),
            Case("log_prob_masked_weighted", _shape(3, 6, 7, masked=True, weighted=True), _WITH_LOG_PROB),
            Case("long", _shape(2, 50, 226, masked=True), _WITH_LOG_PROB),
            Case("empty", _shape(0, 4, 5)),
        ),
        make_inputs=_make_inputs(3),
        call=_call_step,
        tolerances=_TOLERANCES,
        bytes_moved=_bytes_moved(3, 1),
        row_axes=_row_axes(3),
    ),
    OpSpec(
        name="projected_sde_step",
        cases=(
            Case("frames", _shape(3, 5, 31), _MATRICES),
            Case("per_row_no_det_fix", _shape(2, 9, 36, per_row=True), _MATRICES | {"fix_det": False}),
            Case("drawn", _shape(2, 11, 30, drawn=True), _MATRICES),
            Case("flat", _shape(3, 29), _MATRICES),
            Case("body", _shape(1, 40, 226), {"first_channel": 16, "matrices": 21}),
            Case("empty", _shape(0, 4, 30), _MATRICES),
        ),
        make_inputs=_make_inputs(3),
        call=_call_projected,
        # Rotations near 1, states near 8: the projection's own tolerances, and bfloat16's where the prediction is made.
        tolerances={
            torch.float32: Tolerance(3e-6, 3e-5),
            torch.float64: Tolerance(1e-13, 1e-11),
            torch.bfloat16: Tolerance(3e-6, 8e-3),
            torch.float16: Tolerance(3e-6, 1e-3),
        },
        bytes_moved=_bytes_moved(3, 2),
        row_axes=_row_axes(3),
    ),
    OpSpec(
        name="sde_log_prob",
        cases=_REDUCED,
        make_inputs=_make_inputs(3),
        call=_call_log_prob,
        tolerances=_TOLERANCES,
        bytes_moved=_bytes_moved(3, 0),
        row_axes=_row_axes(3),
    ),
    OpSpec(
        name="sde_log_ratio",
        cases=(*_REDUCED, *_DRAWN, Case("linear", _shape(4, 5, 6, per_row=True), {"drop_quadratic": True})),
        make_inputs=_make_inputs(1, 2),
        call=_call_log_ratio,
        tolerances=_TOLERANCES,
        bytes_moved=_bytes_moved(3, 0),
        row_axes=_row_axes(3),
    ),
    OpSpec(
        name="sde_kl",
        cases=_REDUCED,
        make_inputs=_make_inputs(1, 1),
        call=_call_kl,
        tolerances=_TOLERANCES,
        bytes_moved=_bytes_moved(2, 0),
        row_axes=_row_axes(2),
    ),
)
