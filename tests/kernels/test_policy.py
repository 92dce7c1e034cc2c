"""Group advantages and the clipped loss: invariances, dead groups, members that cannot be scored, gradients, golden."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mgrpo.kernels import (
    ADVANTAGE_SCHEMES,
    BackendError,
    available_backends,
    explain_backend,
    group_advantages,
    grpo_loss,
    use_backend,
)
from tests.golden import golden_files

B, G, K = 6, 8, 3
SUMMED = "sum_then_normalize"


@pytest.fixture(params=["reference", "cpp", "cuda"], scope="module", autouse=True)
def backend(request):
    """Every test of this file runs on every backend that this machine has."""
    if request.param not in available_backends("grpo_loss"):
        pytest.skip(explain_backend("grpo_loss"))
    with use_backend(request.param):
        yield request.param


@pytest.fixture(scope="module")
def fused(backend):
    if backend == "reference":
        pytest.skip("only for backends with registered operators")
    return backend


def rewards(seed: int = 0, shape=(B, G, K), dtype=torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([1.0, 0.1, 5.0], dtype=torch.float64)[: shape[-1]] if len(shape) == 3 else 1.0
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def close(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------ schemes


def test_schemes_are_their_formulas():
    r = rewards()
    w = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    centred = r - r.mean(dim=1, keepdim=True)
    std = r.std(dim=1, keepdim=True)
    normalised = (centred / (std + 1e-4) * w).sum(dim=2)
    total = (r * w).sum(dim=2)
    options = {"weights": w, "eps": 1e-4}
    close(group_advantages(r, **options).advantages, normalised)
    close(
        group_advantages(r, scheme=SUMMED, **options).advantages,
        (total - total.mean(dim=1, keepdim=True)) / (total.std(dim=1, keepdim=True) + 1e-4),
    )
    close(
        group_advantages(r, scheme="gdpo", **options).advantages,
        (normalised - normalised.mean()) / (normalised.std() + 1e-4),
    )
    close(group_advantages(r, scheme="center_only", **options).advantages, (centred * w).sum(dim=2))
    close(
        group_advantages(r, scheme="batch_std", **options).advantages,
        (centred / (r.flatten(0, 1).std(dim=0) + 1e-4) * w).sum(dim=2),
    )
    wins = (r[:, :, None] > r[:, None]).double().sum(dim=2) / (G - 1)
    beaten = (wins - wins.mean(dim=1, keepdim=True)) / (wins.std(dim=1, keepdim=True) + 1e-4)
    close(group_advantages(r, scheme="win_rate", **options).advantages, (beaten * w).sum(dim=2))
    close(group_advantages(r, eps=0.0, ddof=0).per_reward, centred / r.std(dim=1, keepdim=True, correction=0))
    close(group_advantages(r).std, std[:, 0])


@pytest.mark.parametrize("scheme", ADVANTAGE_SCHEMES)
def test_one_reward_may_leave_out_its_axis(scheme):
    r = rewards(shape=(B, G))
    flat, deep = group_advantages(r, scheme=scheme), group_advantages(r[:, :, None], scheme=scheme)
    assert torch.equal(flat.advantages, deep.advantages) and flat.per_reward.shape == (B, G, 1)
    assert flat.std.shape == (B, 1) and flat.dead.shape == (B, 1) and flat.alive.shape == (B,)


@pytest.mark.parametrize("scheme", [s for s in ADVANTAGE_SCHEMES if s != "gdpo"])
@pytest.mark.parametrize("trim", [0.0, 0.2])
def test_advantages_are_the_weighted_sum_of_their_parts(scheme, trim):
    w = torch.tensor([1.0, 0.3, 0.2], dtype=torch.float64)
    result = group_advantages(rewards(), scheme=scheme, weights=w, trim=trim)
    close((result.per_reward * w).sum(dim=2), result.advantages)


# --------------------------------------------------------------- invariances


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    scheme=st.sampled_from(ADVANTAGE_SCHEMES),
    group=st.integers(2, 20),
    floor=st.sampled_from([0.0, 0.1]),
)
def test_mean_zero_equivariance_and_shift(seed, scheme, group, floor):
    r = rewards(seed, (4, group, K))
    # dead_ratio compares with the batch's spread, which a shift of single groups changes.
    options = {"scheme": scheme, "std_floor_ratio": floor, "dead_ratio": 0.0}
    result = group_advantages(r, **options).advantages
    close(result.mean(dim=1), torch.zeros(4, dtype=torch.float64))
    generator = torch.Generator().manual_seed(seed)
    order, groups = torch.randperm(group, generator=generator), torch.randperm(4, generator=generator)
    close(group_advantages(r[:, order], **options).advantages, result[:, order])
    close(group_advantages(r[groups], **options).advantages, result[groups])
    # A shift of the whole batch per reward changes nothing; a shift per group only what sees the batch's spread.
    close(group_advantages(r + torch.tensor([3.0, -20.0, 0.5]), **options).advantages, result, 1e-8)
    if floor == 0.0 and scheme != "batch_std":
        shift = torch.randn((4, 1, K), generator=generator, dtype=torch.float64)
        close(group_advantages(r + shift, **options).advantages, result, 1e-8)


@pytest.mark.parametrize("scheme", ["normalize_then_sum", "gdpo", "batch_std"])
def test_scale_of_a_reward_cancels(scheme):
    r = rewards()
    scaled = r * torch.tensor([7.0, 0.01, 100.0], dtype=torch.float64)
    options = {"scheme": scheme, "eps": 0.0, "dead_abs": 0.0}
    close(group_advantages(scaled, **options).advantages, group_advantages(r, **options).advantages, 1e-9)


def test_scale_of_all_rewards_cancels_for_the_sum_and_not_for_centring():
    r = rewards()
    options = {"eps": 0.0, "dead_abs": 0.0}
    close(
        group_advantages(3 * r, scheme=SUMMED, **options).advantages,
        group_advantages(r, scheme=SUMMED, **options).advantages,
    )
    close(
        group_advantages(3 * r, scheme="center_only").advantages,
        3 * group_advantages(r, scheme="center_only").advantages,
    )


@pytest.mark.parametrize("group", [2, 8, 12, 16, 24, 32])
def test_largest_advantage_of_one_reward(group):
    """(G - 1) / sqrt(G) with the unbiased std, reached by one winner among equals."""
    winner = torch.zeros(1, group, dtype=torch.float64)
    winner[0, 1] = 1.0
    bound = (group - 1) / math.sqrt(group)
    close(group_advantages(winner, eps=0.0).advantages[0, 1], torch.tensor(bound, dtype=torch.float64))
    generator = torch.Generator().manual_seed(group)
    many = torch.rand((500, group), generator=generator, dtype=torch.float64).pow(8)
    assert group_advantages(many, eps=0.0).advantages.abs().max() <= bound + 1e-9


def test_weights_say_how_much_a_reward_counts():
    r = rewards()
    only_second = group_advantages(r, weights=[0.0, 1.0, 0.0]).advantages
    close(only_second, group_advantages(r[:, :, 1]).advantages)
    close(group_advantages(r, weights=[2.0, 2.0, 2.0]).advantages, 2 * group_advantages(r).advantages)


def test_gdpo_has_unit_spread_whatever_the_correlation():
    independent = rewards()
    identical = rewards()[:, :, :1].expand(B, G, K)
    for r in (independent, identical):
        assert abs(group_advantages(r, scheme="gdpo").advantages.std() - 1.0) < 1e-3


def test_clamp_acts_after_the_sum():
    winner = torch.zeros(1, 32, 3, dtype=torch.float64)
    winner[0, 0] = 1.0
    plain, clamped = group_advantages(winner), group_advantages(winner, clamp=5.0)
    assert plain.advantages[0, 0] > 16 and clamped.advantages[0, 0] == 5.0
    assert torch.equal(clamped.per_reward, plain.per_reward)
    assert torch.equal(clamped.advantages[0, 1:], plain.advantages[0, 1:])


def test_win_rates_see_the_order_alone():
    r = rewards()
    expected = group_advantages(r, scheme="win_rate", dead_abs=0.0, dead_ratio=0.0)
    outlier = torch.where(r == r.amax(dim=1, keepdim=True), 1e6, r.exp())
    found = group_advantages(outlier, scheme="win_rate", dead_abs=0.0, dead_ratio=0.0)
    close(found.advantages, expected.advantages)
    close(found.std, outlier.std(dim=1))  # of the rewards


def test_win_rates_of_ties_and_of_missing_members():
    r = torch.tensor([[1.0, 3.0, 3.0, 2.0, float("nan")]], dtype=torch.float64)
    wins = torch.tensor([0.0, 2.5, 2.5, 1.0], dtype=torch.float64) / 3
    found = group_advantages(r, scheme="win_rate", eps=0.0)
    close(found.advantages[0, :4], (wins - wins.mean()) / wins.std())
    assert found.advantages[0, 4] == 0


def test_win_rates_of_groups_without_spread_say_nothing():
    r = torch.cat([rewards(), rewards(1) * 1e-9 + 3.0])
    found = group_advantages(r, scheme="win_rate")
    assert found.dead[B:].all() and not found.alive[B:].any() and (found.advantages[B:] == 0).all()
    assert not found.dead[:B].any() and found.alive[:B].all()


def test_rewards_clipped_one_by_one_are_the_loss_over_their_parts():
    # What the docstring of group_advantages recommends, against the sum of one loss per reward.
    weights = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    log_ratio = (0.3 * rewards(3)[..., 0]).requires_grad_()
    parts = group_advantages(rewards(), weights=weights).per_reward * weights
    together = grpo_loss(log_ratio[..., None].expand_as(parts), parts, clip_range=0.2, denominator=float(B * G)).loss
    apart = sum(grpo_loss(log_ratio, parts[..., k], clip_range=0.2).loss for k in range(K))
    close(together, apart)
    close(*(torch.autograd.grad(loss, log_ratio)[0] for loss in (together, apart)))
    summed = grpo_loss(log_ratio, parts.sum(dim=2), clip_range=0.2).loss
    assert (together - summed).abs() > 1e-3, "the clip acts on each reward, not on their sum"


def test_trim_leaves_extremes_out_of_the_statistics():
    r = torch.tensor([[-100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 100.0]], dtype=torch.float64)[
        :, torch.tensor([3, 0, 9, 1, 2, 4, 5, 8, 7, 6])
    ]
    inner = torch.arange(1.0, 9.0, dtype=torch.float64)
    close(group_advantages(r, trim=0.1, eps=0.0).advantages, (r - inner.mean()) / inner.std())
    close(group_advantages(r, trim=0.099).advantages, group_advantages(r).advantages)  # rounds down to none
    valid = r != 100.0
    close(  # nine members are left: floor(0.15 * 9) = 1 at each end
        group_advantages(r, trim=0.15, eps=0.0, valid=valid).advantages,
        torch.where(valid, (r - inner[:-1].mean()) / inner[:-1].std(), 0.0),
    )


def test_std_floor_damps_groups_with_little_spread():
    r = rewards(shape=(B, G))
    r[0] *= 0.01
    batch_std = r.flatten().std()
    std = r.std(dim=1, keepdim=True)
    expected = (r - r.mean(dim=1, keepdim=True)) / (std.square() + (0.1 * batch_std).square()).sqrt()
    result = group_advantages(r, std_floor_ratio=0.1, eps=0.0)
    close(result.advantages, expected)
    assert result.advantages[0].abs().max() < 0.3 < group_advantages(r).advantages[0].abs().max()
    close(result.std, std)


# -------------------------------------------------------------- dead groups


@pytest.mark.parametrize("scheme", ADVANTAGE_SCHEMES)
@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_dead_groups_get_exact_zeros_instead_of_amplified_rounding(scheme, eps):
    r = rewards(shape=(B, G, 1)) + 10.0
    r[1] = 0.1  # identical; the mean of eight 0.1s rounds
    r[2] = 0.1 + 1e-13 * rewards(7, (G, 1))  # spread at rounding level
    r[3] = 0.1 + 1e-5 * rewards(8, (G, 1))  # a hundred-thousandth of the batch's spread
    result = group_advantages(r, scheme=scheme, eps=eps)
    assert result.dead[:, 0].tolist() == [False, True, True, True, False, False]
    assert result.alive.tolist() == [True, False, False, False, True, True]
    assert (result.advantages[1:4] == 0).all() and (result.per_reward[1:4] == 0).all()
    assert torch.isfinite(result.advantages).all() and (result.advantages[0] != 0).any()
    kept = group_advantages(r, scheme=scheme, eps=eps, dead_ratio=1e-6, dead_abs=1e-9)
    assert kept.dead[:, 0].tolist() == [False, True, True, False, False, False]


def test_one_dead_reward_leaves_the_others():
    r = rewards()
    r[2, :, 1] = 4.0
    result = group_advantages(r)
    assert result.dead.sum() == 1 and result.dead[2, 1] and result.alive.all()
    close(result.advantages[2], group_advantages(r[:, :, [0, 2]]).advantages[2])
    # Alive asks for a reward that counts.
    assert not group_advantages(r, weights=[0.0, 1.0, 0.0]).alive[2]


def test_thresholds_at_zero_are_the_published_behaviour():
    """DanceGRPO's 1e-8 turns a rounding-level spread into unit advantages; identical rewards still give 0."""
    r = torch.full((2, G), 0.5, dtype=torch.float64)
    r[0] += 1e-7 * rewards(3, (G,))
    result = group_advantages(r, dead_ratio=0.0, dead_abs=0.0)
    close(result.advantages[0], (r[0] - r[0].mean()) / (r[0].std() + 1e-8))
    assert (result.advantages[1] == 0).all() and result.dead[:, 0].tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scheme", ADVANTAGE_SCHEMES)
