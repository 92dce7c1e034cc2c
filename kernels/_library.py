"""Registers operators with torch: schema, shape function and gradient in one call, and loads the native extension.

A public op of this package with fused backends is two registered operators, ``mgrpo::<op>`` and
``mgrpo::<op>_backward``. Both take the backend's name as their last argument, so a traced graph records the choice and
the backward pass, which may run on another thread, uses the same one. The ``reference`` backend does not pass through
here: it is plain differentiable torch, called by the public function, which also makes it the one that supports double
backward, forward-mode differentiation and ``torch.func.grad``; the others refuse these.

The C++ and CUDA entry points are separate operators ``<op>_fwd`` and ``<op>_bwd`` without autograd, in a namespace for
each library: ``mgrpo_native`` (C++, CPU tensors), ``mgrpo_cuda`` (CUDA tensors) and ``mgrpo_emulation`` (the CUDA
kernels compiled for the CPU, CPU tensors, for tests).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._checks import GEOMETRY_DTYPES
from ._dispatch import DEFAULT_AUTO_ORDER, BackendError, Implementation, register_op
from ._vmap import Rule

NAMESPACE = "mgrpo"
NATIVE_NAMESPACE = "mgrpo_native"
CUDA_NAMESPACE = "mgrpo_cuda"
EMULATION_NAMESPACE = "mgrpo_emulation"
EMULATION_VARIABLE = "MGRPO_EMULATION"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def _load(path: Path, what: str, missing: str, remedy: str) -> str | None:
    """Load a library of operators; the reason why not, or None. Never compiles anything."""
    if not path.is_file():
        return missing
    try:
        torch.ops.load_library(path)  # not an import: the file holds operators and no Python module
    except OSError as error:
        cause = error.__cause__ or error  # torch's own message names only the file
        return f"{what} does not load with torch {torch.__version__} ({cause}); {remedy}"
    return None


def _load_native() -> str | None:
    return _load(
        Path(__file__).with_name("_C.abi3.so"),
        "the native extension",
        "the native extension is not built (it needs a C++ compiler: 'make ext' in the source tree)",
        "rebuild it with 'make ext'",
    )


def _load_cuda() -> str | None:
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    return _load(
        Path(__file__).with_name("_cuda.abi3.so"),
        "the library of CUDA kernels",
        "the CUDA kernels are not built (they need nvcc: 'make ext MGRPO_BUILD=cuda' in the source tree)",
        "rebuild it with 'make ext MGRPO_BUILD=cuda'",
    )


def _load_emulation() -> str | None:
    path = os.environ.get(EMULATION_VARIABLE)
    if not path:
        return f"no emulation of the CUDA kernels is loaded ({EMULATION_VARIABLE} names one; for tests)"
    return _load(
        Path(path).absolute(),
        "the emulation of the CUDA kernels",
        f"{EMULATION_VARIABLE} names {path}, which does not exist",
        "rebuild it with 'python tools/emulation.py'",
    )


NATIVE_PROBLEM: str | None = _load_native()
"""Why the native extension is not there, or None when it is loaded."""
CUDA_PROBLEM: str | None = _load_cuda()
"""Why the CUDA kernels are not there, or None when they are loaded."""
EMULATION_PROBLEM: str | None = _load_emulation()
"""Why the CUDA kernels cannot run on CPU tensors, or None when their emulation is loaded."""


@dataclass(frozen=True)
class Kernel:
    """One registered operator."""

    schema: str
    """Arguments and results, e.g. ``"(Tensor matrices, bool fix_det, str backend) -> Tensor"``; backend comes last."""
    fake: Callable[..., Any]
    """Results' shapes for tracing. Use ``x.new_empty(shape)``, never ``empty_like``: outputs are contiguous."""
    backends: Mapping[str, Callable[..., Any]]
    """Backend name -> function of all arguments but the backend."""
    vmap: Callable[[Sequence[str]], Rule] | None = None
    """What makes one call of all slices under ``torch.vmap``, see :mod:`._vmap`; None: a call for each slice."""


def native(operator: str) -> Callable[..., Any]:
    """The native operator ``mgrpo_native::<operator>``, looked up when it is first called."""

    def call(*arguments: Any) -> Any:
        return getattr(getattr(torch.ops, NATIVE_NAMESPACE), operator)(*arguments)

    return call


