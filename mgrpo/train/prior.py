"""Training the diffusion prior: EgoAllo's denoiser, its loss and weights (facts: the base model's section E)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mgrpo.data import AugmentConfig, MotionWindows
from mgrpo.diffusion.loss import (
    DenoisingLoss,
    FrameCounts,
    LossWeights,
    count_frames,
    denoising_loss,
    draw_training_noise,
)
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.errors import InputError
from mgrpo.execution.compiled import compile_errors, compile_network
from mgrpo.execution.distributed import Processes, open_processes
from mgrpo.execution.memory import checkpoint_blocks
from mgrpo.execution.precision import NetworkPrecision, Precision
from mgrpo.execution.prefetch import batches
from mgrpo.execution.seeding import stream_seed
from mgrpo.models.denoiser import DENOISER_PRESETS, Denoiser
from mgrpo.options import option, require
from mgrpo.runs.run_dir import RunDir
from mgrpo.terminal.interrupt import graceful_interrupt
from mgrpo.terminal.progress import Progress

from .average import WeightAverage
from .learning_rate import learning_rate_at, set_learning_rate
from .motion_data import MotionDataConfig, load_motion_data
from .phases import Phases
from .profile import Profile
from .start import open_run, require_sound, unused_without_resume


@dataclass(frozen=True)
class PriorConfig:
    """Train the diffusion prior on motion."""

    output: Path = Path("runs/prior")
    """Run folder: configuration, logs and checkpoints."""
    preset: str = "tiny"
    """Network size: `tiny` for CPUs, `egoallo` for the published one. On the command line it sets the other options
    too: `egoallo` those of the published training."""
    data: MotionDataConfig = field(default_factory=MotionDataConfig)
    iterations: int = 2000
    """Optimiser steps."""
    batch_size: int = 64
    """Windows per optimiser step, in all: they are divided over the processes of torchrun or accelerate launch."""
    accumulate: int = 1
    """Parts that each process goes through its windows in, one after the other, to save memory. The result is that of
    one part, up to rounding."""
    learning_rate: float = 1e-4
    """AdamW learning rate after the warm-up."""
    warmup: int = 1000
    """Optimiser steps over which the learning rate rises from zero."""
    warmup_from_zero: bool = False
    """Begin the warm-up at a learning rate of exactly 0, as EgoAllo does; else the first step takes 1/warmup of it."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant (EgoAllo), or a cosine down to zero at the last iteration."""
    weight_decay: float = 1e-4
    """AdamW weight decay, on all weights."""
    gradient_clip: float = 1.0
    """Largest gradient norm, over all weights."""
    condition_dropout: float = 0.0
    """Share of windows whose condition is blanked out (EgoAllo: 0)."""
    checkpoint_blocks: bool = False
    """Forget what the network's blocks compute and compute it again for the gradient: a third more time for a fraction
    of the memory."""
    precision: Precision = "fp32"
    """Numbers that the network computes with: fp32; tf32, bf16 (faster on GPUs of compute capability 8 or more);
    fp16-scaled (faster on any GPU). Weights, loss and optimiser stay float32."""
    compile: bool = False
    """Compile the network: faster steps after a first one that takes a minute or more."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, saved beside them (see --use-ema of the commands that load
    a prior); 0: none (EgoAllo)."""
    prefetch: int = 0
    """Batches drawn in advance by a thread, for GPUs that would wait for them; the result is the same."""
    loss: LossWeights = field(default_factory=LossWeights)
    seed: int = 0
    """Seed of weights, windows, noise levels and noise."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda, cuda:1 ... With several processes, cuda gives each its own GPU."""
    validate_every: int = 250
    """Iterations between measurements of the loss on the validation clips (0: never)."""
    checkpoint_every: int = 250
    """Iterations between checkpoints; the last and the best are kept."""
    keep_every: int = 0
    """Also keep the checkpoints at multiples of this many iterations (0: no others)."""
    profile: bool = False
    """Write a split of the time by phase, windows per second, FLOPs and peak memory to profile.json; on a GPU the
    phases are waited for, which costs a little."""
    resume: bool = False
    """Go on from the last checkpoint of the run folder."""
    resume_from: str = "last"
    """Where --resume goes on: last, best, a step, or the path of one of the run's checkpoints. What came after it is
    forgotten."""

    def __post_init__(self) -> None:
        require_sound(self)
        require(self, "batch_size", "accumulate", at_least=1)
        require(self, "prefetch", "keep_every", at_least=0)
        require(self, "condition_dropout", at_least=0, at_most=1)
        require(self, "ema", at_least=0, below=1)
        if self.preset not in DENOISER_PRESETS:
            raise InputError(f"--preset must be one of {', '.join(DENOISER_PRESETS)}, got {self.preset!r}")
        if self.keep_every % self.checkpoint_every:
            raise InputError(
                f"--keep-every ({self.keep_every}) must be a multiple of --checkpoint-every ({self.checkpoint_every}), "
                "or 0"
            )
        if self.batch_size % self.accumulate:
            raise InputError(
                f"--batch-size ({self.batch_size}) must be a multiple of --accumulate ({self.accumulate}): every part "
                "of a batch must have the same number of windows"
            )

    def unused_options(self) -> Mapping[str, str]:
        """See :class:`mgrpo.options.HasUnusedOptions`."""
        unused = unused_without_resume(self)
        if not self.warmup:
            unused["warmup_from_zero"] = f"with {option(self, 'warmup')} 0"
        if not DENOISER_PRESETS[self.preset].include_hands:
            unused["loss.hand_rotmats"] = f"with {option(self, 'preset')} {self.preset}, whose network has no hands"
        return unused


