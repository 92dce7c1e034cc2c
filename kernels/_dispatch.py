"""Which backend serves a call: names, the process-wide choice, refusals with reasons.

Order of precedence: the call's ``backend=``, then :func:`use_backend`, then the environment variable
``MGRPO_BACKEND``, then the op's own order for the device (auto). An explicit choice is honoured or refused with
:class:`BackendError`; only auto falls back, and says so once per op and device at level INFO.

A process-wide choice (``use_backend``, ``MGRPO_BACKEND``) speaks about the ops that have such a backend: an op that was
never written for it is chosen automatically, which is logged once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

BACKENDS = ("reference", "cpp", "triton", "cuda")
"""Every backend name; ``reference`` serves every op on every device."""

BACKEND_VARIABLE = "MGRPO_BACKEND"

_REMEDY = (
    f"Name one that can, or none (backend=None, no use_backend, {BACKEND_VARIABLE} unset) for the fastest that can"
)
"""What to do about a choice that can't be honoured."""

_logger = logging.getLogger("mgrpo.kernels")


class BackendError(RuntimeError):
    """The backend that was asked for cannot serve the call; the message lists every backend with its reason."""


@dataclass(frozen=True)
class Implementation:
    """One backend of one op, by the two questions that dispatch asks it. Both answer a reason, or None for 'yes'."""

    unavailable: Callable[[], str | None]
    """Why this machine or installation cannot run it at all."""
    refuses: Callable[[tuple[Tensor, ...]], str | None]
    """Why it cannot serve these tensors (device, dtype, ...). Must be plain Python that torch.compile can trace."""


@dataclass(frozen=True)
class OpEntry:
    """What dispatch knows about an op: its backends besides ``reference``, and the order to try them per device."""

    implementations: Mapping[str, Implementation]
    auto_order: Mapping[str, tuple[str, ...]]


_ops: dict[str, OpEntry] = {}
# A plain module global, not a ContextVar: torch.compile guards on it, and refuses ContextVar.get under fullgraph.
_process_choice: str | None = None
_logged: set[tuple[str, ...]] = set()

DEFAULT_AUTO_ORDER: Mapping[str, tuple[str, ...]] = MappingProxyType({"cpu": ("cpp",), "cuda": ("cuda", "triton")})


def register_op(
    name: str,
    implementations: Mapping[str, Implementation] | None = None,
    auto_order: Mapping[str, tuple[str, ...]] = DEFAULT_AUTO_ORDER,
) -> None:
    """Make ``name`` known to dispatch. ``implementations`` leaves out ``reference``, which every op has."""
    _ops[name] = OpEntry(dict(implementations or {}), dict(auto_order))


def registered_ops() -> tuple[str, ...]:
    """Names of all ops, in the order of their definition."""
    return tuple(_ops)


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Use backend ``name`` for every call inside the ``with`` block that does not pass ``backend=`` itself.

    ``None`` returns to the automatic choice, also where ``MGRPO_BACKEND`` is set to something else by an outer block.
    The setting belongs to the process: threads share it. Raises ValueError for an unknown name.
    """
    global _process_choice
    if name is not None:
        _check_name("use_backend(): name", name)
    previous = _process_choice
    _process_choice = name
    try:
        yield
    finally:
        _process_choice = previous


def resolve(op: str, backend: str | None, *tensors: Tensor) -> str:
    """Name of the backend that serves this call of ``op``.

    Raises ValueError for an unknown name, BackendError when an explicit choice cannot be honoured.
    """
    if backend is not None:
        _check_name(f"{op}(): backend", backend)
        return _honour(op, backend, f"backend={backend!r}", tensors)
    if _process_choice is not None:
        choice, origin = _process_choice, f"use_backend({_process_choice!r})"
    else:
        choice, origin = os.environ.get(BACKEND_VARIABLE), f"the environment variable {BACKEND_VARIABLE}"
        if choice:
            _check_name(origin, choice)
            origin = f"{origin}={choice}"
    if choice:
        if choice == "reference" or choice in _ops[op].implementations:
            return _honour(op, choice, origin, tensors)
        _log_once(op, f"{op} has no {choice!r} backend, which {origin} asks for; it is chosen automatically")
    return _automatic(op, tensors)


def available_backends(op: str) -> tuple[str, ...]:
    """Backends of ``op`` that this machine and installation can run (on tensors that suit them), reference first."""
    entry = _entry(op)
    found = [name for name in BACKENDS[1:] if name in entry.implementations]
    return ("reference", *(name for name in found if entry.implementations[name].unavailable() is None))


def explain_backend(op: str, *tensors: Tensor) -> str:
    """A printable table: every backend of ``op`` with 'yes' or the reason why not, and which one a call would take.

    With ``tensors`` (the call's tensor arguments) the reasons are about exactly these; without, about CPU tensors.
    """
    _entry(op)
    arguments = tensors or (torch.empty(0),)
    try:
        chosen = resolve(op, None, *arguments)
    except (BackendError, ValueError):
        chosen = None
    rows = [f"{op} on {arguments[0].device.type}, {str(arguments[0].dtype).removeprefix('torch.')}:"]
    for name in BACKENDS:
        reason = _refusal(op, name, arguments)
        mark = "->" if name == chosen else "  "
        rows.append(f" {mark} {name:<10}{'yes' if reason is None else 'no: ' + reason}")
    return "\n".join(rows)


def _check_name(where: str, name: object) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{where} must be one of {', '.join(BACKENDS)}, got {name!r}")


def _entry(op: str) -> OpEntry:
    if op not in _ops:
        raise ValueError(f"op must be one of {', '.join(sorted(_ops))}, got {op!r}")
    return _ops[op]


def _refusal(op: str, backend: str, tensors: tuple[Tensor, ...]) -> str | None:
    if backend == "reference":
        return None
    implementation = _ops[op].implementations.get(backend)
    if implementation is None:
        return "not written for this op"
    return implementation.unavailable() or implementation.refuses(tensors)


def _honour(op: str, backend: str, origin: str, tensors: tuple[Tensor, ...]) -> str:
    if _refusal(op, backend, tensors) is None:
        return backend
    raise BackendError(f"{op}(): {origin} cannot serve this call. {_reasons(op, tensors)}. {_REMEDY}")


def _reasons(op: str, tensors: tuple[Tensor, ...]) -> str:
    return "; ".join(f"{name}: {_refusal(op, name, tensors) or 'can serve it'}" for name in BACKENDS)


def _automatic(op: str, tensors: tuple[Tensor, ...]) -> str:
    device = tensors[0].device.type if tensors else "cpu"
    for name in _ops[op].auto_order.get(device, ()):
        if name not in _ops[op].implementations:
            continue
        reason = _refusal(op, name, tensors)
        if reason is None:
            return name
        _log_once(op, f"{op} on {device} does without the {name!r} backend: {reason}")
    return "reference"


def _log_once(op: str, message: str) -> None:
    # While torch.compile traces, logging would break the graph; the eager call that comes first or later says it.
    if torch.compiler.is_compiling() or (op, message) in _logged:
        return
    _logged.add((op, message))
    _logger.info("%s", message)
