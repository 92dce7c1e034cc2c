"""Means with honest standard errors over windows and seeds, and paired differences between two models."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from mgrpo.errors import InputError


@dataclass(frozen=True)
class Statistic:
    """A mean over windows and seeds and how well it is known."""

    mean: float
    """Mean over windows, seeds and samples that could be scored; NaN if none could."""
    standard_error: float
    """Standard error of the mean, windows and seeds both taken as drawn at random; NaN where it can't be known (one
    window, one seed)."""
    windows: int
    """Windows that could be scored."""
    seeds: int
    """Seeds."""


@dataclass(frozen=True)
class PairedDifference:
    """How much a second model differs from a first on the same windows with the same noise."""

    mean: float
    """Mean of second minus first."""
    standard_error: float
    """Standard error of that mean; much smaller than that of either mean, since what a window is like cancels."""
    share_lower: float
    """Share of windows whose mean over seeds and samples is lower for the second model."""
    windows: int
    """Windows scored for both."""
    interval_low: float = math.nan
    """Lower end of the 95 % bootstrap interval of the mean (:func:`bootstrap_intervals`); NaN where it wasn't or can't
    be computed."""
    interval_high: float = math.nan
    """Its upper end."""
    clusters: int = 0
    """Clips that the interval was resampled from."""


def over_windows_and_seeds(values: Tensor) -> Statistic:
    """Statistic of ``values (N, R)`` or ``(N, R, S)``: N windows, R seeds, S samples; NaN marks what could not be
    scored.

    Samples are averaged first. The squared standard error is that of a two-way layout with random windows and random
    seeds, ``(MS_windows + max(MS_seeds - MS_rest, 0)) / (N R)``: it neither treats the seeds of one window as
    independent windows nor ignores a shift that a seed makes in all windows. Where values are missing, each window's
    mean over its seeds is used. Windows that overlap, or come from one clip, resemble each other, which this formula
    doesn't know (:mod:`mgrpo.eval.bootstrap` does).
    """
    if values.ndim not in (2, 3):
        raise InputError(f"over_windows_and_seeds() needs values (N, R) or (N, R, S), got shape {tuple(values.shape)}.")
    table = values.double().cpu()
    if table.ndim == 3:
        table = table.nanmean(-1)
    seeds = table.shape[1]
    if bool(table.isnan().any()):
        table = table.nanmean(1, keepdim=True)
        table = table[~table[:, 0].isnan()]
    windows, columns = table.shape
    if windows == 0:
        return Statistic(math.nan, math.nan, 0, seeds)
    mean = table.mean()
    per_window, per_seed = table.mean(1), table.mean(0)
    between_windows = columns * _sum_of_squares(per_window - mean) / (windows - 1) if windows > 1 else math.nan
    between_seeds = windows * _sum_of_squares(per_seed - mean) / (columns - 1) if columns > 1 else math.nan
    if windows > 1 and columns > 1:
        rest = _sum_of_squares(table - per_window[:, None] - per_seed + mean) / ((windows - 1) * (columns - 1))
        variance = between_windows + max(between_seeds - rest, 0.0)
    else:
        # With one window the seeds alone speak, with one seed the windows alone; with one of each nothing does.
        variance = between_windows if windows > 1 else between_seeds
    return Statistic(mean.item(), math.sqrt(variance / (windows * columns)), windows, seeds)


def paired_difference(first: Tensor, second: Tensor) -> PairedDifference:
    """Paired difference ``second - first`` of values ``(N, R)`` or ``(N, R, S)`` on the same windows, seeds and
    samples.

    Raises InputError when the shapes differ.
    """
    if first.shape != second.shape:
        raise InputError(
            f"paired_difference() needs the same windows, seeds and samples, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}; evaluate both models with the same settings."
        )
    difference = second.double().cpu() - first.double().cpu()
    statistic = over_windows_and_seeds(difference)
    per_window = difference.flatten(1).nanmean(1)
    per_window = per_window[~per_window.isnan()]
    lower = (per_window < 0).double().mean().item() if len(per_window) else math.nan
    return PairedDifference(statistic.mean, statistic.standard_error, lower, statistic.windows)


def _sum_of_squares(values: Tensor) -> float:
    return float((values * values).sum())
