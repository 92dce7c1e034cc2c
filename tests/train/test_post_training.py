"""The loop that post-trains any policy: what it does not do (wait for the device, grow), and what it does when
something fails."""

from __future__ import annotations

import itertools
import math
import os
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mgrpo.errors import InputError, MgrpoError
from mgrpo.execution.distributed import open_processes
from mgrpo.execution.precision import NetworkPrecision
from mgrpo.grpo.policy import PlainPolicy
from mgrpo.grpo.update import PolicyLossConfig
from mgrpo.grpo.window import StepWindowConfig
from mgrpo.kernels import _checks
from mgrpo.models import host
from mgrpo.runs.checkpoints import find_checkpoint, read_checkpoint
from mgrpo.runs.metric_log import read_metrics
from mgrpo.terminal.interrupt import TrainingInterrupted
from mgrpo.train import motion_task, prepared_policy
from mgrpo.train.gold_watch import GoldWatch
from mgrpo.train.grpo_config import ExecutionConfig
from mgrpo.train.post_training import PostTraining
from tests.train import motion_files as files
from tests.train.reaching_task import CONFIG, Network, Reach, SameGoals, train

CPU = torch.device("cpu")


def test_a_policy_of_another_kind_learns_another_reward(tmp_path: Path) -> None:
    config = replace(CONFIG, output=tmp_path / "run", iterations=120, group_size=16, validate_every=0)
    train(config, SameGoals())
    near = [row["rewards/near/mean"] for row in read_metrics(tmp_path / "run")]
    spread = torch.tensor(near[:20]).std()
    assert sum(near[-20:]) / 20 > sum(near[:20]) / 20 + 4 * float(spread)
    row = read_metrics(tmp_path / "run")[0]
    assert row["spread"] > 0 and row["ratio/first_log_max"] == 0 and row["decode"] > 0


