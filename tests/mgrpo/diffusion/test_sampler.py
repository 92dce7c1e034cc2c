"""Sampling: reference runs, independence of the batch, recording, noise keys, errors."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from mgrpo.diffusion.sampler import NoiseKeys, SampleResult, initial_noise, sample, step_noise
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.diffusion.transition import Transitions, make_transitions
from mgrpo.errors import InputError
from mgrpo.kernels import sde_log_prob
from mgrpo.models.conditioning import make_cond, relative_cpf
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.state import StateLayout, project_state, unpack_state
from tests.golden import golden_files
from tests.mgrpo.diffusion.golden_sampler import golden_case

SMALL = DenoiserConfig(
    d_latent=32, d_feedforward=64, d_noise_emb=16, num_heads=4, encoder_layers=1, decoder_layers=1, include_hands=False
)
WINDOW = 96
"""Longest sequence that EgoAllo samples as one window; above it, it stitches several."""


@pytest.fixture(scope="module")
def model() -> Denoiser:
    return Denoiser(SMALL, seed=1).eval()


@pytest.fixture
def cond(tiny: torch.Generator) -> torch.Tensor:
    return torch.randn(3, 6, 154, generator=tiny)


def keys(condition: list[int], members: int, **options: object) -> NoiseKeys:
    values: dict[str, object] = {"seed": 5, "iteration": 2, **options}
    return NoiseKeys(condition=torch.tensor(condition), members=members, **values)  # type: ignore[arg-type]


# Reference runs


@pytest.mark.golden
def test_single_windows_match_egoallo() -> None:
    for path in golden_files("sampler/stitched_*.npz"):
        described = json.loads(path.with_suffix(".json").read_text())
        if described["T"] > WINDOW:
            continue
        arrays, described, network, noise = golden_case(path)
        T_world_cpf = arrays["T_world_cpf_all"][None]
        relative = relative_cpf(T_world_cpf)
        grounded = T_world_cpf[:, 1:].clone()
        grounded[..., 6] -= described["floor_z"]
        result = sample(
            network, make_cond(network.config, grounded, relative), make_transitions("egoallo", eta=0.8), None,
            noise=noise, record="all", fix_det=False,
        )  # fmt: skip
        torch.testing.assert_close(result.x0[0], arrays["x_final"], atol=2e-5, rtol=0)
        after = [*result.x_t[1:], result.x0]
        if "steps" not in arrays:
            continue
        for i, step in enumerate(arrays["steps"].tolist()):
            x = after[step - 1][0][:, arrays["frames"].long()]
            torch.testing.assert_close(x, arrays["x_at_steps_frames"][i], atol=2e-5, rtol=0)
        blended = arrays["x0_blended_step0"]
        torch.testing.assert_close(
            result.x0_pred[0][0], project_state(network.layout, blended, fix_det=False), atol=2e-5, rtol=0
        )


@pytest.mark.golden
def test_prototype_runs_and_their_log_probs() -> None:
    for path in golden_files("sampler/author_logprob_*.npz"):
        arrays, described, network, noise = golden_case(path)
        cond = make_cond(network.config, arrays["T_world_cpf_all"][:, 1:], arrays["T_cpf_tm1_cpf_t"])
        for eta in described["etas"]:
            tag = f"eta{eta}".replace(".", "p")
            transitions = make_transitions("egoallo", eta=eta)
            result = sample(network, cond, transitions, None, noise=noise, record="all", project_rotations=False)
            # The prototype's schedule is float32: its sigma is off by up to 1.1e-4 (relative) at low levels.
            torch.testing.assert_close(result.x0[:, 0], arrays[f"x_final_{tag}"], atol=2e-5, rtol=0)
            after = [*result.x_t[1:], result.x0]
            for i, step in enumerate(arrays[f"steps_{tag}"].tolist()):
                torch.testing.assert_close(after[step - 1][0], arrays[f"x_item0_{tag}"][i], atol=2e-5, rtol=0)
            for k in transitions.trainable_steps:
                _, A, B, s = transitions.scalars[k]
                flat = (x.flatten(0, 1) for x in (after[k], result.x_t[k], result.x0_pred[k]))
                log_prob = sde_log_prob(*flat, A, B, s)
                torch.testing.assert_close(log_prob, arrays[f"log_probs_{tag}"][k], atol=1.3e-4, rtol=0)
                closed = -0.5 * noise[k + 1].double().square().mean((1, 2, 3)) - math.log(s * math.sqrt(2 * math.pi))
                torch.testing.assert_close(log_prob.double(), closed, atol=1e-4, rtol=0)


# Independence


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kernel", ["egoallo", "ddim", "ode"])
def test_result_does_not_depend_on_the_batch(model: Denoiser, cond: torch.Tensor, share: bool, kernel: str) -> None:
    transitions = (
        make_transitions(kernel, eta=0.8, steps=6) if kernel != "egoallo" else make_transitions(eta=0.5, steps=6)
    )  # type: ignore[arg-type]
    together = sample(model, cond, transitions, keys([7, 3, 9], 4, share_initial=share)).x0
    order = torch.tensor([2, 0])
    apart = sample(model, cond[order], transitions, keys([9, 7], 4, share_initial=share)).x0
    torch.testing.assert_close(apart, together[order], atol=1e-5, rtol=0)
    part = sample(model, cond, transitions, keys([7, 3, 9], 2, share_initial=share, first_member=1)).x0
    torch.testing.assert_close(part, together[:, 1:3], atol=1e-5, rtol=0)
    rows = keys([7, 3, 9], 4, share_initial=share).one_row_per_member()
    single = sample(model, cond.repeat_interleave(4, 0), transitions, rows).x0
    torch.testing.assert_close(single.view_as(together), together, atol=1e-5, rtol=0)


def test_same_keys_same_bits(model: Denoiser, cond: torch.Tensor) -> None:
    transitions = make_transitions(steps=8)
    torch.manual_seed(1)
    a = sample(model, cond, transitions, keys([0, 1, 2], 3)).x0
    torch.manual_seed(2)
    torch.randn(5)
    assert torch.equal(a, sample(model, cond, transitions, keys([0, 1, 2], 3)).x0)


@pytest.mark.parametrize("change", [{"seed": 6}, {"iteration": 3}, {"condition": torch.tensor([0, 1, 5])}])
def test_other_keys_other_samples(model: Denoiser, cond: torch.Tensor, change: dict[str, object]) -> None:
    transitions = make_transitions(steps=8)
    base = keys([0, 1, 2], 3)
    a = sample(model, cond, transitions, base).x0
    b = sample(model, cond, transitions, dataclasses.replace(base, **change)).x0  # type: ignore[arg-type]
    assert not torch.equal(a[2], b[2])


def test_members_differ_and_ode_members_with_shared_start_do_not(model: Denoiser, cond: torch.Tensor) -> None:
    ode = make_transitions("ode", steps=5)
    same = sample(model, cond, ode, keys([0, 1, 2], 3)).x0
    torch.testing.assert_close(same, same[:, :1].expand_as(same), atol=1e-5, rtol=0)
    apart = sample(model, cond, ode, keys([0, 1, 2], 3, share_initial=False)).x0
    assert (apart[:, 0] - apart[:, 1]).abs().max() > 1e-3
    noisy = sample(model, cond, make_transitions(steps=8), keys([0, 1, 2], 3)).x0
    assert (noisy[:, 0] - noisy[:, 1]).abs().max() > 1e-3


# Noise


def test_noise_keys_select_and_split() -> None:
    base = keys([4, 8, 15], 3)
    noise = step_noise(base, 2, (5, 6))
    assert noise.shape == (3, 3, 5, 6)
    assert torch.equal(step_noise(base.select(slice(1, 3)), 2, (5, 6)), noise[1:])
    assert torch.equal(step_noise(base.select(torch.tensor([2, 0])), 2, (5, 6)), noise[[2, 0]])
    rows = base.one_row_per_member()
    assert torch.equal(step_noise(rows, 2, (5, 6)).view(3, 3, 5, 6), noise)
    assert torch.equal(step_noise(rows.select(slice(4, 6)), 2, (5, 6))[:, 0], noise[1, 1:])
    assert not torch.equal(step_noise(base, 3, (5, 6)), noise)
    # Time comes first in memory: fewer frames are the beginning of more.
    assert torch.equal(step_noise(base, 2, (3, 6)), noise[:, :, :3])


def test_initial_noise_is_shared_on_request() -> None:
    shared = initial_noise(keys([4, 8], 3), (5, 6))
    assert torch.equal(shared, shared[:, :1].expand_as(shared)) and not torch.equal(shared[0], shared[1])
    own = initial_noise(keys([4, 8], 3, share_initial=False), (5, 6))
    assert not torch.equal(own[:, 0], own[:, 1])
    # A different stream than the steps' noise.
    assert not torch.equal(own, step_noise(keys([4, 8], 3), 0, (5, 6)))


def test_drawn_noise_can_be_replayed(model: Denoiser, cond: torch.Tensor) -> None:
    transitions, base = make_transitions(steps=8), keys([0, 1, 2], 3)
    shape = (6, 226)
    noise = torch.stack([initial_noise(base, shape), *(step_noise(base, k, shape) for k in range(8))])
    a, b = sample(model, cond, transitions, base), sample(model, cond, transitions, None, noise=noise)
    assert torch.equal(a.x0, b.x0)
    order = torch.tensor([2, 0, 1])
    permuted = sample(model, cond, transitions, None, noise=noise[:, :, order]).x0
    torch.testing.assert_close(permuted, a.x0[:, order], atol=1e-5, rtol=0)


# Recording and the steps themselves


def replay(
    model: Denoiser, cond: torch.Tensor, transitions: Transitions, result: SampleResult, base: NoiseKeys
) -> None:
    """Every recorded step follows from the one before, with noise drawn anew."""
    after = [*result.x_t[1:], result.x0]
    for i, k in enumerate(result.steps):
        _, A, B, s = transitions.scalars[k]
        expected = A * result.x_t[i] + B * result.x0_pred[i] + s * step_noise(base, k, tuple(result.x0.shape[2:]))
        torch.testing.assert_close(after[i], expected, atol=1e-5, rtol=0)
        t = torch.full((len(cond),), int(transitions.t[k]))
        with torch.no_grad():
            x0_pred = project_state(model.layout, model.decode(result.x_t[i], t, model.encode(cond, t)))
        assert torch.equal(x0_pred, result.x0_pred[i])


@pytest.mark.parametrize("kernel", ["egoallo", "dance", "cps"])
def test_recorded_path_is_the_transition_law(model: Denoiser, cond: torch.Tensor, kernel: str) -> None:
    transitions, base = make_transitions(kernel, eta=0.5, steps=8), keys([0, 1, 2], 2)  # type: ignore[arg-type]
    result = sample(model, cond, transitions, base, record="all")
    assert result.steps == tuple(range(8)) and len(result.x_t) == len(result.x0_pred) == 8
    replay(model, cond, transitions, result, base)
    assert torch.equal(result.x0, result.x0_pred[-1])
    last = sample(model, cond, transitions, base, record="last", record_last=3)
    assert last.steps == (5, 6, 7)
    assert all(torch.equal(a, b) for a, b in zip(last.x_t, result.x_t[5:], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(last.x0_pred, result.x0_pred[5:], strict=True))
    none = sample(model, cond, transitions, base)
    assert none.steps == () and none.x_t == [] and torch.equal(none.x0, result.x0)
    long = sample(model, cond, transitions, base, record="last", record_last=99)
    assert long.steps == result.steps


def test_projection_is_optional_and_covers_the_body_only(cond: torch.Tensor) -> None:
    network = Denoiser(dataclasses.replace(SMALL, include_hands=True), seed=2).eval()
    transitions, base = make_transitions(steps=8), keys([0, 1, 2], 2)
    state = unpack_state(network.layout, sample(network, cond, transitions, base).x0)
    eye = torch.eye(3).expand_as(state.body_rotmats)
    torch.testing.assert_close(state.body_rotmats @ state.body_rotmats.transpose(-1, -2), eye, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.linalg.det(state.body_rotmats), torch.ones(3, 2, 6, 21), atol=1e-4, rtol=0)
    assert state.hand_rotmats is not None
    assert (torch.linalg.det(state.hand_rotmats) - 1).abs().max() > 0.1
    raw = unpack_state(network.layout, sample(network, cond, transitions, base, project_rotations=False).x0)
    assert (torch.linalg.det(raw.body_rotmats) - 1).abs().max() > 0.1


def test_mask_reaches_the_network(model: Denoiser, cond: torch.Tensor) -> None:
    transitions, base = make_transitions(steps=8), keys([0, 1, 2], 2)
    mask = torch.arange(6) < torch.tensor([6, 3, 6])[:, None]
    masked, plain = sample(model, cond, transitions, base, mask=mask).x0, sample(model, cond, transitions, base).x0
    torch.testing.assert_close(masked[[0, 2]], plain[[0, 2]], atol=1e-5, rtol=0)
    assert (masked[1] - plain[1]).abs().max() > 1e-5


class Constant:
    """A policy that isn't a Denoiser: it predicts the same state whatever it sees."""

    def __init__(self, x0: torch.Tensor) -> None:
        self.x0, self.seen = x0, []

    def encode(self, cond: torch.Tensor, t: torch.Tensor) -> None:
        self.seen.append(int(t[0]))

    def decode(self, x_t: torch.Tensor, t: torch.Tensor, memory: None) -> torch.Tensor:
        return self.x0


