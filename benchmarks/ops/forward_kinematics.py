"""Forward kinematics of the body: from quaternions and from matrices, 22 and 52 joints, with and without gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .. import peers
from ..bodies import PARENTS_22, PARENTS_52, bones, matrices, normal, quaternions, rest_joints
from ..workload import (
    REFERENCE,
    Implementation,
    Inputs,
    Results,
    Workload,
    exact_call,
    first_rows,
    ours,
    timed_call,
)

REFERENCE_MATRICES = f"{REFERENCE}, from matrices"
"""The plain loop over joints with 3x3 matrices on both sides: faster in eager torch than the one with quaternions."""
OPERATIONS = {"quaternion": 61, "matrix": 63}
"""Per joint: a product of rotations, a rotated offset, a sum."""


def apply(inputs: Inputs, backend: str) -> Results:
    """Ours from quaternions to quaternions, or from matrices to matrices, whichever the inputs have."""
    from mgrpo.kernels import forward_kinematics

    if "quaternions" in inputs:
        placed = forward_kinematics(
            inputs["quaternions"],
            inputs["bones"],
            inputs["parents"],
            representation="quaternion",
            output="quaternion",
            backend=backend,
        )
        return {"joints": placed.joints, "q": placed.q_world_joint}
    placed = forward_kinematics(inputs["matrices"], inputs["bones"], inputs["parents"], backend=backend)
    return {"joints": placed.joints, "R": placed.R_world_joint}


def workloads(device: str, backends: Sequence[str] | None) -> list[Workload]:
    """All sizes."""
    frames = (2_048, 32_768) if device == "cpu" else (16_384, 131_072)
    large = frames[-1]
    return [
        *(workload(device, backends, count, PARENTS_22, "quaternion") for count in frames),
        workload(device, backends, large, PARENTS_22, "matrix"),
        workload(device, backends, large, PARENTS_22, "matrix", gradient=True),
        workload(device, backends, large, PARENTS_22, "quaternion", gradient=True),
        workload(device, backends, large, PARENTS_52, "quaternion"),
        workload(device, backends, large, PARENTS_52, "matrix"),
    ]


def workload(
    device: str,
    backends: Sequence[str] | None,
    frames: int,
    parents: tuple[int, ...],
    representation: str,
    gradient: bool = False,
) -> Workload:
    J = len(parents)
    rotation = {"quaternion": "quaternions", "matrix": "matrices"}[representation]
    numbers = {"quaternion": 4, "matrix": 9}[representation]
    output = {"quaternion": "q", "matrix": "R"}[representation]
    leaves = (rotation,) if gradient else ()
    # In: local rotations. Out: world rotations and positions. The backward pass reads the gradients of the outputs and
    # the rotations again, and writes one gradient.
    floats = J * (2 * numbers + 3) + (J * (3 * numbers + 3) if gradient else 0)

    def make_inputs(seed: int) -> Inputs:
        q = quaternions((frames, J), seed, device)
        inputs: dict[str, Any] = {"bones": bones(J, seed, device), "parents": parents}
        inputs[rotation] = q if representation == "quaternion" else matrices(q).contiguous()
        if gradient:
            inputs["grad_joints"] = normal((frames, J, 3), 77 + seed, device)
            shape = (frames, J, 4) if representation == "quaternion" else (frames, J, 3, 3)
            inputs[f"grad_{output}"] = normal(shape, 78 + seed, device)
        return inputs

    def implementations() -> list[Implementation]:
        found = ours(device, "forward_kinematics", apply, leaves=leaves, backends=backends)
        if representation == "quaternion" and not gradient:
            found.append(Implementation(REFERENCE_MATRICES, "reference", _reference_from_matrices, joints_only))
        return [*found, *_peers(parents, gradient, representation, frames)]

    return Workload(
        op="forward_kinematics",
        name=f"fk{'' if J == 22 else J}_{representation}_{frames}{'_backward' if gradient else ''}",
        title=f"FK from {rotation}, {J} joints" + (", forward + backward" if gradient else ""),
        items=frames,
        item="frame",
        size=f"{frames:,} frames",
        make_inputs=make_inputs,
        implementations=implementations,
        exact=exact_call(apply, leaves),
        bytes_moved=4 * frames * floats,
        operations=frames * J * OPERATIONS[representation] * (3 if gradient else 1),
        gradient=gradient,
        device=device,
        tests=("tests/kernels/test_kinematics.py", "tests/kernels/test_ops.py"),
        rows=first_rows(frames, "bones"),
    )


def joints_only(raw: Results) -> Results:
    """What implementations with another representation of rotations are compared by."""
    return {"joints": raw["joints"]}


def _reference_from_matrices(inputs: Inputs) -> Callable[[], Results]:
    given = {**inputs, "matrices": matrices(inputs["quaternions"]).contiguous()}
    del given["quaternions"]
    return timed_call(lambda given: apply(given, "reference"), given)


def local_matrices(inputs: Inputs) -> Any:
    """The inputs' rotations as matrices, for packages that take these."""
    return inputs["matrices"] if "matrices" in inputs else matrices(inputs["quaternions"]).contiguous()


