"""Everything that a machine with a CUDA GPU is needed for, in one run: build, tests, sanitizers, measurements.

Needs torch with CUDA and, for the CUDA kernels, nvcc; installs nothing and fetches nothing. Each stage is a process of
its own: one that fails, hangs or crashes the GPU's context is recorded, and the next one runs. The most important come
first; what the budget has no time for is said. A short table comes last. Whole results go to the folder ``$OUT`` where
that is set, else to ``benchmarks/results/<device>``, logs then to ``build/gpu``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .machine import ROOT, command_output, device_name
from .results import RESULTS, Row, read_rows, write_by_op, write_rows

RESERVE = 6.0
"""Seconds kept back for the table and the files."""
LEAST = 5.0
"""A stage with less time than this is not begun."""

OPERATIONS = (
    "motion_rewards", "project_so3", "forward_kinematics", "procrustes_residual", "sde_step", "projected_sde_step",
    "sde_log_prob", "sde_log_ratio", "motion_guidance", "iteration", "stitching",
    "inference", "motion_metrics", "grpo_loss", "philox_normal", "perlin_noise", "group_advantages",
)  # fmt: skip
"""Timed in this order, each in a process of its own."""
COMPILED = (
    "rewards_1024", "procrustes_131072", "sde_step_log_prob_1024", "sde_log_prob_1024_backward", "fk_matrix_131072",
)  # fmt: skip
"""Workloads that torch.compile is measured on."""


@dataclass(frozen=True)
class Stage:
    """One process of the run."""

    name: str
    command: tuple[str, ...]
    seconds: float
    """The longest it may take, of the whole budget of 600; scaled with another budget."""
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: str | None = None
    """A program without which it is skipped."""
    instead_of: str | None = None
    """It is run only where the stage of this name was not ok, and left out of the table otherwise."""
    finding: Callable[[str], str] = lambda output: last_line(output)
    """What to show of its output in the table."""


@dataclass(frozen=True)
class Outcome:
    """How a stage ended."""

    stage: Stage
    state: str
    """ok, failed, timed out, skipped."""
    seconds: float
    finding: str


def last_line(output: str) -> str:
    """The last line that is not empty."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:110] if lines else ""


def sanitizer_finding(output: str) -> str:
    """The sanitizer's own count, and how many of its reports name one of our kernels."""
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", output)
    reports = [block for block in re.split(r"\n=+ *\n", output) if re.search(r"=========\s+(?:at|by|in)\b", block)]
    named = sum("mgrpo" in block for block in reports)
    calls = re.findall(r"^\d+ of \d+ calls .*$", output, re.MULTILINE)
    parts = [summary[-1] if summary else "no summary", *calls[-1:]]
    return ", ".join([*parts, f"{named} reports name our kernels"] if reports else parts)


def stages(python: str, csv_folder: Path, quick: bool) -> list[Stage]:
    """The run, the most important first."""
    pytest = (python, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "--continue-on-collection-errors")
    # Workers that share the GPU: most tests wait for the host.
    workers = ("-n", "8", "--dist", "loadfile") if importlib.util.find_spec("xdist") is not None else ()
    build = (python, "setup.py", "build_ext", "--inplace")
    calls = (python, "-m", "benchmarks.gpu_calls")
    timing = (python, "-m", "benchmarks.run", "--device", "cuda", "--into", str(csv_folder))
    timing += ("--quick",) if quick else ("--budget", "{budget}")
    found = [
        Stage("build", build, 150, {"MGRPO_BUILD": "cuda", **architecture()}),
        Stage("build without CUDA", build, 60, {"MGRPO_BUILD": "cpu"}, instead_of="build"),
        Stage("first calls", calls, 90),
        Stage("tests of the kernels", (*pytest, *workers, "tests/kernels"), 180),
    ]
    for number, operation in enumerate(OPERATIONS):
        seconds = 75 if operation == "iteration" else 40 if number < 4 else 20
        kinds = ("--only", "ours", "--only", "reference", "--only", "peer")
        found.append(Stage(f"time {operation}", (*timing, "--op", operation, *kinds), seconds))
    for tool in ("memcheck", "racecheck", "initcheck"):
        found.append(
            Stage(
                f"sanitizer {tool}",
                ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *calls, "--backend", "cuda", "--plain"),
                90,
                # Without torch's cache every tensor is an allocation of its own, whose ends the tool knows.
                {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
                needs="compute-sanitizer",
                finding=sanitizer_finding,
            )
        )
    compiled = tuple(word for name in COMPILED for word in ("--op", name))
    found += [
        # Late, and apart: compiling takes many times as long as measuring.
        Stage("time torch.compile", (*timing, *compiled, "--only", "compile"), 120),
        Stage("tests marked gpu", (*pytest, "-m", "gpu", "tests"), 60),
        Stage("all other tests", (*pytest, *workers, "tests", "--ignore=tests/kernels"), 240),
    ]
    return found


