"""Writes the tables of speeds into README.md and benchmarks/README.md from the committed csv files, so that they cannot
differ from them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .machine import ROOT
from .plot import for_one_machine, groups, package, ratio_text, time_text
from .results import RESULTS, Row, read_device

PAGES = {ROOT / "README.md": True, ROOT / "benchmarks" / "README.md": False}
"""Page -> whether it shows the headlines only."""
BEGIN = "<!-- speed: written by python -m benchmarks.readme -->"
END = "<!-- end of speed -->"

PICTURE = """<picture>
  <source media="(prefers-color-scheme: dark)" srcset="docs/images/speed-dark.png">
  <img alt="Bars: for each operation, how many times faster than eager PyTorch are mgrpo.kernels, torch.compile and the
  fastest package that offers it. The table below has the numbers." src="docs/images/speed.png">
</picture>"""


def section(results: Path = RESULTS, *, headlines: bool = True) -> str:
    """The part between the markers: a table for each device that was measured, CPUs first."""
    folders = sorted(
        (path for path in results.glob("*") if path.is_dir() and any(path.glob("*.csv"))),
        key=lambda path: (not path.name.startswith("cpu-"), path.name),
    )
    parts = [part for folder in folders if (part := device_table(read_device(folder), headlines))]
    if not parts:
        return "No measurement has been committed yet; `make bench` makes one."
    on_cpu = folders[0].name.startswith("cpu-")
    return "\n\n".join([*([PICTURE] if headlines and on_cpu else []), *parts])


def device_table(rows: Sequence[Row], headlines: bool = True) -> str:
    """A device's table, "" where nothing complete was measured."""
    rows = for_one_machine(rows)
    shown = groups(rows, headlines=headlines)
    if not shown:
        return ""
    first = shown[0].ours
    on_cpu = first.device.startswith("cpu")
    machine = f"{first.cpu}, {first.threads} threads" if on_cpu else f"`{first.device}`, driver {first.driver}"
    lines = [
        f"{machine}; torch {first.torch}, Python {first.python}, commit `{first.commit}`, {first.date}. "
        'Times are medians; eager torch is `backend="reference"` (the faster of its forms), and every result was '
        "compared with float64.",
        "",
        "| operation | size | eager torch | `torch.compile` | best package | mgrpo | speed-up | of its bound |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for group in shown:
        peer = "" if group.peer is None else f"{time_text(group.peer)} ({package(group.peer)})"
        compiled = "" if group.compiled is None else time_text(group.compiled)
        share = group.ours.bound_share
        bound = f"{share:.0%} ({group.ours.bound})" if share else ""
        lines.append(
            f"| {group.title} | {group.size} | {time_text(group.reference)} | {compiled} | {peer} | "
            f"**{time_text(group.ours)}** | **{ratio_text(group.speed_up(group.ours))}** | {bound} |"
        )
    return "\n".join(lines)


def rewritten(text: str, body: str) -> str:
    """The page with ``body`` between its markers. Raises ValueError where they are missing or out of order."""
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise ValueError(f"the page needs the line {BEGIN!r} and, below it, the line {END!r}")
    return f"{text[: begin + len(BEGIN)]}\n\n{body}\n\n{text[end:]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the sections on speed; with --check only say whether they are current."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 unless it is current")
    options = parser.parse_args(arguments)
    stale = []
    for page, headlines in PAGES.items():
        text = page.read_text("utf-8")
        wanted = rewritten(text, section(headlines=headlines))
        if text != wanted:
            stale.append(str(page.relative_to(ROOT)))
            if not options.check:
                page.write_text(wanted, "utf-8")
    if options.check and stale:
        print(f"{' and '.join(stale)} not current: run python -m benchmarks.readme", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
