"""forward_kinematics: what defines each representation, output, shape and placement; edges; reference values."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mgrpo import kernels
from mgrpo.kernels import BackendError, ForwardKinematics, forward_kinematics, joint_offsets
from mgrpo.kernels._library import call_op
from mgrpo.kernels._spec import Case
from mgrpo.kernels.kinematics.spec import BODY_HEAD, BODY_PARENTS, SMALL_HEAD, SMALL_TREE, SPECS
from tests.golden import golden_file, golden_files

SPEC, _ = SPECS
CASES = [pytest.param(case, id=case.name) for case in SPEC.cases]
FULL_CASES = [pytest.param(case, id=case.name) for case in SPEC.cases if 0 not in case.sizes["batch"]]
DTYPES = [pytest.param(torch.float32, id="f32"), pytest.param(torch.float64, id="f64")]
F64 = torch.float64
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REPRESENTATIONS = ("matrix", "quaternion", "rot6d")
OUTPUTS = ("matrix", "quaternion", "positions")
TOLERANCE = {torch.float32: 5e-6, F64: 1e-13}


@pytest.fixture(params=kernels.BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param not in kernels.available_backends("forward_kinematics"):
        pytest.skip(kernels.explain_backend("forward_kinematics"))
    return request.param


@pytest.fixture
def fused(backend: str) -> str:
    if backend == "reference":
        pytest.skip("the reference is plain torch")
    return backend


def leaves_of(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [x.detach().clone().requires_grad_() for x in inputs]


def probes_for(results: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(77)
    return [torch.randn(r.shape, generator=generator, dtype=F64).to(r.device, r.dtype) for r in results]


def run(case: Case, inputs: Sequence[Tensor], backend: str) -> tuple[list[Tensor], list[Tensor]]:
    leaves = leaves_of(inputs)
    results = SPEC.call(case, *leaves, backend=backend)
    torch.autograd.backward(results, probes_for(results))
    return [r.detach() for r in results], [leaf.grad for leaf in leaves]


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=F64).to(DEVICE)


def quat_matrix(wxyz: Tensor) -> Tensor:
    """|q|^2 R(q): what multiplying by a quaternion that is not normalised does."""
    w, x, y, z = wxyz.unbind(-1)
    rows = [
        *(w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z),
    ]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def unit(quats: Tensor) -> Tensor:
    return quats / quats.norm(dim=-1, keepdim=True)


def represented(quats: Tensor, representation: str) -> Tensor:
    """The rotations of unit quaternions."""
    R = quat_matrix(quats)
    return {"matrix": R, "quaternion": quats, "rot6d": R[..., :2].mT.flatten(-2)}[representation]


def transform(quat: Tensor, t: Tensor) -> Tensor:
    """4x4 matrices of unit quaternions and translations."""
    T = torch.eye(4, dtype=quat.dtype, device=quat.device).repeat(*quat.shape[:-1], 1, 1)
    T[..., :3, :3], T[..., :3, 3] = quat_matrix(quat), t
    return T


def chain(quats: Tensor, offsets: Tensor, parents: Sequence[int], root: Tensor) -> Tensor:
    """(*batch, J, 4, 4) poses: for each joint on its own, the product of the 4x4 matrices on its path from the root."""
    steps = transform(quats, offsets.expand(*quats.shape[:-1], 3))
    poses = []
    for joint in range(len(parents)):
        pose = steps[..., joint, :, :]
        while (joint := parents[joint]) >= 0:
            pose = steps[..., joint, :, :] @ pose
        poses.append(root @ pose)
    return torch.stack(poses, dim=-3)


def rotation_of(result: ForwardKinematics) -> Tensor:
    return result.R_world_joint if result.R_world_joint is not None else quat_matrix(result.q_world_joint)


# ---- every representation, output and placement, against products of 4x4 matrices ----


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_equals_products_of_homogeneous_matrices(
    tiny: torch.Generator, backend: str, representation: str, output: str
) -> None:
    quats, offsets = unit(normal(tiny, 3, 8, 4)), normal(tiny, 8, 3)
    T = normal(tiny, 3, 7)
    poses = chain(quats, offsets, SMALL_TREE, transform(unit(T[:, :4]), T[:, 4:]))
    lengths = {"matrix": 1.0, "quaternion": -3.0, "rot6d": 0.2}[representation]  # which must not matter
    result = forward_kinematics(
        lengths * represented(quats, representation),
        offsets,
        SMALL_TREE,
        T,
        representation=representation,
        output=output,
        backend=backend,
    )
    torch.testing.assert_close(result.joints, poses[..., :3, 3], rtol=0, atol=1e-12)
    assert (result.R_world_joint is None) == (output != "matrix")
    assert (result.q_world_joint is None) == (output != "quaternion")
    assert result.T_world_root is None
    if output != "positions":
        torch.testing.assert_close(rotation_of(result), poses[..., :3, :3], rtol=0, atol=1e-12)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_the_pupil_frame_is_where_it_was_put(
    tiny: torch.Generator, backend: str, representation: str, output: str
) -> None:
    quats, offsets = unit(normal(tiny, 3, 8, 4)), normal(tiny, 8, 3)
    cpf, t_head_cpf = normal(tiny, 3, 7), normal(tiny, 3)
    wanted = transform(unit(cpf[:, :4]), cpf[:, 4:])
    result = forward_kinematics(
        represented(quats, representation),
        offsets,
        SMALL_TREE,
        T_world_cpf=cpf,
        t_head_cpf=t_head_cpf,
        head=SMALL_HEAD,
        representation=representation,
        output=output,
        backend=backend,
    )
    assert torch.allclose(result.T_world_root[:, :4].norm(dim=-1), torch.ones(3, dtype=F64, device=DEVICE))
    root = transform(result.T_world_root[:, :4], result.T_world_root[:, 4:])
    poses = chain(quats, offsets, SMALL_TREE, root)
    torch.testing.assert_close(result.joints, poses[..., :3, 3], rtol=0, atol=1e-12)
    if output != "positions":
        torch.testing.assert_close(rotation_of(result), poses[..., :3, :3], rtol=0, atol=1e-12)
    found = poses[:, SMALL_HEAD] @ transform(torch.eye(4, dtype=F64, device=DEVICE)[0], t_head_cpf)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    # Moving the body by its root to the same place gives the same joints.
    again = forward_kinematics(
        represented(quats, representation),
        offsets,
        SMALL_TREE,
        result.T_world_root,
        representation=representation,
        backend=backend,
    )
    torch.testing.assert_close(again.joints, result.joints, rtol=0, atol=1e-12)


def test_a_straight_chain_bends_as_the_closed_form_says(backend: str) -> None:
    """Every joint turns by the same angle about z: link k points along k times the angle."""
    J, angle, length = 12, 0.3, 0.25
    quat = torch.tensor([math.cos(angle / 2), 0, 0, math.sin(angle / 2)], dtype=F64, device=DEVICE)
    offsets = torch.tensor([length, 0, 0], dtype=F64, device=DEVICE).expand(J, 3)
    result = forward_kinematics(
        quat.expand(J, 4), offsets, range(-1, J - 1), representation="quaternion", output="quaternion", backend=backend
    )
    link = angle * torch.arange(J, dtype=F64, device=DEVICE)
    x, y = length * link.cos().cumsum(0), length * link.sin().cumsum(0)
    torch.testing.assert_close(result.joints, torch.stack([x, y, 0 * x], -1), rtol=0, atol=1e-13)
    half = (link + angle) / 2
    wanted = torch.stack([half.cos(), 0 * half, 0 * half, half.sin()], -1)  # the product's sign, past a half turn too
    torch.testing.assert_close(result.q_world_joint, wanted, rtol=0, atol=1e-13)


def test_offsets_are_linear_in_betas(tiny: torch.Generator, backend: str) -> None:
    rotations, mean = unit(normal(tiny, 2, 5, 8, 4)), normal(tiny, 8, 3)
    directions, betas = normal(tiny, 8, 3, 16), normal(tiny, 2, 1, 16)
    options = {"representation": "quaternion", "output": "positions", "backend": backend}
    with_betas = forward_kinematics(
        rotations, mean, SMALL_TREE, betas=betas, t_parent_joint_shapedirs=directions, **options
    )
    offsets = mean + torch.einsum("jks,bts->btjk", directions, betas)
    plain = forward_kinematics(rotations, offsets, SMALL_TREE, **options)
    torch.testing.assert_close(with_betas.joints, plain.joints, rtol=0, atol=1e-12)
    zero = forward_kinematics(
        rotations, mean, SMALL_TREE, betas=0 * betas[0, 0], t_parent_joint_shapedirs=directions, **options
    )
    torch.testing.assert_close(
        zero.joints, forward_kinematics(rotations, mean, SMALL_TREE, **options).joints, rtol=0, atol=1e-14
    )


# ---- invariances ----


@pytest.mark.parametrize("dtype", DTYPES)
def test_offsets_alone(tiny: torch.Generator, backend: str, dtype: torch.dtype) -> None:
    """Values and gradients are those of the sum over shape numbers, in any batch."""
    template, shapedirs, betas = normal(tiny, 5, 3), normal(tiny, 5, 3, 16), normal(tiny, 4, 3, 16)
    expected_leaves = leaves_of([template, shapedirs, betas])
    expected = expected_leaves[0] + torch.einsum("jxs,...s->...jx", *expected_leaves[1:])
    leaves = leaves_of([x.to(DEVICE, dtype) for x in (template, shapedirs, betas)])
    found = joint_offsets(*leaves, backend=backend)
    (probe,) = probes_for([expected])
    expected.backward(probe)
    found.backward(probe.to(DEVICE, dtype))
    close = {"rtol": 0, "atol": 20 * TOLERANCE[dtype], "check_dtype": False, "check_device": False}
    torch.testing.assert_close(found, expected, **close)
    for ours, theirs in zip(leaves, expected_leaves, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, **close)
    for shape in ((16,), (0, 16)):
        assert joint_offsets(*leaves[:2], leaves[2].new_zeros(shape), backend=backend).shape == (*shape[:-1], 5, 3)


def test_offsets_of_a_shape_alone_are_those_in_a_batch(tiny: torch.Generator, fused: str) -> None:
    template, shapedirs, betas = (
        x.to(DEVICE, torch.float32) for x in (normal(tiny, 52, 3), normal(tiny, 52, 3, 16), normal(tiny, 70, 16))
    )
    whole = joint_offsets(template, shapedirs, betas, backend=fused)
    for rows in (slice(0, 1), slice(3, 10), slice(37, 70)):
        assert torch.equal(joint_offsets(template, shapedirs, betas[rows], backend=fused), whole[rows])


def test_a_quaternion_and_its_negative_are_one_rotation(tiny: torch.Generator, backend: str) -> None:
    quats, offsets, T = normal(tiny, 40, 8, 4), normal(tiny, 8, 3), normal(tiny, 40, 7)
    signs = (torch.randint(0, 2, (40, 8, 1), generator=tiny) * 2 - 1).to(quats)
    flipped_root = T * torch.tensor([-1.0] * 4 + [1.0] * 3, dtype=F64, device=DEVICE)
    for output in OUTPUTS:
        options = {"representation": "quaternion", "output": output, "backend": backend}
        leaves = leaves_of([quats, signs * quats])
        a = forward_kinematics(leaves[0], offsets, SMALL_TREE, T, **options)
        b = forward_kinematics(leaves[1], offsets, SMALL_TREE, flipped_root, **options)
        torch.testing.assert_close(a.joints, b.joints, rtol=0, atol=1e-13)
        if output != "positions":
            torch.testing.assert_close(rotation_of(a), rotation_of(b), rtol=0, atol=1e-13)
        weights = torch.arange(a.joints.numel(), dtype=F64, device=DEVICE).sin().reshape(a.joints.shape)
        grads = torch.autograd.grad([(weights * r.joints).sum() for r in (a, b)], leaves)
        torch.testing.assert_close(grads[0], signs * grads[1], rtol=1e-10, atol=1e-12)


def test_only_the_direction_of_quaternions_and_columns_counts(tiny: torch.Generator, backend: str) -> None:
    offsets, T = normal(tiny, 8, 3), normal(tiny, 5, 7)
    for representation, numbers in (("quaternion", 4), ("rot6d", 6)):
        rotations = normal(tiny, 5, 8, numbers)
        factor = torch.rand(5, 8, 1, generator=tiny, dtype=F64).to(DEVICE) + 0.1
        options = {"representation": representation, "backend": backend}
        a = forward_kinematics(rotations, offsets, SMALL_TREE, T, **options)
        b = forward_kinematics(factor * rotations, offsets, SMALL_TREE, T, **options)
        torch.testing.assert_close(a.R_world_joint, b.R_world_joint, rtol=0, atol=1e-12)
        # So the gradient has no part along them.
        (leaf,) = leaves_of([rotations])
        forward_kinematics(leaf, offsets, SMALL_TREE, T, **options).joints.sin().sum().backward()
        along = (leaf.grad * rotations).unflatten(-1, (-1, 2 if representation == "quaternion" else 3)).sum((-1, -2))
        torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-12)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_moving_the_root_moves_everything(tiny: torch.Generator, backend: str, representation: str) -> None:
    rotations = represented(unit(normal(tiny, 4, 8, 4)), representation)
    offsets, T = normal(tiny, 8, 3), normal(tiny, 4, 7)
    options = {"representation": representation, "backend": backend}
    still = forward_kinematics(rotations, offsets, SMALL_TREE, **options)
    moved = forward_kinematics(rotations, offsets, SMALL_TREE, T, **options)
    M = transform(unit(T[:, :4]), T[:, 4:])[:, None]
    joints = (M[..., :3, :3] @ still.joints[..., None])[..., 0] + M[..., :3, 3]
    torch.testing.assert_close(moved.joints, joints, rtol=0, atol=1e-12)
    torch.testing.assert_close(moved.R_world_joint, M[..., :3, :3] @ still.R_world_joint, rtol=0, atol=1e-12)


def test_moving_the_pupil_frame_moves_everything(tiny: torch.Generator, backend: str) -> None:
    quats, offsets, cpf = unit(normal(tiny, 4, 8, 4)), normal(tiny, 8, 3), normal(tiny, 4, 7)
    turn, shift = unit(normal(tiny, 4)), normal(tiny, 3)
    M = transform(turn, shift)
    options = {"representation": "quaternion", "t_head_cpf": normal(tiny, 3), "head": SMALL_HEAD, "backend": backend}
    moved_cpf = cpf.clone()
    moved_cpf[:, 4:] = cpf[:, 4:] @ M[:3, :3].T + shift
    w, xyz = turn[0], turn[1:].expand(4, 3)
    v, u = cpf[:, 0], cpf[:, 1:4]
    moved_cpf[:, 0] = w * v - (xyz * u).sum(-1)
    moved_cpf[:, 1:4] = w * u + v[:, None] * xyz + torch.linalg.cross(xyz, u)
    a = forward_kinematics(quats, offsets, SMALL_TREE, T_world_cpf=cpf, **options)
    b = forward_kinematics(quats, offsets, SMALL_TREE, T_world_cpf=moved_cpf, **options)
    torch.testing.assert_close(b.joints, a.joints @ M[:3, :3].T + shift, rtol=0, atol=1e-12)
    torch.testing.assert_close(b.R_world_joint, M[:3, :3] @ a.R_world_joint, rtol=0, atol=1e-12)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_the_order_of_siblings_does_not_matter(tiny: torch.Generator, fused: str, representation: str) -> None:
    """Renaming joints, parents still first, renames results: bit for bit going forward, where nothing is summed."""
    order = [3, 0, 2, 7, 1, 4, 6, 5]  # new joint i is old joint order[i]
    parents = tuple(-1 if SMALL_TREE[old] < 0 else order.index(SMALL_TREE[old]) for old in order)
    assert all(parent < joint for joint, parent in enumerate(parents))
    rotations = represented(unit(normal(tiny, 19, 8, 4)), representation).float()
    offsets, T = normal(tiny, 19, 8, 3).float(), normal(tiny, 19, 7).float()
    leaves, renamed = leaves_of([rotations, offsets, T]), leaves_of([rotations[:, order], offsets[:, order], T])
    options = {"representation": representation, "backend": fused}
    a = forward_kinematics(leaves[0], leaves[1], SMALL_TREE, leaves[2], **options)
    b = forward_kinematics(renamed[0], renamed[1], parents, renamed[2], **options)
    assert torch.equal(a.joints[:, order], b.joints)
    assert torch.equal(a.R_world_joint[:, order], b.R_world_joint)
    weights = normal(tiny, *a.joints.shape).float()
    (weights * a.joints).sum().backward()
    (weights[:, order] * b.joints).sum().backward()
    for given, other in zip(leaves, renamed, strict=True):
        grad = given.grad if given.grad.shape == T.shape else given.grad[:, order]
        torch.testing.assert_close(grad, other.grad, rtol=1e-4, atol=1e-5)


# ---- every case of the spec: gradients, rows, bad rows, layouts ----


def shrunk(case: Case) -> Case:
    """The case with at most two poses per axis."""
    sizes = {
        name: tuple(min(s, 2) for s in size) if name.endswith("batch") and isinstance(size, tuple) else size
        for name, size in case.sizes.items()
    }
    if case.sizes["parents"] == BODY_PARENTS:
        sizes["parents"] = SMALL_TREE
    return Case(case.name, sizes, case.options)


@pytest.mark.parametrize("case", FULL_CASES)
def test_gradcheck(case: Case, backend: str) -> None:
    if backend in ("triton", "cuda") and DEVICE.type == "cpu":
        pytest.skip("too slow without a GPU; gradients are compared with the reference's elsewhere")
    case = shrunk(case)
    leaves = leaves_of(SPEC.make_inputs(case, F64, DEVICE, 8))
    assert torch.autograd.gradcheck(lambda *x: SPEC.call(case, *x, backend=backend), leaves, fast_mode=True)


def rows_of(case: Case, dtype: torch.dtype) -> tuple[Case, list[Tensor], list[int]]:
    """The case with its batched inputs expanded to one batch axis, and the positions of these inputs."""
    inputs = SPEC.make_inputs(case, dtype, DEVICE, 21)
    trailing = [3 if case.options.get("representation", "matrix") == "matrix" else 2, 2]
    trailing += [None, 1] if "betas_batch" in case.sizes else []  # shapedirs are shared by all
    trailing += [1] * (len(inputs) - len(trailing))
    if "betas_batch" in case.sizes:
        trailing[1] = None
    batch = case.sizes["batch"]
    flat = [
        x if n is None else x.expand(*batch, *x.shape[x.dim() - n :]).reshape(-1, *x.shape[x.dim() - n :])
        for x, n in zip(inputs, trailing, strict=True)
    ]
    return case, flat, [i for i, n in enumerate(trailing) if n is not None]


def needs_time(case: Case, backend: str) -> None:
    """Triton's interpreter takes seconds a case: there, the cases that between them reach every line are enough."""
    few = ("body_per_sequence_offsets", "quaternion_to_quaternion", "shape_per_pose", "cpf_rot6d", "cpf")
    if backend == "triton" and DEVICE.type == "cpu" and case.name not in few:
        pytest.skip("interpreted kernels are tested on fewer cases")