def local_quaternions(inputs: Inputs) -> Any:
    """The inputs' rotations as quaternions wxyz, for packages that take these."""
    if "quaternions" in inputs:
        return inputs["quaternions"]
    from mgrpo.geometry import rotmat_to_quat

    return rotmat_to_quat(inputs["matrices"])


def _peers(parents: tuple[int, ...], gradient: bool, representation: str, frames: int) -> list[Implementation]:
    """The packages, each with its own representation of rotations, made outside of the timing. Those whose rotations
    are differentiable matrices take part in the backward pass too; loops over a package's products are ours, as these
    packages have no tree."""
    if gradient:
        if representation != "matrix":
            return []
        return [
            Implementation(name, "peer", lambda inputs, make=make: _with_gradient(make, inputs), package=package)
            for name, package, make in (
                ("smplx", "smplx", _smplx),
                ("smplfitter, torch", "smplfitter", _smplfitter_torch),
                ("body-models", "body-models", _body_models),
            )
        ]
    loops_left_out = "hundreds of small operations per joint: measured with 22 joints" if len(parents) > 22 else None
    found = [
        Implementation("smplx", "peer", lambda inputs: _forward(_smplx, inputs), joints_only, package="smplx"),
        Implementation(
            "smplfitter, torch",
            "peer",
            lambda inputs: _forward(_smplfitter_torch, inputs),
            joints_only,
            package="smplfitter",
        ),
        Implementation(
            "smplfitter, numba", "peer", _smplfitter_numba, joints_only, package="smplfitter-numba"
        ),
        Implementation(
            "body-models", "peer", lambda inputs: _forward(_body_models, inputs), joints_only, package="body-models"
        ),
        Implementation(
            "pytorch-kinematics", "peer", _pytorch_kinematics, joints_only, package="pytorch-kinematics",
            left_out=loops_left_out,
        ),
        Implementation("nanomanifold", "peer", _nanomanifold, package="nanomanifold", left_out=loops_left_out),
        Implementation("pypose", "peer", _pypose, package="pypose", left_out=loops_left_out),
        Implementation("roma", "peer", _roma, package="roma", left_out=loops_left_out),
        Implementation("scipy", "peer", _scipy, package="scipy", left_out=loops_left_out),
    ]  # fmt: skip
    return found


Make = Callable[[Inputs], Callable[[Any], Results]]
"""Inputs -> a function of (frames, J, 3, 3) rotations that returns world joints (and rotations)."""


def _forward(make: Make, inputs: Inputs) -> Callable[[], Results]:
    place, R = make(inputs), local_matrices(inputs)
    return lambda: place(R)


def _with_gradient(make: Make, inputs: Inputs) -> Callable[[], Results]:
    place = make(inputs)
    return timed_call(lambda given: place(given["matrices"]), inputs, ("matrices",))


def _smplx(inputs: Inputs) -> Callable[[Any], Results]:
    import torch

    place = peers.load("smplx", "smplx.lbs").batch_rigid_transform
    parents = torch.tensor(inputs["parents"], device=inputs["bones"].device)
    rest = rest_joints(inputs["bones"], inputs["parents"])

    def call(R: Any) -> Results:
        joints, relative = place(R, rest.expand(R.shape[0], -1, -1), parents)
        return {"joints": joints, "R": relative[..., :3, :3]}

    return call


def _smplfitter_torch(inputs: Inputs) -> Callable[[Any], Results]:
    rest = rest_joints(inputs["bones"], inputs["parents"])
    model = peers.smplfitter_model("pt", rest.cpu(), inputs["parents"]).to(rest.device)

    def call(R: Any) -> Results:
        placed = model(rel_rotmats=R, return_vertices=False)
        return {"joints": placed["joints"], "R": placed["orientations"]}

    return call


def _smplfitter_numba(inputs: Inputs) -> Callable[[], Results]:
    import numpy as np
    import torch

    model = peers.smplfitter_model("nb", rest_joints(inputs["bones"], inputs["parents"]), inputs["parents"])
    R = local_matrices(inputs).numpy()
    shape = np.zeros((len(R), 0), np.float32)

    def call() -> Results:
        placed = model(rel_rotmats=R, shape_betas=shape, return_vertices=False)
        return {"joints": torch.from_numpy(placed["joints"])}

    return call


def _body_models(inputs: Inputs) -> Callable[[Any], Results]:
    import torch

    kinematics = peers.load("body-models", "body_models._common.kinematics")
    fronts = kinematics.KinematicTree.from_parents(inputs["parents"]).fronts
    offsets = inputs["bones"]

    def call(R: Any) -> Results:
        local = kinematics.affine_transforms(R, offsets.expand(R.shape[0], -1, -1), xp=torch)
        world = kinematics.compose_kinematic_fronts(local, fronts, xp=torch)
        return {"joints": world[..., :3, 3], "R": world[..., :3, :3]}

    return call


