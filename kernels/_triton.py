"""The ``triton`` backend's foundations: who it serves, how its kernels are loaded, launched and addressed.

Importing this module does not import triton. An op's kernels stand in its ``triton_impl.py``, which is imported on the
op's first call through :func:`triton_call`. Everything starts kernels through :func:`launch`.

Under ``TRITON_INTERPRET=1``, set before anyone imports triton, kernels run on the CPU, in numpy and slowly. That is how
the tests execute them on a machine without a GPU. The choice is made once, when this module is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._checks import GEOMETRY_DTYPES
from ._dispatch import BackendError, Implementation

INTERPRET_VARIABLE = "TRITON_INTERPRET"
INTERPRETED_LANES = 8192
"""Largest block of an interpreted kernel. The interpreter's cost is per program, hardly per lane."""
ARCHITECTURES = (80, 90, 100, 120)
PROOF_ARCHITECTURES = (90,)
"""Compute capabilities, times ten, that kernels are compiled for in the tests."""
MAX_ROW_AXES = 3
"""Rows that need more strides than this are copied: each axis beyond the first costs every lane a division."""


def _interpreter_asked_for() -> bool:
    return os.environ.get(INTERPRET_VARIABLE, "").lower() in ("1", "true", "yes", "on", "y")


INTERPRETED: bool = _interpreter_asked_for()
"""Whether kernels run in triton's interpreter, on CPU tensors."""

_INSTALLED = importlib.util.find_spec("triton") is not None


def triton_backend(dtypes: Sequence[torch.dtype] = GEOMETRY_DTYPES) -> Implementation:
    """How dispatch sees a Triton backend for tensors of ``dtypes`` (name the dtypes of all arguments, masks too).

    It serves CUDA tensors where triton is installed; interpreted, it serves CPU tensors instead.
    """

    def refuses(tensors: tuple[Tensor, ...]) -> str | None:
        for tensor in tensors:
            if INTERPRETED and tensor.device.type != "cpu":
                return f"needs tensors on the CPU under {INTERPRET_VARIABLE}=1, got {tensor.device}"
            if not INTERPRETED and tensor.device.type != "cuda":
                return f"needs tensors on a CUDA device, got {tensor.device}"
            if tensor.dtype not in dtypes:
                return f"does not take {str(tensor.dtype).removeprefix('torch.')}"
        return None

    return Implementation(unavailable=_unavailable, refuses=refuses)


def _unavailable() -> str | None:
    if not _INSTALLED:
        return "triton is not installed (pip install triton)"
    if not INTERPRETED and not torch.cuda.is_available():
        return f"there is no CUDA device ({INTERPRET_VARIABLE}=1 set before the start would interpret it, slowly)"
    return None


def triton_call(package: str, function: str) -> Callable[..., Any]:
    """``function`` of ``package``'s ``triton_impl.py``, which is imported when it is first called.

    Tensors reach it as their storage has them, which is all that kernels read. Torch's dispatcher sees to that, but
    :func:`mgrpo.kernels._library.call_op` may go past it.

    Raises BackendError, in the call, where triton cannot be imported or was imported under another
    ``TRITON_INTERPRET``.
    """

    def call(*arguments: Any) -> Any:
        return getattr(_load(package), function)(*map(_as_stored, arguments))

    return call


def _as_stored(argument: Any) -> Any:
    """Views that negate other numbers, and zeros without storage, as the numbers that they stand for."""
    if not isinstance(argument, Tensor):
        return argument
    return argument.clone() if argument._is_zerotensor() else argument.resolve_neg()


@cache
def _load(package: str) -> Any:
    if _interpreter_asked_for() != INTERPRETED:
        raise BackendError(
            f"{INTERPRET_VARIABLE} was changed after mgrpo.kernels was imported; set it before the process starts"
        )
    try:
        return importlib.import_module(f"{package}.triton_impl")
    except ImportError as error:
        raise BackendError(f"triton cannot be used ({error}); choose another backend") from error


