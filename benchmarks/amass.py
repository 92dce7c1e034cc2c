"""`python -m benchmarks.amass`: time and memory of `mgrpo data amass` on made-up recordings, for several numbers of
processes and lengths.

Each run is a process of its own. Memory is the largest resident size of the first process and of the largest worker;
workers share nothing but the code.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.amass_files import write_recording, write_smplh

_MEASURED = """
import json, resource, sys, time
from mgrpo.cli import main

start = time.perf_counter()
code = main(sys.argv[1:])
wall = time.perf_counter() - start
own, workers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
cpu = sum(one.ru_utime + one.ru_stime for one in (own, workers))
print(json.dumps({"code": code, "wall_s": wall, "cpu_s": cpu, "first_mb": own.ru_maxrss / 1024,
                  "worker_mb": workers.ru_maxrss / 1024}))
"""


def measure(raw: Path, out: Path, body: Path, workers: int) -> dict[str, float]:
    """One run in a process of its own: seconds from the start of the work, seconds of all processors, megabytes."""
    words = ["data", "amass", str(raw), str(out), "--body", str(body), "--betas", "as-is", "--workers", str(workers)]
    done = subprocess.run([sys.executable, "-c", _MEASURED, *words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Make the recordings in a temporary folder, measure, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=100, help="recordings of each run")
    parser.add_argument("--frames", type=int, nargs="+", default=[1200, 4800], help="their lengths, source frames")
    parser.add_argument("--fps", type=float, default=120.0, help="their rate, Hz")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of processes")
    options = parser.parse_args()
    print("| recordings | source frames each | workers | s | processor s | s / 10 000 source frames |", end="")
    print(" first process MB | worker MB | HDF5 MB |\n|" + "---:|" * 9)
    for frames in options.frames:
        with tempfile.TemporaryDirectory() as folder:
            raw, body = Path(folder, "raw"), write_smplh(Path(folder, "model.npz"))
            for number in range(options.clips):
                path = raw / f"CMU/{number // 10:02}/{number:03}_poses.npz"
                write_recording(path, frames=frames, fps=options.fps, seed=number)
            for workers in options.workers:
                out = Path(folder, f"{workers}.hdf5")
                found = measure(raw, out, body, workers)
                rate = found["wall_s"] / (frames * options.clips) * 1e4
                print(
                    f"| {options.clips} | {frames} | {workers} | {found['wall_s']:.1f} | {found['cpu_s']:.1f} "
                    f"| {rate:.3f} | {found['first_mb']:.0f} | {found['worker_mb'] if workers > 1 else 0:.0f} "
                    f"| {out.stat().st_size / 1e6:.1f} |",
                    flush=True,
                )
    print(f"\n{time.strftime('%Y-%m-%d')}, Python {sys.version.split()[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
