"""What a post-training tells: alarms and unscored samples in their files and on the terminal, the same after a resume;
metrics at an outside tracker, whose failures it survives."""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from mgrpo import cli
from mgrpo.errors import InputError, MgrpoError
from mgrpo.grpo import alarms as alarms_module
from mgrpo.grpo.alarms import AlarmConfig
from mgrpo.grpo.task import TensorBatch
from mgrpo.runs.json_lines import read_rows
from mgrpo.runs.metric_log import read_metrics
from mgrpo.runs.run_dir import RunDir, run_folder_of
from mgrpo.runs.tracking import require_tracker
from mgrpo.terminal import progress as progress_module
from mgrpo.train.post_training import PostTraining
from tests.train import reaching_task as toy

ROOT = Path(__file__).resolve().parents[2]

CONFIG = replace(toy.CONFIG, iterations=12, checkpoint_every=1, validate_every=0, alarms=AlarmConfig(window=2, every=4))


class NamedBatch(TensorBatch):
    """A batch that knows where its conditions come from."""

    def __init__(self, *args: Any, names: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.names = names

    def to(self, device: torch.device) -> NamedBatch:
        return NamedBatch(super().to(device), names=self.names)


class Spoilt(toy.Reach):
    """Some samples have no score: reward ``near`` of condition 4, members 1 and 3, in the iterations ``when``."""

    def __init__(self, when: tuple[int, ...], names: bool = True, everything: int = -1) -> None:
        self.when, self.names, self.everything = when, names, everything

    def draw(self, iteration, first, size):
        batch = super().draw(iteration, first, size)
        return NamedBatch(batch, names=tuple(f"clip_{first + n}" for n in range(size))) if self.names else batch

    def seen(self, batch, *, iteration, first, members):
        self.iteration = iteration
        return super().seen(batch, iteration=iteration, first=first, members=members)

    def score(self, x0, batch):
        scored = super().score(x0, batch)
        rewards = scored.rewards.clone()
        if self.iteration in self.when:
            names = getattr(batch, "names", None) or tuple(f"clip_{n}" for n in range(len(rewards)))
            if "clip_4" in names:
                rewards[names.index("clip_4"), [1, 3], 0] = math.nan
        if self.iteration == self.everything:
            rewards[:] = math.nan
        return scored._replace(rewards=rewards, errors={"error/near": -rewards[..., 0]})


def side_log(run: Path, name: str) -> list[dict[str, Any]]:
    return read_rows(run / name, name, "") if (run / name).exists() else []


@pytest.fixture
def notices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is printed for the user."""
    told: list[str] = []
    monkeypatch.setattr(progress_module._DISPLAY, "_print", told.append)
    return told


def test_unscored_samples_are_named(tmp_path: Path, notices: list[str]) -> None:
    run = tmp_path / "run"
    toy.train(replace(CONFIG, output=run, iterations=4), Spoilt((2,)))
    assert side_log(run, "unscored.jsonl") == [
        {"step": 3, "condition": 4, "clip": "clip_4", "members": [1, 3], "rewards": ["near"]}
    ]
    (alarm,) = side_log(run, "alarms.jsonl")
    assert alarm["step"] == 3 and alarm["name"] == "unscored" and "2 samples could not be scored" in alarm["text"]
    assert any(f"alarm, iteration 3: {alarm['text']}" == text for text in notices)
    rows = read_metrics(run)
    assert [row.get("alarm/unscored") for row in rows] == [None, None, 1.0, None]
    assert all(row["error/near"] == pytest.approx(-row["rewards/near/mean"]) for row in rows)
    toy.train(replace(CONFIG, output=tmp_path / "nameless", iterations=1), Spoilt((0,), names=False))
    assert side_log(tmp_path / "nameless", "unscored.jsonl")[0]["clip"] is None


def test_samples_of_other_processes_are_named_too(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = f"""if True:
        import os, pathlib, sys
        from tests.train import test_observation as observed
        from tests.train.forking import import_all_of_torch
        import_all_of_torch()
        folder = pathlib.Path({str(tmp_path)!r})
        rank = "0" if os.fork() else "1"
        os.environ |= {{"RANK": rank, "LOCAL_RANK": rank}}
        said = os.open(folder / rank, os.O_WRONLY | os.O_CREAT)
        os.dup2(said, 1), os.dup2(said, 2)
        config = observed.replace(observed.CONFIG, output=folder / "run", iterations=2)
        observed.toy.train(config, observed.Spoilt((1,)))
        if rank == "0":
            sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
    """
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env={**os.environ, **shared}, start_new_session=True
    )
    try:
        code = started.wait(timeout=100)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    told = [(tmp_path / rank).read_text() for rank in "01"]
    assert code == 0, told
    # condition 4 is the second process's; the first one writes
    (row,) = side_log(tmp_path / "run", "unscored.jsonl")
    assert (row["step"], row["condition"], row["clip"], row["members"]) == (2, 4, "clip_4", [1, 3])
    assert "could not be scored" in told[0] and told[1] == ""


def test_samples_are_named_for_an_iteration_that_comes_to_nothing(tmp_path: Path) -> None:
    config = replace(CONFIG, output=tmp_path / "run", iterations=4)
    with pytest.raises(MgrpoError, match="no sample of iteration 3"):
        toy.train(config, Spoilt((), everything=2))
    rows = side_log(tmp_path / "run", "unscored.jsonl")
    assert [row["condition"] for row in rows] == list(range(6)) and {row["step"] for row in rows} == {3}
    assert rows[0]["rewards"] == ["near", "small"]
    toy.train(replace(config, resume=True), toy.Reach())
    assert side_log(tmp_path / "run", "unscored.jsonl") == []


def test_ids_are_read_only_when_there_is_something_to_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = PostTraining.unscored

    def counting(self, trial, sampled):
        asked.append(1)
        return real(self, trial, sampled)

    monkeypatch.setattr(PostTraining, "unscored", counting)
    toy.train(replace(CONFIG, output=tmp_path / "run", iterations=4), Spoilt((1,)))
    assert len(asked) == 1


def told(run: Path) -> tuple[Any, ...]:
    """All that should not depend on interruptions."""
    given = [
        {k: v for k, v in row.items() if k.startswith(("step", "alarm/")) and k != "step_time"}
        for row in read_metrics(run)
    ]
    return side_log(run, "alarms.jsonl"), side_log(run, "unscored.jsonl"), given


def test_a_resumed_run_gives_the_alarms_of_an_unbroken_one(tmp_path: Path) -> None:
    config = replace(CONFIG, alarms=AlarmConfig(window=2, every=4, spike=0.1))
    toy.train(replace(config, output=tmp_path / "whole"), Spoilt((1, 2, 6, 9)))
    expected = told(tmp_path / "whole")
    assert {"unscored", "gradient_spike"} <= {alarm["name"] for alarm in expected[0]}
    broken = replace(config, output=tmp_path / "broken", resume=True)
    for iterations in (2, 3, 7, 12):
        toy.train(replace(broken, iterations=iterations), Spoilt((1, 2, 6, 9)))
    assert told(tmp_path / "broken") == expected
    # what came after a checkpoint is forgotten with it
    kept = replace(broken, checkpoint_every=5, output=tmp_path / "kept")
    failing = Spoilt((1, 2, 6, 9))
    failing.measures = lambda outcome, batch: 1 / 0 if failing.iteration == 8 else {}
    with pytest.raises(ZeroDivisionError):
        toy.train(kept, failing)
    toy.train(kept, Spoilt((1, 2, 6, 9)))
    assert told(tmp_path / "kept") == expected


def test_alarms_may_change_on_resume(tmp_path: Path) -> None:
    config = replace(CONFIG, output=tmp_path / "run", iterations=2)
    toy.train(config)
    toy.train(replace(config, iterations=3, resume=True, alarms=AlarmConfig(every=9)))
    assert len(read_metrics(tmp_path / "run")) == 3


class Measured(toy.SameGoals):
    """The measure that is no reward gets better as the policy does."""

    def score(self, x0, batch):
        self.distance = (x0[..., :2].mean(-2) - batch["goal"][:, None]).norm(dim=-1).mean()
        return super().score(x0, batch)

    def gold(self, policy):
        return {"error": float(self.distance)}


def test_a_healthy_run_gives_no_alarm(tmp_path: Path) -> None:
    config = replace(toy.CONFIG, output=tmp_path / "run", iterations=150, group_size=8, validate_every=10)
    toy.train(config, Measured())
    assert side_log(tmp_path / "run", "alarms.jsonl") == []


def test_alarms_name_options_that_there_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["train", "grpo", "--help"]) == 0
    known = set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out))
    named = set(re.findall(r"--[a-z][\w.-]*\w", inspect.getsource(alarms_module)))
    assert len(named) > 12
    assert [name for name in named if name not in known and not any(k.startswith(f"{name}.") for k in known)] == []


def test_side_logs_belong_to_the_run(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run", {"a": 1}, tensorboard=False) as run:
        with pytest.raises(ValueError, match=r"'other\.jsonl' is not among alarms\.jsonl, unscored\.jsonl"):
            run.note("other.jsonl", 1, {})
        run.note("alarms.jsonl", 1, {"name": "x"})
        assert run_folder_of(run.path / "alarms.jsonl") == run.path
    with pytest.raises(RuntimeError, match="closed"):
        run.note("alarms.jsonl", 2, {})


# --- trackers


class FakeTracker(ModuleType):
    """Records what it is called with, with wandb's and trackio's names."""

    def __init__(self, name: str, fails: str = "") -> None:
        super().__init__(name)
        self.__spec__ = SimpleNamespace(name=name, origin=__file__)  # type: ignore[assignment]
        self.fails, self.begun, self.rows, self.finished = fails, [], [], 0

    def init(self, **options: Any) -> FakeTracker:
        self._maybe("init")
        self.begun.append(options)
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        pass

    def log(self, numbers: dict[str, float], step: int | None = None) -> None:
        self._maybe("log")
        self.rows.append((numbers.get("iteration", step), numbers))

    def finish(self) -> None:
        self._maybe("finish")
        self.finished += 1

    def _maybe(self, action: str) -> None:
        if self.fails == action:
            raise ConnectionError(f"no network for {action}")


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_metrics_go_to_a_tracker_and_a_resumed_run_goes_on_there(
    tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeTracker(kind)
    monkeypatch.setitem(sys.modules, kind, fake)
    config = replace(CONFIG, output=tmp_path / "my_run", track=kind, track_project="motion")
    toy.train(replace(config, iterations=2))
    toy.train(replace(config, iterations=3, resume=True))
    first, second = fake.begun
    name = json.loads((tmp_path / "my_run" / "tracker.json").read_text())["run"]
    assert first["name"] == second["name"] == name and name.startswith("my_run-") and first["resume"] == "allow"
    assert first["project"] == "motion" and first["config"]["group_size"] == CONFIG.group_size
    assert (first.get("id") == name) == (kind == "wandb")
    assert [step for step, _ in fake.rows] == [1, 2, 3] and fake.finished == 2
    assert fake.rows[0][1]["reward"] == read_metrics(tmp_path / "my_run")[0]["reward"]
    # another project: another run
    toy.train(replace(config, iterations=4, resume=True, track_project="other"))
    assert fake.begun[2]["name"] != name
    # and without a tracker nothing is sent
    toy.train(replace(config, iterations=5, resume=True, track="none"))
    assert len(fake.begun) == 3


def test_trackio_ends_a_run_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notices: list[str]) -> None:
    """Its run's own finish would leave the run open for the module, which finishes it again when Python ends."""
    fake = FakeTracker("trackio")
    begun = SimpleNamespace(log=lambda numbers, step: fake.log(numbers, step))
    monkeypatch.setattr(fake, "init", lambda **options: begun)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    toy.train(replace(CONFIG, output=tmp_path / "run", iterations=2, track="trackio"))
    assert fake.finished == 1 and [step for step, _ in fake.rows] == [1, 2]
    assert [text for text in notices if "--track" in text] == ["--track trackio: beginning the run there"]


@pytest.mark.parametrize("action", ["init", "log", "finish"])
def test_a_failing_tracker_does_not_end_the_training(
    tmp_path: Path, action: str, monkeypatch: pytest.MonkeyPatch, notices: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeTracker("wandb", fails=action))
    toy.train(replace(CONFIG, output=tmp_path / "run", iterations=3, track="wandb"))
    assert len(read_metrics(tmp_path / "run")) == 3
    failures = [text for text in notices if text.startswith("--track wandb: could not")]
    assert len(failures) == 1 and f"no network for {action}" in failures[0]


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(InputError, match=r"--track trackio: the package 'trackio' is not installed.*mgrpo\[trackio\]"):
        toy.train(replace(CONFIG, output=tmp_path / "run", track="trackio"))
    assert not (tmp_path / "run").exists()


def test_a_folder_is_no_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb writes its runs into a folder "wandb"; started beside it, Python takes that for a package."""
    (tmp_path / "wandb" / "latest-run").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(InputError, match="--track wandb: the package 'wandb' is not installed"):
        require_tracker("wandb")
