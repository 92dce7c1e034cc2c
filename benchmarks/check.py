"""Measures what the wanted figures need and holds the result against them: one line each, exit code 1 where one is not
met or could not be measured."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from .run import say, use_threads

if TYPE_CHECKING:
    from .requirement import Requirement, Verdict
    from .results import Row
    from .workload import Workload


_ONLY = "figure or workload, what its name begins with (grpo: all of grpo_*), or a pattern with * and ?; repeatable"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check", description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", help=_ONLY)
    parser.add_argument("--threads", type=int, default=2, help="threads of everything (2, as the figures want)")
    parser.add_argument("--tries", type=int, default=3, help="measurements of a workload while the machine is busy (3)")
    parser.add_argument("--list", action="store_true", help="print the figures and end")
    options = parser.parse_args(arguments)
    use_threads(options.threads)

    from .checks import all_requirements
    from .suite import Options, Suite, threads
    from .workload import all_workloads

    requirements = select(all_requirements(), options.only)
    workloads = {workload.name: workload for workload in all_workloads()}
    unknown = sorted({requirement.workload for requirement in requirements} - set(workloads))
    if unknown:
        parser.error(f"there is no workload {', '.join(unknown)}")
    if not requirements:
        parser.error(f"no figure is named {' or '.join(options.only or [])}; --list prints them")
    if options.list:
        for requirement in requirements:
            workload = workloads[requirement.workload]
            print(f"{requirement.name:<32} {requirement.wanted:<18} {workload.title}, {workload.size}")
        return 0

    with threads(options.threads):
        suites = {
            False: Suite(Options(threads=options.threads)),
            True: Suite(Options(threads=options.threads, input_sets=1)),
        }
        return judge_all(
            requirements, workloads, lambda one, same: suites[same].run(one), options.threads, options.tries
        )


def select(requirements: Sequence[Requirement], patterns: Sequence[str] | None) -> list[Requirement]:
    """Requirements whose name or workload is one of the patterns or matches it, or, where there are none, begins with
    it and an underscore; all without patterns."""
    if not patterns:
        return list(requirements)
    found: list[Requirement] = []
    for pattern in patterns:
        for shape in (pattern, f"{pattern}_*"):
            matching = [
                one for one in requirements if fnmatch.fnmatch(one.name, shape) or fnmatch.fnmatch(one.workload, shape)
            ]
            if matching:
                break
        found += matching
    return [one for one in requirements if one in found]


def judge_all(
    requirements: Sequence[Requirement],
    workloads: Mapping[str, Workload],
    measure: Callable[[Workload, bool], list[Row]],
    threads: int,
    tries: int,
) -> int:
    """Measure each workload and print a line per figure. A workload is measured again only where the machine was too
    busy to measure it: a figure that was missed stays missed. ``measure`` is told whether all calls get the same
    inputs."""
    bad = 0
    for name, same in dict.fromkeys((requirement.workload, requirement.same_inputs) for requirement in requirements):
        asked = [one for one in requirements if (one.workload, one.same_inputs) == (name, same)]
        workload = workloads[name]
        verdicts: list[Verdict] = []
        for attempt in range(1, max(1, tries) + 1):
            say(f"measuring {name}" + (f", try {attempt}" if attempt > 1 else ""))
            rows = measure(workload, same)
            verdicts = [requirement.judge(rows) for requirement in asked]
            if not any(row.status == "busy" for row in rows):
                break
        for requirement, verdict in zip(asked, verdicts):
            bad += verdict.state != "met"
            print(
                f"{verdict.state.upper() if verdict.state != 'met' else 'met':<11}{requirement.name:<32} "
                f"wanted {requirement.wanted}, measured {verdict.measured}; {workload.size}, {threads} threads"
                + (", the same inputs in each call" if same else ""),
                flush=True,
            )
    print(f"{len(requirements) - bad} met, {bad} not met")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
