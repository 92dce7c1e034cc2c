"""How an iteration is carried out: what memory decides, blocks that are computed twice, the profile."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mgrpo.diffusion.config import SamplerConfig
from mgrpo.errors import InputError
from mgrpo.execution import compiled, memory
from mgrpo.execution.memory import free_bytes, plan_memory, saved_bytes
from mgrpo.grpo.policy import PlainPolicy
from mgrpo.models.denoiser import DENOISER_PRESETS, Denoiser, DenoiserConfig
from mgrpo.models.perceptual import PERCEPTUAL_PRESETS
from mgrpo.runs.checkpoints import find_checkpoint, read_checkpoint
from mgrpo.runs.metric_log import read_metrics
from mgrpo.runs.run_dir import RunDir
from mgrpo.runs.stored_models import load_model
from mgrpo.terminal.interrupt import TrainingInterrupted
from mgrpo.train.baseline_config import DpoConfig, FinetuneConfig, ReftConfig
from mgrpo.train.dpo import train_dpo
from mgrpo.train.finetune import train_finetune
from mgrpo.train.grpo import train_grpo
from mgrpo.train.grpo_config import ExecutionConfig, GrpoConfig
from mgrpo.train.motion_data import MotionDataConfig
from mgrpo.train.perceptual import PerceptualTrainingConfig, train_perceptual
from mgrpo.train.prior import PriorConfig, train_prior
from mgrpo.train.profile import Profile, matrix_product_rate
from mgrpo.train.reft import train_reft
from mgrpo.train.run_config import NetworkExecution
from tests.train import motion_files as files
from tests.train.reaching_task import Network, Reach

MIB = 1 << 20


def plan(free: int, **changes: object) -> memory.MemoryPlan:
    usual = {"conditions": 8, "steps": 5, "may_keep": True, "micro_conditions": 0, "reuse_graphs": "auto"}
    return plan_memory(MIB, free=free, **{**usual, **changes})


def test_graphs_are_kept_while_they_fit() -> None:
    assert plan(80 * MIB).keep_graphs and plan(80 * MIB).micro_conditions == 8
    tight = plan(79 * MIB)
    assert not tight.keep_graphs and tight.micro_conditions == 8  # of one step, all fit
    assert plan(6 * MIB).micro_conditions == 3 and plan(0).micro_conditions == 1
    assert not plan(1 << 40, may_keep=False).keep_graphs
    assert plan(0, reuse_graphs="yes").keep_graphs and not plan(1 << 40, reuse_graphs="no").keep_graphs
    assert plan(6 * MIB, micro_conditions=5).micro_conditions == 5


def test_what_autograd_keeps_is_counted_once() -> None:
    weight = torch.randn(100, 100, requires_grad=True)
    x = torch.randn(50, 100)
    there = {weight.untyped_storage().data_ptr()}
    assert saved_bytes(lambda: x @ weight, there) == 50 * 100 * 4
    assert saved_bytes(lambda: (x @ weight) * (x @ weight), there) == 3 * 50 * 100 * 4
    assert saved_bytes(lambda: x @ weight, set()) == 50 * 100 * 4  # the weight's own gradient needs x alone


def test_free_memory_is_known() -> None:
    assert 1 << 20 < free_bytes(torch.device("cpu")) < 1 << 50


def test_a_limit_of_the_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "max").write_text("5000000\n")
    (tmp_path / "used").write_text("1000000\n")
    monkeypatch.setattr(memory, "_CGROUP", ((str(tmp_path / "max"), str(tmp_path / "used")),))
    assert free_bytes(torch.device("cpu")) == 4_000_000
    (tmp_path / "max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) > 4_000_000


SMALL = DenoiserConfig(
    d_latent=16, d_feedforward=32, d_noise_emb=8, num_heads=2, encoder_layers=2, decoder_layers=2, include_hands=False
)


def test_blocks_computed_twice_keep_less_and_give_the_same_gradients() -> None:
    denoiser = Denoiser(SMALL, seed=1).eval()
    generator = torch.Generator().manual_seed(0)
    cond = torch.randn(2, 9, SMALL.d_cond, generator=generator)
    x_t, t = torch.randn(2, 3, 9, denoiser.layout.dim, generator=generator), torch.tensor([5, 900])
    there = {parameter.untyped_storage().data_ptr() for parameter in denoiser.parameters()}
    found = {}
    for again in (False, True):
        denoiser.checkpoint_blocks = again
        denoiser.zero_grad()
        result = denoiser.decode(x_t, t, denoiser.encode(cond, t))
        result.square().sum().backward()
        gradients = [parameter.grad.clone() for parameter in denoiser.parameters() if parameter.grad is not None]
        found[again] = (
            result.detach(), gradients, saved_bytes(lambda: denoiser.decode(x_t, t, denoiser.encode(cond, t)), there),
        )  # fmt: skip
    assert torch.equal(found[False][0], found[True][0])
    for a, b in zip(found[False][1], found[True][1], strict=True):
        assert torch.equal(a, b)
    assert found[True][2] < 0.6 * found[False][2]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> GrpoConfig:
    folder = tmp_path_factory.mktemp("execution")
    return GrpoConfig(
        prior=files.write_prior(folder / "prior"), perceptual=files.write_perceptual(folder / "perceptual"),
        data=MotionDataConfig(
            motion=str(files.write_clips(folder / "clips")), length=8, validation=("made_up_3",),
            held_out=("made_up_4",),
        ),
        iterations=4, conditions=4, group_size=3, sampler=SamplerConfig(steps=6), device="cpu", validate_every=0,
        checkpoint_every=1, learning_rate=1e-4,
    )  # fmt: skip


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_model(path, Denoiser, DenoiserConfig, prefer="last")[0].state_dict()


def test_a_resumed_run_computes_in_the_same_pieces(
    base: GrpoConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is free then: otherwise its rounding would be another."""
    from mgrpo.train import post_training

    monkeypatch.setattr(post_training, "free_bytes", lambda device: 1)
    whole = train_grpo(replace(base, output=tmp_path / "whole"))
    assert read_checkpoint(find_checkpoint(whole)).state["kept"]["memory"] == {
        "micro_conditions": 1, "keep_graphs": False,
    }  # fmt: skip
    parts = replace(base, output=tmp_path / "parts")
    train_grpo(replace(parts, iterations=2))
    monkeypatch.setattr(post_training, "free_bytes", lambda device: 1 << 40)
    resumed = train_grpo(replace(parts, resume=True))
    ours, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    asked = train_grpo(replace(parts, output=tmp_path / "asked", execution=ExecutionConfig(micro_conditions=2)))
    assert read_checkpoint(find_checkpoint(asked)).state["kept"]["memory"]["micro_conditions"] == 2


