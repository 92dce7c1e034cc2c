"""`mgrpo bench inference`: the plain loop samples the same thing, and the command measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mgrpo.cli import main
from mgrpo.commands import bench_inference
from mgrpo.commands.bench_inference import BenchInferenceConfig, Figure, Measurement, Row, markdown, table
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.diffusion.stitched_sampler import sample_stitched
from mgrpo.diffusion.stitching import Stitching
from mgrpo.diffusion.transition import make_transitions
from mgrpo.execution.memory import peak_memory, restart_peak_memory
from mgrpo.infer.plain import made_up_path, plain_sample
from mgrpo.models.conditioning import relative_cpf
from mgrpo.models.denoiser import DENOISER_PRESETS, Denoiser
from mgrpo.models.inference import choose_precision


def test_the_plain_loop_samples_the_same() -> None:
    """Given its noise, our sampler ends in the same states: the comparison is of like with like."""
    model = Denoiser(DENOISER_PRESETS["tiny"], seed=0).eval()
    poses = made_up_path(2, 8)
    steps = make_transitions("egoallo", eta=0.8, steps=10, schedule=CosineSchedule.make(1000))
    plain = plain_sample(model, poses, steps, 3, seed=5)
    generator = torch.Generator().manual_seed(5)
    noise = torch.stack([torch.randn(6, 8, model.layout.dim, generator=generator) for _ in range(11)])
    ours = sample_stitched(
        model,
        poses[:, 1:],
        relative_cpf(poses),
        steps,
        None,
        stitching=Stitching("proper", 8, 2),
        noise=noise.view(11, 2, 3, 8, -1),
        fix_det=False,
    ).x0
    assert plain.shape == ours.shape == (2, 3, 8, 226)
    assert torch.allclose(plain, ours, atol=2e-3)


def measured(config: BenchInferenceConfig, row: Row) -> Figure:
    measurement = Measurement(config, row, 2)
    for repeat in range(config.repeats + 1):
        measurement.repeat(repeat)
    return measurement.figure()


@pytest.mark.parametrize("row", ["plain", "mgrpo", "mgrpo bf16", "mgrpo auto", "mgrpo guided"])
def test_every_row_is_measured(row: Row) -> None:
    config = BenchInferenceConfig(preset="tiny", frames=8, batch=(2,), steps=8, repeats=2, device="cpu")
    figure = measured(config, row)
    assert figure.row == row and figure.batch == 2 and figure.seconds > 0 and figure.spread >= 1
    assert figure.peak_mb >= figure.loaded_mb > 50
    chosen = choose_precision("auto", torch.device("cpu"))[0]
    wanted = {"plain": "fp32", "mgrpo": "fp32", "mgrpo bf16": "bf16"}
    assert figure.precision == wanted.get(row, chosen)


def test_the_first_call_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """It warms up; the median is over the others, for one sequence of the batch."""
    now = iter([0.0, 4.0, 10.0, 18.0, 20.0, 26.0])  # calls of 4, 8 and 6 seconds
    config = BenchInferenceConfig(preset="tiny", frames=8, steps=8, repeats=3, device="cpu")
    monkeypatch.setattr(Measurement, "_call", lambda self, seed: None)
    measurement = Measurement(config, "plain", 2)
    monkeypatch.setattr(bench_inference.time, "perf_counter", lambda: 0.0)
    measurement.repeat(0)
    monkeypatch.setattr(bench_inference.time, "perf_counter", lambda: next(now))
    for repeat in (1, 2, 3):
        measurement.repeat(repeat)
    figure = measurement.figure()
    assert figure.seconds == 3.0 and figure.spread == 2.0


def test_the_peak_begins_anew() -> None:
    """What was there before a stage is not its peak."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the system doesn't keep it")
    cpu = torch.device("cpu")
    large = torch.ones(64 << 20, dtype=torch.uint8)
    with_large = peak_memory(cpu)
    del large
    loaded = restart_peak_memory(cpu)
    assert peak_memory(cpu) < with_large - (40 << 20) and abs(peak_memory(cpu) - loaded) < 16 << 20
    torch.ones(64 << 20, dtype=torch.uint8)  # gone again at once
    assert peak_memory(cpu) >= loaded + (60 << 20)


FIGURES = [
    Figure("plain", "fp32", 1, 2.0, 1.1, 90, 100),
    Figure("mgrpo", "fp32", 1, 0.5, 1.0, 80, 90),
    Figure("mgrpo", "fp32", 64, 0.1, 1.0, 80, 90),
]


def test_the_table_compares_within_a_batch() -> None:
    lines = table(FIGURES)
    assert "4.00x" in lines[2] and "x" not in lines[3].replace("mgrpo", "") and "1.00x" in lines[1]
    rows = markdown(FIGURES).splitlines()
    assert rows[2] == "| 1 | plain | fp32 | 2 | 1.00x | 1.10 | 90 | 100 |"
    assert len({row.count("|") for row in rows}) == 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--preset",
        "tiny",
        "--frames",
        "8",
        "--batch",
        "1",
        "--steps",
        "8",
        "--repeats",
        "1",
        "--rows",
        "plain",
        "mgrpo",
    ]
    assert main(["bench", "inference", *words, "--device", "cpu", "--out", str(tmp_path / "a.json")]) == 0
    out = capsys.readouterr().out
    assert "s per sequence" in out and "plain" in out and "mgrpo bf16" not in out
    record = json.loads((tmp_path / "a.json").read_text())
    assert [one["row"] for one in record["figures"]] == ["plain", "mgrpo"] and "versions" in record["provenance"]


@pytest.mark.parametrize("suffix", [".csv", ".md"])
def test_figures_as_a_table_in_a_file(suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"a{suffix}"
    bench_inference._write(out, FIGURES)
    first, *_, last = out.read_text().splitlines()
    if suffix == ".csv":
        assert first == "row,precision,batch,seconds,spread,loaded_mb,peak_mb" and last == "mgrpo,fp32,64,0.1,1.0,80,90"
    else:
        assert first.startswith("| batch | row |") and last.startswith("| 64 | mgrpo | fp32 | 0.1 |")


@pytest.mark.parametrize(
    "words",
    [
        ["--preset", "huge"],
        ["--frames", "1"],
        ["--frames", "129"],
        ["--batch", "0"],
        ["--repeats", "0"],
        ["--out", "a.txt"],
    ],
)
def test_what_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "inference", *words]) == 2
    assert "Traceback" not in capsys.readouterr().err
