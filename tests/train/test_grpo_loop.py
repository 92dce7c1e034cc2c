"""The GRPO loop: its ratio starts at one, it repeats itself, survives being killed, and says what is wrong with its
input."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mgrpo.diffusion.config import SamplerConfig
from mgrpo.errors import InputError, MgrpoError
from mgrpo.grpo.perturbation import PerlinConfig
from mgrpo.grpo.update import PolicyLossConfig, RatioCheckError
from mgrpo.grpo.window import StepWindowConfig
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.runs.checkpoints import step_folders
from mgrpo.runs.metric_log import read_metrics
from mgrpo.runs.stored_models import load_model
from mgrpo.storage import StorageError
from mgrpo.train.grpo import train_grpo
from mgrpo.train.grpo_config import ExecutionConfig, GrpoConfig, RewardWeights
from mgrpo.train.motion_data import MotionDataConfig
from mgrpo.train.motion_task import MotionTask, sample_groups
from mgrpo.train.post_training import PostTraining
from tests.train import motion_files as files
from tests.train.forking import ForkingProcess

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpo")
    files.write_clips(folder / "clips")
    files.write_prior(folder / "prior")
    files.write_perceptual(folder / "perceptual")
    return folder


@pytest.fixture
def base(folder, tmp_path):
    return GrpoConfig(
        prior=folder / "prior",
        perceptual=folder / "perceptual",
        output=tmp_path / "run",
        data=MotionDataConfig(
            motion=str(folder / "clips"), length=8, validation=("made_up_3",), held_out=("made_up_4",)
        ),
        iterations=3,
        conditions=3,
        group_size=4,
        learning_rate=1e-4,
        sampler=SamplerConfig(steps=6),
        validate_every=2,
        checkpoint_every=1,
        device="cpu",
    )


def weights(path):
    return load_model(path, Denoiser, DenoiserConfig, prefer="last")[0].state_dict()


def rows(folder):
    return read_metrics(folder / "metrics.jsonl")


def timeless(folder):
    return [
        {key: value for key, value in row.items() if not key.startswith(("time", "step_time", "system/"))}
        for row in rows(folder)
    ]


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


VARIANTS = {
    "default": {},
    "paper": {
        "sampler": SamplerConfig(steps=6, project=False),
        "loss": PolicyLossConfig(channels="all"),
        "rotation_error": "axis_angle",
        "alignment": "egoallo",
    },
    "one condition per member": {"perlin": PerlinConfig(per_member=True), "share_initial_noise": False},
    "two optimiser steps, kl, ema": {
        "optimizer_steps": 2,
        "ema": 0.9,
        "loss": PolicyLossConfig(kl_coef=0.1, step_weight="inv_snr", timestep_fraction=0.7),
    },
    "without the perceptual model": {"rewards": RewardWeights(visual=0, foot_skate=1, jitter=1), "perceptual": None},
    "a pool of windows": {
        "train_windows": 6,
        "schedule": "cosine",
        "warmup": 2,
        "window": StepWindowConfig(size=2, move_every=1),
    },
    "another sampler": {"sampler": SamplerConfig(kernel="dance", eta=0.3, steps=6)},
    "fast": {"window": StepWindowConfig(size=2, quiet_outside=True), "loss": PolicyLossConfig(step_weight="inv_snr")},
    "two at a time, no graphs": {"execution": ExecutionConfig(micro_conditions=2, reuse_graphs="no")},
    "bfloat16": {"execution": ExecutionConfig(precision="bf16")},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_three_iterations(base, name):
    config = replace(base, **VARIANTS[name])
    before = weights(config.prior)
    after = weights(train_grpo(config))
    log = rows(config.output)
    assert [row["step"] for row in log] == [1, 2, 3]
    for row in log:
        assert all(
            math.isfinite(value) for key, value in row.items() if value is not None and not key.startswith("validation")
        ), row
        assert row["ratio/first_log_max"] == 0.0
        assert row["grad_norm"] > 0
    assert "validation/mpjpe_mm" in log[1] and "validation/mpjpe_mm" not in log[0]
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved and not any(key.startswith("latent_from_cond") for key in moved)


def test_rewards_and_their_weights_are_logged_under_their_names(base):
    train_grpo(replace(base, iterations=1, rewards=RewardWeights(visual=2, position=0)))
    row = rows(base.output)[0]
    names = {key.split("/")[1] for key in row if key.startswith("rewards/")}
    assert names == {"visual", "aligned_position", "rotation", "velocity"}
    total = 2 * row["rewards/visual/mean"] + sum(row[f"rewards/{name}/mean"] for name in names - {"visual"})
    assert row["reward"] == pytest.approx(total, rel=1e-5)
    errors = {key for key in row if key.startswith("error/")}
    assert errors == {"error/aligned_position_mm", "error/rotation_deg", "error/velocity_mm_s"}
    # a reward is exp(-slope error): its mean is not far from that of the mean error
    assert math.exp(-math.radians(row["error/rotation_deg"])) == pytest.approx(row["rewards/rotation/mean"], rel=0.1)
    assert math.exp(-row["error/aligned_position_mm"] / 1000) == pytest.approx(
        row["rewards/aligned_position/mean"], rel=0.1
    )


def test_the_distance_to_the_average_is_logged(base):
    train_grpo(replace(base, ema=0.5))
    distances = [row["ema_distance"] for row in rows(base.output)]
    # half of the first update is in the average, so half is what lies between
    assert distances[0] == pytest.approx(rows(base.output)[0]["update_ratio"] / 2, rel=0.05)


def test_resuming_repeats_the_uninterrupted_run_bit_for_bit(base, tmp_path):
    config = replace(base, ema=0.5, optimizer_steps=2)
    whole = train_grpo(config)
    parts = replace(config, output=tmp_path / "parts", resume=True)
    for iterations in (1, 2, 3):
        resumed = train_grpo(replace(parts, iterations=iterations, validate_every=0))
    assert same(weights(whole), weights(resumed))


@pytest.mark.parametrize("share", [0.25, 0.55, 0.8])
def test_a_disk_that_fills_costs_no_finished_iteration(base, tmp_path, share):
    """With room for a share of what the run writes, and after the disk was cleared, it ends in the same weights and the
    same log as where there was room from the start."""
    config = replace(base, iterations=4, checkpoint_every=1, validate_every=2, warmup=0)
    whole = config.output
    train_grpo(config)
    written = sum(path.stat().st_blocks * 512 for path in whole.rglob("*") if path.is_file())
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={2 * written + (1 << 20)}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "filler").write_bytes(b"\0" * (free - int(share * written)))
        there = replace(config, output=disk / "run")
        with pytest.raises(StorageError, match="the disk is full"):
            train_grpo(there)
        (disk / "filler").unlink()
        resumed = replace(there, resume=True)
        assert same(weights(whole), weights(train_grpo(resumed)))
        assert timeless(disk / "run") == timeless(whole)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_groups_do_not_depend_on_their_neighbours(base):
    """A condition's samples are the same alone and in a batch: noise is keyed, never streamed."""
    from mgrpo.diffusion.schedule import CosineSchedule
    from mgrpo.train.motion_data import load_motion_data

    data = load_motion_data(base.data, seed=0)
    policy = load_model(base.prior, Denoiser, DenoiserConfig)[0]
    transitions = base.sampler.transitions(CosineSchedule.make())
    windows = data.train.batch(0, 3)
    both = sample_groups(policy, windows, base, transitions, 5)
    first = sample_groups(policy, windows.select(slice(0, 1)), base, transitions, 5)
    torch.testing.assert_close(both[:1], first, atol=1e-5, rtol=1e-4)
    per_member = replace(base, perlin=PerlinConfig(alpha=0.0, per_member=True))
    shared = replace(base, perlin=PerlinConfig(alpha=0.0))
    a = sample_groups(policy, windows, per_member, transitions, 5)
    b = sample_groups(policy, windows, shared, transitions, 5)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_perlin_noise_reaches_the_policy_but_not_the_rewards(base, monkeypatch):
    seen = []
    real = MotionTask.score

    def spy(self, x0, windows):
        seen.append(windows.T_world_cpf.clone())
        return real(self, x0, windows)

    monkeypatch.setattr(MotionTask, "score", spy)
    loud, quiet = (
        replace(base, iterations=1, perlin=PerlinConfig(alpha=0.5)),
        replace(base, iterations=1, perlin=PerlinConfig(alpha=0.0)),
    )
    train_grpo(loud)
    noisy = rows(base.output)[0]["reward"]
    train_grpo(replace(quiet, output=base.output.with_name("quiet")))
    assert torch.equal(seen[0], seen[1])
    assert noisy != rows(base.output.with_name("quiet"))[0]["reward"]


