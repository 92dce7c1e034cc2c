"""torch.vmap over operators: the results of a loop over the slices, to the bit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from mgrpo.kernels import (
    NoiseKey,
    available_backends,
    forward_kinematics,
    joint_offsets,
    procrustes_align,
    sde_log_prob,
    sde_step,
)
from mgrpo.kernels._spec import OpSpec, all_specs

SLICES = 3
CPU = torch.device("cpu")
ONCE_PER_SLICE = {
    "group_advantages": "has statistics of the whole batch",
    "grpo_loss": "sums over the whole batch",
    "motion_metrics": "has its batch axes behind the measures",
    "motion_guidance": "has a reference whose batched linear algebra rounds by the batch",
}
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


@contextmanager
def one_call(wanted: bool = True) -> Iterator[None]:
    """Torch's warning that it calls an operator once per slice is an error where one call is ``wanted``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error" if wanted else "ignore", "There is a performance drop")
        yield


@pytest.mark.parametrize("spec", BY_SPEC)
def test_slices_are_those_of_a_loop(spec: OpSpec, backend: str) -> None:
    inputs = slices_of(spec)
    leaves = [torch.stack(parts) for parts in zip(*inputs, strict=True)]
    leaves = [x.requires_grad_(spec.differentiable and x.is_floating_point()) for x in leaves]
    # A spec draws what is constant in its call, with the same seed for all slices.
    with one_call(spec.name not in ONCE_PER_SLICE):
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


@pytest.mark.parametrize("spec", [one for one in BY_SPEC if one.values[0].name not in ONCE_PER_SLICE])
def test_one_argument_differs_and_the_others_are_shared(spec: OpSpec, backend: str) -> None:
    inputs = slices_of(spec)
    for number, first in enumerate(inputs[0]):
        # The slices lie along the last axis, in memory too.
        leaf = torch.stack([slice_[number] for slice_ in inputs], dim=-1)
        in_dims = tuple(leaf.dim() - 1 if i == number else None for i in range(len(inputs[0])))
        arguments = [leaf if i == number else x for i, x in enumerate(inputs[0])]
        with one_call(False):  # a mapped skeleton, or mapped weights, are one call per slice
            mapped = torch.vmap(
                lambda *slice_: results_of(spec, slice_, backend), in_dims, randomness="same", out_dims=0
            )(*arguments)
        for k in range(SLICES):
            alone = results_of(spec, (*inputs[0][:number], inputs[k][number], *inputs[0][number + 1 :]), backend)
            for got_k, wanted in zip((got[k] for got in mapped), alone, strict=True):
                if backend == "reference":  # torch's own sums round by the strides
                    torch.testing.assert_close(got_k, wanted, equal_nan=True)
                else:
                    assert torch.equal(got_k.nan_to_num(7.0), wanted.nan_to_num(7.0)), (number, k, first.shape)


@pytest.mark.parametrize("spec", [one for one in BY_SPEC if one.values[0].name not in ONCE_PER_SLICE])
def test_no_slices_have_the_shapes_of_some(spec: OpSpec, backend: str) -> None:
    if backend == "reference":
        pytest.skip("plain torch, whose own operators refuse an axis of no slices here and there")
    alone = slices_of(spec)[0]
    leaves = [x.new_empty(0, *x.shape) for x in alone]
    leaves = [x.requires_grad_(spec.differentiable and x.is_floating_point()) for x in leaves]
    mapped = torch.vmap(lambda *slice_: results_of(spec, slice_, backend), randomness="same")(*leaves)
    for got, wanted in zip(mapped, results_of(spec, alone, backend), strict=True):
        assert (got.shape, got.dtype) == ((0, *wanted.shape), wanted.dtype)
    if spec.differentiable:
        tracked = [x for x in leaves if x.requires_grad]
        grads = torch.autograd.grad(probed(mapped), tracked, allow_unused=True)
        for leaf, grad in zip(tracked, grads, strict=True):
            assert grad is None or grad.shape == leaf.shape


def test_offsets_per_slice_and_poses_in_batches(backend: str) -> None:
    rotations = torch.linalg.qr(torch.randn(2, 4, 3, 3, 3)).Q
    offsets, roots = torch.randn(5, 3, 3), torch.randn(2, 7)
    parents = [-1, 0, 1]

    def posed(own: Tensor) -> Tensor:
        return forward_kinematics(rotations, own, parents, T_world_root=roots[:, None], backend=backend).joints

    with one_call():
        mapped = torch.vmap(posed)(offsets)
    assert torch.equal(mapped, torch.stack([posed(own) for own in offsets]))

    def bones(template: Tensor, betas: Tensor) -> Tensor:
        return joint_offsets(template, torch.ones(3, 3, 2), betas, backend=backend)

    betas = torch.randn(5, 2)
    mapped = torch.vmap(bones)(offsets, betas)
    assert torch.equal(mapped, torch.stack([bones(*both) for both in zip(offsets, betas)]))


def test_nested(backend: str) -> None:
    source, target = torch.randn(3, 2, 6, 3), torch.randn(2, 6, 3)

    def aligned(one: Tensor, other: Tensor) -> Tensor:
        return procrustes_align(one, other, backend=backend).aligned

    with one_call():
        mapped = torch.vmap(torch.vmap(aligned), in_dims=(0, None))(source, target)
    for i in range(3):
        for j in range(2):
            assert torch.equal(mapped[i, j], aligned(source[i, j], target[j]))


def test_weights_per_slice(backend: str) -> None:
    states, weights = torch.randn(3, 4, 5, 6), torch.rand(2, 6)

    def density(own: Tensor) -> Tensor:
        return sde_log_prob(*states, 0.5, 0.3, 0.2, channel_weights=own, backend=backend)

    assert torch.equal(torch.vmap(density)(weights), torch.stack([density(own) for own in weights]))


def test_a_key_may_be_mapped(backend: str) -> None:
    rows = torch.arange(6).view(3, 2)

    def stepped(condition: Tensor, member: Tensor) -> Tensor:
        key = NoiseKey(seed=1, iteration=2, condition=condition, member=member, step=1)
        state = torch.ones(2, 4, 5)
        return sde_step(state, state, 0.5, 0.3, 0.2, key, backend=backend)

    mapped = torch.vmap(stepped)(rows, rows + 1)
    for number, row in enumerate(rows):
        assert torch.equal(mapped[number], stepped(row, row + 1))
