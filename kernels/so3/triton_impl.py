"""``project_so3`` in Triton: one matrix per lane."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import as_rows, block_lanes, compile_cases, launch
from .._triton_math import load_mat3, program_rows, row_offset, store_mat3
from .._triton_polar import nearest_rotation, nearest_rotation_grad


@triton.jit
def _project_so3_fwd_kernel(
    matrices_ptr, matrices_sizes, matrices_strides, out_R_ptr, count, FIX_DET: tl.constexpr, BLOCK: tl.constexpr
):
    row = program_rows(BLOCK)
    mask = row < count
    M = load_mat3(matrices_ptr, row_offset(row, matrices_sizes, matrices_strides), mask)
    store_mat3(out_R_ptr, 9 * row, nearest_rotation(M, FIX_DET), mask)


@triton.jit
def _project_so3_bwd_kernel(
    grad_R_ptr,
    grad_R_sizes,
    grad_R_strides,
    matrices_ptr,
    matrices_sizes,
    matrices_strides,
    R_ptr,
    out_grad_ptr,
    count,
    FIX_DET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = program_rows(BLOCK)
    mask = row < count
    grad_R = load_mat3(grad_R_ptr, row_offset(row, grad_R_sizes, grad_R_strides), mask)
    M = load_mat3(matrices_ptr, row_offset(row, matrices_sizes, matrices_strides), mask)
    R = load_mat3(R_ptr, 9 * row, mask)
    store_mat3(out_grad_ptr, 9 * row, nearest_rotation_grad(grad_R, M, R, FIX_DET), mask)


def project_so3_forward(matrices: Tensor, fix_det: bool) -> Tensor:
    """Implementation of ``mgrpo::project_so3``."""
    rows = as_rows(matrices, 2)
    R = matrices.new_empty(matrices.shape)
    block = block_lanes(rows.count)
    launch(
        _project_so3_fwd_kernel, triton.cdiv(rows.count, block),
        rows.tensor, rows.sizes, rows.strides, R, rows.count,
        on=R, FIX_DET=fix_det, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return R


def project_so3_backward(grad_R: Tensor, matrices: Tensor, R: Tensor, fix_det: bool) -> Tensor:
    """Implementation of ``mgrpo::project_so3_backward``."""
    rows, grad_rows = as_rows(matrices, 2), as_rows(grad_R, 2)
    grad = matrices.new_empty(matrices.shape)
    block = block_lanes(rows.count)
    launch(
        _project_so3_bwd_kernel, triton.cdiv(rows.count, block),
        grad_rows.tensor, grad_rows.sizes, grad_rows.strides, rows.tensor, rows.sizes, rows.strides,
        R.contiguous(), grad, rows.count,
        on=grad, FIX_DET=fix_det, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return grad


def _matrices(dtype: torch.dtype) -> Tensor:
    return torch.empty(1000, 3, 3, dtype=dtype)


COMPILE_CASES = (
    *compile_cases("forward", lambda dtype: project_so3_forward(_matrices(dtype), True)),
    *compile_cases(
        "forward without det fix", lambda dtype: project_so3_forward(_matrices(dtype), False), [torch.float32]
    ),
    *compile_cases("backward", lambda dtype: project_so3_backward(*3 * [_matrices(dtype)], True)),
)
