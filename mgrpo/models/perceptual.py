"""The trajectory-conditioned perceptual model: how plausible is a whole-body motion for the head trajectory that it
belongs to?

A transformer over (joint, frame) tokens, after the paper's section 3.4.1 and appendix C: every joint is 7 numbers per
frame (global quaternion and position), body tokens look at head-trajectory tokens once, then blocks of MLP, attention
over the joints of a frame and attention over the frames of a joint, and a pooled score in (0, 1). It is trained by
InfoNCE against generated motion (:mod:`mgrpo.train.perceptual`) and gives GRPO its visual reward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgrpo import geometry
from mgrpo.errors import InputError
from mgrpo.models import host
from mgrpo.models.hub import PretrainedModel

JOINTS = 22
"""Joints of the input: pelvis first, then the 21 body joints."""


@dataclass(frozen=True)
class PerceptualConfig:
    """Sizes and inputs of the perceptual model. The defaults are the ``paper`` preset."""

    d_latent: int = 256
    """Width of every token."""
    blocks: int = 4
    """Blocks of MLP, spatial attention and temporal attention."""
    heads: int = 8
    """Attention heads; must divide the width."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLPs over the token width."""
    frames_per_token: int = 1
    """Consecutive frames that share one token; more than one makes the model proportionally cheaper without hiding a
    frame from it."""
    velocity_features: bool = False
    """Also give every joint its velocity (m/s, by backward difference). The paper's input is rotation and position
    alone."""
    head_relative: bool = False
    """Give horizontal positions relative to the head in the same frame instead of the head in the first frame."""
    temperature: float = 0.07
    """Temperature of the InfoNCE loss on scores in (0, 1)."""
    fps: float = 30.0
    """Frames per second of the input; only the velocity features use it."""

    def __post_init__(self) -> None:
        for name in ("d_latent", "blocks", "heads", "frames_per_token"):
            if getattr(self, name) < 1:
                raise InputError(f"PerceptualConfig.{name} must be at least 1, got {getattr(self, name)}.")
        multiple = 2 * self.heads
        if self.d_latent % multiple:
            raise InputError(
                f"PerceptualConfig.d_latent must be a multiple of twice the heads, {multiple}, got {self.d_latent}; "
                f"choose for example {multiple * math.ceil(self.d_latent / multiple)}."
            )
        for name in ("mlp_ratio", "temperature", "fps"):
            if not getattr(self, name) > 0:
                raise InputError(f"PerceptualConfig.{name} must be positive, got {getattr(self, name)}.")


PERCEPTUAL_PRESETS: dict[str, PerceptualConfig] = {
    "tiny": PerceptualConfig(
        d_latent=64, blocks=2, heads=4, mlp_ratio=2.0, frames_per_token=4, velocity_features=True, head_relative=True
    ),
    "paper": PerceptualConfig(),
}
"""``tiny`` trains in a minute on a laptop's CPU; ``paper`` follows the paper where it says something."""


def perceptual_preset(name: str) -> PerceptualConfig:
    """The preset of that name. Raises InputError listing the names there are."""
    if name not in PERCEPTUAL_PRESETS:
        known = ", ".join(PERCEPTUAL_PRESETS)
        raise InputError(f"There is no perceptual preset {name!r}; choose one of: {known}.")
    return PERCEPTUAL_PRESETS[name]


@dataclass(frozen=True)
class PerceptualFeatures:
    """What the network sees of a motion, independent of where on the floor it happens and of its heading."""

    joints: Tensor
    """``(N, T, 22, C)``: global quaternion (4), position (3) and, if configured, velocity (3); zero in masked
    frames."""
    head: Tensor
    """``(N, T, 16)``: head rotation matrix (9), position (3), velocity (3), and 1 for a real frame; zero in masked
    frames."""


def _first_valid(mask: Tensor) -> Tensor:
    """Index ``(N,)`` of the first True of each row of ``mask (N, T)``; 0 for a row without one."""
    return mask.to(torch.uint8).argmax(-1)


def _previous_valid(mask: Tensor) -> Tensor:
    """For every frame of ``mask (N, T)`` the index of the last real frame before it; 0 where there is none."""
    frames = torch.arange(mask.shape[-1], device=mask.device)
    last = torch.where(mask, frames, torch.zeros_like(frames)).cummax(-1).values
    return torch.cat((torch.zeros_like(last[..., :1]), last[..., :-1]), dim=-1)


