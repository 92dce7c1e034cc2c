"""Live sampling: what comes out when, that it goes on where it stood, and the command."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgrpo.body import resolve_body
from mgrpo.body.placement import cpf_of, place_on_root
from mgrpo.cli import main
from mgrpo.data import load_motion
from mgrpo.data.clip import MotionClip
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.diffusion.stitching import Stitching
from mgrpo.diffusion.transition import make_transitions
from mgrpo.errors import InputError
from mgrpo.geometry import axis_angle_to_quat, quat_multiply, quat_to_rotmat
from mgrpo.guidance import GuidanceConfig, SamplingGuidance
from mgrpo.infer.live import LiveFrames, LiveInference
from mgrpo.infer.sampling import SamplingSettings
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.motion import decode_motion
from mgrpo.models.state import pack_state
from mgrpo.runs.run_dir import RunDir
from tests.mgrpo import head_files as files

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


# --- guidance


class Wobbling(Denoiser):
    """Predicts a clip of which it knows everything, with joints that sway: otherwise in every window and sample."""

    inference: LiveInference | None = None
    """Who asks; of the class, since what is prepared for inference may be a copy."""

    def __init__(self, clip: MotionClip) -> None:
        super().__init__(TINY, seed=1)
        self.clip = clip

    def decode(self, x_t: torch.Tensor, t: torch.Tensor, memory: Any) -> torch.Tensor:
        samples, frames = x_t.shape[1:3]
        assert self.inference is not None
        part = slice(self.inference._next - frames, self.inference._next)
        generator = torch.Generator().manual_seed(self.inference._runs)
        phase, size = (torch.rand(samples, 1, 21, 3, generator=generator) for _ in range(2))
        sway = 0.1 * (size - 0.5) * torch.sin(0.15 * torch.arange(frames)[:, None, None] + 6.3 * phase)
        quats = quat_multiply(self.clip.body_quats[part].expand(samples, -1, -1, -1), axis_angle_to_quat(sway))
        contacts = self.clip.contacts[part].expand(samples, -1, -1)
        return pack_state(self.layout, self.clip.betas, quat_to_rotmat(quats), contacts)[None]


def sway(clip: MotionClip, guidance: GuidanceConfig) -> tuple[LiveInference, list[LiveFrames]]:
    """What comes out of a clip's head, live."""
    body = resolve_body("default", with_mesh=False)
    betas = clip.betas.expand(len(clip), -1)
    placed = place_on_root(body, quat_to_rotmat(clip.body_quats), betas, clip.T_world_root)
    model = Wobbling(clip).eval()
    settings = SamplingSettings(STEPS, Stitching("proper", 32, 4), samples=2)
    Wobbling.inference = inference = LiveInference(model, body, settings, guidance=guidance, hop=8, lookahead=4)
    out = []
    for frame, pose in enumerate(cpf_of(body, placed, betas).double().numpy()):
        out += list(inference.push(round(frame * 1e9 / 30), pose))
    return inference, out + list(inference.flush())


def sliding_mm(parts: list[LiveFrames], seams: bool) -> float:
    """How far standing feet slide from frame to frame on average, between windows or within them."""
    joints = torch.cat([part.motion.joints22 for part in parts], dim=2)[0]
    contacts = torch.cat([part.motion.contacts for part in parts], dim=2)[0]
    steps = joints[:, 1:, [7, 8, 10, 11]] - joints[:, :-1, [7, 8, 10, 11]]
    stands = (contacts[:, 1:] + contacts[:, :-1])[..., [6, 7, 9, 10]] > 1.2
    between = torch.zeros(steps.shape[1], dtype=torch.bool)
    between[np.cumsum([len(part.frame_nums) for part in parts])[:-1] - 1] = True
    chosen = stands & (between if seams else ~between)[:, None]
    assert chosen.sum() > 15
    return 1000 * steps.norm(dim=-1)[chosen].mean().item()


@pytest.fixture(scope="module")
def punch() -> MotionClip:
    """Two seconds of somebody whose feet stand most of the time."""
    return next(clip for clip in load_motion("demo", resolve_body("default", with_mesh=False)) if clip.name == "punch")


@pytest.mark.parametrize("inner", [False, True])
def test_feet_stand_also_from_window_to_window(punch: MotionClip, inner: bool) -> None:
    """Guidance goes on from the frames that were handed out: without that, a foot jumps to where the new window has
    it."""
    _, plain = sway(punch, GuidanceConfig("off"))
    _, guided = sway(punch, GuidanceConfig(inner=inner))
    for seams in (True, False):
        assert sliding_mm(guided, seams) < 0.25 * sliding_mm(plain, seams)
    assert sliding_mm(guided, True) < 1.5 * sliding_mm(guided, False)
    assert [len(part.frame_nums) for part in guided] == [len(part.frame_nums) for part in plain]


