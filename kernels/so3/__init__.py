"""Projection of 3x3 matrices onto the rotations."""

from __future__ import annotations

from torch import Tensor

from .._checks import check_tensor
from .._dispatch import resolve
from .._library import call_op
from . import op as _op  # noqa: F401  (registers the operators)
from . import reference


def project_so3(matrices: Tensor, *, fix_det: bool = True, backend: str | None = None) -> Tensor:
    """The rotation nearest to each 3x3 matrix, in the Frobenius norm, with a closed-form gradient.

    Args:
        matrices: (*batch, 3, 3), float32 or float64.
        fix_det: True gives proper rotations (determinant +1). False gives the nearest orthogonal matrix U V^T, which
            keeps a negative determinant: what EgoAllo's ``project_rotmats_via_svd`` does.
        backend: see :mod:`mgrpo.kernels`; None chooses.

    Returns:
        (*batch, 3, 3), contiguous, same dtype.

    Defined for every finite matrix. The zero matrix gives the identity and a zero gradient. Where several rotations
    are equally near (rank 1; a reflection whose two smallest singular values agree) the result is one of them,
    the same in every run of a backend; backends may pick different ones. There the gradient is bounded: its
    denominators s_i + s_j are held above 1e-5 (float32) or 1e-10 (float64) of the largest singular value.
    A matrix with a NaN or infinite entry gives NaN in its own row only.

    Raises:
        TypeError, ValueError: wrong type, dtype or shape. BackendError: ``backend`` cannot serve the call.
    """
    check_tensor("project_so3", "matrices", matrices, ("*batch", 3, 3))
    chosen = resolve("project_so3", backend, matrices)
    if chosen == "reference":
        return reference.project_so3(matrices, fix_det=fix_det)
    return call_op("project_so3", matrices, fix_det, chosen)
