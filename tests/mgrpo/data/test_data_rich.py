"""RICH: a made download in the release's layout comes back as the motion that was put in; what is said of partial
ones."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgrpo import geometry as g
from mgrpo.body import BodyModel, default_body
from mgrpo.body.skeleton import PARENTS_BODY
from mgrpo.cli import main
from mgrpo.commands import data_rich
from mgrpo.data import MotionClip, load_motion, place_clip, turn
from mgrpo.data.rich.bodies import fit_betas, gravity_of_table, read_gravity
from mgrpo.data.rich.files import TEST_SEQUENCES, find_tracks, read_ply_points, read_smplx, read_track
from mgrpo.errors import InputError

# y of the camera points down; it looks 15 degrees downwards and is held 4 degrees askew
TILT = g.quat_multiply(
    g.axis_angle_to_quat(torch.tensor([0.0, 0.0, np.radians(4.0)], dtype=torch.float64)),
    g.axis_angle_to_quat(torch.tensor([np.radians(90.0 + 15.0), 0.0, 0.0], dtype=torch.float64)),
)
CAMERA_PLACE = np.array([0.3, 1.6, 4.0])
SHAPE = np.array([0.8, -0.5, *([0.0] * 8)])


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return default_body()


def smplx_arrays() -> dict[str, np.ndarray]:
    """A model with SMPL-X's arrays whose joints are the default body's: a vertex per joint."""
    body = default_body()
    joints, count = body.J_template[:22].double().numpy() + np.array([0.01, -0.37, 0.02]), 55
    template = np.zeros((count, 3))
    template[:22] = joints
    shapedirs = np.zeros((count, 3, 12))
    shapedirs[:22, :, :10] = body.J_shapedirs[:22, :, :10].double().numpy()
    generator = np.random.default_rng(0)
    hands = {f"hands_mean{side}": generator.normal(size=45) * 0.1 for side in "lr"}
    hands |= {f"hands_components{side}": np.linalg.qr(generator.normal(size=(45, 45)))[0] for side in "lr"}
    return {"v_template": template, "shapedirs": shapedirs, "J_regressor": np.eye(count), **hands}


def demo(body: BodyModel) -> MotionClip:
    """The demo's walk, on a floor and turned three ways, so that its feet are planted all over the place."""
    return next(clip for clip in load_motion("demo", body) if clip.name == "walk")


def put_in_release(
    folder: Path, sequence: str, subject: str, clip: MotionClip, body: BodyModel, *, split: str = "test"
) -> None:
    """Write a clip as the release would hold it, seen from the tilted camera."""
    betas = torch.zeros(16)
    betas[:10] = torch.from_numpy(SHAPE)
    model = smplx_arrays()
    pelvis = model["v_template"][0] + model["shapedirs"][0, :, :10] @ SHAPE
    root = clip.T_world_root.double()
    quats = g.quat_multiply(TILT, root[:, :4])
    places = g.quat_apply(TILT, root[:, 4:]).numpy() + CAMERA_PLACE
    for frame in range(len(clip)):
        content = {
            "betas": SHAPE[None].astype(np.float32),
            "transl": (places[frame] - pelvis)[None].astype(np.float32),
            "global_orient": g.quat_to_axis_angle(quats[frame])[None].float().numpy(),
            "body_pose": g.quat_to_axis_angle(clip.body_quats[frame]).reshape(1, 63).numpy(),
            "left_hand_pose": np.full((1, 12), 0.1, np.float32),
            "right_hand_pose": np.full((1, 12), -0.1, np.float32),
            "expression": np.zeros((1, 10), np.float32),
        }
        path = folder / f"{split}_body" / sequence / f"{frame + 17:05d}" / f"{subject}.pkl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(content, 2))


@pytest.fixture(scope="module")
def walks(body: BodyModel) -> list[MotionClip]:
    walk = demo(body)
    return [turn(walk, angle) for angle in (0.0, 2.0)]


