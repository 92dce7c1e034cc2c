"""A protocol's results laid out like the published table: methods down, measures across under two headings, published
rows above ours and marked as such."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from .cells import csv_text, format_cell, latex_cell, latex_text, markdown_text, plain_number, stored_unit
from .evaluate import EvaluationResult
from .metrics import METRICS, MetricInfo
from .protocols import Protocol
from .published import PublishedRow
from .tables import ResultTable, Row, difference_style, result_table

ARROWS = {"lower": " ↓", "higher": " ↑", "none": ""}


@dataclass(frozen=True)
class ProtocolTable:
    """A protocol, what was measured under it, and what was published."""

    protocol: Protocol
    measured: ResultTable
    """Our rows: truth, models, means of samples, differences; columns in the protocol's order."""
    published: tuple[PublishedRow, ...]
    """Published rows, in print order."""
    data: str
    """What ours was measured on, in words."""

    @property
    def columns(self) -> tuple[MetricInfo, ...]:
        """Measures in the protocol's order."""
        return tuple(METRICS[name] for name in self.protocol.columns)

    @property
    def lines(self) -> list[tuple[str, Row]]:
        """Every line in order: ``published`` or ``measured``, and the row."""
        columns = self.protocol.columns
        published = [
            Row(row.method, "model", row.cells(columns), table_mark(self.published, row)) for row in self.published
        ]
        return [*(("published", row) for row in published), *(("measured", row) for row in self.measured.rows)]

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences under the table: what is ours and on which data, what is published and where, what differs."""
        notes = [f"measured: by this mgrpo on {self.data}."]
        sources = list(dict.fromkeys((table_mark(self.published, row), row.source, row.data) for row in self.published))
        notes += [
            f"published {mark}: as printed, {source}, {data.upper()}; nothing in these rows was computed here."
            for mark, source, data in sources
        ]
        notes += [f"{remark}." for remark in dict.fromkeys(row.remark for row in self.published) if remark]
        if self.published:
            notes.append("Compare with published rows only on the same data; the best of the measured models is bold.")
        notes += [f"Protocol {self.protocol.name}: {self.protocol.source}.", *self.protocol.remarks]
        return (*notes, *self.measured.notes)


def table_mark(rows: Sequence[PublishedRow], row: PublishedRow) -> str:
    """Which source a published row is from: ``[1]``, ``[2]`` in the order of the sources."""
    return f"[{list(dict.fromkeys(entry.source for entry in rows)).index(row.source) + 1}]"


def protocol_table(
    results: Sequence[EvaluationResult],
    protocol: Protocol,
    *,
    data: str,
    published: Sequence[PublishedRow] = (),
    title: str | None = None,
) -> ProtocolTable:
    """Lay out results under a protocol. Raises InputError like :func:`mgrpo.eval.tables.result_table`.

    Args:
        results: models evaluated as the protocol says; the first is what the others are compared with.
        protocol: gives columns, their order and headings.
        data: what the results were measured on, in words.
        published: rows to show above ours.
        title: heading; default: the protocol's.
    """
    measured = result_table(results, metrics=protocol.columns, title=title or protocol.title)
    return ProtocolTable(protocol, measured, tuple(published), data)


def _texts(table: ProtocolTable, row: Row) -> list[str]:
    return [format_cell(row.cells.get(info.name), info, signed=row.kind == "difference") for info in table.columns]


def _best(table: ProtocolTable, row: Row, info: MetricInfo) -> bool:
    """Whether the row is the best measured model; published rows take no part."""
    best = table.measured.best(info.name)
    return best is not None and table.measured.rows[best] is row


def to_rich(table: ProtocolTable, groups: Sequence[str] | None = None, *, notes: bool = True) -> Table:
    """For :class:`rich.console.Console`: one line per method, published rows dim, the best measured model bold.

    ``groups``: headings of the columns to show; None: all of them. ``notes``: whether the notes follow.
    """
    shown = Table(
        title=Text(table.measured.title),
        caption=Text("\n".join(table.notes)) if notes else None,
        caption_justify="left",
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    shown.add_column("", overflow="fold")
    shown.add_column("", no_wrap=True)
    heading = {names[0]: group for group, names in table.protocol.groups}
    group_of = {name: group for group, names in table.protocol.groups for name in names}
    columns = [info for info in table.columns if groups is None or group_of[info.name] in groups]
    for info in columns:
        unit = f"({info.unit})" if info.unit else ""
        # Long text is folded, never cut: a number without its last digits would be another number.
        shown.add_column(
            Text(f"{heading.get(info.name, '')}\n{info.label}{ARROWS[info.better]}\n{unit}"),
            justify="right",
            overflow="fold",
        )
    for index, (kind, row) in enumerate(table.lines):
        if index and kind == "measured" and table.lines[index - 1][0] == "published":
            shown.add_section()
        line = [Text(f"{row.name} {row.mark}".strip()), Text(kind)]
        for info in columns:
            cell = Text(format_cell(row.cells.get(info.name), info, signed=row.kind == "difference"))
            if _best(table, row, info):
                cell.stylize("bold")
            if row.kind == "difference" and (style := difference_style(row.cells.get(info.name), info)):
                cell.stylize(style)
            line.append(cell)
        shown.add_row(*line, style="dim" if kind == "published" or row.kind in ("truth", "mean") else "")
    return shown


def print_protocol_table(table: ProtocolTable, console: Console | None = None) -> None:
    """Print to the terminal (standard output unless a console is given); where it is too narrow for all columns, one
    table for each heading, below each other."""
    console = console or Console()
    whole = to_rich(table)
    # Measured with room to spare: a measurement never exceeds the width that it is given.
    needed = Measurement.get(console, console.options.update(max_width=1000), to_rich(table, notes=False)).minimum
    if needed <= console.width or len(table.protocol.groups) == 1:
        console.print(whole)
        return
    *first, last = [group for group, _ in table.protocol.groups]
    for group in first:
        console.print(to_rich(table, [group], notes=False))
    console.print(to_rich(table, [last]))


def to_markdown(table: ProtocolTable) -> str:
    """GitHub-flavoured Markdown; Markdown has no joined headings, so each column names its group."""
    heading = {name: group for group, names in table.protocol.groups for name in names}
    lines = [f"### {markdown_text(table.measured.title)}", ""]
    cells = [
        markdown_text(info.heading) + ARROWS[info.better] + (f"<br>{group}" if (group := heading[info.name]) else "")
        for info in table.columns
    ]
    lines += ["| | | " + " | ".join(cells) + " |", "|---|---|" + "--:|" * len(table.columns)]
    for kind, row in table.lines:
        texts = [
            f"**{text}**" if _best(table, row, info) else text for info, text in zip(table.columns, _texts(table, row))
        ]
        name = markdown_text(f"{row.name} {row.mark}".strip())
        lines.append(f"| {name} | {kind} | " + " | ".join(texts) + " |")
    return "\n".join([*lines, "", *(f"* {markdown_text(note)}" for note in table.notes)]) + "\n"


def to_latex(table: ProtocolTable) -> str:
    """A ``tabular`` with the groups as joined headings. Needs ``\\usepackage{booktabs}``."""
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(table.measured.title)}}}",
        rf"\begin{{tabular}}{{ll{'r' * len(table.columns)}}}",
        r"\toprule",
    ]
    if any(group for group, _ in table.protocol.groups):
        first, parts, rules = 3, [], []
        for group, names in table.protocol.groups:
            parts.append(rf"\multicolumn{{{len(names)}}}{{c}}{{{latex_text(group)}}}")
            rules.append(rf"\cmidrule(lr){{{first}-{first + len(names) - 1}}}")
            first += len(names)
        lines += [" & & " + " & ".join(parts) + r" \\", "".join(rules)]
    lines.append(
        " & & " + " & ".join(latex_text(info.heading + ARROWS[info.better]) for info in table.columns) + r" \\"
    )
    lines.append(r"\midrule")
    previous: tuple[str, bool] | None = None
    for kind, row in table.lines:
        section = (kind, row.kind == "difference")
        if previous is not None and section != previous:
            lines.append(r"\midrule")
        previous = section
        texts = []
        for info in table.columns:
            text = latex_cell(row.cells.get(info.name), info, signed=row.kind == "difference")
            texts.append(rf"\textbf{{{text}}}" if _best(table, row, info) else text)
        name = latex_text(f"{row.name} {row.mark}".strip())
        lines.append(f"{name} & {kind} & " + " & ".join(texts) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip\footnotesize {latex_text(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def to_csv(table: ProtocolTable) -> str:
    """One line per row and measure, plain numbers in the stored unit: where it is from (``published`` or
    ``measured``), source, row, kind, group, measure, unit, mean, standard error, ends of the interval."""
    heading = {name: group for group, names in table.protocol.groups for name in names}
    sources = [*(f"{row.source}; {row.row}" for row in table.published), *([table.data] * len(table.measured.rows))]
    lines = []
    for source, (kind, row) in zip(sources, table.lines):
        for info in table.columns:
            cell = row.cells.get(info.name)
            if cell is not None:
                numbers = (cell.mean, cell.standard_error, cell.interval_low, cell.interval_high)
                lines.append(
                    [kind, source, row.name, row.kind, heading[info.name], info.name, stored_unit(info)]
                    + [plain_number(number) for number in numbers]
                )
    return csv_text(
        (
            *("origin", "source", "row", "kind", "group", "metric", "unit"),
            *("mean", "standard_error", "interval_low", "interval_high"),
        ),
        lines,
    )


def protocol_json(table: ProtocolTable) -> dict[str, Any]:
    """The protocol and the published rows, to stand beside :func:`mgrpo.eval.tables.to_json`: published numbers as
    printed, with their units."""
    protocol = dataclasses.asdict(table.protocol)
    return {
        "protocol": protocol,
        "data": table.data,
        "published": [
            {
                "method": row.method,
                "source": row.source,
                "row": row.row,
                "data": row.data,
                "length": row.length,
                "remark": row.remark,
                "numbers": {
                    name: {
                        "value": number.value,
                        "unit": number.unit,
                        "standard_error": None if math.isnan(number.standard_error) else number.standard_error,
                    }
                    for name, number in row.numbers.items()
                },
            }
            for row in table.published
        ],
    }
