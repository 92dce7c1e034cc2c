"""What the methods that GRPO is compared with have in common: the loop, the groups they draw, and who is best."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mgrpo.data import MotionWindows
from mgrpo.diffusion.loss import LossWeights, TrainingDraws, draw_training_noise
from mgrpo.errors import InputError
from mgrpo.execution.compiled import compile_errors
from mgrpo.execution.distributed import Processes, open_processes
from mgrpo.execution.memory import checkpoint_blocks
from mgrpo.execution.precision import NetworkPrecision
from mgrpo.execution.seeding import stream_seed
from mgrpo.grpo.health import reward_metrics
from mgrpo.grpo.policy import Policy
from mgrpo.grpo.ranking import Ranking, rank_groups
from mgrpo.grpo.rollout import Rollout, roll_out_groups
from mgrpo.grpo.task import Scored
from mgrpo.models.denoiser import Denoiser

from .baseline_config import BaselineConfig
from .loop_frame import LoopFrame
from .motion_task import MotionTask, open_motion_task
from .phases import Phases
from .prepared_policy import PreparedPolicy
from .run_config import AdvantageConfig

CARRIED_OUT = ("execution", "profile", "patience", "track", "track_project")
"""Settings that change a run's results by rounding at most, or only when it stops; a resumed run may have others."""


class Found(NamedTuple):
    """What an iteration has put into the gradients and seen."""

    metrics: dict[str, Tensor | float]
    rewards: Tensor | None = None
    """Of all processes' samples ``(B, G, K)``; None for a method that scores none."""


class Part(NamedTuple):
    """Windows that pass through the network together."""

    first: int
    """Number of the first one in the iteration."""
    windows: MotionWindows


class Groups(NamedTuple):
    """This process's groups of an iteration."""

    parts: list[Part]
    rollouts: list[Rollout]
    """Of each part."""
    x0: list[Tensor]
    """Samples of each part ``(b, G, T, D)``."""


