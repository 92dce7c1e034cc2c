"""The page that `mgrpo view --html` writes: its data, and a browser that shows it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mgrpo.viz.film import Look
from mgrpo.viz.page import render_stage_page
from mgrpo.viz.stage import Stage
from tests.mgrpo import view_motion as motion
from tests.mgrpo.chromium import Chromium

FRAME = "Number(document.getElementById('viewer').dataset.frame)"


def page_data(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def written(path: Path, stage: Stage, look: Look) -> Path:
    path.write_text(render_stage_page(stage, look), "utf-8")
    return path


def opened(browser: Chromium, page: Path, **options: Any) -> None:
    browser.open(page, **{"width": 1100, "height": 800, **options})
    browser.wait_for("document.getElementById('viewer')?.dataset.ready === 'true'")
    browser.settle()


def seen(browser: Chromium) -> np.ndarray:
    """The canvas as the user sees it, (H, W, 3)."""
    browser.settle()
    x, y, width, height = browser.evaluate(
        "(() => { const b = document.querySelector('canvas').getBoundingClientRect();"
        " return [b.x, b.y, b.width, b.height]; })()"
    )
    picture = np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("RGB"))
    return picture[round(y) : round(y + height), round(x) : round(x + width)]


def bodies(browser: Chromium) -> np.ndarray:
    """The canvas without the names at its top and the button at its bottom right."""
    picture = seen(browser).copy()
    picture[:60] = picture[60, 0]
    picture[-60:, -60:] = picture[60, 0]
    return picture


def click(browser: Chromium, part: str) -> None:
    browser.evaluate(f"document.querySelector('#viewer [data-part={part}]').click()")
    browser.settle()


def seek(browser: Chromium, frame: int) -> None:
    browser.evaluate(
        "(() => { const range = document.querySelector('[data-part=time]');"
        f" range.value = '{frame}'; range.dispatchEvent(new Event('input')); }})()"
    )
    browser.settle()
    assert browser.evaluate(FRAME) == frame


def troubles(browser: Chromium) -> list[str]:
    """What the page is to blame for: a software renderer complains when somebody takes a picture of it."""
    return [text for text in browser.troubles() if "GPU stall due to ReadPixels" not in text]


def at(stage: Stage, points: np.ndarray, frame: int, width: int, height: int) -> np.ndarray:
    """Pixels where the page's camera should show world points in a panel of this size, (…, 2)."""
    framing = stage.framing
    distance = 2.4 * max(framing.reach_across / (0.5 * width / height), framing.reach_up / 0.5) * 1.1
    distance += 0.35 * framing.reach_across
    target = (*framing.centers[frame], framing.height)
    return motion.pinhole(points, target, framing.azimuth, 0.24, distance, 2.4 * height, width, height)
