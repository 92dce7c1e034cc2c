"""Tensors that hold the usual values in unusual ways, and calls of an op in which every tensor is such a one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from mgrpo import kernels
from mgrpo.kernels._spec import Case, OpSpec

Change = Callable[[Tensor], Tensor]


class Own(Tensor):
    """A subclass that behaves like its base."""


def _floats(change: Change) -> Change:
    return lambda x: change(x) if x.is_floating_point() else x


def _beside(x: Tensor, axis: int) -> Tensor:
    """``x`` with other numbers between its slices along ``axis``."""
    return torch.stack([x, torch.ones_like(x)], axis).select(axis, 0)


def _reversed(x: Tensor) -> Tensor:
    return x.permute(tuple(reversed(range(x.dim()))))


def _in_inference_mode(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


DIFFERENTIABLE: dict[str, Change] = {
    "other rows between": lambda x: _beside(x, min(1, x.dim())),
    "gaps inside rows": lambda x: _beside(x, -1),
    "axes in another order": lambda x: _reversed(_reversed(x).contiguous()),
    "one row for all": lambda x: x[:1].expand_as(x) if x.dim() else x,
    "storage that begins at an odd place": lambda x: torch.cat((x.new_ones(1), x.flatten()))[1:].view(x.shape),
    "a view that negates": _floats(lambda x: torch._neg_view(-x)),
    "the real part of complex numbers": _floats(lambda x: torch.complex(x, torch.ones_like(x)).real),
    "the imaginary part of conjugates": _floats(lambda x: torch.complex(torch.ones_like(x), -x).conj().imag),
}
"""Through these a gradient finds its way."""
CHANGES: dict[str, Change] = {
    **DIFFERENTIABLE,
    "zeros without storage": _floats(lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype, device=x.device)),
    "a parameter": _floats(lambda x: torch.nn.Parameter(x.detach().clone())),
    "a subclass": lambda x: x.as_subclass(Own),
    "of inference mode": _in_inference_mode,
}


class OneElsewhere:
    """Puts the tensor that it is given at one place of the order, from 0, on another device; counts all."""

    def __init__(self, place: int | None = None) -> None:
        self.place, self.count = place, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.count += 1
        return x.to("meta") if self.count - 1 == self.place else x


def plain(x: Tensor) -> Tensor:
    """The same values as an ordinary contiguous tensor, differentiably."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x.as_subclass(Tensor))


def changed(value: Any, change: Change) -> Any:
    """``value`` with ``change`` done to every tensor in it."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(changed(part, change) for part in value))
    if dataclasses.is_dataclass(value):
        fields = {field.name: changed(getattr(value, field.name), change) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


def call_changed(
    spec: OpSpec, change: Change, case: Case, inputs: Sequence[Tensor], backend: str
) -> tuple[Tensor, ...]:
    """``spec.call`` with a change to every tensor that its op gets: also to those that the spec makes itself."""
    op = getattr(kernels, spec.name)
    calls = 0

    def call_op(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return op(*(changed(x, change) for x in arguments), **{name: changed(x, change) for name, x in options.items()})

    with mock.patch.dict(spec.call.__globals__, {spec.name: call_op}):
        results = spec.call(case, *inputs, backend=backend)
    assert calls == 1, f"the spec's call must name {spec.name} as its module does"
    return results
