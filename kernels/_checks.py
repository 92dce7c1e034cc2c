"""Checks of arguments, all with one sentence form: ``function(): argument must <what>, got <what came>``.

ValueError for shapes and values, TypeError for dtypes and types. Everything here is plain Python on metadata: it never
reads a tensor's values, so it costs no device synchronisation and torch.compile can trace it.
"""

from __future__ import annotations

import math
import operator
import os
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from ._shapes import broadcast_shape

Dim = str | int
GEOMETRY_DTYPES = (torch.float32, torch.float64)
STATE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def debug_enabled() -> bool:
    """True under ``MGRPO_DEBUG=1``: then checks that read values (and so wait for the device) run as well."""
    return os.environ.get("MGRPO_DEBUG", "0") == "1"


def readable(tensor: Tensor) -> bool:
    """Whether reading values costs no wait for a device, or was asked for. A graph being made has none to read, and
    under torch.vmap a tensor has those of all slices."""
    if torch.compiler.is_compiling() or not (tensor.device.type == "cpu" or debug_enabled()):
        return False
    while torch._C._functorch.is_gradtrackingtensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return not torch._C._functorch.is_batchedtensor(tensor)


def check_tensor(
    function: str,
    name: str,
    value: object,
    shape: Sequence[Dim] | None = None,
    *,
    dtypes: Sequence[torch.dtype] = GEOMETRY_DTYPES,
    sizes: dict[str, int] | None = None,
) -> None:
    """Check that ``value`` is a dense tensor of one of ``dtypes`` and, if given, of ``shape``.

    ``shape`` holds numbers, letters, and at most one leading ``"*batch"`` or ``"*#batch"`` (any axes; ``#`` tells the
    reader that they broadcast). A letter that ``sizes`` holds must have that size; others are added to ``sizes``.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}(): {name} must be a torch.Tensor, got {type(value).__name__}")
    _check_layout(function, name, value)
    if value.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{function}(): {name} must have dtype {wanted}, got {str(value.dtype).removeprefix('torch.')}")
    if shape is not None:
        check_shape(function, name, value.shape, shape, sizes)


def _check_layout(function: str, name: str, value: Tensor) -> None:
    """Check that a tensor is a plain array, as all backends read it."""
    if value.is_nested or value.layout != torch.strided:
        layout = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise TypeError(f"{function}(): {name} must be a dense tensor (torch.strided), got a {layout} one")


def check_shape(
    function: str, name: str, got: Sequence[int], shape: Sequence[Dim], sizes: dict[str, int] | None = None
) -> None:
    """Check the sizes ``got`` against ``shape`` (see :func:`check_tensor`)."""
    sizes = {} if sizes is None else sizes
    starred = len(shape) > 0 and isinstance(shape[0], str) and shape[0][0] == "*"
    trailing = shape[1:] if starred else shape
    spare = len(got) - len(trailing)
    fits = spare >= 0 if starred else spare == 0
    if fits:
        for axis, wanted in enumerate(trailing, spare):
            size = got[axis]
            known = sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted
            if size != known:
                fits = False
    if not fits:
        bound = [f"{d} = {sizes[d]}" for d in trailing if isinstance(d, str) and d in sizes]
        note = f" with {', '.join(dict.fromkeys(bound))}" if bound and _is_bound_elsewhere(trailing, got, sizes) else ""
        raise ValueError(f"{function}(): {name} must have shape {format_shape(shape)}{note}, got {tuple(got)}")


def _is_bound_elsewhere(trailing: Sequence[Dim], got: Sequence[int], sizes: dict[str, int]) -> bool:
    """Whether naming the letters' sizes tells the reader something: a letter disagrees with the size it must have."""
    if len(got) < len(trailing):
        return False
    tail = got[len(got) - len(trailing) :]
    return any(isinstance(d, str) and sizes.get(d, size) != size for d, size in zip(trailing, tail))


def format_shape(shape: Sequence[Dim]) -> str:
    """``("*batch", "J", 3)`` as ``(*batch, J, 3)``."""
    return f"({', '.join(str(d) for d in shape)}{',' if len(shape) == 1 else ''})"