@pytest.mark.parametrize("case", [p for p in FULL_CASES if p.values[0].sizes["batch"]])
def test_a_pose_alone_equals_the_pose_in_a_batch(case: Case, fused: str) -> None:
    needs_time(case, fused)
    case, inputs, batched = rows_of(case, torch.float32)
    results, grads = run(case, inputs, fused)
    probes = probes_for(results)
    for row in (0, len(inputs[0]) - 1):
        leaves = leaves_of([x[row] if i in batched else x for i, x in enumerate(inputs)])
        alone = SPEC.call(case, *leaves, backend=fused)
        torch.autograd.backward(alone, [probe[row] for probe in probes])
        for a, b in zip(alone, results, strict=True):
            assert torch.equal(a, b[row])
        for i in batched:
            assert torch.equal(leaves[i].grad, grads[i][row])


@pytest.mark.parametrize("case", [p for p in FULL_CASES if math.prod(p.values[0].sizes["batch"]) > 3])
def test_a_bad_pose_touches_no_other(case: Case, fused: str) -> None:
    needs_time(case, fused)
    case, inputs, batched = rows_of(case, torch.float32)
    clean, clean_grads = run(case, inputs, fused)
    bad = {1: math.nan, 2: math.inf}
    others = torch.tensor([row not in bad for row in range(len(inputs[0]))], device=DEVICE)
    for position in batched:
        spoilt = [x.clone() for x in inputs]
        for row, value in bad.items():
            spoilt[position][row].view(-1)[0] = value
        results, grads = run(case, spoilt, fused)
        for row in bad:
            assert not all(torch.isfinite(result[row]).all() for result in results)
        for a, b in zip(results, clean, strict=True):
            assert torch.equal(a[others], b[others])
        for i in batched:
            assert torch.equal(grads[i][others], clean_grads[i][others])


