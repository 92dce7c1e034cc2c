"""The first rollouts of a training as every process drew them, kept in files and put together again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgrpo.diffusion.sampler import step_noise
from mgrpo.grpo.rollout import Rollout
from mgrpo.kernels import sde_log_prob
from mgrpo.train.post_training import PostTraining, Sampled, Trial

PARTS = ("x0", "states", "noise", "log_probs")
"""What belongs to a sample."""


def keep_rollouts(path: Path) -> None:
    """From now on, write what the first iteration of a training draws to ``path``."""
    original = PostTraining.judge

    def judge(self: PostTraining, sampled: list[Sampled]) -> Trial:
        trial = original(self, sampled)
        if not path.exists():
            parts = [_samples(rollout, len(self.sharing.members)) for share in sampled for rollout in share.rollouts]
            torch.save(
                {
                    "by": self.sharing.by,
                    **{name: torch.cat([part[name] for part in parts]) for name in PARTS},
                    "rewards": trial.rewards,
                    "advantages": trial.result.advantages,
                },
                path,
            )
        return trial

    PostTraining.judge = judge  # type: ignore[method-assign]


def _samples(rollout: Rollout, group: int) -> dict[str, Tensor]:
    """Of every sample ``(b, g, …)``: the final state, and at each trained step ``(b, g, S, …)`` the state before it,
    its noise, and the log-probability of what it drew."""
    members, shape = rollout.keys.members, rollout.x0.shape[-2:]
    states, noises, log_probs = [], [], []
    for k, step in sorted(rollout.steps.items()):
        _, keep, scale, deviation = rollout.transitions.scalars[k]
        x_t, x0_pred = (one.detach().expand(-1, members, -1, -1).flatten(0, 1) for one in (step.x_t, step.x0_pred))
        noise = step_noise(rollout.keys, k, shape).flatten(0, 1)
        x_prev = keep * x_t + scale * x0_pred + deviation * noise
        states.append(x_t)
        noises.append(noise)
        log_probs.append(sde_log_prob(x_prev, x_t, x0_pred, keep, scale, deviation))
    found = {
        "x0": rollout.x0.flatten(0, 1),
        **{
            name: torch.stack(parts, dim=1)
            for name, parts in (("states", states), ("noise", noises), ("log_probs", log_probs))
        },
    }
    return {name: value.unflatten(0, (-1, group)) for name, value in found.items()}


def read_rollouts(paths: list[Path]) -> dict[str, Any]:
    """What the processes kept, in their order, as one: samples ``(B, G, …)``, and rewards and advantages, which every
    process has of all."""
    kept = [torch.load(path, weights_only=True) for path in paths]
    for other in kept[1:]:
        assert torch.equal(other["rewards"], kept[0]["rewards"])
        assert torch.equal(other["advantages"], kept[0]["advantages"])
    axis = 0 if kept[0]["by"] == "conditions" else 1
    return kept[0] | {name: torch.cat([one[name] for one in kept], dim=axis) for name in PARTS}
