"""GLB (binary glTF 2.0): the body's mesh, skinned to its joints, which are nodes that an animation turns."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgrpo import __version__
from mgrpo.body.model import BodyMesh
from mgrpo.errors import InputError
from mgrpo.export.frames import FileFrame
from mgrpo.export.gltf_file import ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER, GltfBuffer
from mgrpo.export.motion import PosedMotion, continuous_signs
from mgrpo.geometry import quat_normalize
from mgrpo.storage import atomic_write_parts

INFLUENCES = 4
"""Joints that may move a vertex: more would need a second set of weights, which common viewers don't read."""

_FRAME = FileFrame("y", "m")
_CLAY = [0.66, 0.62, 0.58, 1.0]


def write_glb(path: str | Path, motion: PosedMotion) -> None:
    """Write a motion as one GLB file: y up, metres, seconds from the first frame.

    Node ``armature`` at the origin holds the joints by their SMPL-H names; their rest pose is the body's, upright, at
    the origin of the body's own file. The animation moves the pelvis and turns the joints, interpolated linearly (on
    the sphere for rotations). Pose corrections of SMPL-H's surface are left out: the format has no place for them.

    Args:
        path: file to write.
        motion: of one shape (:meth:`PosedMotion.with_one_shape`) and with frames at equal distances.
    Raises:
        InputError: the body has no mesh, or the motion is too long for the format.
        StorageError: the disk refuses.
    """
    atomic_write_parts(Path(path), _content(motion))


def _content(motion: PosedMotion) -> Iterator[bytes]:
    """The file, piece by piece."""
    body = motion.skeleton
    if body.mesh is None:
        raise InputError(f"body '{body.name}' has no mesh, which a GLB file needs; bvh holds a skeleton without one")
    betas = motion.betas[0]
    rest = _FRAME.rest(body.rest_joints(betas))
    offsets = _FRAME.rest(body.t_parent_joint(betas))
    buffer = GltfBuffer()
    mesh = _mesh(buffer, body.mesh, betas)
    skin = buffer.add(_inverse_binds(rest), "MAT4")

    # nodes: the armature, then the joints, then the mesh, which belongs to the scene because its own place is not used
    count = motion.num_joints + 1
    children: list[list[int]] = [[] for _ in range(count)]
    for joint, parent in enumerate(body.parents, 1):
        children[parent + 1].append(joint + 1)
    nodes: list[dict[str, Any]] = [{"name": "armature", "children": [1]}]
    for joint, name in enumerate(motion.joint_names):
        translation = rest[0] if joint == 0 else offsets[joint - 1]
        node: dict[str, Any] = {"name": name, "translation": _floats(translation), "rotation": [0.0, 0.0, 0.0, 1.0]}
        if children[joint]:
            node["children"] = children[joint]
        nodes.append(node)
    nodes.append({"name": "body", "mesh": 0, "skin": 0})

    document = {
        "asset": {"version": "2.0", "generator": f"mgrpo {__version__}"},
        "scene": 0,
        "scenes": [{"name": motion.name or "motion", "nodes": [0, count + 1]}],
        "nodes": nodes,
        "meshes": [{"name": "body", "primitives": [mesh]}],
        "materials": [
            {
                "name": "clay",
                "pbrMetallicRoughness": {"baseColorFactor": _CLAY, "metallicFactor": 0.0, "roughnessFactor": 0.8},
            }
        ],
        "skins": [
            {"inverseBindMatrices": skin, "joints": list(range(1, count + 1)), "skeleton": 1, "name": "armature"}
        ],
        "animations": [_animation(buffer, motion)],
    }
    return buffer.glb(document)