def architecture() -> dict[str, str]:
    """The variable that makes the build compile for the GPU at hand alone, which takes a fraction of the time."""
    import torch

    if "TORCH_CUDA_ARCH_LIST" in os.environ or not torch.cuda.is_available():
        return {}
    major, minor = torch.cuda.get_device_capability()
    return {"TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}


def run_stage(stage: Stage, seconds: float, log: Path) -> Outcome:
    """Run a stage for at most ``seconds``; its output is appended to the log."""
    if stage.needs is not None and shutil.which(stage.needs) is None:
        return Outcome(stage, "skipped", 0.0, f"{stage.needs} is not installed")
    # A quarter of the time for imports, inputs and comparisons, which a budget of timings does not count.
    command = [part.replace("{budget}", f"{0.75 * seconds:.0f}") for part in stage.command]
    begin = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **stage.environment}
    try:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that its children end with it
        )
    except OSError as error:
        return Outcome(stage, "failed", 0.0, str(error))
    try:
        output, _ = process.communicate(timeout=seconds)
        state = "ok" if process.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        end_group(process)
        output, _ = process.communicate()
        state = "timed out"
    took = time.monotonic() - begin
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n##### {stage.name}: {state} after {took:.1f} s\n$ {' '.join(command)}\n{output}\n")
    finding = stage.finding(output)
    if state == "failed":
        finding = f"exit code {process.returncode}: {finding}"
    return Outcome(stage, state, took, finding)