def test_groups_without_any_spread_are_dead_whatever_their_size(scheme, dtype):
    """The mean of n equal numbers, or of n equal sums, as a rounded sum over n often is not that number: without
    thresholds what is left would make a group alive, and with eps 0 unit advantages of nothing."""
    options = {"scheme": scheme, "weights": [0.3, 0.7, 0.1], "eps": 0.0, "dead_ratio": 0.0, "dead_abs": 0.0}
    for size in (2, 3, 5, 6, 7, 10, 16):
        for trim in (0.0, 0.2):
            r = rewards(size, (40, 1, K), dtype).expand(40, size, K)
            result = group_advantages(r, trim=trim, **options)
            assert not result.alive.any() and (result.advantages == 0).all() and (result.per_reward == 0).all()
            if scheme != SUMMED:
                assert result.dead.all() and (result.std == 0).all()


@pytest.mark.parametrize("scheme", ADVANTAGE_SCHEMES)
def test_all_groups_dead(scheme):
    result = group_advantages(torch.ones(B, G, K), scheme=scheme)
    assert (result.advantages == 0).all() and not result.alive.any() and result.dead.all()


def test_gdpo_whitens_over_living_groups_alone():
    r = rewards()
    r[[1, 4]] = 2.0
    living = [0, 2, 3, 5]
    options = {"scheme": "gdpo", "dead_ratio": 0.0, "eps": 0.0}
    close(group_advantages(r, **options).advantages[living], group_advantages(r[living], **options).advantages)


