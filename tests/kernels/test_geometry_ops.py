"""Geometry ops of mgrpo.kernels: every op x backend x dtype against float64, and the properties that define each op."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mgrpo import kernels
from mgrpo.kernels import forward_kinematics, procrustes_align, project_so3
from mgrpo.kernels._spec import Case, OpSpec, all_specs
from mgrpo.kernels.kinematics.spec import BODY_PARENTS

GEOMETRY = ("forward_kinematics", "procrustes_align", "project_so3")
SPECS = [spec for spec in all_specs() if spec.name in GEOMETRY]
CASES = [pytest.param(spec, case, id=f"{spec.name}-{case.name}") for spec in SPECS for case in spec.cases]
DTYPES = [pytest.param(torch.float32, id="f32"), pytest.param(torch.float64, id="f64")]
F64 = torch.float64
CPU = torch.device("cpu")


@pytest.fixture(params=["reference", "cpp"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param not in kernels.available_backends("project_so3"):
        pytest.skip(kernels.explain_backend("project_so3"))
    return request.param


@pytest.fixture
def fused(backend: str) -> str:
    if backend == "reference":
        pytest.skip("only for backends with registered operators")
    return backend


def run(spec: OpSpec, case: Case, inputs: tuple[Tensor, ...], backend: str) -> tuple[list[Tensor], list[Tensor]]:
    """Results, and gradients of a fixed random functional of them."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    results = spec.call(case, *leaves, backend=backend)
    generator = torch.Generator().manual_seed(77)
    probes = [torch.randn(result.shape, generator=generator, dtype=F64).to(result.dtype) for result in results]
    back_propagate(results, probes)
    return [result.detach() for result in results], [leaf.grad for leaf in leaves]


