"""Transitions as a policy: densities, ratios and divergences against independent formulas, gradients, weighting."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mgrpo.kernels import explain_backend, sde_kl, sde_log_prob, sde_log_ratio, sde_step

N, T, D = 5, 7, 6


def states(count: int, dtype=torch.float64, shape=(N, T, D), seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


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
    with pytest.raises(ValueError, match=r"sde_step\(\): noise must be a tensor unless s is the number 0, got None"):
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


def test_kl_is_the_mean_negative_log_ratio_of_samples():
    """Monte Carlo: E_old[ln p_old - ln p_new] = KL, with the noise of many draws from the old policy."""
    draws = 20_000
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
    assert torch.autograd.gradcheck(lambda x: sde_kl(x, ref, 0.6, 0.2, mask=frame_mask()), (new,))


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


def test_no_value_is_read_and_no_device_mixed():
    """On the meta device a read of a value raises: what passes there waits for no GPU and fits a CUDA graph."""
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
    ],
)  # fmt: skip
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call(states(1)[0])


def test_known_to_dispatch():
    for name in ("sde_step", "sde_log_prob", "sde_log_ratio", "sde_kl"):
        assert "reference" in explain_backend(name)


# -------------------------------------------------------------------- golden


def cases(folder: Path, pattern: str) -> list[Path]:
    found = sorted(folder.glob(pattern))
    if not found:
        pytest.skip(f"no {pattern} in {folder}")
    return found


@pytest.mark.golden
def test_golden_log_probs_of_the_sampler(golden_dir):
    """The prototype's log-probs of its own samples, which are -mean(noise^2) / 2 - ln s - ln(2 pi) / 2."""
    schedule = np.load(golden_dir / "schedule" / "schedule.npz", allow_pickle=False)
    for path in cases(golden_dir / "sampler", "author_logprob_*.npz"):
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