def _take_frames(values: Tensor, index: Tensor) -> Tensor:
    """Gather frames ``index (N, T')`` of ``values (N, T, …)``: ``(N, T', …)``."""
    return values[torch.arange(values.shape[0], device=values.device)[:, None], index]


def continuous_quaternions(rotmats: Tensor, mask: Tensor) -> Tensor:
    """Unit quaternions wxyz ``(N, T, J, 4)`` of rotations ``(N, T, J, 3, 3)`` whose sign does not jump over time.

    A rotation has two quaternions. In a row's first real frame the one with the larger ``w + x + y + z`` is taken (for
    a body upright in a z-up world, whose rest pose is y-up, that sum is far from zero); every later one is the nearer
    to its predecessor. Frames outside ``mask (N, T)`` neither matter nor get a defined sign.
    """
    # Not geometry.quat_normalize, which would make an identity of NaN: a broken motion has to score NaN.
    quats = F.normalize(geometry.rotmat_to_quat(rotmats), dim=-1)
    frame = torch.arange(mask.shape[-1], device=mask.device)
    first = _first_valid(mask)
    flip = (quats * _take_frames(quats, _previous_valid(mask))).sum(-1) < 0
    flip = flip & (mask & (frame > first[:, None]))[..., None]
    flip = flip | ((frame == first[:, None])[..., None] & (quats.sum(-1) < 0))
    odd = flip.cumsum(1) % 2 == 1
    return torch.where(odd[..., None], -quats, quats)


def perceptual_features(
    R_world_joint: Tensor, joints: Tensor, T_world_cpf: Tensor, mask: Tensor, config: PerceptualConfig
) -> PerceptualFeatures:
    """Turn each sequence about the vertical so that the first real frame's gaze points along +x, put that frame's head
    above the origin (height is kept), and lay out the numbers. Shapes as :meth:`PerceptualModel.forward`; everything
    outside the mask becomes zero."""
    inside = mask[..., None]
    # Whatever stands in masked frames (NaN too) is replaced before any arithmetic.
    eye = torch.eye(3, dtype=joints.dtype, device=joints.device)
    R_world_joint = torch.where(inside[..., None, None], R_world_joint, eye)
    joints = torch.where(inside[..., None], joints, torch.zeros_like(joints))
    head_position = torch.where(inside, T_world_cpf[..., 4:], torch.zeros_like(T_world_cpf[..., 4:]))
    R_head = torch.where(inside[..., None], geometry.quat_to_rotmat(T_world_cpf[..., :4]), eye)

    first = _first_valid(mask)[:, None]
    gaze = _take_frames(R_head, first)[..., 2]  # (N, 1, 3): the CPF looks along its z axis
    heading = torch.atan2(gaze[..., 1], gaze[..., 0])
    turn = geometry.quat_to_rotmat(geometry.yaw_rotation(-heading))  # (N, 1, 3, 3)
    origin = _take_frames(head_position, first) * head_position.new_tensor((1.0, 1.0, 0.0))

    R_head = turn @ R_head
    head_position = (head_position - origin) @ turn.transpose(-1, -2)[:, 0]
    R_joints = turn[:, :, None] @ R_world_joint
    joints = (joints - origin[:, :, None]) @ turn.transpose(-1, -2)

    # Velocities look back over the step from the previous frame, where both ends are real.
    step = mask & torch.cat((torch.zeros_like(mask[:, :1]), mask[:, :-1]), dim=1)
    velocity = torch.where(step[..., None, None], _backward_difference(joints), torch.zeros_like(joints)) * config.fps
    head_velocity = torch.where(step[..., None], _backward_difference(head_position), torch.zeros_like(head_position))
    horizontal = head_position * head_position.new_tensor((1.0, 1.0, 0.0))
    position = joints - horizontal[:, :, None] if config.head_relative else joints
    parts = [continuous_quaternions(R_joints, mask), position]
    if config.velocity_features:
        parts.append(velocity)
    body = torch.cat(parts, dim=-1)
    head = torch.cat(
        (R_head.flatten(-2), head_position, head_velocity * config.fps, mask[..., None].to(joints.dtype)), dim=-1
    )
    return PerceptualFeatures(
        joints=torch.where(inside[..., None], body, torch.zeros_like(body)),
        head=torch.where(inside, head, torch.zeros_like(head)),
    )