def check_like(function: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Check that two tensors share dtype and device."""
    if value.dtype != other.dtype:
        raise TypeError(
            f"{function}(): {name} must have the dtype of {other_name} ({str(other.dtype).removeprefix('torch.')}), "
            f"got {str(value.dtype).removeprefix('torch.')}"
        )
    check_device(function, name, value, other_name, other.device)


def check_device(function: str, name: str, value: Tensor, other_name: str, device: torch.device) -> None:
    """Check that ``value`` is on ``device``, where the argument ``other_name`` is."""
    if value.device != device:
        raise ValueError(f"{function}(): {name} must be on {device} like {other_name}, got {value.device}")


def check_broadcastable(function: str, name: str, got: Sequence[int], batch: Sequence[int], other_name: str) -> None:
    """Check that the leading axes ``got`` of ``name`` broadcast to ``batch``, those of ``other_name``."""
    # Not `g in (1, b)`, in which torch.compile loses a size that changes from call to call.
    fits = len(got) <= len(batch) and all(g == b or g == 1 for g, b in zip(reversed(got), reversed(batch)))
    if not fits:
        raise ValueError(
            f"{function}(): {name} must have batch axes that broadcast to {tuple(batch)}, those of {other_name}, "
            f"got {tuple(got)}"
        )


def broadcast_batch(function: str, **batches: Sequence[int]) -> tuple[int, ...]:
    """The common shape of several arguments' leading axes; each keyword is an argument's name."""
    try:
        return broadcast_shape(*batches.values())
    except ValueError:
        listed = ", ".join(f"{name} {tuple(batch)}" for name, batch in batches.items())
        raise ValueError(
            f"{function}(): {' and '.join(batches)} must have batch axes that broadcast, got {listed}"
        ) from None


def check_choice(function: str, name: str, value: object, choices: Sequence[str]) -> None:
    """Check that ``value`` is one of the strings ``choices``."""
    if value not in choices:
        raise ValueError(f"{function}(): {name} must be one of {', '.join(choices)}, got {value!r}")


def is_finite(value: float) -> bool:
    """Whether a number is neither infinite nor NaN, nor an int beyond every float.

    By comparisons, which torch.compile turns into guards where a number changes from call to call; math.isfinite it
    cannot trace. With the largest float, since of a comparison with infinity it would take the answer for granted.
    """
    return -sys.float_info.max <= value <= sys.float_info.max


def check_number(
    function: str,
    name: str,
    value: object,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    exclusive_minimum: bool = False,
) -> None:
    """Check that ``value`` is a finite real number inside the limits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{function}(): {name} must be a number, got {type(value).__name__}")
    below = value <= minimum if exclusive_minimum else value < minimum
    if below or value > maximum or not is_finite(value):
        limits = []
        if minimum > -math.inf:
            limits.append(f"{'>' if exclusive_minimum else '>='} {minimum:g}")
        if maximum < math.inf:
            limits.append(f"<= {maximum:g}")
        raise ValueError(f"{function}(): {name} must be {' and '.join(limits) or 'finite'}, got {value!r}")


def check_integer(function: str, name: str, value: object, *, minimum: int | None = None) -> int:
    """``value`` as an int; checks that it is integral (numpy's integers too) and not below ``minimum``."""
    if isinstance(value, bool):
        raise TypeError(f"{function}(): {name} must be an int, got bool")
    try:
        # An int as it is: under torch.compile operator.index makes a constant of one that changes from call to call.
        number = value if isinstance(value, int) else operator.index(value)
    except TypeError:
        raise TypeError(f"{function}(): {name} must be an int, got {type(value).__name__}") from None
    if minimum is not None and number < minimum:
        raise ValueError(f"{function}(): {name} must be >= {minimum}, got {number}")
    return number


def check_nonnegative(function: str, name: str, value: Tensor) -> None:
    """Under ``MGRPO_DEBUG=1`` only (it reads values): check that no element is negative."""
    if debug_enabled() and not torch.compiler.is_compiling() and bool((value < 0).any()):
        smallest = value.min().item()
        raise ValueError(f"{function}(): {name} must be >= 0 everywhere, got a smallest value of {smallest:g}")
