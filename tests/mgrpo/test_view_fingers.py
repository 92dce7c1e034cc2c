"""Fingers in `mgrpo view`: shown where the motion holds them and the body has them, straight where not. The body is an
SMPL-H file made up from the default body, so that its hands look like hands."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgrpo.body import PARENTS_FULL, BodyModel, load_smplh, skin
from mgrpo.commands.view_files import read_stage
from mgrpo.eval.formats import ReadOptions, read_motions
from mgrpo.export import PosedMotion, write_amass, write_egoallo
from mgrpo.geometry import axis_angle_to_quat, quat_to_rotmat
from mgrpo.npz import write_npz
from mgrpo.viz.comparison import BODY_PARENTS, PARENTS
from mgrpo.viz.film import Look, StagePainter
from mgrpo.viz.live import LiveViewer, have_viser
from mgrpo.viz.page import render_stage_page
from mgrpo.viz.palette import rgb
from mgrpo.viz.stage import WRISTS, Actor, Stage, color_of
from tests.mgrpo import chromium
from tests.mgrpo import view_motion as motion
from tests.mgrpo import view_page as views
from tests.mgrpo.smplh_file import write_smplh

LEFT_HAND = slice(22, 37)
HANDS = slice(22, 52)


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> BodyModel:
    return load_smplh(write_smplh(tmp_path_factory.mktemp("body") / "model.npz"))


def made(body: BodyModel, *, fist: float = 0.8, frames: int = 4, joints: int = 51) -> PosedMotion:
    """A body that stands, looks along +x and stretches its arms to the sides; its left hand becomes a fist."""
    quats = torch.zeros(frames, joints, 4, dtype=torch.float64)
    quats[..., 0] = 1.0
    if joints == 51:
        bend = torch.zeros(frames, 12, 3, dtype=torch.float64)  # the thumb stays
        bend[..., 2] = -fist * torch.linspace(0.05, 1.0, frames, dtype=torch.float64)[:, None]  # about z: downwards
        quats[:, 21:33] = axis_angle_to_quat(bend)
    root = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.3, -0.2, 0.95], dtype=torch.float64).expand(frames, 7)
    return PosedMotion(
        "hands", 30.0, body, root, quats, torch.zeros(frames, 16), torch.arange(frames) / 30.0, torch.arange(frames)
    )


def stage_of(body: BodyModel, *files: Path, truth: str = "", say: Any = print) -> Stage:
    return read_stage(
        [str(file) for file in files], (), truth, body, options=ReadOptions(), truth_options=ReadOptions(side="truth"),
        clip="", samples=8, start=0, seconds=0, say=say,
    )  # fmt: skip


@pytest.fixture(scope="module")
def stage(body: BodyModel, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    path = tmp_path_factory.mktemp("motion") / "hands.npz"
    write_egoallo(path, [made(body)])
    return stage_of(body, path)


def test_the_tree_is_that_of_the_body() -> None:
    assert (-1, *(parent + 1 for parent in PARENTS_FULL)) == PARENTS and PARENTS[:22] == BODY_PARENTS
    assert WRISTS == (20,) * 15 + (21,) * 15


def test_fingers_of_egoallos_output_are_posed(stage: Stage, body: BodyModel) -> None:
    (actor,) = stage.actors
    source = made(body)
    placed = source.placed()
    assert actor.joints.shape == (1, 4, 52, 3) and actor.parents == PARENTS
    assert np.abs(actor.joints[0] - placed.joints.numpy()).max() < 1e-5
    assert (quat_to_rotmat(torch.from_numpy(actor.quats[0]).double()) - placed.R_world_joint).abs().max() < 1e-5
    skinned = skin(source.skeleton, placed, quat_to_rotmat(source.local_quats), source.betas).numpy()
    for frame in (0, 3):
        assert np.abs(actor.vertices(0, frame) - skinned[frame]).max() < 1e-5
    # and it shows: the tips come down, those of the other hand don't
    drop = actor.joints[0, 0, :, 2] - actor.joints[0, 3, :, 2]
    assert drop[24] > 0.02 and np.abs(drop[37:]).max() < 1e-6 and np.abs(drop[:22]).max() < 1e-6


def test_fingers_of_amass_are_posed(tmp_path: Path, body: BodyModel) -> None:
    source = made(body)
    write_amass(tmp_path / "hands_poses.npz", source)
    (actor,) = stage_of(body, tmp_path / "hands_poses.npz").actors
    assert np.abs(actor.joints[0] - source.placed().joints.numpy()).max() < 1e-5
    assert len(actor.surfaces[0].rest_joints) == 52


def test_fingers_are_left_out_where_there_are_none(tmp_path: Path, body: BodyModel) -> None:
    write_egoallo(tmp_path / "straight.npz", [made(body, joints=21)])  # its file has identities
    (actor,) = stage_of(body, tmp_path / "straight.npz").actors
    assert actor.joints.shape[2] == 22 and actor.surfaces[0].weights.shape[1] == 22
    write_egoallo(tmp_path / "fist.npz", [made(body)])
    (actor,) = stage_of(body.body_only(), tmp_path / "fist.npz").actors
    assert actor.joints.shape[2] == 22


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_fingers_that_can_not_be_posed_are_straight_and_it_is_said(
    tmp_path: Path, body: BodyModel, value: float
) -> None:
    write_egoallo(tmp_path / "a.npz", [made(body), made(body)])
    with np.load(tmp_path / "a.npz") as archive:
        arrays = dict(archive)
    arrays["right_hand_quats"][1, 2, 4] = value
    write_npz(tmp_path / "a.npz", arrays)
    stage = stage_of(body, tmp_path / "a.npz")
    assert stage.actors[0].joints.shape[2] == 22
    said = "finger rotations have quaternions of length zero or NaN, first in frame 2 of sample 1: fingers are shown"
    assert any(said in note for note in stage.notes)


def test_measuring_leaves_fingers_out(tmp_path: Path, body: BodyModel) -> None:
    write_egoallo(tmp_path / "truth.npz", [made(body, joints=21)])
    write_egoallo(tmp_path / "fist.npz", [made(body)])
    stage = stage_of(body, tmp_path / "fist.npz", truth=str(tmp_path / "truth.npz"))
    assert [actor.joints.shape[2] for actor in stage.actors] == [22, 52]
    assert np.abs(stage.actors[1].error_mm).max() < 1e-2  # the body is the same
    (motion_read,) = read_motions(tmp_path / "fist.npz", ReadOptions(body))
    assert motion_read.tracks().joints.shape[2] == 22


def test_a_hand_is_marked_as_a_whole() -> None:
    contacts = np.zeros((1, 1, 21), np.float32)
    contacts[..., 19] = 1.0  # the left wrist
    actor = Actor("a", np.zeros((1, 1, 52, 3), np.float32), 1, contacts=contacts)
    marks = actor.marks(0, 0)
    assert np.flatnonzero(marks).tolist() == [20, *range(22, 37)]
    assert actor.touching(0, 0).shape == (22,)


# --- pictures


def hand_seen(picture: np.ndarray, at: Any, actor: Actor, frame: int) -> float:
    """Share of the vertices of both hands at which the picture has the body's colour."""
    surface = actor.surfaces[0]
    hands = surface.weights[:, HANDS].sum(1) > 0.9
    blue = motion.hue_like(picture, rgb(color_of(actor.color, False)))
    xs, ys = at(actor.vertices(0, frame)[hands]).astype(int).T
    return float(blue[ys, xs].mean())


