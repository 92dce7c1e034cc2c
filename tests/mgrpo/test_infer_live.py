"""Live sampling: what comes out when, that it goes on where it stood, and the command."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgrpo.body import resolve_body
from mgrpo.cli import main
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.diffusion.stitching import Stitching
from mgrpo.diffusion.transition import make_transitions
from mgrpo.errors import InputError
from mgrpo.infer.live import LiveFrames, LiveInference
from mgrpo.infer.sampling import SamplingSettings
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.train.run_dir import RunDir

_spec = importlib.util.spec_from_file_location("head_files", Path(__file__).with_name("head_files.py"))
assert _spec is not None and _spec.loader is not None
files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(files)

TINY = DenoiserConfig(
    d_latent=16, d_feedforward=32, d_noise_emb=8, num_heads=2, encoder_layers=1, decoder_layers=1, include_hands=False
)
STEPS = make_transitions("ddim", eta=0.8, steps=2, schedule=CosineSchedule.make(1000))


def live(hop: int = 4, lookahead: int = 2, window: int = 16, **options: Any) -> LiveInference:
    settings = SamplingSettings(STEPS, Stitching("proper", window, 4), samples=2)
    body = resolve_body("default", with_mesh=False)
    return LiveInference(Denoiser(TINY, seed=1).eval(), body, settings, hop=hop, lookahead=lookahead, **options)


def fed(inference: LiveInference, times: np.ndarray) -> list[tuple[float, LiveFrames]]:
    """What comes out, and when."""
    poses = files.head(times)
    result = []
    for moment, pose in zip(times, poses):
        result += [(moment, part) for part in inference.push(round(moment * 1e9), pose)]
    return result + [(times[-1], part) for part in inference.flush()]


@pytest.mark.parametrize("rate", [30.0, 90.0])
def test_every_frame_comes_once_and_within_its_delay(rate: float) -> None:
    inference = live()
    times = np.arange(int(3 * rate) + 1) / rate
    out = fed(inference, times)
    numbers = np.concatenate([part.frame_nums for _, part in out])
    assert numbers.tolist() == list(range(1, 91))
    shortest, longest = inference.latency_s
    assert (shortest, longest) == (2 / 30, 5 / 30)
    for moment, part in out[:-1]:
        delays = moment - part.times_ns / 1e9
        assert len(part.frame_nums) == 4
        assert delays.min() >= shortest - 1e-6 and delays.max() <= longest + 1 / rate + 1e-6
    poses = np.concatenate([part.T_world_cpf for _, part in out])
    files.same_poses(poses, files.head(numbers / 30), atol=1e-3)
    assert out[0][1].motion.joints22.shape == (1, 2, 4, 22, 3)


def test_it_goes_on_where_it_stood() -> None:
    """What was handed out enters the next window as known: its states there are the same."""
    inference = live(window=16)
    times = np.arange(61) / 30
    before: torch.Tensor | None = None
    for moment, pose in zip(times, files.head(times)):
        for part in inference.push(round(moment * 1e9), pose):
            states, start = inference._states, inference._start
            assert states is not None and states.shape[1] <= 16
            if before is not None:
                done = part.frame_nums[0] - start
                old = before[0][:, start - before[1] :][:, :done]
                assert done > 0 and torch.allclose(states[:, :done], old, atol=1e-5)
            before = (states.clone(), start)  # type: ignore[assignment]
    assert len(inference._poses) <= 16 + 1 + 4 + 2, "memory stays bounded"


def test_a_gap_begins_anew() -> None:
    times = np.concatenate((np.arange(20) / 30, 1.01 + np.arange(20) / 30))
    out = fed(live(), times)
    numbers = np.concatenate([part.frame_nums for _, part in out]).tolist()
    assert numbers == [*range(1, 20), *range(32, 50)], "frame 31 lends its pose"
    poses = np.concatenate([part.T_world_cpf for _, part in out])
    files.same_poses(poses, files.head(np.array(numbers) / 30), atol=1e-3)


def test_poses_that_are_late_or_none() -> None:
    inference = live()
    pose = files.head(np.zeros(1))[0]
    assert list(inference.push(1_000_000_000, pose)) == [] and list(inference.flush()) == []
    assert list(inference.push(900_000_000, pose)) == [], "passed over"
    for bad in (pose[:6], pose * np.nan, pose * 2):
        with pytest.raises(InputError, match="a pose must be 7 finite numbers"):
            list(inference.push(2_000_000_000, bad))
    with pytest.raises(InputError, match="--hop 12 and --lookahead 4 must be together less than the window of 16"):
        live(hop=12, lookahead=4)


def test_the_floor_is_taken_off() -> None:
    out = fed(live(floor_m=0.5), np.arange(31) / 30)
    assert np.allclose(out[0][1].T_world_cpf[:, 6], files.head(np.arange(1, 5) / 30)[:, 6] - 0.5, atol=1e-6)


# --- the command


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live") / "prior"
    with RunDir.create(folder, TINY) as run:
        run.save(1, model=Denoiser(TINY, seed=1), model_config=TINY)
    return folder


class Stdin:
    def __init__(self, text: str) -> None:
        self.buffer = io.BytesIO(text.encode())


def command(prior: Path, text: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.stdin", Stdin(text))
    quick = ["--kernel", "ddim", "--steps", "2", "--window", "16", "--hop", "4"]
    return main(["live", "--model", str(prior), *quick, *words])


def test_lines_in_and_lines_out(prior: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    times = np.arange(40) / 30
    quats, places = files.y_up_viewer(files.head(times))
    rows = np.concatenate((times[:, None] * 1000, quats[:, [1, 2, 3, 0]], places), axis=1)
    text = "\n".join(", ".join(f"{value:.9f}" for value in row) for row in rows) + "\n\n"
    words = ["--axes", "openxr", "--time-unit", "ms", "--quaternion", "xyzw", "--samples", "2"]
    assert command(prior, text, monkeypatch, *words) == 0
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["frame"] for line in lines] == list(range(1, 40))
    files.same_poses(np.array([line["T_world_cpf"] for line in lines]), files.head(times[1:]), atol=1e-4)
    first = lines[0]["samples"]
    assert len(first) == 2 and np.array(first[0]["joints"]).shape == (22, 3)
    assert np.array(first[1]["body_quats"]).shape == (21, 4)
    assert "delay: 0.13 to 0.23 s, and " in captured.err and "39 frames (1.3 s)" in captured.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 1 0 0 0 0 0\n", "line 1: 7 values; expected t, qw"),
        ("0 1 0 0 0 0 0 1\n\n1 a 0 0 0 0 0 1\n", "line 3: could not convert string"),
        ("0 1 0 0 0 0 0 nan\n", "line 1: not finite"),
        ("0 2 0 0 0 0 0 1\n", "line 1: the quaternion has length 2.0000"),
        ("0 " * 3000, "line 1: longer than 4096 bytes"),
        ("9" * 40 + " 1 0 0 0 0 0 1\n", "line 1: times reach"),
    ],
)
def test_lines_that_are_no_poses(text: str, said: str, prior: Path, monkeypatch: Any, capsys: Any) -> None:
    assert command(prior, text, monkeypatch, "--axes", "cpf") == 2
    assert said in capsys.readouterr().err


def test_options_that_cannot_be(prior: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert command(prior, "", monkeypatch, "--axes", "none") == 2
    assert command(prior, "", monkeypatch, "--axes", "cpf", "--lookahead", "13") == 2
    assert "less than the window of 16" in capsys.readouterr().err
    assert command(prior, "", monkeypatch, "--axes", "cpf") == 0, "nothing in, nothing out"
    assert capsys.readouterr().out == ""
