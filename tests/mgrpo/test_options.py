"""Options of the commands that train and sample: none is out of range, without effect or misnamed silently."""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mgrpo.cli import COMMANDS, main
from mgrpo.commands.sample import SampleConfig
from mgrpo.diffusion.config import SamplerConfig
from mgrpo.errors import InputError
from mgrpo.options import command_options, option, refuse_unused, require
from mgrpo.train.baseline_config import DpoConfig, FinetuneConfig, ReftConfig
from mgrpo.train.grpo import GrpoConfig
from mgrpo.train.perceptual import PerceptualTrainingConfig
from mgrpo.train.prior import PriorConfig

CONFIGS: dict[str, Any] = {
    "prior": PriorConfig(),
    "perceptual": PerceptualTrainingConfig(),
    "grpo": GrpoConfig(),
    "finetune": FinetuneConfig(),
    "dpo": DpoConfig(),
    "reft": ReftConfig(),
    "sample": SampleConfig(checkpoint=Path("runs/prior")),
}


def numbers(config: Any, path: tuple[str, ...] = (), shown: str = "--") -> Iterator[tuple[tuple[str, ...], str, type]]:
    """Every number among the options of a configuration: its path of fields, its name as typed, int or float."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        typed = field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            flat = typing.get_origin(hint) is typing.Annotated  # tyro.conf.arg(name="")
            yield from numbers(value, (*path, field.name), shown if flat else f"{shown}{typed}.")
        elif hint in (int, float):
            yield (*path, field.name), f"{shown}{typed}", hint


def changed(config: Any, path: tuple[str, ...], value: Any) -> Any:
    """The configuration with one option changed, made anew with all its checks."""
    name, *rest = path
    return dataclasses.replace(config, **{name: changed(getattr(config, name), tuple(rest), value) if rest else value})


def never_train(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a guard that is broken fail the test at once, where the command would train for minutes."""
    for command in COMMANDS:
        named = tuple(words.split()[: len(command.words)]) == command.words
        if named and command.words[0] in ("train", "demo"):
            monkeypatch.setattr(
                importlib.import_module(command.module),
                command.function,
                lambda *given, **named: pytest.fail(f"mgrpo {words}: nothing refused it"),
            )


NUMBERS = [(command, *found) for command, config in CONFIGS.items() for found in numbers(config)]


@pytest.mark.parametrize(("command", "path", "shown", "kind"), NUMBERS, ids=lambda value: str(value))
def test_every_number_out_of_range_is_refused_by_its_name(
    command: str, path: tuple[str, ...], shown: str, kind: type
) -> None:
    config = CONFIGS[command]
    wrong = [-7] if kind is int else [math.nan, -math.inf]
    with command_options(type(config)):
        for value in wrong:
            with pytest.raises(InputError, match=rf"(^|[ (]){re.escape(shown)}\b") as caught:
                changed(config, path, value)
            assert str(value) in str(caught.value), caught.value
            assert "()" not in str(caught.value), "names a function of ours"


