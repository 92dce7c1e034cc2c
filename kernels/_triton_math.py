"""Device functions for Triton kernels: addresses, 3-vectors and 3x3 matrices.

A value per lane: a lane of a block is one row (matrix, frame, ...). A 3-vector is a tuple of three such values, a 3x3
matrix a tuple of nine, row-major like the tensors. float32 and float64; convert narrower types right after loading.
Functions named ``<name>_grad`` return the gradients of the arguments of ``<name>`` from the gradient of its result.

The mathematics is that of ``csrc/common``.
"""

import triton
import triton.language as tl

from ._triton import INTERPRETED

_INTERPRETED = tl.constexpr(INTERPRETED)


# Addresses, loads, stores.


@triton.jit
def program_rows(BLOCK: tl.constexpr):
    """Numbers (int64, as addresses need) of the rows that this program's lanes stand for."""
    return tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def row_offset(row, sizes, strides):
    """Offset of row number ``row`` (int64) in a tensor that ``_triton.as_rows`` described."""
    offset = row * 0
    for axis in tl.static_range(len(sizes) - 1):
        offset += row % sizes[axis] * strides[axis]
        row = row // sizes[axis]
    return offset + row * strides[len(sizes) - 1]


@triton.jit
def as_float(x):
    """float64 stays, everything else becomes float32. In the interpreter, arithmetic in bfloat16 gives garbage."""
    if x.dtype == tl.float64:
        return x
    else:
        return x.to(tl.float32)


