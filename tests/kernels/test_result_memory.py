"""Large results of the C++ backend get the memory of results that were freed, and never that of one still in use."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from mgrpo.kernels import available_backends, project_so3, sde_step

pytestmark = pytest.mark.skipif(
    "cpp" not in available_backends("project_so3"), reason="the native extension is not built"
)

LARGE = 1 << 19
"""Numbers of a result of 2 MiB."""


def result(number: int, scale: float) -> torch.Tensor:
    return sde_step(torch.full((1, number, 1), scale), torch.zeros(1, number, 1), 2.0, 0.0, 0.0, None, backend="cpp")


def test_freed_memory_is_used_again() -> None:
    first = result(LARGE, 1.0)
    place = first.data_ptr()
    assert place % 64 == 0
    del first
    again = result(LARGE - 1000, 3.0)  # nearly as large
    assert again.data_ptr() == place and bool((again == 6.0).all()) and again.shape == (1, LARGE - 1000, 1)


def test_results_in_use_share_nothing() -> None:
    alive = [result(LARGE, float(number)) for number in range(4)]
    view = alive[1][:, 10:20]
    del alive[1]
    gc.collect()
    more = [result(LARGE, 9.0) for _ in range(4)]
    held = {one.data_ptr() for one in (*alive, *more)} | {view.untyped_storage().data_ptr()}
    assert len(held) == 8
    assert [float(one.max()) for one in alive] == [0.0, 4.0, 6.0] and bool((view == 2.0).all())


def test_they_are_ordinary_tensors() -> None:
    matrices = torch.randn(80_000, 3, 3, dtype=torch.float64)
    found = project_so3(matrices, backend="cpp")
    assert found.is_contiguous() and found.dtype == torch.float64 and found.device == matrices.device
    assert torch.equal(pickle.loads(pickle.dumps(found)), found)
    assert torch.equal(found.clone().share_memory_(), found)
    before = found.clone()
    found.mul_(2.0)
    assert torch.equal(torch.from_numpy(found.numpy()), 2.0 * before)
    assert torch.equal(project_so3(matrices, backend="cpp"), before)


def test_several_threads() -> None:
    def work(number: int) -> bool:
        for turn in range(30):
            mine = result(LARGE + 4096 * (turn % 3), float(number))
            if not bool((mine == 2.0 * number).all()):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(1, 9)))


HUGE_PAGES, RESIDENT = Path("/sys/kernel/mm/transparent_hugepage/enabled"), Path("/proc/self/statm")


def run(program: str, **environment: str) -> list[int]:
    """What a new process prints. Without the threshold the C library may keep such blocks itself, as it likes."""
    environment = {**os.environ, **environment, "MALLOC_MMAP_THRESHOLD_": "131072"}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return [int(word) for word in said.stdout.split()]


@pytest.mark.skipif(not RESIDENT.is_file(), reason="this system does not say what a process holds")
@pytest.mark.parametrize(("megabytes", "kept"), [("0", False), ("1", False), ("64", True)])
def test_the_limit(megabytes: str, kept: bool) -> None:
    """With less than a result's size none is kept: the system has its memory back when it is freed."""
    program = """
import os, torch
from mgrpo.kernels import sde_step
x, zero = torch.ones(1, 1 << 22, 1), torch.zeros(1, 1 << 22, 1)
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
sde_step(x, zero, 2.0, 0.0, 0.0, None, backend="cpp")
before = resident()
result = sde_step(x, zero, 2.0, 0.0, 0.0, None, backend="cpp")
during = resident()
del result
print(before, during, resident())
"""
    before, during, after = run(program, MGRPO_RESULT_MEMORY_MB=megabytes)
    size = 4 << 22
    if kept:  # the second result is where the first was
        assert abs(during - before) < size >> 2 and abs(after - during) < size >> 2, (before, during, after)
    else:
        assert during - before > size >> 1 and during - after > size >> 1, (before, during, after)


TOO_LARGE = "there is not enough memory for a result of|the result has more numbers than memory can hold"


@pytest.mark.parametrize("rows", [1 << 50, 1 << 57])
def test_results_that_no_memory_holds(rows: int) -> None:
    """An expanded input takes no memory and its result does: its bytes may even be more than a number holds."""
    with pytest.raises(RuntimeError, match=TOO_LARGE):
        project_so3(torch.eye(3).expand(rows, 3, 3), backend="cpp")
    state = torch.zeros(1, 7, 6).expand(rows, 7, 6)
    with pytest.raises(RuntimeError, match=TOO_LARGE):
        sde_step(state, state, 1.0, 1.0, 0.0, None, backend="cpp")


@pytest.mark.skipif(
    not HUGE_PAGES.is_file() or "[never]" in HUGE_PAGES.read_text(), reason="this system has no huge pages"
)
@pytest.mark.parametrize(("numbers", "huge"), [(1 << 18, False), (1 << 22, True)])
def test_large_results_ask_for_huge_pages(numbers: int, huge: bool) -> None:
    """Whether the system gives them depends on what it has; that they were asked for it notes with the mapping."""
    program = f"""
import re, torch
from mgrpo.kernels import sde_step
x = torch.ones(1, {numbers}, 1)
result = sde_step(x, x, 2.0, 0.0, 0.0, None, backend="cpp")
place, flags = result.data_ptr(), ""
with open("/proc/self/smaps") as file:
    for line in file:
        if found := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= place < int(found[2], 16)
        elif inside and line.startswith("VmFlags"):
            flags = line.split()
print(int("hg" in flags), int((result == 2).all()))
"""
    assert run(program) == [int(huge), 1]
