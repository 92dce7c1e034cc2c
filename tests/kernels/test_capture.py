"""What a CUDA graph allows: no operator waits for its device or copies from the host while it is called.

Without a GPU three things stand for that: the text of the launchers, the public functions' own work watched on the meta
device, and that they read no value there. With one, every operator is captured and replayed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mgrpo import kernels
from mgrpo.kernels import (
    group_advantages,
    grpo_loss,
    motion_metrics,
    sde_kl,
    sde_log_prob,
    sde_log_ratio,
    sde_step,
    use_backend,
)
from mgrpo.kernels._spec import OpSpec, all_specs

ROOT = Path(__file__).resolve().parents[2]
NATIVE_LAUNCHERS = sorted([*ROOT.glob("csrc/*/*_cuda_op.cpp"), *ROOT.glob("csrc/*/*_cuda.cu")])
NATIVE_SHARED = sorted(path for path in ROOT.glob("csrc/*/*.h") if path.parent.name != "emulation")
TRITON_LAUNCHERS = sorted(
    [*ROOT.glob("kernels/*/triton_*.py"), *ROOT.glob("kernels/*/op.py"), *ROOT.glob("kernels/_triton*.py")]
)
HOST_IN_NATIVE = re.compile(
    r"\b(?:cudaMemcpy\w*|cudaMemset|cuda\w*Synchronize|cudaMalloc\w*|cudaFree\w*|cudaEventQuery|cudaStreamQuery"
    r"|torch::stable::to|aoti_torch_item\w*)\b|\.(?:item|cpu)\s*(?:<\w+>)?\("
)
HOST_IN_PYTHON = re.compile(
    r"\.(?:item|cpu|cuda|tolist|numpy|nonzero|is_nonzero|new_tensor|synchronize|pin_memory)\("
    r"|\.to\((?:device|[\"']|\w+\.device)|torch\.(?:tensor|as_tensor|from_numpy|nonzero|is_nonzero|equal|allclose)\("
    r"|\b(?:int|float|bool|if|while|and|or|not|assert)\b.*(?<!\btl)\.(?:any|all|max|min|sum|amax|amin)\("
)
KEPT_ON_THE_DEVICE = {"return torch.tensor(parents, dtype=torch.int32, device=device)"}
"""Copied on the first call with a tree and kept: like compiling kernels, it belongs to the call before a capture."""
IN_A_REFERENCE = {"still = T_world_head.new_tensor([1.0, 0, 0, 0, 0, 0, 0])"}
"""Plain torch beside an operator's registration, which no capture runs: that search reads its costs anyway."""


def found_in(files: list[Path], pattern: re.Pattern[str], comment: str) -> list[str]:
    return [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if pattern.search(line.split(comment)[0]) and line.strip() not in KEPT_ON_THE_DEVICE | IN_A_REFERENCE
    ]


def test_no_cuda_launcher_waits_or_copies() -> None:
    assert len(NATIVE_LAUNCHERS) > 15 and NATIVE_SHARED
    assert found_in([*NATIVE_LAUNCHERS, *NATIVE_SHARED], HOST_IN_NATIVE, "//") == []


def test_no_triton_launcher_waits_or_copies() -> None:
    assert len(TRITON_LAUNCHERS) > 5
    assert found_in(TRITON_LAUNCHERS, HOST_IN_PYTHON, "#") == []


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (HOST_IN_NATIVE, "cudaMemcpyAsync(a, b, n, cudaMemcpyHostToDevice, stream);"),
        (HOST_IN_NATIVE, "check(cudaStreamSynchronize(stream));"),
        (HOST_IN_NATIVE, "Tensor y = torch::stable::to(x, cpu);"),
        (HOST_IN_NATIVE, "if (lengths.item<int64_t>() > 0) return;"),
        (HOST_IN_PYTHON, "count = lengths.max().item()"),
        (HOST_IN_PYTHON, "rows = mask.cpu().numpy()"),
        (HOST_IN_PYTHON, 'weights = weights.to("cuda")'),
        (HOST_IN_PYTHON, "count = int(lengths.max())"),
        (HOST_IN_PYTHON, "if mask.any():"),
        (HOST_IN_PYTHON, "if torch.equal(mask, other):"),
        (HOST_IN_PYTHON, "weights = weights.to(x.device)"),
        (HOST_IN_PYTHON, "parents = torch.tensor(tree, device=x.device)"),
    ],
)
def test_the_patterns_find_what_they_are_for(pattern: re.Pattern[str], line: str) -> None:
    assert pattern.search(line)


