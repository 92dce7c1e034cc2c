"""Motion from files: the demo, packs, folders, realignment, floor, and what is said about bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mgrpo import geometry as g
from mgrpo.body import BODY_JOINT_NAMES, PARENTS_BODY, BodyModel, default_body
from mgrpo.body.skeleton import ROOT_NAME
from mgrpo.data import MotionClip, cut_windows, load_motion, place_clip, resample, save_clip
from mgrpo.data.floor import densest_height
from mgrpo.data.packs.fitting import fit_pack
from mgrpo.data.packs.reading import read_pack
from mgrpo.errors import InputError
from mgrpo.kernels import forward_kinematics

ORDER = (ROOT_NAME, *BODY_JOINT_NAMES)
ROWS = [parent + 1 for parent in PARENTS_BODY]


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return default_body()


@pytest.fixture(scope="module")
def demo(body: BodyModel) -> dict[str, MotionClip]:
    return {clip.name: clip for clip in load_motion("demo", body)}


def pack_arrays(lengths: tuple[int, ...] = (40, 50), seed: int = 0, scale: float = 1.0) -> dict[str, np.ndarray]:
    """A pack of people who sway with both feet planted; the default body made ``scale`` times as tall."""
    generator = torch.Generator().manual_seed(seed)
    frames = sum(lengths)
    body = default_body()
    rest = (body.rest_joints(torch.zeros(16))[:22] - body.J_template[:1]) * scale
    angles = 0.3 * torch.randn(frames, 21, 3, generator=generator)
    angles[:, [0, 1, 3, 4, 6, 7, 9, 10]] = 0.0
    quats = torch.cat(
        (torch.tensor([[0.5**0.5, 0.5**0.5, 0.0, 0.0]]).expand(frames, 1, 4), g.axis_angle_to_quat(angles)), 1
    )
    trans = torch.zeros(frames, 3)
    trans[:, 2] = 0.02 - float(rest[10, 1])
    return {
        "names": np.array([f"sway{i}" for i in range(len(lengths))]),
        "lengths": np.array(lengths, np.int32),
        "trans": trans.numpy().astype(np.float32),
        "quats_wxyz_i16": np.round(quats.numpy() * 32767).astype(np.int16),
        "rest_joints": np.repeat(rest.numpy()[None], len(lengths), 0).astype(np.float32),
        "fps": np.array(30),
        "joint_names": np.array(ORDER),
    }


def write(path: Path, **changes: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {key: value for key, value in {**pack_arrays(), **changes}.items() if value is not None}
    np.savez(path, **arrays)
    return path


def source_joints(path: Path, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Joints ``(F, 22, 3)`` of a pack's clip on its own skeleton, and that skeleton."""
    pack = read_pack(path)
    index = pack.names.index(name)
    end = int(pack.lengths[: index + 1].sum())
    rows = slice(end - int(pack.lengths[index]), end)
    rest = torch.from_numpy(pack.rest_joints[index])
    quats = torch.from_numpy(pack.quats[rows])
    offsets = rest[1:] - rest[ROWS]
    root = torch.cat((quats[:, 0], torch.from_numpy(pack.trans[rows])), 1)
    joints = forward_kinematics(g.quat_to_rotmat(quats[:, 1:]), offsets, PARENTS_BODY, root).joints
    return torch.cat((root[:, None, 4:], joints), 1), rest


# The demo


def test_the_demo_ships_fifteen_clips(demo: dict[str, MotionClip]) -> None:
    assert len(demo) == 15
    assert {"walk", "run", "cartwheel", "punch", "spin", "kick", "dance_b"} <= set(demo)
    assert all(clip.fps == 30 and not clip.betas.any() and clip.hand_quats is None for clip in demo.values())
    assert sum(len(clip) for clip in demo.values()) == 1010


def test_demo_people_stand_on_the_floor(demo: dict[str, MotionClip], body: BodyModel) -> None:
    for name in ("walk", "jump", "kick", "punch", "spinkick", "dance_a", "run"):
        joints = place_clip(demo[name], body).joints
        toes = joints[:, [10, 11], 2]
        planted = toes[demo[name].contacts[:, 9:11] > 0]
        assert len(planted) > 4, name
        assert float(planted.mean()) == pytest.approx(body.toe_clearance, abs=0.012), name
        assert float(joints[..., 2].min()) > -0.02, name
        assert 1.2 < float(joints[:, 15, 2].median()) < 1.6, name


