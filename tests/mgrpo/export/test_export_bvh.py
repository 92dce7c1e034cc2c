"""BVH files: read back by our strict reader, by another project's parser, and by Blender."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgrpo import geometry
from mgrpo.data.mocap import read_bvh
from mgrpo.data.mocap.source import rotation_sequence
from mgrpo.export import FileFrame, write_bvh
from mgrpo.export.bvh import euler_zxy
from tests.mgrpo.export.export_motion import TO_Y_UP, make_motion

LIMIT_M = 1e-4
FRAMES = [FileFrame("y", "cm"), FileFrame("y", "m"), FileFrame("z", "cm"), FileFrame("z", "m")]


def in_file(points: np.ndarray, frame: FileFrame) -> np.ndarray:
    return (points @ TO_Y_UP.T if frame.up == "y" else points) * (100.0 if frame.unit == "cm" else 1.0)


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: f"{frame.up}-{frame.unit}")
@pytest.mark.parametrize("joints", [21, 51])
def test_our_reader_finds_the_joints(tmp_path: Path, joints: int, frame: FileFrame) -> None:
    motion = make_motion(joints=joints)
    write_bvh(tmp_path / "a.bvh", motion, frame)
    found = read_bvh(tmp_path / "a.bvh")
    rows = [found.names.index(name) for name in motion.joint_names]
    expected = in_file(motion.placed().joints.numpy(), frame)
    assert np.abs(found.positions[:, rows] - expected).max() < LIMIT_M * frame.per_metre
    assert found.fps == 30.0 and len(found.times) == 40


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: f"{frame.up}-{frame.unit}")
def test_pybvh_finds_the_joints(tmp_path: Path, frame: FileFrame) -> None:
    pybvh = pytest.importorskip("pybvh")
    motion = make_motion(fps=29.97)
    write_bvh(tmp_path / "a.bvh", motion, frame)
    found = pybvh.read_bvh_file(str(tmp_path / "a.bvh"))
    assert sorted(found.joint_names) == sorted(motion.joint_names)
    assert found.frame_time == pytest.approx(1 / 29.97, abs=1e-9)
    where = np.asarray(found.joint_positions())
    expected = in_file(motion.placed().joints.numpy(), frame)
    for joint, name in enumerate(motion.joint_names):
        row = list(found.joint_names).index(name)
        assert np.abs(where[:, row] - expected[:, joint]).max() < LIMIT_M * frame.per_metre, name


def test_blender_finds_the_joints(tmp_path: Path) -> None:
    python = os.environ.get("MGRPO_BLENDER_PYTHON")
    if not python:
        pytest.skip("MGRPO_BLENDER_PYTHON names no Python with Blender (pip install bpy)")
    motion = make_motion()
    write_bvh(tmp_path / "a.bvh", motion)
    reader = Path(__file__).with_name("readers") / "blender_reader.py"
    words = [python, str(reader), str(tmp_path / "a.bvh"), "30", "0", "11", "39"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("RESULT"))
    joints = motion.placed().joints.numpy()
    for frame, found in zip((0, 11, 39), json.loads(line.removeprefix("RESULT"))["frames"]):
        where = np.array([found["joints"][name] for name in motion.joint_names])
        assert np.abs(where - joints[frame]).max() < LIMIT_M


def test_what_the_file_says(tmp_path: Path) -> None:
    motion = make_motion(2, joints=21)
    write_bvh(tmp_path / "a.bvh", motion)
    lines = (tmp_path / "a.bvh").read_text("utf-8").splitlines()
    assert lines[:5] == [
        "HIERARCHY",
        "ROOT pelvis",
        "{",
        "\tOFFSET 0.000000 0.000000 0.000000",
        "\tCHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation",
    ]
    names = [line.split()[1] for line in lines if line.split()[0] in ("ROOT", "JOINT")]
    assert names[:6] == ["pelvis", "left_hip", "left_knee", "left_ankle", "left_foot", "right_hip"]
    assert lines.count("\t\tCHANNELS 3 Zrotation Xrotation Yrotation") == 3
    assert sum(line.strip() == "End Site" for line in lines) == 5  # toes, head, wrists
    start = lines.index("MOTION")
    assert lines[start + 1 : start + 3] == ["Frames: 2", "Frame Time: 0.0333333333"]
    assert [len(line.split()) for line in lines[start + 3 :]] == [3 + 3 * 22] * 2
    assert not any("-0.000000 " in f"{line} " for line in lines)


@pytest.mark.parametrize("up", ["y", "z"])
def test_the_zero_pose_stands_upright_in_the_file(tmp_path: Path, up: str) -> None:
    write_bvh(tmp_path / "a.bvh", make_motion(2), FileFrame(up, "m"))
    lines = (tmp_path / "a.bvh").read_text("utf-8").splitlines()
    start = lines.index("MOTION")
    count = len(lines[start + 3].split())
    zero = [*lines[: start + 1], "Frames: 1", lines[start + 2], " ".join(["0"] * count)]
    (tmp_path / "zero.bvh").write_text("\n".join(zero) + "\n", "utf-8")
    found = read_bvh(tmp_path / "zero.bvh")
    where = dict(zip(found.names, found.positions[0]))
    axis = "xyz".index(up)
    assert where["head"][axis] > where["neck"][axis] > where["pelvis"][axis] > where["left_ankle"][axis]
    assert where["left_wrist"][0] > 0.3 and where["right_wrist"][0] < -0.3
    assert where["head.End"][axis] > where["head"][axis]


def test_angles_go_on_through_their_limits() -> None:
    """A knee that bends past a quarter turn, and a turn on the spot three times round, without jumps."""
    bend = np.radians(np.linspace(0.0, 150.0, 200))
    spin = np.linspace(0.0, 6 * np.pi, 200)
    zero = np.zeros(200)
    wanted = np.stack((np.stack((zero, bend, zero), -1), np.stack((zero, zero, spin), -1)), axis=1)
    found = euler_zxy(rotation_sequence("zxy", wanted))
    assert np.abs(found - wanted).max() < 1e-9
    whole = euler_zxy(rotation_sequence("zxy", wanted[100:]), before=found[99])
    assert np.abs(whole - wanted[100:]).max() < 1e-9


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(*[st.one_of(st.sampled_from([-180.0, -90.0, 0.0, 90.0, 180.0]), st.floats(-400.0, 400.0))] * 3),
        min_size=1,
        max_size=6,
    )
)
def test_any_rotation_comes_back(degrees: list[tuple[float, float, float]]) -> None:
    """Also where the middle angle is exactly a quarter turn, and only the sum of the others is known."""
    rotmats = rotation_sequence("zxy", np.radians(np.array(degrees)))[:, None]
    found = euler_zxy(rotmats)
    again = rotation_sequence("zxy", found)
    angles = geometry.geodesic_angle(torch.from_numpy(rotmats), torch.from_numpy(again))
    assert float(angles.max()) < 2e-7
