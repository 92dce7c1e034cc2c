"""Post-training the motion prior with GRPO."""

from __future__ import annotations

from pathlib import Path

from mgrpo.models.denoiser import Denoiser, DenoiserConfig

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
        data = load_motion_data(config.data, seed=config.seed)
        policy = load_model(config.prior, Denoiser, DenoiserConfig, use_ema=config.use_ema)[0].to(processes.device)
        if config.freeze_condition_projection:
            policy.latent_from_cond.requires_grad_(False)
        task = MotionTask(config, data, policy, processes.device)
        with precision.matrix_products():
            return post_train(policy, task, config, processes=processes, precision=precision, command=command)


__all__ = ["GRPO_PRESETS", "GrpoConfig", "train_grpo"]
