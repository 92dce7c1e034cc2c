"""`mgrpo metrics`: motion files of any origin against their truth, as a table."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mgrpo.data.rate import require_fps
from mgrpo.errors import InputError
from mgrpo.eval.alignment import Align
from mgrpo.eval.files import Comparison, compare_files
from mgrpo.eval.formats import ReadOptions
from mgrpo.eval.formats.tracks import Unit, Up
from mgrpo.eval.frames import FRAME_COLUMNS
from mgrpo.eval.joint_sets import joint_rows
from mgrpo.eval.matching import Missing
from mgrpo.eval.pairing import Trim
from mgrpo.eval.tables import per_window_csv, print_table, to_csv, to_json, to_latex, to_markdown
from mgrpo.storage import atomic_write, json_text, make_folder
from mgrpo.terminal.progress import Progress

from .destination import refuse_run_folder


@dataclass(frozen=True)
class MetricsConfig:
    """Measure motion files against their truth: mgrpo metrics PRED [PRED ...] GT.

    Files or folders; folders are matched by file name. Formats are recognised by their contents: this package's clips,
    packs and samples, EgoAllo's output, AMASS, HumanML3D and MDM joints, WHAM, GVHMR, or an npz with joints (T, 22, 3).
    Nothing in a file is run.
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PRED [PRED ...] GT")]
    """One or more predictions, then the truth: files or folders. With several predictions each gets a column, and its
    paired difference to the first."""
    name: tuple[str, ...] = ()
    """Names of the predictions in the table, in the same order; default: from the paths."""
    body: str = ""
    """Body for files that hold rotations: `smplh` (searched for), the path of an SMPL-H npz, or `default` (ships with
    the package; for motion made with it)."""
    family: Literal["standard", "paper", "all"] = "standard"
    """Measures in the table: the usual definitions, those of the published tables, or both."""
    align: Align = "none"
    """What is done to predictions before errors are taken: nothing; turn about the vertical and shift so that heading
    and pelvis of the first frame agree; put the pelvis on the true one in every frame; one rigid fit of the whole
    clip."""
    joints: tuple[str, ...] = ("all",)
    """Joints that position and rotation errors are taken over: all, upper, lower, legs, arms, feet, wrists, or names
    such as left_wrist. Other measures use all 22."""
    trim: Trim = "off"
    """How motions of different length are compared: not at all; by time stamps, frame numbers or from the start; auto
    takes the first of these that the files allow."""
    fps: float = 0.0
    """Frames per second at which motions are compared; 0: the truth's."""
    missing: Missing = "error"
    """What to do about predictions without truth and truths without prediction: refuse, or leave them out."""
    pred_fps: float = 0.0
    """Frames per second of the predictions, where the files don't tell; 0: as they tell, or as their format is."""
    gt_fps: float = 0.0
    """The same for the truth."""
    pred_up: Up = "auto"
    """Axis that points up in the predictions; auto: that of the format, or looked for in the motion."""
    gt_up: Up = "auto"
    """The same for the truth."""
    pred_unit: Unit = "auto"
    """Unit of the predictions' positions; auto: found by the length of the legs."""
    gt_unit: Unit = "auto"
    """The same for the truth."""
    format: Literal["table", "markdown", "latex", "csv", "json"] = "table"
    """What to print on standard output."""
    out: Path | None = None
    """Folder for metrics.md, .tex, .csv, .json and metrics_clips.csv (every clip and sample)."""
    per_frame: bool = False
    """Also write metrics_frames.csv (every frame) to the folder of --out."""
    title: str = "Metrics"
    """Heading of the table."""

    def __post_init__(self) -> None:
        if len(self.files) < 2:
            raise InputError(
                f"mgrpo metrics needs at least one prediction and then the truth; got {len(self.files)} path(s)"
            )
        if self.name and len(self.name) != len(self.files) - 1:
            raise InputError(
                f"--name must name every prediction: {len(self.files) - 1} predictions, {len(self.name)} names"
            )
        if len(set(self.name)) != len(self.name):
            raise InputError(f"--name must differ between predictions, got {', '.join(self.name)}")
        for option in ("fps", "pred_fps", "gt_fps"):
            if getattr(self, option) != 0:  # which leaves it to the files
                require_fps(getattr(self, option), f"--{option.replace('_', '-')}")
        joint_rows(self.joints)
        if self.per_frame and self.out is None:
            raise InputError("--per-frame writes a file; name its folder by --out")


def run_metrics(config: MetricsConfig) -> int:
    """Measure, print the table, and write the files if asked. Returns the exit code 0.

    Raises InputError for files that can't be read, matched or compared, MgrpoError when the disk refuses.
    """
    if config.out is not None:
        refuse_run_folder(config.out, "--out")
        make_folder(config.out)  # before the work: a place that can't be written to should be known now
    comparison = compare(config)
    table = comparison.table(config.family, config.title)
    texts = {"markdown": to_markdown, "latex": to_latex, "csv": to_csv}
    if config.format == "table":
        print_table(table)
    elif config.format == "json":
        print(json_text(as_json(comparison)), end="")
    else:
        print(texts[config.format](table), end="")
    if config.out is not None:
        contents = {f"metrics.{suffix}": texts[kind](table) for kind, suffix in _SUFFIXES.items()}
        contents["metrics.json"] = json_text(as_json(comparison))
        contents["metrics_clips.csv"] = per_window_csv(comparison.results)
        if config.per_frame:
            contents["metrics_frames.csv"] = frames_csv(comparison)
        for name, text in contents.items():
            atomic_write(config.out / name, text)
        if config.format == "table":
            print(f"written: {', '.join(contents)} in {config.out}")
    return 0


_SUFFIXES = {"markdown": "md", "latex": "tex", "csv": "csv"}


def compare(config: MetricsConfig) -> Comparison:
    """What the options ask for."""
    *preds, truth = config.files
    pred: dict[str, Path] | list[Path] = dict(zip(config.name, preds)) if config.name else preds
    with Progress("metrics", None, "clips") as progress:

        def update(done: int, total: int) -> None:
            progress.total = total
            progress.update(done - progress.done)

        return compare_files(
            pred,
            truth,
            body=config.body or None,
            align=config.align,
            trim=config.trim,
            fps=config.fps or None,
            joints=config.joints,
            missing=config.missing,
            pred_options=ReadOptions(fps=config.pred_fps or None, up=config.pred_up, unit=config.pred_unit),
            gt_options=ReadOptions(fps=config.gt_fps or None, up=config.gt_up, unit=config.gt_unit),
            per_frame=config.per_frame,
            progress=update,
        )


def as_json(comparison: Comparison) -> dict[str, object]:
    """Everything in numbers, both families, with what was assumed about the files."""
    content = to_json(comparison.results)
    return content | {"notes": list(comparison.notes), "missing": dict(comparison.missing)}


def frames_csv(comparison: Comparison) -> str:
    """One line per prediction, clip, sample and frame; empty where a measure can't be taken."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("prediction", "clip", "sample", "frame", "time_s", *FRAME_COLUMNS))
    for clip in comparison.frames:
        columns = {name: value.tolist() for name, value in clip.values.items()}
        numbers = clip.frames.tolist()
        for sample in range(len(next(iter(columns.values())))):
            for index, frame in enumerate(numbers):
                cells = [f"{columns[name][sample][index]:.9g}" if name in columns else "" for name in FRAME_COLUMNS]
                writer.writerow((clip.prediction, clip.clip, sample, frame, f"{frame / clip.fps:.6g}", *cells))
    return text.getvalue()
