"""Training the perceptual model: tell recorded motion from what the frozen prior makes of the same head trajectory
(paper 3.4.1).

Negatives are hard and fresh: predictions of the clean motion at the last three sampling steps, generated while
training. A *generation* samples a set of clips once; one or more optimiser steps then draw clips and negatives from it.
Everything random is a function of (seed, generation or iteration), so a resumed run repeats an uninterrupted one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mgrpo import geometry
from mgrpo.body import BodyModel
from mgrpo.data import MotionWindows
from mgrpo.diffusion.sampler import NoiseKeys, SampleResult, sample
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.diffusion.transition import Transitions
from mgrpo.errors import MgrpoError
from mgrpo.eval.evaluate import score_samples, score_windows
from mgrpo.execution.device import resolve_device
from mgrpo.execution.seeding import iteration_generator, stream_seed
from mgrpo.models.conditioning import make_cond
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.motion import PredictedMotion, decode_motion
from mgrpo.models.perceptual import PerceptualModel, info_nce, perceptual_preset
from mgrpo.models.state import StateLayout, pack_windows
from mgrpo.runs.stored_models import load_model
from mgrpo.terminal.interrupt import graceful_interrupt
from mgrpo.terminal.progress import Progress

from .learning_rate import learning_rate_at, set_learning_rate
from .motion_data import load_motion_data
from .perceptual_config import CARRIED_OUT, PERCEPTUAL_TRAINING_PRESETS, PerceptualTrainingConfig
from .phases import Phases
from .profile import Profile
from .start import open_run, restore_last


@dataclass(frozen=True)
class Generation:
    """Recorded windows and what the prior makes of their head trajectories."""

    windows: MotionWindows
    """B windows with their recorded motion."""
    states: Tensor | None
    """Predicted clean states ``(B, S, L, T, D)`` of S samples at the last L sampling steps, the last step last; None
    where the negatives don't come from the prior."""


@dataclass(frozen=True)
class Candidates:
    """A positive and its negatives for each of B head trajectories, the positive first."""

    R_world_joint: Tensor
    """``(B, K, T, 22, 3, 3)``."""
    joints: Tensor
    """``(B, K, T, 22, 3)`` metres."""
    T_world_cpf: Tensor
    """``(B, T, 7)``."""
    mask: Tensor
    """``(B, T)`` bool."""

    def parts(self, count: int) -> list[Candidates]:
        """The same in ``count`` parts of equally many head trajectories."""
        columns = (self.R_world_joint, self.joints, self.T_world_cpf, self.mask)
        return [Candidates(*part) for part in zip(*(column.chunk(count) for column in columns), strict=True)]


@torch.no_grad()
def sample_windows(
    prior: Denoiser, windows: MotionWindows, transitions: Transitions, config: PerceptualTrainingConfig, keys: NoiseKeys
) -> SampleResult:
    """Sample motions for windows from their clean head trajectories, keeping the predictions of the last steps."""
    cond = make_cond(prior.config, windows.T_world_cpf, windows.T_cpf_tm1_cpf_t)
    return sample(
        prior,
        cond,
        transitions,
        keys,
        mask=None if bool(windows.mask.all()) else windows.mask,
        project_rotations=config.sampler.project,
        record="last",
        record_last=config.last_steps,
    )


def noise_keys(
    config: PerceptualTrainingConfig, purpose: str, iteration: int, windows: MotionWindows, samples: int
) -> NoiseKeys:
    """Noise of one generation: unrelated to the noise of other stages that run with the same seed."""
    condition = torch.arange(len(windows), device=windows.mask.device)
    return NoiseKeys(stream_seed(config.seed, 0, purpose), iteration, condition, samples, share_initial=False)


