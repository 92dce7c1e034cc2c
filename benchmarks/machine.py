"""Where a number comes from: device, processor, versions, git state; and the machine's own rates."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

INSTRUCTION_SETS = (
    ("AVX-512", "avx512", {"avx512f", "avx512bw", "avx512vl", "avx512dq"}),
    ("AVX2", "avx2", {"avx2", "fma"}),
)
"""Best first: name, part of a folder's name, flags in /proc/cpuinfo."""


def processor(path: Path = Path("/proc/cpuinfo")) -> tuple[str, str]:
    """The processor as a generic model and as part of a folder's name: what decides the speed, not whose machine it
    is."""
    architecture = platform.machine() or "unknown"
    try:
        text = path.read_text("utf-8")
    except OSError:
        text = ""
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    name, slug = architecture.replace("_", "-"), architecture.replace("_", "-")
    for title, part, needed in INSTRUCTION_SETS:
        if needed <= flags:
            return f"{name}, {title}, {os.cpu_count()} CPUs", f"{slug}-{part}"
    return f"{name}, {os.cpu_count()} CPUs", slug


def device_name(device: str) -> str:
    """Name of the folder below ``results`` for a device: ``cpu-x86-64-avx512``, ``nvidia-h100-80gb-hbm3``."""
    if device == "cpu":
        return f"cpu-{processor()[1]}"
    import torch

    name = torch.cuda.get_device_name(torch.device(device))
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@lru_cache(maxsize=1)
def git_state(root: Path = ROOT) -> tuple[str, str]:
    """Commit (12 digits, or "unknown") and "yes" or "no" for changes besides benchmark results and their pictures."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "--short=12", "HEAD")
    # A run writes these itself: the second file would always come from a changed tree.
    changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results", ":!docs/images")
    return commit or "unknown", "unknown" if changed is None else ("yes" if changed else "no")


def version_of(distribution: str) -> str:
    """Installed version of a distribution, or ""."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def provenance(device: str, threads: int) -> dict[str, str]:
    """The columns that say where a row comes from."""
    import torch

    commit, dirty = git_state()
    driver = ""
    if device != "cpu":
        driver = command_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit,
        "dirty": dirty,
        "device": device_name(device),
        "cpu": processor()[0],
        "threads": str(threads),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version_of("triton"),
        "cuda": torch.version.cuda or "",
        "driver": driver,
    }


def command_output(*command: str) -> str:
    """What a program prints, "" where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def matmul_rate(device: str, seconds: float = 0.3) -> float:
    """Floating-point operations per second of a large float32 matrix product: what the arithmetic units can do."""
    import torch

    from .harness import CpuClock, CudaClock, Plan, measure

    n = 1024 if device == "cpu" else 8192
    a, b, out = (torch.rand(n, n, device=device) for _ in range(3))
    clock: Any = CpuClock() if device == "cpu" else CudaClock(device, flush=False)
    timings, failures = measure(
        {"matmul": [lambda: torch.mm(a, b, out=out)]}, clock, Plan(rounds=3, seconds=seconds, sample_seconds=0.02)
    )
    return 0.0 if failures else 2.0 * n**3 / timings["matmul"].p20
