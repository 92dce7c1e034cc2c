"""Several processes train a baseline as one does."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.runs.budget import run_budget
from mgrpo.runs.metric_log import read_metrics
from mgrpo.runs.stored_models import load_model
from tests.train import launcher as launching


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[launching.Launcher]:
    if not hasattr(os, "fork") or not torch.distributed.is_gloo_available():
        pytest.skip("needs os.fork and gloo")
    folder = tmp_path_factory.mktemp("baselines_distributed")
    options = {
        "--prior": launching.files.write_prior(folder / "prior"), "--iterations": 3, "--conditions": 4,
        "--learning-rate": 1e-4, "--sampler.steps": 6, "--validate-every": 2, "--checkpoint-every": 1,
    }  # fmt: skip
    server = launching.Launcher(folder, "finetune", options)
    launching.files.write_perceptual(folder / "perceptual")
    yield server
    server.close()


CASES = {
    "finetune": (),
    "finetune geometric": ("--variant", "geometric", "--levels", "2"),
    "finetune best": ("--variant", "best-of-group", "--group-size", "4", "--execution.micro-conditions", "1"),
    "dpo": ("--mode", "online", "--refresh-every", "2", "--group-size", "4"),
    "reft": ("--last-steps", "2", "--group-size", "4", "--ema", "0.5"),
}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_as_good_as_one(launcher: launching.Launcher, name: str) -> None:
    launcher.training = name.split()[0]
    words = list(CASES[name])
    if "--group-size" in words:
        words += ["--perceptual", str(launcher.folder / "perceptual")]
    masked = name.startswith("finetune")  # of uneven lengths: means over frames must be those of the whole batch
    alone, together = (launcher.folder / f"{name} {count}" for count in (1, 2))
    assert launcher.run(alone, *words, world=1, masked=masked) == [0], launching.log_of(alone, 0)
    assert launcher.run(together, *words, masked=masked) == [0, 0], launching.log_of(together, 0)
    ours, theirs = (load_model(f, Denoiser, DenoiserConfig, prefer="last")[0].state_dict() for f in (together, alone))
    for part in theirs:
        torch.testing.assert_close(ours[part], theirs[part], atol=2e-5, rtol=0)
    rows, others = read_metrics(together), read_metrics(alone)
    assert len(rows) == len(others) == 3 and rows[0].keys() == others[0].keys()
    # After an update rounding has its way.
    for measure in others[0].keys() - {"time", "step_time"}:
        if not measure.startswith(("time/", "system/", "encode", "decode")) and others[0][measure] is not None:
            assert rows[0][measure] == pytest.approx(others[0][measure], rel=1e-3, abs=2e-5), measure
    assert rows[0]["decode"] == others[0]["decode"]  # of all processes
    assert run_budget(together) == run_budget(alone)
    assert launching.log_of(together, 1).strip() == ""


def test_conditions_that_cannot_be_shared(launcher: launching.Launcher) -> None:
    launcher.training = "finetune"
    folder = launcher.folder / "odd"
    assert launcher.run(folder, "--conditions", "5") == [2, 2]
    assert "--conditions (5) must be a multiple of the 2 processes" in launching.log_of(folder, 0)
