"""The report: its data, its sentences, its page and its files, from made-up numbers."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mgrpo.errors import InputError
from mgrpo.report import ReportData, ReportFiles, read_report, write_report
from mgrpo.report.charts import (
    SMOOTHING,
    axis_label,
    bar_chart,
    change_glyph,
    change_percent,
    change_scale,
    line_chart,
    tick_labels,
    y_range,
)
from mgrpo.report.data import (
    Bar,
    BarGroup,
    Curve,
    Estimate,
    Finding,
    MetricRow,
    PairedDifference,
    Panel,
    RunInfo,
    Stage,
)
from mgrpo.report.figures import diversity_figure, panels_figure, results_figure
from mgrpo.report.findings import compute_findings, diversity_finding, headline_sentence, metric_sentence, verdict
from mgrpo.report.json_form import report_from_json, report_to_json
from mgrpo.report.motion_pack import pack_clips
from mgrpo.report.numbers import fixed, log_ticks, nice_ticks, running_mean, seconds, short, signed, with_error
from mgrpo.report.page import render_page
from mgrpo.viz.comparison import BODY_PARENTS, MotionComparison, SkeletonTrack, frame_errors_mm
from mgrpo.viz.mp4 import have_mp4_encoder
from mgrpo.viz.palette import LIGHT
from tests.mgrpo.html_page import Page

EVIL = '<script>alert("1")</script> & \u2028 </script>'


def make_motion(name: str, frames: int = 14, seed: int = 0, samples: int = 2) -> MotionComparison:
    """A tree of 22 joints that sways, with two noisy copies; the shape is arbitrary, the numbers have a body's size."""
    rng = np.random.default_rng(seed)
    rest = np.zeros((22, 3))
    for joint, parent in enumerate(BODY_PARENTS):
        rest[joint] = (0, 0, 0.9) if parent < 0 else rest[parent] + rng.normal(0, 0.12, 3)
    sway = 0.2 * np.sin(0.3 * np.arange(frames))[:, None] * np.linspace(0, 1, 22)
    joints = np.repeat(rest[None], frames, axis=0)
    joints[..., 0] += sway
    joints[..., 2] = np.abs(joints[..., 2])

    def track(size: float) -> SkeletonTrack:
        noisy = joints + rng.normal(size=(samples, 1, 22, 3)) * size
        return SkeletonTrack(noisy, rng.random((frames, 21)), frame_errors_mm(noisy[0], joints))

    head = np.concatenate((np.tile([1.0, 0, 0, 0], (frames, 1)), joints[:, 15]), axis=1)
    return MotionComparison(
        name, 30.0, SkeletonTrack(joints), track(0.1), track(0.03), T_world_cpf=head, caption=f"about {name}"
    )


def make_row(key: str, difference: float, se: float, **more: object) -> MetricRow:
    options = {"label": key.upper(), "unit": "mm", "better": "lower", "headline": True} | more
    return MetricRow(
        key=key,
        prior=Estimate(120.0, 3.0),
        post_trained=Estimate(120.0 + difference, 2.5),
        difference=PairedDifference(difference, se),
        **options,  # type: ignore[arg-type]
    )


def make_data(**changes: object) -> ReportData:
    """A report with something in every part."""
    rng = np.random.default_rng(1)
    steps = np.arange(1, 61)
    rewards = tuple(
        Curve(name, steps, level + 0.002 * steps + rng.normal(0, 0.01, 60), np.full(60, 0.05), "post_trained")
        for name, level in (("Total reward", 4.0), ("Visual", 1.0), ("Joint position", 0.8))
    )
    values = {
        "run": RunInfo(
            "A report",
            "mgrpo demo --seed 3",
            "2026-01-02T03:04:05",
            3,
            summary="What was done.",
            git_commit="0123456789abcdef",
            git_dirty=True,
            machine={"Processor": "2 cores"},
            versions={"torch": "2.13.0"},
            config={"GRPO": {"group size": "8"}},
        ),
        "stages": (Stage("Prior", 61.5, "100 steps"), Stage("GRPO", 0.25)),
        "metrics": (
            make_row("mpjpe_mm", -12.34, 1.5, label="MPJPE", prior_mean_of_samples=Estimate(115.0, 2.0)),
            make_row("fs_mm_per_contact_frame", 2.5, 0.4, label="FS", headline=False, ground_truth=Estimate(0.5, 0.1)),
            make_row("gp_sum_m", 0.1, 0.4, label="GP*", family="paper", unit="m", decimals=3),
        ),
        "rewards": rewards,
        "prior_training": (Panel("Loss", (Curve.of("loss", [1.0, 0.5, 0.2]),), log=True, x_label="step"),),
        "perceptual_training": (Panel("InfoNCE", (Curve.of("loss", [2.0, 1.0]),), reference=2.77),),
        "perceptual_accuracy": Estimate(0.91, 0.02),
        "health": (
            Panel("Dead groups", tuple(Curve.of(n, [0.1] * 60) for n in "abc"), low=0.0, high=1.0, key="dead_groups"),
        ),
        "diversity": (BarGroup("spread", "mm", tuple(Bar(f"α = {a}", 30 + 90 * a, 0.5, a) for a in (0, 0.05, 0.1))),),
        "motions": (make_motion("first"), make_motion("second", 9, 5)),
        "findings": (Finding("neutral", "A sentence of the caller."),),
        "evaluation_note": "30 windows.",
    }
    return ReportData(**(values | changes))  # type: ignore[arg-type]


