"""An evaluation that is killed, stopped or shared ends in the same files as one that was not; another is refused."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mgrpo.cli import main
from mgrpo.commands.evaluate import EvaluateConfig, evaluate_checkpoints
from mgrpo.commands.evaluation_folder import EvaluationFolder, Piece, read_pieces
from mgrpo.commands.sharding import Shard, chosen_shard, parse_shard, shard_device
from mgrpo.diffusion.config import SamplerConfig
from mgrpo.errors import InputError
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.runs.checkpoints import write_checkpoint
from tests.train.forking import ForkingProcess

ROOT = Path(__file__).resolve().parents[2]
CONFIG = DenoiserConfig(
    d_latent=16, d_feedforward=32, d_noise_emb=8, num_heads=2, encoder_layers=1, decoder_layers=1, include_hands=False
)
OPTIONS = ("--part", "validation", "--length", "16", "--stride", "12", "--windows-per-chunk", "5", "--seeds", "0", "4")
SAMPLER = ("--kernel", "ddim", "--steps", "3", "--samples", "2")
FILES = ("evaluation.md", "evaluation.tex", "evaluation.csv", "evaluation.json", "evaluation_windows.csv")


def checkpoint(folder: Path, seed: int) -> Path:
    model, generator = Denoiser(CONFIG), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():  # untrained heads start at zero: every such model would predict the same
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    options = {"optimizer": None, "tensors": None, "state": None, "metric": None, "record": {}}
    write_checkpoint(folder, step=1, model=model, model_config=CONFIG, **options)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [checkpoint(folder / name, seed) for seed, name in enumerate(("first", "second"))]


@pytest.fixture(scope="module")
def words(models: list[Path]) -> list[str]:
    return ["evaluate", "--checkpoint", *map(str, models), *OPTIONS, *SAMPLER, "--device", "cpu"]


class Processes(ForkingProcess):
    """The process of killable_evaluation.py."""

    def __init__(self, folder: Path) -> None:
        super().__init__("killable_evaluation", stderr=subprocess.DEVNULL, MGRPO_PROGRESS="off")
        self.output = folder / "output.txt"

    def start(self, words: list[str], **options: object) -> int:
        return super().start(words=words, output=str(self.output), **options)[0]

    def wait(self) -> int:
        return super().wait()[0]

    def run(self, words: list[str], **options: object) -> int:
        self.start(words, **options)
        return self.wait()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    started = Processes(tmp_path_factory.mktemp("output"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def whole(processes: Processes, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation in one go."""
    folder = tmp_path_factory.mktemp("whole") / "e"
    assert processes.run([*words, "--out", str(folder)]) == 0, processes.output.read_text()
    return folder


def assert_same_files(folder: Path, expected: Path) -> None:
    for name in FILES:
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    assert not list(folder.glob(".*")), "something half-written is left"


def test_the_table_is_that_of_the_values(whole: Path, models: list[Path]) -> None:
    """The files hold what an evaluation without pieces and folder gives."""
    results = evaluate_checkpoints(
        EvaluateConfig(
            tuple(models),
            part="validation",
            length=16,
            stride=12,
            seeds=(0, 4),
            samples=2,
            sampler=SamplerConfig(kernel="ddim", steps=3),
            windows_per_chunk=1000,
            device="cpu",
        )
    )
    assert results[0].windows > 6, "several pieces are needed for this test to mean anything"
    rows = list(csv.DictReader((whole / "evaluation_windows.csv").read_text().splitlines()))
    assert results[0].means()["mpjpe_mm"] != results[1].means()["mpjpe_mm"]
    assert len(rows) == 2 * results[0].windows * 2 * 2
    for row in rows:
        result = next(result for result in results if result.name == row["model"])
        place = int(row["window"]), result.seeds.index(int(row["seed"])), int(row["sample"])
        assert row["clip"] == result.window_names[place[0]]
        # Other batch sizes round differently.
        assert float(row["mpjpe_mm"]) == pytest.approx(result.values["mpjpe_mm"][place].item(), rel=1e-4)
    content = json.loads((whole / "evaluation.json").read_text())
    assert content["differences"][0]["statistics"]["mpjpe_mm"]["clusters"] == len(set(results[0].window_names))


