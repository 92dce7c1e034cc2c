"""A network compiled by torch, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mgrpo.errors import MgrpoError

BACKEND = "inductor"
"""Torch's compiler."""


class CompileError(MgrpoError):
    """The network could not be compiled on this machine."""


def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """The compiled form of a method of a network; errors as for :func:`compile_network`."""
    return torch.compile(function, fullgraph=True, backend=BACKEND)


def compile_network(network: nn.Module) -> Callable[..., Tensor]:
    """The compiled form of ``network``, on the same weights: save and load ``network`` itself, whose names stay as they
    are.

    What can't be compiled raises :class:`CompileError` when it is first called, inside :func:`compile_errors`; nothing
    falls back to running uncompiled, neither a part of the network nor input of a new shape.
    """
    return torch.compile(network, fullgraph=True, backend=BACKEND)


@contextmanager
def compile_errors(option: str = "--compile") -> Iterator[None]:
    """Explain errors of the compiler that come up in the block; ``option`` is what asked for it."""
    try:
        yield
    except Exception as error:
        if not _from_compiler(error):
            raise
        cause = getattr(error, "inner_exception", error)  # what a backend raised, wrapped by dynamo
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        raise CompileError(
            f"{option}: torch could not compile the network ({type(cause).__name__}: "
            f"{lines[0] if lines else 'no details'}). Leave {option} out, or look for what is missing: on a CPU the "
            "compiler needs a C++ compiler, on a GPU triton."
        ) from error


def _from_compiler(error: Any) -> bool:
    module = type(error).__module__
    return module.startswith(("torch._dynamo", "torch._inductor", "torch._functorch"))