class NoHostReads(TorchDispatchMode):
    """Refuses what a GPU would have to be waited for."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "item")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.WAITING or (name.startswith("index") and any(_is_mask(part) for part in args[1:])):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def _is_mask(part: object) -> bool:
    if isinstance(part, (list, tuple)):
        return any(_is_mask(one) for one in part)
    return isinstance(part, Tensor) and part.dtype == torch.bool


def test_the_check_for_host_reads_finds_them() -> None:
    tensor = torch.ones(3)
    for wait in (lambda: tensor.sum().item(), lambda: bool(tensor.any()), lambda: tensor[tensor > 0]):
        with pytest.raises(AssertionError, match="waits for the device"), NoHostReads():
            wait()
    with NoHostReads():
        torch.where(tensor > 0, tensor, 0.0).sum()


def motion_training(folder: Path, **changes: Any) -> tuple[PostTraining, Any]:
    """The real task at its smallest."""
    from mgrpo.diffusion.config import SamplerConfig
    from mgrpo.models.denoiser import Denoiser, DenoiserConfig
    from mgrpo.models.perceptual import PerceptualConfig, PerceptualModel
    from mgrpo.runs.stored_models import load_model
    from mgrpo.train.grpo_config import GrpoConfig
    from mgrpo.train.motion_data import MotionDataConfig, load_motion_data
    from mgrpo.train.motion_task import MotionTask

    config = GrpoConfig(
        prior=files.write_prior(folder / "prior"), perceptual=files.write_perceptual(folder / "perceptual"),
        data=MotionDataConfig(
            motion=str(files.write_clips(folder / "clips")), length=8, validation=("made_up_3",),
            held_out=("made_up_4",),
        ),
        conditions=2, group_size=3, sampler=SamplerConfig(steps=6), device="cpu", **changes,
    )  # fmt: skip
    policy = load_model(config.prior, Denoiser, DenoiserConfig)[0]
    device = torch.device("cpu")
    perceptual = load_model(config.perceptual, PerceptualModel, PerceptualConfig)[0]
    task = MotionTask(config, load_motion_data(config.data, seed=0), policy, perceptual, device)
    with open_processes("cpu") as processes:
        return PostTraining(policy, task, config, processes, NetworkPrecision("fp32", device)), config


CARRIED: dict[str, dict[str, Any]] = {
    "motion": {},
    "second pass": {"execution": ExecutionConfig(reuse_graphs="no", checkpoint_blocks=True)},
    "prior beside": {"loss": PolicyLossConfig(kl_coef=0.1, step_weight="inv_snr", timestep_fraction=0.5)},
    "window": {
        "window": StepWindowConfig(size=2, quiet_outside=True), "execution": ExecutionConfig(micro_conditions=1),
    },
    "another": {},
}  # fmt: skip
"""Ways to carry out an iteration; the last one is of another policy."""


@pytest.mark.parametrize("kind", CARRIED)
def test_nothing_waits_for_the_device_inside_an_iteration(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_checks, "readable", lambda tensor: False)  # as on a GPU
    monkeypatch.setattr(host, "can_read", lambda tensor: False)
    if kind != "another":
        training, _ = motion_training(tmp_path, **CARRIED[kind])
    else:
        with open_processes("cpu") as processes:
            training = PostTraining(
                PlainPolicy(Network()), Reach(), CONFIG, processes, NetworkPrecision("fp32", processes.device)
            )
    for iteration in range(2):  # tables are made in the first
        plan, parts = training.plan(iteration), training.draw(iteration)
        with NoHostReads() if iteration else torch.enable_grad():
            sampled = training.sample(plan, parts)
            trial = training.judge(sampled)
            statistics = [training.differentiate(0, sampled[0], trial, plan)]
            torch.nn.utils.clip_grad_norm_(training.trained, 1.0)
            metrics = training.metrics(trial, statistics)
    assert math.isfinite(float(metrics["reward"]))


class Failing(Reach):
    """Everything is in order until iteration ``at``."""

    def __init__(self, at: int, reward: float | Exception) -> None:
        self.at, self.reward = at, reward

    def seen(self, batch, *, iteration, first, members):
        self.iteration = iteration
        return super().seen(batch, iteration=iteration, first=first, members=members)

    def score(self, x0, batch):
        scored = super().score(x0, batch)
        if self.iteration < self.at:
            return scored
        if isinstance(self.reward, Exception):
            raise self.reward
        return scored._replace(rewards=torch.full_like(scored.rewards, self.reward))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(
    ("reward", "error"),
    [
        (math.nan, "no sample of iteration 4 could be scored .*; the state before it is saved"),
        (RuntimeError("reward broke"), "reward broke"),
    ],
)
def test_only_the_iteration_that_fails_is_lost(
    tmp_path: Path, reward: float | Exception, error: str, steps: int
) -> None:
    config = replace(CONFIG, iterations=6, checkpoint_every=100, validate_every=0, optimizer_steps=steps)
    with pytest.raises((MgrpoError, RuntimeError), match=error):
        train(replace(config, output=tmp_path / "run"), Failing(3, reward))
    whole = train(replace(config, output=tmp_path / "whole", iterations=3))
    saved = read_checkpoint(next((tmp_path / "run" / "checkpoints").glob("step_*")))
    assert saved.step == 3
    restored = PlainPolicy(Network())
    saved.restore(restored)
    assert all(torch.equal(a, b) for a, b in zip(restored.parameters(), whole.parameters(), strict=True))
    # and it goes on as if nothing had happened
    resumed = train(replace(config, output=tmp_path / "run", resume=True))
    unbroken = train(replace(config, output=tmp_path / "unbroken"))
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), unbroken.parameters(), strict=True))


def test_a_later_optimiser_step_that_fails_says_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, output=tmp_path / "run", validate_every=0, checkpoint_every=1, optimizer_steps=2)
    clip, calls = torch.nn.utils.clip_grad_norm_, itertools.count()

    def overflowing(*arguments: Any) -> Tensor:
        norm = clip(*arguments)
        return norm * math.nan if next(calls) == 5 else norm

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", overflowing)
    with pytest.raises(MgrpoError, match="became nan in iteration 3; an earlier optimiser step of it has moved"):
        train(config)
    assert [folder.name for folder in (config.output / "checkpoints").glob("step_*")] == ["step_00000002"]


def test_memory_does_not_grow_over_2000_iterations(tmp_path: Path) -> None:
    sizes: list[int] = []

    class Watched(Reach):
        def draw(self, iteration, first, size):
            if iteration % 400 == 399:
                sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
            return super().draw(iteration, first, size)

    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    config = replace(CONFIG, iterations=2000, conditions=2, validate_every=0, checkpoint_every=400)
    train(replace(config, output=tmp_path / "run"), Watched())
    assert len(sizes) == 5 and sizes[4] - sizes[0] < 6 << 20, [size >> 10 for size in sizes]  # 4 KiB an iteration


class Interrupting(Reach):
    """Every start of the training gets Ctrl-C in its first iteration."""

    def __init__(self) -> None:
        self.told = False

    def score(self, x0, batch):
        if not self.told:
            self.told = True
            os.kill(os.getpid(), signal.SIGINT)
        return super().score(x0, batch)


def test_interrupted_twenty_times_it_is_the_run_that_never_was(tmp_path: Path) -> None:
    """With everything that has a state: optimiser, average, moving window, several steps, evaluations and patience."""
    config = replace(
        CONFIG, iterations=21, optimizer_steps=2, ema=0.9, warmup=5, schedule="cosine", validate_every=3,
        patience=100, window=StepWindowConfig(size=2, move_every=4, quiet_outside=True),
        loss=PolicyLossConfig(timestep_fraction=0.5, kl_coef=0.01), checkpoint_every=50,
    )  # fmt: skip
    whole = train(replace(config, output=tmp_path / "whole"))
    starts = 0
    for starts in range(1, 30):
        try:
            parts = train(replace(config, output=tmp_path / "parts", resume=starts > 1), Interrupting())
        except TrainingInterrupted:
            continue
        break
    assert starts >= 21
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    ours, theirs = (read_checkpoint(find_checkpoint(tmp_path / name, prefer="last")) for name in ("parts", "whole"))
    for mine, other in ((ours.model_tensors, theirs.model_tensors), (ours.optimizer_tensors, theirs.optimizer_tensors)):
        assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
    assert ours.state == theirs.state
    untimed = [
        [
            {key: value for key, value in row.items() if "time" not in key and not key.startswith("system/")}
            for row in read_metrics(tmp_path / name)
        ]
        for name in ("parts", "whole")
    ]
    assert untimed[0] == untimed[1]


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train(replace(CONFIG, output=tmp_path / "plain"))
    backwards = itertools.count(2_000_000_000, -100_000)
    monkeypatch.setattr(time, "time", lambda: float(next(backwards)))
    jumped = train(replace(CONFIG, output=tmp_path / "jumped"))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), jumped.parameters(), strict=True))
    for row in read_metrics(tmp_path / "jumped"):
        assert 0 < row["step_time"] < 60 and 0 <= row["time/rollout"] <= row["step_time"]


def training_of(task: Reach, **changes: Any) -> PostTraining:
    with open_processes("cpu") as processes:
        return PostTraining(
            PlainPolicy(Network()), task, replace(CONFIG, **changes), processes, NetworkPrecision("fp32", CPU)
        )


class Alike(Reach):
    """The members of the first ``count`` groups score alike: those groups are dead."""

    def __init__(self, count: int) -> None:
        self.count = count

    def score(self, x0, batch):
        scored = super().score(x0, batch)
        alike = scored.rewards.clone()
        alike[: self.count] = 1.0
        return scored._replace(rewards=alike)


def pull_to_the_prior(dead: int) -> list[Tensor]:
    """What the KL term adds to the gradients where so many of the six groups are dead."""
    gradients = []
    for kl_coef in (0.0, 1e-2):
        training = training_of(
            Alike(dead), loss=PolicyLossConfig(kl_coef=kl_coef), execution=ExecutionConfig(reuse_graphs="no")
        )
        with torch.no_grad():
            training.policy.network.layers[2].bias.add_(0.01)  # away from the prior
        plan, parts = training.plan(0), training.draw(0)
        sampled = training.sample(plan, parts)
        trial = training.judge(sampled)
        assert int(trial.result.alive.sum()) == CONFIG.conditions - dead
        training.differentiate(0, sampled[0], trial, plan)
        gradients.append([parameter.grad for parameter in training.trained])
    return [b - a for a, b in zip(*gradients, strict=True)]


def test_groups_that_teach_nothing_are_not_pulled_to_the_prior() -> None:
    """The KL term is a mean over living groups, as its denominator counts them. The shift of the last bias moves every
    sample's prediction alike, so its share of the mean does not depend on how many groups live."""
    torch.testing.assert_close(pull_to_the_prior(4)[-1], pull_to_the_prior(0)[-1], rtol=1e-3, atol=0)
    assert not any(gradient.any() for gradient in pull_to_the_prior(6))