def motion_json(html: str) -> dict:
    found = re.search(r'<script type="application/json" id="motion-data">(.*?)</script>', html, re.S)
    assert found
    return json.loads(found[1])


# ---- numbers


def test_numbers_read_well() -> None:
    assert fixed(-0.004, 2) == "0.00"
    assert fixed(-12.345, 1) == "−12.3"
    assert fixed(12345.6, 0) == "12\u202f346"
    assert fixed(math.nan, 1) == "–"
    assert signed(0.0, 1) == "0.0" and signed(0.04, 1) == "0.0" and signed(2.0, 1) == "+2.0"
    assert with_error(0.58734, 0.0458) == "0.587 ± 0.046" and with_error(1234.5, 96.1) == "1\u202f234 ± 96"
    assert with_error(2.5, math.nan) == "2.5" and with_error(math.nan, 1.0) == "–"
    assert short(0.0123456) == "0.0123" and short(2.0) == "2" and short(-1.25e-7) == "−1.25e−7"
    assert [seconds(value) for value in (0.85, 12.34, 125, 3725)] == ["850 ms", "12.3 s", "2 min 05 s", "1 h 02 min"]
    assert seconds(59.97) == "1 min 00 s" and seconds(3599.9) == "1 h 00 min"


@settings(deadline=None)
@given(low=st.floats(-1e6, 1e6), size=st.floats(1e-4, 1e7), count=st.integers(2, 8))
def test_ticks_are_inside_and_evenly_spaced(low: float, size: float, count: int) -> None:
    high = low + size
    ticks = nice_ticks(low, high, count)
    slack = 1e-6 * size + 1e-9 * abs(low)
    assert all(low - slack <= tick <= high + slack for tick in ticks)
    assert len(ticks) <= count + 1
    gaps = np.diff(ticks)
    assert len(gaps) == 0 or np.allclose(gaps, gaps[0])


@settings(deadline=None)
@given(low=st.floats(1e-8, 1e3), factor=st.floats(1.5, 1e7))
def test_log_ticks_are_inside(low: float, factor: float) -> None:
    ticks = log_ticks(low, low * factor)
    assert len(ticks) <= 6
    assert all(low * 0.99 <= tick <= low * factor * 1.01 for tick in ticks)


def test_running_mean_keeps_gaps_and_ends() -> None:
    smooth = running_mean([1.0, 2.0, math.nan, 4.0, 5.0], 3)
    assert math.isnan(smooth[2])
    assert smooth[1] == 1.5 and smooth[3] == 4.5


def test_running_mean_does_not_end_on_a_single_number() -> None:
    values = [0.0] * 30
    values[0], values[-1] = 11.0, 12.0
    smooth = running_mean(values, 21)
    assert smooth[0] == pytest.approx(1.0) and smooth[-1] == pytest.approx(12 / 11)
    assert smooth[15] == 0.0


# ---- data


