"""The figure of an ablation: what each row changes against its reference."""

from __future__ import annotations

import math
from pathlib import Path

from mgrpo.eval.cells import Cell
from mgrpo.report.row_figure import RowPanel, draw_rows

from .results import AblationResults
from .rows import ABLATIONS

_NONE = Cell(math.nan, math.nan)


def write_figure(results: AblationResults, path: Path) -> Path | None:
    """Draw the paired differences of every row in all measures of the last table (the usual definitions where there are
    two) and write a PNG; None where no row has a finished reference."""
    ablation = ABLATIONS[results.ablation]
    family, columns = list(ablation.tables.items())[-1]
    differences = {name: cells for name in results.rows if (cells := results.difference(name, columns))}
    if not differences:
        return None
    panels = []
    for info in ablation.measures(family):
        unit = {"": "", "%": ", percentage points"}.get(info.unit, f", {info.unit}")
        cells = [found.get(info.name, _NONE) for found in differences.values()]
        panels.append(
            RowPanel(
                title=info.label,
                unit=f"difference{unit}",
                labels=[results.label(name) for name in differences],
                means=[info.scale * cell.mean for cell in cells],
                lows=[info.scale * cell.interval_low for cell in cells],
                highs=[info.scale * cell.interval_high for cell in cells],
                lower_is_better=None if info.better == "none" else info.better == "lower",
            )
        )
    note = (
        "Dot: mean of the row minus its reference, window by window and seed by seed; line: 95 % interval over "
        "recordings and training seeds. Blue: better, red: worse, grey: no clear change, or no good direction."
    )
    return draw_rows(panels, path, note=note)
