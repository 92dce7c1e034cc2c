#!/usr/bin/env python3
"""Compile every ``csrc/*/*_cuda.cu`` with nvcc, for every architecture, and list what its kernels need.

    python tools/cuda_resources.py

prints registers per thread and architecture, bytes of static shared memory, of stack and of spilled registers, and
stores them in csrc/cuda_resources.csv, which tests compare with. Needs no GPU. The tests compile a source for every
architecture only where the table is about another one, see tools/source_digests.py.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nvcc
import source_digests
from cached_build import BuildError, Compiled, compile_object, in_parallel, locked

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "csrc" / "cuda_resources.csv"
FOLDER = ROOT / "build" / "cuda"
ARCHITECTURES = [f"sm_{name.replace('.', '')}" for name in nvcc.ARCHITECTURES]
PROOF_ARCHITECTURE = "9.0"
"""What a source is compiled for whose numbers the table has already."""
FLAGS = [*nvcc.FLAGS, *nvcc.TORCH_FLAGS, "-Xptxas", "-v", "-Xcompiler", "-fPIC,-fvisibility=hidden"]


@dataclass(frozen=True)
class Resources:
    """What one kernel needs."""

    kernel: str
    registers: dict[str, int]
    """Per thread, by architecture."""
    shared_bytes: int
    """Static; a launch may add dynamic shared memory."""
    stack_bytes: int
    spill_bytes: int


def sources() -> list[Path]:
    """Every CUDA source of the tree."""
    return sorted(ROOT.glob("csrc/*/*_cuda.cu"))


def digest(source: Path) -> str:
    """What the table says a source was, when its numbers were found."""
    return source_digests.digest(source_digests.with_headers(source), FLAGS)


def architectures_to_check(source: Path) -> list[str]:
    """Those that the tests compile a source for: all, unless the table is about this source and this compiler."""
    version, digests, _ = source_digests.split(TABLE.read_text())
    known = version == f"nvcc {compiler_version()}" and digests.get(str(source.relative_to(ROOT))) == digest(source)
    return [PROOF_ARCHITECTURE] if known else list(nvcc.ARCHITECTURES)


def compile_source(source: Path, architectures: Sequence[str] = nvcc.ARCHITECTURES) -> Compiled:
    """The object file of one CUDA source with code for ``architectures``. Raises :class:`BuildError`."""
    compiler = nvcc.find()
    if compiler is None:
        raise BuildError("there is no nvcc; put it on the PATH or name its toolkit by CUDA_HOME")
    lacking = set(nvcc.ARCHITECTURES) - set(nvcc.architectures(compiler))
    if lacking:
        raise BuildError(f"{compiler} does not know {', '.join(sorted(lacking))}; it takes CUDA 12.8 or later")
    command = [compiler, *FLAGS, *nvcc.architecture_flags(list(architectures)), "--threads", "2"]
    with locked(FOLDER / source.stem):
        return compile_object(command, source, FOLDER / source.stem / f"{source.stem}.o")


def read_resources(compiled: Compiled) -> list[Resources]:
    """What ptxas said about every kernel, by kernel name."""
    kernels: dict[str, dict[str, dict[str, int]]] = {}
    about = None
    for line in compiled.said.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            about = kernels.setdefault(found[1], {}).setdefault(found[2], {"shared": 0})
        elif about is not None and (found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", line)):
            about["stack"], about["spilled"] = int(found[1]), int(found[2])
        elif about is not None and (found := re.search(r"Used (\d+) registers", line)):
            about["registers"] = int(found[1])
            if shared := re.search(r"(\d+) bytes smem", line):
                about["shared"] = int(shared[1])
            about = None
    if not kernels:
        return []
    plain = subprocess.run(["c++filt", *kernels], capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(
        (
            Resources(
                short_name(name),
                {architecture: numbers["registers"] for architecture, numbers in by_architecture.items()},
                max(numbers["shared"] for numbers in by_architecture.values()),
                max(numbers["stack"] for numbers in by_architecture.values()),
                max(numbers["spilled"] for numbers in by_architecture.values()),
            )
            for name, by_architecture in zip(plain, kernels.values(), strict=True)
        ),
        key=lambda resources: resources.kernel,
    )


def short_name(signature: str) -> str:
    """``kernel<float, 3>`` of ``void mgrpo::(anonymous namespace)::kernel<float, 3>(float*)``."""
    signature = re.sub(r"_GLOBAL__N__\w+::|\(anonymous namespace\)::|mgrpo::", "", signature)
    signature = re.sub(r"^void ", "", signature)
    depth = 0
    for position, letter in enumerate(signature):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return signature[:position]
    return signature


def rows_of(source: Path, architectures: Sequence[str] = nvcc.ARCHITECTURES) -> list[dict[str, str]]:
    """The table's rows about one source, freshly compiled, with the columns of ``architectures``.

    Raises :class:`BuildError`.
    """
    return [
        {
            "source": str(source.relative_to(ROOT)),
            "kernel": resources.kernel,
            **{name: str(count) for name, count in resources.registers.items()},
            "shared_bytes": str(resources.shared_bytes),
            "stack_bytes": str(resources.stack_bytes),
            "spill_bytes": str(resources.spill_bytes),
        }
        for resources in read_resources(compile_source(source, architectures))
    ]


def compiler_version() -> str:
    """Version of nvcc, such as 13.0.88: another one may need other numbers of registers."""
    said = subprocess.run([nvcc.find() or "nvcc", "--version"], capture_output=True, text=True).stdout
    return re.search(r"V([\d.]+)", said)[1]


def read_table() -> tuple[str, list[dict[str, str]]]:
    """The nvcc version and the rows of csrc/cuda_resources.csv."""
    compiler, _, rows = source_digests.split(TABLE.read_text())
    return compiler.removeprefix("nvcc "), list(csv.DictReader(io.StringIO(rows)))


def format_table(rows: list[dict[str, str]]) -> str:
    """The text of csrc/cuda_resources.csv."""
    text = io.StringIO()
    digests = {str(source.relative_to(ROOT)): digest(source) for source in sources()}
    text.write(source_digests.head(f"nvcc {compiler_version()}", digests))
    columns = ["source", "kernel", *ARCHITECTURES, "shared_bytes", "stack_bytes", "spill_bytes"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main() -> None:
    """Compile all kernels, print the table and write it."""
    argparse.ArgumentParser(description=__doc__.split("\n", 1)[0]).parse_args()
    try:
        rows = [row for found in in_parallel(rows_of, sources()) for row in found]
    except BuildError as error:
        sys.exit(f"cuda_resources: {error}")
    text = format_table(rows)
    print(text, end="")
    TABLE.write_text(text)


if __name__ == "__main__":
    main()
