"""How an iteration is carried out: what memory decides, blocks that are computed twice, the profile."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mgrpo.diffusion.config import SamplerConfig
from mgrpo.errors import InputError
from mgrpo.grpo.policy import PlainPolicy
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.train import compiled, memory
from mgrpo.train.checkpoints import find_checkpoint, load_model, read_checkpoint
from mgrpo.train.grpo import train_grpo
from mgrpo.train.grpo_config import ExecutionConfig, GrpoConfig
from mgrpo.train.memory import free_bytes, plan_memory, saved_bytes
from mgrpo.train.metric_log import read_metrics
from mgrpo.train.motion_data import MotionDataConfig
from mgrpo.train.profile import matrix_product_rate

_spec = importlib.util.spec_from_file_location("motion_files", Path(__file__).with_name("motion_files.py"))
files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(files)

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
    asked = train_grpo(
        replace(parts, output=tmp_path / "asked", execution=ExecutionConfig(micro_conditions=2))
    )
    assert read_checkpoint(find_checkpoint(asked)).state["kept"]["memory"]["micro_conditions"] == 2


def test_blocks_computed_twice_train_alike(base: GrpoConfig, tmp_path: Path) -> None:
    plain = weights(train_grpo(replace(base, output=tmp_path / "plain")))
    twice = weights(
        train_grpo(replace(base, output=tmp_path / "twice", execution=ExecutionConfig(checkpoint_blocks=True)))
    )
    assert all(torch.equal(plain[name], twice[name]) for name in plain)


def test_a_policy_without_such_blocks_is_refused() -> None:
    from mgrpo.train.distributed import open_processes
    from mgrpo.train.grpo_config import PostTrainingConfig
    from mgrpo.train.post_training import PostTraining
    from mgrpo.train.precision import NetworkPrecision

    spec = importlib.util.spec_from_file_location("loop", Path(__file__).with_name("test_post_training.py"))
    loop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loop)
    config = PostTrainingConfig(conditions=2, execution=ExecutionConfig(checkpoint_blocks=True))
    with open_processes("cpu") as processes, pytest.raises(InputError, match="no attribute checkpoint_blocks"):
        PostTraining(
            PlainPolicy(loop.Network()), loop.Reach(), config, processes, NetworkPrecision("fp32", processes.device)
        )


def test_a_profile_is_written(base: GrpoConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_grpo(replace(base, output=tmp_path / "run", iterations=5, profile=True))
    profile = json.loads((tmp_path / "run" / "profile.json").read_text())
    assert profile["iterations_timed"] == 3 and set(profile["seconds"]) == {
        "step_time", "time/rollout", "time/reward", "time/update",
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


def test_the_rate_of_matrix_products_is_measured() -> None:
    assert 1e8 < matrix_product_rate(torch.device("cpu"), torch.float32, size=256) < 1e14


def test_a_compiled_network_trains_alike(
    base: GrpoConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
