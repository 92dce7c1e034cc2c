"""Several processes train as one: the same numbers, one voice, one end; and a run goes on in another number of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mgrpo.errors import InputError
from mgrpo.execution.distributed import Processes, _buckets, _own_device, open_processes
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.runs.checkpoints import find_checkpoint, read_checkpoint
from mgrpo.runs.metric_log import read_metrics
from mgrpo.runs.stored_models import load_model
from tests.train import launcher as launching
from tests.train.launcher import log_of

ROOT = Path(__file__).resolve().parents[2]

OPTIONS = {
    "--preset": "test", "--batch-size": 12, "--iterations": 4, "--learning-rate": 1e-3, "--warmup": 2,
    "--validate-every": 2, "--checkpoint-every": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[launching.Launcher]:
    if not hasattr(os, "fork") or not torch.distributed.is_gloo_available():
        pytest.skip("needs os.fork and gloo")
    server = launching.Launcher(tmp_path_factory.mktemp("distributed"), "prior", OPTIONS)
    yield server
    server.close()


@pytest.fixture(scope="module")
def alone(launcher: launching.Launcher) -> Path:
    """The same training in one process, with padded windows."""
    folder = launcher.folder / "alone"
    assert launcher.run(folder, world=1, masked=True) == [0]
    return folder


def assert_close(folder: Path, expected: Path) -> None:
    """The same weights and metrics up to rounding."""
    ours, theirs = (load_model(f, Denoiser, DenoiserConfig, prefer="last")[0].state_dict() for f in (folder, expected))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-6, rtol=0, msg=lambda text, n=name: f"{n}: {text}")
    rows, others = read_metrics(folder), read_metrics(expected)
    assert [row["step"] for row in rows] == [row["step"] for row in others] and rows
    for row, other in zip(rows, others):
        for name in other.keys() - {"time"}:
            assert row[name] == pytest.approx(other[name], rel=1e-5), (row["step"], name)


def test_two_processes_learn_what_one_does(launcher: launching.Launcher, alone: Path) -> None:
    folder = launcher.folder / "two"
    assert launcher.run(folder, "--accumulate", "2", masked=True) == [0, 0]
    assert_close(folder, alone)
    assert "last checkpoint: " in log_of(folder, 0) and "prior  done: 4 it" in log_of(folder, 0)
    assert log_of(folder, 1) == "", "only process 0 speaks"


def test_a_run_goes_on_in_another_number_of_processes(launcher: launching.Launcher, alone: Path) -> None:
    folder = launcher.folder / "grown"
    assert launcher.run(folder, "--iterations", "1", world=1, masked=True) == [0]
    assert launcher.run(folder, "--iterations", "3", "--resume", masked=True) == [0, 0]
    assert "processes was 1, is 2" in log_of(folder, 0) and log_of(folder, 1) == ""
    assert launcher.run(folder, "--resume", world=1, masked=True) == [0]
    steps = {row["step"]: row["loss"] for row in read_metrics(folder)}
    assert steps == pytest.approx({row["step"]: row["loss"] for row in read_metrics(alone)}, rel=1e-5)
    ours, theirs = (load_model(f, Denoiser, DenoiserConfig, prefer="last")[0].state_dict() for f in (folder, alone))
    assert all(torch.allclose(ours[name], theirs[name], atol=2e-6, rtol=0) for name in theirs)


def test_two_processes_resume_bit_for_bit(launcher: launching.Launcher) -> None:
    whole, parts = launcher.folder / "whole", launcher.folder / "parts"
    assert launcher.run(whole, "--ema", "0.9") == [0, 0]
    assert launcher.run(parts, "--ema", "0.9", "--iterations", "2") == [0, 0]
    assert launcher.run(parts, "--ema", "0.9", "--resume") == [0, 0]
    ours, theirs = (read_checkpoint(find_checkpoint(f, prefer="last")) for f in (parts, whole))
    for part in ("model_tensors", "optimizer_tensors", "tensors"):
        mine, other = getattr(ours, part), getattr(theirs, part)
        assert mine.keys() == other.keys() and mine
        assert all(torch.equal(mine[name], other[name]) for name in mine), part


def test_what_process_0_refuses_ends_all_with_one_message(launcher: launching.Launcher, alone: Path) -> None:
    (launcher.folder / "alone.log.1").unlink(missing_ok=True)
    assert launcher.run(alone) == [2, 2]
    assert "is not empty: it holds a run with a checkpoint at step 4" in log_of(alone, 0)
    assert log_of(alone, 1) == ""


def wait_for(log: Path, text: str) -> None:
    for _ in range(600):
        if log.exists() and text in log.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"{log} never said {text!r}: {log.read_text() if log.exists() else 'no log'}")


def started(launcher: launching.Launcher, name: str) -> tuple[Path, list[int]]:
    """An endless training of two processes that has finished its first iterations."""
    folder = launcher.folder / name
    pids = launcher.start(folder, "--iterations", "1000000", "--validate-every", "0", "--checkpoint-every", "3")
    wait_for(folder / "checkpoints" / "last.json", "step_")
    return folder, pids


def test_a_killed_process_ends_the_others_with_a_message(launcher: launching.Launcher) -> None:
    folder, pids = started(launcher, "killed")
    os.kill(pids[1], signal.SIGKILL)
    assert launcher.wait() == [2, -9]
    assert "process 0 of 2: lost the others" in log_of(folder, 0) and "continue with --resume" in log_of(folder, 0)
    assert load_model(folder, Denoiser, DenoiserConfig, prefer="last")[2].step % 3 == 0


def test_a_signal_to_one_process_stops_all_after_the_same_iteration(launcher: launching.Launcher) -> None:
    folder, pids = started(launcher, "stopped")
    os.kill(pids[1], signal.SIGTERM)
    assert launcher.wait() == [143, 143]
    assert "stopped by SIGTERM; continue with: " in log_of(folder, 0) and log_of(folder, 1) == ""
    saved = load_model(folder, Denoiser, DenoiserConfig, prefer="last")[2].step
    assert read_metrics(folder)[-1]["step"] == saved


def test_a_batch_that_does_not_divide_is_refused(launcher: launching.Launcher) -> None:
    folder = launcher.folder / "uneven"
    assert launcher.run(folder, "--batch-size", "9") == [2, 2]
    assert "--batch-size must be a multiple of 2 processes, got 9" in log_of(folder, 0)
    assert not folder.exists()


@pytest.mark.slow
def test_torchrun(launcher: launching.Launcher) -> None:
    folder = launcher.folder / "torchrun"
    words = [
        "train", "prior", "--output", str(folder), "--data.motion", str(launcher.clips), "--data.length", "8",
        "--batch-size", "4", "--iterations", "2", "--validate-every", "0", "--device", "cpu",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mgrpo", *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MGRPO_PROGRESS": "plain", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("last checkpoint: ") == 1 and done.stderr.count("prior  done: 2 it") == 1


# In one process

_THREADS_AFTER_A_GROUP = """
import os, sys
import torch
from mgrpo.execution.process_group import process_group

