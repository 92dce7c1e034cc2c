"""The policy gradient against a slow version by autograd, and the numbers that describe a rollout."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch

from mgrpo.diffusion.sampler import NoiseKeys, sample, step_noise
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.diffusion.transition import make_transitions, step_weights
from mgrpo.errors import InputError, MgrpoError
from mgrpo.grpo import encoding, update
from mgrpo.grpo.health import advantage_metrics, parameter_distance, read_metrics, reward_metrics, update_metrics
from mgrpo.grpo.rollout import roll_out
from mgrpo.grpo.update import PolicyLossConfig, accumulate_gradients, channel_weights, check_ratio_is_one, choose_steps
from mgrpo.grpo.window import StepWindowConfig
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


def rollout_of(policy, transitions, *, project=True, per_member=False, graphs=False):
    generator = torch.Generator().manual_seed(5)
    cond = torch.randn(
        GROUPS, MEMBERS if per_member else 1, FRAMES, CONFIG.d_cond, generator=generator, dtype=torch.float64
    )
    keys = NoiseKeys(0, 1, torch.arange(GROUPS), MEMBERS)
    return roll_out(
        policy,
        cond.flatten(0, 1),
        transitions,
        keys,
        shape=(FRAMES, policy.layout.dim),
        steps=transitions.trainable_steps,
        layout=policy.layout,
        project_rotations=project,
        per_member=per_member,
        keep_graphs=graphs,
        dtype=torch.float64,
    )


def slow_loss(policy, rollout, advantages, config):
    """The same loss from full log-probs, one step after another, with autograd through everything but the
    projection."""
    total = 0.0
    weights = channel_weights(rollout.layout, config.channels)
    scale = step_weights(rollout.transitions, config.step_weight)
    for step in rollout.transitions.trainable_steps:
        t, A, B, s = rollout.transitions.scalars[step]
        old = rollout.steps[step].x0_pred
        x_t = rollout.steps[step].x_t.expand_as(old)
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
    steps = transitions.trainable_steps
    policy.zero_grad()
    seen = accumulate_gradients(
        policy, rollout, advantages, config, steps=steps, denominator=GROUPS * MEMBERS * len(steps)
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
        cond.flatten(0, 1),
        transitions,
        NoiseKeys(0, 1, torch.arange(GROUPS), MEMBERS),
        shape=(FRAMES, policy.layout.dim),
        steps=transitions.trainable_steps,
        project_rotations=True,
        per_member=per_member,
    )
    encodings = MEMBERS if per_member else 1
    advantages = torch.randn(GROUPS, MEMBERS, generator=generator).reshape(GROUPS * encodings, -1)
    config, steps = PolicyLossConfig(), transitions.trainable_steps
    policy.zero_grad()
    seen = accumulate_gradients(policy, rollout, advantages, config, steps=steps, denominator=12.0)
    assert torch.equal(seen.log_ratio_max, torch.zeros_like(seen.log_ratio_max))
    assert torch.equal(seen.ratio_min, torch.ones_like(seen.ratio_min)) and float(seen.approx_kl.max()) == 0
    check_ratio_is_one(seen, config)


def test_pieces_of_conditions_and_steps_add_up(policy, transitions):
    generator = torch.Generator().manual_seed(5)
    advantages = torch.randn(GROUPS, MEMBERS, generator=generator, dtype=torch.float64)
    cond = torch.randn(GROUPS, FRAMES, CONFIG.d_cond, generator=generator, dtype=torch.float64)
    config, steps = PolicyLossConfig(), transitions.trainable_steps

    def gradients(conditions, pieces):
        policy.zero_grad()
        for rows in conditions:
            rollout = roll_out(
                policy,
                cond[rows],
                transitions,
                NoiseKeys(0, 1, torch.arange(GROUPS)[rows], MEMBERS),
                shape=(FRAMES, policy.layout.dim),
                steps=steps,
                project_rotations=True,
                dtype=torch.float64,
            )
            for part in pieces:
                accumulate_gradients(
                    policy, rollout, advantages[rows], config, steps=part, denominator=torch.tensor(12.0).double()
                )
        return [parameter.grad.clone() for parameter in policy.parameters() if parameter.grad is not None]

    whole = gradients([slice(None)], [steps])
    parts = gradients([slice(0, 1), slice(1, 2)], [steps[:2], steps[2:]])
    assert sum(float(a.abs().sum()) for a in whole) > 0
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("per_member", [False, True])
def test_kept_graphs_give_the_gradients_of_a_second_pass(policy, transitions, per_member):
    advantages = torch.randn(GROUPS, MEMBERS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    config, steps = PolicyLossConfig(step_weight="inv_snr"), transitions.trainable_steps
    found = {}
    for graphs in (False, True):
        rollout = rollout_of(policy, transitions, per_member=per_member, graphs=graphs)
        assert all((step.prediction is not None) == graphs for step in rollout.steps.values())
        policy.zero_grad()
        calls = CountCalls(policy)
        seen = accumulate_gradients(
            calls, rollout, advantages.reshape(rollout.rows, -1), config, steps=steps, denominator=1.0
        )
        assert calls.decoded == (0 if graphs else len(steps))
        assert float(seen.log_ratio_max.max()) == 0
        found[graphs] = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
    for a, b in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


class CountCalls:
    """A policy that counts how often it is decoded."""

    def __init__(self, policy):
        self.policy, self.decoded, self.rows = policy, 0, 0

    def encode(self, cond, t, **options):
        return self.policy.encode(cond, t, **options)

    def decode(self, x_t, t, memory):
        self.decoded += 1
        self.rows += x_t.shape[0] * x_t.shape[1]
        return self.policy.decode(x_t, t, memory)


def test_members_are_sampled_as_one_until_their_noise_differs(policy):
    """Noise at two of six steps: up to the first of them the network sees every condition once, and the samples are
    those of a sampler that repeats it for every member."""
    quiet = make_transitions("egoallo", eta=0.8, steps=6, schedule=CosineSchedule.make(), noisy_steps=(2, 3))
    assert quiet.trainable_steps == (2, 3)
    generator = torch.Generator().manual_seed(5)
    cond = torch.randn(GROUPS, FRAMES, CONFIG.d_cond, generator=generator, dtype=torch.float64)
    keys = NoiseKeys(0, 1, torch.arange(GROUPS), MEMBERS)
    calls = CountCalls(policy)
    rollout = roll_out(
        calls, cond, quiet, keys, shape=(FRAMES, policy.layout.dim), steps=(2, 3), layout=policy.layout,
        project_rotations=True, dtype=torch.float64,
    )  # fmt: skip
    assert calls.rows == GROUPS * (3 * 1 + 3 * MEMBERS)
    assert rollout.steps[2].x_t.shape[1] == 1 and rollout.steps[3].x_t.shape[1] == MEMBERS
    plain = sample(policy, cond, quiet, keys, record="all")
    torch.testing.assert_close(rollout.x0, plain.x0, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(rollout.steps[3].x_t, plain.x_t[3], rtol=1e-9, atol=1e-10)
    apart = dataclasses.replace(keys, share_initial=False)
    alone = CountCalls(policy)
    roll_out(
        alone, cond, quiet, apart, shape=(FRAMES, policy.layout.dim), steps=(), layout=policy.layout,
        project_rotations=True, dtype=torch.float64,
    )  # fmt: skip
    assert alone.rows == GROUPS * 6 * MEMBERS


@pytest.mark.parametrize("graphs", [False, True])
def test_sharing_the_condition_changes_no_sample(policy, transitions, graphs):
    """Encoding once for a group, and decoding once while its members are equal, against every sample for itself."""
    generator = torch.Generator().manual_seed(5)
    cond = torch.randn(GROUPS, FRAMES, CONFIG.d_cond, generator=generator, dtype=torch.float64)
    options = {
        "keys": NoiseKeys(0, 1, torch.arange(GROUPS), MEMBERS), "shape": (FRAMES, policy.layout.dim),
        "steps": transitions.trainable_steps, "project_rotations": True, "dtype": torch.float64,
    }  # fmt: skip
    shared = roll_out(policy, cond, transitions, keep_graphs=graphs, **options)
    plain = roll_out(policy, cond.repeat_interleave(MEMBERS, 0), transitions, per_member=True, **options)
    assert shared.rows == GROUPS and plain.rows == GROUPS * MEMBERS
    torch.testing.assert_close(shared.x0.flatten(0, 1), plain.x0.flatten(0, 1), rtol=1e-10, atol=1e-11)
    for k, step in shared.steps.items():
        expected = plain.steps[k].x0_pred.flatten(0, 1)
        got = step.x0_pred.expand(-1, MEMBERS, -1, -1).flatten(0, 1)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("graphs", "calls"), [(True, 2), (False, 6)])
def test_steps_the_update_does_not_encode_again_are_encoded_together(policy, transitions, graphs, calls, monkeypatch):
    """Five of the six steps are trained: with graphs one call for these and one for the last; without, only what the
    update computes in the same way."""
    seen = []
    encode = policy.encode
    monkeypatch.setattr(policy, "encode", lambda cond, t, **rest: seen.append(len(t)) or encode(cond, t, **rest))
    rollout = rollout_of(policy, transitions, graphs=graphs)
    assert len(rollout.steps) == 5 and len(seen) == calls and sum(seen) == 6 * GROUPS
    monkeypatch.setattr(encoding, "ROWS_AT_ONCE", 3 * GROUPS)  # parts of three and two steps
    seen.clear()
    limited = rollout_of(policy, transitions, graphs=graphs)
    assert len(seen) == calls + graphs and max(seen) == (3 * GROUPS if graphs else GROUPS)
    torch.testing.assert_close(limited.x0, rollout.x0, rtol=1e-11, atol=1e-12)


def test_padded_frames_change_nothing(policy, transitions):
    """With a mask, what stands in padded frames of state noise and advantages' gradient is left out of the loss."""
    generator = torch.Generator().manual_seed(5)
    cond = torch.randn(GROUPS, FRAMES, CONFIG.d_cond, generator=generator, dtype=torch.float64)
    mask = torch.ones(GROUPS, FRAMES, dtype=torch.bool)
    mask[0, 4:] = False
    steps = transitions.trainable_steps
    rollout = roll_out(
        policy, cond, transitions, NoiseKeys(0, 1, torch.arange(GROUPS), MEMBERS), shape=(FRAMES, policy.layout.dim),
        steps=steps, project_rotations=True, mask=mask, dtype=torch.float64, keep_graphs=True,
    )  # fmt: skip
    seen = {}
    for step in rollout.steps.values():
        step.prediction.register_hook(lambda gradient: seen.setdefault(len(seen), gradient))
    advantages = torch.ones(GROUPS, MEMBERS, dtype=torch.float64)
    accumulate_gradients(policy, rollout, advantages, PolicyLossConfig(), steps=steps, denominator=1.0)
    assert len(seen) == len(steps)
    for gradient in seen.values():
        assert not gradient[0, :, 4:].any() and gradient[0, :, :4].any() and gradient[1, :, 4:].any()