def test_json_round_trip_keeps_everything(tmp_path: Path) -> None:
    data = make_data()
    joints = data.motions[0].ground_truth.joints.copy()
    joints[0, 3] = np.nan
    broken = dataclasses.replace(data.motions[0], ground_truth=SkeletonTrack(joints))
    odd = dataclasses.replace(
        data,
        motions=(broken,),
        rewards=(Curve("odd", (0, 1, 2), (math.nan, math.inf, 1e-17 + 0.1)),),
        metrics=(make_row("x", math.nan, math.nan),),
    )
    (tmp_path / "report.json").write_text(json.dumps(report_to_json(odd), allow_nan=False), "utf-8")
    text = (tmp_path / "report.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    back = read_report(tmp_path / "report.json")
    assert report_to_json(back) == report_to_json(odd)
    assert back.rewards[0].y[2] == 1e-17 + 0.1 and math.isnan(back.rewards[0].y[0]) and back.rewards[0].y[1] == math.inf
    np.testing.assert_array_equal(back.motions[0].ground_truth.joints, joints)
    assert back.motions[0].prior is not None and odd.motions[0].prior is not None
    np.testing.assert_array_equal(back.motions[0].prior.joints, odd.motions[0].prior.joints)
    assert back.motions[0].parents == BODY_PARENTS
    assert isinstance(back.stages, tuple) and back.run == odd.run


@pytest.mark.parametrize(
    "tree",
    [{}, [], {"format": "something else"}, {"format": "mgrpo-report-1"}, {"format": "mgrpo-report-1", "run": {"a": 1}}],
)
def test_damaged_json_is_refused_with_words(tree: object) -> None:
    with pytest.raises(InputError, match="report"):
        report_from_json(tree)  # type: ignore[arg-type]


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json"):
        read_report(tmp_path / "nowhere.json")


def test_bad_values_are_named() -> None:
    with pytest.raises(InputError, match=r"'loss'.*3 and 2"):
        Curve("loss", (0, 1, 2), (1.0, 2.0))
    with pytest.raises(InputError, match="spread"):
        Curve("loss", (0, 1), (1.0, 2.0), (0.1,))
    with pytest.raises(InputError, match="better"):
        make_row("x", 1, 1, better="up")


def test_curves_come_from_logged_rows() -> None:
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None, "other": 1}, {"step": 3, "loss": 1.0, "std": 0.5}]
    curve = Curve.from_rows(rows, "loss", "Loss", spread="std")
    assert curve.x == (1, 3) and curve.y == (2, 1)
    assert math.isnan(curve.spread[0]) and curve.spread[1] == 0.5
    assert Curve.from_rows(rows, "absent", "Absent").y == ()


# ---- sentences


@pytest.mark.parametrize(
    ("better", "difference", "se", "expected"),
    [
        ("lower", -10, 2, "better"),
        ("lower", 10, 2, "worse"),
        ("lower", -3, 2, "unclear"),
        ("higher", 10, 2, "better"),
        ("higher", -10, 2, "worse"),
        ("none", -10, 2, "changed"),
        ("none", 1, 2, "same"),
        ("lower", math.nan, math.nan, "missing"),
        ("lower", -10, math.nan, "missing"),
    ],
)
def test_verdict_follows_the_interval(better: str, difference: float, se: float, expected: str) -> None:
    row = make_row("x", difference, se, better=better)
    assert verdict(row) == expected
    sentence = metric_sentence(row)
    assert sentence.tone == {"better": "good", "worse": "bad"}.get(expected, "neutral")
    assert ("lowered" in sentence.text) == (expected in ("better", "worse", "changed") and difference < 0)
    assert "nan" not in sentence.text


def test_a_sure_difference_too_small_to_show_is_no_change() -> None:
    row = make_row("x", -0.04, 0.001, decimals=1)
    assert verdict(row) == "unclear"
    assert "rounds to zero" in metric_sentence(row).text
    assert verdict(dataclasses.replace(row, decimals=2)) == "better"


def test_nearer_to_one_is_judged_by_distance() -> None:
    def row(prior: float, post: float) -> MetricRow:
        gap = PairedDifference(post - prior, 0.01)
        return MetricRow("jitter_ratio", "Jitter*", "ratio", "one", Estimate(prior), Estimate(post), gap)

    assert verdict(row(1.5, 1.1)) == "better"
    assert verdict(row(0.5, 0.9)) == "better"
    assert verdict(row(1.1, 1.5)) == "worse"


def test_findings_state_numbers_and_warn() -> None:
    data = make_data(
        health=(Panel("Dead", (Curve.of("visual", [0.9] * 20),), key="dead_groups"),),
        prior_training=(Panel("Loss", (Curve.of("loss", [1.0, math.nan, 0.5]),)),),
    )
    texts = [finding.text for finding in compute_findings(data)]
    joined = "\n".join(texts)
    assert "Post-training lowered MPJPE from 120.0 to 107.7 mm (paired difference −12.3 [−15.3, −9.4] mm)." in texts
    assert "115.0 mm" in joined and "losing variance alone would not reach" in joined
    assert any(
        finding.tone == "warning" and "FS (+2.5 [+1.7, +3.3] mm)" in finding.text for finding in compute_findings(data)
    )
    assert "GP*" not in joined
    assert "The mean total reward rose" in joined
    assert "91.0 ± 2.0 %" in joined
    # pairs of group and reward are counted: a group without spread in one reward may learn from another
    assert "visual: 90 % had no spread in the last tenth" in joined and "of the groups taught nothing" not in joined
    assert "loss (1 of 3)" in joined
    assert texts[-1] == "A sentence of the caller."
    assert headline_sentence(data) == "On held-out motion, post-training improved MPJPE."