def test_blocks_computed_twice_train_alike(base: GrpoConfig, tmp_path: Path) -> None:
    plain = weights(train_grpo(replace(base, output=tmp_path / "plain")))
    twice = weights(
        train_grpo(replace(base, output=tmp_path / "twice", execution=ExecutionConfig(checkpoint_blocks=True)))
    )
    assert all(torch.equal(plain[name], twice[name]) for name in plain)


def test_a_policy_without_such_blocks_is_refused() -> None:
    from mgrpo.execution.distributed import open_processes
    from mgrpo.execution.precision import NetworkPrecision
    from mgrpo.train.grpo_config import PostTrainingConfig
    from mgrpo.train.post_training import PostTraining

    config = PostTrainingConfig(conditions=2, execution=ExecutionConfig(checkpoint_blocks=True))
    with open_processes("cpu") as processes, pytest.raises(InputError, match="no attribute checkpoint_blocks"):
        PostTraining(PlainPolicy(Network()), Reach(), config, processes, NetworkPrecision("fp32", processes.device))


def profile_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "profile.json").read_text())


def test_a_profile_is_written(base: GrpoConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_grpo(replace(base, output=tmp_path / "run", iterations=5, profile=True))
    profile = profile_of(tmp_path / "run")
    assert profile["iterations_timed"] == 3 and set(profile["seconds"]) == {
        "step_time", "time/data", "time/rollout", "time/reward", "time/update",
    }  # fmt: skip
    # medians of their own, so that they need not add up exactly
    parts = sum(value for name, value in profile["seconds"].items() if name != "step_time")
    assert 0 < parts <= 1.3 * profile["seconds"]["step_time"]
    assert profile["samples_per_second"] == pytest.approx(12 / profile["seconds"]["step_time"])
    # 6 steps, of which the first sees each condition once: 4 + 5 x 12 sequences, of which 4 + 4 x 12 with a gradient
    assert profile["network_calls"] == {"encode": 24, "decode": 64, "decode_with_graph": 52}
    assert profile["flops"] > 1e6 and 0 < profile["flop_utilisation"] < 1
    assert profile["peak_memory_bytes"] > 1 << 20
    assert "samples/s" in capsys.readouterr().err


PROFILED: dict[str, tuple[int, set[str]]] = {
    "prior": (4, {"data", "forward", "backward", "update"}),
    "perceptual": (6, {"data", "rollout", "candidates", "update"}),
    "finetune": (8, {"data", "update"}),
    "dpo": (12, {"data", "rollout", "reward", "update"}),
    "reft": (12, {"data", "rollout", "reward", "update"}),
}
"""Samples of an iteration and phases of every other training."""


def other_training(name: str, base: GrpoConfig, output: Path) -> tuple[Callable[[Any], Path], Any]:
    """Six iterations of a training as small as ``base``."""
    shared: dict[str, Any] = {
        "output": output, "data": base.data, "device": "cpu", "iterations": 6, "validate_every": 0,
        "checkpoint_every": 6, "learning_rate": 1e-4,
    }  # fmt: skip
    if name == "prior":
        return train_prior, PriorConfig(**shared, preset="test", batch_size=4)
    if name == "perceptual":
        return train_perceptual, PerceptualTrainingConfig(
            **shared, prior=base.prior, preset="test", clips=2, negatives_per_clip=2, samples_per_clip=2,
            optimizer_steps_per_generation=2, sampler=base.sampler,
        )  # fmt: skip
    trains: dict[str, tuple[Callable[[Any], Path], Any]] = {
        "finetune": (train_finetune, FinetuneConfig), "dpo": (train_dpo, DpoConfig), "reft": (train_reft, ReftConfig)
    }  # fmt: skip
    train, config_class = trains[name]
    own = {"levels": 2} if name == "finetune" else {}
    return train, config_class(
        **shared, **own, prior=base.prior, perceptual=base.perceptual, conditions=4, group_size=3, sampler=base.sampler
    )


@pytest.fixture
def _small_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DENOISER_PRESETS, "test", SMALL)
    monkeypatch.setitem(PERCEPTUAL_PRESETS, "test", files.TINY_PERCEPTUAL)


