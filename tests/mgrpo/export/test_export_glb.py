"""GLB files: their rules, and what readers that are not ours make of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mgrpo.body import default_body
from mgrpo.errors import InputError
from mgrpo.export import write_glb
from mgrpo.export.gltf_file import GltfBuffer
from tests.mgrpo.export.export_motion import TO_Y_UP, Glb, make_motion, true_vertices

READERS = Path(__file__).with_name("readers")
LIMIT_M = 1e-4


def written(tmp_path: Path, motion: object) -> Path:
    path = tmp_path / "motion.glb"
    write_glb(path, motion)
    return path


@pytest.mark.parametrize("joints", [21, 51])
def test_skinning_by_the_specification(tmp_path: Path, joints: int) -> None:
    """Vertices and joints of the file, moved by the rules of glTF, are ours in y up."""
    motion = make_motion(joints=joints)
    glb = Glb(written(tmp_path, motion))
    vertices, placed = true_vertices(motion), motion.placed()
    for frame in (0, 7, 39):
        found, where, names = glb.pose(frame / motion.fps)
        assert names == list(motion.joint_names)
        assert np.abs(found - vertices[frame] @ TO_Y_UP.T).max() < LIMIT_M
        assert np.abs(where - placed.joints[frame].numpy() @ TO_Y_UP.T).max() < LIMIT_M


def test_between_frames_rotations_go_the_short_way(tmp_path: Path) -> None:
    motion = make_motion(12)
    between, _ = motion.at_even_rate(90.0)
    glb, joints = Glb(written(tmp_path, motion)), between.placed().joints.numpy()
    for frame in (1, 16, 32):
        _, where, _ = glb.pose(frame / 90.0)
        assert np.abs(where - joints[frame] @ TO_Y_UP.T).max() < LIMIT_M


def test_rules_of_the_format(tmp_path: Path) -> None:
    motion = make_motion()
    glb = Glb(written(tmp_path, motion))
    for index in range(len(glb.json["accessors"])):
        assert np.isfinite(glb.array(index)).all()  # array() checks bounds, alignment and sizes
    (primitive,) = glb.json["meshes"][0]["primitives"]
    attributes = {name: glb.array(index) for name, index in primitive["attributes"].items()}
    assert {len(values) for values in attributes.values()} == {len(attributes["POSITION"])}
    assert {"min", "max"} <= set(glb.json["accessors"][primitive["attributes"]["POSITION"]])
    assert int(glb.array(primitive["indices"]).max()) < len(attributes["POSITION"])
    assert np.abs(attributes["WEIGHTS_0"].sum(1) - 1).max() < 1e-6
    assert not attributes["JOINTS_0"][attributes["WEIGHTS_0"] == 0].any()
    assert np.abs(np.linalg.norm(attributes["NORMAL"], axis=1) - 1).max() < 1e-5
    views = [glb.json["bufferViews"][glb.json["accessors"][index]["bufferView"]] for index in (0, primitive["indices"])]
    assert [view["target"] for view in views] == [34962, 34963]
    (skin,) = glb.json["skins"]
    assert int(attributes["JOINTS_0"].max()) < len(skin["joints"])
    binds = glb.array(skin["inverseBindMatrices"]).reshape(-1, 4, 4)
    assert (binds[:, :, 3] == [0, 0, 0, 1]).all()  # the last row, as it is stored by columns
    # a skinned mesh stands at the scene's root, where its own transform, which is not used, can't mislead
    (mesh,) = (index for index, node in enumerate(glb.json["nodes"]) if "mesh" in node)
    assert mesh in glb.json["scenes"][0]["nodes"]
    animation = glb.json["animations"][0]
    times = {sampler["input"] for sampler in animation["samplers"]}
    assert len(times) == 1
    keys = glb.array(times.pop())[:, 0]
    assert keys[0] == 0 and (np.diff(keys) > 0).all() and keys[-1] == pytest.approx(39 / 30)
    targets = [(channel["target"]["node"], channel["target"]["path"]) for channel in animation["channels"]]
    assert len(set(targets)) == len(targets) == 1 + 52
    for channel in animation["channels"]:
        values = glb.array(animation["samplers"][channel["sampler"]]["output"])
        assert len(values) == len(keys)
        if channel["target"]["path"] == "rotation":
            assert np.abs(np.linalg.norm(values, axis=1) - 1).max() < 1e-6
            assert (np.sum(values[1:] * values[:-1], axis=1) > 0).all()  # never the long way


def test_the_rest_pose_is_upright_and_the_animation_faces_as_we_do(tmp_path: Path) -> None:
    motion = make_motion(3, joints=21)
    standing = torch.tensor([0.5, 0.5, 0.5, 0.5, 1.0, 2.0, 0.9], dtype=torch.float64).expand(3, 7)  # facing +x
    straight = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64).expand(3, 21, 4)
    glb = Glb(written(tmp_path, replace(motion, T_world_root=standing, local_quats=straight)))
    targets = {channel["target"]["node"] for channel in glb.json["animations"][0]["channels"]}
    assert targets == {1}  # joints that never turn have no channel
    _, joints, names = glb.pose(0.0)
    where = dict(zip(names, joints))
    assert where["head"][1] > where["pelvis"][1] + 0.4 > where["left_ankle"][1] + 1.0
    assert where["left_foot"][0] > where["left_ankle"][0] + 0.05  # toes point where it looks: +x
    assert where["left_hip"][2] < where["right_hip"][2]  # its left is our +y, the file's -z
    assert np.abs(where["pelvis"] - [1.0, 0.9, -2.0]).max() < 1e-6
    rest = [node.get("translation") for node in glb.json["nodes"]]
    assert rest[1 + names.index("spine1")][1] > 0 > rest[1 + names.index("left_hip")][1]


def test_one_frame_and_long_times(tmp_path: Path) -> None:
    one = Glb(written(tmp_path, make_motion(1)))
    assert one.pose(0.0)[0].shape == (2066, 3)
    motion = make_motion(5)
    late = Glb(written(tmp_path, replace(motion, times=motion.times + 1e9)))  # seconds of a device's clock
    assert late.array(late.json["animations"][0]["samplers"][0]["input"])[0] == 0


def test_a_body_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    body = default_body()
    with pytest.raises(InputError, match="has no mesh"):
        write_glb(tmp_path / "a.glb", make_motion(2, body=replace(body, mesh=None)))
    assert body.mesh is not None
    even = torch.full_like(body.mesh.weights, 1 / body.mesh.weights.shape[1])
    with pytest.raises(InputError, match="more than 4 joints"):
        write_glb(tmp_path / "a.glb", make_motion(2, body=replace(body, mesh=replace(body.mesh, weights=even))))
    assert not list(tmp_path.iterdir())


def test_a_file_that_would_be_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgrpo.export.gltf_file._MOST_BYTES", 100)
    buffer = GltfBuffer()
    buffer.add(np.zeros((10, 3), "<f4"), "VEC3")
    with pytest.raises(InputError, match=r"at most 4\.3 GB"):
        buffer.glb({"asset": {"version": "2.0"}})


def test_every_array_begins_at_a_multiple_of_four(tmp_path: Path) -> None:
    buffer = GltfBuffer()
    arrays = [np.arange(3, dtype="<u2"), np.arange(5, dtype="<u4"), np.arange(12, dtype="u1").reshape(3, 4)]
    for array, kind in zip(arrays, ("SCALAR", "SCALAR", "VEC4")):
        buffer.add(array, kind)
    (tmp_path / "a.glb").write_bytes(b"".join(buffer.glb({"asset": {"version": "2.0"}})))
    glb = Glb(tmp_path / "a.glb")
    for index, array in enumerate(arrays):
        assert np.array_equal(glb.array(index).reshape(array.shape), array)


# --- readers of others


def test_pygltflib_finds_the_same_arrays(tmp_path: Path) -> None:
    pygltflib = pytest.importorskip("pygltflib")
    path = written(tmp_path, make_motion(6))
    theirs, ours = pygltflib.GLTF2().load(str(path)), Glb(path)
    assert len(theirs.nodes) == 54 and len(theirs.skins[0].joints) == 52
    blob = theirs.binary_blob()
    accessor = theirs.accessors[theirs.meshes[0].primitives[0].attributes.POSITION]
    view = theirs.bufferViews[accessor.bufferView]
    points = np.frombuffer(blob, "<f4", 3 * accessor.count, view.byteOffset).reshape(-1, 3)
    assert np.array_equal(points, ours.array(theirs.meshes[0].primitives[0].attributes.POSITION))


def test_trimesh_reads_the_surface(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    motion = make_motion(2)
    scene = trimesh.load(written(tmp_path, motion))
    (mesh,) = scene.geometry.values()
    assert mesh.is_watertight and mesh.volume > 0.02  # triangles look outwards
    assert len(mesh.faces) == 4120


def node(*words: str) -> str:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    result = subprocess.run(["node", *words], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def need_module(name: str) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    found = subprocess.run(["node", "-e", f"require.resolve('{name}')"], capture_output=True, timeout=60)
    if found.returncode:
        pytest.skip(f"node has no module {name}: npm install {name}, and name its node_modules in NODE_PATH")


@pytest.mark.parametrize("joints", [21, 51])
def test_the_validator_of_khronos_has_nothing_to_say(tmp_path: Path, joints: int) -> None:
    need_module("gltf-validator")
    path = written(tmp_path, make_motion(joints=joints))
    report = json.loads(node(str(READERS / "validate_gltf.cjs"), str(path)))
    assert report["issues"]["messages"] == []
    assert report["info"]["hasSkins"] and report["info"]["animationCount"] == 1


def test_three_js_plays_it(tmp_path: Path) -> None:
    need_module("three")
    motion = make_motion()
    frames = (0, 11, 26)
    path = written(tmp_path, motion)
    played = json.loads(node(str(READERS / "three_reader.mjs"), str(path), *(str(f / motion.fps) for f in frames)))
    assert played["names"] == list(motion.joint_names)
    assert played["duration"] == pytest.approx(39 / 30)
    vertices, joints = true_vertices(motion), motion.placed().joints.numpy()
    for frame, found in zip(frames, played["frames"]):
        assert np.abs(np.array(found["vertices"]) - vertices[frame] @ TO_Y_UP.T).max() < LIMIT_M
        assert np.abs(np.array(found["joints"]) - joints[frame] @ TO_Y_UP.T).max() < LIMIT_M


def test_blender_plays_it(tmp_path: Path) -> None:
    """Blender turns y up back to z up: its world is ours."""
    python = os.environ.get("MGRPO_BLENDER_PYTHON")
    if not python:
        pytest.skip("MGRPO_BLENDER_PYTHON names no Python with Blender (pip install bpy)")
    motion = make_motion()
    frames = (0, 11, 26)
    words = [python, str(READERS / "blender_reader.py"), str(written(tmp_path, motion)), "30", *map(str, frames)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("RESULT"))
    vertices, joints = true_vertices(motion), motion.placed().joints.numpy()
    for frame, found in zip(frames, json.loads(line.removeprefix("RESULT"))["frames"]):
        where = np.array([found["joints"][name] for name in motion.joint_names])
        assert np.abs(where - joints[frame]).max() < LIMIT_M
        assert np.abs(np.array(found["vertices"]) - vertices[frame]).max() < LIMIT_M
