"""The HTML page of a demo's report: motion, results, and how the three stages trained."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from string import Template

from mgrpo.report.charts import (
    SMOOTHING,
    bar_chart,
    change_glyph,
    change_percent,
    change_scale,
    line_chart,
    reward_panels,
    whisker_note,
)
from mgrpo.report.data import Estimate, MetricRow, ReportData
from mgrpo.report.findings import (
    compute_findings,
    difference_text,
    headline_sentence,
    interval_text,
    reward_change,
    verdict,
)
from mgrpo.report.glossary import METRIC_TEXTS, TERMS
from mgrpo.report.motion_pack import pack_clips
from mgrpo.report.numbers import fixed, seconds, signed
from mgrpo.report.parts import Page, asset, before_and_after, card, chart_grid, name_list, readable_date
from mgrpo.report.pipeline import pipeline_svg
from mgrpo.viz.comparison import ROLE_LABELS

_MARKS = {"good": "✓", "bad": "✗", "neutral": "–", "warning": "!"}
_TONES = {"good": "good", "bad": "bad", "neutral": "neutral", "warning": "warning"}
_VERDICTS = {
    "better": "✓ better",
    "worse": "✗ worse",
    "unclear": "no clear change",
    "changed": "changed",
    "same": "no clear change",
    "missing": "–",
}


def _unbroken(text: str) -> str:
    """A text whose errors and intervals stay on the line of their number."""
    return re.sub(r"(?<=\[)[^\[\]]*(?=\])", lambda found: found[0].replace(" ", "\u00a0"), text).replace(
        " ± ", "\u00a0±\u00a0"
    )


def _estimate(estimate: Estimate | None, decimals: int) -> str:
    """A table cell's text: mean ± standard error."""
    if estimate is None or not math.isfinite(estimate.mean):
        return "–"
    se = f' <span class="se">± {fixed(estimate.se, decimals)}</span>' if math.isfinite(estimate.se) else ""
    return fixed(estimate.mean, decimals) + se


# ---- top of the page


def _key_figures(data: ReportData) -> list[str]:
    """Up to four cards: the headline metrics, the reward, the perceptual model, diversity."""
    cards = []
    for row in [row for row in data.metrics if row.headline and row.family != "paper"][:2]:
        big = before_and_after(fixed(row.prior.mean, row.decimals), fixed(row.post_trained.mean, row.decimals))
        found = verdict(row)
        word = {"better": "better", "worse": "worse", "unclear": "no clear change", "same": "no clear change"}.get(
            found
        )
        sub = f"{escape(difference_text(row))}, paired" + (f': <b class="{found}">{word}</b>' if word else "")
        cards.append(card(f"{row.label}, held-out", f"{big}<small>{escape(row.unit)}</small>", sub))
    if data.rewards and data.rewards[0].y:
        change = reward_change(data.rewards[0])
        if math.isfinite(change.difference):
            big = before_and_after(fixed(change.first, change.decimals), fixed(change.last, change.decimals))
            cards.append(card("Mean total reward", big, f"{change.difference_text}, first to last tenth"))
    if data.perceptual_accuracy is not None and math.isfinite(data.perceptual_accuracy.mean):
        share = data.perceptual_accuracy
        sub = "prefers the recording to a sample" + (
            f"; ± {fixed(100 * share.se, 1)}" if math.isfinite(share.se) else ""
        )
        cards.append(
            card(
                "Perceptual model, held-out",
                f'<span class="plain">{fixed(100 * share.mean, 1)}</span><small>%</small>',
                sub,
            )
        )
    for group in data.diversity[:1]:
        bars = sorted(
            (bar for bar in group.bars if math.isfinite(bar.value) and math.isfinite(bar.mean)),
            key=lambda bar: bar.value,
        )
        if len(bars) >= 2 and bars[0].mean > 0 and len(cards) < 4:
            factor = bars[-1].mean / bars[0].mean
            big = f'<span class="plain">× {fixed(factor, 2)}</span>'
            cards.append(
                card("Diversity inside groups", big, f"{escape(bars[-1].label)} against {escape(bars[0].label)}")
            )
    return cards[:4]


def _findings(data: ReportData) -> str:
    items = "".join(
        f'<li class="{_TONES.get(finding.tone, "neutral")}"><span class="mark" '
        f'aria-hidden="true">{_MARKS.get(finding.tone, "–")}</span>'
        f"<span>{_unbroken(escape(finding.text))}</span></li>"
        for finding in compute_findings(data)
    )
    return f'<ul class="findings">{items}</ul>' if items else ""


# ---- sections


