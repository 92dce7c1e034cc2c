"""`mgrpo bench inference`: seconds and memory of a sampled sequence on this machine (the paper's Table 6), against a
plain loop over the same network in the same run (:mod:`mgrpo.infer.plain`).

Every row has a process of its own, so that its memory is its own, and these take turns, so that what else the machine
does meanwhile slows them alike.
"""

from __future__ import annotations

import csv
import io
import multiprocessing
import statistics
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch

from mgrpo.body import resolve_body
from mgrpo.diffusion.sampler import NoiseKeys
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.diffusion.stitched_sampler import FRAMES_AHEAD, sample_stitched
from mgrpo.diffusion.stitching import Stitching
from mgrpo.diffusion.transition import make_transitions
from mgrpo.errors import InputError
from mgrpo.execution.device import resolve_device
from mgrpo.execution.memory import peak_memory, restart_peak_memory
from mgrpo.guidance import GuidanceConfig, SamplingGuidance
from mgrpo.infer.plain import made_up_path, plain_sample
from mgrpo.models.conditioning import relative_cpf
from mgrpo.models.denoiser import DENOISER_PRESETS, Denoiser
from mgrpo.models.inference import InferenceDenoiser, InferencePrecision, choose_precision
from mgrpo.options import option, require
from mgrpo.runs.provenance import provenance
from mgrpo.storage import atomic_write, atomic_write_json
from mgrpo.terminal.progress import Progress, notice

Row = Literal["plain", "mgrpo", "mgrpo bf16", "mgrpo fp16", "mgrpo auto", "mgrpo guided"]
ROWS: tuple[Row, ...] = ("plain", "mgrpo", "mgrpo auto", "mgrpo guided")
_PRECISIONS: dict[Row, InferencePrecision] = {
    "plain": "fp32",
    "mgrpo": "fp32",
    "mgrpo bf16": "bf16",
    "mgrpo fp16": "fp16",
    "mgrpo auto": "auto",
    "mgrpo guided": "auto",
}
_FORMATS = (".json", ".csv", ".md")


@dataclass(frozen=True)
class BenchInferenceConfig:
    """Measure sampling: seconds and memory of one sequence, for each batch size and row.

    Rows: plain (a straightforward loop over the same network, float32), mgrpo (float32), mgrpo bf16, mgrpo fp16, mgrpo
    auto (the fastest precision of this machine, which is said), and mgrpo guided (the same, with feet and smoothness
    corrected after sampling). Weights and head paths are made up: time doesn't depend on them.
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
    """Measurements of each, after one that warms up, the rows in turn; the median counts."""
    threads: int = 0
    """Threads of the CPU; 0: torch's choice."""
    out: Path | None = None
    """File for the figures: .json (with where they come from), .csv or .md."""
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
        if self.out is not None and self.out.suffix.lower() not in _FORMATS:
            raise InputError(f"--out {self.out}: expected a file that ends in {', '.join(_FORMATS)}")


@dataclass(frozen=True)
class Figure:
    """One measured row."""

    row: str
    precision: str
    """What the network computed in."""
    batch: int
    seconds: float
    """For one sequence: the median of the repeats over the batch."""
    spread: float
    """Longest over shortest repeat."""
    loaded_mb: float
    """Memory before sampling: the network, its copy in another precision, and on a CPU the libraries."""
    peak_mb: float
    """Largest memory while sampling: resident in the process on a CPU, allocated on a GPU."""


def run_bench_inference(config: BenchInferenceConfig) -> int:
    """Measure and print. Returns 0. Raises InputError."""
    device = resolve_device(config.device)
    for row in config.rows:
        chosen, why = choose_precision(_PRECISIONS[row], device)
        if row == "mgrpo auto":
            notice(f"mgrpo auto: {chosen}, {why}")
    figures: list[Figure] = []
    with Progress("bench", len(config.batch) * len(config.rows) * (config.repeats + 1), "calls") as progress:
        for batch in config.batch:
            figures += _measure_in_turn(config, batch, progress)
    for line in table(figures):
        print(line)
    if config.out is not None:
        _write(config.out, figures)
        print(config.out)
    return 0


def table(figures: list[Figure]) -> list[str]:
    """The figures as lines; speed-ups are against the plain loop of the same batch."""
    return [
        f"{batch:>5}  {row:<14}{precision:<11}{seconds:>14}{ratio:>10}{spread:>8}{loaded:>11}{peak:>9}"
        for batch, row, precision, seconds, ratio, spread, loaded, peak in [_TITLES, *map(_cells(figures), figures)]
    ]


