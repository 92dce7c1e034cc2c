"""``project_so3`` on the ``triton`` backend, beyond what every op and backend is tested for: edges, many programs,
strides.

Without a GPU the kernels are interpreted.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mgrpo import kernels
from mgrpo.kernels import _triton, project_so3
from mgrpo.kernels._spec import Case
from mgrpo.kernels.so3.spec import SPECS

pytestmark = pytest.mark.skipif(
    "triton" not in kernels.available_backends("project_so3"), reason=kernels.explain_backend("project_so3")
)

(SPEC,) = SPECS
F64 = torch.float64
DTYPES = [pytest.param(torch.float32, id="f32"), pytest.param(F64, id="f64")]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def project(matrices: Tensor, grad_R: Tensor, *, backend: str, fix_det: bool = True) -> tuple[Tensor, Tensor]:
    """The projection and its gradient."""
    leaf = matrices.detach().requires_grad_()
    R = project_so3(leaf, fix_det=fix_det, backend=backend)
    (grad,) = torch.autograd.grad(R, leaf, grad_R)
    return R.detach(), grad


def probe_like(matrices: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(77)
    return torch.randn(matrices.shape, generator=generator, dtype=F64).to(matrices)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance * scale)


def edge_matrices(dtype: torch.dtype) -> dict[str, Tensor]:
    """Matrices where iterations divide by zero, overflow or stall, and a few ordinary ones between them."""
    generator = torch.Generator().manual_seed(3)
    Q = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=F64))[0]
    Q = Q * torch.linalg.det(Q)
    W = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=F64))[0]

    def with_singular_values(*s: float) -> Tensor:
        return Q @ torch.diag(torch.tensor(s, dtype=F64)) @ W

    tiny = torch.finfo(dtype).tiny
    matrices = {
        "identity": torch.eye(3, dtype=F64),
        "rotation": Q,
        "reflection": -Q,
        "zero": torch.zeros(3, 3, dtype=F64),
        "rank 1": with_singular_values(2, 0, 0),
        "rank 2": with_singular_values(2, 1, 0),
        "nearly rank 1": with_singular_values(1, 1e-5, 1e-9),
        "one entry": torch.eye(3, dtype=F64)[:, [1]] @ torch.eye(3, dtype=F64)[[2]],
        "all ones": torch.ones(3, 3, dtype=F64),
        "two equal": with_singular_values(2, 2, 1),
        "two equal, turned over": -with_singular_values(2, 1, 1),
        "three equal, turned over": torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=F64)),
        "huge": with_singular_values(3, 2, 1) * (torch.finfo(dtype).max / 16),
        "tiny": with_singular_values(3, 2, 1) * tiny,
        "subnormal": torch.tensor([[3.0, 1, 0], [0, 2, 1], [1, 0, 4]], dtype=F64) * (tiny * 2**-20),
        "largest": torch.full((3, 3), torch.finfo(dtype).max, dtype=F64),
    }
    return {name: matrix.to(dtype).to(DEVICE) for name, matrix in matrices.items()}


@pytest.mark.parametrize("fix_det", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_defined_everywhere(dtype: torch.dtype, fix_det: bool) -> None:
    named = edge_matrices(dtype)
    matrices = torch.stack([*named.values()])
    grad_R = probe_like(matrices)
    R, grad = project(matrices, grad_R, backend="triton", fix_det=fix_det)
    exact, wanted_grad = project(matrices.double(), grad_R.double(), backend="reference", fix_det=fix_det)
    tolerance = SPEC.tolerances[dtype].forward
    determinant = torch.linalg.det(R.double())
    for i, name in enumerate(named):
        assert_close(R[i].T.double() @ R[i].double(), torch.eye(3, dtype=F64, device=DEVICE), tolerance)
        # As near to the matrix as the reference's answer: where several are, backends may differ.
        size = matrices[i].abs().max().double().clamp_min(1e-300)
        nearness, best = (((matrices[i].double() / size) * x[i].double()).sum() for x in (R, exact))
        assert abs(nearness - best) < 4 * tolerance, name
        if fix_det or name in ("zero", "one entry"):  # rounding decides in which half the other singular ones lie
            assert abs(determinant[i] - 1) < 4 * tolerance, name
        if name not in ("subnormal", "tiny"):  # those of a tiny matrix are larger than the type's largest number
            assert torch.isfinite(grad[i]).all(), name
        if name in ("identity", "rotation", "two equal", "huge", "rank 2" if fix_det else "reflection"):
            assert_close(R[i], exact[i], 4 * tolerance)
            assert_close(grad[i], wanted_grad[i], SPEC.tolerances[dtype].gradient)
    zero = list(named).index("zero")
    assert torch.equal(R[zero], torch.eye(3, dtype=dtype, device=DEVICE)) and not grad[zero].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bad_row_is_nan_and_touches_no_other(dtype: torch.dtype) -> None:
    (clean,) = SPEC.make_inputs(SPEC.cases[1], dtype, DEVICE, 4)
    clean = clean.flatten(0, 1)
    grad_R = probe_like(clean)
    spoilt = clean.clone()
    for row, bad in enumerate((math.nan, math.inf, -math.inf)):
        spoilt[row, 1, row] = bad
    others = torch.arange(len(clean), device=DEVICE) > 2
    for fix_det in (True, False):
        for result, wanted in zip(
            project(spoilt, grad_R, backend="triton", fix_det=fix_det),
            project(clean, grad_R, backend="triton", fix_det=fix_det),
        ):
            assert torch.equal(result[others], wanted[others])
            assert result[~others].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_alone_equals_the_row_in_any_batch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    # Ordinary rows together with rows that need the singular vectors: the block computes both ways for all.
    (matrices,) = SPEC.make_inputs(SPEC.cases[1], dtype, DEVICE, 9)
    matrices = torch.cat([matrices.flatten(0, 1), *(matrix[None] for matrix in edge_matrices(dtype).values())])
    grad_R = probe_like(matrices)
    whole = project(matrices, grad_R, backend="triton")
    for row in (100, len(matrices) - 3):
        alone = project(matrices[row], grad_R[row], backend="triton")
        for a, b in zip(alone, whole):
            assert torch.equal(a, b[row]) or (a.isnan() == b[row].isnan()).all()
    # Many small programs instead of one.
    monkeypatch.setattr(_triton, "INTERPRETED_LANES", 64)
    for a, b in zip(project(matrices, grad_R, backend="triton"), whole):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_strided_and_expanded_inputs() -> None:
    (matrices,) = SPEC.make_inputs(Case("grid", {"batch": (2, 3, 2, 5), "near": True}), torch.float32, DEVICE, 6)
    gaps = torch.full((2, 3, 2, 5, 3, 4), 9.0, device=DEVICE)
    gaps[..., :3] = matrices
    inputs = {
        "a batch with gaps": torch.stack([matrices, torch.full_like(matrices, 9.0)], dim=1)[:, 0],
        "a batch in another order": matrices.permute(1, 0, 2, 3, 4, 5),
        "all axes apart": matrices.permute(3, 1, 0, 2, 4, 5),
        "rows with gaps": gaps[..., :3],
        "transposed rows": matrices.transpose(-1, -2),
        "expanded": matrices[:1, :, :1].expand(2, 3, 2, 5, 3, 3),
        "one for all": matrices[0, 0, 0, 0].expand(7, 3, 3),
        "backwards in memory": matrices.flip(0),
    }
    for name, strided in inputs.items():
        grad_R = probe_like(strided)
        wanted = project(strided.contiguous(), grad_R, backend="triton")
        spread = torch.stack([grad_R, grad_R], dim=-1)[..., 0]
        for a, b in zip(project(strided, spread, backend="triton"), wanted):
            assert torch.equal(a, b), name


def test_rows_are_copied_only_where_they_must_be() -> None:
    x = torch.arange(2 * 3 * 4 * 5 * 9.0).view(2, 3, 4, 5, 3, 3)

    def described(tensor: Tensor) -> tuple[bool, int]:
        rows = _triton.as_rows(tensor, 2)
        return rows.tensor.data_ptr() == tensor.data_ptr(), len(rows.sizes)

    assert described(x) == (True, 1)
    assert described(x[:, :, :1].expand(2, 3, 4, 5, 3, 3)) == (True, 3)
    assert described(x.transpose(0, 1)) == (True, 3)
    assert described(x.permute(3, 2, 1, 0, 4, 5)) == (False, 1)  # four strides
    assert described(x.transpose(-1, -2)) == (False, 1)
    assert described(x[0, 0, 0, 0]) == (True, 1)
    assert _triton.as_rows(x[:, :0], 2).count == 0
    for tensor in (x, x[:, :, :1].expand(2, 3, 4, 5, 3, 3), x.transpose(0, 1), x[:, ::2], x[0, 0, 0, 0]):
        rows = _triton.as_rows(tensor, 2)
        flat = rows.tensor.as_strided((x.numel(),), (1,), 0)
        for number, matrix in enumerate(tensor.reshape(-1, 3, 3)):
            offset, rest = tensor.storage_offset(), number
            for size, stride in zip(rows.sizes, rows.strides):
                offset, rest = offset + rest % size * stride, rest // size
            assert torch.equal(flat[offset : offset + 9].view(3, 3), matrix)
