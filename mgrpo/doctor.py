"""`mgrpo doctor`: what this machine has, which backend serves each op and why, which files were found."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mgrpo import __version__, kernels
from mgrpo.body import default_body
from mgrpo.body.smplh import find_smplh
from mgrpo.data import load_motion
from mgrpo.errors import MgrpoError
from mgrpo.runs.provenance import git_state, package_versions

Status = Literal["ok", "note", "problem"]

OPTIONAL_PACKAGES = {
    "matplotlib": "charts of the report",
    "imageio-ffmpeg": "mp4 films",
    "pillow": "pictures",
    "tensorboard": "TensorBoard logs (metrics.jsonl is always written)",
    "triton": "the triton backend, on NVIDIA GPUs",
}
"""Packages that mgrpo can do without, and what is missing then."""


@dataclass(frozen=True)
class DoctorConfig:
    """Show what this machine has, which backend serves each op and why, and which files were found."""

    json: bool = False
    """Print everything as JSON instead of tables."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    """What was looked at."""
    value: str
    """What was found."""
    status: Status = "ok"
    """ok; note: something optional is missing; problem: something that mgrpo needs doesn't work."""
    hint: str = ""
    """What to do, or what it costs."""


@dataclass(frozen=True)
class BackendRow:
    """How one op is served for tensors on one kind of device."""

    op: str
    device: str
    chosen: str | None
    """Backend that a call takes; None when the forced one (MGRPO_BACKEND) can't serve it."""
    backends: dict[str, str]
    """For every backend "yes" or the reason why not."""


def run_doctor(config: DoctorConfig) -> int:
    """Print the report. Returns 0, or 1 when something that mgrpo needs doesn't work."""
    sections = examine()
    rows = backend_rows()
    if config.json:
        print(json.dumps(as_plain(sections, rows), indent=2))
    else:
        print_report(sections, rows)
    return 1 if any(finding.status == "problem" for findings in sections.values() for finding in findings) else 0


def examine() -> dict[str, list[Finding]]:
    """Everything but the backends, by section. No finding raises: what fails is reported as a problem."""
    sections = {"software": software, "machine": machine, "compilers": compilers, "files": files, "folders": folders}
    found: dict[str, list[Finding]] = {}
    for name, look in sections.items():
        try:
            found[name] = look()
        except Exception as error:  # a doctor that falls ill helps nobody
            found[name] = [Finding(name, f"{type(error).__name__}: {error}", "problem", "please report this")]
    switches = [Finding(key, value) for key, value in sorted(os.environ.items()) if key.startswith("MGRPO_")]
    if switches:
        found["environment"] = switches
    return found


def software() -> list[Finding]:
    """Versions of mgrpo, Python, torch and the packages used."""
    git = git_state()
    source = ""
    if git is not None:
        source = f", checkout at {git.commit[:12] if git.commit else 'no commit'}{' with changes' if git.dirty else ''}"
    found = [
        Finding("mgrpo", f"{__version__} in {Path(__file__).parent}{source}"),
        Finding("python", f"{platform.python_version()} ({sys.executable})"),
        Finding("torch", f"{torch.__version__} ({f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPU only'})"),
    ]
    versions = package_versions()
    found += [
        Finding(name, versions[name]) for name in ("numpy", "safetensors", "tyro", "rich", "pyyaml") if name in versions
    ]
    for name, purpose in OPTIONAL_PACKAGES.items():
        version = _version(name)
        if version is not None:
            found.append(Finding(name, version))
        elif name != "triton" or torch.cuda.is_available():
            found.append(Finding(name, "not installed", "note", f"without it: no {purpose}; pip install {name}"))
        else:
            found.append(Finding(name, "not installed", "note", f"only for {purpose}"))
    return found


