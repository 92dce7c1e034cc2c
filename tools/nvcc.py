"""How nvcc compiles our CUDA sources, for setup.py and the tests: where the toolkit is, flags, architectures."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

FLAGS = ["-O3", "-std=c++17", "-lineinfo", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
# What torch's build command adds; without it a source could compile in the tests and not in the build, or the reverse.
TORCH_FLAGS = [
    "-D__CUDA_NO_HALF_OPERATORS__",
    "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-D__CUDA_NO_HALF2_OPERATORS__",
    "--expt-relaxed-constexpr",
]
ARCHITECTURES = ("8.0", "9.0", "10.0", "12.0")
"""A100, H100 and H200, B200, RTX 50; the last one also as PTX, for what comes after it."""


def find() -> str | None:
    """nvcc's path: of CUDA_HOME, CUDA_PATH, or on the PATH; or None."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        folder = os.environ.get(variable)
        if folder and Path(folder, "bin", "nvcc").is_file():
            return str(Path(folder, "bin", "nvcc"))
    return shutil.which("nvcc")


def toolkit(nvcc: str) -> Path:
    """The folder that holds include/ and lib64/.

    Asked of nvcc itself: the nvcc on the PATH may be a script, and then the toolkit is not where it lies.
    """
    command = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    here = re.search(r"_HERE_=(\S+)", said)
    return Path(here[1] if here else Path(nvcc).resolve().parent).resolve().parent


def architectures(nvcc: str) -> list[str]:
    """Those of ``ARCHITECTURES`` that this nvcc knows."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    return [name for name in ARCHITECTURES if f"compute_{name.replace('.', '')}" in listed]


def architecture_flags(architectures: list[str]) -> list[str]:
    """Machine code for each."""
    numbers = [name.replace(".", "") for name in architectures]
    return [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]