@pytest.mark.parametrize("count", [3])
def test_shares_end_in_the_same_files(
    processes: Processes, words: list[str], whole: Path, tmp_path: Path, count: int
) -> None:
    order = list(range(1, count + 1))
    random.Random(count).shuffle(order)
    for number in order[:-1]:
        assert processes.run([*words, "--out", str(tmp_path), "--shard", f"{number}/{count}"]) == 0
        assert "pieces are left to other processes" in processes.output.read_text()
        assert not (tmp_path / "evaluation.md").exists()
    assert processes.run([*words, "--out", str(tmp_path), "--shard", f"{order[-1]}/{count}"]) == 0
    assert "written:" in processes.output.read_text()
    assert_same_files(tmp_path, whole)
    pieces = [json.loads(line) for file in (tmp_path / "progress").glob("shard*") for line in file.open()]
    done = [(piece["model"], piece["chunk"], piece["seed"]) for piece in pieces]
    assert len(set(done)) == len(done), "work was done twice"


def test_work_can_be_shared_in_another_way_after_a_stop(
    processes: Processes, words: list[str], whole: Path, tmp_path: Path
) -> None:
    assert processes.run([*words, "--out", str(tmp_path), "--shard", "2/3"]) == 0
    before = set(read_pieces(tmp_path))
    assert processes.run([*words, "--out", str(tmp_path)]) == 0
    rest = [json.loads(line) for line in (tmp_path / "progress" / "shard_1_of_1.jsonl").open()]
    assert before and not before & {Piece(piece["model"], piece["chunk"], piece["seed"]) for piece in rest}
    assert_same_files(tmp_path, whole)


def test_two_processes_of_torchrun(words: list[str], whole: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "mgrpo", *words, "--out", str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "MGRPO_PROGRESS": "plain",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
            },
        )
        for rank in (0, 1)
    ]
    try:
        shown = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], shown
    assert "written:" in shown[0][0] and "shard 1/2" in shown[0][1]
    assert shown[1][0] == "", "only the first process prints"
    assert_same_files(tmp_path, whole)
    assert {path.name for path in (tmp_path / "progress").glob("[!.]*")} == {"shard_1_of_2.jsonl", "shard_2_of_2.jsonl"}


