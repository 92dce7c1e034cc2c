"""Bad arguments of every op: every message, word for word, in error_messages.json.

After a wanted change of wording: ``MGRPO_UPDATE_MESSAGES=1 pytest tests/kernels/test_kernel_errors.py``, then read the
difference.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from mgrpo import kernels
from mgrpo.kernels import (
    GuidanceWeights,
    HandTargets,
    KeypointTargets,
    NoiseKey,
    RewardSkeleton,
    StateChannels,
    WristTargets,
    _dispatch,
    forward_kinematics,
    group_advantages,
    group_rewards,
    grpo_loss,
    joint_offsets,
    motion_guidance,
    motion_metrics,
    motion_rewards,
    perlin_noise,
    philox_normal,
    procrustes_align,
    procrustes_residual,
    project_so3,
    projected_sde_step,
    sde_kl,
    sde_log_prob,
    sde_log_ratio,
    sde_step,
)

SNAPSHOT = Path(__file__).with_name("error_messages.json")
eye, zeros = torch.eye(3), torch.zeros
J3 = eye.expand(4, 3, 3, 3)
offsets = zeros(3, 3)


def without_gpu_backends(op: str, call: Callable[[], object]) -> object:
    """``call``, in a version of the package that has no Triton and no CUDA kernels for ``op``."""
    entry = _dispatch._ops[op]
    fewer = _dispatch.OpEntry({"cpp": entry.implementations["cpp"]}, entry.auto_order)
    with mock.patch.dict(_dispatch._ops, {op: fewer}):
        return call()


def changed(function: Callable[..., object], usual: dict[str, object]) -> Callable[..., Callable[[], object]]:
    """A maker of calls of ``function`` with some of its usual arguments changed. The usual ones are right."""

    def make(**changes: object) -> Callable[[], object]:
        return lambda: function(**{**usual, **changes})

    USUAL[function.__name__] = make()
    ARGUMENTS[function] = usual
    return make


def no_frames(*names: str) -> dict[str, torch.Tensor]:
    return dict.fromkeys(names, torch.zeros(5, 0, 12))


USUAL: dict[str, Callable[[], object]] = {}
ARGUMENTS: dict[Callable[..., object], dict[str, object]] = {}
meta = torch.device("meta")
points, state = zeros(5, 3), zeros(5, 7, 6)
groups, recording = zeros(2, 3, 4, 22, 3), zeros(2, 4, 22, 3)
turns, recorded_turns = eye.expand(2, 3, 4, 21, 3, 3), eye.expand(2, 4, 21, 3, 3)
body = RewardSkeleton(zeros(21, 3), zeros(3), zeros(21, 3, 16), zeros(3, 16))
clip = {"pred_joints": zeros(4, 22, 3), "target_joints": zeros(4, 22, 3)}
rows = torch.arange(5)

residual = changed(procrustes_residual, {"source": points, "target": points})
advantages = changed(group_advantages, {"rewards": torch.rand(2, 3, 4)})
loss = changed(grpo_loss, {"log_ratio": zeros(6), "advantages": zeros(6), "clip_range": 0.2})
guidance = changed(
    motion_guidance,
    {
        "rotmats": zeros(2, 5, 21, 3, 3),
        "t_parent_joint": zeros(21, 3),
        "T_world_head": zeros(5, 7),
        "contacts": zeros(2, 5, 4),
        "parents": range(-1, 20),
    },
)
perlin = changed(perlin_noise, {"frames": 9, "alpha": 0.1, "seed": 1, "iteration": 2, "condition": rows})
normal = changed(
    philox_normal, {"shape": (4,), "seed": 1, "iteration": 2, "condition": rows, "member": rows, "step": 0, "stream": 0}
)
key = changed(NoiseKey, {"seed": 1, "iteration": 2, "condition": rows, "member": rows, "step": 3})
transition = {"A": 0.5, "B": 0.5, "s": 0.1}
step = changed(sde_step, {"x_t": state, "x0_pred": state, "noise": state, **transition})
projected = changed(
    projected_sde_step,
    {"x_t": zeros(5, 7, 12), "x0_pred": zeros(5, 7, 12), "noise": zeros(5, 7, 12), **transition, "first_channel": 2,
     "matrices": 1},
)  # fmt: skip
log_prob = changed(sde_log_prob, {"x_prev": state, "x_t": state, "x0_pred": state, **transition})
log_ratio = changed(sde_log_ratio, {"x0_pred": state, "x0_pred_old": state, "noise": state, "B": 0.5, "s": 0.1})
divergence = changed(sde_kl, {"x0_pred": state, "x0_pred_ref": state, "B": 0.5, "s": 0.1})
metrics = changed(motion_metrics, {**clip, "pred_rotmats": recorded_turns[0], "target_rotmats": recorded_turns[0]})
rewards = changed(
    group_rewards,
    {"pred_joints": groups, "target_joints": recording, "pred_rotmats": turns, "target_rotmats": recorded_turns},
)
fused = changed(
    motion_rewards,
    {"motion": turns, "T_world_cpf": eye.new_ones(2, 4, 7), "target_joints": recording,
     "target_rotmats": recorded_turns, "skeleton": body, "representation": "matrix"},
)  # fmt: skip
packed = {"motion": zeros(2, 3, 4, 226), "representation": "state"}


CALLS: dict[str, Callable[[], object]] = {
    "project_so3: a list": lambda: project_so3([[1.0]]),
    "project_so3: numpy": lambda: project_so3(np.eye(3)),
    "project_so3: one axis": lambda: project_so3(zeros(3)),
    "project_so3: flat matrices": lambda: project_so3(zeros(4, 9)),
    "project_so3: 3x4": lambda: project_so3(zeros(2, 3, 4)),
    "project_so3: int64": lambda: project_so3(torch.eye(3, dtype=torch.int64)),
    "project_so3: bfloat16": lambda: project_so3(eye.bfloat16()),
    "project_so3: unknown backend": lambda: project_so3(eye, backend="jax"),
    "project_so3: backend not written": lambda: without_gpu_backends(
        "project_so3", lambda: project_so3(eye, backend="cuda")
    ),
    "use_backend: unknown": lambda: kernels.use_backend("fast").__enter__(),
    "forward_kinematics: flat matrices": lambda: forward_kinematics(zeros(4, 22, 9), zeros(22, 3), [-1] * 22),
    "forward_kinematics: other J in offsets": lambda: forward_kinematics(J3, zeros(4, 3), [-1, 0, 1]),
    "forward_kinematics: offsets of 2 numbers": lambda: forward_kinematics(J3, zeros(3, 2), [-1, 0, 1]),
    "forward_kinematics: offsets do not broadcast": lambda: forward_kinematics(J3, zeros(2, 3, 3), [-1, 0, 1]),
    "forward_kinematics: more offsets than poses": lambda: forward_kinematics(J3, zeros(5, 4, 3, 3), [-1, 0, 1]),
    "forward_kinematics: offsets of other dtype": lambda: forward_kinematics(J3, offsets.double(), [-1, 0, 1]),
    "forward_kinematics: offsets elsewhere": lambda: forward_kinematics(J3, offsets.to("meta"), [-1, 0, 1]),
    "joint_offsets: other J": lambda: joint_offsets(offsets, zeros(4, 3, 16), zeros(2, 16)),
    "joint_offsets: other S": lambda: joint_offsets(offsets, zeros(3, 3, 16), zeros(2, 10)),
    "joint_offsets: betas of other dtype": lambda: joint_offsets(offsets, zeros(3, 3, 16), zeros(2, 16).double()),
    "joint_offsets: unknown backend": lambda: joint_offsets(offsets, zeros(3, 3, 16), zeros(2, 16), backend="jax"),
    "forward_kinematics: too few parents": lambda: forward_kinematics(J3, offsets, [-1, 0]),
    "forward_kinematics: child before parent": lambda: forward_kinematics(J3, offsets, [-1, 2, 0]),
    "forward_kinematics: own parent": lambda: forward_kinematics(J3, offsets, [-1, 0, 2]),
    "forward_kinematics: parent below -1": lambda: forward_kinematics(J3, offsets, [-2, 0, 1]),
    "forward_kinematics: first joint has a parent": lambda: forward_kinematics(J3, offsets, [0, 0, 1]),
    "forward_kinematics: parents a tensor": lambda: forward_kinematics(J3, offsets, torch.tensor([-1, 0, 1])),
    "forward_kinematics: parents a number": lambda: forward_kinematics(J3, offsets, 3),
    "forward_kinematics: parents fractional": lambda: forward_kinematics(J3, offsets, [-1, 0.0, 1]),
    "forward_kinematics: parents bool": lambda: forward_kinematics(J3, offsets, [-1, False, 1]),
    "forward_kinematics: no joints": lambda: forward_kinematics(zeros(2, 0, 3, 3), zeros(0, 3), []),
    "forward_kinematics: root as a matrix": lambda: forward_kinematics(J3, offsets, [-1, 0, 1], zeros(4, 4, 4)),
    "forward_kinematics: root does not broadcast": lambda: forward_kinematics(J3, offsets, [-1, 0, 1], zeros(3, 7)),
    "forward_kinematics: root of other dtype": lambda: forward_kinematics(J3, offsets, [-1, 0, 1], zeros(7).double()),
    "forward_kinematics: root None as 0": lambda: forward_kinematics(J3, offsets, [-1, 0, 1], 0),
    "procrustes_align: 2-D points": lambda: procrustes_align(zeros(5, 2), zeros(5, 2)),
    "procrustes_align: other N": lambda: procrustes_align(zeros(5, 3), zeros(6, 3)),
    "procrustes_align: batches do not broadcast": lambda: procrustes_align(zeros(2, 5, 3), zeros(3, 5, 3)),
    "procrustes_align: other dtype": lambda: procrustes_align(zeros(5, 3), zeros(5, 3).double()),
    "procrustes_align: other device": lambda: procrustes_align(zeros(5, 3), zeros(5, 3, device="meta")),
    "procrustes_align: weights per coordinate": lambda: procrustes_align(zeros(5, 3), zeros(5, 3), zeros(5, 3)),
    "procrustes_align: weights of other N": lambda: procrustes_align(zeros(5, 3), zeros(5, 3), zeros(4)),
    "procrustes_align: weights do not broadcast": lambda: procrustes_align(zeros(2, 5, 3), zeros(5, 3), zeros(3, 5)),
    "procrustes_align: boolean weights": lambda: procrustes_align(zeros(5, 3), zeros(5, 3), zeros(5).bool()),
    "procrustes_align: half precision": lambda: procrustes_align(zeros(5, 3).half(), zeros(5, 3).half()),
    "procrustes_residual: a list": residual(source=[]),
    "procrustes_residual: 2-D points": residual(source=zeros(5, 2)),
    "procrustes_residual: other N": residual(target=zeros(6, 3)),
    "procrustes_residual: batches do not broadcast": residual(source=zeros(2, 5, 3), target=zeros(3, 5, 3)),
    "procrustes_residual: other dtype": residual(target=points.double()),
    "procrustes_residual: other device": residual(target=points.to(meta)),
    "procrustes_residual: half precision": residual(source=points.half(), target=points.half()),
    "procrustes_residual: weights per coordinate": residual(weights=zeros(5, 3)),
    "procrustes_residual: weights elsewhere": residual(weights=zeros(5, device=meta)),
    "procrustes_residual: unknown backend": residual(backend="jax"),
    "group_advantages: one axis": advantages(rewards=zeros(6)),
    "group_advantages: groups of one": advantages(rewards=zeros(6, 1, 3)),
    "group_advantages: no rewards": advantages(rewards=zeros(2, 3, 0)),
    "group_advantages: int64": advantages(rewards=zeros(2, 3).long()),
    "group_advantages: a list": advantages(rewards=[[1.0, 2.0]]),
    "group_advantages: unknown scheme": advantages(scheme="zscore"),
    "group_advantages: ddof": advantages(ddof=2),
    "group_advantages: negative eps": advantages(eps=-1.0),
    "group_advantages: eps a string": advantages(eps="1e-8"),
    "group_advantages: std_floor_ratio nan": advantages(std_floor_ratio=math.nan),
    "group_advantages: trim": advantages(trim=0.5),
    "group_advantages: clamp": advantages(clamp=0.0),
    "group_advantages: other K in weights": advantages(weights=[1.0, 2.0]),
    "group_advantages: infinite weights": advantages(weights=[1.0, 2.0, 3.0, math.inf]),
    "group_advantages: weights elsewhere": advantages(weights=zeros(4, device=meta)),
    "group_advantages: valid of other shape": advantages(valid=zeros(2, 4).bool()),
    "group_advantages: valid as numbers": advantages(valid=zeros(2, 3)),
    "group_advantages: valid elsewhere": advantages(valid=torch.ones(2, 3, dtype=torch.bool, device=meta)),
    "grpo_loss: int64": loss(log_ratio=zeros(6).long()),
    "grpo_loss: advantages a number": loss(advantages=1.0),
    "grpo_loss: advantages of other shape": loss(advantages=zeros(2, 3)),
    "grpo_loss: advantages elsewhere": loss(advantages=zeros(6, device=meta)),
    "grpo_loss: valid as numbers": loss(valid=zeros(6)),
    "grpo_loss: weights of other shape": loss(weights=zeros(3)),
    "grpo_loss: no clip range": loss(clip_range=0.0),
    "grpo_loss: clip range of three": loss(clip_range=(0.1, 0.2, 0.3)),
    "grpo_loss: clip range a string": loss(clip_range="0.2"),
    "grpo_loss: kl_coef without kl": loss(kl_coef=0.1),
    "grpo_loss: negative kl_coef": loss(kl_coef=-0.1),
    "grpo_loss: no denominator": loss(denominator=0),
    "grpo_loss: denominator of other shape": loss(denominator=zeros(2)),
    "motion_guidance: rotations of another form": guidance(rotmats=zeros(2, 5, 21, 9)),
    "motion_guidance: number of joints": guidance(rotmats=zeros(2, 5, 22, 3, 3)),
    "motion_guidance: half precision": guidance(rotmats=zeros(2, 5, 21, 3, 3).half()),
    "motion_guidance: bone offsets of another body": guidance(t_parent_joint=zeros(51, 3)),
    "motion_guidance: head poses of other frames": guidance(T_world_head=zeros(4, 7)),
    "motion_guidance: contacts of all joints": guidance(contacts=zeros(2, 5, 21)),
    "motion_guidance: contacts of another dtype": guidance(contacts=zeros(2, 5, 4).double()),
    "motion_guidance: batches that do not broadcast": guidance(contacts=zeros(3, 5, 4)),
    "motion_guidance: too few parents": guidance(parents=range(-1, 19)),
    "motion_guidance: parent after child": guidance(parents=[0, *range(20)]),
    "motion_guidance: lengths not whole": guidance(lengths=zeros(2)),
    "motion_guidance: too many lengths": guidance(lengths=zeros(3, dtype=torch.int64)),
    "motion_guidance: held frames not whole": guidance(held=zeros(2)),
    "motion_guidance: negative weight": guidance(weights=GuidanceWeights(foot_skating=-1.0)),
    "motion_guidance: weight not finite": guidance(weights=GuidanceWeights(smoothness=math.nan)),
    "motion_guidance: negative iterations": guidance(iterations=-1),
    "motion_guidance: unknown damping": guidance(damping="none"),
    "motion_guidance: wrists of one hand": guidance(wrists=WristTargets(zeros(5, 1, 7), zeros(5, 2))),
    "motion_guidance: form of wrists": guidance(wrists=WristTargets(zeros(5, 2, 7), zeros(5, 2), "both")),
    "motion_guidance: fingers that are not there": guidance(hands=HandTargets(zeros(5, 30, 3, 3), zeros(5, 2))),
    "motion_guidance: image points of no hand": guidance(
        keypoints=KeypointTargets(zeros(5, 2, 16, 2), zeros(5, 2), zeros(5, 7))
    ),
    "perlin_noise: no frames": perlin(frames=0),
    "perlin_noise: frames fractional": perlin(frames=9.0),
    "perlin_noise: no channels": perlin(channels=0),
    "perlin_noise: too many octaves": perlin(octaves=9),
    "perlin_noise: negative alpha": perlin(alpha=-0.1),
    "perlin_noise: lattice below 1": perlin(lattice=0.5),
    "perlin_noise: too many gradients": perlin(frames=1 << 40, lattice=1.0),
    "perlin_noise: negative seed": perlin(seed=-1),
    "perlin_noise: iteration too large": perlin(iteration=1 << 32),
    "perlin_noise: condition as numbers": perlin(condition=zeros(5)),
    "perlin_noise: condition a number": perlin(condition=3),
    "perlin_noise: condition of two axes": perlin(condition=rows[None]),
    "perlin_noise: negative condition": perlin(condition=rows - 2),
    "perlin_noise: other N in member": perlin(member=rows[:4]),
    "perlin_noise: member too large": perlin(member=rows + (1 << 16)),
    "perlin_noise: member elsewhere": perlin(member=rows.to(meta)),
    "philox_normal: shape a number": normal(shape=4),
    "philox_normal: negative shape": normal(shape=(-4,)),
    "philox_normal: too many numbers": normal(shape=(1 << 31,)),
    "philox_normal: step too large": normal(step=1 << 16),
    "philox_normal: stream too large": normal(stream=16),
    "NoiseKey: other N in member": key(member=rows[:4]),
    "NoiseKey: step as numbers": key(step=zeros(5)),
    "NoiseKey: a list": key(condition=[1, 2]),
    "sde_step: one axis": step(x_t=zeros(5)),
    "sde_step: int64": step(x_t=state.long()),
    "sde_step: other shape": step(x0_pred=zeros(5, 7, 5)),
    "sde_step: elsewhere": step(x0_pred=state.to(meta)),
    "sde_step: no noise": step(noise=None),
    "sde_step: noise of other shape": step(noise=zeros(7, 6)),
    "sde_step: key of other N": step(noise=NoiseKey(1, 2, rows[:4], rows[:4], 3)),
    "sde_step: A a string": step(A="1"),
    "sde_step: A nan": step(A=math.nan),
    "sde_step: other N in B": step(B=zeros(4)),
    "sde_step: negative s": step(s=-0.1),
    "sde_step: negative s in a row": step(s=torch.tensor([1.0, 1, 1, -1, 1])),
    "sde_step: no frames": step(**no_frames("x_t", "x0_pred", "noise")),
    "sde_step: mask without log-prob": step(mask=torch.ones(5, 7, dtype=torch.bool)),
    "projected_sde_step: negative channel": projected(first_channel=-1),
    "projected_sde_step: no matrices": projected(matrices=0),
    "projected_sde_step: too many matrices": projected(matrices=2),
    "projected_sde_step: channel fractional": projected(first_channel=1.5),
    "projected_sde_step: other shape": projected(x0_pred=zeros(5, 7, 11)),
    "projected_sde_step: int64": projected(x_t=zeros(5, 7, 12).long()),
    "projected_sde_step: no frames": projected(**no_frames("x_t", "x0_pred", "noise")),
    "projected_sde_step: no noise": projected(noise=None),
    "sde_log_prob: s is 0": log_prob(s=0.0),
    "sde_log_prob: no frames": log_prob(**no_frames("x_prev", "x_t", "x0_pred")),
    "sde_log_prob: no channels": log_prob(x_prev=zeros(5, 7, 0), x_t=zeros(5, 7, 0), x0_pred=zeros(5, 7, 0)),
    "sde_log_prob: unknown reduction": log_prob(reduction="max"),
    "sde_log_prob: other D in weights": log_prob(channel_weights=[1.0, 2.0]),
    "sde_log_prob: weights all 0": log_prob(channel_weights=zeros(6)),
    "sde_log_ratio: other shape": log_ratio(x0_pred_old=zeros(5, 7, 5)),
    "sde_log_ratio: no frames": log_ratio(**no_frames("x0_pred", "x0_pred_old", "noise")),
    "sde_log_ratio: None for noise": log_ratio(noise=None),
    "sde_log_ratio: key of other N": log_ratio(noise=NoiseKey(1, 2, rows[:4], rows[:4], 3)),
    "sde_log_ratio: int64": log_ratio(x0_pred=state.long()),
    "sde_log_ratio: elsewhere": log_ratio(x0_pred_old=state.to(meta)),
    "sde_log_ratio: s is 0": log_ratio(s=0.0),
    "sde_log_ratio: s of two axes": log_ratio(s=torch.ones(5, 1)),
    "sde_log_ratio: mask of other shape": log_ratio(mask=torch.ones(5, 6, dtype=torch.bool)),
    "sde_log_ratio: weights as a column": log_ratio(channel_weights=zeros(6, 1)),
    "sde_log_ratio: unknown backend": log_ratio(backend="jax"),
    "sde_kl: None": divergence(x0_pred_ref=None),
    "sde_kl: other shape": divergence(x0_pred_ref=zeros(5, 7, 5)),
    "sde_kl: no frames": divergence(**no_frames("x0_pred", "x0_pred_ref")),
    "sde_kl: elsewhere": divergence(x0_pred_ref=state.to(meta)),
    "sde_kl: s is 0": divergence(s=0.0),
    "sde_kl: unknown reduction": divergence(reduction="max"),
    "sde_kl: mask as numbers": divergence(mask=torch.ones(5, 7)),
    "sde_kl: negative weights": divergence(channel_weights=[1.0, -1, 1, 1, 1, 1]),
    "motion_metrics: a list": metrics(pred_joints=[]),
    "motion_metrics: 2-D joints": metrics(pred_joints=zeros(4, 22, 2)),
    "motion_metrics: other T": metrics(target_joints=zeros(5, 22, 3)),
    "motion_metrics: other J": metrics(target_joints=zeros(4, 21, 3)),
    "motion_metrics: other dtype": metrics(target_joints=zeros(4, 22, 3).double()),
    "motion_metrics: other device": metrics(pred_rotmats=recorded_turns[0].to(meta)),
    "motion_metrics: half precision": metrics(pred_joints=zeros(4, 22, 3).half()),
    "motion_metrics: batches do not broadcast": metrics(
        pred_joints=zeros(2, 4, 22, 3), target_joints=zeros(3, 4, 22, 3)
    ),
    "motion_metrics: no frames": metrics(
        pred_joints=zeros(0, 22, 3),
        target_joints=zeros(0, 22, 3),
        pred_rotmats=zeros(0, 21, 3, 3),
        target_rotmats=zeros(0, 21, 3, 3),
    ),
    "motion_metrics: mask as numbers": metrics(mask=torch.ones(4)),
    "motion_metrics: mask of other T": metrics(mask=torch.ones(5, dtype=torch.bool)),
    "motion_metrics: mask elsewhere": metrics(mask=torch.ones(4, dtype=torch.bool, device=meta)),
    "motion_metrics: one head": metrics(pred_R_world_head=eye.expand(4, 3, 3)),
    "motion_metrics: head is no joint": metrics(head=22),
    "motion_metrics: a foot is no joint": metrics(feet=(7, 8, 10, 30)),
    "motion_metrics: heights of other length": metrics(foot_heights=(0.1, 0.1)),
    "motion_metrics: no feet": metrics(feet=(), foot_heights=()),
    "motion_metrics: no height": metrics(foot_heights=(0.08, 0.08, 0.04, 0.0)),
    "motion_metrics: no fps": metrics(fps=0),
    "group_rewards: a list": rewards(pred_joints=[]),
    "group_rewards: no group axis": rewards(pred_joints=recording),
    "group_rewards: other T": rewards(target_joints=zeros(2, 5, 22, 3)),
    "group_rewards: other N": rewards(target_joints=zeros(2, 4, 21, 3)),
    "group_rewards: other J": rewards(target_rotmats=eye.expand(2, 4, 20, 3, 3)),
    "group_rewards: flat rotations": rewards(pred_rotmats=zeros(2, 3, 4, 21, 9)),
    "group_rewards: other dtype": rewards(target_joints=recording.double()),
    "group_rewards: other device": rewards(target_joints=recording.to(meta)),
    "group_rewards: half precision": rewards(pred_joints=groups.half()),
    "group_rewards: no frames": rewards(
        pred_joints=zeros(2, 3, 0, 22, 3), target_joints=zeros(2, 0, 22, 3), rewards=("position",)
    ),
    "group_rewards: no joints": rewards(pred_joints=None),
    "group_rewards: no target rotations": rewards(target_rotmats=None),
    "group_rewards: unknown reward": rewards(rewards=("position", "beauty")),
    "group_rewards: a reward twice": rewards(rewards=("position", "position")),
    "group_rewards: rewards a string": rewards(rewards="position"),
    "group_rewards: no rewards": rewards(rewards=()),
    "group_rewards: unknown slope": rewards(slopes={"beauty": 1.0}),
    "group_rewards: no slope": rewards(slopes={"position": 0.0}),
    "group_rewards: slopes a list": rewards(slopes=[1.0]),
    "group_rewards: unknown rotation error": rewards(rotation_error="angle"),
    "group_rewards: unknown alignment": rewards(alignment="none"),
    "group_rewards: no fps": rewards(fps=0.0),
    "group_rewards: mask as numbers": rewards(mask=torch.ones(2, 4)),
    "group_rewards: mask of other shape": rewards(mask=torch.ones(2, 5, dtype=torch.bool)),
    "group_rewards: mask elsewhere": rewards(mask=torch.ones(2, 4, dtype=torch.bool, device=meta)),
    "group_rewards: head is no joint": rewards(rewards=("head_position",), head=22),
    "group_rewards: a foot is no joint": rewards(rewards=("foot_skate",), feet=(7, 8, 10, 22)),
    "group_rewards: heights of other length": rewards(rewards=("foot_skate",), foot_heights=(0.1,)),
    "group_rewards: negative height": rewards(rewards=("foot_skate",), foot_heights=(0.1, 0.1, 0.1, -0.1)),
    "motion_rewards: a list": fused(motion=[]),
    "motion_rewards: flat rotations": fused(motion=zeros(2, 3, 4, 189)),
    "motion_rewards: other J": fused(motion=eye.expand(2, 3, 4, 20, 3, 3)),
    "motion_rewards: half precision": fused(motion=turns.half()),
    "motion_rewards: groups of one": fused(motion=turns[:, :1]),
    "motion_rewards: no frames": fused(
        motion=zeros(2, 3, 0, 21, 3, 3),
        T_world_cpf=zeros(2, 0, 7),
        target_joints=zeros(2, 0, 22, 3),
        target_rotmats=zeros(2, 0, 21, 3, 3),
    ),
    "motion_rewards: unknown representation": fused(representation="euler"),
    "motion_rewards: a narrow state": fused(**{**packed, "motion": zeros(2, 3, 4, 200)}),
    "motion_rewards: negative channel": fused(**packed, channels=StateChannels(betas=-1)),
    "motion_rewards: betas beside a state": fused(**packed, betas=zeros(2, 3, 4, 16)),
    "motion_rewards: betas that do not broadcast": fused(betas=zeros(3, 1, 1, 16)),
    "motion_rewards: other number of betas": fused(betas=zeros(2, 3, 4, 10)),
    "motion_rewards: betas without shapedirs": fused(
        betas=zeros(2, 3, 4, 16), skeleton=RewardSkeleton(zeros(21, 3), zeros(3))
    ),
    "motion_rewards: pose as a matrix": fused(T_world_cpf=zeros(2, 4, 4, 4)),
    "motion_rewards: pose of other T": fused(T_world_cpf=zeros(2, 5, 7)),
    "motion_rewards: pose of other dtype": fused(T_world_cpf=zeros(2, 4, 7).double()),
    "motion_rewards: pose elsewhere": fused(T_world_cpf=zeros(2, 4, 7, device=meta)),
    "motion_rewards: targets without the root": fused(target_joints=zeros(2, 4, 21, 3)),
    "motion_rewards: no target joints": fused(target_joints=None),
    "motion_rewards: no target rotations": fused(target_rotmats=None),
    "motion_rewards: skeleton a tuple": fused(skeleton=tuple(body)),
    "motion_rewards: child before parent": fused(skeleton=body._replace(parents=(1, -1, *body.parents[2:]))),
    "motion_rewards: too few parents": fused(skeleton=body._replace(parents=body.parents[:-1])),
    "motion_rewards: parents fractional": fused(skeleton=body._replace(parents=(-1.0, *body.parents[1:]))),
    "motion_rewards: head is no joint": fused(skeleton=body._replace(head=21)),
    "motion_rewards: a foot is no joint": fused(skeleton=body._replace(feet=(6, 7, 9, 21))),
    "motion_rewards: heights of other length": fused(skeleton=body._replace(foot_heights=(0.1,))),
    "motion_rewards: one of the shapedirs": fused(skeleton=body._replace(t_head_cpf_shapedirs=None)),
    "motion_rewards: skeleton of other dtype": fused(skeleton=body._replace(t_parent_joint=zeros(21, 3).double())),
    "motion_rewards: skeleton elsewhere": fused(skeleton=body._replace(t_head_cpf=zeros(3, device=meta))),
    "motion_rewards: extra rewards of other shape": fused(extra_rewards=zeros(2, 4)),
    "motion_rewards: extra rewards of other dtype": fused(extra_rewards=zeros(2, 3).double()),
    "motion_rewards: options without advantages": fused(with_advantages=False, advantage_options={"eps": 1.0}),
    "motion_rewards: mask of other shape": fused(mask=torch.ones(3, 4, dtype=torch.bool)),
    "motion_rewards: unknown backend": fused(backend="jax"),
}


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises((ValueError, TypeError, kernels.BackendError)) as caught:
        call()
    return f"{caught.type.__name__}: {caught.value}"


@pytest.mark.parametrize("name", USUAL)
def test_what_is_changed_was_right(name: str) -> None:
    USUAL[name]()


def test_every_op_is_here() -> None:
    assert {name.split(":")[0] for name in CALLS} >= set(kernels.registered_ops()) - {"philox_uniform"}


@pytest.mark.parametrize("name", CALLS)
def test_message(name: str) -> None:
    message = message_of(CALLS[name])
    # What this machine lacks (the extension, triton, a GPU) is not what this test is about.
    message = re.sub(r"cpp: (can serve it|the native extension [^;]*)", "cpp: <this machine>", message)
    lacks = "triton is not installed|there is no CUDA device|needs tensors on a CUDA device"
    message = re.sub(rf"triton: (can serve it|({lacks})[^;]*)", "triton: <this machine>", message)
    pinned = json.loads(SNAPSHOT.read_text()) if SNAPSHOT.exists() else {}
    if os.environ.get("MGRPO_UPDATE_MESSAGES") == "1":
        SNAPSHOT.write_text(json.dumps({**pinned, name: message}, indent=2, sort_keys=True) + "\n")
        return
    assert message == pinned[name]


def test_snapshot_holds_nothing_else() -> None:
    assert set(json.loads(SNAPSHOT.read_text())) == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_messages_have_the_house_form(name: str) -> None:
    message = json.loads(SNAPSHOT.read_text())[name]
    assert re.match(r"\w+: \w+\(\): .*(must .*, got |cannot serve this call)", message), message


def calls_with_tensors() -> list[tuple[Callable[..., object], dict[str, object]]]:
    """Every op with usual arguments."""
    own = {
        project_so3: {"matrices": eye},
        forward_kinematics: {"rotations": J3, "t_parent_joint": offsets, "parents": [-1, 0, 1]},
        procrustes_align: {"source": points, "target": points},
    }
    return [*own.items(), *ARGUMENTS.items()]


@pytest.mark.parametrize(("function", "usual"), calls_with_tensors(), ids=lambda value: getattr(value, "__name__", ""))
def test_tensors_that_are_no_arrays_are_refused(function: Callable[..., object], usual: dict[str, object]) -> None:
    names = [name for name, value in usual.items() if isinstance(value, torch.Tensor)]
    assert names
    for name in names:
        with pytest.raises(
            TypeError, match=rf"\(\): {name} must be a dense tensor \(torch.strided\), got a sparse_coo"
        ):
            function(**{**usual, name: usual[name].to_sparse()})


@pytest.mark.parametrize(
    ("function", "usual"),
    [(function, usual) for function, usual in calls_with_tensors() if function is not NoiseKey],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_tensors_without_values_give_shapes(function: Callable[..., object], usual: dict[str, object]) -> None:
    """On the meta device: what passes there reads no value."""
    empty = {name: value.to(meta) if isinstance(value, torch.Tensor) else value for name, value in usual.items()}
    if function is motion_rewards:
        empty["skeleton"] = RewardSkeleton(
            *(part.to(meta) if isinstance(part, torch.Tensor) else part for part in body)
        )
    expected = [part.shape for part in tensors_of(function(**usual))]
    for backend in (None, "reference"):
        got = tensors_of(function(**empty, backend=backend))
        assert [part.shape for part in got] == expected and all(part.device == meta for part in got)


def tensors_of(result: object) -> list[torch.Tensor]:
    parts = result if isinstance(result, tuple) else (result,)
    return [part for part in parts if isinstance(part, torch.Tensor)]


def test_fake_tensors_are_served() -> None:
    with FakeTensorMode() as mode:
        for device in ("cpu", "meta"):
            matrices = torch.empty(4, 3, 3, device=device)
            assert project_so3(matrices).shape == (4, 3, 3)
        assert project_so3(mode.from_tensor(torch.eye(3))).shape == (3, 3)


def test_negative_weights_are_found_in_debug_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    points, weights = torch.rand(5, 3), torch.tensor([1.0, 1, -2, 1, 1])
    procrustes_align(points, points, weights)
    monkeypatch.setenv("MGRPO_DEBUG", "1")
    with pytest.raises(ValueError, match=r"procrustes_align\(\): weights must be >= 0 everywhere, got .* -2"):
        procrustes_align(points, points, weights)
