"""``group_rewards`` and ``motion_rewards`` in Triton.

Several kernels, with what passes between them in device memory, because Triton can index neither registers nor shared
memory by a joint's number: so this is not the one pass that ``cuda`` is. Rotations are decoded a joint per lane
(triton_rotations.py), bodies posed and frames aligned by the operators of ../kinematics and ../procrustes, points
compared and frames summed sequence by sequence (triton_frames.py). The mathematics is that of
``csrc/rewards/rewards_math.h``: README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from .._triton import PROOF_ARCHITECTURES, CompileCase, as_rows, block_lanes, compile_cases, launch
from ._names import JOINT_REWARDS
from .triton_frames import (
    TERMS,
    aligned_bwd_kernel,
    errors_fwd_kernel,
    frames_fwd_kernel,
    points_bwd_kernel,
    strengths_bwd_kernel,
)
from .triton_rotations import rotations_bwd_kernel, rotations_fwd_kernel

LARGEST_CHUNK = 128
ELEMENTS = 128
"""Of a (frames, points) block on a GPU: a warp per frame of a body."""
SUMMED = 128
"""Numbers of a sequence that are summed at a time, on a GPU and interpreted: the order of a sum is the same."""


@dataclass(frozen=True)
class _Call:
    """What is compared, and how. Numbers are those of csrc/rewards/rewards_options.h."""

    mask: Tensor
    """(B, G, T)"""
    rotations: Tensor | None
    """(B, G, T, ...) numbers of the rotations."""
    J: int
    target_rotmats: Tensor | None
    """(B, T, J, 3, 3), None where rotations are not compared."""
    joints: Tensor | None
    """(B, G, T, N, 3), None where no joint reward is wanted, or before bodies are posed."""
    target_joints: Tensor | None
    head: int
    feet: tuple[int, ...]
    foot_heights: tuple[float, ...]
    representation: int
    project: bool
    kinds: tuple[int, ...]
    slopes: tuple[float, ...]
    fps: float
    rotation_error: int
    alignment: int

    @property
    def frames(self) -> int:
        """Frames of all sequences."""
        return self.mask.numel()

    @property
    def numbers(self) -> int:
        """Numbers of a rotation."""
        return (9, 4, 6)[self.representation]

    @property
    def points(self) -> int:
        """Points of a frame; 0 without any."""
        return 0 if self.joints is None else self.joints.shape[3]

    def wants(self, name: str) -> bool:
        """Whether the reward ``name`` is asked for."""
        return JOINT_REWARDS.index(name) in self.kinds


def _strided(tensor: Tensor | None, inner: int, stand_in: Tensor) -> tuple[Any, ...]:
    """Pointer, sizes and strides of a tensor's rows, or of nothing."""
    if tensor is None:
        return stand_in, (1,), (0,)
    rows = as_rows(tensor, inner)
    return rows.tensor, rows.sizes, rows.strides


def _mask(call: _Call) -> tuple[Any, ...]:
    return _strided(call.mask.view(torch.uint8), 1, call.mask)


def _rotation_arguments(call: _Call) -> tuple[Any, ...]:
    given = _strided(call.rotations, call.rotations.dim() - 3, call.rotations)
    return *given, *_strided(call.target_rotmats, 3, call.rotations), *_mask(call)


def _rotation_options(call: _Call, block: int) -> dict[str, Any]:
    return {
        "REPRESENTATION": call.representation,
        "PROJECT": call.project,
        "ROTATION_ERROR": call.rotation_error,
        "COMPARE": call.target_rotmats is not None,
        "IN": call.numbers,
        "BLOCK": block,
        "num_warps": 4,
    }


def _decoded(call: _Call, store: bool) -> tuple[Tensor, Tensor]:
    """Matrices (B, G, T, 1 + J, 3, 3), the root's identity first, if ``store``; and, where rotations are compared,
    their differences (B, G, T, J), zero in frames that do not count."""
    (_, G, T), J, like = call.mask.shape, call.J, call.rotations
    rotmats = like.new_empty((*call.mask.shape, 1 + J, 3, 3) if store else (0,))
    differences = like.new_empty((*call.mask.shape, J) if call.target_rotmats is not None else (0,))
    count = call.frames * (J + store)
    block = block_lanes(count)
    launch(
        rotations_fwd_kernel, triton.cdiv(count, block),
        *_rotation_arguments(call), rotmats, differences, count, G, T, J,
        on=like, STORE=store, **_rotation_options(call, block),
    )  # fmt: skip
    return rotmats, differences


