"""A tiny training loop in a process that can be killed; run as a script by test_checkpoints_kill.py.

It imports torch once, then forks a child for every line on standard input, so that a kill costs milliseconds instead
of an interpreter start. Commands, one JSON object a line: {"folder", "steps", "sleep", "die_at"}; replies {"pid"} at
once, and after another line {"code"}, the exit code. The child resumes whatever the folder holds. With "die_at": n it
ends without any clean-up just before its n-th file operation.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from mgrpo.train.run_dir import RunDir


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


def main() -> None:
    torch.set_num_threads(1)
    # torch imports much on the first optimiser step; done here, the children inherit it
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    torch.optim.AdamW([weight]).step()
    for line in sys.stdin:
        command = json.loads(line)
        pid = os.fork()
        if pid == 0:
            if command.get("die_at"):
                die_before_operation(command["die_at"])
            code = 1
            try:
                train(Path(command["folder"]), command["steps"], command.get("sleep", 0.0))
                code = 0
            finally:
                os._exit(code)
        print(json.dumps({"pid": pid}), flush=True)
        sys.stdin.readline()  # until the child is waited for, its number can't become another process's
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
