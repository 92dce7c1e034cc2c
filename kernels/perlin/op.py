"""The registered operator ``mgrpo::perlin_noise``; it has no tensor that could carry a gradient.

The reference goes through the operator as well: a compiler that fused its multiplications and additions would round
differently, and the bits are the contract.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._library import Kernel, cuda, define_op, native, native_cpu, native_cuda
from .._vmap import rows
from . import reference


def _fake(
    condition: Tensor,
    member: Tensor,
    frames: int,
    channels: int,
    scale: float,
    lattice: float,
    octaves: int,
    seed: int,
    iteration: int,
    backend: str,
) -> Tensor:
    return condition.new_empty((condition.shape[0], frames, channels), dtype=torch.float32)


define_op(
    "perlin_noise",
    implementations={
        "cpp": native_cpu(["perlin_noise_fwd"], (torch.int64,)),
        "cuda": native_cuda(["perlin_noise_fwd"], (torch.int64,)),
    },
    forward=Kernel(
        "(Tensor condition, Tensor member, SymInt frames, int channels, float scale, float lattice, int octaves,"
        " SymInt seed, SymInt iteration, str backend) -> Tensor",
        fake=_fake,
        backends={
            "reference": reference.perlin_noise,
            "cpp": native("perlin_noise_fwd"),
            "cuda": cuda("perlin_noise_fwd"),
        },
        vmap=rows("condition", "member"),
    ),
)
