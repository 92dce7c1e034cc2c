"""Linear layers in half precision on CPUs with AVX512-FP16, for inference.

Not an operator of this package's contract: it has one implementation, no gradient, and no use on a GPU, where torch's
own layers take float16. Where it does not run, :func:`half_linear_problem` says why, and a caller keeps torch's layers.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .._checks import check_choice, check_tensor
from .._dispatch import BackendError
from .._library import NATIVE_NAMESPACE, native_problem

__all__ = ["HalfLinear", "half_linear_problem"]

Activation = Literal["none", "gelu", "relu"]
_ACTIVATIONS = ("none", "gelu", "relu")
_PANEL = 128
"""Outputs that are computed together."""
_SCALED_EXPONENT = 3
"""Rows are scaled by powers of two to a largest magnitude of 8 to 16: a float16 sum of 64 products can't overflow."""


def half_linear_problem() -> str | None:
    """Why :class:`HalfLinear` does not run here, or None where it does."""
    problem = native_problem(["half_linear_fwd", "half_linear_runs"])
    if problem is None and not getattr(torch.ops, NATIVE_NAMESPACE).half_linear_runs():
        problem = "the processor (or the compiler of the native extension) has no AVX512-FP16"
    return problem


class HalfLinear:
    """A linear layer with float16 weights: float32 in, float32 out.

    Rows of the input and of the weights are scaled by powers of two and rounded to float16 (11 bits); products are
    added in float16 over 64 inputs at a time, these sums in float32. Results differ from exact ones by about 1.2e-3 of
    their norm, where bfloat16 (8 bits, float32 sums) differs by 2.4e-3. Results of a row depend on that row alone.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """
        Args:
            weight: (N, K) float32 or wider, on the CPU; copied.
            bias: (N,) or None.

        Raises:
            ValueError, TypeError: a wrong shape or dtype.
            BackendError: it does not run here.
        """
        name, sizes = "HalfLinear", dict[str, int]()
        wide = (torch.float32, torch.float64)
        check_tensor(name, "weight", weight, ("N", "K"), dtypes=wide, sizes=sizes)
        if bias is not None:
            check_tensor(name, "bias", bias, ("N",), dtypes=wide, sizes=sizes)
        problem = half_linear_problem()
        if problem is not None or weight.device.type != "cpu":
            raise BackendError(f"{name}(): {problem or f'needs tensors on the CPU, got {weight.device}'}")
        self.outputs, self.inputs = weight.shape
        padded = -(-self.outputs // _PANEL) * _PANEL
        weight = weight.detach()
        largest = weight.abs().amax(dim=1) if self.inputs else weight.new_zeros(self.outputs)
        exponent = torch.frexp(largest)[1] - 1  # 2^exponent <= largest < 2^(exponent + 1)
        exponent = torch.where(largest > 0, exponent.clamp(-100, 127), _SCALED_EXPONENT)
        values = torch.zeros(padded, self.inputs, dtype=torch.float16)
        values[: self.outputs] = torch.ldexp(weight, (_SCALED_EXPONENT - exponent)[:, None])
        self._values = values.view(-1, _PANEL, self.inputs).transpose(1, 2).contiguous()
        self._scales = torch.ones(padded)
        self._scales[: self.outputs] = torch.ldexp(torch.ones(self.outputs), exponent - _SCALED_EXPONENT)
        self._bias = torch.zeros(padded)
        if bias is not None:
            self._bias[: self.outputs] = bias.detach()

    @property
    def nbytes(self) -> int:
        """Memory of the weights."""
        return sum(part.nbytes for part in (self._values, self._scales, self._bias))

    def __call__(self, x: Tensor, activation: Activation = "none") -> Tensor:
        """``activation(x @ weight.T + bias)``: ``(*batch, K)`` float32 to ``(*batch, N)`` float32, without gradient.
        ``gelu`` is the exact (erf) form. Raises ValueError or TypeError for other inputs."""
        check_tensor("HalfLinear", "x", x, ("*batch", self.inputs), dtypes=(torch.float32,))
        check_choice("HalfLinear", "activation", activation, _ACTIVATIONS)
        rows = (x.detach() if x.requires_grad else x).reshape(-1, self.inputs).contiguous()
        result = getattr(torch.ops, NATIVE_NAMESPACE).half_linear_fwd(
            rows, self._values, self._scales, self._bias, self.outputs, _ACTIVATIONS.index(activation)
        )
        return result.view(*x.shape[:-1], self.outputs)
