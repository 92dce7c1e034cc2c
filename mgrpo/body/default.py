"""The body that ships with the package: joints linear in 16 shape numbers and a light mesh, made from Anny (CC0)."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources

import numpy as np
import torch

from mgrpo.body.model import BodyMesh, BodyModel
from mgrpo.npz import read_npz

ASSET = "default_body.npz"
"""File in ``mgrpo/assets``; written by ``tools/build_assets.py``."""


@lru_cache(maxsize=1)
def default_body() -> BodyModel:
    """The default body: 51 joints below the root, 16 shape numbers in standard deviations, mesh for display; float32
    on the CPU.

    Its left and right halves are exact mirror images for all betas. Nothing of SMPL-H is in it, so its betas mean
    other things than SMPL-H's (the first is mostly height).
    """
    with resources.as_file(resources.files("mgrpo") / "assets" / ASSET) as path:
        arrays = read_npz(path, "default body")
    weights = np.zeros((len(arrays["v_template"]), len(arrays["J_template"])), np.float32)
    np.put_along_axis(
        weights, arrays["weight_joints"].astype(np.int64), arrays["weight_values"].astype(np.float32), axis=1
    )
    weights /= weights.sum(1, keepdims=True)
    mesh = BodyMesh(
        v_template=torch.from_numpy(arrays["v_template"].astype(np.float32)),
        shapedirs=torch.from_numpy(arrays["v_shapedirs"].astype(np.float32)),
        weights=torch.from_numpy(weights),
        faces=torch.from_numpy(arrays["faces"].astype(np.int64)),
    )
    return BodyModel(
        name="default",
        parents=tuple(int(parent) for parent in arrays["parents"]),
        J_template=torch.from_numpy(arrays["J_template"].astype(np.float32)),
        J_shapedirs=torch.from_numpy(arrays["J_shapedirs"].astype(np.float32)),
        cpf_template=torch.from_numpy(arrays["cpf_template"].astype(np.float32)),
        cpf_shapedirs=torch.from_numpy(arrays["cpf_shapedirs"].astype(np.float32)),
        mesh=mesh,
        toe_clearance=float(arrays["toe_clearance"]),
    )
