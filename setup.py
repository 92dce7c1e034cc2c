"""Packages, and the optional native extensions. Everything else stands in pyproject.toml.

``mgrpo.kernels._C`` holds the C++ operators, ``mgrpo.kernels._cuda`` the CUDA ones: two files, so that the first loads
wherever torch does. ``MGRPO_BUILD`` chooses what is compiled: ``auto`` (default) builds what this machine can and has
a use for, and goes on without the rest, saying once what is missing; ``cpu`` and ``cuda`` (both extensions) fail where
they cannot be built; ``none`` compiles nothing. ``MGRPO_CXXFLAGS`` adds compiler flags. The CUDA part needs nvcc and a
CUDA build of torch; ``auto`` builds it where there is a GPU or ``TORCH_CUDA_ARCH_LIST`` names the architectures, by
default that of the GPU at hand, or where there is none those of tools/nvcc.py.

The extensions contain no Python code: torch loads them as libraries of operators registered through torch's stable ABI.
So they need no Python headers, and one binary serves Python 3.10 and later with torch 2.11 and later.
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
sys.path.insert(0, str(ROOT / "tools"))

import nvcc  # noqa: E402  (tools/nvcc.py)
import precompiled_header  # noqa: E402  (tools/precompiled_header.py)

CHOICES = ("auto", "cpu", "cuda", "none")
COST_CUDA = "On a GPU, Triton and plain torch then serve every operator."
COST = (
    "Everything works without it, on the 'reference' backend; geometry (rotation projection, kinematics, alignment) "
    "and rewards are then 20 to 200 times slower on the CPU."
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
    "-Wno-psabi",  # vectors wider than the baseline's registers never cross a call's boundary between files
    "-DTORCH_TARGET_VERSION=0x020b000000000000",  # use nothing that torch 2.11 lacks
]


def main() -> None:
    """Decide what is built, say what is not, and hand over to setuptools."""
    choice = os.environ.get("MGRPO_BUILD", "auto")
    if choice not in CHOICES:
        sys.exit(f"mgrpo: MGRPO_BUILD must be one of {', '.join(CHOICES)}, got {choice!r}")
    with_cpu, with_cuda = False, False
    if choice != "none":
        problem = why_no_extension()
        with_cpu = problem is None
        if with_cpu and choice != "cpu":
            problem = why_no_cuda() or (why_not_of_itself() if choice == "auto" else None)
            with_cuda = problem is None
        if problem is not None and choice != "auto":
            sys.exit(f"mgrpo: MGRPO_BUILD={choice} cannot be honoured: {problem}")
        if not with_cpu:
            report("the native extension is", problem, COST)
        elif not with_cuda and choice == "auto" and torch_has_cuda():
            report("the CUDA kernels are", problem, COST_CUDA)
    extensions, command = native_extensions(choice, with_cuda) if with_cpu else ([], build_ext)

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


def report(what: str, problem: str, cost: str) -> None:
    """Say once what is left out, why, and what that costs: not while pip merely asks for metadata."""
    if {"egg_info", "dist_info", "sdist"}.isdisjoint(sys.argv):
        print(f"mgrpo: {what} not built: {problem}.\nmgrpo: {cost}", file=sys.stderr, flush=True)


def torch_has_cuda() -> bool:
    """Whether the torch at hand is a build for CUDA, GPU or not."""
    import torch

    return torch.version.cuda is not None


def why_no_cuda() -> str | None:
    """What the build of the CUDA kernels lacks here besides a C++ compiler, or None."""
    if not torch_has_cuda():
        return "this torch is built without CUDA"
    if nvcc.find() is None:
        return "there is no nvcc (put it on the PATH, or name its toolkit by CUDA_HOME)"
    return None


def why_not_of_itself() -> str | None:
    """Why ``auto`` leaves out CUDA kernels that could be built: minutes of work for what nothing here can run."""
    import torch

    if torch.cuda.is_available() or os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return None
    return (
        "no GPU is at hand (to build them for another machine: MGRPO_BUILD=cuda, or name its architecture by "
        "TORCH_CUDA_ARCH_LIST)"
    )


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


def native_extensions(choice: str, with_cuda: bool) -> tuple[list, type]:
    """The extensions and the build command for them."""
    if with_cuda:
        # Before torch looks for it: torch takes the folder above nvcc, and that nvcc may be a script elsewhere.
        os.environ.setdefault("CUDA_HOME", str(nvcc.toolkit(nvcc.find())))
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    def found(*patterns: str) -> list[str]:
        return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(f"csrc/{pattern}"))

    cxx_flags = [*CXX_FLAGS, *shlex.split(os.environ.get("MGRPO_CXXFLAGS", ""))]
    extensions = [
        CppExtension(
            "mgrpo.kernels._C",
            found("*/*_cpu.cpp"),
            depends=found("**/*.h"),
            extra_compile_args={"cxx": cxx_flags},
            py_limited_api=True,
        )
    ]
    if with_cuda:
        if torch.cuda.is_available():
            default = "{}.{}+PTX".format(*torch.cuda.get_device_capability())
        else:
            default = ";".join(nvcc.architectures(nvcc.find())) + "+PTX"
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default)
        extensions.append(
            CUDAExtension(
                "mgrpo.kernels._cuda",
                found("*/*_cuda.cu", "*/*_cuda_op.cpp"),
                depends=found("**/*.h"),
                extra_compile_args={
                    "cxx": [*cxx_flags, "-DUSE_CUDA"],
                    "nvcc": [*nvcc.FLAGS, "-Xcompiler", "-fvisibility=hidden"],
                },
                py_limited_api=True,
            )
        )

    class BuildNative(BuildExtension):
        """torch's build command; under MGRPO_BUILD=auto an extension that does not compile is left out."""

        def build_extensions(self) -> None:
            wanted, self.left_out = list(self.extensions), []
            while self.extensions:
                try:
                    super().build_extensions()
                    break
                except Exception as error:  # from torch's look at the compilers, before any file
                    if choice != "auto":
                        raise
                    self._leave_out(self.extensions[-1], error)
                    self.extensions = self.extensions[:-1]
            self.extensions = [extension for extension in wanted if extension not in self.left_out]

        def build_extension(self, extension: object) -> None:
            if not extension.name.endswith("_cuda"):
                flags = extension.extra_compile_args["cxx"]
                include = [f"-I{folder}" for folder in [*extension.include_dirs, *self.compiler.include_dirs]]
                compiler = shlex.split(os.environ.get("CXX") or "c++")
                command = [*compiler, *self.compiler.compiler_so[1:], *include, *flags]
                folder = Path(self.build_temp, "prelude").absolute()
                flags += precompiled_header.flags(command, torch.__version__, folder)
            try:
                super().build_extension(extension)
            except Exception as error:
                if choice != "auto":
                    raise
                self._leave_out(extension, error)

        def _leave_out(self, extension: object, error: Exception) -> None:
            said = str(error).strip() or type(error).__name__
            problem = f"compiling failed ({said}; the output above has the cause)"
            if extension.name.endswith("_cuda"):
                report("the CUDA kernels are", problem, COST_CUDA)
            else:
                report("the native extension is", problem, COST)
            self.left_out.append(extension)

    return extensions, BuildNative


main()
