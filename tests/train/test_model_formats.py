"""Runs, EgoAllo's checkpoints and saved-pretrained folders are the same to every command that takes a model, and are
converted into one another."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from mgrpo.cli import main
from mgrpo.commands.evaluate import model_names
from mgrpo.commands.sample import SampleConfig, run_sample
from mgrpo.diffusion.config import SamplerConfig
from mgrpo.errors import InputError
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.perceptual import PerceptualConfig, PerceptualModel
from mgrpo.runs.checkpoints import read_checkpoint, write_checkpoint
from mgrpo.runs.stored_models import load_model, model_format, stored_model
from tests.train import motion_files as files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same prior in three layouts, a perceptual model in two, and clips."""
    folder = tmp_path_factory.mktemp("formats")
    files.write_clips(folder / "clips")
    files.write_prior(folder / "mgrpo")
    denoiser = Denoiser(files.TINY_DENOISER, seed=1)
    denoiser.save_egoallo(folder / "egoallo", step=40)
    denoiser.save_pretrained(folder / "hub", step=50, training="GrpoConfig")
    files.write_perceptual(folder / "perceptual")
    load_model(folder / "perceptual", PerceptualModel, PerceptualConfig)[0].save_pretrained(folder / "perceptual_hub")
    return folder


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return set(x) == set(y) and all(torch.equal(x[name], y[name]) for name in x)


LAYOUTS = ("mgrpo", "egoallo", "hub")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads(folder: Path, layout: str) -> None:
    denoiser, config, checkpoint = load_model(folder / layout, Denoiser, DenoiserConfig)
    assert same(denoiser, Denoiser(files.TINY_DENOISER, seed=1)) and not denoiser.training
    assert config == files.TINY_DENOISER and checkpoint.model_config(DenoiserConfig) == config
    assert checkpoint.step == {"mgrpo": 1, "egoallo": 40, "hub": 50}[layout]
    assert (
        checkpoint.record.get("training") == {"mgrpo": "DenoiserConfig", "egoallo": None, "hub": "GrpoConfig"}[layout]
    )
    assert model_format(folder / layout) == layout and stored_model(folder / layout) == "Denoiser"
    checkpoint.restore(Denoiser(files.TINY_DENOISER, seed=2))
    with pytest.raises(InputError, match=r"no optimiser state"):
        checkpoint.restore(denoiser, torch.optim.SGD(denoiser.parameters(), lr=1.0))
    with pytest.raises(InputError, match="holds a Denoiser, but a PerceptualModel is needed"):
        load_model(folder / layout, PerceptualModel, PerceptualConfig)
    with pytest.raises(InputError, match=r"another configuration \(d_latent is 16 there, 512 here"):
        load_model(folder / layout, Denoiser, DenoiserConfig, expected_config=DenoiserConfig())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(layout: str, value: float, tmp_path: Path) -> None:
    denoiser = Denoiser(files.TINY_DENOISER, seed=1)
    denoiser.latent_from_cond.weight.data[1, 2] = value
    if layout == "egoallo":
        denoiser.save_egoallo(tmp_path, step=40)
    elif layout == "hub":
        denoiser.save_pretrained(tmp_path / "model")
    else:
        write_checkpoint(
            tmp_path / "model", step=1, model=denoiser, model_config=denoiser.config, optimizer=None, tensors=None,
            state=None, metric=None, record={},
        )  # fmt: skip
    path = tmp_path if layout == "egoallo" else tmp_path / "model"
    with pytest.raises(InputError, match=r"weights that are not finite.*: latent_from_cond\.weight"):
        load_model(path, Denoiser, DenoiserConfig)


def test_files_in_the_folders_load_too(folder: Path) -> None:
    for path in (
        folder / "egoallo" / "checkpoints_40",
        folder / "egoallo" / "checkpoints_40" / "model.safetensors",
        folder / "hub" / "model.safetensors",
        folder / "mgrpo" / "checkpoints" / "step_00000001" / "model.safetensors",
    ):
        assert same(load_model(path, Denoiser, DenoiserConfig)[0], Denoiser(files.TINY_DENOISER, seed=1))
    loaded = load_model(folder / "perceptual_hub", PerceptualModel, PerceptualConfig)[0]
    assert same(loaded, load_model(folder / "perceptual", PerceptualModel, PerceptualConfig)[0])
    assert stored_model(folder / "perceptual") == stored_model(folder / "perceptual_hub") == "PerceptualModel"


