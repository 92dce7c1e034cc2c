"""Rewards of groups of motions: from joints (``group_rewards``), or in one pass from what a network outputs
(``motion_rewards``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import check_choice, check_device, check_integer, check_like, check_number, check_tensor
from .._dispatch import resolve
from .._library import call_op
from ..policy import group_advantages
from . import op as _op  # noqa: F401  (registers the operators)
from . import reference
from ._names import ALIGNMENTS, DEFAULT_SLOPES, JOINT_REWARDS, REPRESENTATIONS, ROTATION_ERRORS

__all__ = [
    "ALIGNMENTS",
    "DEFAULT_SLOPES",
    "JOINT_REWARDS",
    "REPRESENTATIONS",
    "ROTATION_ERRORS",
    "GroupRewards",
    "MotionRewards",
    "RewardSkeleton",
    "StateChannels",
    "group_rewards",
    "motion_rewards",
]


MOST_FEET = 16
MOST_JOINTS = 64


class GroupRewards(NamedTuple):
    """Result of :func:`group_rewards`, both (B, G, K) in the order of ``rewards``; NaN where a sequence has no frame
    (pair of frames, ...) to be scored on."""

    errors: Tensor
    """In the unit of each reward's error."""
    rewards: Tensor
    """exp(-slope * error), in (0, 1]."""


class MotionRewards(NamedTuple):
    """Result of :func:`motion_rewards`. ``errors`` and ``rewards`` carry gradients, the rest does not."""

    errors: Tensor
    """(B, G, K) in the order of ``rewards``; NaN where a sequence has no frame to be scored on."""
    rewards: Tensor
    """(B, G, K + E): exp(-slope * error), then the extra rewards as given."""
    advantages: Tensor | None
    """(B, G) of :func:`group_advantages`; None without ``with_advantages``, as are the fields below."""
    per_reward: Tensor | None
    """(B, G, K + E) each reward's unweighted part of the advantages."""
    std: Tensor | None
    """(B, K + E) spread of each reward inside its group."""
    dead: Tensor | None
    """(B, K + E) bool, the group says nothing about this reward."""
    alive: Tensor | None
    """(B,) bool, the group has something to learn from."""


class RewardSkeleton(NamedTuple):
    """A tree of J joints below a root, placed by the pose of its eyes. Indices count the J joints, without the root.

    The defaults are SMPL-H's 21 body joints. The tensors are constants: no gradient reaches them.
    """

    t_parent_joint: Tensor
    """(J, 3) joint origins in their parents' frames for betas = 0, metres."""
    t_head_cpf: Tensor
    """(3,) origin of the central pupil frame (CPF) in the head joint's axes for betas = 0, metres; the CPF has the
    head's orientation."""
    t_parent_joint_shapedirs: Tensor | None = None
    """(J, 3, S) change of ``t_parent_joint`` per unit of each shape number; None: the shape has no influence."""
    t_head_cpf_shapedirs: Tensor | None = None
    """(3, S) change of ``t_head_cpf``; given exactly if ``t_parent_joint_shapedirs`` is."""
    parents: tuple[int, ...] = (-1, -1, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 11, 12, 13, 15, 16, 17, 18)
    """J ints, -1 for a child of the root; parents stand before their children."""
    head: int = 14
    """The head joint."""
    feet: tuple[int, ...] = (6, 7, 9, 10)
    """Joints that must not slide: ankles and toes."""
    foot_heights: tuple[float, ...] = (0.08, 0.08, 0.04, 0.04)
    """Height of each of them under which it counts as near the floor, metres."""


class StateChannels(NamedTuple):
    """Where a packed state holds what the rewards need; the defaults are EgoAllo's layout."""

    betas: int = 0
    """First of the S shape numbers."""
    rotations: int = 16
    """First of the 9 J numbers of the local rotations, row-major 3x3 each."""