def test_the_prior_beside_is_counted() -> None:
    """Its predictions are network calls like all others; each trained step has one for every sample."""
    plain, beside = training_of(Reach()), training_of(Reach(), loss=PolicyLossConfig(kl_coef=0.1))
    spent = []
    for training in (plain, beside):
        plan, parts = training.plan(0), training.draw(0)
        sampled = training.sample(plan, parts)
        training.differentiate(0, sampled[0], training.judge(sampled), plan)
        spent.append(training.take_calls())
        assert not any(training.take_calls().values())
    # the first state is one for the group, and so is its prediction
    more = CONFIG.conditions * (1 + 3 * CONFIG.group_size)
    assert spent[1] == {**spent[0], "encode": spent[0]["encode"] + 4 * CONFIG.conditions,
                        "decode": spent[0]["decode"] + more}  # fmt: skip


def test_graphs_that_compiled_networks_forget_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled network takes the rollout's trained steps with gradients enabled, for the second pass's kernels."""
    monkeypatch.setattr(prepared_policy, "compile_function", lambda function: function)
    spent = []
    for compiled in (False, True):
        training = training_of(Reach(), execution=ExecutionConfig(reuse_graphs="no", compile=compiled))
        plan, parts = training.plan(0), training.draw(0)
        sampled = training.sample(plan, parts)
        training.differentiate(0, sampled[0], training.judge(sampled), plan)
        spent.append(training.take_calls())
    assert spent[0] == spent[1] and spent[0]["decode_with_graph"] > 0


class Gold(Reach):
    """Evaluations that say what the test wants."""

    def __init__(self, values: list[float]) -> None:
        self.values = iter(values)

    def gold(self, policy):
        return {"error": next(self.values)}


def test_it_stops_when_the_gold_measure_gets_no_better(tmp_path: Path) -> None:
    config = replace(CONFIG, output=tmp_path / "run", iterations=20, validate_every=1, patience=3, checkpoint_every=100)
    train(config, Gold([5.0, 4.0, 4.5, 4.2, 4.0, 1.0]))
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5]
    steps = sorted(folder.name for folder in (tmp_path / "run" / "checkpoints").glob("step_*"))
    assert [int(name.removeprefix("step_")) for name in steps] == [2, 5]  # best and last
    with pytest.raises(InputError, match="--gold nothing is not among the measures; there are error"):
        train(replace(config, output=tmp_path / "other", gold="nothing"), Gold([1.0]))


def test_evaluations_that_measure_nothing_are_no_better(tmp_path: Path) -> None:
    """Not even the first one, which has nothing to be compared with."""
    config = replace(CONFIG, output=tmp_path / "run", iterations=20, validate_every=1, patience=3, checkpoint_every=100)
    train(config, Gold([math.nan, 4.0, 3.0, math.nan, 3.5, 3.1, 1.0]))
    assert len(read_metrics(tmp_path / "run")) == 6
    assert read_checkpoint(find_checkpoint(tmp_path / "run")).step == 3  # the best one
    train(replace(config, output=tmp_path / "never"), Gold([math.nan] * 3))
    assert len(read_metrics(tmp_path / "never")) == 3


def test_motion_that_can_not_be_measured_is_no_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Feet that never touch the ground don't slide: that is no reason to end a run that is decided by their sliding."""
    training, config = motion_training(tmp_path, gold="fs_mm_per_contact_frame")
    means = {"fs_mm_per_contact_frame": math.nan, "jitter_ratio": math.nan, "mpjpe_mm": 90.0}
    monkeypatch.setattr(motion_task, "evaluate", lambda *_, **__: SimpleNamespace(means=lambda: means))
    found = training.task.gold(training.policy)
    assert set(found) == {"fs_mm_per_contact_frame", "mpjpe_mm"}
    watch = GoldWatch(config)
    assert not watch.see(found) and watch.latest is None


