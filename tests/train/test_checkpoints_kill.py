"""A killed run, resumed, ends like one that was never killed; no kill leaves a half-written checkpoint to be seen."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mgrpo.runs.checkpoints import Checkpoint, pointed_checkpoint, read_checkpoint, step_folders
from mgrpo.runs.metric_log import read_metrics
from mgrpo.storage import REPLACED_PREFIX, TEMPORARY_PREFIX
from tests.train.forking import ForkingProcess

STEPS = 20
OPERATIONS_TRIED = 86
"""Enough for the start, the first checkpoint, and its replacement by itself."""


class Trainer(ForkingProcess):
    """The process of killable_training.py."""

    def __init__(self) -> None:
        # without PATH there is no git to ask for its state at each of the many starts
        super().__init__("killable_training", stderr=subprocess.DEVNULL, PATH="")

    def start(self, folder: Path, **options: object) -> int:
        return super().start(folder=str(folder), steps=STEPS, **options)[0]

    def wait(self) -> int:
        return super().wait()[0]

    def run(self, folder: Path, **options: object) -> int:
        self.start(folder, **options)
        return self.wait()


@pytest.fixture(scope="module")
def trainer() -> Iterator[Trainer]:
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    process = Trainer()
    yield process
    process.close()


@pytest.fixture(scope="module")
def uninterrupted(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert trainer.run(folder) == 0
    return folder


def contents(checkpoint: Checkpoint) -> dict[str, object]:
    """Everything that a resumed training would see of a checkpoint, but for the length of the metric log (it holds
    times)."""
    best = checkpoint.record["best"]
    return {
        "step": checkpoint.step,
        "state": checkpoint.state,
        "optimizer": checkpoint.optimizer,
        "metric": checkpoint.metric,
        "best": best,
        "config": checkpoint.config,
    }


def assert_same_result(folder: Path, expected: Path) -> None:
    """Same checkpoints, bit for bit, same pointers, same metric rows, nothing left over."""
    names = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert names == sorted(p.name for p in (expected / "checkpoints").iterdir())
    for which in ("last", "best"):
        ours, theirs = (read_checkpoint(pointed_checkpoint(f / "checkpoints", which)) for f in (folder, expected))
        assert contents(ours) == contents(theirs)
        for part in ("model_tensors", "optimizer_tensors", "tensors"):
            mine, other = getattr(ours, part), getattr(theirs, part)
            assert mine.keys() == other.keys()
            assert all(torch.equal(mine[name], other[name]) for name in mine), part
    rows, expected_rows = (
        [{k: v for k, v in r.items() if k != "time"} for r in read_metrics(f)] for f in (folder, expected)
    )
    assert rows == expected_rows


def assert_nothing_half_written(folder: Path) -> None:
    """Every file or folder with a public name is whole."""
    if not folder.exists():
        return
    for step, path in step_folders(folder / "checkpoints").items():
        assert read_checkpoint(path).step == step
    for file in [*folder.glob("*.json"), *folder.glob("checkpoints/*.json")]:
        json.loads(file.read_text())
    for entry in (folder / "checkpoints").glob("step_*"):
        assert (entry / "state.json").is_file() and (entry / "model.safetensors").is_file()
    if (folder / "checkpoints" / "last.json").exists():
        assert pointed_checkpoint(folder / "checkpoints", "last") is not None


def test_killed_at_random_moments(trainer: Trainer, uninterrupted: Path, tmp_path: Path) -> None:
    moments = random.Random(7)
    kills, runs, lives = 0, 0, 0
    while kills < 12:
        folder = tmp_path / f"run{runs}"
        pid = trainer.start(folder, sleep=0.02)
        # later and later: on a busy machine, the first lives may be too short to save anything
        time.sleep(moments.uniform(0.0, 0.3) * 1.2**lives)
        os.kill(pid, signal.SIGKILL)
        code = trainer.wait()
        assert_nothing_half_written(folder)
        assert code in (-signal.SIGKILL, 0)
        kills, lives = (kills + 1, lives + 1) if code else (kills, 0)
        if code == 0:
            assert_same_result(folder, uninterrupted)
            runs += 1
    assert trainer.run(tmp_path / f"run{runs}") == 0
    assert_same_result(tmp_path / f"run{runs}", uninterrupted)


def test_ended_before_every_single_file_operation(trainer: Trainer, uninterrupted: Path, tmp_path: Path) -> None:
    """Not only random moments: the first file operations of a start, then a chain of deaths to the end."""
    for number in range(1, OPERATIONS_TRIED):
        folder = tmp_path / f"run{number}"
        assert trainer.run(folder, die_at=number) == 9
        assert_nothing_half_written(folder)
        if number % 4 == 0:
            saved = pointed_checkpoint(folder / "checkpoints", "last")
            assert trainer.run(folder) == 0
            starts = json.loads((folder / "provenance.json").read_text())["starts"]
            assert starts[-1]["resumed_from_step"] == (None if saved is None else int(saved.name[-8:]))
            assert_same_result(folder, uninterrupted)
    folder = tmp_path / "chain"
    lives = 0
    while trainer.run(folder, die_at=61 + lives) != 0:
        assert_nothing_half_written(folder)
        lives += 1
        assert lives < 60
    assert lives > 2
    assert_same_result(folder, uninterrupted)


def test_leftovers_are_cleared_at_the_next_start(trainer: Trainer, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    checkpoints = folder / "checkpoints"
    seen = 0
    for number in range(20, 44, 2):
        assert trainer.run(folder, die_at=number) == 9
        seen += any(p.name.startswith((TEMPORARY_PREFIX, REPLACED_PREFIX)) for p in checkpoints.glob(".*"))
    assert seen
    assert trainer.run(folder) == 0
    assert not list(checkpoints.glob(".*"))
    assert [p.name for p in folder.glob(".*")] == [".lock"]
