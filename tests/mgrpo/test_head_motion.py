"""Head trajectories at 30 Hz: times, gaps, wrists; the floor; what is said of heads that are no heads. Aria folders."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgrpo import geometry as g
from mgrpo.errors import InputError
from mgrpo.infer import aria
from mgrpo.infer.aria import find_aria, read_aria, vrs_device_cpf
from mgrpo.infer.checks import check_motion, find_jumps
from mgrpo.infer.devices import DEVICES, Y_UP
from mgrpo.infer.floor import choose_floor
from mgrpo.infer.pipeline import Prepared, prepare
from mgrpo.infer.resampling import resample
from mgrpo.infer.source import SourceConfig, load_trajectory
from mgrpo.infer.trajectory import Floor, HeadTrajectory, WristTrack
from tests.mgrpo.head_files import as_matrices, head, same_poses

SECONDS = 1_000_000_000


def trajectory(times: np.ndarray, poses: np.ndarray | None = None, **fields: Any) -> HeadTrajectory:
    """The head of the other test file at any times (seconds)."""
    stamps = np.rint(times * SECONDS).astype(np.int64)
    fields = {"floor": Floor(0.0, "world zero")} | fields
    return HeadTrajectory("it", stamps, head(times) if poses is None else poses, **fields)


# --- 30 Hz


@pytest.mark.parametrize("rate", [29.5, 72.0, 1000.0])
def test_frames_are_at_exact_times(rate: float) -> None:
    """Neither 30.3 Hz of 1 kHz nor nothing of 29.5 Hz; the turn between two poses is the shorter way."""
    times = np.arange(int(4 * rate)) / rate + 5.0
    poses = head(times)
    poses[::2, :4] *= -1
    (motion,), gaps = resample(trajectory(times, poses), max_gap_s=0.2)
    wanted = 5.0 + np.arange(len(motion) + 1) / 30
    assert not gaps and len(motion) == int((times[-1] - 5.0) * 30 + 1e-6)
    assert np.abs(motion.times_ns - wanted[1:] * SECONDS).max() <= 1
    same_poses(motion.T_world_cpf_all, head(wanted), atol=2e-3 if rate < 50 else 3e-4)
    assert motion.frame_nums.tolist() == list(range(1, len(motion) + 1))


def test_times_may_jitter() -> None:
    times = np.cumsum(np.random.default_rng(0).uniform(0.003, 0.02, 300))
    (motion,), _ = resample(trajectory(times), max_gap_s=0.2)
    same_poses(motion.T_world_cpf_all, head(times[0] + np.arange(len(motion) + 1) / 30), atol=1e-3)


def test_gaps_cut_and_are_told() -> None:
    times = np.arange(300) / 100
    keep = (times <= 1.0) | (times >= 1.5)
    keep[200:205] = False  # 60 ms: bridged
    recorded = trajectory(times[keep])
    (first, second), gaps = resample(recorded, max_gap_s=0.2)
    assert [(gap.start_s, gap.end_s, gap.why) for gap in gaps] == [(1.0, 1.5, "no poses")]
    assert first.frame_nums[-1] == 30 and second.frame_nums[0] == 46, "one count for the whole recording"
    same_poses(second.T_world_cpf_all, head(np.arange(45, 45 + len(second) + 1) / 30), atol=1e-3)
    (joined,), gaps = resample(recorded, max_gap_s=1.0)
    assert not gaps and len(joined) == 89
    told = check_motion(recorded, (first, second), resample(recorded, max_gap_s=0.2)[1], Floor(0.0, "option"))
    assert len(told) == 1 and "1 gap(s) without poses: 1.00 to 1.50 s" in told[0] and "--max-gap" in told[0]


def test_a_part_of_a_recording() -> None:
    recorded = trajectory(np.arange(300) / 100)
    (motion,), _ = resample(recorded, max_gap_s=0.2, start_s=0.5, end_s=1.5)
    assert motion.frame_nums[0] == 16 and motion.frame_nums[-1] == 45
    same_poses(motion.T_world_cpf_all, head(np.arange(15, 46) / 30), atol=1e-3)
    with pytest.raises(InputError, match=r"no stretch of three poses .* \(--start, --end"):
        resample(recorded, max_gap_s=0.2, start_s=2.95)
    with pytest.raises(InputError, match="no stretch of three poses"):
        resample(trajectory(np.arange(20) / 2), max_gap_s=0.2)


def test_wrists_meet_frames() -> None:
    """Interpolated across 0.1 s, else the nearest within a frame, else not seen; unsure sights don't count."""
    times = np.arange(300) / 100
    seen = np.array([0.50, 0.56, 1.00, 1.30, 1.32])
    positions = np.stack((seen, 0 * seen, 1 + 0 * seen), axis=1)
    stamps = np.rint(seen * SECONDS).astype(np.int64)
    sure = np.array([1.0, 1.0, 0.9, 0.6, 1.0])
    turns = np.tile(np.eye(3), (5, 1, 1)) * np.arange(1.0, 6.0)[:, None, None]
    track = WristTrack(stamps, positions, sure, "track", R_world_wrist=turns)
    (motion,), _ = resample(trajectory(times, wrists=(None, track)), max_gap_s=0.2)
    at = dict(zip(motion.frame_nums.tolist(), motion.wrists[:, 1]))
    assert np.isnan(motion.wrists[:, 0]).all()
    found = [number for number, place in at.items() if np.isfinite(place).all()]
    # 14/30 s (nearest of 0.5), 15 and 16/30 (between), 17/30 (0.567), 29..31/30 around 1.0, 39 and 40/30 around 1.32
    assert found == [14, 15, 16, 17, 29, 30, 31, 39, 40]
    assert at[16][0] == pytest.approx(16 / 30) and at[14][0] == 0.5 and at[30][0] == 1.0 and at[40][0] == 1.32
    sure_at = dict(zip(motion.frame_nums.tolist(), motion.wrist_confidence[:, 1]))
    assert sure_at[30] == 0.9 and sure_at[20] == 0.0
    assert motion.R_world_wrist is not None and motion.R_world_device is None
    assert motion.R_world_wrist[29, 1, 0, 0] == 3.0 and np.isnan(motion.R_world_wrist[29, 0]).all()


