"""The perceptual training loop: it learns, repeats itself exactly, and draws its negatives as it says."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgrpo import geometry
from mgrpo.data import MotionClip, MotionWindows, save_clip
from mgrpo.diffusion.config import SamplerConfig
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.errors import InputError
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.motion import decode_motion
from mgrpo.models.perceptual import PERCEPTUAL_PRESETS, PerceptualConfig, PerceptualModel
from mgrpo.models.state import StateLayout, pack_windows, unpack_state
from mgrpo.runs.metric_log import read_metrics
from mgrpo.runs.run_dir import RunDir
from mgrpo.runs.stored_models import load_model
from mgrpo.train import perceptual
from mgrpo.train.learning_rate import learning_rate_at
from mgrpo.train.motion_data import MotionData, MotionDataConfig, load_motion_data
from mgrpo.train.perceptual import (
    PERCEPTUAL_TRAINING_PRESETS,
    Generation,
    PerceptualTrainingConfig,
    discriminate,
    draw_candidates,
    draw_negatives,
    generate,
    make_candidates,
    noisy_states,
    score_candidates,
    train_perceptual,
)

PRIOR = DenoiserConfig(
    d_latent=16, d_feedforward=32, d_noise_emb=8, num_heads=2, encoder_layers=1, decoder_layers=1, include_hands=False
)
FRAMES = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with made-up clips, and the run of an untrained prior."""
    folder = tmp_path_factory.mktemp("perceptual")
    generator = torch.Generator().manual_seed(0)
    upright = torch.tensor([0.5, 0.5, 0.5, 0.5])
    (folder / "clips").mkdir()
    for index in range(5):
        angles = 0.2 * torch.randn(22, 3, generator=generator)
        angles = angles + 0.03 * torch.randn(40, 22, 3, generator=generator).cumsum(0)
        position = 0.02 * torch.randn(40, 3, generator=generator).cumsum(0)
        position[:, 2] = 0.95
        quats = geometry.axis_angle_to_quat(angles)
        clip = MotionClip(
            name=f"made_up_{index}",
            fps=30.0,
            T_world_root=geometry.se3(geometry.quat_multiply(quats[:, 0], upright), position),
            body_quats=quats[:, 1:],
            betas=torch.zeros(16),
            contacts=torch.zeros(40, 21),
        )
        save_clip(folder / "clips" / f"made_up_{index}.npz", clip)
    torch.manual_seed(0)
    with RunDir.create(folder / "prior", PRIOR) as run:
        run.save(1, model=Denoiser(PRIOR), model_config=PRIOR)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _small_preset() -> Iterator[None]:
    small = PerceptualConfig(d_latent=16, blocks=1, heads=2, mlp_ratio=1.0, frames_per_token=2, velocity_features=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PERCEPTUAL_PRESETS, "test", small)
        yield


@pytest.fixture(scope="module")
def base(folder: Path, _small_preset: None) -> PerceptualTrainingConfig:
    """Three iterations, every feature of the loop in use: several steps per generation, validation, checkpoints."""
    return PerceptualTrainingConfig(
        prior=folder / "prior",
        preset="test",
        data=MotionDataConfig(
            motion=str(folder / "clips"), length=FRAMES, validation=("made_up_3",), held_out=("made_up_4",)
        ),
        iterations=5,
        clips=3,
        negatives_per_clip=4,
        samples_per_clip=2,
        clips_per_generation=4,
        optimizer_steps_per_generation=2,
        sampler=SamplerConfig(kernel="ddim", steps=4),
        learning_rate=3e-3,
        validation_samples=2,
        validate_every=2,
        checkpoint_every=1,
        device="cpu",
    )


@pytest.fixture(scope="module")
def data(base: PerceptualTrainingConfig) -> MotionData:
    return load_motion_data(base.data, seed=0)


@pytest.fixture(scope="module")
def prior() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(PRIOR).eval()


def logged(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_model(checkpoint, PerceptualModel, PerceptualConfig)[0].state_dict()


def without_time(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "time"} for row in rows]


