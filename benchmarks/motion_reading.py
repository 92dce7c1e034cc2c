"""Whether reading motion from HDF5 keeps up with training: windows per second of the sampler, alone and beside the
network, with a cache smaller than the data.

    python -m benchmarks.motion_reading [--clips 200] [--frames 400] [--presets tiny egoallo]

A made-up file is written to a temporary folder and removed. Nothing is written elsewhere.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.hdf5_files import made_up_sequence, write_sequences
from mgrpo.body import default_body
from mgrpo.data import Hdf5Sampler, MotionWindows, open_hdf5
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.models.denoiser import DENOISER_PRESETS, Denoiser
from mgrpo.train.prior import PriorConfig, batch_loss

BATCHES = {"tiny": (64, 32, 8), "egoallo": (2, 128, 2)}
"""Windows in a batch, their frames, and measured steps, by preset. The larger network's batch is small because a step
of its 256 windows takes minutes on a CPU; both times grow with the batch alike."""

MEASURED = 8
"""Batches that are timed."""


def median_seconds(work: list[float]) -> float:
    """Median of the times, the first left out."""
    return statistics.median(work[1:])


def training_seconds(preset: str, windows: list[MotionWindows] | Hdf5Sampler, size: int, steps: int) -> list[float]:
    """Seconds of each training step of the prior, reading included where ``windows`` is a sampler."""
    model_config = DENOISER_PRESETS[preset]
    denoiser, schedule = Denoiser(model_config, seed=0), CosineSchedule.make(model_config.max_t)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-4)
    config, taken = PriorConfig(), []
    for iteration in range(steps + 1):
        began = time.perf_counter()
        batch = windows[0] if isinstance(windows, list) else windows.batch(iteration, size)
        loss = batch_loss(denoiser, batch, schedule, config, seed=0, iteration=iteration)
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        optimizer.step()
        taken.append(time.perf_counter() - began)
    return taken


def peak_megabytes() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--cache-share", type=float, default=0.25, help="cache as a share of the data in memory")
    parser.add_argument("--presets", nargs="*", default=list(BATCHES), choices=list(BATCHES))
    options = parser.parse_args()
    torch.set_num_threads(2)
    body = default_body()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "motion.hdf5"
        write_sequences(
            path,
            {
                f"ACCAD/s{i % 20}/clip{i}_poses.npz": made_up_sequence(body, options.frames, i)
                for i in range(options.clips)
            },
        )
        in_memory = options.clips * options.frames * 246 * 4 / 2**20
        cache_mb = options.cache_share * in_memory
        print(
            f"{options.clips} sequences of {options.frames} frames: {path.stat().st_size / 2**20:.0f} MiB on disk, "
            f"{in_memory:.0f} MiB in memory, cache {cache_mb:.0f} MiB; {torch.get_num_threads()} threads"
        )
        began = time.perf_counter()
        opened = open_hdf5(path, cache_mb=cache_mb)
        found = time.perf_counter()
        opened.check()
        checked = time.perf_counter()
        print(
            f"opening: {1e6 * (found - began) / options.clips:.0f} us per sequence; checking all structure: "
            f"{1e6 * (checked - found) / options.clips:.0f} us per sequence"
        )
        for preset in options.presets:
            size, length, steps = BATCHES[preset]
            for name, megabytes in (("no cache", 0.0), ("small cache", cache_mb), ("all cached", 2 * in_memory)):
                motion = open_hdf5(path, cache_mb=megabytes)
                sampler = Hdf5Sampler(motion, body, length, 0, prefetch=False)
                warm = 3 * options.clips // size + 1 if megabytes > in_memory else 4
                for iteration in range(warm):
                    sampler.make(iteration, size)
                before, taken, processor = motion.cache_counts, [], time.process_time()
                for iteration in range(warm, warm + MEASURED):
                    start = time.perf_counter()
                    sampler.make(iteration, size)
                    taken.append(time.perf_counter() - start)
                processor = (time.process_time() - processor) / MEASURED
                counts, seconds = motion.cache_counts, statistics.median(taken)
                hits, misses = counts.hits - before.hits, counts.misses - before.misses
                print(
                    f"{preset:8} {name:12} batch of {size} x {length} frames: {1e3 * seconds:7.1f} ms "
                    f"({1e3 * processor:.1f} ms of processor time), {size / seconds:6.0f} windows/s, "
                    f"hits {hits / max(hits + misses, 1):4.0%}, cache peak {counts.peak_bytes / 2**20:.0f} MiB",
                    flush=True,
                )
            fixed = [sampler.make(0, size)]
            alone = median_seconds(training_seconds(preset, fixed, size, steps))
            results = [f"step alone {1e3 * alone:.0f} ms"]
            for prefetch in (False, True):
                motion = open_hdf5(path, cache_mb=cache_mb)
                sampler = Hdf5Sampler(motion, body, length, 0, prefetch=prefetch)
                beside = median_seconds(training_seconds(preset, sampler, size, steps))
                sampler.close()
                results.append(f"{'prefetched' if prefetch else 'read in turn'} {1e3 * beside:.0f} ms")
            print(f"{preset:8} training: {', '.join(results)} ({size / alone:.0f} windows/s wanted)", flush=True)
        print(f"peak resident memory of the process: {peak_megabytes():.0f} MiB")


if __name__ == "__main__":
    main()
