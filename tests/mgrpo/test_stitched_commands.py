"""Motion longer than a window, from the commands: which windows are chosen, and that evaluation uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgrpo.body import default_body
from mgrpo.cli import main
from mgrpo.commands import evaluation_work as evaluate_command
from mgrpo.commands import sample as sample_command
from mgrpo.data import cut_windows, load_motion
from mgrpo.diffusion.sampler import NoiseKeys
from mgrpo.diffusion.stitched_sampler import sample_stitched
from mgrpo.diffusion.stitching import Stitching
from mgrpo.diffusion.transition import make_transitions
from mgrpo.errors import InputError
from mgrpo.eval.evaluate import compare, evaluate
from mgrpo.eval.metrics import motion_metrics
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.motion import decode_motion
from mgrpo.runs.checkpoints import write_checkpoint
from mgrpo.runs.trained_length import trained_length
from mgrpo.storage import atomic_write

CONFIG = DenoiserConfig(
    d_latent=16, d_feedforward=32, d_noise_emb=8, num_heads=2, encoder_layers=1, decoder_layers=1, include_hands=False
)
FAST = ("--kernel", "ddim", "--steps", "2")


def checkpoint(run: Path, length: int | None) -> Path:
    """A run folder with one checkpoint; ``length`` frames were its training windows."""
    folder = run / "checkpoints" / "step_00000001"
    folder.parent.mkdir(parents=True)
    write_checkpoint(
        folder, step=1, model=Denoiser(CONFIG, seed=3), model_config=CONFIG, optimizer=None, tensors=None, state=None,
        metric=None, record={"training": "PriorConfig"},
    )  # fmt: skip
    if length is not None:
        atomic_write(run / "config.resolved.yaml", f"data:\n  length: {length}\n")
    return folder


def chosen(monkeypatch: pytest.MonkeyPatch, module: Any, function: str) -> list[Stitching | None]:
    """What the command hands to a function as ``stitching``, which then runs as usual."""
    calls: list[Stitching | None] = []
    real = getattr(module, function)

    def note(*arguments: Any, **options: Any) -> Any:
        calls.append(options["stitching"])
        return real(*arguments, **options)

    monkeypatch.setattr(module, function, note)
    return calls


def test_the_training_length_is_found(tmp_path: Path) -> None:
    assert trained_length(checkpoint(tmp_path / "a", 20)) == 20
    assert trained_length(checkpoint(tmp_path / "b", None)) is None
    assert trained_length(tmp_path / "a" / "elsewhere") is None, "a checkpoint outside of a run folder"
    for number, text in enumerate(("data:\n  length: true\n", "data: [1]\n", "data:\n  length: 1\n", "{", "\x00")):
        run = tmp_path / f"broken{number}"
        folder = checkpoint(run, None)
        (run / "config.resolved.yaml").write_text(text)
        assert trained_length(folder) is None, text


def test_sample_takes_motion_of_any_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    checkpoint(run, 20)
    used = chosen(monkeypatch, sample_command, "sample_stitched")
    words = ["sample", "--checkpoint", str(run), "--clip", "walk", "--samples", "2", *FAST, "--no-picture", "--out"]
    for number, (options, wanted) in enumerate(
        (
            ((), Stitching("proper", 20, 5)),
            (("--blend", "egoallo"), Stitching("egoallo", 20, 5)),
            (("--window", "16", "--overlap", "3"), Stitching("proper", 16, 3)),
            (("--window", "500"), Stitching("proper", 500, 125)),
        )
    ):
        out = tmp_path / f"out{number}"
        assert main([*words, str(out), "--length", "333", *options]) == 0
        assert used[-1] == wanted
        with np.load(out / "walk_1-333_seed0.npz") as arrays:
            assert arrays["body_quats"].shape == (2, 333, 21, 4)
            assert all(np.isfinite(arrays[name]).all() for name in arrays.files)
        assert wanted.blend in (out / "walk_1-333_seed0_args.yaml").read_text()
    assert "windows" in capsys.readouterr().err
    pairs = [np.load(tmp_path / f"out{n}" / "walk_1-333_seed0.npz")["body_quats"] for n in range(4)]
    assert all(np.abs(pairs[0] - other).max() > 1e-3 for other in pairs[1:]), "every option has an effect"


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_impossible_windows_end_with_code_2(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "run", 20)
    for options, text in (
        (("--overlap", "20"), "--overlap 20 must be below the window of 20 frames"),
        (("--window", "8", "--overlap", "8"), "--window must be at least 2 frames and more than --overlap"),
        (("--window", "-4"), "--window must be at least 0, got -4"),
        (("--blend", "linear"), "linear"),
    ):
        assert main([command, "--checkpoint", "run", *FAST, *options]) == 2
        assert text in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "samples").exists()


def test_evaluate_hands_the_windows_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, length in (("a", 20), ("b", 32)):
        checkpoint(tmp_path / name, length)
    used = chosen(monkeypatch, evaluate_command, "evaluate")
    words = ["evaluate", "--checkpoint", str(tmp_path / "a"), str(tmp_path / "b"), *FAST, "--length", "45"]
    assert main([*words, "--window", "24", "--blend", "egoallo", "--format", "json"]) == 0
    assert set(used) == {Stitching("egoallo", 24, 6)} and len(used) >= 2
    assert '"blend": "egoallo"' in capsys.readouterr().out
    used.clear()
    assert main(words) == 2, "models with windows of their own aren't comparable"
    assert "name one --window for all" in capsys.readouterr().err and not used
    words[-1] = "18"  # one window for either
    assert main(words) == 0
    assert list(dict.fromkeys(used)) == [Stitching("proper", 20, 5), Stitching("proper", 32, 8)]


def test_evaluation_stitches_as_the_sampler_does() -> None:
    """128 frames with the original's blend are its two windows; every measure is that of the stitched samples."""
    body = default_body().body_only()
    clip = next(clip for clip in load_motion("demo", body) if clip.loop)
    windows = cut_windows([clip], body, 128).select([0])
    model, transitions = Denoiser(CONFIG, seed=3).eval(), make_transitions("ddim", steps=3)
    keys = NoiseKeys(7, 0, torch.tensor([0]), 2, share_initial=False)
    head = windows.T_world_cpf, windows.T_cpf_tm1_cpf_t
    results = {}
    for blend in (None, "egoallo", "proper"):
        stitching = None if blend is None else Stitching(blend)  # type: ignore[arg-type]
        result = evaluate(model, windows, body, transitions, seeds=(7,), samples=2, stitching=stitching)
        results[blend] = result
        x0 = sample_stitched(model, *head, transitions, keys, stitching=stitching or Stitching()).x0
        measured = motion_metrics(decode_motion(model.layout, x0, head[0][:, None], body), windows)
        torch.testing.assert_close(result.values["mpjpe_mm"][:, 0], measured["mpjpe_mm"].double(), atol=1e-9, rtol=0)
    assert len(Stitching("egoallo").plan(128)) == 2
    assert results[None].settings == results["proper"].settings, "128 frames are one proper window"
    assert compare(results[None], results["proper"])["mpjpe_mm"].mean == 0.0
    assert results["egoallo"].settings == {**results[None].settings, "blend": "egoallo", "window": 128, "overlap": 32}
    assert float((results["egoallo"].values["mpjpe_mm"] - results[None].values["mpjpe_mm"]).abs().max()) > 1e-3
    with pytest.raises(InputError, match="different settings"):
        compare(results[None], results["egoallo"])
    author = evaluate(model, windows.select([0]), body, transitions, stitching=Stitching("author", 200, 32))
    assert author.settings["blend"] == "author", "even one window isn't passed on as it is"
