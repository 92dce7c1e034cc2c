"""Our post-training: head trajectories in, rewards of the bodies that the policy makes of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from mgrpo.body import BodyModel
from mgrpo.data import MotionWindows, WindowSource
from mgrpo.diffusion.sampler import NoiseKeys
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.diffusion.transition import Transitions
from mgrpo.eval.evaluate import evaluate
from mgrpo.eval.metrics import group_diversity
from mgrpo.grpo.perturbation import perturbed_head
from mgrpo.grpo.policy import Policy
from mgrpo.grpo.rollout import roll_out
from mgrpo.grpo.task import Scored, Seen
from mgrpo.kernels import motion_rewards
from mgrpo.models.conditioning import make_cond
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.motion import decode_motion
from mgrpo.models.perceptual import PerceptualConfig, PerceptualModel
from mgrpo.rewards import FUSED, REWARDS, RewardBatch, differentiable_rewards, reward_skeleton, score_groups
from mgrpo.runs.stored_models import load_model

from .motion_data import MotionData, load_motion_data
from .run_config import MotionTaskConfig

_ERROR_UNITS: Mapping[str, tuple[str, float]] = {
    "position": ("mm", 1e3),
    "aligned_position": ("mm", 1e3),
    "rotation": ("deg", math.degrees(1)),
    "velocity": ("mm_s", 1e3),
    "foot_skate": ("mm_s", 1e3),
    "ground_penetration": ("mm", 1e3),
    "jitter": ("m_s3", 1.0),
    "head_position": ("mm", 1e3),
}
"""Unit in the log of the error behind a reward, and how many of it are one in metres, radians and seconds."""


class MotionTask:
    """A :class:`mgrpo.grpo.task.Task`: windows of motion, seen through the perturbed head trajectory and scored with
    the clean one."""

    def __init__(
        self,
        config: MotionTaskConfig,
        data: MotionData,
        policy: Denoiser,
        perceptual: PerceptualModel | None,
        device: torch.device,
    ) -> None:
        """``perceptual`` is needed while the visual reward has a weight."""
        self.config = config
        self.reward_weights: Mapping[str, float] = config.rewards.active()
        self.layout = policy.layout
        self.network = policy.config
        self.project_rotations = config.sampler.project
        self.per_member = config.perlin.per_member and config.perlin.alpha > 0
        self.body: BodyModel = data.body.to(device)
        self.schedule = CosineSchedule.make(policy.config.max_t)
        self.perceptual = perceptual
        self._source: WindowSource = data.post_training
        self._pool = self._source.batch(0, config.train_windows) if config.train_windows else None
        self._validation = data.validation.to(device)

    def transitions(self, noisy_steps: Collection[int] | None) -> Transitions:
        """The configured sampler, with noise at these steps only; None: wherever it has any."""
        return self.config.sampler.transitions(self.schedule, noisy_steps)

    def draw(self, iteration: int, first: int, size: int) -> MotionWindows:
        """Windows of one rollout: fresh ones, or the next part of a fixed pool."""
        if self._pool is None:
            return self._source.batch(iteration, size, first=first, whole=self.config.conditions)
        start = iteration * self.config.conditions % self.config.train_windows + first
        return self._pool.select(slice(start, start + size))

    def state_shape(self, batch: MotionWindows) -> tuple[int, int]:
        """Frames of the windows, channels of the layout."""
        return batch.mask.shape[1], self.layout.dim

    def seen(self, batch: MotionWindows, *, iteration: int, first: int, members: range) -> Seen:
        """The encoded head motion with Perlin noise on its translation."""
        cond = perturbed_condition(self.network, batch, self.config, iteration, first=first, members=members)
        return Seen(cond, batch.mask if batch.padded else None)

    @torch.no_grad()
    def score(self, x0: Tensor, batch: MotionWindows) -> Scored:
        """Rewards of the motion that the samples are, placed by the clean head trajectory; and its joints."""
        scored = self._reward_batch(x0, batch)
        result = score_groups(scored, self.body, self.reward_weights)
        return Scored(result.rewards, scored.prediction.joints22, self._errors(result.errors))

    def score_with_gradient(self, x0: Tensor, batch: MotionWindows) -> Scored:
        """The same rewards, up to rounding, with gradients to ``x0``."""
        scored = self._reward_batch(x0, batch)
        rewards = differentiable_rewards(scored, self.body, tuple(self.reward_weights))
        return Scored(rewards, scored.prediction.joints22.detach())

    def joint_errors(self, x0_pred: Tensor, batch: MotionWindows, names: tuple[str, ...]) -> Tensor:
        """Errors behind the joint rewards ``names`` of single predictions ``(B, T, D)``, with gradients: ``(B, K)`` in
        the unit of each; NaN where no frame can be scored."""
        return motion_rewards(
            x0_pred[:, None], batch.T_world_cpf, batch.joints, batch.body_rotmats, reward_skeleton(self.body),
            batch.mask, rewards=names, rotation_error=self.config.rotation_error, alignment=self.config.alignment,
            with_advantages=False,
        ).errors[:, 0]  # fmt: skip

    def _reward_batch(self, x0: Tensor, batch: MotionWindows) -> RewardBatch:
        return RewardBatch(
            prediction=decode_motion(self.layout, x0, batch.T_world_cpf[:, None], self.body),
            target=batch,
            scales=self.config.scales,
            rotation_error=self.config.rotation_error,
            alignment=self.config.alignment,
            perceptual=self.perceptual,
        )

    def _errors(self, errors: Tensor) -> dict[str, Tensor]:
        """The errors behind the rewards ``(B, G, K')`` in the units of the tables, by their names in the log."""
        known = [name for name in self.reward_weights if REWARDS[name] in FUSED]
        found = {}
        for name, error in zip(known, errors.detach().unbind(-1), strict=True):
            unit, scale = _ERROR_UNITS[name]
            if name == "rotation" and self.config.rotation_error == "frobenius":
                unit, scale = "frobenius", 1.0
            found[f"error/{name}_{unit}"] = scale * error
        return found

    @torch.no_grad()
    def measures(self, outcome: Tensor, batch: MotionWindows) -> dict[str, Tensor]:
        """How much the members of each group differ."""
        return {f"diversity/{name}": value for name, value in group_diversity(outcome, batch.mask).items()}

    def gold(self, policy: Policy) -> dict[str, float]:
        """Metrics on the validation clips, clean trajectory and the same noise every time; none of them is a reward.
        What could not be measured is absent, but the deciding measure, which is NaN then."""
        assert isinstance(policy, Denoiser)
        result = evaluate(
            policy, self._validation, self.body, self.transitions(None), seeds=(self.config.seed,), samples=1,
            project_rotations=self.project_rotations,
        )  # fmt: skip
        decides = self.config.gold
        return {name: value for name, value in result.means().items() if math.isfinite(value) or name == decides}


def open_motion_task(config: MotionTaskConfig, device: torch.device) -> tuple[Denoiser, MotionTask]:
    """The prior to start from and what it is trained on, both on ``device``. Raises InputError for models or motion
    that can't be used."""
    policy = load_model(config.prior, Denoiser, DenoiserConfig, use_ema=config.use_ema)[0].to(device)
    perceptual = None
    if config.needs_perceptual and config.perceptual is not None:
        perceptual = load_model(config.perceptual, PerceptualModel, PerceptualConfig)[0].to(device)
        perceptual.requires_grad_(False)
    config.sampler.transitions(CosineSchedule.make(policy.config.max_t))  # refused before the motion is read
    data = load_motion_data(config.data, seed=config.seed)
    if config.freeze_condition_projection:
        policy.latent_from_cond.requires_grad_(False)
    return policy, MotionTask(config, data, policy, perceptual, device)


def perturbed_condition(
    network: DenoiserConfig,
    windows: MotionWindows,
    config: MotionTaskConfig,
    iteration: int,
    *,
    first: int,
    members: range,
) -> Tensor:
    """The encoded head motion with Perlin noise on its translation, ``(B, T, d_cond)``, or ``(B * G, T, d_cond)`` where
    each of the ``members`` sees noise of its own; ``first`` is the number of the first window in the iteration."""
    T_world_cpf, relative = perturbed_head(
        windows,
        config.perlin,
        seed=config.seed,
        iteration=iteration,
        condition=torch.arange(first, first + len(windows), device=windows.mask.device),
        members=members,
    )
    return make_cond(network, T_world_cpf.flatten(0, 1), relative.flatten(0, 1))


def sample_groups(
    policy: Denoiser, windows: MotionWindows, config: MotionTaskConfig, transitions: Transitions, iteration: int
) -> Tensor:
    """One group of samples ``(B, G, T, D)`` for every window, as training would draw them in ``iteration``."""
    members = range(config.group_size)
    cond = perturbed_condition(policy.config, windows, config, iteration, first=0, members=members)
    condition = torch.arange(len(windows), device=windows.mask.device)
    rollout = roll_out(
        policy,
        cond,
        transitions,
        NoiseKeys(config.seed, iteration, condition, len(members), share_initial=config.share_initial_noise),
        shape=(windows.length, policy.layout.dim),
        steps=(),
        project_rotations=config.sampler.project,
        mask=windows.mask if windows.padded else None,
        per_member=len(cond) > len(windows),
    )
    return rollout.x0.reshape(len(windows), len(members), windows.length, -1)
