"""A report's numbers as JSON and back. Nothing is lost: floats keep their digits, NaN and infinities are written as
strings (JSON has none), motion arrays as base64 of little-endian float32."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from mgrpo.errors import InputError
from mgrpo.report.data import (
    Bar,
    BarGroup,
    Curve,
    Estimate,
    Finding,
    MetricRow,
    PairedDifference,
    Panel,
    ReportData,
    RunInfo,
    Stage,
)
from mgrpo.viz.comparison import MotionComparison, SkeletonTrack

FORMAT = "mgrpo-report-1"


def report_to_json(data: ReportData) -> dict[str, Any]:
    """A tree of dicts, lists, strings and finite numbers that ``json`` writes as strict JSON."""
    return {"format": FORMAT, **encode(data)}


def report_from_json(tree: Mapping[str, Any]) -> ReportData:
    """Back from the tree of ``report_to_json``. InputError if it isn't one."""
    if not isinstance(tree, Mapping) or tree.get("format") != FORMAT:
        found = tree.get("format") if isinstance(tree, Mapping) else type(tree).__name__
        raise InputError(
            f"expected the JSON of a report (format {FORMAT}), got {found!r}: use a report.json written by mgrpo"
        )
    try:
        return _report_from(tree)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"this report JSON is damaged ({type(error).__name__}: {error}): write the report again"
        ) from error


def read_report(path: Path) -> ReportData:
    """The numbers of a ``report.json`` that ``write_report`` wrote. InputError with the path if it can't be read."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"can't read the report {path}: {error}") from error
    return report_from_json(tree)


def encode(value: Any) -> Any:
    """A dataclass tree as JSON types."""
    if isinstance(value, np.ndarray):
        little = np.ascontiguousarray(value, dtype="<f4")
        return {"shape": list(little.shape), "float32": base64.b64encode(little.tobytes()).decode("ascii")}
    if hasattr(value, "__dataclass_fields__"):
        return {item.name: encode(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return (
            float(value)
            if math.isfinite(value)
            else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(float(value), "NaN")
        )
    if value is None or isinstance(value, str):
        return value
    raise InputError(f"a report holds numbers, texts and arrays only, got {type(value).__name__}")


def _number(value: Any) -> float:
    """A float from JSON; "NaN", "Infinity" and "-Infinity" are understood."""
    return float(value)


def _array(value: Any) -> np.ndarray | None:
    """An array from its JSON form, or None."""
    if value is None:
        return None
    raw = base64.b64decode(value["float32"], validate=True)
    return np.frombuffer(raw, dtype="<f4").astype(np.float32).reshape(value["shape"])


def _estimate(tree: Any) -> Estimate | None:
    return None if tree is None else Estimate(_number(tree["mean"]), _number(tree["se"]))


def _curve(tree: Mapping[str, Any]) -> Curve:
    return Curve(
        tree["label"],
        tuple(map(_number, tree["x"])),
        tuple(map(_number, tree["y"])),
        tuple(map(_number, tree["spread"])),
        tree["color"],
    )


def _panel(tree: Mapping[str, Any]) -> Panel:
    numbers = {name: _number(tree[name]) for name in ("low", "high", "reference")}
    texts = {name: tree[name] for name in ("title", "unit", "note", "log", "reference_label", "x_label", "key")}
    return Panel(curves=tuple(map(_curve, tree["curves"])), **texts, **numbers)


def _bar_group(tree: Mapping[str, Any]) -> BarGroup:
    bars = tuple(
        Bar(bar["label"], *(_number(bar[name]) for name in ("mean", "se", "value", "rise", "rise_se")))
        for bar in tree["bars"]
    )
    return BarGroup(tree["title"], tree["unit"], bars, tree["note"], tree.get("quantity", ""), tree.get("x_label", ""))


def _track(tree: Any) -> SkeletonTrack | None:
    if tree is None:
        return None
    joints = _array(tree["joints"])
    if joints is None:
        raise ValueError("a track without joints")
    return SkeletonTrack(joints, _array(tree["contacts"]), _array(tree["error_mm"]))


def _motion(tree: Mapping[str, Any]) -> MotionComparison:
    truth = _track(tree["ground_truth"])
    if truth is None:
        raise ValueError("a motion without ground truth")
    return MotionComparison(
        name=tree["name"],
        fps=_number(tree["fps"]),
        ground_truth=truth,
        prior=_track(tree["prior"]),
        post_trained=_track(tree["post_trained"]),
        T_world_cpf=_array(tree["T_world_cpf"]),
        parents=tuple(tree["parents"]),
        caption=tree["caption"],
    )


def _metric(tree: Mapping[str, Any]) -> MetricRow:
    gap = tree["difference"]
    plain = ("key", "label", "unit", "better", "family", "decimals", "description", "headline")
    prior, post_trained = _estimate(tree["prior"]), _estimate(tree["post_trained"])
    if prior is None or post_trained is None:
        raise ValueError("a metric without prior or post-trained value")
    return MetricRow(
        **{name: tree[name] for name in plain},
        prior=prior,
        post_trained=post_trained,
        difference=PairedDifference(*(_number(gap[name]) for name in ("mean", "se", "ci_low", "ci_high"))),
        prior_mean_of_samples=_estimate(tree["prior_mean_of_samples"]),
        ground_truth=_estimate(tree["ground_truth"]),
    )


def _report_from(tree: Mapping[str, Any]) -> ReportData:
    """ReportData from its JSON tree; any missing or ill-typed part raises a plain exception."""
    return ReportData(
        run=RunInfo(**tree["run"]),
        stages=tuple(Stage(stage["name"], _number(stage["seconds"]), stage["detail"]) for stage in tree["stages"]),
        metrics=tuple(map(_metric, tree["metrics"])),
        rewards=tuple(map(_curve, tree["rewards"])),
        prior_training=tuple(map(_panel, tree["prior_training"])),
        perceptual_training=tuple(map(_panel, tree["perceptual_training"])),
        perceptual_accuracy=_estimate(tree["perceptual_accuracy"]),
        health=tuple(map(_panel, tree["health"])),
        diversity=tuple(map(_bar_group, tree["diversity"])),
        motions=tuple(map(_motion, tree["motions"])),
        findings=tuple(Finding(finding["tone"], finding["text"]) for finding in tree["findings"]),
        evaluation_note=tree["evaluation_note"],
        interval_note=tree.get("interval_note", ""),
    )