def test_the_numbers_above_are_all_of_them() -> None:
    assert len(NUMBERS) > 90 and {path[-1] for _, path, _, _ in NUMBERS} >= {"eta", "octaves", "speed", "clamp"}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("train prior --condition-dropout 1.5", "--condition-dropout must be at most 1, got 1.5"),
        ("train prior --data.augment.mirror-prob 2", "--data.augment.mirror-prob must be at most 1"),
        ("train prior --data.short-share 3", "--data.short-share must be at most 1"),
        ("train prior --ema 1", "--ema must be below 1, got 1.0"),
        ("train prior --loss.betas nan", "--loss.betas must be finite, got nan"),
        ("train perceptual --preset huge", "--preset must be one of tiny, paper"),
        ("train perceptual --sampler.steps 0", "--sampler.steps must be at least 1, got 0"),
        ("train perceptual --samples-per-clip 70000", "--samples-per-clip must be at most 65536"),
        ("train grpo --perlin.octaves 9", "--perlin.octaves must be at most 8, got 9"),
        ("train grpo --sampler.kernel ddim --sampler.eta 1.5", "--sampler.eta must be at most 1 with --sampler.kernel"),
        ("train grpo --sampler.kernel ode", "--sampler.kernel ode"),
        ("train grpo --sampler.eta 0", "--sampler.eta 0"),
        ("train grpo --sampler.steps 1", "--sampler.steps 1"),
        ("train grpo --window.size 30", "--window.size 30 from --window.start 0 does not fit into the sampler's 29"),
        ("train grpo --loss.clip-range 0", "--loss.clip-range must be positive, got 0"),
        ("train grpo --advantage.clamp 0", "--advantage.clamp must be positive"),
        ("train grpo --scales.jitter 0", "--scales.jitter must be positive"),
        ("train grpo --rewards.visual nan", "--rewards.visual must be finite"),
        ("train grpo --perceptual None", "--perceptual: the visual reward has a weight"),
        ("train grpo --group-size 70000", "--group-size must be at most 65536"),
        ("train grpo --gold mpjpe", "--gold must be a measure of the validation, one of mpjpe_mm, pa_mpjpe_mm"),
        ("train perceptual --clips 8 --accumulate 3", "--clips (8) must be a multiple of --accumulate (3)"),
        ("train finetune --levels 0", "--levels must be at least 1, got 0"),
        ("train finetune --geometric.level 0", "--geometric.level must be at least 1, got 0"),
        ("train finetune --geometric.velocity -1", "--geometric.velocity must be at least 0, got -1.0"),
        (
            "train finetune --geometric.position 0 --geometric.aligned-position 0 --geometric.rotation 0 "
            "--geometric.velocity 0",
            "--geometric.velocity: every weight is 0",
        ),
        ("train finetune --loss.betas -1", "--loss.betas must be at least 0"),
        ("train finetune --variant best-of-group --perceptual None", "--perceptual: the visual reward has a weight"),
        ("train finetune --variant best-of-group --sampler.kernel ode", "the members of a group are all alike"),
        ("train finetune --execution.precision fp16-scaled", "invalid choice 'fp16-scaled'"),
        ("train dpo --beta 0", "--beta must be positive, got 0.0"),
        ("train dpo --mode online --refresh-every 0", "--refresh-every must be at least 1, got 0"),
        ("train dpo --sampler.eta 0", "the members of a group are all alike"),
        ("train dpo --perlin.per-member", "--perlin.per-member: the two motions of a pair are compared under one"),
        ("train dpo --group-size 1", "--group-size must be at least 2"),
        ("train reft --last-steps 0", "--last-steps must be at least 1, got 0"),
        ("train reft --last-steps 31", "--last-steps (31) can't exceed --sampler.steps (30)"),
        ("train reft --min-spread 0", "--min-spread must be positive, got 0.0"),
        ("train reft --sampler.kernel ode", "the members of a group are all alike"),
        ("demo --grpo.perlin.lattice 0", "--grpo.perlin.lattice must be at least 1 frame"),
        ("sample --checkpoint X --eta nan", "--eta must be finite, got nan"),
        ("sample --checkpoint X --kernel cps --eta 2", "--eta must be at most 1 with --kernel cps, got 2.0"),
        ("sample --checkpoint X --length 1", "--length must be at least 2 frames, or 0"),
        ("sample --checkpoint X --length 108001", "--length must be at most 108000 frames"),
        ("sample --checkpoint X --samples 70000", "--samples must be at most 65536"),
    ],
)
def test_on_the_command_line(
    words: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    never_train(words, monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert text in shown and "()" not in shown
    assert not list(tmp_path.iterdir()), "something was written"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            "train perceptual --sampler.kernel ode --sampler.eta 0.8",
            "--sampler.eta has no effect with --sampler.kernel",
        ),
        ("train perceptual --sampler.steps=1 --last-steps=1 --sampler.kernel=ddim", "--sampler.kernel has no effect"),
        ("infer X --model X -o X --floor zero --eye-height 1.7", "--eye-height has no effect with --floor zero"),
        ("infer X --model X -o X --floor=-1.2 --eye-height 1.7", "--eye-height has no effect with --floor -1.2"),
        (
            "infer X --model X -o X --guidance.no-post --guidance.damping egoallo",
            "--guidance.damping has no effect with --guidance.no-post and without --guidance.inner",
        ),
        (
            "infer X --model X -o X --guidance.weights.wrist-position 3",
            "--guidance.weights.wrist-position has no effect with --guidance.mode no_hands, which has no such cost",
        ),
        (
            "infer X --model X -o X --guidance.mode hamer_wrist --guidance.weights.wrist-orientation 3",
            "--guidance.weights.wrist-orientation has no effect with --guidance.mode hamer_wrist",
        ),
        (
            "infer X --model X -o X --guidance.mode hamer_wrist --guidance.weights.keypoints 3",
            "--guidance.weights.keypoints has no effect with --guidance.mode hamer_wrist",
        ),
        ("sample --checkpoint X --kernel ode --eta=0.5", "--eta has no effect with --kernel ode"),
        ("evaluate --checkpoint X --eta 0.8 --kernel ode", "--eta has no effect with --kernel ode"),
        ("train prior --resume-from best", "--resume-from has no effect without --resume"),
        ("train prior --warmup 0 --no-warmup-from-zero", "--warmup-from-zero has no effect with --warmup 0"),
        ("train prior --loss.hand_rotmats 0.5", "--loss.hand-rotmats has no effect with --preset tiny"),
        ("train perceptual --gaussian-sigma 0.1", "--gaussian-sigma has no effect with --negatives samples"),
        ("ablate presets --grpo.loss.clip-range 0.1", "--grpo.loss.clip-range has no effect here: each row has its"),
        ("train perceptual --negatives gaussian --last-steps 2", "--last-steps has no effect with --negatives"),
        ("train perceptual --validate-every 0 --validation-samples 2", "--validation-samples has no effect"),
        (
            "train perceptual --negatives gaussian --validate-every 0 --sampler.eta 0.5",
            "--sampler.eta has no effect with --negatives gaussian and --validate-every 0",
        ),
        ("train grpo --perlin.alpha 0 --perlin.per-member", "--perlin.per-member has no effect with --perlin.alpha 0"),
        ("train grpo --rewards.visual 0 --perceptual runs/p", "--perceptual has no effect while the reward has no"),
        ("train grpo --rewards.rotation 0 --rotation-error frobenius", "--rotation-error has no effect while"),
        ("train grpo --scales.head 2", "--scales.head has no effect while the reward has no weight"),
        ("train grpo --advantage.scheme center_only --advantage.eps 1e-6", "--advantage.eps has no effect with"),
        ("train grpo --loss.ratio-shift-correction", "--loss.ratio-shift-correction has no effect with --optimizer-"),
        ("train grpo --alarms.clipped 0.1", "--alarms.clipped has no effect with --optimizer-steps 1"),
        ("train grpo --validate-every 0 --gold pa_mpjpe_mm", "--gold has no effect with --validate-every 0"),
        ("train dpo --validate-every 0 --gold-better min", "--gold-better has no effect with --validate-every 0"),
        ("train grpo --validate-every 0 --alarms.hacking 3", "--alarms.hacking has no effect with --validate-every"),
        ("train reft --track-project p", "--track-project has no effect without --track"),
        ("train finetune --group-size 4", "--group-size has no effect with --variant denoise, which draws no samples"),
        ("train finetune --perlin.alpha 0.2", "--perlin.alpha has no effect with --variant denoise"),
        ("train finetune --rewards.visual 0", "--rewards.visual has no effect with --variant denoise"),
        ("train finetune --geometric.level 9", "--geometric.level has no effect with --variant denoise"),
        ("train finetune --validate-every 0 --sampler.steps 9", "--sampler.steps has no effect with --variant denoise"),
        (
            "train finetune --variant geometric --geometric.rotation 0 --rotation-error frobenius",
            "--rotation-error has no effect with --geometric.rotation 0",
        ),
        (
            "train finetune --variant best-of-group --alignment egoallo --geometric.level 3",
            "--geometric.level has no effect with --variant best-of-group",
        ),
        ("train dpo --refresh-every 40", "--refresh-every has no effect with --mode offline"),
        ("train dpo --advantage.clamp 3", "--advantage.clamp has no effect here, where members are ranked by it"),
        ("train reft --no-normalize --min-spread 0.1", "--min-spread has no effect with --no-normalize"),
        ("train prior --data.short-share 0.5", "--data.short-share has no effect with --data.slices"),
    ],
)
def test_an_option_without_effect_is_refused(
    words: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    never_train(words, monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and text in shown
    assert not list(tmp_path.iterdir()), "something was written"


def test_what_every_configuration_calls_unused_exists() -> None:
    """A misspelt name in ``unused_options`` would never be found among the words."""
    variants = [
        *CONFIGS.values(),
        SamplerConfig(kernel="ode"),
        SamplerConfig(steps=1),
        dataclasses.replace(CONFIGS["perceptual"], negatives="gaussian", validate_every=0),
        dataclasses.replace(CONFIGS["prior"], warmup=0),
        changed(CONFIGS["grpo"], ("perlin", "alpha"), 0.0).perlin,
        changed(CONFIGS["grpo"], ("advantage", "scheme"), "center_only").advantage,
        dataclasses.replace(CONFIGS["finetune"], variant="geometric", validate_every=0),
        dataclasses.replace(CONFIGS["finetune"], variant="best-of-group"),
        dataclasses.replace(CONFIGS["reft"], normalize=False),
        dataclasses.replace(CONFIGS["grpo"], validate_every=0),
        dataclasses.replace(CONFIGS["grpo"], rewards=dataclasses.replace(CONFIGS["grpo"].rewards, visual=0.0)),
    ]
    names = 0
    for config in variants:
        for name in getattr(config, "unused_options", dict)():
            owner = config
            for part in name.split("."):
                owner = getattr(owner, part)
            names += 1
    assert names > 15


def test_names_follow_the_command_at_work() -> None:
    sampler = SamplerConfig()
    assert option(sampler, "eta") == "--eta"  # no command is at work
    with command_options(GrpoConfig):
        assert option(sampler, "eta") == "--sampler.eta"
        with command_options(SampleConfig):
            assert option(sampler, "eta") == "--eta"
        assert option(sampler, "eta") == "--sampler.eta"
        assert option(CONFIGS["grpo"], "perlin.per_member") == "--perlin.per-member"
    demo = next(command for command in COMMANDS if command.words == ("demo",))
    module = __import__(demo.module, fromlist=[demo.config])
    with command_options(getattr(module, demo.config)):
        assert option(sampler, "eta") == "--perceptual.sampler.eta or --grpo.sampler.eta"


def test_options_that_have_an_effect_pass() -> None:
    refuse_unused(SamplerConfig(kernel="ddim"), ["--kernel", "ddim", "--eta", "0.5", "--steps=3", "-h", "--"])
    refuse_unused(SamplerConfig(kernel="ode"), ["--kernel", "ode"])


@dataclasses.dataclass
class Limits:
    share: float = 0.5


@pytest.mark.parametrize(
    ("value", "limits", "text"),
    [
        (math.nan, {}, "--share must be finite, got nan"),
        (math.inf, {"above": 0}, "--share must be finite, got inf"),
        (math.nan, {"infinite": True}, "--share must be a number, got nan"),
        (0.0, {"above": 0}, "--share must be positive, got 0.0"),
        (1.0, {"above": 1}, "--share must be above 1, got 1.0"),
        (1.0, {"below": 1}, "--share must be below 1, got 1.0"),
        (1.5, {"at_most": 1}, "--share must be at most 1, got 1.5"),
        (-0.5, {"at_least": 0, "unit": "metres"}, "--share must be at least 0 metres, got -0.5"),
    ],
)
def test_limits(value: float, limits: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as caught:
        require(Limits(value), "share", **limits)
    assert str(caught.value) == text
    require(Limits(0.5), "share", above=0, at_least=0.5, at_most=0.5, below=1)
    require(Limits(math.inf), "share", above=0, infinite=True)
