"""How an op describes itself for tests and benchmarks: cases, inputs, tolerances, bytes moved.

An op's ``spec.py`` holds ``SPECS``, a tuple of :class:`OpSpec`. Tests run every spec on every backend and dtype;
nothing else lists ops.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One size and set of options of an op."""

    name: str
    sizes: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tolerance:
    """Largest allowed error against float64, relative to the largest magnitude (at least 1) of the compared tensor."""

    forward: float
    gradient: float


@dataclass(frozen=True)
class OpSpec:
    """What tests and benchmarks need to know about an op."""

    name: str
    cases: tuple[Case, ...]
    make_inputs: Callable[[Case, torch.dtype, torch.device, int], tuple[Tensor, ...]]
    """(case, dtype, device, seed) -> tensor arguments; the same values, rounded, for every dtype."""
    call: Callable[..., tuple[Tensor, ...]]
    """(case, *inputs, backend=...) -> the results as a flat tuple."""
    tolerances: Mapping[torch.dtype, Tolerance]
    bytes_moved: Callable[[Case, torch.dtype], int]
    """Bytes that a forward call must read and write at least once."""
    differentiable: bool = True
    row_axes: tuple[int | None, ...] | Callable[[Case], tuple[int | None, ...]] | None = None
    """For each input, or those of a case, how many trailing axes make up one row, None for an input that belongs to no
    row; None where rows depend on each other. Inputs may be fewer."""

    def row_axes_of(self, case: Case) -> tuple[int | None, ...]:
        """``row_axes`` of the inputs of one case."""
        assert self.row_axes is not None
        return self.row_axes(case) if callable(self.row_axes) else self.row_axes

    def smallest_case(self) -> Case:
        """The case with the fewest numbers that is not empty."""

        def numbers(case: Case) -> float:
            return sum(x.numel() for x in self.make_inputs(case, torch.float64, torch.device("cpu"), 5)) or math.inf

        return min(self.cases, key=numbers)


def all_specs() -> tuple[OpSpec, ...]:
    """The specs of every op in this package, by folder name."""
    found: list[OpSpec] = []
    package = __package__ or "mgrpo.kernels"
    paths = importlib.import_module(package).__path__
    for module in sorted(pkgutil.iter_modules(paths), key=lambda module: module.name):
        if module.ispkg and any(inner.name == "spec" for inner in pkgutil.iter_modules([f"{paths[0]}/{module.name}"])):
            found.extend(importlib.import_module(f"{package}.{module.name}.spec").SPECS)
    return tuple(found)
