"""`mgrpo evaluate`: models on the same windows, with the same sampler and noise, as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mgrpo.body import BodyModel, resolve_body
from mgrpo.data import MotionWindows, cut_windows, drop_short, load_motion, mirror
from mgrpo.data.amass_names import subsets_named
from mgrpo.data.hdf5_dataset import CACHE_MB, deterministic_slices, hdf5_files, strided_slices
from mgrpo.diffusion.config import SamplerConfig, StitchingConfig
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.errors import InputError
from mgrpo.eval.evaluate import EvaluationResult, evaluate
from mgrpo.eval.tables import print_table, result_table, to_csv, to_json, to_latex, to_markdown, write_tables
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.perceptual import PerceptualConfig, PerceptualModel
from mgrpo.storage import make_folder
from mgrpo.train.checkpoints import load_model
from mgrpo.train.device import resolve_device
from mgrpo.train.hdf5_parts import open_with_progress, split_hdf5
from mgrpo.train.motion_data import MotionDataConfig, split_motion
from mgrpo.train.progress import Progress
from mgrpo.train.trained_length import trained_length

Part = Literal["held_out", "validation", "post_training", "train", "all"]


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure one or more models on the same windows, with the same sampler and the same noise.

    The first model is what the others are compared with, window by window.
    """

    checkpoint: tuple[Path, ...]
    """Models: run folders (their best checkpoint), checkpoint folders, RUN/last, EgoAllo checkpoints, or folders
    written by save_pretrained."""
    name: tuple[str, ...] = ()
    """Names of the models in the table, in the same order; default: from the paths."""
    use_ema: bool = False
    """Take the averaged weights of the models (priors trained with --ema), instead of their last ones."""
    motion: str = "demo"
    """Motion: `demo` (ships with the package), a pack or clip npz, a folder of them, or an HDF5 file in EgoAllo's
    layout."""
    body: str = "default"
    """Body model: `default` (ships with the package), `smplh` (searched for), or the path of an SMPL-H npz."""
    part: Part = "held_out"
    """Which clips: those kept out of training, those used to choose settings, those that GRPO alone trained on, those
    that the prior trained on, or all."""
    validation: tuple[str, ...] = ()
    """Clip names (or patterns such as walk_*) of the validation part, if training named them."""
    held_out: tuple[str, ...] = ()
    """Clip names (or patterns) of the held-out part, if training named them."""
    post_training: tuple[str, ...] = ()
    """Clip names (or patterns) that GRPO alone trained on, if training named them."""
    length: int = 32
    """Frames in a window, at 30 per second."""
    stride: int = 0
    """Frames between the starts of windows; 0 means half a window."""
    short_clips: Literal["error", "drop"] = "error"
    """Clips shorter than a window (one frame more than the length): refuse them, or leave them out."""
    mirrored: bool = False
    """Also evaluate on the mirror images of the clips."""
    split: str = ""
    """HDF5: subsets to evaluate on instead of a part, joined by +: train, val, test, test_humor (EgoAllo's splits),
    all, or names of folders. Empty: the part; held-out is test."""
    slices: Literal["stride", "deterministic"] = "stride"
    """HDF5: windows at every stride, or EgoAllo's fixed slices, of which its published numbers are the mean."""
    file_list: str = ""
    """HDF5: text file with the names of the sequences to use. Empty: NAME_files.txt beside NAME.hdf5 where there is
    one; `none`: every sequence of the file."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the noise; every window is sampled with each."""
    samples: int = 1
    """Samples for each window and seed; 2 or more also give diversity and the mean of the samples."""
    sampler: Annotated[SamplerConfig, tyro.conf.arg(name="")] = field(default_factory=SamplerConfig)
    stitching: Annotated[StitchingConfig, tyro.conf.arg(name="")] = field(default_factory=StitchingConfig)
    perceptual: Path | None = None
    """Run folder, checkpoint or save_pretrained folder of a perceptual model; adds its score and accuracy."""
    family: Literal["standard", "paper", "all"] = "standard"
    """Measures in the table: the usual definitions, those of the published tables, or both."""
    format: Literal["table", "markdown", "latex", "csv", "json"] = "table"
    """What to print on standard output."""
    out: Path | None = None
    """Folder for evaluation.md, .tex, .csv, .json and evaluation_windows.csv (every single value)."""
    title: str = "Evaluation"
    """Heading of the table."""
    windows_per_chunk: int = 0
    """Windows sampled at a time, to bound the memory; 0: chosen from their length."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1 ..."""

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise InputError("--checkpoint needs at least one run folder or checkpoint")
        if self.name and len(self.name) != len(self.checkpoint):
            raise InputError(
                f"--name must name every model: {len(self.checkpoint)} checkpoints, {len(self.name)} names"
            )
        if len(set(self.name)) != len(self.name):
            raise InputError(f"--name must differ between models, got {', '.join(self.name)}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise InputError(
                f"--seeds must be different whole numbers from 0, got {' '.join(map(str, self.seeds)) or 'none'}"
            )
        for option, least in (("length", 4), ("stride", 0), ("samples", 1), ("windows_per_chunk", 0)):
            if getattr(self, option) < least:
                raise InputError(f"--{option.replace('_', '-')} must be at least {least}, got {getattr(self, option)}")


