"""Making new clips from a clip: mirrored, on another body, turned, repeated, at another rate."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mgrpo.body.model import NUM_BETAS, BodyModel
from mgrpo.body.placement import PlacedBody, place_on_root
from mgrpo.body.skeleton import MIRROR_BODY, MIRROR_HANDS
from mgrpo.data.clip import MIN_FRAMES, MotionClip
from mgrpo.data.floor import anchor_weights, body_offsets, floor_anchor
from mgrpo.data.rate import require_fps
from mgrpo.errors import InputError
from mgrpo.geometry import quat_multiply, quat_to_rotmat, se3_multiply, yaw_rotation

_QUAT_SIGNS = (1.0, 1.0, -1.0, -1.0)


def place_clip(clip: MotionClip, body: BodyModel) -> PlacedBody:
    """Joints ``(F, 22, 3)`` and orientations ``(F, 22, 3, 3)`` of a clip on a body, root first (fingers left out)."""
    return place_on_root(body.body_only(), quat_to_rotmat(clip.body_quats), clip.betas, clip.T_world_root)


def mirror_transforms(T_world_root: Tensor) -> Tensor:
    """Reflect root poses ``(…, 7)`` in the world's plane x = 0, exactly: twice gives the input bit for bit."""
    signs = T_world_root.new_tensor((*_QUAT_SIGNS, -1.0, 1.0, 1.0))
    return T_world_root * signs


def mirror_quats(quats: Tensor, permutation: tuple[int, ...]) -> Tensor:
    """Exchange left and right of local rotations ``(…, J, 4)`` and reflect each: ``M R M`` with M = diag(-1, 1, 1)."""
    return quats[..., list(permutation), :] * quats.new_tensor(_QUAT_SIGNS)


def mirror(clip: MotionClip, body: BodyModel) -> MotionClip:
    """The clip as seen in a mirror in the world's plane x = 0: the left hand does what the right did, labels and
    fingers included.

    Twice gives the clip again. On a body whose halves are mirror images (the default body) the joints are exactly
    mirrored; on another the floor is kept, by the difference in height that its asymmetry makes.
    """
    mirrored = replace(
        clip,
        T_world_root=mirror_transforms(clip.T_world_root),
        body_quats=mirror_quats(clip.body_quats, MIRROR_BODY),
        contacts=clip.contacts[:, list(MIRROR_BODY)],
        hand_quats=None if clip.hand_quats is None else mirror_quats(clip.hand_quats, MIRROR_HANDS),
    )
    offsets = body_offsets(body, clip.betas)
    asymmetry = offsets[list(MIRROR_BODY)] * offsets.new_tensor((-1.0, 1.0, 1.0)) - offsets
    if float(asymmetry.abs().max()) < 1e-6:
        return mirrored
    return _shifted(mirrored, _anchor_height(clip, body) - _anchor_height(mirrored, body))


def reshape_body(clip: MotionClip, betas: Tensor, body: BodyModel) -> MotionClip:
    """The same motion done by a person of another shape.

    The root path is scaled by the ratio of leg lengths (feet keep their places relative to each other), then the clip
    is shifted so that the planted joints have the mean height they had. Rotations and contact labels stay.

    Args:
        clip: a clip.
        betas: new shape numbers ``(16,)``.
        body: the body that ``betas`` is for.
    Raises:
        InputError: wrong shape or values of ``betas``.
    """
    if tuple(betas.shape) != (NUM_BETAS,):
        raise InputError(f"reshape_body(): betas must have shape ({NUM_BETAS},), got {tuple(betas.shape)}")
    betas = betas.to(clip.betas)
    ratio = body.leg_length(betas) / body.leg_length(clip.betas)
    T_world_root = torch.cat((clip.T_world_root[:, :4], clip.T_world_root[:, 4:] * ratio.to(clip.T_world_root)), dim=1)
    placed = place_clip(clip, body)
    anchor = floor_anchor(anchor_weights(clip.contacts, placed.joints), placed.joints[:, 0, 2], placed.R_world_joint)
    before = anchor.height(body_offsets(body, clip.betas))
    after = anchor.height(body_offsets(body, betas), ratio)
    return _shifted(replace(clip, betas=betas, T_world_root=T_world_root), before - after)


def turn(clip: MotionClip, yaw: float) -> MotionClip:
    """The clip turned by ``yaw`` radians about the world's up axis through the origin."""
    quat = yaw_rotation(torch.tensor(float(yaw), dtype=torch.float64)).to(clip.T_world_root.dtype)
    T_turn = torch.cat((quat, quat.new_zeros(3)))
    return replace(clip, T_world_root=se3_multiply(T_turn, clip.T_world_root))


def loop_step(clip: MotionClip) -> Tensor:
    """Horizontal way of the root ``(3,)`` in metres from one round of a looping clip to the next.

    From the first frame to the last, and on by the mean of the steps at both ends (the step across the seam is not in
    the data).
    """
    path = clip.T_world_root[:, 4:]
    step = path[-1] - path[0] + 0.5 * ((path[1] - path[0]) + (path[-1] - path[-2]))
    return step * step.new_tensor((1.0, 1.0, 0.0))


