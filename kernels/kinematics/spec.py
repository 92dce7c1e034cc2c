"""Cases of ``forward_kinematics``, the body's tree and others, every representation, output and placement, and of
``joint_offsets``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._spec import Case, OpSpec, Tolerance
from . import forward_kinematics, joint_offsets
from .op import NUMBERS

# SMPL-H's body joints without the pelvis.
BODY_PARENTS = (-1, -1, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 11, 12, 13, 15, 16, 17, 18)
BODY_HEAD = 14
# Enough to have every kind of joint: Triton's interpreter is slow.
SMALL_TREE = (-1, 0, 0, -1, 2, 4, 4, 3)
SMALL_HEAD = 5


def _rotations(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    Q, R = torch.linalg.qr(torch.randn(*shape, 3, 3, generator=generator, dtype=torch.float64))
    Q = Q * R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    return Q * torch.linalg.det(Q)[..., None, None]


def _make_inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sizes, J = case.sizes, len(case.sizes["parents"])
    representation = case.options.get("representation", "matrix")
    if representation == "matrix":
        rotations = _rotations((*sizes["batch"], J), generator)
    else:  # of any length: the op normalises
        rotations = normal(*sizes["batch"], J, *NUMBERS[representation])
    inputs = [rotations, 0.2 * normal(*sizes["offset_batch"], J, 3)]
    if "betas_batch" in sizes:
        inputs += [0.02 * normal(J, 3, sizes["S"]), normal(*sizes["betas_batch"], sizes["S"])]
    if sizes["root_batch"] is not None:
        inputs.append(normal(*sizes["root_batch"], 7))
    if "cpf_batch" in sizes:
        inputs.append(0.1 * normal(*sizes["cpf_batch"], 3))
    return tuple(tensor.to(device, dtype).contiguous() for tensor in inputs)


def _call(
    case: Case, rotations: Tensor, t_parent_joint: Tensor, *others: Tensor, backend: str | None = None
) -> tuple[Tensor, ...]:
    rest = list(others)
    options: dict[str, Any] = dict(case.options)
    if "betas_batch" in case.sizes:
        options["t_parent_joint_shapedirs"], options["betas"] = rest.pop(0), rest.pop(0)
    if "cpf_batch" in case.sizes:
        options["T_world_cpf"], options["t_head_cpf"] = rest.pop(0), rest.pop(0)
        options["head"] = BODY_HEAD if case.sizes["parents"] == BODY_PARENTS else SMALL_HEAD
    result = forward_kinematics(rotations, t_parent_joint, case.sizes["parents"], *rest, backend=backend, **options)
    return tuple(tensor for tensor in result if tensor is not None)


def _case(
    name: str,
    parents: tuple[int, ...],
    batch: tuple[int, ...],
    offset_batch: tuple[int, ...],
    root_batch: tuple[int, ...] | None,
    more: dict[str, Any] | None = None,
    **options: str,
) -> Case:
    sizes = {"parents": parents, "batch": batch, "offset_batch": offset_batch, "root_batch": root_batch}
    return Case(name, {**sizes, **(more or {})}, options)


def _row_axes(case: Case) -> tuple[int | None, ...]:
    """Of what ``_make_inputs`` makes."""
    axes: list[int | None] = [1 + len(NUMBERS[case.options.get("representation", "matrix")]), 2]
    if "betas_batch" in case.sizes:  # offsets and their directions are the skeleton's
        axes[1:] = [None, None, 1]
    if case.sizes["root_batch"] is not None:
        axes.append(1)
    if "cpf_batch" in case.sizes:
        axes.append(1)
    return tuple(axes)


def _bytes_moved(case: Case, dtype: torch.dtype) -> int:
    sizes, J = case.sizes, len(case.sizes["parents"])
    representation, output = (case.options.get(name, "matrix") for name in ("representation", "output"))
    per_pose = J * (math.prod(NUMBERS[representation]) + math.prod(NUMBERS[output]) + 3)
    shared = 3 * J * math.prod(sizes["offset_batch"]) + 7 * math.prod(sizes["root_batch"] or (0,))
    if "betas_batch" in sizes:
        shared += sizes["S"] * (3 * J + math.prod(sizes["betas_batch"]))
    if "cpf_batch" in sizes:
        per_pose += 7
        shared += 3 * math.prod(sizes["cpf_batch"])
    return (per_pose * math.prod(sizes["batch"]) + shared) * dtype.itemsize


def _offsets_inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    J, S, batch = (case.sizes[name] for name in ("J", "S", "batch"))
    sizes = ((0.2, (J, 3)), (0.02, (J, 3, S)), (1.0, (*batch, S)))
    return tuple(
        (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(device, dtype)
        for scale, shape in sizes
    )


def _offsets_call(
    case: Case, t_parent_joint: Tensor, shapedirs: Tensor, betas: Tensor, backend: str | None = None
) -> tuple[Tensor, ...]:
    return (joint_offsets(t_parent_joint, shapedirs, betas, backend=backend),)


def _offsets_bytes(case: Case, dtype: torch.dtype) -> int:
    J, S, rows = case.sizes["J"], case.sizes["S"], math.prod(case.sizes["batch"])
    return (3 * J * (1 + S) + rows * (S + 3 * J)) * dtype.itemsize


_QUATERNION = {"representation": "quaternion"}
_ROT6D = {"representation": "rot6d"}

SPECS = (
    OpSpec(
        name="forward_kinematics",
        cases=(
            _case("body_per_sequence_offsets", BODY_PARENTS, (4, 17), (4, 1), (4, 17)),
            _case("shared_offsets_and_root", BODY_PARENTS, (3, 2, 5), (), ()),
            _case("no_root", (-1, 0, 1, 2, 3), (70,), (70,), None),
            _case("star", (-1,) * 6, (9,), (1,), (1,)),
            _case("one_joint_one_pose", (-1,), (), (), ()),
            _case("empty", BODY_PARENTS, (0, 3), (1, 3), (3,)),
            _case("matrix_to_quaternion", SMALL_TREE, (19,), (), (19,), output="quaternion"),
            _case("matrix_to_positions", SMALL_TREE, (2, 9), (2, 9), (), output="positions"),
            _case("quaternion_to_matrix", SMALL_TREE, (19,), (19,), None, **_QUATERNION),
            _case("quaternion_to_quaternion", BODY_PARENTS, (3, 7), (3, 1), (3, 7), output="quaternion", **_QUATERNION),
            _case("quaternion_to_positions", SMALL_TREE, (33,), (), (33,), output="positions", **_QUATERNION),
            _case("rot6d_to_matrix", SMALL_TREE, (19,), (), (), **_ROT6D),
            _case("rot6d_to_quaternion", SMALL_TREE, (2, 2), (2, 2), (2, 1), output="quaternion", **_ROT6D),
            _case("rot6d_to_positions", SMALL_TREE, (18,), (1,), None, output="positions", **_ROT6D),
            _case(
                "shape_per_sequence", SMALL_TREE, (3, 6), (), (3, 6), {"betas_batch": (3, 1), "S": 16}, **_QUATERNION
            ),
            _case("shape_per_pose", SMALL_TREE, (17,), (), None, {"betas_batch": (17,), "S": 10}, output="positions"),
            _case("cpf", SMALL_TREE, (3, 6), (), (3, 6), {"cpf_batch": (3, 1)}),
            _case(
                "cpf_and_shape",
                BODY_PARENTS,
                (2, 9),
                (),
                (2, 9),
                {"betas_batch": (2, 1), "S": 16, "cpf_batch": ()},
                output="quaternion",
                **_QUATERNION,
            ),
            _case("cpf_rot6d", SMALL_TREE, (17,), (), (1,), {"cpf_batch": (17,)}, output="quaternion", **_ROT6D),
            _case(
                "cpf_positions",
                SMALL_TREE,
                (17,),
                (17,),
                (17,),
                {"cpf_batch": (1,)},
                output="positions",
                **_QUATERNION,
            ),
            _case("cpf_empty", SMALL_TREE, (0,), (), (1,), {"cpf_batch": ()}, output="quaternion", **_QUATERNION),
        ),
        make_inputs=_make_inputs,
        call=_call,
        tolerances={torch.float32: Tolerance(5e-6, 3e-5), torch.float64: Tolerance(1e-14, 1e-13)},
        bytes_moved=_bytes_moved,
        row_axes=_row_axes,
    ),
    OpSpec(
        name="joint_offsets",
        cases=(
            Case("body", {"J": len(BODY_PARENTS), "S": 16, "batch": (4, 17)}),
            Case("few_numbers", {"J": 5, "S": 3, "batch": (19,)}),
            Case("one_joint_one_shape", {"J": 1, "S": 1, "batch": ()}),
            Case("empty", {"J": 5, "S": 16, "batch": (0, 3)}),
        ),
        make_inputs=_offsets_inputs,
        call=_offsets_call,
        tolerances={torch.float32: Tolerance(1e-6, 5e-6), torch.float64: Tolerance(1e-15, 1e-14)},
        bytes_moved=_offsets_bytes,
    ),
)