def test_guidance_leaves_what_was_handed_out(punch: MotionClip) -> None:
    inference, parts = sway(punch, GuidanceConfig())
    last = inference._states
    assert last is not None
    kept = decode_motion(inference.denoiser.layout, last[None], torch.zeros(1, 1, 1, 7), inference.body).body_rotmats[
        0, :, : -len(parts[-1].frame_nums)
    ]
    given = torch.cat([part.motion.body_rotmats for part in parts[:-1]], dim=2)[0, :, -kept.shape[1] :]
    assert kept.shape[1] > 10 and torch.allclose(kept, given, atol=1e-5)


@pytest.mark.parametrize(("mode", "needed"), [("aria_wrist_only", "tracked wrists"), ("hamer_wrist", "HaMeR's hands")])
def test_hands_are_not_live(mode: str, needed: str) -> None:
    with pytest.raises(InputError, match=f"mode {mode} needs {needed}, .* take no_hands or off, .* use mgrpo infer"):
        live(guidance=GuidanceConfig(mode))  # type: ignore[arg-type]


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
    assert "the longest window took 0." in captured.err and "one is due every 0.13 s" in captured.err


def test_a_header_is_no_pose(prior: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    row = "1 0 0 0 0 1.6 0"
    text = "T, qw, qx, qy, qz, x, y, z\n\n" + "".join(f"{frame / 30} {row}\n" for frame in range(9)) + "bad\n"
    assert command(prior, text, monkeypatch, "--axes", "openxr") == 2
    captured = capsys.readouterr()
    assert captured.out and "error: line 12: 1 values" in captured.err
    assert command(prior, text, monkeypatch, "--axes", "openxr", "--quaternion", "xyzw") == 2
    assert "line 1: could not convert string to float: 'qw'" in capsys.readouterr().err


def test_times_that_cannot_be_used_are_told(prior: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A clock that was set back, or a wrong unit, would else give no motion without a word."""
    row = "1 0 0 0 0 1.6 0"
    text = "\n".join(f"{100 - line if line in (4, 6) else line / 30} {row}" for line in range(9))
    assert command(prior, f"\n{text}", monkeypatch, "--axes", "openxr") == 0
    told = capsys.readouterr().err
    assert "WARNING: line 7: its time is before that of an earlier line; it is passed over" in told
    assert told.count("it is passed over") == 1, "the first one"
    assert "4 poses passed over, which came late" in told
    text = "\n".join(f"{16.7 * line} {row}" for line in range(5))
    assert command(prior, text, monkeypatch, "--axes", "openxr") == 0
    told = capsys.readouterr().err
    assert "line 2: more than 0.2 s (--max-gap) after the pose before; motion begins anew." in told
    assert told.count("WARNING") == 1 and "give --time-unit" in told
    assert "; 4 gaps" in told and "passed over" not in told
    text = "\n".join(f"{line // 2 / 30} {row}" for line in range(20))
    assert command(prior, text, monkeypatch, "--axes", "openxr") == 0
    told = capsys.readouterr().err
    assert "WARNING" not in told and "gaps" not in told and "passed over" not in told, "a pose that is written twice"


def test_guidance_is_on_unless_it_is_not_wanted(prior: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    times = np.arange(20) / 30
    text = "\n".join(" ".join(map(str, (t, *pose))) for t, pose in zip(times, files.head(times)))
    calls: list[str] = []
    real = SamplingGuidance.guided
    monkeypatch.setattr(
        SamplingGuidance, "guided", lambda self, x, phase, held=0: calls.append(phase) or real(self, x, phase, held)
    )
    out = []
    for words in ([], ["--guidance.inner"], ["--guidance.mode", "off"]):
        calls.clear()
        assert command(prior, text, monkeypatch, "--axes", "cpf", *words) == 0
        out.append((set(calls), capsys.readouterr().out))
    assert [phases for phases, _ in out] == [{"post"}, {"inner", "post"}, set()]
    assert out[0][1] != out[2][1]
    assert command(prior, text, monkeypatch, "--axes", "cpf", "--guidance.mode", "aria_hamer") == 2
    assert "--guidance.mode aria_hamer needs tracked wrists" in " ".join(capsys.readouterr().err.split())
    assert command(prior, text, monkeypatch, "--axes", "cpf", "--guidance.inner-iterations", "2") == 2
    assert "has no effect without --guidance.inner" in " ".join(capsys.readouterr().err.split())


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
