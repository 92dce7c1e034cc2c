"""Packages, and the optional native extension ``mgrpo.kernels._C``. Everything else stands in pyproject.toml.

``MGRPO_BUILD`` chooses what is compiled: ``auto`` (default) builds what this machine can and goes on without the rest,
saying once what is missing; ``cpu`` and ``cuda`` fail where they cannot be built; ``none`` compiles nothing.
``MGRPO_CXXFLAGS`` adds compiler flags.

The extension contains no Python code: torch loads it as a library of operators registered through torch's stable ABI.
So it needs no Python headers, and one binary serves Python 3.10 and later with torch 2.11 and later.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CHOICES = ("auto", "cpu", "cuda", "none")
COST = (
    "Everything works without it, on the 'reference' backend; geometry (rotation projection, kinematics, alignment) "
    "is then about ten times slower on the CPU."
)
CXX_FLAGS = [
    "-O3",
    "-g0",  # Python's own flags ask for debug symbols, six times the size
    "-std=c++17",
    "-fvisibility=hidden",
    # Not fast-math: these two only drop errno and floating-point traps, which no one here reads.
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",  # use nothing that torch 2.11 lacks
]


def main() -> None:
    """Hand setuptools the packages and, where it can be built, the extension."""
    choice = os.environ.get("MGRPO_BUILD", "auto")
    if choice not in CHOICES:
        sys.exit(f"mgrpo: MGRPO_BUILD must be one of {', '.join(CHOICES)}, got {choice!r}")
    extensions, command = [], build_ext
    if choice != "none":
        problem = why_no_extension()
        if problem is None:
            extensions, command = native_extension(choice)
        elif choice == "auto":
            report(problem)
        else:
            sys.exit(f"mgrpo: MGRPO_BUILD={choice} cannot be honoured: {problem}")

    kernels = ["mgrpo.kernels", *(f"mgrpo.kernels.{name}" for name in find_packages("kernels"))]
    setup(
        # kernels/ is the package mgrpo.kernels. The link mgrpo/kernels is for tools that read the tree; where it was
        # not carried along, this mapping alone does.
        packages=sorted({*find_packages(include=["mgrpo", "mgrpo.*"]), *kernels}),
        package_dir={"mgrpo": "mgrpo", "mgrpo.kernels": "kernels"},
        ext_modules=extensions,
        cmdclass={"build_ext": command},
        options={"bdist_wheel": {"py_limited_api": "cp310"}} if extensions else {},
    )


def report(problem: str) -> None:
    """Say once that the extension is left out, why, and what that costs: not while pip merely asks for metadata."""
    if {"egg_info", "dist_info", "sdist"}.isdisjoint(sys.argv):
        print(f"mgrpo: the native extension is not built: {problem}.\nmgrpo: {COST}", file=sys.stderr, flush=True)


def why_no_extension() -> str | None:
    """What the build of any extension lacks here, or None."""
    try:
        import torch
    except ImportError:
        return (
            "torch is not importable during the build (install torch first, then use pip install --no-build-isolation)"
        )
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 11):
        return f"it needs the headers of torch 2.11 or later, and this is torch {torch.__version__}"
    return compiler_problem()


def compiler_problem() -> str | None:
    """Why the C++ compiler (environment variable CXX, default c++) cannot make a shared library, or None."""
    compiler = os.environ.get("CXX") or "c++"
    advice = "install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++) or name it by CXX"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <vector>\nint probe() { return int(std::vector<int>(1).size()); }\n")
        target = Path(folder, "probe.so")
        build = [*shlex.split(compiler), "-std=c++17", "-shared", "-fPIC", str(source), "-o", str(target)]
        try:
            result = subprocess.run(build, capture_output=True, text=True)
        except OSError as error:
            return f"there is no C++ compiler {compiler!r} ({error.strerror}); {advice}"
    if result.returncode != 0:
        said = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[0]
        return f"the C++ compiler {compiler!r} does not work ({said}); {advice}"
    return None


def native_extension(choice: str) -> tuple[list, type]:
    """The extension and the build command for it."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

    def found(*patterns: str) -> list[str]:
        return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(f"csrc/{pattern}"))

    sources, headers, cuda_sources = found("*/*_cpu.cpp"), found("**/*.h"), found("*/*_cuda.cu", "*/*_cuda.cpp")
    with_cuda = bool(choice != "cpu" and torch.version.cuda and CUDA_HOME and cuda_sources)
    if choice == "cuda" and not with_cuda:
        lacks = [
            *([] if torch.version.cuda else ["a CUDA build of torch"]),
            *([] if CUDA_HOME else ["nvcc (or CUDA_HOME)"]),
            *([] if cuda_sources else ["CUDA sources in csrc, of which this version has none"]),
        ]
        sys.exit(f"mgrpo: MGRPO_BUILD=cuda cannot be honoured, it needs {', '.join(lacks)}")

    flags = {"cxx": [*CXX_FLAGS, *shlex.split(os.environ.get("MGRPO_CXXFLAGS", ""))]}
    make = CppExtension
    if with_cuda:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;8.9;9.0+PTX")
        make, sources = CUDAExtension, [*sources, *cuda_sources]
        flags["cxx"].append("-DUSE_CUDA")
        flags["nvcc"] = ["-O3", "-std=c++17", "-lineinfo", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    extension = make("mgrpo.kernels._C", sources, depends=headers, extra_compile_args=flags, py_limited_api=True)

    class BuildNative(BuildExtension):
        """torch's build command; under MGRPO_BUILD=auto a failed compilation leaves the extension out."""

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                if choice != "auto":
                    raise
                said = str(error).strip() or type(error).__name__
                report(f"compiling it failed ({said}; the output above has the cause)")
                self.extensions = []

    return [extension], BuildNative


main()
