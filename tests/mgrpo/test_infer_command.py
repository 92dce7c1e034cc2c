"""`mgrpo infer` as a user types it: files in and out, what it says, what it refuses, interruption by a signal."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mgrpo.body import default_body
from mgrpo.cli import main
from mgrpo.eval.formats import ReadOptions, read_tracks
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.npz import read_npz
from mgrpo.runs.run_dir import RunDir
from tests.mgrpo import head_files as files

TINY = DenoiserConfig(
    d_latent=16, d_feedforward=32, d_noise_emb=8, num_heads=2, encoder_layers=1, decoder_layers=1, include_hands=True
)
QUICK = ["--kernel", "ddim", "--steps", "2", "--guidance.mode", "off"]


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an untrained prior with hands."""
    folder = tmp_path_factory.mktemp("infer") / "prior"
    with RunDir.create(folder, TINY) as run:
        run.save(1, model=Denoiser(TINY, seed=1), model_config=TINY)
    return folder


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Two seconds of OpenXR poses."""
    times = np.arange(120) / 60
    quats, places = files.y_up_viewer(files.head(times))
    return files.write_csv(tmp_path / "walk a.csv", "t,qw,qx,qy,qz,x,y,z", times, quats, places)


def infer(source: Path, prior: Path, out: Path, *words: str) -> int:
    return main(["infer", str(source), "--model", str(prior), "-o", str(out), *QUICK, *words])


def test_from_a_file_of_poses_to_a_body(
    recording: Path, prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    words = ["--axes", "openxr", "--samples", "2", "--amass", "--seed", "5"]
    assert infer(recording, prior, out, *words) == 0
    captured = capsys.readouterr()
    printed = [Path(line).name for line in captured.out.splitlines()]
    assert printed == [f"walk_a_1-59{end}" for end in (
        ".npz", "_sample0_amass.npz", "_sample1_amass.npz", "_args.yaml"
    )]  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == sorted(printed)
    assert "walk a: 120 poses in 2.0 s (60.0 per second), 59 frames" in captured.err
    (tracks,) = read_tracks(out / printed[0], ReadOptions(default_body()))
    assert tracks.format == "EgoAllo output" and tracks.samples == 2 and tracks.fps == 30 and len(tracks) == 59
    arrays = read_npz(out / printed[0], "result")
    files.same_poses(arrays["Ts_world_cpf"], files.head(np.arange(1, 60) / 30), atol=1e-3)
    (amass,) = read_tracks(out / printed[1], ReadOptions(default_body()))
    assert amass.format == "AMASS" and amass.fps == 30
    record = yaml.safe_load((out / "walk_a_1-59_args.yaml").read_text())
    assert record["options"]["seed"] == 5 and record["options"]["source"]["axes"] == "openxr"
    assert record["recording"]["floor_from"] == "world zero" and record["recording"]["stretches"] == [[1, 59]]
    assert record["model"]["step"] == 1 and len(record["model"]["weights_sha256"]) == 64
    assert record["provenance"]["command"][1] == "infer"
    before = (out / printed[0]).read_bytes()
    assert infer(recording, prior, out, *words) == 2, "nothing is replaced unasked"
    assert "exists already" in capsys.readouterr().err
    assert infer(recording, prior, out, *words, "--overwrite") == 0
    again = read_npz(out / printed[0], "result")
    assert all(np.array_equal(again[name], arrays[name]) for name in arrays) and before


def test_files_of_an_earlier_result_that_stay_are_named(
    recording: Path, prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two samples, then one in the same place: the second sample's file is no part of the new result."""
    words = ("--axes", "openxr", "--overwrite")
    assert infer(recording, prior, tmp_path / "o.npz", *words, "--samples", "2", "--amass") == 0
    (tmp_path / "o_sample1_mine_amass.npz").write_text("of another making")
    assert "of an earlier result" not in capsys.readouterr().err
    assert infer(recording, prior, tmp_path / "o.npz", *words, "--amass") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "of an earlier result and left as they were: o_sample0_amass.npz, o_sample1_amass.npz; delete them" in said
    assert (tmp_path / "o_sample1_amass.npz").exists()


