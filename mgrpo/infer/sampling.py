"""Bodies for head trajectories of any length, in memory that doesn't grow with them.

Within a *chunk*, windows are denoised together and blended at every step (:mod:`mgrpo.diffusion.stitched_sampler`). A
chunk begins with the last frames of the one before, whose result is known by then: at every step the prediction of
these frames is drawn towards it, wholly at the first of them and ever less to the last; guidance goes on from those
that are wholly known. So chunks join as windows do, each is sampled alone, and an interrupted job goes on with the next
one.

Noise is a function of (seed, stretch, chunk, sample, step): a sample doesn't depend on how many others are drawn, and a
recording that is one chunk gets what `mgrpo sample` draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mgrpo.diffusion.sampler import NoiseKeys
from mgrpo.diffusion.stitched_sampler import FRAMES_AHEAD, sample_stitched
from mgrpo.diffusion.stitching import Stitching
from mgrpo.diffusion.transition import Transitions
from mgrpo.errors import InputError
from mgrpo.geometry import se3_apply, se3_inverse
from mgrpo.guidance import SamplingGuidance
from mgrpo.models.conditioning import relative_cpf
from mgrpo.models.denoiser import Denoiser
from mgrpo.models.inference import InferenceDenoiser, InferencePrecision
from mgrpo.models.state import project_state

_SETTLED = 2  # frames that give a place and a pace to go on with

CHUNK = 3600
"""Frames of a chunk where nothing else is wanted: two minutes. With hands 29 MB of states per sample."""


@dataclass(frozen=True)
class SamplingSettings:
    """What is sampled, and how."""

    transitions: Transitions
    """The sampler's steps."""
    stitching: Stitching
    """Windows and blend."""
    samples: int = 1
    """Motions to draw, S."""
    seed: int = 0
    """Seed of the noise."""
    project: bool = True
    """Whether predicted body rotations are projected in every step."""
    chunk: int = CHUNK
    """Frames of a chunk."""
    precision: InferencePrecision = "fp32"
    """What the network computes in; states, conditions and bodies are float32 in any case."""

    def __post_init__(self) -> None:
        least = 2 * self.stitching.window
        if self.chunk < least:
            raise InputError(
                f"a chunk must be at least two windows long ({least} frames), got --chunk {self.chunk}; a smaller "
                "--window allows smaller chunks"
            )


class Known(NamedTuple):
    """What is known already of the first frames of a chunk."""

    states: Tensor
    """Clean states ``(S, K, D)``."""
    weight: Tensor
    """How much they count against a new prediction ``(K,)``, 0 to 1; frames of 1 come first."""

    @property
    def settled(self) -> int:
        """First frames that stay as they are known, also under guidance."""
        return int((self.weight >= 1.0).sum())

    def drawn(self, states: Tensor) -> Tensor:
        """``states (S, T, D)`` with the first K frames drawn towards the known ones."""
        count = len(self.weight)
        weight = self.weight.to(states)[:, None]
        first = torch.lerp(states[:, :count], self.states.to(states), weight)
        return torch.cat((first, states[:, count:]), dim=1)


def fade(count: int) -> Tensor:
    """Weights ``(count,)`` of known frames that fall in a straight line from nearly one to nearly zero."""
    return 1.0 - torch.arange(1, count + 1) / (count + 1)


def joined(states: Tensor) -> Known:
    """The last frames of a chunk ``(S, K, D)``, which begin the next one: their place and pace stay, the rest fades."""
    count = states.shape[1]
    settled = min(_SETTLED, count)
    return Known(states, torch.cat((torch.ones(settled), fade(count - settled))))


class Chunk(NamedTuple):
    """Frames of which the result is final."""

    number: int
    start: int
    """First frame in its stretch."""
    stop: int
    """One past the last."""
    states: Tensor
    """Clean states ``(S, stop - start, D)``."""
    carry: Tensor | None
    """States of the frames after ``stop`` that the next chunk begins with ``(S, K, D)``; None after the last."""


