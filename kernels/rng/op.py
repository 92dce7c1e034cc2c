"""The registered operators ``mgrpo::philox_normal`` and ``mgrpo::philox_uniform``; neither is differentiable.

The reference goes through the operator as well: a compiler that fused its multiplications and additions would round
differently, and the bits are the contract.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._library import Kernel, cuda, define_op, native, native_cpu, native_cuda
from .._triton import triton_backend, triton_call
from .._vmap import rows
from . import reference


def _fake(
    step_member: Tensor, condition: Tensor, count: int, seed: int, iteration: int, stream: int, backend: str
) -> Tensor:
    return condition.new_empty((condition.shape[0], count), dtype=torch.float32)


for _name, _reference in (
    ("philox_normal", reference.philox_normal),
    ("philox_uniform", reference.philox_uniform),
):
    define_op(
        _name,
        implementations={
            "cpp": native_cpu([f"{_name}_fwd"], (torch.int64,)),
            "triton": triton_backend((torch.int64,)),
            "cuda": native_cuda([f"{_name}_fwd"], (torch.int64,)),
        },
        forward=Kernel(
            "(Tensor step_member, Tensor condition, SymInt count, SymInt seed, SymInt iteration, int stream,"
            " str backend) -> Tensor",
            fake=_fake,
            backends={
                "reference": _reference,
                "cpp": native(f"{_name}_fwd"),
                "triton": triton_call(__package__, _name),
                "cuda": cuda(f"{_name}_fwd"),
            },
            vmap=rows("step_member", "condition"),
        ),
    )