PRIOR_PRESETS: dict[str, PriorConfig] = {
    "tiny": PriorConfig(),
    "egoallo": PriorConfig(
        preset="egoallo",
        data=MotionDataConfig(
            length=128, short_clips="drop", augment=AugmentConfig(yaw=False, loop=False, weighting="clips")
        ),
        iterations=3_000_000,
        batch_size=256,
        warmup_from_zero=True,
        prefetch=2,
        validate_every=5000,
        checkpoint_every=5000,
        keep_every=100_000,
    ),
}
"""``tiny``: small data on a CPU. ``egoallo``: the published training (facts: section E); its release is the checkpoint
of the last iteration. What is the default in both is EgoAllo's: learning rate, warm-up, weight decay, clipping."""

CARRIED_OUT = ("accumulate", "checkpoint_blocks", "compile", "prefetch", "profile", "keep_every")
"""Settings that change a run's results by rounding at most; a resumed run may have others."""


def batch_loss(
    denoiser: Denoiser,
    windows: MotionWindows,
    schedule: CosineSchedule,
    config: PriorConfig,
    *,
    seed: int,
    iteration: int,
    first: int = 0,
    counts: FrameCounts | None = None,
    network: Callable[..., Tensor] | None = None,
) -> DenoisingLoss:
    """The denoising loss of one batch, with the noise levels and noise of (seed, iteration).

    Of a part of a batch: ``first`` is the part's position in it, ``counts`` are the frames of the whole. ``network``:
    see :func:`mgrpo.diffusion.loss.denoising_loss`.
    """
    layout = denoiser.layout
    batch, frames = windows.mask.shape
    draws = draw_training_noise(
        layout, seed=seed, iteration=iteration, batch=batch, frames=frames, max_t=schedule.max_t,
        cond_dropout=config.condition_dropout, first=first, device=windows.mask.device,
    )  # fmt: skip
    return denoising_loss(
        denoiser,
        windows,
        layout,
        schedule,
        t=draws.t,
        noise=draws.noise,
        weights=config.loss,
        cond_keep=draws.cond_keep,
        hand_keep=draws.hand_keep,
        counts=counts,
        network=network,
    )


@torch.no_grad()
def validation_loss(
    denoiser: Denoiser,
    windows: MotionWindows,
    schedule: CosineSchedule,
    config: PriorConfig,
    *,
    precision: NetworkPrecision,
    processes: Processes,
    size: int,
) -> float:
    """The loss over all validation windows with fixed noise, ``size`` windows at a time, shared by the processes."""
    network = precision.applied_to(denoiser)
    seed = stream_seed(config.seed, 0, "validation noise")
    counts = count_frames(denoiser.layout, windows)
    total = torch.zeros((), device=windows.mask.device)
    for first in range(processes.rank * size, len(windows), processes.count * size):
        part = windows.select(slice(first, first + size))
        total += batch_loss(
            denoiser, part, schedule, config, seed=seed, iteration=0, first=first, counts=counts, network=network
        ).total
    return processes.sum_(total).item()


def train_prior(config: PriorConfig, *, command: list[str] | None = None) -> Path:
    """Train until ``config.iterations`` and return the folder of the last checkpoint.

    Under torchrun or accelerate launch all processes train one model, and process 0 writes. Raises InputError for what
    a user can mend, :class:`mgrpo.execution.distributed.ProcessLostError` when another process ends,
    :class:`mgrpo.execution.compiled.CompileError`.
    """
    with open_processes(config.device) as processes:
        precision = NetworkPrecision(config.precision, processes.device)
        with precision.matrix_products():
            return _train(config, command, processes, precision)


