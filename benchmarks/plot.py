"""Draws the committed results: how many times faster than eager torch, by operation."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .machine import ROOT
from .results import RESULTS, Row, read_device
from .run import duration

PICTURES = ROOT / "docs" / "images"
DPI = 160
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
HEADLINES = (
    "fk_quaternion",
    "fk_matrix_backward",
    "procrustes",
    "so3_near",
    "so3_near_backward",
    "rewards",
    "rewards_state",
    "sde_step_log_prob",
    "sde_noisy_step_log_prob",
    "sde_log_prob_backward",
    "rollout",
    "grpo_loss_backward",
    "metrics",
    "noise",
    "perlin",
)
"""Workloads that the README shows, without their sizes; everything else stands in benchmarks/README.md. What takes
microseconds of an iteration, as the advantages do, stands there alone."""
BAR = 0.26
"""Height of a bar; a workload's group has the height 1."""


@dataclass(frozen=True)
class Group:
    """One operation at one size: the fastest of each kind."""

    title: str
    size: str
    reference: Row
    ours: Row
    compiled: Row | None
    peer: Row | None
    """The fastest package."""

    def speed_up(self, row: Row) -> float:
        """How many times faster than the fastest eager reference."""
        return (self.reference.median_us or 0.0) / (row.median_us or 1.0)


def groups(rows: Iterable[Row], *, headlines: bool = True, mode: str = "call") -> list[Group]:
    """The measured workloads, the greatest speed-up first; those without a measured reference or without ours are left
    out. ``headlines``: only the largest size of each of :data:`HEADLINES`."""
    by_workload: dict[str, list[Row]] = {}
    for row in rows:
        if row.measured and row.mode == mode:
            by_workload.setdefault(row.workload, []).append(row)
    found: dict[str, Group] = {}
    for name, measured in by_workload.items():
        kinds = {kind: fastest(measured, kind) for kind in ("reference", "ours", "compile", "peer")}
        reference, ours = kinds["reference"], kinds["ours"]
        kind = without_size(name) if headlines else name
        if reference is None or ours is None or (headlines and kind not in HEADLINES):
            continue
        if kind not in found or ours.items > found[kind].ours.items:
            found[kind] = Group(ours.title, ours.size, reference, ours, kinds["compile"], kinds["peer"])
    return sorted(found.values(), key=lambda group: (-group.speed_up(group.ours), group.title))


def without_size(workload: str) -> str:
    """``fk_matrix_32768_backward`` -> ``fk_matrix_backward``; the network of an iteration counts as a size."""
    return re.sub(r"_(\d[\d.]*[kM]?|tiny|egoallo)(?=_|$)", "", workload)


def fastest(rows: Iterable[Row], kind: str) -> Row | None:
    """The fastest row of a kind, None where there is none."""
    return min((row for row in rows if row.kind == kind), key=lambda row: row.median_us or 0.0, default=None)


def for_one_machine(rows: Sequence[Row]) -> list[Row]:
    """Rows of the largest thread count alone: bars of different thread counts say nothing about each other."""
    most = max((int(row.threads) for row in rows), default=0)
    return [row for row in rows if int(row.threads) == most]