def threads():
    return sorted(open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task"))

before = threads()
with process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1):
    assert any("gloo" in name for name in threads()), threads()
    optimizer = torch.optim.AdamW([weight := torch.zeros(2, requires_grad=True)])
    weight.sum().backward()
    optimizer.step()
    import torch.distributed.nn
print(sorted(set(threads()) - set(before)))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed in Linux' /proc")
def test_a_group_leaves_no_thread(tmp_path: Path) -> None:
    """A thread of a destroyed group that outlives Python aborts the process now and then."""
    done = subprocess.run(
        [sys.executable, "-c", _THREADS_AFTER_A_GROUP, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_parts_cover_the_batch_once() -> None:
    device = torch.device("cpu")
    found = [part for rank in range(3) for part in Processes(rank, 3, device).parts(24, accumulate=2)]
    assert found == [(first, 4) for first in range(0, 24, 4)]
    with pytest.raises(InputError, match=r"a multiple of 3 x 2 \(processes x --accumulate\), got 27"):
        Processes(0, 3, device).parts(27, accumulate=2)
    with pytest.raises(InputError, match="a multiple of 8 processes, got 4"):
        Processes(0, 8, device).parts(4)


def test_buckets_keep_order_dtype_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgrpo.execution.distributed._BUCKET", 5)
    tensors = [torch.zeros(2), torch.zeros(3), torch.zeros(9), torch.zeros(1), torch.zeros(1, dtype=torch.float64)]
    groups = list(_buckets(tensors))
    assert [[len(tensor) for tensor in group] for group in groups] == [[2, 3], [9], [1], [1]]
    assert list(_buckets([])) == []


def test_one_process_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (None, "1"):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if size:
            monkeypatch.setenv("WORLD_SIZE", size)
        with open_processes("cpu") as processes:
            assert (processes.rank, processes.count, processes.main) == (0, 1, True)
            assert processes.largest(3) == 3 and processes.from_main(lambda: "x") == "x"
            assert not torch.distributed.is_initialized()
            with pytest.raises(InputError, match="told"):
                processes.fail(InputError("told"))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a whole number"),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
            r"RANK must be below WORLD_SIZE \(2\), got 2",
        ),
    ],
)
def test_a_broken_environment_is_explained(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message), open_processes("cpu"):
        pass


def test_gpus_are_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [_own_device("auto", rank) for rank in (0, 1)] == [torch.device("cuda", 0), torch.device("cuda", 1)]
    with pytest.raises(InputError, match="has no GPU of its own: there are 2"):
        _own_device("cuda", 2)
    with pytest.raises(InputError, match="--device cuda:1 names one GPU for several processes"):
        _own_device("cuda:1", 0)
