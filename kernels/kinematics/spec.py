"""Cases of ``forward_kinematics``: the body's tree and random ones, with each way of broadcasting."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._spec import Case, OpSpec, Tolerance
from . import forward_kinematics

# SMPL-H's body joints without the pelvis.
BODY_PARENTS = (-1, -1, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 11, 12, 13, 15, 16, 17, 18)


def _rotations(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    Q, R = torch.linalg.qr(torch.randn(*shape, 3, 3, generator=generator, dtype=torch.float64))
    Q = Q * R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    return Q * torch.linalg.det(Q)[..., None, None]


def _make_inputs(case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    J = len(case.sizes["parents"])
    inputs = [
        _rotations((*case.sizes["batch"], J), generator),
        0.2 * torch.randn(*case.sizes["offset_batch"], J, 3, generator=generator, dtype=torch.float64),
    ]
    if case.sizes["root_batch"] is not None:
        # Not of unit length: the op normalises the root's quaternion.
        inputs.append(torch.randn(*case.sizes["root_batch"], 7, generator=generator, dtype=torch.float64))
    return tuple(tensor.to(device, dtype).contiguous() for tensor in inputs)


def _call(
    case: Case, local_rotmats: Tensor, t_parent_joint: Tensor, *root: Tensor, backend: str | None = None
) -> tuple[Tensor, ...]:
    return tuple(forward_kinematics(local_rotmats, t_parent_joint, case.sizes["parents"], *root, backend=backend))


def _case(name: str, parents: tuple[int, ...], batch: tuple, offset_batch: tuple, root_batch: tuple | None) -> Case:
    return Case(name, {"parents": parents, "batch": batch, "offset_batch": offset_batch, "root_batch": root_batch})


def _bytes_moved(case: Case, dtype: torch.dtype) -> int:
    J, poses = len(case.sizes["parents"]), math.prod(case.sizes["batch"])
    shared = 3 * J * math.prod(case.sizes["offset_batch"]) + 7 * math.prod(case.sizes["root_batch"] or (0,))
    return (poses * J * (9 + 9 + 3) + shared) * dtype.itemsize


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
        ),
        make_inputs=_make_inputs,
        call=_call,
        tolerances={torch.float32: Tolerance(3e-6, 1e-5), torch.float64: Tolerance(1e-14, 1e-13)},
        bytes_moved=_bytes_moved,
    ),
)
