"""`mgrpo bench inference`: seconds and memory of a sampled sequence on this machine (the paper's Table 6), against a
plain loop over the same network in the same run.

Plain means: every sequence passes the whole network in every step, rotations are projected by ``torch.linalg.svd``, the
step is a line of tensor arithmetic, noise comes from ``torch.randn``. Network, windows, steps and numbers are the same.
Every row is measured in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mgrpo.body import resolve_body
from mgrpo.diffusion.sampler import NoiseKeys
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.diffusion.stitched_sampler import sample_stitched
from mgrpo.diffusion.stitching import Stitching
from mgrpo.diffusion.transition import Transitions, make_transitions
from mgrpo.errors import InputError
from mgrpo.geometry import quat_multiply, quat_normalize, yaw_rotation
from mgrpo.guidance import GuidanceConfig, SamplingGuidance
from mgrpo.infer.sampling import InBfloat16
from mgrpo.models.conditioning import make_cond, relative_cpf
from mgrpo.models.denoiser import DENOISER_PRESETS, Denoiser
from mgrpo.options import option, require
from mgrpo.storage import atomic_write_json
from mgrpo.train.device import resolve_device
from mgrpo.train.memory import peak_memory
from mgrpo.train.progress import Progress
from mgrpo.train.provenance import provenance

Row = Literal["plain", "mgrpo", "mgrpo bf16", "mgrpo guided"]
ROWS: tuple[Row, ...] = ("plain", "mgrpo", "mgrpo bf16", "mgrpo guided")


@dataclass(frozen=True)
class BenchInferenceConfig:
    """Measure sampling: seconds and memory of one sequence, for each batch size and row.

    Rows: plain (a straightforward loop over the same network), mgrpo, mgrpo bf16, and mgrpo guided (with feet and
    smoothness corrected after sampling). Weights and head paths are made up: time doesn't depend on them.
    """

    preset: str = "egoallo"
    """Network size: egoallo (the published one) or tiny."""
    frames: int = 128
    """Frames of a sequence."""
    batch: tuple[int, ...] = (1, 64)
    """Sequences sampled together."""
    samples: int = 1
    """Motions drawn for each sequence."""
    steps: int = 30
    """Denoising steps."""
    rows: tuple[Row, ...] = ROWS
    """What is measured."""
    repeats: int = 3
    """Measurements of each, after one that warms up; the median counts."""
    threads: int = 0
    """Threads of the CPU; 0: torch's choice."""
    out: Path | None = None
    """JSON file for the figures."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1 ..."""

    def __post_init__(self) -> None:
        if self.preset not in DENOISER_PRESETS:
            raise InputError(
                f"{option(self, 'preset')} must be one of {', '.join(DENOISER_PRESETS)}, got {self.preset!r}"
            )
        require(self, "frames", at_least=2, at_most=128, unit="frames")
        require(self, "samples", "steps", "repeats", at_least=1, at_most=1000)
        require(self, "threads", at_least=0, at_most=1024)
        if not self.batch or min(self.batch) < 1 or not self.rows:
            raise InputError("--batch and --rows must name at least one, and batches are at least 1")


@dataclass(frozen=True)
class Figure:
    """One measured row."""

    row: str
    batch: int
    seconds: float
    """For one sequence: the median of the repeats over the batch."""
    spread: float
    """Longest over shortest repeat."""
    peak_mb: float
    """Peak memory: of the process on the CPU, allocated on a GPU; the network included."""


def run_bench_inference(config: BenchInferenceConfig) -> int:
    """Measure and print. Returns 0. Raises InputError."""
    resolve_device(config.device)
    figures: list[Figure] = []
    with Progress("bench", len(config.batch) * len(config.rows), "rows") as progress:
        for batch in config.batch:
            for row in config.rows:
                figures.append(_measure_apart(config, row, batch))
                progress.update(row=row, batch=batch)
    for line in table(figures):
        print(line)
    if config.out is not None:
        record = {
            "figures": [asdict(one) for one in figures],
            "provenance": provenance(None, resumed_from_step=None)[0],
        }
        atomic_write_json(config.out, record)
        print(config.out)
    return 0