@pytest.mark.usefixtures("_small_presets")
@pytest.mark.parametrize("name", PROFILED)
def test_every_training_has_a_profile(base: GrpoConfig, name: str, tmp_path: Path) -> None:
    train, config = other_training(name, base, tmp_path / name)
    samples, phases = PROFILED[name]
    if name == "perceptual":
        assert train(replace(config, output=tmp_path / "plain")).exists()
        assert not (tmp_path / "plain" / "profile.json").exists()
    train(replace(config, profile=True))
    profile = profile_of(tmp_path / name)
    assert profile["iterations_timed"] == (2 if name == "perceptual" else 4)
    assert set(profile["seconds"]) == {"step_time", *(f"time/{phase}" for phase in phases)}
    assert profile["samples_per_second"] == pytest.approx(samples / profile["seconds"]["step_time"])
    assert profile["flops"] > 1e5 and profile["peak_memory_bytes"] > 1 << 20
    assert bool(profile["network_calls"]) == (name not in ("prior", "perceptual"))
    # another start of the run may do without
    train(replace(config, resume=True, iterations=7))


class Stopwatch(Profile):
    """Iterations without a training around them."""

    def go(self, seconds: Sequence[dict[str, float]]) -> dict[str, Any]:
        for one in seconds:
            with self.counted():
                torch.ones(8, 8) @ torch.ones(8, 8)
            self.take(one)
        return self.result()


def test_iterations_of_unequal_cost_are_taken_together(tmp_path: Path) -> None:
    """One in three also generates: its time and its arithmetic count a third."""
    rows = [
        {"step_time": 7.0 if i % 3 == 0 else 1.0, **({"time/rollout": 6.0} if i % 3 == 0 else {}), "time/update": 0.5}
        for i in range(11)
    ]
    with RunDir.create(tmp_path / "run", SMALL) as run:
        device = torch.device("cpu")
        found = Stopwatch(run, device, torch.float32, samples=6, period=3).go(rows)
        assert found["iterations_timed"] == 3  # the last two are no whole period
        assert found["seconds"] == pytest.approx({"step_time": 3.0, "time/rollout": 2.0, "time/update": 0.5})
        assert found["samples_per_second"] == pytest.approx(2.0) and found["flops"] == 2 * 8**3
        short = Stopwatch(run, device, torch.float32, samples=6, period=3).go(rows[:5])
        assert short["seconds"] == {} and short["flops"] is None and short["samples_per_second"] is None


