"""Options of training the perceptual model, and its presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mgrpo.diffusion.config import SamplerConfig
from mgrpo.errors import InputError
from mgrpo.models.perceptual import PERCEPTUAL_PRESETS
from mgrpo.options import MOST_MEMBERS, option, require

from .motion_data import MotionDataConfig
from .start import require_sound, unused_without_resume


@dataclass(frozen=True)
class PerceptualTrainingConfig:
    """Train the perceptual model against samples of a prior."""

    prior: Path = Path("runs/prior")
    """Prior that makes the negatives: run folder, checkpoint, EgoAllo checkpoint, or folder written by
    save_pretrained; it stays frozen."""
    use_ema: bool = False
    """Sample from the averaged weights of a prior trained with --ema, instead of its last ones."""
    output: Path = Path("runs/perceptual")
    """Run folder: configuration, logs and checkpoints."""
    preset: str = "paper"
    """Size of the perceptual model: `tiny` for CPUs, `paper` for the published one."""
    data: MotionDataConfig = field(default_factory=MotionDataConfig)
    iterations: int = 20000
    """Optimiser steps."""
    clips: int = 16
    """Windows per optimiser step, each with one positive and its negatives."""
    accumulate: int = 1
    """Parts that an optimiser step goes through its windows in, one after the other, to save memory. The result is that
    of one part, up to rounding."""
    negatives_per_clip: int = 15
    """Negatives beside each positive."""
    negatives: Literal["samples", "gaussian"] = "samples"
    """Samples of the prior (hard negatives), or the recorded motion with Gaussian noise on its parameters (the paper's
    ablation)."""
    gaussian_sigma: float = 0.05
    """Standard deviation of that noise: radians on every local rotation's vector, and units of the shape
    coefficients."""
    last_steps: int = 3
    """Negatives are the prior's predictions at this many last sampling steps."""
    samples_per_clip: int = 15
    """Samples drawn from the prior for each window of a generation. Fewer than the negatives is cheaper: a sample then
    gives several, from different steps."""
    clips_per_generation: int = 0
    """Windows sampled together in a generation, from which the optimiser steps draw theirs; 0 means as many as
    `clips`."""
    optimizer_steps_per_generation: int = 1
    """Optimiser steps before new samples are generated; more than 1 saves time, each draws its windows and negatives
    afresh."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    learning_rate: float = 1e-4
    """AdamW learning rate after the warm-up."""
    warmup: int = 0
    """Optimiser steps over which the learning rate rises from zero."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or a cosine down to zero at the last iteration."""
    weight_decay: float = 1e-4
    """AdamW weight decay."""
    gradient_clip: float = 1.0
    """Largest gradient norm."""
    seed: int = 0
    """Seed of weights, windows, samples and draws."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda, cuda:1 ..."""
    validation_samples: int = 4
    """Samples of the prior per validation window, drawn once with fixed noise, that accuracy is measured on."""
    validate_every: int = 500
    """Iterations between measurements on the validation clips (0: never)."""
    checkpoint_every: int = 500
    """Iterations between checkpoints."""
    profile: bool = False
    """Write a split of the time by phase, motions per second, FLOPs and peak memory to profile.json; on a GPU the
    phases are waited for, which costs a little."""
    resume: bool = False
    """Go on from the last checkpoint of the run folder."""
    resume_from: str = "last"
    """Where --resume goes on: last, best, a step, or the path of one of the run's checkpoints. What came after it is
    forgotten."""

    def __post_init__(self) -> None:
        require_sound(self)
        if self.preset not in PERCEPTUAL_PRESETS:
            raise InputError(f"--preset must be one of {', '.join(PERCEPTUAL_PRESETS)}, got {self.preset!r}")
        counts = ("clips", "accumulate", "negatives_per_clip", "last_steps", "optimizer_steps_per_generation")
        require(self, *counts, at_least=1)
        require(self, "samples_per_clip", "validation_samples", at_least=1, at_most=MOST_MEMBERS)
        require(self, "clips_per_generation", at_least=0)
        require(self, "gaussian_sigma", above=0)
        if self.negatives == "samples" and self.negatives_per_clip > self.samples_per_clip * self.last_steps:
            raise InputError(
                f"--negatives-per-clip ({self.negatives_per_clip}) can't exceed --samples-per-clip x --last-steps "
                f"({self.samples_per_clip} x {self.last_steps}): draw more samples, or use fewer negatives"
            )
        if self.last_steps > self.sampler.steps:
            raise InputError(f"--last-steps ({self.last_steps}) can't exceed --sampler.steps ({self.sampler.steps})")
        if self.clips % self.accumulate:
            raise InputError(
                f"--clips ({self.clips}) must be a multiple of --accumulate ({self.accumulate}): every part of "
                "them must have the same number of windows"
            )
        if self.clips_per_generation and self.clips_per_generation < self.clips:
            raise InputError(
                f"--clips-per-generation ({self.clips_per_generation}) must be at least --clips ({self.clips}), or 0"
            )

    def unused_options(self) -> Mapping[str, str]:
        """See :class:`mgrpo.options.HasUnusedOptions`."""
        unused = unused_without_resume(self)
        negatives = f"with {option(self, 'negatives')} {self.negatives}"
        if self.negatives == "samples":
            unused["gaussian_sigma"] = negatives
        else:
            unused |= dict.fromkeys(("last_steps", "samples_per_clip"), negatives)
        if not self.validate_every:
            never = f"{option(self, 'validate_every')} 0"
            unused["validation_samples"] = f"with {never}"
            if self.negatives == "gaussian":
                unused["sampler"] = f"{negatives} and {never}"
        return unused

    @property
    def generation_size(self) -> int:
        """Windows in a generation."""
        return self.clips_per_generation or self.clips


PERCEPTUAL_TRAINING_PRESETS: dict[str, PerceptualTrainingConfig] = {
    "tiny": PerceptualTrainingConfig(
        preset="tiny",
        iterations=300,
        clips=8,
        samples_per_clip=5,
        clips_per_generation=32,
        optimizer_steps_per_generation=12,
        learning_rate=1e-3,
        warmup=20,
        schedule="cosine",
        validate_every=50,
        checkpoint_every=50,
    ),
    "paper": PerceptualTrainingConfig(),
}
"""``tiny`` is for CPUs and small data; ``paper`` follows the paper where it says something."""

CARRIED_OUT = ("accumulate", "profile")
"""Settings that change a run's results by rounding at most; a resumed run may have others."""