def _player(data: ReportData, filmstrip: bytes | None) -> str:
    options = "".join(f'<option value="{i}">{escape(motion.name)}</option>' for i, motion in enumerate(data.motions))
    speeds = "".join(
        f'<option value="{speed}"{" selected" if speed == 1 else ""}>{text}</option>'
        for speed, text in ((0.25, "¼×"), (0.5, "½×"), (1, "1×"), (2, "2×"))
    )
    player = Template(asset("player.html")).substitute(options=options, speeds=speeds)
    if filmstrip is None:
        return player
    rows = ", ".join(ROLE_LABELS[role].lower() for role in data.motions[0].tracks())
    described = escape(f"Key frames of the clip {data.motions[0].name}: {rows}", quote=True)
    source = f"data:image/png;base64,{base64.b64encode(filmstrip).decode('ascii')}"
    picture = f'<img class="filmstrip" alt="{described}" src="{source}">'
    return f"{player}<details><summary>The first clip as a film strip</summary>{picture}</details>"


def _metric_name(row: MetricRow) -> str:
    arrow = {"lower": "↓", "higher": "↑", "one": "→ 1", "none": ""}[row.better]
    spoken = {"lower": "lower is better", "higher": "higher is better", "one": "nearer to 1 is better", "none": ""}[
        row.better
    ]
    mark = f' <small title="{spoken}">{arrow}</small>' if arrow else ""
    unit = f" <small>{escape(row.unit)}</small>" if row.unit else ""
    return f"{escape(row.label)}{unit}{mark}"


