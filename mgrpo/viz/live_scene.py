"""Bodies and heads in a viser scene, each of which knows how to be where it is in one frame."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mgrpo.viz.palette import Rgb, mix, rgb
from mgrpo.viz.stage import CONTACT, JOINTS, Actor, color_of, thinned

SHADES: dict[bool, Rgb] = {False: (255, 255, 255), True: (26, 26, 26)}
"""viser's backgrounds, light and dark, that pale colours are mixed with."""

_PATH = 100
_PALE = 0.22
"""Opacity of the samples that are not the solid one."""


def _ring(steps: int = 20) -> np.ndarray:
    """A level ring of radius 1 around the origin as pieces (steps, 2, 3)."""
    angles = np.linspace(0, 2 * np.pi, steps + 1)
    rim = np.stack((np.cos(angles), np.sin(angles), np.zeros(steps + 1)), axis=1)
    return np.stack((rim[:-1], rim[1:]), axis=1)


_RING = _ring()


def rings(points: np.ndarray, radius: float = 0.11) -> np.ndarray:
    """Level rings on the floor under points (N, 3) as pieces (JOINTS * 20, 2, 3), unused ones of no length: what marks
    contacts, in lines because these keep their colour in any light."""
    pieces = np.zeros((JOINTS, *_RING.shape), np.float32)
    pieces[: len(points)] = (
        radius * _RING + np.concatenate((points[:, :2], np.full((len(points), 1), 0.006)), axis=1)[:, None, None]
    )
    return pieces.reshape(-1, 2, 3)


class LiveBody:
    """One sample of one actor in the scene, solid or pale."""

    def __init__(self, server: Any, path: str, actor: Actor, sample: int) -> None:
        self.actor, self.sample, self.path, self.server = actor, sample, path, server
        self.color: Rgb = (0, 0, 0)
        self.shade: Rgb = (255, 255, 255)
        self.solid: bool | None = None
        self.mesh: Any = None
        self.opacity: float | None = None
        scene = server.scene
        here = np.nan_to_num(actor.joints[sample, 0])
        pairs = np.array([(parent, joint) for joint, parent in enumerate(actor.parents) if parent >= 0])
        self._bones, self._fingers = pairs[: JOINTS - 1], pairs[JOINTS - 1 :]
        self.bones = scene.add_line_segments(f"{path}/bones", here[self._bones], (0, 0, 0), thickness=0.034)
        self.fingers: Any = None
        if len(self._fingers):
            self.fingers = scene.add_line_segments(f"{path}/fingers", here[self._fingers], (0, 0, 0), thickness=0.012)
        self.joints = scene.add_point_cloud(
            f"{path}/joints", here[:JOINTS], np.zeros((JOINTS, 3), np.uint8), point_size=0.03, point_shape="circle",
            precision="float32",
        )  # fmt: skip
        self.rings: Any = None

    def paint(self, dark: bool) -> None:
        """Take the colours of a scheme."""
        self.color = rgb(color_of(self.actor.color, dark))
        self.mark, self.shade = rgb(CONTACT[dark]), SHADES[dark]
        self.solid = None  # what depends on it is painted when it is next moved
        if self.rings is not None:
            self.rings.colors = self._ring_colors()
        if self.mesh is not None:
            self.mesh.color = self.color

    def _ring_colors(self) -> np.ndarray:
        return np.tile(np.array(self.mark, np.uint8), (JOINTS * len(_RING), 2, 1))

    def _become(self, solid: bool) -> None:
        """Take the strength of the solid sample, or of a pale one."""
        if self.solid == solid:
            return
        self.solid = solid
        bone = np.array(self.color if solid else mix(self.shade, self.color, 0.45), np.uint8)
        self.bones.thickness = 0.034 if solid else 0.02
        self.bones.colors = np.tile(bone, (len(self._bones), 2, 1))
        if self.fingers is not None:
            self.fingers.thickness = 0.012 if solid else 0.007
            self.fingers.colors = np.tile(bone, (len(self._fingers), 2, 1))
        self.paint_joints = np.tile(bone, (JOINTS, 1))

    def _skinned(self, opacity: float | None) -> Any:
        """The surface, made when it is first wanted; its opacity decides how the browser sorts it, so another one is
        another mesh."""
        if self.mesh is None or self.opacity != opacity:
            surface = self.actor.surfaces[self.sample]
            self.opacity = opacity
            self.mesh = self.server.scene.add_mesh_skinned(
                f"{self.path}/surface", surface.rest_vertices, surface.faces.astype(np.uint32),
                bone_wxyzs=np.tile((1.0, 0.0, 0.0, 0.0), (len(surface.rest_joints), 1)),
                bone_positions=surface.rest_joints, skin_weights=surface.weights, color=self.color, opacity=opacity,
                cast_shadow=opacity != _PALE, receive_shadow=opacity != _PALE,
            )  # fmt: skip
        return self.mesh

    def move(self, frame: int, *, visible: bool, show: str, contacts: bool, solid: bool) -> None:
        """Stand as in a frame, or be hidden; what is hidden is not sent."""
        self._become(solid)
        surface = bool(self.actor.surfaces) and show != "skeleton"
        rods = not self.actor.surfaces or show == "skeleton" or (show == "both" and solid)
        contacts = contacts and solid and self.actor.contacts is not None
        self.bones.visible = visible and rods
        if self.fingers is not None:
            self.fingers.visible = visible and rods
        self.joints.visible = visible and rods and solid
        if self.mesh is not None:
            self.mesh.visible = visible and surface
        if self.rings is not None:
            self.rings.visible = visible and contacts
        if not visible:
            return
        joints = self.actor.joints[self.sample, frame]
        if surface and self.actor.quats is not None:
            mesh = self._skinned(_PALE if not solid else 0.4 if show == "both" else None)
            mesh.visible = True
            for bone, position, quat in zip(mesh.bones, joints, self.actor.quats[self.sample, frame]):
                bone.position, bone.wxyz = position, quat
        touching = self.actor.touching(self.sample, frame) > 0.5 if contacts else np.zeros(JOINTS, bool)
        if rods:
            self.bones.points = joints[self._bones]
            if self.fingers is not None:
                self.fingers.points = joints[self._fingers]
            self.joints.points = joints[:JOINTS]
            self.joints.colors = np.where(touching[:, None], np.array(self.mark, np.uint8), self.paint_joints)
        if contacts:
            body = joints[:JOINTS]
            floor = rings(body[touching & (np.abs(body[:, 2]) < 0.2)])
            if self.rings is None:  # made when the sample is first the solid one
                self.rings = self.server.scene.add_line_segments(
                    f"{self.path}/contacts", floor, self._ring_colors(), thickness=0.024
                )
            self.rings.points, self.rings.visible = floor, True


