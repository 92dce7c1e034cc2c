"""`mgrpo metrics` and `compare_files`: known differences give known numbers, whatever the format; what can't be
compared says so."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mgrpo import cli
from mgrpo.body import default_body
from mgrpo.errors import InputError
from mgrpo.eval import compare_files
from mgrpo.eval.alignment import ALIGNMENTS, align, heading
from mgrpo.eval.evaluate import EvaluationResult
from mgrpo.eval.formats import FORMATS as FORMATS_READ
from mgrpo.eval.formats import MotionTracks, ReadOptions, read_motions
from mgrpo.eval.joint_sets import JOINT_NAMES, JOINT_SETS, joint_rows
from mgrpo.eval.matching import match
from mgrpo.eval.metrics import METRICS
from mgrpo.eval.pairing import pair, resampled
from mgrpo.geometry import axis_angle_to_rotmat, geodesic_angle, quat_to_rotmat, yaw_rotation
from tests.mgrpo import motion_formats as formats
from tests.mgrpo.motion_formats import FRAMES, Made

BODY = default_body()


def tracks(made, **changes: object) -> MotionTracks:
    """The tracks of a made-up motion, with changes."""
    whole = {
        "name": "", "joints": made.joints[None], "fps": 30.0, "body_rotmats": quat_to_rotmat(made.body_quats)[None],
        "R_world_joint": made.placed.R_world_joint[None],
    }  # fmt: skip
    return MotionTracks(**(whole | changes))


def save(path: Path, joints: Tensor, fps: float = 30.0, **extra: object) -> Path:
    np.savez(path, joints=joints.numpy(), fps=fps, up="z", **extra)
    return path


def only(comparison) -> dict[str, float]:
    """Means of the only prediction."""
    (found,) = comparison.means().values()
    return found


FORMATS = {
    "AMASS": lambda path, made: formats.write_amass(path, made),
    "AMASS SMPL-X": lambda path, made: formats.write_amass_smplx(path, made),
    "EgoAllo": lambda path, made: formats.write_egoallo(path, [made]),
    "WHAM": lambda path, made: formats.write_wham(path, {0: made}),
    "GVHMR": lambda path, made: formats.write_gvhmr(path, made),
    "joints": lambda path, made: formats.write_joints(path, made),
    "HumanML3D": lambda path, made: formats.write_humanml3d(path.with_suffix(".npy"), made),
    "MDM": lambda path, made: formats.write_mdm(path.with_suffix(".npy"), [[made]]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_zero_against_itself_and_a_known_offset(name: str, tmp_path: Path) -> None:
    """Any format against AMASS of the same motion, and of the motion 50 mm away and turned at one joint."""
    made, moved = Made(1), Made(1)
    moved.pelvis = made.pelvis + torch.tensor([0.03, 0.0, 0.04], dtype=torch.float64)
    moved.trans = made.trans + torch.tensor([0.03, 0.0, 0.04], dtype=torch.float64)
    moved.joints = made.joints + torch.tensor([0.03, 0.0, 0.04], dtype=torch.float64)
    truth = formats.write_amass(tmp_path / "truth.npz", made)
    options = {"body": "default", "pred_options": ReadOptions(fps=30.0)}
    found = only(compare_files(FORMATS[name](tmp_path / "same.npz", made), truth, **options))
    for metric in (
        "mpjpe_mm",
        "pa_mpjpe_mm",
        "mpjre_geodesic_deg",
        "mpjre_paper_deg",
        "head_position_mm",
        "head_angle_deg",
    ):
        if metric in found:
            assert found[metric] == pytest.approx(0, abs=3e-3), metric
    assert found["jitter_ratio"] == pytest.approx(1, abs=2e-3)
    found = only(compare_files(FORMATS[name](tmp_path / "moved.npz", moved), truth, **options))
    assert found["mpjpe_mm"] == pytest.approx(50, abs=2e-3)
    assert found["head_position_mm"] == pytest.approx(50, abs=2e-3)
    assert found["pa_mpjpe_mm"] == pytest.approx(0, abs=3e-3)
    assert found["mpjve_mm_s"] == pytest.approx(0, abs=0.1)
    assert ("mpjre_geodesic_deg" in found) == (name not in ("joints", "HumanML3D", "MDM"))


def test_a_known_turn(tmp_path: Path) -> None:
    made, turned = Made(1), Made(1)
    turn = torch.tensor([0.0, 0.0, 0.3], dtype=torch.float64)
    R = quat_to_rotmat(made.body_quats)
    from mgrpo.geometry import rotmat_to_quat

    turned.body_quats = rotmat_to_quat(R @ axis_angle_to_rotmat(turn))
    formats.write_amass(tmp_path / "a.npz", turned)
    formats.write_amass(tmp_path / "b.npz", made)
    found = only(compare_files(tmp_path / "a.npz", tmp_path / "b.npz", body=BODY))
    assert found["mpjre_geodesic_deg"] == pytest.approx(math.degrees(0.3), rel=1e-6)
    found = only(compare_files(tmp_path / "a.npz", tmp_path / "b.npz", body=BODY, joints=["left_wrist"]))
    assert found["mpjre_geodesic_deg"] == pytest.approx(math.degrees(0.3), rel=1e-6)


# ---- alignment ----


def test_alignments_undo_what_they_say() -> None:
    made = Made(1)
    truth = tracks(made)
    R = quat_to_rotmat(yaw_rotation(torch.tensor(0.7, dtype=torch.float64)))
    shift = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    yawed = tracks(made, joints=truth.joints @ R.T + shift, R_world_joint=R @ truth.R_world_joint)
    for kind in ("first-frame-yaw", "rigid"):
        back = align(yawed, truth, kind)
        torch.testing.assert_close(back.joints, truth.joints)
        assert float(geodesic_angle(back.R_world_joint, truth.R_world_joint).max()) < 1e-7
    tilted = axis_angle_to_rotmat(torch.tensor([0.4, 0.2, 0.1], dtype=torch.float64))
    moved = tracks(made, joints=truth.joints @ tilted.T + shift, R_world_joint=tilted @ truth.R_world_joint)
    torch.testing.assert_close(align(moved, truth, "rigid").joints, truth.joints)
    first = align(moved, truth, "first-frame-yaw")
    assert float((first.joints - truth.joints).abs().max()) > 0.1  # it does not undo a tilt
    torch.testing.assert_close(heading(first.joints[:, 0]), heading(truth.joints[:, 0]))
    torch.testing.assert_close(first.joints[:, 0, 0], truth.joints[:, 0, 0])
    torch.testing.assert_close(  # its tilt is its own: the spine's angle to the vertical is that of the prediction
        (first.joints[:, 0, 12] - first.joints[:, 0, 0])[:, 2], (moved.joints[:, 0, 12] - moved.joints[:, 0, 0])[:, 2]
    )
    drift = torch.linspace(0, 1, FRAMES, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(align(tracks(made, joints=truth.joints + drift), truth, "root").joints, truth.joints)
    assert align(moved, truth, "none") is moved
    with pytest.raises(InputError, match="one of none, first-frame-yaw"):
        align(moved, truth, "yaw")  # type: ignore[arg-type]


def test_a_rigid_fit_looks_at_masked_frames_only_and_keeps_the_size() -> None:
    made = Made(1)
    truth = tracks(made)
    joints = truth.joints + 1.0
    joints[:, -3:] += 5.0
    mask = torch.ones(FRAMES, dtype=torch.bool)
    mask[-3:] = False
    torch.testing.assert_close(
        align(tracks(made, joints=joints), truth, "rigid", mask).joints[:, :-3], truth.joints[:, :-3]
    )
    larger = align(tracks(made, joints=1.5 * truth.joints), truth, "rigid")
    torch.testing.assert_close(larger.joints.mean((1, 2)), truth.joints.mean((1, 2)))
    length = (larger.joints[:, :, 4] - larger.joints[:, :, 1]).norm(dim=-1)
    torch.testing.assert_close(length, 1.5 * (truth.joints[:, :, 4] - truth.joints[:, :, 1]).norm(dim=-1))


def test_floor_measures_stay_where_the_prediction_stands(tmp_path: Path) -> None:
    made = Made(1)
    truth = save(tmp_path / "t.npz", made.joints)
    sunk = save(tmp_path / "p.npz", made.joints - torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    plain = only(compare_files(sunk, truth))
    fitted = only(compare_files(sunk, truth, align="rigid"))
    assert plain["mpjpe_mm"] == pytest.approx(1000) and fitted["mpjpe_mm"] == pytest.approx(0, abs=1e-6)
    for name in ("gp_mean_mm", "gp_sum_m", "fs_egoallo_m", "gnd", "jitter_m_s3", "jitter_ratio"):
        assert fitted[name] == pytest.approx(plain[name], rel=1e-9), name
    assert plain["gp_mean_mm"] > 900


# ---- joints ----


def test_parts_of_the_body(tmp_path: Path) -> None:
    made = Made(1)
    joints = made.joints.clone()
    joints[:, 20] += torch.tensor([0.0, 0.05, 0.0], dtype=torch.float64)
    truth, pred = save(tmp_path / "t.npz", made.joints), save(tmp_path / "p.npz", joints)
    expected = {"all": 50 / 22, "lower": 0, "wrists": 25, "left_wrist": 50, "arms": 50 / 8}
    for name, value in expected.items():
        comparison = compare_files(pred, truth, joints=[name])
        found = only(comparison)
        assert found["mpjpe_mm"] == pytest.approx(value, abs=1e-9), name
        assert ("pa_mpjpe_mm" in found) == (name not in ("wrists", "left_wrist"))
        assert found["fs_egoallo_m"] == pytest.approx(only(compare_files(pred, truth))["fs_egoallo_m"])
        assert found["head_position_mm"] == pytest.approx(0, abs=1e-9)
    assert set(JOINT_SETS["upper"]) | set(JOINT_SETS["lower"]) == set(JOINT_NAMES)
    assert not set(JOINT_SETS["upper"]) & set(JOINT_SETS["lower"])
    assert joint_rows(["feet", "left_foot"]) == (7, 8, 10, 11)
    with pytest.raises(InputError, match="called 'tail'"):
        compare_files(pred, truth, joints=["tail"])


# ---- frames ----


def linear(frames: int, fps: float, speed: float = 1.0) -> MotionTracks:
    """A body that moves along x by ``speed`` m/s without turning."""
    made = Made(1, frames=1)
    joints = made.joints + speed * torch.arange(frames, dtype=torch.float64)[:, None, None] / fps * torch.tensor(
        [1.0, 0, 0]
    )
    return MotionTracks("", joints[None], fps, format="joints npz")


def test_rates_are_brought_together() -> None:
    both = pair(linear(11, 20.0), linear(16, 30.0))
    assert (both.fps, len(both.pred), len(both.truth)) == (30.0, 16, 16)
    torch.testing.assert_close(both.pred.joints, both.truth.joints)
    assert any("20 to 30" in note for note in both.notes)
    both = pair(linear(21, 40.0), linear(16, 30.0), fps=10.0)
    assert (both.fps, len(both.pred)) == (10.0, 6)
    torch.testing.assert_close(both.pred.joints, both.truth.joints)
    same = linear(16, 30.0)
    assert pair(same, same).pred.joints is same.joints  # nothing is touched where rates agree


def test_rotations_are_interpolated_on_the_sphere() -> None:
    angle = torch.tensor([0.0, 1.0], dtype=torch.float64)
    R = quat_to_rotmat(yaw_rotation(angle))[None, :, None]
    one = MotionTracks(
        "", torch.zeros(1, 2, 22, 3, dtype=torch.float64), 1.0, R.expand(1, 2, 21, 3, 3), R.expand(1, 2, 22, 3, 3)
    )
    found = resampled(one, 4.0)
    expected = quat_to_rotmat(yaw_rotation(torch.arange(5, dtype=torch.float64) / 4))
    torch.testing.assert_close(found.body_rotmats[0, :, 3], expected)
    torch.testing.assert_close(found.R_world_joint[0, :, 3], expected)


def test_lengths_that_differ() -> None:
    with pytest.raises(InputError, match="has 9 frames, the truth 16; --trim"):
        pair(linear(9, 30.0), linear(16, 30.0))
    both = pair(linear(9, 30.0), linear(16, 30.0), trim="start")
    assert len(both.pred) == len(both.truth) == 9 and any("first 9 of" in note for note in both.notes)
    with pytest.raises(InputError, match="at 30 per second the prediction has 13"):
        pair(linear(9, 20.0), linear(16, 30.0))


def numbered(whole: MotionTracks, numbers: list[int], times: bool = False) -> MotionTracks:
    """Some frames of a motion, with their numbers, and times on a clock that starts at 7 s."""
    rows = torch.tensor(numbers)
    clock = 7.0 + np.array(numbers) / whole.fps if times else None
    return MotionTracks("", whole.joints[:, rows], whole.fps, frame_nums=np.array(numbers), times=clock)


def test_frame_numbers_choose_the_frames() -> None:
    whole = linear(30, 30.0)
    part = numbered(whole, list(range(5, 15)))
    both = pair(part, whole, trim="numbers")
    assert len(both.pred) == 10 and both.mask is None
    torch.testing.assert_close(both.pred.joints, both.truth.joints)
    with pytest.raises(InputError, match="frame numbers differ"):
        pair(part, numbered(whole, list(range(10))))
    with pytest.raises(InputError, match="no frame number in common"):
        pair(numbered(whole, [1, 2]), numbered(whole, [3, 4]), trim="numbers")
    assert pair(part, whole, trim="auto").notes == both.notes


def test_gaps_are_not_measured_across(tmp_path: Path) -> None:
    whole = linear(30, 30.0)
    with_gap = numbered(whole, [2, 3, 4, 5, 9, 10, 11, 12, 13])
    both = pair(with_gap, whole, trim="numbers")
    assert both.mask.tolist() == [True] * 4 + [False] * 3 + [True] * 5
    torch.testing.assert_close(both.pred.joints[:, both.mask], both.truth.joints[:, both.mask])
    pred = save(tmp_path / "p.npz", with_gap.joints, frame_nums=with_gap.frame_nums)
    truth = save(tmp_path / "t.npz", whole.joints)
    found = only(compare_files(pred, truth, trim="auto"))
    assert found["mpjve_mm_s"] == pytest.approx(0, abs=1e-9) and found["jitter_m_s3"] == pytest.approx(0, abs=1e-6)
    frames = compare_files(pred, truth, trim="auto", per_frame=True).frames[0].frames
    assert frames.tolist() == [0, 1, 2, 3, 7, 8, 9, 10, 11]
    with pytest.raises(InputError, match="have gaps"):
        pair(with_gap, linear(9, 30.0))
    with pytest.raises(InputError, match="brought to another rate"):
        pair(with_gap, whole, trim="numbers", fps=60.0)


def test_times_choose_the_frames() -> None:
    whole = linear(60, 30.0)
    coarse = linear(40, 20.0)
    pred, truth = numbered(coarse, list(range(4, 40)), True), numbered(whole, list(range(50)), True)
    for trim in ("times", "auto"):
        both = pair(pred, truth, trim=trim)
        assert both.fps == 30.0 and len(both.pred) == 44  # 0.2 s to 49 / 30 s
        torch.testing.assert_close(both.pred.joints, both.truth.joints)
    late = MotionTracks("", truth.joints, 30.0, times=truth.times + 1e4)
    with pytest.raises(InputError, match="of one clock"):
        pair(pred, late, trim="times")
    with pytest.raises(InputError, match="time stamps in both"):
        pair(pred, whole, trim="times")


def test_gaps_of_time_stamps_are_not_measured(tmp_path: Path) -> None:
    whole = numbered(linear(30, 30.0), list(range(30)), True)
    bent = dataclasses.replace(whole, joints=whole.joints + (torch.arange(30)[:, None, None] % 7) ** 2 * 0.1)
    there = [2, 3, 4, 5, 9, 10, 11, 12, 13]
    expected = [True] * 4 + [False] * 3 + [True] * 5
    with_gap = numbered(bent, there, True)
    for trim in ("times", "auto"):
        for both in (pair(with_gap, bent, trim=trim), pair(bent, with_gap, trim=trim)):  # whichever has the gap
            assert both.mask is not None and both.mask.tolist() == expected
            torch.testing.assert_close(both.pred.joints[:, both.mask], both.truth.joints[:, both.mask])
            assert any("3 of them lie in gaps" in note for note in both.notes)
    assert pair(bent, bent, trim="times").mask is None
    slow = numbered(bent, list(range(0, 30, 3)), True)  # a slower recording has no gaps
    assert pair(slow, bent, trim="times").mask is None and pair(bent, slow, trim="times").mask is None
    pred, truth = (
        save(tmp_path / name, one.joints, timestamps_ns=np.rint(one.times * 1e9).astype(np.int64))
        for name, one in (("p.npz", with_gap), ("t.npz", bent))
    )
    found = compare_files(pred, truth, trim="auto", per_frame=True)
    assert only(found)["mpjpe_mm"] < 1e-3 and only(found)["mpjve_mm_s"] < 0.1
    assert found.frames[0].frames.tolist() == [0, 1, 2, 3, 7, 8, 9, 10, 11]
    apart = dataclasses.replace(whole, times=np.concatenate((np.arange(15), 100 + np.arange(15))) / 30.0)
    between = dataclasses.replace(whole, times=1.0 + whole.times / 30)
    with pytest.raises(InputError, match="one of them has a gap"):
        pair(between, apart, trim="times")


def test_a_rate_comes_from_time_stamps_where_nothing_else_tells_it(tmp_path: Path) -> None:
    whole = linear(30, 30.0)
    stamps = np.rint(np.arange(30) * 1e9 / 60).astype(np.int64)
    there = np.r_[0:9, 20:30]  # a gap changes no rate
    for rows in (np.arange(30), there):
        path = tmp_path / f"{len(rows)}.npz"
        np.savez(path, joints=whole.joints[0, rows].numpy(), up="z", timestamps_ns=stamps[rows])
        (motion,) = read_motions(path, ReadOptions())
        assert motion.fps == 60.0 and not any("frame rate" in note for note in motion.notes)
    np.savez(path, joints=whole.joints[0].numpy(), up="z", timestamps_ns=stamps, fps=30.0)
    assert read_motions(path, ReadOptions())[0].fps == 30.0
    formats.write_egoallo(path, [Made(1)])
    arrays = dict(np.load(path))
    del arrays["frame_nums"]
    arrays["timestamps_ns"] = np.rint(np.cumsum(np.where(np.arange(FRAMES) == 3, 9, 1)) * 1e9 / 50).astype(np.int64)
    np.savez(path, **arrays)
    assert read_motions(path, ReadOptions(default_body()))[0].fps == 50.0


# ---- files and folders ----


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions with two samples, and truth, of three clips."""
    pred, truth = tmp_path / "pred", tmp_path / "truth"
    (pred / "sub").mkdir(parents=True)
    (truth / "sub").mkdir(parents=True)
    for index, name in enumerate(("a", "b", "sub/c")):
        made = Made(index)
        offset = torch.tensor([0.0, 0.01 * (index + 1), 0.0], dtype=torch.float64)
        save(truth / f"{name}_poses.npz", made.joints)
        save(pred / f"{name}.npz", torch.stack((made.joints + offset, made.joints - 3 * offset)))
    return pred, truth


