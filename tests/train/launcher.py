"""Starts the processes of a training and waits for them, for the tests of several processes."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("motion_files", Path(__file__).with_name("motion_files.py"))
files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(files)


class Launcher:
    """The process of process_server.py."""

    def __init__(self, folder: Path, training: str, options: Mapping[str, object]) -> None:
        """``training`` is prior, perceptual or grpo; ``options`` are those of every run."""
        self.folder, self.training, self.options = folder, training, options
        self.clips = files.write_clips(folder / "clips")
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("process_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MGRPO_PROGRESS": "plain"},
        )

    def start(self, output: Path, *words: str, world: int = 2, masked: bool = False, keep: bool = False) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = {
            "--output": output, "--data.motion": self.clips, "--data.length": 8, "--data.validation": "made_up_3",
            "--data.held-out": "made_up_4", "--device": "cpu", **self.options,
        }  # fmt: skip
        given = [word for name, value in options.items() if name not in words for word in (name, str(value))]
        log = str(output.parent / f"{output.name}.log")
        self._send(
            {
                "world": world,
                "port": port,
                "words": ["train", self.training, *given, *words],
                "log": log,
                "masked": masked,
                "keep": keep,
            }
        )
        return self._reply()["pids"]

    def wait(self) -> list[int]:
        self._send({})
        return self._reply()["codes"]

    def run(self, output: Path, *words: str, world: int = 2, masked: bool = False, keep: bool = False) -> list[int]:
        self.start(output, *words, world=world, masked=masked, keep=keep)
        return self.wait()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def _send(self, request: dict[str, object]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def _reply(self) -> dict[str, list[int]]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the launching process ended"
        return json.loads(line)


def rollouts_of(folder: Path, world: int) -> list[Path]:
    """Files with the first rollouts of a run's processes, where they were kept."""
    return [Path(f"{folder}.log.{rank}.pt") for rank in range(world)]


def log_of(folder: Path, rank: int) -> str:
    """What a process of a run said."""
    return Path(f"{folder}.log.{rank}").read_text()
