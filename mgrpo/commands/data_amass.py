"""`mgrpo data amass`: the base model's training file from the user's own download of AMASS."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from mgrpo.body import resolve_body
from mgrpo.data.amass.gender import load_conversions
from mgrpo.data.amass.layout import Layout, Split
from mgrpo.data.amass.names import splits_of
from mgrpo.data.amass.parts import PartsFolder, parts_folder
from mgrpo.data.amass.prepare import Conversions, Outcome, Plan, make_plan, prepare_dataset
from mgrpo.data.amass.process import TARGET_FPS, ClipRules
from mgrpo.data.amass.writer import list_path
from mgrpo.data.hdf5.file import SUFFIXES, is_hdf5
from mgrpo.errors import InputError
from mgrpo.storage import atomic_write_json, make_folder, storage_error
from mgrpo.terminal.progress import Progress, notice

_SHOWN = 10
_STATUSES = ("written", "skipped", "failed", "defect")


@dataclass(frozen=True)
class AmassConfig:
    """Prepare AMASS (SMPL+H G) for training, as EgoAllo does: one HDF5 file, a list of its clips, and a report.

    Folders and files may have their older or newer names. A run that was stopped goes on when started again; what it
    has done lies in OUT.parts until the file is complete, and takes as much space as the file. Without --parity, some
    habits of EgoAllo's preparation are mended (see mgrpo.data.amass.process).

    The exit code is 0 where every recording was used or left out by a rule, 1 where some could not be used (damaged
    files, say): the output then holds all the others, and the last line and OUT.report.json tell what is missing.
    """

    raw: tyro.conf.Positional[Path]
    """Folder that holds the unpacked subsets (ACCAD, CMU, ...)."""
    out: tyro.conf.Positional[Path]
    """HDF5 file to write, ending in .hdf5 or .h5. NAME_files.txt (names of the clips) and OUT.report.json go beside
    it."""
    splits: tuple[Split, ...] = ("train", "val", "test")
    """Splits of EgoAllo whose subsets are prepared; test_humor is HuMoR's test split."""
    body: str = "smplh"
    """The neutral body: `smplh` (searched for), or the path of an SMPL-H npz or of a folder that holds one."""
    betas: Literal["neutral", "as-is"] = "neutral"
    """Shape numbers: those of female and male bodies converted to the neutral body, or taken as they are."""
    gender_conversion: Path | None = None
    """Folder with female_to_neutral.npz and male_to_neutral.npz, from EgoAllo's data folder or made by `mgrpo data
    gender-conversion`; needed for --betas neutral."""
    parity: bool = False
    """Keep every habit of EgoAllo's preparation: thresholds per source frame, fingers not mirrored and one source frame
    early, noise as a floor, frames at 29.5 to 30.5 per second."""
    mirror: bool = True
    """Also write the mirror image of each clip."""
    drop_terrain: bool = False
    """Leave out clips in which somebody stands on something higher than the floor (HuMoR's rule; off in EgoAllo)."""
    workers: int = 0
    """Processes; 0: one for each processor."""
    overwrite: bool = False
    """Replace OUT if it exists."""
    dry_run: bool = False
    """Only show what would be prepared and what is missing."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise InputError(f"--workers must be 0 or more, got {self.workers}")
        if not self.splits:
            raise InputError("--splits needs at least one of train, val, test, test_humor")
        if self.betas == "as-is" and self.gender_conversion is not None:
            raise InputError("--gender-conversion is of no use with --betas as-is; leave one of them out")
        if self.betas == "neutral" and self.gender_conversion is None and not self.dry_run:
            raise InputError(
                "AMASS has female and male shape numbers, and the motion is stored with the neutral body: give "
                "--gender-conversion FOLDER with female_to_neutral.npz and male_to_neutral.npz (EgoAllo has them in "
                "data/smplh_gender_conversion; mgrpo data gender-conversion makes them from the three SMPL-H models), "
                "or choose --betas as-is"
            )
        if self.body == "default":
            raise InputError(
                "--body default: the shape numbers of AMASS are those of SMPL-H and mean something else on the default "
                "body; give the SMPL-H file"
            )
        if self.out.is_dir():
            raise InputError(f"{self.out} is a folder; give the name of the HDF5 file to write")
        if not is_hdf5(self.out):
            raise InputError(
                f"OUT {self.out}: the file to write must end in {' or '.join(SUFFIXES)}, by which it is known as HDF5"
            )


def run_amass(config: AmassConfig) -> int:
    """Prepare AMASS and print what became of it. Returns 0, or 1 where recordings could not be used: files that can't
    be read, or a defect of mgrpo; what a rule leaves out is not among them.

    Raises InputError for what can't be used, StorageError for the disk.
    """
    plan = make_plan(config.raw, config.splits)
    if config.dry_run:
        _print_plan(plan, config)
        return 0
    out = config.out
    # an output with parts beside it is one whose run was stopped at the very end
    if out.exists() and not config.overwrite and not parts_folder(out).exists():
        raise InputError(f"{out} exists already; choose another name, or --overwrite to replace it")
    conversions = None if config.gender_conversion is None else load_conversions(config.gender_conversion)
    body = resolve_body(config.body, with_mesh=False)
    make_folder(out.parent)
    workers = config.workers or _processors()
    try:
        with PartsFolder(out) as parts:
            outcomes = _prepare(plan, config, body, conversions, parts, workers)
            report = make_report(plan, outcomes, config)
            report_path = out.with_name(f"{out.name}.report.json")
            atomic_write_json(report_path, report)
            parts.remove()
    except OSError as error:
        raise storage_error(
            "write", out, error, f"Run the same command again afterwards: it goes on from {parts_folder(out)}."
        ) from error
    _print_report(report)
    for path in (out, list_path(out), report_path):
        print(path)
    lost = len(report["failed"])
    if lost:
        print(
            f"INCOMPLETE: {lost} of {sum(report['counts'][key] for key in _STATUSES)} recordings could not be used and "
            f"are not in {out}; {report_path} names each"
        )
    return 1 if lost else 0


def _prepare(
    plan: Plan, config: AmassConfig, body: Any, conversions: Conversions | None, parts: PartsFolder, workers: int
) -> list[Outcome]:
    rules = ClipRules(config.parity, config.mirror, config.drop_terrain)
    counts: Counter[str] = Counter()
    with Progress("prepare", len(plan.todo), "recordings") as progress:

        def note(outcome: Outcome) -> None:
            counts[outcome.status] += 1
            counts["reused"] += outcome.reused
            if outcome.status in ("failed", "defect") and counts["failed"] + counts["defect"] <= _SHOWN:
                notice(f"left out: {outcome.reason}")
            shown = {key: counts[key] for key in ("skipped", "failed", "defect", "reused") if counts[key]}
            progress.update(**shown)

        writing: list[Progress] = []

        def wrote(groups: int) -> None:
            if not writing:
                writing.append(Progress("write", None, "clips"))
                writing[0].__enter__()
            writing[0].update(groups - writing[0].done)

        try:
            return prepare_dataset(
                plan, config.out, body, rules, conversions, parts, workers=workers, on_recording=note, on_written=wrote
            )
        finally:
            for one in writing:
                one.__exit__(None, None, None)


def _processors() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def make_report(plan: Plan, outcomes: Sequence[Outcome], config: AmassConfig) -> dict[str, Any]:
    """What became of every recording, for the JSON file and the table."""
    subsets: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        row = subsets.setdefault(
            outcome.file.subset,
            {
                "splits": list(splits_of(outcome.file.subset)),
                **dict.fromkeys(("recordings", "clips", "mirrored", "skipped", "failed"), 0),
                "frames": 0,
            },
        )
        row["recordings"] += 1
        row["skipped"] += outcome.status == "skipped"
        row["failed"] += outcome.status in ("failed", "defect")
        for index, frames in enumerate(outcome.frames):
            row["mirrored" if index else "clips"] += frames > 0
            row["frames"] += frames
    by_status = Counter(outcome.status for outcome in outcomes)
    options = {key: value for key, value in asdict(config).items() if key not in ("workers", "overwrite", "dry_run")}
    return {
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in options.items()},
        "counts": {status: by_status[status] for status in _STATUSES}
        | {
            "clips": sum(row["clips"] + row["mirrored"] for row in subsets.values()),
            "frames": sum(row["frames"] for row in subsets.values()),
        },
        "subsets": {name: subsets[name] for name in sorted(subsets)},
        "missing_subsets": {split: list(names) for split, names in plan.layout.missing.items()},
        "unused_folders": list(plan.layout.unused),
        "reasons": dict(sorted(Counter(outcome.reason for outcome in outcomes if outcome.status == "skipped").items())),
        "skipped": [
            {"name": outcome.file.name, "reason": outcome.reason} for outcome in outcomes if outcome.status == "skipped"
        ],
        "failed": [
            {"name": outcome.file.name, "status": outcome.status, "reason": outcome.reason}
            for outcome in outcomes
            if outcome.status in ("failed", "defect")
        ],
        "without_floor": [
            outcome.file.name for outcome in outcomes if outcome.status == "written" and not outcome.floor_found
        ],
    }


def _print_report(report: dict[str, Any]) -> None:
    table = Table(title="AMASS", title_justify="left", header_style="bold")
    table.add_column("subset", no_wrap=True)
    table.add_column("split")
    for heading in ("files", "clips", "mirrored", "minutes", "skipped", "failed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in report["subsets"].items():
        numbers = [row[key] for key in ("recordings", "clips", "mirrored")]
        minutes = f"{row['frames'] / TARGET_FPS / 60:.1f}"
        splits = ", ".join(split for split in row["splits"] if split in report["missing_subsets"])
        table.add_row(name, splits, *map(str, numbers), minutes, str(row["skipped"]), str(row["failed"]))
    console = Console()
    console.print(table)
    for reason, count in report["reasons"].items():
        console.print(f"skipped {count}: {reason}", markup=False, highlight=False)
    for failure in report["failed"][:_SHOWN]:
        console.print(f"failed: {failure['reason']}", markup=False, highlight=False, soft_wrap=True)
    if len(report["failed"]) > _SHOWN:
        console.print(f"failed: {len(report['failed']) - _SHOWN} more, see the report")
    if report["without_floor"]:
        console.print(
            f"{len(report['without_floor'])} recording(s) have no static toe to find the floor from and were not moved"
        )
    _print_missing(report["missing_subsets"], report["unused_folders"])


def _print_missing(missing: dict[str, list[str]], unused: Sequence[str]) -> None:
    for split, names in missing.items():
        if names:
            print(f"missing of {split}: {', '.join(names)}")
    if unused:
        print(f"folders of no chosen split: {', '.join(ascii(name)[1:-1] for name in unused)}")


def _print_plan(plan: Plan, config: AmassConfig) -> None:
    layout: Layout = plan.layout
    todo, skipped = (
        Counter(subset)
        for subset in (
            [file.subset for file in plan.todo],
            [outcome.file.subset for outcome in plan.skipped],
        )
    )
    table = Table(title=f"AMASS in {config.raw}", title_justify="left", header_style="bold")
    table.add_column("subset")
    table.add_column("split")
    table.add_column("to prepare", justify="right")
    table.add_column("left out by name", justify="right")
    for subset in sorted({*todo, *skipped}):
        splits = ", ".join(split for split in splits_of(subset) if split in config.splits)
        table.add_row(subset, splits, str(todo[subset]), str(skipped[subset]))
    Console().print(table)
    _print_missing({split: list(names) for split, names in layout.missing.items()}, layout.unused)
    twice = " and their mirror images" if config.mirror else ""
    print(f"{len(plan.todo)} recordings{twice} would be prepared; nothing was written")