def run_evaluate(config: EvaluateConfig) -> int:
    """Evaluate, print the table, and write the files if asked. Returns the exit code 0.

    Raises InputError for checkpoints, motion or options that can't be used, MgrpoError when the disk refuses.
    """
    if config.out is not None:
        make_folder(config.out)  # before the work: a place that can't be written to should be known now
    results = evaluate_checkpoints(config)
    table = result_table(results, family=config.family, title=config.title)
    if config.format == "table":
        print_table(table)
    elif config.format == "json":
        print(json.dumps(to_json(results), indent=2, allow_nan=False))
    else:
        print({"markdown": to_markdown, "latex": to_latex, "csv": to_csv}[config.format](table), end="")
    if config.out is not None:
        write_tables(config.out, results, family=config.family, title=config.title)
        if config.format == "table":
            print(f"written: {config.out}/evaluation.{{md,tex,csv,json}} and evaluation_windows.csv")
    return 0


def evaluate_checkpoints(config: EvaluateConfig) -> list[EvaluationResult]:
    """The results of every model, in the order of ``config.checkpoint``."""
    device = resolve_device(config.device)
    body = resolve_body(config.body, with_mesh=False).body_only()
    windows = evaluation_windows(config)
    perceptual = None
    if config.perceptual is not None:
        perceptual = load_model(config.perceptual, PerceptualModel, PerceptualConfig)[0].to(device)
    models = [load_model(path, Denoiser, DenoiserConfig, use_ema=config.use_ema) for path in config.checkpoint]
    names = config.name or model_names([checkpoint.path for _, _, checkpoint in models])
    results = []
    stitchings = [config.stitching.stitching(trained_length(checkpoint.path)) for _, _, checkpoint in models]
    cut = [stitching for stitching in stitchings if len(stitching.plan(config.length)) > 1]
    if cut and len(set(stitchings)) > 1:
        raise InputError(
            f"--length {config.length} is more than one window of {min(one.window for one in cut)} frames, and the "
            "models were trained with different lengths, so they would be given different windows; name one --window "
            "for all"
        )
    for name, (denoiser, model_config, _), stitching in zip(names, models, stitchings):
        transitions = config.sampler.transitions(CosineSchedule.make(model_config.max_t))
        with Progress(f"evaluate {name}", len(windows) * len(config.seeds), "windows") as progress:
            results.append(
                evaluate(
                    denoiser.to(device),
                    windows,
                    body,
                    transitions,
                    seeds=config.seeds,
                    samples=config.samples,
                    perceptual=perceptual,
                    progress=lambda done, _, progress=progress: progress.update(done - progress.done),
                    name=name,
                    project_rotations=config.sampler.project,
                    stitching=stitching,
                    windows_per_chunk=config.windows_per_chunk or None,
                )
            )
        denoiser.cpu()
    return results


