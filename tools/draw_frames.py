"""Draws docs/images/frames.png: the axes and units of every format that mgrpo reads and writes, on one person.

python tools/draw_frames.py [FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patheffects import withStroke
from mpl_toolkits.mplot3d.art3d import Line3DCollection, Poly3DCollection

from mgrpo.body import cpf_of, default_body, place_on_root, skin
from mgrpo.data import load_motion
from mgrpo.export import FileFrame
from mgrpo.geometry import quat_to_rotmat
from mgrpo.viz.palette import LIGHT

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "images" / "frames.png"
AXES = {"x": "#c0392b", "y": "#1e8449", "z": "#1f5fa8"}
CLIP, FRAME = "walk", 12
SMPLH_REST_PELVIS = np.array([0.0, -0.22, 0.03])
"""About where SMPL-H's mean body has its pelvis in its file: enough for a picture."""


def person() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, faces, joints (22, 3) and the pose of the eyes (7) of somebody who walks along +x over the origin."""
    body = default_body().body_only().to(dtype=torch.float64)
    clip = next(clip for clip in load_motion("demo", body) if clip.name == CLIP)
    rotmats, betas = quat_to_rotmat(clip.body_quats.double()), clip.betas.double().expand(len(clip), 16)
    placed = place_on_root(body, rotmats, betas, clip.T_world_root.double())
    path = placed.joints[-1, 0] - placed.joints[0, 0]
    angle = -torch.atan2(path[1], path[0])
    turn = torch.tensor(
        [[torch.cos(angle), -torch.sin(angle), 0.0], [torch.sin(angle), torch.cos(angle), 0.0], [0.0, 0.0, 1.0]],
        dtype=torch.float64,
    )
    vertices = skin(body, placed, rotmats, betas)[FRAME] @ turn.T
    joints = placed.joints[FRAME] @ turn.T
    eyes = cpf_of(body, placed, betas)[FRAME]
    axes = turn @ quat_to_rotmat(eyes[:4])
    shift = torch.tensor([joints[0, 0], joints[0, 1], 0.0], dtype=torch.float64)
    cpf = np.concatenate((axes.numpy(), (turn @ eyes[4:] - shift).numpy()[:, None]), axis=1)
    assert body.mesh is not None
    return (vertices - shift).numpy(), body.mesh.faces.numpy(), (joints - shift).numpy(), cpf


def panel(place: object, title: str, text: str, *, view: tuple[float, float] = (14.0, -62.0)) -> plt.Axes:
    """An empty scene in our world with a heading and words below."""
    axes = plt.gcf().add_subplot(place, projection="3d", computed_zorder=False)
    axes.set_axis_off()
    axes.view_init(*view)
    axes.set_proj_type("persp", focal_length=0.6)
    axes.set_title(title, fontsize=13, color=LIGHT.ink, pad=-4, fontweight="bold")
    axes.text2D(0.5, -0.1, text, transform=axes.transAxes, ha="center", va="top", fontsize=10, color=LIGHT.ink)
    return axes


def surface(axes: plt.Axes, vertices: np.ndarray, faces: np.ndarray, alpha: float = 1.0) -> None:
    """The body in shaded grey."""
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    light = 0.72 + 0.24 * (normals @ np.array([0.45, -0.55, 0.7]))
    colors = np.clip(light[:, None] * np.array([0.86, 0.85, 0.84]), 0, 1)
    shapes = Poly3DCollection(corners, facecolors=np.column_stack((colors, np.full(len(colors), alpha))), zorder=2)
    axes.add_collection3d(shapes)


def floor(axes: plt.Axes, size: float = 1.0) -> None:
    """A grid of half metres at z = 0."""
    ticks = np.arange(-size, size + 0.01, 0.5)
    lines = [[(t, -size, 0), (t, size, 0)] for t in ticks] + [[(-size, t, 0), (size, t, 0)] for t in ticks]
    axes.add_collection3d(Line3DCollection(lines, colors="#cfccc4", linewidths=0.8, zorder=1))


def triad(
    axes: plt.Axes, origin: np.ndarray, directions: np.ndarray, length: float, labels: tuple[str, ...], zorder: int = 3
) -> None:
    """Three arrows; ``directions`` (3, 3) holds where x, y and z point in our world, row by row."""
    for name, direction, label in zip("xyz", directions, labels):
        axes.quiver(
            *origin, *(length * direction), color=AXES[name], linewidth=2.4, arrow_length_ratio=0.13, zorder=zorder
        )
        where = origin + (length * 1.13 + 0.04) * direction
        words = axes.text(*where, label, color=AXES[name], fontsize=11, ha="center", va="center", zorder=9)
        words.set_fontweight("bold")
        words.set_path_effects([withStroke(linewidth=3, foreground="white")])


def fit(axes: plt.Axes, center: tuple[float, float, float], radius: float) -> None:
    """Show a cube around ``center``."""
    for set_limits, middle in zip((axes.set_xlim, axes.set_ylim, axes.set_zlim), center):
        set_limits(middle - radius, middle + radius)
    axes.set_box_aspect((1, 1, 1), zoom=1.36)


def axes_of(frame: FileFrame) -> np.ndarray:
    """Where the file's x, y and z point in our world, row by row."""
    ours = torch.eye(3, dtype=torch.float64)
    return FileFrame(frame.up, "m").points(ours).numpy().T  # column k of the map holds where our axis k goes


