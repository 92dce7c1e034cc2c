"""The observation of the policy: head (CPF) motion encoded per frame, EgoAllo's fact sheet B.

The default ``ours`` parameterisation doesn't change when the whole trajectory is moved over the floor or turned about
the vertical axis. All poses are wxyz + xyz 7-vectors in metres; the world is z up with the floor at z = 0.
"""

from __future__ import annotations

from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from mgrpo.errors import InputError
from mgrpo.geometry import quat_conjugate, quat_multiply, quat_to_rotmat, se3_inverse, se3_multiply

CondParam = Literal["ours", "canonicalized", "absolute", "absrel", "absrel_global_deltas"]
COND_PARAMS: tuple[str, ...] = get_args(CondParam)

_RAW_DIM = {"ours": 22, "canonicalized": 12, "absolute": 12, "absrel": 24, "absrel_global_deltas": 24}


class ConditioningOptions(Protocol):
    """What :func:`make_cond` reads of a :class:`mgrpo.models.denoiser.DenoiserConfig`."""

    @property
    def cond_param(self) -> str: ...
    @property
    def fourier_enc_freqs(self) -> int: ...
    @property
    def include_canonicalized_cpf_rotation_in_cond(self) -> bool: ...
    @property
    def include_hand_positions_cond(self) -> bool: ...


def cond_dim(config: ConditioningOptions) -> int:
    """Length of the encoded condition of one frame (154 for EgoAllo's defaults)."""
    raw = _RAW_DIM[config.cond_param]
    if config.cond_param == "ours" and not config.include_canonicalized_cpf_rotation_in_cond:
        raw -= 9
    if config.include_hand_positions_cond:
        raw += 6
    return raw * (1 + 2 * config.fourier_enc_freqs)


def relative_cpf(T_world_cpf_all: Tensor) -> Tensor:
    """Motion of the head between frames: ``T_cpf_tm1_cpf_t (*b, T, 7)`` of ``T + 1`` consecutive poses ``(*b, T+1,
    7)``.

    Entry t maps points from the CPF at pose t+1 to the CPF at pose t. Raises InputError for fewer than two poses.
    """
    if T_world_cpf_all.ndim < 2 or T_world_cpf_all.shape[-1] != 7 or T_world_cpf_all.shape[-2] < 2:
        raise InputError(
            "relative_cpf(): T_world_cpf_all must have shape (*b, T+1, 7) with at least two poses, "
            f"got {tuple(T_world_cpf_all.shape)}"
        )
    return se3_multiply(se3_inverse(T_world_cpf_all[..., :-1, :]), T_world_cpf_all[..., 1:, :])


def fourier_encode(values: Tensor, freqs: int) -> Tensor:
    """``[v, sin(2^k v), sin(2^k v + π/2)]`` of ``(*b, C)`` with k = 0 … freqs-1, channel-major: ``(*b, C (1 + 2
    freqs))``.

    The frequencies carry no π, and the cosine is written as a shifted sine, both as in EgoAllo.
    """
    scales = 2.0 ** torch.arange(freqs, dtype=values.dtype, device=values.device)
    scaled = (values[..., None] * scales).flatten(-2)
    return torch.cat((values, torch.sin(scaled), torch.sin(scaled + torch.pi / 2.0)), dim=-1)


def _gaze_yaw(rotmats: Tensor) -> Tensor:
    """Heading of the gaze (the CPF's z axis) over the floor, radians ``(*b)``. Without meaning when looking straight up
    or down."""
    return torch.atan2(rotmats[..., 1, 2], rotmats[..., 0, 2])


def _unyaw(yaw: Tensor) -> Tensor:
    """Rotation matrices ``(*b, 3, 3)`` that turn by ``-yaw (*b)`` radians about z."""
    c, s, zero, one = torch.cos(yaw), torch.sin(yaw), torch.zeros_like(yaw), torch.ones_like(yaw)
    return torch.stack((c, s, zero, -s, c, zero, zero, zero, one), dim=-1).reshape(*yaw.shape, 3, 3)


def _sandwich(quat: Tensor, points: Tensor) -> Tensor:
    """``q p q*`` of ``(*b, 4)`` and ``(*b, 3)``. On rounded inputs, |q|² = 1 ± 1e-7, it agrees with EgoAllo to all
    digits of float64."""
    pure = torch.cat((torch.zeros_like(points[..., :1]), points), dim=-1)
    return quat_multiply(quat_multiply(quat, pure), quat_conjugate(quat))[..., 1:]


