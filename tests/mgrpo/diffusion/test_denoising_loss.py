"""The prior's training loss against EgoAllo's, and the parts it is made of."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mgrpo.data.windows import MotionWindows
from mgrpo.diffusion.loss import LossWeights, count_frames, denoising_loss, draw_training_noise, hand_positions
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.errors import InputError
from mgrpo.geometry import axis_angle_to_rotmat, quat_to_rotmat, se3_apply
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.state import StateLayout, pack_windows
from tests.golden import golden_files

SCHEDULE = CosineSchedule.make()
SMALL = DenoiserConfig(
    d_latent=32, d_feedforward=64, d_noise_emb=16, num_heads=4, encoder_layers=1, decoder_layers=1, include_hands=False
)


def random_windows(generator: torch.Generator, batch: int = 3, frames: int = 8, hands: bool = False) -> MotionWindows:
    """Windows of unrelated numbers of the right kinds: enough for a loss, no real motion."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator)

    def poses() -> torch.Tensor:
        return torch.cat((F.normalize(draw(frames, 4), dim=-1), draw(frames, 3)), dim=-1)

    return MotionWindows(
        T_world_cpf=poses(),
        T_cpf_tm1_cpf_t=poses(),
        T_world_root=poses(),
        body_rotmats=axis_angle_to_rotmat(draw(frames, 21, 3)),
        hand_rotmats=axis_angle_to_rotmat(draw(frames, 30, 3)) if hands else None,
        betas=draw(16),
        contacts=(draw(frames, 21) > 0).float(),
        joints=draw(frames, 22, 3),
        R_world_joint=axis_angle_to_rotmat(draw(frames, 22, 3)),
        mask=torch.ones(batch, frames, dtype=torch.bool),
        names=tuple(f"clip{i}" for i in range(batch)),
    )


def loss_of(
    model: Denoiser, windows: MotionWindows, seed: int = 0, **options: object
) -> tuple[float, dict[str, float]]:
    batch, frames = windows.mask.shape
    draws = draw_training_noise(model.layout, seed=seed, iteration=0, batch=batch, frames=frames)
    result = denoising_loss(
        model, windows, model.layout, SCHEDULE, t=draws.t, noise=draws.noise, **options  # type: ignore[arg-type]
    )  # fmt: skip
    return result.total.item(), {name: value.item() for name, value in result.terms.items()}


class GoldenCase(NamedTuple):
    """A case of the reference, in one precision."""

    model: Denoiser
    windows: MotionWindows
    t: torch.Tensor
    noise: torch.Tensor
    arrays: dict[str, torch.Tensor]
    order: list[str]
    """Parameters in the order of ``grad_norm_per_param_*``."""

    def check(self, loss: float, terms: dict[str, float], tag: str, tolerance: float) -> None:
        """Compare the total, the terms, and the gradients that the model holds."""
        arrays = self.arrays
        assert loss == pytest.approx(arrays[f"loss_{tag}"].item(), rel=tolerance)
        assert set(terms) == set(self.model.layout.slices)
        for name, term in terms.items():
            assert term == pytest.approx(arrays[f"loss_term_{name}_{tag}"].item(), rel=tolerance)
        parameters = dict(self.model.named_parameters())
        compared = set()
        for name, norm in zip(self.order, arrays[f"grad_norm_per_param_{tag}"].tolist(), strict=True):
            if name.endswith("rotary_emb.freqs"):
                continue  # not a parameter of ours: never trained
            gradient = parameters[name].grad
            assert gradient.norm().item() == pytest.approx(norm, rel=5 * tolerance, abs=1e-12), name
            compared.add(name)
        assert compared == set(parameters)
        total = torch.stack([p.grad.norm() for p in parameters.values()]).norm().item()
        assert total == pytest.approx(arrays[f"grad_norm_{tag}"].item(), rel=tolerance)


