"""What DPO and rejection sampling are made of: errors of whole sequences, the preference, and who is best."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mgrpo.diffusion.loss import (
    FrameCounts,
    LossWeights,
    add_noise,
    level_weights,
    regression_loss,
    sequence_errors,
)
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.grpo.preference import preference_loss
from mgrpo.grpo.ranking import rank_groups
from mgrpo.models.state import StateLayout

SCHEDULE = CosineSchedule.make()
WEIGHTS = LossWeights(betas=0.2, body_rotmats=0.9, contacts=0.3, hand_rotmats=0.05)
T_LEVELS = torch.tensor([3, 700])


def states(layout: StateLayout, *lead: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clean states, predictions and a mask ``(2, T)`` of two conditions, float64."""
    generator = torch.Generator().manual_seed(1)
    shape = (2, *lead, 5, layout.dim)
    x0, x0_pred = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return x0, x0_pred, torch.tensor([[True] * 5, [True, True, True, False, False]])


def slow_error(layout: StateLayout, f: Tensor, x0: Tensor, mask: Tensor, weight: float, hands: bool) -> float:
    """The error of one sequence ``(T, D)``, number by number."""
    total, frames = 0.0, [t for t in range(len(mask)) if mask[t]]
    start = 0
    for name, size in (("betas", 16), ("body_rotmats", 189), ("contacts", 21), ("hand_rotmats", 270)):
        if name == "hand_rotmats" and not layout.include_hands:
            continue
        for t in frames if name != "hand_rotmats" or hands else []:
            for i in range(size):
                square = (float(f[t, start + i]) - float(x0[t, start + i])) ** 2
                total += weight * getattr(WEIGHTS, name) * square / (i + 1 if name == "betas" else 1) / size
        start += size
    return total / len(frames)


@pytest.mark.parametrize("hands", [False, True])
def test_errors_of_sequences(hands: bool) -> None:
    layout = StateLayout(hands)
    x0, x0_pred, mask = states(layout, 2)
    weight = level_weights(SCHEDULE, WEIGHTS, T_LEVELS, torch.float64)
    abar = SCHEDULE.alpha_bar
    snr = abar / (1 - abar)
    for t, value in zip(T_LEVELS.tolist(), weight.tolist(), strict=True):
        assert value == pytest.approx(float(0.99 * snr[t] / snr[1] + 0.01), rel=1e-3)
    moving = torch.tensor([True, False])
    found = sequence_errors(
        layout, x0_pred, x0, mask=mask[:, None], level_weight=weight[:, None], hands_count=moving[:, None],
        weights=WEIGHTS,
    )  # fmt: skip
    assert found.shape == (2, 2)
    for b in range(2):
        for g in range(2):
            slow = slow_error(layout, x0_pred[b, g], x0[b, g], mask[b], float(weight[b]), bool(moving[b]))
            assert float(found[b, g]) == pytest.approx(slow, rel=1e-12)


def test_the_loss_of_a_batch_is_that_of_its_sequences() -> None:
    """Sequences that are left out by the mask count neither above nor below the line."""
    layout = StateLayout(False)
    x0, x0_pred, mask = states(layout)
    learned = mask & torch.tensor([[False], [True]])
    weight = level_weights(SCHEDULE, WEIGHTS, T_LEVELS, torch.float64)
    none = torch.zeros(2, dtype=torch.bool)
    loss = regression_loss(
        layout, x0_pred, x0, mask=learned, level_weight=weight, hands_count=none,
        counts=FrameCounts(learned.sum(), torch.tensor(0)), weights=WEIGHTS,
    )  # fmt: skip
    assert float(loss.total) == pytest.approx(
        slow_error(layout, x0_pred[1], x0[1], mask[1], float(weight[1]), False), rel=1e-12
    )


