"""Transitions as a policy: densities, ratios and divergences against independent formulas, gradients, weighting.

Every test runs on every backend that this machine has. What holds for any op is in test_ops.py.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mgrpo import kernels
from mgrpo.kernels import (
    BackendError,
    NoiseKey,
    ProjectedStep,
    SdeStep,
    explain_backend,
    philox_normal,
    project_so3,
    projected_sde_step,
    sde_kl,
    sde_log_prob,
    sde_log_ratio,
    sde_step,
    use_backend,
)
from mgrpo.kernels.transition.op import keeps_residual
from tests.golden import golden_file, golden_files

N, T, D = 5, 7, 6
BACKENDS = kernels.available_backends("sde_step")
FUSED = BACKENDS[1:]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True, params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The backend that all calls of the test take."""
    with use_backend(request.param):
        yield request.param


@pytest.fixture
def fused(backend: str) -> str:
    if backend == "reference":
        pytest.skip("the reference is plain torch")
    return backend


def states(count: int, dtype=torch.float64, shape=(N, T, D), seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def noise_key(rows: int = N, **changes) -> NoiseKey:
    index = torch.arange(rows)
    fields = {"seed": 2**63 + 11, "iteration": 4, "condition": 7 * index + 2**31, "member": index % 3, "step": 5}
    return NoiseKey(**(fields | changes))


def drawn(key: NoiseKey, shape: tuple[int, ...]) -> Tensor:
    """The key's numbers, from the reference."""
    fields = {name: getattr(key, name) for name in ("seed", "iteration", "condition", "member", "step", "stream")}
    return philox_normal(shape, **fields, backend="reference")


def bits(x: Tensor) -> Tensor:
    return x.contiguous().flatten().view(torch.uint8)


def row_scalars() -> tuple[Tensor, Tensor, Tensor]:
    """A, B, s, different in every row."""
    index = torch.arange(N, dtype=torch.float64)
    return 0.9 - 0.1 * index, 0.2 + 0.15 * index, 0.3 + 0.05 * index


def frame_mask() -> Tensor:
    mask = torch.arange(T)[None, :] < torch.tensor([7, 3, 1, 5, 6])[:, None]
    return mask


def weights() -> Tensor:
    return torch.tensor([1.0, 0.0, 0.5, 2.0, 0.0, 1.5], dtype=torch.float64)


WEIGHTINGS = [
    {},
    {"mask": frame_mask()},
    {"channel_weights": weights()},
    {"mask": frame_mask(), "channel_weights": weights()},
]
REDUCTIONS = ["mean", "sum"]


# ------------------------------------------------------------------ sde_step


def test_step_is_the_affine_map_with_a_number_or_a_value_per_row():
    x_t, x0_pred, noise = states(3)
    A, B, s = row_scalars()
    per_row = sde_step(x_t, x0_pred, A, B, s, noise)
    for i in range(N):
        expected = float(A[i]) * x_t[i] + float(B[i]) * x0_pred[i] + float(s[i]) * noise[i]
        torch.testing.assert_close(per_row[i], expected, rtol=1e-14, atol=1e-14)
        alone = sde_step(x_t[i : i + 1], x0_pred[i : i + 1], float(A[i]), float(B[i]), float(s[i]), noise[i : i + 1])
        assert torch.equal(alone[0], per_row[i])
    assert torch.equal(sde_step(x_t, x0_pred, A[0], B[0], s[0], noise)[0], per_row[0])  # a () tensor is a number


def test_step_without_noise():
    x_t, x0_pred = states(2)
    # The last step of every sampler: A = 0, B = 1, s = 0 returns the prediction exactly, and looks at no noise.
    assert torch.equal(sde_step(x_t, x0_pred, 0.0, 1.0, 0.0, None), x0_pred)
    assert torch.equal(sde_step(x_t, x0_pred, 0.0, 1.0, 0.0, torch.full_like(x_t, torch.nan)), x0_pred)
    with pytest.raises(ValueError, match=r"sde_step\(\): noise must be a tensor or a NoiseKey unless s is the .* 0"):
        sde_step(x_t, x0_pred, 0.5, 0.5, 0.1, None)


def test_step_dtypes_shapes_and_gradient():
    x_t, x0_pred, noise = states(3, torch.bfloat16, shape=(N, 3, 2, 4))
    out = sde_step(x_t, x0_pred, 0.5, 0.25, 0.125, noise)
    assert out.dtype == torch.float32 and out.shape == x_t.shape
    assert torch.equal(out, x_t.float() * 0.5 + x0_pred.float() * 0.25 + noise.float() * 0.125)
    assert sde_step(x_t.double(), x0_pred, 0.5, 0.25, 0.125, noise).dtype == torch.float64
    inputs = [x.double().requires_grad_() for x in states(3, shape=(2, 3))]
    assert torch.autograd.gradcheck(lambda x, f, n: sde_step(x, f, 0.7, 0.2, 0.1, n), inputs)


# -------------------------------------------------------------- sde_log_prob


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_log_prob_is_the_weighted_normal_density(weighting, reduction):
    x_prev, x_t, x0_pred = states(3)
    A, B, s = row_scalars()
    got = sde_log_prob(x_prev, x_t, x0_pred, A, B, s, reduction=reduction, **weighting)
    mean = A[:, None, None] * x_t + B[:, None, None] * x0_pred
    element = torch.distributions.Normal(mean, s[:, None, None].expand_as(mean)).log_prob(x_prev)
    weight = torch.ones(N, T, D, dtype=torch.float64)
    if "mask" in weighting:
        weight = weight * weighting["mask"][:, :, None]
    if "channel_weights" in weighting:
        weight = weight * weighting["channel_weights"]
    expected = (element * weight).sum(dim=(1, 2))
    if reduction == "mean":
        expected = expected / weight.sum(dim=(1, 2))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_log_prob_of_own_samples_has_the_closed_form():
    x_t, x0_pred, noise = states(3, torch.float32, shape=(4, 32, 50))
    x_prev = sde_step(x_t, x0_pred, 0.8, 0.3, 0.05, noise)
    got = sde_log_prob(x_prev, x_t, x0_pred, 0.8, 0.3, 0.05)
    expected = -noise.square().mean(dim=(1, 2)) / 2 - math.log(0.05) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=2e-6)


def test_log_prob_gradients():
    inputs = [x.requires_grad_() for x in states(3, shape=(2, 3, 4))]
    options = {
        "mask": torch.tensor([[True, True, False], [True, False, False]]),
        "channel_weights": [1.0, 0.0, 2.0, 0.5],
    }

    def density(x_prev, x_t, x0_pred):
        return sde_log_prob(x_prev, x_t, x0_pred, 0.7, 0.4, torch.tensor([0.3, 0.5]), **options)

    assert torch.autograd.gradcheck(density, inputs)


