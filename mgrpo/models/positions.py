"""Where a token stands in its sequence: rotary and sinusoidal positions, and tables of them made once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_ROPE_THETA = 10000.0


class RotaryEmbedding(nn.Module):
    """Frequencies of rotary positions. The released checkpoint stores them once per block under ``rotary_emb.freqs``;
    they are never trained. A state dict may leave them out; values that differ from the formula are refused rather than
    used or silently dropped."""

    freqs: Tensor

    def __init__(self, d_head: int) -> None:
        super().__init__()
        self.d_head = d_head
        self.register_buffer("freqs", self.formula(d_head))

    @staticmethod
    def formula(d_head: int) -> Tensor:
        """``θ^(-2i / d_head)``, i = 0 … d_head/2 - 1, θ = 10000: ``(d_head / 2)`` float32 radians per token."""
        exponents = torch.arange(0, d_head, 2)[: d_head // 2].float() / d_head
        return 1.0 / (_ROPE_THETA**exponents)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        absent: list[str] = []  # the formula stands in for frequencies that a state dict leaves out
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, absent, unexpected_keys, error_msgs)
        given, expected = state_dict.get(prefix + "freqs"), self.formula(self.d_head)
        if given is None or given.shape != expected.shape:
            return
        tolerance = 1e-2 if given.element_size() < 4 else 1e-5
        if not torch.allclose(given.detach().to("cpu", torch.float32), expected, rtol=tolerance):
            error_msgs.append(
                f"{prefix}freqs holds rotary frequencies other than 10000^(-2i/{self.d_head}); "
                "this network has no learned frequencies"
            )
        elif given.element_size() < 4:
            with torch.no_grad():  # what a half-precision file rounded would be refused when written and read again
                self.freqs.copy_(expected)


class PositionTables:
    """Position tables, made on first use per (tokens, device, dtype) and shared by all blocks; not part of the state
    dict."""

    def __init__(self) -> None:
        self._cache: dict[tuple[Any, ...], Any] = {}

    def get(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """The table under ``key``, made by ``make()`` if it isn't there yet."""
        table = self._cache.get(key)
        if table is None:
            if len(self._cache) >= 64:
                self._cache.clear()  # many sequence lengths in one process: start over rather than grow without bound
            # A table first made inside inference_mode must still serve autograd later.
            with torch.inference_mode(False), torch.no_grad():
                table = self._cache[key] = make()
        return table

    def __deepcopy__(self, memo: dict[int, Any]) -> PositionTables:
        return PositionTables()

    def __getstate__(self) -> dict[str, Any]:
        return {"_cache": {}}


def rotary_angles(tokens: int, d_head: int, dtype: torch.dtype) -> Tensor:
    """Angles ``(tokens, d_head / 2)`` in radians of positions 0 … tokens - 1, computed in at least float32."""
    positions = torch.arange(tokens, dtype=dtype)
    return positions[:, None] * RotaryEmbedding.formula(d_head).to(dtype)


def rotate_pairs(x: Tensor, table: Tensor) -> Tensor:
    """Turn neighbouring channel pairs (2i, 2i+1) of ``x (*, N, heads, d_head)`` by the table's angles.

    ``table`` is complex ``(N, 1, d_head/2)``, or real ``(2, N, 1, d_head/2)`` holding cosine and sine. One complex
    product is several times faster than the real form on a CPU and needs one kernel each way on a GPU; half precision
    has no complex kernels.
    """
    pairs = x.unflatten(-1, (-1, 2))
    if table.is_complex():
        return torch.view_as_real(torch.view_as_complex(pairs) * table).flatten(-2)
    a, b = pairs.unbind(-1)
    cos, sin = table[0], table[1]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


def sinusoidal_positions(frames: int, width: int) -> Tensor:
    """The transformer's sinusoidal encoding ``(frames, width)`` float32: sine in even channels, cosine in odd ones."""
    rates = torch.exp(torch.arange(0, width, 2).float() * (-math.log(_ROPE_THETA) / width))
    angles = torch.arange(frames).float()[:, None] * rates
    return torch.stack((torch.sin(angles), torch.cos(angles)), dim=-1).flatten(-2)
