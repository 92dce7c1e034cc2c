"""Advantages of groups and the clipped loss: small arrays, whose time is that of calls more than of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..bodies import normal
from ..workload import PLAIN, Implementation, Inputs, Results, Workload, exact_call, ours, timed_call

MEMBERS = 16
REWARDS = 5
STEPS = 29
"""Transitions of a sampled sequence that an update looks at."""
CLIP_RANGE = 1e-4
OPERATIONS_ADVANTAGES = 20
"""Per reward: the mean and its correction, two spreads (group and batch), the quotient, the weighted sum."""
OPERATIONS_LOSS = 60
"""Per element: two exponentials, one of them in float64, the clip, the sums."""
OPERATIONS_GRADIENT = 4
TESTS = ("tests/kernels/test_policy.py", "tests/kernels/test_ops.py")


def advantages(inputs: Inputs, backend: str) -> Results:
    """Ours, in the method's scheme."""
    from mgrpo.kernels import group_advantages

    result = group_advantages(inputs["rewards"], backend=backend)
    return {"advantages": result.advantages, "per_reward": result.per_reward, "std": result.std}


def plain_advantages(inputs: Inputs) -> Results:
    """As usually written: float32 throughout, no member left out, no group that says nothing."""
    rewards = inputs["rewards"]
    std = rewards.std(dim=1, keepdim=True)
    per_reward = (rewards - rewards.mean(dim=1, keepdim=True)) / (std + 1e-8)
    return {"advantages": per_reward.sum(dim=-1), "per_reward": per_reward, "std": std[:, 0]}


def loss(inputs: Inputs, backend: str) -> Results:
    """Ours; where a gradient is asked for, the loss alone, as nothing else has one."""
    from mgrpo.kernels import grpo_loss

    result = grpo_loss(inputs["log_ratio"], inputs["advantages"], clip_range=CLIP_RANGE, backend=backend)
    if result.loss.requires_grad:
        return {"loss": result.loss}
    return {"loss": result.loss, "ratio": result.ratio, "approx_kl": result.approx_kl}


def plain_loss(inputs: Inputs) -> Results:
    """As policy-gradient trainers write it: the ratio is rounded to float32 before it is compared with the clip, so an
    element near a narrow clip range can fall on the wrong side."""
    import torch

    log_ratio, advantages = inputs["log_ratio"], inputs["advantages"]
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - CLIP_RANGE, 1.0 + CLIP_RANGE)
    value = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
    with torch.no_grad():
        approx_kl = (ratio - 1.0 - log_ratio).mean()
        clip_fraction = ((ratio - 1.0).abs() > CLIP_RANGE).float().mean()
    if value.requires_grad:
        return {"loss": value}
    # Its estimate of the divergence cancels to nothing in float32: it is another number than ours.
    return {"loss": value, "ratio": ratio, "plain_kl": approx_kl, "clip_fraction": clip_fraction}


def workloads(device: str, backends: Sequence[str] | None) -> list[Workload]:
    """All sizes: an iteration's (64 conditions) and a large one."""
    elements = ((64, STEPS), (1024, 64)) if device == "cpu" else ((64, STEPS), (16_384, 64))
    return [
        *(advantages_workload(device, backends, conditions) for conditions in (64, 4096)),
        *(
            loss_workload(device, backends, conditions, steps, gradient)
            for conditions, steps in elements
            for gradient in (False, True)
        ),
    ]


def advantages_workload(device: str, backends: Sequence[str] | None, conditions: int) -> Workload:
    members = conditions * MEMBERS

    def make_inputs(seed: int) -> Inputs:
        # Rewards lie between 0 and 1, the members of a group near each other.
        spread = 0.5 * normal((conditions, MEMBERS, REWARDS), seed, device)
        return {"rewards": (normal((conditions, 1, REWARDS), 50 + seed, device) + spread).sigmoid()}

    return Workload(
        op="group_advantages",
        name=f"advantages_{members}",
        title=f"Advantages of groups of {MEMBERS}, {REWARDS} rewards",
        items=members,
        item="member",
        size=f"{conditions:,} groups of {MEMBERS} members",
        make_inputs=make_inputs,
        implementations=lambda: [
            *ours(device, "group_advantages", advantages, backends=backends),
            Implementation(PLAIN, "reference", partial(timed_call, plain_advantages)),
        ],
        exact=exact_call(advantages),
        # Rewards in; advantages, each reward's part, spreads and two masks out.
        bytes_moved=4 * members * (2 * REWARDS + 1) + conditions * (5 * REWARDS + 1),
        operations=members * REWARDS * OPERATIONS_ADVANTAGES,
        device=device,
        tests=TESTS,
    )


def loss_workload(
    device: str, backends: Sequence[str] | None, conditions: int, steps: int, gradient: bool = False
) -> Workload:
    leaves = ("log_ratio",) if gradient else ()
    elements = conditions * MEMBERS * steps

    def make_inputs(seed: int) -> Inputs:
        import torch

        inputs: dict[str, Any] = {
            # After a step or two of an update: on both sides of the clip.
            "log_ratio": 3.0 * CLIP_RANGE * normal((conditions, MEMBERS, steps), seed, device),
            "advantages": normal((conditions, MEMBERS, 1), 50 + seed, device).expand(-1, -1, steps).contiguous(),
        }
        if gradient:
            inputs["grad_loss"] = torch.ones((), device=device)
        return inputs

    return Workload(
        op="grpo_loss",
        name=f"grpo_loss_{elements}{'_backward' if gradient else ''}",
        title="Clipped loss" + (", forward + backward" if gradient else " and its statistics"),
        items=elements,
        item="element",
        size=f"{conditions:,} x {MEMBERS} samples of {steps} steps",
        make_inputs=make_inputs,
        implementations=lambda: [
            *ours(device, "grpo_loss", loss, leaves=leaves, backends=backends),
            Implementation(PLAIN, "reference", lambda inputs: timed_call(plain_loss, inputs, leaves)),
        ],
        exact=exact_call(loss, leaves),
        # Log-ratios and advantages in, ratios out, and the gradient.
        bytes_moved=4 * elements * (4 if gradient else 3),
        operations=elements * (OPERATIONS_LOSS + OPERATIONS_GRADIENT * gradient),
        gradient=gradient,
        device=device,
        tests=TESTS,
    )
