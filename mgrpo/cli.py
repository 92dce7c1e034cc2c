"""The `mgrpo` command.

This module stays light: the overview, `--version` and misspelt commands answer without loading torch. The commands
stand in `command_list.py`. Each one's options are a frozen dataclass that lives beside the code it configures; it is
imported when its command is called, and tyro turns it into options and help.

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
from pathlib import Path
from typing import Any

from mgrpo import __version__
from mgrpo.command_list import COMMANDS, ENVIRONMENT, Command
from mgrpo.errors import InputError, MgrpoError
from mgrpo.options import command_options, refuse_unused
from mgrpo.terminal.encoding import write_anywhere
from mgrpo.terminal.loading import loading_shown


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
    with loading_shown():
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
    from mgrpo.terminal.interrupt import TrainingInterrupted

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
