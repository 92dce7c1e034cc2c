"""Motion files on one time line for `mgrpo view`: which frame stands where, posed as when measured."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgrpo.body import cpf_of, skin
from mgrpo.commands import view_files
from mgrpo.commands.view_files import chosen_samples, colors_for, default_names, read_stage
from mgrpo.data import save_clip
from mgrpo.errors import InputError
from mgrpo.eval import compare_files
from mgrpo.eval.formats import ReadOptions, RotationMotion, read_motions, read_tracks
from mgrpo.eval.pairing import pair
from mgrpo.geometry import axis_angle_to_quat, quat_to_rotmat
from mgrpo.viz.stage import Stage
from tests.mgrpo import motion_formats as formats
from tests.mgrpo import view_motion as motion

BODY = motion.BODY


def stage_of(*files: Path | str, truth: Path | str = "", **changes: Any) -> Stage:
    options = {
        "names": (), "body": BODY, "options": ReadOptions(), "truth_options": ReadOptions(side="truth"),
        "clip": "walk" if "demo" in (*files, truth) else "", "samples": 8, "start": 0.0,
        "seconds": 0.0, "say": lambda note: None,
    }  # fmt: skip
    return read_stage([str(file) for file in files], truth=str(truth), **(options | changes))


def test_a_pack_is_shown_as_it_was_recorded() -> None:
    stage = stage_of("demo")
    clip = motion.clips()["walk"]
    (actor,) = stage.actors
    assert (stage.title, stage.fps, stage.frames, stage.truth) == ("walk", 30.0, len(clip), None)
    recorded = motion.placed(clip)
    assert np.abs(actor.joints[0] - recorded.joints.numpy()).max() < 1e-5
    assert (quat_to_rotmat(torch.from_numpy(actor.quats[0])) - recorded.R_world_joint).abs().max() < 1e-5
    assert np.array_equal(actor.contacts[0], clip.contacts.numpy())


def test_vertices_are_those_of_skinning() -> None:
    stage = stage_of("demo")
    clip = motion.clips()["walk"]
    recorded = motion.placed(clip)
    expected = skin(BODY, recorded, quat_to_rotmat(clip.body_quats), clip.betas)
    for frame in (0, 17, len(clip) - 1):
        assert np.abs(stage.actors[0].vertices(0, frame) - expected[frame].numpy()).max() < 1e-5


def test_the_shape_is_the_mean_over_time(tmp_path: Path) -> None:
    file = motion.write_prediction(tmp_path / "a.npz")
    arrays = dict(np.load(file))
    arrays["betas"][:, :, 0] = np.linspace(-1, 1.8, arrays["betas"].shape[1])
    np.savez(file, **arrays)
    (actor,) = stage_of(file).actors
    betas = torch.zeros(16)
    betas[0] = 0.4
    assert np.abs(actor.surfaces[0].rest_joints - BODY.rest_joints(betas).numpy()).max() < 1e-5
    expected = BODY.mesh.v_template + BODY.mesh.shapedirs @ betas
    assert np.abs(actor.surfaces[0].rest_vertices - expected.numpy()).max() < 1e-5
    # the joints themselves are posed frame by frame, as they are measured
    assert np.abs(actor.joints[0] - read_tracks(file, ReadOptions(BODY))[0].joints[0].numpy()).max() < 1e-5


def test_samples_and_head_of_an_egoallo_output(tmp_path: Path) -> None:
    file = motion.write_prediction(tmp_path / "a.npz", samples=4)
    stage = stage_of(file)
    (actor,) = stage.actors
    (tracks,) = read_tracks(file, ReadOptions(BODY))
    assert actor.samples == 4 and len(actor.surfaces) == 4
    assert np.abs(actor.joints - tracks.joints.numpy()).max() < 1e-5
    assert np.abs(actor.T_world_cpf - np.load(file)["Ts_world_cpf"]).max() < 1e-6
    assert stage.start == 0  # alone, its own clock counts from its first frame
    assert stage_of(file, samples=2).actors[0].joints.shape[0] == 2


def test_the_head_of_a_recorded_motion_is_where_its_eyes_are() -> None:
    stage = stage_of("demo")
    clip = motion.clips()["walk"]
    expected = cpf_of(BODY, motion.placed(clip), clip.betas)
    (actor,) = stage.actors
    assert np.abs(actor.T_world_cpf[:, 4:] - expected[:, 4:].numpy()).max() < 1e-5
    assert np.abs(np.abs((actor.T_world_cpf[:, :4] * expected[:, :4].numpy()).sum(-1)) - 1).max() < 1e-5


def test_errors_are_those_that_metrics_reports(tmp_path: Path) -> None:
    prior = motion.write_prediction(tmp_path / "prior.npz", size=0.2, samples=3)
    truth = tmp_path / "walk.npz"
    save_clip(truth, motion.clips()["walk"])
    stage = stage_of(prior, truth=truth)
    recorded, shown = stage.actors
    assert stage.truth is recorded and recorded.color == 0 and recorded.error_mm is None
    measured = compare_files(prior, truth, body=BODY, trim="auto", per_frame=True).frames[0].values["mpjpe_mm"]
    assert shown.error_mm.shape == tuple(measured.shape) == (3, len(motion.clips()["walk"]) - 1)
    assert np.abs(shown.error_mm - measured.numpy()).max() < 1e-2
    assert shown.error_mm.mean() > 20


@pytest.mark.parametrize("first", [1, 7])
def test_frame_numbers_bring_a_prediction_to_its_truth(tmp_path: Path, first: int) -> None:
    file = motion.write_prediction(tmp_path / "a.npz", size=0.0, first=first)
    stage = stage_of(file, truth="demo")
    assert stage.frames == len(motion.clips()["walk"]) - first
    assert stage.start == pytest.approx(first / 30)
    assert np.abs(stage.actors[1].error_mm).max() < 0.05
    assert any("frame numbers" in note for note in stage.notes)


def test_clocks_bring_recordings_together(tmp_path: Path) -> None:
    made = formats.Made(frames=20)
    early = formats.write_egoallo(tmp_path / "a.npz", [made], clock_s=100.0)
    late = formats.write_egoallo(tmp_path / "b.npz", [made], clock_s=100.0 + 5 / 30)
    stage = stage_of(early, late)
    first, second = stage.actors
    assert stage.frames == 25 and stage.start == 0
    assert first.present.tolist() == [True] * 20 + [False] * 5
    assert second.present.tolist() == [False] * 5 + [True] * 20
    assert np.abs(second.joints[0, 5:] - first.joints[0, :20]).max() < 1e-5


@pytest.mark.parametrize("rate", [10.0, 30.0, 60.0])
def test_a_rate_that_is_told_overrules_time_stamps(tmp_path: Path, rate: float) -> None:
    made = formats.Made(frames=20)
    file = formats.write_egoallo(tmp_path / "a.npz", [made], clock_s=100.0)
    joints = tmp_path / "joints.npz"
    np.savez(joints, joints=made.joints.numpy(), timestamps_ns=np.arange(20) * 10**9)
    for path in (file, joints):
        stage = stage_of(path, options=ReadOptions(fps=rate))
        assert (stage.fps, stage.frames) == (rate, 20) and bool(stage.actors[0].present.all())
    truth = read_motions(file, ReadOptions(BODY))[0].tracks()
    told = read_motions(file, ReadOptions(BODY, fps=rate))[0].tracks()
    assert pair(told, truth, trim="auto", fps=rate).fps == rate
    with pytest.raises(InputError, match="--pred-fps and --gt-fps overrule"):
        pair(told, truth, trim="times")


def test_unrelated_files_begin_together(tmp_path: Path) -> None:
    short = formats.write_joints(tmp_path / "a.npz", formats.Made(frames=9))
    long = formats.write_amass(tmp_path / "b.npz", formats.Made(frames=20))
    stage = stage_of(short, long)
    assert stage.frames == 20
    assert stage.actors[0].present.sum() == 9 and stage.actors[1].present.all()
    assert stage.actors[0].surfaces == () and len(stage.actors[1].surfaces) == 1
    assert stage.actors[0].vertices(0, 3) is None and stage.actors[1].vertices(0, 3) is not None


def test_heads_are_shared_with_a_truth_and_everybodys_own_without(tmp_path: Path) -> None:
    walk = motion.write_prediction(tmp_path / "walk.npz")
    run = motion.write_prediction(tmp_path / "run.npz", "run")
    own = stage_of(walk, run)
    assert len(own.heads(own.actors)) == 2
    for actor, file in zip(own.actors, (walk, run)):
        given = np.load(file)["Ts_world_cpf"]
        assert np.abs(actor.T_world_cpf[: len(given)] - given).max() < 1e-6
    shared = stage_of(walk, truth="demo")
    assert len(shared.heads(shared.actors)) == 1
    # in another unit or with another axis the file's poses of the head are not ours: the posed body tells
    turned = stage_of(walk, options=ReadOptions(unit="cm"))
    assert np.abs(turned.actors[0].T_world_cpf[:, 4:] - np.load(walk)["Ts_world_cpf"][:, 4:]).max() > 0.5


def test_a_head_without_a_rotation_is_not_known(tmp_path: Path) -> None:
    stage = stage_of(formats.write_egoallo(tmp_path / "a.npz", [formats.Made()]))  # zeros for the head's poses
    assert stage.actors[0].gaze(3) is None


def test_other_rates_are_brought_to_the_lowest(tmp_path: Path) -> None:
    clip = motion.clips()["walk"]
    fast = dataclasses.replace(clip, fps=60.0)
    save_clip(tmp_path / "fast.npz", fast)
    save_clip(tmp_path / "slow.npz", clip)
    stage = stage_of(tmp_path / "fast.npz", tmp_path / "slow.npz")
    assert stage.fps == 30.0
    joints = motion.placed(clip).joints.numpy()
    shown = stage.actors[0]
    assert shown.present.sum() == (len(clip) + 1) // 2
    assert np.abs(shown.joints[0, : (len(clip) + 1) // 2] - joints[::2]).max() < 1e-5
    # alone it keeps its rate, and one of 120 loses every other frame
    assert stage_of(tmp_path / "fast.npz").fps == 60.0
    save_clip(tmp_path / "faster.npz", dataclasses.replace(clip, fps=120.0))
    assert stage_of(tmp_path / "faster.npz").fps == 60.0


def test_between_two_frames_joints_go_straight_and_turns_evenly(tmp_path: Path) -> None:
    clip = motion.clips()["walk"]
    half = np.sin(np.pi / 4)
    quats = torch.zeros(2, 21, 4)
    quats[..., 0] = 1.0
    quats[1, 14] = torch.tensor([half, 0.0, 0.0, half])  # the head turns by a quarter
    root = torch.tensor([[1.0, 0, 0, 0, 0, 0, 1], [1.0, 0, 0, 0, 0.1, 0, 1]])
    save_clip(
        tmp_path / "a.npz",
        dataclasses.replace(clip, fps=10.0, T_world_root=root, body_quats=quats, contacts=torch.zeros(2, 21)),
    )
    source = view_files.read_source("demo", "", 0, ReadOptions(BODY), clip="walk", samples=1, say=print)
    (moving,) = read_motions(tmp_path / "a.npz", ReadOptions(BODY))
    joints, turns = view_files.pose(
        dataclasses.replace(source, motion=moving), np.array([0.0, 0.5, 1.0]), np.ones(3, bool), lambda n: None
    )
    assert np.allclose(joints[0, 1], joints[0, [0, 2]].mean(0), atol=1e-6)
    expected = axis_angle_to_quat(torch.tensor([0.0, 0.0, np.pi / 4]))
    assert np.allclose(np.abs(turns[0, 1, 15]), expected.abs().numpy(), atol=1e-5)


def test_a_gap_in_the_frames_stays_empty(tmp_path: Path) -> None:
    file = formats.write_egoallo(tmp_path / "a.npz", [formats.Made(frames=12)])
    arrays = dict(np.load(file))
    numbers = np.array([0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15])
    arrays |= {"frame_nums": numbers, "timestamps_ns": numbers * 33_333_333}
    np.savez(file, **arrays)
    (actor,) = stage_of(file).actors
    assert np.flatnonzero(~actor.present).tolist() == [6, 7, 8, 9]


def test_a_part_of_a_motion() -> None:
    whole, part = stage_of("demo"), stage_of("demo", start=0.5, seconds=0.2)
    assert part.frames == 7 and part.start == pytest.approx(0.5)
    assert np.array_equal(part.actors[0].joints, whole.actors[0].joints[:, 15:22])
    assert part.seconds(3) == pytest.approx(0.6)
    assert part.frame_at(0.6) == 3 and part.frame_at(9) == 6 and part.frame_at(0) == 0


def test_only_what_is_shown_is_posed_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    placed = RotationMotion.placed

    def counted(self: RotationMotion, rows: Any = slice(None), **options: Any) -> Any:
        asked.append(len(rows))
        return placed(self, rows, **options)

    monkeypatch.setattr(RotationMotion, "placed", counted)
    monkeypatch.setattr(view_files, "_CHUNK", 8)
    stage = stage_of("demo")
    assert max(asked) <= 9 and sum(asked) >= stage.frames
    assert np.abs(stage.actors[0].joints[0] - motion.placed(motion.clips()["walk"]).joints.numpy()).max() < 1e-5


def test_a_quarter_of_an_hour_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = 27_000
    made = formats.Made(frames=2)
    root = torch.cat((made.root_quat, made.pelvis), dim=1)[:1].numpy().astype(np.float32)
    np.savez(
        tmp_path / "long.npz",
        Ts_world_root=np.tile(root, (1, frames, 1)),
        body_quats=np.tile(made.body_quats[:1].numpy().astype(np.float32), (1, frames, 1, 1)),
        betas=np.zeros((1, frames, 16), np.float32),
        frame_nums=np.arange(frames),
    )
    tracemalloc.start()
    stage = stage_of(tmp_path / "long.npz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert stage.frames == frames
    # numpy's share; an hour is four times this
    assert peak < 120e6
    monkeypatch.setattr(view_files, "MOST_BYTES", 1_000_000)
    with pytest.raises(InputError, match=r"would take .* GB; show fewer by --samples"):
        stage_of(tmp_path / "long.npz")


def test_a_frame_number_of_another_world_is_refused_before_its_frames_are_made(tmp_path: Path) -> None:
    file = formats.write_egoallo(tmp_path / "a.npz", [formats.Made(frames=12)])
    arrays = dict(np.load(file))
    del arrays["timestamps_ns"]
    np.savez(file, **(arrays | {"frame_nums": np.array([*range(11), 3 * 10**9])}))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"3,000,000,001 frames \(100,000,000 s at 30 per second\) of 1 motion"):
        stage_of(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10e6


def test_names_and_colours() -> None:
    assert default_names(["x/a.npz", "b.npz"]) == ["a", "b"]
    assert default_names(["x/a.npz", "y/a.npz"]) == ["x/a", "y/a"]
    assert default_names(["p/x/a.npz", "q/x/a.npz"]) == ["p/x/a.npz", "q/x/a.npz"]
    with pytest.raises(InputError, match="given twice"):
        default_names(["a.npz", "a.npz"])
    assert colors_for(["anything"]) == [2]
    assert colors_for(["a", "b", "c"]) == [1, 2, 3]
    assert colors_for(["post-trained", "x", "prior", "y"]) == [2, 3, 1, 4]


def test_choosing_a_clip_says_what_there_is() -> None:
    said: list[str] = []
    assert stage_of("demo", clip="", say=said.append).title == "backflip"
    assert "15 motions" in said[0] and "walk" in said[0]
    assert stage_of("demo", clip="w*", say=said.append).title == "walk" and len(said) == 1
    with pytest.raises(InputError, match=r"--clip: demo has no motion called 'fly'. It has: backflip, "):
        stage_of("demo", clip="fly")


def test_any_sample_can_be_the_solid_one(tmp_path: Path) -> None:
    several = motion.write_prediction(tmp_path / "several.npz", samples=4)
    with np.load(several) as archive:
        arrays = dict(archive)
    arrays["contacts"] = arrays["contacts"] * np.array([0.1, 0.2, 0.3, 0.4], np.float32)[:, None, None]
    np.savez(several, **arrays)
    one = motion.write_prediction(tmp_path / "one.npz", seed=5)
    first = stage_of(several, truth="demo").actors[1]
    stage = stage_of(several, one, truth="demo", sample=2, samples=3)
    truth, chosen, alone = stage.actors
    assert (truth.numbers, chosen.numbers, alone.numbers) == ((0,), (2, 0, 1), (0,))
    assert stage.sample_numbers == (0, 1, 2)
    order = [2, 0, 1]
    assert np.array_equal(chosen.joints, first.joints[order]) and np.array_equal(chosen.quats, first.quats[order])
    assert np.array_equal(chosen.contacts, first.contacts[order])
    assert chosen.contacts[0].max() == pytest.approx(0.3)
    assert np.array_equal(chosen.error_mm, first.error_mm[order])
    assert chosen.mean_error_mm == pytest.approx(float(np.nanmean(first.error_mm[2])), rel=1e-5)
    assert stage_of(one).sample_numbers == ()
    with pytest.raises(InputError, match=r"--sample 4: .*several.npz holds 4 samples, 0 to 3"):
        stage_of(several, one, sample=4)
    with pytest.raises(InputError, match="--sample 1: no file shown holds several samples"):
        stage_of(one, truth="demo", sample=1)


def test_a_clip_that_nothing_can_be_chosen_by_is_refused(tmp_path: Path) -> None:
    one = motion.write_prediction(tmp_path / "one.npz")
    with pytest.raises(InputError, match="--clip kick: no file shown holds several motions, or one of that name"):
        stage_of(one, clip="kick")
    assert stage_of(one, truth="demo", clip="kick").title == "kick", "the truth holds several"


def test_the_shape_is_that_of_the_chosen_sample(tmp_path: Path) -> None:
    file = motion.write_prediction(tmp_path / "a.npz", samples=2)
    with np.load(file) as archive:
        arrays = dict(archive)
    arrays["betas"][1, :, 0] = 1.5
    np.savez(file, **arrays)
    small, tall = stage_of(file).actors[0].surfaces
    chosen = stage_of(file, sample=1).actors[0].surfaces
    assert np.array_equal(chosen[0].rest_vertices, tall.rest_vertices)
    assert np.array_equal(chosen[1].rest_vertices, small.rest_vertices)
    assert np.abs(tall.rest_vertices - small.rest_vertices).max() > 0.02


def test_at_most_so_many_samples_are_shown() -> None:
    assert chosen_samples("a", 5, 0, 8) == (0, 1, 2, 3, 4)
    assert chosen_samples("a", 5, 3, 8) == (3, 0, 1, 2, 4) and chosen_samples("a", 5, 3, 1) == (3,)
    assert chosen_samples("a", 1, 3, 8) == (0,)


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    several = motion.write_prediction(tmp_path / "several.npz", samples=2)
    with pytest.raises(InputError, match="the truth must be one motion, it holds 2 samples"):
        stage_of(several, truth=several)
    made = formats.Made(frames=20)
    early = formats.write_egoallo(tmp_path / "a.npz", [made])
    late = formats.write_egoallo(tmp_path / "b.npz", [made], first=400)
    with pytest.raises(InputError, match=r"0.00 to 0.63 s, the others 13.33 to 13.97 s: no time in common"):
        stage_of(late, truth=early)
    with pytest.raises(InputError, match=r"--start 99 is after the end: the motion has 0.63 s"):
        stage_of(early, start=99.0)
    arrays = dict(np.load(early))
    arrays["frame_nums"] = arrays["frame_nums"][::-1]
    np.savez(tmp_path / "back.npz", **arrays)
    with pytest.raises(InputError, match=r"back.npz: frame numbers that don't rise"):
        stage_of(tmp_path / "back.npz")
    arrays = dict(np.load(early))
    arrays["Ts_world_root"][0, 3, 5] = np.nan
    np.savez(tmp_path / "nan.npz", **arrays)
    with pytest.raises(InputError, match=r"nan.npz: it has values that are not finite .* in frame 3 of sample 0"):
        stage_of(tmp_path / "nan.npz")
    assert stage_of(tmp_path / "nan.npz", start=0.2).frames == 14  # as the message says
    (tmp_path / "text.npz").write_text("no motion")
    with pytest.raises(InputError, match=r"text.npz: not a motion file of a known format"):
        stage_of(tmp_path / "text.npz")


def test_joints_alone_are_shown_with_errors(tmp_path: Path) -> None:
    made = formats.Made(frames=15)
    truth = formats.write_egoallo(tmp_path / "truth.npz", [made])
    file = formats.write_humanml3d(tmp_path / "joints.npy", made)
    stage = stage_of(file, truth=truth, options=ReadOptions(fps=30.0))
    assert np.abs(stage.actors[1].error_mm).max() < 0.01
    assert stage.actors[1].quats is None
    assert stage.actors[1].T_world_cpf is stage.actors[0].T_world_cpf is not None
    assert stage_of(file, options=ReadOptions(fps=30.0)).actors[0].T_world_cpf is None