# ------------------------------------------------------------- sde_log_ratio


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_log_ratio_is_the_difference_of_log_probs(weighting, reduction):
    x_t, old, new, noise = states(4)
    new = old + 0.1 * new
    A, B, s = row_scalars()
    x_prev = sde_step(x_t, old, A, B, s, noise)
    difference = sde_log_prob(x_prev, x_t, new, A, B, s, reduction=reduction, **weighting) - sde_log_prob(
        x_prev, x_t, old, A, B, s, reduction=reduction, **weighting
    )
    got = sde_log_ratio(new, old, noise, B, s, reduction=reduction, **weighting)
    torch.testing.assert_close(got, difference, rtol=1e-10, atol=1e-13)
    assert got.abs().min() > 1e-4  # the comparison is not between zeros


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_log_ratio_is_exactly_zero_for_equal_predictions(dtype, weighting):
    prediction, noise = states(2, dtype)
    got = sde_log_ratio(prediction, prediction.clone(), noise, 138.0, 1e-3, **weighting)
    assert torch.equal(got, torch.zeros_like(got))
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_log_ratio_keeps_digits_that_the_difference_of_float32_log_probs_loses():
    x_t, old, change, noise = states(4, torch.float32, shape=(8, 64, 40))
    new = old + 1e-5 * change
    exact = sde_log_ratio(new.double(), old.double(), noise.double(), 1.0, 0.05)
    got = sde_log_ratio(new, old, noise, 1.0, 0.05)
    x_prev = sde_step(x_t, old, 0.5, 1.0, 0.05, noise)
    classic = sde_log_prob(x_prev, x_t, new, 0.5, 1.0, 0.05) - sde_log_prob(x_prev, x_t, old, 0.5, 1.0, 0.05)
    assert (got - exact).abs().max() * 100 < (classic - exact).abs().max()


@pytest.mark.parametrize("drop_quadratic", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_log_ratio_gradient_is_that_of_the_formula(weighting, reduction, drop_quadratic):
    new, old, noise = states(3)
    new.requires_grad_()
    _, B, s = row_scalars()
    row_weight = torch.linspace(-1.0, 2.0, N, dtype=torch.float64)

    delta = (B / s)[:, None, None] * (new - old)
    element = noise * delta - (0.0 if drop_quadratic else delta**2 / 2)
    weight = torch.ones(N, T, D, dtype=torch.float64)
    if "mask" in weighting:
        weight = weight * weighting["mask"][:, :, None]
    if "channel_weights" in weighting:
        weight = weight * weighting["channel_weights"]
    expected = (element * weight).sum(dim=(1, 2))
    if reduction == "mean":
        expected = expected / weight.sum(dim=(1, 2))
    (expected_grad,) = torch.autograd.grad((expected * row_weight).sum(), new)

    got = sde_log_ratio(new, old, noise, B, s, reduction=reduction, drop_quadratic=drop_quadratic, **weighting)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)
    (grad,) = torch.autograd.grad((got * row_weight).sum(), new)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-15)


def test_log_ratio_gradcheck_first_and_second_order():
    new, old, noise = states(3, shape=(2, 3, 2))
    new.requires_grad_()
    mask = torch.tensor([[True, True, False], [True, True, True]])

    def ratio(x):
        return sde_log_ratio(x, old, noise, torch.tensor([0.5, 2.0]), 0.7, mask=mask, channel_weights=[1.0, 3.0])

    assert torch.autograd.gradcheck(ratio, (new,))
    with use_backend("reference"):
        assert torch.autograd.gradgradcheck(ratio, (new,))


def test_only_the_new_prediction_gets_a_gradient_in_its_own_dtype():
    new, old, noise = (x.requires_grad_() for x in states(3, torch.bfloat16))
    sde_log_ratio(new, old, noise, 0.5, 0.7).sum().backward()
    assert new.grad.dtype == torch.bfloat16 and old.grad is None and noise.grad is None
    wide = new.detach().float().requires_grad_()
    sde_log_ratio(wide, old.detach(), noise.detach(), 0.5, 0.7).sum().backward()
    assert torch.equal(new.grad, wide.grad.bfloat16())


def test_no_intermediate_array_is_kept_for_backward():
    new, old, noise = states(3, torch.float32)
    new.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        sde_log_ratio(new, old, noise, 0.5, 0.7)
    large = {x.data_ptr() for x in kept if x.numel() == new.numel()}
    assert large == {new.data_ptr(), old.data_ptr(), noise.data_ptr()}


def test_on_policy_gradient_has_the_known_form():
    """At equal predictions: gradient of mean_d is (B / s) noise / D (grpo facts 3.5)."""
    prediction, noise = states(2)
    new = prediction.clone().requires_grad_()
    sde_log_ratio(new, prediction, noise, 0.6, 0.2).sum().backward()
    torch.testing.assert_close(new.grad, 0.6 / 0.2 * noise / (T * D), rtol=1e-13, atol=0)


