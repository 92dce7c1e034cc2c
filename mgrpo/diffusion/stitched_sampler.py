"""Sampling motions of any length: windows that are denoised together and blended at every step.

What one step costs is one call of the network for each window length (one with ``proper`` blending, at most
``ceil(window / (window - overlap)) + 1`` with ``egoallo``): all windows of all samples go in together. Windows are put
together by length, never padded, because the network's self-attention lets padding take part. The condition of a window
is encoded once and shared by its samples, as in :mod:`mgrpo.diffusion.sampler`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mgrpo.diffusion.sampler import (
    GroupPredictor,
    Guidance,
    NoiseKeys,
    Record,
    SampleResult,
    StepOptions,
    policy_layout,
    reverse_process,
)
from mgrpo.diffusion.stitching import Stitching, WindowPlan, add_window
from mgrpo.diffusion.transition import Transitions
from mgrpo.errors import InputError
from mgrpo.models.conditioning import ConditioningOptions, make_cond
from mgrpo.models.denoiser import Denoiser
from mgrpo.models.state import StateLayout

FRAMES_PER_CALL = 16384
"""Frames (windows x samples x length) of one call of the network when the caller doesn't choose; bounds the memory."""

FRAMES_AHEAD = 1024
"""Frames (windows x levels x length) of conditions that inference encodes in one call: enough for matrix products at
full speed (measured on a CPU: 2048 are no faster), and 25 MB of keys and values in the published size."""


@dataclass(frozen=True, eq=False)
class _WindowGroup:
    """All windows of one length, of every sequence."""

    length: int
    rows: list[tuple[int, int]]
    """Sequence and number in its plan of each of the N windows."""
    cond: Tensor
    """Encoded head motion ``(N, length, d_cond)``."""
    shares: Tensor
    """Share of each window in the blend ``(N, length)``, in the state's dtype."""


