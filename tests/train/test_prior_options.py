"""Options of the prior's loop: each does what it says, resumes bit for bit, and refuses what it can't do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mgrpo.cli import main
from mgrpo.data import AugmentConfig, WindowSampler
from mgrpo.errors import InputError
from mgrpo.execution import compiled
from mgrpo.execution.precision import NetworkPrecision
from mgrpo.execution.prefetch import batches
from mgrpo.models.denoiser import DENOISER_PRESETS, Denoiser, DenoiserConfig
from mgrpo.runs.checkpoints import find_checkpoint, read_checkpoint, step_folders
from mgrpo.runs.metric_log import read_metrics
from mgrpo.runs.stored_models import load_model
from mgrpo.train import prior
from mgrpo.train.learning_rate import learning_rate_at
from mgrpo.train.prior import PRIOR_PRESETS, PriorConfig, train_prior
from tests.train import motion_files as files


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """The tensors are too small for several threads, which would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def base(prior_config):
    return replace(prior_config, batch_size=6)


def saved(path):
    return read_checkpoint(find_checkpoint(path, prefer="last"))


def rows(folder):
    return [
        {key: value for key, value in row.items() if key != "time"} for row in read_metrics(folder / "metrics.jsonl")
    ]


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# Optimiser and schedule


def test_warm_up_from_zero_is_torchs_lambda_schedule():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 1000))
    for step in range(1003):
        ours = learning_rate_at(step, 10**6, peak=1e-4, warmup=1000, schedule="constant", from_zero=True)
        assert ours == optimizer.param_groups[0]["lr"], step
        optimizer.step()
        schedule.step()
        by_hand = {0: 0.0, 1: 1e-4 * 0.001, 999: 1e-4 * 0.999, 1000: 1e-4}
        assert ours == by_hand.get(step, ours)


def test_warm_up_of_no_steps_and_from_the_first_step():
    def rate(step, warmup, from_zero):
        return learning_rate_at(step, 100, peak=2.0, warmup=warmup, schedule="constant", from_zero=from_zero)

    assert rate(0, 0, True) == rate(0, 0, False) == 2.0
    assert [rate(step, 4, False) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]


def test_the_loop_is_adamw_with_decay_on_everything_and_clipping(base):
    """Four steps against torch's own optimiser, schedule and clipping, written out."""
    config = replace(
        base, iterations=4, weight_decay=0.5, gradient_clip=1e-3, warmup=3, warmup_from_zero=True, validate_every=0,
        checkpoint_every=4,
    )  # fmt: skip
    train_prior(config)
    data = prior.load_motion_data(config.data, seed=0)
    model = Denoiser(files.TINY_DENOISER, seed=prior.stream_seed(0, 0, "prior weights"))
    optimizer = torch.optim.AdamW(
        [{"params": list(model.parameters())}], lr=3e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.5
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 3))
    levels = prior.CosineSchedule.make()
    clipped = 0
    for iteration in range(4):
        loss = prior.batch_loss(model, data.train.batch(iteration, 6), levels, config, seed=0, iteration=iteration)
        optimizer.zero_grad()
        loss.total.backward()
        norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
        clipped += norm.item() > 1e-3
        for parameter in model.parameters():
            parameter.grad *= min(1.0, 1e-3 / (norm.item() + 1e-6))
        optimizer.step()
        schedule.step()
    assert clipped == 4
    ours = saved(base.output).model_tensors
    for name, value in model.state_dict().items():
        torch.testing.assert_close(ours[name], value, atol=1e-6, rtol=0)


def test_the_egoallo_preset_is_the_published_training(monkeypatch):
    config = PRIOR_PRESETS["egoallo"]
    assert DENOISER_PRESETS[config.preset] == DenoiserConfig()
    assert (config.batch_size, config.learning_rate, config.weight_decay, config.gradient_clip) == (256, 1e-4, 1e-4, 1)
    assert (config.warmup, config.warmup_from_zero, config.schedule, config.ema) == (1000, True, "constant", 0)
    assert (config.checkpoint_every, config.keep_every, config.iterations) == (5000, 100_000, 3_000_000)
    assert (config.data.length, config.data.short_clips, config.data.augment.weighting) == (128, "drop", "clips")
    assert config.data.augment == AugmentConfig(yaw=False, loop=False, weighting="clips")
    assert (config.precision, config.condition_dropout) == ("fp32", 0)
    seen = []
    monkeypatch.setattr(prior, "train_prior", lambda config: seen.append(config) or 0)
    assert main(["train", "prior", "--preset", "egoallo", "--batch-size", "32"]) == 0
    assert main(["train", "prior", "--preset=egoallo", "--batch-size", "32"]) == 0
    assert main(["train", "prior", "egoallo", "--batch-size", "32"]) == 0
    assert seen == [replace(config, batch_size=32)] * 3
    assert main(["train", "prior", "--preset", "tiny"]) == main(["train", "prior"]) == 0
    assert seen[3:] == [PriorConfig()] * 2


