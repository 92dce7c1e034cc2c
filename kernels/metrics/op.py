"""The registered operator ``mgrpo::motion_metrics``; it has no gradient."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._library import Kernel, cuda, define_op, native, native_cpu, native_cuda

COUNT = 16
"""Number of measures."""

_OPERATORS = ("motion_metrics_fwd",)


def _fake(pred_joints: Tensor, *arguments: Any) -> Tensor:
    return pred_joints.new_empty((COUNT, *pred_joints.shape[:-3]))


define_op(
    "motion_metrics",
    implementations={"cpp": native_cpu(_OPERATORS), "cuda": native_cuda(_OPERATORS)},
    forward=Kernel(
        "(Tensor pred_joints, Tensor target_joints, Tensor pred_rotmats, Tensor target_rotmats, Tensor? pred_head,"
        " Tensor? target_head, Tensor? mask, float fps, int head, int[] feet, float[] foot_heights, bool with_scale,"
        " bool short_way, str backend) -> Tensor",
        fake=_fake,
        backends={"cpp": native("motion_metrics_fwd"), "cuda": cuda("motion_metrics_fwd")},
    ),
)