@pytest.mark.parametrize("name", ["quaternion_to_quaternion", "cpf_rot6d", "shape_per_sequence", "cpf"])
def test_strided_and_expanded_inputs(name: str, backend: str) -> None:
    case = next(case for case in SPEC.cases if case.name == name)
    inputs = SPEC.make_inputs(case, F64, DEVICE, 4)
    wanted, wanted_grads = run(case, inputs, backend)

    def check(tensors: Sequence[Tensor]) -> None:
        leaves = [x.detach().requires_grad_() for x in tensors]
        results = SPEC.call(case, *leaves, backend=backend)
        probes = [torch.stack([probe, probe], dim=-1)[..., 0] for probe in probes_for(results)]
        torch.autograd.backward(results, probes)
        for result, expected in zip(results, wanted, strict=True):
            torch.testing.assert_close(result.detach(), expected, rtol=0, atol=1e-13)
        for leaf, grad in zip(leaves, wanted_grads, strict=True):
            torch.testing.assert_close(leaf.grad, grad, rtol=0, atol=1e-12)

    check([torch.stack([x, torch.full_like(x, 9.0)], dim=-1)[..., 0] for x in inputs])  # gaps inside rows
    check([torch.stack([x, torch.full_like(x, 9.0)])[0] for x in inputs])
    check([x.transpose(0, -1).contiguous().transpose(0, -1) for x in inputs])