# Parts of a batch


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_accumulated_parts_equal_the_batch(base, tmp_path, parts, monkeypatch):
    monkeypatch.setattr(WindowSampler, "batch", WindowSampler.batch)
    files.mask_batches()
    train_prior(base)
    train_prior(replace(base, output=tmp_path / "parts", accumulate=parts))
    for ours, theirs in zip(rows(tmp_path / "parts"), rows(base.output), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    one, other = saved(tmp_path / "parts").model_tensors, saved(base.output).model_tensors
    assert all(torch.allclose(one[name], other[name], atol=5e-6, rtol=0) for name in one)


def test_how_a_run_is_carried_out_may_change_when_it_is_resumed(base):
    train_prior(replace(base, iterations=2))
    train_prior(replace(base, resume=True, accumulate=2, prefetch=1, keep_every=4))
    assert saved(base.output).step == 6
    with pytest.raises(InputError, match="precision: fp32 in the folder, bf16 now"):
        train_prior(replace(base, resume=True, precision="bf16"))


# Bit for bit


OPTIONS = {
    "bf16": {"precision": "bf16"},
    "accumulate": {"accumulate": 3},
    "ema": {"ema": 0.9},
    "prefetch": {"prefetch": 2},
    "warm-up from zero": {"warmup_from_zero": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_resuming_repeats_the_uninterrupted_run_bit_for_bit(base, tmp_path, name):
    base = replace(base, **OPTIONS[name])
    train_prior(base)
    parts = replace(base, output=tmp_path / "parts", resume=True)
    train_prior(replace(parts, iterations=2))
    train_prior(parts)
    whole, resumed = saved(base.output), saved(parts.output)
    for kind in ("model_tensors", "optimizer_tensors", "tensors"):
        assert_equal(getattr(resumed, kind), getattr(whole, kind))
    assert resumed.state == whole.state and rows(parts.output) == rows(base.output)


def test_prefetched_and_plain_batches_give_the_same_run(base, tmp_path):
    train_prior(base)
    train_prior(replace(base, output=tmp_path / "ahead", prefetch=3))
    assert_equal(saved(tmp_path / "ahead").model_tensors, saved(base.output).model_tensors)


def test_batches_come_in_order_from_the_thread_with_their_errors():
    drawn = []

    def draw(iteration):
        drawn.append(iteration)
        if iteration == 5:
            raise InputError("broken clip")
        return 10 * iteration

    ahead = batches(draw, 2, 8, ahead=2)
    assert [next(ahead) for _ in range(3)] == [(2, 20), (3, 30), (4, 40)]
    with pytest.raises(InputError, match="broken clip"):
        next(ahead)
    assert drawn[:4] == [2, 3, 4, 5] and len(drawn) <= 6
    assert list(batches(lambda i: i, 0, 3, ahead=5)) == list(batches(lambda i: i, 0, 3, ahead=0))
    assert list(batches(draw, 3, 3, ahead=2)) == []


# Average of the weights


def test_the_average_is_that_of_the_weights_after_every_step(base, tmp_path):
    base = replace(base, iterations=3, checkpoint_every=1, keep_every=1, validate_every=0)
    train_prior(replace(base, ema=0.75))
    steps = {step: saved(folder) for step, folder in step_folders(base.output / "checkpoints").items()}
    assert sorted(steps) == [1, 2, 3]
    average = Denoiser(files.TINY_DENOISER, seed=prior.stream_seed(0, 0, "prior weights")).state_dict()
    for step in (1, 2, 3):
        for name, value in steps[step].model_tensors.items():
            average[name] = 0.75 * average[name] + 0.25 * value
            torch.testing.assert_close(steps[step].tensors[f"ema.{name}"], average[name], atol=1e-6, rtol=1e-6)
    train_prior(replace(base, output=tmp_path / "without"))
    assert_equal(saved(tmp_path / "without").model_tensors, steps[3].model_tensors)


def test_loading_the_average(base):
    train_prior(replace(base, ema=0.9))
    model, _, checkpoint = load_model(base.output, Denoiser, DenoiserConfig, prefer="last", use_ema=True)
    assert_equal(model.state_dict(), {n.removeprefix("ema."): v for n, v in checkpoint.tensors.items()})
    assert not torch.equal(model.latent_from_cond.weight, checkpoint.model_tensors["latent_from_cond.weight"])
    last = rows(base.output)[-1]
    assert last["validation_loss_ema"] != last["validation_loss"]


def test_every_command_that_loads_a_prior_can_take_its_average(base, tmp_path, capsys):
    train_prior(replace(base, iterations=2))
    prior_folder = str(base.output)
    for words in (
        ["sample", "--checkpoint", prior_folder, "--out", str(tmp_path / "samples")],
        ["evaluate", "--checkpoint", prior_folder],
        ["train", "grpo", "--prior", prior_folder, "--rewards.visual", "0", "--output", str(tmp_path / "grpo")],
        ["train", "perceptual", "tiny", "--prior", prior_folder, "--output", str(tmp_path / "perceptual")],
    ):
        assert main([*words, "--use-ema"]) == 2
        assert "holds no averaged weights beside the model's" in capsys.readouterr().err, words


def test_a_checkpoint_without_average_says_so(base):
    train_prior(replace(base, iterations=1))
    with pytest.raises(InputError, match="holds no averaged weights"):
        load_model(base.output, Denoiser, DenoiserConfig, use_ema=True)


def test_checkpoints_are_kept(base):
    train_prior(replace(base, keep_every=4, validate_every=0))
    assert sorted(step_folders(base.output / "checkpoints")) == [4, 6]


# Precision


def test_bf16_computes_in_bf16_and_compares_in_float32(base, monkeypatch):
    seen = []
    real = prior.denoising_loss

    def watched(denoiser, windows, *args, network, **options):
        def call(*state, **conditions):
            out = network(*state, **conditions)
            seen.append((state[0].dtype, out.dtype, conditions["T_world_cpf"].dtype))
            return out

        loss = real(denoiser, windows, *args, network=call, **options)
        assert loss.total.dtype == torch.float32
        return loss

    monkeypatch.setattr(prior, "denoising_loss", watched)
    train_prior(replace(base, iterations=2, precision="bf16"))
    assert set(seen) == {(torch.float32, torch.bfloat16, torch.float32)}
    checkpoint = saved(base.output)
    assert {tensor.dtype for tensor in checkpoint.model_tensors.values()} == {torch.float32}
    assert {tensor.dtype for tensor in checkpoint.optimizer_tensors.values()} == {torch.float32}


def test_the_condition_is_encoded_in_full_precision_under_autocast(monkeypatch):
    seen = []
    encode = Denoiser.encode
    monkeypatch.setattr(
        Denoiser,
        "encode",
        lambda self, cond, *args, **options: seen.append(cond) or encode(self, cond, *args, **options),
    )
    model = Denoiser(files.TINY_DENOISER)
    poses = torch.nn.functional.pad(torch.nn.functional.normalize(torch.randn(2, 5, 4), dim=-1), (0, 3), value=0.3)
    arguments = {"T_world_cpf": poses, "T_cpf_tm1_cpf_t": poses.flip(0)}
    x, t = torch.randn(2, 5, model.layout.dim), torch.tensor([3, 500])
    model(x, t, **arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x, t, **arguments)
    assert torch.equal(seen[0], seen[1])


def test_bf16_learns_as_fp32_does(base, tmp_path):
    """Same data and noise: the curves differ by far less than those of two seeds."""

    def curve(seed, precision):
        config = replace(
            base, output=tmp_path / f"{precision}{seed}", seed=seed, precision=precision, iterations=40, batch_size=12,
            validate_every=0, checkpoint_every=40, loss=replace(base.loss, level="constant"),
        )  # fmt: skip
        train_prior(config)
        return torch.tensor([row["loss"] for row in rows(config.output)])

    full, half = ([curve(seed, precision) for seed in (0, 1, 2)] for precision in ("fp32", "bf16"))
    for one, other in zip(full, half):
        assert one[-10:].mean() < 0.7 * one[:5].mean(), "it learns at all"
        assert 0 < (other - one).abs().max() < 0.02 * one.max()
        assert other[-10:].mean().item() == pytest.approx(one[-10:].mean().item(), rel=0.02)


def test_float32_products_are_set_and_put_back():
    torch.set_float32_matmul_precision("medium")
    try:
        with NetworkPrecision("fp32", torch.device("cpu")).matrix_products():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def scaled_on_cpu(monkeypatch):
    """fp16-scaled with its refusal of CPUs off: torch can do it there, slowly."""

    def make(self, name, device):
        self.name, self.device = name, device
        self._dtype = torch.float16
        self._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=4)

    monkeypatch.setattr(NetworkPrecision, "__init__", make)


def test_a_scaled_loss_skips_overflows_and_resumes_bit_for_bit(base, tmp_path, monkeypatch):
    scaled_on_cpu(monkeypatch)
    base = replace(base, precision="fp16-scaled", iterations=20, checkpoint_every=5, validate_every=0)
    train_prior(base)
    parts = replace(base, output=tmp_path / "parts", resume=True)
    train_prior(replace(parts, iterations=10))
    train_prior(parts)
    whole, resumed = saved(base.output), saved(parts.output)
    assert_equal(resumed.model_tensors, whole.model_tensors)
    assert resumed.state == whole.state and whole.state["loss_scaler"]["scale"] < 2.0**30
    assert rows(parts.output) == rows(base.output)
    losses = rows(base.output)
    assert losses[0]["grad_norm"] is None, "the first scale overflows"
    scales = [row["loss_scale"] for row in losses]
    assert scales[0] == 2.0**29 and any(scales[i + 1] > scales[i] for i in range(len(scales) - 1))
    finite = [row["grad_norm"] for row in losses if row["grad_norm"] is not None]
    assert finite and max(finite) < 100, "gradients are unscaled before they are measured and clipped"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["tf32", "bf16", "fp16-scaled"])
def test_precisions_on_a_gpu(base, tmp_path, name):
    base = replace(base, device="cuda", iterations=20, batch_size=16, validate_every=0, checkpoint_every=20)
    train_prior(base)
    train_prior(replace(base, output=tmp_path / name, precision=name))
    ours, theirs = ([row["loss"] for row in rows(folder)] for folder in (tmp_path / name, base.output))
    assert sum(ours[-5:]) == pytest.approx(sum(theirs[-5:]), rel=0.1)


# Compiling


def test_a_compiled_network_gives_the_same_run_and_resumes_bit_for_bit(base, tmp_path, monkeypatch):
    calls = []
    real = compiled.compile_network
    monkeypatch.setattr(compiled, "BACKEND", "eager")  # traced as by torch's own, which takes a minute
    monkeypatch.setattr(prior, "compile_network", lambda network: calls.append(network) or real(network))
    base = replace(base, iterations=4)
    train_prior(base)
    assert not calls
    whole, parts = (replace(base, output=tmp_path / name, compile=True) for name in ("whole", "parts"))
    train_prior(whole)
    train_prior(replace(parts, iterations=2))
    train_prior(replace(parts, resume=True))
    assert len(calls) == 3
    for ours, theirs in zip(rows(whole.output), rows(base.output), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert rows(parts.output) == rows(whole.output)
    assert_equal(saved(parts.output).model_tensors, saved(whole.output).model_tensors)
    assert saved(whole.output).model_tensors.keys() == saved(base.output).model_tensors.keys()
    torch.compiler.reset()


def test_a_network_that_can_not_be_compiled_is_refused(base, monkeypatch):
    def broken(graph, inputs):
        raise OSError("no C++ compiler here")

    monkeypatch.setattr(compiled, "BACKEND", broken)
    with pytest.raises(compiled.CompileError, match=r"no C\+\+ compiler here.*Leave --compile out"):
        train_prior(replace(base, compile=True))
    torch.compiler.reset()


def test_nothing_falls_back_to_running_uncompiled():
    class Breaks(torch.nn.Module):
        def forward(self, x):
            torch._dynamo.graph_break()
            return x + 1

    call = compiled.compile_network(Breaks())
    with pytest.raises(compiled.CompileError, match="--compile"), compiled.compile_errors():
        call(torch.zeros(2))
    with pytest.raises(ZeroDivisionError), compiled.compile_errors():
        raise ZeroDivisionError
    torch.compiler.reset()


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "--accumulate must be at least 1, got 0"),
        ({"accumulate": 4}, r"--batch-size \(6\) must be a multiple of --accumulate \(4\)"),
        ({"ema": 1.0}, "--ema must be below 1, got 1.0"),
        ({"keep_every": 3}, r"--keep-every \(3\) must be a multiple of --checkpoint-every \(2\)"),
        ({"prefetch": -1}, "--prefetch must be at least 0, got -1"),
        ({"gradient_clip": 0.0}, "--gradient-clip must be positive"),
    ],
)
def test_options_out_of_range(base, options, message):
    with pytest.raises(InputError, match=message):
        replace(base, **options)


@pytest.mark.parametrize(
    ("precision", "message"),
    [("fp16-scaled", "fp16-scaled needs a CUDA GPU .*use bf16 or fp32"), ("tf32", "tf32 needs a CUDA GPU")],
)
def test_what_a_cpu_can_not_do_is_refused_before_anything_is_written(base, precision, message):
    with pytest.raises(InputError, match=message):
        train_prior(replace(base, precision=precision))
    assert not base.output.exists()


@pytest.mark.parametrize(("told", "advice"), [("bf16", "add --precision bf16"), ("fp8", "has no such precision")])
def test_what_accelerate_was_told_is_not_ignored(base, told, advice, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", told)
    with pytest.raises(InputError, match=f"mixed precision {told}.*{advice}"):
        train_prior(base)
    if told == "bf16":
        train_prior(replace(base, iterations=1, precision="bf16"))


def test_help_gives_units(capsys):
    assert main(["train", "prior", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("--accumulate", "--precision {fp32,tf32,bf16,fp16-scaled}", "--ema", "--keep-every", "--prefetch"):
        assert words in shown, words