def test_noised_states() -> None:
    x0 = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.randn(2, 1, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x_t = add_noise(SCHEDULE, x0, T_LEVELS, noise)
    for b, t in enumerate(T_LEVELS.tolist()):
        abar = float(SCHEDULE.alpha_bar[t])
        expected = math.sqrt(abar) * x0[b] + math.sqrt(1 - abar) * noise[b]
        torch.testing.assert_close(x_t[b], expected, atol=1e-4, rtol=1e-4)  # constants are float32


def test_the_preference_and_its_gradient() -> None:
    """Against the formula written out, and the closed form of its derivative."""
    m = [torch.tensor([0.4, 0.1, 0.3], dtype=torch.float64, requires_grad=True) for _ in range(2)]
    with torch.no_grad():
        m[1] += torch.tensor([0.1, -0.05, 0.0])
    reference = [torch.tensor([0.35, 0.2, 0.3]).double(), torch.tensor([0.4, 0.3, 0.3]).double()]
    beta = 7.0
    result = preference_loss(m[0], m[1], *reference, beta=beta)
    for n in range(3):
        won, lost = (float(m[side].detach()[n]) - float(reference[side][n]) for side in range(2))
        z = -beta / 2 * (won - lost)
        assert float(result.z[n]) == pytest.approx(z, abs=1e-12)
        assert result.loss[n].item() == pytest.approx(math.log1p(math.exp(-z)), rel=1e-12)
    result.loss.sum().backward()
    slope = beta / 2 / (1 + torch.exp(result.z))
    torch.testing.assert_close(m[0].grad, slope)
    torch.testing.assert_close(m[1].grad, -slope)


def test_implicit_accuracy_of_a_made_up_case() -> None:
    """The first pair is better than the reference says, the second worse; of the third nothing is known."""
    now, before = torch.tensor([0.1, 0.5, 0.2]), torch.tensor([0.3, 0.3, 0.2])
    result = preference_loss(now, before, before, before, beta=10.0)
    assert result.correct.tolist() == [1.0, 0.0, 0.5]
    assert result.z.tolist() == pytest.approx([1.0, -1.0, 0.0], abs=1e-6)


def test_the_winners_prediction_moves_towards_the_winner() -> None:
    """dL/df = -sigmoid(-z) beta w (x0 - f) / (channels and frames) for the winner, the opposite for the loser."""
    layout, beta = StateLayout(False), 11.0
    x0, start, mask = states(layout, 2)
    f = start.clone().requires_grad_()
    weight = level_weights(SCHEDULE, WEIGHTS, T_LEVELS, torch.float64)
    none = torch.zeros(2, 1, dtype=torch.bool)
    options = {"mask": mask[:, None], "level_weight": weight[:, None], "hands_count": none, "weights": WEIGHTS}
    m = sequence_errors(layout, f, x0, **options)
    result = preference_loss(*m.unbind(1), *(m.detach() * 0.9).unbind(1), beta=beta)
    result.loss.sum().backward()
    share = torch.zeros(layout.dim, dtype=torch.float64)
    for name, part in layout.slices.items():
        share[part] = getattr(WEIGHTS, name) / (part.stop - part.start)
    share[:16] /= torch.arange(1, 17)
    doubt = 1 / (1 + torch.exp(result.z))
    for b in range(2):
        frames = int(mask[b].sum())
        for side, sign in ((0, -1.0), (1, 1.0)):
            expected = sign * doubt[b] * beta * weight[b] * share * (x0[b, side] - start[b, side]) / frames
            torch.testing.assert_close(f.grad[b, side], expected * mask[b][:, None])
    moved = -f.grad
    towards = (moved * (x0 - start)).sum((-1, -2))
    assert bool((towards[:, 0] > 0).all() and (towards[:, 1] < 0).all())


def slow_scores(rewards: list[list[list[float]]], weights: list[float]) -> list[list[float]]:
    """Summed z-scores of the members that can be scored; NaN for the others."""
    result = []
    for group in rewards:
        scored = [member for member in group if all(math.isfinite(value) for value in member)]
        total = []
        for member in group:
            score = 0.0 if member in scored else math.nan
            for k, weight in enumerate(weights):
                column = [other[k] for other in scored]
                mean = sum(column) / len(column)
                std = math.sqrt(sum((value - mean) ** 2 for value in column) / (len(column) - 1))
                score += weight * (member[k] - mean) / std
            total.append(score)
        result.append(total)
    return result


def test_best_and_worst_of_a_group() -> None:
    generator = torch.Generator().manual_seed(5)
    rewards = torch.rand(6, 30, 3, generator=generator, dtype=torch.float64)
    rewards[0, 4, 1] = math.nan
    rewards[1, :, :] *= 1e-3  # small spreads count as large ones
    rewards[2, 7] = 50.0  # further out than any clamp
    rewards[2, 8] = 49.0
    weights = [1.0, 2.0, 0.5]
    found = rank_groups(rewards, weights=torch.tensor(weights), eps=0.0, dead_ratio=0.0, dead_abs=0.0, clamp=0.1)
    for b, scores in enumerate(slow_scores(rewards.tolist(), weights)):
        known = [(score, -g) for g, score in enumerate(scores) if not math.isnan(score)]
        assert -max(known)[1] == int(found.best[b]) and -min(known)[1] == int(found.worst[b]), b
    assert found.scored.all() and found.differ.all()


def test_groups_without_ends() -> None:
    rewards = torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(0))
    rewards[0] = math.nan
    rewards[1] = 0.5  # all alike
    rewards[2, :2] = math.nan  # one member can be scored
    found = rank_groups(rewards, weights=torch.ones(2))
    assert found.scored.tolist() == [False, True, True, True]
    assert found.differ.tolist() == [False, False, False, True]
    assert int(found.worst[2]) == 2 and int(found.best[2]) == 2
