"""Evaluation: fixed noise, no effect of chunks or of other models, honest statistics."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from mgrpo import geometry
from mgrpo.body import BodyModel, default_body
from mgrpo.data import MotionWindows, windows_from_poses
from mgrpo.diffusion.transition import Transitions, make_transitions
from mgrpo.errors import InputError
from mgrpo.eval import evaluate as evaluate_module
from mgrpo.eval.evaluate import EvaluationResult, compare, evaluate
from mgrpo.eval.metrics import METRICS, mpjpe_mm
from mgrpo.eval.statistics import over_windows_and_seeds, paired_difference
from mgrpo.guidance import optimisation
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.motion import decode_motion
from mgrpo.models.perceptual import PerceptualConfig, PerceptualModel
from mgrpo.models.state import StateLayout, pack_windows

FRAMES = 8
CONFIG = DenoiserConfig(
    d_latent=16, d_feedforward=32, d_noise_emb=8, num_heads=2, encoder_layers=1, decoder_layers=1, include_hands=False
)


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return default_body().body_only()


def made_up_windows(body: BodyModel, count: int, seed: int = 0, frames: int = FRAMES) -> MotionWindows:
    """Smooth made-up motion of an upright body near the floor."""
    generator = torch.Generator().manual_seed(seed)

    def smooth(*shape: int, size: float) -> Tensor:
        start = torch.randn(count, 1, *shape, generator=generator)
        return size * (start + 0.1 * torch.randn(count, frames + 1, *shape, generator=generator).cumsum(1))

    upright = torch.tensor([0.5, 0.5, 0.5, 0.5])
    position = smooth(3, size=0.3)
    position[..., 2] = 0.95 + 0.1 * position[..., 2]
    return windows_from_poses(
        body,
        T_world_root=geometry.se3(
            geometry.quat_multiply(geometry.axis_angle_to_quat(smooth(3, size=0.3)), upright), position
        ),
        body_quats=geometry.axis_angle_to_quat(smooth(21, 3, size=0.3)),
        betas=torch.randn(count, 16, generator=generator),
        contacts=torch.zeros(count, frames + 1, 21),
        names=tuple(f"clip{index // 2}" for index in range(count)),
    )


def network(seed: int) -> Denoiser:
    torch.manual_seed(seed)
    return Denoiser(CONFIG)


class Oracle(Denoiser):
    """A denoiser that knows the truth of each window: its samples are the recorded motion, with its shape changed by
    ``offset`` and with noise of size ``spread`` that differs between the members of a group."""

    def __init__(self, windows: MotionWindows, offset: float = 0.0, spread: float = 0.0) -> None:
        super().__init__(CONFIG)
        self.truth = pack_windows(self.layout, windows)
        self.truth[..., self.layout.slices["betas"]] += offset
        self.spread = spread

    def decode(self, x_t: Tensor, t: Tensor, memory: object) -> Tensor:
        assert x_t.shape[0] == len(self.truth), "give the oracle all windows in one chunk"
        noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(0))
        return self.truth[:, None] + self.spread * noise


@pytest.fixture(scope="module")
def windows(body: BodyModel) -> MotionWindows:
    return made_up_windows(body, 5)


@pytest.fixture(scope="module")
def transitions() -> Transitions:
    return make_transitions("ddim", eta=0.8, steps=4)


@pytest.fixture(scope="module")
def judge() -> PerceptualModel:
    torch.manual_seed(1)
    return PerceptualModel(PerceptualConfig(d_latent=16, blocks=1, heads=2, mlp_ratio=1.0))


@pytest.fixture(scope="module")
def result(
    windows: MotionWindows, body: BodyModel, transitions: Transitions, judge: PerceptualModel
) -> EvaluationResult:
    return evaluate(
        network(0),
        windows,
        body,
        transitions,
        seeds=(0, 3),
        samples=3,
        perceptual=judge,
        windows_per_chunk=2,
        name="first",
    )


def assert_same_values(first: EvaluationResult, second: EvaluationResult, tolerance: float = 0.0) -> None:
    for field in ("values", "group_values", "mean_of_samples", "ground_truth"):
        ours, theirs = getattr(first, field), getattr(second, field)
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(
                theirs[name],
                value,
                rtol=tolerance,
                atol=tolerance * 10,
                equal_nan=True,
                msg=lambda text, n=name: f"{n}: {text}",
            )


def test_shapes_and_names(result: EvaluationResult, windows: MotionWindows) -> None:
    assert result.window_names == windows.names and result.windows == 5
    for name, value in result.values.items():
        assert name in METRICS and value.shape == (5, 2, 3) and value.dtype == torch.float64, name
    assert {"score", "score_gap", "accuracy", "mpjpe_mm", "pa_mpjpe_egoallo_mm"} <= result.values.keys()
    assert all(value.shape == (5, 2) for value in (result.group_values | result.mean_of_samples).values())
    assert result.group_values.keys() == {"diversity_joint_std_mm", "diversity_l2"}
    assert all(value.shape == (5,) for value in result.ground_truth.values())
    statistics = result.statistics()
    assert list(statistics) == [name for name in METRICS if name in statistics]
    assert result.means() == {name: statistic.mean for name, statistic in statistics.items()}
    assert math.isclose(statistics["wrong_count"].mean, 5 * (1 - statistics["accuracy"].mean))


def test_chunks_change_nothing(
    result: EvaluationResult, windows: MotionWindows, body: BodyModel, transitions: Transitions, judge: PerceptualModel
) -> None:
    again = evaluate(
        network(0), windows, body, transitions, seeds=(0, 3), samples=3, perceptual=judge, windows_per_chunk=2
    )
    assert_same_values(result, again)
    whole = evaluate(network(0), windows, body, transitions, seeds=(0, 3), samples=3, perceptual=judge)
    # Other batch sizes round differently; jitter multiplies rounding by 27000.
    for name in ("mpjpe_mm", "pa_mpjpe_mm", "mpjre_geodesic_deg", "score"):
        torch.testing.assert_close(whole.values[name], result.values[name], rtol=1e-4, atol=1e-3)


def test_noise_depends_on_seed_window_and_sample_alone(
    result: EvaluationResult, windows: MotionWindows, body: BodyModel, transitions: Transitions
) -> None:
    alone = evaluate(network(0), windows, body, transitions, seeds=(3,), samples=1)
    torch.testing.assert_close(
        alone.values["mpjpe_mm"][:, 0, 0], result.values["mpjpe_mm"][:, 1, 0], rtol=1e-4, atol=1e-3
    )
    values = result.values["mpjpe_mm"]
    assert len(values.flatten().unique()) == values.numel()
    # Samples start from noise of their own: they differ even where the sampler adds none.
    quiet = evaluate(network(0), windows, body, make_transitions("ode", steps=4), samples=3)
    assert (quiet.group_values["diversity_joint_std_mm"] > 1e-3).all()


def test_values_are_those_of_the_metrics(windows: MotionWindows, body: BodyModel, transitions: Transitions) -> None:
    found = evaluate(Oracle(windows, offset=0.3), windows, body, transitions, samples=2)
    layout = StateLayout(include_hands=False)
    state = pack_windows(layout, windows)
    state[..., layout.slices["betas"]] += 0.3
    motion = decode_motion(layout, state[:, None], windows.T_world_cpf[:, None], body)
    expected = mpjpe_mm(motion.joints22, windows.joints[:, None]).double()
    assert expected.min() > 1
    torch.testing.assert_close(found.values["mpjpe_mm"], expected[:, None].expand(5, 1, 2), rtol=1e-4, atol=1e-2)
    assert (found.group_values["diversity_l2"] < 1e-5).all()
    torch.testing.assert_close(
        found.mean_of_samples["mpjpe_mm"], found.values["mpjpe_mm"][..., 0], rtol=1e-4, atol=1e-2
    )


def test_the_truth_scores_perfectly(
    windows: MotionWindows, body: BodyModel, transitions: Transitions, judge: PerceptualModel
) -> None:
    means = evaluate(Oracle(windows), windows, body, transitions, perceptual=judge).means()
    for name in ("mpjpe_mm", "pa_mpjpe_mm", "pa_mpjpe_egoallo_mm", "mpjve_mm_s", "mpjre_geodesic_deg", "score_gap"):
        assert abs(means[name]) < 0.2, name
    assert means["jitter_ratio"] == pytest.approx(1.0, abs=1e-2)


def test_mean_of_samples_is_nearer_than_a_sample(
    windows: MotionWindows, body: BodyModel, transitions: Transitions
) -> None:
    """Averaging a spread-out group lowers MPJPE without any learning, which the extra row is there to show."""
    found = evaluate(Oracle(windows, spread=0.1), windows, body, transitions, samples=8)
    assert (found.mean_of_samples["mpjpe_mm"] < 0.6 * found.values["mpjpe_mm"].mean(-1)).all()


def test_masked_frames_do_not_count(windows: MotionWindows, body: BodyModel, transitions: Transitions) -> None:
    mask = windows.mask.clone()
    mask[:, -2:] = False
    hidden = dataclasses.replace(windows, mask=mask)
    spoilt = dataclasses.replace(hidden, joints=windows.joints.masked_fill(~mask[..., None, None], 1e3))
    first = evaluate(network(0), hidden, body, transitions)
    second = evaluate(network(0), spoilt, body, transitions)
    assert_same_values(first, second)
    assert first.means()["mpjpe_mm"] != evaluate(network(0), windows, body, transitions).means()["mpjpe_mm"]


def test_guidance_smooths_the_samples(windows: MotionWindows, body: BodyModel, transitions: Transitions) -> None:
    oracle = Oracle(windows, spread=0.05)
    results = {
        wanted: evaluate(oracle, windows, body, transitions, guidance=optimisation(wanted))  # type: ignore[arg-type]
        for wanted in ("off", "post", "inner")
    }
    plain = evaluate(oracle, windows, body, transitions)
    assert torch.equal(plain.values["mpjpe_mm"], results["off"].values["mpjpe_mm"])
    assert [results[wanted].settings.get("guidance") for wanted in results] == [None, "post", "inner and post"]
    jitter = {wanted: result.values["jitter_m_s3"].mean() for wanted, result in results.items()}
    # What is left comes from the shapes, which differ from frame to frame and are not guided.
    assert jitter["post"] < 0.75 * jitter["off"] and jitter["inner"] < 0.75 * jitter["off"]
    assert not torch.equal(results["inner"].values["mpjpe_mm"], results["post"].values["mpjpe_mm"])


def test_models_are_left_as_they_were(
    windows: MotionWindows, body: BodyModel, transitions: Transitions, judge: PerceptualModel
) -> None:
    model = network(0).train()
    judge.train()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    evaluate(model, windows, body, transitions, perceptual=judge)
    assert model.training and judge.training
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_progress(windows: MotionWindows, body: BodyModel, transitions: Transitions) -> None:
    calls: list[tuple[int, int]] = []
    evaluate(
        network(0),
        windows,
        body,
        transitions,
        seeds=(0, 1),
        windows_per_chunk=2,
        progress=lambda *call: calls.append(call),
    )
    assert calls == [(2, 10), (4, 10), (6, 10), (8, 10), (9, 10), (10, 10)]


def test_compare(
    result: EvaluationResult, windows: MotionWindows, body: BodyModel, transitions: Transitions, judge: PerceptualModel
) -> None:
    settings = {"seeds": (0, 3), "samples": 3, "perceptual": judge, "windows_per_chunk": 2}
    same = compare(result, evaluate(network(0), windows, body, transitions, **settings))
    for name, difference in same.items():
        assert difference.mean == 0 or math.isnan(difference.mean), name
    other = evaluate(network(1), windows, body, transitions, **settings)
    differences = compare(result, other)
    for name, difference in differences.items():
        expected = other.means()[name] - result.means()[name]
        assert difference.mean == pytest.approx(expected, nan_ok=True), name
    back = compare(other, result)
    assert back["mpjpe_mm"].mean == pytest.approx(-differences["mpjpe_mm"].mean)
    with pytest.raises(InputError, match="different seeds"):
        compare(result, evaluate(network(1), windows, body, transitions, seeds=(0, 4), samples=3))
    with pytest.raises(InputError, match="different settings"):
        fewer = make_transitions("ddim", eta=0.8, steps=3)
        compare(result, evaluate(network(1), windows, body, fewer, seeds=(0, 3), samples=3))


def test_input_errors(windows: MotionWindows, body: BodyModel, transitions: Transitions) -> None:
    with pytest.raises(InputError, match="no windows"):
        evaluate(network(0), windows.select([]), body, transitions)
    for seeds in ((), (1, 1)):
        with pytest.raises(InputError, match="different whole numbers"):
            evaluate(network(0), windows, body, transitions, seeds=seeds)
    with pytest.raises(InputError, match="at least 1"):
        evaluate(network(0), windows, body, transitions, samples=0)


def test_standard_error_of_independent_values() -> None:
    """Independent values over windows and seeds: close to the plain standard error, and right on average."""
    generator = torch.Generator().manual_seed(0)
    errors, means = [], []
    for _ in range(400):
        values = torch.randn(20, 3, generator=generator) + torch.randn(20, 1, generator=generator)
        statistic = over_windows_and_seeds(values)
        errors.append(statistic.standard_error)
        means.append(statistic.mean)
    truth = math.sqrt(1 / 20 + 1 / 60)
    assert torch.tensor(means).std().item() == pytest.approx(truth, rel=0.1)
    # Seeds without an effect of their own make the estimate err on the safe side, by little.
    assert truth * 0.95 < sum(errors) / len(errors) < truth * 1.2


def test_standard_error_knows_a_seed_that_shifts_all_windows() -> None:
    generator = torch.Generator().manual_seed(0)
    values = 0.01 * torch.randn(50, 4, generator=generator) + torch.tensor([0.0, 1.0, 2.0, 3.0])
    expected = torch.arange(4.0).std().item() / 2
    assert over_windows_and_seeds(values).standard_error == pytest.approx(expected, rel=0.02)


def test_statistics_of_special_tables() -> None:
    column = torch.tensor([[1.0], [2.0], [6.0]])
    plain = over_windows_and_seeds(column)
    assert plain.mean == 3 and plain.standard_error == pytest.approx(column.std().item() / math.sqrt(3))
    samples = torch.tensor([1.0, 3.0]) + column[..., None]
    assert over_windows_and_seeds(samples).mean == 5
    assert over_windows_and_seeds(samples).standard_error == pytest.approx(plain.standard_error)
    assert over_windows_and_seeds(column.T).standard_error == pytest.approx(plain.standard_error)
    assert math.isnan(over_windows_and_seeds(torch.ones(1, 1)).standard_error)
    assert over_windows_and_seeds(torch.full((4, 3), 7.0)).standard_error == 0
    holed = torch.tensor([[1.0, math.nan], [2.0, 4.0], [math.nan, math.nan]])
    found = over_windows_and_seeds(holed)
    assert found.mean == 2 and found.windows == 2 and found.standard_error == pytest.approx(1.0)
    nothing = over_windows_and_seeds(torch.full((2, 2), math.nan))
    assert math.isnan(nothing.mean) and nothing.windows == 0


def test_paired_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    first = 10 * torch.randn(30, 2, 3, generator=generator)
    second = first - 1 + 0.1 * torch.randn(30, 2, 3, generator=generator)
    difference = paired_difference(first, second)
    assert difference.mean == pytest.approx(-1, abs=0.1)
    # What windows have in common cancels.
    assert difference.standard_error < 0.05 < over_windows_and_seeds(first).standard_error
    assert difference.share_lower == 1 and difference.windows == 30
    with pytest.raises(InputError, match="same windows"):
        paired_difference(first, second[:-1])


def test_a_broken_sample_has_not_convinced_the_perceptual_model(
    body: BodyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the model says of NaN: the sample is left out, not counted as one that passed for real."""
    windows = made_up_windows(body, 2)
    layout = StateLayout(include_hands=False)
    state = pack_windows(layout, windows)[:, None].repeat(1, 2, 1, 1)
    motion = decode_motion(layout, state, windows.T_world_cpf[:, None], body)
    motion.joints22[1, 0, 3, 5, 0] = math.nan
    monkeypatch.setattr(evaluate_module, "score_samples", lambda *rest: torch.full((2, 2), 9.0))
    found = evaluate_module._sample_measures(motion, windows, object(), {"score": torch.ones(2)}, 30.0)  # type: ignore[arg-type]
    for name in ("score", "score_gap", "accuracy", "fs_egoallo_m", "mpjpe_mm"):
        assert found[name].isnan().tolist() == [[False, False], [True, False]], name
    assert found["accuracy"][0].tolist() == [0.0, 0.0]