# --- the floor


def test_which_floor_is_taken() -> None:
    times = np.arange(300) / 30
    standing = trajectory(times)
    assert choose_floor(standing, "auto") == (Floor(0.0, "world zero"), ())
    assert choose_floor(standing, "zero")[0].height == 0.0
    assert choose_floor(standing, "-0.25")[0] == Floor(-0.25, "option")
    high = float(np.quantile(standing.T_world_cpf[:, 6], 0.9))
    assert choose_floor(standing, "standing", 1.7)[0].height == pytest.approx(high - 1.7)
    lifted = head(times) + np.array([0, 0, 0, 0, 0, 0, 3.0])
    for fields, said in (({}, "above the world's zero"), ({"floor": None}, "tells no floor")):
        floor, notes = choose_floor(trajectory(times, lifted, **fields), "auto", 1.6)
        assert floor.source == "standing" and floor.height == pytest.approx(high + 3.0 - 1.6)
        assert len(notes) == 1 and said in notes[0] and notes[0].startswith("WARNING")
    points = trajectory(times, lifted, floor=Floor(3.05, "points"))
    assert choose_floor(points, "auto") == (Floor(3.05, "points"), ())
    assert choose_floor(points, "points")[0].height == 3.05
    with pytest.raises(InputError, match="--floor points: it has no points"):
        choose_floor(standing, "points")
    for word in ("low", "nan", "1e9"):
        with pytest.raises(InputError, match="--floor must be auto, points, zero, standing, or a height"):
            choose_floor(standing, word)


# --- checks


def warnings_of(poses: np.ndarray, times: np.ndarray, **fields: Any) -> tuple[str, ...]:
    prepared = prepare(trajectory(times, poses, **fields), floor="zero")
    assert all(note.startswith("WARNING: ") for note in prepared.notes)
    return prepared.notes


TIMES = np.arange(900) / 30


def test_a_person_gives_no_warning() -> None:
    assert warnings_of(head(TIMES), TIMES) == ()


