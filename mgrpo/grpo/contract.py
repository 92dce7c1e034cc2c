"""What post-training relies on in a policy and a task that others wrote. What does not hold is said in their terms, at
the start or where it first shows, rather than learned from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mgrpo.errors import InputError

from .policy import Policy, at_level, call
from .rollout import Rollout
from .task import Batch, Scored, Task, look

_MIXED: Mapping[torch.dtype, float] = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest difference that other batch shapes may make to a prediction, as a share of the largest number in it: many
times what rounding does, and far less than what samples that see each other do."""


def require_policy(policy: nn.Module) -> None:
    """Raise InputError for a policy that can't be called as one, or whose weights can't take small steps."""
    if missing := [name for name in ("encode", "decode") if not callable(getattr(policy, name, None))]:
        raise InputError(
            f"post-training: the policy ({type(policy).__name__}) has no method {' and no method '.join(missing)}; "
            "wrap a network x0_pred = f(x_t, t, cond) in mgrpo.grpo.policy.PlainPolicy"
        )
    trained = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    if not trained:
        raise InputError("post-training: no parameter of the policy requires a gradient")
    for name, parameter in trained.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"post-training: parameter {name} is {str(parameter.dtype).removeprefix('torch.')}, in which an "
                "optimiser's small steps are lost in rounding; keep the weights in float32 (policy.float()) and let "
                "the layers compute in half precision with --execution.precision bf16"
            )


def require_weights(weights: Mapping[str, float]) -> None:
    """Raise InputError for reward weights from which nothing can be learned."""
    wrong = {name: weight for name, weight in weights.items() if not math.isfinite(weight)}
    if wrong or not any(weights.values()):
        raise InputError(
            "post-training: the task's reward_weights must be finite and at least one of them other than 0, got "
            f"{dict(weights)}"
        )


def require_conditions(batch: Batch, size: int) -> None:
    """Raise InputError unless a task has drawn ``size`` conditions."""
    if len(batch) != size:
        raise InputError(
            f"task.draw() was asked for {size} conditions and gave {len(batch)}; a TensorBatch has as many as the "
            "first axis of its tensors is long, so a task without conditions gives it a tensor of this length"
        )


def require_rewards(scored: Any, *, conditions: int, members: int, names: tuple[str, ...]) -> Tensor:
    """The rewards ``(B, G, K)`` of a task's groups, what is not finite as NaN. Raises InputError for another shape or
    kind."""
    wanted = (conditions, members, len(names))
    rewards = scored.rewards if isinstance(scored, Scored) else None
    if not isinstance(rewards, Tensor) or rewards.shape != wanted or not rewards.is_floating_point():
        got = type(scored if rewards is None else rewards).__name__
        if isinstance(rewards, Tensor):
            got = f"{str(rewards.dtype).removeprefix('torch.')} {tuple(rewards.shape)}"
        raise InputError(
            f"task.score() must return Scored(rewards) with floating-point rewards of shape {wanted}: {conditions} "
            f"conditions, {members} members, and one column for each of reward_weights ({', '.join(names)}); got {got}"
        )
    rewards = rewards.detach()
    return rewards.masked_fill(~rewards.isfinite(), math.nan)


def require_measures(measures: Mapping[str, Tensor], conditions: int) -> Mapping[str, Tensor]:
    """Raise InputError unless a task has measured a number for each condition."""
    for name, values in measures.items():
        if not isinstance(values, Tensor) or values.shape != (conditions,):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(
                f"task.measures() must return a tensor ({conditions},) for {name!r}, one number for each condition, "
                f"got {got}"
            )
    return measures


@torch.no_grad()
def check_samples_are_apart(
    policy: Policy, task: Task[Any], batch: Batch, rollout: Rollout, *, iteration: int, first: int, members: range,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    """Make sure that what the policy predicts for a sample does not depend on the others it is computed with: else the
    probability of a sample is not its own, and changes with how the batch is divided. The ratio can't tell, as rollout
    and update see the same batch.

    Args:
        policy: the network.
        task: what it is trained on.
        batch: the conditions of ``rollout`` and perhaps more, on the device.
        rollout: with recorded steps.
        iteration: of the rollout.
        first: number of the batch's first condition.
        members: which members of the groups.
        dtype: what the network computes in.

    Raises:
        InputError: it does depend.
    """
    steps = sorted(rollout.steps)
    # where members differ, and with much noise: with little, a prediction is near its input whatever the network does
    step = next((k for k in steps if rollout.steps[k].x_t.shape[1] > 1), steps[0])
    x_t = rollout.steps[step].x_t
    level = rollout.transitions.scalars[step][0]

    def predict(x_t: Tensor, cond: Any, mask: Tensor | None) -> Tensor:
        return call(policy, x_t, at_level(level, len(x_t), x_t.device), cond, mask)[:1, :1].float()

    alone = look(task, batch.select(slice(0, 1)), iteration=iteration, first=first, members=members[:1])
    together, own = predict(x_t, rollout.cond, rollout.mask), predict(x_t[:1, :1], alone.cond, alone.mask)
    difference = (together - own).abs()
    if alone.mask is not None:
        difference = difference[alone.mask[:, None]]
    allowed = _MIXED.get(dtype, _MIXED[torch.bfloat16]) * float(own.abs().max())
    if float(difference.max()) > allowed:
        raise InputError(
            f"the policy's prediction for a sample depends on the others in its batch: computed alone it differs by "
            f"{float(difference.max()):.3g} (rounding may make {allowed:.3g}). Layers that mix the rows do this (batch "
            "norm that uses the batch's statistics, attention or means over the first axis); GRPO needs a probability "
            "for each sample alone"
        )