# -------------------------------------------------------------------- sde_kl


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_kl_equals_torch_distributions(reduction):
    new, ref = states(2)
    _, B, s = row_scalars()
    normal = torch.distributions.Normal
    std = s[:, None, None].expand(N, T, D)
    element = torch.distributions.kl_divergence(
        normal(B[:, None, None] * new, std), normal(B[:, None, None] * ref, std)
    )
    expected = element.sum(dim=(1, 2)) if reduction == "sum" else element.mean(dim=(1, 2))
    torch.testing.assert_close(sde_kl(new, ref, B, s, reduction=reduction), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(sde_kl(ref, new, B, s, reduction=reduction), expected, rtol=1e-12, atol=1e-14)


def test_kl_is_the_mean_negative_log_ratio_of_samples(backend):
    """Monte Carlo: E_old[ln p_old - ln p_new] = KL, with the noise of many draws from the old policy."""
    draws = 1_000 if backend == "cuda" else 20_000  # rows are what an emulated kernel pays for
    new, old = states(2, shape=(1, 2, 3), seed=4)
    noise = torch.randn(draws, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    samples = -sde_log_ratio(
        new.expand(draws, 2, 3), old.expand(draws, 2, 3), noise, 0.4, 0.5, reduction="sum", channel_weights=[1, 2, 0.5]
    )
    exact = sde_kl(new, old, 0.4, 0.5, reduction="sum", channel_weights=[1, 2, 0.5])
    assert abs(float(samples.mean() - exact)) < 4.0 * float(samples.std()) / math.sqrt(draws)


def test_kl_is_zero_for_equal_predictions_and_has_the_mse_gradient():
    new, ref = states(2)
    zero = sde_kl(ref, ref.clone(), 0.6, 0.2)
    assert torch.equal(zero, torch.zeros(N, dtype=torch.float64)) and not torch.signbit(zero).any()
    assert (sde_kl(new, ref, 0.6, 0.2) > 0).all()
    new.requires_grad_()
    sde_kl(new, ref, 0.6, 0.2).sum().backward()
    torch.testing.assert_close(new.grad, (0.6 / 0.2) ** 2 * (new.detach() - ref) / (T * D), rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda x: sde_kl(x, ref, 0.6, 0.2, mask=frame_mask()), (new,), fast_mode=True)


# ------------------------------------------------- weighting, NaN, invariance


def measures(mask=None, channel_weights=None, spoil=None, reduction="mean"):
    """All three reduced functions on the same states, which ``spoil`` may change first, with gradients of the sum."""
    x_prev, x_t, new, old, noise = states(5)
    if spoil is not None:
        for state in (x_prev, x_t, new, old, noise):
            spoil(state)
    new.requires_grad_()
    options = {"mask": mask, "channel_weights": channel_weights, "reduction": reduction}
    values = (
        sde_log_prob(x_prev, x_t, new, 0.7, 0.4, 0.3, **options),
        sde_log_ratio(new, old, noise, 0.4, 0.3, **options),
        sde_kl(new, old, 0.4, 0.3, **options),
    )
    return [(value.detach(), torch.autograd.grad(value.sum(), new)[0]) for value in values]


@pytest.mark.parametrize("filling", [torch.nan, torch.inf])
def test_what_has_no_weight_is_not_looked_at(filling):
    mask, channels = frame_mask(), weights()

    def spoil(state):
        state[~mask] = filling
        state[:, :, channels == 0] = filling

    for (clean, clean_grad), (value, grad) in zip(
        measures(mask, channels), measures(mask, channels, spoil), strict=True
    ):
        assert torch.equal(value, clean)
        assert torch.equal(grad, clean_grad)
        assert (grad[~mask] == 0).all() and (grad[:, :, channels == 0] == 0).all()


@pytest.mark.parametrize("filling", [torch.nan, torch.inf])
def test_a_bad_row_stays_alone(filling):
    def spoil(state):
        state[2, 1, 3] = filling

    rest = [0, 1, 3, 4]
    for (clean, clean_grad), (value, grad) in zip(measures(), measures(spoil=spoil), strict=True):
        assert torch.equal(value[rest], clean[rest]) and not torch.isfinite(value[2])
        assert torch.equal(grad[rest], clean_grad[rest])


def test_a_row_left_out_of_the_loss_gets_zero_gradient_even_with_nan():
    new, old, noise = states(3)
    new[2] = torch.nan
    new.requires_grad_()
    keep = torch.tensor([True, True, False, True, True])
    for value in (sde_log_ratio(new, old, noise, 0.4, 0.3), sde_kl(new, old, 0.4, 0.3)):
        (grad,) = torch.autograd.grad(torch.where(keep, value, 0.0).sum(), new)
        assert (grad[2] == 0).all() and torch.isfinite(grad).all() and (grad[keep] != 0).any()


def test_masked_mean_is_the_mean_of_the_shorter_sequence():
    short = 4
    mask = (torch.arange(T) < short).expand(N, T)
    x_prev, x_t, new, old, noise = states(5)
    cut = [x[:, :short] for x in (x_prev, x_t, new, old, noise)]
    torch.testing.assert_close(
        sde_log_prob(x_prev, x_t, new, 0.7, 0.4, 0.3, mask=mask), sde_log_prob(*cut[:3], 0.7, 0.4, 0.3), rtol=1e-13,
        atol=0,
    )  # fmt: skip
    torch.testing.assert_close(
        sde_log_ratio(new, old, noise, 0.4, 0.3, mask=mask), sde_log_ratio(*cut[2:], 0.4, 0.3), rtol=1e-13, atol=0
    )
    torch.testing.assert_close(sde_kl(new, old, 0.4, 0.3, mask=mask), sde_kl(*cut[2:4], 0.4, 0.3), rtol=1e-13, atol=0)


def test_weights_scale_out_of_the_mean_and_into_the_sum():
    for (one, _), (three, _) in zip(
        measures(channel_weights=weights()), measures(channel_weights=3 * weights()), strict=True
    ):
        torch.testing.assert_close(one, three, rtol=1e-13, atol=1e-15)
    for (one, _), (three, _) in zip(
        measures(channel_weights=weights(), reduction="sum"), measures(channel_weights=3 * weights(), reduction="sum"),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(3 * one, three, rtol=1e-13, atol=1e-15)


def test_a_row_without_frames_gives_zero():
    mask = frame_mask()
    mask[1] = False
    for reduction in REDUCTIONS:
        for value, grad in measures(mask, reduction=reduction):
            assert value[1] == 0 and (grad[1] == 0).all() and torch.isfinite(value).all()


def test_a_row_alone_equals_the_row_in_a_batch():
    new, old, noise = states(3, torch.float32, shape=(6, 64, 30))
    whole = sde_log_ratio(new, old, noise, 0.4, 0.3)
    alone = torch.cat([sde_log_ratio(new[i : i + 1], old[i : i + 1], noise[i : i + 1], 0.4, 0.3) for i in range(6)])
    assert torch.equal(whole, alone)


def test_layouts_other_than_frames_by_channels():
    x_prev, x_t, new, old, noise = states(5)
    for shape in ((N, T * D), (N, T, 2, D // 2)):
        flat = [x.reshape(shape) for x in (x_prev, x_t, new, old, noise)]
        torch.testing.assert_close(
            sde_log_prob(*flat[:3], 0.7, 0.4, 0.3), sde_log_prob(x_prev, x_t, new, 0.7, 0.4, 0.3), rtol=1e-13, atol=0
        )
        torch.testing.assert_close(
            sde_log_ratio(*flat[2:], 0.4, 0.3), sde_log_ratio(new, old, noise, 0.4, 0.3), rtol=1e-12, atol=1e-15
        )
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (new, old, noise)]
    torch.testing.assert_close(
        sde_log_ratio(*strided, 0.4, 0.3), sde_log_ratio(new, old, noise, 0.4, 0.3), rtol=1e-13, atol=1e-15
    )


def test_inputs_stay_as_they_are_and_empty_batches_work():
    inputs = states(5)
    before = [x.clone() for x in inputs]
    sde_log_prob(*inputs[:3], 0.7, 0.4, 0.3)
    sde_log_ratio(*inputs[2:], 0.4, 0.3, mask=frame_mask(), channel_weights=weights())
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))
    none = torch.empty(0, T, D)
    assert sde_step(none, none, 1.0, 1.0, 1.0, none).shape == (0, T, D)
    assert sde_log_prob(none, none, none, 1.0, 1.0, 1.0).shape == (0,)
    assert sde_log_ratio(none, none, none, 1.0, torch.ones(0)).shape == (0,)


def test_compiled_equals_eager():
    new, old, noise = states(3, torch.float32)
    new.requires_grad_()

    def loss(x):
        return sde_log_ratio(x, old, noise, 0.4, 0.3, mask=frame_mask()).sum() + sde_kl(x, old, 0.4, 0.3).sum()

    (expected,) = torch.autograd.grad(loss(new), new)
    (got,) = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(new), new)
    torch.testing.assert_close(got, expected)


def test_no_value_is_read_and_no_device_mixed(backend):
    """On the meta device a read of a value raises: neither checks nor reference wait for a GPU. Of the launchers it
    says nothing, see test_capture.py."""
    if backend != "reference":
        pytest.skip("only the reference serves the meta device")
    new, old, noise = (x.float().to("meta") for x in states(3))
    s = torch.empty(N, device="meta")
    for options in ({}, {"mask": frame_mask().to("meta"), "channel_weights": [1.0] * D}):
        assert sde_log_prob(noise, old, new, s, 0.3, s, **options).shape == (N,)
        assert sde_log_ratio(new.requires_grad_(), old, noise, 0.3, s, **options).shape == (N,)
        sde_kl(new, old, s, 0.3, reduction="sum", **options).sum().backward()
    assert sde_step(old, old, s, 0.3, s, noise).shape == (N, T, D)


def test_vmap_over_predictions():
    new, old, noise = states(3)
    stacked = torch.stack((new, old + 0.1, old))
    got = torch.func.vmap(lambda x: sde_log_ratio(x, old, noise, 0.4, 0.3))(stacked)
    expected = torch.stack([sde_log_ratio(x, old, noise, 0.4, 0.3) for x in stacked])
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


# --------------------------------------------- the step's bits, noise by key


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_step_has_the_same_bits_in_every_backend(dtype, per_row):
    x_t, x0_pred, noise = states(3, dtype, shape=(N, 13, 29))
    A, B, s = row_scalars() if per_row else (0.7, 0.3, 0.1)
    result = torch.float64 if dtype == torch.float64 else torch.float32
    for z in (noise, noise_key()):
        expected = sde_step(x_t, x0_pred, A, B, s, z, backend="reference")
        got = sde_step(x_t, x0_pred, A, B, s, z)
        assert got.dtype == result and torch.equal(bits(got), bits(expected))
        with_log_prob = sde_step(x_t, x0_pred, A, B, s, z, return_log_prob=True)
        assert isinstance(with_log_prob, SdeStep) and torch.equal(bits(with_log_prob.x_prev), bits(expected))
    alone = sde_step(x_t, x0_pred, 0.7, 0.0, 0.0, None)
    assert torch.equal(bits(alone), bits(x_t.to(result) * 0.7 + x0_pred.to(result) * 0.0))


@pytest.mark.parametrize("shape", [(N, T, D), (N, 3, 331), (N, 700), (N, 2, 2, 128), (N, 40, 226), (N, 1)])
def test_drawn_noise_is_that_of_philox_normal(shape):
    x_t, x0_pred = states(2, torch.float32, shape=shape)
    key = noise_key()
    noise = drawn(key, shape[1:])
    for double in (False, True):
        x = x_t.double() if double else x_t
        assert torch.equal(sde_step(x, x0_pred, 0.7, 0.3, 0.1, key), sde_step(x, x0_pred, 0.7, 0.3, 0.1, noise))
    both = [sde_step(x_t, x0_pred, 0.7, 0.3, 0.1, z, return_log_prob=True).log_prob for z in (key, noise)]
    assert torch.equal(*both)


def test_drawn_noise_with_a_step_per_row_and_every_field():
    x = torch.zeros(N, T, D)
    for changes in (
        {"step": torch.arange(N) + 65531},
        {"seed": 0, "iteration": 2**32 - 1, "stream": 15},
        {"condition": torch.tensor([2**32 - 1] * N), "member": torch.arange(N) + 65531},
    ):
        key = noise_key(**changes)
        assert torch.equal(sde_step(x, x, 0.0, 0.0, 1.0, key), drawn(key, (T, D)))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("drop_quadratic", [False, True])
def test_log_ratio_draws_the_step_s_noise_again(weighting, drop_quadratic):
    new, old = states(2, torch.float32)
    key = noise_key()
    found = []
    for noise in (key, drawn(key, (T, D))):
        leaf = new.clone().requires_grad_()
        ratio = sde_log_ratio(leaf, old, noise, 0.4, 0.3, drop_quadratic=drop_quadratic, **weighting)
        found.append((ratio, *torch.autograd.grad(ratio.square().sum(), leaf)))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_a_deterministic_step_draws_nothing():
    x_t, x0_pred = states(2)
    assert torch.equal(sde_step(x_t, x0_pred, 0.0, 1.0, 0.0, noise_key()), x0_pred)


def test_compiles_with_a_key_made_inside():
    x_t, x0_pred = states(2, torch.float32)
    torch._dynamo.reset()

    def function(x, condition):
        key = NoiseKey(seed=3, iteration=1, condition=condition, member=condition, step=2)
        return sde_step(x, x0_pred, 0.7, 0.3, 0.1, key) * 2.0

    got = torch.compile(function, fullgraph=True, backend="aot_eager")(x_t, torch.arange(N))
    assert torch.equal(got, function(x_t, torch.arange(N)))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"seed": -1}, ValueError, r"NoiseKey\(\): seed must be in \[0, 2\^64\), got -1"),
        ({"iteration": 2**32}, ValueError, "iteration must be in"),
        ({"step": 2**16}, ValueError, r"step must be in \[0, 2\^16\), got 65536"),
        ({"stream": 16}, ValueError, r"stream must be in \[0, 2\^4\), got 16"),
        ({"member": torch.arange(4)}, ValueError, r"member must have shape \(N,\) with N = 5, got \(4,\)"),
        ({"condition": torch.arange(5.0)}, TypeError, "condition must have dtype int64, got float32"),
        ({"condition": torch.arange(5) - 3}, ValueError, "condition must be in .* got -3 in row 0"),
    ],
)
def test_refused_keys(changes, error, message):
    with pytest.raises(error, match=message):
        noise_key(**changes)


