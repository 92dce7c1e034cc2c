"""The measures of an evaluation: sixteen numbers per sequence from joints and rotations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..bodies import matrices, normal, quaternions
from ..workload import PLAIN, Implementation, Inputs, Results, Workload, exact_call, first_rows, ours, timed_call

FRAMES = 128
JOINTS = 22
ROTATIONS = 21
MEASURES = 16
FPS, HEAD, FEET, HEIGHTS = 30.0, 15, (7, 8, 10, 11), (0.08, 0.08, 0.04, 0.04)
OPERATIONS = 10_000
"""Per frame: half of it 42 rotation vectors and 21 angles, a quarter the fit."""
NAMES = ("pred_joints", "target_joints", "pred_rotmats", "target_rotmats")
HEADS = ("pred_R_world_head", "target_R_world_head")


def apply(inputs: Inputs, backend: str) -> Results:
    """Ours."""
    from mgrpo.kernels import motion_metrics

    heads = {name: inputs[name] for name in HEADS}
    return motion_metrics(*(inputs[name] for name in NAMES), **heads, fps=FPS, backend=backend)._asdict()


def plain(inputs: Inputs) -> Results:
    """As evaluations write them: a singular value decomposition for each of the two fits, angles by the arc cosine of
    the trace; the other measures are the same few operations in either form."""
    import torch

    from mgrpo.kernels.metrics import reference

    pred, target, pred_R, target_R = (inputs[name] for name in NAMES)
    pred_head, target_head = (inputs[name] for name in HEADS)
    jitter = reference.jitter_m_s3(pred, None, FPS)
    ground = (pred, None, FEET, HEIGHTS)
    return {
        "mpjpe_mm": 1000.0 * (pred - target).norm(dim=-1).mean((-1, -2)),
        "pa_mpjpe_mm": 1000.0 * (_fitted(pred, target) - target).norm(dim=-1).mean((-1, -2)),
        "pa_mpjpe_egoallo_mm": 1000.0 * (_fitted(target, pred) - target).norm(dim=-1).mean((-1, -2)),
        "mpjve_mm_s": reference.mpjve_mm_s(pred, target, None, FPS),
        "mpjre_geodesic_deg": torch.rad2deg(_angle(pred_R, target_R).mean((-1, -2))),
        "mpjre_paper_deg": reference.mpjre_paper_deg(pred_R, target_R, None),
        "jitter_m_s3": jitter,
        "jitter_ratio": jitter / reference.jitter_m_s3(target, None, FPS),
        "gp_mean_mm": reference.gp_mean_mm(pred, None),
        "gp_sum_m": reference.gp_sum_m(pred, None),
        "fs_mm_per_contact_frame": reference.fs_mm_per_contact_frame(*ground),
        "fs_egoallo_m": reference.fs_egoallo_m(*ground),
        "head_position_mm": reference.head_position_mm(pred, target, None, HEAD),
        "head_angle_deg": torch.rad2deg(_angle(pred_head, target_head).mean(-1)),
        "head_rotation_frobenius": reference.head_rotation_frobenius(pred_head, target_head, None),
        "gnd": reference.gnd(*ground),
    }


def _fitted(source: Any, goal: Any) -> Any:
    """``source`` moved onto ``goal`` by the best similarity of each frame."""
    import torch

    centre, goal_centre = source.mean(-2, keepdim=True), goal.mean(-2, keepdim=True)
    source, goal = source - centre, goal - goal_centre
    U, D, Vh = torch.linalg.svd(source.mT @ goal)
    signs = torch.ones_like(D)
    signs[..., 2] = torch.linalg.det(U @ Vh).sign()
    scale = (D * signs).sum(-1) / source.square().sum((-1, -2))
    return scale[..., None, None] * (source @ ((U * signs[..., None, :]) @ Vh)) + goal_centre


def _angle(a: Any, b: Any) -> Any:
    """Radians."""
    trace = (a.mT @ b).diagonal(dim1=-2, dim2=-1).sum(-1)
    return ((trace - 1.0) / 2.0).clamp(-1.0, 1.0).acos()


def workloads(device: str, backends: Sequence[str] | None) -> list[Workload]:
    """All sizes."""
    return [workload(device, backends, count) for count in ((16, 256) if device == "cpu" else (256, 1024))]


def workload(device: str, backends: Sequence[str] | None, sequences: int) -> Workload:
    frames = sequences * FRAMES

    def make_inputs(seed: int) -> Inputs:
        import torch

        # A body that wanders, its feet about the heights that decide on contact.
        body = normal((JOINTS, 3), 5, device) * torch.tensor([0.2, 0.1, 0.4], device=device)
        target = body + 0.02 * normal((sequences, FRAMES, JOINTS, 3), seed, device).cumsum(1)
        target[..., 2] += 1.0
        target[:, :, FEET, 2] = 0.03 + 0.03 * normal((sequences, FRAMES, len(FEET)), 10 + seed, device)
        target_q = quaternions((sequences, FRAMES, ROTATIONS + 1), 20 + seed, device)
        q = target_q + 0.1 * normal((sequences, FRAMES, ROTATIONS + 1, 4), 30 + seed, device)
        R, target_R = matrices(q / q.norm(dim=-1, keepdim=True)), matrices(target_q)
        return {
            "pred_joints": target + 0.03 * normal((sequences, FRAMES, JOINTS, 3), 40 + seed, device),
            "target_joints": target,
            "pred_rotmats": R[:, :, :ROTATIONS].contiguous(),
            "target_rotmats": target_R[:, :, :ROTATIONS].contiguous(),
            "pred_R_world_head": R[:, :, ROTATIONS].contiguous(),
            "target_R_world_head": target_R[:, :, ROTATIONS].contiguous(),
        }

    return Workload(
        op="motion_metrics",
        name=f"metrics_{sequences}",
        title="All measures of an evaluation",
        items=frames,
        item="frame",
        size=f"{sequences:,} sequences of {FRAMES} frames",
        make_inputs=make_inputs,
        implementations=lambda: [
            *ours(device, "motion_metrics", apply, backends=backends),
            Implementation(PLAIN, "reference", partial(timed_call, plain)),
        ],
        exact=exact_call(apply),
        bytes_moved=4 * (2 * frames * (3 * JOINTS + 9 * (ROTATIONS + 1)) + sequences * MEASURES),
        operations=frames * OPERATIONS,
        device=device,
        tests=("tests/kernels/test_motion_metrics_op.py", "tests/kernels/test_ops.py"),
        rows=lambda inputs, count: first_rows(sequences)(inputs, max(1, count // FRAMES)),
    )