def test_a_small_step_makes_better_members_likelier(policy, transitions):
    rollout = rollout_of(policy, transitions)
    advantages = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 0.5, 0.5]], dtype=torch.float64)
    steps = transitions.trainable_steps
    policy.zero_grad()
    accumulate_gradients(policy, rollout, advantages, PolicyLossConfig(clip_range=1e6), steps=steps, denominator=1.0)
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
    steps = transitions.trainable_steps
    policy.zero_grad()
    seen = accumulate_gradients(
        policy,
        rollout,
        -torch.ones(GROUPS, MEMBERS, dtype=torch.float64),
        PolicyLossConfig(clip_range=1e-4),
        steps=steps,
        denominator=1.0,
    )
    assert float((seen.clip_low).max()) > 0.5


def test_steps_are_chosen_as_asked(transitions):
    generator = torch.Generator().manual_seed(0)
    every = choose_steps(transitions, PolicyLossConfig(), generator)
    assert every == transitions.trainable_steps
    inside = step_weights(transitions, "none", steps=every[:2])
    assert choose_steps(transitions, PolicyLossConfig(), generator, inside) == every[:2]
    half = [choose_steps(transitions, PolicyLossConfig(timestep_fraction=0.5), generator) for _ in range(20)]
    assert {len(chosen) for chosen in half} == {round(0.5 * len(every))} and len(set(half)) > 1
    with pytest.raises(MgrpoError, match="no stochastic step"):
        choose_steps(make_transitions("ode", steps=4), PolicyLossConfig(), generator)