@triton.jit
def rounded_to(x, DTYPE: tl.constexpr):
    """float32 ``x`` as ``DTYPE``, to nearest even. The interpreter's own conversion to bfloat16 truncates, and makes
    2^-126 of zero."""
    if _INTERPRETED and tl.bfloat16 == DTYPE:
        bits = x.to(tl.int32, bitcast=True)
        bits = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), bits | 0x400000)
        return (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(DTYPE)


@triton.jit
def load_vec3(ptr, offset, mask):
    """Three contiguous numbers per lane; zeros where ``mask`` is false."""
    x = as_float(tl.load(ptr + offset, mask=mask, other=0.0))
    y = as_float(tl.load(ptr + offset + 1, mask=mask, other=0.0))
    z = as_float(tl.load(ptr + offset + 2, mask=mask, other=0.0))
    return x, y, z


@triton.jit
def store_vec3(ptr, offset, a, mask):
    """Three contiguous numbers per lane."""
    for i in tl.static_range(3):
        tl.store(ptr + offset + i, a[i], mask=mask)


@triton.jit
def load_mat3(ptr, offset, mask):
    """Nine contiguous numbers per lane; the identity where ``mask`` is false, so that they take no extra steps."""
    p = ptr + offset
    return (
        as_float(tl.load(p, mask=mask, other=1.0)),
        as_float(tl.load(p + 1, mask=mask, other=0.0)),
        as_float(tl.load(p + 2, mask=mask, other=0.0)),
        as_float(tl.load(p + 3, mask=mask, other=0.0)),
        as_float(tl.load(p + 4, mask=mask, other=1.0)),
        as_float(tl.load(p + 5, mask=mask, other=0.0)),
        as_float(tl.load(p + 6, mask=mask, other=0.0)),
        as_float(tl.load(p + 7, mask=mask, other=0.0)),
        as_float(tl.load(p + 8, mask=mask, other=1.0)),
    )


@triton.jit
def store_mat3(ptr, offset, A, mask):
    """Nine contiguous numbers per lane."""
    for i in tl.static_range(9):
        tl.store(ptr + offset + i, A[i], mask=mask)


# Vectors.


@triton.jit
def vec3_add(a, b):
    """a + b"""
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


@triton.jit
def vec3_sub(a, b):
    """a - b"""
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


@triton.jit
def vec3_scale(s, a):
    """``a`` times the number ``s`` of its lane."""
    return s * a[0], s * a[1], s * a[2]


@triton.jit
def vec3_select(mask, a, b):
    """``a`` in the lanes of ``mask``, else ``b``."""
    return tl.where(mask, a[0], b[0]), tl.where(mask, a[1], b[1]), tl.where(mask, a[2], b[2])


@triton.jit
def dot(a, b):
    """a . b"""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@triton.jit
def vec3_length(a):
    """|a|"""
    return tl.sqrt(dot(a, a))


@triton.jit
def vec3_direction(a):
    """d|a| / da: zero where a is."""
    size = vec3_length(a)
    return vec3_scale(tl.where(size == 0, 0.0, 1 / tl.where(size == 0, 1.0, size)), a)


@triton.jit
def cross(a, b):
    """a x b"""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@triton.jit
def cross_grad(grad, a, b):
    """Gradients of ``a`` and ``b``."""
    return cross(b, grad), cross(grad, a)


# Matrices.


@triton.jit
def row(A, i: tl.constexpr):
    """Row ``i`` of a matrix."""
    return A[3 * i], A[3 * i + 1], A[3 * i + 2]


@triton.jit
def column(A, j: tl.constexpr):
    """Column ``j`` of a matrix."""
    return A[j], A[3 + j], A[6 + j]


@triton.jit
def from_rows(a, b, c):
    """The matrix with these rows."""
    return a[0], a[1], a[2], b[0], b[1], b[2], c[0], c[1], c[2]


@triton.jit
def from_columns(a, b, c):
    """The matrix with these columns."""
    return a[0], b[0], c[0], a[1], b[1], c[1], a[2], b[2], c[2]


@triton.jit
def identity_like(x):
    """The identity in every lane of ``x``."""
    zero = tl.zeros_like(x)
    one = zero + 1
    return one, zero, zero, zero, one, zero, zero, zero, one


@triton.jit
def transpose(A):
    """A^T"""
    return A[0], A[3], A[6], A[1], A[4], A[7], A[2], A[5], A[8]


@triton.jit
def mat3_add(A, B):
    """A + B"""
    return from_rows(vec3_add(row(A, 0), row(B, 0)), vec3_add(row(A, 1), row(B, 1)), vec3_add(row(A, 2), row(B, 2)))


@triton.jit
def mat3_scale(s, A):
    """``A`` times the number ``s`` of its lane."""
    return from_rows(vec3_scale(s, row(A, 0)), vec3_scale(s, row(A, 1)), vec3_scale(s, row(A, 2)))


@triton.jit
def mat3_divide(A, s):
    """``A / s``. Not a product with 1 / s, which overflows for a subnormal s."""
    return A[0] / s, A[1] / s, A[2] / s, A[3] / s, A[4] / s, A[5] / s, A[6] / s, A[7] / s, A[8] / s


@triton.jit
def mat3_select(mask, A, B):
    """``A`` in the lanes of ``mask``, else ``B``."""
    return from_rows(
        vec3_select(mask, row(A, 0), row(B, 0)),
        vec3_select(mask, row(A, 1), row(B, 1)),
        vec3_select(mask, row(A, 2), row(B, 2)),
    )


@triton.jit
def matvec(A, b):
    """A b"""
    return dot(row(A, 0), b), dot(row(A, 1), b), dot(row(A, 2), b)


@triton.jit
def matvec_grad(grad, A, b):
    """Gradients of ``A`` and ``b``."""
    return outer(grad, b), transposed_matvec(A, grad)


@triton.jit
def transposed_matvec(A, b):
    """A^T b"""
    return dot(column(A, 0), b), dot(column(A, 1), b), dot(column(A, 2), b)


@triton.jit
def outer(a, b):
    """a b^T"""
    return from_rows(vec3_scale(a[0], b), vec3_scale(a[1], b), vec3_scale(a[2], b))


@triton.jit
def matmul(A, B):
    """A B"""
    return from_rows(transposed_matvec(B, row(A, 0)), transposed_matvec(B, row(A, 1)), transposed_matvec(B, row(A, 2)))


@triton.jit
def matmul_grad(grad, A, B):
    """Gradients of ``A`` and ``B``."""
    return times_transposed(grad, B), transposed_times(A, grad)


@triton.jit
def transposed_times(A, B):
    """A^T B"""
    return matmul(transpose(A), B)


@triton.jit
def times_transposed(A, B):
    """A B^T"""
    return from_rows(matvec(B, row(A, 0)), matvec(B, row(A, 1)), matvec(B, row(A, 2)))


@triton.jit
def inner(A, B):
    """Sum of the elementwise product."""
    return dot(row(A, 0), row(B, 0)) + dot(row(A, 1), row(B, 1)) + dot(row(A, 2), row(B, 2))


@triton.jit
def trace(A):
    """Sum of the diagonal."""
    return A[0] + A[4] + A[8]


@triton.jit
def determinant(A):
    """Determinant, by the first row."""
    return dot(row(A, 0), cross(row(A, 1), row(A, 2)))


@triton.jit
def determinant_grad(grad, A):
    """``grad`` times the cofactors of ``A``."""
    a, b, c = row(A, 0), row(A, 1), row(A, 2)
    return mat3_scale(grad, from_rows(cross(b, c), cross(c, a), cross(a, b)))


@triton.jit
def cross_matrix(a):
    """[a]x, with [a]x b = a x b."""
    zero = tl.zeros_like(a[0])
    return zero, -a[2], a[1], a[2], zero, -a[0], -a[1], a[0], zero


@triton.jit
def axial(A):
    """The vector a with A - A^T = [a]x."""
    return A[7] - A[5], A[2] - A[6], A[3] - A[1]