@pytest.mark.parametrize(("average", "beyond"), [(115.0, True), (107.72, True), (107.7, False), (107.68, False)])
def test_averaging_is_beaten_only_by_a_number_that_shows_it(average: float, beyond: bool) -> None:
    """The row's mean is 107.66 and is printed with one decimal."""
    row = make_row("mpjpe_mm", -12.34, 1.5, label="MPJPE", prior_mean_of_samples=Estimate(average, 2.0))
    joined = "\n".join(finding.text for finding in compute_findings(make_data(metrics=(row,))))
    assert ("losing variance alone would not reach" in joined) == beyond
    assert ("a gain of this size can come from" in joined) == (not beyond)


def test_headline_is_honest_about_failure() -> None:
    data = make_data(metrics=(make_row("a", 9, 1, label="A"), make_row("b", 0.1, 1, label="B")))
    assert headline_sentence(data) == "On held-out motion, post-training worsened A; it did not clearly change B."
    # the last tenth lies above the first, but by less than two standard errors
    barely = Curve.of("Total", [1.0, 2.0] * 27 + [1.1, 2.1] * 3)
    texts = [finding.text for finding in compute_findings(make_data(rewards=(barely,)))]
    assert any("total reward shows no clear change: 1.50" in text for text in texts)
    falling = Curve.of("Total", list(np.linspace(2, 1, 60)))
    assert any("reward fell" in finding.text for finding in compute_findings(make_data(rewards=(falling,))))


@pytest.mark.parametrize(
    ("means", "tone"), [((30.0, 35.0, 40.0), "good"), ((30.0, 29.0, 40.0), "neutral"), ((30.0, 30.0, 30.0), "neutral")]
)
def test_diversity_must_rise_step_by_step(means: tuple[float, ...], tone: str) -> None:
    bars = tuple(Bar(f"α = {a}", mean, 0.5, a) for a, mean in zip((0, 0.05, 0.1), means))
    finding = diversity_finding(BarGroup("spread", "mm", bars[::-1]))
    assert finding is not None and finding.tone == tone
    assert ("rises" in finding.text) == (tone == "good")
    assert diversity_finding(BarGroup("spread", "mm", bars[:1])) is None


def test_small_rises_count_only_if_they_are_paired_and_clear() -> None:
    def group(rise: float, rise_se: float) -> BarGroup:
        return BarGroup("spread", "mm", (Bar("a", 30.0, 2.0, 0.0), Bar("b", 31.0, 2.0, 0.1, rise, rise_se)))

    findings = [diversity_finding(group(*pair)) for pair in ((math.nan, math.nan), (1.0, 0.9), (1.0, 0.1), (-1.0, 0.1))]
    assert [finding.tone for finding in findings if finding] == ["neutral", "neutral", "good", "neutral"]
    assert [("two standard errors" in finding.text) for finding in findings if finding] == [True, True, False, False]
    assert findings[3] is not None and "doesn't rise" in findings[3].text


# ---- charts


def test_line_chart_breaks_at_gaps_and_survives_anything() -> None:
    gap = line_chart(Panel("x", (Curve.of("a", [1.0, 2.0, math.nan, 2.0, 3.0]),)), chart_id="c")
    line = re.search(r'class="line" d="([^"]*)"', gap)
    assert line and line[1].count("M") == 2
    for curve in ([], [math.nan] * 4):
        assert "No numbers were recorded" in line_chart(Panel("x", (Curve.of("a", curve),)), chart_id="c")
    assert "No numbers were recorded" in line_chart(Panel("x", ()), chart_id="c")
    for values in ([5.0], [5.0, 5.0], [0.0, 0.0], [-1.0, 1.0], [1e-9, 1e9], [math.inf, 1.0]):
        for log in (False, True):
            for spread in ((), tuple(1.0 for _ in values)):
                curve = Curve.of("a", values, spread=spread)
                svg = line_chart(Panel("x", (curve,), log=log, reference=0.5), chart_id="c")
                assert "nan" not in svg and "inf" not in svg.replace("infra", "")


def test_long_curves_are_averaged_and_say_so() -> None:
    svg = line_chart(Panel("x", (Curve.of("a", list(np.linspace(0, 1, 5000))),)), chart_id="c")
    assert "mean of 5 steps" in svg
    assert len(svg) < 200_000


def test_bars_have_the_height_of_their_numbers() -> None:
    svg = bar_chart(BarGroup("x", "mm", (Bar("a", 10.0, 1.0), Bar("b", 20.0, math.nan), Bar("c", math.nan))))
    heights = [float(height) for height in re.findall(r'class="bar"[^>]* height="([\d.]+)"', svg)]
    assert len(heights) == 2 and heights[1] == pytest.approx(2 * heights[0], rel=0.01)
    assert svg.count('class="whisker"') == 1 and "nan" not in svg
    assert "No numbers were recorded" in bar_chart(BarGroup("x", "mm", (Bar("a", math.nan),)))