def markdown(figures: list[Figure]) -> str:
    """The same as a table for a page."""
    rows = [_TITLES, ("--:", "---", "---", "--:", "--:", "--:", "--:", "--:"), *map(_cells(figures), figures)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


_TITLES = ("batch", "row", "precision", "s per sequence", "speed-up", "spread", "loaded MB", "peak MB")


def _cells(figures: list[Figure]) -> Any:
    plain = {one.batch: one.seconds for one in figures if one.row == "plain"}

    def cells(one: Figure) -> tuple[str, ...]:
        ratio = f"{plain[one.batch] / one.seconds:.2f}x" if one.batch in plain else ""
        numbers = (f"{one.seconds:.4g}", ratio, f"{one.spread:.2f}", f"{one.loaded_mb:.0f}", f"{one.peak_mb:.0f}")
        return (str(one.batch), one.row, one.precision, *numbers)

    return cells


def _write(path: Path, figures: list[Figure]) -> None:
    suffix = path.suffix.lower()
    if suffix == ".md":
        atomic_write(path, markdown(figures))
    elif suffix == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in fields(Figure)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(one) for one in figures)
        atomic_write(path, text.getvalue())
    else:
        record = {
            "figures": [asdict(one) for one in figures],
            "provenance": provenance(None, resumed_from_step=None)[0],
        }
        atomic_write_json(path, record)


def _measure_in_turn(config: BenchInferenceConfig, batch: int, progress: Progress) -> list[Figure]:
    """All rows of a batch size, each in a process of its own; one computes at a time."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pools = [stack.enter_context(context.Pool(1, _prepare, (config, row, batch))) for row in config.rows]
        for repeat in range(config.repeats + 1):
            for row, pool in zip(config.rows, pools, strict=True):
                pool.apply(_repeat, (repeat,))
                progress.update(row=row, batch=batch)
        return [pool.apply(_finish) for pool in pools]


_running: list[Measurement] = []
"""That of this process, if it was made for one."""


def _prepare(config: BenchInferenceConfig, row: Row, batch: int) -> None:
    _running.append(Measurement(config, row, batch))


def _repeat(number: int) -> None:
    _running[0].repeat(number)


def _finish() -> Figure:
    return _running[0].figure()


class Measurement:
    """One row: prepared once, called again and again."""

    def __init__(self, config: BenchInferenceConfig, row: Row, batch: int) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config, self.row, self.batch = config, row, batch
        self.device = resolve_device(config.device)
        self._denoiser = Denoiser(DENOISER_PRESETS[config.preset], seed=0).eval().to(self.device)
        self._prepared = InferenceDenoiser(self._denoiser, _PRECISIONS[row])
        self._poses = made_up_path(batch, config.frames).to(self.device)
        schedule = CosineSchedule.make(self._denoiser.config.max_t)
        self._steps = make_transitions("egoallo", eta=0.8, steps=config.steps, schedule=schedule)
        self._guidance = None
        if row == "mgrpo guided":
            body = resolve_body("default", with_mesh=False).to(self.device)
            self._guidance = SamplingGuidance(GuidanceConfig(), self._denoiser.layout, body, self._poses[:, 1:])
        self._seconds: list[float] = []
        self._loaded = restart_peak_memory(self.device)

    @torch.no_grad()
    def _call(self, seed: int) -> Any:
        if self.row == "plain":
            return plain_sample(self._denoiser, self._poses, self._steps, self.config.samples, seed)
        conditions = torch.arange(self.batch, dtype=torch.int64, device=self.device)
        result = sample_stitched(
            self._prepared,
            self._poses[:, 1:],
            relative_cpf(self._poses),
            self._steps,
            NoiseKeys(seed, 0, conditions, self.config.samples, share_initial=False),
            stitching=Stitching("proper", self.config.frames, max(1, self.config.frames // 4)),
            conditioning=self._prepared.config,
            layout=self._prepared.layout,
            frames_ahead=FRAMES_AHEAD,
        ).x0
        return result if self._guidance is None else self._guidance.finish(result)

    def repeat(self, number: int) -> None:
        """Sample once; call number 0 warms up and isn't counted."""
        self._wait()
        began = time.perf_counter()
        self._call(number)
        self._wait()
        if number:
            self._seconds.append((time.perf_counter() - began) / self.batch)

    def figure(self) -> Figure:
        """What was measured so far."""
        return Figure(
            self.row,
            self._prepared.precision,
            self.batch,
            statistics.median(self._seconds),
            max(self._seconds) / min(self._seconds),
            self._loaded / 1e6,
            peak_memory(self.device) / 1e6,
        )

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
