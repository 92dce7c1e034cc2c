"""`mgrpo bench inference`: the plain loop samples the same thing, and the command measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mgrpo.cli import main
from mgrpo.commands import bench_inference
from mgrpo.commands.bench_inference import BenchInferenceConfig, Figure, made_up_path, measure, plain_sample, table
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.diffusion.stitched_sampler import sample_stitched
from mgrpo.diffusion.stitching import Stitching
from mgrpo.diffusion.transition import make_transitions
from mgrpo.models.conditioning import relative_cpf
from mgrpo.models.denoiser import DENOISER_PRESETS, Denoiser


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


@pytest.mark.parametrize("row", bench_inference.ROWS)
def test_every_row_is_measured(row: Any) -> None:
    config = BenchInferenceConfig(preset="tiny", frames=8, batch=(2,), steps=8, repeats=2, device="cpu")
    figure = measure(config, row, 2)
    assert figure.row == row and figure.batch == 2 and figure.seconds > 0 and figure.spread >= 1
    assert figure.peak_mb > 50


def test_the_table_compares_within_a_batch() -> None:
    lines = table(
        [Figure("plain", 1, 2.0, 1.1, 100), Figure("mgrpo", 1, 0.5, 1.0, 90), Figure("mgrpo", 64, 0.1, 1.0, 90)]
    )
    assert "4.00x" in lines[2] and "x" not in lines[3].replace("mgrpo", "") and "1.00x" in lines[1]


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


@pytest.mark.parametrize(
    "words", [["--preset", "huge"], ["--frames", "1"], ["--frames", "129"], ["--batch", "0"], ["--repeats", "0"]]
)
def test_what_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "inference", *words]) == 2
    assert "Traceback" not in capsys.readouterr().err
