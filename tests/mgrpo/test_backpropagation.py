"""Rewards back through the last steps of the sampler: the same samples, and gradients that differences confirm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mgrpo.body import default_body
from mgrpo.data import cut_windows, load_motion
from mgrpo.diffusion.transition import Transitions, make_transitions
from mgrpo.grpo.backpropagation import sample_with_gradient
from mgrpo.grpo.policy import PlainPolicy
from mgrpo.grpo.rollout import roll_out_groups
from mgrpo.grpo.task import Seen, TensorBatch
from mgrpo.models.motion import decode_motion
from mgrpo.models.perceptual import PerceptualConfig, PerceptualModel
from mgrpo.models.state import StateLayout
from mgrpo.rewards import REWARDS, RewardBatch, compute_rewards, differentiable_rewards

STEPS = 4


class Network(nn.Module):
    """A smooth function of state, level and condition, float64."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(0.3 * torch.randn(channels, channels, generator=generator, dtype=torch.float64))
        self.shift = nn.Parameter(0.3 * torch.randn(channels, generator=generator, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        return torch.tanh(x_t @ self.weight + self.shift * (1 + t[:, None, None] / 1000)) + cond[:, None]


class Task:
    """States with or without a layout; every member may see a condition of its own."""

    def __init__(self, layout: StateLayout | None, per_member: bool) -> None:
        self.layout, self.project_rotations, self.per_member = layout, layout is not None, per_member
        self.channels = layout.dim if layout is not None else 3

    def state_shape(self, batch: TensorBatch) -> tuple[int, int]:
        return 2, self.channels

    def seen(self, batch: TensorBatch, *, iteration: int, first: int, members: range) -> Seen:
        goal = batch["goal"]
        return Seen(goal.repeat_interleave(len(members), 0) if self.per_member else goal)


def transitions() -> Transitions:
    return make_transitions("ddim", eta=1.0, steps=STEPS)


def draw(policy: PlainPolicy, task: Task, last: int | None) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    batch = TensorBatch(goal=torch.randn(2, task.channels, generator=generator, dtype=torch.float64))
    options: dict[str, Any] = {
        "seed": 0, "iteration": 5, "first": 7, "members": range(1, 4), "share_initial": True,
        "device": torch.device("cpu"), "dtype": torch.float64,
    }  # fmt: skip
    if last is None:
        return roll_out_groups(policy, task, batch, transitions(), **options).x0.reshape(2, 3, 2, -1)
    return sample_with_gradient(policy, task, batch, transitions(), last=last, **options)


@pytest.mark.parametrize("layout", [None, StateLayout(False)], ids=["plain", "projected"])
@pytest.mark.parametrize("per_member", [False, True])
@pytest.mark.parametrize("last", [1, 2, STEPS])
def test_samples_and_gradients(layout: StateLayout | None, per_member: bool, last: int) -> None:
    """The samples are GRPO's. The gradient is that of a difference where all steps before the last ones keep the
    weights they had."""
    task = Task(layout, per_member)
    policy = PlainPolicy(Network(task.channels))
    x0 = draw(policy, task, last)
    torch.testing.assert_close(x0, draw(policy, task, None), atol=1e-12, rtol=1e-10)

    probe = torch.randn(x0.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    (x0 * probe).sum().backward()
    shift = policy.network.shift
    direction = torch.randn(shift.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    predicted = float((shift.grad * direction).sum())

    original, seen = policy.network.forward, []

    def moved_late(size: float) -> float:
        """The sum with weights moved in the last steps only."""
        seen.clear()

        def forward(x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
            level = int(t[0])
            if level not in seen:
                seen.append(level)
            change = size if len(seen) > STEPS - last else 0.0
            kept = shift.data
            shift.data = kept + change * direction
            result = original(x_t, t, cond)
            shift.data = kept
            return result

        policy.network.forward = forward
        with torch.no_grad():
            value = float((draw(policy, task, None) * probe).sum())
        policy.network.forward = original
        return value

    size = 1e-7
    difference = (moved_late(size) - moved_late(-size)) / (2 * size)
    assert predicted == pytest.approx(difference, rel=2e-5)


def motion_batch(grad: bool = True) -> tuple[RewardBatch, Any, Tensor]:
    skeleton = default_body().body_only()
    windows = cut_windows(load_motion("demo", skeleton), skeleton, length=6).select([0, 9])
    layout = StateLayout(False)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.cat(
        (torch.zeros(2, 1, 6, 16), windows.body_rotmats.flatten(-3)[:, None], torch.zeros(2, 1, 6, 21)), dim=-1
    ).expand(-1, 3, -1, -1)
    x0 = (x0 + 0.1 * torch.randn(2, 3, 6, layout.dim, generator=generator)).requires_grad_(grad)
    torch.manual_seed(0)
    perceptual = PerceptualModel(PerceptualConfig(d_latent=16, blocks=1, heads=2)).requires_grad_(False)
    motion = decode_motion(layout, x0, windows.T_world_cpf[:, None], skeleton)
    return RewardBatch(prediction=motion, target=windows, perceptual=perceptual), skeleton, x0


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_are_differentiable_in_the_motion(name: str) -> None:
    """The fused rewards against the plain functions, values and gradients; a gradient reaches every member."""
    batch, body, x0 = motion_batch()
    rewards = differentiable_rewards(batch, body, (name,))
    other_batch, _, other_x0 = motion_batch()
    others = compute_rewards(other_batch, (name,))
    torch.testing.assert_close(rewards, others, atol=1e-5, rtol=1e-4)
    probe = torch.linspace(0.5, 1.5, 6).view(2, 3, 1)
    (rewards * probe).sum().backward()
    (others * probe).sum().backward()
    size = other_x0.grad.abs().max()
    torch.testing.assert_close(x0.grad / size, other_x0.grad / size, atol=2e-3, rtol=2e-3)
    if name != "ground_penetration":  # where nothing is below the floor there is nothing to gain
        assert bool((x0.grad.flatten(2).norm(dim=-1) > 0).all())


def test_rewards_come_in_the_order_asked_for() -> None:
    batch, body, _ = motion_batch(grad=False)
    names = ("visual", "velocity", "position", "jitter")
    torch.testing.assert_close(
        differentiable_rewards(batch, body, names), compute_rewards(batch, names), atol=1e-5, rtol=1e-4
    )
    with pytest.raises(ValueError, match="unknown reward speed"):
        differentiable_rewards(batch, body, ("speed",))
