"""Measuring motion files against their truth, whoever wrote them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgrpo import kernels
from mgrpo.body import BodyModel, resolve_body
from mgrpo.body.skeleton import FOOT_CONTACT_HEIGHTS_M
from mgrpo.data.rate import require_fps
from mgrpo.errors import InputError

from .alignment import ALIGNMENTS, Align
from .alignment import align as aligned
from .cells import counted
from .evaluate import EvaluationResult
from .formats import MotionTracks, ReadOptions
from .frames import FrameErrors, frame_errors
from .joint_sets import joint_rows
from .matching import Missing, match, read_all
from .metrics import (
    FEET_22,
    HEAD_22,
    METRICS,
    fs_egoallo_m,
    fs_mm_per_contact_frame,
    gnd,
    gp_mean_mm,
    gp_sum_m,
    group_diversity,
    jitter_m_s3,
    metric_names,
)
from .pairing import Pair, Trim, pair
from .tables import Family, ResultTable, result_table

_ALL = tuple(range(22))
_ALIGNED = ("pa_mpjpe_mm", "pa_mpjpe_egoallo_mm")
_ROTATIONS = ("mpjre_geodesic_deg", "mpjre_paper_deg")
_HEAD = ("head_angle_deg", "head_rotation_frobenius")
_PLAUSIBILITY = ("jitter_m_s3", "gp_mean_mm", "gp_sum_m", "fs_mm_per_contact_frame", "fs_egoallo_m", "gnd")
_SCORES = ("score", "score_gap", "accuracy", "wrong_count")
_DIVERSITY = ("diversity_joint_std_mm", "diversity_l2")


@dataclass(frozen=True)
class Comparison:
    """What predictions scored against their truth, clip by clip."""

    results: tuple[EvaluationResult, ...]
    """One for each prediction, in the order given; its windows are the clips."""
    notes: tuple[str, ...]
    """What was assumed, detected or done to the motions, each once."""
    missing: dict[str, str] = field(default_factory=dict)
    """Measures that some input can't support, with the reason."""
    frames: tuple[FrameErrors, ...] = ()
    """Errors of every frame, if they were asked for."""

    def table(self, family: Family = "standard", title: str = "Metrics") -> ResultTable:
        """The result as a table, see :mod:`mgrpo.eval.tables`. A measure that can't be taken is a dash, with the reason
        below."""
        wanted = [name for name in metric_names(family) if name not in _SCORES]
        if all(name not in result.group_values for name in _DIVERSITY for result in self.results):
            wanted = [name for name in wanted if name not in _DIVERSITY]
        first = self.results[0]
        notes = [f"{counted(first.windows, 'clip')}, {counted(first.samples, 'sample')} each."]
        if first.windows > 1:
            notes.append("± is the standard error over clips; differences are paired clip by clip.")
        means = self.means()
        left_out: dict[tuple[str, str], list[str]] = {}
        for name, reason in self.missing.items():
            if name in wanted:
                some = any(not math.isnan(found.get(name, math.nan)) for found in means.values())
                kind = "Some clips are not in" if some else "–"
                left_out.setdefault((kind, reason), []).append(METRICS[name].label)
        notes += [f"{kind} {', '.join(labels)}: {reason}." for (kind, reason), labels in left_out.items()]
        if any(METRICS[name].label.endswith("*") for name in wanted):
            notes.append("* as published for EgoAllo and MotionGRPO; not the usual definition.")
        return result_table(self.results, family=family, metrics=wanted, title=title, notes=(*notes, *self.notes))

    def means(self) -> dict[str, dict[str, float]]:
        """Mean of every measure by prediction and measure; NaN where no clip could be scored."""
        return {result.name: result.means() for result in self.results}


