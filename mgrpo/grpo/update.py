"""The policy gradient: clipped ratios of the stored steps, accumulated over steps and conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mgrpo.diffusion.sampler import step_noise
from mgrpo.diffusion.transition import Transitions, step_weights
from mgrpo.errors import MgrpoError
from mgrpo.kernels import grpo_loss, sde_kl, sde_log_ratio
from mgrpo.models.state import StateLayout, project_state
from mgrpo.options import require

from .policy import Policy
from .rollout import Rollout


@dataclass(frozen=True)
class PolicyLossConfig:
    """How stored steps become a loss."""

    clip_range: float = 1e-4
    """PPO clip on the ratio of mean-reduced log-probs, dimensionless."""
    step_weight: Literal["none", "inv_snr", "noise"] = "none"
    """Weight of each step: `none` (paper: almost all gradient comes from the last steps), `inv_snr` (equal gradient per
    change of the prediction), `noise` (proportional to the step's noise)."""
    timestep_fraction: float = 1.0
    """Share of the trainable steps trained in an iteration, drawn anew each time."""
    trained_steps: int = 0
    """Train only this many of the sampler's stochastic steps, the noisiest first; 0: all of them (paper)."""
    channels: Literal["rewarded", "all"] = "rewarded"
    """Channels of the state that enter the log-prob: those that a reward can see, or all of them (paper)."""
    ratio_shift_correction: bool = False
    """Leave the quadratic term out of the log-ratio, whose bias pushes every ratio below one when several updates share
    a rollout."""
    kl_coef: float = 0.0
    """Weight of the KL divergence to the frozen prior, in closed form (paper: 0)."""

    def __post_init__(self) -> None:
        require(self, "clip_range", above=0)
        require(self, "timestep_fraction", above=0, at_most=1)
        require(self, "trained_steps", at_least=0)
        require(self, "kl_coef", at_least=0)


class RatioCheckError(MgrpoError):
    """The ratio differs from one before anything was updated: rollout and update do not compute the same policy."""


@dataclass(frozen=True)
class UpdateStatistics:
    """What one pass over the stored steps saw; tensors over trained steps (S',)."""

    steps: Tensor
    """Indices of the trained steps."""
    loss: Tensor
    ratio_mean: Tensor
    ratio_min: Tensor
    ratio_max: Tensor
    clip_low: Tensor
    """Share of samples clipped from below."""
    clip_high: Tensor
    """Share of samples clipped from above."""
    approx_kl: Tensor
    """Exact KL divergence from the policy that sampled, nats per channel."""
    kl_reference: Tensor
    """KL divergence to the frozen prior, nats per channel; zero when no reference is given."""
    log_ratio_max: Tensor
    """Largest |log ratio|: exactly zero before the first update."""


def channel_weights(layout: StateLayout, channels: Literal["rewarded", "all"]) -> Tensor:
    """Weight (D,) of each channel in the log-prob: contacts and hands are left out unless all channels are asked
    for."""
    return layout.channel_weights(contacts=1.0, hand_rotmats=1.0) if channels == "all" else layout.channel_weights()


def choose_steps(transitions: Transitions, config: PolicyLossConfig, generator: torch.Generator) -> Tensor:
    """Indices of the steps to train, ascending: the noisiest ``trained_steps``, and of those a random
    ``timestep_fraction``, at least one.

    Raises MgrpoError when the sampler is deterministic: without noise there is no action.
    """
    trainable = torch.tensor(transitions.trainable_steps, dtype=torch.int64)
    if config.trained_steps:
        noisiest = transitions.s[trainable].argsort(descending=True)[: config.trained_steps]
        trainable = trainable[noisiest.sort().values]
    if not len(trainable):
        raise MgrpoError(
            f"sampler kernel {transitions.kernel!r} (eta {transitions.eta}) has no stochastic step, so there is no "
            "action to train"
        )
    count = max(1, round(config.timestep_fraction * len(trainable)))
    order = torch.randperm(len(trainable), generator=generator)[:count]
    return trainable[order].sort().values


def accumulate_gradients(
    policy: Policy,
    rollout: Rollout,
    advantages: Tensor,
    config: PolicyLossConfig,
    *,
    steps: Tensor,
    rows: slice,
    denominator: float,
    reference: Policy | None = None,
) -> UpdateStatistics:
    """Add the gradient of the clipped loss of some conditions at some steps to the policy's parameters.

    ``advantages (R, M)`` has the rollout's row layout, ``rows`` selects conditions, ``denominator`` is the number of
    living samples times steps of the whole optimiser step, so that pieces add up to one mean. The network runs at the
    rollout's shapes, so
    that the ratio is exactly one until a weight changes (facts: GRPO, section 3.5).
    """
    cond, advantages = rollout.cond[rows], advantages[rows]
    members = advantages.shape[1]
    transitions = rollout.transitions
    weights = step_weights(transitions, config.step_weight)
    keys = rollout.keys.select(rows)
    options = {"reduction": "mean", "channel_weights": channel_weights(rollout.layout, config.channels).to(cond.device)}
    seen: list[list[Tensor]] = []
    for step in steps.tolist():
        t = torch.full((cond.shape[0],), int(transitions.t[step]), device=cond.device)
        scale, deviation = float(transitions.B[step]), float(transitions.s[step])
        x_t, old = rollout.x_t[step][rows], rollout.x0_pred[step][rows]
        noise = step_noise(keys, step, (x_t.shape[-2], x_t.shape[-1]))

        def predict(network: Policy) -> Tensor:
            prediction = network.decode(x_t, t, network.encode(cond, t))  # noqa: B023
            if rollout.project_rotations:
                prediction = project_state(rollout.layout, prediction)
            return prediction.flatten(0, 1)

        x0_pred, old, noise = predict(policy), old.flatten(0, 1), noise.flatten(0, 1)
        log_ratio = sde_log_ratio(
            x0_pred, old, noise, scale, deviation, drop_quadratic=config.ratio_shift_correction, **options
        )
        kl_reference = torch.zeros_like(log_ratio)
        if reference is not None:
            with torch.no_grad():
                target = predict(reference)
            kl_reference = sde_kl(x0_pred, target, scale, deviation, **options)
        result = grpo_loss(
            log_ratio.view(-1, members),
            advantages,
            clip_range=config.clip_range,
            weights=torch.full_like(advantages, float(weights[step])),
            denominator=denominator,
            kl=kl_reference.view(-1, members) if config.kl_coef else None,
            kl_coef=config.kl_coef,
        )
        result.loss.backward()
        with torch.no_grad():
            ratio = result.ratio
            moved = sde_kl(x0_pred, old, scale, deviation, **options).mean()
            seen.append(
                [
                    result.loss.detach(),
                    ratio.mean(),
                    ratio.min(),
                    ratio.max(),
                    result.clip_fraction_low,
                    result.clip_fraction_high,
                    moved,
                    kl_reference.mean(),
                    log_ratio.abs().max(),
                ]
            )
    columns = [torch.stack([row[i].float() for row in seen]) for i in range(9)]
    return UpdateStatistics(steps, *columns)


def check_ratio_is_one(statistics: UpdateStatistics, config: PolicyLossConfig) -> None:
    """Raise RatioCheckError unless every ratio of a first, not yet updated pass is one to a tenth of the clip range."""
    worst = float(statistics.log_ratio_max.max())
    if not worst <= 0.1 * config.clip_range:
        step = int(statistics.steps[int(statistics.log_ratio_max.argmax())])
        raise RatioCheckError(
            f"before any update the ratio must be 1, but |log ratio| is {worst:.3g} at sampler step {step} (allowed: "
            "a tenth of the clip range "
            f"{config.clip_range:g}). Rollout and update compute different networks: dropout, mixed precision, "
            "compilation of only one of the "
            "two, or other batch shapes do this. Run both in float32 with the same shapes."
        )
