"""project_so3: what defines a projection, on every backend; degenerate matrices. The rest follows from the spec.

Where no GPU is present, ``triton`` is interpreted and ``cuda`` emulated, both on CPU tensors.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mgrpo import kernels
from mgrpo.kernels import project_so3
from tests.golden import golden_files

F64 = torch.float64
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [pytest.param(torch.float32, id="f32"), pytest.param(F64, id="f64")]


@pytest.fixture(params=kernels.BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param not in kernels.available_backends("project_so3"):
        pytest.skip(kernels.explain_backend("project_so3"))
    if request.param == "cpp" and DEVICE.type == "cuda":
        pytest.skip("needs tensors on the CPU")
    return request.param


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=F64).to(DEVICE, dtype)


def random_rotations(generator: torch.Generator, *shape: int) -> Tensor:
    Q = torch.linalg.qr(torch.randn(*shape, 3, 3, generator=generator, dtype=F64))[0]
    return (Q * torch.linalg.det(Q)[..., None, None]).to(DEVICE)


def assert_rotations(R: Tensor, tolerance: float, determinant: float | Tensor = 1.0) -> None:
    R = R.double()
    identity = torch.eye(3, dtype=F64, device=DEVICE)
    assert (R.transpose(-1, -2) @ R - identity).abs().max() < tolerance
    assert (torch.linalg.det(R) - determinant).abs().max() < tolerance


@pytest.mark.parametrize("dtype", DTYPES)
def test_projection_is_a_rotation_and_idempotent(tiny: torch.Generator, backend: str, dtype: torch.dtype) -> None:
    tolerance = {torch.float32: 5e-6, F64: 1e-13}[dtype]
    R = project_so3(normal(tiny, 500, 3, 3, dtype=dtype), backend=backend)
    assert_rotations(R, tolerance)
    torch.testing.assert_close(project_so3(R, backend=backend), R, rtol=0, atol=tolerance)


def test_thread_count_changes_nothing(tiny: torch.Generator) -> None:
    if "cpp" not in kernels.available_backends("project_so3"):
        pytest.skip(kernels.explain_backend("project_so3"))
    matrices = normal(tiny, 20_001, 3, 3, dtype=torch.float32).cpu()
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaf = matrices.clone().requires_grad_()
            projected = project_so3(leaf, backend="cpp")
            projected.backward(matrices)
            found.append((projected.detach(), leaf.grad))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


LAYOUTS = """
import torch
from mgrpo.kernels import project_so3

def both(matrices, grad):
    leaf = matrices.detach().requires_grad_()  # where it lies
    R = project_so3(leaf, backend="cpp")
    return R.detach(), torch.autograd.grad(R, leaf, grad)[0]

generator = torch.Generator().manual_seed(7)
for dtype in (torch.float32, torch.float64):
    matrices, grad = (torch.randn(75, 3, 3, generator=generator, dtype=dtype) for _ in range(2))
    matrices[40:] *= 0.1
    matrices[40:] += torch.eye(3, dtype=dtype)
    alone = [both(a[None], b[None]) for a, b in zip(matrices, grad)]
    wide = torch.zeros(75, 14, dtype=dtype)
    wide[:, 2:11] = matrices.flatten(1)
    for count in (1, 3, 4, 8, 16, 31, 32, 75):  # whole blocks of every instruction set, and what is left of one
        expected = [torch.cat(parts) for parts in zip(*alone[:count])]
        apart = wide[:count, 2:11].unflatten(1, (3, 3))
        assert not apart.is_contiguous() or count == 1
        shifted = torch.empty(9 * count + 1, dtype=dtype)[1:].view(count, 3, 3).copy_(matrices[:count])
        for layout in (matrices[:count], apart, shifted):
            for found, wanted in zip(both(layout, grad[:count]), expected):
                assert torch.equal(found, wanted), (dtype, count, layout.stride())
    exact = both(matrices.double(), grad.double())
    for found, wanted, tolerance in zip(both(matrices, grad), exact, (1e-5, 1e-2)):
        assert (found[40:] - wanted[40:]).abs().max() < tolerance