def test_unusual_heights() -> None:
    kneeling = head(TIMES)
    kneeling[:, 6] -= 0.9 * np.interp(np.arange(900), [300, 330, 500, 530], [0, 1, 1, 0])
    assert warnings_of(kneeling, TIMES) == (), "7 s on the knees are nothing"
    kneeling = head(TIMES)
    kneeling[:, 6] -= 0.9 * np.interp(np.arange(900), [280, 310, 690, 720], [0, 1, 1, 0])
    (told,) = warnings_of(kneeling, TIMES)
    assert "for 13 s on end outside 1.0 to 2.2 m" in told and "--floor or --eye-height" in told
    (told,) = warnings_of(head(TIMES) - np.array([0, 0, 0, 0, 0, 0, 1.5]), TIMES)
    assert "0.1" in told.split("m above the floor")[0]


@pytest.mark.parametrize(("unit", "factor"), [("cm", 100.0), ("mm", 1000.0), ("ft", 1 / 0.3048)])
def test_units_are_recognised_by_the_height(unit: str, factor: float) -> None:
    poses = head(TIMES) * np.array([1, 1, 1, 1, factor, factor, factor])
    assert any(f"--unit {unit}" in told for told in warnings_of(poses, TIMES))


def test_gravity_along_another_axis() -> None:
    turned = head(TIMES)
    quat = g.rotmat_to_quat(torch.from_numpy(Y_UP))
    turned[:, :4] = g.quat_multiply(quat, torch.from_numpy(turned[:, :4])).numpy()
    told = [text for text in warnings_of(turned, TIMES) if "gravity axis" in text]
    assert len(told) == 1 and "mostly along -y" in told[0] and "--axes" in told[0]


def test_a_head_that_walks_backwards() -> None:
    turned = head(TIMES)
    turned[:, :4] = g.quat_multiply(torch.from_numpy(turned[:, :4]), torch.tensor([0.0, 0, 1, 0]).double()).numpy()
    told = [text for text in warnings_of(turned, TIMES) if "looks back rather than ahead" in text]
    assert len(told) == 1 and "--axes unity" in told[0]


def test_speed_and_positions_that_stand_still() -> None:
    fast = head(TIMES)
    fast[:, 5] *= 8
    assert any("median speed is 8." in told and "--unit" in told for told in warnings_of(fast, TIMES))
    fixed = head(TIMES)
    fixed[:, 4:] = [0, 0, 1.6]
    assert any("tracks orientation only" in told for told in warnings_of(fixed, TIMES))


def test_jumps_are_told_and_can_be_cut() -> None:
    poses = head(TIMES)
    poses[400:, 4] += 2.0
    recorded = trajectory(TIMES, poses)
    whole = prepare(recorded, floor="zero")
    assert len(whole.motions) == 1 and len(whole.notes) == 1
    assert "jumps 1 time(s)" in whole.notes[0] and "13.30 s" in whole.notes[0] and "--cut-jumps" in whole.notes[0]
    assert find_jumps(recorded, whole.motions).tolist() == [pytest.approx(399 / 30 * SECONDS, abs=2)]
    cut = prepare(recorded, floor="zero", cut_jumps=True)
    assert [len(motion) for motion in cut.motions] == [399, 499]
    assert [gap.why for gap in cut.gaps] == ["jump"]
    assert np.abs(np.diff(cut.motions[0].T_world_cpf_all[:, 4])).max() < 0.05
    assert np.abs(np.diff(cut.motions[1].T_world_cpf_all[:, 4])).max() < 0.05
    spun = head(TIMES)
    spun[500:, :4] = g.quat_multiply(
        g.yaw_rotation(torch.tensor(2.0, dtype=torch.float64)), torch.from_numpy(spun[500:, :4])
    ).numpy()
    assert any("jumps 1 time(s)" in told for told in prepare(trajectory(TIMES, spun), floor="zero").notes)


