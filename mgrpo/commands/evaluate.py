"""`mgrpo evaluate`: models on the same windows, with the same sampler and noise, as a table."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mgrpo.body import BodyModel, resolve_body
from mgrpo.data import (
    MotionClip,
    MotionWindows,
    cut_windows,
    deterministic_windows,
    drop_short,
    load_motion,
    mirror,
    recording_of,
)
from mgrpo.data.amass_names import subsets_named
from mgrpo.data.hdf5_dataset import CACHE_MB, deterministic_slices, hdf5_files, strided_slices
from mgrpo.diffusion.config import SamplerConfig, StitchingConfig
from mgrpo.errors import InputError
from mgrpo.eval import protocol_table as protocols_layout
from mgrpo.eval.evaluate import EvaluationResult
from mgrpo.eval.protocols import ProtocolName
from mgrpo.eval.published import Dataset, published_rows
from mgrpo.eval.tables import print_table, result_table, to_csv, to_json, to_latex, to_markdown, write_tables
from mgrpo.guidance import Optimisation
from mgrpo.storage import make_folder
from mgrpo.train.device import resolve_device
from mgrpo.train.hdf5_parts import open_with_progress, split_hdf5
from mgrpo.train.interrupt import graceful_interrupt
from mgrpo.train.motion_data import MotionDataConfig, split_motion
from mgrpo.train.progress import Progress
from mgrpo.train.seeding import require_seed

from .destination import refuse_run_folder
from .evaluation_folder import EvaluationFolder
from .evaluation_options import chosen_protocol, refuse_contradictions, settle
from .evaluation_work import EvaluationWork, load_work
from .sharding import Shard, chosen_shard, shard_device, wait_for_all

Part = Literal["held_out", "validation", "post_training", "train", "all"]


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure one or more models on the same windows, with the same sampler and the same noise.

    The first model is what the others are compared with, window by window. With --out, every finished piece of work is
    kept there: the same command goes on where it was interrupted, and --shard or torchrun share the work.
    """

    checkpoint: tuple[Path, ...]
    """Models: run folders (their best checkpoint), checkpoint folders, RUN/last, EgoAllo checkpoints, or folders
    written by save_pretrained."""
    name: tuple[str, ...] = ()
    """Names of the models in the table, in the same order; default: from the paths."""
    use_ema: bool = False
    """Take the averaged weights of the models (priors trained with --ema), instead of their last ones."""
    protocol: ProtocolName | None = None
    """Fix windows, sampler, seeds, samples and measures: `egoallo` (EgoAllo's evaluation script), `paper` (MotionGRPO's
    Table 1) or `mgrpo` (ours, usual definitions); an option that contradicts it is an error. Without one, the options
    below decide."""
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
    length: int = 0
    """Frames in a window, at 30 per second; 0: the protocol's, otherwise 32."""
    stride: int = 0
    """Frames between the starts of windows; 0: the protocol's, otherwise half a window."""
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
    seeds: tuple[int, ...] = ()
    """Seeds of the noise; every window is sampled with each. None: the protocol's, otherwise 0."""
    samples: int = 0
    """Samples for each window and seed; 2 or more also give diversity and the mean of the samples. 0: the protocol's,
    otherwise 1."""
    sampler: Annotated[SamplerConfig, tyro.conf.arg(name="")] = field(default_factory=SamplerConfig)
    stitching: Annotated[StitchingConfig, tyro.conf.arg(name="")] = field(default_factory=StitchingConfig)
    guidance: Optimisation = "off"
    """Optimisation of the samples: `off`; `post`, after sampling (published rows with ℵ); or `inner`, in every sampling
    step as well."""
    perceptual: Path | None = None
    """Run folder, checkpoint or save_pretrained folder of a perceptual model; adds its score and accuracy."""
    family: Literal["standard", "paper", "all"] = "standard"
    """Measures in the table: the usual definitions, those of the published tables, or both."""
    format: Literal["table", "markdown", "latex", "csv", "json"] = "table"
    """What to print on standard output."""
    out: Path | None = None
    """Folder for evaluation.md, .tex, .csv, .json and evaluation_windows.csv (every single value). It also keeps what
    is finished: the same command goes on there, another evaluation is refused."""
    shard: str | None = None
    """Do the i-th of n shares of the work, such as 2/3; needs --out, the same for all. Whoever finishes last writes the
    tables. torchrun shares by itself."""
    published: bool = True
    """Show published numbers above ours, where the protocol has the same definitions."""
    published_data: Dataset = "amass"
    """Which data set's published numbers: amass, or rich (protocol paper)."""
    title: str = "Evaluation"
    """Heading of the table."""
    windows_per_chunk: int = 0
    """Windows sampled at a time, to bound the memory; 0: chosen from their length. Another number rounds differently in
    the last digits."""
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
        settle(self)
        if len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise InputError(f"--seeds must be different whole numbers from 0, got {' '.join(map(str, self.seeds))}")
        require_seed(max(self.seeds), "--seeds")
        for option, least in (("length", 4), ("stride", 0), ("samples", 1), ("windows_per_chunk", 0)):
            if getattr(self, option) < least:
                raise InputError(f"--{option.replace('_', '-')} must be at least {least}, got {getattr(self, option)}")