# ----------------------------------------------- members that cannot be scored


@pytest.mark.parametrize("scheme", ADVANTAGE_SCHEMES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_unscored_member_equals_invalid_member_equals_smaller_group(scheme, bad):
    r = rewards()
    spoiled, valid = r.clone(), torch.ones(B, G, dtype=torch.bool)
    spoiled[:, 5, 1] = bad  # one reward is enough: the member has no total
    valid[:, 5] = False
    by_nan, by_valid = group_advantages(spoiled, scheme=scheme), group_advantages(r, scheme=scheme, valid=valid)
    rest = [i for i in range(G) if i != 5]
    smaller = group_advantages(r[:, rest], scheme=scheme)
    for result in (by_nan, by_valid):
        close(result.advantages[:, rest], smaller.advantages)
        close(result.per_reward[:, rest], smaller.per_reward)
        close(result.std, smaller.std)
        assert (result.advantages[:, 5] == 0).all() and (result.per_reward[:, 5] == 0).all()


def test_nan_in_a_reward_of_weight_zero_does_not_cost_the_member():
    r = rewards()
    spoiled = r.clone()
    spoiled[0, 2, 1] = torch.nan
    w = [1.0, 0.0, 1.0]
    for scheme in ("normalize_then_sum", SUMMED):
        close(
            group_advantages(spoiled, weights=w, scheme=scheme).advantages,
            group_advantages(r, weights=w, scheme=scheme).advantages,
        )
        assert torch.isfinite(group_advantages(spoiled, weights=w, scheme=scheme).per_reward).all()


@pytest.mark.parametrize("scheme", ADVANTAGE_SCHEMES)
def test_groups_with_one_or_no_scored_member_are_dead(scheme):
    r = rewards()
    valid = torch.ones(B, G, dtype=torch.bool)
    valid[0] = False
    valid[1, 1:] = False
    for ddof in (0, 1):
        result = group_advantages(r, scheme=scheme, valid=valid, ddof=ddof)
        assert result.alive.tolist() == [False, False, True, True, True, True]
        assert (result.advantages[:2] == 0).all() and (result.std[:2] == 0).all() and result.dead[:2].all()


def test_no_gradient_dtypes_and_inputs_stay():
    r = rewards(dtype=torch.float32).requires_grad_()
    before = r.detach().clone()
    result = group_advantages(r)
    assert not result.advantages.requires_grad and torch.equal(r.detach(), before)
    assert {t.dtype for t in result[:3]} == {torch.float32} and result.dead.dtype == torch.bool
    assert group_advantages(r.detach().bfloat16()).advantages.dtype == torch.float32
    assert group_advantages(r.double()).std.dtype == torch.float64
    assert group_advantages(torch.empty(0, G, K)).advantages.shape == (0, G)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            (B, 1, K),
            {},
            ValueError,
            r"rewards must have groups of G >= 2 members to compare, got \(6, 1, 3\) with G = 1",
        ),
        ((B,), {}, ValueError, r"rewards must have shape \(B, G, K\) or \(B, G\), got \(6,\)"),
        ((B, G, K), {"scheme": "zscore"}, ValueError, "scheme must be one of normalize_then_sum, .*, got 'zscore'"),
        ((B, G, K), {"ddof": 2}, ValueError, "ddof must be 0 or 1, got 2"),
        ((B, G, K), {"eps": -1.0}, ValueError, "eps must be >= 0, got -1.0"),
        ((B, G, K), {"dead_ratio": math.nan}, ValueError, "dead_ratio must be >= 0, got nan"),
        ((B, G, K), {"trim": 0.5}, ValueError, "trim must be < 0.5, got 0.5"),
        ((B, G, K), {"clamp": 0.0}, ValueError, "clamp must be > 0, got 0.0"),
        ((B, G, K), {"weights": [1.0, 2.0]}, ValueError, r"weights must have shape \(K,\) with K = 3, got \(2,\)"),
        ((B, G, K), {"weights": [1.0, 2.0, math.inf]}, ValueError, "weights must be finite"),
        ((B, G, K), {"valid": torch.ones(B, K) > 0}, ValueError, r"valid must have shape \(B, G\) with B = 6, G = 8"),
        ((B, G, K), {"valid": torch.ones(B, G)}, TypeError, "valid must have dtype bool, got float32"),
        ((B, G, K), {"backend": "cpu"}, ValueError, "backend must be one of"),
    ],
)
def test_group_advantages_refusals(arguments, options, error, message):
    with pytest.raises(error, match=message):
        group_advantages(torch.zeros(arguments), **options)


