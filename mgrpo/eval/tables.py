"""Result tables for people and for papers: terminal, Markdown, LaTeX, CSV and JSON from the same cells."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mgrpo.data.split import recording_of
from mgrpo.errors import InputError
from mgrpo.storage import atomic_write, make_folder
from mgrpo.terminal.encoding import plain

from .bootstrap import FEW_CLUSTERS, RESAMPLES
from .cells import (
    Cell,
    counted,
    csv_text,
    format_cell,
    latex_cell,
    latex_text,
    markdown_text,
    plain_number,
    stored_unit,
)
from .evaluate import EvaluationResult, compare
from .metrics import METRICS, MetricInfo, metric_names
from .statistics import PairedDifference, Statistic

Family = Literal["standard", "paper", "all"]
RowKind = Literal["truth", "model", "mean", "difference", "published"]


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    """What the line is about."""
    kind: RowKind
    """``truth``: the recorded motion; ``model``: a model's samples; ``mean``: the mean motion of a model's samples
    (shows how much of a gain averaging alone would give); ``difference``: paired difference of two models;
    ``published``: printed elsewhere."""
    cells: dict[str, Cell]
    """Cells by name of the measure; absent where the measure has no meaning for the row."""
    mark: str = ""
    """Sign that refers to a note, such as ``[1]``."""


@dataclass(frozen=True)
class ResultTable:
    """Columns and rows, ready to be written in any format."""

    title: str
    """Heading."""
    columns: tuple[MetricInfo, ...]
    """Measures in order."""
    rows: tuple[Row, ...]
    """Lines in order."""
    notes: tuple[str, ...]
    """Sentences under the table: how many windows, what the errors are, what the starred columns are."""

    def best(self, column: str) -> int | None:
        """Index of the ``model`` row with the best mean in a column; None with fewer than two models, no better
        direction, or where another model's mean is printed the same."""
        info = next((one for one in self.columns if one.name == column), METRICS[column])
        models = [
            (row.cells[column].mean, index)
            for index, row in enumerate(self.rows)
            if row.kind == "model" and column in row.cells and not math.isnan(row.cells[column].mean)
        ]
        if len(models) < 2 or info.better == "none":
            return None
        (best, index), (second, _) = sorted(models, reverse=info.better == "higher")[:2]
        same = f"{info.scale * best:.{info.decimals}f}" == f"{info.scale * second:.{info.decimals}f}"
        return None if same else index


def result_table(
    results: Sequence[EvaluationResult],
    *,
    family: Family = "standard",
    metrics: Sequence[str] | None = None,
    title: str | None = None,
    notes: Sequence[str] | None = None,
) -> ResultTable:
    """Lay out results as a table: ground truth, then each model, the mean of its samples, and the paired difference to
    the first model.

    Args:
        results: models evaluated on the same windows with the same settings; the first is what the others are compared
            with.
        family: which definitions to show, see :data:`mgrpo.eval.metrics.METRICS`.
        metrics: names of measures to show instead, in this order.
        title: heading.
        notes: sentences under the table; None: how the windows were sampled, from the results' settings.

    Raises:
        InputError: no results, two of one name, an unknown measure, or results that can't be compared.
    """
    if not results:
        raise InputError("result_table() needs at least one evaluation result.")
    names = [result.name for result in results]
    if len(set(names)) != len(names):
        raise InputError(f"result_table() needs a different name for each result, got {', '.join(names)}.")
    if metrics is not None and (unknown := [name for name in metrics if name not in METRICS]):
        raise InputError(f"There is no measure named {', '.join(unknown)}; choose among {', '.join(METRICS)}.")
    first = results[0]
    measured = {name for result in results for name in result.statistics()}
    chosen = list(metrics) if metrics is not None else metric_names(family, measured)
    rows = [Row("ground truth", "truth", _cells(first.ground_truth_statistics(), chosen))]
    for result in results:
        rows.append(Row(result.name, "model", _cells(result.statistics(), chosen)))
        if result.samples > 1:
            name = f"{result.name}, mean of {result.samples} samples"
            rows.append(Row(name, "mean", _cells(result.mean_of_samples_statistics(), chosen)))
    for result in results[1:]:
        differences = compare(first, result)
        rows.append(Row(f"{result.name} - {first.name}", "difference", _cells(differences, chosen)))
    rows = [row for row in rows if row.cells]
    columns = tuple(METRICS[name] for name in chosen)
    said = (*_notes(first, columns, len(results) > 1), *broken_notes(results)) if notes is None else tuple(notes)
    return ResultTable(title or "Evaluation", columns, tuple(rows), said)


