"""Export: what is written is read back as it was, by our readers and by others; what can't be written is refused."""

from __future__ import annotations

import csv
import importlib.util
import io
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mgrpo import cli, geometry
from mgrpo.body import default_body
from mgrpo.body.placement import place_on_root
from mgrpo.commands.export import recorded_body
from mgrpo.data import MotionClip, save_clip
from mgrpo.data.amass.recording import read_recording
from mgrpo.errors import InputError
from mgrpo.eval.formats import ReadOptions, RotationMotion, read_motions
from mgrpo.export import TARGETS, FileFrame, write_amass, write_csv, write_egoallo, write_smpl
from mgrpo.export.motion import continuous_signs
from mgrpo.npz import write_npz
from tests.mgrpo.export.export_motion import TO_Y_UP, make_motion

OTHER = replace(default_body(), name="smplh", J_template=default_body().J_template + torch.tensor([0.02, -0.22, 0.03]))
"""Stands for SMPL-H: shape numbers that count, and a rest pelvis that is not at the origin."""


def angle(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(geometry.geodesic_angle(geometry.quat_to_rotmat(a), geometry.quat_to_rotmat(b)).max())


# --- the motion


def test_signs_become_continuous() -> None:
    motion = make_motion(200)
    signs = (motion.local_quats[1:] * motion.local_quats[:-1]).sum(-1)
    assert bool((signs < 0).any())  # or this would show nothing
    quats = continuous_signs(motion.local_quats)
    assert bool(((quats[1:] * quats[:-1]).sum(-1) >= 0).all()) and bool((quats[0, :, 0] >= 0).all())
    assert angle(quats, motion.local_quats) < 1e-7


def test_another_rate() -> None:
    motion = make_motion(31)
    double, said = motion.at_even_rate(60.0)
    assert len(double) == 61 and double.fps == 60.0 and "31 frames at 30 per second brought to 61 at 60" in said
    assert angle(double.local_quats[::2], motion.local_quats) < 1e-6
    assert float((double.T_world_root[::2, 4:] - motion.T_world_root[:, 4:]).abs().max()) < 1e-12
    halfway = geometry.geodesic_angle(*(geometry.quat_to_rotmat(double.local_quats[i::2][:30]) for i in (0, 1)))
    whole = geometry.geodesic_angle(*(geometry.quat_to_rotmat(motion.local_quats[i : i + 30]) for i in (0, 1)))
    torch.testing.assert_close(2 * halfway, whole, atol=1e-6, rtol=1e-6)
    assert double.frame_nums[0] == 120 and double.times[-1] == motion.times[-1]
    third, _ = motion.at_even_rate(10.0)
    assert len(third) == 11 and angle(third.local_quats, motion.local_quats[::3]) < 1e-6
    same, said = motion.at_even_rate()
    assert said == "" and angle(same.local_quats, motion.local_quats) < 1e-12


def test_gaps_are_filled_and_told() -> None:
    motion = make_motion(31)
    keep = torch.tensor([*range(10), *range(16, 31)])
    parts = {
        name: getattr(motion, name)[keep]
        for name in ("T_world_root", "local_quats", "betas", "times", "frame_nums", "contacts")
    }
    holed = replace(motion, **parts)
    even, said = holed.at_even_rate()
    assert len(even) == 31 and "1 gap(s) of up to 0.23 s filled" in said
    assert angle(even.local_quats[16:], motion.local_quats[16:]) < 1e-6
    between = torch.lerp(motion.T_world_root[9, 4:], motion.T_world_root[16, 4:], 3 / 7)
    torch.testing.assert_close(even.T_world_root[12, 4:], between)


def test_stamps_that_tremble_are_no_gaps() -> None:
    motion = make_motion(31)
    wobble = 0.0008 * torch.sin(torch.arange(31, dtype=torch.float64))
    even, said = replace(motion, times=motion.times + wobble).at_even_rate()
    assert said == "" and angle(even.local_quats, motion.local_quats) < 1e-12  # nothing was interpolated
    assert float((even.times.diff() - 1 / 30).abs().max()) < 1e-9


def test_one_shape_is_the_mean_and_tells_what_it_moves() -> None:
    motion = make_motion(10)
    assert motion.with_one_shape() == (motion, 0.0)
    betas = motion.betas.clone()
    betas[5:, 0] += 1.0
    one, moved = replace(motion, betas=betas).with_one_shape()
    torch.testing.assert_close(one.betas[0], one.betas[9])
    torch.testing.assert_close(one.betas[0, 0], motion.betas[0, 0] + 0.5)
    assert 0.005 < moved < 0.1
    changed = replace(motion, betas=betas)
    torch.testing.assert_close(one.head_trajectory(), changed.head_trajectory())  # the head is what was recorded
    assert float((one.placed().joints - changed.placed().joints).norm(dim=-1).max()) == pytest.approx(moved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"local_quats": torch.zeros(3, 21, 4)}, "length zero, first in frame 0"),
        ({"local_quats": torch.ones(3, 30, 4)}, r"J = 21 or 51 joints of body 'default', got \(3, 30, 4\)"),
        ({"betas": torch.full((3, 16), torch.nan)}, "betas is not finite"),
        ({"contacts": torch.zeros(2, 21)}, r"contacts must have shape \(3, 21\)"),
        ({"times": torch.tensor([0.0, 0.2, 0.1])}, "times must rise"),
        ({"frame_nums": torch.tensor([4, 5, 5])}, "frame_nums must rise as times do"),
        ({"fps": 0.0}, "frame rate must be 0.1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_motion_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(make_motion(3, joints=21), **change)


def test_too_many_frames_are_refused_before_they_are_made() -> None:
    motion = replace(make_motion(2, joints=21), times=torch.tensor([0.0, 1e9], dtype=torch.float64))
    with pytest.raises(InputError, match="at most 1000000 are written"):
        motion.at_even_rate()


# --- the formats


def read_one(path: Path, body: object) -> RotationMotion:
    (found,) = read_motions(path, ReadOptions(body=body))
    assert isinstance(found, RotationMotion)
    return found


@pytest.mark.parametrize("joints", [21, 51])
def test_amass_is_read_back(tmp_path: Path, joints: int) -> None:
    motion = replace(make_motion(joints=joints, body=OTHER), gender="female")
    path = tmp_path / "walk_poses.npz"
    write_amass(path, motion)
    with np.load(path, allow_pickle=False) as archive:
        shapes = {name: archive[name].shape for name in archive.files}
        assert shapes == {
            "trans": (40, 3), "gender": (), "mocap_framerate": (), "betas": (16,), "dmpls": (40, 8), "poses": (40, 156),
        }  # fmt: skip
        assert archive["gender"] == "female"
    found = read_one(path, OTHER)
    assert found.fps == 30.0 and found.gender == "female"
    placed = found.placed()
    assert float((placed.joints[0] - motion.placed().joints[:, :22]).abs().max()) < 1e-6
    assert found.hand_quats is not None
    if joints == 51:
        assert angle(found.hand_quats[0], motion.local_quats[:, 21:]) < 1e-6
    else:
        assert bool((found.hand_quats[..., 0] == 1).all())
    recording = read_recording(path)  # as the preparation of AMASS reads it
    assert recording.poses.shape == (40, 52, 3) and recording.fps == 30.0 and recording.gender == "female"
    np.testing.assert_allclose(recording.betas, motion.betas[0].numpy())


def test_trans_is_the_pelvis_minus_the_rest_pelvis_of_the_shape(tmp_path: Path) -> None:
    """SMPL turns the body about its rest pelvis, which lies elsewhere for each shape."""
    motion = make_motion(3, body=OTHER)
    write_amass(tmp_path / "a_poses.npz", motion)
    with np.load(tmp_path / "a_poses.npz") as archive:
        rest = OTHER.to(dtype=torch.float64).rest_joints(motion.betas[0])[0].numpy()
        assert np.abs(rest).max() > 0.1
        np.testing.assert_allclose(archive["trans"] + rest, motion.T_world_root[:, 4:].numpy(), atol=1e-12)


def test_the_default_bodys_shape_is_not_smpls(tmp_path: Path) -> None:
    motion = make_motion(3)
    write_amass(tmp_path / "a_poses.npz", motion)
    with np.load(tmp_path / "a_poses.npz") as archive:
        assert not archive["betas"].any()
        np.testing.assert_allclose(archive["trans"], motion.T_world_root[:, 4:].numpy(), atol=1e-6)


@pytest.mark.parametrize("up", ["y", "z"])
def test_smpl_is_read_back_by_smplcodec(tmp_path: Path, up: str) -> None:
    codec = pytest.importorskip("smplcodec.codec")
    motion = make_motion(body=OTHER)
    write_smpl(tmp_path / "a.smpl", motion, FileFrame(up, "m"))
    found = codec.SMPLCodec.from_file(str(tmp_path / "a.smpl"))
    assert found.smpl_version == codec.SMPLVersion.SMPLH and found.gender == codec.SMPLGender.NEUTRAL
    assert found.frame_count == 40 and found.frame_rate == 30.0
    assert found.full_pose.shape == (40, 52, 3)
    quats = geometry.axis_angle_to_quat(torch.from_numpy(found.full_pose.astype(np.float64)))
    betas = torch.from_numpy(found.shape_parameters.astype(np.float64))
    body = OTHER.to(dtype=torch.float64)
    pelvis = torch.from_numpy(found.body_translation.astype(np.float64)) + body.rest_joints(betas)[0]
    rotmats = geometry.quat_to_rotmat(quats)
    placed = place_on_root(body, rotmats[:, 1:], betas, geometry.se3(quats[:, 0], pelvis))
    expected = motion.placed().joints.numpy()
    assert np.abs(placed.joints.numpy() - (expected @ TO_Y_UP.T if up == "y" else expected)).max() < 1e-5


def test_without_smplcodec_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "smplcodec", None)
    with pytest.raises(InputError, match=r"pip install 'mgrpo\[smpl\]'"):
        write_smpl(tmp_path / "a.smpl", make_motion(2))
    assert not list(tmp_path.iterdir())