def group_rewards(
    pred_joints: Tensor | None,
    target_joints: Tensor | None,
    pred_rotmats: Tensor | None = None,
    target_rotmats: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    rewards: Sequence[str] = ("position", "aligned_position", "rotation", "velocity"),
    fps: float = 30.0,
    slopes: Mapping[str, float] | None = None,
    rotation_error: str = "geodesic",
    alignment: str = "standard",
    head: int = 15,
    feet: Sequence[int] = (7, 8, 10, 11),
    foot_heights: Sequence[float] = (0.08, 0.08, 0.04, 0.04),
    backend: str | None = None,
) -> GroupRewards:
    """Errors and rewards of G predicted motions per condition against the recorded one (MotionGRPO, section 3.3).

    With x the predicted and y the recorded joints, means over joints and over the frames that count:

    * ``position``: |x - y|, metres
    * ``aligned_position``: |a - y|, a the joints of each frame after the best similarity transform onto y, metres
    * ``rotation``: difference of the local rotations, radians (``frobenius``: no unit)
    * ``velocity``: |(x - y)_t - (x - y)_t-1| fps, m/s
    * ``foot_skate``: horizontal speed of the feet times 2 - 2^(z/H) below height H (of the later frame), m/s
    * ``ground_penetration``: depth of the deepest joint below z = 0, metres
    * ``jitter``: difference of the mean sizes of the third differences, fps^3, of x and of y, m/s^3
    * ``head_position``: |x - y| of the head joint, metres

    A reward is exp(-slope error). A difference counts where all its frames do. Gradients flow from both results to
    ``pred_joints`` and ``pred_rotmats``; they are 0 where a distance is 0.

    Args:
        pred_joints: (B, G, T, N, 3) world positions, metres, z up; float32 or float64. None if only ``rotation`` is
            wanted.
        target_joints: (B, T, N, 3); constants.
        pred_rotmats: (B, G, T, J, 3, 3) local rotations; None unless ``rotation`` is wanted.
        target_rotmats: (B, T, J, 3, 3); constants.
        mask: (B, T) or (B, G, T) bool, frames that count; None: all. Other frames may hold anything, NaN included.
        rewards: names from the list above, each once; only what they need is computed.
        fps: frames per second.
        slopes: of the exponentials by name, > 0; the others keep :data:`DEFAULT_SLOPES`.
        rotation_error: ``geodesic`` angle; ``axis_angle``, mean absolute difference of the wrapped rotation-vector
            components (the paper's); ``frobenius``, norm of the matrices' difference.
        alignment: ``standard`` aligns x onto y; ``egoallo`` aligns y onto x and measures how far it moved, which is
            what the published tables hold.
        head: row of the head joint, for ``head_position``.
        feet: rows of ankles and toes, for ``foot_skate``.
        foot_heights: H of each of them, metres.
        backend: see :mod:`mgrpo.kernels`; None chooses.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or value, or an argument is missing that a reward needs.
        BackendError: ``backend`` cannot serve the call.
    """
    function = "group_rewards"
    names = _check_names(function, rewards)
    sizes: dict[str, int] = {}
    given: dict[str, Tensor] = {}
    joint_reward = next((name for name in names if name != "rotation"), None)
    if joint_reward is not None:
        _require(function, "pred_joints", pred_joints, joint_reward)
        _require(function, "target_joints", target_joints, joint_reward)
        check_tensor(function, "pred_joints", pred_joints, ("B", "G", "T", "N", 3), sizes=sizes)
        check_tensor(function, "target_joints", target_joints, ("B", "T", "N", 3), sizes=sizes)
        given |= {"pred_joints": pred_joints, "target_joints": target_joints}
    if "rotation" in names:
        _require(function, "pred_rotmats", pred_rotmats, "rotation")
        _require(function, "target_rotmats", target_rotmats, "rotation")
        check_tensor(function, "pred_rotmats", pred_rotmats, ("B", "G", "T", "J", 3, 3), sizes=sizes)
        check_tensor(function, "target_rotmats", target_rotmats, ("B", "T", "J", 3, 3), sizes=sizes)
        given |= {"pred_rotmats": pred_rotmats, "target_rotmats": target_rotmats}
    like_name, like = next(iter(given.items()))
    for name, tensor in given.items():
        check_like(function, name, tensor, like_name, like)
        _check_not_empty(function, name, tensor)
    valid = _check_mask(function, mask, sizes, like_name, like)
    rows = sizes.get("N", 0)
    if "head_position" in names:
        _check_row(function, "head", head, rows)
    feet, heights = _check_feet(function, feet, foot_heights, rows) if "foot_skate" in names else ((), ())
    numbers = _check_numbers(function, names, fps, slopes, rotation_error, alignment)

    chosen = resolve(function, backend, *given.values())
    if chosen == "reference":
        errors = reference.errors(
            given.get("pred_joints"), _constant(given.get("target_joints")), given.get("pred_rotmats"),
            _constant(given.get("target_rotmats")), valid, names=names, fps=fps, rotation_error=rotation_error,
            alignment=alignment, head=head, feet=feet, foot_heights=heights,
        )  # fmt: skip
        return GroupRewards(errors, reference.rewards(errors, numbers.slopes))
    results = call_op("group_rewards",
        given.get("pred_joints"), _constant(given.get("target_joints")), given.get("pred_rotmats"),
        _constant(given.get("target_rotmats")), valid, head, feet, heights, *numbers, chosen,
    )  # fmt: skip
    return GroupRewards(*results)


