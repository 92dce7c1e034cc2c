"""The baselines of GRPO: the same groups, exact resume, what each one learns from, and what its budget is."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mgrpo.diffusion.config import SamplerConfig
from mgrpo.diffusion.loss import LossWeights, count_frames, denoising_loss
from mgrpo.errors import InputError, MgrpoError
from mgrpo.execution.distributed import Processes
from mgrpo.execution.precision import NetworkPrecision
from mgrpo.grpo.perturbation import PerlinConfig
from mgrpo.grpo.task import Scored
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.motion import decode_motion
from mgrpo.models.state import pack_windows
from mgrpo.rewards import RewardBatch
from mgrpo.rewards.aligned_position import aligned_position_error
from mgrpo.rewards.joint_position import position_error
from mgrpo.rewards.joint_rotation import rotation_error
from mgrpo.rewards.joint_velocity import velocity_error
from mgrpo.runs.budget import run_budget
from mgrpo.runs.metric_log import read_metrics
from mgrpo.runs.stored_models import load_model
from mgrpo.terminal.interrupt import TrainingInterrupted
from mgrpo.train import finetune
from mgrpo.train.baseline import Baseline
from mgrpo.train.baseline_config import BaselineConfig, GeometricConfig
from mgrpo.train.dpo import DpoConfig, PreferenceTraining, train_dpo
from mgrpo.train.finetune import FinetuneConfig, Finetuning, train_finetune
from mgrpo.train.grpo import train_grpo
from mgrpo.train.grpo_config import GrpoConfig
from mgrpo.train.motion_data import MotionDataConfig
from mgrpo.train.motion_task import MotionTask, open_motion_task
from mgrpo.train.phases import Phases
from mgrpo.train.post_training import PostTraining
from mgrpo.train.reft import ReftConfig, RewardBackpropagation, train_reft
from mgrpo.train.run_config import NetworkExecution, RewardWeights
from tests.train import motion_files as files

CPU = torch.device("cpu")
ALONE = Processes(0, 1, CPU)

CASES: dict[str, tuple[type[BaselineConfig], dict[str, Any]]] = {
    "denoise": (FinetuneConfig, {}),
    "geometric": (FinetuneConfig, {"variant": "geometric", "levels": 2, "schedule": "cosine", "warmup": 2}),
    "best-of-group": (FinetuneConfig, {"variant": "best-of-group", "perlin": PerlinConfig(per_member=True)}),
    "dpo": (DpoConfig, {"levels": 2, "train_windows": 6}),
    "dpo online": (DpoConfig, {"mode": "online"}),
    "dpo online, refreshed": (DpoConfig, {"mode": "online", "refresh_every": 2, "ema": 0.5}),
    "dpo truth": (DpoConfig, {"winner": "truth", "rewards": RewardWeights(visual=0), "perceptual": None}),
    "reft": (ReftConfig, {"ema": 0.9}),
    "reft, three steps": (ReftConfig, {"last_steps": 3, "normalize": False, "perlin": PerlinConfig(per_member=True)}),
}
TRAINS: dict[type[BaselineConfig], Callable[[Any], Path]] = {
    FinetuneConfig: train_finetune, DpoConfig: train_dpo, ReftConfig: train_reft
}  # fmt: skip
METHODS: dict[type[BaselineConfig], type[Baseline]] = {
    FinetuneConfig: Finetuning, DpoConfig: PreferenceTraining, ReftConfig: RewardBackpropagation
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baselines")
    files.write_clips(folder / "clips")
    files.write_prior(folder / "prior")
    files.write_perceptual(folder / "perceptual")
    return folder


@pytest.fixture
def options(folder: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "prior": folder / "prior", "perceptual": folder / "perceptual", "output": tmp_path / "run",
        "data": MotionDataConfig(
            motion=str(folder / "clips"), length=8, validation=("made_up_3",), held_out=("made_up_4",)
        ),
        "iterations": 3, "conditions": 3, "group_size": 4, "learning_rate": 1e-3, "sampler": SamplerConfig(steps=6),
        "validate_every": 2, "checkpoint_every": 1, "device": "cpu",
    }  # fmt: skip


def case(name: str, options: dict[str, Any], **changes: Any) -> BaselineConfig:
    config_class, own = CASES[name]
    return config_class(**{**options, **own, **changes})


@pytest.mark.parametrize("name", ["denoise", "dpo"])
def test_a_weight_of_hands_needs_hands(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"--loss.hand-rotmats has no effect here: the prior has no hands"):
        run(case(name, options, loss=LossWeights(hand_rotmats=0.3)))
    assert not options["output"].exists()


def run(config: BaselineConfig) -> dict[str, Tensor]:
    """Train; the weights."""
    return weights(TRAINS[type(config)](config))


def weights(path: Path) -> dict[str, Tensor]:
    return load_model(path, Denoiser, DenoiserConfig, prefer="last")[0].state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def timeless(folder: Path) -> list[dict[str, float]]:
    return [
        {key: value for key, value in row.items() if "time" not in key and not key.startswith("system/")}
        for row in read_metrics(folder)
    ]


def method(config: BaselineConfig) -> Any:
    """A method outside of its loop."""
    policy, task = open_motion_task(config, CPU)
    return METHODS[type(config)](policy, task, config, ALONE, NetworkPrecision("fp32", CPU))


def gradients(baseline: Baseline) -> list[Tensor]:
    return [p.grad.clone() for p in baseline.policy.parameters() if p.requires_grad and p.grad is not None]


@pytest.mark.parametrize("name", CASES)
def test_three_iterations(name: str, options: dict[str, Any]) -> None:
    config = case(name, options)
    before, after = weights(config.prior), run(config)
    log = read_metrics(config.output)
    assert [row["step"] for row in log] == [1, 2, 3]
    for row in log:
        numbers = [value for key, value in row.items() if not key.startswith("validation") and value is not None]
        assert all(math.isfinite(value) for value in numbers), row
        assert row["grad_norm"] > 0 and row["optimizer_steps"] == 1
    assert "validation/mpjpe_mm" in log[1] and "validation/mpjpe_mm" not in log[0]
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved and not any(key.startswith("latent_from_cond") for key in moved)
    assert ("reward" in log[0]) == (name not in ("denoise", "geometric"))


@pytest.mark.parametrize("name", CASES)
def test_resuming_repeats_the_uninterrupted_run_bit_for_bit(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    config = case(name, options, schedule="constant", iterations=5)
    whole = run(config)
    for iterations in (1, 3, 5):  # 1 and 3 lie inside of the time for which one policy draws
        resumed = run(replace(config, output=tmp_path / "parts", resume=True, iterations=iterations))
    assert same(whole, resumed)
    plain = [{k: v for k, v in row.items() if not k.startswith("validation")} for row in timeless(config.output)]
    parts = [{k: v for k, v in row.items() if not k.startswith("validation")} for row in timeless(tmp_path / "parts")]
    assert plain == parts


@pytest.mark.parametrize("name", ["denoise", "geometric", "best-of-group", "dpo", "reft"])
def test_how_it_is_carried_out_changes_rounding_only(name: str, options: dict[str, Any]) -> None:
    one, two = (
        method(case(name, options, conditions=4, train_windows=0, execution=NetworkExecution(micro_conditions=size)))
        for size in (0, 3)
    )
    found = [part.differentiate(7, part.draw(7), Phases(CPU, wait=False)) for part in (one, two)]
    for a, b in zip(gradients(one), gradients(two), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * float(a.abs().max()) + 1e-9, rtol=1e-3)
    assert float(found[0].metrics["loss"]) == pytest.approx(float(found[1].metrics["loss"]), rel=1e-4)


def test_groups_are_those_of_grpo(options: dict[str, Any]) -> None:
    """The same clips, conditions, noise, sampler and rewards in every iteration."""
    config = GrpoConfig(**options)
    policy, task = open_motion_task(config, CPU)
    grpo = PostTraining(policy, task, config, ALONE, NetworkPrecision("fp32", CPU))
    sampled = grpo.sample(grpo.plan(5), grpo.draw(5))
    trial = grpo.judge(sampled)
    dpo = method(case("dpo", options, train_windows=0))
    groups = dpo.draw_groups(dpo.prepared, 5, dpo.draw(5))
    # alike but for rounding: the two pass their samples through the network in batches of other sizes
    torch.testing.assert_close(groups.x0[0], sampled[0].x0, atol=1e-4, rtol=0)
    ranking, _, found = dpo.rank(groups, dpo.config.advantage)
    torch.testing.assert_close(found.rewards, trial.rewards, atol=1e-5, rtol=1e-4)
    assert torch.equal(ranking.best, trial.result.advantages.argmax(1))
    assert torch.equal(ranking.worst, trial.result.advantages.argmin(1))
    reft = method(case("reft", options))
    found = reft.differentiate(5, reft.draw(5), Phases(CPU, wait=False))
    torch.testing.assert_close(found.rewards, trial.rewards, atol=1e-5, rtol=1e-4)


def test_budgets_count_alike(options: dict[str, Any]) -> None:
    """N = 6 steps, G = 4, B = 3. The first state is shared by the group, and so is the second one's prediction's
    input only after it was noised: one call for the group, then five for every member."""
    sampling = 3 * (1 + 5 * 4)
    expected = {
        "denoise": (3, 3),
        "geometric": (6, 6),  # two levels
        "best-of-group": (3 * 4 * 6 + 3, 3),  # every member sees its own condition: nothing is shared
        "dpo": (sampling + 2 * (2 * 3 + 2 * 3), 2 * 2 * 3),  # policy and reference, two levels
        "reft": (sampling, 3 * 4),
        "reft, three steps": (3 * 4 * 6, 3 * 4 * 3),
    }
    for name, (decode, graph) in expected.items():
        config = case(name, options, output=options["output"] / name, iterations=2, validate_every=0)
        run(config)
        budget = run_budget(config.output)
        for row in read_metrics(config.output):
            assert (row["decode"], row["decode_with_graph"]) == (decode, graph), name
            assert row["network_units"] == decode + 2 * graph
        assert budget.network_units == 2 * (decode + 2 * graph) and budget.optimizer_steps == 2
        assert (budget.decode, budget.decode_with_graph) == (2 * decode, 2 * graph) and budget.encode > 0
    config = GrpoConfig(**{**options, "output": options["output"] / "grpo", "iterations": 2, "optimizer_steps": 3})
    train_grpo(config)
    budget = run_budget(config.output)
    assert budget.optimizer_steps == 6
    rows = read_metrics(config.output)
    assert budget.network_units == sum(row["decode"] + 2 * row["decode_with_graph"] for row in rows) > 0


def test_denoising_is_the_priors_loss(options: dict[str, Any]) -> None:
    """Two draws of noise for each window, averaged; gradients too."""
    baseline = method(case("denoise", options, levels=2))
    windows = baseline.draw(4)
    found = baseline.differentiate(4, windows, Phases(CPU, wait=False))
    ours = gradients(baseline)
    policy = baseline.policy
    policy.zero_grad()
    (part,) = baseline.parts(windows)
    total = torch.zeros(())
    levels = set()
    for level in range(2):
        draws = baseline.draws(4, level, part)
        levels |= set(draws.t.tolist())
        total = total + denoising_loss(
            policy, windows, policy.layout, baseline.task.schedule, t=draws.t, noise=draws.noise,
            counts=count_frames(policy.layout, windows),
        ).total / 2  # fmt: skip
    total.backward()
    assert len(levels) > 3, "the draws repeat themselves"
    assert float(found.metrics["loss"]) == pytest.approx(float(total.detach()), rel=1e-5)
    for a, b in zip(ours, gradients(baseline), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-4)


def test_geometric_errors_are_added_where_there_is_little_noise(options: dict[str, Any]) -> None:
    """Against the rewards' plain functions, value and gradient."""
    geometric = GeometricConfig(level=500, position=2.0, aligned_position=0.5, rotation=0.3, velocity=0.1)
    config = case("geometric", options, levels=1, conditions=6, geometric=geometric)
    baseline = method(config)
    windows = baseline.draw(2)
    found = baseline.differentiate(2, windows, Phases(CPU, wait=False))
    ours = gradients(baseline)
    baseline.policy.zero_grad()
    (part,) = baseline.parts(windows)
    draws = baseline.draws(2, 0, part)
    near = draws.t <= 500
    assert 0 < int(near.sum()) < 6
    task, policy = baseline.task, baseline.policy
    loss = denoising_loss(policy, windows, policy.layout, task.schedule, t=draws.t, noise=draws.noise)
    motion = decode_motion(policy.layout, loss.x0_pred[:, None], windows.T_world_cpf[:, None], task.body)
    batch = RewardBatch(motion, windows)
    total = loss.total
    for weight, error in ((2.0, position_error), (0.5, aligned_position_error), (0.3, rotation_error),
                          (0.1, velocity_error)):  # fmt: skip
        total = total + weight * (error(batch)[:, 0] * near).sum() / 6
    total.backward()
    assert float(found.metrics["loss"]) == pytest.approx(float(total.detach()), rel=1e-4)
    for a, b in zip(ours, gradients(baseline), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3 * float(b.abs().max()), rtol=2e-3)


