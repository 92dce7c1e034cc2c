"""Fine-tuning a prior with its own denoising loss: on recordings, with joint errors added, or on the best of its own
samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgrpo.data import MotionWindows
from mgrpo.diffusion.loss import (
    DenoisingLoss,
    FrameCounts,
    TrainingDraws,
    add_noise,
    count_frames,
    denoising_loss,
    level_weights,
    moving_hands,
    regression_loss,
)
from mgrpo.grpo.policy import call
from mgrpo.models.conditioning import make_cond

from .baseline import Baseline, Found, Groups, Part, train_baseline
from .baseline_config import FinetuneConfig
from .phases import Phases


def best_rows(cond: Tensor, groups: int, best: Tensor) -> Tensor:
    """The condition that the best member of each group saw: ``cond`` of one row for each group, or for each member."""
    if len(cond) == groups:
        return cond
    return cond.unflatten(0, (groups, -1))[torch.arange(groups, device=cond.device), best]


class Finetuning(Baseline):
    """All variants are the same loss of other motions, over ``levels`` draws of noise."""

    label = "finetune"
    config: FinetuneConfig

    @property
    def shown(self) -> tuple[str, ...]:
        """Measures that the progress shows."""
        return ("loss", "reward") if self.config.needs_rewards else ("loss",)

    @property
    def samples(self) -> int:
        """Sequences that an iteration draws or, where it draws none, learns from."""
        return super().samples if self.config.needs_rewards else self.config.conditions * self.config.levels

    def differentiate(self, iteration: int, windows: MotionWindows, phases: Phases) -> Found:
        """See :class:`Baseline`."""
        if self.config.variant == "best-of-group":
            return self._from_groups(iteration, windows, phases)
        with phases.phase("update"):
            counts = self._summed(count_frames(self.policy.layout, windows))
            values: dict[str, Tensor] = {}
            for part in self.parts(windows):
                for level in range(self.config.levels):
                    draws = self.draws(iteration, level, part)
                    loss = denoising_loss(
                        self.policy, part.windows, self.policy.layout, self.task.schedule, t=draws.t,
                        noise=draws.noise, weights=self.config.loss, hand_keep=draws.hand_keep, counts=counts,
                        network=self._forward,
                    )  # fmt: skip
                    self._backward(loss, self._geometric(loss, draws, part), values)
            return Found({**self.over_processes(values)})

    def _from_groups(self, iteration: int, windows: MotionWindows, phases: Phases) -> Found:
        """Rejection sampling: groups whose members are all alike, or can't be scored, teach nothing."""
        with phases.phase("rollout"):
            groups: Groups = self.draw_groups(self.prepared, iteration, windows)
        with phases.phase("reward"):
            ranking, _, found = self.rank(groups, self.config.advantage)
        with phases.phase("update"):
            layout, schedule, weights = self.policy.layout, self.task.schedule, self.config.loss
            learned = windows.mask & ranking.differ[:, None]
            hands = moving_hands(layout, windows)
            counts = self._summed(FrameCounts(learned.sum(), (learned & hands[:, None]).sum()))
            values: dict[str, Tensor] = {}
            for part, rollout, samples in zip(groups.parts, groups.rollouts, groups.x0, strict=True):
                here = slice(part.first - self.first, part.first - self.first + len(part.windows))
                best = ranking.best[here]
                x0 = samples[torch.arange(len(samples), device=samples.device), best]
                cond = best_rows(rollout.cond, len(samples), best)
                mask = part.windows.mask if part.windows.padded else None
                for level in range(self.config.levels):
                    draws = self.draws(iteration, level, part)
                    x_t = add_noise(schedule, x0, draws.t, draws.noise)
                    x0_pred = call(self.prepared, x_t[:, None], draws.t, cond, mask)[:, 0]
                    loss = regression_loss(
                        layout, x0_pred, x0, mask=learned[here],
                        level_weight=level_weights(schedule, weights, draws.t, x0.dtype), hands_count=hands[here],
                        counts=counts, weights=weights,
                    )  # fmt: skip
                    self._backward(loss, None, values)
            ranked = {"learned_groups": ranking.differ.float().sum() / self.config.conditions}
            return Found({**found.metrics, **self.over_processes(values | ranked)}, found.rewards)

    def _summed(self, own: FrameCounts) -> FrameCounts:
        """Frames of the whole batch, at least one."""
        return FrameCounts(*self.processes.sum_(torch.stack(own)).clamp_min(1))

    def _forward(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        T_world_cpf: Tensor,
        T_cpf_tm1_cpf_t: Tensor,
        hand_positions_wrt_cpf: Tensor | None,
        mask: Tensor | None,
        **unused: None,
    ) -> Tensor:
        """The policy as :meth:`mgrpo.models.denoiser.Denoiser.forward`, with its calls counted."""
        cond = make_cond(self.policy.config, T_world_cpf, T_cpf_tm1_cpf_t, hand_positions_wrt_cpf)
        return call(self.prepared, x_t[:, None], t, cond, mask)[:, 0]

    def _geometric(self, loss: DenoisingLoss, draws: TrainingDraws, part: Part) -> dict[str, Tensor] | None:
        """The joint errors of predictions from little noise, as parts of their mean over the whole batch."""
        if self.config.variant != "geometric":
            return None
        near = draws.t <= self.config.geometric.level
        names = tuple(self.config.geometric.active())
        errors = self.task.joint_errors(loss.x0_pred.float(), part.windows, names)
        counted = torch.where(near[:, None] & torch.isfinite(errors), errors, 0.0)
        return dict(zip(names, counted.sum(0) / self.config.conditions, strict=True))

    def _backward(self, loss: DenoisingLoss, geometric: dict[str, Tensor] | None, values: dict[str, Tensor]) -> None:
        """Take the gradients of a part's loss, and add what is logged to ``values``."""
        total = loss.total
        if geometric is not None:
            total = total + sum(self.config.geometric.active()[name] * error for name, error in geometric.items())
        total = total / self.config.levels
        self.precision.backward(total)
        logged: dict[str, Any] = {"loss": total, "loss/denoising": loss.total / self.config.levels}
        logged |= {f"loss/{name}": term / self.config.levels for name, term in loss.terms.items()}
        logged |= {f"geometric/{name}": error / self.config.levels for name, error in (geometric or {}).items()}
        for name, value in logged.items():
            values[name] = values.get(name, 0.0) + value.detach()


def train_finetune(config: FinetuneConfig, *, command: list[str] | None = None) -> Path:
    """Fine-tune until ``config.iterations`` and return the last checkpoint. Raises as
    :func:`mgrpo.train.baseline.train_baseline`."""
    return train_baseline(Finetuning, config, command)


__all__ = ["FinetuneConfig", "Finetuning", "train_finetune"]
