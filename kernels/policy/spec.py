"""Cases of ``group_advantages`` and ``grpo_loss``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._spec import Case, OpSpec, Tolerance
from . import group_advantages, grpo_loss


def _numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _pattern(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    """Numbers in [-1, 1] without a generator, which a traced function may not create."""
    return (torch.arange(math.prod(shape), dtype=torch.float64, device=device) * (1.7 + seed)).sin().view(shape)


def _rewards(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor]:
    rewards = _numbers(case.sizes["shape"], seed) * case.sizes.get("spread", 1.0)
    return (rewards.to(device, dtype),)


def _call_advantages(case: Case, rewards: Tensor, *, backend: str | None = None) -> tuple[Tensor, ...]:
    options = dict(case.options)
    if case.sizes.get("holes"):
        options["valid"] = _pattern(tuple(rewards.shape[:2]), 3, rewards.device) > -0.7
    return tuple(group_advantages(rewards, backend=backend, **options))


def _advantage_bytes(case: Case, dtype: torch.dtype) -> int:
    members = math.prod(case.sizes["shape"][:2])
    return dtype.itemsize * (2 * math.prod(case.sizes["shape"]) + members)


def _log_ratios(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    inputs = [case.sizes["spread"] * _numbers(case.sizes["shape"], seed)]
    if case.sizes["full"]:
        inputs.append(_numbers(case.sizes["shape"], seed + 1).square())
    return tuple(x.to(device, dtype) for x in inputs)


def _call_loss(
    case: Case, log_ratio: Tensor, kl: Tensor | None = None, *, backend: str | None = None
) -> tuple[Tensor, ...]:
    # What is constant by contract is no input here: numeric derivatives would see it.
    shape, device = tuple(log_ratio.shape), log_ratio.device
    options = dict(case.options)
    if case.sizes["full"]:
        options["valid"] = _pattern(shape, 3, device) > -0.7
        options["weights"] = _pattern(shape, 5, device).abs().to(log_ratio.dtype)
    advantages = 2.0 * _pattern(shape, 7, device).to(log_ratio.dtype)
    return tuple(grpo_loss(log_ratio, advantages, kl=kl, backend=backend, **options))


def _loss_bytes(case: Case, dtype: torch.dtype) -> int:
    tensors = 5 if case.sizes["full"] else 3
    return tensors * dtype.itemsize * math.prod(case.sizes["shape"])


SPECS = (
    OpSpec(
        name="group_advantages",
        cases=(
            Case("iteration", {"shape": (64, 16, 5)}),
            Case("summed_trimmed", {"shape": (9, 12, 3), "holes": True}, {"scheme": "sum_then_normalize", "trim": 0.1}),
            Case("gdpo_clamped", {"shape": (17, 8, 4)}, {"scheme": "gdpo", "clamp": 1.0, "std_floor_ratio": 0.1}),
            Case("center_only", {"shape": (5, 7, 2), "holes": True}, {"scheme": "center_only", "ddof": 0}),
            Case("batch_std", {"shape": (5, 7, 2)}, {"scheme": "batch_std", "weights": (2.0, -0.5)}),
            Case("win_rate", {"shape": (5, 7, 2), "holes": True}, {"scheme": "win_rate", "std_floor_ratio": 0.1}),
            Case("one_reward", {"shape": (6, 8)}),
            Case("all_dead", {"shape": (6, 8, 2), "spread": 1e-9}),
            Case("empty", {"shape": (0, 8, 3)}, {"scheme": "gdpo"}),
        ),
        make_inputs=_rewards,
        call=_call_advantages,
        tolerances={torch.float32: Tolerance(1e-6, 0.0), torch.float64: Tolerance(1e-12, 0.0)},
        bytes_moved=_advantage_bytes,
        differentiable=False,
    ),
    OpSpec(
        name="grpo_loss",
        cases=(
            Case("iteration", {"shape": (64, 16, 29), "spread": 3e-4, "full": False}, {"clip_range": 1e-4}),
            Case(
                "everything",
                {"shape": (7, 5, 11), "spread": 0.4, "full": True},
                {"clip_range": (0.2, 0.3), "kl_coef": 0.2, "denominator": 100.0},
            ),
            Case("micro_batch", {"shape": (4, 16), "spread": 0.3, "full": False}, {"clip_range": 0.2}),
            Case("one", {"shape": (), "spread": 0.1, "full": False}, {"clip_range": 0.2}),
            Case("empty", {"shape": (0, 16), "spread": 0.1, "full": True}, {"clip_range": 0.2, "kl_coef": 0.1}),
        ),
        make_inputs=_log_ratios,
        call=_call_loss,
        tolerances={torch.float32: Tolerance(1e-6, 1e-6), torch.float64: Tolerance(1e-13, 1e-12)},
        bytes_moved=_loss_bytes,
    ),
)