def _version(distribution: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> list[Finding]:
    """Processors, threads, memory, GPUs."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS")
    found = [
        Finding("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
        Finding("processors", f"{usable} usable of {os.cpu_count()}, {torch.backends.cpu.get_cpu_capability()}"),
        Finding("torch threads", f"{torch.get_num_threads()}{f' (OMP_NUM_THREADS={threads})' if threads else ''}"),
    ]
    memory = memory_gigabytes()
    if memory is not None:
        total, available = memory
        low = available < 1.5
        hint = "the demo needs about 1.5 GB" if low else ""
        found.append(
            Finding("memory", f"{available:.1f} GB available of {total:.1f} GB", "note" if low else "ok", hint)
        )
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            Finding(
                f"GPU {index}",
                f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, "
                f"compute capability {properties.major}.{properties.minor}",
            )
        )
    if not torch.cuda.device_count():
        driver = shutil.which("nvidia-smi")
        if driver and torch.version.cuda is None:
            found.append(
                Finding(
                    "GPU",
                    "not usable",
                    "note",
                    "there is an NVIDIA driver, but this torch is for CPUs; install a CUDA torch",
                )
            )
        else:
            found.append(Finding("GPU", "none", "ok", "everything runs on the processors"))
    return found


def memory_gigabytes() -> tuple[float, float] | None:
    """Total and available main memory in GB (10^9 bytes), within this container's limit; None where it can't be
    told."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
        total, available = (int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        try:
            total = available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, ValueError, OSError):
            return None
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        if limit < total:
            total, available = limit, min(available, limit - used)
    except (OSError, ValueError):  # no such limit, or "max"
        pass
    return total / 1e9, available / 1e9


def compilers() -> list[Finding]:
    """C++ compiler, nvcc, and the native extension."""
    found = []
    # CXX may hold a launcher and flags
    candidates = [shlex.split(os.environ["CXX"])[0]] if os.environ.get("CXX", "").strip() else ["c++", "g++", "clang++"]
    compiler = next((path for path in map(shutil.which, candidates) if path), None)
    if compiler:
        answer = _first_line([compiler, "--version"])
        broken = answer.startswith("does not")
        hint = "needed to build the native extension" if broken else ""
        found.append(Finding("C++ compiler", f"{compiler}: {answer}", "note" if broken else "ok", hint))
    else:
        found.append(
            Finding(
                "C++ compiler",
                "none",
                "note",
                f"looked for {', '.join(candidates)}; needed to build the native extension",
            )
        )
    nvcc = shutil.which("nvcc") or next((str(p) for p in (_cuda_home() / "bin" / "nvcc",) if p.is_file()), None)
    if nvcc:
        found.append(Finding("nvcc", f"{nvcc}: {_first_line([nvcc, '--version'], containing='release')}"))
    else:
        wanted = torch.cuda.is_available()
        found.append(
            Finding(
                "nvcc",
                "none",
                "note" if wanted else "ok",
                "needed to build the CUDA kernels" if wanted else "only for NVIDIA GPUs",
            )
        )
    problem = native_problem()
    if problem is None:
        found.append(Finding("native extension", "built and loaded"))
    else:
        found.append(
            Finding(
                "native extension",
                "not loaded",
                "note",
                f"{problem}; the reference backend serves every op, several times slower",
            )
        )
    return found


def native_problem() -> str | None:
    """Why no op has the cpp backend here; None when at least one has."""
    if any("cpp" in kernels.available_backends(op) for op in kernels.registered_ops()):
        return None
    reasons = {row.backends.get("cpp", "") for row in backend_rows()} - {"", "not written for this op"}
    return "; ".join(sorted(reasons)) or "no op was written for it"


def _cuda_home() -> Path:
    return Path(os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda")


def _first_line(command: list[str], containing: str = "") -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"does not run ({error})"
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if containing in line]
    if done.returncode != 0:
        return f"does not work (exit code {done.returncode})"
    return lines[0] if lines else "says nothing about its version"


def files() -> list[Finding]:
    """Body models and motion."""
    found = []

    def check(name: str, look: Callable[[], str]) -> None:
        try:
            found.append(Finding(name, look()))
        except (MgrpoError, OSError) as error:
            found.append(Finding(name, "missing or damaged", "problem", f"{error} (reinstall mgrpo)"))

    def body() -> str:
        model = default_body()
        mesh = "without mesh" if model.mesh is None else "with mesh"
        return f"{len(model.parents)} joints below the root, {mesh} (ships with mgrpo)"

    def motion() -> str:
        clips = load_motion("demo", default_body().body_only())
        return f"{len(clips)} clips, {sum(map(len, clips))} frames (ships with mgrpo)"

    check("default body", body)
    check("demo motion", motion)
    try:
        path = find_smplh()
        found.append(Finding("SMPL-H", f"{path} ({path.stat().st_size / 1e6:.0f} MB)"))
    except MgrpoError as error:
        found.append(Finding("SMPL-H", "not found", "note", str(error)))  # its text says where it was looked for
    return found


def folders() -> list[Finding]:
    """Folders that mgrpo writes to."""
    found = []
    for name, folder in (("run folders", Path("runs")), ("temporary files", Path(tempfile.gettempdir()))):
        existing = next(place for place in (folder.resolve(), *folder.resolve().parents) if place.is_dir())
        free = shutil.disk_usage(existing).free / 1e9
        try:
            with tempfile.TemporaryFile(dir=existing) as file:
                file.write(b"x")
                file.flush()
        except OSError as error:
            status: Status = "note" if name == "run folders" else "problem"
            found.append(
                Finding(
                    name,
                    f"{folder.resolve()}: can't be written ({error.strerror})",
                    status,
                    "choose another place with --output",
                )
            )
            continue
        low = free < 0.5
        found.append(
            Finding(
                name,
                f"{folder.resolve()}: writable, {free:.1f} GB free",
                "note" if low else "ok",
                "nearly full" if low else "",
            )
        )
    return found


def backend_rows() -> list[BackendRow]:
    """For every op, and for every kind of device present, which backend serves it and why the others don't."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    rows = []
    for op in kernels.registered_ops():
        for device in devices:
            # ops on numbers take floats, ops that draw noise are keyed by whole numbers; ask about what the op takes
            asked = [torch.empty(0, device=device, dtype=dtype) for dtype in (torch.float32, torch.int64)]
            answers = [parse_explanation(kernels.explain_backend(op, tensor)) for tensor in asked]
            chosen, backends = max(answers, key=lambda answer: list(answer[1].values()).count("yes"))
            rows.append(BackendRow(op, device, chosen, backends))
    return rows


def parse_explanation(text: str) -> tuple[str | None, dict[str, str]]:
    """Take `mgrpo.kernels.explain_backend`'s table apart: the chosen backend, and "yes" or the reason for each."""
    chosen, backends = None, {}
    for line in text.splitlines()[1:]:
        marked = line.strip().startswith("->")
        name, _, answer = line.replace("->", "  ", 1).strip().partition(" ")
        backends[name] = answer.strip().removeprefix("no: ")
        chosen = name if marked else chosen
    return chosen, backends


def as_plain(sections: dict[str, list[Finding]], rows: list[BackendRow]) -> dict[str, Any]:
    """The report as data for JSON."""
    plain: dict[str, Any] = {name: [vars(finding) for finding in findings] for name, findings in sections.items()}
    return plain | {"backends": [vars(row) for row in rows]}


_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}
_MARKS = {"ok": "✓", "note": "•", "problem": "✗"}