def test_any_policy_can_be_sampled(cond: torch.Tensor, tiny: torch.Generator) -> None:
    x0 = torch.randn(3, 2, 6, 226, generator=tiny)
    before = x0.clone()
    policy, transitions, done = Constant(x0), make_transitions(steps=8), []
    result = sample(
        policy, cond, transitions, keys([0, 1, 2], 2), layout=StateLayout(False), record="all",
        callback=lambda step, steps: done.append((step, steps)),
    )  # fmt: skip
    assert policy.seen == transitions.t.tolist()
    assert done == [(k + 1, 8) for k in range(8)]
    assert torch.equal(x0, before), "the policy's own tensor must not be written to"
    assert torch.equal(result.x0, project_state(StateLayout(False), x0))
    plain = sample(policy, cond, transitions, keys([0, 1, 2], 2), layout=StateLayout(False), project_rotations=False)
    assert torch.equal(plain.x0, x0)


def test_gaussian_data_comes_out_gaussian() -> None:
    """A perfect predictor of N(0, 1) data and a marginal-preserving sampler: the samples have the data's variance.

    With the exact posterior mean, DDIM with eta 1 over 30 coarse steps ends at variance 0.86, EgoAllo's own at 0.21:
    known values of these samplers, which pin the chain of steps as a whole.
    """
    schedule = CosineSchedule.make()

    class PosteriorMean:
        def encode(self, cond: torch.Tensor, t: torch.Tensor) -> None: ...

        def decode(self, x_t: torch.Tensor, t: torch.Tensor, memory: None) -> torch.Tensor:
            return x_t * schedule.alpha_bar[t].sqrt().float()[:, None, None, None]

    for kernel, eta, variance in (
        ("ddim", 1.0, 0.86),
        ("dance", 0.3, 0.87),
        ("cps", 0.8, 0.61),
        ("egoallo", 0.8, 0.21),
    ):
        transitions = make_transitions(kernel, eta=eta)  # type: ignore[arg-type]
        own = keys([0, 1, 2, 3], 4, share_initial=False)
        x0 = sample(
            PosteriorMean(), torch.zeros(4, 64, 1), transitions, own, layout=StateLayout(False), project_rotations=False
        ).x0
        assert x0.var().item() == pytest.approx(variance, abs=0.01)
        assert abs(x0.mean().item()) < 0.01


