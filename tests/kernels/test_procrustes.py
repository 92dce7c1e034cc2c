"""procrustes_align and procrustes_residual: what defines them, on every backend. The rest follows from the spec.

Where no GPU is present, ``triton`` is interpreted and ``cuda`` emulated, both on CPU tensors.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mgrpo import kernels
from mgrpo.kernels import procrustes_align, procrustes_residual
from tests.golden import golden_files

F32, F64 = torch.float32, torch.float64
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [pytest.param(F32, id="f32"), pytest.param(F64, id="f64")]
ROUNDING = {F32: 1e-6, F64: 1e-14}
OPTIONS = [
    pytest.param({}, id="similarity"),
    pytest.param({"with_scale": False}, id="rigid"),
    pytest.param({"fix_det": False}, id="reflections"),
]


@pytest.fixture(params=kernels.BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    for op in ("procrustes_align", "procrustes_residual"):
        if request.param not in kernels.available_backends(op):
            pytest.skip(kernels.explain_backend(op))
    if request.param == "cpp" and DEVICE.type == "cuda":
        pytest.skip("needs tensors on the CPU")
    return request.param


def only_once_interpreted(backend: str, representative: bool) -> None:
    """The interpreter takes half a second for every call: it runs some parameters of a test."""
    if backend == "triton" and DEVICE.type == "cpu" and not representative:
        pytest.skip("interpreted for another parameter")


def randn(generator: torch.Generator, *shape: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=F64).to(DEVICE, dtype)


def rotations(generator: torch.Generator, batch: int) -> Tensor:
    Q = torch.linalg.qr(torch.randn(batch, 3, 3, generator=generator, dtype=F64))[0]
    return (Q * torch.linalg.det(Q)[:, None, None]).to(DEVICE)


def similar_clouds(generator: torch.Generator, batch: int, N: int, noise: float = 0.0) -> tuple[Tensor, ...]:
    """Source, target = scale R source + t + noise, and R, t, scale; float64."""
    source = randn(generator, batch, N, 3)
    R, t = rotations(generator, batch), randn(generator, batch, 3)
    scale = 0.5 + torch.rand(batch, generator=generator, dtype=F64).to(DEVICE)
    target = scale[:, None, None] * source @ R.mT + t[:, None] + noise * randn(generator, batch, N, 3)
    return source, target, R, t, scale


def brute_force(source: Tensor, target: Tensor, weights: Tensor, with_scale: bool, fix_det: bool) -> Tensor:
    """The weighted mean distance by a plain singular value decomposition, float64."""
    source, target = source.double(), target.double()
    w = (weights.double() / weights.double().sum(-1, keepdim=True))[..., None]
    x, y = source - (w * source).sum(-2, keepdim=True), target - (w * target).sum(-2, keepdim=True)
    U, s, Vh = torch.linalg.svd((w * y).mT @ x)
    sign = torch.ones_like(s)
    if fix_det:
        sign[..., 2] = torch.linalg.det(U @ Vh).sign()
    R = (U * sign[..., None, :]) @ Vh
    scale = (s * sign).sum(-1) / (w * x.square()).sum((-2, -1)) if with_scale else torch.ones_like(s[..., 0])
    return (w[..., 0] * (scale[..., None, None] * x @ R.mT - y).norm(dim=-1)).sum(-1)


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*leaves).sum(), leaves)


# ---- what the residual is ----


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [3, 16, 17, 22, 67])
def test_residual_is_the_mean_distance_of_the_aligned_points(
    tiny: torch.Generator, backend: str, dtype: torch.dtype, N: int, options: dict
) -> None:
    only_once_interpreted(backend, N in (22, 67) and dtype == F32)
    source, target, *_ = (x.to(dtype) for x in similar_clouds(tiny, 21, N, noise=0.4))
    weights = torch.rand(21, N, generator=tiny, dtype=F64).to(DEVICE, dtype)
    for w in (None, weights):
        share = torch.full_like(weights, 1 / N) if w is None else w / w.sum(-1, keepdim=True)
        residual = procrustes_residual(source, target, w, **options, backend=backend)
        distance = (procrustes_align(source, target, w, **options, backend=backend).aligned - target).norm(dim=-1)
        torch.testing.assert_close(residual, (share * distance).sum(-1), rtol=0, atol=10 * ROUNDING[dtype])
        plain = {"with_scale": True, "fix_det": True, **options}
        expected = brute_force(source, target, share, **plain)
        torch.testing.assert_close(residual.double(), expected, rtol=0, atol=10 * ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [3, 4, 22])
def test_a_moved_copy_is_found_and_leaves_nothing(
    tiny: torch.Generator, backend: str, dtype: torch.dtype, N: int
) -> None:
    only_once_interpreted(backend, N == 22)
    source, target, *motion = (x.to(dtype) for x in similar_clouds(tiny, 50, N))
    weights = torch.rand(50, N, generator=tiny, dtype=F64).to(DEVICE, dtype) + 0.05
    # Three random points may lie almost on a line: then the turn about it is only as sure as rounding allows.
    tolerance = {F32: 2e-4, F64: 1e-11}[dtype]
    for w in (None, weights):
        found = procrustes_align(source, target, w, backend=backend)
        torch.testing.assert_close(found.aligned, target, rtol=0, atol=2 * tolerance)
        for result, expected in zip(found[1:], motion, strict=True):
            torch.testing.assert_close(result, expected, rtol=0, atol=tolerance)
        assert procrustes_residual(source, target, w, backend=backend).max() < 10 * ROUNDING[dtype]


def test_residual_moves_with_the_target_and_not_with_the_source(tiny: torch.Generator, backend: str) -> None:
    source, target, *_ = similar_clouds(tiny, 12, 22, noise=0.3)
    expected = procrustes_residual(source, target, backend=backend)
    turn, shift = rotations(tiny, 12), randn(tiny, 12, 1, 3)
    moved_source, moved_target = 3 * source @ turn.mT + shift, 0.7 * target @ turn + 2 * shift
    close = {"rtol": 1e-12, "atol": 0}
    torch.testing.assert_close(procrustes_residual(moved_source, target, backend=backend), expected, **close)
    torch.testing.assert_close(procrustes_residual(source, moved_target, backend=backend), 0.7 * expected, **close)
    rigid = procrustes_residual(source, target, with_scale=False, backend=backend)
    for x, y in ((source @ turn.mT + shift, target), (source, target @ turn - shift)):
        torch.testing.assert_close(procrustes_residual(x, y, with_scale=False, backend=backend), rigid, **close)
    assert (procrustes_residual(5 * source, target, with_scale=False, backend=backend) > 2 * rigid).all()


def test_order_of_points_does_not_matter(tiny: torch.Generator, backend: str) -> None:
    source, target, *_ = similar_clouds(tiny, 9, 22, noise=0.3)
    weights = torch.rand(9, 22, generator=tiny, dtype=F64).to(DEVICE)
    order = torch.randperm(22, generator=tiny)
    pairs = ((source, target, weights), (source[:, order], target[:, order], weights[:, order]))
    residuals = [procrustes_residual(*arguments, backend=backend) for arguments in pairs]
    torch.testing.assert_close(*residuals, rtol=1e-12, atol=0)
    aligned = [procrustes_align(*arguments, backend=backend).aligned for arguments in pairs]
    torch.testing.assert_close(aligned[0][:, order], aligned[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("with_scale", [True, False])
def test_alignment_beats_every_nearby_motion(tiny: torch.Generator, backend: str, with_scale: bool) -> None:
    source, target = randn(tiny, 30, 22, 3), randn(tiny, 30, 22, 3)  # unrelated; about half want a reflection
    weights = torch.rand(30, 22, generator=tiny, dtype=F64).to(DEVICE)
    aligned, R, t, scale = procrustes_align(source, target, weights, with_scale=with_scale, backend=backend)

    def cost(R: Tensor, t: Tensor, scale: Tensor) -> Tensor:
        moved = scale[:, None, None] * source @ R.mT + t[:, None]
        return (weights * (moved - target).square().sum(-1)).sum(-1)

    torch.testing.assert_close(aligned, scale[:, None, None] * source @ R.mT + t[:, None], rtol=0, atol=1e-12)
    best = cost(R, t, scale)
    for size in (1e-3, 0.1, 1.0, 3.0):
        for _ in range(10):
            omega = size * randn(tiny, 30, 3)
            turn = torch.linalg.matrix_exp(
                torch.linalg.cross(torch.eye(3, dtype=F64, device=DEVICE)[None], omega[:, None])
            )
            assert (cost(turn @ R, t, scale) >= best - 1e-10).all()
            assert (cost(R, t + size * randn(tiny, 30, 3), scale) >= best - 1e-10).all()
            if with_scale:
                assert (cost(R, t, scale * torch.exp(size * randn(tiny, 30))) >= best - 1e-10).all()
    assert with_scale or torch.equal(scale, torch.ones_like(scale))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mirrored_copy_needs_a_reflection(tiny: torch.Generator, backend: str, dtype: torch.dtype) -> None:
    source, target, *_ = (x.to(dtype) for x in similar_clouds(tiny, 20, 22))
    target = target * torch.tensor([-1.0, 1.0, 1.0], dtype=dtype, device=DEVICE)
    free = procrustes_align(source, target, fix_det=False, backend=backend)
    proper = procrustes_align(source, target, backend=backend)
    assert (torch.linalg.det(free.R) + 1).abs().max() < 10 * ROUNDING[dtype]
    assert (torch.linalg.det(proper.R) - 1).abs().max() < 10 * ROUNDING[dtype]
    assert procrustes_residual(source, target, fix_det=False, backend=backend).max() < 10 * ROUNDING[dtype]
    assert procrustes_residual(source, target, backend=backend).min() > 0.1
    for result in (free, proper):
        torch.testing.assert_close(result.R @ result.R.mT, torch.eye(3, dtype=dtype, device=DEVICE).expand(20, 3, 3),
                                   rtol=0, atol=10 * ROUNDING[dtype])  # fmt: skip


# ---- weights ----


def test_a_weight_of_two_is_a_point_given_twice(tiny: torch.Generator, backend: str) -> None:
    source, target, *_ = similar_clouds(tiny, 5, 8, noise=0.3)
    weights, twice = torch.ones(8, dtype=F64, device=DEVICE), [*range(8), 3]
    weights[3] = 2
    once = procrustes_align(source, target, weights, backend=backend)
    repeated = procrustes_align(source[:, twice], target[:, twice], backend=backend)
    for a, b in zip(once[1:], repeated[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        procrustes_residual(source, target, weights, backend=backend),
        procrustes_residual(source[:, twice], target[:, twice], backend=backend),
        rtol=1e-12,
        atol=0,
    )


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_size_of_all_weights_does_not_matter(tiny: torch.Generator, backend: str, size: float) -> None:
    source, target, *_ = (x.to(F32) for x in similar_clouds(tiny, 5, 22, noise=0.3))
    weights = torch.rand(5, 22, generator=tiny).to(DEVICE) + 0.1
    residual, scaled = (procrustes_residual(source, target, c * weights, backend=backend) for c in (1.0, size))
    torch.testing.assert_close(scaled, residual, rtol=1e-5, atol=0)
    grads = gradients(lambda w: procrustes_residual(source, target, w, backend=backend), weights)[0]
    scaled_grads = gradients(lambda w: procrustes_residual(source, target, w, backend=backend), size * weights)[0]
    torch.testing.assert_close(scaled_grads * size, grads, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_points_without_weight_change_nothing(tiny: torch.Generator, backend: str, dtype: torch.dtype) -> None:
    values = torch.tensor([0.5, 1e30, math.nan, math.inf], dtype=dtype, device=DEVICE)
    source, target, *_ = (x.to(dtype) for x in similar_clouds(tiny, 4, 9, noise=0.3))
    weights = torch.rand(4, 9, generator=tiny, dtype=F64).to(DEVICE, dtype) + 0.1
    keep, drop = [1, 2, 4, 5, 6, 7, 8], [0, 3]  # the first point is one without weight
    expected = procrustes_align(source[:, keep], target[:, keep], weights[:, keep], backend=backend)
    expected_residual = procrustes_residual(source[:, keep], target[:, keep], weights[:, keep], backend=backend)
    weights[:, drop] = 0
    source[:, 0, 1], target[:, 3, 2] = values, values
    close = {"rtol": 0, "atol": 10 * ROUNDING[dtype]}
    result = procrustes_align(source, target, weights, backend=backend)
    torch.testing.assert_close(result.aligned[:, keep], expected.aligned, **close)
    for a, b in zip(result[1:], expected[1:], strict=True):
        torch.testing.assert_close(a, b, **close)
    moved = result.scale[:, None, None] * source @ result.R.mT + result.t[:, None]
    torch.testing.assert_close(result.aligned[0, drop], moved[0, drop], **close)  # they go along
    residual = procrustes_residual(source, target, weights, backend=backend)
    torch.testing.assert_close(residual, expected_residual, **close)

    def aligned(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return procrustes_align(x, y, w, backend=backend).aligned[:, keep].square()

    def left(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return procrustes_residual(x, y, w, backend=backend)

    for function in (aligned, left):
        grads = gradients(function, source, target, weights)
        for grad in grads[:2]:
            assert torch.isfinite(grad).all() and (grad[:, drop] == 0).all() and (grad[:, keep] != 0).any()
        assert (grads[2][0, drop] != 0).all()  # more weight would matter
        assert (grads[2][2:, drop] == 0).all()
        assert torch.isfinite(grads[2][:, keep]).all()


def test_weights_must_not_be_negative_in_debug_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    points, weights = torch.rand(5, 3), torch.tensor([1.0, 1, -2, 1, 1])
    procrustes_residual(points, points, weights)
    monkeypatch.setenv("MGRPO_DEBUG", "1")
    with pytest.raises(ValueError, match=r"procrustes_residual\(\): weights must be >= 0 everywhere, got .* -2"):
        procrustes_residual(points, points, weights)


# ---- where clouds are and how large ----


@pytest.mark.parametrize("options", OPTIONS)
def test_far_from_the_origin_no_digit_is_lost(tiny: torch.Generator, backend: str, options: dict) -> None:
    source, target, *_ = similar_clouds(tiny, 30, 22, noise=0.1)
    place = torch.tensor([100.0, -70.0, 30.0], dtype=F64, device=DEVICE)
    source, target = (source + place).float(), (target - 2 * place).float()
    residual = procrustes_residual(source, target, **options, backend=backend)
    expected = procrustes_residual(source.double(), target.double(), **options, backend="reference")
    torch.testing.assert_close(residual.double(), expected, rtol=0, atol=1e-6)
    result = procrustes_align(source, target, **options, backend=backend)
    expected = procrustes_align(source.double(), target.double(), **options, backend="reference")
    torch.testing.assert_close(result.R.double(), expected.R, rtol=0, atol=3e-6)
    torch.testing.assert_close(result.scale.double(), expected.scale, rtol=1e-6, atol=0)
    torch.testing.assert_close(result.aligned.double(), expected.aligned, rtol=0, atol=4e-5)  # a few roundings of 200


@pytest.mark.parametrize(("dtype", "power"), [(F32, 30), (F64, 200)])
def test_huge_and_tiny_clouds(tiny: torch.Generator, backend: str, dtype: torch.dtype, power: int) -> None:
    signs = torch.tensor([[1, 1], [-1, -1], [0, -1], [1, 0], [-1, 0]], dtype=F64, device=DEVICE)
    a, b = (10.0 ** (power * signs)).to(dtype)[:, :, None, None, None].unbind(1)
    source, target, *_ = (x.to(dtype) for x in similar_clouds(tiny, 7, 22, noise=0.3))
    weights = torch.rand(7, 22, generator=tiny, dtype=F64).to(DEVICE, dtype)
    source, target, weights = (x.expand(5, *x.shape) for x in (source, target, weights))
    expected = procrustes_align(source, target, weights, backend=backend)
    result = procrustes_align(a * source, b * target, weights, backend=backend)
    close = {"rtol": 100 * ROUNDING[dtype], "atol": 100 * ROUNDING[dtype]}
    torch.testing.assert_close(result.R, expected.R, **close)
    torch.testing.assert_close(result.scale / b[..., 0, 0] * a[..., 0, 0], expected.scale, **close)
    torch.testing.assert_close(result.aligned / b, expected.aligned, **close)
    torch.testing.assert_close(result.t / b[..., 0], expected.t, **close)

    def residual(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return procrustes_residual(x, y, w, backend=backend)

    huge = residual(a * source, b * target, weights) / b[..., 0, 0]
    torch.testing.assert_close(huge, residual(source, target, weights), **close)
    grads = gradients(lambda *x: residual(*x) / b[..., 0, 0], a * source, b * target, weights)
    wanted = gradients(residual, source, target, weights)
    for grad, size, expected_grad in zip(grads, (a, b, 1.0), wanted, strict=True):
        torch.testing.assert_close(grad * size, expected_grad, rtol=1e-3, atol=1e3 * ROUNDING[dtype])


@pytest.mark.parametrize("ratio", [1e-25, 1e25])
def test_rigid_alignment_of_clouds_of_other_sizes(tiny: torch.Generator, backend: str, ratio: float) -> None:
    source, target, R, *_ = (x.to(F32) for x in similar_clouds(tiny, 7, 22))
    result = procrustes_align(source, ratio * target, with_scale=False, backend=backend)
    torch.testing.assert_close(result.R, R, rtol=0, atol=1e-5)
    residual = procrustes_residual(source, ratio * target, with_scale=False, backend=backend)
    larger = (source if ratio < 1 else ratio * target).double()
    expected = (larger - larger.mean(1, keepdim=True)).norm(dim=-1).mean(-1)
    torch.testing.assert_close(residual.double(), expected, rtol=1e-5, atol=0)


# ---- degenerate clouds ----


def degenerate_clouds(dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Name -> (source, target, weights), each a batch of three."""
    generator = torch.Generator().manual_seed(2)

    def cloud(N: int) -> Tensor:
        return torch.randn(3, N, 3, generator=generator, dtype=F64)

    line = torch.linspace(-1, 1, 6, dtype=F64)[:, None] * torch.tensor([0.3, -1.0, 0.5], dtype=F64)
    point = torch.tensor([5.0, 5.1, 4.9], dtype=F64)
    ones = torch.ones(3, 6, dtype=F64)
    clouds = {
        "collinear source": (line.expand(3, 6, 3), cloud(6), ones),
        "collinear both": (line.expand(3, 6, 3), (line * 2 + 1).expand(3, 6, 3), ones),
        "collinear target": (cloud(6), line.expand(3, 6, 3), ones),
        "coincident source": (point.expand(3, 6, 3), cloud(6), ones),
        "coincident target": (cloud(6), point.expand(3, 6, 3), ones),
        "coincident both": (point.expand(3, 6, 3), (2 * point).expand(3, 6, 3), ones),
        "coincident to rounding": (point * (1 + 1e-16 * cloud(6)), cloud(6), ones),
        "planar mirrored": (cloud(6) * torch.tensor([1.0, 1.0, 0.0]), cloud(6), ones),
        "two points": (cloud(2), cloud(2), ones[:, :2]),
        "one point": (cloud(1), cloud(1), ones[:, :1]),
        "no points": (cloud(0), cloud(0), ones[:, :0]),
        "no weight": (cloud(6), cloud(6), 0 * ones),
        "one weighted point": (cloud(6), cloud(6), torch.eye(6, dtype=F64)[2:3].expand(3, 6)),
        "all zeros": (torch.zeros(3, 6, 3, dtype=F64), torch.zeros(3, 6, 3, dtype=F64), ones),
    }
    return {name: tuple(x.to(DEVICE, dtype) for x in tensors) for name, tensors in clouds.items()}