def _animation(buffer: GltfBuffer, motion: PosedMotion) -> dict[str, Any]:
    """Channels of the pelvis' path and of every joint that turns at all."""
    frames = np.arange(len(motion), dtype=np.float64) / motion.fps
    times = buffer.add(frames.astype("<f4"), "SCALAR", bounds=True)
    paths: list[tuple[int, str, int]] = []
    path = _FRAME.points(motion.T_world_root[:, 4:])
    paths.append((1, "translation", buffer.add(path.numpy().astype("<f4"), "VEC3")))
    for joint in range(motion.num_joints + 1):
        if bool((_quats(motion, joint)[:, 1:].abs() >= 1e-9).any()):
            values = buffer.add_later(partial(_channel, motion, joint), len(motion), np.dtype("<f4"), "VEC4")
            paths.append((joint + 1, "rotation", values))
    return {
        "name": motion.name or "motion",
        "samplers": [{"input": times, "output": output, "interpolation": "LINEAR"} for _, _, output in paths],
        "channels": [
            {"sampler": sampler, "target": {"node": node, "path": kind}}
            for sampler, (node, kind, _) in enumerate(paths)
        ],
        "extras": {"frames_per_second": motion.fps},
    }


def _quats(motion: PosedMotion, joint: int) -> Tensor:
    """Rotations of the root (0) or another joint in the file's axes, wxyz ``(T, 4)`` float64."""
    if joint == 0:
        return _FRAME.root_quats(motion.T_world_root[:, :4])
    return _FRAME.local_quats(quat_normalize(motion.local_quats[:, joint - 1].double()))


def _channel(motion: PosedMotion, joint: int) -> np.ndarray:
    """The same as the file holds them: xyzw ``(T, 4)``, going the short way from frame to frame."""
    return continuous_signs(_quats(motion, joint))[:, [1, 2, 3, 0]].numpy().astype("<f4")


def _mesh(buffer: GltfBuffer, mesh: BodyMesh, betas: Tensor) -> dict[str, Any]:
    """The primitive of the rest pose's surface with normals and weights."""
    vertices = (mesh.v_template + mesh.shapedirs @ betas).numpy()
    faces = mesh.faces.numpy()
    weights, joints = mesh.weights.topk(min(INFLUENCES, mesh.weights.shape[1]), dim=1)
    lost = float((1 - weights.sum(1) / mesh.weights.sum(1)).max())
    if lost > 1e-3:
        raise InputError(
            f"a vertex of this body hangs on more than {INFLUENCES} joints ({100 * lost:.1f} % of its weight would be "
            "lost), which GLB files can't hold portably; take the default body or SMPL-H"
        )
    weights = weights / weights.sum(1, keepdim=True)
    joints = torch.where(weights > 0, joints, 0)  # a joint without weight must not be named
    index = "<u2" if len(vertices) < 2**16 - 1 else "<u4"
    attributes = {
        "POSITION": buffer.add(vertices.astype("<f4"), "VEC3", target=ARRAY_BUFFER, bounds=True),
        "NORMAL": buffer.add(_normals(vertices, faces).astype("<f4"), "VEC3", target=ARRAY_BUFFER),
        "JOINTS_0": buffer.add(joints.numpy().astype("u1"), "VEC4", target=ARRAY_BUFFER),
        "WEIGHTS_0": buffer.add(weights.numpy().astype("<f4"), "VEC4", target=ARRAY_BUFFER),
    }
    indices = buffer.add(faces.reshape(-1).astype(index), "SCALAR", target=ELEMENT_ARRAY_BUFFER)
    return {"attributes": attributes, "indices": indices, "material": 0, "mode": 4}


def _normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals ``(V, 3)``: the mean of the triangles around a vertex, by area."""
    corners = vertices[faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], across)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(length > 1e-12, normals / np.maximum(length, 1e-12), np.array([0.0, 1.0, 0.0]))


def _inverse_binds(rest: Tensor) -> np.ndarray:
    """World to joint in the rest pose, where no joint is turned: ``(J + 1, 16)``, column by column."""
    matrices = np.tile(np.eye(4), (len(rest), 1, 1))
    matrices[:, :3, 3] = -rest.numpy()
    return matrices.transpose(0, 2, 1).reshape(len(rest), 16).astype("<f4")


def _floats(values: Tensor) -> list[float]:
    return [float(value) for value in values.float()]