def motion_rewards(
    motion: Tensor,
    T_world_cpf: Tensor,
    target_joints: Tensor | None,
    target_rotmats: Tensor | None,
    skeleton: RewardSkeleton,
    mask: Tensor | None = None,
    *,
    representation: str = "state",
    channels: StateChannels = StateChannels(),  # noqa: B008  (a named tuple of ints)
    betas: Tensor | None = None,
    project: bool = True,
    rewards: Sequence[str] = ("position", "aligned_position", "rotation", "velocity"),
    fps: float = 30.0,
    slopes: Mapping[str, float] | None = None,
    rotation_error: str = "geodesic",
    alignment: str = "standard",
    extra_rewards: Tensor | None = None,
    with_advantages: bool = True,
    advantage_options: Mapping[str, Any] | None = None,
    backend: str | None = None,
) -> MotionRewards:
    """From what a network outputs to what GRPO needs, in one pass: the joints never reach memory (``triton``: several).

    Each frame's rotations are projected, the tree is posed, placed so that its central pupil frame is the given one
    (``T_world_root = T_world_cpf T_head_cpf(betas)^-1 T_root_head^-1``, EgoAllo's rule), and compared with the
    recording as in :func:`group_rewards`, where the formulas stand. Then come the advantages of
    :func:`group_advantages`.

    Errors and rewards are differentiable in ``motion`` and ``betas``, through projection and placement.

    Args:
        motion: predicted motions of G members per condition, float32 or float64, by ``representation``:
            ``state`` (B, G, T, D), packed; ``matrix`` (B, G, T, J, 3, 3), local rotations; ``quaternion``
            (B, G, T, J, 4) wxyz, normalised here; ``rot6d`` (B, G, T, J, 6), two columns, made orthonormal here by
            Gram-Schmidt. Their lengths don't matter. Numbers that name no rotation (a zero quaternion or column, a
            second column parallel to the first) are the identity, with a zero gradient.
        T_world_cpf: (B, T, 7) pose of the central pupil frame, wxyz (of any length) and translation in metres, world
            z up: the clean one, so that no member pays for noise in its condition. A constant.
        target_joints: (B, T, 1 + J, 3) recorded joints, root first, metres; a constant. None if only ``rotation`` is
            wanted.
        target_rotmats: (B, T, J, 3, 3) recorded local rotations, a constant; None unless ``rotation`` is wanted.
        skeleton: the body.
        mask: (B, T) or (B, G, T) bool, frames that count; None: all. Other frames may hold anything, NaN included.
        representation: what ``motion`` holds.
        channels: where a state holds betas and rotations; read for ``state`` only.
        betas: (B, G, T, S) shape numbers per frame, or (*#B, S) to be broadcast: (B, 1, 1, S) for one shape per
            condition. None: zero, the skeleton's mean shape. Must be None for ``state``, which holds them.
        project: replace the matrices of ``state`` and ``matrix`` by the nearest rotations first (``project_so3``);
            False takes them as they are. The other representations are rotations already.
        rewards, fps, slopes, rotation_error, alignment: as in :func:`group_rewards`; head and feet are the skeleton's.
        extra_rewards: (B, G, E) or (B, G), rewards from elsewhere (a perceptual score), constants, appended to the
            joint rewards before the advantages.
        with_advantages: False leaves the advantages out; then groups of one member are allowed.
        advantage_options: keywords of :func:`group_advantages`, such as ``scheme``, ``weights`` (K + E,), ``valid``.
        backend: see :mod:`mgrpo.kernels`; None chooses.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or value, or an argument is missing that a reward needs.
        BackendError: ``backend`` cannot serve the call.
    """
    function = "motion_rewards"
    names = _check_names(function, rewards)
    check_choice(function, "representation", representation, REPRESENTATIONS)
    sizes = _check_skeleton(function, skeleton)
    J, S = sizes["J"], sizes.get("S", 0)
    tail = {"state": ("D",), "matrix": ("J", 3, 3), "quaternion": ("J", 4), "rot6d": ("J", 6)}[representation]
    check_tensor(function, "motion", motion, ("B", "G", "T", *tail), sizes=sizes)
    for name in ("t_parent_joint", "t_head_cpf", "t_parent_joint_shapedirs", "t_head_cpf_shapedirs"):
        if getattr(skeleton, name) is not None:
            check_like(function, f"skeleton.{name}", getattr(skeleton, name), "motion", motion)
    if representation == "state":
        if betas is not None:
            raise ValueError(f"{function}(): betas must be None for a state, which holds them, got a tensor")
        first, first_betas = channels.rotations, channels.betas
        for name, start, count in (("rotations", first, 9 * J), ("betas", first_betas, S)):
            start = check_integer(function, f"channels.{name}", start, minimum=0)
            if start + count > sizes["D"]:
                raise ValueError(
                    f"{function}(): motion must have D >= {start + count} channels to hold {count} numbers from "
                    f"channels.{name} = {start}, got {tuple(motion.shape)}"
                )
        rotations, shape = motion[..., first : first + 9 * J], motion[..., first_betas : first_betas + S]
        kind = "matrix"
    else:
        rotations, kind = motion.flatten(3), representation
        shape = _check_betas(function, betas, skeleton, sizes, motion)

    check_tensor(function, "T_world_cpf", T_world_cpf, ("B", "T", 7), sizes=sizes)
    check_like(function, "T_world_cpf", T_world_cpf, "motion", motion)
    joint_reward = next((name for name in names if name != "rotation"), None)
    if joint_reward is not None:
        _require(function, "target_joints", target_joints, joint_reward)
        sizes["1 + J"] = 1 + J
        check_tensor(function, "target_joints", target_joints, ("B", "T", "1 + J", 3), sizes=sizes)
        check_like(function, "target_joints", target_joints, "motion", motion)
    else:
        target_joints = None
    if "rotation" in names:
        _require(function, "target_rotmats", target_rotmats, "rotation")
        check_tensor(function, "target_rotmats", target_rotmats, ("B", "T", "J", 3, 3), sizes=sizes)
        check_like(function, "target_rotmats", target_rotmats, "motion", motion)
    else:
        target_rotmats = None
    _check_not_empty(function, "motion", motion)
    valid = _check_mask(function, mask, sizes, "motion", motion)
    numbers = _check_numbers(function, names, fps, slopes, rotation_error, alignment)
    extra = _check_extra(function, extra_rewards, sizes, motion)
    if with_advantages and sizes["G"] < 2:
        raise ValueError(
            f"{function}(): motion must have groups of G >= 2 members to compare (or with_advantages=False), "
            f"got {tuple(motion.shape)}"
        )
    if advantage_options and not with_advantages:
        raise ValueError(
            f"{function}(): advantage_options must be None unless with_advantages is True, "
            f"got {dict(advantage_options)}"
        )

    has_shape = joint_reward is not None and shape is not None and skeleton.t_parent_joint_shapedirs is not None
    constants = (
        _constant(T_world_cpf), _constant(target_joints), _constant(target_rotmats), valid,
        _constant(skeleton.t_parent_joint), _constant(skeleton.t_head_cpf),
        _constant(skeleton.t_parent_joint_shapedirs) if has_shape else None,
        _constant(skeleton.t_head_cpf_shapedirs) if has_shape else None,
    )  # fmt: skip
    shape = shape if has_shape else None
    feet = tuple(skeleton.feet) if "foot_skate" in names else ()
    heights = tuple(float(height) for height in skeleton.foot_heights) if "foot_skate" in names else ()
    tree = tuple(skeleton.parents)
    chosen = resolve(function, backend, motion, constants[4], *((constants[6], shape) if has_shape else ()))
    if chosen == "reference":
        pose = reference.decode(
            rotations, shape, *constants[4:], tree, representation=kind, project=project, valid=valid
        )
        joints = None
        if joint_reward is not None:
            joints = reference.place(pose, constants[0], tree, skeleton.head, valid)
        errors = reference.errors(
            joints, constants[1], pose.rotmats, constants[2], valid, names=names, fps=fps,
            rotation_error=rotation_error, alignment=alignment, head=1 + skeleton.head,
            feet=tuple(1 + foot for foot in feet), foot_heights=heights,
        )  # fmt: skip
        scores = reference.rewards(errors, numbers.slopes)
    else:
        errors, scores = call_op("motion_rewards",
            rotations, shape, *constants, tree, skeleton.head, feet, heights, REPRESENTATIONS.index(kind), project,
            *numbers, chosen,
        )  # fmt: skip
    if extra is not None:
        scores = torch.cat((scores, extra), dim=-1)
    if not with_advantages:
        return MotionRewards(errors, scores, None, None, None, None, None)
    # The reference asks no fused backend; the rewards' GPU backends need not exist for advantages.
    options = {"backend": "reference" if chosen == "reference" else None} | dict(advantage_options or {})
    group = group_advantages(scores, **options)
    return MotionRewards(errors, scores, group.advantages, group.per_reward, group.std, group.dead, group.alive)


