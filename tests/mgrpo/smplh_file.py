"""A made-up SMPL-H file in the place of the licensed one: official keys and sizes, the default body in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mgrpo.body import PARENTS_FULL, default_body
from mgrpo.body.smplh import LEFT_EYE_VERTICES, RIGHT_EYE_VERTICES

VERTICES = 6890
"""Vertices of SMPL and SMPL-H."""


def write_smplh(path: Path) -> Path:
    """The default body's joints, shapes and surface: its vertices come first; then one in each joint, which the
    regressor picks; all others, among them SMPL-H's eyes, are where its eyes are."""
    body = default_body().to(dtype=torch.float64)
    assert body.mesh is not None
    seen = len(body.mesh.v_template)
    template = (body.J_template[15] + body.cpf_template).repeat(VERTICES, 1).numpy()
    directions = (body.J_shapedirs[15] + body.cpf_shapedirs).repeat(VERTICES, 1, 1).numpy()
    weights = np.zeros((VERTICES, 52), np.float32)
    weights[:, 15] = 1.0
    template[:seen], directions[:seen], weights[:seen] = (
        value.numpy() for value in (body.mesh.v_template, body.mesh.shapedirs, body.mesh.weights)
    )
    joints = slice(seen, seen + 52)
    template[joints], directions[joints], weights[joints] = body.J_template, body.J_shapedirs, np.eye(52)
    assert not set(range(seen + 52)) & {*LEFT_EYE_VERTICES, *RIGHT_EYE_VERTICES}
    tree = np.stack([np.array([0, *(parent + 1 for parent in PARENTS_FULL)]), np.arange(52)]).astype(np.uint32)
    tree[0, 0] = 2**32 - 1
    np.savez(
        path,
        v_template=template,
        shapedirs=directions,
        J_regressor=np.eye(52, VERTICES, seen),
        posedirs=np.zeros((VERTICES, 3, 459), np.float32),
        weights=weights,
        kintree_table=tree,
        f=body.mesh.faces.numpy().astype(np.uint32),
        J=template[joints],
        bs_style=np.array(b"lbs"),
        bs_type=np.array(b"lrotmin"),
    )
    return path
