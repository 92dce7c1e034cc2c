"""Alarms on made-up metrics: each is given when it should be, once in a while, and not for a gap in the log."""

from __future__ import annotations

import math
import random

import pytest

from mgrpo.errors import InputError
from mgrpo.grpo.alarms import AlarmConfig, Alarms

WINDOW = 5
HEALTHY = {
    "frac_dead_all": 0.02, "clip_ratio/region_mean": 0.1, "grad_norm": 1.0, "diversity/joint_std_mm": 40.0,
    "reward": 3.0, "unscored_samples": 0.0, "ratio/first_log_max": 0.0,
}  # fmt: skip


def alarms(gold_better="min", **options):
    config = AlarmConfig(**{"window": WINDOW, "every": 10, **options})
    return Alarms(config, clip_range=1e-4, gold="error", gold_better=gold_better)


def watch(found, rows, start=1):
    """(step, name) of every alarm that rows of changes to a healthy log give."""
    return [
        (alarm.step, alarm.name)
        for step, row in enumerate(rows, start)
        for alarm in found.observe(step, {**HEALTHY, **row})
    ]


@pytest.mark.parametrize(
    ("name", "changed", "option"),
    [
        ("dead_groups", {"frac_dead_all": 0.6}, {"dead_groups": 1.0}),
        ("clipped", {"clip_ratio/region_mean": 0.7}, {"clipped": 1.0}),
        ("diversity", {"diversity/joint_std_mm": 4.0}, {"diversity": 0.0}),
    ],
)
def test_means_over_the_window(name, changed, option):
    rows = [{}] * WINDOW + [changed] * 16
    given = watch(alarms(), rows)
    assert {kind for _, kind in given} == {name}
    first = given[0][0]
    assert WINDOW + WINDOW // 2 < first <= 2 * WINDOW  # not by one iteration
    assert [step for step, _ in given] == list(range(first, len(rows) + 1, 10))  # one per `every`
    assert watch(alarms(**option), rows) == []


def test_no_mean_before_the_window_is_full():
    assert watch(alarms(), [{"frac_dead_all": 1.0}] * (WINDOW - 1)) == []


@pytest.mark.parametrize("gap", [None, math.nan, "missing"])
def test_gaps_in_the_log_are_no_alarms_and_hide_none(gap):
    def without(row):
        row = {**HEALTHY, **row}
        return {k: v for k, v in row.items() if k == "x"} if gap == "missing" else dict.fromkeys(row, gap)

    found = alarms()
    assert [found.observe(step, without({})) for step in range(1, 20)] == [[]] * 19
    # two values of five are too few for a mean, three are enough
    for many, expected in ((2, []), (3, ["dead_groups"])):
        found = alarms(every=100)
        rows = [{**HEALTHY, "frac_dead_all": 0.9}] * many + [without({})] * (WINDOW - many)
        given = [alarm.name for step, row in enumerate(rows, 1) for alarm in found.observe(step, row)]
        assert given == expected


def test_a_gradient_spike_is_compared_with_the_iterations_before_it():
    rows = [{}] * WINDOW + [{"grad_norm": 9.0}, {"grad_norm": 11.0}, {}]
    assert watch(alarms(), rows) == [(WINDOW + 2, "gradient_spike")]
    assert watch(alarms(spike=0), rows) == []
    assert watch(alarms(), [{"grad_norm": 100.0}] * 3 + [{}] * 9) == []  # before there is a median
    assert watch(alarms(), [{"grad_norm": 0.0}] * WINDOW + [{"grad_norm": 1.0}]) == []  # a beginning from nothing
    text = alarms()
    watch(text, [{}] * WINDOW)
    (alarm,) = text.observe(9, {**HEALTHY, "grad_norm": 50.0})
    assert "50 times its median" in alarm.text and "--learning-rate" in alarm.text


def test_unscored_samples_are_told_at_once():
    (alarm,) = alarms().observe(1, {**HEALTHY, "unscored_samples": 3.0})
    assert alarm.name == "unscored" and alarm.text.startswith("3 samples could not be scored")
    (alarm,) = alarms().observe(1, {**HEALTHY, "unscored_samples": 1})
    assert alarm.text.startswith("1 sample could")


