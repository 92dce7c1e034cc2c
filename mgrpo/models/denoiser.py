"""The denoiser: EgoAllo's transformer, module for module, so that its released checkpoint loads into it.

It predicts the clean motion state x0 from a noised one, given head motion (fact sheet, section C). Two entry points
share one
implementation: :meth:`Denoiser.forward` for single windows, and :meth:`Denoiser.encode` / :meth:`Denoiser.decode` for
    groups of samples that share a condition. The encoder and the cross-attention's keys and values depend only on
    (condition, level), so a group of G samples computes them once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mgrpo.errors import InputError
from mgrpo.models import host
from mgrpo.models.conditioning import make_cond
from mgrpo.models.denoiser_config import DENOISER_PRESETS, DenoiserConfig
from mgrpo.models.egoallo import read_egoallo, write_egoallo
from mgrpo.models.hub import PretrainedModel
from mgrpo.models.positions import PositionTables, RotaryEmbedding, rotary_angles, rotate_pairs, sinusoidal_positions
from mgrpo.models.state import project_state


@dataclass(frozen=True)
class EncoderMemory:
    """What the decoder needs of the condition: made once by :meth:`Denoiser.encode`, used by any number of
    :meth:`Denoiser.decode` calls at the same level. One entry per decoder block; N = T + 1 tokens with a noise token, T
    without."""

    t: Tensor
    """Diffusion levels ``(B,)`` it was made for."""
    projected: tuple[tuple[Tensor, ...], ...]
    """Per decoder block, the cross-attention's inputs that come from the condition, rotary positions applied: ``(key,
    value)``, or ``(query,)`` with swapped attention; each ``(B, heads, N, d_head)``."""
    key_mask: Tensor | None
    """``(B, 1, 1, N)`` bool, True = may be attended to; None without padding."""

    def select(self, index: slice | Tensor) -> EncoderMemory:
        """The memory of some conditions: ``index`` is a slice or an index tensor into the batch axis."""
        return EncoderMemory(
            t=self.t[index],
            projected=tuple(tuple(part[index] for part in layer) for layer in self.projected),
            key_mask=None if self.key_mask is None else self.key_mask[index],
        )

    def split(self, size: int) -> list[EncoderMemory]:
        """The memories of ``size`` conditions each."""
        t = self.t.split(size)
        key_mask = (None,) * len(t) if self.key_mask is None else self.key_mask.split(size)
        # One split for all: its gradient is one concatenation, while that of a slice is as large as the whole.
        layers = [zip(*(part.split(size) for part in layer), strict=True) for layer in self.projected]
        return [EncoderMemory(*one) for one in zip(t, zip(*layers, strict=True), key_mask, strict=True)]


def _may_overwrite() -> bool:
    """Whether nobody can ask for a gradient later. torch.compile can't trace the question, and reuses memory itself."""
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()


def _rotated(x: Tensor, table: Tensor) -> Tensor:
    """:func:`rotate_pairs` of a projection that nobody else needs: in inference mode it is turned where it is."""
    if table.is_complex() and _may_overwrite():
        torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(table)
        return x
    return rotate_pairs(x, table)


