"""Perlin noise on the head translation: what the policy is shown while it explores (paper equation 16)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mgrpo.data import MotionWindows
from mgrpo.geometry import se3_inverse, se3_multiply
from mgrpo.kernels import perlin_noise
from mgrpo.kernels.perlin import MAX_OCTAVES
from mgrpo.options import option, require


@dataclass(frozen=True)
class PerlinConfig:
    """Smooth noise on the head translation that the policy sees. Rewards and evaluation always use the clean
    trajectory."""

    alpha: float = 0.1
    """Amplitude of the noise, metres; 0 switches it off."""
    lattice: float = 12.0
    """Frames between lattice points: the noise changes direction about this often."""
    octaves: int = 1
    """Octaves of noise, each twice as fast and half as strong as the one before."""
    per_member: bool = False
    """Draw the noise for every member of a group, instead of once per condition (shared by the group, the paper's
    reading)."""

    def __post_init__(self) -> None:
        require(self, "alpha", at_least=0, unit="metres")
        require(self, "lattice", at_least=1, unit="frame")
        require(self, "octaves", at_least=1, at_most=MAX_OCTAVES)

    def unused_options(self) -> Mapping[str, str]:
        """See :class:`mgrpo.options.HasUnusedOptions`."""
        reason = f"with {option(self, 'alpha')} 0, which adds no noise"
        return {} if self.alpha else dict.fromkeys(("lattice", "octaves", "per_member"), reason)


def perturbed_head(
    windows: MotionWindows, config: PerlinConfig, *, seed: int, iteration: int, condition: Tensor, members: range
) -> tuple[Tensor, Tensor]:
    """The trajectory that the policy sees: ``T_world_cpf`` and ``T_cpf_tm1_cpf_t``, both ``(B, M, T, 7)``.

    M is 1 when the group shares the noise, and the number of ``members`` (their numbers in the group) when each has its
    own. The noise moves the T + 1 head positions that a window's relative poses are made of; rotations stay untouched.
    ``condition (B,)`` are the ids that key the noise, so that a condition sees the same noise whatever else is in the
    batch.
    """
    relative = windows.T_cpf_tm1_cpf_t
    before = se3_multiply(windows.T_world_cpf[:, :1], se3_inverse(relative[:, :1]))
    poses = torch.cat((before, windows.T_world_cpf), dim=1)[:, None]
    if config.alpha == 0:
        return windows.T_world_cpf[:, None], relative[:, None]
    drawn = members if config.per_member else range(1)
    count = len(drawn)
    conditions = len(windows)
    noise = perlin_noise(
        poses.shape[2],
        alpha=config.alpha,
        lattice=config.lattice,
        octaves=config.octaves,
        seed=seed,
        iteration=iteration,
        condition=condition.repeat_interleave(count),
        member=torch.arange(drawn.start, drawn.stop, device=condition.device).repeat(conditions),
    ).view(conditions, count, -1, 3)
    moved = torch.cat((poses[..., :4].expand(-1, count, -1, -1), poses[..., 4:] + noise.to(poses)), dim=-1)
    return moved[:, :, 1:], se3_multiply(se3_inverse(moved[:, :, :-1]), moved[:, :, 1:])
