"""`mgrpo evaluate`: models on the same windows, with the same sampler and noise, as a table."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from mgrpo.data.amass.names import subsets_named
from mgrpo.data.hdf5.dataset import CACHE_MB, deterministic_slices, hdf5_files, strided_slices
from mgrpo.errors import InputError
from mgrpo.eval import protocol_table as protocols_layout
from mgrpo.eval.evaluate import EvaluationResult
from mgrpo.eval.published import published_rows
from mgrpo.eval.tables import print_table, result_table, to_csv, to_json, to_latex, to_markdown, write_tables
from mgrpo.execution.device import resolve_device
from mgrpo.storage import make_folder
from mgrpo.terminal.interrupt import graceful_interrupt
from mgrpo.terminal.progress import Progress
from mgrpo.train.hdf5_parts import open_with_progress, split_hdf5
from mgrpo.train.motion_data import MotionDataConfig, split_motion

from .destination import refuse_run_folder
from .evaluation_folder import EvaluationFolder
from .evaluation_options import EvaluateConfig, Part, chosen_protocol, refuse_contradictions
from .evaluation_work import EvaluationWork, load_work
from .sharding import Shard, chosen_shard, shard_device, wait_for_all


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


__all__ = ["EvaluateConfig", "Part", "evaluate_checkpoints", "evaluation_windows", "model_names", "run_evaluate"]