class _Numbers(NamedTuple):
    """The options of the comparison in the order in which the registered operators take them."""

    kinds: tuple[int, ...]
    slopes: tuple[float, ...]
    fps: float
    rotation_error: int
    alignment: int


def _check_numbers(
    function: str,
    names: tuple[str, ...],
    fps: float,
    slopes: Mapping[str, float] | None,
    rotation_error: str,
    alignment: str,
) -> _Numbers:
    check_number(function, "fps", fps, minimum=0.0, exclusive_minimum=True)
    check_choice(function, "rotation_error", rotation_error, ROTATION_ERRORS)
    check_choice(function, "alignment", alignment, ALIGNMENTS)
    slopes = {} if slopes is None else slopes
    if not isinstance(slopes, Mapping):
        raise TypeError(f"{function}(): slopes must be a mapping of names to numbers, got {type(slopes).__name__}")
    for name, value in slopes.items():
        check_choice(function, "slopes", name, JOINT_REWARDS)
        check_number(function, f"slopes[{name!r}]", value, minimum=0.0, exclusive_minimum=True)
    return _Numbers(
        kinds=tuple(JOINT_REWARDS.index(name) for name in names),
        slopes=tuple(float(slopes.get(name, DEFAULT_SLOPES[name])) for name in names),
        fps=float(fps),
        rotation_error=ROTATION_ERRORS.index(rotation_error),
        alignment=ALIGNMENTS.index(alignment),
    )