def run_evaluate(config: EvaluateConfig, *, command: Sequence[str] | None = None) -> int:
    """Evaluate, print the table, and write the files if asked. Returns the exit code 0.

    ``command``: words of the command line, to refuse options that contradict the protocol although they have their
    usual value, and to name the command that continues.

    Raises InputError for checkpoints, motion or options that can't be used, MgrpoError when the disk refuses,
    TrainingInterrupted after a signal, when what was finished is on the disk.
    """
    refuse_contradictions(config, command or ())
    shard = chosen_shard(config.shard)
    if config.out is None:
        if shard.count > 1:
            raise InputError("several processes share an evaluation through --out: give the same folder to all of them")
        _show(config, evaluate_checkpoints(config))
        return 0
    refuse_run_folder(config.out, "--out")
    make_folder(config.out)  # before the work: a place that can't be written to should be known now
    work = _load(config, shard)
    with EvaluationFolder(config.out, work.settings(), str(shard)) as folder:
        with graceful_interrupt(_Continuation(command)) as stop:
            work.compute_all(
                shard.part(work.pieces()),
                folder.finished(),
                folder.append,
                _progress(shard),
                lambda: stop.requested,
            )
        wait_for_all(shard)
        if not shard.speaks:
            return 0
        finished = folder.finished()
        missing = sum(piece not in finished for piece in work.pieces())
        if missing:
            print(
                f"shard {shard} is done; {missing} of {len(work.pieces())} pieces are left to other processes. Whoever "
                f"finishes last writes the tables to {config.out}; the command without --shard does what is left."
            )
            return 0
        results = work.results(finished)
        with folder.writing_results():
            _write(config, results)
    _show(config, results)
    if config.format == "table":
        print(f"written: {config.out}/evaluation.{{md,tex,csv,json}} and evaluation_windows.csv")
    return 0


def evaluate_checkpoints(config: EvaluateConfig) -> list[EvaluationResult]:
    """The results of every model, in the order of ``config.checkpoint``; nothing is written or shared."""
    return _load(config, Shard()).compute_in_memory(_progress(Shard()))


def _load(config: EvaluateConfig, shard: Shard) -> EvaluationWork:
    device = resolve_device(shard_device(config.device, shard))
    body = resolve_body(config.body, with_mesh=False).body_only()
    return load_work(config, evaluation_windows(config), body, device, model_names)


@dataclass(frozen=True)
class _Continuation:
    """Names the command that goes on with an interrupted evaluation."""

    command: Sequence[str] | None

    def resume_command(self) -> str:
        if self.command is None:
            return "the same call with the same --out"
        words = list(self.command)
        words[0] = Path(words[0]).name
        if words[0] == "__main__.py":
            words[:1] = ["python", "-m", "mgrpo"]
        return shlex.join(words)


class _Silent:
    """Progress of a process that doesn't speak."""

    def update(self, windows: int) -> None:
        """Show nothing."""


def _progress(shard: Shard) -> Any:
    def progress(name: str, total: int, before: int) -> contextlib.AbstractContextManager[Any]:
        if not shard.speaks:
            return contextlib.nullcontext(_Silent())
        share = f" (shard {shard})" if shard.count > 1 else ""
        return Progress(f"evaluate {name}{share}", total, "windows", start=before)

    return progress


def _show(config: EvaluateConfig, results: Sequence[EvaluationResult]) -> None:
    """Print the results on standard output."""
    if config.format == "json":
        content, extra = to_json(results), _protocol_json(config, results)
        print(json.dumps(content | extra, indent=2, allow_nan=False))
    elif config.format == "table":
        if config.protocol is None:
            print_table(result_table(results, family=config.family, title=config.title))
        else:
            protocols_layout.print_protocol_table(_protocol_table(config, results))
    else:
        print(_texts(config, results)[config.format], end="")


def _write(config: EvaluateConfig, results: Sequence[EvaluationResult]) -> None:
    assert config.out is not None
    write_tables(
        config.out,
        results,
        family=config.family,
        title=config.title,
        texts=_texts(config, results),
        extra=_protocol_json(config, results),
    )


