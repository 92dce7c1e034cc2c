"""Post-training a prior by the gradient of its samples' rewards."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mgrpo.data import MotionWindows
from mgrpo.grpo.backpropagation import sample_with_gradient
from mgrpo.grpo.health import spread
from mgrpo.grpo.task import Scored

from .baseline import Baseline, Found, train_baseline
from .baseline_config import ReftConfig
from .phases import Phases


class RewardBackpropagation(Baseline):
    """All rewards are differentiable in the motion: those of the joints through projection and kinematics, the
    perceptual one through its network."""

    label = "reft"
    config: ReftConfig

    def differentiate(self, iteration: int, windows: MotionWindows, phases: Phases) -> Found:
        """See :class:`Baseline`."""
        parts, scored = list(self.parts(windows)), []
        total = torch.zeros((), device=self.processes.device)
        for part in parts:
            with phases.phase("rollout"):
                x0 = sample_with_gradient(
                    self.prepared, self.task, part.windows, self.transitions, last=self.config.last_steps,
                    iteration=iteration, first=part.first, **self.sampling(),
                )  # fmt: skip
            with phases.phase("reward"):
                one = self.task.score_with_gradient(x0, part.windows)
                scored.append(Scored(one.rewards.detach(), one.outcome))
                loss = -self.objective(one.rewards).sum() / (self.config.conditions * self.config.group_size)
            with phases.phase("update"):
                self.precision.backward(loss)
                total += loss.detach()
        found = self.found(parts, scored)
        return found._replace(metrics=found.metrics | self.over_processes({"loss": total}))

    def objective(self, rewards: Tensor) -> Tensor:
        """What is raised, ``(B, G)``: the weighted sum of the rewards ``(B, G, K)``, each over its spread in the group,
        which is taken for a constant; 0 for members that can't be scored."""
        known = torch.isfinite(rewards).all(-1, keepdim=True)
        summands = torch.where(known, rewards, 0.0) * self.reward_weights
        if self.config.normalize:
            sizes = spread(rewards.detach().masked_fill(~known, torch.nan), 1).nan_to_num()
            summands = summands / sizes.clamp_min(self.config.min_spread)[:, None]
        return summands.sum(-1)


def train_reft(config: ReftConfig, *, command: list[str] | None = None) -> Path:
    """Post-train until ``config.iterations`` and return the last checkpoint. Raises as
    :func:`mgrpo.train.baseline.train_baseline`."""
    return train_baseline(RewardBackpropagation, config, command)


__all__ = ["ReftConfig", "RewardBackpropagation", "train_reft"]
