"""Ablations at the tiniest size: two rows, two seeds; what is finished is never repeated, what changed is refused, what
fails stops nothing else, and the tables' numbers are those of the evaluations."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import shutil
import signal
import tempfile
from dataclasses import replace

import pytest
import torch
import yaml

from mgrpo.ablations import schedule, stages
from mgrpo.ablations.options import (
    PresetsConfig,
    SamplerAblationConfig,
    StepWeightsConfig,
    Table2Config,
    Table3Config,
    Table4Config,
    Table5Config,
)
from mgrpo.ablations.plan import keep_plan, make_plan
from mgrpo.ablations.results import BUDGET, AblationResults, RowResult, gather
from mgrpo.ablations.rows import ABLATIONS
from mgrpo.ablations.run import run_ablation
from mgrpo.ablations.table import write_results
from mgrpo.diffusion.config import SamplerConfig
from mgrpo.errors import InputError, MgrpoError
from mgrpo.eval.bootstrap import two_way_intervals
from mgrpo.grpo.window import StepWindowConfig
from mgrpo.models.denoiser import DENOISER_PRESETS
from mgrpo.terminal.interrupt import TrainingInterrupted
from mgrpo.terminal.progress import Progress
from mgrpo.train.grpo_config import GRPO_PRESETS
from mgrpo.train.motion_data import MotionDataConfig
from tests.train import motion_files as files

CLASSES = {
    "table2": Table2Config,
    "table3": Table3Config,
    "table4": Table4Config,
    "table5": Table5Config,
    "sampler": SamplerAblationConfig,
    "presets": PresetsConfig,
    "stepweights": StepWeightsConfig,
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return files.write_clips(tmp_path_factory.mktemp("motion") / "clips", count=4, frames=20)


def tiny(config_class, clips, output, **options):
    config = config_class(
        output=output,
        data_train=str(clips),
        data=MotionDataConfig(length=8, validation=("made_up_2",), held_out=("made_up_3", "made_up_1")),
        seeds=(0, 1),
        sampler=SamplerConfig(steps=6),
        evaluation_seeds=1,
        devices=("cpu",),
        estimate=False,
    )
    short = {"validate_every": 0, "checkpoint_every": 1}
    return replace(
        config,
        prior=replace(config.prior, iterations=2, batch_size=2, warmup=0, **short),
        perceptual=replace(
            config.perceptual,
            iterations=2,
            clips=2,
            clips_per_generation=2,
            optimizer_steps_per_generation=1,
            warmup=0,
            **short,
        ),
        grpo=replace(
            config.grpo,
            iterations=2,
            train_windows=0,
            conditions=2,
            group_size=2,
            warmup=0,
            window=StepWindowConfig(size=2),
            **short,
        ),
        **options,
    )


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    monkeypatch.setitem(DENOISER_PRESETS, "tiny", files.TINY_DENOISER)


@pytest.fixture(scope="module")
def finished(clips, tmp_path_factory):
    """A finished two-row, two-seed ablation: its configuration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DENOISER_PRESETS, "tiny", files.TINY_DENOISER)
        config = tiny(Table2Config, clips, tmp_path_factory.mktemp("ablation"), rows=("vanilla",))
        assert run_ablation("table2", config) == 0
    return config


def result_of(config):
    return json.loads((config.output / "table2" / "results.json").read_text())


