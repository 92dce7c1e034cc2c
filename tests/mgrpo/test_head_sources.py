"""Reading head trajectories: axes, units, orders, offsets and names, against one made-up head written in every way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgrpo import geometry as g
from mgrpo.errors import InputError
from mgrpo.geometry import quat_to_rotmat
from mgrpo.infer.aria import find_aria, vrs_device_cpf
from mgrpo.infer.checks import other_readings
from mgrpo.infer.cleaning import clean_poses, nanoseconds
from mgrpo.infer.devices import DEVICES, Y_UP, nod
from mgrpo.infer.poses import read_poses
from mgrpo.infer.source import SourceConfig, load_trajectory
from mgrpo.infer.trajectory import HeadTrajectory, WristTrack
from mgrpo.infer.wrists import controller_offset
from tests.mgrpo.head_files import TIMES, as_matrices, head, in_unity, same_poses, write_csv, y_up_viewer


def load(path: Path, **options: Any) -> HeadTrajectory:
    return load_trajectory(path, SourceConfig(**options))


# --- axes


@pytest.mark.parametrize("axes", ["openxr", "webxr", "quest", "hololens", "arkit"])
def test_y_up_viewers(axes: str, tmp_path: Path) -> None:
    quats, t = y_up_viewer(head())
    path = write_csv(tmp_path / "a.csv", "t,qw,qx,qy,qz,x,y,z", TIMES, quats, t)
    found = load(path, axes=axes)
    same_poses(found.T_world_cpf, head())
    assert (found.floor is not None) == (axes in ("openxr", "webxr", "quest"))
    assert found.times_ns.tolist() == np.rint(TIMES * 1e9).astype(int).tolist()
    assert not found.notes


def test_left_handed_worlds(tmp_path: Path) -> None:
    quats, t = in_unity(head())
    assert t[-1, 2] > 1.9, "forward along +z in Unity"
    path = write_csv(tmp_path / "a.csv", "t,qw,qx,qy,qz,x,y,z", TIMES, quats, t)
    found = load(path, axes="unity")
    same_poses(found.T_world_cpf, head())
    assert np.allclose(t @ found.R_world_file.T, found.T_world_cpf[:, 4:])


def test_the_origin_of_a_device_is_not_the_eyes(tmp_path: Path) -> None:
    """SteamVR's pose is in front of the eyes; offsets are in the device's axes, whole poses replace its axes too."""
    eyes = head()
    R = as_matrices(eyes)[:, :3, :3]
    front = eyes.copy()
    front[:, 4:] += 0.015 * R[:, :, 2]
    quats, t = y_up_viewer(front)
    path = write_csv(tmp_path / "a.csv", "t,qw,qx,qy,qz,x,y,z", TIMES, quats, t)
    same_poses(load(path, axes="steamvr").T_world_cpf, eyes)
    same_poses(load(path, axes="openxr", device_cpf="0,0,0.015").T_world_cpf, eyes)
    (tmp_path / "pose.json").write_text(json.dumps([0, 0, 1, 0, 0, 0, 0.015]))  # half a turn about y
    same_poses(load(path, axes="openxr", device_cpf=str(tmp_path / "pose.json")).T_world_cpf, eyes)
    right = load(path, axes="openxr", device_cpf="0.1,0,0.015").T_world_cpf
    assert np.allclose(right[:, 4:] - eyes[:, 4:], -0.1 * R[:, :, 0], atol=1e-6), "the device's x is the wearer's right"


def test_aria_devices_as_plain_poses(tmp_path: Path) -> None:
    back = g.se3_multiply(torch.from_numpy(head()), g.se3_inverse(torch.from_numpy(DEVICES["aria"].T_device_cpf)))
    np.savez(tmp_path / "a.npz", T_world_device=back.numpy(), timestamps_ns=np.rint(TIMES * 1e9).astype(np.int64))
    same_poses(load(tmp_path / "a.npz", axes="aria").T_world_cpf, head())


def test_glasses_that_sit_askew() -> None:
    turned = nod(head(), 0.2)
    before, after = as_matrices(head()), as_matrices(turned)
    assert np.allclose(after[:, :3, 0], before[:, :3, 0], atol=1e-9), "about the axis through both eyes"
    assert (after[:, 2, 2] < before[:, 2, 2]).all(), "a positive turn looks down"


@pytest.mark.parametrize(("unit", "metres"), [("mm", 0.001), ("cm", 0.01), ("ft", 0.3048), ("in", 0.0254)])
def test_units(unit: str, metres: float, tmp_path: Path) -> None:
    quats, t = y_up_viewer(head())
    path = write_csv(tmp_path / "a.csv", "t,qw,qx,qy,qz,x,y,z", TIMES, quats, t / metres)
    same_poses(load(path, axes="openxr", unit=unit).T_world_cpf, head())


# --- containers


def tables(folder: Path) -> dict[str, Path]:
    """The same head in every container and naming that is read."""
    poses = head()
    q, p, ns = poses[:, :4], poses[:, 4:], np.rint(TIMES * 1e9).astype(np.int64)
    made = {
        "header": write_csv(folder / "a.csv", "t,qw,qx,qy,qz,x,y,z", TIMES, q, p),
        "spec": write_csv(folder / "b.csv", "t,w,x,y,z,x,y,z", TIMES, q, p),
        "none": write_csv(folder / "c.csv", "", TIMES, q, p),
        "order": write_csv(folder / "d.csv", "z,y,x,qz,qy,qx,qw,t_ms", p[:, ::-1], q[:, ::-1], TIMES * 1000),
        "names": write_csv(
            folder / "e.csv.gz",
            "timestamp_ns,Position.x,Position.y,Position.z,Rotation.x,Rotation.y,Rotation.z,Rotation.w",
            ns, p, q[:, [1, 2, 3, 0]], number="%.19g",
        ),
        "aria": write_csv(
            folder / "f.csv",
            "tracking_timestamp_us,tx_world_device,ty_world_device,tz_world_device,qx_world_device,qy_world_device,"
            "qz_world_device,qw_world_device",
            TIMES * 1e6, p, q[:, [1, 2, 3, 0]],
        ),
    }  # fmt: skip
    np.savez(folder / "g.npz", t=TIMES, wxyz=q, xyz=p)
    np.savez(folder / "h.npz", timestamps_us=TIMES * 1e6, xyzw=q[:, [1, 2, 3, 0]], position=p)
    np.savez(folder / "i.npz", fps=60, T_world_head=as_matrices(poses))
    np.save(folder / "j.npy", np.concatenate((TIMES[:, None], q, p), axis=1))
    (folder / "k.json").write_text(json.dumps({"t": TIMES.tolist(), "wxyz": q.tolist(), "xyz": p.tolist()}))
    records = [
        {"time_ms": 1000 * t, "quaternion": dict(zip("wxyz", a)), "position": dict(zip("xyz", b))}
        for t, a, b in zip(TIMES.tolist(), q.tolist(), p.tolist())
    ]
    (folder / "l.json").write_text(json.dumps(records))
    lists = [{"timestamp_ns": int(n), "xyzw": [*a[1:], a[0]], "xyz": b} for n, a, b in zip(ns, q.tolist(), p.tolist())]
    (folder / "m.json").write_text(json.dumps({"device": "x", "poses": lists}))
    whole = [{"t": t, "T_world_head": [*a, *b]} for t, a, b in zip(TIMES.tolist(), q.tolist(), p.tolist())]
    (folder / "n.json").write_text(json.dumps(whole))
    matrices = [{"t": t, "poses": m} for t, m in zip(TIMES.tolist(), as_matrices(poses).tolist())]
    (folder / "o.json").write_text(json.dumps({"frames": matrices}))
    units = write_csv(folder / "p.csv", "Time (ms),q.w,q.x,q.y,q.z,Pos X,Pos Y,Pos Z", TIMES * 1000, q, p)
    return made | {"units": units} | {name: next(folder.glob(f"{name}.*")) for name in "ghijklmno"}


def test_every_container(tmp_path: Path) -> None:
    read = {name: load(path, axes="cpf") for name, path in tables(tmp_path).items()}
    assert len(read) == 16
    for name, found in read.items():
        assert np.abs(found.times_ns - TIMES * 1e9).max() < 10, name
        same_poses(found.T_world_cpf, head())
        assert not found.notes, name


def test_files_that_say_that_they_hold_cpf(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", T_world_cpf=head(), t=TIMES)
    same_poses(load(tmp_path / "a.npz").T_world_cpf, head())
    np.savez(tmp_path / "b.npz", Ts_world_cpf=head(), timestamps_ns=np.rint(TIMES * 1e9).astype(np.int64))
    same_poses(load(tmp_path / "b.npz").T_world_cpf, head())


def test_records_that_say_that_they_hold_cpf(tmp_path: Path) -> None:
    records = [{"t": t, "T_world_cpf": pose} for t, pose in zip(TIMES.tolist(), head().tolist())]
    (tmp_path / "a.json").write_text(json.dumps(records))
    same_poses(load(tmp_path / "a.json").T_world_cpf, head())
    (tmp_path / "b.json").write_text(json.dumps([*records[:5], {"t": 9.0}]))
    with pytest.raises(InputError, match="record 5: no T_world_cpf, which record 0 has"):
        load(tmp_path / "b.json")


def test_a_column_says_cpf_by_its_whole_name(tmp_path: Path) -> None:
    names = "t,qw,qx,qy,qz,x,y,z"
    poses = head()
    cpf = ",".join(f"{name}_world_cpf" for name in ("qw", "qx", "qy", "qz", "tx", "ty", "tz"))
    same_poses(load(write_csv(tmp_path / "a.csv", f"t,{cpf}", TIMES, poses[:, :4], poses[:, 4:])).T_world_cpf, poses)
    write_csv(tmp_path / "b.csv", f"{names},near_cpf", TIMES, poses[:, :4], poses[:, 4:], 0 * TIMES)
    with pytest.raises(InputError, match="whose axes"):
        load(tmp_path / "b.csv")


def test_axes_are_never_guessed(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", wxyz=head()[:, :4], xyz=head()[:, 4:], t=TIMES)
    with pytest.raises(InputError, match=r"whose axes .* --axes: cpf, aria, openxr"):
        load(tmp_path / "a.npz")


def test_orders_of_quaternions(tmp_path: Path) -> None:
    poses = head()
    swapped = np.concatenate((TIMES[:, None], poses[:, [1, 2, 3, 0]], poses[:, 4:]), axis=1)
    np.save(tmp_path / "a.npy", swapped)
    same_poses(load(tmp_path / "a.npy", axes="cpf", quaternion="xyzw").T_world_cpf, poses)
    warned = load(tmp_path / "a.npy", axes="cpf")
    assert any("It does with --quaternion xyzw" in note for note in warned.notes)
    np.savez(tmp_path / "b.npz", t=TIMES, wxyz=poses[:, :4], xyz=poses[:, 4:])
    with pytest.raises(InputError, match=r"--quaternion xyzw: .* names its quaternions in the order wxyz"):
        load(tmp_path / "b.npz", axes="cpf", quaternion="xyzw")


@pytest.mark.parametrize(("read_as", "advice"), [("cpf", "--axes openxr"), ("aria", "--axes openxr")])
def test_wrong_axes_are_noticed(read_as: str, advice: str, tmp_path: Path) -> None:
    quats, t = y_up_viewer(head())
    path = write_csv(tmp_path / "a.csv", "t,qw,qx,qy,qz,x,y,z", TIMES, quats, t)
    assert any(advice in note for note in load(path, axes=read_as).notes)
    assert other_readings(quats, DEVICES["openxr"], "wxyz", order_is_told=True) is None


# --- WebXR


def euler_yxz(quats: np.ndarray) -> np.ndarray:
    """Degrees about x, y, z of rotations Ry Rx Rz."""
    R = g.quat_to_rotmat(torch.from_numpy(quats)).numpy()
    x = np.arcsin(-R[:, 1, 2])
    y, z = np.arctan2(R[:, 0, 2], R[:, 2, 2]), np.arctan2(R[:, 1, 0], R[:, 1, 1])
    return np.degrees(np.stack((x, y, z), axis=1))


def webxr(**things: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """Contents of a recording of things given as quaternions and positions with y up."""
    content: dict[str, Any] = {}
    for name, (quats, t) in things.items():
        angles = euler_yxz(quats)
        content[name] = {
            "events": [],
            "poses": [
                {"timestamp": 1000 * time, "rotation": dict(zip("xyz", a)), "position": dict(zip("xyz", p))}
                for time, a, p in zip(TIMES.tolist(), angles.tolist(), t.tolist())
            ],
        }
    return content


def with_controllers() -> tuple[dict[str, Any], np.ndarray]:
    """A recording with controllers 0.2 m to each side and 0.6 m below the eyes, upright; and the controllers."""
    poses = head()
    left = as_matrices(poses)[:, :3, 0]
    places = np.stack([poses[:, 4:] + side * 0.2 * left - [0, 0, 0.6] for side in (1, -1)], axis=1)
    level = np.tile([1.0, 0, 0, 0], (len(poses), 1))
    things = {side: (level, places[:, k] @ Y_UP) for k, side in enumerate(("left", "right"))}
    return webxr(camera=y_up_viewer(poses), **things), places


def test_webxr_recordings(tmp_path: Path) -> None:
    content, places = with_controllers()
    (tmp_path / "a.json").write_text(json.dumps(content))
    found = load(tmp_path / "a.json", controller_offset="none")
    same_poses(found.T_world_cpf, head())
    for k, track in enumerate(found.wrists):
        assert track is not None and track.source == "controller"
        assert np.allclose(track.positions, places[:, k])
    moved = load(tmp_path / "a.json", controller_offset="0.01,0.02,0.1")
    for track, before, mirrored in zip(moved.wrists, found.wrists, (-1, 1)):
        assert track is not None and before is not None
        # upright controllers: their x is the world's x, y is up (z), z points back (-y)
        assert np.allclose(track.positions - before.positions, [mirrored * 0.01, -0.1, 0.02])
    swapped = load(tmp_path / "a.json", controller_offset="none", swap_hands=True).wrists
    assert swapped[0] is not None and np.allclose(swapped[0].positions, places[:, 1])


def test_controllers_that_are_off(tmp_path: Path) -> None:
    content, _ = with_controllers()
    for pose in content["left"]["poses"]:
        pose["position"] = {"x": 0, "y": 0, "z": 0}
    content["right"]["poses"][5]["position"] = {"x": 0, "y": 0, "z": 0}
    (tmp_path / "a.json").write_text(json.dumps(content))
    found = load(tmp_path / "a.json", controller_offset="none")
    assert found.wrists[0] is None and any("left controller: never tracked" in note for note in found.notes)
    assert found.wrists[1] is not None and len(found.wrists[1].times_ns) == len(TIMES) - 1
    with pytest.raises(InputError, match="has no wrists to swap"):
        content.pop("left"), content.pop("right")
        (tmp_path / "b.json").write_text(json.dumps(content))
        load(tmp_path / "b.json", swap_hands=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["camera"].update(poses=[]), "'camera' has no poses"),
        (lambda c: c["camera"]["poses"].insert(3, 7), "'camera': record 3: expected a mapping"),
        (lambda c: c["camera"]["poses"][4].pop("timestamp"), "record 4: timestamp must be a number, got 'None'"),
        (lambda c: c["left"]["poses"][2].update(rotation="x"), "'left': record 2: rotation must be 3 numbers"),
        (lambda c: c["camera"]["poses"][4]["position"].update(y=None), "record 4: y must be a number"),
        (lambda c: c["camera"]["poses"][4].pop("rotation"), "record 4: orientation must be 4 numbers"),
    ],
)
def test_damaged_recordings(change: Callable[[Any], Any], said: str, tmp_path: Path) -> None:
    content, _ = with_controllers()
    change(content)
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"a.json.*{said}"):
        load(tmp_path / "a.json")


# --- wrists of their own


def test_wrists_in_the_same_file_and_in_another(tmp_path: Path) -> None:
    quats, t = y_up_viewer(head())
    wrist = t - [0.0, 0.5, 0.2]
    wrist[7] = np.nan
    wanted = np.delete(wrist, 7, axis=0) @ Y_UP.T
    np.savez(tmp_path / "a.npz", t=TIMES, wxyz=quats, xyz=t, left_wrist=wrist)
    header = "t,qw,qx,qy,qz,x,y,z,right_wrist_x,right_wrist_y,right_wrist_z"
    write_csv(tmp_path / "b.csv", header, TIMES, quats, t, wrist)
    write_csv(tmp_path / "c.csv", "t,qw,qx,qy,qz,x,y,z", TIMES, quats, t)
    np.savez(tmp_path / "w.npz", timestamps_ms=TIMES * 1000, left_wrist=wrist)
    write_csv(tmp_path / "w.csv", "t_ms,right_wrist_x,right_wrist_y,right_wrist_z", TIMES * 1000, wrist)
    text = (tmp_path / "w.csv").read_text().replace("nan", "")
    (tmp_path / "w.csv").write_text(text)
    rows = zip(TIMES.tolist(), quats.tolist(), t.tolist(), wrist.tolist())
    records = [{"t": a, "wxyz": b, "xyz": c, "right_hand": dict(zip("xyz", d))} for a, b, c, d in rows]
    records[7]["right_hand"] = None
    (tmp_path / "d.json").write_text(json.dumps(records))
    del records[7]["right_hand"]
    (tmp_path / "e.json").write_text(json.dumps(records))
    seen = [None if np.isnan(row).any() else row for row in wrist.tolist()]
    arrays = {"t": TIMES.tolist(), "wxyz": quats.tolist(), "xyz": t.tolist(), "left_wrist": seen}
    (tmp_path / "f.json").write_text(json.dumps(arrays))
    for name, side, options in (
        ("a.npz", 0, {}),
        ("d.json", 1, {}),
        ("e.json", 1, {}),
        ("f.json", 0, {}),
        ("b.csv", 1, {}),
        ("c.csv", 0, {"wrists": tmp_path / "w.npz"}),
        ("c.csv", 1, {"wrists": tmp_path / "w.csv"}),
    ):
        found = load(tmp_path / name, axes="openxr", **options)
        track = found.wrists[side]
        assert track is not None and found.wrists[1 - side] is None
        assert np.allclose(track.positions, wanted) and len(track.times_ns) == len(TIMES) - 1
    write_csv(tmp_path / "z.csv", "t,left_wrist_x,left_wrist_y,left_wrist_z", TIMES + 60, wrist)
    with pytest.raises(InputError, match=r"z.csv: its times .* don't meet the head's"):
        load(tmp_path / "c.csv", axes="openxr", wrists=tmp_path / "z.csv")
    write_csv(tmp_path / "x.csv", "t,left_wrist_x", TIMES, wrist[:, 0])
    with pytest.raises(InputError, match="no wrists: expected left_wrist and right_wrist"):
        load(tmp_path / "c.csv", axes="openxr", wrists=tmp_path / "x.csv")
    write_csv(tmp_path / "y.csv", "left_wrist_x,left_wrist_y,left_wrist_z", wrist)
    with pytest.raises(InputError, match="no column is a time"):
        load(tmp_path / "c.csv", axes="openxr", wrists=tmp_path / "y.csv")


def test_controllers_among_plain_poses(tmp_path: Path) -> None:
    """In arrays and records, in both orders of quaternions; rows that hold none are left out and told."""
    quats, t = y_up_viewer(head())
    turned, held = quats[::-1], t - [0.3, 0.5, 0.2]
    wanted = controller_offset("grip") * [-1, 1, 1]
    places = held @ Y_UP.T + quat_to_rotmat(torch.from_numpy(turned.copy())).numpy() @ wanted @ Y_UP.T
    xyzw = [1, 2, 3, 0]
    whole = np.concatenate((turned, held), axis=1)
    np.savez(tmp_path / "a.npz", t=TIMES, wxyz=quats, xyz=t, left_controller=whole)
    other = np.concatenate((turned[:, xyzw], held), axis=1)
    np.savez(tmp_path / "b.npz", t=TIMES, quaternion=quats[:, xyzw], xyz=t, left_controller=other)
    np.savez(tmp_path / "c.npz", t=TIMES, xyzw=quats[:, xyzw], xyz=t, left_controller=as_matrices(whole))
    rows = zip(TIMES.tolist(), quats.tolist(), t.tolist(), whole.tolist())
    records = [{"t": a, "wxyz": b, "xyz": c, "left_controller": d} for a, b, c, d in rows]
    (tmp_path / "d.json").write_text(json.dumps(records))
    for name, options in (("a.npz", {}), ("b.npz", {"quaternion": "xyzw"}), ("c.npz", {}), ("d.json", {})):
        found = load(tmp_path / name, axes="openxr", controller_offset="grip", **options)
        assert found.wrists[0] is not None and found.wrists[1] is None and not found.notes, name
        assert np.abs(found.wrists[0].positions - places).max() < 1e-6, name
    whole[4, :4] = 0
    del records[9]["left_controller"]
    (tmp_path / "e.json").write_text(json.dumps(records))
    np.savez(tmp_path / "f.npz", t=TIMES, wxyz=quats, xyz=t, left_controller=whole)
    for name, row, said in (("e.json", 9, ""), ("f.npz", 4, "left controller: 1 of 120 rows were left out")):
        found = load(tmp_path / name, axes="openxr", controller_offset="grip")
        assert said in " ".join(found.notes) and bool(said) == bool(found.notes)
        assert found.wrists[0] is not None
        assert np.abs(found.wrists[0].positions - np.delete(places, row, axis=0)).max() < 1e-6


def test_a_controller_offset_is_for_the_hand_that_holds_it(tmp_path: Path) -> None:
    """With --swap-hands what the file calls left is the right hand's, and its offset is not mirrored."""
    quats, t = y_up_viewer(head())
    whole = np.concatenate((quats, t - [0.0, 0.5, 0.2]), axis=1)
    np.savez(tmp_path / "a.npz", t=TIMES, wxyz=quats, xyz=t, left_controller=whole)
    np.savez(tmp_path / "b.npz", t=TIMES, wxyz=quats, xyz=t, right_controller=whole)
    options = {"axes": "openxr", "controller_offset": "0.1,0,0"}
    swapped = load(tmp_path / "a.npz", swap_hands=True, **options).wrists[1]
    right = load(tmp_path / "b.npz", **options).wrists[1]
    assert swapped is not None and right is not None
    assert np.array_equal(swapped.positions, right.positions)