def test_bars_of_one_quantity_share_their_axis() -> None:
    low = BarGroup("shared", "mm", (Bar("a", 10.0),), quantity="spread", x_label="amplitude")
    high = BarGroup("own", "mm", (Bar("a", 40.0),), quantity="spread")
    other = BarGroup("other", "", (Bar("a", 900.0),), quantity="diversity")

    def height(group: BarGroup) -> float:
        return float(re.findall(r'class="bar"[^>]* height="([\d.]+)"', bar_chart(group, (low, high, other)))[0])

    plain = dataclasses.replace(low, x_label="")
    assert height(high) == pytest.approx(4 * height(plain), rel=0.02)
    assert ">amplitude</text>" in bar_chart(low) and "amplitude" not in bar_chart(plain)
    figure = diversity_figure((low, high, other))
    assert figure is not None
    tops = [axes.get_ylim()[1] for axes in figure.axes]
    assert tops[0] == tops[1] > 40 and tops[2] > 900
    assert [axes.get_ylabel() for axes in figure.axes] == ["spread, mm", "spread, mm", "diversity"]
    assert figure.axes[0].get_xlabel() == "amplitude"
    assert "Whiskers: one standard error." in figure.get_supxlabel()


def test_axes_say_what_they_count() -> None:
    lone = Panel("Gradient norm", (Curve.of("before clipping", [1.0, 2.0]),), unit="m")
    assert axis_label(lone) == "before clipping, m"
    assert axis_label(Panel("Spread", (Curve.of("spread", [1.0]),), unit="mm")) == "mm"
    assert axis_label(Panel("x", (Curve.of("a", [1.0]), Curve.of("b", [1.0])), unit="mm")) == "mm"
    assert '<span class="chart-unit">before clipping, m</span>' in line_chart(lone, chart_id="c")
    figure = panels_figure((lone,))
    assert figure is not None and figure.axes[0].get_ylabel() == "before clipping, m"


def test_a_constant_takes_its_scale_from_the_reference() -> None:
    zero = Panel("x", (Curve.of("a", [0.0] * 5),), low=0.0, reference=1e-4, reference_label="clip range")
    low, high, _ = y_range(zero)
    assert low == 0.0 and 1e-4 < high < 1.2e-4
    chart = line_chart(zero, chart_id="c")
    assert "clip range</text>" in chart and "outside" not in chart


def test_ticks_of_one_axis_are_written_alike() -> None:
    assert tick_labels([0.0, 5e-5, 1e-4]) == ["0", "5e−5", "1e−4"]
    assert tick_labels([0.0, 2.5e-5, 5e-5]) == ["0", "2.5e−5", "5.0e−5"]
    assert tick_labels([-0.5, 0.0, 0.5]) == ["−0.5", "0.0", "0.5"]


def test_few_numbers_are_shown_as_dots() -> None:
    few, many = Curve.of("few", [1.0, math.nan, 2.0]), Curve.of("many", [1.0] * 60)
    assert line_chart(Panel("x", (few,)), chart_id="c").count('class="dot"') == 2
    assert 'class="dot"' not in line_chart(Panel("x", (many,)), chart_id="c")
    figure = panels_figure((Panel("x", (few, many)),))
    assert figure is not None
    markers = {str(line.get_label()): line.get_marker() for line in figure.axes[0].lines}
    assert markers["few"] == "o" and markers["many"] == "None"


def test_captions_say_what_was_smoothed_and_what_lies_outside() -> None:
    noisy = Panel("norm", (Curve.of("a", list(np.linspace(1, 2, 60))),), reference=50.0, reference_label="clip")
    figure, plain = panels_figure((noisy,)), panels_figure((Panel("x", (Curve.of("a", [1.0, 2.0]),)),))
    assert figure is not None and plain is not None
    said = figure.get_supxlabel().replace("\n", " ")
    assert SMOOTHING in said and "Norm: clip at 50, outside the picture." in said
    assert plain.get_supxlabel() == ""


