"""Surface of a posed body by linear blend skinning, for display."""

from __future__ import annotations

import torch
from torch import Tensor

from mgrpo.body.model import BodyModel
from mgrpo.body.placement import PlacedBody
from mgrpo.errors import InputError


def skin(body: BodyModel, placed: PlacedBody, local_rotmats: Tensor, betas: Tensor) -> Tensor:
    """Vertices ``(*b, V, 3)`` in the world, metres.

    A vertex is ``sum_k w_k (R_k (v - J_k) + p_k)`` with ``v`` the vertex after shape and pose corrections and ``J_k``
    the rest joint. With 21 joints the fingers stay straight and their skin follows the wrists.

    Args:
        body: needs a mesh.
        placed: result of ``place_on_root`` or ``place_on_cpf`` with the same ``local_rotmats`` and ``betas``.
        local_rotmats: ``(*b, J, 3, 3)``, J = 21 or 51; used only by a mesh that has pose corrections.
        betas: ``(*#b, 16)``.
    Raises:
        InputError: the body has no mesh, or the number of joints fits neither all of the body nor its 21 body joints.
    """
    count = local_rotmats.shape[-3]
    if count != body.num_joints:
        body = body.body_only()
    mesh = body.mesh
    if mesh is None:
        raise InputError(f"body '{body.name}' has no mesh: it can be drawn as a skeleton only")
    if count != body.num_joints or placed.joints.shape[-2] != count + 1:
        raise InputError(
            f"skin(): local_rotmats has {count} joints and the placed body {placed.joints.shape[-2] - 1}; both must be "
            f"{body.num_joints} for body '{body.name}'"
        )
    dtype = placed.joints.dtype
    numbers = betas.shape[-1]
    flat = mesh.shapedirs[..., :numbers].reshape(-1, numbers).to(dtype)
    vertices = mesh.v_template.to(dtype) + (betas.to(dtype) @ flat.mT).reshape(*betas.shape[:-1], -1, 3)
    if mesh.posedirs is not None:
        identity = torch.eye(3, dtype=dtype, device=local_rotmats.device)
        feature = (local_rotmats.to(dtype) - identity).flatten(-3)
        directions = mesh.posedirs.reshape(-1, mesh.posedirs.shape[-1]).to(dtype)
        vertices = vertices + (feature @ directions.mT).reshape(*feature.shape[:-1], -1, 3)
    rest = body.rest_joints(betas).to(dtype)
    # Per joint one affine map; blending the maps is cheaper than moving every vertex by every joint.
    translations = placed.joints - (placed.R_world_joint @ rest.unsqueeze(-1)).squeeze(-1)
    affine = torch.cat((placed.R_world_joint, translations.unsqueeze(-1)), dim=-1)
    blended = (mesh.weights.to(dtype) @ affine.flatten(-2)).unflatten(-1, (3, 4))
    return (blended[..., :3] @ vertices.unsqueeze(-1)).squeeze(-1) + blended[..., 3]
