"""Aria Digital Twin: made sequences whose truth is known, the real sample, rotations from positions, partial
downloads."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgrpo import geometry as g
from mgrpo.body import BodyModel, default_body
from mgrpo.body.placement import place_on_root
from mgrpo.body.skeleton import BODY_JOINT_NAMES, HAND_JOINT_NAMES
from mgrpo.cli import main
from mgrpo.data import MotionClip, load_motion, place_clip
from mgrpo.data.adt.files import SKELETON_JOINTS, find_adt, read_skeleton, read_trajectory
from mgrpo.data.adt.sequence import (
    adt_pack,
    joints22,
    load_adt,
)
from mgrpo.data.aria_device import NOMINAL_DEVICE_CPF, read_device_cpf
from mgrpo.data.joint_fit import fit_joints
from mgrpo.data.point_cloud import read_points
from mgrpo.data.upright import turn_to_z_up, up_rotation
from mgrpo.errors import InputError

Y_UP = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
"""World with z up to world with y up: (x, y, z) -> (x, z, -y)."""

HEADER = (
    "graph_uid,tracking_timestamp_us,utc_timestamp_ns,tx_world_device,ty_world_device,tz_world_device,qx_world_device,"
    "qy_world_device,qz_world_device,qw_world_device,gravity_x_world,gravity_y_world,gravity_z_world,quality_score"
)
START_US = 87_551_170_910


PARTS = (("hip", "Thigh"), ("knee", "Shin"), ("ankle", "Foot"), ("foot", "Toe"), ("collar", "Shoulder"),
         ("shoulder", "UArm"), ("elbow", "FArm"), ("wrist", "Hand"))  # fmt: skip


def body_joints(time: np.ndarray) -> np.ndarray:
    """The 51 joints ``(F, 51, 3)`` of someone who turns, leans, bends arms and knees; z up, feet on the floor."""
    body = default_body()
    frames = len(time)
    turns = torch.zeros(frames, 51, 3, dtype=torch.float64)
    wave = torch.from_numpy(np.sin(2 * time))
    for joint, axis, size in (
        (15, 0, 0.9),
        (16, 0, 0.9),
        (15, 1, -0.9),
        (16, 1, 0.9),
        (17, 1, -0.8),
        (18, 1, 0.8),
        (2, 0, 0.2),
        (11, 2, 0.2),
    ):
        turns[:, joint, axis] = size * (0.6 + 0.4 * wave)
    root = torch.zeros(frames, 7, dtype=torch.float64)
    facing = g.yaw_rotation(torch.from_numpy(0.3 * time))
    root[:, :4] = g.quat_multiply(facing, torch.tensor([0.5**0.5, 0.5**0.5, 0, 0], dtype=torch.float64))
    root[:, 6] = 0.93
    joints = place_on_root(body.to(dtype=torch.float64), g.axis_angle_to_rotmat(turns), torch.zeros(16).double(), root)
    ours = joints.joints.numpy()
    names = ("pelvis", *BODY_JOINT_NAMES, *HAND_JOINT_NAMES)
    theirs = {"Skeleton": "pelvis", "Ab": "spine1", "Chest": "spine3", "Neck": "neck", "Head": "head"}
    for side, letter in (("left", "L"), ("right", "R")):
        theirs |= {f"{letter}{b}": f"{side}_{a}" for a, b in PARTS}  # fmt: skip
        theirs |= {f"{letter}{f.title()}{k}": f"{side}_{f}{k}" for f in ("thumb", "index", "middle", "ring", "pinky")
                   for k in (1, 2, 3)}  # fmt: skip
    return ours[:, [names.index(theirs[name]) for name in SKELETON_JOINTS]]


def device_poses(time: np.ndarray) -> np.ndarray:
    """Poses ``(F, 7)`` of a device on that head whose central pupil frame looks along the body; z up."""
    head = body_joints(time)[:, SKELETON_JOINTS.index("Head")] + np.array([0.0, 0.0, 0.08])
    cpf = torch.zeros(len(time), 7, dtype=torch.float64)
    facing = g.yaw_rotation(torch.from_numpy(0.3 * time))
    cpf[:, :4] = g.quat_multiply(facing, torch.tensor([0.5**0.5, 0.5**0.5, 0, 0], dtype=torch.float64))
    cpf[:, 4:] = torch.from_numpy(head)
    U, _, Vt = np.linalg.svd(NOMINAL_DEVICE_CPF[:, :3])
    device_cpf = g.se3_from_rotmat(torch.from_numpy(U @ Vt), torch.from_numpy(NOMINAL_DEVICE_CPF[:, 3]))
    return g.se3_multiply(cpf, g.se3_inverse(device_cpf)).numpy()


def trajectory_text(
    time: np.ndarray, poses: np.ndarray, *, up: str = "y", header: str = HEADER, lift: float = 0.0
) -> str:
    """The CSV of poses given with z up; ``lift`` is added to heights."""
    turn = Y_UP if up == "y" else np.eye(3)
    quat = g.rotmat_to_quat(torch.from_numpy(turn))
    turned = g.quat_multiply(quat, torch.from_numpy(poses[:, :4])).numpy()
    places = (poses[:, 4:] + np.array([0, 0, lift])) @ turn.T
    gravity = "0,-9.81,0" if up == "y" else "0,0,-9.81"
    rows = [header]
    for moment, (w, x, y, z), (a, b, c) in zip(time, turned, places):
        rows.append(
            f"f27,{round(START_US + moment * 1e6)},-1,{a:.9f},{b:.9f},{c:.9f},{x:.9f},"
            f"{y:.9f},{z:.9f},{w:.9f},{gravity},1.0"
        )
    return "\n".join(rows) + "\n"


def skeleton_text(time: np.ndarray, joints: np.ndarray) -> str:
    frames = [
        {"markers": [[0, 0, 0]], "joints": (frame @ Y_UP.T).round(9).tolist(),
         "timestamp_ns": round((START_US + moment * 1e6) * 1000)}
        for moment, frame in zip(time, joints)
    ]  # fmt: skip
    return json.dumps({"dt_optitrack_minus_device_ns": {"1WM": 5}, "frames": frames})


DEVICE_TIMES = np.arange(0, 4.0, 0.033328)
BODY_TIMES = np.arange(0.1, 3.9, 1 / 120)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adt") / "Apartment_seq131"
    folder.mkdir()
    (folder / "aria_trajectory.csv").write_text(trajectory_text(DEVICE_TIMES, device_poses(DEVICE_TIMES)))
    (folder / "Skeleton_T.json").write_text(skeleton_text(BODY_TIMES, body_joints(BODY_TIMES)))
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "seq"))


def moments(times_ns: np.ndarray) -> np.ndarray:
    """Seconds in the made sequence."""
    return (times_ns - START_US * 1000) / 1e9


def test_streams_on_one_clock(made: Path) -> None:
    (clip,) = load_adt(find_adt(made)).clips
    assert clip.joints is not None and np.diff(clip.times_ns).min() >= 33_333_333
    time = moments(clip.times_ns)
    assert time[0] == pytest.approx(0.1, abs=1e-6) and 3.85 < time[-1] <= 3.9
    assert np.abs(clip.joints - body_joints(time)).max() < 1e-4
    true = device_poses(time)
    assert np.abs(clip.T_world_device[:, 4:] - true[:, 4:]).max() < 2e-4
    assert np.abs((clip.T_world_device[:, :4] * true[:, :4]).sum(1)).min() > 1 - 1e-7
    forward = g.quat_to_rotmat(torch.from_numpy(clip.T_world_cpf[:, :4]))[:, :, 2].numpy()
    expected = np.stack((np.sin(0.3 * time), -np.cos(0.3 * time), 0 * time), 1)
    assert np.abs(forward - expected).max() < 1e-3  # CPF's z looks where the body faces


def test_z_up_worlds_and_old_names_of_columns(made: Path, copy: Path) -> None:
    one = load_adt(find_adt(made, "none")).clips[0]
    old = HEADER.replace("gravity_x_world,gravity_y_world,gravity_z_world", "gravity_x,gravity_y,gravity_z")
    for header, up in ((old, "y"), (HEADER, "z")):
        text = trajectory_text(DEVICE_TIMES, device_poses(DEVICE_TIMES), up=up, header=header)
        (copy / "aria_trajectory.csv").write_text(text)
        other = load_adt(find_adt(copy, "none")).clips[0]
        assert np.abs(one.T_world_cpf[:, 4:] - other.T_world_cpf[:, 4:]).max() < 1e-6


@pytest.mark.parametrize("gravity", [(0, -1, 0), (0, 0, -1), (0, 0, 1), (1, 0, 0), (0.6, -0.8, 0), (0.05, -0.99, 0.1)])
def test_gravity_points_down(gravity: tuple[float, ...]) -> None:
    down = np.array(gravity, float) / np.linalg.norm(gravity)
    R = up_rotation(down)
    assert np.allclose(R @ down, (0, 0, -1), atol=1e-12) and np.linalg.det(R) == pytest.approx(1)
    if gravity == (0, -1, 0):
        assert np.array_equal(R @ (1.0, 2.0, 3.0), (1.0, -3.0, 2.0))
    smallest = turn_to_z_up(-down)
    assert np.allclose(smallest @ down, (0, 0, -1), atol=1e-12)
    assert np.trace(smallest) == pytest.approx(1 + 2 * -down[2], abs=1e-12)  # turns no further than up is from z


def test_rotations_from_positions(made: Path) -> None:
    """Joints come back to less than a tenth of a millimetre, and rotations are those that were put in, but for turns of
    bones about themselves."""
    body = default_body()
    time = np.arange(0, 3, 0.1)
    joints = joints22(body_joints(time))
    rest = body.rest_joints(torch.zeros(16))[:22].double().numpy()
    fitted = fit_joints(joints, rest)
    assert fitted.error_m < 0.01  # spine2 is half way here, on the body it is not
    assert np.abs(np.linalg.det(fitted.R_world_joint) - 1).max() < 1e-9
    facing = np.arctan2(fitted.R_world_joint[:, 0, 1, 2], fitted.R_world_joint[:, 0, 0, 2])
    assert np.abs(np.unwrap(facing) - (0.3 * time - np.pi / 2)).max() < 0.05
    # elbows bend about the axis that elbows have
    for row, sign in ((16, -1.0), (17, 1.0)):
        hinge = fitted.R_world_joint[:, row, :, 1] * sign
        arm, fore = joints[:, row + 2] - joints[:, row], joints[:, row + 4] - joints[:, row + 2]
        normal = np.cross(arm, fore)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        assert (hinge * normal).sum(1).min() > 0.95
    with pytest.raises(InputError, match="frame 3: joint 'left_elbow' is where its parent 'left_shoulder' is"):
        bad = joints.copy()
        bad[3, 18] = bad[3, 16]
        fit_joints(bad, rest)
    with pytest.raises(InputError, match="must have shape"):
        fit_joints(joints[:, :21], rest)


def test_a_bone_that_points_backwards() -> None:
    rest = default_body().rest_joints(torch.zeros(16))[:22].double().numpy()
    joints = np.repeat(rest[None], 3, 0)
    joints[1, 20] = 2 * joints[1, 18] - joints[1, 20]  # forearm folded onto the upper arm exactly
    fitted = fit_joints(joints, rest)
    assert np.isfinite(fitted.R_world_joint).all() and fitted.error_m < 1e-6


def test_the_command(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "adt", str(made), str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "from world zero" in said.out and "--device-cpf" in said.err and "WARNING" not in said.err
    body = default_body()
    (clip,) = load_motion(tmp_path, body)
    assert clip.name == "Apartment_seq131" and float(clip.contacts[:, [9, 10]].mean()) > 0.9
    arrays = np.load(tmp_path / "Apartment_seq131.npz")
    assert len(clip) == len(arrays["T_world_cpf"]) == len(arrays["timestamps_ns"]) == len(arrays["source_joints22"])
    ours = place_clip(clip, body).joints.numpy()
    apart = np.linalg.norm(ours - arrays["source_joints22"], axis=-1)
    assert apart[:, [0, 4, 5, 7, 8, 18, 19, 20, 21]].mean() < 0.06  # the same person, on the body's mean shape


def test_the_head_alone(made: Path, tmp_path: Path) -> None:
    assert main(["data", "adt", str(made), str(tmp_path), "--skeleton", "none"]) == 0
    arrays = np.load(tmp_path / "Apartment_seq131-head.npz")
    assert arrays["T_world_cpf"].shape == (len(arrays["timestamps_ns"]), 7)
    with pytest.raises(InputError, match="has no skeleton"):
        adt_pack(load_adt(find_adt(made, "none")), "x", default_body())


# --- floor


def points_text(points: np.ndarray) -> str:
    rows = [f"{k},g,{x:.6f},{y:.6f},{z:.6f},0.0001,0.001" for k, (x, y, z) in enumerate(points)]
    far = [f"{k},g,0,0,-7,0.5,0.9" for k in range(300)]  # uncertain ones, deep below
    return "\n".join(["uid,graph_uid,px_world,py_world,pz_world,inv_dist_std,dist_std", *rows, *far]) + "\n"


def cloud(floor: float) -> np.ndarray:
    generator = np.random.default_rng(0)
    low = np.c_[generator.uniform(-3, 3, (3000, 2)), floor + generator.normal(0, 0.005, 3000)]
    room = np.c_[generator.uniform(-3, 3, (4000, 2)), generator.uniform(floor, floor + 2.5, 4000)]
    return np.concatenate((low, room, [[0, 0, floor - 1.0]]))


def test_the_floor_from_points_of_another_world(copy: Path) -> None:
    """The machine perception's world has z up and another zero: 1.3 m above its floor, where the other's is 0.2."""
    lifted = body_joints(BODY_TIMES) + np.array([0, 0, 0.2])
    (copy / "Skeleton_T.json").write_text(skeleton_text(BODY_TIMES, lifted))
    poses = device_poses(DEVICE_TIMES)
    (copy / "aria_trajectory.csv").write_text(trajectory_text(DEVICE_TIMES, poses, lift=0.2))
    mps = copy / "mps" / "slam"
    mps.mkdir(parents=True)
    with gzip.open(mps / "semidense_points.csv.gz", "wt") as stream:
        stream.write(points_text(cloud(-1.3)))
    found = load_adt(find_adt(copy))
    assert found.floor_from != "points" and any("closed_loop_trajectory.csv, which" in note for note in found.notes)
    (mps / "closed_loop_trajectory.csv").write_text(trajectory_text(DEVICE_TIMES, poses, up="z", lift=-1.3))
    found = load_adt(find_adt(copy))
    assert found.floor_from == "points" and found.floor_m == pytest.approx(0.2, abs=0.01)
    assert found.clips[0].joints is not None
    assert np.abs(found.clips[0].joints - body_joints(moments(found.clips[0].times_ns))).max() < 0.01


def test_the_floor_of_a_real_cloud(shared_data_dir: Path) -> None:
    path = shared_data_dir / "head" / "global_points.csv.gz"
    if not path.exists():
        pytest.skip("no point cloud there")
    assert read_points(path).floor() == pytest.approx(-1.49, abs=0.03)  # as noted beside the file


def test_floors_that_are_not_at_zero(copy: Path) -> None:
    lifted = body_joints(BODY_TIMES) + np.array([0, 0, 0.5])
    (copy / "Skeleton_T.json").write_text(skeleton_text(BODY_TIMES, lifted))
    (copy / "aria_trajectory.csv").write_text(trajectory_text(DEVICE_TIMES, device_poses(DEVICE_TIMES), lift=0.5))
    found = load_adt(find_adt(copy))
    assert found.floor_from == "toes" and found.floor_m == pytest.approx(0.5, abs=0.05)
    assert any("WARNING: planted toes" in note for note in found.notes)
    high = load_adt(find_adt(copy), floor="-1.0")
    assert high.floor_m == -1.0 and any("WARNING: the eyes are" in note for note in high.notes)
    with pytest.raises(InputError, match="--floor must be auto or a height"):
        load_adt(find_adt(copy), floor="low")


# --- gaps and mismatches


def test_gaps_cut_clips(copy: Path) -> None:
    keep = (BODY_TIMES < 1.0) | (BODY_TIMES > 1.5)
    keep[np.searchsorted(BODY_TIMES, 3.0)] = False  # a single lost frame is bridged
    (copy / "Skeleton_T.json").write_text(skeleton_text(BODY_TIMES[keep], body_joints(BODY_TIMES[keep])))
    found = load_adt(find_adt(copy))
    assert [round(float(moments(clip.times_ns)[0]), 1) for clip in found.clips] == [0.1, 1.5]
    assert any("cut into 2 clips" in note for note in found.notes)
    for clip in found.clips:
        assert clip.joints is not None
        assert np.abs(clip.joints - body_joints(moments(clip.times_ns))).max() < 1e-3
    pack, extra, _ = adt_pack(found, "x", default_body())
    assert pack.names == ("x_00", "x_01") and len(extra["T_world_cpf"]) == pack.lengths.sum()


def test_streams_that_do_not_belong_together(copy: Path) -> None:
    (copy / "Skeleton_T.json").write_text(skeleton_text(BODY_TIMES + 100, body_joints(BODY_TIMES)))
    with pytest.raises(InputError, match=r"trajectory \(87551\.\d+ to .*don't overlap in time"):
        load_adt(find_adt(copy))
    (copy / "Skeleton_T.json").write_text(skeleton_text(BODY_TIMES, body_joints(BODY_TIMES) + np.array([2.0, 0, 0])))
    with pytest.raises(InputError, match=r"its head is \d\.\d\d m from the device .* another person wore it"):
        load_adt(find_adt(copy))


def test_several_skeletons(copy: Path) -> None:
    shutil.copy(copy / "Skeleton_T.json", copy / "Skeleton_C.json")
    with pytest.raises(InputError, match=r"2 skeletons \(Skeleton_C, Skeleton_T\).*--skeleton"):
        find_adt(copy)
    for wanted in ("T", "Skeleton_T"):
        assert find_adt(copy, wanted).skeleton == copy / "Skeleton_T.json"
    with pytest.raises(InputError, match="no skeleton is called 'X'"):
        find_adt(copy, "X")
    (copy / "metadata.json").write_text('{"device_serial": "1WM"}')
    entries = [{"SkeletonName": "Skeleton_T", "AssociatedDeviceSerial": "2XY"},
               {"SkeletonName": "Skeleton_C", "AssociatedDeviceSerial": "1WM"}]  # fmt: skip
    (copy / "skeleton_aria_association.json").write_text(json.dumps({"SkeletonMetadata": entries}))
    assert find_adt(copy).skeleton == copy / "Skeleton_C.json"


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ([], "aria_trajectory.csv) is missing"),
        (["video.vrs"], "the recording (vrs) is there, the ground truth is a separate part"),
        (["mps/slam/closed_loop_trajectory.csv"], "only the machine perception (mps) part is there"),
        (["aria_trajectory.csv"], "the body's ground truth (Skeleton_*.json) is missing"),
        (["a/aria_trajectory.csv", "b/aria_trajectory.csv"], "give the folder of one sequence"),
    ],
)
def test_missing_parts_are_named(there: list[str], said: str, tmp_path: Path) -> None:
    for name in there:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    with pytest.raises(InputError) as caught:
        find_adt(tmp_path)
    assert said in str(caught.value)
    with pytest.raises(InputError, match="no such folder"):
        find_adt(tmp_path / "none")


TRAJECTORY_DAMAGE: dict[str, tuple[Any, str]] = {
    "no column": (lambda s: s.replace("qw_world_device", "qw"), "needs the column qw_world_device"),
    "no gravity": (lambda s: s.replace("gravity_y_world", "gy"), "gravity_y_world or gravity_y"),
    "cut": (lambda s: s[:-40], "cut off or damaged"),
    "word": (lambda s: s.replace(",-1,", ",-1,x", 1), "expected numbers"),
    "NaN": (lambda s: _scaled(s, float("nan")), "qw_world_device is not finite in data row 5"),
    "empty": (lambda s: "", "the file is empty; expected a device trajectory"),
    "one row": (lambda s: "\n".join(s.split("\n")[:2]), "1 pose(s); at least 2"),
    "gravity": (lambda s: s.replace("-9.81", "-0.1"), "gravity has length"),
    "quaternion": (lambda s: _scaled(s), "has length"),
    "backwards": (lambda s: "\n".join([s.split("\n")[0], *s.split("\n")[:0:-1]]), "time runs backwards"),
    "binary": (lambda s: s + "\0\0\0\n", "not a line of a"),
}  # fmt: skip


def _scaled(content: str, by: float = 1.0) -> str:
    lines = content.split("\n")
    cells = lines[5].split(",")
    cells[9] = str(float(cells[9]) + by)
    lines[5] = ",".join(cells)
    return "\n".join(lines)


@pytest.mark.parametrize("damage", TRAJECTORY_DAMAGE)
def test_damaged_trajectories(damage: str, copy: Path) -> None:
    change, said = TRAJECTORY_DAMAGE[damage]
    path = copy / "aria_trajectory.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError) as caught:
        read_trajectory(path)
    assert said in str(caught.value) and "aria_trajectory.csv" in str(caught.value)


SKELETON_DAMAGE: dict[str, tuple[Any, str]] = {
    "cut": (lambda s: s[: len(s) // 2], "cut off"),
    "no frames": (lambda s: s.replace('"frames"', '"frame"'), "there is no 'frames'"),
    "no joints": (lambda s: s.replace('"joints"', '"joint"', 1), "has no joints or no timestamp_ns"),
    "too few": (lambda s: json.dumps({"frames": [{"joints": [[0, 0, 0]] * 50, "timestamp_ns": 1}]}), "has 50 joints"),
    "text": (lambda s: json.dumps({"frames": [{"joints": [["a", 0, 0]] * 51, "timestamp_ns": 1}]}), "finite numbers"),
    "NaN": (lambda s: json.dumps({"frames": [{"joints": [[float("nan"), 0, 0]] * 51, "timestamp_ns": 1}]}), "finite"),
    "time": (lambda s: s.replace('"timestamp_ns": ', '"timestamp_ns": "', 1).replace("}, {", '"}, {', 1), "whole"),
    "one frame": (lambda s: json.dumps({"frames": [json.loads(s)["frames"][0]]}), "1 frame(s)"),
    "a list": (lambda s: "[1, 2]", "is damaged at character 0"),
    "deep": (lambda s: '{"a": ' + "[" * 100000, "cut off or damaged"),
    "empty": (lambda s: "", "cut off"),
}  # fmt: skip


@pytest.mark.parametrize("damage", SKELETON_DAMAGE)
def test_damaged_skeletons(damage: str, copy: Path) -> None:
    change, said = SKELETON_DAMAGE[damage]
    path = copy / "Skeleton_T.json"
    changed = change(path.read_text())
    path.write_text(changed)
    with pytest.raises(InputError) as caught:
        read_skeleton(path)
    assert said in str(caught.value) and "Skeleton_T.json" in str(caught.value)


def test_device_poses_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "cpf.json"
    path.write_text(json.dumps([1, 0, 0, 0, 0.1, 0.2, 0.3]))
    assert read_device_cpf(path) == pytest.approx([1, 0, 0, 0, 0.1, 0.2, 0.3])
    path.write_text(json.dumps([[1, 0, 0, 0.1], [0, 0, -1, 0.2], [0, 1, 0, 0.3], [0, 0, 0, 1]]))
    assert read_device_cpf(path) == pytest.approx([0.5**0.5, 0.5**0.5, 0, 0, 0.1, 0.2, 0.3])
    by_columns = "[[1,0,0,0],[0,1,0,0],[0,0,1,0],[0.1,0.2,0.3,1]]"
    for content in ("[1, 2]", "{", "[2, 0, 0, 0, 1, 1, 1]", "[[1,0,0,0],[0,1,0,0],[0,0,-1,0]]", '["a"]', by_columns):
        path.write_text(content)
        with pytest.raises(InputError, match=r"cpf\.json"):
            read_device_cpf(path)


def test_the_real_sample(shared_data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"adt_aria_trajectory.csv": "aria_trajectory.csv", "adt_Skeleton_T.json": "Skeleton_T.json"}
    if not all((shared_data_dir / "head" / name).exists() for name in names):
        pytest.skip("no Aria Digital Twin sample there")
    folder = tmp_path / "sample"
    folder.mkdir()
    for name, plain in names.items():
        shutil.copy(shared_data_dir / "head" / name, folder / plain)
    (clip,) = load_adt(find_adt(folder)).clips
    assert clip.joints is not None
    ours = joints22(clip.joints)
    # standing, eyes above the head joint and in front of it, toes in front of ankles
    assert 0.02 < ours[:, [10, 11], 2].min() < 0.08 and 1.5 < ours[:, 15, 2].min() < 1.65
    forward = g.quat_to_rotmat(torch.from_numpy(clip.T_world_cpf[:, :4]))[:, :, 2].numpy()
    assert (forward * (ours[:, 10] - ours[:, 7] + ours[:, 11] - ours[:, 8])).sum(1).min() > 0.1
    assert np.linalg.norm(clip.T_world_cpf[:, 4:] - ours[:, 15], axis=1).max() < 0.2
    assert main(["data", "adt", str(folder), str(tmp_path / "out")]) == 0
    body: BodyModel = default_body()
    (motion,) = load_motion(tmp_path / "out", body)
    assert isinstance(motion, MotionClip) and "within 1." in capsys.readouterr().out