def _table(rows: Sequence[MetricRow], caption: str) -> str:
    """The results of one family of metrics."""
    scale = change_scale(rows)
    head = "".join(
        f'<th scope="col" class="{kind}">{text}</th>'
        for kind, text in (
            ("metric", "Metric"),
            ("prior", "Prior"),
            ("post", "Post-trained"),
            ("difference", "Difference [95 %]"),
            ("middle", f"Change, axis ±{scale:g} %"),
            ("verdict", ""),
        )
    )
    body = []
    for row in rows:
        found = verdict(row)
        percent = change_percent(row)[0]
        difference = "–"
        if math.isfinite(row.difference.mean):
            difference = signed(row.difference.mean, row.decimals)
            difference += f' <span class="se">{interval_text(row)}</span>' if interval_text(row) else ""
        text = f"<b>{signed(percent, 1)} %</b> " if math.isfinite(percent) else ""
        notes = ""
        if row.ground_truth is not None:
            notes += f'<span class="also">recording itself: {_estimate(row.ground_truth, row.decimals)}</span>'
        if row.prior_mean_of_samples is not None and row.headline:
            averaged = _estimate(row.prior_mean_of_samples, row.decimals)
            notes += f'<span class="also">prior’s samples averaged: {averaged}</span>'
        cells = [
            f'<th scope="row">{_metric_name(row)}{notes}</th>',
            f"<td>{_estimate(row.prior, row.decimals)}</td>",
            f"<td>{_estimate(row.post_trained, row.decimals)}</td>",
            f"<td>{difference}</td>",
            f'<td class="middle {found}">{change_glyph(row, scale, found)}</td>',
            f'<td class="verdict {found}">{text}<span>{_VERDICTS[found]}</span></td>',
        ]
        body.append(f'<tr data-metric="{escape(row.key, quote=True)}">{"".join(cells)}</tr>')
    return (
        f'<div class="table-box card" tabindex="0" role="region" aria-label="{escape(caption, quote=True)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _results(data: ReportData) -> str:
    standard = [row for row in data.metrics if row.family != "paper"]
    paper = [row for row in data.metrics if row.family == "paper"]
    parts = []
    if standard:
        parts.append(_table(standard, "Results, standard metrics"))
    if paper:
        parts.append(
            f"<details{'' if standard else ' open'}><summary>As in the published "
            f"evaluation</summary>{_table(paper, 'Results, metrics as published')}</details>"
        )
    parts.append(
        '<p class="under">± is one standard error. The difference is post-trained minus prior, window by window, in '
        "brackets its 95 % interval; dot and line are the same two in percent of the prior, an arrowhead where the "
        f"change lies beyond the axis. {escape(data.interval_note)} One training run: the errors cover windows and "
        "sampling, not the luck of training.</p>"
    )
    if any(row.prior_mean_of_samples is not None and row.headline for row in data.metrics):
        parts.append(
            '<p class="under">The prior’s samples averaged: an error can fall simply because samples vary less. '
            "Averaging the untuned model’s samples to one motion shows how far that alone would go.</p>"
        )
    return "".join(parts)


def _rewards(data: ReportData) -> str:
    panel, *others = reward_panels(data.rewards)
    panel = replace(panel, note=f"{SMOOTHING} Band: standard deviation inside groups.")
    # one drawing for wide screens and one for phones, so that its letters have a readable size on both
    feature = line_chart(panel, width=1060, height=260, chart_id="reward-total").replace(
        'class="chart', 'class="chart feature wide-only', 1
    )
    feature += line_chart(panel, chart_id="reward-total-small").replace('class="chart', 'class="chart narrow-only', 1)
    rest = "".join(line_chart(other, chart_id=f"reward-{i}") for i, other in enumerate(others))
    return f'<div class="charts">{feature}{rest}</div>'


def _what_was_run(data: ReportData) -> str:
    settings = "".join(
        f"<div><h3>{escape(str(title))}</h3>{name_list(items)}</div>" for title, items in data.run.config.items()
    )
    settings = f'<div class="settings">{settings}</div>' if settings else ""
    return f'<div class="pipeline card">{pipeline_svg()}</div>{settings}'


def _timings(data: ReportData) -> str:
    finite = [stage.seconds for stage in data.stages if math.isfinite(stage.seconds)]
    total, longest = sum(finite), max(finite, default=0.0)
    rows = []
    for stage in data.stages:
        share = stage.seconds / longest if longest > 0 and math.isfinite(stage.seconds) else 0.0
        detail = f" <small>{escape(stage.detail)}</small>" if stage.detail else ""
        rows.append(
            f'<tr><th scope="row">{escape(stage.name)}{detail}</th><td class="share" aria-hidden="true"><span '
            f'class="meter" style="width:{100 * share:.1f}%"></span></td>'
            f"<td>{seconds(stage.seconds)}</td></tr>"
        )
    rows.append(f'<tr><th scope="row">Together</th><td class="share"></td><td><b>{seconds(total)}</b></td></tr>')
    return f'<div class="table-box card stages"><table><tbody>{"".join(rows)}</tbody></table></div>'


def _reproduce(data: ReportData) -> str:
    run = data.run
    state: dict[str, str] = {"Seed": str(run.seed), "Date": readable_date(run.date)}
    if run.git_commit:
        state["Commit"] = run.git_commit[:12] + (" with local changes" if run.git_dirty else "")
    groups = [("Run", state), ("Machine", run.machine), ("Versions", run.versions)]
    blocks = "".join(f"<div><h3>{title}</h3>{name_list(items)}</div>" for title, items in groups if items)
    return (
        f'<div class="command card"><pre id="command">{escape(run.command)}</pre>'
        f'<button type="button" data-copy="command" hidden>Copy</button></div><div class="settings">{blocks}</div>'
    )


def _glossary(data: ReportData) -> str:
    families = {"both": "both families", "standard": "standard", "paper": "as published"}
    entries = []
    for row in data.metrics:
        text = METRIC_TEXTS.get(row.key, row.description)
        if text:
            about = ", ".join(part for part in (row.unit, families[row.family]) if part)
            entries.append((row.label, about, text))
    entries += [(term, "", text) for term, text in TERMS.items()]
    items = []
    for term, about, text in entries:
        small = f" <small>{escape(about)}</small>" if about else ""
        items.append(f"<div><dt>{escape(term)}{small}</dt><dd>{escape(text)}</dd></div>")
    return f'<dl class="glossary">{"".join(items)}</dl>'


def render_page(data: ReportData, *, filmstrip: bytes | None = None) -> str:
    """The whole page as text. ``filmstrip`` is a PNG that is shown in print and on demand."""
    run = data.run
    commit = f", commit {run.git_commit[:12]}{' with local changes' if run.git_dirty else ''}" if run.git_commit else ""
    page = Page(
        run.title,
        run.date,
        lead=[headline_sentence(data), run.summary],
        cards=_key_figures(data),
        provenance=f"{run.title}, seed {run.seed}, {readable_date(run.date)}{commit}.",
    )
    add = page.add
    if data.motions:
        add(
            "motion",
            "Motion",
            "See for yourself",
            _player(data, filmstrip),
            "The same clip three times: as recorded, as the prior recovers it from the head’s path alone, and after "
            "post-training.",
        )
    findings = _findings(data)
    if findings:
        intro = (
            "A metric counts as changed only if the 95 % interval of its paired difference excludes zero and the "
            "difference does not round to zero in the decimals shown. " + data.interval_note
        )
        add("findings", "Findings", "What the numbers say", findings, intro.strip() if data.metrics else "")
    if data.metrics:
        add("results", "Results", "Prior against post-trained", _results(data), data.evaluation_note)
    add("run", "Method", "What was run", _what_was_run(data))
    if data.rewards:
        add(
            "rewards",
            "Rewards",
            "Rewards during post-training",
            _rewards(data),
            "Each joint reward rises as its error falls, the visual one with the perceptual model’s score; advantages "
            "are taken reward by reward inside each group.",
        )
    if data.diversity:
        add(
            "diversity",
            "Diversity",
            "Diversity with and without Perlin noise",
            '<div class="charts wide">'
            + "".join(bar_chart(group, data.diversity) for group in data.diversity)
            + "</div>",
            "GRPO learns from differences inside a group. Smooth noise on the head’s path is meant to widen them. "
            + whisker_note(data.diversity),
        )
    if data.health:
        add(
            "health",
            "Group health",
            "Group health",
            chart_grid(data.health, "health"),
            "Whether the groups still teach anything, and whether the update stays small.",
        )
    if data.prior_training or data.perceptual_training:
        add(
            "training",
            "Training",
            "Training the prior and the perceptual model",
            chart_grid((*data.prior_training, *data.perceptual_training), "training"),
        )
    if data.stages:
        add("timings", "Timings", "Where the time went", _timings(data))
    add("reproduce", "Reproduce", "How to make this again", _reproduce(data))
    add("glossary", "Glossary", "Glossary", _glossary(data))
    return page.render(pack_clips(data.motions))
