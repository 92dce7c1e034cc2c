"""The offline page of `mgrpo view --html` in a real browser: no errors, no requests, the body where it should be, and
every control does what it says. Skips where no Chromium or Chrome is installed; ``MGRPO_CHROMIUM`` names one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mgrpo.body import default_body
from mgrpo.commands.view_files import read_stage
from mgrpo.eval.formats import ReadOptions
from mgrpo.viz.film import Look
from mgrpo.viz.page import render_stage_page
from mgrpo.viz.palette import rgb
from mgrpo.viz.stage import CONTACT, Stage, color_of
from tests.mgrpo import chromium
from tests.mgrpo import view_motion as motion
from tests.mgrpo.view_page import FRAME, at, bodies, click, opened, seek, seen, troubles, written


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from chromium.session(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """A recorded walk, and two predictions of it with three samples each."""
    folder = tmp_path_factory.mktemp("motion")
    files = [
        str(motion.write_prediction(folder / f"{name}.npz", size=size, samples=3, seed=seed))
        for seed, (name, size) in enumerate((("prior", 0.2), ("post-trained", 0.1)))
    ]
    return read_stage(
        files, (), "demo", default_body(), options=ReadOptions(), truth_options=ReadOptions(), clip="walk", samples=8,
        start=0, seconds=0, say=lambda note: None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "walk.html"
    path.write_text(render_stage_page(stage, Look()), "utf-8")
    return path


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)])
def test_the_page_loads_without_errors_or_requests(browser: Any, page: Path, width: int, dark: bool) -> None:
    opened(browser, page, width=width, dark=dark)
    assert troubles(browser) == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.title") == "walk"
    background = seen(browser)[-1, 0]
    assert (background.sum() < 200) == dark
    names = browser.evaluate("[...document.querySelectorAll('.caption b')].map(name => name.textContent)")
    assert names == ["ground truth", "prior", "post-trained"]


@pytest.mark.parametrize("joint", [20, 21, 4])
@pytest.mark.parametrize("dark", [False, True])
def test_the_skeleton_is_where_its_joints_are(browser: Any, tmp_path: Path, joint: int, dark: bool) -> None:
    stage = motion.still_stage(touching=joint)
    opened(browser, written(tmp_path / "a.html", stage, Look(show="skeleton", layout="overlay")), dark=dark)
    picture = seen(browser)
    height, width = picture.shape[:2]
    ends = at(stage, stage.actors[0].joints[0, 0], 0, width, height)
    mark = motion.center(motion.hue_like(picture, rgb(CONTACT[dark]), 0.04)[60:])
    assert np.hypot(mark[0] - ends[joint, 0], mark[1] + 60 - ends[joint, 1]) < 2
    body = motion.hue_like(picture, rgb(color_of(2, dark))) | motion.hue_like(picture, rgb(CONTACT[dark]))
    for parent, child in motion.BONES:
        for share in (0.3, 0.5, 0.7):
            x, y = ends[parent] + share * (ends[child] - ends[parent])
            assert body[int(y), int(x)], (parent, child, share)


def test_the_surface_is_that_of_skinning(browser: Any, tmp_path: Path) -> None:
    stage = motion.still_stage()
    opened(browser, written(tmp_path / "a.html", stage, Look(layout="overlay")))
    picture = bodies(browser)
    height, width = picture.shape[:2]
    vertices = at(stage, stage.actors[0].vertices(0, 0), 0, width, height)
    blue = motion.hue_like(picture, rgb(color_of(2, False)))
    ys, xs = np.nonzero(blue)
    assert abs(xs.min() - vertices[:, 0].min()) < 3 and abs(xs.max() - vertices[:, 0].max()) < 3
    assert abs(ys.min() - vertices[:, 1].min()) < 3 and abs(ys.max() - vertices[:, 1].max()) < 3
    inside = blue[vertices[:, 1].astype(int), vertices[:, 0].astype(int)]
    assert inside.mean() > 0.93  # those on the outline lie half outside


def test_the_slider_changes_the_picture_and_comes_back(browser: Any, page: Path, stage: Stage) -> None:
    opened(browser, page)
    pictures = []
    for frame in (5, 25, 5):
        seek(browser, frame)
        pictures.append(bodies(browser))
        shown = browser.evaluate("[...document.querySelectorAll('.caption span')].map(text => text.textContent)")
        for text, actor in zip(shown[1:], stage.actors[1:]):
            assert text == f"{actor.error_mm[0, frame]:.0f} mm now, {actor.mean_error_mm:.0f} mm on average"
    assert (pictures[0] != pictures[1]).any(-1).sum() > 2000
    assert np.array_equal(pictures[0], pictures[2])
    assert troubles(browser) == []


def test_each_panel_shows_its_motion(browser: Any, page: Path, stage: Stage) -> None:
    opened(browser, page)
    for frame in (0, 20):
        seek(browser, frame)
        picture = bodies(browser)
        edges = [round(picture.shape[1] * column / 3) for column in range(4)]
        for index, actor in enumerate(stage.actors):
            panel = picture[:, edges[index] + 2 : edges[index + 1]]
            middle = at(stage, actor.joints[0, frame, [0, 9]], frame, edges[index + 1] - edges[index], len(panel))
            # the truth is nearly grey: dark where the floor is light
            own = motion.hue_like(panel, rgb(color_of(actor.color, False)))
            wanted = own if index else panel.max(axis=-1) < 150
            for x, y in middle:
                assert wanted[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3].any(), (index, frame)


def test_motions_without_a_truth_are_each_in_the_middle_of_their_panel(browser: Any, tmp_path: Path) -> None:
    opened(browser, written(tmp_path / "a.html", motion.far_apart(), Look()))
    picture = bodies(browser)
    middles = [motion.center(motion.hue_like(picture, rgb(color_of(color, False)))) for color in (1, 2)]
    assert np.allclose(np.subtract(middles[1], middles[0]), (picture.shape[1] / 2, 0), atol=3)


def test_playing_advances_at_the_chosen_speed_and_pause_holds(browser: Any, page: Path) -> None:
    opened(browser, page)
    browser.evaluate(
        "(() => { const speed = document.querySelector('[data-part=speed]');"
        " speed.value = '0.25'; speed.dispatchEvent(new Event('change')); })()"
    )
    click(browser, "play")
    browser.wait_for(f"{FRAME} >= 3")
    click(browser, "play")
    held = browser.evaluate(FRAME)
    assert held >= 3
    browser.evaluate("new Promise(done => setTimeout(done, 250))")
    assert browser.evaluate(FRAME) == held and troubles(browser) == []


def test_every_control_changes_the_picture(browser: Any, page: Path) -> None:
    opened(browser, page)
    seek(browser, 18)
    before = bodies(browser)
    for part in ("samples", "truth", "head", "contacts", "follow"):
        click(browser, part)
        assert (bodies(browser) != before).any(-1).sum() > 40, part
        click(browser, part)
        assert np.array_equal(bodies(browser), before), part
    for part, back in (("overlay", "side"), ("skeleton", "mesh"), ("both", "mesh"), ("theme", "theme")):
        click(browser, part)
        assert (bodies(browser) != before).any(-1).sum() > 2000, part
        click(browser, back)
        assert np.array_equal(bodies(browser), before), part
    browser.evaluate("document.querySelectorAll('.caption button')[1].click()")
    hidden = bodies(browser)
    third = before.shape[1] // 3
    assert (hidden[:, third + 5 : 2 * third - 5] != before[:, third + 5 : 2 * third - 5]).any(-1).sum() > 2000
    assert np.array_equal(hidden[:, : third - 5], before[:, : third - 5])
    assert troubles(browser) == []


def test_another_sample_becomes_the_solid_one(browser: Any, page: Path, stage: Stage) -> None:
    opened(browser, page)
    seek(browser, 18)
    for part in ("samples", "truth", "head", "contacts"):
        click(browser, part)
    curve = "document.querySelector('[data-part=curves] path').getAttribute('d')"
    before = browser.evaluate(curve)
    assert browser.evaluate("[...document.querySelector('[data-part=sample]').options].map(o => o.text)") == list("012")
    choose = (
        "(() => { const menu = document.querySelector('[data-part=sample]');"
        " menu.value = '2'; menu.dispatchEvent(new Event('change')); })()"
    )
    first = bodies(browser)
    browser.evaluate(choose)
    picture = bodies(browser)
    assert (picture != first).any(-1).sum() > 500
    edges = [round(picture.shape[1] * column / 3) for column in range(4)]
    for index, actor in enumerate(stage.actors[1:], 1):
        panel = picture[:, edges[index] + 2 : edges[index + 1]]
        own = motion.hue_like(panel, rgb(color_of(actor.color, False)))
        there = []
        for sample in (0, 2):
            points = at(stage, actor.vertices(sample, 18), 18, edges[index + 1] - edges[index], len(panel))
            xs, ys = points.astype(int).T
            there.append(own[ys, np.clip(xs - 2, 0, panel.shape[1] - 1)].mean())
        assert there[1] > 0.9 and there[1] > there[0] + 0.02, (index, there)
    shown = browser.evaluate("[...document.querySelectorAll('.caption span')].map(text => text.textContent)")
    for text, actor in zip(shown[1:], stage.actors[1:]):
        assert text == f"{actor.error_mm[2, 18]:.0f} mm now, {actor.mean_errors_mm[2]:.0f} mm on average"
    assert browser.evaluate(curve) != before
    assert browser.evaluate("document.querySelectorAll('[data-part=curves] path').length") == 2
    assert troubles(browser) == []


def test_dragging_turns_the_wheel_zooms_and_reset_brings_back(browser: Any, page: Path) -> None:
    opened(browser, page)
    before = bodies(browser)
    browser.mouse("mousePressed", 300, 300, 1)
    browser.mouse("mouseMoved", 380, 310, 1)
    browser.mouse("mouseReleased", 380, 310)
    turned = bodies(browser)
    assert (turned != before).any(-1).sum() > 2000
    browser.call("Input.dispatchMouseEvent", type="mouseWheel", x=300, y=300, deltaX=0, deltaY=-240)
    zoomed = bodies(browser)
    blue = rgb(color_of(2, False))
    assert motion.hue_like(zoomed, blue).sum() > 1.15 * motion.hue_like(turned, blue).sum()
    click(browser, "reset")
    assert np.array_equal(bodies(browser), before)


def test_keys_and_the_chart_move_through_time(browser: Any, page: Path, stage: Stage) -> None:
    opened(browser, page)
    browser.evaluate("document.querySelector('canvas').focus()")
    browser.key("ArrowRight", "ArrowRight")
    browser.key("ArrowRight", "ArrowRight")
    browser.settle()
    assert browser.evaluate(FRAME) == 2
    browser.key("Home", "Home")
    browser.settle()
    assert browser.evaluate(FRAME) == 0
    x, y, width, height = browser.evaluate(
        "(() => { const b = document.querySelector('[data-part=chart]').getBoundingClientRect();"
        " return [b.x, b.y, b.width, b.height]; })()"
    )
    browser.mouse("mousePressed", x + 0.5 * width, y + height / 2, 1)
    browser.mouse("mouseReleased", x + 0.5 * width, y + height / 2)
    browser.settle()
    assert browser.evaluate(FRAME) == (stage.frames - 1) / 2
    cursor = browser.evaluate("document.querySelector('[data-part=cursor]').getBoundingClientRect().x")
    assert abs(cursor - (x + 0.5 * width)) < 2
    assert browser.evaluate("document.querySelectorAll('[data-part=curves] path').length") == 2


def test_joints_alone_get_a_figure(browser: Any, tmp_path: Path) -> None:
    stage = motion.still_stage(surface=False)
    opened(browser, written(tmp_path / "a.html", stage, Look()))
    assert motion.hue_like(bodies(browser), rgb(color_of(2, False))).sum() > 5000
    assert troubles(browser) == []
    hidden = browser.evaluate("getComputedStyle(document.querySelector('[data-part=chartbox]')).display")
    assert hidden == "none"


def test_a_motion_that_ends_early_says_so(browser: Any, tmp_path: Path) -> None:
    stage = motion.still_stage(frames=4)
    stage.actors[0].joints[:, 2:] = np.nan
    opened(browser, written(tmp_path / "a.html", stage, Look()))
    blue = rgb(color_of(2, False))
    assert motion.hue_like(bodies(browser), blue).sum() > 3000
    seek(browser, 3)
    assert motion.hue_like(bodies(browser), blue).sum() == 0
    assert "no frame here" in json.dumps(browser.evaluate("document.querySelector('.captions').textContent"))
    assert troubles(browser) == []