def test_a_batch_of_many_interleaved_axes(tiny: torch.Generator, backend: str) -> None:
    """More strides than a kernel's description of a broadcast argument holds: then it is copied."""
    batch = (2, 3, 2, 2, 2, 3)
    quats, offsets, T = normal(tiny, *batch, 3, 4), normal(tiny, 2, 1, 2, 1, 2, 1, 3, 3), normal(tiny, 3, 1, 2, 1, 3, 7)
    options = {"representation": "quaternion", "output": "positions"}
    found = forward_kinematics(quats, offsets, (-1, 0, 0), T, backend=backend, **options).joints
    full = (offsets.expand(*batch, 3, 3).contiguous(), T.expand(*batch, 7).contiguous())
    wanted = forward_kinematics(quats, full[0], (-1, 0, 0), full[1], backend="reference", **options).joints
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("case", CASES)
def test_opcheck(case: Case, fused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if case.name not in ("body_per_sequence_offsets", "cpf_and_shape", "rot6d_to_positions", "cpf_empty"):
        pytest.skip("four cases call the operator in every way that matters to torch")
    if fused == "triton" and DEVICE.type == "cpu":
        pytest.skip("the operator is the same one; interpreted, this takes minutes")
    calls: list[tuple[object, tuple]] = []

    def record(operator: str, *args: object) -> object:
        calls.append((getattr(torch.ops.mgrpo, operator).default, args))
        return call_op(operator, *args)

    monkeypatch.setattr("mgrpo.kernels.kinematics.call_op", record)
    SPEC.call(case, *leaves_of(SPEC.make_inputs(case, torch.float32, DEVICE, 5)), backend=fused)
    monkeypatch.undo()
    assert calls
    for op, args in calls:
        args = tuple(a.detach().clone().requires_grad_() if isinstance(a, Tensor) else a for a in args)
        torch.library.opcheck(op, args)


@pytest.mark.parametrize("name", ["quaternion_to_positions", "cpf_rot6d", "shape_per_sequence"])
def test_compiles_to_one_graph(name: str, backend: str) -> None:
    torch._dynamo.reset()
    case = shrunk(next(case for case in SPEC.cases if case.name == name))
    inputs = SPEC.make_inputs(case, F64, DEVICE, 5)
    compiled = torch.compile(
        lambda *x: SPEC.call(case, *x, backend=backend), fullgraph=True, backend="aot_eager", dynamic=False
    )
    leaves = leaves_of(inputs)
    results = compiled(*leaves)
    torch.autograd.backward(results, probes_for(results))
    wanted, wanted_grads = run(case, inputs, backend)
    for result, expected in zip(results, wanted, strict=True):
        torch.testing.assert_close(result.detach(), expected, rtol=0, atol=1e-12)
    for leaf, grad in zip(leaves, wanted_grads, strict=True):
        torch.testing.assert_close(leaf.grad, grad, rtol=1e-10, atol=1e-12)


def test_gradients_of_one_result_alone(fused: str) -> None:
    """What nothing depends on is not asked of the kernels: as if its gradient were zero."""
    case = next(case for case in SPEC.cases if case.name == "cpf_and_shape")
    inputs = SPEC.make_inputs(case, F64, DEVICE, 6)
    for index in range(3):
        grads = {}
        for name in ("reference", fused):
            leaves = leaves_of(inputs)
            result = SPEC.call(case, *leaves, backend=name)[index]
            result.backward(probes_for([result])[0])
            grads[name] = [leaf.grad for leaf in leaves]
        for a, b in zip(grads["reference"], grads[fused], strict=True):
            if a is not None and b is not None:
                torch.testing.assert_close(b, a, rtol=0, atol=1e-12)
            else:  # a kernel gives zeros where autograd sees that nothing depends on an input
                assert all(grad is None or not grad.any() for grad in (a, b))


def test_thread_count_changes_nothing(tiny: torch.Generator) -> None:
    if "cpp" not in kernels.available_backends("forward_kinematics"):
        pytest.skip(kernels.explain_backend("forward_kinematics"))
    inputs = [normal(tiny, 700, 21, 4).cpu().float(), normal(tiny, 700, 21, 3).cpu().float()]
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaves = leaves_of(inputs)
            result = forward_kinematics(
                leaves[0], leaves[1], BODY_PARENTS, representation="quaternion", output="quaternion", backend="cpp"
            )
            (result.joints.square().sum() + result.q_world_joint.sum()).backward()
            found.append((result.joints, result.q_world_joint, leaves[0].grad, leaves[1].grad))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


# ---- edges ----


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_a_large_batch_equals_its_parts(representation: str, output: str) -> None:
    """Large results go to memory past the caches, small ones do not."""
    if "cpp" not in kernels.available_backends("forward_kinematics"):
        pytest.skip(kernels.explain_backend("forward_kinematics"))
    J, numbers = len(BODY_PARENTS), {"matrix": 9, "quaternion": 4, "rot6d": 6}[representation]
    frames = 2**19 // (J * numbers) + 5  # and a last block that is not full
    generator = torch.Generator().manual_seed(5)
    quats = unit(torch.randn(frames, J, 4, generator=generator))
    rotations = represented(quats, representation).contiguous()
    offsets = torch.randn(frames, J, 3, generator=generator)

    def results(part: slice) -> list[Tensor]:
        leaves = leaves_of([rotations[part], offsets[part]])
        fk = forward_kinematics(
            leaves[0], leaves[1], BODY_PARENTS, representation=representation, output=output, backend="cpp"
        )
        outputs = [r for r in (fk.joints, fk.R_world_joint, fk.q_world_joint) if r is not None]
        torch.autograd.backward(outputs, [torch.cos(r.detach()) for r in outputs])
        return [*(r.detach() for r in outputs), *(leaf.grad for leaf in leaves)]

    whole, parts = results(slice(None)), [results(slice(i, i + 1000)) for i in range(0, frames, 1000)]
    for result, pieces in zip(whole, zip(*parts)):
        assert torch.equal(result, torch.cat(pieces))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_zero_quaternion_is_the_identity(backend: str, dtype: torch.dtype) -> None:
    quats = torch.zeros(4, 2, 4, dtype=dtype, device=DEVICE)
    quats[1:, 0] = torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0], [-0.5, 0.5, 0.5, 0.5]], dtype=dtype)
    T = torch.zeros(7, dtype=dtype, device=DEVICE, requires_grad=True)
    leaf = quats.requires_grad_()
    offsets = torch.ones(2, 3, dtype=dtype, device=DEVICE)
    result = forward_kinematics(leaf, offsets, (-1, 0), T, representation="quaternion", backend=backend)
    eye = torch.eye(3, dtype=dtype, device=DEVICE)
    assert torch.equal(result.R_world_joint[0].detach(), eye.expand(2, 3, 3))
    torch.testing.assert_close(result.R_world_joint[:, 1], result.R_world_joint[:, 0], rtol=0, atol=TOLERANCE[dtype])
    torch.autograd.backward([result.joints.sin().sum(), result.R_world_joint.sin().sum()])
    zero = (quats == 0).all(-1)
    assert torch.equal(leaf.grad[zero], torch.zeros_like(leaf.grad[zero]))
    assert leaf.grad[~zero].abs().sum() > 0.1 and torch.equal(T.grad[:4], torch.zeros(4, dtype=dtype, device=DEVICE))
    assert T.grad[4:].abs().sum() > 0.1


