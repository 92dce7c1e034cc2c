"""The folder of one run: configuration, provenance, metrics and checkpoints; created once, resumed exactly.

<run>/
    config.yaml             the command as written, once per start
    config.resolved.yaml    every setting with its value
    provenance.json         date, git state, versions and machine, once per start
    provenance-<n>.diff     uncommitted changes of the mgrpo checkout at start n, if any
    metrics.jsonl           one JSON object a line
    alarms.jsonl            what looked wrong and what to try, if anything did
    unscored.jsonl          samples that no reward could be given to, if there were any
    tracker.json            the run's name at an outside tracker, where one is used
    tensorboard/            the same for TensorBoard
    checkpoints/            step_<8 digits>/ folders, best.json and last.json
    .lock                   held while a process uses the folder; the system frees it when the process dies
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

from mgrpo.config_record import CLASS_KEY, differences, to_plain, to_yaml, with_defaults
from mgrpo.errors import InputError
from mgrpo.storage import (
    FileLock,
    StorageError,
    atomic_write,
    atomic_write_json,
    make_folder,
    read_json,
    remove_folder,
    remove_leftovers,
)
from mgrpo.terminal.progress import notice

from .checkpoints import (
    Checkpoint,
    find_checkpoint,
    pointed_checkpoint,
    read_checkpoint,
    step_folders,
    write_checkpoint,
)
from .json_lines import JsonLines, cut_rows
from .metric_log import MetricLog
from .provenance import provenance

LOCK_NAME = ".lock"
ALWAYS_FREE = (
    "output",
    "out",
    "resume",
    "resume_from",
    "device",
    "checkpoint_every",
    "data.cache_mb",
    "data.prefetch",
)
"""Settings that say where a run is kept and carried out, not what it computes; they may differ on resume."""

SIDE_LOGS = ("alarms.jsonl", "unscored.jsonl")
"""Logs beside metrics.jsonl, for what happens in few iterations; they are there once they hold something."""

_RESUME_FROM = ("--resume-from", "--resume_from")
"""Spellings of the option that names where to go on."""

_OWN_FILES = (
    "config.yaml",
    "config.resolved.yaml",
    "provenance.json",
    "metrics.jsonl",
    *SIDE_LOGS,
    "tracker.json",
    "tensorboard",
    "checkpoints",
    "report",
    LOCK_NAME,
)


class RunDir:
    """A run folder held by this process. Use it as a context manager, or call `close`."""

    def __init__(self, path: Path, lock: FileLock, command: list[str] | None, keep_every: int | None) -> None:
        """Not for direct use: see `RunDir.create`."""
        self.path = path
        """The folder."""
        self.command = command
        """Words of the command line that started this process's part of the run; None when started from Python."""
        self.start_step = 0
        """Step of the checkpoint that this start continues from; 0 for a fresh run."""
        self._lock = lock
        self._keep_every = keep_every
        self._resumes_by_itself = False  # whether the same command, without --resume, goes on
        self._training: str | None = None
        self._best: dict[str, Any] | None = None
        self._log: MetricLog | None = None
        self._side_logs: dict[str, JsonLines] = {}

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: Any,
        *,
        command: list[str] | None = None,
        resume: bool | str | Path = False,
        may_change: Iterable[str] = (),
        keep_every: int | None = None,
        iterations: int | None = None,
        tensorboard: bool = True,
    ) -> RunDir:
        """Create the folder, or take up an existing one, and lock it.

        Args:
            path: the folder; parents are created.
            config: the loop's (nested) dataclass; on resume it must equal the stored one.
            command: words of the command line, stored as written.
            resume: False: the folder must be new or empty. True: continue from the last checkpoint; a folder that is
                new, or
                in which nothing was saved yet, starts from the beginning. "best", "last", a step number, or the path of
                one of the run's checkpoints: continue from that one; what came after it is forgotten.
            may_change: dotted names of settings that may differ on resume (a name covers what is below it), besides
                `ALWAYS_FREE`.
            keep_every: also keep every checkpoint whose step is a multiple of this; None keeps best and last only.
            iterations: how long the run shall be; a checkpoint beyond that is refused before anything is changed.
            tensorboard: mirror the metrics to TensorBoard where it is installed.

        Raises:
            InputError: folder in use or not empty, settings that differ, a checkpoint that is missing, damaged or
                beyond ``iterations``.
            StorageError: the disk refuses.
        """
        folder = Path(path).expanduser()
        if folder.exists() and not folder.is_dir():
            raise InputError(f"run folder {folder}: a file of that name exists. Choose another folder.")
        make_folder(folder)
        if not (folder / LOCK_NAME).exists():  # else who works there is told first
            _refuse_foreign(folder, resuming=bool(resume))  # before the lock file is put there; again under the lock
        run = cls(folder, _lock_folder(folder), command, keep_every)
        run._resumes_by_itself = bool(resume) and command is not None and "--resume" not in command
        try:
            run._open(config, resume, tuple(may_change), iterations, tensorboard)
        except BaseException:
            run.close()
            raise
        return run

    def _open(
        self,
        config: Any,
        resume: bool | str | Path,
        may_change: tuple[str, ...],
        iterations: int | None,
        tensorboard: bool,
    ) -> None:
        self._training = type(config).__name__
        _refuse_foreign(self.path, resuming=bool(resume))
        stored = self.path / "config.resolved.yaml"
        remove_leftovers(self.path)
        remove_leftovers(self.checkpoints)
        checkpoint = None
        if resume and stored.is_file():
            _require_same_settings(stored, config, (*ALWAYS_FREE, *may_change))
            checkpoint = self._resume_point(resume)
            if checkpoint is not None and iterations is not None and checkpoint.step > iterations:
                raise InputError(
                    f"run folder {self.path}: {checkpoint.step} iterations are done already, more than the "
                    f"--iterations {iterations} asked for. Ask for {checkpoint.step} or more, or go back with "
                    "--resume-from to an earlier checkpoint."
                )
        elif resume and (saved := step_folders(self.checkpoints)):
            raise InputError(
                f"run folder {self.path}: can't resume, it holds checkpoints ({_steps(saved)}) but no "
                "config.resolved.yaml that says what they were trained with. Restore that file, or choose another "
                "folder for a new run."
            )
        elif resume and resume is not True:
            raise InputError(
                f"run folder {self.path}: there is no run to resume from {resume!r}. Leave that option out."
            )
        if resume and checkpoint is None and (stored.is_file() or not self._resumes_by_itself):
            notice(f"{self.path}: nothing saved yet, starting from the beginning")
        make_folder(self.checkpoints)
        self._go_back_to(checkpoint)
        self._write_start(config, resumed_from_step=checkpoint.step if checkpoint else None)
        self._log = MetricLog(self.path, tensorboard=tensorboard, start_step=self.start_step)

    def _resume_point(self, resume: bool | str | Path) -> Checkpoint | None:
        which = "last" if resume is True else str(resume)
        if which in ("last", "best"):
            target = pointed_checkpoint(self.checkpoints, which)
            if target is None and which == "best":
                raise InputError(f"run folder {self.path}: has no best checkpoint yet. Resume without naming one.")
        elif which.isdigit():
            steps = step_folders(self.checkpoints)
            target = steps.get(int(which))
            if target is None:
                raise InputError(
                    f"run folder {self.path}: has no checkpoint of step {which}; there are {_steps(steps)}."
                )
        else:
            target = find_checkpoint(which, prefer="last")
            if target.resolve().parent != self.checkpoints.resolve():
                raise InputError(
                    f"run folder {self.path}: the checkpoint {target} belongs to another run. "
                    f"Give one of this run's steps ({_steps(step_folders(self.checkpoints))})."
                )
        if target is None:
            return None
        try:
            return read_checkpoint(target)
        except InputError as error:
            others = {step: folder for step, folder in step_folders(self.checkpoints).items() if folder != target}
            hint = f" Other checkpoints of this run: steps {_steps(others)}." if others else ""
            raise InputError(f"{error}{hint}") from error

    def _go_back_to(self, checkpoint: Checkpoint | None) -> None:
        """Make the folder look as it did when `checkpoint` was saved; with None, as when the run began."""
        step, length = (checkpoint.step, int(checkpoint.record["metrics_bytes"])) if checkpoint else (0, 0)
        self.start_step = step
        cut_rows(self.path / "metrics.jsonl", length=length, step=step)
        for name in SIDE_LOGS:
            cut_rows(self.path / name, step=step)
        self._best = checkpoint.record.get("best") if checkpoint else None
        steps = step_folders(self.checkpoints)
        if self._best is not None and self._best["step"] not in steps:
            # the best of that time was deleted for a better one that is now being forgotten
            measured = checkpoint is not None and checkpoint.metric is not None
            self._best = (
                self._best_record(checkpoint.step, checkpoint.metric, self._best["better"]) if measured else None
            )
        if checkpoint is not None:
            self._point("last", {"checkpoint": checkpoint.path.name, "step": step})
        if self._best is not None:
            self._point("best", {"checkpoint": _folder_name(self._best["step"]), **self._best})
        else:
            (self.checkpoints / "best.json").unlink(missing_ok=True)
        for later in sorted(s for s in steps if s > step):
            remove_folder(steps[later])
        self._forget(step)

    def _write_start(self, config: Any, *, resumed_from_step: int | None) -> None:
        record, diff = provenance(self.command, resumed_from_step=resumed_from_step)
        known = self.path / "provenance.json"
        starts = read_json(known, f"run folder {self.path}: provenance.json")["starts"] if known.exists() else []
        if resumed_from_step is not None and starts:
            _note_changes(starts[-1], record)
        if diff:
            name = f"provenance-{len(starts) + 1}.diff"
            record["git"]["diff"] = name
            atomic_write(self.path / name, diff)
        starts.append(record)
        atomic_write_json(known, {"starts": starts})
        written = [
            {
                "date": start["date"],
                "command": None if start["command"] is None else shlex.join(start["command"]),
                "words": start["command"],
                "resumed_from_step": start["resumed_from_step"],
            }
            for start in starts
        ]
        atomic_write(self.path / "config.yaml", yaml.safe_dump({"starts": written}, sort_keys=False, width=1000))
        # last: a folder with this file is a run folder
        atomic_write(self.path / "config.resolved.yaml", to_yaml(config))

    @property
    def checkpoints(self) -> Path:
        """Folder that holds the checkpoints."""
        return self.path / "checkpoints"

    def log(self, step: int, metrics: Mapping[str, float | int | Tensor]) -> None:
        """Append metrics of `step` (iterations finished). Call it before `save` of the same step.

        Raises `StorageError` when the disk refuses.
        """
        if self._log is None:
            raise RuntimeError("RunDir.log(): the run folder is closed")
        self._log.write(step, metrics)

    def note(self, name: str, step: int, row: Mapping[str, Any]) -> None:
        """Append a row about `step` (iterations finished) to one of `SIDE_LOGS`. Raises `StorageError`."""
        if self._log is None:
            raise RuntimeError("RunDir.note(): the run folder is closed")
        if name not in SIDE_LOGS:
            raise ValueError(f"RunDir.note(): {name!r} is not among {', '.join(SIDE_LOGS)}")
        if name not in self._side_logs:
            self._side_logs[name] = JsonLines(self.path / name)
        self._side_logs[name].write({"step": step, **row})

    def save(
        self,
        step: int,
        *,
        model: nn.Module,
        model_config: Any,
        optimizer: torch.optim.Optimizer | None = None,
        tensors: Mapping[str, Tensor] | None = None,
        state: Mapping[str, Any] | None = None,
        metric: float | None = None,
        better: Literal["min", "max"] = "min",
    ) -> Path:
        """Save a checkpoint and forget the ones no longer needed.

        Args:
            step: iterations finished.
            model, model_config: weights, and the dataclass that rebuilds the module.
            optimizer: saved exactly, counters included.
            tensors: further tensors by name.
            state: further plain values of the loop (numbers, text, lists, dictionaries; no NaN).
            metric: value that decides which checkpoint is best; None or NaN: not measured at this step.
            better: whether a smaller ("min") or larger ("max") metric is better; on a tie the earlier one stays.

        Returns the folder. Raises `StorageError` when the disk refuses; the earlier checkpoints are then untouched.
        """
        if self._log is None:
            raise RuntimeError("RunDir.save(): the run folder is closed")
        if metric is not None and math.isnan(metric):
            metric = None
        best = self._best
        if metric is not None and (
            best is None or (metric < best["metric"] if better == "min" else metric > best["metric"])
        ):
            best = self._best_record(step, metric, better)
        target = self.checkpoints / _folder_name(step)
        is_new = not target.exists()
        try:
            for log in self._side_logs.values():
                log.sync()
            write_checkpoint(
                target,
                step=step,
                model=model,
                model_config=model_config,
                optimizer=optimizer,
                tensors=tensors,
                state=state,
                metric=metric,
                record={"best": best, "metrics_bytes": self._log.sync(), "training": self._training},
            )
            self._point("last", {"checkpoint": target.name, "step": step})
            if best is not None and best is not self._best:
                self._point("best", {"checkpoint": target.name, **best})
            self._best = best
            self._forget(step)
        except StorageError as error:
            last = pointed_checkpoint(self.checkpoints, "last")
            if is_new and target.exists() and last != target:
                remove_folder(target)  # written, but the disk had no room left to say so: give the room back
            kept = f"The checkpoint of step {_step_of(last)} is whole: continue from it" if last else "Start again"
            raise StorageError(f"{error} {kept} with --resume when the disk takes files again.") from error
        return target

    @staticmethod
    def _best_record(step: int, metric: float | None, better: str) -> dict[str, Any]:
        return {"step": step, "metric": metric, "better": better}

    def _forget(self, last: int) -> None:
        keep = {last} | ({self._best["step"]} if self._best else set())
        for step, folder in step_folders(self.checkpoints).items():
            if step not in keep and not (self._keep_every and step % self._keep_every == 0):
                remove_folder(folder)

    def _point(self, name: str, content: dict[str, Any]) -> None:
        pointer = self.checkpoints / f"{name}.json"
        try:
            if json.loads(pointer.read_text()) == content:  # needs no room on a full disk
                return
        except (OSError, ValueError):
            pass
        atomic_write_json(pointer, content)

    def checkpoint_path(self, which: Literal["last", "best"] = "last") -> Path:
        """Folder of the last or best checkpoint. Raises `InputError` when there is none yet."""
        found = pointed_checkpoint(self.checkpoints, which)
        if found is None:
            raise InputError(
                f"run folder {self.path}: has no {which} checkpoint yet. Let the training reach its first one."
            )
        return found

    def load(self, which: str | Path = "last") -> Checkpoint | None:
        """Read a checkpoint: "last", "best" (None when there is none yet), or a path as in `find_checkpoint`.

        After `create(..., resume="best")` the last one is that best one. Raises `InputError` when it is damaged.
        """
        if which in ("last", "best"):
            found = pointed_checkpoint(self.checkpoints, str(which))
            return None if found is None else read_checkpoint(found)
        return read_checkpoint(find_checkpoint(which, prefer="last"))

    def resume_command(self) -> str:
        """The command that continues this run, for messages."""
        if self.command is None:
            return f"the same call with resume=True (run folder {self.path})"
        words = list(self.command)
        words[0] = Path(words[0]).name
        if words[0] == "__main__.py":
            words[:1] = ["python", "-m", "mgrpo"]
        # The point that this start went back to is behind it now.
        kept = [
            word
            for word, before in zip(words, ["", *words])
            if word.partition("=")[0] not in _RESUME_FROM and before not in _RESUME_FROM
        ]
        return shlex.join(kept if self._resumes_by_itself or "--resume" in kept else [*kept, "--resume"])

    def close(self) -> None:
        """Close the logs and free the folder for other processes. Safe to call twice."""
        if self._log is not None:
            self._log.close()
            self._log = None
        for log in self._side_logs.values():
            log.close()
        self._side_logs = {}
        self._lock.release()

    def __enter__(self) -> RunDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def run_folder_of(path: Path) -> Path | None:
    """The run folder that ``path`` is, or whose checkpoints or logs it lies among; None elsewhere, also for another
    folder inside of a run's."""
    path = path.expanduser().absolute()
    for folder in (path, *path.parents):
        if (folder / "config.resolved.yaml").is_file():
            inside = path.relative_to(folder).parts
            return folder if not inside or inside[0] in _OWN_FILES else None
    return None