def cuda(operator: str) -> Callable[..., Any]:
    """The CUDA operator ``<operator>`` of the library for the device of the first tensor argument: the real one for
    CUDA tensors, its emulation for CPU tensors. Looked up when it is called."""

    def call(*arguments: Any) -> Any:
        first = next(argument for argument in arguments if isinstance(argument, Tensor))
        namespace = CUDA_NAMESPACE if first.device.type == "cuda" else EMULATION_NAMESPACE
        return getattr(getattr(torch.ops, namespace), operator)(*arguments)

    return call


def native_cpu(operators: Sequence[str], dtypes: Sequence[torch.dtype] = GEOMETRY_DTYPES) -> Implementation:
    """How dispatch sees a C++ backend that needs the native ``operators`` and CPU tensors of one of ``dtypes``."""
    problem = native_problem(operators)

    def refuses(tensors: tuple[Tensor, ...]) -> str | None:
        for tensor in tensors:
            if tensor.device.type != "cpu":
                return f"needs tensors on the CPU, got {tensor.device}"
            if tensor.dtype not in dtypes:
                return f"does not take {str(tensor.dtype).removeprefix('torch.')}"
        return None

    return Implementation(unavailable=lambda: problem, refuses=refuses)


def native_cuda(operators: Sequence[str], dtypes: Sequence[torch.dtype] = GEOMETRY_DTYPES) -> Implementation:
    """How dispatch sees the CUDA backend that needs the ``operators`` of :func:`cuda` and tensors of one of ``dtypes``.

    It serves CUDA tensors where the CUDA kernels are built, and CPU tensors where their emulation is loaded.
    """
    problems = {"cuda": _cuda_problem(operators), "cpu": _emulation_problem(operators)}

    def refuses(tensors: tuple[Tensor, ...]) -> str | None:
        for tensor in tensors:
            if tensor.device != tensors[0].device:
                return f"needs tensors on one device, got {tensors[0].device} and {tensor.device}"
            if tensor.device.type not in problems or (tensor.device.type == "cpu" and problems["cpu"] is not None):
                return f"needs tensors on a CUDA device, got {tensor.device}"
            if problems[tensor.device.type] is not None:
                return problems[tensor.device.type]
            if tensor.dtype not in dtypes:
                return f"does not take {str(tensor.dtype).removeprefix('torch.')}"
        return None

    def unavailable() -> str | None:
        return None if problems["cpu"] is None else problems["cuda"]

    return Implementation(unavailable=unavailable, refuses=refuses)


def native_problem(operators: Sequence[str]) -> str | None:
    """Why these operators of the native extension cannot be called, or None."""
    return NATIVE_PROBLEM or _lacking(
        NATIVE_NAMESPACE, operators, "the native extension is older than this source and lacks {}; run 'make ext'"
    )


def _cuda_problem(operators: Sequence[str]) -> str | None:
    return CUDA_PROBLEM or _lacking(
        CUDA_NAMESPACE,
        operators,
        "the library of CUDA kernels is older than this source and lacks {}; run 'make ext MGRPO_BUILD=cuda'",
    )


def _emulation_problem(operators: Sequence[str]) -> str | None:
    return EMULATION_PROBLEM or _lacking(
        EMULATION_NAMESPACE,
        operators,
        "the emulation of the CUDA kernels is older than this source and lacks {}; run 'python tools/emulation.py'",
    )


def _lacking(namespace: str, operators: Sequence[str], sentence: str) -> str | None:
    missing = [name for name in operators if not hasattr(getattr(torch.ops, namespace), name)]
    return sentence.format(", ".join(missing)) if missing else None


