"""Motion to export, and a reader of GLB files written from the glTF 2.0 specification alone."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgrpo import geometry
from mgrpo.body import BodyModel, default_body, skin
from mgrpo.export import PosedMotion

TO_Y_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
"""From z up to y up: (x, y, z) becomes (x, z, -y)."""


def make_motion(
    frames: int = 40,
    *,
    joints: int = 51,
    seed: int = 0,
    fps: float = 30.0,
    size: float = 1.2,
    body: BodyModel | None = None,
) -> PosedMotion:
    """A wild but smooth motion with a shape of its own: rotations go through half turns and the limits of Euler
    angles, and the signs of the quaternions are random."""
    generator = torch.Generator().manual_seed(seed)

    def walk(*shape: int, scale: float) -> Tensor:
        start = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
        steps = torch.randn(frames, *shape, generator=generator, dtype=torch.float64).cumsum(0)
        return scale * (start + 0.15 * steps)

    def signs(*shape: int) -> Tensor:
        return 2.0 * torch.randint(0, 2, (frames, *shape, 1), generator=generator) - 1.0

    root = geometry.axis_angle_to_quat(walk(3, scale=2.0)) * signs()
    place = walk(3, scale=1.0) + torch.tensor([0.0, 0.0, 0.95], dtype=torch.float64)
    quats = geometry.axis_angle_to_quat(walk(joints, 3, scale=size)) * signs(joints)
    shape = torch.randn(16, generator=generator, dtype=torch.float64).expand(frames, 16)
    times = 2.0 + torch.arange(frames, dtype=torch.float64) / fps
    return PosedMotion(
        name="made up",
        fps=fps,
        body=body or default_body(),
        T_world_root=geometry.se3(root, place),
        local_quats=quats,
        betas=shape,
        times=times,
        frame_nums=60 + torch.arange(frames),
        contacts=torch.rand(frames, 21, generator=generator, dtype=torch.float64),
    )


def true_vertices(motion: PosedMotion) -> np.ndarray:
    """``(T, V, 3)`` in our world by this package's own skinning, without pose corrections."""
    placed = motion.placed()
    rotmats = geometry.quat_to_rotmat(motion.local_quats)
    return skin(motion.skeleton, placed, rotmats, motion.betas).numpy()


_COMPONENTS = {5121: np.dtype("u1"), 5123: np.dtype("<u2"), 5125: np.dtype("<u4"), 5126: np.dtype("<f4")}
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}


class Glb:
    """A GLB file: its JSON and its arrays, checked against the rules of the specification while reading."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        magic, version, length = struct.unpack_from("<4sII", data)
        assert (magic, version, length) == (b"glTF", 2, len(data))
        size, kind = struct.unpack_from("<I4s", data, 12)
        assert kind == b"JSON" and size % 4 == 0
        self.json: dict[str, Any] = json.loads(data[20 : 20 + size])
        rest, kind = struct.unpack_from("<I4s", data, 20 + size)
        assert kind == b"BIN\0" and rest % 4 == 0 and 28 + size + rest == len(data)
        self.binary = data[28 + size :]
        (buffer,) = self.json["buffers"]
        assert len(self.binary) - 3 <= buffer["byteLength"] <= len(self.binary) and "uri" not in buffer

    def array(self, index: int) -> np.ndarray:
        """The values of an accessor ``(N, width)``."""
        accessor = self.json["accessors"][index]
        view = self.json["bufferViews"][accessor["bufferView"]]
        dtype, width = _COMPONENTS[accessor["componentType"]], _WIDTHS[accessor["type"]]
        start = view["byteOffset"] + accessor.get("byteOffset", 0)
        assert start % 4 == 0 and start % dtype.itemsize == 0
        assert accessor["count"] * width * dtype.itemsize <= view["byteLength"]
        assert view["byteOffset"] + view["byteLength"] <= self.json["buffers"][0]["byteLength"]
        values = np.frombuffer(self.binary, dtype, accessor["count"] * width, start).reshape(-1, width)
        if "min" in accessor:
            assert np.array_equal(np.array(accessor["min"], dtype), values.min(0))
            assert np.array_equal(np.array(accessor["max"], dtype), values.max(0))
        return values

    def local_matrices(self, time: float) -> list[np.ndarray]:
        """The transform of every node relative to its parent ``(4, 4)``, at a time of the first animation."""
        state = [
            {"translation": node.get("translation", [0, 0, 0]), "rotation": node.get("rotation", [0, 0, 0, 1])}
            for node in self.json["nodes"]
        ]
        animation = self.json["animations"][0]
        for channel in animation["channels"]:
            sampler = animation["samplers"][channel["sampler"]]
            assert sampler.get("interpolation", "LINEAR") == "LINEAR"
            keys, values = self.array(sampler["input"])[:, 0].astype(float), self.array(sampler["output"]).astype(float)
            after = int(np.clip(np.searchsorted(keys, time), 1, max(len(keys) - 1, 1)))
            if len(keys) == 1 or time <= keys[0]:
                value = values[0]
            elif time >= keys[-1]:
                value = values[-1]
            else:
                part = (time - keys[after - 1]) / (keys[after] - keys[after - 1])
                a, b = values[after - 1], values[after]
                if channel["target"]["path"] == "rotation":
                    # the signs in the file must be the right ones already: no flip here
                    angle = np.arccos(np.clip(a @ b, -1.0, 1.0))
                    weights = (
                        (1 - part, part) if angle < 1e-6 else np.sin([(1 - part) * angle, part * angle]) / np.sin(angle)
                    )
                    value = weights[0] * a + weights[1] * b
                else:
                    value = (1 - part) * a + part * b
            state[channel["target"]["node"]][channel["target"]["path"]] = value
        matrices = []
        for one in state:
            x, y, z, w = np.array(one["rotation"], float) / np.linalg.norm(one["rotation"])
            matrix = np.eye(4)
            matrix[:3, :3] = [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
            matrix[:3, 3] = one["translation"]
            matrices.append(matrix)
        return matrices

    def pose(self, time: float) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Vertices ``(V, 3)`` and joints ``(J, 3)`` in the scene at a time, and the joints' names."""
        nodes, local = self.json["nodes"], self.local_matrices(time)
        parents = {child: index for index, node in enumerate(nodes) for child in node.get("children", ())}

        def in_scene(index: int) -> np.ndarray:
            return in_scene(parents[index]) @ local[index] if index in parents else local[index]

        skin_ = self.json["skins"][0]
        joints = np.stack([in_scene(index) for index in skin_["joints"]])
        binds = self.array(skin_["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
        attributes = self.json["meshes"][0]["primitives"][0]["attributes"]
        points = self.array(attributes["POSITION"]).astype(float)
        points = np.concatenate((points, np.ones((len(points), 1))), axis=1)
        which, weights = self.array(attributes["JOINTS_0"]), self.array(attributes["WEIGHTS_0"]).astype(float)
        moved = np.einsum("jab,jbc->jac", joints, binds)
        blended = np.einsum("vk,vkab->vab", weights, moved[which])
        vertices = np.einsum("vab,vb->va", blended, points)[:, :3]
        return vertices, joints[:, :3, 3], [nodes[index]["name"] for index in skin_["joints"]]