def test_smplcodec_leaves_the_logging_alone(tmp_path: Path) -> None:
    pytest.importorskip("smplcodec")
    for name in [name for name in sys.modules if name.split(".")[0] == "smplcodec"]:
        del sys.modules[name]
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    root.handlers[:] = []  # which is when importing it would add one
    try:
        write_smpl(tmp_path / "a.smpl", make_motion(2))
        assert (root.level, root.handlers) == (before[0], [])
    finally:
        root.handlers[:] = before[1]


def test_egoallos_npz_is_read_back(tmp_path: Path) -> None:
    motions = [make_motion(12, seed=seed) for seed in (0, 1)]
    head = motions[0].head_trajectory()
    motions = [replace(motion, T_world_cpf=head) for motion in motions]
    write_egoallo(tmp_path / "a.npz", motions)
    found = read_one(tmp_path / "a.npz", default_body())
    assert found.samples == 2 and found.fps == 30.0 and list(found.frame_nums)[:2] == [60, 61]
    np.testing.assert_allclose(found.times, motions[0].times, atol=1e-8)
    assert found.T_world_cpf is not None and found.hand_quats is not None and found.contacts is not None
    np.testing.assert_allclose(found.T_world_cpf, head, atol=1e-6)
    for row, motion in enumerate(motions):
        assert float((found.placed().joints[row] - motion.placed().joints[:, :22]).abs().max()) < 2e-6
        assert angle(found.hand_quats[row].double(), motion.local_quats[:, 21:]) < 1e-3
        np.testing.assert_allclose(found.contacts[row], motion.contacts, atol=1e-6)
    with pytest.raises(InputError, match="equally long"):
        write_egoallo(tmp_path / "b.npz", [motions[0], make_motion(5)])