def favour(monkeypatch: pytest.MonkeyPatch, best: int, worst: int, alike: int | None = None) -> None:
    """From now on these members of every group are the best and the worst; those of group ``alike`` are equal."""
    real = MotionTask.score

    def score(self: MotionTask, x0: Tensor, batch: Any) -> Scored:
        scored = real(self, x0, batch)
        order = torch.zeros(x0.shape[1])
        order[best], order[worst] = 1.0, -1.0
        rewards = order[None, :, None].expand_as(scored.rewards).clone()
        if alike is not None:
            rewards[alike] = 0.0
        return scored._replace(rewards=rewards)

    monkeypatch.setattr(MotionTask, "score", score)


def test_the_best_of_a_group_is_learned_under_its_condition(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    favour(monkeypatch, best=2, worst=0)
    baseline = method(case("best-of-group", options))
    windows = baseline.draw(1)
    found = baseline.differentiate(1, windows, Phases(CPU, wait=False))
    assert float(found.metrics["learned_groups"]) == 1
    groups = baseline.draw_groups(baseline.prepared, 1, windows)
    (part,) = groups.parts
    x0, draws = groups.x0[0][:, 2], baseline.draws(1, 0, part)
    cond = groups.rollouts[0].cond[2::4]  # every member sees its own; the group has four
    abar = baseline.task.schedule.alpha_bar[draws.t].float()[:, None, None]
    x_t = abar.sqrt() * x0 + (1 - abar).sqrt() * draws.noise
    f = baseline.policy.decode(x_t[:, None], draws.t, baseline.policy.encode(cond, draws.t))[:, 0]
    level = baseline.task.schedule.training_weight_f32[draws.t][:, None]
    square = (f - x0) ** 2
    terms = {"body_rotmats": square[..., 16:205].mean(-1), "contacts": square[..., 205:226].mean(-1)}
    terms["betas"] = (square[..., :16] / torch.arange(1, 17)).mean(-1)
    expected = sum({"betas": 0.1, "body_rotmats": 1.0, "contacts": 0.1}[name] * (terms[name] * level).mean()
                   for name in terms)  # fmt: skip
    assert float(found.metrics["loss"]) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_what_is_learned_is_the_best_sample_of_groups_that_have_one(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    favour(monkeypatch, best=2, worst=0, alike=1)
    real, seen = finetune.regression_loss, []

    def watched(layout: Any, x0_pred: Tensor, x0: Tensor, **rest: Any) -> Any:
        seen.append((x0, rest["mask"]))
        return real(layout, x0_pred, x0, **rest)

    monkeypatch.setattr(finetune, "regression_loss", watched)
    baseline = method(case("best-of-group", options))
    windows = baseline.draw(1)
    found = baseline.differentiate(1, windows, Phases(CPU, wait=False))
    ((x0, mask),) = seen
    samples = baseline.draw_groups(baseline.prepared, 1, windows).x0[0]
    assert torch.equal(x0[[0, 2]], samples[[0, 2], 2]) and not torch.equal(samples[0, 2], samples[0, 0])
    assert mask.any(-1).tolist() == [True, False, True]
    assert float(found.metrics["learned_groups"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("winner", ["best", "truth"])
def test_the_pairs_of_dpo(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, winner: str) -> None:
    favour(monkeypatch, best=1, worst=3, alike=0)
    real, seen = PreferenceTraining._compare, []

    def watched(self: Any, iteration: int, level: int, part: Any, cond: Any, pair: Tensor, *rest: Tensor) -> Tensor:
        seen.append((pair, *rest))
        return real(self, iteration, level, part, cond, pair, *rest)

    monkeypatch.setattr(PreferenceTraining, "_compare", watched)
    baseline = method(case("dpo truth", options, winner=winner))
    windows = baseline.draw(1)
    found = baseline.differentiate(1, windows, Phases(CPU, wait=False))
    ((pair, usable, pairs),) = seen
    samples = baseline.draw_groups(baseline.reference, 1, windows).x0[0]
    truth = winner == "truth"
    assert torch.equal(pair[1:, 0], pack_windows(baseline.policy.layout, windows)[1:] if truth else samples[1:, 1])
    assert torch.equal(pair[1:, 1], samples[1:, 3])
    assert usable.tolist() == [truth, True, True] and int(pairs) == 2 + truth  # the recording beats them all
    assert float(found.metrics["dpo/pairs"]) == pytest.approx(int(pairs) / 3)


@pytest.mark.parametrize("winner", ["best", "truth"])
def test_dpo_compares_the_ends_of_a_group(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, winner: str
) -> None:
    """Steps of DPO lower the winner's error against the loser's at the noise that it was trained with."""
    favour(monkeypatch, best=1, worst=3)
    changes = {"winner": winner, "rewards": RewardWeights(), "perceptual": options["perceptual"], "beta": 50.0}
    changes["loss"] = LossWeights(level="constant")  # most levels would hardly count
    baseline = method(case("dpo truth", options, **changes))
    windows = baseline.draw(0)
    optimizer = torch.optim.SGD([p for p in baseline.policy.parameters() if p.requires_grad], lr=0.1)
    seen = []
    for _ in range(6):
        optimizer.zero_grad()
        seen.append(baseline.differentiate(0, windows, Phases(CPU, wait=False)).metrics)
        optimizer.step()
    first, last = ({name: float(value) for name, value in part.items()} for part in (seen[0], seen[-1]))
    assert first["dpo/z_mean"] == 0 and first["dpo/accuracy"] == 0.5 and first["dpo/z_std"] == 0
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-6) and first["dpo/m_w"] == first["dpo/m_w_reference"]
    assert last["dpo/z_mean"] > 0 and last["dpo/accuracy"] > 0.5 and last["dpo/z_std"] > 0
    assert last["loss"] < first["loss"] and last["dpo/m_w_reference"] == first["dpo/m_w_reference"]
    gap = (last["dpo/m_w"] - last["dpo/m_w_reference"]) - (last["dpo/m_l"] - last["dpo/m_l_reference"])
    assert last["dpo/z_mean"] == pytest.approx(-25 * gap, rel=1e-3)
    groups = baseline.draw_groups(baseline.drawing, 0, windows)
    error = baseline.task.joint_errors(groups.x0[0][:, 3], windows, ("rotation",))
    assert bool((error > 0).all())  # the loser is no recording


def test_who_draws_the_groups(options: dict[str, Any]) -> None:
    def drawn(name: str) -> list[bool]:
        """Whether the drawing network has the policy's weights after each of four iterations that move these."""
        baseline = method(case(name, options, ema=0.0))
        found = []
        for iteration in range(4):
            with torch.no_grad():
                for parameter in baseline.policy.parameters():
                    parameter.add_(0.01)
            baseline.differentiate(iteration, baseline.draw(iteration), Phases(CPU, wait=False))
            found.append(same(baseline.drawing.policy.state_dict(), baseline.policy.state_dict()))
        assert not same(baseline.reference.policy.state_dict(), baseline.policy.state_dict())
        return found

    assert drawn("dpo") == [False] * 4
    assert drawn("dpo online") == [True] * 4
    assert drawn("dpo online, refreshed") == [True, False, True, False]


def test_reft_follows_the_gradient_of_its_rewards(options: dict[str, Any]) -> None:
    """The difference of the whole objective along a direction of the last layer, all steps in the gradient."""
    config = case("reft, three steps", options, last_steps=6, sampler=SamplerConfig(steps=6, project=True))
    baseline = method(config)
    windows = baseline.draw(0)
    baseline.differentiate(0, windows, Phases(CPU, wait=False))
    bias = baseline.policy.decoders["body_rotmats"][-1].bias
    direction = bias.grad / bias.grad.norm()
    predicted, kept = float(bias.grad.norm()), bias.detach().clone()
    values = []
    for size in (-2e-3, 2e-3):
        with torch.no_grad():
            bias.copy_(kept + size * direction)
        values.append(float(baseline.differentiate(0, windows, Phases(CPU, wait=False)).metrics["loss"]))
    assert (values[1] - values[0]) / 4e-3 == pytest.approx(predicted, rel=0.02)


def test_reft_raises_the_reward(options: dict[str, Any]) -> None:
    """On windows that come again, with every step in the gradient."""
    config = case("reft", options, ema=0.0, last_steps=6, iterations=25, train_windows=3, validate_every=0)
    run(replace(config, checkpoint_every=100))
    rewards = [row["reward"] for row in read_metrics(config.output)]
    spread = torch.tensor(rewards[:5]).std().item()
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 3 * spread


def test_reft_weighs_rewards_by_their_spread(options: dict[str, Any]) -> None:
    baseline = method(case("reft", options, rewards=RewardWeights(2, 0, 1, 0, 0), min_spread=0.1))
    rewards = torch.tensor([[[1.0, 5.0], [3.0, 5.01], [math.nan, 1.0]]], requires_grad=True)
    value = baseline.objective(rewards)
    assert value[0, 0].item() == pytest.approx(2 * 1 / math.sqrt(2) + 5 / 0.1)  # the second's spread is below 0.1
    assert value[0, 2].item() == 0
    value.sum().backward()
    expected = torch.tensor([[[2 / math.sqrt(2), 10.0], [2 / math.sqrt(2), 10.0], [0.0, 0.0]]])
    torch.testing.assert_close(rewards.grad, expected)


@pytest.mark.parametrize("name", ["best-of-group", "dpo", "reft"])
def test_a_rollout_without_any_score_ends_the_run_and_keeps_the_state(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = "score_with_gradient" if name == "reft" else "score"
    real, calls = getattr(MotionTask, scorer), []

    def broken(self: MotionTask, x0: Tensor, batch: Any) -> Scored:
        calls.append(1)
        scored = real(self, x0, batch)
        return scored._replace(rewards=scored.rewards * math.nan) if len(calls) == 3 else scored

    monkeypatch.setattr(MotionTask, scorer, broken)
    label = name.replace("best-of-group", "finetune")
    with pytest.raises(MgrpoError, match=f"{label}: no sample of iteration 3 could be scored"):
        run(case(name, options, checkpoint_every=100, validate_every=0))
    assert load_model(options["output"], Denoiser, DenoiserConfig, prefer="last")[2].step == 2


@pytest.mark.parametrize("name", ["best-of-group", "dpo", "reft"])
def test_samples_that_cannot_be_scored_are_left_out(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = "score_with_gradient" if name == "reft" else "score"
    real = getattr(MotionTask, scorer)

    def broken(self: MotionTask, x0: Tensor, batch: Any) -> Scored:
        scored = real(self, x0, batch)
        rewards = scored.rewards.clone()
        rewards[0] = math.nan  # a whole group
        rewards[1, 0, 0] = math.nan
        return scored._replace(rewards=rewards)

    monkeypatch.setattr(MotionTask, scorer, broken)
    run(case(name, options, iterations=1, validate_every=0))
    row = read_metrics(options["output"])[0]
    assert row["unscored_samples"] == 5 and math.isfinite(row["grad_norm"]) and row["grad_norm"] > 0
    assert row.get("dpo/pairs", row.get("learned_groups", 2 / 3)) == pytest.approx(2 / 3)


def test_ctrl_c_saves_and_stops(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = case("dpo online", options, checkpoint_every=100, execution=NetworkExecution(prefetch=0))
    whole = run(config)
    real = MotionTask.draw

    def interrupting(self: MotionTask, iteration: int, first: int, size: int) -> Any:
        if iteration == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, iteration, first, size)

    stopped = replace(config, output=tmp_path / "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(MotionTask, "draw", interrupting)
        with pytest.raises(TrainingInterrupted):
            run(stopped)
    assert load_model(stopped.output, Denoiser, DenoiserConfig, prefer="last")[2].step == 2
    assert same(whole, run(replace(stopped, resume=True)))


def test_the_best_checkpoint_is_that_of_the_validation(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([5.0, 3.0, 4.0])
    monkeypatch.setattr(MotionTask, "gold", lambda self, policy: {"mpjpe_mm": next(values)})
    run(case("denoise", options, validate_every=1))
    assert load_model(options["output"], Denoiser, DenoiserConfig, prefer="best")[2].step == 2


def test_metrics_go_to_a_tracker(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, dict[str, float]]] = []
    fake = ModuleType("trackio")
    fake.__spec__ = ModuleSpec("trackio", None, origin=__file__)
    fake.init = lambda **given: SimpleNamespace(log=lambda numbers, step: sent.append((step, numbers)))  # type: ignore[attr-defined]
    fake.finish = lambda: sent.append((-1, {}))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", fake)
    config = case("denoise", options, iterations=2, track="trackio")
    run(config)
    rows = read_metrics(config.output)
    assert [step for step, _ in sent] == [1, 2, -1] and sent[0][1]["loss"] == rows[0]["loss"]
    run(replace(config, iterations=3, resume=True, track="none"))  # may change
    assert len(sent) == 3
