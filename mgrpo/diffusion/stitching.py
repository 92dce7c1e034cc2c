"""Long sequences as overlapping windows: which windows, and how their predictions are blended into one.

The network was trained on sequences of a limited length. A longer one is cut into windows of that length that overlap;
each is predicted for itself, at every denoising step, and the blend of the predictions enters the step. With ``p_k``
the prediction of window k, which covers frames ``a_k <= i < b_k``, and ``v_k(i) > 0`` its raw weight there, the blend
is ::

    x0_pred(i) = Σ_k share_k(i) p_k(i),    share_k(i) = v_k(i) / Σ_l v_l(i),    sums over the windows that cover i

Two ways to choose windows and weights (L the window, o the overlap, T the frames of the sequence):

``egoallo``: EgoAllo's inference, number for number (facts: D.5). Windows start at 0, L - o, 2 (L - o), … while below T
    and end at T at the latest. The raw weights come from one array over the whole sequence, of which every window takes
    the *beginning*, whatever its own place::

        a_k = k (L - o),    b_k = min(a_k + L, T),    v_k(a_k + j) = min(o, j + 1, T - j) / o

    Hence what it does to long sequences: a window fades in over its first o frames, but keeps its full weight to its
    end; the last windows may be of any length, down to one frame (T = 100: a window of 4 frames); and a sequence of
    exactly L frames is two windows, [0, L) and [L - o, L).

``proper``: the repair. Up to L frames are one window. More are the fewest windows of L frames that overlap by at least
    o, spread evenly, and each has weights of its own, the distance to its nearer end (an end of the sequence counts as
    infinitely far)::

        n = ceil((T - o) / (L - o)),    a_k = round(k (T - L) / (n - 1)),    b_k = a_k + L
        v_k(i) = min(i - a_k + 1 if k > 0, b_k - i if k < n - 1)

    Where two windows meet over m frames, the share of the second one rises linearly, (j + 1) / (m + 1): a cross-fade.
    There are never more windows than EgoAllo has, and all have one length, so that they are one call of the network.

``author``: the early code of the paper's first author has EgoAllo's windows, but doesn't weigh the predictions and
    still divides by the sum of the weights: ``share_k(i) = 1 / Σ_l v_l(i)``. Shares then don't sum to one: the first
    frames come out up to o times too large, overlaps up to twice. For comparison with that code only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from mgrpo.errors import InputError

Blend = Literal["egoallo", "proper", "author"]
BLENDS: tuple[str, ...] = get_args(Blend)


@dataclass(frozen=True)
class Stitching:
    """How sequences that are longer than a window are cut and blended. The defaults but for ``blend`` are EgoAllo's."""

    blend: Blend = "proper"
    """Windows and weights, see the module's text."""
    window: int = 128
    """Frames of a window, at least 2: the length that the network was trained with."""
    overlap: int = 32
    """Frames that neighbours share, 1 to ``window - 1``; for ``proper`` at least so many."""

    def __post_init__(self) -> None:
        if self.blend not in BLENDS:
            raise InputError(f"Stitching.blend must be one of {', '.join(BLENDS)}, got {self.blend!r}")
        for name, low, high in (("window", 2, None), ("overlap", 1, self.window - 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low or (high and value > high):
                upper = "" if high is None else f" and at most {high}, below the window of {self.window}"
                raise InputError(
                    f"Stitching.{name} must be a whole number of frames, at least {low}{upper}, got {value!r}"
                )

    def plan(self, frames: int) -> WindowPlan:
        """The windows of a sequence. Raises InputError for fewer than one frame."""
        if frames < 1:
            raise InputError(f"Stitching.plan(): a sequence must have at least 1 frame, got {frames}")
        if self.blend == "proper":
            return _proper_plan(frames, self.window, self.overlap)
        return _egoallo_plan(frames, self.window, self.overlap, weigh=self.blend == "egoallo")


@dataclass(frozen=True, eq=False)
class WindowPlan:
    """The windows of one sequence, in order of their starts."""

    frames: int
    """Frames T of the sequence."""
    starts: tuple[int, ...]
    """First frame of each window."""
    stops: tuple[int, ...]
    """One past the last frame of each window."""
    shares: tuple[Tensor, ...]
    """Share of each window in the blend of its frames, ``(stop - start,)`` float64 on the CPU. Over the windows that
    cover a frame they sum to one, except for ``author``."""

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Frames of each window."""
        return tuple(stop - start for start, stop in zip(self.starts, self.stops, strict=True))

    def blend(self, predictions: list[Tensor]) -> Tensor:
        """One prediction ``(*b, T, D)`` from one for each window ``(*b, L_k, D)``, in their dtype.

        Raises InputError when they don't fit the windows.
        """
        if [prediction.shape[-2] for prediction in predictions] != list(self.lengths):
            raise InputError(
                f"WindowPlan.blend(): the windows have {list(self.lengths)} frames, the predictions "
                f"{[prediction.shape[-2] for prediction in predictions]}"
            )
        first = predictions[0]
        blended = first.new_zeros(*first.shape[:-2], self.frames, first.shape[-1])
        for start, share, prediction in zip(self.starts, self.shares, predictions, strict=True):
            add_window(blended, start, share.to(first), prediction)
        return blended


def add_window(blended: Tensor, start: int, share: Tensor, prediction: Tensor) -> None:
    """Add ``share (L,)`` times ``prediction (*b, L, D)`` to frames ``start`` to ``start + L - 1`` of ``blended (*b, T,
    D)``, in place."""
    blended.narrow(-2, start, len(share)).addcmul_(prediction, share[:, None])


def _egoallo_plan(frames: int, window: int, overlap: int, *, weigh: bool) -> WindowPlan:
    starts = range(0, frames, window - overlap)
    stops = [min(start + window, frames) for start in starts]
    index = torch.arange(frames, dtype=torch.float64)
    ramp = torch.minimum(index + 1, frames - index).clamp_max(overlap) / overlap
    weights = [ramp[: stop - start] for start, stop in zip(starts, stops)]
    return _normalised(frames, starts, stops, weights, weigh=weigh)


def _proper_plan(frames: int, window: int, overlap: int) -> WindowPlan:
    length = min(window, frames)
    count = 1 if frames <= window else -(-(frames - overlap) // (window - overlap))
    # In whole numbers, halves upwards: neighbours are then at most window - overlap apart, for any count.
    last = frames - length
    starts = [(2 * k * last + count - 1) // (2 * (count - 1)) if count > 1 else 0 for k in range(count)]
    index = torch.arange(length, dtype=torch.float64)
    rise, fall, flat = index + 1, length - index, torch.full_like(index, torch.inf)
    weights = [
        torch.minimum(rise if k > 0 else flat, fall if k < count - 1 else flat).clamp_max(length) for k in range(count)
    ]
    return _normalised(frames, starts, [start + length for start in starts], weights, weigh=True)


def _normalised(
    frames: int, starts: range | list[int], stops: list[int], weights: list[Tensor], *, weigh: bool
) -> WindowPlan:
    total = torch.zeros(frames, dtype=torch.float64)
    for start, stop, weight in zip(starts, stops, weights, strict=True):
        total[start:stop] += weight
    shares = (
        (weight if weigh else torch.ones_like(weight)) / total[start:stop]
        for start, stop, weight in zip(starts, stops, weights, strict=True)
    )
    return WindowPlan(frames, tuple(starts), tuple(stops), tuple(shares))