print("equal")
"""


@pytest.mark.parametrize("isa", ["v4", "v3", "baseline"])
def test_layout_of_the_batch_changes_nothing(isa: str) -> None:
    """Matrices side by side are read by another way than single ones or those apart, on every instruction set."""
    if "cpp" not in kernels.available_backends("project_so3"):
        pytest.skip(kernels.explain_backend("project_so3"))
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "MGRPO_ISA": isa, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LAYOUTS], env=environment, cwd=root, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and done.stdout.strip() == "equal", done.stderr


def test_projection_commutes_with_rotations(tiny: torch.Generator, backend: str) -> None:
    M = normal(tiny, 200, 3, 3)
    left, right = random_rotations(tiny, 200), random_rotations(tiny, 200)
    projected = left @ project_so3(M, backend=backend) @ right
    s = torch.linalg.svdvals(M)
    gap = s[:, 1] + torch.linalg.det(M).sign() * s[:, 2]
    difference = (project_so3(left @ M @ right, backend=backend) - projected).abs().amax((-2, -1))
    assert (difference * gap).max() < 1e-13


@pytest.mark.parametrize("fix_det", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_projection_is_the_nearest(tiny: torch.Generator, backend: str, dtype: torch.dtype, fix_det: bool) -> None:
    """Optimality, which also holds where the nearest rotation is not unique: tr(R^T M) = s_1 + s_2 + (+-) s_3."""
    M = torch.cat([degenerate_matrices(dtype), normal(tiny, 300, 3, 3, dtype=dtype)])
    R = project_so3(M, fix_det=fix_det, backend=backend)
    U, s, Vh = torch.linalg.svd(M.double())
    sign = torch.linalg.det(U @ Vh).sign() if fix_det else torch.ones_like(s[:, 0])
    best = s[:, 0] + s[:, 1] + sign * s[:, 2]
    reached = (R.double() * M.double()).sum((-2, -1))
    tolerance = {torch.float32: 3e-6, F64: 1e-14}[dtype]
    assert ((best - reached).abs() / s[:, 0].clamp_min(1e-300)).max() < tolerance * 3
    assert_rotations(R, {torch.float32: 5e-6, F64: 1e-13}[dtype], torch.linalg.det(R.double()).sign())
    if fix_det:
        assert (torch.linalg.det(R) > 0).all()
    else:
        clear = s[:, 2] > 1e-3 * s[:, 0]
        assert torch.equal(torch.linalg.det(R[clear].double()).sign(), torch.linalg.det(M[clear].double()).sign())


def degenerate_matrices(dtype: torch.dtype) -> Tensor:
    """Zero, every rank, repeated singular values, reflections, huge, tiny and badly scaled entries."""
    generator = torch.Generator().manual_seed(6)
    U, V = random_rotations(generator).cpu(), random_rotations(generator).cpu()
    spectra = [(1, 1, 1), (1, 1, -1), (-1, -1, -1), (2, 1, 1), (2, 1, -1), (2, 2, 1), (2, 2, -1), (1, 0, 0), (1, 1, 0)]
    spectra += [(1, 1e-9, 1e-9), (1, 1e-5, -1e-5), (1, 1e-12, 1e-15), (3, 1e-3, -1e-6)]
    dense = [U @ torch.diag(torch.tensor(s, dtype=F64)) @ V for s in spectra]
    plain = [torch.diag(torch.tensor(s, dtype=F64)) for s in spectra]
    corner = torch.zeros(3, 3, dtype=F64)
    corner[2, 0] = 1
    zero, ones = torch.zeros(3, 3, dtype=F64), torch.ones(3, 3, dtype=F64)
    scaled = [1e30 * U, 1e-30 * U, 1e-38 * plain[3], 1e38 * ones]
    return torch.stack([*dense, *plain, corner, zero, ones, -ones, *scaled]).to(DEVICE, dtype)


def test_many_matrices_of_rank_one(tiny: torch.Generator, backend: str) -> None:
    """Rounding can leave a second column parallel to the first: of small integers, one matrix in two thousand."""
    a, b = normal(tiny, 2, 60_000, 3, dtype=torch.float32)
    small_integers = (2 * a).trunc()[:, :, None] * (2 * b).trunc()[:, None, :]
    products = a[:5000, :, None] * b[:5000, None, :]
    for M in (small_integers, products, products + 1e-7 * normal(tiny, *products.shape, dtype=torch.float32)):
        assert_rotations(project_so3(M, backend=backend), 5e-6)


@pytest.mark.parametrize("fix_det", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_degenerate_matrices_have_bounded_gradients(backend: str, dtype: torch.dtype, fix_det: bool) -> None:
    M = degenerate_matrices(dtype).requires_grad_()
    R = project_so3(M, fix_det=fix_det, backend=backend)
    G = normal(torch.Generator().manual_seed(1), *R.shape, dtype=dtype)
    (grad,) = torch.autograd.grad(R, M, G)
    assert torch.isfinite(R).all() and not torch.isnan(grad).any()
    s_1 = torch.linalg.svdvals(M.detach().double())[:, 0]
    floor = {torch.float32: 1e-5, F64: 1e-10}[dtype]
    bound = 2 * G.double().flatten(1).norm(dim=1) / (floor * s_1)
    # Where the true bound is beyond the dtype, overflow to infinity is the documented result.
    finite = bound < torch.finfo(dtype).max
    assert (grad.double().flatten(1).norm(dim=1)[finite] <= 1.1 * bound[finite]).all()


def test_zero_matrix_gives_identity_and_zero_gradient(backend: str) -> None:
    for fix_det in (True, False):
        M = torch.zeros(2, 3, 3, device=DEVICE, requires_grad=True)
        R = project_so3(M, fix_det=fix_det, backend=backend)
        R.backward(torch.ones_like(R))
        assert torch.equal(R.detach(), torch.eye(3, device=DEVICE).expand(2, 3, 3))
        assert torch.equal(M.grad, torch.zeros_like(M))


def test_gradient_at_exact_rotations(tiny: torch.Generator, backend: str) -> None:
    """Where differentiating through an SVD gives NaN: the derivative is the projection onto the tangent space."""
    R = torch.cat([random_rotations(tiny, 20), torch.eye(3, dtype=F64, device=DEVICE)[None]]).requires_grad_()
    G = normal(tiny, *R.shape)
    (grad,) = torch.autograd.grad(project_so3(R, backend=backend), R, G)
    tangent = 0.5 * (G - R @ G.transpose(-1, -2) @ R)
    torch.testing.assert_close(grad, tangent.detach(), rtol=0, atol=1e-14)


def test_projection_without_fix_agrees_where_nothing_needs_fixing(tiny: torch.Generator, backend: str) -> None:
    M = normal(tiny, 100, 3, 3)
    M = M * torch.linalg.det(M).sign()[:, None, None]
    with_fix, without = (project_so3(M, fix_det=fix, backend=backend) for fix in (True, False))
    torch.testing.assert_close(with_fix, without, rtol=0, atol=1e-14)
    mirrored = project_so3(-M, fix_det=False, backend=backend)
    torch.testing.assert_close(mirrored, -with_fix, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_matrix_with_a_bad_entry_has_no_projection(tiny: torch.Generator, backend: str, bad: float) -> None:
    M = normal(tiny, 5, 3, 3)
    M[2, 1, 0] = bad
    R = project_so3(M, backend=backend)
    assert R[2].isnan().all() and R[[0, 1, 3, 4]].isfinite().all()


def test_opcheck(tiny: torch.Generator, backend: str) -> None:
    if backend == "reference":
        pytest.skip("only for registered operators")
    for M in (normal(tiny, 7, 3, 3, dtype=torch.float32), normal(tiny, 2, 3, 3, 3)):
        torch.library.opcheck(torch.ops.mgrpo.project_so3.default, (M.requires_grad_(), True, backend))


def test_vmap_of_the_reference(tiny: torch.Generator) -> None:
    M = normal(tiny, 4, 5, 3, 3)
    mapped = torch.func.vmap(lambda x: project_so3(x, backend="reference"))(M)
    torch.testing.assert_close(mapped, project_so3(M, backend="reference"))


# ---- reference values made by the original implementation ----


@pytest.mark.golden
def test_golden_projected_matrices(backend: str) -> None:
    for path in golden_files("fk/lie*.npz"):
        with np.load(path, allow_pickle=False) as data:
            matrices, expected = (
                torch.from_numpy(data[name]).to(DEVICE) for name in ("matrices", "matrices_svd_projected")
            )
        for dtype, tolerance in ((F64, 1e-12), (torch.float32, 2e-5)):
            projected = project_so3(matrices.to(dtype), fix_det=False, backend=backend)
            torch.testing.assert_close(projected.double(), expected, rtol=0, atol=tolerance)
        proper = torch.linalg.det(expected) > 0
        projected = project_so3(matrices[proper], backend=backend)
        torch.testing.assert_close(projected, expected[proper], rtol=0, atol=1e-12)
        assert not proper.all() and proper.any()