@pytest.mark.parametrize("dtype", DTYPES)
def test_six_numbers_that_give_no_rotation_are_the_identity(backend: str, dtype: torch.dtype) -> None:
    a = [0.3, -1.0, 2.0]
    rows = [[0.0] * 3 + a, a + [0.0] * 3, a + a, a + [-2 * x for x in a], [0.0] * 6]
    leaf = torch.tensor(rows, dtype=dtype, device=DEVICE)[:, None].requires_grad_()
    offsets = torch.zeros(1, 3, dtype=dtype, device=DEVICE)
    result = forward_kinematics(leaf, offsets, (-1,), representation="rot6d", backend=backend)
    assert torch.equal(result.R_world_joint.detach(), torch.eye(3, dtype=dtype, device=DEVICE).expand(5, 1, 3, 3))
    result.R_world_joint.sin().sum().backward()
    assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("magnitude", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("representation", ["quaternion", "rot6d"])
def test_huge_and_tiny_numbers_mean_the_same_rotation(
    tiny: torch.Generator, backend: str, representation: str, magnitude: float
) -> None:
    rotations = normal(tiny, 20, 8, {"quaternion": 4, "rot6d": 6}[representation]).float()
    offsets = normal(tiny, 8, 3).float()
    factor = torch.ones(20, 8, 1, device=DEVICE)
    factor[::3, ::2] = magnitude  # beside ordinary ones, in lanes of the same register
    plain, scaled = leaves_of([rotations, factor * rotations])
    options = {"representation": representation, "output": "quaternion", "backend": backend}
    a = forward_kinematics(plain, offsets, SMALL_TREE, **options)
    b = forward_kinematics(scaled, offsets, SMALL_TREE, **options)
    torch.testing.assert_close(a.joints, b.joints, rtol=0, atol=5e-6)
    torch.testing.assert_close(a.q_world_joint, b.q_world_joint, rtol=0, atol=5e-6)
    weights = normal(tiny, *a.joints.shape).float()
    grads = torch.autograd.grad([(weights * r.joints).sum() for r in (a, b)], [plain, scaled])
    torch.testing.assert_close(grads[1] * factor, grads[0], rtol=1e-3, atol=1e-4)


def test_quaternions_of_matrices_at_every_kind_of_rotation(tiny: torch.Generator, backend: str) -> None:
    """Half turns, where w is zero, and both sides of each of its cases."""
    axes = torch.eye(3, dtype=F64, device=DEVICE)
    half_turns = [torch.cat([torch.zeros(1, dtype=F64, device=DEVICE), axis]) for axis in (*axes, unit(axes.sum(0)))]
    quats = torch.cat([torch.stack(half_turns), unit(normal(tiny, 200, 4)), torch.eye(4, dtype=F64, device=DEVICE)[:1]])
    offsets = torch.zeros(1, 3, dtype=F64, device=DEVICE)
    result = forward_kinematics(quat_matrix(quats)[:, None], offsets, (-1,), output="quaternion", backend=backend)
    found = result.q_world_joint[:, 0]
    sign = (found * quats).sum(-1, keepdim=True).sign()
    torch.testing.assert_close(found, sign * quats, rtol=0, atol=1e-14)


def test_empty_batches(backend: str) -> None:
    for case in (p.values[0] for p in CASES if 0 in p.values[0].sizes["batch"]):
        results, grads = run(case, SPEC.make_inputs(case, torch.float32, DEVICE, 1), backend)
        assert all(r.shape[: len(case.sizes["batch"])] == case.sizes["batch"] for r in results)
        for grad in grads:
            assert grad is None or not grad.any()


def test_any_sequence_of_integers_is_a_tree(backend: str) -> None:
    local, offsets = torch.eye(3, device=DEVICE).expand(3, 3, 3), torch.ones(3, 3, device=DEVICE)
    expected = forward_kinematics(local, offsets, (-1, 0, 1), backend=backend)
    for parents in ([-1, 0, 1], np.array([-1, 0, 1]), range(-1, 2)):
        assert torch.equal(forward_kinematics(local, offsets, parents, backend=backend).joints, expected.joints)


def test_vmap_of_the_reference(tiny: torch.Generator) -> None:
    inputs = represented(unit(normal(tiny, 4, 8, 4)), "matrix"), normal(tiny, 4, 8, 3), normal(tiny, 4, 7)

    def function(R: Tensor, t: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
        result = forward_kinematics(R, t, SMALL_TREE, T, backend="reference")
        return result.joints, result.R_world_joint

    for a, b in zip(torch.func.vmap(function)(*inputs), function(*inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_large_trees(tiny: torch.Generator, backend: str) -> None:
    """A chain of 200 joints; more than the CUDA kernels have room for is refused with the reason."""
    J = 200
    quats, offsets = normal(tiny, 3, J, 4).float(), normal(tiny, J, 3).float()
    options = {"representation": "quaternion", "output": "positions"}
    result = forward_kinematics(quats, offsets, range(-1, J - 1), backend=backend, **options)
    wanted = forward_kinematics(quats.double(), offsets.double(), range(-1, J - 1), backend="reference", **options)
    torch.testing.assert_close(result.joints.double(), wanted.joints, rtol=0, atol=1e-3)
    if backend == "cuda":
        with pytest.raises(BackendError, match="cuda: takes at most 256 joints, got 257"):
            forward_kinematics(
                quats[:, :1].expand(3, 257, 4), offsets[:1].expand(257, 3), range(-1, 256), backend=backend, **options
            )


# ---- errors ----

zeros = torch.zeros
J3, OFFSETS, TREE = zeros(4, 3, 4), zeros(3, 3), (-1, 0, 1)
QUATERNION = {"representation": "quaternion"}
CPF = {"T_world_cpf": zeros(7), "t_head_cpf": zeros(3), "head": 2}
SHAPE = {"betas": zeros(16), "t_parent_joint_shapedirs": zeros(3, 3, 16)}
WRONG_CALLS = {
    "unknown representation": ((J3, OFFSETS, TREE), {"representation": "euler"}),
    "unknown output": ((J3, OFFSETS, TREE), {**QUATERNION, "output": "angles"}),
    "quaternions taken for matrices": ((J3, OFFSETS, TREE), {}),
    "quaternions of three numbers": ((zeros(4, 3, 3), OFFSETS, TREE), QUATERNION),
    "six numbers as two columns": ((zeros(3, 3, 2), OFFSETS, TREE), {"representation": "rot6d"}),
    "betas without directions": ((J3, OFFSETS, TREE), {**QUATERNION, "betas": zeros(16)}),
    "directions without betas": ((J3, OFFSETS, TREE), {**QUATERNION, "t_parent_joint_shapedirs": zeros(3, 3, 16)}),
    "other number of betas": ((J3, OFFSETS, TREE), {**QUATERNION, **SHAPE, "betas": zeros(10)}),
    "betas that do not broadcast": ((J3, OFFSETS, TREE), {**QUATERNION, **SHAPE, "betas": zeros(3, 16)}),
    "mean offsets with a batch": ((J3, zeros(4, 3, 3), TREE), {**QUATERNION, **SHAPE}),
    "betas of other dtype": ((J3, OFFSETS, TREE), {**QUATERNION, **SHAPE, "betas": zeros(16).double()}),
    "root and cpf": ((J3, OFFSETS, TREE, zeros(7)), {**QUATERNION, **CPF}),
    "cpf without head": ((J3, OFFSETS, TREE), {**QUATERNION, **CPF, "head": None}),
    "head without cpf": ((J3, OFFSETS, TREE), {**QUATERNION, "head": 2}),
    "head is no joint": ((J3, OFFSETS, TREE), {**QUATERNION, **CPF, "head": 3}),
    "head below 0": ((J3, OFFSETS, TREE), {**QUATERNION, **CPF, "head": -1}),
    "head a float": ((J3, OFFSETS, TREE), {**QUATERNION, **CPF, "head": 2.0}),
    "cpf as a matrix": ((J3, OFFSETS, TREE), {**QUATERNION, **CPF, "T_world_cpf": zeros(4, 4)}),
    "cpf that does not broadcast": ((J3, OFFSETS, TREE), {**QUATERNION, **CPF, "T_world_cpf": zeros(3, 7)}),
    "pupils elsewhere": ((J3, OFFSETS, TREE), {**QUATERNION, **CPF, "t_head_cpf": zeros(3, device="meta")}),
    "a remembered tree with a bool": ((J3, OFFSETS, (-1, False, 1)), QUATERNION),
}
MESSAGES = Path(__file__).with_name("kinematics_messages.json")


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_message(name: str) -> None:
    """Word for word; after a wanted change of wording: MGRPO_UPDATE_MESSAGES=1."""
    forward_kinematics(J3, OFFSETS, TREE, **QUATERNION)
    arguments, options = WRONG_CALLS[name]
    with pytest.raises((ValueError, TypeError)) as caught:
        forward_kinematics(*arguments, **options)
    message = f"{caught.type.__name__}: {caught.value}"
    assert re.match(r"\w+: forward_kinematics\(\): .* must .*, got ", message), message
    pinned = json.loads(MESSAGES.read_text()) if MESSAGES.exists() else {}
    if os.environ.get("MGRPO_UPDATE_MESSAGES") == "1":
        MESSAGES.write_text(json.dumps({**pinned, name: message}, indent=2, sort_keys=True) + "\n")
        return
    assert message == pinned[name]
    assert set(pinned) == set(WRONG_CALLS)


# ---- reference values made by the original implementations ----


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def same_quaternions(a: Tensor, b: Tensor) -> Tensor:
    """The error between two sets of unit quaternions, whatever their signs."""
    return torch.minimum((a - b).abs().amax(-1), (a + b).abs().amax(-1)).max()


@pytest.mark.golden
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_golden_poses_shapes_and_placement(backend: str, representation: str) -> None:
    files = golden_files("fk/fk*.npz")
    kintree = load(golden_file("body/*.npz"))["kintree_table"].astype(np.int32)
    parents = [int(parent) - 1 for parent in kintree[0, 1:]]
    for path in files:
        data = {name: torch.from_numpy(array).to(DEVICE) for name, array in load(path).items()}
        template, directions = data["J_template_f64"], data["J_shape_f64"]  # of all joints, the root first
        above = [parent + 1 for parent in parents]
        mean, shapedirs = template[1:] - template[above], directions[1:] - directions[above]
        head = BODY_HEAD
        t_head_cpf = (
            data["cpf_template_f64"]
            - template[1 + head]
            + torch.einsum("ks,bs->bk", data["cpf_shape_f64"] - directions[1 + head], data["betas"])
        )
        torch.testing.assert_close(t_head_cpf, data["T_head_cpf_f64"][:, 4:], rtol=0, atol=1e-9)
        rotations = represented(unit(data["local_quats"]), representation)
        for dtype, suffix, tolerance in ((F64, "f64", 1e-9), (torch.float32, "f32", 2e-5)):
            shape = {"t_parent_joint_shapedirs": shapedirs.to(dtype), "betas": data["betas"].to(dtype)}
            options = {"representation": representation, "output": "quaternion", "backend": backend, **shape}
            placed = forward_kinematics(
                rotations.to(dtype), mean.to(dtype), parents, data["T_world_root"].to(dtype), **options
            )
            wanted = data[f"Ts_world_joint_{suffix}"].double()
            assert (placed.joints.double() - wanted[..., 4:]).abs().max() < tolerance
            assert same_quaternions(placed.q_world_joint.double(), wanted[..., :4]) < tolerance
            under_cpf = forward_kinematics(
                rotations.to(dtype),
                mean.to(dtype),
                parents,
                T_world_cpf=data["Ts_world_cpf_target"].to(dtype),
                t_head_cpf=t_head_cpf.to(dtype),
                head=head,
                **options,
            )
            wanted = data[f"Ts_world_joint_from_cpf_{suffix}"].double()
            assert (under_cpf.joints.double() - wanted[..., 4:]).abs().max() < tolerance
            assert same_quaternions(under_cpf.q_world_joint.double(), wanted[..., :4]) < tolerance
            root = data[f"T_world_root_from_cpf_{suffix}"].double()
            assert (under_cpf.T_world_root.double() - root)[:, 4:].abs().max() < tolerance
            assert same_quaternions(under_cpf.T_world_root[:, :4].double(), root[:, :4]) < tolerance


@pytest.mark.golden
def test_golden_matrices_that_are_no_rotations(backend: str) -> None:
    """Matrices are chained as they are: here those of quaternions of any length."""
    files = golden_files("fk/fk*.npz")
    kintree = load(golden_file("body/*.npz"))["kintree_table"].astype(np.int32)
    parents = [int(parent) - 1 for parent in kintree[0, 1:]]
    for path in files:
        data = {name: torch.from_numpy(array).to(DEVICE) for name, array in load(path).items()}
        local, root = quat_matrix(data["local_quats_nonunit"]), data["T_world_root"]
        result = forward_kinematics(local, data["t_parent_joint_f64"], parents, root, backend=backend)
        wanted = data["Ts_world_joint_nonunit_f64"]
        close = {"rtol": 1e-12, "atol": 1e-12}
        torch.testing.assert_close(result.joints, wanted[..., 4:], **close)
        torch.testing.assert_close(result.R_world_joint, quat_matrix(wanted[..., :4]), **close)
