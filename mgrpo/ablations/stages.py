"""Carrying out one stage, and the record that says that it is finished."""

from __future__ import annotations

import math
import time
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mgrpo.body import BodyModel, resolve_body
from mgrpo.data import MotionWindows, cut_windows, drop_short, load_motion
from mgrpo.data.hdf5.dataset import hdf5_files
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.errors import InputError, MgrpoError
from mgrpo.eval.evaluate import evaluate
from mgrpo.execution.device import resolve_device
from mgrpo.grpo.perturbation import PerlinConfig
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.perceptual import PerceptualConfig, PerceptualModel
from mgrpo.runs.budget import run_budget
from mgrpo.runs.checkpoints import find_checkpoint
from mgrpo.runs.stored_models import load_model
from mgrpo.storage import atomic_write_json, make_folder, read_json
from mgrpo.terminal.progress import Progress
from mgrpo.train.diversity import diversity_by_alpha
from mgrpo.train.dpo import train_dpo
from mgrpo.train.finetune import train_finetune
from mgrpo.train.grpo import train_grpo
from mgrpo.train.grpo_config import GrpoConfig, RewardWeights
from mgrpo.train.motion_data import MotionDataConfig, load_motion_data
from mgrpo.train.perceptual import train_perceptual
from mgrpo.train.prior import train_prior
from mgrpo.train.reft import train_reft

from .plan import DiversitySettings, EvaluationSettings, Stage

_TRAININGS = {
    "prior": train_prior,
    "perceptual": train_perceptual,
    "grpo": train_grpo,
    "finetune": train_finetune,
    "dpo": train_dpo,
    "reft": train_reft,
}


def record_path(output: Path, name: str) -> Path:
    """Where a stage's record is kept."""
    return output / "records" / f"{name.replace('/', '.')}.json"


def read_record(output: Path, name: str) -> dict[str, Any]:
    """A stage's record: ``state`` (``open`` before its first start, ``interrupted``, ``failed``, ``finished``),
    ``seconds``, ``result`` or ``error``. Raises InputError for one that can't be read, or that lacks some of it."""
    path = record_path(output, name)
    if not path.is_file():
        return {"state": "open", "seconds": 0.0}
    what, advice = f"record of stage {name}", "Delete it: the next start does the stage again, from its checkpoint."
    record = read_json(path, what, advice=advice)
    if not _is_record(record, measures=name.endswith((".evaluation", ".diversity"))):
        raise InputError(f"{what} is damaged: {path} lacks a part. {advice}")
    return record


_PARTS = {"interrupted": (), "failed": ("error",), "finished": ("result",)}
"""What a record has besides ``state`` and ``seconds``."""


def _is_record(record: Any, *, measures: bool) -> bool:
    """Whether ``record`` is whole; ``measures``: that of a stage that trains nothing."""
    if not isinstance(record, dict) or record.get("state") not in _PARTS:
        return False
    has_parts = all(part in record for part in _PARTS[record["state"]])
    if not has_parts or not isinstance(record.get("seconds"), (int, float)):
        return False
    if record["state"] != "finished":
        return True
    wanted = ("windows", "values") if measures else ("iterations", "budget")
    return isinstance(record["result"], dict) and all(part in record["result"] for part in wanted)


def carry_out(stage: Stage, output: Path, device: str) -> dict[str, Any]:
    """Do a stage, or what is left of it, and write its record, which is also returned.

    A stage that fails has a record that says why. A signal is passed on as
    :class:`mgrpo.terminal.interrupt.TrainingInterrupted`.
    """
    before = read_record(output, stage.name)["seconds"]
    start = time.perf_counter()
    record: dict[str, Any] = {}
    try:
        record = {"state": "finished", "result": _do(stage, output, device)}
    except MgrpoError as error:
        record = {"state": "failed", "error": str(error), "defect": False}
    except KeyboardInterrupt:
        record = {"state": "interrupted"}
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        record = {"state": "failed", "error": text, "defect": True, "traceback": traceback.format_exc()}
    finally:
        if record:
            make_folder(record_path(output, stage.name).parent)
            record = {"stage": stage.name, **record, "seconds": before + time.perf_counter() - start}
            atomic_write_json(record_path(output, stage.name), record)
    return record