def test_folders_are_matched_by_name(folders: tuple[Path, Path]) -> None:
    comparison = compare_files(*folders)
    (result,) = comparison.results
    assert isinstance(result, EvaluationResult) and result.window_names == ("a", "b", "sub/c") and result.samples == 2
    expected = torch.tensor([[10.0, 30.0], [20.0, 60.0], [30.0, 90.0]], dtype=torch.float64)
    torch.testing.assert_close(result.values["mpjpe_mm"][:, 0], expected)
    assert only(comparison)["mpjpe_mm"] == pytest.approx(40)
    # Two samples 4 d apart: d = 10, 20, 30 mm.
    spread = torch.tensor([[40.0], [80.0], [120.0]], dtype=torch.float64) / 2**0.5
    torch.testing.assert_close(result.group_values["diversity_joint_std_mm"], spread)
    statistic = result.statistics()["mpjpe_mm"]
    assert statistic.standard_error == pytest.approx(20 / 3**0.5)


def test_names_that_do_not_match(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pred, truth = folders
    (pred / "a.npz").rename(pred / "z.npz")
    with pytest.raises(InputError, match="prediction without truth: z; truth without prediction: a_poses"):
        compare_files(pred, truth)
    assert only(compare_files(pred, truth, missing="skip"))["mpjpe_mm"] == pytest.approx(50)
    (pred / "b.npy").write_bytes(b"x")
    with pytest.raises(InputError, match="two files are called b"):
        compare_files(pred, truth)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="has no motion files"):
        compare_files(pred, tmp_path / "nothing")
    with pytest.raises(InputError, match="no such file or folder"):
        compare_files(tmp_path / "absent", truth)


