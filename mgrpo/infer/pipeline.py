"""From a head trajectory to files: prepare (floor, 30 Hz, checks), sample stretch by stretch, write."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgrpo.body.model import BodyModel
from mgrpo.guidance import SamplingGuidance
from mgrpo.infer.checks import check_motion, find_jumps
from mgrpo.infer.floor import choose_floor
from mgrpo.infer.hamer import hamer_arrays
from mgrpo.infer.output import egoallo_arrays
from mgrpo.infer.resampling import Gap, HeadMotion, resample
from mgrpo.infer.sampling import SamplingSettings, plan_chunks, sample_chunks, windows_of
from mgrpo.infer.store import PartialResult, fingerprint
from mgrpo.infer.trajectory import Floor, HeadTrajectory
from mgrpo.models.denoiser import Denoiser
from mgrpo.models.motion import decode_motion
from mgrpo.npz import pack_npz
from mgrpo.storage import replacing_together, storage_error
from mgrpo.terminal.progress import Progress, notice

GuideMaker = Callable[[HeadMotion, Tensor, slice], SamplingGuidance]
"""Makes the guidance of some frames of a stretch: called with the stretch, its head poses there ``(1, T, 7)`` with the
floor at zero, and the frames."""

WriteOthers = Callable[[Mapping[str, np.ndarray], Callable[[Path], Path]], None]
"""Writes what else is made of the arrays of a result: called with them, and with a function from a file's path to the
place to write it (:func:`mgrpo.storage.replacing_together`)."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A trajectory that is ready to be sampled."""

    trajectory: HeadTrajectory
    motions: tuple[HeadMotion, ...]
    """Its stretches at 30 Hz, in the trajectory's world."""
    gaps: tuple[Gap, ...]
    floor: Floor
    notes: tuple[str, ...]
    """Everything that a person should know: of the reader, the floor, the checks."""

    @property
    def frames(self) -> int:
        """Frames of all stretches."""
        return sum(map(len, self.motions))

    @property
    def frame_nums(self) -> np.ndarray:
        """Numbers of all frames ``(T,)``."""
        return np.concatenate([motion.frame_nums for motion in self.motions])

    @property
    def times_ns(self) -> np.ndarray:
        """Times of all frames ``(T,)``."""
        return np.concatenate([motion.times_ns for motion in self.motions])

    @property
    def wrists(self) -> np.ndarray:
        """Left and right wrist in all frames ``(T, 2, 3)``, NaN where not seen; trajectory's world."""
        return np.concatenate([motion.wrists for motion in self.motions])


def prepare(
    trajectory: HeadTrajectory,
    *,
    floor: str = "auto",
    eye_height_m: float = 1.6,
    max_gap_s: float = 0.2,
    start_s: float = 0.0,
    end_s: float = float("inf"),
    cut_jumps: bool = False,
) -> Prepared:
    """Floor, stretches at 30 Hz and warnings of a trajectory.

    Args:
        trajectory: as read.
        floor, eye_height_m: see :func:`mgrpo.infer.floor.choose_floor`.
        max_gap_s, start_s, end_s: see :func:`mgrpo.infer.resampling.resample`.
        cut_jumps: also cut where the head jumps, instead of passing through.
    Raises:
        InputError: nothing left to sample, or a floor that isn't known.
    """
    found, notes = choose_floor(trajectory, floor, eye_height_m)
    motions, gaps = resample(trajectory, max_gap_s=max_gap_s, start_s=start_s, end_s=end_s)
    warnings = check_motion(trajectory, motions, gaps, found, cut_jumps=cut_jumps)
    if cut_jumps:
        jumps = find_jumps(trajectory, motions)
        if len(jumps):
            motions, gaps = resample(trajectory, max_gap_s=max_gap_s, start_s=start_s, end_s=end_s, breaks_ns=jumps)
    return Prepared(trajectory, tuple(motions), tuple(gaps), found, (*trajectory.notes, *notes, *warnings))


def grounded(motion: HeadMotion, floor: Floor, device: torch.device | str = "cpu") -> Tensor:
    """Poses of a stretch ``(F + 1, 7)`` float32 with the floor at z = 0, as the network takes them."""
    poses = torch.from_numpy(motion.T_world_cpf_all).clone()
    poses[:, 6] -= floor.height
    return poses.to(device, torch.float32)


def wrists_above_floor(motion: HeadMotion, floor: Floor, device: torch.device | str = "cpu") -> Tensor:
    """Wrists of a stretch ``(F, 2, 3)`` float32 with the floor at z = 0, NaN where not seen."""
    wrists = torch.from_numpy(motion.wrists).clone()
    wrists[..., 2] -= floor.height
    return wrists.to(device, torch.float32)