# ------------------------------------------------- log-density in the same pass


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_step_s_log_prob_is_that_of_its_noise(weighting, reduction):
    x_t, x0_pred, noise = states(3)
    A, B, s = row_scalars()
    options = {"reduction": reduction, **weighting}
    x_prev, log_prob = sde_step(x_t, x0_pred, A, B, s, noise, return_log_prob=True, **options)
    again = sde_log_prob(x_prev, x_t, x0_pred, A, B, s, **options)
    torch.testing.assert_close(log_prob, again, rtol=1e-12, atol=1e-13)
    # Not through the rounded x_prev: with a small s the step's float32 digits no longer hold the noise.
    in_float32 = sde_step(x_t.float(), x0_pred.float(), A, B, 1e-5 * s, noise.float(), return_log_prob=True, **options)
    exact = sde_step(x_t, x0_pred, A, B, 1e-5 * s, noise.float().double(), return_log_prob=True, **options)
    torch.testing.assert_close(in_float32.log_prob.double(), exact.log_prob, rtol=3e-7, atol=3e-7)


def test_the_step_s_log_prob_carries_no_gradient():
    leaves = [x.requires_grad_() for x in states(3)]
    x_prev, log_prob = sde_step(*leaves[:2], 0.7, 0.3, 0.1, leaves[2], return_log_prob=True)
    assert x_prev.requires_grad and not log_prob.requires_grad
    grads = torch.autograd.grad(x_prev.sum(), leaves)
    for grad, scalar in zip(grads, (0.7, 0.3, 0.1), strict=True):
        assert torch.equal(grad, torch.full_like(grad, scalar))