def test_picture_of_the_results_draws_the_numbers_of_the_data() -> None:
    rows = (
        make_row("inside", -6.0, 1.0, label="A"),
        dataclasses.replace(
            make_row("lopsided", -1.0, 9.0, better="higher"), difference=PairedDifference(-1.0, 9.0, -4.0, 0.5)
        ),
        make_row("beyond", -90.0, 1.0),
        make_row("paper", -6.0, 1.0, family="paper"),
        dataclasses.replace(make_row("zero", -1e-6, 1e-7), prior=Estimate(0.01)),
    )
    data = make_data(metrics=rows, interval_note="Intervals: drawn from clips.")
    scale = change_scale([rows[0], rows[1], rows[2]])
    figure = results_figure(data)
    assert figure is not None
    drawn = {str(line.get_gid()): line for line in figure.axes[0].lines if line.get_gid()}
    for row in rows[:2]:
        percent = change_percent(row)
        assert drawn[f"mean {row.key}"].get_xdata()[0] == pytest.approx(percent[0])
        assert list(drawn[f"interval {row.key}"].get_xdata()) == pytest.approx(percent[1:])
    assert list(drawn["interval lopsided"].get_xdata()) == pytest.approx([-400 / 120, 50 / 120])
    assert drawn["mean inside"].get_color() == LIGHT.post_trained and drawn["mean lopsided"].get_color() == LIGHT.muted
    assert drawn["mean beyond"].get_marker() == "<" and drawn["mean beyond"].get_xdata()[0] == -scale
    assert "interval beyond" not in drawn and "mean paper" not in drawn and "mean zero" not in drawn
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "114.0 mm" in texts and "120.0" in texts and "−5.0 %" in texts
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["BEYOND ↓", "LOPSIDED ↑", "A ↓"]
    assert "Intervals: drawn from clips." in "\n".join(text.get_text() for text in figure.texts).replace("\n", " ")


def test_reports_from_before_the_notes_still_load() -> None:
    tree = report_to_json(make_data(interval_note="x"))
    del tree["interval_note"]
    for group in tree["diversity"]:
        del group["quantity"], group["x_label"]
    old = report_from_json(tree)
    assert old.interval_note == "" and [group.quantity for group in old.diversity] == [""]
    assert report_to_json(old) == report_to_json(make_data())


def test_a_distant_reference_does_not_flatten_the_curve() -> None:
    curve = Curve.of("norm", [0.01, 0.03, 0.02])
    low, high, log = y_range(Panel("x", (curve,), reference=1.0))
    assert high < 0.05 and not log
    assert "Clip at 1, outside" in line_chart(Panel("x", (curve,), reference=1.0, reference_label="clip"), chart_id="c")
    low, high, _ = y_range(Panel("x", (curve,), reference=0.06))
    assert low < 0.01 and high > 0.06
    assert y_range(Panel("x", (curve,), low=0.0, high=2.0, reference=1.0))[:2] == (0.0, 2.0)


def test_one_large_change_does_not_squeeze_the_others() -> None:
    rows = [make_row(str(index), -6.0, 1.0) for index in range(6)] + [make_row("large", -90.0, 5.0)]
    scale = change_scale(rows)
    assert scale == 10.0
    assert "beyond" in change_glyph(rows[-1], scale, "better")
    assert "beyond" not in change_glyph(rows[0], scale, "better")


def test_change_in_percent() -> None:
    assert change_percent(make_row("x", -12, 3))[0] == pytest.approx(-10)
    # percent of a mean that the row itself shows as 0.0 would be percent of rounding errors
    for mean in (0.0, 0.04, -0.04):
        zero = dataclasses.replace(make_row("x", 1, 1), prior=Estimate(mean, 0.0))
        assert all(math.isnan(value) for value in change_percent(zero))
    assert math.isfinite(change_percent(dataclasses.replace(make_row("x", 1, 1), prior=Estimate(0.06, 0.0)))[0])


# ---- the page


