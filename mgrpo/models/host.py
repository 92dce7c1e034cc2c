"""When values of a tensor may be looked at."""

from __future__ import annotations

import torch
from torch import Tensor


def can_read(tensor: Tensor) -> bool:
    """Whether reading values costs no wait for a device. A graph being made has none to read."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
