"""Device functions for Triton kernels: 3-vectors, 3x3 matrices, nearest rotations.

A value per lane: a lane of a block is one row (matrix, frame, ...). A 3-vector is a tuple of three such values, a 3x3
matrix a tuple of nine, row-major like the tensors. float32 and float64; convert narrower types right after loading.
Functions named ``<name>_grad`` return the gradients of the arguments of ``<name>`` from the gradient of its result.

The mathematics is that of ``csrc/common``; kernels/so3/README.md explains it.
"""

import triton
import triton.language as tl

from ._triton import INTERPRETED

_INTERPRETED = tl.constexpr(INTERPRETED)
_LARGEST_F32 = tl.constexpr(3.4028234663852886e38)
_LARGEST_F64 = tl.constexpr(1.7976931348623157e308)


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


# The nearest rotation, its singular vectors and its gradient: kernels/so3/README.md.


@triton.jit
def _larger(a, b):
    """The larger of two numbers; NaN if either is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def largest_entry(A):
    """Largest absolute entry; NaN if any entry is."""
    size = tl.abs(A[0])
    for i in tl.static_range(1, 9):
        size = _larger(size, tl.abs(A[i]))
    return size


@triton.jit
def is_finite(x):
    """False for NaN and for infinities."""
    if x.dtype == tl.float64:
        return tl.abs(x) <= _LARGEST_F64
    else:
        return tl.abs(x) <= _LARGEST_F32


@triton.jit
def _orthogonalise(bp, bq, vp, vq):
    """Rotates columns p and q of B and V so that those of B become orthogonal (one-sided Jacobi)."""
    difference = dot(bq, bq) - dot(bp, bp)
    product = 2 * dot(bp, bq)
    denominator = tl.abs(difference) + tl.sqrt(difference * difference + product * product)
    tangent = tl.where(denominator > 0, product / tl.where(denominator > 0, denominator, 1.0), 0.0)
    tangent = tl.where(difference < 0, -tangent, tangent)
    cosine = 1 / tl.sqrt(1 + tangent * tangent)
    sine = tangent * cosine
    return (
        vec3_sub(vec3_scale(cosine, bp), vec3_scale(sine, bq)),
        vec3_add(vec3_scale(sine, bp), vec3_scale(cosine, bq)),
        vec3_sub(vec3_scale(cosine, vp), vec3_scale(sine, vq)),
        vec3_add(vec3_scale(sine, vp), vec3_scale(cosine, vq)),
    )


@triton.jit
def _order(bp, bq, vp, vq):
    """Puts the longer of columns p and q first. One of them changes sign, which keeps V a rotation."""
    swap = dot(bp, bp) < dot(bq, bq)
    return (
        vec3_select(swap, bq, bp),
        vec3_select(swap, vec3_scale(-1.0, bp), bq),
        vec3_select(swap, vq, vp),
        vec3_select(swap, vec3_scale(-1.0, vp), vq),
    )


@triton.jit
def _any_perpendicular(a):
    """Some unit vector at a right angle to the unit vector ``a``."""
    x, y, z = tl.abs(a[0]), tl.abs(a[1]), tl.abs(a[2])
    zero = tl.zeros_like(x)
    use_x = (x <= y) & (x <= z)
    use_y = (y < x) & (y <= z)
    use_z = (z < x) & (z < y)
    axis = (tl.where(use_x, zero + 1, zero), tl.where(use_y, zero + 1, zero), tl.where(use_z, zero + 1, zero))
    c = cross(a, axis)
    return vec3_scale(1 / tl.sqrt(dot(c, c)), c)


@triton.jit
def _perpendicular_part(a, b):
    """The part of ``b`` at a right angle to the unit vector ``a``, as a unit vector; any such vector if ``b`` has no
    usable one."""
    size = tl.maximum(tl.abs(b[0]), tl.maximum(tl.abs(b[1]), tl.abs(b[2])))
    usable = size > 0
    size = tl.where(usable, size, 1.0)
    b = (b[0] / size, b[1] / size, b[2] / size)
    for _ in tl.static_range(2):  # the second pass removes what cancellation left in the first
        b = vec3_sub(b, vec3_scale(dot(a, b), a))
        length = tl.sqrt(dot(b, b))
        usable = usable & (length > 0.125)
        b = vec3_scale(1 / tl.where(length > 0, length, 1.0), b)
    return vec3_select(usable, b, _any_perpendicular(a))


@triton.jit
def _rescaled(M):
    """``M`` over its largest entry, which its polar factor does not notice and which keeps tiny and huge entries apart
    from underflow and overflow; the identity for zero and for matrices with entries that are not finite. Also returns
    the largest entry."""
    size = largest_entry(M)
    usable = (size > 0) & is_finite(size)
    identity = identity_like(size)
    safe = mat3_select(usable, M, identity)
    return mat3_divide(safe, tl.where(usable, size, 1.0)), size


@triton.jit
def singular_polar(B, FIX_DET: tl.constexpr):
    """Polar factor with singular vectors, for ``B`` with a largest entry of about 1.

    Returns R, V (right singular vectors, a rotation) and the singular values s_1 >= s_2 >= |s_3|; s_3 < 0 where the
    determinant was fixed.
    """
    b0, b1, b2 = column(B, 0), column(B, 1), column(B, 2)
    identity = identity_like(B[0])
    v0, v1, v2 = column(identity, 0), column(identity, 1), column(identity, 2)
    for _ in range(6 if B[0].dtype == tl.float64 else 4):
        b0, b1, v0, v1 = _orthogonalise(b0, b1, v0, v1)
        b0, b2, v0, v2 = _orthogonalise(b0, b2, v0, v2)
        b1, b2, v1, v2 = _orthogonalise(b1, b2, v1, v2)
    b0, b1, v0, v1 = _order(b0, b1, v0, v1)
    b0, b2, v0, v2 = _order(b0, b2, v0, v2)
    b1, b2, v1, v2 = _order(b1, b2, v1, v2)

    # B = U diag(s). The third direction follows from the first two, so the product is a rotation also where B is
    # singular, and s_3, the smallest, carries the sign of the determinant: that is the nearest rotation.
    s1 = tl.sqrt(dot(b0, b0))
    u0 = vec3_scale(1 / s1, b0)
    u1 = _perpendicular_part(u0, b1)
    u2 = cross(u0, u1)
    s2 = tl.abs(dot(u1, b1))
    s3 = dot(u2, b2)
    if not FIX_DET:
        u2 = vec3_select(s3 < 0, vec3_scale(-1.0, u2), u2)
        s3 = tl.abs(s3)
    V = from_columns(v0, v1, v2)
    return times_transposed(from_columns(u0, u1, u2), V), V, (s1, s2, s3)


@triton.jit
def _newton_polar(B):
    """Polar factor of a well-conditioned ``B`` with positive determinant, by Newton's iteration X <- (X + X^-T) / 2
    with Higham's scaling. Returns X and the lanes in which it is one.

    A lane stops when it has converged or turned out to be no such matrix, so no lane sees its neighbours.
    """
    X = B
    active = B[0] == B[0]
    converged = active & (B[0] != B[0])
    step = 0
    while (step < 12) & (tl.max(active.to(tl.int32), 0) > 0):
        a, b, c = row(X, 0), row(X, 1), row(X, 2)
        bc, ca, ab = cross(b, c), cross(c, a), cross(a, b)  # the cofactors: X^-T times the determinant
        determinant = dot(a, bc)
        active = active & (determinant > 0.02)
        determinant = tl.where(active, determinant, 1.0)
        squares = dot(a, a) + dot(b, b) + dot(c, c)
        cofactor_squares = dot(bc, bc) + dot(ca, ca) + dot(ab, ab)
        # The scaling (|X^-1| / |X|)^(1/2) is 1 at a rotation and saves steps far from one.
        scaling = tl.sqrt(tl.sqrt(cofactor_squares / squares) / determinant)
        scaling = tl.where(active, scaling, 1.0)
        Y = mat3_add(mat3_scale(scaling / 2, X), mat3_scale(1 / (2 * scaling * determinant), from_rows(bc, ca, ab)))
        change = mat3_add(Y, mat3_scale(-1.0, X))
        X = mat3_select(active, Y, X)
        # The error after this step is about the square of the change.
        close = active & (inner(change, change) < (1e-17 if B[0].dtype == tl.float64 else 1e-8))
        converged = converged | close
        active = active & ~close
        step += 1
    return X, converged


@triton.jit
def nearest_rotation(M, FIX_DET: tl.constexpr):
    """The rotation nearest to ``M``; without FIX_DET the nearest orthogonal matrix. See mgrpo.kernels.project_so3.

    Newton's iteration where it is accurate; singular vectors elsewhere, computed if any lane of the block needs them.
    """
    B, size = _rescaled(M)
    R, converged = _newton_polar(B)
    if tl.min(converged.to(tl.int32), 0) == 0:
        R = mat3_select(converged, R, singular_polar(B, FIX_DET)[0])
    return mat3_select(is_finite(size), R, mat3_scale(float("nan"), R))


@triton.jit
def nearest_rotation_grad(grad_R, M, R, FIX_DET: tl.constexpr):
    """dL/dM from dL/dR, where R is what ``nearest_rotation`` returned."""
    B, size = _rescaled(M)
    S = transposed_times(R, B)
    half_sum = trace(S)
    k01 = -0.5 * (S[1] + S[3])
    k02 = -0.5 * (S[2] + S[6])
    k12 = -0.5 * (S[5] + S[7])
    a = (half_sum - S[0], k01, k02)
    b = (k01, half_sum - S[4], k12)
    c = (k02, k12, half_sum - S[8])
    g = axial(transposed_times(R, grad_R))

    # Solve K x = g, K = (a b c). Its eigenvalues are the pair sums, and the test is a lower bound of the smallest:
    # passing it proves the case regular; otherwise the singular vectors decide, and give the same x if it was.
    bc = cross(b, c)
    determinant = dot(a, bc)
    floor = 1e-10 if M[0].dtype == tl.float64 else 1e-5
    cube = 8 * half_sum * half_sum * half_sum
    regular = 4 * determinant > floor * cube
    x = vec3_scale(1 / tl.where(regular, determinant, 1.0), matvec(from_columns(bc, cross(c, a), cross(a, b)), g))
    settled = regular | ~is_finite(size) | (size == 0)
    if tl.min(settled.to(tl.int32), 0) == 0:
        _, V, s = singular_polar(B, FIX_DET)
        h = transposed_matvec(V, g)
        least = floor * s[0]
        # The last pair sum is never below s_1.
        y = (h[0] / tl.maximum(s[1] + s[2], least), h[1] / tl.maximum(s[0] + s[2], least), h[2] / (s[0] + s[1]))
        x = vec3_select(settled, x, matvec(V, y))
    grad_M = mat3_divide(matmul(R, cross_matrix(x)), tl.where(size == 0, 1.0, size))
    zero = mat3_scale(0.0, identity_like(size))
    grad_M = mat3_select(size == 0, zero, grad_M)
    return mat3_select(is_finite(size), grad_M, mat3_scale(float("nan"), grad_M))
