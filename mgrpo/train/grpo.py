"""Post-training the prior with GRPO: sample groups, score them, push the policy towards the better members (paper
section 3)."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mgrpo.body import BodyModel
from mgrpo.data import MotionWindows, WindowSource
from mgrpo.diffusion.config import SamplerConfig
from mgrpo.diffusion.sampler import NoiseKeys
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.diffusion.transition import Transitions
from mgrpo.errors import InputError, MgrpoError
from mgrpo.eval.evaluate import evaluate
from mgrpo.eval.metrics import group_diversity
from mgrpo.grpo.health import advantage_metrics, parameter_distance, reward_metrics, update_metrics
from mgrpo.grpo.perturbation import PerlinConfig, perturbed_head
from mgrpo.grpo.rollout import Rollout, roll_out
from mgrpo.grpo.update import PolicyLossConfig, accumulate_gradients, check_ratio_is_one, choose_steps
from mgrpo.kernels import MotionRewards
from mgrpo.models.conditioning import make_cond
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.motion import PredictedMotion, decode_motion
from mgrpo.models.perceptual import PerceptualConfig, PerceptualModel
from mgrpo.models.state import StateLayout
from mgrpo.options import MOST_COUNT, MOST_MEMBERS, option, require
from mgrpo.rewards import REWARDS, RewardBatch, RewardScales, score_groups

from .checkpoints import load_model
from .device import resolve_device
from .interrupt import graceful_interrupt
from .learning_rate import learning_rate_at, set_learning_rate
from .motion_data import MotionDataConfig, load_motion_data
from .progress import Progress
from .seeding import iteration_generator
from .start import open_run, require_sound, restore_last, unused_without_resume

_SLOPES = {"ground_penetration": "penetration", "head_position": "head"}
"""Names of slopes that differ from those of their rewards."""


@dataclass(frozen=True)
class RewardWeights:
    """Weight of each reward's advantage; 0 leaves the reward out."""

    visual: float = 1.0
    """Perceptual model."""
    position: float = 1.0
    """Joint positions in the world."""
    aligned_position: float = 1.0
    """Joint positions after Procrustes alignment."""
    rotation: float = 1.0
    """Local joint rotations."""
    velocity: float = 1.0
    """Joint velocities."""
    foot_skate: float = 0.0
    """Sliding feet."""
    ground_penetration: float = 0.0
    """Joints below the floor."""
    jitter: float = 0.0
    """Jerk that differs from the recording's."""
    head_position: float = 0.0
    """Head joint."""

    def __post_init__(self) -> None:
        require(self, *REWARDS)

    def active(self) -> dict[str, float]:
        """The rewards in use, in the order of the REWARDS table."""
        return {name: getattr(self, name) for name in REWARDS if getattr(self, name) != 0}


@dataclass(frozen=True)
class AdvantageConfig:
    """How rewards become advantages."""

    scheme: Literal["normalize_then_sum", "sum_then_normalize", "gdpo", "center_only", "batch_std"] = (
        "normalize_then_sum"
    )
    """Each reward normalised in its group and then summed (paper), or the other schemes of docs/conventions.md."""
    eps: float = 1e-8
    """Added to the standard deviation."""
    std_floor_ratio: float = 0.05
    """Floor of a group's standard deviation as a share of the batch's, so that rounding is not blown up to unit
    advantages (paper: 0)."""
    dead_ratio: float = 1e-3
    """A group whose spread in a reward is below this share of the batch's has nothing to say about it (paper: 0)."""
    dead_abs: float = 1e-6
    """The same, as an absolute spread of the reward (paper: 0)."""
    clamp: float = 5.0
    """Largest absolute advantage after the sum."""

    def __post_init__(self) -> None:
        require(self, "eps", "std_floor_ratio", "dead_ratio", "dead_abs", at_least=0)
        require(self, "clamp", above=0)

    def unused_options(self) -> Mapping[str, str]:
        """See :class:`mgrpo.options.HasUnusedOptions`."""
        scheme = f"with {option(self, 'scheme')} {self.scheme}"
        unused = {"center_only": ("eps", "std_floor_ratio"), "batch_std": ("std_floor_ratio",)}
        return dict.fromkeys(unused.get(self.scheme, ()), scheme)