def test_the_head_of_a_motion_without_one_is_the_bodys(tmp_path: Path) -> None:
    motion = make_motion(5)
    body, placed = motion.skeleton, motion.placed()
    eyes = placed.joints[:, 15] + (placed.R_world_joint[:, 15] @ body.t_head_cpf(motion.betas)[..., None])[..., 0]
    torch.testing.assert_close(motion.head_trajectory()[:, 4:], eyes)


@pytest.mark.parametrize("frame", [FileFrame("z", "m"), FileFrame("y", "cm")], ids=["z-m", "y-cm"])
def test_csv_holds_what_its_header_says(tmp_path: Path, frame: FileFrame) -> None:
    motion = make_motion(joints=21)
    write_csv(tmp_path / "a.csv", motion, frame)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text("utf-8"))))
    assert len(rows) == 40 and len(rows[0]) == 2 + 22 * 3 + 22 * 4 + 7 + 21

    def values(*names: str) -> np.ndarray:
        return np.array([[float(row[name]) for name in names] for row in rows])

    def points(joint: str) -> np.ndarray:
        found = values(*(f"{joint}_{axis}_{frame.unit}" for axis in "xyz")) / frame.per_metre
        return found @ TO_Y_UP if frame.up == "y" else found

    def quats(joint: str) -> torch.Tensor:
        return torch.from_numpy(values(*(f"{joint}_q{axis}" for axis in "wxyz")))

    assert list(values("frame")[:, 0]) == motion.frame_nums.tolist()
    np.testing.assert_allclose(values("time_s")[:, 0], motion.times, atol=1e-9)
    placed = motion.placed()
    for row, name in enumerate(motion.joint_names):
        np.testing.assert_allclose(points(name), placed.joints[:, row], atol=1e-7)
    assert angle(quats("left_knee"), motion.local_quats[:, 3]) < 1e-6
    world = FileFrame("z").q_file_world if frame.up == "z" else torch.tensor([0.5**0.5, -(0.5**0.5), 0.0, 0.0])
    assert angle(quats("pelvis"), geometry.quat_multiply(world.double(), motion.T_world_root[:, :4])) < 1e-6
    head = motion.head_trajectory()
    np.testing.assert_allclose(points("cpf"), head[:, 4:], atol=1e-7)
    assert angle(quats("cpf"), geometry.quat_multiply(world.double(), head[:, :4])) < 1e-6
    assert motion.contacts is not None
    np.testing.assert_allclose(values("right_wrist_contact")[:, 0], motion.contacts[:, 20], atol=1e-7)


