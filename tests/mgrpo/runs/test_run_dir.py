"""Run folders: what is written, what is refused, what survives a full or forbidding disk."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml

from mgrpo.config_record import differences, from_plain, to_plain, with_defaults
from mgrpo.errors import InputError
from mgrpo.runs.checkpoints import find_checkpoint, read_checkpoint, step_folders
from mgrpo.runs.metric_log import read_metrics
from mgrpo.runs.provenance import git_state
from mgrpo.runs.run_dir import RunDir
from mgrpo.runs.stored_models import load_model
from mgrpo.storage import StorageError, atomic_write
from mgrpo.tensor_files import read_tensors, tensors_to_bytes


@dataclass(frozen=True)
class NetConfig:
    width: int = 4
    kind: Literal["plain", "wide"] = "plain"


class Net(torch.nn.Module):
    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(3, config.width)
        self.outer = torch.nn.Linear(config.width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.inner(x).tanh())


class OtherNet(Net):
    pass


@dataclass(frozen=True)
class LoopConfig:
    output: Path = Path("runs/x")
    iterations: int = 10
    rate: float = 0.1
    net: NetConfig = field(default_factory=NetConfig)
    tags: tuple[str, ...] = ("a", "b")
    limit: float | None = None


def make_net(width: int = 4, seed: int = 0) -> tuple[Net, torch.optim.AdamW]:
    torch.manual_seed(seed)
    net = Net(NetConfig(width))
    return net, torch.optim.AdamW(
        [{"params": net.inner.parameters()}, {"params": net.outer.parameters(), "lr": 0.03, "weight_decay": 0.0}],
        lr=0.1,
    )


def step(net: Net, optimizer: torch.optim.Optimizer, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    optimizer.zero_grad()
    net(torch.randn(5, 3, generator=generator)).square().mean().backward()
    optimizer.step()


def create(folder: Path, config: LoopConfig | None = None, **options: object) -> RunDir:
    return RunDir.create(folder, config or LoopConfig(), tensorboard=False, **options)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    with create(tmp_path / "run", command=["/usr/bin/mgrpo", "train", "prior", "--rate", "0.1"]) as opened:
        yield opened


def save(run: RunDir, step_number: int, metric: float | None = None, **options: object) -> Path:
    net, optimizer = make_net()
    return run.save(step_number, model=net, model_config=NetConfig(), optimizer=optimizer, metric=metric, **options)  # type: ignore[arg-type]


# --- what is written


def test_configuration_is_kept_as_written_and_as_resolved(run: RunDir) -> None:
    written = yaml.safe_load((run.path / "config.yaml").read_text())
    assert written["starts"][0]["words"] == ["/usr/bin/mgrpo", "train", "prior", "--rate", "0.1"]
    resolved = yaml.safe_load((run.path / "config.resolved.yaml").read_text())
    assert resolved == to_plain(LoopConfig())
    assert resolved["class"] == "LoopConfig" and resolved["net"] == {"class": "NetConfig", "width": 4, "kind": "plain"}
    assert from_plain(LoopConfig, resolved) == LoopConfig()


def test_provenance_names_versions_and_machine(run: RunDir) -> None:
    (start,) = json.loads((run.path / "provenance.json").read_text())["starts"]
    assert start["versions"]["torch"] == torch.__version__ or start["versions"]["torch"] in torch.__version__
    assert start["machine"]["torch_threads"] == torch.get_num_threads()
    assert start["command"][1:3] == ["train", "prior"] and start["resumed_from_step"] is None


def git(folder: Path, *words: str) -> None:
    subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e@x", *words], check=True, capture_output=True
    )


def test_git_state_of_a_checkout_and_of_an_installation_inside_another_repository(tmp_path: Path) -> None:
    package = tmp_path / "mgrpo"
    package.mkdir()
    (package / "__init__.py").write_text("a = 1\n")
    assert git_state(package) is None
    git(tmp_path, "init", "-q")
    assert git_state(package) is None  # a repository that doesn't track the package says nothing about it
    git(tmp_path, "add", ".")
    before = git_state(package)
    assert before is not None and before.commit is None
    git(tmp_path, "commit", "-q", "-m", "x")
    clean = git_state(package)
    assert (
        clean is not None
        and clean.commit is not None
        and len(clean.commit) == 40
        and not clean.dirty
        and not clean.diff
    )
    (package / "__init__.py").write_text("a = 2\n")
    (tmp_path / "new.txt").write_text("")
    dirty = git_state(package)
    assert dirty is not None and dirty.dirty and "+a = 2" in dirty.diff and dirty.untracked == ("new.txt",)


def test_metrics_are_json_lines_and_not_a_number_is_null(run: RunDir) -> None:
    run.log(1, {"loss": 0.5, "flag": True, "t": torch.tensor(2.0), "count": 3})
    run.log(2, {"loss": float("nan"), "reward": -math.inf})
    rows = read_metrics(run.path)
    assert [row.pop("time") > 0 for row in rows] == [True, True]
    assert rows == [
        {"step": 1, "loss": 0.5, "flag": 1, "t": 2.0, "count": 3},
        {"step": 2, "loss": None, "reward": None},
    ]
    with pytest.raises(TypeError, match=r"'name' must be a number"):
        run.log(3, {"name": "text"})  # type: ignore[dict-item]


def tensorboard_scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_holds_the_same_numbers_also_after_resuming(tmp_path: Path) -> None:
    with RunDir.create(tmp_path, LoopConfig()) as run:
        for number in range(1, 6):
            run.log(number, {"loss": number / 4, "reward": float("nan")})
            if number == 2:
                save(run, number)
    assert tensorboard_scalars(tmp_path, "loss") == [(number, number / 4) for number in range(1, 6)]
    with RunDir.create(tmp_path, LoopConfig(), resume=True) as run:
        run.log(3, {"loss": -1.0})
    assert tensorboard_scalars(tmp_path, "loss") == [(1, 0.25), (2, 0.5), (3, -1.0)]
    assert len(tensorboard_scalars(tmp_path, "reward")) == 2


def test_without_tensorboard_one_notice_and_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with RunDir.create(tmp_path, LoopConfig()) as run:
        run.log(1, {"loss": 1.0})
        run.log(2, {"loss": 1.0})
    assert capfd.readouterr().err.count("tensorboard is not installed") == 1
    assert len(read_metrics(tmp_path)) == 2


# --- checkpoints


def test_model_and_optimizer_come_back_bit_for_bit(run: RunDir) -> None:
    net, optimizer = make_net()
    for number in range(3):
        step(net, optimizer, number)
    extra = {"average": torch.tensor([0.1, math.inf, math.nan]), "half": torch.ones(2, dtype=torch.bfloat16)}
    state = {"seen": 12, "share": 0.1 + 0.2, "names": ["x"], "nested": {"a": None}}
    run.save(3, model=net, model_config=NetConfig(), optimizer=optimizer, tensors=extra, state=state)
    other, other_optimizer = make_net(seed=9)
    checkpoint = run.load("last")
    assert checkpoint is not None and checkpoint.step == 3 and checkpoint.state == state
    assert torch.equal(checkpoint.tensors["average"], extra["average"].nan_to_num(7.0)) is False
    assert checkpoint.tensors["half"].dtype == torch.bfloat16
    assert torch.allclose(checkpoint.tensors["average"], extra["average"], equal_nan=True)
    checkpoint.restore(other, other_optimizer)
    first, second = optimizer.state_dict(), other_optimizer.state_dict()
    assert first["param_groups"] == second["param_groups"]
    assert all(
        torch.equal(first["state"][i][k], second["state"][i][k]) for i in first["state"] for k in first["state"][i]
    )
    for number in range(3, 6):
        step(net, optimizer, number)
        step(other, other_optimizer, number)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters()))
    # training on must not have changed what was loaded
    again = run.load("last")
    assert again is not None
    assert all(
        torch.equal(again.optimizer_tensors[n], checkpoint.optimizer_tensors[n]) for n in again.optimizer_tensors
    )


def test_tied_and_strided_tensors_are_stored() -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    data = {"a": shared, "b": shared, "t": shared.T, "row": shared[1]}
    from safetensors.torch import load

    assert all(torch.equal(load(tensors_to_bytes(data))[name], tensor) for name, tensor in data.items())


@pytest.mark.parametrize(
    ("better", "values", "best"),
    [("min", [3, 1, 2, 1], 2), ("max", [3, 5, None, math.nan], 2), ("min", [None, 4, 4, 5], 2)],
)
def test_best_and_last_are_kept(tmp_path: Path, better: str, values: list[float | None], best: int) -> None:
    with create(tmp_path / "run") as run:
        for number, value in enumerate(values, start=1):
            save(run, number, value, better=better)
        assert run.checkpoint_path("best").name == f"step_{best:08d}"
        assert run.checkpoint_path("last").name == f"step_{len(values):08d}"
        assert set(step_folders(run.checkpoints)) == {best, len(values)}
        assert json.loads((run.checkpoints / "best.json").read_text())["metric"] == values[best - 1]


def test_every_nth_is_kept_on_request(tmp_path: Path) -> None:
    with create(tmp_path / "run", keep_every=4) as run:
        for number in range(1, 11):
            save(run, number)
        assert set(step_folders(run.checkpoints)) == {4, 8, 10}
        assert run.load("best") is None
        with pytest.raises(InputError, match=r"no best checkpoint yet"):
            run.checkpoint_path("best")


def test_saving_the_same_step_again_replaces_it(run: RunDir) -> None:
    save(run, 5, state={"try": 1})
    save(run, 5, state={"try": 2})
    checkpoint = run.load()
    assert checkpoint is not None and checkpoint.state == {"try": 2}
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["last.json", "step_00000005"]


def test_a_kill_while_a_checkpoint_is_replaced_loses_neither(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        folder = save(run, 5, state={"try": 1})
    hidden = folder.with_name(f".replaced-{folder.name}")
    folder.rename(hidden)  # what a kill between the two renames leaves
    assert read_checkpoint(find_checkpoint(tmp_path / "run")).state == {"try": 1}
    with create(tmp_path / "run", resume=True) as run:
        assert run.start_step == 5 and folder.is_dir() and not hidden.exists()
        shutil.copytree(folder, hidden)  # and what a kill after them leaves
        save(run, 6)
    with create(tmp_path / "run", resume=True) as run:
        assert run.start_step == 6 and [p.name for p in run.checkpoints.glob(".*")] == []


def test_a_checkpoint_is_found_from_every_path_a_user_may_give(run: RunDir, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has not saved one yet"):
        find_checkpoint(run.path)
    save(run, 1, 1.0)
    save(run, 2, 2.0)
    one, two = run.checkpoints / "step_00000001", run.checkpoints / "step_00000002"
    assert find_checkpoint(run.path) == one and find_checkpoint(run.path, prefer="last") == two
    assert find_checkpoint(run.checkpoints) == one and find_checkpoint(str(run.path / "last")) == two
    assert find_checkpoint(two) == two and find_checkpoint(one / "model.safetensors") == one
    with pytest.raises(InputError, match=r"does not exist"):
        find_checkpoint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"neither a run folder nor a checkpoint"):
        find_checkpoint(tmp_path / "empty")


def test_load_model_rebuilds_the_network(run: RunDir) -> None:
    folder = save(run, 1)
    net, config, checkpoint = load_model(run.path, Net, NetConfig)
    assert config == NetConfig() and checkpoint.step == 1 and not net.training
    expected, _ = make_net()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), expected.parameters()))
    with pytest.raises(InputError, match=r"holds a Net, but a OtherNet is needed"):
        load_model(folder, OtherNet, NetConfig)
    with pytest.raises(InputError, match=r"width is 4 there, 9 here"):
        load_model(folder, Net, NetConfig, expected_config=NetConfig(width=9))
    with pytest.raises(InputError, match=r"expected a LoopConfig, got a NetConfig"):
        load_model(folder, Net, LoopConfig)


def test_a_checkpoint_of_another_shape_explains_itself(run: RunDir) -> None:
    save(run, 1)
    checkpoint = run.load()
    assert checkpoint is not None
    wider, _ = make_net(width=6)
    before = [p.clone() for p in wider.parameters()]
    with pytest.raises(InputError, match=r"inner.weight is \(4, 3\) in the file, \(6, 3\) in the model"):
        checkpoint.restore(wider)
    assert all(torch.equal(a, b) for a, b in zip(before, wider.parameters()))
    with pytest.raises(InputError, match=r"missing from the file: 0.weight.*unknown to the model: inner.bias"):
        checkpoint.restore(torch.nn.Sequential(torch.nn.Linear(1, 1)))  # type: ignore[arg-type]
    same, _ = make_net()
    with pytest.raises(InputError, match=r"is of AdamW, this run uses SGD"):
        checkpoint.restore(same, torch.optim.SGD(same.parameters(), lr=1.0))
    with pytest.raises(InputError, match=r"other parameters than this model"):
        checkpoint.restore(same, torch.optim.AdamW(same.inner.parameters()))


def damage(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    if how == "cut":
        weights.write_bytes(data[:-9])
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "bit":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif how == "text":
        weights.write_text("not tensors at all, but long enough to be read as a header")
    elif how == "gone":
        weights.unlink()
    elif how == "json":
        (folder / "state.json").write_text('{"step": 1')
    elif how == "strange json":
        (folder / "config.json").write_text("[]")
    elif how == "newer":
        content = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps({**content, "format": 99}))


@pytest.mark.parametrize("how", ["cut", "empty", "bit", "text", "gone", "json", "strange json", "newer"])
def test_a_damaged_checkpoint_is_reported(tmp_path: Path, how: str) -> None:
    with create(tmp_path / "run") as run:
        save(run, 1, 0.5)
        folder = save(run, 2, 1.0)
        damage(folder, how)
        with pytest.raises(InputError, match=r"damaged|not found|not what mgrpo writes|reads up to") as caught:
            read_checkpoint(folder)
        assert "step_00000002" in str(caught.value)
    with pytest.raises(InputError, match=r"Other checkpoints of this run: steps 1"):
        create(tmp_path / "run", resume=True)
    with create(tmp_path / "run", resume="best") as run:
        assert run.start_step == 1 and set(step_folders(run.checkpoints)) == {1}


# --- starting and resuming


def test_a_used_folder_is_not_overwritten(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        save(run, 7)
    with pytest.raises(InputError, match=r"checkpoint at step 7.*--resume.*choose another folder"):
        create(tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"not empty: it holds 1 entry \(thesis.tex\)"):
        create(tmp_path / "mine")
    with pytest.raises(InputError, match=r"isn't a run folder"):
        create(tmp_path / "mine", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"a file of that name exists"):
        create(tmp_path / "file")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_resume_cuts_the_metrics_to_the_checkpoint(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        for number in range(1, 6):
            run.log(number, {"loss": number})
            if number in (2, 4):
                save(run, number)
        with (run.path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 6, "lo')  # what a kill may leave
    with create(tmp_path / "run", resume=True) as run:
        assert run.start_step == 4
        assert [row["step"] for row in read_metrics(run.path)] == [1, 2, 3, 4]
        run.log(5, {"loss": 5.5})
        assert [row["step"] for row in read_metrics(run.path)] == [1, 2, 3, 4, 5]
    starts = yaml.safe_load((run.path / "config.yaml").read_text())["starts"]
    assert [start["resumed_from_step"] for start in starts] == [None, 4]


def test_metrics_edited_by_hand_are_cut_by_step(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        for number in range(1, 5):
            run.log(number, {"loss": number})
        save(run, 3)
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(rows[1:]) + "\n")
    with create(tmp_path / "run", resume=True) as run:
        assert [row["step"] for row in read_metrics(run.path)] == [2, 3]


def test_resume_from_any_checkpoint_forgets_what_came_later(tmp_path: Path) -> None:
    metrics = {1: 5.0, 2: 3.0, 3: 4.0, 4: 2.0, 5: 9.0}
    for resume, expected_best in (
        ("best", 4),
        (2, 2),
        (tmp_path / "run" / "checkpoints" / "step_00000003", None),
        ("last", 4),
    ):
        folder = tmp_path / "run"
        with create(folder, keep_every=1) as run:
            for number, value in metrics.items():
                run.log(number, {"loss": value})
                save(run, number, value)
            if expected_best is None:
                (run.checkpoints / "step_00000002").rename(tmp_path / "away")  # as if deleted for a later best one
        with create(folder, resume=str(resume), keep_every=1) as run:
            start = {"best": 4, "2": 2, "last": 5}.get(str(resume), 3)
            assert run.start_step == start
            checkpoint = run.load("last")
            assert checkpoint is not None and checkpoint.step == start
            assert max(step_folders(run.checkpoints)) == start
            assert len(read_metrics(folder)) == start
            assert run.checkpoint_path("best").name == f"step_{expected_best or 3:08d}"
        folder.rename(tmp_path / f"done{start}")


def test_resume_points_that_do_not_exist(tmp_path: Path) -> None:
    with create(tmp_path / "other") as other:
        foreign = save(other, 1)
    with create(tmp_path / "run") as run:
        save(run, 4)
    for resume, text in (
        ("best", "no best checkpoint"),
        ("3", "no checkpoint of step 3; there are 4"),
        (str(foreign), "another run"),
    ):
        with pytest.raises(InputError, match=text):
            create(tmp_path / "run", resume=resume)
    with pytest.raises(InputError, match=r"no run to resume from 'best'"):
        create(tmp_path / "new", resume="best")


def test_resume_without_anything_saved_starts_over(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with create(tmp_path / "run", resume=True) as run:
            assert run.start_step == 0 and run.load("last") is None
            run.log(1, {"loss": 1.0})
        assert "starting from the beginning" in capfd.readouterr().err
    assert len(read_metrics(tmp_path / "run")) == 1


def test_resume_with_other_settings_lists_them(tmp_path: Path) -> None:
    with create(tmp_path / "run") as run:
        save(run, 1)
    changed = LoopConfig(iterations=20, rate=0.5, net=NetConfig(width=8), output=Path("elsewhere"))
    with pytest.raises(InputError) as caught:
        create(tmp_path / "run", changed, resume=True)
    text = str(caught.value)
    assert (
        "3 settings differ" in text
        and "net.width: 4 in the folder, 8 now" in text
        and "rate: 0.1 in the folder, 0.5 now" in text
    )
    with pytest.raises(InputError, match=r"1 setting differs:\n  rate"):
        create(tmp_path / "run", changed, resume=True, may_change=("iterations", "net"))
    with create(tmp_path / "run", replace(changed, rate=0.1), resume=True, may_change=("iterations", "net")) as run:
        assert yaml.safe_load((run.path / "config.resolved.yaml").read_text())["iterations"] == 20


@dataclass(frozen=True)
class StartedConfig:
    """A run that starts from another one."""

    output: Path
    prior: Path
    iterations: int = 10


def test_a_path_may_be_written_in_another_way_or_move_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    old = StartedConfig(Path("runs/grpo"), Path("runs/prior/last"))
    RunDir.create(old.output, old).close()
    whole = StartedConfig(tmp_path / "runs/grpo", tmp_path / "runs/prior/last")
    RunDir.create(whole.output, whole, resume=True).close()
    for prior in (Path("prior/last"), tmp_path / "runs/prior"):
        with pytest.raises(InputError, match=r"1 setting differs:\n  prior: .*runs/prior/last in the folder"):
            RunDir.create(old.output, replace(whole, prior=prior), resume=True)
    (tmp_path / "runs").rename(tmp_path / "moved")
    moved = StartedConfig(tmp_path / "moved/grpo", tmp_path / "moved/prior/last")
    with pytest.raises(InputError, match=r"1 setting differs:\n  prior"):
        RunDir.create(moved.output, replace(moved, prior=tmp_path / "prior/last"), resume=True)
    RunDir.create(moved.output, moved, resume=True).close()


def test_resume_under_other_conditions_is_noted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    with create(tmp_path / "run") as run:
        save(run, 1)
    create(tmp_path / "run", resume=True).close()
    assert "other conditions" not in capfd.readouterr().err
    try:
        torch.set_num_threads(threads + 1)
        create(tmp_path / "run", resume=True).close()
    finally:
        torch.set_num_threads(threads)
    assert f"torch_threads was {threads}, is {threads + 1}" in capfd.readouterr().err


def test_one_process_at_a_time(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    with pytest.raises(InputError, match=f"in use by another process \\(pid {os.getpid()}\\)"):
        create(tmp_path / "run", resume=True)
    run.close()
    run.close()
    create(tmp_path / "run", resume=True).close()
    with pytest.raises(RuntimeError, match=r"closed"):
        run.log(1, {})


def test_a_refused_start_frees_the_folder(tmp_path: Path) -> None:
    create(tmp_path / "run").close()
    for _ in range(2):
        with pytest.raises(InputError, match=r"not empty"):
            create(tmp_path / "run")
    create(tmp_path / "run", resume=True).close()


def test_resume_command(tmp_path: Path, run: RunDir) -> None:
    assert run.resume_command() == "mgrpo train prior --rate 0.1 --resume"
    with create(tmp_path / "b", command=["/x/mgrpo/__main__.py", "train", "grpo", "--name", "two words"]) as other:
        assert other.resume_command() == "python -m mgrpo train grpo --name 'two words' --resume"
    with create(tmp_path / "c") as other:
        assert "resume=True" in other.resume_command()


def test_who_works_in_a_folder_is_told_before_what_it_holds(tmp_path: Path) -> None:
    """Nobody should be advised to delete a run that is going on."""
    with create(tmp_path / "run"), pytest.raises(InputError, match="in use by another process"):
        create(tmp_path / "run")
    with pytest.raises(InputError, match="not empty"):
        create(tmp_path / "run")


def test_a_command_that_resumes_by_itself_is_repeated_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["/usr/bin/mgrpo", "demo", "--output", "x"]
    with create(tmp_path / "run", command=command, resume=True) as run:
        assert run.resume_command() == "mgrpo demo --output x"
    assert "nothing saved yet" not in capfd.readouterr().err
    with create(tmp_path / "run", command=command, resume=True):
        assert "nothing saved yet" in capfd.readouterr().err
    with create(tmp_path / "b", command=["mgrpo", "train", "prior", "--resume"], resume=True) as run:
        assert run.resume_command() == "mgrpo train prior --resume"
    assert "nothing saved yet" in capfd.readouterr().err


# --- disks that refuse


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated: every write fails from the n-th on, for each n that occurs while saving."""
    with create(tmp_path / "run") as run:
        run.log(1, {"loss": 1.0})
        first = save(run, 1, 3.0)
        names = sorted(p.name for p in run.checkpoints.iterdir())
        real = os.write
        failures = 0
        for allowed in range(40):
            left = allowed

            def full(descriptor: int, data: bytes) -> int:
                nonlocal left
                left -= 1
                if left < 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(descriptor, data[: max(1, len(data) // 2)])  # a nearly full disk takes a part

            monkeypatch.setattr(os, "write", full)
            try:
                save(run, 2, 2.0)
            except StorageError as error:
                failures += 1
                assert "the disk is full" in str(error) and "--resume" in str(error) and "Free some space" in str(error)
                monkeypatch.setattr(os, "write", real)
                assert not list(run.checkpoints.glob(".*"))
                assert all(read_checkpoint(folder) for folder in step_folders(run.checkpoints).values())
                if run.checkpoint_path("last") == first:
                    assert set(names) <= {p.name for p in run.checkpoints.iterdir()}
            else:
                break
        assert failures > 5
        monkeypatch.setattr(os, "write", real)
        save(run, 3, 1.0)
        assert set(step_folders(run.checkpoints)) == {3}


def test_a_row_that_does_not_fit_is_taken_back(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    run.log(1, {"loss": 1.0})
    real = os.write
    calls = 0

    def full(descriptor: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:5])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match=r"metrics.jsonl: the disk is full"):
        run.log(2, {"loss": 1.0})
    monkeypatch.undo()
    run.log(2, {"loss": 2.0})
    assert [row["loss"] for row in read_metrics(run.path)] == [1.0, 2.0]


def test_a_tensorboard_record_that_does_not_fit_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunDir.create(tmp_path, LoopConfig()) as run:
        run.log(1, {"loss": 1.0})
        real = os.write

        def full(descriptor: int, data: bytes) -> int:
            if bytes(data[:1]) == b"{":  # metrics.jsonl still fits
                return real(descriptor, data)
            if len(data) < 30:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(descriptor, data[:-20])

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(StorageError, match=r"TensorBoard log in .*: the disk is full"):
            run.log(2, {"loss": 2.0})
        monkeypatch.undo()
        run.log(3, {"loss": 3.0})
    assert tensorboard_scalars(tmp_path, "loss") == [(1, 1.0), (3, 3.0)]


def test_a_really_full_disk(tmp_path: Path) -> None:
    """A file system of 1 MB, where this may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode
        != 0
    ):
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        net = torch.nn.Linear(100, 500)
        with create(disk / "run") as run:
            run.save(1, model=net, model_config=NetConfig())
            with pytest.raises(StorageError, match=r"the disk is full"):
                for number in range(2, 12):
                    run.save(number, model=torch.nn.Linear(100 * number, 500), model_config=NetConfig())
            kept = run.load("last")
            assert kept is not None and not list(run.checkpoints.glob(".*"))
            assert set(step_folders(run.checkpoints)) == {kept.step}
        (disk / "filler").write_bytes(b"\0" * int(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
        with pytest.raises(StorageError, match=r"the disk is full"):
            create(disk / "second")
        with pytest.raises(StorageError, match=r"the disk is full"):
            create(disk / "run", resume=True)
        (disk / "filler").unlink()
        with create(disk / "run", resume=True) as run:
            assert run.start_step == kept.step
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("where", ["under a file", "proc"])
def test_an_unwritable_folder(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    if where == "proc" and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    folder = tmp_path / "file" / "run" if where == "under a file" else Path("/proc/mgrpo/run")
    with pytest.raises(StorageError, match=r"could not create the folder .*Choose another folder"):
        create(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions don't bind the superuser")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match=r"no permission"):
            create(tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


def test_atomic_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.json"
    atomic_write(target, "old")

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("write", "fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            with pytest.raises(StorageError, match=r"read-only"):
                atomic_write(target, "new")
        assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


# --- configurations as data


def test_differences_and_round_trip() -> None:
    config = LoopConfig(limit=math.nan, net=NetConfig(kind="wide"))
    plain = to_plain(config)
    assert differences(plain, to_plain(config)) == []
    assert differences(plain, to_plain(replace(config, tags=("a",)))) == [("tags", ["a", "b"], ["a"])]
    assert differences({"a": 1}, {"b": {"c": 2}}) == [("a", 1, "(absent)"), ("b.c", "(absent)", 2)]
    rebuilt = from_plain(LoopConfig, yaml.safe_load(yaml.safe_dump(plain)))
    assert rebuilt.net == config.net and rebuilt.tags == config.tags and math.isnan(rebuilt.limit or 0.0)
    assert from_plain(LoopConfig, {}) == LoopConfig()


@dataclass(frozen=True)
class OtherConfig:
    rate: float = 0.1


def test_a_run_of_another_kind_and_a_folder_that_is_no_run(tmp_path: Path) -> None:
    """One sentence, and no advice to delete what is somebody else's."""
    RunDir.create(tmp_path / "run", LoopConfig(), tensorboard=False).close()
    with pytest.raises(InputError, match=r"another kind \(LoopConfig in its config.resolved.yaml, OtherConfig now\)"):
        RunDir.create(tmp_path / "run", OtherConfig(), resume=True, tensorboard=False)
    with pytest.raises(InputError, match=r"Add --resume to continue that run, choose another folder, or delete this"):
        RunDir.create(tmp_path / "run", LoopConfig(), tensorboard=False)
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "walk.npz").write_bytes(b"x")
    with pytest.raises(InputError, match=r"holds 1 entry \(walk.npz\)\. That is no run, so choose another folder\.$"):
        RunDir.create(tmp_path / "clips", LoopConfig(), tensorboard=False)
    assert [entry.name for entry in (tmp_path / "clips").iterdir()] == ["walk.npz"]


def test_options_that_an_older_version_did_not_know() -> None:
    """They are at their defaults there: a run of that version goes on with them, and not with other values."""
    config = LoopConfig(net=NetConfig(kind="wide"))
    known = to_plain(config)
    old = {name: value for name, value in known.items() if name != "tags"}
    old["net"] = {"class": "NetConfig", "kind": "wide"}
    assert differences(old, known) != []
    assert with_defaults(old, config) == known
    changed = replace(config, tags=("a",))
    assert differences(with_defaults(old, changed), to_plain(changed)) == [("tags", to_plain(LoopConfig().tags), ["a"])]
    other = {**old, "net": {"class": "OtherConfig"}}
    assert with_defaults(other, config)["net"] == {"class": "OtherConfig"}
    assert with_defaults({**old, "net": 3}, config)["net"] == 3 and with_defaults(None, config) is None


def test_a_run_of_an_older_version_goes_on(tmp_path: Path) -> None:
    net, optimizer = make_net()
    with RunDir.create(tmp_path / "run", LoopConfig(), tensorboard=False) as run:
        run.save(1, model=net, model_config=NetConfig(), optimizer=optimizer)
    stored = tmp_path / "run" / "config.resolved.yaml"
    stored.write_text("".join(line for line in stored.read_text().splitlines(True) if not line.startswith("limit")))
    before = stored.read_bytes()
    with pytest.raises(InputError, match=r"limit: None in the folder, 2\.0 now"):
        RunDir.create(tmp_path / "run", LoopConfig(limit=2.0), resume=True, tensorboard=False)
    assert stored.read_bytes() == before
    with RunDir.create(tmp_path / "run", LoopConfig(), resume=True, tensorboard=False) as run:
        assert run.start_step == 1


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"nets": {}}, "has no field nets. It knows output, iterations"),
        ({"iterations": "many"}, "iterations: expected int, got 'many'"),
        ({"iterations": True}, "iterations: expected int, got True"),
        ({"net": {"kind": "huge"}}, "net, kind: expected one of 'plain', 'wide', got 'huge'"),
        ({"tags": "a"}, "tags: expected a list"),
        ({"class": "Other"}, "expected a LoopConfig, got a Other"),
    ],
)
def test_bad_plain_configurations(data: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        from_plain(LoopConfig, data)


def test_plain_refuses_what_is_no_setting() -> None:
    bad: Callable[[], object] = lambda: to_plain({"a": torch.zeros(1)})  # noqa: E731
    with pytest.raises(TypeError, match=r"got Tensor"):
        bad()


def test_read_tensors_names_what_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(tensors_to_bytes({"a": torch.zeros(4)})[:-1])
    with pytest.raises(InputError, match=r"policy weights is damaged: .*w.safetensors"):
        read_tensors(tmp_path / "w.safetensors", "policy weights")
