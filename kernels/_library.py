"""Registers operators with torch: schema, shape function and gradient in one call, and loads the native extension.

A public op of this package with fused backends is two registered operators, ``mgrpo::<op>`` and
``mgrpo::<op>_backward``. Both take the backend's name as their last argument, so a traced graph records the choice and
the backward pass, which may run on another thread, uses the same one. The ``reference`` backend does not pass through
here: it is plain differentiable torch, called by the public function, which also makes it the one that supports double
backward, vmap and forward-mode differentiation.

The C++ and CUDA entry points are separate operators ``mgrpo_native::<op>_fwd`` and ``_bwd`` without autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._checks import GEOMETRY_DTYPES
from ._dispatch import DEFAULT_AUTO_ORDER, BackendError, Implementation, register_op

NAMESPACE = "mgrpo"
NATIVE_NAMESPACE = "mgrpo_native"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def _load_native() -> str | None:
    """Load the extension, which registers its operators; the reason why not, or None. Never compiles anything."""
    path = Path(__file__).with_name("_C.abi3.so")
    if not path.is_file():
        return "the native extension is not built (it needs a C++ compiler: 'make ext' in the source tree)"
    try:
        torch.ops.load_library(path)  # not an import: the file holds operators and no Python module
    except OSError as error:
        return (
            f"the native extension does not load with torch {torch.__version__} ({error}); rebuild it with 'make ext'"
        )
    return None


NATIVE_PROBLEM: str | None = _load_native()
"""Why the native extension is not there, or None when it is loaded."""


@dataclass(frozen=True)
class Kernel:
    """One registered operator."""

    schema: str
    """Arguments and results, e.g. ``"(Tensor matrices, bool fix_det, str backend) -> Tensor"``; backend comes last."""
    fake: Callable[..., Any]
    """Results' shapes for tracing. Use ``x.new_empty(shape)``, never ``empty_like``: outputs are contiguous."""
    backends: Mapping[str, Callable[..., Any]]
    """Backend name -> function of all arguments but the backend."""


def native(operator: str) -> Callable[..., Any]:
    """The native operator ``mgrpo_native::<operator>``, looked up when it is first called."""

    def call(*arguments: Any) -> Any:
        return getattr(getattr(torch.ops, NATIVE_NAMESPACE), operator)(*arguments)

    return call


def native_cpu(operators: Sequence[str], dtypes: Sequence[torch.dtype] = GEOMETRY_DTYPES) -> Implementation:
    """How dispatch sees a C++ backend that needs the native ``operators`` and CPU tensors of one of ``dtypes``."""
    problem = _native_problem(operators)

    def refuses(tensors: tuple[Tensor, ...]) -> str | None:
        for tensor in tensors:
            if tensor.device.type != "cpu":
                return f"needs tensors on the CPU, got {tensor.device}"
            if tensor.dtype not in dtypes:
                return f"does not take {str(tensor.dtype).removeprefix('torch.')}"
        return None

    return Implementation(unavailable=lambda: problem, refuses=refuses)


def _native_problem(operators: Sequence[str]) -> str | None:
    if NATIVE_PROBLEM is not None:
        return NATIVE_PROBLEM
    missing = [name for name in operators if not hasattr(getattr(torch.ops, NATIVE_NAMESPACE), name)]
    if missing:
        return f"the native extension is older than this source and lacks {', '.join(missing)}; run 'make ext'"
    return None


def define_op(
    name: str,
    *,
    implementations: Mapping[str, Implementation] | None = None,
    forward: Kernel | None = None,
    backward: Kernel | None = None,
    setup_context: Callable[..., None] | None = None,
    gradient: Callable[..., Any] | None = None,
    auto_order: Mapping[str, tuple[str, ...]] = DEFAULT_AUTO_ORDER,
) -> None:
    """Make op ``name`` known to dispatch and, if it has fused backends, register its operators.

    An op with the reference alone needs ``define_op(name)`` and nothing else. Otherwise ``forward`` becomes
    ``mgrpo::<name>`` and ``backward``, if given, ``mgrpo::<name>_backward``; ``setup_context(ctx, inputs, output)``
    and ``gradient(ctx, *grads)`` are what :func:`torch.library.register_autograd` takes, the latter calling the
    backward operator and returning one value per input, None for the backend's name. Without ``gradient`` the op is
    not differentiable.
    """
    register_op(name, implementations, auto_order)
    if forward is None:
        return
    _register(name, forward)
    if gradient is not None:
        torch.library.register_autograd(f"{NAMESPACE}::{name}", gradient, setup_context=setup_context, lib=_library)
    if backward is not None:
        _register(f"{name}_backward", backward)
        torch.library.register_autograd(
            f"{NAMESPACE}::{name}_backward", _no_double_backward(name), setup_context=_keep_backend, lib=_library
        )


def _register(operator: str, kernel: Kernel) -> None:
    backends = dict(kernel.backends)

    def run(*arguments: Any) -> Any:
        *inputs, backend = arguments
        return backends[backend](*inputs)

    _library.define(operator + kernel.schema)
    _library.impl(operator, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{operator}", kernel.fake, lib=_library)


def _keep_backend(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.backend = inputs[-1]


def _no_double_backward(name: str) -> Callable[..., Any]:
    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise BackendError(
            f"{name}(): the {ctx.backend!r} backend has no second derivative; "
            "call it with backend='reference', which has"
        )

    return refuse