def test_a_ratio_that_is_not_one_before_the_update():
    assert watch(alarms(), [{"ratio/first_log_max": 1e-5}]) == []
    assert watch(alarms(), [{"ratio/first_log_max": 1.1e-5}]) == [(1, "ratio")]


def evaluations(rewards, gold, noise=0.0, between=4):
    """Rows with an evaluation after every ``between`` iterations."""
    for reward, measured in zip(rewards, gold, strict=True):
        for number in range(between):
            row = {"reward": reward + noise * (-1) ** number}  # on average as asked
            yield row | ({"validation/error": measured} if number == between - 1 else {})


@pytest.mark.parametrize(
    ("rewards", "gold", "better", "noise", "steps"),
    [
        ([1.0, 1.1, 1.2], [50.0, 51.0, 52.0], "min", 0.01, [12]),
        ([1.0, 1.1, 1.2], [0.9, 0.8, 0.7], "max", 0.01, [12]),
        ([1.0, 1.1, 1.2], [52.0, 51.0, 50.0], "min", 0.01, []),  # the measure gets better
        ([1.2, 1.1, 1.0], [50.0, 51.0, 52.0], "min", 0.01, []),  # so does not the reward
        ([1.0, 1.1, 1.2], [50.0, 51.0, 50.5], "min", 0.01, []),  # not in a row
        ([1.0, 1.1, 1.2], [50.0, 50.1, 50.2], "min", 0.01, []),  # within the margin
        ([1.0, 1.001, 1.002], [50.0, 51.0, 52.0], "min", 0.1, []),  # within the reward's noise
        ([2.0, 1.0, 1.1, 1.2], [50.0, 50.5, 51.0, 52.0], "min", 0.01, [16]),  # each since the evaluation before
        ([1.0, 1.1], [50.0, 52.0], "min", 0.01, []),  # one comparison is not enough
        ([1.0, math.nan, 1.1, 1.2], [50.0, 50.5, 51.0, 52.0], "min", 0.01, [16]),
    ],
)
def test_the_reward_rises_while_the_measure_gets_worse(rewards, gold, better, noise, steps):
    given = watch(alarms(better), evaluations(rewards, gold, noise))
    assert given == [(step, "hacking") for step in steps]
    assert watch(alarms(better, hacking=0), evaluations(rewards, gold, noise)) == []


def test_a_noisy_reward_on_a_plateau_is_rarely_called_hacking():
    given = 0
    for seed in range(40):
        chance = random.Random(seed)
        found, rows = alarms(every=1), []
        for _ in range(25):
            rows += [{"reward": 3 + chance.gauss(0, 0.1)} for _ in range(10)]
            rows[-1]["validation/error"] = 100 + chance.gauss(0, 0.3)
        given += len(watch(found, rows))
    assert given <= 3, f"{given} in {40 * 23} evaluations"


def test_replaying_the_log_gives_what_an_unbroken_run_gives():
    chance = random.Random(1)
    rows = []
    for step in range(1, 121):
        row = {"step": step, **HEALTHY, "grad_norm": chance.choice([1.0, 1.2, 40.0]) if step % 7 == 0 else 1.0}
        row["frac_dead_all"] = 0.9 if 30 < step < 60 else None
        row["diversity/joint_std_mm"] = 40.0 / step
        row["reward"] = 0.01 * step
        if step % 10 == 0:
            row["validation/error"] = 50.0 + step
        rows.append(row)
    whole = alarms()
    unbroken = [alarm for row in rows for alarm in whole.observe(row["step"], row)]
    assert {alarm.name for alarm in unbroken} == {"gradient_spike", "dead_groups", "diversity", "hacking"}
    for cut in (1, 4, 33, 57, 90):
        resumed = alarms()
        resumed.replay(rows[:cut])
        rest = [alarm for row in rows[cut:] for alarm in resumed.observe(row["step"], row)]
        assert rest == [alarm for alarm in unbroken if alarm.step > cut]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dead_groups": 1.5}, "--dead-groups must be at most 1"),
        ({"window": 0}, "--window must be at least 1"),
        ({"spike": math.nan}, "--spike must be finite"),
        ({"hacking": -1}, "--hacking must be at least 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        AlarmConfig(**options)
