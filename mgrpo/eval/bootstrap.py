"""Bootstrap intervals of means over windows that come in clusters: the windows of one clip resemble each other.

Whole clips are drawn with replacement, each with all its windows, so that what windows of a clip have in common widens
the interval as it should. The interval is bias-corrected and accelerated (BCa: Efron, "Better bootstrap confidence
intervals", 1987): percentiles of the resampled means, moved by how far the resamples' median is off the mean (z0) and
by how skewed the mean is in single clips (acceleration, from leaving out one clip at a time).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mgrpo.errors import InputError

RESAMPLES = 10_000
"""Draws of whole sets of clips; the ends of a 95 % interval then move by about 2 % of its width between seeds."""
LEVEL = 0.95
"""Share of intervals that shall hold the truth."""
FEW_CLUSTERS = 10
"""With fewer clips than this, bootstrap intervals hold the truth noticeably less often than they say."""

_DRAWS_AT_ONCE = 4_000_000


class Interval(NamedTuple):
    """Bounds of a mean, in its unit; NaN where there are fewer than two clusters with a value."""

    low: float
    high: float


def bootstrap_intervals(
    values: Tensor,
    clusters: Sequence[Hashable],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Interval of the mean of each column of ``values (N, M)``: N windows, M measures; NaN marks what could not be
    scored.

    Args:
        values: per window, already averaged over seeds and samples. For a paired comparison: the differences.
        clusters: the clip of each of the N windows, anything that can be compared; windows of one are drawn together.
        level: share of intervals that shall hold the mean of the population of clips, between 0 and 1.
        resamples: draws, at least 100.
        seed: of the draws; the same seed gives the same interval, whatever else was computed.

    The mean is over windows, so longer clips weigh more, as in the means of the tables. Sampling noise enters through
    the windows: it is keyed by window, so it is independent between clips. All columns see the same draws.

    Raises:
        InputError: shapes that don't fit, or numbers out of range.
    """
    if values.ndim != 2 or len(clusters) != values.shape[0]:
        raise InputError(
            f"bootstrap_intervals() needs values (N, M) and N clusters, got shape {tuple(values.shape)} and "
            f"{len(clusters)} clusters."
        )
    _require_usable("bootstrap_intervals", level, resamples)
    sums, counts = _by_cluster(values, clusters)
    if len(sums) < 2:
        return [Interval(math.nan, math.nan)] * values.shape[1]
    drawn = _resampled_means(sums, counts, resamples, seed)
    return [_bca(sums[:, m], counts[:, m], drawn[:, m], level) for m in range(values.shape[1])]