def evaluation_windows(config: EvaluateConfig) -> MotionWindows:
    """The windows that the options name."""
    body = resolve_body(config.body, with_mesh=False).body_only()
    if hdf5_files(config.motion):
        return hdf5_windows(config, body)
    for option in ("split", "slices", "file_list"):
        if getattr(config, option) not in ("", "stride"):
            raise InputError(f"--{option.replace('_', '-')} is for HDF5 files; {config.motion} is other motion")
    clips = load_motion(config.motion, body)
    if config.short_clips == "drop":
        clips, _ = drop_short(clips, config.length)
        if not clips:
            raise InputError(f"--motion {config.motion}: no clip is long enough for windows of {config.length} frames")
    if config.part != "all":
        split = MotionDataConfig(
            motion=config.motion,
            validation=config.validation,
            held_out=config.held_out,
            post_training=config.post_training,
        )
        clips = getattr(split_motion(clips, split), config.part)
        if not clips:
            raise InputError(f"--part {config.part}: no clip is kept for it; name some with --post-training")
    elif config.validation or config.held_out or config.post_training:
        raise InputError("--part all takes every clip; leave out --validation, --held-out and --post-training")
    mirror_images = [mirror(clip, body) for clip in clips] if config.mirrored else []
    return cut_windows([*clips, *mirror_images], body, config.length, config.stride or max(1, config.length // 2))


def hdf5_windows(config: EvaluateConfig, body: BodyModel) -> MotionWindows:
    """The windows of an HDF5 file that the options name; sequences shorter than a window are left out, as EgoAllo does.

    Raises InputError for a part or split without motion, a body that the file wasn't made with, a damaged file.
    """
    if config.mirrored:
        raise InputError("--mirrored: HDF5 files hold their mirrored copies, which are evaluated anyway; leave it out")
    if config.slices == "deterministic" and config.stride:
        raise InputError("--stride says nothing about deterministic slices; leave one of the two out")
    named = {"validation": config.validation, "held_out": config.held_out, "post_training": config.post_training}
    if (config.split or config.part == "all") and any(named.values()):
        raise InputError(
            f"{'--split' if config.split else '--part all'} says which sequences to take; leave out --validation, "
            "--held-out and --post-training"
        )
    motion = open_with_progress(config.motion, config.file_list, CACHE_MB)
    if config.split:
        wanted = subsets_named(config.split, sorted({entry.subset for entry in motion.sequences}), option="--split")
        chosen = motion.part(lambda entry: entry.subset in wanted)
    elif config.part == "all":
        chosen = motion
    else:
        chosen = split_hdf5(motion, **named).motion(motion, config.part)
    if not len(chosen):
        what = f"--split {config.split}" if config.split else f"--part {config.part}"
        raise InputError(f"{what}: {config.motion} has no motion for it; mgrpo data info shows what it has")
    chosen.check_body(body)
    if config.slices == "deterministic":
        slices = deterministic_slices(chosen, config.length)
    else:
        slices = strided_slices(chosen, config.length, config.stride or max(1, config.length // 2))
    return chosen.windows(slices, config.length, body)


def model_names(checkpoints: Sequence[Path]) -> list[str]:
    """Short names for checkpoints, all different: the run folder's name, with the step where that alone isn't
    enough."""
    runs = []
    for path in map(Path.resolve, checkpoints):
        in_run, in_experiment = path.parent.name == "checkpoints", path.name.startswith("checkpoints_")  # EgoAllo's
        runs.append(path.parent.parent.name if in_run else path.parent.name if in_experiment else path.name)
    names = [run if runs.count(run) == 1 else f"{run} {path.name}" for run, path in zip(runs, checkpoints)]
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, start=1)]