def _lock_folder(folder: Path) -> FileLock:
    """Take the folder's lock, or raise `InputError` naming the process that has it."""
    lock = FileLock(folder / LOCK_NAME, f"run folder {folder}", "Wait for it to end, or choose another folder.")
    if lock.missing is not None:
        notice(f"run folder {folder}: {lock.missing}; don't start two processes in it")
    return lock


def _refuse_foreign(folder: Path, *, resuming: bool) -> None:
    """Raise `InputError` when the folder holds a run that isn't to be resumed, or something that is no run at all."""
    entries = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if not entries:
        return
    if not resuming:
        last = pointed_checkpoint(folder / "checkpoints", "last")
        held = f"a run with a checkpoint at step {_step_of(last)}" if last else _entries(entries)
        mend = "Add --resume to continue that run, choose another folder, or delete this one."
        if last is None and not (folder / "config.resolved.yaml").is_file():
            mend = "That is no run, so choose another folder."
        raise InputError(f"run folder {folder} is not empty: it holds {held}. {mend}")
    foreign = [name for name in entries if name not in _OWN_FILES and not name.startswith("provenance-")]
    if foreign and not (folder / "config.resolved.yaml").is_file():
        raise InputError(
            f"run folder {folder}: can't resume, it holds {_entries(foreign)} but no config.resolved.yaml, so it isn't "
            "a run folder. Choose the folder of the run, or an empty one."
        )