def test_a_window_moves_and_comes_back():
    trainable = tuple(range(5))
    window = StepWindowConfig(size=2, start=1, move_every=3)
    places = [window.steps(trainable, iteration) for iteration in range(12)]
    assert places == [(1, 2)] * 3 + [(2, 3)] * 3 + [(3, 4)] * 3 + [(1, 2)] * 3
    assert StepWindowConfig().steps(trainable, 7) == trainable
    assert StepWindowConfig(size=2).steps(trainable, 99) == (0, 1)
    with pytest.raises(InputError, match="does not fit into the sampler's 5 stochastic steps"):
        StepWindowConfig(size=4, start=2).steps(trainable, 0)
    for wrong in ({"size": -1}, {"size": 2, "start": -1}, {"size": 2, "move_every": -1}):
        with pytest.raises(InputError, match="must be at least 0, got -1"):
            StepWindowConfig(**wrong)
    assert set(StepWindowConfig().unused_options()) == {"start", "move_every", "quiet_outside"}


@pytest.mark.parametrize("options", [{"clip_range": 0.0}, {"timestep_fraction": 0.0}, {"kl_coef": -1.0}])
def test_loss_options_out_of_range(options):
    with pytest.raises(ValueError, match="--" + next(iter(options)).replace("_", "-")):
        PolicyLossConfig(**options)


