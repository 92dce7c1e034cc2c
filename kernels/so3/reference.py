"""Oracle of :func:`mgrpo.kernels.project_so3`: the polar factor by a singular value decomposition."""

from __future__ import annotations

from torch import Tensor

from .._polar import nearest_rotation


def project_so3(matrices: Tensor, *, fix_det: bool = True) -> Tensor:
    """(*batch, 3, 3) -> (*batch, 3, 3), see :func:`mgrpo.kernels.project_so3`."""
    return nearest_rotation(matrices, fix_det)
