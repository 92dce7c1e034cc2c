"""`mgrpo live`: bodies from head poses that come in line by line, with a stated delay."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Literal

import numpy as np
import torch
import tyro

from mgrpo.body import resolve_body
from mgrpo.data.rate import TARGET_FPS
from mgrpo.diffusion.config import SamplerConfig, StitchingConfig
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.errors import InputError
from mgrpo.execution.device import resolve_device
from mgrpo.execution.seeding import require_seed
from mgrpo.geometry import rotmat_to_quat
from mgrpo.guidance import GuidanceConfig
from mgrpo.infer.cleaning import nanoseconds
from mgrpo.infer.devices import UNITS, DeviceFrame, device_cpf_option, device_frame
from mgrpo.infer.live import LiveFrames, LiveInference, require_live
from mgrpo.infer.sampling import SamplingSettings
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.inference import InferencePrecision, choose_precision
from mgrpo.options import MOST_MEMBERS, require
from mgrpo.runs.stored_models import load_model
from mgrpo.runs.trained_length import trained_length
from mgrpo.terminal.progress import Progress, notice

LONGEST_LINE = 4096
"""Most bytes of a line."""


@dataclass(frozen=True)
class LiveConfig:
    """Recover full-body motion while the head moves: poses in on standard input, bodies out on standard output.

    A line in is `t, qw, qx, qy, qz, x, y, z` (commas or blanks). A line out is JSON: frame, time_ns, T_world_cpf, and
    of each sample T_world_root, body_quats, contacts and joints (22, metres); z up, floor at 0, 30 per second. How late
    they come is told at the start: --lookahead to --lookahead + --hop - 1 frames, and the time of computing a window,
    guidance included.
    """

    model: Path
    """Prior or post-trained model, as for `mgrpo infer`."""
    axes: str
    """Axes of the head poses: cpf, aria, openxr, webxr, quest, steamvr, hololens, arkit, or unity."""
    device_cpf: str = ""
    """From the device to the eyes: x,y,z in metres along its axes, or a JSON file with a pose; empty: the nominal
    one."""
    unit: Literal["m", "cm", "mm", "ft", "in"] = "m"
    """Unit of positions."""
    time_unit: Literal["s", "ms", "us", "ns"] = "s"
    """Unit of times."""
    quaternion: Literal["wxyz", "xyzw"] = "wxyz"
    """Order of quaternions."""
    floor: float = 0.0
    """Height of the floor in the poses' world (z up), metres."""
    hop: int = 8
    """New frames for which the last window is sampled: fewer come sooner and cost more."""
    lookahead: int = 4
    """Frames that must be known after one that is handed out: more are smoother and come later."""
    max_gap: float = 0.2
    """Longest time between two poses that is interpolated, seconds; after a longer one, motion begins anew."""
    body: str = "default"
    """Body model, as for `mgrpo infer`."""
    use_ema: bool = False
    """Take the averaged weights of a prior trained with --ema."""
    samples: int = 1
    """Motions to draw."""
    seed: int = 0
    """Seed of the noise."""
    precision: InferencePrecision = "fp32"
    """What the network computes in, as for `mgrpo infer`."""
    sampler: Annotated[SamplerConfig, tyro.conf.arg(name="")] = field(default_factory=SamplerConfig)
    stitching: Annotated[StitchingConfig, tyro.conf.arg(name="")] = field(default_factory=StitchingConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1 ..."""

    def __post_init__(self) -> None:
        device_frame(self.axes)
        require(self, "floor", at_least=-1000, at_most=1000, unit="metres")
        require(self, "max_gap", above=0, at_most=60, unit="seconds")
        require(self, "samples", at_least=1, at_most=MOST_MEMBERS)
        require(self, "hop", at_least=1)
        require(self, "lookahead", at_least=0)
        require_seed(self.seed)
        require_live(self.guidance)


def run_live(config: LiveConfig) -> int:
    """Read poses until standard input ends. Returns the exit code 0. Raises InputError for a line that is none."""
    device = resolve_device(config.device)
    frame = device_frame(config.axes)
    T_device_cpf = device_cpf_option(config.device_cpf, frame)
    with Progress("load model"):
        denoiser, _, checkpoint = load_model(config.model, Denoiser, DenoiserConfig, use_ema=config.use_ema)
        body = resolve_body(config.body, with_mesh=False)
    precision, why = choose_precision(config.precision, device)
    if config.precision == "auto":
        notice(f"--precision auto: {precision}, {why}")
    settings = SamplingSettings(
        config.sampler.transitions(CosineSchedule.make(denoiser.config.max_t)),
        config.stitching.stitching(trained_length(checkpoint.path)),
        samples=config.samples,
        seed=config.seed,
        project=config.sampler.project,
        precision=precision,
    )
    denoiser, body = denoiser.to(device), body.to(device)

    def make() -> LiveInference:
        return LiveInference(
            denoiser,
            body,
            settings,
            guidance=config.guidance,
            hop=config.hop,
            lookahead=config.lookahead,
            floor_m=config.floor,
            max_gap_s=config.max_gap,
        )

    live = make()
    needed = _time_of_a_window(make(), settings.stitching.window)
    shortest, longest = live.latency_s
    hop_s = config.hop / TARGET_FPS
    notice(
        f"delay: {shortest:.2f} to {longest:.2f} s, and {needed:.2f} s of computing; a window every {hop_s:.2f} s: "
        + ("keeps up" if needed < hop_s else "does not keep up here, take a larger --hop or fewer --steps")
    )
    frames, seconds, most = 0, 0.0, 0.0
    for part in _final_frames(live, config, frame, T_device_cpf):
        _write(part)
        frames, seconds, most = frames + len(part.frame_nums), seconds + part.seconds, max(most, part.seconds)
    notice(
        f"{frames} frames ({frames / TARGET_FPS:.1f} s) in {seconds:.1f} s of computing; the longest window took "
        f"{most:.2f} s, one is due every {hop_s:.2f} s"
        + (f"; {live.late} poses passed over, which came late" if live.late else "")
        + (f"; {live.gaps} gaps" if live.gaps else "")
    )
    return 0


def _final_frames(
    live: LiveInference, config: LiveConfig, frame: DeviceFrame, T_device_cpf: np.ndarray | None
) -> Iterator[LiveFrames]:
    """Frames as they become final, until standard input ends."""
    late = gaps = 0
    for number, time_ns, quat, place in _poses(sys.stdin.buffer, config):
        pose = frame.to_world(quat[None], place[None], UNITS[config.unit], T_device_cpf)[0]
        try:
            yield from live.push(time_ns, pose)
        except InputError as error:
            raise InputError(f"line {number}: {error}") from error
        if live.late == 1 and not late:
            notice(
                f"WARNING: line {number}: its time is before that of an earlier line; it is passed over, and so are "
                "all that are not later than the latest one. If a clock was set, begin anew"
            )
        if live.gaps == 1 and not gaps:
            notice(
                f"WARNING: line {number}: more than {config.max_gap:g} s (--max-gap) after the pose before; motion "
                "begins anew. If poses are nearer in truth, their times have another unit: give --time-unit"
            )
        late, gaps = live.late, live.gaps
    yield from live.flush()


def _time_of_a_window(live: LiveInference, window: int) -> float:
    """Seconds that a full window takes here: the second of two, because the first one warms up."""
    seconds = 0.0
    pose = np.array([0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 1.6])
    for frame in range(window + 2 * live.hop + live.lookahead + 1):
        for part in live.push(round(frame * 1e9 / TARGET_FPS), pose):
            seconds = part.seconds
    return seconds


def _poses(stream: IO[bytes], config: LiveConfig) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """Number, time in nanoseconds, quaternion wxyz and position of each line that is not empty, nor a header."""
    number, first = 0, True
    header = ["t", *(f"q{axis}" for axis in config.quaternion), *"xyz"]
    while raw := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(raw) > LONGEST_LINE:
            raise InputError(f"line {number}: longer than {LONGEST_LINE} bytes; expected t, qw, qx, qy, qz, x, y, z")
        cells = raw.decode("utf-8", "replace").replace(",", " ").split()
        if not cells or (first and [cell.lower() for cell in cells] == header):
            continue
        first = False
        try:
            if len(cells) != 8:
                raise ValueError(f"{len(cells)} values")
            numbers = np.array([float(cell) for cell in cells[1:]])
            whole = int(cells[0]) if cells[0].lstrip("-").isdigit() else None
            stamp = np.array([float(cells[0]) if whole is None or abs(whole) > 1 << 62 else whole])
        except ValueError as error:
            raise InputError(f"line {number}: {error}; expected t, qw, qx, qy, qz, x, y, z") from error
        if not np.isfinite(numbers).all():
            raise InputError(f"line {number}: not finite; leave out what was not tracked")
        if abs(np.linalg.norm(numbers[:4]) - 1) > 1e-2:
            raise InputError(f"line {number}: the quaternion has length {np.linalg.norm(numbers[:4]):.4f}, not 1")
        quat = numbers[:4] if config.quaternion == "wxyz" else numbers[[3, 0, 1, 2]]
        yield number, int(nanoseconds(stamp, config.time_unit, f"line {number}")[0]), quat, numbers[4:]


def _write(part: LiveFrames) -> None:
    """One line for each frame, at once."""
    motion = part.motion
    quats = rotmat_to_quat(motion.body_rotmats[0])

    def plain(values: torch.Tensor | np.ndarray) -> list:
        array = values if isinstance(values, np.ndarray) else values.detach().cpu().double().numpy()
        return np.round(array, 6).tolist()

    for index, number in enumerate(part.frame_nums.tolist()):
        samples = [
            {
                "T_world_root": plain(motion.T_world_root[0, sample, index]),
                "body_quats": plain(quats[sample, index]),
                "contacts": plain(motion.contacts[0, sample, index]),
                "joints": plain(motion.joints22[0, sample, index]),
            }
            for sample in range(quats.shape[0])
        ]
        record = {
            "frame": number,
            "time_ns": int(part.times_ns[index]),
            "T_world_cpf": plain(part.T_world_cpf[index]),
            "samples": samples,
        }
        sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()