def _entries(names: list[str]) -> str:
    count = "1 entry" if len(names) == 1 else f"{len(names)} entries"
    return f"{count} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"


def _require_same_settings(stored: Path, config: Any, may_change: tuple[str, ...]) -> None:
    try:
        old = yaml.safe_load(stored.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(
            f"run folder {stored.parent}: config.resolved.yaml can't be read ({error}). Restore it."
        ) from error
    plain = to_plain(config)
    kind, ours = (one.get(CLASS_KEY) if isinstance(one, Mapping) else None for one in (old, plain))
    if kind != ours:
        raise InputError(
            f"run folder {stored.parent}: can't resume, it holds a run of another kind ({kind} in its "
            f"config.resolved.yaml, {ours} now). Choose the folder of the run, or another folder for a new one."
        )
    found = [
        one
        for one in differences(with_defaults(old, config), plain, may_change=may_change)
        if not _is_same_place(config, old.get("output"), *one)
    ]
    if found:
        listed = "\n".join(f"  {name}: {before} in the folder, {after} now" for name, before, after in found)
        counted = "1 setting differs" if len(found) == 1 else f"{len(found)} settings differ"
        raise InputError(
            f"run folder {stored.parent}: can't resume, {counted}:\n"
            f"{listed}\nResume with the settings of the folder, or choose another folder for a new run."
        )


def _is_same_place(config: Any, old_output: Any, name: str, before: Any, now: Any) -> bool:
    """Whether the setting ``name`` is a path that leads from the run folder to where it led before: written in another
    way, or moved together with the run."""
    value, output = config, getattr(config, "output", None)
    for part in name.split("."):
        value = getattr(value, part, None)
    texts = isinstance(before, str) and isinstance(old_output, str)
    if not (texts and isinstance(value, Path) and isinstance(output, Path)):
        return False
    return os.path.relpath(before, old_output) == os.path.relpath(now, output)


def _note_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Say what differs between two starts of a run and may change the last bits of its results."""
    watched = (
        ("versions", "torch"),
        ("versions", "mgrpo"),
        ("machine", "torch_threads"),
        ("machine", "processes"),
        ("machine", "gpus"),
        ("git", "commit"),
    )
    changes = []
    for group, key in watched:
        new = (now.get(group) or {}).get(key)
        old = (before.get(group) or {}).get(key, new)  # an older mgrpo may not have noted it
        if old != new:
            changes.append(f"{key} was {old}, is {new}")
    if changes:
        notice(
            f"resuming under other conditions: {'; '.join(changes)}. Results may differ in the last bits "
            "from an unbroken run."
        )


def _folder_name(step: int) -> str:
    return f"step_{step:08d}"


def _step_of(folder: Path | None) -> int:
    return 0 if folder is None else int(folder.name.removeprefix("step_"))


def _steps(steps: Mapping[int, Path]) -> str:
    return ", ".join(map(str, sorted(steps))) or "none"
