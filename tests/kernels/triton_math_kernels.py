"""A kernel around every device function of ``_triton_math`` and ``_triton_rotations`` that has a gradient.

It imports triton, so the tests import it only where triton is there; ``tools/triton_resources.py`` compiles it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mgrpo.kernels import _triton_math as m
from mgrpo.kernels import _triton_rotations as r
from mgrpo.kernels._triton import CompileCase, compile_cases, launch

LANES = 512
_LANES = tl.constexpr(LANES)


@triton.jit
def _load(ptr, row, N: tl.constexpr):
    values = (tl.load(ptr + row * N),)
    for i in tl.static_range(1, N):
        values = values + (tl.load(ptr + row * N + i),)  # noqa: RUF005  (Triton has no stars in tuples)
    return values


@triton.jit
def _store(ptr, row, values):
    for i in tl.static_range(len(values)):
        tl.store(ptr + row * len(values) + i, values[i])


@triton.jit
def _one_argument_kernel(
    a_ptr, grad_ptr, out_ptr, out_grad_ptr, F: tl.constexpr, G: tl.constexpr, A: tl.constexpr, OUT: tl.constexpr
):
    row = tl.program_id(0) * _LANES + tl.arange(0, _LANES)
    a = _load(a_ptr, row, A)
    _store(out_ptr, row, F(a))
    _store(out_grad_ptr, row, G(_load(grad_ptr, row, OUT), a))


@triton.jit
def _two_argument_kernel(
    a_ptr, b_ptr, grad_ptr, out_ptr, out_grad_a_ptr, out_grad_b_ptr,
    F: tl.constexpr, G: tl.constexpr, A: tl.constexpr, B: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * _LANES + tl.arange(0, _LANES)
    a, b = _load(a_ptr, row, A), _load(b_ptr, row, B)
    _store(out_ptr, row, F(a, b))
    grad_a, grad_b = G(_load(grad_ptr, row, OUT), a, b)
    _store(out_grad_a_ptr, row, grad_a)
    _store(out_grad_b_ptr, row, grad_b)


@triton.jit
def _determinant(A):
    return (m.determinant(A),)


@triton.jit
def _determinant_grad(grad, A):
    return m.determinant_grad(grad[0], A)


@triton.jit
def _unit_quat(q):
    return r.unit_quat(q)[0]


@triton.jit
def _unit_quat_grad(grad, q):
    unit, inverse_length = r.unit_quat(q)
    return r.unit_quat_grad(grad, unit, inverse_length)


@triton.jit
def _unit_vec3(a):
    return r.unit_vec3(a)[0]


@triton.jit
def _unit_vec3_grad(grad, a):
    unit, inverse_length = r.unit_vec3(a)
    return r.unit_vec3_grad(grad, unit, inverse_length)


@triton.jit
def _round_kernel(x_ptr, out_ptr, DTYPE: tl.constexpr):
    i = tl.arange(0, _LANES)
    tl.store(out_ptr + i, m.rounded_to(m.as_float(tl.load(x_ptr + i)), DTYPE))


class Function(NamedTuple):
    """A device function, its gradient, and how many numbers its arguments and its result have."""

    value: Any
    gradient: Any
    widths: tuple[int, ...]


FUNCTIONS = {
    "determinant": Function(_determinant, _determinant_grad, (9, 1)),
    "unit_quat": Function(_unit_quat, _unit_quat_grad, (4, 4)),
    "unit_vec3": Function(_unit_vec3, _unit_vec3_grad, (3, 3)),
    "quat_matrix": Function(r.quat_matrix, r.quat_matrix_grad, (4, 9)),
    "matrix_quat": Function(r.matrix_quat, r.matrix_quat_grad, (9, 4)),
    "cross": Function(m.cross, m.cross_grad, (3, 3, 3)),
    "matvec": Function(m.matvec, m.matvec_grad, (9, 3, 3)),
    "matmul": Function(m.matmul, m.matmul_grad, (9, 9, 9)),
    "quat_multiply": Function(r.quat_multiply, r.quat_multiply_grad, (4, 4, 4)),
    "quat_rotate": Function(r.quat_rotate, r.quat_rotate_grad, (4, 3, 3)),
    "rot6d_matrix": Function(r.rot6d_matrix, r.rot6d_matrix_grad, (3, 3, 9)),
}


def call(name: str, arguments: list[Tensor], grad: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Value and gradients of FUNCTIONS[name], for arguments (LANES, width)."""
    function = FUNCTIONS[name]
    out = torch.empty_like(grad)
    grads = [torch.empty_like(x) for x in arguments]
    kernel = _one_argument_kernel if len(arguments) == 1 else _two_argument_kernel
    sizes = dict(zip(("A", "B") if len(arguments) == 2 else ("A",), function.widths))
    launch(
        kernel, 1, *arguments, grad, out, *grads,
        on=out, F=function.value, G=function.gradient, OUT=function.widths[-1], **sizes,
    )  # fmt: skip
    return out, grads


def round_to(values: Tensor, out: Tensor) -> None:
    """(LANES,) float32 into the dtype of ``out``."""
    dtype = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[out.dtype]
    launch(_round_kernel, 1, values, out, on=out, DTYPE=dtype)


def _sample(name: str, dtype: torch.dtype) -> None:
    *arguments, grad = (torch.empty(LANES, width, dtype=dtype) for width in FUNCTIONS[name].widths)
    call(name, arguments, grad)


COMPILE_CASES = (
    *(case for name in FUNCTIONS for case in compile_cases(name, partial(_sample, name), [torch.float64])),
    CompileCase("rounded_to", lambda: round_to(torch.empty(LANES), torch.empty(LANES, dtype=torch.bfloat16)), (90,)),
)