def test_page_is_well_formed_and_needs_nothing_from_outside() -> None:
    html = render_page(make_data(), filmstrip=b"\x89PNG\r\n")
    page = Page(html)
    assert page.problems == [] and page.open == []
    references = page.references("href", "src", "srcset", "action", "data", "poster", "xlink:href")
    assert references
    assert all(reference.startswith(("#", "data:")) for reference in references), references
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\((?!#)", html.replace("http://www.w3.org/2000/svg", ""))
    assert "Content-Security-Policy" in html and "default-src 'none'" in html
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in references if link.startswith("#") and len(link) > 1} <= set(ids)


def test_page_is_accessible_in_the_ways_a_machine_can_tell() -> None:
    page = Page(render_page(make_data(), filmstrip=b"\x89PNG\r\n"))
    assert ("html", {"lang": "en"}) in page.tags
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    for tag, attributes in page.tags:
        if attributes.get("role") == "img" and tag == "svg":
            assert attributes.get("aria-label")
        if tag == "input" and attributes.get("type") == "range":
            assert attributes.get("aria-label")
    assert [tag for tag, _ in page.tags].count("h1") == 1


def test_every_row_of_the_timings_has_the_same_cells() -> None:
    html = render_page(make_data())
    table = re.search(r'<div class="table-box card stages">(.*?)</table>', html, re.S)
    assert table
    kinds = [re.findall(r'<(t[dh])(?: class="(\w+)")?', row) for row in re.findall(r"<tr>(.*?)</tr>", table[1])]
    assert len(kinds) == 3 and all([name for _, name in row] == ["", "share", ""] for row in kinds), kinds


def test_results_say_what_their_intervals_are() -> None:
    html = render_page(make_data(interval_note="Intervals: <drawn> from clips."))
    findings, results = html.split('<section id="results"')
    for part in (findings.split('<section id="findings"')[1], results.split("<section")[0]):
        assert "Intervals: &lt;drawn&gt; from clips." in part
    assert "[−15.3,\u00a0−9.4]" in findings


def test_dates_are_readable() -> None:
    html = render_page(make_data(run=RunInfo("A report", "mgrpo demo", "2026-01-02T03:04:05+00:00", 3)))
    assert "2026-01-02 03:04 UTC" in html and "T03:04" not in html


def test_table_shows_the_data() -> None:
    data = make_data()
    html = render_page(data)
    for row in data.metrics:
        found = re.search(rf'<tr data-metric="{re.escape(row.key)}">(.*?)</tr>', html, re.S)
        assert found, row.key
        text = re.sub(r"<[^>]+>", "", found[1])
        for value in (row.prior.mean, row.prior.se, row.post_trained.mean, row.post_trained.se):
            assert fixed(value, row.decimals) in text
        assert signed(row.difference.mean, row.decimals) in text
        assert row.label in text and row.unit in text
    assert "samples averaged: 115.0" in re.sub(r"<[^>]+>", "", html)
    text = Page(html).text
    for piece in (
        "mgrpo demo --seed 3",
        "0123456789ab with local changes",
        "1 min 02 s",
        "250 ms",
        "30 windows.",
        "2 cores",
    ):
        assert piece in text, piece


def test_missing_numbers_are_dashes() -> None:
    data = make_data(
        metrics=(dataclasses.replace(make_row("x", math.nan, math.nan), prior=Estimate(math.nan)),),
        rewards=(Curve.of("Total", [math.nan] * 5),),
        perceptual_accuracy=Estimate(math.nan),
        stages=(Stage("Prior", math.nan),),
        diversity=(BarGroup("d", "mm", (Bar("a", math.nan),)),),
    )
    page = Page(render_page(data))
    assert page.problems == []
    assert "–" in page.text
    assert not re.search(r"\bnan\b|\binf\b", page.text, re.I)


def test_empty_report_still_makes_a_page() -> None:
    data = ReportData(run=RunInfo("Nothing", "mgrpo demo", "2026-01-02", 0))
    page = Page(render_page(data))
    assert page.problems == []
    assert "Nothing" in page.text and "Glossary" in page.text
    assert not any(attributes.get("id") == "player" for _, attributes in page.tags)


def test_everything_from_outside_is_escaped() -> None:
    data = make_data(
        run=RunInfo(
            EVIL,
            EVIL,
            EVIL,
            0,
            summary=EVIL,
            git_commit=EVIL,
            machine={EVIL: EVIL},
            versions={EVIL: EVIL},
            config={EVIL: {EVIL: EVIL}},
        ),
        stages=(Stage(EVIL, 1.0, EVIL),),
        metrics=(make_row(EVIL, -9, 1, label=EVIL, unit=EVIL, description=EVIL),),
        rewards=(Curve.of(EVIL, [1.0, 2.0]),),
        health=(
            Panel(
                EVIL, (Curve.of(EVIL, [1.0, 2.0]),) * 3, EVIL, EVIL, reference=1.5, reference_label=EVIL, x_label=EVIL
            ),
        ),
        diversity=(BarGroup(EVIL, EVIL, (Bar(EVIL, 1.0),), EVIL),),
        motions=(dataclasses.replace(make_motion("x", 4), name=EVIL, caption=EVIL),),
        findings=(Finding("good", EVIL),),
        evaluation_note=EVIL,
    )  # fmt: skip
    html = render_page(data, filmstrip=b"\x89PNG\r\n")
    page = Page(html)
    assert page.problems == [] and page.open == []
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert "alert(" not in re.sub(r"<[^>]*>", "", "".join(re.findall(r"<script>.*?</script>", html, re.S)))
    assert motion_json(html)["clips"][0]["name"] == EVIL
    for _, attributes in page.tags:
        if "data-chart" in attributes:
            json.loads(attributes["data-chart"] or "")


def test_packed_motion_is_the_motion_to_a_tenth_of_a_millimetre() -> None:
    motion = make_motion("x", 11)
    hole = motion.ground_truth.joints.copy()
    hole[0, 2, 5] = np.nan
    motion = dataclasses.replace(motion, ground_truth=SkeletonTrack(hole))
    clip = pack_clips([motion])["clips"][0]
    for track, source in zip(clip["tracks"], motion.tracks().values()):
        for packed, joints in zip(track["samples"], source.joints):
            raw = base64.b64decode(packed)
            steps = np.array(struct.unpack(f"<{len(raw) // 2}h", raw), dtype=np.float64).reshape(11, 22, 3)
            missing = steps == -32768
            np.testing.assert_array_equal(missing, np.isnan(joints))
            back = steps * clip["unit"] + clip["origin"]
            assert np.abs(back - joints)[~missing].max() < 1e-4
    assert clip["tracks"][0]["error"] is None and len(clip["tracks"][1]["error"]) == 11
    assert clip["frames"] == 11 and clip["joints"] == 22


# ---- files


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReportFiles, list[str]]:
    said: list[str] = []
    return write_report(make_data(), tmp_path_factory.mktemp("report") / "deep" / "folder", progress=said.append), said