# --- bad input


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "t,qw,qx,qy,x,y,z\n", "no four columns are a quaternion"),
        ("a.csv", "t,qw,qx,qy,qz,x,y\n", "no three columns are a position"),
        ("a.csv", "frame,qw,qx,qy,qz,x,y,z\n", "no column is a time"),
        ("a.csv", "", "the file is empty"),
        ("a.csv", "t,qw,qx,qy,qz,x,y,z\n0,1,0,0,0,0,0\n", "line 2: 7 values, the header has 8"),
        ("a.csv", "t,qw,qx,qy,qz,x,y,z\n0,1,0,0,0,0,0,nan\n", "column z is not finite in data row 1"),
        ("a.csv", "t,qw,qx,qy,qz,x,y,z\n0,1,0,0,0,0,0,1\n", r"1 head pose\(s\); at least 2"),
        ("a.csv", "0,1,0,0,0,0,0\n1,1,0,0,0,0,0\n", "rows without a header must have 8 numbers"),
        ("a.csv", "t,qw,qx,qy,qz,x,y,z\n0,1,0,0,0,0,0,1\n1,0,0,0,0,0,0,1\n", "quaternion of row 2 has length 0.0000"),
        ("a.csv", "t;qw;qx;qy;qz;x;y;z\n0;1;0;0;0;0;0;1\n", "no commas: 't;qw;.* separated by commas; semicolons"),
        ("a.csv", "0\t1\t0\t0\t0\t0\t0\t1\n", "cells are separated by commas"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", '{"t": 0}\n{"t": 1}\n', "is it one record a line. Put them into one list"),
        ("a.json", "[]", "expected arrays by name"),
        ("a.json", "7", "expected arrays by name"),
        ("a.json", '{"a": 1}', "no head poses: expected wxyz"),
        ("a.json", '[{"t": 0, "xyz": [0, 0, 0]}]', "record 0 has no quaternion; it has: t, xyz"),
        ("a.json", '[{"t": 0, "wxyz": [1, 0, 0, 0], "xyz": [0, 0]}]', "record 0: xyz must be 3 numbers"),
        ("a.json", '[{"t": "x", "wxyz": [1, 0, 0, 0], "xyz": [0, 0, 0]}]', "record 0: t must be a number"),
        ("a.json", '{"t": [0, 1], "wxyz": [[1, 0, 0, 0], [1, 0, 0]], "xyz": [[0, 0, 0]]}', "rows of different lengths"),
        ("a.json", '{"t": ["a"], "wxyz": [[1, 0, 0, 0]], "xyz": [[0, 0, 0]]}', "t must be numbers"),
        ("a.npy", "no", "not an array of numbers"),
        ("a.npz", "no", "not an npz file"),
        ("a.bvh", "no", "are read from csv, npz, npy and json files, not from '.bvh'"),
    ],
)
def test_files_that_hold_no_head(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said) as caught:
        load(tmp_path / name, axes="cpf")
    assert name.split(".")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"t": TIMES, "wxyz": head()[:, :3], "xyz": head()[:, 4:]}, r"wxyz must have shape \(N, 4\)"),
        ({"t": TIMES[:9], "wxyz": head()[:, :4], "xyz": head()[:, 4:]}, r"t must have shape \(120,\)"),
        ({"wxyz": head()[:, :4], "xyz": head()[:, 4:]}, "no times: expected t"),
        ({"fps": np.array([1, 2]), "poses": head()}, "fps must be one number"),
        ({"t": TIMES, "poses": head()[:, :6]}, r"poses must have shape \(N, 7\)"),
        ({"t": TIMES, "poses": 2 * as_matrices(head())}, "the 3x3 part of matrix 0 is no rotation"),
        ({"t": TIMES, "poses": as_matrices(head()) * [[-1], [1], [1], [1]]}, "is no rotation"),
        ({"t": TIMES, "poses": as_matrices(head()).swapaxes(1, 2)}, "the last row of matrix 0 is not 0, 0, 0, 1"),
        ({"t": np.array(["a"] * 120), "poses": head()}, "t must hold numbers"),
        ({"t": TIMES * np.nan, "poses": head()}, "time 0 is not finite"),
        ({"t": TIMES * 1e12, "poses": head()}, "is the unit right"),
        ({"t": TIMES * 1e6, "poses": head()}, "lasts 550.9 hours"),
        ({"t": -TIMES, "poses": head()}, "time goes backwards in 119 of 120 rows"),
        ({"t": 0 * TIMES, "poses": head()}, r"all 120 head poses have one time"),
        ({"t": TIMES, "poses": head(), "left_controller": head()[:5]}, "left_controller has 5 poses"),
        ({"t": TIMES, "poses": head(), "left_wrist": head()[:, :3][:5]}, r"left_wrist must have shape \(120, 3\)"),
    ],
)
def test_arrays_that_do_not_fit(arrays: dict[str, np.ndarray], said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=said):
        load(tmp_path / "a.npz", axes="cpf")


