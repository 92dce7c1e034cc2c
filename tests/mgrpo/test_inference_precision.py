"""The denoiser as inference calls it: the same samples in every precision, and which one is chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.diffusion.stitched_sampler import sample_stitched
from mgrpo.diffusion.stitching import Stitching
from mgrpo.diffusion.transition import make_transitions
from mgrpo.errors import InputError
from mgrpo.infer.plain import made_up_path, plain_sample
from mgrpo.kernels.half_linear import half_linear_problem
from mgrpo.models import inference
from mgrpo.models.conditioning import make_cond, relative_cpf
from mgrpo.models.denoiser import DENOISER_PRESETS, Denoiser
from mgrpo.models.inference import InferenceDenoiser, InferencePrecision, choose_precision
from mgrpo.models.onednn_linear import OneDnnLinear

CPU = torch.device("cpu")
PROBLEM = half_linear_problem()
HALF = [
    "bf16",
    pytest.param("fp16", marks=pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))),
]
STEPS = make_transitions("egoallo", eta=0.8, steps=10, schedule=CosineSchedule.make(1000))


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    """Hands and all, of a size that takes no time; nearly rotations come out of it, as of a trained one."""
    config = replace(
        DENOISER_PRESETS["egoallo"], d_latent=64, d_feedforward=96, d_noise_emb=32, encoder_layers=2, decoder_layers=2
    )
    model = Denoiser(config, seed=0).eval()
    with torch.no_grad():
        last = model.decoders["body_rotmats"][-1]
        assert isinstance(last, torch.nn.Linear)
        last.weight.mul_(0.1)
        last.bias.copy_(torch.eye(3).flatten().repeat(last.out_features // 9))
    return model


def sampled(policy: InferenceDenoiser, noise: Tensor, poses: Tensor, ahead: int) -> Tensor:
    return sample_stitched(
        policy,
        poses[:, 1:],
        relative_cpf(poses),
        STEPS,
        None,
        stitching=Stitching("proper", 12, 4),
        conditioning=policy.config,
        layout=policy.layout,
        noise=noise,
        fix_det=False,
        frames_ahead=ahead,
    ).x0


def given(denoiser: Denoiser, frames: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(11, 2, 3, frames, denoiser.layout.dim, generator=generator), made_up_path(2, frames)


@pytest.mark.parametrize("ahead", [0, 24, 60, 10_000])
def test_float32_is_the_plain_loop(denoiser: Denoiser, ahead: int) -> None:
    """Same noise, same samples within rounding, however many steps the condition is encoded ahead."""
    noise, poses = given(denoiser)
    plain = plain_sample(denoiser, poses, STEPS, 3, 0, noise)
    assert torch.allclose(sampled(InferenceDenoiser(denoiser), noise, poses, ahead), plain, atol=2e-4)


def test_float32_by_onednn_is_the_plain_loop(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever processor this is: every layer that it replaces is used, and rounds as float32 does."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    noise, poses = given(denoiser)
    plain = plain_sample(denoiser, poses, STEPS, 3, 0, noise)
    used: set[int] = set()
    multiply = OneDnnLinear._multiply

    def watched(self: OneDnnLinear, *arguments: object) -> Tensor:
        used.add(id(self))
        return multiply(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(OneDnnLinear, "_multiply", watched)
    monkeypatch.setattr(inference, "onednn_is_faster", lambda: True)
    policy = InferenceDenoiser(denoiser)
    assert torch.allclose(sampled(policy, noise, poses, 24), plain, atol=2e-4)
    layers = [one for one in policy._denoiser.modules() if isinstance(one, OneDnnLinear)]
    assert used == {id(one) for one in layers} and len(layers) > 30
    weights = {id(parameter) for parameter in denoiser.parameters()}
    assert all(id(one._layer.weight) in weights for one in layers), "no copies"


def test_activations_by_onednn_are_those_of_torch() -> None:
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    x = torch.randn(7, 5, 40, generator=torch.Generator().manual_seed(0))
    for bias in (True, False):
        layer = torch.nn.Linear(40, 33, bias)
        y = layer(x)
        with torch.inference_mode():
            for name, function in (("gelu", torch.nn.functional.gelu), ("relu", torch.relu)):
                fused = OneDnnLinear(layer, name)  # type: ignore[arg-type]
                torch.testing.assert_close(fused(x), y)
                torch.testing.assert_close(fused.activated(x), function(y))
                assert fused(x[:0]).shape == (0, 5, 33)


@pytest.mark.parametrize("precision", HALF)
def test_half_precision_is_near(denoiser: Denoiser, precision: InferencePrecision) -> None:
    noise, poses = given(denoiser)
    plain = plain_sample(denoiser, poses, STEPS, 3, 0, noise)
    got = sampled(InferenceDenoiser(denoiser, precision), noise, poses, 24)
    assert got.dtype == torch.float32
    apart = float((got - plain).norm() / plain.norm())
    assert 1e-6 < apart < {"bf16": 3e-2, "fp16": 5e-3}[precision]


@pytest.mark.parametrize("precision", ["fp32", *HALF])
def test_the_denoiser_itself_stays_as_it_was(denoiser: Denoiser, precision: InferencePrecision) -> None:
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    noise, poses = given(denoiser)
    states = sampled(InferenceDenoiser(denoiser, precision), noise, poses, 24)
    assert not states.requires_grad and states.is_inference() is False
    after = denoiser.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items())
    cond = make_cond(denoiser.config, poses[:, 1:], relative_cpf(poses))
    t = torch.tensor([7, 7])
    denoiser.decode(noise[0], t, denoiser.encode(cond, t)).sum().backward()  # and can still be trained
    assert all(parameter.grad is not None for parameter in denoiser.parameters())
    denoiser.zero_grad(set_to_none=True)


def test_conditions_are_encoded_once_for_each_step(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never twice, in as few calls as the bound allows; windows beyond it one step at a time."""
    encoded: list[int] = []
    whole = Denoiser.encode

    def count(self: Denoiser, cond: Tensor, t: Tensor, **options: object) -> object:
        encoded.append(len(t))
        return whole(self, cond, t, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Denoiser, "encode", count)
    noise, poses = given(denoiser)
    for ahead, calls in ((0, [2] * 10), (4 * 24, [8, 8, 4]), (24 * 10, [20]), (47, [2] * 10)):
        encoded.clear()
        sampled(InferenceDenoiser(denoiser), noise, poses, ahead)
        assert encoded == calls
    noise, poses = given(denoiser, 30)  # windows of 12 and a shorter rest, in groups of their own
    encoded.clear()
    sampled(InferenceDenoiser(denoiser), noise, poses, 10_000)
    assert sum(encoded) == 10 * 2 * len(Stitching("proper", 12, 4).plan(30))


