"""Post-training the motion prior with GRPO."""

from __future__ import annotations

from pathlib import Path

from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.perceptual import PerceptualConfig, PerceptualModel

from .checkpoints import load_model
from .distributed import open_processes
from .grpo_config import GRPO_PRESETS, GrpoConfig
from .motion_data import load_motion_data
from .motion_task import MotionTask
from .post_training import post_train
from .precision import NetworkPrecision


def train_grpo(config: GrpoConfig, *, command: list[str] | None = None) -> Path:
    """Post-train until ``config.iterations`` and return the last checkpoint. Raises as
    :func:`mgrpo.train.post_training.post_train`."""
    with open_processes(config.device) as processes:
        precision = NetworkPrecision(config.execution.precision, processes.device)
        policy = load_model(config.prior, Denoiser, DenoiserConfig, use_ema=config.use_ema)[0].to(processes.device)
        perceptual = None
        if config.rewards.visual and config.perceptual is not None:
            perceptual = load_model(config.perceptual, PerceptualModel, PerceptualConfig)[0].to(processes.device)
            perceptual.requires_grad_(False)
        config.sampler.transitions(CosineSchedule.make(policy.config.max_t))  # refused before the motion is read
        data = load_motion_data(config.data, seed=config.seed)
        if config.freeze_condition_projection:
            policy.latent_from_cond.requires_grad_(False)
        task = MotionTask(config, data, policy, perceptual, processes.device)
        with precision.matrix_products():
            return post_train(policy, task, config, processes=processes, precision=precision, command=command)


__all__ = ["GRPO_PRESETS", "GrpoConfig", "train_grpo"]
