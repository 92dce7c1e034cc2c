"""Names, errors and their curves as HTML for the panel of the viewer."""

from __future__ import annotations

from html import escape

import numpy as np

from mgrpo.viz.stage import Actor, Stage, color_of, error_curve, palette_of


class Chart:
    """Names, errors and their curves with a cursor, as HTML for the panel."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        finite = [np.nanmax(actor.error_mm[0]) for actor in stage.compared if np.isfinite(actor.error_mm[0]).any()]
        self.top = max((float(value) for value in finite), default=0.0)
        self.paths = [self._path(actor) for actor in stage.actors]

    def _path(self, actor: Actor) -> str:
        if actor.error_mm is None or self.top <= 0:
            return ""
        frames, values = error_curve(actor.error_mm[0], 240)
        path, pen = [], "M"
        for x, value in zip(300 * frames / max(self.stage.frames - 1, 1), values):
            if not np.isfinite(value):
                pen = "M"
                continue
            path.append(f"{pen}{x:.1f} {74 - 70 * value / self.top:.1f}")
            pen = "L"
        return "".join(path)

    def html(self, frame: int, dark: bool) -> str:
        """The panel's HTML for a frame."""
        palette = palette_of(dark)
        rows, curves = [], []
        for actor, path in zip(self.stage.actors, self.paths):
            color = color_of(actor.color, dark)
            error = actor.error_mm[0, frame] if actor.error_mm is not None else np.nan
            if not actor.present[frame]:
                text = "no frame here"
            elif np.isfinite(error):
                text = f"<b>{error:.0f} mm</b> (mean {actor.mean_error_mm:.0f})"
            else:
                text = "recorded" if actor.color == 0 else f"{actor.samples} samples" if actor.samples > 1 else ""
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