def _cells(found: dict[str, Statistic] | dict[str, PairedDifference], chosen: Sequence[str]) -> dict[str, Cell]:
    return {
        name: Cell(
            statistic.mean,
            statistic.standard_error,
            getattr(statistic, "interval_low", math.nan),
            getattr(statistic, "interval_high", math.nan),
        )
        for name in chosen
        if (statistic := found.get(name)) is not None
    }


def broken_notes(results: Sequence[EvaluationResult]) -> tuple[str, ...]:
    """A sentence for each model with samples that hold NaN or infinity: its means are over the others alone."""
    found = []
    for result in results:
        broken = result.values["mpjpe_mm"].isnan() if "mpjpe_mm" in result.values else torch.zeros(0)
        if count := int(broken.sum()):
            found.append(
                f"{result.name}: {count} of {counted(broken.numel(), 'sample')} held NaN or infinity and could not be "
                "scored; its numbers are of the others alone."
            )
    return tuple(found)


def interval_note(result: EvaluationResult, subject: str = "[ , ]") -> str:
    """What the intervals of differences (``subject``: how the reader meets them) mean, with a warning where there are
    too few clips for them."""
    clips = len({recording_of(name) for name in result.window_names})
    if clips < 2:
        return "With one clip there is no interval over clips."
    note = f"{subject}: 95 % bootstrap interval (BCa) over {counted(clips, 'clip')}, {RESAMPLES} draws of whole clips."
    return note + (" So few clips make it too narrow." if clips < FEW_CLUSTERS else "")


def _notes(result: EvaluationResult, columns: Sequence[MetricInfo], compared: bool) -> tuple[str, ...]:
    settings = result.settings
    eta = "" if settings["kernel"] == "ode" else f", eta {settings['eta']:g}"
    drawn = (
        f"{counted(result.windows, 'window')} of {settings['frames']} frames, {counted(len(result.seeds), 'seed')}, "
        f"{counted(result.samples, 'sample')} each; sampler {settings['kernel']}{eta}, "
        f"{counted(settings['steps'], 'step')}."
    )
    if "guidance" in settings:
        drawn += f" ℵ: optimised ({settings['guidance']} sampling) against sliding feet and jitter."
    notes = [
        drawn,
        "± is the standard error over windows and seeds; differences are paired window by window, with the same noise.",
    ]
    if compared:
        notes.append(interval_note(result))
    if any(info.label.endswith("*") for info in columns):
        notes.append(
            "* as published for EgoAllo and MotionGRPO, to stand beside their numbers; not the usual definition."
        )
    return tuple(notes)


def to_rich(
    table: ResultTable,
    rows: Sequence[int] | None = None,
    *,
    title: bool = True,
    notes: bool = True,
    tight: bool = False,
    measures_across: bool = False,
    ascii_only: bool = False,
) -> Table:
    """The table for :class:`rich.console.Console`: best model bold, significant differences coloured, measures down and
    models across (``measures_across``: the other way round); of ``rows`` only those given by index. ``tight``: as
    narrow as numbers and words allow. ``ascii_only``: spelled for a terminal that has no other characters, so that
    columns stay aligned there.

    A difference is coloured green or red where its interval leaves out zero (without an interval: where it is more than
    two standard errors from zero).
    """
    shown = Table(
        title=table.title if title else None,
        caption="\n".join(table.notes) if notes else None,
        caption_justify="left",
        header_style="bold",
        title_justify="left",
    )
    chosen = range(len(table.rows)) if rows is None else rows
    spell = plain if ascii_only else str
    arrows = {"lower": " ↓", "higher": " ↑", "none": ""}
    headings = [spell(info.heading + arrows[info.better]) for info in table.columns]
    names = [table.rows[index].name for index in chosen]
    styles = ["dim" if table.rows[index].kind in ("truth", "mean", "published") else "" for index in chosen]
    lines = [[_terminal_cell(table, index, info, spell) for info in table.columns] for index in chosen]
    if measures_across:
        shown.add_column("")
        for heading in headings:
            shown.add_column(heading, justify="right")
        for name, style, line in zip(names, styles, lines):
            shown.add_row(name, *line, style=style)
        return shown
    shown.add_column("", no_wrap=not tight, min_width=_longest_word(*headings))
    for name, style, line in zip(names, styles, lines):
        # left to itself, rich breaks and cuts numbers where the terminal is narrow
        width = max([_longest_word(name), *(len(text.plain) for text in line)])
        shown.add_column(name, justify="right", style=style, min_width=width, width=width if tight else None)
    for number, heading in enumerate(headings):
        shown.add_row(Text(heading), *(line[number] for line in lines))
    return shown


