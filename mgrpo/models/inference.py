"""A denoiser prepared for sampling: in the precision that is asked for, without anything that training needs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from mgrpo.errors import InputError
from mgrpo.kernels.half_linear import HalfLinear, half_linear_problem
from mgrpo.models.denoiser import Denoiser, DenoiserConfig, EncoderMemory
from mgrpo.models.onednn_linear import OneDnnLinear, onednn_is_faster
from mgrpo.models.state import StateLayout

InferencePrecision = Literal["fp32", "bf16", "fp16", "auto"]


def choose_precision(precision: InferencePrecision, device: torch.device) -> tuple[InferencePrecision, str]:
    """What a network computes in on a device, and why: ``auto`` is the fastest that the device computes as fast as it
    reads, never a slower one.

    Raises:
        InputError: ``fp16`` where it does not run.
    """
    if precision == "fp16":
        problem = "it is made for CPUs" if device.type != "cpu" else half_linear_problem()
        if problem is not None:
            raise InputError(
                f"--precision fp16 does not run on {device.type}: {problem}; take auto, which chooses what does"
            )
    if precision != "auto":
        return precision, "as asked for"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return "bf16", "the GPU has tensor cores for it"
        return "fp32", "the GPU has no tensor cores for bfloat16"
    if device.type == "cpu":
        if _has_amx():
            return "bf16", "the CPU multiplies it in tiles (AMX)"
        problem = half_linear_problem()
        if problem is None:
            return "fp16", "the CPU has AVX512-FP16; its bfloat16 would be slower than float32"
        if _has_bf16():
            return "bf16", "the CPU has AVX512-BF16"
        return "fp32", f"the CPU has neither AMX nor AVX512-BF16, and for float16: {problem}"
    return "fp32", f"nothing else is known to be faster on {device.type}"


def _has_amx() -> bool:
    """Whether the CPU multiplies bfloat16 in tiles."""
    return _supported("_is_amx_tile_supported")


def _has_bf16() -> bool:
    """Whether the CPU has instructions for products of bfloat16 in registers. On Intel CPUs with AVX512-FP16 and
    without tiles such products were half as fast as in float32, on AMD's (Zen 5) four times as fast as MKL's."""
    return _supported("_is_avx512_bf16_supported")


def _supported(question: str) -> bool:
    answer = getattr(torch.cpu, question, None)
    return bool(answer is not None and answer() and torch.backends.mkldnn.is_available())


class InferenceDenoiser:
    """What samplers call of a denoiser (:class:`mgrpo.diffusion.sampler.GroupPredictor`), without gradients.

    ``fp32`` uses the denoiser's weights (through oneDNN where that is faster). ``bf16`` on a CPU and ``fp16`` hold a
    copy of them, made here once, in half the memory: states and conditions stay float32, and in ``fp16`` so do the
    layers that make tokens of the condition and numbers of tokens. The denoiser must not be trained meanwhile.
    """

    def __init__(self, denoiser: Denoiser, precision: InferencePrecision = "fp32") -> None:
        """
        Args:
            denoiser: in evaluation mode, on the device to compute on.
            precision: see :func:`choose_precision`, which also says what it raises.
        """
        self.config: DenoiserConfig = denoiser.config
        self.layout: StateLayout = denoiser.layout
        self.device = denoiser.latent_from_cond.weight.device
        self.precision, self.reason = choose_precision(precision, self.device)
        self._autocast = self.precision == "bf16" and self.device.type != "cpu"
        if self.precision == "fp16":
            denoiser = _with_half_layers(denoiser)
        elif self.precision == "bf16" and not self._autocast:
            # Autocast would convert all weights again in each call.
            denoiser = copy.deepcopy(denoiser).to(torch.bfloat16)
        elif self.device.type == "cpu" and _is_float32(denoiser) and onednn_is_faster():
            denoiser = _with_layers(denoiser, _linear_layers(denoiser), OneDnnLinear)
        self._denoiser = denoiser

    def _context(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self._autocast else nullcontext()

    @torch.inference_mode()
    def encode(self, cond: Tensor, t: Tensor) -> EncoderMemory:
        """See :meth:`mgrpo.models.denoiser.Denoiser.encode`."""
        with self._context():
            return self._denoiser.encode(cond, t)

    def encode_levels(self, cond: Tensor, levels: Sequence[int]) -> list[EncoderMemory]:
        """See :meth:`mgrpo.models.denoiser.Denoiser.encode_levels`."""
        return self._denoiser.encode_levels(cond, levels, encode=self.encode)

    @torch.inference_mode()
    def decode(self, x_t: Tensor, t: Tensor, memory: EncoderMemory) -> Tensor:
        """See :meth:`mgrpo.models.denoiser.Denoiser.decode`."""
        with self._context():
            return self._denoiser.decode(x_t, t, memory)


class _HalfLayer(nn.Module):
    """A linear layer of a network that is only called."""

    def __init__(self, layer: nn.Linear, activation: Literal["gelu", "relu"]) -> None:
        super().__init__()
        self._packed = HalfLinear(layer.weight, layer.bias)
        self._activation: Literal["gelu", "relu"] = activation

    def forward(self, x: Tensor) -> Tensor:
        return self._packed(x)

    def activated(self, x: Tensor) -> Tensor:
        """The network's activation of the result."""
        return self._packed(x, self._activation)


def _with_half_layers(denoiser: Denoiser) -> Denoiser:
    """A copy whose blocks, and whose layers among tokens, hold float16; all else is shared with the denoiser."""
    if not _is_float32(denoiser):
        raise InputError(f"--precision fp16 is for float32 weights, got {denoiser.latent_from_cond.weight.dtype}")
    kept = [part[-1] for part in denoiser.decoders.values()]  # they write numbers
    return _with_layers(denoiser, [one for one in _linear_layers(denoiser) if one not in kept], _HalfLayer)


def _is_float32(denoiser: Denoiser) -> bool:
    return denoiser.latent_from_cond.weight.dtype == torch.float32


def _linear_layers(denoiser: Denoiser) -> list[nn.Linear]:
    """Those of the blocks, and those that make tokens of numbers and numbers of tokens."""
    layers: list[nn.Module] = []
    for block in (*denoiser.encoder_layers, *denoiser.decoder_layers):
        names = ("sattn_qkv_proj", "sattn_out_proj", "xattn_kv_proj", "xattn_q_proj", "xattn_out_proj", "mlp0", "mlp1")
        layers += [getattr(block, name) for name in names if hasattr(block, name)]
    for part in (*denoiser.encoders.values(), *denoiser.decoders.values()):
        layers += part
    return [one for one in layers if isinstance(one, nn.Linear)]


def _with_layers(
    denoiser: Denoiser,
    layers: Iterable[nn.Linear],
    make: Callable[[nn.Linear, Literal["gelu", "relu"]], nn.Module],
) -> Denoiser:
    """A copy that has other layers in the place of some; all else is shared with the denoiser."""
    memo: dict[int, object] = {id(parameter): parameter for parameter in denoiser.parameters()}
    for layer in layers:
        memo[id(layer)] = make(layer, denoiser.config.activation)
    return copy.deepcopy(denoiser, memo)