# ---------------------------------------------------------------- grpo_loss


def batch(seed: int = 0, spread: float = 0.3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    log_ratio = spread * torch.randn((B, G, 4), generator=generator, dtype=torch.float64)
    advantages = torch.randn((B, G, 1), generator=generator, dtype=torch.float64).expand(B, G, 4)
    return log_ratio.to(dtype), advantages.to(dtype)


def test_loss_is_the_clipped_surrogate():
    log_ratio, advantages = batch()
    ratio = log_ratio.exp()
    element = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2))
    result = grpo_loss(log_ratio, advantages, clip_range=0.2)
    close(result.loss, element.mean())
    close(result.ratio, ratio)
    close(result.clip_fraction_high, ((ratio > 1.2) & (advantages > 0)).double().mean())
    close(result.clip_fraction_low, ((ratio < 0.8) & (advantages < 0)).double().mean())
    close(result.approx_kl, (ratio - 1 - log_ratio).mean())
    asymmetric = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.9, 1.4))
    close(grpo_loss(log_ratio, advantages, clip_range=(0.1, 0.4)).loss, asymmetric.mean())


def test_gradient_is_zero_exactly_where_the_clip_is_active():
    log_ratio, advantages = batch()
    log_ratio.requires_grad_()
    grpo_loss(log_ratio, advantages, clip_range=0.2).loss.backward()
    ratio = log_ratio.detach().exp()
    active = ((advantages > 0) & (ratio > 1.2)) | ((advantages < 0) & (ratio < 0.8))
    assert active.any() and (~active).any()
    assert (log_ratio.grad[active] == 0).all()
    close(log_ratio.grad[~active], (-advantages * ratio / log_ratio.numel())[~active])