def two_way_intervals(
    values: Tensor,
    clusters: Sequence[Hashable],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Interval of the mean of each measure of ``values (K, N, M)`` over K trainings and N windows, both drawn again.

    Each draw takes whole clusters of windows and whole trainings with replacement, independently of each other (Owen,
    "The pigeonhole bootstrap", 2007), and the interval is between percentiles of the means. It is wide rather than
    narrow in large numbers, but a few trainings can't show how much trainings differ. With one training the windows
    alone are drawn, with one cluster the trainings alone; with one of each the interval is NaN. Arguments, and what is
    raised, as in :func:`bootstrap_intervals`.
    """
    if values.ndim != 3 or len(clusters) != values.shape[1]:
        raise InputError(
            f"two_way_intervals() needs values (K, N, M) and N clusters, got shape {tuple(values.shape)} and "
            f"{len(clusters)} clusters."
        )
    _require_usable("two_way_intervals", level, resamples)
    sums, counts = _by_cluster(values, clusters)
    trainings, drawn_clusters, measures = sums.shape
    if trainings * drawn_clusters < 2:
        return [Interval(math.nan, math.nan)] * measures
    generator = torch.Generator().manual_seed(seed)
    block = max(1, _DRAWS_AT_ONCE // (drawn_clusters * trainings))
    means = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        weights = [
            torch.zeros(size, count, dtype=torch.float64).scatter_add_(
                1,
                torch.randint(count, (size, count), generator=generator),
                torch.ones(size, count, dtype=torch.float64),
            )
            for count in (trainings, drawn_clusters)
        ]
        drawn = [torch.einsum("rk,rc,kcm->rm", *weights, table) for table in (sums, counts)]
        means.append(drawn[0] / drawn[1])
    found = []
    for column in torch.cat(means).unbind(1):
        ordered = column[~column.isnan()].sort().values
        ends = [float(_quantile(ordered, share)) if len(ordered) else math.nan for share in _tails(level)]
        found.append(Interval(*ends))
    return found


def _require_usable(function: str, level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise InputError(f"{function}(): level must lie between 0 and 1, got {level}.")
    if resamples < 100:
        raise InputError(f"{function}(): resamples must be at least 100, got {resamples}.")


def _by_cluster(values: Tensor, clusters: Sequence[Hashable]) -> tuple[Tensor, Tensor]:
    """Sums of the scored values ``(*b, N, M)`` of each cluster of windows, and how many they are: ``(*b, C, M)``
    float64 on the CPU, clusters in the order of their first windows."""
    values = values.double().cpu()
    numbers: dict[Hashable, int] = {}
    group = torch.tensor([numbers.setdefault(name, len(numbers)) for name in clusters], dtype=torch.long)
    empty = torch.zeros(*values.shape[:-2], len(numbers), values.shape[-1], dtype=torch.float64)
    sums = empty.index_add(-2, group, values.nan_to_num(nan=0.0))
    return sums, empty.index_add(-2, group, (~values.isnan()).double())


def _tails(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2


def _resampled_means(sums: Tensor, counts: Tensor, resamples: int, seed: int) -> Tensor:
    """Means ``(resamples, M)`` of sets of clusters drawn with replacement."""
    clusters = len(sums)
    generator = torch.Generator().manual_seed(seed)
    block = max(1, _DRAWS_AT_ONCE // clusters)
    means = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        chosen = torch.randint(clusters, (size, clusters), generator=generator)
        weight = torch.zeros(size, clusters, dtype=torch.float64)
        weight.scatter_add_(1, chosen, torch.ones(size, clusters, dtype=torch.float64))
        means.append((weight @ sums) / (weight @ counts))
    return torch.cat(means)


def _bca(sums: Tensor, counts: Tensor, drawn: Tensor, level: float) -> Interval:
    """The interval of one measure from its clusters' sums and counts and its resampled means."""
    sums, counts = sums[counts > 0], counts[counts > 0]
    if len(sums) < 2:
        return Interval(math.nan, math.nan)
    drawn = drawn[~drawn.isnan()].sort().values
    total, number = sums.sum(), counts.sum()
    mean = total / number
    # Rounding makes resamples of equal values differ in the last bits; they are ties, not a spread.
    tolerance = 1e-12 * max(float(mean.abs()), float((sums / counts).abs().max()))
    if float(drawn[-1] - drawn[0]) <= tolerance:
        return Interval(float(mean), float(mean))
    below = (drawn < mean - tolerance).double().mean()
    ties = ((drawn - mean).abs() <= tolerance).double().mean()
    share = (below + ties / 2).clamp(0.5 / len(drawn), 1 - 0.5 / len(drawn))
    shift = torch.special.ndtri(share)
    without = (total - sums) / (number - counts)
    deviation = without.mean() - without
    spread = (deviation**2).sum()
    acceleration = (deviation**3).sum() / (6 * spread**1.5) if float(spread) > 0 else torch.zeros(())
    ends = []
    for tail in _tails(level):
        moved = shift + torch.special.ndtri(torch.tensor(tail, dtype=torch.float64))
        scale = 1 - acceleration * moved
        # Beyond this the transformation turns over: the outermost resample is all that can be said.
        quantile = float(torch.special.ndtr(shift + moved / scale)) if float(scale) > 0 else float(tail > 0.5)
        ends.append(float(_quantile(drawn, quantile)))
    return Interval(ends[0], ends[1])


def _quantile(ordered: Tensor, share: float) -> Tensor:
    """The ``share`` quantile of ordered values, linear between neighbours."""
    place = min(max(share, 0.0), 1.0) * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