def test_auto_takes_what_is_fastest_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_has_amx", lambda: True)
    monkeypatch.setattr(inference, "half_linear_problem", lambda: None)
    assert choose_precision("auto", CPU) == ("bf16", "the CPU multiplies it in tiles (AMX)")
    monkeypatch.setattr(inference, "_has_amx", lambda: False)
    assert choose_precision("auto", CPU)[0] == "fp16"
    monkeypatch.setattr(inference, "half_linear_problem", lambda: "no such instructions")
    monkeypatch.setattr(inference, "_has_bf16", lambda: True)
    assert choose_precision("auto", CPU) == ("bf16", "the CPU has AVX512-BF16")
    monkeypatch.setattr(inference, "_has_bf16", lambda: False)
    chosen, why = choose_precision("auto", CPU)
    assert chosen == "fp32" and "no such instructions" in why
    assert choose_precision("auto", torch.device("mps"))[0] == "fp32"
    assert choose_precision("bf16", CPU)[0] == "bf16"


def test_fp16_is_refused_where_it_doesnt_run(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "half_linear_problem", lambda: "no such instructions")
    with pytest.raises(InputError, match="--precision fp16 does not run on cpu: no such instructions; take auto"):
        InferenceDenoiser(denoiser, "fp16")
    with pytest.raises(InputError, match="--precision fp16 does not run on cuda: it is made for CPUs"):
        choose_precision("fp16", torch.device("cuda"))