@dataclass(frozen=True)
class GrpoConfig:
    """Post-train a prior with GRPO."""

    prior: Path = Path("runs/prior")
    """Prior to start from: run folder, checkpoint, EgoAllo checkpoint, or folder written by save_pretrained."""
    use_ema: bool = False
    """Start from the averaged weights of a prior trained with --ema, instead of its last ones."""
    perceptual: Path | None = Path("runs/perceptual")
    """Run folder, checkpoint or save_pretrained folder of the perceptual model; needed while the visual reward has a
    weight."""
    output: Path = Path("runs/grpo")
    """Run folder: configuration, logs and checkpoints."""
    data: MotionDataConfig = field(default_factory=MotionDataConfig)
    iterations: int = 2000
    """Rollouts."""
    train_windows: int = 0
    """Train on this many windows, drawn once and gone through in turn; 0: draw new windows for every rollout."""
    conditions: int = 64
    """Head trajectories in a rollout."""
    group_size: int = 16
    """Samples for each trajectory."""
    optimizer_steps: int = 1
    """Optimiser steps for each rollout; each uses its own share of the conditions."""
    learning_rate: float = 1e-5
    """AdamW learning rate after the warm-up."""
    warmup: int = 0
    """Optimiser steps over which the learning rate rises from zero (paper: 0)."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant (paper), or a cosine down to zero at the last iteration."""
    weight_decay: float = 1e-4
    """AdamW weight decay."""
    gradient_clip: float = 1.0
    """Largest gradient norm."""
    freeze_condition_projection: bool = True
    """Keep the network's first layer on the condition fixed."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is then what is saved as the model; 0: none
    (paper)."""
    share_initial_noise: bool = True
    """Give all members of a group the same initial noise (paper)."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    perlin: PerlinConfig = field(default_factory=PerlinConfig)
    rewards: RewardWeights = field(default_factory=RewardWeights)
    scales: RewardScales = field(default_factory=RewardScales)
    rotation_error: Literal["geodesic", "axis_angle", "frobenius"] = "geodesic"
    """Error behind the rotation reward (paper's early code: axis_angle)."""
    alignment: Literal["standard", "egoallo"] = "standard"
    """Error behind the aligned reward: the prediction aligned to the recording, or EgoAllo's published defect."""
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    seed: int = 0
    """Seed of windows, noise and perturbation."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda, cuda:1 ..."""
    validate_every: int = 50
    """Iterations between evaluations on the validation clips with fixed noise (0: never)."""
    checkpoint_every: int = 25
    """Iterations between checkpoints."""
    resume: bool = False
    """Go on from the last checkpoint of the run folder."""
    resume_from: str = "last"
    """Where --resume goes on: last, best, a step, or the path of one of the run's checkpoints. What came after it is
    forgotten."""

    def __post_init__(self) -> None:
        require_sound(self)
        require(self, "conditions", "optimizer_steps", at_least=1, at_most=MOST_COUNT)
        if self.group_size < 2:
            raise InputError(
                f"--group-size must be at least 2 (a group of one has no spread to learn from), got {self.group_size}"
            )
        require(self, "group_size", at_most=MOST_MEMBERS)
        require(self, "train_windows", at_least=0)
        require(self, "ema", at_least=0, below=1)
        if self.sampler.is_deterministic:
            raise InputError(
                f"{option(self, 'sampler.kernel')} {self.sampler.kernel}, {option(self, 'sampler.eta')} "
                f"{self.sampler.eta:g}, {option(self, 'sampler.steps')} {self.sampler.steps}: no step draws noise, so "
                "there is no action to train; choose another kernel, a larger eta, or more steps"
            )
        stochastic = self.sampler.steps - 1  # the last step returns the prediction
        if self.loss.trained_steps > stochastic:
            raise InputError(
                f"{option(self, 'loss.trained_steps')} ({self.loss.trained_steps}) can't exceed the {stochastic} steps "
                f"with noise of {option(self, 'sampler.steps')} {self.sampler.steps}; 0 trains all of them"
            )
        if self.optimizer_steps > self.conditions:
            raise InputError(
                f"--optimizer-steps ({self.optimizer_steps}) can't exceed --conditions ({self.conditions}): each step "
                "needs a condition"
            )
        if self.train_windows and self.train_windows % self.conditions:
            raise InputError(
                f"--train-windows ({self.train_windows}) must be a multiple of --conditions ({self.conditions}), or 0"
            )
        if not self.rewards.active():
            raise InputError(f"{option(self, 'rewards')}: every weight is 0; give at least one reward a weight")
        if self.rewards.visual and self.perceptual is None:
            raise InputError(
                "--perceptual: the visual reward has a weight but no perceptual model is given; train one, or set "
                "--rewards.visual 0"
            )

    def unused_options(self) -> Mapping[str, str]:
        """See :class:`mgrpo.options.HasUnusedOptions`."""
        shaped = {f"scales.{_SLOPES.get(name, name)}": name for name in REWARDS}
        shaped |= {"perceptual": "visual", "rotation_error": "rotation", "alignment": "aligned_position"}
        return unused_without_resume(self) | {
            name: f"while the reward has no weight ({option(self, f'rewards.{reward}')} 0)"
            for name, reward in shaped.items()
            if not getattr(self.rewards, reward)
        }


@dataclass(frozen=True)
class Scorer:
    """Everything that turns samples into rewards."""

    config: GrpoConfig
    body: BodyModel
    layout: StateLayout
    perceptual: PerceptualModel | None

    @torch.no_grad()
    def score(self, x0: Tensor, windows: MotionWindows) -> tuple[MotionRewards, PredictedMotion]:
        """Rewards and advantages of samples ``x0 (B, G, T, D)``, and the motion that they are, placed by the clean head
        trajectory."""
        motion = decode_motion(self.layout, x0, windows.T_world_cpf[:, None], self.body)
        batch = RewardBatch(
            prediction=motion,
            target=windows,
            scales=self.config.scales,
            rotation_error=self.config.rotation_error,
            alignment=self.config.alignment,
            perceptual=self.perceptual,
        )
        # The fields of AdvantageConfig are keywords of group_advantages.
        return score_groups(batch, self.body, self.config.rewards.active(), **asdict(self.config.advantage)), motion


def training_windows(
    sampler: WindowSource, pool: MotionWindows | None, config: GrpoConfig, iteration: int
) -> MotionWindows:
    """The windows of one rollout: fresh ones, or the next part of a fixed pool."""
    if pool is None:
        return sampler.batch(iteration, config.conditions)
    first = iteration * config.conditions % config.train_windows
    return pool.select(slice(first, first + config.conditions))


def sample_groups(
    policy: Denoiser,
    windows: MotionWindows,
    config: GrpoConfig,
    transitions: Transitions,
    layout: StateLayout,
    iteration: int,
) -> Rollout:
    """One rollout: perturb the head, encode the condition, sample a group for each."""
    condition = torch.arange(len(windows), device=windows.mask.device)
    T_world_cpf, relative = perturbed_head(
        windows, config.perlin, seed=config.seed, iteration=iteration, condition=condition, members=config.group_size
    )
    rows, frames = T_world_cpf.shape[:2], T_world_cpf.shape[2]
    cond = make_cond(policy.config, T_world_cpf.reshape(-1, frames, 7), relative.reshape(-1, frames, 7)).view(
        *rows, frames, -1
    )
    keys = NoiseKeys(config.seed, iteration, condition, config.group_size, share_initial=config.share_initial_noise)
    return roll_out(
        policy, cond, transitions, keys, layout, group_size=config.group_size, project_rotations=config.sampler.project
    )


def train_grpo(config: GrpoConfig, *, command: list[str] | None = None) -> Path:
    """Post-train until ``config.iterations`` and return the last checkpoint.

    Raises InputError for what a user can mend, :class:`mgrpo.grpo.update.RatioCheckError` when rollout and update
    disagree.
    """
    device = resolve_device(config.device)
    names = tuple(config.rewards.active())
    weights = torch.tensor([config.rewards.active()[name] for name in names], device=device)
    policy = load_model(config.prior, Denoiser, DenoiserConfig, use_ema=config.use_ema)[0].to(device)
    perceptual = None
    if "visual" in names:
        perceptual = (
            load_model(config.perceptual, PerceptualModel, PerceptualConfig)[0].to(device).requires_grad_(False)
        )
    layout = StateLayout(include_hands=policy.config.include_hands)
    transitions = config.sampler.transitions(CosineSchedule.make(policy.config.max_t))
    data = load_motion_data(config.data, seed=config.seed)
    if config.freeze_condition_projection:
        policy.latent_from_cond.requires_grad_(False)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    reference = copy.deepcopy(policy).requires_grad_(False) if config.loss.kl_coef else None
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    average = copy.deepcopy(policy).requires_grad_(False) if config.ema else None
    body = data.body.to(device)
    scorer = Scorer(config, body, layout, perceptual)
    validation = data.validation.to(device)
    pool = data.post_training.batch(0, config.train_windows) if config.train_windows else None

    run = open_run(config, command)
    best = average if average is not None else policy
    start = restore_last(run, config, best, optimizer)
    if start and average is not None:
        policy.load_state_dict(
            {name.removeprefix("policy."): tensor for name, tensor in run.load("last").tensors.items()}
        )

    with run, graceful_interrupt(run) as stop, Progress("grpo", config.iterations, start=start) as progress:
        for iteration in range(start, config.iterations):
            clock = time.perf_counter()
            windows = training_windows(data.post_training, pool, config, iteration).to(device)
            rate = learning_rate_at(
                iteration, config.iterations, peak=config.learning_rate, warmup=config.warmup, schedule=config.schedule
            )
            set_learning_rate(optimizer, rate)
            rollout = sample_groups(policy, windows, config, transitions, layout, iteration)
            rolled = time.perf_counter()
            result, motion = scorer.score(rollout.x0, windows)
            rewards = result.rewards
            bad = torch.nonzero(~torch.isfinite(rewards).all(-1))
            if len(bad) == rewards.shape[0] * rewards.shape[1]:
                raise MgrpoError(
                    f"grpo: no sample of iteration {iteration + 1} could be scored (all rewards are NaN); the last "
                    "checkpoint is intact"
                )
            scored = time.perf_counter()
            statistics, norms, moved = update(
                policy, rollout, result.advantages, result.alive, config, optimizer, trained, reference, iteration
            )
            if iteration == start:
                check_ratio_is_one(statistics[0], config.loss)
            if average is not None:
                for target, source in zip(average.parameters(), policy.parameters()):
                    target.lerp_(source.detach(), 1 - config.ema)
            updated = time.perf_counter()

            metrics = (
                reward_metrics(rewards, weights, names)
                | advantage_metrics(result, names, config.advantage.clamp)
                | update_metrics(statistics)
            )
            metrics |= {
                "grad_norm": sum(norms) / len(norms),
                "grad_clipped": sum(norm > config.gradient_clip for norm in norms) / len(norms),
                "update_ratio": moved,
                "lr": rate,
                "unscored_samples": float(len(bad)),
                "step_time": updated - clock,
                "time/rollout": rolled - clock,
                "time/reward": scored - rolled,
                "time/update": updated - scored,
            }
            metrics |= {
                f"diversity/{name}": float(value.nanmean())
                for name, value in group_diversity(motion.joints22, windows.mask).items()
            }
            done = iteration + 1
            finished, stopping = done == config.iterations, stop.requested
            # Not when stopping early: an extra measurement could make another checkpoint the best than without the
            # stop.
            if config.validate_every and (done % config.validate_every == 0 or finished):
                gold = validate(best, validation, body, config, transitions)
                metrics |= {f"validation/{name}": value for name, value in gold.items()}
            run.log(done, metrics)
            progress.update(reward=metrics["reward"])
            if not math.isfinite(metrics["grad_norm"]):
                raise MgrpoError(
                    f"grpo: the gradient became {metrics['grad_norm']} in iteration {done}; the last checkpoint is "
                    "intact. Lower --learning-rate"
                )
            if done % config.checkpoint_every == 0 or finished or stopping:
                extra = (
                    {f"policy.{name}": tensor for name, tensor in policy.state_dict().items()}
                    if average is not None
                    else None
                )
                run.save(
                    done,
                    model=best,
                    model_config=policy.config,
                    optimizer=optimizer,
                    tensors=extra,
                    metric=metrics.get("validation/mpjpe_mm"),
                    better="min",
                )
            if stopping:
                break
    return run.checkpoint_path("last")


def update(
    policy: Denoiser,
    rollout: Rollout,
    advantages: Tensor,
    alive: Tensor,
    config: GrpoConfig,
    optimizer: torch.optim.Optimizer,
    trained: list[Tensor],
    reference: Denoiser | None,
    iteration: int,
):
    """The optimiser steps of one rollout: each takes its share of the conditions and all trained sampler steps.

    Returns the statistics and gradient norms of each step and the size of the whole update relative to the weights.
    """
    generator = iteration_generator(config.seed, iteration, "trained steps")
    before = [parameter.detach().clone() for parameter in trained]
    conditions, members = advantages.shape
    encodings = rollout.cond.shape[0] // conditions
    statistics, norms = [], []
    for share in torch.tensor_split(torch.arange(conditions), config.optimizer_steps):
        first, last = int(share[0]), int(share[-1]) + 1
        steps = choose_steps(rollout.transitions, config.loss, generator)
        living = float(alive[first:last].sum()) * members * len(steps)
        optimizer.zero_grad(set_to_none=True)
        statistics.append(
            accumulate_gradients(
                policy,
                rollout,
                advantages.reshape(conditions * encodings, -1),
                config.loss,
                steps=steps,
                rows=slice(first * encodings, last * encodings),
                denominator=max(living, 1.0),
                reference=reference,
            )
        )
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, config.gradient_clip)))
        if math.isfinite(norms[-1]):
            optimizer.step()
    return statistics, norms, parameter_distance(before, trained)


def validate(
    policy: Denoiser, windows: MotionWindows, body: BodyModel, config: GrpoConfig, transitions: Transitions
) -> dict[str, float]:
    """Metrics on the validation clips, clean trajectory and the same noise every time; none of them is a reward."""
    result = evaluate(
        policy, windows, body, transitions, seeds=(config.seed,), samples=1, project_rotations=config.sampler.project
    )
    return {name: value for name, value in result.means().items() if math.isfinite(value)}
