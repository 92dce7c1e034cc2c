"""``forward_kinematics`` in Triton: one pose per lane.

A loop over the joints; what a joint leaves for its children waits in device memory, mostly in the results themselves.
(A tree unrolled by the compiler would keep it in registers, but takes triton more than 20 s to compile.)
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import PROOF_ARCHITECTURES, CompileCase, as_rows, block_lanes, compile_cases, launch
from .._triton_math import (
    cross,
    identity_like,
    load_mat3,
    load_vec3,
    mat3_add,
    mat3_scale,
    mat3_select,
    matmul,
    matvec,
    outer,
    program_rows,
    row_offset,
    store_vec3,
    times_transposed,
    transpose,
    transposed_matvec,
    transposed_times,
    vec3_add,
    vec3_scale,
    vec3_select,
    vec3_sub,
)
from .._triton_rotations import (
    matrix_quat,
    matrix_quat_grad,
    quat_conjugate,
    quat_matrix,
    quat_matrix_grad,
    quat_multiply,
    quat_rotate,
    rot6d_matrix,
    unit_quat,
    unit_quat_grad,
)
from .._triton_torque import (
    load_numbers,
    matrix_torque,
    quat_torque,
    quat_torque_grad,
    rot6d_torque_grad,
    store_numbers,
)

# REPRESENTATION and OUTPUT are the numbers of csrc/kinematics/kinematics_modes.h. The recursion carries a quaternion
# where quaternions come in, else a matrix: a state is a tuple of four or nine.
_MATRIX = tl.constexpr(0)
_QUATERNION = tl.constexpr(1)
_TO_MATRIX = tl.constexpr(0)
_TO_QUATERNION = tl.constexpr(1)
_TO_POSITIONS = tl.constexpr(2)

_NUMBERS_IN = (9, 4, 6)
_NUMBERS_OUT = (9, 4, 0)


# States.


@triton.jit
def _load_rotation(ptr, offset, mask, REPRESENTATION: tl.constexpr):
    """The numbers of a joint's rotation, as given."""
    if REPRESENTATION == _MATRIX:
        return load_mat3(ptr, offset, mask)
    elif REPRESENTATION == _QUATERNION:
        return load_numbers(ptr, offset, mask, 4)
    else:
        return load_numbers(ptr, offset, mask, 6)


@triton.jit
def _decode(numbers, REPRESENTATION: tl.constexpr):
    if REPRESENTATION == _MATRIX:
        return numbers
    elif REPRESENTATION == _QUATERNION:
        return unit_quat(numbers)[0]
    else:
        return rot6d_matrix((numbers[0], numbers[1], numbers[2]), (numbers[3], numbers[4], numbers[5]))


@triton.jit
def _compose(A, B):
    if len(A) == 4:
        return quat_multiply(A, B)
    else:
        return matmul(A, B)


@triton.jit
def _inverse(A):
    if len(A) == 4:
        return quat_conjugate(A)
    else:
        return transpose(A)


@triton.jit
def _rotate(A, v):
    if len(A) == 4:
        return quat_rotate(A, v)
    else:
        return matvec(A, v)


@triton.jit
def _rotate_back(A, v):
    if len(A) == 4:
        return quat_rotate(quat_conjugate(A), v)
    else:
        return transposed_matvec(A, v)


@triton.jit
def _as_quat(A):
    if len(A) == 4:
        return A
    else:
        return matrix_quat(A)


@triton.jit
def _as_matrix(A):
    if len(A) == 4:
        return quat_matrix(A)
    else:
        return A


# The root.


@triton.jit
def _load_root(ptr, offset, mask, like, REPRESENTATION: tl.constexpr, HAS_ROOT: tl.constexpr):
    """Rotation (as a state) and position of a pose of seven numbers; the identity without one."""
    if HAS_ROOT:
        unit, _ = unit_quat(load_numbers(ptr, offset, mask, 4))
        position = load_vec3(ptr, offset + 4, mask)
    else:
        zero = tl.zeros_like(like)
        unit = (zero + 1, zero, zero, zero)
        position = (zero, zero, zero)
    if REPRESENTATION == _QUATERNION:
        return unit, position
    else:
        return quat_matrix(unit), position


