"""``philox_normal`` and ``philox_uniform`` in Triton: four numbers per lane, bit for bit those of the reference."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import INTERPRETED, block_lanes, compile_cases, launch
from .._triton_philox import in_element_order, normals_of_blocks, uniforms_of_blocks

_KEYS = ("seed_low", "seed_high", "iteration", "stream", "step_member_stride", "condition_stride")


# Not specialised: a kernel per key that happens to be 1 or a multiple of 16 would only be compiled once more.
@triton.jit(do_not_specialize=_KEYS)
def _philox_fwd_kernel(
    step_member_ptr,
    condition_ptr,
    out_ptr,
    row_count,
    count,
    seed_low,
    seed_high,
    iteration,
    stream,
    step_member_stride,
    condition_stride,
    NORMAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    programs_per_row = tl.cdiv(count, 4 * BLOCKS)
    row = (tl.program_id(0) // programs_per_row).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    first = tl.program_id(0) % programs_per_row * BLOCKS
    row_mask = row < row_count
    step_member = tl.load(step_member_ptr + row * step_member_stride, mask=row_mask, other=0)
    condition = tl.load(condition_ptr + row * condition_stride, mask=row_mask, other=0)
    block = first + tl.arange(0, BLOCKS)[None, :]
    if NORMAL:
        x0, x1, x2, x3 = normals_of_blocks(block, step_member, condition, seed_low, seed_high, iteration, stream)
    else:
        x0, x1, x2, x3 = uniforms_of_blocks(block, step_member, condition, seed_low, seed_high, iteration, stream)
    element = 4 * first + tl.arange(0, 4 * BLOCKS)[None, :]
    mask = row_mask & (element < count)
    tl.store(out_ptr + row * count + element, in_element_order(x0, x1, x2, x3), mask=mask)


def _draw(
    normal: bool, step_member: Tensor, condition: Tensor, count: int, seed: int, iteration: int, stream: int
) -> Tensor:
    row_count = condition.shape[0]
    out = condition.new_empty((row_count, count), dtype=torch.float32)
    if out.numel() == 0:
        return out
    lanes = block_lanes(row_count * triton.cdiv(count, 4), on_gpu=256)
    # A program draws for one row; interpreted, where programs are what costs, for as many as fit.
    blocks = min(lanes, triton.next_power_of_2(triton.cdiv(count, 4))) if INTERPRETED else lanes
    rows = lanes // blocks
    launch(
        _philox_fwd_kernel, triton.cdiv(row_count, rows) * triton.cdiv(count, 4 * blocks),
        step_member, condition, out, row_count, count,
        seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, iteration, stream,
        step_member.stride(0), condition.stride(0),
        on=out, NORMAL=normal, ROWS=rows, BLOCKS=blocks, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return out


def philox_normal(step_member: Tensor, condition: Tensor, count: int, seed: int, iteration: int, stream: int) -> Tensor:
    """Implementation of ``mgrpo::philox_normal``; arguments as ``reference.row_words``."""
    return _draw(True, step_member, condition, count, seed, iteration, stream)


def philox_uniform(
    step_member: Tensor, condition: Tensor, count: int, seed: int, iteration: int, stream: int
) -> Tensor:
    """Implementation of ``mgrpo::philox_uniform``; arguments as ``reference.row_words``."""
    return _draw(False, step_member, condition, count, seed, iteration, stream)


def _keys() -> tuple[Tensor, Tensor]:
    return torch.arange(16), torch.arange(16)


COMPILE_CASES = (
    *compile_cases("normal", lambda dtype: philox_normal(*_keys(), 7232, 2**40 + 3, 7, 1), [torch.float32]),
    *compile_cases("uniform", lambda dtype: philox_uniform(*_keys(), 7232, 2**40 + 3, 7, 1), [torch.float32]),
    # A row that starts anywhere, and key words with the highest bit set, which arrive as wider integers.
    *compile_cases("normal odd", lambda dtype: philox_normal(*_keys(), 999, -1, 2**32 - 1, 15), [torch.float32]),
)