TURN_IS_OPEN = ("collinear source", "collinear both", "collinear target", "planar mirrored", "two points")


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [0, 1, 2, 6])
def test_degenerate_clouds_never_give_nan(N: int, dtype: torch.dtype, backend: str, options: dict) -> None:
    tolerance = {F32: 2e-5, F64: 1e-12}[dtype]
    clouds = {name: one for name, one in degenerate_clouds(dtype).items() if one[0].shape[1] == N}
    inputs = [torch.stack(parts) for parts in zip(*clouds.values(), strict=True)]  # one call for all of a size
    leaves = [x.clone().requires_grad_() for x in inputs]
    result = procrustes_align(*leaves, **options, backend=backend)
    residual = procrustes_residual(*leaves, **options, backend=backend)
    outputs = [x for x in (*result, residual) if x.requires_grad]
    grads = torch.autograd.grad([x.sum() for x in outputs], leaves)
    exact = [x.double() for x in inputs]
    wanted = procrustes_align(*exact, **options, backend="reference")
    eye = torch.eye(3, dtype=dtype, device=DEVICE).expand(3, 3, 3)
    for i, name in enumerate(clouds):
        one = kernels.Alignment(*(tensor[i].detach() for tensor in result))
        left = residual[i].detach()
        for tensor in (*one, left, *(grad[i] for grad in grads)):
            assert torch.isfinite(tensor).all(), name
        torch.testing.assert_close(one.R @ one.R.mT, eye, rtol=0, atol=tolerance)
        if options.get("fix_det", True):
            assert (torch.linalg.det(one.R) - 1).abs().max() < tolerance, name
        # Several motions may be equally good; none is better than the float64 one.
        y, w = exact[1][i], exact[2][i]
        cost, best = ((w * (found.double() - y).square().sum(-1)).sum(-1) for found in (one.aligned, wanted.aligned[i]))
        torch.testing.assert_close(cost, best, rtol=tolerance, atol=tolerance)
        if name == "collinear source":  # a line goes to one place whatever the turn about it
            torch.testing.assert_close(one.aligned.double(), wanted.aligned[i], rtol=0, atol=tolerance)
        if name not in ("coincident target", "all zeros", *TURN_IS_OPEN):
            assert torch.equal(one.R, eye) and torch.equal(one.scale, torch.ones_like(one.scale)), name
        if name == "coincident target" and options.get("with_scale", True):
            assert torch.equal(one.scale, torch.zeros_like(one.scale))
        if name in ("no points", "no weight"):
            assert (one.t == 0).all() and (left == 0).all()
            assert torch.equal(one.aligned, inputs[0][i])
        if name in ("one point", "one weighted point", "all zeros", "coincident both"):
            assert left.abs().max() <= tolerance
        if name in ("coincident source", "coincident to rounding"):
            spread = (y - y.mean(1, keepdim=True)).norm(dim=-1).mean(-1)
            torch.testing.assert_close(left.double(), spread, rtol=0, atol=tolerance)


