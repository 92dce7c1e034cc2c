"""What stands under the bar of a post-training: its curves and numbers, in the width there is; on a terminal too."""

from __future__ import annotations

import math
import os
import random
import sys
import threading
from pathlib import Path

import pytest

from mgrpo.train.live_view import BARS, NARROWEST, Curve, LiveView
from tests.train import terminal_screen as terminal

ROOT = Path(__file__).resolve().parents[2]


def curve(values):
    made = Curve()
    for value in values:
        made.add(value)
    return made


def test_a_curve_is_drawn_from_its_lowest_to_its_highest_number():
    assert curve(range(8)).drawn(8) == BARS
    assert curve(range(8)).drawn(20) == BARS  # no wider than there are numbers
    assert curve(range(16)).drawn(8) == BARS
    assert curve([3.0] * 5).drawn(5) == BARS[4] * 5
    assert Curve().drawn(5) == ""


@pytest.mark.parametrize("count", [255, 256, 257, 258, 511, 513, 5001])
def test_a_long_curve_keeps_its_shape_and_its_size(count):
    chance = random.Random(count)
    values = [math.sin(6 * index / count) + chance.gauss(0, 0.01) for index in range(count)]
    made = curve(values)
    assert len(made._kept) <= 256 and (made.first, made.last) == (values[0], values[-1])
    drawn = made.drawn(40)
    wanted = curve([math.sin(6 * index / 40) for index in range(40)]).drawn(40)
    assert len(drawn) == 40
    assert all(abs(BARS.index(a) - BARS.index(b)) <= 1 for a, b in zip(drawn, wanted, strict=True))


def shown(view, width):
    return ["".join(text for text, _ in line) for line in view.lines(width)]


def filled(better="min", evaluations=((10, 50.0), (20, 40.0), (30, 45.0))):
    view = LiveView(["visual", "position"], gold="mpjpe_mm", gold_better=better)
    gold = dict(evaluations)
    for step in range(1, 31):
        row = {
            "reward": 3 + step / 10, "rewards/visual/mean": 1.0,
            "rewards/position/mean": math.nan if step == 4 else 0.5,
            "frac_dead_all": 0.25, "grad_norm": 1.5, "clip_ratio/region_mean": 0.0, "kl": 0.0, "update_ratio": 2e-5,
            "diversity/diversity_joint_std_mm": 40.0 - step, "step_time": 0.5, "time/rollout": 0.25, "time/update": 0.2,
            "system/samples_per_s": 128.0, "system/peak_memory_mib": 512.0,
        }  # fmt: skip
        view.observe(step, row | ({"validation/mpjpe_mm": gold[step]} if step in gold else {}))
    return view


def test_everything_is_there_in_any_width():
    view = filled()
    view.alarm(12, "dead_groups", "50% of the groups " + "had no spread " * 30)
    for width in (NARROWEST, 76, 90, 116):
        lines = shown(view, width)
        assert all(len(line) <= width for line in lines)
        text = "\n".join(lines)
        for part in ("reward", "  visual", "joint_std_mm", "dead groups 25 %", "gradient 1.5", "rollout 50 %"):
            assert part in text, (part, width)
        assert "6  from 3.1" in lines[0]
        assert next(line for line in lines if line.startswith("mpjpe_mm")).endswith("45  at 30, best 40 at 20")
        assert text.count("alarm dead_groups at iteration 12") == 1 and len(lines) == 10
    assert "KL" not in text  # without a reference there is none
    assert "★" in "\n".join(shown(filled("max", ((10, 50.0), (20, 60.0), (30, 70.0))), 90))


def test_nothing_before_the_first_iteration_and_on_a_narrow_terminal():
    assert LiveView(["a"], gold="g", gold_better="min").lines(100) == []
    assert filled().lines(NARROWEST - 1) == []


def test_gaps_leave_gaps():
    view = LiveView(["a"], gold="g", gold_better="min")
    view.observe(1, {"reward": math.nan, "grad_norm": None})
    assert view.lines(100) == []
    view.observe(2, {"reward": 1.0, "step_time": 0.0, "validation/g": math.nan})
    assert len(view.lines(100)) == 2


def test_it_is_drawn_while_the_work_goes_on():
    view, failures = filled(), []
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def draw():
        try:
            for _ in range(300):
                view.lines(100)
        except Exception as error:  # a dictionary that changed while it was read
            failures.append(error)

    drawing = threading.Thread(target=draw)
    drawing.start()
    for step in range(300):
        view.observe(31 + step, {"reward": 1.0, f"diversity/{step}": 1.0})
    drawing.join()
    sys.setswitchinterval(before)
    assert not failures


WORK = """
import time
from mgrpo.train.live_view import LiveView
from mgrpo.terminal.progress import Progress, notice
with Progress("grpo", 12) as progress:
    progress.view = LiveView(["near"], gold="g", gold_better="min")
    for step in range(12):
        time.sleep(0.1)
        progress.view.observe(step + 1, {"reward": step, "rewards/near/mean": step, "grad_norm": 0.5})
        if step == 5:
            notice("alarm, iteration 6: look here")
            progress.view.alarm(6, "ratio", "look here")
        progress.update(reward=float(step))
print("the end")
"""


@pytest.mark.parametrize(
    ("columns", "lines", "mode", "framed"),
    [(80, 30, "", True), (120, 30, "", True), (70, 30, "", False), (80, 5, "", False), (80, 30, "plain", False)],
)
def test_on_a_terminal(columns, lines, mode, framed):
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "MGRPO_PROGRESS")}
    environment |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "MGRPO_PROGRESS": mode}
    status, screens = terminal.run_on_terminal(
        [sys.executable, "-c", WORK], columns=columns, lines=lines, environment=environment, seconds=60
    )
    assert status == 0
    assert all(len(row) <= columns for row in screens[-1].splitlines())
    assert any("╭" in screen for screen in screens) == framed
    assert any("gradient 0.5" in screen and "reward near" in screen for screen in screens) == framed
    assert any("alarm ratio at iteration 6: look here" in screen for screen in screens) == framed
    # the frame goes when the work ends; what was said stays
    last = [line for line in screens[-1].splitlines() if line.strip()]
    assert last[-1] == "the end" and last[-2].startswith("grpo  done: 12 it") and "╭" not in screens[-1]
    assert "alarm, iteration 6: look here" in last
