"""The policy gradient against a slow version by autograd, and the numbers that describe a rollout."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from mgrpo.diffusion.sampler import NoiseKeys, step_noise
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.diffusion.transition import make_transitions, step_weights
from mgrpo.errors import MgrpoError
from mgrpo.grpo.health import advantage_metrics, parameter_distance, reward_metrics, update_metrics
from mgrpo.grpo.rollout import roll_out
from mgrpo.grpo.update import PolicyLossConfig, accumulate_gradients, channel_weights, check_ratio_is_one, choose_steps
from mgrpo.kernels import group_advantages, sde_log_prob
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.state import project_state

CONFIG = DenoiserConfig(
    d_latent=16, d_feedforward=32, d_noise_emb=8, num_heads=2, encoder_layers=1, decoder_layers=1, include_hands=False
)
GROUPS, MEMBERS, FRAMES = 2, 3, 6


@pytest.fixture
def policy():
    return Denoiser(CONFIG, seed=3).double().eval()


@pytest.fixture
def transitions():
    return make_transitions("egoallo", eta=0.8, steps=6, schedule=CosineSchedule.make())


def rollout_of(policy, transitions, *, project=True, per_member=False):
    generator = torch.Generator().manual_seed(5)
    cond = torch.randn(
        GROUPS, MEMBERS if per_member else 1, FRAMES, CONFIG.d_cond, generator=generator, dtype=torch.float64
    )
    keys = NoiseKeys(0, 1, torch.arange(GROUPS), MEMBERS)
    return roll_out(policy, cond, transitions, keys, policy.layout, group_size=MEMBERS, project_rotations=project)


def slow_loss(policy, rollout, advantages, config):
    """The same loss from full log-probs, one step after another, with autograd through everything but the
    projection."""
    total = 0.0
    weights = channel_weights(rollout.layout, config.channels)
    scale = step_weights(rollout.transitions, config.step_weight)
    for step in rollout.transitions.trainable_steps:
        t, A, B, s = rollout.transitions.scalars[step]
        x_t, old = rollout.x_t[step], rollout.x0_pred[step]
        level = torch.full((x_t.shape[0],), t)
        new = policy.decode(x_t, level, policy.encode(rollout.cond, level))
        if rollout.project_rotations:
            new = project_state(rollout.layout, new)
        noise = step_noise(rollout.keys, step, tuple(x_t.shape[-2:]))
        flat = [part.flatten(0, 1) for part in (x_t, old, new, noise)]
        x_prev = A * flat[0] + B * flat[1] + s * flat[3]
        options = {"reduction": "mean", "channel_weights": weights}
        log_prob = sde_log_prob(x_prev.double(), flat[0].double(), flat[2].double(), A, B, s, **options)
        with torch.no_grad():
            before = sde_log_prob(x_prev.double(), flat[0].double(), flat[1].double(), A, B, s, **options)
        ratio = torch.exp(log_prob - before)
        clipped = ratio.clamp(1 - config.clip_range, 1 + config.clip_range)
        flat_advantages = advantages.flatten()
        total = total + float(scale[step]) * torch.maximum(-flat_advantages * ratio, -flat_advantages * clipped).sum()
    return total / (GROUPS * MEMBERS * len(rollout.transitions.trainable_steps))


@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("weight", ["none", "inv_snr", "noise"])
def test_gradients_equal_those_of_full_log_probs(policy, transitions, project, weight):
    rollout = rollout_of(policy, transitions, project=project)
    advantages = torch.randn(GROUPS, MEMBERS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    config = PolicyLossConfig(step_weight=weight, clip_range=1e6)
    with torch.no_grad():
        policy.decoders["betas"][-1].bias.add_(1e-3)  # so that the ratio is not one
    steps = torch.tensor(transitions.trainable_steps)
    policy.zero_grad()
    seen = accumulate_gradients(
        policy, rollout, advantages, config, steps=steps, rows=slice(None), denominator=GROUPS * MEMBERS * len(steps)
    )
    ours = [parameter.grad.clone() for parameter in policy.parameters() if parameter.grad is not None]
    policy.zero_grad()
    loss = slow_loss(policy, rollout, advantages, config)
    loss.backward()
    theirs = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    assert len(ours) == len(theirs) > 10
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)
    assert float(seen.loss.sum()) == pytest.approx(float(loss.detach()), rel=1e-6)
    assert float(seen.log_ratio_max.max()) > 0


@pytest.mark.parametrize("per_member", [False, True])
def test_the_ratio_is_exactly_one_before_an_update(policy, transitions, per_member):
    policy = policy.float()
    generator = torch.Generator().manual_seed(5)
    cond = torch.randn(GROUPS, MEMBERS if per_member else 1, FRAMES, CONFIG.d_cond, generator=generator)
    rollout = roll_out(
        policy,
        cond,
        transitions,
        NoiseKeys(0, 1, torch.arange(GROUPS), MEMBERS),
        policy.layout,
        group_size=MEMBERS,
        project_rotations=True,
    )
    encodings = MEMBERS if per_member else 1
    advantages = torch.randn(GROUPS, MEMBERS, generator=generator).reshape(GROUPS * encodings, -1)
    config, steps = PolicyLossConfig(), torch.tensor(transitions.trainable_steps)
    policy.zero_grad()
    seen = accumulate_gradients(policy, rollout, advantages, config, steps=steps, rows=slice(None), denominator=12.0)
    assert torch.equal(seen.log_ratio_max, torch.zeros_like(seen.log_ratio_max))
    assert torch.equal(seen.ratio_min, torch.ones_like(seen.ratio_min)) and float(seen.approx_kl.max()) == 0
    check_ratio_is_one(seen, config)


@pytest.mark.parametrize("per_member", [False, True])
def test_pieces_of_conditions_and_steps_add_up(policy, transitions, per_member):
    rollout = rollout_of(policy, transitions, per_member=per_member)
    encodings = MEMBERS if per_member else 1
    generator = torch.Generator().manual_seed(5)
    advantages = torch.randn(GROUPS, MEMBERS, generator=generator, dtype=torch.float64).reshape(GROUPS * encodings, -1)
    config, steps = PolicyLossConfig(), torch.tensor(transitions.trainable_steps)
    policy.zero_grad()
    accumulate_gradients(policy, rollout, advantages, config, steps=steps, rows=slice(None), denominator=12.0)
    whole = [parameter.grad.clone() for parameter in policy.parameters() if parameter.grad is not None]
    policy.zero_grad()
    for rows in (slice(0, encodings), slice(encodings, 2 * encodings)):
        for part in steps.split(2):
            accumulate_gradients(policy, rollout, advantages, config, steps=part, rows=rows, denominator=12.0)
    for a, b in zip(whole, [p.grad for p in policy.parameters() if p.grad is not None]):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-12)


def test_a_small_step_makes_better_members_likelier(policy, transitions):
    rollout = rollout_of(policy, transitions)
    advantages = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 0.5, 0.5]], dtype=torch.float64)
    steps = torch.tensor(transitions.trainable_steps)
    policy.zero_grad()
    accumulate_gradients(
        policy, rollout, advantages, PolicyLossConfig(clip_range=1e6), steps=steps, rows=slice(None), denominator=1.0
    )
    moved = copy.deepcopy(policy)
    with torch.no_grad():
        size = math.sqrt(sum(float(p.grad.square().sum()) for p in policy.parameters() if p.grad is not None))
        for target, source in zip(moved.parameters(), policy.parameters()):
            if source.grad is not None:
                target.sub_(1e-4 / size * source.grad)
    before = slow_loss(policy, rollout, advantages, PolicyLossConfig(clip_range=1e6))
    after = slow_loss(moved, rollout, advantages, PolicyLossConfig(clip_range=1e6))
    assert float(after.detach()) < float(before.detach())


def test_clipping_cuts_the_gradient(policy, transitions):
    rollout = rollout_of(policy, transitions)
    with torch.no_grad():
        policy.decoders["betas"][-1].bias.add_(0.5)
    steps = torch.tensor(transitions.trainable_steps)
    policy.zero_grad()
    seen = accumulate_gradients(
        policy,
        rollout,
        -torch.ones(GROUPS, MEMBERS, dtype=torch.float64),
        PolicyLossConfig(clip_range=1e-4),
        steps=steps,
        rows=slice(None),
        denominator=1.0,
    )
    assert float((seen.clip_low).max()) > 0.5


def test_steps_are_chosen_as_asked(transitions):
    generator = torch.Generator().manual_seed(0)
    every = choose_steps(transitions, PolicyLossConfig(), generator)
    assert every.tolist() == list(transitions.trainable_steps)
    noisiest = choose_steps(transitions, PolicyLossConfig(trained_steps=2), generator)
    assert len(noisiest) == 2 and float(transitions.s[noisiest].min()) >= float(transitions.s[every].sort().values[-2])
    half = [choose_steps(transitions, PolicyLossConfig(timestep_fraction=0.5), generator) for _ in range(20)]
    assert {len(chosen) for chosen in half} == {round(0.5 * len(every))} and len(
        {tuple(chosen.tolist()) for chosen in half}
    ) > 1
    with pytest.raises(MgrpoError, match="no stochastic step"):
        choose_steps(make_transitions("ode", steps=4), PolicyLossConfig(), generator)


@pytest.mark.parametrize(
    "options", [{"clip_range": 0.0}, {"timestep_fraction": 0.0}, {"kl_coef": -1.0}, {"trained_steps": -1}]
)
def test_loss_options_out_of_range(options):
    with pytest.raises(ValueError, match="--" + next(iter(options)).replace("_", "-")):
        PolicyLossConfig(**options)


def test_reward_metrics_by_hand():
    rewards = torch.tensor([[[1.0, 0.0], [3.0, 0.0]], [[5.0, 0.0], [7.0, 0.0]]])
    metrics = reward_metrics(rewards, torch.tensor([1.0, 2.0]), ("a", "b"))
    assert metrics["reward"] == 4 and metrics["reward_min"] == 1 and metrics["reward_max"] == 7
    assert metrics["rewards/a/std"] == pytest.approx(math.sqrt(2)) and metrics[
        "rewards/a/between_std"
    ] == pytest.approx(math.sqrt(8))
    assert metrics["rewards/a/signal"] == pytest.approx(0.2) and metrics["rewards/b/signal"] == 0
    rewards[0, 0, 0] = math.nan
    assert reward_metrics(rewards, torch.tensor([1.0, 0.0]), ("a", "b"))["reward"] == 5


def test_dead_groups_and_correlations_are_reported():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(4, 8, 2, generator=generator)
    rewards[..., 1] = 2 * rewards[..., 0]
    rewards[0] = 1.0
    result = group_advantages(rewards, clamp=1.0)
    metrics = advantage_metrics(result, ("a", "b"), 1.0)
    assert (
        metrics["frac_reward_zero_std"] == 0.25 and metrics["frac_dead_all"] == 0.25 and metrics["frac_dead/b"] == 0.25
    )
    assert metrics["advantage_corr/a~b"] == pytest.approx(1.0, abs=1e-5)
    assert 0 < metrics["advantage/clamp_fraction"] < 1 and metrics["advantage/abs_max"] == 1.0


def test_update_metrics_join_passes(policy, transitions):
    rollout = rollout_of(policy, transitions)
    steps = torch.tensor(transitions.trainable_steps)
    seen = accumulate_gradients(
        policy,
        rollout,
        torch.ones(GROUPS, MEMBERS, dtype=torch.float64),
        PolicyLossConfig(),
        steps=steps,
        rows=slice(None),
        denominator=6.0,
    )
    metrics = update_metrics([seen, seen])
    assert (
        metrics["ratio/mean"] == 1
        and metrics["clip_ratio/region_mean"] == 0
        and metrics["loss"] == pytest.approx(2 * float(seen.loss.sum()))
    )


def test_parameter_distance():
    assert parameter_distance([torch.ones(4)], [torch.full((4,), 1.1)]) == pytest.approx(0.1, rel=1e-5)
