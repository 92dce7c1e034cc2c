"""What is measured: one operation at one size, and everything that can compute it."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

Inputs = Mapping[str, Any]
"""Tensors and plain values by name; tensors that belong to single items have the items as their first axis."""
Results = Mapping[str, Any]
"""Named tensors that implementations are compared by."""

Kind = Literal["ours", "reference", "compile", "peer"]

OURS = "mgrpo"
"""Implementations of ours are named ``mgrpo cpp``, ``mgrpo triton``, ``mgrpo cuda``."""
REFERENCE = "eager torch"
PLAIN = "eager torch, as usually written"
"""The straightforward form, where the reference backend takes fewer operations than the formula that people write."""
COMPILED = "torch.compile"


@dataclass(frozen=True)
class Implementation:
    """One way to compute a workload."""

    name: str
    kind: Kind
    prepare: Callable[[Inputs], Callable[[], Any]]
    """Turns inputs into its own form, which is not timed, and returns the call that is."""
    results: Callable[[Any], Results] = lambda raw: raw
    """Picks what can be compared with the exact results out of what the call returns; not timed either."""
    package: str | None = None
    """The peer (a key of ``peers.PEERS``) that it needs."""
    left_out: str | None = None
    """Why it is not measured at this size, for a person."""


@dataclass(frozen=True)
class Workload:
    """One operation at one size on one device."""

    op: str
    """Names the csv file, and the operator's tests."""
    name: str
    """Unique among all workloads: ``fk_quaternion_2048``."""
    title: str
    """For tables and figures: ``FK from quaternions, 22 joints``."""
    items: int
    """Rows that the time is divided by."""
    item: str
    """What a row is: ``frame``, ``matrix``."""
    size: str
    """The size in words, for tables: ``2,048 frames``."""
    make_inputs: Callable[[int], Inputs]
    """Seed -> float32 inputs on the workload's device."""
    implementations: Callable[[], Sequence[Implementation]]
    exact: Callable[[Inputs], Results] | None
    """The results in float64, from float64 inputs; None where there is nothing to compare with."""
    bytes_moved: int
    """Each input read once and each output written once."""
    operations: int
    """Floating-point operations, counted roughly: they say which bound is nearer, not how near."""
    gradient: bool = False
    """Whether the backward pass is timed too."""
    device: str = "cpu"
    tests: tuple[str, ...] = ()
    """Test files that must pass before it is worth timing."""
    seconds: float = math.inf
    """Stop looking for clean samples of it after this time."""
    rows: Callable[[Inputs, int], Inputs] | None = None
    """(inputs, n) -> the inputs of the first n items, for the comparison with float64; None compares everything."""


def first_rows(items: int, *shared: str) -> Callable[[Inputs, int], Inputs]:
    """A ``Workload.rows`` for tensors whose first axis has ``items`` entries; ``shared`` ones are passed whole."""

    def rows(inputs: Inputs, count: int) -> Inputs:
        return {
            name: value[:count]
            if name not in shared and getattr(value, "ndim", 0) and value.shape[0] == items
            else value
            for name, value in inputs.items()
        }

    return rows


def ours(
    device: str,
    op: str,
    apply: Callable[..., Results],
    *,
    leaves: Sequence[str] = (),
    backends: Sequence[str] | None = None,
) -> list[Implementation]:
    """The reference, its compiled form and each of our backends that runs natively on the device.

    ``apply(inputs, backend=...)`` computes the results. The emulated CUDA kernels and the Triton interpreter, which
    tests use on the CPU, are not timed. ``backends`` limits ours.
    """
    from mgrpo import kernels

    native = {"cpu": ("cpp",), "cuda": ("cuda", "triton")}[device.split(":")[0]]
    available = kernels.available_backends(op)
    chosen = [name for name in native if name in available and (backends is None or name in backends)]
    reference = partial(apply, backend="reference")

    @lru_cache(maxsize=1)
    def compiled() -> Callable[..., Results]:
        import torch

        return torch.compile(reference, dynamic=False)

    return [
        Implementation(REFERENCE, "reference", lambda inputs: timed_call(reference, inputs, leaves)),
        Implementation(COMPILED, "compile", lambda inputs: timed_call(compiled(), inputs, leaves)),
        *(
            Implementation(
                f"{OURS} {name}",
                "ours",
                lambda inputs, name=name: timed_call(partial(apply, backend=name), inputs, leaves),
            )
            for name in chosen
        ),
    ]


def drawn_freely(found: Sequence[Implementation], plain: Callable[[Inputs], Results]) -> list[Implementation]:
    """``found`` with ``plain`` beside it, eager and compiled: code that draws from torch's generator what ours draws
    from keys. Its numbers are others, so there is nothing to compare. The reference draws inside an operator, which
    torch.compile takes as it is: compiled is the plain form instead."""

    @lru_cache(maxsize=1)
    def compiled() -> Callable[[Inputs], Results]:
        import torch

        return torch.compile(plain, dynamic=False)

    fused = Implementation(COMPILED, "compile", lambda inputs: timed_call(compiled(), inputs), lambda raw: {})
    return [
        *(fused if one.kind == "compile" else one for one in found),
        Implementation(PLAIN, "reference", lambda inputs: timed_call(plain, inputs), lambda raw: {}),
    ]


def timed_call(apply: Callable[[Inputs], Results], inputs: Inputs, leaves: Sequence[str] = ()) -> Callable[[], Results]:
    """The call that is timed: ``apply(inputs)``, and with ``leaves`` its gradient with respect to these inputs.

    The gradient of output ``x`` is the input ``grad_x``; the call then returns ``grad_<leaf>`` for each leaf.
    """
    import torch

    if not leaves:
        return partial(apply, inputs)
    given = {**inputs, **{name: inputs[name].detach().clone().requires_grad_() for name in leaves}}

    def call() -> Results:
        outputs = apply(given)
        grads = torch.autograd.grad(
            list(outputs.values()), [given[name] for name in leaves], [given[f"grad_{name}"] for name in outputs]
        )
        return {f"grad_{name}": grad for name, grad in zip(leaves, grads)}

    return call


def exact_call(apply: Callable[..., Results], leaves: Sequence[str] = ()) -> Callable[[Inputs], Results]:
    """A ``Workload.exact``: the reference backend in float64."""
    return lambda inputs: timed_call(partial(apply, backend="reference"), inputs, leaves)()


def all_workloads(device: str = "cpu", backends: Sequence[str] | None = None) -> list[Workload]:
    """Every workload of ``benchmarks/ops`` for a device, by file name and in the order of each file.

    A file there has a function ``workloads(device, backends)``.
    """
    package = importlib.import_module("benchmarks.ops")
    found: list[Workload] = []
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
        found.extend(importlib.import_module(f"benchmarks.ops.{module.name}").workloads(device, backends))
    names = [workload.name for workload in found]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"workloads must have names of their own, repeated: {', '.join(repeated)}")
    return found