def test_gradcheck_with_everything_on():
    log_ratio, advantages = (x[:2, :2] for x in batch(spread=0.5))
    kl = torch.rand_like(log_ratio).requires_grad_()
    valid, weights = torch.rand_like(log_ratio) > 0.3, torch.rand_like(log_ratio)
    assert torch.autograd.gradcheck(
        lambda x, y: (
            grpo_loss(
                x, advantages, clip_range=0.2, valid=valid, weights=weights, kl=y, kl_coef=0.3, denominator=7.0
            ).loss
        ),
        (log_ratio.clone().requires_grad_(), kl),
    )


def test_at_ratio_one_the_loss_is_the_policy_gradient():
    _, advantages = batch()
    log_ratio = torch.zeros_like(advantages).requires_grad_()
    result = grpo_loss(log_ratio, advantages, clip_range=1e-4)
    result.loss.backward()
    close(result.loss, -advantages.mean())
    close(log_ratio.grad, -advantages / log_ratio.numel())
    assert result.approx_kl == 0 and result.clip_fraction_low == 0 and result.clip_fraction_high == 0
    assert (result.ratio == 1).all()


def test_float32_resolves_the_clip_range_of_the_paper():
    advantages = torch.ones(2)
    below, above = math.log1p(1e-4) - 5e-9, math.log1p(1e-4) + 5e-9
    log_ratio = torch.tensor([below, above], requires_grad=True)
    grpo_loss(log_ratio, advantages, clip_range=1e-4).loss.backward()
    assert log_ratio.grad[0] != 0 and log_ratio.grad[1] == 0


def test_approx_kl_does_not_cancel():
    for size in (1e-7, 1e-5, 9e-4, 1.1e-3, 1e-2):
        result = grpo_loss(torch.full((10,), size), torch.ones(10), clip_range=0.5)
        exact = float(torch.tensor(size, dtype=torch.float32).double())
        series = exact**2 / 2 + exact**3 / 6 + exact**4 / 24
        assert abs(float(result.approx_kl) - series) < 1e-5 * series
    generator = torch.Generator().manual_seed(0)
    assert grpo_loss(torch.randn(1000, generator=generator), torch.ones(1000), clip_range=0.5).approx_kl > 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_invalid_elements_count_nowhere(bad):
    log_ratio, advantages = batch()
    valid = torch.rand(log_ratio.shape, generator=torch.Generator().manual_seed(5)) > 0.4
    clean = grpo_loss(log_ratio[valid], advantages[valid], clip_range=0.2)
    spoiled = torch.where(valid, log_ratio, bad).requires_grad_()
    kl = torch.where(valid, log_ratio.square(), bad).requires_grad_()
    result = grpo_loss(
        spoiled, torch.where(valid, advantages, bad), clip_range=0.2, valid=valid, kl=kl, kl_coef=0.1,
        weights=torch.where(valid, 1.0, bad).double(),
    )  # fmt: skip
    close(result.loss, clean.loss + 0.1 * log_ratio[valid].square().mean())
    for got, expected in zip(result[2:], clean[2:], strict=True):
        close(got, expected)
    assert (result.ratio[~valid] == 1).all()
    result.loss.backward()
    for grad in (spoiled.grad, kl.grad):
        assert (grad[~valid] == 0).all() and torch.isfinite(grad).all() and (grad[valid] != 0).any()


def test_no_valid_element_gives_zero_loss():
    log_ratio, advantages = batch()
    log_ratio.requires_grad_()
    nowhere = torch.zeros(log_ratio.shape, dtype=torch.bool)
    for denominator in (None, torch.tensor(0)):
        result = grpo_loss(log_ratio, advantages, clip_range=0.2, valid=nowhere, denominator=denominator)
        result.loss.backward()
        assert all(float(value.detach()) == 0 for value in (result.loss, *result[2:])) and (log_ratio.grad == 0).all()


def test_denominator_makes_micro_batches_add_up():
    log_ratio, advantages = batch()
    valid = torch.rand(log_ratio.shape, generator=torch.Generator().manual_seed(2)) > 0.3
    whole = grpo_loss(log_ratio, advantages, clip_range=0.2, valid=valid, kl=log_ratio.abs(), kl_coef=0.5).loss
    for count in (float(valid.sum()), valid.sum(), valid.sum().float()):
        parts = sum(
            grpo_loss(
                log_ratio[i], advantages[i], clip_range=0.2, valid=valid[i], kl=log_ratio[i].abs(), kl_coef=0.5,
                denominator=count,
            ).loss
            for i in range(B)
        )  # fmt: skip
        close(parts, whole)


def test_weights_multiply_the_surrogate_and_stay_out_of_the_denominator():
    log_ratio, advantages = batch()
    plain = grpo_loss(log_ratio, advantages, clip_range=0.2).loss
    weights = torch.full_like(log_ratio, 2.0)
    close(grpo_loss(log_ratio, advantages, clip_range=0.2, weights=weights).loss, 2 * plain)
    kl = log_ratio.square()
    both = grpo_loss(log_ratio, advantages, clip_range=0.2, weights=weights, kl=kl, kl_coef=1.0).loss
    close(both, 2 * plain + kl.mean())


def test_an_infinite_ratio_is_harmless_where_it_does_not_matter():
    log_ratio = torch.tensor([1000.0, 1000.0, -torch.inf], requires_grad=True)
    result = grpo_loss(log_ratio, torch.tensor([1.0, 0.0, -1.0]), clip_range=0.2)
    result.loss.backward()
    close(result.loss.detach(), torch.tensor((-1.2 + 0.0 + 0.8) / 3), 1e-6)
    assert (log_ratio.grad == 0).all()