@triton.jit
def _joint_state(ptr, offset, mask, joint, REPRESENTATION: tl.constexpr, IN: tl.constexpr):
    """A joint's local rotation as a state."""
    return _decode(_load_rotation(ptr, offset + IN * joint, mask, REPRESENTATION), REPRESENTATION)


@triton.jit
def _cpf_from_root(
    rotations_ptr, rotation_offset, offsets_ptr, offset_offset, mask, t_head_cpf, parents_ptr, head,
    REPRESENTATION: tl.constexpr, IN: tl.constexpr,
):  # fmt: skip
    """The central pupil frame as seen from the root."""
    R = _joint_state(rotations_ptr, rotation_offset, mask, head, REPRESENTATION, IN)
    t = vec3_add(load_vec3(offsets_ptr, offset_offset + 3 * head, mask), _rotate(R, t_head_cpf))
    joint = tl.load(parents_ptr + head)
    while joint >= 0:
        L = _joint_state(rotations_ptr, rotation_offset, mask, joint, REPRESENTATION, IN)
        R = _compose(L, R)
        t = vec3_add(load_vec3(offsets_ptr, offset_offset + 3 * joint, mask), _rotate(L, t))
        joint = tl.load(parents_ptr + joint)
    return R, t


@triton.jit
def _root_under_cpf(R_cpf, t_cpf, R_in_root, t_in_root):
    R = _compose(R_cpf, _inverse(R_in_root))
    return R, vec3_sub(t_cpf, _rotate(R, t_in_root))


@triton.jit
def _select(condition, a, b):
    if len(a) == 3:
        return vec3_select(condition, a, b)
    elif len(a) == 4:
        return (
            tl.where(condition, a[0], b[0]), tl.where(condition, a[1], b[1]),
            tl.where(condition, a[2], b[2]), tl.where(condition, a[3], b[3]),
        )  # fmt: skip
    else:
        return mat3_select(condition, a, b)