def test_a_training_that_is_stopped_has_a_profile(base: GrpoConfig, tmp_path: Path) -> None:
    """What was timed until Ctrl-C is written; nothing of a training that failed."""
    from mgrpo.train.motion_task import MotionTask

    real, calls = MotionTask.score, []

    def score(self: MotionTask, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MotionTask, "score", score)
        with pytest.raises(TrainingInterrupted):
            train_grpo(replace(base, output=tmp_path / "run", iterations=50, profile=True))
    assert profile_of(tmp_path / "run")["iterations_timed"] == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MotionTask, "score", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_grpo(replace(base, output=tmp_path / "failed", profile=True))
    assert not (tmp_path / "failed" / "profile.json").exists()


@pytest.mark.usefixtures("_small_presets")
@pytest.mark.parametrize("name", ["prior", "finetune", "dpo", "reft"])
def test_every_training_can_compute_blocks_twice(base: GrpoConfig, name: str, tmp_path: Path) -> None:
    train, config = other_training(name, base, tmp_path / "plain")
    config = replace(config, iterations=2)
    plain, counted = train(config), []
    from mgrpo.models import denoiser as module

    real = module.checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "checkpoint", lambda *given, **options: counted.append(1) or real(*given, **options))
        again = (
            {"checkpoint_blocks": True} if name == "prior" else {"execution": NetworkExecution(checkpoint_blocks=True)}
        )
        twice = train(replace(config, output=tmp_path / "twice", **again))
    assert counted
    ours, theirs = weights(twice), weights(plain)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_rate_of_matrix_products_is_measured() -> None:
    assert 1e8 < matrix_product_rate(torch.device("cpu"), torch.float32, size=256) < 1e14


def test_a_compiled_network_trains_alike(base: GrpoConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is a second pass: it runs the rollout's kernels, so the ratio is one to the last bit."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")  # traced as by torch's own, which takes a minute
    torch.compiler.reset()
    options = replace(base, iterations=1, execution=ExecutionConfig(reuse_graphs="no"))
    plain = weights(train_grpo(replace(options, output=tmp_path / "plain")))
    made = replace(options.execution, compile=True)
    ours = weights(train_grpo(replace(options, output=tmp_path / "compiled", execution=made)))
    for name in plain:
        torch.testing.assert_close(ours[name], plain[name], atol=2e-5, rtol=0)
    assert read_metrics(tmp_path / "compiled")[0]["ratio/first_log_max"] == 0


@pytest.mark.parametrize("asked", [{}, {"micro_conditions": 4, "reuse_graphs": "no"}])
def test_a_compiler_that_fails_is_explained(
    base: GrpoConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    """Wherever the network is called first: where memory is planned, or in the rollout."""

    def backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(compiled, "BACKEND", backend)
    torch.compiler.reset()
    execution = ExecutionConfig(compile=True, **asked)
    with pytest.raises(compiled.CompileError, match=r"no C\+\+ compiler found.*Leave --execution.compile out"):
        train_grpo(replace(base, output=tmp_path / "run", execution=execution))


def test_there_is_no_loss_scale_in_a_ratio() -> None:
    with pytest.raises(InputError, match="precision must be one of fp32, tf32, bf16, got 'fp16-scaled'"):
        NetworkExecution(precision="fp16-scaled")  # type: ignore[arg-type]


def test_the_network_alone_is_in_bfloat16(base: GrpoConfig, tmp_path: Path) -> None:
    from mgrpo.train.prepared_policy import PreparedPolicy

    dtypes = []
    real = PreparedPolicy.decode

    def decode(self, x_t, t, memory):
        predicted = real(self, x_t, t, memory)
        dtypes.append((x_t.dtype, predicted.dtype))
        return predicted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreparedPolicy, "decode", decode)
        options = replace(base, output=tmp_path / "run", execution=ExecutionConfig(precision="bf16"))
        path = train_grpo(options)
    assert set(dtypes) == {(torch.float32, torch.bfloat16)}
    assert {tensor.dtype for tensor in weights(path).values()} == {torch.float32}
    rows = read_metrics(tmp_path / "run")
    assert all(row["ratio/first_log_max"] == 0 and row["grad_norm"] > 0 for row in rows)
