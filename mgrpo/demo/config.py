"""Options of `mgrpo demo`, and what follows from them for its stages."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from mgrpo.data import AugmentConfig
from mgrpo.diffusion.config import SamplerConfig
from mgrpo.errors import InputError
from mgrpo.execution.seeding import require_seed
from mgrpo.grpo.perturbation import PerlinConfig
from mgrpo.grpo.update import PolicyLossConfig
from mgrpo.grpo.window import StepWindowConfig
from mgrpo.options import require
from mgrpo.train.grpo_config import GrpoConfig
from mgrpo.train.motion_data import MotionDataConfig
from mgrpo.train.perceptual import PERCEPTUAL_TRAINING_PRESETS, PerceptualTrainingConfig
from mgrpo.train.prior import PriorConfig

_SHARED = ("data", "seed", "device", "output")
_OWNED = {
    "prior": (*_SHARED, "resume", "resume_from"),
    "perceptual": (*_SHARED, "resume", "resume_from", "prior"),
    "grpo": (*_SHARED, "resume", "resume_from", "prior", "perceptual"),
}
"""Options of the stages that the demo sets itself."""

_SAMPLER = SamplerConfig(steps=10)
"""A third of EgoAllo's steps: on motion this small it is as accurate, and three times as many groups fit into the
time."""


def _demo_data() -> MotionDataConfig:
    return MotionDataConfig(
        length=32,
        stride=4,
        augment=AugmentConfig(mirror_prob=0.5, betas_std=0.5, speed=0.1, weighting="clips"),
        evaluate_mirrored=True,
    )


def _demo_prior() -> PriorConfig:
    return PriorConfig(
        iterations=900, learning_rate=1e-3, warmup=50, schedule="cosine", validate_every=150, checkpoint_every=150
    )


def _demo_perceptual() -> PerceptualTrainingConfig:
    return replace(
        PERCEPTUAL_TRAINING_PRESETS["tiny"], sampler=_SAMPLER, iterations=160, validate_every=40, checkpoint_every=40
    )


def _demo_grpo() -> GrpoConfig:
    return GrpoConfig(
        iterations=60,
        # Every rollout sees the same windows under new Perlin noise: at this size the gradient is too noisy to follow
        # new ones each time. Many windows in small groups: what is learned from few of them does not carry over.
        train_windows=64,
        conditions=64,
        group_size=4,
        learning_rate=1e-5,
        warmup=5,
        sampler=_SAMPLER,
        perlin=PerlinConfig(alpha=0.1),
        loss=PolicyLossConfig(step_weight="inv_snr"),
        window=StepWindowConfig(size=4),
        validate_every=20,
        checkpoint_every=20,
    )


@dataclass(frozen=True)
class DemoConfig:
    """Run the whole method, small: prior, perceptual model, GRPO, evaluation on held-out clips, report.

    A second start continues where the first one ended.
    """

    output: Path = Path("runs/demo")
    """Folder for the run folders of the stages and the report."""
    seed: int = 0
    """Seed of everything; replaces the seeds of the stages."""
    data: MotionDataConfig = field(default_factory=_demo_data)
    prior: PriorConfig = field(default_factory=_demo_prior)
    """The prior's training, option by option; the demo itself sets its data, seed, device, output and resume."""
    perceptual: PerceptualTrainingConfig = field(default_factory=_demo_perceptual)
    """The perceptual model's training, option by option; the demo itself sets its data, seed, device, output, resume
    and prior."""
    grpo: GrpoConfig = field(default_factory=_demo_grpo)
    """Post-training with GRPO, option by option; the demo itself sets its data, seed, device, output, resume, prior and
    perceptual."""
    evaluation_seeds: int = 4
    """Noise seeds of the evaluation on held-out clips."""
    evaluation_samples: int = 4
    """Samples for each window and seed in the evaluation."""
    alphas: tuple[float, ...] = (0.0, 0.05, 0.1)
    """Amplitudes of the Perlin noise at which diversity is measured, metres."""
    diversity_draws: int = 1
    """Draws of the noise at each amplitude."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1 ..."""
    restart: bool = False
    """Throw away what an earlier start left in the output folder and begin anew."""

    def __post_init__(self) -> None:
        require(self, "evaluation_seeds", "diversity_draws", at_least=1)
        require_seed(self.seed)
        if self.evaluation_samples < 2:
            raise InputError(
                f"--evaluation-samples must be at least 2 (diversity needs two), got {self.evaluation_samples}"
            )
        if any(alpha < 0 for alpha in self.alphas):
            raise InputError(f"--alphas must be 0 or more metres, got {self.alphas}")


def stage_configs(config: DemoConfig) -> tuple[PriorConfig, PerceptualTrainingConfig, GrpoConfig]:
    """The stages' configurations with the demo's folder, motion, seed and device put in.

    Raises InputError where one of these was set for a single stage.
    """
    for stage, owned in _OWNED.items():
        given = getattr(config, stage)
        usual = type(given)()
        for name in owned:
            if getattr(given, name) != getattr(usual, name):
                option = name.replace("_", "-")
                hint = f"give --{option} to the demo instead" if name in _SHARED else "the demo chooses it"
                raise InputError(
                    f"--{stage}.{option}: the stages of a demo share it, so it can't be set for one; {hint}"
                )
    shared = {"data": config.data, "seed": config.seed, "device": config.device, "resume": True}
    prior, perceptual = config.output / "prior", config.output / "perceptual"
    return (
        replace(config.prior, output=prior, **shared),
        replace(config.perceptual, output=perceptual, prior=prior / "last", **shared),
        replace(config.grpo, output=config.output / "grpo", prior=prior / "last", perceptual=perceptual, **shared),
    )