def test_frames_left_out_of_the_log_prob_still_step():
    x_t, x0_pred, noise = states(3)
    noise[:, 4:] = torch.nan
    mask = (torch.arange(T) < 4).expand(N, T)
    step = sde_step(x_t, x0_pred, 0.7, 0.3, 0.1, noise, return_log_prob=True, mask=mask)
    assert torch.isfinite(step.log_prob).all() and step.x_prev[:, 4:].isnan().all()
    assert torch.equal(step.x_prev[:, :4], sde_step(x_t, x0_pred, 0.7, 0.3, 0.1, noise)[:, :4])


# ------------------------------------------------------------ projected steps


@pytest.mark.parametrize("fix_det", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_projected_step_is_a_projection_and_a_step(dtype, fix_det):
    x_t, x0_pred, noise = states(3, dtype, shape=(3, 11, 40))
    A, B, s = (x[:3] for x in row_scalars())
    step = projected_sde_step(x_t, x0_pred, A, B, s, noise, first_channel=5, matrices=3, fix_det=fix_det)
    assert isinstance(step, ProjectedStep)
    wide = x0_pred.to(step.x0_pred.dtype)
    rotations = project_so3(wide[..., 5:32].unflatten(-1, (3, 3, 3)), fix_det=fix_det).flatten(-3)
    accuracy = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(step.x0_pred[..., 5:32], rotations, rtol=0, atol=accuracy)
    for channels in (slice(0, 5), slice(32, 40)):
        assert torch.equal(step.x0_pred[..., channels], wide[..., channels])
    assert torch.equal(step.x_prev, sde_step(x_t, step.x0_pred, A, B, s, noise))


def test_a_projected_step_with_drawn_or_no_noise():
    x_t, x0_pred = states(2, torch.float32, shape=(N, 9, 31))
    options = {"first_channel": 1, "matrices": 3}
    key = noise_key()
    step = projected_sde_step(x_t, x0_pred, 0.7, 0.3, 0.1, key, **options)
    given = projected_sde_step(x_t, x0_pred, 0.7, 0.3, 0.1, drawn(key, (9, 31)), **options)
    assert torch.equal(step.x_prev, given.x_prev) and torch.equal(step.x0_pred, given.x0_pred)
    last = projected_sde_step(x_t, x0_pred, 0.0, 1.0, 0.0, None, **options)
    assert torch.equal(last.x_prev, last.x0_pred) and torch.equal(last.x0_pred, step.x0_pred)


@pytest.mark.parametrize("through", ["x_prev", "x0_pred", "both"])
def test_gradients_through_one_result_of_a_projected_step(through):
    x_t, x0_pred, noise = states(3, shape=(2, 3, 12))
    x0_pred[..., 2:11] += 3.0 * torch.eye(3, dtype=torch.float64).flatten()
    leaves = [x.requires_grad_() for x in (x_t, x0_pred, noise)]
    probe = states(1, shape=(2, 3, 12), seed=3)[0]

    def gradients(backend):
        step = projected_sde_step(*leaves[:2], 0.7, 0.4, 0.2, leaves[2], first_channel=2, matrices=1, backend=backend)
        parts = step if through == "both" else [getattr(step, through)]
        return torch.autograd.grad(sum((part * probe).sum() for part in parts), leaves, allow_unused=True)

    for got, expected in zip(gradients(None), gradients("reference"), strict=True):
        if expected is None or got is None:
            assert got is None or not got.any()
            assert expected is None or not expected.any()
        else:
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"first_channel": -1, "matrices": 1}, ValueError, "first_channel must be >= 0, got -1"),
        ({"first_channel": 0, "matrices": 0}, ValueError, "matrices must be >= 1, got 0"),
        ({"first_channel": 4, "matrices": 3}, ValueError, r"must be <= D = 30, got 4 \+ 9 x 3"),
        ({"first_channel": 1.5, "matrices": 1}, TypeError, "first_channel must be an int, got float"),
    ],
)
def test_refused_matrices(options, error, message):
    (x,) = states(1, shape=(2, 3, 30))
    with pytest.raises(error, match=r"projected_sde_step\(\): .*" + message):
        projected_sde_step(x, x, 0.5, 0.5, 0.1, x, **options)


# ---------------------------------------- order of rows, threads, instruction sets


def everything(shape=(6, 37, 226), dtype=torch.float32, rows=slice(None), frames=slice(None), **weighting):
    """Results and gradients of all functions on some rows and frames of the same states."""
    made = [x[rows, frames] for x in states(5, dtype, shape=shape)]
    count = len(made[0])
    x_prev, x_t, new, old, noise = made
    key = noise_key(shape[0])
    key = NoiseKey(key.seed, key.iteration, key.condition[rows], key.member[rows], key.step)
    new = new.clone().requires_grad_()
    per_row = torch.linspace(0.5, 1.5, shape[0])[rows]
    found: list[Tensor] = []
    for value in (
        sde_step(x_t, new, per_row, 0.3, 0.2, key, return_log_prob=True, **weighting).log_prob,
        sde_step(x_t, new, 0.7, per_row, 0.2, noise, return_log_prob=True, **weighting).log_prob,
        sde_log_prob(x_prev, x_t, new, 0.7, 0.4, per_row, **weighting),
        sde_log_ratio(new, old, noise, 0.4, per_row, **weighting),
        sde_log_ratio(new, old, key, 0.4, per_row, reduction="sum", **weighting),
        sde_kl(new, old, per_row, 0.3, **weighting),
        sde_step(x_t, new, per_row, 0.3, 0.2, key).flatten(1).sum(1),
        projected_sde_step(x_t, new, 0.7, 0.3, 0.2, key, first_channel=16, matrices=21).x_prev.flatten(1).sum(1),
    ):
        assert value.shape == (count,)
        found.append(value.detach())
        if value.requires_grad:
            found.append(torch.autograd.grad((value * per_row).sum(), new)[0])
    return found


def test_rows_do_not_know_each_other(fused):
    whole = everything()
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    for a, b in zip(whole, everything(rows=order), strict=True):
        assert torch.equal(bits(b), bits(a[order]))
    for rows in (slice(0, 1), slice(2, 6)):
        for a, b in zip(whole, everything(rows=rows), strict=True):
            assert torch.equal(bits(b), bits(a[rows]))


def test_a_masked_end_is_a_shorter_sequence_bit_for_bit(fused):
    kept = 23
    mask = (torch.arange(37) < kept).expand(6, 37)
    for options in ({}, {"channel_weights": torch.arange(226) % 3}):
        options = {name: value.double() for name, value in options.items()}
        masked, short = everything(mask=mask, **options)[:-4], everything(frames=slice(kept), **options)[:-4]
        for a, b in zip(masked, short, strict=True):
            assert torch.equal(bits(a[:, :kept] if a.dim() == 3 else a), bits(b))
            assert a.dim() == 1 or not a[:, kept:].any()


