"""Made-up clips and a tiny network for tests of the loops: files that a loop can read in milliseconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from mgrpo import geometry
from mgrpo.data import MotionClip, MotionWindows, WindowSampler, save_clip
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.perceptual import PerceptualConfig, PerceptualModel
from mgrpo.runs.run_dir import RunDir

TINY_DENOISER = DenoiserConfig(
    d_latent=16, d_feedforward=32, d_noise_emb=8, num_heads=2, encoder_layers=1, decoder_layers=1, include_hands=False
)
TINY_PERCEPTUAL = PerceptualConfig(d_latent=16, blocks=1, heads=2, mlp_ratio=1.0)


def write_clips(folder: Path, count: int = 5, frames: int = 40) -> Path:
    """Clips ``made_up_0`` … that wander smoothly; returns the folder."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    upright = torch.tensor([0.5, 0.5, 0.5, 0.5])
    for index in range(count):
        angles = 0.2 * torch.randn(22, 3, generator=generator) + 0.03 * torch.randn(
            frames, 22, 3, generator=generator
        ).cumsum(0)
        position = 0.02 * torch.randn(frames, 3, generator=generator).cumsum(0)
        position[:, 2] = 0.95
        quats = geometry.axis_angle_to_quat(angles)
        clip = MotionClip(
            name=f"made_up_{index}",
            fps=30.0,
            T_world_root=geometry.se3(geometry.quat_multiply(quats[:, 0], upright), position),
            body_quats=quats[:, 1:],
            betas=torch.zeros(16),
            contacts=torch.zeros(frames, 21),
        )
        save_clip(folder / f"{clip.name}.npz", clip)
    return folder


def write_prior(folder: Path) -> Path:
    """The run folder of an untrained prior."""
    with RunDir.create(folder, TINY_DENOISER) as run:
        run.save(1, model=Denoiser(TINY_DENOISER, seed=1), model_config=TINY_DENOISER)
    return folder


def write_perceptual(folder: Path) -> Path:
    """The run folder of an untrained perceptual model."""
    torch.manual_seed(0)
    with RunDir.create(folder, TINY_PERCEPTUAL) as run:
        run.save(1, model=PerceptualModel(TINY_PERCEPTUAL), model_config=TINY_PERCEPTUAL)
    return folder


def mask_batches() -> None:
    """From now on, training windows are padded as their position in the batch says: a third of them is whole."""
    original = WindowSampler.batch

    def masked(
        sampler: WindowSampler, iteration: int, size: int, *, first: int = 0, whole: int | None = None
    ) -> MotionWindows:
        windows = original(sampler, iteration, size, first=first, whole=whole)
        frames = torch.arange(windows.length)
        real = torch.tensor([windows.length, 3, 5])[torch.arange(first, first + size) % 3]
        return replace(windows, mask=frames < real[:, None], padded=True)

    WindowSampler.batch = masked  # type: ignore[method-assign]