def compare_files(
    pred: str | Path | Sequence[str | Path] | Mapping[str, str | Path],
    gt: str | Path,
    *,
    body: str | BodyModel | None = None,
    align: Align = "none",
    trim: Trim = "off",
    fps: float | None = None,
    joints: Sequence[str] = ("all",),
    missing: Missing = "error",
    pred_options: ReadOptions | None = None,
    gt_options: ReadOptions | None = None,
    per_frame: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Measure one or more predictions against the truth.

    Args:
        pred: a file or folder, several of them, or a dictionary of them by the name that each gets in tables.
        gt: file or folder of the truth. Folders are matched by file name, see :func:`mgrpo.eval.matching.match`.
        body: for files that hold rotations: ``"smplh"``, ``"default"``, a path, or a body.
        align: what is done to predictions before errors are taken, see :data:`mgrpo.eval.alignment.ALIGNMENTS`.
            Jitter, floor and foot measures are always taken where the prediction stands.
        trim: how motions of different length are compared, see :func:`mgrpo.eval.pairing.pair`.
        fps: rate at which motions are compared; None: that of each truth.
        joints: joints or sets (:data:`mgrpo.eval.joint_sets.JOINT_SETS`) that errors of positions and rotations are
            taken over; head, floor, foot and jitter measures and diversity use all 22.
        missing: "skip" leaves out predictions without truth and truths without prediction.
        pred_options, gt_options: frame rate, up axis and unit, where the files don't tell or tell wrong.
        per_frame: keep errors of every frame too.
        progress: called with (clips done, clips in all).

    Returns:
        The results; ``compare_files(...).means()`` for plain numbers, ``.table()`` for tables.

    Raises:
        InputError: files that can't be read, matched or compared.
    """
    rows = joint_rows(joints)
    kind = align
    if kind not in ALIGNMENTS:
        raise InputError(f"an alignment is one of {', '.join(ALIGNMENTS)}, got {kind!r}")
    if fps is not None:
        require_fps(fps, "the frame rate")
    model = resolve_body(body, with_mesh=False) if isinstance(body, str) else body
    preds = _named(pred)
    sides = [
        replace(options or ReadOptions(), body=model, side=side)
        for options, side in ((pred_options, "pred"), (gt_options, "gt"))
    ]
    notes = _Notes()
    truths = read_all(Path(gt), sides[1])
    for truth in truths.values():
        notes.add("truth", (f"read as {truth.format}", *truth.notes))
    read = {name: read_all(Path(path), sides[0]) for name, path in preds.items()}
    pairs = {name: match(list(motions), list(truths), missing=missing) for name, motions in read.items()}
    first = next(iter(preds))
    for name in preds:
        if pairs[name].keys() != pairs[first].keys() and len(pairs[name]) == len(pairs[first]) == 1:
            # One clip each: they belong together although every file has its own name.
            only = next(iter(pairs[first]))
            read[name] = {only: read[name][next(iter(pairs[name]))]}
            pairs[name] = {only: next(iter(pairs[name].values()))}
        if list(pairs[name].items()) != list(pairs[first].items()):
            differing = sorted(set(pairs[name].items()) ^ set(pairs[first].items()))
            raise InputError(
                f"predictions '{first}' and '{name}' are of different clips, for example {differing[0][0]}; compare "
                "predictions of the same clips"
            )
    total, results, frames, reasons = sum(map(len, pairs.values())), [], [], {}
    for name, motions in read.items():
        clips = []
        for label, truth in pairs[name].items():
            notes.add(name, (f"read as {motions[label].format}", *motions[label].notes))
            try:
                both = pair(motions[label], truths[truth], fps=fps, trim=trim)
                measured = _measures(both, rows, kind)
            except InputError as error:
                raise InputError(f"{name}, clip '{label}': {error}") from error
            notes.add(name, both.notes)
            clips.append(_numbers(measured))
            reasons |= _unscored(measured, both) | _reasons(both, rows)
            if per_frame:
                frames.append(frame_errors(both, rows, kind, prediction=name, clip=label))
            if progress is not None:
                progress(sum(len(result.window_names) for result in results) + len(clips), total)
        settings = {"align": kind, "joints": " ".join(joints), "fps": fps or "of each truth", "trim": trim}
        results.append(_result(name, list(pairs[name]), clips, settings))
    if len({result.samples for result in results}) > 1:
        counts = ", ".join(f"{result.name} {result.samples}" for result in results)
        notes.add("", (f"Samples differ ({counts}), so they are averaged clip by clip.",))
        results = [_averaged(result) for result in results]
    after = "" if kind == "none" else "; jitter, floor and foot measures before that"
    notes.add("", (f"{ALIGNMENTS[kind]}{after}.",))
    if len(rows) < 22:
        notes.add("", (f"Position and rotation errors over {len(rows)} of 22 joints ({' '.join(joints)}).",))
    return Comparison(tuple(results), notes.lines(), reasons, tuple(frames))


class _Notes:
    """Notes of many clips, each said once with the number of clips."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] = {}

    def add(self, who: str, notes: Sequence[str]) -> None:
        for note in notes:
            self.counts[who, note] = self.counts.get((who, note), 0) + 1

    def lines(self) -> tuple[str, ...]:
        return tuple(
            f"{who}: {note}{f' ({count} clips)' if count > 1 else ''}." if who else note
            for (who, note), count in self.counts.items()
        )


def _named(pred: str | Path | Sequence[str | Path] | Mapping[str, str | Path]) -> dict[str, Path]:
    if isinstance(pred, Mapping):
        found = {str(name): Path(path) for name, path in pred.items()}
    else:
        paths = [Path(path) for path in ([pred] if isinstance(pred, (str, Path)) else pred)]
        names = [path.stem if path.is_file() else path.resolve().name for path in paths]
        if len(set(names)) < len(names):
            names = [str(path) for path in paths]
        if len(set(names)) < len(names):
            raise InputError("a prediction was given twice; give each once")
        found = dict(zip(names, paths))
    if not found:
        raise InputError("compare_files() needs at least one prediction")
    return found


def _measures(both: Pair, rows: tuple[int, ...], kind: Align) -> dict[str, Tensor]:
    """Every measure of one clip, each ``(S,)``; what the input can't support is not there."""
    pred, truth, mask, fps = both.pred, both.truth, both.mask, both.fps
    moved = aligned(pred, truth, kind, mask)
    found = _operator(moved, truth, mask, fps, rows)
    if kind != "none" or len(rows) < 22:
        # Where the prediction stands is part of these, and they are of the whole body.
        standing = _operator(pred, truth, mask, fps, _ALL)
        found |= {name: standing[name] for name in (*_PLAUSIBILITY, "jitter_ratio")}
        whole_moved = standing if kind == "none" else _operator(moved, truth, mask, fps, _ALL)
        found |= {name: value for name, value in whole_moved.items() if name.startswith("head")}
    if pred.samples > 1:
        whole = torch.ones(len(pred), dtype=torch.bool) if mask is None else mask
        found |= group_diversity(pred.joints[None], whole[None])
    truth_joints = truth.joints[0]
    found |= {
        "truth jitter_m_s3": jitter_m_s3(truth_joints, mask, fps=fps),
        "truth gp_mean_mm": gp_mean_mm(truth_joints, mask),
        "truth gp_sum_m": gp_sum_m(truth_joints, mask),
        "truth fs_mm_per_contact_frame": fs_mm_per_contact_frame(truth_joints, mask),
        "truth fs_egoallo_m": fs_egoallo_m(truth_joints, mask),
        "truth gnd": gnd(truth_joints, mask),
    }
    return {name: value.double().cpu() for name, value in found.items()}


def _numbers(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The measures of a clip, NaN where one is no number; :func:`_unscored` says why."""
    return {name: torch.where(value.isfinite(), value, torch.nan) for name, value in found.items()}


_SPANS = {"mpjve_mm_s": 2, "jitter_m_s3": 4, "jitter_ratio": 4, "fs_mm_per_contact_frame": 2}
"""Frames in a row that a measure needs."""


def _unscored(found: Mapping[str, Tensor], both: Pair) -> dict[str, str]:
    """Why a measure of a clip is no number, where it could have been one."""
    reasons = {}
    frames = torch.ones(len(both.truth), dtype=torch.bool) if both.mask is None else both.mask
    run = max(len(part) for part in "".join("x" if real else " " for real in frames.tolist()).split(" "))
    for name, value in found.items():
        measure = name.removeprefix("truth ")
        if bool(value.isfinite().all()):
            continue
        if run < _SPANS.get(measure, 1):
            reasons[measure] = f"the clip is too short, it needs {_SPANS[measure]} frames in a row"
        elif measure == "jitter_ratio" and bool((found["truth jitter_m_s3"] == 0).all()):
            reasons[measure] = "the truth does not move"
        elif measure == "fs_mm_per_contact_frame" and bool(value[~value.isfinite()].isnan().all()) and _moderate(both):
            reasons[measure] = "no foot touches the floor in two frames in a row"
        else:
            reasons[measure] = f"the numbers overflow (positions up to {_largest(both):.3g} m); is a unit wrong?"
    return reasons


def _largest(both: Pair) -> float:
    """Largest coordinate of either motion, metres."""
    return max(float(one.joints.abs().max()) for one in (both.pred, both.truth))


def _moderate(both: Pair) -> bool:
    """Whether positions are far from where their products overflow."""
    return _largest(both) < 1e100


def _operator(
    pred: MotionTracks, truth: MotionTracks, mask: Tensor | None, fps: float, rows: tuple[int, ...]
) -> dict[str, Tensor]:
    """The fused measures of both families, over some joints; rotations are left out where either has none."""
    turned = pred.body_rotmats is not None and truth.body_rotmats is not None
    local = [row - 1 for row in rows if row > 0]
    identity = torch.eye(3, dtype=pred.joints.dtype).expand(1, len(pred), 1, 3, 3)
    rotations = [one.body_rotmats[:, :, local] if turned and local else identity for one in (pred, truth)]
    heads = [one.R_world_joint[:, :, HEAD_22] if turned else None for one in (pred, truth)]
    whole = len(rows) == 22
    gone = () if turned and local else _ROTATIONS
    gone += () if turned else _HEAD
    gone += _ALIGNED if len(rows) < 3 else ()
    if len(rows) == 1:
        rows *= 2  # the operator wants two joints; the mean over one joint twice is its own
    found = kernels.motion_metrics(
        pred.joints[:, :, list(rows)].contiguous() if not whole else pred.joints,
        truth.joints[:, :, list(rows)].contiguous() if not whole else truth.joints,
        *rotations,
        None if mask is None else mask[None],
        pred_R_world_head=heads[0],
        target_R_world_head=heads[1],
        fps=fps,
        head=HEAD_22 if whole else 0,
        feet=FEET_22 if whole else (0,),
        foot_heights=FOOT_CONTACT_HEIGHTS_M if whole else (0.08,),
    )._asdict()
    return {name: value for name, value in found.items() if name not in gone}


def _reasons(both: Pair, rows: tuple[int, ...]) -> dict[str, str]:
    """Why a measure can't be taken of this pair."""
    lacking = [
        f"{who} ({one.format})"
        for who, one in (("the prediction", both.pred), ("the truth", both.truth))
        if one.body_rotmats is None
    ]
    found = {}
    if lacking:
        found = dict.fromkeys((*_ROTATIONS, *_HEAD), f"no rotations, only joint positions, in {' and '.join(lacking)}")
    elif rows == (0,):
        found = dict.fromkeys(_ROTATIONS, "the pelvis has no local rotation")
    if len(rows) < 3:
        found |= dict.fromkeys(_ALIGNED, "an alignment of fewer than three joints says nothing")
    return found


def _averaged(result: EvaluationResult) -> EvaluationResult:
    """The result with its samples averaged, to stand beside one with another number of samples."""
    means = {name: value.nanmean(-1, keepdim=True) for name, value in result.values.items()}
    return replace(result, samples=1, values=means)


def _result(
    name: str, clips: list[str], measured: list[dict[str, Tensor]], settings: dict[str, Any]
) -> EvaluationResult:
    """Clips stacked; where one has fewer samples, or lacks a measure, NaN stands."""
    samples = max(len(measures["mpjpe_mm"]) for measures in measured)

    def stacked(key: str, lead: int) -> Tensor:
        rows = torch.full((len(measured), lead), torch.nan, dtype=torch.float64)
        for row, measures in zip(rows, measured):
            if key in measures:
                value = measures[key].reshape(-1)
                row[: len(value)] = value
        return rows

    names = {key for measures in measured for key in measures}
    own = sorted(key for key in names if not key.startswith("truth ") and key not in _DIVERSITY)
    return EvaluationResult(
        name=name,
        window_names=tuple(clips),
        seeds=(0,),
        samples=samples,
        values={key: stacked(key, samples)[:, None] for key in own},
        group_values={key: stacked(key, 1) for key in _DIVERSITY if key in names},
        mean_of_samples={},
        ground_truth={key.removeprefix("truth "): stacked(key, 1)[:, 0] for key in names if key.startswith("truth ")},
        settings=settings,
    )