def _check_names(function: str, rewards: Sequence[str]) -> tuple[str, ...]:
    if isinstance(rewards, str) or not isinstance(rewards, Sequence):
        raise TypeError(f"{function}(): rewards must be a sequence of names, got {type(rewards).__name__}")
    for name in rewards:
        check_choice(function, "rewards", name, JOINT_REWARDS)
    if not rewards or len(set(rewards)) != len(rewards):
        raise ValueError(f"{function}(): rewards must name at least one reward and each once, got {tuple(rewards)}")
    return tuple(rewards)


def _require(function: str, name: str, value: object, reward: str) -> None:
    if value is None:
        raise ValueError(f"{function}(): {name} must be given for the reward {reward!r}, got None")


def _check_not_empty(function: str, name: str, tensor: Tensor) -> None:
    if 0 in tensor.shape[1:]:
        raise ValueError(f"{function}(): {name} must have no empty axis after the first, got {tuple(tensor.shape)}")


def _check_mask(function: str, mask: Tensor | None, sizes: dict[str, int], like_name: str, like: Tensor) -> Tensor:
    """The mask as (B, G, T), expanded, not copied."""
    B, G, T = sizes["B"], sizes["G"], sizes["T"]
    if mask is None:
        return torch.ones((), dtype=torch.bool, device=like.device).expand(B, G, T)
    check_tensor(function, "mask", mask, dtypes=(torch.bool,))
    if tuple(mask.shape) not in ((B, T), (B, G, T)):
        raise ValueError(
            f"{function}(): mask must have shape (B, T) or (B, G, T) with B = {B}, G = {G}, T = {T}, "
            f"got {tuple(mask.shape)}"
        )
    check_device(function, "mask", mask, like_name, like.device)
    return mask if mask.dim() == 3 else mask[:, None].expand(B, G, T)


