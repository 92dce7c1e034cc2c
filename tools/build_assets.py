"""Make the package's assets: the default body from Anny and the demo motion from DeepMimic's clips.

    python tools/build_assets.py --body path/to/anny_smplh_like.npz --motion path/to/pybullet.npz

The body needs ``fast-simplification`` (only here: ``pip install fast-simplification``). What is changed is written in
mgrpo/assets/README.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

ASSETS = Path(__file__).resolve().parents[1] / "mgrpo" / "assets"
HEAD, TOES = 15, (10, 11)  # root first
LEFT_RIGHT = np.array([1, 0, 2, 4, 3, 5, 7, 6, 8, 10, 9, 11, 13, 12, 14, 16, 15, 18, 17, 20, 19])
MIRROR = np.concatenate([[0], LEFT_RIGHT + 1, np.arange(37, 52), np.arange(22, 37)])
WRAPPING = ("backflip", "dance_a", "dance_b", "roll", "run", "spin", "walk")  # repeated by their source
SEAM_LIMIT = 1.1


def components(faces: np.ndarray, count: int) -> np.ndarray:
    """Label of the connected component of each vertex, by propagating the smallest index along edges."""
    label = np.arange(count)
    while True:
        lowest = label[faces].min(1)
        new = label.copy()
        for corner in range(3):
            np.minimum.at(new, faces[:, corner], lowest)
        new = new[new]
        if np.array_equal(new, label):
            return label
        label = new


def closest_on_triangles(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Barycentric coordinates (N, K, 3) of the points of K candidate triangles (N, K, 3, 3) closest to ``points`` (N,
    3)."""
    a, b, c = triangles[..., 0, :], triangles[..., 1, :], triangles[..., 2, :]
    ab, ac, ap = b - a, c - a, points[:, None] - a
    d00, d01, d11 = (ab * ab).sum(-1), (ab * ac).sum(-1), (ac * ac).sum(-1)
    d20, d21 = (ap * ab).sum(-1), (ap * ac).sum(-1)
    determinant = np.maximum(d00 * d11 - d01 * d01, 1e-20)
    v, w = (d11 * d20 - d01 * d21) / determinant, (d00 * d21 - d01 * d20) / determinant
    inside = np.stack([1 - v - w, v, w], -1)
    options = [np.where((inside >= 0).all(-1, keepdims=True), inside, np.nan)]
    for first, second in ((0, 1), (1, 2), (2, 0)):
        edge = triangles[..., second, :] - triangles[..., first, :]
        along = ((points[:, None] - triangles[..., first, :]) * edge).sum(-1) / np.maximum((edge * edge).sum(-1), 1e-20)
        along = np.clip(along, 0, 1)
        option = np.zeros_like(inside)
        option[..., first], option[..., second] = 1 - along, along
        options.append(option)
    stacked = np.stack(options, -2)  # (N, K, 4, 3)
    distance = np.linalg.norm(np.einsum("nkoc,nkcx->nkox", stacked, triangles) - points[:, None, None], axis=-1)
    best = np.nanargmin(distance, axis=-1)
    return np.take_along_axis(stacked, best[..., None, None], axis=-2)[..., 0, :]


