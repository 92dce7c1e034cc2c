"""`mgrpo report`: what post-trainings did, as a page, pictures and numbers."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from mgrpo.errors import InputError
from mgrpo.eval.metrics import METRICS
from mgrpo.report import write_training_report
from mgrpo.report.training import TrainingReport, TrainingRun
from mgrpo.report.training_panels import Log, with_network_calls
from mgrpo.runs.json_lines import read_rows
from mgrpo.runs.metric_log import read_metrics
from mgrpo.storage import read_json


@dataclass(frozen=True)
class ReportConfig:
    """Show post-trainings: mgrpo report RUN [RUN ...].

    Writes a page that needs no network, PNGs and JSON: reward curves over iterations and network calls, measures on
    validation clips with the best checkpoint, group health, diversity, ratio and divergence, the time split, alarms,
    and in which settings the runs differ. A run may still be going on: what it has logged so far is shown.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run folders of train grpo."""
    name: tuple[str, ...] = ()
    """Names of the runs in the charts, in the same order; default: those of their folders."""
    out: Path | None = None
    """Folder for report.html, report.json and the PNGs; default: report in the (first) run folder."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise InputError("mgrpo report: give one run folder or more")
        if self.name and len(self.name) != len(self.runs):
            raise InputError(f"--name: {len(self.name)} names for {len(self.runs)} runs; give one for each, or none")
        if len(set(self.name)) < len(self.name):
            raise InputError(f"--name: the names must differ, got {' '.join(self.name)}")
        folders = [run.expanduser().resolve() for run in self.runs]
        if doubled := {str(run) for run, path in zip(self.runs, folders) if folders.count(path) > 1}:
            raise InputError(f"mgrpo report: {', '.join(sorted(doubled))} is given twice; name each run once")


def run_report(config: ReportConfig) -> None:
    """Write the report and print where it is. Raises InputError for folders that are no post-trainings."""
    folders = [run.expanduser() for run in config.runs]
    names = config.name or _names([folder.resolve() for folder in folders])
    runs = [read_training_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    out = folders[0] / "report" if config.out is None else config.out.expanduser()
    report = TrainingReport(runs, datetime.now(timezone.utc).isoformat(timespec="seconds"))
    files = write_training_report(report, out)
    for run in runs:
        print(f"{run.name}: " + ", ".join(f"{name} {value}" for name, value in run.summary().items()))
    print(f"report: {files.html}")


def read_training_run(folder: Path, name: str) -> TrainingRun:
    """A post-training as its run folder tells it; the run may be going on. Raises InputError if it isn't one."""
    settings = _settings(folder)
    rows = read_metrics(folder / "metrics.jsonl")
    if not rows:
        raise InputError(f"{folder}: no iteration has been logged yet; try again when one is finished")
    if "reward" not in rows[0]:
        raise InputError(f"{folder} is no post-training: its log has no rewards; give a run folder of train grpo")
    alarms = folder / "alarms.jsonl"
    flat = dict(_flat(settings, ""))
    start = _starts(folder)[-1] if _starts(folder) else {}
    return TrainingRun(
        Log(
            name,
            with_network_calls(rows),
            gradient_clip=float(settings.get("gradient_clip", "nan")),
            clip_range=float((settings.get("loss") or {}).get("clip_range", "nan")),
            gold=str(settings.get("gold", "")),
            gold_better="max" if settings.get("gold_better") == "max" else "min",
            # the log holds values as they were measured, not as tables scale them
            labels={name: (info.label, info.unit if info.scale == 1 else "") for name, info in METRICS.items()},
        ),
        folder=str(folder),
        iterations=int(settings.get("iterations", rows[-1]["step"])),
        alarms=read_rows(alarms, "alarms", "", texts=("name", "text")) if alarms.exists() else (),
        settings=flat,
        commands=[shlex.join(["mgrpo", *s["command"][1:]]) for s in _starts(folder) if s.get("command")],
        state=_state(start),
    )


def _settings(folder: Path) -> Mapping[str, Any]:
    file = folder / "config.resolved.yaml"
    try:
        settings = yaml.safe_load(file.read_text("utf-8"))
    except FileNotFoundError:
        what = "is not a run folder: it has no config.resolved.yaml" if folder.is_dir() else "does not exist"
        raise InputError(f"{folder} {what}; give the --output folder of a train grpo") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} can't be read ({error}); restore it") from error
    if not isinstance(settings, Mapping):
        raise InputError(f"{file} holds no settings; restore it")
    return settings


def _starts(folder: Path) -> list[dict[str, Any]]:
    """What was noted at each start of the run."""
    file = folder / "provenance.json"
    return list(read_json(file, f"run folder {folder}: provenance.json").get("starts", [])) if file.exists() else []


def _state(start: Mapping[str, Any]) -> dict[str, str]:
    """The last start in words: date, commit, machine, versions."""
    git, found = start.get("git") or {}, {}
    if start.get("date"):
        found["date"] = str(start["date"])
    if git.get("commit"):
        found["commit"] = str(git["commit"])[:12] + (" with local changes" if git.get("dirty") else "")
    for group in ("machine", "versions"):
        for name, value in (start.get(group) or {}).items():
            if isinstance(value, (str, int, float)) and value != "":
                found[name.replace("_", " ")] = str(value)
    return found


def _flat(settings: Mapping[str, Any], before: str) -> Iterator[tuple[str, str]]:
    """Settings by dotted names, values as text."""
    for name, value in settings.items():
        if name == "class":
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        elif isinstance(value, list):
            yield f"{before}{name}", ", ".join(map(str, value)) or "none"
        else:
            yield f"{before}{name}", "none" if value is None else f"{value}"


def _names(folders: list[Path]) -> list[str]:
    """Short names that tell the folders apart: as many last parts of their paths as that needs."""
    for parts in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names