@pytest.mark.parametrize("pose", range(100, 106))
def test_a_jump_is_found_whatever_part_of_it_falls_into_which_frame(pose: int) -> None:
    """Of 72 poses a second, every fifth frame lies in the middle of two; neither half of 0.45 m is a jump by itself."""
    times = np.arange(216) / 72
    poses = head(times)
    poses[pose:, 4] += 0.45
    recorded = trajectory(times, poses)
    whole = prepare(recorded, floor="zero")
    assert find_jumps(recorded, whole.motions).tolist() == [recorded.times_ns[pose - 1]]
    assert "jumps 1 time(s)" in whole.notes[0] and "--cut-jumps" in whole.notes[0]
    cut = prepare(recorded, floor="zero", cut_jumps=True)
    assert len(cut.motions) == 2 and "The motion is cut there" in cut.notes[0] and "--cut-jumps" not in cut.notes[0]
    for motion, moved in zip(cut.motions, (0.0, 0.45)):
        seconds = np.concatenate((motion.times_ns[:1] / SECONDS - 1 / 30, motion.times_ns / SECONDS))
        assert np.abs(motion.T_world_cpf_all[:, 4] - head(seconds)[:, 4] - moved).max() < 0.01


def test_a_jump_may_take_several_poses() -> None:
    times = np.arange(3000) / 1000
    poses = head(times)
    poses[:, 4] += np.clip((times - 1.505) / 0.01, 0.0, 1.0) * 0.6
    recorded = trajectory(times, poses)
    whole = prepare(recorded, floor="zero")
    assert find_jumps(recorded, whole.motions).tolist() == [pytest.approx(1.5 * SECONDS, abs=2)]


def test_a_gap_is_no_jump() -> None:
    times = np.delete(np.arange(600) / 60, slice(200, 260))
    poses = head(times)
    poses[200:, 4] += 30.0
    recorded = trajectory(times, poses)
    assert not len(find_jumps(recorded, prepare(recorded, floor="zero").motions))


def test_few_poses_per_second() -> None:
    times = np.arange(100) / 8
    (told,) = warnings_of(head(times), times)
    assert "only 8 poses per second" in told and "--time-unit" in told


def test_hands_that_are_swapped() -> None:
    poses = head(TIMES)
    left = as_matrices(poses)[:, :3, 0]
    stamps = np.rint(TIMES * SECONDS).astype(np.int64)
    tracks = [WristTrack(stamps, poses[:, 4:] + side * 0.2 * left, np.ones(900), "controller") for side in (1, -1)]
    assert warnings_of(poses, TIMES, wrists=tuple(tracks)) == ()
    (told,) = warnings_of(poses, TIMES, wrists=tuple(tracks[::-1]))
    assert "left wrist is mostly 0.20 m to the right" in told and "--swap-hands" in told


# --- Aria folders

ARIA_HEADER = (
    "graph_uid,tracking_timestamp_us,utc_timestamp_ns,tx_world_device,ty_world_device,tz_world_device,qx_world_device,"
    "qy_world_device,qz_world_device,qw_world_device,gravity_x_world,gravity_y_world,gravity_z_world,quality_score"
)
ARIA_TIMES = np.arange(3000) / 1000


def device_poses(times: np.ndarray, T_device_cpf: np.ndarray | None = None) -> np.ndarray:
    """Poses of glasses on the made-up head."""
    offset = DEVICES["aria"].T_device_cpf if T_device_cpf is None else T_device_cpf
    return g.se3_multiply(torch.from_numpy(head(times)), g.se3_inverse(torch.from_numpy(offset))).numpy()