def test_patience_survives_a_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(CONFIG, output=tmp_path / "run", validate_every=1, patience=3, checkpoint_every=1)
    train(replace(config, iterations=3), Gold([4.0, 4.5, 4.2]))
    config = replace(config, iterations=20, resume=True)
    train(config, Gold([4.1, 1.0]))
    assert len(read_metrics(tmp_path / "run")) == 4
    capsys.readouterr()
    train(config, Gold([1.0]))  # it has ended
    assert len(read_metrics(tmp_path / "run")) == 4
    assert "stopped after 4 iterations: error was no better than 4 in the last 3 evaluations" in capsys.readouterr().err
    train(replace(config, patience=4), Gold([4.6]))  # which more patience changes
    assert len(read_metrics(tmp_path / "run")) == 5


@pytest.mark.parametrize("steps", [1, 2])
def test_the_quadratic_term_has_no_slope_in_the_first_step(tmp_path: Path, steps: int) -> None:
    """Which is why --loss.ratio-shift-correction is refused where there is no second one."""
    config = replace(CONFIG, iterations=2, validate_every=0, optimizer_steps=steps)
    plain = train(replace(config, output=tmp_path / "plain"))
    shifted = train(replace(config, output=tmp_path / "shifted", loss=PolicyLossConfig(ratio_shift_correction=True)))
    same = all(torch.equal(a, b) for a, b in zip(plain.parameters(), shifted.parameters(), strict=True))
    assert same == (steps == 1)


@pytest.mark.parametrize(
    "execution", [ExecutionConfig(reuse_graphs="no"), ExecutionConfig(micro_conditions=2), ExecutionConfig(prefetch=0)]
)
def test_how_it_is_carried_out_changes_rounding_only(tmp_path: Path, execution: ExecutionConfig) -> None:
    plain = train(replace(CONFIG, output=tmp_path / "plain", learning_rate=1e-4))
    other = train(replace(CONFIG, output=tmp_path / "other", learning_rate=1e-4, execution=execution))
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