def test_the_tables_hold_what_the_evaluations_found(finished):
    found = result_of(finished)
    assert list(found["rows"]) == ["prior", "vanilla"] and not found["missing"]
    table = {row["name"]: row for row in found["tables"]["standard"]["rows"]}
    records = {
        (row, seed): stages.read_record(finished.output, f"table2/seed{seed}/{row}.evaluation")["result"]
        for row in ("prior", "vanilla")
        for seed in (0, 1)
    }
    for measure in ("mpjpe_mm", "jitter_m_s3"):
        values = {key: record["values"][measure] for key, record in records.items()}
        count = len(found["windows"])
        means = {row: sum(sum(values[row, seed]) for seed in (0, 1)) / (2 * count) for row in ("prior", "vanilla")}
        assert table["Baseline (prior)"]["cells"][measure]["mean"] == pytest.approx(means["prior"], rel=1e-12)
        cell = table["+ Vanilla GRPO - Baseline (prior)"]["cells"][measure]
        assert cell["mean"] == pytest.approx(means["vanilla"] - means["prior"], rel=1e-9) and cell["mean"] != 0
        assert cell["interval_low"] <= cell["mean"] <= cell["interval_high"]
    spent = found["rows"]["vanilla"]["budget"]
    assert spent["optimizer_steps"] == 2 and set(spent) == set(BUDGET)
    assert spent["network_units"] == spent["decode"] + 2 * spent["decode_with_graph"] > 0
    budgets = {line["row"]: line for line in csv.DictReader((finished.output / "table2" / "budget.csv").open())}
    assert all(float(budgets["vanilla"][name]) == spent[name] for name in BUDGET)
    assert found["rows"]["prior"]["budget"] == {}
    lines = list(csv.DictReader((finished.output / "table2" / "table.csv").open()))
    shown = {(line["family"], line["row"], line["metric"]): line["mean"] for line in lines}
    assert float(shown["paper", "published, AMASS: + Perlin Noise", "mpjpe_mm"]) == 114.207
    assert float(shown["standard", "Baseline (prior)", "mpjpe_mm"]) == pytest.approx(
        table["Baseline (prior)"]["cells"]["mpjpe_mm"]["mean"], rel=1e-8
    )
    for name in ("table.md", "table.tex", "budget.csv", "figure.png", "environment.json"):
        assert (finished.output / "table2" / name).stat().st_size > 100


def test_rows_of_a_seed_share_the_prior_and_the_noise(finished):
    plan = make_plan("table2", finished)
    priors = {stage.config.seed: stage.config.prior for stage in plan.stages if stage.kind == "grpo"}
    assert len(set(priors.values())) == 2
    evaluations = [stage.config for stage in plan.stages if stage.kind == "evaluation"]
    assert len({(one.sampler, one.seeds, one.samples, one.windows, one.data) for one in evaluations}) == 1


def test_what_is_finished_is_not_repeated(finished, monkeypatch, capsys):
    monkeypatch.setattr(schedule, "carry_out", lambda *_: pytest.fail("repeated"))
    assert run_ablation("table2", finished) == 0
    assert run_ablation("table2", replace(finished, summarise=True)) == 0
    assert "+ Vanilla GRPO" in capsys.readouterr().out


def test_a_changed_option_is_refused(finished):
    before = (finished.output / "plan.yaml").read_bytes()
    changed = replace(finished, grpo=replace(finished.grpo, iterations=3))
    with pytest.raises(InputError, match=r"table2/seed0/vanilla, iterations: 2 in the folder, 3 now"):
        run_ablation("table2", changed)
    with pytest.raises(InputError, match=r"vanilla.evaluation, seeds: 1 in the folder, 2 now"):
        run_ablation("table2", replace(finished, evaluation_seeds=2))
    assert (finished.output / "plan.yaml").read_bytes() == before


def test_a_plan_of_an_older_version_goes_on(clips, tmp_path):
    """Options that it did not know were at their defaults."""
    config, path = tiny(Table2Config, clips, tmp_path / "out", rows=("vanilla",)), tmp_path / "plan.yaml"
    keep_plan(make_plan("table2", config), path)
    stored = yaml.safe_load(path.read_text())
    removed = [stage["settings"].pop("profile", None) for stage in stored["stages"].values()]
    assert removed.count(False) >= 3
    path.write_text(yaml.safe_dump(stored))
    with pytest.raises(InputError, match="vanilla, profile: False in the folder, True now"):
        keep_plan(make_plan("table2", replace(config, grpo=replace(config.grpo, profile=True))), path)
    keep_plan(make_plan("table2", config), path)
    assert yaml.safe_load(path.read_text())["stages"]["table2/seed0/vanilla"]["settings"]["profile"] is False


