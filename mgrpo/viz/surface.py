"""A skinned surface as plain numbers: its shape at rest, and where its vertices are in one frame."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mgrpo.errors import InputError


@dataclass(frozen=True, eq=False)
class Surface:
    """A mesh that follows J joints by linear blend skinning. Corrections that depend on the pose are left out, as a
    browser's skinning does. Raises InputError for arrays that don't fit together."""

    rest_vertices: np.ndarray
    """Vertices in the zero pose, metres (V, 3) float32."""
    rest_joints: np.ndarray
    """Joints in the zero pose, root first, in the same axes (J, 3) float32."""
    weights: np.ndarray
    """Skinning weights (V, J) float32; each row sums to one."""
    faces: np.ndarray
    """Triangles, counter-clockwise from outside: (F, 3) int32."""

    def __post_init__(self) -> None:
        vertices, joints = len(self.rest_vertices), len(self.rest_joints)
        expected = {"rest_vertices": (vertices, 3), "rest_joints": (joints, 3), "weights": (vertices, joints)}
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise InputError(f"Surface: {name} must have shape {shape}, got {getattr(self, name).shape}")
        if self.faces.ndim != 2 or self.faces.shape[1] != 3 or (self.faces.size and self.faces.max() >= vertices):
            raise InputError(f"Surface: faces must be (F, 3) indices of {vertices} vertices, got {self.faces.shape}")

    @cached_property
    def _bound(self) -> np.ndarray:
        """Each vertex by its weights, in axes that begin at each joint: (4, V, J), the last row for the position."""
        relative = self.rest_vertices[:, None] - self.rest_joints[None]
        homogeneous = np.concatenate((relative, np.ones_like(relative[..., :1])), axis=-1)
        return np.ascontiguousarray(np.moveaxis(homogeneous * self.weights[..., None], -1, 0), dtype=np.float32)

    def vertices(self, joints: np.ndarray, quats: np.ndarray) -> np.ndarray:
        """Vertices in the world (V, 3) of one frame: joint positions (J, 3) in metres and their orientations in the
        world (J, 4), wxyz."""
        affine = np.concatenate((rotation_matrices(quats), joints[..., None]), axis=-1).astype(np.float32)
        return sum(part @ affine[..., column] for column, part in enumerate(self._bound))

    @cached_property
    def strongest(self) -> tuple[np.ndarray, np.ndarray]:
        """The four joints that move each vertex most and their weights, rounded to 255 parts: (V, 4) uint8 twice."""
        joints = np.argsort(-self.weights, axis=1, kind="stable")[:, :4]
        weights = np.take_along_axis(self.weights, joints, axis=1)
        parts = np.round(255 * weights / weights.sum(axis=1, keepdims=True)).astype(np.int64)
        parts[:, 0] += 255 - parts.sum(axis=1)
        return joints.astype(np.uint8), parts.astype(np.uint8)


def rotation_matrices(quats: np.ndarray) -> np.ndarray:
    """Rotation matrices (…, 3, 3) of unit quaternions (…, 4), wxyz."""
    w, x, y, z = np.moveaxis(np.asarray(quats, dtype=np.float64), -1, 0)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return np.stack(rows, axis=-1).reshape(*quats.shape[:-1], 3, 3)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals (V, 3) of a mesh, outwards: the mean of the faces around each vertex, weighted by area."""
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.stack(
        [np.bincount(faces.reshape(-1), np.repeat(normals[:, axis], 3), len(vertices)) for axis in range(3)], axis=1
    )
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