class StitchedPredictor:
    """Predicts clean states of long sequences from those of windows: the ``predict`` of
    :func:`mgrpo.diffusion.sampler.reverse_process`.

    Made once for B head trajectories: windows are chosen and their conditions computed here (per window, because some
    parameterisations begin anew at its first frame).
    """

    def __init__(
        self,
        policy: GroupPredictor,
        conditioning: ConditioningOptions,
        stitching: Stitching,
        T_world_cpf: Tensor,
        T_cpf_tm1_cpf_t: Tensor,
        *,
        lengths: Sequence[int] | None = None,
        hand_positions_wrt_cpf: Tensor | None = None,
        frames_per_call: int = FRAMES_PER_CALL,
        levels: Sequence[int] = (),
        frames_ahead: int = 0,
        on_windows: Callable[[int], None] | None = None,
    ) -> None:
        """
        Args:
            policy: the network.
            conditioning: how it is told of the head's motion.
            stitching: windows and blend.
            T_world_cpf: head poses ``(B, T, 7)``, floor at z = 0.
            T_cpf_tm1_cpf_t: head motion since the frame before ``(B, T, 7)``; the first frame of a window keeps its
                own.
            lengths: frames of each sequence, at most T; default T.
            hand_positions_wrt_cpf: ``(B, T, 6)``, see :func:`mgrpo.models.conditioning.make_cond`.
            frames_per_call: bound on windows x samples x length in one call of the network; a single window of a single
                sample is always one call.
            levels: the levels that will be asked for, in order.
            frames_ahead: conditions are encoded for several of the ``levels`` in one call while windows x levels x
                length stay within this number, by policies that have ``encode_levels``; 0: one level at a time.
            on_windows: called after each call of the network with its number of windows (once for all samples).
        """
        batch, frames, _ = T_world_cpf.shape
        self.policy = policy
        self.frames_per_call = frames_per_call
        self.plans: list[WindowPlan] = [stitching.plan(length) for length in lengths or [frames] * batch]
        """The windows of each sequence."""
        self._on_windows = on_windows
        self._levels, self._frames_ahead = tuple(levels), frames_ahead
        self._encoded: dict[tuple[int, int], dict[int, Any]] = {}
        dtype = torch.float64 if T_world_cpf.dtype == torch.float64 else torch.float32
        by_length: dict[int, list[tuple[int, int]]] = {}
        for b, plan in enumerate(self.plans):
            for k, length in enumerate(plan.lengths):
                by_length.setdefault(length, []).append((b, k))
        self._groups = []
        for length, rows in by_length.items():
            places = [(b, self.plans[b].starts[k]) for b, k in rows]
            cond: Tensor | None = None
            for part in _parts(len(rows), max(1, frames_per_call // length)):
                encoded = make_cond(
                    conditioning,
                    _cut(T_world_cpf, places[part], length),
                    _cut(T_cpf_tm1_cpf_t, places[part], length),
                    None if hand_positions_wrt_cpf is None else _cut(hand_positions_wrt_cpf, places[part], length),
                )
                if cond is None:  # filled part by part: the encoding takes several times the memory of its result
                    cond = encoded.new_empty(len(rows), *encoded.shape[1:])
                cond[part] = encoded
            assert cond is not None
            shares = torch.stack([self.plans[b].shares[k] for b, k in rows]).to(T_world_cpf.device, dtype)
            self._groups.append(_WindowGroup(length, rows, cond, shares))

    def __len__(self) -> int:
        """Number of windows of all sequences."""
        return sum(map(len, self.plans))

    def predict_windows(self, x_t: Tensor, level: int) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """The network's output for every window.

        Args:
            x_t: states ``(B, G, T, D)``.
            level: their diffusion level.

        Yields:
            sequence, number of the window in its plan, its share ``(L_k,)``, predicted clean states ``(G, L_k, D)`` as
            the network returns them.
        """
        members = x_t.shape[1]
        for number, group in enumerate(self._groups):
            length = group.length
            together = min(members, max(1, self.frames_per_call // length))
            for part in _parts(len(group.rows), max(1, self.frames_per_call // (length * members))):
                rows = group.rows[part]
                t = torch.full((len(rows),), level, dtype=torch.int64, device=x_t.device)
                memory = self._memory(number, part, t, level)
                places = [(b, self.plans[b].starts[k]) for b, k in rows]
                decoded = [
                    self.policy.decode(_cut(x_t[:, some], places, length), t, memory)
                    for some in _parts(members, together)
                ]
                predicted = decoded[0] if len(decoded) == 1 else torch.cat(decoded, dim=1)
                for (b, k), share, prediction in zip(rows, group.shares[part], predicted, strict=True):
                    yield b, k, share, prediction
                if self._on_windows is not None:
                    self._on_windows(len(rows))

    def _memory(self, number: int, part: slice, t: Tensor, level: int) -> Any:
        """What the network makes of the conditions of some windows of a group at a level."""
        group = self._groups[number]
        cond = group.cond[part]
        together = self._frames_ahead // (len(cond) * group.length)
        encode_levels = getattr(self.policy, "encode_levels", None)
        if together < 2 or encode_levels is None or level not in self._levels:
            return self.policy.encode(cond, t)
        ready = self._encoded.setdefault((number, part.start), {})
        if level not in ready:
            ready.clear()
            first = self._levels.index(level)
            some = self._levels[first : first + together]
            ready.update(zip(some, encode_levels(cond, some), strict=True))
        return ready.pop(level)

    def __call__(self, x_t: Tensor, level: int) -> Tensor:
        """The blended prediction ``(B, G, T, D)``, not projected, in the dtype of ``x_t``; zero after a sequence's
        end. The order of the sums is that of the windows, however many go into one call."""
        blended = torch.zeros(x_t.shape, dtype=x_t.dtype, device=x_t.device)
        for b, k, share, prediction in self.predict_windows(x_t, level):
            add_window(blended[b], self.plans[b].starts[k], share.to(x_t.dtype), prediction.to(x_t.dtype))
        return blended


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _cut(sequences: Tensor, places: Sequence[tuple[int, int]], length: int) -> Tensor:
    """Windows ``(N, *, length, C)`` of ``sequences (B, *, T, C)``; a place is a sequence and a first frame."""
    return torch.stack([sequences[b].narrow(-2, start, length) for b, start in places])


@torch.no_grad()
def sample_stitched(
    policy: GroupPredictor,
    T_world_cpf: Tensor,
    T_cpf_tm1_cpf_t: Tensor,
    transitions: Transitions,
    keys: NoiseKeys | None,
    *,
    stitching: Stitching | None = None,
    conditioning: ConditioningOptions | None = None,
    layout: StateLayout | None = None,
    floor_z: float | Tensor = 0.0,
    hand_positions_wrt_cpf: Tensor | None = None,
    mask: Tensor | None = None,
    project_rotations: bool = True,
    fix_det: bool = True,
    record: Record = "none",
    record_last: int = 3,
    noise: Tensor | None = None,
    guidance: Guidance | None = None,
    frames_per_call: int = FRAMES_PER_CALL,
    frames_ahead: int = 0,
    callback: Callable[[int, int], None] | None = None,
) -> SampleResult:
    """Sample G motions for each of B head trajectories of any length (facts: D.3 to D.5).

    Within a step: all windows are denoised, their predictions blended, body rotations projected, guidance applied, and
    the whole sequence takes the step, with one draw of noise for each of its frames however many windows share it.
    Where the sequence is one window, the result is that of :func:`mgrpo.diffusion.sampler.sample`, bit for bit.

    Memory besides the network's weights and the given tensors, in float32: four times the states, ``16 B G T D`` bytes
    (D = 226, or 496 with hands); the conditions of all windows, about ``4 B T d_cond window / (window - overlap)``
    bytes; and the activations of one call of the network. An hour at 30 frames per second (T = 108,000) with hands is
    857 MB + 89 MB + the activations of ``frames_per_call`` frames.

    Args:
        policy: the network, usually a :class:`~mgrpo.models.denoiser.Denoiser`, whose dropout must be off.
        T_world_cpf: head poses ``(B, T, 7)``, wxyz + xyz, metres, z up.
        T_cpf_tm1_cpf_t: motion since the frame before ``(B, T, 7)``, see
            :func:`mgrpo.models.conditioning.relative_cpf`; not shifted by ``floor_z``, which leaves it as it is.
        transitions: the sampler's steps.
        keys: which noise to draw; may be None if ``noise`` is given.
        stitching: windows and blend, default :class:`~mgrpo.diffusion.stitching.Stitching`.
        conditioning: how the policy is told of the head's motion; default the denoiser's configuration. Must be given
            for other policies.
        layout: the state's layout; default the denoiser's. Must be given for other policies.
        floor_z: height of the floor in metres, one number or ``(B,)``. The network sees the head above it; whatever
            else uses the poses (root, guidance) doesn't.
        hand_positions_wrt_cpf: ``(B, T, 6)``, only for models that have them in the condition.
        mask: ``(B, T)`` bool, True = a real frame, for sequences of different lengths; real frames come first. Windows
            are cut from those alone, so padding has no influence. In padded frames the result means nothing.
        project_rotations: replace the blended body rotations by the nearest rotations inside every step, as EgoAllo
            does (never the hands').
        fix_det: make projected matrices proper; False is EgoAllo's.
        record, record_last: as in :func:`~mgrpo.diffusion.sampler.sample`.
        noise: recorded noise ``(S + 1, B, G, T, D)`` to use instead: index 0 is x_T, index k + 1 the draw of step k.
        guidance: hook between and after the steps, see :data:`~mgrpo.diffusion.sampler.Guidance`. Inner guidance of
            EgoAllo's kind corrects what it gets at fewer than S steps done, guidance after sampling that at S.
        frames_per_call: bound on windows x samples x length in one call of the network.
        frames_ahead: encode conditions for several steps in one call, see :class:`StitchedPredictor`: fewer, larger
            products, whose rounding may differ from that of single ones.
        callback: called after each call of the network with (windows done, windows in all); a window counts once in
            every step, for all samples together.

    Returns:
        see :class:`~mgrpo.diffusion.sampler.SampleResult`. The state is float64 for float64 poses, otherwise float32,
        whatever the network computes in.

    Raises:
        InputError: arguments that don't fit each other.
    """
    name = "sample_stitched"
    layout = policy_layout(name, policy, layout)
    if conditioning is None:
        if not isinstance(policy, Denoiser):
            raise InputError(f"{name}(): give the conditioning; only a Denoiser knows its own")
        conditioning = policy.config
    if T_world_cpf.ndim != 3 or T_world_cpf.shape[-1] != 7 or T_world_cpf.shape != T_cpf_tm1_cpf_t.shape:
        raise InputError(
            f"{name}(): T_world_cpf and T_cpf_tm1_cpf_t must have the same shape (B, T, 7), got "
            f"{tuple(T_world_cpf.shape)} and {tuple(T_cpf_tm1_cpf_t.shape)}"
        )
    batch, frames, _ = T_world_cpf.shape
    if batch < 1 or frames < 1:
        raise InputError(f"{name}(): there must be at least one trajectory of one frame, got ({batch}, {frames}, 7)")
    if frames_per_call < 1:
        raise InputError(f"{name}(): frames_per_call must be at least 1, got {frames_per_call}")
    if hand_positions_wrt_cpf is not None and hand_positions_wrt_cpf.shape != (batch, frames, 6):
        raise InputError(
            f"{name}(): hand_positions_wrt_cpf must have shape {(batch, frames, 6)}, got "
            f"{tuple(hand_positions_wrt_cpf.shape)}"
        )
    grounded = _above_floor(name, T_world_cpf, floor_z)
    lengths = None if mask is None else _real_frames(name, mask, batch, frames)

    steps = len(transitions)
    done = 0

    def count(windows: int) -> None:
        nonlocal done
        done += windows
        if callback is not None:
            callback(done, steps * len(predict))

    predict = StitchedPredictor(
        policy,
        conditioning,
        stitching or Stitching(),
        grounded,
        T_cpf_tm1_cpf_t,
        lengths=lengths,
        hand_positions_wrt_cpf=hand_positions_wrt_cpf,
        frames_per_call=frames_per_call,
        levels=[level for level, *_ in transitions.scalars],
        frames_ahead=frames_ahead,
        on_windows=count,
    )
    return reverse_process(
        predict,
        transitions,
        keys,
        caller=name,
        conditions=batch,
        shape=(frames, layout.dim),
        dtype=torch.float64 if T_world_cpf.dtype == torch.float64 else torch.float32,
        steps=StepOptions(layout, project_rotations, fix_det, record, record_last, noise, guidance),
    )


def _above_floor(name: str, T_world_cpf: Tensor, floor_z: float | Tensor) -> Tensor:
    """The poses with the floor at z = 0, ``T_world_cpf`` itself where it is there already."""
    if isinstance(floor_z, Tensor):
        if floor_z.shape not in ((), T_world_cpf.shape[:1]):
            raise InputError(
                f"{name}(): floor_z must be a number or have shape ({len(T_world_cpf)},), got {tuple(floor_z.shape)}"
            )
        floor_z = floor_z.to(T_world_cpf)[..., None]
    elif floor_z == 0.0:
        return T_world_cpf
    grounded = T_world_cpf.clone()
    grounded[..., 6] -= floor_z
    return grounded


def _real_frames(name: str, mask: Tensor, batch: int, frames: int) -> list[int]:
    """Number of real frames of each sequence; they must come first."""
    if mask.shape != (batch, frames) or mask.dtype != torch.bool:
        raise InputError(
            f"{name}(): mask must be boolean of shape ({batch}, {frames}), got {mask.dtype} {tuple(mask.shape)}"
        )
    lengths = mask.sum(dim=1)
    prefix = torch.arange(frames, device=mask.device) < lengths[:, None]
    if not bool((mask == prefix).all()) or not bool((lengths > 0).all()):
        raise InputError(
            f"{name}(): the real frames of every sequence must come first, and be at least one; the mask has gaps or "
            "an empty row"
        )
    return lengths.tolist()