def test_an_interrupted_one_goes_on(clips, tmp_path, monkeypatch, finished):
    config = tiny(Table2Config, clips, tmp_path / "out", rows=("vanilla",))
    done, train = [], stages._TRAININGS["grpo"]

    def stop(config):
        train(replace(config, iterations=1))
        raise TrainingInterrupted("stopped", 2)

    monkeypatch.setitem(stages._TRAININGS, "grpo", stop)
    with pytest.raises(TrainingInterrupted, match="continue with: the same call"):
        run_ablation("table2", config)
    assert stages.read_record(config.output, "table2/seed0/vanilla")["state"] == "interrupted"
    monkeypatch.setitem(stages._TRAININGS, "grpo", train)
    original = stages.carry_out

    def noted(stage, *rest):
        done.append(stage.name)
        return original(stage, *rest)

    monkeypatch.setattr(schedule, "carry_out", noted)
    assert run_ablation("table2", config) == 0
    assert done[0] == "table2/seed0/vanilla" and len(done) == len(set(done))
    assert not any("seed0/prior" in name or "shared/seed0" in name for name in done)
    assert result_of(config)["rows"]["vanilla"]["values"] == result_of(finished)["rows"]["vanilla"]["values"]


def test_a_failed_row_stops_no_other(clips, tmp_path, monkeypatch, capsys):
    config = tiny(Table2Config, clips, tmp_path / "out", seeds=(0,), rows=("vanilla", "visual"))
    train = stages._TRAININGS["grpo"]

    def fails(config):
        if config.rewards.visual:
            raise MgrpoError("no luck")
        return train(config)

    monkeypatch.setitem(stages._TRAININGS, "grpo", fails)
    assert run_ablation("table2", config) == 2
    said = capsys.readouterr()
    assert "failed: table2/seed0/visual: no luck" in said.err
    assert "left out: table2/seed0/visual.evaluation needs table2/seed0/visual" in said.err
    found = result_of(config)
    assert set(found["rows"]) == {"prior", "vanilla"} and found["missing"] == {"visual": [0]}
    monkeypatch.setitem(stages._TRAININGS, "grpo", train)
    assert run_ablation("table2", config) == 0 and "visual" in result_of(config)["rows"]


def test_side_by_side(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "carry_out", lambda *_: pytest.fail("in this process"))
    config = tiny(Table4Config, clips, tmp_path / "out", seeds=(0,), rows=("samples",), jobs=2)
    assert run_ablation("table4", config) == 0
    found = json.loads((config.output / "table4" / "results.json").read_text())
    assert found["rows"]["samples"]["seeds"] == [0]
    assert {path.name for path in (config.output / "logs").iterdir()} == {
        "shared.seed0.prior.txt",
        "shared.seed0.perceptual.txt",
        "table4.seed0.samples.evaluation.txt",
    }


def test_equal_network_calls(clips, tmp_path):
    config = tiny(Table5Config, clips, tmp_path / "out", seeds=(0,), rows=("finetune@calls",))
    assert run_ablation("table5", config) == 0
    plan = make_plan("table5", config)
    rows = gather(plan, config.output).rows
    assert set(rows) == {"prior", "finetune", "grpo", "finetune@calls"}
    spent = {name: row.budget.get("network_units") for name, row in rows.items()}
    one = spent["finetune"] / config.grpo.iterations
    assert spent["finetune"] < spent["grpo"] and abs(spent["finetune@calls"] - spent["grpo"]) <= one / 2
    assert rows["finetune"].budget["optimizer_steps"] == rows["grpo"].budget["optimizer_steps"] == 2


def test_ablations_share_their_own_grpo(clips, tmp_path):
    """A row that changes nothing is trained once for all ablations of the folder; one that changes something is not."""
    shared = {}
    for name in ("table2", "table3", "table5", "stepweights"):
        plan = make_plan(name, tiny(CLASSES[name], clips, tmp_path / "out"))
        shared[name] = {row.name for row in plan.rows if plan.training(row, 0) == "shared/seed0/grpo"}
        trained = [stage.name for stage in plan.stages if stage.kind == "grpo"]
        assert len(trained) == len(set(trained)) and trained.count("shared/seed0/grpo") == len(shared[name])
    window = tiny(StepWeightsConfig, clips, tmp_path).grpo.window.size
    assert shared == {"table2": {"perlin"}, "table3": {"shared-0.1"}, "table5": {"grpo"}, "stepweights": set()}
    several = make_plan("stepweights", tiny(StepWeightsConfig, clips, tmp_path, window_sizes=(window,)))
    assert several.unchanged == {f"inv_snr-{window}"}