def _train(config: PriorConfig, command: list[str] | None, processes: Processes, precision: NetworkPrecision) -> Path:
    device = processes.device
    parts = processes.parts(config.batch_size, config.accumulate)
    (own, size), share = parts[0], config.batch_size // processes.count
    data = load_motion_data(config.data, seed=config.seed)
    model_config = DENOISER_PRESETS[config.preset]
    denoiser = Denoiser(model_config, seed=stream_seed(config.seed, 0, "prior weights")).to(device)
    checkpoint_blocks(denoiser, config.checkpoint_blocks, "--checkpoint-blocks")
    schedule = CosineSchedule.make(model_config.max_t)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    average = WeightAverage(denoiser, config.ema) if config.ema else None

    run = processes.main_only(
        lambda: open_run(config, command, may_change=CARRIED_OUT, keep_every=config.keep_every or None)
    )
    checkpoint = processes.from_main(lambda: run.load("last") if run is not None and config.resume else None)
    start = 0
    if checkpoint is not None:
        checkpoint.restore(denoiser, optimizer)
        precision.restore(checkpoint.state.get("loss_scaler", {}))
        start = checkpoint.step
        if average is not None:
            average.restore(checkpoint)
        del checkpoint
    processes.copy_from_main_(denoiser.state_dict().values())
    validation = data.validation.to(device)
    network = precision.applied_to(compile_network(denoiser) if config.compile else denoiser)

    def draw(iteration: int) -> MotionWindows:
        return data.train.batch(iteration, share, first=own, whole=config.batch_size)

    drawn = batches(draw, start, config.iterations, ahead=config.prefetch)
    phases = Phases(device, wait=config.profile)
    with (
        run or nullcontext(),
        Profile(run if config.profile else None, device, precision.dtype, samples=config.batch_size) as profile,
        graceful_interrupt(run) as stop,
        Progress("prior", config.iterations, start=start) as progress,
        closing(drawn),
    ):
        for iteration, windows in phases.each(drawn):
            rate = learning_rate_at(
                iteration, config.iterations, peak=config.learning_rate, warmup=config.warmup,
                schedule=config.schedule, from_zero=config.warmup_from_zero,
            )  # fmt: skip
            set_learning_rate(optimizer, rate)
            # The whole batch's, so that the losses of its parts add up to its own.
            counts = processes.sum_(torch.stack(count_frames(denoiser.layout, windows))).to(device)
            optimizer.zero_grad(set_to_none=True)
            summed: Tensor | None = None
            with profile.counted():
                for first, _ in parts:
                    part = windows if len(parts) == 1 else windows.select(slice(first - own, first - own + size))
                    with compile_errors() if config.compile else nullcontext():
                        with phases.phase("forward"):
                            loss = batch_loss(
                                denoiser, part.to(device), schedule, config, seed=config.seed, iteration=iteration,
                                first=first, counts=FrameCounts(*counts), network=network,
                            )  # fmt: skip
                        with phases.phase("backward"):
                            precision.backward(loss.total)
                    values = torch.stack([loss.total, *loss.terms.values()]).detach()
                    summed = values if summed is None else summed + values
            with phases.phase("update"):
                processes.sum_gradients_(denoiser.parameters())
                gradient_norm = precision.step(optimizer, denoiser.parameters(), config.gradient_clip)
                if average is not None:
                    average.update(denoiser)
            profile.take(phases.metrics())

            assert summed is not None
            total, *terms = processes.sum_(summed).tolist()
            metrics = {"loss": total, "grad_norm": gradient_norm.item(), "lr": rate}
            metrics |= {f"loss/{name}": value for name, value in zip(loss.terms, terms, strict=True)}
            if precision.loss_scale is not None:
                metrics["loss_scale"] = precision.loss_scale
            done = iteration + 1
            # A signal may have reached some processes only, or between two iterations of others: all stop here.
            signal = processes.largest(stop.number or 0)
            finished, stopping = done == config.iterations, signal > 0
            if stopping and stop.number is None:
                stop.number = signal
            if not math.isfinite(total):
                processes.fail(
                    InputError(
                        f"prior: the loss became {total} at iteration {done}; lower --learning-rate or look for "
                        f"broken clips in {config.data.motion}"
                    )
                )
            # Not when stopping early: an extra measurement could make another checkpoint the best than without the
            # stop.
            if config.validate_every and (done % config.validate_every == 0 or finished):
                measured = {"validation_loss": denoiser}
                if average is not None:
                    measured["validation_loss_ema"] = average.network
                for name, model in measured.items():
                    metrics[name] = validation_loss(
                        model, validation, schedule, config, precision=precision, processes=processes, size=size
                    )
            if run is not None:
                run.log(done, metrics)
            progress.update(loss=total)
            if done % config.checkpoint_every == 0 or finished or stopping:
                processes.main_only(partial(_save, run, done, denoiser, optimizer, average, precision, metrics))
            if stopping:
                break
    return processes.from_main(lambda: run.checkpoint_path("last"))


def _save(
    run: RunDir,
    done: int,
    denoiser: Denoiser,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    precision: NetworkPrecision,
    metrics: dict[str, float],
) -> None:
    run.save(
        done,
        model=denoiser,
        model_config=denoiser.config,
        optimizer=optimizer,
        tensors=None if average is None else average.tensors(),
        state={"loss_scaler": precision.state()},
        metric=metrics.get("validation_loss"),
        better="min",
    )