def end_group(process: subprocess.Popen[str], patience: float = 5.0) -> None:
    """End a process and every process of its group, those too that outlive the first or do not heed SIGTERM."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        end = time.monotonic() + patience
        while group_lives(process) and time.monotonic() < end:
            time.sleep(0.02)


def group_lives(process: subprocess.Popen[str]) -> bool:
    """Whether any process of the group of ``process`` still runs; those that only wait to be collected do not."""
    process.poll()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the name, which may hold anything, come: state, parent, group.
            state, _, group = status.read_text(errors="replace").rpartition(")")[2].split()[:3]
        except (OSError, ValueError):  # it ended meanwhile
            continue
        if int(group) == process.pid and state not in "ZX":
            return True
    return False


def run_all(
    plan: Sequence[Stage],
    budget: float,
    log: Path,
    say: Callable[[str], None],
    now: Callable[[], float] = time.monotonic,
) -> list[Outcome]:
    """Run the stages one after the other within the budget."""
    begin, outcomes = now(), []
    for stage in plan:
        if stage.instead_of is not None and any(
            outcome.stage.name == stage.instead_of and outcome.state == "ok" for outcome in outcomes
        ):
            continue
        left = budget - RESERVE - (now() - begin)
        if left < LEAST:
            outcomes.append(Outcome(stage, "skipped", 0.0, "no time left"))
            continue
        seconds = min(left, stage.seconds * max(1.0, budget / 600))
        say(f"[{now() - begin:5.0f} s] {stage.name}, at most {seconds:.0f} s")
        outcome = run_stage(stage, seconds, log)
        say(f"          {outcome.state}: {outcome.finding}")
        outcomes.append(outcome)
    return outcomes


def outcome_table(outcomes: Sequence[Outcome]) -> str:
    """How the stages ended."""
    lines = [f"{'stage':<28}{'state':<11}{'seconds':>8}  finding"]
    for one in outcomes:
        lines.append(f"{one.stage.name:<28}{one.state:<11}{one.seconds:>8.1f}  {one.finding}")
    return "\n".join(lines)


def speed_table(rows: Sequence[Row]) -> str:
    """A line per workload: ours against the others."""
    by_workload: dict[str, list[Row]] = {}
    for row in rows:
        by_workload.setdefault(row.workload, []).append(row)
    lines = [
        f"{'workload':<32}{'ours':<14}{'µs':>9}{'graph µs':>10}{'host µs':>9}{'eager':>9}{'compile':>9}{'peer':>8}"
        f"{'GB/s':>8}{'of copy':>9}{'error':>9}"
    ]
    for name, group in by_workload.items():
        calls = {row.implementation: row for row in group if row.mode == "call"}
        graphs = {row.implementation: row for row in group if row.mode == "graph" and row.measured}
        measured = [row for row in calls.values() if row.measured]
        for row in (row for row in calls.values() if row.kind == "ours"):
            backend = row.implementation
            if not row.measured:
                lines.append(f"{name:<32}{backend:<14}  {row.status}: {row.note}")
                continue
            graph = graphs.get(backend)
            best = graph if graph is not None else row
            columns = [f"{row.median_us:>9.1f}", f"{graph.median_us if graph else float('nan'):>10.1f}"]
            columns.append(f"{row.host_us if row.host_us is not None else float('nan'):>9.1f}")
            for kind, width in (("reference", 9), ("compile", 9), ("peer", 8)):
                times = [other.median_us for other in measured if other.kind == kind]
                columns.append(f"{min(times) / row.median_us:>{width - 1}.1f}x" if times else " " * width)
            columns.append(f"{best.gb_per_s:>8.0f}" if best.gb_per_s else " " * 8)
            share = best.gb_per_s / best.copy_gb_per_s if best.gb_per_s and best.copy_gb_per_s else None
            columns.append(f"{share:>9.0%}" if share else " " * 9)
            columns.append(f"{row.relative_error:>9.1e}" if row.relative_error is not None else " " * 9)
            lines.append(f"{name:<32}{backend:<14}{''.join(columns)}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="tools/gpu", description=__doc__)
    parser.add_argument("--budget", type=float, default=600, metavar="SECONDS", help="for everything (600)")
    parser.add_argument("--only", action="append", metavar="WORD", help="stages whose name has this word; repeatable")
    parser.add_argument("--quick", action="store_true", help="one short sample per measurement: does it work")
    parser.add_argument("--dry-run", action="store_true", help="print the stages and end")
    options = parser.parse_args(arguments)

    out = os.environ.get("OUT")
    folder = Path(out) if out else ROOT / "build" / "gpu"
    csv_folder = folder / "csv"
    plan = [
        stage
        for stage in stages(sys.executable, csv_folder, options.quick)
        if not options.only or any(word in stage.name for word in options.only)
    ]
    if not plan:
        parser.error(f"no stage has {' or '.join(options.only)} in its name; --dry-run prints them")
    if options.dry_run:
        print(f"budget {options.budget:.0f} s, results to {folder if out else RESULTS / '<device>'}, logs to {folder}")
        for stage in plan:
            variables = "".join(f"{name}={value} " for name, value in stage.environment.items())
            print(f"{stage.name:<28}{stage.seconds:>5.0f} s  {variables}{' '.join(stage.command)}")
        return 0
    problem = no_gpu()
    if problem is not None:
        print(f"tools/gpu: {problem}", file=sys.stderr)
        return 2

    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(csv_folder, ignore_errors=True)
    log = folder / "log.txt"
    log.write_text("\n".join(machine_lines()) + "\n", "utf-8")
    print(log.read_text("utf-8"), flush=True)
    outcomes = run_all(plan, options.budget, log, lambda text: print(text, flush=True))

    rows = [row for path in sorted(csv_folder.glob("*/*.csv")) for row in read_rows(path)]
    order = {operation: number for number, operation in enumerate(OPERATIONS)}
    rows.sort(key=lambda row: order.get(row.op, len(order)))
    summary = "\n\n".join(["\n".join(machine_lines()), speed_table(rows), outcome_table(outcomes)])
    device = device_name("cuda")
    keep_results(rows, summary, Path(out) if out else None, device)
    shutil.rmtree(csv_folder, ignore_errors=True)
    print(f"\n{speed_table(rows)}\n\n{outcome_table(outcomes)}", flush=True)
    return 0 if all(outcome.state == "ok" for outcome in outcomes if outcome.finding != "no time left") else 1


def keep_results(rows: Sequence[Row], summary: str, out: Path | None, device: str) -> None:
    """Few files for ``$OUT``, which may be carried off one by one: all rows in one csv. Otherwise the usual places."""
    if out is None:
        write_by_op(RESULTS, rows)
        place = RESULTS / device
        place.mkdir(parents=True, exist_ok=True)
    else:
        place = out
        (out / "results.csv").unlink(missing_ok=True)
        write_rows(out / "results.csv", rows)
    (place / "summary.txt").write_text(summary + "\n", "utf-8")


def no_gpu() -> str | None:
    """Why there is nothing to do here, or None."""
    try:
        import torch
    except ImportError:
        return f"{sys.executable} has no torch; name the interpreter that has it: PYTHON=... make gpu"
    if not torch.version.cuda:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    return None


def machine_lines() -> list[str]:
    """What the machine is."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    return [
        f"{properties.name}, {properties.multi_processor_count} multiprocessors, "
        f"{properties.total_memory / 2**30:.0f} GiB, L2 {properties.L2_cache_size / 2**20:.0f} MiB, "
        f"compute capability {properties.major}.{properties.minor}",
        f"driver {command_output('nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader')}, "
        f"torch {torch.__version__}, Python {sys.version.split()[0]}, "
        f"{last_line(command_output('nvcc', '--version')) or 'no nvcc'}, "
        f"{'compute-sanitizer' if shutil.which('compute-sanitizer') else 'no compute-sanitizer'}",
    ]


if __name__ == "__main__":
    raise SystemExit(main())
