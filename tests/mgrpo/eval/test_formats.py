"""Motion files of other projects: each is written from a known motion, read back, and is that motion."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mgrpo.body import default_body
from mgrpo.data import load_motion, save_clip
from mgrpo.data.augment import place_clip
from mgrpo.errors import InputError
from mgrpo.eval.formats import FORMATS, MotionTracks, ReadOptions, read_tracks
from mgrpo.eval.formats.tracks import detect_unit, detect_up
from tests.mgrpo.motion_formats import (
    FRAMES,
    TO_Y_UP,
    Made,
    wham_persons,
    write_amass,
    write_amass_smplx,
    write_egoallo,
    write_gvhmr,
    write_humanml3d,
    write_joints,
    write_mdm,
    write_plain_pickle,
    write_wham,
)

BODY = default_body()
WITH_BODY = ReadOptions(body=BODY)


def write_clip(path: Path, made: Made) -> Path:
    save_clip(path, made.clip())
    return path


WRITERS: dict[str, tuple[Callable[[Path, Made], Path], str, float]] = {
    "clip": (write_clip, "clip", 30.0),
    "EgoAllo output": (lambda path, made: write_egoallo(path, [made]), "EgoAllo output", 30.0),
    "AMASS": (write_amass, "AMASS", 30.0),
    "AMASS, the other spelling": (
        lambda path, made: write_amass(path, made, rate_key="mocap_frame_rate", fps=120.0), "AMASS", 120.0
    ),
    "AMASS SMPL-X": (lambda path, made: write_amass_smplx(path, made, fps=59.94), "AMASS", 59.94),
    "joints npz": (write_joints, "joints npz", 30.0),
    "joints npy": (write_humanml3d, "joints npy", 20.0),
    "MDM results": (lambda path, made: write_mdm(path, [[made]]), "MDM results", 20.0),
    "WHAM output": (lambda path, made: write_wham(path, {0: made}), "WHAM output", 30.0),
    "WHAM output, zlib": (lambda path, made: write_wham(path, {0: made}, compress=("zlib", 3)), "WHAM output", 30.0),
    "WHAM output, gzip": (lambda path, made: write_wham(path, {0: made}, compress=("gzip", 3)), "WHAM output", 30.0),
    "GVHMR results": (write_gvhmr, "GVHMR results", 30.0),
}  # fmt: skip
SUFFIX = {"joints npy": ".npy", "MDM results": ".npy", "GVHMR results": ".pt"}


def written(tmp_path: Path, name: str, made: Made) -> Path:
    write, format, _ = WRITERS[name]
    return write(tmp_path / f"motion{SUFFIX.get(format, '.pkl' if 'WHAM' in format else '.npz')}", made)


@pytest.mark.parametrize("name", WRITERS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    made = Made(1)
    path = written(tmp_path, name, made)
    _, format, fps = WRITERS[name]
    tracks = read_tracks(path, WITH_BODY)
    assert len(tracks) == 1 and isinstance(tracks[0], MotionTracks)
    (found,) = tracks
    assert (found.format, found.fps, found.samples, len(found)) == (format, fps, 1, FRAMES)
    torch.testing.assert_close(found.joints[0], made.joints, rtol=0, atol=2e-6)
    if found.body_rotmats is None:
        assert format in ("joints npz", "joints npy", "MDM results")
    else:
        from mgrpo.geometry import geodesic_angle, quat_to_rotmat

        assert float(geodesic_angle(found.body_rotmats[0], quat_to_rotmat(made.body_quats)).max()) < 1e-5
        assert float(geodesic_angle(found.R_world_joint[0], made.placed.R_world_joint).max()) < 1e-5


@pytest.mark.parametrize("name", ["AMASS", "AMASS SMPL-X", "WHAM output", "GVHMR results"])
def test_smpl_translation_leaves_out_the_rest_pelvis(name: str, tmp_path: Path) -> None:
    """On a body whose pelvis does not rest at the origin, ``trans`` is that much from the pelvis."""
    shift = torch.tensor([0.1, -0.3, 0.2])
    body = replace(BODY, name="other", J_template=BODY.J_template + shift)
    made = Made(1, body=body)
    (found,) = read_tracks(written(tmp_path, name, made), ReadOptions(body=body))
    torch.testing.assert_close(found.joints[0], made.joints, rtol=0, atol=2e-6)
    assert float((found.joints[0, :, 0] - made.trans).norm(dim=-1).min()) > 0.3


def test_every_format_has_a_round_trip() -> None:
    assert {format.name for format in FORMATS} == {entry[1] for entry in WRITERS.values()} | {"pack"}


def test_the_contents_decide_not_the_suffix(tmp_path: Path) -> None:
    for name in WRITERS:
        made = Made(1)
        path = written(tmp_path, name, made)
        renamed = path.rename(tmp_path / "motion.bin")
        (found,) = read_tracks(renamed, WITH_BODY)
        assert found.format == WRITERS[name][1]


def test_a_recording_of_motion_capture_has_a_command_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.bvh").write_text("HIERARCHY\nROOT a\n")
    with pytest.raises(InputError, match=r"a.bvh: not a motion file .* mgrpo data mocap makes a pack of it$"):
        read_tracks(tmp_path / "a.bvh", ReadOptions())


def test_packs_are_fitted_to_the_body(tmp_path: Path) -> None:
    pack = Path(__file__).parents[3] / "mgrpo" / "assets" / "deepmimic.npz"
    tracks = {one.name: one for one in read_tracks(pack, WITH_BODY)}
    clips = load_motion(pack, BODY)
    assert set(tracks) == {clip.name for clip in clips}
    for clip in clips[:2]:
        joints = place_clip(clip, BODY.body_only()).joints
        torch.testing.assert_close(tracks[clip.name].joints[0].float(), joints, rtol=0, atol=1e-5)


def test_samples_numbers_and_times_of_egoallo(tmp_path: Path) -> None:
    mades = [Made(1), Made(2), Made(3)]
    path = write_egoallo(tmp_path / "out.npz", mades, first=100, fps=30.3, clock_s=5.0)
    (found,) = read_tracks(path, WITH_BODY)
    assert found.samples == 3
    for sample, made in enumerate(mades):
        torch.testing.assert_close(found.joints[sample], made.joints)
    assert found.frame_nums.tolist() == list(range(100, 100 + FRAMES))
    assert found.times[0] == pytest.approx(5.0 + 100 / 30.3) and found.fps == pytest.approx(30.3, rel=1e-6)


def test_repetitions_of_mdm_are_samples_and_lengths_cut(tmp_path: Path) -> None:
    prompts = [[Made(1), Made(2)], [Made(3), Made(4)]]
    path = write_mdm(tmp_path / "results.npy", prompts, lengths=[12, 7, 12, 9])
    first, second = read_tracks(path)
    assert (first.name, first.joints.shape) == ("0000", (2, 12, 22, 3))
    assert (second.name, second.joints.shape) == ("0001", (2, 7, 22, 3))
    torch.testing.assert_close(first.joints[1], prompts[0][1].joints, rtol=0, atol=1e-6)
    torch.testing.assert_close(second.joints[0], prompts[1][0].joints[:7], rtol=0, atol=1e-6)


def test_persons_of_wham(tmp_path: Path) -> None:
    path = write_wham(tmp_path / "wham_output.pkl", {0: Made(1), 3: Made(2)}, frame_ids=np.array([*range(11), 20]))
    tracks = {one.name: one for one in read_tracks(path, WITH_BODY)}
    assert set(tracks) == {"0", "3"} and tracks["3"].frame_nums[-1] == 20
    torch.testing.assert_close(tracks["3"].joints[0], Made(2).joints, rtol=0, atol=2e-6)


def test_up_axis_of_joints_is_detected(tmp_path: Path) -> None:
    made = Made(1)
    np.save(tmp_path / "z.npy", made.joints.numpy())
    (found,) = read_tracks(tmp_path / "z.npy")
    torch.testing.assert_close(found.joints[0], made.joints)
    assert not any("detected" in note for note in found.notes)
    write_humanml3d(tmp_path / "y.npy", made)
    (found,) = read_tracks(tmp_path / "y.npy")
    torch.testing.assert_close(found.joints[0], made.joints)
    assert any("y-up detected" in note for note in found.notes)
    camera = made.joints @ TO_Y_UP.T * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    np.save(tmp_path / "down.npy", camera.numpy())
    (found,) = read_tracks(tmp_path / "down.npy")
    torch.testing.assert_close(found.joints[0], made.joints)
    assert any("-y-up detected" in note for note in found.notes)


def test_up_axis_that_is_told_wins(tmp_path: Path) -> None:
    made = Made(1)
    write_humanml3d(tmp_path / "y.npy", made)
    (found,) = read_tracks(tmp_path / "y.npy", ReadOptions(up="z"))
    torch.testing.assert_close(found.joints[0], made.joints @ TO_Y_UP.T)
    # A format that states its axis keeps it where somebody lies, and says what it saw.
    lying = Made(1)
    lying.joints = made.joints @ TO_Y_UP.T
    (found,) = read_tracks(write_joints(tmp_path / "lying.npz", lying))
    torch.testing.assert_close(found.joints[0], lying.joints)
    assert any("stand along y" in note for note in found.notes)


@pytest.mark.parametrize(("unit", "metres"), [("m", 1.0), ("cm", 0.01), ("mm", 0.001)])
def test_unit_is_detected(unit: str, metres: float, tmp_path: Path) -> None:
    made = Made(1)
    write_humanml3d(tmp_path / "a.npy", made, unit=metres)
    (found,) = read_tracks(tmp_path / "a.npy")
    torch.testing.assert_close(found.joints[0], made.joints)
    assert any(f"in {unit} detected" in note for note in found.notes) == (unit != "m")
    (found,) = read_tracks(tmp_path / "a.npy", ReadOptions(unit="cm"))
    torch.testing.assert_close(found.joints[0], made.joints / metres / 100)


def test_no_axis_and_no_unit_where_nothing_is_clear() -> None:
    joints = torch.randn(1, 200, 22, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert detect_up(joints) is None
    assert detect_unit(joints * 1e5) is None


def test_more_than_22_joints_are_cut(tmp_path: Path) -> None:
    made = Made(1)
    np.savez(tmp_path / "a.npz", joints=np.concatenate([made.joints, np.zeros((FRAMES, 30, 3))], 1), up="z", fps=30)
    (found,) = read_tracks(tmp_path / "a.npz")
    torch.testing.assert_close(found.joints[0], made.joints)


def test_frame_rate_is_told_or_assumed(tmp_path: Path) -> None:
    write_humanml3d(tmp_path / "a.npy", Made(1))
    (found,) = read_tracks(tmp_path / "a.npy", ReadOptions(fps=50.0, side="pred"))
    assert found.fps == 50.0 and not any("frame rate" in note for note in found.notes)
    (found,) = read_tracks(tmp_path / "a.npy", ReadOptions(side="pred"))
    assert found.fps == 20.0 and any("--pred-fps" in note for note in found.notes)


def test_shape_numbers_of_other_bodies_are_not_used_on_the_default_body(tmp_path: Path) -> None:
    made = Made(1)
    made.betas = torch.ones(16, dtype=torch.float64)
    (found,) = read_tracks(write_amass(tmp_path / "a.npz", made), WITH_BODY)
    torch.testing.assert_close(found.joints[0], Made(1).joints)
    assert any("mean shape" in note for note in found.notes)


@pytest.mark.parametrize("name", [name for name in WRITERS if "joints" not in name and "MDM" not in name])
def test_rotations_need_a_body(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name, Made(1))
    if name == "clip":
        assert any("default body" in note for note in read_tracks(path)[0].notes)
        return
    with pytest.raises(InputError, match="--body"):
        read_tracks(path)


def _npz(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)
    return path


def _amass(path: Path, frames: int = 3, **arrays: object) -> Path:
    return _npz(path, trans=np.zeros((frames, 3)), poses=np.zeros((frames, 156)), **arrays)


def _without_samples(path: Path) -> Path:
    write_egoallo(path, [Made()])
    with np.load(path) as archive:
        arrays = dict(archive)
    by_sample = ("Ts_world_root", "body_quats", "left_hand_quats", "right_hand_quats", "contacts", "betas")
    return _npz(path, **{name: value[:0] if name in by_sample else value for name, value in arrays.items()})


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "absent": (lambda p: p, "no such file"),
    "folder": (lambda p: p.mkdir() or p, "got a folder"),
    "empty": (lambda p: (p.write_bytes(b"") and p) or p, "the file is empty"),
    "text": (lambda p: p.write_text("hello") and p, "not a motion file of a known format"),
    "other npz": (lambda p: _npz(p, depth=np.zeros(3)), "It has the arrays depth"),
    "not joints": (lambda p: _npz(p, joints=np.zeros((4, 21, 3))), r"\(T, 22, 3\)"),
    "text joints": (lambda p: _npz(p, joints=np.full((4, 22, 3), "a")), "must be numbers"),
    "nan": (lambda p: _npz(p, joints=np.full((4, 22, 3), np.nan)), "not finite.*frame 0"),
    "object array": (lambda p: _npz(p, joints=np.array([{}], object)), "pickled Python objects"),
    "bad up": (lambda p: _npz(p, joints=np.zeros((4, 22, 3)), up="x"), "up must be"),
    "bad rate": (lambda p: _npz(p, joints=np.ones((4, 22, 3)), fps=-1.0), "the frame rate of the motion must be"),
    "falling numbers": (
        lambda p: _npz(p, joints=np.ones((2, 22, 3)), frame_nums=np.array([3, 2])), "that don't rise"
    ),
    "amass without rate": (lambda p: _npz(p, trans=np.zeros((3, 3)), poses=np.zeros((3, 156))), "gt-fps|--fps"),
    "amass width": (
        lambda p: _npz(p, trans=np.zeros((3, 3)), poses=np.zeros((3, 63)), mocap_framerate=30.0), "156 .SMPL-H"
    ),
    "amass rate of nothing": (lambda p: _amass(p, mocap_framerate=0.0), "its frame rate must be 0.1 to 10000.*got 0"),
    "amass rate that is none": (lambda p: _amass(p, mocap_framerate=np.nan), "its frame rate must be .*got nan"),
    "amass rate in words": (lambda p: _amass(p, mocap_framerate="fast"), "mocap_framerate must be an array of numbers"),
    "no frames": (lambda p: _amass(p, 0, mocap_framerate=30.0), "holds 1 samples of 0 frames"),
    "no samples": (_without_samples, "holds 0 samples of 12 frames"),
    "features": (lambda p: np.save(p.open("wb"), np.zeros((9, 263))) or p, "recover the joints"),
    "kit": (
        lambda p: np.save(p.open("wb"), {"motion": np.zeros((1, 21, 3, 5))}, allow_pickle=True) or p, "KIT's 21 joints"
    ),
    "mdm lengths": (
        lambda p: np.save(p.open("wb"), {"motion": np.zeros((1, 22, 3, 5)), "lengths": [9]}, allow_pickle=True) or p,
        "from 1 to 5",
    ),
    "wham without trans": (lambda p: write_plain_pickle(p, {0: {"pose_world": np.zeros((2, 72))}}), "lacks trans"),
    "torch with objects": (lambda p: torch.save({"x": Path("a")}, p) or p, "could run code"),
    "old torch": (
        lambda p: torch.save({"x": 1}, p, _use_new_zipfile_serialization=False) or p, "old layout"
    ),
    "gvhmr without betas": (lambda p: torch.save({"smpl_params_global": {}}, p) or p, "smpl_params_global needs"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_say_what_is_wrong(name: str, tmp_path: Path) -> None:
    write, said = BAD[name]
    path = tmp_path / "motion.npz"
    with pytest.raises(InputError, match=said) as error:
        read_tracks(write(path), WITH_BODY)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("compress", [("bz2", 3), ("xz", 3)])
def test_other_compressions_are_refused_with_advice(compress: tuple[str, int], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"which is not read\. Write it again"):
        read_tracks(write_wham(tmp_path / "w.pkl", {0: Made(1)}, compress=compress), WITH_BODY)


def test_absurd_shapes_are_refused_before_they_are_made(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**13, 22, 3)})
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("joints.npy", header.getvalue() + b"\0" * 64)
    with pytest.raises(InputError, match="says shape"):
        read_tracks(tmp_path / "bomb.npz")
    (tmp_path / "bomb.npy").write_bytes(header.getvalue() + b"\0" * 64)
    with pytest.raises(InputError, match="with 64 bytes"):
        read_tracks(tmp_path / "bomb.npy")
    huge = torch.zeros(1).expand(10**11, 63)
    torch.save(
        {"smpl_params_global": dict.fromkeys(("body_pose", "global_orient", "transl", "betas"), huge)},
        tmp_path / "b.pt",
    )
    with pytest.raises(InputError, match="plain tensor of numbers"):
        read_tracks(tmp_path / "b.pt", WITH_BODY)


@pytest.mark.parametrize("name", WRITERS)
def test_any_damage_ends_in_a_message_or_a_motion(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name, Made(1, frames=4))
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for attempt in range(60):
        # Half of the damage is in the head and the tail, where the structure of most formats is.
        place = int(random.integers((300, len(whole))[attempt % 2]))
        place = len(whole) - 1 - place if attempt % 4 == 0 else place
        place = min(max(place, 0), len(whole) - 1)
        damaged = bytearray(whole[:place] if attempt % 5 == 0 else whole)
        if attempt % 5:
            damaged[place] = int(random.integers(256))
        path.write_bytes(damaged)
        try:
            read_tracks(path, WITH_BODY)
        except InputError as error:
            assert str(error).startswith(str(path))


def test_a_plain_pickle_of_wham_is_read_too(tmp_path: Path) -> None:
    path = write_plain_pickle(tmp_path / "w.pkl", wham_persons({0: Made(1)}), protocol=5)
    (found,) = read_tracks(path, WITH_BODY)
    torch.testing.assert_close(found.joints[0], Made(1).joints, rtol=0, atol=2e-6)