def define_op(
    name: str,
    *,
    implementations: Mapping[str, Implementation] | None = None,
    forward: Kernel | None = None,
    backward: Kernel | None = None,
    setup_context: Callable[..., None] | None = None,
    gradient: Callable[..., Any] | None = None,
    auto_order: Mapping[str, tuple[str, ...]] = DEFAULT_AUTO_ORDER,
    internal: bool = False,
) -> None:
    """Make op ``name`` known to dispatch and, if it has fused backends, register its operators.

    An op with the reference alone needs ``define_op(name)`` and nothing else. Otherwise ``forward`` becomes
    ``mgrpo::<name>`` and ``backward``, if given, ``mgrpo::<name>_backward``; ``setup_context(ctx, inputs, output)``
    and ``gradient(ctx, *grads)`` are what :func:`torch.library.register_autograd` takes, the latter calling the
    backward operator and returning one value per input, None for the backend's name. Without ``gradient`` the op is
    not differentiable. An ``internal`` op is a part of a public one, whose backend it takes: dispatch does not list it.
    """
    if not internal:
        register_op(name, implementations, auto_order)
    if forward is None:
        return
    _register(name, forward)
    if gradient is not None:
        torch.library.register_autograd(f"{NAMESPACE}::{name}", gradient, setup_context=setup_context, lib=_library)
        _functions[name] = _function(name, setup_context, gradient)
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

    _runs[operator] = run
    _library.define(operator + kernel.schema)
    _library.impl(operator, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{operator}", kernel.fake, lib=_library)
    if kernel.vmap is not None:
        registered = getattr(getattr(torch.ops, NAMESPACE), operator).default
        rule = kernel.vmap([argument.name for argument in registered._schema.arguments])
        torch.library.register_vmap(f"{NAMESPACE}::{operator}", partial(rule, registered), lib=_library)


def _function(
    operator: str, setup_context: Callable[..., None] | None, gradient: Callable[..., Any]
) -> type[torch.autograd.Function]:
    """The operator with its gradient as autograd sees it when no dispatcher stands between."""

    def forward(ctx: Any, *arguments: Any) -> Any:
        output = _runs[operator](*arguments)
        if setup_context is not None:
            setup_context(ctx, arguments, output)
        return output

    # The name is that of the results' grad_fn.
    return type(
        operator, (torch.autograd.Function,), {"forward": staticmethod(forward), "backward": staticmethod(gradient)}
    )


_runs: dict[str, Callable[..., Any]] = {}
_functions: dict[str, type[torch.autograd.Function]] = {}


def call_op(operator: str, *arguments: Any) -> Any:
    """``mgrpo::<operator>`` of these arguments.

    Where nothing is traced or transformed, its function is called without a way through torch's dispatcher, which for
    an operator of many arguments takes longer than a small kernel. Gradients call their operators by it too.

    Raises :class:`BackendError` for what the operators can't do under a transform: forward-mode derivatives, of which
    torch would silently make zeros, and ``torch.func.grad``.
    """
    _refuse_transforms(operator, arguments)
    if torch.compiler.is_compiling() or _is_watched(arguments):
        return getattr(torch.ops.mgrpo, operator)(*arguments)
    if not _is_differentiated(arguments):
        return _runs[operator](*arguments)
    if operator in _functions:
        return _functions[operator].apply(*arguments)
    return getattr(torch.ops.mgrpo, operator)(*arguments)


def _refuse_transforms(operator: str, arguments: tuple[Any, ...]) -> None:
    if torch.compiler.is_compiling():
        return
    forward = getattr(forward_ad, "_current_level", 0) >= 0
    if not (forward or _func_transform()):
        return
    for argument in arguments:
        if not isinstance(argument, Tensor):
            continue
        if forward and forward_ad.unpack_dual(argument).tangent is not None:
            lacking = "forward-mode derivative"
        elif not forward and torch.is_grad_enabled() and torch._C._functorch.is_gradtrackingtensor(argument):
            lacking = "derivative for torch.func (torch.autograd has it)"
        else:
            continue
        raise BackendError(
            f"{operator}(): the {arguments[-1]!r} backend has no {lacking}; call it with backend='reference', which has"
        )


def _is_watched(arguments: tuple[Any, ...]) -> bool:
    """Whether a mode, a function transform or a tensor subclass must see the call."""
    for argument in arguments:
        if isinstance(argument, Tensor) and type(argument) not in _PLAIN:
            return True
    return any(watches() for watches in _WATCHERS)


def _is_differentiated(arguments: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments)


def _watchers() -> tuple[Callable[[], Any], ...]:
    """What torch is asked whether anything but the call itself is going on. A torch that lacks one of these questions
    is taken to answer yes, which costs time and nothing else."""
    try:
        return (
            torch._C._len_torch_dispatch_stack,
            torch._C._len_torch_function_stack,
            torch._C._functorch.peek_interpreter_stack,
            torch._C._is_tracing,
        )
    except AttributeError:
        return (lambda: True,)


_PLAIN = (Tensor, torch.nn.Parameter)
_WATCHERS = _watchers()
try:
    _func_transform: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack
except AttributeError:  # then torch's own refusal has to do

    def _func_transform() -> None:
        return None


def _keep_backend(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.backend = inputs[-1]


def _no_double_backward(name: str) -> Callable[..., Any]:
    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise BackendError(
            f"{name}(): the {ctx.backend!r} backend has no second derivative; "
            "call it with backend='reference', which has"
        )

    return refuse
