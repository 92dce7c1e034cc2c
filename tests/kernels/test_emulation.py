"""The emulation of CUDA on the CPU (csrc/emulation): that it computes what a GPU would, and that it finds mistakes."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import emulation  # tools/emulation.py
import pytest
import torch
from torch import Tensor

SOURCES = [*emulation.runtime_sources(), Path(__file__).with_name("planted_kernels.cu")]
THREADS = 96
Run = Callable[..., Tensor]


def build_planted(variant: emulation.Variant) -> Path:
    try:
        return emulation.build_library("planted", SOURCES, variant)
    except emulation.BuildError as error:
        if "cannot run" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(
    scope="module",
    params=[emulation.Variant(), emulation.Variant(ucontext=True)],
    ids=lambda variant: variant.name,
)
def run(request: pytest.FixtureRequest) -> Run:
    """Calls a planted kernel; its output, or RuntimeError."""
    library = ctypes.CDLL(str(build_planted(request.param)))
    library.run_planted.restype = ctypes.c_char_p

    def call(name: str, order: int = 0, os_threads: int = 1, count: int = 4096) -> Tensor:
        out = torch.zeros(count)
        error = library.run_planted(name.encode(), order, os_threads, ctypes.c_void_p(out.data_ptr()))
        if error is not None:
            raise RuntimeError(error.decode())
        return out

    return call


def test_barriers_give_one_result_in_every_order(run: Run) -> None:
    i = torch.arange(THREADS)
    expected = torch.cat([100 * block + (i + 1) % THREADS for block in range(4)]).float()
    for order in range(8):
        for os_threads in (1, 3):
            assert torch.equal(run("shift", order, os_threads)[: 4 * THREADS], expected)


def test_finds_a_missing_barrier(run: Run) -> None:
    # In ascending order all neighbours but the last one come too late, in descending order only the first does.
    results = [run("missing_barrier", order) for order in range(8)]
    assert not torch.equal(results[0], results[1])
    assert torch.equal(results[0], run("missing_barrier", 0)), "one order is one result"
    assert len({tuple(result.tolist()) for result in results}) >= 6


@pytest.mark.parametrize("order", range(3))
def test_features(run: Run, order: int) -> None:
    got = run("features", order)[: 32 * THREADS].view(THREADS, 32).double()
    i = torch.arange(THREADS)
    lane, warp = i % 32, i // 32
    wanted = torch.zeros(THREADS, 32, dtype=torch.float64)
    wanted[:, 0] = 32 * warp + 5
    wanted[:, 1] = i ^ 16
    wanted[:, 2] = torch.where(lane % 8 < 5, i + 3, i)
    wanted[:, 3] = torch.where(lane % 8 >= 3, i - 3, i)
    wanted[:, 4] = 11
    wanted[:, 5] = (warp == 1).int() + 2 * (warp == 0).int()
    wanted[:, 6] = 31 * 16 + 31
    wanted[:, 7] = 20
    wanted[:, 8] = 1
    wanted[:, 9] = 32 * 32 * warp + 31 * 16
    wanted[:, 10] = torch.where(lane < 4, 32 * warp + 3, 0)
    wanted[:, 11] = THREADS * (THREADS - 1) // 2 + 10000 * (THREADS - 1)
    wanted[:, 12] = (1 + i.float() / 300).bfloat16()
    wanted[:, 13] = (1 + i.float() / 3000).half()
    wanted[:, 14] = 2 * i
    wanted[:, 15] = torch.tensor(
        [32 - n.bit_length() + 100 * ((n & -n).bit_length()) + 10000 * (n // 32) for n in range(THREADS)]
    )
    for feature in range(16):
        assert torch.equal(got[:, feature], wanted[:, feature]), f"feature {feature}"


def test_indices_in_three_dimensions(run: Run) -> None:
    got = run("indices")[: 12 * 24].view(torch.int32)
    assert got.tolist() == [1000 * block + thread for block in range(12) for thread in range(24)]


@pytest.mark.parametrize("order", range(3))
def test_threads_may_leave_early(run: Run, order: int) -> None:
    got = run("early_exits", order)
    assert got[:50].tolist() == [2.0] * 32 + [34.0] * 18
    assert not got[50:].any()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "divergent_shuffle",
            ["block (0, 0, 0): deadlock: of 96 threads", "48 wait at __shfl_xor_sync (", ".cu:", "0xffffffff"],
        ),
        ("two_barriers", ["some threads are at __syncthreads (", "others at __syncthreads ("]),
        ("different_masks", ["8 wait at __shfl_sync (", "0x0000ffff", "24 wait at __shfl_sync (", "0xffffffff"]),
        ("mask_without_the_caller", ["a lane is not in the mask that it gives to __shfl_sync ("]),
        ("too_many_threads", ["invalid configuration"]),
        ("no_blocks", ["invalid configuration"]),
        ("shared_not_asked_for", ["too much dynamic shared memory"]),
        ("more_shared_than_asked_for", ["too much dynamic shared memory"]),
    ],
)
def test_reports(run: Run, name: str, words: list[str]) -> None:
    for order in range(3):
        with pytest.raises(RuntimeError) as caught:
            run(name, order)
        assert all(word in str(caught.value) for word in words), caught.value
    run("shift")  # an error leaves nothing behind


def test_shared_memory_that_was_asked_for(run: Run) -> None:
    count = (50 << 10) // 4  # numbers
    for order in range(3):
        assert torch.equal(run("shared_asked_for", order, count=count), torch.arange(count - 1.0, -1.0, -1.0))


def test_what_nobody_wrote_is_nan(run: Run) -> None:
    assert math.isnan(run("unwritten_memory")[0]) and run("unwritten_memory")[1] == 1
    assert torch.isnan(run("absent_lane")[8:16]).all() and run("absent_lane")[:8].tolist() == list(range(8, 16))


# ---- AddressSanitizer and UndefinedBehaviorSanitizer: a process of their own, which ends at the first finding ----


@pytest.fixture(scope="module")
def sanitized() -> Path:
    return build_planted(emulation.Variant(sanitize=True))


def run_sanitized(library: Path, name: str) -> subprocess.CompletedProcess[str]:
    code = f"""if True:
        import ctypes
        out = (ctypes.c_float * 4096)()
        library = ctypes.CDLL({str(library)!r})
        library.run_planted.restype = ctypes.c_char_p
        for order in range(3):
            assert library.run_planted({name.encode()!r}, order, 0, out) is None
    """
    environment = {**os.environ, **emulation.sanitizer_environment()}
    return subprocess.run([sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["shift", "features", "early_exits"])
def test_sanitizers_find_nothing_in_what_is_right(sanitized: Path, name: str) -> None:
    result = run_sanitized(sanitized, name)
    assert result.returncode == 0 and not result.stderr, result.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("out_of_bounds_output", "heap-buffer-overflow"),
        ("out_of_bounds_static", "global-buffer-overflow"),
        ("out_of_bounds_static_in_template", "global-buffer-overflow"),
        ("out_of_bounds_dynamic", "heap-buffer-overflow"),
        ("misaligned_vector", "misaligned address"),
    ],
)
def test_sanitizers_name_the_line(sanitized: Path, name: str, words: str) -> None:
    result = run_sanitized(sanitized, name)
    assert result.returncode != 0
    assert words in result.stderr and "planted_kernels.cu:" in result.stderr, result.stderr
