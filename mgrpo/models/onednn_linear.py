"""Linear layers by oneDNN, for inference in float32 on processors that torch's usual library was not made for.

On CPUs torch multiplies float32 matrices with Intel's MKL, which leaves half of other makers' wide registers idle;
oneDNN, which torch holds too, does not (on an AMD EPYC of the Zen 5 generation 415 against 185 GFLOP/s).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


def onednn_is_faster() -> bool:
    """Whether float32 layers should be oneDNN's: it is there, and the processor is not one of MKL's own make."""
    describe = getattr(torch.cpu, "get_capabilities", None)
    if describe is None or not torch.backends.mkldnn.is_available() or not torch.backends.mkl.is_available():
        return False
    name = str(describe().get("cpu_name", ""))
    return "AMD" in name and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class OneDnnLinear(nn.Module):
    """A linear layer that is only called, on the CPU in float32; the weights are those of ``layer``, not a copy."""

    def __init__(self, layer: nn.Linear, activation: Literal["gelu", "relu"]) -> None:
        super().__init__()
        self._layer = layer
        self._activation: Literal["gelu", "relu"] = activation

    def forward(self, x: Tensor) -> Tensor:
        """``x (*b, K)`` to ``(*b, N)``."""
        return self._multiply(x, "none", "")

    def activated(self, x: Tensor) -> Tensor:
        """The network's activation of the result, in the same pass."""
        return self._multiply(x, self._activation, "none")  # gelu: the one with erf

    def _multiply(self, x: Tensor, activation: str, algorithm: str) -> Tensor:
        layer = self._layer
        return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, activation, [], algorithm)
