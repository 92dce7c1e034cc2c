"""Numbers that tell whether groups teach anything (facts: GRPO, section 4.3), under TRL's names where it has one."""

from __future__ import annotations

import torch
from torch import Tensor

from mgrpo.kernels import GroupAdvantages, MotionRewards

from .update import UpdateStatistics


def _spread(values: Tensor, dim: int) -> Tensor:
    """Unbiased standard deviation along an axis over the entries that are not NaN; NaN where there are fewer than
    two."""
    count = (~values.isnan()).sum(dim)
    squares = (values - values.nanmean(dim, keepdim=True)).square().nansum(dim)
    return torch.where(count > 1, squares / (count - 1), torch.nan).sqrt()


def reward_metrics(rewards: Tensor, weights: Tensor, names: tuple[str, ...]) -> dict[str, float]:
    """Means and spreads of rewards ``(B, G, K)``: in total (weighted sum) and each, inside and between groups. NaN
    rewards don't count.

    ``signal`` is the variance inside groups over all variance: what GRPO can learn from.
    """
    total = (rewards * weights).sum(-1)
    scored = total[~total.isnan()]
    metrics = {
        "reward": scored.mean(),
        "reward_std": _spread(total, 1).nanmean(),
        "reward_min": scored.min(),
        "reward_max": scored.max(),
    }
    for index, name in enumerate(names):
        reward = rewards[..., index]
        within = _spread(reward, 1).nanmean()
        between = _spread(reward.nanmean(1), 0) if len(reward) > 1 else torch.zeros(())
        metrics[f"rewards/{name}/mean"] = reward.nanmean()
        metrics[f"rewards/{name}/std"] = within
        metrics[f"rewards/{name}/between_std"] = between
        metrics[f"rewards/{name}/signal"] = within**2 / (within**2 + between**2).clamp_min(1e-20)
    return {name: float(value) for name, value in metrics.items()}


def advantage_metrics(
    result: GroupAdvantages | MotionRewards, names: tuple[str, ...], clamp: float | None
) -> dict[str, float]:
    """Dead groups per reward, size of the advantages, how often the clamp acted, and how the rewards' advantages
    correlate."""
    advantages, per_reward, dead = result.advantages, result.per_reward, result.dead
    metrics = {
        "frac_reward_zero_std": dead.float().mean(),
        "frac_dead_all": 1 - result.alive.float().mean(),
        "advantage/abs_mean": advantages.abs().mean(),
        "advantage/abs_max": advantages.abs().max(),
        "advantage/std": advantages.std(),
        "advantage/clamp_fraction": (advantages.abs() >= clamp).float().mean() if clamp else torch.zeros(()),
    }
    for index, name in enumerate(names):
        metrics[f"frac_dead/{name}"] = dead[:, index].float().mean()
    if len(names) > 1:
        flat = torch.nan_to_num(per_reward.flatten(0, 1))
        correlation = torch.nan_to_num(torch.corrcoef(flat.T))
        for i, a in enumerate(names):
            for j in range(i + 1, len(names)):
                metrics[f"advantage_corr/{a}~{names[j]}"] = correlation[i, j]
    return {name: float(value) for name, value in metrics.items()}


def update_metrics(statistics: list[UpdateStatistics]) -> dict[str, float]:
    """Ratio, clipping and divergence over all passes of an iteration; the spread over the sampler's steps in three
    thirds."""
    joined = {
        name: torch.cat([getattr(part, name) for part in statistics])
        for name in (
            "loss",
            "ratio_mean",
            "ratio_min",
            "ratio_max",
            "clip_low",
            "clip_high",
            "approx_kl",
            "kl_reference",
            "log_ratio_max",
        )
    }
    metrics = {
        "loss": joined["loss"].sum(),
        "ratio/mean": joined["ratio_mean"].mean(),
        "ratio/min": joined["ratio_min"].min(),
        "ratio/max": joined["ratio_max"].max(),
        "ratio/first_log_max": statistics[0].log_ratio_max.max(),
        "clip_ratio/low_mean": joined["clip_low"].mean(),
        "clip_ratio/high_mean": joined["clip_high"].mean(),
        "clip_ratio/region_mean": (joined["clip_low"] + joined["clip_high"]).mean(),
        "approx_kl": joined["approx_kl"].mean(),
        "kl": joined["kl_reference"].mean(),
    }
    for part, name in zip(torch.chunk(joined["log_ratio_max"], 3), ("early", "middle", "late")):
        metrics[f"ratio/log_max_{name}"] = part.max()
    return {name: float(value) for name, value in metrics.items()}


def parameter_distance(before: list[Tensor], after: list[Tensor]) -> float:
    """Size of an update relative to the size of the weights, dimensionless."""
    moved = sum(float((b.detach() - a).square().sum()) for a, b in zip(before, after))
    size = sum(float(a.square().sum()) for a in before)
    return (moved / max(size, 1e-30)) ** 0.5