def test_a_nan_of_a_point_that_counts_fills_its_row_alone(tiny: torch.Generator, backend: str) -> None:
    source, target, *_ = (x.to(F32) for x in similar_clouds(tiny, 12, 22, noise=0.3))
    weights = torch.rand(12, 22, generator=tiny).to(DEVICE) + 0.1
    clean = procrustes_residual(source, target, weights, backend=backend)
    spoilt = (source.clone(), target.clone(), weights.clone())
    for position in range(3):
        spoilt[position][4 * position].view(-1)[-1] = math.nan
        spoilt[position][4 * position + 2].view(-1)[-1] = math.inf
    residual = procrustes_residual(*spoilt, backend=backend)
    assert torch.isnan(residual[::2]).all() and torch.equal(residual[1::2], clean[1::2])
    result = procrustes_align(*spoilt, backend=backend)
    for tensor in result:
        assert torch.isnan(tensor[::2]).all() and torch.isfinite(tensor[1::2]).all()
    for grad in gradients(lambda *x: procrustes_residual(*x, backend=backend)[1::2], *spoilt):
        assert torch.isfinite(grad[1::2]).all()


# ---- gradients ----


@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck_of_the_residual(tiny: torch.Generator, backend: str, options: dict) -> None:
    if backend in ("triton", "cuda") and DEVICE.type == "cpu":
        pytest.skip("too slow without a GPU; test_ops.py compares its gradients with the reference's")
    source, target, *_ = similar_clouds(tiny, 2, 6, noise=0.4)
    if not options.get("fix_det", True):
        target = -target
    weights = torch.rand(2, 6, generator=tiny, dtype=F64).to(DEVICE) + 0.2
    leaves = [x.requires_grad_() for x in (source, target, weights)]
    assert torch.autograd.gradcheck(lambda *x: procrustes_residual(*x, **options, backend=backend), leaves)
    if backend == "reference":
        assert torch.autograd.gradgradcheck(lambda *x: procrustes_residual(*x, **options, backend=backend), leaves)


