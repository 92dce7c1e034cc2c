"""Sampling of long sequences: the original's runs, one batch of windows, bounded calls, guidance, padding, errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mgrpo.diffusion.sampler import NoiseKeys, sample
from mgrpo.diffusion.stitched_sampler import StitchedPredictor, sample_stitched
from mgrpo.diffusion.stitching import Stitching
from mgrpo.diffusion.transition import make_transitions
from mgrpo.errors import InputError
from mgrpo.models.conditioning import make_cond, relative_cpf
from mgrpo.models.denoiser import Denoiser, DenoiserConfig, EncoderMemory
from mgrpo.models.state import StateLayout, project_state, unpack_state
from tests.golden import golden_files
from tests.mgrpo.diffusion.golden_sampler import golden_case

SMALL = DenoiserConfig(
    d_latent=32, d_feedforward=64, d_noise_emb=16, num_heads=4, encoder_layers=1, decoder_layers=1, include_hands=False
)
CUTS = {blend: Stitching(blend, 12, 3) for blend in ("egoallo", "proper")}  # type: ignore[arg-type]
FRAMES = 31
"""Windows of 12, 12, 12, 4 frames with egoallo blending, of 12, 12, 12, 12 with proper."""


STEPS = make_transitions("ddim", eta=0.8, steps=5)


def network(seed: int = 1, **options: object) -> Denoiser:
    return Denoiser(dataclasses.replace(SMALL, **options), seed=seed).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model() -> Denoiser:
    return network()


def head(batch: int, frames: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """``T_world_cpf`` and ``T_cpf_tm1_cpf_t`` ``(B, T, 7)`` of a wandering head."""
    generator = torch.Generator().manual_seed(seed)
    turns = torch.randn(batch, frames + 1, 4, generator=generator, dtype=torch.float64).cumsum(1) * 0.1
    places = torch.randn(batch, frames + 1, 3, generator=generator, dtype=torch.float64).cumsum(1) * 0.02
    poses = torch.cat((F.normalize(turns + torch.tensor([3.0, 0, 0, 0]), dim=-1), places), dim=-1)
    poses[..., 6] += 1.5
    return poses[:, 1:].to(dtype), relative_cpf(poses).to(dtype)


def keys(batch: int, members: int, **options: object) -> NoiseKeys:
    return NoiseKeys(5, 2, torch.arange(batch), members, **options)  # type: ignore[arg-type]


class Watched:
    """A denoiser that notes the sizes it is called with."""

    def __init__(self, model: Denoiser) -> None:
        self.model = model
        self.encoded: list[tuple[int, ...]] = []
        self.decoded: list[tuple[int, ...]] = []

    def encode(self, cond: torch.Tensor, t: torch.Tensor) -> EncoderMemory:
        self.encoded.append(tuple(cond.shape[:2]))
        return self.model.encode(cond, t)

    def decode(self, x_t: torch.Tensor, t: torch.Tensor, memory: EncoderMemory) -> torch.Tensor:
        self.decoded.append(tuple(x_t.shape[:3]))
        return self.model.decode(x_t, t, memory)


# Reference runs


@pytest.mark.golden
def test_egoallos_stitched_runs() -> None:
    for path in golden_files("sampler/stitched_*.npz"):
        arrays, described, net, noise = golden_case(path)
        poses = arrays["T_world_cpf_all"][None]
        result = sample_stitched(
            net, poses[:, 1:], relative_cpf(poses), make_transitions("egoallo", eta=0.8), None,
            stitching=Stitching("egoallo"), floor_z=described["floor_z"], fix_det=False, noise=noise, record="all",
        )  # fmt: skip
        close = {"atol": 2e-5, "rtol": 0}
        torch.testing.assert_close(result.x0[0], arrays["x_final"], **close)
        after = [*result.x_t[1:], result.x0]
        if "steps" in arrays:
            for i, step in enumerate(arrays["steps"].tolist()):
                x = after[step - 1][0][:, arrays["frames"].long()]
                torch.testing.assert_close(x, arrays["x_at_steps_frames"][i], **close)
        if "full_steps" in arrays:
            for i, step in enumerate(arrays["full_steps"].tolist()):
                torch.testing.assert_close(after[step - 1][0], arrays["x_at_full_steps"][i], **close)
        if "x0_blended_step0" in arrays:
            grounded = poses[:, 1:].clone()
            grounded[..., 6] -= described["floor_z"]
            predict = StitchedPredictor(net, net.config, Stitching("egoallo"), grounded, relative_cpf(poses))
            with torch.no_grad():
                for _, k, _, prediction in predict.predict_windows(noise[0], 1000):
                    torch.testing.assert_close(prediction, arrays[f"net_out_step0_window{k}"], **close)
                blended = predict(noise[0], 1000)[0]
            torch.testing.assert_close(blended, arrays["x0_blended_step0"], **close)
            projected = project_state(net.layout, arrays["x0_blended_step0"], fix_det=False)
            torch.testing.assert_close(result.x0_pred[0][0], projected, **close)


@pytest.mark.golden
def test_the_early_codes_stitched_runs() -> None:
    for path in golden_files("sampler/author_stitched_*.npz"):
        arrays, described, net, noise = golden_case(path.with_name(path.name.removeprefix("author_")))
        poses = arrays["T_world_cpf_all"][None]
        result = sample_stitched(
            net, poses[:, 1:], relative_cpf(poses), make_transitions("egoallo", eta=0.8), None,
            stitching=Stitching("author"), floor_z=described["floor_z"], fix_det=False, noise=noise, record="all",
        )  # fmt: skip
        with np.load(path, allow_pickle=False) as expected:
            for name, x in (("x_step1", result.x_t[1]), ("x_final", result.x0)):
                # that code multiplies some predictions, and their rounding, by up to 32
                torch.testing.assert_close(x[0], torch.from_numpy(expected[name]), atol=2e-4, rtol=2e-6)


# One batch


def one_by_one(model: Denoiser, stitching: Stitching, x: torch.Tensor, level: int, poses: tuple[torch.Tensor, ...]):
    """The blended prediction as a plain loop: every window of every sample a call of its own."""
    t = torch.tensor([level])
    blended = torch.zeros_like(x)
    for b, g in np.ndindex(*x.shape[:2]):
        plan = stitching.plan(x.shape[2])
        parts = []
        for start, stop in zip(plan.starts, plan.stops, strict=True):
            T_world_cpf, relative = (pose[b : b + 1, start:stop] for pose in poses)
            parts.append(model(x[b, g, start:stop][None], t, T_world_cpf=T_world_cpf, T_cpf_tm1_cpf_t=relative)[0])
        blended[b, g] = plan.blend(parts)
    return blended


@pytest.mark.parametrize("blend", ["egoallo", "proper"])
@pytest.mark.parametrize("parameters", ["ours", "canonicalized"])
def test_one_batch_of_windows_equals_windows_one_by_one(blend: str, parameters: str) -> None:
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 5e-6)):
        model = network(cond_param=parameters).to(dtype)
        poses = head(2, FRAMES, dtype=dtype)
        x = torch.randn(2, 3, FRAMES, 226, dtype=dtype)
        predict = StitchedPredictor(model, model.config, CUTS[blend], *poses)
        with torch.no_grad():
            together, apart = predict(x, 300), one_by_one(model, CUTS[blend], x, 300, poses)
        torch.testing.assert_close(together, apart, atol=tolerance, rtol=0)


def test_all_windows_of_a_length_are_one_call_and_samples_share_the_encoder(model: Denoiser) -> None:
    transitions = make_transitions("ddim", steps=2)
    for blend, calls in (
        ("proper", [(2 * 4, 12)]),
        ("egoallo", [(2 * 3, 12), (2 * 1, 4)]),
    ):
        watched, done = Watched(model), []
        sample_stitched(
            watched, *head(2, FRAMES), transitions, keys(2, 3), stitching=CUTS[blend], layout=model.layout,
            conditioning=model.config, callback=lambda windows, total, done=done: done.append((windows, total)),
        )  # fmt: skip
        assert watched.encoded == 2 * calls, "a condition is encoded once for its samples"
        assert watched.decoded == [(rows, 3, length) for rows, length in 2 * calls]
        assert done[-1] == (16, 16) and len(done) == len(watched.encoded)


@pytest.mark.parametrize("blend", ["egoallo", "proper"])
def test_smaller_calls_change_nothing_but_rounding(model: Denoiser, blend: str) -> None:
    transitions, poses = STEPS, head(2, FRAMES)
    whole = sample_stitched(model, *poses, transitions, keys(2, 3), stitching=CUTS[blend]).x0
    for bound in (24, 36, 100):
        watched = Watched(model)
        parts = sample_stitched(
            watched, *poses, transitions, keys(2, 3), stitching=CUTS[blend], frames_per_call=bound,
            layout=model.layout, conditioning=model.config,
        ).x0  # fmt: skip
        sizes = [rows * members * length for rows, members, length in watched.decoded]
        assert max(sizes) <= bound and len(sizes) > 2 * len(transitions)
        torch.testing.assert_close(parts, whole, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("blend", "frames"), [("proper", 12), ("proper", 5), ("egoallo", 9)])
def test_one_window_is_the_plain_sampler(model: Denoiser, blend: str, frames: int) -> None:
    transitions, poses = STEPS, head(2, frames)
    plain = sample(model, make_cond(model.config, *poses), transitions, keys(2, 3), record="all")
    result = sample_stitched(model, *poses, transitions, keys(2, 3), stitching=CUTS[blend], record="all")
    assert torch.equal(result.x0, plain.x0)
    assert all(torch.equal(a, b) for a, b in zip(result.x_t + result.x0_pred, plain.x_t + plain.x0_pred, strict=True))


def test_a_sequence_does_not_depend_on_the_batch(model: Denoiser) -> None:
    transitions, poses = STEPS, head(3, FRAMES)
    together = sample_stitched(model, *poses, transitions, keys(3, 2), stitching=CUTS["proper"]).x0
    order = torch.tensor([2, 0])
    part = sample_stitched(
        model, *(pose[order] for pose in poses), transitions, keys(3, 2).select(order), stitching=CUTS["proper"]
    ).x0
    torch.testing.assert_close(part, together[order], atol=2e-5, rtol=0)


@pytest.mark.parametrize("blend", ["egoallo", "proper"])
def test_padding_has_no_influence(model: Denoiser, blend: str) -> None:
    lengths = [FRAMES, 20, 7]
    transitions, poses = STEPS, head(3, FRAMES)
    mask = torch.arange(FRAMES) < torch.tensor(lengths)[:, None]
    for pose in poses:
        pose[~mask] = torch.tensor([1.0, 0, 0, 0, 9, 9, 9])
    together = sample_stitched(model, *poses, transitions, keys(3, 2), stitching=CUTS[blend], mask=mask).x0
    assert bool(together.isfinite().all())
    for b, length in enumerate(lengths):
        alone = sample_stitched(
            model, *(pose[b : b + 1, :length] for pose in poses), transitions, keys(3, 2).select(slice(b, b + 1)),
            stitching=CUTS[blend],
        ).x0  # fmt: skip
        torch.testing.assert_close(together[b : b + 1, :, :length], alone, atol=2e-5, rtol=0)


# The states


def test_thousands_of_frames_in_bounded_calls() -> None:
    model, frames = network(), 3000
    watched = Watched(model)
    result = sample_stitched(
        watched, *head(1, frames), make_transitions("ddim", steps=2), keys(1, 2), frames_per_call=2048,
        layout=model.layout, conditioning=model.config,
    )  # fmt: skip
    assert result.x0.shape == (1, 2, frames, 226) and bool(result.x0.isfinite().all())
    assert len(Stitching().plan(frames)) == 31
    assert max(rows * members * length for rows, members, length in watched.decoded) == 2048
    assert {length for *_, length in watched.decoded} == {128}
    rotations = unpack_state(model.layout, result.x0).body_rotmats
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).expand_as(rotations), atol=1e-4, rtol=0)


def test_the_floor_is_taken_off_for_the_network_only(model: Denoiser) -> None:
    transitions, (T_world_cpf, relative) = STEPS, head(2, FRAMES)
    plain = sample_stitched(model, T_world_cpf, relative, transitions, keys(2, 1), stitching=CUTS["proper"]).x0
    before = T_world_cpf.clone()
    floors = torch.tensor([0.25, -0.5])
    lifted = T_world_cpf.clone()
    lifted[..., 6] += floors[:, None]
    same = sample_stitched(
        model, lifted, relative, transitions, keys(2, 1), stitching=CUTS["proper"], floor_z=floors
    ).x0
    torch.testing.assert_close(same, plain, atol=1e-5, rtol=0)
    one = sample_stitched(
        model, lifted[:1], relative[:1], transitions, keys(1, 1), stitching=CUTS["proper"], floor_z=0.25
    ).x0
    torch.testing.assert_close(one, plain[:1], atol=1e-5, rtol=0)
    other = sample_stitched(
        model, T_world_cpf, relative, transitions, keys(2, 1), stitching=CUTS["proper"], floor_z=1.0
    )
    assert (other.x0 - plain).abs().max() > 1e-3 and torch.equal(T_world_cpf, before)


def test_given_noise_replays_and_precision_follows_the_poses(model: Denoiser) -> None:
    transitions = STEPS
    noise = torch.randn(6, 2, 2, FRAMES, 226)
    single = sample_stitched(model, *head(2, FRAMES), transitions, None, stitching=CUTS["egoallo"], noise=noise).x0
    wide = network().double()
    double = sample_stitched(
        wide, *head(2, FRAMES, dtype=torch.float64), transitions, None, stitching=CUTS["egoallo"], noise=noise
    ).x0
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=1e-3, rtol=0)


def test_projection_is_optional_and_comes_after_the_blend(model: Denoiser) -> None:
    transitions, poses = STEPS, head(1, FRAMES)
    raw = sample_stitched(
        model, *poses, transitions, keys(1, 2), stitching=CUTS["proper"], project_rotations=False, record="last",
        record_last=1,
    )  # fmt: skip
    predict = StitchedPredictor(model, model.config, CUTS["proper"], *poses)
    last = int(transitions.t[-1])
    with torch.no_grad():
        torch.testing.assert_close(predict(raw.x_t[0], last), raw.x0)
        projected = sample_stitched(
            model, *poses, transitions, keys(1, 2), stitching=CUTS["proper"], record="last", record_last=1
        )
        blended = predict(projected.x_t[0], last)
    assert raw.steps == projected.steps == (len(transitions) - 1,)
    assert (raw.x0 - project_state(model.layout, raw.x0)).abs().max() > 0.1
    torch.testing.assert_close(projected.x0, project_state(model.layout, blended))


@pytest.mark.parametrize("project", [True, False])
def test_guidance_is_asked_in_every_step_and_at_the_end(model: Denoiser, project: bool) -> None:
    transitions, poses = STEPS, head(1, FRAMES)
    options = {"stitching": CUTS["proper"], "project_rotations": project, "record": "all"}
    plain = sample_stitched(model, *poses, transitions, keys(1, 2), **options)
    seen: list[tuple[int, torch.Tensor]] = []

    def watch(states: torch.Tensor, done: int) -> torch.Tensor:
        seen.append((done, states.clone()))
        return states

    watched = sample_stitched(model, *poses, transitions, keys(1, 2), guidance=watch, **options)
    assert [done for done, _ in seen] == list(range(6))
    # Projection and step are then two operators instead of one, which round differently.
    torch.testing.assert_close(watched.x0, plain.x0, atol=2e-5, rtol=0)
    for (_, states), x0_pred in zip(seen, [*watched.x0_pred, watched.x0], strict=True):
        assert torch.equal(states, x0_pred), "what guidance sees is what enters the step, projected before"

    def shift(states: torch.Tensor, done: int) -> torch.Tensor:
        return states + (2.0 if done == 5 else 1.0 if done == 3 else 0.0)

    shifted = sample_stitched(model, *poses, transitions, keys(1, 2), guidance=shift, **options)
    _, _, B, _ = transitions.scalars[3]
    torch.testing.assert_close(shifted.x_t[3], watched.x_t[3])
    torch.testing.assert_close(shifted.x0_pred[3], watched.x0_pred[3] + 1.0, atol=2e-5, rtol=0)
    torch.testing.assert_close(shifted.x_t[4], watched.x_t[4] + B, atol=2e-5, rtol=0)
    torch.testing.assert_close(shifted.x0, shifted.x0_pred[-1] + 2.0)
    plain_sampler = sample(
        model, make_cond(model.config, *poses), transitions, keys(1, 2), guidance=shift, project_rotations=project
    )
    assert float(plain_sampler.x0[..., 16].mean()) > 1.5


def test_hand_positions_reach_the_network() -> None:
    model = network(include_hand_positions_cond=True)
    transitions, poses = STEPS, head(1, FRAMES)
    hands = torch.randn(1, FRAMES, 6)
    options = {"stitching": CUTS["egoallo"]}
    absent = sample_stitched(model, *poses, transitions, keys(1, 1), **options).x0
    zeros = sample_stitched(
        model, *poses, transitions, keys(1, 1), hand_positions_wrt_cpf=torch.zeros_like(hands), **options
    ).x0
    given = sample_stitched(model, *poses, transitions, keys(1, 1), hand_positions_wrt_cpf=hands, **options).x0
    assert torch.equal(absent, zeros) and (given - zeros).abs().max() > 1e-3


def test_errors(model: Denoiser) -> None:
    transitions, poses, base = STEPS, head(2, FRAMES), keys(2, 1)

    def refused(text: str, *, policy: object = model, poses: tuple[torch.Tensor, ...] = poses, **options: object):
        given = options.pop("keys", base)
        with pytest.raises(InputError, match=text):
            sample_stitched(policy, *poses, transitions, given, **options)  # type: ignore[arg-type]

    refused("sample_stitched\\(\\): the layout .* isn't the denoiser's", layout=StateLayout(True))
    refused("only a Denoiser knows its own", policy=Watched(model), conditioning=model.config)
    refused("give the conditioning", policy=Watched(model), layout=model.layout)
    refused("dropout", policy=Denoiser(dataclasses.replace(SMALL, dropout_p=0.1)).train())
    refused("must have the same shape \\(B, T, 7\\)", poses=(poses[0], poses[1][:, 1:]))
    refused("at least one trajectory of one frame", poses=(poses[0][:0], poses[1][:0]))
    refused("sample_stitched\\(\\): give keys", keys=None)
    refused("keys.condition holds 3", keys=keys(3, 1))
    refused("noise must have shape", keys=None, noise=torch.zeros(6, 2, 1, FRAMES - 1, 226))
    refused("frames_per_call must be at least 1", frames_per_call=0)
    refused("hand_positions_wrt_cpf must have shape", hand_positions_wrt_cpf=torch.zeros(2, FRAMES, 3))
    refused("floor_z must be a number or have shape \\(2,\\)", floor_z=torch.zeros(3))
    refused("record must be", record="some")
    refused("mask must be boolean of shape", mask=torch.ones(2, FRAMES))
    gap = torch.ones(2, FRAMES, dtype=torch.bool)
    gap[0, 3] = False
    refused("the mask has gaps or an empty row", mask=gap)
    refused("the mask has gaps or an empty row", mask=torch.zeros(2, FRAMES, dtype=torch.bool))
    refused("guidance must return states of shape", guidance=lambda states, done: states[:, :, 1:])