class NoHostCopies(TorchFunctionMode):
    """Refuses what would copy memory of the host to the device, for which the meta device stands. Tensors of no axes
    are let through: kernels take them as arguments. So is what ``spec.py`` files make in their calls."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if Path(sys._getframe(1).f_code.co_filename).name == "spec.py":
            return result
        if isinstance(result, Tensor) and result.is_meta:
            made = func in (torch.tensor, torch.as_tensor, Tensor.new_tensor)
            given = any(isinstance(x, Tensor) and x.device.type == "cpu" and x.dim() > 0 for x in args)
            assert not made and not given, f"{func} copies from the host"
        return result


X = torch.zeros(5, 7, 6, device="meta")
JOINTS = torch.zeros(4, 22, 3, device="meta")
ROTMATS = torch.zeros(4, 21, 3, 3, device="meta")
LISTED = [1.0, 1.0, 0.5, 0.0, 2.0, 2.0]
CALLS: dict[str, Callable[[], Any]] = {
    "sde_step": lambda: sde_step(X, X, 0.5, 0.5, 0.1, X, return_log_prob=True, channel_weights=LISTED),
    "sde_log_prob": lambda: sde_log_prob(X, X, X, 0.5, 0.5, 0.1, channel_weights=LISTED),
    "sde_log_ratio": lambda: sde_log_ratio(X, X, X, 0.5, 0.1, channel_weights=LISTED),
    "sde_kl": lambda: sde_kl(X, X, 0.5, 0.1, channel_weights=LISTED),
    "group_advantages": lambda: group_advantages(X, weights=LISTED),
    "grpo_loss": lambda: grpo_loss(X, X, clip_range=0.2, denominator=3.0, kl=X, kl_coef=0.1),
    "motion_metrics": lambda: motion_metrics(JOINTS, JOINTS, ROTMATS, ROTMATS),
}


@pytest.mark.parametrize("call", CALLS)
def test_lists_and_numbers_are_not_copied_to_the_device(call: str) -> None:
    """What the public functions themselves do, in front of any backend, and the reference."""
    with use_backend(None), NoHostCopies():
        CALLS[call]()


@pytest.mark.parametrize("spec", [pytest.param(spec, id=spec.name) for spec in all_specs()])
def test_no_operator_copies_to_the_device_or_reads_from_it(spec: OpSpec) -> None:
    """Every case; reading a value of a tensor on the meta device is an error."""
    dtype = max(spec.tolerances, key=lambda dtype: torch.finfo(dtype).eps)
    for case in spec.cases:
        inputs = [x.to("meta") for x in spec.make_inputs(case, dtype, torch.device("cpu"), 3)]
        with use_backend(None), NoHostCopies():
            assert all(result.is_meta for result in spec.call(case, *inputs))


def test_listed_weights_are_filled_as_they_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        type = "cuda"

    full, cat = torch.full, torch.cat
    counts = []
    monkeypatch.setattr(torch, "full", lambda size, value, *, dtype, device: full(size, value, dtype=dtype))
    monkeypatch.setattr(torch, "cat", lambda parts: counts.append(len(parts)) or cat(parts))
    got = kernels._numbers.listed_on(LISTED, Elsewhere())
    assert got.tolist() == LISTED and got.dtype == torch.float64 and counts == [4]


class CopiesOfSpecs(TorchFunctionMode):
    """Lets ``spec.py`` files, and nothing else, have on the device in later calls what they copied in the first: some
    make recordings and masks in the call. Of an operator's own copies nothing is hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[Tensor] = []
        self.used: int | None = None

    def again(self) -> CopiesOfSpecs:
        self.used = 0
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        caller = Path(sys._getframe(1).f_code.co_filename).name
        if func is not Tensor.to or caller != "spec.py" or args[0].device.type != "cpu":
            return func(*args, **(kwargs or {}))
        if self.used is None:
            self.copies.append(func(*args, **(kwargs or {})))
            return self.copies[-1]
        self.used += 1
        return self.copies[self.used - 1]


def test_what_a_spec_copies_is_there_in_later_calls() -> None:
    spec = next(spec for spec in all_specs() if spec.name == "group_rewards")
    case = spec.cases[0]
    inputs, kept = spec.make_inputs(case, torch.float32, torch.device("cpu"), 3), CopiesOfSpecs()
    with kept:
        expected = spec.call(case, *inputs, backend="reference")
    with kept.again():
        results = spec.call(case, *inputs, backend="reference")
    assert kept.used == len(kept.copies) > 0
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("spec", [pytest.param(spec, id=spec.name) for spec in all_specs()])
def test_a_captured_call_replays(spec: OpSpec, backend: str) -> None:
    if backend not in kernels.available_backends(spec.name):
        pytest.skip(kernels.explain_backend(spec.name))
    device = torch.device("cuda")
    case = spec.cases[0]
    first, second = (spec.make_inputs(case, torch.float32, device, seed) for seed in (3, 4))
    with torch.no_grad():
        try:
            expected = spec.call(case, *second, backend=backend)
        except kernels.BackendError as error:
            pytest.skip(str(error))
        given = [x.clone() for x in first]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        kept = CopiesOfSpecs()
        with torch.cuda.stream(side), kept:
            spec.call(case, *given, backend=backend)  # loads and compiles the kernels
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph), kept.again():
            results = spec.call(case, *given, backend=backend)
        for x, value in zip(given, second, strict=True):
            x.copy_(value)
        graph.replay()
    for got, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
