"""GRPO for any policy and task: sample groups, score them, push the policy towards the better members (paper section
3).

An iteration waits for the device twice, at its end: before the optimiser steps, to see whether its gradient is sound,
and for the log.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mgrpo.diffusion.transition import Transitions, step_weights
from mgrpo.errors import InputError
from mgrpo.execution.compiled import compile_errors
from mgrpo.execution.distributed import Processes
from mgrpo.execution.memory import MemoryPlan, checkpoint_blocks, free_bytes, plan_memory, saved_bytes
from mgrpo.execution.precision import NetworkPrecision
from mgrpo.execution.seeding import iteration_generator
from mgrpo.execution.sharing import Sharing, share_out
from mgrpo.grpo.contract import (
    check_samples_are_apart,
    require_conditions,
    require_measures,
    require_policy,
    require_rewards,
    require_weights,
)
from mgrpo.grpo.health import advantage_metrics, reward_metrics, update_metrics
from mgrpo.grpo.policy import at_level, call
from mgrpo.grpo.rollout import Rollout, roll_out_groups
from mgrpo.grpo.task import Batch, Scored, Task, look
from mgrpo.grpo.update import (
    UpdateStatistics,
    accumulate_gradients,
    check_ratio_is_one,
    choose_steps,
    join_statistics,
    statistics_from_columns,
)
from mgrpo.kernels import GroupAdvantages, group_advantages

from .grpo_config import CARRIED_OUT, PostTrainingConfig
from .loop_frame import LoopFrame
from .observation import Observation, Unscored
from .prepared_policy import PreparedPolicy


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
        """The policy is put into evaluation mode. Raises InputError for a policy or task that can't be trained, and for
        options that don't fit the task or the number of processes."""
        require_policy(policy)
        require_weights(task.reward_weights)
        if precision.name != config.execution.precision:
            raise InputError(
                f"post-training: the precision given is {precision.name}, but config.execution.precision is "
                f"{config.execution.precision}; make it with NetworkPrecision(config.execution.precision, device)"
            )
        # What dropout leaves out, and what batch norm averages over, would be no part of the policy.
        policy.eval()
        self.policy, self.task, self.config, self.processes = policy, task, config, processes
        self.precision = precision
        self.prepared = PreparedPolicy(policy, precision, compile=config.execution.compile)
        self.trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
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
        self.memory = MemoryPlan(
            config.execution.micro_conditions or max(size for _, size in self.sharing.own),
            config.optimizer_steps == 1 and config.execution.reuse_graphs != "no",
            "as asked for",
        )
        checkpoint_blocks(policy, config.execution.checkpoint_blocks)

    def plan_memory(self, stored: Mapping[str, Any] | None) -> None:
        """Choose what passes through the network at once from the memory that is free now, or as ``stored`` by an
        earlier start of the run, whose rounding it then repeats. All processes do the same."""
        config, processes = self.config, self.processes
        asked = config.execution.micro_conditions or config.execution.reuse_graphs != "auto"
        if stored is not None and not asked:
            self.memory = MemoryPlan(int(stored["micro_conditions"]), bool(stored["keep_graphs"]), "as before")
            return
        first, size = self.sharing.own[0]
        members, plan = self.sharing.members, self.plan(0)
        batch = self.task.draw(0, first, 1)
        require_conditions(batch, 1)
        batch = batch.to(processes.device)
        seen = look(self.task, batch, iteration=0, first=first, members=members)
        rows = len(members) if self.task.per_member else 1
        x_t = torch.zeros(rows, len(members) // rows, *self.task.state_shape(batch), device=processes.device)
        t = at_level(plan.transitions.scalars[plan.steps[0][0]][0], rows, processes.device)
        mask = None if seen.mask is None else seen.mask.expand(rows, -1)
        there = {parameter.untyped_storage().data_ptr() for parameter in self.policy.parameters()}
        counted = dict(self.prepared.calls)
        each = saved_bytes(lambda: call(self.prepared, x_t, t, seen.cond, mask), there)
        self.prepared.calls = counted
        chosen = plan_memory(
            each,
            free=free_bytes(processes.device),
            conditions=size,
            steps=len(plan.steps[0]),
            may_keep=config.optimizer_steps == 1,
            micro_conditions=config.execution.micro_conditions,
            reuse_graphs=config.execution.reuse_graphs,
        )
        if processes.count > 1:  # the one with the least memory decides
            least = -processes.largest(-chosen.micro_conditions)
            chosen = replace(chosen, micro_conditions=least, keep_graphs=not processes.largest(not chosen.keep_graphs))
        self.memory = chosen

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
        parts = [self.task.draw(iteration, first, size) for first, size in self.sharing.own]
        for part, (_, size) in zip(parts, self.sharing.own, strict=True):
            require_conditions(part, size)
        return parts

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
        at_once = self.memory.micro_conditions
        counted = self.prepared.calls["decode_with_graph"]
        rollouts = []
        for begin in range(0, len(batch), at_once):
            part = batch if at_once >= len(batch) else batch.select(slice(begin, begin + at_once))
            rollouts.append(
                roll_out_groups(
                    self.prepared, task, part, plan.transitions, seed=config.seed, iteration=iteration,
                    first=first + begin, members=members, share_initial=config.share_initial_noise,
                    device=self.processes.device, steps=steps, keep_graphs=self.memory.keep_graphs,
                    same_kernels=config.execution.compile,
                )
            )  # fmt: skip
        if not self.memory.keep_graphs:  # a compiled network made some, which were forgotten
            self.prepared.calls["decode_with_graph"] = counted
        shape = (-1, len(members), *rollouts[0].x0.shape[-2:])
        return Sampled(batch, tuple(rollouts), steps, torch.cat([one.x0.reshape(shape) for one in rollouts]))

    @torch.no_grad()
    def judge(self, sampled: Sequence[Sampled]) -> Trial:
        """Rewards and advantages of all processes' samples."""
        scored: list[Scored] = [self.task.score(part.x0, part.batch) for part in sampled]
        own = [
            require_rewards(one, conditions=len(part.x0), members=part.x0.shape[1], names=self.names)
            for part, one in zip(sampled, scored, strict=True)
        ]
        rewards = self.sharing.gather(self.processes, own)
        # The fields of AdvantageConfig are keywords of group_advantages.
        result = group_advantages(rewards, weights=self.reward_weights, **asdict(self.config.advantage))
        measures: dict[str, list[Tensor]] = {}
        for part, judged in zip(sampled, scored, strict=True):
            for name, values in judged.errors.items():
                measures.setdefault(name, []).append(values)
            if judged.outcome is not None:
                whole = judged.outcome
                if self.sharing.by == "members":
                    whole = torch.cat(self.processes.gather(whole), dim=1)
                found = require_measures(self.task.measures(whole, part.batch), len(whole))
                for name, values in found.items():
                    measures.setdefault(name, []).append(values)
        return Trial(result, rewards, {name: torch.cat(values) for name, values in measures.items()})

    def check(self, plan: Plan, sampled: Sampled) -> None:
        """Make sure that the network, called again as the update would, predicts exactly what the rollout used, and
        what it would predict of a sample alone. ``sampled`` is that of the first optimiser step. Leaves no gradients
        behind. Raises RatioCheckError, InputError."""
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
        check_samples_are_apart(
            # never compiled, as it is called at other shapes than training does
            PreparedPolicy(self.policy, self.precision, compile=False), self.task, sampled.batch, rollout,
            iteration=plan.iteration, first=self.sharing.own[0][0], members=self.sharing.members,
            dtype=torch.bfloat16 if self.precision.name == "tf32" else self.precision.dtype,
        )  # fmt: skip

    def differentiate(self, step: int, sampled: Sampled, trial: Trial, plan: Plan) -> UpdateStatistics:
        """Put the gradient of one optimiser step into the parameters, summed over all processes."""
        first, size = self.sharing.shares[step]
        alive = trial.result.alive
        living = alive[first : first + size].sum(dtype=torch.float64)
        denominator = (living * (self.config.group_size * len(sampled.steps))).clamp_min(1.0)
        advantages = self.sharing.of(trial.result.advantages, step)
        alive = self.sharing.of(alive[:, None].expand_as(trial.result.advantages), step)
        statistics, begin = [], 0
        for rollout in sampled.rollouts:
            conditions = rollout.rows * rollout.keys.members // len(self.sharing.members)
            part, living = (column[begin : begin + conditions] for column in (advantages, alive))
            begin += conditions
            statistics.append(
                accumulate_gradients(
                    self.prepared, rollout, part.reshape(rollout.rows, -1), self.config.loss, steps=sampled.steps,
                    denominator=denominator, weights=plan.weights, alive=living.reshape(rollout.rows, -1),
                    reference=self.reference, backward=self.precision.backward,
                )
            )  # fmt: skip
        self.processes.sum_gradients_(self.trained)
        return self._of_all_processes(join_statistics(statistics))

    def _of_all_processes(self, own: UpdateStatistics) -> UpdateStatistics:
        if self.processes.count == 1:
            return own
        columns = self.processes.gather(own.columns())
        return join_statistics([statistics_from_columns(own.steps, own.samples, part) for part in columns])

    def take_calls(self) -> dict[str, int]:
        """Calls of all networks, the reference among them, since they were last taken."""
        networks = [self.prepared, *([] if self.reference is None else [self.reference])]
        taken = [network.take_calls() for network in networks]
        return {name: sum(calls[name] for calls in taken) for name in taken[0]}

    def reward_metrics(self, trial: Trial) -> dict[str, Tensor]:
        """What is logged about the rewards alone, still on the device."""
        return reward_metrics(trial.rewards, self.reward_weights, self.names)

    def metrics(self, trial: Trial, statistics: Sequence[UpdateStatistics]) -> dict[str, Tensor | float]:
        """Everything to log about a trial and the gradients that came of it, still on the device."""
        unscored = (~torch.isfinite(trial.rewards).all(-1)).sum()
        metrics: dict[str, Tensor | float] = {**self.reward_metrics(trial)}
        metrics |= advantage_metrics(trial.result, self.reward_weights, self.names, self.config.advantage.clamp)
        metrics |= update_metrics(statistics)
        metrics["unscored_samples"] = unscored
        for name, values in trial.measures.items():
            metrics[name] = torch.cat(self.processes.gather(values)).nanmean()
        return metrics

    def unscored(self, trial: Trial, sampled: Sequence[Sampled]) -> list[Unscored]:
        """The samples that could not be scored. Reads the device, and asks the other processes: all call it."""
        own: dict[int, str] = {}
        for (first, _), part in zip(self.sharing.own, sampled, strict=True):
            own |= {first + row: name for row, name in enumerate(getattr(part.batch, "names", ()))}
        clips = {number: name for part in self.processes.gather_objects(own) for number, name in part.items()}
        missing = ~torch.isfinite(trial.rewards).cpu()
        found = []
        for condition in missing.any(-1).any(-1).nonzero().flatten().tolist():
            members = missing[condition].any(-1).nonzero().flatten().tolist()
            kinds = missing[condition].any(0).tolist()
            names = [name for name, is_missing in zip(self.names, kinds, strict=True) if is_missing]
            found.append(Unscored(condition, clips.get(condition), members, names))
        return found


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
        policy: a module that is a :class:`mgrpo.grpo.policy.Policy`, on the processes' device; it is put into
            evaluation mode. What of it requires no gradient stays as it is. Its ``config``, if it has one, is saved
            beside its weights.
        task: conditions and rewards.
        config: all options.
        processes: from :func:`mgrpo.execution.distributed.open_processes`.
        precision: of the network.
        command: the command line, for the run folder.

    Raises:
        InputError: what a user can mend.
        mgrpo.grpo.update.RatioCheckError: rollout and update disagree.
        MgrpoError: no sample could be scored, or the gradient is not finite; the state before that iteration is saved.
        mgrpo.execution.distributed.ProcessLostError: another process ended.
    """
    training = PostTraining(policy, task, config, processes, precision)
    frame = LoopFrame(
        "grpo", policy, task, config, processes, trained=training.trained, command=command, may_change=CARRIED_OUT,
        samples=config.conditions * config.group_size, dtype=precision.dtype,
        observer=lambda run: Observation(run, config, training.names),
    )  # fmt: skip
    phases = frame.phases
    compiling = partial(compile_errors, "--execution.compile") if config.execution.compile else nullcontext
    with precision.matrix_products(), frame.iterations(training.draw, ahead=config.execution.prefetch) as drawn:
        with compiling():
            training.plan_memory(frame.kept.get("memory"))
        frame.kept["memory"] = training.memory.state()
        for iteration, parts in drawn:
            frame.begin(iteration)
            statistics: list[UpdateStatistics] = []
            metrics: dict[str, float] = {}
            with frame.profile.counted(), compiling():
                with phases.phase("rollout"):
                    plan = training.plan(iteration)
                    sampled = training.sample(plan, parts)
                if iteration == frame.start:
                    training.check(plan, sampled[0])
                with phases.phase("reward"):
                    trial = training.judge(sampled)
                for step, part in enumerate(sampled):
                    with phases.phase("update"):
                        frame.optimizer.zero_grad(set_to_none=True)
                        statistics.append(training.differentiate(step, part, trial, plan))
                        last = step == len(sampled) - 1
                        found = training.metrics(trial, statistics) if last else training.reward_metrics(trial)
                        metrics = frame.step(
                            iteration, found, trial.rewards, unscored=partial(training.unscored, trial, sampled)
                        )
            metrics |= frame.updated(iteration) | training.take_calls() | phases.metrics()
            if frame.end(iteration, metrics):
                break
    return frame.last_checkpoint()
