"""Shape and options of the denoiser, under EgoAllo's names, and its presets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mgrpo.errors import InputError
from mgrpo.models.conditioning import COND_PARAMS, CondParam, cond_dim
from mgrpo.models.state import StateLayout


@dataclass(frozen=True)
class DenoiserConfig:
    """Shape and options of the denoiser; field names and defaults are EgoAllo's."""

    max_t: int = 1000
    """Number of diffusion levels; level t = 1 … max_t, embedding row t - 1."""
    fourier_enc_freqs: int = 3
    """Fourier frequencies per conditioning channel."""
    d_latent: int = 512
    """Width of the token streams."""
    d_feedforward: int = 2048
    """Width of the feed-forward layers."""
    d_noise_emb: int = 1024
    """Width of the diffusion level's embedding."""
    num_heads: int = 4
    """Attention heads."""
    encoder_layers: int = 6
    """Transformer blocks over the condition."""
    decoder_layers: int = 6
    """Transformer blocks over the noised motion."""
    dropout_p: float = 0.0
    """Dropout probability while training (of attention weights, attention outputs and feed-forward activations; drawn
    from torch's own generator). Post-training needs 0: with dropout the ratio of an unchanged policy isn't 1."""
    activation: Literal["gelu", "relu"] = "gelu"
    """Activation of every MLP; gelu is the exact erf form."""
    positional_encoding: Literal["rope", "transformer"] = "rope"
    """Rotary positions inside the attention, or sinusoidal ones added to the tokens."""
    noise_conditioning: Literal["token", "film"] = "token"
    """The diffusion level enters as a first token, or as scale and shift inside the feed-forward layers."""
    xattn_mode: Literal["kv_from_cond_q_from_x", "kv_from_x_q_from_cond"] = "kv_from_cond_q_from_x"
    """Which stream the cross-attention reads from, and which one asks."""
    include_canonicalized_cpf_rotation_in_cond: bool = True
    """Whether ``ours`` conditioning contains the head's rotation with its heading removed."""
    include_hands: bool = True
    """Whether the state contains the 30 finger joints."""
    cond_param: CondParam = "ours"
    """Parameterisation of the head motion."""
    include_hand_positions_cond: bool = False
    """Whether the condition contains the two wrists' positions in the CPF frame."""

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raise :class:`InputError` for values that no network can be built from."""
        for name in (
            "max_t",
            "d_latent",
            "d_feedforward",
            "d_noise_emb",
            "num_heads",
            "encoder_layers",
            "decoder_layers",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"DenoiserConfig.{name} must be a whole number of at least 1, got {value!r}")
        freqs = self.fourier_enc_freqs
        if isinstance(freqs, bool) or not isinstance(freqs, int) or freqs < 0:
            raise InputError(f"DenoiserConfig.fourier_enc_freqs must be a whole number of at least 0, got {freqs!r}")
        if (
            isinstance(self.dropout_p, bool)
            or not isinstance(self.dropout_p, (int, float))
            or not 0.0 <= self.dropout_p < 1.0
        ):
            raise InputError(f"DenoiserConfig.dropout_p must lie in [0, 1), got {self.dropout_p!r}")
        choices: dict[str, tuple[Any, ...]] = {
            "activation": ("gelu", "relu"),
            "positional_encoding": ("rope", "transformer"),
            "noise_conditioning": ("token", "film"),
            "xattn_mode": ("kv_from_cond_q_from_x", "kv_from_x_q_from_cond"),
            "cond_param": COND_PARAMS,
            "include_canonicalized_cpf_rotation_in_cond": (True, False),
            "include_hands": (True, False),
            "include_hand_positions_cond": (True, False),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed or isinstance(value, bool) != isinstance(allowed[0], bool):  # 1 == True
                raise InputError(f"DenoiserConfig.{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")
        if self.d_latent % self.num_heads:
            raise InputError(
                f"DenoiserConfig.d_latent must be a multiple of num_heads, got d_latent {self.d_latent} and "
                f"num_heads {self.num_heads}"
            )
        if self.positional_encoding == "rope" and self.d_head % 2:
            raise InputError(
                f"rotary positions need an even width per head; got d_latent {self.d_latent} / num_heads "
                f"{self.num_heads} = {self.d_head}"
            )
        if self.positional_encoding == "transformer" and self.d_latent % 2:
            raise InputError(f"sinusoidal positions need an even d_latent, got {self.d_latent}")

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_latent // self.num_heads

    @property
    def d_cond(self) -> int:
        """Length of one frame's encoded condition."""
        return cond_dim(self)

    @property
    def layout(self) -> StateLayout:
        """The state this network denoises."""
        return StateLayout(self.include_hands)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> DenoiserConfig:
        """Build from plain values, as EgoAllo's ``model_config.yaml`` or our ``config.json`` hold them.

        Missing fields take their defaults, ``d_cond`` is a derived value and ignored, and the old name
        ``absrel_avatarposer`` of a parameterisation is understood.

        Raises:
            InputError: unknown fields or impossible values.
        """
        values = {name: value for name, value in mapping.items() if name != "d_cond"}
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(
                f"unknown DenoiserConfig field(s) {', '.join(unknown)}; known are {', '.join(sorted(known))}"
            )
        if values.get("cond_param") == "absrel_avatarposer":
            values["cond_param"] = "absrel_global_deltas"
        return cls(**values)


DENOISER_PRESETS: dict[str, DenoiserConfig] = {
    "tiny": DenoiserConfig(
        d_latent=64,
        d_feedforward=128,
        d_noise_emb=64,
        num_heads=4,
        encoder_layers=2,
        decoder_layers=2,
        include_hands=False,
    ),
    "egoallo": DenoiserConfig(),
}
"""``tiny``: body only, trains on a CPU in minutes. ``egoallo``: the released model's size and options."""