def test_long_motion_is_posed_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    motion = make_motion(30, joints=21)
    write_csv(tmp_path / "whole.csv", motion)
    head = motion.head_trajectory()
    monkeypatch.setattr("mgrpo.export.motion._CHUNK", 7)
    write_csv(tmp_path / "parts.csv", motion)
    assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert torch.equal(motion.head_trajectory(), head)


# --- the command


def clip_file(path: Path, frames: int = 12) -> Path:
    motion = make_motion(frames, size=0.4)
    clip = MotionClip(
        "wave",
        30.0,
        motion.T_world_root.float(),
        motion.local_quats[:, :21].float(),
        motion.betas[0].float(),
        torch.zeros(frames, 21),
    )
    save_clip(path, clip)
    return path


def samples_file(path: Path, samples: int = 2, frames: int = 12) -> Path:
    motions = [make_motion(frames, seed=seed, size=0.4) for seed in range(samples)]
    motions = [replace(motion, T_world_cpf=motions[0].head_trajectory()) for motion in motions]
    write_egoallo(path, motions)
    return path


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MGRPO_PROGRESS", "off")

    def call(*words: str, code: int = 0) -> str:
        assert cli.main(["export", *words]) == code
        text = capsys.readouterr()
        return text.err if code else text.out + text.err

    return call


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "smpl"])
def test_every_format_is_written(name: str, run, tmp_path: Path) -> None:
    clip_file(tmp_path / "wave.npz")
    said = run("wave.npz", "--to", name)
    assert files(tmp_path / "exports") == [f"wave{TARGETS[name].suffix}"]
    assert str(Path("exports") / f"wave{TARGETS[name].suffix}") in said


