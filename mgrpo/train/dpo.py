"""Post-training a prior with Diffusion-DPO on the best and the worst member of each group."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mgrpo.data import MotionWindows
from mgrpo.diffusion.loss import add_noise, level_weights, moving_hands, sequence_errors
from mgrpo.grpo.policy import call
from mgrpo.grpo.preference import preference_loss
from mgrpo.models.state import pack_windows

from .baseline import Baseline, Found, Part, train_baseline
from .baseline_config import DpoConfig
from .phases import Phases
from .prepared_policy import PreparedPolicy


class PreferenceTraining(Baseline):
    """The reference is the prior. Offline it draws the groups too; online the policy does, as it was when it was last
    looked at."""

    label = "dpo"
    config: DpoConfig

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.reference = self.frozen_copy()
        self._drawing: nn.Module | None = None
        if self.config.mode == "offline":
            self.drawing = self.reference
        elif self.config.refresh_every == 1:
            self.drawing = self.prepared
        else:
            self._drawing = copy.deepcopy(self.policy).requires_grad_(False)
            self.drawing = self.prepare(self._drawing)

    def beside(self) -> dict[str, nn.Module]:
        """See :class:`Baseline`."""
        return {} if self._drawing is None else {"drawing": self._drawing}

    def take_calls(self) -> dict[str, int]:
        """See :class:`Baseline`."""
        networks: list[PreparedPolicy] = [self.prepared, self.reference]
        if self._drawing is not None:
            networks.append(self.drawing)
        taken = [network.take_calls() for network in networks]
        return {name: sum(calls[name] for calls in taken) for name in taken[0]}

    def differentiate(self, iteration: int, windows: MotionWindows, phases: Phases) -> Found:
        """See :class:`Baseline`."""
        if self._drawing is not None and iteration % self.config.refresh_every == 0:
            self._drawing.load_state_dict(self.policy.state_dict())
        with phases.phase("rollout"):
            groups = self.draw_groups(self.drawing, iteration, windows)
        with phases.phase("reward"):
            ranking, every, found = self.rank(groups, self.config.advantage)
            truth = self.config.winner == "truth"
            usable, all_usable = (one.scored if truth else one.differ for one in (ranking, every))
        with phases.phase("update"):
            pairs = all_usable.sum().clamp_min(1)
            columns: list[Tensor] = []
            for part, cond, samples in zip(
                groups.parts, (rollout.cond for rollout in groups.rollouts), groups.x0, strict=True
            ):
                here = slice(part.first - self.first, part.first - self.first + len(part.windows))
                rows = torch.arange(len(samples), device=samples.device)
                winner = pack_windows(self.policy.layout, part.windows) if truth else samples[rows, ranking.best[here]]
                pair = torch.stack((winner.to(samples), samples[rows, ranking.worst[here]]), dim=1)
                for level in range(self.config.levels):
                    columns.append(self._compare(iteration, level, part, cond, pair, usable[here], pairs))
            measured = torch.cat(self.processes.gather(torch.cat(columns)))
        return Found(
            {**found.metrics, **_pair_metrics(measured), "dpo/pairs": all_usable.float().mean()}, found.rewards
        )

    def _compare(
        self, iteration: int, level: int, part: Part, cond: Tensor, pair: Tensor, usable: Tensor, pairs: Tensor
    ) -> Tensor:
        """Gradient of the pairs ``(b, 2, T, D)`` of a part at one level each; what was seen of them ``(b, 8)``: loss,
        z, correct, the four m, and whether they count."""
        windows, schedule, weights = part.windows, self.task.schedule, self.config.loss
        draws = self.draws(iteration, level, part)
        x_t = add_noise(schedule, pair, draws.t, draws.noise[:, None])
        mask = windows.mask if windows.padded else None
        weight = level_weights(schedule, weights, draws.t, pair.dtype)

        def errors(network: PreparedPolicy) -> Tensor:
            return sequence_errors(
                self.policy.layout, call(network, x_t, draws.t, cond, mask), pair, mask=windows.mask[:, None],
                level_weight=weight[:, None], hands_count=moving_hands(self.policy.layout, windows)[:, None],
                weights=weights,
            )  # fmt: skip

        with torch.no_grad():
            before = errors(self.reference)
        now = errors(self.prepared)
        result = preference_loss(*now.unbind(1), *before.unbind(1), beta=self.config.beta)
        counted = torch.where(usable, result.loss, 0.0)
        self.precision.backward(counted.sum() / (pairs * self.config.levels))
        seen = (counted, result.z, result.correct, *now.unbind(1), *before.unbind(1), usable)
        return torch.stack([column.detach().float() for column in seen], dim=1)


def _pair_metrics(columns: Tensor) -> dict[str, Tensor]:
    """Means over the pairs that count, and the spread of z. The errors of winner and loser stand apart: when both rise,
    the policy forgets the motion."""
    counts = columns[:, -1]
    number = counts.sum().clamp_min(1)

    def mean(column: Tensor) -> Tensor:
        return torch.where(counts > 0, column, 0.0).sum() / number

    names = ("loss", "dpo/z_mean", "dpo/accuracy", "dpo/m_w", "dpo/m_l", "dpo/m_w_reference", "dpo/m_l_reference")
    found = {name: mean(column) for name, column in zip(names, columns[:, :-1].unbind(1), strict=True)}
    found["dpo/z_std"] = mean((columns[:, 1] - found["dpo/z_mean"]) ** 2).sqrt()
    return found


def train_dpo(config: DpoConfig, *, command: list[str] | None = None) -> Path:
    """Post-train until ``config.iterations`` and return the last checkpoint. Raises as
    :func:`mgrpo.train.baseline.train_baseline`."""
    return train_baseline(PreferenceTraining, config, command)


__all__ = ["DpoConfig", "PreferenceTraining", "train_dpo"]
