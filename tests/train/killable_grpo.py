"""GRPO in a process that can be killed; run by test_grpo_loop.py, with the folder of models and clips.

A request names the {"folder"} to train in: the child goes on with what it holds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mgrpo.diffusion.config import SamplerConfig
from mgrpo.train.grpo import GrpoConfig, train_grpo
from mgrpo.train.motion_data import MotionDataConfig
from tests.train.forking import import_all_of_torch, serve


def train(models: Path, output: Path) -> None:
    train_grpo(
        GrpoConfig(
            prior=models / "prior",
            perceptual=models / "perceptual",
            output=output,
            iterations=12,
            conditions=2,
            group_size=3,
            data=MotionDataConfig(
                motion=str(models / "clips"), length=8, validation=("made_up_3",), held_out=("made_up_4",)
            ),
            learning_rate=1e-3,
            sampler=SamplerConfig(steps=6),
            validate_every=3,
            checkpoint_every=2,
            device="cpu",
            resume=True,
        )
    )


def child(_: int, request: dict[str, Any]) -> int:
    train(Path(sys.argv[1]), Path(request["folder"]))
    return 0


if __name__ == "__main__":
    import_all_of_torch()
    serve(child)