@pytest.mark.parametrize("channels", [496, 226, 223])
def test_large_results_are_stored_past_the_caches(backend, channels):
    """Rows whose pieces begin at aligned and at unaligned places, of a size beyond a core's own cache."""
    if backend != "cpp":
        pytest.skip("what the C++ backend does with large results")
    frames = 2**19 // (6 * channels) + 1
    x_t, new, old, noise = states(4, torch.float32, shape=(6, frames, channels))
    step = sde_step(x_t, new, 0.7, 0.3, 0.2, noise, return_log_prob=True)
    assert torch.equal(bits(step.x_prev), bits(sde_step(x_t, new, 0.7, 0.3, 0.2, noise, backend="reference")))
    mask = torch.rand(6, frames, generator=torch.Generator().manual_seed(1)) < 0.9
    for function, arguments in (
        (sde_log_prob, (new, x_t, old, 0.7, 0.4, 0.3)),
        (sde_log_ratio, (new, old, noise, 0.4, 0.3)),
    ):
        found = []
        for name in ("cpp", "reference"):
            leaf = arguments[0].clone().requires_grad_()
            value = function(leaf, *arguments[1:], mask=mask, backend=name)
            found.append((value.detach(), *torch.autograd.grad(value.sum(), leaf)))
        torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found[0][1] * frames, found[1][1] * frames, rtol=1e-5, atol=1e-8)


def test_threads_change_nothing(backend):
    if backend != "cpp":
        pytest.skip("the threads are those of the C++ backend")
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(everything())
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(bits(a), bits(b))


def test_instruction_sets_change_nothing_but_the_projection(backend):
    """Sums and steps have the same bits whether a register holds four numbers or sixteen."""
    if backend != "cpp":
        pytest.skip("the instruction sets are those of the C++ backend")
    script = """if True:
        import hashlib, os, torch
        from tests.kernels import test_transition as t
        for isa in ("v4", "v3", "baseline"):
            if os.fork():  # after the imports and before the first operator, which reads the variable
                assert os.wait()[1] == 0
                continue
            os.environ["MGRPO_ISA"] = isa
            with t.use_backend("cpp"):
                found = [x for dtype in (torch.float32, torch.float64) for x in t.everything(dtype=dtype)[:-2]]
            print(*(hashlib.sha1(t.bits(x).numpy().tobytes()).hexdigest() for x in found), flush=True)
            os._exit(0)
    """
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = [line.split() for line in result.stdout.splitlines()]
    assert len(found) == 3
    assert len(found[0]) == 2 * len(everything(shape=(2, 2, 226))[:-2])
    assert found[0] == found[1] == found[2]


# ----------------------------------------------------------- numbers of any size


def test_long_rows_lose_no_digits(fused):
    """63,488 numbers of a row, as with hands: the float32 result errs like a single rounding, not like a long sum."""
    shape = (2, 128, 496) if fused == "cpp" else (2, 16, 496)
    x_t, new, old, noise = states(4, torch.float32, shape=shape)
    x_prev = sde_step(x_t, old, 0.8, 0.3, 0.5, noise)
    for function, arguments in (
        (sde_log_prob, (x_prev, x_t, new, 0.8, 0.3, 0.5)),
        (sde_log_ratio, (new, old, noise, 0.3, 0.5)),
        (sde_kl, (new, old, 0.3, 0.5)),
    ):
        exact = function(*(x.double() if isinstance(x, Tensor) else x for x in arguments), backend="reference")
        torch.testing.assert_close(function(*arguments).double(), exact, rtol=3e-7, atol=0)


@pytest.mark.parametrize("size", [1e-18, 1e-6, 1e6, 1e18])
def test_huge_and_tiny_standard_deviations(size):
    """Squares of these numbers would leave float32."""
    x_t, new, old, noise = states(4, torch.float32)
    s = 0.3 * size
    new, old, x_t = (x * size for x in (new, old, x_t))
    x_prev = sde_step(x_t, old, 0.5, 0.4, s, noise)
    for function, arguments in (
        (sde_log_prob, (x_prev, x_t, new, 0.5, 0.4, s)),
        (sde_log_ratio, (new, old, noise, 0.4, s)),
        (sde_kl, (new, old, 0.4, s)),
    ):
        leaf = new.double().requires_grad_()
        wide = [x.double() if isinstance(x, Tensor) else x for x in arguments]
        place = next(i for i, x in enumerate(arguments) if x is new)
        wide[place] = leaf
        exact = function(*wide, backend="reference")
        (exact_grad,) = torch.autograd.grad(exact.sum(), leaf)
        leaf = new.clone().requires_grad_()
        got = function(*arguments[:place], leaf, *arguments[place + 1 :])
        (grad,) = torch.autograd.grad(got.sum(), leaf)
        torch.testing.assert_close(got.double(), exact, rtol=3e-6, atol=1e-6)
        torch.testing.assert_close(grad.double() * size, exact_grad * size, rtol=3e-5, atol=1e-6)


def test_half_precision_is_read_exactly(fused):
    """Every bfloat16 and float16, subnormal, infinite and NaN ones included."""
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(16, 64, 64)
    zero = torch.zeros(16, 64, 64)
    for dtype in (torch.bfloat16, torch.float16):
        values = patterns.view(dtype)
        for compute in (torch.float32, torch.float64):
            got = sde_step(values, zero.to(compute), 1.0, 0.0, 0.0, None)
            assert torch.equal(got.nan_to_num(nan=123.0), (values.to(compute) + 0.0).nan_to_num(nan=123.0))
            assert torch.equal(got.isnan(), values.isnan())


def test_half_precision_gradients_are_rounded_to_nearest(fused):
    """The log-ratio's linear gradient is the noise itself: any float32 can be sent through the rounding."""
    generator = torch.Generator().manual_seed(3)
    any_bits = torch.randint(-(2**31), 2**31, (8, 1, 512), generator=generator).to(torch.int32).view(torch.float32)
    ties = torch.arange(2**12).view(8, 1, 512) * 2.0**-14 + 1.0  # halfway between neighbours among them
    small = torch.randn(8, 1, 512, generator=generator) * 2.0**-15  # subnormal in float16
    for noise in (any_bits, ties, small, -ties):
        for dtype in (torch.bfloat16, torch.float16):
            new = torch.zeros(noise.shape, dtype=dtype, requires_grad=True)
            ratio = sde_log_ratio(new, new.detach(), noise, 1.0, 1.0, reduction="sum", drop_quadratic=True)
            (grad,) = torch.autograd.grad(ratio, new, torch.ones_like(ratio))
            expected = noise.to(dtype)
            assert grad.dtype == dtype and torch.equal(grad.isnan(), expected.isnan())
            assert torch.equal(grad.nan_to_num(nan=1.0), expected.nan_to_num(nan=1.0))


