"""`mgrpo sample` before it samples: which frames it takes, what it says of them, and what it checks first."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from mgrpo.body import resolve_body
from mgrpo.cli import main
from mgrpo.commands import sample as sample_command
from mgrpo.commands.sample import LONGEST, clip_window
from mgrpo.data import load_motion
from mgrpo.errors import InputError
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.runs.run_dir import RunDir

TINY = DenoiserConfig(
    d_latent=16, d_feedforward=32, d_noise_emb=8, num_heads=2, encoder_layers=1, decoder_layers=1, include_hands=False
)


@pytest.fixture(scope="module")
def body():
    return resolve_body("default", with_mesh=False).body_only()


@pytest.fixture(scope="module")
def looping(body):
    return next(clip for clip in load_motion("demo", body) if clip.loop)


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an untrained prior."""
    folder = tmp_path_factory.mktemp("sample") / "prior"
    with RunDir.create(folder, TINY) as run:
        run.save(1, model=Denoiser(TINY, seed=1), model_config=TINY)
    return folder


def test_a_clip_is_repeated_with_a_word_and_not_without_end(looping, body, capsys):
    own = len(looping)
    assert clip_window(looping, body, 1, own - 1).length == own - 1
    assert capsys.readouterr().err == ""
    assert clip_window(looping, body, 1, own + 5).length == own + 5
    assert f"'{looping.name}' has {own} frames and loops: it is repeated" in capsys.readouterr().err
    for start, length in ((1, LONGEST + own), (LONGEST + own, 2)):
        with pytest.raises(InputError, match=f"at most {LONGEST} frames are sampled in one piece"):
            clip_window(looping, body, start, length)


def test_frames_beyond_the_end_are_explained(looping, body):
    clip = replace(looping, loop=False)
    own = len(clip)
    assert clip_window(clip, body, own - 2, 0).length == 2
    with pytest.raises(InputError, match=rf"from --start {own - 1} to its end .* at most {own - 2}$"):
        clip_window(clip, body, own - 1, 0)
    with pytest.raises(InputError, match=rf"from --start {own + 9} to its end there are 0 frames"):
        clip_window(clip, body, own + 9, 0)
    with pytest.raises(InputError, match=rf"--length {own} ask for 2 to {own + 1}. At most --length {own - 2} fits"):
        clip_window(clip, body, 2, own)
    with pytest.raises(InputError, match=rf"--start can be at most {own - 4}$"):
        clip_window(clip, body, own - 1, 4)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--steps 1001", "--steps must be at most the 1000 noise levels of the model, got 1001"),
        ("--steps 3", "--eta, --steps: eta 0.8 is too large for kernel 'egoallo' with 3 steps"),
        ("--overlap 200", "--overlap 200 must be below the window of 128 frames"),
        ("--out FILE/x", "could not create the folder"),
        ("--checkpoint nowhere", "checkpoint not found: nowhere does not exist"),
    ],
)
def test_everything_is_checked_before_the_motion_is_touched(words, text, prior, tmp_path, monkeypatch, capsys):
    def untouchable(*_):
        raise AssertionError("the motion was loaded")

    monkeypatch.setattr(sample_command, "load_motion", untouchable)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    assert main(["sample", "--checkpoint", str(prior), *words.split()]) == 2
    assert text in capsys.readouterr().err


def test_slow_stages_are_shown(prior, tmp_path, monkeypatch, capsys):
    """What takes longer than two seconds says so while it lasts."""
    monkeypatch.setenv("MGRPO_PROGRESS", "plain:0.3")
    real = sample_command.clip_window

    def slow(*arguments):
        time.sleep(1.2)
        return real(*arguments)

    monkeypatch.setattr(sample_command, "clip_window", slow)
    words = ["--checkpoint", str(prior), "--length", "8", "--samples", "1", "--kernel", "ddim", "--steps", "2"]
    assert main(["sample", *words, "--no-picture", "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("load motion") for line in lines) >= 4
    assert any(line.startswith("write  done: 2 files") for line in lines)