def write_aria(folder: Path, times: np.ndarray = ARIA_TIMES, floor: float = -0.1, **changes: Any) -> Path:
    """An MPS folder: trajectory, points, wrists."""
    slam, hands = folder / "mps_a_vrs" / "slam", folder / "mps_a_vrs" / "hand_tracking"
    slam.mkdir(parents=True)
    hands.mkdir()
    poses = device_poses(times, changes.get("T_device_cpf"))
    gravity = changes.get("gravity", "0,0,-9.81")
    rows = [
        f"uid,{round(t * 1e6)},-1,{p[4]:.9f},{p[5]:.9f},{p[6]:.9f},{p[1]:.9f},{p[2]:.9f},{p[3]:.9f},{p[0]:.9f},"
        f"{gravity},1.0"
        for t, p in zip(times, poses)
    ]
    (slam / "closed_loop_trajectory.csv").write_text("\n".join([ARIA_HEADER, *rows, ""]))
    generator = np.random.default_rng(0)
    points = np.c_[generator.uniform(-3, 3, (3000, 2)), floor + generator.normal(0, 0.004, 3000)]
    room = np.c_[generator.uniform(-3, 3, (2000, 2)), generator.uniform(floor, floor + 2.5, 2000)]
    with gzip.open(slam / "semidense_points.csv.gz", "wt") as stream:
        stream.write("uid,graph_uid,px_world,py_world,pz_world,inv_dist_std,dist_std\n")
        for x, y, z in np.concatenate((points, room)):
            stream.write(f"1,u,{x:.6f},{y:.6f},{z:.6f},0.00005,0.002\n")
    (hands / "wrist_and_palm_poses.csv").write_text(wrist_table(times[::50], poses[::50]))
    return folder


