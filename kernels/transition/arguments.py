"""What the functions of a step take: their checks, and how states, noise, scalars and weights reach the operators."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks
from .._checks import STATE_DTYPES, check_device, check_tensor, is_finite
from .._noise_key import MAX_COUNT, NoiseKey
from .._numbers import as_tensor, listed_on, varies
from ..rng import philox_normal


def check_states(function: str, **states: Tensor) -> tuple[int, int, int]:
    """Check dtype, equal shape and device of all states, and return the shape (N, T, D) that they flatten to."""
    first_name, first = next(iter(states.items()))
    for name, state in states.items():
        check_tensor(function, name, state, dtypes=STATE_DTYPES)
        if state.dim() < 2 and state is first:
            raise ValueError(f"{function}(): {name} must have shape (N, T, D) or (N, *), got {tuple(state.shape)}")
        if state.shape != first.shape:
            raise ValueError(
                f"{function}(): {name} must have the shape of {first_name} {tuple(first.shape)}, "
                f"got {tuple(state.shape)}"
            )
        check_device(function, name, state, first_name, first.device)
    if 0 in first.shape[1:]:
        raise ValueError(
            f"{function}(): {first_name} must have no empty axis after the first, got {tuple(first.shape)}"
        )
    return _flat_shape(first)


def check_noisy_states(
    function: str, x_t: Tensor, x0_pred: Tensor, noise: Tensor | NoiseKey | None
) -> tuple[tuple[Tensor, ...], Tensor | None, NoiseKey | None, tuple[int, int, int]]:
    """The states as given, the noise as a tensor or as a key, and the shape (N, T, D)."""
    if noise is None or isinstance(noise, NoiseKey):
        shape = check_states(function, x_t=x_t, x0_pred=x0_pred)
        if noise is not None:
            check_key_rows(function, noise, x_t)
        return (x_t, x0_pred), None, noise, shape
    shape = check_states(function, x_t=x_t, x0_pred=x0_pred, noise=noise)
    return (x_t, x0_pred, noise), noise, None, shape


def check_key_rows(function: str, key: NoiseKey, state: Tensor) -> None:
    """Check that a key has the rows of the states, and enough numbers for each."""
    condition = key.condition
    if condition.shape != state.shape[:1]:
        raise ValueError(
            f"{function}(): noise must be a NoiseKey with N = {state.shape[0]} rows, got {condition.shape[0]}"
        )
    check_device(function, "noise", condition, "the states", state.device)
    if math.prod(state.shape[1:]) > MAX_COUNT:
        raise ValueError(
            f"{function}(): noise must be a tensor for rows of more than 2^30 elements, got a NoiseKey for "
            f"{math.prod(state.shape[1:])}"
        )


def check_step_scalars(
    function: str, like: Tensor, A: float | Tensor, B: float | Tensor, s: float | Tensor, exclusive: bool = False
) -> tuple[float | Tensor, float | Tensor, float | Tensor]:
    """A, B and s >= 0, or > 0 where that is ``exclusive``, as numbers or (N,) tensors."""
    return (
        check_scalar(function, "A", A, like),
        check_scalar(function, "B", B, like),
        check_scalar(function, "s", s, like, minimum=0.0, exclusive=exclusive),
    )


def used_noise(
    function: str, noise: Tensor | None, key: NoiseKey | None, s: float | Tensor
) -> tuple[Tensor | None, NoiseKey | None]:
    """Nothing where s is the number 0: then no noise is looked at."""
    if not isinstance(s, Tensor) and s == 0.0:
        return None, None
    if noise is None and key is None:
        raise ValueError(f"{function}(): noise must be a tensor or a NoiseKey unless s is the number 0, got None")
    return noise, key


def drawn_noise(noise: Tensor | None, key: NoiseKey | None, shape: tuple[int, int, int]) -> Tensor | None:
    """The noise as numbers, for the reference."""
    if key is None:
        return noise
    return philox_normal(
        shape[1:],
        seed=key.seed,
        iteration=key.iteration,
        condition=key.condition,
        member=key.member,
        step=key.step,
        stream=key.stream,
        backend="reference",
    )


def noise_arguments(noise: Tensor | None, key: NoiseKey | None, shape: tuple[int, int, int]) -> tuple[object, ...]:
    """(noise, step_member, condition, seed, iteration, stream) of the operators."""
    if key is not None:
        return None, *key.words
    return None if noise is None else flattened(noise, shape), None, None, 0, 0, 0


def scalar_arguments(*values: float | Tensor) -> tuple[float | Tensor | None, ...]:
    """All numbers (0 where there is one per row), then all (N,) float64 tensors (None where there is a number)."""
    numbers = [0.0 if isinstance(value, Tensor) else value for value in values]
    return *numbers, *(value.double() if isinstance(value, Tensor) else None for value in values)


def tensors_among(*values: object) -> tuple[Tensor, ...]:
    """Those of the values that are tensors."""
    return tuple(value for value in values if isinstance(value, Tensor))


def log_std(s: float | Tensor, like: Tensor) -> Tensor:
    """(N,) float64 ln s."""
    return s.double().log() if isinstance(s, Tensor) else torch.full_like(like, math.log(s))


def _flat_shape(state: Tensor) -> tuple[int, int, int]:
    return state.shape[0], math.prod(state.shape[1:-1]), state.shape[-1]


def flattened(state: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """A state as (N, T, D)."""
    return state if state.dim() == 3 else state.reshape(shape)


def check_scalar(
    function: str, name: str, value: float | Tensor, like: Tensor, minimum: float = -math.inf, exclusive: bool = False
) -> float | Tensor:
    """A finite float, or an (N,) tensor on the states' device, which under torch.compile a number that changes from
    call to call becomes."""
    if isinstance(value, Tensor):
        if value.dim() == 0:
            value = value.expand(like.shape[0])
        check_tensor(function, name, value, dtypes=STATE_DTYPES)
        if value.shape != like.shape[:1]:
            raise ValueError(
                f"{function}(): {name} must be a number or have shape (N,) with N = {like.shape[0]}, "
                f"got {tuple(value.shape)}"
            )
        check_device(function, name, value, "the states", like.device)
        if minimum > -math.inf and _checks.readable(value):
            wrong = ~(torch.isfinite(value) & (value > minimum if exclusive else value >= minimum))
            if bool(wrong.any()):
                row = int(wrong.nonzero()[0, 0])
                raise ValueError(_limit(function, name, exclusive, minimum, f"{float(value[row])!r} in row {row}"))
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{function}(): {name} must be a number or a torch.Tensor, got {type(value).__name__}")
    if not is_finite(value):
        raise ValueError(f"{function}(): {name} must be finite, got {value!r}")
    if value < minimum or (exclusive and value == minimum):
        raise ValueError(_limit(function, name, exclusive, minimum, repr(value)))
    value = float(value)
    # 0 stays a number: of s it says that there is no noise.
    return as_tensor(value, like.shape[:1], like) if value != 0.0 and varies(value) else value


def check_std(function: str, s: float | Tensor, like: Tensor) -> float | Tensor:
    """A step's standard deviation, which must be above zero; see :func:`check_scalar`."""
    return check_scalar(function, "s", s, like, minimum=0.0, exclusive=True)


