"""Training the diffusion prior: EgoAllo's denoiser, its loss and weights (facts: the base model's section E)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from mgrpo.data import MotionWindows
from mgrpo.diffusion.loss import DenoisingLoss, LossWeights, denoising_loss, draw_training_noise
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.errors import InputError
from mgrpo.models.denoiser import DENOISER_PRESETS, Denoiser

from .device import resolve_device
from .interrupt import graceful_interrupt
from .learning_rate import learning_rate_at, set_learning_rate
from .motion_data import MotionDataConfig, load_motion_data
from .progress import Progress
from .seeding import stream_seed
from .start import open_run, require_at_least_one, restore_last


@dataclass(frozen=True)
class PriorConfig:
    """Train the diffusion prior on motion."""

    output: Path = Path("runs/prior")
    """Run folder: configuration, logs and checkpoints."""
    preset: str = "tiny"
    """Network size: `tiny` for CPUs, `egoallo` for the published one."""
    data: MotionDataConfig = field(default_factory=MotionDataConfig)
    iterations: int = 2000
    """Optimiser steps."""
    batch_size: int = 64
    """Windows per optimiser step."""
    learning_rate: float = 1e-4
    """AdamW learning rate after the warm-up."""
    warmup: int = 1000
    """Optimiser steps over which the learning rate rises from zero."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant (EgoAllo), or a cosine down to zero at the last iteration."""
    weight_decay: float = 1e-4
    """AdamW weight decay."""
    gradient_clip: float = 1.0
    """Largest gradient norm."""
    condition_dropout: float = 0.0
    """Share of windows whose condition is blanked out (EgoAllo: 0)."""
    loss: LossWeights = field(default_factory=LossWeights)
    seed: int = 0
    """Seed of weights, windows, noise levels and noise."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda, cuda:1 ..."""
    validate_every: int = 250
    """Iterations between measurements of the loss on the validation clips (0: never)."""
    checkpoint_every: int = 250
    """Iterations between checkpoints."""
    resume: bool = False
    """Go on from the last checkpoint of the run folder."""
    resume_from: str = "last"
    """Where --resume goes on: last, best, a step, or the path of one of the run's checkpoints. What came after it is
    forgotten."""

    def __post_init__(self) -> None:
        require_at_least_one(self, "iterations", "batch_size", "checkpoint_every")
        if self.preset not in DENOISER_PRESETS:
            raise InputError(f"--preset must be one of {', '.join(DENOISER_PRESETS)}, got {self.preset!r}")
        if not self.learning_rate > 0:
            raise InputError(f"--learning-rate must be positive, got {self.learning_rate}")


def batch_loss(
    denoiser: Denoiser,
    windows: MotionWindows,
    schedule: CosineSchedule,
    config: PriorConfig,
    *,
    seed: int,
    iteration: int,
) -> DenoisingLoss:
    """The denoising loss of one batch, with the noise levels and noise of (seed, iteration)."""
    layout = denoiser.layout
    batch, frames = windows.mask.shape
    draws = draw_training_noise(
        layout, seed=seed, iteration=iteration, batch=batch, frames=frames, max_t=schedule.max_t,
        cond_dropout=config.condition_dropout, device=windows.mask.device,
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
    )


def train_prior(config: PriorConfig, *, command: list[str] | None = None) -> Path:
    """Train until ``config.iterations`` and return the folder of the last checkpoint. Raises InputError for what a user
    can mend."""
    device = resolve_device(config.device)
    data = load_motion_data(config.data, seed=config.seed)
    model_config = DENOISER_PRESETS[config.preset]
    denoiser = Denoiser(model_config, seed=stream_seed(config.seed, 0, "prior weights")).to(device)
    schedule = CosineSchedule.make(model_config.max_t)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)

    run = open_run(config, command)
    start = restore_last(run, config, denoiser, optimizer)
    validation = data.validation.to(device)
    validation_seed = stream_seed(config.seed, 0, "validation noise")

    with run, graceful_interrupt(run) as stop, Progress("prior", config.iterations, start=start) as progress:
        for iteration in range(start, config.iterations):
            rate = learning_rate_at(
                iteration, config.iterations, peak=config.learning_rate, warmup=config.warmup, schedule=config.schedule
            )
            set_learning_rate(optimizer, rate)
            windows = data.train.batch(iteration, config.batch_size).to(device)
            loss = batch_loss(denoiser, windows, schedule, config, seed=config.seed, iteration=iteration)
            optimizer.zero_grad(set_to_none=True)
            loss.total.backward()
            gradient_norm = torch.nn.utils.clip_grad_norm_(denoiser.parameters(), config.gradient_clip)
            optimizer.step()

            metrics = {"loss": loss.total.item(), "grad_norm": gradient_norm.item(), "lr": rate}
            metrics |= {f"loss/{name}": value.item() for name, value in loss.terms.items()}
            done = iteration + 1
            finished, stopping = done == config.iterations, stop.requested
            if not math.isfinite(metrics["loss"]):
                raise InputError(
                    f"prior: the loss became {metrics['loss']} at iteration {done}; lower --learning-rate or look for "
                    f"broken clips in {config.data.motion}"
                )
            # Not when stopping early: an extra measurement could make another checkpoint the best than without the
            # stop.
            if config.validate_every and (done % config.validate_every == 0 or finished):
                with torch.no_grad():
                    metrics["validation_loss"] = batch_loss(
                        denoiser, validation, schedule, config, seed=validation_seed, iteration=0
                    ).total.item()
            run.log(done, metrics)
            progress.update(loss=metrics["loss"])
            if done % config.checkpoint_every == 0 or finished or stopping:
                run.save(
                    done,
                    model=denoiser,
                    model_config=model_config,
                    optimizer=optimizer,
                    metric=metrics.get("validation_loss"),
                    better="min",
                )
            if stopping:
                break
    return run.checkpoint_path("last")
