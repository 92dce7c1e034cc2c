#!/usr/bin/env python3
"""Compile every ``csrc/*/*_cuda.cu`` with nvcc, for every architecture, and list what its kernels need.

    python tools/cuda_resources.py

prints registers per thread and architecture, bytes of static shared memory, of stack and of spilled registers, and
stores them in csrc/cuda_resources.csv, which tests compare with. Needs no GPU.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nvcc
from cached_build import BuildError, Compiled, compile_object, in_parallel, locked

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "csrc" / "cuda_resources.csv"
FOLDER = ROOT / "build" / "cuda"
ARCHITECTURES = [f"sm_{name.replace('.', '')}" for name in nvcc.ARCHITECTURES]


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


def compile_source(source: Path) -> Compiled:
    """The object file of one CUDA source with code for all architectures. Raises :class:`BuildError`."""
    compiler = nvcc.find()
    if compiler is None:
        raise BuildError("there is no nvcc; put it on the PATH or name its toolkit by CUDA_HOME")
    lacking = set(nvcc.ARCHITECTURES) - set(nvcc.architectures(compiler))
    if lacking:
        raise BuildError(f"{compiler} does not know {', '.join(sorted(lacking))}; it takes CUDA 12.8 or later")
    command = [compiler, *nvcc.FLAGS, *nvcc.TORCH_FLAGS, *nvcc.architecture_flags(list(nvcc.ARCHITECTURES))]
    command += ["-Xptxas", "-v", "-Xcompiler", "-fPIC,-fvisibility=hidden", "--threads", "2"]
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


def rows_of(source: Path) -> list[dict[str, str]]:
    """The table's rows about one source, freshly compiled. Raises :class:`BuildError`."""
    return [
        {
            "source": str(source.relative_to(ROOT)),
            "kernel": resources.kernel,
            **{name: str(resources.registers[name]) for name in ARCHITECTURES},
            "shared_bytes": str(resources.shared_bytes),
            "stack_bytes": str(resources.stack_bytes),
            "spill_bytes": str(resources.spill_bytes),
        }
        for resources in read_resources(compile_source(source))
    ]


def compiler_version() -> str:
    """Version of nvcc, such as 13.0.88: another one may need other numbers of registers."""
    said = subprocess.run([nvcc.find() or "nvcc", "--version"], capture_output=True, text=True).stdout
    return re.search(r"V([\d.]+)", said)[1]


def read_table() -> tuple[str, list[dict[str, str]]]:
    """The nvcc version and the rows of csrc/cuda_resources.csv."""
    first, *rest = TABLE.read_text().splitlines()
    return first.removeprefix("# nvcc "), list(csv.DictReader(rest))


def format_table(rows: list[dict[str, str]]) -> str:
    """The text of csrc/cuda_resources.csv."""
    text = io.StringIO()
    text.write(f"# nvcc {compiler_version()}\n")
    columns = ["source", "kernel", *ARCHITECTURES, "shared_bytes", "stack_bytes", "spill_bytes"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main() -> None:
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