def plan_chunks(frames: int, chunk: int, overlap: int) -> list[tuple[int, int]]:
    """First frame and end of each chunk of a stretch: the fewest, of about one length; neighbours share ``overlap``
    frames."""
    if frames <= chunk:
        return [(0, frames)]
    count = -(-(frames - overlap) // (chunk - overlap))
    step = (frames - overlap) / count
    starts = [round(k * step) for k in range(count)]
    stops = [start + overlap for start in starts[1:]]
    return list(zip(starts, [*stops, frames]))


def sample_window(
    denoiser: InferenceDenoiser,
    T_world_cpf_all: Tensor,
    keys: NoiseKeys,
    settings: SamplingSettings,
    *,
    known: Known | None = None,
    wrists: Tensor | None = None,
    guide: SamplingGuidance | None = None,
    on_windows: Callable[[int], None] | None = None,
) -> Tensor:
    """Clean states ``(S, T, D)`` of one chunk, after guidance if there is any.

    Args:
        denoiser: made from one in evaluation mode, in the settings' precision.
        T_world_cpf_all: the pose before the first frame and those of the T frames ``(T + 1, 7)``, floor at z = 0.
        keys: noise of one condition.
        settings: sampler, windows.
        known: what is known of the first frames. What is wholly known stays exactly.
        wrists: left and right wrist in the world ``(T, 2, 3)``, NaN where not seen; a part of the condition of models
            that have it, zeros elsewhere.
        guide: guidance of this chunk.
        on_windows: called with the windows denoised since the last call.
    """
    poses = T_world_cpf_all[None]
    layout = denoiser.layout
    settled = 0 if known is None else known.settled
    inner = None if guide is None else guide.hook(len(settings.transitions), settled)

    def correct(states: Tensor, done: int) -> Tensor:
        if known is not None:
            states = known.drawn(states[0])[None]
            if settings.project:
                states = project_state(layout, states, fix_det=True)
        return states if inner is None else inner(states, done)

    told = 0

    def count(done: int, _: int) -> None:
        nonlocal told
        if on_windows is not None:
            on_windows(done - told)
        told = done

    hand_positions = None
    if denoiser.config.include_hand_positions_cond and wrists is not None:
        hand_positions = _wrists_in_cpf(poses[:, 1:], wrists[None])
    result = sample_stitched(
        denoiser,
        poses[:, 1:],
        relative_cpf(poses),
        settings.transitions,
        keys,
        stitching=settings.stitching,
        conditioning=denoiser.config,
        layout=layout,
        project_rotations=settings.project,
        hand_positions_wrt_cpf=hand_positions,
        guidance=correct if known is not None or inner is not None else None,
        frames_ahead=FRAMES_AHEAD,
        callback=count,
    )
    return (result.x0 if guide is None else guide.finish(result.x0, settled))[0]


def _wrists_in_cpf(T_world_cpf: Tensor, wrists: Tensor) -> Tensor:
    """Left then right wrist in the CPF ``(B, T, 6)``, zeros where not seen."""
    local = se3_apply(se3_inverse(T_world_cpf)[..., None, :], wrists.to(T_world_cpf))
    return torch.nan_to_num(local, nan=0.0).flatten(-2)


@torch.no_grad()
def sample_chunks(
    denoiser: Denoiser,
    T_world_cpf_all: Tensor,
    settings: SamplingSettings,
    *,
    stretch: int = 0,
    wrists: Tensor | None = None,
    guides: Callable[[int, int], SamplingGuidance] | None = None,
    first: int = 0,
    carry: Tensor | None = None,
    on_windows: Callable[[int], None] | None = None,
) -> Iterator[Chunk]:
    """The chunks of one stretch, in order; only one is in memory at a time.

    Args:
        denoiser: in evaluation mode, on the device of the poses.
        T_world_cpf_all: the pose before the first frame and those of all frames ``(F + 1, 7)``, floor at z = 0.
        settings: what is sampled.
        stretch: number of the stretch in its recording; a part of the noise's key.
        wrists: ``(F, 2, 3)``, see :func:`sample_window`.
        guides: makes the guidance of frames start to stop.
        first: number of the chunk to go on with.
        carry: its first frames, which the chunk before left; None for chunk 0.
        on_windows: see :func:`sample_window`.
    """
    frames = len(T_world_cpf_all) - 1
    prepared = InferenceDenoiser(denoiser, settings.precision)
    overlap = settings.stitching.overlap
    plan = plan_chunks(frames, settings.chunk, overlap)
    for number, (start, stop) in list(enumerate(plan))[first:]:
        keys = NoiseKeys(
            settings.seed,
            stretch,
            torch.tensor([number], dtype=torch.int64, device=T_world_cpf_all.device),
            settings.samples,
            share_initial=False,
        )
        states = sample_window(
            prepared,
            T_world_cpf_all[start : stop + 1],
            keys,
            settings,
            known=None if carry is None else joined(carry),
            wrists=None if wrists is None else wrists[start:stop],
            guide=None if guides is None else guides(start, stop),
            on_windows=on_windows,
        )
        final = stop if number == len(plan) - 1 else stop - overlap
        carry = None if final == stop else states[:, final - start :].clone()
        yield Chunk(number, start, final, states[:, : final - start], carry)


def windows_of(frames: int, settings: SamplingSettings) -> int:
    """Windows denoised for a stretch of ``frames``, over all steps: what progress counts."""
    plan = plan_chunks(frames, settings.chunk, settings.stitching.overlap)
    return len(settings.transitions) * sum(len(settings.stitching.plan(stop - start)) for start, stop in plan)