def straightened(stage: Stage, frame: int) -> Stage:
    """The same with the fingers as they are in another frame."""
    (actor,) = stage.actors
    joints, quats = actor.joints.copy(), actor.quats.copy()
    joints[:, :, HANDS], quats[:, :, HANDS] = joints[:, frame : frame + 1, HANDS], quats[:, frame : frame + 1, HANDS]
    return replace(stage, actors=(replace(actor, joints=joints, quats=quats),))


@pytest.mark.parametrize("show", ["mesh", "skeleton"])
def test_pictures_show_the_fingers(stage: Stage, show: str) -> None:
    look = Look(show=show, width=1400, height=900)
    painter = StagePainter(stage, look)
    actor, framing = stage.actors[0], stage.framing
    height = painter.height - painter.head - painter.foot

    def at(points: np.ndarray) -> np.ndarray:
        distance = framing.distance(painter.width / height)
        target = (*framing.centers[3], framing.height)
        seen = motion.pinhole(points, target, framing.azimuth, 0.24, distance, 2.4 * height, painter.width, height)
        return seen + np.array((0, painter.head))

    picture = np.asarray(painter.picture(3))
    if show == "mesh":
        assert hand_seen(picture, at, actor, 3) > 0.9
    else:
        blue = motion.hue_like(picture, rgb(color_of(2, False)))
        for joint in range(22, 52):
            x, y = at(actor.joints[0, 3, [PARENTS[joint], joint]]).mean(0)
            assert blue[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].any(), joint
    open_hand = np.asarray(StagePainter(straightened(stage, 0), look).picture(3))
    changed = np.abs(picture.astype(int) - open_hand).max(-1) > 40  # more than another shade
    assert changed.sum() > 30
    # nowhere but at the left hand
    ys, xs = np.nonzero(changed)
    hand = np.concatenate(
        [at(actor.vertices(0, f)[actor.surfaces[0].weights[:, LEFT_HAND].sum(1) > 0]) for f in (0, 3)]
    )
    shadow = ys > at(actor.joints[0, 3, [10]])[0, 1] - 40
    assert (np.abs(xs - hand[:, 0].mean()) < 80)[~shadow].all()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from chromium.session(tmp_path_factory.mktemp("profile"))