def print_report(sections: dict[str, list[Finding]], rows: list[BackendRow], console: Console | None = None) -> None:
    """Print the report to the terminal (standard output unless a console is given)."""
    console = console or Console()
    for title, findings in sections.items():
        table = Table(
            title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 1)
        )
        table.add_column(width=1)
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for finding in findings:
            value = Text(finding.value)
            if finding.hint:
                value.append(f"\n{_shortened(finding.hint)}", style="dim")
            table.add_row(Text(_MARKS[finding.status], style=_STYLES[finding.status]), finding.name, value)
        console.print(table)
        console.print()
    console.print(_backend_table(rows))
    reasons = _reasons(rows)
    if reasons:
        console.print()
        for mark, reason in reasons.items():
            console.print(Text(f"  {mark} {reason}", style="dim"))


def _shortened(text: str, longest: int = 6) -> str:
    """A long list of places cut to its beginning; `--json` shows all of it."""
    lines: list[str] = []
    run: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("  ") and line.endswith(".npz") and "=" not in line:
            run.append(line)
            continue
        lines += (
            run
            if len(run) <= longest
            else [*run[: longest - 2], f"  ... and {len(run) - longest + 2} more places (see --json)"]
        )
        lines.append(line)
        run = []
    return "\n".join(lines[:-1])


def _backend_table(rows: list[BackendRow]) -> Table:
    table = Table(
        title="backends (the one in use is marked →)", title_justify="left", title_style="bold", header_style="bold"
    )
    table.add_column("op", no_wrap=True)
    table.add_column("tensors on")
    names = list(rows[0].backends) if rows else []
    for name in names:
        table.add_column(name)
    marks = {reason: mark for mark, reason in _reasons(rows).items()}
    for row in rows:
        cells = []
        for name in names:
            answer = row.backends[name]
            arrow = "→ " if name == row.chosen else "  "
            if answer == "yes":
                cells.append(Text(f"{arrow}yes", style="green" if name == row.chosen else ""))
            else:
                cells.append(Text(f"{arrow}no {marks[answer]}", style="dim"))
        table.add_row(row.op, row.device, *cells)
    return table


def _reasons(rows: list[BackendRow]) -> dict[str, str]:
    """Every different reason once, numbered, so that the table stays narrow."""
    found = [answer for row in rows for answer in row.backends.values() if answer != "yes"]
    return {f"({number})": reason for number, reason in enumerate(dict.fromkeys(found), start=1)}