def test_lost_tracking_is_told_with_its_row(tmp_path: Path) -> None:
    poses = head()
    poses[[4, 6], 5] = np.nan
    np.savez(tmp_path / "a.npz", t=TIMES, poses=poses)
    with pytest.raises(InputError, match=r"position of row 5 is not finite .* of 2 rows .* leave these rows out"):
        load(tmp_path / "a.npz", axes="cpf")


def test_text_in_utf_16_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("t,qw,qx,qy,qz,x,y,z\n".encode("utf-16"))
    with pytest.raises(InputError, match=r"a.csv: the text is UTF-16; save the table of head poses as UTF-8"):
        load(tmp_path / "a.csv", axes="cpf")


def test_numbers_are_real(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.concatenate((TIMES[:, None], head()), axis=1).astype(complex))
    np.savez(tmp_path / "b.npz", t=TIMES, poses=head().astype(complex))
    for name in ("a.npy", "b.npz"):
        with pytest.raises(InputError, match=r"numbers.* got complex128"):
            load(tmp_path / name, axes="cpf")


def test_a_file_of_wrists_names_its_own_columns(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", t=TIMES, poses=head())
    (tmp_path / "w.csv").write_text("left_wrist_x,left_wrist_y,left_wrist_z,t\n0,0,0,nan\n")
    with pytest.raises(InputError, match="column t is not finite"):
        load(tmp_path / "a.npz", axes="cpf", wrists=tmp_path / "w.csv")


def test_the_name_of_a_packed_table(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "walk.csv.gz", "t,qw,qx,qy,qz,x,y,z", TIMES, head()[:, :4], head()[:, 4:])
    assert load(path, axes="cpf").name == "walk"


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array({"a": 1}, dtype=object), allow_pickle=True)
    np.savez(tmp_path / "b.npz", t=np.array([{"a": 1}], dtype=object), poses=head())
    with pytest.raises(InputError, match="not an array of numbers"):
        load(tmp_path / "a.npy", axes="cpf")
    with pytest.raises(InputError, match="pickled"):
        load(tmp_path / "b.npz", axes="cpf")