def test_a_policy_that_differs_between_rollout_and_update_is_caught(base, monkeypatch):
    real = PostTraining.sample

    def disturbed(self, *args):
        sampled = real(self, *args)
        with torch.no_grad():
            self.policy.decoders["body_rotmats"][-1].bias.add_(1e-2)
        return sampled

    monkeypatch.setattr(PostTraining, "sample", disturbed)
    with pytest.raises(RatioCheckError, match="before any update the ratio must be 1"):
        train_grpo(base)


def test_samples_that_cannot_be_scored_are_left_out(base, monkeypatch):
    real = MotionTask.score

    def broken(self, x0, windows):
        x0 = x0.clone()
        x0[0, 0] = math.nan
        return real(self, x0, windows)

    monkeypatch.setattr(MotionTask, "score", broken)
    train_grpo(replace(base, iterations=1, validate_every=0))
    row = rows(base.output)[0]
    assert row["unscored_samples"] == 1 and math.isfinite(row["grad_norm"]) and row["grad_norm"] > 0
    assert math.isfinite(row["reward"])


def test_a_rollout_without_any_score_ends_the_run_and_keeps_the_checkpoint(base, monkeypatch):
    real = MotionTask.score
    calls = []

    def broken(self, x0, windows):
        calls.append(1)
        return real(self, torch.full_like(x0, math.nan) if len(calls) == 3 else x0, windows)

    monkeypatch.setattr(MotionTask, "score", broken)
    with pytest.raises(MgrpoError, match="no sample of iteration 3 could be scored"):
        train_grpo(base)
    assert load_model(base.output, Denoiser, DenoiserConfig, prefer="last")[2].step == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 1}, "--group-size must be at least 2"),
        ({"optimizer_steps": 9}, r"--optimizer-steps \(9\) can't exceed --conditions \(3\)"),
        ({"train_windows": 7}, r"--train-windows \(7\) must be a multiple of --conditions \(3\)"),
        ({"ema": 1.0}, "--ema must be below 1, got 1.0"),
        ({"rewards": RewardWeights(0, 0, 0, 0, 0)}, "every weight is 0"),
        ({"gold": "mpjpe"}, "--gold must be a measure of the validation, one of mpjpe_mm, .*; got 'mpjpe'"),
        ({"gold": "score"}, "--gold must be a measure of the validation"),
        ({"gold": "gnd"}, "--gold-better min: of gnd the higher value is the better one; give --gold-better max"),
        ({"gold_better": "max"}, "--gold-better max: of mpjpe_mm the lower value .* give --gold-better min"),
    ],
)
def test_options_out_of_range(base, options, message):
    with pytest.raises(InputError, match=message):
        replace(base, **options)


