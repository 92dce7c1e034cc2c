"""Several processes post-train one policy: the same rollouts and weights, one end, and another number of them may go
on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
import torch

from mgrpo.errors import InputError
from mgrpo.execution.distributed import Processes
from mgrpo.execution.sharing import share_out
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.perceptual import PerceptualModel
from mgrpo.runs.metric_log import read_metrics
from mgrpo.runs.run_dir import RunDir
from mgrpo.runs.stored_models import load_model
from tests.train import launcher as launching
from tests.train import rollout_files as rollouts


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[launching.Launcher]:
    if not hasattr(os, "fork") or not torch.distributed.is_gloo_available():
        pytest.skip("needs os.fork and gloo")
    folder = tmp_path_factory.mktemp("grpo_distributed")
    options = {
        "--prior": launching.files.write_prior(folder / "prior"),
        "--perceptual": launching.files.write_perceptual(folder / "perceptual"),
        "--iterations": 3, "--conditions": 4, "--group-size": 4, "--learning-rate": 1e-4, "--sampler.steps": 6,
        "--validate-every": 2, "--checkpoint-every": 1,
        # weights would raise the early steps' gradients, which are small in an untrained network, with their rounding
        "--loss.step-weight": "none",
    }  # fmt: skip
    server = launching.Launcher(folder, "grpo", options)
    yield server
    server.close()


VARIANTS = {
    "groups": (),
    "members": ("--execution.split", "members"),
    "two steps": ("--optimizer-steps", "2", "--ema", "0.5", "--advantage.scheme", "gdpo"),
    "own noise, members": ("--perlin.per-member", "--execution.split", "members"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_are_as_good_as_one(launcher: launching.Launcher, name: str) -> None:
    alone, together = (launcher.folder / f"{name} {count}" for count in (1, 2))
    assert launcher.run(alone, *VARIANTS[name], world=1) == [0], launching.log_of(alone, 0)
    assert launcher.run(together, *VARIANTS[name]) == [0, 0], launching.log_of(together, 0)
    ours, theirs = (load_model(f, Denoiser, DenoiserConfig, prefer="last")[0].state_dict() for f in (together, alone))
    for part in theirs:
        torch.testing.assert_close(ours[part], theirs[part], atol=2e-5, rtol=0)
    rows, others = read_metrics(together), read_metrics(alone)
    assert len(rows) == len(others) == 3
    # The first rollouts are the same ones; after an update rounding has its way.
    for measure in others[0].keys() - {"time", "step_time"}:
        if not measure.startswith(("time/", "system/", "encode", "decode", "network_units")):
            assert rows[0][measure] == pytest.approx(others[0][measure], rel=1e-3, abs=2e-5), measure
    assert rows[0]["ratio/first_log_max"] == 0 and rows[2]["reward"] == pytest.approx(others[2]["reward"], rel=1e-3)
    # the log counts the calls of all processes; members that are apart can't share the first steps
    calls, calls_alone = (sum(row["decode"] for row in log) for log in (rows, others))
    assert calls_alone <= calls < 2 * calls_alone
    assert launching.log_of(together, 1).strip() == ""


def test_a_run_goes_on_in_another_number_of_processes(launcher: launching.Launcher) -> None:
    whole, parts = launcher.folder / "whole", launcher.folder / "parts"
    assert launcher.run(whole, world=1) == [0]
    assert launcher.run(parts, "--iterations", "1", world=1) == [0]
    assert launcher.run(parts, "--iterations", "2", "--resume", world=2) == [0, 0], launching.log_of(parts, 0)
    assert launcher.run(parts, "--resume", world=1) == [0], launching.log_of(parts, 0)
    ours, theirs = (load_model(f, Denoiser, DenoiserConfig, prefer="last")[0].state_dict() for f in (parts, whole))
    for part in theirs:
        torch.testing.assert_close(ours[part], theirs[part], atol=2e-5, rtol=0)


def first_rollouts(launcher: launching.Launcher, name: str, *words: str, world: int, masked: bool = False) -> dict:
    folder = launcher.folder / f"rollouts {name} {world}"
    codes = launcher.run(folder, "--iterations", "1", *words, world=world, masked=masked, keep=True)
    assert codes == [0] * world, launching.log_of(folder, 0)
    return rollouts.read_rollouts(launching.rollouts_of(folder, world))


ROLLOUTS = {
    "shared": ((), False),
    "own start": (("--no-share-initial-noise",), False),
    "own conditions": (("--perlin.per-member",), False),
    "padded": ((), True),
}


@pytest.mark.parametrize("split", ["conditions", "members"])
@pytest.mark.parametrize("name", ROLLOUTS)
def test_every_number_of_processes_draws_the_same_samples(launcher: launching.Launcher, name: str, split: str) -> None:
    """Sample by sample. Noise comes from counters, so it is the same bit for bit. What the network makes of it is the
    same up to rounding: a matrix product of other shapes adds in another order, and the sampler carries that on.
    Where one process passes as many conditions through the network at a time as each of two does, the shapes are the
    same, and states and log-probabilities are too, bit for bit; that can be had for whole groups only, as one process
    never takes a part of a group."""
    words, masked = ROLLOUTS[name]
    alone = first_rollouts(launcher, f"{name} whole {split}", *words, world=1, masked=masked)
    words = (*words, "--execution.split", split)
    together = first_rollouts(launcher, f"{name} {split}", *words, world=2, masked=masked)
    assert together["by"] == split and alone["x0"].shape[:2] == (4, 4)
    assert torch.equal(together["noise"], alone["noise"])
    assert torch.equal(together["states"][:, :, 0], alone["states"][:, :, 0])  # the initial noise
    for part in ("states", "x0", "log_probs", "rewards"):
        torch.testing.assert_close(together[part], alone[part], atol=1e-4, rtol=0)  # of numbers up to 4
    # members, and conditions, are different ones: no order of them would do but the right one
    assert len(alone["x0"].flatten(2).flatten(0, 1).unique(dim=0)) == 16
    if split == "conditions":
        pieces = first_rollouts(
            launcher, f"{name} pieces", *words, "--execution.micro-conditions", "2", world=1, masked=masked
        )
        for part in rollouts.PARTS:
            assert torch.equal(together[part], pieces[part]), part


def test_padded_windows_count_alike(launcher: launching.Launcher) -> None:
    """Denominators of masked frames are those of the whole batch, however it is split."""
    alone, together = (launcher.folder / f"padded {count}" for count in (1, 2))
    assert launcher.run(alone, "--iterations", "1", world=1, masked=True) == [0], launching.log_of(alone, 0)
    assert launcher.run(together, "--iterations", "1", masked=True) == [0, 0], launching.log_of(together, 0)
    ours, theirs = (read_metrics(folder)[0] for folder in (together, alone))
    for measure in ("reward", "loss", "grad_norm", "advantage/abs_mean", "diversity/diversity_l2"):
        assert ours[measure] == pytest.approx(theirs[measure], rel=1e-4, abs=1e-6), measure
    whole = launcher.folder / "not padded"
    assert launcher.run(whole, "--iterations", "1", world=1) == [0]
    assert read_metrics(whole)[0]["reward"] != pytest.approx(theirs["reward"], rel=1e-4)


def test_what_all_processes_see_is_told_once(launcher: launching.Launcher) -> None:
    folder, broken = launcher.folder / "unscored", launcher.folder / "broken"
    torch.manual_seed(0)
    model = PerceptualModel(launching.files.TINY_PERCEPTUAL)
    with torch.no_grad():
        model.keypoint_embedding.weight.fill_(3e38)  # sums of it are infinite, and their difference is not a number
    with RunDir.create(broken, launching.files.TINY_PERCEPTUAL) as run:
        run.save(1, model=model, model_config=launching.files.TINY_PERCEPTUAL)
    assert launcher.run(folder, "--perceptual", str(broken)) == [2, 2]
    assert launching.log_of(folder, 0).count("no sample of iteration 1 could be scored (all rewards are NaN)") == 1
    assert launching.log_of(folder, 1).strip() == ""
    named = (folder / "unscored.jsonl").read_text().splitlines()
    assert len(named) == 4 and all('"visual"' in line for line in named)


@pytest.mark.parametrize("rank", [1, 0])
def test_a_killed_process_ends_all(launcher: launching.Launcher, rank: int) -> None:
    folder = launcher.folder / f"killed {rank}"
    pids = launcher.start(folder, "--iterations", "100000", "--checkpoint-every", "5")
    deadline = time.monotonic() + 60
    while not (folder / "checkpoints" / "last.json").exists():
        assert time.monotonic() < deadline, launching.log_of(folder, 0)
        time.sleep(0.05)
    os.kill(pids[rank], signal.SIGKILL)
    codes = launcher.wait()
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == 2
    said = launching.log_of(folder, 1 - rank)
    assert "lost the others" in said and "Traceback" not in said and "--resume" in said
    # what was learned until then is there
    assert load_model(folder, Denoiser, DenoiserConfig, prefer="last")[2].step >= len(read_metrics(folder)) - 1


def test_a_rollout_is_divided_once() -> None:
    device = torch.device("cpu")
    options = {"conditions": 6, "group_size": 4, "optimizer_steps": 1, "split": "auto"}
    alone = share_out(Processes(0, 1, device), **{**options, "optimizer_steps": 4})
    assert alone.own == ((0, 2), (2, 2), (4, 1), (5, 1))
    for count, by in ((2, "conditions"), (3, "conditions"), (4, "members")):
        seen = set()
        for rank in range(count):
            part = share_out(Processes(rank, count, device), **options)
            assert part.by == by
            for first, size in part.own:
                seen |= {(c, m) for c in range(first, first + size) for m in part.members}
        assert seen == {(c, m) for c in range(6) for m in range(4)}
    with pytest.raises(InputError, match="neither --conditions"):
        share_out(Processes(0, 5, device), **options)
    with pytest.raises(InputError, match=r"--execution\.split conditions: --conditions"):
        share_out(Processes(0, 4, device), **{**options, "split": "conditions"})
