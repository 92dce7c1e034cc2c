"""The numbers that a network computes with while it is trained: weights, loss and optimiser stay float32."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mgrpo.errors import InputError

Precision = Literal["fp32", "tf32", "bf16", "fp16-scaled"]
RatioPrecision = Literal["fp32", "tf32", "bf16"]
"""Those without a loss scale, for losses that compare log-probs of different times."""

_OF_ACCELERATE = {"no": "fp32", "bf16": "bf16", "fp16": "fp16-scaled"}


class NetworkPrecision:
    """How the layers compute on one device, and how gradients get through it.

    ``fp32``: as the weights are. ``tf32``: float32, with matrix products rounded to 10 bits of mantissa inside the
    GPU's tensor cores. ``bf16``: autocast, matrix products in bfloat16. ``fp16-scaled``: autocast to float16, with the
    loss scaled so that small gradients don't vanish; a step whose gradients overflow is left out and the scale halved.
    """

    def __init__(self, name: Precision, device: torch.device, *, option: str = "--precision") -> None:
        """``option`` is what messages call it. Raises InputError for what the device can't do, or when accelerate was
        told something else."""
        _refuse_other_of_accelerate(name, option)
        if name == "fp16-scaled" and device.type != "cuda":
            raise InputError(
                f"{option} fp16-scaled needs a CUDA GPU (on a CPU float16 is slower than float32); use bf16 or fp32"
            )
        if name == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
            raise InputError(f"{option} tf32 needs a CUDA GPU of compute capability 8.0 or more; use fp32 or bf16")
        if name == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
            raise InputError(
                f"{option} bf16 needs a GPU of compute capability 8.0 or more; use fp32, "
                "or fp16-scaled where it is offered"
            )
        self.name = name
        self.device = device
        self._dtype = {"bf16": torch.bfloat16, "fp16-scaled": torch.float16}.get(name)
        self._scaler = torch.amp.GradScaler(device.type) if name == "fp16-scaled" else None

    @property
    def dtype(self) -> torch.dtype:
        """What the layers compute in."""
        return self._dtype or torch.float32

    def applied_to(self, network: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A function that calls ``network`` in this precision."""
        if self._dtype is None:
            return network

        def call(*arguments: Any, **options: Any) -> Tensor:
            with torch.autocast(self.device.type, dtype=self._dtype):
                return network(*arguments, **options)

        return call

    @contextmanager
    def matrix_products(self) -> Iterator[None]:
        """Context for a whole training: torch's setting for float32 matrix products, put back afterwards. ``fp32``
        means full float32 whatever was set before."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if self.name == "tf32" else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss`` (scaled, under ``fp16-scaled``) to the parameters'."""
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def step(self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], clip: float) -> Tensor:
        """Clip the gradients to the norm ``clip``, take a step, and return the norm before clipping. Under
        ``fp16-scaled``, gradients that overflowed (norm not finite) change nothing."""
        if self._scaler is None:
            norm = nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
            return norm
        self._scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, clip)
        self._scaler.step(optimizer)
        self._scaler.update()
        return norm

    @property
    def loss_scale(self) -> float | None:
        """Factor on the loss; None where there is none."""
        return None if self._scaler is None else float(self._scaler.get_scale())

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to go on exactly: plain values, empty without a scale."""
        return {} if self._scaler is None else dict(self._scaler.state_dict())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` gave."""
        if self._scaler is not None and state:
            self._scaler.load_state_dict(dict(state))


def _refuse_other_of_accelerate(name: Precision, option: str) -> None:
    """``accelerate launch --mixed_precision`` says so in the environment; it must not be ignored silently."""
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower() or "no"
    wanted = _OF_ACCELERATE.get(told)
    if told != "no" and wanted != name:
        advice = f"add {option} {wanted}" if wanted else "mgrpo has no such precision"
        raise InputError(
            f"accelerate launch was given mixed precision {told} (ACCELERATE_MIXED_PRECISION), but {option} is "
            f"{name}: {advice}, or launch with --mixed_precision no"
        )