def _pytorch_kinematics(inputs: Inputs) -> Callable[[], Results]:
    """A ball joint is three hinges there: R = Rx Ry Rz."""
    import torch

    peers.load("pytorch-kinematics")
    chains = peers.load("pytorch-kinematics", "pytorch_kinematics.chain")
    frame = peers.load("pytorch-kinematics", "pytorch_kinematics.frame")
    transforms = peers.load("pytorch-kinematics", "pytorch_kinematics.transforms")
    offsets, device = inputs["bones"], inputs["bones"].device
    world = frame.Frame("world")
    ends: list[Any] = []
    for joint, parent in enumerate(inputs["parents"]):
        above = world if parent < 0 else ends[parent]
        for number, axis in enumerate(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))):
            shift = transforms.Transform3d(pos=offsets[joint].cpu()) if number == 0 else None
            hinge = frame.Joint(f"{joint}_{number}", offset=shift, joint_type="revolute", axis=axis)
            below = frame.Frame(f"frame{joint}_{number}", joint=hinge)
            above.add_child(below)
            above = below
        ends.append(above)
    chain = chains.Chain(world, device="cpu").to(device=device)
    R = local_matrices(inputs)
    angles = torch.stack(
        [
            torch.atan2(-R[..., 1, 2], R[..., 2, 2]),
            torch.asin(R[..., 0, 2].clamp(-1, 1)),
            torch.atan2(-R[..., 0, 1], R[..., 0, 0]),
        ],
        dim=-1,
    ).flatten(1)
    names = chain.get_joint_parameter_names()
    order = [3 * int(name.split("_")[0]) + int(name.split("_")[1]) for name in names]
    angles = angles[:, order].contiguous()
    places = torch.tensor([chain.frame_to_idx[f"frame{joint}_2"] for joint in range(len(inputs["parents"]))])
    return lambda: {"joints": chain.forward_kinematics_tensor(angles)[places, :, :3, 3].transpose(0, 1)}


def _nanomanifold(inputs: Inputs) -> Callable[[], Results]:
    import torch

    SE3 = peers.load("nanomanifold", "nanomanifold.SE3")
    q, parents = local_quaternions(inputs), inputs["parents"]
    local = torch.cat([q, inputs["bones"].expand(len(q), -1, -1)], dim=-1)

    def call() -> Results:
        placed: list[Any] = []
        for joint, parent in enumerate(parents):
            placed.append(local[:, joint] if parent < 0 else SE3.multiply(placed[parent], local[:, joint]))
        return {"joints": torch.stack(placed, dim=1)[..., 4:]}

    return call


def _pypose(inputs: Inputs) -> Callable[[], Results]:
    import torch

    pypose = peers.load("pypose")
    q, parents = local_quaternions(inputs), inputs["parents"]
    xyzw = torch.cat([q[..., 1:], q[..., :1]], dim=-1)
    local = [
        pypose.SE3(torch.cat([inputs["bones"][joint].expand(len(q), 3), xyzw[:, joint]], dim=-1))
        for joint in range(len(parents))
    ]

    def call() -> Results:
        placed: list[Any] = []
        for joint, parent in enumerate(parents):
            placed.append(local[joint] if parent < 0 else placed[parent] @ local[joint])
        return {"joints": torch.stack([one.tensor()[..., :3] for one in placed], dim=1)}

    return call


def _roma(inputs: Inputs) -> Callable[[], Results]:
    import torch

    roma = peers.load("roma")
    q, parents, offsets = local_quaternions(inputs), inputs["parents"], inputs["bones"]
    local = torch.cat([q[..., 1:], q[..., :1]], dim=-1).contiguous()

    def call() -> Results:
        rotations: list[Any] = []
        joints: list[Any] = []
        for joint, parent in enumerate(parents):
            offset = offsets[joint].expand(len(local), 3)
            if parent < 0:
                rotations.append(local[:, joint])
                joints.append(offset)
            else:
                rotations.append(roma.quat_product(rotations[parent], local[:, joint]))
                joints.append(joints[parent] + roma.quat_action(rotations[parent], offset))
        torch.stack(rotations, dim=1)
        return {"joints": torch.stack(joints, dim=1)}

    return call


def _scipy(inputs: Inputs) -> Callable[[], Results]:
    import numpy as np
    import torch

    Rotation = peers.load("scipy").Rotation
    q, offsets, parents = local_quaternions(inputs).numpy(), inputs["bones"].numpy(), inputs["parents"]
    local = [Rotation.from_quat(q[:, joint, [1, 2, 3, 0]]) for joint in range(len(parents))]

    def call() -> Results:
        rotations: list[Any] = []
        joints: list[Any] = []
        for joint, parent in enumerate(parents):
            if parent < 0:
                rotations.append(local[joint])
                joints.append(np.broadcast_to(offsets[joint], (len(q), 3)))
            else:
                rotations.append(rotations[parent] * local[joint])
                joints.append(joints[parent] + rotations[parent].apply(offsets[joint]))
        return {"joints": torch.from_numpy(np.stack(joints, axis=1))}

    return call