def test_what_is_nothing_is_reported(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(pickle.dumps(1))
    with pytest.raises(InputError, match=r"weights\.pt is a pickle by its name"):
        load_model(tmp_path / "weights.pt", Denoiser, DenoiserConfig)
    with pytest.raises(InputError, match="neither a run folder nor a checkpoint"):
        load_model(tmp_path, Denoiser, DenoiserConfig)
    with pytest.raises(InputError, match="does not exist"):
        load_model(tmp_path / "nowhere", Denoiser, DenoiserConfig)


def test_names_in_the_table(folder: Path) -> None:
    paths = [load_model(folder / layout, Denoiser, DenoiserConfig)[2].path for layout in LAYOUTS]
    assert model_names(paths) == list(LAYOUTS)
    twice = [folder / "egoallo" / "checkpoints_40", folder / "egoallo" / "checkpoints_50"]
    assert model_names(twice) == ["egoallo checkpoints_40", "egoallo checkpoints_50"]


# The commands


def test_the_layouts_sample_the_same(folder: Path, tmp_path: Path) -> None:
    written = []
    for layout in LAYOUTS:
        config = SampleConfig(
            checkpoint=folder / layout,
            motion=str(folder / "clips"),
            length=8,
            samples=1,
            sampler=SamplerConfig(steps=8),
            out=tmp_path / layout,
            picture=False,
            device="cpu",
        )
        assert run_sample(config) == 0
        written.append(next((tmp_path / layout).glob("*.npz")).read_bytes())
    assert written[0] == written[1] == written[2]


def test_evaluation_sees_equal_models(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(folder / layout) for layout in LAYOUTS]
    words = ["--checkpoint", *paths, "--motion", str(folder / "clips"), "--part", "all", "--length", "8"]
    words += ["--stride", "30", "--steps", "8", "--perceptual", str(folder / "perceptual_hub"), "--device", "cpu"]
    assert main(["evaluate", *words, "--format", "json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [model["name"] for model in models] == list(LAYOUTS)
    numbers = [model["statistics"] for model in models]
    assert numbers[0] and numbers[0] == numbers[1] == numbers[2]


def train(command: str, folder: Path, prior: str, output: Path, *more: str) -> Path:
    words = ["--prior", str(folder / prior), "--output", str(output), "--data.motion", str(folder / "clips")]
    words += ["--data.length", "8", "--data.validation", "made_up_3", "--data.held-out", "made_up_4"]
    words += ["--iterations", "1", "--sampler.steps", "8", "--device", "cpu", *more]
    assert main(["train", *command.split(), *words]) == 0
    return output


def test_grpo_starts_from_every_layout(folder: Path, tmp_path: Path) -> None:
    trained = []
    for layout, perceptual in zip(LAYOUTS, ("perceptual", "perceptual_hub", "perceptual_hub")):
        options = ("--perceptual", str(folder / perceptual), "--conditions", "2", "--group-size", "2")
        output = train("grpo", folder, layout, tmp_path / layout, *options)
        trained.append(load_model(output, Denoiser, DenoiserConfig, prefer="last")[0])
    assert same(trained[0], trained[1]) and same(trained[0], trained[2])
    assert not same(trained[0], Denoiser(files.TINY_DENOISER, seed=1))


def test_perceptual_training_takes_its_negatives_from_every_layout(folder: Path, tmp_path: Path) -> None:
    options = ("--clips", "2", "--negatives-per-clip", "2", "--samples-per-clip", "1", "--last-steps", "2")
    trained = []
    for layout in LAYOUTS:
        output = train("perceptual tiny", folder, layout, tmp_path / layout, *options)
        trained.append(load_model(output, PerceptualModel, PerceptualConfig, prefer="last")[0])
    assert same(trained[0], trained[1]) and same(trained[0], trained[2])


# mgrpo convert


def convert(*words: Any) -> int:
    return main(["convert", *map(str, words)])


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
def test_conversion_is_exact(
    source: str, target: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(folder / source, tmp_path / "new" / "place", "--to", target) == 0
    shown = capsys.readouterr().out.strip()
    denoiser, config, checkpoint = load_model(tmp_path / "new" / "place", Denoiser, DenoiserConfig)
    assert same(denoiser, Denoiser(files.TINY_DENOISER, seed=1)) and config == files.TINY_DENOISER
    assert model_format(tmp_path / "new" / "place") == target and shown == str(checkpoint.path)
    assert checkpoint.step == {"mgrpo": 1, "egoallo": 40, "hub": 50}[source]
    if target != "egoallo":  # that layout has no place for it
        assert checkpoint.record.get("training") == load_model(folder / source, Denoiser, DenoiserConfig)[2].record.get(
            "training"
        )


def test_options_of_the_conversion(folder: Path, tmp_path: Path) -> None:
    assert convert(folder / "hub", tmp_path / "run", "--to", "mgrpo", "--step", 7) == 0
    assert read_checkpoint(tmp_path / "run").step == 7
    assert convert(folder / "mgrpo", tmp_path / "card", "--to", "hub", "--license", "cc-by-nc-4.0") == 0
    assert "license: cc-by-nc-4.0" in (tmp_path / "card" / "README.md").read_text()
    for step in (1, 2):
        assert convert(folder / "mgrpo", tmp_path / "experiment", "--to", "egoallo", "--step", step) == 0
    assert {path.name for path in (tmp_path / "experiment").iterdir()} == {
        "model_config.yaml",
        "checkpoints_1",
        "checkpoints_2",
    }
    assert convert(folder / "perceptual", tmp_path / "p", "--to", "hub") == 0
    assert convert(tmp_path / "p", tmp_path / "q", "--to", "mgrpo") == 0
    loaded = load_model(tmp_path / "q", PerceptualModel, PerceptualConfig)[0]
    assert same(loaded, load_model(folder / "perceptual", PerceptualModel, PerceptualConfig)[0])


def test_what_can_not_be_converted(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("precious")
    cases = [
        ((folder / "perceptual", tmp_path / "x", "--to", "egoallo"), "EgoAllo's layout is for denoisers"),
        ((folder / "hub", tmp_path / "full", "--to", "mgrpo"), "exists and is not empty"),
        ((folder / "hub", tmp_path / "full", "--to", "hub"), "exists and is not empty"),
        ((folder / "hub", tmp_path / "full", "--to", "egoallo"), "holds other files"),
        ((folder / "hub", tmp_path / "full" / "notes.txt", "--to", "mgrpo"), "exists and is not empty"),
        ((folder / "hub", folder / "hub", "--to", "hub"), "exists and is not empty"),
        ((tmp_path / "nowhere", tmp_path / "x", "--to", "hub"), "does not exist"),
        ((folder / "hub", tmp_path / "x", "--to", "mgrpo", "--step", "-1"), "--step must be at least 0"),
        ((folder / "hub", tmp_path / "x", "--to", "mgrpo", "--license", "other"), "only --to hub has"),
        ((folder / "hub", tmp_path / "x", "--to", "hub", "--license", " "), "--license must not be empty"),
        ((folder / "hub", tmp_path / "x", "--to", "onnx"), "onnx"),
    ]
    for words, text in cases:
        assert convert(*words) == 2
        assert text in " ".join(capsys.readouterr().err.split()), words
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full" / "notes.txt").read_text() == "precious"


def test_nothing_is_written_among_the_files_of_a_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / "empty").mkdir(parents=True)
    (run / "config.resolved.yaml").write_text("a: 1")
    for place in (run, run / "checkpoints", run / "checkpoints" / "step_00000009", run / "checkpoints" / "empty"):
        for layout in LAYOUTS:
            assert convert(folder / "hub", place, "--to", layout) == 2
            assert f"{run} is the folder of a training run" in " ".join(capsys.readouterr().err.split())
    for words in (["evaluate", "--checkpoint", str(folder / "hub")], ["metrics", "a.npz", "b.npz"]):
        assert main([*words, "--out", str(run)]) == 2
        assert f"--out {run}: {run} is the folder of a training run" in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in run.rglob("*")) == ["checkpoints", "config.resolved.yaml", "empty"]
    assert convert(folder / "hub", run / "exported", "--to", "egoallo") == 0


def test_a_model_that_is_not_there_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(tmp_path / "nowhere", tmp_path / "x", "--to", "hub") == 2
    assert capsys.readouterr().err.startswith("error: checkpoint not found")


def test_another_models_file_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Denoiser(files.TINY_DENOISER).save_pretrained(tmp_path / "m")
    (source / "config.json").write_text(json.dumps({"model": "UNet", "config": {}}))
    assert convert(source, tmp_path / "x", "--to", "hub") == 2
    assert "holds a UNet; known are Denoiser, PerceptualModel" in capsys.readouterr().err