def _rotations_gradient(call: _Call, strengths: Tensor, grad_rotmats: Tensor | None) -> Tensor:
    (_, G, T), J, like = call.mask.shape, call.J, call.rotations
    grad = like.new_empty(like.shape)
    count = call.frames * J
    block = block_lanes(count)
    launch(
        rotations_bwd_kernel, triton.cdiv(count, block),
        *_rotation_arguments(call), strengths, like if grad_rotmats is None else grad_rotmats, grad, count, G, T, J,
        on=like, POSED=grad_rotmats is not None, **_rotation_options(call, block),
    )  # fmt: skip
    return grad


def _point_options(call: _Call) -> dict[str, Any]:
    chunk = min(max(triton.next_power_of_2(call.points), 16), LARGEST_CHUNK)
    return {"CHUNK": chunk, "BLOCK": block_lanes(call.frames, ELEMENTS // chunk), "num_warps": 4}


def _kind_options(call: _Call, kinds: Sequence[int]) -> dict[str, Any]:
    wanted = tuple(kind in kinds for kind in range(len(JOINT_REWARDS)))
    return {"WANTED": wanted, "FEET": call.feet, "HEIGHTS": call.foot_heights}


def _frame_terms(call: _Call, kinds: Sequence[int], aligned: Tensor) -> Tensor:
    (_, G, T), like = call.mask.shape, call.joints
    terms = like.new_empty((TERMS, call.frames))
    options = _point_options(call)
    launch(
        frames_fwd_kernel, triton.cdiv(call.frames, options["BLOCK"]),
        *_strided(like, 2, like), *_strided(call.target_joints, 2, like), *_mask(call), aligned, terms,
        call.frames, G, T, call.points, call.head,
        on=like, **_kind_options(call, kinds), **options,
    )  # fmt: skip
    return terms


def _sequence_options(call: _Call, like: Tensor) -> dict[str, Any]:
    """Those of the kernels that sum over frames: a program per sequence on a GPU."""
    return {
        "on": like,
        "KINDS": call.kinds,
        "SLOPES": call.slopes,
        "FPS": call.fps,
        "FEET": call.feet,
        "BLOCK": block_lanes(call.mask.shape[:2].numel(), 1),
        "SUMMED": SUMMED,
        "num_warps": 4,
        "maxnreg": 255,  # without a number the assembler aims at fewer, and spills
    }


def _errors(call: _Call, terms: Tensor, differences: Tensor) -> tuple[Tensor, Tensor]:
    (B, G, T), like = call.mask.shape, terms
    errors, rewards = like.new_empty((B, G, len(call.kinds))), like.new_empty((B, G, len(call.kinds)))
    options = _sequence_options(call, like)
    launch(
        errors_fwd_kernel, triton.cdiv(B * G, options["BLOCK"]),
        terms, differences, *_mask(call), errors, rewards, B * G, T, call.points, call.J, **options,
    )  # fmt: skip
    return errors, rewards


def _strengths(call: _Call, terms: Tensor, *given: Tensor) -> Tensor:
    """``given``: gradients of errors and of rewards, and the rewards."""
    (B, G, T), like = call.mask.shape, terms
    strengths = like.new_empty((B * G, len(JOINT_REWARDS)))
    options = _sequence_options(call, like)
    launch(
        strengths_bwd_kernel, triton.cdiv(B * G, options["BLOCK"]),
        *(tensor.contiguous() for tensor in given), terms, *_mask(call), strengths, B * G, T, call.points, call.J,
        **options,
    )  # fmt: skip
    return strengths


def _grad_aligned(call: _Call, strengths: Tensor, aligned: Tensor) -> Tensor:
    (_, G, T), like = call.mask.shape, call.joints
    grad = like.new_empty(like.shape)
    options = _point_options(call)
    launch(
        aligned_bwd_kernel, triton.cdiv(call.frames, options["BLOCK"]),
        *_strided(call.target_joints, 2, like), *_mask(call), aligned, strengths, grad, call.frames, G, T, call.points,
        on=like, **options,
    )  # fmt: skip
    return grad


def _points_gradient(call: _Call, strengths: Tensor, through_alignment: Tensor) -> Tensor:
    (_, G, T), like = call.mask.shape, call.joints
    grad = like.new_empty(like.shape)
    options = _point_options(call)
    launch(
        points_bwd_kernel, triton.cdiv(call.frames, options["BLOCK"]),
        *_strided(like, 2, like), *_strided(call.target_joints, 2, like), *_mask(call), strengths, through_alignment,
        grad, call.frames, G, T, call.points, call.head,
        on=like, **_kind_options(call, call.kinds), **options,
    )  # fmt: skip
    return grad


# The operators of alignment and of bodies.


def _clouds(call: _Call) -> tuple[Tensor, Tensor]:
    """What is aligned, and onto what."""
    pair = call.joints, call.target_joints[:, None].expand_as(call.joints)
    return pair if call.alignment == 0 else pair[::-1]


def _aligned(call: _Call) -> Tensor:
    if not call.wants("aligned_position"):
        return call.joints
    return torch.ops.mgrpo.procrustes_align(*_clouds(call), None, True, True, "triton")[0]


def _joints_gradient(call: _Call, strengths: Tensor) -> Tensor:
    through = call.joints
    if call.wants("aligned_position"):
        source, onto = _clouds(call)
        grad = _grad_aligned(call, strengths, _aligned(call))
        nothing = grad.new_zeros(call.frames, 13).split((9, 3, 1), 1)
        standard = call.alignment == 0
        grads = torch.ops.mgrpo.procrustes_align_backward(
            grad, *nothing, source, onto, None, True, True, standard, not standard, False, "triton"
        )
        through = grads[0 if standard else 1]
    return _points_gradient(call, strengths, through)


def _score(call: _Call, differences: Tensor) -> tuple[Tensor, Tensor]:
    if call.joints is None:
        return _errors(call, differences, differences)
    return _errors(call, _frame_terms(call, call.kinds, _aligned(call)), differences)


def _strengths_of(call: _Call, *given: Tensor) -> Tensor:
    terms = given[0]
    if call.wants("jitter"):  # whether the prediction's jerk is above the recording's
        terms = _frame_terms(call, [JOINT_REWARDS.index("jitter")], call.joints)
    return _strengths(call, terms, *given)


class _Body:
    """A skeleton with the root as first joint, and with the shapes of a batch."""

    def __init__(
        self, t_parent_joint: Tensor, t_head_cpf: Tensor, shapedirs: Tensor | None, head_shapedirs: Tensor | None,
        betas: Tensor | None, T_world_cpf: Tensor, parents: Sequence[int], head: int,
    ) -> None:  # fmt: skip
        self.options = ([-1, *(1 + parent for parent in parents)], 1 + head, "matrix", "positions")
        entries = pad(torch.cat((t_parent_joint, t_head_cpf[None])), (0, 0, 1, 0))
        self.directions = None
        if betas is not None and shapedirs is not None and head_shapedirs is not None:
            self.directions = pad(torch.cat((shapedirs, head_shapedirs[None])), (0, 0, 0, 0, 1, 0))
            entries = torch.ops.mgrpo.joint_offsets(entries, self.directions, betas, "triton")
        self.constants = (entries[..., :-1, :], T_world_cpf[:, None], entries[..., -1, :])

    def joints(self, rotmats: Tensor) -> Tensor:
        """Joints in the world for rotations."""
        return torch.ops.mgrpo.forward_kinematics(rotmats, *self.constants, *self.options, "triton")[0]

    def gradients(self, grad_joints: Tensor, rotmats: Tensor, want_betas: bool) -> tuple[Tensor, Tensor]:
        """Of the matrices and, if wanted, of betas."""
        grads = torch.ops.mgrpo.forward_kinematics_backward(
            grad_joints, None, None, rotmats, *self.constants, *self.options, [True, want_betas, False, want_betas],
            "triton",
        )  # fmt: skip
        if not want_betas:
            return grads[0], grads[1]
        entries = torch.cat((grads[1], grads[3][..., None, :]), -2)
        return grads[0], torch.ops.mgrpo.joint_offsets_backward(entries, self.directions, "triton")


def _group_call(
    joints: Tensor | None, target_joints: Tensor | None, rotmats: Tensor | None, target_rotmats: Tensor | None,
    mask: Tensor, head: int, feet: Sequence[int], foot_heights: Sequence[float], kinds: Sequence[int],
    slopes: Sequence[float], fps: float, rotation_error: int, alignment: int,
) -> _Call:  # fmt: skip
    return _Call(
        mask, rotmats, 0 if rotmats is None else rotmats.shape[3], target_rotmats, joints, target_joints,
        head, tuple(feet), tuple(foot_heights), 0, False, tuple(kinds), tuple(slopes), fps, rotation_error, alignment,
    )  # fmt: skip


def group_rewards_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Implementation of ``mgrpo::group_rewards``."""
    call = _group_call(*arguments)
    differences = call.joints if call.rotations is None else _decoded(call, False)[1]
    return _score(call, differences)


def group_rewards_backward(
    grad_errors: Tensor, grad_rewards: Tensor, rewards: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor]:
    """Implementation of ``mgrpo::group_rewards_backward``."""
    *given, want_joints, want_rotmats = arguments
    call = _group_call(*given)
    strengths = _strengths_of(call, grad_errors, grad_rewards, rewards)
    nothing = (rewards.new_empty(0), rewards.new_empty(0))
    return (
        _joints_gradient(call, strengths) if want_joints and call.joints is not None else nothing[0],
        _rotations_gradient(call, strengths, None) if want_rotmats and call.rotations is not None else nothing[1],
    )


def _motion_call(
    rotations: Tensor, betas: Tensor | None, T_world_cpf: Tensor, target_joints: Tensor | None,
    target_rotmats: Tensor | None, mask: Tensor, t_parent_joint: Tensor, t_head_cpf: Tensor,
    t_parent_joint_shapedirs: Tensor | None, t_head_cpf_shapedirs: Tensor | None, parents: Sequence[int], head: int,
    feet: Sequence[int], foot_heights: Sequence[float], representation: int, project: bool, kinds: Sequence[int],
    slopes: Sequence[float], fps: float, rotation_error: int, alignment: int,
) -> tuple[_Call, _Body | None]:  # fmt: skip
    call = _Call(
        mask, rotations, len(parents), target_rotmats, None, target_joints, 1 + head, tuple(1 + foot for foot in feet),
        tuple(foot_heights), representation, project, tuple(kinds), tuple(slopes), fps, rotation_error, alignment,
    )  # fmt: skip
    if target_joints is None:
        return call, None
    skeleton = (t_parent_joint, t_head_cpf, t_parent_joint_shapedirs, t_head_cpf_shapedirs)
    return call, _Body(*skeleton, betas, T_world_cpf, parents, head)


def motion_rewards_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Implementation of ``mgrpo::motion_rewards``."""
    call, body = _motion_call(*arguments)
    rotmats, differences = _decoded(call, body is not None)
    return _score(call if body is None else replace(call, joints=body.joints(rotmats)), differences)


def motion_rewards_backward(
    grad_errors: Tensor, grad_rewards: Tensor, rewards: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor]:
    """Implementation of ``mgrpo::motion_rewards_backward``."""
    *given, want_rotations, want_betas = arguments
    call, body = _motion_call(*given)
    want_betas = want_betas and body is not None and body.directions is not None
    grad_rotmats, grad_rotations, grad_betas = None, rewards.new_empty(0), rewards.new_empty(0)
    if body is None:
        strengths = _strengths_of(call, grad_errors, grad_rewards, rewards)
    else:
        rotmats, _ = _decoded(replace(call, target_rotmats=None), True)
        call = replace(call, joints=body.joints(rotmats))
        strengths = _strengths_of(call, grad_errors, grad_rewards, rewards)
        grad_rotmats, grad_betas = body.gradients(_joints_gradient(call, strengths), rotmats, want_betas)
        if want_betas:  # frames that do not count may hold anything
            grad_betas = torch.where(call.mask[..., None], grad_betas, 0.0)
    if want_rotations:
        grad_rotations = _rotations_gradient(call, strengths, grad_rotmats)
    return grad_rotations, grad_betas


# What the tests compile.


def _sample(dtype: torch.dtype, representation: int, project: bool, rotation_error: int) -> _Call:
    empty = partial(torch.empty, dtype=dtype)
    numbers = (9, 4, 6)[representation]
    return _Call(
        torch.ones(4, 1, 100, dtype=torch.bool).expand(4, 8, 100), empty(4, 8, 100, 21 * numbers), 21,
        empty(4, 100, 21, 3, 3), empty(4, 8, 100, 22, 3), empty(4, 100, 22, 3), 15, (7, 8, 10, 11),
        (0.08, 0.08, 0.04, 0.04), representation, project, tuple(range(8)), (1.0,) * 8, 30.0, rotation_error, 0,
    )  # fmt: skip


def _sample_rotations(dtype: torch.dtype, representation: int, project: bool, rotation_error: int) -> None:
    call = _sample(dtype, representation, project, rotation_error)
    rotmats, _ = _decoded(call, True)
    _rotations_gradient(call, call.joints, rotmats)


def _sample_points(dtype: torch.dtype) -> None:
    call = _sample(dtype, 0, False, 0)
    terms = _frame_terms(call, call.kinds, call.joints)
    scores = _errors(call, terms, terms)
    strengths = _strengths(call, terms, *scores, scores[1])
    _points_gradient(call, strengths, _grad_aligned(call, strengths, call.joints))


def _other_rotations(name: str, representation: int, rotation_error: int) -> CompileCase:
    run = partial(_sample_rotations, torch.float32, representation, False, rotation_error)
    return CompileCase(f"{name} float32", run, PROOF_ARCHITECTURES)


COMPILE_CASES = (
    *compile_cases("states", partial(_sample_rotations, representation=0, project=True, rotation_error=0)),
    _other_rotations("quaternions, axis-angle", 1, 1),
    _other_rotations("columns, frobenius", 2, 2),
    *compile_cases("points", _sample_points),
)