def _backward_difference(values: Tensor) -> Tensor:
    """``values[:, t] - values[:, t - 1]`` of ``(N, T, …)``, zero in frame 0."""
    return torch.cat((torch.zeros_like(values[:, :1]), values.diff(dim=1)), dim=1)


def _sinusoidal(positions: int, width: int, reference: Tensor) -> Tensor:
    """Fixed position code ``(positions, width)``: sines and cosines, wavelengths from 2π to 10000·2π tokens."""
    index = torch.arange(positions, dtype=torch.float32, device=reference.device)[:, None]
    rate = torch.exp(
        torch.arange(0, width, 2, dtype=torch.float32, device=reference.device) * (-math.log(10000.0) / width)
    )
    return torch.cat((torch.sin(index * rate), torch.cos(index * rate)), dim=-1).to(reference.dtype)


class _Attention(nn.Module):
    """Multi-head attention of ``(B, L, d)`` tokens to themselves or to ``context (B, M, d)``; ``mask (B, M)`` True =
    may be looked at."""

    def __init__(self, width: int, heads: int, *, cross: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.cross = cross
        if cross:
            self.query = nn.Linear(width, width, bias=False)
            self.key_value = nn.Linear(width, 2 * width, bias=False)
        else:
            self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        batch, length, width = tokens.shape
        if context is not None:
            query = self.query(tokens)
            key, value = self.key_value(context).chunk(2, dim=-1)
        else:
            query, key, value = self.query_key_value(tokens).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        attention_mask = None if mask is None else mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class _Block(nn.Module):
    """MLP, attention over the joints of a frame, attention over the frames of a joint; each pre-normalised and
    residual."""

    def __init__(self, config: PerceptualConfig) -> None:
        super().__init__()
        width, hidden = config.d_latent, round(config.d_latent * config.mlp_ratio)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.spatial_norm = nn.LayerNorm(width)
        self.spatial = _Attention(width, config.heads)
        self.temporal_norm = nn.LayerNorm(width)
        self.temporal = _Attention(width, config.heads)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens ``(N, L, J, d)`` with L time steps; ``mask (N, L)``."""
        batch, steps, joints, width = tokens.shape
        tokens = tokens + self.mlp(self.mlp_norm(tokens))
        by_frame = self.spatial_norm(tokens).view(batch * steps, joints, width)
        tokens = tokens + self.spatial(by_frame).view_as(tokens)
        by_joint = self.temporal_norm(tokens).transpose(1, 2).reshape(batch * joints, steps, width)
        keys = None if mask is None else mask.repeat_interleave(joints, dim=0)
        mixed = self.temporal(by_joint, mask=keys).view(batch, joints, steps, width)
        return tokens + mixed.transpose(1, 2)


class PerceptualModel(nn.Module, PretrainedModel):
    """Scores motions; see the module's text. Rows of a batch never influence each other: a row that holds NaN scores
    NaN alone."""

    config_class = PerceptualConfig
    layer_counts = ("blocks",)
    card_summary = (
        "A perceptual model of full-body motion: how plausible is a motion (22 joints) for the head trajectory that it "
        "belongs to, as a score in (0, 1). Trained by InfoNCE against generated motion; the visual reward of GRPO."
    )
    card_tags = ("motion", "perceptual", "reward-model", "egocentric")

    def __init__(self, config: PerceptualConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.d_latent, config.frames_per_token
        channels = 10 if config.velocity_features else 7
        self.keypoint_embedding = nn.Linear(channels * patch, width)
        self.joint_code = nn.Parameter(torch.zeros(JOINTS, width))
        nn.init.normal_(self.joint_code, std=0.02)
        self.frame_embedding = nn.Linear(channels * JOINTS * patch, width)
        self.head_embedding = nn.Linear(16 * patch, width)
        self.cross_norm = nn.LayerNorm(width)
        self.head_norm = nn.LayerNorm(width)
        self.cross = _Attention(width, config.heads, cross=True)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.blocks))
        self.score_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def logits(self, R_world_joint: Tensor, joints: Tensor, T_world_cpf: Tensor, mask: Tensor | None = None) -> Tensor:
        """The score before the sigmoid ``(N,)``; arguments as :meth:`forward`."""
        _check_inputs(R_world_joint, joints, T_world_cpf, mask)
        everything_valid = mask is None or (host.can_read(mask) and bool(mask.all()))
        if mask is None:
            mask = torch.ones(joints.shape[:2], dtype=torch.bool, device=joints.device)
        features = perceptual_features(R_world_joint, joints, T_world_cpf, mask, self.config)
        body, head = self._patches(features.joints), self._patches(features.head)  # (N, L, 22, p*C), (N, L, p*16)
        steps = body.shape[1]
        time_code = _sinusoidal(steps, self.config.d_latent, joints)
        per_frame = self.frame_embedding(body.flatten(2)) + time_code
        tokens = self.keypoint_embedding(body) + self.joint_code + per_frame[:, :, None]
        head_tokens = self.head_embedding(head) + time_code

        step_mask = None if everything_valid else self._patches(mask[..., None]).any(-1)
        queries = self.cross_norm(tokens).flatten(1, 2)
        tokens = tokens + self.cross(queries, self.head_norm(head_tokens), step_mask).view_as(tokens)
        for block in self.blocks:
            tokens = block(tokens, step_mask)
        if step_mask is None:
            pooled = tokens.mean((1, 2))
        else:
            inside = step_mask[..., None, None]
            pooled = torch.where(inside, tokens, torch.zeros_like(tokens)).sum((1, 2)) / (
                step_mask.sum(-1, keepdim=True) * JOINTS
            )
        return self.score_head(pooled)[..., 0]

    def forward(self, R_world_joint: Tensor, joints: Tensor, T_world_cpf: Tensor, mask: Tensor | None = None) -> Tensor:
        """Plausibility ``(N,)`` in (0, 1) of N motions, each with its own head trajectory.

        ``R_world_joint (N, T, 22, 3, 3)`` world rotations and ``joints (N, T, 22, 3)`` world positions in metres,
        pelvis first; ``T_world_cpf (N, T, 7)`` head poses, wxyz quaternion of either sign and metres; z up, floor at z
        = 0; ``mask (N, T)`` True on real frames. The score does not depend on the place on the floor or the heading of
        the sequence. A row without real frames, or with NaN in them, scores NaN. Raises InputError for other shapes.
        """
        return torch.sigmoid(self.logits(R_world_joint, joints, T_world_cpf, mask))

    def _patches(self, values: Tensor) -> Tensor:
        """Join ``frames_per_token`` consecutive frames: ``(N, T, …, C)`` -> ``(N, ceil(T/p), …, p*C)``, padded with
        zeros at the end."""
        patch = self.config.frames_per_token
        if patch == 1:
            return values
        missing = -values.shape[1] % patch
        if missing:
            values = torch.cat((values, torch.zeros_like(values[:, :1]).expand(-1, missing, *values.shape[2:])), dim=1)
        return values.unflatten(1, (-1, patch)).movedim(2, -2).flatten(-2)


def _check_inputs(R_world_joint: Tensor, joints: Tensor, T_world_cpf: Tensor, mask: Tensor | None) -> None:
    if joints.ndim != 4 or joints.shape[2:] != (JOINTS, 3):
        raise InputError(f"PerceptualModel: joints must have shape (N, T, 22, 3), got {tuple(joints.shape)}.")
    rows = joints.shape[:2]
    wanted = {"R_world_joint": (R_world_joint, (*rows, JOINTS, 3, 3)), "T_world_cpf": (T_world_cpf, (*rows, 7))}
    for name, (value, shape) in wanted.items():
        if value.shape != shape:
            raise InputError(
                f"PerceptualModel: {name} must have shape {tuple(shape)} to go with joints {tuple(joints.shape)}, "
                f"got {tuple(value.shape)}."
            )
    if mask is not None and (mask.shape != rows or mask.dtype != torch.bool):
        raise InputError(
            f"PerceptualModel: mask must be bool of shape {tuple(rows)}, got {mask.dtype} {tuple(mask.shape)}."
        )


def info_nce(scores: Tensor, temperature: float) -> Tensor:
    """InfoNCE loss (paper equation 9): mean over B of ``-log softmax(scores / temperature)`` at the positive, which
    comes **first**.

    ``scores (B, K)``: the positive's score in column 0, K - 1 negatives after it. Zero when the positive is infinitely
    better, log K when all are equal. Raises InputError for other shapes or a temperature that is not positive.
    """
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise InputError(
            f"info_nce() needs scores (B, K) with K >= 2, the positive first, got shape {tuple(scores.shape)}."
        )
    if not temperature > 0:
        raise InputError(f"info_nce() needs a positive temperature, got {temperature}.")
    return -torch.log_softmax(scores / temperature, dim=-1)[:, 0].mean()