@torch.no_grad()
def infer_to_file(
    denoiser: Denoiser,
    body: BodyModel,
    prepared: Prepared,
    settings: SamplingSettings,
    out: Path,
    *,
    keep_world: bool = False,
    guide_maker: GuideMaker | None = None,
    identity: Sequence[Any] = (),
    then: WriteOthers | None = None,
) -> None:
    """Sample all stretches and write ``out`` in EgoAllo's format, in one step at the end.

    Chunks that are done are kept beside ``out`` until then; the same call continues an interrupted one.

    Args:
        denoiser: in evaluation mode, on the device to compute on.
        body: on the same device.
        prepared: from :func:`prepare`.
        settings: what is sampled.
        out: the npz file.
        keep_world: leave the result in the recording's world (z up) instead of putting the floor at z = 0.
        guide_maker: guidance, if any.
        identity: further plain values that determine the result, such as guidance's options.
        then: called with the arrays of the file, to write what else is made of them; all appear together.
    Raises:
        InputError: another process is writing the same file.
        StorageError: the disk refuses.
    """
    device = next(denoiser.parameters()).device
    stretches = [grounded(motion, prepared.floor, device) for motion in prepared.motions]
    work = fingerprint(
        [
            [settings.samples, settings.seed, settings.project, settings.chunk, settings.precision],
            [keep_world, prepared.floor.height],
            [list(map(float, scalars)) for scalars in settings.transitions.scalars],
            [settings.stitching.blend, settings.stitching.window, settings.stitching.overlap],
            [str(part) for part in identity],
            body.name,
            body.J_template,
            body.J_shapedirs,
            *stretches,
            *_hands_seen(prepared),
            *denoiser.state_dict().values(),
        ]
    )
    with PartialResult(out, work, settings.samples, prepared.frames) as store:
        if store.chunks:
            notice(f"continuing: {len(store.chunks)} chunk(s) of an earlier, interrupted call are taken")
        try:
            _sample_all(denoiser, body, prepared, stretches, settings, store, keep_world, guide_maker)
            with Progress("write"):
                _write(out, prepared, store.arrays, keep_world, then)
        except BaseException:
            if store.chunks:
                notice(
                    f"{len(store.chunks)} chunk(s) are kept beside {out}, in {store.folder.name}; the same command "
                    "continues there"
                )
            raise
        store.drop()


def _write(
    out: Path, prepared: Prepared, sampled: Mapping[str, np.ndarray], keep_world: bool, then: WriteOthers | None
) -> None:
    poses = np.concatenate([motion.T_world_cpf for motion in prepared.motions])
    if not keep_world:
        poses[:, 6] -= prepared.floor.height
    whole = ChainMap(
        {
            "Ts_world_cpf": poses.astype(np.float32),
            "frame_nums": prepared.frame_nums,
            "timestamps_ns": prepared.times_ns,
        },
        sampled,  # type: ignore[arg-type]
    )
    try:
        with replacing_together() as place:
            pack_npz(place(out), whole)
            if then is not None:
                then(whole, place)
    except OSError as error:
        raise storage_error("write", out, error) from error


def _hands_seen(prepared: Prepared) -> list[Any]:
    """What was seen of the hands, which enters conditions and guidance."""
    hamer = prepared.trajectory.hamer
    parts: list[Any] = [] if hamer is None else list(hamer_arrays(hamer).values())
    for motion in prepared.motions:
        parts += [motion.wrists, motion.wrist_confidence]
        parts += [part for part in (motion.R_world_wrist, motion.hands) if part is not None]
    return parts


def _sample_all(
    denoiser: Denoiser,
    body: BodyModel,
    prepared: Prepared,
    stretches: Sequence[Tensor],
    settings: SamplingSettings,
    store: PartialResult,
    keep_world: bool,
    guide_maker: GuideMaker | None,
) -> None:
    """Sample what ``store`` doesn't have yet, and put it there."""
    before = list(store.chunks)
    total = sum(windows_of(len(motion), settings) for motion in prepared.motions)
    lift = np.float32(prepared.floor.height if keep_world else 0.0)
    with Progress("sample", total, "windows") as progress:
        offset = 0
        for stretch, (motion, poses) in enumerate(zip(prepared.motions, stretches)):
            done = sum(which == stretch for which, _ in before)
            carry = store.carry if done and before[-1][0] == stretch else None
            progress.update(_windows_done(motion, settings, done))
            if done and carry is None:  # the stretch is whole
                offset += len(motion)
                continue
            for chunk in sample_chunks(
                denoiser,
                poses,
                settings,
                stretch=stretch,
                wrists=wrists_above_floor(motion, prepared.floor, poses.device),
                guides=None if guide_maker is None else _guides(guide_maker, motion, poses),
                first=done,
                carry=None if carry is None else carry.to(poses),
                on_windows=progress.update,
            ):
                part = slice(chunk.start, chunk.stop)
                head = poses[1:][part]
                decoded = decode_motion(denoiser.layout, chunk.states[None], head[None, None], body)
                arrays = egoallo_arrays(decoded, head, motion.frame_nums[part], motion.times_ns[part])
                arrays["Ts_world_root"][..., 6] += lift
                store.put(offset + chunk.start, arrays, (stretch, chunk.number), chunk.carry)
            offset += len(motion)


def _guides(maker: GuideMaker, motion: HeadMotion, poses: Tensor) -> Callable[[int, int], SamplingGuidance]:
    return lambda start, stop: maker(motion, poses[None, start + 1 : stop + 1], slice(start, stop))


def _windows_done(motion: HeadMotion, settings: SamplingSettings, chunks: int) -> int:
    """Windows of the first ``chunks`` chunks of a stretch, over all steps."""
    plan = plan_chunks(len(motion), settings.chunk, settings.stitching.overlap)[:chunks]
    return len(settings.transitions) * sum(len(settings.stitching.plan(stop - start)) for start, stop in plan)
