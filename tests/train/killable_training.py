"""A tiny training loop in a process that can be killed; run by test_checkpoints_kill.py.

A request names {"folder", "steps", "sleep", "die_at"}: the child resumes whatever the folder holds. With "die_at": n it
ends without any clean-up just before its n-th file operation.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mgrpo.runs.run_dir import RunDir
from tests.train.forking import import_all_of_torch, serve


@dataclass(frozen=True)
class ToyConfig:
    """A linear map fitted to noise that depends on the iteration alone."""

    width: int = 7
    seed: int = 3


def batch(config: ToyConfig, iteration: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * config.seed + iteration)
    return torch.randn(16, config.width, generator=generator), torch.randn(16, 3, generator=generator)


def train(folder: Path, steps: int, sleep: float = 0.0, save_every: int = 3) -> None:
    """Train to `steps`, continuing from what the folder holds."""
    config = ToyConfig()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(config.width, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    average = {name: value.detach().clone() for name, value in model.named_parameters()}
    total = 0.0
    with RunDir.create(folder, config, resume=True, tensorboard=False) as run:
        checkpoint = run.load("last")
        start = 0
        if checkpoint is not None:
            checkpoint.restore(model, optimizer)
            average = {name: value.clone() for name, value in checkpoint.tensors.items()}
            total, start = checkpoint.state["total"], checkpoint.step
        for iteration in range(start, steps):
            inputs, targets = batch(config, iteration)
            loss = (model(inputs) - targets).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for name, value in model.named_parameters():
                average[name].lerp_(value.detach(), 0.1)
            total += loss.item()
            time.sleep(sleep)
            run.log(iteration + 1, {"loss": loss})
            due = (iteration + 1) % save_every == 0 or iteration + 1 == steps
            # the first checkpoint twice, as in a loop whose regular and last save may fall on the same step
            for _ in range(due + (iteration + 1 == save_every)):
                run.save(
                    iteration + 1,
                    model=model,
                    model_config=config,
                    optimizer=optimizer,
                    tensors=average,
                    state={"total": total},
                    metric=loss.item(),
                )


def die_before_operation(number: int) -> None:
    """Make this process end, as if killed, just before its `number`-th operation that changes the disk."""
    count = 0

    def counted(original):
        def operation(*arguments, **options):
            nonlocal count
            count += 1
            if count == number:
                os._exit(9)
            return original(*arguments, **options)

        return operation

    for name in ("write", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "ftruncate"):
        setattr(os, name, counted(getattr(os, name)))


def child(_: int, request: dict[str, Any]) -> int:
    if request.get("die_at"):
        die_before_operation(request["die_at"])
    train(Path(request["folder"]), request["steps"], request.get("sleep", 0.0))
    return 0


if __name__ == "__main__":
    import_all_of_torch()
    serve(child)