def test_half_precision_is_computed_in_float32_and_only_the_loss_has_a_gradient():
    log_ratio, advantages = batch(dtype=torch.bfloat16)
    log_ratio.requires_grad_()
    result = grpo_loss(log_ratio, advantages, clip_range=0.2)
    assert {value.dtype for value in result} == {torch.float32}
    assert [value.requires_grad for value in result] == [True, False, False, False, False]
    wide = grpo_loss(log_ratio.detach().float(), advantages.float(), clip_range=0.2)
    close(result.loss, wide.loss, 1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"clip_range": 0.0}, ValueError, "clip_range must be > 0, got 0.0"),
        ({"clip_range": (0.1, 0.2, 0.3)}, ValueError, r"clip_range must be a number or \(low, high\)"),
        ({"clip_range": "0.2"}, TypeError, "clip_range must be a number, got str"),
        ({"kl_coef": 0.1}, ValueError, "kl must be a tensor when kl_coef > 0, got None"),
        ({"kl_coef": -0.1}, ValueError, "kl_coef must be >= 0"),
        ({"advantages": torch.ones(3)}, ValueError, r"advantages must have the shape of log_ratio \(2,\), got \(3,\)"),
        ({"advantages": 1.0}, TypeError, "advantages must be a torch.Tensor, got float"),
        ({"valid": torch.ones(2)}, TypeError, "valid must have dtype bool"),
        ({"weights": torch.ones(1)}, ValueError, "weights must have the shape of log_ratio"),
        ({"denominator": 0.0}, ValueError, "denominator must be > 0"),
        ({"denominator": torch.ones(2)}, ValueError, r"denominator must have shape \(\), got \(2,\)"),
    ],
)
def test_grpo_loss_refusals(options, error, message):
    arguments = {"advantages": torch.ones(2), "clip_range": 0.2} | options
    with pytest.raises(error, match=message):
        grpo_loss(torch.zeros(2), **arguments)


def test_known_to_dispatch():
    for name in ("group_advantages", "grpo_loss"):
        assert "reference" in explain_backend(name)


def test_compiled_equals_eager():
    torch._dynamo.reset()
    log_ratio, advantages = batch(dtype=torch.float32)
    r = rewards(dtype=torch.float32)

    def both(log_ratio, advantages, r):
        result = group_advantages(r, scheme="gdpo", trim=0.1, clamp=2.0, weights=[1.0, 2.0, 3.0])
        loss = grpo_loss(log_ratio, advantages, clip_range=0.2, valid=advantages > -1, kl=log_ratio**2, kl_coef=0.1)
        return result.advantages, *loss

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    leaves = [log_ratio.clone().requires_grad_() for _ in range(2)]
    results = compiled(leaves[0], advantages, r), both(leaves[1], advantages, r)
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)
    for result in results:
        result[1].backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_no_value_is_read_and_no_device_mixed():
    """On the meta device a read of a value raises: neither checks nor reference wait for a GPU. Of the launchers it
    says nothing, see test_capture.py."""
    with use_backend(None):  # the meta device has the reference alone
        _call_everything_on_meta()


def _call_everything_on_meta():
    r = torch.empty(B, G, K, device="meta")
    for scheme in ADVANTAGE_SCHEMES:
        result = group_advantages(r, scheme=scheme, weights=[1.0, 2.0, 3.0], trim=0.1, clamp=5.0)
        assert result.advantages.shape == (B, G)
    log_ratio = torch.empty(B, G, device="meta", requires_grad=True)
    count = torch.empty((), device="meta")
    for denominator in (None, 3.0, count):
        grpo_loss(
            log_ratio,
            r[:, :, 0],
            clip_range=0.2,
            valid=r[:, :, 1] > 0,
            kl=log_ratio,
            kl_coef=0.1,
            denominator=denominator,
        ).loss.backward()


# ------------------------------------------------ fused backends against float64


OPTIONS = st.fixed_dictionaries(
    {
        "scheme": st.sampled_from(ADVANTAGE_SCHEMES),
        "ddof": st.integers(0, 1),
        "eps": st.sampled_from([0.0, 1e-8, 0.1]),
        "std_floor_ratio": st.sampled_from([0.0, 0.2]),
        "dead_ratio": st.sampled_from([0.0, 1e-3, 0.9]),
        "dead_abs": st.sampled_from([0.0, 1e-6, 0.08]),
        "trim": st.sampled_from([0.0, 0.1, 0.13, 0.3, 0.49]),
        "clamp": st.sampled_from([None, 1.5]),
        "weights": st.sampled_from([None, (1.0, 2.0, 0.5), (1.0, 0.0, -0.5), (0.0, 0.0, 0.0)]),
    }
)


