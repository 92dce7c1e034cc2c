"""The `mgrpo` command.

This module stays light: the overview, `--version` and misspelt commands answer without loading torch. Each command's
options are a frozen dataclass that lives beside the code it configures; it is imported when its command is called, and
tyro turns it into options and help.

Exit codes: 0 done, 1 a defect of mgrpo, 2 something to mend by the user (one message, no traceback; `MGRPO_DEBUG=1`
adds the traceback), 130 and 143 stopped by Ctrl-C and by SIGTERM, 141 the reader of our output went away.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import functools
import importlib
import inspect
import io
import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgrpo import __version__
from mgrpo.errors import InputError, MgrpoError
from mgrpo.options import command_options, refuse_unused
from mgrpo.terminal import write_anywhere


@dataclass(frozen=True)
class Command:
    """One command: where its options and its function are, without importing them."""

    words: tuple[str, ...]
    """Words that name it."""
    summary: str
    """What it does, for the overview."""
    module: str
    """Module that holds the next three."""
    config: str
    """Name of the dataclass of its options."""
    function: str
    """Name of the function that takes that dataclass; one with a keyword `command` also gets the words of the command
    line."""
    presets: str | None = None
    """Name of a dictionary of configurations; one may be named directly after the command, options then change it."""
    preset_option: str = ""
    """Option that names one of these too, such as --preset, and sets all options as it says."""
    result: str | None = None
    """Text before the path that the function returns; None when the function tells its result itself."""


COMMANDS = (
    Command(
        ("demo",),
        "the whole pipeline, small: train, post-train, evaluate, write a report",
        "mgrpo.demo",
        "DemoConfig",
        "run_demo",
    ),
    Command(
        ("train", "prior"),
        "train the diffusion prior on motion",
        "mgrpo.train.prior",
        "PriorConfig",
        "train_prior",
        presets="PRIOR_PRESETS",
        preset_option="--preset",
        result="last checkpoint",
    ),
    Command(
        ("train", "perceptual"),
        "train the perceptual model that tells recorded from generated motion",
        "mgrpo.train.perceptual",
        "PerceptualTrainingConfig",
        "train_perceptual",
        presets="PERCEPTUAL_TRAINING_PRESETS",
        result="last checkpoint",
    ),
    Command(
        ("train", "grpo"),
        "post-train the prior with GRPO",
        "mgrpo.train.grpo",
        "GrpoConfig",
        "train_grpo",
        presets="GRPO_PRESETS",
        result="last checkpoint",
    ),
    Command(
        ("train", "finetune"),
        "baseline: train the prior on, on recordings or on the best of its own samples",
        "mgrpo.train.finetune",
        "FinetuneConfig",
        "train_finetune",
        result="last checkpoint",
    ),
    Command(
        ("train", "dpo"),
        "baseline: post-train the prior with Diffusion-DPO, offline or online",
        "mgrpo.train.dpo",
        "DpoConfig",
        "train_dpo",
        result="last checkpoint",
    ),
    Command(
        ("train", "reft"),
        "baseline: post-train the prior by back-propagated rewards (ReFL, DRaFT-K)",
        "mgrpo.train.reft",
        "ReftConfig",
        "train_reft",
        result="last checkpoint",
    ),
    Command(
        ("report",),
        "what post-trainings did, finished or going on: curves, health, time, alarms",
        "mgrpo.commands.report",
        "ReportConfig",
        "run_report",
    ),
    Command(
        ("ablate", "table2"),
        "parts of the method, row by row (the paper's Table 2)",
        "mgrpo.ablations.run",
        "Table2Config",
        "ablate_table2",
        presets="TABLE2_SCALES",
        preset_option="--scale",
    ),
    Command(
        ("ablate", "table3"),
        "diversity under Perlin noise, and what GRPO makes of it (Table 3)",
        "mgrpo.ablations.run",
        "Table3Config",
        "ablate_table3",
        presets="TABLE3_SCALES",
        preset_option="--scale",
    ),
    Command(
        ("ablate", "table4"),
        "the perceptual model's negatives (Table 4)",
        "mgrpo.ablations.run",
        "Table4Config",
        "ablate_table4",
        presets="TABLE4_SCALES",
        preset_option="--scale",
    ),
    Command(
        ("ablate", "table5"),
        "GRPO against fine-tuning, DPO and back-propagated rewards (Table 5)",
        "mgrpo.ablations.run",
        "Table5Config",
        "ablate_table5",
        presets="TABLE5_SCALES",
        preset_option="--scale",
    ),
    Command(
        ("ablate", "sampler"),
        "transition kernels and their noise",
        "mgrpo.ablations.run",
        "SamplerAblationConfig",
        "ablate_sampler",
        presets="SAMPLER_SCALES",
        preset_option="--scale",
    ),
    Command(
        ("ablate", "presets"),
        "the presets of `train grpo` at equal optimiser steps and equal network calls",
        "mgrpo.ablations.run",
        "PresetsConfig",
        "ablate_presets",
        presets="PRESETS_SCALES",
        preset_option="--scale",
    ),
    Command(
        ("ablate", "stepweights"),
        "weights and number of the trained steps",
        "mgrpo.ablations.run",
        "StepWeightsConfig",
        "ablate_stepweights",
        presets="STEPWEIGHTS_SCALES",
        preset_option="--scale",
    ),
    Command(
        ("evaluate",),
        "measure one or more models on held-out motion",
        "mgrpo.commands.evaluate",
        "EvaluateConfig",
        "run_evaluate",
    ),
    Command(
        ("metrics",),
        "measure anybody's motion files against their truth",
        "mgrpo.commands.metrics",
        "MetricsConfig",
        "run_metrics",
    ),
    Command(
        ("sample",),
        "recover a body from a head trajectory; npz and picture",
        "mgrpo.commands.sample",
        "SampleConfig",
        "run_sample",
    ),
    Command(
        ("infer",),
        "full-body motion from what a headset recorded: Aria, VR, AR, or plain head poses",
        "mgrpo.commands.infer",
        "InferConfig",
        "run_infer",
    ),
    Command(
        ("live",),
        "the same while the head moves: poses in line by line, bodies out, with a stated delay",
        "mgrpo.commands.live",
        "LiveConfig",
        "run_live",
    ),
    Command(
        ("view",),
        "look at motion files: in the browser, as an offline page, a film or pictures",
        "mgrpo.commands.view",
        "ViewConfig",
        "run_view",
    ),
    Command(
        ("convert",),
        "store a model in another layout: EgoAllo's, a run's, or that of the Hugging Face Hub",
        "mgrpo.commands.convert",
        "ConvertConfig",
        "run_convert",
    ),
    Command(
        ("export",),
        "write motion as AMASS, .smpl, BVH, GLB, EgoAllo's npz or CSV",
        "mgrpo.commands.export",
        "ExportConfig",
        "run_export",
    ),
    Command(
        ("data", "mocap"),
        "convert BVH or ASF/AMC motion capture to a motion pack",
        "mgrpo.commands.data_mocap",
        "MocapConfig",
        "run_data_mocap",
    ),
    Command(
        ("data", "adt"),
        "convert an Aria Digital Twin sequence to motion",
        "mgrpo.commands.data_adt",
        "AdtConfig",
        "run_data_adt",
    ),
    Command(
        ("data", "hamer"),
        "convert the pickle of HaMeR's hands that EgoAllo saves, without running it",
        "mgrpo.commands.data_hamer",
        "HamerConfig",
        "run_data_hamer",
    ),
    Command(
        ("data", "rich"),
        "convert RICH's fitted bodies to clips",
        "mgrpo.commands.data_rich",
        "RichConfig",
        "run_data_rich",
    ),
    Command(
        ("data", "info"),
        "what HDF5 files of motion hold: subsets, sequences, minutes; optionally check every value",
        "mgrpo.commands.data_info",
        "DataInfoConfig",
        "run_data_info",
    ),
    Command(
        ("data", "amass"),
        "prepare AMASS for training: EgoAllo's HDF5 file from your own download",
        "mgrpo.commands.data_amass",
        "AmassConfig",
        "run_amass",
    ),
    Command(
        ("data", "gender-conversion"),
        "fit the shape numbers of one SMPL-H gender to another, for data amass",
        "mgrpo.commands.gender_conversion",
        "GenderConversionConfig",
        "run_gender_conversion",
    ),
    Command(
        ("bench", "inference"),
        "seconds and memory of a sampled sequence here, against a plain loop",
        "mgrpo.commands.bench_inference",
        "BenchInferenceConfig",
        "run_bench_inference",
    ),
    Command(
        ("doctor",),
        "what this machine has, which backend serves each op and why",
        "mgrpo.doctor",
        "DoctorConfig",
        "run_doctor",
    ),
)

ENVIRONMENT = (
    (
        "MGRPO_BACKEND",
        "backend of all kernels: reference, cpp, triton, cuda (default: the fastest that can serve the call)",
    ),
    ("MGRPO_PROGRESS", "rich, plain, plain:SECONDS or off (default: a bar on a terminal, lines elsewhere)"),
    ("MGRPO_SMPLH", "path of the SMPL-H model, or of a folder that holds it"),
    ("MGRPO_DEBUG", "1 shows tracebacks of errors that are yours to mend"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process) and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    write_anywhere()
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # tyro ends this way after --help and after a bad option
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
    except BrokenPipeError:
        # what is still in the buffer has no reader; without this, Python complains again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except KeyboardInterrupt as stop:
        return _interrupted(stop)
    except Exception as error:
        message = _explained(error)
        if message is None:
            raise
        return _fail(message)


def _run(words: list[str]) -> int:
    if words and words[0] in ("--version", "-V", "version"):
        print(f"mgrpo {__version__}")
        return 0
    if not words or words[0] in ("--help", "-h", "help"):
        print(overview(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    command = _find(words)
    if isinstance(command, int):
        return command
    rest = words[len(command.words) :]
    module = importlib.import_module(command.module)
    _check_backend_variable()
    with command_options(getattr(module, command.config)):
        config = _parse(command, module, rest)
        refuse_unused(config, rest)
        function = getattr(module, command.function)
        options: dict[str, Any] = {}
        if "command" in inspect.signature(function).parameters:
            options["command"] = [sys.argv[0] or "mgrpo", *words]
        result = function(config, **options)
    if command.result is not None and isinstance(result, Path) and _is_main_process():
        print(f"{command.result}: {result}")
    return result if isinstance(result, int) else 0


def _check_backend_variable() -> None:
    kernels = sys.modules.get("mgrpo.kernels")
    wanted = os.environ.get("MGRPO_BACKEND")
    if kernels is not None and wanted and wanted not in kernels.BACKENDS:
        raise InputError(
            f"MGRPO_BACKEND must be one of {', '.join(kernels.BACKENDS)}, got {wanted!r}. Change or unset it."
        )


def _find(words: list[str]) -> Command | int:
    """The command that `words` begin with; otherwise say what is wrong and give the exit code."""
    for command in COMMANDS:
        if tuple(words[: len(command.words)]) == command.words:
            return command
    group = [command for command in COMMANDS if len(command.words) > 1 and command.words[0] == words[0]]
    if group and (len(words) == 1 or words[1] in ("--help", "-h")):
        print(overview(words[0]), file=sys.stdout if len(words) > 1 else sys.stderr)
        return 0 if len(words) > 1 else 2
    given = " ".join(words[: 2 if group else 1])
    known = [" ".join(command.words) for command in group or COMMANDS]
    # a word may be missing: "grpo" means "train grpo", rather than what is spelt like it
    meant = [name for name in known if words[0] in name.split()]
    meant += [name for name in difflib.get_close_matches(given, known, n=3, cutoff=0.5) if name not in meant]
    hint = f" Perhaps you meant: {', '.join(meant)}." if meant else ""
    return _fail(f"there is no command {given!r}.{hint} Commands: {', '.join(known)}. See mgrpo --help.")


def overview(group: str | None = None) -> str:
    """The text of `mgrpo --help`, or of one group of commands such as "train"."""
    chosen = [command for command in COMMANDS if group in (None, command.words[0])]
    width = max(len(" ".join(command.words)) for command in chosen) + 3
    lines = [f"usage: mgrpo {f'{group} ' if group else ''}COMMAND [OPTIONS]", ""]
    if group is None:
        lines += ["MotionGRPO: full-body motion from head motion, by a diffusion model post-trained with GRPO.", ""]
    lines += ["commands:"]
    lines += [f"  {' '.join(command.words):<{width}}{command.summary}" for command in chosen]
    lines += ["", "mgrpo COMMAND --help lists the options of a command with their units."]
    if group is None:
        lines += ["mgrpo --version prints the version.", "", "environment variables:"]
        lines += [f"  {name:<{width}}{meaning}" for name, meaning in ENVIRONMENT]
    return "\n".join(lines)


def _parse(command: Command, module: Any, words: list[str]) -> Any:
    """Turn the words after a command into its configuration; tyro prints help and errors and ends the process."""
    import tyro

    config_class = getattr(module, command.config)
    if any(option.name == "data" for option in dataclasses.fields(config_class)):
        words = [f"--data.{word[2:]}" if _is_motion(word) else word for word in words]
    name = " ".join(command.words)
    presets = getattr(module, command.presets) if command.presets else {}
    default: dict[str, Any] = {}
    note = ""
    if presets:
        note = f"\n\nA preset may follow the command: {', '.join(presets)}. Options then change it."
        if words and not words[0].startswith("-"):
            if words[0] not in presets:
                close = difflib.get_close_matches(words[0], presets, n=1)
                hint = f" Perhaps you meant {close[0]}." if close else ""
                raise SystemExit(
                    _fail(f"mgrpo {name}: unknown preset {words[0]!r}.{hint} Presets: {', '.join(presets)}.")
                )
            default["default"] = presets[words[0]]
            words = words[1:]
        elif command.preset_option and (named := _option(words, command.preset_option)) in presets:
            default["default"] = presets[named]
    description = inspect.cleandoc(config_class.__doc__ or command.summary) + note
    _join_lines_of_help()
    held = _Held(sys.stderr)
    try:
        with contextlib.redirect_stderr(held):
            return tyro.cli(config_class, args=words, prog=f"mgrpo {name}", description=description, **default)
    except SystemExit as stop:
        cause: BaseException | None = stop
        while cause is not None:
            if isinstance(cause, InputError):  # tyro would frame it, with the name of the class of the options
                held.truncate(0)
                raise cause from None
            cause = cause.__context__
        raise
    finally:
        sys.stderr.write(held.getvalue())


class _Held(io.StringIO):
    """Text for a stream that waits until it is known what to say; to who writes it, it looks like the stream."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream

    @property
    def encoding(self) -> str | None:  # type: ignore[override]
        """The stream's."""
        return getattr(self._stream, "encoding", None)

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return bool(self._stream.isatty())


