"""Device functions for Triton kernels: the nearest rotation of a matrix, its singular vectors and its gradient.

Matrices are those of ``_triton_math``. The mathematics is that of ``csrc/common/polar.h``: kernels/so3/README.md.
"""

import triton
import triton.language as tl

from ._triton_math import (
    axial,
    column,
    cross,
    cross_matrix,
    dot,
    from_columns,
    from_rows,
    identity_like,
    inner,
    mat3_add,
    mat3_divide,
    mat3_scale,
    mat3_select,
    matmul,
    matvec,
    row,
    times_transposed,
    trace,
    transposed_matvec,
    transposed_times,
    vec3_add,
    vec3_scale,
    vec3_select,
    vec3_sub,
)

_LARGEST_F32 = tl.constexpr(3.4028234663852886e38)
_LARGEST_F64 = tl.constexpr(1.7976931348623157e308)


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
