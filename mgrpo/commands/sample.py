"""`mgrpo sample`: bodies for a head trajectory, in EgoAllo's output format, with a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from mgrpo.body import BodyModel, resolve_body
from mgrpo.config_record import to_yaml
from mgrpo.data import MotionClip, MotionWindows, load_motion, loop, windows_from_poses
from mgrpo.diffusion.config import SamplerConfig, StitchingConfig
from mgrpo.diffusion.sampler import NoiseKeys
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.diffusion.stitched_sampler import sample_stitched
from mgrpo.diffusion.stitching import Stitching
from mgrpo.diffusion.transition import Transitions
from mgrpo.errors import InputError
from mgrpo.execution.device import resolve_device
from mgrpo.execution.seeding import require_seed
from mgrpo.guidance import Optimisation, SamplingGuidance, optimisation
from mgrpo.infer.output import egoallo_arrays
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.motion import PredictedMotion, decode_motion
from mgrpo.npz import pack_npz
from mgrpo.options import MOST_MEMBERS, MOST_NUMBER, require
from mgrpo.runs.stored_models import load_model
from mgrpo.runs.trained_length import trained_length
from mgrpo.storage import file_stem, folder_for_results, replacing_together, storage_error
from mgrpo.terminal.progress import Progress, notice

LONGEST = 108_000
"""Most frames of one piece of motion: an hour at 30 per second. Longer recordings are sampled in pieces."""


@dataclass(frozen=True)
class SampleConfig:
    """Recover full-body motion from the head trajectory of a clip.

    Writes an npz with EgoAllo's names (Ts_world_cpf, Ts_world_root, body_quats, ...), the options beside it, and a
    picture of the recorded and the first recovered motion.
    """

    checkpoint: Path
    """Prior or post-trained model: run folder (its best checkpoint), checkpoint folder, RUN/last, EgoAllo checkpoint,
    or folder written by save_pretrained."""
    use_ema: bool = False
    """Take the averaged weights of a prior trained with --ema, instead of its last ones."""
    motion: str = "demo"
    """Motion whose head trajectory is taken: `demo` (ships with the package), a pack or clip npz, or a folder of
    them."""
    clip: str = ""
    """Name (or pattern) of the clip; empty: the only or first one."""
    body: str = "default"
    """Body model: `default` (ships with the package), `smplh` (searched for), or the path of an SMPL-H npz."""
    start: int = 1
    """First frame; at least 1, because the motion from the frame before it is part of the input."""
    length: int = 32
    """Frames, at 30 per second, at most 108000 (an hour); 0: to the end of the clip. Longer motion than a window is
    stitched, and a looping clip repeated."""
    samples: int = 3
    """Motions to draw."""
    seed: int = 0
    """Seed of the noise."""
    sampler: Annotated[SamplerConfig, tyro.conf.arg(name="")] = field(default_factory=SamplerConfig)
    stitching: Annotated[StitchingConfig, tyro.conf.arg(name="")] = field(default_factory=StitchingConfig)
    guidance: Optimisation = "off"
    """Optimisation of the motions against sliding feet and jitter: `off`; `post`, after sampling; or `inner`, in every
    sampling step as well."""
    out: Path = Path("samples")
    """Folder to write to; a file of the same clip, frames and seed is replaced."""
    picture: bool = True
    """Also draw a film strip (png)."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1 ..."""

    def __post_init__(self) -> None:
        require(self, "start", at_least=1, at_most=MOST_NUMBER)
        require(self, "length", at_least=0, at_most=LONGEST, unit="frames")
        if self.length == 1:
            raise InputError("--length must be at least 2 frames, or 0 (to the end of the clip), got 1")
        require(self, "samples", at_least=1, at_most=MOST_MEMBERS)
        require_seed(self.seed)


def run_sample(config: SampleConfig) -> int:
    """Sample and write. Returns the exit code 0. Raises InputError for what can't be used, StorageError for the
    disk."""
    device = resolve_device(config.device)
    with Progress("load model"):
        denoiser, _, checkpoint = load_model(config.checkpoint, Denoiser, DenoiserConfig, use_ema=config.use_ema)
    # Before the work: options that don't fit the model, and a place that can't be written to, should be known now.
    transitions = config.sampler.transitions(CosineSchedule.make(denoiser.config.max_t))
    stitching = config.stitching.stitching(trained_length(checkpoint.path))
    with folder_for_results(config.out):
        with Progress("load motion"):
            body = resolve_body(config.body, with_mesh=False).body_only()
            clip = choose_clip(load_motion(config.motion, body), config.clip)
            windows = clip_window(clip, body, config.start, config.length)
        motion = draw(denoiser.to(device), windows.to(device), body.to(device), config, transitions, stitching)

    first, last = config.start, config.start + windows.length - 1
    stem = f"{file_stem(clip.name)}_{first}-{last}_seed{config.seed}"
    written = [config.out / f"{stem}.npz", config.out / f"{stem}_args.yaml"]
    numbers = np.arange(first, last + 1)
    times = np.rint(numbers / clip.fps * 1e9).astype(np.int64)
    try:
        # in one go: options beside the motion of an earlier call would tell what isn't so
        with Progress("write", 3 if config.picture else 2, "files") as progress, replacing_together() as place:
            pack_npz(place(written[0]), egoallo_arrays(motion, windows.T_world_cpf[0], numbers, times))
            progress.update()
            place(written[1]).write_text(to_yaml(config), encoding="utf-8")
            progress.update()
            if config.picture:
                written.append(config.out / f"{stem}.png")
                post_trained = checkpoint.record.get("training") == "GrpoConfig"
                place(written[2]).write_bytes(picture_bytes(clip, windows, motion, post_trained=post_trained))
                progress.update()
    except OSError as error:
        raise storage_error("write", written[0], error) from error
    for path in written:
        print(path)
    return 0