def test_a_jump_keeps_its_height(demo: dict[str, MotionClip], body: BodyModel) -> None:
    toes = place_clip(demo["jump"], body).joints[:, [10, 11], 2].amin(1)
    assert float(toes.max()) > 0.15
    backflip = place_clip(demo["backflip"], body).joints[..., 2].amin(1)
    assert float(backflip.max()) > 0.2


def test_crawling_is_not_pushed_into_the_floor(demo: dict[str, MotionClip], body: BodyModel) -> None:
    """No toe is ever planted there; the floor comes from the skeleton."""
    lowest = place_clip(demo["crawl"], body).joints[..., 2].amin(1)
    assert -0.03 < float(lowest.min()) < 0.08


# Fitting


def test_hands_go_along_with_the_forearm(tmp_path: Path, body: BodyModel) -> None:
    """Where the source's forearms rest in another direction, hands stay in line with the realigned forearm."""
    arrays = pack_arrays()
    arrays["rest_joints"][:, [20, 21], 1] += 0.1
    quats = torch.zeros(90, 22, 4)
    quats[..., 0] = 1.0
    quats[:, 0] = torch.tensor([0.5**0.5, 0.5**0.5, 0.0, 0.0])
    arrays["quats_wxyz_i16"] = np.round(quats.numpy() * 32767).astype(np.int16)
    np.savez(tmp_path / "pack.npz", **arrays)
    clip = load_motion(tmp_path / "pack.npz", body)[0]
    straight = torch.tensor([1.0, 0, 0, 0])
    torch.testing.assert_close(clip.body_quats[0, [19, 20]].abs(), straight.expand(2, 4), rtol=0, atol=1e-4)
    elbows = clip.body_quats[0, [17, 18]]
    assert float(g.quat_to_axis_angle(elbows).norm(dim=-1).min()) > 0.3


def test_limbs_point_where_they_did(body: BodyModel) -> None:
    from importlib import resources

    with resources.as_file(resources.files("mgrpo") / "assets" / "deepmimic.npz") as path:
        clips = {clip.name: clip for clip in fit_pack(read_pack(path), body)}
        for name in ("cartwheel", "dance_a", "getup_faceup"):
            source, rest = source_joints(path, name)
            target = place_clip(clips[name], body).joints
            for joint, parent in (
                (4, 1),
                (5, 2),
                (7, 4),
                (8, 5),
                (18, 16),
                (19, 17),
                (20, 18),
                (21, 19),
                (16, 13),
                (17, 14),
            ):
                one = torch.nn.functional.normalize(source[:, joint] - source[:, parent], dim=-1)
                two = torch.nn.functional.normalize(target[:, joint] - target[:, parent], dim=-1)
                assert float((one - two).norm(dim=-1).max()) < 2e-3, (name, ORDER[joint])
            # The root path is scaled by leg length.
            leg = (rest[4] - rest[1]).norm() + (rest[7] - rest[4]).norm()
            ratio = float(body.leg_length(torch.zeros(16)) / leg)
            one, two = source[:, 0] - source[:1, 0], target[:, 0] - target[:1, 0]
            torch.testing.assert_close(two, one * ratio, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.3])
def test_a_scaled_source_becomes_the_body(tmp_path: Path, body: BodyModel, scale: float) -> None:
    """A source that is the body itself, only larger, must come out as exactly the body's own motion."""
    np.savez(tmp_path / "pack.npz", **pack_arrays(scale=scale))
    clips = load_motion(tmp_path / "pack.npz", body)
    source, _ = source_joints(tmp_path / "pack.npz", "sway1")
    target = place_clip(clips[1], body).joints
    relative = (source - source[:, :1]) / scale
    torch.testing.assert_close(target - target[:, :1], relative, rtol=0, atol=2e-4)
    assert float(target[:, [10, 11], 2].mean()) == pytest.approx(body.toe_clearance, abs=1e-3)
    assert clips[1].contacts[:, [9, 10, 6, 7]].all()


def test_order_and_lengths_are_kept(tmp_path: Path, body: BodyModel) -> None:
    clips = load_motion(write(tmp_path / "pack.npz"), body)
    assert [(clip.name, len(clip), clip.loop) for clip in clips] == [("sway0", 40, False), ("sway1", 50, False)]


