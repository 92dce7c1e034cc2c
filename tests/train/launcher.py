"""Starts the processes of a training and waits for them, for the tests of several processes."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

from tests.train import motion_files as files
from tests.train.forking import ForkingProcess


class Launcher(ForkingProcess):
    """The process of process_server.py."""

    def __init__(self, folder: Path, training: str, options: Mapping[str, object]) -> None:
        """``training`` is prior, perceptual or grpo; ``options`` are those of every run."""
        super().__init__("process_server", MGRPO_PROGRESS="plain")
        self.folder, self.training, self.options = folder, training, options
        self.clips = files.write_clips(folder / "clips")

    def start(self, output: Path, *words: str, world: int = 2, masked: bool = False, keep: bool = False) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = {
            "--output": output, "--data.motion": self.clips, "--data.length": 8, "--data.validation": "made_up_3",
            "--data.held-out": "made_up_4", "--device": "cpu", **self.options,
        }  # fmt: skip
        given = [word for name, value in options.items() if name not in words for word in (name, str(value))]
        return super().start(
            processes=world,
            port=port,
            words=["train", self.training, *given, *words],
            log=str(output.parent / f"{output.name}.log"),
            masked=masked,
            keep=keep,
        )

    def run(self, output: Path, *words: str, world: int = 2, masked: bool = False, keep: bool = False) -> list[int]:
        self.start(output, *words, world=world, masked=masked, keep=keep)
        return self.wait()


def rollouts_of(folder: Path, world: int) -> list[Path]:
    """Files with the first rollouts of a run's processes, where they were kept."""
    return [Path(f"{folder}.log.{rank}.pt") for rank in range(world)]


def log_of(folder: Path, rank: int) -> str:
    """What a process of a run said."""
    return Path(f"{folder}.log.{rank}").read_text()
