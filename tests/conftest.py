"""Fixtures that every test may use: shared folders, a seeded generator, and a fixed number of torch threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Use the thread count of ``OMP_NUM_THREADS`` (default 2), so that runs on different machines agree."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


def _shared_folder(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default)).expanduser()
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist; set {variable} to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of reference values (``MGRPO_GOLDEN``, default ``../shared/golden``); skips when absent."""
    return _shared_folder("MGRPO_GOLDEN", REPOSITORY.parent / "shared" / "golden")


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
