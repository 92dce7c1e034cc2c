"""Sampling as one would write it first: what `mgrpo bench inference` and ``benchmarks.check`` compare with.

Every sequence passes the whole network in every step, the condition's encoder included; rotations are projected by
``torch.linalg.svd``; the step is a line of tensor arithmetic; noise comes from ``torch.randn``. The network is ours in
eager float32, without gradients, one attention where EgoAllo's code computes two: nothing is slower than it need be.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mgrpo.diffusion.transition import Transitions
from mgrpo.geometry import quat_multiply, quat_normalize, yaw_rotation
from mgrpo.models.conditioning import make_cond, relative_cpf
from mgrpo.models.denoiser import Denoiser


@torch.no_grad()
def plain_sample(
    denoiser: Denoiser, poses: Tensor, steps: Transitions, samples: int, seed: int, noise: Tensor | None = None
) -> Tensor:
    """Clean states ``(B, S, T, D)``.

    Args:
        denoiser: in evaluation mode.
        poses: head poses ``(B, T + 1, 7)``, the one before the first frame included, floor at z = 0.
        steps: the sampler's steps.
        samples: S.
        seed: of torch's generator.
        noise: recorded noise ``(steps + 1, B, S, T, D)`` to use instead: x_T, then a draw for each step.
    """
    batch, frames = poses.shape[0], poses.shape[1] - 1
    cond = make_cond(denoiser.config, poses[:, 1:], relative_cpf(poses)).repeat_interleave(samples, dim=0)
    generator = torch.Generator(device=poses.device).manual_seed(seed)
    shape = (batch * samples, frames, denoiser.layout.dim)

    def draw(number: int) -> Tensor:
        if noise is not None:
            return noise[number].reshape(shape)
        return torch.randn(shape, generator=generator, device=poses.device)

    x = draw(0)
    where = denoiser.layout.slices["body_rotmats"]
    for number, (level, A, B, s) in enumerate(steps.scalars, 1):
        t = torch.full((len(x),), level, dtype=torch.int64, device=x.device)
        x0 = denoiser.decode(x[:, None], t, denoiser.encode(cond, t))[:, 0]
        matrices = x0[..., where].reshape(*x0.shape[:-1], -1, 3, 3)
        U, _, Vh = torch.linalg.svd(matrices)
        x0 = torch.cat((x0[..., : where.start], (U @ Vh).flatten(-3), x0[..., where.stop :]), dim=-1)
        x = A * x + B * x0 + s * draw(number)
    return x.view(batch, samples, *shape[1:])


def made_up_path(batch: int, frames: int) -> Tensor:
    """Head poses ``(B, T + 1, 7)`` of people who walk and look about, floor at z = 0."""
    t = torch.arange(frames + 1) / 30 + torch.arange(batch)[:, None]
    place = torch.stack((0.2 * torch.sin(t), t, 1.6 + 0.03 * torch.sin(6 * t)), dim=-1)
    level = torch.tensor([0.5, 0.5, 0.5, 0.5])  # z forward along x, y up
    turned = yaw_rotation(0.5 * torch.sin(t))
    return torch.cat((quat_normalize(quat_multiply(turned, level.expand_as(turned))), place), dim=-1)
