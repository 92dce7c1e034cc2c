"""Pictures, films and the offline page's data of a stage: bodies are where they should be, and all of it is written."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mgrpo.errors import InputError
from mgrpo.viz import page as page_module
from mgrpo.viz.film import Look, StagePainter, write_film, write_still
from mgrpo.viz.mp4 import have_mp4_encoder, is_whole
from mgrpo.viz.page import render_stage_page
from mgrpo.viz.painter import Skin, paint_skins
from mgrpo.viz.palette import mix, rgb
from mgrpo.viz.scene import drawable, font
from mgrpo.viz.stage import CONTACT, Actor, Stage, color_of, error_curve, thinned
from mgrpo.viz.surface import Surface, rotation_matrices, vertex_normals
from tests.mgrpo import view_motion as motion
from tests.mgrpo.html_page import Page
from tests.mgrpo.view_page import page_data

LEFT_WRIST, RIGHT_WRIST, LEFT_KNEE = 20, 21, 4


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def projected(painter: StagePainter, stage: Stage, points: np.ndarray, frame: int = 0) -> np.ndarray:
    """Pixels of world points in the picture of a stage with one panel."""
    framing = stage.framing
    height = painter.height - painter.head - painter.foot
    target = (*framing.centers[frame], framing.height)
    distance = framing.distance(painter.width / height)
    at = motion.pinhole(points, target, framing.azimuth, 0.24, distance, 2.4 * height, painter.width, height)
    return at + np.array((0, painter.head))


@pytest.mark.parametrize("joint", [LEFT_WRIST, RIGHT_WRIST, LEFT_KNEE])
@pytest.mark.parametrize("dark", [False, True])
def test_the_skeleton_is_where_its_joints_are(joint: int, dark: bool) -> None:
    stage = motion.still_stage(touching=joint)
    painter = StagePainter(stage, Look(show="skeleton", dark=dark, width=700, height=700))
    picture = pixels(painter.picture(0))
    # what touches is marked: the mark's middle is the joint's place
    expected = projected(painter, stage, stage.actors[0].joints[0, 0, joint])
    found = motion.center(motion.hue_like(picture, rgb(CONTACT[dark]), 0.05))
    assert np.hypot(*(expected - found)) < 1.5
    # and every bone runs between its joints
    ends = projected(painter, stage, stage.actors[0].joints[0, 0])
    body = motion.hue_like(picture, rgb(color_of(2, dark))) | motion.hue_like(picture, rgb(CONTACT[dark]))
    for parent, child in motion.BONES:
        for share in (0.25, 0.5, 0.75):
            x, y = ends[parent] + share * (ends[child] - ends[parent])
            assert body[int(y), int(x)], (parent, child, share)


def test_the_surface_covers_the_skeleton_and_little_more() -> None:
    stage = motion.still_stage()
    painter = StagePainter(stage, Look(width=700, height=700))
    blue = motion.hue_like(pixels(painter.picture(0)), rgb(color_of(2, False)))
    ends = projected(painter, stage, stage.actors[0].joints[0, 0])
    for parent, child in motion.BONES:
        x, y = (ends[parent] + ends[child]) / 2
        assert blue[int(y), int(x)], (parent, child)
    vertices = projected(painter, stage, stage.actors[0].vertices(0, 0))
    ys, xs = np.nonzero(blue[painter.head : -painter.foot])
    assert abs(xs.min() - vertices[:, 0].min()) < 3 and abs(xs.max() - vertices[:, 0].max()) < 3
    assert abs(ys.min() + painter.head - vertices[:, 1].min()) < 3


def test_what_touches_is_marked_on_the_surface() -> None:
    marked = rgb(CONTACT[False])
    for touching, expected in ((None, 0), (LEFT_KNEE, 200)):
        stage = motion.still_stage(touching=touching)
        picture = pixels(StagePainter(stage, Look(width=700, height=700)).picture(0))
        found = motion.hue_like(picture, marked, 0.05).sum()
        assert (found > expected) if expected else found == 0


def test_near_faces_hide_far_ones() -> None:
    stage = motion.still_stage()
    azimuth = stage.framing.azimuth
    towards = np.array([np.cos(azimuth), np.sin(azimuth), 0.0], np.float32)
    (body,) = stage.actors

    def moved(metres: float, color: int) -> Actor:
        return Actor("m", body.joints + metres * towards, color, body.quats, None, body.surfaces)

    for first, second in ((0.8, -0.8), (-0.8, 0.8)):
        both = Stage("both", 30.0, (moved(first, 1), moved(second, 2)))
        picture = pixels(StagePainter(both, Look(layout="overlay", width=700, height=700)).picture(0))
        orange = motion.hue_like(picture, rgb(color_of(1, False))).sum()
        blue = motion.hue_like(picture, rgb(color_of(2, False))).sum()
        # the nearer is seen whole, of the other a part
        assert (orange > 1.5 * blue) == (first > second)


def three(frames: int = 6, samples: int = 2) -> Stage:
    """A truth and two predictions of it beside each other, which walk off; the second loses its last frames."""
    still = motion.still_stage(LEFT_KNEE, frames=frames)
    (body,) = still.actors
    way = np.linspace(0, 0.5, frames)[None, :, None, None] * np.array([1.0, 0, 0])
    actors = []
    head = np.zeros((frames, 7), np.float32)
    head[:, :4] = 0.5
    head[:, 4:] = (body.joints + way)[0, :, 15]
    for color, name in ((0, "ground truth"), (1, "prior <b>"), (2, "post-trained")):
        count = 1 if color == 0 else samples
        shift = 0.3 * color * (1 + np.arange(count))[:, None, None, None] * np.array([0, 1.0, 0])
        joints = (np.repeat(body.joints, count, 0) + way + shift).astype(np.float32)
        error = None if color == 0 else np.linalg.norm(joints - actors[0].joints, axis=-1).mean(-1) * 1000
        if color == 2:
            joints[:, -2:] = np.nan
            error[:, -2:] = np.nan
        actors.append(
            Actor(
                name,
                joints,
                color,
                np.repeat(body.quats, count, 0),
                np.repeat(body.contacts, count, 0),
                body.surfaces * count,
                error,
                head,
            )
        )
    return Stage("three", 30.0, tuple(actors), 0.5, ("a note & more",))


@pytest.mark.parametrize("show", ["mesh", "skeleton", "both"])
@pytest.mark.parametrize("layout", ["side", "overlay"])
@pytest.mark.parametrize("dark", [False, True])
def test_every_look_shows_every_motion(show: str, layout: str, dark: bool) -> None:
    stage = three()
    look = Look(show, layout, dark, 900, 520)
    painter = StagePainter(stage, look)
    first, last = pixels(painter.picture(0)), pixels(painter.picture(5))
    assert first.shape == (520, 900, 3)
    edges = [0, 300, 600, 900] if layout == "side" else None
    body = slice(painter.head, 520 - painter.foot)
    for column, color in enumerate((1, 2), 1):
        part = slice(edges[column], edges[column + 1]) if edges else slice(None)
        wanted = rgb(color_of(color, dark))
        before, after = (motion.hue_like(picture[body, part], wanted).sum() for picture in (first, last))
        assert before > 300
        assert (after < before / 4) == (color == 2)  # it has no frame there
    assert (first != last).any()
    assert (first[0, 0] == rgb(painter.palette.surface)).all()


def test_other_samples_and_the_truth_are_pale() -> None:
    alone, several = (pixels(StagePainter(three(samples=n), Look(width=900, height=520)).picture(0)) for n in (1, 3))
    body = slice(75, 400)
    assert (alone[body, 300:] != several[body, 300:]).any(-1).sum() > 300
    assert (alone[body, :290] == several[body, :290]).all()
    for column, color, strength in ((1, 0, 0.27), (1, 1, 0.2), (2, 2, 0.2)):
        pale = mix((255, 255, 255), rgb(color_of(color, False)), strength)
        part = several[body, 300 * column + 5 : 300 * column + 295].astype(int)
        assert (np.abs(part - pale).max(-1) < 3).sum() > 100, (column, color)


def test_the_side_that_looks_at_us_is_painted() -> None:
    stage = motion.still_stage()
    painter = StagePainter(stage, Look(width=700, height=700))
    camera = painter.camera(0, 700)
    surface, vertices = stage.actors[0].surfaces[0], stage.actors[0].vertices(0, 0)
    normals = vertex_normals(vertices, surface.faces)
    towards = camera.axes()[0]
    picture = Image.new("RGB", (camera.width, camera.height), (255, 255, 255))
    skin = Skin(vertices, surface.faces, (220, 120, 20), (normals @ towards > 0).astype(np.float32), (20, 60, 220))
    paint_skins(ImageDraw.Draw(picture), camera, [skin])
    front, back = (motion.hue_like(pixels(picture), color).sum() for color in ((20, 60, 220), (220, 120, 20)))
    assert front > 20 * back


def test_motions_without_a_truth_are_each_in_the_middle_of_their_panel() -> None:
    stage = motion.far_apart()
    picture = pixels(StagePainter(stage, Look(width=800, height=520)).picture(0))
    middles = [motion.center(motion.hue_like(picture[80:460], rgb(color_of(color, False)))) for color in (1, 2)]
    assert np.allclose(np.subtract(middles[1], middles[0]), (400, 0), atol=3)
    assert [[actor.name for actor in stage.heads(stage.actors)]] == [[]]


def test_the_cursor_runs_along_the_errors() -> None:
    painter = StagePainter(three(frames=11), Look(width=900, height=520))
    left, right, top, bottom, _ = painter._chart
    ink = rgb(painter.palette.ink)
    for frame in (0, 5, 10):
        picture = pixels(painter.picture(frame))
        row = picture[int(top) - 4]
        columns = np.flatnonzero((np.abs(row.astype(int) - ink) < 30).all(-1))
        assert abs(columns.mean() - (left + (right - left) * frame / 10)) < 2
    curve = pixels(painter.picture(0))[int(top) : int(bottom), int(left) : int(right)]
    for color in (1, 2):
        assert motion.hue_like(curve, rgb(color_of(color, False))).sum() > 100


def test_panels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"3 panels don't fit a picture of 400 x 520 pixels"):
        StagePainter(three(), Look(width=400, height=520))
    StagePainter(three(), Look(width=400, height=520, layout="overlay"))


def test_a_picture_is_written(tmp_path: Path) -> None:
    write_still(three(), Look(width=901, height=521), tmp_path / "a.png", 2)
    assert Image.open(tmp_path / "a.png").size == (902, 522)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.skipif(not have_mp4_encoder(), reason="the package imageio-ffmpeg is not installed")
def test_a_film_has_every_frame(tmp_path: Path) -> None:
    import imageio_ffmpeg

    done: list[int] = []
    stage = three(frames=7)
    write_film(stage, Look(width=640, height=400), tmp_path / "a.mp4", on_frame=done.append)
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "a.mp4"))
    about = next(reader)
    frames = [np.frombuffer(frame, np.uint8).reshape(400, 640, 3) for frame in reader]
    assert about["size"] == (640, 400) and about["fps"] == 30 and len(frames) == 7 and sum(done) == 7
    expected = pixels(StagePainter(stage, Look(width=640, height=400)).picture(4)).astype(int)
    assert np.abs(frames[4] - expected).mean() < 6
    assert np.abs(frames[0].astype(int) - frames[6]).mean() > 0.5


@pytest.mark.skipif(not have_mp4_encoder(), reason="the package imageio-ffmpeg is not installed")
def test_a_film_that_the_encoder_did_not_finish_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_film(three(frames=7), Look(width=640, height=400), tmp_path / "a.mp4")
    whole = (tmp_path / "a.mp4").read_bytes()
    assert is_whole(tmp_path / "a.mp4") and not is_whole(tmp_path / "none.mp4")
    for size in (0, 4, 40, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.mp4").write_bytes(whole[:size])
        assert not is_whole(tmp_path / "cut.mp4"), size
    (tmp_path / "cut.mp4").write_bytes(whole + b"more")
    assert not is_whole(tmp_path / "cut.mp4")
    (tmp_path / "cut.mp4").unlink()
    # an encoder that ends before its time
    import imageio_ffmpeg

    def ends(path: str, *args: Any, **options: Any) -> Any:
        yield
        Path(path).write_bytes(whole[:-1])
        yield

    monkeypatch.setattr(imageio_ffmpeg, "write_frames", ends)
    with pytest.raises(OSError, match="ended before the film was whole"):
        write_film(three(frames=1), Look(width=640, height=400), tmp_path / "a.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"] and (tmp_path / "a.mp4").read_bytes() == whole


def test_a_film_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = StagePainter.picture

    def broken(self: StagePainter, frame: int) -> Image.Image:
        if frame == 3:
            raise OSError("no space")
        return draw(self, frame)

    monkeypatch.setattr(StagePainter, "picture", broken)
    with pytest.raises(OSError, match="no space"):
        write_film(three(), Look(), tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_names_are_drawn_in_letters_that_there_are() -> None:
    assert drawable("walk (1) … 3·4") == "walk (1) … 3·4"
    assert drawable("läufer la\u0308ufer Ångström ½") == "laufer laufer Angstrom 12"
    assert drawable("名前 😀") == "?? ?"
    nothing = font(20).getmask("\u0378")
    stage = motion.still_stage()
    object.__setattr__(stage.actors[0], "name", "Läufer")
    plain = motion.still_stage()
    object.__setattr__(plain.actors[0], "name", "Laufer")
    look = Look(width=400, height=320)
    assert nothing.size[0] > 0  # a box, which nobody should see
    assert StagePainter(stage, look).picture(0) == StagePainter(plain, look).picture(0)


# --- the page's text and data; a browser looks at it in test_view_browser.py


def decoded(text: str, dtype: str, *shape: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype).reshape(shape)


def test_the_page_holds_the_motion() -> None:
    stage = three()
    text = render_stage_page(stage, Look(show="both", layout="overlay"), "dark")
    page = Page(text)
    assert page.problems == [] and page.open == []
    assert all(reference.startswith("data:") for reference in page.references("src", "href"))
    assert "prior <b>" not in text and '<html lang="en" data-theme="dark">' in text
    assert "a note &amp; more" in text
    assert not re.search(r"\$(title|theme|style|script|data|notes)\b|/\*(light|dark)\*/", text)
    data = page_data(text)
    assert (data["show"], data["layout"], data["frames"], data["fps"], data["start"]) == ("both", "overlay", 6, 30, 0.5)
    assert [actor["name"] for actor in data["actors"]] == ["ground truth", "prior <b>", "post-trained"]
    for packed, actor in zip(data["actors"], stage.actors):
        root = decoded(packed["root"], "<f4", actor.samples, 6, 3)
        rest = decoded(packed["joints"], "<i2", actor.samples, 6, 21, 3) * data["step"]
        there = actor.present
        assert np.abs(root[:, there] - actor.joints[:, there, 0]).max() < 1e-6
        assert np.abs(root[:, there, None] + rest[:, there] - actor.joints[:, there, 1:]).max() < 1e-4
        assert np.isnan(root[:, ~there]).all()
        quats = decoded(packed["quats"], "<i2", actor.samples, 6, 22, 4) / 32767
        assert np.abs(quats[:, there] - actor.quats[:, there]).max() < 1e-4
        assert (decoded(packed["contacts"], "u1", actor.samples, 6, 21)[..., LEFT_KNEE - 1] == 255).all()
    assert len(data["shapes"]) == 1 and data["actors"][1]["shapes"] == [0, 0]
    assert data["actors"][1]["means"] == pytest.approx([300.0, 600.0], abs=0.1)
    assert data["actors"][0]["curve"] is None and data["actors"][1]["curve"][1] == [[300.0] * 6, [600.0] * 6]
    assert data["actors"][2]["curve"][1][0] == [600.0] * 4 + [None] * 2
    assert decoded(data["actors"][1]["error"], "<f4", 2, 6)[:, 0] == pytest.approx([300.0, 600.0], abs=0.1)
    assert (data["actors"][1]["numbers"], data["actors"][1]["count"], len(data["parents"])) == ([0, 1], 22, 22)


def test_turns_on_the_page_have_signs_that_agree() -> None:
    stage = motion.still_stage(frames=6)
    (actor,) = stage.actors
    before = actor.quats.copy()
    actor.quats[:, 1::2] *= -1
    actor.quats[:, 3] = np.nan
    packed = page_data(render_stage_page(stage, Look()))["actors"][0]["quats"]
    quats = decoded(packed, "<i2", 1, 6, 22, 4) / 32767
    there = [0, 1, 2, 4, 5]
    assert np.abs(np.abs((quats * before).sum(-1)) - 1)[:, there].max() < 1e-3
    products = (quats[:, 1:] * quats[:, :-1]).sum(-1)
    assert (products[:, [0, 1, 4]] > 0.99).all()


def test_the_page_skins_with_the_strongest_joints() -> None:
    stage = motion.still_stage()
    surface = stage.actors[0].surfaces[0]
    bones, weights = surface.strongest
    assert (weights.astype(int).sum(1) == 255).all()
    kept = np.zeros_like(surface.weights)
    np.put_along_axis(kept, bones.astype(np.int64), weights / np.float32(255), axis=1)
    assert np.abs(kept - surface.weights).max() < 6e-3
    rounded = Surface(surface.rest_vertices, surface.rest_joints, kept, surface.faces)
    joints, quats = stage.actors[0].joints[0, 0], stage.actors[0].quats[0, 0]
    assert np.abs(rounded.vertices(joints, quats) - surface.vertices(joints, quats)).max() < 4e-3


def test_joints_alone_make_a_page_without_a_mesh() -> None:
    data = page_data(render_stage_page(motion.still_stage(surface=False), Look()))
    assert data["meshes"] == [] and data["shapes"] == [] and data["actors"][0]["quats"] is None


def test_a_page_too_large_for_a_browser_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "MOST_PAGE_BYTES", 10_000)
    with pytest.raises(InputError, match=r"a page with 30 posed bodies .* take a part by --start and --seconds"):
        render_stage_page(three(), Look())


# --- parts


def test_curves_are_means_of_stretches() -> None:
    frames, values = error_curve(np.array([1.0, 3, 5, np.nan, np.nan, np.nan, 2, 4]), 4)
    assert frames.tolist() == [0.5, 2.5, 4.5, 6.5]
    assert values[[0, 1, 3]].tolist() == [2, 5, 3] and np.isnan(values[2])
    assert thinned(5, 10).tolist() == [0, 1, 2, 3, 4] and thinned(101, 3).tolist() == [0, 50, 100]


def test_colours_repeat_but_never_the_truths() -> None:
    colors = [color_of(number, False) for number in range(20)]
    assert len(set(colors[:8])) == 8 and colors[0] not in colors[1:] and colors[8] == colors[1]


def test_normals_look_outwards() -> None:
    surface = motion.still_stage().actors[0].surfaces[0]
    normals = vertex_normals(surface.rest_vertices, surface.faces)
    assert np.allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-6)
    away = surface.rest_vertices - surface.rest_joints[np.argmax(surface.weights, axis=1)]
    assert ((normals * away).sum(1) > 0).mean() > 0.75
    quats = np.array([[0.5, 0.5, 0.5, 0.5], [1.0, 0, 0, 0]])
    assert np.allclose(rotation_matrices(quats)[0] @ [1, 0, 0], [0, 1, 0])


def test_what_does_not_fit_is_refused() -> None:
    joints = np.zeros((1, 4, 22, 3), np.float32)
    with pytest.raises(InputError, match=r"Actor 'a': quats must have shape \(1, 4, 22, 4\), got \(1, 3, 22, 4\)"):
        Actor("a", joints, 1, np.zeros((1, 3, 22, 4)))
    with pytest.raises(InputError, match="at least one actor"):
        Stage("s", 30.0, ())
    with pytest.raises(InputError, match="'b' has 5 frames, 'a' 4"):
        Stage("s", 30.0, (Actor("a", joints, 1), Actor("b", np.zeros((1, 5, 22, 3)), 2)))
    surface = motion.still_stage().actors[0].surfaces[0]
    with pytest.raises(InputError, match="surfaces need orientations and one for each of 1 samples"):
        Actor("a", joints, 1, surfaces=(surface,))
    with pytest.raises(InputError, match=r"joints must be 22 or 52, got 24"):
        Actor("a", np.zeros((1, 4, 24, 3), np.float32), 1)
    with pytest.raises(InputError, match=r"1 samples need as many numbers, got \(0, 2\)"):
        Actor("a", joints, 1, numbers=(0, 2))
    with pytest.raises(InputError, match="surfaces must follow its 52 joints"):
        Actor("a", np.zeros((1, 4, 52, 3), np.float32), 1, np.zeros((1, 4, 52, 4)), surfaces=(surface,))
    with pytest.raises(InputError, match=r"weights must have shape \(2066, 22\), got \(2066, 21\)"):
        Surface(surface.rest_vertices, surface.rest_joints, surface.weights[:, 1:], surface.faces)