def test_all_files_are_there_and_nothing_else(written: tuple[ReportFiles, list[str]]) -> None:
    files, said = written
    names = {"report.html", "report.json", "motion.gif"} | {f"{name}.png" for name in files.pngs}
    names |= {"motion.mp4"} if have_mp4_encoder() else set()
    assert {path.name for path in files.html.parent.iterdir()} == names
    assert set(files.pngs) == {"results", "rewards", "training", "health", "diversity", "filmstrip"}
    assert said[-1] == "writing the page"
    assert any(text.startswith("rendering the film") for text in said)


def test_json_file_loads_back(written: tuple[ReportFiles, list[str]]) -> None:
    files, _ = written
    assert report_to_json(read_report(files.json)) == report_to_json(make_data())
    assert json.loads(files.json.read_text())["computed_findings"]


def test_pictures_are_not_blank(written: tuple[ReportFiles, list[str]]) -> None:
    files, _ = written
    for name, path in files.pngs.items():
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
            assert picture.width > 300 and picture.height > 150, name
        colors = np.unique(pixels[::7], axis=0)
        assert len(colors) > 10, name
        assert 0.002 < (pixels != 255).any(axis=1).mean() < 0.9, name


def test_gif_moves(written: tuple[ReportFiles, list[str]]) -> None:
    files, _ = written
    assert files.gif is not None
    frames = set()
    with Image.open(files.gif) as gif:
        for index in range(gif.n_frames):
            gif.seek(index)
            frames.add(gif.convert("RGB").tobytes())
        assert gif.info.get("loop") == 0
    assert len(frames) == 12  # 14 and 9 frames, every second one


@pytest.mark.skipif(not have_mp4_encoder(), reason="the package imageio-ffmpeg is not installed")
def test_mp4_decodes_and_moves(written: tuple[ReportFiles, list[str]]) -> None:
    import imageio_ffmpeg

    files, _ = written
    reader = imageio_ffmpeg.read_frames(str(files.mp4))
    info = next(reader)
    frames = [bytes(frame) for frame in reader]
    assert len(frames) == 14 + 9 + 2 * 12 and len(set(frames)) > 10
    assert info["fps"] == pytest.approx(30) and info["size"][0] > info["size"][1]
    assert np.frombuffer(frames[0], np.uint8).std() > 5


def test_page_comes_last_and_an_old_one_does_not_survive_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ReportData(run=RunInfo("x", "c", "d", 0), motions=(make_motion("x", 4),))
    (tmp_path / "report.html").write_text("old")
    (tmp_path / "report.json").write_text("old")

    def fail(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mgrpo.report.write.write_animation", fail)
    with pytest.raises(InputError, match="disk is full"):
        write_report(data, tmp_path)
    assert not (tmp_path / "report.html").exists()
    assert (tmp_path / "report.json").read_text() == "old"
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_figures_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    (tmp_path / "health.png").write_bytes(b"old")
    (tmp_path / "report.json").write_bytes(b"old")
    (tmp_path / "motion.mp4").write_bytes(b"old")
    (tmp_path / "mine.png").write_bytes(b"not ours")
    files = write_report(ReportData(run=RunInfo("Nothing", "mgrpo demo", "2026-01-02", 0)), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.json", "mine.png"}
    assert files.mp4 is None and files.gif is None and files.skipped
    assert read_report(files.json).run.title == "Nothing"


def test_without_the_encoder_the_gif_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgrpo.report.write.have_mp4_encoder", lambda: False)
    motion = make_motion("x", 4)
    files = write_report(ReportData(run=RunInfo("x", "c", "d", 0), motions=(motion,)), tmp_path)
    assert files.mp4 is None and not (tmp_path / "motion.mp4").exists()
    assert files.gif is not None and files.gif.is_file()
    assert "imageio-ffmpeg" in files.skipped[0]


def test_unwritable_folder_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="could not write the report"):
        write_report(make_data(), tmp_path / "file" / "folder")
    with pytest.raises(InputError, match="could not write the report"):
        write_report(make_data(), tmp_path / "file")