def test_presets_differ_in_what_they_name(clips, tmp_path):
    plan = make_plan("presets", tiny(PresetsConfig, clips, tmp_path, seeds=(0,)))
    made = {stage.name.rpartition("/")[2]: stage.config for stage in plan.stages if stage.kind == "grpo"}
    assert set(made) == {"paper", "default", "fast", "default@calls", "fast@calls"}
    for name, config in made.items():
        preset = GRPO_PRESETS[name.partition("@")[0]]
        assert (config.loss, config.window, config.advantage) == (preset.loss, preset.window, preset.advantage)
        assert config.sampler.project == preset.sampler.project and config.sampler.steps == 6
        assert config.execution.reuse_graphs == preset.execution.reuse_graphs
        assert (config.alignment, config.rotation_error) == (preset.alignment, preset.rotation_error)
        usual = dataclasses.asdict(replace(preset, **{part: getattr(config, part) for part in SIZES}))
        assert usual == dataclasses.asdict(config)


SIZES = (
    *("iterations", "conditions", "group_size", "train_windows", "warmup", "validate_every", "checkpoint_every"),
    *("output", "data", "seed", "resume", "prior", "perceptual", "sampler"),
)
"""What an ablation sets for all presets alike; a preset that differs in anything else is not what the row shows."""


@pytest.mark.parametrize("name", sorted(ABLATIONS))
def test_every_ablation_has_a_plan(name, clips, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    config = tiny(CLASSES[name], clips, tmp_path / "out", dry_run=True)
    assert run_ablation(name, config) == 0 and not (tmp_path / "out").exists()
    plan, before = make_plan(name, config), set()
    printed = capsys.readouterr().out
    assert all(f" {stage.name} " in printed for stage in plan.stages), "in a file no name is broken"
    for stage in plan.stages:
        assert set(stage.after) <= before
        before.add(stage.name)
    references = {row.reference for row in plan.rows} - {None}
    assert references <= {row.name for row in plan.rows} and len(plan.rows) >= 4


@pytest.mark.parametrize("name", sorted(ABLATIONS))
def test_every_ablation_can_be_written(name, clips, tmp_path):
    """Results of all its rows, made up; what a row changes may be a number or a part of a configuration."""
    rows = make_plan(name, tiny(CLASSES[name], clips, tmp_path / "out")).rows
    measures = {measure for table in ABLATIONS[name].tables.values() for measure in table}
    made_up = {measure: torch.rand(2, 3) for measure in measures}
    found = {row.name: RowResult(row, (0, 1), made_up, dict.fromkeys(BUDGET, 1.0), 1.0) for row in rows}
    settings = {"frames": 8, "seeds": 1, "samples": 1, "steps": 4}
    write_results(AblationResults(name, ("a", "b", "c"), settings, found, {}), tmp_path / name)
    written = json.loads((tmp_path / name / "results.json").read_text())["rows"]
    assert {row: list(record["changes"]) for row, record in written.items()} == {
        row.name: list(row.changes) for row in rows
    }
    assert all(record["values"] for record in written.values())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rows": ("perlim",)}, "--rows: table2 has no perlim; it has prior, vanilla, visual, perlin"),
        ({"seeds": ()}, "--seeds must be different"),
        ({"summarise": True}, "nothing to summarise"),
        ({"data_test": "nowhere.npz"}, "nowhere.npz"),
        ({"devices": ()}, "--devices needs"),
        ({"devices": ("cpu:1",)}, r"--devices must be auto, cpu, cuda or cuda:N, got 'cpu:1'"),
        ({"devices": ("cpu", "cpu")}, r"--devices names 2 devices, but --jobs 1 uses no more than 1: give --jobs 2"),
    ],
)
def test_bad_options(options, text, clips, tmp_path):
    with pytest.raises(InputError, match=text):
        run_ablation("table2", replace(tiny(Table2Config, clips, tmp_path / "out"), **options))
    assert not (tmp_path / "out").exists()


