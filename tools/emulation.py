#!/usr/bin/env python3
"""Compile the CUDA kernels for the CPU, with a C++ compiler alone, so that tests run them without a GPU.

    python tools/emulation.py [--sanitize] [--ucontext]

prints the path of the library, which ``MGRPO_EMULATION`` hands to :mod:`mgrpo.kernels`. It holds every
``csrc/*/*_cuda.cu`` and ``csrc/*/*_cuda_op.cpp`` and the emulation of csrc/emulation. A file is compiled again only
when its content, that of a header it includes, or a flag has changed.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNTIME = ("fiber.cpp", "host_api.cpp", "scheduler.cpp")
FLAGS = [
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",  # the same numbers on every processor
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-DMGRPO_EMULATION",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
]


class BuildError(RuntimeError):
    """The library cannot be built; the message holds what the compiler said."""


@dataclass(frozen=True)
class Variant:
    """How the library is compiled."""

    sanitize: bool = False
    """With AddressSanitizer and UndefinedBehaviorSanitizer. Loading it needs their libraries in LD_PRELOAD."""
    ucontext: bool = False
    """With the portable way to change stacks in the place of the assembler for x86-64."""

    @property
    def name(self) -> str:
        return "emulation" + "-sanitized" * self.sanitize + "-ucontext" * self.ucontext

    @property
    def flags(self) -> list[str]:
        # The formulas are forced inline; -O1 compiles them in a third of the time of -O2 and runs fast enough.
        flags = [*FLAGS, "-O1", "-g1" if self.sanitize else "-g0"]
        if self.sanitize:
            flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
            flags += ["-DMGRPO_EMULATION_SANITIZE"]
        if self.ucontext:
            flags += ["-DMGRPO_EMULATION_UCONTEXT"]
        return flags


def kernel_sources() -> list[Path]:
    """Every CUDA source of the tree and its glue."""
    return sorted([*ROOT.glob("csrc/*/*_cuda.cu"), *ROOT.glob("csrc/*/*_cuda_op.cpp")])


def runtime_sources() -> list[Path]:
    """What every emulated library contains."""
    return [ROOT / "csrc" / "emulation" / name for name in RUNTIME]


def build(variant: Variant = Variant()) -> Path:
    """Build the library of all operators; its path. Raises :class:`BuildError`."""
    import torch

    torch_folder = Path(torch.__file__).parent
    sources = [*runtime_sources(), ROOT / "csrc" / "emulation" / "emulation_op.cpp", *kernel_sources()]
    return build_library(
        sources,
        ROOT / "build" / variant.name,
        variant,
        # As a system folder: its headers give no warnings, and their names and times need not be looked at.
        ["-isystem", str(torch_folder / "include")],
        [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10"],
        torch.__version__,
    )


def build_library(
    sources: Sequence[Path],
    folder: Path,
    variant: Variant,
    compile_flags: Sequence[str] = (),
    link_flags: Sequence[str] = (),
    salt: str = "",
) -> Path:
    """Compile ``sources`` and link them into ``folder``/libmgrpo_emulation.so; its path. Raises :class:`BuildError`.

    ``salt`` stands for what the content of the files does not show, such as the version of torch.
    """
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    flags = [*variant.flags, *compile_flags]
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libmgrpo_emulation.so"
    with _locked(folder):
        key = _hash(json.dumps([compiler, _version(compiler), flags, salt]).encode())
        with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
            objects = list(pool.map(lambda source: _compile(compiler, flags, key, source, folder), sources))
        stamp, wanted = folder / "library.json", [[str(path), digest] for path, digest in objects]
        if not (library.is_file() and _read(stamp) == [wanted, list(link_flags)]):
            temporary = library.with_suffix(".new")
            sanitizers = [flag for flag in flags if flag.startswith("-fsanitize")]
            command = [*compiler, "-shared", *sanitizers, *(str(path) for path, _ in objects), *link_flags, "-pthread"]
            _run([*command, "-o", str(temporary)])
            os.replace(temporary, library)  # a process that has the old one loaded keeps it
            stamp.write_text(json.dumps([wanted, list(link_flags)]))
    return library


def _compile(compiler: Sequence[str], flags: Sequence[str], key: str, source: Path, folder: Path) -> tuple[Path, str]:
    """The object file of ``source`` and a digest of all that went into it."""
    name = f"{source.parent.name}_{source.stem}"
    target, stamp, dependencies = folder / f"{name}.o", folder / f"{name}.json", folder / f"{name}.d"
    known = _read(stamp)
    if (
        target.is_file()
        and known is not None
        and (known["key"], known["source"]) == (key, str(source))
        and all(_hash_file(path) == digest for path, digest in known["files"].items())
    ):
        return target, _hash(json.dumps(known).encode())
    stamp.unlink(missing_ok=True)
    command = [*compiler, *flags, "-MMD", "-MF", str(dependencies), "-x", "c++", "-c", str(source), "-o", str(target)]
    _run(command)
    used = dependencies.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    known = {"key": key, "source": str(source), "files": {path: _hash_file(path) for path in used}}
    stamp.write_text(json.dumps(known))
    return target, _hash(json.dumps(known).encode())


def _run(command: Sequence[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"cannot run {command[0]!r}: {error.strerror}") from error
    if result.returncode != 0:
        raise BuildError(f"{shlex.join(command)}\n{result.stderr.strip()}")
    if result.stderr:
        print(result.stderr, file=sys.stderr)
    return result.stdout


def _version(compiler: Sequence[str]) -> str:
    return _run([*compiler, "--version"])


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _hash_file(path: str) -> str | None:
    try:
        return _hash(Path(path).read_bytes())
    except OSError:
        return None


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time build in ``folder``."""
    with (folder / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UndefinedBehaviorSanitizer")
    parser.add_argument("--ucontext", action="store_true", help="change stacks without assembler")
    options = parser.parse_args()
    try:
        print(build(Variant(options.sanitize, options.ucontext)))
    except BuildError as error:
        sys.exit(f"emulation: {error}")


if __name__ == "__main__":
    main()