def _do(stage: Stage, output: Path, device: str) -> dict[str, Any]:
    config = replace(stage.config, device=device)
    if stage.kind == "evaluation":
        return _evaluate(config)
    if stage.kind == "diversity":
        return _diversity(config)
    if stage.equal_calls is not None:
        reference, own = (read_record(output, name)["result"]["budget"]["network_units"] for name in stage.equal_calls)
        config = replace(config, iterations=max(1, round(config.iterations * reference / own)))
    _TRAININGS[stage.kind](config)  # type: ignore[operator]
    budget = None if stage.kind in ("prior", "perceptual") else asdict(run_budget(config.output))
    return {"iterations": config.iterations, "budget": budget}


def _evaluate(settings: EvaluationSettings) -> dict[str, Any]:
    """Every measure of every window, meaned over noise seeds and samples: null where nothing could be scored."""
    device = resolve_device(settings.device)
    body, windows = evaluation_windows(settings.data, settings.test, settings.windows)
    model = load_model(find_checkpoint(settings.model, prefer="last"), Denoiser, DenoiserConfig)[0].to(device)
    perceptual = load_model(find_checkpoint(settings.perceptual), PerceptualModel, PerceptualConfig)[0].to(device)
    with Progress("evaluation", len(windows) * settings.seeds, "windows") as progress:

        def shown(done: int, total: int) -> None:
            progress.update(done - progress.done)

        result = evaluate(
            model,
            windows.to(device),
            body,
            settings.sampler.transitions(CosineSchedule.make(model.config.max_t)),
            seeds=range(settings.seeds),
            samples=settings.samples,
            perceptual=perceptual,
            project_rotations=settings.sampler.project,
            progress=shown,
        )
    values = {**result.values, **result.group_values}
    means = {name: value.flatten(1).nanmean(1) for name, value in values.items()}
    means["wrong_count"] = len(windows) * (1 - means["accuracy"])  # its mean over windows is the count
    return {
        "windows": list(result.window_names),
        "settings": result.settings | {"seeds": settings.seeds, "samples": settings.samples},
        "values": {name: plain_values(value) for name, value in means.items()},
    }


def _diversity(settings: DiversitySettings) -> dict[str, Any]:
    device = resolve_device(settings.device)
    body, windows = evaluation_windows(settings.data, settings.test, settings.windows)
    model = load_model(find_checkpoint(settings.model, prefer="last"), Denoiser, DenoiserConfig)[0].to(device)
    config = GrpoConfig(
        group_size=settings.group_size,
        share_initial_noise=settings.share_initial_noise,
        sampler=settings.sampler,
        perlin=PerlinConfig(settings.alpha, settings.lattice, settings.octaves, settings.per_member),
        rewards=RewardWeights(visual=0.0),
        seed=settings.seed,
    )
    (found,) = diversity_by_alpha(
        model,
        windows.to(device),
        body.to(device),
        settings.sampler.transitions(CosineSchedule.make(model.config.max_t)),
        config,
        alphas=(settings.alpha,),
        draws=settings.draws,
        sharing=(settings.per_member,),
    )
    values = {name: plain_values(value.double().nanmean(1)) for name, value in found.values.items()}
    return {"windows": list(windows.names), "values": values}


def plain_values(values: torch.Tensor) -> list[float | None]:
    """Numbers for JSON, which knows no NaN."""
    return [value if math.isfinite(value) else None for value in values.double().cpu().tolist()]


def evaluation_windows(data: MotionDataConfig, test: str, most: int) -> tuple[BodyModel, MotionWindows]:
    """The body, and the windows that all rows are evaluated on, on the CPU. Raises InputError for motion that can't be
    used."""
    if not test:
        loaded = load_motion_data(data, seed=0)
        body, windows = loaded.body, loaded.held_out
    elif hdf5_files(test):
        loaded = load_motion_data(replace(data, motion=test), seed=0)
        body, windows = loaded.body, loaded.held_out
    else:
        body = resolve_body(data.body, with_mesh=False).body_only()
        clips = load_motion(test, body)
        if data.short_clips == "drop":
            clips, _ = drop_short(clips, data.length)
            if not clips:
                raise InputError(f"--data-test {test}: no clip is long enough for windows of {data.length} frames")
        windows = cut_windows(clips, body, data.length, data.stride or max(1, data.length // 2))
    if most and len(windows) > most:
        windows = windows.select([number * len(windows) // most for number in range(most)])
    return body, windows