@pytest.fixture(scope="module")
def release(body: BodyModel, walks: list[MotionClip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rich")
    for number, walk in enumerate(walks):
        put_in_release(folder, f"Gym_01{number}_walk1", f"01{number}", walk, body)
    np.savez(folder / "SMPLX_FEMALE.npz", **smplx_arrays())
    shutil.copy(folder / "SMPLX_FEMALE.npz", folder / "SMPLX_MALE.npz")
    return folder


def run(*words: object) -> int:
    return main(["data", "rich", *map(str, words)])


def shaped(clip: MotionClip) -> torch.Tensor:
    """Joints ``(F, 22, 3)`` on the shape of the made release."""
    body = default_body()
    betas = torch.zeros(16)
    betas[:10] = torch.from_numpy(SHAPE)
    return place_clip(MotionClip(clip.name, 30, clip.T_world_root, clip.body_quats, betas, clip.contacts), body).joints


def level(joints: torch.Tensor) -> torch.Tensor:
    """Joints without the heading and place, which a gravity does not fix: distances from the pelvis path's start and
    heights."""
    across = (joints[..., :2] - joints[:1, :1, :2]).norm(dim=-1)
    return torch.stack((across, joints[..., 2]), -1)


def test_motion_comes_back(
    release: Path, walks: list[MotionClip], body: BodyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(release, tmp_path, "--partial", "--smplx", release) == 0
    said = capsys.readouterr()
    assert "2 clips of 2 people in 2 sequences" in said.out and "degrees off the camera's" in said.err
    clips = {clip.name: clip for clip in load_motion(tmp_path / "test", body)}
    assert set(clips) == {"Gym_010_walk1_010", "Gym_011_walk1_011"}
    for number, walk in enumerate(walks):
        clip = clips[f"Gym_01{number}_walk1_01{number}"]
        ours, true = place_clip(clip, body).joints, shaped(walk)
        # the fitted shape has the bones, the fitted up is the true one, feet stand on the floor
        bones = [(j[:, 1:] - j[:, [p + 1 for p in PARENTS_BODY]]).norm(dim=-1) for j in (ours, true)]
        assert float((bones[0] - bones[1]).abs().max()) < 0.003
        relative = [level(j - j[:, :1]) for j in (ours, true)]
        assert float((relative[0] - relative[1])[..., 1].abs().max()) < 0.02
        assert float(clip.contacts[:, [9, 10]].mean()) > 0.3
        assert float((clip.body_quats * walk.body_quats).sum(-1).abs().min()) > 1 - 1e-5
        hands = clip.hand_quats
        assert hands is not None and hands.shape == (len(walk), 30, 4)
        model = smplx_arrays()
        pose = model["hands_meanr"] + np.full(12, -0.1) @ model["hands_componentsr"][:12]
        expected = g.axis_angle_to_quat(torch.from_numpy(pose.reshape(15, 3)).float())
        assert float((hands[5, 15:] * expected).sum(-1).abs().min()) > 1 - 1e-5
    report = json.loads((tmp_path / "rich-test-report.json").read_text())
    true_up = g.quat_apply(TILT, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)).numpy()
    assert np.degrees(np.arccos(np.clip(true_up @ report["gravity"]["Gym"]["up"], -1, 1))) < 1.0
    assert max(track["bones_rms_m"] for track in report["tracks"]) < 0.003


def test_a_second_run_does_not_read_again(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "release"
    shutil.copytree(release, source)
    assert run(source, tmp_path / "out", "--partial") == 0
    first = sorted(path.read_bytes() for path in (tmp_path / "out" / "test").iterdir())
    read: list[str] = []
    monkeypatch.setattr(
        data_rich, "read_track", lambda track, update: (read.append(track.sequence), read_track(track, update))[1]
    )
    (tmp_path / "out" / ".parts" / "test-Gym_010_walk1-010.part").write_bytes(b"PK damaged")
    assert run(source, tmp_path / "out", "--partial") == 0
    assert read == ["Gym_010_walk1"]
    assert [path.read_bytes()[:2] for path in sorted((tmp_path / "out" / "test").iterdir())] == [b"PK", b"PK"]
    assert len(first) == 2


def test_without_a_model(release: Path, tmp_path: Path, body: BodyModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(release, tmp_path, "--partial") == 0
    assert "WARNING: without --smplx" in capsys.readouterr().err
    clip = load_motion(tmp_path / "test", body)[0]
    assert clip.hand_quats is None and float(clip.betas.abs().max()) == 0
    assert float(clip.contacts[:, [9, 10]].mean()) > 0.3


def scene(binary: bool) -> bytes:
    """A scan as the camera sees it: the floor, a table and a wall; floor at z = 0 of the true world."""
    generator = np.random.default_rng(1)
    floor = np.c_[generator.uniform(-4, 4, (6000, 2)), generator.normal(0, 0.004, 6000)]
    table = np.c_[generator.uniform(0.5, 2, (3000, 2)), np.full(3000, 0.75)]
    wall = np.c_[np.full(5000, -2.5), generator.uniform(-4, 4, 5000), generator.uniform(0, 2.5, 5000)]
    points = g.quat_apply(TILT, torch.from_numpy(np.concatenate((floor, table, wall)))).numpy() + CAMERA_PLACE
    kind = "binary_little_endian" if binary else "ascii"
    header = f"ply\nformat {kind} 1.0\ncomment made\nelement vertex {len(points)}\nproperty float x\nproperty float y\n"
    header += (
        "property float z\nproperty uchar red\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n"
    )
    if not binary:
        return (header + "".join(f"{x:.6f} {y:.6f} {z:.6f} 9\n" for x, y, z in points) + "3 0 1 2\n").encode()
    table_type = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1")])
    rows = np.zeros(len(points), table_type)
    rows["x"], rows["y"], rows["z"] = points.T
    return header.encode() + rows.tobytes() + b"\x03" + np.arange(3, dtype="<i4").tobytes()


@pytest.mark.parametrize("binary", [True, False])
def test_gravity_from_the_scan_and_from_a_table(
    binary: bool, release: Path, tmp_path: Path, body: BodyModel, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "release"
    shutil.copytree(release / "test_body", source / "test_body")
    words = ("--partial", "--smplx", release)
    assert run(source, tmp_path / "out", *words, "--gravity", "scene") == 2
    assert "the scanned scene (*.ply) is missing" in capsys.readouterr().err
    (source / "scan_calibration" / "Gym").mkdir(parents=True)
    (source / "scan_calibration" / "Gym" / "scan_camcoord.ply").write_bytes(scene(binary))
    assert run(source, tmp_path / "out", *words, "--gravity", "scene") == 0
    report = json.loads((tmp_path / "out" / "rich-test-report.json").read_text())
    true_up = g.quat_apply(TILT, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)).numpy()
    found = report["gravity"]["Gym"]
    assert np.degrees(np.arccos(np.clip(true_up @ found["up"], -1, 1))) < 0.3
    assert found["floor_m"] == pytest.approx(CAMERA_PLACE @ true_up, abs=0.01)
    to_world = np.eye(4)
    to_world[:3, :3] = g.quat_to_rotmat(TILT).numpy().T
    to_world[:3, 3] = -to_world[:3, :3] @ CAMERA_PLACE
    (tmp_path / "up.json").write_text(json.dumps({"Gym_scan_camcoord": to_world.tolist()}))
    assert run(source, tmp_path / "other", *words, "--gravity", tmp_path / "up.json") == 0
    table = json.loads((tmp_path / "other" / "rich-test-report.json").read_text())["gravity"]["Gym"]
    assert np.allclose(table["up"], true_up) and table["floor_m"] == pytest.approx(CAMERA_PLACE @ true_up)
    clip = load_motion(tmp_path / "other" / "test", body)[0]
    toes = place_clip(clip, body).joints[:, [10, 11], 2]
    assert abs(float(toes.min()) - float(shaped(demo(body))[:, [10, 11], 2].min())) < 0.01
    with pytest.raises(InputError, match="has no 'BBQ'"):
        gravity_of_table(read_gravity(tmp_path / "up.json"), "BBQ")
    for wrong in (2 * to_world, to_world.T):
        (tmp_path / "up.json").write_text(json.dumps({"Gym": wrong.tolist()}))
        with pytest.raises(InputError, match="must be a rigid 4x4 matrix, row by row"):
            read_gravity(tmp_path / "up.json")


def test_toes_on_a_line_say_no_tilt(
    body: BodyModel, walks: list[MotionClip], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Someone who stands still on one spot: nothing shows the floor's tilt."""
    walk = walks[0]
    still = MotionClip("still", 30, walk.T_world_root[:1].repeat(60, 1), walk.body_quats[:1].repeat(60, 1, 1),
                       walk.betas, walk.contacts[:1].repeat(60, 1))  # fmt: skip
    put_in_release(tmp_path / "release", "Gym_010_still1", "010", still, body)
    assert run(tmp_path / "release", tmp_path / "out", "--partial") == 2
    assert "of a line, so the floor's tilt is not known" in capsys.readouterr().err


def test_gaps_are_bridged_or_cut(release: Path, walks: list[MotionClip], tmp_path: Path, body: BodyModel) -> None:
    source = tmp_path / "release"
    shutil.copytree(release / "test_body", source / "test_body")
    for frame in (*range(22, 25), 31):
        shutil.rmtree(source / "test_body" / "Gym_010_walk1" / f"{frame:05d}")
    assert run(source, tmp_path / "out", "--partial", "--smplx", release) == 0
    clips = {clip.name: clip for clip in load_motion(tmp_path / "out" / "test", body)}
    assert len(clips["Gym_010_walk1_010"]) == len(walks[0])
    for frame in range(22, 30):
        shutil.rmtree(source / "test_body" / "Gym_010_walk1" / f"{frame:05d}", ignore_errors=True)
    assert run(source, tmp_path / "other", "--partial", "--smplx", release) == 0
    clips = {clip.name: clip for clip in load_motion(tmp_path / "other" / "test", body)}
    assert len(clips["Gym_010_walk1_010_00"]) == 5 and len(clips["Gym_010_walk1_010_01"]) == len(walks[0]) - 13


# --- what is said of downloads


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ([], "There are: nothing"),
        (["test_hsc/"], "contact labels only"),
        (["test_body.zip"], "test_body.zip is there: unpack it"),
        (["train_body/"], "there are train_body: choose with --split"),
        (["images/"], "There are: images"),
        (["test_body/"], "there are no sequences in it"),
    ],
)
def test_missing_parts_are_named(there: list[str], said: str, tmp_path: Path) -> None:
    for name in there:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError) as caught:
        find_tracks(tmp_path, "test")
    assert said in str(caught.value)


def test_missing_sequences_are_named(release: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"52 of the 52 test sequences are missing: Gym_010_cooking1.*--partial"):
        find_tracks(release, "test")
    assert len(find_tracks(release, "test", partial=True)) == 2
    (tmp_path / "test_body" / "Gym_010_dips1").mkdir(parents=True)
    with pytest.raises(InputError, match="there are no bodies"):
        find_tracks(tmp_path, "test", partial=True)
    with pytest.raises(InputError, match="give the folder above it"):
        find_tracks(release / "test_body", "test")
    with pytest.raises(InputError, match="no such folder"):
        find_tracks(tmp_path / "none", "test")


def test_the_official_test_split() -> None:
    assert len(TEST_SEQUENCES) == len(set(TEST_SEQUENCES)) == 52


BAD: dict[str, tuple[Any, str]] = {
    "no pose": ({"body_pose": None}, "no body_pose in it"),
    "wrong size": ({"body_pose": np.zeros((1, 69))}, "body_pose must hold 63 numbers, got 69"),
    "NaN": ({"transl": np.full((1, 3), np.nan)}, "transl is not finite"),
    "text": ({"transl": np.array([["a", "b", "c"]])}, "transl must be numbers"),
}


@pytest.mark.parametrize("damage", BAD)
def test_damaged_bodies(damage: str, release: Path, tmp_path: Path) -> None:
    change, said = BAD[damage]
    track = find_tracks(release, "test", partial=True)[0]
    content = pickle.loads(track.files[3].read_bytes()) | change
    path = tmp_path / "00020" / "010.pkl"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(InputError) as caught:
        read_track(track._replace(files=(*track.files[:3], path, *track.files[4:])))
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_bodies_that_would_run_code_are_refused(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "release"
    shutil.copytree(release / "test_body", source / "test_body")

    class Attack:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    victim = next((source / "test_body" / "Gym_010_walk1" / "00030").iterdir())
    victim.write_bytes(pickle.dumps({"transl": Attack()}))
    assert run(source, tmp_path / "out", "--partial") == 2
    assert "can name any function to run" in capsys.readouterr().err and not (tmp_path / "ran").exists()


def test_models(release: Path, tmp_path: Path, body: BodyModel, capsys: pytest.CaptureFixture[str]) -> None:
    joints = read_smplx(release / "SMPLX_MALE.npz", 10)
    fit = fit_betas(joints, SHAPE, body)
    assert fit.rms_m is not None and fit.rms_m < 0.003
    assert fit_betas(joints, np.zeros(10), body).rms_m == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(InputError, match="12 shape numbers; the bodies have 20"):
        read_smplx(release / "SMPLX_MALE.npz", 20)
    np.savez(tmp_path / "SMPLX_MALE.npz", **{**smplx_arrays(), "J_regressor": np.eye(54)})
    with pytest.raises(InputError, match="shapes that are not a SMPL-X model's"):
        read_smplx(tmp_path / "SMPLX_MALE.npz", 10)
    assert run(release, tmp_path / "out", "--partial", "--smplx", tmp_path / "nowhere") == 2
    assert "no SMPL-X model for female bodies" in capsys.readouterr().err
    (tmp_path / "genders.json").write_text('{"10": "male"}')
    assert run(release, tmp_path / "out", "--partial", "--smplx", release, "--genders", tmp_path / "genders.json") == 2
    assert "the gender of subject 011 is not known" in capsys.readouterr().err


XYZ = b"property float x\nproperty float y\nproperty float z\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"obj", "not a PLY file"),
        (b"ply\nformat binary_little_endian 1.0\nelement vertex 99\nproperty float x\n", "has no end"),
        (b"ply\nformat binary_little_endian 1.0\nelement vertex 99\n" + XYZ +
         b"end_header\n1234", "the file ends before"),
        (b"ply\nformat ascii 1.0\nelement vertex 2\n" + XYZ + b"end_header\n1 2\n",
         "can't be read"),
        (b"ply\nformat ascii 1.0\nelement vertex 2\nproperty list uchar int x\nend_header\n", "kind of PLY file"),
        (b"ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nend_header\n", "no vertices with x, y and z"),
    ],
)  # fmt: skip
def test_damaged_scans(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_ply_points(tmp_path / "a.ply")