def _terminal_cell(table: ResultTable, index: int, info: MetricInfo, spell: Callable[[str], str]) -> Text:
    row = table.rows[index]
    cell = row.cells.get(info.name)
    text = Text(spell(format_cell(cell, info, signed=row.kind == "difference")))
    if index == table.best(info.name):
        text.stylize("bold")
    if row.kind == "difference" and (style := difference_style(cell, info)):
        text.stylize(style)
    return text


def _longest_word(*texts: str) -> int:
    return max((len(word) for text in texts for word in text.split()), default=0)


def difference_style(cell: Cell | None, info: MetricInfo) -> str:
    """Green for an improvement, red for a change to the worse, nothing where the difference may be chance."""
    if cell is None or info.better == "none" or not cell.significant:
        return ""
    return "green" if (cell.mean < 0) == (info.better == "lower") else "red"


def print_table(table: ResultTable, console: Console | None = None) -> None:
    """Print to the terminal (standard output unless a console is given): models across, or down where there are more of
    them than measures and the measures fit; where it is too narrow for all columns, tables of some of them below each
    other, so that no number is cut.

    Where nobody watches (no standard stream is a terminal, ``COLUMNS`` isn't set), the table takes the width it needs.
    """
    if console is None:
        console = Console()
        if "COLUMNS" not in os.environ and not any(map(os.isatty, (0, 1, 2))):
            console.width = max(console.width, _width(table, console))
    ascii_only = console.options.ascii_only
    if len(table.rows) > len(table.columns):
        bare = to_rich(table, title=False, notes=False, measures_across=True, ascii_only=ascii_only)
        if _measured(bare, console) <= console.width:
            console.print(to_rich(table, measures_across=True, ascii_only=ascii_only))
            return
    parts = _parts_that_fit(table, console)
    for number, part in enumerate(parts):
        first, last = number == 0, number == len(parts) - 1
        tight = _width(table, console, part) > console.width
        console.print(to_rich(table, part, title=first, notes=last, tight=tight, ascii_only=ascii_only))


def _width(table: ResultTable, console: Console, rows: Sequence[int] | None = None, *, tight: bool = False) -> int:
    """Width of a table of some rows, models across."""
    return _measured(
        to_rich(table, rows, title=False, notes=False, tight=tight, ascii_only=console.options.ascii_only), console
    )


def _measured(shown: Table, console: Console) -> int:
    """Width with room to spare: a measurement never exceeds the width that it is given."""
    return Measurement.get(console, console.options.update(max_width=10_000), shown).maximum


def _parts_that_fit(table: ResultTable, console: Console) -> list[list[int]]:
    """The rows of a table, cut where the columns printed for them would exceed the console's width; at least one row in
    each part."""
    parts: list[list[int]] = [[]]
    for index in range(len(table.rows)):
        if parts[-1] and _width(table, console, [*parts[-1], index], tight=True) > console.width:
            parts.append([])
        parts[-1].append(index)
    return parts


def to_markdown(table: ResultTable) -> str:
    """GitHub-flavoured Markdown, one line per row of the table, best model bold, notes below."""
    lines = [f"### {table.title}", ""]
    lines.append("| | " + " | ".join(markdown_text(info.heading) for info in table.columns) + " |")
    lines.append("|---|" + "--:|" * len(table.columns))
    for index, row in enumerate(table.rows):
        texts = []
        for info in table.columns:
            text = format_cell(row.cells.get(info.name), info, signed=row.kind == "difference")
            texts.append(f"**{text}**" if table.best(info.name) == index else text)
        lines.append(f"| {markdown_text(row.name)} | " + " | ".join(texts) + " |")
    return "\n".join([*lines, "", *(markdown_text(note) for note in table.notes)]) + "\n"