def test_motion_that_is_trained_on_is_not_tested_on(clips, tmp_path):
    config = tiny(Table2Config, clips, tmp_path / "out")
    for test in (config.data_train, str(clips / ".." / clips.name)):
        with pytest.raises(InputError, match=r"--data-test .* is --data-train: all of it would be tested on"):
            run_ablation("table2", replace(config, data_test=test))
    assert not (tmp_path / "out").exists()


def test_rows_are_told_apart_by_their_names(clips, tmp_path):
    config = tiny(SamplerAblationConfig, clips, tmp_path / "out", etas=(0.4, 0.40000001))
    with pytest.raises(InputError, match=r"two rows of sampler would be called egoallo-0\.4\.prior"):
        run_ablation("sampler", config)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("table2/seed0/vanilla", '{"state": "fin'),
        ("table2/seed0/vanilla", "[]"),
        ("table2/seed0/vanilla", '{"stage": "x"}'),
        ("table2/seed0/vanilla", '{"state": "finished", "seconds": 1}'),
        ("table2/seed0/vanilla.evaluation", '{"state": "finished", "seconds": 1, "result": {"windows": []}}'),
        ("table2/seed0/vanilla", '{"state": "failed", "seconds": 1}'),
    ],
)
def test_a_damaged_record_can_be_deleted(name, text, clips, tmp_path, finished):
    """It is named, nothing starts, and without it the stage is done again to the same end."""
    shutil.copytree(finished.output, tmp_path / "out")
    config = replace(finished, output=tmp_path / "out")
    path = stages.record_path(config.output, name)
    path.write_text(text)
    for options in ({}, {"summarise": True}, {"dry_run": True}):
        with pytest.raises(InputError, match=rf"record of stage {name} is damaged: {path} .*Delete it"):
            run_ablation("table2", replace(config, **options))
    path.unlink()
    assert run_ablation("table2", config) == 0
    assert result_of(config)["tables"] == result_of(finished)["tables"]


@pytest.mark.parametrize("where", ["in a training", "between two"])
def test_a_signal_during_the_estimate_leaves_nothing_behind(where, clips, tmp_path, monkeypatch):
    """And tells how to go on with the ablation, not with what was timed."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "temporary").mkdir()
    train, update = stages._TRAININGS["prior"], Progress.update

    def signalled(self, *args, **values):
        if where == "in a training" and self.label == "prior":
            os.kill(os.getpid(), signal.SIGTERM)
        update(self, *args, **values)

    def train_and_signal(config):
        train(config)
        if where == "between two":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "update", signalled)
    monkeypatch.setitem(stages._TRAININGS, "prior", train_and_signal)
    config = tiny(Table2Config, clips, tmp_path / "out", seeds=(0,), rows=("vanilla",), estimate=True)
    with pytest.raises(TrainingInterrupted, match=r"stopped by SIGTERM; continue with: mgrpo ablate table2"):
        run_ablation("table2", config, command=["mgrpo", "ablate", "table2"])
    assert not list((tmp_path / "temporary").glob("mgrpo-estimate-*"))


def test_no_figure_of_another_table_stays(finished):
    """A row alone has no differences to draw."""
    figure = finished.output / "table2" / "figure.png"
    assert figure.exists()
    run_ablation("table2", replace(finished, rows=("prior",), summarise=True))
    assert not figure.exists()
    run_ablation("table2", replace(finished, summarise=True))
    assert figure.exists()


def test_intervals_over_trainings_and_recordings():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 12, 1, generator=generator, dtype=torch.float64)
    names = [str(number // 2) for number in range(12)]
    (both,) = two_way_intervals(values, names)
    draws = []
    for _ in range(4000):
        one = torch.randint(4, (4,), generator=generator)
        other = torch.randint(6, (6,), generator=generator)
        index = torch.stack((2 * other, 2 * other + 1), 1).flatten()
        draws.append(float(values[one][:, index].mean()))
    low, high = torch.tensor(draws).quantile(torch.tensor([0.025, 0.975])).tolist()
    assert both.low == pytest.approx(low, abs=0.05) and both.high == pytest.approx(high, abs=0.05)
    (alone,) = two_way_intervals(values[:1], names)
    assert alone.low < float(values[0].mean()) < alone.high
    assert all(math.isnan(end) for end in two_way_intervals(values[:1, :2], names[:2])[0])