def back_propagate(results: Sequence[Tensor], probes: Sequence[Tensor]) -> None:
    """Gradients of the sum of products; a result that is constant (a fixed scale) has none."""
    pairs = [(result, probe) for result, probe in zip(results, probes, strict=True) if result.requires_grad]
    torch.autograd.backward(*zip(*pairs))


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal up to ``tolerance`` times the largest magnitude (at least 1) of the expected tensor."""
    assert actual.shape == expected.shape
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance * scale)


def random_rotations(*shape: int, generator: torch.Generator, dtype: torch.dtype = F64) -> Tensor:
    Q = torch.linalg.qr(torch.randn(*shape, 3, 3, generator=generator, dtype=F64))[0]
    return (Q * torch.linalg.det(Q)[..., None, None]).to(dtype)


# ---- every op, from its spec ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("spec", "case"), CASES)
def test_forward_and_gradient_match_float64(spec: OpSpec, case: Case, dtype: torch.dtype, backend: str) -> None:
    exact = spec.make_inputs(case, F64, CPU, 5)
    inputs = tuple(tensor.to(dtype) for tensor in exact)
    # The oracle sees the rounded inputs, so that only the computation is judged.
    wanted, wanted_grads = run(spec, case, tuple(tensor.double() for tensor in inputs), "reference")
    results, grads = run(spec, case, inputs, backend)
    for result, expected in zip(results, wanted, strict=True):
        assert result.dtype == dtype and result.is_contiguous()
        assert_close(result, expected, spec.tolerances[dtype].forward)
    for grad, expected in zip(grads, wanted_grads, strict=True):
        assert grad.dtype == dtype
        assert_close(grad, expected, spec.tolerances[dtype].gradient)
        if expected.numel() and expected.norm() > 1e-6:  # as vectors: a small systematic error hides in a maximum
            error = (grad.double() - expected).norm() / expected.norm()
            assert error < spec.tolerances[dtype].gradient


@pytest.mark.parametrize(("spec", "case"), CASES)
def test_gradcheck(spec: OpSpec, case: Case, backend: str) -> None:
    small = dict(case.sizes)
    for name, size in small.items():
        if name.endswith("batch") and isinstance(size, tuple):
            small[name] = tuple(min(s, 2) for s in size)
    if small.get("N", 0) > 5:
        small["N"] = 5
    if len(small.get("parents", ())) > 6:
        small["parents"] = (-1, 0, 0, 1, 2, 4)
    case = Case(case.name, small, case.options)
    inputs = [tensor.requires_grad_() for tensor in spec.make_inputs(case, F64, CPU, 8)]
    assert torch.autograd.gradcheck(lambda *x: spec.call(case, *x, backend=backend), inputs, fast_mode=True)
    assert torch.autograd.gradcheck(lambda *x: spec.call(case, *x, backend=backend)[0], inputs)


@pytest.mark.parametrize(("spec", "case"), CASES)
def test_inputs_unchanged_and_runs_repeat_bitwise(spec: OpSpec, case: Case, backend: str) -> None:
    inputs = spec.make_inputs(case, torch.float32, CPU, 3)
    before = [tensor.clone() for tensor in inputs]
    first, second = run(spec, case, inputs, backend), run(spec, case, inputs, backend)
    for tensor, copy in zip(inputs, before):
        assert torch.equal(tensor, copy)
    for a, b in zip(itertools.chain(*first), itertools.chain(*second), strict=True):
        assert torch.equal(a, b)


def expanded_case(spec: OpSpec) -> tuple[Case, tuple[Tensor, ...]]:
    """The spec's first case with all its inputs expanded to one batch axis, so that rows can be taken out."""
    case = spec.cases[0]
    inputs = spec.make_inputs(case, torch.float32, CPU, 21)
    trailing = {"project_so3": (2,), "forward_kinematics": (3, 2, 1), "procrustes_align": (2, 2, 1)}[spec.name]
    batch = torch.broadcast_shapes(*(x.shape[: x.dim() - n] for x, n in zip(inputs, trailing)))
    flat = tuple(x.expand(*batch, *x.shape[x.dim() - n :]).flatten(0, len(batch) - 1) for x, n in zip(inputs, trailing))
    return case, flat


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_row_alone_equals_the_row_in_a_batch(spec: OpSpec, fused: str) -> None:
    case, inputs = expanded_case(spec)
    results, grads = run(spec, case, inputs, fused)
    generator = torch.Generator().manual_seed(77)
    probes = [torch.randn(result.shape, generator=generator, dtype=F64).float() for result in results]
    for row in (0, 1, len(inputs[0]) - 1):
        leaves = [x[row].detach().clone().requires_grad_() for x in inputs]
        alone = spec.call(case, *leaves, backend=fused)
        back_propagate(alone, [probe[row] for probe in probes])
        for a, b in zip(alone, results, strict=True):
            assert torch.equal(a, b[row])
        for leaf, grad in zip(leaves, grads, strict=True):
            assert torch.equal(leaf.grad, grad[row])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_bad_row_touches_no_other(spec: OpSpec, backend: str, bad: float) -> None:
    case, inputs = expanded_case(spec)
    clean, clean_grads = run(spec, case, inputs, backend)
    for position in range(len(inputs)):
        spoilt = [x.clone() for x in inputs]
        spoilt[position][2].view(-1)[0] = bad
        results, grads = run(spec, case, tuple(spoilt), backend)
        others = torch.arange(len(inputs[0])) != 2
        for a, b in zip(results + grads, clean + clean_grads, strict=True):
            assert torch.equal(a[others], b[others])
        assert not all(torch.isfinite(result[2]).all() for result in results)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_strided_inputs(spec: OpSpec, backend: str) -> None:
    case, inputs = expanded_case(spec)
    expected, expected_grads = run(spec, case, inputs, backend)

    def call(tensors: list[Tensor]) -> None:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        results = spec.call(case, *leaves, backend=backend)
        generator = torch.Generator().manual_seed(77)
        probes = [torch.randn(r.shape, generator=generator, dtype=F64).float() for r in results]
        strided = [torch.stack([probe, probe], dim=-1)[..., 0] for probe in probes]
        back_propagate(results, strided)
        for result, wanted in zip(results, expected, strict=True):
            torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-6)
        for leaf, wanted in zip(leaves, expected_grads, strict=True):
            torch.testing.assert_close(leaf.grad, wanted, rtol=1e-4, atol=1e-5)

    call([torch.stack([x, torch.full_like(x, 9.0)], dim=1)[:, 0] for x in inputs])  # every second row
    call([torch.stack([x, torch.full_like(x, 9.0)], dim=-1)[..., 0] for x in inputs])  # gaps inside rows
    call([x.transpose(0, -1).contiguous().transpose(0, -1) for x in inputs])


