"""Guidance of given motions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mgrpo.body.model import BodyModel
from mgrpo.errors import InputError
from mgrpo.geometry import quat_normalize, se3, se3_multiply
from mgrpo.guidance.config import GuidanceConfig, Phase
from mgrpo.guidance.observations import HandObservations
from mgrpo.kernels import HandTargets, KeypointTargets, WristTargets, motion_guidance, project_so3
from mgrpo.kernels._shapes import broadcast_shape
from mgrpo.kernels.guidance import FEET

NUM_BODY = 21
NUM_HANDS = 30


class GuidedMotion(NamedTuple):
    """What guidance made of motions ``(*b, T, …)``."""

    body_rotmats: Tensor
    """Local rotations ``(*b, T, 21, 3, 3)``; proper rotations."""
    hand_rotmats: Tensor | None
    """Local finger rotations ``(*b, T, 30, 3, 3)``; None where none were given."""
    costs: Tensor
    """Cost before and after every iteration ``(*b, iterations + 1)``; never rises."""
    iterations: Tensor
    """Iterations made ``(*b,)``."""


@torch.no_grad()
def guide(
    body: BodyModel,
    body_rotmats: Tensor,
    betas: Tensor,
    contacts: Tensor,
    T_world_cpf: Tensor,
    *,
    hand_rotmats: Tensor | None = None,
    mask: Tensor | None = None,
    held: int = 0,
    observations: HandObservations | None = None,
    config: GuidanceConfig | None = None,
    phase: Phase = "post",
    backend: str | None = None,
) -> GuidedMotion:
    """Correct motions: each is one least-squares problem over all its frames (facts: H), solved on the device of
    ``body_rotmats``. The central pupil frame stays where it is given.

    Args:
        body: the skeleton. With ``hand_rotmats`` it must have finger joints.
        body_rotmats: local rotations to start from and to stay near ``(*b, T, 21, 3, 3)``; replaced by the nearest
            rotations.
        betas: body shapes, ``(*#b, T, 16)`` or ``(*#b, 1, 16)``; their mean over (real) frames is used.
        contacts: contact flags ``(*#b, T, 21)`` as predicted: weights of the feet's costs, not squashed.
        T_world_cpf: head poses ``(*#b, T, 7)``, wxyz and xyz, metres, z up; the floor's height doesn't matter.
        hand_rotmats: local finger rotations ``(*b, T, 30, 3, 3)``, left hand first; None for motion without fingers,
            where only wrists can be drawn to what was seen.
        mask: ``(*#b, T)`` bool, True = a real frame; real frames come first. Others are returned as they are.
        held: first frames that stay as they are (projected), while the later ones go on from them: those of which the
            result was given away already.
        observations: hands that were seen, in the same world; what a mode needs must be there.
        config: costs and iterations; default :class:`~mgrpo.guidance.config.GuidanceConfig`.
        phase: ``post`` after sampling or ``inner`` within it: the iterations, and whether image points have a cost.
        backend: of :func:`mgrpo.kernels.motion_guidance`; None chooses.

    Memory in the compiled backends, for each motion being solved (one per thread on the CPU): about 20 kB per frame,
    45 kB with wrists, 180 kB with image points. Very long recordings are better guided in pieces.

    A motion that guidance can't make better (or that holds NaN) is returned as it is (projected).

    Raises:
        InputError: shapes that don't fit, a mask with gaps, ``held`` out of range, or a mode whose observations are
            missing.
    """
    config = GuidanceConfig() if config is None else config
    if body_rotmats.ndim < 4 or tuple(body_rotmats.shape[-3:]) != (NUM_BODY, 3, 3):
        raise InputError(f"guide(): body_rotmats must have shape (*b, T, 21, 3, 3), got {tuple(body_rotmats.shape)}")
    frames = body_rotmats.shape[-4]
    _check_shapes(body, frames, betas=betas, contacts=contacts, T_world_cpf=T_world_cpf, hand_rotmats=hand_rotmats)
    dtype = torch.float64 if body_rotmats.dtype == torch.float64 else torch.float32
    rotmats = project_so3(body_rotmats.to(dtype))
    if hand_rotmats is not None:
        fingers = project_so3(hand_rotmats.to(dtype)).expand(*rotmats.shape[:-3], NUM_HANDS, 3, 3)
        rotmats = torch.cat((rotmats, fingers), dim=-3)
    if not config.enabled:
        count = config.iterations(phase) + 1
        zero = rotmats.new_zeros(*rotmats.shape[:-4], count)
        return _split(rotmats, zero, zero[..., 0].long(), hand_rotmats is not None)

    lengths = None if mask is None else _real_frames(mask, frames)
    if not 0 <= held <= frames:
        raise InputError(f"guide(): held must be from 0 to the {frames} frames of the motion, got {held}")
    betas = _mean_shape(betas.to(rotmats), mask, frames)
    T_world_cpf = T_world_cpf.to(rotmats)
    T_world_cpf = torch.cat((quat_normalize(T_world_cpf[..., :4]), T_world_cpf[..., 4:]), dim=-1)
    offset = body.t_head_cpf(betas).to(rotmats).unsqueeze(-2)
    identity = offset.new_tensor([1.0, 0.0, 0.0, 0.0]).expand(*offset.shape[:-1], 4)
    T_world_head = se3_multiply(T_world_cpf, se3(identity, -offset))
    wrists, hands, keypoints = _targets(config, phase, observations, T_world_cpf, rotmats, frames)
    joints = rotmats.shape[-3]
    try:
        found = motion_guidance(
            rotmats,
            body.t_parent_joint(betas).to(rotmats)[..., :joints, :],
            T_world_head,
            contacts.to(rotmats)[..., list(FEET)],
            parents=body.parents[:joints],
            lengths=lengths,
            held=torch.full(rotmats.shape[:-4], held, dtype=torch.int64, device=rotmats.device) if held else None,
            weights=config.weights_for(observations is not None and observations.hamer is not None),
            wrists=wrists,
            hands=hands,
            keypoints=keypoints,
            iterations=config.iterations(phase),
            damping=config.damping,
            backend=backend,
        )
    except ValueError as error:
        raise InputError(f"guide(): {error}") from error
    return _split(found.rotmats, found.costs, found.iterations, hand_rotmats is not None)


def _split(rotmats: Tensor, costs: Tensor, iterations: Tensor, hands: bool) -> GuidedMotion:
    return GuidedMotion(
        rotmats[..., :NUM_BODY, :, :], rotmats[..., NUM_BODY:, :, :] if hands else None, costs, iterations
    )


def _check_shapes(
    body: BodyModel, frames: int, *, betas: Tensor, contacts: Tensor, T_world_cpf: Tensor, hand_rotmats: Tensor | None
) -> None:
    for name, value, tail, lengths in (
        ("betas", betas, (16,), (1, frames)),
        ("contacts", contacts, (NUM_BODY,), (frames,)),
        ("T_world_cpf", T_world_cpf, (7,), (frames,)),
        ("hand_rotmats", hand_rotmats, (NUM_HANDS, 3, 3), (frames,)),
    ):
        if value is None:
            continue
        axes = len(tail)
        if value.ndim <= axes or tuple(value.shape[-axes:]) != tail or value.shape[-axes - 1] not in lengths:
            wanted = ", ".join(("*b", str(frames), *map(str, tail)))
            raise InputError(f"guide(): {name} must have shape ({wanted}), got {tuple(value.shape)}")
    if hand_rotmats is not None and body.num_joints < NUM_BODY + NUM_HANDS:
        raise InputError(
            f"guide(): hand_rotmats were given, but body '{body.name}' has {body.num_joints} joints and no fingers; "
            "take a body with 51 joints, or leave the hands out"
        )


def _real_frames(mask: Tensor, frames: int) -> Tensor:
    """Number of real frames ``(*b,)``; they must come first."""
    if mask.dtype != torch.bool or mask.shape[-1] != frames:
        raise InputError(f"guide(): mask must be boolean of shape (*b, {frames}), got {mask.dtype} {tuple(mask.shape)}")
    lengths = mask.sum(dim=-1)
    if not bool((mask == (torch.arange(frames, device=mask.device) < lengths[..., None])).all()):
        raise InputError("guide(): the real frames of every motion must come first; the mask has gaps")
    return lengths


def _mean_shape(betas: Tensor, mask: Tensor | None, frames: int) -> Tensor:
    """``(*b, 16)``."""
    if mask is None or betas.shape[-2] != frames:
        return betas.mean(dim=-2)
    real = torch.where(mask[..., None], betas, 0.0)
    return real.sum(dim=-2) / mask.sum(dim=-1).clamp_min(1)[..., None]


def _targets(
    config: GuidanceConfig,
    phase: Phase,
    observations: HandObservations | None,
    T_world_cpf: Tensor,
    like: Tensor,
    frames: int,
) -> tuple[WristTargets | None, HandTargets | None, KeypointTargets | None]:
    """What the mode draws the hands to."""
    terms = config.terms
    seen = (HandObservations() if observations is None else observations).to(like)
    if terms.wrists == "tracks" and seen.wrists is None:
        raise InputError(
            f"guidance mode {config.mode} needs tracked wrists (HandObservations.wrists); without them take no_hands"
            + (" or hamer_wrist" if seen.hamer is not None else "")
        )
    if (terms.wrists == "hamer" or terms.fingers) and seen.hamer is None:
        raise InputError(
            f"guidance mode {config.mode} needs HaMeR's hands (HandObservations.hamer); without them take no_hands"
            + (" or aria_wrist_only" if seen.wrists is not None else "")
        )
    for name, part in (("wrists", seen.wrists), ("hamer", seen.hamer)):
        tracked = None if part is None else (part.confidence if name == "wrists" else part.seen)  # type: ignore[union-attr]
        if tracked is not None and tracked.shape[-2] != frames:
            raise InputError(
                f"guide(): the observations' {name} must have {frames} frames like the motion, got {tracked.shape[-2]}"
            )
    fingers = like.shape[-3] > NUM_BODY
    wrists = hands = keypoints = None
    if terms.wrists == "tracks" and seen.wrists is not None:
        wrists = WristTargets(*_unit(seen.wrists.T_world_wrist, seen.wrists.confidence), "split")
    elif terms.wrists == "hamer" and seen.hamer is not None:
        tracks = seen.hamer.wrists(T_world_cpf)
        wrists = WristTargets(*_unit(tracks.T_world_wrist, tracks.confidence), "se3")
    if terms.fingers and fingers and seen.hamer is not None:
        rotmats = project_so3(seen.hamer.finger_rotmats.flatten(-4, -3))
        hands = HandTargets(rotmats, seen.hamer.usable())
    if terms.reprojection and fingers and phase == "post" and seen.hamer is not None:
        hamer = seen.hamer
        keypoints = KeypointTargets(hamer.image_points(), hamer.usable(), hamer.T_world_cam(T_world_cpf))
    return wrists, hands, keypoints


def _unit(poses: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor]:
    """Poses with unit quaternions; one that holds NaN or infinity was not seen."""
    known = torch.isfinite(poses).all(dim=-1)
    unit = torch.cat((quat_normalize(poses[..., :4]), poses[..., 4:]), dim=-1)
    shape = broadcast_shape(known.shape, confidence.shape)
    return unit.expand(*shape, 7), torch.where(known, confidence, 0.0).expand(shape)