@triton.jit
def _fk_fwd_kernel(
    rotations_ptr, rotations_sizes, rotations_strides,
    offsets_ptr, offsets_sizes, offsets_strides,
    root_ptr, root_sizes, root_strides,
    t_head_cpf_ptr, t_head_cpf_sizes, t_head_cpf_strides,
    parents_ptr, states_ptr, out_joints_ptr, out_world_ptr, out_root_ptr, count, J, head,
    REPRESENTATION: tl.constexpr, OUTPUT: tl.constexpr, HAS_ROOT: tl.constexpr, HAS_CPF: tl.constexpr,
    IN: tl.constexpr, STATE: tl.constexpr, OUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = program_rows(BLOCK)
    mask = row < count
    rotation_offset = row_offset(row, rotations_sizes, rotations_strides)
    offset_offset = row_offset(row, offsets_sizes, offsets_strides)
    like = load_vec3(offsets_ptr, offset_offset, mask)[0]
    root_offset = row_offset(row, root_sizes, root_strides)
    R_root, t_root = _load_root(root_ptr, root_offset, mask, like, REPRESENTATION, HAS_ROOT)
    if HAS_CPF:
        t_head_cpf = load_vec3(t_head_cpf_ptr, row_offset(row, t_head_cpf_sizes, t_head_cpf_strides), mask)
        R_cpf, t_cpf = _cpf_from_root(
            rotations_ptr, rotation_offset, offsets_ptr, offset_offset, mask, t_head_cpf, parents_ptr, head,
            REPRESENTATION, IN,
        )  # fmt: skip
        R_root, t_root = _root_under_cpf(R_root, t_root, R_cpf, t_cpf)
        store_numbers(out_root_ptr, 7 * row, _as_quat(R_root), mask)
        store_vec3(out_root_ptr, 7 * row + 4, t_root, mask)
    for j in range(J):
        parent = tl.load(parents_ptr + j)
        slot = row * J + parent
        under_joint = mask & (parent >= 0)
        R_parent = _select(parent < 0, R_root, load_numbers(states_ptr, slot * STATE, under_joint, STATE))
        t_parent = _select(parent < 0, t_root, load_vec3(out_joints_ptr, slot * 3, under_joint))
        L = _joint_state(rotations_ptr, rotation_offset, mask, j, REPRESENTATION, IN)
        world = _compose(R_parent, L)
        offset = load_vec3(offsets_ptr, offset_offset + 3 * j, mask)
        slot = row * J + j
        store_numbers(states_ptr, slot * STATE, world, mask)
        store_vec3(out_joints_ptr, slot * 3, vec3_add(t_parent, _rotate(R_parent, offset)), mask)
        if OUT != STATE:
            if OUTPUT == _TO_MATRIX:
                store_numbers(out_world_ptr, slot * OUT, _as_matrix(world), mask)
            if OUTPUT == _TO_QUATERNION:
                store_numbers(out_world_ptr, slot * OUT, _as_quat(world), mask)
        tl.debug_barrier()  # the children read what was stored


# Backward: general matrices carry dL/dR, nine numbers; proper rotations a torque, three.


@triton.jit
def _own_gradient(ptr, offset, mask, world, REPRESENTATION: tl.constexpr, OUTPUT: tl.constexpr, OUT: tl.constexpr):
    """What dL/d(a returned rotation) says about the state ``world``."""
    if OUTPUT == _TO_POSITIONS:
        zero = tl.zeros_like(world[0])
        if REPRESENTATION == _MATRIX:
            return zero, zero, zero, zero, zero, zero, zero, zero, zero
        else:
            return zero, zero, zero
    else:
        return _given_gradient(load_numbers(ptr, offset, mask, OUT), world, REPRESENTATION)


@triton.jit
def _given_gradient(grad, world, REPRESENTATION: tl.constexpr):
    if REPRESENTATION == _MATRIX:
        if len(grad) == 9:
            return grad
        else:
            return matrix_quat_grad(grad, world)
    else:
        if len(grad) == 9:
            return matrix_torque(grad, _as_matrix(world))
        else:
            return quat_torque(grad, _as_quat(world))


@triton.jit
def _add(a, b):
    if len(a) == 3:
        return vec3_add(a, b)
    else:
        return mat3_add(a, b)


@triton.jit
def _pull_back(torque, numbers, REPRESENTATION: tl.constexpr):
    """dL/d(numbers of a joint's rotation) from the torque about its parent's axes."""
    if REPRESENTATION == _QUATERNION:
        unit, inverse = unit_quat(numbers)
        return quat_torque_grad(torque, unit, inverse)
    else:
        return rot6d_torque_grad(torque, numbers)


@triton.jit
def _store_state(ptr, offset, world, mask, REPRESENTATION: tl.constexpr):
    """A world rotation in the room of its joint's gradient: of a matrix made from six numbers two columns fit."""
    if REPRESENTATION == 2:
        store_numbers(ptr, offset, (world[0], world[3], world[6], world[1], world[4], world[7]), mask)
    else:
        store_numbers(ptr, offset, world, mask)


@triton.jit
def _load_state(ptr, offset, mask, REPRESENTATION: tl.constexpr):
    if REPRESENTATION == 2:
        c = load_numbers(ptr, offset, mask, 6)
        w = cross((c[0], c[1], c[2]), (c[3], c[4], c[5]))
        return c[0], c[3], w[0], c[1], c[4], w[1], c[2], c[5], w[2]
    elif REPRESENTATION == _QUATERNION:
        return load_numbers(ptr, offset, mask, 4)
    else:
        return load_numbers(ptr, offset, mask, 9)


@triton.jit
def _add_numbers(ptr, offset, numbers, mask):
    """Adds to numbers that this lane has stored before."""
    for i in tl.static_range(len(numbers)):
        tl.store(ptr + offset + i, tl.load(ptr + offset + i, mask=mask, other=0.0) + numbers[i], mask=mask)


@triton.jit
def _fk_bwd_kernel(
    grad_joints_ptr, grad_joints_sizes, grad_joints_strides,
    grad_world_ptr, grad_world_sizes, grad_world_strides,
    grad_pose_ptr, grad_pose_sizes, grad_pose_strides,
    rotations_ptr, rotations_sizes, rotations_strides,
    offsets_ptr, offsets_sizes, offsets_strides,
    root_ptr, root_sizes, root_strides,
    t_head_cpf_ptr, t_head_cpf_sizes, t_head_cpf_strides,
    parents_ptr, sums_ptr, grad_rotations_ptr, grad_offsets_ptr, grad_root_ptr, grad_t_head_cpf_ptr, count, J, head,
    REPRESENTATION: tl.constexpr, OUTPUT: tl.constexpr,
    HAS_GRAD_JOINTS: tl.constexpr, HAS_GRAD_POSE: tl.constexpr, HAS_ROOT: tl.constexpr, HAS_CPF: tl.constexpr,
    WANTS_ROOT: tl.constexpr, WANTS_CPF: tl.constexpr,
    IN: tl.constexpr, OUT: tl.constexpr, CARRY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = program_rows(BLOCK)
    mask = row < count
    rotation_offset = row_offset(row, rotations_sizes, rotations_strides)
    offset_offset = row_offset(row, offsets_sizes, offsets_strides)
    joints_offset = row_offset(row, grad_joints_sizes, grad_joints_strides)
    world_offset = row_offset(row, grad_world_sizes, grad_world_strides)
    root_offset = row_offset(row, root_sizes, root_strides)
    like = load_vec3(offsets_ptr, offset_offset, mask)[0]
    zero = tl.zeros_like(like)
    R_placed, t_placed = _load_root(root_ptr, root_offset, mask, like, REPRESENTATION, HAS_ROOT)
    R_root = R_placed
    t_head_cpf = (zero, zero, zero)
    if HAS_CPF:
        t_head_cpf = load_vec3(t_head_cpf_ptr, row_offset(row, t_head_cpf_sizes, t_head_cpf_strides), mask)
        R_in_root, t_in_root = _cpf_from_root(
            rotations_ptr, rotation_offset, offsets_ptr, offset_offset, mask, t_head_cpf, parents_ptr, head,
            REPRESENTATION, IN,
        )  # fmt: skip
        R_root, _ = _root_under_cpf(R_placed, t_placed, R_in_root, t_in_root)

    # World rotations wait in the room of the gradients: each joint's is read last just before its own gradient, which
    # replaces it. A lane touches no room but its own pose's.
    for j in range(J):
        parent = tl.load(parents_ptr + j)
        above = _load_state(grad_rotations_ptr, (row * J + parent) * IN, mask & (parent >= 0), REPRESENTATION)
        L = _joint_state(rotations_ptr, rotation_offset, mask, j, REPRESENTATION, IN)
        world = _compose(_select(parent < 0, R_root, above), L)
        slot = row * J + j
        _store_state(grad_rotations_ptr, slot * IN, world, mask, REPRESENTATION)
        grad = _own_gradient(grad_world_ptr, world_offset + OUT * j, mask, world, REPRESENTATION, OUTPUT, OUT)
        store_numbers(sums_ptr, slot * CARRY, grad, mask)
        force = (zero, zero, zero)
        if HAS_GRAD_JOINTS:
            force = load_vec3(grad_joints_ptr, joints_offset + 3 * j, mask)
        store_vec3(grad_offsets_ptr, slot * 3, force, mask)
        tl.debug_barrier()

    root_grad = _own_gradient(grad_world_ptr, world_offset, mask, R_root, REPRESENTATION, _TO_POSITIONS, OUT)
    root_force = (zero, zero, zero)
    for i in range(J):
        j = J - 1 - i  # children first
        parent = tl.load(parents_ptr + j)
        slot = row * J + j
        parent_slot = row * J + parent
        under_joint = mask & (parent >= 0)
        above = _load_state(grad_rotations_ptr, parent_slot * IN, under_joint, REPRESENTATION)
        R_parent = _select(parent < 0, R_root, above)
        grad = load_numbers(sums_ptr, slot * CARRY, mask, CARRY)
        force = load_vec3(grad_offsets_ptr, slot * 3, mask)
        numbers = _load_rotation(rotations_ptr, rotation_offset + IN * j, mask, REPRESENTATION)
        t = load_vec3(offsets_ptr, offset_offset + 3 * j, mask)
        if REPRESENTATION == _MATRIX:
            passed = mat3_add(times_transposed(grad, numbers), outer(force, t))
            local_grad = transposed_times(R_parent, grad)
        else:
            passed = vec3_add(grad, cross(_rotate(R_parent, t), force))
            local_grad = _pull_back(_rotate_back(R_parent, grad), numbers, REPRESENTATION)
        _add_numbers(sums_ptr, parent_slot * CARRY, passed, under_joint)
        _add_numbers(grad_offsets_ptr, parent_slot * 3, force, under_joint)
        root_grad = _select(parent < 0, _add(root_grad, passed), root_grad)
        root_force = _select(parent < 0, vec3_add(root_force, force), root_force)
        store_numbers(grad_rotations_ptr, slot * IN, local_grad, mask)
        store_vec3(grad_offsets_ptr, slot * 3, _rotate_back(R_parent, force), mask)
        tl.debug_barrier()

    if HAS_CPF:
        if HAS_GRAD_POSE:
            pose_offset = row_offset(row, grad_pose_sizes, grad_pose_strides)
            grad_quat = load_numbers(grad_pose_ptr, pose_offset, mask, 4)
            root_grad = _add(root_grad, _given_gradient(grad_quat, R_root, REPRESENTATION))
            root_force = vec3_add(root_force, load_vec3(grad_pose_ptr, pose_offset + 4, mask))
        if REPRESENTATION == _MATRIX:
            G = mat3_add(root_grad, mat3_scale(-1.0, outer(root_force, t_in_root)))
            force = vec3_scale(-1.0, transposed_matvec(R_root, root_force))  # on the pupils, in the root's frame
            if WANTS_CPF:
                store_vec3(grad_t_head_cpf_ptr, 3 * row, transposed_matvec(R_in_root, force), mask)
            root_grad = matmul(G, R_in_root)
            G_joint = mat3_add(transposed_times(G, R_placed), outer(force, t_head_cpf))
            joint = head
            while joint >= 0:
                # The parent's rotation from the root, anew for each joint: the path is short.
                R_parent = identity_like(zero)
                above_joint = tl.load(parents_ptr + joint)
                while above_joint >= 0:
                    R_parent = matmul(load_mat3(rotations_ptr, rotation_offset + 9 * above_joint, mask), R_parent)
                    above_joint = tl.load(parents_ptr + above_joint)
                slot = row * J + joint
                _add_numbers(grad_rotations_ptr, slot * 9, transposed_times(R_parent, G_joint), mask)
                _add_numbers(grad_offsets_ptr, slot * 3, transposed_matvec(R_parent, force), mask)
                L = load_mat3(rotations_ptr, rotation_offset + 9 * joint, mask)
                t = load_vec3(offsets_ptr, offset_offset + 3 * joint, mask)
                G_joint = mat3_add(times_transposed(G_joint, L), outer(force, t))
                joint = tl.load(parents_ptr + joint)
        else:
            # With the pupils held, turning a joint between them and the root turns the rest of the body back. World
            # rotations are gone; from the pupils towards the root each is the last one times a local one's inverse.
            R_head = _compose(R_root, R_in_root)
            to_pupils = _rotate(R_head, t_head_cpf)
            reach = _rotate(R_root, t_in_root)  # from the root to the pupils
            if WANTS_CPF:
                store_vec3(grad_t_head_cpf_ptr, 3 * row, vec3_scale(-1.0, _rotate_back(R_head, root_force)), mask)
            world = R_head
            joint = head
            while joint >= 0:
                numbers = _load_rotation(rotations_ptr, rotation_offset + IN * joint, mask, REPRESENTATION)
                R_parent = _compose(world, _inverse(_decode(numbers, REPRESENTATION)))
                torque = vec3_sub(cross(vec3_sub(reach, to_pupils), root_force), root_grad)
                slot = row * J + joint
                pulled = _pull_back(_rotate_back(R_parent, torque), numbers, REPRESENTATION)
                _add_numbers(grad_rotations_ptr, slot * IN, pulled, mask)
                _add_numbers(grad_offsets_ptr, slot * 3, vec3_scale(-1.0, _rotate_back(R_parent, root_force)), mask)
                t = load_vec3(offsets_ptr, offset_offset + 3 * joint, mask)
                to_pupils = vec3_add(to_pupils, _rotate(R_parent, t))
                world = R_parent
                joint = tl.load(parents_ptr + joint)
            root_grad = vec3_sub(root_grad, cross(reach, root_force))
    if WANTS_ROOT:
        unit, inverse = unit_quat(load_numbers(root_ptr, root_offset, mask, 4))
        if REPRESENTATION == _MATRIX:
            store_numbers(
                grad_root_ptr, 7 * row, unit_quat_grad(quat_matrix_grad(root_grad, unit), unit, inverse), mask
            )
        else:
            store_numbers(grad_root_ptr, 7 * row, quat_torque_grad(root_grad, unit, inverse), mask)
        store_vec3(grad_root_ptr, 7 * row + 4, root_force, mask)


# ---- offsets that are linear in the shape: one number per lane ----


@triton.jit
def _joint_offsets_fwd_kernel(
    mean_ptr, directions_ptr, betas_ptr, betas_sizes, betas_strides, out_ptr, count,
    K: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = program_rows(BLOCK)
    mask = index < count
    k = index % K
    beta_offset = row_offset(index // K, betas_sizes, betas_strides)
    total = tl.load(mean_ptr + k, mask=mask, other=0.0)
    total = tl.zeros_like(total)
    for s in range(S):
        beta = tl.load(betas_ptr + beta_offset + s, mask=mask, other=0.0)
        total += tl.load(directions_ptr + k * S + s, mask=mask, other=0.0) * beta
    tl.store(out_ptr + index, tl.load(mean_ptr + k, mask=mask, other=0.0) + total, mask=mask)


@triton.jit
def _joint_offsets_bwd_kernel(
    directions_ptr, grad_ptr, grad_sizes, grad_strides, out_ptr, count,
    K: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = program_rows(BLOCK)
    mask = index < count
    s = index % S
    grad_offset = row_offset(index // S, grad_sizes, grad_strides)
    total = tl.zeros_like(tl.load(directions_ptr + s, mask=mask, other=0.0))
    for k in range(K):
        grad = tl.load(grad_ptr + grad_offset + k, mask=mask, other=0.0)
        total += tl.load(directions_ptr + k * S + s, mask=mask, other=0.0) * grad
    tl.store(out_ptr + index, total, mask=mask)


# ---- launchers ----


def _argument(tensor: Tensor | None, batch: torch.Size, inner: int, stand_in: Tensor) -> tuple[Any, ...]:
    """Pointer, sizes and strides of a tensor whose batch broadcasts, or of nothing."""
    if tensor is None:
        return stand_in, (1,), (0,)
    rows = as_rows(tensor.expand(*batch, *tensor.shape[tensor.dim() - inner :]), inner)
    return rows.tensor, rows.sizes, rows.strides


@lru_cache(maxsize=64)
def _parents_on(device: torch.device, parents: tuple[int, ...]) -> Tensor:
    """The tree in device memory, copied there on its first use."""
    return torch.tensor(parents, dtype=torch.int32, device=device)


def forward(
    rotations: Tensor,
    t_parent_joint: Tensor,
    root: Tensor | None,
    t_head_cpf: Tensor | None,
    parents: list[int],
    head: int,
    representation: int,
    output: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Implementation of ``mgrpo::forward_kinematics``, representation and output by number."""
    inner = 3 if representation == 0 else 2
    batch, J = rotations.shape[: rotations.dim() - inner], len(parents)
    count = batch.numel()
    world_axes = {0: (J, 3, 3), 1: (J, 4)}
    joints = rotations.new_empty((*batch, J, 3))
    world = rotations.new_empty((0,) if output == 2 else (*batch, *world_axes[output]))
    root_pose = rotations.new_empty((0,) if t_head_cpf is None else (*batch, 7))
    if count == 0:
        return joints, world, root_pose
    state = 4 if representation == 1 else 9
    states = world if _NUMBERS_OUT[output] == state else rotations.new_empty((count, J, state))
    block = block_lanes(count)
    launch(
        _fk_fwd_kernel, triton.cdiv(count, block),
        *_argument(rotations, batch, inner, joints), *_argument(t_parent_joint, batch, 2, joints),
        *_argument(root, batch, 1, joints), *_argument(t_head_cpf, batch, 1, joints),
        _parents_on(joints.device, tuple(parents)), states, joints, world, root_pose, count, J, head,
        on=joints, REPRESENTATION=representation, OUTPUT=output,
        HAS_ROOT=root is not None, HAS_CPF=t_head_cpf is not None,
        IN=_NUMBERS_IN[representation], STATE=state, OUT=_NUMBERS_OUT[output], BLOCK=block, num_warps=4,
    )  # fmt: skip
    return joints, world, root_pose


def backward(
    grad_joints: Tensor | None,
    grad_world: Tensor | None,
    grad_root: Tensor | None,
    rotations: Tensor,
    t_parent_joint: Tensor,
    root: Tensor | None,
    t_head_cpf: Tensor | None,
    parents: list[int],
    head: int,
    representation: int,
    output: int,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Implementation of ``mgrpo::forward_kinematics_backward``."""
    inner = 3 if representation == 0 else 2
    batch, J = rotations.shape[: rotations.dim() - inner], len(parents)
    count = batch.numel()
    if output == 2 or grad_world is None:
        grad_world, output = None, 2
    wants_root, wants_cpf = wanted[2] and root is not None, wanted[3] and t_head_cpf is not None
    # The first two are needed even where nobody asks for them: the kernel computes in their room.
    grad_rotations, grad_offsets = rotations.new_empty(rotations.shape), rotations.new_empty((*batch, J, 3))
    grad_placement = rotations.new_empty((*batch, 7) if wants_root else (0,))
    grad_t_head_cpf = rotations.new_empty((*batch, 3) if wants_cpf else (0,))
    nothing = rotations.new_empty((0,))
    grads = (
        grad_rotations if wanted[0] else nothing,
        grad_offsets if wanted[1] else nothing.clone(),
        grad_placement,
        grad_t_head_cpf,
    )
    if count == 0:
        return grads
    carry = 9 if representation == 0 else 3
    sums = rotations.new_empty((count, J, carry))
    block = block_lanes(count)
    launch(
        _fk_bwd_kernel, triton.cdiv(count, block),
        *_argument(grad_joints, batch, 2, rotations), *_argument(grad_world, batch, 3 if output == 0 else 2, rotations),
        *_argument(grad_root, batch, 1, rotations), *_argument(rotations, batch, inner, rotations),
        *_argument(t_parent_joint, batch, 2, rotations), *_argument(root, batch, 1, rotations),
        *_argument(t_head_cpf, batch, 1, rotations),
        _parents_on(rotations.device, tuple(parents)), sums,
        grad_rotations, grad_offsets, grad_placement, grad_t_head_cpf, count, J, head,
        on=rotations, REPRESENTATION=representation, OUTPUT=output,
        HAS_GRAD_JOINTS=grad_joints is not None, HAS_GRAD_POSE=grad_root is not None,
        HAS_ROOT=root is not None, HAS_CPF=t_head_cpf is not None,
        WANTS_ROOT=wants_root, WANTS_CPF=wants_cpf,
        IN=_NUMBERS_IN[representation], OUT=_NUMBERS_OUT[output], CARRY=carry, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return grads


def joint_offsets_forward(t_parent_joint: Tensor, shapedirs: Tensor, betas: Tensor) -> Tensor:
    """Implementation of ``mgrpo::joint_offsets``."""
    rows, (J, _, S) = as_rows(betas, 1), shapedirs.shape
    offsets = betas.new_empty((*betas.shape[:-1], J, 3))
    count = rows.count * 3 * J
    block = block_lanes(count)
    launch(
        _joint_offsets_fwd_kernel, triton.cdiv(count, block),
        t_parent_joint.contiguous(), shapedirs.contiguous(), rows.tensor, rows.sizes, rows.strides, offsets, count,
        on=offsets, K=3 * J, S=S, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return offsets


def joint_offsets_backward(grad_offsets: Tensor, shapedirs: Tensor) -> Tensor:
    """Implementation of ``mgrpo::joint_offsets_backward``."""
    rows, (J, _, S) = as_rows(grad_offsets, 2), shapedirs.shape
    grad_betas = grad_offsets.new_empty((*grad_offsets.shape[:-2], S))
    count = rows.count * S
    block = block_lanes(count)
    launch(
        _joint_offsets_bwd_kernel, triton.cdiv(count, block),
        shapedirs.contiguous(), rows.tensor, rows.sizes, rows.strides, grad_betas, count,
        on=grad_betas, K=3 * J, S=S, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return grad_betas


# ---- what the tests compile ----

_BODY = [-1, -1, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 11, 12, 13, 15, 16, 17, 18]
_HEAD = 14


def _sample(dtype: torch.dtype, representation: int, output: int, cpf: bool) -> None:
    def empty(*tail: int) -> Tensor:
        return torch.empty(1000, *tail, dtype=dtype)

    rotations = empty(21, *((3, 3), (4,), (6,))[representation])
    tensors = (rotations, empty(21, 3), empty(7), empty(3) if cpf else None)
    modes = (_BODY, _HEAD if cpf else -1, representation, output)
    joints, world, root = forward(*tensors, *modes)
    grads = (joints, world if output != 2 else None, root if cpf else None)
    backward(*grads, *tensors, *modes, [True] * 4)


def _sample_offsets(dtype: torch.dtype) -> None:
    directions = torch.empty(21, 3, 16, dtype=dtype)
    offsets = joint_offsets_forward(directions[..., 0].contiguous(), directions, torch.empty(1000, 16, dtype=dtype))
    joint_offsets_backward(offsets, directions)


def _with_cpf(name: str, representation: int, output: int) -> CompileCase:
    run = partial(_sample, torch.float32, representation, output, True)
    return CompileCase(f"{name} with cpf float32", run, PROOF_ARCHITECTURES)


COMPILE_CASES = (
    *compile_cases("matrix", lambda dtype: _sample(dtype, 0, 0, False)),
    *compile_cases("quaternion", lambda dtype: _sample(dtype, 1, 1, False)),
    _with_cpf("quaternion to positions", 1, 2),
    _with_cpf("rot6d to matrix", 2, 0),
    _with_cpf("matrix to quaternion", 0, 1),
    *compile_cases("joint offsets", _sample_offsets),
)