def test_a_row_left_out_of_the_loss_gets_zero_gradient_from_log_prob_too(fused):
    made = states(3)
    for x in made:
        x[2] = torch.nan
    leaves = [x.requires_grad_() for x in made]
    grads = torch.autograd.grad(sde_log_prob(*leaves, 0.7, 0.4, 0.3), leaves, torch.tensor([1.0, 2, 0, 1, 1]).double())
    for grad in grads:
        assert not grad[2].any() and torch.isfinite(grad).all() and grad[0].any()


# ------------------------------------------ what sde_log_prob keeps for its gradient


def saved_states(*inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The density, and the arrays of a state's size that its gradient holds on to."""
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        value = sde_log_prob(*inputs, 0.7, 0.4, 0.3)
    return value, [x for x in kept if x.shape == inputs[0].shape]


def test_one_array_is_kept_in_the_place_of_three_states(fused):
    made = states(3, torch.float32)
    leaf = made[2].requires_grad_()
    (kept,) = saved_states(*made)[1]
    assert kept.data_ptr() not in {x.data_ptr() for x in made}
    assert kept.requires_grad, "a second derivative would take it for a constant"
    # Three half-precision states are read again: together they are hardly larger than what would be kept.
    half = [x.detach().bfloat16() for x in made]
    half[2].requires_grad_()
    assert {x.data_ptr() for x in saved_states(*half)[1]} == {x.data_ptr() for x in half}
    assert keeps_residual(*made)
    with torch.no_grad():
        assert not keeps_residual(*made)
    assert not keeps_residual(*(x.detach() for x in made))
    numbers = (0.7, 0.4, 0.3, None, None, None, None, None, True)
    detached = (made[0], made[1], leaf.detach())
    for keep, shape in ((True, (N, T, D)), (False, (0,))):
        assert torch.ops.mgrpo.sde_log_prob(*detached, *numbers, keep, fused)[1].shape == shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("weighting", [*WEIGHTINGS, "large"])
def test_gradients_from_what_was_kept_have_the_same_bits(fused, weighting, dtype):
    large = weighting == "large"  # enough for results that are stored past the caches
    if large and fused != "cpp":
        pytest.skip("only the C++ backend stores past the caches")
    made = states(3, dtype, (6, 180, 496) if large else (N, T, D))
    mask, channel_weights = (None, None) if large else (weighting.get("mask"), weighting.get("channel_weights"))
    if mask is not None:
        made[1][~mask] = torch.nan
    if channel_weights is not None:
        made[0][..., channel_weights == 0] = torch.nan
    rows = (None, None, None) if large else row_scalars()
    numbers = (0.7, 0.4, 0.3) if large else (0.0, 0.0, 0.0)
    found = []
    for keep in (True, False):
        leaves = [x.clone().requires_grad_() for x in made]
        value, _ = torch.ops.mgrpo.sde_log_prob(*leaves, *numbers, *rows, mask, channel_weights, True, keep, fused)
        found.append((value, *torch.autograd.grad(value.sin().sum(), leaves)))
    for kept, again in zip(*found, strict=True):
        assert torch.isfinite(kept).all() and kept.abs().max() > 0 and torch.equal(bits(kept), bits(again))


def test_states_may_be_overwritten_and_the_backward_pass_repeated(fused):
    made = states(3, torch.float32)
    leaf = made[2].requires_grad_()
    expected = torch.autograd.grad(sde_log_prob(made[0].clone(), *made[1:], 0.7, 0.4, 0.3).sum(), leaf)[0]
    value = sde_log_prob(*made, 0.7, 0.4, 0.3).sum()
    made[0].fill_(torch.nan)  # a rollout's buffer, which the next step may use
    first = torch.autograd.grad(value, leaf, retain_graph=True)[0]
    again = torch.autograd.grad(value, leaf)[0]
    assert torch.equal(first, expected) and torch.equal(again, expected)


def test_the_backward_pass_makes_the_gradient_and_no_other_array(fused):
    """Zeros in the place of a gradient of what was kept would be as large as a state."""
    made = states(3, torch.float32)
    leaf = made[2].requires_grad_()
    value = sde_log_prob(*made, 0.7, 0.4, 0.3).sum()
    results: list[str] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            parts = found if isinstance(found, tuple) else (found,)
            results.extend(str(function) for x in parts if isinstance(x, Tensor) and x.shape == leaf.shape)
            return found

    with Recorder():
        torch.autograd.grad(value, leaf)
    assert set(results) <= {"mgrpo.sde_log_prob_backward.default", "aten.detach.default"} and len(results) > 0


def test_a_density_that_nothing_depends_on_has_no_gradient(fused):
    class Unused(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    x_prev, x_t, x0_pred = states(3)
    leaf = x0_pred.requires_grad_()
    value = Unused.apply(sde_log_prob(x_prev, x_t, leaf, 0.7, 0.4, 0.3)).sum()
    assert torch.autograd.grad(value, leaf, allow_unused=True) == (None,)


def test_vmap_over_predictions_of_the_density():
    x_prev, x_t, x0_pred = states(3)
    stacked = torch.stack((x0_pred, x0_pred + 0.1, x_t)).requires_grad_()
    got = torch.func.vmap(lambda x: sde_log_prob(x_prev, x_t, x, 0.7, 0.4, 0.3))(stacked)
    expected = torch.stack([sde_log_prob(x_prev, x_t, x, 0.7, 0.4, 0.3) for x in stacked])
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
    found, wanted = (torch.autograd.grad(value.sin().sum(), stacked)[0] for value in (got, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


# ------------------------------------------------------------- operators, dispatch


def operator_calls(backend: str) -> list[tuple[Callable[..., object], tuple[object, ...]]]:
    """Every registered operator with arguments, states with gaps and broadcast rows among them."""
    x, f, z = states(3, torch.float32)
    x, f = x.transpose(0, 1).contiguous().transpose(0, 1), f[:1].expand(N, T, D)
    leaf = z.clone().requires_grad_()
    key = noise_key().words
    rows = row_scalars()
    weighting = (frame_mask(), weights(), True)
    no_key = (None, None, 0, 0, 0)
    numbers = (0.7, 0.3, 0.1, None, None, None)
    wide = torch.randn(N, T, 12)
    matrices = wide.clone().requires_grad_()
    ops = torch.ops.mgrpo
    return [
        (ops.sde_step.default, (x, leaf, f, *no_key, *numbers, *weighting, True, backend)),
        (ops.sde_step.default, (leaf, f, None, *key, 0.0, 0.0, 0.0, *rows, None, None, True, False, backend)),
        (ops.projected_sde_step.default, (wide, matrices, None, *key, *numbers, 2, 1, True, backend)),
        (ops.sde_log_prob.default, (leaf, x, f, *numbers, *weighting, True, backend)),
        (ops.sde_log_prob.default, (leaf, x, f, 0.0, 0.0, 0.0, *rows, None, None, False, False, backend)),
        (ops.sde_log_ratio.default, (leaf, x, f, *no_key, 2.0, None, *weighting, False, backend)),
        (ops.sde_log_ratio.default, (leaf, x, None, *key, 0.0, rows[0], None, None, False, True, backend)),
        (ops.sde_kl.default, (leaf, x, None, *no_key, 2.0, None, *weighting, False, backend)),
    ]


def test_opcheck(fused):
    for operator, arguments in operator_calls(fused):
        torch.library.opcheck(operator, arguments)


def test_scalars_that_want_a_gradient_go_to_the_reference(fused):
    x_t, x0_pred, noise = states(3)
    A, B, s = (x.requires_grad_() for x in row_scalars())
    with use_backend(None):
        value = sde_log_prob(noise, x_t, x0_pred, A, B, s).sum() + sde_step(x_t, x0_pred, A, B, s, noise).sum()
        assert all(grad.any() for grad in torch.autograd.grad(value, (A, B, s)))
    with pytest.raises(BackendError, match="has no gradient with respect to A, B or s"):
        sde_step(x_t, x0_pred, A, B, s, noise, backend=fused)
    with torch.no_grad():
        sde_step(x_t, x0_pred, A, B, s, noise, backend=fused)


# ------------------------------------------------------------------ refusals


def test_a_deterministic_step_has_no_density():
    x_prev, x_t, new = states(3)
    text = r"s must be > 0 \(a step without noise is not an action: leave it out\), got 0.0"
    with pytest.raises(ValueError, match=r"sde_log_prob\(\): " + text):
        sde_log_prob(x_prev, x_t, new, 0.0, 1.0, 0.0)
    s = torch.tensor([0.1, 0.2, 0.0, 0.1, 0.1])
    with pytest.raises(ValueError, match=r"sde_log_ratio\(\): " + text + " in row 2"):
        sde_log_ratio(new, x_t, x_prev, 1.0, s)
    with pytest.raises(ValueError, match=r"sde_kl\(\): " + text):
        sde_kl(new, x_t, 1.0, 0.0)


FLAT = torch.zeros(3, dtype=torch.float64)
SHORT = torch.ones(5, 6, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: sde_step(x, x, 1, 1, -0.1, x), ValueError, "s must be >= 0, got -0.1"),
        (lambda x: sde_step(x, x[:2], 1, 1, 0.1, x), ValueError, r"x0_pred must have the shape of x_t \(5, 7, 6\)"),
        (lambda x: sde_step(x, x, torch.ones(4), 1, 0.1, x), ValueError, r"A must be a number or have shape \(N,\)"),
        (lambda x: sde_step(x, x, "1", 1, 0.1, x), TypeError, "A must be a number or a torch.Tensor, got str"),
        (lambda x: sde_step(x, x, math.nan, 1, 0.1, x), ValueError, "A must be finite, got nan"),
        (lambda x: sde_step(x.long(), x, 1, 1, 0.1, x), TypeError, "x_t must have dtype float32 or .*, got int64"),
        (lambda x: sde_step(FLAT, FLAT, 1, 1, 0.1, x), ValueError, r"x_t must have shape \(N, T, D\) or \(N, \*\)"),
        (lambda x: sde_kl(x, x, 1, 0.1, reduction="max"), ValueError, "reduction must be one of mean, sum, got 'max'"),
        (lambda x: sde_kl(x, x, 1, 0.1, mask=torch.ones(5, 6)), TypeError, "mask must have dtype bool, got float32"),
        (lambda x: sde_kl(x, x, 1, 0.1, mask=SHORT), ValueError, r"mask must have shape \(N, T\)"),
        (lambda x: sde_kl(x, x, 1, 0.1, channel_weights=[1.0]), ValueError, r"channel_weights must have shape \(D,\)"),
        (lambda x: sde_kl(x, x, 1, 0.1, channel_weights=[0.0] * 6), ValueError, "must be finite, >= 0 and not all 0"),
        (lambda x: sde_kl(x, x, 1, 0.1, channel_weights=[1.0] * 5 + [-1.0]), ValueError, "minimum of -1"),
        (lambda x: sde_kl(x, None, 1, 0.1), TypeError, "x0_pred_ref must be a torch.Tensor, got NoneType"),
        (lambda x: sde_log_ratio(x, x, None, 1, 0.1), TypeError, "noise must be a torch.Tensor, got NoneType"),
        (lambda x: sde_log_ratio(x, x, noise_key(4), 1, 0.1), ValueError, "NoiseKey with N = 5 rows, got 4"),
        (lambda x: sde_step(x, x, 1, 1, 0.1, noise_key(6)), ValueError, "NoiseKey with N = 5 rows, got 6"),
        (lambda x: sde_step(x, x, 1, 1, 0.1, x, mask=SHORT), ValueError, "mask must be None unless return"),
        (lambda x: sde_step(x, x, 1, 1, 0.0, x, return_log_prob=True), ValueError, "s must be > 0 .* got 0.0"),
        (lambda x: sde_step(x, x, 1, 1, 0.1, None, return_log_prob=True), ValueError, "noise must be a tensor or"),
    ],
)  # fmt: skip
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call(states(1)[0])


def test_known_to_dispatch():
    for name in ("sde_step", "projected_sde_step", "sde_log_prob", "sde_log_ratio", "sde_kl"):
        assert "reference" in explain_backend(name)
        assert kernels.available_backends(name) == BACKENDS


# -------------------------------------------------------------------- golden


@pytest.mark.golden
def test_golden_log_probs_of_the_sampler():
    """The prototype's log-probs of its own samples, which are -mean(noise^2) / 2 - ln s - ln(2 pi) / 2."""
    schedule = np.load(golden_file("schedule/schedule*.npz"), allow_pickle=False)
    for path in golden_files("sampler/author_logprob_*.npz"):
        case = np.load(path, allow_pickle=False)
        for eta in json.loads(path.with_suffix(".json").read_text())["etas"]:
            key = f"eta{eta}".replace(".", "p")
            expected = case[f"log_probs_{key}"]
            sigma = schedule[f"sigma_t_{key}_f32"]
            for step, t in enumerate(case["timesteps"][:-1]):
                noise = torch.from_numpy(case["noise_int8"][step + 1].astype(np.float32) / case["noise_scale"].item())
                s = float(sigma[t])
                if s == 0.0 or not np.isfinite(expected[step]).all():
                    continue
                # The network cancels out of x_prev - mean, so any state and prediction serve.
                x_t, x0_pred = torch.full_like(noise, 0.25), torch.full_like(noise, -0.5)
                x_prev = sde_step(x_t, x0_pred, 0.5, 0.5, s, noise)
                got = sde_log_prob(x_prev.double(), x_t.double(), x0_pred, 0.5, 0.5, s)
                np.testing.assert_allclose(got.numpy(), expected[step], rtol=3e-6, atol=3e-6)
