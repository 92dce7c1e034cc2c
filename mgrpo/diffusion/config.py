"""Which sampler to use, as an option of a command."""

from __future__ import annotations

from dataclasses import dataclass

from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.diffusion.transition import Kernel, Transitions, make_transitions


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

    def transitions(self, schedule: CosineSchedule) -> Transitions:
        """The three scalars of each step. Raises InputError for options out of range."""
        return make_transitions(self.kernel, eta=self.eta, steps=self.steps, schedule=schedule)
