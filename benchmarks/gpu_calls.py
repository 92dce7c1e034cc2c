"""Calls every operator's GPU backends on small inputs, forward and backward: the program that compute-sanitizer
watches, and, with comparison, a first test on a new machine.

Inputs are made on the CPU and copied, so that a tool that looks for uninitialised memory sees where they come from.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from .harness import said


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_calls", description=__doc__)
    parser.add_argument("--backend", action="append", choices=("cpp", "cuda", "triton"), help="repeats (cuda, triton)")
    parser.add_argument("--device", default="cuda", help="cuda (default); cpu tries this program itself")
    parser.add_argument("--plain", action="store_true", help="call only, compare nothing")
    options = parser.parse_args(arguments)
    backends = options.backend or ["cuda", "triton"]

    from mgrpo import kernels
    from mgrpo.kernels._spec import all_specs

    failures, calls, missing = 0, 0, []
    for spec in all_specs():
        available = kernels.available_backends(spec.name)
        for backend in backends:
            if backend not in available:
                missing.append(f"{spec.name} {backend}")
                continue
            for case in spec.cases:
                calls += 1
                problem = problem_of(spec, case, backend, options.device, options.plain)
                if problem is not None:
                    failures += 1
                    print(f"FAILED {spec.name} {backend} {case.name}: {problem}", flush=True)
    if missing:
        print(f"not there: {', '.join(missing)}")
    print(f"{calls - failures} of {calls} calls as they should be")
    return 1 if failures or not calls else 0


def problem_of(spec: Any, case: Any, backend: str, device: str, plain: bool) -> str | None:
    """What is wrong with a case's results and gradients on a backend, None if nothing is."""
    import torch

    try:
        inputs = spec.make_inputs(case, torch.float32, torch.device("cpu"), 0)
        outputs, grads = run(spec, case, inputs, backend, device)
        if device != "cpu":
            torch.cuda.synchronize()
        if plain:
            return None
        exact, exact_grads = run(spec, case, [as_float64(value) for value in inputs], "reference", "cpu")
        tolerance = spec.tolerances[torch.float32]
        for name, got, wanted, limit in (
            ("result", outputs, exact, tolerance.forward),
            ("gradient", grads, exact_grads, tolerance.gradient),
        ):
            for number, (a, b) in enumerate(zip(got, wanted)):
                worst = distance(a, b)
                if not worst <= limit:
                    return f"{name} {number} differs from float64 by {worst:.2e}, relative to its size"
    except Exception as error:
        return said(error)
    return None


def run(spec: Any, case: Any, inputs: Sequence[Any], backend: str, device: str) -> tuple[list[Any], list[Any]]:
    """Results, and gradients with respect to the floating inputs, as CPU tensors."""
    import torch

    moved = [value.detach().clone().to(device) if isinstance(value, torch.Tensor) else value for value in inputs]
    leaves = [
        value.requires_grad_()
        for value in moved
        if spec.differentiable and isinstance(value, torch.Tensor) and value.is_floating_point()
    ]
    outputs = [value for value in spec.call(case, *moved, backend=backend) if isinstance(value, torch.Tensor)]
    differentiable = [value for value in outputs if value.requires_grad]
    grads: list[Any] = []
    if differentiable:
        generator = torch.Generator().manual_seed(1)
        ones = [
            torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype).to(device)
            for value in differentiable
        ]
        grads = [
            grad for grad in torch.autograd.grad(differentiable, leaves, ones, allow_unused=True) if grad is not None
        ]
    return [value.detach().cpu() for value in outputs], [grad.cpu() for grad in grads]


def as_float64(value: Any) -> Any:
    """Floating tensors in float64, anything else as it is."""
    return value.double() if getattr(value, "is_floating_point", lambda: False)() else value


def distance(got: Any, wanted: Any) -> float:
    """Largest difference over the largest magnitude (at least 1); infinite where one is not finite and the other is."""
    import torch

    got, wanted = got.double(), wanted.double()
    if not wanted.numel():
        return 0.0
    if not torch.equal(torch.isfinite(got), torch.isfinite(wanted)):
        return float("inf")
    finite = torch.isfinite(wanted)
    difference = (got - wanted)[finite]
    scale = max(1.0, float(wanted[finite].abs().max()) if bool(finite.any()) else 1.0)
    return float(difference.abs().max()) / scale if difference.numel() else 0.0


if __name__ == "__main__":
    raise SystemExit(main())
