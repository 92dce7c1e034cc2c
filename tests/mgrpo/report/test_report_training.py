"""The report of post-trainings: from made-up run folders to the page, the pictures and the numbers."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import yaml

from mgrpo.commands.report import read_training_run
from mgrpo.report.charts import y_range
from mgrpo.report.data import Curve, Panel
from mgrpo.report.training import PICTURES
from mgrpo.report.training_panels import NETWORK_CALLS, with_network_calls
from tests.mgrpo.html_page import Page


def main(words):
    from mgrpo.cli import main as run

    return run(["report", *map(str, words)])


def write_run(folder: Path, *, seed: int = 0, steps: int = 50, better: str = "min", **settings: object) -> Path:
    """A run folder as training would leave it."""
    chance = random.Random(seed)
    folder.mkdir(parents=True)
    config = {
        "class": "GrpoConfig", "output": str(folder), "iterations": 60, "gold": "mpjpe_mm", "gold_better": better,
        "gradient_clip": 1.0, "loss": {"class": "PolicyLossConfig", "clip_range": 1e-4}, "seed": seed, "rewards": [],
        **settings,
    }  # fmt: skip
    (folder / "config.resolved.yaml").write_text(yaml.safe_dump(config))
    start = {"command": ["/bin/mgrpo", "train", "grpo", "--seed", str(seed)], "date": "2026-01-02T03:04:05+00:00"}
    start |= {"git": {"commit": "0123456789abcdef", "dirty": True}, "machine": {"cpu": "<fast & good>"}}
    (folder / "provenance.json").write_text(json.dumps({"starts": [start]}))
    rows = []
    for step in range(1, steps + 1):
        row = {
            "step": step, "time": 1e9, "reward": 2 + step / 50 + chance.gauss(0, 0.05), "reward_std": 0.1,
            "rewards/visual/mean": 1.0, "rewards/visual/std": 0.05, "rewards/visual/signal": 0.3,
            "frac_reward_zero_std": 0.0, "frac_dead_all": 0.02, "diversity/diversity_joint_std_mm": 40.0,
            "grad_norm": None if step == 3 else 0.5, "ratio/first_log_max": 0.0, "ratio/mean": 1.0, "ratio/min": 0.9,
            "ratio/max": 1.1, "clip_ratio/low_mean": 0.1, "clip_ratio/high_mean": 0.2, "clip_ratio/region_mean": 0.3,
            "approx_kl": 1e-5, "kl": 0.0, "update_ratio": 1e-5, "error/position_mm": 100.0, "decode": 10 + seed,
            "step_time": 2.0, "time/rollout": 1.0, "time/update": 0.5, "system/samples_per_s": 8.0,
        }  # fmt: skip
        if step % 10 == 0:
            row["validation/mpjpe_mm"] = {10: 120.0, 20: 100.0, 30: 105.0, 40: 110.0, 50: 130.0}[step]
            row["validation/gnd"] = None
        rows.append(json.dumps(row))
    (folder / "metrics.jsonl").write_text("\n".join(rows) + '\n{"step": 51, "rew')  # being written
    return folder


@pytest.fixture
def run(tmp_path):
    folder = write_run(tmp_path / "one")
    alarm = {"step": 12, "name": "<i>dead_groups", "text": "<b>60%</b> of the groups; try --group-size"}
    (folder / "alarms.jsonl").write_text(json.dumps(alarm) + "\n")
    return folder


def page_of(folder):
    html = (folder / "report.html").read_text("utf-8")
    return html, Page(html)


def test_one_run(run, capsys):
    assert main([run]) == 0
    out = capsys.readouterr().out
    assert "one: iterations 50 of 60, network calls 500" in out and f"report: {run / 'report' / 'report.html'}" in out
    html, page = page_of(run / "report")
    assert not page.problems
    assert (
        "50 of 60 iterations, so far." in page.text
        and "best checkpoint by mpjpe_mm is that of iteration 20" in page.text
    )
    assert "60%" in page.text and "<b>60%" not in html and "<i>" not in html and "<fast" not in html
    assert "mgrpo train grpo --seed 0" in page.text and "0123456789ab with local changes" in page.text
    assert not [attrs for _, attrs in page.tags if attrs.get("src") or (attrs.get("href") or "#")[:1] not in "#d"]
    sections = {dict(attrs).get("id") for tag, attrs in page.tags if tag == "section"}
    assert sections == {
        "alarms",
        "rewards",
        "calls",
        "gold",
        "groups",
        "update",
        "errors",
        "time",
        "settings",
        "reproduce",
    }
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    assert {path.name for path in (run / "report").iterdir()} == {
        "report.html", "report.json", *(f"{name}.png" for name in PICTURES),
    }  # fmt: skip
    for name in PICTURES:
        assert (run / "report" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_the_numbers_behind_the_page(run):
    assert main([run]) == 0
    report = json.loads((run / "report" / "report.json").read_text())
    (told,) = report["runs"]
    assert told["alarms"][0]["step"] == 12 and told["summary"]["best mpjpe_mm"] == "100 at 20"
    assert report["time_split"] == {"rollout": [1.0], "update": [0.5], "the rest": [0.5]}
    total = report["charts"]["rewards"][0]["curves"][0]
    assert total["x"] == list(range(1, 51)) and len(total["spread"]) == 50
    calls = report["charts"]["rewards_calls"][0]
    assert calls["curves"][0]["x"] == [10.0 * step for step in range(1, 51)]
    gold = report["charts"]["gold"][0]
    assert gold["title"] == "MPJPE" and gold["unit"] == "mm"
    assert gold["reference_label"] == "best, at iteration 20" and gold["reference"] == 100.0
    titles = [panel["title"] for panel in report["charts"]["update"]]
    assert "KL to the prior" not in titles and {"Ratio", "Gradient norm", "KL to the old policy"} <= set(titles)
    gradient = next(p for p in report["charts"]["update"] if p["title"] == "Gradient norm")
    assert gradient["reference"] == 1.0 and 3.0 not in gradient["curves"][0]["x"]


def test_the_best_of_a_measure_that_should_rise(tmp_path):
    run = read_training_run(write_run(tmp_path / "rising", better="max"), "rising")
    assert run.summary()["best mpjpe_mm"] == "130 at 50"


def test_several_runs_are_compared(run, tmp_path, capsys):
    other = write_run(tmp_path / "two", seed=5, steps=30, sampler={"eta": 0.5})
    assert main([run, other, "--out", tmp_path / "both", "--name", "first", "second"]) == 0
    report = json.loads((tmp_path / "both" / "report.json").read_text())
    assert report["differences"] == {"seed": ["0", "5"], "sampler.eta": ["–", "0.5"]}
    for group in report["charts"].values():
        assert all([curve["label"] for curve in panel["curves"]] == ["first", "second"] for panel in group)
    assert report["charts"]["rewards_calls"][0]["curves"][1]["x"][-1] == 15 * 30
    _, page = page_of(tmp_path / "both")
    assert "2 runs beside each other" in page.text and "sampler.eta" in page.text
    assert not (run / "report").exists()
    # folders of one name are told apart
    same = write_run(tmp_path / "elsewhere" / "one", steps=10)
    assert main([run, same, "--out", tmp_path / "same"]) == 0
    names = [told["name"] for told in json.loads((tmp_path / "same" / "report.json").read_text())["runs"]]
    assert names == [f"{tmp_path.name}/one", "elsewhere/one"]


def test_a_report_replaces_the_one_before(run):
    folder = run / "report"
    folder.mkdir()
    (folder / "gold.png").write_text("old")
    (folder / "mine.txt").write_text("kept")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()[:-1]]
    kept = [{k: v for k, v in row.items() if not k.startswith(("validation", "time/", "decode"))} for row in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert main([run]) == 0
    assert not (folder / "gold.png").exists() and (folder / "mine.txt").exists()
    assert not (folder / "rewards_calls.png").exists()
    _, page = page_of(folder)
    assert "The phases were not measured" in page.text


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda run: (run / "config.resolved.yaml").unlink(), "is not a run folder: it has no config.resolved.yaml"),
        (lambda run: (run / "config.resolved.yaml").write_text("- a"), "holds no settings"),
        (lambda run: (run / "config.resolved.yaml").write_text("a: ["), "can't be read"),
        (lambda run: (run / "metrics.jsonl").unlink(), "metrics not found"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "no iteration has been logged yet"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 1, "loss": 1}\n'), "is no post-training"),
        (lambda run: (run / "metrics.jsonl").write_text("{\n{}\n"), "line 1 is no row of it"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 1}\n[1, 2]\n'), "line 2 is no row of it"),
        (lambda run: (run / "metrics.jsonl").write_text('{"reward": 1}\n'), "line 1 is no row of it"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 1, "reward": "high"}\n'), "line 1 is no row of it"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": "one"}\n'), "line 1 is no row of it"),
        (lambda run: (run / "alarms.jsonl").write_text("x\ny\n"), "alarms damaged"),
        (lambda run: (run / "alarms.jsonl").write_text('{"step": 1, "name": "dead_groups"}\n'), "alarms damaged"),
    ],
)
def test_folders_that_hold_no_run_are_refused(run, capsys, break_it, message):
    break_it(run)
    assert main([run]) == 2
    assert message in capsys.readouterr().err
    assert not (run / "report").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["RUN", "--name", "a", "b"], "--name: 2 names for 1 runs"),
        (["RUN", "RUN"], "is given twice"),
        (["RUN", "other", "--name", "a", "a"], "the names must differ"),
    ],
)
def test_bad_words_are_refused(run, capsys, words, message):
    assert main([run if word == "RUN" else word for word in words]) == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_file_in_the_way_is_told(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([run, "--out", tmp_path / "file"]) == 2
    assert "could not write the report" in capsys.readouterr().err


def test_network_calls_add_up_until_one_is_missing():
    rows = with_network_calls([{"decode": 3}, {"decode": 4}, {}, {"decode": 5}])
    assert [row[NETWORK_CALLS] for row in rows] == [3, 7, None, None]


def test_a_share_that_is_always_zero_has_no_axis_below_zero():
    panel = Panel("share", (Curve.of("share", [0.0, 0.0]),), low=0.0)
    assert y_range(panel)[0] == 0.0 and y_range(panel)[1] > 0


def test_a_band_with_gaps_is_read():
    curve = Curve.from_rows([{"step": 1, "a": 1.0, "s": None}, {"step": 2, "a": 2.0, "s": 0.5}], "a", "a", spread="s")
    assert math.isnan(curve.spread[0]) and curve.spread[1] == 0.5