class Rows(NamedTuple):
    """A tensor seen as ``count`` rows: one row's elements lie contiguously, the axes before them are the batch.

    ``sizes`` and ``strides`` (in elements) describe the batch, the fastest axis first; axes that one stride describes
    are merged, so a contiguous batch has one. Kernels take them as tuples and call ``_triton_math.row_offset``.
    """

    tensor: Tensor
    count: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


def as_rows(tensor: Tensor, inner: int) -> Rows:
    """``tensor`` as rows whose last ``inner`` axes are the row. Expanded and strided batches are not copied, unless
    the row itself has gaps or the batch needs more than ``MAX_ROW_AXES`` strides."""
    batch_axes = tensor.dim() - inner
    if tensor.numel() == 0:  # contiguous whatever its strides are, and never read
        return Rows(tensor, tensor.shape[:batch_axes].numel(), (1,), (0,))
    expected = 1
    for axis in reversed(range(batch_axes, tensor.dim())):
        if tensor.size(axis) != 1 and tensor.stride(axis) != expected:
            return as_rows(tensor.contiguous(), inner)
        expected *= tensor.size(axis)
    sizes: list[int] = []
    strides: list[int] = []
    for axis in reversed(range(batch_axes)):
        size, stride = tensor.size(axis), tensor.stride(axis)
        if size == 1:
            continue
        if sizes and stride == strides[-1] * sizes[-1]:
            sizes[-1] *= size
        else:
            sizes.append(size)
            strides.append(stride)
    if len(sizes) > MAX_ROW_AXES:
        return as_rows(tensor.contiguous(), inner)
    count = tensor.shape[:batch_axes].numel()
    return Rows(tensor, count, tuple(sizes) or (1,), tuple(strides) or (0,))


def block_lanes(count: int, on_gpu: int = 128) -> int:
    """Lanes per program for ``count`` independent items: a power of two.

    ``on_gpu`` on a device; interpreted, as many as there are items up to ``INTERPRETED_LANES``.
    """
    if not INTERPRETED:
        return on_gpu
    return min(max(16, 1 << (count - 1).bit_length()), INTERPRETED_LANES)


def launch(kernel: Any, programs: int, *arguments: Any, on: Tensor, **options: Any) -> None:
    """Start ``programs`` programs of a ``@triton.jit`` kernel on the device of ``on``; none where ``programs`` is 0.

    ``options`` are the kernel's constexprs by name and triton's own (``num_warps``, ``enable_fp_fusion``, ...).
    """
    if programs > 0:
        with _current_device(on):
            start(kernel, (programs,), arguments, options)


def start(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """The one place that starts kernels. Tests put a function here that only compiles."""
    kernel[grid](*arguments, **options)


class CompileCase(NamedTuple):
    """A call that starts kernels, which ``tools/triton_resources.py`` turns into compiling them.

    Every ``triton_impl.py`` lists its own in ``COMPILE_CASES``; together they start each kernel at least once.
    """

    name: str
    run: Callable[[], object]
    """Calls the module's launch functions with sample tensors, which may lie on the CPU: nothing is computed."""
    architectures: tuple[int, ...]


def compile_cases(
    name: str, run: Callable[[torch.dtype], object], dtypes: Sequence[torch.dtype] = GEOMETRY_DTYPES
) -> tuple[CompileCase, ...]:
    """``run`` for each of ``dtypes``: float64, which is there to prove the rest, for one architecture alone."""
    return tuple(
        CompileCase(
            f"{name} {str(dtype).removeprefix('torch.')}",
            partial(run, dtype),
            PROOF_ARCHITECTURES if dtype == torch.float64 else ARCHITECTURES,
        )
        for dtype in dtypes
    )


def _current_device(tensor: Tensor) -> AbstractContextManager[Any]:
    # triton launches on the current device, which need not be the tensor's.
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
