"""Device functions of the Triton kernels, each in a kernel of its own: values and gradients against float64."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mgrpo import geometry
from mgrpo.kernels import _triton

if importlib.util.find_spec("triton") is None or (not _triton.INTERPRETED and not torch.cuda.is_available()):
    pytest.skip("needs triton, and a GPU or its interpreter", allow_module_level=True)

from tests.kernels.triton_math_kernels import FUNCTIONS, LANES, call, round_to  # which imports triton

F64 = torch.float64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [pytest.param(torch.float32, id="f32"), pytest.param(F64, id="f64")]
ROWS = 300


def matrix_of_quaternion_formula(q: Tensor) -> Tensor:
    w, x, y, z = q.unbind(-1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y), 2 * (x * y + w * z)]
    rows += [1 - 2 * (x * x + z * z), 2 * (y * z - w * x), 2 * (x * z - w * y), 2 * (y * z + w * x)]
    return torch.stack([*rows, 1 - 2 * (x * x + y * y)], dim=-1)


def mat(a: Tensor) -> Tensor:
    return a.unflatten(-1, (3, 3))


def unit(a: Tensor) -> Tensor:
    return a / a.norm(dim=-1, keepdim=True)


def quaternion_of_matrix(a: Tensor) -> Tensor:
    # Its four terms are linear in the matrix; only the division by their length depends on what kind of matrix it is.
    return unit(geometry.rotmat_to_quat(mat(a)))


WANTED: dict[str, Callable[..., Tensor]] = {
    "determinant": lambda a: torch.linalg.det(mat(a))[:, None],
    "unit_quat": unit,
    "unit_vec3": unit,
    "quat_matrix": matrix_of_quaternion_formula,
    "matrix_quat": quaternion_of_matrix,
    "cross": lambda a, b: torch.linalg.cross(a, b),
    "matvec": lambda a, b: (mat(a) @ b[..., None])[..., 0],
    "matmul": lambda a, b: (mat(a) @ mat(b)).flatten(-2),
    "quat_multiply": geometry.quat_multiply,
    "quat_rotate": geometry.quat_apply,
    "rot6d_matrix": lambda a, b: geometry.rot6d_to_rotmat(torch.cat([a, b], dim=-1)).flatten(-2),
}


def apply(name: str, arguments: list[Tensor], grad: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Value and gradients of a device function, a row per lane."""
    padded = [torch.zeros(LANES, x.shape[1], dtype=x.dtype, device=DEVICE) for x in [*arguments, grad]]
    for full, x in zip(padded, [*arguments, grad]):
        full[: len(x)] = x
    out, grads = call(name, padded[:-1], padded[-1])
    return out[: len(grad)], [x[: len(grad)] for x in grads]


def arguments_of(name: str, generator: torch.Generator) -> list[Tensor]:
    if name == "matrix_quat":  # rotations, of which every component is at times the largest by far
        quats = torch.randn(ROWS, 4, generator=generator, dtype=F64) + torch.eye(4, dtype=F64).repeat(ROWS // 4, 1) * 4
        return [geometry.quat_to_rotmat(quats).flatten(-2)]
    return [torch.randn(ROWS, width, generator=generator, dtype=F64) for width in FUNCTIONS[name].widths[:-1]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", WANTED)
def test_value_and_gradient(name: str, dtype: torch.dtype, tiny: torch.Generator) -> None:
    arguments = [x.to(DEVICE, dtype) for x in arguments_of(name, tiny)]
    grad = torch.randn(ROWS, FUNCTIONS[name].widths[-1], generator=tiny, dtype=F64).to(DEVICE, dtype)
    result, grads = apply(name, arguments, grad)
    leaves = [x.double().requires_grad_() for x in arguments]
    wanted = WANTED[name](*leaves)
    wanted_grads = torch.autograd.grad(wanted, leaves, grad.double())
    tolerance = {torch.float32: 2e-6, F64: 1e-14}[dtype]
    for actual, expected in zip([result, *grads], [wanted.detach(), *wanted_grads], strict=True):
        relative = (actual.double() - expected).abs().amax(-1) / expected.abs().amax(-1).clamp_min(1.0)
        # A short vector has a long gradient; nearly parallel columns lose digits.
        assert relative.max() < tolerance * (100 if name == "rot6d_matrix" else 4), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_unit_vectors_of_any_magnitude(dtype: torch.dtype, tiny: torch.Generator) -> None:
    limits = torch.finfo(dtype)
    directions = torch.randn(ROWS, 4, generator=tiny, dtype=F64)
    directions = directions / directions.abs().amax(-1, keepdim=True)
    for magnitude in (limits.max, limits.tiny, 1e20, 1e-20):
        q = (directions * magnitude).to(DEVICE, dtype)
        result, _ = apply("unit_quat", [q], torch.ones_like(q))
        expected = unit(q.double() / magnitude)
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=8 * limits.eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_there_is_no_rotation_it_is_the_identity(dtype: torch.dtype) -> None:
    def rows(*values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=DEVICE)

    quats = rows([0, 0, 0, 0])
    result, (grad,) = apply("unit_quat", [quats], torch.ones_like(quats))
    assert result[0].tolist() == [1, 0, 0, 0] and not grad.any()
    a = rows([0, 0, 0], [1, 2, 3], [0.3, -1, 7], [1, 0, 0])
    b = rows([1, 0, 0], [-2, -4, -6], [0, 0, 0], [1, 1e-30, 0])
    result, grads = apply("rot6d_matrix", [a, b], torch.ones(4, 9, dtype=dtype, device=DEVICE))
    assert torch.equal(mat(result), torch.eye(3, dtype=dtype, device=DEVICE).expand(4, 3, 3))
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_to_narrow_types_is_to_nearest_even(dtype: torch.dtype, tiny: torch.Generator) -> None:
    values = torch.randn(LANES, generator=tiny)
    ties = 1 + torch.arange(-32, 32) * 2.0**-8
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 3e38, 6e4, 1e-5])
    values[:64], values[64:72] = ties, special
    values = values.to(DEVICE)
    out = torch.empty(LANES, dtype=dtype, device=DEVICE)
    round_to(values, out)
    torch.testing.assert_close(out, values.to(dtype), rtol=0, atol=0, equal_nan=True)
