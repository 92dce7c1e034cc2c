"""Counter-based random numbers: Philox4x32-10, the same bits on every backend, batch split and machine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._checks import check_integer, check_tensor, debug_enabled
from .._dispatch import resolve
from . import op as _op  # noqa: F401  (registers the operators)
from .reference import (
    MAX_COUNT,
    MEMBER_BITS,
    STEP_BITS,
    STREAM_COUNT,
    STREAM_DATA,
    STREAM_INIT,
    STREAM_PERLIN,
    STREAM_STEP,
    STREAM_TRAIN,
)

__all__ = [
    "STREAM_DATA",
    "STREAM_INIT",
    "STREAM_PERLIN",
    "STREAM_STEP",
    "STREAM_TRAIN",
    "philox_normal",
    "philox_uniform",
]


def philox_normal(
    shape: Sequence[int],
    *,
    seed: int,
    iteration: int,
    condition: Tensor,
    member: Tensor,
    step: int | Tensor,
    stream: int = STREAM_STEP,
    backend: str | None = None,
) -> Tensor:
    """Standard normal numbers, one array of ``shape`` per row, as a pure function of the row's key.

    Row i depends on (seed, stream, iteration, condition[i], member[i], step) alone: not on the other rows, on their
    order or number, on threads, device or backend. Element e (in row-major order of ``shape``) does not depend on the
    number of elements, so a shorter array is the beginning of a longer one.

    Args:
        shape: sizes of one row's array; () gives one number per row. At most 2^30 elements.
        seed: 0 <= seed < 2^64, the 64-bit key.
        iteration: 0 <= iteration < 2^32.
        condition: (N,) int64 in [0, 2^32).
        member: (N,) int64 in [0, 2^16), index inside the group.
        step: diffusion step in [0, 2^16), or an (N,) int64 tensor with one per row.
        stream: 0 to 15, separates uses of the same keys: ``STREAM_STEP``, ``STREAM_INIT``, ``STREAM_PERLIN``,
            ``STREAM_TRAIN``, ``STREAM_DATA``.
        backend: see :mod:`mgrpo.kernels`; None chooses. All give the same bits.

    Returns:
        (N, *shape) float32 on the device of ``condition``. The largest magnitude is sqrt(48 ln 2) = 5.77.

    Raises:
        TypeError, ValueError: wrong type, shape or dtype; a key outside its range (for tensors on a GPU only under
            ``MGRPO_DEBUG=1``, since the check reads values; there the extra bits spill into other keys).
        BackendError: ``backend`` cannot serve the call.
    """
    return _draw("philox_normal", shape, seed, iteration, condition, member, step, stream, backend)


def philox_uniform(
    shape: Sequence[int],
    *,
    seed: int,
    iteration: int,
    condition: Tensor,
    member: Tensor,
    step: int | Tensor,
    stream: int = STREAM_STEP,
    backend: str | None = None,
) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2^-24; arguments, properties and errors as :func:`philox_normal`.

    The same key gives the same underlying words to both functions: use one of them per key.
    """
    return _draw("philox_uniform", shape, seed, iteration, condition, member, step, stream, backend)


def _draw(
    function: str,
    shape: Sequence[int],
    seed: int,
    iteration: int,
    condition: Tensor,
    member: Tensor,
    step: int | Tensor,
    stream: int,
    backend: str | None,
) -> Tensor:
    if isinstance(shape, int):
        raise TypeError(f"{function}(): shape must be a sequence of ints, got int; write ({shape},)")
    sizes = tuple(check_integer(function, "shape", size, minimum=0) for size in shape)
    count = 1
    for size in sizes:
        count *= size
    if count > MAX_COUNT:
        raise ValueError(f"{function}(): shape must have at most 2^30 elements, got {sizes} with {count}")
    seed = _check_key(function, "seed", seed, 64)
    iteration = _check_key(function, "iteration", iteration, 32)
    stream = _check_key(function, "stream", stream, STREAM_COUNT.bit_length() - 1)
    rows: dict[str, int] = {}
    _check_key_tensor(function, "condition", condition, 32, rows)
    _check_key_tensor(function, "member", member, MEMBER_BITS, rows, condition.device)
    if isinstance(step, Tensor):
        _check_key_tensor(function, "step", step, STEP_BITS, rows, condition.device)
    else:
        step = _check_key(function, "step", step, STEP_BITS)
    step_member = (member << STEP_BITS) | step
    chosen = resolve(function, backend, step_member, condition)
    # The operator's schema has signed 64-bit integers.
    signed_seed = seed - (1 << 64) if seed >= 1 << 63 else seed
    operator = getattr(torch.ops.mgrpo, function)
    values = operator(step_member, condition, count, signed_seed, iteration, stream, chosen)
    return values.view(condition.shape[0], *sizes)


def _check_key(function: str, name: str, value: object, bits: int) -> int:
    number = check_integer(function, name, value)
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{function}(): {name} must be in [0, 2^{bits}), got {number}")
    return number


def _check_key_tensor(
    function: str, name: str, value: object, bits: int, rows: dict[str, int], device: torch.device | None = None
) -> None:
    check_tensor(function, name, value, ("N",), dtypes=(torch.int64,), sizes=rows)
    if device is not None and value.device != device:
        raise ValueError(f"{function}(): {name} must be on {device} like condition, got {value.device}")
    if torch.compiler.is_compiling() or not (value.device.type == "cpu" or debug_enabled()):
        return
    outside = (value < 0) | (value >= 1 << bits)
    if bool(outside.any()):
        first = int(outside.nonzero()[0, 0])
        raise ValueError(f"{function}(): {name} must be in [0, 2^{bits}), got {int(value[first])} in row {first}")
