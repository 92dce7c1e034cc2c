"""The page about one or several post-trainings."""

from __future__ import annotations

import math
from html import escape

from mgrpo.report.findings import listed, reward_change
from mgrpo.report.numbers import fixed, seconds, short
from mgrpo.report.parts import Page, before_and_after, card, chart_grid, name_list, readable_date, table
from mgrpo.report.training import TrainingReport, TrainingRun
from mgrpo.report.training_panels import best_evaluation, reward_curves


def render_training_page(report: TrainingReport) -> str:
    """The whole page as text."""
    runs, panels = report.runs, report.panels()
    names = [run.name for run in runs]
    page = Page(
        f"Post-training {listed(names)}",
        report.date,
        lead=[_lead(run) for run in runs[:1]] if len(runs) == 1 else [f"{len(runs)} runs beside each other."],
        cards=_cards(runs[0]) if len(runs) == 1 else (),
        provenance=f"Read from {listed([run.folder for run in runs])} on {readable_date(report.date)}.",
    )
    if len(runs) > 1:
        page.add("runs", "Runs", "The runs", _summaries(report))
    page.add("alarms", "Alarms", "What looked wrong", _alarms(report), _ALARMS)
    if panels["rewards"]:
        page.add("rewards", "Rewards", "Rewards", chart_grid(panels["rewards"], "rewards"), _REWARDS)
    if panels["rewards_calls"]:
        body = chart_grid(panels["rewards_calls"], "calls")
        page.add("calls", "Per network call", "Rewards for what they cost", body, _CALLS)
    if panels["gold"]:
        page.add("gold", "Held-out", "Measures that are no rewards", chart_grid(panels["gold"], "gold"), _gold(report))
    if panels["groups"]:
        page.add("groups", "Groups", "What groups teach", chart_grid(panels["groups"], "groups"))
    if panels["update"]:
        page.add("update", "Update", "How the policy moves", chart_grid(panels["update"], "update"))
    if panels["errors"]:
        body = chart_grid(panels["errors"], "errors")
        page.add("errors", "Errors", "The errors behind the rewards", body, "Of the samples that training draws.")
    if panels["time"]:
        page.add("time", "Time", "Where the time goes", _time(report) + chart_grid(panels["time"], "time"))
    page.add("settings", "Settings", "Settings", _settings(report))
    page.add("reproduce", "Reproduce", "How these were made", _commands(report))
    return page.render()


_ALARMS = "Given during training from the logged numbers alone; each says what to try."
_REWARDS = "Mean over all samples of an iteration, each as it was given, before any normalisation inside its group."
_CALLS = "The same over the number of sequences that went through the network: an iteration's cost depends on settings."


def _lead(run: TrainingRun) -> str:
    state = "all" if run.done >= run.iterations else "so far"
    text = f"{run.done} of {run.iterations} iterations, {state}." if state != "all" else f"All {run.done} iterations."
    best = best_evaluation(run.log)
    if best is not None:
        text += f" The best checkpoint by {run.log.gold} is that of iteration {best[0]:.0f}."
    return text


def _cards(run: TrainingRun) -> list[str]:
    """Key figures of a lone run."""
    found = []
    curve = reward_curves(run.log.rows, ())[0]
    if curve.y:
        change = reward_change(curve)
        if math.isfinite(change.difference):
            big = before_and_after(fixed(change.first, change.decimals), fixed(change.last, change.decimals))
            found.append(card("Mean total reward", big, f"{escape(change.difference_text)}, first to last tenth"))
    best = best_evaluation(run.log)
    if best is not None:
        big = f'<span class="plain">{escape(short(best[1]))}</span>'
        found.append(card(f"Best {run.log.gold}", big, f"at iteration {best[0]:.0f}, on validation clips"))
    if math.isfinite(dead := run.mean("frac_dead_all", of_last=0.1)):
        big = f'<span class="plain">{fixed(100 * dead, 0)}</span><small>%</small>'
        found.append(card("Groups without any signal", big, "last tenth"))
    if math.isfinite(time := run.mean("step_time")):
        sub = f"{short(run.mean('system/samples_per_s'))} samples per second"
        found.append(card("Time of an iteration", f'<span class="plain">{escape(seconds(time))}</span>', escape(sub)))
    return found


def _summaries(report: TrainingReport) -> str:
    summaries = [run.summary() for run in report.runs]
    head: dict[str, None] = {}
    for summary in summaries:
        head |= dict.fromkeys(summary)
    rows = [[run.name, *(s.get(name, "–") for name in head)] for run, s in zip(report.runs, summaries)]
    return table(["run", *head], rows, "The runs in numbers")


def _alarms(report: TrainingReport) -> str:
    rows = [
        [run.name, f"{alarm['step']}", str(alarm["name"]).replace("_", " "), str(alarm["text"])]
        for run in report.runs
        for alarm in run.alarms
    ]
    if not rows:
        return '<p class="empty">No alarm was given.</p>'
    return table(["run", "iteration", "alarm", "what was seen, and what to try"], rows, "Alarms", texts=(3,))


def _gold(report: TrainingReport) -> str:
    golds = {run.log.gold for run in report.runs}
    return (
        "On clips that are not trained on, with the same noise every time. "
        f"{listed(sorted(golds))} decides which checkpoint is the best one. A star marks definitions of the published "
        "evaluation."
    )


def _time(report: TrainingReport) -> str:
    split = report.time_split()
    if not split:
        return '<p class="empty">The phases were not measured: on a GPU --profile does that.</p>'
    whole = [sum(part for part in parts if math.isfinite(part)) for parts in zip(*split.values())]

    def cell(value: float, all_of_it: float) -> str:
        return f"{seconds(value)}, {100 * value / all_of_it:.0f} %" if math.isfinite(value) and all_of_it else "–"

    rows = [
        [name, *(cell(value, all_of_it) for value, all_of_it in zip(values, whole))] for name, values in split.items()
    ]
    rows.append(["together", *(seconds(value) for value in whole)])
    return table(["phase", *(run.name for run in report.runs)], rows, "Mean time of an iteration by phase")


def _settings(report: TrainingReport) -> str:
    body = ""
    if len(report.runs) > 1:
        rows = [[name, *values] for name, values in report.differences().items()]
        head = ["setting", *(run.name for run in report.runs)]
        body = table(head, rows, "Settings that differ") if rows else "<p>The runs have the same settings.</p>"
    for run in report.runs:
        title = "All settings" if len(report.runs) == 1 else f"All settings of {run.name}"
        body += f"<details><summary>{escape(title)}</summary>{name_list(run.settings)}</details>"
    return body


def _commands(report: TrainingReport) -> str:
    blocks = ""
    for number, run in enumerate(report.runs):
        title = f"<h3>{escape(run.name)}</h3>" if len(report.runs) > 1 else ""
        commands = escape("\n".join(run.commands)) or "started from Python"
        blocks += (
            f'{title}<div class="command card"><pre id="command-{number}">{commands}</pre>'
            f'<button type="button" data-copy="command-{number}" hidden>Copy</button></div>{name_list(run.state)}'
        )
    return blocks
