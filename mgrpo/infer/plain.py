"""Sampling as one would write it first: what `mgrpo bench inference` and ``benchmarks.check`` compare with.

The network is written down as its description reads, in eager float32 without gradients, a second time and apart from
:mod:`mgrpo.models.denoiser` but for the modules that hold the weights. Every sequence passes all of it in every step,
the condition's encoder included; nothing is kept from one call to the next; rotations are projected by
``torch.linalg.svd``; the step is a line of tensor arithmetic; noise comes from ``torch.randn``. Nothing is slower than
it need be: queries, keys and values are one product, attention is torch's own, and computed once where EgoAllo's code
computes it twice.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mgrpo.diffusion.transition import Transitions
from mgrpo.errors import InputError
from mgrpo.geometry import quat_multiply, quat_normalize, yaw_rotation
from mgrpo.models.conditioning import make_cond, relative_cpf
from mgrpo.models.denoiser import Denoiser


def plain_network(denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
    """Predicted clean states ``(B, T, D)`` of ``x_t (B, T, D)`` at levels ``t (B,)`` under ``cond (B, T, d_cond)``.

    Raises InputError for networks with other options than the published one's.
    """
    config = denoiser.config
    options = (config.positional_encoding, config.noise_conditioning, config.xattn_mode, config.activation)
    if options != ("rope", "token", "kv_from_cond_q_from_x", "gelu") or denoiser.training:
        raise InputError(f"plain_network(): only the published options in evaluation mode, got {', '.join(options)}")
    token = denoiser.noise_emb_token_proj(denoiser.noise_emb(t - 1))[:, None]
    encoded = torch.cat((token, denoiser.latent_from_cond(cond)), dim=1)
    for block in denoiser.encoder_layers:
        encoded = block.layernorm1(encoded + _self_attention(block, encoded))
        encoded = block.layernorm2(encoded + block.mlp1(F.gelu(block.mlp0(encoded))))

    where = denoiser.layout.slices
    latent = sum(encoder(x_t[..., where[name]]) for name, encoder in denoiser.encoders.items())
    x = torch.cat((token, latent), dim=1)
    for block in denoiser.decoder_layers:
        x = block.layernorm1(x + _self_attention(block, x))
        q = block.xattn_q_proj(x)
        k, v = block.xattn_kv_proj(encoded).chunk(2, dim=-1)
        x = block.xattn_layernorm(x + block.xattn_out_proj(_attention(config.num_heads, q, k, v)))
        x = block.layernorm2(x + block.mlp1(F.gelu(block.mlp0(x))))
    return torch.cat([decoder(x[:, 1:]) for decoder in denoiser.decoders.values()], dim=-1)


def _self_attention(block: Any, x: Tensor) -> Tensor:
    q, k, v = block.sattn_qkv_proj(x).chunk(3, dim=-1)
    return block.sattn_out_proj(_attention(block.config.num_heads, q, k, v))


def _attention(heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention with rotary positions, all ``(B, N, d)``."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    attended = F.scaled_dot_product_attention(_rotary(q), _rotary(k), v)
    return attended.transpose(1, 2).flatten(-2)


def _rotary(x: Tensor) -> Tensor:
    """Neighbouring channels of ``x (*, N, d)`` turned by their token's number times 10000^(-2i / d)."""
    tokens, width = x.shape[-2:]
    rates = 10000.0 ** (-torch.arange(0, width, 2, device=x.device, dtype=x.dtype) / width)
    angles = (torch.arange(tokens, device=x.device, dtype=x.dtype)[:, None] * rates).repeat_interleave(2, dim=-1)
    turned = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return x * angles.cos() + turned * angles.sin()


@torch.no_grad()
def plain_sample(
    denoiser: Denoiser, poses: Tensor, steps: Transitions, samples: int, seed: int, noise: Tensor | None = None
) -> Tensor:
    """Clean states ``(B, S, T, D)``.

    Args:
        denoiser: in evaluation mode.
        poses: head poses ``(B, T + 1, 7)``, the one before the first frame included, floor at z = 0.
        steps: the sampler's steps.
        samples: S.
        seed: of torch's generator.
        noise: recorded noise ``(steps + 1, B, S, T, D)`` to use instead: x_T, then a draw for each step.
    """
    batch, frames = poses.shape[0], poses.shape[1] - 1
    cond = make_cond(denoiser.config, poses[:, 1:], relative_cpf(poses)).repeat_interleave(samples, dim=0)
    generator = torch.Generator(device=poses.device).manual_seed(seed)
    shape = (batch * samples, frames, denoiser.layout.dim)

    def draw(number: int) -> Tensor:
        if noise is not None:
            return noise[number].reshape(shape)
        return torch.randn(shape, generator=generator, device=poses.device)

    x = draw(0)
    where = denoiser.layout.slices["body_rotmats"]
    for number, (level, A, B, s) in enumerate(steps.scalars, 1):
        t = torch.full((len(x),), level, dtype=torch.int64, device=x.device)
        x0 = plain_network(denoiser, x, t, cond)
        matrices = x0[..., where].reshape(*x0.shape[:-1], -1, 3, 3)
        U, _, Vh = torch.linalg.svd(matrices)
        x0 = torch.cat((x0[..., : where.start], (U @ Vh).flatten(-3), x0[..., where.stop :]), dim=-1)
        x = A * x + B * x0 + s * draw(number)
    return x.view(batch, samples, *shape[1:])


def made_up_path(batch: int, frames: int) -> Tensor:
    """Head poses ``(B, T + 1, 7)`` of people who walk and look about, floor at z = 0."""
    t = torch.arange(frames + 1) / 30 + torch.arange(batch)[:, None]
    place = torch.stack((0.2 * torch.sin(t), t, 1.6 + 0.03 * torch.sin(6 * t)), dim=-1)
    level = torch.tensor([0.5, 0.5, 0.5, 0.5])  # z forward along x, y up
    turned = yaw_rotation(0.5 * torch.sin(t))
    return torch.cat((quat_normalize(quat_multiply(turned, level.expand_as(turned))), place), dim=-1)
