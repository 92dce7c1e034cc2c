"""The prior's loop: it learns, repeats itself, resumes exactly, and says what is wrong with its input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mgrpo.errors import InputError
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.runs.metric_log import read_metrics
from mgrpo.runs.stored_models import load_model
from mgrpo.train.prior import train_prior


@pytest.fixture
def base(prior_config):
    return prior_config


def weights(path):
    return load_model(path, Denoiser, DenoiserConfig)[0].state_dict()


def rows(folder):
    return [
        {key: value for key, value in row.items() if key != "time"} for row in read_metrics(folder / "metrics.jsonl")
    ]


def test_the_loss_falls(base):
    train_prior(replace(base, iterations=60, checkpoint_every=60, validate_every=0))
    losses = [row["loss"] for row in rows(base.output)]
    assert len(losses) == 60 and sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_resuming_repeats_the_uninterrupted_run_bit_for_bit(base, tmp_path):
    whole = train_prior(base)
    parts = replace(base, output=tmp_path / "parts", resume=True)
    train_prior(replace(parts, iterations=2))
    train_prior(replace(parts, iterations=4))
    resumed = train_prior(parts)
    ours, theirs = weights(whole), weights(resumed)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert rows(base.output) == rows(parts.output)


def test_another_seed_gives_other_weights(base, tmp_path):
    first, second = train_prior(base), train_prior(replace(base, output=tmp_path / "other", seed=1))
    assert any(not torch.equal(a, b) for a, b in zip(weights(first).values(), weights(second).values()))


def test_a_second_start_without_resume_is_refused(base):
    train_prior(base)
    with pytest.raises(InputError, match="--resume"):
        train_prior(base)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "huge"}, "--preset must be one of tiny, egoallo"),
        ({"iterations": 0}, "--iterations must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "--learning-rate must be positive"),
        ({"learning_rate": 1e300}, "--learning-rate must be positive and at most 1, got 1e.300"),
        ({"seed": -1}, r"--seed must be a whole number from 0 to 2\^64 - 1, got -1"),
        ({"seed": 2**64}, "--seed must be a whole number"),
    ],
)
def test_options_out_of_range(base, options, message):
    with pytest.raises(InputError, match=message):
        replace(base, **options)


def test_a_window_longer_than_a_clip_is_explained(base):
    with pytest.raises(InputError, match="made_up_"):
        train_prior(replace(base, data=replace(base.data, length=64)))
    with pytest.raises(InputError, match="no clip is long enough"):
        train_prior(replace(base, data=replace(base.data, length=64, short_clips="drop")))


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_checkpoint(base, monkeypatch):
    from mgrpo.train import prior

    real = prior.batch_loss

    def broken(*args, iteration, **options):
        loss = real(*args, iteration=iteration, **options)
        return loss._replace(total=loss.total * float("nan")) if iteration == 3 else loss

    monkeypatch.setattr(prior, "batch_loss", broken)
    with pytest.raises(InputError, match="iteration 4"):
        train_prior(base)
    assert load_model(base.output, Denoiser, DenoiserConfig)[2].step == 2
