"""One number of a table and how it is written: terminal and Markdown text, LaTeX, CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .metrics import MetricInfo


@dataclass(frozen=True)
class Cell:
    """One number of a table, in the unit of its column as stored (not scaled for printing)."""

    mean: float
    """Mean over windows and seeds, or mean paired difference."""
    standard_error: float
    """Standard error of it; NaN where unknown."""
    interval_low: float = math.nan
    """Lower end of its 95 % interval; NaN where there is none."""
    interval_high: float = math.nan
    """Upper end."""

    @property
    def has_interval(self) -> bool:
        """Whether both ends are known."""
        return not (math.isnan(self.interval_low) or math.isnan(self.interval_high))

    @property
    def significant(self) -> bool:
        """Whether the value differs from zero: by its interval, else by more than two standard errors."""
        if self.has_interval:
            return self.interval_low > 0 or self.interval_high < 0
        return abs(self.mean) > 2 * self.standard_error


def format_cell(cell: Cell | None, info: MetricInfo, *, signed: bool = False, plus_minus: str = " ± ") -> str:
    """``mean [low, high]`` where there is an interval, else ``mean ± standard error``, in the column's unit and digits;
    a dash for no value, the mean alone where the error is unknown."""
    if cell is None or math.isnan(cell.mean):
        return "–"
    digits = f"{'+' if signed else ''}.{info.decimals}f"
    text = format(info.scale * cell.mean, digits)
    if cell.has_interval:
        low, high = (format(info.scale * end, digits) for end in (cell.interval_low, cell.interval_high))
        return f"{text} [{low}, {high}]"
    if math.isnan(cell.standard_error):
        return text
    return f"{text}{plus_minus}{info.scale * cell.standard_error:.{info.decimals}f}"


def latex_cell(cell: Cell | None, info: MetricInfo, *, signed: bool = False) -> str:
    """The same for LaTeX."""
    text = format_cell(cell, info, signed=signed, plus_minus=r" $\pm$ ")
    # A plain hyphen would be set as a hyphen, not as a minus sign.
    return "--" if text == "–" else text.replace("-", "$-$")


def markdown_text(text: str) -> str:
    """Text with Markdown's special characters escaped."""
    for character in ("\\", "|", "*", "_", "`"):
        text = text.replace(character, f"\\{character}")
    return text


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "³": r"$^3$", "±": r"$\pm$", "–": "--", "ᵀ": r"$^T$",
    "ℵ": r"$\aleph$", "↓": r"$\downarrow$", "↑": r"$\uparrow$",
}  # fmt: skip


def latex_text(text: str) -> str:
    """Text with LaTeX's special characters escaped; the few others that the tables use become commands."""
    return "".join(_LATEX.get(character, character) for character in text)


def stored_unit(info: MetricInfo) -> str:
    """Unit of the stored value of a measure; empty for a plain number."""
    return info.unit if info.scale == 1.0 else ""


def plain_number(value: float) -> str:
    """A number for CSV; empty for NaN."""
    return "" if math.isnan(value) else f"{value:.9g}"


def counted(number: int, noun: str) -> str:
    """A number with its noun, which takes an s unless there is one."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def csv_text(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """CSV with a header, lines ended by a plain newline."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue()