def test_smpl_is_written_or_its_extra_named(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip_file(tmp_path / "wave.npz")
    if importlib.util.find_spec("smplcodec") is not None:
        run("wave.npz", "--to", "smpl")
        assert files(tmp_path / "exports") == ["wave.smpl"]
    monkeypatch.setitem(sys.modules, "smplcodec", None)
    assert "mgrpo[smpl]" in run("wave.npz", "--to", "smpl", "-o", "other", code=2)
    assert not (tmp_path / "other").exists()


def test_samples_become_files_of_their_own(run, tmp_path: Path) -> None:
    samples_file(tmp_path / "head.npz")
    run("head.npz", "--body", "default", "--to", "bvh", "-o", "all")
    assert files(tmp_path / "all") == ["head_sample0.bvh", "head_sample1.bvh"]
    run("head.npz", "--body", "default", "--to", "bvh", "-o", "second", "--sample", "1")
    assert files(tmp_path / "second") == ["head_sample1.bvh"]
    assert (tmp_path / "second/head_sample1.bvh").read_bytes() == (tmp_path / "all/head_sample1.bvh").read_bytes()
    assert (tmp_path / "all/head_sample0.bvh").read_bytes() != (tmp_path / "all/head_sample1.bvh").read_bytes()
    run("head.npz", "--body", "default", "--to", "npz", "-o", "together")
    assert read_one(tmp_path / "together/head.npz", default_body()).samples == 2
    run("head.npz", "--body", "default", "--to", "glb", "-o", "one.glb", "--sample", "0")
    assert (tmp_path / "one.glb").is_file()
    assert "names one file" in run("head.npz", "--body", "default", "--to", "glb", "-o", "two.glb", code=2)
    assert "0 to 1" in run("head.npz", "--body", "default", "--to", "glb", "--sample", "2", code=2)
    assert not (tmp_path / "two.glb").exists()


def test_clips_of_a_pack_are_chosen_by_name(run, tmp_path: Path) -> None:
    run("demo", "--to", "csv", "--clip", "dance_*")
    assert files(tmp_path / "exports") == ["demo_dance_a.csv", "demo_dance_b.csv"]
    said = run("demo", "--to", "csv", "--clip", "swim", code=2)
    assert "no motion in demo is called 'swim'" in said and "cartwheel" in said


def test_the_body_is_taken_from_the_options_beside_the_file(run, tmp_path: Path) -> None:
    samples_file(tmp_path / "head.npz")
    assert "so joints need a body" in run("head.npz", "--to", "glb", code=2)
    (tmp_path / "head_args.yaml").write_text("options:\n  class: InferConfig\n  body: default\n", "utf-8")
    assert recorded_body(tmp_path / "head.npz") == "default"
    (tmp_path / "head_args.yaml").write_text("class: SampleConfig\nbody: default\n", "utf-8")
    assert "body 'default', as head_args.yaml says" in run("head.npz", "--to", "glb", "--sample", "0")
    (tmp_path / "head_args.yaml").write_text(
        "!!python/object:egoallo.Args\ntraj_root: !!python/object/apply:pathlib.PosixPath [a]\n"
    )
    assert recorded_body(tmp_path / "head.npz") is None
    (tmp_path / "head_args.yaml").write_text("body: [", "utf-8")
    assert "name the body by --body" in run("head.npz", "--to", "bvh", code=2)


def test_rate_and_axes(run, tmp_path: Path) -> None:
    clip_file(tmp_path / "wave.npz", 13)
    said = run("wave.npz", "--to", "csv", "--fps", "60", "--up", "y", "--units", "cm")
    assert "brought to 25 at 60" in said
    lines = (tmp_path / "exports/wave.csv").read_text("utf-8").splitlines()
    assert len(lines) == 26 and "pelvis_y_cm" in lines[0]
    motion = read_one(tmp_path / "wave.npz", default_body())
    row = dict(zip(lines[0].split(","), map(float, lines[1].split(","))))
    assert row["pelvis_y_cm"] == pytest.approx(100 * float(motion.T_world_root()[0, 0, 6]), abs=1e-4)


def test_a_rate_that_is_told_overrules_the_stamps(run, tmp_path: Path) -> None:
    samples_file(tmp_path / "head.npz", samples=1)
    run("head.npz", "--body", "default", "--to", "csv", "--input-fps", "60")
    lines = (tmp_path / "exports/head.csv").read_text("utf-8").splitlines()
    times = [float(line.split(",")[1]) for line in lines[1:]]
    np.testing.assert_allclose(np.diff(times), 1 / 60, atol=1e-8)
    assert len(times) == 12
    assert "brought to" not in run("head.npz", "--body", "default", "--to", "bvh", "--input-fps", "60")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "glb", "--out", "a.bvh"), "--out a.bvh: --to glb writes .glb files"),
        (("--to", "glb", "--out", "wave.npz/a.glb"), "a part of that path is a file"),
        (("--to", "glb", "--up", "y"), "--up has no effect with --to glb, whose up axis is always y"),
        (("--to", "amass", "--units", "m"), "--units has no effect with --to amass"),
        (("--to", "npz", "--up", "z"), "--up has no effect with --to npz, whose up axis is always z"),
        (("--to", "smpl", "--units", "cm"), "--units has no effect with --to smpl"),
        (("--to", "bvh", "--fps", "-1"), "--fps must be 0.1"),
        (("--to", "bvh", "--sample", "-1"), "--sample counts from 0"),
        (("--to", "bvh", "--input-fps", "1e9"), "--input-fps must be 0.1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_without_effect_or_sense_are_refused(words, message, run, tmp_path: Path) -> None:
    clip_file(tmp_path / "wave.npz")
    assert message in run("wave.npz", *words, code=2)
    assert files(tmp_path) == ["wave.npz"]


def test_nothing_is_lost(run, tmp_path: Path) -> None:
    path = clip_file(tmp_path / "wave.npz")
    before = path.read_bytes()
    assert "is the file that is read" in run("wave.npz", "--to", "npz", "-o", ".", "--overwrite", code=2)
    assert path.read_bytes() == before
    run("wave.npz", "--to", "bvh", "-o", "a.bvh")
    (tmp_path / "a.bvh").write_text("mine", "utf-8")
    assert "exists already" in run("wave.npz", "--to", "bvh", "-o", "a.bvh", code=2)
    assert (tmp_path / "a.bvh").read_text("utf-8") == "mine"
    run("wave.npz", "--to", "bvh", "-o", "a.bvh", "--overwrite")
    assert (tmp_path / "a.bvh").read_text("utf-8").startswith("HIERARCHY")


def test_all_is_checked_before_anything_is_written(run, tmp_path: Path) -> None:
    samples_file(tmp_path / "head.npz", samples=3)
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports/head_sample2.csv").write_text("mine", "utf-8")
    run("head.npz", "--body", "default", "--to", "csv", code=2)
    assert files(tmp_path / "exports") == ["head_sample2.csv"]
    with np.load(tmp_path / "head.npz") as archive:
        arrays = dict(archive)
    arrays["left_hand_quats"][2, 5, 3] = 0.0
    write_npz(tmp_path / "bad.npz", arrays)
    said = run("bad.npz", "--body", "default", "--to", "csv", "-o", "bad", code=2)
    assert "quaternion of length zero, first in frame 5" in said
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"HIERARCHY\nROOT a\n", "not a motion file of a known format"),
        (b"PK\x03\x04 broken", "damaged archive"),
    ],
    ids=["missing", "empty", "bvh", "broken"],
)
def test_bad_input_is_told(content: bytes | None, message: str, run, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "in.npz").write_bytes(content)
    said = run("in.npz", "--to", "glb", code=2)
    assert message in said and "in.npz" in said
    assert not (tmp_path / "exports").exists()


