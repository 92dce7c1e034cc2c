"""torch.vmap over operators: the results of a loop over the slices, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mgrpo.kernels import NoiseKey, available_backends, sde_step
from mgrpo.kernels._spec import OpSpec, all_specs

SLICES = 3
CPU = torch.device("cpu")
BY_SPEC = [pytest.param(spec, id=spec.name) for spec in all_specs()]


@pytest.fixture(params=["reference", "cpp"], autouse=True)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param not in available_backends("project_so3"):
        pytest.skip("the native extension is not built")
    return request.param


def slices_of(spec: OpSpec) -> list[tuple[Tensor, ...]]:
    dtype = min(spec.tolerances, key=lambda one: one.itemsize if one.itemsize >= 4 else 99)
    return [spec.make_inputs(spec.smallest_case(), dtype, CPU, seed) for seed in range(1, 1 + SLICES)]


def results_of(spec: OpSpec, slice_: tuple[Tensor, ...], backend: str) -> tuple[Tensor, ...]:
    results = spec.call(spec.smallest_case(), *slice_, backend=backend)
    return tuple(x for x in results if x is not None) if isinstance(results, tuple) else (results,)


def probed(results: tuple[Tensor, ...]) -> Tensor:
    """A number whose gradient differs from entry to entry."""
    return sum(
        (x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape)).sum() for x in results if x.requires_grad
    )


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("spec", BY_SPEC)
def test_slices_are_those_of_a_loop(spec: OpSpec, backend: str) -> None:
    inputs = slices_of(spec)
    leaves = [torch.stack(parts) for parts in zip(*inputs, strict=True)]
    leaves = [x.requires_grad_(spec.differentiable and x.is_floating_point()) for x in leaves]
    # A spec draws what is constant in its call, with the same seed for all slices.
    mapped = torch.vmap(lambda *slice_: results_of(spec, slice_, backend), randomness="same")(*leaves)
    looped = [results_of(spec, slice_, backend) for slice_ in zip(*leaves, strict=True)]
    stacked = tuple(torch.stack(parts) for parts in zip(*looped, strict=True))
    for got, wanted in zip(mapped, stacked, strict=True):
        assert torch.equal(got.nan_to_num(7.0), wanted.nan_to_num(7.0))
    if not spec.differentiable:
        return
    tracked = [x for x in leaves if x.requires_grad]
    grads = [torch.autograd.grad(probed(results), tracked, allow_unused=True) for results in (mapped, stacked)]
    assert any(x is not None for x in grads[1])
    for got, wanted in zip(*grads, strict=True):
        assert (got is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_key_may_be_mapped(backend: str) -> None:
    rows = torch.arange(6).view(3, 2)

    def stepped(condition: Tensor, member: Tensor) -> Tensor:
        key = NoiseKey(seed=1, iteration=2, condition=condition, member=member, step=1)
        state = torch.ones(2, 4, 5)
        return sde_step(state, state, 0.5, 0.3, 0.2, key, backend=backend)

    mapped = torch.vmap(stepped)(rows, rows + 1)
    for number, row in enumerate(rows):
        assert torch.equal(mapped[number], stepped(row, row + 1))
