"""Pictures of moving bodies: camera, mannequin, drawing, film and the colours they share with the page."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mgrpo.errors import InputError
from mgrpo.viz.animation import REST_SECONDS, film_clips, render_frames, write_animation
from mgrpo.viz.camera import FOCAL, Camera, frame_clip
from mgrpo.viz.comparison import BODY_PARENTS, MotionComparison, SkeletonTrack, frame_errors_mm
from mgrpo.viz.filmstrip import key_frames, render_filmstrip
from mgrpo.viz.mannequin import Limb, Mannequin, mannequin_for
from mgrpo.viz.palette import DARK, LIGHT, Palette, rgb
from mgrpo.viz.raster import LIGHT_SLANT, Panel, capsule_outlines


def standing(frames: int = 6, *, facing: float = 0.0, speed: float = 0.0) -> np.ndarray:
    """Joints (T, 22, 3) of a body with a left and a right side that faces an angle about z and walks that way."""
    left = {1: 0.09, 4: 0.1, 7: 0.1, 10: 0.1, 13: 0.08, 16: 0.18, 18: 0.42, 20: 0.66}
    height = (0.95, 0.87, 0.87, 1.06, 0.48, 0.48, 1.19, 0.08, 0.08, 1.25, 0.03, 0.03)
    height += (1.46, 1.37, 1.37, 1.55, 1.4, 1.4, 1.38, 1.38, 1.36, 1.36)
    joints = np.zeros((22, 3))
    joints[:, 2] = height
    for joint, side in left.items():
        joints[joint, 1], joints[joint + 1, 1] = side, -side
    joints[[10, 11], 0] = 0.12
    cos, sin = np.cos(facing), np.sin(facing)
    turned = joints @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    path = np.arange(frames)[:, None, None] * speed * np.array([cos, sin, 0])
    return turned[None] + path


def comparison(joints: np.ndarray, **more: object) -> MotionComparison:
    worse = SkeletonTrack(joints + np.array([0.1, 0, 0]), error_mm=np.full(len(joints), 100.0))
    return MotionComparison("clip", 30.0, SkeletonTrack(joints), worse, **more)  # type: ignore[arg-type]


# ---- data


def test_tracks_are_checked_and_frozen() -> None:
    joints = standing()
    track = SkeletonTrack(joints)
    assert track.joints.shape == (1, 6, 22, 3) and track.frames == 6
    with pytest.raises(ValueError, match="read-only"):
        track.joints[0, 0, 0, 0] = 1
    joints[0, 0, 0] = 99
    assert track.joints[0, 0, 0, 0] == 0
    with pytest.raises(InputError, match=r"joints.*\(6, 22\)"):
        SkeletonTrack(np.zeros((6, 22)))
    with pytest.raises(InputError, match="contacts"):
        SkeletonTrack(joints, contacts=np.zeros((6, 22)))
    with pytest.raises(InputError, match="a sample and a frame"):
        SkeletonTrack(np.zeros((1, 0, 22, 3)))


def test_comparisons_say_which_track_does_not_fit() -> None:
    truth = SkeletonTrack(standing(6))
    with pytest.raises(InputError, match=r"prior has \(5, 22, 3\)"):
        MotionComparison("clip", 30.0, truth, SkeletonTrack(standing(5)))
    with pytest.raises(InputError, match=r"'clip'.*T_world_cpf"):
        MotionComparison("clip", 30.0, truth, T_world_cpf=np.zeros((5, 7)))
    with pytest.raises(InputError, match="fps"):
        MotionComparison("clip", 0.0, truth)
    with pytest.raises(InputError, match="as many parents"):
        MotionComparison("clip", 30.0, truth, parents=(-1, 0))
    with pytest.raises(InputError, match="parents must come before"):
        MotionComparison("clip", 30.0, truth, parents=(-1, 2, *BODY_PARENTS[2:]))


def test_gaze_is_the_third_axis_of_the_head_pose() -> None:
    half = np.sqrt(0.5)
    path = np.array([[1, 0, 0, 0, 1, 2, 3], [half, 0, half, 0, 1, 2, 3], [2 * half, -2 * half, 0, 0, 1, 2, 3]])
    clip = MotionComparison("clip", 30.0, SkeletonTrack(standing(3)), T_world_cpf=path)
    np.testing.assert_allclose(clip.gaze(), [[0, 0, 1], [1, 0, 0], [0, 1, 0]], atol=1e-6)
    np.testing.assert_allclose(clip.head_positions(), [[1, 2, 3]] * 3)
    plain = MotionComparison("clip", 30.0, SkeletonTrack(standing(3)), T_world_cpf=path[:, 4:])
    assert plain.gaze() is None
    np.testing.assert_allclose(plain.head_positions(), [[1, 2, 3]] * 3)


def test_frame_errors_are_millimetres() -> None:
    joints = standing(4)
    np.testing.assert_allclose(frame_errors_mm(joints + np.array([0.03, 0.04, 0]), joints), 50, rtol=1e-6)


# ---- camera


def camera(**more: float) -> Camera:
    options = {"azimuth": 0.7, "elevation": 0.3, "distance": 4.0} | more
    return Camera(target=np.array([1.0, -2.0, 0.9]), width=300, height=200, **options)  # type: ignore[arg-type]


@settings(deadline=None)
@given(azimuth=st.floats(-3, 3), elevation=st.floats(0, 1.4), distance=st.floats(1, 9))
def test_target_is_in_the_middle_and_up_is_up(azimuth: float, elevation: float, distance: float) -> None:
    view = camera(azimuth=azimuth, elevation=elevation, distance=distance)
    x, y, scale = view.project(view.target)
    assert (float(x), float(y)) == pytest.approx((150, 100))
    assert float(scale) == pytest.approx(FOCAL * 200 / distance)
    above_x, above_y, _ = view.project(view.target + np.array([0, 0, 0.1]))
    assert float(above_x) == pytest.approx(150, abs=1e-6) and float(above_y) < 100


def test_nearer_things_are_larger_and_right_is_right() -> None:
    view = camera(azimuth=0.0, elevation=0.0)
    near, far = view.project(view.target + np.array([1, 0, 0]))[2], view.project(view.target + np.array([-1, 0, 0]))[2]
    assert near > far
    # seen from +x, world +y lies to the right
    assert view.project(view.target + np.array([0, 1, 0]))[0] > 150


@pytest.mark.parametrize("facing", [0.0, 1.0, -2.5])
@pytest.mark.parametrize("aspect", [0.4, 1.0, 2.5])
def test_framing_keeps_the_body_in_the_picture_and_sees_its_front(facing: float, aspect: float) -> None:
    clip = comparison(standing(40, facing=facing, speed=0.03))
    framing = frame_clip(clip)
    turn = np.angle(np.exp(1j * (framing.azimuth - facing)))
    assert 0.2 < abs(turn) < 1.2
    for frame in range(clip.frames):
        view = Camera(
            target=np.array([*framing.centers[frame], framing.height]),
            azimuth=framing.azimuth,
            elevation=0.24,
            distance=framing.distance(aspect),
            width=round(400 * aspect),
            height=400,
        )
        x, y, _ = view.project(clip.ground_truth.joints[0, frame])
        assert (x > 0).all() and (x < view.width).all() and (y > 0).all() and (y < 400).all()


def test_framing_survives_missing_frames() -> None:
    joints = standing(20)
    joints[3:6] = np.nan
    assert np.isfinite(frame_clip(comparison(joints)).centers).all()
    joints[:] = np.nan
    framing = frame_clip(comparison(joints))
    assert np.isfinite(framing.centers).all() and framing.distance(1.0) > 0


# ---- drawing


def test_mannequin_adds_points_at_their_distance() -> None:
    figure = mannequin_for(BODY_PARENTS)
    joints = standing(2)
    points = figure.points(joints)
    assert points.shape == (2, 22 + len(figure.extensions), 3)
    for index, extension in enumerate(figure.extensions):
        gap = np.linalg.norm(points[:, 22 + index] - joints[:, extension.end], axis=-1)
        np.testing.assert_allclose(gap, extension.length, rtol=1e-5)
    assert {limb.start for limb in figure.limbs} | {limb.end for limb in figure.limbs} == set(range(points.shape[1]))
    sides = [limb.side for limb in figure.limbs]
    assert sides.count(1) == sides.count(-1)
    other = mannequin_for((-1, 0, 1))
    assert [(limb.start, limb.end) for limb in other.limbs] == [(0, 1), (1, 2)]


@settings(deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=4, max_size=4), st.floats(0.5, 30), st.floats(0.5, 30))
def test_capsule_outline_lies_on_the_hull(ends: list[float], r: float, r2: float) -> None:
    x, y, x2, y2 = (np.array([value]) for value in ends)
    outline = capsule_outlines(x, y, np.array([r]), x2, y2, np.array([r2]))[0]
    to_first = np.hypot(outline[:, 0] - x, outline[:, 1] - y) - r
    to_second = np.hypot(outline[:, 0] - x2, outline[:, 1] - y2) - r2
    # every point is on one circle and not inside the other
    assert np.minimum(np.abs(to_first), np.abs(to_second)).max() < 1e-6
    inside = np.minimum(to_first, to_second)
    larger = r - r2 if r > r2 else r2 - r
    if np.hypot(x - x2, y - y2)[0] > larger + 1e-3:
        assert inside.min() > -1e-6


def panel() -> Panel:
    view = Camera(np.array([0.0, 0.0, 0.9]), 0.8, 0.2, 5.5, 120, 160)
    return Panel(view, (255, 255, 255), (220, 220, 220))


def colored(picture: Image.Image) -> int:
    return int((np.asarray(picture) != 255).any(axis=-1).sum())


def test_bodies_cover_some_of_the_picture_and_missing_ones_none() -> None:
    figure = mannequin_for(BODY_PARENTS)
    joints = standing(1)[0]
    for draw in ("body", "ghost", "shadow"):
        picture = panel()
        getattr(picture, draw)(figure, joints, (30, 110, 180))
        assert 150 < colored(picture.image) < 120 * 160 / 2, draw
        joints_missing = joints.copy()
        joints_missing[4, 1] = np.nan
        empty = panel()
        getattr(empty, draw)(figure, joints_missing, (30, 110, 180))
        assert colored(empty.image) == 0, draw


def test_near_limbs_hide_far_ones() -> None:
    figure = mannequin_for((-1, 0))
    behind, ahead = panel(), panel()
    rod = np.array([[0.0, 0.0, 0.6], [0.0, 0.0, 1.2]])
    for picture, order in ((behind, (0.3, -0.3)), (ahead, (-0.3, 0.3))):
        back = np.array([np.cos(0.8), np.sin(0.8), 0.0])
        for distance, color in sorted(zip(order, ((255, 0, 0), (0, 0, 255)))):
            picture.body(figure, rod + back * distance, color)
    assert np.asarray(behind.image)[80, 60].tolist() != np.asarray(ahead.image)[80, 60].tolist()
    assert np.asarray(behind.image)[80, 60, 0] > np.asarray(behind.image)[80, 60, 2]


def test_limbs_of_one_body_hide_each_other_by_depth() -> None:
    ahead = np.array([np.cos(0.8), np.sin(0.8), 0.0]) * 0.3
    points = np.stack((ahead, ahead, -ahead, -ahead)) + np.array([[0, 0, 0.6], [0, 0, 1.2]] * 2)
    brightness = []
    for near, far in ((-1, 1), (1, -1)):
        limbs = (Limb(0, 1, 0.05, 0.05, near), Limb(2, 3, 0.05, 0.05, far))
        for order in (limbs, limbs[::-1]):
            picture = panel()
            picture.body(Mannequin(4, (), order), points, (200, 120, 40))
            brightness.append(np.asarray(picture.image)[70:90, 58:62].mean())
    # the right side is drawn darker: with it in front the middle is darker, whatever the order of the table
    assert brightness[0] == brightness[1] and brightness[2] == brightness[3]
    assert brightness[0] < brightness[2] - 5


def test_film_has_a_panel_for_each_track_and_differs_from_frame_to_frame() -> None:
    clip = comparison(standing(5, speed=0.05))
    frames = list(render_frames(clip, panel_width=80, panel_height=96))
    assert len(frames) == 5 and len({frame.tobytes() for frame in frames}) == 5
    assert frames[0].width == 160
    again = next(iter(render_frames(clip, panel_width=80, panel_height=96)))
    assert again.tobytes() == frames[0].tobytes()


def test_long_films_drop_frames_but_keep_their_length(tmp_path: Path) -> None:
    clip = comparison(standing(40, speed=0.02))
    seen = []
    write_animation(
        [clip],
        mp4=None,
        gif=tmp_path / "a.gif",
        frame_limit=10,
        on_frame=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(index, 10) for index in range(1, 11)]
    with Image.open(tmp_path / "a.gif") as gif:
        shown = 0
        for index in range(gif.n_frames):
            gif.seek(index)
            shown += gif.info["duration"]
    assert shown == pytest.approx(1000 * (40 / 30 + REST_SECONDS), rel=0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


def test_film_shows_as_many_clips_as_fit() -> None:
    ten, twenty, short = (comparison(standing(frames)) for frames in (10, 20, 5))
    other = MotionComparison("other", 30.0, SkeletonTrack(standing(5)))
    assert film_clips([ten, twenty, other, short], 16) == [ten, short]
    assert film_clips([twenty, ten], 16) == [twenty]


def test_failed_film_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError("stop")

    monkeypatch.setattr("mgrpo.storage.os.replace", fail)
    with pytest.raises(OSError, match="stop"):
        write_animation([comparison(standing(3))], mp4=None, gif=tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []


def test_filmstrip_shows_every_track_at_the_key_frames() -> None:
    clip = comparison(standing(50, speed=0.02))
    chosen = key_frames(clip, 4)
    assert len(chosen) == 4 and chosen == sorted(set(chosen)) and chosen[0] >= 0 and chosen[-1] < 50
    assert key_frames(comparison(standing(3)), 7) == [0, 1, 2]
    strip = render_filmstrip(clip, columns=4, cell_width=60, cell_height=80)
    pixels = np.asarray(strip).astype(int)
    orange = np.abs(pixels - rgb(LIGHT.prior)).sum(-1) < 60
    assert orange[pixels.shape[0] // 2 :].any() and not orange[: pixels.shape[0] // 3].any()


# ---- colours


def luminance(color: str) -> float:
    """Relative luminance of WCAG 2."""
    parts = np.array(rgb(color)) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_stand_out(palette: Palette) -> None:
    for background in (palette.page, palette.surface):
        for text in (
            palette.ink,
            palette.muted,
            palette.prior_text,
            palette.post_trained,
            palette.warning,
            palette.accent,
        ):
            assert contrast(text, background) >= 4.5, (text, background)
        for line in (palette.ground_truth, palette.prior):
            assert contrast(line, background) >= 2.7, (line, background)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize(
    "matrix",
    [
        # what protanopia, deuteranopia and tritanopia leave of linear RGB (Vienot 1999; Brettel's plane for the last)
        [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
        [[1.01277, 0.13548, -0.14826], [-0.01243, 0.86812, 0.14431], [0.07589, 0.805, 0.11911]],
    ],
    ids=["protanopia", "deuteranopia", "tritanopia"],
)
def test_the_three_roles_differ_for_every_eye(palette: Palette, matrix: list[list[float]]) -> None:
    seen = []
    for color in (palette.ground_truth, palette.prior, palette.post_trained):
        parts = np.array(rgb(color)) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        left = np.clip(np.array(matrix) @ linear, 0, 1)
        seen.append(np.where(left <= 0.0031308, 12.92 * left, 1.055 * left ** (1 / 2.4) - 0.055))
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert np.linalg.norm(seen[a] - seen[b]) > 0.2


def test_page_and_films_share_lens_and_light() -> None:
    script = resources.files("mgrpo.report").joinpath("page.js").read_text(encoding="utf-8")
    focal = re.search(r"const FOCAL = ([\d.]+)", script)
    slant = re.search(r"const SLANT = \[([-\d.]+), ([-\d.]+)\]", script)
    assert focal and float(focal[1]) == FOCAL
    assert slant and (float(slant[1]), float(slant[2])) == LIGHT_SLANT