def test_a_folder_is_no_file(run, tmp_path: Path) -> None:
    for name in (".", str(tmp_path)):
        assert "expected a motion file, got a folder" in run(name, "--to", "csv", code=2)


def test_joints_alone_are_refused(run, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", joints=make_motion(4).placed().joints[:, :22].numpy(), fps=30.0, up="z")
    assert "holds joint positions alone (joints npz)" in run("in.npz", "--to", "bvh", code=2)


def test_values_that_are_not_finite_are_refused(run, tmp_path: Path) -> None:
    samples_file(tmp_path / "head.npz")
    with np.load(tmp_path / "head.npz") as archive:
        arrays = dict(archive)
    arrays["betas"][1, 3, 0] = np.nan
    np.savez(tmp_path / "bad.npz", **arrays)
    said = run("bad.npz", "--body", "default", "--to", "bvh", code=2)
    assert "betas is not finite (NaN or infinity), first in frame 3" in said
    assert not (tmp_path / "exports").exists()


def test_a_disk_that_refuses_leaves_nothing_half_written(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples_file(tmp_path / "head.npz")
    written = []

    def full(path: Path) -> None:
        assert path.stat().st_size > 1000
        if written:
            raise OSError(28, "No space left on device")
        written.append(path)

    monkeypatch.setattr("mgrpo.storage._sync_file", full)
    said = run("head.npz", "--body", "default", "--to", "csv", code=2)
    assert "the disk is full" in said
    assert files(tmp_path / "exports") == ["head_sample0.csv"]


def test_it_knows_its_frames(run, tmp_path: Path) -> None:
    """A y-up source, as WHAM and GVHMR are, comes out z up, its head's pose with it."""
    samples_file(tmp_path / "head.npz", samples=1)
    run("head.npz", "--body", "default", "--to", "npz", "-o", "turned", "--input-up", "y")
    before, after = (read_one(path, default_body()) for path in (tmp_path / "head.npz", tmp_path / "turned/head.npz"))
    turn = torch.from_numpy(TO_Y_UP.T.copy())
    expected = before.T_world_root()[0, :, 4:] @ turn.T
    torch.testing.assert_close(after.T_world_root()[0, :, 4:], expected, atol=1e-6, rtol=0)
    assert before.T_world_cpf is not None and after.T_world_cpf is not None
    np.testing.assert_allclose(after.T_world_cpf[:, 4:], before.T_world_cpf[:, 4:] @ TO_Y_UP, atol=1e-6)
