"""A figure of rows against their references: a panel for each measure, a dot and its interval for each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

from mgrpo.report.figures import _STYLE, DPI, _caption, _new_figure, _title
from mgrpo.storage import replacing
from mgrpo.viz.palette import LIGHT


@dataclass(frozen=True)
class RowPanel:
    """One measure; the lists have one entry for each row."""

    title: str
    unit: str
    labels: Sequence[str]
    means: Sequence[float]
    lows: Sequence[float]
    """Lower ends of the intervals; NaN where there is none."""
    highs: Sequence[float]
    lower_is_better: bool | None
    """None where neither direction is better."""


def draw_rows(panels: Sequence[RowPanel], path: Path, *, note: str = "", columns: int = 3) -> Path:
    """Draw and write a PNG. Each dot is a difference: blue better, red worse, grey where its interval holds zero (or is
    unknown). OSError if the file can't be written."""
    columns = max(1, min(columns, len(panels)))
    count = max((len(panel.labels) for panel in panels), default=1)
    lines = math.ceil(len(panels) / columns)
    with matplotlib.rc_context(_STYLE):
        figure = _new_figure(1.6 + 2.7 * columns, lines * (0.9 + 0.27 * count) + 0.6)
        for number, panel in enumerate(panels):
            axes = figure.add_subplot(lines, columns, number + 1)
            axes.set_title(_title(panel.title))
            axes.axvline(0, color=LIGHT.muted, linewidth=0.8)
            for place, (mean, low, high) in enumerate(zip(panel.means, panel.lows, panel.highs)):
                if not math.isfinite(mean):
                    continue
                color = LIGHT.muted
                known = math.isfinite(low) and math.isfinite(high)
                if known and (low > 0 or high < 0) and panel.lower_is_better is not None:
                    color = LIGHT.post_trained if (mean < 0) == panel.lower_is_better else LIGHT.warning
                y = len(panel.labels) - 1 - place
                if known:
                    axes.plot((low, high), (y, y), color=color, linewidth=2, solid_capstyle="butt")
                axes.plot(mean, y, "o", color=color, markersize=5)
            named = number % columns == 0
            axes.set_yticks(
                range(len(panel.labels)), list(reversed(panel.labels)) if named else [""] * len(panel.labels)
            )
            axes.set_ylim(-0.6, len(panel.labels) - 0.4)
            axes.set_xlabel(panel.unit)
        if note:
            _caption(figure, note)
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=DPI, format="png")
    return path
