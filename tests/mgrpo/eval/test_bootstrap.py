"""Bootstrap intervals: they hold the truth as often as they say, know clusters, and survive degenerate values."""

from __future__ import annotations

import math

import pytest
import torch

from mgrpo.errors import InputError
from mgrpo.eval.bootstrap import bootstrap_intervals


def clustered(trials: int, clusters: int, size: int, between: float, seed: int) -> torch.Tensor:
    """``(clusters * size, trials)`` values of mean 0: a part shared by a cluster, and a part of each window."""
    generator = torch.Generator().manual_seed(seed)
    shared = between * torch.randn(clusters, 1, trials, generator=generator, dtype=torch.float64)
    return (shared + torch.randn(clusters, size, trials, generator=generator, dtype=torch.float64)).flatten(0, 1)


def coverage(values: torch.Tensor, clusters: list[int], truth: float = 0.0) -> float:
    intervals = bootstrap_intervals(values, clusters, resamples=1000)
    return sum(interval.low <= truth <= interval.high for interval in intervals) / len(intervals)


def test_coverage_over_clusters() -> None:
    """Of 95 % intervals about 95 % hold the truth; those that take the windows of a clip as independent hold it far
    less often."""
    values = clustered(trials=600, clusters=40, size=6, between=1.0, seed=1)
    assert 0.92 <= coverage(values, [index // 6 for index in range(240)]) <= 0.975
    assert coverage(values, list(range(240))) < 0.75


def test_coverage_of_a_skewed_distribution() -> None:
    """The mean of squares: BCa moves the interval to the side where the truth is missed."""
    values = torch.randn(50, 600, generator=torch.Generator().manual_seed(3), dtype=torch.float64) ** 2
    intervals = bootstrap_intervals(values, list(range(50)), resamples=1000)
    above = sum(interval.low > 1 for interval in intervals) / 600
    below = sum(interval.high < 1 for interval in intervals) / 600
    assert 0.90 <= 1 - above - below <= 0.97
    # The symmetric interval of the standard error misses below about ten times as often as above.
    assert below < 6 * max(above, 1 / 600)


def test_it_is_the_textbook_interval_of_a_mean() -> None:
    """Many symmetric values: mean -+ 1.96 standard errors."""
    values = torch.randn(400, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (interval,) = bootstrap_intervals(values, list(range(400)))
    reach = 1.96 * values.std().item() / 20
    assert interval.low == pytest.approx(values.mean().item() - reach, abs=0.15 * reach)
    assert interval.high == pytest.approx(values.mean().item() + reach, abs=0.15 * reach)
    (narrower,) = bootstrap_intervals(values, list(range(400)), level=0.5)
    assert interval.low < narrower.low < narrower.high < interval.high


def test_seeded() -> None:
    values = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    first = bootstrap_intervals(values, list(range(30)))
    assert torch.equal(state, torch.get_rng_state())
    assert bootstrap_intervals(values, [f"clip {index}" for index in range(30)]) == first
    assert bootstrap_intervals(values[:, 1:], list(range(30)))[0] == first[1]
    assert bootstrap_intervals(values, list(range(30)), seed=1) != first


def test_degenerate_values() -> None:
    nan = math.nan
    columns = torch.tensor(
        [
            [7.0, 0.1, nan, 1.0, nan, 1.0],
            [7.0, 0.1, nan, 2.0, nan, 1.0],
            [7.0, 0.1, nan, nan, nan, 1.0],
            [7.0, 0.1, nan, 4.0, 3.0, 9.0],
        ]
    )
    constant, rounded, nothing, holed, one, outlier = bootstrap_intervals(columns, ["a", "b", "c", "d"])
    assert constant == (7.0, 7.0)
    assert rounded == (pytest.approx(0.1), pytest.approx(0.1)) and rounded.low == rounded.high
    assert all(math.isnan(end) for end in (*nothing, *one))
    assert 1.0 <= holed.low < holed.high <= 4.0
    assert 1.0 <= outlier.low < 3.0 < outlier.high <= 9.0
    # Equal values that don't sum up exactly have no spread either.
    tenths = torch.full((50, 1), 0.1, dtype=torch.float64)
    (same,) = bootstrap_intervals(tenths, [index // 3 for index in range(50)])
    assert same.low == same.high == pytest.approx(0.1)
    # One cluster says nothing about others, however many windows it has.
    assert all(math.isnan(end) for end in bootstrap_intervals(columns, ["a"] * 4)[0])
    assert bootstrap_intervals(torch.zeros(4, 0), ["a", "b", "c", "d"]) == []


def test_longer_clips_weigh_more() -> None:
    """The interval is that of the mean over windows."""
    values = torch.cat((torch.zeros(90, 1), torch.ones(10, 1)))
    clusters = ["long"] * 90 + [f"short {index}" for index in range(10)]
    (interval,) = bootstrap_intervals(values, clusters)
    assert interval.low < 0.1 < interval.high <= 1.0


def test_input_errors() -> None:
    values = torch.zeros(3, 1)
    with pytest.raises(InputError, match="N clusters"):
        bootstrap_intervals(values, ["a"])
    with pytest.raises(InputError, match="level"):
        bootstrap_intervals(values, ["a", "b", "c"], level=95)
    with pytest.raises(InputError, match="resamples"):
        bootstrap_intervals(values, ["a", "b", "c"], resamples=10)
