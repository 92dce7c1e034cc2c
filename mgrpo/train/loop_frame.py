"""The frame around the iterations of every post-training: run folder, resume, learning rate, optimiser step, average,
evaluation, log, checkpoints, Ctrl-C. What happens inside an iteration is its loop's."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from mgrpo.errors import MgrpoError
from mgrpo.execution.distributed import Processes
from mgrpo.execution.memory import peak_memory
from mgrpo.execution.prefetch import batches
from mgrpo.grpo.health import parameter_distance, read_metrics
from mgrpo.runs.budget import CALLS, network_units
from mgrpo.runs.checkpoints import load_tensors_into
from mgrpo.runs.run_dir import RunDir
from mgrpo.runs.tracking import require_tracker
from mgrpo.terminal.interrupt import GracefulStop, graceful_interrupt
from mgrpo.terminal.progress import Progress, notice

from .gold_watch import GoldWatch
from .learning_rate import learning_rate_at, set_learning_rate
from .observation import Log, Unscored
from .phases import Phases
from .profile import Profile
from .run_config import RunConfig
from .start import open_run

PartsT = TypeVar("PartsT")


class Evaluated(Protocol):
    """What can be measured on held-out conditions: a :class:`mgrpo.grpo.task.Task`."""

    def gold(self, policy: Any) -> dict[str, float]:
        """Measures that are no rewards, with the same noise every time."""
        ...


class LoopFrame:
    """One post-training from its first (or next) iteration to its last. An iteration is: :meth:`begin`, one
    :meth:`step` for every optimiser step whose gradient the loop has made, :meth:`updated`, :meth:`end`."""

    def __init__(
        self,
        label: str,
        policy: nn.Module,
        task: Evaluated,
        config: RunConfig,
        processes: Processes,
        *,
        trained: Sequence[nn.Parameter],
        command: list[str] | None = None,
        may_change: Sequence[str] = (),
        beside: Mapping[str, nn.Module] | None = None,
        samples: int,
        dtype: torch.dtype = torch.float32,
        shown: Sequence[str] = ("reward",),
        observer: Callable[[RunDir], Log] | None = None,
    ) -> None:
        """Open the run folder, and restore what its last checkpoint holds if the run is resumed.

        Args:
            label: name of the training in progress and messages.
            policy: what is trained.
            task: what it is evaluated on.
            config: the run's.
            processes: all of the training.
            trained: the parameters to train.
            command: the command line, for the run folder.
            may_change: settings that may differ on resume, see :meth:`mgrpo.runs.run_dir.RunDir.create`.
            beside: further networks that a checkpoint must keep, by name.
            samples: sequences that an iteration draws or learns from, by all processes; for their rate.
            dtype: what the network computes in.
            shown: measures that the progress shows.
            observer: makes what writes iterations and tells of them; default the log and the tracker alone.

        Raises:
            InputError: as :func:`mgrpo.train.start.open_run`, or a checkpoint that does not fit.
        """
        self.label, self.policy, self.task, self.config, self.processes = label, policy, task, config, processes
        self.trained = list(trained)
        self.optimizer = torch.optim.AdamW(self.trained, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.average = copy.deepcopy(policy).requires_grad_(False) if config.ema else None
        self.best = self.average if self.average is not None else policy
        """What is evaluated, and saved as the model."""
        self._beside = {**({} if self.average is None else {"policy": policy}), **(beside or {})}
        self.watch = GoldWatch(config)
        self.kept: dict[str, Any] = {}
        """Further plain values that a checkpoint keeps, and a resumed training finds here."""
        self.phases = Phases(processes.device, wait=config.profile)
        processes.main_only(lambda: require_tracker(config.track))
        self.run = processes.main_only(lambda: open_run(config, command, may_change=may_change))
        self.profile = Profile(self.run if config.profile else None, processes.device, dtype, samples=samples)
        self.start = self._restore()
        self._moved = self._saved = self.start  # iterations that the weights and the last checkpoint hold
        self._stop = GracefulStop(None)
        self._progress: Progress | None = None
        self._samples, self._shown = samples, tuple(shown)
        self._observer = observer or (lambda run: Log(run, config))
        self._observed: Log | None = None
        self._unscored: list[Unscored] = []
        self._norms: list[float] = []
        self._before: list[Tensor] = []
        self._rate = 0.0

    def _restore(self) -> int:
        run, config = self.run, self.config
        checkpoint = self.processes.from_main(lambda: run.load("last") if run is not None and config.resume else None)
        start = 0
        if checkpoint is not None:
            checkpoint.restore(self.best, self.optimizer)
            self.watch.restore(checkpoint.state)
            self.kept.update(checkpoint.state.get("kept", {}))
            for name, network in self._beside.items():
                prefix = f"{name}."
                tensors = checkpoint.tensors
                kept = {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}
                load_tensors_into(network, kept, where=f"checkpoint {checkpoint.path}, {name}")
            start = checkpoint.step
        self.processes.copy_from_main_(self.policy.state_dict().values())
        return start

    @contextmanager
    def iterations(self, draw: Callable[[int], PartsT], *, ahead: int) -> Iterator[Iterator[tuple[int, PartsT]]]:
        """Context for the loop, which gets ``(iteration, draw(iteration))``, up to ``ahead`` of them drawn in advance.

        A run that patience has ended gets no further iteration, as if it had not been asked to go on. After an error
        what was learned before the failing iteration is saved. Raises
        :class:`mgrpo.terminal.interrupt.TrainingInterrupted` after a loop that a signal stopped.
        """
        end = self.config.iterations
        if self.watch.exhausted and self.start < end:
            notice(self.watch.verdict(self.start))
        drawn = batches(draw, self.start, self.start if self.watch.exhausted else end, ahead=ahead)
        with self.run or nullcontext():
            self._observed = None if self.run is None else self._observer(self.run)
            with (
                self._observed or nullcontext(),
                self.profile,
                graceful_interrupt(self.run) as self._stop,
                Progress(self.label, end, start=self.start) as self._progress,
                closing(drawn),
            ):
                if self._observed is not None:
                    self._progress.view = self._observed.view
                try:
                    yield self.phases.each(drawn)
                except Exception:
                    if self.run is not None and self._moved > self._saved:
                        self._save(self._moved, None)  # nothing is lost but the iteration that failed
                    raise

    def begin(self, iteration: int) -> None:
        """Start an iteration: its learning rate."""
        config = self.config
        self._rate = learning_rate_at(
            iteration, config.iterations, peak=config.learning_rate, warmup=config.warmup, schedule=config.schedule
        )
        set_learning_rate(self.optimizer, self._rate)
        self._norms, self._unscored = [], []
        self._before = [parameter.detach().clone() for parameter in self.trained]

    def step(
        self,
        iteration: int,
        found: Mapping[str, Tensor | float],
        rewards: Tensor | None = None,
        *,
        unscored: Callable[[], list[Unscored]] | None = None,
    ) -> dict[str, float]:
        """Clip the gradient that is in the parameters, make sure that it is sound, and take an optimiser step.

        Args:
            iteration: the present one.
            found: what to log; read from the device here, together with the gradient's norm.
            rewards: those behind the gradient ``(B, G, K)``, which a message names where they are NaN.
            unscored: names the samples without a reward, where there are any; all processes call it together.

        Returns ``found`` as numbers. Raises MgrpoError when no reward is known or the gradient is not finite; nothing
        has moved then.
        """
        norm = nn.utils.clip_grad_norm_(self.trained, self.config.gradient_clip)
        metrics = read_metrics({"norm": norm, **found})
        self._norms.append(metrics.pop("norm"))
        sound = math.isfinite(self._norms[-1]) and not math.isnan(metrics.get("reward", 0.0))
        if unscored is not None and (not sound or metrics.get("unscored_samples")):
            self._unscored = unscored()
        if not sound:
            if self._observed is not None:
                self._observed.unscored(iteration + 1, self._unscored)
            self.processes.fail(self._unsound(iteration, self._norms[-1], rewards))  # all processes see the same
        self.optimizer.step()
        self._moved = -1  # in the middle of an iteration
        return metrics

    def _unsound(self, iteration: int, norm: float, rewards: Tensor | None) -> MgrpoError:
        """Why training can't go on."""
        saved = "the state before it is saved"
        if self._moved < 0:
            saved = "an earlier optimiser step of it has moved the weights, so the run goes on from its last checkpoint"
        bad = [] if rewards is None else torch.nonzero(~torch.isfinite(rewards).all(-1)).tolist()
        names = ", ".join(f"condition {condition} member {member}" for condition, member in bad[:8])
        if rewards is not None and len(bad) == rewards.shape[0] * rewards.shape[1]:
            return MgrpoError(
                f"{self.label}: no sample of iteration {iteration + 1} could be scored (all rewards are NaN); {saved}"
            )
        where = f" Samples that could not be scored: {names}." if bad else ""
        return MgrpoError(
            f"{self.label}: the gradient became {norm} in iteration {iteration + 1}; {saved}. "
            f"Lower --learning-rate.{where}"
        )

    def updated(self, iteration: int) -> dict[str, float]:
        """After an iteration's optimiser steps: move the average. Measures of the steps."""
        self._moved = iteration + 1
        if self.average is not None:
            for target, source in zip(self.average.parameters(), self.policy.parameters()):
                target.lerp_(source.detach(), 1 - self.config.ema)
        norms = self._norms
        distances: dict[str, Tensor | float] = {"update_ratio": parameter_distance(self._before, self.trained)}
        if self.average is not None:
            distances["ema_distance"] = parameter_distance(
                list(self.policy.parameters()), list(self.average.parameters())
            )
        return {
            "grad_norm": sum(norms) / len(norms),
            "grad_clipped": sum(norm > self.config.gradient_clip for norm in norms) / len(norms),
            **read_metrics(distances),
            "learning_rate": self._rate,
            "optimizer_steps": len(norms),
        }

    def end(self, iteration: int, metrics: dict[str, float]) -> bool:
        """Evaluate and save where it is time to, and log ``metrics``. Whether the loop must end here."""
        config, processes, done = self.config, self.processes, iteration + 1
        calls = [name for name in CALLS if name in metrics]
        if calls:  # those of all processes
            counts = torch.tensor([metrics[name] for name in calls], dtype=torch.float64)
            metrics = metrics | dict(zip(calls, processes.sum_(counts).tolist(), strict=True))
            metrics["network_units"] = network_units(metrics)
            metrics["system/network_calls_per_s"] = metrics["decode"] / metrics["step_time"]
        metrics["system/samples_per_s"] = self._samples / metrics["step_time"]
        self.profile.take(metrics)
        metrics["system/peak_memory_mib"] = peak_memory(processes.device) / 2**20
        # A signal may have reached some processes only: all stop here.
        signal = processes.largest(self._stop.number or 0)
        if signal and self._stop.number is None:
            self._stop.number = signal
        finished, stopping = done == config.iterations, signal > 0
        improved = enough = False
        measured: float | None = None
        # Not when stopping: an extra measurement could make another checkpoint the best than without the stop.
        if config.validate_every and (done % config.validate_every == 0 or finished):
            gold = processes.from_main(
                lambda: {name: float(value) for name, value in self.task.gold(self.best).items()}
            )
            metrics = metrics | {f"validation/{name}": value for name, value in gold.items()}
            improved = self.watch.see(gold)
            enough, measured = self.watch.exhausted, self.watch.latest
        assert self._progress is not None
        if self._observed is not None:
            self._observed.iteration(done, metrics, self._unscored)
            self._progress.update(**{name: metrics[name] for name in self._shown})
        if done % config.checkpoint_every == 0 or finished or stopping or improved or enough:
            processes.main_only(lambda: self._save(done, measured))
            self._saved = done
        if enough:
            notice(self.watch.verdict(done))
        return stopping or enough

    def _save(self, done: int, metric: float | None) -> None:
        assert self.run is not None
        self.run.save(
            done,
            model=self.best,
            model_config=getattr(self.best, "config", None),
            optimizer=self.optimizer,
            tensors={
                f"{name}.{key}": value
                for name, network in self._beside.items()
                for key, value in network.state_dict().items()
            },
            state={**self.watch.state(), "kept": self.kept},
            metric=metric,
            better=self.watch.better,
        )

    def last_checkpoint(self) -> Path:
        """Folder of the last checkpoint."""
        run = self.run
        return self.processes.from_main(lambda: run.checkpoint_path("last"))  # type: ignore[union-attr]