def test_missing_models_are_explained(base, tmp_path):
    with pytest.raises(InputError, match="no perceptual model is given"):
        train_grpo(replace(base, perceptual=None))
    with pytest.raises(InputError, match="does not exist"):
        train_grpo(replace(base, prior=tmp_path / "nowhere"))
    with pytest.raises(InputError, match="holds a PerceptualModel, but a Denoiser is needed"):
        train_grpo(replace(base, prior=base.perceptual))
    with pytest.raises(MgrpoError, match=r"--sampler.kernel ode, .* no step draws noise"):
        replace(base, sampler=SamplerConfig(kernel="ode", steps=6))


def wait_for_step(folder, step):
    """Until the run in ``folder`` has logged ``step``."""
    log = folder / "metrics.jsonl"
    for _ in range(60_000):
        lines = log.read_text().splitlines(True) if log.is_file() else []
        if any(line.endswith("\n") and json.loads(line)["step"] >= step for line in lines[-2:]):
            return
        time.sleep(0.002)
    pytest.fail(f"{folder} never came to step {step}")


def test_killed_at_random_moments_and_resumed_it_ends_in_the_same_weights(folder, tmp_path):
    errors = tmp_path / "errors"
    with errors.open("w") as stream:
        server = ForkingProcess("killable_grpo", str(folder), stderr=stream)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert server.run(folder=str(whole)) == [0], errors.read_text()
    chance = random.Random(7)
    kills = 0
    for number, step in enumerate((1, 0, 3, 5, 7, 9, 10)):  # 0: while it starts
        (process,) = server.start(folder=str(killed))
        wait_for_step(killed, step)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(process, signal.SIGKILL if number % 2 else signal.SIGTERM)
        if server.wait() == [0]:  # it was at its end already
            break
        kills += 1
        for checkpoint in step_folders(killed / "checkpoints").values():
            load_model(checkpoint, Denoiser, DenoiserConfig)
    assert server.run(folder=str(killed)) == [0], errors.read_text()
    server.close()
    assert kills >= 3
    assert same(weights(whole), weights(killed))
    assert timeless(whole) == timeless(killed)
