"""Counter-based random numbers: Philox4x32-10, the same bits on every backend, batch split and machine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._checks import check_integer
from .._dispatch import resolve
from .._noise_key import (
    MAX_COUNT,
    STREAM_DATA,
    STREAM_INIT,
    STREAM_PERLIN,
    STREAM_STEP,
    STREAM_TRAIN,
    NoiseKey,
    check_key,
    key_words,
)
from . import op as _op  # noqa: F401  (registers the operators)

__all__ = [
    "STREAM_DATA",
    "STREAM_INIT",
    "STREAM_PERLIN",
    "STREAM_STEP",
    "STREAM_TRAIN",
    "NoiseKey",
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
    check_key(function, seed, iteration, condition, member, step, stream)
    step_member, condition, *numbers = key_words(seed, iteration, condition, member, step, stream)
    chosen = resolve(function, backend, step_member, condition)
    values = getattr(torch.ops.mgrpo, function)(step_member, condition, count, *numbers, chosen)
    return values.view(condition.shape[0], *sizes)