def test_names_match_but_for_common_endings() -> None:
    assert match(["x"], ["y"]) == {"x": "y"}
    assert match(["walk_1-32_seed0", "walk_33-64_seed0", "run_stageii"], ["walk", "run_poses"]) == {
        "walk_1-32_seed0": "walk", "walk_33-64_seed0": "walk", "run_stageii": "run_poses",
    }  # fmt: skip
    with pytest.raises(InputError, match="fits several truths"):
        match(["a", "b"], ["a_poses", "a_joints", "b"])


def test_several_predictions_and_paired_differences(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pred, truth = folders
    better = tmp_path / "better"
    for index, name in enumerate(("a", "b", "sub/c")):
        (better / name).parent.mkdir(parents=True, exist_ok=True)
        joints = Made(index).joints + torch.tensor([0.0, 0.01 * (index + 1), 0.0], dtype=torch.float64)
        save(better / f"{name}.npz", torch.stack((joints, joints)))
    comparison = compare_files({"first": pred, "second": better}, truth)
    table = comparison.table("all")
    rows = {row.name: row for row in table.rows}
    assert set(rows) == {"ground truth", "first", "second", "second - first"}
    difference = rows["second - first"].cells["mpjpe_mm"]
    assert difference.mean == pytest.approx(-20) and difference.standard_error == pytest.approx(10 / 3**0.5)
    # Another number of samples: averaged first, and said.
    single = tmp_path / "single"
    (single / "sub").mkdir(parents=True)
    for index, name in enumerate(("a", "b", "sub/c")):
        save(single / f"{name}.npz", Made(index).joints)
    comparison = compare_files({"first": pred, "single": single}, truth)
    assert any("averaged" in note for note in comparison.notes)
    rows = {row.name: row for row in comparison.table().rows}
    assert rows["single - first"].cells["mpjpe_mm"].mean == pytest.approx(-40)
    (single / "sub" / "c.npz").unlink()
    with pytest.raises(InputError, match="are of different clips, for example sub/c"):
        compare_files({"first": pred, "single": single}, truth, missing="skip")


def test_what_an_input_cannot_support_is_a_dash_with_its_reason(tmp_path: Path) -> None:
    made = Made(1)
    truth = formats.write_amass(tmp_path / "t.npz", made)
    comparison = compare_files(save(tmp_path / "p.npz", made.joints), truth, body="default")
    assert set(comparison.missing) == {
        "mpjre_geodesic_deg", "mpjre_paper_deg", "head_angle_deg", "head_rotation_frobenius"
    }  # fmt: skip
    table = comparison.table("standard")
    assert "mpjre_geodesic_deg" in [info.name for info in table.columns]
    assert all("mpjre_geodesic_deg" not in row.cells for row in table.rows)
    reasons = [note for note in table.notes if note.startswith("–")]
    assert len(reasons) == 1 and "MPJRE, Head angle: no rotations" in reasons[0] and "(joints npz)" in reasons[0]
    # Where only some clips lack it, the mean of the others stands, and that is said.
    folder, truths = tmp_path / "pred", tmp_path / "truth"
    folder.mkdir()
    truths.mkdir()
    for name in ("a", "b"):
        formats.write_amass(truths / f"{name}.npz", made)
    formats.write_amass(folder / "a.npz", made)
    save(folder / "b.npz", made.joints)
    comparison = compare_files(folder, truths, body="default")
    assert only(comparison)["mpjre_geodesic_deg"] == pytest.approx(0, abs=1e-5)
    assert any(note.startswith("Some clips are not in MPJRE") for note in comparison.table().notes)


def test_a_truth_that_stands_still_has_no_jitter_ratio(tmp_path: Path) -> None:
    made = Made(1)
    truth = save(tmp_path / "t.npz", made.joints[:1].expand(FRAMES, -1, -1))
    found = only(compare_files(save(tmp_path / "p.npz", made.joints), truth))
    assert math.isnan(found["jitter_ratio"]) and found["jitter_m_s3"] > 0


def test_every_dash_has_its_reason(tmp_path: Path) -> None:
    made = Made(1)
    huge = made.joints.clone()
    huge[3, 5] = 1e200
    cases = {
        "overflow (positions up to 1e+200 m)": (huge, made.joints),
        "the truth does not move": (made.joints, made.joints[:1].expand(FRAMES, -1, -1)),
        "it needs 4 frames in a row": (made.joints[:3], made.joints[:3]),
        "no foot touches the floor": (made.joints + torch.arange(FRAMES)[:, None, None], made.joints),
    }
    for number, (reason, (pred, truth)) in enumerate(cases.items()):
        paths = [save(tmp_path / f"{number}{side}.npz", joints) for side, joints in (("p", pred), ("t", truth))]
        comparison = compare_files(*paths, pred_options=ReadOptions(unit="m"), gt_options=ReadOptions(unit="m"))
        found = only(comparison)
        dashes = {name for name, value in found.items() if math.isnan(value)}
        assert dashes and dashes <= set(comparison.missing), reason
        notes = comparison.table("all").notes
        assert any(note.startswith("– ") and reason in note for note in notes), notes
        if number == 0:
            assert "mpjpe_mm" in dashes


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["pred", "gt"])
def test_joints_that_are_no_numbers_are_refused(
    side: str, value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Made(1)
    broken = made.joints.clone()
    broken[2, 20, 0] = value
    pred = save(tmp_path / "p.npz", broken if side == "pred" else made.joints)
    truth = save(tmp_path / "t.npz", broken if side == "gt" else made.joints)
    assert cli.main(["metrics", str(pred), str(truth)]) == 2
    said = "".join(capsys.readouterr().err.split())
    assert "notfinite" in said and "frame2" in said and ("p.npz" if side == "pred" else "t.npz") in said


@pytest.mark.parametrize("rate", ["1e-300", "0.01", "1e5", "1e300", "-1", "nan", "inf"])
@pytest.mark.parametrize("option", ["fps", "pred-fps", "gt-fps"])
def test_rates_that_no_motion_has(option: str, rate: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(save(tmp_path / "p.npz", Made(1).joints))
    assert cli.main(["metrics", path, path, f"--{option}={rate}"]) == 2
    assert f"--{option} must be 0.1 to 10000 frames per second" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(InputError, match=r"frame rate must be 0.1 to 10000|frame rate of the motion must be"):
        given = ReadOptions(fps=float(rate))
        compare_files(
            path,
            path,
            fps=float(rate) if option == "fps" else None,
            pred_options=given if option == "pred-fps" else None,
            gt_options=given if option == "gt-fps" else None,
        )


def test_a_rate_in_a_file_that_no_motion_has(tmp_path: Path) -> None:
    good = save(tmp_path / "t.npz", Made(1).joints)
    for rate in (1e-300, math.nan):
        with pytest.raises(InputError, match=r"p\.npz: .*0\.1 to 10000 frames per second"):
            compare_files(save(tmp_path / "p.npz", Made(1).joints, fps=rate), good)


def test_more_frames_than_memory_holds_are_refused() -> None:
    with pytest.raises(InputError, match=r"5,000,001 frames, more than 4,000,000; is a rate"):
        resampled(linear(51, 0.1), 10_000.0)
    late = {"frame_nums": None, "times": np.array([0.0, 1e15])}
    ends = [dataclasses.replace(linear(2, 30.0), **late) for _ in range(2)]
    with pytest.raises(InputError, match=r"would be .* frames, more than 4,000,000"):
        pair(*ends, trim="times")


# ---- command ----


def test_the_command_prints_and_writes(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pred, truth = map(str, folders)
    out = tmp_path / "out"
    words = ["metrics", pred, truth, "--family", "all", "--out", str(out), "--per-frame", "--name", "mine"]
    assert cli.main([*words, "--format", "json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "metrics.json").read_text())
    assert printed["models"][0]["name"] == "mine"
    assert printed["models"][0]["statistics"]["mpjpe_mm"]["mean"] == pytest.approx(40)
    assert printed["models"][0]["statistics"]["jitter_ratio"]["mean"] is not None
    assert any("No alignment" in note for note in printed["notes"]) and printed["missing"]
    assert {path.name for path in out.iterdir()} == {
        "metrics.md", "metrics.tex", "metrics.csv", "metrics.json", "metrics_clips.csv", "metrics_frames.csv"
    }  # fmt: skip
    with (out / "metrics_clips.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 6 and lines[5]["clip"] == "sub/c" and float(lines[5]["mpjpe_mm"]) == pytest.approx(90)
    with (out / "metrics_frames.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 6 * FRAMES and lines[0]["mpjre_geodesic_deg"] == ""
    assert float(lines[FRAMES + 1]["mpjpe_mm"]) == pytest.approx(30) and lines[1]["time_s"] == "0.0333333"
    for format, start in (("table", ""), ("markdown", "### Metrics"), ("latex", r"\begin{table}"), ("csv", "row,kind")):
        assert cli.main(["metrics", pred, truth, "--format", format]) == 0
        shown = capsys.readouterr().out
        assert start in shown and ("MPJPE" in shown or "mpjpe_mm" in shown)


def test_one_file_with_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Made(1)
    formats.write_humanml3d(tmp_path / "p.npy", made, unit=0.01)
    formats.write_amass(tmp_path / "t.npz", made)
    words = ["metrics", str(tmp_path / "p.npy"), str(tmp_path / "t.npz"), "--pred-fps", "30", "--body", "default"]
    assert cli.main([*words, "--format", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["models"][0]["statistics"]["mpjpe_mm"]["mean"] == pytest.approx(0, abs=1e-6)
    assert any("y-up detected" in note for note in content["notes"])
    assert any("cm detected" in note for note in content["notes"])
    assert cli.main([*words, "--format", "json", "--pred-up", "z", "--pred-unit", "m"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["models"][0]["statistics"]["mpjpe_mm"]["mean"] > 1000


BAD: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "no truth": (lambda d: [str(save(d / "a.npz", Made(1).joints))], "at least one prediction and then the truth"),
    "absent": (lambda d: [str(d / "a.npz"), str(save(d / "b.npz", Made(1).joints))], "no such file or folder"),
    "no body": (lambda d: [str(formats.write_amass(d / n, Made(1))) for n in ("a.npz", "b.npz")], "--body smplh"),
    "lengths": (
        lambda d: [str(save(d / "a.npz", Made(1, 5).joints)), str(save(d / "b.npz", Made(1).joints))], "--trim auto"
    ),
    "text": (
        lambda d: [str((d / "a.npz").write_text("x") and d / "a.npz"), str(save(d / "b.npz", Made(1).joints))],
        "known format",
    ),
    "samples of truth": (
        lambda d: [str(save(d / n, Made(1).joints.expand(2, -1, -1, -1))) for n in ("a.npz", "b.npz")],
        "the truth must be one motion",
    ),
    "names": (
        lambda d: [*(str(save(d / n, Made(1).joints)) for n in ("a.npz", "b.npz")), "--name", "x", "y"],
        "1 predictions, 2 names",
    ),
    "rate": (
        lambda d: [*(str(save(d / n, Made(1).joints)) for n in ("a.npz", "b.npz")), "--fps", "-3"],
        "frames per second",
    ),
    "joints": (
        lambda d: [*(str(save(d / n, Made(1).joints)) for n in ("a.npz", "b.npz")), "--joints", "tail"], "called 'tail'"
    ),
    "per frame": (
        lambda d: [*(str(save(d / n, Made(1).joints)) for n in ("a.npz", "b.npz")), "--per-frame"], "by --out"
    ),
    "body": (
        lambda d: [*(str(save(d / n, Made(1).joints)) for n in ("a.npz", "b.npz")), "--body", "nobody"], "unknown body"
    ),
    "twice": (lambda d: [str(save(d / "a.npz", Made(1).joints))] * 3, "given twice"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_mistakes_end_with_a_message_and_two(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, said = BAD[name]
    out = [] if name == "per frame" else ["--out", str(tmp_path / "out")]
    assert cli.main(["metrics", *words(tmp_path), *out]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert said in error and "Traceback" not in error
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_the_page_names_every_measure_format_and_alignment() -> None:
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text("utf-8")
    for info in METRICS.values():
        assert f"| {info.label} | `{info.name}` |" in page, info.name
    for format in FORMATS_READ:
        assert f"\n| {format.name} |" in page, format.name
    for name in ALIGNMENTS:
        assert f"`--align {name}`" in page, name
    for name in JOINT_SETS:
        assert name in page, name
