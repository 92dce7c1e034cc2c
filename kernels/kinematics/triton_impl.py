"""``forward_kinematics`` in Triton: one pose per lane, the tree unrolled by the compiler."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import as_rows, block_lanes, compile_cases, launch
from .._triton_math import (
    cross,
    identity_like,
    load_mat3,
    load_vec3,
    mat3_add,
    mat3_scale,
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
    vec3_sub,
)
from .._triton_torque import (
    conjugate,
    load_numbers,
    matrix_quat,
    matrix_quat_grad,
    matrix_torque,
    quat_identity_like,
    quat_matrix,
    quat_matrix_grad,
    quat_multiply,
    quat_normalise,
    quat_rotate,
    quat_torque,
    quat_torque_grad,
    rot6d_matrix,
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
        return quat_normalise(numbers)[0]
    else:
        return rot6d_matrix(numbers)


@triton.jit
def _compose(A, B):
    if len(A) == 4:
        return quat_multiply(A, B)
    else:
        return matmul(A, B)


@triton.jit
def _inverse(A):
    if len(A) == 4:
        return conjugate(A)
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
        return quat_rotate(conjugate(A), v)
    else:
        return transposed_matvec(A, v)


@triton.jit
def _as_quat(A):
    if len(A) == 4:
        return A
    else:
        return matrix_quat(A)[0]


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
        unit, _ = quat_normalise(load_numbers(ptr, offset, mask, 4))
        position = load_vec3(ptr, offset + 4, mask)
    else:
        unit = quat_identity_like(like)
        position = (unit[1], unit[1], unit[1])
    if REPRESENTATION == _QUATERNION:
        return unit, position
    else:
        return quat_matrix(unit), position


@triton.jit
def _cpf_from_root(
    rotations_ptr, rotation_offset, offsets_ptr, offset_offset, mask, t_head_cpf,
    PATH: tl.constexpr, REPRESENTATION: tl.constexpr, IN: tl.constexpr,
):  # fmt: skip
    """The central pupil frame as seen from the root; PATH are the joints from the head to the root."""
    R = _decode(_load_rotation(rotations_ptr, rotation_offset + IN * PATH[0], mask, REPRESENTATION), REPRESENTATION)
    t = vec3_add(load_vec3(offsets_ptr, offset_offset + 3 * PATH[0], mask), _rotate(R, t_head_cpf))
    for i in tl.static_range(1, len(PATH)):
        L = _decode(_load_rotation(rotations_ptr, rotation_offset + IN * PATH[i], mask, REPRESENTATION), REPRESENTATION)
        R = _compose(L, R)
        t = vec3_add(load_vec3(offsets_ptr, offset_offset + 3 * PATH[i], mask), _rotate(L, t))
    return R, t


@triton.jit
def _root_under_cpf(R_cpf, t_cpf, R_in_root, t_in_root):
    R = _compose(R_cpf, _inverse(R_in_root))
    return R, vec3_sub(t_cpf, _rotate(R, t_in_root))


@triton.jit
def _fk_fwd_kernel(
    rotations_ptr, rotations_sizes, rotations_strides,
    offsets_ptr, offsets_sizes, offsets_strides,
    root_ptr, root_sizes, root_strides,
    t_head_cpf_ptr, t_head_cpf_sizes, t_head_cpf_strides,
    out_joints_ptr, out_world_ptr, out_root_ptr, count,
    PARENTS: tl.constexpr, PATH: tl.constexpr, REPRESENTATION: tl.constexpr, OUTPUT: tl.constexpr,
    HAS_ROOT: tl.constexpr, HAS_CPF: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    J: tl.constexpr = len(PARENTS)
    row = program_rows(BLOCK)
    mask = row < count
    rotation_offset = row_offset(row, rotations_sizes, rotations_strides)
    offset_offset = row_offset(row, offsets_sizes, offsets_strides)
    like = load_vec3(offsets_ptr, offset_offset, mask)[0]
    R_root, t_root = _load_root(
        root_ptr, row_offset(row, root_sizes, root_strides), mask, like, REPRESENTATION, HAS_ROOT
    )
    if HAS_CPF:
        t_head_cpf = load_vec3(t_head_cpf_ptr, row_offset(row, t_head_cpf_sizes, t_head_cpf_strides), mask)
        R_cpf, t_cpf = _cpf_from_root(
            rotations_ptr, rotation_offset, offsets_ptr, offset_offset, mask, t_head_cpf, PATH, REPRESENTATION, IN
        )
        R_root, t_root = _root_under_cpf(R_root, t_root, R_cpf, t_cpf)
        store_numbers(out_root_ptr, 7 * row, _as_quat(R_root), mask)
        store_vec3(out_root_ptr, 7 * row + 4, t_root, mask)
    worlds = ()
    positions = ()
    for j in tl.static_range(J):
        L = _decode(_load_rotation(rotations_ptr, rotation_offset + IN * j, mask, REPRESENTATION), REPRESENTATION)
        t = load_vec3(offsets_ptr, offset_offset + 3 * j, mask)
        if PARENTS[j] < 0:
            world = _compose(R_root, L)
            position = vec3_add(t_root, _rotate(R_root, t))
        else:
            world = _compose(worlds[PARENTS[j]], L)
            position = vec3_add(positions[PARENTS[j]], _rotate(worlds[PARENTS[j]], t))
        store_vec3(out_joints_ptr, (row * J + j) * 3, position, mask)
        if OUTPUT == _TO_MATRIX:
            store_numbers(out_world_ptr, (row * J + j) * OUT, _as_matrix(world), mask)
        if OUTPUT == _TO_QUATERNION:
            store_numbers(out_world_ptr, (row * J + j) * OUT, _as_quat(world), mask)
        worlds += (world,)
        positions += (position,)


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
        unit, inverse = quat_normalise(numbers)
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
    grad_rotations_ptr, grad_offsets_ptr, grad_root_ptr, grad_t_head_cpf_ptr, count,
    PARENTS: tl.constexpr, PATH: tl.constexpr, REPRESENTATION: tl.constexpr, OUTPUT: tl.constexpr,
    HAS_GRAD_JOINTS: tl.constexpr, HAS_GRAD_POSE: tl.constexpr, HAS_ROOT: tl.constexpr, HAS_CPF: tl.constexpr,
    WANTS_OFFSETS: tl.constexpr, WANTS_ROOT: tl.constexpr, WANTS_CPF: tl.constexpr,
    IN: tl.constexpr, OUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    J: tl.constexpr = len(PARENTS)
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
            rotations_ptr, rotation_offset, offsets_ptr, offset_offset, mask, t_head_cpf, PATH, REPRESENTATION, IN
        )
        R_root, _ = _root_under_cpf(R_placed, t_placed, R_in_root, t_in_root)

    # World rotations wait in the room of the gradients: each joint's is read last just before its own gradient, which
    # replaces it. A lane touches no room but its own pose's.
    worlds = ()
    for j in tl.static_range(J):
        L = _decode(_load_rotation(rotations_ptr, rotation_offset + IN * j, mask, REPRESENTATION), REPRESENTATION)
        if PARENTS[j] < 0:
            world = _compose(R_root, L)
        else:
            world = _compose(worlds[PARENTS[j]], L)
        _store_state(grad_rotations_ptr, (row * J + j) * IN, world, mask, REPRESENTATION)
        worlds += (world,)
    tl.debug_barrier()

    root_grad = _own_gradient(grad_world_ptr, world_offset, mask, R_root, REPRESENTATION, 2, OUT)
    root_force = (zero, zero, zero)
    passed_grads = ()  # from joint J - 1 - i to its parent
    passed_forces = ()
    for j in tl.static_range(J - 1, -1, -1):
        world = _load_state(grad_rotations_ptr, (row * J + j) * IN, mask, REPRESENTATION)
        grad = _own_gradient(grad_world_ptr, world_offset + OUT * j, mask, world, REPRESENTATION, OUTPUT, OUT)
        force = (zero, zero, zero)
        if HAS_GRAD_JOINTS:
            force = load_vec3(grad_joints_ptr, joints_offset + 3 * j, mask)
        for child in tl.static_range(J - 1, j, -1):
            if PARENTS[child] == j:
                grad = _add(grad, passed_grads[J - 1 - child])
                force = vec3_add(force, passed_forces[J - 1 - child])
        R_parent = R_root
        if PARENTS[j] >= 0:
            R_parent = _load_state(grad_rotations_ptr, (row * J + PARENTS[j]) * IN, mask, REPRESENTATION)
        numbers = _load_rotation(rotations_ptr, rotation_offset + IN * j, mask, REPRESENTATION)
        t = load_vec3(offsets_ptr, offset_offset + 3 * j, mask)
        if REPRESENTATION == _MATRIX:
            passed = mat3_add(times_transposed(grad, numbers), outer(force, t))
            local_grad = transposed_times(R_parent, grad)
        else:
            passed = vec3_add(grad, cross(_rotate(R_parent, t), force))
            local_grad = _pull_back(_rotate_back(R_parent, grad), numbers, REPRESENTATION)
        store_numbers(grad_rotations_ptr, (row * J + j) * IN, local_grad, mask)
        if WANTS_OFFSETS:
            store_vec3(grad_offsets_ptr, (row * J + j) * 3, _rotate_back(R_parent, force), mask)
        passed_grads += (passed,)
        passed_forces += (force,)
        if PARENTS[j] < 0:
            root_grad = _add(root_grad, passed)
            root_force = vec3_add(root_force, force)

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
            for i in tl.static_range(len(PATH)):
                # The parent's rotation from the root, anew for each joint: the path is short.
                R_parent = identity_like(zero)
                for above in tl.static_range(i + 1, len(PATH)):
                    L = load_mat3(rotations_ptr, rotation_offset + 9 * PATH[above], mask)
                    R_parent = matmul(L, R_parent)
                slot = row * J + PATH[i]
                _add_numbers(grad_rotations_ptr, slot * 9, transposed_times(R_parent, G_joint), mask)
                if WANTS_OFFSETS:
                    _add_numbers(grad_offsets_ptr, slot * 3, transposed_matvec(R_parent, force), mask)
                L = load_mat3(rotations_ptr, rotation_offset + 9 * PATH[i], mask)
                t = load_vec3(offsets_ptr, offset_offset + 3 * PATH[i], mask)
                G_joint = mat3_add(times_transposed(G_joint, L), outer(force, t))
        else:
            # With the pupils held, turning a joint between them and the root turns the rest of the body back.
            reach = (zero, zero, zero)  # from the root to the joint
            R_parent = R_root
            for i in tl.static_range(len(PATH) - 1, -1, -1):
                slot = row * J + PATH[i]
                reach = vec3_add(reach, _rotate(R_parent, load_vec3(offsets_ptr, offset_offset + 3 * PATH[i], mask)))
                numbers = _load_rotation(rotations_ptr, rotation_offset + IN * PATH[i], mask, REPRESENTATION)
                torque = _rotate_back(R_parent, vec3_sub(cross(reach, root_force), root_grad))
                _add_numbers(grad_rotations_ptr, slot * IN, _pull_back(torque, numbers, REPRESENTATION), mask)
                if WANTS_OFFSETS:
                    back = vec3_scale(-1.0, _rotate_back(R_parent, root_force))
                    _add_numbers(grad_offsets_ptr, slot * 3, back, mask)
                R_parent = _compose(R_parent, _decode(numbers, REPRESENTATION))
            reach = vec3_add(reach, _rotate(R_parent, t_head_cpf))
            if WANTS_CPF:
                store_vec3(grad_t_head_cpf_ptr, 3 * row, vec3_scale(-1.0, _rotate_back(R_parent, root_force)), mask)
            root_grad = vec3_sub(root_grad, cross(reach, root_force))
    if WANTS_ROOT:
        unit, inverse = quat_normalise(load_numbers(root_ptr, root_offset, mask, 4))
        if REPRESENTATION == _MATRIX:
            store_numbers(grad_root_ptr, 7 * row, quat_matrix_grad(root_grad, unit, inverse), mask)
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


def _path(parents: list[int], head: int) -> tuple[int, ...]:
    path = []
    while head >= 0:
        path.append(head)
        head = parents[head]
    return tuple(path)


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
    block = block_lanes(count)
    launch(
        _fk_fwd_kernel, triton.cdiv(count, block),
        *_argument(rotations, batch, inner, joints), *_argument(t_parent_joint, batch, 2, joints),
        *_argument(root, batch, 1, joints), *_argument(t_head_cpf, batch, 1, joints),
        joints, world, root_pose, count,
        on=joints, PARENTS=tuple(parents), PATH=_path(parents, head), REPRESENTATION=representation, OUTPUT=output,
        HAS_ROOT=root is not None, HAS_CPF=t_head_cpf is not None,
        IN=_NUMBERS_IN[representation], OUT=_NUMBERS_OUT[output], BLOCK=block, num_warps=4,
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
    # Needed even where nobody asks for it: the kernel keeps the world rotations there.
    grad_rotations = rotations.new_empty(rotations.shape)
    wants = (wanted[1], wanted[2] and root is not None, wanted[3] and t_head_cpf is not None)
    tails = ((J, 3), (7,), (3,))
    grads = [rotations.new_empty((*batch, *tail) if want else (0,)) for want, tail in zip(wants, tails)]
    if count == 0:
        return grad_rotations if wanted[0] else rotations.new_empty((0,)), *grads
    block = block_lanes(count)
    launch(
        _fk_bwd_kernel, triton.cdiv(count, block),
        *_argument(grad_joints, batch, 2, rotations), *_argument(grad_world, batch, 3 if output == 0 else 2, rotations),
        *_argument(grad_root, batch, 1, rotations), *_argument(rotations, batch, inner, rotations),
        *_argument(t_parent_joint, batch, 2, rotations), *_argument(root, batch, 1, rotations),
        *_argument(t_head_cpf, batch, 1, rotations),
        grad_rotations, *grads, count,
        on=rotations, PARENTS=tuple(parents), PATH=_path(parents, head), REPRESENTATION=representation, OUTPUT=output,
        HAS_GRAD_JOINTS=grad_joints is not None, HAS_GRAD_POSE=grad_root is not None,
        HAS_ROOT=root is not None, HAS_CPF=t_head_cpf is not None,
        WANTS_OFFSETS=wants[0], WANTS_ROOT=wants[1], WANTS_CPF=wants[2],
        IN=_NUMBERS_IN[representation], OUT=_NUMBERS_OUT[output], BLOCK=block, num_warps=4,
    )  # fmt: skip
    return grad_rotations if wanted[0] else rotations.new_empty((0,)), *grads


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


def _sample(dtype: torch.dtype, representation: int, output: int, cpf: bool, and_backward: bool = True) -> None:
    def empty(*tail: int) -> Tensor:
        return torch.empty(1000, *tail, dtype=dtype)

    rotations = empty(21, *((3, 3), (4,), (6,))[representation])
    tensors = (rotations, empty(21, 3), empty(7), empty(3) if cpf else None)
    modes = (_BODY, _HEAD if cpf else -1, representation, output)
    joints, world, root = forward(*tensors, *modes)
    if and_backward:
        grads = (joints, world if output != 2 else None, root if cpf else None)
        backward(*grads, *tensors, *modes, [True] * 4)


def _sample_offsets(dtype: torch.dtype) -> None:
    directions = torch.empty(21, 3, 16, dtype=dtype)
    offsets = joint_offsets_forward(directions[..., 0].contiguous(), directions, torch.empty(1000, 16, dtype=dtype))
    joint_offsets_backward(offsets, directions)


COMPILE_CASES = (
    *compile_cases("matrix", lambda dtype: _sample(dtype, 0, 0, False)),
    *compile_cases("quaternion", lambda dtype: _sample(dtype, 1, 1, False)),
    *compile_cases("quaternion with cpf", lambda dtype: _sample(dtype, 1, 2, True), [torch.float32]),
    *compile_cases("rot6d with cpf", lambda dtype: _sample(dtype, 2, 0, True), [torch.float32]),
    *compile_cases("matrix with cpf", lambda dtype: _sample(dtype, 0, 1, True), [torch.float32]),
    *compile_cases("joint offsets", _sample_offsets),
)