def test_loop_flags_are_read(tmp_path: Path, body: BodyModel) -> None:
    clips = load_motion(write(tmp_path / "pack.npz", loop=np.array([False, True])), body)
    assert [clip.loop for clip in clips] == [False, True]
    assert cut_windows(clips[1:], body, 80).names == ("sway1",)


def test_another_rate_becomes_thirty(tmp_path: Path, body: BodyModel) -> None:
    clips = load_motion(write(tmp_path / "pack.npz", fps=np.array(60)), body)
    assert [(len(clip), clip.fps) for clip in clips] == [(20, 30.0), (25, 30.0)]
    same = load_motion(write(tmp_path / "same.npz"), body)
    torch.testing.assert_close(clips[0].T_world_root[:, 4:], same[0].T_world_root[::2, 4:], rtol=0, atol=2e-3)
    one, two = (g.quat_to_rotmat(quats) for quats in (clips[0].body_quats, same[0].body_quats[::2]))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-4)


def test_sixteen_bit_rounding_is_undone(tmp_path: Path, body: BodyModel) -> None:
    clips = load_motion(write(tmp_path / "pack.npz"), body)
    assert float((clips[0].body_quats.norm(dim=-1) - 1).abs().max()) < 1e-6


def test_densest_height() -> None:
    heights = np.concatenate([np.full(50, 0.043), np.linspace(0.0, 0.3, 40), [-0.2]])
    assert densest_height(heights) == pytest.approx(0.043)
    assert densest_height(np.array([])) is None


# Folders


def test_folders_are_read_in_order_of_name(tmp_path: Path, body: BodyModel) -> None:
    write(tmp_path / "b" / "pack.npz", names=np.array(["b0", "b1"]))
    write(tmp_path / "a.npz", names=np.array(["a0", "a1"]))
    clip = resample(load_motion("demo", body)[0], 60.0)
    save_clip(tmp_path / "c.npz", clip)
    (tmp_path / "notes.txt").write_text("not motion")
    clips = load_motion(tmp_path, body)
    assert [clip.name for clip in clips] == ["a0", "a1", "b0", "b1", clip.name]
    assert all(clip.fps == 30 for clip in clips)


def test_equal_names_in_two_packs_get_the_files_name(tmp_path: Path, body: BodyModel) -> None:
    write(tmp_path / "one.npz")
    write(tmp_path / "sub" / "two.npz")
    names = [clip.name for clip in load_motion(str(tmp_path), body)]
    assert names == ["one/sway0", "one/sway1", "sub/two/sway0", "sub/two/sway1"]


# Bad input


def test_missing_paths_and_empty_folders(tmp_path: Path, body: BodyModel) -> None:
    with pytest.raises(InputError, match=r"no such file or folder; give 'demo'"):
        load_motion(tmp_path / "nothing", body)
    with pytest.raises(InputError, match=r"no motion files \(\*\.npz, \*\.hdf5\), it holds nothing"):
        load_motion(tmp_path, body)
    (tmp_path / "walk.bvh").write_text("HIERARCHY")
    with pytest.raises(InputError, match=r"only files ending in \.bvh"):
        load_motion(tmp_path, body)
    with pytest.raises(InputError, match="not an npz file"):
        load_motion(tmp_path / "walk.bvh", body)


def test_unknown_layouts_are_explained(tmp_path: Path, body: BodyModel) -> None:
    np.savez(tmp_path / "amass.npz", poses=np.zeros((5, 156)), trans=np.zeros((5, 3)), mocap_framerate=120.0)
    with pytest.raises(InputError, match="not a motion file") as error:
        load_motion(tmp_path / "amass.npz", body)
    for part in ("mocap_framerate", "quats_wxyz_i16", "T_world_root", "missing:"):
        assert part in str(error.value)
    with pytest.raises(InputError, match="Nearest to a pack, missing: rest_joints"):
        load_motion(write(tmp_path / "pack.npz", rest_joints=None), body)


def spoil(key: str, index: tuple[int, ...], value: float) -> dict[str, np.ndarray]:
    array = pack_arrays()[key].astype(np.float32)
    array[index] = value
    return {key: array}


def half_length_quaternion() -> dict[str, np.ndarray]:
    quats = pack_arrays()["quats_wxyz_i16"]
    quats[47, 3] //= 2
    return {"quats_wxyz_i16": quats}


