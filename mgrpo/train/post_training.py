"""GRPO for any policy and task: sample groups, score them, push the policy towards the better members (paper section
3).

An iteration waits for the device twice, at its end: before the optimiser steps, to see whether its gradient is sound,
and for the log.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mgrpo.diffusion.transition import Transitions, step_weights
from mgrpo.errors import InputError
from mgrpo.grpo.health import advantage_metrics, reward_metrics, update_metrics
from mgrpo.grpo.rollout import Rollout, roll_out_groups
from mgrpo.grpo.task import Batch, Scored, Task
from mgrpo.grpo.update import (
    UpdateStatistics,
    accumulate_gradients,
    check_ratio_is_one,
    choose_steps,
    join_statistics,
    statistics_from_columns,
)
from mgrpo.kernels import GroupAdvantages, group_advantages

from .compiled import compile_errors
from .distributed import Processes
from .grpo_config import CARRIED_OUT, PostTrainingConfig
from .loop_frame import LoopFrame
from .precision import NetworkPrecision
from .prepared_policy import PreparedPolicy
from .seeding import iteration_generator
from .sharing import Sharing, share_out


@dataclass(frozen=True)
class Plan:
    """How an iteration samples and what it trains; plain numbers, on the host."""

    iteration: int
    transitions: Transitions
    weights: tuple[float, ...]
    """Of each of the sampler's steps in the loss, 0 outside the window."""
    steps: list[tuple[int, ...]]
    """Steps to train, for every optimiser step."""


@dataclass(frozen=True)
class Sampled:
    """One process's part of the rollout of one optimiser step."""

    batch: Batch
    rollouts: tuple[Rollout, ...]
    """In the order of their conditions, as many at a time as pass through the network together."""
    steps: tuple[int, ...]
    """Steps to train."""
    x0: Tensor
    """Samples ``(b, g, T, D)``."""


@dataclass(frozen=True)
class Trial:
    """Everything that an iteration found out before the policy moved; nothing of it was read on the host."""

    result: GroupAdvantages
    rewards: Tensor
    """``(B, G, K)``, of all processes."""
    measures: dict[str, Tensor]