def test_gradients_at_an_exact_fit_are_finite(tiny: torch.Generator, backend: str) -> None:
    """A perfect prediction: points on their targets have gradient zero or, one rounding away, a bounded one."""
    source = randn(tiny, 4, 22, 3)
    for grad in gradients(lambda x, y: procrustes_residual(x, y, backend=backend), source, source):
        assert torch.isfinite(grad).all() and grad.abs().max() < 1
    (grad,) = gradients(lambda y: procrustes_align(source, y, backend=backend).aligned, source)
    torch.testing.assert_close(grad, torch.ones_like(grad), rtol=0, atol=1e-11)  # a shift moves both alike


def test_a_step_against_the_gradient_lowers_the_residual(tiny: torch.Generator, backend: str) -> None:
    source, target, *_ = (x.to(F32) for x in similar_clouds(tiny, 8, 22, noise=0.5))
    before = procrustes_residual(source, target, backend=backend)
    (grad,) = gradients(lambda x: procrustes_residual(x, target, backend=backend), source)
    assert (procrustes_residual(source - 0.05 * grad, target, backend=backend) < before).all()
    # The residual does not see a motion or a resizing of the source, so the gradient has no part along one.
    torch.testing.assert_close(grad.sum(1), torch.zeros_like(grad[:, 0]), rtol=0, atol=1e-5)
    torch.testing.assert_close((grad * source).sum((1, 2)), torch.zeros_like(before), rtol=0, atol=1e-5)