def test_reward_metrics_by_hand():
    rewards = torch.tensor([[[1.0, 0.0], [3.0, 0.0]], [[5.0, 0.0], [7.0, 0.0]]])
    metrics = read_metrics(reward_metrics(rewards, torch.tensor([1.0, 2.0]), ("a", "b")))
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
    metrics = read_metrics(advantage_metrics(result, torch.ones(2), ("a", "b"), 1.0))
    assert (
        metrics["frac_reward_zero_std"] == 0.25 and metrics["frac_dead_all"] == 0.25 and metrics["frac_dead/b"] == 0.25
    )
    assert metrics["advantage_corr/a~b"] == pytest.approx(1.0, abs=1e-5)
    assert 0 < metrics["advantage/clamp_fraction"] < 1 and metrics["advantage/abs_max"] == 1.0


def test_update_metrics_join_passes(policy, transitions):
    rollout = rollout_of(policy, transitions)
    steps = transitions.trainable_steps
    seen = accumulate_gradients(
        policy,
        rollout,
        torch.ones(GROUPS, MEMBERS, dtype=torch.float64),
        PolicyLossConfig(),
        steps=steps,
        denominator=6.0,
    )
    metrics = read_metrics(update_metrics([seen, seen]))
    assert (
        metrics["ratio/mean"] == 1
        and metrics["clip_ratio/region_mean"] == 0
        and metrics["loss"] == pytest.approx(2 * float(seen.loss.sum()))
    )


def moved(policy, size=1e-3):
    """The same network with slightly other weights."""
    other = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return other


