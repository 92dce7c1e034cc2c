"""Forward kinematics of a joint tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import check_broadcastable, check_choice, check_integer, check_like, check_tensor
from .._dispatch import resolve
from .._library import call_op
from . import reference
from .op import NUMBERS, OUTPUTS, REPRESENTATIONS, batch_of

_NAME = "forward_kinematics"


class ForwardKinematics(NamedTuple):
    """World pose of every joint, the root left out."""

    joints: Tensor
    """(*batch, J, 3) positions, metres."""
    R_world_joint: Tensor | None
    """(*batch, J, 3, 3) rotations, with ``output="matrix"``."""
    q_world_joint: Tensor | None = None
    """(*batch, J, 4) unit quaternions wxyz, with ``output="quaternion"``."""
    T_world_root: Tensor | None = None
    """(*batch, 7) pose of the root (unit quaternion wxyz and position) where ``T_world_cpf`` places the body."""


def forward_kinematics(
    rotations: Tensor,
    t_parent_joint: Tensor,
    parents: Sequence[int],
    T_world_root: Tensor | None = None,
    *,
    representation: str = "matrix",
    output: str = "matrix",
    betas: Tensor | None = None,
    t_parent_joint_shapedirs: Tensor | None = None,
    T_world_cpf: Tensor | None = None,
    t_head_cpf: Tensor | None = None,
    head: int | None = None,
    backend: str | None = None,
) -> ForwardKinematics:
    """World positions and rotations of a tree of J joints from their local rotations.

    For joint j with parent p: ``R_world_j = R_world_p local_j`` and ``x_j = x_p + R_world_p t_j``, as in EgoAllo's
    ``fncsmpl`` and SMPL-H.

    Args:
        rotations: R_parent_joint in the form that ``representation`` names; float32 or float64. The leading axes of
            all other tensors broadcast to its own.
        t_parent_joint: (*#batch, J, 3), joint origins in the parent's frame, metres; with ``betas`` those of the mean
            shape, (J, 3).
        parents: J ints, -1 for a child of the root; a parent stands before its children.
        T_world_root: (*#batch, 7), wxyz quaternion (normalised here) and translation; None is the identity.
        representation: ``matrix``: (*batch, J, 3, 3), any matrices, they are not projected. ``quaternion``:
            (*batch, J, 4) wxyz, normalised here. ``rot6d``: (*batch, J, 6), the first column of a matrix, then its
            second, made orthonormal here (Gram-Schmidt).
        output: which world rotations to return: ``matrix``, ``quaternion`` or, with ``positions``, none.
        betas: (*#batch, S) shape numbers; then the offsets are ``t_parent_joint + t_parent_joint_shapedirs @ betas``.
        t_parent_joint_shapedirs: (J, 3, S), metres per unit of shape.
        T_world_cpf: (*#batch, 7), pose of the central pupil frame, in place of ``T_world_root``. The root is put where
            the frame at ``t_head_cpf`` from joint ``head``, with the head's axes, has this pose:
            ``T_world_root = T_world_cpf T_head_cpf^-1 T_root_head^-1`` (EgoAllo; matrices must be proper rotations).
        t_head_cpf: (*#batch, 3), origin of the central pupil frame in the head joint's frame, metres.
        head: index of the head joint.
        backend: see :mod:`mgrpo.kernels`; None chooses.

    Returns:
        :class:`ForwardKinematics`, contiguous; differentiable in every tensor.

    A quaternion of zeros stands for the identity and gets a zero gradient; so do six numbers that give no rotation (a
    zero column, or two parallel ones). The sign of a returned quaternion: from quaternions, that of the product
    ``q_root ... q_parent q_joint`` of the normalised inputs; from other representations, such that its component
    chosen by the signs of m22, m00 - m11 and m00 + m11 is positive.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, option or tree.
        BackendError: ``backend`` cannot serve the call.
    """
    check_choice(_NAME, "representation", representation, REPRESENTATIONS)
    check_choice(_NAME, "output", output, OUTPUTS)
    sizes: dict[str, int] = {}
    check_tensor(_NAME, "rotations", rotations, ("*batch", "J", *NUMBERS[representation]), sizes=sizes)
    batch = batch_of(rotations, representation)
    with_shape = betas is not None or t_parent_joint_shapedirs is not None
    check_tensor(_NAME, "t_parent_joint", t_parent_joint, _SHARED if with_shape else _OFFSETS, sizes=sizes)
    check_like(_NAME, "t_parent_joint", t_parent_joint, "rotations", rotations)
    check_broadcastable(_NAME, "t_parent_joint", t_parent_joint.shape[:-2], batch, "rotations")
    tree = _checked_parents(parents, sizes["J"])
    if with_shape:
        _check_together(betas=betas, t_parent_joint_shapedirs=t_parent_joint_shapedirs)
        check_tensor(_NAME, "t_parent_joint_shapedirs", t_parent_joint_shapedirs, ("J", 3, "S"), sizes=sizes)
        check_like(_NAME, "t_parent_joint_shapedirs", t_parent_joint_shapedirs, "rotations", rotations)
        _check_row("betas", betas, ("*#batch", "S"), rotations, batch, sizes)
    if T_world_root is not None:
        _check_row("T_world_root", T_world_root, ("*#batch", 7), rotations, batch)
    root, head_index = T_world_root, -1
    if T_world_cpf is not None or t_head_cpf is not None or head is not None:
        if T_world_root is not None:
            raise ValueError(f"{_NAME}(): T_world_root must be None where T_world_cpf places the body, got a tensor")
        _check_together(T_world_cpf=T_world_cpf, t_head_cpf=t_head_cpf, head=head)
        _check_row("T_world_cpf", T_world_cpf, ("*#batch", 7), rotations, batch)
        _check_row("t_head_cpf", t_head_cpf, ("*#batch", 3), rotations, batch)
        root, head_index = T_world_cpf, check_integer(_NAME, "head", head, minimum=0)
        if head_index >= len(tree):
            raise ValueError(f"{_NAME}(): head must be the index of one of J = {len(tree)} joints, got {head_index}")

    chosen = resolve(_NAME, backend, rotations, t_parent_joint)
    if betas is not None:
        t_parent_joint = _offsets(t_parent_joint, t_parent_joint_shapedirs, betas, chosen)
    if chosen == "reference":
        joints, world, T_root = reference.forward_kinematics(
            rotations,
            t_parent_joint,
            tree,
            root,
            t_head_cpf,
            head=head_index,
            representation=representation,
            output=output,
        )
    else:
        joints, world, T_root = call_op(
            "forward_kinematics",
            rotations,
            t_parent_joint,
            root,
            t_head_cpf,
            tree,
            head_index,
            representation,
            output,
            chosen,
        )
    return ForwardKinematics(
        joints,
        world if output == "matrix" else None,
        world if output == "quaternion" else None,
        T_root if t_head_cpf is not None else None,
    )


def joint_offsets(
    t_parent_joint: Tensor, t_parent_joint_shapedirs: Tensor, betas: Tensor, *, backend: str | None = None
) -> Tensor:
    """Joint origins of bodies of different shape, ``t_parent_joint + t_parent_joint_shapedirs @ betas``: what
    :func:`forward_kinematics` poses where it is given ``betas``, with its backends.

    Args:
        t_parent_joint: (J, 3), of the mean shape, metres; float32 or float64.
        t_parent_joint_shapedirs: (J, 3, S), metres per unit of shape.
        betas: (*batch, S) shape numbers.
        backend: see :mod:`mgrpo.kernels`; None chooses.

    Returns:
        (*batch, J, 3), differentiable in every tensor. But for ``reference``, whose rounding is that of torch's
        products, a row depends on its own shape numbers alone, bit for bit.

    Raises:
        TypeError, ValueError: wrong type, dtype or shape.
        BackendError: ``backend`` cannot serve the call.
    """
    name = "joint_offsets"
    sizes: dict[str, int] = {}
    check_tensor(name, "t_parent_joint", t_parent_joint, _SHARED, sizes=sizes)
    check_tensor(name, "t_parent_joint_shapedirs", t_parent_joint_shapedirs, ("J", 3, "S"), sizes=sizes)
    check_tensor(name, "betas", betas, ("*batch", "S"), sizes=sizes)
    check_like(name, "t_parent_joint_shapedirs", t_parent_joint_shapedirs, "t_parent_joint", t_parent_joint)
    check_like(name, "betas", betas, "t_parent_joint", t_parent_joint)
    return _offsets(t_parent_joint, t_parent_joint_shapedirs, betas, resolve(name, backend, betas, t_parent_joint))


def _offsets(t_parent_joint: Tensor, shapedirs: Tensor | None, betas: Tensor, backend: str) -> Tensor:
    if backend == "reference":
        return reference.joint_offsets(t_parent_joint, shapedirs, betas)
    return call_op("joint_offsets", t_parent_joint, shapedirs, betas, backend)


_OFFSETS = ("*#batch", "J", 3)
_SHARED = ("J", 3)


def _check_together(**arguments: object) -> None:
    """Arguments that mean something only together: one given, all given."""
    for name, value in arguments.items():
        if value is None:
            raise ValueError(f"{_NAME}(): {name} must be given together with {_others(name, arguments)}, got None")


def _others(name: str, arguments: dict[str, object]) -> str:
    return " and ".join(other for other in arguments if other != name)


def _check_row(
    name: str,
    value: object,
    shape: tuple[str | int, ...],
    rotations: Tensor,
    batch: torch.Size,
    sizes: dict[str, int] | None = None,
) -> None:
    """One vector per pose, that broadcasts to the poses' batch."""
    check_tensor(_NAME, name, value, shape, sizes=sizes)
    check_like(_NAME, name, value, "rotations", rotations)
    check_broadcastable(_NAME, name, value.shape[:-1], batch, "rotations")


_known_trees: set[tuple[int, ...]] = set()


def _checked_parents(parents: Sequence[int], J: int) -> tuple[int, ...]:
    # The same few trees come again and again, and checking one costs more than launching a kernel. Only tuples of plain
    # ints are remembered: True and 1.0 equal 1 and must still be refused.
    plain = type(parents) is tuple and all(type(parent) is int for parent in parents)
    if plain and len(parents) == J and not torch.compiler.is_compiling() and parents in _known_trees:
        return parents
    if isinstance(parents, (str, Tensor)) or not hasattr(parents, "__len__"):
        raise TypeError(f"{_NAME}(): parents must be a sequence of ints, got {type(parents).__name__}")
    tree = tuple(check_integer(_NAME, f"parents[{j}]", parent) for j, parent in enumerate(parents))
    if len(tree) != J:
        raise ValueError(f"{_NAME}(): parents must have J = {J} entries, got {len(tree)}")
    if J == 0:
        raise ValueError(f"{_NAME}(): rotations must have J >= 1 joints, got 0")
    for joint, parent in enumerate(tree):
        if not -1 <= parent < joint:
            raise ValueError(
                f"{_NAME}(): parents[{joint}] must be -1 or the index of an earlier joint (0 to {joint - 1}), "
                f"got {parent}"
                if joint
                else f"{_NAME}(): parents[0] must be -1, got {parent}"
            )
    if plain and not torch.compiler.is_compiling():
        _known_trees.add(tree)
    return tree
