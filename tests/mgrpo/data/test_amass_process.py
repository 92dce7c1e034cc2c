"""One recording through every step: trim, mirror image, floor, rate, alignment, frames; with parity and without."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from benchmarks.amass_files import recording
from mgrpo.body import BodyModel, cpf_of, default_body, place_on_root
from mgrpo.body.skeleton import MIRROR_BODY, MIRROR_HANDS
from mgrpo.data.amass.gender import BetasConversion
from mgrpo.data.amass.process import ClipRules, PreparedClip, float64_body, prepare_recording
from mgrpo.data.amass.recording import Recording
from mgrpo.data.amass.writer import DATASETS
from mgrpo.geometry import axis_angle_to_quat, quat_to_rotmat, se3_apply, se3_multiply

BODY = float64_body(default_body())
NAME = "CMU/01/a_poses.npz"
DEFAULT = ClipRules()
PARITY = ClipRules(parity=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The recordings are small: on a busy machine, threads that wait for each other are most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(frames: int, fps: float, **options: object) -> Recording:
    arrays = recording(frames, fps, **options)  # type: ignore[arg-type]
    return Recording(
        arrays["poses"].reshape(frames, 52, 3), arrays["trans"], arrays["betas"], str(arrays["gender"]), fps
    )


def clips(source: Recording, rules: ClipRules = DEFAULT, name: str = NAME) -> list[PreparedClip]:
    found, reason = prepare_recording(source, name, BODY, rules, None)
    assert reason is None
    return [clip for clip in found if clip is not None]


def tensors(clip: PreparedClip) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array).double() for name, array in clip.arrays.items()}


def quats_of(source: Recording, rows: np.ndarray) -> np.ndarray:
    return axis_angle_to_quat(torch.from_numpy(source.poses[rows])).numpy()


def same_rotations(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.abs((actual * expected).sum(-1)), 1, atol=2e-6)


@pytest.mark.parametrize("rules", [ClipRules(), PARITY])
def test_datasets_have_their_shapes_and_agree_with_each_other(rules: ClipRules) -> None:
    for clip in clips(made(300, 60.0), rules):
        assert set(clip.arrays) == set(DATASETS)
        for name, shape in DATASETS.items():
            assert clip.arrays[name].shape == ((1 if name == "betas" else clip.frames), *shape)
            assert clip.arrays[name].dtype == np.float32
        found = tensors(clip)
        placed = place_on_root(
            BODY.body_only(), quat_to_rotmat(found["body_quats"]), found["betas"], found["T_world_root"]
        )
        joints = se3_apply(found["T_world_cpf"][:, None], found["joints_wrt_cpf"])
        torch.testing.assert_close(joints, placed.joints[:, 1:], atol=3e-6, rtol=0)
        cpf = cpf_of(BODY.body_only(), placed, found["betas"])
        torch.testing.assert_close(found["T_world_cpf"][:, 4:], cpf[:, 4:], atol=3e-6, rtol=0)
        same_rotations(found["T_world_cpf"][:, :4].numpy(), cpf[:, :4].numpy())
        after = se3_multiply(found["T_world_cpf"][:-1], found["T_cpf_tm1_cpf_t"][1:])
        torch.testing.assert_close(after[:, 4:], found["T_world_cpf"][1:, 4:], atol=3e-6, rtol=0)
        assert torch.equal(found["height_from_floor"][:, 0], found["T_world_cpf"][:, 6])
        torch.testing.assert_close(found["body_quats"].norm(dim=-1), torch.ones(clip.frames, 21).double())


def test_pelvis_is_trans_and_its_place_in_the_rest_pose() -> None:
    source = made(60, 30.0)  # 6 .. 53 after the trim, 7 .. 52 without the ends, 8 .. 52 stored
    # SMPL-H's pelvis is not at the origin of its file, as the default body's is
    shift = torch.tensor([0.02, -0.3, 0.05], dtype=torch.float64)
    moved = dataclasses.replace(BODY, J_template=BODY.J_template + shift)
    found, _ = prepare_recording(source, NAME, moved, ClipRules(mirror=False), None)
    clip = found[0]
    assert clip is not None and clip.floor_height is not None
    offset = moved.rest_joints(torch.from_numpy(source.betas))[0].numpy()
    expected = source.trans[8:53] + offset - [0, 0, clip.floor_height]
    np.testing.assert_allclose(clip.arrays["T_world_root"][:, 4:], expected, atol=1e-6)
    np.testing.assert_allclose(clip.arrays["betas"][0], source.betas, atol=1e-6)


@pytest.mark.parametrize("floor", [-1.3, 0.0, 0.6])
@pytest.mark.parametrize("rules", [ClipRules(), PARITY])
def test_feet_stand_on_the_floor_wherever_it_was(floor: float, rules: ClipRules) -> None:
    for clip in clips(made(240, 60.0, floor=floor), rules):
        found = tensors(clip)
        toes = se3_apply(found["T_world_cpf"][:, None], found["joints_wrt_cpf"])[:, [9, 10], 2]
        assert clip.floor_height == pytest.approx(floor, abs=0.01)  # the toes of a body differ by a few millimetres
        assert abs(float(toes.min()) - 0.01) < 1e-3
        standing = found["contacts"][:, [9, 10]].sum(1) == 2
        assert 0 < int(standing.sum()) < clip.frames


@pytest.mark.parametrize(
    ("fps", "frames", "default", "parity"),
    [
        # after the trim 0.8 of the frames, two less for the ends, and the first at 30 fps has no predecessor
        (30.0, 100, 77, 77), (60.0, 200, 78, 78), (120.0, 430, 85, 84), (240.0, 850, 84, 83), (59.0, 200, 79, 79),
        (100.0, 300, 71, 70), (25.0, 100, 92, 92), (119.88, 400, 79, 78),
    ],
)  # fmt: skip
def test_frames_at_30_per_second(fps: float, frames: int, default: int, parity: int) -> None:
    kept = len(range(int(0.1 * frames), int(0.9 * frames))) - 2
    assert default == int((kept - 1) * 30 / fps + 1e-6) and parity == int(30 / fps * kept) - 1
    for rules, expected in ((ClipRules(mirror=False), default), (ClipRules(parity=True, mirror=False), parity)):
        assert clips(made(frames, fps), rules)[0].frames == expected


def test_parity_picks_frames_and_fingers_one_frame_early() -> None:
    source = made(430, 120.0)
    (clip,) = clips(source, ClipRules(parity=True, mirror=False))
    first, kept = 43, 387 - 43 - 2
    rows = np.linspace(0, kept - 1, int(30 / 120 * kept)).astype(int)[1:]
    expected = quats_of(source, rows + first + 1)
    same_rotations(clip.arrays["body_quats"], expected[:, 1:22])
    same_rotations(clip.arrays["T_world_root"][:, :4], expected[:, 0])
    same_rotations(clip.arrays["hand_quats"], quats_of(source, rows + first)[:, 22:])


def test_default_takes_exact_times_and_aligned_fingers() -> None:
    source = made(430, 120.0)
    (clip,) = clips(source, ClipRules(mirror=False))
    rows = np.arange(44, 44 + 4 * 86, 4)[1 : clip.frames + 1]
    expected = quats_of(source, rows)
    same_rotations(clip.arrays["body_quats"], expected[:, 1:22])
    same_rotations(clip.arrays["hand_quats"], expected[:, 22:])


@pytest.mark.parametrize("fps", [25.0, 59.0, 100.0])
def test_default_interpolates_between_frames(fps: float) -> None:
    frames, speed, turn = int(5 * fps), 0.8, 0.6
    time = np.arange(frames) / fps
    poses, trans = np.zeros((frames, 52, 3)), np.zeros((frames, 3))
    trans[:, 0], poses[:, 12, 2], poses[:, 40, 0] = speed * time, turn * time, turn * time
    (clip,) = clips(Recording(poses, trans, np.zeros(16), "neutral", fps), ClipRules(mirror=False))
    at = (int(0.1 * frames) + 1) / fps + np.arange(1, clip.frames + 1) / 30
    x = clip.arrays["T_world_root"][:, 4] - float(BODY.J_template[0, 0])
    np.testing.assert_allclose(x, speed * at, atol=1e-5)
    np.testing.assert_allclose(2 * np.arcsin(clip.arrays["body_quats"][:, 11, 3]), turn * at, atol=1e-5)
    np.testing.assert_allclose(2 * np.arcsin(clip.arrays["hand_quats"][:, 18, 1]), turn * at, atol=1e-5)
    (picked,) = clips(Recording(poses, trans, np.zeros(16), "neutral", fps), ClipRules(parity=True, mirror=False))
    steps = np.diff(picked.arrays["T_world_root"][:, 4])
    uneven = steps.max() - steps.min() > 0.2 * speed / fps
    assert uneven == (fps != 59.0)  # there two source frames are 0.0339 s, and the slip of a frame comes at the start


@pytest.mark.parametrize("stand", [0.4, 0.404, 0.408, 0.412, 0.416])
def test_labels_come_from_the_nearest_frame(stand: float) -> None:
    fps, frames = 100.0, 250
    source = made(frames, fps, stand=stand)
    (clip,) = clips(source, ClipRules(mirror=False))
    step = np.linalg.norm(np.diff(source.trans, axis=0), axis=1) * fps
    moving = np.append(step, step[-1]) > 0.3
    times = 26 + np.arange(1, clip.frames + 1) * fps / 30
    nearest = np.floor(times + 0.5).astype(int)
    np.testing.assert_array_equal(clip.arrays["contacts"][:, 9] > 0, ~moving[nearest])


def mirrored_joints(clip: PreparedClip) -> torch.Tensor:
    found = tensors(clip)
    joints = se3_apply(found["T_world_cpf"][:, None], found["joints_wrt_cpf"])
    return joints[:, list(MIRROR_BODY)] * joints.new_tensor((-1.0, 1.0, 1.0))


def test_the_mirror_image() -> None:
    plain, mirrored = clips(made(300, 60.0))
    found = tensors(mirrored)
    joints = se3_apply(found["T_world_cpf"][:, None], found["joints_wrt_cpf"])
    torch.testing.assert_close(joints, mirrored_joints(plain), atol=1e-5, rtol=0)  # the default body is symmetric
    np.testing.assert_array_equal(mirrored.arrays["contacts"], plain.arrays["contacts"][:, list(MIRROR_BODY)])
    signs = np.array([1, 1, -1, -1])
    same_rotations(mirrored.arrays["hand_quats"], plain.arrays["hand_quats"][:, list(MIRROR_HANDS)] * signs)
    assert np.abs(mirrored.arrays["hand_quats"] - plain.arrays["hand_quats"]).max() > 0.1
    np.testing.assert_allclose(
        mirrored.arrays["T_world_cpf"][:, 4:], plain.arrays["T_world_cpf"][:, 4:] * [-1, 1, 1], atol=1e-5
    )


def test_parity_keeps_the_fingers_in_the_mirror() -> None:
    plain, mirrored = clips(made(300, 60.0), PARITY)
    np.testing.assert_array_equal(mirrored.arrays["hand_quats"], plain.arrays["hand_quats"])
    signs = np.array([1, 1, -1, -1])
    same_rotations(mirrored.arrays["body_quats"], plain.arrays["body_quats"][:, list(MIRROR_BODY)] * signs)


def test_no_mirror() -> None:
    assert len(clips(made(300, 60.0), ClipRules(mirror=False))) == 1


@pytest.mark.parametrize(("frames", "kept"), [(75, True), (74, False)])
def test_too_short_after_the_trim(frames: int, kept: bool) -> None:
    # 75 frames leave 7 .. 66: exactly a second at 60 fps
    found, reason = prepare_recording(made(frames, 60.0), NAME, BODY, ClipRules(), None)
    assert (reason is None) == kept and len(found) == (2 if kept else 0)
    if not kept:
        assert reason == "shorter than 1 s after the trim"


def test_rates_are_corrected_by_name() -> None:
    source = made(600, 120.0)
    assert clips(source)[0].frames == 119
    assert clips(source, name="BMLhandball/S01/a_poses.npz")[0].frames == 59
    assert prepare_recording(made(250, 120.0), "BMLhandball/a_poses.npz", BODY, ClipRules(), None)[1] is not None
    slow = clips(made(200, 60.0), ClipRules(mirror=False), "SSM_synced/20160930_50032/a_poses.npz")
    assert slow[0].frames == 79 and clips(made(200, 60.0))[0].frames == 78


def test_several_levels_and_terrain() -> None:
    source = made(400, 60.0, floor=0.2, step_up=0.3)
    for rules in (ClipRules(), PARITY):
        assert clips(source, rules)[0].floor_height == pytest.approx(0.2, abs=0.01)
        dropped, reason = prepare_recording(source, NAME, BODY, dataclasses.replace(rules, drop_terrain=True), None)
        assert reason == "terrain" and not dropped
        flat = made(400, 60.0, floor=0.2)
        assert clips(flat, dataclasses.replace(rules, drop_terrain=True))[0].floor_height is not None


def test_without_a_static_toe_nothing_is_moved() -> None:
    source = made(300, 60.0, stand=0.0)
    (clip, _) = clips(source)
    assert clip.floor_height is None and not clip.arrays["contacts"].any()
    assert clip.arrays["T_world_root"][0, 6] == pytest.approx(
        float(source.trans[40, 2] + BODY.rest_joints(torch.from_numpy(source.betas))[0, 2]), abs=1e-6
    )


def test_shape_numbers_are_converted_by_gender() -> None:
    random = np.random.default_rng(0)
    conversions = {
        gender: BetasConversion(0.1 * random.normal(size=(16, 16)), random.normal(size=16))
        for gender in ("female", "male")
    }
    for gender in ("female", "male", "neutral"):
        source = made(120, 60.0, gender=gender)
        found, _ = prepare_recording(source, NAME, BODY, ClipRules(mirror=False), conversions)
        expected = source.betas
        if gender != "neutral":
            expected = conversions[gender].A @ source.betas + conversions[gender].b
        assert found[0] is not None
        np.testing.assert_allclose(found[0].arrays["betas"][0], expected, atol=1e-6)


def test_long_recordings_are_done_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = clips(made(300, 60.0))
    monkeypatch.setattr("mgrpo.data.amass.process._CHUNK_FRAMES", 37)
    for one, other in zip(whole, clips(made(300, 60.0))):
        for name in DATASETS:
            np.testing.assert_array_equal(one.arrays[name], other.arrays[name])


def test_inputs_stay_as_they_are() -> None:
    source = made(120, 60.0)
    before = [array.copy() for array in source[:3]]
    for rules in (ClipRules(), PARITY):
        clips(source, rules)
    for array, kept in zip(source[:3], before):
        np.testing.assert_array_equal(array, kept)


def test_the_body_is_reduced_to_what_is_needed() -> None:
    assert isinstance(BODY, BodyModel) and BODY.mesh is None and BODY.dtype == torch.float64
