"""GRPO for any policy and task: sample groups, score them, push the policy towards the better members (paper section
3).

An iteration waits for the device twice, at its end: before the optimiser steps, to see whether its gradient is sound,
and for the log.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mgrpo.diffusion.sampler import NoiseKeys
from mgrpo.diffusion.transition import Transitions, step_weights
from mgrpo.errors import InputError, MgrpoError
from mgrpo.grpo.health import (
    advantage_metrics,
    parameter_distance,
    read_metrics,
    reward_metrics,
    update_metrics,
)
from mgrpo.grpo.rollout import Rollout, roll_out
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
from .interrupt import graceful_interrupt
from .learning_rate import learning_rate_at, set_learning_rate
from .observation import Observation, Unscored
from .phases import Phases
from .precision import NetworkPrecision
from .prefetch import batches
from .prepared_policy import PreparedPolicy
from .progress import Progress, notice
from .run_dir import RunDir
from .seeding import iteration_generator
from .sharing import Sharing, share_out
from .start import open_run
from .tracking import require_tracker


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
            seen = task.seen(part, iteration=iteration, first=first + begin, members=members)
            condition = torch.arange(first + begin, first + begin + len(part), device=self.processes.device)
            keys = NoiseKeys(
                config.seed, iteration, condition, len(members), share_initial=config.share_initial_noise,
                first_member=members.start,
            )  # fmt: skip
            rollouts.append(
                roll_out(
                    self.prepared, seen.cond, plan.transitions, keys, shape=task.state_shape(part), steps=steps,
                    layout=task.layout, project_rotations=task.project_rotations, mask=seen.mask,
                    per_member=task.per_member, keep_graphs=self.keep_graphs, same_kernels=config.execution.compile,
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
            for name, values in judged.errors.items():
                measures.setdefault(name, []).append(values)
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
    optimizer = torch.optim.AdamW(training.trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    average = copy.deepcopy(policy).requires_grad_(False) if config.ema else None
    processes.main_only(lambda: require_tracker(config.track))
    run = processes.main_only(lambda: open_run(config, command, may_change=CARRIED_OUT))
    checkpoint = processes.from_main(lambda: run.load("last") if run is not None and config.resume else None)
    best = average if average is not None else policy
    start = 0
    watch = GoldWatch(config)
    if checkpoint is not None:
        checkpoint.restore(best, optimizer)
        start = checkpoint.step
        watch.restore(checkpoint.state)
        if average is not None:
            policy.load_state_dict(
                {name.removeprefix("policy."): tensor for name, tensor in checkpoint.tensors.items()}
            )
        del checkpoint
    processes.copy_from_main_(policy.state_dict().values())
    phases = Phases(processes.device, wait=config.profile)
    save = partial(_save, run, best, policy if average is not None else None, optimizer, watch)
    moved = saved = start  # iterations that the weights and the last checkpoint hold

    drawn = batches(training.draw, start, config.iterations, ahead=config.execution.prefetch)
    with (
        run or nullcontext(),
        graceful_interrupt(run) as stop,
        Progress("grpo", config.iterations, start=start) as progress,
        closing(drawn),
        Observation(run, config, training.names, progress) if run is not None else nullcontext() as observed,
    ):
        try:
            for iteration, parts in drawn:
                phases.start()
                rate = learning_rate_at(
                    iteration, config.iterations, peak=config.learning_rate, warmup=config.warmup,
                    schedule=config.schedule,
                )  # fmt: skip
                set_learning_rate(optimizer, rate)
                with phases.phase("rollout"), compile_errors() if config.execution.compile else nullcontext():
                    plan = training.plan(iteration)
                    sampled = training.sample(plan, parts)
                if iteration == start:
                    training.check(sampled[0])
                with phases.phase("reward"):
                    trial = training.judge(sampled)
                before = [parameter.detach().clone() for parameter in training.trained]
                statistics: list[UpdateStatistics] = []
                norms: list[float] = []
                unscored: list[Unscored] = []
                metrics: dict[str, float] = {}
                for step, part in enumerate(sampled):
                    with phases.phase("update"):
                        optimizer.zero_grad(set_to_none=True)
                        statistics.append(training.differentiate(step, part, trial, plan))
                        norm = nn.utils.clip_grad_norm_(training.trained, config.gradient_clip)
                        found: dict[str, Tensor | float] = {"norm": norm}
                        if step == len(sampled) - 1:
                            found |= training.metrics(trial, statistics)
                        metrics = read_metrics(found)
                        norms.append(metrics.pop("norm"))
                        sound = math.isfinite(norms[-1]) and not math.isnan(metrics.get("reward", 0.0))
                        if not sound or metrics.get("unscored_samples"):
                            unscored = training.unscored(trial, sampled)
                        if not sound:
                            if observed is not None:
                                observed.unscored(iteration + 1, unscored)
                            raise _unsound(iteration, norms[-1], trial, unscored)
                        optimizer.step()
                        moved = -1  # in the middle of an iteration
                moved = iteration + 1
                if average is not None:
                    for target, source in zip(average.parameters(), policy.parameters()):
                        target.lerp_(source.detach(), 1 - config.ema)
                distances: dict[str, Tensor | float] = {"update_ratio": parameter_distance(before, training.trained)}
                if average is not None:
                    distances["ema_distance"] = parameter_distance(
                        list(policy.parameters()), list(average.parameters())
                    )
                calls = {name: processes.count * number for name, number in training.prepared.take_calls().items()}
                metrics |= {
                    "grad_norm": sum(norms) / len(norms),
                    "grad_clipped": sum(norm > config.gradient_clip for norm in norms) / len(norms),
                    **read_metrics(distances),
                    "learning_rate": rate,
                    **calls,
                    **phases.metrics(samples=config.conditions * config.group_size, network_calls=calls["decode"]),
                }
                done = iteration + 1
                # A signal may have reached some processes only: all stop here.
                signal = processes.largest(stop.number or 0)
                if signal and stop.number is None:
                    stop.number = signal
                finished, stopping = done == config.iterations, signal > 0
                improved = enough = False
                # Not when stopping: an extra measurement could make another checkpoint the best than without the stop.
                if config.validate_every and (done % config.validate_every == 0 or finished):
                    gold = processes.from_main(lambda: task.gold(best))
                    metrics |= {f"validation/{name}": value for name, value in gold.items()}
                    improved = watch.see(gold)
                    enough = watch.exhausted
                if observed is not None:
                    observed.iteration(done, metrics, unscored)
                if done % config.checkpoint_every == 0 or finished or stopping or improved or enough:
                    processes.main_only(partial(save, done, watch.latest))
                    saved = done
                if enough:
                    notice(watch.verdict(done))
                if stopping or enough:
                    break
        except Exception:
            if run is not None and moved > saved:
                save(moved, None)  # nothing is lost but the iteration that failed
            raise
    return processes.from_main(lambda: run.checkpoint_path("last"))


class GoldWatch:
    """Which evaluation was the best, and for how many it has not got better."""

    def __init__(self, config: PostTrainingConfig) -> None:
        self._name, self._better, self._patience = config.gold, config.gold_better, config.patience
        self.best: float | None = None
        self.latest: float | None = None
        self._worse = 0

    def see(self, gold: dict[str, float]) -> bool:
        """Take in an evaluation; whether it is the best so far. Raises InputError when it lacks the measure."""
        if self._name not in gold:
            raise InputError(f"--gold {self._name} is not among the measures; there are {', '.join(sorted(gold))}")
        self.latest = gold[self._name]
        sign = 1.0 if self._better == "min" else -1.0
        if self.best is None or sign * self.latest < sign * self.best:
            self.best, self._worse = self.latest, 0
            return True
        self._worse += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return bool(self._patience) and self._worse >= self._patience

    def verdict(self, done: int) -> str:
        """Why training stops after ``done`` iterations."""
        return (
            f"stopped after {done} iterations: {self._name} was no better than {self.best:g} in the last {self._worse} "
            "evaluations (--patience)"
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"gold_best": self.best, "gold_worse": self._worse}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state` gave."""
        self.best, self._worse = state.get("gold_best"), int(state.get("gold_worse", 0))