def _join_lines_of_help() -> None:
    """Let help texts be wrapped by the terminal's width alone: tyro keeps the line breaks of docstrings whose later
    lines are indented, or begin with anything but a letter."""
    from tyro import _docstrings

    parse = getattr(_docstrings, "parse_docstring_from_object", None)
    if parse is None or getattr(parse, "joins_lines", False):  # another tyro: breaks are ugly, and nothing worse
        return

    @functools.lru_cache(maxsize=1024)
    def parse_and_join(documented: object) -> dict[str, str]:
        return {name: re.sub(r"(?<!\n)[ \t]*\n[ \t]*(?!\s)", " ", text) for name, text in parse(documented).items()}

    parse_and_join.joins_lines = True  # type: ignore[attr-defined]
    _docstrings.parse_docstring_from_object = parse_and_join


def _option(words: list[str], name: str) -> str | None:
    """The last value given to an option, before tyro looks at the words."""
    value = None
    for word, following in zip(words, [*words[1:], None]):
        if word == name:
            value = following
        elif word.startswith(f"{name}="):
            value = word[len(name) + 1 :]
    return value


def _is_main_process() -> bool:
    """Whether this is the process of a launcher (torchrun, accelerate launch) that speaks for all, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def _is_motion(word: str) -> bool:
    """Whether a word is the short spelling of --data.motion."""
    return word == "--motion" or word.startswith("--motion=")


def _explained(error: Exception) -> str | None:
    """What to tell the user about an error that is theirs to mend; None for a defect of ours."""
    if isinstance(error, MgrpoError):
        return str(error)
    kernels = sys.modules.get("mgrpo.kernels")
    if kernels is not None and isinstance(error, kernels.BackendError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):  # torch's, without importing torch
        return f"out of memory: {error}. Use fewer windows or samples at a time, shorter windows, or a smaller model."
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] != "mgrpo":
        return (
            f"the package {error.name!r} is not installed for {sys.executable}. Install mgrpo there with pip, which "
            "brings it, or use the Python that mgrpo was installed for."
        )
    if isinstance(error, OSError) and error.errno in _USERS_DISK:
        place = f" {error.filename}" if error.filename else ""
        return f"could not use{place or ' the disk'}: {error.strerror}. Choose another place, or mend this one."
    return None


_USERS_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR)
"""Failures of a disk or a path, as opposed to files that we should have found."""


def _interrupted(stop: KeyboardInterrupt) -> int:
    from mgrpo.train.interrupt import TrainingInterrupted

    if _is_main_process():
        print(stop if isinstance(stop, TrainingInterrupted) else "interrupted", file=sys.stderr)
    return 128 + (stop.number if isinstance(stop, TrainingInterrupted) else 2)


def _fail(message: str) -> int:
    if os.environ.get("MGRPO_DEBUG", "") not in ("", "0") and sys.exc_info()[0] is not None:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