def golden_case(path: Path, dtype: torch.dtype) -> GoldenCase:
    described = json.loads(path.with_suffix(".json").read_text())
    assert described["loss_config"] == {}, "only EgoAllo's default loss is compared"
    with np.load(path, allow_pickle=False) as data:
        arrays = {name: torch.from_numpy(data[name]) for name in data.files if data[name].dtype.kind in "fib"}
        order = [str(name) for name in data["param_order"]]
    model = Denoiser(DenoiserConfig(**described["config"])).train()
    model.load_state_dict({k[len("param/") :]: v for k, v in arrays.items() if k.startswith("param/")})
    given = {name: arrays[name].to(dtype) for name in arrays if arrays[name].is_floating_point()}
    joints = torch.cat((torch.zeros_like(given["joints_wrt_cpf"][..., :1, :]), given["joints_wrt_cpf"]), dim=-2)
    windows = MotionWindows(
        T_world_cpf=given["T_world_cpf"],
        T_cpf_tm1_cpf_t=given["T_cpf_tm1_cpf_t"],
        T_world_root=given["T_world_root"],
        body_rotmats=quat_to_rotmat(given["body_quats"]),
        hand_rotmats=quat_to_rotmat(given["hand_quats"]),
        betas=given["betas"][:, 0],
        contacts=given["contacts"],
        joints=se3_apply(given["T_world_cpf"][..., None, :], joints),
        R_world_joint=torch.eye(3, dtype=dtype).expand(*joints.shape, 3),
        mask=arrays["mask"],
        names=("",) * len(arrays["mask"]),
    )
    noise = arrays["eps_int8"].to(dtype) / arrays["noise_scale"].to(dtype)
    return GoldenCase(model.to(dtype), windows, arrays["t"], noise, arrays, order)


# The recorded float64 network keeps float32 tables of sines, whose last digit differs between processors.
PRECISIONS = [(torch.float32, "f32", 2e-6), (torch.float64, "f64model", 2e-8)]


@pytest.mark.golden
@pytest.mark.parametrize(("dtype", "tag", "tolerance"), PRECISIONS)
def test_loss_and_gradients_match_the_reference(dtype: torch.dtype, tag: str, tolerance: float) -> None:
    for path in golden_files("loss/denoising_*.npz"):
        case = golden_case(path, dtype)
        model, windows = case.model, case.windows
        # The reference draws who keeps the condition too; at its rate of dropout, 0, all do.
        keep = torch.ones(len(windows), dtype=torch.bool)
        loss = denoising_loss(model, windows, model.layout, SCHEDULE, t=case.t, noise=case.noise, cond_keep=keep)
        loss.total.backward()
        case.check(loss.total.item(), {name: term.item() for name, term in loss.terms.items()}, tag, tolerance)


