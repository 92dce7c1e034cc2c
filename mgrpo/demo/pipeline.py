"""The stages of the demo, one after the other, each in a run folder of its own that a second start continues from."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import torch

from mgrpo.demo.config import DemoConfig, stage_configs
from mgrpo.demo.report_data import DemoResults, demo_report, printed_diversity
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.errors import InputError
from mgrpo.eval.evaluate import evaluate
from mgrpo.eval.tables import print_table, result_table, write_tables
from mgrpo.execution.device import resolve_device
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.perceptual import PerceptualConfig, PerceptualModel
from mgrpo.report import write_report
from mgrpo.report.data import Stage
from mgrpo.runs.checkpoints import find_checkpoint
from mgrpo.runs.stored_models import load_model
from mgrpo.storage import atomic_write_json
from mgrpo.terminal.progress import Progress, notice
from mgrpo.train.diversity import diversity_by_alpha
from mgrpo.train.grpo import train_grpo
from mgrpo.train.grpo_config import GrpoConfig
from mgrpo.train.motion_data import load_motion_data
from mgrpo.train.perceptual import train_perceptual
from mgrpo.train.prior import train_prior


class StageClock:
    """Seconds of each stage, kept on disk so that a demo in several starts still knows them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = {}
        if path.is_file():
            with open(path, encoding="utf-8") as stream:
                self.seconds = {str(name): float(value) for name, value in json.load(stream).items()}

    @contextmanager
    def stage(self, name: str):
        """Add the time of the block to the stage's account, also when the block fails."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            atomic_write_json(self.path, self.seconds)


def run_demo(config: DemoConfig, *, command: list[str] | None = None) -> Path:
    """Run all stages and return the path of the report's page. Raises MgrpoError for what a user can mend."""
    started = datetime.now(timezone.utc)
    out = config.output.expanduser()
    config = replace(config, output=out)
    # Before anything is written: options that can't be used.
    device = resolve_device(config.device)
    prior_config, perceptual_config, grpo_config = stage_configs(config)
    if config.restart and out.exists():
        _remove_earlier(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        clock = StageClock(out / "stages.json")
    except OSError as error:
        raise InputError(
            f"--output {out}: can't be used ({error.strerror or error}); choose a folder that can be written"
        ) from error

    _say(1, "the prior: a diffusion model learns to guess the body from the head's path")
    with clock.stage("prior"):
        train_prior(prior_config, command=command)
    _say(2, "the perceptual model learns to tell recorded motion from the prior's")
    with clock.stage("perceptual"):
        train_perceptual(perceptual_config, command=command)
    _say(3, "GRPO: groups of guesses under Perlin noise, scored by the hybrid reward, teach the prior")
    with clock.stage("grpo"):
        train_grpo(grpo_config, command=command)

    _say(4, "evaluation on clips that no stage has seen, same sampler and noise for both models")
    data = load_motion_data(config.data, seed=config.seed)
    body, windows = data.body.to(device), data.held_out.to(device)
    models = {
        "prior": load_model(prior_config.output / "last", Denoiser, DenoiserConfig)[0].to(device),
        "post-trained": load_model(grpo_config.output / "last", Denoiser, DenoiserConfig)[0].to(device),
    }
    perceptual = load_model(find_checkpoint(perceptual_config.output), PerceptualModel, PerceptualConfig)[0].to(device)
    transitions = grpo_config.sampler.transitions(CosineSchedule.make(models["prior"].config.max_t))
    results = []
    with (
        clock.stage("evaluation"),
        Progress("evaluation", len(models) * len(windows) * config.evaluation_seeds, "window") as progress,
    ):
        for name, model in models.items():
            results.append(
                evaluate(
                    model,
                    windows,
                    body,
                    transitions,
                    seeds=range(config.evaluation_seeds),
                    samples=config.evaluation_samples,
                    perceptual=perceptual,
                    progress=_increments(progress),
                    name=name,
                    project_rotations=grpo_config.sampler.project,
                )
            )
    print_table(result_table(results, title=f"Held-out clips: {', '.join(data.clip_names['held_out'])}"))
    write_tables(out / "report", results, title="Demo: held-out clips")

    _say(5, "diversity inside groups, with and without Perlin noise")
    measured = data.post_training.batch(1 << 20, 32).to(device)
    with (
        clock.stage("diversity"),
        Progress("diversity", 2 * len(config.alphas) * config.diversity_draws, "rollout") as progress,
    ):
        diversity = diversity_by_alpha(
            models["prior"],
            measured,
            body,
            transitions,
            grpo_config,
            alphas=config.alphas,
            draws=config.diversity_draws,
            progress=_increments(progress),
        )
    notice(printed_diversity(diversity))

    _say(6, "the report")
    with clock.stage("report"), Progress("report", unit="part") as progress:
        samples = _samples_for_player(models, windows, transitions, body, grpo_config)
        found = DemoResults(
            started=started,
            command=command,
            config=config,
            results=results,
            diversity=diversity,
            windows=windows,
            samples=samples,
            clip_names=data.clip_names,
            stages=tuple(Stage(name, seconds) for name, seconds in clock.seconds.items()),
            folders={"prior": prior_config.output, "perceptual": perceptual_config.output, "grpo": grpo_config.output},
        )
        files = write_report(demo_report(found), out / "report", progress=lambda text: progress.update(part=text))
    notice(f"report: {files.html}")
    return files.html


@torch.no_grad()
def _samples_for_player(models, windows, transitions, body, config: GrpoConfig) -> dict:
    """A few samples of every held-out window from each model, with the same noise: ``{name: PredictedMotion (N, S, T,
    …)}``."""
    from mgrpo.diffusion.sampler import NoiseKeys, sample
    from mgrpo.models.conditioning import make_cond
    from mgrpo.models.motion import decode_motion

    condition = torch.arange(len(windows), device=windows.mask.device)
    keys = NoiseKeys(config.seed, 0, condition, 4, share_initial=False)
    found = {}
    for name, model in models.items():
        cond = make_cond(model.config, windows.T_world_cpf, windows.T_cpf_tm1_cpf_t)
        x0 = sample(model, cond, transitions, keys, project_rotations=config.sampler.project).x0
        found[name] = decode_motion(model.layout, x0, windows.T_world_cpf[:, None], body)
    return found


def _say(number: int, text: str) -> None:
    notice(f"[{number}/6] {text}")


def _increments(progress: Progress) -> Callable[[int, int], None]:
    """A callback of (done, in all) that feeds a progress bar; counting starts anew when ``done`` falls."""
    last = 0

    def callback(done: int, total: int) -> None:
        nonlocal last
        progress.update(done - last if done > last else done)
        last = done if done < total else 0

    return callback


def _remove_earlier(out: Path) -> None:
    """Delete what an earlier demo made in its folder, and nothing else."""
    for name in ("prior", "perceptual", "grpo", "report"):
        if (out / name).is_dir():
            shutil.rmtree(out / name)
    (out / "stages.json").unlink(missing_ok=True)