def _rows_3x4(rotmats: Tensor, translations: Tensor) -> Tensor:
    """``[R | t]`` flattened row by row: ``(*b, 12)``."""
    return torch.cat((rotmats, translations[..., None]), dim=-1).flatten(-2)


def make_cond(
    config: ConditioningOptions,
    T_world_cpf: Tensor,
    T_cpf_tm1_cpf_t: Tensor,
    hand_positions_wrt_cpf: Tensor | None = None,
) -> Tensor:
    """Encode head motion as the denoiser's condition.

    Args:
        config: which parameterisation, how many Fourier frequencies, which optional parts.
        T_world_cpf: head poses ``(*b, T, 7)``, floor at z = 0.
        T_cpf_tm1_cpf_t: motion since the frame before ``(*b, T, 7)``, see :func:`relative_cpf`.
        hand_positions_wrt_cpf: left then right wrist in the CPF frame, metres ``(*b, T, 6)``. Zeros are used if the
            configuration has this part and none are given; giving them without that part is an error.

    Returns:
        ``(*b, T, d_cond)``, ``d_cond`` = :func:`cond_dim`.

    Raises:
        InputError: wrong shapes, unknown parameterisation, or hand positions that the configuration has no place for.
    """
    if T_world_cpf.shape[-1:] != (7,) or T_world_cpf.shape != T_cpf_tm1_cpf_t.shape:
        raise InputError(
            "make_cond(): T_world_cpf and T_cpf_tm1_cpf_t must have the same shape (*b, T, 7), "
            f"got {tuple(T_world_cpf.shape)} and {tuple(T_cpf_tm1_cpf_t.shape)}"
        )
    R_world, p_world = quat_to_rotmat(T_world_cpf[..., :4]), T_world_cpf[..., 4:]
    R_rel, t_rel = quat_to_rotmat(T_cpf_tm1_cpf_t[..., :4]), T_cpf_tm1_cpf_t[..., 4:]

    parts: list[Tensor]
    if config.cond_param == "ours":
        parts = [_rows_3x4(R_rel, t_rel), p_world[..., 2:3]]
        if config.include_canonicalized_cpf_rotation_in_cond:
            parts.append((_unyaw(_gaze_yaw(R_world)) @ R_world).flatten(-2))
    elif config.cond_param == "canonicalized":
        # One heading for the clip, that of its first frame; the translation is zeroed there in all three axes.
        unyaw = _unyaw(_gaze_yaw(R_world[..., :1, :, :]))
        rotated = (unyaw @ p_world[..., None])[..., 0]
        parts = [_rows_3x4(unyaw @ R_world, rotated - rotated[..., :1, :])]
    elif config.cond_param == "absolute":
        parts = [_rows_3x4(R_world, p_world)]
    elif config.cond_param == "absrel":
        parts = [_rows_3x4(R_world, p_world), _rows_3x4(R_rel, t_rel)]
    elif config.cond_param == "absrel_global_deltas":
        # The translation of the inverse relative motion, expressed in the world's axes.
        rel = T_cpf_tm1_cpf_t[..., :4]
        delta = -_sandwich(T_world_cpf[..., :4], _sandwich(quat_conjugate(rel), t_rel))
        parts = [_rows_3x4(R_world, p_world), R_rel.flatten(-2), delta]
    else:
        raise InputError(f"make_cond(): cond_param must be one of {', '.join(COND_PARAMS)}, got {config.cond_param!r}")

    if config.include_hand_positions_cond:
        if hand_positions_wrt_cpf is None:
            parts.append(p_world.new_zeros(*p_world.shape[:-1], 6))
        elif hand_positions_wrt_cpf.shape != (*p_world.shape[:-1], 6):
            raise InputError(
                f"make_cond(): hand_positions_wrt_cpf must have shape {(*p_world.shape[:-1], 6)}, "
                f"got {tuple(hand_positions_wrt_cpf.shape)}"
            )
        else:
            parts.append(hand_positions_wrt_cpf)
    elif hand_positions_wrt_cpf is not None:
        raise InputError(
            "make_cond(): hand_positions_wrt_cpf were given, but the model has "
            "include_hand_positions_cond=False; pass None"
        )
    return fourier_encode(torch.cat(parts, dim=-1), config.fourier_enc_freqs)