def loop(clip: MotionClip, frames: int) -> MotionClip:
    """A looping clip repeated (or cut) to ``frames`` frames, its root walking on from round to round.

    Raises:
        InputError: the clip is not a loop, or fewer than two frames are asked for.
    """
    if not clip.loop:
        raise InputError(
            f"clip '{clip.name}' is not a loop, so it can't be repeated without a jump; use a shorter window or a "
            "longer clip"
        )
    if frames < MIN_FRAMES:
        raise InputError(f"loop(): frames must be at least {MIN_FRAMES}, got {frames}")
    index = torch.arange(frames)
    source, rounds = index % len(clip), index // len(clip)
    T_world_root = clip.T_world_root[source].clone()
    T_world_root[:, 4:] += rounds[:, None].to(T_world_root) * loop_step(clip)
    return replace(
        clip,
        T_world_root=T_world_root,
        body_quats=clip.body_quats[source],
        contacts=clip.contacts[source],
        hand_quats=None if clip.hand_quats is None else clip.hand_quats[source],
        loop=frames % len(clip) == 0,
    )


def resample(clip: MotionClip, fps: float) -> MotionClip:
    """The clip at another frame rate: rotations by spherical, positions by linear interpolation, labels from the
    nearest frame.

    The first frame stays; a looping clip stays a loop (its rate may then differ from ``fps`` by less than half a frame
    per round).

    Raises:
        InputError: a rate outside of :data:`mgrpo.data.rate.FPS_RANGE`, or too low to leave two frames.
    """
    require_fps(fps, "resample(): fps")
    if fps == clip.fps:
        return clip
    frames = len(clip)
    if clip.loop:
        count = max(MIN_FRAMES, round(frames * fps / clip.fps))
        times = torch.arange(count, dtype=torch.float64) * (frames / count)
        extended = loop(clip, frames + 1)
    else:
        count = int((frames - 1) * fps / clip.fps + 1e-6) + 1
        if count < MIN_FRAMES:
            raise InputError(
                f"clip '{clip.name}': {clip.duration:.3f} s leave fewer than {MIN_FRAMES} frames at {fps:g} fps"
            )
        times = torch.arange(count, dtype=torch.float64) * (clip.fps / fps)
        extended = clip
    low = times.floor().long().clamp(0, len(extended) - 2)
    part = (times - low).to(torch.float32)
    nearest = (low + (part >= 0.5).long()).clamp_max(len(extended) - 1)
    root = extended.T_world_root
    position = root[low, 4:] + part[:, None] * (root[low + 1, 4:] - root[low, 4:])
    hands = extended.hand_quats
    return replace(
        clip,
        fps=float(fps),
        T_world_root=torch.cat((slerp(root[low, :4], root[low + 1, :4], part), position), dim=1),
        body_quats=slerp(extended.body_quats[low], extended.body_quats[low + 1], part[:, None]),
        contacts=extended.contacts[nearest],
        hand_quats=None if hands is None else slerp(hands[low], hands[low + 1], part[:, None]),
    )


def slerp(a: Tensor, b: Tensor, part: Tensor) -> Tensor:
    """Quaternions ``(…, 4)`` at ``part (…)`` of the shorter way from ``a`` to ``b``."""
    cosine = (a * b).sum(-1)
    b = torch.where((cosine < 0)[..., None], -b, b)
    angle = torch.acos(cosine.abs().clamp(max=1.0))
    sine = torch.sin(angle)
    near = sine < 1e-4
    safe = torch.where(near, torch.ones_like(sine), sine)
    weight_a = torch.where(near, 1 - part, torch.sin((1 - part) * angle) / safe)
    weight_b = torch.where(near, part.expand_as(near), torch.sin(part * angle) / safe)
    mixed = weight_a[..., None] * a + weight_b[..., None] * b
    return mixed / mixed.norm(dim=-1, keepdim=True)


def turned_root(T_world_root: Tensor, yaw: Tensor) -> Tensor:
    """Root poses ``(B, F, 7)`` turned by ``yaw (B)`` radians about the world's up axis through the origin."""
    quat = yaw_rotation(yaw)[:, None]
    cosine, sine = torch.cos(yaw)[:, None], torch.sin(yaw)[:, None]
    x, y, z = T_world_root[..., 4:].unbind(-1)
    position = torch.stack((cosine * x - sine * y, sine * x + cosine * y, z), dim=-1)
    return torch.cat((quat_multiply(quat, T_world_root[..., :4]), position), dim=-1)


def _shifted(clip: MotionClip, height: Tensor) -> MotionClip:
    T_world_root = clip.T_world_root.clone()
    T_world_root[:, 6] += height.to(T_world_root)
    return replace(clip, T_world_root=T_world_root)


def _anchor_height(clip: MotionClip, body: BodyModel) -> Tensor:
    joints = place_clip(clip, body).joints
    weights = anchor_weights(clip.contacts, joints)
    return (weights * joints[:, 1:, 2]).sum() / weights.sum()
