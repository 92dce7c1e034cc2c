"""Fixtures that every test may use: shared folders, a seeded generator, a fixed number of torch threads; and, where
there is no GPU, the emulation of the CUDA kernels, which makes the backend ``cuda`` serve CPU tensors."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tools"))

import emulation  # noqa: E402  (tools/emulation.py)

from tests.golden import golden_files, golden_folder, listed_files  # noqa: E402

# Triton reads this when it is imported, which torch.compile may do: so it is set before any test module is loaded.
# Without a GPU its kernels are interpreted on CPU tensors, see docs/backends.md.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Use the thread count of ``OMP_NUM_THREADS`` (default 1), so that runs on different machines agree. The processes
    that tests start inherit it: with a worker per core, a second thread only spins while it waits for the first."""
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
    if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None:
        _hasten_interpreter()


def _hasten_interpreter() -> None:
    """Triton's interpreter replaces the functions of its language anew for every device function that a kernel calls,
    which is most of its time: here only for the first one of each module after the kernel's start."""
    from triton.runtime import interpreter

    start = interpreter.GridExecutor.__call__
    replaced: set[str] = set()

    def start_kernel(executor: Any, *arguments: Any, **options: Any) -> Any:
        replaced.clear()
        return start(executor, *arguments, **options)

    def call_device_function(function: Any, *arguments: Any, **options: Any) -> Any:
        if function.fn.__module__ not in replaced:
            interpreter._patch_lang(function.fn)
            replaced.add(function.fn.__module__)
        return function.rewrite()(*arguments, **options)

    interpreter.GridExecutor.__call__ = start_kernel
    interpreter.InterpretedFunction.__call__ = call_device_function


def _prepare_emulation() -> str:
    """Build the emulation and name it by ``MGRPO_EMULATION``, before anyone imports mgrpo.kernels; what came of it."""
    if os.environ.get("MGRPO_EMULATION"):
        return f"{os.environ['MGRPO_EMULATION']}, from MGRPO_EMULATION"
    if torch.cuda.is_available():
        return "not needed, there is a GPU"
    try:
        library = emulation.build()
    except emulation.BuildError as error:
        first, *rest = str(error).splitlines()
        return "\n".join([f"not built: {first}", *rest])
    os.environ["MGRPO_EMULATION"] = str(library)
    return str(library.relative_to(REPOSITORY))


# Now, not in a hook: the conftest of a folder, which pytest may load next, imports mgrpo.
_EMULATION = _prepare_emulation()


def pytest_report_header() -> str:
    return f"CUDA kernels on the CPU: {_EMULATION}"


def _shared_folder(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default)).expanduser()
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist; set {variable} to the folder that holds it")
    return folder


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for ``golden_path`` runs once for each file of the family that its mark names:
    ``@pytest.mark.golden("fk/fk*.npz")``."""
    if "golden_path" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("golden")
        if mark is None or len(mark.args) != 1:
            raise pytest.UsageError(f"{metafunc.definition.nodeid}: golden_path needs @pytest.mark.golden(pattern)")
        (pattern,) = mark.args
        files = listed_files(pattern)
        names = [path.stem for path in files] if files else ["none"]
        metafunc.parametrize("golden_path", files or [pattern], ids=names, indirect=True)


@pytest.fixture
def golden_path(request: pytest.FixtureRequest) -> Path:
    """A file of the family that the mark of the test names; where there is none, skips or fails."""
    golden_folder()
    return request.param if isinstance(request.param, Path) else golden_files(request.param)[0]


@pytest.fixture(scope="session")
def shared_data_dir() -> Path:
    """Folder of motion and body data (``MGRPO_SHARED_DATA``, default ``../shared/data``); skips when absent."""
    return _shared_folder("MGRPO_SHARED_DATA", REPOSITORY.parent / "shared" / "data")


@pytest.fixture
def tiny() -> torch.Generator:
    """A CPU generator that starts from the same seed in every test."""
    return torch.Generator().manual_seed(20240)


@pytest.fixture(autouse=True)
def _fixed_global_seed() -> None:
    # Our code never draws from the global state; tests that do (torch.rand in a parametrisation) still repeat exactly.
    torch.manual_seed(0)