def main() -> None:
    """Draw and write."""
    vertices, faces, joints, cpf = person()
    body = default_body().body_only()
    assert body.mesh is not None
    figure = plt.figure(figsize=(15, 11), dpi=110, facecolor="white")
    grid = figure.add_gridspec(2, 3, left=0.01, right=0.99, top=0.93, bottom=0.12, hspace=0.38, wspace=0.02)
    figure.suptitle(
        "One person, walking along mgrpo's +x: axes and units of each format", fontsize=16, color=LIGHT.ink, y=0.985
    )

    worlds = (
        ("mgrpo · EgoAllo npz · AMASS npz · CSV", FileFrame("z", "m"),
         "z up, floor at z = 0, metres, seconds\nquaternions w x y z (AMASS: axis angles, radians)\n"
         "CSV: --up y and --units cm change the columns"),
        ("GLB · .smpl", FileFrame("y", "m"),
         "y up, floor at y = 0, metres, seconds\nGLB quaternions x y z w; .smpl axis angles, radians\n"
         ".smpl: --up z keeps mgrpo's axes"),
        ("BVH", FileFrame("y", "cm"),
         "y up, floor at y = 0, centimetres, seconds\nEuler angles in degrees, R = Rz Rx Ry\n"
         "--up z and --units m change it"),
    )  # fmt: skip
    for column, (title, frame, text) in enumerate(worlds):
        axes = panel(grid[0, column], title, text)
        floor(axes)
        directions, unit = axes_of(frame), "1 m" if frame.unit == "m" else "100 cm"
        surface(axes, vertices, faces)
        triad(axes, np.zeros(3), directions, 1.0, tuple(f"{name} ({unit})" for name in "xyz"))
        fit(axes, (0.05, 0.0, 0.85), 0.88)

    # rest pose: its y is our z, its z our -y where a file has z up; drawn facing the reader
    rest = body.mesh.v_template.double().numpy()
    upright = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    axes = panel(
        grid[1, 0], "Rest pose: all rotations zero",
        "x the body's left, y up, z forward (SMPL's axes)\n"
        "local rotations turn about these, whatever the file's up axis\n"
        "BVH with --up z: rest axes turned so that it stands along z", view=(8.0, -70.0),
    )  # fmt: skip
    surface(axes, rest @ upright.T, faces)
    triad(axes, np.zeros(3), upright.T, 0.62, ("x", "y", "z"))
    fit(axes, (0.0, 0.0, -0.05), 0.88)

    axes = panel(
        grid[1, 1], "Pelvis and SMPL's trans",
        "T_world_root, BVH root, GLB pelvis: the pelvis joint\n"
        "AMASS, .smpl: trans = pelvis - J0(betas), J0 the rest pelvis\n"
        "in the body's file: an offset along the file's axes",
    )  # fmt: skip
    floor(axes)
    surface(axes, vertices, faces, alpha=0.32)
    pelvis, trans = joints[0], joints[0] - SMPLH_REST_PELVIS
    axes.scatter(*pelvis, color=LIGHT.post_trained, s=70, zorder=6)
    axes.scatter(*trans, color=LIGHT.prior, s=70, zorder=6)
    axes.quiver(*trans, *(pelvis - trans), color=LIGHT.ink, linewidth=1.6, arrow_length_ratio=0.2, zorder=7)
    axes.text(
        *(pelvis + np.array([-0.06, -0.12, 0.0])), "pelvis", color=LIGHT.post_trained, fontsize=12, ha="right", zorder=9
    )
    axes.text(*(trans + np.array([0.1, 0.1, 0.02])), "trans", color=LIGHT.prior, fontsize=12, ha="left", zorder=9)
    triad(axes, np.array([-0.75, -0.75, 0.0]), np.eye(3), 0.45, ("x", "y", "z"))
    fit(axes, (0.05, 0.0, 0.85), 0.88)

    axes = panel(
        grid[1, 2], "Head: the central pupil frame (CPF)",
        "origin between the eyes, orientation of the head joint\nx left, y up, z forward; T_world_cpf, Ts_world_cpf\n"
        "CSV: cpf_*", view=(8.0, -40.0),
    )  # fmt: skip
    surface(axes, vertices, faces)
    triad(axes, cpf[:, 3], cpf[:, :3].T, 0.17, ("x", "y", "z"), zorder=5)
    fit(axes, tuple(cpf[:, 3] + np.array([0.02, 0.0, -0.05])), 0.27)

    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    figure.savefig(out, metadata={"Software": None})
    print(out)


if __name__ == "__main__":
    main()
