"""A made-up SMPL-H file in the place of the licensed one: official keys and sizes, the default body's proportions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mgrpo.body import default_body
from mgrpo.body.smplh import LEFT_EYE_VERTICES, RIGHT_EYE_VERTICES

VERTICES = 6890
"""Vertices of SMPL and SMPL-H."""


def write_smplh(path: Path) -> Path:
    """52 small balls of vertices around the default body's joints, joined by thin faces; the eyes where its are. The
    first shape number scales the body by 5 %, the others do nothing."""
    body = default_body()
    mean = body.J_template.new_zeros(16)
    joints = body.rest_joints(mean).double().numpy()
    count = len(joints)
    random = np.random.default_rng(3)
    owner = np.arange(VERTICES) % count
    around = random.normal(size=(VERTICES, 3))
    v_template = joints[owner] + 0.03 * around / np.linalg.norm(around, axis=1, keepdims=True)
    v_template[:count] = joints  # the regressor's vertices
    between = joints[15] + body.t_head_cpf(mean).double().numpy()
    for vertices, side in ((LEFT_EYE_VERTICES, 1.0), (RIGHT_EYE_VERTICES, -1.0)):
        for vertex in vertices:
            v_template[vertex], owner[vertex] = between + np.array((0.03 * side, 0.0, 0.0)), 15
    shapedirs = np.zeros((VERTICES, 3, 16))
    shapedirs[:, :, 0] = 0.05 * v_template
    regressor = np.zeros((count, VERTICES))
    regressor[np.arange(count), np.arange(count)] = 1.0
    weights = np.zeros((VERTICES, count))
    weights[np.arange(VERTICES), owner] = 1.0
    kintree = np.stack((np.array([0, *(parent + 1 for parent in body.parents)]), np.arange(count))).astype(np.uint32)
    kintree[0, 0] = 2**32 - 1
    starts = np.arange(VERTICES - 2)
    np.savez(
        path,
        v_template=v_template,
        shapedirs=shapedirs.astype(np.float32),
        J_regressor=regressor,
        posedirs=np.zeros((VERTICES, 3, 459), np.float32),
        weights=weights.astype(np.float32),
        kintree_table=kintree,
        f=np.stack((starts, starts + 1, starts + 2), axis=1).astype(np.uint32),
        J=joints,
        bs_style=np.array(b"lbs"),
        bs_type=np.array(b"lrotmin"),
    )
    return path
