"""Where a result came from: git state, package versions, machine, command. Written into every run folder."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mgrpo import __version__

PACKAGES = ("torch", "numpy", "safetensors", "tyro", "rich", "pyyaml", "matplotlib", "tensorboard", "triton")
"""Distributions whose versions can change a result or a picture."""

LONGEST_DIFF = 4_000_000
"""Bytes of `git diff` kept; a longer one is cut with a note (somebody has data in the working tree)."""


@dataclass(frozen=True)
class GitState:
    """State of the checkout that the running mgrpo was imported from."""

    commit: str | None
    """Full hash of HEAD; None in a repository without commits."""
    dirty: bool
    """True when tracked files differ from HEAD or untracked files exist."""
    diff: str
    """Output of `git diff HEAD`, empty when nothing tracked differs."""
    untracked: tuple[str, ...]
    """Paths of untracked files that git doesn't ignore, relative to the repository."""


def git_state(folder: Path | None = None) -> GitState | None:
    """Read the git state of the checkout that `folder` (default: this package) belongs to.

    None when it isn't a checkout of mgrpo: no git, not in a repository, or a repository that merely contains an
    environment into which mgrpo was installed.
    """
    package = (Path(__file__).resolve().parent.parent if folder is None else folder).resolve()
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(package, "rev-parse", "--verify", "HEAD")
    root = _git(package, "rev-parse", "--show-toplevel")
    if root is None:
        return None
    root_folder = Path(root.strip())
    diff = (_git(root_folder, "diff", "HEAD") if commit else _git(root_folder, "diff", "--cached")) or ""
    if len(diff) > LONGEST_DIFF:
        diff = diff[:LONGEST_DIFF] + f"\n(cut: the whole diff has {len(diff)} characters)\n"
    untracked = tuple((_git(root_folder, "ls-files", "--others", "--exclude-standard") or "").splitlines())
    return GitState(commit.strip() if commit else None, bool(diff or untracked), diff, untracked)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            timeout=10,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def package_versions() -> dict[str, str]:
    """Installed versions of mgrpo and of `PACKAGES`; those not installed are left out."""
    versions = {"mgrpo": __version__}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def machine() -> dict[str, Any]:
    """What computes: system, Python, processors, torch threads, GPU. No host or user name."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "system": platform.system(),
        "release": platform.release(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "processes": _processes(),
        "torch_deterministic": torch.are_deterministic_algorithms_enabled(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
    }


def _processes() -> int:
    """How many processes train together."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def provenance(command: list[str] | None, *, resumed_from_step: int | None) -> tuple[dict[str, Any], str]:
    """One start of a run as plain data, and the git diff as text ("" when there is none).

    `command` are the words of the command line; None when the run was started from Python.
    """
    git = git_state()
    record: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "program": sys.argv[0] if command is None else None,
        "resumed_from_step": resumed_from_step,
        "git": None,
        "versions": package_versions(),
        "machine": machine(),
    }
    if git is not None:
        record["git"] = {"commit": git.commit, "dirty": git.dirty, "untracked": list(git.untracked)}
    return record, "" if git is None else git.diff
