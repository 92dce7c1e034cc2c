"""Tables of an ablation in the paper's layout: published rows, ours, and ours minus their reference; Markdown, LaTeX,
CSV and JSON from the same cells."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.console import Console

from mgrpo.config_record import to_plain
from mgrpo.eval.cells import Cell, csv_text, latex_text, markdown_text, plain_number
from mgrpo.eval.published import Dataset
from mgrpo.eval.published_ablations import PUBLISHED_ABLATIONS
from mgrpo.eval.tables import ResultTable, Row, print_table, to_csv, to_latex, to_markdown
from mgrpo.storage import atomic_write, atomic_write_json, make_folder

from .results import BUDGET, AblationResults
from .rows import ABLATIONS


def tables(results: AblationResults, published: tuple[Dataset, ...] = ("amass",)) -> dict[str, ResultTable]:
    """One table for each family of definitions; published rows stand in that of the published definitions."""
    return {family: _table(results, family, published) for family in ABLATIONS[results.ablation].tables}


def _table(results: AblationResults, family: str, published: tuple[Dataset, ...]) -> ResultTable:
    ablation = ABLATIONS[results.ablation]
    columns = ablation.tables[family]
    rows: list[Row] = []
    notes = results.notes()
    if family == "paper":
        for printed in PUBLISHED_ABLATIONS:
            if printed.table == ablation.name and printed.data in published:
                rows.append(
                    Row(f"published, {printed.data.upper()}: {printed.method}", "published", printed.cells(columns))
                )
                if printed.remark and f"{printed.remark}." not in notes:
                    notes.append(f"{printed.remark}.")
        if rows:
            notes.append(
                f"Published rows: as printed in the paper's Table {ablation.name[-1]}, on other data with other "
                "networks; only the order of rows may be compared with ours."
            )
    for name in results.rows:
        rows.append(Row(results.label(name), "model", results.mean(name, columns)))
    for name, result in results.rows.items():
        if cells := results.difference(name, columns):
            assert result.row.reference is not None
            label = f"{results.label(name)} - {results.label(result.row.reference)}"
            rows.append(Row(label, "difference", cells))
    kind = {"paper": "definitions as published", "standard": "usual definitions"}[family]
    title = ablation.title if len(ablation.tables) == 1 else f"{ablation.title} ({kind})"
    if family == "paper" and any(info.label.endswith("*") for info in ablation.measures(family)):
        notes.append("* as published for EgoAllo and MotionGRPO; not the usual definition.")
    return ResultTable(title, ablation.measures(family), tuple(rows), tuple(notes))


_BUDGET_HEADINGS = {
    "optimizer_steps": "optimiser steps",
    "network_units": "network units",
    "encode": "encoded",
    "decode": "decoded",
    "decode_with_graph": "with gradient",
}


def budget_lines(results: AblationResults) -> list[list[str]]:
    """What each row's own training spent, as text: name, the counts (a dash where nothing is counted), seconds."""
    return [
        [
            results.label(name),
            *(f"{row.budget[key]:.0f}" if key in row.budget else "–" for key in BUDGET),
            f"{row.seconds:.1f}",
        ]
        for name, row in results.rows.items()
    ]


def plain_results(results: AblationResults, made: dict[str, ResultTable]) -> dict[str, Any]:
    """Everything behind the tables, ready for JSON: null for NaN."""
    return {
        "ablation": results.ablation,
        "settings": results.settings,
        "windows": list(results.windows),
        "missing": {name: list(seeds) for name, seeds in results.missing.items()},
        "rows": {
            name: {
                "label": row.row.label,
                "method": row.row.method,
                "changes": to_plain(row.row.changes),
                "reference": row.row.reference,
                "block": row.row.block,
                "seeds": list(row.seeds),
                "budget": row.budget,
                "seconds": row.seconds,
                "values": {
                    key: [[_number(item) for item in line] for line in value.tolist()]
                    for key, value in row.values.items()
                },
            }
            for name, row in results.rows.items()
        },
        "tables": {
            family: {
                "title": table.title,
                "notes": list(table.notes),
                "rows": [
                    {
                        "name": row.name,
                        "kind": row.kind,
                        "cells": {key: _plain_cell(cell) for key, cell in row.cells.items()},
                    }
                    for row in table.rows
                ],
            }
            for family, table in made.items()
        },
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain_cell(cell: Cell) -> dict[str, float | None]:
    return {
        "mean": _number(cell.mean),
        "interval_low": _number(cell.interval_low),
        "interval_high": _number(cell.interval_high),
    }


def write_results(results: AblationResults, folder: Path, published: tuple[Dataset, ...] = ("amass",)) -> list[Path]:
    """Write table.md, table.tex, table.csv, budget.csv and results.json; their paths."""
    made = tables(results, published)
    headings = ["row", *_BUDGET_HEADINGS.values(), "seconds"]
    lines = budget_lines(results)
    markdown = [to_markdown(table) for table in made.values()]
    markdown.append(
        "### Budgets, mean over seeds\n\n| "
        + " | ".join(headings)
        + " |\n|---|"
        + "--:|" * (len(headings) - 1)
        + "\n"
        + "\n".join("| " + " | ".join(markdown_text(text) for text in line) + " |" for line in lines)
        + "\n\nOf the row's own training; a network unit is one sequence predicted, a gradient costs two more. "
        "Evaluations don't count.\n"
    )
    latex = [to_latex(table) for table in made.values()]
    latex.append(
        "\\begin{table}\n\\centering\n\\caption{Budgets, mean over seeds}\n"
        f"\\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}\n\\toprule\n"
        + " & ".join(map(latex_text, headings))
        + " \\\\\n\\midrule\n"
        + "\n".join(" & ".join(map(latex_text, line)) + r" \\" for line in lines)
        + "\n\\bottomrule\n\\end{tabular}\n\\end{table}\n"
    )
    plain_budget = [
        [name, *(plain_number(row.budget.get(key, math.nan)) for key in BUDGET), f"{row.seconds:.3f}"]
        for name, row in results.rows.items()
    ]
    csv_lines = ["family,row,kind,metric,unit,mean,standard_error,interval_low,interval_high"]
    for family, table in made.items():
        csv_lines += [f"{family},{line}" for line in to_csv(table).splitlines()[1:]]
    make_folder(folder)
    texts = {
        "table.md": "\n".join(markdown),
        "table.tex": "\n".join(latex),
        "table.csv": "\n".join(csv_lines) + "\n",
        "budget.csv": csv_text(("row", *BUDGET, "seconds"), plain_budget),
    }
    for name, text in texts.items():
        atomic_write(folder / name, text)
    atomic_write_json(folder / "results.json", plain_results(results, made))
    return [folder / name for name in (*texts, "results.json")]


def print_results(results: AblationResults, console: Console | None = None) -> None:
    """The tables on standard output."""
    for table in tables(results).values():
        print_table(table, console)
