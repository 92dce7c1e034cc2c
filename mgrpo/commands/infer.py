"""`mgrpo infer`: full-body motion from a recorded head trajectory, whatever device recorded it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from mgrpo.body import BodyModel, resolve_body
from mgrpo.config_record import to_plain, to_yaml
from mgrpo.diffusion.config import SamplerConfig, StitchingConfig
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.errors import InputError
from mgrpo.execution.device import resolve_device
from mgrpo.execution.seeding import require_seed
from mgrpo.export.smpl_parameters import has_smpl_shape
from mgrpo.guidance import GuidanceConfig
from mgrpo.infer.guiding import RecordingGuidance, hamer_wrists, hidden
from mgrpo.infer.output import amass_arrays, stretches_of
from mgrpo.infer.pipeline import Prepared, infer_to_file, prepare
from mgrpo.infer.sampling import CHUNK, SamplingSettings
from mgrpo.infer.source import SourceConfig, load_trajectory
from mgrpo.infer.store import fingerprint
from mgrpo.infer.wrist_check import wrist_errors, wrist_lines
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.inference import InferencePrecision, choose_precision
from mgrpo.npz import pack_npz
from mgrpo.options import MOST_MEMBERS, option, require
from mgrpo.runs.checkpoints import Checkpoint
from mgrpo.runs.provenance import provenance
from mgrpo.runs.stored_models import load_model
from mgrpo.runs.trained_length import trained_length
from mgrpo.storage import file_stem, folder_for_results, json_text
from mgrpo.terminal.progress import Progress, notice

from .destination import refuse_run_folder


@dataclass(frozen=True)
class InferConfig:
    """Recover full-body motion from the head poses that a headset or glasses recorded.

    INPUT is a Project Aria folder (MPS), an Aria Digital Twin sequence, a WebXR recording (json), or plain head poses
    (csv, npz, npy, json: a time, a quaternion and a position for each pose; name the device's axes by --axes). Poses
    are brought to 30 per second, the floor is found, and what looks wrong is said. Recordings of any length are sampled
    in windows that are blended. Writes an npz with EgoAllo's names, and beside it what it was made from and how
    (..._args.yaml); an interrupted call goes on where it stopped.
    """

    input: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    """The recording: a folder or a file."""
    model: Path
    """Prior or post-trained model: run folder (its best checkpoint), checkpoint folder, RUN/last, EgoAllo checkpoint,
    or folder written by save_pretrained."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """File to write (.npz), or a folder for it (then named after the recording)."""
    source: Annotated[SourceConfig, tyro.conf.arg(name="")] = field(default_factory=SourceConfig)
    use_ema: bool = False
    """Take the averaged weights of a prior trained with --ema, instead of its last ones."""
    body: str = "default"
    """Body model: `default` (ships with the package), `smplh` (searched for), or the path of an SMPL-H npz. Take the
    one that the model was trained with."""
    samples: int = 1
    """Motions to draw."""
    start: float = 0.0
    """First moment to take, seconds from the recording's first pose."""
    end: float = float("inf")
    """Last moment to take, seconds from the first pose; inf: the end."""
    max_gap: float = 0.2
    """Longest time between two poses that is interpolated, seconds; at longer ones the motion is cut."""
    cut_jumps: bool = False
    """Cut the motion where the head jumps (tracking was lost), instead of passing through."""
    seed: int = 0
    """Seed of the noise."""
    sampler: Annotated[SamplerConfig, tyro.conf.arg(name="")] = field(default_factory=SamplerConfig)
    stitching: Annotated[StitchingConfig, tyro.conf.arg(name="")] = field(default_factory=StitchingConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    chunk: int = CHUNK
    """Frames that are in memory at a time (about 8 kB of states for each and every sample, with hands); longer motion
    is sampled chunk by chunk, and an interrupted call goes on with the next one."""
    world: str = "floor"
    """World of the result, z up: `floor` (floor at z = 0) or `recording` (heights as recorded, as EgoAllo writes
    them)."""
    amass: bool = False
    """Also write each motion as an AMASS npz (..._amass.npz)."""
    check_wrists: bool = False
    """Compare the wrists with those that the recording has (controllers, tracked wrists, else HaMeR's): error in
    metres, also as ..._wrists.json."""
    hide_wrists: float = 0.0
    """For --check-wrists under guidance that is told of them: keep them from it in every other piece of so many
    seconds, and report these frames apart. 0: nowhere."""
    overwrite: bool = False
    """Replace files of the same name."""
    precision: InferencePrecision = "fp32"
    """What the network computes in: fp32, bf16 (for GPUs of compute capability 8 or more, and CPUs with AMX; slower
    elsewhere), fp16 (for CPUs with AVX512-FP16), or auto: the fastest here, which is said."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1 ..."""

    def __post_init__(self) -> None:
        require(self, "samples", at_least=1, at_most=MOST_MEMBERS)
        require(self, "start", at_least=0, unit="seconds")
        require(self, "end", above=self.start, infinite=True, unit="seconds")
        require(self, "max_gap", above=0, at_most=60, unit="seconds")
        require(self, "chunk", at_least=4, at_most=10_000_000)
        require(self, "hide_wrists", at_least=0, at_most=3600, unit="seconds")
        require_seed(self.seed)
        told = self.guidance.enabled and self.guidance.terms.wrists == "tracks"
        if self.hide_wrists and not (self.check_wrists and told):
            raise InputError(
                f"--hide-wrists {self.hide_wrists:g} is for --check-wrists under guidance by tracked wrists "
                "(--guidance.mode aria_wrist_only or aria_hamer); leave it out"
            )
        if self.source.hamer is not None and not (self.check_wrists or self._takes_hamer):
            raise InputError(
                f"--hamer {self.source.hamer}: nothing here uses HaMeR's hands; give --guidance.mode aria_hamer, "
                "hamer_wrist or hamer_reproj2, or --check-wrists, or leave it out"
            )
        if self.world not in ("floor", "recording"):
            raise InputError(f"{option(self, 'world')} must be floor or recording, got {self.world!r}")

    @property
    def _takes_hamer(self) -> bool:
        terms = self.guidance.terms
        return self.guidance.enabled and (terms.wrists == "hamer" or terms.fingers)


def run_infer(config: InferConfig, command: list[str] | None = None) -> int:
    """Infer and write. Returns the exit code 0. Raises InputError for what can't be used, StorageError for the disk."""
    device = resolve_device(config.device)
    with Progress("load model"):
        denoiser, _, checkpoint = load_model(config.model, Denoiser, DenoiserConfig, use_ema=config.use_ema)
    precision, why = choose_precision(config.precision, device)
    if config.precision == "auto":
        notice(f"--precision auto: {precision}, {why}")
        config = replace(config, precision=precision)  # what is written beside the result names what was used
    settings = _settings(config, denoiser, checkpoint)
    with Progress("read recording"):
        prepared = read_and_prepare(config)
    if config.check_wrists and not np.isfinite(seen_wrists(prepared)).any():
        raise InputError(
            f"--check-wrists: {config.input} has no wrists or controllers in these frames; give a file of them by "
            "--wrists, or leave it out"
        )
    out = output_file(config, prepared)
    body = resolve_body(config.body, with_mesh=False).to(device)
    guides = None
    if config.guidance.enabled:
        guides = RecordingGuidance(
            config.guidance,
            denoiser.layout,
            body,
            prepared.trajectory,
            prepared.motions,
            prepared.floor,
            config.hide_wrists,
        )
    with folder_for_results(out.parent):
        tell(prepared)

        def finish(arrays: Mapping[str, np.ndarray], place: Callable[[Path], Path]) -> None:
            _write_beside(config, prepared, arrays, body, out, place, checkpoint, denoiser, command)

        infer_to_file(
            denoiser.to(device),
            body,
            prepared,
            settings,
            out,
            keep_world=config.world == "recording",
            guide_maker=guides,
            identity=[to_plain(config.guidance), config.hide_wrists],
            then=finish,
        )
    written = (out, *files_beside(config, out, prepared.frame_nums))
    for path in written:
        print(path)
    kept = {*written, *_sources(config)}
    older = [one.name for one in _files_of_any_result(out) if kept.isdisjoint((one, one.resolve()))]
    if config.overwrite and older:
        notice(f"of an earlier result and left as they were: {', '.join(older)}; delete them if they are not wanted")
    return 0


def read_and_prepare(config: InferConfig) -> Prepared:
    """The recording with floor, stretches and warnings."""
    return prepare(
        load_trajectory(config.input, config.source),
        floor=config.source.floor,
        eye_height_m=config.source.eye_height,
        max_gap_s=config.max_gap,
        start_s=config.start,
        end_s=config.end,
        cut_jumps=config.cut_jumps,
    )


def _settings(config: InferConfig, denoiser: Denoiser, checkpoint: Checkpoint) -> SamplingSettings:
    return SamplingSettings(
        config.sampler.transitions(CosineSchedule.make(denoiser.config.max_t)),
        config.stitching.stitching(trained_length(checkpoint.path)),
        samples=config.samples,
        seed=config.seed,
        project=config.sampler.project,
        chunk=config.chunk,
        precision=config.precision,
    )


def output_file(config: InferConfig, prepared: Prepared) -> Path:
    """The npz that the result goes to. Raises InputError where it exists already, or can't be there."""
    out = config.out.expanduser()
    if out.suffix.lower() != ".npz":
        if out.is_file() or (out.suffix and not out.is_dir()):
            raise InputError(f"--out {out}: expected an .npz file or a folder (one whose name has a dot must exist)")
        numbers = prepared.frame_nums
        out = out / f"{file_stem(prepared.trajectory.name, unique=False)}_{numbers[0]}-{numbers[-1]}.npz"
    refuse_run_folder(out.parent, "--out")
    sources = _sources(config)
    for path in (out, *files_beside(config, out, prepared.frame_nums)):
        if path.is_dir():
            raise InputError(f"--out {out}: {path} is a folder; give another name for the file")
        if path.resolve() in sources:
            raise InputError(f"--out {out}: {path} is the recording itself, or a file of its hands; give another file")
        if path.exists() and not config.overwrite:
            raise InputError(f"--out {out}: {path} exists already; give another file, or --overwrite")
    return out


def amass_files(config: InferConfig, out: Path, frame_nums: np.ndarray) -> dict[Path, tuple[int, slice]]:
    """The AMASS files of a result in ``out``, with the sample and the frames that each holds."""
    parts = stretches_of(frame_nums)
    files = {}
    for sample in range(config.samples if config.amass else 0):
        for index, part in enumerate(parts):
            name = f"_sample{sample}" if config.samples > 1 else ""
            name += f"_part{index}" if len(parts) > 1 else ""
            files[out.with_name(f"{out.stem}{name}_amass.npz")] = (sample, part)
    return files


def files_beside(config: InferConfig, out: Path, frame_nums: np.ndarray) -> list[Path]:
    """Everything that is written besides ``out``: AMASS files, the check of the wrists, and last the options."""
    wrists = [out.with_name(f"{out.stem}_wrists.json")] if config.check_wrists else []
    return [*amass_files(config, out, frame_nums), *wrists, out.with_name(f"{out.stem}_args.yaml")]


def _sources(config: InferConfig) -> list[Path]:
    """The recording's files."""
    return [path.resolve() for path in (config.input, config.source.wrists, config.source.hamer) if path is not None]


def _files_of_any_result(out: Path) -> list[Path]:
    """What some result in ``out`` may have written beside it: with other samples, other stretches, other options."""
    beside = re.compile(re.escape(out.stem) + r"((_sample\d+)?(_part\d+)?_amass\.npz|_wrists\.json)")
    return sorted(path for path in out.parent.iterdir() if beside.fullmatch(path.name))


def tell(prepared: Prepared) -> None:
    """Say what was read and what looks wrong."""
    trajectory, floor = prepared.trajectory, prepared.floor
    rate = (len(trajectory) - 1) / trajectory.seconds
    notice(
        f"{trajectory.name}: {len(trajectory)} poses in {trajectory.seconds:.1f} s ({rate:.1f} per second), "
        f"{prepared.frames} frames at 30 per second in {len(prepared.motions)} stretch(es); floor at "
        f"{floor.height:+.3f} m ({floor.source})"
    )
    for note in prepared.notes:
        notice(note)


def _write_beside(
    config: InferConfig,
    prepared: Prepared,
    arrays: Mapping[str, np.ndarray],
    body: BodyModel,
    out: Path,
    place: Callable[[Path], Path],
    checkpoint: Checkpoint,
    denoiser: Denoiser,
    command: list[str] | None,
) -> None:
    """Write :func:`files_beside` at their places."""
    lift = prepared.floor.height if config.world == "recording" else 0.0
    if config.amass and not has_smpl_shape(body):
        notice(
            f"AMASS files are written with the mean shape: the shape numbers of the body '{body.name}' mean nothing to "
            "SMPL-H"
        )
    for path, (sample, part) in amass_files(config, out, prepared.frame_nums).items():
        pack_npz(place(path), amass_arrays(arrays, sample, part, body, lift))
    errors: dict[str, Any] | None = None
    if config.check_wrists:
        errors = measure_wrists(prepared, arrays, body, lift, config.hide_wrists)
        place(out.with_name(f"{out.stem}_wrists.json")).write_text(json_text(errors), encoding="utf-8")
        for line in wrist_lines(errors):
            print(line)
    record = {
        "options": to_plain(config),
        "model": {
            "path": str(checkpoint.path),
            "step": checkpoint.step,
            "weights_sha256": fingerprint(denoiser.state_dict().values()),
        },
        "recording": _recording_record(prepared),
        "wrists": errors,
        "provenance": provenance(command, resumed_from_step=None)[0],
    }
    place(out.with_name(f"{out.stem}_args.yaml")).write_text(to_yaml(record), encoding="utf-8")


def seen_wrists(prepared: Prepared) -> np.ndarray:
    """Left and right wrist in all frames ``(T, 2, 3)`` of the recording's world: tracked ones, or where there are none
    HaMeR's; NaN where not seen."""
    tracked, hamer = prepared.wrists, prepared.trajectory.hamer
    if hamer is None or np.isfinite(tracked).any():
        return tracked
    return np.concatenate([hamer_wrists(hamer, motion) for motion in prepared.motions])


def measure_wrists(
    prepared: Prepared, arrays: Mapping[str, np.ndarray], body: BodyModel, lift: float, hide_s: float = 0.0
) -> dict[str, Any]:
    """Errors of the wrists of motions in a world whose floor is at ``lift``; ``hide_s`` as of the options."""
    wrists = seen_wrists(prepared).copy()
    wrists[..., 2] += lift - prepared.floor.height
    turns = [motion.R_world_device for motion in prepared.motions]
    known = [turn for turn in turns if turn is not None]
    turned = np.concatenate(known) if len(known) == len(turns) else None
    return wrist_errors(arrays, wrists, body, turned, hidden(prepared.frame_nums, hide_s))


def _recording_record(prepared: Prepared) -> dict[str, Any]:
    trajectory = prepared.trajectory
    return {
        "name": trajectory.name,
        **trajectory.facts,
        "poses": len(trajectory),
        "seconds": trajectory.seconds,
        "floor_m": prepared.floor.height,
        "floor_from": prepared.floor.source,
        "R_world_file": trajectory.R_world_file.tolist(),
        "stretches": [[int(one.frame_nums[0]), int(one.frame_nums[-1])] for one in prepared.motions],
        "gaps": [{"start_s": float(gap.start_s), "end_s": float(gap.end_s), "why": gap.why} for gap in prepared.gaps],
        "notes": list(prepared.notes),
    }