def test_egoallos_checkpoint_is_taken(recording: Path, tmp_path: Path) -> None:
    """And gives what the same weights in a run folder give."""
    model = Denoiser(TINY, seed=1)
    model.save_egoallo(tmp_path / "egoallo", step=3_000_000)
    with RunDir.create(tmp_path / "prior", TINY) as run:
        run.save(1, model=model, model_config=TINY)
    for name in ("egoallo", "prior"):
        assert infer(recording, tmp_path / name, tmp_path / f"{name}.npz", "--axes", "openxr", "--window", "16") == 0
    first, second = (read_npz(tmp_path / f"{name}.npz", "result") for name in ("egoallo", "prior"))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert np.ptp(first["left_hand_quats"][..., 0]) > 0, "fingers come from the model"


def test_the_world_of_the_recording_is_kept(recording: Path, prior: Path, tmp_path: Path) -> None:
    assert infer(recording, prior, tmp_path / "a.npz", "--axes", "openxr", "--floor", "-0.5") == 0
    assert (
        infer(recording, prior, tmp_path / "b.npz", "--axes", "openxr", "--floor", "-0.5", "--world", "recording") == 0
    )
    a, b = (read_npz(tmp_path / name, "result") for name in ("a.npz", "b.npz"))
    assert np.allclose(a["Ts_world_cpf"][:, 6] - b["Ts_world_cpf"][:, 6], 0.5, atol=1e-6)
    assert np.allclose(a["Ts_world_root"][..., 6] - b["Ts_world_root"][..., 6], 0.5, atol=1e-6)
    assert np.array_equal(a["body_quats"], b["body_quats"])


def test_wrists_are_checked(prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = np.arange(60) / 30
    poses = files.head(times)
    wrist = poses[:, 4:] + [0.2, 0.3, -0.4]
    np.savez(tmp_path / "a.npz", t=times, T_world_cpf=poses, right_wrist=wrist)
    assert infer(tmp_path / "a.npz", prior, tmp_path / "out.npz", "--check-wrists") == 0
    assert "wrists against what was seen (0 left, 59 right frames): mean 0." in capsys.readouterr().out
    errors = json.loads((tmp_path / "out_wrists.json").read_text())
    assert errors["unit"] == "m" and 0.05 < errors["mean"] < 2 and "left" not in errors
    words = ["--check-wrists", "--guidance.mode", "aria_wrist_only", "--hide-wrists", "0.5"]
    assert infer(tmp_path / "a.npz", prior, tmp_path / "guided.npz", *words) == 0
    assert "where guidance was not told of them" in capsys.readouterr().out
    better = json.loads((tmp_path / "guided_wrists.json").read_text())
    assert better["mean"] < errors["mean"] and better["hidden"]["mean"] > better["mean"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--axes", "vive"], "there is no preset 'vive'"),
        ([], "name them by --axes"),
        (["--axes", "openxr", "--check-wrists"], "has no wrists or controllers"),
        (["--axes", "openxr", "--guidance.mode", "aria_wrist_only"], "has no tracked wrists"),
        (["--axes", "openxr", "--hide-wrists", "1"], "--hide-wrists 1 is for --check-wrists"),
        (["--axes", "openxr", "--start", "5", "--end", "4"], "--end must be above 5"),
        (["--axes", "openxr", "--start", "5"], "no stretch of three poses"),
        (["--axes", "openxr", "--max-gap", "0"], "--max-gap must be positive"),
        (["--axes", "openxr", "--chunk", "100"], "at least two windows long (256 frames), got --chunk 100"),
        (["--axes", "openxr", "--samples", "0"], "--samples must be at least 1"),
        (["--axes", "openxr", "--world", "moon"], "--world must be floor or recording"),
        (["--axes", "openxr", "--floor", "points"], "has no points"),
        (["--axes", "openxr", "--floor", "low"], "--floor must be auto"),
        (["--axes", "openxr", "--seed", "-1"], "--seed must be a whole number"),
        (["--axes", "openxr", "--body", "nobody"], "unknown body 'nobody'"),
        (["--axes", "openxr", "--hamer", "none.npz", "--check-wrists"], "none.npz: no such file"),
        (["--axes", "openxr", "--wrists", "none.csv"], "none.csv: no such file"),
        (["--axes", "openxr", "--time-unit", "ms"], "if it is longer in truth, its times have another unit"),
    ],
)
def test_what_is_refused_before_the_work(
    words: list[str], said: str, recording: Path, prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer(recording, prior, tmp_path / "new" / "out.npz", *words) == 2
    error = " ".join(capsys.readouterr().err.split())  # however wide the terminal is
    assert said in error and "Traceback" not in error
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("out.mp4", "expected an .npz file or a folder"),
        ("walk.npz", "is the recording itself"),
        ("prior/x.npz", "folder of a training run"),
    ],
)
def test_places_that_cannot_be_written_to(
    out: str, said: str, prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = np.arange(60) / 30
    np.savez(tmp_path / "walk.npz", t=times, T_world_cpf=files.head(times))
    place = prior / "x.npz" if out.startswith("prior") else tmp_path / out
    before = (tmp_path / "walk.npz").read_bytes()
    assert infer(tmp_path / "walk.npz", prior, place, "--overwrite") == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "walk.npz").read_bytes() == before


