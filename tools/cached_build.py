"""Compiling with a memory: a file is compiled again only when its content, that of a header it includes, the command or
the compiler has changed. Nothing looks at times of files, so a fresh checkout with an old build folder is no trap."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")


class BuildError(RuntimeError):
    """Something cannot be compiled or linked; the message holds what the compiler said."""


@dataclass(frozen=True)
class Compiled:
    """An object file."""

    path: Path
    digest: str
    """Of all that went into it."""
    said: str
    """What the compiler wrote to standard error."""


def compile_object(command: Sequence[str], source: Path, target: Path) -> Compiled:
    """Run ``command`` (without -c, -o and the source) for ``source``, unless ``target`` is up to date.

    Headers from folders given by -isystem are not looked at. Raises :class:`BuildError`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    stamp, dependencies = target.with_suffix(".json"), target.with_suffix(".d")
    key = [list(command), str(source), _version(command[0])]
    known = read_json(stamp)
    if (
        not target.is_file()
        or known is None
        or known["key"] != key
        or any(_hash_file(path) != digest for path, digest in known["files"].items())
    ):
        stamp.unlink(missing_ok=True)
        said = run([*command, "-MMD", "-MF", str(dependencies), "-c", str(source), "-o", str(target)])
        used = dependencies.read_text().replace("\\\n", " ").split(":", 1)[1].split()
        known = {"key": key, "files": {path: _hash_file(path) for path in used}, "said": said}
        stamp.write_text(json.dumps(known))
    return Compiled(target, hashlib.sha256(json.dumps(known).encode()).hexdigest(), known["said"])


def link(command: Sequence[str], objects: Sequence[Compiled], libraries: Sequence[str], target: Path) -> None:
    """Run ``command`` with the objects, then ``libraries``, unless ``target`` is up to date. Raises BuildError."""
    stamp = target.with_suffix(".json")
    key = [list(command), [[str(made.path), made.digest] for made in objects], list(libraries)]
    if target.is_file() and read_json(stamp) == key:
        return
    temporary = target.with_suffix(".new")
    run([*command, *(str(made.path) for made in objects), *libraries, "-o", str(temporary)])
    os.replace(temporary, target)  # a process that has the old one loaded keeps it
    stamp.write_text(json.dumps(key))


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """``function`` of every item, as many at a time as there are processors for this process."""
    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        return list(pool.map(function, items))


def run(command: Sequence[str]) -> str:
    """Run ``command``; what it wrote to standard error. Raises :class:`BuildError`."""
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"cannot run {command[0]!r}: {error.strerror}") from error
    if result.returncode != 0:
        raise BuildError(f"{shlex.join(command)}\n{(result.stderr or result.stdout).strip()}")
    return result.stderr


def read_json(path: Path) -> object:
    """The content of a file, or None where it is not there or not whole."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time build in ``folder``, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


_versions: dict[str, str] = {}


def _version(compiler: str) -> str:
    if compiler not in _versions:
        try:
            result = subprocess.run([compiler, "--version"], capture_output=True, text=True)
        except OSError as error:
            raise BuildError(f"cannot run {compiler!r}: {error.strerror}") from error
        _versions[compiler] = result.stdout
    return _versions[compiler]


def _hash_file(path: str) -> str | None:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None
