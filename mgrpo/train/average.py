"""An exponential moving average of a network's weights, kept beside them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mgrpo.runs.checkpoints import AVERAGE_PREFIX, Checkpoint, load_tensors_into


class WeightAverage:
    """``average <- decay * average + (1 - decay) * weights`` after every optimiser step, from the initial weights on.

    Buffers that aren't parameters are those of the network at the start.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        """The network with averaged weights."""
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the present weights of ``network``."""
        self._average(list(self.network.parameters()), list(network.parameters()), None)

    def tensors(self) -> dict[str, Tensor]:
        """The averaged weights under the names that a checkpoint has them by: ``ema.`` and the network's name."""
        return {f"{AVERAGE_PREFIX}{name}": value for name, value in self.network.state_dict().items()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put back what a checkpoint holds of it. Raises InputError when that is nothing, or of another network."""
        load_tensors_into(self.network, checkpoint.averaged(), where=f"checkpoint {checkpoint.path}, averaged weights")
