"""The demo, shrunk to seconds: every stage runs, the report says what was measured, and a second start continues."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from mgrpo.demo import DemoConfig, run_demo
from mgrpo.demo.config import stage_configs
from mgrpo.demo.pipeline import StageClock
from mgrpo.errors import InputError
from mgrpo.eval.metrics import METRICS
from mgrpo.report import read_report
from mgrpo.runs.metric_log import read_metrics


def small(output: Path) -> DemoConfig:
    config = DemoConfig(output=output, evaluation_seeds=2, evaluation_samples=2, device="cpu")
    return replace(
        config,
        data=replace(config.data, stride=16, evaluate_mirrored=False),
        prior=replace(config.prior, iterations=3, batch_size=4, checkpoint_every=3, validate_every=3),
        perceptual=replace(
            config.perceptual,
            iterations=2,
            clips=2,
            clips_per_generation=2,
            samples_per_clip=2,
            negatives_per_clip=2,
            optimizer_steps_per_generation=2,
            validate_every=2,
            checkpoint_every=2,
            validation_samples=1,
        ),
        grpo=replace(
            config.grpo, iterations=2, conditions=2, train_windows=2, group_size=2, validate_every=2, checkpoint_every=2
        ),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("demo") / "out"
    return output, run_demo(small(output), command=["mgrpo", "demo", "--output", str(output)])


def test_the_report_holds_what_was_measured(finished):
    output, page = finished
    assert page == output / "report" / "report.html" and page.stat().st_size > 100_000
    data = read_report(output / "report" / "report.json")
    evaluation = json.loads((output / "report" / "evaluation.json").read_text())
    rows = {row.key: row for row in data.metrics}
    assert {"mpjpe_mm", "pa_mpjpe_mm", "pa_mpjpe_egoallo_mm", "jitter_ratio", "fs_egoallo_m"} <= set(rows)
    rounded = {f"{float(number):.6g}" for number in re.findall(r"\d+\.\d+", json.dumps(evaluation))}
    assert f"{rows['mpjpe_mm'].prior.mean:.6g}" in rounded and f"{rows['mpjpe_mm'].post_trained.mean:.6g}" in rounded
    # page, picture, terminal and JSON show one estimate: the tables' means, errors and intervals
    assert evaluation["differences"][0]["second"] == "post-trained"
    for key, stored in evaluation["differences"][0]["statistics"].items():
        if key in rows:
            scale, difference = METRICS[key].scale, rows[key].difference
            ends = [difference.mean, difference.se, difference.ci_low, difference.ci_high]
            names = ("mean", "standard_error", "interval_low", "interval_high")
            expected = [math.nan if stored[name] is None else scale * stored[name] for name in names]
            assert ends == pytest.approx(expected, rel=1e-5, abs=1e-9, nan_ok=True), key
    assert math.isfinite(rows["mpjpe_mm"].difference.ci_low)
    assert "bootstrap interval (BCa) over 3 clips" in data.interval_note and "too narrow" in data.interval_note
    assert data.interval_note in (output / "report" / "report.html").read_text(encoding="utf-8")
    log = read_metrics(output / "grpo" / "metrics.jsonl")
    assert list(data.rewards[0].y) == pytest.approx([row["reward"] for row in log])
    assert [stage.name for stage in data.stages] == [
        "prior",
        "perceptual model",
        "GRPO",
        "evaluation",
        "diversity",
        "report",
    ][: len(data.stages)]
    assert data.perceptual_accuracy is not None and 0 <= data.perceptual_accuracy.mean <= 1
    assert {bar.value for group in data.diversity for bar in group.bars} == {0.0, 0.05, 0.1} and len(
        data.diversity
    ) == 4
    assert {motion.name for motion in data.motions} == {"dance_b", "kick", "run"}
    for name in (
        "filmstrip.png",
        "rewards.png",
        "diversity.png",
        "health.png",
        "motion.gif",
        "evaluation.md",
        "evaluation.tex",
        "evaluation.csv",
    ):
        assert (output / "report" / name).stat().st_size > 500, name


def test_a_second_start_trains_nothing_again(finished):
    output, _ = finished
    before = {path: path.read_bytes() for path in output.glob("*/checkpoints/*/model.safetensors")}
    assert len(before) >= 3
    run_demo(small(output))
    assert before == {path: path.read_bytes() for path in output.glob("*/checkpoints/*/model.safetensors")}


def test_other_settings_in_the_same_folder_are_refused(finished):
    output, _ = finished
    config = small(output)
    with pytest.raises(InputError, match="batch_size"):
        run_demo(replace(config, prior=replace(config.prior, batch_size=5)))


def test_restart_removes_only_what_the_demo_made(tmp_path):
    from mgrpo.demo.pipeline import _remove_earlier

    for name in ("prior", "report", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    _remove_earlier(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_cannot_be_made_is_explained(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="--output"):
        run_demo(small(tmp_path / "file" / "below"))


def test_a_refused_demo_leaves_nothing(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "stages.json").write_text("{}")
    config = small(tmp_path / "new")
    wrong_device = replace(config, device="cuda:77")
    wrong_stage = replace(config, prior=replace(config.prior, seed=5))
    for one in (wrong_device, wrong_stage):
        with pytest.raises(InputError):
            run_demo(one)
        assert not (tmp_path / "new").exists()
        with pytest.raises(InputError):
            run_demo(replace(one, output=tmp_path / "old", restart=True))
        assert (tmp_path / "old" / "stages.json").exists()


def test_stages_share_motion_seed_and_folders(tmp_path):
    prior, perceptual, grpo = stage_configs(replace(small(tmp_path), seed=7))
    assert prior.seed == perceptual.seed == grpo.seed == 7 and prior.data == perceptual.data == grpo.data
    assert perceptual.prior == grpo.prior == tmp_path / "prior" / "last" and grpo.perceptual == perceptual.output


def test_the_clock_adds_up_over_starts(tmp_path):
    path = tmp_path / "stages.json"
    with StageClock(path).stage("prior"):
        pass
    first = StageClock(path).seconds["prior"]
    with pytest.raises(RuntimeError), StageClock(path).stage("prior"):
        raise RuntimeError
    assert StageClock(path).seconds["prior"] > first


@pytest.mark.parametrize(
    "options", [{"evaluation_seeds": 0}, {"evaluation_samples": 1}, {"diversity_draws": 0}, {"alphas": (-0.1,)}]
)
def test_options_out_of_range(options):
    with pytest.raises(InputError, match=next(iter(options)).replace("_", "-")):
        DemoConfig(**options)


@pytest.mark.parametrize("stage", ["prior", "perceptual", "grpo"])
def test_what_the_stages_share_is_refused_for_one_of_them(tmp_path, stage):
    config = small(tmp_path)
    one = replace(getattr(config, stage), seed=5)
    with pytest.raises(InputError, match=f"--{stage}.seed: .*give --seed to the demo"):
        stage_configs(replace(config, **{stage: one}))
