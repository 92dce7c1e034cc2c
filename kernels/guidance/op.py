"""The registered operator ``mgrpo::motion_guidance``; it has no gradient.

The reference goes through the operator as well: how often it goes round depends on the numbers, which a traced graph
cannot follow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._autocast import without_autocast
from .._library import Kernel, cuda, define_op, native, native_cpu, native_cuda
from .._rotations import unit_quaternion
from . import lie
from .problem import BODY_JOINTS, DampingRule, GuidanceWeights, HandTargets, KeypointTargets, WristTargets, tree_of
from .reference import optimise
from .terms import Problem


@without_autocast
def _reference(
    rotmats: Tensor,
    t_parent_joint: Tensor,
    T_world_head: Tensor,
    contacts: Tensor,
    lengths: Tensor,
    held: Tensor,
    wrist_poses: Tensor | None,
    wrist_confidence: Tensor | None,
    hand_rotmats: Tensor | None,
    hand_confidence: Tensor | None,
    keypoint_uv: Tensor | None,
    keypoint_confidence: Tensor | None,
    T_world_cam: Tensor | None,
    parents: list[int],
    weights: list[float],
    se3: bool,
    iterations: int,
    rule: list[float],
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, N = rotmats.shape[:3]
    if B == 0 or rotmats.is_meta:  # nothing to search, or no numbers that could say when it ends
        return rotmats.clone(), rotmats.new_zeros(B, iterations + 1), lengths.new_zeros(B)
    frame = torch.arange(T, device=rotmats.device)
    valid, stays = frame < lengths[:, None], frame < held[:, None]
    # Frames after the end get numbers that are harmless, so that they reach nothing.
    identity = torch.eye(3, dtype=rotmats.dtype, device=rotmats.device)
    real = torch.where(valid[..., None, None, None], rotmats, identity)
    still = T_world_head.new_tensor([1.0, 0, 0, 0, 0, 0, 0])
    wrists = hands = keypoints = None
    if wrist_poses is not None and wrist_confidence is not None:
        wrists = WristTargets(wrist_poses, wrist_confidence, "se3" if se3 else "split")
    if hand_rotmats is not None and hand_confidence is not None:
        hands = HandTargets(hand_rotmats, hand_confidence)
    if keypoint_uv is not None and keypoint_confidence is not None and T_world_cam is not None:
        keypoints = KeypointTargets(keypoint_uv, keypoint_confidence, T_world_cam)
    problem = Problem(
        tree=tree_of(tuple(parents), wrists is not None, keypoints is not None),
        weights=GuidanceWeights(*weights),
        start=unit_quaternion(real),
        t_parent_joint=t_parent_joint,
        T_world_head=torch.where(valid[..., None], T_world_head, still),
        contacts=torch.where(valid[..., None], contacts, 0.0),
        valid=valid,
        stays=stays,
        wrists=wrists,
        hands=hands,
        keypoints=keypoints,
    )
    quats, costs, done = optimise(problem, iterations, DampingRule(*rule))
    moved = valid & ~stays & (costs[:, -1:] < costs[:, :1])
    count = N if problem.moves_hands else BODY_JOINTS
    result = rotmats.clone()
    result[:, :, :count] = torch.where(
        moved[..., None, None, None], lie.rotmats(quats[:, :, :count]), rotmats[:, :, :count]
    )
    return result, costs, done


def _fake(rotmats: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    lengths, iterations = arguments[3], arguments[-3]
    B = rotmats.shape[0]
    return (
        rotmats.new_empty(rotmats.shape),
        rotmats.new_empty((B, iterations + 1)),
        lengths.new_empty((B,)),
    )


_OPERATORS = ("motion_guidance_fwd",)

define_op(
    "motion_guidance",
    implementations={"cpp": native_cpu(_OPERATORS), "cuda": native_cuda(_OPERATORS, (torch.float32,))},
    forward=Kernel(
        "(Tensor rotmats, Tensor t_parent_joint, Tensor T_world_head, Tensor contacts, Tensor lengths,"
        " Tensor held,"
        " Tensor? wrist_poses, Tensor? wrist_confidence, Tensor? hand_rotmats, Tensor? hand_confidence,"
        " Tensor? keypoint_uv, Tensor? keypoint_confidence, Tensor? T_world_cam, int[] parents, float[] weights,"
        " bool se3, int iterations, float[] rule, str backend) -> (Tensor, Tensor, Tensor)",
        fake=_fake,
        backends={
            "reference": _reference,
            "cpp": native("motion_guidance_fwd"),
            "cuda": cuda("motion_guidance_fwd"),
        },
    ),
)