def test_time_that_goes_back_is_left_out_with_a_word() -> None:
    stamps = np.array([0, 10, 20, 15, 30, 30, 40, 50, 60, 70, 80, 90], np.int64) * 1_000_000
    poses = head()[: len(stamps)]
    clean = clean_poses(stamps, poses[:, :4], poses[:, 4:], "it")
    assert (clean.times_ns // 1_000_000).tolist() == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert clean.kept.tolist() == [0, 1, 2, 4, 6, 7, 8, 9, 10, 11]
    assert len(clean.notes) == 1 and "first in row 4 by 0.005 s" in clean.notes[0]


def test_whole_nanoseconds_stay_exact() -> None:
    stamps = np.array([1_700_000_000_000_000_001, 1_700_000_000_000_000_003])
    assert nanoseconds(stamps, "ns", "it").tolist() == stamps.tolist()
    with pytest.raises(InputError, match="is the unit right"):
        nanoseconds(stamps, "ms", "it")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"axes": "vive"}, "--axes: there is no preset 'vive'. Presets: cpf "),
        ({"axes": "cpf", "device_cpf": "1,2"}, "expected three numbers x,y,z"),
        ({"axes": "cpf", "device_cpf": "0,0,80"}, "the eyes would be 80.00 m from the device"),
        ({"axes": "cpf", "device_cpf": "pose.txt"}, "x,y,z in metres, or a JSON file"),
        ({"axes": "cpf", "device_cpf": "none.json"}, "none.json: can't be read as a pose"),
        ({"axes": "cpf", "device_cpf": "vrs"}, "only Project Aria folders have a vrs file"),
        ({"axes": "cpf", "controller_offset": "long"}, "expected none, grip, wand or x,y,z"),
        ({"axes": "cpf", "controller_offset": "grip"}, "has no controllers; leave it out"),
        ({"axes": "cpf", "cpf_pitch": 10.0}, "at most 1.6 radians"),
        ({"axes": "cpf", "eye_height": 160.0}, "at most 2.5 metres"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", t=TIMES, poses=head())
    with pytest.raises(InputError, match=said):
        load(tmp_path / "a.npz", **options)


def test_options_that_mean_nothing_to_a_source(tmp_path: Path) -> None:
    content, _ = with_controllers()
    (tmp_path / "a.json").write_text(json.dumps(content))
    for name, value in (("unit", "mm"), ("time_unit", "s"), ("quaternion", "xyzw"), ("axes", "openxr")):
        with pytest.raises(InputError, match=f"--{name.replace('_', '-')} {value}: "):
            load(tmp_path / "a.json", **{name: value})
    (tmp_path / "b.json").write_text(json.dumps({"camera": content["camera"]}))
    with pytest.raises(InputError, match=r"--controller-offset grip: .* has no controllers"):
        load(tmp_path / "b.json", controller_offset="grip")
    np.savez(tmp_path / "a.npz", fps=60, poses=head())
    with pytest.raises(InputError, match=r"--time-unit ms: .* has frames per second and no times"):
        load(tmp_path / "a.npz", axes="cpf", time_unit="ms")


def test_tracks_are_checked() -> None:
    times = np.arange(3, dtype=np.int64)
    with pytest.raises(InputError, match="times_ns must rise"):
        WristTrack(times[::-1].copy(), np.zeros((3, 3)), np.ones(3), "track")
    with pytest.raises(InputError, match=r"positions must have shape \(3, 3\)"):
        WristTrack(times, np.zeros((2, 3)), np.ones(3), "track")
    with pytest.raises(InputError, match="must be finite"):
        WristTrack(times, np.full((3, 3), np.nan), np.ones(3), "track")
    with pytest.raises(InputError, match="must rise"):
        HeadTrajectory("it", times[::-1].copy(), head()[:3])
    with pytest.raises(InputError, match=r"int64 is needed"):
        HeadTrajectory("it", times.astype(float), head()[:3])
    with pytest.raises(InputError, match="head pose 1 is not finite"):
        HeadTrajectory("it", times, head()[:3] * np.array([[1], [np.nan], [1]]))


def test_read_poses_names_folders(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(InputError, match="expected a file, got a folder"):
        read_poses(tmp_path / "a.csv")
    with pytest.raises(InputError, match="no such file or folder"):
        load(tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"no closed_loop_trajectory.csv below it"):
        find_aria(tmp_path)


# --- real recordings


@pytest.mark.parametrize("name", ["dev-recording", "tracked-recording", "grabLeft", "grabRight"])
def test_real_vr_recordings(name: str, shared_data_dir: Path) -> None:
    """Against the same recordings as somebody else converted them (scipy's rotations, at 30 Hz)."""
    path = shared_data_dir / "head" / f"{name}.json"
    if not path.exists():
        pytest.skip("no VR recordings there")
    from mgrpo.infer.resampling import resample

    found = load(path, controller_offset="none")
    assert not found.notes
    (motion,), gaps = resample(found, max_gap_s=0.2)
    converted = np.load(shared_data_dir / "head" / f"head_vr_{name.replace('-', '_')}.npz")
    count = min(len(motion.T_world_cpf_all), len(converted["T_world_cpf"]))
    assert not gaps and abs(len(motion.T_world_cpf_all) - len(converted["T_world_cpf"])) <= 1
    assert np.abs(as_matrices(motion.T_world_cpf_all)[:count] - converted["T_world_cpf"][:count]).max() < 1e-6
    for side, key in enumerate(("left_controller", "right_controller")):
        apart = np.abs(motion.wrists[: count - 1, side] - converted[key][1:count, :3, 3])
        assert np.nanmax(apart) < 5e-3, "the same but for how repeated times are dealt with"
        assert np.isfinite(apart).mean() > 0.95


def test_the_real_aria_recording(shared_data_dir: Path) -> None:
    folder = shared_data_dir / "head"
    if not (folder / "closed_loop_trajectory.csv").exists():
        pytest.skip("no Aria recording there")
    found = load(folder)
    assert len(found) == 11_517 and found.seconds == pytest.approx(11.395, abs=1e-3)
    assert found.floor is not None and found.floor.source == "points"
    assert found.floor.height == pytest.approx(-1.49, abs=0.01)
    up = as_matrices(found.T_world_cpf)[:, 2, 1]
    assert up.mean() > 0.9
    assert any("nominal construction" in note for note in found.notes)
    steps = np.linalg.norm(np.diff(found.T_world_cpf[:, 4:], axis=0), axis=1).sum()
    assert steps == pytest.approx(7.67, abs=1.5), "the path's length as its summary says, of the eyes here"


def test_vrs_needs_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "projectaria_tools", None)
    with pytest.raises(InputError, match=r"pip install 'mgrpo\[aria\]'"):
        vrs_device_cpf(tmp_path / "a.vrs")
