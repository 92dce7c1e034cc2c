"""What every page of this package is put together from: the frame around its sections, cards, lists, tables, charts.

A page is one file without any reference to the network; every text from outside is escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from string import Template
from typing import Any

from mgrpo.report.charts import line_chart
from mgrpo.report.data import Panel
from mgrpo.viz.palette import DARK, LIGHT


def asset(name: str) -> str:
    """Text of a file that ships beside this module."""
    return resources.files("mgrpo.report").joinpath(name).read_text(encoding="utf-8")


def script_json(value: Any) -> str:
    """JSON that can stand inside a script element: nothing in it can close the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def readable_date(date: str) -> str:
    """An ISO date to the minute, with UTC spelled out: 2026-01-02 03:04 UTC."""
    utc = " UTC" if date.endswith(("+00:00", "Z")) else ""
    return date.replace("T", " ")[:16] + utc


def paragraph(text: str, kind: str = "intro") -> str:
    """A paragraph of plain text with the class ``kind``; nothing for no text."""
    return f'<p class="{kind}">{escape(text)}</p>' if text else ""


def section(anchor: str, title: str, body: str, intro: str = "") -> str:
    """A section; ``title`` and ``intro`` are text, ``body`` is HTML."""
    heading = f'<h2 id="{anchor}-title">{escape(title)}</h2>'
    return f'<section id="{anchor}" aria-labelledby="{anchor}-title">{heading}{paragraph(intro)}{body}</section>'


def card(name: str, big: str, sub: str) -> str:
    """A card; ``name`` is text, ``big`` and ``sub`` are HTML."""
    return (
        f'<li><span class="name">{escape(name)}</span><span class="big">{big}</span><span class="sub">{sub}</span></li>'
    )


def before_and_after(before: str, after: str) -> str:
    """Two values, given as HTML, with an arrow between them."""
    return (
        f'<span class="before">{before}</span><span class="arrow" role="img" aria-label="to">→</span>'
        f'<span class="after">{after}</span>'
    )


def name_list(items: Mapping[str, str]) -> str:
    """Names and their values, as a list of pairs."""
    rows = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd></div>" for name, value in items.items()
    )
    return f'<dl class="pairs">{rows}</dl>'


def chart_grid(panels: Sequence[Panel], prefix: str, kind: str = "") -> str:
    """Line charts beside each other; ``prefix`` makes their names on the page."""
    return (
        f'<div class="charts {kind}">'
        + "".join(line_chart(panel, chart_id=f"{prefix}-{i}") for i, panel in enumerate(panels))
        + "</div>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, *, texts: Sequence[int] = ()) -> str:
    """A table of texts whose first column names the rows; ``texts`` are columns of prose, which may break lines."""

    def cell(column: int, text: str) -> str:
        # an option's dashes stay with its name
        shown = re.sub(r"--[\w.-]*\w", r"<code>\g<0></code>", escape(text)) if column in texts else escape(text)
        return f"<td{kind(column)}>{shown}</td>"

    def kind(column: int) -> str:
        return ' class="prose"' if column in texts else ""

    top = "".join(f'<th scope="col"{kind(i)}>{escape(text)}</th>' for i, text in enumerate(head))
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>' + "".join(cell(i, text) for i, text in enumerate(rest, 1)) + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="table-box card" tabindex="0" role="region" aria-label="{escape(caption, quote=True)}"><table>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


@dataclass
class Page:
    """A page as it grows, section by section."""

    title: str
    date: str
    """ISO 8601."""
    lead: Sequence[str] = ()
    """Sentences under the title."""
    cards: Sequence[str] = ()
    """Key figures, of :func:`card`."""
    provenance: str = ""
    """Last line."""
    sections: list[tuple[str, str, str]] = field(default_factory=list)
    """Anchor, name in the navigation, and HTML."""

    def add(self, anchor: str, name: str, title: str, body: str, intro: str = "") -> None:
        """Append a section."""
        self.sections.append((anchor, name, section(anchor, title, body, intro)))

    def render(self, motion: Any = ()) -> str:
        """The whole page as text. ``motion``: what the player plays, of :mod:`mgrpo.report.motion_pack`."""
        return Template(asset("page.html")).substitute(
            title=escape(self.title),
            date=escape(readable_date(self.date)),
            light=LIGHT.css_variables(),
            dark=DARK.css_variables(),
            css=asset("page.css"),
            lead="".join(paragraph(text, "lead") for text in self.lead),
            key_figures=f'<ul class="figures">{"".join(self.cards)}</ul>' if self.cards else "",
            navigation="".join(f'<li><a href="#{anchor}">{escape(name)}</a></li>' for anchor, name, _ in self.sections),
            sections="\n".join(body for _, _, body in self.sections),
            provenance=escape(self.provenance),
            motion=script_json(motion),
            script=asset("page.js"),
        )