@settings(deadline=None, max_examples=150)
@given(
    options=OPTIONS,
    seed=st.integers(0, 10_000),
    size=st.sampled_from([(1, 2), (2, 3), (6, 8), (3, 17)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    holes=st.sampled_from([0.0, 0.1, 0.6]),
    ties=st.booleans(),
)
def test_every_option_agrees_with_the_oracle(fused, options, seed, size, dtype, holes, ties):
    generator = torch.Generator().manual_seed(seed)
    r = rewards(seed, (*size, K))
    if ties:
        r = r.round()
    r[torch.rand(r.shape, generator=generator) < holes / 3] = torch.nan
    valid = torch.rand(size, generator=generator) >= holes if holes else None
    r = r.to(dtype)
    got = group_advantages(r, valid=valid, **options)
    wanted = group_advantages(r.double(), valid=valid, backend="reference", **options)
    # A spread that is 0 but for rounding may be judged either way where nothing calls it dead.
    sure = (wanted.std > 1e-12).all(dim=1) | (options["dead_abs"] > 0)
    if options["scheme"] == SUMMED and options["dead_abs"] == 0:
        sure = sure & ((r.double().nan_to_num() * torch.tensor(options["weights"] or (1, 1, 1))).sum(2).std(1) > 1e-12)
    if options["scheme"] == "gdpo" and not sure.all():
        return
    tolerance = 1e-9 if dtype == torch.float64 else 3e-6
    for name, a, b in zip(got._fields, got, wanted, strict=True):
        if b.dtype == torch.bool:
            assert torch.equal(a[sure], b[sure]), name
        else:
            assert a.dtype == dtype and a.is_contiguous()
            torch.testing.assert_close(a.double()[sure], b[sure], rtol=tolerance, atol=tolerance, msg=name)


def test_equal_totals_are_trimmed_in_the_order_of_members():
    """The last of equal largest ones goes, the first of equal smallest ones: it shows in the parts of the total."""
    r = torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 3.0], [1.0, 1.0], [0.5, -0.5]], dtype=torch.float64)[None]
    result = group_advantages(r, scheme=SUMMED, trim=0.2)  # totals 3, 0, 3, 2, 0: members 2 and 1 are left out
    kept = r[0, [0, 3, 4]]
    spread = kept.sum(dim=1).std() + 1e-8
    close(result.per_reward[0], (r[0] - kept.mean(dim=0)) / spread)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 9000])
def test_loss_and_gradients_agree_with_float64(fused, dtype, count):
    generator = torch.Generator().manual_seed(count)

    def numbers(low=-1.0):
        return low + (1 - low) * torch.rand(count, generator=generator, dtype=torch.float64).to(dtype)

    log_ratio, advantages, weights, kl, valid = numbers(), numbers(), numbers(0.0), numbers(0.0), numbers() > -0.5
    advantages[::7] = 0.0
    results, grads = [], []
    for backend, wide in ((fused, dtype), ("reference", torch.float64)):
        leaves = [x.to(wide, copy=True).requires_grad_() for x in (log_ratio, kl)]
        result = grpo_loss(
            leaves[0], advantages.to(wide), clip_range=(0.2, 0.3), valid=valid, weights=weights.to(wide),
            kl=leaves[1], kl_coef=0.3, denominator=max(count / 3, 1.0), backend=backend,
        )  # fmt: skip
        (result.loss * 1.7).backward()
        results.append(result)
        grads.append([leaf.grad for leaf in leaves])
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
    for a, b in (*zip(*results, strict=True), *zip(*grads, strict=True)):
        assert a.dtype == dtype and a.is_contiguous()
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * 1e-3)


def test_exponentials_are_accurate_everywhere(fused):
    """Ratio and k3 against torch in float64, from subnormal to infinite ratios and through the tiny ones."""
    tiny = torch.logspace(-300, -3, 2000, dtype=torch.float64)
    x = torch.cat((torch.linspace(-800, 800, 40_001, dtype=torch.float64), tiny, -tiny, torch.zeros(2).double()))
    x = torch.cat((x, torch.tensor([-torch.inf, torch.inf, torch.nan], dtype=torch.float64)))
    ratio = grpo_loss(x, torch.zeros_like(x), clip_range=0.5).ratio
    torch.testing.assert_close(ratio, x.exp(), rtol=4e-15, atol=1e-320, equal_nan=True)
    for value in (-700.0, -30.0, -0.4, -0.3, -1e-3, -1e-6, 1e-6, 1e-3, 0.3, 0.35, 5.0, 700.0):
        k3 = grpo_loss(torch.tensor([value], dtype=torch.float64), torch.zeros(1).double(), clip_range=0.5).approx_kl
        exact = math.expm1(value) - value
        if abs(value) < 1e-2:
            exact = value**2 / 2 + value**3 / 6 + value**4 / 24 + value**5 / 120
        assert abs(float(k3) - exact) <= 3e-14 * exact