@pytest.mark.parametrize("show", ["mesh", "skeleton"])
def test_the_page_shows_the_fingers(browser: Any, stage: Stage, tmp_path: Path, show: str) -> None:
    look = Look(show=show, layout="overlay")
    views.opened(browser, views.written(tmp_path / "a.html", stage, look), width=1400, height=900)
    actor = stage.actors[0]
    views.seek(browser, 3)
    picture = views.bodies(browser)
    height, width = picture.shape[:2]

    def at(points: np.ndarray) -> np.ndarray:
        return views.at(stage, points, 3, width, height)

    blue = motion.hue_like(picture, rgb(color_of(2, False)))
    if show == "mesh":
        assert hand_seen(picture, at, actor, 3) > 0.9
    else:
        for joint in range(22, 52):
            x, y = at(actor.joints[0, 3, [PARENTS[joint], joint]]).mean(0)
            assert blue[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].any(), joint
    views.opened(browser, views.written(tmp_path / "b.html", straightened(stage, 0), look), width=1400, height=900)
    views.seek(browser, 3)
    assert (views.bodies(browser).astype(int) - picture).any(-1).sum() > 20
    assert views.troubles(browser) == []


def test_a_page_may_mix_motions_with_and_without_fingers(browser: Any, body: BodyModel, tmp_path: Path) -> None:
    write_egoallo(tmp_path / "plain.npz", [made(body, joints=21)])
    write_egoallo(tmp_path / "fist.npz", [made(body)])
    both = stage_of(body, tmp_path / "plain.npz", tmp_path / "fist.npz")
    data = views.page_data(render_stage_page(both, Look()))
    assert len(data["meshes"]) == 2 and [shape["mesh"] for shape in data["shapes"]] == [0, 1]
    assert [actor["count"] for actor in data["actors"]] == [22, 52]
    views.opened(browser, views.written(tmp_path / "a.html", both, Look()))
    picture = views.bodies(browser)
    half = picture.shape[1] // 2
    counts = [
        motion.hue_like(part, rgb(color_of(actor.color, False))).sum()
        for part, actor in zip((picture[:, :half], picture[:, half:]), both.actors)
    ]
    assert min(counts) > 3000 and abs(counts[0] - counts[1]) < 0.05 * max(counts)
    assert views.troubles(browser) == []


@pytest.mark.skipif(not have_viser(), reason="the package viser is not installed (pip install viser)")
def test_the_live_view_shows_the_fingers(stage: Stage) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    viewer = LiveViewer(stage, Look(show="both"), port=port)
    try:
        viewer.show(3)
        (shown,), (actor,) = viewer.bodies, stage.actors
        assert len(shown.mesh.bones) == 52
        for bone, position, quat in zip(shown.mesh.bones, actor.joints[0, 3], actor.quats[0, 3]):
            assert np.allclose(bone.position, position, atol=1e-6) and np.allclose(bone.wxyz, quat, atol=1e-6)
        pairs = np.stack([(PARENTS[joint], joint) for joint in range(22, 52)])
        assert shown.fingers.visible and np.allclose(shown.fingers.points, actor.joints[0, 3][pairs])
        assert shown.bones.points.shape == (21, 2, 3) and shown.joints.points.shape == (22, 3)
        viewer.body.value = "Surface"
        viewer._stale.set()
        viewer.step(0.0)
        assert not shown.fingers.visible
    finally:
        viewer.close()
