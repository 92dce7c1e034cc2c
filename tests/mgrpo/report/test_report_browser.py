"""The report's page in a real browser: it loads from file:// without an error or a request, and its player moves.

Skips where no Chromium or Chrome is installed; ``MGRPO_CHROMIUM`` names one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mgrpo.report import ReportData
from mgrpo.report.data import Curve, Estimate, MetricRow, PairedDifference, Panel, RunInfo, Stage
from mgrpo.report.page import render_page
from mgrpo.report.training import TrainingReport, TrainingRun
from mgrpo.report.training_page import render_training_page
from mgrpo.report.training_panels import Log, with_network_calls
from mgrpo.viz.comparison import MotionComparison, SkeletonTrack, frame_errors_mm
from tests.mgrpo import chromium
from tests.mgrpo.chromium import Chromium


def _motion(frames: int, seed: int, samples: int = 2) -> MotionComparison:
    """A body that walks along x and waves, and two noisy copies of it."""
    rest = np.array(
        [
            (0, 0, 0.95), (0, 0.09, 0.87), (0, -0.09, 0.87), (0, 0, 1.06), (0, 0.1, 0.48), (0, -0.1, 0.48),
            (0, 0, 1.19),
            (-0.02, 0.1, 0.08), (-0.02, -0.1, 0.08), (0, 0, 1.25), (0.1, 0.1, 0.03), (0.1, -0.1, 0.03), (0, 0, 1.46),
            (0, 0.08, 1.37), (0, -0.08, 1.37), (0.02, 0, 1.55),
            (0, 0.18, 1.4), (0, -0.18, 1.4), (0, 0.42, 1.38), (0, -0.42, 1.38), (0, 0.66, 1.36), (0, -0.66, 1.36),
        ],
        dtype=np.float32,
    )  # fmt: skip
    time_axis = np.arange(frames, dtype=np.float32)[:, None]
    joints = np.broadcast_to(rest, (frames, 22, 3)).copy()
    joints[:, :, 0] += 0.03 * time_axis
    joints[:, 18:, 2] += 0.25 * np.sin(0.4 * time_axis)
    rng = np.random.default_rng(seed)
    contacts = np.zeros((frames, 21), np.float32)
    contacts[:, [6, 7, 9, 10]] = 1

    def track(size: float) -> SkeletonTrack:
        noisy = joints + rng.normal(size=(samples, 1, 22, 3)) * size
        return SkeletonTrack(noisy, contacts, frame_errors_mm(noisy[0], joints))

    head = np.concatenate((np.tile([0.5, 0.5, 0.5, 0.5], (frames, 1)), joints[:, 15] + [0.1, 0, 0.08]), axis=1)
    return MotionComparison(
        f"clip {seed}", 30.0, SkeletonTrack(joints, contacts), track(0.12), track(0.04), T_world_cpf=head
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    steps = range(60)
    data = ReportData(
        run=RunInfo("Browser <test>", "mgrpo demo --seed 0", "2026-01-02T03:04:05", 0),
        stages=(Stage("Train", 12.0),),
        metrics=(
            MetricRow(
                "mpjpe_mm",
                "MPJPE",
                "mm",
                "lower",
                Estimate(139.8, 3.1),
                Estimate(127.9, 3.2),
                PairedDifference(-11.9, 0.5, -12.9, -10.9),
                headline=True,
            ),
            # as wide as the rows of a real report get
            MetricRow(
                "mpjve_mm_s",
                "MPJVE",
                "mm/s",
                "lower",
                Estimate(962.71, 56.53),
                Estimate(956.94, 56.21),
                PairedDifference(-15.34, 2.5, -18.37, 17.02),
                decimals=2,
                headline=True,
                prior_mean_of_samples=Estimate(953.02, 56.92),
            ),
        ),
        rewards=(
            Curve("Total", tuple(steps), tuple(4 + 0.01 * i for i in steps), tuple(0.1 for _ in steps), "post_trained"),
        ),
        health=(Panel("Ratio", (Curve.of("mean", [1.0] * 60),)),),
        perceptual_accuracy=Estimate(0.9, 0.02),
        motions=(_motion(40, 1), _motion(25, 2)),
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_page(data), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    yield from chromium.session(tmp_path_factory.mktemp("profile"))


PICTURE = "document.querySelector('#player canvas').toDataURL()"
FRAME = "Number(document.getElementById('player').dataset.frame)"


def _open_player(browser: Chromium, page: Path, **options: Any) -> None:
    """Load the page and wait until the player stands."""
    browser.open(page, **options)
    browser.wait_for("document.getElementById('player')?.dataset.ready === 'true'")


def _click(browser: Chromium, part: str) -> None:
    """Click a control of the player."""
    browser.evaluate(f"document.querySelector('#player [data-part={part}]').click()")
    browser.settle()


def _choose(browser: Chromium, part: str, value: str, event: str) -> None:
    """Give a control of the player a value as if by hand."""
    browser.evaluate(
        f"(() => {{ const control = document.querySelector('#player [data-part={part}]'); control.value = '{value}'; "
        f"control.dispatchEvent(new Event('{event}', {{bubbles: true}})); }})()"
    )
    browser.settle()


def _bring(browser: Chromium, selector: str) -> tuple[float, float, float, float]:
    """Scroll an element to the middle of the window and return its left, top, width and height there."""
    element = f"document.querySelector({json.dumps(selector)})"
    browser.evaluate(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    browser.settle()
    box = browser.evaluate(
        f"(() => {{ const b = {element}.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; }})()"
    )
    return tuple(box)


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)])
def test_page_loads_without_errors_requests_or_sideways_scroll(
    browser: Chromium, page: Path, width: int, dark: bool
) -> None:
    _open_player(browser, page, width=width, dark=dark)
    for step in range(12):
        browser.evaluate(f"window.scrollTo(0, {step} * 600)")
        browser.settle()
    assert browser.troubles() == []
    assert browser.evaluate("document.title") == "Browser <test>"
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    # on a phone the results may be pushed sideways, the timings fit
    tables = ".stages" if width < 600 else ".table-box"
    cut = f"[...document.querySelectorAll('{tables}')].filter(box => box.scrollWidth > box.clientWidth).length"
    assert browser.evaluate(cut) == 0
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in background[4:-1].split(",")) < 200) == dark


def test_slider_changes_the_picture_and_comes_back(browser: Chromium, page: Path) -> None:
    _open_player(browser, page)
    pictures = []
    for frame in (5, 25, 5):
        _choose(browser, "time", str(frame), "input")
        assert browser.evaluate(FRAME) == frame
        pictures.append(browser.evaluate(PICTURE))
    assert pictures[0] != pictures[1]
    assert pictures[0] == pictures[2]
    assert browser.troubles() == []


def test_play_advances_and_pause_holds(browser: Chromium, page: Path) -> None:
    _open_player(browser, page)
    _bring(browser, "#player canvas")
    assert browser.evaluate(FRAME) == 0
    _click(browser, "play")
    browser.wait_for(f"{FRAME} >= 3")
    assert browser.evaluate("document.querySelector('#player .play').getAttribute('aria-label')") == "Pause"
    _click(browser, "play")
    held, picture = browser.evaluate(FRAME), browser.evaluate(PICTURE)
    time.sleep(0.2)
    assert browser.evaluate(FRAME) == held
    assert browser.evaluate(PICTURE) == picture
    assert browser.troubles() == []


def test_motion_starts_by_itself_only_if_the_reader_allows_it(browser: Chromium, page: Path) -> None:
    _open_player(browser, page, still=False)
    _bring(browser, "#player canvas")
    browser.wait_for(f"{FRAME} >= 2")
    _open_player(browser, page, still=True)
    _bring(browser, "#player canvas")
    time.sleep(0.3)
    assert browser.evaluate(FRAME) == 0


def test_keys_step_through_the_frames(browser: Chromium, page: Path) -> None:
    _open_player(browser, page)
    browser.evaluate("document.querySelector('#player canvas').focus()")
    browser.key("ArrowRight", "ArrowRight")
    browser.key("ArrowRight", "ArrowRight")
    browser.settle()
    assert browser.evaluate(FRAME) == 2
    browser.key("Home", "Home")
    browser.settle()
    assert browser.evaluate(FRAME) == 0


def test_dragging_and_every_option_change_the_picture(browser: Chromium, page: Path) -> None:
    _open_player(browser, page)
    _choose(browser, "time", "20", "input")
    left, top, width, height = _bring(browser, "#player canvas")
    before = browser.evaluate(PICTURE)
    x, y = left + width / 2, top + height / 2
    browser.mouse("mouseMoved", x, y)
    browser.mouse("mousePressed", x, y, 1)
    browser.mouse("mouseMoved", x + 80, y + 20, 1)
    browser.mouse("mouseReleased", x + 80, y + 20)
    browser.settle()
    unchanged = []
    for part in ("drag", "nearer", "farther", "samples", "truth", "trail", "contacts", "follow", "overlay", "reset"):
        if part != "drag":
            _click(browser, part)
        after = browser.evaluate(PICTURE)
        if after == before:
            unchanged.append(part)
        before = after
    assert unchanged == []
    assert browser.troubles() == []


def test_choosing_another_clip_shows_it_from_its_start(browser: Chromium, page: Path) -> None:
    _open_player(browser, page)
    _choose(browser, "time", "20", "input")
    _choose(browser, "clip", "1", "change")
    assert browser.evaluate(FRAME) == 0
    assert browser.evaluate("document.querySelector('#player input[type=range]').max") == "24"
    assert "clip 2" in browser.evaluate("document.querySelector('#player .captions').textContent")
    assert browser.troubles() == []


def test_charts_tell_the_number_under_the_pointer(browser: Chromium, page: Path) -> None:
    _open_player(browser, page)
    left, top, width, height = _bring(browser, "#rewards svg.plot")
    browser.mouse("mouseMoved", left + 0.5 * width, top + 0.5 * height)
    browser.wait_for("!document.querySelector('.tip').hidden")
    shown = browser.evaluate("document.querySelector('.tip').textContent")
    assert shown.startswith("iteration ") and "Total" in shown and "4." in shown
    assert browser.evaluate("document.querySelectorAll('#rewards .hover circle').length") == 1
    browser.mouse("mouseMoved", 2, 2)
    browser.wait_for("document.querySelector('.tip').hidden")
    assert browser.troubles() == []


@pytest.mark.parametrize(("width", "dark"), [(1200, True), (390, False)])
def test_the_page_about_training_runs_loads_without_errors_requests_or_sideways_scroll(
    browser: Chromium, tmp_path: Path, width: int, dark: bool
) -> None:
    steps = range(1, 40)
    rows = [
        {"step": n, "reward": 0.1 * n, "rewards/near/mean": 0.1 * n, "decode": 5, "step_time": 1.0, "time/update": 0.5}
        for n in steps
    ]
    alarm = {"step": 9, "name": "clipped", "text": "most samples are clipped, try --learning-rate " + "and wait " * 40}
    settings = {f"group.setting_{n}": str(n) for n in range(30)}
    runs = [
        TrainingRun(Log(name, with_network_calls(rows)), "runs/" + name, 50, [alarm], settings | {"seed": name}, ["x"])
        for name in ("first", "second", "third")
    ]
    page = tmp_path / "training.html"
    page.write_text(render_training_page(TrainingReport(runs, "2026-01-02T03:04:05+00:00")), "utf-8")
    browser.open(page, width=width, dark=dark)
    for step in range(10):
        browser.evaluate(f"window.scrollTo(0, {step} * 600)")
        browser.settle()
    assert browser.troubles() == []
    assert browser.evaluate("document.title") == "Post-training first, second and third"
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.querySelectorAll('#rewards svg.plot').length") == 2
    left, top, wide, high = _bring(browser, "#calls svg.plot")
    browser.mouse("mouseMoved", left + 0.5 * wide, top + 0.5 * high)
    browser.wait_for("!document.querySelector('.tip').hidden")
    assert "third" in browser.evaluate("document.querySelector('.tip').textContent")
