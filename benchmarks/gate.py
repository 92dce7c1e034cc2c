"""No timing of wrong results: the tests of what is measured run first."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable

from .machine import ROOT
from .workload import Workload


def test_files(workloads: Iterable[Workload]) -> list[str]:
    """The workloads' test files that this version has, each once."""
    named = dict.fromkeys(name for workload in workloads for name in workload.tests)
    return [name for name in named if (ROOT / name).is_file()]


def run_tests(files: Iterable[str]) -> str | None:
    """Run the test files; None when they pass, otherwise what is wrong. Without files nothing is proven."""
    files = list(files)
    if not files:
        return "there are no tests of what is to be timed"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", *files], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode == 0:
        return None
    return "the tests fail:\n" + "\n".join(done.stdout.strip().splitlines()[-15:])