class LiveHead:
    """The pyramid before the eyes and the way of the head, ten seconds to either side."""

    def __init__(self, server: Any, path: str, actor: Actor) -> None:
        self.server, self.path, self.actor = server, path, actor
        self.frustum: Any = None
        nowhere = np.zeros((2 * _PATH, 2, 3), np.float32)
        self.way = server.scene.add_line_segments(
            f"{path}/way", nowhere, (0, 0, 0), thickness=2.2, thickness_units="screen"
        )

    def paint(self, ink: Rgb, muted: Rgb, shade: Rgb) -> None:
        """Take the colours of a scheme."""
        if self.frustum is None:
            self.frustum = self.server.scene.add_camera_frustum(
                f"{self.path}/eyes", 2 * math.atan(0.055 / 0.14), 0.075 / 0.055, scale=0.05, color=ink,
                thickness=2.0, thickness_units="screen", cast_shadow=False, receive_shadow=False,
            )  # fmt: skip
        self.frustum.color = ink
        colors = np.zeros((2 * _PATH, 2, 3), np.uint8)
        colors[:_PATH], colors[_PATH:] = mix(shade, ink, 0.6), mix(shade, muted, 0.4)
        self.way.colors = colors

    def move(self, fps: float, frame: int, visible: bool) -> None:
        """Be where the head is in a frame, or hidden."""
        gaze, way = self.actor.gaze(frame), self.actor.T_world_cpf
        self.frustum.visible = self.way.visible = visible and gaze is not None
        if not visible or gaze is None or way is None:
            return
        (w, x, y, z), position = gaze
        self.frustum.wxyz = (-z, y, -x, w)  # a camera's axes: x right, y down, z forward
        self.frustum.position = position
        reach = round(10 * fps)
        self.way.points = np.concatenate(
            (
                _segments(way[max(0, frame - reach) : frame + 1, 4:]),
                _segments(way[frame : frame + reach + 1, 4:]),
            )
        )


def _segments(path: np.ndarray) -> np.ndarray:
    """Pieces (_PATH, 2, 3) of a path (N, 3), the last repeated; where it isn't known it goes straight on."""
    points = path[np.isfinite(path).all(axis=1)]
    points = points[thinned(len(points), _PATH + 1)]
    points = np.concatenate((points, np.repeat(points[-1:], _PATH + 1 - len(points), axis=0)))
    return np.stack((points[:-1], points[1:]), axis=1).astype(np.float32)
