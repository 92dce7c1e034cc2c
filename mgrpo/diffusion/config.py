"""Which sampler to use, and how long motion is cut into windows, as options of commands."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.diffusion.stitching import Blend, Stitching
from mgrpo.diffusion.transition import (
    KERNELS,
    Kernel,
    NoiseTooLargeError,
    Transitions,
    largest_eta,
    make_transitions,
)
from mgrpo.errors import InputError
from mgrpo.options import option, require

EGOALLO_WINDOW = 128
"""Frames of EgoAllo's windows, where nothing is known about a model."""


@dataclass(frozen=True)
class SamplerConfig:
    """The reverse process. Train and evaluate with the same one: another sampler moves the baseline."""

    kernel: Kernel = "egoallo"
    """Transition kernel: EgoAllo's own (default), ddim, dance, cps, or ode (deterministic, evaluation only)."""
    eta: float = 0.8
    """Noise parameter of the kernel, dimensionless."""
    steps: int = 30
    """Denoising steps."""
    project: bool = True
    """Project the predicted body rotations to SO(3) inside every step (EgoAllo's inference; the paper's early code:
    off)."""

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise InputError(f"{option(self, 'kernel')} must be one of {', '.join(KERNELS)}, got {self.kernel!r}")
        require(self, "eta", at_least=0)
        if self.eta > largest_eta(self.kernel):
            raise InputError(
                f"{option(self, 'eta')} must be at most {largest_eta(self.kernel):g} with {option(self, 'kernel')} "
                f"{self.kernel}, got {self.eta}"
            )
        require(self, "steps", at_least=1)

    @property
    def is_deterministic(self) -> bool:
        """Whether no step draws noise: by the kernel or its parameter, or because the only step is the last one."""
        return self.kernel == "ode" or self.eta == 0 or self.steps == 1

    def unused_options(self) -> Mapping[str, str]:
        """See :class:`mgrpo.options.HasUnusedOptions`."""
        if self.steps == 1:  # it returns the prediction
            alone = f"with {option(self, 'steps')} 1, which draws no noise"
            return {"kernel": alone, "eta": alone}
        return {"eta": f"with {option(self, 'kernel')} ode, which draws no noise"} if self.kernel == "ode" else {}

    def transitions(self, schedule: CosineSchedule, noisy_steps: Collection[int] | None = None) -> Transitions:
        """The three scalars of each step, with noise at all of them or only at ``noisy_steps``. Raises InputError where
        the steps don't fit the model's schedule."""
        if self.steps > schedule.max_t:
            raise InputError(
                f"{option(self, 'steps')} must be at most the {schedule.max_t} noise levels of the model, got "
                f"{self.steps}"
            )
        try:
            return make_transitions(
                self.kernel, eta=self.eta, steps=self.steps, schedule=schedule, noisy_steps=noisy_steps
            )
        except NoiseTooLargeError as error:
            raise InputError(f"{option(self, 'eta')}, {option(self, 'steps')}: {error}") from error


@dataclass(frozen=True)
class StitchingConfig:
    """Motion that is longer than a window: overlapping windows, blended at every step."""

    blend: Blend = "proper"
    """How windows are placed and weighed: proper (full windows, cross-faded), egoallo (the original's, which also makes
    two windows of motion that is as long as one), or author (the paper's early code: shares that don't sum to one)."""
    window: int = 0
    """Frames of a window; 0: the length that the model was trained with, 128 where its run folder doesn't tell. In
    longer ones a model meets positions in time that it has never seen."""
    overlap: int = 0
    """Frames that neighbouring windows share; 0: a quarter of the window (32 of 128, as in the original)."""

    def __post_init__(self) -> None:
        require(self, "window", "overlap", at_least=0)
        if self.window == 1 or 0 < self.window <= self.overlap:
            raise InputError(
                "--window must be at least 2 frames and more than --overlap, got "
                f"--window {self.window} and --overlap {self.overlap}"
            )

    def stitching(self, trained_length: int | None) -> Stitching:
        """Windows for a model that was trained with ``trained_length`` frames (None: not known). Raises InputError when
        the overlap is no smaller than that length."""
        window = self.window or trained_length or EGOALLO_WINDOW
        if self.overlap >= window:
            raise InputError(
                f"--overlap {self.overlap} must be below the window of {window} frames, the length that the model was "
                "trained with; choose a smaller one, or a larger --window"
            )
        return Stitching(self.blend, window, self.overlap or max(1, window // 4))