def table(figures: list[Figure]) -> list[str]:
    """The figures as lines; speed-ups are against the plain loop of the same batch."""
    lines = [f"{'batch':>5}  {'row':<14}{'s per sequence':>15}{'speed-up':>10}{'spread':>8}{'peak MB':>10}"]
    for one in figures:
        plain = next((other.seconds for other in figures if other.batch == one.batch and other.row == "plain"), None)
        ratio = "" if plain is None else f"{plain / one.seconds:.2f}x"
        lines.append(
            f"{one.batch:>5}  {one.row:<14}{one.seconds:>15.4g}{ratio:>10}{one.spread:>8.2f}{one.peak_mb:>10.0f}"
        )
    return lines


def _measure_apart(config: BenchInferenceConfig, row: Row, batch: int) -> Figure:
    """A row in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(measure, (config, row, batch))


@torch.no_grad()
def measure(config: BenchInferenceConfig, row: Row, batch: int) -> Figure:
    """Measure one row here."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = resolve_device(config.device)
    denoiser = Denoiser(DENOISER_PRESETS[config.preset], seed=0).eval().to(device)
    body = resolve_body("default", with_mesh=False).to(device)
    poses = made_up_path(batch, config.frames).to(device)
    steps = make_transitions(
        "egoallo", eta=0.8, steps=config.steps, schedule=CosineSchedule.make(denoiser.config.max_t)
    )
    guidance = SamplingGuidance(GuidanceConfig(), denoiser.layout, body, poses[:, 1:])

    def call(seed: int) -> Any:
        if row == "plain":
            return plain_sample(denoiser, poses, steps, config.samples, seed)
        keys = NoiseKeys(
            seed, 0, torch.arange(batch, dtype=torch.int64, device=device), config.samples, share_initial=False
        )
        result = sample_stitched(
            denoiser if row != "mgrpo bf16" else InBfloat16(denoiser),
            poses[:, 1:],
            relative_cpf(poses),
            steps,
            keys,
            stitching=Stitching("proper", config.frames, max(1, config.frames // 4)),
            conditioning=denoiser.config,
            layout=denoiser.layout,
        ).x0
        return guidance.finish(result) if row == "mgrpo guided" else result

    seconds = []
    for repeat in range(config.repeats + 1):
        _wait(device)
        began = time.perf_counter()
        call(repeat)
        _wait(device)
        seconds.append((time.perf_counter() - began) / batch)
    seconds = seconds[1:]
    return Figure(row, batch, statistics.median(seconds), max(seconds) / min(seconds), peak_memory(device) / 1e6)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def made_up_path(batch: int, frames: int) -> Tensor:
    """Head poses ``(B, T + 1, 7)`` of people who walk and look about, floor at z = 0."""
    t = torch.arange(frames + 1) / 30 + torch.arange(batch)[:, None]
    place = torch.stack((0.2 * torch.sin(t), t, 1.6 + 0.03 * torch.sin(6 * t)), dim=-1)
    level = torch.tensor([0.5, 0.5, 0.5, 0.5])  # z forward along x, y up
    turned = yaw_rotation(0.5 * torch.sin(t))
    return torch.cat((quat_normalize(quat_multiply(turned, level.expand_as(turned))), place), dim=-1)


@torch.no_grad()
def plain_sample(denoiser: Denoiser, poses: Tensor, steps: Transitions, samples: int, seed: int) -> Tensor:
    """What one would write first: clean states ``(B, S, T, D)``."""
    batch, frames = poses.shape[0], poses.shape[1] - 1
    cond = make_cond(denoiser.config, poses[:, 1:], relative_cpf(poses)).repeat_interleave(samples, dim=0)
    generator = torch.Generator(device=poses.device).manual_seed(seed)
    shape = (batch * samples, frames, denoiser.layout.dim)
    x = torch.randn(shape, generator=generator, device=poses.device)
    where = denoiser.layout.slices["body_rotmats"]
    for level, A, B, s in steps.scalars:
        t = torch.full((len(x),), level, dtype=torch.int64, device=x.device)
        x0 = denoiser.decode(x[:, None], t, denoiser.encode(cond, t))[:, 0].float()
        matrices = x0[..., where].reshape(*x0.shape[:-1], -1, 3, 3)
        U, _, Vh = torch.linalg.svd(matrices)
        x0 = torch.cat((x0[..., : where.start], (U @ Vh).flatten(-3), x0[..., where.stop :]), dim=-1)
        x = A * x + B * x0 + s * torch.randn(shape, generator=generator, device=x.device)
    return x.view(batch, samples, *shape[1:])
