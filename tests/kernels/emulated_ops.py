"""Calls of every op that has CUDA kernels, on small inputs; as a script, for a process with the sanitizers."""

from __future__ import annotations

import torch
from torch import Tensor

from mgrpo.kernels import _dispatch
from mgrpo.kernels._spec import Case, OpSpec, all_specs

CPU = torch.device("cpu")
SPECS = [spec for spec in all_specs() if "cuda" in _dispatch._ops[spec.name].implementations]


def small_cases(spec: OpSpec, most: int = 6000) -> list[Case]:
    """The cases of at most ``most`` numbers."""
    dtype = next(iter(spec.tolerances))
    return [case for case in spec.cases if sum(x.numel() for x in spec.make_inputs(case, dtype, CPU, 8)) <= most]


def served_dtypes(spec: OpSpec, case: Case) -> list[torch.dtype]:
    """Those of the spec that the CUDA kernels take."""
    served = []
    for dtype in spec.tolerances:
        inputs = spec.make_inputs(case, dtype, CPU, 8)
        floating = [x for x in inputs if x.is_floating_point()]
        if _dispatch._refusal(spec.name, "cuda", tuple(floating[:1] or inputs)) is None:
            served.append(dtype)
    return served


def results_and_gradients(spec: OpSpec, case: Case, dtype: torch.dtype) -> list[Tensor]:
    """What the op gives for the case, and the gradients of a fixed random functional of it."""
    inputs = spec.make_inputs(case, dtype, CPU, 8)
    leaves = [x.requires_grad_(spec.differentiable and x.is_floating_point()) for x in inputs]
    results = spec.call(case, *leaves, backend="cuda")
    generator = torch.Generator().manual_seed(3)
    pairs = [(x, torch.randn(x.shape, generator=generator, dtype=x.dtype)) for x in results if x.requires_grad]
    if pairs:
        torch.autograd.backward(*zip(*pairs))
    return [x.detach() for x in results] + [leaf.grad for leaf in leaves if leaf.grad is not None]


def main() -> None:
    for spec in SPECS:
        for case in small_cases(spec):
            for dtype in served_dtypes(spec, case):
                results_and_gradients(spec, case, dtype)
        print(spec.name, flush=True)


if __name__ == "__main__":
    main()