@pytest.mark.parametrize("graphs", [False, True])
def test_gradients_in_the_predictions_and_both_divergences(policy, transitions, graphs, monkeypatch):
    rollout, steps = rollout_of(policy, transitions, graphs=graphs), transitions.trainable_steps
    predictions, log_ratios = [], []
    real_projection, real_ratio = update.project_state, update.sde_log_ratio

    def projection(*arguments):
        predictions.append(real_projection(*arguments))
        predictions[-1].retain_grad()
        return predictions[-1]

    def log_ratio(*arguments, **options):
        log_ratios.append(real_ratio(*arguments, **options))
        return log_ratios[-1]

    monkeypatch.setattr(update, "project_state", projection)
    monkeypatch.setattr(update, "sde_log_ratio", log_ratio)
    for step in steps if graphs else ():
        predictions.append(rollout.steps[step].prediction)
        predictions[-1].retain_grad()
    network = policy if graphs else moved(policy)
    advantages = torch.randn(GROUPS, MEMBERS, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    seen = accumulate_gradients(
        network, rollout, advantages, PolicyLossConfig(clip_range=10.0), steps=steps, denominator=6.0
    )
    squares = [float(one.grad.square().sum()) for one in predictions]
    assert seen.output_gradient.tolist() == pytest.approx(squares, rel=1e-5) and min(squares) > 0
    k3 = [float((one.exp() - 1 - one).mean().detach()) for one in log_ratios]
    assert seen.kl_k3.tolist() == pytest.approx(k3, rel=1e-4, abs=1e-12)
    metrics = read_metrics(update_metrics([seen, seen]))
    parts = [squares[:2], squares[2:4], squares[4:]]
    for name, part in zip(("early", "middle", "late"), parts, strict=True):
        # both passes; a third of the steps of each, not of the passes one after the other
        assert metrics[f"output_grad_norm_{name}"] == pytest.approx(math.sqrt(2 * sum(part)), rel=1e-5)
    assert metrics["approx_kl_k3"] == pytest.approx(sum(k3) / len(k3), rel=1e-4, abs=1e-12)
    if not graphs:
        assert metrics["approx_kl_k3"] > 0 and metrics["approx_kl"] > 0
        assert metrics["clip_ratio/low_min"] == metrics["clip_ratio/high_max"] == 0


def test_spreads_before_the_clamp_and_of_the_batch():
    rewards = torch.tensor([[[1.0, 4.0], [2.0, math.nan]], [[3.0, 1.0], [6.0, 2.0]]])
    metrics = read_metrics(reward_metrics(rewards, torch.tensor([1.0, 2.0]), ("a", "b")))
    a, total = torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([9.0, 5.0, 10.0])
    assert (metrics["rewards/a/min"], metrics["rewards/a/max"]) == (1.0, 6.0)
    assert metrics["rewards/a/batch_std"] == pytest.approx(float(a.std()))
    assert (metrics["rewards/b/min"], metrics["rewards/b/max"]) == (1.0, 4.0)
    assert (metrics["reward_min"], metrics["reward_max"]) == (5.0, 10.0)
    assert metrics["reward_batch_std"] == pytest.approx(float(total.std()))
    nothing = read_metrics(reward_metrics(torch.full((2, 2, 1), math.nan), torch.ones(1), ("a",)))
    assert all(math.isnan(nothing[name]) for name in ("reward_min", "reward_max", "reward_batch_std", "rewards/a/min"))

    scores = torch.randn(8, 4, 2, generator=torch.Generator().manual_seed(0))
    weights, clamp = torch.tensor([1.0, 0.5]), 0.7
    free = group_advantages(scores, weights=weights).advantages
    result = group_advantages(scores, weights=weights, clamp=clamp)
    metrics = read_metrics(advantage_metrics(result, weights, ("a", "b"), clamp))
    assert metrics["advantage/std_before_clamp"] == pytest.approx(float(free.std()), rel=1e-5)
    assert metrics["advantage/std"] == pytest.approx(float(free.clamp(-clamp, clamp).std()), rel=1e-5)
    assert metrics["advantage/std"] < metrics["advantage/std_before_clamp"]


def test_parameter_distance():
    assert float(parameter_distance([torch.ones(4)], [torch.full((4,), 1.1)])) == pytest.approx(0.1, rel=1e-5)