def test_runs_repeat_bitwise_on_any_number_of_threads(fused):
    generator = torch.Generator().manual_seed(4)
    log_ratio, advantages = (0.3 * torch.randn(50_000, generator=generator) for _ in range(2))
    r = torch.randn(300, 16, 5, generator=generator)

    def run():
        leaf = log_ratio.clone().requires_grad_()
        result = grpo_loss(leaf, advantages, clip_range=0.2)
        result.loss.backward()
        return [*group_advantages(r, scheme="gdpo", trim=0.1), *(x.detach() for x in result), leaf.grad]

    threads = torch.get_num_threads()
    try:
        first = run()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for a, b in zip(first, run(), strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("scheme", ["normalize_then_sum", SUMMED, "center_only"])
def test_a_group_alone_equals_the_group_in_the_batch(fused, scheme):
    """Bit for bit, where no option looks at the rest of the batch; a bad group spoils no other."""
    r = rewards(dtype=torch.float32)
    options = {"scheme": scheme, "dead_ratio": 0.0, "trim": 0.15}
    whole = group_advantages(r, **options)
    spoilt = r.clone()
    spoilt[2, 1, 0], spoilt[2, 5, 2] = torch.nan, torch.inf
    for b in range(B):
        for a, e in zip(group_advantages(r[b : b + 1], **options), whole, strict=True):
            assert torch.equal(a[0], e[b])
        for a, e in zip(group_advantages(spoilt, **options), whole, strict=True):
            assert b == 2 or torch.equal(a[b], e[b])


def test_strided_and_expanded_inputs(backend):
    r = rewards(dtype=torch.float32)
    strided = torch.stack((r, torch.full_like(r, 9.0)), dim=-1)[..., 0]
    valid = torch.rand(G, B, generator=torch.Generator().manual_seed(1)).T > 0.2
    wanted = group_advantages(r, valid=valid.contiguous())
    for a, b in zip(group_advantages(strided, valid=valid), wanted, strict=True):
        assert torch.equal(a, b)
    log_ratio, advantages = batch()  # advantages are expanded over steps
    leaves = [x.clone().requires_grad_() for x in (log_ratio, log_ratio)]
    one = grpo_loss(leaves[0].transpose(0, 2), advantages.transpose(0, 2), clip_range=0.2)
    other = grpo_loss(leaves[1], advantages.contiguous(), clip_range=0.2)
    close(one.loss, other.loss)
    assert torch.equal(one.ratio.transpose(0, 2), other.ratio)
    one.loss.backward()
    other.loss.backward()
    close(leaves[0].grad, leaves[1].grad)


def test_operators_are_registered_correctly(fused):
    log_ratio, advantages = (x.detach() for x in batch())
    valid, kl = log_ratio > -0.2, log_ratio.square()
    options = (0.0, 0.2, 0.3, 0.5, fused)
    for with_valid, count in ((None, None), (valid, torch.tensor(7.0).double())):
        arguments = (log_ratio.clone().requires_grad_(), advantages, with_valid, None, kl.requires_grad_(), count)
        torch.library.opcheck(torch.ops.mgrpo.grpo_loss, (*arguments, *options))
    torch.library.opcheck(
        torch.ops.mgrpo.grpo_loss, (log_ratio.requires_grad_(), advantages, None, None, None, None, *options)
    )
    weights = torch.ones(K, dtype=torch.float64)
    for scheme in range(len(ADVANTAGE_SCHEMES)):
        arguments = (rewards(), valid[:, :, 0], weights, scheme, 1, 1e-8, 0.1, 1e-3, 1e-6, 0.1, 5.0, fused)
        torch.library.opcheck(torch.ops.mgrpo.group_advantages, arguments)


def test_second_derivative_only_in_the_reference(backend):
    log_ratio, advantages = batch()
    loss = grpo_loss(log_ratio.requires_grad_(), advantages, clip_range=0.2).loss
    (grad,) = torch.autograd.grad(loss, log_ratio, create_graph=True)
    if backend == "reference":
        grad.sum().backward()
        return
    with pytest.raises(BackendError, match="backend='reference'"):
        grad.sum().backward()


# -------------------------------------------------------------------- golden


@pytest.mark.golden("loss/author_grpo_*.npz")
def test_golden_clipped_loss(golden_path):
    """From the recorded log-probs to every recorded loss: that of the file's clip range, of the ranges in names such as
    ``loss_clip0p2``, of a policy that has not moved, and with a frozen layer, which no loss knows of."""
    case = np.load(golden_path, allow_pickle=False)
    settings_ = json.loads(golden_path.with_suffix(".json").read_text())
    old, new = (torch.from_numpy(case[f"log_probs_{which}"]) for which in ("old", "new"))
    advantages = torch.from_numpy(case["advantages"]).clamp(-settings_["adv_clip"], settings_["adv_clip"])
    recorded = [name for name in case.files if re.fullmatch(r"loss(_.+)?", name)]
    assert "loss" in recorded
    for name in recorded:
        log_ratio = torch.zeros_like(old) if name == "loss_old_policy" else new - old
        limit = re.fullmatch(r"loss_clip(.+)", name)
        clip_range = float(limit[1].replace("p", ".")) if limit else settings_["clip_range"]
        result = grpo_loss(log_ratio, advantages, clip_range=clip_range)
        np.testing.assert_allclose(result.loss.item(), case[name], rtol=2e-5, err_msg=name)
        if name != "loss_old_policy":
            np.testing.assert_allclose(result.ratio.numpy(), case["ratio"], rtol=1e-6)


@pytest.mark.golden
def test_golden_advantages():
    published = {"eps": 1e-8, "dead_abs": 0.0, "dead_ratio": 0.0}
    components = ("mpjpe", "pampjpe", "mpjve", "mpjre")
    for path in golden_files("rewards/rewards*.npz"):
        case = np.load(path, allow_pickle=False)
        group = int(case["group_size"])
        found = 0
        for name in case.files:
            if name.endswith("_advantages_of_total_with_stub_critic"):
                prefix = name.removesuffix("_advantages_of_total_with_stub_critic")
                r = torch.from_numpy(case[f"{prefix}_total_with_stub_critic"]).view(-1, group)
                got = group_advantages(r, **published).advantages
            elif name.endswith("_advantages_sum_of_4_components"):
                prefix = name.removesuffix("_advantages_sum_of_4_components")
                columns = [torch.from_numpy(case[f"{prefix}_{component}_reward"]) for component in components]
                got = group_advantages(torch.stack(columns, dim=-1).view(-1, group, 4), **published).advantages
            else:
                continue
            found += 1
            np.testing.assert_allclose(got.flatten().numpy(), case[name], rtol=2e-4, atol=2e-4)
        assert found