@pytest.mark.golden
@pytest.mark.parametrize(("dtype", "tag", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("parts", [2, 3])
def test_parts_of_the_batch_add_up_to_the_reference(dtype: torch.dtype, tag: str, tolerance: float, parts: int) -> None:
    for path in golden_files("loss/denoising_*.npz"):
        case = golden_case(path, dtype)
        model = case.model
        counts = count_frames(model.layout, case.windows)
        assert counts.frames == case.windows.mask.sum() and (case.windows.mask.sum(1).unique().numel() > 1)
        total, terms = 0.0, dict.fromkeys(model.layout.slices, 0.0)
        for rows in torch.arange(len(case.windows)).chunk(parts):
            loss = denoising_loss(
                model, case.windows.select(rows), model.layout, SCHEDULE, t=case.t[rows], noise=case.noise[rows],
                counts=counts,
            )  # fmt: skip
            loss.total.backward()
            total += loss.total.item()
            terms = {name: terms[name] + term.item() for name, term in loss.terms.items()}
        case.check(total, terms, tag, 2 * tolerance)


@pytest.mark.golden
def test_level_weights_match_the_reference() -> None:
    for path in golden_files("loss/denoising_*.npz"):
        weights = golden_case(path, torch.float32).arrays["weight_t"]
        torch.testing.assert_close(SCHEDULE.training_weight_f32[1:], weights[1:], atol=0, rtol=1e-6)


class Oracle(Denoiser):
    """Predicts a given state, so that a loss can be computed by hand."""

    def __init__(self, config: DenoiserConfig, x0: torch.Tensor) -> None:
        super().__init__(config)
        self.x0 = x0

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, **conditions: object) -> torch.Tensor:
        self.seen = (x_t, t, conditions)
        return self.x0


def state_of(windows: MotionWindows, hands: bool) -> torch.Tensor:
    return pack_windows(StateLayout(hands), windows)


def test_perfect_prediction_costs_nothing(tiny: torch.Generator) -> None:
    windows = random_windows(tiny, hands=True)
    config = dataclasses.replace(SMALL, include_hands=True)
    total, terms = loss_of(Oracle(config, state_of(windows, True)), windows)
    assert total == 0.0 and set(terms.values()) == {0.0}


@pytest.mark.parametrize("level", ["egoallo", "constant"])
def test_terms_by_hand(level: str, tiny: torch.Generator) -> None:
    windows = random_windows(tiny)
    mask = torch.arange(8) < torch.tensor([8, 3, 5])[:, None]
    windows = dataclasses.replace(windows, mask=mask)
    x0 = state_of(windows, False)
    error = torch.randn(x0.shape, generator=tiny)
    draws = draw_training_noise(StateLayout(False), seed=0, iteration=0, batch=3, frames=8)
    weights = LossWeights(betas=0.3, body_rotmats=2.0, contacts=0.7, level=level)  # type: ignore[arg-type]
    model = Oracle(SMALL, x0 + error)
    loss = denoising_loss(model, windows, model.layout, SCHEDULE, t=draws.t, noise=draws.noise, weights=weights)
    w_t = SCHEDULE.training_weight_f32[draws.t] if level == "egoallo" else torch.ones(3)
    falling = 1.0 / torch.arange(1, 17)
    expected = {"betas": 0.0, "body_rotmats": 0.0, "contacts": 0.0}
    for b in range(3):
        for frame in range(int(mask[b].sum())):
            e = error[b, frame] ** 2
            expected["betas"] += float(w_t[b] * (e[:16] * falling).mean() / mask.sum())
            expected["body_rotmats"] += float(w_t[b] * e[16:205].mean() / mask.sum())
            expected["contacts"] += float(w_t[b] * e[205:].mean() / mask.sum())
    for name, value in expected.items():
        assert loss.terms[name].item() == pytest.approx(value, rel=1e-4)
    total = 0.3 * expected["betas"] + 2.0 * expected["body_rotmats"] + 0.7 * expected["contacts"]
    assert loss.total.item() == pytest.approx(total, rel=1e-4)
    x_t, t, conditions = model.seen
    abar = SCHEDULE.alpha_bar[draws.t].float()[:, None, None]
    torch.testing.assert_close(x_t, abar.sqrt() * x0 + (1 - abar).sqrt() * draws.noise, atol=1e-5, rtol=0)
    assert torch.equal(t, draws.t) and torch.equal(conditions["mask"], mask)


def test_padded_frames_do_not_count(tiny: torch.Generator) -> None:
    windows = dataclasses.replace(random_windows(tiny), mask=torch.arange(8) < torch.tensor([8, 3, 5])[:, None])
    x0 = state_of(windows, False)
    wrong_in_padding = torch.where(windows.mask[..., None], x0, x0 + 100.0)
    assert loss_of(Oracle(SMALL, wrong_in_padding), windows)[0] == 0.0


def test_hands_count_only_where_they_move(tiny: torch.Generator) -> None:
    config = dataclasses.replace(SMALL, include_hands=True)
    windows = random_windows(tiny, batch=2, hands=True)
    assert windows.hand_rotmats is not None
    hands = windows.hand_rotmats.clone()
    hands[0] = hands[0, :1]
    windows = dataclasses.replace(windows, hand_rotmats=hands)
    x0 = state_of(windows, True)
    still, moving = x0.clone(), x0.clone()
    still[0, :, 226:] += 1.0
    moving[1, :, 226:] += 1.0
    draws = draw_training_noise(StateLayout(True), seed=0, iteration=0, batch=2, frames=8)
    assert loss_of(Oracle(config, still), windows)[1]["hand_rotmats"] == 0.0
    # 8 moving frames, but the denominator never falls below 256.
    expected = SCHEDULE.training_weight_f32[draws.t[1]].item() * 8 / 256
    assert loss_of(Oracle(config, moving), windows)[1]["hand_rotmats"] == pytest.approx(expected, rel=1e-4)


def test_hands_are_averaged_over_their_frames_where_there_are_many(tiny: torch.Generator) -> None:
    config = dataclasses.replace(SMALL, include_hands=True)
    windows = random_windows(tiny, batch=2, frames=300, hands=True)
    mask = torch.arange(300) < torch.tensor([300, 40])[:, None]
    windows = dataclasses.replace(windows, mask=mask)
    x0 = state_of(windows, True)
    wrong = x0.clone()
    wrong[:, :, 226:] += 1.0
    draws = draw_training_noise(StateLayout(True), seed=0, iteration=0, batch=2, frames=300)
    w_t = SCHEDULE.training_weight_f32[draws.t]
    expected = (w_t[0] * 300 + w_t[1] * 40).item() / 340
    assert loss_of(Oracle(config, wrong), windows)[1]["hand_rotmats"] == pytest.approx(expected, rel=1e-4)
    # Parts below the bound of 256 frames: it holds for the whole batch, not for each.
    counts = count_frames(StateLayout(True), windows)
    assert counts == (340, 340)
    part, alone = (
        denoising_loss(
            Oracle(config, wrong[1:]), windows.select([1]), StateLayout(True), SCHEDULE, t=draws.t[1:],
            noise=draws.noise[1:], counts=given,
        ).terms["hand_rotmats"].item()
        for given in (counts, None)
    )  # fmt: skip
    assert part == pytest.approx(w_t[1].item() * 40 / 340, rel=1e-4)
    assert alone == pytest.approx(w_t[1].item() * 40 / 256, rel=1e-4)


@pytest.mark.parametrize(("change", "counts"), [(0.9e-5, False), (1.2e-5, True)])
def test_hands_move_from_a_summed_change_of_1e_5(change: float, counts: bool, tiny: torch.Generator) -> None:
    """Over real frames only: what padding holds does not make a hand move."""
    windows = random_windows(tiny, batch=1, hands=True).to(dtype=torch.float64)
    assert windows.hand_rotmats is not None
    hands = windows.hand_rotmats[:, :1].expand(1, 8, 30, 3, 3).clone()
    hands[0, 2, 5, 0, 1] += change / 2
    hands[0, 4, 7, 2, 2] -= change / 2
    hands[0, 6] += 1.0
    windows = dataclasses.replace(windows, hand_rotmats=hands, mask=torch.arange(8)[None] < 5)
    assert count_frames(StateLayout(True), windows) == (5, 5 if counts else 0)
    config = dataclasses.replace(SMALL, include_hands=True)
    term = loss_of(Oracle(config, state_of(windows, True) + 1.0), windows)[1]["hand_rotmats"]
    assert (term > 0) == counts


def test_windows_without_hand_motion_train_a_model_with_hands(tiny: torch.Generator) -> None:
    model = Denoiser(dataclasses.replace(SMALL, include_hands=True))
    total, terms = loss_of(model, random_windows(tiny))
    assert terms["hand_rotmats"] == 0.0 and total > 0


def test_wrists_reach_the_condition_and_can_be_hidden(tiny: torch.Generator) -> None:
    config = dataclasses.replace(SMALL, include_hand_positions_cond=True)
    windows = random_windows(tiny)
    model = Oracle(config, state_of(windows, False))
    loss_of(model, windows)
    wrists = model.seen[2]["hand_positions_wrt_cpf"]
    back = se3_apply(windows.T_world_cpf[..., None, :], wrists.unflatten(-1, (2, 3)))
    torch.testing.assert_close(back, windows.joints[..., 20:22, :], atol=1e-4, rtol=0)
    assert torch.equal(wrists, hand_positions(windows))
    keep = torch.arange(8).remainder(2).bool().expand(3, 8)
    loss_of(model, windows, hand_keep=keep)
    hidden = model.seen[2]["hand_positions_wrt_cpf"]
    assert hidden[~keep].eq(0).all() and torch.equal(hidden[keep], wrists[keep])


def test_condition_dropout_changes_those_items_only(tiny: torch.Generator) -> None:
    model = Denoiser(SMALL)
    windows = random_windows(tiny)
    base = loss_of(model, windows)[0]
    assert loss_of(model, windows, cond_keep=torch.ones(3, dtype=torch.bool))[0] == pytest.approx(base, rel=1e-6)
    assert loss_of(model, windows, cond_keep=torch.tensor([True, False, True]))[0] != base


def test_a_dropped_condition_is_zero_and_keeps_its_frames(tiny: torch.Generator) -> None:
    """Only the condition goes: the item counts as before, and another head motion makes no difference to it."""
    model, windows = Denoiser(SMALL), random_windows(tiny)
    turned = dataclasses.replace(windows, T_world_cpf=windows.T_world_cpf.flip(0), T_cpf_tm1_cpf_t=windows.T_world_cpf)
    keep = torch.zeros(3, dtype=torch.bool)
    dropped = loss_of(model, windows, cond_keep=keep)
    assert dropped == loss_of(model, turned, cond_keep=keep) and dropped != loss_of(model, windows)


def test_a_network_in_half_precision_is_compared_in_float32(tiny: torch.Generator) -> None:
    windows = random_windows(tiny)
    x0 = state_of(windows, False)
    draws = draw_training_noise(StateLayout(False), seed=0, iteration=0, batch=3, frames=8)
    halved = x0.bfloat16()
    model = Denoiser(SMALL)
    loss = denoising_loss(
        model, windows, model.layout, SCHEDULE, t=draws.t, noise=draws.noise, network=lambda *_, **__: halved
    )
    assert loss.total.dtype == torch.float32
    assert loss.total.item() == pytest.approx(loss_of(Oracle(SMALL, halved.float()), windows)[0], rel=1e-6)


def test_loss_falls_in_a_few_steps(tiny: torch.Generator) -> None:
    model, windows = Denoiser(SMALL), random_windows(tiny, batch=8)
    windows = dataclasses.replace(windows, body_rotmats=windows.body_rotmats[:1, :1].expand(8, 8, 21, 3, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    weights, losses = LossWeights(level="constant"), []
    for iteration in range(40):
        draws = draw_training_noise(model.layout, seed=1, iteration=iteration, batch=8, frames=8)
        loss = denoising_loss(model, windows, model.layout, SCHEDULE, t=draws.t, noise=draws.noise, weights=weights)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(loss.total.item())
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


# Draws


def test_draws_are_a_function_of_seed_and_iteration() -> None:
    layout = StateLayout(False)
    a = draw_training_noise(layout, seed=1, iteration=4, batch=6, frames=5, cond_dropout=0.5)
    torch.manual_seed(99)
    b = draw_training_noise(layout, seed=1, iteration=4, batch=6, frames=5, cond_dropout=0.5)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    for other in ({"seed": 2, "iteration": 4}, {"seed": 1, "iteration": 5}):
        c = draw_training_noise(layout, batch=6, frames=5, **other)
        assert not torch.equal(a.noise, c.noise) and not torch.equal(a.t, c.t)
    longer = draw_training_noise(layout, seed=1, iteration=4, batch=9, frames=5, cond_dropout=0.5)
    assert all(torch.equal(x, y[:6]) for x, y in zip(a, longer, strict=True))
    rest = draw_training_noise(layout, seed=1, iteration=4, batch=5, frames=5, cond_dropout=0.5, first=4)
    assert all(torch.equal(x, y[4:]) for x, y in zip(rest, longer, strict=True))


def test_draws_are_distributed_as_stated() -> None:
    draws = draw_training_noise(StateLayout(False), seed=0, iteration=0, batch=20000, frames=1, cond_dropout=0.25)
    assert draws.t.min() >= 1 and draws.t.max() <= 1000
    counts = torch.histc(draws.t.float(), bins=10, min=0.5, max=1000.5)
    assert (counts - 2000).abs().max() < 5 * 2000**0.5
    assert draws.cond_keep.float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert draws.hand_keep.float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert draws.noise.std().item() == pytest.approx(1.0, abs=0.01)
    everything = draw_training_noise(StateLayout(False), seed=0, iteration=0, batch=1000, frames=1)
    assert everything.cond_keep.all()
    few = draw_training_noise(StateLayout(False), seed=0, iteration=0, batch=1000, frames=1, max_t=3)
    assert set(few.t.tolist()) == {1, 2, 3}


def test_clips_hide_the_wrists_at_their_own_rates() -> None:
    draws = draw_training_noise(StateLayout(False), seed=0, iteration=0, batch=200, frames=400)
    rates = draws.hand_keep.float().mean(dim=1)
    assert rates.min() < 0.1 and rates.max() > 0.9


def test_errors(tiny: torch.Generator) -> None:
    model, windows = Denoiser(SMALL), random_windows(tiny)
    t, noise = torch.ones(3, dtype=torch.long), torch.zeros(3, 8, 226)
    with pytest.raises(InputError, match="isn't the denoiser's"):
        denoising_loss(model, windows, StateLayout(True), SCHEDULE, t=t, noise=noise)
    with pytest.raises(InputError, match="they must agree"):
        denoising_loss(model, windows, model.layout, CosineSchedule.make(100), t=t, noise=noise)
    with pytest.raises(InputError, match="noise must have shape"):
        denoising_loss(model, windows, model.layout, SCHEDULE, t=t, noise=noise[:, :4])
    empty = dataclasses.replace(windows, mask=torch.zeros_like(windows.mask))
    with pytest.raises(InputError, match="at least one real frame"):
        denoising_loss(model, empty, model.layout, SCHEDULE, t=t, noise=noise)
    with pytest.raises(InputError, match="contacts"):
        LossWeights(contacts=-1.0)
    with pytest.raises(InputError, match="level"):
        LossWeights(level="snr")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cond_dropout"):
        draw_training_noise(StateLayout(False), seed=0, iteration=0, batch=1, frames=1, cond_dropout=1.5)
