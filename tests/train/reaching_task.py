"""A policy and a task that know nothing of motion, for tests of the loop that trains any of them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.diffusion.transition import make_transitions
from mgrpo.execution.distributed import open_processes
from mgrpo.execution.precision import NetworkPrecision
from mgrpo.execution.seeding import iteration_generator
from mgrpo.grpo.policy import PlainPolicy
from mgrpo.grpo.task import Scored, Seen, TensorBatch
from mgrpo.train.grpo_config import AdvantageConfig, PostTrainingConfig
from mgrpo.train.post_training import post_train

FRAMES, CHANNELS = 4, 3


class Network(nn.Module):
    """A perceptron on state, level and condition. With little noise it returns the state, as every denoiser should:
    the last step has no noise, so what it does with the state is not an action that could be learned."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(CHANNELS + 3, 16), nn.GELU(), nn.Linear(16, CHANNELS))

    def forward(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        told = cond["goal"][:, None].expand(-1, x_t.shape[1], -1)
        level = (t / 1000)[:, None, None].expand(-1, x_t.shape[1], 1)
        return x_t * (1 - level) + level * self.layers(torch.cat((x_t, level, told), dim=-1))


class Reach:
    """A state should end where its condition says; states have no layout, conditions two numbers."""

    layout = None
    project_rotations = False
    per_member = False
    reward_weights: ClassVar = {"near": 1.0, "small": 0.1}

    def transitions(self, noisy_steps):
        return make_transitions("ddim", eta=1.0, steps=5, schedule=CosineSchedule.make(), noisy_steps=noisy_steps)

    def draw(self, iteration: int, first: int, size: int) -> TensorBatch:
        goals = torch.randn(64, 2, generator=iteration_generator(0, iteration, "goals"))
        return TensorBatch(goal=goals[first : first + size])

    def state_shape(self, batch):
        return FRAMES, CHANNELS

    def seen(self, batch, *, iteration, first, members):
        return Seen({"goal": batch["goal"]})

    def score(self, x0: Tensor, batch: TensorBatch) -> Scored:
        near = -(x0[..., :2].mean(-2) - batch["goal"][:, None]).norm(dim=-1)
        return Scored(torch.stack((near, -x0[..., 2].abs().mean(-1)), dim=-1), x0)

    def measures(self, outcome: Tensor, batch: TensorBatch) -> dict[str, Tensor]:
        return {"spread": outcome.std(1).mean((-1, -2))}

    def gold(self, policy) -> dict[str, float]:
        return {"error": float(policy.network.layers[0].weight.detach().norm())}


class SameGoals(Reach):
    """Every rollout has the same goals, so that its reward can be compared with the one before."""

    def draw(self, iteration: int, first: int, size: int) -> TensorBatch:
        return super().draw(0, first, size)


CONFIG = PostTrainingConfig(
    iterations=4, conditions=6, group_size=4, learning_rate=1e-2, validate_every=2, gold="error", checkpoint_every=2,
    device="cpu", advantage=AdvantageConfig(clamp=3.0),
)  # fmt: skip


def train(config: PostTrainingConfig, task: Any = None, policy: nn.Module | None = None) -> nn.Module:
    policy = PlainPolicy(Network()) if policy is None else policy
    with open_processes("cpu") as processes:
        post_train(
            policy, Reach() if task is None else task, config, processes=processes,
            precision=NetworkPrecision(config.execution.precision, processes.device),
        )  # fmt: skip
    return policy