class TransformerBlock(nn.Module):
    """Post-norm block: self-attention, optionally cross-attention, feed-forward.

    Tokens travel as one matrix ``(rows * N, d_latent)``, so every linear layer is a single matrix product without a
    reshape. Self-attention is never masked: EgoAllo computes a masked one and overwrites it, so trained weights expect
    padding to take part.
    """

    def __init__(self, config: DenoiserConfig, *, cross_attention: bool) -> None:
        super().__init__()
        d = config.d_latent
        self.config = config
        self.sattn_qkv_proj = nn.Linear(d, 3 * d, bias=False)
        self.sattn_out_proj = nn.Linear(d, d, bias=False)
        self.layernorm1 = nn.LayerNorm(d)
        self.layernorm2 = nn.LayerNorm(d)
        if config.positional_encoding == "rope":
            self.rotary_emb = RotaryEmbedding(config.d_head)
        if cross_attention:
            self.xattn_kv_proj = nn.Linear(d, 2 * d, bias=False)
            self.xattn_q_proj = nn.Linear(d, d, bias=False)
            self.xattn_layernorm = nn.LayerNorm(d)
            self.xattn_out_proj = nn.Linear(d, d, bias=False)
        self.mlp0 = nn.Linear(d, config.d_feedforward)
        if config.noise_conditioning == "film":
            self.mlp_film_cond_proj = nn.Linear(config.d_noise_emb, 2 * config.d_feedforward, bias=False)
        self.mlp1 = nn.Linear(config.d_feedforward, d)
        self._activation = F.gelu if config.activation == "gelu" else F.relu

    def _attention_output(self, projection: nn.Linear, attended: Tensor) -> Tensor:
        """Join the heads of ``(rows, heads, N, d_head)`` and project: ``(rows * N, d_latent)``."""
        joined = attended.transpose(1, 2).reshape(-1, self.config.d_latent)
        if self.training and self.config.dropout_p:
            joined = F.dropout(joined, self.config.dropout_p)
        return _linear(projection, joined)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        dropout = self.config.dropout_p if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)

    def self_attention(self, x: Tensor, tokens: int, rotary: Tensor | None) -> Tensor:
        """``x (rows * tokens, d)`` to the residual branch of the same shape."""
        config = self.config
        qk, v = (
            _linear(self.sattn_qkv_proj, x)
            .view(-1, tokens, 3 * config.d_latent)
            .split((2 * config.d_latent, config.d_latent), dim=-1)
        )
        # Queries and keys are rotated together: their heads are neighbours in the projection's output.
        qk = qk.unflatten(-1, (2 * config.num_heads, config.d_head))
        if rotary is not None:
            qk = _rotated(qk, rotary)
        q, k = qk.transpose(1, 2).chunk(2, dim=1)
        v = v.unflatten(-1, (config.num_heads, config.d_head)).transpose(1, 2)
        return self._attention_output(self.sattn_out_proj, self._attend(q, k, v))

    def _heads(self, x: Tensor, tokens: int, rotary: Tensor | None) -> Tensor:
        """``(rows * tokens, d)`` to ``(rows, tokens, heads, d_head)``, with rotary positions if any."""
        x = x.view(-1, tokens, self.config.num_heads, self.config.d_head)
        return x if rotary is None else _rotated(x, rotary)

    def condition_projection(self, encoded: Tensor, tokens: int, rotary: Tensor | None) -> tuple[Tensor, ...]:
        """The cross-attention's inputs from the encoded condition ``(B * tokens, d)``: see
        :attr:`EncoderMemory.projected`."""
        if self.config.xattn_mode == "kv_from_x_q_from_cond":
            return (self._heads(_linear(self.xattn_q_proj, encoded), tokens, rotary).transpose(1, 2),)
        return self._key_value(encoded, tokens, rotary)

    def _key_value(self, source: Tensor, tokens: int, rotary: Tensor | None) -> tuple[Tensor, Tensor]:
        key, value = _linear(self.xattn_kv_proj, source).view(-1, tokens, 2 * self.config.d_latent).chunk(2, dim=-1)
        key = key.unflatten(-1, (self.config.num_heads, self.config.d_head))
        if rotary is not None:
            key = _rotated(key, rotary)
        value = value.unflatten(-1, (self.config.num_heads, self.config.d_head))
        return key.transpose(1, 2), value.transpose(1, 2)

    def cross_attention(
        self,
        x: Tensor,
        tokens: int,
        group: int,
        rotary: Tensor | None,
        projected: tuple[Tensor, ...],
        key_mask: Tensor | None,
    ) -> Tensor:
        """``x (B * group * tokens, d)`` and the condition's part to the residual branch of the same shape.

        Members of a group share keys and values, so the group is folded into the query axis: one attention of ``group *
        tokens`` queries per condition, and no copy of keys or values.
        """
        config = self.config
        if config.xattn_mode == "kv_from_cond_q_from_x":
            q = self._heads(_linear(self.xattn_q_proj, x), tokens, rotary)
            q = q.reshape(-1, group * tokens, config.num_heads, config.d_head).transpose(1, 2)
            key, value = projected
            return self._attention_output(self.xattn_out_proj, self._attend(q, key, value, key_mask))
        (q,) = projected
        key, value = self._key_value(x, tokens, rotary)
        if group > 1:
            q = q.repeat_interleave(group, dim=0)
            key_mask = None if key_mask is None else key_mask.repeat_interleave(group, dim=0)
        return self._attention_output(self.xattn_out_proj, self._attend(q, key, value, key_mask))

    def feed_forward(self, x: Tensor, noise_emb: Tensor | None) -> Tensor:
        """``x (B * rows per condition, d)`` to the residual branch; ``noise_emb (B, d_noise_emb)`` with FiLM
        conditioning."""
        hidden = _activated(self._activation, self.mlp0, x)
        if noise_emb is not None:
            scale, shift = F.linear(noise_emb, self.mlp_film_cond_proj.weight).chunk(2, dim=-1)
            normed = F.layer_norm(hidden, (self.config.d_feedforward,)).view(
                len(noise_emb), -1, self.config.d_feedforward
            )
            hidden = torch.addcmul(shift[:, None], normed, 1.0 + scale[:, None]).view(-1, self.config.d_feedforward)
        if self.training and self.config.dropout_p:
            hidden = F.dropout(hidden, self.config.dropout_p)
        return _linear(self.mlp1, hidden)


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)`` without the module call's overhead; for inference the layer may be another one than torch's
    (:mod:`mgrpo.models.inference`)."""
    return F.linear(x, layer.weight, layer.bias) if type(layer) is nn.Linear else layer(x)


def _activated(activation: Callable[[Tensor], Tensor], layer: nn.Module, x: Tensor) -> Tensor:
    """``activation(layer(x))``; layers other than torch's may do both in one pass."""
    return activation(_linear(layer, x)) if type(layer) is nn.Linear else layer.activated(x)