def choose_clip(clips: list[MotionClip], wanted: str) -> MotionClip:
    """The clip of that name, or the first that fits the pattern; InputError listing the names otherwise."""
    for clip in clips:
        if not wanted or clip.name == wanted or fnmatchcase(clip.name, wanted):
            return clip
    names = ", ".join(clip.name for clip in clips[:40]) + (" ..." if len(clips) > 40 else "")
    raise InputError(f"--clip: no clip is called {wanted!r}. Clips: {names}")


def clip_window(clip: MotionClip, body: BodyModel, start: int, length: int) -> MotionWindows:
    """One window: frames ``start`` to ``start + length - 1`` of a clip (``length`` 0: to its end), with its recorded
    motion.

    A looping clip that is too short is repeated, which is told. Raises InputError when another one is, and for more
    than :data:`LONGEST` frames.
    """
    own = len(clip)
    if length == 0:
        length = own - start
        if length < 2:
            raise InputError(
                f"clip '{clip.name}' has frames 0 to {own - 1}; from --start {start} to its end there are "
                f"{max(length, 0)} frames, at least 2 are needed. --start can be at most {own - 2}"
            )
    if start + length > LONGEST + own:
        raise InputError(
            f"clip '{clip.name}': --start {start} and --length {length} ask for motion up to frame "
            f"{start + length - 1}; at most {LONGEST} frames are sampled in one piece, beginning in the clip's own "
            f"{own}. Choose a smaller --start or --length"
        )
    if clip.loop and own < start + length:
        notice(f"clip '{clip.name}' has {own} frames and loops: it is repeated to reach frame {start + length - 1}")
        clip = loop(clip, start + length)
    if len(clip) < start + length:
        raise InputError(
            f"clip '{clip.name}' has frames 0 to {own - 1}; --start {start} and --length {length} ask for "
            f"{start} to {start + length - 1}. "
            + (
                f"At most --length {own - start} fits there"
                if own - start >= 2
                else f"--start can be at most {own - length if own - length > 0 else own - 2}"
            )
        )
    part = slice(start - 1, start + length)
    return windows_from_poses(
        body,
        T_world_root=clip.T_world_root[None, part],
        body_quats=clip.body_quats[None, part],
        betas=clip.betas[None],
        contacts=clip.contacts[None, part],
        hand_quats=None if clip.hand_quats is None else clip.hand_quats[None, part],
        names=(clip.name,),
    )


def draw(
    denoiser: Denoiser,
    windows: MotionWindows,
    body: BodyModel,
    config: SampleConfig,
    transitions: Transitions,
    stitching: Stitching,
) -> PredictedMotion:
    """``config.samples`` motions ``(1, S, T, …)`` for one piece of motion of any length, a function of the seed."""
    keys = NoiseKeys(
        config.seed,
        0,
        torch.zeros(1, dtype=torch.int64, device=windows.mask.device),
        config.samples,
        share_initial=False,
    )
    guidance = SamplingGuidance(optimisation(config.guidance), denoiser.layout, body, windows.T_world_cpf)
    parts = len(transitions) * len(stitching.plan(windows.length))
    with Progress("sample", parts, "windows") as progress:
        result = sample_stitched(
            denoiser,
            windows.T_world_cpf,
            windows.T_cpf_tm1_cpf_t,
            transitions,
            keys,
            stitching=stitching,
            project_rotations=config.sampler.project,
            guidance=guidance.hook(len(transitions)),
            callback=lambda done, _: progress.update(done - progress.done),
        )
    return decode_motion(denoiser.layout, guidance.finish(result.x0), windows.T_world_cpf[:, None], body)


def picture_bytes(clip: MotionClip, windows: MotionWindows, motion: PredictedMotion, *, post_trained: bool) -> bytes:
    """A film strip of the recorded and the first sampled motion, as PNG."""
    import io

    from mgrpo.viz.comparison import MotionComparison, SkeletonTrack, frame_errors_mm
    from mgrpo.viz.filmstrip import render_filmstrip

    recorded = windows.joints[0].cpu().numpy()
    sampled = motion.joints22[0].detach().cpu().numpy()
    track = SkeletonTrack(sampled, error_mm=frame_errors_mm(sampled[0], recorded))
    comparison = MotionComparison(
        name=clip.name,
        fps=clip.fps,
        ground_truth=SkeletonTrack(recorded),
        T_world_cpf=windows.T_world_cpf[0].cpu().numpy(),
        **{"post_trained" if post_trained else "prior": track},
    )
    stream = io.BytesIO()
    render_filmstrip(comparison).save(stream, format="PNG")
    return stream.getvalue()
