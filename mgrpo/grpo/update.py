"""The policy gradient: clipped ratios of the stored steps, accumulated over steps and conditions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from mgrpo.diffusion.transition import Transitions, step_weights
from mgrpo.errors import MgrpoError
from mgrpo.kernels import grpo_loss, sde_kl, sde_log_ratio
from mgrpo.models.state import StateLayout, project_state
from mgrpo.options import require

from .policy import Policy, at_level, call
from .rollout import Rollout


@dataclass(frozen=True)
class PolicyLossConfig:
    """How stored steps become a loss."""

    clip_range: float = 1e-4
    """PPO clip on the ratio of mean-reduced log-probs, dimensionless."""
    step_weight: Literal["none", "inv_snr", "noise"] = "inv_snr"
    """Weight of each step: `inv_snr` (equal gradient per change of the prediction), `noise` (proportional to the step's
    noise), `none` (paper: almost all gradient comes from the last steps)."""
    timestep_fraction: float = 1.0
    """Share of the trainable steps trained in an iteration, drawn anew each time."""
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
        require(self, "kl_coef", at_least=0)


class RatioCheckError(MgrpoError):
    """The ratio differs from one before anything was updated: rollout and update do not compute the same policy."""


@dataclass(frozen=True)
class UpdateStatistics:
    """What the passes over the stored steps saw of some samples; tensors over trained steps (S',)."""

    steps: Tensor
    """Indices of the trained steps."""
    samples: int
    """How many samples these are."""
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
    kl_k3: Tensor
    """The same as TRL and others estimate it, from the drawn ratios: mean of r - 1 - ln r."""
    kl_reference: Tensor
    """KL divergence to the frozen prior, nats per channel; zero when no reference is given."""
    log_ratio_max: Tensor
    """Largest |log ratio|: exactly zero before the first update."""
    output_gradient: Tensor
    """Squared norm of the loss's gradient in the prediction that entered the step: what this step asks of the
    network."""

    def columns(self) -> Tensor:
        """All measures (S', 11) float32, in the order of the fields: what processes exchange."""
        return torch.stack([getattr(self, name) for name in _COLUMNS], dim=1)


_SUMMED = ("loss", "output_gradient")
_AVERAGED = ("ratio_mean", "clip_low", "clip_high", "approx_kl", "kl_k3", "kl_reference")
_LARGEST = ("ratio_max", "log_ratio_max")
_COLUMNS = tuple(field.name for field in dataclasses.fields(UpdateStatistics) if field.name not in ("steps", "samples"))


def join_statistics(parts: Sequence[UpdateStatistics]) -> UpdateStatistics:
    """Statistics of all samples of ``parts``, which saw different samples at the same steps."""
    shares = torch.tensor([part.samples for part in parts], dtype=torch.float32)
    shares = shares / shares.sum()
    joined: dict[str, Tensor] = {}
    for name in _COLUMNS:
        values = torch.stack([getattr(part, name) for part in parts])
        if name in _SUMMED:
            joined[name] = values.sum(0)
        elif name in _AVERAGED:
            joined[name] = (values * shares.to(values.device)[:, None]).sum(0)
        else:
            joined[name] = values.amax(0) if name in _LARGEST else values.amin(0)
    return UpdateStatistics(parts[0].steps, sum(part.samples for part in parts), **joined)


def statistics_from_columns(steps: Tensor, samples: int, columns: Tensor) -> UpdateStatistics:
    """The inverse of :meth:`UpdateStatistics.columns`."""
    return UpdateStatistics(steps, samples, **dict(zip(_COLUMNS, columns.unbind(1), strict=True)))


def channel_weights(layout: StateLayout, channels: Literal["rewarded", "all"]) -> Tensor:
    """Weight (D,) of each channel in the log-prob: contacts and hands are left out unless all channels are asked
    for."""
    return layout.channel_weights(contacts=1.0, hand_rotmats=1.0) if channels == "all" else layout.channel_weights()


def choose_steps(
    transitions: Transitions,
    config: PolicyLossConfig,
    generator: torch.Generator,
    weights: Sequence[float] | None = None,
) -> tuple[int, ...]:
    """Indices of the steps to train, ascending: a random ``timestep_fraction`` of those that draw noise and, with
    ``weights`` of all S steps, have a weight; at least one.

    Raises MgrpoError when the sampler is deterministic: without noise there is no action.
    """
    trainable = torch.tensor(
        [k for k in transitions.trainable_steps if weights is None or weights[k] > 0], dtype=torch.int64
    )
    if not len(trainable):
        raise MgrpoError(
            f"sampler kernel {transitions.kernel!r} (eta {transitions.eta}) has no stochastic step, so there is no "
            "action to train; choose another --sampler.kernel, or a larger --sampler.eta"
        )
    count = max(1, round(config.timestep_fraction * len(trainable)))
    order = torch.randperm(len(trainable), generator=generator)[:count]
    return tuple(trainable[order].sort().values.tolist())


def accumulate_gradients(
    policy: Policy,
    rollout: Rollout,
    advantages: Tensor,
    config: PolicyLossConfig,
    *,
    steps: Sequence[int],
    denominator: float | Tensor,
    weights: Sequence[float] | None = None,
    alive: Tensor | None = None,
    reference: Policy | None = None,
    backward: Callable[[Tensor], None] | None = None,
) -> UpdateStatistics:
    """Add the gradient of the clipped loss of a rollout at some of its steps to the policy's parameters.

    The network runs at the rollout's shapes, so that the ratio is exactly one until a weight changes (facts: GRPO,
    section 3.5). Where the rollout kept its graphs there is no second forward pass: the gradient is taken through them,
    once, and the ratio is one by construction.

    Args:
        policy: the network that made the rollout, possibly updated since.
        rollout: from :func:`mgrpo.grpo.rollout.roll_out`.
        advantages: (R, M), the rollout's row layout.
        config: the loss.
        steps: indices of recorded steps.
        denominator: number of living samples times steps of the whole optimiser step, so that pieces add up to one
            mean; a tensor is not read on the host.
        weights: of all the sampler's S steps; default those of ``config.step_weight``.
        alive: samples of living groups, (R, M) bool; the others, which the denominator does not count, are left out of
            the loss, its KL term and the clip's statistics. Default: all live.
        reference: frozen prior for the KL term.
        backward: what takes the gradients of a loss, where it must be scaled first; default ``loss.backward()``.
    """
    if weights is None:
        weights = step_weights(rollout.transitions, config.step_weight).tolist()
    backward = torch.Tensor.backward if backward is None else backward
    kept: list[_Step] = []
    columns: list[Tensor] = []
    for step in steps:
        one = _step_loss(policy, rollout, advantages, config, step, weights[step], denominator, alive, reference)
        if rollout.steps[step].prediction is None:
            backward(one.loss)
            columns.append(one.measures())
        else:
            kept.append(one)
    if kept:  # the steps' graphs have the encoded conditions in common
        backward(torch.stack([one.loss for one in kept]).sum())
        columns += [one.measures() for one in kept]
    return statistics_from_columns(torch.as_tensor(steps), advantages.numel(), torch.stack(columns))


@dataclass(frozen=True)
class _Step:
    """The loss of one step, and what to call once its gradients were taken: its measures (11,) in the order of
    UpdateStatistics."""

    loss: Tensor
    measures: Callable[[], Tensor]


def _step_loss(
    policy: Policy,
    rollout: Rollout,
    advantages: Tensor,
    config: PolicyLossConfig,
    step: int,
    weight: float,
    denominator: float | Tensor,
    alive: Tensor | None,
    reference: Policy | None,
) -> _Step:
    recorded = rollout.steps[step]
    rows, members = advantages.shape
    level, _, scale, deviation = rollout.transitions.scalars[step]
    t = at_level(level, rows, recorded.x_t.device)

    def predict(network: Policy) -> Tensor:
        """What would enter the step's mean: projected while the members are still one."""
        prediction = call(network, recorded.x_t, t, rollout.cond, rollout.mask).to(recorded.x0_pred.dtype)
        if not rollout.project_rotations:
            return prediction
        assert rollout.layout is not None
        return project_state(rollout.layout, prediction)

    def for_members(prediction: Tensor) -> Tensor:
        return prediction.expand(-1, members, -1, -1).flatten(0, 1)

    kept = recorded.prediction
    prediction = predict(policy) if kept is None else kept.to(recorded.x0_pred.dtype)
    asked: list[Tensor] = []
    if prediction.requires_grad:
        prediction.register_hook(lambda gradient: asked.append(gradient.float().square().sum()))
    x0_pred = for_members(prediction)
    old = recorded.x0_pred.flatten(0, 1) if kept is None else x0_pred.detach()
    options: dict[str, Any] = {"reduction": "mean"}
    if rollout.layout is not None:
        options["channel_weights"] = _weights_on(rollout.layout, config.channels, x0_pred.device)
    if rollout.mask is not None:
        options["mask"] = rollout.mask.repeat_interleave(members, dim=0)
    log_ratio = sde_log_ratio(
        x0_pred,
        old,
        rollout.keys.step_key(step),
        scale,
        deviation,
        drop_quadratic=config.ratio_shift_correction,
        **options,
    )
    kl_reference = torch.zeros_like(log_ratio)
    if reference is not None:
        with torch.no_grad():
            target = for_members(predict(reference))
        kl_reference = sde_kl(x0_pred, target, scale, deviation, **options)
    result = grpo_loss(
        log_ratio.view(-1, members),
        advantages,
        clip_range=config.clip_range,
        valid=alive,
        weights=torch.full_like(advantages, weight),
        denominator=denominator,
        kl=kl_reference.view(-1, members) if config.kl_coef else None,
        kl_coef=config.kl_coef,
    )

    @torch.no_grad()
    def measures() -> Tensor:
        ratio = result.ratio
        # Through its own graph the policy is the one that sampled.
        same = kept is not None
        moved = torch.zeros_like(ratio[0, 0]) if same else sde_kl(x0_pred, old, scale, deviation, **options).mean()
        found = [
            result.loss, ratio.mean(), ratio.min(), ratio.max(), result.clip_fraction_low,
            result.clip_fraction_high, moved, result.approx_kl, kl_reference.mean(), log_ratio.abs().max(),
            asked[0] if asked else torch.zeros_like(moved),
        ]  # fmt: skip
        return torch.stack([measure.float() for measure in found])

    return _Step(result.loss, measures)


@lru_cache(maxsize=16)
def _weights_on(layout: StateLayout, channels: Literal["rewarded", "all"], device: torch.device) -> Tensor:
    """Channel weights, moved to a device once."""
    return channel_weights(layout, channels).to(device)


def check_ratio_is_one(statistics: UpdateStatistics, config: PolicyLossConfig) -> None:
    """Raise RatioCheckError unless every ratio of a first, not yet updated pass is one to a tenth of the clip range."""
    worst = float(statistics.log_ratio_max.max())
    if not worst <= 0.1 * config.clip_range:
        step = int(statistics.steps[int(statistics.log_ratio_max.argmax())])
        if math.isnan(worst):
            raise RatioCheckError(
                f"the policy's prediction at sampler step {step} is not finite before any update; look at the weights "
                "that were loaded, and at what the network is shown"
            )
        raise RatioCheckError(
            f"before any update the ratio must be 1, but |log ratio| is {worst:.3g} at sampler step {step} (allowed: "
            "a tenth of the clip range "
            f"{config.clip_range:g}). Rollout and update compute different networks: dropout, mixed precision, "
            "compilation of only one of the "
            "two, or other batch shapes do this. Run both in float32 with the same shapes."
        )