def test_what_stands_beside_a_result_is_not_replaced_unasked(
    recording: Path, prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options, AMASS files and the check of the wrists belong to --overwrite as the result itself does."""
    for name in ("o_args.yaml", "o_amass.npz"):
        (tmp_path / name).write_text("mine")
        assert infer(recording, prior, tmp_path / "o.npz", "--axes", "openxr", "--amass") == 2
        assert f"{name} exists already; give another file, or --overwrite" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == "mine" and not (tmp_path / "o.npz").exists()
        (tmp_path / name).unlink()
    (tmp_path / "o_amass.npz").mkdir()
    assert infer(recording, prior, tmp_path / "o.npz", "--axes", "openxr", "--amass", "--overwrite") == 2
    assert "o_amass.npz is a folder" in capsys.readouterr().err
    assert infer(recording, prior, tmp_path / "o.npz", "--axes", "openxr") == 0, "without --amass it is in nobody's way"
    recording.rename(tmp_path / "p_amass.npz")
    np.savez(tmp_path / "p_amass.npz", t=np.arange(60) / 30, T_world_cpf=files.head(np.arange(60) / 30))
    assert infer(tmp_path / "p_amass.npz", prior, tmp_path / "p.npz", "--amass", "--overwrite") == 2
    assert "p_amass.npz is the recording itself" in capsys.readouterr().err


def test_a_folder_may_have_a_dot_in_its_name(recording: Path, prior: Path, tmp_path: Path) -> None:
    (tmp_path / "results.v2").mkdir()
    assert infer(recording, prior, tmp_path / "results.v2", "--axes", "openxr") == 0
    assert len(list((tmp_path / "results.v2").iterdir())) == 2


def test_files_of_a_result_appear_together_or_not_at_all(
    recording: Path, prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that is full after the first of them leaves the files of the call before, all of them; the chunks stay."""
    from mgrpo.commands import infer as command

    out = tmp_path / "results" / "o.npz"
    assert infer(recording, prior, out, "--axes", "openxr", "--amass") == 0
    before = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    capsys.readouterr()

    def full(place: Path, arrays: Any) -> None:
        place.write_bytes(b"a part")
        raise OSError(errno.ENOSPC, "No space left on device")

    words = ["--axes", "openxr", "--amass", "--seed", "7", "--overwrite"]
    with monkeypatch.context() as patched:
        patched.setattr(command, "pack_npz", full)
        assert infer(recording, prior, out, *words) == 2
    error = capsys.readouterr().err
    assert "the disk is full" in error
    assert "1 chunk(s) are kept beside" in error and ".o.npz.partial; the same command continues there" in error
    kept = {path.name: path.read_bytes() for path in out.parent.iterdir() if path.is_file()}
    assert kept == before
    assert infer(recording, prior, out, *words) == 0
    assert "continuing: 1 chunk(s)" in capsys.readouterr().err
    assert not list(out.parent.glob(".*"))
    assert yaml.safe_load((out.parent / "o_args.yaml").read_text())["options"]["seed"] == 7


def test_sources_that_are_not_there(prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert infer(tmp_path / "none", prior, tmp_path / "o.npz") == 2
    assert "no such file or folder; expected a recording" in capsys.readouterr().err
    assert infer(tmp_path, prior, tmp_path / "o.npz") == 2
    assert "no closed_loop_trajectory.csv" in capsys.readouterr().err


def test_a_signal_keeps_what_is_done_and_nothing_else(prior: Path, tmp_path: Path) -> None:
    """SIGINT in a second process between chunks: no file, the chunks kept; the same command ends the job."""
    times = np.arange(2000) / 30
    np.savez(tmp_path / "long.npz", t=times, T_world_cpf=files.head(times))
    out = tmp_path / "out.npz"
    words = [
        "infer",
        str(tmp_path / "long.npz"),
        "--model",
        str(prior),
        "-o",
        str(out),
        "--chunk",
        "64",
        "--window",
        "32",
    ]
    words += ["--guidance.mode", "off", "--kernel", "ddim", "--steps", "8"]
    environment = {**os.environ, "MGRPO_PROGRESS": "plain:0.3", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mgrpo", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        # Where the tests run in the background of a shell, SIGINT is ignored, also by what they start.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    finished = tmp_path / ".out.npz.partial" / "done.json"
    deadline = time.monotonic() + 90
    while not finished.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "the same command continues there" in error and not out.exists()
    kept = len(json.loads(finished.read_text())["chunks"])
    assert 0 < kept < 55
    done = subprocess.run(
        [sys.executable, "-m", "mgrpo", *words], capture_output=True, text=True, env=environment, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert f"continuing: {kept} chunk(s)" in done.stderr
    assert read_npz(out, "result")["betas"].shape == (1, 1999, 16)
    assert not list(tmp_path.glob(".out*"))


def test_slow_stages_are_shown(recording: Path, prior: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    from mgrpo.commands import infer as command

    monkeypatch.setenv("MGRPO_PROGRESS", "plain:0.3")
    real = command.load_trajectory

    def slow(*arguments: Any) -> Any:
        time.sleep(1.2)
        return real(*arguments)

    monkeypatch.setattr(command, "load_trajectory", slow)
    assert infer(recording, prior, tmp_path / "o.npz", "--axes", "openxr") == 0
    assert sum(line.startswith("read recording") for line in capsys.readouterr().err.splitlines()) >= 4


# --- real recordings


@pytest.mark.parametrize("name", ["dev-recording", "grabLeft"])
def test_real_vr_recordings(name: str, prior: Path, tmp_path: Path, shared_data_dir: Path, capsys: Any) -> None:
    path = shared_data_dir / "head" / f"{name}.json"
    if not path.exists():
        pytest.skip("no VR recordings there")
    assert infer(path, prior, tmp_path / "o.npz", "--check-wrists", "--end", "4") == 0
    captured = capsys.readouterr()
    assert "WARNING" not in captured.err and "after the best constant offset of each controller" in captured.out
    errors = json.loads((tmp_path / "o_wrists.json").read_text())
    assert errors["frames"]["left"] > 100 and errors["fitted"] < errors["mean"] < 1.5


def test_the_real_aria_folder(prior: Path, tmp_path: Path, shared_data_dir: Path, capsys: Any) -> None:
    folder = shared_data_dir / "head"
    if not (folder / "closed_loop_trajectory.csv").exists():
        pytest.skip("no Aria recording there")
    assert infer(folder, prior, tmp_path / "o.npz") == 0
    assert "floor at -1.491 m (points)" in capsys.readouterr().err
    arrays = read_npz(tmp_path / "o.npz", "result")
    assert arrays["Ts_world_cpf"].shape == (341, 7)
    assert 1.3 < np.median(arrays["Ts_world_cpf"][:, 6]) < 1.8
    assert arrays["timestamps_ns"][0] == 149_202_610_000 + 33_333_333


# --- HaMeR


def test_hamers_wrists_are_checked_and_drawn_to(prior: Path, tmp_path: Path, capsys: Any) -> None:
    """A camera at the eyes that looks ahead (x left turned to x right: half a turn about z), a wrist 0.5 m ahead."""
    from mgrpo.infer.hamer import HamerDetections, HamerHands, hamer_arrays

    times = np.arange(60) / 30
    stamps = np.rint(times * 1e9).astype(np.int64)
    np.savez(tmp_path / "a.npz", timestamps_ns=stamps, T_world_cpf=files.head(times))
    points = np.zeros((60, 21, 3))
    points[:, 0] = [0.2, 0.3, 0.5]  # right, down, ahead
    eye = np.eye(3)
    seen = HamerHands(
        stamps, np.arange(60), points, np.tile(eye, (60, 15, 1, 1)), np.tile(eye, (60, 1, 1)), np.zeros((60, 10))
    )
    none = HamerHands(stamps, np.zeros(0, np.int64), *(value[:0] for value in seen[2:]))
    camera = np.array([0.0, 0, 0, 1, 0, 0, 0])
    np.savez(tmp_path / "h.npz", **hamer_arrays(HamerDetections((none, seen), camera, camera)))
    words = ["--hamer", str(tmp_path / "h.npz")]
    assert infer(tmp_path / "a.npz", prior, tmp_path / "x.npz", *words) == 2
    assert "nothing here uses" in " ".join(capsys.readouterr().err.split())
    errors = []
    for name, mode in (("b", "off"), ("c", "hamer_wrist")):
        more = [*words, "--check-wrists", "--guidance.mode", mode]
        assert infer(tmp_path / "a.npz", prior, tmp_path / f"{name}.npz", *more) == 0
        errors.append(json.loads((tmp_path / f"{name}_wrists.json").read_text()))
    assert errors[0]["frames"] == {"left": 0, "right": 59}
    assert errors[1]["mean"] < 0.35 * errors[0]["mean"]
    from mgrpo.infer.guiding import hamer_wrists
    from mgrpo.infer.pipeline import prepare
    from mgrpo.infer.source import SourceConfig, load_trajectory

    prepared = prepare(load_trajectory(tmp_path / "a.npz", SourceConfig(hamer=tmp_path / "h.npz")))
    assert prepared.trajectory.hamer is not None
    places = hamer_wrists(prepared.trajectory.hamer, prepared.motions[0])
    R = files.as_matrices(prepared.motions[0].T_world_cpf)
    wanted = R[:, :3, 3] + R[:, :3, :3] @ np.array([-0.2, -0.3, 0.5])  # x is left, y is up
    assert np.allclose(places[:, 1], wanted, atol=1e-6) and np.isnan(places[:, 0]).all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--guidance.inner"], "--guidance.inner has no effect with --guidance.mode off"),
        (["--guidance.mode", "no_hands", "--guidance.inner-iterations", "3"], "without --guidance.inner"),
        (["--guidance.mode", "no_hands", "--guidance.hamer-wrist-position", "3"], "doesn't take HaMeR's wrists"),
    ],
)
def test_options_without_effect(words: list[str], said: str, recording: Path, prior: Path, tmp_path: Path, capsys: Any):
    assert infer(recording, prior, tmp_path / "o.npz", "--axes", "openxr", *words) == 2
    assert said in capsys.readouterr().err