class PostTraining:
    """The parts of a post-training that do not change while it runs, and one method for each phase of an iteration."""

    def __init__(
        self,
        policy: nn.Module,
        task: Task[Any],
        config: PostTrainingConfig,
        processes: Processes,
        precision: NetworkPrecision,
    ) -> None:
        """Raises InputError for options that don't fit the task or the number of processes."""
        self.policy, self.task, self.config, self.processes = policy, task, config, processes
        self.precision = precision
        self.prepared = PreparedPolicy(policy, precision, compile=config.execution.compile)
        self.trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        if not self.trained:
            raise InputError("post-training: no parameter of the policy requires a gradient")
        self.reference: PreparedPolicy | None = None
        if config.loss.kl_coef:
            frozen = copy.deepcopy(policy).requires_grad_(False)
            self.reference = PreparedPolicy(frozen, precision, compile=config.execution.compile)
        self.sharing: Sharing = share_out(
            processes,
            conditions=config.conditions,
            group_size=config.group_size,
            optimizer_steps=config.optimizer_steps,
            split=config.execution.split,
        )
        self.names = tuple(task.reward_weights)
        self.reward_weights = torch.tensor(list(task.reward_weights.values()), device=processes.device)
        self.trainable = task.transitions(None).trainable_steps
        if not self.trainable:
            raise InputError(
                "post-training: the sampler draws no noise at any step, so there is no action to train; choose another "
                "--sampler.kernel than ode, or a larger --sampler.eta"
            )
        config.window.steps(self.trainable, 0)  # refused now rather than in the first iteration
        self._sampler = lru_cache(maxsize=32)(self._make_sampler)
        self.keep_graphs = config.optimizer_steps == 1 and config.execution.reuse_graphs != "no"

    def _make_sampler(self, window: tuple[int, ...]) -> tuple[Transitions, tuple[float, ...]]:
        transitions = self.task.transitions(window if self.config.window.quiet_outside else None)
        return transitions, tuple(step_weights(transitions, self.config.loss.step_weight, window).tolist())

    def plan(self, iteration: int) -> Plan:
        """The sampler of an iteration and the steps to train."""
        transitions, weights = self._sampler(self.config.window.steps(self.trainable, iteration))
        generator = iteration_generator(self.config.seed, iteration, "trained steps")
        steps = [choose_steps(transitions, self.config.loss, generator, weights) for _ in self.sharing.own]
        return Plan(iteration, transitions, weights, steps)

    def draw(self, iteration: int) -> list[Batch]:
        """This process's conditions for every optimiser step of an iteration, on the CPU."""
        return [self.task.draw(iteration, first, size) for first, size in self.sharing.own]

    def sample(self, plan: Plan, parts: Sequence[Batch]) -> list[Sampled]:
        """Roll out the groups of every optimiser step."""
        device = self.processes.device
        return [
            self._sample_share(plan, first, part.to(device), steps)
            for (first, _), part, steps in zip(self.sharing.own, parts, plan.steps, strict=True)
        ]

    def _sample_share(self, plan: Plan, first: int, batch: Batch, steps: tuple[int, ...]) -> Sampled:
        iteration = plan.iteration
        config, task, members = self.config, self.task, self.sharing.members
        at_once = config.execution.micro_conditions or len(batch)
        rollouts = []
        for begin in range(0, len(batch), at_once):
            part = batch if at_once >= len(batch) else batch.select(slice(begin, begin + at_once))
            rollouts.append(
                roll_out_groups(
                    self.prepared, task, part, plan.transitions, seed=config.seed, iteration=iteration,
                    first=first + begin, members=members, share_initial=config.share_initial_noise,
                    device=self.processes.device, steps=steps, keep_graphs=self.keep_graphs,
                    same_kernels=config.execution.compile,
                )
            )  # fmt: skip
        shape = (-1, len(members), *rollouts[0].x0.shape[-2:])
        return Sampled(batch, tuple(rollouts), steps, torch.cat([one.x0.reshape(shape) for one in rollouts]))

    @torch.no_grad()
    def judge(self, sampled: Sequence[Sampled]) -> Trial:
        """Rewards and advantages of all processes' samples."""
        scored: list[Scored] = [self.task.score(part.x0, part.batch) for part in sampled]
        rewards = self.sharing.gather(self.processes, [part.rewards for part in scored])
        # The fields of AdvantageConfig are keywords of group_advantages.
        result = group_advantages(rewards, weights=self.reward_weights, **asdict(self.config.advantage))
        measures: dict[str, list[Tensor]] = {}
        for part, judged in zip(sampled, scored, strict=True):
            if judged.outcome is not None:
                whole = judged.outcome
                if self.sharing.by == "members":
                    whole = torch.cat(self.processes.gather(whole), dim=1)
                for name, values in self.task.measures(whole, part.batch).items():
                    measures.setdefault(name, []).append(values)
        return Trial(result, rewards, {name: torch.cat(values) for name, values in measures.items()})

    def check(self, sampled: Sampled) -> None:
        """Make sure that the network, called again as the update would, predicts exactly what the rollout used. Leaves
        no gradients behind. Raises RatioCheckError."""
        rollout = sampled.rollouts[0]
        forgotten = {k: replace(step, prediction=None) for k, step in rollout.steps.items()}
        advantages = torch.zeros(rollout.x0.shape[:2], device=rollout.x0.device)
        counted = dict(self.prepared.calls)
        statistics = accumulate_gradients(
            self.prepared, replace(rollout, steps=forgotten), advantages, self.config.loss, steps=sampled.steps,
            denominator=1.0,
        )  # fmt: skip
        self.prepared.calls = counted
        for parameter in self.trained:
            parameter.grad = None
        check_ratio_is_one(statistics, self.config.loss)

    def differentiate(self, step: int, sampled: Sampled, trial: Trial, plan: Plan) -> UpdateStatistics:
        """Put the gradient of one optimiser step into the parameters, summed over all processes."""
        first, size = self.sharing.shares[step]
        alive = trial.result.alive[first : first + size]
        denominator = (alive.sum(dtype=torch.float64) * (self.config.group_size * len(sampled.steps))).clamp_min(1.0)
        advantages = self.sharing.of(trial.result.advantages, step)
        statistics, begin = [], 0
        for rollout in sampled.rollouts:
            conditions = rollout.rows * rollout.keys.members // len(self.sharing.members)
            part = advantages[begin : begin + conditions]
            begin += conditions
            statistics.append(
                accumulate_gradients(
                    self.prepared, rollout, part.reshape(rollout.rows, -1), self.config.loss, steps=sampled.steps,
                    denominator=denominator, weights=plan.weights, reference=self.reference,
                    backward=self.precision.backward,
                )
            )  # fmt: skip
        self.processes.sum_gradients_(self.trained)
        return self._of_all_processes(join_statistics(statistics))

    def _of_all_processes(self, own: UpdateStatistics) -> UpdateStatistics:
        if self.processes.count == 1:
            return own
        columns = self.processes.gather(own.columns())
        return join_statistics([statistics_from_columns(own.steps, own.samples, part) for part in columns])

    def metrics(self, trial: Trial, statistics: Sequence[UpdateStatistics]) -> dict[str, Tensor | float]:
        """Everything to log about a trial and the gradients that came of it, still on the device."""
        unscored = (~torch.isfinite(trial.rewards).all(-1)).sum()
        metrics: dict[str, Tensor | float] = {**reward_metrics(trial.rewards, self.reward_weights, self.names)}
        metrics |= advantage_metrics(trial.result, self.names, self.config.advantage.clamp)
        metrics |= update_metrics(statistics)
        metrics["unscored_samples"] = unscored
        for name, values in trial.measures.items():
            metrics[name] = torch.cat(self.processes.gather(values)).nanmean()
        return metrics


