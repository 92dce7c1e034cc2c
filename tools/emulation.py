#!/usr/bin/env python3
"""Compile the CUDA kernels for the CPU, with a C++ compiler alone, so that tests run them without a GPU.

    python tools/emulation.py [--sanitize] [--ucontext]

prints the path of the library, which ``MGRPO_EMULATION`` hands to :mod:`mgrpo.kernels`. It holds every
``csrc/*/*_cuda.cu`` and ``csrc/*/*_cuda_op.cpp`` and the emulation of csrc/emulation.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import precompiled_header
from cached_build import BuildError, Compiled, compile_object, in_parallel, link, locked

ROOT = Path(__file__).resolve().parents[1]
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
SANITIZERS = ["-fsanitize=address,alignment,bounds,shift,signed-integer-overflow"]
FOLDER = ROOT / "build" / "emulation"


@dataclass(frozen=True)
class Variant:
    """How the library is compiled."""

    sanitize: bool = False
    """With AddressSanitizer and UndefinedBehaviorSanitizer. Loading it needs :func:`sanitizer_environment`."""
    ucontext: bool = False
    """With the portable way to change stacks in the place of the assembler for x86-64."""

    @property
    def name(self) -> str:
        return "-".join(word for word in ("sanitize", "ucontext") if getattr(self, word)) or "plain"

    @property
    def flags(self) -> list[str]:
        # The formulas are forced inline; -O1 compiles them in a third of the time of -O2 and runs fast enough.
        flags = [*FLAGS, *(("-Og", "-g1") if self.sanitize else ("-O1", "-g0"))]
        if self.sanitize:
            flags += [*SANITIZERS, "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-DMGRPO_EMULATION_SANITIZE"]
            # Calls in the place of checks in line, which are most of the code: half the time to compile.
            flags += ["--param=asan-instrumentation-with-call-threshold=0"]
        if self.ucontext:
            flags += ["-DMGRPO_EMULATION_UCONTEXT"]
        return flags


PLAIN = Variant()


def compiler() -> list[str]:
    """The C++ compiler: environment variable ``CXX``, default c++."""
    return shlex.split(os.environ.get("CXX") or "c++")


def kernel_sources() -> list[Path]:
    """Every CUDA source of the tree and its glue."""
    return sorted([*ROOT.glob("csrc/*/*_cuda.cu"), *ROOT.glob("csrc/*/*_cuda_op.cpp")])


def runtime_sources() -> list[Path]:
    """What every emulated library contains."""
    return [ROOT / "csrc" / "emulation" / name for name in ("fiber.cpp", "host_api.cpp", "scheduler.cpp")]


def build(variant: Variant = PLAIN) -> Path:
    """Build the library of all operators; its path. Raises :class:`BuildError`."""
    import torch

    folder = Path(torch.__file__).parent
    return build_library(
        "operators",
        [*runtime_sources(), ROOT / "csrc" / "emulation" / "emulation_op.cpp", *kernel_sources()],
        variant,
        # Its headers give no warnings and are not looked at for changes; the version stands for them.
        ["-isystem", str(folder / "include"), f"-DMGRPO_TORCH_IS_{re.sub(r'[^0-9a-z]', '_', torch.__version__)}"],
        [f"-L{folder / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10"],
        torch.__version__,
    )


def build_library(
    name: str,
    sources: Sequence[Path],
    variant: Variant,
    glue_flags: Sequence[str] = (),
    libraries: Sequence[str] = (),
    torch_version: str = "",
) -> Path:
    """Compile ``sources``, those named ``*_op.cpp`` with ``glue_flags``, and link them with ``libraries``.

    ``torch_version`` is that of torch's headers, where ``glue_flags`` name them. The library's path, which depends on
    ``name`` and ``variant``. Raises :class:`BuildError`.
    """

    def compile_one(source: Path) -> Compiled:
        is_glue = source.name.endswith("_op.cpp")
        chosen = PLAIN if is_glue else variant  # of the glue every variant uses the same object
        command = [*compiler(), *chosen.flags, *(glue_flags if is_glue else ()), "-x", "c++"]
        return compile_object(command, source, FOLDER / chosen.name / f"{source.parent.name}_{source.stem}.o")

    with locked(FOLDER):
        if torch_version:
            command = [*compiler(), *PLAIN.flags, *glue_flags]
            glue_flags = [*glue_flags, *precompiled_header.flags(command, torch_version, FOLDER / "prelude")]
        objects = in_parallel(compile_one, sources)
        library = FOLDER / variant.name / f"lib{name}.so"
        link(
            [*compiler(), "-shared", "-pthread", *(SANITIZERS if variant.sanitize else [])], objects, libraries, library
        )
    for made in objects:
        if made.said:
            print(made.said, file=sys.stderr)
    return library


def sanitizer_environment() -> dict[str, str]:
    """Environment variables of a process that loads a sanitized library. Raises :class:`BuildError`."""
    libraries = []
    for name in ("libasan.so", "libubsan.so"):
        found = os.popen(shlex.join([*compiler(), f"-print-file-name={name}"])).read().strip()
        if not Path(found).is_absolute():
            raise BuildError(f"{compiler()[0]} has no {name}")
        libraries.append(found)
    return {
        "LD_PRELOAD": " ".join(libraries),  # their functions must come before those of the C library
        "ASAN_OPTIONS": "detect_leaks=0",  # of Python's, which frees little at its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def main() -> None:
    """Build the library as the command line says and print its path."""
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