def generate(
    prior: Denoiser, windows: MotionWindows, transitions: Transitions, config: PerceptualTrainingConfig, generation: int
) -> Generation:
    """The samples of one generation, a function of (seed, generation) and the windows."""
    if config.negatives == "gaussian":
        return Generation(windows, None)
    keys = noise_keys(config, "perceptual negatives", generation, windows, config.samples_per_clip)
    result = sample_windows(prior, windows, transitions, config, keys)
    return Generation(windows, torch.stack(result.x0_pred, dim=2))


def draw_negatives(
    samples: int, steps: int, negatives: int, clips: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Which sample and which of its last steps each negative is: two index tensors ``(clips, negatives)``, drawn
    without repetition.

    Samples differ much, steps of one sample little; so every sample is used once, at a random step, before any is used
    twice.
    """
    rounds = math.ceil(negatives / samples)
    step_order = torch.rand(clips, samples, steps, generator=generator).argsort(-1)
    sample_order = torch.rand(clips, rounds, samples, generator=generator).argsort(-1)
    chosen_sample = sample_order.flatten(1)[:, :negatives]
    round_of = torch.arange(rounds).repeat_interleave(samples)[:negatives].expand(clips, -1)
    chosen_step = step_order[torch.arange(clips)[:, None], chosen_sample, round_of]
    return chosen_sample, chosen_step


def noisy_states(
    windows: MotionWindows, layout: StateLayout, sigma: float, copies: int, generator: torch.Generator
) -> Tensor:
    """The recorded states with Gaussian noise on their parameters ``(B, copies, T, D)``: the paper's ablation of hard
    negatives.

    Every local rotation is turned by a rotation vector with components of standard deviation ``sigma`` radians, every
    shape coefficient moved by ``sigma`` standard normals; frames are independent.
    """
    states = pack_windows(layout, windows)
    batch, frames, _ = states.shape
    noisy = states[:, None].repeat(1, copies, 1, 1)
    for name, part in layout.slices.items():
        if name == "contacts":
            continue
        width = part.stop - part.start
        if name == "betas":
            draw = torch.randn((batch, copies, frames, width), generator=generator).to(states)
            noisy[..., part] += sigma * draw
        else:
            draw = torch.randn((batch, copies, frames, width // 9, 3), generator=generator).to(states)
            rotations = noisy[..., part].unflatten(-1, (-1, 3, 3))
            noisy[..., part] = (rotations @ geometry.axis_angle_to_rotmat(sigma * draw)).flatten(-3)
    return noisy


@torch.no_grad()
def make_candidates(windows: MotionWindows, states: Tensor, layout: StateLayout, body: BodyModel) -> Candidates:
    """Put the recorded motion of B windows before K - 1 negatives with packed states ``(B, K - 1, T, D)``."""
    motion = decode_motion(layout, states, windows.T_world_cpf[:, None], body)
    return Candidates(
        R_world_joint=torch.cat((windows.R_world_joint[:, None], motion.R_world_joint22), dim=1),
        joints=torch.cat((windows.joints[:, None], motion.joints22), dim=1),
        T_world_cpf=windows.T_world_cpf,
        mask=windows.mask,
    )


def draw_candidates(
    generation: Generation, layout: StateLayout, body: BodyModel, config: PerceptualTrainingConfig, iteration: int
) -> Candidates:
    """The clips and negatives of one optimiser step, a function of (seed, iteration) and the generation."""
    generator = iteration_generator(config.seed, iteration, "perceptual draw")
    device = generation.windows.mask.device
    rows = torch.randperm(len(generation.windows), generator=generator)[: config.clips]
    windows = generation.windows.select(rows.to(device))
    if generation.states is None:
        states = noisy_states(windows, layout, config.gaussian_sigma, config.negatives_per_clip, generator)
    else:
        samples, steps = generation.states.shape[1:3]
        which, step = draw_negatives(samples, steps, config.negatives_per_clip, config.clips, generator)
        states = generation.states[rows[:, None].to(device), which.to(device), step.to(device)]
    return make_candidates(windows, states, layout, body)


def score_candidates(model: PerceptualModel, candidates: Candidates) -> Tensor:
    """Scores ``(B, K)`` of all candidates, each beside its head trajectory."""
    batch, count = candidates.joints.shape[:2]
    head = candidates.T_world_cpf[:, None].expand(-1, count, -1, -1).flatten(0, 1)
    mask = candidates.mask[:, None].expand(-1, count, -1).flatten(0, 1)
    return model(candidates.R_world_joint.flatten(0, 1), candidates.joints.flatten(0, 1), head, mask).view(batch, count)


@dataclass(frozen=True)
class Discrimination:
    """How well a perceptual model tells N recorded windows from S samples of each (paper equation 21)."""

    accuracy: float
    """Share of (window, sample) pairs in which the recorded motion scores higher."""
    wrong_count: float
    """The published Wrong Count: N times the share of the other pairs."""
    score_gap: float
    """Mean score of the recorded motion minus that of the samples."""
    loss: float
    """InfoNCE of each recorded motion against its S samples."""


@torch.no_grad()
def discriminate(
    model: PerceptualModel, windows: MotionWindows, motion: PredictedMotion, *, rows_at_once: int = 64
) -> Discrimination:
    """Measure a model on recorded windows and samples ``(N, S, T, …)`` of their head trajectories, ``rows_at_once``
    windows at a time."""
    training = model.training
    model.eval()
    truth, scores = [], []
    for start in range(0, len(windows), rows_at_once):
        rows = torch.arange(start, min(start + rows_at_once, len(windows)), device=windows.mask.device)
        part = PredictedMotion(*(None if value is None else value[rows] for value in motion))
        truth.append(score_windows(model, windows.select(rows))[:, None])
        scores.append(score_samples(model, part, windows.select(rows)))
    model.train(training)
    positive, negative = torch.cat(truth), torch.cat(scores)
    accuracy = (positive > negative).double().mean().item()
    return Discrimination(
        accuracy=accuracy,
        wrong_count=len(windows) * (1 - accuracy),
        score_gap=(positive - negative).double().mean().item(),
        loss=info_nce(torch.cat((positive, negative), dim=1), model.config.temperature).item(),
    )


def optimizer_step(
    model: PerceptualModel,
    optimizer: torch.optim.Optimizer,
    candidates: Candidates,
    gradient_clip: float,
    *,
    accumulate: int = 1,
) -> dict[str, float]:
    """One step of InfoNCE, whose gradient is made in ``accumulate`` parts; returns what to log."""
    optimizer.zero_grad(set_to_none=True)
    scored = []
    for part in candidates.parts(accumulate):
        scores = score_candidates(model, part)
        (info_nce(scores, model.config.temperature) / accumulate).backward()
        scored.append(scores.detach())
    scores = torch.cat(scored)
    gradient_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), gradient_clip)
    optimizer.step()
    positive, negative = scores[:, :1], scores[:, 1:]
    return {
        "loss": info_nce(scores, model.config.temperature).item(),
        "accuracy": (positive > negative).float().mean().item(),
        "score_gap": (positive - negative).mean().item(),
        "score_positive": positive.mean().item(),
        "score_negative": negative.mean().item(),
        "grad_norm": gradient_norm.item(),
    }


def train_perceptual(config: PerceptualTrainingConfig, *, command: list[str] | None = None) -> Path:
    """Train until ``config.iterations`` and return the folder of the last checkpoint. Raises InputError for what a user
    can mend.

    The best checkpoint is the one with the lowest InfoNCE on the validation clips. The held-out clips take no part.
    """
    device = resolve_device(config.device)
    model_config = perceptual_preset(config.preset)
    prior = load_model(config.prior, Denoiser, DenoiserConfig, use_ema=config.use_ema)[0]
    prior = prior.to(device).requires_grad_(False)
    transitions = config.sampler.transitions(CosineSchedule.make(prior.config.max_t))
    data = load_motion_data(config.data, seed=config.seed)
    body = data.body.to(device)
    torch.manual_seed(stream_seed(config.seed, 0, "perceptual weights"))
    model = PerceptualModel(model_config).to(device)
    layout = StateLayout(include_hands=prior.config.include_hands)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)

    run = open_run(config, command, may_change=CARRIED_OUT)
    start = restore_last(run, config, model, optimizer)
    validation = data.validation.to(device)

    phases = Phases(device, wait=config.profile)
    motions = config.clips * (1 + config.negatives_per_clip)
    with (
        run,
        Profile(
            run if config.profile else None, device, torch.float32, samples=motions,
            period=config.optimizer_steps_per_generation,
        ) as profile,
        graceful_interrupt(run) as stop,
        Progress("perceptual", config.iterations, start=start) as progress,
    ):  # fmt: skip
        fixed: PredictedMotion | None = None
        if config.validate_every and start < config.iterations:
            keys = noise_keys(config, "perceptual validation", 0, validation, config.validation_samples)
            fixed = decode_motion(
                layout,
                sample_windows(prior, validation, transitions, config, keys).x0,
                validation.T_world_cpf[:, None],
                body,
            )
        generation: Generation | None = None
        for iteration in phases.each(range(start, config.iterations)):
            number, step_in_generation = divmod(iteration, config.optimizer_steps_per_generation)
            with profile.counted():
                if generation is None or step_in_generation == 0:
                    with phases.phase("data"):
                        windows = data.both.batch(number, config.generation_size).to(device)
                    with phases.phase("rollout"):
                        generation = generate(prior, windows, transitions, config, number)
                rate = learning_rate_at(
                    iteration, config.iterations, peak=config.learning_rate, warmup=config.warmup,
                    schedule=config.schedule,
                )  # fmt: skip
                set_learning_rate(optimizer, rate)
                with phases.phase("candidates"):
                    candidates = draw_candidates(generation, layout, body, config, iteration)
                with phases.phase("update"):
                    metrics = optimizer_step(
                        model, optimizer, candidates, config.gradient_clip, accumulate=config.accumulate
                    )
            profile.take(phases.metrics())
            metrics["lr"] = rate
            done = iteration + 1
            if not math.isfinite(metrics["loss"]) or not math.isfinite(metrics["grad_norm"]):
                raise MgrpoError(
                    f"perceptual: loss {metrics['loss']} and gradient norm {metrics['grad_norm']} at iteration {done}; "
                    "the last checkpoint is intact. Lower --learning-rate, or look at the samples of the prior"
                )
            stopping = stop.requested
            finished = done == config.iterations
            # Not when stopping early: an extra measurement could make another checkpoint the best than without the
            # stop.
            if fixed is not None and (done % config.validate_every == 0 or finished):
                measured = discriminate(model, validation, fixed)
                metrics |= {f"validation/{name}": value for name, value in vars(measured).items()}
            run.log(done, metrics)
            shown = {"accuracy": metrics["validation/accuracy"]} if "validation/accuracy" in metrics else {}
            progress.update(loss=metrics["loss"], **shown)
            if done % config.checkpoint_every == 0 or finished or stopping:
                run.save(
                    done,
                    model=model,
                    model_config=model_config,
                    optimizer=optimizer,
                    metric=metrics.get("validation/loss"),
                    better="min",
                )
            if stopping:
                break
    return run.checkpoint_path("last")


__all__ = [
    "PERCEPTUAL_TRAINING_PRESETS",
    "Candidates",
    "Discrimination",
    "Generation",
    "PerceptualTrainingConfig",
    "discriminate",
    "draw_candidates",
    "draw_negatives",
    "generate",
    "make_candidates",
    "noise_keys",
    "noisy_states",
    "optimizer_step",
    "sample_windows",
    "score_candidates",
    "train_perceptual",
]