BAD_PACKS: list[tuple[dict[str, object], str]] = [
    (spoil("trans", (45, 1), np.nan), r"trans is not finite.*clip 'sway1', frame 5"),
    (spoil("trans", (3, 2), np.inf), r"trans is not finite.*clip 'sway0', frame 3"),
    (spoil("rest_joints", (1, 4, 0), np.nan), r"rest_joints is not finite.*clip 'sway1'"),
    (half_length_quaternion(), r"unit quaternions.*clip 'sway1', frame 7, joint 'spine1' the length is 0\.5"),
    ({"quats_wxyz_i16": np.zeros((90, 22, 4), np.int16)}, r"clip 'sway0', frame 0, joint 'pelvis' the length is 0\.0"),
    ({"quats_wxyz_i16": np.full((90, 22, 4), np.nan, np.float32)}, r"the length is nan"),
    ({"quats_wxyz_i16": np.zeros((90, 24, 4), np.int16)}, r"must have shape \(90, 22, 4\).*got \(90, 24, 4\)"),
    ({"trans": np.zeros((80, 3), np.float32)}, r"quats_wxyz_i16 must have shape \(80, 22, 4\)"),
    ({"lengths": np.array([40, 51])}, r"lengths add up to 91 frames, but .* have 90"),
    ({"lengths": np.array([89, 1])}, r"clip 'sway1' has 1 frame"),
    ({"lengths": np.array([90])}, r"lengths must have shape \(2,\)"),
    ({"names": np.array(["a", "a"])}, "two clips are called 'a'"),
    ({"fps": np.array(0)}, "fps must be 0.1 to 10000"),
    ({"fps": np.array("thirty")}, "fps must be numeric"),
    ({"joint_names": np.array([*ORDER[:20], "x", "y"])}, "joint_names must be pelvis, left_hip"),
    ({"rest_joints": np.zeros((2, 22, 3), np.float32)}, "leg bone shorter than 1 mm"),
    ({"loop": np.array([True])}, r"loop must have shape \(2,\)"),
    ({"trans": np.array([[None] * 3] * 90, dtype=object)}, "pickled Python objects"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_PACKS)
def test_bad_packs_are_explained(tmp_path: Path, body: BodyModel, changes: dict[str, object], message: str) -> None:
    path = write(tmp_path / "pack.npz", **changes)
    with pytest.raises(InputError, match=message) as error:
        load_motion(path, body)
    assert str(path) in str(error.value)


def test_a_rest_pose_upside_down_is_refused(tmp_path: Path, body: BodyModel) -> None:
    rest = pack_arrays()["rest_joints"] * np.array([1.0, -1.0, 1.0], np.float32)
    rest[:, :, 0] *= -1
    with pytest.raises(InputError, match="points the opposite way"):
        load_motion(write(tmp_path / "pack.npz", rest_joints=rest), body)


def test_an_empty_pack(tmp_path: Path, body: BodyModel) -> None:
    empty = {
        "names": np.array([], dtype="<U4"),
        "lengths": np.zeros(0, np.int32),
        "trans": np.zeros((0, 3), np.float32),
        "quats_wxyz_i16": np.zeros((0, 22, 4), np.int16),
        "rest_joints": np.zeros((0, 22, 3), np.float32),
    }
    with pytest.raises(InputError, match="no clips"):
        load_motion(write(tmp_path / "pack.npz", **empty), body)


# Larger packs


def test_shared_packs_load_and_stand(shared_data_dir: Path, body: BodyModel) -> None:
    path = shared_data_dir / "motion" / "bandai1.npz"
    if not path.is_file():
        pytest.skip(f"{path} does not exist")
    clips = load_motion(path, body)
    assert len(clips) == 174
    chosen = [clip for clip in clips if clip.name.startswith(("walk", "run", "bow", "punch"))][::4]
    assert len(chosen) > 5
    for clip in chosen:
        joints = place_clip(clip, body).joints
        assert 1.0 < float(joints[:, 15, 2].median()) < 1.6, clip.name
        planted = joints[:, [10, 11], 2][clip.contacts[:, 9:11] > 0]
        assert float(planted.median()) == pytest.approx(body.toe_clearance, abs=0.012), clip.name
        assert float((joints[..., 2].amin(1) < -0.03).float().mean()) < 0.03, clip.name
