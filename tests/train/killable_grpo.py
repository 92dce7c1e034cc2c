"""GRPO in a process that can be killed; run as a script by test_grpo_loop.py, with the folder of models and clips.

It imports everything once, then forks a child for every line on standard input, the folder to train in, so that a kill
costs no start of an interpreter. The child goes on with what that folder holds. Replies, one a line: the child's number
at once, and after another line its exit code.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import torch

from mgrpo.diffusion.config import SamplerConfig
from mgrpo.train.grpo import GrpoConfig, train_grpo
from mgrpo.train.motion_data import MotionDataConfig


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


def main() -> None:
    torch.set_num_threads(1)
    # torch imports much on the first optimiser step; done here, the children inherit it
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    torch.optim.AdamW([weight]).step()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what training prints is no reply
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                train(Path(sys.argv[1]), Path(line.rstrip("\n")))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        print(pid, file=replies, flush=True)
        sys.stdin.readline()  # until the child is waited for, its number can't become another process's
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=replies, flush=True)


if __name__ == "__main__":
    main()