def hands_of(poses: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Wrist and palm of each side in the world: half a metre below the eyes, palms 8 cm further along +y."""
    return {
        side: (poses[:, 4:] + [x, 0.2, -0.5], poses[:, 4:] + [x, 0.28, -0.5])
        for side, x in (("left", -0.2), ("right", 0.2))
    }


def wrist_table(times: np.ndarray, poses: np.ndarray) -> str:
    """``wrist_and_palm_poses.csv``: palms face down; the left hand is lost in the first second, the right one unsure in
    the last."""
    names = ["tracking_timestamp_us"]
    for side in ("left", "right"):
        names.append(f"{side}_tracking_confidence")
        names += [f"t{axis}_{side}_{part}_device" for part in ("wrist", "palm") for axis in "xyz"]
        names += [f"n{axis}_{side}_{part}_device" for part in ("palm", "wrist") for axis in "xyz"]
    back = torch.from_numpy(poses)
    lines = [",".join(names)]
    local: dict[str, list[np.ndarray]] = {}
    down = g.quat_apply(g.quat_conjugate(back[:, :4]), torch.tensor([0.0, 0, -1], dtype=torch.float64)).numpy()
    for side, (wrist, palm) in hands_of(poses).items():
        local[side] = [g.se3_apply(g.se3_inverse(back), torch.from_numpy(part)).numpy() for part in (wrist, palm)]
    for k, time in enumerate(times):
        cells = [str(round(time * 1e6))]
        for side in ("left", "right"):
            if side == "left" and time < 1.0:
                cells += ["-1", *["0"] * 12]
                continue
            numbers = [*local[side][0][k], *local[side][1][k], *down[k], *down[k]]
            cells += ["0.4" if side == "right" and time > 2.0 else "0.95", *(f"{value:.9f}" for value in numbers)]
        lines.append(",".join(cells))
    return "\n".join(lines) + "\n"


def test_an_aria_folder(tmp_path: Path) -> None:
    found = load_trajectory(write_aria(tmp_path / "rec"), SourceConfig())
    same_poses(found.T_world_cpf, head(ARIA_TIMES), atol=1e-6)
    assert found.floor is not None and found.floor.source == "points"
    assert found.floor.height == pytest.approx(-0.1, abs=0.002)
    assert found.name == "rec" and found.facts["T_device_cpf_nominal"] is True
    left, right = found.wrists
    assert left is not None and right is not None
    assert left.times_ns[0] == SECONDS and right.times_ns[0] == 0
    poses = device_poses(right.times_ns / SECONDS)
    assert np.abs(right.positions - hands_of(poses)["right"][0]).max() < 1e-5
    # palms down, fingers along +y: the left wrist's x lies along the fingers, the right one's against; y up
    assert left.R_world_wrist is not None and right.R_world_wrist is not None
    assert np.allclose(left.R_world_wrist[0], [[0, 0, -1], [1, 0, 0], [0, 1, 0]], atol=1e-5) or np.allclose(
        left.R_world_wrist[0][:, :2], [[0, 0], [1, 0], [0, 1]], atol=1e-5
    )
    assert np.allclose(right.R_world_wrist[0][:, :2], [[0, 0], [-1, 0], [0, 1]], atol=1e-5)
    assert np.allclose(np.linalg.det(right.R_world_wrist), 1.0)
    (motion,), _ = resample(found, max_gap_s=0.2)
    seen = np.isfinite(motion.wrists).all(axis=-1)
    assert not seen[:28, 0].any() and seen[32:, 0].all(), "lost in the first second"
    assert seen[:58, 1].all() and not seen[63:, 1].any(), "unsure after two"


def test_worlds_are_turned_by_gravity(tmp_path: Path) -> None:
    """A trajectory with y up, and points in the same world."""
    folder = write_aria(tmp_path / "rec")
    path = folder / "mps_a_vrs" / "slam" / "closed_loop_trajectory.csv"
    lines = path.read_text().splitlines()
    turned = [lines[0]]
    quarter = g.rotmat_to_quat(torch.from_numpy(Y_UP.T))
    for line in lines[1:]:
        cells = line.split(",")
        x, y, z = (float(cell) for cell in cells[3:6])
        qx, qy, qz, qw = (float(cell) for cell in cells[6:10])
        cells[3:6] = [f"{x:.9f}", f"{z:.9f}", f"{-y:.9f}"]
        w = g.quat_multiply(quarter, torch.tensor([qw, qx, qy, qz], dtype=torch.float64)).tolist()
        cells[6:10] = [f"{value:.9f}" for value in (*w[1:], w[0])]
        turned.append(",".join(cells).replace("0,0,-9.81", "0,-9.81,0"))
    path.write_text("\n".join(turned))
    cloud = path.parent / "semidense_points.csv.gz"
    with gzip.open(cloud, "rt") as stream:
        rows = stream.read().splitlines()
    with gzip.open(cloud, "wt") as stream:
        stream.write(rows[0] + "\n")
        for row in rows[1:]:
            a, b, x, y, z, *rest = row.split(",")
            stream.write(",".join([a, b, x, z, str(-float(y)), *rest]) + "\n")
    found = read_aria(find_aria(folder))
    same_poses(found.T_world_cpf, head(ARIA_TIMES), atol=1e-6)
    assert found.floor is not None and found.floor.height == pytest.approx(-0.1, abs=0.002)


def test_the_recordings_own_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for projectaria-tools with the same calls."""
    own = DEVICES["aria"].T_device_cpf + np.array([0, 0, 0, 0, 0.004, -0.003, 0.002])
    folder = write_aria(tmp_path / "rec", T_device_cpf=own)
    (folder / "video.vrs").write_bytes(b"vrs")

    class Stub:
        def __getattr__(self, name: str) -> Any:
            assert name in ("create_vrs_data_provider", "get_device_calibration", "get_transform_device_cpf")
            return lambda *_: self

        def to_matrix(self) -> np.ndarray:
            return as_matrices(own[None])[0]

    import sys
    import types

    core = types.ModuleType("projectaria_tools.core")
    core.data_provider = Stub()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "projectaria_tools", types.ModuleType("projectaria_tools"))
    monkeypatch.setitem(sys.modules, "projectaria_tools.core", core)
    found = load_trajectory(folder, SourceConfig(device_cpf="vrs"))
    same_poses(found.T_world_cpf, head(ARIA_TIMES), atol=1e-6)
    assert found.facts["T_device_cpf_nominal"] is False and not found.notes
    with pytest.raises(InputError, match="no such file; expected a recording"):
        vrs_device_cpf(folder / "none.vrs")
    (folder / "second.vrs").write_bytes(b"vrs")
    with pytest.raises(InputError, match="has no vrs file, or several"):
        load_trajectory(folder, SourceConfig(device_cpf="vrs"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"axes": "openxr"}, "--axes openxr: .* is a Project Aria recording"),
        ({"unit": "mm"}, "--unit mm: an Aria recording says this itself"),
        ({"quaternion": "xyzw"}, "--quaternion xyzw: "),
        ({"device_cpf": "vrs"}, "has no vrs file"),
    ],
)
def test_options_for_aria(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = write_aria(tmp_path / "rec", ARIA_TIMES[:100])
    with pytest.raises(InputError, match=said):
        load_trajectory(folder, SourceConfig(**options))


def test_parts_of_an_aria_folder_that_are_wrong(tmp_path: Path) -> None:
    folder = write_aria(tmp_path / "rec", ARIA_TIMES[:200])
    slam = folder / "mps_a_vrs" / "slam"
    path = slam / "closed_loop_trajectory.csv"
    text = path.read_text()
    for change, said in (
        (lambda s: s.replace("0,0,-9.81", "0,0,-1"), "gravity has length 1 "),
        (lambda s: s.replace("qw_world_device", "qq"), "needs the column qw_world_device"),
        (lambda s: "\n".join(s.splitlines()[:2]), r"1 head pose\(s\)"),
        (lambda s: s.splitlines()[0], r"0 head pose\(s\)"),
    ):
        path.write_text(change(text))
        with pytest.raises(InputError, match=said):
            load_trajectory(folder, SourceConfig())
    path.write_text(text)
    second = folder / "other"
    second.mkdir()
    (second / "closed_loop_trajectory.csv").write_text(text)
    with pytest.raises(InputError, match=r"2 trajectories .* give the folder of one recording"):
        load_trajectory(folder, SourceConfig())
    found = load_trajectory(path, SourceConfig())
    assert len(found) == 200 and found.floor is not None, "the file itself says which"
    (slam / "semidense_points.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match=r"semidense_points.csv.gz: can't be read"):
        load_trajectory(path, SourceConfig())
    empty = tmp_path / "empty"
    (empty / "slam").mkdir(parents=True)
    (empty / "slam" / "open_loop_trajectory.csv").write_text(text)
    with pytest.raises(InputError, match="the open-loop trajectory drifts and is not used"):
        load_trajectory(empty, SourceConfig())


def test_few_points_are_no_floor(tmp_path: Path) -> None:
    folder = write_aria(tmp_path / "rec", ARIA_TIMES[:300])
    with gzip.open(folder / "mps_a_vrs" / "slam" / "semidense_points.csv.gz", "wt") as stream:
        stream.write("uid,graph_uid,px_world,py_world,pz_world,inv_dist_std,dist_std\n1,u,0,0,0,0.00005,0.001\n")
    found = load_trajectory(folder, SourceConfig())
    assert found.floor is None and any("too few certain points" in note for note in found.notes)
    prepared = prepare(found)
    assert isinstance(prepared, Prepared) and prepared.floor.source == "standing"


def test_a_pickle_of_hands_in_the_folder_is_named(tmp_path: Path) -> None:
    folder = write_aria(tmp_path / "rec", ARIA_TIMES[:200])
    (folder / "hamer_outputs.pkl").write_bytes(b"x")
    found = load_trajectory(folder, SourceConfig())
    assert found.hamer is None and any("mgrpo data hamer" in note for note in found.notes)


def test_digital_twins_are_turned(shared_data_dir: Path, tmp_path: Path) -> None:
    path = shared_data_dir / "head" / "adt_aria_trajectory.csv"
    if not path.exists():
        pytest.skip("no Aria Digital Twin sample there")
    (tmp_path / "aria_trajectory.csv").write_bytes(path.read_bytes())
    found = load_trajectory(tmp_path, SourceConfig())
    assert len(found) == 6 and found.facts["format"] == "Aria Digital Twin"
    assert found.T_world_cpf[0, 6] == pytest.approx(1.5, abs=0.1), "y of the file"
    assert as_matrices(found.T_world_cpf)[:, 2, 1].mean() > 0.7
    with pytest.raises(InputError, match="give the pose itself for Aria Digital Twin"):
        load_trajectory(tmp_path, SourceConfig(device_cpf="vrs"))


def test_the_extra_is_there_by_name() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f"\n{aria.EXTRA} = [" in text and "projectaria-tools" in text


def test_notes_add_up() -> None:
    recorded = trajectory(TIMES)
    assert recorded.with_notes("a").with_notes("b").notes == ("a", "b")
    assert dataclasses.replace(recorded, name="x").name == "x"