def test_precision_follows_the_condition(model: Denoiser, cond: torch.Tensor) -> None:
    base, transitions = keys([0, 1, 2], 2), make_transitions(steps=8)
    single = sample(model, cond, transitions, base).x0
    wide = Denoiser(SMALL, seed=1).double().eval()
    double = sample(wide, cond.double(), transitions, base).x0
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=1e-3, rtol=0)


def test_errors(model: Denoiser, cond: torch.Tensor) -> None:
    transitions, base = make_transitions(steps=8), keys([0, 1, 2], 2)
    with pytest.raises(InputError, match="isn't the denoiser's"):
        sample(model, cond, transitions, base, layout=StateLayout(True))
    with pytest.raises(InputError, match="only a Denoiser knows its own"):
        sample(Constant(cond), cond, transitions, base)
    with pytest.raises(InputError, match="give keys"):
        sample(model, cond, transitions, None)
    with pytest.raises(InputError, match=r"keys\.condition holds 3"):
        sample(model, cond[:2], transitions, base)
    with pytest.raises(InputError, match="noise must have shape"):
        sample(model, cond, transitions, None, noise=torch.zeros(8, 3, 2, 6, 226))
    with pytest.raises(InputError, match="record must be"):
        sample(model, cond, transitions, base, record="some")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="record_last"):
        sample(model, cond, transitions, base, record="last", record_last=0)
    with pytest.raises(InputError, match="cond must have shape"):
        sample(model, cond[0], transitions, base)
    with pytest.raises(InputError, match="dropout"):
        sample(Denoiser(dataclasses.replace(SMALL, dropout_p=0.1)).train(), cond, transitions, base)
    with pytest.raises(InputError, match="int64"):
        keys([0], 2).__class__(0, 0, torch.tensor([0.0]), 2)
    with pytest.raises(InputError, match="members"):
        keys([0], 0)
    with pytest.raises(InputError, match="first_member"):
        keys([0], 1, first_member=-1)
    with pytest.raises(InputError, match="first_member"):
        keys([0], 1, first_member=torch.tensor([0, 1]))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_that_noise_cannot_be_keyed_by_are_refused(seed: int) -> None:
    with pytest.raises(InputError, match=f"NoiseKeys.seed must be a whole number from 0 to .*, got {seed}"):
        keys([0], 2, seed=seed)