def draw(rows: Sequence[Row], palette: Any, *, headlines: bool = True) -> Any:
    """A figure of bars in the colours of ``palette`` (:mod:`mgrpo.viz.palette`); None where nothing was measured."""
    from matplotlib.figure import Figure

    rows = for_one_machine(rows)
    shown = groups(rows, headlines=headlines)
    if not shown:
        return None
    kinds = (
        ("ours", palette.post_trained, "mgrpo.kernels"),
        ("compiled", palette.prior, "torch.compile of the same eager code"),
        ("peer", palette.ground_truth, "fastest package that offers it"),
    )
    figure = Figure(figsize=(9.6, 1.5 + 0.62 * len(shown)), dpi=DPI, facecolor=palette.surface)
    axes = figure.subplots()
    axes.set_facecolor(palette.surface)
    highest, lowest = 1.0, 1.0
    for place, group in enumerate(shown):
        for number, (attribute, colour, _) in enumerate(kinds):
            row = getattr(group, attribute)
            if row is None:
                continue
            ratio = group.speed_up(row)
            highest, lowest = max(highest, ratio), min(lowest, ratio)
            y = place + (number - 1) * BAR
            axes.barh(y, ratio - 1, left=1, height=0.88 * BAR, color=colour, zorder=3)
            label = ratio_text(ratio) + (f"  {package(row)}" if attribute == "peer" else "")
            axes.annotate(
                label,
                (max(ratio, 1.0), y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5 if attribute == "ours" else 7.5,
                fontweight="bold" if attribute == "ours" else "normal",
                color=palette.ink if attribute == "ours" else palette.muted,
                zorder=4,
            )
    axes.set_xscale("log")
    axes.set_xlim(min(0.5, lowest / 1.3), highest * 2.2)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    ticks = [tick for tick in TICKS if lowest <= tick <= highest]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks], fontsize=8, color=palette.muted)
    axes.xaxis.minorticks_off()
    axes.set_yticks(range(len(shown)), ["" for _ in shown])
    for place, group in enumerate(shown):
        axes.annotate(
            group.title, (0, place), xycoords=("axes fraction", "data"), xytext=(-8, 5), textcoords="offset points",
            ha="right", va="center", fontsize=9, color=palette.ink,
        )  # fmt: skip
        axes.annotate(
            f"{group.size}: {time_text(group.ours)}", (0, place), xycoords=("axes fraction", "data"), xytext=(-8, -7),
            textcoords="offset points", ha="right", va="center", fontsize=7.5, color=palette.muted,
        )  # fmt: skip
    axes.axvline(1, color=palette.ink, linewidth=1.0, zorder=5)
    axes.grid(axis="x", color=palette.line, linewidth=0.8, zorder=0)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    inch = 1 / figure.get_figheight()
    figure.subplots_adjust(left=0.43, right=0.985, top=1 - 0.95 * inch, bottom=0.42 * inch)
    title = "Times faster than eager PyTorch"
    figure.text(0.02, 1 - 0.30 * inch, title, fontsize=13, fontweight="bold", color=palette.ink)
    figure.text(
        0.02, 1 - 0.53 * inch, where_text(shown[0].ours), fontsize=8.5, color=palette.muted,
    )  # fmt: skip
    handles = [
        figure_patch(colour, label)
        for attribute, colour, label in kinds
        if any(getattr(group, attribute) is not None for group in shown)
    ]
    figure.legend(
        handles=handles, loc="upper right", ncols=1, frameon=False, fontsize=8, labelcolor=palette.ink,
        bbox_to_anchor=(0.99, 1 - 0.06 * inch), handlelength=1.1, handleheight=0.9, labelspacing=0.25,
    )  # fmt: skip
    return figure


def figure_patch(colour: str, label: str) -> Any:
    """An entry of the legend."""
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, label=label)


def ratio_text(ratio: float) -> str:
    """``128x``, ``3.4x``."""
    return f"{ratio:,.0f}x" if ratio >= 20 else f"{ratio:.1f}x"


def time_text(row: Row) -> str:
    """Time per item with a fitting unit: ``50 ns per frame``."""
    return f"{duration(row.ns_per_item or 0.0)} per {row.item}"


def package(row: Row) -> str:
    """Name of a peer without its variant: ``smplfitter``."""
    return row.implementation.split(",")[0]


def where_text(row: Row) -> str:
    """Where and when: device, threads, torch, date."""
    machine = row.cpu if row.device.startswith("cpu") else row.device.replace("-", " ").upper()
    threads = f", {row.threads} threads" if row.device.startswith("cpu") else ""
    return f"{machine}{threads}, torch {row.torch.split('+')[0]}, {row.date}; a logarithmic scale"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw ``docs/images/speed.png`` and ``speed-dark.png`` from the csv files of a device."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=main.__doc__)
    parser.add_argument("--results", type=Path, help="a device's folder (the CPU's in benchmarks/results)")
    parser.add_argument("--into", type=Path, default=PICTURES, help="folder of the pictures (docs/images)")
    parser.add_argument("--name", default="speed", help="of the files, without ending (speed)")
    parser.add_argument("--all", action="store_true", help="every workload, not only the README's")
    options = parser.parse_args(arguments)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from mgrpo.viz.palette import DARK, LIGHT

    folder = options.results or cpu_folder()
    if folder is None:
        parser.error("there are no results of a CPU in benchmarks/results; 'make bench' measures them")
    for palette, suffix in ((LIGHT, ""), (DARK, "-dark")):
        figure = draw(read_device(folder), palette, headlines=not options.all)
        if figure is None:
            parser.error(f"{folder} holds no complete measurement")
        FigureCanvasAgg(figure)
        path = options.into / f"{options.name}{suffix}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, facecolor=palette.surface, metadata={"Software": None})
        print(path)
    return 0


def cpu_folder(results: Path = RESULTS) -> Path | None:
    """The CPU's folder of results; the last by name where several machines were measured, None where none was."""
    return max((path for path in results.glob("cpu-*") if any(path.glob("*.csv"))), default=None)


if __name__ == "__main__":
    raise SystemExit(main())
