"""From a denoised state to a body in the world: projected rotations, root placed by the head pose, joint positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from mgrpo.body.placement import place_on_cpf
from mgrpo.errors import InputError
from mgrpo.kernels import project_so3
from mgrpo.models.state import StateLayout, unpack_state

if TYPE_CHECKING:
    from mgrpo.body.model import BodyModel


class PredictedMotion(NamedTuple):
    """A motion in the world; ``*b`` are any leading axes, T frames. Metres, world z up."""

    body_rotmats: Tensor
    """Local rotations ``(*b, T, 21, 3, 3)``."""
    betas: Tensor
    """Body shape ``(*b, T, 16)``, per frame as predicted."""
    contacts: Tensor
    """Contact flags ``(*b, T, 21)``, not squashed."""
    T_world_root: Tensor
    """Pelvis pose ``(*b, T, 7)``; follows from the head pose, so that the body's CPF is exactly the given one."""
    joints22: Tensor
    """Joint positions ``(*b, T, 22, 3)``, pelvis first."""
    R_world_joint22: Tensor
    """Joint orientations in the world ``(*b, T, 22, 3, 3)``, pelvis first."""
    hand_rotmats: Tensor | None
    """Local finger rotations ``(*b, T, 30, 3, 3)``; None for a layout without hands."""


def decode_motion(
    layout: StateLayout, x: Tensor, T_world_cpf: Tensor, body: BodyModel, *, project: bool = True
) -> PredictedMotion:
    """Decode packed states and place them on head poses (fact sheet A.4). Differentiable in ``x``.

    Args:
        layout: the state's layout.
        x: clean states ``(*b, T, D)``.
        T_world_cpf: head poses, broadcasting to ``(*b, T, 7)``; for a group ``(B, G, T, D)`` pass ``(B, 1, T, 7)``.
        body: the skeleton; only its 21 body joints are used.
        project: replace body and hand matrices by the nearest rotations first. Pass False only for states whose
            matrices already are rotations.

    Raises:
        InputError: shapes or dtypes that don't fit.
    """
    if T_world_cpf.dtype != x.dtype:
        raise InputError(f"decode_motion(): x is {x.dtype} and T_world_cpf {T_world_cpf.dtype}; convert one with .to()")
    state = unpack_state(layout, x)
    if T_world_cpf.ndim > x.ndim or T_world_cpf.shape[-1] != 7 or T_world_cpf.shape[-2] not in (1, x.shape[-2]):
        raise InputError(
            f"decode_motion(): T_world_cpf must broadcast to {(*x.shape[:-1], 7)}, got {tuple(T_world_cpf.shape)}"
        )
    body_rotmats, hand_rotmats = state.body_rotmats, state.hand_rotmats
    if project:
        body_rotmats = project_so3(body_rotmats)
        hand_rotmats = None if hand_rotmats is None else project_so3(hand_rotmats)
    placed = place_on_cpf(body, body_rotmats, state.betas, T_world_cpf)
    return PredictedMotion(
        body_rotmats=body_rotmats,
        betas=state.betas,
        contacts=state.contacts,
        T_world_root=placed.T_world_root,
        joints22=placed.joints,
        R_world_joint22=placed.R_world_joint,
        hand_rotmats=hand_rotmats,
    )
