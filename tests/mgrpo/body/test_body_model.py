"""Skeleton, the default body, placement by root and by eyes, skinning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mgrpo import geometry as g
from mgrpo import kernels
from mgrpo.body import (
    BODY_JOINT_NAMES,
    HAND_JOINT_NAMES,
    PARENTS_BODY,
    PARENTS_FULL,
    BodyModel,
    PlacedBody,
    cpf_of,
    default_body,
    place_on_cpf,
    place_on_root,
    resolve_body,
    skin,
)
from mgrpo.body import skeleton as sk
from mgrpo.errors import InputError


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_rotmats(*shape: int, seed: int = 0, angle: float = 0.8) -> Tensor:
    return g.axis_angle_to_rotmat(angle * draw(*shape, 3, seed=seed))


def random_poses(*shape: int, seed: int = 0) -> Tensor:
    return g.se3(g.quat_normalize(draw(*shape, 4, seed=seed)), draw(*shape, 3, seed=seed + 1))


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return default_body().to(dtype=torch.float64)


def test_skeleton_tables_fit_together() -> None:
    assert len(BODY_JOINT_NAMES) == len(PARENTS_BODY) == 21
    assert len(HAND_JOINT_NAMES) == 30 and len(PARENTS_FULL) == 51
    assert BODY_JOINT_NAMES[sk.HEAD] == "head"
    assert [BODY_JOINT_NAMES[i] for i in sk.FOOT_JOINTS] == ["left_ankle", "right_ankle", "left_foot", "right_foot"]
    touching = {BODY_JOINT_NAMES[i].split("_")[1] for i in sk.CONTACT_JOINTS}
    assert touching == {"knee", "ankle", "foot", "wrist"}
    names = (*BODY_JOINT_NAMES, *HAND_JOINT_NAMES)
    for joint, parent in enumerate(PARENTS_FULL):
        assert parent < joint
        if joint >= 21:
            finger = names[joint]
            expected = (
                f"{finger.split('_')[0]}_wrist" if finger.endswith("1") else finger[:-1] + str(int(finger[-1]) - 1)
            )
            assert names[parent] == expected


@pytest.mark.parametrize(
    ("permutation", "names"), [(sk.MIRROR_BODY, BODY_JOINT_NAMES), (sk.MIRROR_HANDS, HAND_JOINT_NAMES)]
)
def test_mirror_permutations(permutation: tuple[int, ...], names: tuple[str, ...]) -> None:
    assert [permutation[i] for i in permutation] == list(range(len(names)))
    for index, partner in enumerate(permutation):
        swapped = names[index].replace("left", "#").replace("right", "left").replace("#", "right")
        assert names[partner] == swapped
    if len(names) == 21:
        for joint, partner in enumerate(permutation):
            parent = PARENTS_BODY[joint]
            assert PARENTS_BODY[partner] == (permutation[parent] if parent >= 0 else -1)


def test_default_body_is_a_plausible_person(body: BodyModel) -> None:
    assert body.num_joints == 51 and body.parents == PARENTS_FULL
    joints = body.rest_joints(torch.zeros(16))
    assert joints.shape == (52, 3)
    vertices = body.mesh.v_template
    height = float(vertices[:, 1].max() - vertices[:, 1].min())
    assert 1.6 < height < 1.8
    assert 1000 < len(vertices) < 2600
    # The eyes are a few centimetres above and in front of the head joint, in the middle, and below the crown.
    eyes = body.t_head_cpf(torch.zeros(16))
    assert abs(float(eyes[0])) < 1e-6
    assert 0.02 < float(eyes[1]) < 0.08 and 0.05 < float(eyes[2]) < 0.12
    eye_height = float(joints[sk.HEAD + 1, 1] + eyes[1] - vertices[:, 1].min())
    assert height - 0.17 < eye_height < height - 0.07
    sole = float(joints[[10, 11], 1].min() - vertices[:, 1].min())
    assert abs(sole - body.toe_clearance) < 1e-4
    # Left is +x, the face looks along +z.
    assert float(joints[1, 0]) > 0 > float(joints[2, 0])
    assert float(joints[10, 2] - joints[7, 2]) > 0.05


def test_default_body_is_symmetric_for_all_betas(body: BodyModel) -> None:
    order = torch.tensor([0, *(i + 1 for i in sk.MIRROR_BODY), *(22 + i for i in sk.MIRROR_HANDS)])
    joints = body.rest_joints(draw(10, 16))
    mirrored = joints[:, order] * torch.tensor([-1.0, 1, 1])
    torch.testing.assert_close(mirrored, joints, rtol=0, atol=1e-6)


def test_default_body_mesh_is_well_formed(body: BodyModel) -> None:
    mesh = body.mesh
    torch.testing.assert_close(mesh.weights.sum(1), torch.ones(len(mesh.weights), dtype=torch.float64))
    assert int((mesh.weights > 0).sum(1).max()) <= 4 and float(mesh.weights.min()) >= 0
    assert int(mesh.faces.min()) == 0 and int(mesh.faces.max()) == len(mesh.v_template) - 1
    # Vertices lie near the bone that carries them, for other shapes too.
    for betas in (torch.zeros(16), 1.5 * draw(16)):
        vertices = mesh.v_template + mesh.shapedirs @ betas.double()
        own = body.rest_joints(betas)[mesh.weights.argmax(1)]
        assert float((vertices - own).norm(dim=-1).max()) < 0.5


def test_offsets_are_differences_of_rest_joints(body: BodyModel) -> None:
    betas = draw(3, 5, 16)
    rest = body.rest_joints(betas)
    offsets = body.t_parent_joint(betas)
    assert offsets.shape == (3, 5, 51, 3)
    for joint in (0, 4, 14, 40):
        expected = rest[..., joint + 1, :] - rest[..., body.parents[joint] + 1, :]
        torch.testing.assert_close(offsets[..., joint, :], expected)
    few = body.rest_joints(betas[..., :10])
    padded = body.rest_joints(torch.cat((betas[..., :10], torch.zeros(3, 5, 6)), -1))
    torch.testing.assert_close(few, padded)
    with pytest.raises(InputError, match="16 shape numbers"):
        body.rest_joints(torch.zeros(2, 17))


def test_a_shape_has_the_same_bones_in_every_batch(body: BodyModel) -> None:
    if "cpp" not in kernels.available_backends("forward_kinematics"):
        pytest.skip("the reference rounds as torch's matrix product does")
    betas = torch.randn(70, 16, generator=torch.Generator().manual_seed(5))
    for of in (body.t_parent_joint, body.rest_joints, body.t_head_cpf):
        whole = of(betas)
        for rows in (slice(0, 1), slice(3, 10), slice(37, 70)):
            assert torch.equal(of(betas[rows]), whole[rows])
        torch.testing.assert_close(of(betas[:, :10]), of(betas * (torch.arange(16) < 10)))
        assert of(betas[:, :0]).shape == whole.shape


def test_body_only_keeps_the_first_21_joints(body: BodyModel) -> None:
    small = body.body_only()
    assert small.num_joints == 21 and small.body_only() is small
    betas = draw(2, 16)
    torch.testing.assert_close(small.t_parent_joint(betas), body.t_parent_joint(betas)[:, :21])
    torch.testing.assert_close(small.t_head_cpf(betas), body.t_head_cpf(betas))
    torch.testing.assert_close(small.mesh.weights.sum(1), torch.ones(len(small.mesh.weights), dtype=torch.float64))


def naive_kinematics(body: BodyModel, rotmats: Tensor, betas: Tensor, T_world_root: Tensor) -> PlacedBody:
    """One pose, joint by joint."""
    rest = body.rest_joints(betas)
    rotations = [g.quat_to_rotmat(T_world_root[:4])]
    points = [T_world_root[4:]]
    for joint in range(rotmats.shape[0]):
        parent = body.parents[joint] + 1
        points.append(points[parent] + rotations[parent] @ (rest[joint + 1] - rest[parent]))
        rotations.append(rotations[parent] @ rotmats[joint])
    return PlacedBody(T_world_root, torch.stack(points), torch.stack(rotations))


@pytest.mark.parametrize("joints", [21, 51])
def test_place_on_root_equals_joint_by_joint(body: BodyModel, joints: int) -> None:
    rotmats, betas, root = random_rotmats(4, joints), draw(4, 16, seed=3), random_poses(4, seed=5)
    placed = place_on_root(body, rotmats, betas, root)
    assert placed.joints.shape == (4, joints + 1, 3)
    for item in range(4):
        expected = naive_kinematics(body, rotmats[item], betas[item], root[item])
        torch.testing.assert_close(placed.joints[item], expected.joints)
        torch.testing.assert_close(placed.R_world_joint[item], expected.R_world_joint)
    torch.testing.assert_close(placed.joints[:, 0], root[:, 4:])


def test_placing_on_the_eyes_and_reading_them_back(body: BodyModel) -> None:
    rotmats, betas, cpf = random_rotmats(6, 21), draw(6, 16, seed=3), random_poses(6, seed=5)
    placed = place_on_cpf(body, rotmats, betas, cpf)
    back = cpf_of(body, placed, betas)
    torch.testing.assert_close(back[:, 4:], cpf[:, 4:])
    torch.testing.assert_close(g.quat_to_rotmat(back[:, :4]), g.quat_to_rotmat(cpf[:, :4]))
    # The root that was found, given to the other placement, gives the same body.
    again = place_on_root(body, rotmats, betas, placed.T_world_root)
    torch.testing.assert_close(again.joints, placed.joints)
    torch.testing.assert_close(again.R_world_joint, placed.R_world_joint)


def test_placement_from_root_through_eyes_returns_the_root(body: BodyModel) -> None:
    rotmats, betas, root = random_rotmats(5, 51), draw(5, 16, seed=3), random_poses(5, seed=5)
    placed = place_on_root(body, rotmats, betas, root)
    back = place_on_cpf(body, rotmats, betas, cpf_of(body, placed, betas))
    torch.testing.assert_close(back.joints, placed.joints)
    torch.testing.assert_close(g.quat_to_rotmat(back.T_world_root[:, :4]), g.quat_to_rotmat(placed.T_world_root[:, :4]))


def test_batch_axes_broadcast(body: BodyModel) -> None:
    rotmats, betas, cpf = random_rotmats(3, 4, 21), draw(3, 1, 16, seed=1), random_poses(4, seed=2)
    placed = place_on_cpf(body, rotmats, betas, cpf)
    assert placed.joints.shape == (3, 4, 22, 3) and placed.T_world_root.shape == (3, 4, 7)
    one = place_on_cpf(body, rotmats[2, 1], betas[2, 0], cpf[1])
    torch.testing.assert_close(placed.joints[2, 1], one.joints)
    # Many shapes and roots for one pose.
    spread = place_on_root(body, rotmats[0, 0], draw(7, 1, 16), random_poses(2))
    assert spread.joints.shape == (7, 2, 22, 3) and spread.T_world_root.shape == (7, 2, 7)


def test_moving_the_eyes_moves_everything_rigidly(body: BodyModel) -> None:
    rotmats, betas, cpf, move = random_rotmats(5, 21), draw(5, 16), random_poses(5), random_poses(1, seed=9)[0]
    one = place_on_cpf(body, rotmats, betas, cpf)
    two = place_on_cpf(body, rotmats, betas, g.se3_multiply(move, cpf))
    torch.testing.assert_close(two.joints, g.se3_apply(move, one.joints))


def test_placement_gradients(body: BodyModel) -> None:
    vectors = (0.5 * draw(2, 21, 3)).requires_grad_()
    betas, cpf = draw(2, 16).requires_grad_(), random_poses(2)

    def joints(vectors: Tensor, betas: Tensor) -> Tensor:
        return place_on_cpf(body, g.axis_angle_to_rotmat(vectors), betas, cpf).joints

    assert torch.autograd.gradcheck(joints, (vectors, betas), fast_mode=True)


def test_rest_pose_skins_to_the_shaped_template(body: BodyModel) -> None:
    betas = draw(2, 16)
    identity = torch.eye(3, dtype=torch.float64).expand(2, 51, 3, 3)
    root = torch.cat((torch.tensor([[1.0, 0, 0, 0]]).expand(2, 4).double(), body.rest_joints(betas)[:, 0]), 1)
    vertices = skin(body, place_on_root(body, identity, betas, root), identity, betas)
    expected = body.mesh.v_template + torch.einsum("vxk,bk->bvx", body.mesh.shapedirs, betas)
    torch.testing.assert_close(vertices, expected)


def test_skinning_with_and_without_fingers_agrees_for_straight_fingers(body: BodyModel) -> None:
    rotmats, betas, root = random_rotmats(2, 21), draw(2, 16), random_poses(2)
    full = torch.cat((rotmats, torch.eye(3, dtype=torch.float64).expand(2, 30, 3, 3)), 1)
    with_fingers = skin(body, place_on_root(body, full, betas, root), full, betas)
    without = skin(body, place_on_root(body, rotmats, betas, root), rotmats, betas)
    torch.testing.assert_close(with_fingers, without)
    moved = skin(body, place_on_root(body, full, betas, random_poses(1)[0]), full, betas)
    distances = torch.cdist(moved[:, :50], moved[:, :50])
    torch.testing.assert_close(distances, torch.cdist(with_fingers[:, :50], with_fingers[:, :50]))


def test_skinning_needs_a_mesh_and_matching_joints(body: BodyModel) -> None:
    rotmats, betas, root = random_rotmats(1, 21), torch.zeros(1, 16).double(), random_poses(1)
    placed = place_on_root(body, rotmats, betas, root)
    with pytest.raises(InputError, match="no mesh"):
        skin(replace(body, mesh=None), placed, rotmats, betas)
    with pytest.raises(InputError, match="joints"):
        skin(body, placed, random_rotmats(1, 30), betas)


def test_wrong_shapes_are_explained(body: BodyModel) -> None:
    betas, root = torch.zeros(2, 16).double(), random_poses(2)
    with pytest.raises(InputError, match=r"\(\*batch, J, 3, 3\).*got \(2, 21, 9\)"):
        place_on_root(body, torch.zeros(2, 21, 9).double(), betas, root)
    with pytest.raises(InputError, match="got \\(2, 10, 3, 3\\)"):
        place_on_cpf(body, random_rotmats(2, 10), betas, root)
    with pytest.raises(InputError, match="must broadcast"):
        place_on_cpf(body, random_rotmats(2, 21), torch.zeros(3, 16).double(), root)
    with pytest.raises(InputError, match=r"\(\*batch, 7\)"):
        place_on_cpf(body, random_rotmats(2, 21), betas, root[:, :6])


def test_bad_bodies_are_refused(body: BodyModel) -> None:
    with pytest.raises(InputError, match="J_template must have shape"):
        replace(body, J_template=body.J_template[:-1])
    with pytest.raises(InputError, match="non-finite"):
        replace(body, cpf_template=torch.full((3,), torch.nan))
    with pytest.raises(InputError, match="SMPL-H's tree"):
        replace(body, parents=(0, *body.parents[1:]))
    with pytest.raises(InputError, match="parents must come first"):
        replace(body, parents=(*body.parents[:50], 50))


def test_body_moves_between_dtypes() -> None:
    single = default_body()
    assert single.dtype == torch.float32 and single.to(dtype=torch.float32) is single
    double = single.to(dtype=torch.float64)
    assert double.dtype == torch.float64 and double.mesh.shapedirs.dtype == torch.float64
    assert double.mesh.faces.dtype == torch.int64
    rotmats, betas, root = random_rotmats(3, 21), draw(3, 16), random_poses(3)
    low = place_on_root(single, rotmats.float(), betas.float(), root.float())
    high = place_on_root(double, rotmats, betas, root)
    np.testing.assert_allclose(low.joints, high.joints, atol=5e-6)


def test_resolve_body_names() -> None:
    assert resolve_body("default") is default_body()
    with pytest.raises(InputError, match=r"unknown body 'defualt'.*'default', 'smplh'"):
        resolve_body("defualt")
