"""What setup.py decides to build, with a torch and an nvcc that only say what they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TORCH = """
import os
from types import SimpleNamespace
__version__ = os.environ["FAKE_TORCH"]
version = SimpleNamespace(cuda=os.environ.get("FAKE_CUDA"))
cuda = SimpleNamespace(is_available=lambda: "FAKE_GPU" in os.environ, get_device_capability=lambda: (9, 0))
"""
EXTENSION = """
import os
from setuptools import Extension
from setuptools.command.build_ext import build_ext as BuildExtension
def CppExtension(name, sources, depends, extra_compile_args, py_limited_api):
    print("builds", name)
    return Extension(name, sources)
def CUDAExtension(name, *rest, **options):
    print("for", os.environ["TORCH_CUDA_ARCH_LIST"])
    return CppExtension(name, *rest, **options)
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder of modules with a torch in it, and of a toolkit with nvcc."""
    (tmp_path / "torch" / "utils").mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").write_text(TORCH)
    (tmp_path / "torch" / "utils" / "__init__.py").touch()
    (tmp_path / "torch" / "utils" / "cpp_extension.py").write_text(EXTENSION)
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\necho compute_80\necho compute_90\n")
    nvcc.chmod(0o755)
    return tmp_path


def decide(world: Path, **environment: str) -> tuple[int, list[str], str]:
    """Exit status of setup.py, which extensions it would build, and what it says."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MGRPO_", "CUDA_", "TORCH_", "CXX"))}
    kept |= {"PYTHONPATH": str(world), "CUDA_HOME": str(world), "FAKE_TORCH": "2.13.0", **environment}
    # With --name setup.py decides and builds nothing.
    result = subprocess.run([sys.executable, "setup.py", "--name"], cwd=ROOT, env=kept, capture_output=True, text=True)
    decided = [line for line in result.stdout.splitlines() if line.startswith(("builds", "for"))]
    return result.returncode, decided, result.stderr


needs_compiler = pytest.mark.skipif(
    subprocess.run("command -v c++", shell=True, capture_output=True).returncode != 0, reason="there is no c++"
)


@needs_compiler
def test_a_torch_without_cuda_gets_the_cpu_kernels_and_no_word_of_others(world: Path) -> None:
    status, decided, said = decide(world)
    assert (status, decided) == (0, ["builds mgrpo.kernels._C"])
    assert "mgrpo:" not in said


@needs_compiler
def test_cuda_kernels_where_there_is_a_gpu_or_one_is_named(world: Path) -> None:
    for environment, architectures in (
        ({"FAKE_GPU": "1"}, "9.0+PTX"),
        ({"TORCH_CUDA_ARCH_LIST": "8.6"}, "8.6"),
        ({"MGRPO_BUILD": "cuda"}, "8.0;9.0+PTX"),
    ):
        status, decided, said = decide(world, FAKE_CUDA="13.0", **environment)
        wanted = ["builds mgrpo.kernels._C", f"for {architectures}", "builds mgrpo.kernels._cuda"]
        assert (status, decided) == (0, wanted), said
        assert "mgrpo:" not in said


@needs_compiler
def test_without_a_gpu_the_cuda_kernels_wait_until_asked_for(world: Path) -> None:
    """Compiling them takes minutes, and set-up should not."""
    status, decided, said = decide(world, FAKE_CUDA="13.0")
    assert (status, decided) == (0, ["builds mgrpo.kernels._C"])
    assert said.count("the CUDA kernels are not built: no GPU is at hand") == 1
    assert "MGRPO_BUILD=cuda" in said and "TORCH_CUDA_ARCH_LIST" in said
    (world / "bin" / "nvcc").unlink()
    tools = world / "tools"
    tools.mkdir()
    for name in ("c++", "as", "ld"):
        (tools / name).symlink_to(str(shutil.which(name)))
    status, decided, said = decide(world, FAKE_CUDA="13.0", FAKE_GPU="1", PATH=str(tools))
    assert (status, decided) == (0, ["builds mgrpo.kernels._C"])
    assert said.count("the CUDA kernels are not built: there is no nvcc") == 1


@needs_compiler
@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"CXX": "/bin/false"}, "the C++ compiler '/bin/false' does not work"),
        ({"CXX": "/nowhere/c++"}, "there is no C++ compiler '/nowhere/c++'"),
        ({"FAKE_TORCH": "2.10.1"}, "it needs the headers of torch 2.11 or later, and this is torch 2.10.1"),
    ],
)
def test_without_what_it_takes_nothing_is_built_and_the_cost_is_said_once(
    world: Path, environment: dict[str, str], problem: str
) -> None:
    status, decided, said = decide(world, **environment)
    assert (status, decided) == (0, [])
    assert said.count("the native extension is not built") == 1 and problem in said
    assert "Everything works without it" in said
    status, decided, said = decide(world, MGRPO_BUILD="cpu", **environment)
    assert status == 1 and "MGRPO_BUILD=cpu cannot be honoured" in said and problem in said


def test_an_unknown_choice_is_refused(world: Path) -> None:
    status, _, said = decide(world, MGRPO_BUILD="gpu")
    assert status == 1 and "must be one of auto, cpu, cuda, none, got 'gpu'" in said


def test_none_builds_nothing_and_says_nothing(world: Path) -> None:
    status, decided, said = decide(world, MGRPO_BUILD="none", CXX="/bin/false")
    assert (status, decided) == (0, []) and "mgrpo:" not in said