def _limit(function: str, name: str, exclusive: bool, minimum: float, got: str) -> str:
    note = " (a step without noise is not an action: leave it out)" if exclusive else ""
    return f"{function}(): {name} must be {'>' if exclusive else '>='} {minimum:g}{note}, got {got}"


def check_weighting(
    function: str,
    state: Tensor,
    shape: tuple[int, int, int],
    mask: Tensor | None,
    channel_weights: Tensor | Sequence[float] | None,
) -> tuple[Tensor | None, Tensor | None]:
    """The mask as (N, T) bool of the flattened shape, the weights as a (D,) tensor on the states' device."""
    if mask is not None:
        check_tensor(function, "mask", mask, dtypes=(torch.bool,))
        if mask.shape != state.shape[:-1]:
            raise ValueError(
                f"{function}(): mask must have shape (N, T), the states' without the last axis "
                f"{tuple(state.shape[:-1])}, got {tuple(mask.shape)}"
            )
        check_device(function, "mask", mask, "the states", state.device)
        mask = mask.reshape(shape[:2])
    if channel_weights is None:
        return mask, None
    listed = None if isinstance(channel_weights, Tensor) else [float(w) for w in channel_weights]
    if listed is not None:
        channel_weights = torch.tensor(listed, dtype=torch.float64)
    else:
        check_tensor(function, "channel_weights", channel_weights, dtypes=STATE_DTYPES)
    channel_weights = channel_weights.detach()
    if channel_weights.shape != (shape[2],):
        raise ValueError(
            f"{function}(): channel_weights must have shape (D,) with D = {shape[2]}, "
            f"got {tuple(channel_weights.shape)}"
        )
    if _checks.readable(channel_weights):
        smallest, total = float(channel_weights.min()), float(channel_weights.double().sum())
        if not (math.isfinite(total) and total > 0 and smallest >= 0):
            raise ValueError(
                f"{function}(): channel_weights must be finite, >= 0 and not all 0, got a minimum of {smallest:g} and "
                f"a sum of {total:g}"
            )
    if listed is not None:
        channel_weights = listed_on(listed, state.device)
    else:
        check_device(function, "channel_weights", channel_weights, "the states", state.device)
    return mask, channel_weights.double()


def spread(value: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """A per-row tensor as (N, 1, 1) of ``dtype``; a number as it is."""
    return value.to(dtype)[:, None, None] if isinstance(value, Tensor) else value


def as_double(value: float | Tensor) -> float | Tensor:
    """A per-row tensor in float64; a number as it is."""
    return value.double() if isinstance(value, Tensor) else value