@pytest.mark.parametrize("die_at", [3, 6, 15, 30, 33])
def test_killed_before_a_file_operation(
    processes: Processes, words: list[str], whole: Path, tmp_path: Path, die_at: int
) -> None:
    command = [*words, "--out", str(tmp_path)]
    assert processes.run(command, die_at=die_at) == 9, "the run ended before that operation: lower die_at"
    for name in FILES:
        assert not (tmp_path / name).exists() or (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    assert processes.run(command) == 0, processes.output.read_text()
    assert_same_files(tmp_path, whole)


def test_killed_at_any_moment(processes: Processes, words: list[str], whole: Path, tmp_path: Path) -> None:
    command = [*words, "--out", str(tmp_path)]
    delays = random.Random()
    for _ in range(4):
        pid = processes.start(command)
        time.sleep(delays.uniform(0.02, 0.4))
        os.kill(pid, signal.SIGKILL)
        assert processes.wait() in (-signal.SIGKILL, 0)
    assert processes.run(command) == 0, processes.output.read_text()
    assert_same_files(tmp_path, whole)


def test_a_torn_line_is_computed_again(processes: Processes, words: list[str], whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "e")
    log = tmp_path / "e" / "progress" / "shard_1_of_1.jsonl"
    data = log.read_bytes()
    log.write_bytes(data[: len(data) * 2 // 3])
    kept = len(read_pieces(tmp_path / "e"))
    assert processes.run([*words, "--out", str(tmp_path / "e")]) == 0
    assert len(log.read_bytes().splitlines()) == len(data.splitlines()) > kept
    assert_same_files(tmp_path / "e", whole)


def test_interrupt_says_how_to_go_on(processes: Processes, words: list[str], whole: Path, tmp_path: Path) -> None:
    command = [*words, "--out", str(tmp_path)]
    log = tmp_path / "progress" / "shard_1_of_1.jsonl"
    pid = processes.start(command)
    for _ in range(2000):
        if log.exists() and log.stat().st_size:
            break
        time.sleep(0.005)
    os.kill(pid, signal.SIGINT)
    assert processes.wait() == 130, processes.output.read_text()
    shown = processes.output.read_text()
    assert "stopped by SIGINT; continue with: " in shown and f"--out {tmp_path}" in shown
    assert "Traceback" not in shown and not (tmp_path / "evaluation.md").exists()
    done = len(read_pieces(tmp_path))
    assert 0 < done < len(read_pieces(whole))
    assert processes.run(command) == 0
    assert_same_files(tmp_path, whole)


def test_a_finished_evaluation_is_shown_again_without_work(
    whole: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing is left to compute")

    folder = tmp_path / "e"
    shutil.copytree(whole, folder)
    monkeypatch.setattr("mgrpo.commands.evaluation_work.evaluate", refuse)
    assert main([*words, "--out", str(folder), "--format", "markdown", "--family", "all", "--title", "Again"]) == 0
    shown = capsys.readouterr().out
    assert "### Again" in shown and "PA-MPJPE\\*" in shown and (folder / "evaluation.md").read_text() == shown


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("--steps", "4"), "options.sampler.steps: 3 in the folder, 4 now"),
        (("--seeds", "0", "5"), "options.seeds: [0, 4] in the folder, [0, 5] now"),
        (("--samples", "3"), "options.samples: 2 in the folder, 3 now"),
        (("--part", "held_out"), "windows.sha256"),
        (("--windows-per-chunk", "2"), "windows_in_a_piece: 5 in the folder, 2 now"),
        (("--name", "a", "b"), "models.1.name: first in the folder, a now"),
    ],
)
def test_another_evaluation_is_refused(
    whole: Path, words: list[str], change: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: (whole / name).read_bytes() for name in FILES}
    assert main([*words, "--out", str(whole), *change]) == 2
    shown = capsys.readouterr().err
    assert "can't be continued" in shown and text in shown and "choose another --out" in shown
    assert before == {name: (whole / name).read_bytes() for name in FILES}


def test_other_weights_and_another_order_are_refused(
    whole: Path, words: list[str], models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    retrained = checkpoint(tmp_path / "second", seed=7)
    swapped = [{str(models[1]): str(retrained)}.get(word, word) for word in words]
    assert main([*swapped, "--out", str(whole)]) == 2
    shown = capsys.readouterr().err
    assert "models.2.sha256" in shown and "models.1" not in shown
    turned = [{str(models[0]): str(models[1]), str(models[1]): str(models[0])}.get(word, word) for word in words]
    assert main([*turned, "--out", str(whole)]) == 2
    assert "models.1.name: first in the folder, second now" in capsys.readouterr().err


def test_damaged_progress(whole: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "e"
    shutil.copytree(whole, folder)
    log = folder / "progress" / "shard_1_of_1.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    for damaged in (b"\0" * 20 + b"\n", b"{}\n", b"[1]\n"):
        log.write_bytes(b"".join([lines[0], damaged, *lines[2:]]))
        assert main([*words, "--out", str(folder)]) == 2
        assert "line 2 is damaged" in capsys.readouterr().err
    piece = json.loads(lines[1])
    del piece["values"]["mpjpe_mm"]
    log.write_bytes(b"".join([lines[0], json.dumps(piece).encode() + b"\n", *lines[2:]]))
    assert main([*words, "--out", str(folder)]) == 2
    assert "different measures" in capsys.readouterr().err


def test_one_process_for_each_share(tmp_path: Path) -> None:
    with EvaluationFolder(tmp_path, {"a": 1}, "1/2"):
        with pytest.raises(InputError, match=r"shard 1/2 in .* is in use by another process"):
            EvaluationFolder(tmp_path, {"a": 1}, "1/2")
        with EvaluationFolder(tmp_path, {"a": 1}, "2/2"):
            pass
    with EvaluationFolder(tmp_path, {"a": 1}, "1/2"):
        pass


def test_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (1, 2, 3, 7):
        parts = [Shard(number, count).part(range(10)) for number in range(1, count + 1)]
        assert sorted(item for part in parts for item in part) == list(range(10))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parse_shard(" 2/3") == Shard(2, 3) and str(Shard(2, 3)) == "2/3"
    for wrong in ("0/3", "4/3", "2", "a/b", "-1/3", "1/0", "1/2/3"):
        with pytest.raises(InputError, match="--shard must be i/n"):
            parse_shard(wrong)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert chosen_shard(None) == Shard() and chosen_shard("2/2") == Shard(2, 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(InputError, match="RANK is not set"):
        chosen_shard(None)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    found = chosen_shard(None)
    assert found == Shard(3, 4, local_rank=0) and not found.speaks and replace(found, number=1).speaks
    assert Shard(2, 2).speaks, "shares by option all speak"
    with pytest.raises(InputError, match="leave out --shard"):
        chosen_shard("1/2")
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(InputError, match="below WORLD_SIZE"):
        chosen_shard(None)
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(InputError, match="whole number"):
        chosen_shard(None)


def test_device_of_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [shard_device("auto", Shard(rank + 1, 3, rank)) for rank in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert shard_device("cpu", Shard(1, 2, 0)) == "cpu" and shard_device("cuda:1", Shard(1, 2, 0)) == "cuda:1"
    assert shard_device("auto", Shard(1, 2)) == "auto"


def test_sharing_needs_a_folder(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--shard", "1/2"]) == 2
    assert "through --out" in capsys.readouterr().err
