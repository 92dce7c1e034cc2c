"""Packages that people use for the same operations. They are imported, never written again; each may be absent.

``pip install .[bench]`` installs them. Licensed model files are not needed: where a package only offers its operation
on a body model, the model gets the benchmark's tree instead of a file.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

from .machine import version_of

HOW_TO_INSTALL = "pip install .[bench]"


@dataclass(frozen=True)
class Peer:
    """A package."""

    module: str
    distribution: str
    gpu: bool = True
    """Whether it computes on GPU tensors."""
    needs: tuple[str, ...] = ()
    """Modules that it cannot do without, though its installation can."""


PEERS: dict[str, Peer] = {
    "smplx": Peer("smplx", "smplx"),
    "roma": Peer("roma", "roma"),
    "pytorch-kinematics": Peer("pytorch_kinematics", "pytorch-kinematics"),
    "smplfitter": Peer("smplfitter.pt", "smplfitter"),
    "smplfitter-numba": Peer("smplfitter.nb", "smplfitter", gpu=False, needs=("numba",)),
    "body-models": Peer("body_models", "body-models"),
    "nanomanifold": Peer("nanomanifold", "nanomanifold"),
    "pypose": Peer("pypose", "pypose"),
    "scipy": Peer("scipy.spatial.transform", "scipy", gpu=False),
}


def problem(name: str) -> str | None:
    """Why a peer cannot be used here, with how to get it; None when it can."""
    peer = PEERS[name]
    needed = (peer.module.split(".")[0], *peer.needs)
    missing = [part for part in needed if importlib.util.find_spec(part) is None]
    return f"{', '.join(missing)} not installed: {HOW_TO_INSTALL}" if missing else None


def version(name: str) -> str:
    """Installed version of a peer, or ""."""
    return version_of(PEERS[name].distribution)


def load(name: str, submodule: str = "") -> Any:
    """Import a peer's module, or one below its package."""
    peer = PEERS[name]
    return importlib.import_module(submodule or peer.module)


def set_threads(threads: int) -> None:
    """Give the peers that have threads of their own as many as torch has."""
    if importlib.util.find_spec("numba") is not None:
        import numba

        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))


def smplfitter_model(backend: str, rest_joints: Any, parents: Sequence[int]) -> Any:
    """smplfitter's ``BodyModel`` of module ``smplfitter.<backend>`` (``pt`` or ``nb``) with our tree: one vertex, no
    shape space, ``rest_joints`` (J, 3) in metres."""
    import numpy as np

    common = importlib.import_module("smplfitter.common")
    joints = np.asarray(rest_joints, np.float32)
    count = len(joints)
    data = common.ModelData(
        v_template=np.zeros((1, 3), np.float32),
        shapedirs=np.zeros((1, 3, 0), np.float32),
        posedirs=np.zeros((1, 3, 9 * (count - 1)), np.float32),
        J_regressor_post_lbs=np.zeros((count, 1), np.float32),
        J_template=joints,
        J_shapedirs=np.zeros((count, 3, 0), np.float32),
        kid_shapedir=np.zeros((1, 3), np.float32),
        kid_J_shapedir=np.zeros((count, 3), np.float32),
        _has_kid_template=False,
        weights=np.full((1, count), 1 / count, np.float32),
        kintree_parents=list(parents),
        faces=np.zeros((0, 3), np.int64),
        num_joints=count,
        num_vertices=1,
        vertex_subset=None,
        joint_names=[f"joint{number}" for number in range(count)],
    )
    with mock.patch.object(common, "initialize", lambda *arguments, **options: data):
        return importlib.import_module(f"smplfitter.{backend}").BodyModel("smpl")
