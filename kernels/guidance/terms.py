"""Residuals of the guidance costs and their analytic derivatives, in plain torch.

``B`` sequences of ``T`` frames with ``N`` joints. A derivative is by a right perturbation of a joint's rotation. Two
kinds of costs exist: those of one joint over time (*chains*), and those of points and wrist poses in the world, which
many joints move (*points*).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._rotations import quat_conjugate, quat_multiply, rotation_vector, unit_quaternion
from . import lie
from .problem import (
    BODY_JOINTS,
    FEET,
    HAND_JOINTS,
    KEYPOINT_JOINTS,
    TORSO,
    WRISTS,
    GuidanceWeights,
    HandTargets,
    KeypointTargets,
    Tree,
    WristTargets,
)

NEAREST_DEPTH = 0.05
"""Depth in metres that image points of nearer joints are computed with: behind the camera they mean nothing."""


@dataclass(frozen=True, eq=False)
class Problem:
    """One batch of problems, everything but the rotations that are sought."""

    tree: Tree
    weights: GuidanceWeights
    start: Tensor
    """Quaternions (B, T, N, 4) of the rotations to stay near."""
    t_parent_joint: Tensor
    """(B, N, 3) metres."""
    T_world_head: Tensor
    """(B, T, 7), of the head joint."""
    contacts: Tensor
    """(B, T, 4) of :data:`~.problem.FEET`."""
    valid: Tensor
    """(B, T) bool: real frames, which come first."""
    stays: Tensor
    """(B, T) bool: frames whose rotations stay as they are, the first ones."""
    wrists: WristTargets | None
    hands: HandTargets | None
    keypoints: KeypointTargets | None

    @property
    def moves_hands(self) -> bool:
        """Whether finger joints have a cost at all."""
        w = self.weights
        return self.start.shape[2] > BODY_JOINTS and (
            w.hand_prior > 0 or w.hand_smoothness > 0 or self.hands is not None or self.keypoints is not None
        )


@dataclass(frozen=True, eq=False)
class Pose:
    """Joints in the world."""

    R: Tensor
    """(B, T, N, 3, 3)."""
    p: Tensor
    """(B, T, N, 3) metres."""


def place(problem: Problem, quats: Tensor) -> Pose:
    """Forward kinematics with the head at its place."""
    local = lie.rotmats(quats)
    B, T = quats.shape[:2]
    R, p = [], []
    zero = quats.new_zeros(B, T, 3)
    identity = torch.eye(3, dtype=quats.dtype, device=quats.device).expand(B, T, 3, 3)
    for joint, parent in enumerate(problem.tree.parents):
        R_parent, p_parent = (identity, zero) if parent < 0 else (R[parent], p[parent])
        R.append(R_parent @ local[:, :, joint])
        p.append(p_parent + (R_parent @ problem.t_parent_joint[:, None, joint, :, None])[..., 0])
    R_root, p_root = torch.stack(R, 2), torch.stack(p, 2)
    head = problem.tree.spine.bit_length() - 1
    R_world_root = lie.rotmats(problem.T_world_head[..., :4]) @ R_root[:, :, head].mT
    p_world = (R_world_root[:, :, None] @ (p_root - p_root[:, :, head, None])[..., None])[..., 0]
    return Pose(R_world_root[:, :, None] @ R_root, p_world + problem.T_world_head[:, :, None, 4:])


@dataclass(frozen=True, eq=False)
class Term:
    """One kind of residual, times its weight, and its derivatives."""

    residual: Tensor
    """(B, F, ..., R): of frame t, or of frames t, t + 1 (and t + 2), so F = T, T - 1 or T - 2."""
    jacobians: tuple[Tensor, ...]
    """By the rotations of frame t (, t + 1, t + 2)."""


def _scaled(residual: Tensor, jacobians: tuple[Tensor, ...], factor: Tensor) -> Term:
    """``factor`` (B, F, N or so). Where it is 0 the residual is 0, also if it is not finite."""
    absent = factor[..., None] == 0
    return Term(
        torch.where(absent, 0.0, residual * factor[..., None]),
        tuple(torch.where(absent[..., None], 0.0, J * factor[..., None, None]) for J in jacobians),
    )


def chain_terms(problem: Problem, quats: Tensor) -> dict[str, Term]:
    """Costs of one joint over time; residuals (B, F, N, 3) and Jacobians (B, F, N, 3, 3)."""
    w, start, N = problem.weights, problem.start, quats.shape[2]
    valid = problem.valid.to(quats.dtype)[..., None]
    moves = problem.moves_hands

    def per_joint(body: float, hand: float) -> Tensor:
        factors = quats.new_full((N,), hand if moves else 0.0)
        factors[:BODY_JOINTS] = body
        return factors

    a, b = quats[:, :-1], quats[:, 1:]
    terms = {}

    r = lie.log_between(quats, start)
    J = -lie.right_jacobian_inverse(r).mT
    terms["rotation_prior"] = _scaled(r, (J,), valid * per_joint(w.rotation_prior, w.hand_prior))

    if problem.hands is not None:
        seen = problem.hands.confidence.repeat_interleave(HAND_JOINTS, dim=-1) * valid * w.hand_rotations
        r = rotation_between(quats[:, :, BODY_JOINTS:], problem.hands.rotmats)
        J = -lie.right_jacobian_inverse(r).mT
        body = quats.new_zeros(*quats.shape[:2], BODY_JOINTS)
        whole = (torch.cat((x.new_zeros(*body.shape, *x.shape[3:]), x), 2) for x in (r, J))
        terms["hand_rotations"] = _scaled(next(whole), (next(whole),), torch.cat((body, seen), -1))

    r = lie.log_between(a, b)
    J = lie.right_jacobian_inverse(r)
    terms["smoothness"] = _scaled(r, (-J.mT, J), valid[:, 1:] * per_joint(w.smoothness, w.hand_smoothness))

    D_a, D_b = (quat_multiply(quat_conjugate(q), s) for q, s in ((a, start[:, :-1]), (b, start[:, 1:])))
    r = lie.log_between(D_a, D_b)
    J = lie.right_jacobian_inverse(r) @ lie.rotmats(D_b).mT
    terms["delta_smoothness"] = _scaled(r, (J, -J), valid[:, 1:] * per_joint(w.delta_smoothness, 0.0))

    step = quat_multiply(quat_conjugate(a), b)
    u, v = step[:, :-1], step[:, 1:]
    r = lie.log_between(u, v)
    J_c = lie.right_jacobian_inverse(r)
    J_a = J_c @ lie.rotmats(v).mT
    J_b = -J_c.mT - J_a
    factor = valid[:, 2:] * per_joint(w.velocity_smoothness, 0.0)
    terms["velocity_smoothness"] = _scaled(r, (J_a, J_b, J_c), factor)
    return terms


def rotation_between(quats: Tensor, rotmats: Tensor) -> Tensor:
    """log(q^-1 R)."""
    return lie.log_between(quats, unit_quaternion(rotmats))


def turning(problem: Problem, pose: Pose, joint: int) -> Tensor:
    """d(world rotation of ``joint``, as a vector) / d delta of every coupled joint: (B, T, 3, 3 C)."""
    tree = problem.tree
    own = tree.ancestors[joint] | 1 << joint
    columns = []
    for k in tree.coupled:
        sign = (own >> k & 1) - (tree.spine >> k & 1)
        columns.append(sign * pose.R[:, :, k])
    return torch.cat(columns, dim=-1)


def moving(problem: Problem, pose: Pose, joint: int) -> Tensor:
    """d(world position of ``joint``) / d delta of every coupled joint: (B, T, 3, 3 C)."""
    tree = problem.tree
    columns = []
    for k in tree.coupled:
        sign = (tree.ancestors[joint] >> k & 1) - (tree.spine >> k & 1)
        columns.append(-sign * lie.skew(pose.p[:, :, joint] - pose.p[:, :, k]) @ pose.R[:, :, k])
    return torch.cat(columns, dim=-1)


def point_terms(problem: Problem, quats: Tensor, start_pose: Pose) -> dict[str, Term]:
    """Costs of points and wrist poses; residuals (B, F, P, R) and Jacobians (B, F, P, R, 3 C)."""
    w, pose = problem.weights, place(problem, quats)
    valid = problem.valid.to(quats.dtype)[..., None]
    terms = {}

    torso, feet = list(TORSO), list(FEET)
    r = pose.p[:, :, torso] - start_pose.p[:, :, torso]
    J = torch.stack([moving(problem, pose, joint) for joint in torso], dim=2)
    terms["position_prior"] = _scaled(r, (J,), valid.expand(*r.shape[:-1]) * w.position_prior)

    contact = 0.5 * (problem.contacts[:, :-1] + problem.contacts[:, 1:])
    p = pose.p[:, :, feet]
    J = torch.stack([moving(problem, pose, joint) for joint in feet], dim=2)
    terms["foot_skating"] = _scaled(
        p[:, :-1] - p[:, 1:], (J[:, :-1], -J[:, 1:]), contact * valid[:, 1:] * w.foot_skating
    )
    if problem.wrists is not None:
        terms["wrists"] = _wrist_term(problem, pose, problem.wrists)
    if problem.keypoints is not None:
        terms["keypoints"] = _keypoint_term(problem, pose, problem.keypoints)
    return terms


def _wrist_term(problem: Problem, pose: Pose, targets: WristTargets) -> Term:
    w, joints = problem.weights, list(WRISTS)
    R, p = pose.R[:, :, joints], pose.p[:, :, joints]
    J_p = torch.stack([moving(problem, pose, joint) for joint in joints], dim=2)
    J_R = torch.stack([turning(problem, pose, joint) for joint in joints], dim=2)
    target, t_target = targets.T_world_wrist[..., :4], targets.T_world_wrist[..., 4:]
    R_target = lie.rotmats(target)
    if targets.form == "split":
        turned = rotation_vector(unit_quaternion(R_target.mT @ R))
        r = torch.cat((p - t_target, turned), dim=-1)
        J = torch.cat((J_p, lie.right_jacobian_inverse(turned) @ R.mT @ J_R), dim=-2)
    else:
        r = lie.se3_log(unit_quaternion(R.mT @ R_target), (R.mT @ (t_target - p)[..., None])[..., 0])
        J = -lie.se3_left_jacobian_inverse(r) @ torch.cat((R.mT @ J_p, R.mT @ J_R), dim=-2)
    parts = r.new_tensor([w.wrist_position] * 3 + [w.wrist_orientation] * 3)
    factor = targets.confidence * problem.valid.to(r.dtype)[..., None]
    return _scaled(r * parts, (J * parts[:, None],), factor)


def _keypoint_term(problem: Problem, pose: Pose, targets: KeypointTargets) -> Term:
    joints = [joint for hand in KEYPOINT_JOINTS for joint in hand]
    R_cam = lie.rotmats(targets.T_world_cam[..., :4])[:, :, None]
    p = (R_cam.mT @ (pose.p[:, :, joints] - targets.T_world_cam[:, :, None, 4:])[..., None])[..., 0]
    J_p = R_cam.mT @ torch.stack([moving(problem, pose, joint) for joint in joints], dim=2)
    near = p[..., 2:] < NEAREST_DEPTH
    z = torch.where(near, NEAREST_DEPTH, p[..., 2:])
    uv = p[..., :2] / z
    J_z = torch.where(near[..., None], 0.0, J_p[..., 2:, :])
    J = (J_p[..., :2, :] - uv[..., None] * J_z) / z[..., None]
    seen = targets.confidence.repeat_interleave(len(KEYPOINT_JOINTS[0]), dim=-1)
    factor = seen * problem.valid.to(p.dtype)[..., None] * problem.weights.keypoints
    return _scaled(uv - targets.uv.flatten(2, 3), (J,), factor)
