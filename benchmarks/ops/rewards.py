"""The whole reward: predicted rotations and head path -> joints, four errors, rewards, advantages of each group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .. import peers
from ..bodies import matrices, normal, quaternions
from ..workload import Implementation, Inputs, Results, Workload, exact_call, first_rows, ours, timed_call

FRAMES = 128
MEMBERS = 16
JOINTS = 21
OPERATIONS = 3_485
"""Instructions per frame of kinematics, alignment and four errors, as compiled for a GPU."""
OPERATIONS_PROJECTION = 934 * JOINTS
STATE = 496
"""Numbers per frame of a packed state: 16 betas, 51 matrices, 21 contacts."""


def apply(inputs: Inputs, backend: str) -> Results:
    """Ours, from rotations or from packed states, whichever the inputs have."""
    from mgrpo.kernels import motion_rewards

    state = "state" in inputs
    result = motion_rewards(
        inputs["state"] if state else inputs["rotations"],
        inputs["T_world_cpf"],
        inputs["target_joints"],
        inputs["target_rotmats"],
        _skeleton(inputs["t_parent_joint"], inputs["t_head_cpf"]),
        representation="state" if state else "matrix",
        project=state,
        backend=backend,
    )
    if result.errors.requires_grad:
        return {"errors": result.errors}
    return {"errors": result.errors, "advantages": result.advantages}


def _skeleton(t_parent_joint: Any, t_head_cpf: Any) -> Any:
    from mgrpo.kernels import RewardSkeleton

    return RewardSkeleton(t_parent_joint, t_head_cpf)


def workloads(device: str, backends: Sequence[str] | None) -> list[Workload]:
    """All sizes."""
    conditions = (1, 16) if device == "cpu" else (8, 64)
    large = conditions[-1]
    return [
        *(workload(device, backends, count) for count in conditions),
        workload(device, backends, large, gradient=True),
        workload(device, backends, large, state=True),
    ]


def workload(
    device: str, backends: Sequence[str] | None, conditions: int, gradient: bool = False, state: bool = False
) -> Workload:
    leaves = ("rotations",) if gradient else ()
    sequences = conditions * MEMBERS
    frames = sequences * FRAMES

    def make_inputs(seed: int) -> Inputs:
        import torch

        from mgrpo.body import default_body
        from mgrpo.kernels import forward_kinematics

        body = default_body().body_only()
        target_q = quaternions((conditions, FRAMES, JOINTS), seed, device)
        noise = 0.05 * normal((conditions, MEMBERS, FRAMES, JOINTS, 4), 10 + seed, device)
        q = target_q[:, None] + noise
        rotations = matrices(q / q.norm(dim=-1, keepdim=True)).contiguous()
        path = quaternions((conditions, FRAMES), 20 + seed, device)
        place = 0.3 * normal((conditions, FRAMES, 3), 30 + seed, device)
        T_world_cpf = torch.cat([path, place + torch.tensor([0.0, 0.0, 1.6], device=device)], dim=-1)
        t_parent_joint, t_head_cpf = (
            part(torch.zeros(16)).to(device) for part in (body.t_parent_joint, body.t_head_cpf)
        )
        # The recording is of the same body: its joints are those of its rotations.
        skeleton = _skeleton(t_parent_joint, t_head_cpf)
        recorded = forward_kinematics(
            target_q, t_parent_joint, skeleton.parents, T_world_cpf=T_world_cpf, t_head_cpf=t_head_cpf,
            head=skeleton.head, representation="quaternion", output="positions", backend="reference",
        )  # fmt: skip
        inputs: dict[str, Any] = {
            "T_world_cpf": T_world_cpf,
            "target_joints": torch.cat([recorded.T_world_root[..., None, 4:], recorded.joints], dim=-2),
            "target_rotmats": matrices(target_q).contiguous(),
            "t_parent_joint": t_parent_joint,
            "t_head_cpf": t_head_cpf,
        }
        if state:
            packed = 0.1 * normal((conditions, MEMBERS, FRAMES, STATE), 60 + seed, device)
            first = 16
            packed[..., first : first + 9 * JOINTS] += rotations.flatten(3)
            inputs["state"] = packed
        else:
            inputs["rotations"] = rotations
        if gradient:
            inputs["grad_errors"] = normal((conditions, MEMBERS, 4), 77 + seed, device)
        return inputs

    # Per frame the predicted rotations; the target is read once for the group.
    numbers = 9 * JOINTS * (3 if gradient else 1)
    shared = conditions * FRAMES * (7 + 3 * (1 + JOINTS) + 9 * JOINTS)
    return Workload(
        op="motion_rewards",
        name=f"rewards_{sequences}{'_state' if state else ''}{'_backward' if gradient else ''}",
        title=("Rewards and advantages from packed states, with projection" if state else "Rewards from rotations")
        + (", forward + backward" if gradient else "" if state else " and advantages"),
        items=frames,
        item="frame",
        size=f"{sequences} sequences of {FRAMES} frames",
        make_inputs=make_inputs,
        implementations=lambda: [
            *ours(device, "motion_rewards", apply, leaves=leaves, backends=backends),
            *([] if gradient or state else _peers()),
        ],
        exact=exact_call(apply, leaves),
        bytes_moved=4 * (frames * numbers + shared + sequences * 9),
        operations=frames * (OPERATIONS + OPERATIONS_PROJECTION * state) * (3 if gradient else 1),
        gradient=gradient,
        device=device,
        tests=("tests/kernels/test_motion_rewards.py", "tests/kernels/test_ops.py"),
        rows=lambda inputs, count: first_rows(conditions, "t_parent_joint", "t_head_cpf")(
            inputs, max(1, count // (MEMBERS * FRAMES))
        ),
    )


def _peers() -> list[Implementation]:
    return [Implementation("smplx and roma", "peer", _smplx_and_roma, lambda raw: {}, package="smplx")]


def _smplx_and_roma(inputs: Inputs) -> Callable[[], Any]:
    """What one would put together from packages: smplx's kinematics, roma's alignment, torch for the rest. The body is
    placed by its root, not by its head."""
    import torch

    from mgrpo.geometry import geodesic_angle
    from mgrpo.kernels import group_advantages

    problem = peers.problem("roma")
    if problem:
        raise ImportError(problem)
    place = peers.load("smplx", "smplx.lbs").batch_rigid_transform
    register = peers.load("roma").rigid_points_registration
    skeleton = _skeleton(inputs["t_parent_joint"], inputs["t_head_cpf"])
    device = inputs["rotations"].device
    parents = torch.tensor([-1, *(parent + 1 for parent in skeleton.parents)], device=device)
    rest = [torch.zeros(3, device=device)]
    for joint, parent in enumerate(skeleton.parents):
        rest.append(rest[parent + 1] + skeleton.t_parent_joint[joint])
    rest = torch.stack(rest)
    slopes = torch.tensor([1.0, 1.0, 1.0, 0.2], device=device)

    def apply(given: Inputs) -> Results:
        rotations, target = given["rotations"], given["target_joints"][:, None]
        batch = rotations.shape[:3]
        root = torch.eye(3, device=device).expand(*batch, 1, 3, 3)
        R = torch.cat([root, rotations], dim=3).flatten(0, 2)
        joints, _ = place(R, rest.expand(len(R), -1, -1), parents)
        joints = joints.unflatten(0, batch)
        R_align, t, scale = register(joints, target.expand_as(joints), compute_scaling=True)
        aligned = scale[..., None, None] * (joints @ R_align.mT) + t[..., None, :]
        difference = joints - target
        errors = torch.stack(
            [
                difference.norm(dim=-1).mean((-1, -2)),
                (aligned - target).norm(dim=-1).mean((-1, -2)),
                geodesic_angle(rotations, given["target_rotmats"][:, None]).mean((-1, -2)),
                difference.diff(dim=2).norm(dim=-1).mean((-1, -2)) * 30.0,
            ],
            dim=-1,
        )
        rewards = torch.exp(-slopes * errors)
        return {"errors": errors, "advantages": group_advantages(rewards, backend="reference").advantages}

    return timed_call(apply, inputs)
