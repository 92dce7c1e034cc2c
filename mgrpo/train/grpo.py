"""Post-training the motion prior with GRPO."""

from __future__ import annotations

from pathlib import Path

from mgrpo.execution.distributed import open_processes
from mgrpo.execution.precision import NetworkPrecision

from .grpo_config import GRPO_PRESETS, GrpoConfig
from .motion_task import open_motion_task
from .post_training import post_train


def train_grpo(config: GrpoConfig, *, command: list[str] | None = None) -> Path:
    """Post-train until ``config.iterations`` and return the last checkpoint. Raises as
    :func:`mgrpo.train.post_training.post_train`."""
    with open_processes(config.device) as processes:
        precision = NetworkPrecision(config.execution.precision, processes.device, option="--execution.precision")
        policy, task = open_motion_task(config, processes.device)
        return post_train(policy, task, config, processes=processes, precision=precision, command=command)


__all__ = ["GRPO_PRESETS", "GrpoConfig", "train_grpo"]
