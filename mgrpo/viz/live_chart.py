"""Names, errors and their curves as HTML for the panel of the viewer."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from mgrpo.viz.stage import Actor, Stage, color_of, error_curve, palette_of


class Chart:
    """Names, errors and their curves with a cursor, as HTML for the panel."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        # of all samples, so that they can be compared
        finite = [np.nanmax(actor.error_mm) for actor in stage.compared if np.isfinite(actor.error_mm).any()]
        self.top = max((float(value) for value in finite), default=0.0)
        self.paths = [[self._path(actor, sample) for sample in range(actor.samples)] for actor in stage.actors]

    def _path(self, actor: Actor, sample: int) -> str:
        if actor.error_mm is None or self.top <= 0:
            return ""
        frames, values = error_curve(actor.error_mm[sample], 240)
        path, pen = [], "M"
        for x, value in zip(300 * frames / max(self.stage.frames - 1, 1), values):
            if not np.isfinite(value):
                pen = "M"
                continue
            path.append(f"{pen}{x:.1f} {74 - 70 * value / self.top:.1f}")
            pen = "L"
        return "".join(path)

    def html(self, frame: int, dark: bool, solid: Sequence[int] | None = None) -> str:
        """The panel's HTML for a frame; ``solid`` is which of its samples is shown of each actor, else the first."""
        chosen = solid or [0] * len(self.stage.actors)
        palette = palette_of(dark)
        rows, curves = [], []
        for actor, paths, sample in zip(self.stage.actors, self.paths, chosen):
            color, path = color_of(actor.color, dark), paths[sample]
            error = actor.error_mm[sample, frame] if actor.error_mm is not None else np.nan
            if not actor.present[frame]:
                text = "no frame here"
            elif np.isfinite(error):
                text = f"<b>{error:.0f} mm</b> (mean {actor.mean_errors_mm[sample]:.0f})"
            else:
                several = f"sample {actor.numbers[sample]}, {actor.samples - 1} more" if actor.samples > 1 else ""
                text = "recorded" if actor.color == 0 else several
            rows.append(
                f'<div style="display:flex;gap:8px;align-items:center;margin:3px 0"><span style="flex:none;width:12px;'
                f'height:12px;border-radius:3px;background:{color}"></span><span style="flex:1;overflow:hidden;'
                f'text-overflow:ellipsis;white-space:nowrap">{escape(actor.name)}</span><span style="flex:none;'
                f'font-variant-numeric:tabular-nums">{text}</span></div>'
            )
            if path:
                curves.append(
                    f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.8" '
                    'vector-effect="non-scaling-stroke"/>'
                )
        picture = ""
        if curves:
            x = 300 * frame / max(self.stage.frames - 1, 1)
            lines = "".join(
                f'<line x1="0" x2="300" y1="{y}" y2="{y}" stroke="{palette.line}" vector-effect="non-scaling-stroke"/>'
                for y in (4, 39, 74)
            )
            picture = (
                f'<div style="color:{palette.muted};font-size:11px;margin-top:8px">mean joint error, 0 to '
                f'{self.top:.0f} mm</div><svg viewBox="0 0 300 78" preserveAspectRatio="none" style="width:100%;'
                f'height:84px;display:block;overflow:visible">{lines}{"".join(curves)}<line x1="{x:.2f}" x2="{x:.2f}" '
                f'y1="0" y2="78" stroke="{palette.ink}" stroke-width="1.5" vector-effect="non-scaling-stroke"/></svg>'
            )
        return (
            f'<div data-mgrpo-frame="{frame}" style="color:{palette.ink};font-size:13px;padding:2px 12px 6px">'
            f"{''.join(rows)}{picture}</div>"
        )