class Baseline(ABC):
    """A method: the gradient of one optimiser step. Everything else is :func:`train_baseline`'s."""

    label: ClassVar[str]
    """Its name in progress and messages."""

    def __init__(
        self,
        policy: Denoiser,
        task: MotionTask,
        config: Any,
        processes: Processes,
        precision: NetworkPrecision,
    ) -> None:
        """``config`` is the method's. Raises InputError when the processes can't share the conditions evenly, and for a
        weight of hands that the policy doesn't have."""
        weights = getattr(config, "loss", None)
        if not policy.config.include_hands and weights and weights.hand_rotmats != LossWeights().hand_rotmats:
            raise InputError(
                "--loss.hand-rotmats has no effect here: the prior has no hands; leave it out, or choose another "
                "--prior"
            )
        self.policy, self.task, self.config, self.processes, self.precision = policy, task, config, processes, precision
        checkpoint_blocks(policy, config.execution.checkpoint_blocks)
        self.prepared = self.prepare(policy)
        self.names = tuple(task.reward_weights)
        self.reward_weights = torch.tensor(list(task.reward_weights.values()), device=processes.device)
        self.transitions = task.transitions(None)
        self.members = range(config.group_size)
        if config.conditions % processes.count:
            raise InputError(
                f"--conditions ({config.conditions}) must be a multiple of the {processes.count} processes that share "
                "them"
            )
        self.share = config.conditions // processes.count
        self.first = processes.rank * self.share

    @property
    def shown(self) -> tuple[str, ...]:
        """Measures that the progress shows."""
        return ("reward",)

    @property
    def samples(self) -> int:
        """Sequences that an iteration draws, by all processes."""
        return self.config.conditions * self.config.group_size

    def beside(self) -> dict[str, nn.Module]:
        """Networks that a checkpoint must keep besides the policy, by name."""
        return {}

    @abstractmethod
    def differentiate(self, iteration: int, windows: MotionWindows, phases: Phases) -> Found:
        """Put the gradient of this process's windows into the policy's parameters, as its part of the whole one."""

    def prepare(self, network: nn.Module) -> PreparedPolicy:
        """A network as training calls it."""
        return PreparedPolicy(network, self.precision, compile=self.config.execution.compile)

    def frozen_copy(self) -> PreparedPolicy:
        """The policy as it is now, for good."""
        return self.prepare(copy.deepcopy(self.policy).requires_grad_(False))

    def take_calls(self) -> dict[str, int]:
        """Calls of all networks since they were last taken."""
        return self.prepared.take_calls()

    def draw(self, iteration: int) -> MotionWindows:
        """This process's windows of an iteration, on the CPU."""
        return self.task.draw(iteration, self.first, self.share)

    def parts(self, windows: MotionWindows) -> Iterator[Part]:
        """The windows as they pass through the network together."""
        at_once = self.config.execution.micro_conditions or len(windows)
        for begin in range(0, len(windows), at_once):
            whole = at_once >= len(windows)
            yield Part(self.first + begin, windows if whole else windows.select(slice(begin, begin + at_once)))

    def draws(self, iteration: int, level: int, part: Part) -> TrainingDraws:
        """Noise levels and noise of a part; ``level`` counts the draws of one window in an iteration. They depend on
        the window's number alone."""
        batch, frames = part.windows.mask.shape
        return draw_training_noise(
            self.policy.layout, seed=stream_seed(self.config.seed, 0, "baseline noise"), iteration=iteration,
            batch=batch, frames=frames, max_t=self.task.schedule.max_t,
            first=level * self.config.conditions + part.first, device=part.windows.mask.device,
        )  # fmt: skip

    def sampling(self) -> dict[str, Any]:
        """How groups are drawn: the keywords of :func:`mgrpo.grpo.rollout.roll_out_groups` that an iteration and its
        parts have in common, as GRPO sets them."""
        return {
            "seed": self.config.seed, "members": self.members, "share_initial": self.config.share_initial_noise,
            "device": self.processes.device,
        }  # fmt: skip

    def draw_groups(self, network: Policy, iteration: int, windows: MotionWindows) -> Groups:
        """The groups that GRPO would draw of these windows with this network."""
        parts = list(self.parts(windows))
        rollouts = [
            roll_out_groups(
                network, self.task, part.windows, self.transitions, iteration=iteration, first=part.first,
                **self.sampling(),
            )
            for part in parts
        ]  # fmt: skip
        samples = [
            rollout.x0.reshape(len(part.windows), -1, *rollout.x0.shape[-2:])
            for part, rollout in zip(parts, rollouts, strict=True)
        ]
        return Groups(parts, rollouts, samples)

    def rank(self, groups: Groups, advantage: AdvantageConfig) -> tuple[Ranking, Ranking, Found]:
        """Score this process's groups and order their members: the ranking of its own groups, of all groups, and what
        was seen."""
        scored = [self.task.score(x0, part.windows) for part, x0 in zip(groups.parts, groups.x0, strict=True)]
        found = self.found(groups.parts, scored)
        assert found.rewards is not None
        every = rank_groups(found.rewards, weights=self.reward_weights, **asdict(advantage))
        own = slice(self.first, self.first + self.share)
        return Ranking(*(column[own] for column in every)), every, found

    def found(self, parts: list[Part], scored: list[Scored]) -> Found:
        """Rewards of all processes and what is logged about them."""
        own = torch.cat([one.rewards.detach() for one in scored])
        rewards = torch.cat(self.processes.gather(own))
        metrics: dict[str, Tensor | float] = {**reward_metrics(rewards, self.reward_weights, self.names)}
        metrics["unscored_samples"] = (~torch.isfinite(rewards).all(-1)).sum()
        measures: dict[str, list[Tensor]] = {}
        for part, one in zip(parts, scored, strict=True):
            if one.outcome is not None:
                for name, values in self.task.measures(one.outcome, part.windows).items():
                    measures.setdefault(name, []).append(values)
        for name, values in measures.items():
            metrics[name] = torch.cat(self.processes.gather(torch.cat(values))).nanmean()
        return Found(metrics, rewards)

    def over_processes(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the processes of scalars."""
        summed = self.processes.sum_(torch.stack([value.detach().float() for value in values.values()]))
        return dict(zip(values, summed.unbind(), strict=True))


def train_baseline(method: type[Baseline], config: BaselineConfig, command: list[str] | None) -> Path:
    """Train with a method until ``config.iterations`` and return the last checkpoint, exactly as GRPO's loop does what
    is no method's.

    Raises as :func:`mgrpo.train.post_training.post_train`.
    """
    with open_processes(config.device) as processes:
        precision = NetworkPrecision(config.execution.precision, processes.device, option="--execution.precision")
        policy, task = open_motion_task(config, processes.device)
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        with precision.matrix_products():
            baseline = method(policy, task, config, processes, precision)
            frame = LoopFrame(
                baseline.label, policy, task, config, processes, trained=trained, command=command,
                may_change=CARRIED_OUT, beside=baseline.beside(), samples=baseline.samples, dtype=precision.dtype,
                shown=baseline.shown,
            )  # fmt: skip
            phases = frame.phases
            with frame.iterations(baseline.draw, ahead=config.execution.prefetch) as drawn:
                for iteration, windows in drawn:
                    frame.begin(iteration)
                    frame.optimizer.zero_grad(set_to_none=True)
                    with frame.profile.counted():
                        with compile_errors("--execution.compile") if config.execution.compile else nullcontext():
                            found = baseline.differentiate(iteration, windows.to(processes.device), phases)
                        with phases.phase("update"):
                            processes.sum_gradients_(trained)
                            metrics = frame.step(iteration, found.metrics, found.rewards)
                    metrics |= frame.updated(iteration) | baseline.take_calls() | phases.metrics()
                    if frame.end(iteration, metrics):
                        break
            return frame.last_checkpoint()
