"""The key of a batch of random rows: one place for its layout and checks, for every op that draws."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import _checks
from ._checks import check_device, check_integer, check_tensor

STREAM_STEP = 0
"""Stream of the noise of sampler steps."""
STREAM_INIT = 1
"""Stream of first latents."""
STREAM_PERLIN = 2
"""Stream of the perturbation of head paths."""
STREAM_TRAIN = 3
"""Stream of levels, noise and dropout in the prior's training."""
STREAM_DATA = 4
"""Stream of the choice and augmentation of windows."""

STREAM_BITS = 4
STEP_BITS = 16
MEMBER_BITS = 16
BLOCK_BITS = 28
MAX_COUNT = 4 << BLOCK_BITS
"""Numbers per row: four per block."""


@dataclass(frozen=True, eq=False)
class NoiseKey:
    """Which standard normal numbers the N rows of a batch get: a name for them, instead of the numbers.

    An op that takes a key draws the numbers where it needs them; they are, bit for bit, those of
    ``philox_normal(shape, ...)`` with the same fields, in every backend.

    Raises:
        TypeError, ValueError: wrong type, shape or dtype; a field outside its range (for tensors on a GPU only under
            ``MGRPO_DEBUG=1``, since the check reads values; there the extra bits spill into other keys).
    """

    seed: int
    """0 <= seed < 2^64."""
    iteration: int
    """0 <= iteration < 2^32."""
    condition: Tensor
    """(N,) int64 in [0, 2^32)."""
    member: Tensor
    """(N,) int64 in [0, 2^16), index inside the group."""
    step: int | Tensor
    """Diffusion step in [0, 2^16), or an (N,) int64 tensor with one per row."""
    stream: int = STREAM_STEP
    """0 to 15, see ``philox_normal``."""

    def __post_init__(self) -> None:
        check_key("NoiseKey", self.seed, self.iteration, self.condition, self.member, self.step, self.stream)

    @property
    def words(self) -> tuple[Tensor, Tensor, int, int, int]:
        """(step_member (N,), condition (N,), signed seed, iteration, stream): what the operators take."""
        return key_words(self.seed, self.iteration, self.condition, self.member, self.step, self.stream)


def check_key(
    function: str,
    seed: object,
    iteration: object,
    condition: object,
    member: object,
    step: object,
    stream: object,
) -> None:
    """Check every field of a key; errors name ``function``."""
    _check_number(function, "seed", seed, 64)
    _check_number(function, "iteration", iteration, 32)
    _check_number(function, "stream", stream, STREAM_BITS)
    rows: dict[str, int] = {}
    _check_words(function, "condition", condition, 32, rows)
    _check_words(function, "member", member, MEMBER_BITS, rows, condition.device)
    if isinstance(step, Tensor):
        _check_words(function, "step", step, STEP_BITS, rows, condition.device)
    else:
        _check_number(function, "step", step, STEP_BITS)


def key_words(
    seed: int, iteration: int, condition: Tensor, member: Tensor, step: int | Tensor, stream: int
) -> tuple[Tensor, Tensor, int, int, int]:
    """A checked key as the operators take it; a schema's integers are signed, so a large seed becomes negative."""
    seed = int(seed)
    return (
        (member << STEP_BITS) | step,
        condition,
        seed - (1 << 64) if seed >= 1 << 63 else seed,
        int(iteration),
        int(stream),
    )


def _check_number(function: str, name: str, value: object, bits: int) -> None:
    number = check_integer(function, name, value)
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{function}(): {name} must be in [0, 2^{bits}), got {number}")


def _check_words(
    function: str, name: str, value: object, bits: int, rows: dict[str, int], device: torch.device | None = None
) -> None:
    check_tensor(function, name, value, ("N",), dtypes=(torch.int64,), sizes=rows)
    if device is not None:
        check_device(function, name, value, "condition", device)
    if value.numel() == 0 or not _checks.readable(value):
        return
    smallest, largest = torch.aminmax(value)
    if int(smallest) < 0 or int(largest) >= 1 << bits:
        first = int(((value < 0) | (value >= 1 << bits)).nonzero()[0, 0])
        raise ValueError(f"{function}(): {name} must be in [0, 2^{bits}), got {int(value[first])} in row {first}")