def post_train(
    policy: nn.Module,
    task: Task[Any],
    config: PostTrainingConfig,
    *,
    processes: Processes,
    precision: NetworkPrecision,
    command: list[str] | None = None,
) -> Path:
    """Post-train ``policy`` on ``task`` until ``config.iterations`` and return the last checkpoint.

    Under torchrun or accelerate launch all processes train one policy, and process 0 writes.

    Args:
        policy: a module that is a :class:`mgrpo.grpo.policy.Policy`, on the processes' device, in evaluation mode. What
            of it requires no gradient stays as it is. Its ``config``, if it has one, is saved beside its weights.
        task: conditions and rewards.
        config: all options.
        processes: from :func:`mgrpo.train.distributed.open_processes`.
        precision: of the network.
        command: the command line, for the run folder.

    Raises:
        InputError: what a user can mend.
        mgrpo.grpo.update.RatioCheckError: rollout and update disagree.
        MgrpoError: no sample could be scored, or the gradient is not finite; the state before that iteration is saved.
        mgrpo.train.distributed.ProcessLostError: another process ended.
    """
    training = PostTraining(policy, task, config, processes, precision)
    frame = LoopFrame(
        "grpo", policy, task, config, processes, trained=training.trained, command=command, may_change=CARRIED_OUT,
        wait=config.profile,
    )  # fmt: skip
    phases = frame.phases
    with frame.iterations(training.draw, ahead=config.execution.prefetch) as drawn:
        for iteration, parts in drawn:
            frame.begin(iteration)
            with phases.phase("rollout"), compile_errors() if config.execution.compile else nullcontext():
                plan = training.plan(iteration)
                sampled = training.sample(plan, parts)
            if iteration == frame.start:
                training.check(sampled[0])
            with phases.phase("reward"):
                trial = training.judge(sampled)
            statistics: list[UpdateStatistics] = []
            metrics: dict[str, float] = {}
            for step, part in enumerate(sampled):
                with phases.phase("update"):
                    frame.optimizer.zero_grad(set_to_none=True)
                    statistics.append(training.differentiate(step, part, trial, plan))
                    last = step == len(sampled) - 1
                    found = training.metrics(trial, statistics) if last else {}
                    metrics = frame.step(iteration, found, trial.rewards)
            metrics |= frame.updated(iteration) | training.prepared.take_calls() | phases.metrics()
            if frame.end(iteration, metrics):
                break
    return frame.last_checkpoint()