# ---- layouts, threads, instruction sets ----


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("frames", [5, 16, 37])
def test_a_group_that_shares_its_target(tiny: torch.Generator, backend: str, frames: int, weighted: bool) -> None:
    """Expanded arguments give what copies give, bit for bit, and their gradients are the sums over the group."""
    only_once_interpreted(backend, frames == 37)
    source = randn(tiny, 2, 3, frames, 22, 3, dtype=F32)
    target = randn(tiny, 2, 1, frames, 22, 3, dtype=F32)
    weights = torch.rand(22, generator=tiny).to(DEVICE) + 0.1 if weighted else None
    copies = (source, target.expand_as(source).contiguous(),
              None if weights is None else weights.expand(source.shape[:-1]).contiguous())  # fmt: skip
    shared = procrustes_residual(source, target, weights, backend=backend)
    assert torch.equal(shared, procrustes_residual(*copies, backend=backend))
    for a, b in zip(
        procrustes_align(source, target, weights, backend=backend),
        procrustes_align(*copies, backend=backend),
        strict=True,
    ):
        assert torch.equal(a, b)

    def residual(x: Tensor, y: Tensor) -> Tensor:
        return procrustes_residual(x, y, weights, backend=backend)

    grads, full = gradients(residual, source, target), gradients(residual, *copies[:2])
    assert torch.equal(grads[0], full[0])
    torch.testing.assert_close(grads[1], full[1].sum(1, keepdim=True), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_clouds_of_many_points(tiny: torch.Generator, backend: str, dtype: torch.dtype) -> None:
    """More points than a GPU block holds at once."""
    source, target, *_ = (x.to(dtype) for x in similar_clouds(tiny, 2, 700, noise=0.3))
    weights = torch.rand(2, 700, generator=tiny, dtype=F64).to(DEVICE, dtype)
    for w in (None, weights):
        inputs = (source, target) if w is None else (source, target, w)

        def function(*x: Tensor, backend: str = backend) -> Tensor:
            aligned = procrustes_align(*x, backend=backend).aligned
            return procrustes_residual(*x, backend=backend) + aligned.square().mean((-2, -1))

        def exact(*x: Tensor, function: Callable[..., Tensor] = function) -> Tensor:
            return function(*x, backend="reference")

        doubles = tuple(x.double() for x in inputs)
        tolerance = 20 * ROUNDING[dtype]
        torch.testing.assert_close(function(*inputs).double(), exact(*doubles), rtol=tolerance, atol=0)
        for grad, wanted in zip(gradients(function, *inputs), gradients(exact, *doubles), strict=True):
            torch.testing.assert_close(grad.double(), wanted, rtol=0, atol=tolerance)


def test_a_batch_of_many_strided_axes(tiny: torch.Generator, backend: str) -> None:
    source = randn(tiny, 2, 2, 3, 2, 3, 22, 3).transpose(0, 2).transpose(1, 3).transpose(2, 4)[..., ::2, :]
    target = randn(tiny, 2, 1, 1, 2, 11, 3)
    torch.testing.assert_close(
        procrustes_residual(source, target, backend=backend),
        procrustes_residual(source.contiguous(), target, backend="reference"),
        rtol=1e-12,
        atol=0,
    )


@pytest.mark.skipif("cpp" not in kernels.available_backends("procrustes_residual"), reason="needs the cpp backend")
def test_threads_do_not_change_a_bit(tiny: torch.Generator) -> None:
    source, target, *_ = (x.cpu().float() for x in similar_clouds(tiny, 3000, 22, noise=0.3))
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            result = procrustes_residual(source, target, backend="cpp")
            found.append((result, *gradients(lambda x: procrustes_residual(x, target, backend="cpp"), source)))
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.skipif("cpp" not in kernels.available_backends("procrustes_residual"), reason="needs the cpp backend")
@pytest.mark.parametrize("isa", ["v3", "baseline"])
def test_other_instruction_sets(isa: str) -> None:
    script = """
import torch
from mgrpo.kernels._spec import all_specs
for spec in all_specs():
    for case in spec.cases if spec.name.startswith("procrustes") else ():
        for dtype, tolerance in spec.tolerances.items():
            inputs = spec.make_inputs(case, dtype, torch.device("cpu"), 3)
            for backward in (False, True):
                found = []
                for backend in ("cpp", "reference"):
                    leaves = [(x if backend == "cpp" else x.double()).clone().requires_grad_() for x in inputs]
                    results = spec.call(case, *leaves, backend=backend)
                    sum(r.square().sum() for r in results).backward()
                    found.append([*results, *(leaf.grad for leaf in leaves)])
                for a, b in zip(*found):
                    limit = 3 * tolerance.gradient * max(1.0, b.abs().max().item() if b.numel() else 0.0)
                    assert a.numel() == 0 or (a.double() - b).abs().max() < limit, (case.name, dtype)
print("equal")
"""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "MGRPO_ISA": isa, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=root, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and done.stdout.strip() == "equal", done.stderr


# ---- torch's machinery ----


def test_opcheck(tiny: torch.Generator, backend: str) -> None:
    if backend == "reference":
        pytest.skip("only for registered operators")
    several = backend != "triton" or DEVICE.type == "cuda"
    source, target, *_ = (x.to(F32) for x in similar_clouds(tiny, 3, 7, noise=0.3))
    weights = torch.rand(3, 7, generator=tiny).to(DEVICE)
    grads = [torch.ones(shape, device=DEVICE) for shape in ((3, 7, 3), (3, 3, 3), (3, 3), (3,))]
    for w in (None, weights) if several else (weights,):
        leaves = [x if x is None else x.clone().requires_grad_() for x in (source, target, w)]
        for op in (torch.ops.mgrpo.procrustes_align, torch.ops.mgrpo.procrustes_residual):
            torch.library.opcheck(op.default, (*leaves, True, True, backend))
        inputs = (source, target, w)
        for needs in ((True, True, w is not None), (False, True, False)) if several else ((True, False, True),):
            options = (False, True, *needs, backend)
            torch.library.opcheck(torch.ops.mgrpo.procrustes_align_backward.default, (*grads, *inputs, *options))
            torch.library.opcheck(torch.ops.mgrpo.procrustes_residual_backward.default, (grads[3], *inputs, *options))


def test_compiles_with_and_without_weights(tiny: torch.Generator, backend: str) -> None:
    torch._dynamo.reset()
    source, target, *_ = (x.to(F32) for x in similar_clouds(tiny, 3, 7, noise=0.3))
    weights = torch.rand(3, 7, generator=tiny).to(DEVICE)

    def function(x: Tensor, y: Tensor, w: Tensor | None) -> Tensor:
        aligned = procrustes_align(x, y, w, with_scale=False, backend=backend).aligned
        return procrustes_residual(x, y, w, backend=backend) + aligned.sum((-2, -1))

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for w in (None, weights):
        leaves = [[source.clone().requires_grad_(), target.clone().requires_grad_()] for _ in range(2)]
        results = [f(*pair, w) for f, pair in zip((compiled, function), leaves)]
        torch.testing.assert_close(*results, rtol=0, atol=1e-5)
        for result in results:
            result.sum().backward()
        for a, b in zip(*leaves):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_vmap_of_the_reference(tiny: torch.Generator) -> None:
    source, target, *_ = similar_clouds(tiny, 4, 6, noise=0.3)
    weights = torch.rand(4, 6, generator=tiny, dtype=F64).to(DEVICE)
    for function in (procrustes_align, procrustes_residual):
        expected = function(source, target, weights, backend="reference")
        mapped = torch.func.vmap(lambda *x, f=function: f(*x, backend="reference"))(source, target, weights)
        torch.testing.assert_close(tuple(mapped), tuple(expected))


# ---- errors ----

zeros = torch.zeros
MESSAGES = {
    "procrustes_residual(): source must be a torch.Tensor, got list": lambda: procrustes_residual([], zeros(5, 3)),
    "procrustes_residual(): source must have shape (*#batch, N, 3), got (5, 2)": lambda: procrustes_residual(
        zeros(5, 2), zeros(5, 2)
    ),
    "procrustes_residual(): target must have shape (*#batch, N, 3) with N = 5, got (6, 3)": lambda: procrustes_residual(
        zeros(5, 3), zeros(6, 3)
    ),
    "procrustes_residual(): source and target must have batch axes that broadcast, got source (2,), target (3,)": (
        lambda: procrustes_residual(zeros(2, 5, 3), zeros(3, 5, 3))
    ),
    "procrustes_residual(): weights must have shape (*#batch, N) with N = 5, got (5, 3)": lambda: procrustes_residual(
        zeros(5, 3), zeros(5, 3), zeros(5, 3)
    ),
    "procrustes_residual(): target must have the dtype of source (float32), got float64": lambda: procrustes_residual(
        zeros(5, 3), zeros(5, 3).double()
    ),
    "procrustes_residual(): source must have dtype float32 or float64, got float16": lambda: procrustes_residual(
        zeros(5, 3).half(), zeros(5, 3).half()
    ),
    "procrustes_residual(): weights must be on cpu like source, got meta": lambda: procrustes_residual(
        zeros(5, 3), zeros(5, 3), zeros(5, device="meta")
    ),
    "procrustes_residual(): backend must be one of reference, cpp, triton, cuda, got 'jax'": (
        lambda: procrustes_residual(zeros(5, 3), zeros(5, 3), backend="jax")
    ),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_errors(message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        MESSAGES[message]()
    assert str(caught.value) == message


# ---- other implementations ----


@pytest.mark.parametrize("with_scale", [True, False])
def test_agrees_with_roma(tiny: torch.Generator, backend: str, with_scale: bool) -> None:
    roma = pytest.importorskip("roma")
    source, target, *_ = similar_clouds(tiny, 40, 22, noise=0.5)
    weights = torch.rand(40, 22, generator=tiny, dtype=F64).to(DEVICE)
    for w in (None, weights):
        R, t, *scale = roma.rigid_points_registration(source, target, weights=w, compute_scaling=with_scale)
        s = scale[0] if with_scale else torch.ones(40, dtype=F64, device=DEVICE)
        result = procrustes_align(source, target, w, with_scale=with_scale, backend=backend)
        torch.testing.assert_close(result.R, R, rtol=0, atol=1e-10)
        torch.testing.assert_close(result.t, t, rtol=0, atol=1e-10)
        torch.testing.assert_close(result.scale, s, rtol=0, atol=1e-10)
        distance = (s[:, None, None] * source @ R.mT + t[:, None] - target).norm(dim=-1)
        share = torch.full_like(weights, 1 / 22) if w is None else w / w.sum(-1, keepdim=True)
        residual = procrustes_residual(source, target, w, with_scale=with_scale, backend=backend)
        torch.testing.assert_close(residual, (share * distance).sum(-1), rtol=0, atol=1e-10)


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.golden
def test_golden_alignments(backend: str) -> None:
    for path in golden_files("metrics/procrustes*.npz"):
        data = {name: torch.from_numpy(array) for name, array in load(path).items()}
        for prefix, with_scale in (("sim", True), ("fixscale", False)):
            for suffix, dtype, tolerance in (("f64", F64, 1e-9), ("f32", F32, 2e-5)):
                x, y = (data[name].to(DEVICE, dtype) for name in ("points_x", "points_y"))
                wanted = {
                    key: data[f"{prefix}_{key}_{suffix}"].to(DEVICE, dtype) for key in ("s", "R", "t", "aligned_x")
                }
                result = procrustes_align(x, y, with_scale=with_scale, backend=backend)
                close = {"rtol": tolerance, "atol": tolerance}
                torch.testing.assert_close(result.aligned, wanted["aligned_x"], **close)
                torch.testing.assert_close(result.R, wanted["R"], **close)
                torch.testing.assert_close(result.t, wanted["t"], **close)
                torch.testing.assert_close(result.scale[:, None], wanted["s"], **close)
                residual = procrustes_residual(x, y, with_scale=with_scale, backend=backend)
                torch.testing.assert_close(residual, (wanted["aligned_x"] - y).norm(dim=-1).mean(-1), **close)


@pytest.mark.golden
def test_golden_aligned_errors_of_motions(backend: str) -> None:
    for path in golden_files("metrics/metrics*.npz"):
        data = {name: torch.from_numpy(array) for name, array in load(path).items() if array.dtype.kind == "f"}

        def joints(kind: str, data: dict[str, Tensor] = data) -> Tensor:
            root, body = data[f"{kind}_T_world_root"], data[f"{kind}_Ts_world_joint"]
            return torch.cat([root[..., None, 4:], body[..., 4:]], dim=-2).to(DEVICE, F64)

        prediction, label = joints("pred"), joints("label")[:, None]
        for name, with_scale in (("pa_mpjpe_standard_mm", True), ("pa_mpjpe_standard_noscale_mm", False)):
            residual = procrustes_residual(prediction, label, with_scale=with_scale, backend=backend)
            torch.testing.assert_close(1000 * residual.mean(-1), data[name].to(DEVICE), rtol=1e-9, atol=0)
        if "egoallo_pampjpe_mm" in data:  # the label aligned to the prediction, compared with the label: see metrics
            aligned = procrustes_align(label, prediction, backend=backend).aligned
            found = 1000 * (aligned - label).norm(dim=-1).mean((-2, -1))
            torch.testing.assert_close(found.float(), data["egoallo_pampjpe_mm"].to(DEVICE), rtol=1e-4, atol=0)