def to_latex(table: ResultTable) -> str:
    """A ``tabular`` with booktabs rules inside a ``table``; best model bold. Needs ``\\usepackage{booktabs}``."""
    arrows = {"lower": r" $\downarrow$", "higher": r" $\uparrow$", "none": ""}
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(table.title)}}}",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
    ]
    lines.append(r"\toprule")
    lines.append(" & " + " & ".join(latex_text(info.heading) + arrows[info.better] for info in table.columns) + r" \\")
    lines.append(r"\midrule")
    for index, row in enumerate(table.rows):
        if index and row.kind == "difference" and table.rows[index - 1].kind != "difference":
            lines.append(r"\midrule")
        texts = []
        for info in table.columns:
            text = latex_cell(row.cells.get(info.name), info, signed=row.kind == "difference")
            texts.append(rf"\textbf{{{text}}}" if table.best(info.name) == index else text)
        lines.append(f"{latex_text(row.name)} & " + " & ".join(texts) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip\footnotesize {latex_text(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def to_csv(table: ResultTable) -> str:
    """One line per row and measure: row, kind, measure, unit, mean, standard error, ends of the interval; plain numbers
    in the stored unit, empty for NaN."""
    return csv_text(
        ("row", "kind", "metric", "unit", "mean", "standard_error", "interval_low", "interval_high"),
        [
            (
                row.name,
                row.kind,
                info.name,
                stored_unit(info),
                plain_number(row.cells[info.name].mean),
                plain_number(row.cells[info.name].standard_error),
                plain_number(row.cells[info.name].interval_low),
                plain_number(row.cells[info.name].interval_high),
            )
            for row in table.rows
            for info in table.columns
            if info.name in row.cells
        ],
    )


def per_window_csv(results: Sequence[EvaluationResult]) -> str:
    """Every single value: one line per model, window, seed and sample, measures as columns; empty where a measure can't
    be scored.

    Values of a whole group (diversity) are repeated on each of its samples.
    """
    names = [
        name for name in METRICS if any(name in result.values or name in result.group_values for result in results)
    ]
    lines: list[list[Any]] = []
    for result in results:
        found = {name: value.tolist() for name, value in (result.values | result.group_values).items()}
        for window, clip in enumerate(result.window_names):
            for column, seed in enumerate(result.seeds):
                for member in range(result.samples):
                    cells = []
                    for name in names:
                        value = found[name][window][column] if name in found else math.nan
                        cells.append(plain_number(value[member] if isinstance(value, list) else value))
                    lines.append([result.name, window, clip, seed, member, *cells])
    return csv_text(("model", "window", "clip", "seed", "sample", *names), lines)


def to_json(results: Sequence[EvaluationResult]) -> dict[str, Any]:
    """Everything in numbers, ready for ``json.dumps``: settings, statistics of all measures of both families,
    differences; NaN as None."""
    first = results[0]
    return {
        "settings": dict(first.settings)
        | {
            "windows": first.windows,
            "clips": sorted(set(first.window_names)),
            "seeds": list(first.seeds),
            "samples": first.samples,
        },
        "metrics": {
            name: {
                "label": info.label,
                "unit": stored_unit(info),
                "family": info.family,
                "better": info.better,
                "meaning": info.doc,
            }
            for name, info in METRICS.items()
        },
        "ground_truth": _plain(first.ground_truth_statistics()),
        "models": [
            {
                "name": result.name,
                "statistics": _plain(result.statistics()),
                "mean_of_samples": _plain(result.mean_of_samples_statistics()),
            }
            for result in results
        ],
        "differences": [
            {"first": first.name, "second": result.name, "statistics": _plain(compare(first, result))}
            for result in results[1:]
        ],
    }


def _plain(found: dict[str, Any]) -> dict[str, dict[str, float | int | None]]:
    return {
        name: {
            field: None if isinstance(value, float) and math.isnan(value) else value
            for field, value in vars(statistic).items()
        }
        for name, statistic in found.items()
    }


def write_tables(
    folder: str | Path,
    results: Sequence[EvaluationResult],
    *,
    family: Family = "standard",
    title: str | None = None,
    texts: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Path]:
    """Write ``evaluation.{md,tex,csv,json}`` (the table of ``family``; the JSON holds both) and
    ``evaluation_windows.csv`` into ``folder``.

    Each file appears whole or not at all. ``texts`` replaces the table of ``family`` by one that was laid out
    elsewhere, by kind: markdown, latex, csv; ``extra`` is added to the JSON. Returns the paths by kind: markdown,
    latex, csv, json, windows. Raises StorageError when the disk refuses.
    """
    folder = Path(folder).expanduser()
    if texts is None:
        table = result_table(results, family=family, title=title)
        texts = {"markdown": to_markdown(table), "latex": to_latex(table), "csv": to_csv(table)}
    contents = {
        "markdown": ("evaluation.md", texts["markdown"]),
        "latex": ("evaluation.tex", texts["latex"]),
        "csv": ("evaluation.csv", texts["csv"]),
        "json": ("evaluation.json", json.dumps(to_json(results) | dict(extra or {}), indent=2, allow_nan=False) + "\n"),
        "windows": ("evaluation_windows.csv", per_window_csv(results)),
    }
    paths = {}
    make_folder(folder)
    for kind, (name, text) in contents.items():
        paths[kind] = folder / name
        atomic_write(folder / name, text)
    return paths
