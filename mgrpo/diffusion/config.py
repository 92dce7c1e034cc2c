"""Which sampler to use, and how long motion is cut into windows, as options of commands."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.diffusion.stitching import Blend, Stitching
from mgrpo.diffusion.transition import Kernel, Transitions, make_transitions
from mgrpo.errors import InputError

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

    def transitions(self, schedule: CosineSchedule, noisy_steps: Collection[int] | None = None) -> Transitions:
        """The three scalars of each step, with noise at all of them or only at ``noisy_steps``. Raises InputError for
        options out of range."""
        return make_transitions(
            self.kernel, eta=self.eta, steps=self.steps, schedule=schedule, noisy_steps=noisy_steps
        )


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
        for option in ("window", "overlap"):
            if getattr(self, option) < 0:
                raise InputError(f"--{option} must be at least 0, got {getattr(self, option)}")
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