def transfer(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each point the face (three vertex indices) of the source surface nearest to it, and the barycentric weights
    there."""
    centres = vertices[faces].mean(1)
    corners = np.empty((len(points), 3), np.int64)
    weights = np.empty((len(points), 3))
    for start in range(0, len(points), 200):
        chunk = slice(start, start + 200)
        near = np.argpartition(((points[chunk, None] - centres[None]) ** 2).sum(-1), 60, axis=1)[:, :60]
        barycentric = closest_on_triangles(points[chunk], vertices[faces[near]])
        on_surface = np.einsum("nkc,nkcx->nkx", barycentric, vertices[faces[near]])
        best = np.linalg.norm(on_surface - points[chunk, None], axis=-1).argmin(1)
        rows = np.arange(len(best))
        corners[chunk] = faces[near[rows, best]]
        weights[chunk] = barycentric[rows, best]
    return corners, weights


def light_mesh(source: dict[str, np.ndarray], keep: np.ndarray, target_faces: int) -> dict[str, np.ndarray]:
    """Decimate the part of the mesh on the vertices in ``keep`` and carry shape directions and skinning weights
    over."""
    import fast_simplification

    index = np.full(len(source["v_template"]), -1)
    index[keep] = np.arange(keep.sum())
    faces = index[source["faces"]]
    faces = faces[(faces >= 0).all(1)]
    vertices = source["v_template"][keep].astype(np.float64)
    points, triangles = fast_simplification.simplify(vertices, faces, target_count=target_faces, agg=5)[:2]
    points, triangles = np.asarray(points, np.float64), np.asarray(triangles, np.int64)
    corners, barycentric = transfer(points, vertices, faces)
    blend = lambda values: np.einsum("nc,nc...->n...", barycentric, values[corners])  # noqa: E731
    return {
        "v_template": points,
        "v_shapedirs": blend(source["shapedirs"][keep].astype(np.float64)),
        "weights": blend(source["weights"][keep].astype(np.float64)),
        "faces": triangles,
    }


def build_body(path: Path, out: Path, skin_faces: int, eye_faces: int) -> None:
    """Default body: exact left-right symmetry of the joints, eyes' offset, light mesh."""
    with np.load(path, allow_pickle=False) as archive:
        source = {key: archive[key] for key in archive.files}
    joints, directions = source["J_template"].astype(np.float64), source["J_shapedirs"].astype(np.float64)
    flip = np.array([-1.0, 1.0, 1.0])
    symmetric = (joints + joints[MIRROR] * flip) / 2
    symmetric_directions = (directions + directions[MIRROR] * flip[:, None]) / 2
    print(f"left-right symmetry: joints moved by at most {1000 * np.abs(symmetric - joints).max():.3f} mm")

    label = components(source["faces"], len(source["v_template"]))
    names, sizes = np.unique(label, return_counts=True)
    skin_label = names[sizes.argmax()]
    eyes = []
    for name in names[names != skin_label]:
        centre = source["v_template"][label == name].mean(0)
        side = "left" if centre[0] > 0.01 else "right" if centre[0] < -0.01 else "middle"
        print(f"component of {int((label == name).sum())} vertices at {centre.round(4)}: {side}")
        if side != "middle":
            eyes.append((side, label == name))
    if sorted(side for side, _ in eyes) != ["left", "right"]:
        raise SystemExit("expected exactly one eyeball on each side of the mesh")
    pupil = np.mean([source["v_template"][mask].astype(np.float64).mean(0) for _, mask in eyes], axis=0)
    pupil_directions = np.mean([source["shapedirs"][mask].astype(np.float64).mean(0) for _, mask in eyes], axis=0)
    cpf, cpf_directions = pupil - symmetric[HEAD], pupil_directions - symmetric_directions[HEAD]
    print(f"eyes minus head joint: {(1000 * cpf).round(2)} mm; x is set to 0 (was {1000 * cpf[0]:.4f} mm)")
    if not (abs(cpf[0]) < 1e-3 and 0.0 < cpf[1] < 0.12 and 0.03 < cpf[2] < 0.15):
        raise SystemExit("the eyes are not where eyes should be")
    cpf[0], cpf_directions[0] = 0.0, 0.0

    parts = [light_mesh(source, label == skin_label, skin_faces)]
    parts += [light_mesh(source, mask, eye_faces) for _, mask in eyes]
    first = np.cumsum([0] + [len(part["v_template"]) for part in parts])
    mesh = {key: np.concatenate([part[key] for part in parts]) for key in ("v_template", "v_shapedirs", "weights")}
    faces = np.concatenate([part["faces"] + offset for part, offset in zip(parts, first)])
    top = np.argsort(-mesh["weights"], axis=1, kind="stable")[:, :4]
    values = np.take_along_axis(mesh["weights"], top, axis=1)
    lost = 1 - values.sum(1) / mesh["weights"].sum(1)
    values /= values.sum(1, keepdims=True)
    clearance = symmetric[list(TOES), 1].min() - mesh["v_template"][:, 1].min()
    print(
        f"light mesh: {len(mesh['v_template'])} vertices, {len(faces)} faces; skinning weight left out at most "
        f"{lost.max():.3f}"
    )
    print(f"toe joints {1000 * clearance:.1f} mm above the sole")
    np.savez_compressed(
        out,
        parents=np.array([int(parent) - 1 for parent in source["parents"][1:]], np.int16),
        J_template=symmetric.astype(np.float32),
        J_shapedirs=symmetric_directions.astype(np.float32),
        cpf_template=cpf.astype(np.float32),
        cpf_shapedirs=cpf_directions.astype(np.float32),
        toe_clearance=np.float32(clearance),
        v_template=mesh["v_template"].astype(np.float32),
        v_shapedirs=mesh["v_shapedirs"].astype(np.float16),
        weight_joints=top.astype(np.uint8),
        weight_values=values.astype(np.float16),
        faces=faces.astype(np.uint16),
    )
    print(f"{out}: {out.stat().st_size / 1024:.0f} kB")


def posed_joints(quats: np.ndarray, rest: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """Joints (F, 22, 3) about the pelvis from wxyz quaternions (F, 22, 4), root first."""
    w, x, y, z = np.moveaxis(quats / np.linalg.norm(quats, axis=-1, keepdims=True), -1, 0)
    rotmats = np.stack(
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
         2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
         2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], -1
    ).reshape(*w.shape, 3, 3)  # fmt: skip
    world, points = rotmats.copy(), np.zeros((*w.shape, 3))
    for joint in range(1, 22):
        parent = parents[joint]
        world[:, joint] = world[:, parent] @ rotmats[:, joint]
        points[:, joint] = points[:, parent] + world[:, parent] @ (rest[joint] - rest[parent])
    return points


def seam_ratio(points: np.ndarray, trans: np.ndarray) -> float:
    """How rough a clip's end meets its beginning: the mean acceleration of the joints over the seam, as a multiple of
    the largest inside the clip, when the clip is repeated with the root moving on horizontally.

    ``points`` (F, 22, 3) about the pelvis, ``trans`` (F, 3) pelvis. At most about 1 for a loop without a seam.
    """
    step = trans[-1] - trans[0] + ((trans[1] - trans[0]) + (trans[-1] - trans[-2])) / 2
    step[2] = 0
    joints = points + trans[:, None]
    joints = np.concatenate([joints, joints[:2] + step])
    acceleration = np.linalg.norm(np.diff(joints, 2, axis=0), axis=-1).mean(1)
    return float(acceleration[-2:].max() / acceleration[:-2].max())


def build_motion(path: Path, out: Path) -> None:
    """The demo pack: the source unchanged plus one flag per clip, given where no seam can be measured."""
    with np.load(path, allow_pickle=False) as archive:
        pack = {key: archive[key] for key in archive.files}
    parents = np.array([-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19])
    ends = np.cumsum(pack["lengths"])
    loop = []
    print("clip             repeated by source   acceleration over the seam / largest inside   loop")
    for name, end, length, rest in zip(pack["names"], ends, pack["lengths"], pack["rest_joints"]):
        rows = slice(end - length, end)
        points = posed_joints(pack["quats_wxyz_i16"][rows].astype(np.float64) / 32767, rest.astype(np.float64), parents)
        ratio = seam_ratio(points, pack["trans"][rows].astype(np.float64))
        loop.append(str(name) in WRAPPING and ratio < SEAM_LIMIT)
        print(f"{name:16s} {'yes' if name in WRAPPING else 'no':20s} {ratio:6.2f} {'loop' if loop[-1] else '':>42s}")
    pack["loop"] = np.array(loop)
    np.savez_compressed(out, **pack)
    print(f"{out}: {out.stat().st_size / 1024:.0f} kB")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--body", type=Path, help="body in SMPL-H's joint order made from Anny (npz); left alone if not given"
    )
    parser.add_argument("--motion", type=Path, help="pack of DeepMimic's 15 clips (npz); left alone if not given")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write to (default: mgrpo/assets)")
    parser.add_argument("--skin-faces", type=int, default=4000, help="triangles of the light skin (default: 4000)")
    parser.add_argument("--eye-faces", type=int, default=60, help="triangles of each eyeball (default: 60)")
    arguments = parser.parse_args()
    if arguments.body is None and arguments.motion is None:
        parser.error("give --body, --motion or both")
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.body is not None:
        build_body(arguments.body, arguments.out / "default_body.npz", arguments.skin_faces, arguments.eye_faces)
    if arguments.motion is not None:
        build_motion(arguments.motion, arguments.out / "deepmimic.npz")


if __name__ == "__main__":
    main()