@pytest.mark.parametrize("negatives", ["samples", "gaussian"])
def test_loss_is_finite_and_moves(base: PerceptualTrainingConfig, tmp_path: Path, negatives: str) -> None:
    last = train_perceptual(dataclasses.replace(base, output=tmp_path / "run", negatives=negatives))
    rows = logged(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    losses = [row["loss"] for row in rows]
    assert all(math.isfinite(loss) for loss in losses) and len(set(losses)) == 5
    assert all(row["grad_norm"] > 0 for row in rows)
    assert [row["step"] for row in rows if "validation/accuracy" in row] == [2, 4, 5]
    assert {"validation/wrong_count", "validation/score_gap", "validation/loss"} <= rows[-1].keys()
    assert last.name == "step_00000005"


def test_resume_is_exact(base: PerceptualTrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken off in the middle of a generation or between two, the run ends with the same weights and the same log."""
    whole = train_perceptual(dataclasses.replace(base, output=tmp_path / "whole"))
    reference, rows = weights(whole), without_time(logged(tmp_path / "whole"))
    for finished in (1, 2):
        config = dataclasses.replace(base, output=tmp_path / f"broken_off_{finished}")
        with monkeypatch.context() as patch:
            patch.setattr(perceptual, "optimizer_step", failing_after(finished))
            with pytest.raises(ConnectionError):
                train_perceptual(config)
        assert len(logged(config.output)) == finished
        found = weights(train_perceptual(dataclasses.replace(config, resume=True)))
        assert all(torch.equal(found[name], value) for name, value in reference.items())
        assert without_time(logged(config.output)) == rows


def failing_after(finished: int) -> Callable[..., dict[str, float]]:
    """An optimiser step that fails once ``finished`` of them are done."""
    original, calls = perceptual.optimizer_step, itertools.count()

    def step(*arguments: Any, **options: Any) -> dict[str, float]:
        if next(calls) >= finished:
            raise ConnectionError("broken off by the test")
        return original(*arguments, **options)

    return step


def test_each_generation_has_windows_of_its_own(
    base: PerceptualTrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, torch.Tensor]] = []

    def recording(prior: Denoiser, windows: MotionWindows, *rest: Any) -> Generation:
        seen.append((rest[-1], windows.T_world_cpf))
        return generate(prior, windows, *rest)

    monkeypatch.setattr(perceptual, "generate", recording)
    train_perceptual(dataclasses.replace(base, output=tmp_path / "run", iterations=3, validate_every=0))
    assert [number for number, _ in seen] == [0, 1]
    assert all(len(heads) == base.clips_per_generation for _, heads in seen)
    assert not torch.equal(seen[0][1], seen[1][1])


def test_a_few_steps_tell_the_prior_apart(base: PerceptualTrainingConfig, tmp_path: Path) -> None:
    """Samples of an untrained prior are easy: the loss falls below chance and held-out windows are recognised."""
    config = dataclasses.replace(
        base, output=tmp_path / "run", iterations=40, learning_rate=1e-2, validate_every=40, checkpoint_every=40
    )
    train_perceptual(config)
    rows = logged(config.output)
    assert rows[-1]["loss"] < 0.5 * math.log(5)
    assert rows[-1]["validation/accuracy"] == 1.0 and rows[-1]["validation/wrong_count"] == 0.0
    assert rows[-1]["validation/score_gap"] > 0.2


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.data())
def test_negatives_are_drawn_without_repetition(samples: int, steps: int, clips: int, data: st.DataObject) -> None:
    negatives = data.draw(st.integers(1, samples * steps))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    which, step = draw_negatives(samples, steps, negatives, clips, generator)
    assert which.shape == step.shape == (clips, negatives)
    assert ((which >= 0) & (which < samples) & (step >= 0) & (step < steps)).all()
    for row in range(clips):
        pairs = set(zip(which[row].tolist(), step[row].tolist(), strict=True))
        assert len(pairs) == negatives
        # Every sample before any a second time.
        assert len(set(which[row, :samples].tolist())) == min(samples, negatives)


def test_negatives_reach_every_sample_and_step() -> None:
    which, step = draw_negatives(3, 3, 2, 500, torch.Generator().manual_seed(0))
    counts = torch.bincount((3 * which + step).flatten(), minlength=9)
    assert (counts > 60).all() and (counts < 170).all()


def test_candidates(base: PerceptualTrainingConfig, data: MotionData, prior: Denoiser) -> None:
    """The recorded motion first, then samples that keep its head: everything from (seed, generation, iteration)."""
    windows = data.train.batch(0, 4)
    transitions = base.sampler.transitions(CosineSchedule.make())
    generation = generate(prior, windows, transitions, base, 0)
    layout = StateLayout(include_hands=False)
    assert generation.states is not None and generation.states.shape == (4, 2, 3, FRAMES, layout.dim)
    candidates = draw_candidates(generation, layout, data.body, base, 0)
    assert candidates.joints.shape == (3, 5, FRAMES, 22, 3) and candidates.R_world_joint.shape[-2:] == (3, 3)
    rows = [next(i for i in range(4) if torch.equal(candidates.joints[row, 0], windows.joints[i])) for row in range(3)]
    assert len(set(rows)) == 3
    assert torch.equal(candidates.T_world_cpf, windows.T_world_cpf[rows])
    head = candidates.R_world_joint[..., 15, :, :]
    torch.testing.assert_close(head[:, 1:], head[:, :1].expand(-1, 4, -1, -1, -1), rtol=0, atol=1e-4)
    assert len({tuple(row.tolist()) for row in candidates.joints[0, :, 0, 0]}) == 5
    again = draw_candidates(generate(prior, windows, transitions, base, 0), layout, data.body, base, 0)
    assert torch.equal(again.joints, candidates.joints)
    other = draw_candidates(generation, layout, data.body, base, 1)
    assert not torch.equal(other.joints, candidates.joints)
    fresh = generate(prior, windows, transitions, base, 1)
    assert fresh.states is not None and not torch.equal(fresh.states, generation.states)


def test_gaussian_negatives(data: MotionData) -> None:
    windows = data.train.batch(0, 2)
    layout = StateLayout(include_hands=False)
    states = noisy_states(windows, layout, 0.05, 200, torch.Generator().manual_seed(0))
    assert states.shape == (2, 200, FRAMES, layout.dim)
    noisy = unpack_state(layout, states)
    angle = geometry.geodesic_angle(noisy.body_rotmats, windows.body_rotmats[:, None])
    # Mean length of a three-dimensional Gaussian vector: sigma * 2 sqrt(2 / pi).
    assert angle.mean().item() == pytest.approx(0.05 * 2 * math.sqrt(2 / math.pi), rel=0.02)
    moved = noisy.betas - windows.betas[:, None, None]
    assert moved.std().item() == pytest.approx(0.05, rel=0.02)
    assert torch.equal(noisy.contacts, windows.contacts[:, None].expand_as(noisy.contacts))
    joints = make_candidates(windows, states, layout, data.body).joints
    assert 1e-3 < (joints[:, 1:] - joints[:, :1]).norm(dim=-1).mean() < 0.2


def test_scores_belong_to_their_clip(data: MotionData) -> None:
    """Scoring all candidates together equals scoring each with its own head trajectory."""
    torch.manual_seed(0)
    model = PerceptualModel(PERCEPTUAL_PRESETS["test"])
    windows = data.train.batch(0, 3)
    layout = StateLayout(include_hands=False)
    candidates = make_candidates(
        windows, noisy_states(windows, layout, 0.1, 2, torch.Generator().manual_seed(0)), layout, data.body
    )
    scores = score_candidates(model, candidates)
    for row in range(3):
        for column in range(3):
            alone = model(
                candidates.R_world_joint[row, column][None],
                candidates.joints[row, column][None],
                windows.T_world_cpf[row][None],
            )
            torch.testing.assert_close(scores[row, column], alone[0], rtol=1e-4, atol=1e-6)


class Ranked(PerceptualModel):
    """Scores a motion by the height of its pelvis in the first frame."""

    def forward(self, R_world_joint, joints, T_world_cpf, mask=None):  # type: ignore[no-untyped-def]
        return torch.sigmoid(joints[:, 0, 0, 2])


def test_discrimination_counts(data: MotionData) -> None:
    windows = data.train.batch(0, 3)
    layout = StateLayout(include_hands=False)
    motion = decode_motion(
        layout, pack_windows(layout, windows)[:, None].repeat(1, 2, 1, 1), windows.T_world_cpf[:, None], data.body
    )
    joints = windows.joints[:, None].repeat(1, 2, 1, 1, 1)
    joints[..., 2] -= 1.0
    joints[1, 0, ..., 2] += 2.0
    joints[2, 1] = windows.joints[2]  # a tie is wrong: the truth has to win
    found = discriminate(Ranked(PERCEPTUAL_PRESETS["test"]), windows, motion._replace(joints22=joints), rows_at_once=2)
    assert found.accuracy == pytest.approx(4 / 6) and found.wrong_count == pytest.approx(1.0)


def test_learning_rate() -> None:
    options = {"peak": 1.0, "warmup": 10, "schedule": "cosine"}
    rates = [learning_rate_at(iteration, 100, **options) for iteration in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) > 0.97 and rates[-1] < 0.01
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate_at(0, 100, peak=1.0, warmup=0, schedule="constant") == 1.0


def test_presets_follow_the_paper() -> None:
    paper = PERCEPTUAL_TRAINING_PRESETS["paper"]
    assert (paper.negatives_per_clip, paper.last_steps, paper.optimizer_steps_per_generation) == (15, 3, 1)
    assert (paper.clips, paper.learning_rate, paper.negatives) == (16, 1e-4, "samples")
    for config in PERCEPTUAL_TRAINING_PRESETS.values():
        assert config.preset in PERCEPTUAL_PRESETS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clips": 0}, "--clips must be at least 1"),
        ({"learning_rate": 0.0}, "--learning-rate must be positive"),
        ({"learning_rate": 1e300}, "--learning-rate must be positive and at most 1, got 1e.300"),
        ({"seed": -1}, r"--seed must be a whole number from 0 to 2\^64 - 1, got -1"),
        ({"seed": 2**64}, "--seed must be a whole number"),
        ({"negatives_per_clip": 7}, r"\(7\) can't exceed --samples-per-clip x --last-steps \(2 x 3\)"),
        ({"last_steps": 5, "negatives_per_clip": 1}, r"--last-steps \(5\) can't exceed --sampler.steps \(4\)"),
        ({"clips_per_generation": 2}, r"--clips-per-generation \(2\) must be at least --clips \(3\)"),
    ],
)
def test_configuration_errors(base: PerceptualTrainingConfig, change: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(base, **change)


def test_a_prior_that_is_not_there(base: PerceptualTrainingConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not found"):
        train_perceptual(dataclasses.replace(base, prior=tmp_path / "nowhere", output=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_parts_add_up_to_one_step(base: PerceptualTrainingConfig, tmp_path: Path) -> None:
    """Weights and measures are those of one part, up to rounding; the parts are what passes through the network."""
    whole = dataclasses.replace(base, output=tmp_path / "whole", iterations=3)
    parts = dataclasses.replace(whole, output=tmp_path / "parts", accumulate=3)
    sizes, real = [], perceptual.score_candidates
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            perceptual, "score_candidates", lambda model, part: sizes.append(len(part.mask)) or real(model, part)
        )
        train_perceptual(parts)
    assert sizes == [1] * 9
    train_perceptual(whole)
    ours, theirs = (load_model(f, PerceptualModel, PerceptualConfig, prefer="last")[0].state_dict() for f in (
        tmp_path / "parts", tmp_path / "whole"
    ))  # fmt: skip
    for name in theirs:
        # AdamW's first steps divide gradients by their own size: rounding of the small ones counts
        torch.testing.assert_close(ours[name], theirs[name], atol=5e-5, rtol=0)
    rows, others = read_metrics(tmp_path / "parts"), read_metrics(tmp_path / "whole")
    for row, other in zip(rows, others, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    with pytest.raises(InputError, match=r"--clips \(3\) must be a multiple of --accumulate \(2\)"):
        dataclasses.replace(base, accumulate=2)