def test_broadcast_arguments_equal_expanded_ones(backend: str) -> None:
    spec = next(spec for spec in SPECS if spec.name == "procrustes_align")
    case = next(case for case in spec.cases if case.name == "one_target_for_a_group")
    source, target, weights = spec.make_inputs(case, F64, CPU, 4)
    results, grads = run(spec, case, (source, target, weights), backend)
    full = (source, target.expand(source.shape), weights.expand(source.shape[:-1]))
    results_full, grads_full = run(spec, case, full, backend)
    for a, b in zip(results, results_full, strict=True):
        assert_close(a, b, 1e-14)
    assert_close(grads[1], grads_full[1].sum(1, keepdim=True), 1e-12)
    assert_close(grads[2], grads_full[2].sum((0, 1)), 1e-12)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_only_the_gradients_asked_for(spec: OpSpec, backend: str) -> None:
    case, inputs = expanded_case(spec)
    _, wanted = run(spec, case, inputs, backend)
    for position in range(len(inputs)):
        leaves = [x.detach().clone().requires_grad_(i == position) for i, x in enumerate(inputs)]
        results = spec.call(case, *leaves, backend=backend)
        generator = torch.Generator().manual_seed(77)
        back_propagate(results, [torch.randn(r.shape, generator=generator, dtype=F64).float() for r in results])
        torch.testing.assert_close(leaves[position].grad, wanted[position], rtol=0, atol=1e-6)
    with torch.no_grad():
        assert not any(result.requires_grad for result in spec.call(case, *leaves, backend=backend))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_second_derivatives(spec: OpSpec, backend: str) -> None:
    case = next(case for case in spec.cases if case.name in ("one", "one_joint_one_pose", "three_points"))
    inputs = tuple(x[:1] if x.dim() and case.name == "three_points" else x for x in spec.make_inputs(case, F64, CPU, 8))
    inputs = [x.detach().requires_grad_() for x in inputs]
    if backend == "reference":
        assert torch.autograd.gradgradcheck(lambda *x: spec.call(case, *x, backend=backend)[0], inputs)
        return
    (grad,) = torch.autograd.grad(spec.call(case, *inputs, backend=backend)[0].sum(), inputs[:1], create_graph=True)
    with pytest.raises(kernels.BackendError, match="backend='reference'"):
        grad.square().sum().backward()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_compiles_to_one_graph(spec: OpSpec, backend: str) -> None:
    torch._dynamo.reset()
    case = next((case for case in spec.cases if case.name == "no_root"), spec.cases[0])  # a small tree: a small graph
    inputs = spec.make_inputs(case, torch.float32, CPU, 5)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(2 * result for result in spec.call(case, *tensors, backend=backend))

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    leaves = [[x.detach().clone().requires_grad_() for x in inputs] for _ in range(2)]
    results, expected = compiled(*leaves[0]), function(*leaves[1])
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    sum(x.square().sum() for x in results).backward()
    sum(x.square().sum() for x in expected).backward()
    for a, b in zip(*leaves, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_opcheck(spec: OpSpec, fused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The registered operator's own arguments are what the public function hands it.
    calls: list[tuple] = []
    packet = getattr(torch.ops.mgrpo, spec.name)
    monkeypatch.setattr(torch.ops.mgrpo, spec.name, lambda *args: calls.append(args) or packet(*args))
    for case in (spec.cases[0], spec.cases[1]):
        inputs = tuple(x.requires_grad_() for x in spec.make_inputs(case, torch.float32, CPU, 5))
        spec.call(case, *inputs, backend=fused)
    monkeypatch.undo()
    for args in calls:
        # Expanded views share memory, which opcheck's copies do not; it wants leaves.
        args = tuple(a.detach().clone().requires_grad_() if isinstance(a, Tensor) else a for a in args)
        torch.library.opcheck(packet.default, args)
    assert len(calls) == 2


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_vmap(spec: OpSpec) -> None:
    case, inputs = expanded_case(spec)
    inputs = tuple(x[:4] for x in inputs)
    expected = spec.call(case, *inputs, backend="reference")
    mapped = torch.func.vmap(lambda *x: spec.call(case, *x, backend="reference"))(*inputs)
    for a, b in zip(mapped, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


# ---- project_so3 ----


def assert_rotations(R: Tensor, tolerance: float, determinant: float | Tensor = 1.0) -> None:
    R = R.double()
    identity = torch.eye(3, dtype=F64)
    assert (R.transpose(-1, -2) @ R - identity).abs().max() < tolerance
    assert (torch.linalg.det(R) - determinant).abs().max() < tolerance


@pytest.mark.parametrize("dtype", DTYPES)
def test_projection_is_a_rotation_and_idempotent(tiny: torch.Generator, backend: str, dtype: torch.dtype) -> None:
    tolerance = {torch.float32: 5e-6, F64: 1e-13}[dtype]
    R = project_so3(torch.randn(500, 3, 3, generator=tiny, dtype=F64).to(dtype), backend=backend)
    assert_rotations(R, tolerance)
    torch.testing.assert_close(project_so3(R, backend=backend), R, rtol=0, atol=tolerance)


def test_projection_commutes_with_rotations(tiny: torch.Generator, backend: str) -> None:
    M = torch.randn(200, 3, 3, generator=tiny, dtype=F64)
    left, right = random_rotations(200, generator=tiny), random_rotations(200, generator=tiny)
    projected = left @ project_so3(M, backend=backend) @ right
    s = torch.linalg.svdvals(M)
    gap = s[:, 1] + torch.linalg.det(M).sign() * s[:, 2]
    difference = (project_so3(left @ M @ right, backend=backend) - projected).abs().amax((-2, -1))
    assert (difference * gap).max() < 1e-13


@pytest.mark.parametrize("fix_det", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_projection_is_the_nearest(tiny: torch.Generator, backend: str, dtype: torch.dtype, fix_det: bool) -> None:
    """Optimality, which also holds where the nearest rotation is not unique: tr(R^T M) = s_1 + s_2 + (+-) s_3."""
    M = torch.cat([degenerate_matrices(dtype), torch.randn(300, 3, 3, generator=tiny, dtype=F64).to(dtype)])
    R = project_so3(M, fix_det=fix_det, backend=backend)
    U, s, Vh = torch.linalg.svd(M.double())
    sign = torch.linalg.det(U @ Vh).sign() if fix_det else torch.ones(len(M), dtype=F64)
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
    U, V = random_rotations(generator=generator), random_rotations(generator=generator)
    spectra = [(1, 1, 1), (1, 1, -1), (-1, -1, -1), (2, 1, 1), (2, 1, -1), (2, 2, 1), (2, 2, -1), (1, 0, 0), (1, 1, 0)]
    spectra += [(1, 1e-9, 1e-9), (1, 1e-5, -1e-5), (1, 1e-12, 1e-15), (3, 1e-3, -1e-6)]
    dense = [U @ torch.diag(torch.tensor(s, dtype=F64)) @ V for s in spectra]
    plain = [torch.diag(torch.tensor(s, dtype=F64)) for s in spectra]
    corner = torch.zeros(3, 3, dtype=F64)
    corner[2, 0] = 1
    zero, ones = torch.zeros(3, 3, dtype=F64), torch.ones(3, 3, dtype=F64)
    scaled = [1e30 * U, 1e-30 * U, 1e-38 * plain[3], 1e38 * ones]
    return torch.stack([*dense, *plain, corner, zero, ones, -ones, *scaled]).to(dtype)


def test_many_matrices_of_rank_one(tiny: torch.Generator, backend: str) -> None:
    """Rounding can leave a second column parallel to the first: of small integers, one matrix in two thousand."""
    a, b = torch.randn(2, 60_000, 3, generator=tiny)
    small_integers = (2 * a).trunc()[:, :, None] * (2 * b).trunc()[:, None, :]
    products = a[:5000, :, None] * b[:5000, None, :]
    for M in (small_integers, products, products + 1e-7 * torch.randn(products.shape, generator=tiny)):
        assert_rotations(project_so3(M, backend=backend), 5e-6)


@pytest.mark.parametrize("fix_det", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_degenerate_matrices_have_bounded_gradients(backend: str, dtype: torch.dtype, fix_det: bool) -> None:
    M = degenerate_matrices(dtype).requires_grad_()
    R = project_so3(M, fix_det=fix_det, backend=backend)
    G = torch.randn(R.shape, generator=torch.Generator().manual_seed(1), dtype=F64).to(dtype)
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
        M = torch.zeros(2, 3, 3, requires_grad=True)
        R = project_so3(M, fix_det=fix_det, backend=backend)
        R.backward(torch.ones_like(R))
        assert torch.equal(R.detach(), torch.eye(3).expand(2, 3, 3))
        assert torch.equal(M.grad, torch.zeros(2, 3, 3))


def test_gradient_at_exact_rotations(tiny: torch.Generator, backend: str) -> None:
    """Where differentiating through an SVD gives NaN: the derivative is the projection onto the tangent space."""
    R = torch.cat([random_rotations(20, generator=tiny), torch.eye(3, dtype=F64)[None]]).requires_grad_()
    G = torch.randn(R.shape, generator=tiny, dtype=F64)
    (grad,) = torch.autograd.grad(project_so3(R, backend=backend), R, G)
    tangent = 0.5 * (G - R @ G.transpose(-1, -2) @ R)
    torch.testing.assert_close(grad, tangent.detach(), rtol=0, atol=1e-14)


def test_projection_without_fix_agrees_where_nothing_needs_fixing(tiny: torch.Generator, backend: str) -> None:
    M = torch.randn(100, 3, 3, generator=tiny, dtype=F64)
    M = M * torch.linalg.det(M).sign()[:, None, None]
    with_fix, without = (project_so3(M, fix_det=fix, backend=backend) for fix in (True, False))
    torch.testing.assert_close(with_fix, without, rtol=0, atol=1e-14)
    mirrored = project_so3(-M, fix_det=False, backend=backend)
    torch.testing.assert_close(mirrored, -with_fix, rtol=0, atol=1e-12)


# ---- forward_kinematics ----


def homogeneous_chain(local: Tensor, offsets: Tensor, parents: tuple[int, ...], root: Tensor) -> Tensor:
    """(J, 4, 4) poses by products of 4x4 matrices along each joint's own path from the root."""
    poses = []
    for joint in range(len(parents)):
        path = [joint]
        while parents[path[-1]] >= 0:
            path.append(parents[path[-1]])
        pose = root
        for j in reversed(path):
            step = torch.eye(4, dtype=F64)
            step[:3, :3], step[:3, 3] = local[j], offsets[j]
            pose = pose @ step
        poses.append(pose)
    return torch.stack(poses)


def test_fk_equals_products_of_homogeneous_matrices(tiny: torch.Generator, backend: str) -> None:
    local = random_rotations(21, generator=tiny)
    offsets = torch.randn(21, 3, generator=tiny, dtype=F64)
    half = torch.tensor(0.3, dtype=F64)
    axis = torch.tensor([0.0, 0.6, 0.8], dtype=F64)
    root = torch.eye(4, dtype=F64)
    cross = torch.tensor([[0, -0.8, 0.6], [0.8, 0, 0], [-0.6, 0, 0]], dtype=F64)
    root[:3, :3] = torch.linalg.matrix_exp(2 * half * cross)
    root[:3, 3] = torch.tensor([1.0, -2.0, 0.5])
    T_world_root = torch.cat([half.cos()[None], half.sin() * axis, root[:3, 3]])
    poses = homogeneous_chain(local, offsets, BODY_PARENTS, root)
    T_world_root[:4] *= -3  # any length and sign of the quaternion mean the same rotation
    result = forward_kinematics(local, offsets, BODY_PARENTS, T_world_root, backend=backend)
    torch.testing.assert_close(result.joints, poses[:, :3, 3], rtol=0, atol=1e-13)
    torch.testing.assert_close(result.R_world_joint, poses[:, :3, :3], rtol=0, atol=1e-13)


def test_fk_follows_the_root(tiny: torch.Generator, backend: str) -> None:
    """Moving the root moves every joint rigidly; q and -q are the same root."""
    local = random_rotations(5, 21, generator=tiny)
    offsets = torch.randn(21, 3, generator=tiny, dtype=F64)
    still = forward_kinematics(local, offsets, BODY_PARENTS, backend=backend)
    T = torch.randn(5, 7, generator=tiny, dtype=F64)
    moved = forward_kinematics(local, offsets, BODY_PARENTS, T, backend=backend)
    # The root's rotation is that of a single joint at the root with no offset.
    still_joint, no_offset = torch.eye(3, dtype=F64).expand(5, 1, 3, 3), torch.zeros(1, 3, dtype=F64)
    R = forward_kinematics(still_joint, no_offset, (-1,), T).R_world_joint
    torch.testing.assert_close(moved.joints, (R @ still.joints[..., None])[..., 0] + T[:, None, 4:], rtol=0, atol=1e-13)
    torch.testing.assert_close(moved.R_world_joint, R @ still.R_world_joint, rtol=0, atol=1e-13)
    T_negated = T * torch.tensor([-1.0] * 4 + [1.0] * 3)
    negated = forward_kinematics(local, offsets, BODY_PARENTS, T_negated, backend=backend)
    torch.testing.assert_close(negated.joints, moved.joints, rtol=0, atol=1e-13)


def test_fk_at_rest_adds_offsets_and_keeps_bone_lengths(tiny: torch.Generator, backend: str) -> None:
    offsets = torch.randn(21, 3, generator=tiny, dtype=F64)
    rest = forward_kinematics(torch.eye(3, dtype=F64).expand(21, 3, 3), offsets, BODY_PARENTS, backend=backend)
    posed = forward_kinematics(random_rotations(21, generator=tiny), offsets, BODY_PARENTS, backend=backend)
    for joint, parent in enumerate(BODY_PARENTS):
        start = torch.zeros(3, dtype=F64) if parent < 0 else rest.joints[parent]
        torch.testing.assert_close(rest.joints[joint] - start, offsets[joint], rtol=0, atol=1e-14)
        start = torch.zeros(3, dtype=F64) if parent < 0 else posed.joints[parent]
        torch.testing.assert_close((posed.joints[joint] - start).norm(), offsets[joint].norm(), rtol=1e-13, atol=0)


def test_fk_accepts_any_sequence_of_integers(backend: str) -> None:
    local, offsets = torch.eye(3).expand(3, 3, 3), torch.ones(3, 3)
    expected = forward_kinematics(local, offsets, (-1, 0, 1), backend=backend)
    for parents in ([-1, 0, 1], np.array([-1, 0, 1]), range(-1, 2)):
        assert torch.equal(forward_kinematics(local, offsets, parents, backend=backend).joints, expected.joints)


# ---- procrustes_align ----


def similar_clouds(generator: torch.Generator, batch: int, N: int, dtype: torch.dtype = F64) -> tuple[Tensor, ...]:
    source = torch.randn(batch, N, 3, generator=generator, dtype=F64)
    R, t = random_rotations(batch, generator=generator), torch.randn(batch, 3, generator=generator, dtype=F64)
    scale = 0.5 + torch.rand(batch, generator=generator, dtype=F64)
    target = scale[:, None, None] * source @ R.transpose(-1, -2) + t[:, None]
    return tuple(x.to(dtype) for x in (source, target, R, t, scale))


@pytest.mark.parametrize("N", [3, 4, 22])
@pytest.mark.parametrize("dtype", DTYPES)
def test_alignment_recovers_a_similarity(tiny: torch.Generator, backend: str, dtype: torch.dtype, N: int) -> None:
    source, target, R, t, scale = similar_clouds(tiny, 50, N, dtype)
    weights = torch.rand(50, N, generator=tiny, dtype=F64).to(dtype) + 0.05
    tolerance = {torch.float32: 2e-4, F64: 1e-11}[dtype]
    for w in (None, weights):
        result = procrustes_align(source, target, w, backend=backend)
        torch.testing.assert_close(result.aligned, target, rtol=0, atol=tolerance)
        torch.testing.assert_close(result.R, R, rtol=0, atol=tolerance)
        torch.testing.assert_close(result.t, t, rtol=0, atol=tolerance)
        torch.testing.assert_close(result.scale, scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("with_scale", [True, False])
def test_alignment_beats_every_nearby_motion(tiny: torch.Generator, backend: str, with_scale: bool) -> None:
    source = torch.randn(30, 22, 3, generator=tiny, dtype=F64)
    target = torch.randn(30, 22, 3, generator=tiny, dtype=F64)  # unrelated; about half want a reflection
    weights = torch.rand(30, 22, generator=tiny, dtype=F64)
    aligned, R, t, scale = procrustes_align(source, target, weights, with_scale=with_scale, backend=backend)

    def cost(R: Tensor, t: Tensor, scale: Tensor) -> Tensor:
        moved = scale[:, None, None] * source @ R.transpose(-1, -2) + t[:, None]
        return (weights * (moved - target).square().sum(-1)).sum(-1)

    moved = scale[:, None, None] * source @ R.transpose(-1, -2) + t[:, None]
    torch.testing.assert_close(aligned, moved, rtol=0, atol=1e-12)
    assert_rotations(R, 1e-13)
    best = cost(R, t, scale)
    for size in (1e-3, 0.1, 1.0, 3.0):
        for _ in range(10):
            omega = size * torch.randn(30, 3, generator=tiny, dtype=F64)
            turn = torch.linalg.matrix_exp(torch.linalg.cross(torch.eye(3, dtype=F64)[None], omega[:, None]))
            assert (cost(turn @ R, t, scale) >= best - 1e-10).all()
            assert (cost(R, t + size * torch.randn(30, 3, generator=tiny, dtype=F64), scale) >= best - 1e-10).all()
            if with_scale:
                factor = torch.exp(size * torch.randn(30, generator=tiny, dtype=F64))
                assert (cost(R, t, scale * factor) >= best - 1e-10).all()
    if not with_scale:
        assert torch.equal(scale, torch.ones(30, dtype=F64))


def test_alignment_does_not_see_how_the_source_is_placed(tiny: torch.Generator, backend: str) -> None:
    source, target, *_ = similar_clouds(tiny, 20, 22)
    target = target + 0.2 * torch.randn(target.shape, generator=tiny, dtype=F64)
    expected = procrustes_align(source, target, backend=backend).aligned
    Q = random_rotations(20, generator=tiny)
    moved = 2.5 * source @ Q.transpose(-1, -2) + torch.tensor([3.0, -1.0, 2.0])
    torch.testing.assert_close(procrustes_align(moved, target, backend=backend).aligned, expected, rtol=0, atol=1e-12)
    order = torch.randperm(22, generator=tiny)
    permuted = procrustes_align(source[:, order], target[:, order], backend=backend).aligned
    torch.testing.assert_close(permuted, expected[:, order], rtol=0, atol=1e-12)


def test_zero_weight_removes_a_point_and_repeating_equals_weight_two(tiny: torch.Generator, backend: str) -> None:
    source, target, *_ = similar_clouds(tiny, 5, 8)
    target = target + 0.3 * torch.randn(target.shape, generator=tiny, dtype=F64)
    weights = torch.ones(8, dtype=F64)
    weights[3] = 0
    keep = [0, 1, 2, 4, 5, 6, 7]
    a = procrustes_align(source, target, weights, backend=backend)
    b = procrustes_align(source[:, keep], target[:, keep], backend=backend)
    weights[3], twice = 2, [*range(8), 3]
    c = procrustes_align(source, target, weights, backend=backend)
    d = procrustes_align(source[:, twice], target[:, twice], backend=backend)
    for first, second in ((a, b), (c, d)):
        for x, y in zip(first[1:], second[1:], strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


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
        "planar mirrored": (cloud(6) * torch.tensor([1.0, 1.0, 0.0]), cloud(6), ones),
        "two points": (cloud(2), cloud(2), ones[:, :2]),
        "one point": (cloud(1), cloud(1), ones[:, :1]),
        "no points": (cloud(0), cloud(0), ones[:, :0]),
        "no weight": (cloud(6), cloud(6), 0 * ones),
        "one weighted point": (cloud(6), cloud(6), torch.eye(6, dtype=F64)[:1].expand(3, 6)),
    }
    clouds["all zeros"] = (torch.zeros(3, 6, 3, dtype=F64), torch.zeros(3, 6, 3, dtype=F64), ones)
    return {name: tuple(x.to(dtype) for x in tensors) for name, tensors in clouds.items()}


@pytest.mark.parametrize("with_scale", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(degenerate_clouds(F64)))
def test_degenerate_clouds_never_give_nan(name: str, dtype: torch.dtype, backend: str, with_scale: bool) -> None:
    source, target, weights = (x.clone().requires_grad_() for x in degenerate_clouds(dtype)[name])
    result = procrustes_align(source, target, weights, with_scale=with_scale, backend=backend)
    for tensor in result:
        assert torch.isfinite(tensor).all()
    assert_rotations(result.R, {torch.float32: 5e-6, F64: 1e-13}[dtype])
    grads = torch.autograd.grad([x.sum() for x in result if x.requires_grad], [source, target, weights])
    for grad in grads:
        assert torch.isfinite(grad).all()
    # Several motions may be equally good; none is better than the float64 one, and a line goes to one place.
    x, y, w = (tensor.detach().double() for tensor in (source, target, weights))
    wanted = procrustes_align(x, y, w, with_scale=with_scale, backend="reference")
    tolerance = {torch.float32: 2e-5, F64: 1e-12}[dtype]
    cost, best = ((w * (points.double() - y).square().sum(-1)).sum(-1) for points in (result.aligned, wanted.aligned))
    torch.testing.assert_close(cost, best, rtol=tolerance, atol=tolerance)
    if name == "collinear source":
        torch.testing.assert_close(result.aligned.double(), wanted.aligned, rtol=0, atol=tolerance)
    if not ("collinear" in name or name in ("coincident target", "planar mirrored", "two points")):
        assert torch.equal(result.R.detach(), torch.eye(3, dtype=dtype).expand(3, 3, 3))
        assert torch.equal(result.scale.detach(), torch.ones(3, dtype=dtype))
    if name in ("no points", "no weight"):
        assert torch.equal(result.t.detach(), torch.zeros(3, 3, dtype=dtype))


def test_gradient_of_an_exact_alignment_is_finite(tiny: torch.Generator, backend: str) -> None:
    """A perfect prediction, the usual end of training: aligned points follow the target."""
    source, target, *_ = similar_clouds(tiny, 4, 22)
    target = target.requires_grad_()
    aligned = procrustes_align(source, target, backend=backend).aligned
    (grad,) = torch.autograd.grad(aligned.sum(), target)
    torch.testing.assert_close(grad, torch.ones_like(target), rtol=0, atol=1e-11)  # a shift moves both alike


# ---- reference values made by the original implementations ----


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def quat_matrix(wxyz: Tensor) -> Tensor:
    """|q|^2 R(q): what multiplying by a quaternion that is not normalised does."""
    w, x, y, z = wxyz.unbind(-1)
    rows = [
        *(w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z),
    ]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


@pytest.mark.golden
def test_golden_forward_kinematics(golden_dir: Path, backend: str) -> None:
    files = sorted(golden_dir.glob("fk/fk*.npz"))
    assert files
    for path in files:
        data = {name: torch.from_numpy(array) for name, array in load(path).items()}
        kintree = load(golden_dir / "body" / "model.npz")["kintree_table"].astype(np.int32)
        parents = [int(parent) - 1 for parent in kintree[0, 1:]]
        unit = data["local_quats"] / data["local_quats"].norm(dim=-1, keepdim=True)
        body_only = unit.clone()
        J = data["local_quats"].shape[1]
        body_only[:, 21:] = torch.tensor([1.0, 0, 0, 0], dtype=F64)
        runs = [
            ("Ts_world_joint_f64", unit, F64, 1e-12),
            ("Ts_world_joint_nonunit_f64", data["local_quats_nonunit"], F64, 1e-12),
            ("Ts_world_joint_nohands_f64", body_only, F64, 1e-12),
            ("Ts_world_joint_f32", unit, torch.float32, 2e-5),
        ]
        for name, quats, dtype, tolerance in runs:
            offsets = data["t_parent_joint_f32" if dtype == torch.float32 else "t_parent_joint_f64"]
            result = forward_kinematics(
                quat_matrix(quats).to(dtype), offsets, parents, data["T_world_root"].to(dtype), backend=backend
            )
            expected = data[name].double()
            assert result.joints.shape == (len(unit), J, 3)
            assert_close(result.joints, expected[..., 4:], tolerance)
            assert_close(result.R_world_joint, quat_matrix(expected[..., :4]), tolerance)


@pytest.mark.golden
def test_golden_projected_matrices(golden_dir: Path, backend: str) -> None:
    files = sorted(golden_dir.glob("fk/lie*.npz"))
    assert files
    for path in files:
        data = load(path)
        matrices, expected = torch.from_numpy(data["matrices"]), torch.from_numpy(data["matrices_svd_projected"])
        assert_close(project_so3(matrices, fix_det=False, backend=backend), expected, 1e-12)
        assert_close(project_so3(matrices.float(), fix_det=False, backend=backend), expected, 2e-5)
        proper = torch.linalg.det(expected) > 0
        assert_close(project_so3(matrices, backend=backend)[proper], expected[proper], 1e-12)
        assert not proper.all() and proper.any()


@pytest.mark.golden
def test_golden_procrustes(golden_dir: Path, backend: str) -> None:
    files = sorted(golden_dir.glob("metrics/procrustes*.npz"))
    assert files
    for path in files:
        data = load(path)
        x, y = torch.from_numpy(data["points_x"]), torch.from_numpy(data["points_y"])
        for prefix, with_scale in (("sim", True), ("fixscale", False)):
            for suffix, dtype, tolerance in (("f64", F64, 1e-9), ("f32", torch.float32, 2e-5)):
                result = procrustes_align(x.to(dtype), y.to(dtype), with_scale=with_scale, backend=backend)
                keys = ("s", "R", "t", "aligned_x")
                wanted = {key: torch.from_numpy(data[f"{prefix}_{key}_{suffix}"]) for key in keys}
                assert_close(result.aligned, wanted["aligned_x"], tolerance)
                assert_close(result.R, wanted["R"], tolerance)
                assert_close(result.t, wanted["t"], tolerance)
                assert_close(result.scale[:, None], wanted["s"], tolerance)