def _texts(config: EvaluateConfig, results: Sequence[EvaluationResult]) -> dict[str, str]:
    """The table as Markdown, LaTeX and CSV."""
    if config.protocol is None:
        table = result_table(results, family=config.family, title=config.title)
        return {"markdown": to_markdown(table), "latex": to_latex(table), "csv": to_csv(table)}
    layout = _protocol_table(config, results)
    return {
        "markdown": protocols_layout.to_markdown(layout),
        "latex": protocols_layout.to_latex(layout),
        "csv": protocols_layout.to_csv(layout),
    }


def _protocol_table(config: EvaluateConfig, results: Sequence[EvaluationResult]) -> protocols_layout.ProtocolTable:
    protocol = chosen_protocol(config)
    clips = len(set(results[0].window_names))
    which = f"split: {config.split}" if config.split else f"part: {config.part}"
    rows = published_rows(protocol.table, data=config.published_data, length=config.length) if config.published else ()
    return protocols_layout.protocol_table(
        results,
        protocol,
        data=f"the motion {config.motion!r} ({which}; windows: {results[0].windows}, clips: {clips})",
        published=rows,
        title=config.title,
    )


def _protocol_json(config: EvaluateConfig, results: Sequence[EvaluationResult]) -> dict[str, Any]:
    return {} if config.protocol is None else protocols_layout.protocol_json(_protocol_table(config, results))


def evaluation_windows(config: EvaluateConfig) -> MotionWindows:
    """The windows that the options name."""
    body = resolve_body(config.body, with_mesh=False).body_only()
    if hdf5_files(config.motion):
        return hdf5_windows(config, body)
    for option in ("split", "slices", "file_list"):
        if getattr(config, option) not in ("", "stride") and not (option == "slices" and config.protocol):
            raise InputError(f"--{option.replace('_', '-')} is for HDF5 files; {config.motion} is other motion")
    clips = load_motion(config.motion, body)
    if config.short_clips == "drop" and config.protocol is None:
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
    if config.protocol is not None:
        # The parts are those that training chose, whatever its length was: so what is short is left out only now.
        clips = _protocol_clips(clips, body, mirrored=config.mirrored)
        if chosen_protocol(config).slices == "deterministic":
            return deterministic_windows(clips, body, config.length)
        clips, _ = drop_short(clips, config.length)
        if not clips:
            raise InputError(f"--protocol {config.protocol}: no clip gives a window of {config.length} frames")
        return cut_windows(clips, body, config.length, config.stride)
    mirror_images = [mirror(clip, body) for clip in clips] if config.mirrored else []
    return cut_windows([*clips, *mirror_images], body, config.length, config.stride or max(1, config.length // 2))


def hdf5_windows(config: EvaluateConfig, body: BodyModel) -> MotionWindows:
    """The windows of an HDF5 file that the options name; sequences shorter than a window are left out, as EgoAllo does.

    Raises InputError for a part or split without motion, a body that the file wasn't made with, a damaged file.
    """
    if config.mirrored and config.protocol is None:
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
    if config.protocol is not None and not config.mirrored:
        chosen = chosen.part(lambda entry: recording_of(entry.name) == entry.name)
    chosen.check_body(body)
    if config.slices == "deterministic":
        slices = deterministic_slices(chosen, config.length)
    else:
        slices = strided_slices(chosen, config.length, config.stride or max(1, config.length // 2))
    return chosen.windows(slices, config.length, body)


def _protocol_clips(clips: Sequence[MotionClip], body: BodyModel, *, mirrored: bool) -> list[MotionClip]:
    """The clips in an order that depends on their names alone, since it numbers the windows and so keys their noise:
    each recording, then its mirror image if wanted. Mirrored copies that the data hold already are taken as they
    are."""
    copies = [clip for clip in clips if recording_of(clip.name) != clip.name]
    if not mirrored:
        return sorted((clip for clip in clips if recording_of(clip.name) == clip.name), key=lambda clip: clip.name)
    ordered = sorted(clips, key=lambda clip: (recording_of(clip.name), clip.name))
    return ordered if copies else [each for clip in ordered for each in (clip, mirror(clip, body))]


def model_names(checkpoints: Sequence[Path]) -> list[str]:
    """Short names for checkpoints, all different: the run folder's name, with the step where that alone isn't
    enough."""
    runs = []
    for path in map(Path.resolve, checkpoints):
        in_run, in_experiment = path.parent.name == "checkpoints", path.name.startswith("checkpoints_")  # EgoAllo's
        runs.append(path.parent.parent.name if in_run else path.parent.name if in_experiment else path.name)
    names = [run if runs.count(run) == 1 else f"{run} {path.name}" for run, path in zip(runs, checkpoints)]
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, start=1)]
