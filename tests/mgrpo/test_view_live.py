"""`mgrpo view` in the browser through viser: what the server sends, and what a real browser makes of it.

Without the package viser (extra ``viewer``) or a Chromium only the parts that need neither are tested.
"""

from __future__ import annotations

import io
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mgrpo.body import default_body
from mgrpo.commands.view_files import read_stage
from mgrpo.errors import InputError
from mgrpo.eval.formats import ReadOptions
from mgrpo.viz import live
from mgrpo.viz.film import Look
from mgrpo.viz.live import FIELD_OF_VIEW, LiveViewer, first_view, have_viser, offsets, require_port
from mgrpo.viz.live_chart import Chart
from mgrpo.viz.live_scene import rings
from mgrpo.viz.palette import rgb
from mgrpo.viz.stage import CONTACT, Stage, color_of
from tests.mgrpo import chromium
from tests.mgrpo import view_motion as motion

needs_viser = pytest.mark.skipif(not have_viser(), reason="the package viser is not installed (pip install viser)")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """A recorded walk, and two predictions of it, the first with three samples."""
    folder = tmp_path_factory.mktemp("motion")
    files = [
        str(motion.write_prediction(folder / "prior.npz", size=0.2, samples=3)),
        str(motion.write_prediction(folder / "post-trained.npz", size=0.1, seed=1)),
    ]
    return read_stage(
        files, (), "demo", default_body(), options=ReadOptions(), truth_options=ReadOptions(), clip="walk", samples=8,
        start=0, seconds=0, say=lambda note: None,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def viewing(stage: Stage, look: Look | None = None) -> Iterator[LiveViewer]:
    viewer = LiveViewer(stage, look or Look(), port=free_port())
    try:
        yield viewer
    finally:
        viewer.close()


# --- without viser


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
    monkeypatch.setattr(live, "have_viser", lambda: False)
    with pytest.raises(InputError, match=r"pip install 'mgrpo\[viewer\]'.* --html .* --video .* --png"):
        LiveViewer(stage, Look())


def test_a_port_in_use_is_refused_and_a_free_one_named() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(InputError, match=rf"--port {port} can't be used .*; --port \d+ is free") as caught:
            require_port("127.0.0.1", port)
    named = int(re.search(r"--port (\d+) is free", str(caught.value))[1])
    require_port("127.0.0.1", named)


def test_an_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(InputError, match=r"--host 192.0.2.1: can't be listened on"):
        require_port("192.0.2.1", 8080)


def test_motions_stand_in_a_row_across_the_first_view(stage: Stage) -> None:
    places = offsets(stage, "side")
    assert np.allclose(places.sum(0), 0) and np.allclose(places[:, 2], 0)
    assert np.linalg.norm(places[1] - places[0]) >= 1.3
    towards = np.array([np.cos(stage.framing.azimuth), np.sin(stage.framing.azimuth), 0])
    assert np.allclose(places @ towards, 0, atol=1e-9)
    assert np.allclose(offsets(stage, "overlay"), 0)


@pytest.mark.parametrize("layout", ["side", "overlay"])
def test_the_first_view_holds_all_of_every_body(stage: Stage, layout: str) -> None:
    position, target = first_view(stage, layout, aspect=1.08)
    distance = float(np.linalg.norm(position - target))
    focal = 0.5 / np.tan(FIELD_OF_VIEW / 2)
    for frame in range(0, stage.frames, 6):
        anchor = np.array((*stage.framing.centers[frame], 0))
        for actor, place in zip(stage.actors, offsets(stage, layout)):
            points = actor.joints[0, frame] - anchor + place
            seen = motion.pinhole(points, target, stage.framing.azimuth, 0.24, distance, focal, 1.08, 1.0)
            assert (seen > 0.02).all() and (seen < (1.06, 0.98)).all()


def test_the_chart_tells_errors_and_where_we_are(stage: Stage) -> None:
    chart = Chart(stage)
    text = chart.html(12, False)
    for actor in stage.compared:
        assert f"<b>{actor.error_mm[0, 12]:.0f} mm</b> (mean {actor.mean_error_mm:.0f})" in text
        assert color_of(actor.color, False) in text
    cursor = re.findall(r'<line x1="([\d.]+)" x2="\1" y1="0" y2="78"', text)
    assert [float(x) for x in cursor] == [pytest.approx(300 * 12 / (stage.frames - 1), abs=0.01)]
    assert text.count("<path") == 2 and text.count("<div") == text.count("</div>")
    assert color_of(1, True) in chart.html(12, True)
    alone = Chart(motion.still_stage()).html(0, False)
    assert "<svg" not in alone


def test_names_are_no_html(stage: Stage) -> None:
    still = motion.still_stage()
    object.__setattr__(still.actors[0], "name", "<script>x</script>")
    assert "<script>" not in Chart(still).html(0, False)


def test_rings_lie_on_the_floor_below_what_touches() -> None:
    pieces = rings(np.array([[1.0, 2.0, 0.1], [3.0, 4.0, 0.05]]), 0.2)
    first = pieces[:20].reshape(-1, 3)
    assert np.allclose(first.mean(0), [1, 2, 0.006], atol=1e-6)
    assert np.allclose(np.linalg.norm(first[:, :2] - [1, 2], axis=1), 0.2, atol=1e-6)
    assert np.allclose(pieces[40:], 0) and pieces.shape == (22 * 20, 2, 3)


# --- with viser


@needs_viser
def test_the_server_shows_a_frame_as_it_is(stage: Stage) -> None:
    with viewing(stage, Look(show="both")) as viewer:
        viewer.show(17)
        for body in viewer.bodies:
            joints, quats = body.actor.joints[body.sample, 17], body.actor.quats[body.sample, 17]
            for bone, position, quat in zip(body.mesh.bones, joints, quats):
                assert np.allclose(bone.position, position, atol=1e-6) and np.allclose(bone.wxyz, quat, atol=1e-6)
            assert body.mesh.visible and body.bones.visible == (body.sample == 0)
        assert np.allclose(viewer.bodies[0].joints.points, stage.actors[0].joints[0, 17])
        anchor = stage.framing.centers[17]
        assert np.allclose(viewer.world.position, (-anchor[0], -anchor[1], 0), atol=1e-6)
        quat, position = stage.actors[0].gaze(17)
        assert np.allclose(viewer.heads[0].frustum.position, position, atol=1e-6)
        # the camera's z looks along the head's z, and its y points down where the head's y points up
        w, x, y, z = viewer.heads[0].frustum.wxyz
        turned = motion.geometry.quat_to_rotmat(motion.torch.tensor([w, x, y, z], dtype=motion.torch.float64)).numpy()
        head = motion.geometry.quat_to_rotmat(motion.torch.tensor(quat, dtype=motion.torch.float64)).numpy()
        assert np.allclose(turned[:, 2], head[:, 2], atol=1e-5) and np.allclose(turned[:, 1], -head[:, 1], atol=1e-5)
        assert viewer.slider.value == 17 and 'data-mgrpo-frame="17"' in viewer.readout.content


@needs_viser
def test_time_passes_as_fast_as_chosen_and_begins_again(stage: Stage) -> None:
    with viewing(stage) as viewer:
        viewer.step(1.0)
        assert viewer.frame == 0  # not playing
        viewer.play(True)
        viewer.step(0.5)
        assert viewer.frame == 15
        viewer.speed.value = "0.5×"
        viewer.step(0.2)
        assert viewer.frame == 18
        viewer.step(10.0)
        assert viewer.frame == 0
        viewer.play(False)
        viewer.step(1.0)
        assert viewer.frame == 0


@needs_viser
def test_the_panel_hides_and_shows(stage: Stage) -> None:
    with viewing(stage) as viewer:

        def visible() -> list[bool]:
            viewer.step(0.0)
            return [bool(body.mesh.visible) for body in viewer.bodies]

        assert visible() == [True] * 5
        viewer.samples.value = False
        assert visible() == [True, True, False, False, True]
        viewer.shown[0].value = False
        assert visible() == [False, True, False, False, True]
        assert not viewer.heads[0].way.visible and viewer.heads[1].way.visible
        viewer.body.value = "Skeleton"
        assert visible() == [False] * 5 and viewer.bodies[1].bones.visible and not viewer.bodies[0].bones.visible
        viewer.layout.value = "Overlay"
        viewer.step(0.0)
        assert np.allclose([place.position for place in viewer.places], 0)
        viewer.head.value = viewer.contacts.value = False
        viewer.step(0.0)
        assert not any(head.frustum.visible for head in viewer.heads)
        assert not viewer.bodies[0].rings.visible
        before = tuple(viewer.bodies[0].color)
        viewer.dark.value = True
        viewer.step(0.0)
        assert tuple(viewer.bodies[0].color) != before == rgb(color_of(0, False))
        viewer.time, viewer.follow.value = 20.0, False
        viewer.step(0.0)
        assert np.allclose(viewer.world.position[:2], -stage.framing.centers[0], atol=1e-6)


@needs_viser
def test_another_sample_becomes_the_solid_one(stage: Stage) -> None:
    with viewing(stage) as viewer:
        assert tuple(viewer.sample.options) == ("0", "1", "2") and viewer.sample.value == "0"
        viewer.time, viewer.sample.value = 12.0, "2"
        viewer.samples.value = False
        viewer.step(0.0)
        prior = viewer.bodies[1:4]
        assert [bool(body.mesh.visible) for body in prior] == [False, False, True]
        assert prior[2].mesh.opacity is None and prior[2].mesh.cast_shadow
        assert viewer.bodies[4].mesh.visible  # the file with one sample keeps it
        viewer.samples.value = True
        viewer.step(0.0)
        assert [body.mesh.opacity for body in prior] == [0.22, 0.22, None]
        assert [bool(body.rings is not None and body.rings.visible) for body in prior] == [False, False, True]
        actor = stage.actors[1]
        assert f"<b>{actor.error_mm[2, 12]:.0f} mm</b> (mean {actor.mean_errors_mm[2]:.0f})" in viewer.readout.content
        thick = prior[2].bones.thickness
        viewer.sample.value = "0"
        viewer.step(0.0)
        assert prior[0].bones.thickness == thick > prior[2].bones.thickness
        assert [body.mesh.opacity for body in prior] == [None, 0.22, 0.22]
    with viewing(motion.still_stage()) as viewer:
        assert not viewer.sample.visible


@needs_viser
def test_motions_without_a_truth_stand_beside_each_other_wherever_they_were() -> None:
    far = motion.far_apart()
    with viewing(far) as viewer:
        roots = [
            np.asarray(viewer.world.position) + place.position + actor.joints[0, 0, 0]
            for place, actor in zip(viewer.places, far.actors)
        ]
        assert np.allclose(roots[1] - roots[0], offsets(far, "side")[1] - offsets(far, "side")[0], atol=1e-4)
        viewer.layout.value = "Overlay"
        viewer.step(0.0)
        assert np.allclose([place.position for place in viewer.places], 0)


@needs_viser
def test_surfaces_are_made_when_they_are_wanted(stage: Stage) -> None:
    with viewing(stage, Look(show="skeleton")) as viewer:
        assert [body.mesh for body in viewer.bodies] == [None] * 5
        assert viewer.bodies[0].bones.visible


@needs_viser
def test_a_motion_without_surface_or_frames_is_shown_as_far_as_it_goes() -> None:
    still = motion.still_stage(surface=False, frames=4)
    still.actors[0].joints[:, 2:] = np.nan
    with viewing(still) as viewer:
        assert viewer.bodies[0].bones.visible and not viewer.heads
        viewer.show(3)
        assert not viewer.bodies[0].bones.visible
        assert "no frame here" in viewer.readout.content
    short = motion.still_stage(frames=1)
    with viewing(short) as viewer:
        viewer.play(True)
        viewer.step(1.0)
        assert viewer.frame == 0 and not viewer.playing


@needs_viser
def test_the_server_ends(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    viewer = LiveViewer(stage, Look(), port=port)
    with pytest.raises(InputError, match=rf"--port {port} can't be used"):
        LiveViewer(stage, Look(), port=port)
    stop = threading.Event()
    loop = threading.Thread(target=viewer.run, args=(stop,))
    loop.start()
    stop.set()
    loop.join(timeout=10)
    viewer.close()
    assert not loop.is_alive() and viewer.url == f"http://localhost:{port}"
    assert capsys.readouterr().out == ""


# --- with viser and a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not have_viser():
        pytest.skip("the package viser is not installed (pip install viser)")
    yield from chromium.session(tmp_path_factory.mktemp("profile"))


@contextmanager
def shown(browser: Any, stage: Stage, look: Look) -> Iterator[LiveViewer]:
    """A viewer that runs, open in the browser."""
    with viewing(stage, look) as viewer:
        stop = threading.Event()
        loop = threading.Thread(target=viewer.run, args=(stop,))
        loop.start()
        try:
            browser.open(f"{viewer.url}/", width=1200, height=760)
            browser.wait_for("document.querySelector('[data-mgrpo-frame]') !== null")
            deadline = time.monotonic() + 60
            while not viewer.server.get_clients():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield viewer
        finally:
            stop.set()
            loop.join(timeout=10)
            browser.call("Page.navigate", url="about:blank")


def seen(browser: Any) -> np.ndarray:
    """The scene, (H, W, 3), without the notice about software rendering at its top left."""
    box = browser.evaluate(
        "(() => { const all = [...document.querySelectorAll('canvas')].map(c => c.getBoundingClientRect());"
        " const b = all.reduce((a, c) => c.width * c.height > a.width * a.height ? c : a);"
        " return [b.x, b.y, b.width, b.height]; })()"
    )
    x, y, width, height = (round(value) for value in box)
    picture = np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("RGB"))[y : y + height, x : x + width]
    picture = picture.copy()
    picture[:170, :330] = picture[-1, -1]
    return picture


def settled(browser: Any, color: int) -> np.ndarray:
    """The scene when it shows a body of that colour and has stopped changing: it fades in, and a software renderer is
    slow."""
    before, deadline = seen(browser), time.monotonic() + 90
    while time.monotonic() < deadline:
        time.sleep(0.3)
        now = seen(browser)
        if np.array_equal(now, before) and motion.hue_like(now, rgb(color_of(color, False))).sum() > 300:
            return now
        before = now
    raise AssertionError("the picture never came to rest with the body in it")


def errors(browser: Any) -> list[str]:
    """Exceptions and console errors of the page."""
    found = []
    for event in browser.events:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            found.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            found.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            found.append(params["entry"]["text"])
    return found


@pytest.mark.slow
def test_the_page_loads_and_its_slider_moves_the_bodies(browser: Any, stage: Stage) -> None:
    with shown(browser, stage, Look()) as viewer:
        viewer.samples.value = False  # fewer bodies: a software renderer takes long for all
        first = settled(browser, 2)
        assert motion.hue_like(first, rgb(color_of(1, False))).sum() > 500
        browser.evaluate("document.querySelector('[role=slider]').focus()")
        for _ in range(9):
            browser.key("ArrowRight", "ArrowRight")
        browser.wait_for("document.querySelector('[data-mgrpo-frame]').dataset.mgrpoFrame === '9'")
        assert viewer.frame == 9
        later = settled(browser, 2)
        assert (np.abs(later.astype(int) - first).max(-1) > 30).sum() > 2000
        assert errors(browser) == []


@pytest.mark.slow
def test_the_play_button_plays_and_pauses(browser: Any, stage: Stage) -> None:
    with shown(browser, stage, Look(show="skeleton", layout="overlay")) as viewer:
        press = "[...document.querySelectorAll('button')].find(b => b.textContent.trim() === '{}').click()"
        browser.evaluate(press.format("Play"))
        browser.wait_for("Number(document.querySelector('[data-mgrpo-frame]').dataset.mgrpoFrame) > 2")
        browser.evaluate(press.format("Pause"))
        browser.wait_for("[...document.querySelectorAll('button')].some(b => b.textContent.trim() === 'Play')")
        held = viewer.frame
        time.sleep(0.3)
        assert viewer.frame == held and errors(browser) == []


@pytest.mark.slow
@pytest.mark.parametrize("joint", [20, 4])
def test_the_skeleton_is_where_its_joints_are(browser: Any, joint: int) -> None:
    still = motion.still_stage(touching=joint)
    with shown(browser, still, Look(show="skeleton", layout="overlay")) as viewer:
        viewer.contacts.value = True
        picture = settled(browser, 2)
        height, width = picture.shape[:2]
        position, target = first_view(still, "overlay")
        anchor = np.array((*still.framing.centers[0], 0.0))
        points = still.actors[0].joints[0, 0] - anchor
        distance, focal = float(np.linalg.norm(position - target)), height / 2 / np.tan(FIELD_OF_VIEW / 2)
        ends = motion.pinhole(points, target, still.framing.azimuth, 0.24, distance, focal, width, height)
        mark = motion.center(motion.hue_like(picture, rgb(CONTACT[False]), 0.05))
        assert np.hypot(*(ends[joint] - mark)) < 3
        body = motion.hue_like(picture, rgb(color_of(2, False))) | motion.hue_like(picture, rgb(CONTACT[False]))
        for parent, child in motion.BONES:
            x, y = (ends[parent] + ends[child]) / 2
            assert body[int(y), int(x)], (parent, child)