def _unsound(iteration: int, norm: float, trial: Trial, unscored: Sequence[Unscored]) -> MgrpoError:
    """Why training can't go on: nothing could be scored, or the gradient is not finite; it names the samples."""
    if sum(len(group.members) for group in unscored) == trial.rewards.shape[0] * trial.rewards.shape[1]:
        return MgrpoError(
            f"grpo: no sample of iteration {iteration + 1} could be scored (all rewards are NaN); the state before it "
            "is saved"
        )
    named = [f"condition {group.condition} member {member}" for group in unscored for member in group.members]
    where = f" Samples that could not be scored (see unscored.jsonl): {', '.join(named[:8])}." if named else ""
    return MgrpoError(
        f"grpo: the gradient became {norm} in iteration {iteration + 1}; the state before it is saved. Lower "
        f"--learning-rate.{where}"
    )


def _save(
    run: RunDir,
    model: nn.Module,
    policy: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    watch: GoldWatch,
    done: int,
    metric: float | None,
) -> None:
    tensors = None if policy is None else {f"policy.{name}": tensor for name, tensor in policy.state_dict().items()}
    run.save(
        done,
        model=model,
        model_config=getattr(model, "config", None),
        optimizer=optimizer,
        tensors=tensors,
        state=watch.state(),
        metric=metric,
        better=watch._better,
    )