def _added(x: Tensor, branch: Tensor) -> Tensor:
    """``x + branch``, in inference mode in the memory of ``branch``."""
    return branch.add_(x) if _may_overwrite() else x + branch


def _layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """``norm(x)`` without the module call's overhead."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


class Denoiser(nn.Module, PretrainedModel):
    """EgoAllo's denoiser (fact sheet C.2, C.3): parameter names and shapes are the released checkpoint's.

    Args:
        config: see :class:`DenoiserConfig`.
        seed: initial weights are a pure function of (config, seed). Linear layers and LayerNorms start as torch's
            defaults, FiLM matrices at zero. The level embedding starts as sinusoids of t instead of independent rows:
            neighbouring levels then learn from each other, which short training runs need.
    """

    config_class = DenoiserConfig
    layer_counts = ("encoder_layers", "decoder_layers")
    card_summary = (
        "The denoiser of a diffusion model that recovers full-body motion (SMPL-H) from the motion of the head, in "
        "EgoAllo's architecture: it predicts the clean motion state from a noised one."
    )
    card_tags = ("motion", "diffusion", "egocentric", "SMPL-H", "egoallo")

    def __init__(self, config: DenoiserConfig, *, seed: int = 0) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.layout = config.layout
        self.checkpoint_blocks = False
        """Whether what blocks compute is forgotten and computed again for the gradient: less memory, more time."""
        # Plain copies: torch.compile can't trace the lock inside a cached property (Python 3.10, 3.11).
        self._dim, self._parts = self.layout.dim, tuple(self.layout.slices.items())
        d = config.d_latent
        activation = nn.GELU if config.activation == "gelu" else nn.ReLU
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoders = nn.ModuleDict(
                {
                    name: nn.Sequential(
                        nn.Linear(size, d), activation(), nn.Linear(d, d), activation(), nn.Linear(d, d)
                    )
                    for name, size in self.layout.sizes.items()
                }
            )
            self.decoders = nn.ModuleDict(
                {
                    name: nn.Sequential(
                        nn.Linear(d, d),
                        nn.LayerNorm(d),
                        activation(),
                        nn.Linear(d, d),
                        activation(),
                        nn.Linear(d, size),
                    )
                    for name, size in self.layout.sizes.items()
                }
            )
            self.latent_from_cond = nn.Linear(config.d_cond, d)
            self.noise_emb = nn.Embedding(config.max_t, config.d_noise_emb)
            if config.noise_conditioning == "token":
                self.noise_emb_token_proj = nn.Linear(config.d_noise_emb, d, bias=False)
            self.encoder_layers = nn.ModuleList(
                TransformerBlock(config, cross_attention=False) for _ in range(config.encoder_layers)
            )
            self.decoder_layers = nn.ModuleList(
                TransformerBlock(config, cross_attention=True) for _ in range(config.decoder_layers)
            )
        with torch.no_grad():
            self.noise_emb.weight.copy_(_level_sinusoids(config.max_t, config.d_noise_emb))
            if config.noise_conditioning == "film":
                for block in (*self.encoder_layers, *self.decoder_layers):
                    block.mlp_film_cond_proj.weight.zero_()
        self._activation = F.gelu if config.activation == "gelu" else F.relu
        self._tables = PositionTables()

    # Checkpoints

    @classmethod
    def from_egoallo(cls, path: str | Path) -> Denoiser:
        """The network of a checkpoint that EgoAllo (or :meth:`save_egoallo`) wrote, on the CPU, float32, in evaluation
        mode.

        Args:
            path: the experiment's folder (of several ``checkpoints_<step>`` the newest is taken, and a warning logged),
                one of these folders, or a folder with ``model_config.yaml`` and ``model.safetensors``.

        Loading is strict about names and shapes. Prefixes of wrappers (``module.``, ``_orig_mod.``) are taken off,
        rotary frequencies may be missing, half precision is widened; unknown fields of the configuration are ignored
        with a warning, missing ones take their defaults (facts: section C.4).

        Raises:
            InputError: nothing there, damaged, unsafe (pickles, foreign YAML tags), or tensors that don't fit, by name.
        """
        return read_egoallo(path, cls)[0]

    def save_egoallo(self, folder: str | Path, *, step: int) -> Path:
        """Write a checkpoint that EgoAllo reads, and return its ``checkpoints_<step>`` folder; the experiment's
        ``folder`` may be new, or hold other steps of the same configuration.

        Raises:
            InputError: the folder holds that step, another configuration or other files; float64 weights.
            StorageError: the disk refuses; nothing is left half-written.
        """
        return write_egoallo(self, folder, step=step)

    # Positions

    def _rotary(self, tokens: int, like: Tensor) -> Tensor | None:
        """The rotary table for ``tokens`` positions, or None with sinusoidal positions."""
        if self.config.positional_encoding != "rope":
            return None
        dtype = (
            torch.get_autocast_dtype(like.device.type) if torch.is_autocast_enabled(like.device.type) else like.dtype
        )
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        as_complex = dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling()

        def make() -> Tensor:
            angles = rotary_angles(tokens, self.config.d_head, wide)[:, None, :]
            if as_complex:
                return torch.polar(torch.ones_like(angles), angles).to(like.device)
            return torch.stack((torch.cos(angles), torch.sin(angles))).to(like.device, dtype)

        return self._tables.get(("rotary", tokens, like.device, dtype, as_complex), make)

    def _add_positions(self, x: Tensor) -> Tensor:
        """Add sinusoidal positions to frames ``(rows, T, d)`` where the configuration asks for them; the noise token
        has none."""
        if self.config.positional_encoding != "transformer":
            return x
        frames = x.shape[-2]
        table = self._tables.get(
            ("sinusoidal", frames, x.device, x.dtype),
            lambda: sinusoidal_positions(frames, self.config.d_latent).to(x.device, x.dtype),
        )
        return x + table

    # The diffusion level

    def _level(self, t: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Noise token ``(B, 1, d)`` (token conditioning) or embedding ``(B, d_noise_emb)`` (FiLM) of levels ``t
        (B,)``."""
        if t.numel() and host.can_read(t):
            low, high = (int(bound) for bound in torch.aminmax(t))
            if low < 1 or high > self.config.max_t:
                raise InputError(
                    f"diffusion levels must lie in 1 … {self.config.max_t}, got values from {low} to {high}"
                )
        embedded = F.embedding(t - 1, self.noise_emb.weight)
        if self.config.noise_conditioning == "film":
            return None, embedded
        return F.linear(embedded, self.noise_emb_token_proj.weight)[:, None], None

    def _through(self, block: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Tokens after a block, which is run again for the gradient where :attr:`checkpoint_blocks` asks for that."""
        if not (self.checkpoint_blocks and torch.is_grad_enabled()):
            return block(x)
        dropout = self.training and self.config.dropout_p > 0
        return checkpoint(block, x, use_reentrant=False, preserve_rng_state=dropout)

    # The two halves

    def encode(
        self, cond: Tensor, t: Tensor, *, mask: Tensor | None = None, cond_dropout_keep_mask: Tensor | None = None
    ) -> EncoderMemory:
        """Everything of the network that depends only on the condition and the level.

        Args:
            cond: encoded head motion ``(B, T, d_cond)`` (:func:`mgrpo.models.conditioning.make_cond`); cast to the
                weights' dtype, as is ``x_t`` in :meth:`decode`.
            t: diffusion levels ``(B,)`` int64 in 1 … max_t.
            mask: ``(B, T)`` bool, True = a real frame; masks the keys of cross-attention only.
            cond_dropout_keep_mask: ``(B,)`` bool; False zeroes that condition.

        Raises:
            InputError: shapes that don't fit, levels out of range (checked on the CPU only; a GPU would have to
                synchronise).
        """
        config = self.config
        if cond.ndim != 3 or cond.shape[-1] != config.d_cond:
            raise InputError(f"encode(): cond must have shape (B, T, {config.d_cond}), got {tuple(cond.shape)}")
        batch, frames, _ = cond.shape
        if t.shape != (batch,):
            raise InputError(f"encode(): t must have shape ({batch},), got {tuple(t.shape)}")
        if cond_dropout_keep_mask is not None:
            if cond_dropout_keep_mask.shape != (batch,):
                raise InputError(
                    f"encode(): cond_dropout_keep_mask must have shape ({batch},), got "
                    f"{tuple(cond_dropout_keep_mask.shape)}"
                )
            cond = cond * cond_dropout_keep_mask[:, None, None].to(cond.dtype)
        token, noise_emb = self._level(t)
        cond = cond.to(self.latent_from_cond.weight.dtype)
        x = self._add_positions(F.linear(cond, self.latent_from_cond.weight, self.latent_from_cond.bias))
        if token is not None:
            x = torch.cat((token.to(x.dtype), x), dim=1)
        tokens = x.shape[1]
        rotary = self._rotary(tokens, x)
        x = x.reshape(batch * tokens, config.d_latent)
        for block in self.encoder_layers:
            x = self._through(partial(_encode_block, block, tokens, rotary, noise_emb), x)

        key_mask = None
        if mask is not None:
            if mask.shape != (batch, frames) or mask.dtype != torch.bool:
                raise InputError(
                    f"encode(): mask must be boolean of shape ({batch}, {frames}), got {mask.dtype} {tuple(mask.shape)}"
                )
            if token is not None:
                mask = F.pad(mask, (1, 0), value=True)
            key_mask = mask[:, None, None, :]
        return EncoderMemory(
            t=t,
            projected=tuple(block.condition_projection(x, tokens, rotary) for block in self.decoder_layers),
            key_mask=key_mask,
        )

    def encode_levels(
        self,
        cond: Tensor,
        levels: Sequence[int],
        *,
        mask: Tensor | None = None,
        encode: Callable[..., EncoderMemory] | None = None,
    ) -> list[EncoderMemory]:
        """:meth:`encode` of the same conditions at several levels, in one pass over all of them.

        Args:
            cond, mask: as in :meth:`encode`.
            levels: each in 1 … max_t.
            encode: what to call in the place of :meth:`encode`.

        Raises:
            InputError: as :meth:`encode`.
        """
        batch, count = len(cond), len(levels)
        t = torch.cat([torch.full((batch,), level, dtype=torch.int64, device=cond.device) for level in levels])
        options = {} if mask is None else {"mask": mask.repeat(count, 1)}
        repeated = cond.repeat(count, *(1,) * (cond.ndim - 1))
        return (encode or self.encode)(repeated, t, **options).split(batch)

    def decode(self, x_t: Tensor, t: Tensor, memory: EncoderMemory) -> Tensor:
        """Predict clean states of G samples per condition.

        Args:
            x_t: noised states ``(B, G, T, D)``.
            t: diffusion levels ``(B,)``, those ``memory`` was made with.
            memory: from :meth:`encode`, B conditions.

        Returns:
            ``(B, G, T, D)``: predicted clean states, rotations as raw matrix entries, contacts not squashed.

        Raises:
            InputError: shapes that don't fit each other or the network.
        """
        config = self.config
        if x_t.ndim != 4 or x_t.shape[-1] != self._dim:
            raise InputError(f"decode(): x_t must have shape (B, G, T, {self._dim}), got {tuple(x_t.shape)}")
        batch, group, frames, dim = x_t.shape
        if t.shape != (batch,) or len(memory.t) != batch:
            raise InputError(
                f"decode(): x_t has {batch} conditions, t has shape {tuple(t.shape)}, the memory holds "
                f"{len(memory.t)} conditions"
            )
        token, noise_emb = self._level(t)
        tokens = frames + (token is not None)
        if memory.projected[0][0].shape[2] != tokens:
            expected = memory.projected[0][0].shape[2] - (token is not None)
            raise InputError(f"decode(): x_t has {frames} frames, the memory was made for {expected}")

        flat = x_t.reshape(batch * group * frames, dim).to(self.latent_from_cond.weight.dtype)
        x: Tensor | None = None
        for name, part in self._parts:
            first, _, second, _, third = self.encoders[name]
            hidden = _activated(self._activation, first, flat[:, part])
            hidden = _activated(self._activation, second, hidden)
            hidden = _linear(third, hidden)
            x = hidden if x is None else x + hidden
        assert x is not None
        x = self._add_positions(x.view(batch * group, frames, config.d_latent))
        if token is not None:
            token = token if group == 1 else token.repeat_interleave(group, dim=0)
            x = torch.cat((token.to(x.dtype), x), dim=1)
        rotary = self._rotary(tokens, x)
        x = x.reshape(batch * group * tokens, config.d_latent)

        for block, projected in zip(self.decoder_layers, memory.projected, strict=True):
            x = self._through(
                partial(_decode_block, block, tokens, group, rotary, noise_emb, projected, memory.key_mask), x
            )

        if token is not None:
            x = x.view(batch * group, tokens, config.d_latent)[:, 1:].reshape(-1, config.d_latent)
        outputs = []
        for head in self.decoders.values():
            first, norm, _, second, _, third = head
            hidden = self._activation(_layer_norm(norm, _linear(first, x)))
            hidden = _activated(self._activation, second, hidden)
            outputs.append(_linear(third, hidden))
        return torch.cat(outputs, dim=-1).view(batch, group, frames, dim)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        T_world_cpf: Tensor,
        T_cpf_tm1_cpf_t: Tensor,
        project_output_rotmats: bool = False,
        hand_positions_wrt_cpf: Tensor | None = None,
        mask: Tensor | None = None,
        cond_dropout_keep_mask: Tensor | None = None,
    ) -> Tensor:
        """Predict clean states of single windows: :meth:`encode` and :meth:`decode` with a group of one.

        Args:
            x_t: noised states ``(B, T, D)``.
            t: diffusion levels ``(B,)`` int64 in 1 … max_t.
            T_world_cpf: head poses ``(B, T, 7)``, floor at z = 0.
            T_cpf_tm1_cpf_t: head motion since the frame before ``(B, T, 7)``.
            project_output_rotmats: replace body and hand matrices by their polar factors (EgoAllo's: determinants
                aren't mended).
            hand_positions_wrt_cpf: ``(B, T, 6)``, only for models that have them in the condition.
            mask: ``(B, T)`` bool, True = a real frame.
            cond_dropout_keep_mask: ``(B,)`` bool; False zeroes that condition.

        Returns:
            ``(B, T, D)``.
        """
        if x_t.ndim != 3:
            raise InputError(f"forward(): x_t must have shape (B, T, {self.layout.dim}), got {tuple(x_t.shape)}")
        # Products of rotations, in full precision whatever autocast makes of the layers.
        with torch.autocast(x_t.device.type, enabled=False):
            cond = make_cond(self.config, T_world_cpf, T_cpf_tm1_cpf_t, hand_positions_wrt_cpf)
        memory = self.encode(cond, t, mask=mask, cond_dropout_keep_mask=cond_dropout_keep_mask)
        x0_pred = self.decode(x_t[:, None], t, memory)[:, 0]
        if project_output_rotmats:
            x0_pred = project_state(self.layout, x0_pred, hands=True, fix_det=False)
        return x0_pred


def _encode_block(
    block: TransformerBlock, tokens: int, rotary: Tensor | None, noise_emb: Tensor | None, x: Tensor
) -> Tensor:
    x = _layer_norm(block.layernorm1, _added(x, block.self_attention(x, tokens, rotary)))
    return _layer_norm(block.layernorm2, _added(x, block.feed_forward(x, noise_emb)))


def _decode_block(
    block: TransformerBlock,
    tokens: int,
    group: int,
    rotary: Tensor | None,
    noise_emb: Tensor | None,
    projected: tuple[Tensor, ...],
    key_mask: Tensor | None,
    x: Tensor,
) -> Tensor:
    x = _layer_norm(block.layernorm1, _added(x, block.self_attention(x, tokens, rotary)))
    attended = block.cross_attention(x, tokens, group, rotary, projected, key_mask)
    x = _layer_norm(block.xattn_layernorm, _added(x, attended))
    return _layer_norm(block.layernorm2, _added(x, block.feed_forward(x, noise_emb)))


def _level_sinusoids(levels: int, width: int) -> Tensor:
    """Rows of unit mean square ``(levels, width)``: sinusoids of t with periods from 4 to 4 * levels."""
    half = (width + 1) // 2
    rates = float(levels) ** -torch.linspace(0.0, 1.0, half, dtype=torch.float64)
    angles = torch.arange(1, levels + 1, dtype=torch.float64)[:, None] * rates * (torch.pi / 2)
    table = torch.stack((torch.sin(angles), torch.cos(angles)), dim=-1).flatten(-2)[:, :width]
    return (table * 2.0**0.5).float()


__all__ = [
    "DENOISER_PRESETS",
    "Denoiser",
    "DenoiserConfig",
    "EncoderMemory",
    "RotaryEmbedding",
    "TransformerBlock",
    "rotary_angles",
    "rotate_pairs",
    "sinusoidal_positions",
]
