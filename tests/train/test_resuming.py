"""Resuming where little is left: a finished or shortened run, damaged or missing files, the command that goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mgrpo.diffusion.config import SamplerConfig
from mgrpo.errors import InputError
from mgrpo.models import perceptual as perceptual_module
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.runs.checkpoints import read_checkpoint
from mgrpo.runs.run_dir import RunDir
from mgrpo.runs.stored_models import load_model
from mgrpo.train import perceptual
from mgrpo.train.grpo import train_grpo
from mgrpo.train.grpo_config import GrpoConfig, RewardWeights
from mgrpo.train.perceptual import PerceptualTrainingConfig, train_perceptual
from mgrpo.train.prior import train_prior
from tests.train import motion_files as files


@pytest.fixture(params=["prior", "perceptual", "grpo"])
def loop(request, prior_config, tmp_path, monkeypatch):
    """Each loop with two iterations, as its function and its configuration."""
    prior = replace(prior_config, iterations=2, checkpoint_every=1, validate_every=1)
    if request.param == "prior":
        return train_prior, prior
    network = files.write_prior(tmp_path / "start")
    shared = {
        "prior": network, "output": prior.output, "data": prior.data, "iterations": 2, "checkpoint_every": 1,
        "validate_every": 1, "device": "cpu",
    }  # fmt: skip
    if request.param == "grpo":
        return train_grpo, GrpoConfig(
            **shared, conditions=2, group_size=2, sampler=SamplerConfig(steps=6), perceptual=None,
            rewards=RewardWeights(visual=0),
        )  # fmt: skip
    monkeypatch.setitem(perceptual_module.PERCEPTUAL_PRESETS, "test", files.TINY_PERCEPTUAL)
    return train_perceptual, PerceptualTrainingConfig(
        **shared, preset="test", clips=2, negatives_per_clip=2, samples_per_clip=1, last_steps=2,
        sampler=SamplerConfig("ddim", steps=3), validation_samples=1,
    )  # fmt: skip


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"}


def test_a_finished_run_says_so_and_a_shorter_one_is_refused(loop, capsys, monkeypatch):
    train, config = loop
    last = train(config)
    capsys.readouterr()
    # what a finished run need not do
    monkeypatch.setattr(perceptual, "sample_windows", None)
    assert train(replace(config, resume=True)) == last
    shown = capsys.readouterr().err
    assert "all 2 iterations are done, nothing is left to do; a larger --iterations would go on" in shown
    before = contents(config.output)
    with pytest.raises(InputError, match="2 iterations are done already, more than the --iterations 1 asked for"):
        train(replace(config, resume=True, iterations=1))
    assert contents(config.output) == before
    assert "%" not in capsys.readouterr().err.replace("100 %", "")


def test_the_end_of_a_cosine_can_not_be_moved(prior_config, capsys):
    config = replace(prior_config, iterations=2, schedule="cosine", resume=True)
    train_prior(config)
    train_prior(config)
    assert "nothing is left to do\n" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_a_model_needs_its_weights_alone(prior_config, damage):
    folder = train_prior(replace(prior_config, ema=0.5))
    whole = read_checkpoint(folder)
    for name in ("optimizer.safetensors", "tensors.safetensors"):
        if damage == "cut":
            (folder / name).write_bytes((folder / name).read_bytes()[:100])
        else:
            (folder / name).unlink()
        model = load_model(folder, Denoiser, DenoiserConfig)[0]
        assert all(torch.equal(value, whole.model_tensors[key]) for key, value in model.state_dict().items())
        with pytest.raises(InputError, match=r"optimizer\.safetensors (is damaged|not found)"):
            train_prior(replace(prior_config, ema=0.5, resume=True, iterations=8))
        if name == "optimizer.safetensors":
            load_model(folder, Denoiser, DenoiserConfig, use_ema=True)
    with pytest.raises(InputError, match=r"tensors\.safetensors"):
        load_model(folder, Denoiser, DenoiserConfig, use_ema=True)


def test_checkpoints_without_their_settings_are_not_thrown_away(prior_config):
    last = train_prior(prior_config)
    (prior_config.output / "config.resolved.yaml").unlink()
    with pytest.raises(InputError, match=r"holds checkpoints \(6\) but no config.resolved.yaml"):
        train_prior(replace(prior_config, resume=True))
    assert (last / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--output", "x"], "mgrpo train prior --output x --resume"),
        (["--resume", "--resume-from", "best", "--seed", "1"], "mgrpo train prior --resume --seed 1"),
        (["--resume", "--resume_from=3"], "mgrpo train prior --resume"),
        (["--resume-from", "last"], "mgrpo train prior --resume"),
    ],
)
def test_the_command_that_goes_on_does_not_go_back_again(words, expected, tmp_path, prior_config):
    with RunDir.create(tmp_path / "run", prior_config, command=["/bin/mgrpo", "train", "prior", *words]) as run:
        assert run.resume_command() == expected
