"""Where commands write their results: never among the files of a training run."""

from __future__ import annotations

from pathlib import Path

from mgrpo.errors import InputError
from mgrpo.runs.run_dir import run_folder_of


def refuse_run_folder(folder: Path, option: str) -> None:
    """Raise InputError where ``folder`` is the folder of a training run or lies among its checkpoints or logs, which
    the run, and whoever resumes it, take for their own. ``option`` is how the user named the folder."""
    run = run_folder_of(folder)
    if run is not None:
        raise InputError(
            f"{option} {folder}: {run} is the folder of a training run, whose files would be mixed with these; give "
            f"another folder, such as {run / 'results'}"
        )
