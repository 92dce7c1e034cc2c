"""Numbers that tell whether groups teach anything (facts: GRPO, section 4.3), under TRL's names where it has one.

All stay tensors of no axes on their device, so that nothing waits for it; :func:`read_metrics` fetches them at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mgrpo.kernels import GroupAdvantages, MotionRewards

from .update import UpdateStatistics


def read_metrics(metrics: Mapping[str, Tensor | float]) -> dict[str, float]:
    """The metrics as numbers: the device is waited for once."""
    tensors = {name: value for name, value in metrics.items() if isinstance(value, Tensor)}
    numbers: dict[str, float] = {}
    if tensors:
        stacked = torch.stack([value.detach().double().reshape(()) for value in tensors.values()])
        numbers = dict(zip(tensors, stacked.tolist(), strict=True))
    return {name: numbers[name] if name in numbers else float(metrics[name]) for name in metrics}


def spread(values: Tensor, dim: int) -> Tensor:
    """Unbiased standard deviation along an axis over the entries that are not NaN; NaN where there are fewer than
    two."""
    count = (~values.isnan()).sum(dim)
    squares = (values - values.nanmean(dim, keepdim=True)).square().nansum(dim)
    return torch.where(count > 1, squares / (count - 1), torch.nan).sqrt()


def reward_metrics(rewards: Tensor, weights: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Means and spreads of rewards ``(B, G, K)``: in total (weighted sum) and each, inside and between groups. NaN
    rewards don't count; a batch without any score gives NaN.

    ``signal`` is the variance inside groups over all variance: what GRPO can learn from.
    """
    total = (rewards * weights).sum(-1)
    missing = total.isnan()
    none = missing.all()
    metrics = {
        "reward": total.nanmean(),
        "reward_std": spread(total, 1).nanmean(),
        "reward_min": torch.where(none, torch.nan, total.masked_fill(missing, torch.inf).min()),
        "reward_max": torch.where(none, torch.nan, total.masked_fill(missing, -torch.inf).max()),
    }
    for index, name in enumerate(names):
        reward = rewards[..., index]
        within = spread(reward, 1).nanmean()
        between = spread(reward.nanmean(1), 0) if len(reward) > 1 else torch.zeros_like(within)
        metrics[f"rewards/{name}/mean"] = reward.nanmean()
        metrics[f"rewards/{name}/std"] = within
        metrics[f"rewards/{name}/between_std"] = between
        metrics[f"rewards/{name}/signal"] = within**2 / (within**2 + between**2).clamp_min(1e-20)
    return metrics


def advantage_metrics(
    result: GroupAdvantages | MotionRewards, names: tuple[str, ...], clamp: float | None
) -> dict[str, Tensor]:
    """Dead groups per reward, size of the advantages, how often the clamp acted, and how the rewards' advantages
    correlate."""
    advantages, per_reward, dead = result.advantages, result.per_reward, result.dead
    size = advantages.abs()
    metrics = {
        "frac_reward_zero_std": dead.float().mean(),
        "frac_dead_all": 1 - result.alive.float().mean(),
        "advantage/abs_mean": size.mean(),
        "advantage/abs_max": size.max(),
        "advantage/std": advantages.std(),
        "advantage/clamp_fraction": (size >= clamp).float().mean() if clamp else torch.zeros_like(size.mean()),
    }
    for index, name in enumerate(names):
        metrics[f"frac_dead/{name}"] = dead[:, index].float().mean()
    if len(names) > 1:
        flat = torch.nan_to_num(per_reward.flatten(0, 1))
        centred = flat - flat.mean(0)
        covariance = centred.T @ centred  # torch.corrcoef would wait for the device
        size = covariance.diagonal().sqrt()
        correlation = torch.nan_to_num(covariance / (size[:, None] * size)).clamp(-1, 1)
        for i, a in enumerate(names):
            for j in range(i + 1, len(names)):
                metrics[f"advantage_corr/{a}~{names[j]}"] = correlation[i, j]
    return metrics


def update_metrics(statistics: Sequence[UpdateStatistics]) -> dict[str, Tensor]:
    """Ratio, clipping and divergence over all passes of an iteration; the spread over the sampler's steps in three
    thirds."""

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in statistics])

    low, high = joined("clip_low"), joined("clip_high")
    metrics = {
        "loss": joined("loss").sum(),
        "ratio/mean": joined("ratio_mean").mean(),
        "ratio/min": joined("ratio_min").min(),
        "ratio/max": joined("ratio_max").max(),
        "ratio/first_log_max": statistics[0].log_ratio_max.max(),
        "clip_ratio/low_mean": low.mean(),
        "clip_ratio/high_mean": high.mean(),
        "clip_ratio/region_mean": (low + high).mean(),
        "approx_kl": joined("approx_kl").mean(),
        "kl": joined("kl_reference").mean(),
    }
    for part, name in zip(torch.chunk(joined("log_ratio_max"), 3), ("early", "middle", "late")):
        metrics[f"ratio/log_max_{name}"] = part.max()
    return metrics


@torch.no_grad()
def parameter_distance(before: list[Tensor], after: list[Tensor]) -> Tensor:
    """Size of an update relative to the size of the weights, dimensionless."""
    moved = torch.stack(torch._foreach_norm(torch._foreach_sub(after, before)))
    size = torch.stack(torch._foreach_norm(before))
    return (moved.double().square().sum() / size.double().square().sum().clamp_min(1e-30)).sqrt()