def _check_row(function: str, name: str, row: object, rows: int) -> int:
    number = check_integer(function, name, row, minimum=0)
    if number >= rows:
        raise ValueError(f"{function}(): {name} must be below {rows}, the number of joints, got {number}")
    return number


def _check_feet(
    function: str, feet: Sequence[int], heights: Sequence[float], rows: int, prefix: str = ""
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    if not 1 <= len(feet) == len(heights) <= MOST_FEET:
        raise ValueError(
            f"{function}(): {prefix}feet and {prefix}foot_heights must have the same length from 1 to {MOST_FEET}, "
            f"got {len(feet)} and {len(heights)}"
        )
    usual = all(type(foot) is int and 0 <= foot < rows for foot in feet) and all(
        type(height) is float and 0.0 < height < math.inf for height in heights
    )
    if usual:  # without a call per foot
        return tuple(feet), tuple(heights)
    for index, height in enumerate(heights):
        check_number(function, f"{prefix}foot_heights[{index}]", height, minimum=0.0, exclusive_minimum=True)
    return (
        tuple(_check_row(function, f"{prefix}feet[{index}]", foot, rows) for index, foot in enumerate(feet)),
        tuple(float(height) for height in heights),
    )


def _check_skeleton(function: str, skeleton: RewardSkeleton) -> dict[str, int]:
    if not isinstance(skeleton, RewardSkeleton):
        raise TypeError(f"{function}(): skeleton must be a RewardSkeleton, got {type(skeleton).__name__}")
    sizes: dict[str, int] = {}
    check_tensor(function, "skeleton.t_parent_joint", skeleton.t_parent_joint, ("J", 3), sizes=sizes)
    check_tensor(function, "skeleton.t_head_cpf", skeleton.t_head_cpf, (3,), sizes=sizes)
    if (skeleton.t_parent_joint_shapedirs is None) != (skeleton.t_head_cpf_shapedirs is None):
        given = "t_head_cpf" if skeleton.t_parent_joint_shapedirs is None else "t_parent_joint"
        raise ValueError(
            f"{function}(): skeleton must have both t_parent_joint_shapedirs and t_head_cpf_shapedirs, or neither, "
            f"got {given}_shapedirs alone"
        )
    if skeleton.t_parent_joint_shapedirs is not None:
        directions = skeleton.t_parent_joint_shapedirs
        check_tensor(function, "skeleton.t_parent_joint_shapedirs", directions, ("J", 3, "S"), sizes=sizes)
        check_tensor(function, "skeleton.t_head_cpf_shapedirs", skeleton.t_head_cpf_shapedirs, (3, "S"), sizes=sizes)
    J = sizes["J"]
    if not 1 <= J <= MOST_JOINTS:
        raise ValueError(f"{function}(): skeleton.t_parent_joint must have J from 1 to {MOST_JOINTS} joints, got {J}")
    if len(skeleton.parents) != J:
        raise ValueError(f"{function}(): skeleton.parents must have J = {J} entries, got {len(skeleton.parents)}")
    _check_parents(function, skeleton.parents)
    _check_row(function, "skeleton.head", skeleton.head, J)
    _check_feet(function, skeleton.feet, skeleton.foot_heights, J, "skeleton.")
    return sizes


def _check_parents(function: str, parents: Sequence[int]) -> None:
    if all(type(parent) is int and -1 <= parent < joint for joint, parent in enumerate(parents)):
        return  # nearly always: without a call per joint
    for joint, parent in enumerate(parents):
        if not -1 <= check_integer(function, f"skeleton.parents[{joint}]", parent) < joint:
            raise ValueError(
                f"{function}(): skeleton.parents[{joint}] must be -1 or the index of an earlier joint, got {parent}"
            )


def _check_betas(
    function: str, betas: Tensor | None, skeleton: RewardSkeleton, sizes: dict[str, int], motion: Tensor
) -> Tensor | None:
    """Shape numbers with the full batch (expanded, not copied), or None."""
    if betas is None:
        return None
    if skeleton.t_parent_joint_shapedirs is None:
        raise ValueError(f"{function}(): betas must be None for a skeleton without shapedirs, got a tensor")
    check_tensor(function, "betas", betas, ("*#batch", "S"), sizes=sizes)
    check_like(function, "betas", betas, "motion", motion)
    batch = motion.shape[:3]
    lead = betas.shape[:-1]
    if len(lead) > 3 or any(size != full and size != 1 for size, full in zip(reversed(lead), reversed(batch))):
        raise ValueError(
            f"{function}(): betas must have batch axes that broadcast to {tuple(batch)}, those of motion, "
            f"got {tuple(betas.shape)}"
        )
    return betas.expand(*batch, -1)


def _check_extra(function: str, extra: Tensor | None, sizes: dict[str, int], motion: Tensor) -> Tensor | None:
    if extra is None:
        return None
    check_tensor(function, "extra_rewards", extra)
    B, G = sizes["B"], sizes["G"]
    if extra.dim() not in (2, 3) or tuple(extra.shape[:2]) != (B, G):
        raise ValueError(
            f"{function}(): extra_rewards must have shape (B, G, E) or (B, G) with B = {B}, G = {G}, "
            f"got {tuple(extra.shape)}"
        )
    check_like(function, "extra_rewards", extra, "motion", motion)
    return (extra if extra.dim() == 3 else extra[:, :, None]).detach()


def _constant(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach()
